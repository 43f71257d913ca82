"""What waits in a spool, for people: looks at all streams, and changes nothing."""

import os
from typing import Dict, Iterator, List, NamedTuple, Optional

from hightouch.htevents._spool.directory import (
    DAMAGED,
    LOCK,
    LOG,
    LOG_NAME,
    STREAM,
    lock,
)
from hightouch.htevents._spool.log import Event, is_resolved, read_all
from hightouch.htevents._spool.ownership import check_file, check_folder, open_plain


class Waiting(NamedTuple):
    """What waits of one owner.

    :ivar stream: the folder's name
    :ivar path: of its lock file, or of a log that is damaged or of another user
    :ivar state: 'running' (its process lives), 'left' (its process died), 'damaged', or
        'foreign' (another user's: it is left alone, also by clients)
    :ivar events: how many; None when it cannot be read
    :ivar bytes: of their JSON
    :ivar oldest: seconds of the epoch at which the oldest was accepted; None: no event
    :ivar owner: ``program[pid]@host`` of the process that made it
    """

    stream: str
    path: str
    state: str
    events: Optional[int] = None
    bytes: int = 0
    oldest: Optional[float] = None
    owner: str = ''


def waiting(directory: str) -> List[Waiting]:
    """Look at all streams of a directory.

    :raises OSError: when it cannot be listed
    """
    found: List[Waiting] = []
    for stream in filter(STREAM.match, sorted(os.listdir(directory))):
        found.extend(_look(stream, os.path.join(directory, stream)))
    return found


def _look(stream: str, folder: str) -> Iterator[Waiting]:
    try:
        check_folder(folder)
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return  # removed since it was listed
    except OSError:
        yield Waiting(stream, folder, 'foreign')
        return
    owners: Dict[str, List[str]] = {}
    for name in names:
        path = os.path.join(folder, name)
        size = _size(path)
        if name.endswith((LOCK, LOG, DAMAGED)) and size is None:
            yield Waiting(stream, path, 'foreign')
        elif name.endswith(DAMAGED):
            yield Waiting(stream, path, 'damaged', None, size or 0)
        elif LOG_NAME.match(name):
            owners.setdefault(path.rsplit('.', 2)[0], []).append(path)
    for owner, paths in owners.items():
        yield from _look_at_owner(stream, owner, paths)


def _look_at_owner(stream: str, owner: str, paths: List[str]) -> Iterator[Waiting]:
    name, state, fd = '?[?]@?', 'left', None
    try:
        # Nobody takes over the logs while we look at them.
        fd = lock(owner + LOCK)
        state = 'running' if fd is None and os.path.exists(owner + LOCK) else 'left'
        with open(owner + LOCK, encoding='utf-8', errors='replace') as file:
            name = file.readline().strip() or name
    except OSError:
        pass  # somebody has deleted it
    events: List[Event] = []
    try:
        for path in paths:
            try:
                events += _events(path)
            except FileNotFoundError:
                continue  # delivered and removed since it was listed
            except OSError:
                yield Waiting(stream, path, state, None, _size(path) or 0)
    finally:
        if fd is not None:
            os.close(fd)
    if events or fd is not None or state == 'running':
        size = sum(len(each.body) for each in events)
        oldest = min((each.milliseconds / 1000.0 for each in events), default=None)
        yield Waiting(stream, owner + LOCK, state, len(events), size, oldest, name)


def _events(path: str) -> List[Event]:
    """Return the events in a log that are not resolved."""
    fd = open_plain(path, os.O_RDONLY)
    try:
        pieces = list(read_all(fd))
    finally:
        os.close(fd)
    done = sorted(bounds for piece in pieces for bounds in piece.done)
    events = (each for piece in pieces for each in piece.events)
    return [each for each in events if not is_resolved(each, done)]


def _size(path: str) -> Optional[int]:
    """Return the bytes of a file; None when it is not a plain file of this user."""
    try:
        found = os.lstat(path)
        check_file(path, found)
        return found.st_size
    except FileNotFoundError:
        return 0  # removed since it was listed
    except OSError:
        return None
