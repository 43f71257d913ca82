"""The settings: their names, their defaults, what is valid, and the environment."""

import logging
import math
import os
import sys
from numbers import Number
from threading import TIMEOUT_MAX
from typing import Any, Mapping, Optional, Tuple, Union

from hightouch.htevents.errors import ValidationError
from hightouch.htevents.logs import log

# As in requests: seconds, or a pair, for the connection and between bytes of an answer.
Timeout = Union[float, Tuple[Optional[float], Optional[float]]]
Proxies = Union[str, Mapping[str, Optional[str]]]

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
            '%s: expected %s, got %s' % (name, expected, type(value).__name__)
        )


def is_number(value: Any) -> bool:
    """Whether it is a number, as ``isinstance`` has it; a bool and NaN are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return value == value


def _as_number(value: Any) -> Any:
    """Return a real number of any type as an int or float; None for anything else."""
    if isinstance(value, int):
        return int(value)
    if not isinstance(value, Number):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):  # complex, or a signaling NaN
        return None
    return number if number == number else None


def _check_number(name: str, value: Any, expected: str, least: float) -> Any:
    number = _as_number(value)
    expect(number is not None, name, expected, value)
    if number < least:
        raise ValidationError('%s: expected %s, got %r' % (name, expected, value))
    return number


def check_whole(
    name: str, value: Any, least: float = -math.inf, bounded: bool = False
) -> int:
    """Return a number as an int, rounded up; infinity as the largest one if unbounded.

    :param least: the smallest valid one
    :param bounded: whether infinity is invalid
    :raises ValidationError: when it is none of these
    """
    expected = 'a whole number' + ('' if least < 0 else ', at least %d' % least)
    number: float = _check_number(name, value, expected, least)
    if number in (math.inf, -math.inf):
        expect(not bounded, name, expected, value)
        return sys.maxsize if number > 0 else -1
    return math.ceil(number)


def check_seconds(name: str, value: Any) -> float:
    """Return a number of seconds, at least 0; raise `ValidationError`."""
    number: float = _check_number(name, value, 'a number of seconds, at least 0', 0)
    return number


def check_timeout(value: Any) -> Optional[Timeout]:
    """Return a request's timeout as ``requests`` takes it; raise `ValidationError`."""
    if value is None:
        return None
    if isinstance(value, tuple) and len(value) == 2:
        return _check_part(value[0]), _check_part(value[1])
    seconds: Optional[float] = _check_part(value)
    return seconds


def _check_part(value: Any) -> Any:
    expected = (
        'seconds, more than 0 and finite, or a pair of them (for the connection, and '
        'between bytes of the answer); None waits without bound'
    )
    if value is None:
        return None
    number = _as_number(value)
    expect(number is not None, 'timeout', expected, value)
    # Sockets take no other: each request would fail.
    if not 0 < number <= TIMEOUT_MAX:
        raise ValidationError('timeout: expected %s, got %r' % (expected, value))
    return number


def find_write_key(value: Any) -> Any:
    """Return the write key that counts: the given one, else that of the environment."""
    key = value.strip() if isinstance(value, str) else value
    return key or os.environ.get(ENV_WRITE_KEY, '').strip()


def check_write_key(value: Optional[str]) -> str:
    """Return the write key that counts; raise `ValidationError` if there is none."""
    key = find_write_key(value)
    expect(
        isinstance(key, str) and bool(key),
        'write_key',
        'a str that is not empty (the key of your event source; or set %s)'
        % ENV_WRITE_KEY,
        value,
    )
    return str(key)


def check_host(value: Optional[str]) -> Optional[str]:
    """Return the base URL that counts: given, of the environment, or None.

    One without a scheme is the server's answer to give, as in releases before 0.1: each
    request fails. It is said in the log at once.

    :raises ValidationError: when it is not a str
    """
    expected = 'a URL that begins with https:// or http://'
    host = value or os.environ.get(ENV_HOST) or ''
    expect(isinstance(host, str), 'host', expected + ', or None', value)
    host = host.strip()
    if host and not host.lower().startswith(('http://', 'https://')):
        log.warning(
            'host: expected %s, got a str without; no event can be delivered. '
            'Write https:// in front of it',
            expected,
        )
    return host or None


def check_spool_dir(value: Any, sync_mode: bool, send: bool) -> Optional[str]:
    """Give the spool's directory as a str; None when there shall be none."""
    if value is None:
        return None
    try:
        value = os.fspath(value)
    except TypeError:
        pass
    expect(isinstance(value, str) and bool(value), 'spool_dir', 'a path or None', value)
    if sync_mode:
        raise ValidationError(
            'spool_dir: expected None together with sync_mode=True, whose calls deliver '
            'before they return; leave one of them out'
        )
    # Events of a test must not wait on the disk for a client that does send.
    return str(value) if send else None


def check_log_handler(value: Any) -> Optional[logging.Handler]:
    """Return the handler, None for anything falsy; raise `ValidationError`."""
    if not isinstance(value, logging.Handler):
        # Any other would make each line fail, those of other clients too.
        expected = 'a logging.Handler (one that is made, not its class) or None'
        expect(not value, 'log_handler', expected, value)
        return None
    return value


def check_callable(name: str, value: Any) -> Any:
    """Return a callback, None for anything falsy; raise `ValidationError`."""
    if callable(value):
        return value
    expect(not value, name, 'a callable or None', value)
    return None
