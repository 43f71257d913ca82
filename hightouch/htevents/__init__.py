"""Hightouch Events: send the actions of your users to Hightouch.

::

    import hightouch.htevents as htevents

    htevents.write_key = 'YOUR_WRITE_KEY'
    htevents.track('user-1', 'Order Completed', {'total': 12.5})

Every setting of `Client` is an attribute of this module. The first call reads them and
makes the default client. All functions may be called from any thread.
"""

import importlib
import logging
import os
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any, Optional, Union

from hightouch.htevents import settings
from hightouch.htevents._process import exit as process_exit
from hightouch.htevents._process import fork
from hightouch.htevents._process.logs import log as _log
from hightouch.htevents._queue.ledger import Stats
from hightouch.htevents.client import DEFAULT_TIMEOUT as _DEFAULT_TIMEOUT
from hightouch.htevents.client import (
    BeforeSend,
    Client,
    Context,
    Id,
    Integrations,
    Message,
    Properties,
    Result,
    Timestamp,
    Traits,
)
from hightouch.htevents.consumer import OnError, OnSuccess
from hightouch.htevents.deferral import deferred
from hightouch.htevents.errors import (
    APIError,
    BeforeSendError,
    DamageError,
    ExpiredError,
    MessageTooLargeError,
    NotDeliveredError,
    ValidationError,
)
from hightouch.htevents.scopes import carry, scope, update_scope
from hightouch.htevents.settings import PrivateKey, Proxies, Timeout
from hightouch.htevents.version import VERSION

__all__ = [
    'APIError',
    'BeforeSend',
    'BeforeSendError',
    'Client',
    'Context',
    'DamageError',
    'ExpiredError',
    'Id',
    'Integrations',
    'Message',
    'MessageTooLargeError',
    'NotDeliveredError',
    'OnError',
    'OnSuccess',
    'PrivateKey',
    'Properties',
    'Proxies',
    'Result',
    'Stats',
    'Timeout',
    'Timestamp',
    'Traits',
    'ValidationError',
    '__version__',
    'alias',
    'carry',
    'deferred',
    'flush',
    'group',
    'identify',
    'join',
    'page',
    'scope',
    'screen',
    'shutdown',
    'track',
    'update_scope',
]

__version__ = VERSION

# The settings by name, for editors and type checkers. The values come from
# settings.DefaultConfig; a test compares the names.
write_key: Optional[str] = Client.DefaultConfig.write_key
host: Optional[str] = Client.DefaultConfig.host
debug: bool = Client.DefaultConfig.debug
max_queue_size: int = Client.DefaultConfig.max_queue_size
send: bool = Client.DefaultConfig.send
on_error: Optional[OnError] = Client.DefaultConfig.on_error
gzip: bool = Client.DefaultConfig.gzip
max_retries: int = Client.DefaultConfig.max_retries
sync_mode: bool = Client.DefaultConfig.sync_mode
timeout: Optional[Timeout] = Client.DefaultConfig.timeout
proxies: Optional[Proxies] = Client.DefaultConfig.proxies
thread: int = Client.DefaultConfig.thread
upload_size: int = Client.DefaultConfig.upload_size
upload_interval: float = Client.DefaultConfig.upload_interval
log_handler: Optional[logging.Handler] = Client.DefaultConfig.log_handler
oauth_client_id: Optional[str] = Client.DefaultConfig.oauth_client_id
oauth_client_key: Optional[PrivateKey] = Client.DefaultConfig.oauth_client_key
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

# The client of the functions below. Set it to None to start over.
default_client: Optional[Client] = None


# Guards default_client while it is None. Re-entrant, because a signal handler may make its
# first call on the thread that is making the client.
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may hold the old one


fork.register(sys.modules[__name__])


def _get_client() -> Client:
    """Return the default client. The first call makes it."""
    global default_client
    fork.check()
    client = default_client
    if client is None:
        made = None
        with _lock:
            if default_client is None:
                made = Client(**{name: globals()[name] for name in settings.NAMES})
                # A signal handler may have made another one since the check.
                default_client = default_client or made
            client = default_client
        if client is made:
            _warn_of_unknown_settings()
    return client


def _client_if_configured() -> Optional[Client]:
    """Return the default client; None if it is missing and no write key is set."""
    key = settings.find_text(write_key, settings.ENV_WRITE_KEY)
    can_make_one = key and not process_exit.is_over()
    return _get_client() if can_make_one else default_client


def _is_unknown(name: str, value: Any) -> bool:
    """Whether the application set an attribute that is not a setting."""
    if name.startswith('_') or name in settings.NAMES or isinstance(value, ModuleType):
        return False
    if name not in _original:
        return True
    # The types Timeout, Proxies and so on: replaced, they were meant as the setting.
    return name.lower() in settings.NAMES and value is not _original[name]


def _warn_of_unknown_settings() -> None:
    unknown = [
        name for name, value in list(globals().items()) if _is_unknown(name, value)
    ]
    if unknown:
        import difflib

        hints = []
        for name in unknown:
            near = difflib.get_close_matches(name.lower(), settings.NAMES, 1)
            hints.append(name + (' (did you mean %s?)' % near[0] if near else ''))
        _log.warning('htevents has no such setting, ignored: ' + ', '.join(hints))


