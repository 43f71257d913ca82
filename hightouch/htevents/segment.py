"""One file of a spool: events in SQLite, owned by one process at a time.

Theory of operation
-------------------
A segment is ``NAME.db`` (with SQLite's own ``-wal`` and ``-shm`` beside it) and
``NAME.lock``. Who holds the file lock on that owns the segment: the kernel drops it with
the process, however that ends, so that neither a process id that is used again nor
another container on the same volume can mistake a living owner for a dead one.

Every operation is one SQL statement in autocommit mode. So the connection is between
two transactions whenever Python code runs, and a signal handler or a finalizer that
interrupts an operation may start one of its own.

SQLite must not be inside a call while the process forks: the child would inherit its
mutexes locked. Hence each segment has a lock around its calls, and a fork waits for all
of them (see spool_lock). The child forgets its parent's connections without closing them,
and does not open their files again.
"""

import os
import shutil
import socket
import struct
import sys
import threading
import uuid
from collections import deque
from contextlib import contextmanager
from time import time
from typing import (
    Any,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
)
from zlib import crc32

from hightouch.htevents.concurrency import monotonic
from hightouch.htevents.interruption import raise_interruption
from hightouch.htevents.ownership import open_plain
from hightouch.htevents.spool_lock import PATIENCE, both, process, same_file, try_lock
from hightouch.htevents.version import VERSION

PAGE_BYTES = 4096

# Of our files, so that no other database is taken for one of them.
APPLICATION_ID = 0x68746576
FORMAT = 1

# Pages of the log at which a writer moves them into the database itself: about a
# millisecond for a caller of track(), once in some hundred calls. It would be 20 with the
# fsync of synchronous = NORMAL, which only a power cut makes worth it: see create().
CHECKPOINT_PAGES = 1000

# Kilobytes of SQLite's page cache; the tail of a table, where all happens, is smaller.
CACHE_KB = 256

# Seconds to wait for a lock of SQLite's: only a stranger to the file can hold one.
BUSY_TIMEOUT = 0.2

# Seconds of I/O errors after which a file is taken for damaged.
FAILING_TIME = 60.0

# Resolved events that are deleted at a time: some hundred microseconds, for which a
# caller of track() may have to wait, once in so many events.
PURGE_EVENTS = 1000

# Files that are made until one is ours: another process may tidy one away just before
# we have locked it.
_BEGIN_TRIES = 10

# Rows that are skipped at a time to find the next one behind a damaged page.
_SKIP = 64

DATABASE, LOCK, NEW, DAMAGED = '.db', '.lock', '.new', '.damaged'
# SQLite's own are named after it; it needs a journal before the log is set up only.
FILES = tuple(DATABASE + each for each in ('', '-wal', '-shm', '-journal'))

# Version, unused, change counter, whether it is initialized, byte order of checksums,
# page size, number of frames: in the byte order of the machine.
_INDEX_HEAD = struct.Struct('=IIIBBHI')

_SCHEMA = (
    'CREATE TABLE events (id INTEGER PRIMARY KEY, at INTEGER NOT NULL,'
    ' direct INTEGER NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL)',
    # Without rowid: a note must not move last_insert_rowid(), see _APPEND.
    'CREATE TABLE done (first INTEGER PRIMARY KEY, last INTEGER) WITHOUT ROWID',
    'CREATE TABLE owner (pid INTEGER, host TEXT, program TEXT, started INTEGER,'
    ' version TEXT)',
)
# The id is made by SQLite, from what this connection wrote last: never used twice, also
# after all rows were deleted, and without a step of Python in between.
_APPEND = 'INSERT INTO events VALUES (last_insert_rowid() + 1, ?, ?, ?, ?)'
# One row for all: Python gives the GIL away with each row that it fetches, and waits
# for it again.
_READ = (
    "SELECT group_concat(id || ' ' || at || ' ' || crc || ' ' || body, char(10)) FROM"
    ' (SELECT id, at, crc, body FROM events WHERE id > ? AND %s ORDER BY id LIMIT ?)'
)
_READ_ALL, _READ_BEHIND = _READ % '1', _READ % 'direct = 0'

