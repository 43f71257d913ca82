"""One log of a spool: an append-only text file.

It begins with a line that names its format. Each record is one ``write``, and begins with a
newline, so that a record that was damaged or cut short spoils nothing after it::

    htevents-spool 1
    E <milliseconds> <length> <crc32> <json>     an event, and when it was accepted
    D <from> <to> <crc32>                        bytes [from, to) of this file are resolved

Any thread, signal handler and finalizer may append: the file is open with ``O_APPEND``, so a
write needs no lock. A thread that appends holds a `Writer`. Its descriptor is closed when the
last thread lets go of it, and from then on the log does not grow.
"""

import errno
import os
import re
import weakref
from bisect import bisect_right
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
)
from zlib import crc32

from hightouch.htevents._queue.stores import Counter
from hightouch.htevents._spool.ownership import open_plain

HEADER = b'htevents-spool 1'

# Bytes that are read at a time: more than any record.
CHUNK = 256 << 10

# A record that a full disk or the end of its process has cut short, up to its checksum.
_CUT = re.compile(
    rb'(E( \d*( \d*( [0-9a-f]{0,8})?)?)?|D( \d*( \d*( [0-9a-f]{0,7})?)?)?)?\Z'
)
_EVENT = re.compile(rb'E (\d{1,15}) (\d{1,9}) ([0-9a-f]{8}) ')
_DONE = re.compile(rb'D (\d{1,15}) (\d{1,15}) ([0-9a-f]{8})\Z')


def event_record(body: bytes, milliseconds: int) -> bytes:
    crc = crc32(body, milliseconds & 0xFFFFFFFF)
    return b'\nE %d %d %08x %b' % (milliseconds, len(body), crc, body)


def done_record(start: int, end: int) -> bytes:
    bounds = b'%d %d' % (start, end)
    return b'\nD %b %08x' % (bounds, crc32(bounds))


class Event(NamedTuple):
    """An event in a log; ``start`` is where its record begins."""

    body: bytes
    milliseconds: int
    start: int


class Piece(NamedTuple):
    """What was found in a piece of a log.

    :ivar events: the events
    :ivar done: ranges of bytes that are resolved
    :ivar end: where the next piece begins
    :ivar damaged: how many records cannot be read
    """

    events: List[Event]
    done: List[Tuple[int, int]]
    end: int
    damaged: int


def parse(data: bytes, at: int, is_complete: bool, most: int) -> Piece:
    """Read records, each from its newline on.

    :param at: where in the file the data begins
    :param is_complete: whether the last record is complete, and not still being written
    :param most: events after which to stop
    """
    events: List[Event] = []
    done: List[Tuple[int, int]] = []
    lines = data.split(b'\n')
    damaged = int(not at and lines[0] != HEADER)
    at += len(lines[0])  # what is before the first newline
    last = len(lines) - 1
    for number, line in enumerate(lines[1:], 1):
        event = _event(line, at)
        bounds = _done(line) if event is None else None
        if event is not None:
            if len(events) == most:
                break
            events.append(event[0])
            damaged += event[1]
        elif bounds is not None:
            done.append(bounds)
        elif number == last and not is_complete:
            break
        else:
            damaged += not _is_cut(line)
        at += 1 + len(line)
    return Piece(events, done, at, damaged)


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


def read_all(fd: int) -> Iterator[Piece]:
    """Read an open log from its beginning to its end."""
    found = read_piece(fd, 0, False, CHUNK)
    at = 0
    while found.end > at:
        yield found
        at = found.end
        found = read_piece(fd, at, False, CHUNK)


class Resolved:
    """Ranges of bytes of a log that are resolved."""

    def __init__(self, ranges: Iterable[Tuple[int, int]]) -> None:
        in_order = sorted(ranges)
        self._starts = [start for start, _ in in_order]
        self._ends = [end for _, end in in_order]

    def __contains__(self, event: Event) -> bool:
        number = bisect_right(self._starts, event.start)
        return number > 0 and event.start < self._ends[number - 1]


def _event(line: bytes, start: int) -> Optional[Tuple[Event, bool]]:
    """Return an event, and whether its record is damaged all the same."""
    found = _EVENT.match(line)
    if found is None:
        return None
    milliseconds, length, crc = int(found[1]), int(found[2]), int(found[3], 16)
    body = line[found.end() :]
    if crc32(body, milliseconds & 0xFFFFFFFF) == crc:
        return Event(body, milliseconds, start), len(body) != length
    if crc32(body[:length], milliseconds & 0xFFFFFFFF) == crc:
        # The newline of the next record is damaged: that one is lost.
        return Event(body[:length], milliseconds, start), True
    return None


def _done(line: bytes) -> Optional[Tuple[int, int]]:
    found = _DONE.match(line)
    if found is None or crc32(b'%b %b' % (found[1], found[2])) != int(found[3], 16):
        return None
    return int(found[1]), int(found[2])


def _is_cut(line: bytes) -> bool:
    found = _EVENT.match(line)
    if found is None:
        return _CUT.match(line) is not None
    return len(line) - found.end() < int(found[2])


