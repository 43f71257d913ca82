"""Waiting: a wake-up call that any code may make, and one budget for several waits."""

import _thread
import sys
import threading
import time
from functools import partial, wraps
from typing import Any, Callable, Dict, List, Optional, Set, Tuple, TypeVar, Union

from hightouch.htevents._process import fork
from hightouch.htevents._process.interruption import callers, raise_interruption

# The clock of all waits, in seconds. A test may stop the clocks, and a deadline would never
# be over. time_machine replaces time.monotonic inside of C. freezegun replaces it, and
# time.perf_counter, wherever a module has one: also here, if it is at work when we are
# imported. Both leave clock_gettime (which Windows lacks) and a partial alone.
if hasattr(time, 'clock_gettime'):
    monotonic: Callable[[], float] = partial(time.clock_gettime, time.CLOCK_MONOTONIC)
else:
    monotonic = partial(time.perf_counter)

# Seconds, or a pair, for the connection and between bytes of an answer, as in requests.
Timeout = Union[float, Tuple[Optional[float], Optional[float]]]

_Call = TypeVar('_Call', bound=Callable[..., Any])

# Seconds for a last step, when no time is left.
LAST_TRY = 0.1

# Threads of the package that send at a time, and the seconds that others wait for a turn.
TURNS = 32
PATIENCE = 1.0


class Signal:
    """A wake-up call for one waiting thread; calls made before it waits are kept, once.

    A raw lock used as a binary semaphore, and not a ``threading.Event``: ``Event.set()``
    holds a lock, so a signal handler or a finalizer that runs inside it and calls it again
    would wait for itself for ever. Here each method is one call of C.
    """

    __slots__ = ('_lock',)

    def __init__(self) -> None:
        # Held while no call is pending. `wait` acquires it, and `set` releases it. It
        # guards nothing.
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Wake the waiting thread, or let its next `wait` return immediately."""
        if not self._lock.locked():
            return  # one pending call is enough
        try:
            self._lock.release()
        except RuntimeError as error:
            raise_interruption(error)  # otherwise another thread was faster

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Wait for a call, at most ``timeout`` seconds (None: without bound)."""
        if timeout is None:
            return self._lock.acquire()
        if timeout <= 0:
            return self._lock.acquire(False)
        return self._lock.acquire(True, min(timeout, threading.TIMEOUT_MAX))


def start_thread(function: Callable[..., Any], *args: Any) -> bool:
    """Run a function on a new thread that nobody waits for; return whether it started.

    No thread starts at a limit of the system, while the interpreter shuts down, and in an
    isolated sub-interpreter, which has no daemon threads.

    ``threading.Thread.start()`` waits for the new thread to run, and takes a lock which a
    signal handler or a finalizer may have interrupted. This is one call of C.
    """
    if not getattr(_thread, 'daemon_threads_allowed', bool(1).__bool__)():
        return False
    try:
        _thread.start_new_thread(function, args)
    except (RuntimeError, MemoryError) as error:
        raise_interruption(error)
        return False
    return True


def unlocking(locks: Callable[[Any], List[Any]]) -> Callable[[_Call], _Call]:
    """Make a decorator that has a method leave locks as it found them.

    Up to Python 3.9 the exception of a signal handler may come between the end of a
    ``with`` block and the release of its lock. From 3.13 on an exception at the end of a
    loop's turn leaves the ``with`` or ``try`` around the loop without its clean-up.

    :param locks: returns the re-entrant locks that a call of the method may hold
    """

    def decorate(method: _Call) -> _Call:
        if (3, 10) <= sys.version_info < (3, 13):
            return method

        @wraps(method)
        def unlocked(self: Any, *args: Any, **kwargs: Any) -> Any:
            # The locks of the code that a signal handler interrupted to call us.
            held = [lock for lock in locks(self) if lock._is_owned()]
            try:
                return method(self, *args, **kwargs)
            except BaseException:
                for lock in locks(self):
                    while lock._is_owned() and lock not in held:
                        lock.release()
                raise

        return unlocked  # type: ignore[return-value]

    return decorate


