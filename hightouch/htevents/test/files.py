"""The command ``send --file``: what is checked, sent, rejected, and resumed after a kill.

``python -m hightouch.htevents.test.files --lines 1000000 --kills 20`` is the long form of the
test with kills; it prints what it measured.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List
from unittest import mock

import requests
from hypothesis import given
from hypothesis import strategies as st

from hightouch.htevents import Client, cli
from hightouch.htevents._process.logs import logger
from hightouch.htevents.cli import files
from hightouch.htevents.collector import Collector, Fault, Received, check_event
from hightouch.htevents.stamps import to_iso
from hightouch.htevents.test.collector import event
from hightouch.htevents.test.support import TestCase

try:
    import fcntl
    import pty
    import termios
except ImportError:  # Windows
    pty = None  # type: ignore[assignment]

FOLDER = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
)


class FileCase(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        kept = {k: v for k, v in os.environ.items() if not k.startswith('HTEVENTS_')}
        patch = mock.patch.dict(os.environ, kept, clear=True)
        patch.start()
        self.addCleanup(patch.stop)
        # The command silences the log of its process.
        self.addCleanup(logger.setLevel, logger.level)

    def path(self, name: str) -> str:
        return os.path.join(self.folder.name, name)

    def write(self, *lines: Any, name: str = 'events.jsonl') -> str:
        with open(self.path(name), 'w', encoding='utf-8', newline='') as file:
            for line in lines:
                file.write(line if isinstance(line, str) else json.dumps(line))
                file.write('\n')
        return self.path(name)

    def send(self, *args: str) -> int:
        """Run the command in this process; what it prints is in ``out`` and ``errors``."""
        server = ('--write-key', 'wk-secret', '--host', self.collector.url)
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = cli.main(['send', *server, *args])
        self.out, self.errors = out.getvalue(), errors.getvalue()
        return status

    def rejects(self, path: str = '') -> List[Dict[str, Any]]:
        path = path or self.path('events.jsonl.rejects')
        with open(path, encoding='utf-8') as file:
            return [json.loads(line) for line in file]


class SendTest(FileCase):
    def test_lines_that_collect_wrote_arrive_as_they_were(self) -> None:
        out = self.path('events.jsonl')
        with open(out, 'w', encoding='utf-8') as file:
            with Collector(out=file) as collector:
                with Client('key', host=collector.url) as client:
                    client.track('user', 'Ünique', {'a': [1, None, 'x\ud800']})
                    client.identify('user', {'a': 1})
                    client.alias('before', 'user')
                    client.group('user', 'group')
                    client.page('user', 'category', 'name')
                    client.screen(anonymous_id='visitor')
                before = collector.events
        self.assertEqual(self.send('--file', out), 0, self.errors)
        self.assertEqual(self.collector.events, before)
        self.assertIn('Delivered 6 line(s).', self.out)
        self.assertEqual(self.collector.requests[0].body['writeKey'], 'wk-secret')
        self.assertFalse(os.path.exists(out + '.rejects'))

    def test_single_calls_of_other_senders_that_collect_wrote_can_be_sent(self) -> None:
        out = self.path('events.jsonl')
        with open(out, 'w', encoding='utf-8') as file:
            with Collector(out=file) as collector:
                body = {'userId': 'u', 'event': 'A', 'sentAt': '2026-01-02T03:04:05Z'}
                url = collector.url + '/v1/track'
                answer = requests.post(url, json=body, auth=('key', ''))
                self.assertEqual(answer.status_code, 200)
        self.assertEqual(self.send('--file', out), 0, self.errors)
        self.assertEqual(self.collector.events[0]['event'], 'A')

    def test_arguments_become_the_events_of_the_calls(self) -> None:
        moment = datetime.now(timezone.utc) - timedelta(days=1)
        path = self.write(
            {'type': 'track', 'user_id': 7, 'event': 'A', 'properties': {'a': 1}},
            {'type': 'track', 'userId': 'u', 'event': 'B', 'timestamp': to_iso(moment)},
            '',
            {'type': 'identify', 'anonymousId': 'v', 'traits': {'a': 1}},
            {'type': 'group', 'user_id': 'u', 'group_id': 9, 'message_id': 'mine'},
            {'type': 'alias', 'previousId': 'v', 'user_id': 'u'},
            {'type': 'page', 'user_id': 'u', 'context': {'ip': '192.0.2.1'}},
        )
        self.assertEqual(self.send('--file', path), 0, self.errors)
        events = self.collector.events
        self.assertEqual([check_event(each) for each in events], [[]] * 6)
        self.assertEqual(events[0]['userId'], '7')
        self.assertEqual(events[1]['timestamp'], to_iso(moment))
        self.assertEqual(events[3]['messageId'], 'mine')
        self.assertEqual(events[5]['context']['ip'], '192.0.2.1')

    def test_a_repeat_sends_the_same_ids(self) -> None:
        line = {'type': 'track', 'user_id': 'u', 'event': 'A'}
        path = self.write(line, line, {'type': 'page', 'user_id': 'u'})
        for _ in range(2):
            self.assertEqual(self.send('--file', path), 0)
        ids = [each['messageId'] for each in self.collector.events]
        self.assertEqual(ids[:3], ids[3:])
        self.assertEqual(len(set(ids)), 3)
        other = self.write(line, name='other.jsonl')
        self.assertEqual(self.send('--file', other), 0)
        self.assertNotIn(self.collector.events[-1]['messageId'], ids)

    def test_options_are_for_the_lines_that_lack_them(self) -> None:
        path = self.write(
            {'user_id': 'u'},
            {'user_id': 'u', 'event': 'Other'},
            {'user_id': 'u', 'type': 'page'},
        )
        options = ('track', '--event', 'Given', '--properties', '{"a": 1}')
        self.assertEqual(self.send(*options, '--file', path), 0, self.errors)
        one, two, three = self.collector.events
        self.assertEqual((one['event'], one['properties']), ('Given', {'a': 1}))
        self.assertEqual(two['event'], 'Other')
        self.assertEqual((three['type'], three['properties']), ('page', {'a': 1}))

    def test_it_reads_stdin(self) -> None:
        line = json.dumps({'type': 'page', 'user_id': 'u'}) + '\n'
        stdin = mock.Mock(buffer=io.BytesIO(line.encode() * 3))
        with mock.patch.object(sys, 'stdin', stdin):
            self.assertEqual(self.send('--file', '-'), 0)
        self.assertEqual(len(self.collector.events), 3)

    def test_a_rate_is_not_exceeded(self) -> None:
        path = self.write(*[{'type': 'page', 'user_id': 'u'}] * 30)
        begun = time.monotonic()
        self.assertEqual(self.send('--file', path, '--rate', '100'), 0)
        self.assertGreaterEqual(time.monotonic() - begun, 0.28)
        self.assertEqual(len(self.collector.events), 30)

    def test_a_rate_that_is_none_is_refused(self) -> None:
        path = self.write(event())
        for rate in ('0', '-5', 'x', 'nan', 'inf'):
            with self.assertRaises(SystemExit):
                self.send('--file', path, '--rate=' + rate)

    def test_one_id_is_not_given_to_all_lines(self) -> None:
        path = self.write({'type': 'page', 'user_id': 'u'})
        for option in ('--message-id', '--idempotency-key'):
            self.assertEqual(self.send('--file', path, option, 'mine'), 2)
            self.assertIn(option + ' is for one event', self.errors)

    def test_an_idempotency_key_makes_the_id_that_the_call_makes(self) -> None:
        line = {'type': 'track', 'user_id': 'u', 'event': 'A'}
        path = self.write(
            dict(line, idempotency_key=['order', 7]),
            dict(line, idempotency_key=None),
            dict(line, idempotency_key={'a': 1}),
        )
        self.assertEqual(self.send('--file', path), 1)
        with Client('wk-secret', send=False) as client:
            _, message = client.track('u', 'A', idempotency_key=('order', 7))
        one, _ = self.collector.events
        self.assertEqual(one['messageId'], message['messageId'])
        self.assertIn('idempotency_key', self.rejects()[0]['reason'])

    def test_large_events_are_sent_within_the_limit_of_a_request(self) -> None:
        large = {'type': 'track', 'user_id': 'u', 'event': 'e'}
        path = self.write(*[dict(large, properties={'a': 'a' * 30000})] * 50)
        self.assertEqual(self.send('--file', path), 0, self.errors)
        self.assertEqual(len(self.collector.events), 50)
        self.assertEqual({each.status for each in self.collector.requests}, {200})

    def test_faults_are_retried_until_all_is_there(self) -> None:
        path = self.write(*[event(messageId=str(number)) for number in range(500)])
        self.collector.script(503, 'reset', 429, 'reset-before', 500, 502)
        self.assertEqual(self.send('--file', path), 0, self.errors)
        ids = [each['messageId'] for each in self.collector.events]
        self.assertEqual(ids, [str(number) for number in range(500)])


class RejectTest(FileCase):
    def test_bad_lines_are_rejected_with_number_and_reason_and_the_rest_is_sent(
        self,
    ) -> None:
        old = to_iso(datetime.now(timezone.utc) - timedelta(days=8))
        good = {'type': 'page', 'user_id': 'u'}
        bad = [
            ('nonsense', 'expected JSON'),
            ('[1]', 'expected a JSON object, got list'),
            ('"\ud800"'.encode('utf-8', 'surrogatepass'), 'utf-8'),
            (
                '{"type":"track","user_id":"u","event":"e","properties":{"a":NaN}}',
                'NaN',
            ),
            ('{"type":"page","user_id":"u","properties":{"a":1e999}}', 'too large'),
            ('[' * 100000, 'too deep|JSON'),
            ({'user_id': 'u'}, 'type: expected one of track'),
            ({'type': 'click', 'user_id': 'u'}, "got 'click'"),
            ({'type': ['track']}, 'type: expected'),
            ({'type': 'track', 'event': 'e'}, 'user_id'),
            ({'type': 'track', 'user_id': 'u'}, 'event: expected'),
            ({'type': 'page', 'user_id': 'u', 'event': 'e'}, 'page has no event'),
            ({'type': 'page', 'user_id': 'u', 'propertis': {}}, 'did you mean prop'),
            ({'type': 'page', 'user_id': 'u', 'properties': 7}, 'properties: expected'),
            ({'type': 'page', 'user_id': 'u', 'timestamp': 'now'}, 'timestamp'),
            ({'type': 'page', 'user_id': 'u', 'timestamp': old}, '7 days'),
            ({'type': 'page', 'user_id': 'u', 'name': 'x' * 40000}, '32'),
            (event(timestamp=old), '7 days'),
            (event(messageId=7), 'messageId must be a string'),
            (event(properties={'a': 'x' * 40000}), '32768'),
        ]  # type: List[Any]
        with open(self.path('events.jsonl'), 'wb') as file:
            for line, _ in bad:
                text = line if isinstance(line, (str, bytes)) else json.dumps(line)
                file.write(text if isinstance(text, bytes) else text.encode())
                file.write(b'\n' + json.dumps(good).encode() + b'\n')
        self.assertEqual(self.send('--file', self.path('events.jsonl')), 1)
        self.assertEqual(len(self.collector.events), len(bad))
        rejects = self.rejects()
        self.assertEqual([each['line'] for each in rejects], list(range(1, 41, 2)))
        for (line, reason), each in zip(bad, rejects):
            self.assertRegex(each['reason'], reason, line)
            if isinstance(line, str):
                self.assertEqual(each['text'], line)
        self.assertIn('20 line(s) cannot be sent, see ', self.errors)
        self.assertIn('2 of them for their age: over 7 days, a rule of', self.errors)

    def test_nothing_is_sent_before_all_is_checked_and_a_dry_run_only_checks(
        self
    ) -> None:
        lines = [event(messageId=str(number)) for number in range(300)]
        path = self.write(*lines, 'nonsense')
        self.assertEqual(self.send('--file', path, '--dry-run'), 1)
        self.assertEqual(self.collector.connections, 0)
        self.assertIn('300 line(s) can be sent.', self.out)
        self.assertEqual([each['line'] for each in self.rejects()], [301])
        seen = []

        def look(received: Received) -> int:
            seen.append(self.rejects())
            return 200

        os.unlink(self.path('events.jsonl.rejects'))
        self.collector.script(look)
        self.assertEqual(self.send('--file', path), 1)
        self.assertEqual([each['line'] for each in seen[0]], [301])

    def test_what_the_collector_refuses_is_rejected_with_its_reason(self) -> None:
        def look(received: Received) -> Any:
            names = [each['event'] for each in received.body['batch']]
            body = b'{"code": "invalid", "message": "no such event"}'
            return Fault(400, {}, body) if 'unwanted' in names else 200

        lines = [event(messageId=str(number)) for number in range(250)]
        lines[130]['event'] = lines[131]['event'] = 'unwanted'
        self.collector.script(*[look] * 100)
        path = self.write('bad', *lines)
        self.assertEqual(self.send('--file', path), 1)
        self.assertIn('Delivered 248 line(s).', self.out)
        ids = [int(each['messageId']) for each in self.collector.events]
        self.assertEqual(ids, [each for each in range(250) if each not in (130, 131)])
        self.assertEqual([each['line'] for each in self.rejects()], [1, 132, 133])
        self.assertIn('1 line(s) cannot be sent, see %s.rejects' % path, self.errors)
        self.assertIn('2 line(s) were refused by the server, see ', self.errors)
        self.assertIn('no such event', self.rejects()[1]['reason'])

    def test_a_refusal_of_the_sender_stops_it_and_rejects_nothing(self) -> None:
        path = self.write(*[event(messageId=str(number)) for number in range(250)])
        self.collector.script(200, 401)
        self.assertEqual(self.send('--file', path), 1)
        self.assertRegex(self.errors, 'Stopped after line 100: .*401')
        self.assertNotIn('wk-secret', self.errors + self.out)
        self.assertEqual(len(self.collector.events), 100)
        self.assertFalse(os.path.exists(path + '.rejects'))

    def test_a_file_that_is_not_ours_is_never_overwritten(self) -> None:
        path = self.write({'type': 'page', 'user_id': 'u'}, 'bad')
        for option in ('--rejects', '--checkpoint'):
            mine = self.write('my notes', name='notes')
            self.assertEqual(self.send('--file', path, option, mine), 2)
            self.assertIn('got another file', self.errors)
            with open(mine) as file:
                self.assertEqual(file.read(), 'my notes\n')
        self.assertEqual(self.collector.connections, 0)

    @unittest.skipUnless(hasattr(os, 'mkfifo'), 'needs named pipes')
    def test_a_device_takes_rejected_lines_and_stays_what_it_is(self) -> None:
        path = self.write({'type': 'page', 'user_id': 'u'}, 'bad')
        device = self.path('device')
        os.mkfifo(device)
        reader = os.open(device, os.O_RDWR | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        self.assertEqual(self.send('--file', path, '--rejects', device), 1)
        self.assertIn(b'expected JSON', os.read(reader, 1000))
        self.assertTrue(stat.S_ISFIFO(os.stat(device).st_mode))

    def test_nothing_is_sent_if_a_file_beside_it_cannot_be_written(self) -> None:
        path = self.write({'type': 'page', 'user_id': 'u'})
        for option in ('--rejects', '--checkpoint'):
            for place in (self.path('missing/notes'), self.folder.name):
                self.assertEqual(self.send('--file', path, option, place), 2)
                self.assertIn(option + ': expected a file in a folder', self.errors)
        one = self.path('one')
        options = ('--checkpoint', one, '--rejects', one)
        self.assertEqual(self.send('--file', path, *options), 2)
        self.assertIn('expected two files', self.errors)
        self.assertEqual(self.collector.connections, 0)

    @given(st.binary(max_size=200))
    def test_any_bytes_are_sent_or_rejected(self, data: bytes) -> None:
        lines = list(files.json_lines(io.BytesIO(data)))
        settings = dict(cli._defaults(), write_key='key')
        maker = files.Maker(settings, 'name', {})
        for line in lines:
            with self.assertRaises(files.Bad):
                maker.check(line)


class CsvTest(FileCase):
    def csv(self, text: str) -> str:
        path = self.path('events.jsonl')
        with open(path, 'w', encoding='utf-8', newline='') as file:
            file.write(text)
        return path

    def test_columns_are_mapped_to_fields(self) -> None:
        path = self.csv(
            '\ufeffid,mail,sum,vip,tags,other\r\n'
            '7,a@example.com,9.5,yes,"[1, ""x""]",x\r\n'
            '8,"two\nlines, and ""quotes""",-3,false,,\r\n'
        )
        maps = [
            'id=user_id',
            'mail=properties.mail',
            'sum=properties.order.sum:number',
            'vip=properties.order.vip:bool',
            'tags=properties.tags:json',
        ]
        options = [text for each in maps for text in ('--map', each)]
        status = self.send('track', '--event', 'Bought', '--file', path, *options)
        self.assertEqual(status, 0, self.errors)
        one, two = self.collector.events
        self.assertEqual(
            (one['userId'], one['event'], one['properties']),
            (
                '7',
                'Bought',
                {
                    'mail': 'a@example.com',
                    'order': {'sum': 9.5, 'vip': True},
                    'tags': [1, 'x'],
                },
            ),
        )
        self.assertEqual(two['properties']['order'], {'sum': -3, 'vip': False})
        self.assertEqual(two['properties']['mail'], 'two\nlines, and "quotes"')

    def test_without_a_map_a_column_is_the_field_of_its_name(self) -> None:
        path = self.write(
            'type,userId,event,properties.total',
            'track,u,A,1',
            'page,v,,2',
            name='events.csv',
        )
        self.assertEqual(self.send('--file', path), 0, self.errors)
        one, two = self.collector.events
        self.assertEqual((one['userId'], one['properties']), ('u', {'total': '1'}))
        self.assertEqual((two['type'], two['properties']), ('page', {'total': '2'}))

    def test_bad_rows_are_rejected_with_their_line(self) -> None:
        path = self.csv('id,sum\nu,1\nu\nu,x\n,2\nu,3\n')
        maps = ('--map', 'id=user_id', '--map', 'sum=properties.sum:number')
        self.assertEqual(self.send('page', '--file', path, *maps), 1)
        self.assertEqual(len(self.collector.events), 2)
        self.assertEqual(
            [(each['line'], each['reason'][:22]) for each in self.rejects()],
            [
                (3, 'expected 2 cells, got '),
                (4, 'sum: expected a number'),
                (5, 'user_id or anonymous_i'),
            ],
        )

    def test_only_what_is_written_as_a_number_is_one(self) -> None:
        good = {
            '9.5': 9.5,
            '007': 7,
            '-3': -3,
            '+5': 5,
            ' 7 ': 7,
            '1e5': 1e5,
            '.5': 0.5,
        }
        bad = ['1_000', '1 000', 'nan', 'inf', '-Infinity', '1e999', '-', '0x1', '١']
        texts = [*good, *bad]
        path = self.csv('n\n%s\n' % '\n'.join(texts))
        maps = ('--map', 'n=properties.n:number')
        status = self.send('page', '--user-id', 'u', '--file', path, *maps)
        self.assertEqual(status, 1)
        found = [each['properties']['n'] for each in self.collector.events]
        self.assertEqual(
            [(type(each), each) for each in found],
            [(type(each), each) for each in good.values()],
        )
        self.assertEqual([each['text'] for each in self.rejects()], bad)

    def test_a_quote_that_is_not_closed_is_rejected_with_its_first_line(self) -> None:
        path = self.csv('id,mail\nu,x\nv,"open\nw,y\n')
        self.assertEqual(self.send('page', '--file', path, '--map', 'id=user_id'), 1)
        self.assertEqual([each['userId'] for each in self.collector.events], ['u'])
        self.assertRegex(self.rejects()[0]['reason'], 'expected CSV.* in line 3')
        path = self.csv('"id,mail\nu,x\n')
        self.assertEqual(self.send('page', '--file', path, '--map', 'id=user_id'), 2)
        self.assertIn('expected a header', self.errors)

    def test_json_that_is_nested_too_deep_is_rejected(self) -> None:
        path = self.csv('id,a\nu,%s\n' % ('[' * 100000))
        maps = ('--map', 'id=user_id', '--map', 'a=properties.a:json')
        self.assertEqual(self.send('page', '--file', path, *maps), 1)
        self.assertIn('expected a json', self.rejects()[0]['reason'])

    def test_two_columns_for_a_field_are_refused(self) -> None:
        path = self.csv('id,a,b\nu,1,2\n')
        for one, two in (
            ('a=properties.x', 'b=properties.x'),
            ('a=properties.x', 'b=properties.x.y'),
            ('a=properties.x.y', 'b=properties.x'),
            ('a=properties:json', 'b=properties.x'),
            ('a=user_id', 'b=userId'),
        ):
            maps = ('--map', one, '--map', two)
            self.assertEqual(self.send('page', '--file', path, *maps), 2)
            self.assertIn('expected one column for a field, got ', self.errors)
        self.assertEqual(self.collector.connections, 0)

    def test_a_wrong_map_says_what_is_wrong(self) -> None:
        path = self.csv('mail,sum\nu,1\n')
        for option, text in (
            ('mail', 'expected COLUMN=PATH'),
            ('mail=', 'expected COLUMN=PATH'),
            ('mail=user_id:date', 'expected COLUMN=PATH'),
            (
                'mial=user_id',
                'there is no column mial (did you mean mail?); the first line is mail,sum',
            ),
            ('mail=usr_id', 'did you mean user_id'),
            ('mail=user_id.x', 'expected a field'),
            ('mail=properties..x', 'expected a field'),
        ):
            self.assertEqual(self.send('page', '--file', path, '--map', option), 2)
            self.assertIn(text, self.errors)
        path = self.csv('mail,mail\nu,1\n')
        self.assertEqual(self.send('page', '--file', path, '--map', 'mail=user_id'), 2)
        self.assertIn('the column mail is there twice', self.errors)


