"""Flush and close for coroutines: the promises of flush and shutdown, and a loop that runs."""

import asyncio
import importlib.util
import sys
import threading
import time
import unittest
from typing import Any, Awaitable, List
from unittest import mock

from hightouch.htevents import NotDeliveredError, ValidationError
from hightouch.htevents._process import loops
from hightouch.htevents.client import Client
from hightouch.htevents.delivery import CLOSED
from hightouch.htevents.test.support import (
    LIMIT,
    NO_THREAD,
    Recorder,
    TestCase,
    no_threads,
    run_loop,
)

# A stall of the loop that only a blocking wait causes, not a busy machine.
BLOCKED = 1.0


class Hanging(TestCase):
    """Tests with a server that does not answer until it is told to."""

    def setUp(self) -> None:
        super().setUp()
        self.answers = threading.Event()
        self.arrived = threading.Event()
        self.addCleanup(self.answers.set)

    def hang(self, *_: Any) -> int:
        self.arrived.set()
        self.answers.wait(LIMIT)
        return 200

    def run_loop(self, main: Awaitable[Any]) -> Any:
        return run_loop(main)

    def longest_stall(self, main: Awaitable[Any]) -> float:
        """Run a coroutine; return the longest time in seconds in which no other one ran."""
        longest = [0.0]

        async def tick() -> None:
            while True:
                start = time.monotonic()
                await asyncio.sleep(0.001)
                longest[0] = max(longest[0], time.monotonic() - start)

        async def both() -> None:
            ticker = asyncio.ensure_future(tick())
            await main
            ticker.cancel()

        self.run_loop(both())
        return longest[0]


class FlushTest(Hanging):
    def test_it_returns_true_when_all_is_delivered(self) -> None:
        async def main() -> bool:
            client = self.holding()
            for _ in range(250):
                client.track('user', 'event')
            return await client.aflush(LIMIT)

        self.assertTrue(self.run_loop(main()))
        self.assertEqual(len(self.collector.events), 250)

    def test_it_returns_false_when_time_runs_out_and_drops_nothing(self) -> None:
        self.collector.script(self.hang)

        async def main() -> None:
            client = self.client()
            client.track('user', 'event')
            self.assertFalse(await client.aflush(0.1))
            self.assertFalse(await client.aflush(0))
            self.assertEqual(client.stats().pending, 1)
            self.answers.set()
            self.assertTrue(await client.aflush(LIMIT))
            self.assertTrue(await client.aflush(None))

        self.run_loop(main())
        self.assertEqual(len(self.collector.events), 1)

    def test_the_loop_goes_on_while_it_waits(self) -> None:
        self.collector.script(self.hang)

        async def main() -> None:
            client = self.client()
            client.track('user', 'event')
            self.assertFalse(await client.aflush(BLOCKED * 2))

        self.assertLess(self.longest_stall(main()), BLOCKED)

    def test_1000_tasks_that_wait_start_no_thread(self) -> None:
        self.collector.script(self.hang)

        async def main() -> List[bool]:
            client = self.client()
            client.track('user', 'event')
            while not self.arrived.is_set():
                await asyncio.sleep(0.001)
            waiting = [asyncio.ensure_future(client.aflush(LIMIT)) for _ in range(1000)]
            with mock.patch('_thread.start_new_thread', side_effect=NO_THREAD) as start:
                await asyncio.sleep(0.05)
                self.answers.set()
                results = await asyncio.gather(*waiting)
            start.assert_not_called()
            return results

        self.assertEqual(self.run_loop(main()), [True] * 1000)

    def test_a_cancelled_task_loses_nothing_and_leaves_nothing(self) -> None:
        self.collector.script(self.hang)
        client = self.client()

        async def main() -> None:
            client.track('user', 'event')
            task = asyncio.ensure_future(client.aflush(LIMIT))
            await asyncio.sleep(0.05)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertEqual(client._queue.ledger.flushes.waiting, [])

        self.run_loop(main())
        self.answers.set()
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)

    def test_a_wake_up_after_the_end_of_the_loop_harms_no_delivery(self) -> None:
        async def make() -> Any:
            return loops.make_signal()

        self.run_loop(make()).set()

    def test_it_works_where_no_thread_can_be_started(self) -> None:
        client = self.client()
        with no_threads():
            client.track('user', 'event')
            self.assertTrue(self.run_loop(client.aflush(LIMIT)))
        self.assertEqual(len(self.collector.events), 1)

    def test_it_is_true_at_once_without_events_and_for_all_kinds_of_clients(
        self
    ) -> None:
        clients = (
            self.client(),
            self.client(send=False),
            self.client(sync_mode=True),
        )
        for client in clients:
            client.track('user', 'event')
            self.assertTrue(self.run_loop(client.aflush(LIMIT)))
            self.assertTrue(self.run_loop(client.aclose(LIMIT)))
            self.assertTrue(self.run_loop(client.aflush(LIMIT)))
            self.assertTrue(self.run_loop(client.aclose(LIMIT)))

    def test_a_wrong_timeout_is_told(self) -> None:
        client = self.client()
        for call in (client.aflush, client.aclose):
            with self.assertRaisesRegex(ValidationError, 'timeout: expected a number'):
                self.run_loop(call('soon'))  # type: ignore[arg-type]

    def test_a_loop_inside_a_callback_does_not_wait_for_itself(self) -> None:
        results: List[bool] = []
        client: Any = None

        def on_success(batch: Any) -> None:
            results.append(self.run_loop(client.aflush(LIMIT)))

        client = self.client(on_success=on_success)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(results, [True])


