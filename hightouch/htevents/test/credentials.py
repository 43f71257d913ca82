import base64
import contextlib
import io
import os
import socket
import traceback
import unittest
from ipaddress import ip_address
from typing import Any

import mock
import requests

from hightouch.htevents._process.credentials import bare, split_credentials
from hightouch.htevents.collector import Fault
from hightouch.htevents.test.exchange import RawServer
from hightouch.htevents.test.support import (
    LIMIT,
    LogCatcher,
    Recorder,
    TestCase,
    make_key,
)

PASSWORD = 'pAsSw0rd'

# Where credentials may be, %s, and how such a URL may be wrong.
PLACES = (
    'http://%s@127.0.0.1:9',
    'HTTP://%s@127.0.0.1:9/path',
    '%s@127.0.0.1:9',
    '//%s@127.0.0.1:9',
    'http:/%s@127.0.0.1:9',
    'http:%s@127.0.0.1:9',
    'htps://%s@127.0.0.1:9',
    'ftp://%s@127.0.0.1',
    'http://%s@',
    'http://%s@[bad',
    'http://%s@ho st',
    'http://%s@127.0.0.1:port',
    'http://%s@127.0.0.1:99999',
    'http://%s@*.example',
    'http://%s@' + 'a' * 70 + '.example',
    'http//%s@127.0.0.1:9',
    'http://http://%s@127.0.0.1:9',
    '"http://%s@127.0.0.1:9"',
    'http://corp/%s@127.0.0.1:9',
    'http://corp\\%s@127.0.0.1:9',
)
CREDENTIALS = (
    'user:' + PASSWORD,
    PASSWORD,
    'user:a#' + PASSWORD,
    'user:a?' + PASSWORD,
    'user:a/' + PASSWORD,
    'user:a@' + PASSWORD,
    'us[er: \n' + PASSWORD + '\\',
    'user:%zz' + PASSWORD,
    'user:7/' + PASSWORD,
    'user:/' + PASSWORD,
    'user:/\udcff' + PASSWORD,
    'user:/' + PASSWORD + '\u00e9',
    PASSWORD + '/x',
    'user:a[' + PASSWORD + ']b',
)


resolve = socket.getaddrinfo


def without_dns(host: Any, *args: Any, **kwargs: Any) -> Any:
    """Know only addresses: to ask for a name may take seconds."""
    try:
        ip_address(host.strip('[]'))
    except ValueError:
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
    return resolve(host, *args, **kwargs)


class SplitTest(unittest.TestCase):
    def test_they_are_what_is_before_the_place(self) -> None:
        for url, expected in (
            ('https://user:p@example.com', ('https://example.com', 'user:p')),
            ('//token@[::1]:80/a?b#c', ('//[::1]:80/a?b#c', 'token')),
            ('HTTP://a:b@c:d@host/e@f', ('HTTP://host/e@f', 'a:b@c:d')),
        ):
            self.assertEqual(split_credentials(url), expected)

    def test_a_url_without_stays_as_it_is(self) -> None:
        for url in (
            '',
            'https://example.com',
            'https://example.com/a@b',
            'https://example.com:8443/a@b?c@d#e@f',
            # Who ends the place too early is not sent to where it might have meant.
            'http://example.com\\@127.0.0.1',
            'http://example.com:443;x/v0@127.0.0.1',
            'http://[::1]:80/a@b',
            'example.com/a@b',
            'localhost:port',
            '//',
        ):
            self.assertEqual(split_credentials(url), (url, ''))

    def test_what_is_shown_has_none_however_it_is_written(self) -> None:
        for place in PLACES:
            for credentials in CREDENTIALS:
                shown = bare(place % credentials)
                self.assertNotIn(PASSWORD, shown)
        for url in ('https://example.com/v1', 'http://[::1]:80', 'localhost:port', ''):
            self.assertEqual(bare(url), url)
        self.assertEqual(bare('https://a:b@example.com'), 'https://example.com')
        self.assertEqual(bare('https://a:b/c@example.com'), 'https://***@example.com')


