"""The directory of a spool: who may write where, and what dead processes left.

::

    DIR/<stream>/<owner>.lock         locked by its owner, as long as that lives
    DIR/<stream>/<owner>.<n>.log      its events: see ``log``
    DIR/<stream>/<...>.log.damaged    set aside: not read again

A stream is the events of one write key. Its folder is named by a hash of the key, so the key
is not on the disk, and events never meet those of another key. An owner is a client in a
process. The kernel drops its file lock (``flock``) with the process, however that ends: neither
a process id that is used again nor another container on the same volume can mistake a living
owner for a dead one. The process that gets the lock of a dead owner inherits its logs.
"""

import hashlib
import os
import re
import socket
import sys
import uuid
from typing import Any, Dict, Iterator, List, Optional, Set

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._queue.stores import Counter
from hightouch.htevents._spool.log import HEADER, Log, Writer
from hightouch.htevents._spool.ownership import (
    OwnershipError,
    check_directory,
    check_file,
    check_folder,
    open_plain,
)
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.version import VERSION

try:
    import fcntl
except ImportError:  # not a POSIX system: see check_support
    fcntl = None  # type: ignore[assignment]

LOCK, NEW, LOG, DAMAGED = '.lock', '.new', '.log', '.damaged'

# The names of a stream's folder and of a log.
STREAM = re.compile(r'[0-9a-f]{32}\Z')
LOG_NAME = re.compile(r'([0-9a-f]{32})\.(\d+)\.log\Z')

