"""What a value of each type becomes in JSON: a dict, a list, or a simpler value.

The type says it. Nothing is asked of the value itself that its type did not declare: there
are objects that have an attribute of any name, or send a request when asked for one.
"""

import sys
from collections import deque
from collections.abc import Mapping, MappingView, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta, tzinfo
from enum import Enum
from numbers import Number
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from hightouch.htevents.interruption import raise_interruption

# Elements of an array, a table, or what else says its length: an event could not carry more.
MAX_ELEMENTS = 1 << 14

# Digits that every interpreter turns into text and back (CPython's limit is 4,300).
_MAX_INT_BITS = 14000

_CODE = 'is code, not data'
TOO_LONG = 'has more elements than an event can carry'

# Methods of the iterators of the language.
_OF_ITERATORS = {'send', 'throw', 'close', 'from_iterable'}
_CALLING = type(iter(int, 1))


class NotSendable(Exception):
    """The value becomes null; the text says why."""


class Unreadable:
    """A field of an object that raises when it is read."""


class Fallback(str):
    """The ``str()`` of a value of an unknown type."""


def form(item: Any, take: Callable[[Iterable[Any]], List[Any]]) -> Any:
    """Return the form of a value: a dict, a list, a `Fallback`, or a simpler value.

    The values in a dict or list are still to be converted, and a simpler value too. A date
    is its own form.

    :param take: makes a list of what may have no end; raises NotSendable if it has none
    :raises NotSendable: when it becomes null
    """
    kind = type(item)
    convert = known_form(kind)
    if convert is not None:
        return convert(item)
    if issubclass(kind, (type, ModuleType)):
        raise NotSendable(_CODE)
    if _has(kind, 'dtype', 'tolist'):
        return _array(item)
    if _has(kind, 'upper', 'split', 'encode'):
        return str(item)  # a text that is made late
    fields = _fields(item, kind)
    if fields is not None:
        return fields
    if issubclass(kind, Mapping) or _has(kind, 'keys', 'items', '__getitem__'):
        return dict(_snapshot(lambda: take(item.items())))
    if issubclass(kind, (Sequence, AbstractSet, MappingView)):
        return _snapshot(lambda: take(item))
    if issubclass(kind, Iterator) and _only_iterates(kind):
        return take(item)
    if callable(item):
        raise NotSendable(_CODE)
    text = str(item)
    # Several lines are a drawing of it.
    return text if _is_text(kind) and '\n' not in text else Fallback(text)


def known_form(kind: type) -> Optional[Callable[[Any], Any]]:
    """Return the function that makes the form of a value of a known type, else None.

    It reads nothing up, so it may be called again.
    """
    for types, convert in _BUILTIN:
        if issubclass(kind, types):
            return convert
    for each in kind.__mro__:
        package = str(each.__module__).partition('.')[0]
        found = _LIBRARIES.get((package, each.__name__))
        if found is not None:
            return found
    return None


def key_text(key: Any) -> str:
    """Return the text of a key, as the standard library's JSON encoder writes it."""
    key = plain_scalar(key)
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


def is_a(value: Any, kinds: Any) -> bool:
    """Whether its type is one of ``kinds``. isinstance() may run code of a proxy."""
    return issubclass(type(value), kinds)


def plain_scalar(value: Any) -> Any:
    """Return what a proxy or an enum stands for; a str of a subclass as a plain one."""
    kind = type(value)
    if kind is str:
        return value
    value = unproxied(value)
    if is_a(value, Enum):
        value = _tried(lambda: value.value)
        if is_a(value, Enum):
            return None  # nothing that is written; orjson would ask it without end
    return str.__str__(value) if is_a(value, str) else value


