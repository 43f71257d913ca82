"""Takes batches from a queue and delivers them: retries, splits, reports, acknowledges.

A consumer is a thread, but nothing in here needs it to be started: an application's
thread delivers through one as well (``sync_mode``, and a flush where no thread can run).
"""

import sys
import threading
from contextlib import ExitStack
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Union

from hightouch.htevents import request
from hightouch.htevents.batch import Batch
from hightouch.htevents.concurrency import (
    Deadline,
    Signal,
    budget,
    delivering,
    delivery_depth,
    within,
)
from hightouch.htevents.credentials import bare
from hightouch.htevents.discretion import discreet, drop_own_frames
from hightouch.htevents.encoding import encode
from hightouch.htevents.errors import (
    FINAL_STATUSES,
    ExpiredError,
    OauthError,
    describe,
    is_of_network,
    is_retryable,
    name_of,
)
from hightouch.htevents.errors import APIError as APIError
from hightouch.htevents.errors import FatalError as FatalError
from hightouch.htevents.event_queue import BATCH_BYTES, EventQueue
from hightouch.htevents.expiry import MAX_AGE_DAYS, are_expired
from hightouch.htevents.fork import getpid
from hightouch.htevents.interruption import causes, raise_interruption
from hightouch.htevents.logs import log, outlive, text_of
from hightouch.htevents.request import DEFAULT_HOST, post
from hightouch.htevents.retry import MIN_WAIT, Retries
from hightouch.htevents.settings import DefaultConfig, Timeout, check_callable

if TYPE_CHECKING:
    from hightouch.htevents.foreign_queue import ForeignQueue

# A test of an application may patch it, here or in request. Then that is called as
# releases before 0.1 called it, with a list of dicts.
_original_post = post

# Bytes of JSON that one message may take: the collector refuses larger ones.
MAX_MSG_SIZE = 32 << 10

# Bytes of messages in one request: see event_queue.
BATCH_SIZE_LIMIT = BATCH_BYTES

# What the server answers when a part of a batch is at fault, and the rest is not: 413
# when it is too large as a whole, 400 when one event failed validation.
_SPLIT_STATUSES = (400, 413)

OnError = Callable[[Exception, List[Dict[str, Any]]], Any]
OnSuccess = Callable[[List[Dict[str, Any]]], Any]

# Seconds that a thread may take from its last act to its end.
LAST_STEPS = 0.1


