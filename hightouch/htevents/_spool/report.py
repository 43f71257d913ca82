"""What waits in a spool, for people: looks at all streams, and changes nothing."""

import os
from typing import Iterator, List, NamedTuple, Optional

from hightouch.htevents._spool.directory import DAMAGED, LOG_NAME, STREAM, lock
from hightouch.htevents._spool.log import HEADER, Event, is_resolved, read_all
from hightouch.htevents._spool.ownership import check_file, check_folder, open_plain


class Waiting(NamedTuple):
    """A log, or a file that is not read.

    :ivar stream: the folder's name
    :ivar path: of the file
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
    for name in names:
        path = os.path.join(folder, name)
        size = _size(path)
        if name.endswith(('.log', DAMAGED)) and size is None:
            yield Waiting(stream, path, 'foreign')
        elif name.endswith(DAMAGED):
            yield Waiting(stream, path, 'damaged', None, size or 0)
        elif LOG_NAME.match(name):
            yield from _look_at_log(stream, path)


def _look_at_log(stream: str, path: str) -> Iterator[Waiting]:
    state, fd = 'left', None
    try:
        fd = lock(path)  # no process takes over the log while we have it locked
        state = 'running' if fd is None else 'left'
        events = _events(path)
        size = sum(len(each.body) for each in events)
        oldest = min((each.milliseconds / 1000.0 for each in events), default=None)
        yield Waiting(stream, path, state, len(events), size, oldest, _maker(path))
    except FileNotFoundError:
        pass  # delivered and removed since it was listed
    except OSError:
        yield Waiting(stream, path, state, None, _size(path) or 0)
    finally:
        if fd is not None:
            os.close(fd)


def _maker(path: str) -> str:
    """Return the text behind the name of the format in the first line."""
    with open(path, 'rb') as file:
        line = file.readline(1000)
    return line[len(HEADER) :].decode('utf-8', 'replace').strip() or '?[?]@?'


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
