import gzip
import json
import logging
import unittest
from datetime import date, datetime

import mock
import requests

from hightouch.htevents import request
from hightouch.htevents._queue.batch import Batch
from hightouch.htevents.collector import Fault
from hightouch.htevents.errors import ValidationError, is_retryable
from hightouch.htevents.test.support import LogCatcher, TestCase
from hightouch.htevents.version import VERSION


class PostTest(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.collector.strict = False

    def test_the_body_is_what_was_given_with_time_and_key(self) -> None:
        response = request.post(
            'key', self.collector.url + '/', batch=[{'when': datetime(2026, 1, 2)}]
        )
        self.assertEqual(response.status_code, 200)
        received = self.collector.requests[0]
        self.assertEqual(received.path, '/v1/batch')
        self.assertEqual(received.body['batch'], [{'when': '2026-01-02T00:00:00'}])
        self.assertEqual(received.body['writeKey'], 'key')
        self.assertRegex(received.body['sentAt'], r'^\d{4}-.*T.*\+00:00$')
        self.assertEqual(received.headers['content-type'], 'application/json')
        self.assertEqual(received.headers['user-agent'], 'events-sdk-python/' + VERSION)

    def test_a_batch_is_joined_as_it_was_encoded(self) -> None:
        body = b'{"a":  1}'
        request.post('k"ey', self.collector.url, batch=Batch([(body, 0, None)] * 2))
        received = self.collector.requests[0]
        self.assertEqual(received.body['batch'], [{'a': 1}, {'a': 1}])
        self.assertEqual(received.body['writeKey'], 'k"ey')
        self.assertIn(body, received.raw)

    def test_a_token_that_fits_no_header_is_refused_and_not_shown(self) -> None:
        for token in ('SECRET\nline', 'SECRET two', '', 7):
            manager = mock.Mock(**{'get_token.return_value': token})
            with self.assertRaises(request.APIError) as caught:
                request.post('key', self.collector.url, oauth_manager=manager, batch=[])
            self.assertIn('get_token()', str(caught.exception))
            self.assertNotIn('SECRET', repr(caught.exception))
        self.assertEqual(self.collector.requests, [])

    def test_gzip_is_gzip(self) -> None:
        built = request.build(b'{}', None, True)
        self.assertEqual(gzip.decompress(built.data), b'{}')
        self.assertEqual(built.headers['Content-Encoding'], 'gzip')
        self.assertEqual(built.url, 'https://us-east-1.hightouch-events.com/v1/batch')

    def test_an_error_carries_what_the_server_said(self) -> None:
        body = b'{"code": "bad", "message": "no such key"}'
        self.collector.script(Fault(401, {'Retry-After': '9'}, body))
        with self.assertRaises(request.APIError) as caught:
            request.post('write-key', self.collector.url, batch=[])
        error = caught.exception
        self.assertEqual((error.status, error.code), (401, 'bad'))
        self.assertEqual((error.message, error.retry_after), ('no such key', 9))
        self.assertFalse(error.retryable)
        self.assertEqual(str(error), '[Hightouch] bad: no such key (401)')

    def test_a_huge_error_body_gives_a_short_text(self) -> None:
        for body in (b'x' * 10**6, json.dumps({'message': 'x' * 10**6}).encode()):
            self.collector.script(Fault(404, {}, body))
            with self.assertRaises(request.APIError) as caught:
                request.post('key', self.collector.url, batch=[])
            self.assertLess(len(str(caught.exception)), 1000)

    def test_no_answer_is_an_error_of_requests_that_may_be_retried(self) -> None:
        self.collector.script('reset', 'reset-before')
        for _ in range(2):
            with self.assertRaises(requests.RequestException) as caught:
                request.post('key', self.collector.url, batch=[])
            self.assertTrue(is_retryable(caught.exception))

    def test_a_timeout_ends_the_wait(self) -> None:
        self.collector.script('hang')
        with self.assertRaises(requests.Timeout):
            request.post('key', self.collector.url, timeout=0.1, batch=[])

    def test_proxies_may_be_a_host_and_port(self) -> None:
        address = self.collector.url[len('http://') :]
        request.post('key', 'http://nowhere.invalid', proxies=address, batch=[])
        self.assertEqual(
            self.collector.requests[0].path, 'http://nowhere.invalid/v1/batch'
        )
        self.assertEqual(
            request.normalize_proxies({'http': 'http://p:1'}), {'http': 'http://p:1'}
        )
        self.assertIsNone(request.normalize_proxies(None))
        for none in ('', ' ', {}, [], (), 0, False):
            self.assertIsNone(request.normalize_proxies(none))
        for word in ({'http': None, 'https': None}, {'http': ' ', 'https': False}):
            self.assertEqual(
                request.normalize_proxies(word), {'http': None, 'https': None}
            )
        self.assertEqual(
            request.normalize_proxies({'http': ' http://p:1\n'}), {'http': 'http://p:1'}
        )
        for wrong in (7, [1], {'http': 7}, {1: 'http://p:1'}):
            with self.assertRaises(ValidationError):
                request.normalize_proxies(wrong)

    def test_a_manager_that_knows_only_two_calls_will_do(self) -> None:
        class Manager:
            cleared = 0

            def get_token(self) -> str:
                return 'mine'

            def clear_token(self) -> None:
                self.cleared += 1

        manager = Manager()
        self.collector.script(401)
        with self.assertRaises(request.APIError):
            request.post('key', self.collector.url, oauth_manager=manager, batch=[])
        self.assertEqual(manager.cleared, 1)
        self.assertEqual(
            self.collector.requests[0].headers['authorization'], 'Bearer mine'
        )

    def test_a_debug_line_shows_no_key(self) -> None:
        with LogCatcher() as log:
            request.post('secret-key', self.collector.url, batch=[])
        self.assertTrue(log.lines(logging.DEBUG))
        self.assertNotIn('secret-key', ''.join(log.lines()))

    def test_dates_are_serialized_in_iso(self) -> None:
        text = json.dumps([date(2026, 1, 2)], cls=request.DatetimeSerializer)
        self.assertEqual(text, '["2026-01-02"]')
        with self.assertRaises(TypeError):
            json.dumps(object(), cls=request.DatetimeSerializer)


if __name__ == '__main__':
    unittest.main()
