"""Appends events to the current log of a client. Takes no lock, and waits for nothing."""

import errno
import os
from time import time
from typing import Any, List, Optional

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.logs import log as logger
from hightouch.htevents._process.waiting import monotonic
from hightouch.htevents._queue.stores import Counter
from hightouch.htevents._spool.directory import Directory
from hightouch.htevents._spool.log import Log, Writer, event_record

# Bytes of a log after which the next one begins; less in a small spool. A large spool has
# longer ones: at most LOGS of them, because each takes a file descriptor.
LOG_BYTES = 4 << 20
LOGS = 64

# Logs that a client may have. It has more than LOGS only if none can be written to its end,
# because of a limit on the size of files for example.
MAX_LOGS = 200

# Seconds before a new log is tried, after one could not be made.
RETRY_INTERVAL = 1.0


class _DeletedError(OSError):
    """The current log is no longer in its directory."""


class Appender:
    """Safe to use from all threads, signal handlers and finalizers.

    A call that a signal handler forks inside of goes on with its parent's appender, which is
    closed in the child.

    :param directory: where the logs are made
    :param max_bytes: bytes that events of this client may take
    :ivar writer: to the current log; None before the next one is made
    :ivar logs: the logs that are not finished, oldest first. Changed by list.append and
        list.remove, which are atomic
    :ivar appended: counts the events
    :ivar last_put: monotonic time of the last event
    :ivar trouble: why events cannot be made durable; '' when they can
    :ivar used_elsewhere: bytes that events take in all logs but the current one: a hint,
        which a consumer counts again with each batch
    """

    def __init__(self, directory: Directory, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._log_bytes = max(max_bytes // LOGS, min(LOG_BYTES, max_bytes // 16))
        self._next_open = 0.0
        self.writer: Optional[Writer] = None
        self.logs: List[Log] = []
        self.appended = Counter()
        self.last_put = float('-inf')
        self.trouble = ''
        self.used_elsewhere = 0
        self.is_closed = False

    def append(self, body: bytes) -> bool:
        """Write an event; False when it is not on the disk."""
        for _ in range(3):
            # A list, to be emptied: an application may keep an error, its traceback, and
            # therefore the variables of these calls.
            held: List[Any] = []
            try:
                held.append(self.writer or self._open())
                return held[0] is not None and self._append(held, body)
            except BaseException as error:
                # The event may be written, and is not counted. A log that does not grow is
                # read to its end, whatever the counts say.
                was_open = bool(held)
                self.seal(held.pop() if held else None)
                if not isinstance(error, OSError):
                    raise
                raise_interruption(error)
                # A new file will do where this one has reached a limit, or where this is a
                # forked child, in which it is closed.
                if not (was_open and error.errno in (errno.EFBIG, errno.EBADF)):
                    self._in_trouble(error)
        return False

    def _append(self, held: List[Any], body: bytes) -> bool:
        """Write an event by the writer in a list; False when there is no room for it.

        :raises OSError: when another log may be tried: see `append`
        """
        log = held[0].log
        record = event_record(body, int(time() * 1000))
        status = os.fstat(held[0].fd)
        if not status.st_nlink:
            raise _DeletedError('its files were deleted')
        used = self.used_elsewhere + status.st_size - log.done + len(record)
        if used > self._max_bytes:
            return False
        if os.write(held[0].fd, record) != len(record):
            raise OSError(errno.EFBIG, 'the record was cut short')
        if held[0].fd < 0:
            raise OSError(errno.EBADF, 'forked inside the write: this is the child')
        log.count()
        self.last_put = monotonic()
        if status.st_size > self._log_bytes:
            self.seal(held[0])
        self.trouble = ''
        return True

    def seal(self, writer: Optional[Writer]) -> None:
        """Let the next event begin another log."""
        if writer is not None and self.writer is writer:
            self.writer = None
            self.used_elsewhere += writer.log.used()

    def _open(self) -> Optional[Writer]:
        """Make a log. Of threads that come here together each makes one."""
        if self.is_closed or monotonic() < self._next_open:
            return None
        if len(self.logs) >= MAX_LOGS:
            raise OSError('no file could be written to its end')
        writer = self._directory.make_log(self.appended)
        self.logs.append(writer.log)
        self.seal(self.writer)  # of another thread that came here
        self.writer = writer
        if self.is_closed:  # since the first look
            self.writer = None
            self._directory.discard(writer.log)
            return None
        return writer

    def _in_trouble(self, error: OSError) -> None:
        if not isinstance(error, _DeletedError):  # then a new file will do
            self._next_open = monotonic() + RETRY_INTERVAL
        if not self.trouble:
            self.trouble = error.strerror or str(error)
            if error.errno == errno.ENOSPC:
                self.trouble = 'the disk is full'
            logger.error(
                'Events cannot be made durable in %s (%s): calls return False until '
                'they can',
                self._directory.folder,
                self.trouble,
            )

    def recount(self, adopted: List[Log]) -> None:
        """Count the bytes in all logs but the current one again, also of adopted ones."""
        current = self.writer and self.writer.log
        logs = self.logs + adopted
        self.used_elsewhere = sum(log.used() for log in logs if log is not current)

    def used(self) -> int:
        """Return the bytes that events take, about."""
        writer = self.writer
        current = 0 if writer is None else writer.log.used()
        return self.used_elsewhere + current
