"""Reads the answer of a server within bounds.

The status decides what an answer means. Its body may help to explain an error, and holds
the token of a token server. Nothing in a body can raise, take memory, or keep us waiting.
"""

import io
import json
import re
from typing import Any, List, Mapping, Optional, Tuple

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.waiting import Deadline, Timeout

# Bytes of a body that are read, before and after it is decompressed.
BODY_LIMIT = 64 << 10

# The encodings that `read` can decompress, for the header Accept-Encoding.
ENCODINGS = 'gzip, deflate'

_NUMBER = re.compile(r'[0-9]+(\.[0-9]+)?\Z')

# The three forms of a date in HTTP: the current one, RFC 850, and C's asctime.
_DATE = re.compile(
    r'([A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT'
    r'|[A-Z][a-z]+, [0-9]{2}-[A-Z][a-z]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT'
    r'|[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4})\Z'
)


class Answer:
    """The answer of a server.

    :ivar response: the ``requests.Response``
    :ivar status: HTTP status
    :ivar body: the beginning of its body, decompressed
    :ivar is_whole: whether ``body`` is all of it
    :ivar payload: the body, read as JSON; None if it is not JSON
    """

    def __init__(self, response: Any, body: Optional[bytes], is_whole: bool) -> None:
        self.response = response
        self.status = response.status_code
        if not isinstance(self.status, int):
            raise TypeError('expected a response, got a mock')
        self.body = body or b''
        self.is_whole = is_whole
        self.payload: Any = None
        try:
            # The mock response of an application's test may have no body.
            self.payload = response.json() if body is None else json.loads(body)
        except Exception as error:
            # The class of the error depends on the version of requests and Python.
            raise_interruption(error)

    @property
    def reason(self) -> str:
        return str(getattr(self.response, 'reason', None) or '')

    @property
    def fields(self) -> Mapping[str, Any]:
        """The payload if it is an object, otherwise an empty one."""
        return self.payload if isinstance(self.payload, dict) else {}

    def header(self, name: str) -> str:
        """Return a header; '' when the answer lacks it."""
        return _header(self.response, name)

    def time(self, default: float) -> float:
        """Return the time by the server's clock, in seconds since the epoch."""
        moment = parse_http_date(self.header('Date'))
        return default if moment is None else moment

    def retry_after(self, now: float) -> Optional[float]:
        """Return the seconds that the server asks us to wait; None if it does not ask.

        :param now: the time by our clock, for a server that does not tell its time
        """
        return parse_retry_after(self.header('Retry-After'), self.time(now))


# -- the body ------------------------------------------------------------------------


def read(response: Any, timeout: Optional[Timeout]) -> Answer:
    """Read a response, whose body was not read yet.

    :param timeout: seconds that the body may take as a whole, or a pair whose second part
        says so; None: no bound
    """
    body = getattr(response, '_content', None)
    if body is False and response.raw is not None:  # of requests, and not read yet
        body, is_whole = _received(response, Deadline(timeout))
        encoding = _header(response, 'Content-Encoding')
        if encoding:
            body = _decompressed(body, encoding)
        # For callers that get the response.
        response._content, response._content_consumed = body, True
        return Answer(response, body, is_whole)
    if not isinstance(body, bytes):
        body = getattr(response, 'content', None)
    body = body[:BODY_LIMIT] if isinstance(body, bytes) else None
    return Answer(response, body, True)


def _received(response: Any, deadline: Deadline) -> Tuple[bytes, bool]:
    """Read the beginning of a body; return it, and whether it is the whole body.

    The connection is closed if it is not.
    """
    raw = response.raw
    stream = getattr(raw, '_fp', raw)  # of http.client, inside the one of urllib3
    pieces: List[bytes] = []
    is_whole = False
    is_final = response.status_code >= 200
    bound = None
    try:
        bound = _bind(stream, deadline)
        if not is_final and hasattr(stream, 'begin'):
            _skip_informational(response, stream)
        is_whole = _read_pieces(stream, pieces)
    finally:
        _finish(raw, stream, bound, is_whole and is_final)
    return b''.join(pieces), is_whole


