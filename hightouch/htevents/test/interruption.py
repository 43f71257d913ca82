import os
import signal
import threading
import time
import unittest
from functools import partial
from typing import Any, Callable, List, Optional

import mock
import requests.exceptions

from hightouch.htevents import exchange, oauth_manager
from hightouch.htevents.collector import Fault
from hightouch.htevents.consumer import Consumer
from hightouch.htevents.errors import BeforeSendError
from hightouch.htevents.interruption import raise_interruption
from hightouch.htevents.test.support import LIMIT, Recorder, TestCase, make_key


class TimeIsUp(Exception):
    """What a library that limits the time of a job raises."""


class TimeIsUpToo(TimeoutError):
    """Of the same kind as errors of the network."""


class Handlers:
    """Handlers of a signal, as applications write them."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, number: int, frame: Any) -> None:
        raise self.error

    def method(self, number: int, frame: Any) -> None:
        self.deeper()

    def deeper(self) -> None:
        raise self.error

    def once(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise self.error

    def any_arguments(self, *args: Any, **kwargs: Any) -> None:
        raise self.error

    def passed_on(self, *args: Any) -> None:
        self.method(*args)

    def bound(self, what: str, number: int, frame: Any) -> None:
        raise self.error

    def all(self) -> List[Callable[..., None]]:
        return [
            self,
            self.method,
            self.once,
            self.any_arguments,
            self.passed_on,
            partial(self.bound, 'what'),
            lambda number, frame: self.deeper(),
            mock.Mock(side_effect=self.error),
        ]


@unittest.skipUnless(hasattr(signal, 'pthread_kill'), 'needs signals')
class InterruptionTest(TestCase):
    """What a signal handler raises inside a call reaches who made the call."""

    def setUp(self) -> None:
        super().setUp()
        self.reached = threading.Event()  # set where a call is to be interrupted
        self.done = threading.Event()  # ends what keeps a call waiting
        self.addCleanup(self.done.set)
        before = signal.getsignal(signal.SIGALRM)
        self.addCleanup(signal.signal, signal.SIGALRM, before)

    def interrupt(
        self,
        call: Callable[[], Any],
        error: Any = None,
        handler: Any = None,
        reached: Optional[Callable[[], Any]] = None,
    ) -> None:
        """Interrupt a call where it waits; check that it raises just that."""
        error = TimeIsUp('time is up') if error is None else error
        signal.signal(signal.SIGALRM, handler or Handlers(error).method)
        self.reached.clear()
        main, begun = threading.get_ident(), threading.Event()

        def kill() -> None:
            begun.wait(LIMIT)
            if reached is None:
                self.reached.wait(LIMIT)
            else:
                while not reached():
                    time.sleep(0.001)
            signal.pthread_kill(main, signal.SIGALRM)

        killer = threading.Thread(target=kill)
        killer.start()
        with self.assertRaises(type(error)) as caught:
            begun.set()
            call()
        killer.join(LIMIT)
        self.assertIs(caught.exception, error)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)

    def hang(self, *_: Any) -> Any:
        """Keep a request waiting for its answer."""
        self.reached.set()
        self.done.wait(LIMIT)
        return 200

    def wait(self, *_: Any) -> None:
        """Keep a callback busy."""
        self.reached.set()
        threading.Event().wait(LIMIT)

    def assert_delivers(self, client: Any, count: int) -> None:
        """Check that nothing is lost, and that later calls go on."""
        self.done.set()
        self.assertTrue(client.track('user', 'later')[0])
        self.assertTrue(client.flush(LIMIT))
        stats = client.stats()
        self.assertEqual((stats.delivered, stats.failed), (count + 1, 0))
        names = [each['event'] for each in self.collector.events]
        self.assertEqual(names.count('later'), 1)

    def test_whoever_handles_the_signal_and_whatever_it_raises(self) -> None:
        for error in (
            TimeIsUp('time is up'),
            TimeIsUpToo('time is up'),
            requests.exceptions.ReadTimeout('time is up'),
            ConnectionError('time is up'),
            KeyError('time is up'),
            SystemExit(3),
        ):
            for handler in Handlers(error).all():
                self.done.clear()
                self.collector.script(self.hang)
                client = self.client(sync_mode=True)
                track = partial(client.track, 'user', 'event')
                self.interrupt(track, error, handler)
                self.assertEqual(client.stats().pending, 1)
                self.assertEqual(client.stats().retried, 0)
                del self.collector.events[:]
                self.assert_delivers(client, 1)

    def test_while_a_body_is_read(self) -> None:
        self.collector.script(Fault(200, {'Transfer-Encoding': 'chunked'}))
        client = self.client(sync_mode=True)
        reached = mock.Mock(wraps=exchange._read_pieces)
        with mock.patch.object(exchange, '_read_pieces', reached):
            self.interrupt(
                partial(client.track, 'user', 'event'),
                TimeIsUpToo(),
                reached=lambda: reached.called,
            )
        self.assert_delivers(client, 1)

    def test_while_a_retry_is_waited_for(self) -> None:
        self.collector.script(Fault(503, {'Retry-After': '300'}))
        client = self.client(sync_mode=True)
        self.interrupt(
            partial(client.track, 'user', 'event'),
            reached=lambda: client.stats().last_error,
        )
        self.assert_delivers(client, 1)

    def test_while_a_flush_delivers_by_itself(self) -> None:
        self.collector.script(self.hang)
        client = self.holding(upload_size=2)
        with mock.patch.object(Consumer, 'start', side_effect=RuntimeError):
            for _ in range(5):
                client.track('user', 'event')
            self.interrupt(lambda: client.flush(None), TimeIsUpToo())
        self.assertEqual(client.stats().pending, 5)
        self.assert_delivers(client, 5)

    def test_while_others_deliver(self) -> None:
        self.collector.script(self.hang, self.hang)
        client = self.client()
        client.track('user', 'event')
        self.interrupt(lambda: client.flush(None))
        self.interrupt(lambda: client.shutdown(None), reached=lambda: True)
        self.done.set()
        self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(client.stats().delivered, 1)

    def test_while_a_call_waits_for_room(self) -> None:
        client = self.holding(max_queue_size=1, block_timeout=LIMIT)
        self.assertTrue(client.track('user', 'event')[0])
        self.interrupt(
            partial(client.track, 'user', 'event'),
            TimeIsUpToo(),
            reached=lambda: client.queue._room,
        )
        self.assertEqual(client.stats().accepted, 1)
        self.assertTrue(client.flush(LIMIT))
        self.assert_delivers(client, 1)

    def test_in_before_send_and_the_event_is_not_taken(self) -> None:
        lost = Recorder()
        steps = [self.wait]  # type: Any

        def before_send(message: Any) -> Any:
            if steps:
                steps.pop()(message)
            return message

        client = self.client(before_send=before_send, on_error=lost)
        self.interrupt(partial(client.track, 'user', 'event'))
        self.assertEqual(client.stats().accepted, 0)
        self.assert_delivers(client, 0)
        self.assertEqual(lost.calls, [])

    def test_in_a_callback_of_a_delivery_and_the_outcome_stays(self) -> None:
        for error in (TimeIsUp(), TimeIsUpToo(), SystemExit(3)):
            client = self.client(sync_mode=True, on_success=Recorder(self.wait))
            self.interrupt(partial(client.track, 'user', 'event'), error)
            self.assertEqual(client.stats().delivered, 1)
            self.assertEqual(client.stats().pending, 0)
            self.collector.script(403)
            client = self.client(sync_mode=True, on_error=Recorder(self.wait))
            self.interrupt(partial(client.track, 'user', 'event'), error)
            self.assertEqual(client.stats().failed, 1)
            self.assertEqual(client.stats().pending, 0)

    def test_in_the_report_of_one_loss_the_others_are_reported(self) -> None:
        lost = Recorder()
        steps = [self.wait]  # type: Any

        def on_error(*args: Any) -> None:
            lost(*args)
            if steps:
                steps.pop()()

        def answer(received: Any) -> Any:
            names = {each['event'] for each in received.body['batch']}
            return 400 if len(names) > 1 else {'a': 403, 'b': 404}[names.pop()]

        self.collector.script(*[answer] * 3)
        client = self.holding(on_error=on_error)
        with mock.patch.object(Consumer, 'start', side_effect=RuntimeError):
            client.track('user', 'a')
            client.track('user', 'b')
            self.interrupt(lambda: client.flush(None))
        self.assertEqual(client.stats().failed, 2)
        self.assertEqual(
            [each['event'] for _, batch in lost.calls for each in batch], ['a', 'b']
        )

    def test_in_the_code_of_a_value(self) -> None:
        outer = self

        class Slow:
            def __str__(self) -> str:
                outer.wait()
                return 'slow'

        class SlowDict(dict):  # type: ignore[type-arg]
            def items(self) -> Any:
                outer.wait()
                return super().items()

        class SlowText(str):
            def __str__(self) -> str:
                outer.wait()
                return 'slow'

        class SlowTruth:
            def __bool__(self) -> bool:
                outer.wait()
                return False

        client = self.client()
        for properties in ({'a': [Slow()]}, {Slow(): 1}, SlowDict(), SlowTruth()):
            for error in (TimeIsUp(), RuntimeError('time is up')):
                call = partial(client.track, 'user', 'event', properties)
                self.interrupt(call, error)  # type: ignore[arg-type]
        self.assertEqual(client.stats().accepted, 0)
        self.assert_delivers(client, 0)

    def test_while_a_token_is_asked_for(self) -> None:
        self.collector.token_faults.append(self.hang)
        client = self.client(
            sync_mode=True,
            oauth_client_id='id',
            oauth_client_key=make_key(),
            oauth_key_id='kid',
            oauth_auth_server=self.collector.url,
        )
        self.interrupt(partial(client.track, 'user', 'event'), TimeIsUpToo())
        self.assert_delivers(client, 1)
        self.done.clear()
        manager = client.oauth_manager
        manager.clear_token()
        self.collector.token_faults.append(self.hang)
        asking = threading.Thread(target=manager.get_token)
        count = len(self.collector.token_requests)
        asking.start()
        self.assertTrue(
            manager._lock.acquire(False) is False or not manager._lock.release()
        )
        with mock.patch.object(oauth_manager, 'bounded') as reached:
            reached.return_value = None
            self.interrupt(
                manager.get_token, TimeIsUpToo(), reached=lambda: reached.called
            )
        self.done.set()
        asking.join(LIMIT)
        self.assertEqual(manager.get_token(), 'token-%d' % (count + 1))


class NoInterruptionTest(TestCase):
    """Errors of which no signal handler is the cause stay in the library."""

    def test_an_exception_that_the_application_handles_is_not_raised_again(
        self
    ) -> None:
        before = signal.getsignal(signal.SIGALRM)
        signal.signal(signal.SIGALRM, Handlers(TimeIsUp()).method)
        try:
            try:
                os.kill(os.getpid(), signal.SIGALRM)
                threading.Event().wait(LIMIT)
            except TimeIsUp:
                self.collector.script('reset', 503)
                client = self.client(sync_mode=True)
                self.assertTrue(client.track('user', 'event', {'a': {1: object()}})[0])
                self.assertEqual(client.stats().retried, 2)
        finally:
            signal.signal(signal.SIGALRM, before)

    def test_an_error_of_a_function_that_gets_a_frame_is_an_error(self) -> None:
        import sys

        def look(frame: Any, depth: int) -> None:
            raise ValueError

        lost = Recorder()
        client = self.client(
            before_send=lambda message: look(sys._getframe(), 1), on_error=lost
        )
        self.assertFalse(client.track('user', 'event')[0])
        self.assertIsInstance(lost.calls[0][0], BeforeSendError)

    def test_a_chain_of_errors_that_is_a_circle_ends(self) -> None:
        first, second = ValueError(), KeyError()
        first.__cause__, second.__cause__ = second, first
        self.assertIsNone(raise_interruption(first))


if __name__ == '__main__':
    unittest.main()
