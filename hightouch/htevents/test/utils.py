import enum
import functools
import json
import logging
import sys
import unittest
import uuid
from collections import ChainMap, OrderedDict, defaultdict, deque, namedtuple
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

import mock

from hightouch.htevents import encoding, stamps, utils
from hightouch.htevents.encoding import encode
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.test.support import LogCatcher, wire

try:
    import dataclasses
except ImportError:  # 3.6
    dataclasses = None  # type: ignore[assignment]

Point = namedtuple('Point', 'x y')


class Number(enum.IntEnum):
    ONE = 1


class Text(str, enum.Enum):
    A = 'a'


class Plain(enum.Enum):
    ID = uuid.UUID(int=1)


class Name(str):
    def __str__(self) -> str:
        return 'something else'


class Lazy:
    """A translated text, as frameworks make them: it becomes a str when it is shown."""

    def __str__(self) -> str:
        return 'lazy'

    def __getattr__(self, name: str) -> Any:
        return getattr('lazy', name)


class Attrs:
    """What attrs makes of a class."""

    class _Attribute:
        name = 'a'

    __attrs_attrs__ = (_Attribute(),)
    a = 1


class Pydantic1:
    __fields__ = {'a': None}

    def dict(self) -> Any:
        return {'a': 1}


class Pydantic2:
    model_fields = {'a': None}

    def model_dump(self) -> Any:
        return {'a': uuid.UUID(int=1)}


class Array:
    dtype = 'float64'

    def tolist(self) -> Any:
        return [1.5, float('nan')]


class Scalar:
    dtype = 'int64'

    def tolist(self) -> Any:
        return 7


class Moment(datetime):
    def isoformat(self, *args: Any, **kwargs: Any) -> str:
        raise ValueError('no')


def nested(levels: int) -> Any:
    value = []  # type: Any
    for _ in range(levels - 1):
        value = [value]
    return value


def depth(value: Any) -> int:
    levels = 0
    while isinstance(value, list):
        levels += 1
        value = value[0] if value else None
    return levels