# What became of a segment that was closed: there is something for its next owner, or it
# is empty and cannot be removed.
REMOVED, LEFT, STUCK = 'removed', 'left', 'stuck'

# Seconds that the end of a client waits for who is in a call on a segment.
CLOSE_TIMEOUT = 5.0


class Row(NamedTuple):
    """An event in a segment; ``at`` is when it was accepted, in seconds of the epoch."""

    id: int
    at: float
    body: bytes


class SegmentError(OSError):
    """A segment cannot do what is asked: it is closed, or its files are gone."""


def create(folder: str, fsync: bool, max_bytes: int) -> 'Segment':
    """Make a new segment, owned by this process.

    :param fsync: whether each event reaches the disk itself before `append` returns
    :param max_bytes: bytes that its database may take
    :raises OSError, sqlite3.Error: when the file system does not allow it
    """
    with process.opening:
        segment = _begin(folder)
        try:
            segment.create(fsync, max_bytes)
            # Seen by others from here on.
            segment.publish()
            segment.settle(fsync)
            return segment
        except BaseException:
            segment.discard()
            raise


def _begin(folder: str) -> 'Segment':
    """Begin a segment: a NEW that nobody holds is what is left of a process that died
    before it was complete, and no event was ever in there."""
    for _ in range(_BEGIN_TRIES):
        path = os.path.join(folder, uuid.uuid4().hex)
        fd = os.open(path + NEW, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        segment = Segment(path, fd)
        try:
            if try_lock(fd) and same_file(os.fstat(fd), path + NEW):
                return segment
        except BaseException:
            segment.discard()
            raise
        segment.discard()  # a cleaner was faster than our lock: make another
    raise SegmentError('what is made there is taken away again')


def renew(old: 'Segment') -> 'Segment':
    """Move a segment to new files; for a child that inherited the old ones open.

    The old ones are removed last: who is killed in between leaves all twice.

    :raises OSError: when there is no room; then nothing has changed
    """
    folder = os.path.dirname(old.path)
    new = _begin(folder)
    try:
        for suffix in (DATABASE + '-wal', DATABASE):
            if os.path.exists(old.path + suffix):
                _copy(old.path + suffix, new.path + suffix)
        new.publish()
        sync_folder(folder)
    except BaseException:
        new.discard()
        raise
    old.discard()
    return new


def _copy(source: str, target: str) -> None:
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, 'wb') as output, open(source, 'rb') as file:
        shutil.copyfileobj(file, output, 1 << 20)
        output.flush()
        os.fsync(fd)


def errors() -> Tuple[Any, ...]:
    """What segments raise when the ground under them is bad."""
    import sqlite3

    return (sqlite3.Error, OSError)


