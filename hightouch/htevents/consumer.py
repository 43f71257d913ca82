"""Takes batches from a queue and delivers them: retries, splits, reports, acknowledges.

A consumer is a thread, but nothing in here needs it to be started: an application's
thread delivers through one as well (``sync_mode``, and a flush where no thread can run).
"""

import sys
import threading
from contextlib import ExitStack
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from hightouch.htevents import request
from hightouch.htevents._process.credentials import bare
from hightouch.htevents._process.discretion import discreet, drop_own_frames
from hightouch.htevents._process.fork import getpid
from hightouch.htevents._process.interruption import causes, raise_interruption
from hightouch.htevents._process.logs import log, outlive, text_of
from hightouch.htevents._process.waiting import (
    Deadline,
    Signal,
    delivers,
    turns,
    unlocking,
)
from hightouch.htevents._queue.batch import Batch
from hightouch.htevents._queue.queue import Queue
from hightouch.htevents._queue.queue_api import QueueApi
from hightouch.htevents._queue.reports import call, report_loss
from hightouch.htevents._queue.retry import MIN_WAIT, Retries
from hightouch.htevents._queue.stores import BATCH_BYTES, ForeignStore, Policy
from hightouch.htevents.encoding import encode
from hightouch.htevents.errors import (
    MAX_AGE_DAYS,
    ExpiredError,
    OauthError,
    describe,
    is_retryable,
    name_of,
)
from hightouch.htevents.errors import APIError as APIError
from hightouch.htevents.errors import FatalError as FatalError
from hightouch.htevents.request import DEFAULT_HOST, post
from hightouch.htevents.settings import DefaultConfig, Timeout, check_callable
from hightouch.htevents.settings import OnError as OnError
from hightouch.htevents.settings import OnSuccess as OnSuccess

# A test of an application may patch it, here or in request. Then that is called as
# releases before 0.1 called it, with a list of dicts.
_original_post = post

# Bytes of JSON that one message may take: the collector refuses larger ones.
MAX_MSG_SIZE = 32 << 10

# Bytes of messages in one request.
BATCH_SIZE_LIMIT = BATCH_BYTES

# What the server answers when a part of a batch is at fault, and the rest is not: 413
# when it is too large as a whole, 400 when one event failed validation.
_SPLIT_STATUSES = (400, 413)

# What became of a batch: all of it was delivered; some or all of it was refused, and
# reported; some or all of it waits in the queue again, for lack of time.
DELIVERED, REFUSED, PUT_BACK = 'delivered', 'refused', 'put back'
_WORST = (DELIVERED, REFUSED, PUT_BACK)


_unlocking = unlocking(lambda consumer: consumer._source.locks())


