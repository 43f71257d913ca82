"""A message becomes bytes, once.

A message of plain values is copied by `_copied`, and one call of the C encoder writes it.
Only if one of the two fails, `utils.clean` makes plain values of it, which never fails, and
it is encoded again. With orjson installed (the extra ``fast``) that is tried first.
"""

import json
import math
from datetime import date, datetime, timezone
from functools import lru_cache
from json import encoder
from typing import Any, Callable, List, Optional, Tuple

from hightouch.htevents import findings, forms, utils
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents.findings import Finding, Path

# Written in C; None in a Python without.
_c_make_encoder: Any = getattr(encoder, 'c_make_encoder', None)
_encode_text: Any = getattr(encoder, 'encode_basestring', None)


def _default(value: Any) -> str:
    """Write what JSON lacks and every event may have; all else takes the slow path."""
    if issubclass(type(value), date):
        return str(value.isoformat())
    raise TypeError(type(value))


if _c_make_encoder is None:
    _encoder = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, separators=(',', ':'), default=_default
    )

    def _stdlib(message: Any) -> bytes:
        return _encoder.encode(message).encode('utf-8')

else:
    # json.JSONEncoder makes one of these for each call; it takes a fifth of the time. No
    # markers, which tell of circles: those end in a RecursionError.
    _chunks = _c_make_encoder(
        None, _default, _encode_text, None, ':', ',', False, False, False
    )

    def _stdlib(message: Any) -> bytes:
        return ''.join(_chunks(message, 0)).encode('utf-8')


# What a copy may share with its original, because nobody can change it.
_ATOMS = frozenset({str, int, bool, type(None), datetime, date})


class _NotPlain(Exception):
    """There is a value that `utils.clean` has to look at."""


def _copied(value: Any, depth: int = 0) -> Any:
    """Copy a value of known types, converted; later changes to either stay there.

    :param depth: its level in the message
    :raises _NotPlain: if it contains anything else, such as a value that needs a warning; or
        another exception, for example if a key is not a str
    """
    kind = type(value)
    if depth >= _MAX_DEPTH:
        raise _NotPlain
    if kind is dict:
        copy: Any = value.copy()
        ''.join(copy)  # raises, unless all keys are texts
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
        return value if math.isfinite(value) else None
    convert = forms.known_form(kind)
    if convert is None:
        raise _NotPlain
    plain = convert(value)
    return plain if issubclass(kind, date) else _copied(plain, depth)


def plain_copy(value: Any, path: str, depth: int, found: List[Finding]) -> Any:
    """Copy a value, converted, whatever it is; see `utils.clean`.

    :param found: a list for the findings
    """
    try:
        return _copied(value, depth)
    except _NotPlain:
        pass
    except Exception as error:  # of its own code; or another thread is changing it
        raise_interruption(error)
    return utils.Cleaner(found).clean(value, path, depth)


def encode(message: Any, found: Optional[List[Finding]] = None) -> Tuple[bytes, Any]:
    """Return a message's JSON in UTF-8, and a copy: the message as it goes on the wire.

    Never raises, whatever is in there, and changes nothing of the caller's.

    :param found: a list for the findings; None: they are logged
    """
    mine: List[Finding] = [] if found is None else found
    encoded = encode_plain(plain_copy(message, '', 0, mine), mine)
    if found is None:
        findings.log_once(mine)
    return encoded


def encode_plain(message: Any, found: List[Finding]) -> Tuple[bytes, Any]:
    """Encode a message of plain values; clean it first only if the encoder fails.

    :param found: a list for the findings
    :returns: the JSON, and the message as it goes on the wire: the given one, or a copy
    """
    try:
        return _fast(message), message
    except Exception as error:
        raise_interruption(error)
        return _slow(message, found)


_fast: Callable[[Any], bytes] = _stdlib


# Levels that are copied without counting the containers. Objects that refer to each other
# have far more paths than objects.
_MAX_DEPTH = 10

_SAMPLE = {'text': ['é', 1, 2.5, None, True]}


@lru_cache(maxsize=None)  # once: to find nothing takes longer than to make a client
def preload() -> None:
    """Encode with orjson from now on, if it is installed (see transport.preload)."""
    global _fast
    try:
        orjson = __import__('orjson')
        made = _make_fast(orjson)
        if orjson.dumps(_SAMPLE) == _stdlib(_SAMPLE):  # else it is a test's stand-in
            _fast = made
    except Exception:
        pass  # not there, or not for this interpreter: an extra, not a need


def _make_fast(orjson: Any) -> Callable[[Any], bytes]:
    dumps = orjson.dumps
    # Datetimes are ours: one whose tzinfo raises makes orjson end the process.
    options = (
        orjson.OPT_PASSTHROUGH_DATETIME
        | orjson.OPT_PASSTHROUGH_DATACLASS
        | orjson.OPT_PASSTHROUGH_SUBCLASS
    )

    def default(value: Any) -> str:
        # A third of what isoformat() takes (0.7 us), where no tzinfo can raise.
        if type(value) is datetime:
            if value.tzinfo is None or value.tzinfo is timezone.utc:
                return str(dumps(value)[1:-1], 'ascii')
        return _default(value)

    def encode_fast(message: Any) -> bytes:
        try:
            # A copy: orjson's own holds on to kilobytes that it did not need.
            return b''.join((dumps(message, default, options), b''))
        except Exception as error:  # keys that are no str, big integers, …
            # orjson wraps the exceptions of dates.
            raise_interruption(error, wrapped=True)
            return _stdlib(message)

    return encode_fast


def _slow(message: Any, found: List[Finding]) -> Tuple[bytes, Any]:
    cleaned = utils.Cleaner(found).clean(message, '', 0)
    try:
        return _fast(cleaned), cleaned
    except Exception as error:
        raise_interruption(error)
        # A date of the application's own class failed: nothing else is left in there.
        cleaned = _dates_as_text(cleaned, '', found)
        return _stdlib(cleaned), cleaned


def _dates_as_text(value: Any, path: Path, found: List[Finding]) -> Any:
    if isinstance(value, dict):
        return {
            key: _dates_as_text(each, (path, key), found) for key, each in value.items()
        }
    if isinstance(value, list):
        return [
            _dates_as_text(each, (path, index), found)
            for index, each in enumerate(value)
        ]
    return _date_as_text(value, path, found) if isinstance(value, date) else value


def _date_as_text(value: date, path: Path, found: List[Finding]) -> Optional[str]:
    try:
        text = str(value.isoformat())
        text.encode('utf-8')
        return text
    except Exception as error:
        raise_interruption(error)
        findings.note(found, value, path, 'raised an error; it is sent as null')
        return None
