"""Converts a value to its JSON form, a dict, a list or a scalar, by its type.

Only the type is inspected. An attribute that the type does not declare is never read from a
value: some objects have an attribute of every name, and some send a request for it.
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

from hightouch.htevents._process.interruption import raise_interruption

# Most elements of an array, a table or another sized collection. An event has no room for
# more.
MAX_ELEMENTS = 1 << 14

# Every interpreter converts integers of this size to text and back. CPython's limit is
# 4,300 digits.
_MAX_INT_BITS = 14000

TOO_LONG = 'has more elements than an event can carry'

# Methods of generators and of iterators in itertools.
_ITERATOR_METHODS = {'send', 'throw', 'close', 'from_iterable'}
# The type of iter(function, end).
_CALLING = type(iter(int, 1))


class NotSendable(Exception):
    """The value becomes null. The text gives the reason."""


class Unreadable:
    """Stands for a field that raises when it is read."""

    def __str__(self) -> str:
        raise NotSendable('raised an error')


def form(
    item: Any,
    take: Callable[[Iterable[Any]], List[Any]],
    warn: Callable[[str], None],
) -> Any:
    """Convert the outermost level of a value to a dict, a list or a scalar.

    The caller converts the elements. It also converts the scalar again, unless it is a date.

    :param take: lists an iterable; raises `NotSendable` if the iterable is endless
    :param warn: is called with a text when the value is not sent in its usual form
    :raises NotSendable: if the value becomes null
    """
    kind = type(item)
    convert = known_form(kind)
    if convert is not None:
        return convert(item)
    if _has(kind, 'dtype', 'tolist'):
        return _array(item)
    if _has(kind, 'upper', 'split', 'encode'):
        return str(item)  # a lazy string
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
        _code(item)
    text = str(item)
    # A str() of several lines is a drawing of the value, not its text.
    if not _is_text(kind) or '\n' in text:
        warn('is not JSON; its str() is sent')
    return text


def known_form(kind: type) -> Optional[Callable[[Any], Any]]:
    """Return the function that converts values of a known type, or None.

    The function does not consume the value. It may be called again.
    """
    for types, convert in _BUILTIN:
        if issubclass(kind, types):
            return convert
    for each in kind.__mro__:
        name = (str(each.__module__).partition('.')[0], each.__name__)
        if name in _LIBRARIES:
            return _LIBRARIES[name]
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
    """Whether the type of a value is one of ``kinds``. isinstance() may run a proxy's code."""
    return issubclass(type(value), kinds)


def plain_scalar(value: Any) -> Any:
    """Return a value without its proxy or enum, and a str subclass as a plain str."""
    kind = type(value)
    if kind is str:
        return value
    value = unproxied(value)
    if is_a(value, Enum):
        value = _tried(lambda: value.value)
        if is_a(value, Enum):
            return None  # orjson would never stop following such a value
    return str.__str__(value) if is_a(value, str) else value


def unproxied(value: Any) -> Any:
    """Return the target of a transparent proxy; any other value unchanged.

    The ``__class__`` of a proxy (of Django, werkzeug, wrapt and others) is the class of its
    target, not its type. The methods of that class are bound to the target.
    """
    kind = type(value)
    try:
        said = value.__class__
    except Exception as error:  # for example a proxy used outside of its request
        raise_interruption(error)
        return value
    if said is kind or not isinstance(said, type) or known_form(kind) is _code:
        return value
    if said is type(None):
        return None
    for each in said.__mro__:
        for name, member in each.__dict__.items():
            if callable(member):  # a property could run any code
                owner = _tried(lambda: getattr(value, name).__self__)
                if type(owner) is said:
                    return owner
    # The target has no methods: try the attributes of Django, wrapt and werkzeug.
    for name in ('_wrapped', '__wrapped__', '_get_current_object'):
        if _has(kind, name):
            owner = _tried(lambda: getattr(value, name))
            if name == '_get_current_object':
                owner = _tried(owner)
            if type(owner) is said:
                return owner
    return value


def _tried(get: Callable[[], Any]) -> Any:
    """Call a function; return None if it raises."""
    try:
        return get()
    except Exception as error:
        raise_interruption(error)
        return None


def _declared(kind: type, name: str) -> Any:
    """Return an attribute of a class without running a descriptor; None if missing."""
    for each in kind.__mro__:
        if name in each.__dict__:
            return each.__dict__[name]
    return None


def _has(kind: type, *names: str) -> bool:
    return all(_declared(kind, name) is not None for name in names)


def _integer(item: int) -> int:
    if item.bit_length() > _MAX_INT_BITS:
        raise NotSendable('has too many digits')
    return int.__int__(item)


def _snapshot(make: Callable[[], Any]) -> Any:
    # Another thread may change the value at the same time, so try a few times.
    for _ in range(3):
        try:
            return make()
        except (RuntimeError, KeyError) as error:
            raise_interruption(error)
    return make()


def _code(item: Any) -> None:
    raise NotSendable('is code, not data')


# The views of a dict. list() reads one in a single step of the interpreter.
_VIEWS: Tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))

# The order counts: an IntEnum is an int, and a datetime is a date.
_BUILTIN: Tuple[Tuple[Any, Callable[[Any], Any]], ...] = (
    (Enum, lambda item: item.value),
    (str, str.__str__),
    ((bool, type(None)), lambda item: item),
    (int, _integer),
    (float, float.__float__),
    # A subclass may define items() that differ from its storage.
    (dict, lambda item: dict(_snapshot(lambda: list(item.items())))),
    (
        (list, tuple, set, frozenset, deque, *_VIEWS),
        lambda item: _snapshot(lambda: list(item)),
    ),
    # pandas.NaT is a datetime that is not equal to itself, like NaN.
    (date, lambda item: item if item == item else None),
    (time, lambda item: item.isoformat()),
    (timedelta, lambda item: item.total_seconds()),
    (
        (bytes, bytearray, memoryview),
        lambda item: bytes(item).decode('utf-8', 'replace'),
    ),
    (SimpleNamespace, lambda item: dict(vars(item))),
    ((type, ModuleType), _code),
)


