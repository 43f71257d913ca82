"""Access tokens: signs a JWT, trades it for a token, keeps that until half its life.

There is no thread here: who needs a token gets it, and when several do, one asks.
"""

import threading
import time
from typing import Any, Callable, Dict, Optional

from hightouch.htevents import fork, sessions
from hightouch.htevents.concurrency import bounded, budget
from hightouch.htevents.errors import APIError, OauthError, is_retryable
from hightouch.htevents.logs import log
from hightouch.htevents.request import (
    USER_AGENT,
    authentication,
    bare,
    is_token,
    normalize_proxies,
    shortened,
)
from hightouch.htevents.retry import parse_http_date, parse_retry_after, wait_time
from hightouch.htevents.settings import DefaultConfig, Timeout
from hightouch.htevents.stamps import new_message_id
from hightouch.htevents.utils import remove_trailing_slash

ASSERTION_TYPE = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer'

# Seconds. A JWT is valid from a little before now, for clocks that disagree a little.
ISSUED_AGO = 5
VALID_FOR = 55

# Seconds that a token without a usable ``expires_in`` is kept.
DEFAULT_LIFE = 3600.0

# Seconds that one wait for the token server may take, whatever it asks for: events wait
# meanwhile, and the consumer's own retries come on top.
MAX_WAIT = 60.0

# Seconds before a renewal is tried again while the old token is still good.
RENEW_PAUSE = 10.0

# X-RateLimit-Reset by its size: milliseconds or seconds since 1970, else from now.
_MILLISECONDS_FROM = 1e11
_SECONDS_FROM = 1e8

_SKEW_MESSAGES = ('token is expired', 'token used before issued')


