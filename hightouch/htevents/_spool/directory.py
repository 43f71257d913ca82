"""The directory of a spool: who may write where, and what dead processes left.

::

    DIR/<stream>/<owner>.lock         locked by its owner, as long as that lives
    DIR/<stream>/<owner>.<n>.log      its events: see ``log``
    DIR/<stream>/<...>.log.damaged    set aside: not read again

A stream is the events of one write key. Its folder is named by a hash of the key, so the key
is not on the disk, and events never meet those of another key. An owner is a client in a
process. The kernel drops its file lock (``flock``) with the process, however that ends. A
living owner can therefore not be taken for a dead one, although a process id is used again or
another container has the same volume. The process that gets the lock of a dead owner inherits
its logs.
"""

import hashlib
import os
import re
import socket
import sys
import uuid
from time import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, TypeVar

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.logs import log as logger
from hightouch.htevents._queue.stores import Counter
from hightouch.htevents._spool.log import HEADER, Log, Writer, close_all
from hightouch.htevents._spool.ownership import (
    OwnershipError,
    check_directory,
    check_folder,
    open_plain,
)
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.version import VERSION

try:
    import fcntl
except ImportError:  # not a POSIX system: see check_support
    fcntl = None  # type: ignore[assignment]

LOCK, LOG, DAMAGED = '.lock', '.log', '.damaged'

_T = TypeVar('_T')

# The names of a stream's folder and of a log.
STREAM = re.compile(r'[0-9a-f]{32}\Z')
LOG_NAME = re.compile(r'([0-9a-f]{32})\.(\d+)\.log\Z')

# Lock files that are made until one is ours: another process may take a new one for a dead
# owner's, and remove it before we have locked it.
_TRIES = 10


def stream_name(write_key: str) -> str:
    """Name the folder of a write key: a hash, which does not lead back to it."""
    salted = b'htevents-spool:' + write_key.encode('utf-8')
    return hashlib.sha256(salted).hexdigest()[:32]


def check_support() -> None:
    """Raise `ValidationError` where a spool cannot work."""
    if fcntl is None:
        raise ValidationError(
            'spool_dir: expected a POSIX system, whose file locks end with their '
            'process; leave spool_dir out here'
        )


