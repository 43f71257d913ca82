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
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List, Optional, Sequence

from hightouch.htevents._process.waiting import monotonic
from hightouch.htevents._queue.stores import Policy
from hightouch.htevents._spool.directory import Directory
from hightouch.htevents._spool.log import Log
from hightouch.htevents._spool.reader import Reader
from hightouch.htevents.errors import (
    FINAL_STATUSES,
    MAX_AGE_DAYS,
    APIError,
    OauthError,
)
from hightouch.htevents.stamps import parse

# Seconds between looks for logs of dead processes in an idle client, which wakes up for
# nothing else.
IDLE_SCAN_INTERVAL = 30.0

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


class FileStore(Reader):
    """Safe to use from all threads, signal handlers and finalizers.

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
        super().__init__(Directory(directory, write_key, fsync), max_bytes)

    def reset(self) -> None:
        self.appender.is_closed = True
        for log in self._logs():
            log.forget()
        self.directory.close_others()
        self._start()

    # -- the application's side ------------------------------------------------------

    def put(self, body: bytes) -> int:
        return max(1, self.waiting()) if self.appender.append(body) else 0

    def can_wait(self) -> bool:
        return not (self.appender.trouble or self.appender.is_closed)

    def is_full(self) -> bool:
        return self.appender.used() + RECORD_BYTES > self._max_bytes

    def has_room_again(self) -> bool:
        used = self.appender.used()
        return not self.appender.trouble and 2 * used <= self._max_bytes

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
        return bool(start < mark.get(log, 0))
