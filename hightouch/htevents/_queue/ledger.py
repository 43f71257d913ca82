"""The books of a queue: batches in flight, and counts of outcomes.

The accepted events are the ones in the store, in flight, delivered and failed, so the counts
add up by construction.
"""

import threading
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from hightouch.htevents._process.waiting import Deadline, monotonic
from hightouch.htevents._queue.batch import Batch
from hightouch.htevents._queue.flushes import Flushes
from hightouch.htevents._queue.stores import BATCH_BYTES, Counter, Store
from hightouch.htevents.errors import DamageError


class Stats(NamedTuple):
    """Counts of events; ``accepted == delivered + failed + pending`` at all times.

    :ivar accepted: events that a call answered True. With ``spool_dir`` also events that
        were taken over from a process that died
    :ivar delivered: events that the collector acknowledged
    :ivar failed: events that were given up, each reported through ``on_error``
    :ivar pending: events that wait or are on their way
    :ivar refused: events that a call answered False
    :ivar retried: requests that were sent again
    :ivar oldest_pending_age: seconds since the oldest pending event was accepted,
        None when none is pending
    :ivar last_error: the last error of a request, as a short text without payload;
        None before the first one
    :ivar durable: None without ``spool_dir``; False while events cannot be made durable
        (or some that were are not durable now); True otherwise
    :ivar damaged_files: files of the spool that were found damaged, and set aside
    """

    accepted: int
    delivered: int
    failed: int
    pending: int
    refused: int
    retried: int
    oldest_pending_age: Optional[float]
    last_error: Optional[str]
    durable: Optional[bool] = None
    damaged_files: int = 0


