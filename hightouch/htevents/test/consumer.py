import json
import logging
import os
import pickle
import queue
import threading
import unittest
from typing import Any, Callable, List

import mock
import requests

from hightouch.htevents._process.transport import Lease
from hightouch.htevents._queue.queue import Queue
from hightouch.htevents._queue.queue_api import QueueApi
from hightouch.htevents._queue.stores import MemoryStore
from hightouch.htevents.collector import Fault
from hightouch.htevents.consumer import MAX_MSG_SIZE, Consumer, FatalError
from hightouch.htevents.errors import NotDeliveredError, ValidationError
from hightouch.htevents.request import APIError
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.support import (
    LIMIT,
    LogCatcher,
    Recorder,
    TestCase,
)

TRACK = {
    'type': 'track',
    'event': 'event',
    'userId': 'user',
    'anonymousId': None,
    'messageId': 'id',
    'timestamp': '2099-01-01T00:00:00.000+00:00',
    'properties': {},
    'integrations': {},
    'context': {'library': {'name': 'events-sdk-python', 'version': '0'}},
}


class NextTest(unittest.TestCase):
    def consumer(self, source: Any, **kwargs: Any) -> Consumer:
        kwargs.setdefault('upload_interval', 0.05)
        return Consumer(source, TEST_WRITE_KEY, **kwargs)

    def test_next_gives_what_the_queue_has(self) -> None:
        source = queue.Queue()  # type: Any
        source.put(1)
        self.assertEqual(self.consumer(source).next(), [1])

    def test_next_gives_a_plain_list_whose_messages_the_caller_acknowledges(
        self,
    ) -> None:
        waiting = Queue(MemoryStore(0))
        source = QueueApi(waiting, 0, waiting.offer)
        sent = [dict(TRACK, messageId=str(number)) for number in range(3)]
        for message in sent:
            source.put(message)
        batch = self.consumer(source).next()
        self.assertIs(type(batch), list)
        self.assertEqual(json.loads(json.dumps(batch)), sent)
        for pending in (3, 3, 0):
            source.task_done()
            self.assertEqual(waiting.ledger.stats().pending, pending)
        self.assertEqual(waiting.ledger.stats().delivered, 3)
        self.assertRaises(ValueError, source.task_done)

    def test_next_stops_at_upload_size(self) -> None:
        source = queue.Queue()  # type: Any
        for number in range(1000):
            source.put(number)
        consumer = Consumer(source, TEST_WRITE_KEY, 50)
        self.assertEqual(consumer.next(), list(range(50)))

    def test_next_gives_an_empty_list_after_upload_interval(self) -> None:
        self.assertEqual(self.consumer(queue.Queue()).next(), [])

    def test_next_drops_acknowledges_and_reports_an_oversize_item(self) -> None:
        source = queue.Queue()  # type: Any
        lost = Recorder()
        source.put({'m': 'x' * MAX_MSG_SIZE})
        self.assertEqual(self.consumer(source, on_error=lost).next(), [])
        self.assertTrue(source.empty())
        source.join()
        self.assertEqual(len(lost.calls), 1)

    def test_a_batch_stays_under_the_limit_of_bytes(self) -> None:
        source = queue.Queue()  # type: Any
        for _ in range(40):
            source.put({'m': 'é' * 15000})
        consumer = self.consumer(source)
        sizes = []
        while True:
            batch = consumer.next()
            if not batch:
                break
            sizes.append(len(batch))
        self.assertEqual(sum(sizes), 40)
        self.assertEqual(sizes[0], 15)

    def test_the_published_arguments_are_positional_and_kept(self) -> None:
        on_error, manager = Recorder(), object()
        consumer = Consumer(
            None, 'key', 5, 'http://h', on_error, 2, True, 3, 4, {'http': 'p'}, manager
        )
        self.assertEqual(
            (consumer.upload_size, consumer.host, consumer.upload_interval),
            (5, 'http://h', 2),
        )
        self.assertEqual((consumer.gzip, consumer.retries, consumer.timeout), (1, 3, 4))
        self.assertTrue(consumer.daemon and consumer.running)
        consumer.pause()
        self.assertFalse(consumer.running)

    def test_fatal_error_reads_as_published(self) -> None:
        self.assertEqual(str(FatalError('why')), '[Hightouch] why')


