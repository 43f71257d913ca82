"""Checks the owner and the mode of a spool's directory and files.

What another user could put there would be sent under our write key, or hang a call: a pipe
in place of a file.
"""

import os
import stat


class OwnershipError(OSError):
    """Others could have made it, or could put something in there."""


def check_directory(path: str) -> None:
    """Raise `OwnershipError` if another user owns a directory, or all may change it."""
    found = os.stat(path)
    if found.st_uid not in (0, os.geteuid()):
        raise OwnershipError(
            '%s belongs to another user (uid %d); make a directory in there that is '
            'your own (mkdir -m 700), or run as that user' % (path, found.st_uid)
        )
    # Where it is sticky, as /tmp is, others can add to it, but not touch what is ours.
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise OwnershipError(
            'everybody may write to %s; make a directory in there that is your own '
            '(mkdir -m 700)' % path
        )


def check_folder(path: str) -> None:
    """Raise `OwnershipError` unless a folder is of this user, that no other may write to."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise OwnershipError('%s is not a folder of this user' % path)
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise OwnershipError(
            '%s may be written to by others; close it (chmod 700)' % path
        )


def check_file(path: str) -> None:
    """Raise `OwnershipError` unless a file is a plain one, of this user."""
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise OwnershipError('%s is not a plain file of this user' % path)


def open_plain(path: str, flags: int) -> int:
    """Open a file that has to be a plain one: never a pipe, which would wait.

    :raises OSError: when it is none, or cannot be opened
    """
    for name in ('O_CLOEXEC', 'O_NOFOLLOW', 'O_NONBLOCK'):
        flags |= getattr(os, name, 0)
    fd = os.open(path, flags)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise OwnershipError('%s is not a plain file' % path)