def unproxied(value: Any) -> Any:
    """Return what a transparent proxy stands for; anything else as it is.

    A proxy (a lazy object of Django, werkzeug, wrapt, …) says that it is of another class
    than its type is. The methods that it has from there are bound to what it stands for.
    """
    kind = type(value)
    try:
        said = value.__class__
    except Exception as error:  # outside of the request that it is for, say
        raise_interruption(error)
        return value
    if said is kind or not isinstance(said, type) or known_form(kind) is _code:
        return value
    if said is type(None):
        return None
    for each in said.__mro__:
        for name, member in each.__dict__.items():
            if callable(member):  # no property: that may do anything
                owner = _tried(lambda: getattr(value, name).__self__)
                if type(owner) is said:
                    return owner
    # Of a class without a method of its own: as Django, wrapt and others hold it, and
    # werkzeug.
    for name in ('_wrapped', '__wrapped__', '_get_current_object'):
        if declared(kind, name) is not None:
            owner = _tried(lambda: getattr(value, name))
            if name == '_get_current_object':
                owner = _tried(owner)
            if type(owner) is said:
                return owner
    return value


def _tried(get: Callable[[], Any]) -> Any:
    """Return what a function returns, None if it raises."""
    try:
        return get()
    except Exception as error:
        raise_interruption(error)
        return None


def declared(kind: type, name: str) -> Any:
    """Return what a class has under a name, None if nothing; no descriptor of it runs."""
    for each in kind.__mro__:
        if name in each.__dict__:
            return each.__dict__[name]
    return None


def _has(kind: type, *names: str) -> bool:
    return all(declared(kind, name) is not None for name in names)


def _integer(item: int) -> int:
    if item.bit_length() > _MAX_INT_BITS:
        raise NotSendable('has too many digits')
    return int.__int__(item)


def _snapshot(make: Callable[[], Any]) -> Any:
    # Another thread may be changing it: a few tries, then the error counts.
    for _ in range(3):
        try:
            return make()
        except (RuntimeError, KeyError) as error:
            raise_interruption(error)
    return make()


def _unreadable(item: Any) -> None:
    raise NotSendable('raised an error')


# Of a dict itself: they are listed in one step, whatever another thread does.
_VIEWS: Tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))

# In this order: an IntEnum is an int, a datetime is a date.
_BUILTIN: Tuple[Tuple[Any, Callable[[Any], Any]], ...] = (
    (Enum, lambda item: item.value),
    (str, str.__str__),
    (int, _integer),
    (float, float.__float__),
    # Of a subclass, what it says of itself, and not what is stored in it.
    (dict, lambda item: dict(_snapshot(lambda: list(item.items())))),
    (
        (list, tuple, set, frozenset, deque, *_VIEWS),
        lambda item: _snapshot(lambda: list(item)),
    ),
    # No time (pandas.NaT) is a datetime that does not equal itself, as NaN.
    (date, lambda item: item if item == item else None),
    (time, lambda item: item.isoformat()),
    (timedelta, lambda item: item.total_seconds()),
    (
        (bytes, bytearray, memoryview),
        lambda item: bytes(item).decode('utf-8', 'replace'),
    ),
    (SimpleNamespace, lambda item: dict(vars(item))),
    (Unreadable, _unreadable),
)


def _code(item: Any) -> None:
    raise NotSendable(_CODE)


