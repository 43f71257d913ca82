"""When to try again: small functions without state."""

import time
from typing import Optional

# Seconds. The first wait is at most BASE, each next one at most twice that, never more
# than MAX_WAIT. Full jitter (a random part of it) keeps a thousand processes from coming
# back together.
BASE = 1.0
MAX_WAIT = 30.0

# Seconds that a server may ask for; what it asks beyond is cut to this.
MAX_RETRY_AFTER = 300.0


def wait_time(attempt: int, retry_after: Optional[float] = None) -> float:
    """Give the seconds to wait after failed attempt number ``attempt`` (0 the first).

    ``random(0, min(MAX_WAIT, BASE * 2 ** attempt))``, or what the server asked for.
    """
    if retry_after is not None:
        return min(max(0.0, retry_after), MAX_RETRY_AFTER)
    from backoff import full_jitter

    return float(full_jitter(min(MAX_WAIT, BASE * 2.0 ** min(attempt, 16))))


def parse_retry_after(
    value: Optional[str], now: Optional[float] = None
) -> Optional[float]:
    """Read a Retry-After header: seconds, or an HTTP date; None if it is neither.

    :param now: seconds since the epoch; None: the clock's
    :returns: seconds from now, never negative
    """
    if not value:
        return None
    try:
        seconds = float(value.strip())
    except ValueError:
        pass
    else:
        # An infinity is cut by wait_time; NaN is no number to wait for.
        return max(0.0, seconds) if seconds == seconds else None
    moment = parse_http_date(value)
    if moment is None:
        return None
    return max(0.0, moment - (time.time() if now is None else now))


def parse_http_date(value: str) -> Optional[int]:
    """Read an HTTP date: seconds since the epoch; None if it is not one."""
    # Here, because few answers need it; and requests has imported both already.
    import calendar
    from email.utils import parsedate_tz

    try:
        date = parsedate_tz(value)
        if date is None:
            return None
        return calendar.timegm(date[:6] + (0, 0, 0)) - (date[9] or 0)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
