"""Who owns a file of a spool, and what a fork must not meet.

A file lock (``flock``) belongs to a process as long as that lives, however it ends. One
lock inside the process is held by whoever opens, closes or takes over a file: a fork
waits for it, because a child would inherit SQLite's mutexes locked, or a file lock that
nobody there knows of.
"""

import os
import threading
from typing import Any, List, Optional, Set, Tuple

from hightouch.htevents import fork

try:
    import fcntl
except ImportError:  # not a POSIX system: see spool.check_support
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None

# Seconds that a fork waits for a call that is inside SQLite (a slow disk).
FORK_TIMEOUT = 5.0


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
        # Guards opening and closing of any segment. Taken before a segment's own lock.
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


def lock(path: str) -> Optional[int]:
    """Take the lock file at ``path``; None when somebody has it, or it is gone.

    `process.opening` has to be held until the descriptor has a segment.

    :returns: the file descriptor that holds the lock until it is closed
    """
    try:
        fd = os.open(path, os.O_RDWR | getattr(os, 'O_CLOEXEC', 0))
    except OSError:
        return None
    # Its last owner may have removed it before we got the lock.
    if try_lock(fd) and same_file(os.fstat(fd), path):
        return fd
    os.close(fd)
    return None


def try_lock(fd: int, shared: bool = False) -> bool:
    """Lock an open file at once; False when somebody has it, or there are no locks."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except OSError:
        return False


def same_file(status: os.stat_result, path: str) -> bool:
    return (status.st_dev, status.st_ino) == _inode(path)


def is_inherited(path: str) -> bool:
    """Whether a parent of this process had the database at ``path`` open at a fork."""
    return bool(process.inodes) and _inode(path) in process.inodes


def _inode(path: str) -> Optional[Tuple[int, int]]:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