class SecretTest(TestCase):
    def said(self, **settings: Any) -> str:
        """Give all that is said of an event that cannot be delivered."""
        lost = Recorder()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(LogCatcher())
            stderr = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(mock.patch.object(socket, 'getaddrinfo', without_dns))
            client = self.client(
                on_error=lost, debug=True, max_retries=0, timeout=0.5, **settings
            )
            client.track('user', 'event')
            self.assertTrue(client.shutdown(LIMIT))
        found = [error for error, _ in lost.calls]  # type: List[Any]
        self.assertEqual(len(found), 1)
        text = repr((client, client.oauth_manager, client.consumers, client.stats()))
        for each in found:
            text += '%s %r ' % (each, each)
            text += ''.join(traceback.format_exception(type(each), each, None))
            parts = [each.__cause__, each.__context__, getattr(each, 'reason', None)]
            for part in parts + list(each.args):
                if isinstance(part, BaseException) and part not in found:
                    found.append(part)
        return '\n'.join([text, stderr.getvalue()] + log.lines())

    def assert_hidden(self, text: str) -> None:
        self.assertNotIn(PASSWORD.lower(), text.lower())  # as a host is

    def test_nothing_shows_those_of_the_host(self) -> None:
        for place in PLACES:
            for credentials in CREDENTIALS:
                text = self.said(host=place % credentials)
                self.assert_hidden(text)

    def test_nothing_shows_those_of_the_token_server(self) -> None:
        key = make_key()
        for place in PLACES:
            text = self.said(
                oauth_auth_server=place % CREDENTIALS[0],
                oauth_client_id='id',
                oauth_client_key=key,
                oauth_key_id='kid',
            )
            self.assert_hidden(text)

    def test_nothing_shows_those_of_a_proxy(self) -> None:
        for place in PLACES + ('foo://%s@127.0.0.1:9', 'socks5://%s@127.0.0.1:9'):
            for credentials in CREDENTIALS[:5] + CREDENTIALS[8:]:
                proxy = place % credentials
                session = requests.Session()
                session.proxies = {'http': proxy}
                for settings in (
                    {'proxies': {'http': proxy}},
                    {'session': session},
                ):  # type: Any
                    text = self.said(host='http://example.invalid', **settings)
                    self.assert_hidden(text)
                with mock.patch.dict(os.environ, {'http_proxy': proxy}):
                    text = self.said(host='http://example.invalid')
                self.assert_hidden(text)

    def test_the_errors_of_others_stay_readable(self) -> None:
        text = self.said(host='http://127.0.0.1:9/a@b')
        self.assertIn('Connection refused', text)
        text = self.said(host='http://u:1@127.0.0.1:9')
        self.assertIn('Connection refused', text)
        self.assertNotIn('***', text)
        session = requests.Session()
        session.post = mock.Mock(side_effect=OSError('/nowhere/a@b'))  # type: ignore[assignment]
        text = self.said(host='http://127.0.0.1:9', session=session)
        self.assertIn('/nowhere/a@b', text)

    def test_an_error_that_quotes_a_server_without_end_is_cut(self) -> None:
        line = b'HTTP/1.1 ' + b'9@' * 30000
        with RawServer(line + b'\r\n\r\n', line + b'\r\n\r\n') as server:
            for host in (server.url, server.url.replace('//', '//user:secret@')):
                lost = Recorder()
                client = self.client(host=host, on_error=lost, max_retries=0)
                client.track('user', 'event')
                self.assertTrue(client.flush(LIMIT))
                self.assertLess(len(str(lost.calls[0][0])), 5000)

    def test_nothing_shows_what_a_server_repeats(self) -> None:
        host = self.collector.url.replace('//', '//user:p%%41%s@' % PASSWORD)
        basic = base64.b64encode(b'user:pA' + PASSWORD.encode()).decode()
        for text in ('p%41' + PASSWORD, 'pA' + PASSWORD, basic):
            for body in (text, '{"code": "%s", "message": "%s"}' % (text, text)):
                self.collector.script(Fault(400, {}, body.encode()))
                said = self.said(host=host)
                self.assertNotIn(text, said)
                self.assertIn('***', said)
                self.collector.token_faults.append(Fault(400, {}, body.encode()))
                said = self.said(
                    oauth_auth_server=host,
                    oauth_client_id='id',
                    oauth_client_key=make_key(),
                    oauth_key_id='kid',
                )
                self.assertNotIn(text, said)

    def test_a_password_may_hold_what_does_not_end_the_place_of_a_url(self) -> None:
        for password in ('a@b', 'a:b', '[', 'a%23b'):
            self.sent(host=self.collector.url.replace('//', '//user:%s@' % password))
            header = self.collector.requests[-1].headers['authorization']
            pair = base64.b64decode(header.split()[1]).decode()
            self.assertEqual(pair, 'user:' + password.replace('%23', '#'))
