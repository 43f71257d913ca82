"""The queue between the threads of the application and the consumers.

Theory of operation
-------------------
Three verbs: `offer` an encoded message, `take` a batch, `acknowledge` a batch.

*The application's side takes no lock.* It may be a signal handler or a ``__del__`` that
interrupts the very code it calls, so `offer` consists of steps that are atomic under
the GIL: claim a slot, append, and wake a consumer when the queue has grown to
``_wake_at``. Before each sleep the leading consumer sets ``_wake_at`` and only then
looks at the queue; an application's thread appends and only then reads ``_wake_at``.
So one of the two always sees the other, and no wake-up is lost.

*One consumer leads.* Only the leader waits for events and lets a batch fill up; light
traffic is therefore never split over several consumers. The lead is a token that is
handed on as soon as the leader has its batch, so that N consumers send N requests side
by side. While all are sending nobody leads, and no event wakes anyone.

*The consumers' side keeps books under a lock*: how many messages were taken, which
batches are in flight, how many were delivered and failed. What was accepted is what was
taken plus what still waits, so the counts add up by construction. A flush is a position
in the order of acceptance: it is over when no batch before it is in flight.
"""

import threading
from collections import deque
from itertools import count, repeat
from time import sleep
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from hightouch.htevents import fork
from hightouch.htevents.batch import Batch
from hightouch.htevents.concurrency import Deadline, Signal, monotonic
from hightouch.htevents.encoding import encode
from hightouch.htevents.errors import describe

# Bytes of messages in one request. The server's limit is 500 KB for a body; the
# difference is room for the envelope.
BATCH_BYTES = 475000

# More events than a queue can hold: nobody is woken.
_NEVER = 1 << 62
_FULL = object()


