"""The queue between the threads of the application and the consumers.

Three verbs: `offer` an encoded message, `take` a batch, `acknowledge` a batch (of the
ledger). Events wait in a store.

*The application's side takes no lock.* A call may be a signal handler or a finalizer that
interrupts the very code it calls. So `offer` consists of steps that are atomic under the
GIL: put the event into the store, and wake the collecting consumer if so many wait now as
it asked for. Before each sleep that consumer says first for how many it wants to be woken,
and then looks at the store; an application's thread puts first, and then looks at what was
asked for. So one of the two always sees the other.

*Consumers collect one at a time.* The consumer that holds the lock `_collecting` waits for
the first event, lets a batch fill, and takes it. Light traffic is therefore never split over
several consumers, and while one sends, the next one collects.
"""

import threading
from sys import maxsize
from typing import Any, Dict, List, Optional

from hightouch.htevents._process import fork
from hightouch.htevents._process.waiting import Deadline, Signal, monotonic
from hightouch.htevents._queue.batch import Batch
from hightouch.htevents._queue.flushes import Flush
from hightouch.htevents._queue.ledger import Ledger
from hightouch.htevents._queue.stores import BATCH_BYTES, Store

# Seconds before a second look at events that could not be taken.
LOOK_AGAIN = 0.05

# More events and bytes than can wait: the consumer is awake.
_NEVER = maxsize


