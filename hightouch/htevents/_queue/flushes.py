"""The callers that flush: each one waits until all events before a mark are resolved.

A flush is over when all events before its mark were taken, and none of them is in flight.
"""

from typing import Any, Dict, List

from hightouch.htevents._process.waiting import Deadline, Signal
from hightouch.htevents._queue.batch import Batch
from hightouch.htevents._queue.stores import Store


class Flush:
    """A caller that waits.

    :ivar mark: see `Store.mark`; None waits for the events in flight only
    :ivar signal: wakes the caller: a `Signal`, or for a coroutine one of `loops`
    """

    __slots__ = ('mark', 'signal', 'done')

    def __init__(self, mark: Any, signal: Any) -> None:
        self.mark = mark
        self.signal = signal
        self.done = False


class Flushes:
    """Safe to use from all threads, signal handlers and finalizers.

    :param store: where the events wait
    :param lock: the lock of the ledger, which guards ``waiting`` and ``in_flight``
    :param in_flight: the batches that were taken and are not resolved
    :ivar waiting: the flushes that are not over
    :ivar urgent: marks of flushes. Changed by list.append and list.remove, which are atomic
    :ivar unreported: events that the store has lost. No flush is over before their report
    """

    def __init__(self, store: Store, lock: Any, in_flight: Dict[Batch, None]) -> None:
        self._store = store
        self._lock = lock
        self._in_flight = in_flight
        self.waiting: List[Flush] = []
        self.urgent: List[Any] = []
        self.unreported = 0
        self._is_released = False

    def hasten(self, mark: Any) -> None:
        """Let all events before a mark be taken now. Takes no lock."""
        self.urgent.append(mark)

    def is_urgent(self) -> bool:
        """Whether events before a mark are still to be taken."""
        for mark in reversed(list(self.urgent)):
            if not self._store.is_past(mark):
                return True
            try:
                self.urgent.remove(mark)
            except ValueError:
                pass  # another thread was faster
        return False

    def begin(self, mark: Any, signal: Any = None) -> Flush:
        """Note that a caller waits for all events before a mark."""
        flush = Flush(mark, signal or Signal())
        if mark is not None:
            self.hasten(mark)
        with self._lock:
            # This one only: many tasks may wait, and each of them comes here.
            self.waiting.append(flush)
            self._settle(flush)
        return flush

    def wait(self, flush: Flush, deadline: Deadline) -> bool:
        """Wait until a flush is over; False when time ran out, or with `release`."""
        try:
            while not (flush.done or deadline.over or self._is_over()):
                flush.signal.wait(deadline.remaining())
        finally:
            self.forget(flush)
        return flush.done

    async def wait_async(self, flush: Flush, deadline: Deadline) -> bool:
        """Do the same as `wait` in a coroutine, whose caller forgets the flush."""
        while not (flush.done or deadline.over or self._is_over()):
            await flush.signal.wait(deadline.remaining())
            if deadline.over:
                return False  # what is resolved after it may be reported as lost
        return flush.done

    def forget(self, flush: Flush) -> None:
        """Stop waiting for a flush."""
        with self._lock:
            if flush in self.waiting:
                self.waiting.remove(flush)

    def _is_over(self) -> bool:
        # A batch whose callbacks run is resolved as soon as they return.
        return self._is_released and all(
            each.outcome is None for each in list(self._in_flight)
        )

    def settle(self) -> None:
        """Wake the callers whose flush is over. The lock is held."""
        assert self._lock._is_owned()
        for flush in list(self.waiting):
            self._settle(flush)

    def _settle(self, flush: Flush) -> None:
        if self._is_resolved(flush.mark):
            flush.done = True
            self.waiting.remove(flush)
        if flush.done or self._is_released:
            flush.signal.set()

    def release(self) -> None:
        """End all waiting: from here on nothing is resolved."""
        self._is_released = True
        with self._lock:
            self.settle()

    def _is_resolved(self, mark: Any) -> bool:
        if mark is None:
            return not self._in_flight
        is_before = self._store.is_before
        return (
            self._store.is_past(mark)
            and not self.unreported
            and not any(
                is_before(item, mark)
                for batch in list(self._in_flight)
                for item in batch.items
            )
        )
