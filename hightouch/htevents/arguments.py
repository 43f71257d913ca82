"""Checks the arguments of a call, and returns them as they go on the wire."""

import math
import numbers
from typing import Any, Dict, List

from hightouch.htevents import encoding
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents.findings import Finding
from hightouch.htevents.forms import is_a, plain_scalar, unproxied
from hightouch.htevents.settings import expect

ID_TYPES = (numbers.Number, str)


def _is_id(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, str):
        return True
    if kind is bool or not issubclass(kind, ID_TYPES):
        return False
    try:
        return math.isfinite(value)
    except Exception as error:
        raise_interruption(error)
        # Only a signaling NaN raises ValueError. An int above every float raises another.
        return not isinstance(error, ValueError)


def is_missing(identity: Any) -> bool:
    """Whether an id is None or an empty str, which count as not given."""
    return identity is None or isinstance(identity, str) and not identity


def checked_id(name: str, value: Any, required: bool = False) -> Any:
    """Return an id without its proxy or enum; raise `ValidationError` for other types."""
    value = plain_scalar(value)
    ok = _is_id(value) or value is None and not required
    expect(ok, name, 'a str or a number', value)
    return value


def as_text(value: Any) -> Any:
    """Return an id as text; None for None."""
    value = plain_scalar(value)
    if value is None or is_a(value, str):
        return value
    try:
        return str(value)
    except Exception as error:
        raise_interruption(error)
        # An int may have more digits than str() allows.
        expect(isinstance(value, int), 'id', 'a value that str() can convert', value)
        return hex(value)


def copied(name: str, value: Any, found: List[Finding]) -> Dict[str, Any]:
    """Return a copy of a dict as it goes on the wire; {} for any falsy value.

    :param name: the argument, which is also the key in the message
    :param found: list that collects the findings
    """
    if value is None:
        return {}
    if not issubclass(type(value), dict):
        value = unproxied(value)
        if not is_a(value, dict):
            expect(_is_falsy(value), name, 'a dict', value)
            return {}
    copy = encoding.plain_copy(value, name, 1, found)
    return copy if isinstance(copy, dict) else {}


def _is_falsy(value: Any) -> bool:
    try:
        return not value
    except Exception as error:  # a numpy array has no truth value
        raise_interruption(error)
        return False


def checked_text(name: str, value: Any) -> Any:
    """Return a str, or None for a falsy value; raise `ValidationError` for other types."""
    kind = type(value)
    if value is not None and kind is not str:
        value = plain_scalar(value)
        expect(is_a(value, str) or _is_falsy(value), name, 'a str', value)
    return value or None
