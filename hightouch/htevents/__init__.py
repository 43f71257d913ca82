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
import weakref
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Union

from hightouch.htevents import settings
from hightouch.htevents._context.deferral import deferred
from hightouch.htevents._context.scopes import carry, scope, update_scope
from hightouch.htevents._process import exit as process_exit
from hightouch.htevents._process import fork
from hightouch.htevents._process.discretion import discreet as _discreet
from hightouch.htevents._process.logs import log as _log
from hightouch.htevents._queue.ledger import Stats
from hightouch.htevents.client import DEFAULT_TIMEOUT as _DEFAULT_TIMEOUT
from hightouch.htevents.client import (
    Client,
    Context,
    Id,
    Integrations,
    Properties,
    Result,
    Timestamp,
    Traits,
)
from hightouch.htevents.errors import (
    APIError,
    BeforeSendError,
    DamageError,
    ExpiredError,
    MessageTooLargeError,
    NotDeliveredError,
    ValidationError,
)
from hightouch.htevents.settings import (
    BeforeSend,
    Message,
    OnError,
    OnSuccess,
    PrivateKey,
    Proxies,
    Timeout,
)
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
    'configure',
    'deferred',
    'flush',
    'get_client',
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

# The settings by name, for editors and type checkers; a test compares them with
# settings.DefaultConfig. A setting has a value here only if the application has set it.
# Otherwise __getattr__ returns the default.
write_key: Optional[str]
host: Optional[str]
debug: bool
max_queue_size: int
send: bool
on_error: Optional[OnError]
gzip: bool
max_retries: int
sync_mode: bool
timeout: Optional[Timeout]
proxies: Optional[Proxies]
thread: int
upload_size: int
upload_interval: float
log_handler: Optional[logging.Handler]
oauth_client_id: Optional[str]
oauth_client_key: Optional[PrivateKey]
oauth_key_id: Optional[str]
oauth_auth_server: str
oauth_scope: str
on_success: Optional[OnSuccess]
before_send: Optional[BeforeSend]
block_timeout: float
session: Any
shutdown_timeout: Optional[float]
spool_dir: Union[None, str, 'os.PathLike[str]']
spool_fsync: bool
spool_max_bytes: int
trace_context: bool

if sys.version_info < (3, 7):
    # No __getattr__ there. A setting counts as set if it is not the default.
    globals().update(
        (name, getattr(settings.DefaultConfig, name)) for name in settings.NAMES
    )

# The client of the functions below. Set it to None to start over.
default_client: Optional[Client] = None

# The last one that was made here, and what `configure` was given for it.
_made: Tuple[Callable[[], Optional[Client]], Dict[str, Any]] = (lambda: None, {})


if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    _Settings = ParamSpec('_Settings')

    def _takes_the_settings_of(
        client: Callable[_Settings, Client]
    ) -> Callable[[Callable[..., Client]], Callable[_Settings, Client]]:
        ...

else:

    def _takes_the_settings_of(client):
        return lambda function: function


# Guards default_client while it is None. Re-entrant, because a signal handler may make its
# first call on the thread that is making the client.
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # another thread of the parent may hold the old one


fork.register(sys.modules[__name__])


def _chosen() -> Dict[str, Any]:
    """Return the settings that the application has set as attributes of this module."""
    values = globals()
    return {
        name: values[name]
        for name in settings.NAMES
        if name in values
        and (
            sys.version_info >= (3, 7)
            or values[name] != getattr(settings.DefaultConfig, name)
        )
    }


def get_client() -> Client:
    """Return the default client. The first call makes it.

    May be called from any thread.

    :raises ValidationError: (an ``AssertionError``) when a setting is wrong
    """
    global default_client, _made
    fork.check()
    client = default_client
    if client is None:
        made = None
        with _lock:
            if default_client is None:
                made = Client(**_chosen())
                _made = weakref.ref(made), {}
                # A signal handler may have made another one since the check.
                default_client = default_client or made
            client = default_client
        if client is made:
            _warn_of_unknown_settings()
    return client


