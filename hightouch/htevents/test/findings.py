"""The warnings of values that JSON cannot carry."""

import json
import logging
import queue
import unittest
from typing import Any

from hightouch.htevents import utils
from hightouch.htevents.consumer import Consumer
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.support import LogCatcher, TestCase


class Odd:
    def __str__(self) -> str:
        return 'written'


class Other(Odd):
    pass


class FindingsTest(TestCase):
    def warnings(self, *events: Any, **settings: Any) -> Any:
        """Track events of these properties; gives the lines of warnings."""
        client = self.holding(send=False, **settings)
        with LogCatcher() as log:
            for properties in events:
                client.track('user', 'event', properties)
            return log.lines(logging.WARNING)

    def test_a_kind_of_value_at_a_place_is_told_once_and_then_at_each_tenfold(
        self,
    ) -> None:
        lines = self.warnings(*[{'a': Odd()}] * 2000)
        self.assertEqual(
            lines,
            ['WARNING properties.a: a value of type Odd is not JSON; its str() is sent']
            + [
                'WARNING properties.a: a value of type Odd is not JSON; its str() is '
                'sent (at least %d so far)' % count
                for count in (10, 100, 1000)
            ],
        )

    def test_another_kind_or_place_is_told_as_well(self) -> None:
        first, second, third, fourth = self.warnings(
            {'a': Odd()}, {'b': Odd()}, {'a': Other()}, {'a': len}, {'a': Odd()}
        )
        self.assertIn('properties.b: a value of type Odd', second)
        self.assertIn('properties.a: a value of type Other', third)
        self.assertIn('is code, not data', fourth)

    def test_the_elements_of_a_list_are_one_place(self) -> None:
        (line,) = self.warnings({'a': [1, Odd()]}, {'a': [Odd(), {}, Odd()]})
        self.assertIn('properties.a[1]: a value of type Odd', line)

    def test_the_warnings_of_an_event_are_one_line(self) -> None:
        client = self.holding(send=False)
        with LogCatcher() as log:
            client.track('user', 'event', {'a': Odd(), 'b': len}, {'c': [Other()]})
            (line,) = log.lines(logging.WARNING)
        for text in ('properties.a', 'Odd', 'properties.b', 'context.c[0]', 'Other'):
            self.assertIn(text, line)

    def test_an_event_full_of_odd_values_is_one_short_line(self) -> None:
        client = self.holding(send=False)
        deep: Any = {'k' * 5000: Odd()}
        for number in range(90):
            deep = {'k' * 5000: deep, str(number): [Odd()] * 100}
        with LogCatcher() as log:
            with self.assertRaises(RuntimeError):
                client.track('user', 'event', deep)
            client.track('user', 'event', {str(each): Odd() for each in range(1500)})
            lines = log.lines(logging.WARNING)
        self.assertEqual(len(lines), 2)
        for line in lines:
            self.assertLess(len(line), 10 * 300)

    def test_new_places_without_end_are_told_of_with_fewer_and_fewer_lines(
        self,
    ) -> None:
        lines = self.warnings(*[{'k%d' % each: Odd()} for each in range(10000)])
        self.assertLess(len(lines), 110)
        self.assertEqual(len(set(lines)), len(lines))

    def test_what_is_not_named_at_first_is_named_later(self) -> None:
        event = {'k%d' % each: Odd() for each in range(25)}
        text = '\n'.join(self.warnings(event, event, event))
        for name in event:
            self.assertIn('properties.%s: ' % name, text)

    def test_a_path_is_short(self) -> None:
        deep: Any = Odd()
        for _ in range(50):
            deep = {'k' * 50: [deep]}
        (line,) = self.warnings(deep)
        path = line[len('WARNING ') : line.index(': a value')]
        self.assertLessEqual(len(path), 200)
        self.assertTrue(path.startswith('properties.kkk'))

    def test_no_text_of_the_event_begins_a_line_or_steers_a_terminal(self) -> None:
        kind = type('Od\nd\x1b[2J', (Odd,), {})
        (line,) = self.warnings({'a\nERROR forged\x1b[31m\u202e\u2028': kind()})
        self.assertTrue(line.isprintable())
        self.assertIn(r'properties.a\nERROR forged\x1b[31m', line)
        self.assertIn(r'Od\nd\x1b[2J', line)

    def test_a_class_whose_name_raises_is_told_of(self) -> None:
        class Meta(type):
            @property
            def __name__(cls) -> str:  # type: ignore[override]
                raise ValueError

        (line,) = self.warnings({'a': Meta('Named', (), {})()})
        self.assertIn('type Named', line)

    def test_each_client_tells_for_itself(self) -> None:
        for _ in range(2):
            self.assertEqual(len(self.warnings({'a': Odd()}, {'a': Odd()})), 1)

    def test_what_before_send_leaves_is_told_of(self) -> None:
        def before_send(message: Any) -> Any:
            message['properties']['mine'] = Odd()
            return message

        (line,) = self.warnings({'a': Odd()}, {'a': Odd()}, before_send=before_send)
        self.assertIn('properties.a: ', line)
        self.assertIn('properties.mine: ', line)

    def test_a_date_that_cannot_be_written_is_named(self) -> None:
        from hightouch.htevents.test.utils import Moment

        (line,) = self.warnings({'a': [Moment(2026, 1, 1)]})
        self.assertIn('properties.a[0]: a value of type Moment raised', line)

    def test_a_value_alone_is_told_of_each_time(self) -> None:
        with LogCatcher() as log:
            for _ in range(2):
                utils.clean({'a': Odd(), 'b': Odd()})
            first, second = log.lines(logging.WARNING)
        self.assertEqual(first, second)
        self.assertIn('; b: a value of type Odd', first)

    def test_a_consumer_of_a_plain_queue_tells_once(self) -> None:
        source: Any = queue.Queue()
        for _ in range(5):
            source.put({'a': Odd()})
        consumer = Consumer(source, TEST_WRITE_KEY, 5, self.collector.url)
        with LogCatcher() as log:
            batch = consumer.next()
            (line,) = log.lines(logging.WARNING)
        self.assertEqual(
            [json.loads(json.dumps(each)) for each in batch][0], {'a': 'written'}
        )


if __name__ == '__main__':
    unittest.main()
