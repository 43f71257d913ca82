"""One log of a spool: an append-only text file.

It begins with a line that names its format and its maker. Each record is one ``write``, and
begins with a newline. A record that was damaged or cut short therefore spoils no later record::

    htevents-spool 1 <program>[<pid>]@<host> <version>
    E <milliseconds> <length> <crc32> <json>     an event, and when it was accepted
    D <from> <to> <crc32>                        bytes [from, to) of this file are resolved

Any thread, signal handler and finalizer may append: the file is open with ``O_APPEND``, so a
write needs no lock. A thread that appends holds a `Writer`. Its descriptor is closed when the
last thread lets go of it, and from then on the log does not grow.

The process that has a log locked (``flock``) owns it. The descriptor of a `Writer` and the one
for reading are copies, so the lock is held until both are closed.
"""

import errno
import os
import re
import weakref
from bisect import bisect_right
from itertools import starmap
from sys import maxsize
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple
from zlib import crc32

from hightouch.htevents._queue.stores import Counter
from hightouch.htevents._spool.ownership import OwnershipError

HEADER = b'htevents-spool 1'

# Bytes that are read at a time: more than any record.
CHUNK = 256 << 10

_EVENT = re.compile(rb'E (\d{1,15}) (\d{1,9}) ([0-9a-f]{8}) ')
_DONE = re.compile(rb'D (\d{1,15}) (\d{1,15}) [0-9a-f]{8}\Z')
# A record that a full disk or the end of its process has cut short, up to its checksum.
_CUT = re.compile(rb'(E( \d*){0,2}( [0-9a-f]{0,8})?|D( \d*){0,2}( [0-9a-f]{0,7})?)?\Z')

# Bytes [from, to) of a file.
Range = Tuple[int, int]


def event_record(body: bytes, milliseconds: int) -> bytes:
    crc = crc32(body, milliseconds & 0xFFFFFFFF)
    return b'\nE %d %d %08x %b' % (milliseconds, len(body), crc, body)


def done_record(start: int, end: int) -> bytes:
    bounds = b'%d %d' % (start, end)
    return b'\nD %b %08x' % (bounds, crc32(bounds))


class Event(NamedTuple):
    """An event in a log; its record takes the bytes [start, end)."""

    body: bytes
    milliseconds: int
    start: int
    end: int


class Piece(NamedTuple):
    """A piece of a log.

    :ivar events: the events
    :ivar done: ranges of bytes that are resolved
    :ivar end: where the next piece begins
    :ivar damaged: how many records cannot be read
    """

    events: List[Event]
    done: List[Range]
    end: int
    damaged: int


def parse(data: bytes, at: int, is_complete: bool, most: int) -> Piece:
    """Read records, each from its newline on.

    :param at: where in the file the data begins
    :param is_complete: whether the last record is complete, and not still being written
    :param most: events after which to stop
    """
    events: List[Event] = []
    done: List[Range] = []
    lines = data.split(b'\n')
    damaged = int(not at and lines[0].split(b' ')[:2] != HEADER.split(b' '))
    at += len(lines[0])  # the bytes before the first newline
    last = len(lines) - 1
    for number, line in enumerate(lines[1:], 1):
        record, is_damaged = _record(line, at)
        if record is None and number == last and not is_complete:
            break
        if isinstance(record, Event):
            if len(events) == most:
                break
            events.append(record)
        elif record is not None:
            done.append(record)
        damaged += is_damaged
        at += 1 + len(line)
    return Piece(events, done, at, damaged)


def _record(line: bytes, at: int) -> Tuple[Any, bool]:
    """Return an `Event`, a `Range` or None, and whether a record is damaged.

    A record that was cut short is not damaged: no call returned True for it.
    """
    found = _EVENT.match(line)
    if found is not None:
        milliseconds, length, crc = int(found[1]), int(found[2]), int(found[3], 16)
        body = line[found.end() :]
        # If the newline of the next record is damaged, that record follows: it is lost.
        for each in (body, body[:length]):
            if crc32(each, milliseconds & 0xFFFFFFFF) == crc:
                event = Event(each, milliseconds, at, at + 1 + len(line))
                return event, len(body) != length
        return None, len(body) >= length
    found = _DONE.match(line)
    if found is not None:
        bounds = int(found[1]), int(found[2])
        is_right = done_record(*bounds)[1:] == line
        return bounds if is_right else None, not is_right
    return None, _CUT.match(line) is None


def read_piece(fd: int, at: int, grows: bool, most: int) -> Piece:
    """Read a piece of an open log.

    :param grows: whether its last record may be half written
    :param most: events after which to stop
    """
    data = os.pread(fd, CHUNK, at)
    is_end = len(data) < CHUNK
    found = parse(data, at, is_end and not grows, most)
    if found.end == at and not is_end:
        found = parse(data, at, True, most)  # no record is so long
    return found


def is_resolved(event: Event, done: List[Range]) -> bool:
    """Whether an event is in one of the ranges, which are in order."""
    number = bisect_right(done, (event.start, maxsize))
    return number > 0 and event.start < done[number - 1][1]


class Descriptor:
    """An open file. Several threads may close it.

    :ivar fd: its number; -1 when it is closed
    """

    fd = -1
    _fds: List[int] = []  # for an instance whose making a signal handler interrupts

    def open(self, function: Callable[..., int], *args: Any) -> None:
        """Call a function that opens it.

        In one step of the interpreter: a signal handler that raises comes before it or after
        it, so no descriptor is left open.
        """
        self._fds = fds = []  # type: List[int]
        fds.extend(starmap(function, [args]))
        self.fd = fds[0]

    def close(self) -> None:
        self.fd = -1
        try:
            os.close(self._fds.pop())
        except IndexError:
            pass  # another thread was faster, or it was never open