class UploadTest(TestCase):
    def consumer(self, source: Any, **kwargs: Any) -> Consumer:
        kwargs.setdefault('host', self.collector.url)
        consumer = Consumer(source, TEST_WRITE_KEY, **kwargs)
        self.addCleanup(consumer.pause)
        return consumer

    def test_upload_delivers_and_acknowledges(self) -> None:
        source = queue.Queue()  # type: Any
        source.put(TRACK)
        self.assertTrue(self.consumer(source, upload_interval=0.05).upload())
        source.join()
        self.assertEqual(self.collector.events, [TRACK])

    def test_a_consumer_lives_on_when_there_was_nothing_to_take(self) -> None:
        class Bare:
            """A queue of somebody's own: no condition to wait on."""

            def __init__(self) -> None:
                source = queue.Queue()  # type: Any
                self.put, self.get = source.put, source.get
                self.task_done, self.join = source.task_done, source.join

        for source in (queue.Queue(), Bare()):  # type: Any
            lost = Recorder()
            consumer = self.consumer(source, upload_interval=0.01, on_error=lost)
            consumer.start()
            source.put({'m': 'x' * MAX_MSG_SIZE})
            self.assertTrue(lost.wait_for(1))
            source.join()
            self.collector.events.clear()
            source.put(TRACK)
            self.assertTrue(self.collector.wait_for(1, LIMIT))
            source.join()
            consumer.pause()
            source.put(TRACK)  # what it still takes, it delivers
            consumer.join(LIMIT)
            self.assertFalse(consumer.is_alive())
            left = source.get(timeout=0) if len(self.collector.events) < 2 else None
            self.assertIn(left, (None, TRACK))

    def test_a_request_of_a_subclass_is_the_one_that_sends(self) -> None:
        class Kept(Consumer):
            fails = True

            def request(self, batch: List[Any]) -> None:
                if self.fails:
                    raise APIError(400, 'code', 'message')
                sent.append(list(batch))

        sent: List[Any] = []
        lost = Recorder()
        source = queue.Queue()  # type: Any
        consumer = Kept(source, TEST_WRITE_KEY, on_error=lost, upload_interval=0.05)
        source.put(TRACK)
        self.assertFalse(consumer.upload())
        self.assertEqual(lost.calls[0][1], [TRACK])
        consumer.fails = False
        source.put(TRACK)
        self.assertTrue(consumer.upload())
        self.assertEqual(sent, [[TRACK]])
        self.assertEqual(self.collector.requests, [])

    def test_an_interrupted_upload_keeps_its_events_for_the_next_one(self) -> None:
        class Interrupted(Lease):
            interrupts = 1

            def get(self) -> Any:
                if self.interrupts:
                    self.interrupts -= 1
                    raise KeyboardInterrupt
                return super().get()

        source = queue.Queue(2)  # type: Any
        messages = [dict(TRACK, messageId=str(number)) for number in range(4)]
        source.put(messages[0])
        source.put(messages[1])
        lease = Interrupted()
        self.addCleanup(lease.close)
        consumer = self.consumer(source, upload_interval=0.05, lease=lease)
        with self.assertRaises(KeyboardInterrupt):
            consumer.upload()
        source.put(messages[2])  # it is full again
        source.put(messages[3])
        self.assertTrue(consumer.upload())
        self.assertTrue(consumer.upload())
        self.assertEqual(self.collector.events, messages)
        source.join()

    def test_upload_without_events_is_false(self) -> None:
        self.assertFalse(self.consumer(queue.Queue(), upload_interval=0.01).upload())

    def test_a_started_consumer_serves_somebody_elses_queue(self) -> None:
        source = queue.Queue()  # type: Any
        consumer = self.consumer(source, upload_interval=0.05)
        consumer.start()
        for _ in range(3):
            source.put(TRACK)
        self.assertTrue(self.collector.wait_for(3))
        source.join()
        consumer.pause()
        consumer.join(LIMIT)
        self.assertFalse(consumer.is_alive())

    def test_a_bad_item_does_not_stop_it(self) -> None:
        source = queue.Queue()  # type: Any
        self.collector.strict = False
        consumer = self.consumer(source, upload_size=1, upload_interval=0.05)
        consumer.start()
        for item in (None, 7, object(), {1: {2}}, TRACK):
            source.put(item)
        self.assertTrue(self.collector.wait_for(5))
        source.join()

    def test_request_sends_a_list_of_dicts(self) -> None:
        self.consumer(None).request([TRACK, TRACK])
        self.assertEqual(self.collector.events, [TRACK, TRACK])

    def test_post_may_be_patched_in_either_module_that_has_it(self) -> None:
        for module in ('consumer', 'request'):
            source = queue.Queue()  # type: Any
            source.put(TRACK)
            with mock.patch('hightouch.htevents.%s.post' % module) as post:
                self.assertTrue(self.consumer(source, upload_interval=0.05).upload())
            self.assertEqual(post.call_args[1]['batch'], [TRACK])
            self.assertIs(type(post.call_args[1]['batch']), list)
        self.assertEqual(self.collector.requests, [])

    def test_a_patched_post_is_called_as_published(self) -> None:
        batches = []

        def as_published(
            write_key: str,
            host: Any = None,
            gzip: bool = False,
            timeout: float = 15,
            proxies: Any = None,
            oauth_manager: Any = None,
            batch: Any = None,
        ) -> None:
            batches.append((write_key, host, batch.pop()['event']))

        for module in ('consumer', 'request'):
            with mock.patch('hightouch.htevents.%s.post' % module, as_published):
                client = self.client(sync_mode=True, max_retries=0)
                self.assertTrue(client.track('user', 'event')[0])
        expected = (TEST_WRITE_KEY, self.collector.url, 'event')
        self.assertEqual(batches, [expected] * 2)

    def test_falsy_callbacks_of_a_consumer_mean_none(self) -> None:
        for none in (None, False, 0, '', []):  # type: Any
            source = queue.Queue()  # type: Any
            source.put(TRACK)
            self.collector.script(400)
            with LogCatcher() as log:
                self.consumer(
                    source, upload_interval=0.05, on_error=none, on_success=none
                ).upload()
            self.assertEqual(len(log.lines(logging.WARNING)), 1)  # that it is lost

    def test_a_patched_post_that_raises_anything_is_called_again(self) -> None:
        for module in ('consumer', 'request'):
            for sync_mode in (False, True):
                lost = Recorder()
                client = self.client(
                    on_error=lost, sync_mode=sync_mode, max_retries=2, send=True
                )
                outcomes = [Exception('generic'), KeyError('unknown'), None]
                with mock.patch(
                    'hightouch.htevents.%s.post' % module, side_effect=outcomes
                ) as post, mock.patch(
                    'hightouch.htevents._queue.retry.wait_time', lambda *_: 0
                ):
                    client.track('user', 'event')
                    self.assertTrue(client.flush(LIMIT))
                self.assertEqual((post.call_count, lost.calls), (3, []))


