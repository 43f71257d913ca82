"""The settings of a client: names, types, defaults and checks."""

import logging
import math
import os
import sys
from functools import lru_cache, partial, wraps
from numbers import Number
from threading import TIMEOUT_MAX
from types import MethodType
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    Optional,
    TypeVar,
    Union,
)

from hightouch.htevents._process import captures, environment
from hightouch.htevents._process.interruption import is_instance, raise_interruption
from hightouch.htevents._process.proxies import normalize_proxies
from hightouch.htevents._process.waiting import Timeout as Timeout
from hightouch.htevents.errors import ValidationError, name_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
else:
    RSAPrivateKey = Any  # its import is slow

Proxies = Union[str, Mapping[str, Optional[str]]]
# The types that `read_private_key` accepts.
PrivateKey = Union[str, bytes, bytearray, RSAPrivateKey]

_Init = TypeVar('_Init', bound=Callable[..., None])

_CACHING: Any = type(lru_cache(maxsize=None)(len))

# What `kind_that_does_not_run` says of a coroutine function.
ASYNC = 'an async function'

_ABOVE_0 = 5e-324  # the smallest float

Message = Dict[str, Any]
OnError = Callable[[Exception, List[Message]], Any]
OnSuccess = Callable[[List[Message]], Any]
BeforeSend = Callable[[Message], Optional[Message]]

ENV_WRITE_KEY = 'HTEVENTS_WRITE_KEY'
ENV_HOST = 'HTEVENTS_HOST'
ENV_SEND = environment.SEND


class DefaultConfig:
    """The settings of a client with their types and defaults; ``Client`` documents them.

    An instance has checked settings. Its repr shows no values: some are secrets.
    """

    write_key: Optional[str] = None
    host: Optional[str] = None
    debug: bool = False
    max_queue_size: int = 10000
    send: bool = True
    on_error: Optional[OnError] = None
    gzip: bool = False
    max_retries: int = 10
    sync_mode: bool = False
    timeout: Optional[Timeout] = 15
    proxies: Optional[Proxies] = None
    thread: int = 1
    upload_size: int = 100
    upload_interval: float = 0.5
    log_handler: Optional[logging.Handler] = None
    oauth_client_id: Optional[str] = None
    oauth_client_key: Optional[PrivateKey] = None
    oauth_key_id: Optional[str] = None
    oauth_auth_server: str = 'https://oauth2.hightouch.io'
    oauth_scope: str = 'tracking_api:write'
    # The following settings are keyword-only in Client.
    on_success: Optional[OnSuccess] = None
    before_send: Optional[BeforeSend] = None
    block_timeout: float = 0
    session: Any = None
    shutdown_timeout: Optional[float] = 5
    spool_dir: Union[None, str, 'os.PathLike[str]'] = None
    spool_fsync: bool = False
    spool_max_bytes: int = 256 << 20
    trace_context: bool = False


TYPES: Dict[str, Any] = dict(DefaultConfig.__annotations__)
NAMES = tuple(TYPES)
_READERS = environment.readers_of(TYPES)


def expect(ok: object, name: str, expected: str, value: Any) -> None:
    """Raise a `ValidationError` that names the type of ``value``, unless ``ok``."""
    if not ok:
        raise ValidationError(
            '%s: expected %s, got %s' % (name, expected, name_of(type(value)))
        )


def checked(given: Mapping[str, Any]) -> Any:
    """Return all settings of a client, checked and converted, as attributes.

    :param given: the settings by name; other names are ignored
    :raises ValidationError: when a setting is wrong
    """
    to: Any = DefaultConfig()
    for name in NAMES:
        value = given[name]
        try:
            bool(value)
        except Exception as error:
            raise_interruption(error)
            expect(False, name, 'a value that is true or false', value)
        setattr(to, name, value)
    # The off switch of the environment needs no write key, so that tests need no settings.
    needs_key = to.send or to.write_key or not environment.is_switched_off()
    to.write_key = check_write_key(to.write_key) if needs_key else ''
    to.host = _check_host(to.host)
    to.max_queue_size = _check_whole('max_queue_size', to.max_queue_size)
    to.max_retries = _check_whole('max_retries', to.max_retries)
    to.timeout = _check_timeout(to.timeout)
    to.thread = _check_whole('thread', to.thread, 0 if to.sync_mode else 1, sys.maxsize)
    to.upload_size = _check_whole('upload_size', to.upload_size, 1)
    to.upload_interval = _check_seconds('upload_interval', to.upload_interval)
    to.log_handler = _check_log_handler(to.log_handler)
    to.on_error = check_callable('on_error', to.on_error)
    to.on_success = check_callable('on_success', to.on_success)
    to.before_send = check_callable('before_send', to.before_send)
    to.block_timeout = _check_seconds('block_timeout', to.block_timeout)
    if to.shutdown_timeout is not None:
        to.shutdown_timeout = _check_seconds('shutdown_timeout', to.shutdown_timeout)
    to.spool_max_bytes = _check_whole('spool_max_bytes', to.spool_max_bytes, 1 << 20)
    to.spool_dir = _check_spool_dir(to.spool_dir, to.sync_mode, to.send)
    to.proxies = normalize_proxies(to.proxies)
    to.oauth = (to.oauth_client_id, to.oauth_client_key, to.oauth_key_id)
    return to


