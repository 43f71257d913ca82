"""Where events wait: in memory, or in a ``queue.Queue`` of somebody else.

The third store, on the disk, is in ``_spool``. All have the methods of `Store`.
"""

import queue as queue_module
from collections import deque
from itertools import count, repeat, starmap
from operator import length_hint
from sys import maxsize as _UNBOUNDED
from typing import Any, Callable, Deque, Iterator, List, Optional, Sequence

from hightouch.htevents._process.waiting import Signal, monotonic
from hightouch.htevents.encoding import encode
from hightouch.htevents.errors import DamageError, MessageTooLargeError, is_retryable
from hightouch.htevents.findings import Finding, Findings

# Bytes of messages in one request. The server's limit is 500 KB for a body; the
# difference is room for the envelope.
BATCH_BYTES = 475000

# Seconds between looks at a queue that cannot be waited on without taking from it.
POLL_INTERVAL = 0.5


class Counter:
    """Counts calls of `add`. That is one step of the interpreter, so it needs no lock."""

    __slots__ = ('add', 'left')

    def __init__(self) -> None:
        self.left = repeat(None, _UNBOUNDED)
        self.add: Callable[[], None] = self.left.__next__

    @property
    def value(self) -> int:
        return _UNBOUNDED - length_hint(self.left)


class Policy:
    """The fate of events that cannot be delivered. In memory, they are given up."""

    # Whether events survive the process, which may then leave them to the next one.
    durable = False

    def most_retries(self, retries: float) -> float:
        """Return how often a request is sent again."""
        return retries

    def is_final(self, error: BaseException) -> bool:
        """Whether an error says that the events will never be taken."""
        return not is_retryable(error)

    def expired(self, items: Sequence[Any]) -> List[bool]:
        """Return for each event whether it became too old while it waited; [] for none.

        :param items: see `Batch.items`
        """
        return []


class Store:
    """The interface of a store, with the defaults of a store in memory.

    `put`, `waiting` and `mark` may be called from any thread, signal handler and finalizer,
    and block on nothing. The ledger's lock is held for `take`, `is_past` and `is_before`.
    """

    policy = Policy()
    # The events that can be taken, oldest first: see `Batch.items`.
    ready: Deque[Any]
    # Held while files are read or written; re-entrant. None: no lock is needed.
    lock: Any = None
    # Files of it that were found damaged, and errors of events that can no longer be read.
    damaged_files = 0
    lost: Sequence[DamageError] = ()
    # The number of events that `give_up` has left to the next client.
    left = 0
    # Seconds after which an idle consumer looks again; None: never.
    idle_wait: Optional[float] = None
    # Whether the client refuses new events. It also leaves events of dead processes alone.
    is_closing = False

    def put(self, body: bytes) -> int:
        """Store an event; return how many wait now, 0 when it was not stored."""
        raise NotImplementedError

    def take(self, items: List[Any], size: int, limit: int) -> None:
        """Move the oldest events to ``items``, in one step of the interpreter.

        :param size: most events
        :param limit: most bytes, unless the first event alone is larger
        """
        ready, number, length = self.ready, 0, 0
        try:
            # By index, because others append: to iterate would fail then.
            while number < size:
                length += len(ready[number][0]) + 1
                if length >= limit and number:
                    break
                number += 1
        except IndexError:
            pass  # no more events wait
        try:
            # One call of C: a signal handler that raises comes before it or after it.
            items.extend(starmap(ready.popleft, repeat((), number)))
        except IndexError:
            pass  # the last one was taken back

    def take_back(self, body: bytes) -> bool:
        """Remove an event that was put last; False if it was taken, or stays."""
        return False

    def fetch(self, size: int) -> int:
        """Prepare up to ``size`` events for `take`; return how many wait.

        It may take time, and no lock is held.
        """
        return len(self.ready)

    def has_begun(self) -> bool:
        """Whether one consumer keeps messages that no other can take."""
        return False

    def waiting(self) -> int:
        """Return how many events wait."""
        return len(self.ready)

    def waiting_bytes(self) -> int:
        """Return the bytes of the events that can be taken."""
        return sum(len(item[0]) + 1 for item in list(self.ready))

    def oldest(self) -> Optional[float]:
        """Return the monotonic time at which the oldest waiting event was accepted."""
        try:
            accepted_at: float = self.ready[0][1]
            return accepted_at
        except IndexError:
            return None

    def resolve(self, items: Sequence[Any]) -> None:
        """Forget events that were delivered, or reported as lost."""

    def mark(self) -> Any:
        """Return a mark: every event that was put before this call comes before it."""
        return None

    def is_past(self, mark: Any) -> bool:
        """Whether all events before a mark were taken."""
        return True

    def is_before(self, item: Any, mark: Any) -> bool:
        """Whether an event that was taken came before a mark."""
        return True

    def give_up(self, items: List[Any]) -> List[Any]:
        """At the end, return the lost ones of ``items`` and of the waiting events."""
        return items

    def wait(self, wakeup: Signal, timeout: Optional[float]) -> None:
        """Wait for an event to be put."""
        wakeup.wait(timeout)

    def wake(self, wakeup: Signal) -> None:
        """End a `wait`."""
        wakeup.set()

    def pause(self) -> float:
        """Return the seconds to leave the application alone before a batch is taken."""
        return 0.0

    def is_durable(self) -> Optional[bool]:
        """Whether events survive the process; None when they are not meant to."""
        return None

    def has_backlog(self) -> bool:
        """Whether events of dead processes wait to be delivered by this one."""
        return False

    def may_have_more(self) -> bool:
        """Whether it may find events of dead processes, which `waiting` does not count."""
        return False

    def take_lost(self) -> List[DamageError]:
        """Return the errors of ``lost``, and empty it."""
        return []

    def can_wait(self) -> bool:
        """Whether waiting may help a caller whose event was not stored."""
        return True

    def is_full(self) -> bool:
        return False

    def has_room_again(self) -> bool:
        """Whether it is far from full."""
        return True

    def why_refused(self) -> str:
        """Say why `put` stores nothing."""
        return ''

    def close(self) -> None:
        """Release files; no event will be resolved after that."""

    def reset(self) -> None:
        """Forget everything in a forked child: the events are its parent's."""