class Consumer(threading.Thread):
    """A daemon thread that sends what it finds in a queue.

    :param queue: an `EventQueue`, or a ``queue.Queue`` of message dicts
    :param write_key: the key that the batches are sent with
    :param upload_size: most messages in a batch
    :param host: base URL of the server; None is the default one
    :param on_error: called with the error and the list of messages that were lost
    :param upload_interval: seconds a message waits for others to share a request
    :param gzip: whether to compress the requests
    :param retries: how often a failed request is sent again; 0 never
    :param timeout: seconds for the connection, and between bytes of the answer
    :param proxies: as in ``requests``
    :param oauth_manager: gives tokens through ``get_token()``
    :param on_success: called with the list of messages that were acknowledged
    :param lease: gives the ``requests.Session`` to send with through ``get()``, and after
        ``renew()`` a new one
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
        # What is queued at interpreter exit is delivered by lifecycle.
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
        # Whether a client runs it, on a thread that ends while it is idle: see `serve`.
        self._is_served = False
        self._lease = lease
        # Whether the last delivery gave something back to the queue, undelivered.
        self.gave_back = False
        self._wakeup = Signal()
        self._ended = Signal()
        # When the owner wants to end: see hurry.
        self._deadline = Deadline(None)
        self._source: Union[EventQueue, 'ForeignQueue'] = (
            queue if isinstance(queue, EventQueue) else self._adapted(queue)
        )

    def _adapted(self, queue: Any) -> 'ForeignQueue':
        # Imported here: a client never needs it.
        from hightouch.htevents.foreign_queue import ForeignQueue

        return ForeignQueue(queue, MAX_MSG_SIZE, self._drop)

    # -- the thread ------------------------------------------------------------------

    def run(self) -> None:
        """Deliver batches until `pause`, or until the queue is closed and empty."""
        try:
            self._deliver_all(None)
        finally:
            self.running = False

    def serve(self, idle_after: Optional[float]) -> None:
        """Do the same on a thread that was not started by ``start()``, until it is idle.

        :param idle_after: seconds without an event after which it returns; None: never
        """
        ident = threading.get_ident()
        self.gave_back = False
        self._ended.wait(0)
        # What Thread.start() does for the thread's name, and for debuggers and profilers.
        threading._active[ident] = self  # type: ignore[attr-defined]
        sys.settrace(threading._trace_hook)  # type: ignore[attr-defined]
        sys.setprofile(threading._profile_hook)
        try:
            self._deliver_all(idle_after)
        finally:
            threading._active.pop(ident, None)  # type: ignore[attr-defined]

    def rest(self) -> None:
        """Note that it is a client's, and no thread serves it now: `join` returns."""
        self._is_served = True
        self._ended.set()

    def _deliver_all(self, idle: Optional[float]) -> None:
        pid = getpid()
        while getpid() == pid and (self.running or self._source.has_begun()):
            try:
                batch = self._take(idle)
                if batch is None:
                    break
                self.deliver(batch)
                if self.gave_back:
                    break  # we are ending, and the server does not answer
            except BaseException as error:  # of a handler of the log, say
                outlive(error, 'The consumer goes on after an error')
                self._wakeup.wait(1)  # a second try must not spin

    def is_alive(self) -> bool:
        """Whether it takes care of events: also while it is idle, and needs no thread."""
        return self.running if self._is_served else super().is_alive()

    def join(self, timeout: Optional[float] = None) -> None:
        """Wait until no thread serves it, at most ``timeout`` seconds."""
        if not self._is_served:
            super().join(timeout)
        elif self._ended.wait(timeout):
            self._ended.set()  # for the next who waits

    def pause(self) -> None:
        """End the thread after the batch it is delivering; does not wait for it."""
        self.running = False
        self._wakeup.set()
        if not isinstance(self._source, EventQueue):
            self._source.wake()

    def hurry(self, deadline: Deadline) -> None:
        """Do not wait beyond ``deadline`` before a retry: try once more, then give up."""
        self._deadline.become(deadline)  # also for a delivery that has begun
        self._wakeup.set()

    def next(self) -> List[Any]:
        """Take the next batch, waiting for it at most ``upload_interval`` seconds.

        The caller delivers it, say with `request`, and calls ``queue.task_done()`` for
        each message.

        :returns: messages; an empty list when none came
        """
        batch = self._take(idle=self.upload_interval)
        return [] if batch is None else self._source.hand_out(batch)

    def upload(self) -> bool:
        """Take the next batch and deliver it; True when all of it was delivered."""
        batch = self._take(idle=self.upload_interval)
        return batch is not None and self.deliver(batch)

    def _take(self, idle: Optional[float]) -> Optional[Batch]:
        return self._source.take(
            self._wakeup, self._is_running, self.upload_size, self.upload_interval, idle
        )

    def _is_running(self) -> bool:
        return self.running

    def holds_lock(self) -> bool:
        """Whether this thread has a lock that a delivery may wait for.

        Below a signal handler, that is.
        """
        manager = self.oauth_manager
        # An application's own manager may be anything.
        is_held = getattr(type(manager), 'is_held', None)
        return self.queue.is_held() or (is_held is not None and is_held(manager))

    # -- a request -------------------------------------------------------------------

    def request(self, batch: List[Any]) -> None:
        """Send a batch (messages), with retries; raises the last error."""
        scope = budget()
        # What is on the disk can wait: it is tried again until it is delivered.
        limit = float('inf') if self._source.durable else self.retries
        retries = Retries(limit, self._is_final)
        last = False
        with within(scope.deadline):
            while True:
                try:
                    return self._post(batch)
                except Exception as error:
                    raise_interruption(error, wrapped=True)
                    self._source.note_error(error)
                    if _is_of_setup(error) or self._is_only_kept(error):
                        self._warn_of_setup(error)
                    if self._lease is not None and not is_of_network(error):
                        self._lease.renew()
                    delay = retries.next_wait(error)
                    if delay is None or last:
                        scope.cut_short = last
                        raise
                    if not self._wait(delay, scope.deadline):
                        last = True  # for more there is no time
                        if not self._wait(MIN_WAIT, scope.deadline):
                            scope.cut_short = True
                            raise
                    last = last or not self.running
                    if any(self._expired(batch)):
                        raise
                self._source.note_retry()

    def _is_only_kept(self, error: Exception) -> bool:
        """Whether it ends no event only because these are on the disk: a redirect, say."""
        return self._source.durable and not (
            is_retryable(error) or self._is_final(error)
        )

    def _warn_of_setup(self, error: Exception) -> None:
        # At once: until the last retry it may take minutes, with a spool for ever.
        if self._source.warned_of_setup:
            return
        self._source.warned_of_setup = True
        log.warning(
            'Requests to %s fail: %s',
            bare(self.host or DEFAULT_HOST),
            request.shortened(text_of(error), [self.write_key]),
        )

    def _is_final(self, error: BaseException) -> bool:
        """Whether an error says that the events will never be taken."""
        if not self._source.durable:
            return not is_retryable(error)
        # A setting that is wrong today can be right after the next start.
        return (
            isinstance(error, APIError)
            and not isinstance(error, OauthError)
            and error.status in FINAL_STATUSES
        )

    def _expired(self, batch: List[Any]) -> List[bool]:
        """Say of each message whether it has become too old to be sent."""
        if self._source.durable and isinstance(batch, Batch):
            return are_expired(batch.bodies)
        return []

    def _wait(self, seconds: float, deadline: Deadline) -> bool:
        """Wait; False, at once, when a deadline comes first."""
        delay = Deadline(seconds)
        while not delay.over:
            left = delay.remaining() or 0
            if not (deadline.leaves(left) and self._deadline.leaves(left)):
                return False
            self._wakeup.wait(left)
        return True

    def _post(self, batch: List[Any]) -> None:
        send = post if post is not _original_post else request.post
        if send is _original_post:
            if not isinstance(batch, Batch):
                batch = Batch([encode(message)[0] for message in batch], 0)
            session = None if self._lease is None else self._lease.get()
            send = partial(send, session=session)
        elif isinstance(batch, Batch):
            batch = batch.messages()
        send(
            self.write_key,
            self.host,
            gzip=self.gzip,
            timeout=self.timeout,
            proxies=self.proxies,
            oauth_manager=self.oauth_manager,
            batch=batch,
        )

    # -- a batch ---------------------------------------------------------------------

    def deliver(
        self, batch: Batch, deadline: Optional[Deadline] = None, keep: bool = False
    ) -> bool:
        """Deliver a batch, or the part of it that the server takes, and acknowledge it.

        What is refused is reported through ``on_error``.

        :param deadline: when no more retries are waited for; None: when `hurry` says
        :param keep: give back to the queue, instead of reporting it, what could not be
            delivered because the deadline came
        :returns: True when all of it was delivered
        """
        if deadline is None:
            deadline = self._deadline
        todo = [batch]
        lost: List[Tuple[Exception, Batch]] = []
        complete = True
        self.gave_back = False
        with delivering():
            try:
                while todo:
                    part = todo[-1]
                    if not self._source.holds(part):
                        complete = False  # abandoned by a shutdown, or forked away
                        todo.pop()
                        continue
                    expired = self._expired(part)
                    if any(expired):
                        complete = False
                        todo.pop()
                        parts = self._source.divide(part, expired)
                        if parts is not None:
                            lost.append((ExpiredError(MAX_AGE_DAYS), parts[0]))
                            todo.extend(parts[1:] if len(parts[1]) else ())
                        continue
                    error, cut_short = self._attempt(part, deadline)
                    if error is None:
                        todo.pop()
                        self._succeed(part)
                        continue
                    if any(self._expired(part)):
                        continue  # while it was retried: part it, and go on
                    complete = False
                    todo.pop()
                    if _is_splittable(error, part):
                        todo.extend(reversed(self._source.split(part) or ()))
                    elif self._is_kept(error, keep and cut_short):
                        self._source.park(part)
                        self.gave_back = True
                    else:
                        lost.append((error, part))
            except BaseException:  # of the application: see interruption
                for part in todo:
                    self._source.park(part)
                raise
            finally:
                self._fail(lost)
        return complete

    def _attempt(
        self, batch: Batch, deadline: Deadline
    ) -> Tuple[Optional[Exception], bool]:
        """Give the error of a request, and whether time alone ended its retries."""
        with within(deadline) as scope:
            try:
                self.request(batch)
                return None, False
            except Exception as error:
                raise_interruption(error, wrapped=True)
                drop_own_frames(error)
                return error, scope.cut_short

    def drain(self, deadline: Deadline, limit: Optional[int] = None) -> None:
        """Deliver what waits in an `EventQueue`; what time does not allow stays there.

        :param limit: messages after which to stop; None: when nothing waits
        """
        count = 0
        while not deadline.over and (limit is None or count < limit):
            batch = self.queue.take_now(self.upload_size)
            if batch is None:
                return
            count += len(batch)
            self.deliver(batch, deadline, keep=True)
            if self.gave_back:
                return

    def _is_kept(self, error: Exception, on_time: bool) -> bool:
        if self._source.durable:
            return not self._is_final(error)
        return on_time and is_retryable(error)

    def _succeed(self, batch: Batch) -> None:
        if not self._source.claim(batch, delivered=True):
            return
        try:
            if self.on_success is not None:
                self._call(self.on_success, 'on_success', batch.messages())
        finally:
            self._source.acknowledge(batch, delivered=True)

    def _fail(self, lost: List[Tuple[Exception, Batch]]) -> None:
        # One report for each kind of error, not one for each half of a split batch.
        kinds: Dict[str, List[Tuple[Exception, Batch]]] = {}
        for error, batch in lost:
            if self._source.claim(batch, delivered=False):
                kinds.setdefault(describe(error), []).append((error, batch))
        with ExitStack() as reports:  # all of them, even if one is interrupted
            for losses in reversed(list(kinds.values())):  # it begins with the last
                reports.callback(self._report_lost, losses)

    def _report_lost(self, losses: List[Tuple[Exception, Batch]]) -> None:
        batches = [batch for _, batch in losses]
        try:
            self.report(losses[0][0], [item for batch in batches for item in batch])
        finally:
            for batch in batches:
                self._source.acknowledge(batch, delivered=False)

    def _drop(self, error: Exception, message: Any) -> None:
        self.report(error, [message])

    def report(
        self,
        error: Exception,
        messages: List[Dict[str, Any]],
        count: Optional[int] = None,
    ) -> None:
        """Say once that events are lost: one ERROR line, one call of ``on_error``.

        :param count: how many; None: as many as there are messages
        """
        try:
            log.error(
                'Lost %d event(s) for %s: %s',
                len(messages) if count is None else count,
                bare(self.host or DEFAULT_HOST),
                describe(error),
            )
        finally:
            if self.on_error is not None:
                self._tell(self.on_error, error, messages)

    def _tell(
        self, on_error: OnError, error: Exception, messages: List[Dict[str, Any]]
    ) -> None:
        if delivery_depth():  # a callback of that delivery, not of one inside it
            self._call(on_error, 'on_error', error, messages)
        else:
            with delivering():
                self._call(on_error, 'on_error', error, messages)

    def _call(self, callback: Callable[..., Any], name: str, *args: Any) -> None:
        try:
            result = callback(*args)
            if isinstance(result, CoroutineType):  # of a lambda, say
                result.close()
                log.warning('%s returned a coroutine, which nobody awaits', name)
        except Exception as error:
            raise_interruption(error)
            log.warning('%s raised; delivery goes on', name, exc_info=True)
        except KeyboardInterrupt:
            raise  # in a thread of the application
        except BaseException as error:
            raise_interruption(error)
            # sys.exit() in a callback would end this thread, and no other.
            log.warning('%s tried to exit; delivery goes on', name)


def _is_of_setup(error: Exception) -> bool:
    """Whether somebody has to mend something here: TLS, or a file that cannot be read."""
    if isinstance(error, APIError):
        return False
    if type(error) is OSError:
        return True  # as requests says that there is no such certificate
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
