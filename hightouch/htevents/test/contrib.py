"""Tests of the glue for ASGI and WSGI, without a framework: servers/ has the real ones."""

import asyncio
import io
import ipaddress
import json
import sys
import threading
import unittest
import urllib.request
from typing import Any, Callable, Dict, Iterator, List
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, make_server

from hypothesis import given
from hypothesis import strategies as st

import hightouch.htevents as htevents
from hightouch.htevents import Client, ValidationError
from hightouch.htevents._context import blocks
from hightouch.htevents.contrib import _browser, asgi, wsgi
from hightouch.htevents.contrib._proxies import MOST_HOPS, Proxies
from hightouch.htevents.encoding import encode
from hightouch.htevents.test import (
    properties,  # noqa: F401  (its profile of hypothesis)
)
from hightouch.htevents.test.support import LIMIT, LogCatcher, run_loop

# Bytes that a context may have as JSON.
MOST_BYTES = 12 << 10

ID = 'c5b3ae2e-1d3c-4fbe-93d7-6f5f2a2d5b1e'
COOKIE = 'a=b; htjs_anonymous_id=%%22%s%%22; c=d' % ID

client = Client('k', send=False)

needs_task_contexts = unittest.skipUnless(
    _browser.HAS_TASK_CONTEXTS, 'Python 3.6 has one context for all tasks of a thread'
)


def tracked(**arguments: Any) -> Any:
    """Track an event; return its message."""
    accepted, message = client.track(event='event', **arguments)
    assert accepted
    return message


def environ_of(**headers: str) -> Dict[str, Any]:
    environ: Dict[str, Any] = {
        'REMOTE_ADDR': '192.0.2.1',
        'wsgi.url_scheme': 'https',
        'SCRIPT_NAME': '',
        'PATH_INFO': '/',
    }
    environ.update({'HTTP_' + name.upper(): text for name, text in headers.items()})
    return environ


def context(trusted: Any = (), peer: Any = '192.0.2.1', **headers: str) -> Any:
    """Return the context of an event in a request with these headers."""
    environ = environ_of(**headers)
    environ['REMOTE_ADDR'] = peer
    return _browser.context_of(_browser.from_environ(environ), Proxies(trusted))


def ip(forwarded_for: str, trusted: Any = '10.0.0.0/8', peer: Any = '10.0.0.1') -> Any:
    return context(trusted, peer, x_forwarded_for=forwarded_for).get('ip')