class MemoryStore(Store):
    """A bounded deque of events.

    :param maxsize: events that may wait; 0 or less: no bound. Each thread that calls `put`
        at the same moment may pass it by one event
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize if maxsize > 0 else _UNBOUNDED
        self.reset()

    def reset(self) -> None:
        # The place of an event is a number, and so is a mark.
        self.ready = deque()
        self._numbers: Iterator[int] = count()

    def put(self, body: bytes) -> int:
        items = self.ready
        waiting = len(items)
        if waiting >= self._maxsize:
            return 0
        items.append((body, monotonic(), next(self._numbers)))
        return waiting + 1

    def take_back(self, body: bytes) -> bool:
        """Remove an event that was put last; False if it was taken."""
        for item in reversed(list(self.ready)):
            if item[0] is body:
                try:
                    self.ready.remove(item)
                    return True
                except ValueError:
                    break
        return False

    def mark(self) -> int:
        return next(self._numbers)

    def is_past(self, mark: Any) -> bool:
        try:
            return bool(self.ready[0][2] > mark)
        except IndexError:
            return True

    def is_before(self, item: Any, mark: Any) -> bool:
        return bool(item[2] < mark)

    def give_up(self, items: List[Any]) -> List[Any]:
        self.take(items, len(self.ready), _UNBOUNDED)
        return items

    def is_full(self) -> bool:
        return len(self.ready) >= self._maxsize

    def has_room_again(self) -> bool:
        return 2 * len(self.ready) <= self._maxsize

    def why_refused(self) -> str:
        return 'The queue is full (%d events)' % self._maxsize


class ForeignStore(Store):
    """A ``queue.Queue`` of dicts that somebody else fills.

    :param source: has ``get`` and ``task_done``; with a ``not_empty`` condition, as
        ``queue.Queue`` has, an idle consumer sleeps without polling
    :param limit: bytes that one message may take
    :param on_drop: called for each larger message, with an error and a list of the message
    """

    def __init__(
        self, source: Any, limit: int, on_drop: Callable[[Exception, List[Any]], None]
    ) -> None:
        self._source = source
        self._limit = limit
        self._on_drop = on_drop
        # Taken from the queue, for a batch that is still to come.
        self.ready = deque()
        self._findings = Findings()

    def put(self, body: bytes) -> int:
        raise NotImplementedError('its owner puts messages')

    def fetch(self, size: int) -> int:
        # Encoded here: a report of a message that is too large calls the application.
        while len(self.ready) < size:
            try:
                message = self._source.get(block=False)
            except queue_module.Empty:
                break
            self._hold_one(message)
        return len(self.ready)

    def _hold_one(self, message: Any) -> None:
        found: List[Finding] = []
        body, message = encode(message, found)
        self._findings.log(found)
        if len(body) <= self._limit:
            return self.ready.append((body, monotonic(), None))
        try:
            self._on_drop(MessageTooLargeError(len(body), self._limit), [message])
        finally:
            self._source.task_done()

    def has_begun(self) -> bool:
        return bool(self.ready)

    def _size(self) -> int:
        size = getattr(self._source, '_qsize', None)
        return int(size()) if size is not None else 0

    def wait(self, wakeup: Signal, timeout: Optional[float]) -> None:
        not_empty = getattr(self._source, 'not_empty', None)
        if not_empty is None:
            return self._poll(timeout)
        with not_empty:
            # Looked at under the lock: see wake.
            if not self._size() and not wakeup.wait(0):
                not_empty.wait(timeout)

    def _poll(self, timeout: Optional[float]) -> None:
        left = POLL_INTERVAL if timeout is None else min(timeout, POLL_INTERVAL)
        try:
            self._hold_one(self._source.get(block=True, timeout=left))
        except queue_module.Empty:
            pass

    def wake(self, wakeup: Signal) -> None:
        wakeup.set()
        not_empty = getattr(self._source, 'not_empty', None)
        if not_empty is not None and not_empty.acquire(timeout=1):
            try:
                not_empty.notify_all()
            finally:
                not_empty.release()

    def resolve(self, items: Sequence[Any]) -> None:
        for _ in items:
            self._source.task_done()
