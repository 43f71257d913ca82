"""The store of a client with ``spool_dir``: an event is on the disk when `put` returns.

An event is appended to the client's current log. A consumer reads the logs in order, a batch
ahead: memory holds counters and one batch, however many events wait. When a batch is resolved
a note of that is appended to its log, and a log is removed when all of it is resolved. Events
that a process could not deliver stay in its logs. Their locks end with it, and a living client
of the same write key takes the logs over: at its start, and when it looks around every now and
then. It reads them while it has no new events to read.

The application's side takes no lock. A fork waits for no lock either: a child closes the
descriptors that it has inherited.
"""

import json
import threading
from collections import deque
from datetime import datetime, timedelta, timezone
from itertools import islice
from sys import maxsize
from time import time
from typing import Any, Dict, List, Optional, Sequence

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.waiting import monotonic
from hightouch.htevents._queue.stores import Policy, Store
from hightouch.htevents._spool.appender import RETRY_INTERVAL, Appender
from hightouch.htevents._spool.directory import Directory
from hightouch.htevents._spool.log import Log, Piece
from hightouch.htevents.errors import (
    FINAL_STATUSES,
    MAX_AGE_DAYS,
    APIError,
    DamageError,
    OauthError,
)
from hightouch.htevents.stamps import parse

# Seconds between looks for logs of dead processes while events flow, and in an idle client,
# which wakes up for nothing else.
SCAN_INTERVAL = 5.0
IDLE_SCAN_INTERVAL = 30.0

# Logs of dead processes that are read at a time: each takes a file descriptor.
MAX_ADOPTED = 16

# A burst: less than PAUSE seconds between two calls, until so many events wait. A call lets
# go of the GIL while it writes, and a consumer at work would take it: the call would wait
# some milliseconds. So a consumer rests during a burst, and looks again after BURST_LOOK.
PAUSE = 0.005
BURST_EVENTS = 10000
BURST_LOOK = 0.02

# Bytes of an event and its record, at most.
RECORD_BYTES = 33 << 10

_TIMESTAMP = b'"timestamp":"'


class DurablePolicy(Policy):
    """Events on the disk that cannot be delivered wait, up to 7 days."""

    durable = True

    def most_retries(self, retries: float) -> float:
        return float('inf')

    def is_final(self, error: BaseException) -> bool:
        # A setting that is wrong today can be right after the next start.
        return (
            isinstance(error, APIError)
            and not isinstance(error, OauthError)
            and error.status in FINAL_STATUSES
        )

    def expired(self, items: Sequence[Any]) -> List[bool]:
        oldest = datetime.now(timezone.utc) - timedelta(days=MAX_AGE_DAYS)
        # By the day first, whatever the offset: nearly all messages are of today. The
        # timestamp comes last in a message: the last match is not in its properties.
        day = (oldest + timedelta(days=2)).strftime('%Y-%m-%d').encode('ascii')
        expired = []
        for item in items:
            body = item[0]
            start = body.rfind(_TIMESTAMP) + len(_TIMESTAMP)
            expired.append(body[start : start + 10] <= day and _is_before(body, oldest))
        return expired


def _is_before(body: bytes, oldest: datetime) -> bool:
    try:
        moment = parse(json.loads(body.decode('utf-8'))['timestamp'])
        return moment.tzinfo is not None and moment < oldest
    except Exception:  # before_send may have changed the message
        return False  # the collector decides


