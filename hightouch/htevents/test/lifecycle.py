"""Fork, exit, garbage: what a program does to its clients."""

import gc
import gzip
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest
import weakref
from typing import Any, List

import mock

from hightouch.htevents import Client, delivery, stamps
from hightouch.htevents._process import exit as process_exit
from hightouch.htevents.collector import Fault
from hightouch.htevents.test.support import (
    LIMIT,
    TestCase,
    make_key,
    no_threads,
    run_program,
)

_HEAD = 'import sys, os\nfrom hightouch.htevents import Client\nurl = sys.argv[1]\n'


class ExitTest(TestCase):
    def run_quietly(self, code: str, url: str = '') -> str:
        result = run_program(_HEAD + code, url or self.collector.url)
        self.assertEqual(result.stderr, '')
        self.assertEqual(result.returncode, 0)
        return result.stdout

    def test_queued_events_are_delivered_at_exit(self) -> None:
        self.run_quietly(
            'client = Client("key", url, upload_interval=60)\n'
            'for number in range(250): client.track("user", str(number))\n'
        )
        self.assertEqual(len(self.collector.events), 250)

    def test_events_are_delivered_at_exit_also_when_others_were_before(self) -> None:
        self.run_quietly(
            'client = Client("key", url, upload_interval=60)\n'
            'client.track("user", "early")\n'
            'assert client.flush(30)\n'
            'client.track("user", "late")\n'
        )
        self.assertEqual(
            [each['event'] for each in self.collector.events], ['early', 'late']
        )

    def test_events_of_a_dropped_client_are_delivered_at_exit(self) -> None:
        self.run_quietly(
            'Client("key", url, upload_interval=60).track("user", "event")\n'
        )
        self.assertEqual(len(self.collector.events), 1)

    def test_a_dead_server_holds_the_exit_no_longer_than_shutdown_timeout(self) -> None:
        self.collector.stop()
        output = self.run_quietly(
            'lost = []\n'
            'import atexit, time\n'
            'start = time.monotonic()\n'
            'report = lambda error, batch: lost.extend(batch)\n'
            'client = Client("key", url, shutdown_timeout=1, on_error=report)\n'
            'for number in range(500): client.track("user", "event")\n'
            'from hightouch.htevents._process import exit as process_exit\n'
            'atexit.unregister(process_exit.end)\n'
            'def end():\n'
            '    process_exit.end()\n'
            '    print(len(lost), time.monotonic() - start < 15)\n'
            'atexit.register(end)\n'
        )
        self.assertEqual(output.split(), ['500', 'True'])

    def test_a_hanging_server_holds_the_exit_no_longer_either(self) -> None:
        self.collector.script(*['hang'] * 10)
        self.run_quietly(
            'client = Client("key", url, shutdown_timeout=0.5)\n'
            'client.track("user", "event")\n'
        )

    def test_tracking_from_an_atexit_handler_works(self) -> None:
        self.run_quietly(
            'import atexit\n'
            'client = Client("key", url)\n'
            'atexit.register(lambda: client.track("user", "late"))\n'
            'client.track("user", "early")\n'
        )
        self.assertEqual(
            sorted(each['event'] for each in self.collector.events), ['early', 'late']
        )

    def test_a_first_event_from_an_atexit_handler_works(self) -> None:
        self.run_quietly(
            'import atexit\n'
            'client = Client("key", url)\n'
            'atexit.register(lambda: client.track("user", "late"))\n'
        )
        self.assertEqual([each['event'] for each in self.collector.events], ['late'])

    def test_tracking_after_our_own_end_returns_false(self) -> None:
        output = self.run_quietly(
            'import atexit\n'
            'from hightouch.htevents._process import exit as process_exit\n'
            'atexit.unregister(process_exit.end)\n'
            'used, unused = Client("key", url), Client("key", url)\n'
            'used.track("user", "event")\n'
            'def late():\n'
            '    print(used.track("user", "late")[0], unused.track("user", "x")[0])\n'
            'atexit.register(late)\n'
            'atexit.register(process_exit.end)\n'
        )
        self.assertEqual(output.split(), ['False', 'False'])
        self.assertEqual(len(self.collector.events), 1)

    def test_a_daemon_thread_that_tracks_while_the_program_ends_is_harmless(
        self,
    ) -> None:
        self.run_quietly(
            'import threading\n'
            'client = Client("key", url)\n'
            'started = threading.Event()\n'
            'def work():\n'
            '    while True:\n'
            '        client.track("user", "event")\n'
            '        started.set()\n'
            'threading.Thread(target=work, daemon=True).start()\n'
            'started.wait(30)\n'
        )

    def test_events_of_a_multiprocessing_child_are_delivered(self) -> None:
        self.run_quietly(
            'import multiprocessing\n'
            'context = multiprocessing.get_context("fork")\n'
            'client = Client("key", url, upload_interval=60)\n'
            'client.track("user", "parent")\n'
            'def work(): client.track("user", "child")\n'
            'child = context.Process(target=work)\n'
            'child.start(); child.join(30)\n'
            'client.flush()\n'
        )
        self.assertEqual(
            sorted(each['event'] for each in self.collector.events),
            ['child', 'parent'],
        )

    def test_so_are_those_of_a_child_of_a_package_made_of_multiprocessing(self) -> None:
        # As multiprocess is, which pathos uses: the same code under another name.
        import multiprocessing

        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, 'multiprocess')
            shutil.copytree(os.path.dirname(multiprocessing.__file__), copy)
            for path, _, names in os.walk(copy):
                for name in [each for each in names if each.endswith('.py')]:
                    with open(os.path.join(path, name), encoding='utf-8') as source:
                        text = source.read()
                    with open(os.path.join(path, name), 'w', encoding='utf-8') as made:
                        made.write(re.sub(r'\bmultiprocessing\b', 'multiprocess', text))
            self.run_quietly(
                'sys.path.insert(0, %r)\n'
                'import multiprocess\n'
                'context = multiprocess.get_context("fork")\n'
                'client = Client("key", url, upload_interval=60)\n'
                'client.track("user", "parent")\n'
                'def work(number=0): client.track("user", "child")\n'
                'child = context.Process(target=work)\n'
                'child.start(); child.join(30)\n'
                'pool = context.Pool(2)\n'
                'pool.map(work, range(20))\n'
                'pool.close(); pool.join()\n'
                'client.flush()\n' % folder
            )
        names = sorted(each['event'] for each in self.collector.events)
        self.assertEqual(names, ['child'] * 21 + ['parent'])

    def test_the_workers_of_a_pool_that_is_terminated_may_drain(self) -> None:
        self.run_quietly(
            'import multiprocessing\n'
            'context = multiprocessing.get_context("fork")\n'
            'client = Client("key", url, upload_interval=60)\n'
            'def work(number): client.track("user", "event")\n'
            'with context.Pool(2, client.drain_on_sigterm) as pool:\n'
            '    pool.map(work, range(20))\n'
        )
        self.assertEqual(len(self.collector.events), 20)

    def test_sync_mode_leaves_nothing_for_the_exit(self) -> None:
        self.run_quietly(
            'client = Client("key", url, sync_mode=True)\n'
            'assert client.track("user", "event")[0]\n'
        )
        self.assertEqual(len(self.collector.events), 1)


