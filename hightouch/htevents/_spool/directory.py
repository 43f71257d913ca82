"""The directory of a spool: its folders and files, and their locks.

::

    DIR/<stream>/<owner>.<n>.log            locked by its owner: see ``log``
    DIR/<stream>/<owner>.<n>.log.damaged    set aside: not read again

A stream is the events of one write key. Its folder is named by a hash of the key, so the key
is not on the disk, and events never meet the events of another key. An owner is a client in a
process. The kernel drops a file lock (``flock``) with its process, however that ends. A living
process can therefore not be taken for a dead one, although a process id is used again or
another container has the same volume. The process that gets the lock of a dead one takes the
log over.
"""

import hashlib
import os
import re
import socket
import sys
import uuid
from itertools import count
from time import time
from typing import Any, Iterator, List, Optional, Set

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.logs import log as logger
from hightouch.htevents._queue.stores import Counter
from hightouch.htevents._spool.log import Log, Writer
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

DAMAGED = '.damaged'

# The names of a stream's folder and of a log.
STREAM = re.compile(r'[0-9a-f]{32}\Z')
LOG_NAME = re.compile(r'([0-9a-f]{32})\.[0-9]{6,}\.log\Z')

# Files that are made until one is ours: another process may take a new one for the log of a
# dead process, and remove it before we have locked it.
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


def open_log(path: str) -> Log:
    """Open a log that another process made.

    :raises OSError: when it cannot be opened, or is not a plain file of ours
    """
    log = Log(path)
    log.open(open_plain, path, os.O_RDWR | os.O_APPEND)
    return log


def lock(log: Log) -> bool:
    """Lock an open log; False when another process has it locked, or has removed it.

    The lock is held until the log is closed.

    :raises OSError: when files cannot be locked
    """
    try:
        fcntl.flock(log.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_there(log)
    except BlockingIOError as error:
        raise_interruption(error)
        return False


def _is_there(log: Log) -> bool:
    """Whether the file that a log has open is still at its path."""
    try:
        return os.path.samestat(os.fstat(log.fd), os.stat(log.path))
    except OSError as error:
        raise_interruption(error)
        return False


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
        self.said: List[str] = []
        # The paths in these texts. They are not taken over.
        self._told: Set[str] = set()
        self._begin()
        self._check()

    def _begin(self) -> None:
        """Name this client in this process. Names are in the order of their age."""
        self._owner = '%012x%s' % (int(time() * 1000), uuid.uuid4().hex[12:])
        self._numbers = count(1)

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
                # Fails where no file can be locked.
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
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
            self.said.append(text % args)

    def log(self) -> None:
        """Log what was said. No lock may be held: a log handler may track."""
        while self.said:
            try:
                logger.error('%s', self.said.pop(0))
            except IndexError:
                return  # another thread was faster

    # -- making ----------------------------------------------------------------------

    def make_log(self, total: Counter) -> Writer:
        """Make a log for this client and process; return the writer that appends to it.

        :param total: counts the events of all logs
        :raises OSError: when the file system does not allow it
        """
        self._make_folder()
        for _ in range(_TRIES):
            name = '%s.%06d.log' % (self._owner, next(self._numbers))
            log = Log(os.path.join(self.folder, name), total)
            try:
                writer = log.create(self._fsync)
                if lock(log):
                    log.begin(_self().encode('utf-8', 'replace'))
                    self._sync(self.folder)
                    return writer
            except BaseException:
                self.discard(log)
                raise
            self.discard(log)
        raise OSError('files that are made there are taken away')

    # -- what dead processes left ----------------------------------------------------

    def adopt(self) -> Iterator[Log]:
        """Take over, for this process alone, the logs of dead ones. Raises nothing."""
        try:
            check_directory(self.directory)
            check_folder(self.folder)
            names = sorted(os.listdir(self.folder))
        except OSError as error:
            self._pass_over(self.folder, error)
            return
        living = {self._owner}
        for name in names:
            found = LOG_NAME.match(name)
            path = os.path.join(self.folder, name)
            if not found or found[1] in living or path in self._told:
                continue
            try:
                log = self._adopt(path, living)
            except OSError as error:
                self._pass_over(path, error)
                continue
            if log is not None:
                yield log

    def _adopt(self, path: str, living: Set[str]) -> Optional[Log]:
        log = open_log(path)
        try:
            if not lock(log):
                # Its owner lives, for all we know, and has its other logs locked as well.
                living.add(os.path.basename(path).partition('.')[0])
            else:
                log.check_version()
                if log.size():
                    return log
                self.discard(log)  # its process died before it had locked the log
        except BaseException:
            log.close()
            raise
        log.close()
        return None

    def _pass_over(self, path: str, error: OSError) -> None:
        """Go on after an error, which may pass. A path that is not ours is told once."""
        raise_interruption(error)
        if isinstance(error, OwnershipError):
            self.tell(path, 'Left alone: %s', error)

    # -- the end of a log ------------------------------------------------------------

    def remove(self, log: Log) -> None:
        """Remove a log that is finished, or set it aside if it is damaged."""
        path = log.path + DAMAGED
        try:
            if log.damaged:
                os.rename(log.path, path)
                self.tell(
                    path,
                    'A spool file was damaged: %d record(s) of it cannot be read. The '
                    'others are sent; the file is set aside as %s',
                    log.damaged,
                    path,
                )
            else:
                os.unlink(log.path)
        except OSError as error:
            raise_interruption(error)
            if not isinstance(error, FileNotFoundError):
                text = '%s is done (%d damaged record(s)), and cannot be removed: %s'
                self.tell(log.path, text, log.path, log.damaged, error)
        log.close()

    def discard(self, log: Log) -> None:
        """Remove a log that has no events."""
        # Another process may have made the file. In a child that was forked inside a call,
        # the file is its parent's, and closed.
        if _is_there(log):
            self.remove(log)
        # Its writer, too: an application may keep an error, and the frames in which it is.
        log.forget()

    # -- a fork ----------------------------------------------------------------------

    def close_others(self) -> None:
        """Close, in a forked child, files that another thread was opening at that moment."""
        self._begin()
        try:
            names = os.listdir('/proc/self/fd')
        except OSError:
            return  # not Linux: its parent's lock may stay locked as long as it lives
        for name in names:
            try:
                path = os.readlink('/proc/self/fd/' + name)
                if path.startswith(self.folder + os.sep):
                    # Not closed: an interrupted call may still use the number.
                    null = os.open(os.devnull, os.O_RDONLY)
                    os.dup2(null, int(name), inheritable=False)
                    os.close(null)
            except OSError:
                pass  # the descriptor of the listing, which is closed again


def _self() -> str:
    """Name this process, for `report`."""
    program = os.path.basename(sys.argv[0] if getattr(sys, 'argv', 0) else '')
    text = '%s[%d]@%s %s' % (program, os.getpid(), socket.gethostname(), VERSION)
    return ' '.join(text.split())  # on one line