def _bounded(item: Any) -> Any:
    """Return an array or a table; raise `NotSendable` if it has too many elements."""
    shape = getattr(item, 'shape', None)
    if isinstance(shape, tuple):
        size = 1
        for each in shape:
            size *= each
    else:
        size = len(item) if _has(type(item), '__len__') else 0
    if size > MAX_ELEMENTS:
        raise NotSendable(TOO_LONG)
    return item


def _to_pylist(item: Any) -> Any:
    return _bounded(item).to_pylist()


# Types of other libraries by module and name, because this module imports none of them.
_LIBRARIES: Dict[Tuple[str, str], Callable[[Any], Any]] = {
    ('uuid', 'UUID'): str,
    ('decimal', 'Decimal'): float,
    ('array', 'array'): lambda item: list(_bounded(item)),
    ('argparse', 'Namespace'): lambda item: dict(vars(item)),
    ('msgspec', 'Struct'): lambda item: _read(item, item.__struct_fields__),
    # A mock has an attribute of every name.
    ('unittest', 'NonCallableMock'): _code,
    ('mock', 'NonCallableMock'): _code,
    ('pandas', 'NAType'): lambda item: None,
    ('pandas', 'DataFrame'): lambda item: _bounded(item).to_dict('records'),
    ('polars', 'DataFrame'): lambda item: _bounded(item).to_dicts(),
    ('polars', 'Series'): lambda item: _bounded(item).to_list(),
    ('pyarrow', 'Table'): _to_pylist,
    ('pyarrow', 'RecordBatch'): _to_pylist,
    ('pyarrow', 'Array'): _to_pylist,
    ('pyarrow', 'ChunkedArray'): _to_pylist,
    ('pyarrow', 'Scalar'): lambda item: item.as_py(),
}


def _fields(item: Any, kind: type) -> Any:
    """Return the fields of a dataclass, attrs or pydantic object; None for others."""
    attributes = _declared(kind, '__attrs_attrs__')
    if attributes is None and _has(kind, '__dataclass_fields__'):
        attributes = sys.modules['dataclasses'].fields(item)  # without its ClassVars
    if attributes is not None:
        return _read(item, [each.name for each in attributes])
    for dump, fields in (
        ('model_dump', 'model_fields'),
        ('model_dump', '__pydantic_fields__'),
        ('dict', '__fields__'),
    ):
        if _has(kind, dump, fields):
            try:
                return getattr(item, dump)()
            except Exception as error:
                # pydantic wraps exceptions from serializers.
                raise_interruption(error, wrapped=True)
                raise
    return None


def _read(item: Any, names: Iterable[str]) -> Dict[str, Any]:
    read: Dict[str, Any] = {}
    for name in names:
        try:
            read[name] = getattr(item, name)
        except AttributeError as error:
            raise_interruption(error)  # the field was never set
        except Exception as error:  # for example after its database session closed
            raise_interruption(error)
            read[name] = Unreadable()
    return read


def _array(item: Any) -> Any:
    """Convert an array or a scalar of numpy or a similar library."""
    kind = getattr(item.dtype, 'kind', '')
    # tolist() turns some times into numbers.
    if getattr(item, 'ndim', 0) and kind in ('M', 'm', 'V'):
        return list(_bounded(item))
    if kind == 'M':
        return _moment(item)
    if kind == 'm':
        return _seconds(item)
    if kind == 'V' and item.dtype.names:
        return [item[name] for name in item.dtype.names]
    plain = _bounded(item).tolist()
    # tolist() of a longdouble returns a longdouble.
    return float(plain) if type(plain) is type(item) else plain


def _moment(item: Any) -> Any:
    moment = item.item()
    if isinstance(moment, int) and item.dtype.str[4:6] in ('ns', 'ps', 'fs', 'as'):
        # Units that are finer than a datetime.
        moment = item.astype('datetime64[us]').item()
    return str(item) if isinstance(moment, int) else moment


def _seconds(item: Any) -> Any:
    try:
        return float(item / item.dtype.type(1, 's'))
    except Exception as error:  # months have no length; attoseconds overflow
        raise_interruption(error)
        text = str(item)
        return None if text == 'NaT' else text


def _only_iterates(kind: type) -> bool:
    """Whether the class of an iterator has only the usual methods.

    Files, cursors and readers have others, and to read them is I/O. A call of the function
    in ``iter(function, end)`` may be I/O as well.
    """
    return kind is not _CALLING and not any(
        name[0] != '_'
        and name not in _ITERATOR_METHODS
        and (callable(member) or name == 'line_num')  # the only sign of csv.reader
        for each in kind.__mro__
        for name, member in each.__dict__.items()
    )


def _is_text(kind: type) -> bool:
    """Whether ``str()`` is the natural form, as for a path, a number, an id, an address.

    The class of such a value defines ``__str__`` and ``__eq__``.
    """
    if issubclass(kind, Number) or _has(kind, '__fspath__'):
        return True
    return _has_own(kind, '__str__') and (
        _has_own(kind, '__eq__') or issubclass(kind, tzinfo)
    )


def _has_own(kind: type, name: str) -> bool:
    return _declared(kind, name) is not object.__dict__[name]
