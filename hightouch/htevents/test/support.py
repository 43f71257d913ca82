"""What several test modules need."""

import _thread
import asyncio
import contextlib
import dis
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import unittest
from typing import Any, Awaitable, Callable, Iterator, List, Optional, Tuple
from unittest import mock

from hightouch.htevents import Client
from hightouch.htevents._queue import retry
from hightouch.htevents.collector import Collector
from hightouch.htevents.delivery import Delivery
from hightouch.htevents.encoding import encode
from hightouch.htevents.test.constants import TEST_WRITE_KEY

# Tests send requests of their own, too, all of them to loopback, with the settings they give.
for _name in [
    each
    for each in os.environ
    if each.lower().endswith('_proxy') or each.startswith('HTEVENTS_')
]:
    del os.environ[_name]

# Seconds after which something hangs. Generous: the machine may be busy.
LIMIT = 60

NO_THREAD = RuntimeError("can't start new thread")


class Recorder:
    """A callback that remembers its calls and lets others wait for them."""

    def __init__(self, then: Optional[Callable[..., Any]] = None) -> None:
        self.calls: List[Any] = []
        self._then = then
        self._changed = threading.Condition()

    def __call__(self, *args: Any) -> None:
        with self._changed:
            self.calls.append(args)
            self._changed.notify_all()
        if self._then is not None:
            self._then(*args)

    def wait_for(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self.calls) >= count, LIMIT)


class TestCase(unittest.TestCase):
    """A test with a collector, and clients that are shut down after it."""

    key = ''  # an RSA private key, where one is needed: see oauth_client

    def setUp(self) -> None:
        self.collector = Collector().start()
        self.addCleanup(self.collector.stop)
        # Retries then wait as short as they may.
        patch = mock.patch.object(retry, 'BASE', 0)
        patch.start()
        self.addCleanup(patch.stop)

    def client(self, **settings: Any) -> Client:
        settings.setdefault('write_key', TEST_WRITE_KEY)
        settings.setdefault('host', self.collector.url)
        client = Client(**settings)
        self.addCleanup(client.shutdown, 0)
        return client

    def holding(self, **settings: Any) -> Client:
        """Make a client whose events wait in its queue, unless something flushes."""
        settings.setdefault('upload_interval', LIMIT * 100)
        settings.setdefault('upload_size', 1 << 20)
        return self.client(**settings)

    def oauth_client(self, **settings: Any) -> Client:
        """Make a client that gets its tokens from the collector."""
        settings.setdefault('oauth_client_id', 'id')
        settings.setdefault('oauth_client_key', self.key)
        settings.setdefault('oauth_key_id', 'kid')
        settings.setdefault('oauth_auth_server', self.collector.url)
        return self.client(**settings)

    def sent(self, **settings: Any) -> Any:
        """Send one event by a client of these settings; gives what arrived."""
        client = self.client(**settings)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        return self.collector.events[-1]

    def assert_adds_up(self, client: Client) -> None:
        stats = client.stats()
        self.assertEqual(
            stats.accepted, stats.delivered + stats.failed + stats.pending, stats
        )


class LogCatcher(logging.Handler):
    """Collects what the package logs, as text, tracebacks included."""

    def __init__(self) -> None:
        super().__init__()
        self.records: List[logging.LogRecord] = []
        self.setFormatter(logging.Formatter('%(levelname)s %(message)s'))

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, level: int = logging.DEBUG) -> List[str]:
        return [self.format(each) for each in self.records if each.levelno >= level]

    def __enter__(self) -> 'LogCatcher':
        self._logger = logging.getLogger('hightouch')
        self._before = self._logger.level
        self._logger.addHandler(self)
        self._logger.setLevel(logging.DEBUG)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before)


def run_loop(
    main: Awaitable[Any], make_loop: Callable[[], Any] = asyncio.new_event_loop
) -> Any:
    """Run a coroutine on an event loop of its own, also on Python 3.6."""
    loop = make_loop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def decoded(body: bytes) -> Any:
    """Decode JSON, strictly."""

    def strict(text: str) -> None:
        raise AssertionError('not JSON: %s' % text)

    return json.loads(body.decode('utf-8'), parse_constant=strict)


def wire(value: Any) -> Any:
    """Give what arrives of a value in a message."""
    return decoded(encode({'v': value})[0])['v']


@contextlib.contextmanager
def netrc(login: str, password: str) -> Iterator[None]:
    """Have a ~/.netrc with credentials for loopback."""
    with tempfile.TemporaryDirectory() as home:
        path = os.path.join(home, '.netrc')
        with open(path, 'w') as file:
            file.write('machine 127.0.0.1 login %s password %s\n' % (login, password))
        os.chmod(path, 0o600)
        with mock.patch.dict(os.environ, {'NETRC': path, 'HOME': home}):
            yield


@contextlib.contextmanager
def no_threads(error: BaseException = NO_THREAD) -> Iterator[None]:
    """Refuse the threads of all clients."""
    start = _thread.start_new_thread

    def start_others(function: Any, *args: Any) -> Any:
        if getattr(function, '__func__', None) is Delivery._serve:
            raise error
        return start(function, *args)

    with mock.patch.object(_thread, 'start_new_thread', start_others):
        yield


def run_program(code: str, *args: str) -> 'subprocess.CompletedProcess[str]':
    """Run a program in a Python of its own; hangs are killed after ``LIMIT``."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    environment.pop('PYTHONWARNINGS', None)
    return subprocess.run(
        [sys.executable, '-c', code] + list(args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=LIMIT,
        env=environment,
    )


def interrupt() -> None:
    raise KeyboardInterrupt


def interruptions(
    make: Callable[[], Callable[[], Any]],
    path: str,
    after: Tuple[str, ...] = (),
    handler: Callable[[], Any] = interrupt,
) -> Iterator[str]:
    """Interrupt a call in its first step, one like it in its second, and so on.

    As a signal handler does. Yields after each where it was.

    :param make: gives the call
    :param path: of the code whose steps are meant, a file or a folder
    :param after: only in steps that follow one of these opcodes; (): in all
    :param handler: may raise KeyboardInterrupt
    """
    # Python 3.6 cannot trace opcodes, and 3.12 forgets to.
    step = 'line' if sys.version_info[:2] in ((3, 6), (3, 12)) else 'opcode'
    before = {}  # type: Any
    left = 0
    place = ''

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left, place
        if not frame.f_code.co_filename.startswith(path):
            return None
        if step == 'opcode':
            frame.f_trace_opcodes = True
        if event == step:
            opcode = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            # No handler comes at a NOT_TAKEN of 3.14, and not all are covered by a try.
            left -= opcode != 'NOT_TAKEN' and (not after or before.get(frame) in after)
            before[frame] = opcode
            if left < 0:
                sys.settrace(None)
                place = '%s, line %s' % (frame.f_code.co_name, frame.f_lineno)
                handler()
                return None
        return trace

    for number in itertools.count():
        call, left, place = make(), number, ''
        sys.settrace(trace)
        try:
            call()
            if not place:
                return
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
            before.clear()
        yield place


def encoded_event(name: str) -> bytes:
    """Give the JSON of an event, as a client makes it."""
    _, message = Client(TEST_WRITE_KEY, send=False).track('user', name)
    return encode(message)[0]


def make_key() -> str:
    """Make an RSA private key, as PEM."""
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(
        public_exponent=65537, key_size=2048, backend=default_backend()
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode('ascii')
