"""Events of a deferred block: queued in order when it ends well, and not at all otherwise."""

import asyncio
import logging
import os
import tempfile
import threading
import unittest
from functools import partial
from typing import Any, Callable, List

import hightouch.htevents as htevents
from hightouch.htevents._context.deferral import Deferral
from hightouch.htevents.test.scopes import HAS_CONTEXTS
from hightouch.htevents.test.support import (
    LIMIT,
    LogCatcher,
    Recorder,
    TestCase,
    run_loop,
)

Hooked = List[Callable[[], None]]


class DeferralTest(TestCase):
    def events(self, *clients: Any) -> List[str]:
        """Give the names of the events that arrived."""
        for client in clients:
            self.assertTrue(client.flush(LIMIT))
        return [each['event'] for each in self.collector.events]

    def test_events_are_queued_in_order_when_the_block_ends(self) -> None:
        client = self.client()
        with htevents.deferred():
            for name in 'abc':
                accepted, message = client.track('user', name)
                self.assertTrue(accepted)
                self.assertEqual(message['event'], name)
            self.assertEqual(client.stats().accepted, 0)
            self.assertEqual(self.events(client), [])
        self.assertEqual(self.events(client), ['a', 'b', 'c'])

    def test_an_exception_discards_them_and_leaves_the_block(self) -> None:
        client = self.client()
        for error in (ValueError, KeyboardInterrupt, SystemExit):
            with self.assertRaises(error):
                with htevents.deferred():
                    client.track('user', 'lost')
                    raise error
        client.track('user', 'after')
        self.assertEqual(self.events(client), ['after'])
        self.assertEqual(client.stats().accepted, 1)

    def test_a_call_is_checked_and_encoded_at_once(self) -> None:
        client = self.client()
        properties = {'total': 1}
        with htevents.deferred():
            client.track('user', 'a', properties)
            properties['total'] = 2
            with self.assertRaises(htevents.ValidationError):
                client.track('user', 5)  # type: ignore[arg-type]
            with self.assertRaises(htevents.MessageTooLargeError):
                client.track('user', 'b', {'text': 'x' * 40000})
        self.assertEqual(self.events(client), ['a'])
        self.assertEqual(self.collector.events[0]['properties'], {'total': 1})

    def test_a_hook_gets_the_function_that_queues_them(self) -> None:
        client = self.client()
        hooked: Hooked = []
        with htevents.deferred(hook=hooked.append):
            client.track('user', 'a')
            client.track('user', 'b')
            self.assertEqual(hooked, [])
        (queue,) = hooked
        self.assertEqual(self.events(client), [])
        queue()
        queue()  # twice is harmless
        self.assertEqual(self.events(client), ['a', 'b'])

    def test_a_hook_is_not_called_after_an_exception_or_without_events(self) -> None:
        client = self.client()
        hooked: Hooked = []
        with htevents.deferred(hooked.append):
            pass
        with self.assertRaises(ValueError):
            with htevents.deferred(hooked.append):
                client.track('user', 'lost')
                raise ValueError
        self.assertEqual(hooked, [])
        with self.assertRaisesRegex(htevents.ValidationError, 'hook: expected'):
            htevents.deferred('on_commit')  # type: ignore[arg-type]

    def test_what_a_hook_raises_reaches_the_application(self) -> None:
        client = self.client()

        def hook(queue: Any) -> None:
            raise RuntimeError('no transaction')

        with self.assertRaisesRegex(RuntimeError, 'no transaction'):
            with htevents.deferred(hook):
                client.track('user', 'lost')
        self.assertEqual(self.events(client), [])

    def test_nested_blocks_wait_for_the_outer_one_and_keep_the_order(self) -> None:
        client = self.client()
        with htevents.deferred():
            client.track('user', 'a')
            with htevents.deferred():
                client.track('user', 'b')
            with self.assertRaises(ValueError):
                with htevents.deferred():
                    client.track('user', 'lost')
                    raise ValueError
            client.track('user', 'c')
            self.assertEqual(self.events(client), [])
        self.assertEqual(self.events(client), ['a', 'b', 'c'])
        with self.assertRaises(ValueError):
            with htevents.deferred():
                with htevents.deferred():
                    client.track('user', 'lost')
                raise ValueError
        self.assertEqual(len(self.events(client)), 3)

    def test_hooks_of_nested_blocks_may_be_called_in_any_order(self) -> None:
        client = self.client()
        for order in ((0, 1), (1, 0)):
            hooked: Hooked = []
            with htevents.deferred(hooked.append):
                client.track('user', 'a')
                with htevents.deferred(hooked.append):
                    client.track('user', 'b')
                client.track('user', 'c')
            for number in order:  # the inner block's is first
                hooked[number]()
            events = self.events(client)
            expected = ['a', 'b', 'c'] if order == (0, 1) else ['a', 'c', 'b']
            self.assertEqual(events[-3:], expected)

    def test_a_hook_in_the_middle_waits_for_all_blocks_around(self) -> None:
        client = self.client()
        hooked: Hooked = []
        with self.assertRaises(ValueError):
            with htevents.deferred():
                with htevents.deferred():
                    with htevents.deferred(hooked.append):
                        client.track('user', 'lost')
                hooked[0]()
                raise ValueError
        self.assertEqual(self.events(client), [])

    def test_a_carried_function_waits_for_the_block_around_its_call(self) -> None:
        client = self.client()
        carried = htevents.carry(client.track)
        with self.assertRaises(ValueError):
            with htevents.deferred():
                carried('user', 'lost')
                raise ValueError
        self.assertEqual(self.events(client), [])

    def test_a_savepoint_that_is_rolled_back_sends_nothing(self) -> None:
        client = self.client()
        hooked: Hooked = []
        with htevents.deferred(hooked.append):
            client.track('user', 'a')
            with htevents.deferred(hooked.append):
                client.track('user', 'lost')
            hooked.clear()  # what a savepoint does with its hooks
            client.track('user', 'b')
        for queue in hooked:
            queue()
        self.assertEqual(self.events(client), ['a', 'b'])

    def test_it_holds_for_all_clients_and_the_default_one(self) -> None:
        clients = [self.client() for _ in range(3)]
        with htevents.deferred():
            for number, client in enumerate(clients):
                client.track('user', str(number))
        self.assertEqual(sorted(self.events(*clients)), ['0', '1', '2'])

    def test_a_full_queue_is_waited_for_as_without(self) -> None:
        client = self.client(max_queue_size=2, block_timeout=LIMIT, upload_interval=0)
        with htevents.deferred():
            for number in range(20):
                self.assertTrue(client.track('user', str(number))[0])
        self.assertEqual(self.events(client), [str(n) for n in range(20)])
        self.assertEqual(client.stats().refused, 0)

    def test_what_cannot_be_queued_is_reported_because_its_call_said_true(self) -> None:
        errors = Recorder()
        client = self.holding(max_queue_size=2, on_error=errors)
        with LogCatcher() as log:
            with htevents.deferred():
                for number in range(4):
                    client.track('user', str(number))
        self.assertEqual(client.stats().refused, 2)
        lost = [batch[0]['event'] for _, batch in errors.calls]
        self.assertEqual(lost, ['2', '3'])
        self.assertIsInstance(errors.calls[0][0], htevents.NotDeliveredError)
        self.assertIn('The queue is full', str(errors.calls[0][0]))
        self.assertEqual(len(log.lines(logging.ERROR)), 2)
        self.assertEqual(self.events(client), ['0', '1'])

    def test_a_client_that_was_shut_down_in_between_reports_them(self) -> None:
        errors = Recorder()
        client = self.client(on_error=errors)
        with htevents.deferred():
            client.track('user', 'late')
            client.shutdown(LIMIT)
        ((error, batch),) = errors.calls
        self.assertIn('shut down', str(error))
        self.assertEqual(batch[0]['event'], 'late')

    def test_a_client_that_is_shut_down_refuses_the_call_itself(self) -> None:
        errors = Recorder()
        client = self.client(on_error=errors)
        client.shutdown(LIMIT)
        with htevents.deferred():
            self.assertFalse(client.track('user', 'late')[0])
        self.assertEqual(errors.calls, [])

    def test_sync_mode_delivers_at_the_end_and_reports_a_failure_once(self) -> None:
        errors = Recorder()
        client = self.client(sync_mode=True, on_error=errors, max_retries=0)
        with htevents.deferred():
            client.track('user', 'a')
            self.assertEqual(self.collector.events, [])
        self.assertEqual(self.events(client), ['a'])
        self.collector.script(500)
        with htevents.deferred():
            client.track('user', 'b')
        self.assertEqual(len(errors.calls), 1)

    def test_a_spool_holds_them_from_the_end_of_the_block(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            client = self.holding(spool_dir=folder)
            with htevents.deferred():
                client.track('user', 'a')
                self.assertEqual(client.stats().pending, 0)
            self.assertEqual(client.stats().pending, 1)
            self.assertEqual(self.events(client), ['a'])
            client.shutdown(LIMIT)

    def test_a_client_that_does_not_send_holds_nothing(self) -> None:
        hooked: Hooked = []
        client = self.client(send=False)
        with htevents.deferred(hooked.append):
            self.assertTrue(client.track('user', 'a')[0])
        self.assertEqual(hooked, [])

    def test_carry_takes_the_block_along_while_it_is_open(self) -> None:
        client = self.client()
        with self.assertRaises(ValueError):
            with htevents.deferred():
                carried = htevents.carry(client.track)
                thread = threading.Thread(target=carried, args=('user', 'lost'))
                thread.start()
                thread.join()
                raise ValueError
        self.assertTrue(carried('user', 'after')[0])
        self.assertEqual(self.events(client), ['after'])

    def test_a_block_that_has_ended_hands_over_to_the_one_around(self) -> None:
        client = self.client()
        with self.assertRaises(ValueError):
            with htevents.deferred():
                with htevents.deferred():
                    carried = htevents.carry(client.track)
                carried('user', 'lost')
                raise ValueError
        self.assertEqual(self.events(client), [])

    def test_functions_may_be_decorated(self) -> None:
        client = self.client()

        @htevents.deferred()
        def place(name: str, fails: bool) -> None:
            client.track('user', name)
            if fails:
                raise ValueError

        place('a', False)
        with self.assertRaises(ValueError):
            place('lost', True)
        place('b', False)
        self.assertEqual(self.events(client), ['a', 'b'])

    def test_threads_that_add_while_the_block_ends_lose_nothing(self) -> None:
        client = self.client(max_queue_size=0)
        for _ in range(20):
            barrier = threading.Barrier(5)
            accepted: List[str] = []

            def run() -> None:
                barrier.wait(LIMIT)
                for _ in range(20):
                    accepted.append(client.track('user', 'e')[1]['messageId'])

            with htevents.deferred():
                threads = [
                    threading.Thread(target=htevents.carry(run)) for _ in range(4)
                ]
                for thread in threads:
                    thread.start()
                barrier.wait(LIMIT)
            for thread in threads:
                thread.join()
        self.assertTrue(client.flush(LIMIT))
        ids = [each['messageId'] for each in self.collector.events]
        self.assertEqual(len(ids), 1600)
        self.assertEqual(len(set(ids)), 1600)

    @unittest.skipUnless(hasattr(os, 'fork'), 'no fork here')
    def test_a_forked_child_neither_sends_nor_discards_them(self) -> None:
        client = self.client()
        hooked: Hooked = []
        with htevents.deferred(hooked.append):
            client.track('user', 'parent')
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    client.track('user', 'child')  # not in the parent's block
                    status = 0 if client.flush(LIMIT) else 2
                finally:
                    os._exit(status)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)
        pid = os.fork()
        if pid == 0:
            try:
                hooked[0]()
                client.flush(LIMIT)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        self.assertEqual(self.events(client), ['child'])
        hooked[0]()
        self.assertEqual(self.events(client), ['child', 'parent'])

    def test_an_exception_of_a_signal_handler_while_they_are_queued_loses_none(
        self,
    ) -> None:
        done = []

        def item(name: str, may_wait: bool) -> None:
            done.append((name, may_wait))
            if (name, may_wait) == ('b', True):
                raise TimeoutError

        block = Deferral(None)
        for name in 'abc':
            block.add(partial(item, name))
        with self.assertRaises(TimeoutError):
            block.finish(False)
        # What was interrupted may be queued or not, so it is tried once more.
        self.assertEqual(done, [('a', True), ('b', True), ('b', False), ('c', False)])

    @unittest.skipUnless(HAS_CONTEXTS, 'no contextvars on Python 3.6')
    def test_tasks_have_their_own_blocks(self) -> None:
        client = self.client()

        async def request(number: int) -> None:
            try:
                with htevents.deferred():
                    client.track('user', str(number))
                    await asyncio.sleep(number % 5 / 1000)
                    if number % 2:
                        raise ValueError
            except ValueError:
                pass

        async def main() -> None:
            await asyncio.gather(*[request(number) for number in range(200)])

        run_loop(main())
        found = sorted(map(int, self.events(client)))
        self.assertEqual(found, list(range(0, 200, 2)))
