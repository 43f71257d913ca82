"""The queue of a client with a spool: what `offer` takes is on the disk when it returns.

Theory of operation
-------------------
An event is written to the client's own segment first. Then it goes the way of every
event, through the queue in memory, as long as that *window* is small; the others wait
on the disk only, *behind* the window, and are read into it when it runs low. So a
healthy client reads nothing back, and a backlog of any length takes little memory. How
an event goes is decided before it is written, and written with it: rows that are
marked ``direct`` are in memory, the others are read, each exactly once.

When a batch is resolved its rows are deleted. What a process could not resolve stays,
its lock ends with it, and a living client of the same write key takes the segment over:
at its start, and when it looks around every now and then. Those events enter the window
after the client's own, and are counted as accepted when they do.
"""

import threading
from time import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from hightouch.htevents.batch import Batch
from hightouch.htevents.concurrency import Deadline, Signal, monotonic, unlocking
from hightouch.htevents.errors import DamageError
from hightouch.htevents.event_queue import EventQueue, Stats
from hightouch.htevents.interruption import is_interruption, raise_interruption
from hightouch.htevents.logs import log
from hightouch.htevents.segment import (
    CLOSE_TIMEOUT,
    STUCK,
    Row,
    Segment,
    SegmentError,
    errors,
)
from hightouch.htevents.spool import Spool
from hightouch.htevents.spool_lock import PATIENCE, both, process

# Events that are in memory at most, unless a batch is larger; and those among them that
# may be large ones.
WINDOW = 2000
LARGE_WINDOW = 250
LARGE_BYTES = 2048

# Events read from the disk at a time.
READ_EVENTS = 250

# Seconds between looks around for what dead processes left: while events flow, and
# while they do not (an idle client wakes up for nothing else).
SCAN_INTERVAL = 5.0
IDLE_SCAN_INTERVAL = 30.0

# Segments of dead processes that are open at a time: each takes four file descriptors.
MAX_ADOPTED = 16

# Segments of our own that had to be replaced, and hold events still. More would mean
# that none can be written to: a limit on the size of files, say.
MAX_REPLACED = 16

# A burst: less than PAUSE seconds between two calls, until so many events wait. While
# one is on, the leading consumer looks again after BURST_LOOK seconds.
PAUSE = 0.005
BURST_EVENTS = 10000
BURST_LOOK = 0.02

# Seconds before a new segment is tried, after one could not be made.
REOPEN_INTERVAL = 1.0

# Seconds after which what could not be read is tried again while somebody waits for it.
LOOK_AGAIN = 0.05

# Bytes of a segment from which on, once it is empty, another one takes its place: a
# file of SQLite's does not shrink.
WORN_BYTES = 16 << 20

_WRITTEN, _NO_ROOM, _FAILED = 'written', 'no room', 'failed'


