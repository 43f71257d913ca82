"""One exchange with a server: posts, and reads the answer within bounds.

The status decides what an answer means. Its body may help to explain an error, and holds
the token of a token server; nothing in it can raise, take memory, or keep us waiting.
"""

import io
import json
import re
from typing import Any, List, Mapping, Optional, Tuple

from hightouch.htevents._process import transport
from hightouch.htevents._process.credentials import (
    basic,
    mask,
    secrets_of,
    split_credentials,
)
from hightouch.htevents._process.interruption import is_interruption, raise_interruption
from hightouch.htevents._process.proxies import all_proxies, proxies_for
from hightouch.htevents._process.waiting import Deadline, Timeout, bounded
from hightouch.htevents.version import NAME, VERSION

# Bytes of a body that are read, before and after it is decompressed.
BODY_LIMIT = 64 << 10

# Of every request. It says what we can decompress, because requests says more where it
# finds the packages.
HEADERS: Mapping[str, str] = {
    'User-Agent': '%s/%s' % (NAME, VERSION),
    'Accept-Encoding': 'gzip, deflate',
}

# Seconds that the body of a success may take whose sender needs nothing of it.
UNNEEDED_BODY_WAIT = 0.5

_NUMBER = re.compile(r'[0-9]+(\.[0-9]+)?\Z')

# The three forms that HTTP knows: today's, that of RFC 850, and that of C's asctime.
_DATE = re.compile(
    r'([A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT'
    r'|[A-Z][a-z]+, [0-9]{2}-[A-Z][a-z]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT'
    r'|[A-Z][a-z]{2} [A-Z][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2} [0-9]{4})\Z'
)


class Answer:
    """What a server said.

    :ivar response: the ``requests.Response``
    :ivar status: HTTP status
    :ivar body: the beginning of its body, decompressed
    :ivar is_whole: whether that is all of it
    :ivar payload: the body, read as JSON; None if it is none
    """

    def __init__(self, response: Any, body: Optional[bytes], is_whole: bool) -> None:
        self.response = response
        self.status = int(response.status_code)
        self.body = body or b''
        self.is_whole = is_whole
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
        """Return a header; '' when there is none."""
        return _header(self.response, name)

    def time(self, default: float) -> float:
        """Return the time by the server's clock, in seconds since the epoch."""
        moment = parse_http_date(self.header('Date'))
        return default if moment is None else moment

    def retry_after(self, now: float) -> Optional[float]:
        """Return the seconds that the server asks us to wait; None if it does not say.

        :param now: the time by our clock, for a server that tells nothing of its own
        """
        return parse_retry_after(self.header('Retry-After'), self.time(now))


def post(
    session: Any,
    url: str,
    data: Any,
    headers: Mapping[str, str],
    token: Optional[str],
    timeout: Optional[Timeout],
    proxies: Optional[Mapping[str, Optional[str]]],
    needs_body: bool = False,
) -> Answer:
    """Post ``data``; raises when no answer comes.

    :param session: a ``requests.Session`` of the user's own; None: the process's
    :param token: of OAuth, if the server needs one
    :param timeout: seconds for the connection and for each wait for the answer's headers,
        or a pair of them; its body may take that long as well, as a whole
    :param needs_body: whether a success is worth nothing without its body
    """
    answers: List[Answer] = []
    place, credentials = split_credentials(url)

    def note(response: Any, *args: Any, **kwargs: Any) -> None:
        # Before any other hook, and what requests does with redirects: both may read a
        # body without bounds, and raise.
        answers.append(_read(response, timeout, needs_body))

    with transport.Lease(session) as opened:
        try:
            response = opened.post(
                place,
                data=data,
                headers=dict(headers),
                auth=_authentication(token, opened, credentials),
                timeout=bounded(timeout),
                proxies=proxies_for(place, opened, proxies),
                # A redirect would carry the write key to where nobody meant it to go.
                allow_redirects=False,
                stream=True,
                hooks={'response': [note] + _hooks(opened)},
            )
            if not (answers and answers[-1].response is response):
                note(response)  # a stand-in, or of a hook of the user's own
        except BaseException as error:
            if is_interruption(error) or not isinstance(error, Exception):
                transport.forget(opened)  # any lock in there may be held
            raise_interruption(error, wrapped=True)
            if not (answers and isinstance(error, Exception)):
                mask(error, secrets_of([url, *all_proxies(opened, proxies)]))
                raise  # else a hook has raised: for the status, say
        return answers[-1]