WRONG_LINE = '{"line": null, "delivered": 1, "checksum": 1, "purpose": ""}'


class CheckpointTest(FileCase):
    def run_to(self, count: int, path: str, *options: str) -> None:
        """Stop a run when so many batches were delivered."""
        self.collector.script(*[200] * count, 401)
        checkpoint = ('--checkpoint', self.path('checkpoint'))
        self.assertEqual(self.send('--file', path, *checkpoint, *options), 1)

    def go_on(self, path: str, *options: str) -> int:
        checkpoint = ('--checkpoint', self.path('checkpoint'))
        return self.send('--file', path, *checkpoint, *options)

    def test_a_run_goes_on_where_the_last_one_stopped(self) -> None:
        lines = [event(messageId=str(number)) for number in range(450)]
        path = self.write(*lines[:50], 'bad', *lines[50:], 'worse')
        self.run_to(2, path)
        self.assertIn('Stopped after line 201', self.errors)
        self.assertEqual(self.go_on(path), 1)
        self.assertIn('Delivered 450 line(s).', self.out)
        ids = [each['messageId'] for each in self.collector.events]
        self.assertEqual(ids, [str(number) for number in range(450)])
        self.assertEqual([each['line'] for each in self.rejects()], [51, 452])
        requests = len(self.collector.requests)
        self.assertEqual(self.go_on(path), 1)  # the rejected lines are still there
        self.assertEqual(len(self.collector.requests), requests)
        self.assertIn('No line is left to send.', self.out)

    def test_lines_that_were_appended_are_sent_by_the_next_run(self) -> None:
        lines = [event(messageId=str(number)) for number in range(3)]
        self.assertEqual(self.go_on(self.write(*lines[:2])), 0)
        self.assertEqual(self.go_on(self.write(*lines)), 0)
        self.assertEqual(len(self.collector.events), 3)

    def test_a_checkpoint_of_another_file_host_or_key_is_refused(self) -> None:
        path = self.write(event(messageId='1'))
        self.assertEqual(self.go_on(path), 0)
        other = self.write(event(messageId='2'), name='other.jsonl')
        self.assertEqual(self.go_on(other), 2)
        self.assertIn('another file, host or write key', self.errors)
        self.assertEqual(self.go_on(path, '--write-key', 'other'), 2)
        self.assertEqual(self.go_on(path, '--host', 'http://127.0.0.1:9'), 2)
        with open(self.path('checkpoint')) as file:
            self.assertNotIn('wk-secret', file.read())

    def test_lines_that_changed_after_they_were_sent_are_told_and_nothing_is_sent(
        self
    ) -> None:
        lines = [event(messageId=str(number)) for number in range(300)]
        path = self.write(*lines)
        self.run_to(2, path)
        other = [event(messageId='x%d' % number) for number in range(300)]
        for changed in (lines[:1] + other[1:], lines[:199] + other[199:], lines[:100]):
            self.assertEqual(self.go_on(self.write(*changed)), 2)
            self.assertIn('the file has changed up to line 200', self.errors)
        self.assertEqual(len(self.collector.events), 200)
        self.assertEqual(self.go_on(self.write(*lines[:200], *other[200:])), 0)
        self.assertEqual(len(self.collector.events), 300)

    def test_a_checkpoint_of_a_file_of_another_name_is_refused(self) -> None:
        path = self.write(event(messageId='1'))
        self.assertEqual(self.go_on(path), 0)
        os.rename(path, self.path('renamed.jsonl'))
        self.assertEqual(self.go_on(self.path('renamed.jsonl')), 2)

    def test_a_damaged_checkpoint_is_refused(self) -> None:
        path = self.write(event(messageId='1'))
        for text in ('', '{"line": 1, "deliv', '[' * 100000, '{}', '[1]', WRONG_LINE):
            self.write(text, name='checkpoint')
            self.assertEqual(self.go_on(path), 2)
            self.assertIn('expected a checkpoint', self.errors)

    def test_rows_of_a_csv_file_go_on_as_well(self) -> None:
        rows = ['"%d\n"' % number for number in range(250)]
        path = self.write('user_id', *rows, name='events.csv')
        self.run_to(1, path, 'page')
        self.assertEqual(self.go_on(path, 'page'), 0, self.errors)
        users = [each['userId'] for each in self.collector.events]
        self.assertEqual(users, ['%d\n' % number for number in range(250)])

    def test_an_interrupt_stops_and_the_next_run_goes_on(self) -> None:
        path = self.write(*[event(messageId=str(number)) for number in range(250)])

        def interrupt(received: Received) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return 503

        self.collector.script(200, interrupt)
        self.assertEqual(self.go_on(path), 1)
        self.assertIn('Stopped after line 100: interrupted', self.errors)
        self.assertEqual(self.go_on(path), 0)
        self.assertEqual(len(self.collector.events), 250)

    def test_time_that_runs_out_stops_it(self) -> None:
        path = self.write(event())
        self.collector.script(*[503] * 1000)
        self.assertEqual(self.go_on(path, '--timeout', '0.2'), 1)
        self.assertIn('Stopped after line 0', self.errors)

    def test_kills_lose_nothing_and_repeat_a_batch_at_most(self) -> None:
        found = killed(lines=6000, kills=5, folder=self.folder.name)
        self.assertEqual(found.missing, 0)
        self.assertEqual(found.unknown, 0)
        self.assertLessEqual(found.twice, found.kills * files.BATCH_EVENTS)
        self.assertGreater(found.kills, 0)