class SpooledQueue(EventQueue):
    """An `EventQueue` whose events survive the process.

    Safe to use from all threads, signal handlers and finalizers.

    :param spool: where the segments are
    """

    durable = True

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        super().__init__(0)

    def _reset(self) -> None:
        super()._reset()
        self._spool.damaged = 0
        # Where own events are written; made with the first one. Replaced, as _others is
        # changed, under process.opening; but for the end, in release.
        self._own: Optional[Segment] = None
        # What is read besides: own ones that were replaced, and adopted ones.
        self._others: List[Segment] = []
        self._next_open = 0.0
        # Held by the one thread that reads segments into the window or looks around
        # for others. Only ever tried, never waited for.
        self._filling = threading.Lock()
        self._next_scan = 0.0
        self._looking = False
        self._last_write = 0.0
        self._trouble = ''
        self._left = 0
        self._abandoned: List[Tuple[Segment, int]] = []
        # Segments whose files were deleted, as `abandon` found.
        self._gone: Set[Segment] = set()
        # By segment: events read, and when to read again after an error.
        self._read: Dict[Segment, int] = {}
        self._retry_at: Dict[str, float] = {}
        # Paths of segments of which was said that nothing can be noted in them.
        self._not_noted: Set[str] = set()
        # What cannot be read any more, until it is reported: in flight with a batch of
        # no messages, how many events it was, and where they lay.
        self._losses: List[Tuple[Batch, int, str]] = []

    # -- the application's side ------------------------------------------------------

    @unlocking(lambda queue: queue.locks())
    def offer(self, body: bytes, block_timeout: float = 0) -> bool:
        """Write an encoded message to the disk; False when that could not be done.

        :param block_timeout: seconds to wait for room in a full spool
        """
        if self.closed:
            return self.refuse()
        outcome = self._write(body)
        if outcome is _NO_ROOM and block_timeout:
            outcome = self._write_when_there_is_room(body, block_timeout)
        if outcome is not _WRITTEN:
            self._spool.log()
            return self.refuse()
        waiting = self.qsize()
        if waiting >= self._wake_at or len(body) > self._large:
            self._wakeup.set()
        return True

    def _write_when_there_is_room(self, body: bytes, timeout: float) -> str:
        deadline, signal = Deadline(timeout), Signal()
        while True:
            self._room.append(signal)
            try:
                # After queuing up: else nobody would wake us.
                outcome = self._write(body)
                if outcome is not _NO_ROOM or deadline.over or self.closed:
                    return outcome
                signal.wait(deadline.remaining())
            finally:
                self._leave_room(signal)

    def _write(self, body: bytes) -> str:
        """Write a message, to a new segment if the present one fails for good."""
        for _ in range(3):
            segment = self._own
            if segment is None:
                segment = self._open()
                self._spool.log()
            if segment is None:
                return _FAILED
            try:
                if self._write_to(segment, body):
                    return _WRITTEN
                raise SegmentError('its files were deleted')
            except segment.errors as error:
                raise_interruption(error)
                outcome = self._after_failure(segment, error)
                if outcome is not None:
                    return outcome
        return _FAILED

    def _write_to(self, segment: Segment, body: bytes) -> bool:
        """Write a message; False if the file is not where others will look for it."""
        # The lock is for `_finish`: what is written is seen in memory as well.
        with segment.lock:
            window = WINDOW if len(body) < LARGE_BYTES else LARGE_WINDOW
            self._last_write = monotonic()
            direct = not self._behind() and len(self._items) < window
            try:
                number = segment.append(body, direct)
                if not segment.on_ground():
                    segment.resolve([number])
                    return False
                if direct:
                    self._items.append((body, self._last_write, (segment, number)))
                else:
                    segment.behind.append(None)
            except BaseException as error:
                if isinstance(error, segment.errors) and not is_interruption(error):
                    raise
                # A signal handler raised: it may be written. An event that is there and
                # not counted would have the last one left unread.
                if not direct:
                    segment.doubtful += 1
                    segment.behind.append(None)
                raise
            if self._trouble:
                self._recovered()
            return True

    def _behind(self) -> int:
        """Give how many own events are on the disk only; new ones come after them."""
        own = self._own
        behind = 0 if own is None else len(own.behind)
        if self._others:
            behind += sum(len(each.behind) for each in list(self._others))
        return behind

    def _after_failure(self, segment: Segment, error: BaseException) -> Optional[str]:
        """Deal with a failed write; None: try again, with another segment."""
        if self.closed:
            return _FAILED
        if segment.closed:
            return None  # another thread replaced it meanwhile
        text = str(error)
        if 'is full' in text:
            try:
                if segment.is_full():
                    return None if segment.purge() else _NO_ROOM
            except segment.errors as error:
                raise_interruption(error)  # else it is the disk
            self._in_trouble('the disk is full')
            self._make_room(segment)
            return _FAILED
        self._in_trouble(text)
        if 'locked' in text:
            return _FAILED  # a stranger holds the file; it will pass
        self._replace_own(segment)
        return None

    def _make_room(self, segment: Segment) -> None:
        """Have the own segment removed, where only its end gives the full disk room.

        What is resolved cannot be deleted in there: SQLite needs room for that.
        """
        if segment is self._own and self.qsize() == 0:
            self._in_trouble('the disk is full')
            self._next_open = monotonic() + REOPEN_INTERVAL
            self._replace_own(segment)
            self._wakeup.set()  # of the leader: see _finish

    def _replace_own(self, segment: Segment) -> None:
        with process.opening:
            if self._own is segment:
                self._others.append(segment)
                self._own = None

    def _open(self) -> Optional[Segment]:
        taken = self._taken_bytes()
        with process.opening:
            if self._own is not None or self.closed:
                return self._own
            if monotonic() < self._next_open:
                return None
            try:
                if sum(not each.adopted for each in self._others) >= MAX_REPLACED:
                    raise SegmentError('no file could be written to its end')
                self._own = self._spool.create(taken)
            except errors() as error:
                raise_interruption(error)
                self._next_open = monotonic() + REOPEN_INTERVAL
                self._in_trouble(str(error))
            return self._own

    def _taken_bytes(self) -> int:
        taken = 0
        for segment in list(self._others):
            try:
                taken += segment.last_used_bytes()
            except segment.errors as error:
                raise_interruption(error)  # else closed meanwhile, or damaged
        return taken

    def _in_trouble(self, reason: str) -> None:
        if not self._trouble:
            self._spool.say(
                'Events cannot be made durable in %s (%s): calls return False until '
                'they can',
                self._spool.folder,
                reason,
            )
            self._trouble = reason

    def _recovered(self) -> None:
        # Not before what lost its ground is delivered.
        if all(each.adopted or each.on_ground() for each in list(self._others)):
            self._trouble = ''

    # -- the consumers' side ---------------------------------------------------------

    def _ripe(self, size: int, interval: float) -> bool:
        if self._is_busy(interval):
            return False
        self._fill(size)
        return super()._ripe(size, interval)

    def _is_busy(self, interval: float) -> bool:
        """Whether the application is in a burst of calls, which we do not disturb.

        A call gives the GIL away while it writes; a consumer that is at work takes it,
        and the call waits some milliseconds. So a burst has the interpreter for itself,
        as long as its events may wait for others anyway.
        """
        if self.closed or self._flush_to > self._taken or self._parked:
            return False
        now = monotonic()
        if now - self._last_write > PAUSE or self.qsize() > BURST_EVENTS:
            return False
        try:
            return self._items[0][1] + interval > now
        except IndexError:
            return False

    def _linger(
        self, wakeup: Signal, size: int, interval: float, deadline: Deadline
    ) -> None:
        if not self._items and self._behind():
            wakeup.wait(LOOK_AGAIN)  # it could not be read just now
            return
        if self._is_busy(interval):
            self._wake_at = BURST_EVENTS
            wakeup.wait(BURST_LOOK)
            return
        if deadline.leaves(IDLE_SCAN_INTERVAL):
            deadline = Deadline(IDLE_SCAN_INTERVAL)
        super()._linger(wakeup, size, interval, deadline)

    def _read_up_to(self, size: int) -> None:
        # A function, not a loop in `_fill`: see concurrency.unlocking about 3.13.
        look = True
        while look:
            if monotonic() >= self._next_scan and not self.closed:
                self._next_scan = monotonic() + SCAN_INTERVAL
                self._look_around()
            for segment in self._sources():
                while len(self._items) < size and self._read_from(segment):
                    pass
            look = self._next_scan == 0 and not self.closed

    def _fill(self, size: int) -> None:
        if len(self._items) >= size or not self._filling.acquire(False):
            return
        try:
            self._read_up_to(size)
        finally:
            self._filling.release()
        self.report_losses()
        self._spool.log()
        if len(self._items) >= self._wake_at:
            self._wakeup.set()  # of a leader who found us at it, and sleeps

    def _sources(self) -> Iterator[Segment]:
        """Give the segments to read from, in order: own events come first."""
        others = list(self._others)
        yield from [each for each in others if not each.adopted]
        if self._own is not None:
            yield self._own
        for each in others:
            # What is not ours can wait: for what is, and for its next owner.
            if each.adopted and not self.closed and not self._behind():
                yield each

    def _look_around(self) -> None:
        open_now = sum(each.adopted for each in self._others)
        self._looking = True
        adopted = self._spool.adopt(MAX_ADOPTED - open_now)
        with process.opening:
            if not self.closed:
                self._others.extend(adopted)
                adopted = []
        self._looking = False
        for each in adopted:
            each.close()  # we were shut down meanwhile
        self._share_room()

    def _share_room(self) -> None:
        own, taken = self._own, self._taken_bytes()
        if own is not None:
            try:
                with own.patiently() as held:
                    if held:
                        own.limit(self._spool.max_bytes - taken)
            except own.errors as error:
                raise_interruption(error)  # else the next write finds out

    def _read_from(self, segment: Segment) -> bool:
        """Read some events into the window; False if there were none."""
        if monotonic() < self._retry_at.get(segment.path, 0):
            return False
        if segment.adopted:
            limit = READ_EVENTS
        else:
            limit = min(READ_EVENTS, len(segment.behind))
            if not limit:
                self._finish(segment)
                return False
        try:
            with segment.patiently() as held:
                if not held:
                    return False
                rows = segment.read(limit)
        except segment.errors as error:
            raise_interruption(error)
            # It may pass: see Segment.is_broken.
            if segment.path not in self._retry_at:
                self._spool.say('Cannot read %s: %s', segment.path, error)
            self._retry_at[segment.path] = monotonic() + SCAN_INTERVAL
            return False
        if segment.damage and segment is self._own:
            self._in_trouble(segment.damage)
            self._replace_own(segment)
        if not rows:
            if not segment.adopted:
                self._give_up_behind(segment, limit)
            self._finish(segment)
            return False
        self._read[segment] = self._read.get(segment, 0) + len(rows)
        self._show(segment, rows)
        return True

    def _show(self, segment: Segment, rows: Sequence[Row]) -> None:
        now, wall = monotonic(), time()
        with self._lock:
            if segment in self._gone:
                return  # its events were given up while we read them
            was_nested, self._nested = self._nested, True
            for row in rows:
                accepted_at = now - max(0.0, wall - row.at)
                self._items.append((row.body, accepted_at, (segment, row.id)))
                if segment.behind:
                    segment.behind.popleft()
            if segment.adopted and self._behind():
                for flush in self._flushes:
                    flush.target += len(rows)  # they overtook what is behind
            self._nested = was_nested

    def _give_up_behind(self, segment: Segment, limit: Optional[int] = None) -> None:
        """Book what was accepted, and cannot be read any more.

        :param limit: of how many that is known; None: of all
        """
        with self._lock:
            count = len(segment.behind)
            if limit is not None:
                count = min(count, limit)
            for _ in range(count):
                segment.behind.popleft()
            unwritten = min(count, segment.doubtful)
            segment.doubtful -= unwritten
            count -= unwritten
            if not count:
                return self._release_flushes()
            loss = Batch((), monotonic())
            loss.claimed = True
            self._in_flight[loss] = self._taken
            self._taken += count
        self._losses.append((loss, count, segment.database))

    def report_losses(self) -> None:
        """Tell ``on_error``, which may flush: no lock may be held."""
        while self._losses:
            try:
                loss, count, path = self._losses.pop(0)
            except IndexError:
                return  # another thread was faster
            try:
                if self.on_loss is not None:
                    self.on_loss(DamageError(count, path), [], count)
            finally:
                with self._lock:
                    # Not there: the callback forked, and this is the child.
                    if self._in_flight.pop(loss, None) is not None:
                        self._failed += count
                        self._release_flushes()

    def _finish(self, segment: Segment) -> None:
        """Let go of a segment that is read to its end, when all of it is resolved."""
        if segment is self._own:
            return
        with both(segment.lock, 0) as held:
            # Nobody is writing to it.
            if not held or segment.closed or self._is_in_use(segment):
                return
            try:
                self._others.remove(segment)
            except ValueError:
                return  # we were released meanwhile
            self._retry_at.pop(segment.path, None)
            read = self._read.pop(segment, 0)
            if segment.adopted and not segment.damage:
                segment.damage = _unreadable(segment)
            if segment.damage:
                self._spool.set_aside(segment, read)
            elif segment.close(resolved=True) is STUCK:
                self._spool.leave_alone(segment, 'delivered, but it cannot be removed')
            if segment.adopted:
                self._next_scan = 0.0  # there may be more: see MAX_ADOPTED
        self._share_room()

    def _is_in_use(self, segment: Segment) -> bool:
        """Whether something of it is still to be resolved; its lock is held."""
        if not self._lock.acquire(timeout=PATIENCE):
            return True
        try:
            places = [item[2] for item in list(self._items)] + self._abandoned
            for batch in self._in_flight:
                places.extend(batch.places)
        finally:
            self._lock.release()
        return bool(segment.behind) or any(place[0] is segment for place in places)

    def acknowledge(self, batch: Batch, delivered: bool) -> bool:
        if delivered or self.holds(batch):
            self._resolve(batch.places)
        known = super().acknowledge(batch, delivered)
        if any(place[0] is not self._own for place in batch.places):
            # That segment may be at its end, and the next one wait for its place. The
            # leader looks; it sleeps when all that was read is on its way.
            self._wakeup.set()
        return known

    def _resolve(self, places: Sequence[Tuple[Segment, int]]) -> None:
        by_segment: Dict[Segment, List[int]] = {}
        for segment, number in places:
            by_segment.setdefault(segment, []).append(number)
        for segment, numbers in by_segment.items():
            try:
                if segment.resolve(numbers) and segment.adopted:
                    self._share_room()
                if segment is self._own and self.qsize() == 0:
                    self._replace_worn(segment)
                self._not_noted.discard(segment.path)
            except segment.errors as error:
                raise_interruption(error)
                if segment.closed:
                    continue
                # They are noted with the next ones; at worst they come twice.
                if segment.path not in self._not_noted:
                    self._not_noted.add(segment.path)
                    log.warning('Cannot write to %s: %s', segment.path, error)
                if segment.is_broken(error):
                    self._replace_own(segment)
                elif 'is full' in str(error):
                    self._make_room(segment)
        self._wake_room(len(places))

    def _replace_worn(self, segment: Segment) -> None:
        with both(segment.lock, 0) as held:
            if held and segment.file_bytes() > WORN_BYTES and segment.is_empty():
                self._replace_own(segment)

    def abandon(self) -> List[Batch]:
        """Leave what is pending to the next client.

        :returns: what it will not find, because the files were deleted; as of a queue in
            memory
        """
        own = self._own
        segments = self._others + ([] if own is None else [own])
        gone = {each for each in segments if each.is_gone()}
        with self._lock:
            self._gone = gone
            # What stays is put by meanwhile: `super` gives up all that it finds.
            for batch in [each for each in self._in_flight if not each.claimed]:
                missing = [place[0] in gone for place in batch.places]
                rest: Optional[Batch] = batch
                if any(missing):
                    parts = self.divide(batch, missing)
                    rest = parts[1] if parts is not None else None
                if rest is not None:
                    del self._in_flight[rest]
                    self._abandoned.extend(rest.places)
            items = list(self._items)
            self._items.clear()
            self._items.extend(item for item in items if item[2][0] in gone)
            lost = super().abandon()
            self._items.extend(item for item in items if item[2][0] not in gone)
        for segment in gone:
            self._give_up_behind(segment)
        return lost

    def release(self) -> None:
        """Close the segments; what they hold stays there."""
        super().release()
        with process.opening:
            self.closed = True
            segments = self._others + ([] if self._own is None else [self._own])
        for segment in segments:
            with both(segment.lock, CLOSE_TIMEOUT) as held:
                if held:
                    resolved = not segment.adopted and not self._is_in_use(segment)
                    segment.close(resolved)
        with self._lock:
            self._left = self.qsize()
            self._items.clear()
            self._others = []
            self._own = None
        self._spool.log()

    def _help(self, deadline: Deadline) -> Optional[float]:
        left = super()._help(deadline)
        if not self._behind():
            return left
        # We may be in a signal handler that has interrupted a write: then only this very
        # thread gets that segment's lock.
        self._fill(READ_EVENTS)
        self._wakeup.set()
        return LOOK_AGAIN if left is None else min(left, LOOK_AGAIN)

    # -- stats -----------------------------------------------------------------------

    def has_backlog(self) -> bool:
        # In the order in which they go this way: orphans, being opened, taken over.
        return (
            self._spool.has_orphans()
            or self._looking
            or any(each.adopted for each in list(self._others))
        )

    def qsize(self) -> int:
        return self._left + len(self._items) + self._behind()

    def full(self) -> bool:
        own = self._own
        if own is None:
            return False
        try:
            return own.is_full()
        except own.errors as error:
            raise_interruption(error)
            return False

    def has_room_again(self) -> bool:
        own = self._own
        if own is None or self._trouble:
            return False
        try:
            return 2 * own.last_used_bytes() <= own.max_bytes
        except own.errors as error:
            raise_interruption(error)
            return False

    def locks(self) -> List[Any]:
        held = [self._lock, process.opening]
        if self._own is not None:
            held.append(self._own.lock)
        return held + [each.lock for each in list(self._others)]

    def why_refused(self) -> str:
        if self._trouble:
            return 'Events cannot be made durable (%s)' % self._trouble
        return 'The spool is full (%d bytes)' % self._spool.max_bytes

    def stats(self) -> Stats:
        return (
            super()
            .stats()
            ._replace(durable=not self._trouble, damaged_files=self._spool.damaged)
        )


def _unreadable(segment: Segment) -> str:
    """Say what is wrong with a segment that was read to its end; '' if nothing is."""
    try:
        return '' if segment.has_only_resolved() else 'a row is not readable'
    except segment.errors as error:
        raise_interruption(error)
        return str(error)
