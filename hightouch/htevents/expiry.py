"""Which encoded messages have become too old while they waited on the disk."""

import json
from datetime import datetime, timedelta, timezone
from typing import List, Sequence

from hightouch.htevents.stamps import parse

# The collector refuses older events.
MAX_AGE_DAYS = 7

_TIMESTAMP = b'"timestamp":"'


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