class ForkTest(TestCase):
    def test_a_child_starts_empty_and_sends_its_own_and_the_parent_what_it_had(
        self,
    ) -> None:
        client = self.client(upload_interval=LIMIT)
        client.track('user', 'parent')
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                empty = client.stats().accepted == 0 and client.queue.empty()
                client.track('user', 'child')
                status = 0 if empty and client.flush(LIMIT) else 1
            finally:
                os._exit(status)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(
            sorted(each['event'] for each in self.collector.events),
            ['child', 'parent'],
        )

    def test_200_forks_while_other_threads_track_lose_and_double_nothing(self) -> None:
        result = run_program(
            _HEAD + 'import threading\n'
            'client = Client("key", url, thread=2, max_queue_size=0)\n'
            'stop = threading.Event()\n'
            'accepted = []\n'
            'def work():\n'
            '    count = 0\n'
            '    while not stop.is_set():\n'
            '        count += client.track("user", "parent")[0]\n'
            '        stop.wait(0.001)\n'
            '    accepted.append(count)\n'
            'threads = [threading.Thread(target=work) for _ in range(3)]\n'
            'for thread in threads: thread.start()\n'
            'bad = 0\n'
            'for number in range(200):\n'
            '    pid = os.fork()\n'
            '    if pid == 0:\n'
            '        ok = client.track("user", "child")[0] and client.flush(30)\n'
            '        os._exit(0 if ok else 1)\n'
            '    bad += os.waitpid(pid, 0)[1] != 0\n'
            'stop.set()\n'
            'for thread in threads: thread.join()\n'
            'assert client.flush(30)\n'
            'print(bad, sum(accepted))\n',
            self.collector.url,
        )
        bad, accepted = map(int, result.stdout.split())
        self.assertEqual(bad, 0)
        events = self.collector.events
        names = [each['event'] for each in events]
        self.assertEqual(names.count('child'), 200)
        self.assertEqual(names.count('parent'), accepted)
        self.assertEqual(len({each['messageId'] for each in events}), len(events))

    def test_a_delivery_imports_nothing(self) -> None:
        # A fork while a thread imports leaves the child with that module's lock.
        key = make_key()
        oauth = 'oauth_client_id="id", oauth_client_key=%r, oauth_auth_server=url' % key
        date = 'Wed, 21 Oct 2026 07:28:00 GMT'
        packed = {'Content-Encoding': 'gzip'}
        with tempfile.TemporaryDirectory() as folder:
            for settings in (
                'host=url',
                'host=url.replace("127.0.0.1", "localhost"), gzip=True',
                'host=url.replace("http:", "https:"), max_retries=1',
                'host="http://[::1]:9", max_retries=0, proxies={"all": url}',
                'host=url, ' + oauth,
                'host=url, spool_dir=%r' % folder,
            ):
                self.collector.script(
                    Fault(status=503, headers={'Retry-After': date}),
                    Fault(status=429, headers=packed, body=gzip.compress(b'{}')),
                    'reset',
                    Fault(status=307, headers={'Location': self.collector.url}),
                )
                result = run_program(
                    _HEAD + 'from hightouch.htevents._queue import retry\n'
                    'retry.BASE = 0\n'
                    'client = Client("key", %s)\n'
                    'before = set(sys.modules)\n'
                    'client.track("user", "event")\n'
                    'client.flush(30)\n'
                    'print(client.stats().pending, set(sys.modules) - before)\n'
                    % settings,
                    self.collector.url,
                )
                with self.subTest(settings.partition(' oauth')[0]):
                    self.assertEqual(result.stdout, '0 set()\n', result.stderr)

    def test_a_fork_while_another_thread_holds_every_lock_hangs_nothing(self) -> None:
        client = self.client()
        client.track('user', 'event')
        client.flush(LIMIT)
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with client._queue.ledger.lock:
                held.set()
                release.wait(LIMIT)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(LIMIT)
        pid = os.fork()
        if pid == 0:
            signal.alarm(LIMIT)
            client.track('user', 'child')
            os._exit(0 if client.flush(LIMIT / 2) else 1)
        release.set()
        thread.join(LIMIT)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)


