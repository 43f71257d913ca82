"""Many clients in a process: those that share threads deliver like those with their own."""

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import unittest
import weakref
from itertools import repeat
from typing import Any, Callable, List

import mock

from hightouch.htevents import Client, dispatcher, lifecycle, pool
from hightouch.htevents.collector import Collector
from hightouch.htevents.test import client as client_tests
from hightouch.htevents.test import consumer as consumer_tests
from hightouch.htevents.test import support
from hightouch.htevents.test.support import LIMIT, Recorder

ERROR = RuntimeError("can't start new thread")


class TestCase(support.TestCase):
    """A test whose clients all share their threads."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(dispatcher, 'CLIENTS_WITH_THREADS', -1)
        self.patch(pool, 'IDLE_AFTER', 0.05)
        self.patch(pool, '_pools', pool._Pools())  # that of other tests ends
        self.wait_until(lambda: not self.threads())

    def patch(self, owner: Any, name: str, value: Any) -> None:
        patch = mock.patch.object(owner, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def threads(self) -> List[str]:
        names = [each.name for each in threading.enumerate()]
        return sorted(each for each in names if each.startswith('htevents'))

    def wait_until(self, met: Callable[[], bool]) -> None:
        end = time.monotonic() + LIMIT
        while not met():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.005)


class SharingTest(TestCase):
    def test_clients_after_the_first_ones_have_no_threads_of_their_own(self) -> None:
        count = len(lifecycle._state.active) + 2
        self.patch(dispatcher, 'CLIENTS_WITH_THREADS', count)
        clients = [self.client() for _ in range(4)]
        for client in clients:
            client.track('user', 'event')
        for client in clients:
            self.assertTrue(client.flush(LIMIT))
        consumers = [each for client in clients for each in client.consumers or ()]
        self.assertEqual(
            [each.is_alive() for each in consumers], [True, True, False, False]
        )
        self.assertEqual(len(self.collector.events), 4)

    def test_a_few_threads_deliver_for_all_as_long_as_that_is_fast_enough(self) -> None:
        self.patch(pool, 'PATIENCE', 2)
        clients = [self.client(upload_interval=0.01) for _ in range(50)]
        for client in clients:
            client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(50, LIMIT))
        self.assertLess(len(self.threads()), 10)

    def test_messages_wait_for_others_as_long_as_the_interval(self) -> None:
        client = self.client(upload_interval=2)
        for _ in range(5):
            client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(5, LIMIT))
        self.assertEqual(len(self.collector.requests), 1)

    def test_a_full_batch_does_not_wait_for_the_interval(self) -> None:
        client = self.client(upload_interval=3600, upload_size=10)
        for _ in range(25):
            client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(20, LIMIT))
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 25)

    def test_a_batch_that_is_full_by_its_bytes_does_not_wait_either(self) -> None:
        client = self.client(upload_interval=3600)
        for _ in range(30):
            client.track('user', 'event', {'text': 'x' * 20000})
        self.assertTrue(self.collector.wait_for(20, LIMIT))

    def test_an_earlier_event_is_not_kept_back_by_a_longer_interval(self) -> None:
        self.client(upload_interval=3600).track('user', 'late')
        self.client(upload_interval=0.01).track('user', 'soon')
        self.assertTrue(self.collector.wait_for(1, LIMIT))
        self.assertEqual(self.collector.events[0]['event'], 'soon')

    def test_no_event_is_forgotten(self) -> None:
        # Nobody flushes, so that each event needs a worker of its own accord.
        delivered = threading.Semaphore(0)

        def count(batch: List[Any]) -> None:
            for _ in batch:
                delivered.release()

        client = self.client(upload_interval=0, on_success=count)
        forgotten: List[int] = []

        def work() -> None:
            for number in range(150):
                client.track('user', 'event')
                if not delivered.acquire(timeout=LIMIT):
                    forgotten.append(number)
                    return

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        self.assertEqual(forgotten, [])
        self.assertEqual(client.stats().delivered, 450)

    def test_a_client_has_as_many_requests_under_way_as_it_has_consumers(self) -> None:
        for count in (1, 3):
            lock, now, most = threading.Lock(), [0], [0]
            together = threading.Barrier(count)

            def note(batch: List[Any]) -> None:
                with lock:
                    now[0] += 1
                    most[0] = max(most[0], now[0])
                together.wait(LIMIT)
                time.sleep(0.05)  # more than a worker's patience: one more could come
                with lock:
                    now[0] -= 1

            client = self.client(thread=count, upload_size=1, on_success=note)
            for _ in range(12):
                client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(most, [count])

    def test_threads_that_track_first_at_once_share_as_one_client(self) -> None:
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        sys.setswitchinterval(1e-6)
        for _ in range(20):
            client, barrier = self.client(upload_interval=0), threading.Barrier(8)

            def work() -> None:
                barrier.wait(LIMIT)
                client.track('user', 'event')

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT)
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(len(pool._pools.jobs), 1)
            self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(len(self.collector.events), 160)

    def test_servers_that_do_not_answer_hold_up_their_own_clients_only(self) -> None:
        silent = Collector(faults=['hang'] * 20).start()
        self.addCleanup(silent.stop)
        stuck = [
            self.client(host=silent.url, upload_interval=0, timeout=LIMIT)
            for _ in range(20)
        ]
        for client in stuck:
            client.track('user', 'stuck')
        client = self.client(upload_interval=0)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(1, LIMIT))
        self.assertEqual([each.stats().pending for each in stuck], [1] * 20)

    def test_a_callback_may_flush_all_clients(self) -> None:
        flushed: List[bool] = []

        def flush(batch: List[Any]) -> None:
            one.track('user', 'from the callback')
            flushed.extend([one.flush(LIMIT), two.flush(LIMIT)])

        one = self.client(upload_interval=3600)
        two = self.client(upload_interval=0, on_success=flush)
        one.track('user', 'event')
        two.track('user', 'event')
        self.assertTrue(self.collector.wait_for(3, LIMIT))
        self.wait_until(lambda: len(flushed) == 2)
        self.assertEqual(flushed, [False, True])  # it starts the sending, and returns


class EndTest(TestCase):
    def test_workers_end_when_there_is_nothing_to_do_but_for_one(self) -> None:
        self.patch(pool, 'PATIENCE', 0)
        answer = threading.Event()
        self.addCleanup(answer.set)
        self.collector.script(*[lambda _: answer.wait(LIMIT) and 200] * 8)
        clients = [self.client(upload_interval=0) for _ in range(8)]
        for client in clients:
            client.track('user', 'event')
        self.wait_until(lambda: len(self.threads()) > 2)
        answer.set()
        self.assertTrue(self.collector.wait_for(8, LIMIT))
        self.wait_until(lambda: len(self.threads()) == 2)
        clients[0].track('user', 'event')
        self.assertTrue(self.collector.wait_for(9, LIMIT))

    def test_all_threads_end_with_the_last_client_and_come_with_a_next_one(
        self
    ) -> None:
        for count in (1, 2, 3):
            client = self.client(upload_interval=0)
            client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(count, LIMIT))
            self.assertTrue(client.shutdown(LIMIT))
            self.wait_until(lambda: not self.threads())

    def test_clients_that_come_while_the_threads_end_are_served(self) -> None:
        for count in range(1, 101):
            client = self.client(upload_interval=0)
            client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(count, LIMIT))
            client.shutdown(LIMIT)

    def test_a_shut_down_client_is_garbage_however_long_its_interval(self) -> None:
        other = self.client()  # without, the calendar goes as a whole
        other.track('user', 'event')
        client = Client('key', self.collector.url, upload_interval=3600)
        client.track('user', 'event')
        self.assertTrue(client.shutdown(LIMIT))
        gone = weakref.ref(client._dispatcher)
        del client
        self.wait_until(lambda: not gc.collect() and gone() is None)

    def test_what_shut_down_clients_had_in_the_calendar_does_not_pile_up(self) -> None:
        other = self.client()
        other.track('user', 'event')
        for _ in range(300):
            client = self.client(upload_interval=3600)
            client.track('user', 'event')
            self.assertTrue(client.shutdown(LIMIT))
        (own,) = pool._pools.made.values()
        self.assertLess(len(own._calendar) + len(own._calls), 150)

    def test_a_callback_that_is_cancelled_ends_no_worker(self) -> None:
        def cancel(batch: List[Any]) -> None:
            raise asyncio.CancelledError

        client = self.client(upload_interval=0, on_success=cancel)
        for count in range(1, 4):
            client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(count, LIMIT))
        (own,) = pool._pools.made.values()
        self.assertTrue(all(each.is_alive() for each in own._workers))

    def test_a_dropped_client_delivers_what_it_has_and_is_garbage(self) -> None:
        client = Client('key', self.collector.url, upload_interval=3600)
        client.track('user', 'event')
        gone = weakref.ref(client)
        del client
        gc.collect()
        self.assertIsNone(gone())
        self.assertTrue(self.collector.wait_for(1, LIMIT))
        self.wait_until(lambda: not lifecycle._state.active)

    def test_a_client_that_is_dropped_when_all_is_delivered_ends_at_once(self) -> None:
        client = Client('key', self.collector.url)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        delivering = client._dispatcher._is_delivering
        self.wait_until(lambda: not delivering())
        del client
        gc.collect()
        self.assertFalse(lifecycle._state.active)

    def test_a_shutdown_does_not_wait_longer_than_it_may(self) -> None:
        self.collector.script('hang')
        lost = Recorder()
        client = self.client(upload_interval=0, timeout=LIMIT, on_error=lost)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for_requests(1, LIMIT))
        self.assertFalse(client.shutdown(0.1))
        self.assertEqual(len(lost.calls), 1)


class RefusedThreadTest(TestCase):
    def refusal(self, name: str, *errors: BaseException) -> Any:
        """Refuse threads of that name: as often as there are errors, without end if none."""
        start = threading.Thread.start
        outcomes = iter(errors) if errors else repeat(ERROR)

        def start_others(thread: threading.Thread) -> None:
            error = next(outcomes, None) if thread.name.startswith(name) else None
            if error is not None:
                raise error
            start(thread)

        return mock.patch.object(threading.Thread, 'start', start_others)

    def test_what_is_queued_is_delivered_by_a_flush(self) -> None:
        client = self.client()
        with self.refusal('htevents'):
            self.assertTrue(client.track('user', 'event')[0])
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)

    def test_a_watch_that_was_refused_is_tried_again_with_a_next_event(self) -> None:
        self.patch(pool, 'START_RETRY_INTERVAL', 0)
        client = self.client(upload_interval=0)
        with self.refusal('htevents-watch'):
            client.track('user', 'event')
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(2, LIMIT))

    def test_an_interrupt_while_the_watch_is_started_is_made_up_for(self) -> None:
        client = self.client(upload_interval=0)
        with self.refusal('htevents-watch', KeyboardInterrupt()):
            with self.assertRaises(KeyboardInterrupt):
                client.track('user', 'event')
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(2, LIMIT))

    def test_a_watch_that_seems_not_to_have_started_is_the_only_one(self) -> None:
        self.patch(pool, 'START_RETRY_INTERVAL', 0)
        client = self.client(upload_interval=0)
        start = threading.Thread.start

        def start_and_raise(thread: threading.Thread) -> None:
            start(thread)
            if thread.name == 'htevents-watch':
                raise ERROR

        with mock.patch.object(threading.Thread, 'start', start_and_raise):
            for _ in range(3):
                client.track('user', 'event')
                time.sleep(0.05)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(4, LIMIT))
        self.wait_until(lambda: self.threads().count('htevents-watch') == 1)
        self.assertTrue(client.shutdown(LIMIT))
        self.wait_until(lambda: not self.threads())

    def test_an_interrupt_while_a_client_joins_the_others_is_made_up_for(self) -> None:
        client = self.client(upload_interval=0)
        with mock.patch.object(
            dispatcher.SharedConsumers, 'start', side_effect=KeyboardInterrupt
        ):
            with self.assertRaises(KeyboardInterrupt):
                client.track('user', 'event')
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(1, LIMIT))

    def test_clients_of_many_threads_recover_from_refusals(self) -> None:
        self.patch(pool, 'START_RETRY_INTERVAL', 0)
        clients = [self.client(upload_interval=0.01, upload_size=3) for _ in range(8)]
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        sys.setswitchinterval(1e-6)
        with self.refusal('htevents'):
            threads = [
                threading.Thread(
                    target=lambda each=each: [  # type: ignore[misc]
                        each.track('user', 'event') for _ in range(300)
                    ]
                )
                for each in clients
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT)
        for client in clients:
            client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(8 * 301, LIMIT))

    def test_a_single_refusal_of_a_worker_delays_nothing(self) -> None:
        self.collector.script('hang')
        self.patch(pool, 'START_RETRY_INTERVAL', LIMIT)
        with self.refusal('htevents-worker', ERROR, MemoryError()):
            one = self.client(upload_interval=0, timeout=LIMIT)
            one.track('user', 'stuck')
            self.assertTrue(self.collector.wait_for_requests(1, LIMIT))
            two = self.client(upload_interval=0)
            two.track('user', 'event')
            self.assertTrue(self.collector.wait_for(1, LIMIT))

    def test_a_flush_delivers_by_itself_if_all_workers_are_stuck(self) -> None:
        self.collector.script('hang')
        one = self.client(upload_interval=0, timeout=LIMIT)
        one.track('user', 'stuck')
        self.assertTrue(self.collector.wait_for_requests(1, LIMIT))
        with self.refusal('htevents-worker'):
            two = self.client(upload_interval=0)
            two.track('user', 'event')
            self.assertTrue(two.flush(LIMIT))
        self.assertEqual(one.stats().pending, 1)

    def test_without_any_worker_the_watch_delivers(self) -> None:
        self.patch(pool, 'START_RETRY_INTERVAL', 0)
        with self.refusal('htevents-worker'):
            clients = [self.client(upload_interval=0) for _ in range(3)]
            for client in clients:
                client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(3, LIMIT))
            self.assertEqual(self.threads(), ['htevents-watch'])

    def test_with_a_single_worker_each_client_has_its_turn(self) -> None:
        start = pool._Worker.start

        def start_one(worker: Any) -> None:
            if 'htevents-worker' in self.threads():
                raise ERROR
            start(worker)

        with mock.patch.object(pool._Worker, 'start', start_one):
            clients = [self.client(upload_size=10) for _ in range(5)]
            for client in clients:
                for _ in range(100):
                    client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(500, LIMIT))


class ForkTest(TestCase):
    def test_a_child_sends_its_own_events_and_only_those(self) -> None:
        client = self.client(upload_interval=0.2)
        client.track('user', 'parent')
        pid = os.fork()
        if pid == 0:
            signal.alarm(LIMIT)
            client.track('user', 'child')
            os._exit(0 if client.shutdown(LIMIT) else 1)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertTrue(client.flush(LIMIT))
        names = sorted(each['event'] for each in self.collector.events)
        self.assertEqual(names, ['child', 'parent'])

    def test_a_child_needs_no_flush_to_have_its_events_sent(self) -> None:
        client = self.client(upload_interval=0)
        client.track('user', 'parent')
        self.assertTrue(self.collector.wait_for(1, LIMIT))
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(LIMIT)
            client.track('user', 'child')
            os.read(read, 1)
            os._exit(0)
        self.assertTrue(self.collector.wait_for(2, LIMIT))
        os.write(write, b'.')
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        os.close(read)
        os.close(write)

    @unittest.skipUnless(hasattr(os, 'register_at_fork'), 'needs Python 3.7 or later')
    def test_a_worker_that_forks_does_not_go_on_in_the_child(self) -> None:
        pids: List[int] = []
        parent = os.getpid()

        def fork(batch: List[Any]) -> None:
            if os.getpid() == parent and not pids:
                pids.append(os.fork())
                if pids[0] == 0:
                    signal.alarm(LIMIT)

        client = self.client(upload_interval=0, on_success=fork)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(1, LIMIT))
        self.wait_until(lambda: bool(pids))
        self.assertEqual(os.waitpid(pids[0], 0)[1], 0)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(2, LIMIT))


# What a client does for its user does not depend on whose threads it has.


class SharedDeliveryTest(TestCase, client_tests.DeliveryTest):
    pass


class SharedRetryTest(TestCase, consumer_tests.RetryTest):
    pass


class SharedSplitTest(TestCase, consumer_tests.SplitTest):
    pass


if __name__ == '__main__':
    unittest.main()
