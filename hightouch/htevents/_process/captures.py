"""Takes the events of all clients instead of queueing them: see `testing.capture`."""

from typing import Callable, Tuple

Taker = Callable[[bytes], None]

# The write key of clients that are given none, while events are taken. It is not in the
# environment: a test that patches the environment would put it back there after the capture.
WRITE_KEY = 'test'

# What takes each encoded event, while there is anything. A tuple, replaced as a whole, because
# threads read it without a lock.
takers: Tuple[Taker, ...] = ()


def take(body: bytes) -> None:
    for each in takers:
        each(body)


def add(taker: Taker) -> None:
    global takers
    takers += (taker,)


def remove(taker: Taker) -> None:
    global takers
    takers = tuple(each for each in takers if each is not taker)
