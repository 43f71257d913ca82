"""What becomes of events on the disk that cannot be delivered: they wait, up to 7 days."""

import json
from datetime import datetime, timedelta, timezone
from typing import Any, List, Sequence

from hightouch.htevents._queue.stores import Policy
from hightouch.htevents.errors import (
    FINAL_STATUSES,
    MAX_AGE_DAYS,
    APIError,
    OauthError,
)
from hightouch.htevents.stamps import parse

_TIMESTAMP = b'"timestamp":"'


class DurablePolicy(Policy):
    durable = True

    def most_retries(self, retries: float) -> float:
        return float('inf')

    def is_final(self, error: BaseException) -> bool:
        # A setting that is wrong today can be right after the next start.
        return (
            isinstance(error, APIError)
            and not isinstance(error, OauthError)
            and error.status in FINAL_STATUSES
        )

    def expired(self, items: Sequence[Any]) -> List[bool]:
        return are_expired([item[0] for item in items])


def are_expired(bodies: Sequence[bytes]) -> List[bool]:
    """Say of each encoded message whether it is too old for the collector."""
    oldest = datetime.now(timezone.utc) - timedelta(days=MAX_AGE_DAYS)
    # By the day first, whatever the offset: nearly all messages are of today. The
    # timestamp comes last in a message, so that the last one found is its own.
    day = (oldest + timedelta(days=2)).strftime('%Y-%m-%d').encode('ascii')
    expired = []
    for body in bodies:
        start = body.rfind(_TIMESTAMP) + len(_TIMESTAMP)
        expired.append(body[start : start + 10] <= day and _is_before(body, oldest))
    return expired


def _is_before(body: bytes, oldest: datetime) -> bool:
    try:
        moment = parse(json.loads(body.decode('utf-8'))['timestamp'])
        return moment.tzinfo is not None and moment < oldest
    except Exception:  # a damaged message, or what before_send made of one
        return False  # that is the collector's to say