class Writer(Descriptor):
    """The right to append to a log, for as long as a thread refers to it."""

    def __init__(self, log: 'Log') -> None:
        self.log = log

    def __del__(self) -> None:
        self.close()


class Log(Descriptor):
    """A log that this process owns, open for reading and notes, also after its deletion.

    The methods need the lock of the store, except for `create`, `size`, `used` and `is_gone`.

    :param total: counts the events of all logs of a client; None if a dead process made this
    :ivar adopted: whether a dead process made it
    :ivar appended: counts the events that this process appended
    :ivar count: counts an event, here and in its store
    :ivar read: how many events were read of those
    :ivar offset: where the next record to be read begins
    :ivar outstanding: the events that were read and are not resolved, by where they begin
    :ivar done: bytes of it that are resolved
    :ivar damaged: how many records could not be read
    :ivar has_ended: whether all events were read that will ever be appended
    :ivar next_read: monotonic time of the next try, after it could not be read
    :ivar writer: returns its writer; None when no thread can append
    """

    def __init__(self, path: str, total: Optional[Counter] = None) -> None:
        self.path = path
        self.adopted = total is None
        self.appended = Counter()
        # In one step of the interpreter: a signal handler may raise between two.
        self.count = zip(self.appended.left, (total or Counter()).left).__next__
        self.read = 0
        self.offset = 0
        self.outstanding: Dict[int, int] = {}
        self.done = 0
        self.damaged = 0
        self.has_ended = False
        self.next_read = 0.0
        self.writer: Callable[[], Optional[Writer]] = lambda: None
        self._resolved: Optional[List[Range]] = None  # by its last owner
        self._owed: List[Range] = []  # notes to be written

    def create(self, fsync: bool) -> Writer:
        """Make the file; the caller is the first to append to it."""
        writer = Writer(self)
        self.writer = weakref.ref(writer)
        self._resolved = []
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        writer.open(os.open, self.path, flags | (os.O_DSYNC if fsync else 0), 0o600)
        self.open(os.dup, writer.fd)
        return writer

    def begin(self, maker: bytes) -> None:
        """Write the first line, once the file is locked."""
        _write(self.fd, b'%b %b' % (HEADER, maker))

    def check_version(self) -> None:
        """Raise `OwnershipError` if another version of the package made it."""
        head = os.pread(self.fd, len(HEADER) + 1, 0)
        if head.startswith(HEADER[:-1]) and head.rstrip() != HEADER:
            raise OwnershipError('another version of this package made %s' % self.path)

    def size(self) -> int:
        try:
            return os.fstat(self.fd).st_size
        except OSError:
            return 0  # it was closed

    def used(self) -> int:
        """Return the bytes that are not resolved; 0 when it is closed."""
        return max(0, self.size() - self.done)

    def is_gone(self) -> bool:
        """Whether it was deleted: no other process will find it."""
        try:
            return os.fstat(self.fd).st_nlink == 0
        except OSError:
            return False

    def next_piece(self, most: int) -> Piece:
        """Read up to ``most`` events that are not resolved. `commit` goes on behind them.

        :raises OSError: when it cannot be read
        """
        if self._resolved is None:
            self._resolved = self._notes()
        # Asked first: as long as it grows, its last record may be half written.
        grows = self.writer() is not None
        found = read_piece(self.fd, self.offset, grows, most)
        if found.end == self.offset:
            if self.size() < self.offset:
                # It was cut short. The events that are in it now are sent, perhaps again.
                self.damaged += 1
                self.offset = 0
                return self.next_piece(most)
            self.has_ended = not grows
        if self._resolved:
            done = self._resolved
            events = [each for each in found.events if not is_resolved(each, done)]
            found = found._replace(events=events)
        return found

    def _notes(self) -> List[Range]:
        """Return the ranges that its last owner noted as resolved, in order."""
        notes: List[Range] = []
        at = 0
        while True:
            found = read_piece(self.fd, at, False, CHUNK)
            if found.end == at:
                return sorted(notes)
            notes += found.done
            at = found.end

    def commit(self, found: Piece) -> None:
        """Go on behind a piece that was read. If this is interrupted, it is read again."""
        waiting = 0
        for _, _, start, end in found.events:
            self.outstanding[start] = end
            waiting += end - start
        self.read += len(found.events)
        self.damaged += found.damaged
        self.done += found.end - self.offset - waiting
        self.offset = found.end

    def resolve(self, starts: List[int]) -> None:
        """Note that events are resolved; a note that fails now is written with the next.

        :raises OSError: when a note cannot be written
        """
        for start in starts:
            end = self.outstanding.pop(start, None)
            if end is None:
                continue  # by a call that was interrupted
            self.done += end - start
            if self._owed and self._owed[-1][1] == start:
                start = self._owed.pop()[0]
            self._owed.append((start, end))
        while self._owed:
            _write(self.fd, done_record(*self._owed[-1]))
            self._owed.pop()

    def forget(self) -> None:
        """Close it, also for calls that write, as a forked child has to."""
        writer = self.writer()
        if writer is not None:
            writer.close()
        self.close()


def _write(fd: int, data: bytes) -> None:
    if os.write(fd, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