class Queue:
    """Safe to use from all threads, signal handlers and finalizers.

    :param store: where the events wait
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.closed = False
        # Whether its consumers have warned of a setting that has to be corrected.
        self.warned_of_setup = False
        self._make()
        fork.register(self)

    def _make(self) -> None:
        self.ledger = Ledger(self.store)
        # Callers that wait for room: see block_timeout.
        self._room: List[Signal] = []
        # The signal of the collecting consumer, and for how many events and bytes it wants
        # to be woken. The bytes are a hint: threads that add at the same moment may lose
        # an update, and the consumer counts them again.
        self._wakeup = Signal()
        self._wake_at = self._wake_at_bytes = _NEVER
        self._bytes = 0
        self._locks: Dict[str, Any] = {}

    def _after_fork(self) -> None:
        self.store.reset()
        self._make()

    @property
    def _collecting(self) -> Any:
        # Held by the consumer that collects. Made by the first one, of threads that come
        # here together all get the same: gevent may be patched before the first event.
        return self._locks.get('collecting') or self._locks.setdefault(
            'collecting', threading.Lock()
        )

    # -- the application's side ------------------------------------------------------

    def offer(self, body: bytes, block_timeout: float = 0) -> bool:
        """Put an encoded message; False when the queue is full or closed.

        :param block_timeout: seconds to wait for room; 0 refuses immediately
        """
        if self.closed:
            return self.refuse()
        waiting = self.store.put(body)
        if not waiting and block_timeout and self.store.can_wait():
            waiting = self._put_when_there_is_room(body, block_timeout)
        if not waiting:
            return self.refuse()
        self._bytes += len(body) + 1
        if waiting >= self._wake_at or self._bytes >= self._wake_at_bytes:
            self._wakeup.set()
        if self.closed and self.store.take_back(body):
            # The last batch may have been taken before this event was put.
            return self.refuse()
        return True

    def refuse(self) -> bool:
        """Count an event that is not taken; return False, the answer to its caller."""
        self.ledger.refused.add()
        return False

    def _put_when_there_is_room(self, body: bytes, timeout: float) -> int:
        deadline, signal = Deadline(timeout), Signal()
        while True:
            try:
                self._room.append(signal)
                # After queuing up: otherwise nobody would wake us.
                waiting = self.store.put(body)
                if waiting or self.closed or deadline.over or not self.store.can_wait():
                    return waiting
                signal.wait(deadline.remaining())
            finally:
                self._leave_room(signal)

    def _leave_room(self, signal: Signal) -> None:
        try:
            self._room.remove(signal)
        except ValueError:
            # We were woken, but perhaps did not use the room: wake the next one.
            self.wake_room(1)

    def wake_room(self, count: int) -> None:
        """Wake so many of the callers that wait for room."""
        for _ in range(min(count, len(self._room))):
            try:
                self._room.pop(0).set()
            except IndexError:
                return

    def locks(self) -> List[Any]:
        """Return the locks that a call may hold; all are re-entrant."""
        return [each for each in (self.ledger.lock, self.store.lock) if each]

    def is_held(self) -> bool:
        """Whether this thread holds a lock: below a signal handler or a finalizer."""
        return any(each._is_owned() for each in self.locks())

    # -- the consumers' side ---------------------------------------------------------

    def take(self, taker: Any, idle: Optional[float] = None) -> Optional[Batch]:
        """Wait for the next batch: a full one, or the events of one ``upload_interval``.

        :param taker: a consumer: has ``upload_size``, ``upload_interval``, its own signal
            ``wakeup``, and ``running``, which ends the wait when it becomes False
        :param idle: seconds to wait for a first message; None waits without bound
        :returns: None if the taker stopped, the queue is closed and empty, or ``idle`` is over
        """
        deadline = Deadline(idle)
        with self._collecting:
            # A call, not a loop: see waiting.unlocking about 3.13.
            return self._collect(taker, deadline)

    def is_attended(self) -> bool:
        """Whether a consumer collects, and will see an event that was put."""
        return bool(self._collecting.locked())

    def _collect(self, taker: Any, deadline: Deadline) -> Optional[Batch]:
        self._wakeup = wakeup = taker.wakeup
        size, store = taker.upload_size, self.store
        while True:
            is_running = taker.running
            if not (is_running or store.has_begun()):
                return None
            # First what wakes us, then a look at the store: see the top.
            self._wake_at, self._wake_at_bytes = size, BATCH_BYTES
            wait = self._wait_time(size, taker.upload_interval) if is_running else 0.0
            if wait is None:
                self._wake_at = 1
                if self.ledger.has_waiting():
                    continue
                wait = deadline.remaining()
                if self.closed or wait == 0:
                    return None
                if wait is None:
                    wait = store.idle_wait
            elif wait <= 0:
                batch = self._take(size) if is_running else self.take_now(size)
                if batch is not None:
                    return batch
                if store.lost:
                    return Batch()  # for a consumer, which has to report it
                wait = LOOK_AGAIN  # it cannot be read now, or another thread has it
            store.wait(wakeup, wait)
            self._wake_at = self._wake_at_bytes = _NEVER

    def _wait_time(self, size: int, interval: float) -> Optional[float]:
        """Return the seconds until a batch is to be taken; None while nothing waits."""
        store = self.store
        waiting = store.fetch(size)
        if self.ledger.is_urgent() or (self.closed and waiting):
            return 0.0
        oldest = store.oldest() if waiting else None
        if oldest is None:
            return None
        left = oldest + interval - monotonic()
        if waiting < size and self._bytes < BATCH_BYTES:
            return left
        self._wake_at = self._wake_at_bytes = _NEVER  # it is full already
        return min(left, store.pause())

    def take_now(self, size: int) -> Optional[Batch]:
        """Take the waiting messages, at most ``size``; return None without one."""
        self.store.fetch(size)
        return self._take(size)

    def _take(self, size: int) -> Optional[Batch]:
        """Take messages that the store has looked for."""
        batch = self.ledger.take(size)
        if batch is not None:
            # Not if none waits, and not if the next batch is full anyway.
            is_part = 0 < self.store.waiting() < size
            self._bytes = self.store.waiting_bytes() if is_part else 0
            if self._room:
                self.wake_room(len(batch))
        return batch

    def put_back(self, batch: Batch) -> None:
        """Return a batch undelivered; the next consumer takes it."""
        self.ledger.put_back(batch)
        self._wakeup.set()

    def acknowledge(self, batch: Batch, delivered: bool) -> bool:
        """Count the outcome of a batch; return False if a shutdown has given it up."""
        known = self.ledger.acknowledge(batch, delivered)
        if self._room:
            self.wake_room(len(batch))
        if self.store.may_have_more():
            self._wakeup.set()  # the consumer that collects may have seen its end
        return known

    def wake(self) -> None:
        """Let the collecting consumer look at the queue again."""
        self.store.wake(self._wakeup)

    def give_up(self) -> Optional[Batch]:
        """Abandon all pending events: see `Ledger.give_up`."""
        if self.store.lock is None:
            return self.ledger.give_up()
        with self.store.lock:  # first: a thread that has it may ask the ledger
            return self.ledger.give_up()

    def close(self) -> None:
        """Refuse from now on; consumers take what is left and end. Takes no lock."""
        self.closed = self.store.is_closing = True
        self._wakeup.set()
        self.wake_room(len(self._room))

    def flush(self, deadline: Deadline) -> bool:
        """Wait until every event that was accepted before this call is resolved.

        :returns: False when time ran out
        """
        return self.ledger.flushes.wait(self.start_flush(), deadline)

    def start_flush(self, signal: Any = None) -> Flush:
        """Start the sending; return the flush to wait for: see `Flushes.wait`."""
        flush = self.ledger.flushes.begin(self.store.mark(), signal)
        self.wake()
        return flush

    def begin_flush(self) -> bool:
        """Start the sending; return whether this thread delivers all pending events."""
        self.ledger.flushes.hasten(self.store.mark())
        self.wake()
        return self.ledger.is_idle_but_here()

    def release(self) -> None:
        """End all waiting, and release files: from here on nothing is resolved."""
        self.ledger.flushes.release()
        self.store.close()
