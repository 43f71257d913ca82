"""Converts values to the types of JSON, and guesses missing time zones."""

import math
from datetime import date, datetime, timezone
from sys import getsizeof
from typing import Any, Iterable, List, Optional, Set, Sized

from hightouch.htevents import forms
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.waiting import Deadline
from hightouch.htevents.findings import MOST_FINDINGS, Finding, Findings, Path
from hightouch.htevents.forms import NotSendable

# Levels of dicts and lists in a message. Deeper containers become null, because a JSON
# parser may be recursive. A value of the application may use 100; the others are for the
# dicts around it, such as the properties and the message.
MAX_DEPTH = 104

# Seconds of difference from the local time up to which a naive datetime counts as local.
LOCAL_TOLERANCE = 5

# Limits for reading all iterators and views in one dict of the application: bytes of memory
# (an event of 32 KiB needs less), and seconds. The first FREE_ELEMENTS of a sized collection
# may take longer.
MAX_MEMORY = 4 << 20
MAX_SECONDS = 1
FREE_ELEMENTS = 100


def is_naive(dt: datetime) -> bool:
    """Whether a datetime has no offset from UTC."""
    return dt.tzinfo is None or dt.tzinfo.utcoffset(dt) is None


def guess_timezone(dt: datetime) -> datetime:
    """Return a naive datetime with its probable time zone; an aware one unchanged.

    A datetime within 5 seconds of the local time is local, from ``datetime.now()``. Any
    other one is UTC.
    """
    if not is_naive(dt):
        return dt
    dt = dt.replace(tzinfo=None)  # its tzinfo may know no offset
    if abs((datetime.now() - dt).total_seconds()) < LOCAL_TOLERANCE:
        try:
            return dt.astimezone()
        except (OverflowError, OSError, ValueError):
            pass  # out of the platform's range, so it is far from the local time
    return dt.replace(tzinfo=timezone.utc)


def remove_trailing_slash(host: str) -> str:
    """Return a URL without slashes at its end."""
    return host.rstrip('/')


def clean(item: Any, path: str = '', depth: int = 0) -> Any:
    """Return a copy of a value with only the types of JSON, and dates. Never raises.

    Values of other types become null or their ``str()``. One warning names their paths and
    types, but no values. The original is not changed, but its iterators are read.

    :param path: path of the value in the message, for warnings
    :param depth: level of the value in the message
    """
    found: List[Finding] = []
    cleaned = Cleaner(found).clean(item, path, depth)
    Findings().log(found)
    return cleaned


class Cleaner:
    """Converts the values in one dict of the application.

    :param found: list that collects the findings
    :param dates_as_text: False keeps dates and datetimes, as `clean` does
    """

    def __init__(self, found: List[Finding], dates_as_text: bool = False) -> None:
        self._found = found
        self._dates_as_text = dates_as_text
        self._open: Set[int] = set()  # ids of the containers around the current value
        self._containers = 0  # number of containers seen so far
        self._room = MAX_MEMORY
        self._seconds: float = MAX_SECONDS

    def clean(self, item: Any, path: Path, depth: int) -> Any:
        """Return a plain copy of a value, like the function ``clean``."""
        kind = type(item)
        if item is None or kind is bool:
            return item
        if (kind is datetime or kind is date) and not self._dates_as_text:
            return item
        if kind is str:
            return _text(item)
        if kind is float:
            return item if math.isfinite(item) else None
        if kind is int and -(1 << 64) < item < 1 << 64:
            return item
        try:
            return self._converted(item, path, depth)
        except NotSendable as error:
            self._note(item, path, '%s; it is sent as null' % error)
        except RecursionError:
            self._note(item, path, 'is nested too deeply; it is sent as null')
        except Exception as error:
            raise_interruption(error)
            # A method of the value raised, such as __str__, __iter__ or a property.
            self._note(item, path, 'raised an error; it is sent as null')
        return None

    def _converted(self, item: Any, path: Path, depth: int) -> Any:
        item = forms.unproxied(item)
        form = forms.form(item, self._taken, lambda what: self._note(item, path, what))
        kind = type(form)
        if kind is int:
            return form
        if issubclass(kind, date):
            return _text(str(form.isoformat())) if self._dates_as_text else form
        if kind is not list and kind is not dict:
            return self.clean(form, path, depth)
        if depth >= MAX_DEPTH:
            raise NotSendable('is nested over %d levels' % MAX_DEPTH)
        if id(item) in self._open:
            raise NotSendable('contains itself')
        self._containers += 1
        if self._containers > forms.MAX_ELEMENTS:
            raise NotSendable(forms.TOO_LONG)
        self._open.add(id(item))
        try:
            # Inline, because a method would take another stack frame for each level.
            if kind is list:
                elements = []
                for index, value in enumerate(form):
                    elements.append(self.clean(value, (path, index), depth + 1))
                return elements
            pairs = {}
            for key, value in form.items():
                name = self._key(key, path)
                if name is not None:
                    pairs[name] = self.clean(value, (path, name), depth + 1)
            return pairs
        finally:
            self._open.discard(id(item))

    def _taken(self, elements: Iterable[Any]) -> List[Any]:
        """Return the elements of an iterable that may be endless or slow."""
        sized = isinstance(elements, Sized)
        if sized and len(elements) > forms.MAX_ELEMENTS:  # type: ignore[arg-type]
            raise NotSendable(forms.TOO_LONG)
        read: List[Any] = []
        room = self._room
        deadline = Deadline(self._seconds)
        try:
            for each in elements:
                read.append(each)
                room -= getsizeof(each)
                if room < 0:
                    raise NotSendable(forms.TOO_LONG)
                # After a slow iterator has used up the time, short views still pass.
                if not deadline.leaves(0) and not (sized and len(read) < FREE_ELEMENTS):
                    raise NotSendable('takes too long to read')
        finally:
            self._seconds = deadline.remaining() or 0
        self._room = room
        return read

    def _key(self, key: Any, path: Path) -> Optional[str]:
        try:
            return _text(forms.key_text(key))
        except Exception as error:
            raise_interruption(error)
            self._note(key, path, 'raised an error as a key; its value is left out')
            return None

    def _note(self, item: Any, path: Path, what: str) -> None:
        if len(self._found) < MOST_FINDINGS:
            self._found.append(Finding(path, type(item), what))


def _text(item: str) -> str:
    text = str.__str__(item)  # the characters of a subclass, as a plain str
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:
        # A pair of surrogates, as other languages write it, becomes its character.
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text