class Consumer(threading.Thread):
    """A daemon thread that sends what it finds in a queue.

    :param queue: ``client.queue``, or a ``queue.Queue`` of message dicts
    :param write_key: the key that the batches are sent with
    :param upload_size: most messages in a batch
    :param host: base URL of the server; None is the default one
    :param on_error: called with the error and the list of messages that were lost
    :param upload_interval: seconds a message waits for others to share a request
    :param gzip: whether to compress the requests
    :param retries: how often a failed request is sent again; 0 never
    :param timeout: seconds for the connection, and between bytes of the answer
    :param proxies: as in ``requests``
    :param oauth_manager: returns tokens through ``get_token()``
    :param on_success: called with the list of messages that were acknowledged
    :param lease: returns the ``requests.Session`` to send with through ``get()``
    """

    @discreet
    def __init__(
        self,
        queue: Any,
        write_key: str,
        upload_size: int = DefaultConfig.upload_size,
        host: Optional[str] = None,
        on_error: Optional[OnError] = None,
        upload_interval: float = DefaultConfig.upload_interval,
        gzip: bool = DefaultConfig.gzip,
        retries: int = DefaultConfig.max_retries,
        timeout: Optional[Timeout] = DefaultConfig.timeout,
        proxies: Any = None,
        oauth_manager: Any = None,
        *,
        on_success: Optional[OnSuccess] = None,
        lease: Any = None,
    ) -> None:
        # A daemon: a thread that waits for a server must not keep the process alive.
        # At the exit of the interpreter, _process.exit delivers the queued events.
        super().__init__(name='htevents-consumer')
        try:
            self.daemon = True
        except RuntimeError:
            pass  # an isolated sub-interpreter has none: see start_thread
        self.queue = queue
        self.write_key = write_key
        self.upload_size = upload_size
        self.host = host
        self.on_error: Optional[OnError] = check_callable('on_error', on_error)
        self.upload_interval = upload_interval
        self.gzip = gzip
        self.retries = retries
        self.timeout = timeout
        self.proxies = proxies
        self.oauth_manager = oauth_manager
        self.on_success: Optional[OnSuccess] = check_callable('on_success', on_success)
        self.running = True
        self._lease = lease
        self.wakeup = Signal()
        self._ended = Signal()
        # Whether a client runs it, on a thread that ends while it is idle: see `serve`. And
        # whether there is such a thread now.
        self._is_served = False
        self._is_busy = False
        # When the delivery has to end, and whether its events go back to the queue then.
        self._deadline = Deadline(None)
        self._keeps = False
        self._cut_short = False  # whether the last request ended for lack of time
        self._source: Queue = (
            queue.source
            if isinstance(queue, QueueApi)
            else Queue(ForeignStore(queue, MAX_MSG_SIZE, self.report))
        )

    # -- the thread ------------------------------------------------------------------

    def run(self) -> None:
        """Deliver batches until `pause`, or until the queue is closed and empty."""
        from hightouch.htevents._process.transport import Lease  # imports requests

        lease = self._lease = self._lease or Lease()
        try:
            self._deliver_all(None, _nothing)
        finally:
            self.running = False
            lease.close()

    def serve(self, idle_after: Optional[float], on_batch: Callable[[], None]) -> bool:
        """Do the same on a thread that was not started by ``start()``, until it is idle.

        :param idle_after: seconds without an event after which it returns; None: never
        :param on_batch: called when a batch was taken, and is about to be sent
        :returns: False when it ended for lack of time
        """
        self._is_busy = True
        self._ended.wait(0)
        # What Thread.start() does for the thread's name, and for debuggers and profilers.
        try:
            threading.current_thread().name = self.name
        except Exception as error:  # a test has replaced threading.Thread for a while
            raise_interruption(error)
        sys.settrace(threading._trace_hook)  # type: ignore[attr-defined]
        sys.setprofile(threading._profile_hook)
        try:
            return self._deliver_all(idle_after, on_batch)
        finally:
            # Up to Python 3.12 it would be listed for ever.
            threading._active.pop(threading.get_ident(), None)  # type: ignore[attr-defined]

    def rest(self) -> None:
        """Mark it as a client's consumer that no thread serves now: `join` returns."""
        self._is_served = True
        self._is_busy = False
        self._ended.set()

    @delivers
    def _deliver_all(self, idle: Optional[float], on_batch: Callable[[], None]) -> bool:
        pid = getpid()
        while getpid() == pid and (self.running or self._source.store.has_begun()):
            try:
                batch = self._source.take(self, idle)
                if batch is None:
                    break
                on_batch()
                if self.deliver(batch) == PUT_BACK:
                    return False  # for lack of time: the server does not answer
            except BaseException as error:  # raised by a log handler, for example
                outlive(error, 'The consumer goes on after an error')
                Signal().wait(1)  # must not spin: a batch that was put back wakes us
        return True

    def is_alive(self) -> bool:
        """Whether it delivers events. An idle consumer is alive without a thread."""
        return self.running if self._is_served else super().is_alive()

    def join(self, timeout: Optional[float] = None) -> None:
        """Wait until no thread serves it, at most ``timeout`` seconds."""
        if not self._is_served:
            super().join(timeout)
        elif self._is_busy and self._ended.wait(timeout):
            self._ended.set()  # for the next caller

    def pause(self) -> None:
        """End the thread after the batch it is delivering; does not wait for it."""
        self.running = False
        self._source.store.wake(self.wakeup)

    def hurry(self, deadline: Deadline, keeps: bool = False) -> None:
        """Do not wait beyond ``deadline`` before a retry: try once more, then give up.

        :param keeps: put what was not delivered in time back into the queue, and do not
            report it
        """
        self._deadline.become(deadline)  # also for a delivery that has begun
        self._keeps = keeps
        self.wakeup.set()

    @_unlocking
    def next(self) -> List[Any]:
        """Take the next batch, waiting for it at most ``upload_interval`` seconds.

        The caller delivers it, say with `request`, and calls ``queue.task_done()`` for
        each message.

        :returns: messages; an empty list when none came
        """
        batch = self._source.take(self, self.upload_interval)
        if batch is None:
            return []
        if isinstance(self.queue, QueueApi):
            return self.queue.hand_out(batch)
        self._source.ledger.forget(batch)
        return batch.messages()

    @_unlocking
    @delivers
    def upload(self) -> bool:
        """Take the next batch and deliver it; True when all of it was delivered."""
        batch = self._source.take(self, self.upload_interval)
        return batch is not None and self.deliver(batch) == DELIVERED

    def holds_lock(self) -> bool:
        """Whether this thread has a lock that a delivery may wait for.

        The caller may be a signal handler that has interrupted the delivery.
        """
        manager = self.oauth_manager
        # The manager of an application may lack it.
        is_held = getattr(type(manager), 'is_held', None)
        return is_held is not None and bool(is_held(manager))

    # -- a request -------------------------------------------------------------------

    def request(self, batch: Any) -> None:
        """Send a batch (messages), with retries; raises the last error."""
        ledger, policy = self._source.ledger, self._source.store.policy
        retries: Optional[Retries] = None
        is_last = self._cut_short = False
        while True:
            try:
                if self._is_busy:  # on a thread of ours
                    turns.call(self._deadline, self._post, batch)
                else:
                    self._post(batch)
                return
            except Exception as error:
                raise_interruption(error, wrapped=True)
                ledger.last_error = describe(error)
                if not self._source.warned_of_setup and _is_of_setup(error, policy):
                    self._source.warned_of_setup = True
                    # Before the last retry, which may take minutes. With a spool there are
                    # retries without end.
                    host = bare(self.host or DEFAULT_HOST)
                    text = request.shortened(text_of(error), [self.write_key])
                    log.warning('Requests to %s fail: %s', host, text)
                retries = retries or Retries(self.retries, policy)
                delay = retries.next_wait(error)
                if delay is None or is_last:
                    self._cut_short = is_last
                    raise
                if not self._wait(delay):
                    is_last = True  # no time is left for more
                    if not self._wait(MIN_WAIT):
                        self._cut_short = True
                        raise
                is_last = is_last or not self.running
                if isinstance(batch, Batch) and any(policy.expired(batch.items)):
                    raise
            ledger.retried.add()

    def _wait(self, seconds: float) -> bool:
        """Wait; return False immediately when the deadline comes first."""
        delay = Deadline(seconds)
        while not delay.over:
            left = delay.remaining() or 0
            if not self._deadline.leaves(left):
                return False
            self.wakeup.wait(left)
        return True

    def _post(self, batch: Any) -> None:
        send = post if post is not _original_post else request.post
        if send is _original_post:
            if not isinstance(batch, Batch):
                batch = Batch([(encode(message)[0], 0, None) for message in batch])
            session = None if self._lease is None else self._lease.get()
            send = partial(send, session=session)
        elif isinstance(batch, Batch):
            batch = batch.messages()
        send(
            self.write_key,
            self.host,
            gzip=self.gzip,
            timeout=self._deadline.bounded(self.timeout),
            proxies=self.proxies,
            oauth_manager=self.oauth_manager,
            batch=batch,
        )

    # -- a batch ---------------------------------------------------------------------

    def deliver(self, batch: Batch) -> str:
        """Deliver a batch, or the part of it that the server takes, and acknowledge it.

        The part that is refused is reported through ``on_error``.

        :returns: `DELIVERED`, `REFUSED` or `PUT_BACK`
        """
        if batch.items:
            return BatchDelivery(self, self._source, batch).run()
        self.report_damage()
        return DELIVERED

    def keeps(self, error: Exception) -> bool:
        """Whether events that met an error go back to the queue, to be sent later."""
        policy = self._source.store.policy
        if policy.durable:
            return not policy.is_final(error)
        return self._keeps and self._cut_short and is_retryable(error)

    @delivers
    def drain(self, limit: Optional[int] = None) -> None:
        """Deliver what waits in a client's queue, until the deadline.

        :param limit: messages after which to stop; None: when nothing waits
        """
        count = 0
        while not self._deadline.over and (limit is None or count < limit):
            batch = self._source.take_now(self.upload_size)
            if batch is None:
                return self.report_damage()
            count += len(batch)
            if self.deliver(batch) == PUT_BACK:
                return

    def report_damage(self) -> None:
        """Report events that the store can no longer read. No lock is held."""
        for error in self._source.ledger.take_damage():
            try:
                self.report(error, [], error.count)
            finally:
                self._source.ledger.lose(error.count)

    def report_lost(self, error: Exception, batches: Sequence[Batch]) -> None:
        """Report batches whose loss is claimed already, and acknowledge them."""
        try:
            self.report(error, [each for batch in batches for each in batch.messages()])
        finally:
            for batch in batches:
                self._source.acknowledge(batch, delivered=False)

    def report(
        self,
        error: Exception,
        messages: List[Dict[str, Any]],
        count: Optional[int] = None,
    ) -> None:
        """Say once that events are lost: see `report_loss`."""
        host = bare(self.host or DEFAULT_HOST)
        report_loss(host, self.on_error, error, messages, count)


