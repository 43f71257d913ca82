import gzip
import http.client
import io
import json
import os
import socket
import tempfile
import threading
import time
import tracemalloc
import unittest
from datetime import datetime, timedelta, timezone
from typing import Any

import requests

from hightouch.htevents.collector import Collector, Fault, check_event
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.stamps import iso_now, to_iso
from hightouch.htevents.test.support import LIMIT, TestCase, run_program


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

    def raw(self, *pieces: bytes) -> bytes:
        """Send bytes, and give the answer to them."""
        with socket.create_connection(('127.0.0.1', self.collector.port), 30) as sender:
            for piece in pieces:
                sender.sendall(piece)
            sender.shutdown(socket.SHUT_WR)
            answer = b''
            while True:
                more = sender.recv(1 << 16)
                if not more:
                    return answer
                answer += more

    def test_nonsense_is_answered(self) -> None:
        body = json.dumps({'batch': [event()], 'writeKey': 'key'}).encode()
        packed = gzip.compress(body)
        members = gzip.compress(body[:9]) + gzip.compress(body[9:])
        bomb = gzip.compress(b'[' * (65 << 20))
        deep = b'{"batch":[' + b'[' * 100000 + b']' * 100000 + b'],"writeKey":"key"}'
        half = body.replace(b'"userId": "user"', b'"userId": "\\ud800"')
        unzip = b'Content-Encoding: gzip\r\n'
        head = b'POST /v1/batch HTTP/1.1\r\nHost: x\r\n'
        length = b'Content-Length: %d\r\n'
        chunked = b'Transfer-Encoding: chunked\r\n'
        chunks = b'5;x=y\r\n%s\r\n%X\r\n%s\r\n0\r\nTrailer: x\r\n\r\n'
        chunks %= (body[:5], len(body) - 5, body[5:])
        for status, headers, data in (
            (200, length % len(body), body),
            (200, length % len(body) + b'Content-Encoding: identity\r\n', body),
            (200, length % len(packed) + unzip, packed),
            (200, length % len(members) + unzip, members),
            (200, length % len(half), half),
            (200, chunked, chunks),
            (200, length % 7 + chunked, chunks),
            (400, length % len(body) + unzip, body),
            (400, length % (len(packed) - 9) + unzip, packed[:-9]),
            (400, length % 0 + unzip, b''),
            (413, length % len(bomb) + unzip, bomb),
            (413, length % (2 << 20), bytes(2 << 20)),
            (413, chunked, b'1000\r\n%s\r\n' % bytes(4096) * 500 + b'0\r\n\r\n'),
            (413, chunked, b'100000\r\n%s\r\n' % bytes(1 << 20) * 64 + b'1\r\nx'),
            (415, length % len(body) + b'Content-Encoding: br\r\n', body),
            (400, length % len(deep), deep),
            (400, length % 3, b'\xff\xfe\x00'),
            (400, b'', b''),
            (400, b'Content-Length: five\r\n', body),
            (400, b'Content-Length: -5\r\n', body),
            (400, b'Content-Length: +5\r\n', body),
            (400, b'Content-Length: \xb2\r\n', body),
            (400, b'Content-Length: 9' + b'9' * 5000 + b'\r\n', body),
            (400, length % 5 + length % 6, body),
            (400, length % (len(body) + 1), body),
            (413, length % (65 << 20), body),
            (400, chunked, b'five\r\n' + body),
            (400, chunked, b'-5\r\n' + body),
            (400, chunked, b'FFF\r\n' + body),
            (413, chunked, b'FFFFFFF\r\n' + body),
            (400, chunked, b''),
            (400, b'Transfer-Encoding: gzip\r\n', body),
        ):
            answer = self.raw(head + headers + b'Connection: close\r\n\r\n' + data)
            expected = b'HTTP/1.1 %d ' % status
            self.assertTrue(answer.startswith(expected), (headers, answer[:300]))
        self.assertEqual(len(self.collector.events), 7)

    def test_who_asks_whether_to_go_on_is_told_before_the_body(self) -> None:
        body = json.dumps({'batch': [event()], 'writeKey': 'key'}).encode()
        head = b'POST /v1/batch HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n'
        with socket.create_connection(('127.0.0.1', self.collector.port), 30) as sender:
            sender.sendall(head + b'Content-Length: %d\r\n\r\n' % len(body))
            self.assertTrue(sender.recv(1 << 16).startswith(b'HTTP/1.1 100 '))
            sender.sendall(body)
            self.assertTrue(sender.recv(1 << 16).startswith(b'HTTP/1.1 200 '))

    def test_no_body_takes_memory_however_it_is_sent(self) -> None:
        length = b'Content-Length: %d\r\nContent-Type: text/plain\r\n'
        lists = b'[' + b'[],' * (10 << 20)
        packed = gzip.compress(lists)
        tiny = b'2\r\n[]\r\n' * (1 << 20)
        for headers, data in (
            (length % len(lists), lists),
            (length % len(packed) + b'Content-Encoding: gzip\r\n', packed),
            (b'Transfer-Encoding: chunked\r\n', tiny),
        ):
            head = b'POST /v1/batch HTTP/1.1\r\nHost: x\r\n' + headers
            tracemalloc.start()
            try:
                answer = self.raw(head + b'\r\n' + data)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            self.assertIn(answer[9:12], (b'400', b'413'))
            # What is sent is put together once, and 1 MB of it read.
            self.assertLess(peak, len(data) + (8 << 20))

    def test_what_has_come_is_answered_before_the_end(self) -> None:
        def end(*_: Any) -> None:
            stopper.start()
            while collector._kept_port is None:  # it comes to the connections
                time.sleep(0.01)
            stopper.join(0.2)  # which end now, were it not for us

        with Collector(on_event=end) as collector:
            stopper = threading.Thread(target=collector.stop)
            body = {'batch': [event()], 'writeKey': 'key'}
            answer = requests.post(
                collector.url + '/v1/batch', json=body, timeout=LIMIT
            )
            stopper.join(LIMIT)
        self.assertEqual(answer.status_code, 200)
        self.assertEqual(len(collector.events), 1)

    def test_what_waits_is_not_waited_for_at_the_end(self) -> None:
        with Collector(latency=LIMIT * 10) as collector:
            with socket.create_connection(('127.0.0.1', collector.port), 30) as sender:
                sender.sendall(b'POST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}')
                self.assertTrue(collector.wait_for_requests(1))
                collector.stop()
                self.assertEqual(sender.recv(1), b'')

    def test_what_fails_in_the_collector_is_answered(self) -> None:
        closed = io.StringIO()
        closed.close()
        full = io.StringIO()
        full.flush = lambda: os.write(-1, b'')  # type: ignore[assignment, return-value]
        for settings in (
            {'out': closed},
            {'out': full},
            {'on_event': lambda *_: 1 / 0},
        ):  # type: Any
            with Collector(**settings) as collector:
                body = {'batch': [event()], 'writeKey': 'key'}
                answer = requests.post(
                    collector.url + '/v1/batch', json=body, timeout=30
                )
            self.assertEqual(answer.status_code, 500)
            self.assertIn('Error', answer.json()['message'])
            self.assertEqual(collector.events, [])

    def test_half_a_pair_is_written_as_json(self) -> None:
        with tempfile.TemporaryFile('w+', encoding='utf-8') as out:
            with Collector(out=out) as collector:
                data = json.dumps(
                    {'batch': [event(userId='\ud800ü')], 'writeKey': 'key'}
                )
                requests.post(collector.url + '/v1/batch', data, timeout=30)
            out.seek(0)
            self.assertEqual(json.loads(out.read())['userId'], '\ud800ü')

    def test_a_number_that_json_lacks_is_refused(self) -> None:
        text = json.dumps({'batch': [event(properties={'a': 0.5})], 'writeKey': 'key'})
        with Collector() as collector:
            for number in ('NaN', 'Infinity', '-Infinity', '1e999', '-1e999', '0.5'):
                answer = requests.post(
                    collector.url + '/v1/batch',
                    data=text.replace('0.5', number),
                    headers={'Content-Type': 'application/json'},
                    timeout=LIMIT,
                )
                expected = 200 if number == '0.5' else 400
                self.assertEqual(answer.status_code, expected, number)

    def test_a_batch_with_a_bad_event_is_refused_as_a_whole(self) -> None:
        good = {'batch': [event()], 'writeKey': 'key'}
        self.assertEqual(self.post(good), 200)
        bad = {'batch': [event(), event(type='x')], 'writeKey': 'key'}
        self.assertEqual(self.post(bad), 400)
        for body in (7, {}, {'batch': 7}, {'batch': [event()]}):
            self.assertEqual(self.post(body), 400)
        self.assertEqual(self.post(good, '/other'), 404)
        self.assertEqual(len(self.collector.events), 1)

    def test_basic_credentials_may_carry_the_write_key(self) -> None:
        """As the documentation of the HTTP API has it, which many SDKs follow."""
        url = self.collector.url + '/v1/batch'
        short = {'type': 'track', 'userId': 'user', 'event': 'Short'}
        for body, auth, status in (
            ({'batch': [event(event='Full')]}, ('key', ''), 200),
            ({'batch': [short]}, ('key', ''), 200),
            ({'batch': [dict(short, event=None)]}, ('key', ''), 400),
            ({'batch': [dict(short, properties=[])]}, ('key', ''), 400),
            ({'batch': ['event']}, ('key', ''), 400),
            ({'batch': [event()]}, ('', 'key'), 400),
            ({'batch': [event()]}, None, 400),
            ({'batch': [short], 'writeKey': 'key'}, ('other', ''), 400),
            ({'batch': [event()], 'writeKey': 5}, ('key', ''), 400),
        ):  # type: Any
            answer = requests.post(url, json=body, auth=auth)
            self.assertEqual(answer.status_code, status, (body, answer.text))
        bad = requests.post(
            url, json={'batch': []}, headers={'Authorization': 'Basic é'}
        )
        self.assertEqual(bad.status_code, 400)
        names = [each['event'] for each in self.collector.events]
        self.assertEqual(names, ['Full', 'Short'])
        self.assertEqual(check_event(self.collector.events[1], complete=False), [])

    def test_each_call_has_a_path_of_its_own_for_one_event(self) -> None:
        for type_, fields in (
            ('track', {'event': 'Order'}),
            ('identify', {'traits': {'plan': 'pro'}}),
            ('page', {'name': 'Start'}),
            ('screen', {'name': 'Home'}),
            ('group', {'groupId': 'acme'}),
            ('alias', {'previousId': 'before'}),
        ):  # type: Any
            url = '%s/v1/%s' % (self.collector.url, type_)
            body = dict(fields, userId='user', sentAt='2026-01-02T03:04:05Z')
            for answer in (
                requests.post(url, json=body, auth=('key', '')),
                requests.post(
                    url + '?a=b', json=dict(body, writeKey='key', type=type_)
                ),
            ):
                self.assertEqual(answer.status_code, 200, answer.text)
            for wrong in (
                dict(fields),
                dict(body, type='other'),
                dict(body, type='alias' if type_ == 'track' else 'track'),
                dict(body, timestamp='yesterday'),
                [body],
            ):  # type: Any
                answer = requests.post(url, json=wrong, auth=('key', ''))
                self.assertEqual(answer.status_code, 400, wrong)
            self.assertEqual(requests.post(url, json=body).status_code, 400)
            one, two = self.collector.events[-2:]
            for each in (one, two):
                self.assertEqual(each['type'], type_)
                self.assertEqual(dict(each, **fields), each)
                self.assertEqual(check_event(each, complete=False), [])
                self.assertNotIn('writeKey', each)
                self.assertNotIn('sentAt', each)
            self.assertNotEqual(one['messageId'], two['messageId'])
        self.assertEqual(len(self.collector.events), 12)
        url = self.collector.url + '/v1/other'
        self.assertEqual(requests.post(url, json={}).status_code, 404)

    def test_a_browser_may_ask_whether_it_may_send(self) -> None:
        origin = {'Origin': 'http://localhost:3000'}
        asked = dict(
            origin,
            **{
                'Access-Control-Request-Method': 'POST',
                'Access-Control-Request-Headers': 'authorization,content-type',
            },
        )
        with requests.Session() as session:
            url = self.collector.url + '/v1/track'
            answer = session.options(url, headers=asked)
            self.assertEqual((answer.status_code, answer.content), (204, b''))
            allowed = answer.headers
            self.assertEqual(allowed['Access-Control-Allow-Origin'], '*')
            self.assertIn('POST', allowed['Access-Control-Allow-Methods'])
            self.assertIn('authorization', allowed['Access-Control-Allow-Headers'])
            body = {'userId': 'user', 'event': 'Clicked', 'writeKey': 'key'}
            for status, each in ((200, body), (400, {})):  # type: Any
                answer = session.post(url, json=each, headers=origin)
                self.assertEqual(answer.status_code, status)
                self.assertEqual(answer.headers['Access-Control-Allow-Origin'], '*')
            answer = session.post(url, json=body)
            self.assertNotIn('Access-Control-Allow-Origin', answer.headers)
        self.assertEqual(self.collector.connections, 1)
        self.assertEqual(len(self.collector.requests), 3)

    def test_an_answer_without_content_has_no_body(self) -> None:
        self.collector.script(204)
        client = self.client()
        for _ in range(2):
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().delivered, 2)
        self.assertEqual(self.collector.connections, 1)
        self.collector.script(204)
        body = json.dumps({'batch': [event()], 'writeKey': 'key'}).encode('ascii')
        with socket.create_connection(('127.0.0.1', self.collector.port), 60) as raw:
            head = 'POST /v1/batch HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n'
            raw.sendall((head % len(body)).encode('ascii') + body)
            answer = b''.join(iter(lambda: raw.recv(1000), b''))
        self.assertTrue(answer.startswith(b'HTTP/1.1 204'), answer)
        self.assertTrue(answer.endswith(b'\r\n\r\n'), answer)

    def test_what_cannot_be_written_is_not_acknowledged(self) -> None:
        class Full(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError('no space left')

        with Collector(out=Full()) as collector:
            body = {'batch': [event()], 'writeKey': 'key'}
            answer = requests.post(collector.url + '/v1/batch', json=body)
            self.assertEqual(answer.status_code, 500)
            self.assertIn('space', answer.text)
            self.assertEqual(collector.events, [])

    def test_a_forked_child_may_leave_it(self) -> None:
        pid = os.fork()
        if pid == 0:
            self.collector.stop()
            os._exit(0)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        body = {'batch': [event()], 'writeKey': 'key'}
        answer = requests.post(self.collector.url + '/v1/batch', json=body)
        self.assertEqual(answer.status_code, 200)

    def test_one_that_is_dropped_or_inherited_says_nothing(self) -> None:
        result = run_program(
            'import gc, multiprocessing, os\n'
            'from hightouch.htevents.collector import Collector\n'
            'def made():\n'
            '    collector = Collector().start()\n'
            '    collector.stop()\n'
            '    return collector\n'
            'def work():\n'
            '    os.closerange(3, 100)  # as a daemon does\n'
            '    global collector\n'
            '    other, collector = os.open(os.devnull, os.O_RDONLY), None\n'
            '    gc.collect()\n'
            '    os.close(other)\n'
            'collector = made()\n'
            'child = multiprocessing.get_context("fork").Process(target=work)\n'
            'child.start()\n'
            'child.join()\n'
            'assert child.exitcode == 0\n'
            'del collector\n'
            'gc.collect()\n'
            'try:\n'
            '    Collector(nonsense=1)\n'
            'except TypeError:\n'
            '    pass\n'
            'last = made()\n'
        )
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, '', ''))

    def test_a_fault_that_it_does_not_know_is_an_error(self) -> None:
        for unknown in ('timeout', 'Reset', '503', None, 1.5, [503]):  # type: Any
            for give in (self.collector.script, lambda it: Collector(faults=[503, it])):
                with self.assertRaisesRegex(ValidationError, "'reset-before'.*, got "):
                    give(unknown)
        self.assertEqual(self.post({'batch': [event()], 'writeKey': 'key'}), 200)
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
