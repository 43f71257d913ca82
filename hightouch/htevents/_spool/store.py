"""The store of a client with ``spool_dir``: an event is on the disk when `put` returns.

An event is appended to the client's current log. A consumer reads the logs in order, a batch
ahead: memory holds counters and one batch, however many events wait. When a batch is resolved
a note of that is appended to its log, and a log is removed when all of it is resolved. Events
that a process could not deliver stay in its logs. Its lock ends with it, and a living client of
the same write key takes the logs over: at its start, and when it looks around every now and
then. It reads them while it has no events of its own to read.

The application's side takes no lock, and there is none that a fork has to wait for: a child
closes the descriptors that it has inherited.
"""

import threading
from collections import deque
from sys import maxsize
from time import time
from typing import Any, Dict, Iterator, List, Optional, Sequence
from weakref import WeakSet

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.logs import log as logger
from hightouch.htevents._process.waiting import monotonic
from hightouch.htevents._queue.stores import Store
from hightouch.htevents._spool.appender import RETRY_INTERVAL, Appender
from hightouch.htevents._spool.directory import Directory, Owner
from hightouch.htevents._spool.log import Log
from hightouch.htevents._spool.policy import DurablePolicy
from hightouch.htevents.errors import DamageError

# Seconds between looks around for what dead processes left: while events flow, and while
# they do not (an idle client wakes up for nothing else).
SCAN_INTERVAL = 5.0
IDLE_SCAN_INTERVAL = 30.0

# Dead owners whose logs are read at a time: each takes some file descriptors.
MAX_ADOPTED = 16

# A burst: less than PAUSE seconds between two calls, until so many events wait. A call lets
# go of the GIL while it writes, and a consumer at work would take it: the call would wait
# some milliseconds. So a consumer rests during a burst, and looks again after BURST_LOOK.
PAUSE = 0.005
BURST_EVENTS = 10000
BURST_LOOK = 0.02

# All stores of this process, which a forked child has to tell apart.
_stores: 'WeakSet[FileStore]' = WeakSet()