class ValueTest(unittest.TestCase):
    def test_each_kind_of_value_has_its_form_on_the_wire(self) -> None:
        offset = timezone(timedelta(hours=2))
        for value, wanted in (
            (uuid.UUID(int=1), '00000000-0000-0000-0000-000000000001'),
            (Decimal('1.5'), 1.5),
            (Decimal('NaN'), None),
            (Decimal('-Infinity'), None),
            (float('nan'), None),
            (float('inf'), None),
            (datetime(2026, 1, 2, 3), '2026-01-02T03:00:00'),
            (datetime(2026, 1, 2, tzinfo=offset), '2026-01-02T00:00:00+02:00'),
            (date(2026, 1, 2), '2026-01-02'),
            (time(1, 2), '01:02:00'),
            (timedelta(minutes=1, milliseconds=500), 60.5),
            (Number.ONE, 1),
            (Text.A, 'a'),
            (Plain.ID, '00000000-0000-0000-0000-000000000001'),
            (b'caf\xc3\xa9', 'café'),
            (b'\xff', '\ufffd'),
            (bytearray(b'a'), 'a'),
            ({1}, [1]),
            (frozenset(['a']), ['a']),
            ((1, (2,)), [1, [2]]),
            (deque([1, 2]), [1, 2]),
            (Point(1, uuid.UUID(int=0)), [1, str(uuid.UUID(int=0))]),
            (Attrs(), {'a': 1}),
            (Pydantic1(), {'a': 1}),
            (Pydantic2(), {'a': '00000000-0000-0000-0000-000000000001'}),
            (Array(), [1.5, None]),
            (Scalar(), 7),
            (PurePosixPath('/tmp/x'), '/tmp/x'),
            (Lazy(), 'lazy'),
            (Name('name'), 'name'),
            (1j, '1j'),
            (Fraction(1, 3), '1/3'),
            ('\ud800', '\ufffd'),
            ('\ud83d\ude00', '😀'),
            ({'\udc00': 1}, {'\ufffd': 1}),
            ({1: 1, None: 2, 1.5: 3, False: 4}, None),
            ({(1, 2): 1}, {'(1, 2)': 1}),
            ({b'k': 1}, {'k': 1}),
            ({Text.A: 1, Number.ONE: 2}, {'a': 1, '1': 2}),
            (2**64, 2**64),
            (-(2**70), -(2**70)),
            (True, True),
            (OrderedDict(a=1), {'a': 1}),
            (defaultdict(int, a={1}), {'a': [1]}),
            (MappingProxyType({'a': 1}), {'a': 1}),
            (ChainMap({'a': 1}, {'b': 2}), {'a': 1, 'b': 2}),
        ):
            if wanted is None and isinstance(value, dict):
                wanted = {'1': 1, 'null': 2, '1.5': 3, 'false': 4}
            self.assertEqual(wire(value), wanted, type(value))

    @unittest.skipUnless(dataclasses, 'this Python has no dataclasses')
    def test_a_dataclass_is_its_fields_and_not_what_the_class_holds(self) -> None:
        made = dataclasses.make_dataclass(
            'Made', [('a', int), ('me', Any, None), ('API', ClassVar[str], 'secret')]
        )
        item = made(1)
        item.me = item
        self.assertEqual(wire(item), {'a': 1, 'me': None})

    def test_an_integer_too_long_to_print_is_exact_or_null(self) -> None:
        with LogCatcher():
            self.assertIn(wire(10**5000), (None, 10**5000))

    def test_100_levels_arrive_whole_and_many_more_are_cut(self) -> None:
        self.assertEqual(depth(wire(nested(100))), 100)
        for levels in (150, 5000):
            with LogCatcher():
                self.assertEqual(depth(wire(nested(levels))), utils.MAX_DEPTH - 1)

    def test_anything_else_is_its_str_with_one_warning_of_path_and_type(self) -> None:
        class Secret:
            def __str__(self) -> str:
                return 'value-of-secret'

        with LogCatcher() as log:
            self.assertEqual(wire({'list': [Secret()]})['list'], ['value-of-secret'])
            (line,) = log.lines(logging.WARNING)
        self.assertIn('v.list[0]', line)
        self.assertIn('Secret', line)
        self.assertNotIn('value-of-secret', line)

    def test_functions_classes_modules_and_callables_are_null_with_one_warning(
        self,
    ) -> None:
        class Callable:
            def __call__(self) -> None:
                pass

        for value in (
            lambda x: x,
            len,
            int,
            Callable,
            Callable(),
            'text'.upper,
            functools.partial(int),
            str,
            PurePosixPath,
            enum.Enum,
            OrderedDict,
            mock.Mock(),
            mock.MagicMock(),
            json,
            unittest.TestCase.setUp,
        ):  # type: Any
            with LogCatcher() as log:
                self.assertEqual(
                    utils.clean({'fn': value, 'a': 1}), {'fn': None, 'a': 1}
                )
                (line,) = log.lines(logging.WARNING)
                self.assertIn('fn: a value of type %s' % type(value).__name__, line)
                self.assertEqual(utils.clean([value]), [None])
                self.assertIsNone(utils.clean(value))
                self.assertEqual(wire({'inner': [value]}), {'inner': [None]})

    def test_objects_that_raise_lose_themselves_only(self) -> None:
        class Raises:
            def __getattribute__(self, name: str) -> Any:
                raise RuntimeError(name)

        class Items(dict):
            def items(self) -> Any:
                raise OSError

        class Key:
            def __str__(self) -> str:
                raise ValueError

        with LogCatcher():
            for value in (Raises(), Moment(2026, 1, 1), {'a': Raises()}):
                wire([value, 1])
            self.assertEqual(wire([1, {Key(): 2, 'a': 3}]), [1, {'a': 3}])
            wire(Items(a={1}))

    def test_a_date_that_cannot_be_written_is_null_with_a_warning(self) -> None:
        with LogCatcher() as log:
            self.assertEqual(wire([Moment(2026, 1, 1), 1]), [None, 1])
            (line,) = log.lines(logging.WARNING)
        self.assertIn('Moment', line)

    def test_nothing_is_lost_while_another_thread_imports_a_module(self) -> None:
        unready = {name: ModuleType(name) for name in ('uuid', 'decimal')}
        with mock.patch.dict(sys.modules, unready), LogCatcher():
            self.assertEqual(wire([PurePosixPath('a'), 5j]), ['a', '5j'])

    def test_common_values_are_copied_without_a_second_look(self) -> None:
        message = {'a': 1, 'b': ['x', None, 1.5, {'c': ()}], 'd': datetime(2026, 1, 1)}
        Point = namedtuple('Point', 'x y')
        subclasses = {
            'e': OrderedDict(a=Point(1, 2)),
            'f': enum.Enum('Plan', 'PRO').PRO,
            'g': [Decimal('1.5'), {b'x'}, timedelta(seconds=1)],
            'h': type('Day', (date,), {})(2026, 1, 1),
        }
        with mock.patch.object(utils, 'Cleaner') as clean:
            copied = encode(message)[1]
            self.assertEqual(
                encode(subclasses)[0],
                b'{"e":{"a":[1,2]},"f":1,"g":[1.5,["x"],1.0],"h":"2026-01-01"}',
            )
        clean.assert_not_called()
        self.assertEqual(copied, dict(message, b=['x', None, 1.5, {'c': []}]))
        copied['b'][3]['c'].append(1)
        self.assertEqual(message['b'][3], {'c': ()})  # type: ignore[index]

    def test_an_enum_is_its_value_whatever_is_beside_it(self) -> None:
        class Label(str, enum.Enum):
            RED = 'red'

            def __new__(cls, text: str) -> Any:
                member = str.__new__(cls, 'label')
                member._value_ = text
                return member

        for beside in (1, {1}):
            for value in ({'in': Label.RED, 'beside': beside}, [Label.RED, beside]):
                self.assertEqual(json.dumps(wire(value)).count('"red"'), 1)

    def test_a_stand_in_for_orjson_is_not_used(self) -> None:
        before = encoding._fast
        self.addCleanup(setattr, encoding, '_fast', before)
        for stand_in in (mock.MagicMock(), ModuleType('orjson')):
            encoding._fast = encoding._stdlib
            with mock.patch.dict(sys.modules, orjson=stand_in):
                encoding.preload.__wrapped__()
            self.assertIs(encoding._fast, encoding._stdlib)

    def test_the_encoders_agree(self) -> None:
        encoding.preload()
        message = {'a': [1, 1.5, None, True, 'é', {'b': {}}], 'd': date(2026, 1, 1)}
        self.assertEqual(
            json.loads(encoding._stdlib(message).decode('utf-8')),
            json.loads(encoding._fast(message).decode('utf-8')),
        )

    def test_clean_keeps_dates_and_changes_nothing_of_the_callers(self) -> None:
        given = {'when': datetime(2026, 1, 1), 'set': {1}, 'list': [{'a': (1,)}]}
        cleaned = utils.clean(given)
        self.assertEqual(
            cleaned,
            {'when': datetime(2026, 1, 1), 'set': [1], 'list': [{'a': [1]}]},
        )
        self.assertEqual(given['set'], {1})
        self.assertIsNot(cleaned['list'], given['list'])


