"""What waits in a spool, for people: looks at all streams, and changes nothing."""

import os
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from hightouch.htevents._spool.directory import DAMAGED, LOCK, LOG_NAME, STREAM, lock
from hightouch.htevents._spool.log import Resolved, read_all
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
    events: Optional[int]
    bytes: int
    oldest: Optional[float]
    owner: str


def waiting(directory: str) -> List[Waiting]:
    """Look at all streams of a directory.

    :raises OSError: when it cannot be listed
    """
    found: List[Waiting] = []
    for stream in filter(STREAM.match, sorted(os.listdir(directory))):
        folder = os.path.join(directory, stream)
        try:
            check_folder(folder)
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            continue  # removed since it was listed
        except OSError:
            found.append(Waiting(stream, folder, 'foreign', None, 0, None, ''))
            continue
        found.extend(_look(stream, folder, names))
    return found


def _look(stream: str, folder: str, names: List[str]) -> Iterator[Waiting]:
    owners: Dict[str, List[str]] = {}
    for name in names:
        path = os.path.join(folder, name)
        if name.endswith((LOCK, '.log', DAMAGED)) and not _is_ours(path):
            yield Waiting(stream, path, 'foreign', None, 0, None, '')
        elif name.endswith(DAMAGED):
            yield Waiting(stream, path, 'damaged', None, _size(path), None, '')
        elif LOG_NAME.match(name):
            owners.setdefault(path.rsplit('.', 2)[0], []).append(path)
    for owner, paths in owners.items():
        yield from _look_at_owner(stream, owner, paths)


def _look_at_owner(stream: str, owner: str, paths: List[str]) -> Iterator[Waiting]:
    name, state, fd = '?[?]@?', 'left', None
    try:
        # Nobody takes over what is left while we look at it.
        fd = lock(owner + LOCK)
        state = 'running' if fd is None and os.path.exists(owner + LOCK) else 'left'
        with open(owner + LOCK, encoding='utf-8', errors='replace') as file:
            name = file.readline().strip() or name
    except OSError:
        pass  # somebody has deleted it
    try:
        events, size, oldest = 0, 0, []
        for path in paths:
            try:
                bodies = _events(path)
            except FileNotFoundError:
                continue  # delivered and removed since it was listed
            except OSError:
                yield Waiting(stream, path, state, None, _size(path), None, '')
                continue
            events += len(bodies)
            size += sum(length for length, _ in bodies)
            oldest += [milliseconds for _, milliseconds in bodies]
        if events or fd is not None or state == 'running':
            at = min(oldest) / 1000.0 if oldest else None
            yield Waiting(stream, owner + LOCK, state, events, size, at, name)
    finally:
        if fd is not None:
            os.close(fd)


def _events(path: str) -> List[Tuple[int, int]]:
    """Return the length and the time of each event in a log that is not resolved."""
    fd = open_plain(path, os.O_RDONLY)
    try:
        pieces = list(read_all(fd))
    finally:
        os.close(fd)
    resolved = Resolved(bounds for piece in pieces for bounds in piece.done)
    return [
        (len(event.body), event.milliseconds)
        for piece in pieces
        for event in piece.events
        if event not in resolved
    ]


def _is_ours(path: str) -> bool:
    try:
        check_file(path)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0  # removed since it was listed