class _Resolved:
    """Which events of a segment are resolved: ranges of ids, from first to last.

    Any thread may `tell`, whatever it holds; the rest is done under the segment's lock.

    :ivar ranges: those that were told, and are not deleted yet
    :ivar owed: those among them that the file has no note of
    """

    def __init__(self) -> None:
        self._told: Deque[Tuple[int, int]] = deque()
        self.ranges: List[Tuple[int, int]] = []
        self.owed: List[Tuple[int, int]] = []

    def tell(self, ids: List[int]) -> None:
        self._told.extend(_merged((each, each) for each in ids))

    def listen(self) -> None:
        """Take in what was told."""
        while self._told:
            bounds = self._told.popleft()
            self.ranges.append(bounds)
            self.owed.append(bounds)

    def count(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def forget(self, count: int) -> None:
        """Drop the first ranges, and what is owed of them: they were deleted."""
        self.ranges = self.ranges[count:]
        self.owed[:] = [each for each in self.owed if each in self.ranges]


class Segment:
    """An open segment. Its methods may be called from any thread and signal handler.

    All but `close` raise ``sqlite3.Error`` on damage, a full disk or an I/O error, and
    `SegmentError` when it was closed.

    :ivar path: without suffix
    :ivar behind: one None for each event appended that is not in memory
    :ivar doubtful: how many of these may not have been written
    :ivar adopted: whether its events were accepted by another process
    :ivar damage: why a part of it could not be read; '' when all could
    """

    def __init__(self, path: str, fd: int) -> None:
        import sqlite3

        self.path = path
        self.behind: Deque[None] = deque()
        self.doubtful = 0
        self.adopted = True
        self.damage = ''
        self.read_to = 0
        self._sqlite = sqlite3
        self._fd: Optional[int] = fd
        self._connection: Any = None
        self._resolved = _Resolved()
        self._resolved_before: List[Tuple[int, int]] = []  # under its last owner
        self.max_bytes = 0  # see limit
        self._ground: Dict[str, os.stat_result] = {}
        self._folder_time = 0
        self._failing_since = 0.0
        self._patience = PATIENCE
        self._last_used: Optional[int] = None
        # Held around every call of SQLite, so that a fork can wait for it. Re-entrant:
        # see the theory above.
        self.lock = threading.RLock()
        process.segments.add(self)

    # -- opening ---------------------------------------------------------------------

    def create(self, fsync: bool, max_bytes: int) -> None:
        """Make the database, and be the one that appends to it."""
        self.adopted = False
        path = self.database
        # By us and not by SQLite, for the mode; its other files take it over.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with self.lock:
            connection = self._connect()
            self._keep_cache_small()
            # Until the first event there is nothing to lose.
            connection.execute('PRAGMA synchronous = OFF')
            connection.execute('PRAGMA page_size = %d' % PAGE_BYTES)
            connection.execute('PRAGMA application_id = %d' % APPLICATION_ID)
            connection.execute('PRAGMA user_version = %d' % FORMAT)
            connection.execute('PRAGMA journal_mode = WAL')
            connection.execute('PRAGMA wal_autocheckpoint = %d' % CHECKPOINT_PAGES)
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(
                'INSERT INTO owner VALUES (?, ?, ?, ?, ?)',
                (
                    os.getpid(),
                    socket.gethostname(),
                    os.path.basename(sys.argv[0] if getattr(sys, 'argv', 0) else ''),
                    int(time()),
                    VERSION,
                ),
            )
            # What was written to a file outlives the process that wrote it, in the
            # system's memory; only for a power cut it has to reach the disk.
            connection.execute('PRAGMA synchronous = %s' % ('FULL' if fsync else 'OFF'))
            # So that the file is a database from its first event on.
            connection.execute('PRAGMA wal_checkpoint(TRUNCATE)')
            # Nobody else opens it while it is ours. So SQLite need not take its own locks
            # with each event: half of what one costs.
            connection.execute('PRAGMA locking_mode = EXCLUSIVE')
            self.limit(max_bytes)

    def publish(self) -> None:
        """Let others see it, from the time on when it is not ours any more."""
        os.rename(self.path + NEW, self.path + LOCK)

    def settle(self, fsync: bool) -> None:
        """Remember where its files are, once they have their final names."""
        folder = os.path.dirname(self.path)
        if fsync:
            sync_folder(folder)
        self._folder_time = os.stat(folder).st_mtime_ns
        self._ground = {
            self.path + suffix: os.stat(self.path + suffix)
            for suffix in (LOCK, DATABASE, DATABASE + '-wal')
        }

    def open(self) -> bool:
        """Open what another process made; False when its format is not ours.

        :raises sqlite3.DatabaseError: when it is no database
        """
        frames = _frames_of_log(self.path)
        self._ground = {self.database: os.stat(self.database)}
        with process.opening, self.lock:
            connection = self._connect()
            try:
                ours = self._is_ours()
                if ours and self._misses_frames(frames):
                    self.damage = 'its log is damaged or cut short'
                return ours
            except self._sqlite.DatabaseError as error:
                if not self.is_broken(error):
                    raise
                self.damage = str(error)
            # Of a file that is shorter than it says SQLite reads what is there, if it
            # is told that this is about rescue.
            connection.execute('PRAGMA writable_schema = ON')
            return self._is_ours()

    def _is_ours(self) -> bool:
        self._keep_cache_small()
        application = self._value('PRAGMA application_id')
        version = self._value('PRAGMA user_version')
        tables = self._value("SELECT count(*) FROM sqlite_master WHERE name = 'events'")
        if application == 0 and not tables:
            raise self._sqlite.DatabaseError('the database is empty')
        if application != APPLICATION_ID or version != FORMAT:
            return False
        # Not each note that a batch is resolved has to wait for the disk.
        self._execute('PRAGMA synchronous = NORMAL')
        try:
            notes = self._execute('SELECT first, last FROM done')
        except self._sqlite.DatabaseError as error:
            if not self.is_broken(error):
                raise
            notes = [('?', '?')]
        ranges = [each for each in notes if all(isinstance(n, int) for n in each)]
        if len(ranges) < len(notes):
            # What they told of is sent again.
            self.damage = self.damage or 'a note is not readable'
        self._resolved.ranges = ranges
        self._resolved_before = _merged(ranges)
        return True

    def _misses_frames(self, count: int) -> bool:
        """Whether SQLite found less in the log than its last owner had written.

        It takes what follows a damaged part for what was not finished, and says nothing.
        """
        try:
            ((_, found, _),) = self._execute('PRAGMA wal_checkpoint(PASSIVE)')
            return int(found) < count
        except self._sqlite.OperationalError:
            return False  # on a full disk it cannot be told

    def _connect(self) -> Any:
        self._connection = self._sqlite.connect(
            self.database,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
        self._connection.text_factory = bytes
        return self._connection

    def _keep_cache_small(self) -> None:
        self._execute('PRAGMA cache_size = -%d' % CACHE_KB)

    def limit(self, max_bytes: int) -> None:
        """Let SQLite refuse to grow the database beyond ``max_bytes``."""
        self.max_bytes = max_bytes
        self._execute('PRAGMA max_page_count = %d' % max(4, max_bytes // PAGE_BYTES))

    @contextmanager
    def patiently(self) -> Iterator[bool]:
        """Hold the lock; gives False, after `PATIENCE`, when somebody else has it.

        And then at once, as long as that is so.
        """
        held = self.lock.acquire(timeout=self._patience)
        self._patience = PATIENCE if held else 0
        try:
            yield held
        finally:
            if held:
                self.lock.release()

    def _execute(self, statement: str, arguments: Iterable[Any] = ()) -> List[Any]:
        """Run a statement, and give its rows."""
        with self.lock:
            if self._connection is None:
                raise SegmentError('the spool is closed')
            try:
                # No cursor leaves the lock: one that is asked, or dropped, while another
                # thread closes the connection uses memory that SQLite has freed.
                return list(self._connection.execute(statement, arguments).fetchall())
            except (MemoryError, UnicodeDecodeError) as error:
                raise self._as_damage(error)

    def _as_damage(self, error: Exception) -> Exception:
        # Python's words for a row that says it is huge, and for a message of SQLite's that
        # quotes a name from the file. Should there really be no memory, then what can be
        # read is sent all the same, and the file is kept.
        return self._sqlite.DatabaseError('malformed (%s)' % type(error).__name__)

    def _value(self, statement: str, arguments: Iterable[Any] = ()) -> Any:
        """Give the one value that a query finds."""
        ((value,),) = self._execute(statement, arguments)
        return value

    # -- events ----------------------------------------------------------------------

    def append(self, body: bytes, direct: bool) -> int:
        """Write an event; it survives this process when this returns its id.

        :param direct: the caller keeps it in memory as well: `read` leaves it out
        """
        with self.lock:
            if self._connection is None:
                raise SegmentError('the spool is closed')
            values = (int(time() * 1000), direct, crc32(body), body)
            try:
                # In one expression: see _execute.
                return int(self._connection.execute(_APPEND, values).lastrowid)
            except (MemoryError, UnicodeDecodeError) as error:
                raise self._as_damage(error)

    def read(self, limit: int) -> List[Row]:
        """Read the next events, each only once; [] when there are no more.

        Damaged parts are skipped, and `damage` says so.

        :param limit: most events to read
        """
        while True:
            try:
                found = self._read(self.read_to, limit)
            except self._sqlite.DatabaseError as error:
                if not self.is_broken(error):
                    raise
                self.damage = self.damage or str(error)
                if limit > 1:
                    limit = limit // 4 or 1  # up to the damage
                    continue
                following = self._behind_damage()
                if following is None:
                    return []
                self.read_to = following - 1
                continue
            if not found:
                return []
            self.read_to = found[-1][0].id
            if not all(intact for _, intact in found):
                self.damage = self.damage or 'a checksum is wrong'
            rows = [row for row, intact in found if intact]
            for first, last in self._resolved_before:
                rows = [row for row in rows if not first <= row.id <= last]
            if rows:
                return rows

    def _read(self, after: int, limit: int) -> List[Tuple[Row, bool]]:
        # Of its own ones a process reads only what it does not have in memory.
        query = _READ_ALL if self.adopted else _READ_BEHIND
        joined = self._value(query, (after, limit))
        found = []
        for line in joined.split(b'\n') if joined else ():
            try:
                number, at, crc, body = line.split(b' ', 3)
                row = Row(int(number), int(at) / 1000.0, body)
                found.append((row, int(crc) == crc32(body)))
            except ValueError:
                # A part of a row that was overwritten with line breaks.
                self.damage = self.damage or 'a row is not readable'
        self._failing_since = 0.0
        found.sort()  # group_concat promises no order
        return found

    def _behind_damage(self) -> Optional[int]:
        """Give the id of the first event behind a damaged page; None: there is none."""

        def readable(at_least: int) -> Optional[int]:
            try:
                found = self._read(at_least - 1, 1)
            except self._sqlite.DatabaseError:
                return None
            return found[0][0].id if found else 0

        try:
            last = int(self._value('SELECT max(id) FROM events') or 0)
        except self._sqlite.DatabaseError:
            last = 0  # at the end as well: look ahead in ever larger steps
        bad, step = self.read_to + 1, 1
        while True:
            good = bad + step
            if good > (last or 1 << 40):
                return None
            found = readable(good)
            if found is not None:
                break
            bad = good
            step = min(2 * step, _SKIP) if last else 2 * step
        while good - bad > 1:
            middle = (good + bad) // 2
            between = readable(middle)
            if between is None:
                bad = middle
            else:
                good, found = middle, between
        return found or None

    def resolve(self, ids: List[int]) -> bool:
        """Note that events are resolved; what cannot be written now, with the next.

        A note is one small row, whatever the number of events: the callers of track()
        wait for the same lock. The events themselves are deleted many at a time.

        :returns: whether they were, so that there is more room
        """
        self._resolved.tell(ids)
        with self.patiently() as held:
            if not held:
                return False  # who comes next notes them
            try:
                self._note()
            except self._sqlite.OperationalError:
                # Where there is no room for a note, there may be for its events' end.
                if not self.purge():
                    raise
            return self._resolved.count() >= PURGE_EVENTS and self.purge()

    def _note(self) -> None:
        self._resolved.listen()
        owed = self._resolved.owed
        while owed:
            bounds = owed.pop()
            try:
                self._execute('INSERT OR REPLACE INTO done VALUES (?, ?)', bounds)
            except BaseException:
                owed.append(bounds)
                raise

    def purge(self) -> bool:
        """Delete what is resolved, so that its room is free; False if nothing is."""
        with self.lock:
            self._resolved.listen()
            ranges = list(self._resolved.ranges)
            if not ranges:
                return False
            # A kill in between leaves notes of events that are gone: ids are not used
            # again.
            for bounds in _merged(ranges):
                self._execute('DELETE FROM events WHERE id BETWEEN ? AND ?', bounds)
            self._execute('DELETE FROM done')
            self._resolved.forget(len(ranges))
            return True

    @property
    def closed(self) -> bool:
        return self._connection is None

    @property
    def database(self) -> str:
        return self.path + DATABASE

    @property
    def errors(self) -> Tuple[Any, ...]:
        return errors()

    def is_broken(self, error: BaseException) -> bool:
        """Whether an error says that the file itself is damaged, now and later."""
        # Its other subclasses tell of what may pass: a lock, a full disk, missing rights.
        if type(error) in (self._sqlite.DatabaseError, self._sqlite.DataError):
            return True
        if 'no such' in str(error):
            return True  # the name of a table or of a column is damaged
        # This one may be a disk that is full (there is no room for SQLite's index of
        # the log), or one that is broken: that, if it does not pass.
        if 'disk I/O' not in str(error):
            return False
        self._failing_since = self._failing_since or monotonic()
        return monotonic() - self._failing_since > FAILING_TIME

    # -- its state -------------------------------------------------------------------

    def is_full(self) -> bool:
        """Whether it has reached its `limit`, and not only the disk its end."""
        with self.lock:
            most = self._value('PRAGMA max_page_count')
            pages = self._value('PRAGMA page_count')
        return bool(pages >= most - 8)  # some are taken for one row of 32 KiB

    def used_bytes(self) -> int:
        """Bytes of the database that hold something."""
        with self.lock:
            pages = self._value('PRAGMA page_count')
            free = self._value('PRAGMA freelist_count')
        return int(pages - free) * PAGE_BYTES

    def last_used_bytes(self) -> int:
        """Give `used_bytes`; as they were last, while somebody else is at it."""
        with self.patiently() as held:
            if held:
                self._last_used = self.used_bytes()
        if self._last_used is None:
            return os.path.getsize(self.database)
        return self._last_used

    def file_bytes(self) -> int:
        """Bytes that the database takes on the disk."""
        return int(self._value('PRAGMA page_count')) * PAGE_BYTES

    def is_empty(self) -> bool:
        """Whether all of it is resolved."""
        with self.lock:
            self.purge()
            return not self._execute('SELECT 1 FROM events LIMIT 1')

    def on_ground(self) -> bool:
        """Whether its files are still where the next process will look for them.

        What is written to a file that was deleted meanwhile succeeds, and is lost.
        """
        try:
            changed = os.stat(os.path.dirname(self.path)).st_mtime_ns
        except OSError as error:
            raise_interruption(error)
            return False
        if changed == self._folder_time:
            return True  # nothing was made or deleted in the folder
        if not all(same_file(each, path) for path, each in self._ground.items()):
            return False
        self._folder_time = changed
        return True

    def is_gone(self) -> bool:
        """Whether its database was deleted, so that no other process will find it."""
        known = self._ground.get(self.database)
        try:
            now = os.stat(self.database)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise_interruption(error)
            return False  # it is there, for all we know
        return known is not None and not os.path.samestat(known, now)

    # -- the end ---------------------------------------------------------------------

    def close(self, resolved: bool = False) -> str:
        """Let go of it: removed when it is empty, left for the next owner if not.

        :param resolved: the caller knows that all of it is resolved, also if that could
            not be written to it (a full disk)
        :returns: `REMOVED`, `LEFT` or `STUCK`
        """
        with both(self.lock, CLOSE_TIMEOUT) as held:
            if not held:
                return LEFT  # with the end of the process
            empty = False
            try:
                if resolved:
                    empty = self.has_only_resolved()
                else:
                    self.resolve([])  # what is owed
                    empty = self.is_empty()
            except self.errors as error:
                # Its next owner goes by what is written there.
                raise_interruption(error)
            self._disconnect()
            if empty:
                self._remove()
            self._unlock()
            if not empty:
                return LEFT
            return STUCK if os.path.exists(self.database) else REMOVED

    def leave(self) -> None:
        """Let go of it as it is."""
        with both(self.lock, CLOSE_TIMEOUT) as held:
            if held:
                self._disconnect()
                self._unlock()

    def has_only_resolved(self) -> bool:
        """Whether every event in it is resolved, noted or not.

        Books may say so wrongly: a signal handler that raised kept an event from them
        after it was written, or damage hid one.
        """
        with self.lock:
            self._resolved.listen()
            return self._all_in(_merged(self._resolved.ranges))

    def _all_in(self, ranges: List[Tuple[int, int]]) -> bool:
        after = 0
        while True:
            rows = self._execute(
                'SELECT id FROM events WHERE id > ? ORDER BY id LIMIT 1000', (after,)
            )
            if not rows:
                return True
            for (number,) in rows:
                while ranges and ranges[0][1] < number:
                    del ranges[0]
                if not ranges or number < ranges[0][0]:
                    return False
            after = number

    def discard(self) -> None:
        """Remove what could not be made."""
        with both(self.lock, CLOSE_TIMEOUT) as held:
            if held:
                self._disconnect()
                self._remove()
                self._unlock()

    def set_aside(self) -> str:
        """Rename its files, so that nobody reads them again; returns the new path."""
        with both(self.lock, CLOSE_TIMEOUT) as held:
            if not held:
                raise SegmentError('it is in use')
            self._disconnect()
            for suffix in FILES:
                try:
                    os.rename(self.path + suffix, self.path + suffix + DAMAGED)
                except FileNotFoundError:
                    pass
            self._unlink(LOCK)
            self._unlock()
        return self.database + DAMAGED

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except self._sqlite.Error:
                pass  # it could not tidy up; its next owner does
        process.segments.discard(self)

    def _remove(self) -> None:
        for suffix in FILES + (NEW, LOCK):  # the lock last: until then it is ours
            self._unlink(suffix)

    def _unlink(self, suffix: str) -> None:
        try:
            os.unlink(self.path + suffix)
        except OSError as error:
            # Not there, or not ours to remove: the next owner tries again.
            raise_interruption(error)

    def _unlock(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def forget(self) -> Any:
        """Let go of the parent's segment in a forked child: neither closed nor unlocked.

        :returns: what has to be kept, because its destructor would close it
        """
        connection, self._connection = self._connection, None
        # The lock is the parent's as long as the parent has its descriptor open; with
        # ours open as well it would outlive the parent.
        self._unlock()
        self.lock = threading.RLock()
        return connection


def _frames_of_log(path: str) -> int:
    """Give how many frames the log of a dead process had when it last wrote to it.

    From the head of SQLite's index of the log (a ``WalIndexHdr``), which outlives the
    process as a file does; 0 when it is not there.
    """
    try:
        with os.fdopen(open_plain(path + DATABASE + '-shm', os.O_RDONLY), 'rb') as file:
            head = file.read(_INDEX_HEAD.size)
        _, _, _, initialized, _, _, frames = _INDEX_HEAD.unpack(head)
    except (OSError, struct.error) as error:
        raise_interruption(error)
        return 0
    return int(frames) if initialized else 0


def _merged(ranges: Iterable[Tuple[int, int]]) -> List[Tuple[int, int]]:
    merged: List[Tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def sync_folder(folder: str) -> None:
    """Have the names of new files reach the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
