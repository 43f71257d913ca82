import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from typing import Any

import requests

from hightouch.htevents import settings
from hightouch.htevents.test.collector import event
from hightouch.htevents.test.support import LIMIT, TestCase

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
            ('other',),
        ):
            result = self.send(*args)
            self.assertEqual(result.returncode, 2, args)
            self.assertTrue(result.stderr)
            self.assertNotIn('Traceback', result.stderr)

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
        process = subprocess.Popen(
            [sys.executable, '-m', 'hightouch.htevents', 'collect', '--port', '0']
            + ['--out', out],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            env=self.environment(),
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[2]
            for each in (event(event='Good'), event(event='Worse', messageId=7)):
                body = json.dumps({'batch': [each], 'writeKey': 'key'})
                requests.post(url + '/v1/batch', data=body, timeout=LIMIT)
            process.send_signal(number)
            output, errors = process.communicate(timeout=LIMIT)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.assertEqual((process.returncode, errors), (0, ''))
        self.assertRegex(output, r"ok +track +user 'Good'")
        self.assertRegex(output, r"BAD +track +user 'Worse'")
        self.assertIn('messageId must be a string', output)
        self.assertIn('2 event(s): bad 1, track 1', output)


if __name__ == '__main__':
    unittest.main()
