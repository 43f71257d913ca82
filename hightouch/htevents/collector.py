"""A small collector on loopback that speaks the wire format.

For development and tests: point ``host`` at it and see what an application sends. Its
faults are scripted, so that a test can have the network it needs.
"""

import base64
import json
import re
import socket
import struct
import threading
import uuid
import weakref
import zlib
from collections import deque
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    TextIO,
    Tuple,
    Union,
)
from urllib.parse import parse_qs

from hightouch.htevents._process.fork import getpid
from hightouch.htevents._process.waiting import Deadline, wait_until

# A batch, or a single event: /v1/batch, /v1/track, …
_PATH = re.compile(r'/v1/([a-z]+)/?(?:\?.*)?$')

# Limits of the real collector.
MAX_EVENT_BYTES = 32 << 10
MAX_BODY_BYTES = 500 * 1000
MAX_AGE = timedelta(days=7)

# Bytes of a body that are read before the connection is closed, so that who sends it gets
# its answer; and those that are looked at, also of what comes out of it.
_READ_LIMIT = 64 << 20
_LOOK_LIMIT = 1 << 20
_PIECE = 64 << 10

_TOO_LARGE = 'the body is over %d bytes' % MAX_BODY_BYTES

# Bytes of a line that says how long a chunk is.
_LINE_LIMIT = 1 << 10

_REQUIRED: Dict[str, Dict[str, type]] = {
    'identify': {'traits': dict},
    'track': {'event': str, 'properties': dict},
    'group': {'traits': dict},
    'page': {'properties': dict},
    'screen': {'properties': dict},
    'alias': {},
}

_ISO = re.compile(
    r'(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?'
    r'(?:Z|([+-])(\d\d):(\d\d))$'
)


class Received(NamedTuple):
    """A request as it came.

    ``status`` is what it was answered with: an int, or the name of the fault.
    """

    path: str
    headers: Dict[str, str]
    body: Any
    size: int
    raw: bytes
    status: Union[int, str]


class Fault(NamedTuple):
    """An answer of one's own; ``delay`` in seconds."""

    status: int = 200
    headers: Dict[str, str] = {}
    body: bytes = b''
    delay: float = 0


Step = Union[int, str, Fault, Callable[[Received], Any]]


def check_event(event: Any, complete: bool = True) -> List[str]:
    """Say what is wrong with an event, as the real collector would; [] if nothing.

    :param complete: whether it has to name its library, as those of an SDK do
    """
    if not isinstance(event, dict):
        return ['an event must be an object']
    problems = []
    type_ = event.get('type')
    if not isinstance(type_, str) or type_ not in _REQUIRED:
        problems.append('type must be one of %s' % ', '.join(sorted(_REQUIRED)))
        type_ = ''
    if not isinstance(event.get('messageId'), str) or not event['messageId']:
        problems.append('messageId must be a string')
    problems.extend(_check_timestamp(event.get('timestamp')))
    problems.extend(_check_ids(event, type_))
    for key, kind in _REQUIRED.get(type_, {}).items():
        if not isinstance(event.get(key), kind):
            problems.append(
                '%s must be %s' % (key, 'a string' if kind is str else 'an object')
            )
    context = event.get('context')
    library = context.get('library') if isinstance(context, dict) else None
    if complete and not (isinstance(library, dict) and library.get('name')):
        problems.append('context.library must name the library')
    if not isinstance(event.get('integrations'), dict):
        problems.append('integrations must be an object')
    size = len(json.dumps(event, ensure_ascii=False).encode('utf-8', 'replace'))
    if size > MAX_EVENT_BYTES * 1.1:  # our spacing is wider than a sender's
        problems.append('an event must not be over %d bytes' % MAX_EVENT_BYTES)
    return problems


def _completed(event: Any, type_: str) -> Any:
    """Fill in what a sender that is no SDK may leave out.

    :param type_: of the path; 'batch' for one of a batch, which names its own
    """
    if not isinstance(event, dict):
        return event
    defaults: Dict[str, Any] = {'messageId': str(uuid.uuid4()), 'context': {}}
    defaults['timestamp'] = datetime.now(timezone.utc).isoformat()
    defaults['integrations'] = {}
    if type_ != 'batch':
        defaults['type'] = type_
    for key, kind in _REQUIRED.get(str(event.get('type') or type_), {}).items():
        if kind is dict:
            defaults[key] = {}
    given = {key: value for key, value in event.items() if value is not None}
    given.pop('writeKey', None)
    return dict(defaults, **given)