@_takes_the_settings_of(Client)
@_discreet
def configure(*args: Any, **given: Any) -> Client:
    """Make the default client from these settings, and return it.

    The order is: a setting given here, an attribute of this module that was set, the
    environment, the default. A default client that exists is shut down, after a flush within
    its ``shutdown_timeout``. Calls that begin during that time use the new client. May be
    called from any thread.

    :param given: settings of `Client` by name
    :raises TypeError: when there is no setting of that name
    :raises ValidationError: (an ``AssertionError``) when a setting is wrong. The default client
        is then unchanged
    """
    global default_client, _made
    fork.check()
    for name in given:
        if name not in settings.NAMES:
            raise TypeError('configure() has no setting ' + _with_hint(name))
    chosen = _chosen()
    for name in settings.NAMES[: len(args)]:
        chosen.pop(name, None)
    made = Client(*args, **dict(chosen, **given))
    with _lock:
        before, default_client = default_client, made
        _made = weakref.ref(made), dict(zip(settings.NAMES, args), **given)
    _warn_of_unknown_settings()
    if before is not None:
        before.shutdown(before.shutdown_timeout)
    return made


def _client_if_configured() -> Optional[Client]:
    """Return the default client; None if it is missing and no write key is set."""
    key = settings.find_text(globals().get('write_key'), settings.ENV_WRITE_KEY)
    can_make_one = key and not process_exit.is_over()
    return get_client() if can_make_one else default_client


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
        hints = ', '.join(map(_with_hint, unknown))
        _log.warning('htevents has no such setting, ignored: ' + hints)


def _with_hint(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name.lower(), settings.NAMES, 1)
    return name + (' (did you mean %s?)' % near[0] if near else '')


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

    :param user_id: str or number, your id of the user; None only with an anonymous_id, or
        in a `scope` with an id
    :param traits: dict that describes the user, such as an email; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id, or
        in a `scope` with an id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or get_client()).identify(
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
    *,
    idempotency_key: object = None,
) -> Result:
    """Record an action of a user.

    May be called from any thread. The dicts are copied and never changed.

    :param user_id: str or number, your id of the user; None only with an anonymous_id, or
        in a `scope` with an id
    :param event: str, the name of the action, such as 'Order Completed'; required
    :param properties: dict that describes the action, such as a price; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id, or
        in a `scope` with an id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :param idempotency_key: str, number, UUID, date or enum, or a tuple of them, such as
        ``('order', order.id)``. The message id is then a UUID5 of the write key, the type,
        the event and this key: the same in every process and repetition. A warehouse may
        still hold the event twice. None: not used
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or get_client()).track(
        user_id,
        event,
        properties,
        context,
        timestamp,
        anonymous_id,
        integrations,
        message_id,
        idempotency_key=idempotency_key,
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
    :param user_id: str or number, the user's id from now on; None only in a `scope` with
        a user_id
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
    return (default_client or get_client()).alias(
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

    :param user_id: str or number, your id of the user; None only with an anonymous_id, or
        in a `scope` with an id
    :param group_id: str or number, the group's id in your system; required
    :param traits: dict that describes the group, such as its name; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id, or
        in a `scope` with an id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or get_client()).group(
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

    :param user_id: str or number, your id of the user; None only with an anonymous_id, or
        in a `scope` with an id
    :param category: str, the kind of page; None: no category
    :param name: str, the name of the page; None: no name
    :param properties: dict that describes the page, such as its URL; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id, or
        in a `scope` with an id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or get_client()).page(
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

    :param user_id: str or number, your id of the user; None only with an anonymous_id, or
        in a `scope` with an id
    :param category: str, the kind of screen; None: no category
    :param name: str, the name of the screen; None: no name
    :param properties: dict that describes the screen, such as its tab; None: empty
    :param context: dict of circumstances, such as ip, locale or page; None: empty
    :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
        is local if it is within 5 seconds of the local time, otherwise UTC
    :param anonymous_id: str or number, the id of a visitor; None only with a user_id, or
        in a `scope` with an id
    :param integrations: dict such as ``{'All': True}``; None: the usual destinations
    :param message_id: str by which repeated events are recognized; None: a UUID4
    :returns: ``(accepted, message)``: False when the queue is full, the client was shut
        down, or before_send dropped the event; and the dict as it goes on the wire
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
    """
    return (default_client or get_client()).screen(
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
        """Return a setting's default; import `oauth_manager` with its first use."""
        if name in settings.NAMES:
            return getattr(settings.DefaultConfig, name)
        if name == 'oauth_manager':
            return importlib.import_module(__name__ + '.oauth_manager')
        raise AttributeError('module %r has no attribute %r' % (__name__, name))

    def __dir__() -> List[str]:
        return sorted(set(globals()).union(settings.NAMES))


# The names of this module. The application meant any other name as a setting.
_original = dict(globals())
