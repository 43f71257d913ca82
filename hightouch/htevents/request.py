"""One request: build it, send it, read the answer. No queue, and no retry."""

import json
import logging
import re
import time
from datetime import date, datetime
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence

from hightouch.htevents._process.answers import ENCODINGS, Answer
from hightouch.htevents._process.credentials import bare as bare
from hightouch.htevents._process.credentials import masked, secrets_of
from hightouch.htevents._process.discretion import discreet
from hightouch.htevents._process.logs import log, printable
from hightouch.htevents._process.proxies import all_proxies
from hightouch.htevents._process.proxies import normalize_proxies as normalize_proxies
from hightouch.htevents._process.waiting import Deadline
from hightouch.htevents._queue.batch import Batch
from hightouch.htevents.encoding import encode
from hightouch.htevents.errors import APIError as APIError
from hightouch.htevents.errors import OauthError
from hightouch.htevents.settings import DefaultConfig, Timeout
from hightouch.htevents.stamps import iso_now
from hightouch.htevents.utils import remove_trailing_slash
from hightouch.htevents.version import NAME, VERSION

# Headers of every request. They name the encodings that we can decompress. requests would
# name more where it finds the packages.
HEADERS: Mapping[str, str] = {
    'User-Agent': '%s/%s' % (NAME, VERSION),
    'Accept-Encoding': ENCODINGS,
}

DEFAULT_HOST = 'https://us-east-1.hightouch-events.com'
PATH = '/v1/batch'

# zlib's fastest level. It compresses our JSON nearly as well as the others, for a fraction
# of the CPU time.
GZIP_LEVEL = 1

# Characters of an error body that go into an error's text.
MAX_ERROR_TEXT = 500


class DatetimeSerializer(json.JSONEncoder):
    """A JSON encoder that writes a date or datetime in ISO-8601."""

    def default(self, obj: Any) -> Any:
        if isinstance(obj, (date, datetime)):
            return obj.isoformat()
        return json.JSONEncoder.default(self, obj)


class Request(NamedTuple):
    """What goes to the server, built without touching the network."""

    url: str
    headers: Dict[str, str]
    data: bytes

    def __repr__(self) -> str:
        return '<Request of %d bytes to %s>' % (len(self.data), bare(self.url))


@discreet
def post(
    write_key: str,
    host: Optional[str] = None,
    gzip: bool = DefaultConfig.gzip,
    timeout: Optional[Timeout] = DefaultConfig.timeout,
    proxies: Any = None,
    oauth_manager: Any = None,
    *,
    session: Any = None,
    **kwargs: Any,
) -> Any:
    """Send ``kwargs`` as the body, with ``writeKey`` and ``sentAt``.

    :param host: base URL; None is the default one
    :param timeout: seconds for the connection and between bytes of the answer, or a pair
        of them; a token that has to be requested counts; None: no bound
    :param proxies: see `normalize_proxies`
    :param oauth_manager: has ``get_token()`` and ``clear_token()``; None: no OAuth
    :param session: the ``requests.Session`` to use; None: the shared one, which is closed
        afterwards unless a client uses it
    :returns: the ``requests.Response``
    :raises APIError: on an answer that is not 2xx
    :raises requests.RequestException: without an answer
    """
    batch = kwargs.get('batch')
    if isinstance(batch, Batch) and len(kwargs) == 1:
        body = join_batch(batch.bodies, write_key)
    else:
        body = encode(dict(kwargs, sentAt=iso_now(), writeKey=write_key))[0]
    return send(body, host, gzip, timeout, proxies, oauth_manager, session, write_key)


def join_batch(bodies: Sequence[bytes], write_key: str) -> bytes:
    """Join encoded messages into a body, without encoding them again."""
    tail = '],"sentAt":%s,"writeKey":%s}' % (
        json.dumps(iso_now()),
        json.dumps(write_key),
    )
    return b''.join((b'{"batch":[', b','.join(bodies), tail.encode('utf-8')))