class SigtermTest(TestCase):
    def run_until_sigterm(self, code: str, url: str = '') -> Any:
        """Run a program that tracks, and sends itself SIGTERM."""
        return run_program(
            _HEAD + 'import signal, time\n'
            'client = Client("key", url, upload_interval=60)\n'
            + code
            + 'for number in '
            'range(250): client.track("user", str(number))\n'
            'os.kill(os.getpid(), signal.SIGTERM)\n'
            'for _ in range(600): time.sleep(0.1)\n',
            url or self.collector.url,
        )

    def test_sigterm_flushes_and_then_ends_the_process_as_ever(self) -> None:
        result = self.run_until_sigterm('client.drain_on_sigterm()\n')
        self.assertEqual((result.returncode, result.stderr), (-signal.SIGTERM, ''))
        self.assertEqual(len(self.collector.events), 250)

    def test_sigterm_flushes_before_the_handler_of_the_application_runs(self) -> None:
        result = self.run_until_sigterm(
            'def handle(number, frame):\n'
            '    print(client.stats().delivered, number)\n'
            '    sys.exit(7)\n'
            'signal.signal(signal.SIGTERM, handle)\n'
            'client.drain_on_sigterm()\n'
            'Client("key", url).drain_on_sigterm()\n'
        )
        self.assertEqual((result.returncode, result.stderr), (7, ''))
        self.assertEqual(result.stdout, '250 15\n')

    def test_a_handler_put_over_ours_may_call_the_one_that_it_found(self) -> None:
        result = self.run_until_sigterm(
            'client.drain_on_sigterm()\n'
            'found = signal.getsignal(signal.SIGTERM)\n'
            'def handle(*args):\n'
            '    print("handled", flush=True)\n'
            '    found(*args)\n'
            'signal.signal(signal.SIGTERM, handle)\n'
            'Client("key", url).drain_on_sigterm()\n'
        )
        self.assertEqual(result.returncode, -signal.SIGTERM, result.stderr)
        self.assertEqual(result.stdout.split().count('handled'), 1)

    def test_the_handler_of_an_asyncio_loop_runs_once(self) -> None:
        result = run_program(
            'import asyncio, os, signal, sys\n'
            'from hightouch.htevents import Client\n'
            'client = Client("key", sys.argv[1])\n'
            'async def main():\n'
            '    calls, flushed = [], asyncio.Event()\n'
            '    loop = asyncio.get_event_loop()\n'
            '    loop.add_signal_handler(signal.SIGTERM, calls.append, 1)\n'
            '    client.drain_on_sigterm()\n'
            '    client.track("user", "event")\n'
            '    os.kill(os.getpid(), signal.SIGTERM)\n'
            '    while client.stats().pending:\n'
            '        await asyncio.sleep(0.01)\n'
            '    await asyncio.sleep(0.2)\n'
            '    print(calls)\n'
            'asyncio.new_event_loop().run_until_complete(main())\n',
            self.collector.url,
        )
        self.assertEqual((result.stdout, result.stderr), ('[1]\n', ''))
        self.assertEqual(len(self.collector.events), 1)

    def test_where_no_thread_is_to_be_had_the_handler_flushes_by_itself(self) -> None:
        refuse = (
            'import _thread, logging, threading\n'
            'logging.basicConfig()\n'
            'def refuse(*args, **kwargs): raise RuntimeError("no more threads")\n'
            '_thread.start_new_thread = threading._start_new_thread = refuse\n'
            'threading._start_joinable_thread = refuse\n'
            'client.drain_on_sigterm(%s)\n'
        )
        result = self.run_until_sigterm(refuse % '')
        self.assertEqual((result.returncode, result.stderr), (-signal.SIGTERM, ''))
        self.assertEqual(len(self.collector.events), 250)
        self.collector.stop()
        result = self.run_until_sigterm(refuse % '0.3')
        self.assertEqual(result.returncode, -signal.SIGTERM)
        self.assertIn('250 event(s) could not be delivered', result.stderr)

    def test_a_signal_that_comes_too_early_for_a_wait_is_raised_again(self) -> None:
        result = self.run_until_sigterm(
            'client.drain_on_sigterm()\n'
            'kill, calls = os.kill, []\n'
            'def lose_the_second(*args):\n'
            '    calls.append(args)\n'
            '    if len(calls) != 2: kill(*args)\n'
            'os.kill = lose_the_second\n'
        )
        self.assertEqual((result.returncode, result.stderr), (-signal.SIGTERM, ''))
        self.assertEqual(len(self.collector.events), 250)

    def test_a_signal_that_does_not_wake_the_main_thread_of_a_worker_is_seen(
        self
    ) -> None:
        """As one does not that comes just before a wait in C."""
        for before in (True, False):
            result = run_program(
                _HEAD + 'import multiprocessing, signal, threading, time\n'
                'context = multiprocessing.get_context("fork")\n'
                'client = Client("key", url, upload_interval=60)\n'
                'def send():\n'
                '    time.sleep(0.2)\n'
                '    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n'
                '    time.sleep(60)\n'
                'def work():\n'
                '    if not before: client.drain_on_sigterm()\n'
                '    client.track("user", "event")\n'
                '    threading.Thread(target=send, daemon=True).start()\n'
                '    context.Semaphore(0).acquire()\n'
                'before = %s\n'
                'if before: client.drain_on_sigterm()\n'
                'worker = context.Process(target=work)\n'
                'worker.start()\n'
                'worker.join()\n'
                'print(worker.exitcode)\n' % before,
                self.collector.url,
            )
            self.assertEqual((result.stdout, result.stderr), ('-15\n', ''), before)
        self.assertEqual(len(self.collector.events), 2)

    def test_a_handler_put_over_ours_is_called_as_often_as_by_itself(self) -> None:
        result = self.run_until_sigterm(
            'client.drain_on_sigterm()\n'
            'found, calls = signal.getsignal(signal.SIGTERM), []\n'
            'def handle(*args):\n'
            '    calls.append(args)\n'
            '    if len(calls) == 1: found(*args)\n'
            '    if len(calls) == 2: end.start()\n'
            'def finish():\n'
            '    print(len(calls), flush=True)\n'
            '    os._exit(0)\n'
            'import threading\n'
            'end = threading.Timer(1, finish)\n'
            'signal.signal(signal.SIGTERM, handle)\n'
        )
        self.assertEqual((result.returncode, result.stdout), (0, '2\n'), result.stderr)

    def test_the_signals_of_a_child_are_its_own(self) -> None:
        result = self.run_until_sigterm(
            'client.drain_on_sigterm()\n'
            'pid = os.fork()\n'
            'if pid == 0:\n'
            '    signal.signal(signal.SIGTERM, lambda *_: os._exit(5))\n'
            '    while True: time.sleep(60)\n'
            'time.sleep(0.3)\n'
            'os.kill(pid, signal.SIGTERM)\n'
            'assert os.waitpid(pid, 0)[1] == 5 << 8\n'
            'time.sleep(0.5)\n'
            'print("alive", flush=True)\n'
        )
        self.assertEqual(
            (result.returncode, result.stdout), (-signal.SIGTERM, 'alive\n')
        )
        self.assertEqual(len(self.collector.events), 250)

    def test_an_ignored_sigterm_stays_ignored(self) -> None:
        result = self.run_until_sigterm(
            'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
            'client.drain_on_sigterm()\n'
            'import threading\n'
            'def end():\n'
            '    while client.stats().delivered < 250: time.sleep(0.01)\n'
            '    time.sleep(0.2)\n'
            '    os._exit(5)\n'
            'threading.Thread(target=end, daemon=True).start()\n'
        )
        self.assertEqual(result.returncode, 5)

    def test_a_dead_server_does_not_keep_sigterm_from_ending_the_process(self) -> None:
        self.collector.stop()
        result = self.run_until_sigterm('client.drain_on_sigterm(timeout=0.3)\n')
        self.assertEqual((result.returncode, result.stderr), (-signal.SIGTERM, ''))

    def test_a_child_drains_its_own(self) -> None:
        result = self.run_until_sigterm(
            'client.drain_on_sigterm()\n'
            'pid = os.fork()\n'
            'if pid: sys.exit(os.waitpid(pid, 0)[1])\n'
        )
        self.assertEqual((result.returncode, result.stderr), (signal.SIGTERM, ''))
        self.assertEqual(len(self.collector.events), 250)

    def test_by_default_no_signal_handler_is_touched(self) -> None:
        before = [signal.getsignal(each) for each in range(1, signal.NSIG)]
        self.client().track('user', 'event')
        after = [signal.getsignal(each) for each in range(1, signal.NSIG)]
        self.assertEqual(before, after)

    def test_where_no_handler_can_be_installed_that_is_told(self) -> None:
        client = self.client()
        errors: List[Exception] = []

        def work() -> None:
            try:
                client.drain_on_sigterm()
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(LIMIT)
        self.assertIn('main thread', str(errors[0]))