class AddressTest(unittest.TestCase):
    def test_the_peer_is_the_client(self) -> None:
        for peer, expected in (
            ('192.0.2.1', '192.0.2.1'),
            ('::ffff:192.0.2.1', '192.0.2.1'),
            ('2001:DB8:0::1', '2001:db8::1'),
            ('fe80::1%eth0', 'fe80::1'),
            ('testclient', None),
            ('', None),
            (None, None),
            (7, None),
        ):
            self.assertEqual(context(peer=peer).get('ip'), expected)

    def test_a_header_of_an_untrusted_peer_is_ignored(self) -> None:
        for trusted in ((), '10.0.0.0/8', 'unix', ['10.0.0.2', '2001:db8::/32']):
            for headers in (
                {'x_forwarded_for': '203.0.113.9'},
                {'forwarded': 'for=203.0.113.9'},
                {'x_forwarded_for': '203.0.113.9', 'forwarded': 'for=203.0.113.9'},
            ):
                found = context(trusted, x_forwarded_proto='http', **headers)
                self.assertEqual(found['ip'], '192.0.2.1')

    def test_the_first_untrusted_hop_from_the_right_is_the_client(self) -> None:
        for chain in (
            '198.51.100.7',
            '203.0.113.9, 198.51.100.7',
            '203.0.113.9,198.51.100.7,10.0.0.3',
            'nonsense, 198.51.100.7, 10.0.0.4, 10.0.0.3',
            '10.0.0.9, 198.51.100.7:1234, 10.0.0.3:80',
            '"198.51.100.7"',
            '[::ffff:198.51.100.7]:443',
        ):
            self.assertEqual(ip(chain), '198.51.100.7', chain)

    def test_an_entry_that_is_not_an_address_ends_the_walk(self) -> None:
        self.assertEqual(ip('198.51.100.7, unknown, 10.0.0.3'), '10.0.0.3')
        for entry in ('unknown', '', ' ', '1.2.3', '[::1', ':80', '1' * 5000, '\u0663'):
            self.assertEqual(ip('198.51.100.7, ' + entry), '10.0.0.1', entry)

    def test_the_leftmost_of_a_trusted_chain_is_the_client(self) -> None:
        self.assertEqual(ip('10.0.0.5, 10.0.0.4'), '10.0.0.5')
        self.assertEqual(ip('203.0.113.9, 198.51.100.7', '0.0.0.0/0'), '203.0.113.9')

    def test_only_the_last_hops_of_a_long_chain_are_looked_at(self) -> None:
        chain = ['198.51.100.7'] + ['10.1.1.%d' % each for each in range(MOST_HOPS)]
        self.assertEqual(ip(', '.join(chain)), '10.1.1.0')

    def test_networks_are_given_in_many_forms(self) -> None:
        for trusted in (
            '10.0.0.1',
            ' 10.0.0.0/24 ',
            ['192.168.0.0/16', '10.0.0.1'],
            ipaddress.ip_address('10.0.0.1'),
            {ipaddress.ip_network('10.0.0.0/8')},
            (each for each in ['10.0.0.1']),
            '::ffff:10.0.0.0/104',
            ('unix', '10.0.0.1'),
        ):
            self.assertEqual(ip('198.51.100.7', trusted), '198.51.100.7')

    def test_a_wrong_network_is_refused_when_the_middleware_is_made(self) -> None:
        for trusted, got in (
            ('10.0.0.0/99', "'10.0.0.0/99'"),
            (['10.0.0.1/8'], 'host bits'),
            ('unix:/socket', "'unix:/socket'"),
            ([''], "''"),
            ([None], 'NoneType'),
            ([10], 'int'),
            (None, 'NoneType'),
            (True, 'bool'),
        ):
            with self.assertRaisesRegex(ValidationError, 'trusted_proxies: ') as caught:
                wsgi.ScopeMiddleware(lambda environ, start: [], trusted)
            self.assertIn('10.0.0.0/8', str(caught.exception))
            self.assertIn(got, str(caught.exception).partition('got ')[2])

    def test_a_peer_on_a_unix_socket_is_trusted_by_name(self) -> None:
        for peer in (None, '', 'unix:'):
            self.assertEqual(ip('198.51.100.7', 'unix', peer), '198.51.100.7')
            self.assertEqual(
                ip('198.51.100.7, 10.0.0.2', ['unix', '10.0.0.2'], peer), '198.51.100.7'
            )
            self.assertIsNone(ip('198.51.100.7', (), peer))
            self.assertIsNone(ip('unknown', 'unix', peer))
        self.assertIsNone(ip('198.51.100.7', 'unix', 'testclient'))

    def test_the_header_forwarded_is_walked_as_well(self) -> None:
        for header in (
            'for=198.51.100.7',
            'for=203.0.113.9, For="198.51.100.7:80";proto=http;by=10.0.0.1',
            'proto=http; FOR=198.51.100.7 , for=10.0.0.3',
            'for="[::ffff:198.51.100.7]:_port"',
            'by="a, for=1.1.1.1; \\" b";for=198.51.100.7',
            'for="\\198.51.100.7"',
        ):
            found = context('10.0.0.0/8', '10.0.0.1', forwarded=header)
            self.assertEqual(found.get('ip'), '198.51.100.7', header)

    def test_a_broken_header_forwarded_tells_nothing(self) -> None:
        for header in (
            '',
            'for=_hidden',
            'for=198.51.100.7, proto=http',
            'for="198.51.100.7',
            'for=198.51.100.7, by="',
            'for=198.51.100.7 x',
            'for=198.51.100.7"',
            'for=198.51.100.7' + ' ' * 9000,
        ):
            found = context('10.0.0.0/8', '10.0.0.1', forwarded=header)
            self.assertEqual(found.get('ip'), '10.0.0.1', header)

    def test_two_headers_that_tell_different_clients_leave_it_unknown(self) -> None:
        def both(forwarded: str) -> Any:
            return context(
                '10.0.0.0/8',
                '10.0.0.1',
                x_forwarded_for='198.51.100.7',
                forwarded=forwarded,
            ).get('ip')

        self.assertEqual(both('for=198.51.100.7'), '198.51.100.7')
        for other in ('for=203.0.113.9', 'proto=https', 'nonsense', 'for=unknown'):
            self.assertIsNone(both(other))

    def test_a_peer_may_have_a_port(self) -> None:
        for peer, expected in (
            ('198.51.100.7:5678', '198.51.100.7'),
            ('[2001:db8::1]:80', '2001:db8::1'),
            ('10.0.0.1:80', '203.0.113.9'),
        ):
            found = context('10.0.0.0/8', peer, x_forwarded_for='203.0.113.9')
            self.assertEqual(found['ip'], expected)

    def test_a_trusted_proxy_tells_the_scheme(self) -> None:
        def scheme(peer: str, **headers: str) -> Any:
            found = context('10.0.0.0/8', peer, host='shop', **headers)
            return found['page']['url'].partition(':')[0]

        for header, expected in (
            ('http', 'http'),
            ('HTTP', 'http'),
            ('https, http', 'http'),
            ('javascript', 'https'),
            ('', 'https'),
        ):
            self.assertEqual(scheme('10.0.0.1', x_forwarded_proto=header), expected)
        self.assertEqual(scheme('192.0.2.1', x_forwarded_proto='http'), 'https')
        self.assertEqual(scheme('10.0.0.1', forwarded='for=1.1.1.1;proto=http'), 'http')
        self.assertEqual(
            scheme('10.0.0.1', forwarded='proto=ftp', x_forwarded_proto='http'), 'https'
        )

    @given(st.text(), st.text(), st.sampled_from(['192.0.2.1', '10.0.0.1', None]))
    def test_no_header_of_a_proxy_raises(self, a: str, b: str, peer: Any) -> None:
        context('10.0.0.0/8', peer, x_forwarded_for=a, forwarded=b)
        headers = {'forwarded': 'for=%s;x="%s",%s' % (a, b, b)}
        found = context('10.0.0.0/8', peer, x_forwarded_proto=b, **headers)
        if peer == '192.0.2.1':
            self.assertEqual(found['ip'], '192.0.2.1')

    @given(st.lists(st.sampled_from(list('",;=\\ []:.1a') + ['for=', '1.1.1.1'])))
    def test_an_element_of_a_client_never_hides_that_of_the_proxy(
        self, parts: List[str]
    ) -> None:
        """Whatever the client sends, its proxy's element counts, or the header does not."""
        for own in ('for=198.51.100.7', 'For="198.51.100.7:80";proto=https'):
            found = context(
                '10.0.0.0/8', '10.0.0.1', forwarded=''.join(parts) + ', ' + own
            )
            self.assertIn(found['ip'], ('198.51.100.7', '10.0.0.1'))


