"""The durable queue: what was accepted arrives, whatever happens to the process."""

import errno
import glob
import io
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from datetime import datetime, timedelta, timezone
from typing import Any, List, Set
from unittest import mock

from hightouch.htevents import (
    APIError,
    Client,
    DamageError,
    ExpiredError,
    ValidationError,
)
from hightouch.htevents._process.waiting import Deadline
from hightouch.htevents._queue.queue import Queue
from hightouch.htevents._spool import appender, directory, log, ownership, store
from hightouch.htevents._spool.directory import stream_name
from hightouch.htevents._spool.report import waiting
from hightouch.htevents.collector import Fault
from hightouch.htevents.test import support
from hightouch.htevents.test.constants import TEST_WRITE_KEY
from hightouch.htevents.test.support import LIMIT, LogCatcher, Recorder

# What a child runs before the code of a test: an URL, a directory, a client.
_HEAD = (
    'import os, signal, sys, time\n'
    'from hightouch.htevents import Client\n'
    'url, spool_dir = sys.argv[1:3]\n'
    'client = Client("{key}", url, spool_dir=spool_dir)\n'
).format(key=TEST_WRITE_KEY)

# Up to Python 3.8 the first thread of a process that ends loads a library. A child that is
# forked meanwhile by another thread is aborted when it loads one. The flush takes longer.
_END_A_THREAD = (
    'first = threading.Thread(target=int)\n'
    'first.start()\n'
    'first.join()\n'
    'assert client.track("user", "first")[0] and client.flush(20)\n'
)

# Not on Windows, which has no users by number, and no spool.
IS_ROOT = hasattr(os, 'geteuid') and os.geteuid() == 0

# Nobody listens there.
NOWHERE = 'http://127.0.0.1:9'


def eventually(condition: Any) -> bool:
    """Wait until something on the disk has become true; polls, for lack of an event."""
    deadline = Deadline(LIMIT)
    while not condition():
        if deadline.over:
            return False
        time.sleep(0.01)
    return True


# On 3.6 a child closes what it has inherited only with its first call.
needs_fork_hooks = unittest.skipUnless(
    hasattr(os, 'register_at_fork'), 'this Python cannot be told of a fork'
)


class SpoolTestCase(support.TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.spool_dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.spool_dir, ignore_errors=True)

    def client(self, **settings: Any) -> Client:
        settings.setdefault('spool_dir', self.spool_dir)
        return super().client(**settings)

    def files(self, suffix: str = '') -> List[str]:
        return sorted(glob.glob(os.path.join(self.spool_dir, '*', '*' + suffix)))

    def run_child(self, code: str, url: str = NOWHERE) -> Any:
        return support.run_program(_HEAD + code, url, self.spool_dir)

    def leave(self, count: int) -> None:
        """Have a process die with so many events that it could not deliver."""
        result = self.run_child(
            'for number in range(%d):\n'
            '    assert client.track("user", str(number))[0]\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n' % count
        )
        self.assertEqual(result.returncode, -signal.SIGKILL, result.stderr)

    def queue(self) -> Queue:
        """Make a queue of its own, which nobody takes from but the test."""
        queue = Queue(store.FileStore(self.spool_dir, TEST_WRITE_KEY, False, 1 << 30))
        self.addCleanup(queue.release)
        return queue

    def arrived(self) -> List[str]:
        return sorted(each['event'] for each in list(self.collector.events))

    def assert_all_arrived(self, names: Any) -> None:
        names = set(names)
        # Some may come twice: by their number alone all could seem to be there.
        eventually(lambda: set(self.arrived()) >= names)
        self.assertEqual(set(self.arrived()), names)

    def assert_nothing_left(self) -> None:
        self.assertTrue(eventually(lambda: not self.files()), self.files())


class PromiseTest(SpoolTestCase):
    def test_an_event_is_on_the_disk_when_the_call_returns(self) -> None:
        client = self.client(host=NOWHERE)
        for number in range(2100):  # more than the window in memory
            self.assertTrue(client.track('user', str(number))[0])
            if number in (0, 1, 250, 1999, 2000, 2001, 2099):
                (found,) = waiting(self.spool_dir)
                self.assertEqual((found.state, found.events), ('running', number + 1))

    def test_events_survive_kill_9_and_the_next_client_sends_them(self) -> None:
        self.leave(1000)
        self.client()
        self.assert_all_arrived(str(number) for number in range(1000))
        self.assert_nothing_left()
        self.assertEqual(len(self.collector.events), 1000)

    def test_a_killed_process_loses_no_event_that_it_was_answered_true_for(
        self,
    ) -> None:
        code = (
            'import threading\n'
            'out = os.open(sys.argv[2] + "/accepted", os.O_CREAT | os.O_APPEND | 1)\n'
            'def work(name):\n'
            '    number = 0\n'
            '    while True:\n'
            '        number += 1\n'
            '        event = "%s-%d" % (name, number)\n'
            '        if client.track("user", event)[0]:\n'
            '            os.write(out, (event + "\\n").encode())\n'
            'for thread in range(3):\n'
            '    name = "%d-%d" % (os.getpid(), thread)\n'
            '    threading.Thread(target=work, args=(name,), daemon=True).start()\n'
            'print("started", flush=True)\n'
            'time.sleep(60)\n'
        )
        for delay in (0.0, 0.02, 0.05, 0.1, 0.2):
            process = subprocess.Popen(
                [sys.executable, '-c', _HEAD + code, self.collector.url]
                + [self.spool_dir],
                stdout=subprocess.PIPE,
            )
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)  # at some moment of its work
            process.kill()
            process.wait()
            process.stdout.close()
        with open(os.path.join(self.spool_dir, 'accepted')) as file:
            accepted = set(file.read().split())
        self.assertGreater(len(accepted), 5)  # however slow this machine is
        self.client()
        self.assert_nothing_left()
        self.assertLessEqual(accepted, set(self.arrived()))

    def test_shutdown_leaves_on_the_disk_what_it_cannot_deliver(self) -> None:
        on_error = Recorder()
        self.collector.stop()
        client = self.client(on_error=on_error)
        for number in range(2700):
            client.track('user', str(number))
        self.assertFalse(client.shutdown(0.2))
        self.assertEqual(on_error.calls, [])
        self.assertEqual(client.stats().pending, 2700)
        self.assert_adds_up(client)
        self.assertFalse(client.track('user', 'late')[0])
        self.assertFalse(client.flush(LIMIT))
        self.collector.start()
        self.client()
        self.assert_all_arrived(str(number) for number in range(2700))
        self.assert_nothing_left()

    def test_a_batch_that_is_on_its_way_at_shutdown_stays_on_the_disk(self) -> None:
        self.collector.script('hang')
        client = self.client(upload_interval=0)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for_requests(1, LIMIT))
        self.assertFalse(client.shutdown(0.1))
        (found,) = waiting(self.spool_dir)
        self.assertEqual((found.state, found.events), ('left', 1))
        self.client()
        self.assert_all_arrived(['event'])

    def test_the_exit_leaves_on_the_disk_what_it_cannot_deliver(self) -> None:
        result = self.run_child('client.track("user", "event")\n', url=NOWHERE)
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        self.client()
        self.assert_all_arrived(['event'])

    def test_a_healthy_exit_leaves_nothing(self) -> None:
        result = self.run_child(
            'for number in range(700): client.track("user", str(number))\n',
            url=self.collector.url,
        )
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        self.assertEqual(len(self.collector.events), 700)
        self.assertEqual(self.files(), [])

    def test_events_that_come_with_a_shutdown_arrive_once(self) -> None:
        interval = sys.getswitchinterval()
        self.addCleanup(sys.setswitchinterval, interval)
        sys.setswitchinterval(1e-5)
        accepted: List[str] = []
        for _ in range(30):
            client = self.client(upload_interval=0)
            ended = threading.Event()

            def track() -> None:
                while not ended.is_set():
                    taken, message = client.track('user', 'event')
                    if taken:
                        accepted.append(message['messageId'])

            threads = [threading.Thread(target=track) for _ in range(2)]
            for thread in threads:
                thread.start()
            self.assertTrue(eventually(lambda: client.stats().delivered > 10))
            client.shutdown(LIMIT)
            ended.set()
            for thread in threads:
                thread.join(LIMIT)
        self.client()
        self.assert_nothing_left()
        ids = [each['messageId'] for each in self.collector.events]
        self.assertEqual(sorted(ids), sorted(accepted))

    def test_flush_and_stats_mean_the_same_as_without_a_spool(self) -> None:
        client = self.client(upload_interval=LIMIT)
        for number in range(1000):
            client.track('user', str(number))
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1000)
        stats = client.stats()
        self.assertEqual((stats.accepted, stats.delivered), (1000, 1000))
        self.assertEqual((stats.pending, stats.durable), (0, True))
        self.assertTrue(client.queue.empty())

    def test_a_client_writes_all_its_events_to_one_file(self) -> None:
        client = self.client(upload_size=10)
        paths: Set[str] = set()
        for number in range(3000):
            self.assertTrue(client.track('user', str(number))[0])
            if number % 50 == 0:
                self.assertTrue(client.flush(LIMIT))
                paths.update(self.files('.log'))
        self.assertEqual(len(paths), 1)

    def test_without_a_spool_durable_is_none(self) -> None:
        self.assertIsNone(self.client(spool_dir=None).stats().durable)

    def test_send_false_writes_nothing(self) -> None:
        client = self.client(send=False)
        self.assertTrue(client.track('user', 'event')[0])
        self.assertEqual(os.listdir(self.spool_dir), [])

    def test_an_event_that_was_refused_is_reported_once_and_leaves(self) -> None:
        on_error = Recorder()

        def choose(received: Any) -> Any:
            names = [each['event'] for each in received.body['batch']]
            return 400 if 'bad' in names else 200

        self.collector.script(*[choose] * 20)
        client = self.client(on_error=on_error)
        for name in ('one', 'bad', 'two', 'three'):
            client.track('user', name)
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(self.arrived(), ['one', 'three', 'two'])
        ((error, batch),) = on_error.calls
        self.assertIsInstance(error, APIError)
        self.assertEqual([each['event'] for each in batch], ['bad'])
        self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(self.files(), [])

    def test_max_retries_does_not_end_the_tries(self) -> None:
        on_error = Recorder()
        self.collector.script(*[503] * 5)
        client = self.client(max_retries=0, on_error=on_error)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual((self.arrived(), on_error.calls), (['event'], []))

    def test_only_the_collectors_own_word_ends_an_event(self) -> None:
        on_error = Recorder()
        client = self.client(on_error=on_error)
        passing = (101, 300, 302, 304, 307, 402, 406, 407, 408, 421, 423, 425, 429)
        passing += (451, 499, 500, 502, 503, 504, 511, 599, 600, 999)
        self.collector.script(*passing)
        with LogCatcher() as lines:
            client.track('user', 'kept')
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual((self.arrived(), on_error.calls), (['kept'], []))
        self.assertEqual(client.stats().retried, len(passing))
        (line,) = lines.lines(
            level=logging.WARNING
        )  # of what somebody may have to mend
        self.assertIn('(300)', line)
        final = (400, 401, 403, 404, 405, 410, 411, 413, 414, 415, 422, 431, 501, 505)
        for status in final:
            self.collector.script(status)
            client.track('user', 'refused')
            self.assertTrue(client.flush(LIMIT))
        statuses = [error.status for error, _ in on_error.calls]
        self.assertEqual((tuple(statuses), self.arrived()), (final, ['kept']))

    def test_expired_events_are_reported_and_not_sent(self) -> None:
        on_error = Recorder()
        now = datetime.now(timezone.utc)
        client = self.client(on_error=on_error, upload_interval=LIMIT)
        client.track('user', 'old', timestamp=now - timedelta(days=7, seconds=1))
        client.track('user', 'still good', timestamp=now - timedelta(days=6, hours=23))
        client.track('user', 'new')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(self.arrived(), ['new', 'still good'])
        self.assertEqual(len(self.collector.requests), 1)
        ((error, batch),) = on_error.calls
        self.assertIsInstance(error, ExpiredError)
        self.assertIn('7 days', str(error))
        self.assertEqual([each['event'] for each in batch], ['old'])
        self.assert_adds_up(client)

    def test_an_event_that_expires_while_it_is_retried_is_reported(self) -> None:
        on_error = Recorder()
        self.collector.script(*[Fault(503, {'Retry-After': '1'})] * 3)
        client = self.client(on_error=on_error, upload_interval=0)
        limit = datetime.now(timezone.utc) - timedelta(days=7)
        client.track('user', 'old', timestamp=limit + timedelta(seconds=0.8))
        self.assertTrue(on_error.wait_for(1))
        self.assertIsInstance(on_error.calls[0][0], ExpiredError)
        self.assertEqual(self.collector.events, [])


