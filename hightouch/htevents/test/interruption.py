import _thread
import gc
import os
import random
import signal
import sys
import tempfile
import threading
import time
import unittest
import warnings
from collections import UserDict
from datetime import datetime, tzinfo
from functools import partial
from time import monotonic
from types import SimpleNamespace
from typing import Any, Callable, List, Optional

import mock
import requests.exceptions

import hightouch.htevents as htevents
from hightouch.htevents import consumer, delivery, oauth_manager
from hightouch.htevents._process import answers, waiting
from hightouch.htevents._process import exit as process_exit
from hightouch.htevents._process.interruption import is_interruption, raise_interruption
from hightouch.htevents.collector import Fault
from hightouch.htevents.errors import BeforeSendError
from hightouch.htevents.test.support import (
    LIMIT,
    Recorder,
    TestCase,
    interruptions,
    make_key,
    no_threads,
)

PACKAGE = os.path.dirname(consumer.__file__)


class TimeIsUp(Exception):
    """What a library that limits the time of a job raises."""


class TimeIsUpToo(TimeoutError):
    """Of the same kind as errors of the network."""


class Handlers:
    """Handlers of a signal, as applications write them. Each raises once."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self._raises = [True]

    def fire(self) -> None:
        if self._raises:
            self._raises.pop()
            raise self.error

    def __call__(self, number: int, frame: Any) -> None:
        self.fire()

    def method(self, number: int, frame: Any) -> None:
        self.fire()

    def only_once(self, number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        self.fire()

    def any_arguments(self, *args: Any, **kwargs: Any) -> None:
        self.fire()

    def passing_on(self, *args: Any) -> None:
        self.method(*args)

    def bound(self, what: str, number: int, frame: Any) -> None:
        self.fire()

    def without_arguments(self, number: Any, frame: Any) -> None:
        number = 'signal %d' % number
        del frame
        self.fire()
        self.last = number

    def after_another_error(self, number: int, frame: Any) -> None:
        try:
            raise KeyError(number)
        except KeyError:
            self.fire()

    def all(self) -> List[Callable[..., Any]]:
        return [
            self,
            self.method,
            self.only_once,
            self.any_arguments,
            self.passing_on,
            partial(self.bound, 'what'),
            self.without_arguments,
            self.after_another_error,
            lambda number, frame: self.fire(),
            mock.Mock(side_effect=[self.error] + [None] * 1000),
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
        main = threading.get_ident()
        begun, over = threading.Event(), threading.Event()

        def kill() -> None:
            begun.wait(LIMIT)
            if reached is None:
                self.reached.wait(LIMIT)
            else:
                while not reached():
                    time.sleep(0.001)
            # Again and again: Python misses one that comes just as it begins to wait.
            while not over.wait(0.02):
                signal.pthread_kill(main, signal.SIGALRM)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with self.assertRaises(type(error)) as caught:
                begun.set()
                call()
        finally:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            self.reached.set()
            over.set()
            killer.join(LIMIT)
        self.assertIs(caught.exception, error)

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
            for number in range(len(Handlers(error).all())):
                handler = Handlers(error).all()[number]
                self.done.clear()
                self.collector.script(self.hang)
                client = self.client(sync_mode=True)
                track = partial(client.track, 'user', 'event')
                with self.subTest(handler=handler, error=error):
                    self.interrupt(track, error, handler)
                self.assertEqual(client.stats().pending, 1)
                self.assertEqual(client.stats().retried, 0)
                del self.collector.events[:]
                self.assert_delivers(client, 1)

    def test_what_the_locals_of_an_error_are_is_not_asked(self) -> None:
        class Hostile:
            """A mock that another thread is making, for example."""

            @property
            def __class__(self) -> Any:
                raise RecursionError

        def fail(value: Any, frame: Any) -> None:
            raise ValueError

        try:
            fail(Hostile(), sys._getframe())
        except ValueError as error:
            raise_interruption(error)

    def test_while_a_body_is_read(self) -> None:
        self.collector.script(Fault(200, {'Transfer-Encoding': 'chunked'}))
        client = self.client(sync_mode=True)
        reached = mock.Mock(wraps=answers._read_pieces)
        with mock.patch.object(answers, '_read_pieces', reached):
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
        with no_threads():
            for _ in range(5):
                client.track('user', 'event')
            self.interrupt(lambda: client.flush(None), TimeIsUpToo())
        self.assertEqual(client.stats().pending, 5)
        self.assert_delivers(client, 5)

    def test_a_flush_by_the_handler_waits_for_nothing_that_waits_for_it(self) -> None:
        flushed = Recorder()

        def handle(number: int, frame: Any) -> None:
            client.track('user', 'from the handler')
            flushed(client.flush(None))

        def answer(received: Any) -> int:
            signal.pthread_kill(main, signal.SIGALRM)
            flushed.wait_for(1)
            return 200

        key, main = make_key(), threading.get_ident()
        signal.signal(signal.SIGALRM, handle)
        for settings in ({'sync_mode': True}, {'upload_interval': 0}):  # type: Any
            flushed.calls.clear()
            self.collector.events.clear()
            self.collector.token_faults.append(answer)
            client = self.oauth_client(oauth_client_key=key, **settings)
            if 'sync_mode' in settings:
                self.assertTrue(client.track('user', 'event')[0])
            else:
                self.assertEqual(client.oauth_manager.get_token()[:6], 'token-')
                self.assertTrue(client.track('user', 'event')[0])
            self.assertEqual(flushed.calls, [(False,)])
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(len(self.collector.events), 2)

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
            reached=lambda: client._queue._room,
        )
        self.assertEqual(client.stats().accepted, 1)
        self.assertTrue(client.flush(LIMIT))
        self.assert_delivers(client, 1)

    def interrupt_once(self, *args: Any, **named: Any) -> None:
        """Interrupt a call; let what follows the interruption run to its end."""
        error = TimeIsUp('time is up')
        handler = mock.Mock(side_effect=[error] + [None] * 10000)
        self.interrupt(*args, error=error, handler=handler, **named)

    @staticmethod
    def track_deferred(client: Any) -> None:
        with htevents.deferred():
            for name in 'abc':
                client.track('user', name)

    def test_while_a_deferred_event_waits_for_room_the_rest_does_not_wait(self) -> None:
        lost = Recorder()
        client = self.holding(max_queue_size=1, block_timeout=LIMIT, on_error=lost)
        begin = time.monotonic()
        self.interrupt_once(
            partial(self.track_deferred, client), reached=lambda: client._queue._room
        )
        self.assertLess(time.monotonic() - begin, LIMIT)
        self.assertEqual([batch[0]['event'] for _, batch in lost.calls], ['b', 'c'])
        self.assertTrue(client.flush(LIMIT))
        self.assert_delivers(client, 1)

    def test_while_a_deferred_event_is_delivered_the_rest_waits_in_the_queue(
        self,
    ) -> None:
        self.collector.script(self.hang)
        client = self.client(sync_mode=True)
        self.interrupt_once(partial(self.track_deferred, client))
        self.assertEqual(client.stats().delivered, 0)
        self.done.set()
        self.assertTrue(client.flush(LIMIT))
        names = {each['event'] for each in self.collector.events}
        self.assertEqual(names, set('abc'))
        self.assertEqual(client.stats().failed, 0)

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
        with no_threads():
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

        class SlowZone(tzinfo):
            def utcoffset(self, moment: Any) -> Any:
                outer.wait()
                return None

        class SlowClass:
            @property
            def __class__(self) -> Any:  # type: ignore[override]
                outer.wait()
                return str

        class SlowMapping(UserDict):  # type: ignore[type-arg]
            def __getitem__(self, key: Any) -> Any:
                outer.wait()

        class SlowFields:
            __attrs_attrs__ = (SimpleNamespace(name='a'),)
            a = property(lambda self: outer.wait())

        def slow() -> Any:
            yield outer.wait()

        client = self.client()
        for make in (
            lambda: {'a': [Slow()]},
            lambda: {Slow(): 1},
            SlowDict,
            SlowTruth,
            lambda: {'a': datetime(2026, 1, 1, tzinfo=SlowZone())},
            lambda: {'a': SlowClass()},
            lambda: {'a': SlowMapping(a=1)},
            lambda: {'a': SlowFields()},
            lambda: {'a': slow()},
        ):  # type: Any
            for error in (TimeIsUp(), RuntimeError('time is up')):
                call = partial(client.track, 'user', 'event', make())
                self.interrupt(call, error)
        self.assertEqual(client.stats().accepted, 0)
        self.assert_delivers(client, 0)

    def test_while_a_token_is_asked_for(self) -> None:
        self.collector.token_faults.append(self.hang)
        client = self.oauth_client(
            sync_mode=True,
            oauth_client_key=make_key(),
        )
        self.interrupt(partial(client.track, 'user', 'event'), TimeIsUpToo())
        self.assert_delivers(client, 1)
        self.done.clear()
        manager = client.oauth_manager
        manager.clear_token()
        self.collector.token_faults.append(self.hang)
        got = []  # type: List[str]
        asking = threading.Thread(target=lambda: got.append(manager.get_token()))
        self.reached.clear()
        asking.start()
        self.assertTrue(self.reached.wait(LIMIT))
        with mock.patch.object(manager, '_lock', wraps=manager._lock) as lock:
            self.interrupt(
                manager.get_token, TimeIsUpToo(), reached=lambda: lock.acquire.called
            )
        self.done.set()
        asking.join(LIMIT)
        self.assertEqual(got, [manager.get_token()])

    def test_as_soon_as_a_call_may_ask_for_a_token(self) -> None:
        class Lock:
            """Interrupts who has just got it."""

            def __init__(self, lock: Any) -> None:
                self.release, self._is_owned = lock.release, lock._is_owned
                self._lock = lock

            def acquire(self, *args: Any, **kwargs: Any) -> None:
                self._lock.acquire(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGALRM)

        clock = mock.Mock(return_value=1000.0)
        manager = oauth_manager.OauthManager(
            'id', make_key(), 'kid', self.collector.url, clock=clock
        )
        for seconds in (0, 2000):  # without a token, and with one to be renewed
            clock.return_value += seconds
            signal.signal(signal.SIGALRM, Handlers(TimeIsUp()).method)
            lock = manager._lock
            manager._lock = Lock(lock)
            try:
                with self.assertRaises(TimeIsUp):
                    manager.get_token()
            finally:
                manager._lock = lock
            got = []  # type: List[str]
            other = threading.Thread(target=lambda: got.append(manager.get_token()))
            other.start()
            other.join(LIMIT)
            self.assertEqual(len(got), 1)

    def test_while_the_first_call_starts_a_thread(self) -> None:
        start = _thread.start_new_thread

        def start_and_raise(*args: Any) -> None:
            start(*args)
            self.reached.set()
            signal.pthread_kill(threading.get_ident(), signal.SIGALRM)

        client = self.client()
        with mock.patch.object(_thread, 'start_new_thread', start_and_raise):
            self.interrupt(
                partial(client.track, 'user', 'event'), RuntimeError('time is up')
            )
        self.assert_delivers(client, 1)

    @unittest.skipIf(sys.version_info < (3, 8), 'runs no handler inside another')
    def test_the_exception_is_the_one_that_came_out_last(self) -> None:
        first, second = TimeIsUp('first'), TimeIsUp('second')

        def nested(number: int, frame: Any) -> None:
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
                threading.Event().wait(LIMIT)
            except TimeIsUp:
                raise second

        before = signal.signal(signal.SIGUSR1, Handlers(first).method)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        client = self.client(before_send=self.wait)
        self.interrupt(partial(client.track, 'user', 'event'), second, nested)
        signal.signal(signal.SIGUSR1, Handlers(first).method)
        self.collector.script(self.hang)
        client = self.client(sync_mode=True)
        self.interrupt(partial(client.track, 'user', 'event'), second, nested)

    @unittest.skipIf(sys.version_info >= (3, 10), 'does not happen there')
    @unittest.skipIf(sys.version_info < (3, 7), 'cannot be traced there')
    def test_between_the_end_of_a_with_block_and_the_release_of_its_lock(self) -> None:
        """Up to Python 3.9 the interpreter runs signal handlers in there."""

        clients = []

        def make(name: str) -> Any:
            settings = {
                'track': {'sync_mode': True},
                'page': {'spool_dir': folder},
            }.get(name, {})  # type: Any
            clients.append(self.client(upload_interval=LIMIT * 100, **settings))
            clients[-1].track('user', 'first')
            return partial(getattr(clients[-1], name), *arguments[name])

        def use() -> None:
            clients[-1].track('user', 'later')
            clients[-1].shutdown(0)

        arguments = {
            'track': ('user', 'event'),
            'page': ('user', 'name'),
            'flush': (LIMIT,),
            'shutdown': (LIMIT,),
            'stats': (),
        }  # type: Any
        spool = tempfile.TemporaryDirectory()
        self.addCleanup(spool.cleanup)
        folder = spool.name
        places = []
        for name in arguments:
            for place in interruptions(partial(make, name), PACKAGE, ('POP_BLOCK',)):
                other = threading.Thread(target=use, daemon=True)
                other.start()
                other.join(LIMIT)
                self.assertFalse(other.is_alive(), place)
                places.append(place)
        self.assertGreater(len(places), 10)

    def test_a_flush_in_any_step_of_a_call_waits_for_nothing_below_it(self) -> None:
        def check(name: str, **settings: Any) -> None:
            client = self.client(upload_interval=0.001, **settings)
            client.track('user', 'first')
            call = getattr(client, name)
            waits = []  # type: List[float]

            def make() -> Any:
                client.track('user', 'event')
                return partial(call, *arguments[name])

            def flush() -> None:
                start = monotonic()
                client.flush(LIMIT)
                waits.append(monotonic() - start)

            for place in interruptions(make, PACKAGE, handler=flush):
                self.assertLess(waits[-1], LIMIT / 2, (name, place))
            self.assertGreater(len(waits), 20)
            self.assertTrue(client.flush(LIMIT))

        arguments = {
            'stats': (),
            'flush': (LIMIT,),
            'track': ('user', 'event'),
        }  # type: Any
        for name in arguments:
            check(name)
            with tempfile.TemporaryDirectory() as folder:
                check(name, spool_dir=folder)

    def test_in_any_step_of_the_first_call_the_later_ones_deliver(self) -> None:
        clients = []  # type: List[Any]

        def make() -> Any:
            if clients:
                clients[-1].shutdown(0)
            clients.append(self.client(upload_interval=0.001))
            return partial(clients[-1].track, 'user', 'interrupted')

        def check(module: Any, after: Any = ()) -> None:
            for place in interruptions(make, module.__file__, after):
                name = str(len(clients))
                self.assertTrue(clients[-1].track('user', name)[0], place)
                self.assertTrue(self.arrives(name), place)

        for module in (delivery, process_exit, consumer, waiting):
            check(module)

    def arrives(self, name: str) -> bool:
        events = self.collector.events
        return self.collector._wait(
            lambda: any(each['event'] == name for each in events), LIMIT
        )

    def test_wherever_it_comes_nothing_is_lost_and_nothing_hangs(self) -> None:
        """By a timer, in whatever step a call is at the time."""
        choice = random.Random(1)
        # Finalizers of what was interrupted may be interrupted as well: that is said.
        hook = mock.patch.object(sys, 'unraisablehook', mock.Mock(), create=True)
        with tempfile.TemporaryDirectory() as folder, hook, warnings.catch_warnings():
            warnings.simplefilter('ignore', ResourceWarning)
            for settings in (
                {'sync_mode': True},
                {'upload_interval': 0},
                {'spool_dir': folder, 'upload_interval': 0},
            ):  # type: Any
                for kind in (TimeIsUp, TimeIsUpToo):
                    self.storm(choice, kind, settings)
            gc.collect()

    def storm(self, choice: Any, kind: Any, settings: Any) -> None:
        def handler(number: int, frame: Any) -> None:
            raise kind

        signal.signal(signal.SIGALRM, handler)
        client = self.client(**settings)
        client.track('user', 'first')
        self.assertTrue(client.flush(LIMIT))
        self.collector.events.clear()
        longest = 0.0015 if 'sync_mode' in settings else 0.0002
        sure = []
        for number in range(300):
            name = str(number)
            try:
                signal.setitimer(signal.ITIMER_REAL, choice.uniform(1e-5, longest))
                try:
                    if client.track('user', name)[0]:
                        sure.append(name)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except kind:
                pass
        self.assertTrue(client.flush(LIMIT), settings)
        stats = client.stats()
        self.assertEqual((stats.failed, stats.pending, stats.refused), (0, 0, 0))
        self.assertNotEqual(stats.durable, False)
        arrived = {each['event'] for each in self.collector.events}
        self.assertEqual(set(sure) - arrived, set())
        self.assertTrue(client.shutdown(LIMIT))


@unittest.skipUnless(hasattr(signal, 'pthread_kill'), 'needs signals')
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

    def test_what_the_application_made_of_it_is_its_own_error(self) -> None:
        def slow(message: Any) -> Any:
            try:
                os.kill(os.getpid(), signal.SIGALRM)
                threading.Event().wait(LIMIT)
            except TimeIsUp:
                raise ValueError

        before = signal.signal(signal.SIGALRM, Handlers(TimeIsUp()).method)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        lost = Recorder()
        client = self.client(before_send=slow, on_error=lost)
        self.assertFalse(client.track('user', 'event')[0])
        self.assertIsInstance(lost.calls[0][0], BeforeSendError)

    def test_an_error_of_a_function_that_gets_a_frame_is_an_error(self) -> None:
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
        raise_interruption(first)
        raise_interruption(first, wrapped=True)
        self.assertFalse(is_interruption(first))


if __name__ == '__main__':
    unittest.main()
