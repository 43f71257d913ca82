import gc
import http.client
import logging
import os
import signal
import threading
import unittest
import weakref
from collections import Counter
from typing import Any

import mock
import requests

from hightouch.htevents import request
from hightouch.htevents._process import transport
from hightouch.htevents.collector import Collector
from hightouch.htevents.test.support import (
    LIMIT,
    LogCatcher,
    TestCase,
    interruptions,
    run_program,
)


class TaggingAdapter(requests.adapters.HTTPAdapter):
    """An adapter with a state of its own, as those for a private CA have."""

    def __init__(self, tag: str) -> None:
        super().__init__()
        self._tag = tag

    def add_headers(self, request: Any, **kwargs: Any) -> None:
        request.headers['X-Tag'] = self._tag


class SessionTest(TestCase):
    def test_clients_share_a_session_that_ends_with_the_last(self) -> None:
        one, two = transport.Lease(), transport.Lease()
        shared = one.get()
        self.assertIs(two.get(), shared)
        one.close()
        one.close()
        self.assertIs(two.get(), shared)
        with mock.patch.object(shared, 'close') as close:
            two.close()
            close.assert_called_once_with()

    def test_an_exception_at_any_step_of_one_thread_holds_up_no_other(self) -> None:
        """As a signal handler raises it; a lock may be left held (up to Python 3.9)."""

        def use() -> None:
            lease = transport.Lease()
            lease.get()
            lease.close()

        patch = mock.patch.object(transport, '_shared', transport._Shared())
        patch.start()
        self.addCleanup(patch.stop)
        count = 0
        for place in interruptions(lambda: use, transport.__file__):
            other = threading.Thread(target=use, daemon=True)
            other.start()
            other.join(LIMIT)
            self.assertFalse(other.is_alive(), place)
            count += 1
        self.assertGreater(count, 8)

    def test_what_a_test_replaces_for_a_while_is_not_kept(self) -> None:
        program = (
            'import contextlib, io, sys, warnings\n'
            'from unittest import mock\n'
            'import hightouch.htevents as htevents\n'
            'htevents.write_key, htevents.host = "key", sys.argv[1]\n'
            'htevents.max_retries = 1\n'
            'for number in range(2 + int(sys.argv[3])):\n'
            '    with mock.patch(*eval(sys.argv[2])):\n'
            '        htevents.track("user", "inside")\n'
            '        htevents.flush(0.2)\n'
            '    clients = [htevents.Client("key", sys.argv[1]) for _ in range(number)]\n'
            '    for client in clients + [htevents]:\n'
            '        client.track("user", "after %d" % number)\n'
            '        assert client.flush(50)\n'
        )
        for target, many in (
            ('"requests.Session",', 0),
            ('"requests.sessions.Session",', 0),
            ('"requests.adapters.HTTPAdapter",', 0),
            ('"requests.adapters.PoolManager",', 0),
            ('"requests.Request",', 0),
            ('"requests.PreparedRequest.prepare",', 0),
            ('"requests.Session.prepare_request",', 0),
            ('"requests.Session.mount",', 0),
            ('"requests.adapters.HTTPAdapter.init_poolmanager",', 0),
            ('"requests.sessions.PreparedRequest",', 0),
            (
                '"requests.sessions.get_environ_proxies", lambda *_, **__: {"http": "x:1"}',
                0,
            ),
            ('"os.getpid", lambda: 1', 0),
            ('"os.urandom", lambda size: bytes(16)', 0),
            ('"threading.Thread",', 10),
            ('"threading.Thread.start",', 10),
        ):
            self.collector.events.clear()
            result = run_program(program, self.collector.url, target, str(many))
            self.assertEqual((result.returncode, result.stderr[:3000]), (0, ''), target)
            names = Counter(each['event'] for each in self.collector.events)
            for number in range(2 + many):
                self.assertEqual(names['after %d' % number], number + 1, target)
            ids = [each['messageId'] for each in self.collector.events]
            self.assertEqual(len(set(ids)), len(ids), target)

    def test_methods_that_were_replaced_before_the_first_client_are_called(
        self,
    ) -> None:
        program = (
            'import sys\n'
            'from unittest import mock\n'
            'import hightouch.htevents as htevents\n'
            'htevents.write_key, htevents.host = "key", sys.argv[1]\n'
            'htevents.max_retries = 0\n'
            'with mock.patch("requests.sessions.Session." + sys.argv[2]) as replaced:\n'
            '    htevents.track("user", "event")\n'
            '    htevents.flush(20)\n'
            'assert replaced.called\n'
        )
        for name in ('post', 'request', 'send'):
            result = run_program(program, self.collector.url, name)
            self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(self.collector.events, [])

    def test_requests_pass_where_test_libraries_and_tracers_look(self) -> None:
        for owner, name in (
            (requests.adapters.HTTPAdapter, 'send'),  # responses
            (requests.Session, 'get_adapter'),  # requests-mock
            (http.client.HTTPConnection, 'putrequest'),  # near to vcrpy
            (requests.Session, 'send'),  # OpenTelemetry
            (requests.Session, 'request'),
            (requests.Session, 'post'),
        ):
            original, seen = getattr(owner, name), []

            def note(*args: Any, **kwargs: Any) -> Any:
                seen.append(name)
                return original(*args, **kwargs)

            with mock.patch.object(owner, name, note):
                request.post('key', self.collector.url, batch=[])
            count = len(seen)
            self.assertGreater(count, 0, name)
            request.post('key', self.collector.url, batch=[])
            self.assertEqual(len(seen), count, name)

    def test_a_childs_child_does_not_close_the_sockets_of_its_grandparent(self) -> None:
        shared = transport._Shared()
        first = weakref.ref(shared.get())
        for _ in range(2):
            shared._after_fork()
            gc.collect()
            self.assertIsNotNone(first())
            shared.get()

    def test_a_session_of_the_users_own_keeps_its_auth(self) -> None:
        self.collector.strict = False
        with requests.Session() as session:
            session.auth = ('me', 'secret')
            request.post('key', self.collector.url, session=session, batch=[])
        self.assertTrue(
            self.collector.requests[0].headers['authorization'].startswith('Basic')
        )

    def test_an_error_of_a_users_session_brings_no_secret_into_the_log(self) -> None:
        class Quoting:
            adapters = {'https://': object()}

            def post(self, url: str, **given: Any) -> Any:
                raise ValueError('%s %r' % (url, given))

        host = 'http://user:password1@127.0.0.1:9'
        with LogCatcher() as logs:
            client = self.client(host=host, session=Quoting(), max_retries=1)
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().failed, 1)
        for line in logs.lines():
            self.assertNotIn('password1', line)
            self.assertNotIn(client.write_key, line)

    def test_an_error_of_a_users_hook_closes_no_connection(self) -> None:
        def hook(response: Any, *args: Any, **kwargs: Any) -> Any:
            raise ValueError('not as expected')

        with requests.Session() as session:
            session.hooks['response'].append(hook)
            client = self.client(session=session, sync_mode=True)
            for _ in range(3):
                self.assertTrue(client.track('user', 'event')[0])
        self.assertEqual(self.collector.connections, 1)

    def test_a_forked_child_opens_connections_of_its_own_in_a_users_session(
        self,
    ) -> None:
        with requests.Session() as session:
            session.mount(self.collector.url, TaggingAdapter('mine'))
            client = self.client(session=session)
            client.track('user', 'parent')
            self.assertTrue(client.flush(LIMIT))
            pid = os.fork()
            if pid == 0:
                client.track('user', 'child')
                os._exit(0 if client.shutdown(LIMIT) else 1)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)
            client.track('user', 'parent')
            self.assertTrue(client.flush(LIMIT))
            self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(self.collector.connections, 2)
        self.assertEqual(len(self.collector.events), 3)
        tags = [each.headers['x-tag'] for each in self.collector.requests]
        self.assertEqual(tags, ['mine'] * 3)

    def test_requests_that_share_a_session_share_no_token_and_no_header(self) -> None:
        class Tokens:
            def __init__(self, token: str) -> None:
                self._token = token

            def get_token(self) -> str:
                return self._token

        with transport.Lease() as session:
            for settings in (
                {},
                {'oauth_manager': Tokens('one')},
                {},
                {'oauth_manager': Tokens('two'), 'gzip': True},
                {'gzip': True},
                {},
            ):
                request.post(
                    'key', self.collector.url, session=session, batch=[], **settings
                )
        names = ('authorization', 'content-encoding')
        self.assertEqual(
            [
                [each.headers.get(name) for name in names]
                for each in self.collector.requests
            ],
            [
                [None, None],
                ['Bearer one', None],
                [None, None],
                ['Bearer two', 'gzip'],
                [None, 'gzip'],
                [None, None],
            ],
        )

    def test_a_session_may_be_used_again_after_it_was_closed(self) -> None:
        with transport.Lease() as session:
            for _ in range(2):
                request.post('key', self.collector.url, session=session, batch=[])
                session.close()
        self.assertEqual(self.collector.connections, 2)

    def test_the_environment_is_followed_also_when_it_changes(self) -> None:
        def proxies() -> Any:
            merged = session.merge_environment_settings(url, {}, True, None, None)
            return merged['proxies'].get('http')

        url = 'http://nowhere.invalid'
        with transport.Lease() as session:
            with mock.patch.dict(
                os.environ, {'http_proxy': 'http://p:1', 'no_proxy': ''}
            ):
                self.assertEqual([proxies(), proxies()], ['http://p:1'] * 2)
                os.environ['http_proxy'] = 'http://p:2'
                self.assertEqual(proxies(), 'http://p:2')
                os.environ['no_proxy'] = 'nowhere.invalid'
                self.assertIsNone(proxies())

    def test_a_user_that_comes_while_the_last_one_goes_keeps_its_session(self) -> None:
        one, two = transport.Lease(), transport.Lease()
        got = []

        class Users(set):  # type: ignore[type-arg]
            def __bool__(self) -> bool:
                if got:
                    return len(self) > 0
                got.append(two.get())
                return False

        shared = transport._Shared()
        patch = mock.patch.object(transport, '_shared', shared)
        patch.start()
        self.addCleanup(patch.stop)
        one.get()
        shared.users = Users(shared.users)
        with mock.patch.object(shared.session, 'close') as close:
            one.close()
            self.assertIs(two.get(), got[0])
            close.assert_not_called()
            two.close()
            close.assert_called_once_with()

    def test_of_the_sockets_of_a_burst_so_many_stay_open(self) -> None:
        def send() -> None:
            request.post('key', collector.url, session=session, batch=[])

        with mock.patch.object(transport, 'POOL_SIZE', 4), LogCatcher() as log:
            with Collector() as collector, transport.Lease() as session:
                together = threading.Barrier(20)
                collector.script(*[lambda _: together.wait(LIMIT) and 200 or 200] * 20)
                threads = [threading.Thread(target=send) for _ in range(20)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(LIMIT)
                self.assertEqual(collector.connections, 20)
                self.assertTrue(
                    collector._wait(lambda: len(collector._sockets) < 5, LIMIT)
                )
                send()
                self.assertEqual(collector.connections, 20)
        self.assertEqual(log.lines(logging.WARNING), [])

    @unittest.skipUnless(hasattr(signal, 'setitimer'), 'needs a timer')
    def test_an_interrupted_exchange_leaves_nothing_to_the_next(self) -> None:
        class Interrupted(Exception):
            pass

        def handler(number: int, frame: Any) -> None:
            raise Interrupted

        own = requests.Session()
        for session in (None, own):
            with transport.Lease(session) as used, Collector(strict=False) as collector:
                collector.script(200, 'hang')
                request.post('key', collector.url, session=used, batch=[])
                before = signal.signal(signal.SIGALRM, handler)
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.2)
                    with self.assertRaises(Interrupted):
                        request.post('key', collector.url, session=used, batch=[])
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    signal.signal(signal.SIGALRM, before)
                with transport.Lease(session) as next_one:
                    self.assertEqual(next_one is used, session is own)
                    request.post('key', collector.url, session=next_one, batch=[])
                self.assertEqual(collector.connections, 2)


if __name__ == '__main__':
    unittest.main()