class OauthManager:
    """Gives tokens for one OAuth client. Safe to use from several threads.

    :param client_id: the OAuth client
    :param client_key: its private RSA key, PEM
    :param key_id: which of its keys this is
    :param auth_server: base URL of the token server
    :param scope: what the token is for
    :param timeout: seconds for the connection and between bytes of the answer
    :param max_retries: tries after the first, within one `get_token`; 0: none
    :param proxies: as in ``request.post``
    :param session: the ``requests.Session`` to use; None: the process's
    :param sleep: how to wait, for tests
    :param clock: seconds since the epoch, for tests
    """

    def __init__(
        self,
        client_id: Any,
        client_key: Any,
        key_id: Any,
        auth_server: str = DefaultConfig.oauth_auth_server,
        scope: str = DefaultConfig.oauth_scope,
        timeout: Optional[Timeout] = DefaultConfig.timeout,
        max_retries: int = 3,
        *,
        proxies: Any = None,
        session: Any = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        import jwt  # noqa: F401 - here, and not on a consumer: see sessions.preload

        self.client_id = _stripped(client_id)
        self.key_id = _stripped(key_id)
        self.auth_server = remove_trailing_slash(
            _stripped(auth_server or DefaultConfig.oauth_auth_server)
        )
        self.scope = scope or DefaultConfig.oauth_scope
        self.timeout = timeout
        self.max_retries = max_retries
        self._client_key = client_key
        self._proxies = normalize_proxies(proxies)
        self._session = session
        self._sleep = sleep
        self._clock = clock
        # One immutable value each, replaced as a whole: read without the lock.
        self._token: Optional[_Token] = None
        self._skew = 0.0
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # Held while a token is asked for, I/O included: for those who wait, the answer
        # is what they wait for, and one request serves all. Guards _token and _skew.
        self._lock = threading.Lock()

    def get_token(self) -> str:
        """Give a token that is valid now.

        Blocks while one is asked for, at most for ``max_retries`` waits of a minute; for
        a flush or an exit no longer than that may take.

        :raises APIError: when the server refuses, or does not give one
        :raises requests.RequestException: when there is no answer
        :raises TimeoutError: when that was too short for an answer
        """
        token = self._token
        now = self._clock()
        if token is not None and now < token.renew_at:
            return token.text
        if token is not None and now < token.expires_at:
            return self._renewed(token)
        left = bounded(None)
        if not self._lock.acquire(timeout=-1 if left is None else left):
            raise TimeoutError('No OAuth token in time: one is being asked for.')
        try:
            token = self._token
            if token is None or self._clock() >= token.expires_at:
                token = self._token = self._ask(self.max_retries)
            return token.text
        finally:
            self._lock.release()

    def _renewed(self, token: '_Token') -> str:
        # The old one is good for a while: one thread renews, the others do not wait,
        # and a server that is down costs nothing yet.
        if not self._lock.acquire(False):
            return token.text
        problem = ''
        try:
            if self._token is token:
                self._token = self._ask(0)
        except Exception as error:
            problem = type(error).__name__
            token.renew_at = self._clock() + RENEW_PAUSE
        finally:
            self._lock.release()
        if problem:  # said without the lock: a log handler may deliver
            log.warning(
                'A token could not be renewed (%s); the old one is used on', problem
            )
        return (self._token or token).text

    def clear_token(self) -> None:
        """Forget the token; the next `get_token` asks for a new one."""
        self._token = None

    def refuse_token(self, token: Optional[str]) -> None:
        """Forget ``token``, unless it was replaced meanwhile."""
        current = self._token
        if current is not None and current.text == token:
            self.clear_token()

    # -- asking ----------------------------------------------------------------------

    def _ask(self, retries: int) -> '_Token':
        attempt = 0
        while True:
            try:
                return self._ask_once()
            except _Wait as wait:
                delay = wait.seconds
                if attempt >= retries:
                    raise wait.error
                if not budget().deadline.leaves(delay):
                    raise TimeoutError('No OAuth token in time: the clock is off.')
            except Exception as failure:
                delay = wait_time(attempt, getattr(failure, 'retry_after', None))
                delay = min(delay, MAX_WAIT)
                on_time = budget().deadline.leaves(delay)
                if attempt >= retries or not (on_time and is_retryable(failure)):
                    raise
            attempt += 1
            self._sleep(delay)

    def _ask_once(self) -> '_Token':
        form = {
            'grant_type': 'client_credentials',
            'client_assertion_type': ASSERTION_TYPE,
            'client_assertion': self._sign(),
            'scope': self.scope,
        }
        url = self.auth_server + '/token'
        with sessions.Lease(self._session) as session:
            response = session.post(
                url,
                data=form,  # requests encodes it as a form
                headers={'User-Agent': USER_AGENT},
                auth=authentication(None, session, url),
                timeout=bounded(self.timeout),
                proxies=self._proxies,
                allow_redirects=False,
            )
        return self._read(response, form['client_assertion'])

    def _sign(self) -> str:
        now = int(self._clock() + self._skew)
        claims = {
            'iss': self.client_id,
            'sub': self.client_id,
            'aud': bare(self.auth_server),
            'iat': now - ISSUED_AGO,
            'exp': now + VALID_FOR,
            'jti': new_message_id(),
        }
        import jwt

        try:
            signed: Any = jwt.encode(
                claims,
                self._client_key,
                algorithm='RS256',
                headers={'kid': self.key_id},
            )
        except Exception as error:
            # Its text may quote the key, and so may its context.
            raise OauthError(
                0,
                'invalid_key',
                'oauth_client_key: expected an RSA private key in PEM, got one that '
                'cannot be used (%s)' % type(error).__name__,
            ) from None
        return signed.decode('ascii') if isinstance(signed, bytes) else str(signed)

    def _read(self, response: Any, assertion: str) -> '_Token':
        status = int(response.status_code)
        skewed = self._note_skew(response.headers.get('Date'))
        try:
            payload = response.json()
        except Exception:  # each version of requests has an error of its own for this
            payload = None
        fields: Dict[str, Any] = payload if isinstance(payload, dict) else {}
        if 200 <= status < 300:
            return self._read_token(status, fields)
        code = shortened(fields.get('error', response.reason or ''), [assertion])
        text = shortened(fields.get('error_description') or '', [assertion])
        text = text or 'The token server refused'
        error = APIError(
            status, code, text, parse_retry_after(response.headers.get('Retry-After'))
        )
        if status == 429:
            reset = response.headers.get('X-RateLimit-Reset')
            delay = parse_reset(reset, self._clock())
            if delay is not None:
                error.retry_after = delay
        if error.retryable:
            raise error
        if (
            status == 400
            and code == 'invalid_request'
            and any(each in text.lower() for each in _SKEW_MESSAGES)
        ):
            # Our clock is off. If the answer told how much, the next try is right.
            final = OauthError(status, code, text)
            raise _Wait(final, 0.0 if skewed else 1.0)
        raise OauthError(status, code, text)

    def _read_token(self, status: int, fields: Dict[str, Any]) -> '_Token':
        text = fields.get('access_token')
        if not is_token(text):
            raise OauthError(
                status,
                'invalid_response',
                'expected an answer with an access_token (visible ASCII), got one without',
            )
        now = self._clock()
        return _Token(str(text), now, _life(fields.get('expires_in')))

    def _note_skew(self, value: Optional[str]) -> bool:
        server = parse_http_date(value) if value else None
        if server is None:
            return False
        self._skew = server - self._clock()
        return True

    def __repr__(self) -> str:
        return '<OauthManager client_id=%r auth_server=%r>' % (
            self.client_id,
            bare(self.auth_server),
        )


def _stripped(value: Any) -> str:
    """Return the text of an id or a URL, without the white space around it."""
    if isinstance(value, bytes):
        value = value.decode('utf-8', 'replace')
    return str(value).strip()


class _Token:
    """A token and its times, in seconds since the epoch."""

    __slots__ = ('text', 'renew_at', 'expires_at')

    def __init__(self, text: str, now: float, life: float) -> None:
        self.text = text
        self.renew_at = now + life / 2
        self.expires_at = now + life


class _Wait(Exception):
    """Not an answer yet: try again after some seconds, else ``error`` is it."""

    def __init__(self, error: APIError, seconds: float) -> None:
        super().__init__(error, seconds)
        self.error = error
        self.seconds = seconds


def _life(value: Any) -> float:
    try:
        life = float(value)
    except (TypeError, ValueError, OverflowError):
        return DEFAULT_LIFE
    return life if 0 < life < float('inf') else DEFAULT_LIFE


def parse_reset(value: Optional[str], now: float) -> Optional[float]:
    """Read X-RateLimit-Reset: seconds from now, from 0 to ``MAX_WAIT``; None if unusable.

    By its size it is milliseconds since 1970, seconds since 1970, or seconds from now.
    """
    try:
        number = float(value or '')
    except ValueError:
        return None
    if number != number:
        return None
    if number >= _MILLISECONDS_FROM:
        number = number / 1000 - now
    elif number >= _SECONDS_FROM:
        number -= now
    return min(max(0.0, number), MAX_WAIT)
