"""When to try again."""

import re
from typing import Callable, Optional

from hightouch.htevents.errors import is_retryable
from hightouch.htevents.settings import is_number

# Seconds. The first wait is at most BASE, each next one at most twice that, never more
# than MAX_WAIT. Full jitter (a random part of it) keeps a thousand processes from coming
# back together.
BASE = 1.0
MAX_WAIT = 30.0

# Seconds that every wait takes at least.
MIN_WAIT = 0.1

# Seconds that a server may ask for; what it asks beyond is cut to this.
MAX_RETRY_AFTER = 300.0

_NUMBER = re.compile(r'[0-9]+(\.[0-9]+)?\Z')

# The three forms that HTTP knows: today's, that of RFC 850, and that of C's asctime.
_DATE = re.compile(
    r'([A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT'
    r'|[A-Z][a-z]+, [0-9]{2}-[A-Z][a-z]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT'
    r'|[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4})\Z'
)


def is_final(error: BaseException) -> bool:
    return not is_retryable(error)


class Retries:
    """The retries of one request.

    :param limit: how many there may be
    :param is_final: says whether an error is one that no retry can help
    """

    def __init__(
        self, limit: float, is_final: Callable[[BaseException], bool] = is_final
    ) -> None:
        self._limit = limit
        self._is_final = is_final
        self._failed = 0
        self._token_renewed = False

    def next_wait(self, error: BaseException) -> Optional[float]:
        """Return the seconds to wait before the next try; None when ``error`` stands."""
        if getattr(error, 'token_refused', False) and not self._token_renewed:
            self._token_renewed = True  # the next try gets a new one: none has failed
            return MIN_WAIT
        if self._failed >= self._limit or self._is_final(error):
            return None
        self._failed += 1
        # Anything, in an error of the application's own.
        advice = getattr(error, 'retry_after', None)
        return wait_time(self._failed - 1, advice if is_number(advice) else None)


def wait_time(attempt: int, retry_after: Optional[float] = None) -> float:
    """Return the seconds to wait after failed attempt number ``attempt`` (0 the first).

    ``random(0, min(MAX_WAIT, BASE * 2 ** attempt))``, or what the server asked for if
    that is longer.
    """
    from backoff import full_jitter

    back_off = full_jitter(min(MAX_WAIT, BASE * 2.0 ** min(attempt, 16)))
    return max(MIN_WAIT, float(back_off), min(retry_after or 0.0, MAX_RETRY_AFTER))


def parse_retry_after(value: str, now: float) -> Optional[float]:
    """Read a Retry-After header: seconds, or an HTTP date; None if it is neither.

    :param now: seconds since the epoch: by the clock of the server, if it told
    :returns: seconds from now, never negative
    """
    seconds = parse_number(value)
    if seconds is not None:
        return seconds
    moment = parse_http_date(value)
    return None if moment is None else max(0.0, moment - now)


def parse_number(value: str) -> Optional[float]:
    """Read a whole or decimal number of plain digits; None if it is not one."""
    value = value.strip(' \t')
    return float(value) if _NUMBER.match(value) else None


def parse_http_date(value: str) -> Optional[int]:
    """Read an HTTP date: seconds since the epoch; None if it is not one."""
    if not _DATE.match(value.strip(' \t')):
        return None
    # Here, because few answers need it; and requests has imported both already.
    import calendar
    from datetime import datetime
    from email.utils import parsedate

    try:
        date = parsedate(value)
        return date and calendar.timegm(datetime(*date[:6]).timetuple())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
