"""What applications use in their tests: captured events, and a collector for the default client."""

import collections
import datetime
import decimal
import enum
import fractions
import gc
import inspect
import ipaddress
import json
import os
import pathlib
import subprocess
import sys
import threading
import types
import unittest
import uuid
from typing import Any, Dict
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

import hightouch.htevents as htevents
from hightouch.htevents import Client
from hightouch.htevents._process import captures
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.support import LIMIT, TestCase, no_threads, run_loop
from hightouch.htevents.testing import Events, capture, collector

# JSON as a call makes it; the event around it is below the limit of 32 KiB.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 60), 1 << 60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=('Cs',)), max_size=20),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text('abc', max_size=3), inner, max_size=3),
    max_leaves=8,
)
PROPERTIES = st.dictionaries(st.text('abc', max_size=3), JSON, max_size=3)


def message(**fields: Any) -> Dict[str, Any]:
    fields.setdefault('type', 'track')
    fields.setdefault('userId', 'user')
    return fields


class FreshTest(TestCase):
    """A test with the module as after its import."""

    def setUp(self) -> None:
        super().setUp()
        self.module = vars(htevents)
        before = dict(self.module)

        def restore() -> None:
            if htevents.default_client is not None:
                htevents.default_client.shutdown(0)
            self.module.update(before)
            for name in set(self.module) - set(before):
                del self.module[name]

        self.addCleanup(restore)
        htevents.default_client = None
        environment = {
            name: os.environ[name] for name in os.environ if name[:8] != 'HTEVENTS'
        }
        patch = mock.patch.dict(os.environ, environment, clear=True)
        patch.start()
        self.addCleanup(patch.stop)


