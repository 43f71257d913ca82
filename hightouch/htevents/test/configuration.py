"""The sources of a setting, their order, and that the texts about settings agree."""

import inspect
import os
import re
import subprocess
import sys
import threading
import typing
import unittest
from typing import Any, Dict
from unittest import mock

import hightouch.htevents as htevents
from hightouch.htevents import settings
from hightouch.htevents._process.environment import reader, variable
from hightouch.htevents.client import Client
from hightouch.htevents.settings import DefaultConfig
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.readme import README, read
from hightouch.htevents.test.support import LIMIT, Recorder, TestCase, run_program

# The settings that have no text form, and so no variable.
OBJECTS = {'on_error', 'log_handler', 'on_success', 'before_send', 'session'}

# A value of each other setting that is not its default, as text and as Python has it.
VALUES: Dict[str, Any] = {
    'write_key': ('key', 'key'),
    'host': ('http://127.0.0.1:9', 'http://127.0.0.1:9'),
    'debug': ('1', True),
    'max_queue_size': ('7', 7),
    'send': ('off', False),
    'gzip': ('True', True),
    'max_retries': (' 3 ', 3),
    'sync_mode': ('yes', True),
    'timeout': ('none', None),
    'proxies': ('127.0.0.1:3128', '127.0.0.1:3128'),
    'thread': ('4', 4),
    'upload_size': ('50', 50),
    'upload_interval': ('0.25', 0.25),
    'oauth_client_id': ('id', 'id'),
    'oauth_client_key': ('pem', 'pem'),
    'oauth_key_id': ('kid', 'kid'),
    'oauth_auth_server': ('http://127.0.0.1:8', 'http://127.0.0.1:8'),
    'oauth_scope': ('scope', 'scope'),
    'block_timeout': ('2', 2.0),
    'shutdown_timeout': ('None', None),
    'spool_dir': ('/spool', '/spool'),
    'spool_fsync': ('on', True),
    'spool_max_bytes': ('1048576', 1048576),
    'trace_context': ('1', True),
}


