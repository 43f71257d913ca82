"""The directory of a durable queue: who may write where, and what the dead left.

::

    DIR/<stream>/<name>.db, .db-wal, .db-shm    a segment: see there
    DIR/<stream>/<name>.lock                    held by its owner
    DIR/<stream>/<name>.db.damaged              set aside: not read any more

A stream is the events of one write key. Its folder is named by a hash of the key, so
that the key is not on the disk, and events never meet another key's.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections import deque
from typing import Any, BinaryIO, Deque, List, NamedTuple, Optional, Set, Tuple

from hightouch.htevents import ownership, spool_lock
from hightouch.htevents import segment as segments
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.interruption import raise_interruption
from hightouch.htevents.logs import log
from hightouch.htevents.segment import DAMAGED, DATABASE, FILES, LOCK, NEW, Segment
from hightouch.htevents.spool_lock import process

# The head of SQLite's log, which is another one after each checkpoint.
_LOG_HEAD_BYTES = 32
_SNAPSHOT_TRIES = 10

# The name of a stream's folder: see stream_name.
_STREAM = re.compile(r'[0-9a-f]{32}\Z')


def stream_name(write_key: str) -> str:
    """Name the folder of a write key: a hash, which does not lead back to it."""
    return hashlib.sha256(b'htevents-spool:' + write_key.encode('utf-8')).hexdigest()[
        :32
    ]


def check_support() -> None:
    """Raise `ValidationError` where a spool cannot work."""
    try:
        import sqlite3  # noqa: F401
    except ImportError:
        raise ValidationError(
            "spool_dir: expected a Python with the module 'sqlite3', and this one was "
            'built without it; install such a Python, or leave spool_dir out'
        )
    if not spool_lock.HAS_LOCKS:
        raise ValidationError(
            'spool_dir: expected a POSIX system, whose file locks end with their '
            'process; leave spool_dir out here'
        )


class Spool:
    """The stream of one write key in a directory; makes, finds and closes segments.

    :param directory: exists, and this process may write there
    :param fsync: see `segment.create`
    :param max_bytes: bytes that the segments of one client may take
    :raises ValidationError: when it cannot work
    """

    def __init__(
        self, directory: str, write_key: str, fsync: bool, max_bytes: int
    ) -> None:
        check_support()
        self.directory = os.path.abspath(directory)
        self.folder = os.path.join(self.directory, stream_name(write_key))
        self.max_bytes = max_bytes
        self.damaged = 0  # files that were set aside
        self._fsync = fsync
        # Segments, by path: those that are not tried again, and those of which was said
        # that they cannot be read now.
        self._left_alone: Set[str] = set()
        self._unreadable: Set[str] = set()
        self._said: Deque[Tuple[str, Tuple[Any, ...]]] = deque()
        self._check()

    def _check(self) -> None:
        if not os.path.isdir(self.directory):
            raise ValidationError(
                'spool_dir: expected an existing directory, got %r, which is none; '
                'create it (mkdir -m 700)' % self.directory
            )
        problem = ''
        try:
            ownership.check_directory(self.directory)
            self._make_folder()
            ownership.check_folder(self.folder)
            if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
                problem = 'no right to write there'
            elif not _can_lock(self.folder):
                problem = 'files cannot be locked there'
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            raise ValidationError(
                'spool_dir: expected a directory that this process may write to, got '
                '%r: %s' % (self.directory, problem)
            )

    def _check_ownership(self) -> None:
        ownership.check_directory(self.directory)
        ownership.check_folder(self.folder)

    def _make_folder(self) -> None:
        for path in (self.directory, self.folder):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass  # perhaps another process was faster
            else:
                if self._fsync:
                    segments.sync_folder(os.path.dirname(path))

    def create(self, taken: int) -> Segment:
        """Make a segment for this client's own events.

        :param taken: bytes that its other segments take already
        :raises OSError, sqlite3.Error: when the file system does not allow it
        """
        if not os.path.isdir(self.folder):  # deleted, while we ran
            self._make_folder()
        self._check_ownership()
        return segments.create(self.folder, self._fsync, self.max_bytes - taken)

    def has_orphans(self) -> bool:
        """Whether a dead process left something to read; cheap: no file is read."""
        for path in self._paths():
            if path in self._unreadable:
                continue  # it could not be read
            with process.opening:
                fd = spool_lock.lock(path + LOCK)
                if fd is not None:
                    os.close(fd)
                    return True
        return False

    def adopt(self, most: int) -> List[Segment]:
        """Take over, for this process alone, what dead ones left. Raises nothing.

        :param most: segments to take over; the others wait, or are another process's
        """
        adopted: List[Segment] = []
        for path in self._paths():
            if len(adopted) >= most:
                break
            with process.opening:
                fd = spool_lock.lock(path + LOCK)
                found = None if fd is None else self._open(Segment(path, fd))
            if found is not None:
                adopted.append(found)
        return adopted

    def _paths(self) -> List[str]:
        """Give the segments without suffix, oldest first; remove the half-made."""
        try:
            self._check_ownership()
            names = os.listdir(self.folder)
        except OSError as error:
            raise_interruption(error)
            if isinstance(error, ownership.OwnershipError):
                self._leave_alone(self.folder, str(error))
            return []
        paths = []
        for name in names:
            path, suffix = os.path.splitext(os.path.join(self.folder, name))
            if path in self._left_alone or suffix not in (LOCK, NEW, DATABASE):
                continue
            if not self._is_ours(path + suffix):
                continue
            if suffix == LOCK:
                paths.append(path)
            elif suffix == NEW:
                with process.opening:
                    fd = spool_lock.lock(path + NEW)
                    if fd is not None:
                        Segment(path, fd).discard()
            elif suffix == DATABASE and not os.path.exists(path + LOCK):
                # Somebody deleted its lock. A half-made one has its NEW still.
                if not os.path.exists(path + NEW) and _make(path + LOCK):
                    paths.append(path)
        paths = [path for path in paths if path not in self._left_alone]
        return sorted(paths, key=_modified)

    def _is_ours(self, path: str) -> bool:
        """Whether a file of a segment is; leaves the segment alone if not."""
        try:
            ownership.check_file(path)
            return True
        except OSError as error:
            raise_interruption(error)
            if isinstance(error, ownership.OwnershipError):
                self._leave_alone(os.path.splitext(path)[0], str(error))
            return False  # else removed meanwhile, or it may pass

    def _open(self, found: Segment) -> Optional[Segment]:
        if not os.path.exists(found.database):
            found.discard()  # its owner died while it removed it
            return None
        files = [found.path + suffix for suffix in FILES]
        if not all(self._is_ours(each) for each in files if os.path.lexists(each)):
            found.leave()
            return None
        try:
            if spool_lock.is_inherited(found.database):
                found = segments.renew(found)
            if found.open():
                return found
            self.leave_alone(found, 'another version of this package made it')
        except found.errors as error:
            if found.is_broken(error):
                found.damage = str(error)
                self.set_aside(found, 0)
                return None
            if found.path not in self._unreadable:  # it may pass: tried again
                self._unreadable.add(found.path)
                self.say('Cannot be read now: %s: %s', found.database, error)
        found.leave()
        return None

    def leave_alone(self, segment: Segment, problem: str) -> None:
        """Do not look at a segment again: it stays where it is."""
        self._leave_alone(segment.path, '%s: %s' % (segment.database, problem))

    def _leave_alone(self, path: str, problem: str) -> None:
        if path not in self._left_alone:
            self._left_alone.add(path)
            self.say('Left alone: %s', problem)

    def say(self, text: str, *args: Any) -> None:
        """Have an ERROR logged, by the next `log`: here locks may be held."""
        self._said.append((text, args))

    def log(self) -> None:
        """Log what there is to say. No lock may be held: a log handler may track."""
        while self._said:
            try:
                text, args = self._said.popleft()
            except IndexError:
                return  # another thread was faster
            log.error(text, *args)

    def set_aside(self, damaged: Segment, read: int) -> None:
        """Put away a damaged segment, and say where it is.

        :param read: events of it that could be read
        """
        self.damaged += 1
        try:
            path = damaged.set_aside()
        except OSError as error:
            raise_interruption(error)
            path = damaged.database
            self._left_alone.add(damaged.path)
        self.say(
            'A spool file was damaged (%s). %d event(s) could be read and are sent; '
            'what is left of it is set aside as %s',
            damaged.damage,
            read,
            path,
        )


def _can_lock(folder: str) -> bool:
    fd = os.open(folder, os.O_RDONLY)
    try:
        return spool_lock.try_lock(fd, shared=True)
    except OSError as error:
        raise_interruption(error)
        return False
    finally:
        os.close(fd)


def _make(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        return True
    except OSError as error:
        raise_interruption(error)
        return False


def _modified(path: str) -> float:
    try:
        return os.stat(path + DATABASE).st_mtime
    except OSError as error:
        raise_interruption(error)
        return 0


# -- for people ----------------------------------------------------------------------


class Waiting(NamedTuple):
    """What waits in one segment.

    :ivar stream: the folder's name
    :ivar path: of the database
    :ivar state: 'running' (its process lives), 'left' (its process died), 'damaged', or
        'foreign' (another user's: it is left alone, also by clients)
    :ivar events: how many; None when it cannot be read
    :ivar bytes: of their JSON
    :ivar oldest: seconds of the epoch at which the oldest was accepted; None: no event
    :ivar owner: ``program[pid]@host`` of who made it
    """

    stream: str
    path: str
    state: str
    events: Optional[int]
    bytes: int
    oldest: Optional[float]
    owner: str


def waiting(directory: str) -> List[Waiting]:
    """Look at all streams of a directory, without changing anything that counts.

    :raises OSError: when it cannot be listed
    """
    found = []
    for stream in filter(_STREAM.match, sorted(os.listdir(directory))):
        folder = os.path.join(directory, stream)
        try:
            ownership.check_folder(folder)
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError:
            found.append(Waiting(stream, folder, 'foreign', None, 0, None, ''))
            continue
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith((DATABASE, DATABASE + DAMAGED)):
                each = _look(stream, path)
                if each is not None:
                    found.append(each)
    return found


def _look(stream: str, path: str) -> Optional[Waiting]:
    import sqlite3

    try:
        ownership.check_file(path)
    except FileNotFoundError:
        return None  # delivered and removed meanwhile
    except OSError:
        return Waiting(stream, path, 'foreign', None, 0, None, '')
    if path.endswith(DAMAGED):
        return Waiting(stream, path, 'damaged', None, _size(path) or 0, None, '')
    # While we look at what is left nobody else shall take it.
    fd = spool_lock.lock(path[: -len(DATABASE)] + LOCK)
    state = 'running' if fd is None else 'left'
    try:
        # At a copy: what is running is locked; and to open what is left would tidy up
        # the signs of damage.
        with tempfile.TemporaryDirectory() as folder:
            (events, size, at), owner = _count(_snapshot(path, folder))
            return Waiting(
                stream,
                path,
                state,
                int(events),
                int(size),
                None if at is None else at / 1000.0,
                owner,
            )
    except (sqlite3.Error, OSError, MemoryError, UnicodeDecodeError, TypeError):
        size = _size(path)
        if size is None:
            return None  # delivered and removed while we looked
        return Waiting(stream, path, state, None, size, None, '')
    finally:
        if fd is not None:
            os.close(fd)


def _size(path: str) -> Optional[int]:
    try:
        return os.path.getsize(path)
    except OSError:
        return None  # it was removed meanwhile


def _count(path: str) -> Tuple[Any, str]:
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None)
    try:
        counts = connection.execute(
            'SELECT count(*), total(length(body)), min(at) FROM events WHERE NOT'
            ' EXISTS (SELECT 1 FROM done WHERE id BETWEEN first AND last)'
        ).fetchone()
        owner = connection.execute('SELECT program, pid, host FROM owner').fetchone()
        return counts, '%s[%s]@%s' % (owner or ('?', '?', '?'))
    finally:
        connection.close()


def _snapshot(path: str, folder: str) -> str:
    """Copy a database that its owner may have open.

    :raises OSError: when it changes too fast
    """
    copy = os.path.join(folder, 'copy' + DATABASE)
    for _ in range(_SNAPSHOT_TRIES):
        before = _log_head(path)
        _copy(path, copy)
        if before:
            _copy(path + '-wal', copy + '-wal')
        # The log has the last word, if it was not begun anew in between.
        if _log_head(copy) == before:
            return copy
    raise OSError('it changes too fast to be looked at')


def _copy(source: str, target: str) -> None:
    with _opened(source) as file, open(target, 'wb') as copy:
        shutil.copyfileobj(file, copy)


def _opened(path: str) -> BinaryIO:
    return os.fdopen(ownership.open_plain(path, os.O_RDONLY), 'rb')


def _log_head(path: str) -> bytes:
    try:
        with _opened(path + '-wal') as file:
            return file.read(_LOG_HEAD_BYTES)
    except FileNotFoundError:
        return b''
