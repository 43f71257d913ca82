"""The settings: their names, their defaults, what is valid, and the environment."""

import logging
import math
import os
import sys
from functools import lru_cache, partial
from numbers import Number
from threading import TIMEOUT_MAX
from types import MethodType
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Union

from hightouch.htevents._process.interruption import is_instance, raise_interruption
from hightouch.htevents._process.waiting import Timeout as Timeout
from hightouch.htevents.errors import ValidationError, name_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
else:
    RSAPrivateKey = Any  # takes long to import

Proxies = Union[str, Mapping[str, Optional[str]]]
# What `read_private_key` reads.
PrivateKey = Union[str, bytes, bytearray, RSAPrivateKey]

_CACHING: Any = type(lru_cache(maxsize=None)(len))

ENV_WRITE_KEY = 'HTEVENTS_WRITE_KEY'
ENV_HOST = 'HTEVENTS_HOST'


class DefaultConfig:
    """Every setting of a client with its default; see ``Client`` for what they mean."""

    write_key = None
    host = None
    debug = False
    max_queue_size = 10000
    send = True
    on_error = None
    gzip = False
    max_retries = 10
    sync_mode = False
    timeout = 15
    proxies = None
    thread = 1
    upload_size = 100
    upload_interval = 0.5
    log_handler = None
    oauth_client_id = None
    oauth_client_key = None
    oauth_key_id = None
    oauth_auth_server = 'https://oauth2.hightouch.io'
    oauth_scope = 'tracking_api:write'
    # What follows is keyword-only in Client.
    on_success = None
    before_send = None
    block_timeout = 0
    session = None
    shutdown_timeout = 5
    spool_dir = None
    spool_fsync = False
    spool_max_bytes = 256 << 20


NAMES = tuple(name for name in vars(DefaultConfig) if not name.startswith('_'))


def expect(ok: bool, name: str, expected: str, value: Any) -> None:
    """Raise `ValidationError`, naming the type of what came, unless ``ok``."""
    if not ok:
        raise ValidationError(
            '%s: expected %s, got %s' % (name, expected, name_of(type(value)))
        )


def check_truth(values: Mapping[str, Any]) -> None:
    """Raise `ValidationError` for a setting that cannot be asked whether it is true."""
    for name, value in values.items():
        try:
            bool(value)
        except Exception as error:
            raise_interruption(error)
            expect(False, name, 'a value that is true or false', value)


def is_number(value: Any) -> bool:
    """Whether it is a number, as ``isinstance`` has it; a bool and NaN are none."""
    if is_instance(value, bool) or not is_instance(value, (int, float)):
        return False
    return as_number(value) is not None


def as_number(value: Any) -> Any:
    """Return a real number of any type as an int or float; None for anything else."""
    if not is_instance(value, Number):
        return None
    try:
        if is_instance(value, int):
            return int(value)
        number = float(value)
    except Exception as error:  # complex, a signaling NaN, or what raises anything
        raise_interruption(error)
        return None
    return number if number == number else None


def _check_number(
    name: str, value: Any, expected: str, valid: Callable[[float], bool]
) -> Any:
    number = as_number(value)
    expect(number is not None, name, expected, value)
    if not valid(number):
        text = '%g' % number if abs(number) < sys.maxsize else 'a larger number'
        raise ValidationError('%s: expected %s, got %s' % (name, expected, text))
    return number


def check_whole(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf
) -> int:
    """Return a number as an int from 0 to ``sys.maxsize``, rounded up.

    :raises ValidationError: when it is not a number from ``least`` to ``most``
    """
    expected = 'a whole number' + ('' if least < 0 else ', at least %d' % least)
    number: float = _check_number(
        name, value, expected, lambda number: least <= number <= most
    )
    if number > sys.maxsize:
        return sys.maxsize
    return 0 if number < 0 else math.ceil(number)


def check_seconds(name: str, value: Any) -> float:
    """Return a number of seconds, at least 0; raise `ValidationError`."""
    expected = 'a number of seconds, at least 0'
    number: float = _check_number(name, value, expected, lambda number: number >= 0)
    return number


