"""Runs the consumers of one client: starts them, flushes, shuts down, survives a fork."""

import sys
import threading
from typing import Any, Callable, Dict, List, Optional

from hightouch.htevents import fork, lifecycle
from hightouch.htevents.batch import Batch
from hightouch.htevents.concurrency import (
    Deadline,
    delivery_depth,
    monotonic,
    start_thread,
    unlocking,
)
from hightouch.htevents.consumer import Consumer
from hightouch.htevents.errors import NotDeliveredError
from hightouch.htevents.event_queue import EventQueue, Stats
from hightouch.htevents.fork import getpid
from hightouch.htevents.logs import is_in_a_line, log

# Seconds beyond the end of a client's time in which a callback may still return.
LAST_CALLBACK = 0.1

# Seconds without an event after which a thread ends, until the next event.
IDLE_AFTER = 1.0

# Seconds before another thread is tried after the system refused one.
START_RETRY_INTERVAL = 1.0


_unlocking = unlocking(lambda dispatcher: dispatcher.queue.locks())


class Dispatcher:
    """Between a client and its consumers; knows no message and no HTTP.

    Consumers refer to this object, never to the client: a client that is dropped
    without a shutdown is garbage, and its consumers end when the queue is empty.

    A consumer needs a thread only while there are events. A thread that was idle for
    `IDLE_AFTER` seconds ends, and an event that finds no consumer collecting starts one:
    an idle client costs no thread.

    :param queue: where the events wait
    :param make_consumer: makes a consumer; called again in a forked child, because a
        thread object of the parent cannot be started there
    :param threads: consumers to run; 0 in ``sync_mode``
    :param shutdown_timeout: seconds that interpreter exit may take
    :param lease: closed after the last request
    :param on_end: called once when everything has ended
    """

    def __init__(
        self,
        queue: EventQueue,
        make_consumer: Callable[[], Consumer],
        threads: int,
        shutdown_timeout: Optional[float],
        lease: Any,
        on_end: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.shutdown_timeout = shutdown_timeout
        self._make_consumer = make_consumer
        self._threads = threads
        self._lease = lease
        self._on_end = on_end
        self._on_start = _nothing
        self._make()
        fork.register(self)

    def _make(self) -> None:
        # Made when they are needed: a thread object takes as much memory as a queue.
        # Under one key each, by setdefault: threads that make them together get the same.
        self._made: Dict[str, List[Consumer]] = {}
        # Consumers without a thread. An event appends itself to the queue and then looks
        # here; a thread that ends appends its consumer and then looks at the queue. So one
        # of them always sees the other.
        self._resting: List[Consumer] = []
        # Whether a thread was started that has not taken its consumer yet.
        self._starting = False
        self._next_start = 0.0
        self._prepared = False
        self._ended = False
        # The one thread that ends everything, and whether it has. If a signal handler
        # interrupts that, its next call goes on.
        self._ender: Dict[None, int] = {}
        self._is_over = False
        self._finishing = False

    @property
    def consumers(self) -> List[Consumer]:
        """The consumers, made with the first use; the first event starts them."""
        made = self._made.get('threads')
        if made is None:
            made = self._made.setdefault(
                'threads', [self._make_served() for _ in range(self._threads)]
            )
        return made

    def _make_served(self) -> Consumer:
        consumer = self._make_consumer()
        consumer.rest()
        return consumer

    @property
    def _present(self) -> List[Consumer]:
        """The consumers as far as they were made: to ask for them makes none."""
        return self._made.get('threads', [])

    @property
    def _inline(self) -> Consumer:
        """Never started: delivers on the thread that asks for it."""
        made = self._made.get('inline')
        if made is None:
            made = self._made.setdefault('inline', [self._make_consumer()])
        return made[0]

    def _after_fork(self) -> None:
        for consumer in self._present:
            consumer.running = False  # if one of them forked, it must not go on
        self._make()

    # -- events ----------------------------------------------------------------------

    def put(self, body: bytes, block_timeout: float = 0) -> bool:
        """Queue an encoded message and see that somebody delivers it."""
        if not self._prepared and not self._prepare():
            return self.queue.refuse()
        accepted = self.queue.offer(body, block_timeout)
        if self._resting and not self.queue.is_led():
            self._start_consumer()
        return accepted

    @_unlocking
    def deliver_now(self, body: bytes) -> bool:
        """Deliver a message on this thread, with retries (``sync_mode``).

        From inside a delivery (a callback, a signal handler) it is queued instead, and
        delivered after that one.
        """
        if self.queue.closed or not self.start():
            return self.queue.refuse()
        if delivery_depth():
            return self.queue.offer(body)
        self.queue.recover()
        delivered = self._inline.deliver(self.queue.admit(body), Deadline(None))
        if self.queue.has_waiting():  # from a callback, or an interrupted call
            # One generation only: a callback that tracks for each failure would
            # otherwise keep the application in here for ever.
            self._inline.drain(Deadline(None), self.queue.qsize() or 1)
        return delivered

    def start(self) -> bool:
        """See that somebody delivers what waits.

        :returns: False when events would be lost
        """
        if not self._prepared and not self._prepare():
            return False
        if self._resting and not self.queue.is_led():
            self._start_consumer()
        return True

    def _prepare(self) -> bool:
        """Do what is done once in a process, with the first event."""
        if self.queue.closed or lifecycle.is_over():
            return False
        made = self._made
        lifecycle.add(self)
        resting = made.setdefault('resting', list(self.consumers))
        if made is self._made:  # else this is a child, forked in here
            self._resting, self._prepared = resting, True
        if self._ended:
            self._leave()  # another thread shut us down meanwhile
        if self._threads:
            self._on_start()
            _warn_of_uwsgi()  # last: a log handler may track
        return True

    def call_when_started(self, function: Callable[[], None]) -> None:
        """Call a function with the first event that is still to come, and in each child."""
        self._on_start = function

    def _start_consumer(self) -> None:
        """Start a thread for a consumer, and that one for the next consumer."""
        if self._starting or monotonic() < self._next_start:
            return
        try:
            self._starting = True
            if not start_thread(self._serve, getpid()):
                self._starting = False
                # Events wait for a flush, the exit, or the next try.
                self._next_start = monotonic() + START_RETRY_INTERVAL
        except BaseException:  # of a signal handler: the thread runs, or it does not
            self._starting = False
            raise

    def _serve(self, pid: int) -> None:
        """Run a consumer on this thread until it is idle."""
        try:
            consumer = self._resting.pop()
        except IndexError:  # a thread too many
            self._starting = False
            return self._thread_ended()
        self._starting = False
        if self._resting and self.queue.has_waiting():
            self._start_consumer()  # as many as the application asked for
        try:
            # With a spool somebody has to look for what dead processes left.
            consumer.serve(None if self.queue.durable else IDLE_AFTER)
        finally:
            if getpid() == pid:  # else this thread has forked, and is the child
                self._resting.append(consumer)
                self._thread_ended(consumer.gave_back)
                consumer.rest()

    def _has_threads(self) -> bool:
        return self._starting or len(self._resting) < len(self._present)

    # -- flush and shutdown ----------------------------------------------------------

    @_unlocking
    def flush(self, timeout: Optional[float]) -> bool:
        if delivery_depth() or self._holds_lock() or is_in_a_line():
            # What is below us goes on only when we return, and others may wait for it, or
            # for a lock of the log's handler: so we wait for none.
            if not self.queue.closed:
                self.start()
            return self.queue.wait_until_resolved(Deadline(0), nested=True)
        return self._flush(Deadline(timeout))

    def _holds_lock(self) -> bool:
        made = [each for some in list(self._made.values()) for each in some]
        return bool(made) and made[0].holds_lock()  # else nobody waits for one

    def _flush(self, deadline: Deadline) -> bool:
        nested = delivery_depth() > 0
        if not nested:
            self.queue.recover()
        if self._ended:
            return self.queue.wait_until_resolved(deadline, nested)
        if self.queue.empty() and self.queue.pending() == 0:
            return True
        if not self.queue.closed:
            self.start()
        if delivery_depth() > 1:
            # A flush inside a flush's own callback. The threads, if there are any, may
            # all be waiting in such callbacks: for each other.
            return False
        if nested or not self._has_threads():
            self._inline.drain(deadline)
        return self.queue.wait_until_resolved(deadline, nested)

    def close(self, deadline: Deadline) -> None:
        """Refuse new events, and let no retry wait beyond the deadline."""
        self.queue.close()
        for made in list(self._made.values()):
            for consumer in made:
                consumer.hurry(deadline)

    def report(
        self, error: Exception, messages: List[Any], count: Optional[int] = None
    ) -> None:
        """Say once that messages are lost: see `Consumer.report`."""
        self._inline.report(error, messages, count)

    def finish(self, deadline: Deadline) -> bool:
        """Deliver what is left, report what is not delivered in time, end the threads."""
        self._finishing = True
        complete = self._flush(deadline)
        try:
            self._give_up(self.queue.abandon())
        finally:
            self.queue.report_losses()
        # What a consumer is telling a callback just now: else the exit cuts it short.
        self.queue.wait_until_resolved(
            deadline.extended(LAST_CALLBACK), delivery_depth() > 0, waiting=False
        )
        current = threading.current_thread()
        for consumer in self._present:
            consumer.pause()
        for consumer in self._present:
            if consumer is not current:
                consumer.join(deadline.remaining())
        self._end()
        return complete

    @_unlocking
    def shutdown(self, timeout: Optional[float]) -> bool:
        deadline = Deadline(timeout)
        self.close(deadline)
        return self.finish(deadline)

    def _give_up(self, batches: List[Batch]) -> None:
        if not batches:
            return
        error = NotDeliveredError(
            'The client was shut down before these events were delivered; some may '
            'have arrived without an answer.',
            self.queue.stats().last_error,
        )
        try:
            self.report(error, [each for batch in batches for each in batch])
        finally:
            for batch in batches:
                self.queue.acknowledge(batch, delivered=False)

    def retire(self) -> None:
        """Let go of a client that was dropped: end once the queue is empty.

        May run inside a finalizer: waits for no delivery.
        """
        if self._ended or lifecycle.is_over():
            return
        self.queue.close()
        if self._resting and self.queue.has_waiting():
            self._start_consumer()
        elif not self._has_threads():
            self._end()

    def _thread_ended(self, gave_back: bool = False) -> None:
        if self._ended:
            self._lease.close()  # taken anew by a request that outlasted the shutdown
        waits = self.queue.has_waiting()
        # Who waits for us ends everything: it may be the only thread that can, because
        # it has interrupted a call of its own.
        if self._finishing:
            return
        if waits and not gave_back and self._resting:
            self._start_consumer()  # it came in the last moment
        elif self.queue.closed and not (waits or self._has_threads()):
            self._end()

    def _end(self) -> None:
        ident = threading.get_ident()
        if self._ender.setdefault(None, ident) != ident or self._is_over:
            return
        self._ended = True
        for consumer in self._present:
            consumer.pause()
        self._leave()
        self.queue.release()
        self._lease.close()
        self._is_over = True
        self._on_end()

    def _leave(self) -> None:
        lifecycle.discard(self)

    @_unlocking
    def stats(self) -> Stats:
        return self.queue.stats()


def _warn_of_uwsgi() -> None:
    uwsgi = sys.modules.get('uwsgi')  # exists inside of uWSGI only
    options = getattr(uwsgi, 'opt', {})
    if uwsgi is not None and not {'enable-threads', 'threads'} & set(options):
        log.warning(
            'uWSGI runs without threads, so that events are sent while a request runs, '
            'and when the worker ends. Set: enable-threads = true'
        )


def _nothing() -> None:
    pass