class RefusedThreadTest(TestCase):
    @unittest.skipIf(sys.version_info < (3, 13), 'its sub-interpreters end by abort()')
    def test_an_isolated_sub_interpreter_delivers_at_a_flush_and_at_its_end(
        self
    ) -> None:
        for ending, delivered in (
            ('assert client.flush(30)', 1),
            ('assert client.shutdown(30)', 1),
            ('', 1),
            ('[Client("key", url).track("user", "event") for _ in range(20)]', 21),
            ('client = Client("key", url, sync_mode=True); track()', 2),
        ):
            inner = (
                'import sys; sys.path[:0] = {path!r}\n'
                'import warnings; warnings.simplefilter("ignore")\n'
                'from hightouch.htevents import Client\n'
                'url = {url!r}\n'
                'client = Client("key", url)\n'
                'def track(): assert client.track("user", "event")[0]\n'
                'track()\n' + ending + '\n'
            )
            result = run_program(
                'import sys, warnings\n'
                'warnings.simplefilter("ignore")\n'
                'try: import _interpreters as interpreters\n'
                'except ImportError:\n'
                '    import _xxsubinterpreters as interpreters\n'
                'made = interpreters.create()\n'
                'code = sys.argv[2].format(path=sys.path, url=sys.argv[1])\n'
                'error = interpreters.run_string(made, code)\n'
                'assert not error, error\n'
                'interpreters.destroy(made)\n',
                self.collector.url,
                inner,
            )
            self.assertEqual((result.returncode, result.stderr), (0, ''))
            self.assertEqual(len(self.collector.events), delivered, ending)
            self.collector.events.clear()

    def test_what_is_queued_is_delivered_by_a_flush(self) -> None:
        client = self.client()
        with no_threads():
            self.assertTrue(client.track('user', 'event')[0])
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)

    def test_a_thread_is_tried_again_with_a_next_event(self) -> None:
        client = self.client(upload_interval=0)
        with mock.patch.object(delivery, 'START_RETRY_INTERVAL', 0), no_threads():
            client.track('user', 'event')
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(2, LIMIT))

    def test_a_flush_that_delivers_by_itself_ends_in_time(self) -> None:
        self.collector.script('hang', 'hang')  # the last try is made at the end
        client = self.client(timeout=LIMIT)
        with no_threads():
            client.track('user', 'event')
            begun = time.monotonic()
            self.assertFalse(client.flush(0.2))
            self.assertLess(time.monotonic() - begun, LIMIT / 2)
        self.collector._faults.clear()
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().delivered, 1)

    def test_a_flush_that_has_no_time_for_a_retry_loses_nothing(self) -> None:
        client = self.client()
        self.collector.stop()
        with no_threads():
            client.track('user', 'event')
            self.assertFalse(client.flush(0.5))
            self.assertEqual(client.stats().pending, 1)
            self.collector.start()
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 1)


