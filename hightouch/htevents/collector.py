"""A small collector on loopback, for development and tests.

Set ``host`` to its URL to see the events that an application sends. A script of faults
makes it fail in the ways that a test needs.
"""

import base64
import json
import math
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
from hightouch.htevents._process.waiting import Deadline
from hightouch.htevents.errors import ValidationError

# The paths of a batch and of single events: /v1/batch, /v1/track, …
_PATH = re.compile(r'/v1/([a-z]+)/?(?:\?.*)?$')

# Limits of the real collector.
MAX_EVENT_BYTES = 32 << 10
MAX_BODY_BYTES = 500 * 1000
MAX_AGE = timedelta(days=7)

TOO_OLD = 'timestamp must not be older than %d days' % MAX_AGE.days

# Bytes of a body that are read. Its sender reads the answer only after it has sent the body.
_READ_LIMIT = 64 << 20
# Bytes of a body that are kept, before and after decompression.
_KEEP_LIMIT = 1 << 20
_PIECE = 64 << 10  # bytes that are read at a time
_LINE_LIMIT = 1 << 10  # bytes of the line with the length of a chunk

_TOO_LARGE = 'the body is over %d bytes' % MAX_BODY_BYTES

REQUIRED: Dict[str, Dict[str, type]] = {
    'identify': {'traits': dict},
    'track': {'event': str, 'properties': dict},
    'group': {'traits': dict},
    'page': {'properties': dict},
    'screen': {'properties': dict},
    'alias': {},
}

# The keys of an event that the arguments of the calls have other names for.
WIRE_NAMES = {
    'user_id': 'userId',
    'anonymous_id': 'anonymousId',
    'previous_id': 'previousId',
    'group_id': 'groupId',
    'message_id': 'messageId',
}

_ISO = re.compile(
    r'(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?'
    r'(?:Z|([+-])(\d\d):(\d\d))$'
)


class Received(NamedTuple):
    """A request; ``status`` is the status of its answer, or the name of the fault."""

    path: str
    headers: Dict[str, str]
    body: Any
    size: int
    raw: bytes
    status: Union[int, str]


class Fault(NamedTuple):
    """An answer to script; ``delay`` in seconds."""

    status: int = 200
    headers: Dict[str, str] = {}
    body: bytes = b''
    delay: float = 0


Step = Union[int, str, Fault, Callable[[Received], Any]]
_NAMED_STEPS = ('reset-before', 'reset', 'reset-after', 'hang')


def _checked(step: Step) -> Step:
    """Return a step of a script; raise `ValidationError` if it is unknown."""
    # A misspelt fault would be none, and the test that needs it would prove nothing.
    if isinstance(step, (int, Fault)) or callable(step) or step in _NAMED_STEPS:
        return step
    raise ValidationError(
        "fault: expected a status, a Fault, a function, or one of '%s', got %r"
        % ("', '".join(_NAMED_STEPS), step)
    )


def check_event(
    event: Any, complete: bool = True, size: Optional[int] = None
) -> List[str]:
    """Return the problems for which the real collector refuses an event.

    :param complete: the event must name its library, as events of an SDK do
    :param size: bytes of its JSON; None: it is encoded to find out
    """
    if not isinstance(event, dict):
        return ['an event must be an object']
    problems = []
    type_ = event.get('type')
    if not isinstance(type_, str) or type_ not in REQUIRED:
        problems.append('type must be one of %s' % ', '.join(sorted(REQUIRED)))
        type_ = ''
    if not isinstance(event.get('messageId'), str) or not event['messageId']:
        problems.append('messageId must be a string')
    problems.extend(_check_timestamp(event.get('timestamp')))
    problems.extend(_check_ids(event, type_))
    for key, kind in REQUIRED.get(type_, {}).items():
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
    if size is None:
        text = json.dumps(event, ensure_ascii=False, separators=(',', ':'))
        size = len(text.encode('utf-8', 'replace'))
    if size > MAX_EVENT_BYTES:
        problems.append('an event must not be over %d bytes' % MAX_EVENT_BYTES)
    return problems