class CaptureTest(FreshTest):
    def test_all_calls_are_taken_as_they_go_on_the_wire_and_nothing_is_sent(
        self
    ) -> None:
        client = self.client()
        with capture() as events, no_threads():
            results = [
                client.identify('user', {'a': datetime.date(2026, 1, 1)}),
                client.track('user', 'event', {'a': (1, 2)}),
                client.alias('before', 'user'),
                client.group('user', 7, {'a': 1}),
                client.page('user', 'category', 'name', {'a': 1}),
                client.screen('user', 'category', 'name', {'a': 1}),
            ]
            self.assertTrue(client.flush(LIMIT))
        self.assertTrue(all(accepted for accepted, _ in results))
        sent = [json.loads(json.dumps(each, default=str)) for _, each in results]
        self.assertEqual(list(events), sent)
        self.assertEqual(client.stats().accepted, 0)
        self.assertEqual(self.collector.requests, [])

    def test_the_events_of_every_kind_of_client_are_taken(self) -> None:
        clients = [
            self.client(),
            self.client(sync_mode=True),
            self.client(send=False),
            self.client(max_queue_size=1),
        ]
        with capture() as events:
            for client in clients:
                self.assertTrue(client.track('user', 'one')[0])
                self.assertTrue(client.track('user', 'two')[0])
        self.assertEqual(len(events.find(event='one')), len(clients))
        self.assertEqual(len(events.find(event='two')), len(clients))

    def test_the_events_of_all_threads_are_taken(self) -> None:
        client = self.client()

        def work() -> None:
            for number in range(100):
                client.track('user', 'event', {'number': number})

        with capture() as events:
            threads = [threading.Thread(target=work) for _ in range(8)]
            for each in threads:
                each.start()
            for each in threads:
                each.join(LIMIT)
        for number in range(100):
            self.assertEqual(len(events.find(properties={'number': number})), 8)

    def test_before_and_after_it_clients_send_as_always(self) -> None:
        client = self.client()
        client.track('user', 'before')
        with capture() as events:
            client.track('user', 'inside')
            self.assertTrue(client.flush(LIMIT))
        client.track('user', 'after')
        self.assertTrue(client.flush(LIMIT))
        names = [each['event'] for each in self.collector.events]
        self.assertEqual(names, ['before', 'after'])
        self.assertEqual([each['event'] for each in events], ['inside'])

    def test_a_client_that_is_off_stays_off_after_it(self) -> None:
        client = self.client(send=False)
        with htevents.deferred():
            with capture() as events:
                self.assertTrue(client.track('user', 'event')[0])
        self.assertTrue(events.none())
        self.assertEqual(client.stats().accepted, 0)

    def test_wrong_calls_raise_as_always(self) -> None:
        client = self.client()
        with capture() as events:
            with self.assertRaises(ValidationError):
                client.track(None, 'event')
            with self.assertRaises(htevents.MessageTooLargeError):
                client.track('user', 'event', {'a': 'a' * 40000})
        self.assertTrue(events.none())

    def test_before_send_has_changed_or_dropped_what_is_taken(self) -> None:
        def scrub(message: Dict[str, Any]) -> Any:
            return None if message['event'] == 'secret' else dict(message, extra=1)

        client = self.client(before_send=scrub)
        with capture() as events:
            self.assertFalse(client.track('user', 'secret')[0])
            self.assertTrue(client.track('user', 'event')[0])
        self.assertEqual([each['extra'] for each in events], [1])

    def test_a_client_that_was_shut_down_refuses(self) -> None:
        client = self.client()
        client.shutdown(LIMIT)
        with capture() as events:
            self.assertFalse(client.track('user', 'event')[0])
        self.assertTrue(events.none())

    def test_a_deferred_event_comes_when_its_block_ends(self) -> None:
        for settings in ({}, {'send': False}, {'sync_mode': True}):  # type: Any
            client = self.client(**settings)
            with capture() as events:
                with htevents.deferred():
                    client.track('user', 'event')
                    self.assertTrue(events.none())
                events.assert_tracked('event', count=1)
                with self.assertRaises(KeyError), htevents.deferred():
                    client.track('user', 'rolled back')
                    raise KeyError
                self.assertEqual(len(events), 1)

    def test_the_rest_of_an_interrupted_release_is_taken_as_well(self) -> None:
        client = self.client(sync_mode=True)
        errors = [KeyError('a signal handler raised')]

        def interrupted(body: bytes) -> None:
            if errors:
                raise errors.pop()

        captures.add(interrupted)
        self.addCleanup(captures.remove, interrupted)
        with capture() as events:
            with self.assertRaises(KeyError), htevents.deferred():
                client.track('user', 'first')
                client.track('user', 'last')
        self.assertEqual([each['event'] for each in events], ['first', 'last'])

    def test_the_scope_is_in_what_is_taken(self) -> None:
        client = self.client()
        with capture() as events, htevents.scope(user_id='user', context={'ip': '1'}):
            client.track(event='event')
        events.assert_tracked('event', user_id='user', context={'ip': '1'})

    def test_nested_captures_take_an_event_each(self) -> None:
        client = self.client()
        with capture() as outer:
            client.track('user', 'one')
            with capture() as inner:
                client.track('user', 'two')
            client.track('user', 'three')
        self.assertEqual([each['event'] for each in outer], ['one', 'two', 'three'])
        self.assertEqual([each['event'] for each in inner], ['two'])
        inner[0]['properties']['changed'] = True
        self.assertEqual(outer[1]['properties'], {})

    def test_captures_may_end_in_any_order(self) -> None:
        client = self.client()
        first, second = capture(), capture()
        one, two = first.__enter__(), second.__enter__()
        first.__exit__(None, None, None)
        client.track('user', 'event')
        second.__exit__(None, None, None)
        self.assertTrue(one.none())
        self.assertEqual(len(two), 1)
        client.track('user', 'sent')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)