def error_of_requests(name: str) -> Any:
    """Make an error class as newer releases of requests than the lowest one have it."""
    return type(name, (requests.RequestException, ValueError), {})


class RetryTest(TestCase):
    def request(self, failures: List[Any], retries: int = 3) -> None:
        outcomes = list(failures) + [None]

        def post(*args: Any, **kwargs: Any) -> None:
            outcome = outcomes.pop(0)
            if outcome is not None:
                raise outcome

        with mock.patch('hightouch.htevents.consumer.post', post), mock.patch(
            'hightouch.htevents._queue.retry.wait_time', lambda *_: 0
        ):
            Consumer(None, TEST_WRITE_KEY, retries=retries).request([TRACK])

    def test_what_may_pass_is_tried_as_often_as_retries_say(self) -> None:
        for make in (
            lambda: APIError(500, 'code', 'internal'),
            lambda: APIError(503, 'code', ''),
            lambda: APIError(429, 'code', ''),
            lambda: APIError(408, 'code', ''),
            lambda: requests.ConnectionError(),
            lambda: requests.Timeout(),
            error_of_requests('JSONDecodeError'),
            lambda: Exception('generic'),
            lambda: ValueError(),
            lambda: TypeError(),
            lambda: KeyError('of a handler'),
            lambda: MemoryError(),
            lambda: AssertionError(),
        ):  # type: Callable[[], Exception]
            self.request([make() for _ in range(3)])
            with self.assertRaises(type(make())):
                self.request([make() for _ in range(4)])

    def test_what_stays_is_tried_once(self) -> None:
        for error in (
            APIError(400, 'code', ''),
            APIError(401, 'code', ''),
            APIError(404, 'code', ''),
            APIError(501, 'code', ''),
            APIError(505, 'code', ''),
            APIError(302, 'code', ''),
            requests.exceptions.InvalidURL(),
            type('InvalidProxyURL', (requests.exceptions.InvalidURL,), {})(),
            requests.exceptions.MissingSchema(),
            requests.exceptions.InvalidSchema(),
            error_of_requests('InvalidHeader')(),
            FatalError('known to be final'),
            ValidationError('proxies'),
        ):
            with self.assertRaises(type(error)):
                self.request([error])

    def test_a_host_that_no_request_can_have_is_tried_once(self) -> None:
        hosts = [
            'example.com',
            'ftp://example.com',
            'http://',
            'http://user:password@',
            'http://%s.invalid' % ('a' * 70),
            'http://127.0.0.1:port',
        ]
        # Older releases raise a plain ValueError for these.
        if hasattr(requests.exceptions, 'InvalidHeader'):
            hosts += ['http://[::1', 'http://u:p@[::1']
        for host in hosts:
            lost = Recorder()
            client = self.client(host=host, on_error=lost, upload_interval=0.01)
            client.track('user', 'event')
            self.assertTrue(lost.wait_for(1))
            self.assertEqual(client.stats().retried, 0, host)

    def test_what_somebody_has_to_mend_is_one_warning_at_the_first_try(self) -> None:
        wrong = requests.Session()
        wrong.cert = '/nowhere/cert.pem'
        tls = self.collector.url.replace('http:', 'https:')
        for session, authorities, text in (
            (None, '/nowhere/ca.pem', '/nowhere/ca.pem'),
            (wrong, '', '/nowhere/cert.pem'),
            (None, '', 'SSL'),  # this is not a server that knows TLS
        ):
            settings = {'REQUESTS_CA_BUNDLE': authorities, 'CURL_CA_BUNDLE': ''}
            with mock.patch.dict(os.environ, settings), LogCatcher() as log:
                client = self.client(
                    host=tls, session=session, sync_mode=True, max_retries=2
                )
                for _ in range(2):
                    client.track('user', 'event')
                self.assertEqual(client.stats().retried, 4)
                (line,) = [each for each in log.lines() if 'WARNING' in each]
            self.assertRegex(line, text + '|No such file')  # as old releases say it

    def test_what_the_application_is_handling_is_not_taken_for_that(self) -> None:
        for fault in (503, 'reset'):
            self.collector.script(fault)
            client = self.client(sync_mode=True)
            with LogCatcher() as log:
                try:
                    open('/nowhere/at/all')
                except OSError:
                    self.assertTrue(client.track('user', 'event')[0])
            self.assertEqual(log.lines(logging.WARNING), [])
            self.assertEqual(client.stats().retried, 1)

    def test_an_odd_error_of_an_application_is_one_as_others_are(self) -> None:
        class Odd(PermissionError):
            retry_after = 'soon'

            def __str__(self) -> str:
                raise ValueError

        post = mock.Mock(side_effect=[Odd(), None])
        with mock.patch('hightouch.htevents.request.post', post):
            client = self.client(sync_mode=True)
            self.assertTrue(client.track('user', 'event')[0])
        self.assertEqual(client.stats().retried, 1)

    def test_a_batch_that_is_lost_makes_one_error_line_and_only_then(self) -> None:
        self.collector.script(503, 503, 503, 503)
        lost = Recorder()
        with LogCatcher() as log:
            client = self.client(max_retries=2, on_error=lost, upload_interval=LIMIT)
            for _ in range(5):
                client.track('user', 'event', {'secret': 'payload'})
            self.assertTrue(client.flush(LIMIT))
            lines = log.lines(level=40)
        self.assertEqual(len(lines), 1)
        self.assertIn('5 event', lines[0])
        self.assertIn('503', lines[0])
        self.assertIn('127.0.0.1', lines[0])
        self.assertNotIn('payload', lines[0])
        self.assertEqual(len(lost.calls), 1)
        self.assertEqual(len(self.collector.requests), 3)

    def test_retries_that_succeed_make_no_error_line(self) -> None:
        self.collector.script(503, 'reset', 503)
        with LogCatcher() as log:
            self.sent()
            self.assertEqual(log.lines(level=40), [])

    def test_an_event_survives_a_server_that_is_away(self) -> None:
        client = self.client()
        self.collector.stop()
        client.track('user', 'event')
        while not client.stats().retried:
            self.assertFalse(client.flush(0.01))
        self.collector.start()
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)


