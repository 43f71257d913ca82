"""The consumers' side of a spool: reads, resolves and removes the logs."""

import threading
from collections import deque
from sys import maxsize
from time import time
from typing import Any, Dict, List, Sequence

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.waiting import monotonic
from hightouch.htevents._queue.stores import Store
from hightouch.htevents._spool.appender import RETRY_INTERVAL, Appender
from hightouch.htevents._spool.directory import Directory
from hightouch.htevents._spool.log import Log, Piece
from hightouch.htevents.errors import DamageError

# Seconds between looks for logs of dead processes, while events flow.
SCAN_INTERVAL = 5.0

# Logs of dead processes that are read at a time: each takes a file descriptor.
MAX_ADOPTED = 16


class Reader(Store):
    """The half of a spool's store that takes a lock.

    The place of an event is its log, and where its record begins.
    """

    def __init__(self, directory: Directory, max_bytes: int) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._start()

    def _start(self) -> None:
        """Begin anew, also in a forked child."""
        self.appender = Appender(
            self.directory, self._max_bytes
        )  # has this client's logs
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

    def _logs(self) -> List[Log]:
        return self.appender.logs + self._adopted

    def waiting(self) -> int:
        waiting = len(self.ready) + max(
            0, self.appender.appended.value - self._read_count
        )
        if self.lost:
            waiting += sum(each.count for each in self.lost)
        return waiting

    # -- reading ---------------------------------------------------------------------

    def fetch(self, size: int) -> int:
        if len(self.ready) < size:
            with self.lock:
                try:
                    self._is_reading = True
                    if not self.appender.is_closed:
                        self._read_up_to(size)
                finally:
                    self._is_reading = False
            if self.directory.said:
                self.directory.log()
        return self.waiting()

    def _read_up_to(self, size: int) -> None:
        if monotonic() >= self._next_scan:
            self._adopt()
        for log in list(self.appender.logs):
            self._read(log, size)
        # The logs of dead processes can wait for ours, and for the next client.
        if not (self.ready or self.is_closing):
            for log in list(self._adopted):
                self._read(log, size)

    def _adopt(self) -> None:
        """Take over the logs of dead processes, now and then."""
        if self.is_closing:
            return
        self._next_scan = monotonic() + SCAN_INTERVAL
        self._adopted.extend(self.directory.adopt(MAX_ADOPTED - len(self._adopted)))
        self._recount()

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
        self._recount()
        if log.adopted and not self._adopted:
            self._next_scan = 0.0  # there may be more than could be adopted

    def _recount(self) -> None:
        """Count the bytes again that `put` may still use."""
        current = self.appender.writer
        self.appender.used_elsewhere = sum(
            max(0, log.size() - log.done)
            for log in self._logs()
            if current is None or log is not current.log
        )

    def take_lost(self) -> List[DamageError]:
        return [self.lost.pop(0) for _ in range(len(self.lost))]

    # -- resolving -------------------------------------------------------------------

    def resolve(self, items: Sequence[Any]) -> None:
        by_log: Dict[Log, List[int]] = {}
        for _, _, (log, start) in items:
            by_log.setdefault(log, []).append(start)
        with self.lock:
            if (
                not self.appender.is_closed
            ):  # otherwise the next client sends them again
                for log, starts in by_log.items():
                    self._resolve(log, starts)
                if len(self.appender.logs) + len(self._adopted) > 1:
                    self._recount()
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
        gone = {log for log in self._logs() if log.is_gone()}
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
            for log in self._logs():
                self._read(log, 1)  # which removes it, if all of it is resolved
                self.ready.clear()
                log.close()
            self.appender.logs, self._adopted = [], []
        self.directory.log()


def _items(log: Log, found: Piece) -> List[Any]:
    """Return the events of a piece as the store holds them: see `Batch.items`."""
    now = monotonic()
    epoch = now - time()
    return [
        (body, min(now, epoch + milliseconds / 1000.0), (log, start))
        for body, milliseconds, start, _ in found.events
    ]