class BrowserTest(unittest.TestCase):
    def test_the_context_has_the_names_of_the_browser_sdk(self) -> None:
        environ = environ_of(
            host='shop.example:8080',
            user_agent='Mozilla/5.0',
            accept_language='de-DE,de;q=0.9',
            referer='https://example.com/?q=ä b',
        )
        environ['SCRIPT_NAME'] = '/shop'
        environ['PATH_INFO'] = '/schöne Schuhe'.encode().decode('latin-1')
        environ[
            'QUERY_STRING'
        ] = 'utm_source=a&utm_medium=b&utm_campaign=c&utm_term=d+e'
        environ['QUERY_STRING'] += '&utm_content=%C3%A4&utm_source=z'
        path = '/shop/sch%C3%B6ne%20Schuhe'
        self.assertEqual(
            _browser.context_of(_browser.from_environ(environ), Proxies(())),
            {
                'ip': '192.0.2.1',
                'userAgent': 'Mozilla/5.0',
                'locale': 'de-DE',
                'page': {
                    'path': path,
                    'url': 'https://shop.example:8080%s?%s'
                    % (path, environ['QUERY_STRING']),
                    'referrer': 'https://example.com/?q=%C3%A4%20b',
                    'search': '?' + environ['QUERY_STRING'],
                },
                'campaign': {
                    'source': 'a',
                    'medium': 'b',
                    'name': 'c',
                    'term': 'd e',
                    'content': 'ä',
                },
            },
        )

    def test_a_key_without_a_value_is_left_out(self) -> None:
        self.assertEqual(
            context(user_agent='', accept_language='*', referer=''),
            {'ip': '192.0.2.1', 'page': {'path': '/'}},
        )
        empty = _browser.from_environ({'QUERY_STRING': 'utm_source=&x=y'})
        self.assertEqual(
            _browser.context_of(empty, Proxies(())),
            {'page': {'search': '?utm_source=&x=y'}},
        )

    def test_the_name_of_a_parameter_may_be_escaped(self) -> None:
        for query in ('utm%5Fsource=a', 'utm%5fsource=a', '%75tm_source=a'):
            environ = dict(environ_of(), QUERY_STRING=query)
            found = _browser.context_of(_browser.from_environ(environ), Proxies(()))
            self.assertEqual(found['campaign'], {'source': 'a'})

    def test_without_a_host_the_address_of_the_server_is_in_the_url(self) -> None:
        for name, port, scheme, expected in (
            ('testserver', '80', 'http', 'testserver'),
            ('testserver', 443, 'https', 'testserver'),
            ('testserver', '443', 'http', 'testserver:443'),
            ('::1', 8000, 'http', '[::1]:8000'),
            ('127.0.0.1', None, 'wss', '127.0.0.1'),
            ('/run/socket', None, 'http', None),
            ('', '80', 'http', None),
            (None, None, 'http', None),
        ):
            environ = environ_of()
            environ.update({'wsgi.url_scheme': scheme, 'PATH_INFO': '/'})
            environ.update(SERVER_NAME=name, SERVER_PORT=port)
            scope = {'scheme': scheme, 'server': (name, port), 'path': '/'}
            for request in (_browser.from_environ(environ), asgi._request_of(scope)):
                url = _browser.context_of(request, Proxies(()))['page'].get('url')
                self.assertEqual(url, expected and '%s://%s/' % (scheme, expected))
        request = asgi._request_of({'path': '/', 'server': None})
        self.assertNotIn('url', _browser.context_of(request, Proxies(()))['page'])

    def test_a_host_of_a_wrong_form_leaves_the_url_out(self) -> None:
        for host in ('shop', '[::1]:8000', 'a-b.example:80', 'x' * 255):
            self.assertEqual(context(host=host)['page']['url'], 'https://%s/' % host)
        for host in ('', 'a/b', 'a@b', 'a b', 'ä', 'a\n', 'x' * 256, 'a,a', '<a>'):
            self.assertNotIn('url', context(host=host)['page'])

    def test_the_preferred_language_is_the_locale(self) -> None:
        for header, expected in (
            ('de', 'de'),
            ('en;q=0.5, de-CH-1996;q=0.9, fr;q=0.9', 'de-CH-1996'),
            ('*, da;q=0.1', 'da'),
            ('en;q=0, fr;q=0.001', 'fr'),
            ('en;q=0', ''),
            ('en;q=2, fr;q=nan, es;q=x, it;q=1.000', 'it'),
            ('a_b, <script>, toolonglanguage, -, sv', 'sv'),
            (' pt-BR ; Q=0.8 ', 'pt-BR'),
            ('x' + '-12345678' * 100, ''),
            (',;,', ''),
            ('', ''),
        ):
            self.assertEqual(_browser.locale_of(header), expected, header)

    def test_the_cookie_of_the_browser_sdk_is_the_anonymous_id(self) -> None:
        def found(value: str) -> Any:
            return _browser.anonymous_id('a=b;htjs_anonymous_id=%s ;c' % value)

        self.assertEqual(_browser.anonymous_id(COOKIE), ID)
        self.assertEqual(found('%22abc%22'), 'abc')
        self.assertEqual(found('"abc"'), 'abc')
        self.assertEqual(found('%22a%0Ab%7F%C2%85%22'), 'ab')
        self.assertEqual(found('%22' + 'a' * 5000 + '%22'), 'a' * 200)
        self.assertEqual(found('%22a%3Bb%22; htjs_anonymous_id=%22z%22'), 'a;b')
        self.assertEqual(found('nonsense; htjs_anonymous_id=%22z%22'), 'z')

    def test_another_cookie_is_ignored(self) -> None:
        for value in (
            *(
                '',
                'abc',
                '%22',
                '%22%22',
                'null',
                'true',
                '7',
                '%7B%7D',
                '%5B%22a%22%5D',
            ),
            *('%22a%22b', '%E4%22', '%22%5Cud800%22', '%22%5Cn%22', '%', '%22%20%22'),
            *('[' * 5000, '%5B' * 5000),
        ):
            text = 'htjs_anonymous_id=' + value
            self.assertIsNone(_browser.anonymous_id(text), value)
        self.assertIsNone(_browser.anonymous_id('xhtjs_anonymous_id=%22abc%22'))

    @given(st.lists(st.text() | st.text('%"\\;=ud8[{ '), max_size=3))
    def test_no_cookie_raises(self, values: List[str]) -> None:
        for each in values + [quote(json.dumps(each)) for each in values]:
            _browser.anonymous_id('htjs_anonymous_id=%s; b' % each)

    @given(st.dictionaries(st.sampled_from(_browser.HEADERS), st.text()), st.text())
    def test_no_header_raises(self, headers: Dict[str, str], text: str) -> None:
        environ = environ_of(**headers)
        environ.update(PATH_INFO=text, QUERY_STRING='utm_term=%s&%s' % (text, text))
        self.assert_is_small_and_clean(environ)

    def test_a_context_has_a_bounded_size(self) -> None:
        for text in ('x', 'ä', '\U0001f600', '"', '\\', '\n', '%', '\ud800', '\u2028'):
            text *= 100000
            headers = {name: text for name in _browser.HEADERS}
            headers.update(host='x' * 255, accept_language='x' + '-12345678' * 4)
            environ = environ_of(**headers)
            utm = '&'.join('%s=%s' % (name, text[:1600]) for name in _browser.CAMPAIGN)
            for query in (utm, text):
                environ.update(PATH_INFO='/' + text, QUERY_STRING=query)
                self.assert_is_small_and_clean(environ)

    def assert_is_small_and_clean(self, environ: Dict[str, Any]) -> None:
        request = _browser.from_environ(environ)
        found = _browser.context_of(request, Proxies('192.0.2.1'))
        body = json.dumps(found, ensure_ascii=False).encode('utf-8')  # no surrogate
        self.assertLess(len(body), MOST_BYTES)
        texts = list(found.get('campaign', {}).values()) + [found.get('userAgent', '')]
        for each in texts:
            self.assertIsNone(_browser._CONTROLS.search(each))
        for each in found['page'].values():
            each.encode('ascii')
            self.assertTrue(each.isprintable())
        self.assertEqual(json.loads(encode(found)[0].decode('utf-8')), found)