def _finish(
    raw: Any, stream: Any, bound: Optional['_Bounded'], is_reusable: bool
) -> None:
    """Return the connection to its pool. A connection that is not reusable is closed first."""
    try:
        stream.close()
        connection = getattr(raw, '_connection', None)
        if not is_reusable and connection is not None:
            connection.close()
        elif bound is not None and bound.socket.fileno() >= 0:
            bound.socket.settimeout(bound.timeout)
        raw.release_conn()
    except Exception as error:
        # Otherwise a test's stand-in, which lacks an attribute.
        raise_interruption(error)


def _skip_informational(response: Any, stream: Any) -> None:
    """Wait for the final answer after a 1xx, such as 103.

    http.client takes a 1xx for the answer, and would take the final one for the answer to
    the next request.
    """
    while 100 <= stream.status < 200:
        stream.headers = None  # begin() reads other ones then
        stream.begin()
    response.status_code, response.reason = stream.status, stream.reason
    response.headers.clear()
    response.headers.update(stream.headers.items())


def _read_pieces(stream: Any, pieces: List[bytes]) -> bool:
    """Read at most ``BODY_LIMIT`` bytes; False when that was not all, or went wrong."""
    left = BODY_LIMIT
    try:
        read = getattr(stream, 'read1', None) or stream.read
        while left > 0:
            piece = bytes(memoryview(read(left))[:left])  # http.client may give more
            pieces.append(piece)
            left -= len(piece)
            missing = getattr(stream, 'length', None)
            if not piece or missing == 0:
                return not missing
    except Exception as error:
        # The body is cut short, or violates HTTP. Only the status counts.
        raise_interruption(error, wrapped=True)
    return False


def _bind(stream: Any, deadline: Deadline) -> Optional['_Bounded']:
    """Let every read from a connection end with a deadline, however slowly bytes come."""
    # The reader of http.client and its socket. A mock has neither and does not wait.
    file = getattr(stream, 'fp', None)
    socket = getattr(getattr(file, 'raw', None), '_sock', None)
    if socket is None or not hasattr(file, 'readinto1'):
        return None
    bound = _Bounded(file, socket, deadline)
    stream.fp = io.BufferedReader(bound)
    return bound


class _Bounded(io.RawIOBase):
    """The bytes of a buffered reader, each wait for which ends with the deadline."""

    def __init__(self, file: Any, socket: Any, deadline: Deadline) -> None:
        self.socket = socket
        # Of the next request, too. The socket of pyOpenSSL could not tell.
        self.timeout = deadline.remaining()
        self._file = file
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline.remaining()
        if left == 0:
            raise TimeoutError('The answer took too long')
        self.socket.settimeout(left)
        return int(self._file.readinto1(buffer))

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressed(body: bytes, encoding: str) -> bytes:
    import zlib  # there already: requests needs it

    windows = {
        'gzip': [32 + zlib.MAX_WBITS],
        'deflate': [zlib.MAX_WBITS, -zlib.MAX_WBITS],  # some servers omit its header
    }
    for window in windows.get(encoding.lower(), []):
        try:
            return zlib.decompressobj(window).decompress(body, BODY_LIMIT)
        except zlib.error:
            pass
    return body  # it is not compressed, although its header says so


def _header(response: Any, name: str) -> str:
    headers = getattr(response, 'headers', None)
    value = headers.get(name) if headers else None
    return value.strip(' \t') if isinstance(value, str) else ''


# -- headers -------------------------------------------------------------------------


def parse_retry_after(value: str, now: float) -> Optional[float]:
    """Read a Retry-After header, seconds or an HTTP date; return None for anything else.

    :param now: seconds since the epoch: by the clock of the server, if it told
    :returns: seconds from now, never negative
    """
    seconds = parse_number(value)
    if seconds is not None:
        return seconds
    moment = parse_http_date(value)
    return None if moment is None else max(0.0, moment - now)


def parse_number(value: str) -> Optional[float]:
    """Read a whole or decimal number of plain digits; None if it is not one."""
    value = value.strip(' \t')
    return float(value) if _NUMBER.match(value) else None


def parse_http_date(value: str) -> Optional[int]:
    """Read an HTTP date: seconds since the epoch; None if it is not one."""
    if not _DATE.match(value.strip(' \t')):
        return None
    # Imported here, because few answers need them. requests has loaded both.
    import calendar
    from datetime import datetime
    from email.utils import parsedate

    try:
        date = parsedate(value)
        return date and calendar.timegm(datetime(*date[:6]).timetuple())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