@unittest.skipUnless(hasattr(os, 'register_at_fork'), 'needs Python 3.7 or later')
class ForkInsideTest(TestCase):
    def test_a_child_that_is_forked_while_threads_are_started_sends_its_own(
        self,
    ) -> None:
        client = self.client()
        make = client._delivery._make_consumer
        pids: List[int] = []

        def fork_and_make() -> Any:  # as a signal handler may, in there
            if not pids:
                pids.append(os.fork())
            return make()

        client._delivery._make_consumer = fork_and_make
        accepted = False
        try:
            accepted = client.track('user', 'both')[0]
        finally:
            if pids[0] == 0:
                accepted &= client.track('user', 'child')[0]
                registered = client._delivery in process_exit._state.active
                delivered = client.shutdown(LIMIT)
                os._exit(0 if accepted and registered and delivered else 1)
        self.assertEqual(os.waitpid(pids[0], 0)[1], 0)
        self.assertTrue(accepted and client.flush(LIMIT))
        self.assertEqual(
            sorted(each['event'] for each in self.collector.events),
            ['both', 'both', 'child'],
        )

    def test_a_child_that_is_forked_while_ids_are_made_makes_others(self) -> None:
        read, write = os.pipe()
        urandom = os.urandom
        pids: List[int] = []

        def read_and_fork(count: int) -> bytes:
            numbers = urandom(count)  # what both would make ids of
            if not pids:
                pids.append(os.fork())
            return numbers

        stamps._ids.ready.clear()
        try:
            with mock.patch.object(stamps, 'urandom', read_and_fork):
                ids = [stamps.new_message_id() for _ in range(1000)]
        finally:
            if pids[0] == 0:
                os.write(write, ' '.join(ids).encode('ascii'))
                os._exit(0)
        os.close(write)
        with open(read) as file:
            others = file.read().split()
        self.assertEqual(os.waitpid(pids[0], 0)[1], 0)
        self.assertEqual(len(set(ids) | set(others)), 2000)