def started(status: str, headers: Any, exc_info: Any = None) -> Any:
    """Do nothing, as the start_response of a server."""


class WsgiTest(unittest.TestCase):
    def called(
        self, app: Callable[..., Any], environ: Any = None, **settings: Any
    ) -> Any:
        made = wsgi.ScopeMiddleware(app, **settings)
        return made(environ_of(cookie=COOKIE) if environ is None else environ, started)

    def test_an_event_has_the_ids_and_the_context_of_its_request(self) -> None:
        def app(environ: Any, start_response: Any) -> List[Any]:
            return [tracked()]

        (message,) = self.called(app, user_id=lambda environ: 7)
        self.assertEqual((message['userId'], message['anonymousId']), ('7', ID))
        self.assertEqual(message['context']['ip'], '192.0.2.1')
        self.assertEqual(message['context']['page'], {'path': '/'})
        self.assertEqual(blocks.opened(), ())

    def test_the_facts_are_those_from_before_the_application_ran(self) -> None:
        def app(environ: Any, start_response: Any) -> List[Any]:
            environ.update(PATH_INFO='/changed', REMOTE_ADDR='127.0.0.1')
            del environ['HTTP_COOKIE']
            return [tracked()]

        (message,) = self.called(app)
        self.assertEqual(message['anonymousId'], ID)
        self.assertEqual(message['context']['ip'], '192.0.2.1')
        self.assertEqual(message['context']['page'], {'path': '/'})

    def test_the_user_may_be_found_later_and_may_change(self) -> None:
        def app(environ: Any, start_response: Any) -> List[Any]:
            found = []
            for user in (None, 'ada', 'bob', None):
                environ['user'] = user
                found.append(tracked()['userId'])
            htevents.update_scope('eve')
            environ['user'] = 'ada'
            return found + [tracked()['userId']]

        users = self.called(app, user_id=lambda environ: environ.get('user'))
        self.assertEqual(users, [None, 'ada', 'bob', None, 'eve'])

    def test_a_user_that_cannot_be_found_is_one_warning(self) -> None:
        def raising(environ: Any) -> Any:
            raise LookupError('secret')

        def app(environ: Any, start_response: Any) -> List[Any]:
            return [tracked(), tracked()]

        from hightouch.htevents._context import scopes

        scopes._failures.__init__()  # type: ignore[misc]
        with LogCatcher() as logged:
            for user_id in (raising, lambda environ: object(), lambda environ: True):
                for message in self.called(app, user_id=user_id):
                    self.assertIsNone(message['userId'])
        self.assertEqual(len(logged.lines()), 1)
        self.assertNotIn('secret', logged.lines()[0])

    def test_a_request_that_tracks_nothing_looks_for_no_user(self) -> None:
        self.called(lambda environ, start: [], user_id=lambda environ: self.fail())

    def test_a_wrong_argument_is_refused(self) -> None:
        async def find(environ: Any) -> Any:
            pass

        for user_id in (7, find):
            with self.assertRaisesRegex(ValidationError, 'user_id'):
                self.called(lambda environ, start: [], user_id=user_id)

    def test_the_scope_is_open_in_each_step_of_the_body_and_when_it_is_closed(
        self,
    ) -> None:
        found = []

        def app(environ: Any, start_response: Any) -> Any:
            found.append(tracked())
            try:
                yield b'1'
                found.append(tracked())
                yield b'2'
            finally:
                found.append(tracked())

        body = self.called(app)
        for _ in range(2):
            next(body)
            self.assertEqual(blocks.opened(), ())
        body.close()
        self.assertEqual([each['anonymousId'] for each in found], [ID] * 3)
        self.assertEqual(blocks.opened(), ())

    def test_blocks_that_a_body_opens_stay_open_between_its_steps(self) -> None:
        found: List[Any] = []

        def scoped() -> Iterator[bytes]:
            with htevents.scope(user_id='inner'):
                found.append(tracked()['userId'])
                yield b'1'
                found.append(tracked()['userId'])
            found.append(tracked()['userId'])
            yield b'2'

        def failing() -> Iterator[bytes]:
            with htevents.deferred():
                found.append(blocks.opened()[-1])
                yield b'1'
                found.append(blocks.opened()[-1])
                raise LookupError

        list(self.called(lambda environ, start: scoped()))
        self.assertEqual(found, ['inner', 'inner', None])
        found.clear()
        with self.assertRaises(LookupError):
            list(self.called(lambda environ, start: failing()))
        self.assertIs(found[0], found[1])
        self.assertEqual(blocks.opened(), ())

    def test_a_body_that_is_not_closed_leaves_nothing_in_its_thread(self) -> None:
        bodies = [
            self.called(lambda environ, start: iter([b'1', b'2'])) for _ in range(3)
        ]
        for _ in range(2):
            for body in bodies:
                next(iter(body))
        self.assertEqual(blocks.opened(), ())

    def test_the_steps_may_run_in_several_threads(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            while True:
                yield tracked()

        body = self.called(app)
        found = [next(body)]
        for _ in range(3):
            thread = threading.Thread(target=lambda: found.append(next(body)))
            thread.start()
            thread.join(LIMIT)
        self.assertEqual([each['anonymousId'] for each in found], [ID] * 4)

    def test_the_body_of_the_application_is_closed_even_after_an_error(self) -> None:
        class Body:
            closed = 0

            def __iter__(self) -> Any:
                return self

            def __next__(self) -> bytes:
                raise LookupError

            def close(self) -> None:
                self.closed += 1
                assert tracked()['anonymousId'] == ID

        own = Body()
        body = self.called(lambda environ, start: own)
        with self.assertRaises(LookupError):
            next(body)
        body.close()
        self.assertEqual(own.closed, 1)
        own = Body()
        self.called(lambda environ, start: own).close()  # a HEAD request
        self.assertEqual(own.closed, 1)
        self.called(lambda environ, start: iter(())).close()  # which has no close()
        self.assertEqual(blocks.opened(), ())

    def test_a_list_and_a_file_are_returned_as_they_are(self) -> None:
        class Wrapper:
            pass

        for body in ([b'1'], (b'1',), Wrapper()):
            environ = dict(environ_of(), **{'wsgi.file_wrapper': Wrapper})
            self.assertIs(self.called(lambda environ, start: body, environ), body)
        environ = dict(environ_of(), **{'wsgi.file_wrapper': lambda file: file})
        body = iter([b'1'])
        self.assertIsNot(self.called(lambda environ, start: body, environ), body)
        file = io.BytesIO(b'1')  # as of a server whose wrapper is a function
        self.assertIs(self.called(lambda environ, start: file, environ), file)

    def test_a_body_with_code_of_the_application_runs_in_the_scope(self) -> None:
        found = []

        class Readable(io.BytesIO):
            def __next__(self) -> bytes:
                found.append(tracked())
                return super().__next__()

            def close(self) -> None:
                found.append(tracked())
                super().close()  # otherwise it is closed again when it is dropped

        class Closing(List[bytes]):
            def close(self) -> None:
                found.append(tracked())

        for wrapper in ({}, {'wsgi.file_wrapper': type('Wrapper', (), {})}):
            for made, count in ((Readable(b'1'), 3), (Closing([b'1']), 1)):
                del found[:]
                environ = dict(environ_of(cookie=COOKIE), **wrapper)
                body = self.called(lambda environ, start, made=made: made, environ)
                self.assertEqual(list(body), [b'1'])
                body.close()
                ids = [each['anonymousId'] for each in found]
                self.assertEqual(ids, [ID] * count)

    def test_an_error_of_the_application_passes(self) -> None:
        def app(environ: Any, start_response: Any) -> Any:
            raise LookupError

        with self.assertRaises(LookupError):
            self.called(app)
        self.assertEqual(blocks.opened(), ())

    def test_a_real_server_serves_it(self) -> None:
        found = []

        def app(environ: Any, start_response: Any) -> Any:
            start_response('200 OK', [('Content-Type', 'text/plain')])
            found.append(tracked())
            yield b'1'
            found.append(tracked())

        class Handler(WSGIRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

        made = wsgi.ScopeMiddleware(app, '127.0.0.0/8')
        server = make_server('127.0.0.1', 0, made, handler_class=Handler)
        self.addCleanup(server.server_close)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        headers = {'Cookie': COOKIE, 'X-Forwarded-For': '198.51.100.7'}
        url = 'http://127.0.0.1:%d/a%%20b?utm_source=x' % server.server_port
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers)
        ) as got:
            self.assertEqual(got.read(), b'1')
        thread.join(LIMIT)
        for message in found:
            self.assertEqual(message['anonymousId'], ID)
            self.assertEqual(message['context']['ip'], '198.51.100.7')
            self.assertEqual(message['context']['page']['url'], url)
            self.assertEqual(message['context']['campaign'], {'source': 'x'})
        self.assertEqual(len(found), 2)


