import gzip
import io
import json
import socket
import socketserver
import threading
import tracemalloc
import unittest
import zlib
from types import SimpleNamespace
from typing import Any, Callable, Dict, List

import mock
import requests

from hightouch.htevents import request
from hightouch.htevents._process.answers import BODY_LIMIT
from hightouch.htevents.collector import Fault
from hightouch.htevents.oauth_manager import OauthManager
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.support import LIMIT, Recorder, TestCase, make_key

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n'


def answer(status: int, body: bytes = b'', **headers: str) -> bytes:
    """Give an answer as bytes; headers without a length make none."""
    headers = headers or {'Content_Length': str(len(body))}
    lines = ['%s: %s' % (name.replace('_', '-'), headers[name]) for name in headers]
    head = '\r\n'.join(['HTTP/1.1 %d Said' % status] + lines + ['', ''])
    return head.encode() + body


class RawServer(socketserver.ThreadingTCPServer):
    """Answers the requests in turn with bytes, or by functions that get the socket."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: List[bytes] = []
        self.connections = 0
        super().__init__(('127.0.0.1', 0), _RawHandler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return 'http://127.0.0.1:%d' % self.server_address[1]

    def __enter__(self) -> 'RawServer':
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self._thread.join(LIMIT)
        self.server_close()

    def handle_error(self, *args: Any) -> None:
        """Say nothing of connections that break: that is what this is for."""


class _RawHandler(socketserver.StreamRequestHandler):
    server = None  # type: Any

    def handle(self) -> None:
        self.server.connections += 1
        while self.server.answers:
            head = b''
            while not head.endswith(b'\r\n\r\n'):
                byte = self.rfile.read(1)
                if not byte:
                    return
                head += byte
            length = head.lower().partition(b'content-length:')[2].split(b'\r\n')[0]
            self.server.requests.append(self.rfile.read(int(length)))
            step = self.server.answers.pop(0)
            if callable(step):
                step(self.connection)
            else:
                self.connection.sendall(step)


def drip(
    head: bytes, piece: bytes, ended: threading.Event
) -> Callable[[socket.socket], None]:
    """Make an answer that never ends, and comes slowly."""

    def send(connection: socket.socket) -> None:
        try:
            connection.sendall(head)
            stop = threading.Event()
            for _ in range(LIMIT * 20):
                connection.sendall(piece)
                stop.wait(0.05)
        except OSError:
            ended.set()

    return send


# Bodies that are not what their headers say, or not what HTTP allows.
NONSENSE = {
    'said to be gzip': answer(
        200, b'{"a": 1}', Content_Length='8', Content_Encoding='gzip'
    ),
    'said to be deflate': answer(
        200, b'{"a": 1}', Content_Length='8', Content_Encoding='deflate'
    ),
    'said to be both': answer(
        200, b'{"a": 1}', Content_Length='8', Content_Encoding='gzip, deflate'
    ),
    'said to be what nobody knows': answer(
        200, b'{"a": 1}', Content_Length='8', Content_Encoding='br'
    ),
    'gzip cut short': answer(
        200, gzip.compress(b'x' * 99)[:20], Content_Length='20', Content_Encoding='gzip'
    ),
    'shorter than said': answer(200, b'short', Content_Length='500'),
    'a length that is none': answer(200, b'short', Content_Length='many'),
    'a negative length': answer(200, b'short', Content_Length='-5'),
    'a chunk that is none': answer(200, b'zz\r\nbody', Transfer_Encoding='chunked'),
    'a chunk cut short': answer(200, b'ff\r\nbody', Transfer_Encoding='chunked'),
    'a chunk of negative size': answer(200, b'-1\r\nbody', Transfer_Encoding='chunked'),
    'a chunk of any size': answer(200, b'+_1\r\nbody', Transfer_Encoding='chunked'),
    'JSON that is deep': answer(200, b'[' * 60000),
    'JSON cut short': answer(200, b'{"code": '),
    'a charset that is none': answer(
        200,
        b'{"a": 1}',
        Content_Length='8',
        Content_Type='application/json; charset=no',
    ),
    'bytes of no charset': answer(200, b'\xff\xfe\x00\xd8'),
}


class StatusTest(TestCase):
    """The status decides what an answer means, whatever is in its body."""

    key = make_key()

    def deliver(self, server: RawServer, **settings: Any) -> Any:
        lost = Recorder()
        settings.setdefault('max_retries', 2)
        client = self.client(host=server.url, sync_mode=True, on_error=lost, **settings)
        client.track('user', 'event')
        return client.stats(), [error for error, _ in lost.calls]

    def end(self, connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)

    def test_a_success_is_one_whatever_its_body_is(self) -> None:
        for name, body in NONSENSE.items():

            def once(connection: socket.socket, body: bytes = body) -> None:
                connection.sendall(body)
                self.end(connection)

            with RawServer(once, OK) as server:
                stats, errors = self.deliver(server)
            self.assertEqual((stats.delivered, stats.retried), (1, 0), name)

    def test_a_refusal_is_one_whatever_its_body_is(self) -> None:
        for name, body in NONSENSE.items():

            def once(connection: socket.socket, body: bytes = body) -> None:
                connection.sendall(body.replace(b' 200 ', b' 403 ', 1))
                self.end(connection)

            with RawServer(once, OK) as server:
                stats, (error,) = self.deliver(server)
            self.assertEqual((error.status, stats.retried), (403, 0), name)

    def test_neither_is_one_with_a_location_that_nobody_follows(self) -> None:
        for location in (b'/other', b'http://[::1/', b'/\xe9', b'http://\x00:x', b''):
            head = b'HTTP/1.1 307 Said\r\nContent-Length: 99999\r\nLocation: %s\r\n\r\n'
            ended = threading.Event()
            with RawServer(*[drip(head % location, b'x', ended)] * 3) as server:
                for session in (None, requests.Session()):
                    ended.clear()
                    stats, (error,) = self.deliver(
                        server, timeout=0.5, session=session, max_retries=0
                    )
                    self.assertEqual(error.status, 307, location)
                    self.assertTrue(ended.wait(LIMIT))

    def test_a_body_without_end_is_not_waited_for(self) -> None:
        chunked = answer(200, Transfer_Encoding='chunked')
        for name, head, piece in (
            ('chunks', chunked, b'1\r\nx\r\n'),
            ('a chunk', chunked + b'ffffff\r\n', b'x'),
            ('the head of a chunk', chunked, b'0'),
            ('the extension of a chunk', chunked + b'1;', b'x'),
            ('what follows the last chunk', chunked + b'0\r\n', b'a: b\r\n'),
            ('a length', answer(200, Content_Length='999999'), b'x'),
            ('no length', answer(200, Connection='close'), b'x'),
            ('a chunk of negative size', chunked + b'-1\r\n', b'x' * 8191),
        ):
            for timeout in (0.5, (LIMIT, 0.5)):
                ended = threading.Event()
                # If the machine keeps us waiting for its head, it is sent again.
                with RawServer(*[drip(head, piece, ended)] * 3) as server:
                    stats, errors = self.deliver(server, timeout=timeout)
                    self.assertEqual(stats.delivered, 1, name)
                    # and nobody uses that connection again
                    self.assertTrue(ended.wait(LIMIT), name)

    def test_a_flush_is_not_held_by_a_body_that_drips(self) -> None:
        head = answer(200, Transfer_Encoding='chunked')
        ended = threading.Event()
        with RawServer(*[drip(head, b'1\r\nx\r\n', ended)] * 3) as server:
            client = self.client(host=server.url, timeout=0.5)
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            self.assertTrue(ended.wait(LIMIT))
            self.assertTrue(client.shutdown(LIMIT))
            self.assertEqual(client.stats().delivered, 1)

    def test_no_more_of_a_body_is_read_than_its_beginning(self) -> None:
        sent: List[int] = []
        ended = threading.Event()

        def flood(connection: socket.socket) -> None:
            try:
                connection.sendall(answer(200, Content_Length=str(200 << 20)))
                for _ in range(200):
                    connection.sendall(b'x' * (1 << 20))
                    sent.append(1)
            except OSError:
                ended.set()

        with RawServer(flood, OK) as server:
            response = request.post('key', server.url, batch=[])
            self.assertTrue(ended.wait(LIMIT))
            request.post('key', server.url, batch=[])
            self.assertEqual(server.connections, 2)
        self.assertEqual(len(response.content), BODY_LIMIT)
        self.assertLess(len(sent), 50)  # what the system keeps in between

    def test_what_is_decompressed_takes_no_more_memory_either(self) -> None:
        raw = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        plain = bytes(1 << 26)
        for encoding, body in (
            ('gzip', gzip.compress(plain)),
            ('deflate', zlib.compress(plain)),
            ('deflate', raw.compress(plain) + raw.flush()),
        ):
            for status in (200, 404, 503):
                peak = self.peak(status, body, encoding, self.post_an_event)
                self.assertLess(peak, 8 << 20, (encoding, status))
                peak = self.peak(status, body, encoding, self.ask_for_a_token)
                self.assertLess(peak, 8 << 20, (encoding, status))

    def post_an_event(self, url: str) -> None:
        request.post('key', url, batch=[])

    def ask_for_a_token(self, url: str) -> None:
        OauthManager('id', self.key, 'kid', url, max_retries=0).get_token()

    def peak(
        self, status: int, body: bytes, encoding: str, ask: Callable[[str], None]
    ) -> int:
        """Return the most memory that an answer takes."""
        length = str(len(body))
        said = answer(status, body, Content_Length=length, Content_Encoding=encoding)
        with RawServer(said) as server:
            tracemalloc.start()
            try:
                ask(server.url)
            except request.APIError:
                pass  # for a bad status, or an answer without a token
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            self.assertEqual(len(server.requests), 1)
        return peak

    def test_an_error_is_read_from_a_compressed_body(self) -> None:
        body = b'{"code": "bad", "message": "why"}'
        raw = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        for encoding, packed in (
            ('GZIP', gzip.compress(body)),
            ('deflate', zlib.compress(body)),
            ('deflate', raw.compress(body) + raw.flush()),
            ('gzip', body),
            ('identity', body),
        ):
            length = str(len(packed))
            said = answer(422, packed, Content_Length=length, Content_Encoding=encoding)
            with RawServer(said) as server:
                with self.assertRaises(request.APIError) as caught:
                    request.post('key', server.url, batch=[])
            error = caught.exception
            self.assertEqual((error.code, error.message), ('bad', 'why'), encoding)

    def test_who_posts_gets_a_response_with_its_body(self) -> None:
        body = b'{"success": true}'
        packed = gzip.compress(body)
        for said in (
            answer(200, body),
            answer(200, b'11\r\n%s\r\n0\r\n\r\n' % body, Transfer_Encoding='chunked'),
            answer(
                200, packed, Content_Length=str(len(packed)), Content_Encoding='gzip'
            ),
        ):
            with RawServer(said, OK) as server:
                response = request.post('key', server.url, batch=[])
                self.assertEqual(response.content, body)
                self.assertEqual(response.text, body.decode())
                self.assertEqual(response.json(), {'success': True})
                request.post('key', server.url, batch=[])

    def test_a_connection_whose_answer_was_read_is_used_again(self) -> None:
        for said in (
            OK,
            answer(200, b'x' * 1000),
            answer(204, Server='s'),
            answer(200, b'5\r\nhello\r\n0\r\n\r\n', Transfer_Encoding='chunked'),
            answer(503, b'{}'),
        ):
            with RawServer(said, said, OK) as server:
                client = self.client(host=server.url, sync_mode=True, timeout=LIMIT)
                for _ in range(1 if b'503' in said else 3):
                    client.track('user', 'event')
                self.assertEqual(len(server.requests), 3)
                self.assertEqual(server.connections, 1, said)


class InformationalTest(TestCase):
    """A 1xx is no answer: the one that follows is."""

    HINT = b'HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n'
    PROCESSING = b'HTTP/1.1 102 Processing\r\n\r\n'

    def test_the_answer_that_follows_is_that_to_the_same_request(self) -> None:
        refusal = answer(400, b'{"code": "bad"}')

        def later(connection: socket.socket) -> None:
            connection.sendall(self.HINT)
            threading.Event().wait(0.1)
            connection.sendall(self.PROCESSING)
            threading.Event().wait(0.1)
            connection.sendall(OK)

        for session in (None, requests.Session()):
            for first in (self.HINT + OK, self.PROCESSING * 3 + OK, later):
                with RawServer(first, self.HINT + refusal, OK) as server:
                    lost = Recorder()
                    client = self.client(
                        host=server.url,
                        sync_mode=True,
                        max_retries=0,
                        on_error=lost,
                        session=session,
                    )
                    results = [client.track('user', name)[0] for name in 'abc']
                    self.assertEqual(results, [True, False, True])
                    ((error, batch),) = lost.calls
                    self.assertEqual((error.status, error.code), (400, 'bad'))
                    self.assertEqual(batch[0]['event'], 'b')
                    self.assertEqual(client.stats().retried, 0)

    def test_one_that_nothing_follows_is_no_answer(self) -> None:
        def cut(connection: socket.socket) -> None:
            connection.sendall(self.HINT)
            connection.shutdown(socket.SHUT_RDWR)

        def silent(connection: socket.socket) -> None:
            connection.sendall(self.HINT)

        for first in (cut, silent):
            with RawServer(first, OK) as server:
                client = self.client(host=server.url, sync_mode=True, timeout=2)
                self.assertTrue(client.track('user', 'event')[0])
                self.assertEqual(client.stats().retried, 1)
                self.assertEqual(server.connections, 2)

    def test_a_response_says_what_the_final_answer_says(self) -> None:
        with RawServer(self.HINT + answer(202, b'{"a": 1}')) as server:
            response = request.post('key', server.url, batch=[])
        self.assertEqual((response.status_code, response.reason), (202, 'Said'))
        self.assertEqual(response.json(), {'a': 1})
        self.assertEqual(dict(response.headers), {'Content-Length': '8'})

    def test_headers_that_are_spoilt_are_tried_again(self) -> None:
        for spoilt in (
            b'Content-Length: 5\r\nContent-Length: 6',
            b'Content-Length: 5, 6',
            b'Content-Length: five',
            b'Content-Length: -5',
            b'Content-Length: 9' + b'9' * 30,
            b'Transfer-Encoding: chunked\r\nContent-Length: 5',
            b'no header',
            b'Long: ' + b'x' * 70000,
            b'\r\n'.join([b'Many: x'] * 200),
        ):
            head = b'HTTP/1.1 503 Said\r\n' + spoilt + b'\r\n\r\n'
            with RawServer(head, OK) as server:
                lost = Recorder()
                client = self.client(host=server.url, on_error=lost, timeout=0.3)
                client.track('user', 'event')
                self.assertTrue(client.shutdown(LIMIT))
            self.assertEqual((len(server.requests), lost.calls), (2, []), spoilt[:40])


class TokenServerTest(TestCase):
    """The same holds for the server of the tokens."""

    key = make_key()

    def test_no_answer_of_it_takes_long_or_raises_anything_else(self) -> None:
        token = b'{"access_token": "token", "expires_in": 3600}'
        packed = gzip.compress(token)
        ended = threading.Event()
        cut = answer(200, token[:9], Content_Length='46')

        def shut(connection: socket.socket) -> None:
            connection.sendall(cut)
            connection.shutdown(socket.SHUT_RDWR)

        for said, delivered in (
            (InformationalTest.HINT + answer(200, token), True),
            (
                answer(
                    200,
                    packed,
                    Content_Length=str(len(packed)),
                    Content_Encoding='gzip',
                ),
                True,
            ),
            (answer(200, token, Content_Length='45', Content_Encoding='gzip'), True),
            (answer(200, b'[' * 60000), False),
            (
                drip(answer(200, Transfer_Encoding='chunked'), b'1\r\nx\r\n', ended),
                False,
            ),
            (drip(answer(400, Content_Length='9999'), b'x', ended), False),
        ):  # type: Any
            with RawServer(said) as server:
                client = self.oauth_client(
                    sync_mode=True,
                    max_retries=0,
                    timeout=2,
                    oauth_auth_server=server.url,
                )
                self.assertEqual(client.track('user', 'event')[0], delivered)
        good = answer(200, token)
        for said in (shut, drip(cut[:-1], b'', ended)):
            with RawServer(said, good) as server:
                client = self.oauth_client(
                    sync_mode=True,
                    timeout=2,
                    oauth_auth_server=server.url,
                )
                self.assertTrue(client.track('user', 'event')[0])
                self.assertEqual(client.stats().retried, 1)


class SessionTest(TestCase):
    """Sessions of the user's own, and what tests put in their place."""

    def test_a_hook_that_raises_for_the_status_does_not_hide_it(self) -> None:
        def check(response: Any, *args: Any, **kwargs: Any) -> None:
            response.raise_for_status()

        session = requests.Session()
        session.hooks['response'].append(check)
        lost = Recorder()
        client = self.client(session=session, sync_mode=True, on_error=lost)
        body = b'{"code": "bad", "message": "why"}'
        self.collector.script(Fault(403, {}, body), Fault(503), Fault(200))
        self.assertFalse(client.track('user', 'event')[0])
        ((error, _),) = lost.calls
        self.assertIsInstance(error, request.APIError)
        self.assertEqual((error.status, error.code, error.message), (403, 'bad', 'why'))
        self.assertEqual(client.stats().retried, 0)
        self.assertTrue(client.track('user', 'event')[0])
        self.assertEqual(client.stats().retried, 1)

    def test_a_hook_sees_the_final_answer_and_may_do_as_it_likes(self) -> None:
        def read(response: Any, **_: Any) -> None:
            seen.append((response.status_code, response.content))

        def fail(response: Any, **_: Any) -> None:
            raise RuntimeError

        hint = InformationalTest.HINT
        for hooks in (read, [read], [read, fail]):  # type: Any
            seen: List[Any] = []
            session = requests.Session()
            session.hooks = {'response': hooks}
            said = [hint + answer(200, b'one'), hint + answer(400, b'two'), OK]
            with RawServer(*said) as server:
                client = self.client(
                    host=server.url, session=session, sync_mode=True, max_retries=0
                )
                results = [client.track('user', 'event')[0] for _ in range(3)]
            self.assertEqual(results, [True, False, True])
            self.assertEqual(seen, [(200, b'one'), (400, b'two'), (200, b'')])

    def test_a_session_may_change_what_it_is_given(self) -> None:
        class Adding(requests.Session):
            def request(self, *args: Any, **kwargs: Any) -> Any:
                kwargs['headers']['X-Mine'] = 'secret'
                return super().request(*args, **kwargs)

        client = self.oauth_client(
            session=Adding(),
            sync_mode=True,
            oauth_client_key=make_key(),
        )
        self.assertTrue(client.track('user', 'event')[0])
        request.post(TEST_WRITE_KEY, self.collector.url, batch=[])
        mine = [each.headers.get('x-mine') for each in self.collector.requests]
        self.assertEqual(mine, ['secret', 'secret', None])

    def test_a_hook_may_read_the_body(self) -> None:
        seen: List[Dict[str, Any]] = []
        session = requests.Session()
        session.hooks['response'].append(lambda each, **_: seen.append(each.json()))
        client = self.client(session=session, sync_mode=True)
        self.assertTrue(client.track('user', 'event')[0])
        self.assertEqual(seen, [{'success': True}])

    def test_a_stand_in_for_a_response_will_do(self) -> None:
        for response in (
            SimpleNamespace(status_code=403, headers={}, json=lambda: {'code': 'bad'}),
            SimpleNamespace(status_code=403, headers={}, content=b'{"code": "bad"}'),
            mock.Mock(
                status_code=403, headers={}, **{'json.return_value': {'code': 'bad'}}
            ),
        ):  # type: Any
            with mock.patch('requests.Session.post', return_value=response):
                with self.assertRaises(request.APIError) as caught:
                    request.post('key', batch=[])
                self.assertEqual(
                    (caught.exception.status, caught.exception.code), (403, 'bad')
                )
                response.status_code = 200
                self.assertIs(request.post('key', batch=[]), response)
        for raw in (
            mock.Mock(),
            mock.MagicMock(),
            io.StringIO('x'),
            object(),
            'x',
            None,
        ):
            made = requests.Response()
            made.status_code, made.raw = 200, raw  # type: ignore[assignment]
            with mock.patch('requests.Session.post', return_value=made):
                self.assertIs(request.post('key', batch=[]), made)
        response = SimpleNamespace(
            status_code=503, headers=None, content=None, json=dict
        )
        with mock.patch('requests.Session.post', return_value=response):
            with self.assertRaises(request.APIError):
                request.post('key', batch=[])
        made = requests.Response()
        made.status_code = 200
        with mock.patch('requests.Session.post', return_value=made):
            self.assertIs(request.post('key', batch=[]), made)
        made._content = json.dumps({'code': 'bad'}).encode()
        made.status_code = 422
        with mock.patch('requests.Session.post', return_value=made):
            with self.assertRaises(request.APIError) as caught:
                request.post('key', batch=[])
            self.assertEqual(caught.exception.code, 'bad')


if __name__ == '__main__':
    unittest.main()
