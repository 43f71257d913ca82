"""Checks whose the files of a spool are.

Another user could add events that we would send under our write key. Another user could also
put a pipe in place of a file, and a call would hang.
"""

import os
import stat


class OwnershipError(OSError):
    """Another user made a file, or could change it."""


def check_directory(path: str) -> None:
    """Raise `OwnershipError` if another user owns a directory, or all users may change it."""
    found = os.stat(path)
    if found.st_uid not in (0, os.geteuid()):
        raise OwnershipError(
            '%s belongs to another user (uid %d); make a directory in there that is '
            'your own (mkdir -m 700), or run as that user' % (path, found.st_uid)
        )
    # In a sticky directory, such as /tmp, other users cannot touch our files.
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise OwnershipError(
            'everybody may write to %s; make a directory in there that is your own '
            '(mkdir -m 700)' % path
        )


def check_folder(path: str) -> None:
    """Raise `OwnershipError` unless this user owns a folder and no other may write to it."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OwnershipError('%s is not a folder of this user' % path)
    if found.st_mode & 0o022:
        raise OwnershipError(
            '%s may be written to by others; close it (chmod 700)' % path
        )


def check_file(path: str, found: os.stat_result) -> None:
    """Raise `OwnershipError` unless ``found`` is a plain file of this user."""
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise OwnershipError('%s is not a plain file of this user' % path)


def open_plain(path: str, flags: int) -> int:
    """Open a plain file of this user. Never waits, as it would for a pipe.

    :raises OwnershipError: when it is another kind of file, or another user's
    :raises OSError: when it cannot be opened
    """
    check_file(path, os.lstat(path))
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        check_file(path, os.fstat(fd))  # it may have been replaced
    except BaseException:
        os.close(fd)
        raise
    return fd