class Deadline:
    """The end of a time budget on the monotonic clock.

    :param timeout: seconds; None: no end. Of a pair its second part, which bounds an answer
    """

    __slots__ = ('_end',)

    def __init__(self, timeout: Optional[Timeout]) -> None:
        if isinstance(timeout, tuple):
            timeout = timeout[1]
        if timeout is not None:  # an int may be larger than any float
            timeout = monotonic() + min(timeout, threading.TIMEOUT_MAX)
        self._end = timeout

    def remaining(self) -> Optional[float]:
        """Return the seconds left, never below 0; None without an end."""
        return None if self._end is None else max(0.0, self._end - monotonic())

    def leaves(self, seconds: float) -> bool:
        """Whether ``seconds`` from now is still before the end."""
        return self._end is None or monotonic() + seconds < self._end

    def become(self, other: 'Deadline') -> None:
        """End when ``other`` does, for every holder of this deadline."""
        self._end = other._end

    def extended(self, seconds: float) -> 'Deadline':
        """Return a deadline that ends later than this one."""
        later = Deadline(None)
        if self._end is not None:
            later._end = self._end + seconds
        return later

    @property
    def over(self) -> bool:
        return self._end is not None and monotonic() >= self._end

    def bounded(self, timeout: Any) -> Any:
        """Return a request's timeout that ends with this deadline.

        :param timeout: None: no bound; each part of a pair is bounded
        """
        if self._end is None:
            return timeout
        left = max(self._end - monotonic(), LAST_TRY)
        if isinstance(timeout, tuple):
            return tuple(left if each is None else min(each, left) for each in timeout)
        return left if timeout is None else min(timeout, left)


class _Turns:
    """Lets only some threads of the package send at a time.

    A thread that waits for the GIL wakes up every 5 ms to ask for it. When a thousand clients
    send at once, this costs more than the sending, while to wait for a turn costs nothing.
    Threads with a turn may be waiting for a server that hangs, so patience ends.
    """

    def __init__(self) -> None:
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # Made with the first turn, by which gevent is patched. Threads that make it together
        # get the same one, by setdefault.
        self._made: Dict[None, Any] = {}

    def call(self, deadline: Deadline, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a turn, or without one when patience or time is over."""
        turns = self._made.get(None) or self._made.setdefault(
            None, threading.Semaphore(TURNS)
        )
        has_turn = turns.acquire(timeout=deadline.bounded(PATIENCE))
        try:
            return function(*args)
        finally:
            if has_turn:
                turns.release()


turns = _Turns()


class _Delivering:
    """The threads that may be inside a delivery: a hint, which costs a lookup.

    A signal handler that raises can leave a thread in it, so `is_delivering` looks at the
    stack as well. A child that is forked inside a delivery is not inside it.
    """

    def __init__(self) -> None:
        self.threads: Set[int] = set()
        fork.register(self)

    def _after_fork(self) -> None:
        self.threads.clear()


delivering = _Delivering()

# The code of the frames that mark a delivery.
_DELIVERING: Set[Any] = set()


def delivers(function: _Call) -> _Call:
    """Mark a function inside of which the current thread delivers, or runs a callback.

    A signal handler, a finalizer or a callback may call the library from inside of it. Such
    a call must not wait for a delivery: it may have interrupted that delivery.
    """

    @wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        ident = threading.get_ident()
        is_outermost = ident not in delivering.threads
        delivering.threads.add(ident)
        try:
            return function(*args, **kwargs)
        finally:
            if is_outermost:
                delivering.threads.discard(ident)

    _DELIVERING.add(getattr(marked, '__code__'))
    return marked  # type: ignore[return-value]


def is_delivering() -> bool:
    """Whether the current thread is inside a delivery, however deep."""
    return threading.get_ident() in delivering.threads and any(
        frame.f_code in _DELIVERING for frame in callers(sys._getframe(1))
    )
