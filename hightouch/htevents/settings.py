"""The settings: their names, their defaults, what is valid, and the environment."""

import logging
import os
from threading import TIMEOUT_MAX
from typing import Any, Callable, Dict, Optional, Tuple

from hightouch.htevents.errors import ValidationError

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


def _check_range(name: str, value: Any, least: float, whole: bool) -> None:
    kind: Any = int if whole else (int, float)
    unit = 'a whole number' if whole else 'a number of seconds'
    expected = '%s, at least %d' % (unit, least)
    expect(
        isinstance(value, kind) and not isinstance(value, bool), name, expected, value
    )
    if not value >= least:  # also catches NaN
        raise ValidationError('%s: expected %s, got %r' % (name, expected, value))


# name -> (smallest value, whether it is whole, whether None is one)
_NUMBERS: Dict[str, Tuple[float, bool, bool]] = {
    'max_queue_size': (-1, True, False),
    'max_retries': (0, True, False),
    'timeout': (0, False, True),
    'thread': (1, True, False),
    'upload_size': (1, True, False),
    'upload_interval': (0, False, False),
    'block_timeout': (0, False, False),
    'shutdown_timeout': (0, False, True),
    'spool_max_bytes': (1 << 20, True, False),
}


def check_write_key(value: Optional[str]) -> str:
    """Give the write key, from the environment if None; raise `ValidationError`."""
    if value is None:
        value = os.environ.get(ENV_WRITE_KEY)
    expect(
        isinstance(value, str) and bool(value.strip()),
        'write_key',
        'a str that is not empty (the key of your event source; or set %s)'
        % ENV_WRITE_KEY,
        value,
    )
    assert value is not None
    return value


def check_host(value: Optional[str]) -> Optional[str]:
    value = value or os.environ.get(ENV_HOST) or None
    if value is not None:
        expect(
            isinstance(value, str), 'host', 'a URL such as https://…, or None', value
        )
        if not value.lower().startswith(('http://', 'https://')):
            raise ValidationError(
                'host: expected a URL that begins with https:// or http://, got a str '
                'without; write https:// in front of it'
            )
    return value


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


def check_numbers(values: Dict[str, Any]) -> None:
    for name, (least, whole, optional) in _NUMBERS.items():
        value = values[name]
        if not (optional and value is None):
            _check_range(name, value, least, whole)
    # Sockets take no other: each request would fail.
    timeout = values['timeout']
    if timeout is not None and not 0 < timeout <= TIMEOUT_MAX:
        raise ValidationError(
            'timeout: expected seconds, more than 0 and finite, got %r; None waits '
            'without bound' % timeout
        )


def check_log_handler(value: Optional[logging.Handler]) -> None:
    # Any other would make each line fail, those of other clients too.
    expected = 'a logging.Handler (one that is made, not its class) or None'
    ok = value is None or isinstance(value, logging.Handler)
    expect(ok, 'log_handler', expected, value)


def check_callable(name: str, value: Optional[Callable[..., Any]]) -> None:
    expect(value is None or callable(value), name, 'a callable or None', value)