class TimeTest(unittest.TestCase):
    def test_naive_is_without_an_offset(self) -> None:
        self.assertTrue(utils.is_naive(datetime.now()))
        self.assertFalse(utils.is_naive(datetime.now(timezone.utc)))

    def test_the_zone_of_an_aware_time_is_kept(self) -> None:
        moment = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=3)))
        self.assertEqual(utils.guess_timezone(moment), moment)

    def test_a_naive_time_is_local_if_it_is_now_else_utc(self) -> None:
        now = datetime.now()
        self.assertEqual(
            utils.guess_timezone(now).utcoffset(), now.astimezone().utcoffset()
        )
        for moment in (datetime(1970, 1, 1), datetime.max, datetime.min):
            self.assertEqual(utils.guess_timezone(moment).tzinfo, timezone.utc)

    def test_a_trailing_slash_is_removed(self) -> None:
        self.assertEqual(utils.remove_trailing_slash('http://h/'), 'http://h')
        self.assertEqual(utils.remove_trailing_slash('http://h'), 'http://h')

    def test_the_time_now_is_utc_in_milliseconds(self) -> None:
        before = datetime.now(timezone.utc)
        text = stamps.iso_now()
        self.assertRegex(text, r'^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$')
        self.assertRegex(stamps.to_iso(before), r'\.\d{3}\+00:00$')
        self.assertGreaterEqual(text, stamps.to_iso(before))

    def test_a_time_of_a_class_that_does_not_write_itself_is_written(self) -> None:
        self.assertEqual(
            stamps.to_iso(Moment(2026, 1, 2, 3, 4, 5, 6000)),
            '2026-01-02T03:04:05.006+00:00',
        )

    @unittest.skipIf(sys.version_info < (3, 7), 'there are no such offsets')
    def test_a_time_whose_offset_has_seconds_is_written_in_utc(self) -> None:
        odd = timezone(timedelta(hours=1, minutes=59, seconds=50))
        self.assertEqual(
            stamps.to_iso(datetime(2026, 1, 2, 3, 4, 5, 0, odd)),
            '2026-01-02T01:04:15.000+00:00',
        )

    def test_a_datetime_that_is_no_time_is_a_validation_error(self) -> None:
        class NotATime(datetime):  # as pandas has one
            year = property(lambda self: float('nan'))  # type: ignore[assignment]

            def isoformat(self, *args: Any, **kwargs: Any) -> str:
                return 'NaT'

        with self.assertRaises(ValidationError) as caught:
            stamps.to_iso(NotATime(2026, 1, 2))
        self.assertIn('NotATime', str(caught.exception))

    def test_what_is_no_time_is_a_validation_error(self) -> None:
        for value in (5, 'now', '', '2026', '12:00', '2026-99-01', date.today()):
            with self.assertRaises(ValidationError, msg=repr(value)):
                stamps.to_iso(value)


if __name__ == '__main__':
    unittest.main()
