"""A server that takes every request at once, in a process of its own.

    python benchmarks/sink.py

It prints its URL and serves until its standard input ends, so it never outlives whoever
started it. What it is sent it keeps as it came: while a workload runs, a request costs a
search for the end of its header and one ``send``. Only when somebody asks are the bodies
decoded and the unique ids of the events counted.

What it can be asked for lies under ``/-/``; see `ask`.
"""

import gzip
import heapq
import http.client
import json
import resource
import selectors
import socket
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Tuple
from urllib.parse import urlsplit

# Where each client puts its events into a body, and what it calls the id and the user of
# one: Hightouch, Segment and RudderStack; PostHog; Snowplow; Amplitude.
LISTS = ('batch', 'data', 'events')
IDS = ('messageId', 'uuid', 'eid', 'insert_id')
USERS = ('userId', 'distinct_id', 'uid', 'user_id')

# What each client takes for a success: one body that holds the answer of all.
ACCEPTED = b'{"success":true,"status":1,"code":200}'

# Seconds for which a start, a question or the end of the process is waited for. Counting
# a million events takes a while.
START_LIMIT = 20
ASK_LIMIT = 120
STOP_LIMIT = 10

_READ = 1 << 18


def _answer(body: bytes) -> bytes:
    return (
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n'
        b'Content-Length: %d\r\n\r\n%s' % (len(body), body)
    )


class Tally:
    """The events that came, counted by their ids when somebody asks."""

    def __init__(self) -> None:
        self.newest: Tuple[bytes, bytes] = (b'', b'')
        self.requests = 0
        self.unreadable = 0
        self.in_order = True
        self._uncounted: List[Tuple[bytes, bytes]] = []
        self._ids: Dict[str, None] = {}
        self._highest = -1

    def add(self, header: bytes, body: bytes) -> None:
        self.requests += 1
        self.newest = (header, body)
        self._uncounted.append(self.newest)

    def count(self) -> Dict[str, Any]:
        """Decode what came since the last time.

        ``in_order`` says whether the numbers of the users only ever rose.
        """
        for _, body in self._uncounted:
            try:
                self._take(body)
            except (OSError, EOFError, ValueError, AttributeError, StopIteration):
                self.unreadable += 1
        self._uncounted = []
        return {
            'unique': len(self._ids),
            'requests': self.requests,
            'unreadable': self.unreadable,
            'in_order': self.in_order,
        }

    def _take(self, body: bytes) -> None:
        if body[:2] == b'\x1f\x8b':
            body = gzip.decompress(body)
        content = json.loads(body.decode('utf-8'))
        events = next((content[key] for key in LISTS if key in content), [content])
        for event in events:
            key = next(key for key in IDS if event.get(key))
            self._ids[event[key]] = None
            user = next((event[key] for key in USERS if event.get(key)), '')
            number = user.rpartition('-')[2]
            if number.isdigit():
                self.in_order &= int(number) > self._highest
                self._highest = max(self._highest, int(number))


class Connection:
    """One connection: what came and was not understood yet."""

    def __init__(self, sink: 'Sink', sock: socket.socket) -> None:
        self.sink = sink
        self.socket = sock
        self._buffer = bytearray()
        self._needed = 0  # bytes without which a look at the buffer is in vain

    def read(self) -> None:
        try:
            data = self.socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b''
        if not data:
            return self.sink.drop(self)
        self._buffer += data
        while len(self._buffer) >= self._needed:
            if not self._take_request():
                break

    def _take_request(self) -> bool:
        end = self._buffer.find(b'\r\n\r\n')
        if end < 0:
            return False
        header = bytes(self._buffer[:end])
        start, size = end + 4, _content_length(header)
        self._needed = start + size
        if len(self._buffer) < self._needed:
            return False
        body = bytes(self._buffer[start : self._needed])
        del self._buffer[: self._needed]
        self._needed = 0
        self.sink.handle(self, header, body)
        return True

    def write(self, data: bytes) -> None:
        """Send an answer. Small ones only fit the socket's buffer whole; others wait."""
        try:
            self.socket.setblocking(True)
            self.socket.sendall(data)
            self.socket.setblocking(False)
        except OSError:
            self.sink.drop(self)