class DefaultClientTest(FreshTest):
    def test_captures_that_end_in_any_order_leave_it_and_the_settings_as_before(
        self
    ) -> None:
        first, second = capture(), capture()
        first.__enter__()
        htevents.gzip = True
        htevents.track('user', 'of the first')
        made = htevents.default_client
        events = second.__enter__()
        htevents.track('user', 'of both')
        first.__exit__(None, None, None)
        self.assertFalse(made and made.track('user', 'late')[0])
        htevents.default_client = None
        self.assertTrue(htevents.track('user', 'of the second')[0])
        second.__exit__(None, None, None)
        self.assertEqual(len(events), 2)
        self.assertIsNone(htevents.default_client)
        self.assertFalse(htevents.gzip)
        with self.assertRaises(ValidationError):
            htevents.track('user', 'without a key')

    def test_no_write_key_is_in_the_environment_of_a_capture(self) -> None:
        with capture():
            self.assertNotIn('HTEVENTS_WRITE_KEY', os.environ)
            Client().track('user', 'event')

    def test_other_variables_of_the_environment_are_left_alone(self) -> None:
        name = 'A_VARIABLE_OF_THE_APPLICATION'
        self.addCleanup(os.environ.pop, name, None)
        for block in (capture, collector):  # type: Any
            with block():
                os.environ[name] = block.__name__
                os.environ['HTEVENTS_GZIP'] = '1'
            self.assertEqual(os.environ[name], block.__name__)
            self.assertNotIn('HTEVENTS_GZIP', os.environ)

    def test_inside_it_is_new_and_afterwards_as_before(self) -> None:
        htevents.host = self.collector.url
        htevents.write_key = 'outside'
        htevents.track('user', 'before')
        before = htevents.default_client
        for _ in range(2):
            with capture() as events:
                htevents.track('user', 'event')
                self.assertIsNot(htevents.default_client, before)
                htevents.shutdown()
                self.assertFalse(htevents.track('user', 'late')[0])
                htevents.write_key, htevents.gzip = 'inside', True
            self.assertEqual(len(events), 1)
            self.assertIs(htevents.default_client, before)
            self.assertEqual(htevents.write_key, 'outside')
            self.assertFalse(htevents.gzip)
        self.assertTrue(htevents.track('user', 'after')[0])
        htevents.flush()
        self.assertEqual(len(self.collector.events), 2)

    def test_it_needs_no_write_key(self) -> None:
        with capture() as events:
            htevents.track('user', 'event')
        self.assertEqual(len(events), 1)
        self.assertIsNone(htevents.default_client)
        with self.assertRaises(ValidationError):
            htevents.track('user', 'event')

    def test_it_has_what_configure_was_given(self) -> None:
        def scrub(message: Dict[str, Any]) -> Any:
            return dict(message, extra=1)

        for args, given_settings in (
            ((), {'write_key': 'configured'}),
            (('configured',), {}),
        ):  # type: Any
            before = htevents.configure(*args, before_send=scrub, **given_settings)
            with capture() as events:
                htevents.track('user', 'event')
                inside = htevents.get_client()
            self.assertEqual(events[0]['extra'], 1)
            self.assertEqual(inside.write_key, 'configured')
            self.assertIsNot(inside, before)
            self.assertIs(htevents.default_client, before)
            self.assertTrue(before.track('user', 'event')[0])
            before.shutdown(0)

    def test_it_has_the_settings_of_one_that_the_application_made_itself(self) -> None:
        def scrub(message: Dict[str, Any]) -> Any:
            return dict(message, extra=1)

        mine = htevents.default_client = Client('mine', before_send=scrub)
        for block in (capture, collector):  # type: Any
            with block() as taken:
                htevents.track('user', 'event')
                self.assertEqual(htevents.get_client().write_key, 'mine')
                htevents.shutdown()
                htevents.configure()
            events = getattr(taken, 'events', taken)
            self.assertEqual([each['extra'] for each in events], [1])
            self.assertIs(htevents.default_client, mine)
        self.assertTrue(mine.track('user', 'event')[0])

    def test_one_that_is_assigned_inside_stays_open(self) -> None:
        mine = self.client()
        for block in (capture, collector):  # type: Any
            with block():
                htevents.default_client = mine
                self.assertTrue(htevents.track('user', 'event')[0])
            self.assertIsNone(htevents.default_client)
            self.assertTrue(mine.track('user', 'event')[0])
        # Neither the events of the capture nor those that wait for a later flush.
        self.assertTrue(mine.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 3)

    def test_nothing_is_captured_after_an_end_that_fails(self) -> None:
        with mock.patch.object(Client, 'shutdown', side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                with capture() as events:
                    htevents.track('user', 'event')
        self.assertTrue(self.client().track('user', 'event')[0])
        self.assertEqual(len(events), 1)
        self.assertIsNone(htevents.default_client)

    def test_one_of_another_class_stays(self) -> None:
        class Mine(Client):
            pass

        mine = htevents.default_client = Mine(TEST_WRITE_KEY, self.collector.url)
        with capture() as events:
            htevents.track('user', 'event')
            self.assertIs(htevents.default_client, mine)
        self.assertEqual(len(events), 1)
        self.assertIs(htevents.default_client, mine)

    def test_it_has_nothing_of_one_that_is_gone(self) -> None:
        htevents.configure('gone', gzip=True)
        htevents.default_client = None
        gc.collect()
        htevents.write_key = 'new'
        with capture():
            self.assertEqual(htevents.get_client().write_key, 'new')
            self.assertFalse(htevents.get_client().gzip)

    def test_it_leaves_the_spool_alone(self) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            first = htevents.configure('key', 'http://127.0.0.1:9', spool_dir=folder)
            htevents.track('user', 'durable')
            before = sorted(os.listdir(folder))
            with capture() as events:
                htevents.track('user', 'event')
                self.assertEqual(sorted(os.listdir(folder)), before)
            self.assertEqual(len(events), 1)
            first.shutdown(0)

    def test_a_collector_gets_its_events_whatever_its_settings(self) -> None:
        def configured() -> None:
            htevents.configure('key', 'http://127.0.0.1:9', send=False)

        def attributes() -> None:
            htevents.write_key, htevents.host = 'key', 'http://127.0.0.1:9'
            htevents.send = False

        def own() -> None:
            htevents.default_client = self.client(host='http://127.0.0.1:9')

        def environment() -> None:
            os.environ['HTEVENTS_SEND'] = '0'
            os.environ['HTEVENTS_HOST'] = 'http://127.0.0.1:9'

        for prepare in (environment, configured, attributes, own):
            prepare()
            before = htevents.default_client
            with collector(faults=[503]) as running:
                self.assertTrue(htevents.track('user', prepare.__name__)[0])
                self.assertTrue(htevents.flush(LIMIT))
                self.assertEqual(len(running.requests), 2)
                events = Events(running.events)
                events.assert_tracked(prepare.__name__, user_id='user', count=1)
            self.assertIs(htevents.default_client, before)

    def test_a_collector_gets_the_events_of_clients_and_processes_made_inside(
        self,
    ) -> None:
        program = (
            'import hightouch.htevents as htevents; htevents.track("user", "process")'
        )
        with collector() as running:
            with Client('key') as client:
                client.track('user', 'client')
            folder = os.path.dirname(
                os.path.dirname(os.path.dirname(htevents.__file__))
            )
            subprocess.check_call([sys.executable, '-c', program], cwd=folder)
            names = {each['event'] for each in running.events}
        self.assertEqual(names, {'client', 'process'})
        self.assertNotIn('HTEVENTS_HOST', os.environ)

    def test_a_collector_waits_for_the_last_event(self) -> None:
        with collector() as running:
            htevents.upload_interval = LIMIT * 100
            htevents.track('user', 'event')
        self.assertEqual(len(running.events), 1)


class DecoratorTest(FreshTest):
    def test_a_function_gets_the_events_of_its_call(self) -> None:
        client = self.client()

        @capture()
        def work(number: int, events: Events) -> int:
            client.track('user', 'event')
            self.assertEqual(len(events), 1)
            return number

        @capture()
        def silent() -> None:
            client.track('user', 'event')

        for number in range(3):
            self.assertEqual(work(number), number)
            silent()
        self.assertEqual(list(inspect.signature(work).parameters), ['number'])
        self.assertEqual(work.__name__, 'work')
        self.assertEqual(self.collector.requests, [])

    def test_other_arguments_keep_their_places(self) -> None:
        @capture()
        def function(one: int, events: Events, two: int, *more: int) -> Any:
            return one, len(events), two, more

        self.assertEqual(function(1, 2), (1, 0, 2, ()))
        self.assertEqual(function(1, 2, 3), (1, 0, 2, (3,)))
        self.assertEqual(function(1, two=2), (1, 0, 2, ()))

    def test_a_coroutine_function_gets_the_events_of_its_call(self) -> None:
        client = self.client()

        @capture()
        async def work(events: Events) -> int:
            client.track('user', 'event')
            return len(events)

        self.assertTrue(inspect.iscoroutinefunction(work))
        self.assertEqual(run_loop(work()), 1)

    def test_methods_of_a_test_case(self) -> None:
        client = self.client()

        class Test(unittest.TestCase):
            @capture()
            def test(self, events: Events) -> None:
                client.track('user', 'event')
                events.assert_tracked('event')

        result = unittest.TestResult()
        Test('test').run(result)
        self.assertEqual((result.errors, result.failures), ([], []))

    def test_what_runs_no_code_when_it_is_called_is_refused(self) -> None:
        def generator() -> Any:
            yield

        for wrong in (generator, unittest.TestCase, None, 7):  # type: Any
            with self.assertRaisesRegex(ValidationError, 'function: expected'):
                capture()(wrong)


class MatchTest(unittest.TestCase):
    def matches(self, actual: Any, expected: Any) -> bool:
        return bool(Events([message(properties=actual)]).find(properties=expected))

    @given(PROPERTIES)
    def test_what_a_call_was_given_matches(self, properties: Dict[str, Any]) -> None:
        client = Client(TEST_WRITE_KEY, send=False)
        with capture() as events:
            client.track('user', 'event', properties)
        events.assert_tracked('event', properties=properties, user_id='user', count=1)
        for key in properties:
            events.assert_tracked('event', properties={key: properties[key]})
            one_more = dict(properties, more=properties[key])
            self.assertEqual(events.find(properties=one_more), [])

    @given(JSON, JSON)
    def test_only_equal_json_matches(self, one: Any, other: Any) -> None:
        def text(value: Any) -> str:
            # 1.0 is 1, as in any JSON; true is not 1.
            if isinstance(value, dict):
                return 'dict %s' % sorted((k, text(v)) for k, v in value.items())
            if isinstance(value, list):
                return str([text(each) for each in value])
            is_whole = isinstance(value, float) and value == int(value)
            return repr(int(value) if is_whole else value)

        is_same = text(one) == text(other)
        both = self.matches({'a': one}, {'a': other}) and self.matches(
            {'a': other}, {'a': one}
        )
        self.assertEqual(both, is_same)

    def test_a_dict_matches_by_its_keys_and_a_list_by_all_elements(self) -> None:
        actual = {'a': 1, 'b': [{'c': 1, 'd': 2}, 3], 'e': None}
        for expected in (
            {},
            {'a': 1},
            {'a': mock.ANY},
            {'b': [{'c': 1}, 3]},
            {'b': [mock.ANY, 3]},
            {'b': ({'d': 2}, 3)},
            {'e': None},
        ):  # type: Any
            self.assertTrue(self.matches(actual, expected), expected)
        for expected in (
            {'a': 2},
            {'a': True},
            {'a': '1'},
            {'a': None},
            {'a': {}},
            {'b': []},
            {'b': [{'c': 1}]},
            {'b': [3, {'c': 1}]},
            {'b': [{'c': 1, 'x': mock.ANY}, 3]},
            {'f': None},
            {'f': mock.ANY},
            {'a': object()},
        ):
            self.assertFalse(self.matches(actual, expected), expected)

    def test_what_is_no_json_matches_what_a_call_makes_of_it(self) -> None:
        class Colour(enum.Enum):
            RED = 'red'

        moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
        values = {
            'moment': moment,
            'date': datetime.date(2026, 1, 2),
            'decimal': decimal.Decimal('9.50'),
            'uuid': uuid.UUID(int=7),
            'enum': Colour.RED,
            'tuple': (1, (2, 3)),
            'bytes': b'abc',
            1: 'number',
        }
        client = Client(TEST_WRITE_KEY, send=False)
        with capture() as events:
            client.track(7, 'event', values, timestamp=moment)  # type: ignore[arg-type]
        events.assert_tracked('event', user_id=7, timestamp=moment, properties=values)
        for name in values:
            self.assertEqual(events.find(properties={name: 'other'}), [])
        self.assertEqual(events.find(user_id=8), [])
        self.assertEqual(events.find(timestamp=moment.replace(hour=4)), [])

    def test_an_object_matches_its_fields_or_its_text(self) -> None:
        class pair:
            __attrs_attrs__ = [types.SimpleNamespace(name=name) for name in ('a', 'b')]

            def __init__(self, a: Any, b: Any) -> None:
                self.a, self.b = a, b

        values = {
            'fields': pair(1, [pair(uuid.UUID(int=7), 'two')]),
            'path': pathlib.PurePosixPath('/a/b'),
            'address': ipaddress.ip_address('192.0.2.1'),
            'range': range(3),
            'fraction': fractions.Fraction(1, 2),
        }  # type: Any
        client = Client(TEST_WRITE_KEY, send=False)
        with capture() as events:
            client.track('user', 'event', values)
        events.assert_tracked('event', properties=values)
        for name in values:
            self.assertEqual(events.find(properties={name: pair(1, 3)}), [])
        partly = {'fields': pair(mock.ANY, [{'b': 'two'}])}
        events.assert_tracked('event', properties=partly)

    def test_a_set_matches_in_any_order(self) -> None:
        self.assertTrue(self.matches({'a': [8, 0, 'x']}, {'a': {0, 8, 'x'}}))
        self.assertFalse(self.matches({'a': [8, 0]}, {'a': {0, 8, 'x'}}))
        self.assertFalse(self.matches({'a': [8, 0, 0]}, {'a': {0, 8}}))

    def test_an_iterator_is_not_consumed(self) -> None:
        numbers = iter([1, 2])
        self.assertFalse(self.matches({'a': [1, 2]}, {'a': numbers}))
        self.assertEqual(next(numbers), 1)

    def test_a_time_as_text_matches_what_a_call_makes_of_it(self) -> None:
        events = Events([message(timestamp='2026-01-02T03:04:05.000+00:00')])
        self.assertTrue(events.find(timestamp='2026-01-02T03:04:05Z'))
        self.assertEqual(events.find(timestamp='2026-01-02T03:04:06Z'), [])
        self.assertEqual(events.find(timestamp='yesterday'), [])

    def test_a_matcher_of_its_own_decides(self) -> None:
        class Above:
            def __init__(self, least: int) -> None:
                self.least = least

            def __eq__(self, other: Any) -> bool:
                return bool(other > self.least)

        class Raises:
            def __eq__(self, other: Any) -> bool:
                raise ValueError('no truth value')

        class InAnyOrder(list):  # type: ignore[type-arg]
            def __eq__(self, other: Any) -> bool:
                return sorted(self) == sorted(other)

        self.assertTrue(self.matches({'a': [2, 1]}, {'a': InAnyOrder([1, 2])}))
        self.assertFalse(self.matches({'a': [2, 1]}, {'a': InAnyOrder([1, 3])}))
        self.assertFalse(self.matches({}, {'a': InAnyOrder()}))
        same = collections.OrderedDict(b=1)
        self.assertTrue(self.matches({'a': {'b': 1}}, {'a': same}))
        self.assertFalse(self.matches({'a': {'b': True}}, {'a': same}))
        self.assertTrue(self.matches({'a': 7}, {'a': Above(6)}))
        self.assertFalse(self.matches({'a': 7}, {'a': Above(7)}))
        self.assertFalse(self.matches({'a': 7}, {'a': Raises()}))
        events = Events([message(event='Order placed', type='track')])
        self.assertTrue(events.find(event=mock.ANY, user_id=mock.ANY))

    def test_a_name_that_no_field_has_is_an_error(self) -> None:
        for name in ('usr_id', 'userId', 'property', 'nonsense'):
            with self.assertRaisesRegex(TypeError, 'no field %s ' % name):
                Events().find(**{name: 1})
        with self.assertRaisesRegex(TypeError, 'did you mean user_id'):
            Events().none(userId=1)


class FailureTest(unittest.TestCase):
    def failure(self, events: Events, *args: Any, **fields: Any) -> str:
        with self.assertRaises(AssertionError) as caught:
            events.assert_tracked(*args, **fields)
        return str(caught.exception)

    def test_it_says_what_was_expected_what_came_nearest_and_where_they_differ(
        self,
    ) -> None:
        events = Events(
            [
                message(event='Signed up', userId='u1', properties={'total': 9.5}),
                message(event='Order placed', userId='u2', properties={'total': 9}),
                message(event='Order placed', userId='u2', properties={}),
                message(type='identify', userId='u1', traits={}),
            ]
        )
        text = self.failure(
            events, 'Order placed', user_id='u1', properties={'total': 9.5}
        )
        for line in (
            "    event: 'Order placed'",
            "    userId: 'u1'",
            "    properties: {'total': 9.5}",
            "    userId: expected 'u1', got 'u2'",
            '    properties.total: expected 9.5, got 9',
            '        "total": 9',
            "    track 'Signed up' of 'u1'",
            "    identify of 'u1'",
        ):
            self.assertIn(line, text.splitlines())

    def test_a_mistyped_name_is_nearer_than_another_event(self) -> None:
        events = Events(
            [
                message(event='Signed up', userId='u1'),
                message(event='Order placed', userId='u2'),
            ]
        )
        text = self.failure(events, 'Order Placed', user_id='u1')
        self.assertIn("event: expected 'Order Placed', got 'Order placed'", text)

    def test_places_inside_lists_are_named(self) -> None:
        events = Events([message(event='e', properties={'a': [{'b': 1}, {'b': 2}]})])
        text = self.failure(events, 'e', properties={'a': [{'b': 1}, {'c': 3}]})
        self.assertIn('properties.a[1].c: expected 3, it is missing', text)
        text = self.failure(events, 'e', properties={'a': [1]})
        self.assertIn("properties.a: expected [1], got [{'b': 1}, {'b': 2}]", text)

    def test_an_event_that_lacks_a_field_is_farther_than_another_value(self) -> None:
        events = Events(
            [
                message(event='e', properties={}),
                message(event='e', properties={'total': 9}),
                message(type='group', groupId=7),
            ]
        )
        text = self.failure(events, 'e', properties={'total': 9.5})
        self.assertIn('properties.total: expected 9.5, got 9', text)
        with self.assertRaisesRegex(AssertionError, "groupId: expected '7', got 7"):
            events.assert_event(group_id='7')

    def test_the_end_of_a_long_value_is_shown_where_it_differs(self) -> None:
        events = Events([message(event='e', properties={'a': 'a' * 999 + '1'})])
        text = self.failure(events, 'e', properties={'a': 'a' * 999 + '2'})
        self.assertRegex(text, "properties.a: expected …a{20,200}2', got …a{20,200}1'")

    def test_long_expectations_are_shown(self) -> None:
        properties = {'key-%d' % number: number for number in range(40)}
        text = self.failure(Events(), 'e', properties=properties)
        self.assertIn("'key-39': 39", text)

    def test_a_key_cannot_begin_a_line(self) -> None:
        events = Events([message(event='e', properties={'a\n\x1b': 1})])
        text = self.failure(events, 'e', properties={'a\n\x1b': 2})
        self.assertRegex(text, r'properties\.a\\n\\x1b: expected 2, got 1')
        self.assertNotIn('\x1b', text)

    def test_without_any_event_it_says_so(self) -> None:
        self.assertIn('none at all', self.failure(Events(), 'e'))

    def test_a_wrong_count_shows_what_matches(self) -> None:
        events = Events([message(event='e')] * 2)
        text = self.failure(events, 'e', count=1)
        self.assertIn('expected 1 event(s)', text)
        self.assertIn('but got 2:', text)
        self.assertEqual(events.assert_tracked('e', count=2), events[0])
        self.assertIn('expected 0 event(s)', self.failure(events, 'e', count=0))
        self.assertEqual(events.assert_tracked('other', count=0), {})

    def test_none_shows_the_first_that_came(self) -> None:
        events = Events([message(event='a'), message(event='b')])
        self.assertTrue(events.none(event='c'))
        with self.assertRaisesRegex(AssertionError, '"event": "b"'):
            events.none(event='b')
        with self.assertRaisesRegex(AssertionError, 'but got 2'):
            events.none()
        events.clear()
        self.assertTrue(events.none())

    def test_a_large_event_is_cut(self) -> None:
        events = Events([message(event='e', properties={'a': 'a' * 100000})] * 1000)
        self.assertLess(len(self.failure(events, 'other', properties={'a': 1})), 10000)


# A run of pytest with a test for each fixture, by a stand-in for pytest.
PYTEST = """
import contextlib, os, sys, types, typing

class MonkeyPatch:
    # As that of pytest: the undo of an attribute fails if it is not there, of an item not.
    def __init__(self):
        self.attributes, self.items = [], []

    def setattr(self, target, name, value):
        self.attributes.append((target, name, vars(target).get(name, self)))
        setattr(target, name, value)

    def setitem(self, target, name, value):
        self.items.append((target, name, target.get(name, self)))
        target[name] = value

    def setenv(self, name, value):
        self.setitem(os.environ, name, value)

    def undo(self):
        for target, name, value in reversed(self.attributes):
            if value is self:
                delattr(target, name)
            else:
                setattr(target, name, value)
        for target, name, value in reversed(self.items):
            target.pop(name, None)
            if value is not self:
                target[name] = value

sys.modules['pytest'] = pytest = types.ModuleType('pytest')
pytest.fixture = lambda function: function
before = set(sys.modules)
import hightouch.htevents_pytest as plugin
new = set(sys.modules) - before
assert new == {'hightouch', 'hightouch.htevents_pytest'}, new
for name in ('htevents_capture', 'htevents_collector'):
    patch = MonkeyPatch()
    fixture = getattr(plugin, name)(patch)
    given = next(fixture)
    import hightouch.htevents as htevents
    patch.setattr(htevents, 'gzip', True)
    assert htevents.track('user', name)[0]
    htevents.flush()
    patch.setattr(htevents, 'default_client', None)
    patch.setenv('HTEVENTS_WRITE_KEY', 'other')
    events = getattr(given, 'events', given)
    assert [each['event'] for each in events] == [name], events
    assert next(fixture, None) is None
    patch.undo()
    assert htevents.default_client is None
    assert not htevents.gzip
    assert not [each for each in os.environ if each.startswith('HTEVENTS')]
"""


class PluginTest(unittest.TestCase):
    def test_it_imports_the_package_in_a_fixture_and_leaves_patches_to_their_undo(
        self
    ) -> None:
        environment = {
            name: os.environ[name] for name in os.environ if name[:8] != 'HTEVENTS'
        }
        folder = os.path.dirname(os.path.dirname(os.path.dirname(htevents.__file__)))
        subprocess.check_call(
            [sys.executable, '-c', PYTEST], cwd=folder, env=environment
        )
