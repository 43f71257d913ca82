"""What a value becomes, by its type."""

import argparse
import array
import csv
import decimal
import enum
import importlib
import ipaddress
import itertools
import json
import logging
import queue
import socket
import sqlite3
import sys
import time
import types
import unittest
import uuid
import weakref
import xmlrpc.client
from collections import ChainMap, OrderedDict, UserDict, UserList, UserString, abc
from datetime import date, datetime, timedelta, timezone
from typing import Any, Callable, Dict, Iterator, List
from unittest import mock

from hightouch.htevents import Client, utils
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.support import LogCatcher, TestCase, wire

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]
try:
    import dataclasses
except ImportError:  # 3.6
    dataclasses = None  # type: ignore[assignment]

# Values that a proxy may stand for.
MEANT: List[Any] = [
    'text',
    '',
    5,
    2.5,
    True,
    False,
    None,
    datetime(2026, 1, 2, 3),
    date(2026, 1, 2),
    timedelta(seconds=5),
    uuid.UUID(int=1),
    decimal.Decimal('1.5'),
    {'a': 1},
    [1, 2],
    (1, 2),
    {1},
    b'bytes',
]


class Level(enum.IntEnum):
    PRO = 7


class Plan(str, enum.Enum):
    PRO = 'pro'


class ByClass:
    """A lazy object, made as Django makes them."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    __class__ = property(  # type: ignore[assignment]
        lambda self: self._make().__class__
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)

    def __str__(self) -> str:
        return str(self._make())

    def __bool__(self) -> bool:
        return bool(self._make())

    def __eq__(self, other: object) -> bool:
        return bool(self._make() == other)

    def __hash__(self) -> int:
        return hash(self._make())


class ByAttribute:
    """A proxy that answers to each name what its target does."""

    def __init__(self, make: Callable[[], Any]) -> None:
        object.__setattr__(self, '_make', make)

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, '_make')(), name)


class AnswersAll:
    """Has an attribute of any name; asked for one, it would send a request."""

    asked: List[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return self

    def __str__(self) -> str:
        return 'says'


class AnswersAllOfItsClass(type):
    def __getattr__(cls, name: str) -> Any:
        raise OSError('a request')


class Headers:
    """A dict by its methods, and by no base: as those of werkzeug, or a row of asyncpg."""

    def keys(self) -> Any:
        return ['a']

    def items(self) -> Any:
        return iter([('a', {1})])

    def __getitem__(self, key: Any) -> Any:
        return {1}

    def __str__(self) -> str:
        return 'a: 1'


class Slots:
    """An iterator with a place for what it iterates over."""

    __slots__ = ('inner',)

    def __init__(self, inner: Any) -> None:
        self.inner = iter(inner)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.inner)


class Meta(metaclass=AnswersAllOfItsClass):
    pass


def endless() -> Iterator[int]:
    while True:
        yield 1


def of_endless() -> Iterator[Any]:
    while True:
        yield of_endless()


def slow() -> Iterator[int]:
    while True:
        time.sleep(0.01)
        yield 1


class Endless(abc.Sequence):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        return index


class EndlessMapping(abc.Mapping):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return sys.maxsize

    def __iter__(self) -> Iterator[int]:
        return itertools.count()

    def __getitem__(self, key: Any) -> Any:
        return key


def below(frames: int, function: Callable[[], Any]) -> Any:
    """Call a function where the stack is deep already."""
    return function() if frames == 0 else below(frames - 1, function)


class FormTest(unittest.TestCase):
    """What needs no library."""

    def assert_silent(self, value: Any, wanted: Any) -> None:
        with LogCatcher() as log:
            self.assertEqual(wire(value), wanted, type(value))
            self.assertEqual(log.lines(), [])

    def assert_lost(self, value: Any) -> None:
        with LogCatcher() as log:
            self.assertEqual(wire([value, 1]), [None, 1], type(value))
            (line,) = log.lines(logging.WARNING)
        self.assertIn('v[0]', line)

    def test_a_collection_is_a_list_or_a_dict_whatever_its_class(self) -> None:
        items = {'a': 1, 'b': 2}
        for value, wanted in (
            (items.keys(), ['a', 'b']),
            (items.values(), [1, 2]),
            (items.items(), [['a', 1], ['b', 2]]),
            (OrderedDict(items).keys(), ['a', 'b']),
            (ChainMap({'a': 1}).values(), [1]),
            (range(3), [0, 1, 2]),
            (UserList([1, {2}]), [1, [2]]),
            (UserDict(a=1), {'a': 1}),
            (UserString('text'), 'text'),
            (array.array('i', [1, 2]), [1, 2]),
            (memoryview(b'text'), 'text'),
            (types.SimpleNamespace(a={1}), {'a': [1]}),
            (argparse.Namespace(a=1), {'a': 1}),
            (Headers(), {'a': [1]}),
        ):  # type: Any
            self.assert_silent(value, wanted)
            self.assert_silent({'in': [value]}, {'in': [wanted]})

    def test_an_iterator_is_read_into_a_list(self) -> None:
        for value, wanted in (
            ((each for each in (1, 2)), [1, 2]),
            (iter([1, 2]), [1, 2]),
            (map(int, '12'), [1, 2]),
            (itertools.chain([1], [{2}]), [1, [2]]),
            (reversed((2, 1)), [1, 2]),
            ((iter('ab') for _ in range(2)), [['a', 'b'], ['a', 'b']]),
            (iter(()), []),
            (Slots([1, 2]), [1, 2]),
        ):  # type: Any
            self.assert_silent(value, wanted)

    def test_a_row_of_a_database_is_a_list(self) -> None:
        connection = sqlite3.connect(':memory:')
        self.addCleanup(connection.close)
        connection.row_factory = sqlite3.Row
        row = connection.execute("SELECT 1 AS a, 'x' AS b").fetchone()
        self.assert_silent(row, [1, 'x'])

    def test_what_has_no_end_does_not_hold_a_call(self) -> None:
        for value in (
            endless(),
            of_endless(),
            slow(),
            itertools.count(),
            itertools.repeat({}),
            Endless(),
            EndlessMapping(),
            range(10**12),
        ):  # type: Any
            self.assert_lost(value)

    def test_what_has_no_end_takes_nothing_from_what_is_beside_it(self) -> None:
        beside = [
            {1},
            {1: 2}.keys(),
            range(1, 2),
            UserList([1]),
            ChainMap({1: 1}).keys(),
        ]
        for lost in (endless(), Endless(), slow()):  # type: Any
            with LogCatcher():
                self.assertEqual(wire([lost] + beside), [None] + [[1]] * len(beside))
        with LogCatcher():
            self.assertEqual(wire([endless(), iter([1])]), [None, [1]])

    def test_iterators_of_iterators_do_not_hold_a_call(self) -> None:
        with LogCatcher(), mock.patch.object(utils, 'MAX_SECONDS', 0.1):
            wire([map(range, itertools.repeat(1000, 1000)) for _ in range(100)])
            wire([endless() for _ in range(10000)])
            wire((iter(range(16000)) for _ in range(16000)))
            wire([range(16000)] * 10000)

    @unittest.skipUnless(resource, 'there are no figures of memory')
    def test_long_elements_do_not_fill_the_memory(self) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.assert_lost(['x'] * (1 << 20) for _ in itertools.count())
        self.assert_lost('x' * (1 << 20) for _ in itertools.count())
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        self.assertLess(grown, 100 << 10)  # in KB

    def test_an_iterator_that_raises_is_null(self) -> None:
        def fails() -> Iterator[int]:
            yield 1
            raise RuntimeError('no')

        self.assert_lost(fails())

    def test_an_iterator_that_calls_a_function_is_not_read(self) -> None:
        with LogCatcher() as log:
            self.assertIn('callable_iterator', wire(iter(queue.Queue().get, None)))
            self.assertEqual(len(log.lines(logging.WARNING)), 1)

    def test_a_file_and_a_cursor_are_not_read(self) -> None:
        class Cursor:
            fetched = False

            def fetchone(self) -> None:
                pass

            def __iter__(self) -> Any:
                return self

            def __next__(self) -> None:
                self.fetched = True
                raise StopIteration

        cursor = Cursor()
        with open(__file__) as file, LogCatcher():
            wire([file, cursor, csv.reader(file)])
            self.assertEqual(file.tell(), 0)
        self.assertFalse(cursor.fetched)

    def test_what_has_any_attribute_is_not_asked_for_one(self) -> None:
        with LogCatcher():
            self.assertEqual(wire(AnswersAll()), 'says')
            self.assertEqual(AnswersAll.asked, [])
            self.assertIn('Meta object', wire(Meta()))

    def test_a_mock_is_null(self) -> None:
        for value in (
            mock.Mock(),
            mock.MagicMock(),
            mock.NonCallableMock(),
            mock.NonCallableMagicMock(),
            mock.Mock(spec=str),
            mock.MagicMock(spec=dict),
            mock.create_autospec(ByClass, instance=True),
        ):  # type: Any
            self.assert_lost(value)

    def test_a_mock_is_asked_for_nothing(self) -> None:
        value = mock.Mock(spec=str)
        with LogCatcher():
            wire([value, {value: value}])
        self.assertEqual(value._mock_children, {})

    def test_a_remote_object_is_not_called(self) -> None:
        with socket.socket() as server:
            server.bind(('127.0.0.1', 0))
            server.listen(5)
            url = 'http://127.0.0.1:%d' % server.getsockname()[1]
            self.assert_lost(xmlrpc.client.ServerProxy(url))
            server.settimeout(0)
            with self.assertRaises(BlockingIOError):
                server.accept()

    def test_what_str_writes_well_is_sent_without_a_warning(self) -> None:
        class ObjectId:  # as that of MongoDB
            def __str__(self) -> str:
                return '65f'

            def __eq__(self, other: object) -> bool:
                return isinstance(other, ObjectId)

            def __hash__(self) -> int:
                return 1

        class Money(ObjectId):  # it can change, so it has no hash
            __hash__ = None  # type: ignore[assignment]

        for value, wanted in (
            (ObjectId(), '65f'),
            (Money(), '65f'),
            (ipaddress.ip_address('203.0.113.7'), '203.0.113.7'),
            (ipaddress.ip_address('::1'), '::1'),
            (ipaddress.ip_network('10.0.0.0/8'), '10.0.0.0/8'),
            (timezone.utc, 'UTC'),
            (uuid.UUID(int=1), '00000000-0000-0000-0000-000000000001'),
            (2j, '2j'),
        ):  # type: Any
            self.assert_silent(value, wanted)

    def test_what_str_draws_is_sent_with_a_warning(self) -> None:
        class Table:
            def __str__(self) -> str:
                return 'a\n1'

            def __eq__(self, other: object) -> bool:
                return False

        with LogCatcher() as log:
            self.assertEqual(wire(Table()), 'a\n1')
            self.assertEqual(len(log.lines(logging.WARNING)), 1)

    def test_what_can_be_called_is_null_however_it_is_written(self) -> None:
        class Task:
            def __str__(self) -> str:
                return 'task'

            def __eq__(self, other: object) -> bool:
                return False

            def __call__(self) -> None:
                pass

        self.assert_lost(Task())

    def test_a_duration_says_its_seconds(self) -> None:
        class Nanoseconds(timedelta):
            def total_seconds(self) -> float:
                return 1e-9

        self.assert_silent(Nanoseconds(), 1e-9)

    def test_an_array_is_bounded_by_all_of_its_elements(self) -> None:
        class Tensor:
            dtype = 'float32'

            def __init__(self, *shape: int) -> None:
                self.shape = shape

            def __len__(self) -> int:
                return self.shape[0]

            def tolist(self) -> Any:
                return 1.5 if not self.shape else [1.5]

        self.assert_silent([Tensor(), Tensor(1)], [1.5, [1.5]])
        self.assert_lost(Tensor(10, 10000))

    def test_a_time_that_is_none_is_null(self) -> None:
        class NaT(datetime):
            def __eq__(self, other: object) -> bool:
                return False

            def __ne__(self, other: object) -> bool:
                return True

        self.assert_silent(NaT(2026, 1, 1), None)

    def test_a_class_of_another_package_is_known_by_its_name(self) -> None:
        missing = type('NAType', (), {'__module__': 'pandas._libs.missing'})()
        self.assert_silent([missing, missing], [None, None])

    @unittest.skipUnless(dataclasses, 'this Python has no dataclasses')
    def test_a_dataclass_is_its_fields_whatever_else_it_is(self) -> None:
        empty = dataclasses.make_dataclass('Empty', [])
        self.assert_silent(empty(), {})
        row = dataclasses.make_dataclass(
            'Row',
            [('a', int)],
            bases=(abc.Sequence,),
            namespace={'__len__': lambda self: 1, '__getitem__': None},
        )
        self.assert_silent(row(1), {'a': 1})

    def test_a_field_that_cannot_be_read_loses_itself_only(self) -> None:
        class Row:
            __attrs_attrs__ = tuple(types.SimpleNamespace(name=each) for each in 'abc')
            a = 1
            b = property(lambda self: 1 / 0)

        with LogCatcher() as log:
            self.assertEqual(wire(Row()), {'a': 1, 'b': None})
            (line,) = log.lines(logging.WARNING)
        self.assertIn('v.b: ', line)

    def test_objects_that_refer_to_each_other_do_not_hold_a_call(self) -> None:
        shared: Any = ['end']
        for _ in range(80):
            shared = [shared, shared]
        friends: Any = [{'name': each} for each in range(10)]
        for each in friends:
            each['friends'] = list(friends)
        people: Any = [types.SimpleNamespace() for each in range(10)]
        for person in people:
            person.friends = list(people)
        with LogCatcher():
            for value in (shared, friends, people, [{1}, shared]):
                client = Client(TEST_WRITE_KEY, send=False)
                self.addCleanup(client.shutdown)
                with self.assertRaises(RuntimeError):
                    client.track('user', 'event', {'v': value})

    def test_an_enum_that_is_its_own_value_is_null(self) -> None:
        class Own(enum.IntEnum):
            A = 1

            @property
            def value(self) -> Any:
                return self

        self.assert_lost(Own.A)
        client = Client(TEST_WRITE_KEY, send=False)
        self.addCleanup(client.shutdown)
        with self.assertRaises(ValidationError):
            client.group('user', Own.A)

    def test_100_levels_of_any_collection_arrive_whole(self) -> None:
        for wrap in (
            lambda inner: [inner],
            lambda inner: {'a': inner},
            lambda inner: UserList([inner]),
            lambda inner: types.SimpleNamespace(a=inner),
            lambda inner: iter([inner]),
            lambda inner: {'a': ByClass(lambda: inner)},
        ):  # type: Callable[[Any], Any]
            value: Any = wrap('end')
            for _ in range(99):
                value = wrap(value)
            value = below(600, lambda: wire(value))
            for _ in range(100):
                (value,) = value.values() if isinstance(value, dict) else value
            self.assertEqual(value, 'end')


class ProxyTest(TestCase):
    """A proxy is what it stands for, wherever it is given."""

    def proxies(self, meant: Any) -> List[Any]:
        made = [
            make(lambda: meant)
            for make in (ByClass, ByAttribute, *_makers_of_libraries().values())
        ]
        made.append(ByClass(lambda: made[0]))
        return made

    def test_it_is_sent_as_what_it_stands_for(self) -> None:
        for meant in MEANT + [Level.PRO]:
            for proxy in self.proxies(meant):
                with LogCatcher() as log:
                    self.assertEqual(
                        wire({'in': [proxy]}), wire({'in': [meant]}), type(proxy)
                    )
                    self.assertEqual(log.lines(), [])

    def test_as_a_key_it_is_the_text(self) -> None:
        for proxy in self.proxies('key'):
            if not isinstance(proxy, ByAttribute):
                self.assertEqual(wire({proxy: 1}), {'key': 1})

    def test_weak_references_are_proxies_too(self) -> None:
        class Name(str):
            pass

        name = Name('text')
        self.assertEqual(wire(weakref.proxy(name)), 'text')

    def test_what_has_any_attribute_is_not_asked_what_it_holds(self) -> None:
        calls: List[str] = []

        class Stub:  # of a remote object
            __class__ = UserList  # type: ignore[assignment]

            def __getattr__(self, name: str) -> Any:
                return lambda *args: calls.append(name)

        with LogCatcher():
            wire([Stub(), {Stub(): Stub()}])
            with self.assertRaises(ValidationError):
                self.holding().track(Stub(), 'event')  # type: ignore[arg-type]
        self.assertEqual(calls, [])

    @unittest.skipUnless(dataclasses, 'this Python has no dataclasses')
    def test_one_of_a_class_without_methods_is_its_fields(self) -> None:
        made = dataclasses.make_dataclass('Made', ['a'])(1)
        makers = _makers_of_libraries()
        if not makers:
            self.skipTest('no library with a proxy is installed')
        for make in makers.values():
            self.assertEqual(wire(make(lambda: made)), {'a': 1})

    def test_one_that_stands_for_nothing_loses_itself_only(self) -> None:
        def unbound() -> Any:
            raise RuntimeError('outside of a request')

        with LogCatcher():
            self.assertEqual(wire([ByClass(unbound), 1]), [None, 1])
        client = self.holding()
        for make in (ByClass, _makers_of_libraries().get('werkzeug.local', ByClass)):
            with self.assertRaises(ValidationError):
                client.track('user', make(unbound))
            with self.assertRaises(ValidationError):
                client.track(make(unbound), 'event')

    def test_a_call_takes_it_for_each_argument(self) -> None:
        client = self.holding(send=False)
        at = datetime(2026, 1, 2, tzinfo=timezone.utc)
        for number in range(len(self.proxies(''))):

            def proxy(meant: Any, number: int = number) -> Any:
                return self.proxies(meant)[number]

            for got, wanted in (
                (
                    client.track(proxy('u'), proxy('e'), message_id=proxy('m')),
                    client.track('u', 'e', message_id='m'),
                ),
                (
                    client.identify(proxy(5), proxy({'a': 1}), proxy({'b': 2})),
                    client.identify(5, {'a': 1}, {'b': 2}),
                ),
                (
                    client.identify(proxy(None), anonymous_id=proxy(5)),
                    client.identify(anonymous_id=5),
                ),
                (
                    client.identify('u', proxy(None), anonymous_id=proxy(None)),
                    client.identify('u'),
                ),
                (client.group('u', proxy(2**70)), client.group('u', 2**70)),
                (client.alias(proxy('p'), proxy(7)), client.alias('p', 7)),
                (
                    client.page('u', proxy('c'), proxy('n'), timestamp=proxy(at)),
                    client.page('u', 'c', 'n', timestamp=at),
                ),
                (
                    client.screen('u', proxy(None), proxy('')),
                    client.screen('u'),
                ),
                (
                    client.track('u', 'e', timestamp=proxy('2026-01-02')),
                    client.track('u', 'e', timestamp='2026-01-02'),
                ),
                (
                    client.group('u', 'g', timestamp=proxy(None)),
                    client.group('u', 'g'),
                ),
            ):
                plain = [json.loads(json.dumps(each[1])) for each in (got, wanted)]
                for each in plain:
                    each['messageId'] = each['messageId'][:1] == 'm'
                    if each['type'] in ('identify', 'group', 'alias', 'screen'):
                        del each['timestamp']
                    elif each['messageId']:
                        del each['timestamp']
                self.assertEqual(plain[0], plain[1])

    def test_a_setting_is_the_number_that_it_stands_for(self) -> None:
        class Number:
            __class__ = int  # type: ignore[assignment]

            def __int__(self) -> int:
                return 3

            def __float__(self) -> float:
                return 3.0

        proxies: List[Any] = [Number()]
        proxies += [make(lambda: 3) for make in _makers_of_libraries().values()]
        for proxy in proxies:
            if not hasattr(type(proxy), '__int__'):
                continue  # int() does not take it for one either
            for name in ('timeout', 'upload_size', 'upload_interval', 'max_retries'):
                client = self.client(sync_mode=True, **{name: proxy})
                self.assertTrue(client.track('user', 'event')[0])
                self.assertTrue(client.flush(proxy))
            self.assertEqual(len(self.client(thread=proxy).consumers or []), 3)

    def test_one_that_stands_for_no_id_is_no_id(self) -> None:
        client = self.holding(send=False)
        for meant in (None, '', True, [], float('nan')):
            for proxy in self.proxies(meant):
                with self.assertRaises(ValidationError):
                    client.track(proxy, 'event')

    def test_it_arrives(self) -> None:
        client = self.client()
        for proxy in self.proxies('text'):
            client.track(proxy, proxy, {'p': proxy}, {'c': proxy})
        self.assertTrue(client.flush())
        self.assertEqual(len(self.collector.events), len(self.proxies('text')))
        for message in self.collector.events:
            self.assertEqual(
                (message['userId'], message['event'], message['properties']),
                ('text', 'text', {'p': 'text'}),
            )
        self.assertEqual(client.stats().failed, 0)


class EnumTest(TestCase):
    def test_as_an_id_an_enum_is_its_value(self) -> None:
        client = self.client()
        client.identify(Level.PRO)
        client.track(Plan.PRO, Plan.PRO, anonymous_id=Level.PRO, message_id=Plan.PRO)
        client.identify(anonymous_id=Level.PRO)
        client.group('u', Level.PRO)
        client.alias(Plan.PRO, Level.PRO)
        client.page('u', Plan.PRO, Plan.PRO)
        self.assertTrue(client.flush())
        wanted: List[Dict[str, Any]] = [
            {'userId': '7'},
            {'userId': 'pro', 'event': 'pro', 'anonymousId': '7', 'messageId': 'pro'},
            {'anonymousId': '7'},
            {'groupId': 7},
            {'previousId': 'pro', 'userId': '7'},
            {'category': 'pro', 'name': 'pro'},
        ]
        self.assertEqual(len(self.collector.events), len(wanted))
        for message, fields in zip(self.collector.events, wanted):
            self.assertEqual({name: message[name] for name in fields}, fields)

    def test_a_returned_message_has_plain_texts(self) -> None:
        _, message = self.holding().track(Plan.PRO, Plan.PRO, message_id=Plan.PRO)
        for name in ('userId', 'event', 'messageId'):
            self.assertIs(type(message[name]), str)

    def test_an_enum_that_is_no_id_is_refused(self) -> None:
        class Plain(enum.Enum):
            A = None
            B = Plan.PRO
            C = 'value'

            @property
            def value(self) -> Any:
                if self is Plain.C:
                    raise RuntimeError
                return self

        client = self.holding()
        for value in (Plain.A, Plain.B, Plain.C, [Plan.PRO]):  # type: Any
            with self.assertRaises(ValidationError):
                client.identify(value)


class LibraryTest(unittest.TestCase):
    """What libraries make, where they are installed."""

    def library(self, name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError:
            raise unittest.SkipTest('%s is not installed' % name)

    def assert_forms(self, *values: Any) -> None:
        for value, wanted in values:
            with LogCatcher() as log:
                self.assertEqual(wire(value), wanted, type(value))
                self.assertEqual(log.lines(), [])

    def test_numpy(self) -> None:
        numpy = self.library('numpy')
        day, moment, second = '2024-05-06', '2024-05-06T00:00:00', 10**9
        record = numpy.zeros(1, dtype=[('a', 'i4'), ('at', 'M8[ns]')])
        self.assert_forms(
            (numpy.float64(1.5), 1.5),
            (numpy.float32('nan'), None),
            (numpy.longdouble(1.5), 1.5),
            (numpy.int32(7), 7),
            (numpy.bool_(True), True),
            (numpy.str_('text'), 'text'),
            (numpy.array(5), 5),
            (numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
            (
                numpy.array([uuid.UUID(int=1), None], dtype=object),
                [str(uuid.UUID(int=1)), None],
            ),
            (numpy.datetime64(day, 'ns'), moment),
            (numpy.datetime64(day, 'us'), moment),
            (numpy.datetime64(day), day),
            (numpy.datetime64('12024-01-01'), '12024-01-01'),
            (numpy.datetime64('NaT'), None),
            (numpy.datetime64('NaT', 'ns'), None),
            (numpy.array([day, 'NaT'], dtype='M8[ns]'), [moment, None]),
            (numpy.array([[day]], dtype='M8[ns]'), [[moment]]),
            (numpy.timedelta64(3 * second // 2, 'ns'), 1.5),
            (numpy.timedelta64(1, 'm'), 60.0),
            (numpy.timedelta64('NaT', 'ns'), None),
            (numpy.timedelta64(2, 'M'), '2 months'),
            (numpy.timedelta64('NaT', 'M'), None),
            (numpy.timedelta64(5, 'as'), '5 attoseconds'),
            (numpy.datetime64(300000, 'Y'), '301970'),
            (numpy.array([second, 2 * second], dtype='m8[ns]'), [1.0, 2.0]),
            (record, [[0, '1970-01-01T00:00:00']]),
            (record[0], [0, '1970-01-01T00:00:00']),
            (numpy.array((1, 2.0), dtype=[('a', 'i4'), ('b', 'f8')]), [1, 2.0]),
            (numpy.void(b'text'), 'text'),
        )
        with LogCatcher():
            self.assertIsNone(wire(numpy.zeros(10**7)))

    def test_pandas(self) -> None:
        pandas = self.library('pandas')
        at = pandas.to_datetime(['2024-05-06', None])
        self.assert_forms(
            (pandas.NaT, None),
            (pandas.NA, None),
            (pandas.Timestamp('2024-05-06'), '2024-05-06T00:00:00'),
            (pandas.Timedelta('1s'), 1.0),
            (pandas.Timedelta('1ns'), 1e-9),
            (pandas.Series([1, 2.5, None]), [1.0, 2.5, None]),
            (pandas.Series([1, None], dtype='Int64'), [1, None]),
            (pandas.Series(at), ['2024-05-06T00:00:00', None]),
            (at, ['2024-05-06T00:00:00', None]),
            (pandas.Index(['a']), ['a']),
            (pandas.Categorical(['a']), ['a']),
            (pandas.Period('2024-05'), '2024-05'),
            (
                pandas.DataFrame({'a': [1], 'at': at[:1]}),
                [{'a': 1, 'at': '2024-05-06T00:00:00'}],
            ),
        )

    def test_polars(self) -> None:
        polars = self.library('polars')
        self.assert_forms(
            (polars.Series([1, None]), [1, None]),
            (polars.Series([datetime(2024, 5, 6)]), ['2024-05-06T00:00:00']),
            (polars.DataFrame({'a': [1, 2]}), [{'a': 1}, {'a': 2}]),
        )

    def test_pyarrow(self) -> None:
        arrow = self.library('pyarrow')
        self.assert_forms(
            (arrow.array([1, None]), [1, None]),
            (arrow.scalar(5), 5),
            (arrow.table({'a': [1]}), [{'a': 1}]),
        )

    def test_attrs(self) -> None:
        attr = self.library('attr')
        self.assert_forms((attr.make_class('Made', ['a'])(a={1}), {'a': [1]}))

    def test_pydantic(self) -> None:
        pydantic = self.library('pydantic')
        self.assert_forms((pydantic.create_model('Model', a=(int, 1))(), {'a': 1}))
        if hasattr(pydantic, 'RootModel'):
            self.assert_forms((pydantic.RootModel[list]([1]), [1]))

    def test_text_of_numpy(self) -> None:
        numpy = self.library('numpy')
        self.assert_forms((numpy.char.array(['a', 'b']), ['a', 'b']))

    def test_msgspec(self) -> None:
        msgspec = self.library('msgspec')
        self.assert_forms((msgspec.defstruct('Made', ['a'])({1}), {'a': [1]}))

    def test_sqlalchemy(self) -> None:
        sqlalchemy = self.library('sqlalchemy')
        with sqlalchemy.create_engine('sqlite://').connect() as connection:
            row = connection.execute(
                sqlalchemy.text('SELECT 1 AS a, 2 AS b')
            ).fetchone()
        self.assert_forms((row, [1, 2]), (row._mapping, {'a': 1, 'b': 2}))

    def test_protobuf(self) -> None:
        self.library('google.protobuf')
        from google.protobuf import field_mask_pb2, struct_pb2

        struct = struct_pb2.Struct()
        struct.update({'a': 1, 'b': [True]})
        self.assert_forms(
            (field_mask_pb2.FieldMask(paths=['a', 'b']).paths, ['a', 'b']),
            (struct, {'a': 1.0, 'b': [True]}),
        )

    def test_texts(self) -> None:
        made: List[Any] = []
        for name, make in (
            ('zoneinfo', lambda module: module.ZoneInfo('Europe/Berlin')),
            ('pytz', lambda module: module.timezone('Europe/Berlin')),
            ('bson', lambda module: module.ObjectId()),
            ('bson', lambda module: module.Decimal128('1.5')),
            ('arrow', lambda module: module.get(0)),
            ('babel', lambda module: module.Locale('de')),
            ('yarl', lambda module: module.URL('http://127.0.0.1/')),
        ):  # type: str, Callable[[Any], Any]
            try:
                made.append(make(importlib.import_module(name)))
            except ImportError:
                pass
        if not made:
            self.skipTest('none of these libraries is installed')
        self.assert_forms(*((value, str(value)) for value in made))

    def test_werkzeug(self) -> None:
        structures = self.library('werkzeug.datastructures')
        self.assert_forms(
            (structures.Headers([('a', 'b')]), {'a': 'b'}),
            (structures.MultiDict([('a', 'b'), ('a', 'c')]), {'a': 'b'}),
        )

    def test_pendulum(self) -> None:
        pendulum = self.library('pendulum')
        self.assert_forms(
            (pendulum.datetime(2024, 5, 6), '2024-05-06T00:00:00+00:00'),
            (pendulum.date(2024, 5, 6), '2024-05-06'),
            (pendulum.duration(seconds=5), 5.0),
            (pendulum.timezone('Europe/Berlin'), 'Europe/Berlin'),
        )


def _makers_of_libraries() -> Dict[str, Callable[[Callable[[], Any]], Any]]:
    makers: Dict[str, Callable[[Callable[[], Any]], Any]] = {}
    for module, find in (
        ('django.utils.functional', lambda found: found.SimpleLazyObject),
        ('werkzeug.local', lambda found: found.LocalProxy),
        ('wrapt', lambda found: lambda make: found.ObjectProxy(make())),
        ('lazy_object_proxy', lambda found: found.Proxy),
    ):  # type: str, Callable[[Any], Any]
        try:
            makers[module] = find(importlib.import_module(module))
        except ImportError:
            pass
    return makers


if __name__ == '__main__':
    unittest.main()
