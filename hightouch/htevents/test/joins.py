"""Ids by which an event is joined with others: those that repeat, and those of a trace."""

import datetime
import decimal
import enum
import importlib.util
import logging
import sys
import unittest
import uuid
from types import SimpleNamespace
from typing import Any, List
from unittest import mock

import hightouch.htevents as htevents
from hightouch.htevents import Client
from hightouch.htevents._context import traces
from hightouch.htevents.test.support import LogCatcher, TestCase, run_program


class Kind(enum.Enum):
    ORDER = 'order'


class Unsaved:
    def __str__(self) -> str:
        return 'Order object (None)'


class IdempotencyKeyTest(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.caller = Client('key', send=False)

    def id_of(self, key: Any, event: str = 'Order placed', **kwargs: Any) -> str:
        message_id = self.caller.track('user', event, idempotency_key=key, **kwargs)[1][
            'messageId'
        ]
        self.assertEqual(uuid.UUID(message_id).version, 5)
        return str(message_id)

    def test_the_id_is_the_same_in_every_process(self) -> None:
        program = (
            'from hightouch.htevents import Client\n'
            'print(Client("key", send=False).track("user", "Order placed",'
            ' idempotency_key=("order", 7))[1]["messageId"])'
        )
        here = self.id_of(('order', 7))
        for seed in ('1', '2'):
            with mock.patch.dict('os.environ', PYTHONHASHSEED=seed):
                self.assertEqual(run_program(program).stdout.strip(), here)
        # It must not change from release to release either.
        self.assertEqual(here, 'f1791168-913f-510d-ae13-b37102d1c2dd')

    def test_user_properties_and_time_do_not_matter(self) -> None:
        self.assertEqual(self.id_of(7), self.id_of(7, properties={'total': 5}))

    def test_write_key_event_and_key_tell_ids_apart(self) -> None:
        ids = [
            self.id_of(key)
            for key in (7, '7', 8, ('order', 7), ('order', '7'), ('order', (7,)))
        ]
        ids.append(self.id_of(7, event='Order paid'))
        self.caller = Client('other key', send=False)
        ids.append(self.id_of(7))
        self.assertEqual(len(set(ids)), len(ids))

    def test_all_stable_values_make_keys(self) -> None:
        for key in (
            0,
            2**80,
            1.5,
            'text',
            uuid.UUID(int=5),
            datetime.date(2026, 1, 2),
            datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
            decimal.Decimal('9.50'),
            Kind.ORDER,
        ):
            self.assertEqual(self.id_of(key), self.id_of(key))
            self.assertEqual(self.id_of((key, 1)), self.id_of([key, 1]))

    def test_a_key_that_may_differ_next_time_is_told(self) -> None:
        # Newer Pythons do not turn such a number into text.
        huge = (10**5000,) if hasattr(sys, 'get_int_max_str_digits') else ()
        for key in (
            '',
            (),
            ('order', None),
            {1, 2},
            {'a': 1},
            object(),
            float('nan'),
            True,
        ) + (b'digest', 1j, datetime.timedelta(1), Unsaved(), *huge):
            with self.assertRaisesRegex(htevents.ValidationError, 'idempotency_key: '):
                self.id_of(key)
            with self.assertRaisesRegex(htevents.ValidationError, 'idempotency_key: '):
                self.id_of(('order', key))

    def test_a_key_without_end_is_told(self) -> None:
        circle: List[Any] = [1]
        circle.append(circle)
        deep: Any = ()
        for _ in range(5000):
            deep = (deep, 1)
        for key in (circle, deep):
            with self.assertRaisesRegex(htevents.ValidationError, 'idempotency_key: '):
                self.id_of(key)

    def test_large_decimals_differ(self) -> None:
        one = self.id_of(decimal.Decimal(10**17))
        self.assertNotEqual(one, self.id_of(decimal.Decimal(10**17 + 1)))

    def test_it_cannot_be_given_beside_a_message_id(self) -> None:
        with self.assertRaisesRegex(htevents.ValidationError, 'message_id: '):
            self.id_of(7, message_id='id')

    def test_none_means_a_random_id(self) -> None:
        message = self.caller.track('user', 'event', idempotency_key=None)[1]
        self.assertEqual(uuid.UUID(message['messageId']).version, 4)


class TraceTest(TestCase):
    def setUp(self) -> None:
        super().setUp()
        traces._failures.__init__()  # type: ignore[misc]
        self.caller = Client('key', send=False, trace_context=True)

    def trace(self, client: Any = None, **kwargs: Any) -> Any:
        caller = client or self.caller
        return caller.track('user', 'event', **kwargs)[1]['context'].get('trace')

    def span(self, **context: Any) -> Any:
        """Have the module of OpenTelemetry with a current span."""
        span = SimpleNamespace(get_span_context=lambda: SimpleNamespace(**context))
        module = SimpleNamespace(get_current_span=lambda: span)
        return mock.patch.dict(sys.modules, {'opentelemetry.trace': module})

    def test_the_ids_of_the_current_span_are_written_as_w3c_does(self) -> None:
        expected = {'traceId': '%032x' % 0xABC, 'spanId': '%016x' % 0x12}
        with self.span(is_valid=True, trace_id=0xABC, span_id=0x12):
            self.assertEqual(self.trace(), expected)
            own = {'trace': {'traceId': 'own'}}
            self.assertEqual(self.trace(context=own), own['trace'])
            with htevents.scope(context=own):
                self.assertEqual(self.trace(), own['trace'])
            self.assertIsNone(self.trace(Client('key', send=False)))

    def test_without_a_valid_span_there_is_none(self) -> None:
        with self.span(is_valid=False, trace_id=0, span_id=0):
            self.assertIsNone(self.trace())
        with mock.patch.dict(sys.modules):
            sys.modules.pop('opentelemetry.trace', None)
            self.assertIsNone(self.trace())
            self.assertNotIn('opentelemetry.trace', sys.modules)

    def test_a_tracer_that_raises_costs_no_event_and_one_warning(self) -> None:
        with LogCatcher() as log, self.span():
            self.assertIsNone(self.trace())
            self.assertIsNone(self.trace())
        self.assertEqual(len(log.lines(logging.WARNING)), 1)

    @unittest.skipUnless(importlib.util.find_spec('opentelemetry'), 'not installed')
    def test_it_is_what_opentelemetry_itself_says(self) -> None:
        from opentelemetry import trace
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

        span = NonRecordingSpan(SpanContext(5, 6, False, TraceFlags(1)))
        with trace.use_span(span):
            expected = {
                'traceId': trace.format_trace_id(5),
                'spanId': trace.format_span_id(6),
            }
            self.assertEqual(self.trace(), expected)