def environment(**values: str) -> Any:
    """Patch the environment: no variable of the package but these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith('HTEVENTS_')}
    kept.update((variable(name), value) for name, value in values.items())
    return mock.patch.dict(os.environ, kept, clear=True)


def taken(*args: Any, **kwargs: Any) -> Any:
    """Give the settings that a client made in this way would have."""

    class Taken(Exception):
        pass

    found: Dict[str, Any] = {}

    def checked(given: Dict[str, Any]) -> None:
        found.update(given)
        raise Taken

    with mock.patch.object(settings, 'checked', checked):
        try:
            Client(*args, **kwargs)
        except Taken:
            pass
    return found


class EnvironmentTest(TestCase):
    def test_every_setting_with_a_text_form_has_a_variable(self) -> None:
        self.assertEqual(set(VALUES) | OBJECTS, set(settings.NAMES))
        with environment(**{name: text for name, (text, _) in VALUES.items()}):
            given = taken()
        for name, (_, value) in VALUES.items():
            self.assertEqual(given[name], value, name)
            self.assertEqual(type(given[name]), type(value), name)
        for name in OBJECTS:
            self.assertIsNone(reader(settings.TYPES[name]))
            with environment(**{name: '1'}):
                self.assertIsNone(taken()[name])

    def test_an_argument_wins_also_if_it_is_the_default(self) -> None:
        texts = {name: text for name, (text, _) in VALUES.items()}
        with environment(**texts):
            for name in VALUES:
                default = getattr(DefaultConfig, name)
                self.assertEqual(taken(**{name: default})[name], default, name)
            positional = [getattr(DefaultConfig, each) for each in settings.NAMES[:20]]
            given = taken(*positional)
            for name, value in zip(settings.NAMES, positional):
                self.assertEqual(given[name], value, name)

    def test_an_empty_variable_counts_as_missing(self) -> None:
        with environment(**{name: ' ' for name in VALUES}):
            given = taken()
        for name in VALUES:
            self.assertEqual(given[name], getattr(DefaultConfig, name), name)

    def test_a_value_that_cannot_be_read_is_an_error_that_names_the_variable(
        self,
    ) -> None:
        for name, text in (
            ('max_retries', 'many'),
            ('max_retries', '1.5'),
            ('max_retries', '1_0'),
            ('max_retries', '٣'),
            ('block_timeout', 'inf'),
            ('gzip', '2'),
            ('send', 'maybe'),
            ('upload_interval', 'soon'),
            ('upload_interval', 'nan'),
            ('upload_interval', '-1'),
            ('timeout', '0'),
            ('timeout', '(1, 2)'),
            ('thread', '0'),
            ('upload_size', '0'),
            ('spool_max_bytes', '5'),
            ('shutdown_timeout', '5s'),
        ):
            with environment(**{name: text}):
                with self.assertRaises(htevents.ValidationError) as caught:
                    Client('key')
            message = str(caught.exception)
            self.assertTrue(message.startswith(variable(name) + ': expected '), message)
            self.assertNotIn(repr(text), message)

    def test_an_error_in_an_argument_still_names_the_argument(self) -> None:
        with environment(max_retries='3'):
            with self.assertRaisesRegex(htevents.ValidationError, '^thread: expected'):
                Client('key', thread=0)

    def test_the_off_switch_needs_no_key_and_turns_everything_off(self) -> None:
        result = run_program(
            'import os, sys, threading\n'
            'os.environ["HTEVENTS_SEND"] = "0"\n'
            'os.environ.pop("HTEVENTS_WRITE_KEY", None)\n'
            'import hightouch.htevents as htevents\n'
            'from hightouch.htevents.client import Client\n'
            'client = Client()\n'
            'for _ in range(20000):\n'
            '    assert htevents.track("user", "event")[0] is True\n'
            '    assert client.track("user", "event")[0] is True\n'
            'assert htevents.flush() and htevents.shutdown() and client.shutdown()\n'
            'assert htevents.track("user", "event")[1]["event"] == "event"\n'
            'try:\n'
            '    htevents.track("user")\n'
            'except AssertionError:\n'
            '    pass\n'
            'print(threading.active_count(), client.stats().accepted, "ssl" in sys.modules)\n'
        )
        self.assertEqual(result.stdout, '1 0 False\n', result.stderr)

    def test_an_argument_or_attribute_turns_it_on_again(self) -> None:
        with environment(send='0'):
            client = self.client(send=True)
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(len(self.collector.events), 1)
            with self.assertRaisesRegex(htevents.ValidationError, '^write_key: '):
                Client(send=True)
            with self.assertRaisesRegex(htevents.ValidationError, '^write_key: '):
                Client(5)  # type: ignore[arg-type]

    def test_without_the_switch_a_client_that_does_not_send_needs_a_key(self) -> None:
        for values in ({}, {'send': '1'}):  # type: Any
            with environment(**values):
                with self.assertRaisesRegex(htevents.ValidationError, '^write_key: '):
                    Client(send=False)


class DefaultClientTest(TestCase):
    def setUp(self) -> None:
        super().setUp()
        patch = environment(host=self.collector.url, write_key=TEST_WRITE_KEY)
        patch.start()
        self.addCleanup(patch.stop)
        self.addCleanup(self.start_over)
        self.start_over()

    def start_over(self) -> None:
        htevents.shutdown(0)
        htevents.default_client = None
        for name in settings.NAMES:
            if sys.version_info < (3, 7):
                setattr(htevents, name, getattr(DefaultConfig, name))
            else:
                vars(htevents).pop(name, None)

    @unittest.skipIf(sys.version_info < (3, 7), 'modules have no __getattr__')
    def test_an_attribute_that_was_set_wins_over_the_environment(self) -> None:
        os.environ[variable('max_retries')] = '3'
        self.assertEqual(htevents.get_client().max_retries, 3)
        htevents.default_client = None
        htevents.max_retries = 10  # the default, but set
        self.assertEqual(htevents.get_client().max_retries, 10)
        htevents.default_client = None
        del htevents.max_retries
        self.assertEqual(htevents.max_retries, 10)
        self.assertEqual(htevents.get_client().max_retries, 3)

    def test_get_client_makes_the_default_client_once(self) -> None:
        self.assertIsNone(htevents.default_client)
        client = htevents.get_client()
        self.assertIs(htevents.get_client(), client)
        self.assertIs(htevents.default_client, client)

    def test_configure_makes_and_returns_the_default_client(self) -> None:
        htevents.gzip = True
        os.environ[variable('max_retries')] = '3'
        os.environ[variable('thread')] = '2'
        client = htevents.configure('key', self.collector.url, upload_size=7, thread=4)
        self.assertIs(htevents.get_client(), client)
        self.assertIs(htevents.default_client, client)
        self.assertTrue(client.gzip)
        self.assertEqual(client.write_key, 'key')
        self.assertEqual(client.max_retries, 3)
        assert client.consumers is not None
        self.assertEqual(len(client.consumers), 4)
        htevents.track('user', 'event')
        self.assertTrue(htevents.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)

    def test_the_client_before_is_flushed_and_shut_down(self) -> None:
        before = htevents.configure(upload_interval=LIMIT * 100)
        htevents.track('user', 'before')
        after = htevents.configure()
        self.assertEqual([each['event'] for each in self.collector.events], ['before'])
        self.assertFalse(before.track('user', 'late')[0])
        self.assertTrue(after.track('user', 'after')[0])

    def test_no_call_is_refused_while_the_client_before_ends(self) -> None:
        htevents.configure(upload_interval=LIMIT * 100, shutdown_timeout=LIMIT)
        answers = threading.Event()
        self.collector.script(lambda _: answers.wait(LIMIT) and 200)
        htevents.track('user', 'before')
        thread = threading.Thread(target=htevents.configure)
        thread.start()
        while not self.collector._answering:
            pass
        self.assertTrue(htevents.track('user', 'meanwhile')[0])
        answers.set()
        thread.join(LIMIT)
        self.assertTrue(htevents.flush(LIMIT))
        names = {each['event'] for each in self.collector.events}
        self.assertEqual(names, {'before', 'meanwhile'})

    def test_the_end_of_the_client_before_is_bounded_by_its_shutdown_timeout(
        self,
    ) -> None:
        errors, answers = Recorder(), threading.Event()
        self.addCleanup(answers.set)
        htevents.configure(shutdown_timeout=0.1, on_error=errors)
        self.collector.script(lambda _: answers.wait(LIMIT) and 200)
        htevents.track('user', 'lost')
        htevents.configure()
        self.assertEqual(len(errors.calls), 1)

    def test_wrong_settings_leave_the_client_before_at_work(self) -> None:
        client = htevents.configure()
        with self.assertRaisesRegex(
            TypeError, r'max_retry \(did you mean max_retries\?'
        ):
            htevents.configure(max_retry=3)  # type: ignore[call-arg]
        with self.assertRaisesRegex(htevents.ValidationError, '^thread: '):
            htevents.configure(thread=0)
        self.assertIs(htevents.default_client, client)
        self.assertTrue(client.track('user', 'event')[0])


class OneSourceTest(unittest.TestCase):
    """DefaultConfig has the names, types and defaults; the docstring of Client the texts."""

    def texts(self) -> Dict[str, str]:
        found = re.findall(
            r'^:param (\w+): (.*?)(?=^:|\Z)', inspect.getdoc(Client) or '', re.M | re.S
        )
        return {name: ' '.join(text.split()) for name, text in found}

    @unittest.skipIf(sys.version_info < (3, 9), 'PathLike takes no parameter')
    def test_the_signature_has_its_names_types_and_defaults(self) -> None:
        types = typing.get_type_hints(DefaultConfig)
        parameters = inspect.signature(Client).parameters
        self.assertEqual(list(parameters), list(settings.NAMES))
        hints = typing.get_type_hints(Client.__init__)
        for name, each in parameters.items():
            self.assertEqual(each.default, getattr(DefaultConfig, name), name)
            self.assertEqual(hints[name], types[name], name)

    @unittest.skipIf(sys.version_info < (3, 9), 'PathLike takes no parameter')
    def test_the_attributes_of_the_module_have_its_names_types_and_defaults(
        self
    ) -> None:
        hints = typing.get_type_hints(htevents)
        types = typing.get_type_hints(DefaultConfig)
        for name in settings.NAMES:
            self.assertEqual(hints[name], types[name], name)
            self.assertIn(name, dir(htevents))
        result = subprocess.run(
            [
                sys.executable,
                '-c',
                'import hightouch.htevents as h\n'
                'from hightouch.htevents.settings import NAMES, DefaultConfig as d\n'
                'print(all(getattr(h, n) == getattr(d, n) for n in NAMES))',
            ],
            stdout=subprocess.PIPE,
            cwd=os.getcwd(),
            timeout=LIMIT,
        )
        self.assertEqual(result.stdout, b'True' + os.linesep.encode())

    def test_every_setting_has_one_text(self) -> None:
        self.assertEqual(list(self.texts()), list(settings.NAMES))

    @unittest.skipUnless(os.path.exists(README), 'not in a checkout')
    def test_the_table_of_the_readme_has_the_same_texts(self) -> None:
        section = read().partition('\n## Settings\n')[2].partition('\n## ')[0]
        rows = re.findall(r'^\| `(\w+)` \| (.*?) \| (.*) \|$', section, re.M)
        self.assertEqual([row[0] for row in rows], list(settings.NAMES))
        texts = self.texts()
        for name, default, text in rows:
            self.assertEqual(default, '`%r`' % (getattr(DefaultConfig, name),), name)
            plain = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', text).replace('`', '')
            self.assertEqual(plain, texts[name].replace('`', ''), name)