class ProgressTest(unittest.TestCase):
    def test_it_tells_what_is_done_the_rate_the_rest_and_what_is_refused(self) -> None:
        progress = files.Progress('Sending', 2000)
        progress.done, progress.refused, progress.note = 500, 3, 'HTTP 503'
        text = progress.text(10.0)
        bar = '[######..................] 25% 500 50/s 0:30 left 3 refused HTTP 503'
        self.assertEqual(text, 'Sending ' + bar)
        self.assertEqual(files.Progress('Checking').text(0), 'Checking 0 0/s ')

    def test_a_narrow_terminal_shows_it_in_one_row_and_no_bar(self) -> None:
        progress = files.Progress('Sending', 2000)
        progress.done, progress.refused, progress.note = 500, 3, 'HTTP 503'
        text = progress.text(10.0, 49)
        self.assertEqual(text, 'Sending 25% 500 50/s 0:30 left 3 refused HTTP 503')
        self.assertEqual(progress.text(10.0, 19), 'Sending 25% 500 50/')

    @unittest.skipUnless(pty, 'needs a terminal')
    def test_no_row_is_longer_than_the_terminal(self) -> None:
        terminal, end = pty.openpty()
        self.addCleanup(os.close, terminal)
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 30, 0, 0))
        with os.fdopen(end, 'w') as file, contextlib.redirect_stderr(file):
            with files.Progress('Sending', 2000) as progress:
                progress._draw(progress.text(1.0, files._columns() - 1))
            shown = os.read(terminal, 1000).decode()
        self.assertEqual({len(row) for row in shown.split('\r') if row}, {29})


