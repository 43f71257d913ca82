"""The client: checks a call, makes its message, encodes it once, and queues it."""

import logging
import math
import numbers
import os
import sys
import threading
from datetime import datetime
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from hightouch.htevents import encoding, settings
from hightouch.htevents._process import fork, logs
from hightouch.htevents._process.credentials import bare
from hightouch.htevents._process.discretion import discreet, drop_own_frames
from hightouch.htevents._process.interruption import is_instance, raise_interruption
from hightouch.htevents._process.logs import log
from hightouch.htevents._process.waiting import delivering_threads, is_delivering
from hightouch.htevents._queue.ledger import Stats
from hightouch.htevents._queue.queue import Queue
from hightouch.htevents._queue.queue_api import QueueApi
from hightouch.htevents._queue.stores import MemoryStore, Store
from hightouch.htevents.consumer import MAX_MSG_SIZE, Consumer, OnError, OnSuccess
from hightouch.htevents.delivery import Delivery
from hightouch.htevents.encoding import encode, encode_plain
from hightouch.htevents.errors import (
    BeforeSendError,
    MessageTooLargeError,
    ValidationError,
    name_of,
)
from hightouch.htevents.findings import Finding, Findings
from hightouch.htevents.forms import is_a, plain_scalar, unproxied
from hightouch.htevents.request import normalize_proxies
from hightouch.htevents.settings import (
    PrivateKey,
    Proxies,
    Timeout,
    check_callable,
    check_seconds,
    check_whole,
    expect,
)
from hightouch.htevents.stamps import iso_now, new_message_id, to_iso
from hightouch.htevents.version import NAME, VERSION

ID_TYPES = (numbers.Number, str)

# Seconds that flush() and shutdown() take at most, unless told otherwise.
DEFAULT_TIMEOUT = 20

# Seconds that the flush on SIGTERM takes at most: supervisors kill after 10 (Docker) to
# 90.
DRAIN_TIMEOUT = 10

# What calls take and return. Mapping, so that a TypedDict is one; a call takes a dict.
Id = Union[str, int, float]
Properties = Mapping[str, object]
Traits = Mapping[str, object]
Context = Mapping[str, object]
Integrations = Mapping[str, object]
Timestamp = Union[datetime, str]
Message = Dict[str, Any]
Result = Tuple[bool, Message]
BeforeSend = Callable[[Message], Optional[Message]]

_LIBRARY = {'name': NAME, 'version': VERSION}