class Writer:
    """The right to append to a log, for as long as a thread refers to it.

    :ivar fd: open for reading and appending; -1 in a forked child, where it was closed
    """

    # For one whose making a signal handler interrupts.
    fd = -1
    log: Any = None

    def __init__(self, fd: int, log: 'Log') -> None:
        self.fd = fd
        self.log = log

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        log = self.log
        if log is not None:
            log.writer = _nobody  # the weak reference still works here
        self.close()
        if log is not None and log.owner.is_leaving:
            log.owner.leave()


class Log:
    """A log as its owner sees it: the methods need the lock of the store, but for `size`,
    `is_gone` and `fd`.

    :ivar owner: whose log it is; knows whether it was adopted
    :ivar appended: counts the events that this process appended
    :ivar count: counts an event, here and in its store
    :ivar read: how many events were read of those
    :ivar offset: where the next record to be read begins
    :ivar outstanding: the events that were read and are not resolved, by where they begin
    :ivar done: bytes of it that are resolved
    :ivar damaged: how many records could not be read
    :ivar has_ended: whether all events were read that will ever be appended
    :ivar next_read: monotonic time before which it is not read, because that has failed
    """

    def __init__(self, path: str, owner: Any, total: Counter) -> None:
        self.path = path
        self.owner = owner
        self.appended = Counter()
        # In one step of the interpreter: a signal handler may raise between two.
        self.count = zip(self.appended.left, total.left).__next__
        self.read = 0
        self.offset = 0
        self.outstanding: Dict[int, int] = {}
        self.done = 0
        self.damaged = 0
        self.has_ended = False
        self.next_read = 0.0
        self.writer: Callable[[], Optional[Writer]] = _nobody
        self._open: Dict[None, int] = {}  # its descriptor
        self._resolved: Optional[Resolved] = None  # under its last owner
        self._owed: List[Tuple[int, int]] = []

    def create(self, fsync: bool) -> Writer:
        """Make the file; the caller is the first to append to it."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        if fsync:
            flags |= os.O_DSYNC
        writer = Writer(os.open(self.path, flags, 0o600), self)
        try:
            if os.write(writer.fd, HEADER) != len(HEADER):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except BaseException:
            os.unlink(self.path)
            raise
        self._resolved = Resolved(())
        self.writer = weakref.ref(writer)
        return writer

    @property
    def fd(self) -> int:
        """Its descriptor for reading and notes.

        :raises OSError: when it cannot be opened
        """
        fd = self._open.get(None)
        if fd is None:
            # A file that was deleted can be read as long as somebody has it open.
            writer = self.writer()
            if writer is not None:
                made = os.dup(writer.fd)
            else:
                made = open_plain(self.path, os.O_RDWR | os.O_APPEND)
            fd = self._open.setdefault(None, made)
            if fd != made:
                os.close(made)  # another thread was faster
        return fd

    def size(self) -> int:
        """Return its bytes; 0 when it is gone, and nobody has it open."""
        try:
            return self._status().st_size
        except OSError:
            return 0

    def is_gone(self) -> bool:
        """Whether it was deleted, so that no other process will find it."""
        try:
            return self._status().st_nlink == 0
        except FileNotFoundError:
            return True
        except OSError:
            return False  # it is there, for all we know

    def _status(self) -> os.stat_result:
        try:
            return os.stat(self.path)
        except FileNotFoundError:
            writer, fd = self.writer(), self._open.get(None)
            if writer is not None:
                fd = writer.fd
            if fd is None:
                raise
            return os.fstat(fd)

    def was_cut(self) -> bool:
        """Whether it is shorter than what was read of it."""
        return os.fstat(self.fd).st_size < self.offset

    def next_piece(self, most: int) -> Tuple[Piece, List[Tuple[Event, int]]]:
        """Read up to ``most`` events that are not resolved; changes nothing: see `commit`.

        :returns: the piece, and each event of it to be sent, with the end of its bytes
        :raises OSError: when it cannot be read
        """
        if self._resolved is None:
            self._resolved = Resolved(
                bounds for piece in read_all(self.fd) for bounds in piece.done
            )
        # Asked first: as long as it grows, its last record may be half written.
        grows = self.writer() is not None
        found = read_piece(self.fd, self.offset, grows, most)
        if found.end == self.offset:
            self.has_ended = not grows
        ends = [each.start for each in found.events[1:]] + [found.end]
        events = zip(found.events, ends)
        return found, [each for each in events if each[0] not in self._resolved]

    def commit(self, found: Piece, events: List[Tuple[Event, int]]) -> None:
        """Go on behind a piece that was read. If this is interrupted, it is read again."""
        self.outstanding.update((event.start, end) for event, end in events)
        self.read += len(found.events)
        self.damaged += found.damaged
        size = found.end - self.offset
        self.done += size - sum(end - event.start for event, end in events)
        self.offset = found.end

    def resolve(self, starts: Iterable[int]) -> None:
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
            note = done_record(*self._owed[-1])
            if os.write(self.fd, note) != len(note):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._owed.pop()

    def is_finished(self) -> bool:
        """Whether all of it was read and resolved, and nobody can append an event."""
        return self.has_ended and not self.outstanding

    def close(self) -> None:
        fd = self._open.pop(None, None)
        if fd is not None:
            os.close(fd)

    def descriptors(self) -> Iterator[int]:
        """Yield the file descriptors that are open."""
        writer = self.writer()
        if writer is not None:
            yield writer.fd
        yield from list(self._open.values())


def _nobody() -> None:
    return None