# Lock files that are made until one is ours: another process may tidy a new one away just
# before we have locked it.
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
    """Take the lock file at ``path``; None when somebody has it, or it is gone.

    :returns: the file descriptor that holds the lock until it is closed
    :raises OSError: when files cannot be locked, or it is not a plain file of ours
    """
    try:
        fd = open_plain(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        # Its last owner may have removed it before we got the lock.
        if _try_lock(fd) and _is_at(fd, path):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError as error:
        raise_interruption(error)
        return False


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
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
        # Whether its lock is released when no call writes any more.
        self.is_leaving = False
        self._fds = [fd]  # popped by the one that closes it

    def is_gone(self) -> bool:
        """Whether its lock file was deleted, so that others would take it for dead."""
        return os.fstat(self._fds[0]).st_nlink == 0

    def release(self, is_empty: bool) -> None:
        """Let go of the lock; remove the file if no log is left."""
        try:
            fd = self._fds.pop()
        except IndexError:
            return  # it was released
        if is_empty:
            _unlink(self.path + LOCK)
        for log in list(self.logs):
            log.close()
        os.close(fd)

    def leave(self) -> None:
        """Let go of the lock as soon as no call writes: nobody may take the logs before."""
        self.is_leaving = True
        if all(log.writer() is None for log in list(self.logs)):
            self.release(is_empty=not self.logs)

    def forget(self) -> None:
        """Close all descriptors, as a forked child has to: the lock is its parent's."""
        for log in list(self.logs):
            writer = log.writer()
            if writer is not None:
                writer.close()
        self.release(is_empty=False)

    def descriptors(self) -> Iterator[int]:
        yield from list(self._fds)
        for log in list(self.logs):
            yield from log.descriptors()


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
        # Paths that are not looked at again, and those that could not be read yet.
        self._left_alone: Set[str] = set()
        self._unreadable: Set[str] = set()
        # Texts to be logged, in order: here a caller may hold a lock.
        self.said: List[str] = []
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
            self._check_locks()
        except OSError as error:
            raise_interruption(error)
            raise ValidationError(
                'spool_dir: expected a directory that this process may write to, got '
                '%r: %s' % (self.directory, error.strerror or error)
            )

    def _check_locks(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            raise_interruption(error)
            raise OSError('files cannot be locked there')
        finally:
            os.close(fd)

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

    def close_others(self, known: Set[int]) -> None:
        """Close, in a forked child, files that another thread was opening at that moment.

        :param known: descriptors that are closed by their owners
        """
        try:
            for name in os.listdir('/proc/self/fd'):
                if int(name) not in known and self._is_inside('/proc/self/fd/' + name):
                    # Not closed: a call that a signal handler forked inside of may
                    # still use the number.
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

    def say(self, text: str, *args: Any) -> None:
        self.said.append(text % args)

    # -- making ----------------------------------------------------------------------

    def make_owner(self) -> Owner:
        """Make an owner for this client and process.

        :raises OSError: when the file system does not allow it
        """
        self._make_folder()
        for _ in range(_TRIES):
            path = os.path.join(self.folder, uuid.uuid4().hex)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(path + NEW, flags, 0o600)
            try:
                os.write(fd, _self().encode('utf-8', 'replace'))
                if _try_lock(fd) and _is_at(fd, path + NEW):
                    # Seen by others from here on.
                    os.rename(path + NEW, path + LOCK)
                    return Owner(path, fd, adopted=False)
                os.close(fd)  # a cleaner was faster than our lock: make another
            except FileNotFoundError:
                os.close(fd)
            except BaseException:
                os.close(fd)
                _unlink(path + NEW)
                raise
        raise OSError('what is made there is taken away')

    def make_log(self, owner: Owner, number: int, total: Counter) -> Writer:
        """Make a log; return the writer that appends to it.

        :param total: counts the events of all logs
        :raises OSError: when the file system does not allow it
        """
        self._make_folder()
        log = Log('%s.%d%s' % (owner.path, number, LOG), owner, total)
        writer = log.create(self._fsync)
        self._sync(self.folder)
        owner.logs.append(log)
        return writer

    # -- what dead processes left ----------------------------------------------------

    def has_orphans(self) -> bool:
        """Whether a dead process left something to read; cheap: no log is read."""
        for path in self._owners():
            fd = None if path in self._unreadable else self._lock(path)
            if fd is not None:
                os.close(fd)
                return True
        return False

    def adopt(self, most: int) -> List[Owner]:
        """Take over, for this process alone, what dead ones left. Raises nothing.

        :param most: owners to take over; the others wait, or are another process's
        """
        adopted: List[Owner] = []
        for path, logs in self._owners().items():
            if len(adopted) >= most:
                break
            fd = self._lock(path)
            if fd is None:
                continue
            owner = Owner(path, fd, adopted=True)
            # Listed again, under the lock: its last owner may have finished some.
            names = [each for each in logs if os.path.exists(each)]
            readable = [each for each in names if self._is_readable(each)]
            owner.logs.extend(Log(each, owner, Counter()) for each in readable)
            if owner.logs:
                adopted.append(owner)
                self._unreadable.discard(path)
            else:
                self._unreadable.add(path)
                owner.release(is_empty=not names)
        return adopted

    def _lock(self, path: str) -> Optional[int]:
        try:
            check_file(path + LOCK)
            return lock(path + LOCK)
        except OwnershipError as error:
            self.leave_alone(path, '%s: %s' % (path + LOCK, error))
        except OSError as error:
            raise_interruption(error)  # otherwise gone, or it may pass
        return None

    def _owners(self) -> Dict[str, List[str]]:
        """List the logs of each owner, by its path; oldest owners first. Tidies up."""
        try:
            check_directory(self.directory)
            check_folder(self.folder)
            names = sorted(os.listdir(self.folder))
        except OSError as error:
            raise_interruption(error)
            if isinstance(error, OwnershipError):
                self.leave_alone(self.folder, str(error))
            return {}
        logs: Dict[str, List[str]] = {}
        with_lock = set()
        for name in names:
            path = os.path.join(self.folder, name)
            stem, suffix = os.path.splitext(path)
            if suffix == LOCK:
                with_lock.add(stem)
                logs.setdefault(stem, [])
            elif suffix == NEW:
                self._tidy(path)
            elif LOG_NAME.match(name):
                logs.setdefault(os.path.splitext(stem)[0], []).append(path)
        for owner in list(logs):
            logs[owner].sort(key=_number)
            if owner in self._left_alone or not (
                owner in with_lock or self._make_lock(owner)
            ):
                del logs[owner]
        return dict(sorted(logs.items(), key=lambda each: _modified(each[0] + LOCK)))

    def _make_lock(self, owner: str) -> bool:
        """Make the lock file of an owner again, because somebody has deleted it."""
        try:
            os.close(os.open(owner + LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise_interruption(error)
            return False
        return True

    def _tidy(self, path: str) -> None:
        """Remove a new lock file whose process died before it was complete."""
        try:
            check_file(path)
            fd = lock(path)
        except OSError as error:
            raise_interruption(error)
            return
        if fd is not None:
            _unlink(path)
            os.close(fd)

    def _is_readable(self, path: str) -> bool:
        """Whether a log can be read now, and by this version."""
        try:
            check_file(path)
            fd = open_plain(path, os.O_RDWR)
            try:
                head = os.pread(fd, len(HEADER) + 1, 0)
            finally:
                os.close(fd)
        except OwnershipError as error:
            self.leave_alone(path, str(error))
            return False
        except OSError as error:
            raise_interruption(error)
            if path not in self._unreadable:
                self._unreadable.add(path)
                self.say('Cannot be read now: %s: %s', path, error)
            return False
        is_other = head.startswith(HEADER[:-1]) and head.rstrip(b'\n') != HEADER
        if is_other:
            self.leave_alone(path, '%s: another version of this package made it' % path)
        return not is_other

    def leave_alone(self, path: str, problem: str) -> None:
        """Do not look at a file again: it stays where it is."""
        if path not in self._left_alone:
            self._left_alone.add(path)
            self.say('Left alone: %s', problem)

    # -- the end of a log ------------------------------------------------------------

    def remove(self, log: Log) -> None:
        """Remove a log that is finished; set it aside if it is damaged."""
        log.close()
        if not log.damaged:
            if not _unlink(log.path):
                self.leave_alone(
                    log.path, '%s: delivered, but it cannot be removed' % log.path
                )
            return
        path = log.path + DAMAGED
        try:
            os.rename(log.path, path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise_interruption(error)
            path = log.path
            self._left_alone.add(path)
        self.say(
            'A spool file was damaged: %d record(s) of it cannot be read. The others are '
            'sent; the file is set aside as %s',
            log.damaged,
            path,
        )


def _number(path: str) -> int:
    found = LOG_NAME.match(os.path.basename(path))
    return int(found.group(2)) if found else 0


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError as error:
        raise_interruption(error)
        return 0


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