def _check_timestamp(value: Any) -> List[str]:
    match = _ISO.match(value) if isinstance(value, str) else None
    if match is None:
        return ['timestamp must be ISO-8601 with an offset']
    try:
        moment = datetime(*[int(part) for part in match.groups()[:6]])  # type: ignore[arg-type]
    except ValueError:
        return ['timestamp must be a date that exists']
    if match.group(8):
        offset = timedelta(hours=int(match.group(9)), minutes=int(match.group(10)))
        try:
            moment = moment - offset if match.group(8) == '+' else moment + offset
        except OverflowError:
            return ['timestamp must be a date that exists']
    if datetime.now(timezone.utc).replace(tzinfo=None) - moment > MAX_AGE:
        return ['timestamp must not be older than %d days' % MAX_AGE.days]
    return []


def _check_ids(event: Dict[str, Any], type_: str) -> List[str]:
    problems = []
    for key in ('userId', 'anonymousId'):
        if event.get(key) is not None and not isinstance(event[key], str):
            problems.append('%s must be a string or null' % key)
    if not event.get('userId') and not event.get('anonymousId'):
        problems.append('userId or anonymousId must be given')
    for needs, key in (('group', 'groupId'), ('alias', 'previousId')):
        if type_ == needs and event.get(key) in (None, ''):
            problems.append('%s must be given' % key)
    return problems