class InterruptionTest(SpoolTestCase):
    """A signal handler may raise at any step of a call (a time limit, Ctrl-C)."""

    def overflow(self, on_error: Any = None) -> Client:
        """Give a client whose next event goes to the disk only."""
        self.collector.stop()
        client = self.client(on_error=on_error)
        for number in range(2100):
            self.assertTrue(client.track('user', str(number))[0])
        return client

    def interrupt(self, client: Client, step: str) -> None:
        error = KeyboardInterrupt()
        write = os.write

        def interrupted(fd: int, data: bytes) -> int:
            if step == 'after':
                write(fd, data)
            raise error

        with mock.patch('os.write', interrupted):
            with self.assertRaises(KeyboardInterrupt):
                client.track('user', 'interrupted')

    def finish(self, client: Client) -> None:
        self.assertTrue(client.track('user', 'last')[0])
        self.collector.start()
        self.assertTrue(client.flush(LIMIT))
        self.assertTrue(client.shutdown(LIMIT))
        self.assertLessEqual({str(each) for each in range(2100)}, set(self.arrived()))
        self.assertIn('last', self.arrived())
        self.assert_adds_up(client)
        self.assertEqual(self.files(), [])

    def test_a_call_that_was_interrupted_after_it_wrote_loses_no_other_event(
        self,
    ) -> None:
        client = self.overflow()
        self.interrupt(client, 'after')
        self.finish(client)

    def test_a_call_that_was_interrupted_before_it_wrote_is_not_reported_lost(
        self,
    ) -> None:
        on_error = Recorder()
        client = self.overflow(on_error)
        self.interrupt(client, 'before')
        self.finish(client)
        self.assertEqual(on_error.calls, [])

    def test_an_interruption_reaches_the_application(self) -> None:
        class TimeLimit(Exception):
            pass

        client = self.client()
        with mock.patch.object(log.Log, 'create', side_effect=TimeLimit):
            with self.assertRaises(TimeLimit):
                client.track('user', 'event')
        self.assertTrue(client.track('user', 'event')[0])

    def run_handler(self, handler: str, after: str = '') -> Any:
        """Run a program whose signal handler comes while a call writes an event."""
        return self.run_child(
            'import threading\n'
            'from hightouch.htevents._spool import appender as store\n'
            'client.track("user", "first")\n'
            'def handle(*_):\n' + handler + 'signal.signal(signal.SIGUSR1, handle)\n'
            'event_record = store.event_record\n'
            'def interrupted(*args):\n'
            '    store.event_record = event_record\n'
            '    os.kill(os.getpid(), signal.SIGUSR1)\n'
            '    return event_record(*args)\n'
            'store.event_record = interrupted\n'
            'client.track("user", "interrupted")\n' + after,
            url=self.collector.url,
        )

    def test_a_flush_waits_until_the_last_batch_of_a_removed_log_is_counted(
        self
    ) -> None:
        queue = self.queue()
        self.assertTrue(queue.offer(b'{}'))
        batch = queue.take_now(1)
        assert batch is not None
        files: Any = queue.store
        files.appender.seal(files.appender.writer)
        files.resolve(
            batch.items
        )  # as far as a consumer is when another thread flushes
        self.assert_nothing_left()
        self.assertFalse(queue.flush(Deadline(0)))
        queue.acknowledge(batch, delivered=True)
        self.assertTrue(queue.flush(Deadline(LIMIT)))

    def test_a_signal_handler_may_flush_while_a_call_writes(self) -> None:
        result = self.run_handler(
            '    for number in range(3000): client.track("user", str(number))\n'
            '    print(client.flush(30))\n',
            'print(client.shutdown(30))\n',
        )
        self.assertEqual(result.stdout.split(), ['True', 'True'], result.stderr)
        self.assertEqual(len(self.collector.events), 3002)

    def test_a_signal_handler_may_shut_down_while_a_call_writes(self) -> None:
        result = self.run_handler(
            '    print(client.shutdown(30))\n', 'print(client.track("user", "e")[0])\n'
        )
        self.assertEqual(result.stdout.split(), ['True', 'False'], result.stderr)
        self.client()  # the event that was being written is for the next one
        self.assert_all_arrived(['first', 'interrupted'])

    def test_a_signal_handler_may_open_a_file_while_another_is_closed(self) -> None:
        result = self.run_handler(
            '    threading.Thread(target=closed, daemon=True).start()\n'
            '    time.sleep(0.2)  # by then it wants the file that we write to\n'
            '    other = Client("other", url, spool_dir=spool_dir)\n'
            '    print(other.track("user", "other")[0], other.flush(30), flush=True)\n'
            '    os._exit(0)\n'
            'def closed():\n'
            '    client.shutdown(30)\n'
        )
        self.assertEqual(result.stdout.split(), ['True', 'True'], result.stderr)

    def test_a_log_handler_may_track_when_another_call_has_something_to_log(
        self,
    ) -> None:
        client = self.client()
        handler = logging.StreamHandler(io.StringIO())
        logging.getLogger('hightouch').addHandler(handler)
        self.addCleanup(logging.getLogger('hightouch').removeHandler, handler)

        def call() -> None:
            client.track('user', 'event')

        def emit() -> None:
            handler.acquire()  # as while it emits a record
            first.start()
            eventually(
                lambda: client._queue.store.appender.trouble
            )  # and has an ERROR to log
            call()
            handler.release()

        first = threading.Thread(target=call, daemon=True)
        emitting = threading.Thread(target=emit, daemon=True)
        with mock.patch.object(log.Log, 'create', side_effect=OSError('no')):
            emitting.start()
            emitting.join(LIMIT)
            self.assertFalse(emitting.is_alive())
            first.join(LIMIT)
        self.assertIn('cannot be made durable', handler.stream.getvalue())