class BatchDelivery:
    """Delivers one batch: in parts, where the server refuses it as a whole.

    :param consumer: sends the parts, and reports the lost ones
    :param source: the queue that the batch was taken from
    :param batch: has at least one event
    """

    def __init__(self, consumer: Consumer, source: Queue, batch: Batch) -> None:
        self._consumer = consumer
        self._source = source
        self._todo = [batch]  # the next part is the last one
        self._lost: List[Tuple[Exception, Batch]] = []

    def run(self) -> str:
        """Return the worst outcome of all parts."""
        outcomes = [DELIVERED]
        try:
            while self._todo:
                outcomes.append(self._deliver_next())
        except BaseException:  # of the application: see interruption
            for part in self._todo:
                self._source.put_back(part)
            raise
        finally:
            if self._lost:
                self._report()
        return max(outcomes, key=_WORST.index)

    def _deliver_next(self) -> str:
        part, ledger = self._todo[-1], self._source.ledger
        policy = self._source.store.policy
        if not ledger.holds(part):
            self._todo.pop()
            return REFUSED  # given up by a shutdown, or forked away
        expired = policy.expired(part.items)
        if any(expired):
            self._take_out(part, expired)
            return REFUSED
        error = self._attempt(part)
        if error is None:
            self._todo.pop()
            return self._succeed(part)
        if any(policy.expired(part.items)):
            return REFUSED  # while it was retried: part it, and go on
        self._todo.pop()
        if _is_splittable(error, part):
            halves = ledger.replace(part, part.halves())
            self._todo.extend(reversed(halves or ()))
            return DELIVERED if halves else REFUSED  # as the halves will be
        if self._consumer.keeps(error):
            self._source.put_back(part)
            return PUT_BACK
        self._lost.append((error, part))
        return REFUSED

    def _attempt(self, part: Batch) -> Optional[Exception]:
        """Return the error of a request; None when it was delivered."""
        # An application may have replaced it: then it gets a list of dicts.
        is_ours = getattr(self._consumer.request, '__func__', None) is _original_request
        try:
            self._consumer.request(part if is_ours else part.messages())
            return None
        except Exception as error:
            raise_interruption(error, wrapped=True)
            drop_own_frames(error)
            return error

    def _take_out(self, part: Batch, expired: List[bool]) -> None:
        self._todo.pop()
        parts = self._source.ledger.replace(part, part.divided(expired))
        if parts is not None:
            self._lost.append((ExpiredError(MAX_AGE_DAYS), parts[0]))
            self._todo.extend(parts[1:] if len(parts[1]) else ())

    def _succeed(self, part: Batch) -> str:
        if not self._source.ledger.claim(part, delivered=True):
            return REFUSED  # a shutdown has reported it as lost
        try:
            on_success = self._consumer.on_success
            if on_success is not None:
                call(on_success, 'on_success', part.messages())
        finally:
            self._source.acknowledge(part, delivered=True)
        return DELIVERED

    def _report(self) -> None:
        # One report for each kind of error, not one for each half of a split batch.
        kinds: Dict[str, List[Tuple[Exception, Batch]]] = {}
        for error, part in self._lost:
            if self._source.ledger.claim(part, delivered=False):
                kinds.setdefault(describe(error), []).append((error, part))
        report = self._consumer.report_lost
        with ExitStack() as reports:  # all of them, even if one is interrupted
            for losses in reversed(list(kinds.values())):  # it begins with the last
                reports.callback(report, losses[0][0], [part for _, part in losses])


def _is_of_setup(error: Exception, policy: Policy) -> bool:
    """Whether a setting has to be corrected, as for TLS or a file that cannot be read.

    With a spool also if the error would end events that are not on the disk: a redirect.
    """
    if policy.durable and not (is_retryable(error) or policy.is_final(error)):
        return True
    if isinstance(error, APIError):
        return False
    if type(error) is OSError:
        return True  # requests raises it for a certificate that does not exist
    return any(
        isinstance(each, (FileNotFoundError, PermissionError))
        or 'SSLError' in map(name_of, type(each).__mro__)
        for each in causes(error, sys._getframe(1))
    )


def _is_splittable(error: Exception, batch: Batch) -> bool:
    return (
        isinstance(error, APIError)
        and not isinstance(error, OauthError)  # the token's server, not the batch's
        and error.status in _SPLIT_STATUSES
        and len(batch) > 1
    )


def _nothing() -> None:
    pass


_original_request = Consumer.request