# -- kills, in both forms ------------------------------------------------------------


class Counting(Collector):
    """Answers 503 to a part of the requests, and counts ids."""

    def __init__(self, share: float) -> None:
        super().__init__(keep=0)
        self.ids: 'Counter[str]' = Counter()
        self._share = share
        self._choice = random.Random(7)

    def _next_step(self, path: str) -> Any:
        with self._arrival:
            return 503 if self._choice.random() < self._share else 200

    def _check(self, received: Received, type_: str) -> List[Any]:
        with self._arrival:
            self.ids.update(each['messageId'] for each in received.body['batch'])
        return []


class Found:
    def __init__(self, ids: 'Counter[str]', lines: int, kills: int) -> None:
        wanted = set(map(str, range(lines)))
        self.missing = len(wanted - set(ids))
        self.unknown = len(set(ids) - wanted)
        self.twice = sum(ids.values()) - len(ids)
        self.kills = kills
        self.seconds = 0.0
        self.peak_kb = 0


# The command; its retries wait as short as they may.
_COMMAND = """
import sys
from hightouch.htevents import cli
from hightouch.htevents._queue import retry
retry.BASE = 0
sys.exit(cli.main(sys.argv[1:]))
"""


def write_lines(path: str, count: int) -> None:
    made = event(properties={'total': 12.5, 'items': ['book', 'pen'], 'number': 0})
    made['context'] = {'library': {'name': 'a', 'version': 'b'}, 'ip': '192.0.2.1'}
    with open(path, 'w', encoding='utf-8') as file:
        for number in range(count):
            made['messageId'] = str(number)
            made['properties']['number'] = number
            file.write(json.dumps(made, separators=(',', ':')) + '\n')


