"""Values and dates: what JSON can carry, and which time zone was meant."""

import math
import numbers
import sys
from collections import deque
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from hightouch.htevents.interruption import raise_interruption
from hightouch.htevents.logs import log

# Levels of dicts and lists in a message; what is deeper becomes null, because a reader of
# JSON may be recursive. A value of the application may have 100; the others are for what
# is around it, such as the properties and the message.
MAX_DEPTH = 104

# Seconds around the local time within which a naive datetime is taken for local.
LOCAL_TOLERANCE = 5

# Digits that every interpreter turns into text and back (CPython's limit is 4,300).
_MAX_INT_BITS = 14000


def is_naive(dt: datetime) -> bool:
    """Say whether a datetime has no offset from UTC."""
    return dt.tzinfo is None or dt.tzinfo.utcoffset(dt) is None


def guess_timezone(dt: datetime) -> datetime:
    """Give a naive datetime the zone that was meant; leave an aware one as it is.

    Within 5 seconds of the local time it is local (a ``datetime.now()``), else UTC.
    """
    if not is_naive(dt):
        return dt
    now = datetime.now()
    if abs((now - dt.replace(tzinfo=None)).total_seconds()) < LOCAL_TOLERANCE:
        try:
            return dt.replace(tzinfo=None).astimezone()
        except (OverflowError, OSError, ValueError):
            pass  # out of the platform's range, hence not now: cannot be local
    return dt.replace(tzinfo=timezone.utc)


def remove_trailing_slash(host: str) -> str:
    """Give a URL without slashes at its end."""
    return host.rstrip('/')


def clean(item: Any, path: str = '', depth: int = 0) -> Any:
    """Copy a value into what JSON can carry; dates stay objects. Never raises.

    What cannot be carried becomes null or its ``str()``, with one warning that names
    its path and type, never its value. Does not change ``item``.

    :param path: of the item itself in the message, for warnings
    :param depth: of the item itself in the message
    """
    return _Cleaner().clean(item, path, depth)


class _Cleaner:
    def __init__(self) -> None:
        self._open: Set[int] = set()  # ids of the containers we are inside of

    def clean(self, item: Any, path: str, depth: int) -> Any:
        kind = type(item)
        if item is None or kind is bool or kind is datetime or kind is date:
            return item
        if kind is str:
            return _text(item)
        if kind is int:
            return _integer(item, path)
        if kind is float:
            return item if math.isfinite(item) else None
        try:
            return self._clean_other(item, path, depth)
        except RecursionError:
            return _lost(item, path, 'is nested too deeply; it is sent as null')
        except Exception as error:
            raise_interruption(error)
            # Its own code raised (__str__, __iter__, a property, …)
            return _lost(item, path, 'raised an error; it is sent as null')

    def _clean_other(self, item: Any, path: str, depth: int) -> Any:
        if isinstance(item, (type, ModuleType)):
            return _lost(item, path, 'is code, not data; it is sent as null')
        for types, convert in _SCALARS:
            if isinstance(item, types):
                return convert(self, item, path, depth)
        if _is_a(item, 'decimal', 'Decimal'):
            return _number(item)
        if isinstance(item, Mapping):
            return self._container(item, path, depth, self._mapping)
        if isinstance(item, (list, tuple, set, frozenset, deque)):
            return self._container(item, path, depth, self._sequence)
        fields = _fields(item)
        if fields is not None:
            # Entered as the object, not as its fields: those are new each time, and an
            # object that refers to itself would not be recognized.
            values = fields
            return self._container(
                item, path, depth, lambda *_: self._mapping(values, path, depth)
            )
        kind = type(item)  # an instance of Mock has any name
        if hasattr(kind, 'dtype') and callable(getattr(kind, 'tolist', None)):
            # numpy and what is like it; a plain value, or lists that are no deeper
            plain = item.tolist()
            if type(plain) is type(item):
                return _number(plain)  # a longdouble, which Python has no type for
            return self.clean(plain, path, depth)
        if callable(item):
            return _lost(item, path, 'is code, not data; it is sent as null')
        text = _text(str(item))
        if not (isinstance(item, numbers.Number) or _is_textual(item)):
            warn_of(item, path, 'is not JSON; its str() is sent')
        return text

    def _container(
        self, item: Any, path: str, depth: int, copy: Callable[[Any, str, int], Any]
    ) -> Any:
        if depth >= MAX_DEPTH:
            return _lost(
                item, path, 'is nested over %d levels; it is sent as null' % MAX_DEPTH
            )
        if id(item) in self._open:
            return _lost(item, path, 'contains itself; it is sent as null')
        self._open.add(id(item))
        try:
            return copy(item, path, depth)
        finally:
            self._open.discard(id(item))

    def _mapping(self, item: Any, path: str, depth: int) -> Dict[str, Any]:
        copied = {}
        for key, value in _pairs(item):
            try:
                name = _text(_key(key))
            except Exception as error:
                raise_interruption(error)
                _lost(key, path, 'raised an error as a key; its value is left out')
                continue
            copied[name] = self.clean(value, _join(path, name), depth + 1)
        return copied

    def _sequence(self, item: Any, path: str, depth: int) -> List[Any]:
        return [
            self.clean(value, '%s[%d]' % (path, index), depth + 1)
            for index, value in enumerate(_snapshot(list, item))
        ]


