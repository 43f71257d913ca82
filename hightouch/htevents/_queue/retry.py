"""When to try again."""

from typing import Optional

from hightouch.htevents._queue.stores import Policy, Store
from hightouch.htevents.settings import is_number

# Seconds. The first wait is at most BASE, each next one at most twice that, never more
# than MAX_WAIT. Full jitter (a random part of it) keeps a thousand processes from coming
# back together.
BASE = 1.0
MAX_WAIT = 30.0

# Seconds that every wait takes at least.
MIN_WAIT = 0.1

# The longest wait, in seconds, that a server may ask for.
MAX_RETRY_AFTER = 300.0


class Retries:
    """The retries of one request.

    :param limit: how many there may be, if the policy sets no other limit
    :param policy: of the store
    """

    def __init__(self, limit: float, policy: Policy = Store.policy) -> None:
        self._limit = policy.most_retries(limit)
        self._is_final = policy.is_final
        self._failed = 0
        self._token_renewed = False

    def next_wait(self, error: BaseException) -> Optional[float]:
        """Return the seconds to wait before the next try; None when ``error`` stands."""
        if getattr(error, 'token_refused', False) and not self._token_renewed:
            self._token_renewed = True  # does not count: the next try gets a new token
            return MIN_WAIT
        if self._failed >= self._limit or self._is_final(error):
            return None
        self._failed += 1
        # An error class of the application may have anything here.
        advice = getattr(error, 'retry_after', None)
        return wait_time(self._failed - 1, advice if is_number(advice) else None)


def wait_time(attempt: int, retry_after: Optional[float] = None) -> float:
    """Return the seconds to wait after failed attempt number ``attempt`` (0 the first).

    ``random(0, min(MAX_WAIT, BASE * 2 ** attempt))``, or the longer wait that the server
    asked for.
    """
    from backoff import full_jitter

    back_off = full_jitter(min(MAX_WAIT, BASE * 2.0 ** min(attempt, 16)))
    return max(MIN_WAIT, float(back_off), min(retry_after or 0.0, MAX_RETRY_AFTER))
