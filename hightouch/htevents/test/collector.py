import gzip
import http.client
import json
import unittest
from datetime import datetime, timedelta, timezone
from typing import Any

import requests

from hightouch.htevents.collector import Collector, Fault, check_event
from hightouch.htevents.stamps import iso_now, to_iso
from hightouch.htevents.test.support import TestCase


def event(**changes: Any) -> Any:
    made = {
        'type': 'track',
        'event': 'event',
        'messageId': 'id',
        'timestamp': iso_now(),
        'userId': 'user',
        'anonymousId': None,
        'properties': {},
        'integrations': {},
        'context': {'library': {'name': 'a', 'version': 'b'}},
    }
    made.update(changes)
    return made


class CheckTest(unittest.TestCase):
    def test_a_good_event_has_no_problem(self) -> None:
        self.assertEqual(check_event(event()), [])

    def test_each_problem_is_named(self) -> None:
        old = to_iso(datetime.now(timezone.utc) - timedelta(days=8))
        for changes, named in (
            ({'type': 'other'}, 'type'),
            ({'type': []}, 'type'),
            ({'messageId': None}, 'messageId'),
            ({'timestamp': 'now'}, 'timestamp'),
            ({'timestamp': '2026-13-01T00:00:00Z'}, 'timestamp'),
            ({'timestamp': '9999-12-31T23:00:00-12:00'}, 'timestamp'),
            ({'timestamp': old}, '7 days'),
            ({'userId': None}, 'userId'),
            ({'userId': 7}, 'userId'),
            ({'event': None}, 'event'),
            ({'properties': None}, 'properties'),
            ({'context': {}}, 'context.library'),
            ({'integrations': None}, 'integrations'),
            ({'type': 'group', 'traits': {}}, 'groupId'),
            ({'type': 'alias'}, 'previousId'),
            ({'properties': {'x': 'x' * 40000}}, '32768'),
        ):  # type: Any
            problems = check_event(event(**changes))
            self.assertTrue(any(named in each for each in problems), problems)
        self.assertTrue(check_event(7))


class CollectorTest(TestCase):
    def post(self, body: Any, path: str = '/v1/batch') -> int:
        response = requests.post(
            self.collector.url + path, data=json.dumps(body), timeout=30
        )
        return response.status_code

    def test_a_batch_with_a_bad_event_is_refused_as_a_whole(self) -> None:
        good = {'batch': [event()], 'writeKey': 'key'}
        self.assertEqual(self.post(good), 200)
        bad = {'batch': [event(), event(type='x')], 'writeKey': 'key'}
        self.assertEqual(self.post(bad), 400)
        for body in (7, {}, {'batch': 7}, {'batch': [event()]}):
            self.assertEqual(self.post(body), 400)
        self.assertEqual(self.post(good, '/other'), 404)
        self.assertEqual(len(self.collector.events), 1)

    def test_faults_come_in_the_order_of_the_script(self) -> None:
        body = {'batch': [event()], 'writeKey': 'key'}
        self.collector.script(
            503,
            'reset',
            'reset-before',
            'reset-after',
            Fault(418, {'X-A': 'b'}, b'tea'),
        )
        self.assertEqual(self.post(body), 503)
        for _ in range(3):
            with self.assertRaises(requests.ConnectionError):
                self.post(body)
        self.assertEqual(len(self.collector.events), 1)  # reset-after took it
        self.assertEqual(self.post(body), 418)
        self.assertEqual(self.post(body), 200)
        self.assertEqual(
            [each.status for each in self.collector.requests],
            [503, 'reset', 'reset-before', 'reset-after', 418, 200],
        )

    def test_a_compressed_body_is_read(self) -> None:
        body = json.dumps({'batch': [event()], 'writeKey': 'key'}).encode()
        connection = http.client.HTTPConnection('127.0.0.1', self.collector.port)
        for data, status in ((gzip.compress(body), 200), (b'no gzip', 400)):
            connection.request('POST', '/v1/batch', data, {'Content-Encoding': 'gzip'})
            answer = connection.getresponse()
            answer.read()
            self.assertEqual(answer.status, status)
        connection.close()
        self.assertEqual(self.collector.connections, 1)

    def test_a_token_request_lacking_a_field_is_refused(self) -> None:
        response = requests.post(
            self.collector.url + '/token', data={'a': 1}, timeout=30
        )
        self.assertEqual(response.status_code, 400)

    def test_it_starts_again_on_the_same_port(self) -> None:
        url = self.collector.url
        self.collector.stop()
        self.collector.stop()
        with self.assertRaises(requests.ConnectionError):
            self.post({})
        self.collector.start()
        self.assertEqual(self.collector.url, url)
        self.assertEqual(self.post({}), 400)

    def test_waiting_for_what_does_not_come_ends(self) -> None:
        with Collector() as collector:
            self.assertFalse(collector.wait_for(1, timeout=0.01))
            self.assertFalse(collector.wait_for_requests(1, timeout=0.01))


if __name__ == '__main__':
    unittest.main()
