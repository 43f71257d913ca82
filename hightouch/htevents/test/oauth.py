import base64
import json
import logging
import threading
import time
import unittest
from email.utils import formatdate
from typing import Any

import mock
import requests

from hightouch.htevents import request
from hightouch.htevents.collector import Fault
from hightouch.htevents.consumer import Consumer
from hightouch.htevents.test.support import (
    LIMIT,
    LogCatcher,
    Recorder,
    TestCase,
    make_key,
    netrc,
    no_threads,
)


class OauthTest(TestCase):
    key = make_key()

    def setUp(self) -> None:
        super().setUp()
        self.now = time.time()
        self.waits = []  # type: Any

    def manager(self, **kwargs: Any) -> Any:
        from hightouch.htevents.oauth_manager import OauthManager

        kwargs.setdefault('clock', lambda: self.now)
        kwargs.setdefault('sleep', self.waits.append)
        server = kwargs.pop('auth_server', self.collector.url + '/')
        return OauthManager('id', self.key, 'kid', server, **kwargs)

    def test_a_get_token_that_a_test_replaces_is_called(self) -> None:
        from hightouch.htevents.oauth_manager import OauthManager

        for given in (
            {'new': lambda _: 'mine'},
            {'return_value': 'mine'},
            {'return_value': 'mine', 'autospec': True},
        ):  # type: Any
            with mock.patch.object(OauthManager, 'get_token', **given):
                client = self.oauth_client()
                client.track('user', 'event')
                self.assertTrue(client.flush(LIMIT))
        tokens = [each.headers['authorization'] for each in self.collector.requests]
        self.assertEqual(tokens, ['Bearer mine'] * 3)
        self.assertEqual(self.collector.token_requests, [])

    def test_ids_may_be_numbers_and_carry_white_space(self) -> None:
        for client_id, key_id, claimed in (
            (5, 7, ('5', '7')),
            ('id\n', ' kid ', ('id', 'kid')),
            (b'id', b'kid', ('id', 'kid')),
        ):  # type: Any
            client = self.client(
                oauth_client_id=client_id,
                oauth_client_key=self.key,
                oauth_key_id=key_id,
                oauth_auth_server=' %s/\n' % self.collector.url,
                oauth_scope=None,
            )
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(client.stats().delivered, 1)
            header, claims = self.claims()
            self.assertEqual((claims['iss'], header['kid']), claimed)
            self.assertEqual(claims['sub'], claimed[0])
            scope = self.collector.token_requests[-1]['scope']
            self.assertEqual(scope, 'tracking_api:write')

    def test_credentials_in_a_url_are_sent_and_only_a_token_replaces_them(self) -> None:
        plain = 'ł@er:pa ss'.encode('utf-8')
        basic = 'Basic ' + base64.b64encode(plain).decode('ascii')
        mine = 'Basic ' + base64.b64encode(b'me:secret').decode('ascii')
        url = self.collector.url.replace('//', '//ł%40er:pa%20ss@')
        with netrc('other', 'other'):
            self.sent(host=url)
            with requests.Session() as session:
                self.sent(host=url, session=session)
                session.auth = ''
                self.sent(host=url, session=session)
                session.auth = ('me', 'secret')
                self.sent(host=url, session=session)
            client = self.oauth_client(host=url, oauth_auth_server=url)
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
        given = [each.headers.get('authorization') for each in self.collector.requests]
        self.assertEqual(given[:5], [basic, basic, basic, mine, basic])
        self.assertRegex(given[5], '^Bearer ')
        self.assertEqual(self.claims()[1]['aud'], self.collector.url)

    def fault(self, *steps: Any) -> None:
        self.collector.token_faults.extend(steps)

    def claims(self, number: int = -1) -> Any:
        import jwt
        from cryptography.hazmat.backends import default_backend
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        private = load_pem_private_key(self.key.encode(), None, default_backend())
        assertion = self.collector.token_requests[number]['client_assertion']
        header = jwt.get_unverified_header(assertion)
        claims = jwt.decode(
            assertion,
            private.public_key(),
            algorithms=['RS256'],
            audience=self.collector.url,
            options={'verify_exp': False, 'verify_iat': False},
        )
        return header, claims

    def test_the_request_is_as_the_server_expects_it(self) -> None:
        self.assertEqual(self.manager().get_token(), 'token-1')
        form = self.collector.token_requests[0]
        self.assertEqual(form['grant_type'], 'client_credentials')
        self.assertEqual(form['scope'], 'tracking_api:write')
        self.assertEqual(
            form['client_assertion_type'],
            'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
        )
        received = self.collector.requests[0]
        self.assertEqual(received.path, '/token')
        self.assertEqual(
            received.headers['content-type'], 'application/x-www-form-urlencoded'
        )
        header, claims = self.claims()
        self.assertEqual((header['alg'], header['kid']), ('RS256', 'kid'))
        self.assertEqual((claims['iss'], claims['sub']), ('id', 'id'))
        self.assertEqual(claims['aud'], self.collector.url)
        self.assertEqual(claims['iat'], int(self.now) - 5)
        self.assertEqual(claims['exp'], int(self.now) + 55)

    def test_a_token_is_kept_until_half_its_life(self) -> None:
        manager = self.manager()
        for seconds, wanted in ((0, 'token-1'), (1799, 'token-1'), (2, 'token-2')):
            self.now += seconds
            self.assertEqual(manager.get_token(), wanted)

    def test_a_renewal_that_fails_keeps_the_old_token_while_it_is_good(self) -> None:
        manager = self.manager()
        manager.get_token()
        self.now += 2000
        self.fault(503)
        locked = []  # type: Any
        with LogCatcher() as log:
            log.addFilter(lambda _: locked.append(manager._lock._is_owned()) or True)
            for _ in range(5):
                self.assertEqual(manager.get_token(), 'token-1')
        self.assertEqual(locked, [False])  # a log handler may want a token
        self.assertEqual(len(self.collector.requests), 2)
        self.now += 3600
        self.assertEqual(manager.get_token(), 'token-2')

    def test_a_cleared_token_is_asked_for_again(self) -> None:
        manager = self.manager()
        manager.get_token()
        manager.refuse_token('another')
        self.assertEqual(manager.get_token(), 'token-1')
        manager.clear_token()
        self.assertEqual(manager.get_token(), 'token-2')

    def test_the_jti_is_fresh_each_time(self) -> None:
        manager = self.manager()
        for _ in range(2):
            manager.clear_token()
            manager.get_token()
        self.assertNotEqual(self.claims(0)[1]['jti'], self.claims(1)[1]['jti'])

    def test_the_clock_of_the_server_is_taken_into_account(self) -> None:
        self.now += 10000  # our clock is fast
        body = json.dumps(
            {
                'error': 'invalid_request',
                'error_description': 'Token used before issued',
            }
        )
        self.fault(Fault(400, {}, body.encode()))
        self.assertEqual(self.manager().get_token(), 'token-1')
        self.assertAlmostEqual(self.claims()[1]['iat'], time.time() - 5, delta=30)

    def test_an_expired_assertion_is_not_retried_without_end(self) -> None:
        body = b'{"error": "invalid_request", "error_description": "Token is expired"}'
        self.fault(*[Fault(400, {}, body)] * 50)
        with self.assertRaises(request.APIError):
            self.manager(max_retries=3).get_token()
        self.assertEqual(len(self.collector.requests), 4)

    def test_a_rate_limit_is_read_by_its_size_and_bounded(self) -> None:
        from hightouch.htevents.oauth_manager import parse_reset

        now = 1700000000.0
        for value, wanted in (
            ('1700000030000', 30),
            ('1700000030', 30),
            ('30', 30),
            ('1600000000', 0),
            ('1600000000000', 0),
            ('9000', 9000),
            ('-5', None),
            ('1e99', None),
            ('soon', None),
            ('nan', None),
            ('', None),
        ):
            self.assertEqual(parse_reset(value, now), wanted, value)
        self.fault(
            *[Fault(429, {'X-RateLimit-Reset': each}) for each in ('17', '9000')]
        )
        self.manager().get_token()
        self.assertEqual(self.waits, [17, 300])

    def test_what_may_pass_is_retried_and_what_is_final_is_not(self) -> None:
        self.fault(503, 'reset', 408)
        self.assertEqual(self.manager().get_token(), 'token-1')
        self.assertEqual(len(self.waits), 3)
        for status in (400, 401, 415):
            before = len(self.collector.requests)
            self.fault(Fault(status, {}, b'<html>'))
            with self.assertRaises(request.APIError) as caught:
                self.manager().get_token()
            self.assertFalse(caught.exception.retryable)
            self.assertEqual(len(self.collector.requests), before + 1)

    def test_a_client_says_that_it_is_the_token_that_it_cannot_have(self) -> None:
        self.fault(Fault(401, {}, b'{}'))
        client = self.oauth_client()
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().last_error, 'no OAuth token (HTTP 401)')

    def test_a_token_that_fits_no_header_is_refused_and_not_shown(self) -> None:
        for token in ('SECRET\\nline', 'SECRET\\u00e9', 'SECRET two', ''):
            self.fault(Fault(200, {}, ('{"access_token": "%s"}' % token).encode()))
            with self.assertRaises(request.APIError) as caught:
                self.manager().get_token()
            self.assertNotIn('SECRET', repr(caught.exception))

    def test_an_odd_expires_in_is_no_error(self) -> None:
        for value in ('"soon"', 'null', '-1', '0', '1e999', '"3600"'):
            body = '{"access_token": "odd", "expires_in": %s}' % value
            self.fault(Fault(200, {}, body.encode()))
            self.assertEqual(self.manager().get_token(), 'odd')

    def test_a_token_that_cannot_be_had_is_one_failed_try(self) -> None:
        def busy(_: Any) -> Fault:
            return Fault(429, {'X-RateLimit-Reset': '1600000000'})

        for step in (
            500,
            'reset',
            'reset-before',
            busy,
            Fault(503, {'Retry-After': '0'}),
        ):
            self.collector.token_faults.clear()
            self.fault(*[step] * 50)
            del self.collector.requests[:]
            client = self.oauth_client(max_retries=2)
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            stats = client.stats()
            self.assertEqual((stats.failed, stats.retried), (1, 2))
            self.assertEqual(len(self.collector.requests), 3)
            manager = self.manager(max_retries=7)  # of one's own, for a consumer
            consumer = Consumer(
                None, 'key', host=self.collector.url, retries=2, oauth_manager=manager
            )
            with self.assertRaises((request.APIError, requests.RequestException)):
                consumer.request([])
            self.assertEqual(len(self.collector.requests), 6)
            self.assertEqual(self.waits, [])

    def test_a_clock_that_is_off_costs_no_retry(self) -> None:
        body = b'{"error": "invalid_request", "error_description": "Token is expired"}'
        day = 86400
        server = formatdate(time.time() + day, usegmt=True)
        self.fault(Fault(400, {'Date': server}, body))
        client = self.oauth_client(max_retries=0)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().delivered, 1)
        self.assertAlmostEqual(self.claims()[1]['iat'], time.time() + day, delta=30)
        # whatever else of the answer looks like the credentials of its URL
        for user in ('request', 'token', 'e'):
            self.fault(Fault(400, {'Date': server}, body))
            url = self.collector.url.replace('//', '//%s@' % user)
            client = self.oauth_client(max_retries=0, oauth_auth_server=url)
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(client.stats().delivered, 1)
        # but one that still is after that is not asked again and again
        self.fault(*[Fault(400, {'Date': server}, body)] * 50)
        del self.collector.requests[:]
        client = self.oauth_client(max_retries=0)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().failed, 1)
        self.assertEqual(len(self.collector.requests), 2)

    def test_an_old_token_is_renewed_again_when_the_server_asks_for_it(self) -> None:
        manager = self.manager()
        manager.get_token()
        self.now += 1900
        self.fault(Fault(429, {'X-RateLimit-Reset': '100'}))
        for seconds, wanted in ((0, 'token-1'), (99, 'token-1'), (2, 'token-2')):
            self.now += seconds
            self.assertEqual(manager.get_token(), wanted)
        self.assertEqual(len(self.collector.requests), 3)

    def test_a_refused_token_request_is_not_taken_for_a_bad_batch(self) -> None:
        self.fault(*[400] * 20)
        client = self.oauth_client(upload_interval=LIMIT)
        for _ in range(10):
            client.track('user', 'event')
        self.assertTrue(client.flush(30))
        self.assertEqual(len(self.collector.requests), 1)
        self.assertEqual(client.stats().failed, 10)

    def test_a_flush_without_threads_waits_no_longer_for_a_token_than_it_may(
        self,
    ) -> None:
        client = self.oauth_client(shutdown_timeout=0)
        answer = threading.Event()
        self.addCleanup(answer.set)
        self.fault(lambda _: answer.wait(LIMIT) and 503)
        self.fault(Fault(429, {'Retry-After': str(2 * LIMIT)}))
        with no_threads():
            client.track('user', 'event')
            started = time.monotonic()
            self.assertFalse(client.flush(0.2))
            self.assertLess(time.monotonic() - started, LIMIT / 4)
            answer.set()
            self.assertEqual(client.stats().pending, 1)  # and nothing is lost
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().delivered, 1)

    def test_a_thread_waits_no_longer_for_the_token_of_another_than_it_may(
        self,
    ) -> None:
        asked, answer = threading.Event(), threading.Event()

        def slow(_: Any) -> Any:
            asked.set()
            answer.wait(LIMIT)
            return 200

        self.fault(slow)
        manager = self.manager()
        other = threading.Thread(target=manager.get_token)
        other.start()
        try:
            self.assertTrue(asked.wait(LIMIT))
            with self.assertRaises(TimeoutError):
                manager.get_token_within(0.01)
        finally:
            answer.set()
            other.join(LIMIT)
        self.assertEqual(manager.get_token(), 'token-1')

    def test_where_no_token_can_be_signed_that_is_said_and_reported(self) -> None:
        lost = Recorder()
        with mock.patch.dict('sys.modules', jwt=None), LogCatcher() as log:
            client = self.oauth_client(on_error=lost)
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            warnings = [each for each in log.lines() if 'WARNING' in each]
        self.assertEqual(len(warnings), 1)
        ((error, _),) = lost.calls
        self.assertEqual(error.code, 'no_cryptography')

    def test_settings_given_in_part_are_one_warning(self) -> None:
        with LogCatcher() as log:
            self.client(oauth_client_id='id')
            self.assertEqual(len(log.lines(logging.WARNING)), 1)


if __name__ == '__main__':
    unittest.main()
