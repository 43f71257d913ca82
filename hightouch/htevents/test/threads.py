"""A client's threads: they start with an event, and end when they are idle for a while."""

import _thread
import asyncio
import gc
import os
import signal
import sys
import threading
import time
import unittest
import weakref
from typing import Any, Callable, List

import mock

from hightouch.htevents import Client, delivery
from hightouch.htevents._process import exit as process_exit
from hightouch.htevents._process import waiting
from hightouch.htevents.collector import Collector
from hightouch.htevents.test import support
from hightouch.htevents.test.support import LIMIT, Recorder


class TestCase(support.TestCase):
    """A test whose threads are idle soon."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(delivery, 'IDLE_AFTER', 0.02)

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


class IdleTest(TestCase):
    def test_an_idle_thread_ends_and_the_next_event_starts_one(self) -> None:
        client = self.client(upload_interval=0)
        for count in range(1, 6):
            client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(count, LIMIT))
            self.wait_until(lambda: not self.threads())
            self.assertTrue(all(each.is_alive() for each in client.consumers or ()))

    def test_a_thread_waits_for_the_end_of_a_long_interval(self) -> None:
        client = self.client(upload_interval=0.5)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(1, LIMIT))

    def test_the_thread_is_known_by_its_name_as_long_as_it_runs(self) -> None:
        seen = Recorder()
        client = self.client(
            upload_interval=0,
            on_success=lambda _: seen(
                threading.current_thread(), threading.get_ident()
            ),
        )
        client.track('user', 'event')
        self.assertTrue(seen.wait_for(1))
        self.assertEqual(seen.calls[0][0].name, 'htevents-consumer')
        self.assertEqual(seen.calls[0][0].ident, seen.calls[0][1])
        self.wait_until(lambda: not self.threads())

    def test_a_profiler_of_threads_sees_it(self) -> None:
        seen: List[str] = []
        before = threading._profile_hook  # type: ignore[attr-defined]
        self.addCleanup(threading.setprofile, before)
        threading.setprofile(lambda frame, *_: seen.append(frame.f_code.co_name))
        client = self.client(upload_interval=0)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertIn('deliver', seen)

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
        # Nobody flushes: each event depends on the thread that it starts, or finds.
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
                time.sleep(0.02)  # one more could come
                with lock:
                    now[0] -= 1

            client = self.client(thread=count, upload_size=1, on_success=note)
            for _ in range(12):
                client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(most, [count])

    def test_events_do_not_wait_behind_the_request_of_one_of_several_consumers(
        self,
    ) -> None:
        for _ in range(5):
            client = self.client(thread=4, upload_interval=0.01, upload_size=10)
            client.track('user', 'first')
            self.assertTrue(client.flush(LIMIT))
            time.sleep(0.03)  # some of the threads have ended, and others will
            answer = threading.Event()
            self.addCleanup(answer.set)
            self.collector.script(lambda _: answer.wait(LIMIT) and 200)
            count = len(self.collector.events)
            for _ in range(25):
                client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(count + 15, LIMIT))
            answer.set()
            self.assertTrue(client.flush(LIMIT))

    def test_a_consumer_that_was_paused_starts_no_threads(self) -> None:
        client = self.client(upload_interval=0)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        for consumer in client.consumers or ():
            consumer.pause()
        self.wait_until(lambda: not self.threads())
        starts: List[Any] = []
        start = _thread.start_new_thread

        def note(*args: Any) -> Any:
            starts.append(args)
            return start(*args)

        with mock.patch.object(_thread, 'start_new_thread', note):
            client.track('user', 'event')
            time.sleep(0.1)
        self.assertLess(len(starts), 5)

    def test_a_finalizer_may_flush_on_the_thread_of_a_consumer(self) -> None:
        class Flushing:
            def __del__(self) -> None:
                flushed.append(client.flush(None))

        flushed: List[bool] = []
        client = self.client(upload_interval=0)
        take = client._queue.take

        def drop_and_take(*args: Any) -> Any:
            Flushing()
            return take(*args)

        with mock.patch.object(client._queue, 'take', drop_and_take):
            client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(1, LIMIT))
            self.wait_until(lambda: bool(flushed))

    def test_an_exception_that_ends_threads_is_not_tried_again_at_once(self) -> None:
        class Ending(BaseException):
            pass

        def end(*_: Any, **__: Any) -> None:
            raise Ending

        tried = Recorder(end)
        with mock.patch('hightouch.htevents.consumer.post', tried):
            client = self.client(upload_interval=0)
            client.track('user', 'event')
            self.assertFalse(client.flush(0.5))
        self.assertLess(len(tried.calls), 5)

    def test_flush_and_shutdown_in_before_send_wait_for_nothing(self) -> None:
        def inside(message: Any) -> Any:
            if message['event'] == 'second':
                ended.append(client.flush(LIMIT))
                ended.append(client.shutdown(LIMIT))
            return message

        ended: List[bool] = []
        self.collector.script('hang')
        client = self.client(before_send=inside, upload_interval=0, max_retries=0)
        client.track('user', 'first')
        self.assertTrue(self.collector.wait_for_requests(1, LIMIT))
        client.track('user', 'second')
        self.assertEqual(ended, [False, False])

    def test_a_shutdown_in_a_callback_cuts_off_no_other_consumer(self) -> None:
        ended: List[bool] = []
        lost = Recorder()
        together = threading.Barrier(2)

        def end(batch: List[Any]) -> None:
            if batch[0]['event'] == 'ends':
                ended.append(client.shutdown(LIMIT))

        def answer(received: Any) -> int:
            together.wait(LIMIT)
            if received.body['batch'][0]['event'] != 'ends':
                time.sleep(0.1)
            return 200

        self.collector.script(answer, answer)
        client = self.client(
            thread=2, upload_size=1, upload_interval=0, on_success=end, on_error=lost
        )
        client.track('user', 'ends')
        client.track('user', 'event')
        self.wait_until(lambda: bool(ended))
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual((client.stats().delivered, lost.calls), (2, []))

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


class TurnTest(TestCase):
    def limit(self, turns: int, patience: float) -> None:
        self.patch(waiting, 'TURNS', turns)
        self.patch(waiting, 'PATIENCE', patience)
        waiting.turns._after_fork()
        self.addCleanup(waiting.turns._after_fork)

    def test_only_some_clients_send_at_a_time(self) -> None:
        self.limit(2, LIMIT)
        goes_on = threading.Event()
        self.addCleanup(goes_on.set)
        began: List[Any] = []

        def answer(received: Any) -> int:
            began.append(received)
            goes_on.wait(LIMIT)
            return 200

        self.collector.script(*[answer] * 6)
        clients = [self.client(upload_interval=0) for _ in range(6)]
        for client in clients:
            client.track('user', 'event')
        self.wait_until(lambda: len(began) == 2)
        self.assertFalse(self.collector.wait_for_requests(1, 0.2))  # nothing happens
        self.assertEqual(len(began), 2)
        goes_on.set()
        self.assertTrue(all(client.flush(LIMIT) for client in clients))
        self.assertEqual(len(self.collector.events), 6)

    def test_a_server_that_hangs_keeps_the_others_waiting_for_a_moment_only(
        self
    ) -> None:
        self.limit(1, 0.05)
        self.collector.script('hang')
        stuck = self.client(upload_interval=0, timeout=LIMIT, shutdown_timeout=0)
        stuck.track('user', 'event')
        self.assertTrue(self.collector.wait_for_requests(1, LIMIT))
        client = self.client()
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(stuck.stats().pending, 1)
        stuck.shutdown(0)

    def test_a_request_that_fails_gives_its_turn_back(self) -> None:
        self.limit(1, LIMIT * 10)
        self.collector.script('reset', 503, 400)
        client = self.client(upload_interval=0)
        for _ in range(2):
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))


class EndTest(TestCase):
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
        client = Client('key', self.collector.url, upload_interval=3600)
        client.track('user', 'event')
        self.assertTrue(client.shutdown(LIMIT))
        gone = weakref.ref(client._delivery)
        del client
        self.wait_until(lambda: not gc.collect() and gone() is None)

    def test_a_callback_that_is_cancelled_ends_no_consumer(self) -> None:
        def cancel(batch: List[Any]) -> None:
            raise asyncio.CancelledError

        client = self.client(upload_interval=0, on_success=cancel)
        for count in range(1, 4):
            client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(count, LIMIT))
        self.assertTrue(all(each.is_alive() for each in client.consumers or ()))

    def test_a_dropped_client_delivers_what_it_has_and_is_garbage(self) -> None:
        client = Client('key', self.collector.url, upload_interval=3600)
        client.track('user', 'event')
        gone = weakref.ref(client)
        del client
        gc.collect()
        self.assertIsNone(gone())
        self.assertTrue(self.collector.wait_for(1, LIMIT))
        self.wait_until(lambda: not process_exit._state.active)

    def test_a_shutdown_does_not_wait_longer_than_it_may(self) -> None:
        self.collector.script('hang')
        lost = Recorder()
        client = self.client(upload_interval=0, timeout=LIMIT, on_error=lost)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for_requests(1, LIMIT))
        self.assertFalse(client.shutdown(0.1))
        self.assertEqual(len(lost.calls), 1)


class RefusedThreadTest(TestCase):
    def test_what_is_queued_is_delivered_by_a_flush(self) -> None:
        client = self.client()
        with support.no_threads():
            self.assertTrue(client.track('user', 'event')[0])
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)

    def test_a_thread_that_was_refused_is_tried_again_with_a_next_event(self) -> None:
        self.patch(delivery, 'START_RETRY_INTERVAL', 0)
        client = self.client(upload_interval=0)
        with support.no_threads():
            client.track('user', 'event')
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(2, LIMIT))

    def test_an_interrupt_while_a_thread_is_started_is_made_up_for(self) -> None:
        client = self.client(upload_interval=0)
        with support.no_threads(KeyboardInterrupt()):
            with self.assertRaises(KeyboardInterrupt):
                client.track('user', 'event')
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(2, LIMIT))

    def test_clients_of_many_threads_recover_from_refusals(self) -> None:
        self.patch(delivery, 'START_RETRY_INTERVAL', 0)
        clients = [self.client(upload_interval=0.01, upload_size=3) for _ in range(8)]
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        sys.setswitchinterval(1e-6)
        with support.no_threads():
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

    def test_a_child_of_a_callback_knows_its_threads(self) -> None:
        result = support.run_program(
            'import os, sys, threading, time, warnings\n'
            'warnings.simplefilter("ignore")\n'
            'from hightouch.htevents import Client\n'
            'def fork(batch):\n'
            '    pid = os.fork()\n'
            '    if pid == 0:\n'
            '        print(threading.active_count(), flush=True)\n'
            '        os._exit(0)\n'
            '    os.waitpid(pid, 0)\n'
            'client = Client("key", sys.argv[1], upload_interval=0, on_success=fork)\n'
            'client.track("user", "event")\n'
            'assert client.flush(30)\n',
            self.collector.url,
        )
        self.assertEqual((result.stdout, result.stderr), ('1\n', ''))

    @unittest.skipUnless(hasattr(os, 'register_at_fork'), 'needs Python 3.7 or later')
    def test_a_child_of_a_callback_delivers_its_own_events(self) -> None:
        pids: List[int] = []

        def fork(batch: List[Any]) -> None:
            if not pids:
                pids.append(os.fork())
                if pids == [0]:
                    sent = client.track('user', 'child')[0] and client.flush(LIMIT)
                    os._exit(0 if sent else 1)

        for settings in ({'upload_interval': 0}, {'sync_mode': True}):  # type: Any
            pids.clear()
            client = self.client(on_success=fork, **settings)
            client.track('user', 'parent')
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(os.waitpid(pids[0], 0)[1], 0)
        self.assertEqual(len(self.collector.events), 4)

    @unittest.skipUnless(hasattr(os, 'register_at_fork'), 'needs Python 3.7 or later')
    def test_a_consumer_that_forks_does_not_go_on_in_the_child(self) -> None:
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


if __name__ == '__main__':
    unittest.main()