class Client:
    """Sends events for one write key, from background threads.

    All methods may be called from any thread, from signal handlers and from callbacks.
    A call for an event costs some microseconds: it checks, encodes and queues.

    :param write_key: key of the event source; None: ``HTEVENTS_WRITE_KEY``
    :param host: base URL; None: ``HTEVENTS_HOST``, else Hightouch's
    :param debug: log what happens at level DEBUG; to stderr, unless it is shown already
    :param max_queue_size: events that may wait; 0 or less: no bound
    :param send: False is the off switch: calls check and build their message, and
        nothing is queued or sent
    :param on_error: called with an error and the list of messages that were lost
    :param gzip: compress the requests
    :param max_retries: how often a failed request is sent again; 0: never
    :param sync_mode: each call delivers its own event, with retries, before it returns
    :param timeout: seconds for a connection and between bytes of an answer, or a pair of
        them; None: no end
    :param proxies: dict as in ``requests``, or a URL or 'host:port' for both schemes
    :param thread: how many requests may be sent side by side
    :param upload_size: most events in a request
    :param upload_interval: seconds an event waits for others to share a request
    :param log_handler: a ``logging.Handler`` for the logger ``hightouch``
    :param oauth_client_id: with ``oauth_client_key`` (RSA) and ``oauth_key_id``: sign in
        by OAuth at ``oauth_auth_server`` for ``oauth_scope``
    :param on_success: called with the list of messages that were acknowledged
    :param before_send: called with a message, on the caller's thread; returns it,
        changed or not, or None to drop it
    :param block_timeout: seconds a call waits for room in a full queue; 0: refuse at once
    :param session: a ``requests.Session`` to send with; it is not closed here
    :param shutdown_timeout: seconds that interpreter exit may take to deliver what is
        queued; None: no bound
    :param spool_dir: an existing directory; what is accepted is written there before a
        call returns, and survives the end of the process in any way. ``max_queue_size``
        and ``max_retries`` do not apply then
    :param spool_fsync: survive a power cut as well: each call waits for the disk
    :param spool_max_bytes: bytes that this client's events may take there; beyond that
        calls return False
    :raises ValidationError: (an ``AssertionError``) when a setting is wrong
    """

    DefaultConfig = settings.DefaultConfig
    log = logs.logger

    @discreet
    def __init__(
        self,
        write_key: Optional[str] = DefaultConfig.write_key,
        host: Optional[str] = DefaultConfig.host,
        debug: bool = DefaultConfig.debug,
        max_queue_size: int = DefaultConfig.max_queue_size,
        send: bool = DefaultConfig.send,
        on_error: Optional[OnError] = DefaultConfig.on_error,
        gzip: bool = DefaultConfig.gzip,
        max_retries: int = DefaultConfig.max_retries,
        sync_mode: bool = DefaultConfig.sync_mode,
        timeout: Optional[Timeout] = DefaultConfig.timeout,
        proxies: Optional[Proxies] = DefaultConfig.proxies,
        thread: int = DefaultConfig.thread,
        upload_size: int = DefaultConfig.upload_size,
        upload_interval: float = DefaultConfig.upload_interval,
        log_handler: Optional[logging.Handler] = DefaultConfig.log_handler,
        oauth_client_id: Optional[str] = DefaultConfig.oauth_client_id,
        oauth_client_key: Optional[PrivateKey] = DefaultConfig.oauth_client_key,
        oauth_key_id: Optional[str] = DefaultConfig.oauth_key_id,
        oauth_auth_server: str = DefaultConfig.oauth_auth_server,
        oauth_scope: str = DefaultConfig.oauth_scope,
        *,
        on_success: Optional[OnSuccess] = DefaultConfig.on_success,
        before_send: Optional[BeforeSend] = DefaultConfig.before_send,
        block_timeout: float = DefaultConfig.block_timeout,
        session: Any = DefaultConfig.session,
        shutdown_timeout: Optional[float] = DefaultConfig.shutdown_timeout,
        spool_dir: Union[None, str, 'os.PathLike[str]'] = DefaultConfig.spool_dir,
        spool_fsync: bool = DefaultConfig.spool_fsync,
        spool_max_bytes: int = DefaultConfig.spool_max_bytes,
    ) -> None:
        settings.check_truth(dict(locals(), self=None))
        write_key = settings.check_write_key(write_key)
        host = settings.check_host(host)
        max_queue_size = check_whole('max_queue_size', max_queue_size)
        max_retries = check_whole('max_retries', max_retries)
        timeout = settings.check_timeout(timeout)
        thread = check_whole('thread', thread, 0 if sync_mode else 1, sys.maxsize)
        upload_size = check_whole('upload_size', upload_size, 1)
        upload_interval = check_seconds('upload_interval', upload_interval)
        log_handler = settings.check_log_handler(log_handler)
        on_error = check_callable('on_error', on_error)
        on_success = check_callable('on_success', on_success)
        before_send = check_callable('before_send', before_send)
        block_timeout = check_seconds('block_timeout', block_timeout)
        if shutdown_timeout is not None:
            shutdown_timeout = check_seconds('shutdown_timeout', shutdown_timeout)
        spool_max_bytes = check_whole('spool_max_bytes', spool_max_bytes, 1 << 20)
        spool_dir = settings.check_spool_dir(spool_dir, sync_mode, send)
        proxies = normalize_proxies(proxies)

        self.write_key = write_key
        self.host = host
        self.debug = debug
        self.send = send
        self.on_error = on_error
        self.gzip = gzip
        self.max_retries = max_retries
        self.sync_mode = sync_mode
        self.timeout = timeout
        self.proxies = proxies
        self._queue = Queue(
            MemoryStore(max_queue_size)
            if spool_dir is None
            else _file_store(spool_dir, write_key, spool_fsync, spool_max_bytes)
        )
        self._before_send = before_send
        self._block_timeout = block_timeout
        self._findings = Findings()
        self._to_warn = [True]  # taken by the one thread that warns of refused events
        self._to_warn_of_echo = [True]

        self.oauth_manager: Any = None
        oauth = (oauth_client_id, oauth_client_key, oauth_key_id)
        if all(oauth):
            expect(
                is_instance(oauth_auth_server or '', str),
                'oauth_auth_server',
                'a URL, of the server that gives the tokens',
                oauth_auth_server,
            )
            from hightouch.htevents.oauth_manager import OauthManager

            self.oauth_manager = OauthManager(
                oauth_client_id,
                oauth_client_key,
                oauth_key_id,
                oauth_auth_server,
                oauth_scope,
                timeout,
                proxies=proxies,
                session=session,
            )

        encoding.preload()
        oauth_manager, lease = self.oauth_manager, None
        if send:
            from hightouch.htevents._process.transport import Lease

            lease = Lease(session)

        def make_consumer() -> Consumer:
            # Refers to nothing of the client: see Delivery.
            return Consumer(
                queue,
                write_key,
                upload_size=upload_size,
                host=host,
                on_error=on_error,
                upload_interval=upload_interval,
                gzip=gzip,
                retries=max_retries,
                timeout=timeout,
                proxies=proxies,
                oauth_manager=oauth_manager,
                on_success=on_success,
                lease=lease,
            )

        self._delivery = Delivery(
            self._queue,
            make_consumer,
            threads=0 if sync_mode else thread,
            shutdown_timeout=shutdown_timeout,
            release=None if lease is None else lease.close,
            on_end=logs.attach(debug, log_handler),
        )
        self.queue = queue = QueueApi(
            self._queue,
            max_queue_size if spool_dir is None else 0,
            self._delivery.put if send else self._queue.offer,
        )
        # Last, when the client's own log handler can hear it.
        if any(oauth) and not all(oauth):
            log.warning(
                'OAuth is off: oauth_client_id, oauth_client_key and oauth_key_id are '
                'needed together, and only a part of them was given'
            )
        if self.oauth_manager is not None and self.oauth_manager.problem is not None:
            text = self.oauth_manager.problem[1]
            log.warning('OAuth cannot work, and no event will be sent: %s', text)
        if host is not None and not settings.has_scheme(host):
            log.warning(
                'host: expected a URL that begins with https:// or http://, got a str '
                'without; requests to it will fail. Write https:// in front of it'
            )
        if self._queue.store.has_backlog():
            self._delivery.start()

    @property
    def consumers(self) -> Optional[List[Consumer]]:
        """The consumers; None in ``sync_mode``.

        The first event starts them. While one is idle it has no thread of the system.
        """
        return None if self.sync_mode else self._delivery.consumers

    # -- the six calls ---------------------------------------------------------------

    def identify(
        self,
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

        :param user_id: str or number, the user's id in your system; None only with an
            anonymous_id
        :param traits: dict that describes the user, such as an email; None: empty
        :param context: dict of circumstances, such as ip, locale or page; None: empty
        :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
            is local if it is within 5 seconds of the local time, otherwise UTC
        :param anonymous_id: str or number, the id of an unknown visitor; None only with
            a user_id
        :param integrations: dict that selects destinations, such as ``{'All': True}``;
            None: the usual ones
        :param message_id: str by which repeated events are recognized; None: a UUID4
        :returns: ``(accepted, message)``. ``accepted`` is False when the queue is full,
            the client was shut down, or before_send dropped the event. ``message`` is
            the dict as it goes on the wire
        :raises ValidationError: (an ``AssertionError``) when an argument is wrong
        :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
        """
        user_id, anonymous_id = _ids(user_id, anonymous_id)
        return self._enqueue(
            {'type': 'identify'},
            'traits',
            traits,
            user_id,
            anonymous_id,
            context,
            timestamp,
            integrations,
            message_id,
        )

    def track(
        self,
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

        :param user_id: str or number, the user's id in your system; None only with an
            anonymous_id
        :param event: str, the name of the action, such as 'Order Completed'; required
        :param properties: dict that describes the action, such as a price; None: empty
        :param context: dict of circumstances, such as ip, locale or page; None: empty
        :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
            is local if it is within 5 seconds of the local time, otherwise UTC
        :param anonymous_id: str or number, the id of an unknown visitor; None only with
            a user_id
        :param integrations: dict that selects destinations, such as ``{'All': True}``;
            None: the usual ones
        :param message_id: str by which repeated events are recognized; None: a UUID4
        :returns: ``(accepted, message)``. ``accepted`` is False when the queue is full,
            the client was shut down, or before_send dropped the event. ``message`` is
            the dict as it goes on the wire
        :raises ValidationError: (an ``AssertionError``) when an argument is wrong
        :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
        """
        user_id, anonymous_id = _ids(user_id, anonymous_id)
        kind = type(event)
        if kind is not str:
            event = plain_scalar(event)
            expected = 'a str, the name of what happened'
            expect(is_a(event, str), 'event', expected, event)
        return self._enqueue(
            {'type': 'track', 'event': event},
            'properties',
            properties,
            user_id,
            anonymous_id,
            context,
            timestamp,
            integrations,
            message_id,
        )

    def alias(
        self,
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
        :param integrations: dict that selects destinations, such as ``{'All': True}``;
            None: the usual ones
        :param message_id: str by which repeated events are recognized; None: a UUID4
        :returns: ``(accepted, message)``. ``accepted`` is False when the queue is full,
            the client was shut down, or before_send dropped the event. ``message`` is
            the dict as it goes on the wire
        :raises ValidationError: (an ``AssertionError``) when an argument is wrong
        :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
        """
        previous_id = _checked_id('previous_id', previous_id, required=True)
        user_id = _as_text(_checked_id('user_id', user_id, required=True))
        return self._enqueue(
            {'type': 'alias', 'previousId': previous_id},
            None,
            None,
            user_id,
            None,
            context,
            timestamp,
            integrations,
            message_id,
        )

    def group(
        self,
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

        :param user_id: str or number, the user's id in your system; None only with an
            anonymous_id
        :param group_id: str or number, the group's id in your system; required
        :param traits: dict that describes the group, such as its name; None: empty
        :param context: dict of circumstances, such as ip, locale or page; None: empty
        :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
            is local if it is within 5 seconds of the local time, otherwise UTC
        :param anonymous_id: str or number, the id of an unknown visitor; None only with
            a user_id
        :param integrations: dict that selects destinations, such as ``{'All': True}``;
            None: the usual ones
        :param message_id: str by which repeated events are recognized; None: a UUID4
        :returns: ``(accepted, message)``. ``accepted`` is False when the queue is full,
            the client was shut down, or before_send dropped the event. ``message`` is
            the dict as it goes on the wire
        :raises ValidationError: (an ``AssertionError``) when an argument is wrong
        :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
        """
        user_id, anonymous_id = _ids(user_id, anonymous_id)
        group_id = _checked_id('group_id', group_id, required=True)
        return self._enqueue(
            {'type': 'group', 'groupId': group_id},
            'traits',
            traits,
            user_id,
            anonymous_id,
            context,
            timestamp,
            integrations,
            message_id,
        )

    def page(
        self,
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

        :param user_id: str or number, the user's id in your system; None only with an
            anonymous_id
        :param category: str, the kind of page; None: no category
        :param name: str, the name of the page; None: no name
        :param properties: dict that describes the page, such as its URL; None: empty
        :param context: dict of circumstances, such as ip, locale or page; None: empty
        :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
            is local if it is within 5 seconds of the local time, otherwise UTC
        :param anonymous_id: str or number, the id of an unknown visitor; None only with
            a user_id
        :param integrations: dict that selects destinations, such as ``{'All': True}``;
            None: the usual ones
        :param message_id: str by which repeated events are recognized; None: a UUID4
        :returns: ``(accepted, message)``. ``accepted`` is False when the queue is full,
            the client was shut down, or before_send dropped the event. ``message`` is
            the dict as it goes on the wire
        :raises ValidationError: (an ``AssertionError``) when an argument is wrong
        :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
        """
        user_id, anonymous_id = _ids(user_id, anonymous_id)
        return self._enqueue(
            _view('page', category, name),
            'properties',
            properties,
            user_id,
            anonymous_id,
            context,
            timestamp,
            integrations,
            message_id,
        )

    def screen(
        self,
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

        :param user_id: str or number, the user's id in your system; None only with an
            anonymous_id
        :param category: str, the kind of screen; None: no category
        :param name: str, the name of the screen; None: no name
        :param properties: dict that describes the screen, such as its tab; None: empty
        :param context: dict of circumstances, such as ip, locale or page; None: empty
        :param timestamp: datetime or ISO-8601 str; None: now. A time without an offset
            is local if it is within 5 seconds of the local time, otherwise UTC
        :param anonymous_id: str or number, the id of an unknown visitor; None only with
            a user_id
        :param integrations: dict that selects destinations, such as ``{'All': True}``;
            None: the usual ones
        :param message_id: str by which repeated events are recognized; None: a UUID4
        :returns: ``(accepted, message)``. ``accepted`` is False when the queue is full,
            the client was shut down, or before_send dropped the event. ``message`` is
            the dict as it goes on the wire
        :raises ValidationError: (an ``AssertionError``) when an argument is wrong
        :raises MessageTooLargeError: (a ``RuntimeError``) over 32 KiB of JSON
        """
        user_id, anonymous_id = _ids(user_id, anonymous_id)
        return self._enqueue(
            _view('screen', category, name),
            'properties',
            properties,
            user_id,
            anonymous_id,
            context,
            timestamp,
            integrations,
            message_id,
        )

    # -- what they share -------------------------------------------------------------

    def _enqueue(
        self,
        message: Message,
        fields: Optional[str],
        values: Optional[Mapping[str, object]],
        user_id: Any,
        anonymous_id: Any,
        context: Optional[Context],
        timestamp: Optional[Timestamp],
        integrations: Optional[Integrations],
        message_id: Any,
    ) -> Result:
        """Complete a message, and queue it.

        :param fields: name of the dict of what the application knows; None: it has none
        :param values: that dict
        :param user_id: as it goes on the wire; so is the anonymous_id
        """
        fork.check()
        found: List[Finding] = []
        if fields is not None:
            message[fields] = _copied(fields, values, found)
        circumstances = _copied('context', context, found)
        circumstances['library'] = _LIBRARY.copy()
        message['userId'] = user_id
        message['anonymousId'] = anonymous_id
        message['context'] = circumstances
        message['integrations'] = _copied('integrations', integrations, found)
        message['timestamp'] = iso_now() if timestamp is None else to_iso(timestamp)
        if message_id is not None:
            message_id = _as_text(message_id)
        message['messageId'] = message_id or new_message_id()
        if self._before_send is not None:
            scrubbed = self._scrub(message, found)
            if scrubbed is None:
                if self.send:
                    self._queue.refuse()
                return False, message
            body, message = encode(scrubbed, found)
        else:
            body, message = encode_plain(message, found)
        if found:
            self._findings.log(found)
        if len(body) > MAX_MSG_SIZE:
            raise MessageTooLargeError(len(body), MAX_MSG_SIZE)
        if not self.send:
            return True, message
        # The first condition is the cheap one.
        is_inside = threading.get_ident() in delivering_threads and is_delivering()
        if is_inside and logs.is_echo():
            self._refuse_echo()
            return False, message
        if self.debug:
            log.debug('queueing: %s', message)
        if self.sync_mode:
            accepted = self._delivery.deliver_now(body)
            full = False
        else:
            accepted = self._delivery.put(body, self._block_timeout)
            full = not accepted
        if accepted:
            if not self._to_warn and self._queue.store.has_room_again():
                self._to_warn = [True]
        elif full or self._queue.closed:
            self._warn()
        return accepted, message

    def _scrub(self, message: Message, found: List[Finding]) -> Optional[Message]:
        # On a copy: if it raises, what is reported and returned is the whole message.
        assert self._before_send is not None
        copy = _copied('', message, found, 0)
        try:
            scrubbed = self._before_send(copy)
        except Exception as error:
            raise_interruption(error)
            failure = BeforeSendError('before_send raised %s' % name_of(type(error)))
            drop_own_frames(error)
            failure.__cause__ = error
        else:
            if scrubbed is None or is_instance(scrubbed, dict):
                return scrubbed
            failure = BeforeSendError(
                'before_send: expected a dict or None back, got %s'
                % name_of(type(scrubbed))
            )
        self._delivery.report(failure, [message])
        return None

    def _refuse_echo(self) -> None:
        self._queue.refuse()
        try:
            self._to_warn_of_echo.pop()
        except IndexError:
            return
        log.warning(
            'Events that a log handler tracks for the lines of a delivery are refused: '
            'each would cause another line'
        )

    def _warn(self) -> None:
        """Say once why events are refused, until there is room again."""
        try:
            self._to_warn.pop()
        except IndexError:
            return
        if self._queue.closed:
            log.warning('The client was shut down: its calls return False from now on')
        else:
            log.warning(
                '%s: calls return False until there is room',
                self._queue.store.why_refused(),
            )

    # -- life cycle ------------------------------------------------------------------

    def flush(self, timeout: Optional[float] = DEFAULT_TIMEOUT) -> bool:
        """Send at once what is queued, and wait for it.

        :param timeout: seconds; None waits without bound
        :returns: True when all that was accepted before this call was delivered or
            reported through ``on_error``; False when time ran out: nothing is dropped
        """
        fork.check()
        timeout = _checked_timeout(timeout)
        return not self.send or self._delivery.flush(timeout)

    def shutdown(self, timeout: Optional[float] = DEFAULT_TIMEOUT) -> bool:
        """Flush, then end the threads; what is not delivered in time is reported lost.

        Calls made later return ``(False, message)``. Twice is harmless.

        :param timeout: seconds; None waits without bound
        :returns: as `flush`
        """
        fork.check()
        timeout = _checked_timeout(timeout)
        if self.send:
            return self._delivery.shutdown(timeout)
        self._delivery.retire()
        return True

    def join(self, timeout: Optional[float] = DEFAULT_TIMEOUT) -> bool:
        """Do the same as `shutdown`."""
        return self.shutdown(timeout)

    def drain_on_sigterm(self, timeout: float = DRAIN_TIMEOUT) -> None:
        """Flush on SIGTERM; then the previous handler runs, as if we were not there.

        To be called on the main thread, after the application installed its own
        handler. The application goes on while we flush.

        :param timeout: seconds
        :raises RuntimeError: where no handler can be installed: another thread, or a
            host program that handles SIGTERM outside of Python
        """
        expect(settings.is_number(timeout), 'timeout', 'a number of seconds', timeout)
        from hightouch.htevents._process import sigterm

        sigterm.drain(self._delivery, settings.as_number(timeout))

    def stats(self) -> Stats:
        """Count the events so far; accepted = delivered + failed + pending."""
        fork.check()
        return self._delivery.stats()

    def __enter__(self) -> 'Client':
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def __del__(self) -> None:
        delivery = getattr(self, '_delivery', None)
        if delivery is not None:
            delivery.retire()

    def __copy__(self) -> 'Client':
        return self  # two with one queue: the first that is dropped would close it

    def __deepcopy__(self, memo: Any) -> 'Client':
        return self

    def __repr__(self) -> str:
        host = None if self.host is None else bare(self.host)
        return '<Client host=%r pending=%d>' % (host, self._queue.ledger.pending())


def _file_store(directory: str, write_key: str, fsync: bool, max_bytes: int) -> Store:
    # Imported here: without a spool nobody pays for it.
    from hightouch.htevents._spool.store import FileStore

    return FileStore(directory, write_key, fsync, max_bytes)


def _checked_timeout(timeout: Optional[float]) -> Optional[float]:
    expect(
        timeout is None or settings.is_number(timeout),
        'timeout',
        'a number of seconds, or None',
        timeout,
    )
    seconds: Optional[float] = settings.as_number(timeout)
    return seconds


def _is_id(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, str):
        return True
    if kind is bool or not issubclass(kind, ID_TYPES):
        return False
    try:
        return math.isfinite(value)
    except Exception as error:
        raise_interruption(error)
        # Of a signaling NaN. The others are of a complex number, or an int that is larger
        # than any float.
        return not isinstance(error, ValueError)


def _ids(user_id: Any, anonymous_id: Any) -> Tuple[Any, Any]:
    """Return the ids as they go on the wire; raise `ValidationError` without one."""
    kind = type(user_id)
    # The common case first, in one test: this is on every event's way.
    if kind is str and user_id and anonymous_id is None:
        return user_id, None
    user_id = _checked_id('user_id', user_id)
    # Beside a user, it may be of any type.
    if _is_missing(user_id):
        anonymous_id = _checked_id('anonymous_id', anonymous_id)
        if _is_missing(anonymous_id):
            raise ValidationError(
                'user_id or anonymous_id: expected a str or a number in one of them, '
                'got neither'
            )
    return _as_text(user_id), _as_text(anonymous_id)


def _is_missing(identity: Any) -> bool:
    return identity is None or isinstance(identity, str) and not identity


def _checked_id(name: str, value: Any, required: bool = False) -> Any:
    """Return what an id stands for; raise `ValidationError` if that is not an id."""
    value = plain_scalar(value)
    expect(
        _is_id(value) or value is None and not required,
        name,
        'a str or a number',
        value,
    )
    return value


def _as_text(value: Any) -> Any:
    value = plain_scalar(value)
    if value is None or is_a(value, str):
        return value
    try:
        return str(value)
    except Exception as error:
        raise_interruption(error)
        if isinstance(value, int):  # with more digits than the interpreter prints
            return hex(value)
        raise ValidationError(
            'expected an id that str() can show, got %s' % name_of(type(value))
        )


def _copied(
    name: str,
    value: Optional[Mapping[str, object]],
    found: List[Finding],
    depth: int = 1,
) -> Message:
    """Return a dict of the caller's as it goes on the wire; {} for anything falsy.

    :param found: a list for the findings
    :param depth: its level in the message
    """
    if value is None:
        return {}
    kind = type(value)
    if not issubclass(kind, dict):
        value = unproxied(value)
        if not is_a(value, dict):
            expect(_is_falsy(value), name, 'a dict', value)
            return {}
    copied = encoding.plain_copy(value, name, depth, found)
    return copied if isinstance(copied, dict) else {}


def _is_falsy(value: Any) -> bool:
    try:
        return not value
    except Exception as error:  # an array of numpy has no truth of its own
        raise_interruption(error)
        return False


def _view(type: str, category: Optional[str], name: Optional[str]) -> Message:
    return {
        'type': type,
        'category': _text('category', category),
        'name': _text('name', name),
    }


def _text(name: str, value: Optional[str]) -> Optional[str]:
    kind = type(value)
    if value is None or kind is str:
        return value or None
    value = plain_scalar(value)
    if not is_a(value, str):
        expect(_is_falsy(value), name, 'a str', value)
    return value or None
