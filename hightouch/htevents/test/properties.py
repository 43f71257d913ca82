"""Whatever the host passes in: only the documented errors leave a call."""

import itertools
import logging
import unittest
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hightouch.htevents import Client, encoding, utils
from hightouch.htevents.encoding import encode
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.forms import ByClass, Level
from hightouch.htevents.test.support import LIMIT, decoded

settings.register_profile(
    'suite',
    deadline=None,
    derandomize=True,
    max_examples=150,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile('suite')


class Weird:
    def __str__(self) -> str:
        raise ValueError


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.text(alphabet=st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010)),
)
odd = st.one_of(
    scalars,
    st.binary(),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.datetimes(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.builds(Weird),
    st.builds(object),
    st.builds(lambda: 10**6000),  # its repr raises, hence not just()
    st.just(Weird),
    st.integers(-5, 10**9).map(range),
    st.lists(scalars, max_size=3).map(lambda each: ByClass(lambda: each)),
    scalars.map(lambda each: ByClass(lambda: each)),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3).map(dict.items),
    st.builds(lambda: iter([Weird(), itertools.count()])),
    st.builds(lambda: SimpleNamespace(a=Weird())),
    st.sampled_from(Level),
)
zones = st.one_of(
    st.none(),
    st.just(timezone.utc),
    st.integers(-1439, 1439).map(lambda each: timezone(timedelta(minutes=each))),
)
keys = st.one_of(st.text(max_size=5), scalars, st.binary(), st.tuples(st.integers()))
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
    ),
    max_leaves=20,
)
values = st.recursive(
    odd,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(st.integers(), max_size=3),
    ),
    max_leaves=20,
)
fields = st.one_of(st.none(), st.dictionaries(keys, values, max_size=4), odd)


class EncodingPropertyTest(unittest.TestCase):
    def setUp(self) -> None:
        encoding.preload()
        logging.getLogger('hightouch').setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger('hightouch').setLevel, logging.NOTSET)

    @given(st.dictionaries(keys, values, max_size=4))
    def test_every_message_becomes_strict_json(self, message: Any) -> None:
        self.assertIsInstance(decoded(encode(message)[0]), dict)

    @given(st.dictionaries(st.text(max_size=5), plain, max_size=4))
    def test_both_encoders_say_the_same(self, message: Any) -> None:
        cleaned = utils.clean(message)
        self.assertEqual(decoded(encode(message)[0]), cleaned)
        self.assertEqual(decoded(encoding._stdlib(cleaned)), cleaned)

    @given(st.one_of(st.datetimes(timezones=zones), st.dates()))
    def test_both_encoders_write_a_date_in_the_same_way(self, value: Any) -> None:
        expected = {'at': value.isoformat()}
        self.assertEqual(decoded(encode({'at': value})[0]), expected)
        self.assertEqual(decoded(encoding._stdlib({'at': value})), expected)

    @given(values)
    def test_cleaning_twice_changes_nothing_more(self, value: Any) -> None:
        once = utils.clean(value)
        self.assertEqual(utils.clean(once), once)


class CallPropertyTest(unittest.TestCase):
    def setUp(self) -> None:
        logging.getLogger('hightouch').setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger('hightouch').setLevel, logging.NOTSET)
        # Nothing is sent: its events are taken from the queue long before they are due.
        self.client = Client(
            TEST_WRITE_KEY, 'http://127.0.0.1:9', upload_interval=LIMIT * 100
        )
        self.addCleanup(self.client.shutdown, 0)

    def call(self, name: str, *args: Any, **kwargs: Any) -> None:
        try:
            accepted, message = getattr(self.client, name)(*args, **kwargs)
        except (AssertionError, RuntimeError) as error:
            self.assertTrue(str(error))
            return
        self.assertIs(accepted, True)
        body = self.client._queue.take_now(1)
        assert body is not None
        arrived = decoded(body.bodies[0])
        self.assertEqual(arrived['type'], name)
        self.assertEqual(arrived['messageId'], message['messageId'])
        self.assertIsInstance(arrived['context']['library'], dict)
        datetime.strptime(arrived['timestamp'][:19], '%Y-%m-%dT%H:%M:%S')
        self.client._queue.acknowledge(body, delivered=True)

    ids = st.one_of(st.text(min_size=1, max_size=5), st.integers(), odd)
    times = st.one_of(st.none(), st.datetimes(), odd)

    @given(st.tuples(ids, fields, fields, times, ids, fields, odd))
    def test_identify(self, args: Any) -> None:
        self.call('identify', *args)

    @given(
        st.tuples(
            ids, st.one_of(st.text(), odd), fields, fields, times, ids, fields, odd
        )
    )
    def test_track(self, args: Any) -> None:
        self.call('track', *args)

    @given(st.tuples(ids, ids, fields, times, fields, odd))
    def test_alias(self, args: Any) -> None:
        self.call('alias', *args)

    @given(st.tuples(ids, ids, fields, fields, times, ids, fields, odd))
    def test_group(self, args: Any) -> None:
        self.call('group', *args)

    @given(st.tuples(ids, odd, odd, fields, fields, times, ids, fields, odd))
    def test_page(self, args: Any) -> None:
        self.call('page', *args)

    @given(st.tuples(ids, odd, odd, fields, fields, times, ids, fields, odd))
    def test_screen(self, args: Any) -> None:
        self.call('screen', *args)

    @given(st.text(min_size=1), st.dictionaries(st.text(), values), plain)
    def test_properties_of_any_kind_are_taken(
        self, user: str, properties: Any, other: Any
    ) -> None:
        self.call('track', user, 'event', properties, {'other': other})


if __name__ == '__main__':
    unittest.main()