class Collector:
    """The collector; a context manager that runs it.

    :param port: 0 takes a free one
    :param out: written to, a line of JSON for each event
    :param faults: script, a step for each request that brings events: an int (status), a
        `Fault`, a function of the `Received` that gives a step, 'reset-before' (reset
        before reading), 'reset' (read, then reset), 'reset-after' (take the events, then
        reset without an answer), 'hang' (no answer). After its end: 200.
    :param latency: seconds before each answer
    :param strict: answer 400 to a batch with a bad event, as the real one does
    :param on_event: called with each event and the list of its problems
    :param json_only: refuse what is not said to be JSON: a page of another server may send
        that without asking first
    :param keep: events that `events` keeps, the last ones, and `requests` the last one
        only; None: all
    """

    def __init__(
        self,
        port: int = 0,
        out: Optional[TextIO] = None,
        faults: Iterable[Step] = (),
        latency: float = 0,
        strict: bool = True,
        on_event: Optional[Callable[[Any, List[str]], None]] = None,
        json_only: bool = False,
        keep: Optional[int] = None,
    ) -> None:
        self.port = port
        self.latency = latency
        self.strict = strict
        self.json_only = json_only
        self.events: List[Dict[str, Any]] = []
        self.requests: List[Received] = []
        self.token_requests: List[Dict[str, str]] = []
        self._keep = keep
        self.connections = 0
        self.token_faults: Deque[Step] = deque()
        self._faults: Deque[Step] = deque(faults)
        self._out = out
        # Guards out, so that lines stay whole; held while it is written to.
        self._writing = threading.Lock()
        self._on_event = on_event
        # Guards all of the above but settings; waited on for arrivals.
        self._arrival = threading.Condition(threading.RLock())
        self._stopping = threading.Event()
        self._sockets: Set[socket.socket] = set()
        self._answering: Set[socket.socket] = set()  # of these: whose request is read
        self._server: Optional[_Server] = None
        self._thread: Optional[threading.Thread] = None
        # The descriptor of a socket that is bound to the port and does not listen, and
        # what closes it; see stop.
        self._kept_port: Optional[int] = None
        self._close_port: Any = None

    @property
    def url(self) -> str:
        return 'http://127.0.0.1:%d' % self.port

    def script(self, *faults: Step) -> None:
        """Append to the script of faults."""
        with self._arrival:
            self._faults.extend(faults)

    def start(self) -> 'Collector':
        self._stopping.clear()
        kept, self._kept_port = self._kept_port, None
        if kept is not None:
            self._close_port.detach()
        self._pid = getpid()
        self._server = _Server(
            _bound(self.port) if kept is None else socket.socket(fileno=kept)
        )
        self._server.collector = self
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={'poll_interval': 0.02},
            name='collector',
            daemon=True,
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close all connections; the port refuses until `start` opens it again."""
        server, self._server = self._server, None
        if server is None:
            return
        self._stopping.set()
        if self._pid != getpid():  # a forked child, which lacks our threads
            server.server_close()
            return
        server.shutdown()
        server.server_close()
        self._keep_port()
        assert self._thread is not None
        self._thread.join(10)
        with self._arrival:
            # What has come is answered, unless that takes long.
            wait_until(self._arrival, lambda: not self._answering, Deadline(10))
            open_sockets = list(self._sockets)
        for each in open_sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side was faster
        with self._arrival:
            wait_until(self._arrival, lambda: not self._sockets, Deadline(10))

    def _keep_port(self) -> None:
        # Else another process may get it before we start again.
        try:
            kept = _bound(self.port).detach()
        except OSError:
            return  # it was faster
        self._kept_port = kept
        self._close_port = weakref.finalize(self, _close, kept, getpid())

    def __enter__(self) -> 'Collector':
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def wait_for(self, count: int, timeout: float = 60) -> bool:
        """Wait until ``count`` events have come."""
        return self._wait(lambda: len(self.events) >= count, timeout)

    def wait_for_requests(self, count: int, timeout: float = 60) -> bool:
        """Wait until ``count`` requests have come, those with a fault included."""
        return self._wait(lambda: len(self.requests) >= count, timeout)

    def _wait(self, met: Callable[[], bool], timeout: float) -> bool:
        with self._arrival:
            return wait_until(self._arrival, met, Deadline(timeout))

    # -- called by the handler's threads ---------------------------------------------

    def _next_step(self, path: str) -> Step:
        script = self.token_faults if path.endswith('/token') else self._faults
        with self._arrival:
            return script.popleft() if script else 200

    def _note(self, received: Received, events: Sequence[Any] = ()) -> None:
        """Have a request, and the events that were taken from it, seen together."""
        with self._arrival:
            self.requests.append(received)
            self.events.extend(events)
            if self._keep is not None:
                del self.events[: max(0, len(self.events) - self._keep)]
                del self.requests[:-1], self.token_requests[:-1]
            self._arrival.notify_all()

    def _check(self, received: Received, type_: str) -> Tuple[Fault, List[Any]]:
        """Check what a request brings, and show it.

        :param type_: of the one event that it brings, or 'batch'
        :returns: the answer, and the events that were taken
        """
        body = received.body
        batch = body.get('batch') if isinstance(body, dict) else None
        if type_ != 'batch' and isinstance(body, dict):
            batch = [body]
        if not isinstance(batch, list):
            return _refusal(
                'the body must be an object with a batch, a list'
                if type_ == 'batch'
                else 'the body must be an object'
            )
        write_key = body.get('writeKey')
        complete = type_ == 'batch' and write_key not in (None, '')
        if write_key in (None, ''):
            write_key = _basic_user(received.headers)
        if not isinstance(write_key, str) or not write_key:
            return _refusal(
                'writeKey must be a string, or the user of Basic credentials'
            )
        if len(received.raw) > MAX_BODY_BYTES:
            return _refusal(_TOO_LARGE, 413)
        if not complete:
            batch = [_completed(event, type_) for event in batch]
        problems = [check_event(event, complete) for event in batch]
        if type_ != 'batch' and batch[0]['type'] != type_:
            problems[0].append('type must be %s, or be left out' % type_)
        if self._on_event is not None:
            for event, wrong in zip(batch, problems):
                self._on_event(event, wrong)
        if self.strict and any(problems):
            return _refusal('; '.join(sum(problems, []))[:1000])
        self._write_out(batch)
        return _answer(200, {'success': True}), batch

    def _write_out(self, batch: List[Any]) -> None:
        if self._out is not None:
            with self._writing:
                for event in batch:
                    line = json.dumps(event, ensure_ascii=False) + '\n'
                    # Half of a pair is escaped, as JSON may have it.
                    data = line.encode('utf-8', 'backslashreplace')
                    self._out.write(data.decode('utf-8'))
                self._out.flush()

    def _give_token(self, received: Received) -> Fault:
        form = {
            key: values[0]
            for key, values in parse_qs(received.raw.decode('utf-8', 'replace')).items()
        }
        with self._arrival:
            self.token_requests.append(form)
            number = len(self.token_requests)
        missing = [
            key
            for key in ('grant_type', 'client_assertion_type', 'client_assertion')
            if not form.get(key)
        ]
        if missing:
            text = '%s is missing' % missing[0]
            return _answer(400, {'error': 'invalid_request', 'error_description': text})
        return _answer(200, {'access_token': 'token-%d' % number, 'expires_in': 3600})


def _answer(status: int, payload: Any) -> Fault:
    return Fault(
        status,
        {'Content-Type': 'application/json'},
        json.dumps(payload).encode('ascii'),
    )


def _refusal(message: str, status: int = 400) -> Tuple[Fault, List[Any]]:
    code = 'too_large' if status == 413 else 'invalid_request'
    return _answer(status, {'code': code, 'message': message}), []


class _Refused(Exception):
    """A request that cannot be read.

    :ivar answer: what it is answered with
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.answer, _ = _refusal(message, status)