class FileStore(Store):
    """Safe to use from all threads, signal handlers and finalizers.

    The place of an event is its log, and where its record begins.

    :param directory: exists, and this process may write there
    :param write_key: names the folder of its events
    :param fsync: whether `put` waits until the disk has the event
    :param max_bytes: bytes that events of this client may take
    :raises ValidationError: when the directory cannot be used
    """

    policy = DurablePolicy()
    idle_wait = IDLE_SCAN_INTERVAL

    def __init__(
        self, directory: str, write_key: str, fsync: bool, max_bytes: int
    ) -> None:
        self.directory = Directory(directory, write_key, fsync)
        self._max_bytes = max_bytes
        self._start()

    def reset(self) -> None:
        self.appender.is_closed = True
        for log in self.appender.logs + self._adopted:
            log.forget()
        self.directory.close_others()
        self._start()

    def _start(self) -> None:
        """Begin anew, also in a forked child."""
        self.appender = Appender(self.directory, self._max_bytes)
        self._adopted: List[Log] = []  # of dead processes
        # Held while logs are looked for, read, resolved or removed; also during I/O.
        # Guards the fields below. Re-entrant, because it knows its owner.
        self.lock: Any = threading.RLock()
        self.ready = deque()  # read, and waiting to be taken
        self._read_count = 0  # of the events that were appended
        self._next_scan = 0.0  # monotonic time of the next look for such logs
        self._is_reading = False
        self.left = 0
        self.lost: List[DamageError] = []
        self.damaged_files = 0

    # -- the application's side ------------------------------------------------------

    def put(self, body: bytes) -> int:
        return max(1, self.waiting()) if self.appender.append(body) else 0

    def waiting(self) -> int:
        unread = self.appender.appended.value - self._read_count
        waiting = len(self.ready) + max(0, unread)
        if self.lost:
            waiting += sum(each.count for each in self.lost)
        return waiting

    def can_wait(self) -> bool:
        return not (self.appender.trouble or self.appender.is_closed)

    def is_full(self) -> bool:
        return self.appender.used() + RECORD_BYTES > self._max_bytes

    def has_room_again(self) -> bool:
        return not self.appender.trouble and 2 * self.appender.used() <= self._max_bytes

    def why_refused(self) -> str:
        if self.appender.trouble:
            return 'Events cannot be made durable (%s)' % self.appender.trouble
        return 'The spool is full (%d bytes)' % self._max_bytes

    def is_durable(self) -> bool:
        gone = any(log.is_gone() for log in list(self.appender.logs))
        return not (self.appender.trouble or gone)

    # -- the consumers' side ---------------------------------------------------------

    def has_backlog(self) -> bool:
        with self.lock:
            if not self._adopted:
                self._adopt()
        return bool(self._adopted)

    def may_have_more(self) -> bool:
        return bool(self._adopted) or monotonic() >= self._next_scan

    def pause(self) -> float:
        is_burst = monotonic() - self.appender.last_put <= PAUSE
        return BURST_LOOK if is_burst and self.waiting() <= BURST_EVENTS else 0.0

    def oldest(self) -> Optional[float]:
        oldest = super().oldest()
        if oldest is None and self.waiting():
            return self.appender.last_put  # it is not read yet
        return oldest

    def fetch(self, size: int) -> int:
        if len(self.ready) < size:
            with self.lock:
                try:
                    self._is_reading = True
                    # A call, not a loop: see waiting.unlocking about 3.13.
                    self._read_logs(size)
                finally:
                    self._is_reading = False
            if self.directory.said:
                self.directory.log()
        return self.waiting()

    def _read_logs(self, size: int) -> None:
        if self.appender.is_closed:
            return
        if monotonic() >= self._next_scan:
            self._adopt()
        for log in list(self.appender.logs):
            self._read(log, size)
        # The logs of dead processes can wait for ours, and for the next client.
        if self.is_closing or not self._adopted:
            return
        if all(log.adopted for _, _, (log, _) in list(self.ready)):
            for log in list(self._adopted):
                self._read(log, size)

    def _adopt(self) -> None:
        """Take over the logs of dead processes, now and then."""
        if self.is_closing:
            return
        self._next_scan = monotonic() + SCAN_INTERVAL
        room = MAX_ADOPTED - len(self._adopted)
        self._adopted.extend(islice(self.directory.adopt(), room))
        self.appender.recount(self._adopted)

    def _read(self, log: Log, size: int) -> None:
        """Read a log until so many events can be taken."""
        if monotonic() < log.next_read:
            return
        try:
            # A log that may grow is read only when it has grown.
            while len(self.ready) < size and (
                log.offset != log.size() or log.writer() is None
            ):
                found = log.next_piece(size - len(self.ready))
                if found.damaged or log.damaged:
                    self.appender.seal(log.writer())  # the loss is known at its end
                if found.end == log.offset:
                    break
                self.ready.extend(_items(log, found))
                if not log.adopted:
                    self._read_count += len(found.events)
                log.commit(found)
        except OSError as error:
            raise_interruption(error)
            self.directory.tell(log.path, 'Cannot read %s: %s', log.path, error)
            log.next_read = monotonic() + RETRY_INTERVAL  # it may pass
            return
        if log.has_ended:
            self._settle(log)

    def _settle(self, log: Log) -> None:
        """Count the events of a log at its end; remove it when all are resolved."""
        if not log.adopted:
            # More than was counted, if a signal handler raised; less, if it is damaged.
            lost = log.appended.value - log.read
            self._read_count += lost
            log.read += lost  # once
            if lost > 0:
                self.lost.append(DamageError(lost, log.path))
        logs = self._adopted if log.adopted else self.appender.logs
        if log.outstanding or log not in logs:
            return
        logs.remove(log)
        log.offset = maxsize  # past every mark
        self.damaged_files += bool(log.damaged)
        self.directory.remove(log)
        self.appender.recount(self._adopted)
        if log.adopted and len(self._adopted) <= MAX_ADOPTED // 2:
            self._next_scan = 0.0  # there may be more than could be adopted

    def take_lost(self) -> List[DamageError]:
        return [self.lost.pop(0) for _ in range(len(self.lost))]

    # -- resolving -------------------------------------------------------------------

    def resolve(self, items: Sequence[Any]) -> None:
        by_log: Dict[Log, List[int]] = {}
        for _, _, (log, start) in items:
            by_log.setdefault(log, []).append(start)
        with self.lock:
            if not self.appender.is_closed:  # or the next client sends them again
                logs = self.appender.logs + self._adopted
                for log in logs:
                    if log in by_log:
                        self._resolve(log, by_log[log])
                if len(logs) > 1:
                    self.appender.recount(self._adopted)
        if self.directory.said:
            self.directory.log()

    def _resolve(self, log: Log, starts: List[int]) -> None:
        try:
            log.resolve(starts)
        except OSError as error:
            raise_interruption(error)
            self.directory.tell(log.path, 'Cannot write to %s: %s', log.path, error)
            # A full disk has room again when the log ends and is removed.
            self.appender.seal(log.writer())
        if not log.outstanding and log.writer() is None:
            self._read(log, len(self.ready) + 1)  # to its end

    # -- the end ---------------------------------------------------------------------

    def give_up(self, items: List[Any]) -> List[Any]:
        """Leave what is pending to the next client; return what it will not find."""
        assert self.lock._is_owned()
        gone = {log for log in self.appender.logs + self._adopted if log.is_gone()}
        for log in gone:
            self._read(log, maxsize)
        items = items + list(self.ready)
        self.ready.clear()
        lost = [item for item in items if item[2][0] in gone]
        self.left = len(items) - len(lost) + self.waiting()
        self._read_count = self.appender.appended.value
        return lost

    def close(self) -> None:
        with self.lock:
            self.appender.is_closed = True
            self.appender.writer = None
            for log in self.appender.logs + self._adopted:
                self._read(log, 1)  # which removes it, if all of it is resolved
                self.ready.clear()
                log.close()
            self.appender.logs, self._adopted = [], []
        self.directory.log()

    # -- marks -----------------------------------------------------------------------

    def mark(self) -> Dict[Log, int]:
        return {log: log.size() for log in list(self.appender.logs)}

    def is_past(self, mark: Any) -> bool:
        # Not by the counts: an event that is on the disk may be read, and not counted yet.
        return (
            not (self._is_reading or self.lost or self.left)
            and all(log.offset >= size for log, size in mark.items())
            and not any(self.is_before(item, mark) for item in list(self.ready))
        )

    def is_before(self, item: Any, mark: Any) -> bool:
        log, start = item[2]
        # A log that was removed is in no mark, and its last batch may not be counted yet.
        unmarked = maxsize if log.offset == maxsize else 0
        return bool(start < mark.get(log, unmarked))


def _items(log: Log, found: Piece) -> List[Any]:
    """Return the events of a piece as the store holds them: see `Batch.items`."""
    now = monotonic()
    epoch = now - time()
    return [
        (body, min(now, epoch + milliseconds / 1000.0), (log, start))
        for body, milliseconds, start, _ in found.events
    ]
