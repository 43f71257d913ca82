import inspect
import logging
import os
import sys
import threading
import typing
import unittest
from typing import Any

import mock

import hightouch.htevents as htevents
from hightouch.htevents import settings
from hightouch.htevents.client import Client
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.support import LIMIT, LogCatcher, TestCase, run_program
from hightouch.htevents.version import VERSION

# What the arguments are, for annotations in an application.
ALIASES = {
    'BeforeSend',
    'Context',
    'Id',
    'Integrations',
    'Message',
    'OnError',
    'OnSuccess',
    'PrivateKey',
    'Properties',
    'Proxies',
    'Result',
    'Timeout',
    'Timestamp',
    'Traits',
}

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

    def test_each_call_has_a_source_with_the_signature_of_the_clients(self) -> None:
        for name in CALLS:
            function = getattr(htevents, name)
            self.assertTrue(inspect.getsource(function).startswith('def %s(' % name))
            method = inspect.signature(getattr(Client, name))
            signature = inspect.signature(function)
            self.assertEqual(
                list(method.parameters.values())[1:],
                list(signature.parameters.values()),
                name,
            )
            self.assertEqual(method.return_annotation, signature.return_annotation)

    def test_all_parameters_are_documented_in_both_places(self) -> None:
        documented = 0
        for name in CALLS:
            function = getattr(htevents, name)
            text = inspect.getdoc(function) or ''
            self.assertEqual(text, inspect.getdoc(getattr(Client, name)))
            self.assertTrue(text.splitlines()[0].endswith('.'))
            for parameter in inspect.signature(function).parameters:
                self.assertEqual(text.count(':param %s: ' % parameter), 1, name)
                documented += 1
            for part in (':returns: ', ':raises ValidationError: ', 'thread'):
                self.assertIn(part, text)
        self.assertEqual(documented, 48)

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

    def test_flush_shutdown_and_join_make_the_client_when_a_key_is_set(self) -> None:
        for name, value in (('gzip', True), ('max_queue_size', 1337), ('host', 'h')):
            setattr(htevents, name, value)
            for end in (htevents.flush, htevents.shutdown, htevents.join):
                htevents.default_client = None
                self.assertTrue(end())
                assert htevents.default_client is not None
                client = htevents.default_client  # type: Any
                kept = client.queue.maxsize if name == 'max_queue_size' else None
                self.assertEqual(kept or getattr(client, name), value)
        htevents.host, htevents.default_client = self.collector.url, None
        self.assertTrue(htevents.flush())
        htevents.track('user', 'event')
        self.assertTrue(htevents.flush())
        self.assertEqual(len(self.collector.events), 1)

    def test_flush_shutdown_and_join_without_a_key_have_nothing_to_do(self) -> None:
        with mock.patch.dict(os.environ):
            os.environ.pop(settings.ENV_WRITE_KEY, None)
            for none in (None, '', ' '):
                htevents.write_key = none
                self.assertTrue(
                    htevents.flush() and htevents.shutdown() and htevents.join()
                )
                self.assertIsNone(htevents.default_client)
            os.environ[settings.ENV_WRITE_KEY] = ' key-of-environment\n'
            self.assertTrue(htevents.flush())
            assert htevents.default_client is not None
            self.assertEqual(htevents.default_client.write_key, 'key-of-environment')

    def test_a_misspelt_setting_is_warned_of_once_when_the_client_is_made(self) -> None:
        misspelt = {'max_retry': 3, 'Host': 'http://127.0.0.1:9', 'flush_at': 5}
        for name, value in misspelt.items():
            setattr(htevents, name, value)
            self.addCleanup(delattr, htevents, name)
        self.addCleanup(setattr, htevents, 'Timeout', htevents.Timeout)
        htevents.Timeout = 3  # type: ignore[assignment,misc]
        with LogCatcher() as log:
            htevents.track('user', 'event')
            htevents.track('user', 'event')
            htevents.flush(LIMIT)
        (line,) = log.lines(logging.WARNING)
        for text in (
            'max_retry (did you mean max_retries?)',
            'Host (did you mean host?)',
            'Timeout (did you mean timeout?)',
            'flush_at',
        ):
            self.assertIn(text, line)

    def test_the_right_names_and_the_modules_of_the_package_are_no_misspelling(
        self,
    ) -> None:
        import hightouch.htevents.collector  # noqa: F401 - becomes an attribute

        for name in settings.NAMES:
            setattr(htevents, name, getattr(htevents, name))
        with LogCatcher() as log:
            htevents.track('user', 'event')
        self.assertEqual(log.lines(logging.WARNING), [])

    def test_a_log_handler_that_tracks_may_be_told_of_a_misspelling(self) -> None:
        class Tracks(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                htevents.track('user', 'event of the log')

        htevents.max_retry = 3  # type: ignore[attr-defined]
        self.addCleanup(delattr, htevents, 'max_retry')
        htevents.log_handler = Tracks(logging.WARNING)
        htevents.track('user', 'event')
        self.assertTrue(htevents.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 2)

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
        self.assertEqual(set(htevents.__all__), ours | ALIASES | {'__version__'})
        hints = typing.get_type_hints(htevents.track)
        for name in ('properties', 'context', 'integrations', 'timestamp'):
            alias = getattr(htevents, name.capitalize())
            self.assertEqual(hints[name], typing.Optional[alias])
        self.assertEqual(hints['return'], htevents.Result)
        self.assertEqual(htevents.__version__, VERSION)

    @unittest.skipIf(sys.version_info < (3, 7), 'modules have no __getattr__')
    def test_the_published_modules_are_attributes(self) -> None:
        result = run_program(
            'import hightouch.htevents as htevents\n'
            'for name in ("client", "consumer", "request", "utils", "version"):\n'
            '    getattr(htevents, name)\n'
            'print(htevents.oauth_manager.OauthManager.__name__)\n'
            'htevents.no_such_name\n'
        )
        self.assertEqual(result.stdout, 'OauthManager\n')
        self.assertIn("AttributeError: module 'hightouch.htevents'", result.stderr)

    def test_an_import_loads_no_http_and_no_cryptography(self) -> None:
        result = run_program(
            'import sys, hightouch.htevents\n'
            'print([name for name in ("requests", "jwt", "cryptography", "dateutil",'
            ' "backoff", "http.client", "ssl", "sqlite3", "email") if name in sys.modules])'
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
