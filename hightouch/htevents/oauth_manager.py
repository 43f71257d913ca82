"""Access tokens: signs a JWT, trades it for a token, keeps that until half its life.

No thread runs here: a caller that needs a token asks for it, and others wait for the answer.
"""

import threading
import time
from typing import Any, Callable, Optional, Tuple

from hightouch.htevents._process import fork
from hightouch.htevents._process.answers import Answer, parse_number
from hightouch.htevents._process.credentials import bare, secrets_of, split_credentials
from hightouch.htevents._process.discretion import discreet
from hightouch.htevents._process.interruption import is_instance, raise_interruption
from hightouch.htevents._process.logs import log
from hightouch.htevents._process.proxies import all_proxies
from hightouch.htevents._process.waiting import Deadline, Timeout
from hightouch.htevents._queue.retry import MAX_RETRY_AFTER, Retries
from hightouch.htevents.errors import APIError, OauthError, ValidationError, name_of
from hightouch.htevents.private_key import read_private_key
from hightouch.htevents.request import (
    HEADERS,
    is_token,
    normalize_proxies,
    shortened,
)
from hightouch.htevents.settings import DefaultConfig
from hightouch.htevents.stamps import new_message_id
from hightouch.htevents.utils import remove_trailing_slash

ASSERTION_TYPE = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer'

# Seconds. A JWT is valid from a little before now, for clocks that disagree a little.
ISSUED_AGO = 5
VALID_FOR = 55

# Seconds that a token without a usable ``expires_in`` is kept.
DEFAULT_LIFE = 3600.0

# Seconds before a renewal is tried again while the old token is still good.
RENEW_PAUSE = 10.0

# X-RateLimit-Reset by its size: milliseconds or seconds since 1970, otherwise from now.
_MILLISECONDS_FROM = 1e11
_SECONDS_FROM = 1e8

# Seconds by which our clock may differ from the server's, and the server take our JWT.
_SAME_TIME = 2

_SKEW_MESSAGES = ('token is expired', 'token used before issued')