class Ledger:
    """Safe to use from all threads, signal handlers and finalizers.

    :param store: where the events wait that nobody has taken
    :ivar last_error: the last error of a request, as a short text; None before the first one
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # Guards the fields below, and taking from the store. Held for a few steps, and
        # never during a callback. Re-entrant, because it knows its owner.
        self.lock = threading.RLock()
        self._in_flight: Dict[Batch, None] = {}  # a dict, because it keeps the order
        self._put_back: List[Batch] = []
        self.flushes = Flushes(store, self.lock, self._in_flight)
        self._delivered = 0
        self._failed = 0
        self.last_error: Optional[str] = None
        self.retried = Counter()
        self.refused = Counter()

    # -- batches ---------------------------------------------------------------------

    def take(self, size: int) -> Optional[Batch]:
        """Take a batch of at most ``size`` events; None when nothing waits."""
        if self.lock._is_owned():  # type: ignore[attr-defined]
            return None  # below a signal handler or a finalizer
        ident = threading.get_ident()
        with self.lock:
            if self._put_back:
                batch = self._put_back[0]
                batch.owner = ident
                del self._put_back[0]
                return batch
            # In flight before it is filled: if a signal handler raises in between,
            # `recover` finds it.
            batch = Batch((), ident)
            self._in_flight[batch] = None
            self._store.take(batch.items, size, BATCH_BYTES)
            if batch.items:
                return batch
            del self._in_flight[batch]
            if self.flushes.waiting:
                self.flushes.settle()
            return None

    def admit(self, body: bytes) -> Batch:
        """Take in an event that the calling thread delivers itself."""
        batch = Batch([(body, monotonic(), self._store.mark())], threading.get_ident())
        self._in_flight[batch] = None
        return batch

    def holds(self, batch: Batch) -> bool:
        """Whether a batch is still to be delivered: not given up, not forked away."""
        return batch in self._in_flight

    def replace(
        self, batch: Batch, parts: Tuple[Batch, Batch]
    ) -> Optional[Tuple[Batch, Batch]]:
        """Put two parts in a batch's place; None when it was given up."""
        with self.lock:
            if batch not in self._in_flight:
                return None
            for part in parts:
                self._in_flight[part] = None
            del self._in_flight[batch]
        return parts

    def put_back(self, batch: Batch) -> None:
        """Return a batch undelivered; the next consumer takes it."""
        with self.lock:
            if batch in self._in_flight and batch not in self._put_back:
                self._put_back.append(batch)
                batch.owner = None

    def claim(self, batch: Batch, delivered: bool) -> bool:
        """Announce the outcome of a batch; return False if a shutdown has given it up."""
        with self.lock:
            if batch not in self._in_flight:
                return False
            batch.outcome = delivered
            return True

    def acknowledge(self, batch: Batch, delivered: bool) -> bool:
        """Count the outcome of a batch after its callbacks; False if it was given up."""
        if delivered or batch in self._in_flight:
            self._store.resolve(batch.items)
        with self.lock:
            if batch not in self._in_flight:
                return False
            if not batch.counted:  # by a call that a signal handler interrupted
                count = len(batch.items)
                batch.counted = True  # no call follows in which a handler could run
                if delivered:
                    self._delivered += count
                else:
                    self._failed += count
            del self._in_flight[batch]
            if self.flushes.waiting:
                self.flushes.settle()
            return True

    def forget(self, batch: Batch) -> None:
        """Drop a batch from the books: its taker acknowledges it itself."""
        with self.lock:
            self._in_flight.pop(batch, None)

    def take_damage(self) -> List[DamageError]:
        """Return the errors of events that the store has lost, each once."""
        with self.lock:
            found = self._store.take_lost()
            self.flushes.unreported += sum(each.count for each in found)
            return found

    def lose(self, count: int) -> None:
        """Count events that the store has lost, after they were reported."""
        with self.lock:
            self.flushes.unreported -= count
            self._failed += count
            self.flushes.settle()

    def recover(self) -> None:
        """Settle batches of this thread whose delivery a signal handler ended.

        The exception of the handler may come in any step of a delivery. Only for a thread
        that is inside no delivery.
        """
        ident = threading.get_ident()
        with self.lock:
            left = [each for each in list(self._in_flight) if each.owner == ident]
        for batch in left:
            if batch.outcome is not None:
                self.acknowledge(batch, batch.outcome)
            elif batch.items:
                self.put_back(batch)
            else:
                self.forget(batch)

    def give_up(self) -> Optional[Batch]:
        """Abandon all pending events. The caller holds the store's lock, if there is one.

        :returns: a batch of the events that are lost, to be reported and acknowledged
        """
        with self.lock:
            self._put_back.clear()
            lost = Batch((), threading.get_ident())
            lost.outcome = False
            self._in_flight[lost] = None
            self._give_up(lost)
            if lost.items:
                return lost
            del self._in_flight[lost]
            self.flushes.settle()
            return None

    def _give_up(self, lost: Batch) -> None:
        items: List[Any] = []
        for batch in [each for each in list(self._in_flight) if each.outcome is None]:
            # A late answer finds the batch no longer in flight, and changes nothing.
            items.extend(batch.items)
            del self._in_flight[batch]
        lost.items.extend(self._store.give_up(items))

    # -- flush and stats -------------------------------------------------------------

    def has_waiting(self) -> bool:
        """Whether events can be taken."""
        return bool(self._put_back) or self._store.waiting() > 0

    def is_urgent(self) -> bool:
        """Whether a batch is to be taken now: one was put back, or a caller flushes."""
        flushes = self.flushes
        if flushes.waiting:
            with self.lock:  # the store may have found that no more events wait
                flushes.settle()
        return bool(self._put_back or (flushes.urgent and flushes.is_urgent()))

    def wait_for_callbacks(self, deadline: Deadline) -> None:
        """Wait until everything that was taken is resolved."""
        self.flushes.wait(self.flushes.begin(None), deadline)

    def is_idle_but_here(self) -> bool:
        """Whether nothing is pending but what this thread delivers."""
        ident = threading.get_ident()
        return not self.has_waiting() and all(
            each.owner == ident for each in list(self._in_flight)
        )

    def pending(self) -> int:
        """Return how many events wait or are in flight. Takes no lock."""
        in_flight = sum(map(len, list(self._in_flight)))
        return (
            self._store.waiting()
            + self._store.left
            + self.flushes.unreported
            + in_flight
        )

    def stats(self) -> Stats:
        with self.lock:
            pending = self.pending()
            ages = [each.accepted_at for each in list(self._in_flight) if each.items]
            oldest = self._store.oldest()
            if oldest is not None:
                ages.append(oldest)
            return Stats(
                accepted=pending + self._delivered + self._failed,
                delivered=self._delivered,
                failed=self._failed,
                pending=pending,
                refused=self.refused.value,
                retried=self.retried.value,
                oldest_pending_age=max(0.0, monotonic() - min(ages)) if ages else None,
                last_error=self.last_error,
                durable=self._store.is_durable(),
                damaged_files=self._store.damaged_files,
            )