def check_timeout(value: Any) -> Optional[Timeout]:
    """Return a request's timeout as ``requests`` takes it; raise `ValidationError`."""
    if is_instance(value, tuple) and len(value) == 2:
        return _check_part(value[0]), _check_part(value[1])
    return _check_part(value)


def _check_part(value: Any) -> Optional[float]:
    if value is None:
        return None
    expected = (
        'seconds, more than 0 and finite, or a pair of them (for the connection, and '
        'between bytes of the answer); None waits without bound'
    )
    # Sockets take no other: each request would fail.
    seconds: float = _check_number(
        'timeout', value, expected, lambda number: 0 < number <= TIMEOUT_MAX
    )
    return seconds


def find_write_key(value: Any) -> Any:
    """Return the write key to use: the given one, else the one of the environment."""
    key = value.strip() if is_instance(value, str) else value
    return key or os.environ.get(ENV_WRITE_KEY, '').strip()


def check_write_key(value: Optional[str]) -> str:
    """Return the write key to use; raise `ValidationError` if there is none."""
    key = find_write_key(value)
    expect(
        is_instance(key, str) and bool(key),
        'write_key',
        'a str that is not empty (the key of your event source; or set %s)'
        % ENV_WRITE_KEY,
        value,
    )
    return str(key)


def check_host(value: Optional[str]) -> Optional[str]:
    """Return the base URL to use, None for the default one.

    :raises ValidationError: when it is not a str
    """
    host = value or ''
    expect(is_instance(host, str), 'host', 'a URL such as https://…, or None', value)
    return host.strip() or os.environ.get(ENV_HOST, '').strip() or None


def has_scheme(host: str) -> bool:
    """Whether a base URL has one of the schemes that requests can be sent with."""
    return host.lower().startswith(('http://', 'https://'))


def check_spool_dir(value: Any, sync_mode: bool, send: bool) -> Optional[str]:
    """Give the spool's directory as a str; None when there shall be none."""
    if value is None:
        return None
    try:
        value = os.fspath(value)
    except Exception as error:  # TypeError, or of a class of the application's
        raise_interruption(error)
    expect(
        is_instance(value, str) and bool(value), 'spool_dir', 'a path or None', value
    )
    if sync_mode:
        raise ValidationError(
            'spool_dir: expected None together with sync_mode=True, whose calls deliver '
            'before they return; leave one of them out'
        )
    # Events of a test must not wait on the disk for a client that does send.
    return str(value) if send else None


def check_log_handler(value: Any) -> Optional[logging.Handler]:
    """Return the handler, None for anything falsy; raise `ValidationError`."""
    if not is_instance(value, logging.Handler):
        # Any other would make each line fail, those of other clients too.
        expected = 'a logging.Handler (one that is made, not its class) or None'
        expect(not value, 'log_handler', expected, value)
        return None
    handler: logging.Handler = value
    return handler


def check_callable(name: str, value: Any) -> Any:
    """Return a callback, None for anything falsy; raise `ValidationError`."""
    if callable(value):
        kind = _kind_that_does_not_run(value)
        if kind:
            raise ValidationError(
                '%s: expected a plain function, got %s: a call of one runs nothing. '
                'It is called on a thread without an event loop: start what is async '
                'from a plain one, say by asyncio.run_coroutine_threadsafe'
                % (name, kind)
            )
        return value
    expect(not value, name, 'a callable or None', value)
    return None


def _kind_that_does_not_run(function: Any) -> str:
    """Name the kind of a function whose call only makes an object; '' for the others."""
    import inspect  # there already: backoff needs it

    try:
        function = _unwrapped(function)
        if inspect.iscoroutinefunction(function):  # knows those that are marked as such
            return 'an async function'
        for each in (function, getattr(type(function), '__call__', None)):
            flags = getattr(getattr(each, '__code__', None), 'co_flags', 0)
            if not isinstance(flags, int):
                continue
            if flags & (inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE):
                return 'an async function'
            if flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
                return 'a generator function'
    except Exception:
        pass  # an object that has something against such questions
    return ''


def _unwrapped(function: Any) -> Any:
    """Return the function that is run where another one only passes a call on."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif isinstance(function, (MethodType, staticmethod)):
            function = function.__func__
        elif isinstance(function, _CACHING):
            function = function.__wrapped__
        else:
            return function