def _snapshot(make: Callable[[Any], Any], item: Any) -> Any:
    # Another thread may be changing it: a few tries, then the error counts.
    for _ in range(3):
        try:
            return make(item)
        except RuntimeError as error:
            raise_interruption(error)
    return make(item)


def _pairs(item: Any) -> List[Tuple[Any, Any]]:
    pairs = _snapshot(lambda mapping: list(mapping.items()), item)
    return [(key, value) for key, value in pairs]


def _fields(item: Any) -> Optional[Dict[str, Any]]:
    """The fields of a dataclass, attrs or pydantic object; None for anything else."""
    kind = type(item)
    declared = getattr(kind, '__attrs_attrs__', None)
    if hasattr(kind, '__dataclass_fields__') and 'dataclasses' in sys.modules:
        declared = sys.modules['dataclasses'].fields(item)  # without its ClassVars
    if declared is not None:
        names = [each.name for each in declared]
        return {name: getattr(item, name) for name in names if hasattr(item, name)}
    if hasattr(kind, 'model_fields') or hasattr(kind, '__fields__'):  # pydantic 2, 1
        dump = getattr(item, 'model_dump', None) or getattr(item, 'dict', None)
        if callable(dump):
            fields = dump()
            return fields if isinstance(fields, dict) else None
    return None


def _text(item: str) -> str:
    text = str.__str__(item)  # of a subclass: its characters, as a plain str
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:
        # Pairs of surrogates, as other languages make them, are the character they mean.
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text


def _integer(item: int, path: str) -> Any:
    if item.bit_length() <= _MAX_INT_BITS:
        return int(item)
    return _lost(item, path, 'has too many digits; it is sent as null')


def _number(item: Any) -> Optional[float]:
    value = float(item)
    return value if math.isfinite(value) else None


def _key(key: Any) -> str:
    """The text of a key, as the standard library's JSON encoder writes it."""
    if isinstance(key, Enum):
        return _key(key.value)
    if key is True or key is False or key is None:
        return {True: 'true', False: 'false', None: 'null'}[key]
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return key.decode('utf-8', 'replace')
    if isinstance(key, float):
        return float.__repr__(key)
    if isinstance(key, int):
        return int.__repr__(key)
    return str(key)


def _is_a(item: Any, module: str, name: str) -> bool:
    """Whether a value is of a class; imports nothing: who has one has its module."""
    # Perhaps another thread is importing it right now, and the class is not there yet.
    return isinstance(item, getattr(sys.modules.get(module), name, ()))


def _is_textual(item: Any) -> bool:
    """Whether str() is what was meant: UUIDs, paths, strings that are made late."""
    kind = type(item)  # an instance of Mock has any name
    if _is_a(item, 'uuid', 'UUID') or hasattr(kind, '__fspath__'):
        return True
    return all(hasattr(kind, name) for name in ('upper', 'split', 'encode'))


# In this order: an IntEnum is an int, a datetime is a date, a bool is an int.
_SCALARS: Tuple[Tuple[Any, Callable[[Any, Any, str, int], Any]], ...] = (
    (Enum, lambda self, item, path, depth: self.clean(item.value, path, depth)),
    (bool, lambda self, item, path, depth: bool(item)),
    (str, lambda self, item, path, depth: _text(str.__str__(item))),
    (int, lambda self, item, path, depth: _integer(int(item), path)),
    (float, lambda self, item, path, depth: _number(item)),
    ((datetime, date), lambda self, item, path, depth: item),
    (time, lambda self, item, path, depth: item.isoformat()),
    (timedelta, lambda self, item, path, depth: item.total_seconds()),
    (
        (bytes, bytearray, memoryview),
        lambda self, item, path, depth: bytes(item).decode('utf-8', 'replace'),
    ),
)


def _join(path: str, name: str) -> str:
    return '%s.%s' % (path, name[:100]) if path else name[:100]


def warn_of(item: Any, path: str, what: str) -> None:
    log.warning('%s: a value of type %s %s', path or 'value', type(item).__name__, what)


def _lost(item: Any, path: str, what: str) -> None:
    warn_of(item, path, what)