class FileStore(Store):
    """Safe to use from all threads, signal handlers and finalizers.

    :param directory: exists, and this process may write there
    :param write_key: names the folder of its events
    :param fsync: whether `put` waits until the disk has the event
    :param max_bytes: bytes that events of this client may take
    :raises ValidationError: when the directory cannot be used
    """

    policy = DurablePolicy()

    def __init__(
        self, directory: str, write_key: str, fsync: bool, max_bytes: int
    ) -> None:
        self.directory = Directory(directory, write_key, fsync)
        self._max_bytes = max_bytes
        self._make()
        _stores.add(self)

    def _make(self) -> None:
        # Owns the logs of this client; `put` uses nothing else.
        self.appender = Appender(self.directory, self._max_bytes)
        self._adopted: List[Owner] = []
        # Held while logs are looked for, read, resolved or removed; also during I/O.
        # Guards the fields below. Re-entrant, because it knows its owner.
        self.lock: Any = threading.RLock()
        self.ready = deque()  # read, and waiting to be taken
        self._read_count = 0  # of the events that were appended
        self._next_scan = 0.0
        self._is_reading = False
        self._not_noted = False
        self._left = 0
        self._damage: List[DamageError] = []
        self.damaged_files = 0

    def reset(self) -> None:
        # For a call that a signal handler forks inside of: its event is the parent's.
        self.appender.is_closed = True
        for owner in self._owners():
            owner.forget()
        known = {fd for store in _stores for fd in store.descriptors()}
        self.directory.close_others(known)
        self._make()

    def descriptors(self) -> Iterator[int]:
        """Yield the file descriptors that it has open."""
        for owner in self._owners():
            yield from owner.descriptors()

    def _owners(self) -> List[Owner]:
        return self.appender.owners + self._adopted

    def _logs(self) -> Iterator[Log]:
        for owner in self._owners():
            yield from list(owner.logs)

    # -- the application's side ------------------------------------------------------

    def put(self, body: bytes) -> int:
        return max(1, self.waiting()) if self.appender.append(body) else 0

    # -- the consumers' side ---------------------------------------------------------

    def look(self, size: int) -> int:
        if self.waiting() < size:
            self.fetch(size)
        return self.waiting()

    def fetch(self, size: int) -> None:
        with self.lock:
            try:
                self._is_reading = True
                self._read_up_to(size)
            finally:
                self._is_reading = False
        self._log()

    def _read_up_to(self, size: int) -> None:
        if self.appender.is_closed:
            return
        if monotonic() >= self._next_scan and not self.is_closing:
            self._next_scan = monotonic() + SCAN_INTERVAL
            room = MAX_ADOPTED - len(self._adopted)
            self._adopted.extend(self.directory.adopt(room))
        for log in self.appender.logs():
            self._read(log, size)
        # What is not ours can wait: for ours, and for its next owner.
        if not (self.ready or self.is_closing):
            for owner in list(self._adopted):
                for log in list(owner.logs):
                    self._read(log, size)
        self._recount()

    def _read(self, log: Log, size: int) -> None:
        if monotonic() < log.next_read:
            return
        try:
            while len(self.ready) < size:
                if not self._read_piece(log, size - len(self.ready)):
                    break
            log.next_read = 0.0
        except OSError as error:
            raise_interruption(error)
            if not isinstance(error, FileNotFoundError):  # it may pass
                if not log.next_read:
                    self.directory.say('Cannot read %s: %s', log.path, error)
                log.next_read = monotonic() + RETRY_INTERVAL
                return
            log.has_ended = True
        if log.has_ended:
            self._settle(log)

    def _read_piece(self, log: Log, most: int) -> bool:
        """Read a piece of a log; False at its end."""
        found, events = log.next_piece(most)
        if found.end == log.offset:
            return log.was_cut() and self._begin_anew(log)
        now, wall = monotonic(), time()
        self.ready.extend(
            [
                (
                    event.body,
                    now - max(0.0, wall - event.milliseconds / 1000.0),
                    (log, event.start),
                )
                for event, _ in events
            ]
        )
        if not log.owner.adopted:
            self._read_count += len(events)
        log.commit(found, events)
        if found.damaged:
            self.appender.seal(log.writer())  # what it costs is known at its end
        return True

    def _begin_anew(self, log: Log) -> bool:
        """Read a log again that somebody has cut short: what is in there is sent (again)."""
        self.appender.seal(log.writer())
        log.damaged += 1
        log.offset = 0
        return True

    def _settle(self, log: Log) -> None:
        """Count what was read of a log at its end; remove it when all is resolved."""
        if not log.owner.adopted:
            # More than was counted, if a signal handler raised; less, if it is damaged.
            lost = log.appended.value - log.read
            self._read_count += lost
            log.read += lost  # once
            if lost > 0:
                self._damage.append(DamageError(lost, log.path))
        if log.is_finished() and log in log.owner.logs:
            self._finish(log)

    def _finish(self, log: Log) -> None:
        owner = log.owner
        owner.logs.remove(log)
        log.offset = maxsize  # past every mark
        if log.damaged:
            self.damaged_files += 1
        self.directory.remove(log)
        if owner.logs:
            return
        own = self.appender.owners
        if owner.adopted:
            self._adopted.remove(owner)
            self._next_scan = 0.0  # there may be more: see MAX_ADOPTED
        elif owner in own[:-1]:
            own.remove(owner)  # its files were deleted, and another one has followed
        else:
            return
        owner.release(is_empty=True)

    def _recount(self) -> None:
        """Count the bytes again that `put` may still use."""
        writer = self.appender.writer
        self.appender.used_elsewhere = sum(
            max(0, log.size() - log.done)
            for log in self._logs()
            if writer is None or log is not writer.log
        )

    def resolve(self, items: Sequence[Any]) -> None:
        by_log: Dict[Log, List[int]] = {}
        for _, _, (log, start) in items:
            by_log.setdefault(log, []).append(start)
        with self.lock:
            for log, starts in by_log.items():
                self._resolve(log, starts)
            self._recount()
        self._log()

    def _resolve(self, log: Log, starts: List[int]) -> None:
        if self.appender.is_closed:
            return  # its next owner sends them again
        try:
            log.resolve(starts)
            self._not_noted = False
        except OSError as error:
            raise_interruption(error)
            if not self._not_noted:
                self._not_noted = True
                self.directory.say('Cannot write to %s: %s', log.path, error)
            # On a full disk only its end gives room: it ends when all is resolved.
            self.appender.seal(log.writer())
        if not log.outstanding and log.writer() is None:
            self._read(log, len(self.ready) + 1)  # to its end

    def waiting(self) -> int:
        unread = max(0, self.appender.appended.value - self._read_count)
        return len(self.ready) + unread + sum(each.count for each in self._damage)

    def oldest(self) -> Optional[float]:
        oldest = super().oldest()
        if oldest is None and self.waiting():
            return self.appender.last_put  # it is not read yet
        return oldest

    def mark(self) -> Dict[Log, int]:
        return {log: log.size() for log in self.appender.logs()}

    def is_past(self, mark: Any) -> bool:
        # Not by the counts: an event that is on the disk may be read, and not counted yet.
        return (
            not (self._is_reading or self._damage or self._left)
            and all(log.offset >= size for log, size in mark.items())
            and not any(self.is_before(item, mark) for item in list(self.ready))
        )

    def is_before(self, item: Any, mark: Any) -> bool:
        log, start = item[2]
        return bool(start < mark.get(log, 0))

    def pause(self) -> float:
        is_burst = monotonic() - self.appender.last_put <= PAUSE
        return BURST_LOOK if is_burst and self.waiting() <= BURST_EVENTS else 0.0

    def idle_wait(self) -> Optional[float]:
        return IDLE_SCAN_INTERVAL

    def has_backlog(self) -> bool:
        with self.lock:  # a look takes each lock file for a moment: `adopt` needs it, too
            return bool(self._adopted) or self.directory.has_orphans()

    def may_have_more(self) -> bool:
        return bool(self._adopted) or monotonic() >= self._next_scan

    def has_damage(self) -> bool:
        return bool(self._damage)

    def damage(self) -> List[DamageError]:
        found: List[DamageError] = []
        while self._damage:
            found.append(self._damage.pop(0))
        return found

    def _log(self) -> None:
        """Log what there is to say, with no lock held: a log handler may track."""
        while self.directory.said:
            try:
                logger.error('%s', self.directory.said.pop(0))
            except IndexError:
                return  # another thread was faster

    # -- the end ---------------------------------------------------------------------

    def give_up(self, items: List[Any]) -> List[Any]:
        """Leave what is pending to the next client; return what it will not find."""
        with self.lock:
            gone = {log for log in self._logs() if log.is_gone()}
            for log in gone:
                self._read(log, maxsize)
            items = items + list(self.ready)
            self.ready.clear()
            lost = [item for item in items if item[2][0] in gone]
            self._left = len(items) - len(lost) + self.waiting()
            self._read_count = self.appender.appended.value
            return lost

    def left(self) -> int:
        return self._left

    def close(self) -> None:
        with self.lock:
            self.appender.is_closed = True
            self.appender.writer = None
            for log in list(self._logs()):
                self._close(log)
            for owner in self._owners():
                owner.leave()
            self.appender.owners, self._adopted = [], []
        self._recount()
        self._log()

    def _close(self, log: Log) -> None:
        try:
            while not log.outstanding:
                found, events = log.next_piece(1)
                if found.end == log.offset:
                    return self._settle(log)
                if events:
                    return
                log.commit(found, events)
        except OSError as error:
            raise_interruption(error)  # its next owner will find out

    # -- its state -------------------------------------------------------------------

    def can_wait(self) -> bool:
        return not (self.appender.trouble or self.appender.is_closed)

    def is_full(self) -> bool:
        return self.appender.is_full()

    def has_room_again(self) -> bool:
        used = self.appender.used()
        return not self.appender.trouble and 2 * used <= self._max_bytes

    def why_refused(self) -> str:
        return self.appender.why_refused()

    def is_durable(self) -> bool:
        gone = any(log.is_gone() for log in self.appender.logs())
        return not (self.appender.trouble or gone)