def _completed(event: Any, type_: str) -> Any:
    """Add the fields that a sender without an SDK may leave out.

    :param type_: the type that the path names; 'batch' if each event names its type
    """
    if not isinstance(event, dict):
        return event
    defaults: Dict[str, Any] = {'messageId': str(uuid.uuid4()), 'context': {}}
    defaults['timestamp'] = datetime.now(timezone.utc).isoformat()
    defaults['integrations'] = {}
    of_request = {'writeKey'}  # not of the event
    if type_ != 'batch':
        defaults['type'] = type_
        of_request.add('sentAt')
    for key, kind in REQUIRED.get(str(event.get('type') or type_), {}).items():
        if kind is dict:
            defaults[key] = {}
    given = {
        key: value
        for key, value in event.items()
        if value is not None and key not in of_request
    }
    return dict(defaults, **given)


def _check_timestamp(value: Any) -> List[str]:
    match = _ISO.match(value) if isinstance(value, str) else None
    if match is None:
        return ['timestamp must be ISO-8601 with an offset']
    try:
        moment = datetime(*[int(part) for part in match.groups()[:6]])  # type: ignore[arg-type]
        sign, hours, minutes = match.group(8, 9, 10)
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        moment = moment + offset if sign == '-' else moment - offset
    except (ValueError, OverflowError):
        return ['timestamp must be a date that exists']
    if datetime.now(timezone.utc).replace(tzinfo=None) - moment > MAX_AGE:
        return [TOO_OLD]
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
    """A collector, and the context manager that runs it.

    :param port: 0 for a free port
    :param out: a file that gets a line of JSON for each event
    :param faults: the script, one step for each request with events. A step is an int (the
        status), a `Fault`, a function that takes the `Received` and returns a step, or one
        of 'reset-before' (reset before reading), 'reset' (read, then reset), 'reset-after'
        (accept the events, then reset without an answer) and 'hang' (no answer). When the
        script has ended, the answer is 200.
    :param latency: seconds before each answer
    :param strict: answer 400 to a batch with a bad event, as the real collector does
    :param on_event: called with each event and the list of its problems
    :param keep: keep only this number of the last events, and the last request; None: all
    """

    # Seconds that `stop` waits for requests to be answered, and for connections to end.
    _patience: float = 10

    def __init__(
        self,
        port: int = 0,
        out: Optional[TextIO] = None,
        faults: Iterable[Step] = (),
        latency: float = 0,
        strict: bool = True,
        on_event: Optional[Callable[[Any, List[str]], None]] = None,
        keep: Optional[int] = None,
    ) -> None:
        self.port = port
        self.latency = latency
        self.strict = strict
        self.events: List[Dict[str, Any]] = []
        self.requests: List[Received] = []
        self.token_requests: List[Dict[str, str]] = []
        self._keep = keep
        self.connections = 0
        self.token_faults: Deque[Step] = deque()
        self._faults: Deque[Step] = deque(map(_checked, faults))
        self._out = out
        self._writing = threading.Lock()  # keeps the lines of `out` whole
        self._on_event = on_event
        # Guards the lists, deques and sets of this object. Notified when they change.
        self._arrival = threading.Condition(threading.RLock())
        self._stopping = threading.Event()
        self._sockets: Set[socket.socket] = set()
        self._answering: Set[socket.socket] = set()  # with an unanswered request
        self._server: Optional[_Server] = None
        self._thread: Optional[threading.Thread] = None
        # The descriptor of a socket that is bound to the port and does not listen, and the
        # finalizer that closes it: see _keep_port.
        self._kept_port: Optional[int] = None
        self._close_port: Any = None

    @property
    def url(self) -> str:
        return 'http://127.0.0.1:%d' % self.port

    def script(self, *faults: Step) -> None:
        """Append to the script of faults.

        :raises ValidationError: for a step that is unknown; nothing is then appended
        """
        checked = [_checked(step) for step in faults]
        with self._arrival:
            self._faults.extend(checked)

    def start(self) -> 'Collector':
        self._stopping.clear()
        kept, self._kept_port = self._kept_port, None
        if kept is not None:
            self._close_port.detach()
        self._pid = getpid()
        self._server = _Server(
            _bound(self.port) if kept is None else socket.socket(fileno=kept),
            self._handler(),
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
        """Close all connections. The port refuses new ones until `start` is called."""
        server, self._server = self._server, None
        if server is None:
            return
        self._stopping.set()
        if self._pid != getpid():  # a forked child has no thread of the server
            server.server_close()
            return
        server.shutdown()
        server.server_close()
        self._keep_port()
        assert self._thread is not None
        self._thread.join(10)
        with self._arrival:
            # Requests that were read are answered first, unless that takes too long.
            _wait_until(
                self._arrival, lambda: not self._answering, Deadline(self._patience)
            )
            open_sockets = list(self._sockets)
        for each in open_sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer has closed it
        with self._arrival:
            _wait_until(
                self._arrival, lambda: not self._sockets, Deadline(self._patience)
            )

    def _keep_port(self) -> None:
        # Without this, another process may get the port before `start` is called again.
        try:
            kept = _bound(self.port).detach()
        except OSError:
            return  # another process has got it
        self._kept_port = kept
        self._close_port = weakref.finalize(self, _close, kept, getpid())

    def __enter__(self) -> 'Collector':
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def wait_for(self, count: int, timeout: float = 60) -> bool:
        """Wait until ``count`` events were accepted."""
        return self._wait(lambda: len(self.events) >= count, timeout)

    def wait_for_requests(self, count: int, timeout: float = 60) -> bool:
        """Wait until ``count`` requests were received, including those with a fault."""
        return self._wait(lambda: len(self.requests) >= count, timeout)

    def _wait(self, met: Callable[[], bool], timeout: float) -> bool:
        with self._arrival:
            return _wait_until(self._arrival, met, Deadline(timeout))

    def _handler(self) -> type:
        return Handler

    # -- called by the threads of the server -----------------------------------------

    def _next_step(self, path: str) -> Step:
        script = self.token_faults if path.endswith('/token') else self._faults
        with self._arrival:
            return script.popleft() if script else 200

    def _note(
        self, received: Received, events: Sequence[Any] = (), why: str = ''
    ) -> None:
        """Add a request and its accepted events in one step.

        :param why: the reason for which the request was refused
        """
        with self._arrival:
            self.requests.append(received)
            self.events.extend(events)
            if self._keep is not None:
                del self.events[: max(0, len(self.events) - self._keep)]
                del self.requests[:-1], self.token_requests[:-1]
            self._arrival.notify_all()

    def _check(self, received: Received, type_: str) -> List[Any]:
        """Check the events of a request, and pass them to ``on_event`` and ``out``.

        :param type_: the type that the path names, or 'batch'
        :returns: the accepted events
        :raises Refused: if there are none
        """
        batch, problems = self._examine(received, type_)
        if self._on_event is not None:
            for event, wrong in zip(batch, problems):
                self._on_event(event, wrong)
        if self.strict and any(problems):
            raise Refused('; '.join(sum(problems, []))[:1000])
        self._write_out(batch)
        return batch

    def _examine(
        self, received: Received, type_: str
    ) -> Tuple[List[Any], List[List[str]]]:
        """Return the events of a request, and the problems of each.

        :raises Refused: if there is a problem of the whole request
        """
        body = received.body
        if not isinstance(body, dict):
            raise Refused('the body must be a JSON object')
        batch = body.get('batch') if type_ == 'batch' else [body]
        if not isinstance(batch, list):
            raise Refused('batch must be a list')
        write_key = body.get('writeKey')
        complete = type_ == 'batch' and write_key not in (None, '')
        if write_key in (None, ''):
            write_key = _basic_user(received.headers)
        if not isinstance(write_key, str) or not write_key:
            raise Refused('writeKey must be a string, or the user of Basic credentials')
        if len(received.raw) > MAX_BODY_BYTES:
            raise Refused(_TOO_LARGE, 413)
        if not complete:
            batch = [_completed(event, type_) for event in batch]
        problems = [check_event(event, complete) for event in batch]
        if type_ != 'batch' and batch[0]['type'] != type_:
            problems[0].append('type must be %s, or be left out' % type_)
        return batch, problems

    def _write_out(self, batch: List[Any]) -> None:
        if self._out is not None:
            with self._writing:
                for event in batch:
                    line = json.dumps(event, ensure_ascii=False) + '\n'
                    # A lone surrogate is escaped.
                    data = line.encode('utf-8', 'backslashreplace')
                    self._out.write(data.decode('utf-8'))
                self._out.flush()

    def _issue_token(self, received: Received) -> Fault:
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
            return answer_of(
                400, {'error': 'invalid_request', 'error_description': text}
            )
        return answer_of(200, {'access_token': 'token-%d' % number, 'expires_in': 3600})


def answer_of(status: int, payload: Any) -> Fault:
    return Fault(
        status,
        {'Content-Type': 'application/json'},
        json.dumps(payload).encode('ascii'),
    )


def _wait_until(
    condition: threading.Condition, met: Callable[[], bool], deadline: Deadline
) -> bool:
    """Wait, holding ``condition``, until it is ``met``; False when time ran out first.

    ``Condition.wait_for`` asks a clock that a test may have stopped: see `waiting.monotonic`.
    """
    while not met():
        if deadline.over:
            return False
        condition.wait(deadline.remaining())
    return True


class Refused(Exception):
    """A request is refused; ``answer`` is the answer to send, and ``why`` is to be noted."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.why = message
        codes = {404: 'not_found', 413: 'too_large', 500: 'collector_failed'}
        code = codes.get(status, 'invalid_request')
        self.answer = answer_of(status, {'code': code, 'message': message})


def _basic_user(headers: Dict[str, str]) -> str:
    """Return the user of a request's Basic credentials ('' for none)."""
    scheme, _, credentials = headers.get('authorization', '').partition(' ')
    if scheme.lower() != 'basic':
        return ''
    try:
        text = base64.b64decode(credentials.strip()).decode('utf-8')
    except ValueError:
        return ''
    return text.partition(':')[0]


def _close(descriptor: int, pid: int) -> None:
    # In a forked child, the descriptor may have been closed and used for another file.
    if getpid() == pid:
        socket.socket(fileno=descriptor).close()


def _bound(port: int) -> socket.socket:
    """Return a socket that is bound to a port on loopback; 0 for a free port."""
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

    def __init__(self, bound: socket.socket, handler: Any) -> None:
        self._bound = bound
        super().__init__(bound.getsockname(), handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind makes a slow DNS query for the name of the host.
        self.socket.close()
        self.socket = self._bound
        self.server_name, self.server_port = self.socket.getsockname()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: connections break on purpose."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True
    wbufsize = -1  # buffered: an answer is sent in one piece

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
            pass  # the peer has closed the connection
        finally:
            with self.collector._arrival:
                self.collector._sockets.discard(self.connection)
                self.collector._arrival.notify_all()

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()  # the client waits for this line before it sends the body
        return going_on

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: `on_event` is the way to see events."""

    def do_POST(self) -> None:
        collector = self.collector
        step = collector._next_step(self.path)
        headers = {key.lower(): value for key, value in self.headers.items()}
        received = Received(self.path, headers, None, 0, b'', 200)
        if step == 'reset-before':
            return self._fail(step, received)
        try:
            data = self._read_body()
            received = received._replace(size=len(data), raw=data)
            raw = _unpacked(data, headers.get('content-encoding', ''))
        except Refused as refused:
            status = refused.answer.status
            collector._note(received._replace(status=status), (), refused.why)
            return self._write(refused.answer)
        received = received._replace(raw=raw, body=_parsed(raw))
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
        """Read the body of a request; raise `Refused` if that fails."""
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
            if total <= _KEEP_LIMIT:
                data += piece
        if total > _KEEP_LIMIT:
            raise Refused(_TOO_LARGE, 413)
        return bytes(data)

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self.rfile.readline(_LINE_LIMIT).partition(b';')[0].strip()
            length = self._length(line.decode('latin-1'), 16)
            yield from self._pieces(length)
            while (
                True
            ):  # the end of the chunk's line; after the last chunk, the trailers
                line = self.rfile.readline(_LINE_LIMIT).strip()
                if length or not line:
                    break
            if not length:
                return

    def _length(self, text: str, base: int) -> int:
        digits = r'[0-9]{1,15}\Z' if base == 10 else r'[0-9A-Fa-f]{1,15}\Z'
        if re.match(digits, text):
            return int(text, base)
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

    def _refused(self, message: str, status: int = 400) -> 'Refused':
        self.close_connection = True  # the start of the next request is unknown
        return Refused(message, status)

    def _fail(self, step: Any, received: Received) -> None:
        self.collector._note(received._replace(status=step))
        if step == 'hang':
            self.collector._stopping.wait(60)
            self.close_connection = True
        else:
            self._reset()

    def _answer_by(self, step: Any, received: Received) -> None:
        collector = self.collector
        if step in ('hang', 'reset'):
            return self._fail(step, received)
        if isinstance(step, int):
            step = Fault(status=step)
        answer = step if isinstance(step, Fault) else Fault()
        events: List[Any] = []
        why = ''
        if 200 <= answer.status < 300:
            answer, events, why = self._accept(answer, received)
        status = step if step == 'reset-after' else answer.status
        collector._note(received._replace(status=status), events, why)
        delay = answer.delay + collector.latency
        if delay and collector._stopping.wait(delay):
            self.close_connection = True
            return
        if step == 'reset-after':
            return self._reset()
        self._write(answer)

    def _accept(
        self, scripted: Fault, received: Received
    ) -> Tuple[Fault, List[Any], str]:
        """Return the answer to a request, its accepted events, and why it is refused.

        :param scripted: an answer that replaces ours if the events are accepted
        """
        why = ''
        try:
            answer, events = self._route(received)
        except Exception as error:  # on_event or out may raise anything
            if not isinstance(error, Refused):
                error = Refused('%s: %s' % (type(error).__name__, error), 500)
            answer, events, why = error.answer, [], error.why
        if answer.status != 200:
            scripted = scripted._replace(status=answer.status, body=b'')
        if scripted.body:
            return scripted, events, why
        headers = dict(answer.headers, **scripted.headers)
        return scripted._replace(headers=headers, body=answer.body), events, why

    def _route(self, received: Received) -> Tuple[Fault, List[Any]]:
        if received.path.endswith('/token'):
            return self.collector._issue_token(received), []
        match = _PATH.search(received.path)
        if match is None or match.group(1) not in ('batch', *REQUIRED):
            raise Refused('no such path', 404)
        events = self.collector._check(received, match.group(1))
        return answer_of(200, {'success': True}), events

    def do_OPTIONS(self) -> None:
        """Answer the preflight request of a browser (CORS)."""
        try:
            self._read_body()
        except Refused as refused:
            return self._write(refused.answer)
        allowed = self.headers.get('Access-Control-Request-Headers', '')
        headers = {'Access-Control-Allow-Methods': 'POST, OPTIONS'}
        if allowed:
            headers['Access-Control-Allow-Headers'] = allowed
        if 'Access-Control-Request-Private-Network' in self.headers:
            # Chrome asks so for a page that is not on this machine.
            headers['Access-Control-Allow-Private-Network'] = 'true'
        self._write(Fault(204, headers))

    def _write(self, answer: Fault) -> None:
        self.send_response_only(answer.status)
        headers = {'Server': self.version_string(), 'Date': self.date_time_string()}
        if 'Origin' in self.headers and self.command in ('POST', 'OPTIONS'):
            headers['Access-Control-Allow-Origin'] = '*'
        headers.update(answer.headers)
        for name, value in headers.items():
            self.send_header(name, value)
        if answer.status == 204:  # must have neither a body nor a length
            answer = answer._replace(body=b'')
        else:
            self.send_header('Content-Length', str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()

    def _reset(self) -> None:
        # With a linger time of 0, close() sends RST instead of FIN.
        linger = struct.pack('ii', 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        # rfile keeps the socket open: only a detached descriptor is closed immediately.
        socket.socket(fileno=self.connection.detach()).close()


def _unpacked(data: bytes, encoding: str) -> bytes:
    """Decompress a body; raise `Refused` if that fails."""
    encoding = encoding.strip().lower()
    if encoding in ('', 'identity'):
        return data
    if encoding not in ('gzip', 'x-gzip'):
        raise Refused('Content-Encoding must be gzip or identity', 415)
    raw = b''
    while data or not raw:  # gzip data may have several members
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            raw += unpacker.decompress(data, _KEEP_LIMIT + 1 - len(raw))
        except zlib.error:
            raise Refused('the body is not gzip')
        if len(raw) > _KEEP_LIMIT:
            raise Refused(_TOO_LARGE, 413)
        if not unpacker.eof:
            raise Refused('the gzip of the body is cut short')
        data = unpacker.unused_data
    return raw


def _parsed(raw: bytes) -> Any:
    """Return a body, read as JSON; None if it is not JSON."""
    try:
        return read_json(raw.decode('utf-8'))
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> Any:
    raise ValueError('%s is not JSON' % name)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError('%s is too large for a number' % text[:60])
    return number


# Reads a text as JSON, or raises ValueError. Python reads NaN, Infinity and 1e999 as well, and
# would write them so that others cannot.
read_json = json.JSONDecoder(
    parse_float=_finite, parse_constant=_refuse_constant
).decode
