"""What waits in a spool, for people: looks at all streams, and changes nothing."""

import os
from contextlib import closing
from typing import Iterator, List, NamedTuple, Optional

from hightouch.htevents._spool.directory import (
    DAMAGED,
    LOG_NAME,
    STREAM,
    lock,
    open_log,
)
from hightouch.htevents._spool.log import CHUNK, HEADER, Event
from hightouch.htevents._spool.ownership import check_file, check_folder


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
        if not name.endswith(('.log', DAMAGED)):
            continue
        try:
            found = os.lstat(path)
            check_file(path, found)
        except FileNotFoundError:
            continue
        except OSError:
            yield Waiting(stream, path, 'foreign')
            continue
        if name.endswith(DAMAGED):
            yield Waiting(stream, path, 'damaged', None, found.st_size)
        elif LOG_NAME.match(name):
            yield from _look_at_log(stream, path, found.st_size)


def _look_at_log(stream: str, path: str, size: int) -> Iterator[Waiting]:
    state = 'left'
    try:
        with closing(open_log(path)) as log:
            # No process takes over the log while we have it locked.
            state = 'left' if lock(log) else 'running'
            if log.is_gone():
                return  # delivered and removed since it was listed
            first_line = os.pread(log.fd, 1000, 0).partition(b'\n')[0]
            events: List[Event] = []
            while not log.has_ended:
                found = log.next_piece(CHUNK)
                events += found.events
                log.commit(found)
    except FileNotFoundError:
        return
    except OSError:
        yield Waiting(stream, path, state, None, size)
        return
    size = sum(len(each.body) for each in events)
    oldest = min((each.milliseconds / 1000.0 for each in events), default=None)
    maker = first_line[len(HEADER) :].decode('utf-8', 'replace').strip()
    yield Waiting(stream, path, state, len(events), size, oldest, maker or '?[?]@?')
