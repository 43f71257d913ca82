import contextlib
import copy
import gc
import inspect
import io
import json
import logging
import threading
import types
import unittest
import warnings
from collections import OrderedDict
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any, Dict, List
from uuid import UUID

import mock
import requests

from hightouch.htevents import BeforeSendError, Client, MessageTooLargeError
from hightouch.htevents.collector import check_event
from hightouch.htevents.consumer import MAX_MSG_SIZE, Consumer
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.support import (
    LIMIT,
    LogCatcher,
    Recorder,
    TestCase,
)
from hightouch.htevents.version import VERSION


class QueryDict(dict):  # type: ignore[type-arg]
    """Stores lists and says their last values, as Django's does."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key)[-1]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


class Text(str):
    pass


# Every call with the least it needs.
CALLS = {
    'identify': {'user_id': 'user'},
    'track': {'user_id': 'user', 'event': 'event'},
    'alias': {'user_id': 'user', 'previous_id': 'previous'},
    'group': {'user_id': 'user', 'group_id': 'group'},
    'page': {'user_id': 'user'},
    'screen': {'user_id': 'user'},
}  # type: Dict[str, Dict[str, Any]]


class CallTest(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.quiet = Client('key', self.collector.url, send=False)

    def message(self, call: str, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        accepted, message = getattr(self.quiet, call)(*args, **kwargs)
        self.assertTrue(accepted)
        return message  # type: ignore[no-any-return]

    def test_each_call_takes_its_arguments_in_the_published_order(self) -> None:
        moment = datetime(2026, 1, 2, tzinfo=timezone.utc)
        tail = ({'ip': '::1'}, moment, 'anonymous', {'All': True}, 'id-1')
        both = {
            'userId': 'user',
            'anonymousId': 'anonymous',
            'timestamp': '2026-01-02T00:00:00.000+00:00',
            'integrations': {'All': True},
            'messageId': 'id-1',
            'context': {
                'ip': '::1',
                'library': {'name': 'events-sdk-python', 'version': VERSION},
            },
        }
        view = {'category': 'c', 'name': 'n', 'properties': {'a': 1}}
        for call, args, expected in (
            ('identify', ('user', {'a': 1}) + tail, {'traits': {'a': 1}}),
            (
                'track',
                ('user', 'event', {'a': 1}) + tail,
                {'event': 'event', 'properties': {'a': 1}},
            ),
            (
                'group',
                ('user', 'group', {'a': 1}) + tail,
                {'groupId': 'group', 'traits': {'a': 1}},
            ),
            ('page', ('user', 'c', 'n', {'a': 1}) + tail, view),
            ('screen', ('user', 'c', 'n', {'a': 1}) + tail, view),
            (
                'alias',
                ('previous', 'user') + tail[:2] + tail[3:],
                {'previousId': 'previous', 'anonymousId': None},
            ),
        ):
            wanted = dict(both, type=call)
            wanted.update(expected)
            self.assertEqual(self.message(call, *args), wanted)

    def test_what_was_not_given_goes_as_null_or_an_empty_dict(self) -> None:
        self.assertLessEqual(
            {
                'event': 'event',
                'properties': {},
                'anonymousId': None,
                'integrations': {},
            }.items(),
            self.message('track', 'user', 'event').items(),
        )
        page = self.message('page', 'user')
        self.assertIsNone(page['name'])
        self.assertIsNone(page['category'])

    def test_every_message_is_one_that_the_collector_takes(self) -> None:
        for call, arguments in CALLS.items():
            message = self.message(call, **arguments)
            self.assertEqual(check_event(message), [], call)

    def test_the_message_returned_is_what_arrives(self) -> None:
        client = self.client()
        for call, arguments in CALLS.items():
            message = getattr(client, call)(**arguments)[1]
            client.flush(LIMIT)
            self.assertEqual(self.collector.events[-1], message)
        values = {
            'tuple': (1, [2, (3,)]),
            1: 'a key',
            'inner': {None: 1, True: 2, 2.5: ()},
            'set': {4},
            'own': QueryDict(q=['shoes', 'hats']),
            'nan': float('nan'),
            'text': Text('text'),
        }
        for call, name in (
            ('track', 'properties'),
            ('identify', 'traits'),
            ('track', 'context'),
            ('track', 'integrations'),
        ):
            arguments = dict(CALLS[call], **{name: values})
            message = getattr(client, call)(**arguments)[1]
            client.flush(LIMIT)
            self.assertEqual(self.collector.events[-1], message)
            if name in ('properties', 'traits'):
                self.assertIs(type(message[name]['text']), str)

    def test_the_message_returned_shares_nothing_with_the_callers_objects(self) -> None:
        for call, name in (
            ('track', 'properties'),
            ('identify', 'traits'),
            ('group', 'traits'),
            ('page', 'properties'),
            ('screen', 'properties'),
            ('alias', 'context'),
            ('track', 'context'),
            ('track', 'integrations'),
        ):
            for given in (
                {'a': {'b': [1, {'c': 2}]}},
                {'a': {'b': [1, {'c': 2}]}, 'slow': {1}},
                OrderedDict(a={'b': [1, OrderedDict(c=2)]}),
            ):  # type: Any
                before = copy.deepcopy(given)
                message = self.message(call, **dict(CALLS[call], **{name: given}))
                message[name]['a']['b'][1]['c'] = 'changed'
                message[name]['a']['b'].append('changed')
                message[name]['new'] = 'changed'
                self.assertEqual(given, before, (call, name))

    def test_a_dict_subclass_is_what_its_items_say(self) -> None:
        given = QueryDict(q=['shoes', 'hats'])
        for call, name in (
            ('track', 'properties'),
            ('identify', 'traits'),
            ('group', 'traits'),
            ('track', 'context'),
            ('track', 'integrations'),
        ):
            for value, at in ((given, []), ({'in': [given]}, ['in', 0])):  # type: Any
                sent = self.message(call, **dict(CALLS[call], **{name: value}))[name]
                for step in at:
                    sent = sent[step]
                self.assertEqual(sent['q'], 'hats', (call, name))

    def test_falsy_stand_ins_count_as_not_given(self) -> None:
        for value in ([], '', (), 0, 0.0, False, b'', set(), Decimal(0)):  # type: Any
            for call, name in (
                ('track', 'properties'),
                ('identify', 'traits'),
                ('group', 'traits'),
                ('page', 'properties'),
                ('alias', 'integrations'),
            ):
                message = self.message(call, **dict(CALLS[call], **{name: value}))
                self.assertEqual(message[name], {})
            context = self.message('track', 'u', 'e', context=value)['context']
            self.assertEqual(list(context), ['library'])
            for call in ('page', 'screen'):
                for name in ('name', 'category'):
                    message = self.message(call, 'u', **{name: value})
                    self.assertIsNone(message[name])

    def test_an_anonymous_id_of_any_type_beside_a_user_id_becomes_text(self) -> None:
        for value in (b'x', ['x'], UUID(int=5), True, False, [], {}, 1.5, date.max):
            message = self.message('track', 'u', 'e', anonymous_id=value)
            self.assertEqual(message['anonymousId'], str(value))
        for user_id in (None, ''):
            with self.assertRaises(AssertionError):
                self.quiet.track(user_id, 'e', anonymous_id=[1])  # type: ignore[arg-type]

    def test_numbers_as_ids_become_strings_and_other_ids_go_as_given(self) -> None:
        self.assertEqual(self.message('track', 7, 'event')['userId'], '7')
        self.assertEqual(
            self.message('identify', anonymous_id=2**70)['anonymousId'], str(2**70)
        )
        self.assertEqual(self.message('group', 1, 2**70)['groupId'], 2**70)
        self.assertEqual(self.message('alias', 2**70, 1)['previousId'], 2**70)
        self.assertIn(str(2**70), self.client(send=False).group(1, 2**70)[1].__repr__())

    def test_a_dict_that_cannot_be_copied_loses_itself_and_not_the_event(self) -> None:
        class Broken(dict):  # type: ignore[type-arg]
            def keys(self) -> Any:
                raise OSError('no')

            def __iter__(self) -> Any:
                raise OSError('no')

        class Late(dict):  # type: ignore[type-arg]
            def items(self) -> Any:
                return [('a', 1)]

            def __iter__(self) -> Any:
                raise RuntimeError('changed size during iteration')

        for value, wanted in ((Broken(a=1), {'a': 1}), (Late(a=1), {'a': 1})):
            message = self.message('track', 1, 'e', value)
            self.assertEqual(message['properties'], wanted)

    def test_message_ids_are_fresh_uuid4s(self) -> None:
        ids = {self.message('track', 1, 'e')['messageId'] for _ in range(1000)}
        ids.add(self.message('track', 1, 'e', message_id='')['messageId'])
        self.assertEqual(len(ids), 1001)
        for each in ids:
            self.assertRegex(
                each,
                '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-'
                '[0-9a-f]{12}$',
            )

    def test_timestamps_are_datetimes_or_iso_strings_in_milliseconds(self) -> None:
        plus2 = timezone(timedelta(hours=2))
        for value, wanted in (
            (datetime(2026, 1, 2, 3, 4, 5, 678901, plus2), '03:04:05.678+02:00'),
            ('2026-01-02T03:04:05Z', '03:04:05.000+00:00'),
            ('2026-01-02T03:04:05.5+02:00', '03:04:05.500+02:00'),
            ('2026-01-02', '00:00:00.000+00:00'),
        ):
            message = self.message('track', 1, 'e', timestamp=value)
            self.assertEqual(message['timestamp'], '2026-01-02T' + wanted)

    def test_wrong_arguments_raise_an_assertion_error_that_says_what_came(self) -> None:
        client = self.quiet
        for call, args, kwargs, named in (
            ('track', (), {'event': 'e'}, 'user_id'),
            ('track', (None, 'e'), {}, 'user_id'),
            ('track', ('', 'e'), {}, 'user_id'),
            ('track', ([], 'e'), {}, 'user_id'),
            ('track', (True, 'e'), {}, 'user_id'),
            ('track', (None, 'e'), {'anonymous_id': b'a'}, 'anonymous_id'),
            ('track', ('', 'e'), {'anonymous_id': True}, 'anonymous_id'),
            ('track', ([], 'e'), {'anonymous_id': 'a'}, 'user_id'),
            ('track', ('u',), {}, 'event'),
            ('track', ('u', 7), {}, 'event'),
            ('track', ('u', 'e', ['p']), {}, 'properties'),
            ('track', ('u', 'e'), {'context': 'c'}, 'context'),
            ('track', ('u', 'e'), {'integrations': [1]}, 'integrations'),
            ('track', ('u', 'e'), {'timestamp': 'yesterday'}, 'timestamp'),
            ('track', ('u', 'e'), {'timestamp': 'May'}, 'timestamp'),
            ('track', ('u', 'e'), {'timestamp': '2026-13-45'}, 'timestamp'),
            ('track', ('u', 'e'), {'timestamp': 5}, 'timestamp'),
            ('track', ('u', 'e'), {'timestamp': date(2026, 1, 1)}, 'timestamp'),
            ('identify', ('u', 't'), {}, 'traits'),
            ('group', ('u',), {}, 'group_id'),
            ('group', ('u', True), {}, 'group_id'),
            ('group', ('u', float('nan')), {}, 'group_id'),
            ('group', ('u', Decimal('sNaN')), {}, 'group_id'),
            ('group', ('u', float('inf')), {}, 'group_id'),
            (
                'track',
                (1, 'e'),
                {'timestamp': '2026-01-02T03:04:05+99:99'},
                'timestamp',
            ),
            ('group', ('u', 'g', 1), {}, 'traits'),
            ('alias', (None, 'u'), {}, 'previous_id'),
            ('alias', ('p',), {}, 'user_id'),
            ('page', ('u', 1), {}, 'category'),
            ('screen', ('u', 'c', 1), {}, 'name'),
        ):  # type: Any
            with self.assertRaises(AssertionError, msg=(call, args)) as caught:
                getattr(client, call)(*args, **kwargs)
            self.assertIn(named, str(caught.exception))
            self.assertIn('expected', str(caught.exception))
        self.assertEqual(client.stats().accepted, 0)

    def test_a_message_over_32_kib_raises_a_readable_runtime_error(self) -> None:
        with self.assertRaises(RuntimeError) as caught:
            self.quiet.track('u', 'e', {'text': 'é' * 17000})
        self.assertIsInstance(caught.exception, MessageTooLargeError)
        self.assertIn('32768', str(caught.exception))
        self.assertTrue(self.quiet.track('u', 'e', {'text': 'é' * 16000})[0])

    def test_wrong_settings_raise_an_assertion_error(self) -> None:
        for wrong in (
            {'write_key': None},
            {'write_key': ''},
            {'write_key': 7},
            {'host': 7},
            {'host': b'https://example.com'},
            {'upload_size': 0},
            {'thread': 0},
            {'max_queue_size': None},
            {'max_queue_size': '10'},
            {'thread': float('inf')},
            {'thread': 1j},
            {'upload_size': float('nan')},
            {'upload_size': Decimal('sNaN')},
            {'upload_interval': -1},
            {'timeout': (1, 0)},
            {'timeout': (1, 2, 3)},
            {'timeout': 10**5000},
            {'upload_interval': -(10**5000)},
            {'log_handler': logging.StreamHandler},
            {'log_handler': 5},
            {'upload_interval': 'soon'},
            {'timeout': -1},
            {'timeout': 0},
            {'timeout': float('inf')},
            {'max_retries': None},
            {'on_error': 'me'},
            {'before_send': 1},
            {'proxies': 7},
        ):  # type: Any
            with self.assertRaises(AssertionError, msg=str(list(wrong))) as caught:
                Client(**dict({'write_key': 'k'}, **wrong))
            self.assertIn('expected', str(caught.exception))

    def test_settings_that_worked_in_0_0_4_work_still(self) -> None:
        for settings in (
            {'max_queue_size': -5},
            {'max_queue_size': 2.5},
            {'max_queue_size': float('inf')},
            {'max_queue_size': True},
            {'max_queue_size': 10**30},
            {'sync_mode': True, 'thread': 0},
            {'max_retries': -1},
            {'max_retries': 2.5},
            {'max_retries': float('inf')},
            {'thread': True},
            {'upload_size': 1.5},
            {'upload_size': Decimal(3)},
            {'upload_interval': Fraction(1, 10)},
            {'upload_interval': True},
            {'timeout': (3, 10)},
            {'timeout': (3, None)},
            {'on_error': False, 'log_handler': False},
            {'on_error': 0, 'log_handler': ''},
            {'on_error': ''},
            {'proxies': ''},
            {'proxies': {'http': None, 'https': None}},
            {'write_key': ' key\n'},
            {'host': '\n %s/ \t' % self.collector.url},
        ):  # type: Any
            with LogCatcher() as log:
                client = self.client(**settings)
                self.assertTrue(client.track('u', 'e')[0], settings)
                self.assertTrue(client.shutdown(LIMIT), settings)
            self.assertEqual(client.stats().delivered, 1, settings)
            self.assertEqual(log.lines(logging.INFO), [])
        self.assertEqual(self.collector.requests[-2].body['writeKey'], 'key')
        self.assertEqual(Client('k', host=' ', send=False).host, None)
        self.assertTrue(self.quiet.shutdown(10**400))

    def test_a_full_queue_holds_a_fraction_rounded_up(self) -> None:
        client = self.holding(max_queue_size=2.5)
        taken = [client.track('u', 'e')[0] for _ in range(5)]
        self.assertEqual(taken, [True] * 3 + [False] * 2)

    def test_a_host_without_a_scheme_is_warned_of_and_loses_its_events_at_once(
        self,
    ) -> None:
        lost, lines = Recorder(), LogCatcher()
        client = self.client(host='example.com', on_error=lost, log_handler=lines)
        (line,) = lines.lines(logging.WARNING)
        self.assertIn('https://', line)
        self.assertEqual(client.host, 'example.com')
        client.track('u', 'e')
        self.assertTrue(client.flush(LIMIT))
        self.assertIsInstance(lost.calls[0][0], requests.exceptions.MissingSchema)
        self.assertEqual(client.stats().retried, 0)

    def test_every_falsy_callback_means_none(self) -> None:
        for none in (False, 0, '', [], None):  # type: Any
            client = self.client(on_error=none, on_success=none, before_send=none)
            self.collector.script(400)
            client.track('u', 'lost')
            client.flush(LIMIT)
            client.track('u', 'delivered')
            self.assertTrue(client.shutdown(LIMIT))
            stats = client.stats()
            self.assertEqual((stats.delivered, stats.failed), (1, 1))

    def test_callbacks_that_a_call_does_not_run_are_refused_with_the_reason(
        self
    ) -> None:
        async def plain(*args: Any) -> None:
            ...

        async def generating(*args: Any) -> Any:
            yield args

        def yielding(*args: Any) -> Any:
            yield args

        @types.coroutine
        def old(*args: Any) -> Any:
            yield from ()

        class Methods:
            async def __call__(self, *args: Any) -> None:
                ...

            async def method(self, *args: Any) -> None:
                ...

            @classmethod
            async def of_the_class(cls, *args: Any) -> None:
                ...

            @staticmethod
            async def static(*args: Any) -> None:
                ...

        class Closed:
            def __call__(self, *args: Any) -> None:
                ...

            def __getattr__(self, name: str) -> Any:
                raise RuntimeError(name)

        refused = [plain, generating, yielding, old, Methods(), Methods().method]
        refused += [Methods.of_the_class, Methods.static, partial(partial(plain), 1)]
        refused += [lru_cache(maxsize=1)(plain), types.MethodType(Methods(), 1)]
        if hasattr(mock, 'AsyncMock'):
            refused.append(mock.AsyncMock())
        for name in ('on_error', 'on_success', 'before_send'):
            for callback in refused:  # type: Any
                with self.assertRaises(ValidationError) as caught:
                    Client('key', **{name: callback})
                self.assertIn(name, str(caught.exception))
                self.assertRegex(str(caught.exception), 'got an? (async|generator)')
            taken = [mock.Mock(), mock.MagicMock(), mock.Mock(spec=print), Closed()]
            for callback in taken + [print, Recorder(), dict, partial(print)]:
                self.client(**{name: callback})
        with self.assertRaises(ValidationError):
            Consumer(None, 'key', on_error=plain)

    def test_a_callback_that_returns_a_coroutine_is_one_warning(self) -> None:
        async def later(*args: Any) -> None:
            ...

        client = self.client(sync_mode=True, on_success=lambda *args: later(*args))
        with LogCatcher() as log, warnings.catch_warnings():
            warnings.simplefilter('error')
            client.track('user', 'event')
            gc.collect()
            ((line,)) = log.lines(logging.WARNING)
        self.assertIn('coroutine', line)

    def test_a_timeout_that_is_no_number_is_an_assertion_error(self) -> None:
        with self.assertRaises(AssertionError):
            self.quiet.flush('soon')  # type: ignore[arg-type]
        with self.assertRaises(AssertionError):
            self.quiet.flush(float('nan'))

    def test_a_value_that_tells_nothing_of_its_class_is_an_assertion_error(
        self
    ) -> None:
        class Silent:
            @property  # type: ignore[misc]
            def __class__(self) -> Any:
                raise RuntimeError('no class')

        class Nameless(type):
            @property
            def __name__(cls) -> Any:
                raise RuntimeError('no name')

        def refuse(self: Any, *args: Any) -> Any:
            raise RuntimeError('no answer')

        names = ('bool', 'len', 'str', 'repr', 'fspath', 'int', 'float', 'lt', 'eq')
        methods = {'__%s__' % name: refuse for name in names}  # type: Any
        values = [Nameless('Kind', (Silent,), {})(), Silent()]  # type: Any
        values += [type('Mute', (base,), methods)() for base in (object, int, float)]
        needed = {'event': 'event', 'group_id': 'group', 'previous_id': 'id'}
        needed['user_id'] = 'user'
        calls: List[Any] = [
            (getattr(self.quiet, name), inspect.signature(getattr(Client, name)))
            for name in ('track', 'identify', 'group', 'alias', 'page', 'screen')
        ]
        calls += [(self.quiet.flush, inspect.signature(Client.flush))]
        calls += [(partial(Client, 'key'), inspect.signature(Client))]
        refused = 0
        for call, signature in calls:
            for name in list(signature.parameters):
                for value in values:
                    given = {
                        key: needed[key]
                        for key in signature.parameters
                        if key in needed
                    }  # type: Any
                    given[name] = value
                    try:
                        call(**given)
                    except AssertionError as error:
                        self.assertIn('expected', str(error))
                        refused += 1
                    except TypeError:
                        self.assertIn(name, ('self', 'write_key'))  # twice
        self.assertGreater(refused, 300)

    def test_before_send_may_return_what_tells_nothing_of_its_class(self) -> None:
        class Silent:
            @property  # type: ignore[misc]
            def __class__(self) -> Any:
                raise RuntimeError('no class')

        on_error = Recorder()
        client = self.client(before_send=lambda message: Silent(), on_error=on_error)
        self.assertFalse(client.track('user', 'event')[0])
        self.assertIn('got Silent', str(on_error.calls[0][0]))


class DeliveryTest(TestCase):
    def test_a_lone_event_leaves_within_upload_interval(self) -> None:
        self.client(upload_interval=0.05).track('user', 'event')
        self.assertTrue(self.collector.wait_for(1))

    def test_a_full_batch_leaves_at_once(self) -> None:
        client = self.client(upload_interval=LIMIT * 10, upload_size=10)
        for _ in range(20):
            client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(20))
        self.assertEqual(len(self.collector.requests), 2)

    def test_a_batch_that_is_full_by_size_leaves_at_once(self) -> None:
        client = self.client(upload_interval=LIMIT * 10)
        for _ in range(20):
            client.track('user', 'event', {'text': 'x' * 30000})
        self.assertTrue(self.collector.wait_for(15))

    def test_flush_leaves_at_once(self) -> None:
        client = self.client(upload_interval=LIMIT * 10)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)

    def test_light_traffic_is_not_split_over_the_threads(self) -> None:
        client = self.client(thread=4, upload_interval=LIMIT * 10)
        for _ in range(20):
            client.track('user', 'event')
        client.flush(LIMIT)
        self.assertEqual(len(self.collector.requests), 1)

    def test_threads_really_send_side_by_side(self) -> None:
        together = threading.Barrier(4)

        def meet(received: Any) -> int:
            together.wait(LIMIT)
            return 200

        self.collector.script(*[meet] * 4)
        client = self.client(thread=4, upload_size=1)
        for _ in range(4):
            client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertFalse(together.broken)

    def test_each_setting_of_the_request_is_used(self) -> None:
        self.sent(gzip=True)
        request = self.collector.requests[-1]
        self.assertEqual(request.headers['content-encoding'], 'gzip')
        self.assertEqual(request.headers['user-agent'], 'events-sdk-python/' + VERSION)
        self.assertEqual(request.body['writeKey'], TEST_WRITE_KEY)
        self.assertEqual(request.path, '/v1/batch')

    def test_send_false_checks_and_builds_and_does_nothing_else(self) -> None:
        client = self.client(send=False, max_queue_size=1, thread=2)
        threads = set(threading.enumerate())
        with LogCatcher() as log:
            for number in range(10050):
                accepted, message = client.track('user', 'event', {'n': number})
                self.assertIs(accepted, True)
                self.assertEqual(message['properties'], {'n': number})
        self.assertEqual(log.lines(), [])
        self.assertTrue(client.queue.empty())
        stats = client.stats()
        self.assertEqual((stats.accepted, stats.pending, stats.refused), (0, 0, 0))
        self.assertRaises(AssertionError, client.track, None, 'event')
        self.assertRaises(RuntimeError, client.track, 'user', 'e' * MAX_MSG_SIZE)
        client.queue.put({'put': 'by hand'})
        self.assertTrue(client.flush(0) and client.shutdown(0) and client.join(0))
        self.assertIs(client.track('user', 'event')[0], True)
        self.assertEqual(set(threading.enumerate()) - threads, set())
        self.assertEqual(self.collector.requests, [])

    def test_send_false_applies_to_sync_mode_and_before_send_as_well(self) -> None:
        client = self.client(
            send=False, sync_mode=True, before_send=lambda message: {'scrubbed': True}
        )
        self.assertEqual(client.track('user', 'event'), (True, {'scrubbed': True}))
        dropping = self.client(send=False, before_send=lambda message: None)
        self.assertIs(dropping.track('user', 'event')[0], False)
        self.assertEqual(dropping.stats().refused, 0)
        self.assertEqual(self.collector.requests, [])

    def test_a_full_queue_refuses_what_is_too_much_and_warns_once(self) -> None:
        client = self.holding(max_queue_size=100)
        results = []  # type: List[bool]

        def work() -> None:
            for _ in range(50):
                results.append(client.track('user', 'event')[0])

        threads = [threading.Thread(target=work) for _ in range(8)]
        with LogCatcher() as log:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT)
        # Threads that look for room at the same moment may each find the last place.
        self.assertLess(results.count(True), 100 + len(threads))
        self.assertGreaterEqual(results.count(True), 100)
        self.assertEqual(client.stats().refused, results.count(False))
        self.assertTrue(client.queue.full())
        self.assertEqual(len([x for x in log.lines() if 'full' in x]), 1, log.lines())

    def test_a_full_queue_warns_again_only_when_there_was_room_in_between(self) -> None:
        client = self.holding(max_queue_size=10)

        def fill() -> None:
            while client.track('user', 'event')[0]:
                pass

        with LogCatcher() as log:
            fill()
            for taken, warned in ((1, 1), (2, 1), (10, 2)):
                for _ in range(taken):
                    client.queue.get_nowait()
                    client.queue.task_done()
                fill()
                lines = [each for each in log.lines() if 'full' in each]
                self.assertEqual(len(lines), warned)

    def test_what_is_put_into_the_queue_by_hand_is_sent_too(self) -> None:
        message = Client(TEST_WRITE_KEY, send=False).track('user', 'event')[1]
        client = self.client(upload_interval=0.05)
        client.queue.put(message)
        self.assertTrue(self.collector.wait_for(1, LIMIT))

    def test_debug_lines_go_to_what_stderr_is_when_they_come(self) -> None:
        first, second = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(first):
            client = self.client(debug=True)
            client.track('user', 'event')
        self.assertIn('queueing', first.getvalue())
        first.close()
        with contextlib.redirect_stderr(second):
            client.track('user', 'event')
            client.shutdown(LIMIT)
        self.assertIn('queueing', second.getvalue())
        self.assertNotIn('Logging error', second.getvalue())

    def test_a_copy_of_a_client_is_the_client(self) -> None:
        client = self.client()
        for copied in (copy.copy(client), copy.deepcopy({'client': client})['client']):
            self.assertIs(copied, client)

    def test_block_timeout_waits_for_room(self) -> None:
        client = self.client(max_queue_size=1, upload_size=1, block_timeout=LIMIT)
        for number in range(50):
            self.assertTrue(client.track('user', 'event')[0])
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 50)

    def test_block_timeout_holds_when_room_comes_in_the_same_moment(self) -> None:
        client = self.client(block_timeout=LIMIT)
        put, answers = client._queue.store.put, [0]
        with mock.patch.object(
            client._queue.store,
            'put',
            lambda body: answers.pop() if answers else put(body),
        ):
            self.assertTrue(client.track('user', 'event')[0])

    def test_block_timeout_runs_out(self) -> None:
        client = self.holding(max_queue_size=1, block_timeout=0.01)
        self.assertTrue(client.track('user', 'event')[0])
        self.assertFalse(client.track('user', 'event')[0])

    def test_shutdown_wakes_who_waits_for_room(self) -> None:
        client = self.holding(max_queue_size=1, block_timeout=LIMIT * 10)
        client.track('user', 'event')
        results = []  # type: List[bool]
        thread = threading.Thread(
            target=lambda: results.append(client.track('user', 'event')[0])
        )
        thread.start()
        while not client._queue._room:
            thread.join(0.01)
        client.shutdown(0)
        thread.join(LIMIT)
        self.assertEqual(results, [False])

    def test_on_success_gets_what_was_acknowledged(self) -> None:
        arrived = Recorder()
        client = self.client(on_success=arrived)
        message = client.track('user', 'event')[1]
        client.flush(LIMIT)
        self.assertEqual(arrived.calls, [([message],)])

    def test_stats_add_up_at_any_time(self) -> None:
        self.collector.script(503, 200, 404, 'reset', 200)
        client = self.client(thread=2, upload_size=7, upload_interval=LIMIT)
        accepted = 0
        for _ in range(500):
            accepted += client.track('user', 'event')[0]
            self.assert_adds_up(client)
        self.assertTrue(client.flush(LIMIT))
        stats = client.stats()
        self.assertEqual(stats.accepted, accepted)
        self.assertEqual(stats.delivered, len(self.collector.events))
        self.assertEqual(stats.failed, 7)
        self.assertEqual(stats.pending, 0)
        self.assertGreaterEqual(stats.retried, 2)
        self.assertIsNotNone(stats.last_error)
        self.assertIsNone(stats.oldest_pending_age)

    def test_the_age_of_the_oldest_pending_event_is_known(self) -> None:
        client = self.holding()
        client.track('user', 'event')
        age = client.stats().oldest_pending_age
        assert age is not None
        self.assertTrue(0 <= age < LIMIT)

    def test_a_session_of_the_users_own_is_used_and_not_closed(self) -> None:
        used = []

        class Session(requests.Session):
            def send(self, *args: Any, **kwargs: Any) -> Any:
                used.append(1)
                return super().send(*args, **kwargs)

            def close(self) -> None:
                used.append('closed')
                super().close()

        session = Session()
        client = self.client(session=session)
        client.track('user', 'event')
        self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(used, [1])
        session.close()

    def test_a_with_statement_delivers(self) -> None:
        with Client('key', self.collector.url) as client:
            client.track('user', 'event')
        self.assertEqual(len(self.collector.events), 1)
        self.assertTrue(client.shutdown())

    def test_a_repr_shows_no_secret(self) -> None:
        client = self.client(write_key='very-secret')
        self.assertNotIn('very-secret', repr(client))

    def test_the_queue_answers_as_a_queue_does(self) -> None:
        client = self.holding(max_queue_size=2)
        queue = client.queue
        self.assertEqual((queue.qsize(), queue.empty(), queue.maxsize), (0, True, 2))
        message = client.track('user', 'event')[1]
        queue.put(message)
        self.assertTrue(queue.full())
        self.assertEqual(queue.get(), message)
        self.assertEqual(json.dumps(queue.get(block=False)), json.dumps(message))
        queue.task_done()
        queue.task_done()
        queue.join()
        with self.assertRaises(ValueError):
            queue.task_done()


class BeforeSendTest(TestCase):
    def test_it_may_change_a_message_but_not_the_callers_objects(self) -> None:
        def scrub(message: Dict[str, Any]) -> Dict[str, Any]:
            message['properties']['card']['number'] = '***'
            return message

        client = self.client(before_send=scrub)
        properties = {'card': {'number': 'secret'}}
        client.track('user', 'event', properties)
        client.flush(LIMIT)
        self.assertEqual(
            self.collector.events[0]['properties'], {'card': {'number': '***'}}
        )
        self.assertEqual(properties, {'card': {'number': 'secret'}})

    def test_none_drops_the_message(self) -> None:
        client = self.client(before_send=lambda message: None)
        self.assertFalse(client.track('user', 'event')[0])
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(self.collector.events, [])

    def test_when_it_raises_the_message_is_reported_and_never_sent(self) -> None:
        lost = Recorder()

        def broken(message: Any) -> Any:
            raise KeyError('card')

        client = self.client(before_send=broken, on_error=lost)
        self.assertFalse(client.track('user', 'event')[0])
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(self.collector.events, [])
        ((error, batch),) = lost.calls
        self.assertIsInstance(error, BeforeSendError)
        self.assertEqual([each['event'] for each in batch], ['event'])


class SyncModeTest(TestCase):
    def test_an_event_is_delivered_when_the_call_returns(self) -> None:
        client = self.client(sync_mode=True)
        self.assertIsNone(client.consumers)
        self.assertTrue(client.track('user', 'event')[0])
        self.assertEqual(len(self.collector.events), 1)
        self.assertTrue(client.flush())
        self.assertTrue(client.shutdown())
        self.assertTrue(client.join())

    def test_it_retries(self) -> None:
        self.collector.script(503, 503)
        client = self.client(sync_mode=True)
        self.assertTrue(client.track('user', 'event')[0])
        self.assertEqual(client.stats().retried, 2)

    def test_a_final_failure_is_reported_and_returns_false(self) -> None:
        lost = Recorder()
        self.collector.script(404)
        client = self.client(sync_mode=True, on_error=lost)
        self.assertFalse(client.track('user', 'event')[0])
        self.assertEqual(len(lost.calls), 1)
        self.assert_adds_up(client)

    def test_an_event_tracked_in_a_callback_is_delivered_after_it(self) -> None:
        self.collector.script(404)
        client = self.client(
            sync_mode=True, on_error=lambda *_: client.track('user', 'nested')
        )
        client.track('user', 'event')
        self.assertEqual([e['event'] for e in self.collector.events], ['nested'])


class TenantTest(TestCase):
    def test_clients_share_sockets_and_nothing_else(self) -> None:
        clients = [self.client(write_key='key-%d' % number) for number in range(20)]
        for _ in range(3):
            for client in clients:
                client.track('user', 'event')
                self.assertTrue(client.flush(LIMIT))
        self.assertLessEqual(self.collector.connections, 2)
        keys = [each.body['writeKey'] for each in self.collector.requests]
        self.assertEqual(keys, ['key-%d' % number for number in range(20)] * 3)


if __name__ == '__main__':
    unittest.main()
