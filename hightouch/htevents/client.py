"""The client: checks a call, builds its message, encodes it once, and queues it."""

import logging
import os
import sys
from datetime import datetime
from functools import partial
from threading import get_ident
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, TypeVar, Union

from hightouch.htevents import coroutines, encoding, settings
from hightouch.htevents._context import blocks, deferral, scopes, traces
from hightouch.htevents._context.scopes import Id as Id
from hightouch.htevents._context.scopes import ids
from hightouch.htevents._process import captures, fork, logs
from hightouch.htevents._process.credentials import bare
from hightouch.htevents._process.discretion import discreet, drop_own_frames
from hightouch.htevents._process.interruption import is_instance, raise_interruption
from hightouch.htevents._process.logs import log
from hightouch.htevents._process.waiting import (
    Deadline,
    delivering,
    delivers,
    is_delivering,
)
from hightouch.htevents._queue.ledger import Stats
from hightouch.htevents._queue.queue import Queue
from hightouch.htevents._queue.queue_api import QueueApi
from hightouch.htevents._queue.stores import MemoryStore, Store
from hightouch.htevents.arguments import (
    as_text,
    checked_id,
    checked_text,
    copied,
    is_missing,
)
from hightouch.htevents.consumer import MAX_MSG_SIZE, Consumer
from hightouch.htevents.delivery import Delivery
from hightouch.htevents.encoding import encode_plain
from hightouch.htevents.errors import (
    BeforeSendError,
    MessageTooLargeError,
    NotDeliveredError,
    name_of,
)
from hightouch.htevents.findings import Finding, Findings
from hightouch.htevents.forms import is_a, plain_scalar
from hightouch.htevents.settings import (
    BeforeSend,
    Message,
    OnError,
    OnSuccess,
    PrivateKey,
    Proxies,
    Timeout,
    expect,
)
from hightouch.htevents.stamps import iso_now, new_message_id, stable_message_id, to_iso
from hightouch.htevents.version import NAME, VERSION

# Seconds that flush() and shutdown() take at most, by default.
DEFAULT_TIMEOUT = 20

# Seconds that the flush on SIGTERM takes at most. Supervisors send SIGKILL after 10 seconds
# (Docker) to 90.
DRAIN_TIMEOUT = 10

# Argument types of the calls. With Mapping a TypedDict passes the type checker; at run
# time a call accepts only a dict.
Properties = Mapping[str, object]
Traits = Mapping[str, object]
Context = Mapping[str, object]
Integrations = Mapping[str, object]
Timestamp = Union[datetime, str]
Result = Tuple[bool, Message]

_Self = TypeVar('_Self', bound='Client')


