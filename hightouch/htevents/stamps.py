"""Makes the id and the timestamp of each message, at low cost."""

import json
import math
import re
from datetime import date, datetime, timezone
from numbers import Integral
from os import urandom  # the original, even while a test replaces os.urandom
from time import gmtime, strftime, time
from typing import Any, List, Tuple

from hightouch.htevents import forms, utils
from hightouch.htevents._process import fork
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents.errors import ValidationError, name_of

# Ids from one read of the system's random numbers. The system call costs more than an id.
_IDS_PER_READ = 256

# A template of a UUID4, and the position of each of its 31 random digits. The digit after
# the third hyphen holds the variant in two of its bits.
_BLANK_ID = b'________-____-4___-____-____________\n'
_PLACES = [place for place, each in enumerate(_BLANK_ID) if each == ord('_')]
_VARIANT_PLACE = slice(19, None, len(_BLANK_ID))
_VARIANT = bytes.maketrans(b'0123456789abcdef', b'89ab' * 4)

# As text, because re compiles it at its first use, and many programs never need it.
_ISO = (
    r'\d{4}-?\d\d-?\d\d'
    r'(?:[Tt ]\d\d(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?(?:[Zz]|[+-]\d\d(?::?\d\d)?)?)?$'
)
_WRITTEN = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d\Z'


class _Ids:
    """Ids made in advance. Threads need no lock, because list.pop() is atomic."""

    def __init__(self) -> None:
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # Without this, a forked child would use the same ids as its parent.
        self.ready: List[str] = []

    def refill(self) -> str:
        """Return a new id. Keep the others from the same read for later calls."""
        ready = self.ready
        digits = urandom(16 * _IDS_PER_READ).hex().encode('ascii')
        text = bytearray(_BLANK_ID * _IDS_PER_READ)
        # By column: 31 steps in C fill all ids, which takes 0.16 us for each id.
        for number, place in enumerate(_PLACES):
            text[place :: len(_BLANK_ID)] = digits[number::32]
        text[_VARIANT_PLACE] = text[_VARIANT_PLACE].translate(_VARIANT)
        made = text.decode('ascii').split()
        if ready is not self.ready:  # this process was forked since the first line
            return self.refill()
        one = made.pop()
        ready.extend(made)
        return one


_ids = _Ids()


def new_message_id() -> str:
    """Return a new random UUID4 as text."""
    try:
        return _ids.ready.pop()
    except IndexError:
        return _ids.refill()


def stable_message_id(write_key: str, kind: str, event: str, key: Any) -> str:
    """Return an id that is the same in every process: a UUID5 of the arguments.

    :param key: str, int, float, Decimal, UUID, date or enum, or a tuple or list of them
    :raises ValidationError: for other keys, which may differ in the next process, or be the
        same for two things
    """
    import uuid  # rarely needed

    try:
        text = json.dumps([write_key, kind, event, _stable(key)], separators=(',', ':'))
    except Exception as error:  # an object's own code may raise anything
        raise_interruption(error)
        raise ValidationError(
            'idempotency_key: expected a str, a number, a UUID, a date or an enum, or a '
            'tuple of them without None, got %s' % name_of(type(key))
        ) from None
    return str(uuid.uuid5(uuid.NAMESPACE_URL, 'htevents:' + text))


def _stable(key: Any) -> Any:
    """Return a part of a key as JSON can write it; raise ValueError for other types."""
    from decimal import Decimal  # like uuid, rarely needed
    from uuid import UUID

    key = forms.plain_scalar(key)
    kind = type(key)
    if issubclass(kind, (tuple, list)) and len(key):
        return [_stable(each) for each in key]
    if issubclass(kind, str) and key:
        return str(key)
    if issubclass(kind, Integral) and not isinstance(key, bool):
        return int(key)
    if issubclass(kind, float) and math.isfinite(key):
        return float(key)
    if issubclass(kind, date):
        return key.isoformat()
    if issubclass(kind, (Decimal, UUID)):
        return str(key)
    raise ValueError


# The latest time: milliseconds of the epoch, text of the seconds, whole text. It is one
# tuple, because a thread must not read the parts of two times.
_latest: Tuple[int, str, str] = (-1, '', '')


def iso_now() -> str:
    """Return the time in UTC with milliseconds: ``2026-01-02T03:04:05.678+00:00``."""
    global _latest
    now = int(time() * 1000)
    known, seconds, text = _latest
    if now != known:
        if now // 1000 != known // 1000:
            seconds = strftime('%Y-%m-%dT%H:%M:%S', gmtime(now // 1000))
        text = '%s.%03d+00:00' % (seconds, now % 1000)
        _latest = (now, seconds, text)
    return text


def to_iso(value: Any) -> str:
    """Return a time in ISO-8601 with milliseconds and an offset.

    :param value: datetime or ISO-8601 str; None: now. `utils.guess_timezone` adds a missing
        offset
    :raises ValidationError: when the value is not a time
    """
    value = forms.plain_scalar(value)
    if value is None:
        return iso_now()
    moment = parse(value) if forms.is_a(value, str) else value
    if forms.is_a(moment, datetime):
        for complete in (utils.guess_timezone, _as_plain_utc):
            try:
                return _written(complete(moment))
            except Exception as error:
                # A tzinfo or a subclass of the application may raise anything.
                raise_interruption(error)
    raise ValidationError(
        'timestamp: expected a datetime or an ISO-8601 str such as '
        '2026-01-02T03:04:05+00:00, got %s' % name_of(type(value))
    )


def _as_plain_utc(moment: datetime) -> datetime:
    """Return a new datetime in UTC from the fields of another one."""
    day = (moment.year, moment.month, moment.day)
    clock = (moment.hour, moment.minute, moment.second, moment.microsecond)
    return datetime(*day, *clock, tzinfo=timezone.utc)


def _written(moment: datetime) -> str:
    text = moment.isoformat(timespec='milliseconds')
    if not re.match(_WRITTEN, text):
        # The offset has seconds, as most offsets had before time zones were introduced.
        text = moment.astimezone(timezone.utc).isoformat(timespec='milliseconds')
    if not re.match(_WRITTEN, text):
        raise ValueError(text)  # pandas.NaT is a datetime, and writes 'NaT'
    return text


def parse(text: str) -> datetime:
    """Return the datetime of an ISO-8601 text; raise `ValidationError` for other text."""
    # dateutil alone accepts 'May', and completes it from the current date.
    if re.match(_ISO, text.strip()):
        from dateutil import parser

        try:
            moment = parser.parse(text.strip())
            moment.utcoffset()  # raises for an impossible offset such as +99:99
            return moment
        except (ValueError, OverflowError):
            pass
    raise ValidationError(
        'timestamp: expected an ISO-8601 str such as 2026-01-02T03:04:05+00:00, got '
        'another str'
    )
