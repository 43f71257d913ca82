"""Who owns a file of a spool, and what a fork must not meet.

A file lock (``flock``) belongs to a process as long as that lives, however it ends. One
lock inside the process, `process.opening`, is held by whoever opens, closes or takes
over a file: a fork waits for it, because a child would inherit SQLite's mutexes locked,
or a file lock that nobody there knows of.

A signal handler or a finalizer may come while any lock is held, and use the library. So
the order of two locks helps nobody. The rule is: whoever holds one waits for another
only for a moment (see `both`), and neither logs nor calls back: a log handler may track.
"""

import os
import threading
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Set, Tuple

from hightouch.htevents import fork
from hightouch.htevents.concurrency import Deadline
from hightouch.htevents.interruption import raise_interruption
from hightouch.htevents.ownership import open_plain

try:
    import fcntl
except ImportError:  # not a POSIX system: see spool.check_support
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None

# Seconds that a fork waits for a call that is inside SQLite (a slow disk).
FORK_TIMEOUT = 5.0

# Seconds for which one lock may be waited for while another is held.
_MOMENT = 0.01

# Seconds to wait for a segment that another thread is writing to. That takes some
# microseconds, unless a signal handler has interrupted it, which may take for ever.
PATIENCE = 0.05


class _Process:
    """All segments that this process has open, and the databases that it inherited."""

    def __init__(self) -> None:
        # Changed by set.add and set.discard only, which are atomic.
        self.segments: Set[Any] = set()
        # Connections of the parent: kept, so that they are not closed here.
        self._inherited: List[Any] = []
        # Their files, by device and inode. SQLite in this process takes their locks for
        # held, and must not open them again.
        self.inodes: Set[Tuple[int, int]] = set()
        self._make_locks()
        fork.register(self)

    def _make_locks(self) -> None:
        # Guards opening and closing of any segment, and which one a queue writes to.
        # Re-entrant: a signal handler or finalizer may come in between.
        self.opening = threading.RLock()
        self._forking = threading.local()

    def _held(self) -> List[List[Any]]:
        # What each fork of this thread holds: a signal handler may fork inside a fork.
        held: List[List[Any]] = self._forking.__dict__.setdefault('held', [])
        return held

    def before_fork(self) -> None:
        held: List[Any] = []
        self._held().append(held)
        # A lock that this very thread holds (a signal handler forks) is no obstacle:
        # the call below it is not inside SQLite now.
        if self.opening.acquire(timeout=FORK_TIMEOUT):
            held.append(self.opening)
        for each in [segment.lock for segment in list(self.segments)]:
            if each.acquire(timeout=FORK_TIMEOUT):
                held.append(each)

    def after_fork_in_parent(self) -> None:
        for each in self._held().pop():
            each.release()

    def _after_fork(self) -> None:
        segments, self.segments = self.segments, set()
        self._make_locks()
        for segment in segments:
            self._inherited.append(segment.forget())
            inode = _inode(segment.database)
            if inode is not None:
                self.inodes.add(inode)


process = _Process()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(
        before=process.before_fork, after_in_parent=process.after_fork_in_parent
    )


@contextmanager
def both(segment_lock: Any, patience: float) -> Iterator[bool]:
    """Hold `process.opening` and a segment's lock; gives False if that took too long.

    :param patience: seconds
    """
    opening, deadline = process.opening, Deadline(patience)
    held = False
    while True:
        if opening.acquire(timeout=max(deadline.remaining() or 0, 0)):
            held = segment_lock.acquire(timeout=min(patience, _MOMENT))
            if held:
                break
            opening.release()  # whoever has the other one may be waiting for this one
        if deadline.over:
            break
    try:
        yield held
    finally:
        if held:
            segment_lock.release()
            opening.release()


def lock(path: str) -> Optional[int]:
    """Take the lock file at ``path``; None when somebody has it, or it is gone.

    `process.opening` has to be held until the descriptor has a segment.

    :returns: the file descriptor that holds the lock until it is closed
    """
    try:
        fd = open_plain(path, os.O_RDWR)
    except OSError as error:
        raise_interruption(error)
        return None
    try:
        # Its last owner may have removed it before we got the lock.
        if try_lock(fd) and same_file(os.fstat(fd), path):
            return fd
    except OSError as error:
        raise_interruption(error)  # else there are no locks just now
    os.close(fd)
    return None


def try_lock(fd: int, shared: bool = False) -> bool:
    """Lock an open file at once; False when somebody has it.

    :raises OSError: when there are no locks: a file system may run out of them
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except BlockingIOError as error:
        raise_interruption(error)
        return False


def same_file(status: os.stat_result, path: str) -> bool:
    return (status.st_dev, status.st_ino) == _inode(path)


def is_inherited(path: str) -> bool:
    """Whether a parent of this process had the database at ``path`` open at a fork."""
    return bool(process.inodes) and _inode(path) in process.inodes


def _inode(path: str) -> Optional[Tuple[int, int]]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise_interruption(error)
        return None
    return status.st_dev, status.st_ino