def _basic_user(headers: Dict[str, str]) -> str:
    """Return the user of a request's Basic credentials, '' when it has none."""
    scheme, _, credentials = headers.get('authorization', '').partition(' ')
    if scheme.lower() != 'basic':
        return ''
    try:
        text = base64.b64decode(credentials.strip()).decode('utf-8')
    except ValueError:
        return ''
    return text.partition(':')[0]


def _close(descriptor: int, pid: int) -> None:
    # A child may have closed its copy already, and opened something else in its place.
    if getpid() == pid:
        socket.socket(fileno=descriptor).close()


def _bound(port: int) -> socket.socket:
    """Make a socket that is bound to a port of loopback; 0 takes a free one."""
    made = socket.socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(('127.0.0.1', port))
    except OSError:
        made.close()
        raise
    return made


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024
    collector: Any = None

    def __init__(self, bound: socket.socket) -> None:
        self._bound = bound
        super().__init__(bound.getsockname(), _Handler)

    def server_bind(self) -> None:
        # HTTPServer asks the DNS for the host's name here: slow, and not needed.
        self.socket.close()
        self.socket = self._bound
        self.server_name, self.server_port = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that break: that is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    wbufsize = -1  # an answer leaves in one piece

    def setup(self) -> None:
        super().setup()
        self.collector = self.server.collector  # type: ignore[attr-defined]
        with self.collector._arrival:
            self.collector.connections += 1
            self.collector._sockets.add(self.connection)
        if self.collector._stopping.is_set():
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            pass  # nobody is there to read the rest
        finally:
            with self.collector._arrival:
                self.collector._sockets.discard(self.connection)
                self.collector._arrival.notify_all()

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()  # who sends it waits for this
        return going_on

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet: whoever wants lines gives an on_event."""

    def do_POST(self) -> None:
        path = self.path
        step = self.collector._next_step(path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        if step == 'reset-before':
            self.collector._note(Received(path, headers, None, 0, b'', step))
            return self._reset()
        received = Received(path, headers, None, 0, b'', 200)
        try:
            data = self._read_body()
            received = received._replace(size=len(data), raw=data)
            raw = _unpacked(data, headers.get('content-encoding', ''))
        except _Refused as refused:
            self.collector._note(received._replace(status=refused.answer.status))
            return self._write(refused.answer)
        received = received._replace(raw=raw, body=_parsed(raw))
        collector = self.collector
        try:
            collector._answering.add(self.connection)
            if callable(step):
                step = step(received)
            self._answer_by(step, received)
        finally:
            with collector._arrival:
                collector._answering.discard(self.connection)
                collector._arrival.notify_all()

    def _read_body(self) -> bytes:
        """Read the body of a request; raises `_Refused`."""
        coding = self.headers.get('Transfer-Encoding', 'identity').strip().lower()
        lengths = {
            each.strip() for each in self.headers.get_all('Content-Length', ['0'])
        }
        if coding == 'chunked':
            pieces = self._chunks()
        elif coding != 'identity' or len(lengths) > 1:
            raise self._refused('one length or Transfer-Encoding: chunked is needed')
        else:
            pieces = self._pieces(self._length(lengths.pop(), 10))
        data, total = bytearray(), 0
        for piece in pieces:
            total += len(piece)
            if total > _READ_LIMIT:
                raise self._refused(_TOO_LARGE, 413)
            if total <= _LOOK_LIMIT:
                data += piece
        if total > _LOOK_LIMIT:
            raise _Refused(_TOO_LARGE, 413)
        return bytes(data)

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self.rfile.readline(_LINE_LIMIT).partition(b';')[0].strip()
            length = self._length(line.decode('latin-1'), 16)
            yield from self._pieces(length)
            while True:  # the end of a chunk's line; of the last one its trailers
                line = self.rfile.readline(_LINE_LIMIT).strip()
                if length or not line:
                    break
            if not length:
                return

    def _length(self, text: str, base: int) -> int:
        try:
            if re.match(r'[0-9A-Fa-f]{1,15}\Z', text):
                return int(text, base)
        except ValueError:
            pass
        raise self._refused('the length of the body must be a number')

    def _pieces(self, length: int) -> Iterator[bytes]:
        if length > _READ_LIMIT:
            raise self._refused(_TOO_LARGE, 413)
        while length:
            piece = self.rfile.read(min(length, _PIECE))
            if not piece:
                raise self._refused('the body is cut short')
            length -= len(piece)
            yield piece

    def _refused(self, message: str, status: int = 400) -> '_Refused':
        self.close_connection = True  # where the next request begins is not known
        return _Refused(message, status)

    def _answer_by(self, step: Any, received: Received) -> None:
        collector = self.collector
        if step == 'hang':
            collector._note(received._replace(status=step))
            collector._stopping.wait(60)
            self.close_connection = True
            return
        if step == 'reset':
            collector._note(received._replace(status=step))
            return self._reset()
        if isinstance(step, int):
            step = Fault(status=step)
        answer = step if isinstance(step, Fault) else Fault()
        events: List[Any] = []
        if 200 <= answer.status < 300:
            try:
                own, events = self._normal(received)
            except Exception as error:  # of on_event, out, or nonsense
                text = '%s: %s' % (type(error).__name__, error)
                own = _answer(500, {'code': 'collector_failed', 'message': text})
            if own.status != 200 or not answer.body:
                answer = own._replace(
                    status=answer.status if own.status == 200 else own.status,
                    headers=dict(own.headers, **answer.headers),
                    delay=answer.delay,
                )
        status = step if step == 'reset-after' else answer.status
        collector._note(received._replace(status=status), events)
        delay = answer.delay + collector.latency
        if delay and collector._stopping.wait(delay):
            self.close_connection = True
            return
        if step == 'reset-after':
            return self._reset()
        self._write(answer)

    def _normal(self, received: Received) -> Tuple[Fault, List[Any]]:
        if received.path.endswith('/token'):
            return self.collector._give_token(received), []
        match = _PATH.search(received.path)
        if match is not None and match.group(1) in ('batch', *_REQUIRED):
            kind = received.headers.get('content-type', '').partition(';')[0]
            if self.collector.json_only and kind.strip().lower() != 'application/json':
                return _refusal('Content-Type must be application/json', 415)
            return self.collector._check(received, match.group(1))  # type: ignore[no-any-return]
        return _answer(404, {'code': 'not_found', 'message': 'no such path'}), []

    def do_OPTIONS(self) -> None:
        """Answer what a browser asks before it sends from the page of another server."""
        try:
            self._read_body()
        except _Refused as refused:
            return self._write(refused.answer)
        allowed = self.headers.get('Access-Control-Request-Headers', '')
        headers = {'Access-Control-Allow-Methods': 'POST, OPTIONS'}
        if allowed:
            headers['Access-Control-Allow-Headers'] = allowed
        self._write(Fault(204, headers))

    def _write(self, answer: Fault) -> None:
        self.send_response_only(answer.status)
        headers = {'Server': self.version_string(), 'Date': self.date_time_string()}
        if 'Origin' in self.headers:
            headers['Access-Control-Allow-Origin'] = '*'
        headers.update(answer.headers)
        for name, value in headers.items():
            self.send_header(name, value)
        if answer.status == 204:  # which has no body, and no length
            answer = answer._replace(body=b'')
        else:
            self.send_header('Content-Length', str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()

    def _reset(self) -> None:
        # Lingering for 0 seconds: the socket is closed with a reset, not a goodbye.
        linger = struct.pack('ii', 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        # rfile holds the descriptor open: without detaching, nothing is closed yet.
        socket.socket(fileno=self.connection.detach()).close()


def _unpacked(data: bytes, encoding: str) -> bytes:
    """Decompress a body; raises `_Refused`."""
    encoding = encoding.strip().lower()
    if encoding in ('', 'identity'):
        return data
    if encoding not in ('gzip', 'x-gzip'):
        raise _Refused('Content-Encoding must be gzip or identity', 415)
    raw = b''
    while data or not raw:  # it may have several members
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            raw += unpacker.decompress(data, _LOOK_LIMIT + 1 - len(raw))
        except zlib.error:
            raise _Refused('the body is not gzip')
        if len(raw) > _LOOK_LIMIT:
            raise _Refused(_TOO_LARGE, 413)
        if not unpacker.eof:
            raise _Refused('the gzip of the body is cut short')
        data = unpacker.unused_data
    return raw


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode('utf-8'))
    except (ValueError, RecursionError):
        return None
