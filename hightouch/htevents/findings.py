"""What was found in an event's values that JSON cannot carry, and the warning of it.

A finding is told once for each kind of value and place, and then at every tenfold of its
count: a value that comes with every event must not fill the log.
"""

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple, Union

from hightouch.htevents.forms import name_of
from hightouch.htevents.logs import log, printable

# Of one event, so many findings are looked at; those named are in one line.
MOST_FINDINGS = 100
MOST_NAMED = 10

# Kinds and places that are told apart by one client; an event's keys may all be new.
MOST_PLACES = 100

# Characters of a path, and of a type's name.
MOST_TEXT = 200

# Where a value lies: the path of what it is in, and its key or index there; a text at the
# root. Only a finding writes it out.
Path = Union[str, Tuple[Any, Union[str, int]]]

Finding = NamedTuple('Finding', [('path', Path), ('kind', type), ('what', str)])


class Findings:
    """Remembers what was told already. For one client; any thread may tell."""

    def __init__(self) -> None:
        # How often each was found, and the count at which it is told next. No lock: a
        # count that another thread overwrites is none the worse.
        self._counts: Dict[Tuple[str, str, str], Tuple[int, int]] = {}

    def tell(self, found: Sequence[Finding]) -> None:
        """Log, in one line, what was found in an event."""
        told: List[str] = []
        for (place, kind, what), (path, count) in _grouped(found).items():
            key = (place, kind, what)
            if key not in self._counts and len(self._counts) >= MOST_PLACES:
                key = ('', '', what)
            before, due = self._counts.get(key, (0, 1))
            count += before
            if count >= due:
                if len(told) == MOST_NAMED:
                    continue  # with the next event that has it
                while due <= count:
                    due *= 10
                told.append(_line(path, kind, what, count))
            self._counts[key] = (count, due)
        if told:
            log.warning('%s', '; '.join(told))


def tell(found: Sequence[Finding]) -> None:
    """Log what was found, where nothing is remembered of what was told before."""
    Findings().tell(found)


def _grouped(
    found: Sequence[Finding],
) -> Dict[Tuple[str, str, str], Tuple[str, int]]:
    groups: Dict[Tuple[str, str, str], Tuple[str, int]] = {}
    for each in found[:MOST_FINDINGS]:
        key = (_written(each.path, place=True), name_of(each.kind), each.what)
        path, count = groups.get(key, ('', 0))
        groups[key] = (path or _written(each.path), count + 1)
    return groups


def _line(path: str, kind: str, what: str, count: int) -> str:
    line = '%s: a value of type %s %s' % (path, printable(kind, MOST_TEXT), what)
    return line if count == 1 else '%s (at least %d so far)' % (line, count)


def _written(path: Path, place: bool = False) -> str:
    """Write a path, such as ``properties.items[3]``.

    :param place: the same for all values of a list
    """
    steps: List[str] = []
    while isinstance(path, tuple):
        path, step = path
        if isinstance(step, int):
            steps.append('[]' if place else '[%d]' % step)
        else:
            steps.append('.' + step[:MOST_TEXT])
    text = (path + ''.join(reversed(steps))).lstrip('.')
    return printable(text, MOST_TEXT) or 'value'