def send(
    body: bytes,
    host: Optional[str] = None,
    gzip: bool = DefaultConfig.gzip,
    timeout: Optional[Timeout] = DefaultConfig.timeout,
    proxies: Any = None,
    oauth_manager: Any = None,
    session: Any = None,
    write_key: str = '',
) -> Any:
    """Send a body that is JSON already; result and errors as `post`.

    :param write_key: masked, should an answer repeat it
    """
    from hightouch.htevents._process import transport  # it imports requests

    token = None
    if oauth_manager is not None:
        deadline = Deadline(timeout)
        token = _token_of(oauth_manager, timeout)
        timeout = deadline.bounded(timeout)
    request = build(body, host, gzip)
    proxies = normalize_proxies(proxies) if proxies else None
    is_logged = log.is_enabled_for(logging.DEBUG)
    if is_logged:
        log.debug('sending %d bytes to %s', len(request.data), bare(request.url))
    answer = transport.post(
        session,
        request.url,
        request.data,
        request.headers,
        token,
        timeout,
        proxies,
    )
    if is_logged:
        log.debug('answer: HTTP %d', answer.status)
    if 200 <= answer.status < 300:
        return answer.response
    secrets = [secret for secret in (write_key, token) if secret]
    urls = [request.url, *all_proxies(session, proxies)]
    error = failure(answer, secrets + secrets_of(urls))
    if error.status == 401 and oauth_manager is not None:
        _drop_token(oauth_manager, token)
        error.token_refused = True
    raise error


def _token_of(oauth_manager: Any, timeout: Optional[Timeout]) -> str:
    # Our manager makes no retries then: the retries of the request count.
    get_within = getattr(type(oauth_manager), 'get_token_within', None)
    if get_within is None:
        token = oauth_manager.get_token()
    else:
        token = get_within(oauth_manager, timeout)
    if not is_token(token):
        raise OauthError(
            0,
            'invalid_token',
            'oauth_manager: expected get_token() to return a str of visible ASCII',
        )
    return str(token)


def build(body: bytes, host: Optional[str], gzip: bool) -> Request:
    """Return URL, headers and data of the request for a body."""
    headers = dict(HEADERS, **{'Content-Type': 'application/json'})
    if gzip:
        headers['Content-Encoding'] = 'gzip'
        body = _compressed(body)
    base = remove_trailing_slash((host or DEFAULT_HOST).strip())
    return Request(base + PATH, headers, body)


def _compressed(body: bytes) -> bytes:
    import zlib  # there already: requests needs it

    # What zlib calls the largest window, in the format of gzip.
    packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def is_token(value: Any) -> bool:
    """Whether a header can carry it. For other values, an error would quote the token."""
    return isinstance(value, str) and re.match(r'[!-~]+\Z', value) is not None


def failure(answer: Answer, secrets: Sequence[str] = ()) -> APIError:
    """Return the error that an answer is.

    :param secrets: masked in the error's text, if the answer repeats them
    """
    text = answer.body[: 4 * MAX_ERROR_TEXT].decode('utf-8', 'replace')
    return APIError(
        answer.status,
        shortened(answer.fields.get('code', answer.reason), secrets),
        shortened(answer.fields.get('message', text), secrets),
        answer.retry_after(time.time()),
    )


def shortened(value: Any, secrets: Sequence[str] = ()) -> str:
    """Return a text from a server on one line, short, and without our secrets."""
    text = masked(value if isinstance(value, str) else json.dumps(value), secrets)
    return printable(' '.join(text.split()), MAX_ERROR_TEXT)


def _drop_token(oauth_manager: Any, token: Optional[str]) -> None:
    # Several threads may be told that an old token is refused, when one of them has a new
    # token already. So ours clears only the refused token. The manager of an application
    # needs to have only get_token and clear_token.
    refuse = getattr(type(oauth_manager), 'refuse_token', None)
    if refuse is None:
        oauth_manager.clear_token()
    else:
        refuse(oauth_manager, token)