class Stats(NamedTuple):
    """Counts of events; ``accepted == delivered + failed + pending`` at all times.

    :ivar accepted: events that a call answered True, and with ``spool_dir`` those that
        were taken over from a process that died
    :ivar delivered: events that the collector acknowledged
    :ivar failed: events that were given up, each reported through ``on_error``
    :ivar pending: events that wait or are on their way
    :ivar refused: events that a call answered False
    :ivar retried: requests that were sent again
    :ivar oldest_pending_age: seconds since the oldest pending event was accepted,
        None when none is pending
    :ivar last_error: the last error of a request, as a short text without payload;
        None when there was none
    :ivar durable: None without ``spool_dir``; False while events cannot be made durable
        (or some that were are not any more), True else
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


class _Flush:
    """Somebody who waits until what was accepted before a position is resolved."""

    __slots__ = ('target', 'signal', 'owner', 'nested', 'done')

    def __init__(self, target: int, owner: int, nested: bool) -> None:
        self.target = target
        self.signal = Signal()
        self.owner = owner
        self.nested = nested
        self.done = False


class EventQueue:
    """A bounded queue of encoded messages, in memory.

    Safe to use from all threads, signal handlers and finalizers. Answers what users of
    ``queue.Queue`` ask as well.

    :param maxsize: messages that may wait; 0 or less: no bound
    """

    # Whether what cannot be delivered is kept for a next process.
    durable = False

    def __init__(self, maxsize: int = 0) -> None:
        self.maxsize = maxsize
        self.closed = False
        # Told, as Dispatcher.report, of events that cannot be read from a spool any more.
        self.on_loss: Optional[Callable[[Exception, List[Any], int], None]] = None
        # Given a client's, what is put here by hand starts its consumers as a call does.
        self.on_put: Optional[Callable[[bytes, float], bool]] = None
        # Whether its consumers have said that something here has to be mended.
        self.warned_of_setup = False
        self._reset()
        fork.register(self)

    def _reset(self) -> None:
        # (JSON, monotonic time of acceptance, where it lies in a spool if there is one)
        self._items: Deque[Tuple[bytes, float, Any]] = deque()
        # Slots nobody has used yet, and slots that were used and are free again. An
        # iterator and not a number: next() is atomic, ``-= 1`` is not.
        self._fresh: Iterator[None] = (
            repeat(None, self.maxsize) if self.maxsize > 0 else repeat(None)
        )
        # Lists and not deques, where few wait or one end will do: an empty deque takes
        # 700 bytes more, and there may be a client for each tenant.
        self._freed: List[None] = []
        self._room: List[Signal] = []
        self._wake_at = _NEVER
        self._large = BATCH_BYTES
        self._wakeup = Signal()  # of the leading consumer
        self._lead = [True]
        self._followers: List[Signal] = []
        # Guards everything below, and popping from _items. Held for a few steps, never
        # during I/O or a callback. Re-entrant, because a finalizer may run in there;
        # what it asks then is answered by _nested without touching the books.
        self._lock = threading.RLock()
        self._nested = False
        self._taken = 0
        self._delivered = 0
        self._failed = 0
        self._retried = 0
        self._refused = 0
        self._refusals = count(1)
        self._last_error: Optional[str] = None
        self._in_flight: Dict[Batch, int] = {}
        self._parked: List[Batch] = []
        self._handed_out: List[Optional[Batch]] = []  # see hand_out
        self._flushes: List[_Flush] = []
        self._released = False
        self._flush_to = 0

    def _after_fork(self) -> None:
        # What waits here is the parent's, which sends it.
        self._reset()

    # -- the application's side ------------------------------------------------------

    def offer(self, body: bytes, block_timeout: float = 0) -> bool:
        """Put an encoded message; False when the queue is full or closed.

        :param block_timeout: seconds to wait for room; 0 refuses at once
        """
        if self.closed:
            return self.refuse()
        if next(self._fresh, _FULL) is _FULL:
            try:
                self._freed.pop()
            except IndexError:
                if not (block_timeout and self._wait_for_room(block_timeout)):
                    return self.refuse()
        item = (body, monotonic(), None)
        items = self._items
        items.append(item)
        if len(items) >= self._wake_at:
            self._wakeup.set()
        elif len(body) > self._large:
            self._wakeup.set()  # a few of these fill a batch: let the leader count
        if self.closed:
            return self._stays(item)
        return True

    def _stays(self, item: Tuple[bytes, float, Any]) -> bool:
        # The queue was closed meanwhile, and its last batch may have been taken: take
        # the event back, unless somebody else has taken it.
        try:
            self._items.remove(item)
        except ValueError:
            return True
        self._freed.append(None)
        self._wake_room(1)
        return self.refuse()

    def refuse(self) -> bool:
        """Count an event that is not taken; returns False, what its caller gets."""
        self._refused = next(self._refusals)
        return False

    def has_room_again(self) -> bool:
        """Whether it is full no more, and not about to be full again."""
        return self.maxsize <= 0 or 2 * len(self._items) <= self.maxsize

    def _wait_for_room(self, timeout: float) -> bool:
        deadline, signal = Deadline(timeout), Signal()
        while not self.closed:
            self._room.append(signal)
            try:
                self._freed.pop()  # looked at after queuing up: else nobody would wake us
                return True
            except IndexError:
                if deadline.over:
                    return False
                signal.wait(deadline.remaining())
            finally:
                self._leave_room(signal)
        return False

    def _leave_room(self, signal: Signal) -> None:
        try:
            self._room.remove(signal)
        except ValueError:
            # We were woken, perhaps for a slot that we do not need or came too late for:
            # somebody else shall look.
            if self._freed:
                self._wake_room(1)

    def _wake_room(self, count: int) -> None:
        for _ in range(count):
            try:
                self._room.pop(0).set()
            except IndexError:
                return

    # -- the consumers' side ---------------------------------------------------------

    def take(
        self,
        wakeup: Signal,
        running: Callable[[], bool],
        size: int,
        interval: float,
        idle: Optional[float] = None,
    ) -> Optional[Batch]:
        """Wait for the next batch: a full one, or what came within ``interval``.

        :param wakeup: the calling consumer's own signal
        :param running: asked after each wake-up; False ends the wait
        :param size: messages that make a batch full
        :param interval: seconds that the oldest message may wait for others
        :param idle: seconds to wait for a first message; None waits without bound
        :returns: None when there is none: not running, closed and empty, or idle is over
        """
        deadline = Deadline(idle)
        try:
            while running():
                if not self._lead_or_wait(wakeup, deadline):
                    if deadline.over:
                        return None
                    continue
                try:
                    return self._take_as_leader(
                        wakeup, running, size, interval, deadline
                    )
                finally:
                    self._lead.append(True)
            return None
        finally:
            self._wake_follower()

    def is_led(self) -> bool:
        """Whether a consumer waits for the next batch."""
        return not self._lead

    def _take_as_leader(
        self,
        wakeup: Signal,
        running: Callable[[], bool],
        size: int,
        interval: float,
        deadline: Deadline,
    ) -> Optional[Batch]:
        # A function, not a loop in `take`: see concurrency.unlocking about 3.13.
        while running():
            if self._ripe(size, interval):
                batch = self.take_now(size)
                if batch is not None:
                    return batch
            if (self.closed or deadline.over) and self.empty():
                return None
            self._linger(wakeup, size, interval, deadline)
        return None

    def _lead_or_wait(self, wakeup: Signal, deadline: Deadline) -> bool:
        try:
            return self._lead.pop()
        except IndexError:
            pass
        self._followers.append(wakeup)
        if not self._lead:  # looked at after queuing up: else nobody would wake us
            wakeup.wait(deadline.remaining())
        try:
            self._followers.remove(wakeup)
        except ValueError:
            pass
        return False

    def _wake_follower(self) -> None:
        if self._lead:
            try:
                self._followers.pop(0).set()
            except IndexError:
                pass

    def _wake_when_full(self, size: int) -> None:
        """Have `offer` wake the leader when there may be a full batch.

        That is when one comes that is large, or so many that could fill it if none is. What
        is large depends on those that wait already, so that few are: a batch of thousands
        that are alike is counted again some twenty times, and not with each event.
        """
        waiting = taken = 0
        for _ in range(2):
            if len(self._items) < size:  # else there is a full one
                lengths = [len(item[0]) + 1 for item in list(self._items)]
                waiting, taken = len(lengths), sum(lengths)
            large = max(BATCH_BYTES // size, 4 * taken // max(waiting, 1))
            self._large = large
            # Rounded up: so many fill it at the earliest.
            self._wake_at = min(size, waiting - (taken - BATCH_BYTES) // (large + 1))
            if len(self._items) == waiting:
                break  # else large ones may have come before we could be told

    def _ripe(self, size: int, interval: float) -> bool:
        items = self._items
        if self._parked:
            return True
        if not items:
            return False
        if len(items) >= size or self.closed or self._flush_to > self._taken:
            return True
        try:
            if items[0][1] + interval <= monotonic():
                return True
            return sum(len(item[0]) + 1 for item in list(items)) >= BATCH_BYTES
        except IndexError:  # taken back by its sender: see _stays
            return False

    def _linger(
        self, wakeup: Signal, size: int, interval: float, deadline: Deadline
    ) -> None:
        self._wakeup = wakeup
        try:
            first = self._items[0][1]
        except IndexError:
            self._wake_at = 1
            if not self._items and not self.closed and not self._parked:
                wakeup.wait(deadline.remaining())
        else:
            self._wake_when_full(size)
            if not self._ripe(size, interval):
                wakeup.wait(first + interval - monotonic())
        self._wake_at = _NEVER
        self._large = BATCH_BYTES

    def take_now(self, size: int) -> Optional[Batch]:
        """Take what is there, at most ``size`` messages; None when nothing is."""
        self._fill(size)
        with self._lock:
            if self._nested:
                return None
            try:
                self._nested = True
                if self._parked:
                    batch: Optional[Batch] = self._parked[0]
                    self._parked[0].owner = threading.get_ident()
                    del self._parked[0]
                else:
                    batch = self._cut(size)
            finally:
                self._nested = False
        return batch

    def _fill(self, size: int) -> None:
        """Bring what waits elsewhere into ``_items``: for queues that have more."""

    def _cut(self, size: int) -> Optional[Batch]:
        items = self._items
        taken: List[Tuple[bytes, float, Any]] = []
        length = 0
        try:
            while len(taken) < size:
                try:
                    item = items.popleft()
                except IndexError:
                    break
                length += len(item[0]) + 1
                if length >= BATCH_BYTES and taken:
                    items.appendleft(item)
                    break
                taken.append(item)
        except BaseException:  # of a signal handler
            items.extendleft(reversed(taken))
            raise
        if not taken:
            return None
        bodies, times, places = zip(*taken)
        batch = Batch(bodies, times[0], places)
        batch.owner = threading.get_ident()  # see recover
        self._in_flight[batch] = self._taken
        self._taken += len(batch)
        if self.maxsize > 0:
            self._freed.extend(repeat(None, len(batch)))
            self._wake_room(len(batch))
        return batch

    def admit(self, body: bytes) -> Batch:
        """Offer and take in one step: the calling thread delivers this one itself."""
        batch = Batch([body], monotonic())
        batch.owner = threading.get_ident()
        with self._lock:
            self._in_flight[batch] = self._taken
            self._taken += 1
            for flush in self._flushes:
                flush.target += 1  # it jumped the queue: all others are one later
        return batch

    def has_begun(self) -> bool:
        """Whether one consumer keeps messages that no other can take."""
        return False

    def holds(self, batch: Batch) -> bool:
        """Whether the batch is still to be delivered: not abandoned, not forked away."""
        return batch in self._in_flight

    def split(self, batch: Batch) -> Optional[Tuple[Batch, Batch]]:
        """Put two halves in the batch's place; None when it was abandoned."""
        return self._replace(batch, batch.halves())

    def divide(
        self, batch: Batch, chosen: Sequence[bool]
    ) -> Optional[Tuple[Batch, Batch]]:
        """Put a batch of the chosen messages and one of the others in its place."""
        return self._replace(batch, batch.divided(chosen))

    def _replace(
        self, batch: Batch, parts: Tuple[Batch, Batch]
    ) -> Optional[Tuple[Batch, Batch]]:
        with self._lock:
            start = self._in_flight.pop(batch, None)
            if start is None:
                return None
            for part in parts:
                # Too early a position for one of them: a flush may wait for both.
                self._in_flight[part] = start
                part.owner = batch.owner
        return parts

    def park(self, batch: Batch) -> None:
        """Give a batch back undelivered, for the next who takes one."""
        with self._lock:
            if batch in self._in_flight:
                self._parked.append(batch)
                batch.owner = None
        self._wakeup.set()

    def claim(self, batch: Batch, delivered: bool) -> bool:
        """Announce the outcome of a batch; False when it was abandoned meanwhile."""
        with self._lock:
            if batch not in self._in_flight:
                return False
            batch.delivered = delivered
            batch.claimed = True
            self._release_flushes()
            return True

    def acknowledge(self, batch: Batch, delivered: bool) -> bool:
        """Close the books on a batch, after its callbacks; False if it was abandoned."""
        with self._lock:
            if batch not in self._in_flight:
                return False
            if not batch.counted:  # by a call that a signal handler interrupted
                if delivered:
                    self._delivered += len(batch)
                else:
                    self._failed += len(batch)
                batch.counted = True
            del self._in_flight[batch]
            self._release_flushes()
            return True

    def recover(self) -> None:
        """Take care of what this thread left, because a signal handler raised.

        That may be in any step of a delivery. Only for a thread that is in none.
        """
        ident = threading.get_ident()
        with self._lock:
            if not self.durable:  # else there may be losses: see SpooledQueue
                counted = self._delivered + self._failed
                self._taken = counted + sum(map(len, self._in_flight))
            left = [
                each
                for each in self._in_flight
                if each.owner == ident and each not in self._parked
            ]
        for batch in left:
            if batch.claimed:
                self.acknowledge(batch, batch.delivered)
            else:
                self.park(batch)

    def abandon(self) -> List[Batch]:
        """Give up all that is pending; returns it, claimed, to be acknowledged."""
        with self._lock:
            while True:
                if self._cut(len(self._items) or 1) is None:
                    break
            self._parked.clear()
            lost = [batch for batch in self._in_flight if not batch.claimed]
            # Claimed under a new identity, so that a late answer changes nothing.
            replaced = []
            for batch in lost:
                copy = Batch(batch.bodies, batch.accepted_at)
                copy.claimed = True
                self._in_flight[copy] = self._in_flight.pop(batch)
                replaced.append(copy)
            return replaced

    def note_retry(self) -> None:
        with self._lock:
            self._retried += 1

    def note_error(self, error: BaseException) -> None:
        self._last_error = describe(error)

    def close(self) -> None:
        """Refuse from now on; consumers take what is left and end. Takes no lock."""
        self.closed = True
        self._wakeup.set()
        self._wake_room(len(self._room))

    def report_losses(self) -> None:
        """Tell ``on_loss`` what `abandon` found to be lost already."""

    def has_backlog(self) -> bool:
        """Whether events of processes that died wait to be delivered by us."""
        return False

    def release(self) -> None:
        """Let go of what it holds open: nothing will be resolved any more."""
        self._released = True
        with self._lock:
            for flush in self._flushes:
                flush.signal.set()

    def locks(self) -> List[Any]:
        """Return the locks that a call of ours may hold, all re-entrant."""
        return [self._lock]

    def is_held(self) -> bool:
        """Whether this thread holds the lock: a signal handler may ask."""
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def why_refused(self) -> str:
        """Say why `offer` returns False, while the queue is open."""
        return 'The queue is full (%d events)' % self.maxsize

    # -- flush and stats -------------------------------------------------------------

    def wait_until_resolved(
        self, deadline: Deadline, nested: bool, waiting: bool = True
    ) -> bool:
        """Wait until all that was accepted before this call is resolved.

        :param waiting: whether that means what waits here as well, and not only what was
            taken
        :param nested: the caller is inside a delivery (a callback, a signal handler):
            what is being told to callbacks counts as resolved, and what this very
            thread delivers is not waited for, because it goes on only after we return
        :returns: False when time ran out, or when something of this thread's is left
        """
        ident = threading.get_ident()
        with self._lock:
            if self._nested:
                return False
            accepted = self._taken + (self.qsize() if waiting else 0)
            flush = _Flush(accepted, ident, nested)
            self._flushes.append(flush)
            self._flush_to = max(self._flush_to, flush.target)
            self._release_flushes()
        self._wakeup.set()
        try:
            while not (flush.done or deadline.over or self._is_over()):
                flush.signal.wait(self._help(deadline))
        finally:
            with self._lock:
                if flush in self._flushes:
                    self._flushes.remove(flush)
        return flush.done and not (nested and self._owns_unclaimed(ident))

    def _is_over(self) -> bool:
        # What callbacks are being told still is resolved as soon as they return.
        return self._released and not any(
            each.claimed for each in list(self._in_flight)
        )

    def _help(self, deadline: Deadline) -> Optional[float]:
        """Do what only the waiting thread may be able to do; gives seconds to wait."""
        return deadline.remaining()

    def _owns_unclaimed(self, ident: int) -> bool:
        with self._lock:
            return any(
                batch.owner == ident and not batch.claimed for batch in self._in_flight
            )

    def _release_flushes(self) -> None:
        if not self._flushes:
            return
        idle = not self._in_flight and self.qsize() == 0
        for flush in list(self._flushes):
            reached = self._taken
            for batch, start in self._in_flight.items():
                if flush.nested and (batch.claimed or batch.owner == flush.owner):
                    continue
                reached = min(reached, start)
            if reached >= flush.target or idle:
                flush.done = True
                self._flushes.remove(flush)
            if flush.done or self._released:
                flush.signal.set()

    def pending(self) -> int:
        with self._lock:
            return self._taken + self.qsize() - self._delivered - self._failed

    def stats(self) -> Stats:
        with self._lock:
            accepted = self._taken + self.qsize()
            ages = [batch.accepted_at for batch in self._in_flight]
            try:
                ages.append(self._items[0][1])
            except IndexError:
                pass
            return Stats(
                accepted=accepted,
                delivered=self._delivered,
                failed=self._failed,
                pending=accepted - self._delivered - self._failed,
                refused=self._refused,
                retried=self._retried,
                oldest_pending_age=max(0.0, monotonic() - min(ages)) if ages else None,
                last_error=self._last_error,
            )

    # -- what users of queue.Queue ask -----------------------------------------------

    def qsize(self) -> int:
        return len(self._items)

    def empty(self) -> bool:
        return self.qsize() == 0

    def has_waiting(self) -> bool:
        """Whether there is a message, or a batch that was given back, to be taken."""
        return bool(self._parked) or not self.empty()

    def full(self) -> bool:
        return 0 < self.maxsize <= len(self._items)

    def put(
        self, item: Any, block: bool = True, timeout: Optional[float] = None
    ) -> None:
        """Put a message (a dict); raises ``queue.Full`` when there is no room."""
        import queue  # here: a client never needs it

        wait = (threading.TIMEOUT_MAX if timeout is None else timeout) if block else 0
        if not (self.on_put or self.offer)(encode(item)[0], wait):
            raise queue.Full

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    def get(self, block: bool = True, timeout: Optional[float] = None) -> Any:
        """Take one message (a dict); raises ``queue.Empty`` when there is none.

        For inspection and tests; consumers use `take`. ``task_done`` acknowledges it.
        """
        import queue  # here: a client never needs it

        deadline = Deadline(timeout)
        while True:
            batch = self.take_now(1)
            if batch is not None:
                return self.hand_out(batch)[0]
            if not block or deadline.over:
                raise queue.Empty
            sleep(0.01)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def hand_out(self, batch: Batch) -> List[Any]:
        """Give a batch's messages to somebody who calls `task_done` for each."""
        batch.owner = None
        self._handed_out.extend([None] * (len(batch) - 1) + [batch])
        return batch.messages()

    def task_done(self) -> None:
        """Say that the oldest message handed out is done; raises ValueError if none is.

        A batch is acknowledged with its last message.
        """
        try:
            batch = self._handed_out.pop(0)
        except IndexError:
            raise ValueError('task_done() called too many times')
        if batch is not None:
            self.acknowledge(batch, delivered=True)

    def join(self) -> None:
        """Wait, without bound, until all that was put is acknowledged."""
        self.wait_until_resolved(Deadline(None), nested=False)