class Client:
    """Sends events for one write key, from background threads.

    All methods may be called from any thread, from signal handlers and from callbacks. A
    call for an event takes some microseconds to check, encode and queue it.

    :param write_key: The write key of your source; required.
    :param host: The URL to send to; None: ``https://us-east-1.hightouch-events.com``.
        Credentials in the URL are sent (HTTP Basic), unless a token or the ``auth`` of
        the ``session`` is used.
    :param debug: Log each step on the logger ``hightouch``, without keys and tokens.
        Lines that none of your handlers writes to the terminal go to stderr.
    :param max_queue_size: Maximum number of events in the queue; 0 or less: no limit.
    :param send: False switches the SDK off: a call checks its arguments and returns
        ``(True, message)``. Nothing is queued or sent, and no thread starts.
    :param on_error: ``on_error(error, batch)`` is called with each batch that was lost.
    :param gzip: Compress requests.
    :param max_retries: Number of retries after the first try failed.
    :param sync_mode: True: each call delivers its event before it returns, with retries
        and without threads. ``accepted`` tells whether the event was delivered.
    :param timeout: Seconds that one request may wait for the server, or a pair as in
        ``requests`` (for the connection, for the answer); None: no limit.
    :param proxies: A dict as in ``requests``, or ``'host:port'`` or a URL for both
        schemes. The proxies of the environment are used too, except for a server on
        loopback.
    :param thread: Maximum number of concurrent requests.
    :param upload_size: Maximum number of events in one request.
    :param upload_interval: Seconds that an event may wait for more events to fill its
        request.
    :param log_handler: A ``logging.Handler`` for the logger ``hightouch``. Errors that
        it raises go to stderr.
    :param oauth_client_id: The client id: see OAuth.
    :param oauth_client_key: The private RSA key that signs the token request: a PEM
        text, or a key object of ``cryptography``. The PEM may have the forms that
        environment variables hold: escaped, quoted, on one line or in base64.
    :param oauth_key_id: The id of the key.
    :param oauth_auth_server: The server that issues the token.
    :param oauth_scope: The scope of the token.
    :param on_success: ``on_success(batch)`` is called after the server accepted a
        batch.
    :param before_send: ``before_send(message)`` may change a message, or return None to
        drop it. If it raises, the message is dropped and reported; it is never sent
        unchanged.
    :param block_timeout: Seconds that a call may wait for room in a full queue; 0
        refuses the event immediately.
    :param session: Your ``requests.Session``, for a private CA, client certificates or
        adapters.
    :param shutdown_timeout: Seconds that the exit of the interpreter may take to
        deliver queued events; None: no limit.
    :param spool_dir: An existing directory for a durable queue: see A queue that
        survives the process.
    :param spool_fsync: True: a call returns after the disk has stored the event, which
        then survives a power cut.
    :param spool_max_bytes: Maximum size of the client's events in ``spool_dir``; calls
        return False when it is reached.
    :param trace_context: True: add the ``traceId`` and ``spanId`` of the current
        OpenTelemetry span as ``context.trace``, if there is a valid one.
    :raises ValidationError: (an ``AssertionError``) when a setting is wrong
    """

    DefaultConfig = settings.DefaultConfig
    log = logs.logger

    @discreet
    @settings.completed
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
        trace_context: bool = DefaultConfig.trace_context,
    ) -> None:
        config = settings.checked(locals())
        self.write_key: str = config.write_key
        self.host: Optional[str] = config.host
        self.debug: bool = config.debug
        self.send: bool = config.send
        self.on_error: Optional[OnError] = config.on_error
        self.gzip: bool = config.gzip
        self.max_retries: int = config.max_retries
        self.sync_mode: bool = config.sync_mode
        self.timeout: Optional[Timeout] = config.timeout
        self.proxies: Optional[Proxies] = config.proxies
        self.shutdown_timeout: Optional[float] = config.shutdown_timeout
        self.oauth_manager = _make_oauth_manager(config)
        self._before_send: Optional[BeforeSend] = config.before_send
        self._block_timeout: float = config.block_timeout
        self._trace_context: bool = config.trace_context
        self._findings = Findings()
        # The warnings that are still to be logged. pop() is atomic: one thread gets each.
        self._due = {'refusal': True, 'echo': True}
        encoding.preload()
        self._queue = Queue(_make_store(config))
        self._delivery, self.queue = _connect(self._queue, config, self.oauth_manager)
        # After _connect, which attaches the client's own log handler.
        _warn_of_settings(config, self.oauth_manager)
        if self._queue.store.has_backlog():
            self._delivery.start()

    @property
    def consumers(self) -> Optional[List[Consumer]]:
        """The consumers; None in ``sync_mode``.

        The first event starts them. An idle consumer has no thread of the system.
        """
        return None if self.sync_mode else self._delivery.consumers

    # -- the six calls; htevents documents their arguments and errors ----------------

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
        """Record the identity of a user: see `htevents.identify`."""
        user_id, anonymous_id = ids(user_id, anonymous_id)
        message: Message = {'type': 'identify', 'traits': traits}
        return self._enqueue(
            message, user_id, anonymous_id, context, timestamp, integrations, message_id
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
        *,
        idempotency_key: object = None,
    ) -> Result:
        """Record an action of a user: see `htevents.track`."""
        user_id, anonymous_id = ids(user_id, anonymous_id)
        kind = type(event)
        if kind is not str:
            event = plain_scalar(event)
            expect(is_a(event, str), 'event', 'a str, the name of the action', event)
        if idempotency_key is not None:
            what = 'None beside an idempotency_key, because it makes the id'
            expect(not message_id, 'message_id', what, message_id)
            message_id = stable_message_id(
                self.write_key, 'track', str(event), idempotency_key
            )
        message: Message = {'type': 'track', 'event': event, 'properties': properties}
        return self._enqueue(
            message, user_id, anonymous_id, context, timestamp, integrations, message_id
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
        """Record that two ids belong to the same user: see `htevents.alias`."""
        previous_id = checked_id('previous_id', previous_id, required=True)
        user_id = checked_id('user_id', user_id)
        if is_missing(user_id):
            user_id = scopes.current_user() or user_id
        user_id = as_text(checked_id('user_id', user_id, required=True))
        message: Message = {'type': 'alias', 'previousId': previous_id}
        return self._enqueue(
            message, user_id, None, context, timestamp, integrations, message_id
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
        """Record that a user belongs to a group: see `htevents.group`."""
        user_id, anonymous_id = ids(user_id, anonymous_id)
        group_id = checked_id('group_id', group_id, required=True)
        message: Message = {'type': 'group', 'groupId': group_id, 'traits': traits}
        return self._enqueue(
            message, user_id, anonymous_id, context, timestamp, integrations, message_id
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
        """Record that a user viewed a page of a website: see `htevents.page`."""
        user_id, anonymous_id = ids(user_id, anonymous_id)
        message = _view('page', category, name, properties)
        return self._enqueue(
            message, user_id, anonymous_id, context, timestamp, integrations, message_id
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
        """Record that a user viewed a screen of an app: see `htevents.screen`."""
        user_id, anonymous_id = ids(user_id, anonymous_id)
        message = _view('screen', category, name, properties)
        return self._enqueue(
            message, user_id, anonymous_id, context, timestamp, integrations, message_id
        )

    # -- the common path -------------------------------------------------------------

    def _enqueue(
        self,
        message: Message,
        user_id: Any,
        anonymous_id: Any,
        context: Optional[Context],
        timestamp: Optional[Timestamp],
        integrations: Optional[Integrations],
        message_id: Any,
    ) -> Result:
        """Complete a message, encode it, and queue it. Both ids are as on the wire."""
        fork.check()
        found: List[Finding] = []
        if 'properties' in message:
            message['properties'] = copied('properties', message['properties'], found)
        elif 'traits' in message:
            message['traits'] = copied('traits', message['traits'], found)
        message['userId'] = user_id
        message['anonymousId'] = anonymous_id
        message['context'] = circumstances = copied('context', context, found)
        circumstances['library'] = {'name': NAME, 'version': VERSION}
        message['integrations'] = (  # rarely given: this saves a call
            {} if integrations is None else copied('integrations', integrations, found)
        )
        message['timestamp'] = iso_now() if timestamp is None else to_iso(timestamp)
        given_id = None if message_id is None else as_text(message_id)
        message['messageId'] = given_id or new_message_id()
        opened = blocks.variable.get()
        if opened:
            scopes.complete(message, found)
        if self._trace_context:
            traces.add_span(circumstances)
        if self._before_send is not None:
            scrubbed = self._scrub(message, found)
            if scrubbed is None:
                return False, message
            message = scrubbed
        body, message = encode_plain(message, found)
        if found:
            self._findings.log(found)
        if len(body) > MAX_MSG_SIZE:
            raise MessageTooLargeError(len(body), MAX_MSG_SIZE)
        return self._offer(body, message, opened), message

    def _offer(
        self,
        body: bytes,
        message: Message,
        opened: Tuple[blocks.Block, ...],
        may_wait: bool = True,
    ) -> bool:
        """Queue an encoded message, or deliver it now; return whether it was accepted.

        :param opened: the open blocks
        :param may_wait: whether to wait for room, or in ``sync_mode`` for the delivery. If
            not, a message in ``sync_mode`` is delivered with the next call, flush or exit
        """
        is_captured = bool(captures.takers)
        if not self.send and not is_captured:
            return True
        # The first condition is the cheap one.
        is_inside = get_ident() in delivering.threads
        if is_inside and is_delivering() and logs.is_echo():
            self._queue.refuse()
            if self._due.pop('echo', False):
                log.warning(
                    'Events that a log handler tracks for the log lines of a delivery '
                    'are refused: each of them would cause another line'
                )
            return False
        if opened and not self._queue.closed:
            if deferral.holds(opened, partial(self._undefer, body, message)):
                return True
        if self.debug:
            log.debug('queueing: %s', message)
        if is_captured and not self._queue.closed:
            captures.take(body)
            return True
        if self.sync_mode and may_wait:
            accepted = self._delivery.deliver_now(body)
        else:
            accepted = self._delivery.put(body, may_wait and self._block_timeout)
        if not accepted or 'refusal' not in self._due:
            self._warn_of_refusal(accepted)
        return accepted

    def _undefer(self, body: bytes, message: Message, may_wait: bool) -> None:
        """Queue a deferred message. Its call has said already that it was accepted."""
        accepted = self._offer(body, message, (), may_wait)
        # In sync_mode an open client has reported a failed delivery.
        was_reported = self.sync_mode and may_wait and not self._queue.closed
        if not accepted and not was_reported:
            why = self._why_refused()
            error = NotDeliveredError(
                'An event was deferred, and then refused: %s.' % why
            )
            self._delivery.report(error, [message])

    def _scrub(self, message: Message, found: List[Finding]) -> Optional[Message]:
        """Return a copy of the message from ``before_send``; None when it is dropped."""
        # before_send gets a copy. If it raises, the whole message is reported.
        copy = encoding.plain_copy(message, '', 0, found)
        failure: Optional[BeforeSendError] = None
        try:
            scrubbed = _called(self._before_send, copy)
        except Exception as error:
            raise_interruption(error)
            failure = BeforeSendError('before_send raised %s' % name_of(type(error)))
            drop_own_frames(error)
            failure.__cause__ = error
        else:
            if is_instance(scrubbed, dict):
                plain = encoding.plain_copy(scrubbed, '', 0, found)
                if isinstance(plain, dict):
                    return plain
            if scrubbed is not None:
                failure = BeforeSendError(
                    'before_send: expected a dict or None back, got %s'
                    % name_of(type(scrubbed))
                )
        if failure is not None:
            self._delivery.report(failure, [message])
        if self.send:
            self._queue.refuse()
        return None

    def _warn_of_refusal(self, accepted: bool) -> None:
        """Log why calls return False: once, until the queue has room again."""
        closed = self._queue.closed
        if accepted:
            if self._queue.store.has_room_again():
                self._due['refusal'] = True
        # In sync_mode an open client reports the failure through on_error.
        elif (closed or not self.sync_mode) and self._due.pop('refusal', False):
            until = '' if closed else ' until there is room'
            log.warning('%s: calls return False%s', self._why_refused(), until)

    def _why_refused(self) -> str:
        if self._queue.closed:
            return 'The client was shut down'
        return self._queue.store.why_refused()

    # -- life cycle ------------------------------------------------------------------

    def flush(self, timeout: Optional[float] = DEFAULT_TIMEOUT) -> bool:
        """Send the queued events without waiting for more, and wait for their delivery.

        :param timeout: seconds; None waits without limit
        :returns: True when all events accepted before this call are delivered, or reported
            through ``on_error``; False when time ran out. No event is dropped then
        """
        fork.check()
        timeout = _checked_timeout(timeout)
        return not self.send or self._delivery.flush(timeout)

    def shutdown(self, timeout: Optional[float] = DEFAULT_TIMEOUT) -> bool:
        """Flush, then end the threads. Report events not delivered in time as lost.

        Later calls return ``(False, message)``. A second shutdown does nothing. Inside a
        callback it waits for nothing, and the threads end when the queue is empty.

        :param timeout: seconds; None waits without limit
        :returns: like `flush`
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

    async def aflush(self, timeout: Optional[float] = DEFAULT_TIMEOUT) -> bool:
        """Do the same as `flush` in a coroutine of asyncio or trio.

        The event loop goes on, and no thread is started for it. If the task is cancelled,
        the sending goes on, and no event is lost. The loop may have any number of waiting
        tasks.

        :param timeout: seconds; None waits without limit
        :returns: like `flush`
        """
        fork.check()
        timeout = _checked_timeout(timeout)
        return not self.send or await coroutines.flush(
            self._delivery, Deadline(timeout)
        )

    async def aclose(self, timeout: Optional[float] = DEFAULT_TIMEOUT) -> bool:
        """Do the same as `shutdown` in a coroutine of asyncio or trio.

        If the task is cancelled, the client is closed, and its threads deliver what it has
        accepted, as long as the process lives. ``async with Client(...)`` ends with it.

        :param timeout: seconds; None waits without limit
        :returns: like `flush`
        """
        fork.check()
        timeout = _checked_timeout(timeout)
        if self.send:
            return await coroutines.shutdown(self._delivery, Deadline(timeout))
        self._delivery.retire()
        return True

    def drain_on_sigterm(self, timeout: float = DRAIN_TIMEOUT) -> None:
        """Flush on SIGTERM, then run the previous handler, and exit as without this call.

        Call it on the main thread, after the application installed its own handler. The
        application continues to run during the flush.

        :param timeout: seconds
        :raises RuntimeError: where no handler can be installed: on another thread, or in a
            host program that handles SIGTERM outside of Python
        """
        expect(settings.is_number(timeout), 'timeout', 'a number of seconds', timeout)
        from hightouch.htevents._process import sigterm

        sigterm.drain(self._delivery, settings.as_number(timeout))

    def stats(self) -> Stats:
        """Return the counts of events: accepted = delivered + failed + pending."""
        fork.check()
        return self._delivery.stats()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    async def __aenter__(self: _Self) -> _Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the interpreter the exit hook has ended it, and modules are empty.
        delivery = getattr(self, '_delivery', None)
        if delivery is not None and not is_finalizing():
            delivery.retire()

    def __copy__(self, memo: Any = None) -> 'Client':
        return self  # a second client on the same queue would close it when dropped

    __deepcopy__ = __copy__

    def __repr__(self) -> str:
        host = None if self.host is None else bare(self.host)
        return '<Client host=%r pending=%d>' % (host, self._queue.ledger.pending())


def _make_store(config: Any) -> Store:
    if config.spool_dir is None:
        return MemoryStore(config.max_queue_size)
    # Imported late, because most clients have no spool.
    from hightouch.htevents._spool.store import FileStore

    return FileStore(
        config.spool_dir, config.write_key, config.spool_fsync, config.spool_max_bytes
    )


def _make_oauth_manager(config: Any) -> Any:
    if not all(config.oauth):
        return None
    server = config.oauth_auth_server
    expected = 'the URL of the server that issues the tokens'
    expect(is_instance(server or '', str), 'oauth_auth_server', expected, server)
    from hightouch.htevents.oauth_manager import OauthManager

    return OauthManager(
        config.oauth_client_id,
        config.oauth_client_key,
        config.oauth_key_id,
        server,
        config.oauth_scope,
        config.timeout,
        proxies=config.proxies,
        session=config.session,
    )


@delivers
def _called(callback: Any, message: Message) -> Any:
    return callback(message)


def _connect(
    queue: Queue, config: Any, oauth_manager: Any
) -> Tuple[Delivery, QueueApi]:
    """Make the delivery of a queue, and the view of the queue for applications."""
    lease = None
    if config.send:
        from hightouch.htevents._process.transport import Lease  # imports requests

        lease = Lease(config.session)
    # Consumers must not refer to the client (see Delivery). The config may do so: before_send
    # can be a method of an object that holds the client.
    write_key = config.write_key
    options: Dict[str, Any] = {
        'upload_size': config.upload_size,
        'host': config.host,
        'on_error': config.on_error,
        'upload_interval': config.upload_interval,
        'gzip': config.gzip,
        'retries': config.max_retries,
        'timeout': config.timeout,
        'proxies': config.proxies,
        'oauth_manager': oauth_manager,
        'on_success': config.on_success,
        'lease': lease,
    }
    delivery = Delivery(
        queue,
        lambda: Consumer(queue_api, write_key, **options),
        threads=0 if config.sync_mode else config.thread,
        shutdown_timeout=config.shutdown_timeout,
        release=None if lease is None else lease.close,
        on_end=logs.attach(config.debug, config.log_handler),
    )
    queue_api = QueueApi(
        queue,
        config.max_queue_size if config.spool_dir is None else 0,
        delivery.put if config.send else queue.offer,
    )
    return delivery, queue_api


def _warn_of_settings(config: Any, oauth_manager: Any) -> None:
    """Log settings that are valid, but cannot work."""
    if any(config.oauth) and oauth_manager is None:
        log.warning(
            'OAuth is off: expected oauth_client_id, oauth_client_key and oauth_key_id '
            'together, got only a part of them'
        )
    if oauth_manager is not None and oauth_manager.problem is not None:
        text = oauth_manager.problem[1]
        log.warning('OAuth cannot work, and no event will be sent: %s', text)
    if not (config.host or 'https://').lower().startswith(('http://', 'https://')):
        log.warning(
            'host: expected a URL that begins with https:// or http://, got a str '
            'without; requests to it will fail. Write https:// in front of it'
        )


def _checked_timeout(timeout: Any) -> Any:
    ok = timeout is None or settings.is_number(timeout)
    expect(ok, 'timeout', 'a number of seconds, or None', timeout)
    return settings.as_number(timeout)


def _view(
    kind: str, category: Any, name: Any, properties: Optional[Properties]
) -> Message:
    return {
        'type': kind,
        'category': checked_text('category', category),
        'name': checked_text('name', name),
        'properties': properties,
    }
