"""Encodes each message once.

`_copied` copies a message of plain values, and one call of the C encoder writes the JSON.
When either fails, `utils.Cleaner`, which never fails, converts all values to plain ones, and
the encoder runs again. Where orjson (the extra ``fast``) is installed, it is tried first.
"""

import json
from datetime import date, datetime, timezone
from functools import lru_cache
from json import encoder
from typing import Any, Callable, List, Optional, Tuple

from hightouch.htevents import forms, utils
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents.findings import Finding, Findings
from hightouch.htevents.forms import NotSendable


def _default(value: Any) -> str:
    """Write a date. The error for any other type leads to the slow path."""
    if issubclass(type(value), date):
        return str(value.isoformat())
    raise TypeError(type(value))


# Returns the parts of a JSON text. The second argument is 0: not in one shot, or level 0.
_chunks: Any = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(',', ':'), default=_default
).iterencode
_c_make_encoder: Any = getattr(encoder, 'c_make_encoder', None)
if _c_make_encoder is not None:
    # json.JSONEncoder makes such an object for each call. Sharing it takes a fifth of the
    # time. The first None turns the detection of circles off: one ends in a RecursionError.
    _chunks = _c_make_encoder(
        None, _default, encoder.encode_basestring, None, ':', ',', False, False, False
    )


def _stdlib(message: Any) -> bytes:
    return ''.join(_chunks(message, 0)).encode('utf-8')


# Immutable types, which a copy may share with its original.
_ATOMS = frozenset({str, int, bool, type(None), datetime, date})

# Levels that `_copied` copies. It does not count containers, and objects that refer to each
# other have far more paths than objects.
_MAX_DEPTH = 10


def _copied(value: Any, depth: int = 0) -> Any:
    """Return a deep copy of a value of known types, converted.

    :param depth: level of the value in the message
    :raises NotSendable: if it contains any other type, or a value that needs a warning.
        Other exceptions are possible, for example for a key that is not a str
    """
    kind = type(value)
    if depth >= _MAX_DEPTH:
        raise NotSendable
    if kind is dict:
        copy: Any = value.copy()
        ''.join(copy)  # raises unless each key is a str
        for key, each in copy.items():
            of = type(each)
            # `each - each` is NaN for NaN and the infinities.
            if of not in _ATOMS and not (of is float and each - each == 0):
                copy[key] = _copied(each, depth + 1)
        return copy
    if kind is list or kind is tuple:
        return [
            each if type(each) in _ATOMS else _copied(each, depth + 1) for each in value
        ]
    if kind in _ATOMS:
        return value
    if kind is float:
        return value if value - value == 0 else None
    convert = forms.known_form(kind)
    if convert is None:
        raise NotSendable
    plain = convert(value)
    return plain if issubclass(kind, date) else _copied(plain, depth)


def plain_copy(value: Any, path: str, depth: int, found: List[Finding]) -> Any:
    """Return a converted copy of any value; see `utils.clean`.

    :param found: list that collects the findings
    """
    try:
        return _copied(value, depth)
    except NotSendable:
        pass
    except Exception as error:  # from the value's code, or from a concurrent change
        raise_interruption(error)
    return utils.Cleaner(found).clean(value, path, depth)


def encode(message: Any, found: Optional[List[Finding]] = None) -> Tuple[bytes, Any]:
    """Return a message's JSON in UTF-8, and a copy of the message as it goes on the wire.

    Never raises, and does not change the given message.

    :param found: list that collects the findings; None: they are logged
    """
    mine: List[Finding] = [] if found is None else found
    encoded = encode_plain(plain_copy(message, '', 0, mine), mine)
    if found is None:
        Findings().log(mine)
    return encoded


def encode_plain(message: Any, found: List[Finding]) -> Tuple[bytes, Any]:
    """Encode a message of plain values; clean it first only if the encoder fails.

    :param found: list that collects the findings
    :returns: the JSON, and the message as it goes on the wire: the given dict, or a copy
    """
    try:
        return _fast(message), message
    except Exception as error:
        raise_interruption(error)
    # The dates as text, because their class or tzinfo, the application's, may have raised.
    cleaned = utils.Cleaner(found, dates_as_text=True).clean(message, '', 0)
    return _stdlib(cleaned), cleaned


_fast: Callable[[Any], bytes] = _stdlib


@lru_cache(maxsize=None)  # the search for a missing module is slower than a new client
def preload() -> None:
    """Use orjson in all later calls, if it is installed (imported with the first client)."""
    global _fast
    try:
        orjson = __import__('orjson')
        made = _make_fast(orjson)
        sample = {'text': ['é', 1, 2.5, None, True]}
        if orjson.dumps(sample) == _stdlib(sample):  # not a fake of a test
            _fast = made
    except Exception:
        pass  # orjson is optional; it may be missing or built for another interpreter


def _make_fast(orjson: Any) -> Callable[[Any], bytes]:
    dumps = orjson.dumps
    # Datetimes go through default(), because a tzinfo that raises makes orjson abort.
    options = (
        orjson.OPT_PASSTHROUGH_DATETIME
        | orjson.OPT_PASSTHROUGH_DATACLASS
        | orjson.OPT_PASSTHROUGH_SUBCLASS
    )

    def default(value: Any) -> str:
        # Where no tzinfo can raise, orjson takes a third of isoformat()'s 0.7 us.
        if type(value) is datetime:
            if value.tzinfo is None or value.tzinfo is timezone.utc:
                return str(dumps(value)[1:-1], 'ascii')
        return _default(value)

    def encode_fast(message: Any) -> bytes:
        try:
            # Copied, because the bytes from orjson keep kilobytes of unused buffer.
            return b''.join((dumps(message, default, options), b''))
        except Exception as error:  # for example for a big integer, or a key not a str
            # orjson wraps an exception from a date.
            raise_interruption(error, wrapped=True)
            return _stdlib(message)

    return encode_fast
