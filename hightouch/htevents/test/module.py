import inspect
import os
import threading
import unittest
from typing import Any

import mock

import hightouch.htevents as htevents
from hightouch.htevents import settings
from hightouch.htevents.client import Client
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.support import LIMIT, TestCase, run_program
from hightouch.htevents.version import VERSION

CALLS = ('identify', 'track', 'alias', 'group', 'page', 'screen')


class ModuleTest(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.start_over)
        self.start_over()
        htevents.write_key = TEST_WRITE_KEY
        htevents.host = self.collector.url

    def start_over(self) -> None:
        htevents.shutdown(0)
        htevents.default_client = None
        for name in settings.NAMES:
            setattr(htevents, name, getattr(Client.DefaultConfig, name))

    def test_every_setting_is_an_attribute_with_its_default(self) -> None:
        self.start_over()
        for name in settings.NAMES:
            self.assertEqual(
                getattr(htevents, name), getattr(Client.DefaultConfig, name), name
            )

    def test_the_settings_are_the_arguments_of_a_client_in_order(self) -> None:
        parameters = list(inspect.signature(Client.__init__).parameters.values())[1:]
        self.assertEqual([each.name for each in parameters], list(settings.NAMES))
        for each in parameters:
            self.assertEqual(each.default, getattr(Client.DefaultConfig, each.name))
        positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
        self.assertEqual(positional[-1], 'oauth_scope')
        self.assertEqual(len(positional), 20)

    def test_every_setting_reaches_the_default_client(self) -> None:
        marks = {name: object() for name in settings.NAMES}
        for name, mark in marks.items():
            setattr(htevents, name, mark)
        with mock.patch.object(htevents, 'Client') as made:
            htevents.track('user', 'event')
        made.assert_called_once_with(**marks)
        self.start_over()

    def test_each_call_is_the_clients_own_with_its_signature(self) -> None:
        for name in CALLS:
            method = inspect.signature(getattr(Client, name))
            function = inspect.signature(getattr(htevents, name))
            self.assertEqual(
                list(method.parameters)[1:], list(function.parameters), name
            )

    def test_all_six_calls_arrive(self) -> None:
        htevents.identify('user')
        htevents.track('user', 'event')
        htevents.alias('previous', 'user')
        htevents.group('user', 'group')
        htevents.page('user')
        htevents.screen('user')
        self.assertTrue(htevents.flush(LIMIT))
        self.assertEqual([each['type'] for each in self.collector.events], list(CALLS))
        self.assertTrue(htevents.join(LIMIT))

    def test_the_default_client_is_made_by_the_first_call_and_can_be_forgotten(
        self,
    ) -> None:
        self.assertIsNone(htevents.default_client)
        htevents.track('user', 'event')
        first = htevents.default_client
        htevents.track('user', 'event')
        self.assertIs(htevents.default_client, first)
        htevents.shutdown()
        htevents.default_client = None
        htevents.track('user', 'event')
        self.assertIsNot(htevents.default_client, first)

    def test_flush_and_shutdown_without_a_client_have_nothing_to_do(self) -> None:
        self.assertTrue(htevents.flush() and htevents.shutdown() and htevents.join())
        self.assertIsNone(htevents.default_client)

    def test_a_missing_write_key_is_an_assertion_error(self) -> None:
        htevents.write_key = None
        with mock.patch.dict(os.environ):
            os.environ.pop(settings.ENV_WRITE_KEY, None)
            with self.assertRaises(AssertionError):
                htevents.track('user', 'event')

    def test_write_key_and_host_come_from_the_environment(self) -> None:
        htevents.write_key = htevents.host = None
        environment = {
            settings.ENV_WRITE_KEY: 'key-of-environment',
            settings.ENV_HOST: self.collector.url,
        }
        with mock.patch.dict(os.environ, environment):
            htevents.track('user', 'event')
        self.assertTrue(htevents.flush(LIMIT))
        self.assertEqual(
            self.collector.requests[0].body['writeKey'], 'key-of-environment'
        )

    def test_names_exported_are_all_there(self) -> None:
        ours = {
            name
            for name, value in vars(htevents).items()
            if (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__.startswith('hightouch.')
            and not name.startswith('_')
        }
        self.assertEqual(set(htevents.__all__), ours | {'__version__'})
        self.assertEqual(htevents.__version__, VERSION)

    def test_an_import_loads_no_http_and_no_cryptography(self) -> None:
        result = run_program(
            'import sys, hightouch.htevents\n'
            'print([name for name in ("requests", "jwt", "cryptography", "dateutil",'
            ' "backoff") if name in sys.modules])'
        )
        self.assertEqual(result.stdout.strip(), '[]', result.stderr)

    def test_two_threads_making_the_first_call_make_one_client(self) -> None:
        made = []
        barrier = threading.Barrier(8)
        original = Client

        def make(**kwargs: Any) -> Client:
            made.append(1)
            return original(**kwargs)

        def call() -> None:
            barrier.wait(LIMIT)
            htevents.track('user', 'event')

        with mock.patch.object(htevents, 'Client', make):
            threads = [threading.Thread(target=call) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT)
        self.assertEqual(len(made), 1)
        self.assertTrue(htevents.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 8)


if __name__ == '__main__':
    unittest.main()
