"""What each message is stamped with: an id and a time, made cheaply."""

import re
from datetime import datetime, timezone
from os import urandom  # the original: a test may replace it, and ids are made ahead
from time import gmtime, strftime, time
from typing import Any, List, Tuple

from hightouch.htevents import forms, utils
from hightouch.htevents._process import fork
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents.errors import ValidationError, name_of

# Ids made of one read of the system's random numbers: the call costs more than an id.
_IDS_PER_READ = 256

# A UUID4's 7th byte begins with its version, and its 9th with two bits of its variant.
_VERSION_4 = bytes(each & 0x0F | 0x40 for each in range(256))
_VARIANT = bytes(each & 0x3F | 0x80 for each in range(256))

# One id of a read, before its digits are there; and where each of its 32 digits goes.
_BLANK_ID = b'________-____-____-____-____________\n'
_PLACES = [place for place, each in enumerate(_BLANK_ID) if each == ord('_')]

# A text, which re compiles with its first use: many programs never need it.
_ISO = (
    r'\d{4}-?\d\d-?\d\d'
    r'(?:[Tt ]\d\d(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?(?:[Zz]|[+-]\d\d(?::?\d\d)?)?)?$'
)
_WRITTEN = r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d\Z'


class _Ids:
    """Ids made in advance; popping one is atomic, so threads need no lock."""

    def __init__(self) -> None:
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # A child that went on with its parent's would make the same ids.
        self.ready: List[str] = []

    def refill(self) -> str:
        ready = self.ready
        numbers = bytearray(urandom(16 * _IDS_PER_READ))
        numbers[6::16] = numbers[6::16].translate(_VERSION_4)
        numbers[8::16] = numbers[8::16].translate(_VARIANT)
        digits = numbers.hex().encode('ascii')
        text = bytearray(_BLANK_ID * _IDS_PER_READ)
        # By column, and not by id: 32 steps in C for all of them (0.16 us for one id).
        for number, place in enumerate(_PLACES):
            text[place :: len(_BLANK_ID)] = digits[number :: len(_PLACES)]
        made = text.decode('ascii').split()
        if ready is not self.ready:  # this is a child, forked in here
            return self.refill()
        one = made.pop()
        ready.extend(made)
        return one


_ids = _Ids()


def new_message_id() -> str:
    """Make a random UUID4 as text."""
    try:
        return _ids.ready.pop()
    except IndexError:
        return _ids.refill()


# Milliseconds of the epoch, and their text; the seconds in it first. One tuple, so that a
# thread never reads half of it.
_latest: Tuple[int, str, str] = (-1, '', '')


def iso_now() -> str:
    """Give the time in UTC, in milliseconds: ``2026-01-02T03:04:05.678+00:00``."""
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
    """Give a time in ISO-8601 with milliseconds and an offset.

    :param value: a datetime or an ISO-8601 str; without an offset see
        `utils.guess_timezone`. None: now
    :raises ValidationError: when it is neither
    """
    value = forms.plain_scalar(value)
    if value is None:
        return iso_now()
    moment = parse(value) if forms.is_a(value, str) else value
    if not forms.is_a(moment, datetime):
        raise ValidationError(
            'timestamp: expected a datetime or an ISO-8601 str such as '
            '2026-01-02T03:04:05+00:00, got %s' % name_of(type(value))
        )
    try:
        return _written(utils.guess_timezone(moment))
    except Exception as error:
        # A tzinfo or a class of the application's own may raise anything.
        raise_interruption(error)
    try:
        day = (moment.year, moment.month, moment.day)
        clock = (moment.hour, moment.minute, moment.second, moment.microsecond)
        return _written(datetime(*day, *clock, tzinfo=timezone.utc))
    except Exception as error:
        raise_interruption(error)
        raise ValidationError(
            'timestamp: expected a datetime, got %s, which is not a time'
            % name_of(type(value))
        )


def _written(moment: datetime) -> str:
    text = moment.isoformat(timespec='milliseconds')
    if not re.match(_WRITTEN, text):
        # Its offset has seconds, as most had before there were time zones.
        text = moment.astimezone(timezone.utc).isoformat(timespec='milliseconds')
    if not re.match(_WRITTEN, text):
        raise ValueError(text)  # pandas.NaT is a datetime, and writes 'NaT'
    return text


def parse(text: str) -> datetime:
    """Read an ISO-8601 time; raises `ValidationError` when it is none."""
    # dateutil alone takes 'May', and fills in the rest from today.
    if re.match(_ISO, text.strip()):
        from dateutil import parser

        try:
            moment = parser.parse(text.strip())
            moment.utcoffset()  # raises, as +99:99 says nothing
            return moment
        except (ValueError, OverflowError):
            pass
    raise ValidationError(
        'timestamp: expected ISO-8601 such as 2026-01-02T03:04:05+00:00, got a str '
        'that is not'
    )
