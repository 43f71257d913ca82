"""Hightouch Events: tell Hightouch what your users do.

::

    import hightouch.htevents as htevents

    htevents.write_key = 'YOUR_WRITE_KEY'
    htevents.track('user-1', 'Order Completed', {'total': 12.5})

Every setting of `Client` is an attribute of this module, read when the default client
is made, with the first call. All functions may be called from any thread.
"""

import functools
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, TypeVar, Union

from hightouch.htevents import fork, settings
from hightouch.htevents.client import DEFAULT_TIMEOUT as _DEFAULT_TIMEOUT
from hightouch.htevents.client import BeforeSend, Client
from hightouch.htevents.consumer import OnError, OnSuccess
from hightouch.htevents.errors import (
    APIError,
    BeforeSendError,
    DamageError,
    ExpiredError,
    MessageTooLargeError,
    NotDeliveredError,
    ValidationError,
)
from hightouch.htevents.event_queue import Stats
from hightouch.htevents.version import VERSION

if TYPE_CHECKING:
    from typing_extensions import Concatenate, ParamSpec

    _P = ParamSpec('_P')

_R = TypeVar('_R')

__all__ = [
    'APIError',
    'BeforeSendError',
    'Client',
    'DamageError',
    'ExpiredError',
    'MessageTooLargeError',
    'NotDeliveredError',
    'Stats',
    'ValidationError',
    '__version__',
    'alias',
    'flush',
    'group',
    'identify',
    'join',
    'page',
    'screen',
    'shutdown',
    'track',
]

__version__ = VERSION

# The settings, named for editors and type checkers; a test compares them with
# settings.DefaultConfig, which gives the values.
write_key: Optional[str] = Client.DefaultConfig.write_key
host: Optional[str] = Client.DefaultConfig.host
debug: bool = Client.DefaultConfig.debug
max_queue_size: int = Client.DefaultConfig.max_queue_size
send: bool = Client.DefaultConfig.send
on_error: Optional[OnError] = Client.DefaultConfig.on_error
gzip: bool = Client.DefaultConfig.gzip
max_retries: int = Client.DefaultConfig.max_retries
sync_mode: bool = Client.DefaultConfig.sync_mode
timeout: Optional[float] = Client.DefaultConfig.timeout
proxies: Union[None, str, Dict[str, str]] = Client.DefaultConfig.proxies
thread: int = Client.DefaultConfig.thread
upload_size: int = Client.DefaultConfig.upload_size
upload_interval: float = Client.DefaultConfig.upload_interval
log_handler: Optional[logging.Handler] = Client.DefaultConfig.log_handler
oauth_client_id: Optional[str] = Client.DefaultConfig.oauth_client_id
oauth_client_key: Union[None, str, bytes] = Client.DefaultConfig.oauth_client_key
oauth_key_id: Optional[str] = Client.DefaultConfig.oauth_key_id
oauth_auth_server: str = Client.DefaultConfig.oauth_auth_server
oauth_scope: str = Client.DefaultConfig.oauth_scope
on_success: Optional[OnSuccess] = Client.DefaultConfig.on_success
before_send: Optional[BeforeSend] = Client.DefaultConfig.before_send
block_timeout: float = Client.DefaultConfig.block_timeout
session: Any = Client.DefaultConfig.session
shutdown_timeout: Optional[float] = Client.DefaultConfig.shutdown_timeout
spool_dir: Union[None, str, 'os.PathLike[str]'] = Client.DefaultConfig.spool_dir
spool_fsync: bool = Client.DefaultConfig.spool_fsync
spool_max_bytes: int = Client.DefaultConfig.spool_max_bytes

# The client behind the functions below; set it to None to start over.
default_client: Optional[Client] = None


class _Creation:
    """The lock under which the default client is made, fresh in a forked child."""

    def __init__(self) -> None:
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # Guards default_client while it is None. Re-entrant: a signal handler may make
        # its first call while the code below it is making the client.
        self.lock = threading.RLock()


_creation = _Creation()


def _get_client() -> Client:
    global default_client
    fork.check()
    client = default_client
    if client is None:
        with _creation.lock:
            if default_client is None:
                made = Client(**{name: globals()[name] for name in settings.NAMES})
                if default_client is None:  # else a signal handler was faster
                    default_client = made
            client = default_client
    return client


def _facade(method: 'Callable[Concatenate[Client, _P], _R]') -> 'Callable[_P, _R]':
    """Make the module's function for a method of the default client."""
    name = method.__name__

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(default_client or _get_client(), name)(*args, **kwargs)

    # What help() and inspect.signature() show: the method without its self.
    call.__wrapped__ = functools.partial(method, None)  # type: ignore[arg-type]
    call.__module__ = __name__
    call.__qualname__ = name
    return call


identify = _facade(Client.identify)
track = _facade(Client.track)
alias = _facade(Client.alias)
group = _facade(Client.group)
page = _facade(Client.page)
screen = _facade(Client.screen)


def flush(timeout: Optional[float] = _DEFAULT_TIMEOUT) -> bool:
    """Flush the default client: see `Client.flush`. True if there is none yet."""
    client = default_client  # read once: another thread may set it
    return client is None or client.flush(timeout)


def shutdown(timeout: Optional[float] = _DEFAULT_TIMEOUT) -> bool:
    """Shut the default client down: see `Client.shutdown`. True if there is none yet."""
    client = default_client
    return client is None or client.shutdown(timeout)


def join(timeout: Optional[float] = _DEFAULT_TIMEOUT) -> bool:
    """Do the same as `shutdown`."""
    return shutdown(timeout)