def _table(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(item: Any) -> Any:
        _check_size(item)
        return convert(item)

    return checked


_to_pylist = _table(lambda item: item.to_pylist())

# By module and name: nothing is imported for them.
_LIBRARIES: Dict[Tuple[str, str], Callable[[Any], Any]] = {
    ('uuid', 'UUID'): str,
    ('decimal', 'Decimal'): float,
    ('array', 'array'): _table(list),
    ('argparse', 'Namespace'): lambda item: dict(vars(item)),
    ('msgspec', 'Struct'): lambda item: _read(item, item.__struct_fields__),
    # It has an attribute of any name.
    ('unittest', 'NonCallableMock'): _code,
    ('mock', 'NonCallableMock'): _code,
    ('pandas', 'NAType'): lambda item: None,
    ('pandas', 'DataFrame'): _table(lambda item: item.to_dict('records')),
    ('polars', 'DataFrame'): _table(lambda item: item.to_dicts()),
    ('polars', 'Series'): _table(lambda item: item.to_list()),
    ('pyarrow', 'Table'): _to_pylist,
    ('pyarrow', 'RecordBatch'): _to_pylist,
    ('pyarrow', 'Array'): _to_pylist,
    ('pyarrow', 'ChunkedArray'): _to_pylist,
    ('pyarrow', 'Scalar'): lambda item: item.as_py(),
}


def _fields(item: Any, kind: type) -> Any:
    """Return those of a dataclass, or of an object of attrs or pydantic."""
    names: Any = None
    attributes = declared(kind, '__attrs_attrs__')
    if attributes is not None:
        names = [each.name for each in attributes]
    elif declared(kind, '__dataclass_fields__') is not None:
        # Without its ClassVars.
        names = [each.name for each in sys.modules['dataclasses'].fields(item)]
    if names is not None:
        return _read(item, names)
    for dump, fields in (
        ('model_dump', 'model_fields'),
        ('model_dump', '__pydantic_fields__'),
        ('dict', '__fields__'),
    ):
        if _has(kind, dump, fields):
            try:
                return getattr(item, dump)()
            except Exception as error:
                # pydantic makes one of its own of what a serializer raises.
                raise_interruption(error, wrapped=True)
                raise
    return None


def _read(item: Any, names: Iterable[str]) -> Dict[str, Any]:
    read: Dict[str, Any] = {}
    for name in names:
        try:
            read[name] = getattr(item, name)
        except AttributeError as error:
            raise_interruption(error)  # a field that was never set
        except Exception as error:  # say, of an object whose database session is closed
            raise_interruption(error)
            read[name] = Unreadable()
    return read


def _array(item: Any) -> Any:
    """Return the form of an array of numpy, or what is like it, or one of its elements."""
    _check_size(item)
    kind = getattr(item.dtype, 'kind', '')
    if kind in ('M', 'm', 'V'):  # tolist() makes numbers of some times in there
        if getattr(item, 'ndim', 0):
            return list(item)
        if kind == 'M':
            return _moment(item)
        if kind == 'm':
            return _seconds(item)
        if item.dtype.names:
            return [item[name] for name in item.dtype.names]
    plain = item.tolist()
    # A longdouble makes another: Python has no type for it.
    return float(plain) if type(plain) is type(item) else plain


def _moment(item: Any) -> Any:
    moment = item.item()
    if isinstance(moment, int) and item.dtype.str[4:6] in ('ns', 'ps', 'fs', 'as'):
        # A datetime does not have that much of a second.
        moment = item.astype('datetime64[us]').item()
    return str(item) if isinstance(moment, int) else moment


def _seconds(item: Any) -> Any:
    try:
        return float(item / item.dtype.type(1, 's'))
    except Exception as error:  # of months, which have no length, or of attoseconds
        raise_interruption(error)
        text = str(item)
        return None if text == 'NaT' else text


def _check_size(item: Any) -> None:
    shape = getattr(item, 'shape', None)
    if isinstance(shape, tuple):
        size = 1
        for each in shape:
            size *= each
    else:
        size = len(item) if _has(type(item), '__len__') else 0
    if size > MAX_ELEMENTS:
        raise NotSendable(TOO_LONG)


def _only_iterates(kind: type) -> bool:
    """Whether an iterator has no other methods, as files, cursors and readers have.

    To read those is I/O. So may be what ``iter(function, end)`` calls.
    """
    return kind is not _CALLING and not any(
        name[0] != '_'
        and name not in _OF_ITERATORS
        and (callable(member) or name == 'line_num')  # csv.reader has this alone
        for each in kind.__mro__
        for name, member in each.__dict__.items()
    )


def _is_text(kind: type) -> bool:
    """Whether ``str()`` is what was meant: of a path, a number, an id, an address, …

    Those are values: their class says how they are written, and when two are equal.
    """
    if issubclass(kind, Number) or _has(kind, '__fspath__'):
        return True
    return _has_own(kind, '__str__') and (
        _has_own(kind, '__eq__') or issubclass(kind, tzinfo)
    )


def _has_own(kind: type, name: str) -> bool:
    return declared(kind, name) is not object.__dict__[name]