def scope_of(kind: str = 'http', **values: Any) -> Dict[str, Any]:
    """Return the scope of ASGI, as a server makes it."""
    scope: Dict[str, Any] = {
        'type': kind,
        'scheme': 'https',
        'path': '/',
        'query_string': b'',
        'client': ('192.0.2.1', 1234),
        'headers': [(b'host', b'shop'), (b'cookie', COOKIE.encode())],
    }
    scope.update(values)
    return scope


@needs_task_contexts
class AsgiTest(unittest.TestCase):
    def called(
        self, app: Callable[..., Any], scope: Any = None, **settings: Any
    ) -> None:
        made = asgi.ScopeMiddleware(app, **settings)
        run_loop(made(scope_of() if scope is None else scope, None, None))

    def message(self, scope: Any = None, **settings: Any) -> Any:
        """Return the event that an application tracks."""
        found = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            found.append(tracked())

        self.called(app, scope, **settings)
        return found[0]

    def test_an_event_has_the_ids_and_the_context_of_its_request(self) -> None:
        for kind in ('http', 'websocket'):
            message = self.message(
                scope_of(kind, path='/ä', query_string=b'utm_source=%C3%A4'),
                user_id=lambda scope: 7,
            )
            self.assertEqual((message['userId'], message['anonymousId']), ('7', ID))
            self.assertEqual(message['context']['ip'], '192.0.2.1')
            self.assertEqual(message['context']['campaign'], {'source': 'ä'})
            self.assertEqual(
                message['context']['page'],
                {
                    'path': '/%C3%A4',
                    'url': 'https://shop/%C3%A4?utm_source=%C3%A4',
                    'search': '?utm_source=%C3%A4',
                },
            )

    def test_the_lifespan_has_no_scope(self) -> None:
        found = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            found.append(blocks.opened())

        self.called(app, {'type': 'lifespan'})
        self.assertEqual(found, [()])

    def test_several_lines_of_a_header_are_one(self) -> None:
        first, second = COOKIE.encode().split(b'; c')[0].split(b'; ')
        message = self.message(
            scope_of(
                headers=[
                    (b'cookie', first),
                    (b'Cookie', second),
                    (b'x-forwarded-for', b'203.0.113.9'),
                    (b'x-forwarded-for', b'198.51.100.7'),
                    (b'x-forwarded-for', b'192.0.2.2'),
                ]
            ),
            trusted_proxies='192.0.2.0/24',
        )
        self.assertEqual(message['anonymousId'], ID)
        self.assertEqual(message['context']['ip'], '198.51.100.7')

    def test_a_root_path_comes_once(self) -> None:
        for path in ('/root/page', '/page'):
            message = self.message(scope_of(path=path, root_path='/root'))
            self.assertEqual(message['context']['page']['path'], '/root/page')

    def test_a_peer_may_have_no_address(self) -> None:
        message = self.message(scope_of(client=None))
        self.assertNotIn('ip', message['context'])

    def test_the_facts_are_those_from_before_the_application_ran(self) -> None:
        found = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope.update(path='/changed', client=('127.0.0.1', 1))
            scope['headers'].clear()
            found.append(tracked())

        self.called(app)
        self.assertEqual(found[0]['context']['ip'], '192.0.2.1')
        self.assertEqual(found[0]['context']['page']['path'], '/')

    def test_the_user_may_be_found_later_and_may_change(self) -> None:
        found = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            for user in (None, 'ada', 'bob'):
                scope['user'] = user
                found.append(tracked()['userId'])

        self.called(app, user_id=lambda scope: scope.get('user'))
        self.assertEqual(found, [None, 'ada', 'bob'])

    def test_tasks_and_carried_threads_of_a_request_are_in_its_scope(self) -> None:
        found: List[Any] = []

        def track() -> None:
            found.append(tracked())

        async def task() -> None:
            await asyncio.sleep(0)
            track()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.ensure_future(task())
            loop = asyncio.get_event_loop()
            await loop.run_in_executor(None, htevents.carry(track))
            if sys.version_info >= (3, 9):
                await asyncio.to_thread(track)
            else:
                track()

        self.called(app)
        self.assertEqual([each['anonymousId'] for each in found], [ID] * 3)

    def test_a_wrong_argument_is_refused(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            pass

        for settings in ({'user_id': app}, {'trusted_proxies': 'proxy.example'}):
            with self.assertRaisesRegex(ValidationError, list(settings)[0]):
                asgi.ScopeMiddleware(app, **settings)

    def test_10000_interleaved_requests_are_not_mixed_up(self) -> None:
        count, steps = 10000, 3
        wrong: List[Any] = []
        seen = [0]

        async def app(scope: Any, receive: Any, send: Any) -> None:
            number = scope['number']
            scope['user'] = 'user-%d' % number
            for _ in range(steps):
                await asyncio.sleep(0)
                message = tracked()
                seen[0] += 1
                ids = message['userId'], message['anonymousId']
                path = message['context']['page']['path']
                if (*ids, path) != (scope['user'], 'id-%d' % number, '/%d' % number):
                    wrong.append(message)

        made = asgi.ScopeMiddleware(app, user_id=lambda scope: scope['user'])

        async def main() -> None:
            cookie = 'htjs_anonymous_id=%%22id-%d%%22'
            await asyncio.gather(
                *[
                    made(
                        scope_of(
                            number=number,
                            path='/%d' % number,
                            headers=[(b'cookie', (cookie % number).encode())],
                        ),
                        None,
                        None,
                    )
                    for number in range(count)
                ]
            )
            self.assertEqual(blocks.opened(), ())

        run_loop(main())
        self.assertEqual(seen[0], count * steps)
        self.assertEqual(wrong, [])

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([each.encode() for each in _browser.HEADERS])
                | st.binary(),
                st.binary(),
            )
        ),
        st.text(),
        st.binary(),
    )
    def test_no_request_raises(self, headers: Any, path: str, query: bytes) -> None:
        scope = scope_of(headers=headers, path=path, query_string=b'utm_term=' + query)
        found = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            found.append(tracked(user_id='user'))

        self.called(app, scope, trusted_proxies=['192.0.2.1', 'unix'])
        self.assertEqual(len(found), 1)


@unittest.skipIf(_browser.HAS_TASK_CONTEXTS, 'this Python has a context for each task')
class OldPythonTest(unittest.TestCase):
    def test_asgi_needs_contexts_of_tasks(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            pass

        with self.assertRaisesRegex(RuntimeError, 'Python 3.7'):
            asgi.ScopeMiddleware(app)


if __name__ == '__main__':
    unittest.main()