class SplitTest(TestCase):
    def refuse(self, bad: Callable[[Any], bool], status: int) -> None:
        def answer(received: Any) -> Any:
            if any(map(bad, received.body['batch'])):
                return Fault(status, {}, b'{}')
            return 200

        self.collector.script(*[answer] * 1000)

    def test_a_400_for_one_event_loses_only_that_one(self) -> None:
        self.refuse(lambda event: event['event'] == '37', 400)
        lost = Recorder()
        client = self.client(on_error=lost, upload_interval=LIMIT)
        for number in range(100):
            client.track('user', str(number))
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 99)
        ((error, batch),) = lost.calls
        self.assertEqual([each['event'] for each in batch], ['37'])
        self.assertEqual(error.status, 400)
        self.assertLessEqual(len(self.collector.requests), 2 * 7 + 1)
        self.assert_adds_up(client)

    def test_a_batch_that_is_bad_as_a_whole_takes_at_most_2n_requests(self) -> None:
        self.refuse(lambda event: True, 400)
        lost = Recorder()
        client = self.client(on_error=lost, upload_interval=LIMIT)
        for number in range(32):
            client.track('user', str(number))
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.requests), 63)
        self.assertEqual(len(lost.calls), 1)
        self.assertEqual(len(lost.calls[0][1]), 32)

    def test_a_413_is_sent_in_smaller_batches(self) -> None:
        def answer(received: Any) -> Any:
            return Fault(413) if len(received.body['batch']) > 10 else 200

        self.collector.script(*[answer] * 1000)
        client = self.client()
        for number in range(100):
            client.track('user', str(number))
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(
            [each['event'] for each in self.collector.events],
            [str(number) for number in range(100)],
        )