class SharedDirectoryTest(SpoolTestCase):
    def test_clients_may_be_made_on_one_directory_at_the_same_time(self) -> None:
        failed: List[Exception] = []
        ready = threading.Barrier(4)

        def make() -> None:
            ready.wait(LIMIT)
            try:
                for _ in range(200):
                    Client(TEST_WRITE_KEY, NOWHERE, spool_dir=self.spool_dir)
            except ValidationError as error:
                failed.append(error)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        self.assertEqual(failed, [])

    def test_a_client_that_is_shut_down_while_it_takes_over_holds_nothing_back(
        self,
    ) -> None:
        for _ in range(4):
            self.leave(20)
        with mock.patch.object(store.FileStore, 'idle_wait', 0.05):
            with mock.patch.object(store, 'SCAN_INTERVAL', 0.05):
                for _ in range(10):
                    self.client().shutdown(0)
                # What these delivered, and had no time to note, comes twice.
                client = self.client()
                client.track('user', 'mine')  # from now on it looks around
                self.assertTrue(eventually(lambda: len(self.files('.log')) == 1))
                self.assertTrue(client.shutdown(LIMIT))
        self.assert_nothing_left()
        self.assertEqual(len(set(self.collector_ids())), 81)

    def collector_ids(self) -> List[str]:
        return [each['messageId'] for each in list(self.collector.events)]

    def test_flush_waits_for_own_events_also_beside_a_backlog(self) -> None:
        self.leave(2000)
        self.collector.stop()
        client = self.client(upload_size=1000)
        mine = set()
        for _ in range(3000):
            accepted, message = client.track('user', 'mine')
            self.assertTrue(accepted)
            mine.add(message['messageId'])
        self.assertTrue(eventually(lambda: client.stats().retried))
        self.collector.start()
        self.assertTrue(client.flush(LIMIT))
        self.assertLessEqual(mine, set(self.collector_ids()))

    def test_a_delivered_file_that_cannot_be_removed_holds_up_nothing(self) -> None:
        self.leave(10)
        no_right = OSError(errno.EPERM, 'no')
        with mock.patch('os.unlink', side_effect=no_right), LogCatcher() as lines:
            client = self.client()
            self.assertTrue(client.track('user', 'mine')[0])
            self.assertTrue(eventually(lambda: lines.lines(level=40)))
            self.assertTrue(client.track('user', 'mine')[0])
            self.assertTrue(client.flush(LIMIT))
            (line,) = lines.lines(level=40)
        self.assertIn('cannot be removed', line)
        self.assertEqual(len(self.collector.events), 12)

    @needs_fork_hooks
    def test_a_child_takes_over_its_dead_parents_events_in_files_of_its_own(
        self,
    ) -> None:
        result = self.run_child(
            'host = client.host\n'
            'client = Client("{key}", "http://127.0.0.1:9", spool_dir=spool_dir)\n'
            'for number in range(500): client.track("user", str(number))\n'
            'parent = os.getpid()\n'
            'if os.fork():\n'
            '    os.kill(parent, signal.SIGKILL)\n'
            'while os.getppid() == parent: time.sleep(0.01)\n'
            # A thread of it may still be at its end, and hold its files open.
            'from hightouch.htevents._spool.report import waiting\n'
            'while waiting(spool_dir)[0].state != "left": time.sleep(0.01)\n'
            'heir = Client("{key}", host, spool_dir=spool_dir)\n'
            'deadline = time.monotonic() + 50\n'
            'while heir._queue.store.has_backlog() and time.monotonic() < deadline:\n'
            '    time.sleep(0.01)\n'
            'heir.shutdown()\n'
            'print(heir.stats().delivered)\n'.format(key=TEST_WRITE_KEY),
            url=self.collector.url,
        )
        self.assertEqual(result.stdout.split(), ['500'], result.stderr)
        self.assertEqual(len(self.collector.events), 500)
        self.assert_nothing_left()

    @needs_fork_hooks
    def test_forks_beside_clients_that_come_and_go_hang_nothing(self) -> None:
        result = self.run_child(
            'import threading\n'
            'stop = threading.Event()\n'
            'def churn(number):\n'
            '    while not stop.wait(0.01):\n'
            '        one = Client("key-%d" % number, url, spool_dir=spool_dir)\n'
            '        one.track("user", "event")\n'
            '        one.shutdown(10)\n'
            'threads = [threading.Thread(target=churn, args=(n,)) for n in range(2)]\n'
            + _END_A_THREAD
            + 'for thread in threads: thread.start()\n'
            'bad = 0\n'
            'def locks():\n'
            '    for fd in os.listdir("/proc/self/fd"):\n'
            '        try: yield os.readlink("/proc/self/fd/" + fd).endswith(".log")\n'
            '        except OSError: pass\n'
            'for number in range(60):\n'
            '    pid = os.fork()\n'
            '    if pid == 0:\n'
            '        signal.alarm(20)\n'
            '        held = os.path.isdir("/proc/self/fd") and any(locks())\n'
            '        ok = client.track("user", "child")[0] and client.flush(15)\n'
            '        os._exit(0 if ok and not held else 1)\n'
            '    bad += os.waitpid(pid, 0)[1] != 0\n'
            'stop.set()\n'
            'for thread in threads: thread.join()\n'
            'print(bad)\n',
            url=self.collector.url,
        )
        self.assertEqual(result.stdout.split(), ['0'], result.stderr)

    def test_a_living_process_keeps_its_events(self) -> None:
        first = self.client(host=NOWHERE)
        first.track('user', 'event')
        second = self.client()
        second.track('user', 'mine')
        self.assertTrue(second.flush(LIMIT))
        self.assertEqual(self.arrived(), ['mine'])
        self.assertEqual(len(self.files('.log')), 2)

    def test_what_dies_while_we_run_is_taken_over_by_exactly_one(self) -> None:
        with mock.patch.object(store, 'SCAN_INTERVAL', 0.05):
            clients = [self.client(upload_interval=0) for _ in range(3)]
            for client in clients:
                client.track('user', 'mine')
                client.flush(LIMIT)
            self.leave(300)

            def work() -> bool:
                for client in clients:
                    client.track('user', 'mine')
                return len(set(self.arrived())) == 301

            self.assertTrue(eventually(work))
        for client in clients:
            self.assertTrue(client.shutdown(LIMIT))
        self.assert_nothing_left()
        names = [each for each in self.arrived() if each != 'mine']
        self.assertEqual(len(names), 300)

    def test_an_idle_client_takes_over_as_well(self) -> None:
        with mock.patch.object(store.FileStore, 'idle_wait', 0.05):
            with mock.patch.object(store, 'SCAN_INTERVAL', 0.05):
                client = self.client()
                client.track('user', 'mine')
                client.flush(LIMIT)
                self.leave(3)
                self.assertTrue(self.collector.wait_for(4, LIMIT))

    def test_two_clients_at_once_never_take_the_same(self) -> None:
        for _ in range(5):
            self.leave(50)
        found: List[Any] = []
        ready = threading.Barrier(4)

        def scan() -> None:
            spool = directory.Directory(self.spool_dir, TEST_WRITE_KEY, False)
            ready.wait(LIMIT)
            found.extend(spool.adopt())

        threads = [threading.Thread(target=scan) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        for each in found:
            self.addCleanup(each.close)
        self.assertEqual(len({each.path for each in found}), 5)
        self.assertEqual(len(found), 5)

    def test_more_owners_than_may_be_open_are_taken_over_one_after_the_other(
        self,
    ) -> None:
        result = self.run_child(
            'for number in range(12):\n'
            '    if os.fork() == 0:\n'
            '        client.track("user", str(number))\n'
            '        os.kill(os.getpid(), signal.SIGKILL)\n'
            'for number in range(12): os.wait()\n'
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.collector.latency = 0.1  # meanwhile the other thread waits for more
        with mock.patch.object(store, 'MAX_ADOPTED', 3):
            self.client(thread=2)
            self.assert_all_arrived(str(number) for number in range(12))
            self.assert_nothing_left()

    def test_events_of_one_key_are_never_sent_with_another(self) -> None:
        self.leave(10)
        other = self.client(write_key='another-key')
        other.track('user', 'other')
        self.assertTrue(other.flush(LIMIT))
        self.assertEqual(self.arrived(), ['other'])
        self.client().track('user', 'mine')
        self.assertTrue(self.collector.wait_for(12, LIMIT))
        for request in self.collector.requests:
            names = {each['event'] for each in request.body['batch']}
            right = 'another-key' if names == {'other'} else TEST_WRITE_KEY
            self.assertEqual(request.body['writeKey'], right)

    def test_the_key_is_not_on_the_disk_and_the_files_are_closed_to_others(
        self,
    ) -> None:
        os.chmod(self.spool_dir, 0o755)
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        client = self.client(write_key='secret-write-key', host=NOWHERE)
        client.track('user', 'event')
        folder = os.path.dirname(self.files()[0])
        self.assertEqual(stat.S_IMODE(os.stat(folder).st_mode), 0o700)
        self.assertEqual(len(self.files()), 1)
        for path in self.files():
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
            self.assertNotIn('secret-write-key', path)
            with open(path, 'rb') as file:
                self.assertNotIn(b'secret-write-key', file.read())

    def test_a_directory_keeps_its_mode_and_what_is_made_is_closed_to_others(
        self,
    ) -> None:
        for mode in (0o755, 0o1777, 0o2770, 0o775):
            folder = os.path.join(self.spool_dir, '%o' % mode)
            os.mkdir(folder)
            os.chmod(folder, mode)
            client = self.client(spool_dir=folder)
            self.assertTrue(client.track('user', 'event')[0])
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(stat.S_IMODE(os.stat(folder).st_mode), mode)
            (made,) = os.listdir(folder)
            found = os.stat(os.path.join(folder, made))
            self.assertEqual(stat.S_IMODE(found.st_mode) & 0o777, 0o700)

    def test_a_forked_child_neither_sends_nor_loses_its_parents_events(self) -> None:
        client = self.client(upload_interval=LIMIT, upload_size=1000)
        for number in range(400):
            client.track('user', 'parent-%d' % number)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                empty = client.stats().pending == 0
                client.track('user', 'child')
                status = 0 if empty and client.flush(LIMIT) else 1
                client.shutdown(LIMIT)
            finally:
                os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertNotIn('parent-399', self.arrived())
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 401)
        self.assertEqual(len(set(self.arrived())), 401)

    @needs_fork_hooks
    def test_a_parent_that_dies_leaves_its_events_although_its_child_lives(
        self,
    ) -> None:
        read, write = os.pipe()
        self.addCleanup(os.close, write)
        os.set_inheritable(read, True)
        result = subprocess.Popen(
            [sys.executable, '-c']
            + [
                _HEAD + 'client.track("user", "event")\n'
                'there, here = os.pipe()\n'
                'if os.fork() == 0:\n'
                '    os.write(here, b".")\n'  # it has let go of what is its parent's
                '    os.read(%d, 1)\n'
                '    os._exit(0)\n'
                'os.read(there, 1)\n'
                'os.kill(os.getpid(), signal.SIGKILL)\n' % read,
                NOWHERE,
                self.spool_dir,
            ],
            close_fds=False,
        )
        result.wait(LIMIT)
        os.close(read)
        self.client()
        self.assert_all_arrived(['event'])

    @needs_fork_hooks
    def test_forks_while_threads_write_lose_and_hang_nothing(self) -> None:
        result = self.run_child(
            'import threading\n'
            'stop = threading.Event()\n'
            'accepted = []\n'
            'def work():\n'
            '    count = 0\n'
            '    while count < 5000 and not stop.is_set():\n'
            '        count += client.track("user", "parent")[0]\n'
            '    accepted.append(count)\n'
            '    stop.wait()\n'  # see _END_A_THREAD
            'threads = [threading.Thread(target=work) for _ in range(3)]\n'
            'for thread in threads: thread.start()\n'
            'bad = 0\n'
            'for number in range(60):\n'
            '    pid = os.fork()\n'
            '    if pid == 0:\n'
            '        signal.alarm(30)\n'
            '        ok = client.track("user", "child")[0] and client.shutdown(30)\n'
            '        os._exit(0 if ok else 1)\n'
            '    bad += os.waitpid(pid, 0)[1] != 0\n'
            'stop.set()\n'
            'for thread in threads: thread.join()\n'
            'assert client.flush(50)\n'
            'print(bad, sum(accepted))\n',
            url=self.collector.url,
        )
        bad, accepted = map(int, result.stdout.split())
        self.assertEqual(bad, 0)
        ids: Set[str] = {each['messageId'] for each in self.collector.events}
        self.assertEqual(len(ids), accepted + 60)
        self.assertEqual(len(self.collector.events), accepted + 60)


class BacklogTest(SpoolTestCase):
    def test_an_outage_ends_and_all_arrives(self) -> None:
        self.collector.stop()
        client = self.client()
        for number in range(5000):
            self.assertTrue(client.track('user', str(number))[0])
        self.assertLessEqual(len(client._queue.store.ready), 100)
        self.collector.start()
        self.assertTrue(client.flush(LIMIT))
        self.assert_all_arrived(str(number) for number in range(5000))
        self.assertEqual(len(self.collector.events), 5000)

    def test_a_full_spool_refuses_and_keeps_what_it_has(self) -> None:
        self.collector.stop()
        client = self.client(spool_max_bytes=1 << 20)
        with LogCatcher() as lines:
            accepted = 0
            while client.track('user', str(accepted), {'text': 'x' * 5000})[0]:
                accepted += 1
                self.assertLess(accepted, 1000)
        self.assertGreater(accepted, 100)
        self.assertEqual(len([each for each in lines.lines() if 'is full' in each]), 1)
        self.assertTrue(client.queue.full())
        self.assertIs(client.stats().durable, True)
        self.assertEqual(client.stats().refused, 1)
        self.collector.start()
        self.assertTrue(client.flush(LIMIT))
        self.assert_all_arrived(str(number) for number in range(accepted))
        self.assertTrue(client.track('user', 'again')[0])

    def test_a_full_spool_has_room_again_also_after_the_smallest_batches(self) -> None:
        self.collector.stop()
        client = self.client(spool_max_bytes=1 << 20, upload_size=1, thread=4)
        accepted = 0
        while client.track('user', 'event')[0]:
            accepted += 1
        self.assertGreater(accepted, 1000)
        with LogCatcher() as lines:
            self.collector.start()
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(client.stats().delivered, accepted)
            self.assertTrue(client.track('user', 'event')[0])
            self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual((lines.lines(level=30), self.files()), ([], []))

    def test_block_timeout_waits_for_room_in_the_spool(self) -> None:
        self.collector.stop()
        client = self.client(spool_max_bytes=1 << 20, block_timeout=LIMIT)
        properties = {'text': 'x' * 20000}
        while not client.queue.full():
            self.assertTrue(client.track('user', 'event', properties)[0])
        timer = threading.Timer(0.2, self.collector.start)
        timer.start()
        self.assertTrue(client.track('user', 'event', properties)[0])
        timer.join()

    def test_what_was_taken_over_counts_for_the_room(self) -> None:
        result = self.run_child(
            'while client.track("user", "event", {"text": "x" * 9000})[0]:\n'
            '    if client.stats().accepted == 100: break\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n'
        )
        self.assertEqual(result.returncode, -signal.SIGKILL, result.stderr)
        client = self.client(host=NOWHERE, spool_max_bytes=1 << 20)
        self.assertTrue(eventually(lambda: client.stats().pending > 0))
        accepted = 0
        while client.track('user', 'event', {'text': 'x' * 9000})[0]:
            accepted += 1
        self.assertLess(accepted, 30)

    def leave_bodies(self, bodies: Any) -> None:
        """Leave events of a dead process, without one."""
        left = self.queue()
        for body in bodies:
            self.assertTrue(left.offer(body))
        left.release()

    def test_a_backlog_is_streamed_and_does_not_delay_the_start(self) -> None:
        self.leave_bodies([support.encoded_event('backlog')] * 20000)
        client = self.client()
        self.assertTrue(self.collector.wait_for(1000, LIMIT))
        self.assertLessEqual(len(client._queue.store.ready), 100)
        self.assertTrue(self.collector.wait_for(20000, LIMIT))
        self.assert_nothing_left()
        self.assertEqual(len(self.collector.events), 20000)

    def test_a_backlog_is_sent_in_full_batches(self) -> None:
        for threads in (1, 4):
            self.leave_bodies([support.encoded_event('backlog')] * 1000)
            del self.collector.requests[:], self.collector.events[:]
            client = self.client(thread=threads)
            self.assertTrue(self.collector.wait_for(1000, LIMIT))
            sizes = [len(each.body['batch']) for each in self.collector.requests]
            self.assertEqual(sizes, [100] * 10)
            client.shutdown(LIMIT)

    def test_a_backlog_is_sent_by_all_consumers(self) -> None:
        self.leave(300)
        self.collector.script(*['hang'] * 3)
        self.client(thread=4, upload_size=30, upload_interval=0)
        self.assertTrue(self.collector.wait_for(300 - 3 * 30, LIMIT))

    def test_events_keep_their_order_over_several_files(self) -> None:
        with mock.patch.multiple(appender, LOG_BYTES=10000, LOGS=1 << 20):
            queue = self.queue()
        for number in range(2100):
            queue.offer(b'{"n":%d}' % number)
        self.assertGreater(len(self.files('.log')), 5)
        numbers: List[int] = []
        while len(numbers) < 2100:
            batch = queue.take_now(150)
            assert batch is not None
            numbers += [each['n'] for each in batch.messages()]
            queue.acknowledge(batch, delivered=True)
        self.assertEqual(numbers, list(range(2100)))
        self.assertIsNone(queue.take_now(1))  # it has a look at the end
        self.assertEqual(len(self.files('.log')), 1)

    def test_the_next_logs_are_taken_over_before_the_last_one_is_done(self) -> None:
        for _ in range(3):
            self.leave(1)
        with mock.patch.object(store, 'MAX_ADOPTED', 2):
            heir = self.queue()
            first, second = heir.take_now(1), heir.take_now(1)
            assert first is not None and second is not None
            self.assertIsNone(heir.take_now(1))
            heir.acknowledge(first, delivered=True)
            self.assertIsNotNone(heir.take_now(1))  # and the second is still on its way

    def test_a_flush_does_not_take_the_events_of_others_for_its_own(self) -> None:
        self.leave_bodies([b'{"n":"other"}'])
        queue = self.queue()
        self.assertTrue(
            queue.flush(Deadline(LIMIT))
        )  # which waits for nothing of its own
        other = queue.take_now(10)
        assert other is not None
        self.assertEqual(other.messages(), [{'n': 'other'}])
        queue.offer(b'{"n":1}')
        flushed: List[bool] = []
        waiter = threading.Thread(
            target=lambda: flushed.append(queue.flush(Deadline(LIMIT)))
        )
        waiter.start()
        self.assertTrue(eventually(lambda: queue.ledger.flushes.waiting))
        own = queue.take_now(10)
        assert own is not None
        queue.offer(b'{"n":2}')
        self.assertEqual(flushed, [])
        queue.acknowledge(own, delivered=True)
        waiter.join(LIMIT)
        self.assertEqual(flushed, [True])

    def test_a_flush_waits_for_own_events_in_a_batch_with_those_of_others(self) -> None:
        self.leave_bodies([b'{"n":"other"}'] * 3)
        queue = self.queue()
        self.assertEqual(queue.store.fetch(3), 3)
        queue.offer(b'{"n":1}')
        batch = queue.take_now(10)
        assert batch is not None
        self.assertEqual(len(batch), 4)
        self.assertFalse(queue.flush(Deadline(0)))
        queue.acknowledge(batch, delivered=True)
        self.assertIsNone(queue.take_now(1))  # it has a look at the end
        self.assertTrue(queue.flush(Deadline(0)))

    def test_an_event_that_is_read_before_it_is_counted_hides_no_other(self) -> None:
        queue = self.queue()
        queue.offer(b'{"n":1}')
        fd = queue.store.appender.writer.fd  # type: ignore[attr-defined]
        os.write(fd, log.event_record(b'{"n":2}', 17))  # and not counted
        batch = queue.take_now(10)
        assert batch is not None
        self.assertEqual(len(batch), 2)
        queue.acknowledge(batch, delivered=True)
        queue.offer(b'{"n":3}')
        self.assertFalse(queue.flush(Deadline(0)))
        batch = queue.take_now(10)
        assert batch is not None
        self.assertEqual(batch.messages(), [{'n': 3}])
        queue.acknowledge(batch, delivered=True)
        self.assertIsNone(queue.take_now(1))  # it has a look at the end
        self.assertTrue(queue.flush(Deadline(0)))

    def test_a_log_with_many_notes_is_taken_over_in_time(self) -> None:
        queue = self.queue()
        for number in range(4000):
            queue.offer(b'{"n":%d}' % number)
            batch = queue.take_now(1)
            assert batch is not None
            if number != 2000:
                queue.acknowledge(batch, delivered=True)
        queue.release()
        heir = self.queue()
        self.assertEqual(heir.store.fetch(10), 1)
        batch = heir.take_now(10)
        assert batch is not None
        self.assertEqual(batch.messages(), [{'n': 2000}])

    def test_a_loss_is_told_with_no_lock_held_and_waits_for_its_callback(self) -> None:
        told: List[Any] = []

        def on_error(error: Exception, batch: List[Any]) -> None:
            other = threading.Thread(target=lambda: told.append(client.stats()))
            other.start()
            other.join(LIMIT)
            told.append((error, batch))

        client = self.client(on_error=on_error, upload_interval=LIMIT * 10)
        with support.no_threads():  # a consumer would have read them by now
            for number in range(3):
                client.track('user', str(number))
        (path,) = self.files('.log')
        with open(path, 'r+b') as file:
            data = file.read()
            file.seek(data.index(b'"event":"1"'))
            file.write(b'x')
        client._queue.store.appender.writer = None  # its file is read to its end
        self.assertTrue(client.flush(LIMIT))
        stats, (error, batch) = told
        self.assertEqual((stats.failed, stats.pending >= 1), (0, True))
        self.assertIsInstance(error, DamageError)
        self.assertEqual((error.count, batch), (1, []))
        stats = client.stats()
        self.assertEqual((stats.delivered, stats.failed, stats.pending), (2, 1, 0))

    def test_what_a_deleted_directory_takes_along_is_reported_at_the_end(self) -> None:
        self.collector.stop()
        on_error = Recorder()
        client = self.client(on_error=on_error)
        for _ in range(2500):  # the last ones are on the disk only
            self.assertTrue(client.track('user', 'event')[0])
        shutil.rmtree(self.spool_dir)
        self.assertFalse(client.shutdown(0.1))
        stats = client.stats()
        self.assertEqual((stats.failed, stats.pending), (2500, 0))
        told = 0
        for error, batch in on_error.calls:
            told += error.count if isinstance(error, DamageError) else len(batch)
        self.assertEqual(told, 2500)

    def test_only_what_a_deleted_directory_took_along_is_reported(self) -> None:
        on_error = Recorder()
        client = self.client(host=NOWHERE, on_error=on_error)
        for name in ('old', 'new'):
            for _ in range(3):
                self.assertTrue(client.track('user', name)[0])
            if name == 'old':
                shutil.rmtree(self.spool_dir)
                os.mkdir(self.spool_dir)
        # One batch of both is on its way, or waits to be.
        self.assertFalse(client.shutdown(0.1))
        ((_, batch),) = on_error.calls
        self.assertEqual([each['event'] for each in batch], ['old'] * 3)
        self.client()
        self.assert_all_arrived(['new'])
        self.assertEqual(len(self.collector.events), 3)

    def test_what_was_taken_over_and_deleted_is_reported_too(self) -> None:
        self.leave(5)
        on_error = Recorder()
        client = self.client(host=NOWHERE, on_error=on_error)
        self.assertTrue(eventually(lambda: client.stats().pending == 5))
        shutil.rmtree(client._queue.store.directory.folder)
        os.mkdir(client._queue.store.directory.folder)
        self.assertFalse(client.shutdown(0.1))
        self.assertEqual([len(batch) for _, batch in on_error.calls], [5])
        self.assertEqual(client.stats().pending, 0)

    def test_a_flush_without_end_ends_with_the_client(self) -> None:
        told, go_on = threading.Event(), threading.Event()

        def on_success(batch: Any) -> None:
            told.set()
            go_on.wait(LIMIT)

        self.collector.script(200, *['hang'] * 10)
        client = self.client(upload_size=1, upload_interval=0, on_success=on_success)
        for _ in range(3):
            client.track('user', 'event')
        self.assertTrue(told.wait(LIMIT))
        flushed: List[bool] = []
        thread = threading.Thread(target=lambda: flushed.append(client.flush(None)))
        thread.start()
        self.assertTrue(eventually(lambda: client._queue.ledger.flushes.waiting))
        self.assertFalse(client.shutdown(0.1))
        go_on.set()
        thread.join(LIMIT)
        self.assertEqual(flushed, [False])

    def test_new_events_do_not_wait_for_a_backlog(self) -> None:
        self.leave(3000)
        client = self.client(upload_size=50)
        client.track('user', 'new')
        self.assertTrue(client.flush(LIMIT))
        self.assertTrue(self.collector.wait_for(3001, LIMIT))
        names = [each['event'] for each in self.collector.events]
        self.assertLess(names.index('new'), 1500)

    def test_room_of_what_was_taken_over_is_free_as_soon_as_it_is_delivered(
        self,
    ) -> None:
        self.leave_bodies([b'"%s"' % (b'x' * 2500)] * 1500)
        queue = Queue(store.FileStore(self.spool_dir, TEST_WRITE_KEY, False, 8 << 20))
        self.addCleanup(queue.release)
        batch = queue.take_now(1)  # it is taken over
        assert batch is not None
        queue.acknowledge(batch, delivered=True)

        def fill() -> int:
            count = 0
            while queue.offer(b'"%s"' % (b'x' * 2500)):
                count += 1
                self.assertLess(count, 3000)
            return count

        before = fill()
        self.assertLess(before, 2000)
        while queue.ledger.stats().delivered < before + 1100:
            batch = queue.take_now(100)
            assert batch is not None
            queue.acknowledge(batch, delivered=True)
        self.assertTrue(queue.store.has_backlog())
        self.assertGreater(fill(), before + 1000)

    def test_a_large_file_is_followed_by_another_and_removed(self) -> None:
        with mock.patch.multiple(appender, LOG_BYTES=100000, LOGS=1 << 20):
            client = self.client(upload_interval=LIMIT, upload_size=1000)
        for number in range(500):
            client.track('user', str(number), {'text': 'x' * 500})
        before = self.files('.log')
        self.assertGreater(len(before), 2)
        self.assertTrue(client.flush(LIMIT))
        client.track('user', 'more')
        self.assertTrue(client.flush(LIMIT))
        self.assertTrue(eventually(lambda: before[0] not in self.files('.log')))
        self.assertEqual(len(set(self.arrived())), 501)
        self.assertEqual(len(self.collector.events), 501)


class BadGroundTest(SpoolTestCase):
    def test_a_directory_that_cannot_be_used_is_told_at_construction(self) -> None:
        missing = os.path.join(self.spool_dir, 'missing')
        a_file = os.path.join(self.spool_dir, 'file')
        with open(a_file, 'w'):
            pass
        for wrong in (missing, a_file, 7, '', b'bytes'):
            with self.assertRaises(ValidationError) as caught:
                Client(TEST_WRITE_KEY, spool_dir=wrong)
            self.assertIn('spool_dir: expected', str(caught.exception))

    def test_an_unwritable_directory_is_told_at_construction(self) -> None:
        os.chmod(self.spool_dir, 0o555)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)  # root may write everywhere
                Client(TEST_WRITE_KEY, spool_dir=self.spool_dir)
            except ValidationError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        os.waitpid(pid, 0)
        with os.fdopen(read) as told:
            self.assertIn('may write to', told.read())

    def test_a_directory_that_all_may_write_to_is_told_at_construction(self) -> None:
        os.chmod(self.spool_dir, 0o777)
        with self.assertRaises(ValidationError) as caught:
            self.client()
        self.assertIn('everybody may write to', str(caught.exception))

    @unittest.skipUnless(IS_ROOT, 'only root can give a file away')
    def test_a_directory_of_another_user_is_told_at_construction(self) -> None:
        folder = os.path.join(self.spool_dir, stream_name(TEST_WRITE_KEY))
        os.mkdir(folder, 0o700)
        for given in (folder, self.spool_dir):
            os.chown(given, 65534, 65534)
            with self.assertRaises(ValidationError) as caught:
                self.client()
            self.assertIn(given, str(caught.exception))
            os.chown(given, 0, 0)
        self.assertTrue(self.client().track('user', 'event')[0])

    def test_a_folder_that_is_open_to_others_or_a_link_is_told_at_construction(
        self,
    ) -> None:
        folder = os.path.join(self.spool_dir, stream_name(TEST_WRITE_KEY))
        os.mkdir(folder)
        os.chmod(folder, 0o770)
        with self.assertRaises(ValidationError) as caught:
            self.client()
        self.assertIn('may be written to by others', str(caught.exception))
        elsewhere = folder + '-elsewhere'
        os.rename(folder, elsewhere)
        os.chmod(elsewhere, 0o700)
        os.symlink(elsewhere, folder)
        with self.assertRaises(ValidationError) as caught:
            self.client()
        self.assertIn('not a folder of this user', str(caught.exception))

    def test_a_folder_that_is_opened_to_others_later_is_left_alone(self) -> None:
        self.leave(3)
        client = self.client()
        self.assert_all_arrived(str(number) for number in range(3))
        self.leave(1)
        folder = os.path.dirname(self.files()[0])
        os.chmod(folder, 0o777)
        with LogCatcher() as lines:
            for _ in range(3):
                client._queue.store._next_scan = 0
                self.assertTrue(client.flush(LIMIT))
                client._queue.store.fetch(1)  # looks around
            (line,) = lines.lines(level=logging.ERROR)
        self.assertIn('may be written to by others', line)
        self.assertEqual(len(self.collector.events), 3)

    def test_a_folder_that_is_opened_to_others_takes_no_more_events(self) -> None:
        client = self.client(host=NOWHERE)
        folder = os.path.join(self.spool_dir, stream_name(TEST_WRITE_KEY))
        for opened in (folder, self.spool_dir):
            client._queue.store.appender._next_open = 0
            os.chmod(opened, 0o777)
            with LogCatcher():
                self.assertFalse(client.track('user', 'event')[0])
            os.chmod(opened, 0o700)
        self.assertEqual(os.listdir(folder), [])
        client._queue.store.appender._next_open = 0
        self.assertTrue(client.track('user', 'event')[0])

    @unittest.skipUnless(IS_ROOT, 'only root can give a file away')
    def test_a_file_of_another_user_is_left_alone_with_one_error(self) -> None:
        before = set()  # type: Set[str]
        for _ in range(2):
            self.leave(1)
            (path,) = set(self.files('.log')) - before
            before.add(path)
            os.chown(path, 65534, 65534)
        with LogCatcher() as lines:
            client = self.client()
            client.track('user', 'own')
            self.assertTrue(client.flush(LIMIT))
            lines = lines.lines(level=logging.ERROR)
        self.assertEqual(len(lines), 2)
        self.assertEqual([each['event'] for each in self.collector.events], ['own'])

    def test_what_cannot_be_looked_at_for_a_moment_is_sent_later(self) -> None:
        self.leave(1)
        failing = mock.Mock(side_effect=OSError(errno.EIO, 'an error that passes'))
        with mock.patch.object(directory, 'open_plain', failing):
            client = self.client()
            client.track('user', 'own')
            self.assertTrue(client.flush(LIMIT))
        self.assertTrue(failing.called)
        client._queue.store._next_scan = 0
        client.track('user', 'own')
        self.assert_all_arrived(['0', 'own', 'own'])

    def test_a_log_that_cannot_be_read_holds_up_no_other_of_its_owner(self) -> None:
        with mock.patch.multiple(appender, LOG_BYTES=100, LOGS=1 << 20):
            left = self.queue()
        for number in range(3):  # two of them are in the first log
            left.offer(support.encoded_event(str(number)).ljust(20000))
        left.release()
        first, _ = self.files('.log')
        original = ownership.open_plain

        def open_others(path: str, flags: int) -> int:
            if path == first:
                raise OSError(errno.EIO, 'an error that stays')
            return original(path, flags)

        with mock.patch.object(directory, 'open_plain', open_others):
            self.client()
            self.assert_all_arrived(['2'])

    def test_only_a_plain_file_is_opened(self) -> None:
        path = os.path.join(self.spool_dir, 'pipe')
        os.mkfifo(path)
        with self.assertRaises(ownership.OwnershipError):
            ownership.open_plain(path, os.O_RDONLY)
        os.symlink('/dev/null', path + '-link')
        with self.assertRaises(OSError):
            ownership.open_plain(path + '-link', os.O_RDONLY)

    def test_what_is_no_plain_file_is_left_alone_with_one_error(self) -> None:
        self.leave(1)
        folder = os.path.dirname(self.files()[0])
        with open(os.path.join(self.spool_dir, 'other'), 'w'):
            pass
        kinds: List[Any] = [
            os.mkfifo,
            os.mkdir,
            lambda path: os.symlink(os.path.join(self.spool_dir, 'other'), path),
            lambda path: os.symlink('/dev/zero', path),
        ]
        for number, make in enumerate(kinds):
            make(os.path.join(folder, '%032x.000001.log' % number))
        with LogCatcher() as lines:
            client = self.client()
            self.assert_all_arrived(['0'])
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            client._queue.store._next_scan = 0
            client._queue.store.fetch(1)
            said = lines.lines(level=logging.ERROR)
        self.assertEqual(len(said), len(kinds))
        for line in said:
            self.assertIn('not a plain file of this user', line)
        strange = [each for each in os.listdir(folder) if each.startswith('0' * 30)]
        self.assertEqual(len(strange), len(kinds))
        self.assertTrue(waiting(self.spool_dir))

    def test_locks_that_begin_to_fail_make_calls_answer_false(self) -> None:
        client = self.client(host=NOWHERE)
        no_locks = OSError(errno.ENOLCK, 'No locks available')
        with mock.patch('fcntl.flock', side_effect=no_locks), LogCatcher() as lines:
            for _ in range(3):
                self.assertFalse(client.track('user', 'event')[0])
            (line,) = lines.lines(level=logging.ERROR)
            self.assertIn('No locks available', line)
            with self.assertRaises(ValidationError):
                self.client()
        self.assertEqual(self.files(), [])
        self.assertEqual(client.stats().refused, 3)

    def test_files_that_are_taken_away_at_once_make_calls_answer_false(self) -> None:
        client = self.client(host=NOWHERE)
        with mock.patch.object(directory, 'lock', return_value=False) as lock:
            self.assertFalse(client.track('user', 'event')[0])
        self.assertLess(lock.call_count, 100)
        self.assertEqual(self.files('.log'), [])

    def test_wrong_settings_are_told(self) -> None:
        with self.assertRaises(ValidationError):
            self.client(spool_max_bytes=10)
        with self.assertRaises(ValidationError):
            self.client(sync_mode=True)

    def test_a_system_without_file_locks_is_told_and_loses_nothing_else(self) -> None:
        with mock.patch.object(directory, 'fcntl', None):
            with self.assertRaises(ValidationError) as caught:
                self.client()
            self.assertIn('POSIX', str(caught.exception))
            self.assertTrue(self.sent(spool_dir=None))

    def test_the_spool_is_imported_only_when_it_is_used(self) -> None:
        result = support.run_program(
            'import sys\n'
            'from hightouch.htevents import Client\n'
            'Client("key", send=False)\n'
            'print([each for each in sys.modules if "_spool" in each])\n'
        )
        self.assertEqual(result.stdout.split(), ['[]'], result.stderr)

    def test_a_deleted_directory_is_noticed_and_made_again(self) -> None:
        client = self.client(upload_interval=LIMIT)
        self.assertTrue(client.track('user', 'before')[0])
        shutil.rmtree(self.spool_dir)
        with LogCatcher() as lines:
            self.assertTrue(client.track('user', 'after')[0])
            self.assertEqual(len(lines.lines(level=40)), 1)
        self.assertEqual(sum(each.events or 0 for each in waiting(self.spool_dir)), 1)
        self.assertEqual(stat.S_IMODE(os.stat(self.spool_dir).st_mode), 0o700)
        self.assertIs(client.stats().durable, False)  # 'before' is not, any more
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(self.arrived(), ['after', 'before'])
        self.assertTrue(client.track('user', 'more')[0])
        self.assertTrue(client.flush(LIMIT))
        client.track('user', 'and more')
        self.assertIs(client.stats().durable, True)

    def test_what_cannot_be_made_durable_is_answered_false(self) -> None:
        client = self.client()
        shutil.rmtree(self.spool_dir)
        with open(self.spool_dir, 'w'):
            pass  # so that it cannot be made again
        self.addCleanup(os.remove, self.spool_dir)
        with LogCatcher() as lines:
            for _ in range(10):
                self.assertFalse(client.track('user', 'event')[0])
        self.assertEqual(len(lines.lines(level=40)), 1)
        self.assertIs(client.stats().durable, False)
        self.assertEqual(client.stats().refused, 10)

    def test_a_full_disk_is_answered_false_and_costs_nothing_accepted(self) -> None:
        self.mount_small_disk()
        result = self.run_child(
            'accepted = 0\n'
            'for number in range(3000):\n'
            '    accepted += client.track("user", str(number), {"t": "x" * 300})[0]\n'
            'print(accepted, client.stats().durable)\n'
            'sys.stdout.flush()\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n'
        )
        accepted, durable = result.stdout.split()
        self.assertEqual(durable, 'False')
        self.assertTrue(10 < int(accepted) < 3000, accepted)
        self.client()
        self.assertTrue(self.collector.wait_for(int(accepted), LIMIT))
        self.assert_nothing_left()
        self.assertEqual(len(set(self.arrived())), int(accepted))

    def test_a_full_disk_has_room_again_when_all_is_delivered(self) -> None:
        self.mount_small_disk(8)
        self.collector.stop()
        client = self.client()
        accepted = 0
        while client.track('user', 'event', {'text': 'x' * 300})[0]:
            accepted += 1
        self.assertGreater(accepted, 1000)
        self.collector.start()
        with LogCatcher() as lines:
            self.assertTrue(client.flush(LIMIT))
            self.assertTrue(eventually(lambda: client.track('user', 'new')[0]))
        self.assertTrue(client.flush(LIMIT))
        self.assertIs(client.stats().durable, True)
        self.assertEqual(len(self.collector.events), accepted + 1)
        self.assertLess(len(lines.lines(logging.WARNING)), 5)

    def mount_small_disk(self, megabytes: int = 1) -> None:
        """Have the directory on a small file system; skips where that takes rights."""
        size = 'size=%dm' % megabytes
        mount = ['mount', '-t', 'tmpfs', '-o', size, 'none', self.spool_dir]
        try:
            done = subprocess.run(mount, stderr=subprocess.DEVNULL)
        except OSError:
            self.skipTest('there is no mount')
        if done.returncode:
            self.skipTest('mount is not allowed')
        self.addCleanup(subprocess.run, ['umount', '-l', self.spool_dir])

    def test_a_limit_on_the_size_of_files_costs_nothing_accepted(self) -> None:
        result = self.run_child(
            'import resource\n'
            'resource.setrlimit(resource.RLIMIT_FSIZE, (300000, 300000))\n'
            'accepted = 0\n'
            'for number in range(1000):\n'
            '    accepted += client.track("user", str(number), {"t": "x" * 300})[0]\n'
            'print(accepted)\n'
            'sys.stdout.flush()\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n'
        )
        accepted = int(result.stdout)
        self.assertGreater(accepted, 100)
        self.client()
        self.assertTrue(self.collector.wait_for(accepted, LIMIT))
        self.assert_nothing_left()
        self.assertEqual(len(set(self.arrived())), accepted)

    def test_where_no_file_may_grow_the_number_of_files_is_bounded(self) -> None:
        result = self.run_child(
            'import resource\n'
            'resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n'
            'accepted = sum(client.track("user", str(number), {"t": "x" * 300})[0]\n'
            '               for number in range(4000))\n'
            'print(accepted, client.stats().durable)\n'
            'sys.stdout.flush()\n'
            'os.kill(os.getpid(), signal.SIGKILL)\n'
        )
        accepted, durable = result.stdout.split()
        self.assertEqual(durable, 'False')
        self.assertLess(len(self.files('.log')), 300)
        self.client()
        self.assertTrue(self.collector.wait_for(int(accepted), LIMIT))
        self.assert_nothing_left()

    def damage(self, change: Any) -> Any:
        """Change the file that a dead process left, and have a client find it."""
        self.leave(2000)
        (path,) = self.files('.log')
        with open(path, 'r+b') as file:
            change(file)
        with LogCatcher() as lines:
            client = self.client()
            self.assertTrue(eventually(lambda: lines.lines(level=40)))
            (line,) = lines.lines(level=40)
        self.assertIn(self.files('.log.damaged')[0], line)
        self.assertEqual(client.stats().damaged_files, 1)
        self.assertEqual(self.files('.log'), [])
        self.assertTrue(client.track('user', 'new')[0])
        self.assertTrue(client.shutdown(LIMIT))
        return set(self.arrived())

    def test_a_file_that_is_damaged_while_it_is_in_use_is_replaced(self) -> None:
        self.collector.stop()
        on_error = Recorder()
        client = self.client(on_error=on_error)
        for number in range(8000):
            self.assertTrue(client.track('user', str(number))[0])
        (path,) = self.files('.log')
        with open(path, 'r+b') as file:
            file.seek(800000)
            file.write(b'\xff' * 40000)
        client._queue.store.appender.writer = None  # its file is read to its end
        with LogCatcher() as lines:
            self.collector.start()
            self.assertTrue(client.flush(LIMIT))
            self.assertTrue(eventually(lambda: 'set aside' in str(lines.lines(40))))
        self.assertIn(self.files('.log.damaged')[0], str(lines.lines(40)))
        ((error, batch),) = on_error.calls
        self.assertIsInstance(error, DamageError)
        self.assertEqual((batch, error.path), ([], path))
        arrived = set(self.arrived())
        self.assertEqual(len(arrived) + error.count, 8000)
        self.assertLess(error.count, 300)
        stats = client.stats()
        self.assertEqual((stats.failed, stats.damaged_files), (error.count, 1))
        self.assert_adds_up(client)
        self.assertTrue(client.track('user', 'new')[0])
        self.assertTrue(client.flush(LIMIT))
        self.assertIs(client.stats().durable, True)
        self.assertIn('new', self.arrived())

    def test_a_file_that_is_cut_short_while_it_is_in_use_costs_no_later_event(
        self,
    ) -> None:
        client = self.client(upload_interval=0)
        for number in range(50):
            client.track('user', str(number))
        self.assertTrue(client.flush(LIMIT))
        os.truncate(self.files('.log')[0], 0)
        self.collector.events.clear()
        for number in range(20):
            self.assertTrue(client.track('user', str(number))[0])
        self.assertTrue(client.flush(LIMIT))
        self.assert_all_arrived(map(str, range(20)))
        self.assertTrue(client.shutdown(LIMIT))

    def test_a_log_that_cannot_be_read_takes_no_time_until_it_can(self) -> None:
        client = self.client(upload_interval=0)
        client.track('user', 'first')
        self.assertTrue(client.flush(LIMIT))
        error = OSError(errno.EIO, 'an error that passes')
        with mock.patch('os.pread', side_effect=error), LogCatcher() as lines:
            looks = mock.Mock(wraps=client._queue.store.fetch)
            with mock.patch.object(client._queue.store, 'fetch', looks):
                client.track('user', 'second')
                self.assertTrue(eventually(lambda: lines.lines(level=40)))
                time.sleep(0.3)
        self.assertLess(looks.call_count, 50)
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(self.arrived(), ['first', 'second'])

    def test_errors_of_signal_handlers_may_be_kept(self) -> None:
        result = self.run_child(
            'class TimeIsUp(Exception): pass\n'
            'def handle(*_): raise TimeIsUp\n'
            'signal.signal(signal.SIGALRM, handle)\n'
            'kept = []\n'
            'for number in range(300):\n'
            '    try:\n'
            '        signal.setitimer(signal.ITIMER_REAL, 0.0002)\n'
            '        for _ in range(1000): client.track("user", "event")\n'
            '    except TimeIsUp as error: kept.append(error)\n'
            '    finally: signal.setitimer(signal.ITIMER_REAL, 0)\n'
            'accepted = sum(client.track("user", "event")[0] for _ in range(100))\n'
            'assert client.flush(50), client.stats()\n'
            'stats = client.stats()\n'
            'print(accepted, stats.refused, stats.pending, stats.durable)\n',
            url=self.collector.url,
        )
        self.assertEqual(
            result.stdout.split(), ['100', '0', '0', 'True'], result.stderr
        )

    def test_of_a_truncated_file_the_readable_part_is_sent(self) -> None:
        self.leave(2000)
        os.truncate(self.files('.log')[0], 400000)
        client = self.client()
        self.assert_nothing_left()
        self.assertGreater(len(self.arrived()), 500)
        self.assertLess(len(self.arrived()), 2000)
        self.assertEqual(client.stats().failed, 0)

    def test_of_a_file_with_damaged_pages_all_else_is_sent(self) -> None:
        def overwrite(file: Any) -> None:
            for page in (50, 51, 120):
                file.seek(page * 4096)
                file.write(b'\xff' * 4096)

        arrived = self.damage(overwrite)
        self.assertGreater(len(arrived), 1900)
        self.assertLess(len(arrived), 2001)

    def test_an_event_with_a_wrong_checksum_is_not_sent(self) -> None:
        def change(file: Any) -> None:
            data = file.read()
            at = data.index(b'"event":"1000"')
            file.seek(at)
            file.write(b'"event":"9999"')

        arrived = self.damage(change)
        self.assertNotIn('9999', arrived)
        self.assertEqual(len(arrived), 2000)  # one was lost, 'new' came

    def test_what_is_no_log_is_set_aside(self) -> None:
        def overwrite(file: Any) -> None:
            file.truncate(0)
            file.write(b'no log' * 1000)

        self.assertEqual(self.damage(overwrite), {'new'})

    def test_damage_at_any_byte_costs_one_event_and_is_told(self) -> None:
        """A wrong bit costs the event it is in, and the one behind a lost newline."""
        bodies = [b'{"n":%d}' % number for number in range(3)]
        data = log.HEADER + b''.join(log.event_record(each, 17) for each in bodies)
        data += log.done_record(len(log.HEADER), len(log.HEADER) + 5)
        whole = log.parse(data, 0, True, 10)
        self.assertEqual([each.body for each in whole.events], bodies)
        self.assertEqual((whole.damaged, len(whole.done), whole.end), (0, 1, len(data)))
        for at in range(len(data)):
            for bit in range(8):
                changed = bytearray(data)
                changed[at] ^= 1 << bit
                found = log.parse(bytes(changed), 0, True, 10)
                left = [each.body for each in found.events]
                self.assertLessEqual(set(left), set(bodies), (at, bit))
                self.assertGreaterEqual(len(left), 2, (at, bit))
                # A note that is lost costs no event: it is sent again.
                self.assertTrue(found.damaged or left == bodies, (at, bit))

    def test_a_record_that_was_cut_anywhere_is_no_damage_and_costs_no_other(
        self,
    ) -> None:
        records = [log.event_record(b'{"n":%d}' % number, 17) for number in range(3)]
        for cut in range(len(records[1])):
            data = log.HEADER + records[0] + records[1][:cut] + records[2]
            found = log.parse(data, 0, True, 10)
            self.assertEqual(len(found.events), 2, cut)
            self.assertEqual(found.damaged, 0, cut)
            data = log.HEADER + records[0] + records[1][:cut]
            for is_complete in (False, True):
                found = log.parse(data, 0, is_complete, 10)
                self.assertEqual((len(found.events), found.damaged), (1, 0), cut)

    def test_a_damaged_note_costs_no_event(self) -> None:
        self.leave(10)
        with open(self.files('.log')[0], 'ab') as file:
            file.write(log.done_record(16, 400).replace(b'400', b'900'))
        with LogCatcher() as lines:
            self.client()
            self.assertTrue(self.collector.wait_for(10, LIMIT))
            self.assertTrue(eventually(lambda: lines.lines(level=40)))
            self.assertIn('set aside', lines.lines(level=40)[0])

    def test_a_file_of_another_version_is_left_alone(self) -> None:
        self.leave(3)
        (path,) = self.files('.log')
        with open(path, 'r+b') as file:
            file.write(b'htevents-spool 2')
        with LogCatcher() as lines:
            client = self.client()
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            self.assertIn('another version', ''.join(lines.lines(level=40)))
        self.assertIn(path, self.files('.log'))
        self.assertEqual(self.arrived(), ['event'])

    def test_remains_of_a_start_that_was_killed_are_removed(self) -> None:
        folder = os.path.join(self.spool_dir, stream_name(TEST_WRITE_KEY))
        os.mkdir(folder)
        names = ['%032x.000001.log' % number for number in range(3)]
        for name in names:
            with open(os.path.join(folder, name), 'w'):
                pass
        client = self.client()
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertTrue(
            eventually(lambda: not set(names) & set(os.listdir(folder))), self.files()
        )
        self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(self.files(), [])

    def test_a_signal_handler_may_track_while_a_call_writes(self) -> None:
        result = self.run_child(
            'nested, more = [], [True]\n'
            'def again(): signal.setitimer(signal.ITIMER_REAL, 0.0005 if more else 0)\n'
            'def handle(*_):\n'
            '    nested.append(client.track("user", "nested")[0])\n'
            '    again()\n'
            'signal.signal(signal.SIGALRM, handle)\n'
            'again()\n'
            'accepted = sum(client.track("user", "e")[0] for _ in range(8000))\n'
            'more.clear()\n'
            'again()\n'
            'assert client.flush(50), client.stats()\n'
            'stats = client.stats()\n'
            'print(accepted + sum(nested), len(nested), *stats[:2])\n',
            url=self.collector.url,
        )
        self.assertEqual(result.stderr, '')
        total, nested, accepted, delivered = map(int, result.stdout.split())
        self.assertGreater(nested, 10)
        self.assertEqual((total, total), (accepted, delivered))
        self.assertEqual(len(self.collector.events), total)


class ManyClientsTest(SpoolTestCase):
    def test_a_hundred_clients_with_a_spool_leave_nothing(self) -> None:
        for number in range(100):
            client = Client(
                'key-%d' % number, self.collector.url, spool_dir=self.spool_dir
            )
            client.track('user', 'event')
            self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(len(self.collector.events), 100)
        self.assertEqual(self.files(), [])


if __name__ == '__main__':
    unittest.main()
