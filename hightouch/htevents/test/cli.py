import contextlib
import glob
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
from typing import Any, Tuple
from unittest import mock

import requests

from hightouch.htevents import cli, settings
from hightouch.htevents._process.waiting import Deadline
from hightouch.htevents._spool import store
from hightouch.htevents.collector import Collector, Fault, check_event
from hightouch.htevents.test.collector import event
from hightouch.htevents.test.support import LIMIT, TestCase, run_program
from hightouch.htevents.version import VERSION

try:
    import fcntl
    import pty
    import termios
except ImportError:  # Windows
    pty = fcntl = None  # type: ignore[assignment]

ALL = ('track', 'identify', 'group', 'alias', 'page', 'screen')


class CommandTest(TestCase):
    def environment(self, **variables: str) -> Any:
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = dict(os.environ, PYTHONPATH=paths, **variables)
        if not variables:
            environment.pop(settings.ENV_WRITE_KEY, None)
            environment.pop(settings.ENV_HOST, None)
        return environment

    def run_command(self, *args: str, **variables: str) -> Any:
        return subprocess.run(
            [sys.executable, '-m', 'hightouch.htevents'] + list(args),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=LIMIT,
            env=self.environment(**variables),
        )

    def send(self, *args: str) -> Any:
        return self.run_command(
            'send', *(args + ('--write-key', 'wk-secret', '--host', self.collector.url))
        )

    def test_the_version_is_printed(self) -> None:
        result = self.run_command('--version')
        self.assertEqual(result.stdout, 'events-sdk-python %s\n' % VERSION)
        self.assertEqual((result.returncode, result.stderr), (0, ''))

    def test_help_names_the_command_as_it_is_typed(self) -> None:
        for args in (('--help',), ('send', '--help')):
            result = self.run_command(*args)
            self.assertIn('usage: python -m hightouch.htevents', result.stdout)

    def test_send_delivers_one_event_of_each_type(self) -> None:
        more = {
            'track': ['--event', 'Order', '--properties', '{"total": 1.5}'],
            'identify': ['--traits', '{"plan": "pro"}'],
            'group': ['--group-id', 'acme'],
            'alias': ['--previous-id', 'before'],
            'page': ['--name', 'Home', '--category', 'Docs'],
            'screen': ['--context', '{"ip": "::1"}'],
        }
        for type_ in ALL:
            result = self.send(type_, '--user-id', 'user', *more[type_])
            self.assertEqual((result.returncode, result.stderr), (0, ''))
        self.assertEqual([each['type'] for each in self.collector.events], list(ALL))
        self.assertEqual(self.collector.events[0]['properties'], {'total': 1.5})

    def test_send_takes_its_defaults_from_the_environment(self) -> None:
        variables = {
            settings.ENV_WRITE_KEY: 'key-of-environment',
            settings.ENV_HOST: self.collector.url,
            # These are about applications:
            settings.ENV_SEND: '0',
            'HTEVENTS_SYNC_MODE': '1',
            'HTEVENTS_SPOOL_DIR': '/nonexistent',
        }
        result = self.run_command('send', 'page', '--user-id', 'u', **variables)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(
            self.collector.requests[0].body['writeKey'], 'key-of-environment'
        )

    def test_send_says_when_it_was_not_delivered(self) -> None:
        self.collector.script(401)
        result = self.send('page', '--user-id', 'user')
        self.assertEqual(result.returncode, 1)
        self.assertIn('401', result.stderr)
        self.collector.stop()
        result = self.send('page', '--user-id', 'user', '--timeout', '0.2')
        self.assertEqual(result.returncode, 1)
        self.assertNotIn('wk-secret', result.stderr + result.stdout)
        self.assertNotIn('Traceback', result.stderr)

    def test_wrong_arguments_are_told_and_exit_with_2(self) -> None:
        for args in (
            ('track', '--user-id', 'u'),
            ('page',),
            ('page', '--user-id', 'u', '--event', 'e'),
            ('page', '--user-id', 'u', '--properties', '{'),
            ('page', '--user-id', 'u', '--properties', '[1]'),
            ('page', '--user-id', 'u', '--timeout', 'nan'),
            ('other',),
        ):
            result = self.send(*args)
            self.assertEqual(result.returncode, 2, args)
            self.assertTrue(result.stderr)
            self.assertNotIn('Traceback', result.stderr)

    def test_demo_needs_no_proxy(self) -> None:
        dead = dict.fromkeys(
            ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY'), 'http://127.0.0.1:9'
        )
        with mock.patch.dict(os.environ, dict(dead, NO_PROXY='', no_proxy='')):
            result = self.run_command('demo', '--events', '50')
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_demo_loses_nothing(self) -> None:
        result = self.run_command('demo', '--events', '500')
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        self.assertIn('Nothing was lost.', result.stdout)
        self.assertRegex(result.stdout, r'retries +1\n')

    def test_collect_prints_a_line_for_each_event_and_ends_on_a_signal(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with tempfile.TemporaryDirectory() as folder:
                out = os.path.join(folder, 'events.jsonl')
                self.collect(number, out)
                with open(out, encoding='utf-8') as file:
                    events = [json.loads(line) for line in file]
                self.assertEqual([each['event'] for each in events], ['Good'])

    def collect(self, number: int, out: str) -> None:
        def post(url: str) -> None:
            for each in (event(event='Good'), event(event='Worse', messageId=7)):
                body = {'batch': [each], 'writeKey': 'key'}
                requests.post(url, json=body, timeout=LIMIT)

        output = self.collected(post, number, '--out', out)
        self.assertRegex(output, r"ok +track +user 'Good'")
        self.assertRegex(output, r"BAD +track +user 'Worse'")
        self.assertIn('messageId must be a string', output)
        self.assertIn('2 event(s): bad 1, track 1', output)

    def test_collect_prints_json_for_other_programs(self) -> None:
        def post(url: str) -> None:
            for each in (event(event='Good'), event(event='Worse', messageId=7), 'ü'):
                body = {'batch': [each], 'writeKey': 'key'}
                requests.post(url, json=body, timeout=LIMIT)

        output, errors = self.both_collected(post, signal.SIGINT, '--json')
        good, worse, odd = map(json.loads, output.splitlines())
        self.assertEqual(check_event(good), [])
        self.assertEqual(worse['problems'], ['messageId must be a string'])
        self.assertEqual(odd['value'], 'ü')
        self.assertIn('3 event(s): bad 2, track 1', errors)

    def test_collect_prints_only_what_a_filter_lets_through(self) -> None:
        def post(url: str) -> None:
            for name, user in (('Order A', '1'), ('Order B', '2'), ('Other', '1')):
                body = {'batch': [event(event=name, userId=user)], 'writeKey': 'key'}
                requests.post(url, json=body, timeout=LIMIT)

        for args, names in (
            (('event=Order*',), ['Order A', 'Order B']),
            (('event=Order*', 'user=2'), ['Order B']),
            (('type=page',), []),
        ):
            options = [text for each in args for text in ('--filter', each)]
            output = self.collected(post, signal.SIGINT, *options)
            for name in ('Order A', 'Order B', 'Other'):
                self.assertEqual(repr(name) in output, name in names, (args, name))
            self.assertIn('3 event(s): track 3', output)
        result = self.run_command('collect', '--filter', 'event')
        self.assertEqual(result.returncode, 2)
        self.assertIn('expected NAME=PATTERN, got event', result.stderr)

    def test_collect_passes_events_on_and_prints_the_answer(self) -> None:
        def post(url: str) -> None:
            body = {'batch': [event()], 'writeKey': 'key'}
            for _ in range(2):
                answers.append(requests.post(url, json=body, timeout=LIMIT).status_code)

        answers = []  # type: Any
        self.collector.script(200, 401)
        options = ('--forward', self.collector.url)
        output = self.collected(post, signal.SIGINT, *options)
        self.assertEqual(answers, [200, 401])
        self.assertRegex(output, r'-> 200 in \d+ ms\n')
        self.assertRegex(output, r'-> 401 in \d+ ms')

    def test_collect_passes_nothing_on_to_itself(self) -> None:
        for name in ('127.0.0.1', 'localhost'):
            forward = ('--forward', 'http://%s:8765' % name)
            result = self.run_command('collect', *forward)
            self.assertEqual(result.returncode, 2)
            self.assertIn('expected another server', result.stderr)

    def test_collect_refuses_to_pass_on_to_what_is_not_a_url(self) -> None:
        for url in (
            'host',
            'localhost:80',
            'ftp://host',
            'http://',
            'http://host:99999',
        ):
            result = self.run_command('collect', '--port', '0', '--forward', url)
            self.assertEqual(result.returncode, 2, url)
            self.assertIn('expected a URL', result.stderr)

    @unittest.skipUnless(fcntl, 'needs the size of a pipe')
    def test_a_second_signal_ends_collect_whose_reader_does_not_read(self) -> None:
        process = subprocess.Popen(
            [sys.executable, '-m', 'hightouch.htevents', 'collect', '--port', '0'],
            stdout=subprocess.PIPE,
            env=self.environment(),
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        pipe = process.stdout
        assert pipe is not None
        self.addCleanup(pipe.close)
        port = int(pipe.readline().split()[2].rpartition(b':')[2])
        batch = [event(properties={'text': 'x' * 200})] * 800
        body = json.dumps({'batch': batch, 'writeKey': 'key'}).encode()
        deadline = Deadline(LIMIT)
        with socket.create_connection(('127.0.0.1', port), LIMIT) as connection:
            head = (
                'POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n'
            )
            head += 'Content-Type: application/json\r\n\r\n'
            connection.sendall((head % len(body)).encode() + body)
            waiting = 0
            while waiting < 60000 and not deadline.over:  # the pipe is full
                found = fcntl.ioctl(pipe.fileno(), termios.FIONREAD, b'\0' * 4)
                waiting = int.from_bytes(found, sys.byteorder)
            while process.poll() is None and not deadline.over:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        self.assertEqual(process.returncode, -signal.SIGINT)

    @unittest.skipUnless(pty, 'needs a terminal')
    def test_collect_prints_in_colours_on_a_terminal_only(self) -> None:
        def post(url: str) -> None:
            for each in (event(), event(messageId=7)):
                body = {'batch': [each], 'writeKey': 'key'}
                requests.post(url, json=body, timeout=LIMIT)

        for variables, has_colours in (
            ({}, True),
            ({'NO_COLOR': ''}, True),
            ({'NO_COLOR': '1'}, False),
            ({'TERM': 'dumb'}, False),
        ):
            terminal, output = pty.openpty()
            environment = self.environment()
            environment.pop('NO_COLOR', None)
            environment['TERM'] = 'xterm'
            process = subprocess.Popen(
                [sys.executable, '-m', 'hightouch.htevents', 'collect', '--port', '0'],
                stdout=output,
                env=dict(environment, **variables),
            )
            os.close(output)
            with open(terminal, encoding='utf-8', errors='replace') as lines:
                post(lines.readline().split()[2] + '/v1/batch')
                text = lines.readline() + lines.readline() + lines.readline()
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.wait(LIMIT), 0)
            self.assertEqual('\x1b[32mtrack' in text, has_colours, text)
            self.assertEqual('\x1b[31mmessageId must' in text, has_colours, text)
            self.assertEqual('\x1b' in text, has_colours, text)

    def collected(self, post: Any, number: int = signal.SIGINT, *args: str) -> str:
        """Give what ``collect`` prints of what is posted."""
        output, errors = self.both_collected(post, number, *args)
        self.assertEqual(errors, '')
        return output

    def both_collected(self, post: Any, number: int, *args: str) -> Tuple[str, str]:
        """Give what ``collect`` prints of what is posted, also what on stderr."""
        process = subprocess.Popen(
            [
                sys.executable,
                '-m',
                'hightouch.htevents',
                'collect',
                '--port',
                '0',
                *args,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            env=self.environment(),
        )
        try:
            assert process.stdout is not None and process.stderr is not None
            said = process.stderr if '--json' in args else process.stdout
            post(said.readline().split()[2] + '/v1/batch')
            process.send_signal(number)
            output, errors = process.communicate(timeout=LIMIT)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.assertEqual(process.returncode, 0)
        return output, errors

    def test_collect_takes_only_what_a_page_of_another_server_may_not_send(
        self
    ) -> None:
        def post(url: str) -> None:
            body = json.dumps({'batch': [event()], 'writeKey': 'key'})
            for kind in (
                None,
                'text/plain',
                'application/x-www-form-urlencoded',
                'multipart/form-data; boundary=x',
                'text/plain; application/json',
                'application/json; charset=utf-8',
                'Application/JSON',
            ):
                headers = {} if kind is None else {'Content-Type': kind}
                answers.append(
                    requests.post(url, body, headers=headers, timeout=LIMIT).status_code
                )

        answers = []  # type: Any
        output = self.collected(post)
        self.assertEqual(answers, [415] * 5 + [200] * 2)
        self.assertIn('7 event(s): bad 5, track 2', output)

    def test_collect_shows_control_characters_and_sends_none(self) -> None:
        strange = 'a\nok  track forged\x1b[2J\r\x9b31m\u2028\u202e'

        def post(url: str) -> None:
            for each in (
                event(userId=strange, event=strange, properties={strange: strange}),
                event(userId=strange, type=strange, event=strange, traits=[strange]),
                event(userId={strange: 1}, name=strange, messageId=strange * 99),
                strange,
            ):
                body = {'batch': [each], 'writeKey': 'key'}
                requests.post(url, json=body, timeout=LIMIT)

        output = self.collected(post)
        for line in output.split('\n'):
            self.assertTrue(line.isprintable(), line)
        lines = [line for line in output.split('\n') if line and line[:1] != ' ']
        self.assertEqual(len(lines), 5, output)
        self.assertIn('4 event(s): bad 3, track 1', output)

    def test_a_collector_may_keep_only_the_last_events(self) -> None:
        with Collector(keep=3) as collector:
            for number in range(5):
                body = {'batch': [event(event=str(number))], 'writeKey': 'key'}
                requests.post(collector.url + '/v1/batch', json=body, timeout=LIMIT)
            names = [each['event'] for each in collector.events]
            self.assertEqual(names, ['2', '3', '4'])
            self.assertEqual(len(collector.requests), 1)

    def test_send_shows_control_characters_of_the_servers_and_sends_none(self) -> None:
        for body in (
            'one\x1b[31m\ntwo\x9b',
            '{"message": "one\\u001b[31m\\ntwo\\u202e"}',
        ):
            self.collector.script(Fault(400, {}, body.encode('utf-8')))
            result = self.send('page', '--user-id', 'user')
            self.assertIn('one\\x1b[31m two', result.stderr)
            self.assertTrue(result.stderr[:-1].isprintable(), result.stderr)

    def test_send_shows_no_password(self) -> None:
        for host in ('http://user:secret@', 'user:secret@h', 'htps://user:secret@h'):
            result = self.run_command(
                *('send', 'page', '--user-id', 'u', '--write-key', 'k', '--host', host)
            )
            self.assertEqual(result.returncode, 1)
            self.assertNotIn('secret', result.stdout + result.stderr)

    def test_spool_shows_control_characters_of_names_and_sends_none(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.leave('key', 3, folder)
            with open(self.file(folder, '.log'), 'r+b') as file:
                records = file.read().partition(b'\n')[2]
                file.seek(0)
                file.write(b'htevents-spool 1 a\x1b[2J\x9b[1]@left\n' + records)
                file.truncate()
            stream = os.path.join(folder, 'a' * 32)
            os.mkdir(stream, 0o700)
            for name in ('bad\x1b[2J\nleft.log', 'bad\udc9b.log.damaged'):
                with open(os.path.join(stream, name), 'w'):
                    pass
            for args in ((), ('--send', '--write-key', 'key', '--timeout', '1')):
                result = self.run_command('spool', folder, *args)
                self.assertNotIn('Traceback', result.stderr)
                for line in (result.stdout + result.stderr).split('\n'):
                    self.assertTrue(line.isprintable(), line)

    def test_spool_leaves_alone_what_is_not_of_this_user(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.leave('key', 3, folder)
            for name, mode in (('f' * 32, 0o777), ('private', 0o700)):
                os.mkdir(os.path.join(folder, name))
                os.chmod(os.path.join(folder, name), mode)
            os.mkfifo(os.path.join(folder, 'f' * 32, 'y.log'))
            result = self.run_command('spool', folder)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn('3 event(s)', result.stdout)
            self.assertNotIn('damaged', result.stdout)
            self.assertIn('foreign', result.stdout)
            self.assertNotIn('private', result.stdout)
            result = self.run_command(
                *('spool', folder, '--send', '--write-key', 'key'),
                *('--host', self.collector.url),
            )
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn('Delivered 3 of 3', result.stdout)
            os.unlink(os.path.join(folder, 'f' * 32, 'y.log'))

    def test_collect_ends_when_nobody_reads_what_it_prints(self) -> None:
        """Also when nothing comes that it could print."""
        process = subprocess.Popen(
            [sys.executable, '-m', 'hightouch.htevents', 'collect', '--port', '0'],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            env=self.environment(),
        )
        try:
            assert process.stdout is not None and process.stderr is not None
            self.assertIn('Collecting on', process.stdout.readline())
            process.stdout.close()
            self.assertEqual(process.wait(LIMIT), 0)
            self.assertEqual(process.stderr.read(), '')
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stderr.close()

    def test_an_event_that_nobody_sees_is_answered_and_the_last_one(self) -> None:
        class Output(io.StringIO):
            """Its reader leaves after the first line; that cannot be polled for."""

            def flush(self) -> None:
                if self.getvalue().count('\n') == 1:
                    senders.append(
                        threading.Thread(target=post, args=[self.getvalue()])
                    )
                    senders[0].start()
                else:
                    raise BrokenPipeError

        def post(line: str) -> None:
            body = {'batch': [event()], 'writeKey': 'key'}
            url = line.split()[2] + '/v1/batch'
            answers.append(requests.post(url, json=body, timeout=LIMIT).status_code)

        answers, senders = [], []  # type: Any
        for number in (signal.SIGINT, signal.SIGTERM):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        args = cli._parser().parse_args(['collect', '--port', '0'])
        with contextlib.redirect_stdout(Output()), self.assertRaises(BrokenPipeError):
            args.run(args)
        senders[0].join(LIMIT)
        self.assertEqual(answers, [200])

    def leave(self, key: str, count: int, folder: str) -> None:
        """Have a process die with so many events in a spool."""
        code = (
            'import os, sys\n'
            'from hightouch.htevents import Client\n'
            'client = Client(sys.argv[1], "http://127.0.0.1:9", spool_dir=sys.argv[3])\n'
            'for _ in range(int(sys.argv[2])): client.track("user", "event")\n'
            'os._exit(0)\n'
        )
        run_program(code, key, str(count), folder)

    def file(self, folder: str, suffix: str) -> str:
        """Return the path of the one file in a spool of that suffix."""
        (path,) = glob.glob(os.path.join(folder, '*', '*' + suffix))
        return path

    def test_spool_shows_what_waits_and_sends_it(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            with mock.patch.object(store, 'SCAN_INTERVAL', 2 * LIMIT):
                living = self.client(
                    spool_dir=folder, write_key='key', host='http://127.0.0.1:9'
                )
                living._queue.store._next_scan = float('inf')  # takes over nothing
                living.track('user', 'event')
            self.leave('key', 700, folder)
            self.leave('other key', 5, folder)
            result = self.run_command('spool', folder)
            self.assertEqual((result.returncode, result.stderr), (0, ''))
            self.assertRegex(result.stdout, r'left +700 event\(s\), +\d+ KB, oldest')
            self.assertRegex(result.stdout, r'running +1 event\(s\)')
            self.assertIn('706 event(s)', result.stdout)
            send = ('spool', folder, '--send', '--host', self.collector.url)
            result = self.run_command(*send, '--write-key', 'key')
            self.assertEqual((result.returncode, result.stderr), (0, ''))
            self.assertIn('Delivered 700 of 700', result.stdout)
            self.assertIn('1 event(s) of living processes', result.stdout)
            self.assertIn('5 event(s) of another write key', result.stdout)
            self.assertEqual(len(self.collector.events), 700)
            result = self.run_command(*send, '--write-key', 'key')
            self.assertIn('Nothing to send.', result.stdout)

    def test_spool_says_when_it_could_not_send_and_keeps_what_waits(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.leave('key', 3, folder)
            send = ('spool', folder, '--send', '--write-key', 'key', '--timeout', '3')
            result = self.run_command(*send, '--host', 'http://127.0.0.1:9')
            self.assertEqual(result.returncode, 1)
            self.assertIn('Delivered 0 of 3', result.stdout)
            self.assertIn('3 event(s) stay: ConnectionError', result.stderr)
            self.assertIn('3 event(s)', self.run_command('spool', folder).stdout)

    def test_spool_sends_what_is_readable_of_a_damaged_file_and_ends(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.leave('key', 50, folder)
            with open(self.file(folder, '.log'), 'r+b') as file:
                file.seek(2000)
                file.write(b'?')
            send = ('spool', folder, '--send', '--write-key', 'key')
            result = self.run_command(*send, '--host', self.collector.url)
            self.assertEqual(result.returncode, 1)
            self.assertIn('Delivered 49 of 49', result.stdout)
            self.assertIn('Set aside 1 damaged file', result.stderr)
            self.assertIn('1 damaged file(s)', self.run_command('spool', folder).stdout)

    def test_spool_tells_a_wrong_directory(self) -> None:
        for args in (('spool', '/nowhere'), ('spool', '/nowhere', '--send')):
            result = self.run_command(*args)
            self.assertEqual(result.returncode, 2)
            self.assertNotIn('Traceback', result.stderr)


if __name__ == '__main__':
    unittest.main()
