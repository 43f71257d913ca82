"""Warns of values that JSON cannot carry, without filling the log.

The same value may come with every event. Each finding, told apart by the type of the value
and its place, is logged once, and again when its count reaches 10, 100 and so on.
"""

from typing import Any, Dict, List, NamedTuple, Sequence, Tuple, Union

from hightouch.htevents._process.logs import log, printable
from hightouch.htevents.errors import name_of

# Findings of one event that are counted, and findings that its log line names.
MOST_FINDINGS = 100
MOST_NAMED = 10

# Findings that one client tells apart. Without a limit, events with new keys would fill the
# memory.
MOST_PLACES = 100

# Characters of a path, and of the name of a type.
MOST_TEXT = 200

# The path of a value: the path of its container, and its key or index. The root is a str.
# Only a finding pays for the formatting.
Path = Union[str, Tuple[Any, Union[str, int]]]

Finding = NamedTuple('Finding', [('path', Path), ('kind', type), ('what', str)])


class Findings:
    """Counts the findings of one client. Thread-safe."""

    __slots__ = ('_counts',)

    def __init__(self) -> None:
        # The count of each finding, and the count at which it is logged next. No lock: a
        # race between two threads only makes a count slightly wrong.
        self._counts: Dict[Tuple[str, str, str], Tuple[int, int]] = {}

    def log(self, found: Sequence[Finding]) -> None:
        """Log the findings of an event in one line."""
        groups: Dict[Tuple[str, str, str], List[Path]] = {}
        for each in found:
            key = (_written(each.path, place=True), name_of(each.kind), each.what)
            groups.setdefault(key, []).append(each.path)
        lines: List[str] = []
        for key, paths in groups.items():
            _, kind, what = key
            if key not in self._counts and len(self._counts) >= MOST_PLACES:
                key = ('', '', what)
            before, due = self._counts.get(key, (0, 1))
            count = before + len(paths)
            if count >= due:
                if len(lines) == MOST_NAMED:
                    continue  # the next event with this finding names it
                while due <= count:
                    due *= 10
                lines.append(_line(paths[0], kind, what, count))
            self._counts[key] = (count, due)
        if lines:
            log.warning('%s', '; '.join(lines))


def _line(path: Path, kind: str, what: str, count: int) -> str:
    shown = (_written(path), printable(kind, MOST_TEXT), what)
    line = '%s: a value of type %s %s' % shown
    return line if count == 1 else '%s (at least %d so far)' % (line, count)


def _written(path: Path, place: bool = False) -> str:
    """Return a path as text, such as ``properties.items[3]``.

    :param place: leave the indexes out: all values of a list have one place
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