class ShutdownTest(TestCase):
    def test_it_does_not_wait_out_a_backoff(self) -> None:
        self.collector.script(Fault(503, {'Retry-After': '300'}))
        client = self.client()
        client.track('user', 'event')
        self.collector.wait_for_requests(1)
        self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(len(self.collector.events), 1)

    def test_what_is_not_delivered_in_time_is_reported_once(self) -> None:
        self.collector.script(*['hang'] * 10)
        lost = Recorder()
        with LogCatcher() as log:
            client = self.client(on_error=lost, upload_interval=LIMIT)
            for _ in range(150):
                client.track('user', 'event')
            self.collector.wait_for_requests(1)
            self.assertFalse(client.shutdown(0.05))
            self.collector.stop()
            for consumer in client.consumers or ():
                consumer.join(LIMIT)
            self.assertEqual(len(log.lines(level=40)), 1, log.lines())
        self.assertEqual(sum(len(batch) for _, batch in lost.calls), 150)
        self.assertEqual(len(lost.calls), 1)
        self.assertEqual(client.stats().failed, 150)
        self.assert_adds_up(client)

    def test_what_is_not_delivered_in_time_is_reported_with_the_last_error(
        self
    ) -> None:
        class Session(requests.Session):
            posts, answer = 0, threading.Event()

            def post(self, *args: Any, **kwargs: Any) -> Any:
                self.posts += 1
                if self.posts > 1:  # no deadline ends it: else it could come first
                    self.answer.wait(LIMIT)
                return super().post(*args, **kwargs)

        self.collector.script(Fault(503, {'Retry-After': '300'}))
        lost = Recorder()
        session = Session()
        with LogCatcher() as log:
            client = self.client(on_error=lost, max_retries=1, session=session)
            client.track('user', 'event')
            self.assertTrue(self.collector.wait_for_requests(1))
            while client.stats().last_error is None:
                self.assertFalse(client.flush(0.01))
            # With time for one more try, on a busy machine too, which gets no answer.
            self.assertFalse(client.shutdown(2))
            session.answer.set()
            (line,) = log.lines(logging.ERROR)
        error = lost.calls[0][0]
        self.assertIsInstance(error, NotDeliveredError)
        self.assertEqual(error.last_error, 'HTTP 503')
        self.assertIn('HTTP 503', str(error))
        self.assertIn('HTTP 503', line)
        self.assertEqual(pickle.loads(pickle.dumps(error)).args, error.args)

    def test_calls_after_it_are_refused_with_one_warning(self) -> None:
        client = self.client()
        self.assertTrue(client.shutdown())
        with LogCatcher() as log:
            for _ in range(3):
                accepted, message = client.track('user', 'event')
                self.assertFalse(accepted)
                self.assertEqual(message['event'], 'event')
            self.assertEqual(len(log.lines()), 1)
        self.assertTrue(client.shutdown() and client.join() and client.flush())

    def test_a_paused_consumer_ends(self) -> None:
        client = self.client(thread=4)
        client.track('user', 'event')
        client.flush(LIMIT)
        for consumer in client.consumers or ():
            consumer.pause()
        for consumer in client.consumers or ():
            consumer.join(LIMIT)
            self.assertFalse(consumer.is_alive())

    def test_a_flush_delivers_although_the_consumers_are_paused(self) -> None:
        client = self.client()
        for consumer in client.consumers or ():
            consumer.pause()
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)

    def test_a_consumer_of_a_queue_keeps_its_connection(self) -> None:
        source = queue.Queue()  # type: Any
        consumer = Consumer(
            source, TEST_WRITE_KEY, host=self.collector.url, upload_size=1
        )
        consumer.start()
        for _ in range(3):
            source.put({'event': 'event'})
        source.join()
        consumer.pause()
        consumer.join(LIMIT)
        self.assertEqual(self.collector.connections, 1)

    def test_shutdown_from_a_callback_works(self) -> None:
        done = threading.Event()

        def end(batch: Any) -> None:
            client.shutdown(LIMIT)
            done.set()

        client = self.client(on_success=end)
        client.track('user', 'event')
        self.assertTrue(done.wait(LIMIT))


if __name__ == '__main__':
    unittest.main()
