"""What an event costs the host, in calls: a figure that no machine's weather changes.

A change that makes a call or a delivery dearer fails here. If it is worth it, measure it
with ``benchmarks/``, and raise the bound to what the failure says; if it makes them
cheaper, lower it.
"""

import gc
import sys
import tempfile
import unittest
from datetime import datetime, timezone
from typing import Any, Callable

import hightouch.htevents as htevents
from hightouch.htevents.test.support import TestCase, no_threads

EVENTS = 200

# Calls of functions, Python's and C's, for an event; the most that a Python we support
# makes. Of a delivery nearly all are those of requests (another release of it may need
# another bound), shared by 100 events.
TRACK_CALLS = 55
TRACK_SPOOLED_CALLS = 72
TRACK_SCOPED_CALLS = 95
DELIVERY_CALLS = 21

PROPERTIES = {
    'order_id': 'o-1234567',
    'total': 129.95,
    'at': datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    'address': {'city': 'Berlin', 'lines': ['Street 1', 'Floor 2']},
}


def calls(function: Callable[[], Any]) -> int:
    """Count the calls that this thread makes in ``function``."""
    count = [0]

    def note(frame: Any, event: str, argument: Any) -> None:
        if event in ('call', 'c_call'):
            count[0] += 1

    before = sys.getprofile()
    # Else the destructors of what other tests left are counted, now and then.
    gc.collect()
    gc.disable()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count[0]


class CostTest(TestCase):
    def track(self, client: Any) -> None:
        for _ in range(EVENTS):
            client.track('user', 'Order Completed', PROPERTIES, {'ip': '203.0.113.7'})

    def test_a_call_makes_no_more_calls_than_it_did(self) -> None:
        # Whether a call wakes a consumer depends on what that is doing just now.
        with no_threads():
            client = self.holding()
            self.track(client)
            made = calls(lambda: self.track(client)) / EVENTS
        self.assertLessEqual(made, TRACK_CALLS)

    def test_a_call_in_a_scope_makes_no_more_calls_than_it_did(self) -> None:
        context = {'ip': '203.0.113.7', 'locale': 'de', 'page': {'path': '/'}}
        with no_threads(), htevents.scope('user', 'visitor', context):
            client = self.holding()
            self.track(client)
            made = calls(lambda: self.track(client)) / EVENTS
        self.assertLessEqual(made, TRACK_SCOPED_CALLS)

    def test_a_call_with_a_spool_makes_no_more_calls_than_it_did(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            with no_threads():
                client = self.client(spool_dir=folder)
                self.track(client)
                made = calls(lambda: self.track(client)) / EVENTS
            client.shutdown()
        self.assertLessEqual(made, TRACK_SPOOLED_CALLS)

    def test_a_delivery_makes_no_more_calls_than_it_did(self) -> None:
        client = self.client(upload_interval=60, upload_size=10000)
        self.sent()  # what is made once
        self.track(client)
        consumer = client._delivery._make_consumer()
        consumer.upload_size = 100
        made = calls(consumer.drain) / EVENTS
        self.assertEqual(client.stats().delivered, EVENTS)
        self.assertLessEqual(made, DELIVERY_CALLS)


if __name__ == '__main__':
    unittest.main()