def killed(lines: int, kills: int, folder: str, share: float = 0.3) -> Found:
    """Send a file; kill the command at random moments, and run it again, until it is done."""
    path = os.path.join(folder, 'lines.jsonl')
    write_lines(path, lines)
    choice = random.Random(3)
    done = 0
    begun = time.monotonic()
    peak = 0
    with Counting(share) as collector:
        moments = sorted(choice.randrange(lines) for _ in range(kills))
        while True:
            process = subprocess.Popen(
                [sys.executable, '-c', _COMMAND, 'send', '--file', path]
                + ['--host', collector.url, '--write-key', 'key']
                + ['--checkpoint', os.path.join(folder, 'lines.checkpoint')],
                cwd=FOLDER,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            while process.poll() is None:
                if moments and len(collector.ids) > moments[0]:
                    time.sleep(choice.random() * 0.02)
                    process.kill()
                    moments.pop(0)
                    done += 1
                    break
                peak = max(peak, peak_kb(process.pid))
                time.sleep(0.002)
            _, errors = process.communicate()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, errors.decode()
        found = Found(collector.ids, lines, done)
    found.seconds, found.peak_kb = time.monotonic() - begun, peak
    return found


def peak_kb(pid: int) -> int:
    try:
        with open('/proc/%d/status' % pid) as file:
            for line in file:
                if line.startswith('VmHWM'):
                    return int(line.split()[1])
    except OSError:
        pass  # it has ended, or there is no /proc
    return 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--lines', type=int, default=1000000)
    parser.add_argument('--kills', type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = killed(args.lines, args.kills, folder)
    print(
        '%d lines, %d kills: missing %d, unknown %d, twice %d; %.0f s, peak %d KB'
        % (
            *(args.lines, found.kills, found.missing, found.unknown, found.twice),
            *(found.seconds, found.peak_kb),
        )
    )


if __name__ == '__main__':
    main()
