"""Reads settings from environment variables."""

import os
import re
from typing import Any, Callable, Collection, Dict, Mapping, Optional, Tuple

from hightouch.htevents.errors import ValidationError

SEND = 'HTEVENTS_SEND'

_FLAGS = {
    **dict.fromkeys(('1', 'true', 'yes', 'on'), True),
    **dict.fromkeys(('0', 'false', 'no', 'off'), False),
}

# By the name of a setting.
Readers = Mapping[str, Tuple[str, Callable[[str], Any]]]


def variable(name: str) -> str:
    """Return the name of a setting's environment variable."""
    return 'HTEVENTS_' + name.upper()


def is_switched_off() -> bool:
    """Whether the environment switches the package off."""
    return _FLAGS.get(os.environ.get(SEND, '').strip().lower()) is False


def find(readers: Readers, given: Collection[str]) -> Dict[str, Any]:
    """Return the settings of the environment; a variable that is empty counts as missing.

    :param readers: see `readers_of`
    :param given: names of settings to leave out
    :raises ValidationError: when a variable cannot be read
    """
    found = {}
    for name, (its_variable, read) in readers.items():
        text = os.environ.get(its_variable)
        if text and text.strip() and name not in given:
            try:
                found[name] = read(text.strip())
            except (ValueError, LookupError):
                what = (its_variable, _EXPECTED[read])
                raise ValidationError(
                    '%s: expected %s, got another text' % what
                ) from None
    return found


def reader(kind: Any) -> Optional[Callable[[str], Any]]:
    """Return the function that reads a setting's type from text; None if none can."""
    kinds = getattr(kind, '__args__', None) or (kind,)
    if str in kinds:
        return str
    if bool in kinds:
        return _read_flag
    if int in kinds:
        return _read_whole
    if float in kinds:
        return _read_limit if type(None) in kinds else _read_number
    return None


def _read_flag(text: str) -> bool:
    return _FLAGS[text.lower()]


def _read_whole(text: str) -> int:
    if re.match('-?[0-9]+$', text) is None:
        raise ValueError(text)  # int() reads more, such as 1_0
    return int(text)


def _read_number(text: str) -> float:
    if re.match(r'-?[0-9]*[.]?[0-9]+$', text) is None:
        raise ValueError(text)
    return float(text)


def _read_limit(text: str) -> Optional[float]:
    return None if text.lower() == 'none' else _read_number(text)


_EXPECTED: Dict[Any, str] = {
    str: 'a text',
    _read_whole: 'a whole number',
    _read_number: 'a number',
    _read_limit: 'a number, or none for no limit',
    _read_flag: '1 or 0 (or true or false, yes or no, on or off)',
}


def readers_of(types: Mapping[str, Any]) -> Readers:
    """Return the variable of each setting that has one, and the function that reads it."""
    readers = {}
    for name, kind in types.items():
        read = reader(kind)
        if read is not None:
            readers[name] = (variable(name), read)
    return readers