class DroppedTest(TestCase):
    def test_a_dropped_client_keeps_what_a_flush_had_no_time_for(self) -> None:
        client = Client('key', self.collector.url)
        self.collector.stop()
        with no_threads():
            client.track('user', 'event')
            self.assertFalse(client.flush(0.1))
            mine = client._delivery
            del client
            gc.collect()
        self.collector.start()
        self.assertIn(mine, process_exit._state.active)
        self.assertTrue(mine.shutdown(LIMIT))  # as the exit does
        self.assertEqual(len(self.collector.events), 1)


class FirstEventTest(TestCase):
    def test_a_client_that_is_shut_down_during_it_stays_nowhere(self) -> None:
        client = self.client()
        add = process_exit.add

        def shut_down_and_add(added: Any) -> None:
            client.shutdown(LIMIT)
            add(added)

        with mock.patch.object(process_exit, 'add', shut_down_and_add):
            self.assertFalse(client.track('user', 'event')[0])
        self.assertNotIn(client._delivery, process_exit._state.active)


class UwsgiTest(TestCase):
    def test_the_warning_may_be_tracked(self) -> None:
        client = self.client()

        class Tracking(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                client.track('user', 'warning')

        handler = Tracking()
        Client.log.addHandler(handler)
        self.addCleanup(Client.log.removeHandler, handler)
        with mock.patch.dict(sys.modules, uwsgi=mock.Mock(opt={})):
            client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(
            sorted(each['event'] for each in self.collector.events),
            ['event', 'warning'],
        )


class GarbageTest(TestCase):
    def wait_for_the_end(self) -> None:
        """Wait until no client is registered for the end of the process."""
        deadline = time.monotonic() + LIMIT
        while process_exit._state.active:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.005)

    def test_a_dropped_client_is_garbage_and_its_threads_end_after_delivery(
        self,
    ) -> None:
        client = Client('key', self.collector.url)
        client.track('user', 'event')
        assert client.consumers is not None
        consumer, gone = client.consumers[0], weakref.ref(client)
        del client
        gc.collect()
        self.assertIsNone(gone())
        self.wait_for_the_end()
        self.assertFalse(consumer.is_alive())
        self.assertEqual(len(self.collector.events), 1)

    def test_1000_clients_that_were_shut_down_leave_nothing_behind(self) -> None:
        result = run_program(
            _HEAD + 'import gc, logging, threading, weakref\n'
            'from hightouch.htevents._process import exit as process_exit, transport\n'
            'gone = []\n'
            'for number in range(1000):\n'
            '    client = Client("key", url, log_handler=logging.StreamHandler())\n'
            '    assert client.track("user", "event")[0] and client.shutdown(30)\n'
            '    gone.append(weakref.ref(client))\n'
            'del client\n'
            'gc.collect()\n'
            'print([each for each in gone if each() is not None])\n'
            'print(threading.active_count(), process_exit._state.active)\n'
            'print(transport._shared.session, Client.log.handlers)\n',
            self.collector.url,
        )
        self.assertEqual(result.stderr, '')
        self.assertEqual(
            result.stdout.splitlines(),
            ['[]', '1 set()', 'None [<NullHandler (NOTSET)>]'],
        )
        self.assertEqual(len(self.collector.events), 1000)

    def test_the_threads_of_a_dropped_client_may_end_together(self) -> None:
        for _ in range(20):
            client = Client('key', self.collector.url, thread=4)
            client.track('user', 'event')
            del client
            gc.collect()
            self.wait_for_the_end()

    def test_a_client_that_the_end_of_the_interpreter_drops_says_nothing(self) -> None:
        result = run_program(
            'import sys, types\n'
            'module = sys.modules["application"] = types.ModuleType("application")\n'
            'from hightouch.htevents import Client\n'
            'module.client = Client("key")\n'
            'del module, Client\n'
        )
        self.assertEqual((result.returncode, result.stderr), (0, ''))

    def test_a_shutdown_inside_a_callback_ends_the_client(self) -> None:
        def end(batch: Any) -> None:
            if batch[0]['event'] == 'ends':
                client.track('user', 'last')
                client.shutdown(0.3)

        with tempfile.TemporaryDirectory() as folder:
            for settings in (
                {},
                {'sync_mode': True},
                {'spool_dir': folder},
            ):  # type: Any
                client = self.client(on_success=end, upload_size=1, **settings)
                if settings.get('spool_dir'):
                    self.collector.script(200, *[503] * 9)
                client.track('user', 'ends')
                client.track('user', 'more')
                self.wait_for_the_end()

    def test_a_flush_outlasts_a_shutdown_inside_a_callback(self) -> None:
        flushing = threading.Event()

        def end(batch: Any) -> None:
            flushing.wait(LIMIT)
            client.shutdown(LIMIT)

        client = self.client(on_success=end, upload_interval=0)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(1, LIMIT))

        def set_when_it_waits() -> None:
            while not client._queue.ledger.flushes.waiting:
                time.sleep(0.005)
            flushing.set()

        setter = threading.Thread(target=set_when_it_waits)
        setter.start()
        self.assertTrue(client.flush(LIMIT))
        setter.join()
        self.assertTrue(client.flush(LIMIT))

    def test_an_unused_client_has_no_thread(self) -> None:
        before = set(threading.enumerate())
        clients = [self.client(thread=4) for _ in range(10)]
        self.assertLessEqual(set(threading.enumerate()), before)
        del clients


if __name__ == '__main__':
    unittest.main()
