"""One exchange with a server: posts, and reads the answer within bounds.

The status decides what an answer means. Its body may help to explain an error, and holds
the token of a token server; nothing in it can raise, take memory, or keep us waiting.
"""

import io
import json
from typing import Any, Dict, List, Mapping, Optional

from hightouch.htevents import sessions
from hightouch.htevents.concurrency import Deadline, bounded
from hightouch.htevents.interruption import raise_interruption
from hightouch.htevents.retry import parse_http_date, parse_retry_after
from hightouch.htevents.settings import Timeout
from hightouch.htevents.version import NAME, VERSION

# Bytes of a body that are read, before and after it is decompressed.
BODY_LIMIT = 64 << 10

# Of every request. It says what we can decompress, because requests says more where it
# finds the packages.
HEADERS = {
    'User-Agent': '%s/%s' % (NAME, VERSION),
    'Accept-Encoding': 'gzip, deflate',
}


class Answer:
    """What a server said.

    :ivar response: the ``requests.Response``
    :ivar status: HTTP status
    :ivar body: the beginning of its body, decompressed
    :ivar payload: the body, read as JSON; None if it is none
    """

    def __init__(self, response: Any, body: Optional[bytes]) -> None:
        self.response = response
        self.status = int(response.status_code)
        self.body = body or b''
        self.payload: Any = None
        try:
            # A stand-in for a response, of an application's test, may have no body.
            self.payload = response.json() if body is None else json.loads(body)
        except Exception as error:
            # Each version of requests and Python has an error of its own for this.
            raise_interruption(error)

    @property
    def reason(self) -> str:
        return str(getattr(self.response, 'reason', None) or '')

    @property
    def fields(self) -> Mapping[str, Any]:
        """The payload if it is an object, else an empty one."""
        return self.payload if isinstance(self.payload, dict) else {}

    def header(self, name: str) -> str:
        """Give a header; '' when there is none."""
        return _header(self.response, name)

    def time(self, default: float) -> float:
        """Give the time by the server's clock, in seconds since the epoch."""
        moment = parse_http_date(self.header('Date'))
        return default if moment is None else moment

    def retry_after(self, now: float) -> Optional[float]:
        """Give the seconds that the server asks us to wait; None if it does not say.

        :param now: the time by our clock, for a server that tells nothing of its own
        """
        return parse_retry_after(self.header('Retry-After'), self.time(now))


def post(
    session: Any,
    url: str,
    data: Any,
    headers: Dict[str, str],
    token: Optional[str],
    timeout: Optional[Timeout],
    proxies: Optional[Mapping[str, Optional[str]]],
) -> Answer:
    """Post ``data``; raises when no answer comes.

    :param session: a ``requests.Session`` of the user's own; None: the process's
    :param token: of OAuth, if the server needs one
    :param timeout: seconds for the connection and for each wait for the answer's headers,
        or a pair of them; its body may take that long as well, as a whole
    """
    with sessions.Lease(session) as opened:
        try:
            response = opened.post(
                url,
                data=data,
                headers=headers,
                auth=_authentication(token, opened, url),
                timeout=bounded(timeout),
                proxies=proxies,
                # A redirect would carry the write key to where nobody meant it to go.
                allow_redirects=False,
                stream=True,
            )
        except Exception as error:
            raise_interruption(error)
            # A hook of the user's own session raises for a status, say.
            response = getattr(error, 'response', None)
            if not isinstance(getattr(response, 'status_code', None), int):
                raise
        return _read(response, timeout)


# -- the answer ----------------------------------------------------------------------


def _read(response: Any, timeout: Optional[Timeout]) -> Answer:
    body = getattr(response, '_content', None)
    if body is False and response.raw is not None:  # of requests, and not read yet
        limit = timeout[1] if isinstance(timeout, tuple) else timeout
        body = _received(response, Deadline(bounded(limit)))
        body = _decompressed(body, _header(response, 'Content-Encoding'))
        # For those who get the response.
        response._content, response._content_consumed = body, True
    elif not isinstance(body, bytes):
        body = getattr(response, 'content', None)
    return Answer(response, body[:BODY_LIMIT] if isinstance(body, bytes) else None)