def _content_length(header: bytes) -> int:
    lowered = header.lower()
    at = lowered.find(b'\r\ncontent-length:')
    if at < 0:
        return 0
    return int(lowered[at + 17 :].split(b'\r\n', 1)[0])


class Sink:
    """The server: one thread, one selector.

    :ivar latency: seconds before each answer; the others do not wait meanwhile
    :ivar holding: no answer leaves until a ``release``
    """

    def __init__(self) -> None:
        self.tally = Tally()
        self.latency = 0.0
        self.holding = False
        self._held: List[Connection] = []
        self._due: List[Tuple[float, int, Connection]] = []
        self._number = 0
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=4096)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._answer = _answer(ACCEPTED)

    @property
    def url(self) -> str:
        return 'http://127.0.0.1:%d' % self._listener.getsockname()[1]

    def serve(self, until: Any) -> None:
        """Serve until the file can be read from."""
        self._selector.register(until, selectors.EVENT_READ)
        while True:
            wait = max(0, self._due[0][0] - time.monotonic()) if self._due else None
            for key, _ in self._selector.select(wait):
                if key.data is not None:
                    key.data.read()
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    return
            while self._due and self._due[0][0] <= time.monotonic():
                heapq.heappop(self._due)[2].write(self._answer)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it left again
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(sock, selectors.EVENT_READ, Connection(self, sock))

    def drop(self, connection: Connection) -> None:
        try:
            self._selector.unregister(connection.socket)
        except (KeyError, ValueError):
            return  # dropped before
        connection.socket.close()

    def handle(self, connection: Connection, header: bytes, body: bytes) -> None:
        path = header.split(b' ', 2)[1]
        if path.startswith(b'/-/'):
            said = self._control(path[3:].decode(), body)
            return connection.write(_answer(json.dumps(said).encode()))
        self.tally.add(header, body)
        if self.holding:
            self._held.append(connection)
        elif self.latency:
            due = time.monotonic() + self.latency
            self._number += 1  # connections cannot be compared
            heapq.heappush(self._due, (due, self._number, connection))
        else:
            connection.write(self._answer)

    def _control(self, what: str, body: bytes) -> Any:
        options = json.loads(body.decode()) if body else {}
        if what == 'reset':
            self.tally = Tally()
            self.latency = options.get('latency', 0.0)
            self.holding = options.get('hold', False)
        if what == 'last':
            header, sent = self.tally.newest
            return {'header': header.decode('latin-1'), 'body': sent.decode('latin-1')}
        if what == 'hold':
            self.holding = True
        if what == 'release':
            self.holding = False
        if what in ('reset', 'release'):
            held, self._held = self._held, []
            for connection in held:
                connection.write(self._answer)
        return self.tally.count()


def ask(url: str, what: str, **options: Any) -> Any:
    """Ask the sink at that URL for something, and give its answer.

    ``reset`` forgets what came, and takes ``latency`` (seconds) and ``hold``; ``hold``
    keeps all answers back until ``release``; ``count`` counts; ``last`` gives the last
    request. The answer to all but the last is the count.
    """
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=ASK_LIMIT)
    try:
        connection.request('POST', '/-/' + what, json.dumps(options).encode())
        return json.loads(connection.getresponse().read().decode())
    finally:
        connection.close()


class SinkProcess:
    """A sink in a process of its own, as a context manager that gives its URL."""

    def __init__(self) -> None:
        self._process: Optional['subprocess.Popen[str]'] = None

    def __enter__(self) -> str:
        self._process = subprocess.Popen(
            [sys.executable, '-I', __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            universal_newlines=True,
        )
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(START_LIMIT):
                self.__exit__()
                raise RuntimeError('the sink did not start in %d s' % START_LIMIT)
        return self._process.stdout.readline().strip()

    def __exit__(self, *exc_info: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.communicate(timeout=STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def raise_file_limit() -> None:
    """Allow as many open connections as the system lets us: a thousand is its default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == '__main__':
    raise_file_limit()
    sink = Sink()
    print(sink.url, flush=True)
    sink.serve(sys.stdin)
