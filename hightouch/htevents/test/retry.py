import tempfile
import time
import unittest
from datetime import datetime, timedelta, timezone
from typing import Any, List

from hightouch.htevents import request
from hightouch.htevents._process.answers import parse_retry_after
from hightouch.htevents._queue.retry import wait_time
from hightouch.htevents.collector import Fault
from hightouch.htevents.test.support import LIMIT, TestCase


class WaitTest(unittest.TestCase):
    def test_waits_are_jittered_grow_and_are_bounded(self) -> None:
        for attempt, cap in ((0, 1), (3, 8), (5, 30), (1000, 30)):
            waits = [wait_time(attempt) for _ in range(200)]
            self.assertTrue(all(0.1 <= each <= cap for each in waits))
            self.assertGreater(max(waits) - min(waits), cap / 4)

    def test_advice_lengthens_a_wait_and_never_shortens_it(self) -> None:
        self.assertEqual(wait_time(0, 17), 17)
        self.assertEqual(wait_time(0, 1e9), 300)
        self.assertEqual(wait_time(0, float('inf')), 300)
        for advice in (0.0, 0.001, -5.0):
            self.assertGreater(max(wait_time(5, advice) for _ in range(200)), 5)
            self.assertGreaterEqual(min(wait_time(0, advice) for _ in range(200)), 0.1)

    def test_retry_after_is_plain_digits_or_an_http_date(self) -> None:
        now = datetime(2026, 1, 1, 0, 0, 0, tzinfo=timezone.utc).timestamp()
        for value, wanted in (
            ('7', 7),
            ('007', 7),
            (' 1.5 ', 1.5),
            ('0', 0),
            ('9' * 400, float('inf')),
            ('Thu, 01 Jan 2026 00:01:00 GMT', 60),
            ('Thursday, 01-Jan-26 00:01:00 GMT', 60),
            ('Thu Jan  1 00:01:00 2026', 60),
            ('Wed, 31 Dec 2025 00:00:00 GMT', 0),
        ):
            self.assertEqual(parse_retry_after(value, now), wanted, value)
        for value in (
            ['-3', '+3', '1e1', '1e400', '1_0', '0x10', 'inf', 'nan', '.5', '5.', '1,5']
            + ['٣', '７', '7\n8', '7 8', '5, 10', 'soon', '', ' ', '\xa07', '7;']
            + ['Thu, 01 Jan 2026 01:01:00 +0100', 'Thu, 1 Jan 2026 00:01:00 GMT']
            + ['01 Jan 2026', '2026-01-01T00:01:00Z', 'Thu, 31 Feb 2026 00:01:00 GMT']
            + ['99, 99 Foo 99999999999 99:99:99 GMT', 'Thu, 01 Foo 2026 00:01:00 GMT']
            + ['Thu, 01 Jan 2026 25:61:00 GMT', 'Thu, 01 Jan 2026 00:01:00 GMT; x']
        ):
            self.assertIsNone(parse_retry_after(value, now), value)


class RetryTest(TestCase):
    def test_no_advice_makes_a_retry_come_at_once(self) -> None:
        for header in ('0', '0.0', '-1', 'Wed, 21 Oct 2015 07:28:00 GMT'):
            times: List[float] = []

            def busy(_: Any, header: str = header) -> Fault:
                times.append(time.monotonic())
                return Fault(503, {'Retry-After': header})

            with tempfile.TemporaryDirectory() as folder:
                for settings in ({'max_retries': 2}, {'spool_dir': folder}):  # type: Any
                    del times[:]
                    self.collector.script(busy, busy, busy)
                    client = self.client(**settings)
                    client.track('user', 'event')
                    self.assertTrue(client.flush(LIMIT))
                    self.assertEqual(client.stats().failed, 'max_retries' in settings)
                    pauses = [after - before for before, after in zip(times, times[1:])]
                    # A hair less, for the rounding of clocks.
                    self.assertTrue(len(pauses) == 2 and min(pauses) > 0.099, pauses)
                    client.shutdown()

    def test_a_last_try_before_time_is_over_does_not_come_at_once_either(self) -> None:
        times: List[float] = []

        def busy(_: Any) -> Fault:
            times.append(time.monotonic())
            return Fault(503, {'Retry-After': '300'}) if len(times) == 1 else Fault()

        self.collector.script(busy, busy)
        client = self.holding()
        client.track('user', 'event')
        self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(client.stats().delivered, 1)
        self.assertGreater(times[1] - times[0], 0.099)

    def test_a_date_counts_from_that_of_the_answer(self) -> None:
        for clock in (timedelta(days=-300), timedelta(hours=5)):
            server = datetime.now(timezone.utc) + clock
            form = '%a, %d %b %Y %H:%M:%S GMT'
            headers = {
                'Date': server.strftime(form),
                'Retry-After': (server + timedelta(seconds=40)).strftime(form),
            }
            self.collector.script(Fault(503, headers))
            with self.assertRaises(request.APIError) as caught:
                request.post('key', self.collector.url, batch=[])
            self.assertEqual(caught.exception.retry_after, 40)


if __name__ == '__main__':
    unittest.main()
