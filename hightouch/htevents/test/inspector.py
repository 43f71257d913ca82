"""The collector with a page: what it takes, what it tells, and to whom."""

import base64
import gzip
import hashlib
import http.client
import json
import re
import socket
import threading
import unittest
from contextlib import closing
from typing import Any, Dict, List

import requests
from hypothesis import given
from hypothesis import strategies as st

from hightouch.htevents._process.waiting import monotonic
from hightouch.htevents.cli import inspector
from hightouch.htevents.cli.inspector import Entry, Filter, Inspector
from hightouch.htevents.collector import Collector, Fault
from hightouch.htevents.test.collector import event
from hightouch.htevents.test.support import LIMIT, Recorder, TestCase

NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ['type', 'event', 'userId', 'anonymousId', 'properties', 'context', 'messageId']
)


class Stream:
    """What a page gets."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(
            url.partition('//')[2], timeout=LIMIT
        )
        self._connection.request('GET', '/stream')
        self.response = self._connection.getresponse()
        self.numbers: List[int] = []

    def next(self) -> Dict[str, Any]:
        line = self.response.readline()
        if not line:
            raise EOFError
        assert line.startswith(b'data: ') and self.response.readline() == b'\n'
        data: Dict[str, Any] = json.loads(line[6:].decode('ascii'))
        return data

    def wait_for(self, count: int) -> Dict[str, Any]:
        """Return the message that tells so many events in all."""
        while True:
            data = self.next()
            if data['first']:
                self.numbers = []
            self.numbers += [each['number'] for each in data['events']]
            if data['total'] >= count:
                return data

    def close(self) -> None:
        self.response.close()
        self._connection.close()


class InspectorCase(TestCase):
    def inspector(self, **options: Any) -> Inspector:
        made = Inspector(**options).start()
        self.addCleanup(made.stop)
        assert isinstance(made, Inspector)
        return made

    def post(self, to: Inspector, *events: Any, **headers: str) -> requests.Response:
        body = {'batch': list(events), 'writeKey': 'wk-secret'}
        return requests.post(
            to.url + '/v1/batch', json=body, headers=headers, timeout=LIMIT
        )

    def events(self, of: Inspector, query: str = '') -> List[Any]:
        answer = requests.get(of.url + '/events' + query, timeout=LIMIT)
        self.assertEqual(answer.status_code, 200)
        found: List[Any] = answer.json()
        return found


class EventsTest(InspectorCase):
    def test_events_are_those_that_came_the_bad_ones_with_their_problems(self) -> None:
        made = self.inspector()
        self.assertEqual(self.events(made), [])
        good, bad = event(event='Good'), event(event='Bad', messageId=None)
        self.assertEqual(self.post(made, good).status_code, 200)
        self.assertEqual(self.post(made, bad, 'odd').status_code, 400)
        self.assertEqual(
            self.events(made),
            [
                good,
                dict(bad, problems=['messageId must be a string']),
                {'value': 'odd', 'problems': ['an event must be an object']},
            ],
        )
        self.assertEqual(len(self.events(made, '?bad=1')), 2)
        self.assertEqual(self.events(made, '?bad=0'), [good])
        self.assertEqual(self.events(made, '?event=Go*'), [good])
        answer = requests.delete(made.url + '/events', timeout=LIMIT)
        self.assertEqual((answer.status_code, answer.content), (204, b''))
        self.assertEqual(self.events(made), [])
        self.post(made, good)
        self.assertEqual(self.events(made), [good])

    def test_events_of_the_sdk_come_as_they_are(self) -> None:
        made = self.inspector()
        client = self.client(host=made.url)
        sent = [
            client.identify('user', {'a': 1})[1],
            client.track('user', 'event', {'a': 'ü\ud800'})[1],
            client.page('user', 'category', 'name')[1],
        ]
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(self.events(made), sent)

    def test_a_request_without_events_is_shown_with_the_reason(self) -> None:
        made = self.inspector()
        json_type = {'Content-Type': 'application/json'}
        for path, data, headers, reason in (
            ('/v1/batch', b'{', json_type, 'object'),
            ('/v1/batch', b'{"batch": [{}]}', json_type, 'writeKey'),
            ('/v1/batch', b'{"batch": 7, "writeKey": "k"}', json_type, 'list'),
            ('/v1/other', b'{}', json_type, 'path'),
            ('/v1/track', b'{}', {'Content-Type': 'text/plain'}, 'Content-Type'),
            (
                '/v1/batch',
                b'x',
                dict(json_type, **{'Content-Encoding': 'gzip'}),
                'gzip',
            ),
            ('/v1/batch', b'[' * 2000000, json_type, 'bytes'),
        ):
            answer = requests.post(
                made.url + path, data=data, headers=headers, timeout=LIMIT
            )
            self.assertGreaterEqual(answer.status_code, 400)
            (shown,) = self.events(made)
            self.assertIn(reason, shown['problems'][0])
            self.assertNotIn('writeKey', shown)
            made.clear()

    def test_it_keeps_the_last_events_and_counts_all(self) -> None:
        made = self.inspector()
        batch = [event(messageId=str(number)) for number in range(1000)]
        for _ in range(12):
            self.assertEqual(self.post(made, *batch).status_code, 200)
        self.assertEqual(len(self.events(made)), inspector.KEPT_EVENTS)
        self.assertEqual(made.total, 12000)
        self.assertEqual((made.events, len(made.requests)), ([], 1))
        with closing(Stream(made.url)) as stream:
            data = stream.next()
            self.assertEqual(data['counts']['track'], 12000)
            numbers = [each['number'] for each in data['events']]
            self.assertEqual(numbers, list(range(11001, 12001)))

    def test_what_the_other_sdks_send_is_taken(self) -> None:
        """By the documentation: single calls, Basic authentication, gzip, a browser."""
        made = self.inspector()
        body = {'userId': 'user', 'event': 'Clicked', 'properties': {}}
        local = {'Content-Type': 'text/plain', 'Origin': 'http://localhost:3000'}
        packed = {'Content-Encoding': 'gzip', 'Content-Type': 'application/json'}
        keyed = dict(body, writeKey='key')
        for answer in (
            requests.post(made.url + '/v1/track', json=body, auth=('key', '')),
            requests.post(made.url + '/v1/track', json=keyed),
            requests.post(made.url + '/v1/t', json=keyed),
            requests.post(made.url + '/v1/track', json.dumps(keyed), headers=local),
            requests.post(
                made.url + '/v1/track',
                gzip.compress(json.dumps(keyed).encode()),
                headers=packed,
            ),
        ):
            expected = 404 if answer.url.endswith('/t') else 200
            self.assertEqual(answer.status_code, expected, answer.text)
        self.assertEqual(answer.headers.get('Access-Control-Allow-Origin'), None)
        self.assertEqual(len(self.events(made, '?event=Clicked&bad=0')), 4)


class FilterTest(unittest.TestCase):
    def lets(self, made: Any, **patterns: str) -> bool:
        pairs = [(name.replace('__', '.'), text) for name, text in patterns.items()]
        return Filter(pairs).lets(Entry(1, 0.0, made, [], ''))

    def test_all_patterns_have_to_match(self) -> None:
        made = event(event='Order Placed', properties={'total': 9.5, 'a': {'b': True}})
        for patterns in (
            {},
            {'event': 'Order*'},
            {'event': 'Order Placed', 'type': 'track'},
            {'event': '[MO]*Place?'},
            {'user': 'us*'},
            {'userId': 'user'},
            {'properties__total': '9*'},
            {'properties__a__b': 'true'},
            {'bad': '0'},
        ):  # type: Any
            self.assertTrue(self.lets(made, **patterns), patterns)
        for patterns in (
            {'event': 'order*'},
            {'event': 'Order'},
            {'event': 'Order*', 'type': 'page'},
            {'anonymousId': '*'},
            {'properties__total__x': '*'},
            {'missing': '*'},
            {'bad': '1'},
        ):
            self.assertFalse(self.lets(made, **patterns), patterns)
        self.assertTrue(self.lets(event(userId=None, anonymousId='a'), user='a'))
        self.assertTrue(self.lets(event(event='Paid [test]'), event='Paid [test]'))
        self.assertFalse(self.lets('odd', type='*'))
        self.assertTrue(Filter([('bad', '1')]).lets(Entry(1, 0.0, 'odd', ['p'], '')))


class StreamTest(InspectorCase):
    def test_a_page_gets_what_came_before_and_what_comes(self) -> None:
        made = self.inspector()
        self.post(made, event(event='one'))
        with closing(Stream(made.url)) as stream:
            data = stream.wait_for(1)
            self.assertTrue(data['first'])
            (item,) = data['events']
            self.assertEqual(json.loads(item['text'])['event'], 'one')
            self.assertEqual(item['size'], len(item['text']))
            self.assertEqual((item['problems'], item['answer']), ([], ''))
            self.post(made, event(event='two', messageId=7))
            data = stream.wait_for(2)
            self.assertFalse(data['first'])
            (item,) = data['events']
            self.assertEqual(item['problems'], ['messageId must be a string'])
            self.assertEqual(data['counts'], {'track': 2, 'bad': 1})
            self.assertEqual(sum(data['seconds']), 2)
            self.assertEqual(len(data['seconds']), inspector.CHART_SECONDS)

    def test_pages_that_come_at_any_time_have_each_event_once(self) -> None:
        made = self.inspector()

        def send() -> None:
            for _ in range(50):
                self.post(made, event(), event())

        senders = [threading.Thread(target=send) for _ in range(3)]
        for each in senders:
            each.start()
        streams = []
        for _ in range(5):
            streams.append(Stream(made.url))
            self.assertTrue(made.wait_for_requests(1, LIMIT))
        for each in senders:
            each.join(LIMIT)
        for stream in streams:
            stream.wait_for(300)
            self.assertEqual(stream.numbers, list(range(1, 301)))
            stream.close()

    def test_it_hears_that_all_was_forgotten(self) -> None:
        made = self.inspector()
        self.post(made, event())
        with closing(Stream(made.url)) as stream:
            stream.wait_for(1)
            made.clear()
            data = stream.next()
            while not data['first']:
                data = stream.next()
            self.assertEqual((data['events'], data['total']), ([], 0))
            self.post(made, event())
            stream.wait_for(1)
            self.assertEqual(stream.numbers, [2])

    def test_the_end_of_the_collector_ends_it(self) -> None:
        made = self.inspector()
        with closing(Stream(made.url)) as stream:
            stream.next()
            stopping = threading.Thread(target=made.stop)
            stopping.start()
            with self.assertRaises((EOFError, OSError)):
                while True:
                    stream.next()
            stopping.join(LIMIT)
            self.assertFalse(stopping.is_alive())

    @given(
        st.dictionaries(KEYS, NONSENSE) | NONSENSE,
        st.lists(st.text(), max_size=2),
        st.text(),
    )
    def test_any_event_can_be_told(
        self, made: Any, problems: List[str], answer: str
    ) -> None:
        teller = Inspector()
        teller._add(made, problems, answer)
        text, last = teller.message(0)
        self.assertEqual(last, 1)
        self.assertTrue(text.isascii() if hasattr(text, 'isascii') else True)
        self.assertNotIn('\n', text)
        (item,) = json.loads(text)['events']
        self.assertEqual(item['problems'], problems)
        json.dumps(teller.find(Filter([('user', '*')])))


class OriginTest(InspectorCase):
    """What web pages elsewhere may do, in a browser of this machine."""

    def ask(self, made: Inspector, method: str, path: str, *headers: str) -> int:
        """Return the status of the answer to a request with just these headers."""
        lines = ['%s %s HTTP/1.1' % (method, path), *headers, 'Connection: close']
        body = json.dumps({'batch': [event()], 'writeKey': 'key'})
        if method == 'POST':
            lines += [
                'Content-Type: application/json',
                'Content-Length: %d' % len(body),
            ]
        with socket.create_connection(('127.0.0.1', made.port), LIMIT) as connection:
            text = '\r\n'.join(lines) + '\r\n\r\n' + (body if method == 'POST' else '')
            connection.sendall(text.encode())
            return int(connection.recv(1 << 16).split()[1])

    def test_a_host_name_that_is_not_ours_gets_and_gives_nothing(self) -> None:
        made = self.inspector()
        for host in (
            'evil.example',
            'evil.example:%d' % made.port,
            '127.0.0.1.evil.example',
            'localhost.evil.example',
            'evil.example/localhost',
            'localhost@evil.example',
            'xlocalhost',
            '0.0.0.0',
            '127.0.0.2',
            '[::2]',
            '',
        ):
            for method, path in (
                ('GET', '/'),
                ('GET', '/events'),
                ('GET', '/stream'),
                ('POST', '/v1/batch'),
                ('DELETE', '/events'),
                ('OPTIONS', '/v1/batch'),
                ('GET', 'http://localhost/events'),
            ):
                status = self.ask(made, method, path, 'Host: ' + host)
                self.assertEqual(status, 403, (host, method, path))
        twice = ('Host: localhost', 'Host: evil.example')
        self.assertEqual(self.ask(made, 'GET', '/events', *twice), 403)
        self.assertEqual(made.total, 0)

    def test_each_name_of_this_machine_is_ours(self) -> None:
        made = self.inspector()
        for host in ('localhost', '127.0.0.1', '[::1]', 'LOCALHOST', 'shop.localhost'):
            for full in (host, '%s:%d' % (host, made.port)):
                self.assertEqual(self.ask(made, 'GET', '/', 'Host: ' + full), 200)
                self.assertEqual(
                    self.ask(made, 'POST', '/v1/batch', 'Host: ' + full), 200
                )

    def test_a_page_of_another_origin_can_send_and_cannot_read_or_forget(self) -> None:
        made = self.inspector()
        origin = {'Origin': 'https://evil.example'}
        sent = self.post(made, event(), **origin)
        self.assertEqual(sent.headers['Access-Control-Allow-Origin'], '*')
        for path in ('/', '/events'):
            answer = requests.get(made.url + path, headers=origin, timeout=LIMIT)
            self.assertNotIn('Access-Control-Allow-Origin', answer.headers)
            policy = answer.headers['Cross-Origin-Resource-Policy']
            self.assertEqual(policy, 'same-origin')
            self.assertEqual(answer.headers['X-Content-Type-Options'], 'nosniff')
        with closing(Stream(made.url)) as stream:
            headers = dict(stream.response.getheaders())
            self.assertNotIn('Access-Control-Allow-Origin', headers)
        for path in ('/events', '/events?x', '/stream'):
            asked = dict(origin, **{'Access-Control-Request-Method': 'DELETE'})
            answer = requests.options(made.url + path, headers=asked, timeout=LIMIT)
            self.assertEqual(answer.status_code, 403)
        self.assertEqual(made.total, 1)

    def test_a_browser_may_ask_for_a_page_of_another_network(self) -> None:
        made = self.inspector()
        asked = {
            'Origin': 'https://shop.example',
            'Access-Control-Request-Method': 'POST',
            'Access-Control-Request-Private-Network': 'true',
        }
        answer = requests.options(made.url + '/v1/track', headers=asked, timeout=LIMIT)
        self.assertEqual(answer.headers['Access-Control-Allow-Private-Network'], 'true')

    def test_the_page_may_run_its_own_script_and_fetch_from_here_only(self) -> None:
        answer = requests.get(self.inspector().url, timeout=LIMIT)
        self.assertEqual(answer.headers['Content-Type'], 'text/html; charset=utf-8')
        policy = answer.headers['Content-Security-Policy']
        self.assertIn("default-src 'none'", policy)
        for name in ('style', 'script'):
            (text,) = re.findall(
                r'<%s>(.*?)</%s>' % (name, name), answer.text, re.DOTALL
            )
            digest = base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest())
            self.assertIn("%s-src 'sha256-%s'" % (name, digest.decode()), policy)
        self.assertEqual(re.findall(r"""(?:src|href)=["'](?!data:)""", answer.text), [])
        self.assertNotRegex(answer.text, r'https?://|innerHTML|insertAdjacentHTML')