def identify(
    user_id: Optional[Id] = None,
    traits: Optional[Traits] = None,
    context: Optional[Context] = None,
    timestamp: Optional[Timestamp] = None,
    anonymous_id: Optional[Id] = None,
    integrations: Optional[Integrations] = None,
    message_id: Optional[str] = None,
) -> Result:
    """Record the identity of a user.

    May be called from any thread. The dicts are copied and never changed.

    :param user_id: str or number, your id of the user; None only with an anonymous_id
    :param traits: dict that describes the user, such as an email; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or _get_client()).identify(
        user_id, traits, context, timestamp, anonymous_id, integrations, message_id
    )


def track(
    user_id: Optional[Id] = None,
    event: Optional[str] = None,
    properties: Optional[Properties] = None,
    context: Optional[Context] = None,
    timestamp: Optional[Timestamp] = None,
    anonymous_id: Optional[Id] = None,
    integrations: Optional[Integrations] = None,
    message_id: Optional[str] = None,
) -> Result:
    """Record an action of a user.

    May be called from any thread. The dicts are copied and never changed.

    :param user_id: str or number, your id of the user; None only with an anonymous_id
    :param event: str, the name of the action, such as 'Order Completed'; required
    :param properties: dict that describes the action, such as a price; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or _get_client()).track(
        user_id,
        event,
        properties,
        context,
        timestamp,
        anonymous_id,
        integrations,
        message_id,
    )


def alias(
    previous_id: Optional[Id] = None,
    user_id: Optional[Id] = None,
    context: Optional[Context] = None,
    timestamp: Optional[Timestamp] = None,
    integrations: Optional[Integrations] = None,
    message_id: Optional[str] = None,
) -> Result:
    """Record that two ids belong to the same user.

    May be called from any thread. The dicts are copied and never changed.

    :param previous_id: str or number, the user's id until now; required
    :param user_id: str or number, the user's id from now on; required
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or _get_client()).alias(
        previous_id, user_id, context, timestamp, integrations, message_id
    )


def group(
    user_id: Optional[Id] = None,
    group_id: Optional[Id] = None,
    traits: Optional[Traits] = None,
    context: Optional[Context] = None,
    timestamp: Optional[Timestamp] = None,
    anonymous_id: Optional[Id] = None,
    integrations: Optional[Integrations] = None,
    message_id: Optional[str] = None,
) -> Result:
    """Record that a user belongs to a group, such as a company.

    May be called from any thread. The dicts are copied and never changed.

    :param user_id: str or number, your id of the user; None only with an anonymous_id
    :param group_id: str or number, the group's id in your system; required
    :param traits: dict that describes the group, such as its name; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or _get_client()).group(
        user_id,
        group_id,
        traits,
        context,
        timestamp,
        anonymous_id,
        integrations,
        message_id,
    )


def page(
    user_id: Optional[Id] = None,
    category: Optional[str] = None,
    name: Optional[str] = None,
    properties: Optional[Properties] = None,
    context: Optional[Context] = None,
    timestamp: Optional[Timestamp] = None,
    anonymous_id: Optional[Id] = None,
    integrations: Optional[Integrations] = None,
    message_id: Optional[str] = None,
) -> Result:
    """Record that a user viewed a page of a website.

    May be called from any thread. The dicts are copied and never changed.

    :param user_id: str or number, your id of the user; None only with an anonymous_id
    :param category: str, the kind of page; None: no category
    :param name: str, the name of the page; None: no name
    :param properties: dict that describes the page, such as its URL; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or _get_client()).page(
        user_id,
        category,
        name,
        properties,
        context,
        timestamp,
        anonymous_id,
        integrations,
        message_id,
    )


def screen(
    user_id: Optional[Id] = None,
    category: Optional[str] = None,
    name: Optional[str] = None,
    properties: Optional[Properties] = None,
    context: Optional[Context] = None,
    timestamp: Optional[Timestamp] = None,
    anonymous_id: Optional[Id] = None,
    integrations: Optional[Integrations] = None,
    message_id: Optional[str] = None,
) -> Result:
    """Record that a user viewed a screen of an app.

    May be called from any thread. The dicts are copied and never changed.

    :param user_id: str or number, your id of the user; None only with an anonymous_id
    :param category: str, the kind of screen; None: no category
    :param name: str, the name of the screen; None: no name
    :param properties: dict that describes the screen, such as its tab; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or _get_client()).screen(
        user_id,
        category,
        name,
        properties,
        context,
        timestamp,
        anonymous_id,
        integrations,
        message_id,
    )


# The text of a call stands once, above. At run time help() shows it for the method as well.
for _call in (identify, track, alias, group, page, screen):
    getattr(Client, _call.__name__).__doc__ = _call.__doc__


def flush(timeout: Optional[float] = _DEFAULT_TIMEOUT) -> bool:
    """Send the queued events, and wait for their delivery: see `Client.flush`.

    Like `shutdown`, it first makes the default client if only a write key is set. Without
    a write key it does nothing.

    :param timeout: seconds; None waits without limit
    :returns: whether all events accepted before this call are delivered or reported lost
    :raises ValidationError: (an ``AssertionError``) when a setting or the timeout is wrong
    """
    client = _client_if_configured()
    return client is None or client.flush(timeout)


def shutdown(timeout: Optional[float] = _DEFAULT_TIMEOUT) -> bool:
    """Flush, then end the threads: see `Client.shutdown`.

    :param timeout: seconds; None waits without limit
    :returns: like `flush`
    :raises ValidationError: (an ``AssertionError``) when a setting or the timeout is wrong
    """
    client = _client_if_configured()
    return client is None or client.shutdown(timeout)


def join(timeout: Optional[float] = _DEFAULT_TIMEOUT) -> bool:
    """Do the same as `shutdown`, with the same parameter and errors."""
    return shutdown(timeout)


if not TYPE_CHECKING:  # a type checker would take every name for an attribute

    def __getattr__(name: str) -> Any:
        """Import `oauth_manager` with its first use, on Python 3.7 and later."""
        if name == 'oauth_manager':
            return importlib.import_module(__name__ + '.oauth_manager')
        raise AttributeError('module %r has no attribute %r' % (__name__, name))


# The names of this module. The application meant any other name as a setting.
_original = dict(globals())