class CloseTest(Hanging):
    def test_inside_a_callback_it_waits_for_nothing(self) -> None:
        results: List[bool] = []
        client: Any = None

        def on_success(batch: Any) -> None:
            results.append(self.run_loop(client.aclose(None)))

        client = self.client(on_success=on_success)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(results, [True])
        self.assertFalse(client.track('user', 'late')[0])

    def test_a_cancellation_in_the_moment_of_the_end_is_not_lost(self) -> None:
        async def main() -> None:
            signal = loops.make_signal()
            task = asyncio.ensure_future(signal.wait(LIMIT))
            await asyncio.sleep(0)
            signal._wake()
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task

        self.run_loop(main())

    def test_it_delivers_what_is_queued_and_ends_the_threads(self) -> None:
        async def main() -> Client:
            client = self.holding(thread=3)
            for _ in range(10):
                client.track('user', 'event')
            self.assertTrue(await client.aclose(LIMIT))
            self.assertEqual(client.track('user', 'late')[0], False)
            self.assertTrue(await client.aclose(LIMIT))
            return client

        client = self.run_loop(main())
        self.assertEqual(len(self.collector.events), 10)
        self.assertEqual(client._delivery.state, CLOSED)
        self.assertFalse(client._delivery.has_threads())

    def test_async_with_closes_at_the_end(self) -> None:
        async def main() -> Client:
            async with self.holding() as client:
                client.track('user', 'event')
            return client

        client = self.run_loop(main())
        self.assertEqual(client._delivery.state, CLOSED)
        self.assertEqual(len(self.collector.events), 1)

    def test_it_reports_what_is_not_delivered_in_time_without_blocking(self) -> None:
        self.collector.script(self.hang)
        errors = Recorder(lambda *_: time.sleep(BLOCKED * 1.5))

        async def main() -> None:
            client = self.client(on_error=errors)
            for _ in range(3):
                client.track('user', 'event')
            self.assertFalse(await client.aflush(0.01))
            # A request that begins in aclose has its deadline, and may end first.
            while not self.arrived.is_set():
                await asyncio.sleep(0.001)
            self.assertFalse(await client.aclose(0.2))
            self.assertEqual(client.stats().failed, 3)
            self.assertEqual(client._delivery.state, CLOSED)

        longest = self.longest_stall(main())
        ((error, batch),) = errors.calls
        self.assertIsInstance(error, NotDeliveredError)
        self.assertEqual(len(batch), 3)
        self.assertLess(longest, BLOCKED)

    def test_a_cancelled_close_loses_nothing(self) -> None:
        self.collector.script(self.hang, 503, 503)
        errors = Recorder()
        client = self.client(on_error=errors)

        async def main() -> None:
            client.track('user', 'event')
            while not self.arrived.is_set():
                await asyncio.sleep(0.001)
            task = asyncio.ensure_future(client.aclose(0.3))
            await asyncio.sleep(0.05)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.4)  # the time of the close is over now
            self.assertFalse(client.track('user', 'late')[0])

        self.run_loop(main())
        self.answers.set()
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)
        self.assertEqual(errors.calls, [])

    def test_many_tasks_may_close_one_client(self) -> None:
        async def main() -> List[bool]:
            client = self.holding()
            client.track('user', 'event')
            return await asyncio.gather(*[client.aclose(LIMIT) for _ in range(50)])

        self.assertEqual(self.run_loop(main()), [True] * 50)
        self.assertEqual(len(self.collector.events), 1)

    def test_an_error_in_a_thread_of_its_own_reaches_the_task(self) -> None:
        def fail() -> bool:
            raise KeyboardInterrupt

        async def main() -> None:
            with self.assertRaises(KeyboardInterrupt):
                await loops.in_thread(fail)

        self.run_loop(main())


@unittest.skipUnless(
    sys.version_info >= (3, 8) and importlib.util.find_spec('trio'), 'no trio here'
)
class TrioTest(Hanging):
    def test_it_works_the_same_on_trio(self) -> None:
        import trio

        self.collector.script(self.hang)

        async def main() -> None:
            async with Client('key', self.collector.url) as client:
                client.track('user', 'event')
                self.assertFalse(await client.aflush(0.1))
                with trio.move_on_after(0.1):
                    await client.aflush(None)
                self.answers.set()
                self.assertTrue(await client.aflush(LIMIT))

        trio.run(main)
        self.assertEqual(len(self.collector.events), 1)


@unittest.skipUnless(importlib.util.find_spec('uvloop'), 'no uvloop here')
class UvloopTest(FlushTest, CloseTest):
    def run_loop(self, main: Awaitable[Any]) -> Any:
        import uvloop

        return run_loop(main, uvloop.new_event_loop)
