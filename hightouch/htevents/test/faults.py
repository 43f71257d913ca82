"""The faults of release 0.0.4, by number: each test shows that one is gone."""

import ast
import asyncio
import gc
import glob
import io
import logging
import os
import queue
import signal
import sys
import threading
import time
import unittest
import uuid
import warnings
from datetime import datetime, timedelta, timezone
from typing import Any

import mock

try:
    import time_machine
except ImportError:
    time_machine: Any = None  # type: ignore[no-redef]

import hightouch.htevents as htevents
from hightouch.htevents import Client, request, settings, utils
from hightouch.htevents.collector import Collector, Fault
from hightouch.htevents.consumer import MAX_MSG_SIZE, Consumer
from hightouch.htevents.encoding import encode
from hightouch.htevents.test import all as all_tests
from hightouch.htevents.test.support import (
    LIMIT,
    LogCatcher,
    Recorder,
    TestCase,
    make_key,
    netrc,
    run_program,
)

KEY = make_key()


class Unprintable:
    def __str__(self) -> str:
        raise ValueError('cannot be printed')


class ThreadFaultTest(TestCase):
    def test_fault_01_all_consumers_are_kept_and_joined(self) -> None:
        client = self.client(thread=4)
        client.track('user', 'event')
        consumers = client.consumers or []
        self.assertEqual(len(consumers), 4)
        self.assertTrue(client.shutdown(LIMIT))
        for consumer in consumers:
            self.assertFalse(consumer.is_alive())

    def test_fault_02_a_forked_child_delivers_and_its_flush_ends(self) -> None:
        client = self.client()
        client.track('user', 'parent')
        client.flush(LIMIT)
        pid = os.fork()
        if pid == 0:
            signal.alarm(LIMIT)
            client.track('user', 'child')
            os._exit(0 if client.flush(LIMIT / 2) else 1)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertEqual(
            [each['event'] for each in self.collector.events], ['parent', 'child']
        )

    def test_fault_03_exit_delivers_and_a_dead_server_does_not_hold_it(self) -> None:
        code = (
            'import sys\n'
            'from hightouch.htevents import Client\n'
            'client = Client("key", sys.argv[1], shutdown_timeout=1)\n'
            'client.track("user", "event")\n'
        )
        result = run_program(code, self.collector.url)
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        self.assertEqual(len(self.collector.events), 1)
        self.collector.stop()
        result = run_program(code, self.collector.url)
        self.assertEqual((result.returncode, result.stderr), (0, ''))

    def test_fault_04_flush_is_bounded_and_does_not_wait_for_the_interval(self) -> None:
        self.collector.script('hang')
        client = self.client(upload_interval=LIMIT * 10)
        client.track('user', 'event')
        self.assertFalse(client.flush(0.05))
        self.assertEqual(client.stats().pending, 1)
        other = self.client(upload_interval=LIMIT * 10)
        other.track('user', 'event')
        self.assertTrue(other.flush(LIMIT))

    def test_fault_05_sync_mode_shuts_down_and_retries(self) -> None:
        self.collector.script(503)
        client = self.client(sync_mode=True)
        self.assertTrue(client.track('user', 'event')[0])
        self.assertTrue(client.join() and client.shutdown())
        self.assertEqual(client.stats().retried, 1)

    def test_fault_06_clients_leave_no_atexit_entry_and_one_handler(self) -> None:
        with mock.patch('atexit.register') as register:
            for _ in range(10):
                with Client('key', self.collector.url) as client:
                    client.track('user', 'event')
        register.assert_not_called()
        logger = logging.getLogger('hightouch')
        before = list(logger.handlers)
        level = logger.level
        stream = mock.Mock()
        handler = logging.StreamHandler(stream)
        clients = [
            Client('key', self.collector.url, debug=True, log_handler=handler)
            for _ in range(3)
        ]
        logger.warning('once')
        lines = [each for each in stream.write.mock_calls if 'once' in str(each)]
        self.assertEqual(len(lines), 1)
        for client in clients:
            client.shutdown()
        self.assertEqual(logger.handlers, before)
        self.assertEqual(logger.level, level)

    def test_fault_07_two_first_calls_at_once_make_one_client(self) -> None:
        made = []  # type: List[Any]
        barrier = threading.Barrier(4)

        def make(**kwargs: Any) -> Any:
            made.append(mock.Mock())
            time.sleep(0.01)  # the others shall come while this one is being made
            return made[-1]

        def call() -> None:
            barrier.wait(LIMIT)
            htevents.track('user', 'event')

        htevents.default_client = None
        self.addCleanup(setattr, htevents, 'default_client', None)
        with mock.patch.object(htevents, 'Client', make):
            threads = [threading.Thread(target=call) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(LIMIT)
        self.assertEqual(len(made), 1)
        self.assertEqual(made[0].track.call_count, 4)

    def test_fault_08_no_callback_and_no_item_stops_a_consumer(self) -> None:
        flushed = []  # type: List[bool]

        def flush(*_: Any) -> None:
            flushed.append(client.flush(LIMIT))

        def leave(*_: Any) -> None:
            sys.exit(1)

        def cancel(*_: Any) -> None:
            raise asyncio.CancelledError

        def fail(*_: Any) -> None:
            raise ValueError('on_error')

        for on_error in (fail, leave, cancel, lambda: None, flush):
            self.collector.script(404)
            client = self.client(on_error=on_error)
            client.track('user', 'lost')
            self.assertTrue(client.flush(LIMIT))
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
            self.assertTrue((client.consumers or [])[0].is_alive())
        self.assertEqual(flushed, [True])
        self.assertEqual(len(self.collector.events), 5)

    def test_fault_08_a_flush_in_a_callback_starts_the_sending_and_returns_at_once(
        self,
    ) -> None:
        for name, outcomes in (('on_error', [404, 404]), ('on_success', [])):
            for threads in (1, 2):
                flushed = []  # type: List[bool]

                def flush(*_: Any) -> None:
                    if not flushed:
                        client.track('user', 'behind')
                    flushed.append(client.flush(None))

                called = Recorder(flush)
                self.collector.script(*outcomes)
                client = self.client(
                    thread=threads,
                    upload_size=2,
                    upload_interval=LIMIT * 100,
                    **{name: called},
                )
                client.track('user', 'event')
                client.track('user', 'event')
                with self.subTest(name, threads=threads):
                    self.assertTrue(called.wait_for(2))
                    self.assertTrue(client.shutdown(LIMIT))
                    self.assertEqual(flushed, [False, True])

    def test_fault_08_a_shutdown_in_a_callback_loses_nothing(self) -> None:
        for name, outcomes in (('on_error', [404]), ('on_success', [])):
            ended = []  # type: List[bool]

            def end(*_: Any) -> None:
                if not ended:
                    ended.append(False)
                    ended.append(client.shutdown(LIMIT))

            self.collector.script(*outcomes)
            client = self.client(upload_size=1, upload_interval=60, **{name: end})
            for _ in range(4):
                client.track('user', 'event')
            (consumer,) = client.consumers or []
            client.flush(LIMIT)
            consumer.join(LIMIT)
            with self.subTest(name):
                self.assertEqual(client.stats().failed, len(outcomes))
                self.assertEqual(client.stats().pending, 0)
                self.assertEqual(ended, [False, False])  # others were pending

    def test_fault_08_a_dropped_item_is_acknowledged(self) -> None:
        import queue

        source = queue.Queue()  # type: Any
        source.put({'m': 'x' * MAX_MSG_SIZE})
        Consumer(source, 'key', upload_interval=0.01).next()
        source.join()

    def test_a_log_handler_that_raises_stops_nothing(self) -> None:
        class Broken(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                raise OSError('no')

        class Unprintable:
            def __str__(self) -> str:
                raise ValueError('payload')

        self.collector.script(401)
        on_error = Recorder()
        client = self.client(
            log_handler=Broken(), on_error=on_error, upload_interval=0.01
        )
        with mock.patch('sys.stderr', io.StringIO()) as stderr:
            odd = Unprintable()
            self.assertTrue(client.track('user', 'lost', {'odd': odd})[0])
            self.assertTrue(on_error.wait_for(1))
            self.assertTrue(client.track('user', 'event')[0])
            self.assertTrue(self.collector.wait_for(1, LIMIT))
        self.assertIn('OSError: no', stderr.getvalue())
        self.assertNotIn('payload', stderr.getvalue())

    def check_waits(self) -> None:
        dead = self.client(host='http://127.0.0.1:9', upload_interval=0.01)
        dead.track('user', 'lost')
        self.assertFalse(dead.flush(0.2))
        dead.shutdown(0.2)
        client = self.client(upload_interval=0.01)
        client.track('user', 'event')
        self.assertTrue(self.collector.wait_for(1))
        self.assertTrue(client.shutdown(LIMIT))
        self.assertFalse(self.collector.wait_for(2, timeout=0.05))
        source: Any = queue.Queue()
        consumer = Consumer(
            source, 'key', host=self.collector.url, upload_interval=0.01
        )
        self.assertEqual(consumer.next(), [])
        consumer.start()
        source.put(self.client(send=False).track('user', 'event')[1])
        self.assertTrue(self.collector.wait_for(2))
        consumer.pause()

    def test_a_stopped_clock_stops_no_wait(self) -> None:
        # Libraries that stop it replace the functions wherever a module has one.
        clocks = (time.monotonic, time.perf_counter)
        for name, module in list(sys.modules.items()):
            if name.startswith('hightouch.htevents.') and '.test' not in name:
                for clock in clocks:
                    self.assertNotIn(clock, list(vars(module).values()), name)
        stopped = [
            mock.patch(name, return_value=0)
            for name in ('time.monotonic', 'time.perf_counter', 'queue.time')
        ]
        for each in stopped + [mock.patch.object(threading, '_time', return_value=0)]:
            each.start()
            self.addCleanup(each.stop)
        self.check_waits()

    def test_a_clock_that_is_stopped_at_the_import_stops_no_wait(self) -> None:
        result = run_program(
            'import time\n'
            'from unittest import mock\n'
            'with mock.patch("time.monotonic", return_value=5), '
            'mock.patch("time.perf_counter", return_value=5):\n'
            '    from hightouch.htevents import Client\n'
            '    client = Client("key", "http://127.0.0.1:9", shutdown_timeout=0.1)\n'
            '    client.track("user", "event")\n'
            '    print(client.flush(0.1))\n'
        )
        self.assertEqual(result.stdout, 'False\n', result.stderr)

    @unittest.skipUnless(time_machine, 'needs time_machine before 3, which stops it')
    def test_a_clock_that_is_stopped_inside_of_c_stops_no_wait(self) -> None:
        with time_machine.travel(1e9, tick=False):
            self.assertEqual(time.monotonic(), time.monotonic())
            self.check_waits()
        self.assertEqual(self.collector.events[0]['timestamp'][:10], '2001-09-09')

    @unittest.skipUnless(os.path.exists('/proc/self/task'), 'needs /proc')
    def test_fault_09_an_idle_client_wakes_up_never(self) -> None:
        client = self.client(thread=2, upload_interval=0.01)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))

        def switches() -> int:
            count = 0
            for consumer in client.consumers or ():
                ident = getattr(consumer, 'native_id', None)
                if ident is not None:
                    with open('/proc/self/task/%d/status' % ident) as file:
                        lines = [x for x in file if x.startswith('voluntary')]
                    count += int(lines[0].split()[1])
            return count

        self.assertTrue(client.flush(LIMIT))
        settled = switches()
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:  # the last wait may still begin
            time.sleep(0.2)
            now = switches()
            if now == settled:
                break
            settled = now
        time.sleep(0.5)  # fifty intervals
        self.assertEqual(switches(), settled)