def _hooks(session: Any) -> List[Any]:
    """Return the hooks of a session: requests forgets them for those of a request."""
    hooks = getattr(session, 'hooks', None)
    found = hooks.get('response') if isinstance(hooks, dict) else None
    return [found] if callable(found) else list(found or ())


# -- the answer ----------------------------------------------------------------------


def _read(response: Any, timeout: Optional[Timeout], needs_body: bool) -> Answer:
    body = getattr(response, '_content', None)
    if body is False and response.raw is not None:  # of requests, and not read yet
        limit = timeout[1] if isinstance(timeout, tuple) else timeout
        body, is_whole = _received(response, limit, needs_body)
        body = _decompressed(body, _header(response, 'Content-Encoding'))
        # For those who get the response.
        response._content, response._content_consumed = body, True
        return Answer(response, body, is_whole)
    if not isinstance(body, bytes):
        body = getattr(response, 'content', None)
    body = body[:BODY_LIMIT] if isinstance(body, bytes) else None
    return Answer(response, body, True)


def _received(
    response: Any, limit: Optional[float], needs_body: bool
) -> Tuple[bytes, bool]:
    """Read a body as far as we want it, and say whether that is all of it.

    The connection ends if it is not.
    """
    raw = response.raw
    stream = getattr(raw, '_fp', raw)  # of http.client, inside that of urllib3
    pieces: List[bytes] = []
    whole = reusable = False
    bound = None
    try:
        bound = _bind(stream, Deadline(bounded(limit)))
        reusable = not _skip_informational(response, stream)
        if 200 <= response.status_code < 300 and not needs_body and bound is not None:
            bound.end_within(UNNEEDED_BODY_WAIT)
        whole = _read_pieces(stream, pieces)
    finally:
        _finish(raw, stream, whole and reusable, bound, limit)
    return b''.join(pieces), whole


def _finish(
    raw: Any,
    stream: Any,
    reusable: bool,
    bound: Optional['_Bounded'],
    limit: Optional[float],
) -> None:
    """Give the connection back: as it was, or else closed, to be opened again."""
    try:
        stream.close()
        connection = getattr(raw, '_connection', None)
        if not reusable and connection is not None:
            connection.close()
        elif bound is not None and bound.socket.fileno() >= 0:
            bound.socket.settimeout(limit)
        raw.release_conn()
    except Exception as error:
        raise_interruption(error)  # else a stand-in, which lacks something


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
        # It is cut short, or not what HTTP allows: the status is what counts.
        raise_interruption(error, wrapped=True)
    return False


def _bind(stream: Any, deadline: Deadline) -> Optional['_Bounded']:
    """Have all that is read from a connection arrive in time, however slowly it drips."""
    # Of http.client's reader and its socket. A stand-in has none, and does not wait.
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
        self._file = file
        self._deadline = deadline

    def end_within(self, seconds: float) -> None:
        if self._deadline.leaves(seconds):
            self._deadline = Deadline(seconds)

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
        'deflate': [zlib.MAX_WBITS, -zlib.MAX_WBITS],  # some servers leave its head out
    }
    for window in windows.get(encoding.lower(), []):
        try:
            return zlib.decompressobj(window).decompress(body, BODY_LIMIT)
        except zlib.error:
            pass
    return body  # it is not compressed, whatever is said of it


def _header(response: Any, name: str) -> str:
    headers = getattr(response, 'headers', None)
    value = headers.get(name) if headers else None
    return value.strip(' \t') if isinstance(value, str) else ''


# -- headers -------------------------------------------------------------------------


def parse_retry_after(value: str, now: float) -> Optional[float]:
    """Read a Retry-After header: seconds, or an HTTP date; None if it is neither.

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
    # Here, because few answers need it; and requests has imported both already.
    import calendar
    from datetime import datetime
    from email.utils import parsedate

    try:
        date = parsedate(value)
        return date and calendar.timegm(datetime(*date[:6]).timetuple())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


# -- credentials ---------------------------------------------------------------------


def _authentication(token: Optional[str], session: Any, credentials: str) -> Any:
    """Return the ``auth`` of a request: it keeps ~/.netrc out.

    Without one, requests looks the host up there and replaces our header. A token comes
    first, then the ``auth`` of a user's own session, then the credentials of the URL.
    """
    if token is not None:
        header = 'Bearer ' + token
    elif getattr(session, 'auth', None):
        return None
    else:
        header = basic(credentials)

    def apply(prepared: Any) -> Any:
        if header:
            prepared.headers['Authorization'] = header
        return prepared

    return apply