class ForwardTest(InspectorCase):
    def test_a_request_is_passed_on_and_its_sender_gets_the_answer(self) -> None:
        show = Recorder()
        made = self.inspector(forward=self.collector.url + '/', show=show)
        client = self.client(host=made.url, write_key='wk-secret', gzip=True)
        client.track('user', 'event', {'a': 1})
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().delivered, 1)
        (arrived,) = self.collector.events
        self.assertEqual(arrived['properties'], {'a': 1})
        self.assertEqual(self.collector.requests[0].body['writeKey'], 'wk-secret')
        self.assertRegex(self.events(made)[0]['answer'], r'200 in \d+ ms')
        self.assertEqual(show.calls[0][0].answer, self.events(made)[0]['answer'])

    def test_a_refusal_of_the_host_is_shown_and_passed_back(self) -> None:
        made = self.inspector(forward=self.collector.url)
        limited = Fault(429, {'Retry-After': '7'}, b'{"message": "slow down"}')
        self.collector.script(limited, 401)
        answer = self.post(made, event())
        self.assertEqual(
            (answer.status_code, answer.json()['message']), (429, 'slow down')
        )
        self.assertEqual(answer.headers['Retry-After'], '7')
        self.assertEqual(self.post(made, event()).status_code, 401)
        slow, unknown = self.events(made)
        self.assertRegex(slow['answer'], r'429 in \d+ ms: .*slow down')
        self.assertRegex(unknown['answer'], r'401 in \d+ ms')
        self.assertEqual(made.total, 2)

    def test_the_host_decides_about_what_looks_bad_here(self) -> None:
        made = self.inspector(forward=self.collector.url)
        self.collector.strict = False
        self.assertEqual(self.post(made, event(messageId=7)).status_code, 200)
        (shown,) = self.events(made)
        self.assertEqual(shown['problems'], ['messageId must be a string'])
        self.assertIn('200', shown['answer'])

    def test_headers_of_the_answer_may_be_in_lower_case(self) -> None:
        made = self.inspector(forward=self.collector.url)
        self.collector.script(Fault(429, {'retry-after': '7'}))
        self.assertEqual(self.post(made, event()).headers['Retry-After'], '7')

    def test_an_answer_that_is_not_json_is_shown_as_utf_8(self) -> None:
        made = self.inspector(forward=self.collector.url)
        body = '<html><b>Zu viele ü</b>\nSpäter'.encode('utf-8')
        self.collector.script(Fault(503, {'Content-Type': 'text/html'}, body))
        self.assertEqual(self.post(made, event()).content, body)
        self.assertIn('<b>Zu viele ü</b>', self.events(made)[0]['answer'])

    def test_cookies_of_the_host_are_not_kept(self) -> None:
        made = self.inspector(forward=self.collector.url)
        self.collector.script(Fault(200, {'Set-Cookie': 'tenant=one; Path=/'}))
        for _ in range(2):
            self.post(made, event())
        self.assertNotIn('cookie', self.collector.requests[1].headers)

    def test_a_host_that_does_not_answer_does_not_hold_the_end(self) -> None:
        made = self.inspector(forward=self.collector.url)
        self.collector.script('hang')
        with socket.create_connection(('127.0.0.1', made.port), LIMIT) as connection:
            body = json.dumps({'batch': [event()], 'writeKey': 'key'}).encode()
            connection.sendall(
                b'POST /v1/batch HTTP/1.1\r\nHost: localhost\r\n'
                b'Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b'
                % (len(body), body)
            )
            self.assertTrue(self.collector.wait_for_requests(1, LIMIT))
            begun = monotonic()
            made.stop()
            self.assertLess(monotonic() - begun, 6)

    def test_a_host_that_cannot_be_reached_is_a_502(self) -> None:
        with Collector() as gone:
            url = gone.url
        made = self.inspector(forward=url)
        self.assertEqual(self.post(made, event()).status_code, 502)
        self.assertIn('no answer (ConnectionError)', self.events(made)[0]['answer'])

    def test_credentials_are_passed_on_and_shown_to_nobody(self) -> None:
        made = self.inspector(forward=self.collector.url)
        token = {'Authorization': 'Bearer token-secret'}
        self.post(made, event(), **token)
        headers = self.collector.requests[0].headers
        self.assertEqual(headers['authorization'], 'Bearer token-secret')
        self.assertNotIn('secret', json.dumps(self.events(made)))
        with closing(Stream(made.url)) as stream:
            self.assertNotIn('secret', json.dumps(stream.next()))