class DeliveryFaultTest(TestCase):
    def test_fault_10_proxies_are_used_for_events_and_tokens(self) -> None:
        proxy = self.collector
        client = self.oauth_client(
            host='http://nowhere.invalid',
            proxies=proxy.url,
            oauth_client_key=KEY,
            oauth_auth_server='http://tokens.invalid',
        )
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(proxy.events), 1)
        self.assertEqual(
            [each.path for each in proxy.requests],
            ['http://tokens.invalid/token', 'http://nowhere.invalid/v1/batch'],
        )

    def test_fault_11_retry_after_is_heeded_and_waits_are_bounded(self) -> None:
        waits = []  # type: List[Any]

        def record(attempt: int, retry_after: Any) -> float:
            waits.append(retry_after)
            return 0

        self.collector.script(
            Fault(503, {'Retry-After': '7'}),
            Fault(429, {'Retry-After': 'Wed, 21 Oct 2015 07:28:00 GMT'}),
            Fault(503),
        )
        with mock.patch('hightouch.htevents._queue.retry.wait_time', record):
            self.sent()
        self.assertEqual(waits, [7, 0, None])

    def test_fault_12_a_401_with_oauth_gets_a_new_token_and_loses_nothing(self) -> None:
        self.collector.script(401)
        client = self.oauth_client(
            oauth_client_key=KEY,
        )
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().delivered, 1)
        tokens = [
            each.headers.get('authorization')
            for each in self.collector.requests
            if each.path == '/v1/batch'
        ]
        self.assertEqual(tokens, ['Bearer token-1', 'Bearer token-2'])
        self.assertEqual(client.stats().retried, 1)

    def test_fault_13_any_error_body_is_an_api_error(self) -> None:
        for body in (b'{}', b'[]', b'"x"', b'null', b'<html>', b'', b'\xff\xfe'):
            self.collector.script(Fault(422, {}, body))
            with self.assertRaises(request.APIError) as caught:
                request.post('key', self.collector.url, batch=[])
            self.assertEqual(caught.exception.status, 422)
        self.assertEqual(len(self.collector.requests), 7)

    def test_fault_14_any_2xx_is_success_and_408_is_retried(self) -> None:
        self.collector.script(202, 408, 204)
        client = self.client()
        for _ in range(2):
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.requests), 3)
        self.assertEqual(client.stats().delivered, 2)

    def test_fault_14_a_400_or_413_loses_only_the_refused_event(self) -> None:
        for status in (400, 413):

            def answer(received: Any, status: int = status) -> Any:
                bad = [e for e in received.body['batch'] if e['event'] == 'bad']
                return Fault(status) if bad else 200

            lost = Recorder()
            client = self.client(on_error=lost)
            self.collector.script(*[answer] * 30)
            for number in range(16):
                client.track('user', 'bad' if number == 5 else 'good')
            self.assertTrue(client.flush(LIMIT))
            self.assertEqual(client.stats().delivered, 15)
            self.assertEqual([e['event'] for e in lost.calls[0][1]], ['bad'])
            self.collector._faults.clear()

    def test_fault_15_no_body_passes_500_kb_in_utf8(self) -> None:
        client = self.client()
        for _ in range(100):
            client.track('user', 'event', {'text': 'é' * 15000})
        self.assertTrue(client.flush(LIMIT))
        sizes = [len(each.raw) for each in self.collector.requests]
        self.assertLess(max(sizes), 500000)
        self.assertGreater(max(sizes), 400000)
        self.assertEqual(len(self.collector.events), 100)

    def test_fault_16_netrc_redirects_and_cookies_change_nothing(self) -> None:
        with netrc('user', 'secret'):
            with Collector() as other:
                self.collector.script(
                    Fault(200, {'Set-Cookie': 'tenant=1; Path=/'}),
                    Fault(307, {'Location': other.url + '/v1/batch'}),
                )
                client = self.client()
                for _ in range(3):
                    client.track('user', 'event')
                    self.assertTrue(client.flush(LIMIT))
                self.assertEqual(other.requests, [])
        self.assertEqual(client.stats().failed, 1)
        for each in self.collector.requests:
            self.assertNotIn('authorization', each.headers)
            self.assertNotIn('cookie', each.headers)

    def test_fault_17_no_token_answer_hangs_or_spins(self) -> None:
        for step in (
            Fault(200, {}, b'{"expires_in": 5}'),
            Fault(200, {}, b'not json'),
            Fault(400, {}, b'{"error": "invalid_client"}'),
            Fault(429, {'X-RateLimit-Reset': '-5', 'Retry-After': '0'}),
            Fault(500),
            Fault(401),
            Fault(415),
        ):
            manager = self.oauth_manager(max_retries=0)
            before = len(self.collector.requests)
            self.collector.token_faults.append(step)
            with self.assertRaises(request.APIError):
                manager.get_token()
            self.assertEqual(len(self.collector.requests), before + 1)
            self.assertTrue(manager.get_token().startswith('token-'))

    def test_fault_17_the_scope_is_form_encoded(self) -> None:
        self.oauth_manager(scope='a b&c=d').get_token()
        self.assertEqual(self.collector.token_requests[0]['scope'], 'a b&c=d')

    def test_fault_17_n_threads_ask_for_one_token(self) -> None:
        manager = self.oauth_manager()
        barrier = threading.Barrier(8)
        tokens = []  # type: List[str]

        def ask() -> None:
            barrier.wait(LIMIT)
            tokens.append(manager.get_token())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        self.assertEqual(tokens, ['token-1'] * 8)

    def oauth_manager(self, **kwargs: Any) -> Any:
        from hightouch.htevents.oauth_manager import OauthManager

        return OauthManager('id', KEY, 'kid', self.collector.url, **kwargs)