def completed(init: _Init) -> _Init:
    """Let ``Client.__init__`` take the settings that its caller leaves out from the environment."""

    @wraps(init)
    def completed_init(self: Any, *args: Any, **kwargs: Any) -> None:
        found = environment.find(_READERS, set(NAMES[: len(args)]).union(kwargs))
        try:
            init(self, *args, **kwargs, **found)
        except ValidationError as error:
            name, _, text = str(error).partition(': ')
            if name not in found:
                raise
            name = environment.variable(name)
            raise ValidationError('%s: %s' % (name, text)) from None

    return completed_init  # type: ignore[return-value]


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float, but not a bool and not NaN."""
    if is_instance(value, bool) or not is_instance(value, (int, float)):
        return False
    return as_number(value) is not None


def as_number(value: Any) -> Any:
    """Return a real number of any type as an int or float; None for other values."""
    if not is_instance(value, Number):
        return None
    try:
        number = int(value) if is_instance(value, int) else float(value)
    except Exception as error:  # a complex number, for example, or a signaling NaN
        raise_interruption(error)
        return None
    return number if number == number else None


def _check_number(
    name: str, value: Any, expected: str, least: float, most: float = math.inf
) -> Any:
    number = as_number(value)
    expect(number is not None, name, expected, value)
    if not least <= number <= most:
        text = '%g' % number if abs(number) < sys.maxsize else 'a larger number'
        raise ValidationError('%s: expected %s, got %s' % (name, expected, text))
    return number


def _check_whole(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf
) -> int:
    """Return a number from ``least`` to ``most``, rounded up, as 0 to ``sys.maxsize``."""
    expected = 'a whole number' + ('' if least < 0 else ', at least %d' % least)
    number: float = _check_number(name, value, expected, least, most)
    return math.ceil(min(max(0, number), sys.maxsize))


def _check_seconds(name: str, value: Any) -> Any:
    return _check_number(name, value, 'a number of seconds, at least 0', 0)


def _check_timeout(value: Any) -> Any:
    if is_instance(value, tuple) and len(value) == 2:
        return _check_wait(value[0]), _check_wait(value[1])
    return _check_wait(value)


def _check_wait(value: Any) -> Any:
    if value is None:
        return None
    expected = (
        'a finite number of seconds above 0, or a pair of them (for the connection, and '
        'between bytes of the answer); None waits without limit'
    )
    # With any other number sockets raise, and each request would fail.
    return _check_number('timeout', value, expected, _ABOVE_0, TIMEOUT_MAX)


def find_text(value: Any, variable: str) -> Any:
    """Return a str without white space; for a falsy value, the environment variable."""
    text = value.strip() if is_instance(value, str) else value
    return text or os.environ.get(variable, '').strip()


def check_write_key(value: Optional[str]) -> str:
    """Return the write key to use; raise `ValidationError` if it is missing."""
    key = find_text(value, ENV_WRITE_KEY) or (captures.takers and captures.WRITE_KEY)
    what = 'a str that is not empty (the key of your event source; or set %s)'
    expect(key and is_instance(key, str), 'write_key', what % ENV_WRITE_KEY, value)
    return str(key)


def _check_host(value: Optional[str]) -> Optional[str]:
    host = find_text(value, ENV_HOST)
    expect(is_instance(host, str), 'host', 'a URL such as https://…, or None', value)
    return host or None


def _check_spool_dir(value: Any, sync_mode: bool, send: bool) -> Optional[str]:
    if value is None:
        return None
    try:
        value = os.fspath(value)
    except Exception as error:
        raise_interruption(error)
    expect(value and is_instance(value, str), 'spool_dir', 'a path or None', value)
    if sync_mode:
        raise ValidationError(
            'spool_dir: expected None with sync_mode=True, got a directory; leave one of '
            'them out, because sync_mode delivers each event before its call returns'
        )
    # A client that sends must not find events of a client that does not on the disk.
    return str(value) if send else None


def _check_log_handler(value: Any) -> Any:
    if is_instance(value, logging.Handler):
        return value
    # Another object would make all log lines fail, for all clients.
    expected = 'a logging.Handler (an instance, not the class) or None'
    expect(not value, 'log_handler', expected, value)
    return None


def check_callable(name: str, value: Any) -> Any:
    """Return a callback, or None for a falsy value; raise `ValidationError`."""
    if callable(value):
        kind = kind_that_does_not_run(value)
        if kind:
            raise ValidationError(
                '%s: expected a plain function, got %s, whose call runs no code. The '
                'thread that calls it has no event loop: start async code from a plain '
                'function, for example with asyncio.run_coroutine_threadsafe'
                % (name, kind)
            )
        return value
    expect(not value, name, 'a callable or None', value)
    return None


def kind_that_does_not_run(function: Any) -> str:
    """Name the kind of a function whose call only creates an object; '' for others."""
    import inspect  # costs nothing here: backoff imports it

    try:
        function = _unwrapped(function)
        if inspect.iscoroutinefunction(function):  # also sees inspect's own marker
            return ASYNC
        for each in (function, getattr(type(function), '__call__', None)):
            flags = getattr(getattr(each, '__code__', None), 'co_flags', 0)
            if not isinstance(flags, int):
                continue
            if flags & (inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE):
                return ASYNC
            if flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
                return 'a generator function'
    except Exception:
        pass  # the object does not allow the inspection
    return ''


def _unwrapped(function: Any) -> Any:
    """Return the function inside partials, methods and caches."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif isinstance(function, (MethodType, staticmethod)):
            function = function.__func__
        elif isinstance(function, _CACHING):
            function = function.__wrapped__
        else:
            return function