class OauthManager:
    """Returns tokens for one OAuth client. Safe to use from several threads.

    :param client_id: the OAuth client
    :param client_key: its private RSA key: see `read_private_key`
    :param key_id: which of its keys this is
    :param auth_server: base URL of the token server
    :param scope: the permissions of the token
    :param timeout: seconds for the connection and between bytes of the answer
    :param max_retries: tries after the first, within one `get_token`; 0: none. A delivery
        counts its own retries instead
    :param proxies: as in ``request.post``
    :param session: the ``requests.Session`` to use; None: the process's
    :param sleep: how to wait, for tests
    :param clock: seconds since the epoch, for tests
    :ivar problem: why no token can be had, as the code and the text of an error; or None
    """

    @discreet
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
        self.client_id = _stripped('oauth_client_id', client_id)
        self.key_id = _stripped('oauth_key_id', key_id)
        self.auth_server = remove_trailing_slash(
            _stripped(
                'oauth_auth_server', auth_server or DefaultConfig.oauth_auth_server
            )
        )
        self.scope = scope or DefaultConfig.oauth_scope
        self.timeout = timeout
        self.max_retries = max_retries
        self.problem: Optional[Tuple[str, str]] = None
        self._key: Any = None  # loaded by the first who signs
        self._load_key = self._tried(lambda: _prepare_key(client_key))
        self._proxies = normalize_proxies(proxies)
        self._session = session
        self._sleep = sleep
        self._clock = clock
        # Replaced as a whole: read without the lock.
        self._token: Optional[_Token] = None
        self._skew = 0.0
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # Held while a token is requested, I/O included: other threads need the same
        # answer, and one request serves all of them. Guards _token and _skew.
        # Re-entrant, because it knows its owner: see _release.
        self._lock: Any = threading.RLock()

    @discreet
    def get_token(self) -> str:
        """Return a token that is valid now.

        Blocks while one is asked for, with ``max_retries`` waits in between.

        :raises APIError: when the server refuses, or does not give one
        :raises requests.RequestException: without an answer
        """
        retries = Retries(self.max_retries)
        while True:
            try:
                return self._get_token(None)
            except Exception as error:
                raise_interruption(error)
                delay = retries.next_wait(error)
                if delay is None:
                    raise
            self._sleep(delay)

    @discreet
    def get_token_within(self, timeout: Optional[Timeout]) -> str:
        """Return a token that is valid now; ask the server at most once.

        For a delivery, which counts its own retries.

        :param timeout: of a request; also bounds the wait for another thread's request
        """
        if getattr(self.get_token, '__func__', None) is not _original_get_token:
            return self.get_token()  # a subclass or a test has its own
        return self._get_token(timeout)

    def _get_token(self, timeout: Optional[Timeout]) -> str:
        token = self._token
        now = self._clock()
        if token is not None and now < token.renew_at:
            return token.text
        deadline = Deadline(timeout)
        if token is not None and now < token.expires_at:
            return self._renewed(token, deadline)
        lock, left = self._lock, deadline.remaining()
        try:
            if not lock.acquire(timeout=-1 if left is None else left):
                raise TimeoutError('No OAuth token in time: one is being asked for.')
            token = self._token
            if token is None or self._clock() >= token.expires_at:
                token = self._token = self._ask(deadline)
            return token.text
        finally:
            _release(lock)

    def _renewed(self, token: '_Token', deadline: Deadline) -> str:
        # The old one is good for a while: one thread renews, the others do not wait,
        # and a server that is down costs nothing yet.
        lock, problem = self._lock, ''
        try:
            if lock.acquire(False) and self._token is token:
                self._token = self._ask(deadline)
        except Exception as error:
            raise_interruption(error)
            problem = name_of(type(error))
            advice = getattr(error, 'retry_after', None) or 0
            pause = max(RENEW_PAUSE, min(advice, MAX_RETRY_AFTER))
            token.renew_at = self._clock() + pause
        finally:
            _release(lock)
        if problem:  # said without the lock: a log handler may deliver
            log.warning(
                'A token could not be renewed (%s); the old one is used on', problem
            )
        return (self._token or token).text

    def is_held(self) -> bool:
        """Whether this thread asks for a token: a signal handler may want to know."""
        return bool(self._lock._is_owned())

    def clear_token(self) -> None:
        """Forget the token; the next `get_token` asks for a new one."""
        self._token = None

    def refuse_token(self, token: Optional[str]) -> None:
        """Forget ``token``, unless another one has replaced it."""
        current = self._token
        if current is not None and current.text == token:
            self.clear_token()

    # -- asking ----------------------------------------------------------------------

    def _ask(self, deadline: Deadline) -> '_Token':
        from urllib.parse import urlencode  # imported by requests

        from hightouch.htevents._process import transport

        form = {
            'grant_type': 'client_credentials',
            'client_assertion_type': ASSERTION_TYPE,
            'client_assertion': self._sign(),
            'scope': self.scope,
        }
        answer = transport.post(
            self._session,
            self.auth_server + '/token',
            urlencode(form).encode('ascii'),
            dict(HEADERS, **{'Content-Type': 'application/x-www-form-urlencoded'}),
            None,
            deadline.bounded(self.timeout),
            self._proxies,
        )
        return self._read(answer, form['client_assertion'])

    def _tried(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except ImportError as error:  # in a sub-interpreter cryptography has no place
            self.problem = ('no_cryptography', str(error))
        except ValidationError as error:
            self.problem = ('invalid_key', str(error))

    def _sign(self) -> str:
        if self._key is None and self.problem is None:
            self._key = self._tried(self._load_key)
        if self.problem is not None:
            raise OauthError(0, *self.problem)
        now = int(self._clock() + self._skew)
        claims = {
            'iss': self.client_id,
            'sub': self.client_id,
            'aud': split_credentials(self.auth_server)[0],
            'iat': now - ISSUED_AGO,
            'exp': now + VALID_FOR,
            'jti': new_message_id(),
        }
        import jwt

        headers = {'kid': self.key_id}
        try:
            signed = jwt.encode(claims, self._key, algorithm='RS256', headers=headers)
            return signed.decode('ascii') if isinstance(signed, bytes) else signed
        except Exception as error:
            raise_interruption(error)
            reason = type(error).__name__
        # Out here, without a context: that may quote the key.
        raise OauthError(
            0,
            'invalid_key',
            'oauth_client_key: expected an RSA private key in PEM, got %s (%s)'
            % (type(self._key).__name__, reason),
        )

    def _read(self, answer: Answer, assertion: str) -> '_Token':
        clock_was_wrong = self._set_clock(answer)
        if 200 <= answer.status < 300:
            return self._read_token(answer)
        urls = [self.auth_server, *all_proxies(self._session, self._proxies)]
        secrets = [assertion, *secrets_of(urls)]
        said = answer.fields.get('error', answer.reason)
        description = answer.fields.get('error_description') or ''
        code = shortened(said, secrets)
        text = shortened(description, secrets) or 'The token server refused'
        now = self._clock()
        error = APIError(answer.status, code, text, answer.retry_after(now))
        if answer.status == 429:
            reset = parse_reset(answer.header('X-RateLimit-Reset'), answer.time(now))
            error.retry_after = max(error.retry_after or 0, reset or 0)
        if error.retryable:
            raise error
        if (
            answer.status == 400
            and said == 'invalid_request'
            and any(each in str(description).lower() for each in _SKEW_MESSAGES)
        ):
            late = _WrongTimeError(answer.status, code, text)
            late.token_refused = clock_was_wrong
            raise late
        raise OauthError(answer.status, code, text)

    def _read_token(self, answer: Answer) -> '_Token':
        text = answer.fields.get('access_token')
        if not (answer.is_whole or is_token(text)):
            raise ConnectionError('The answer of the token server was cut short')
        if not is_token(text):
            raise OauthError(
                answer.status,
                'invalid_response',
                'expected an answer with an access_token (visible ASCII), got one without',
            )
        now = self._clock()
        return _Token(str(text), now, _life(answer.fields.get('expires_in')))

    def _set_clock(self, answer: Answer) -> bool:
        """Go by the server's clock from now on; say whether that makes a difference."""
        now, before = self._clock(), self._skew
        self._skew = answer.time(now + before) - now
        return abs(self._skew - before) > _SAME_TIME

    def __repr__(self) -> str:
        return '<OauthManager client_id=%r auth_server=%r>' % (
            self.client_id,
            bare(self.auth_server),
        )


def _prepare_key(value: Any) -> Callable[[], Any]:
    import jwt  # noqa: F401 - here, and not on a consumer: see transport

    return read_private_key(value)


def _release(lock: Any) -> None:
    """Release a lock if this thread has it.

    Asked of the lock: a signal handler may raise as soon as ``acquire`` has got it.
    """
    if lock._is_owned():
        lock.release()


def _stripped(name: str, value: Any) -> str:
    """Return the text of an id or a URL, without the white space around it."""
    try:
        if is_instance(value, bytes):
            value = value.decode('utf-8', 'replace')
        return str(value).strip()
    except Exception as error:
        raise_interruption(error)
    raise ValidationError(
        '%s: expected what str() can show, got %s' % (name, name_of(type(value)))
    )


class _Token:
    """A token and its times, in seconds since the epoch."""

    __slots__ = ('text', 'renew_at', 'expires_at')

    def __init__(self, text: str, now: float, life: float) -> None:
        self.text = text
        self.renew_at = now + life / 2
        self.expires_at = now + life


class _WrongTimeError(OauthError):
    """What we signed is too old for the server, or too new.

    If its clock is not ours, as if an old token were refused: the next one will do.
    """

    retryable = True


def _life(value: Any) -> float:
    try:
        life = float(value)
    except (TypeError, ValueError, OverflowError):
        return DEFAULT_LIFE
    return life if 0 < life < float('inf') else DEFAULT_LIFE


def parse_reset(value: str, now: float) -> Optional[float]:
    """Read X-RateLimit-Reset: seconds from now, never negative; None if unusable.

    By its size it is milliseconds since 1970, seconds since 1970, or seconds from now.
    """
    number = parse_number(value)
    if number is None:
        return None
    if number >= _MILLISECONDS_FROM:
        number = number / 1000 - now
    elif number >= _SECONDS_FROM:
        number -= now
    return max(0.0, number)


_original_get_token = OauthManager.get_token