class DataFaultTest(TestCase):
    def test_fault_18_the_callers_objects_are_not_changed_nor_shared(self) -> None:
        client = self.client(upload_interval=LIMIT * 10)
        context, properties = {'ip': '::1', 'library': 'mine'}, {'list': [1]}
        client.track('user', 'event', properties, context)
        properties['list'].append(2)
        context['ip'] = 'changed'
        self.assertTrue(client.flush(LIMIT))
        event = self.collector.events[0]
        self.assertEqual(event['properties'], {'list': [1]})
        self.assertEqual(event['context']['ip'], '::1')
        self.assertEqual(event['context']['library']['name'], 'events-sdk-python')
        self.assertEqual(context, {'ip': 'changed', 'library': 'mine'})

    def test_fault_19_zero_is_an_id_and_true_is_none(self) -> None:
        client = self.client()
        self.assertEqual(client.track(0, 'event')[1]['userId'], '0')
        with self.assertRaises(AssertionError):
            client.track(True, 'event')

    def test_fault_20_a_bad_value_loses_itself_with_one_warning(self) -> None:
        cycle = {}  # type: Any
        cycle['self'] = cycle
        values = {
            'uuid': uuid.UUID(int=1),
            'time': datetime(2026, 1, 1).time(),
            'delta': timedelta(seconds=1.5),
            'bytes': b'\xff',
            'inside': [{'deep': object()}],
            'cycle': cycle,
            'keys': {1: 'a', (1, 2): 'b'},
            'numbers': [float('nan'), float('inf'), 1.5],
            'bad': Unprintable(),
        }
        client = self.client()
        with LogCatcher() as log:
            client.track('user', 'event', values)
            warned = log.lines(logging.WARNING)
        client.track('user', 'other')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(self.collector.events), 2)
        arrived = self.collector.events[0]['properties']
        self.assertEqual(arrived['uuid'], '00000000-0000-0000-0000-000000000001')
        self.assertEqual(arrived['time'], '00:00:00')
        self.assertEqual(arrived['delta'], 1.5)
        self.assertEqual(arrived['bytes'], '\ufffd')
        self.assertEqual(arrived['cycle'], {'self': None})
        self.assertEqual(arrived['keys'], {'1': 'a', '(1, 2)': 'b'})
        self.assertEqual(arrived['numbers'], [None, None, 1.5])
        self.assertIsNone(arrived['bad'])
        (line,) = warned
        for path in ('inside[0].deep', 'cycle.self', 'bad'):
            self.assertIn('properties.%s: ' % path, line)

    def test_fault_21_a_naive_utc_now_is_utc_on_both_sides_of_greenwich(self) -> None:
        before = os.environ.get('TZ')
        try:
            for zone, hours in (('XXX5', -5), ('XXX-5', 5)):
                os.environ['TZ'] = zone
                time.tzset()
                utc = datetime.now(timezone.utc).replace(tzinfo=None)
                offset = timedelta(hours=hours)
                self.assertEqual(utils.guess_timezone(utc).utcoffset(), timedelta(0))
                local = utils.guess_timezone(datetime.now())
                self.assertEqual(local.utcoffset(), offset)
                for away in (timedelta(minutes=5), timedelta(minutes=-5)):
                    guessed = utils.guess_timezone(datetime.now() + away)
                    self.assertEqual(guessed.utcoffset(), timedelta(0))
        finally:
            os.environ.pop('TZ', None)
            if before is not None:
                os.environ['TZ'] = before
            time.tzset()

    def test_fault_22_no_deprecated_and_no_doomed_code(self) -> None:
        folder = os.path.dirname(os.path.abspath(htevents.__file__))
        for path in glob.glob(os.path.join(folder, '*.py')):
            with open(path, encoding='utf-8') as file:
                tree = ast.parse(file.read())
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute):
                    self.assertNotIn(node.attr, ('utcnow', 'utcfromtimestamp'), path)
                if isinstance(node, ast.Try):
                    for each in node.finalbody:
                        found = [n for n in ast.walk(each) if isinstance(n, ast.Return)]
                        self.assertEqual(found, [], path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            self.sent()
            gc.collect()
        ours = [each for each in caught if os.path.dirname(each.filename) == folder]
        self.assertEqual(ours, [])

    def test_fault_23_no_secret_is_ever_shown(self) -> None:
        secrets = ['wk-secret-1', 'token-1', 'PRIVATE KEY', 'host-secret']
        echo = Fault(418, {}, b'{"message": "key wk-secret-1 with token-1 is no good"}')
        lost = Recorder()
        with LogCatcher() as log:
            self.collector.script(echo, 200)
            client = self.oauth_client(
                write_key='wk-secret-1',
                host=self.collector.url.replace('//', '//user:host-secret@'),
                debug=True,
                log_handler=logging.NullHandler(),
                on_error=lost,
                oauth_client_key=KEY,
            )
            for _ in range(2):
                client.track('user', 'event')
                self.assertTrue(client.flush(LIMIT))
            client.shutdown(LIMIT)
            texts = log.lines()
        self.assertTrue(any('queueing' in line for line in texts))
        error = lost.calls[0][0]
        texts += [str(error), repr(error), repr(client), str(client.stats())]
        texts += [repr(each) for each in client.consumers or ()]
        texts += [repr(client.oauth_manager), repr(client.oauth_manager.__class__)]
        for secret in secrets:
            self.assertNotIn(secret, '\n'.join(texts))
        with self.assertRaises(Exception) as caught:
            from hightouch.htevents.oauth_manager import OauthManager

            OauthManager(
                'id', 'a bad secret key', 'kid', self.collector.url
            ).get_token()
        self.assertNotIn('a bad secret key', repr(caught.exception))
        self.assertIsNone(caught.exception.__cause__)

    def test_fault_24_every_setting_is_on_the_facade(self) -> None:
        for name in (
            'proxies',
            'thread',
            'upload_size',
            'upload_interval',
            'log_handler',
        ) + settings.NAMES:
            self.assertTrue(hasattr(htevents, name), name)

    def test_fault_25_the_code_runs_on_python_3_6(self) -> None:
        # That it installs there is what the project's checks show; this is what the
        # syntax allows.
        folder = os.path.dirname(os.path.abspath(htevents.__file__))
        if sys.version_info < (3, 8):
            return  # it runs: that says it all
        for path in glob.glob(os.path.join(folder, '*.py')):
            with open(path, encoding='utf-8') as file:
                ast.parse(file.read(), path, feature_version=(3, 6))

    def test_fault_26_an_event_is_encoded_once(self) -> None:
        encoded = []  # type: List[Any]

        def count(message: Any, *found: Any) -> Any:
            encoded.append(message)
            return encode(message, *found)

        with mock.patch('hightouch.htevents.client.encode_plain', count), mock.patch(
            'hightouch.htevents.request.encode', count
        ), mock.patch('hightouch.htevents.consumer.encode', count):
            client = self.client()
            client.track('user', 'event')
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(len(encoded), 1)
        self.assertEqual(len(self.collector.events), 1)

    def test_fault_27_a_call_inside_a_call_does_not_deadlock(self) -> None:
        client = self.client(max_queue_size=0, thread=2)
        nested = []  # type: List[bool]
        finalized = []  # type: List[int]

        class Tracks:
            def __init__(self, call: Any) -> None:
                self.call = call

            def __del__(self) -> None:
                nested.append(self.call()[0])
                finalized.append(1)

        class LoggingHandler(logging.Handler):
            def emit(self, record: Any) -> None:
                nested.append(client.track('user', 'logged')[0])

        def handle(*_: Any) -> None:
            nested.append(client.track('user', 'signal')[0])
            client.stats()
            client.flush(0)
            again()

        def again() -> None:  # only now: handlers inside of handlers have no end
            signal.setitimer(signal.ITIMER_REAL, 0.001)

        handler = LoggingHandler()
        logger = logging.getLogger('hightouch')
        before = signal.signal(signal.SIGALRM, handle)
        again()
        logger.addHandler(handler)
        accepted = 0
        try:
            for number in range(3000):
                cycle = [Tracks(lambda: client.track('user', 'finalizer'))]  # type: Any
                cycle.append(cycle)
                del cycle
                value = object() if number % 100 == 0 else 1  # logs a warning
                accepted += client.track('user', 'event', {'value': value})[0]
        finally:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            logger.removeHandler(handler)
        # A consumer's thread may be the one that collects: all have to have run.
        deadline = time.monotonic() + LIMIT
        while len(finalized) < 3000 and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        self.assertEqual(len(finalized), 3000)
        self.assertTrue(client.flush(LIMIT))
        self.assertTrue(all(nested))
        self.assertEqual(len(self.collector.events), accepted + len(nested))
        self.assertGreater(len(nested), 3000)

    def test_fault_28_every_test_of_every_module_runs(self) -> None:
        names = []  # type: List[str]

        def walk(suite: Any) -> None:
            for each in suite:
                if isinstance(each, unittest.TestSuite):
                    walk(each)
                else:
                    names.append(each.id())

        walk(all_tests())
        folder = os.path.dirname(os.path.abspath(__file__))
        for path in glob.glob(os.path.join(folder, '*.py')):
            with open(path, encoding='utf-8') as file:
                tree = ast.parse(file.read())
            module = os.path.splitext(os.path.basename(path))[0]
            for cls in [n for n in tree.body if isinstance(n, ast.ClassDef)]:
                methods = [n for n in cls.body if isinstance(n, ast.FunctionDef)]
                tests = [n.name for n in methods if n.name.startswith('test')]
                self.assertEqual(len(tests), len(set(tests)), 'one hides another')
                for test in tests:
                    wanted = '%s.%s.%s' % (module, cls.name, test)
                    self.assertTrue(
                        any(name.endswith(wanted) for name in names), wanted
                    )


if __name__ == '__main__':
    unittest.main()