def _received(response: Any, deadline: Deadline) -> bytes:
    """Read a body as far as we want it; the connection ends if more could come."""
    raw = response.raw
    stream = getattr(raw, '_fp', raw)  # of http.client, inside that of urllib3
    pieces: List[bytes] = []
    whole = False
    try:
        with _bounded_stream(stream, deadline):
            reusable = not _skip_informational(response, stream)
            whole = _read_pieces(stream, pieces) and reusable
    finally:
        if whole:
            stream.close()
            getattr(raw, 'release_conn', _nothing)()
        else:
            # Old releases of urllib3 would use it again.
            connection = getattr(raw, '_connection', None)
            getattr(connection, 'close', _nothing)()
            response.close()
    return b''.join(pieces)


def _nothing() -> None:
    pass


def _skip_informational(response: Any, stream: Any) -> bool:
    """Wait for the final answer after a 1xx, such as 103; say whether there was one.

    http.client takes a 1xx for the answer, and the final one for that to the next request.
    """
    if not (100 <= response.status_code < 200 and hasattr(stream, 'begin')):
        return False
    while 100 <= stream.status < 200:
        stream.headers = None  # so that begin() reads another one
        stream.begin()
    response.status_code, response.reason = stream.status, stream.reason
    response.headers.clear()
    response.headers.update(stream.headers.items())
    return True


def _read_pieces(stream: Any, pieces: List[bytes]) -> bool:
    """Read at most ``BODY_LIMIT`` bytes; False when that was not all, or went wrong."""
    read = getattr(stream, 'read1', stream.read)
    left = BODY_LIMIT
    try:
        while left:
            piece = read(left)
            pieces.append(piece)
            left -= len(piece)
            missing = getattr(stream, 'length', None)
            if not piece or missing == 0:
                return not missing
    except Exception as error:
        # It is cut short, or not what HTTP allows: the status is what counts.
        raise_interruption(error)
    return False


class _bounded_stream:
    """Have all that is read from a connection arrive until a deadline, however slowly."""

    def __init__(self, stream: Any, deadline: Deadline) -> None:
        # Of http.client's reader and its socket; a stand-in has none, and does not wait.
        file = getattr(stream, 'fp', None)
        self._socket = getattr(getattr(file, 'raw', None), '_sock', None)
        if self._socket is not None and deadline.remaining() is not None:
            stream.fp = io.BufferedReader(_Bounded(file, self._socket, deadline))
        else:
            self._socket = None

    def __enter__(self) -> None:
        if self._socket is not None:
            self._timeout = self._socket.gettimeout()

    def __exit__(self, *exc_info: object) -> None:
        if self._socket is not None and self._socket.fileno() >= 0:
            self._socket.settimeout(self._timeout)  # for the next request


class _Bounded(io.RawIOBase):
    """The bytes of a buffered reader, each wait for which ends with the deadline."""

    def __init__(self, file: Any, socket: Any, deadline: Deadline) -> None:
        self._file = file
        self._socket = socket
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline.remaining()
        if not left:
            raise TimeoutError('The answer took too long')
        self._socket.settimeout(left)
        return int(self._file.readinto1(buffer))

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressed(body: bytes, encoding: str) -> bytes:
    import zlib  # there already: requests needs it

    windows = {
        'gzip': [32 + zlib.MAX_WBITS],
        'deflate': [zlib.MAX_WBITS, -zlib.MAX_WBITS],  # some servers leave its head out
    }
    for window in windows.get(encoding.lower(), []):
        try:
            return zlib.decompressobj(window).decompress(body, BODY_LIMIT)
        except zlib.error:
            pass
    return body  # it is not compressed, whatever is said of it


def _header(response: Any, name: str) -> str:
    value = getattr(response, 'headers', {}).get(name)
    return value.strip(' \t') if isinstance(value, str) else ''


# -- credentials ---------------------------------------------------------------------


def _authentication(token: Optional[str], session: Any, url: str) -> Any:
    """Return the ``auth`` of a request: it keeps ~/.netrc out.

    Without one, requests looks the host up there and replaces our header. A token comes
    first, then the ``auth`` of a user's own session, then the credentials of the URL.
    """
    if token is not None:
        header = 'Bearer ' + token
    elif getattr(session, 'auth', None):
        return None
    else:
        header = _basic(url)

    def apply(prepared: Any) -> Any:
        if header:
            prepared.headers['Authorization'] = header
        return prepared

    return apply


def _basic(url: str) -> str:
    credentials, _, _ = url.partition('//')[2].partition('/')[0].rpartition('@')
    if not credentials:
        return ''
    # Here, because few URLs have any; and requests has imported both already.
    from base64 import b64encode
    from urllib.parse import unquote_to_bytes

    user, _, password = (unquote_to_bytes(each) for each in credentials.partition(':'))
    return 'Basic ' + b64encode(user + b':' + password).decode('ascii')