def lock(path: str) -> Optional[int]:
    """Take the lock file at ``path``; None when another process has it, or it is gone.

    :returns: the file descriptor that holds the lock until it is closed
    :raises OSError: when files cannot be locked, or it is not a plain file of ours
    """
    try:
        fd = open_plain(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    is_ours = False
    try:
        is_ours = _try_lock(fd, path)
    finally:
        if not is_ours:
            os.close(fd)
    return fd if is_ours else None


def _try_lock(fd: int, path: str) -> bool:
    """Lock an open file. False when another process has it, or removed it before."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_at(fd, path)
    except BlockingIOError as error:
        raise_interruption(error)
        return False


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError as error:
        raise_interruption(error)
        return False


class Owner:
    """A client in a process, living or dead: its lock and its logs.

    :ivar path: of its files, up to their suffix
    :ivar adopted: whether this process has inherited it
    :ivar logs: the logs that are not finished, oldest first. Changed by list.append and
        list.remove, which are atomic
    """

    def __init__(self, path: str, fd: int, adopted: bool) -> None:
        self.path = path
        self.adopted = adopted
        self.logs: List[Log] = []
        self._fds = [fd]

    @property
    def fd(self) -> int:
        """The descriptor that holds the lock; -1 when it was released."""
        return [*self._fds, -1][0]

    def is_gone(self) -> bool:
        """Whether its lock file was deleted: others would take it for dead."""
        return os.fstat(self.fd).st_nlink == 0

    def release(self) -> None:
        """Let go of the lock; remove the file if no log is left.

        The lock stays as long as a call writes to a log, which has a copy: see `Writer`.
        """
        # In a child that was forked inside this call the lock is its parent's.
        if not self.logs and _is_at(self.fd, self.path + LOCK):
            _unlink(self.path + LOCK)
        self.close()

    def close(self) -> None:
        """Close all files but those that calls write to."""
        for log in list(self.logs):
            log.close()
        close_all(self._fds)

    def forget(self) -> None:
        """Close all files, as a forked child has to: the lock is its parent's."""
        for log in list(self.logs):
            writer = log.writer()
            if writer is not None:
                writer.close()
        self.close()


def logs_of(owners: List[Owner]) -> Iterator[Log]:
    """Yield the logs that are not finished, oldest first. Any thread may call this."""
    for owner in list(owners):
        yield from list(owner.logs)


class Directory:
    """The stream of one write key in a directory. Safe to use from several threads.

    :param directory: exists, and this process may write there
    :param fsync: whether an event reaches the disk itself before a call returns
    :raises ValidationError: when it cannot work
    """

    def __init__(self, directory: str, write_key: str, fsync: bool) -> None:
        check_support()
        self.directory = os.path.abspath(directory)
        self.folder = os.path.join(self.directory, stream_name(write_key))
        self._fsync = fsync
        self._said: List[str] = []
        # Paths that something was said of. They are not taken over.
        self._told: Set[str] = set()
        self._check()

    def _check(self) -> None:
        if not os.path.isdir(self.directory):
            raise ValidationError(
                'spool_dir: expected an existing directory, got %r, which is none; '
                'create it (mkdir -m 700)' % self.directory
            )
        try:
            self._make_folder()
            if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
                raise OSError('no right to write there')
            fd = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # whether files can be
            finally:
                os.close(fd)
        except OSError as error:
            raise_interruption(error)
            raise ValidationError(
                'spool_dir: expected a directory that this process may write to, got '
                '%r: %s' % (self.directory, error.strerror or error)
            )

    def _make_folder(self) -> None:
        """Make what is missing, and check whose it is."""
        for path, check in (
            (self.directory, check_directory),
            (self.folder, check_folder),
        ):
            try:
                os.mkdir(path, 0o700)
                self._sync(os.path.dirname(path))
            except FileExistsError:
                pass
            check(path)

    def _sync(self, folder: str) -> None:
        """Let the names of new files reach the disk."""
        if self._fsync:
            fd = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def tell(self, path: str, text: str, *args: Any) -> None:
        """Say something of a path, once. It is logged later: a caller may hold a lock."""
        if path not in self._told:
            self._told.add(path)
            self._said.append(text % args)

    def log(self) -> None:
        """Log what was said. No lock may be held: a log handler may track."""
        while self._said:
            try:
                logger.error('%s', self._said.pop(0))
            except IndexError:
                return  # another thread was faster

    # -- making ----------------------------------------------------------------------

    def make_owner(self) -> Owner:
        """Make an owner for this client and process.

        :raises OSError: when the file system does not allow it
        """
        self._make_folder()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for _ in range(_TRIES):
            # In the order of their age.
            name = '%012x%s' % (int(time() * 1000), uuid.uuid4().hex[12:])
            path = os.path.join(self.folder, name)
            fd = os.open(path + LOCK, flags, 0o600)
            owner = Owner(path, fd, adopted=False)
            try:
                if _try_lock(fd, path + LOCK):
                    os.write(fd, _self().encode('utf-8', 'replace'))
                    return owner
            except BaseException:
                owner.release()
                raise
            owner.release()
        raise OSError('files that are made there are taken away')

    def make_log(self, owner: Owner, number: int, total: Counter) -> Writer:
        """Make a log; return the writer that appends to it.

        :param total: counts the events of all logs
        :raises OSError: when the file system does not allow it
        """
        self._make_folder()
        log = Log('%s.%06d%s' % (owner.path, number, LOG), owner, total)
        writer = log.create(self._fsync)
        self._sync(self.folder)
        owner.logs.append(log)
        return writer

    # -- what dead processes left ----------------------------------------------------

    def adopt(self, most: int) -> List[Owner]:
        """Take over, for this process alone, the logs of dead owners. Raises nothing.

        :param most: owners to take over; the others wait, or are another process's
        """
        adopted: List[Owner] = []
        for path, logs in self._owners().items():
            more = len(adopted) < most and path not in self._told
            fd = self._attempt(path, lambda path: lock(path + LOCK)) if more else None
            if fd is None:
                continue
            owner = Owner(path, fd, adopted=True)
            for each in logs:
                self._attempt(each, _check_log)
            readable = [each for each in logs if each not in self._told]
            owner.logs.extend(Log(each, owner, Counter()) for each in readable)
            if readable:
                adopted.append(owner)
            elif logs:
                self._told.add(path)  # nothing of it can be read
                owner.close()
            else:
                owner.release()
        return adopted

    def _attempt(self, path: str, function: Callable[[str], _T]) -> Optional[_T]:
        """Call a function with a path; None after an error, which may pass.

        A path that is not ours is told, and left alone from then on.
        """
        try:
            return function(path)
        except OwnershipError as error:
            self.tell(path, 'Left alone: %s', error)
        except OSError as error:
            raise_interruption(error)
        return None

    def _owners(self) -> Dict[str, List[str]]:
        """List the logs of each owner by its path, all oldest first."""
        names = self._attempt(self.folder, self._list) or []
        owners: Dict[str, List[str]] = {}
        for name in sorted(names):
            path = os.path.join(self.folder, name)
            if name.endswith(LOCK):
                owners.setdefault(path[: -len(LOCK)], [])
            elif LOG_NAME.match(name):
                owners.setdefault(path.rsplit('.', 2)[0], []).append(path)
        for owner in owners:
            if os.path.basename(owner) + LOCK not in names:
                self._attempt(owner, _make_lock)  # somebody has deleted it
        return owners

    def _list(self, folder: str) -> List[str]:
        check_directory(self.directory)
        check_folder(folder)
        return os.listdir(folder)

    # -- the end of a log ------------------------------------------------------------

    def remove(self, log: Log) -> None:
        """Remove a log that is finished; set it aside if it is damaged."""
        log.close()
        if not log.damaged:
            if not _unlink(log.path):
                self.tell(log.path, '%s is delivered, and cannot be removed', log.path)
            return
        path = log.path + DAMAGED
        try:
            os.rename(log.path, path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise_interruption(error)
            path = log.path
        self.tell(
            path,
            'A spool file was damaged: %d record(s) of it cannot be read. The others are '
            'sent; the file is set aside as %s',
            log.damaged,
            path,
        )

    # -- a fork ----------------------------------------------------------------------

    def close_others(self) -> None:
        """Close, in a forked child, files that another thread was opening at that moment."""
        try:
            for name in os.listdir('/proc/self/fd'):
                if self._is_inside('/proc/self/fd/' + name):
                    # Not closed: an interrupted call may still use the number.
                    null = os.open(os.devnull, os.O_RDONLY)
                    os.dup2(null, int(name), inheritable=False)
                    os.close(null)
        except OSError:
            pass  # not Linux: its parent's lock may stay locked as long as it lives

    def _is_inside(self, link: str) -> bool:
        try:
            return os.readlink(link).startswith(self.folder + os.sep)
        except OSError:
            return False  # of the listing itself, which is closed again


def _make_lock(owner: str) -> None:
    os.close(os.open(owner + LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _check_log(path: str) -> None:
    """Raise `OwnershipError` unless a log is ours, and of this version."""
    fd = open_plain(path, os.O_RDONLY)
    try:
        head = os.pread(fd, len(HEADER) + 1, 0)
    finally:
        os.close(fd)
    if head.startswith(HEADER[:-1]) and head.rstrip(b'\n') != HEADER:
        raise OwnershipError('another version of this package made %s' % path)


def _unlink(path: str) -> bool:
    """Remove a file; False when it is still there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise_interruption(error)
        return False
    return True


def _self() -> str:
    """Name this process, for `report`."""
    program = os.path.basename(sys.argv[0] if getattr(sys, 'argv', 0) else '')
    return '%s[%d]@%s %s\n' % (program, os.getpid(), socket.gethostname(), VERSION)
