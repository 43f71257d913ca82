"""Runs the consumers of one client: starts them, flushes, shuts down, survives a fork.

A consumer needs a thread only while there are events. A thread that was idle for
`IDLE_AFTER` seconds ends, and an event that finds no consumer collecting starts one: an idle
client costs no thread. No wake-up is lost: an event is put into the queue first, and then its
thread looks at the consumers that rest; a thread that ends lets its consumer rest first, and
then looks at the queue.
"""

import sys
from threading import get_ident
from typing import Any, Callable, Dict, List, Optional

from hightouch.htevents._process import exit as process_exit
from hightouch.htevents._process import fork
from hightouch.htevents._process.fork import getpid
from hightouch.htevents._process.logs import is_in_a_line, log
from hightouch.htevents._process.waiting import (
    Deadline,
    delivers,
    is_delivering,
    monotonic,
    start_thread,
    unlocking,
)
from hightouch.htevents._queue.ledger import Stats
from hightouch.htevents._queue.queue import Queue
from hightouch.htevents.consumer import DELIVERED, Consumer
from hightouch.htevents.errors import NotDeliveredError

# Seconds by which a running callback may exceed the time of a shutdown.
LAST_CALLBACK = 0.1

# Seconds without an event after which a thread ends, until the next event.
IDLE_AFTER = 1.0

# Seconds before another thread is tried after the system refused one.
START_RETRY_INTERVAL = 1.0

# The states of a client, in their order: before its first event in this process; open;
# dropped, its threads deliver the rest; a shutdown waits for the rest; ended.
NEW, RUNNING, DRAINING, CLOSING, CLOSED = range(5)

_unlocking = unlocking(lambda delivery: delivery.queue.locks())


class Delivery:
    """Runs the consumers of a client. It does not know messages or HTTP.

    Consumers refer to this object, never to the client: a client that is dropped
    without a shutdown is garbage, and its consumers end when the queue is empty.

    :param queue: where the events wait
    :param make_consumer: makes a consumer
    :param threads: consumers to run; 0 in ``sync_mode``
    :param shutdown_timeout: seconds that interpreter exit may take
    :param release: called after the last request, perhaps several times; or None
    :param on_end: called once when everything has ended
    """

    def __init__(
        self,
        queue: Queue,
        make_consumer: Callable[[], Consumer],
        threads: int,
        shutdown_timeout: Optional[float],
        release: Optional[Callable[[], None]],
        on_end: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.shutdown_timeout = shutdown_timeout
        self._make_consumer = make_consumer
        self._threads = threads
        self._release = release or _nothing
        self.on_end = [on_end]  # popped by the one call that ends everything
        self._on_start = _nothing
        self._make()
        fork.register(self)

    def _make(self) -> None:
        self.state = NEW
        # Made with the first event, because a thread object takes as much memory as a
        # queue. Threads that make them together get the same ones, by setdefault.
        self._made: Dict[str, List[Consumer]] = {}
        self._resting: List[Consumer] = []  # the consumers without a thread
        # Whether a thread was started that has not taken its consumer yet, and the ident of
        # the thread that is starting it.
        self._starting = False
        self._starter: Optional[int] = None
        self._next_start = 0.0

    def _after_fork(self) -> None:
        for consumer in self._present:
            consumer.running = False  # one that forked must not continue in the child
        self._make()

    @property
    def consumers(self) -> List[Consumer]:
        """The consumers, made with the first use; the first event starts them."""
        if 'all' not in self._made:
            consumers = [self._make_consumer() for _ in range(self._threads)]
            for consumer in consumers:
                consumer.rest()
            self._made.setdefault('all', consumers)
        return self._made['all']

    @property
    def _present(self) -> List[Consumer]:
        return self._made.get('all', [])

    # -- events ----------------------------------------------------------------------

    def put(self, body: bytes, block_timeout: float = 0) -> bool:
        """Queue an encoded message, and start a consumer if none collects."""
        if self.state != RUNNING and not self._prepare():
            return self.queue.refuse()
        accepted = self.queue.offer(body, block_timeout)
        if self._resting and not self.queue.is_attended():
            self._start_thread()
        return accepted

    @_unlocking
    def deliver_now(self, body: bytes) -> bool:
        """Deliver a message on this thread, with retries (``sync_mode``).

        Inside a delivery (in a callback or a signal handler) it is queued instead, and
        delivered after that one.
        """
        if self.state != RUNNING and not self._prepare():
            return self.queue.refuse()
        if is_delivering():
            return self.queue.offer(body)
        self.queue.ledger.recover()
        try:
            return self._deliver_here(body)
        finally:
            self._delivery_ended(True)

    @delivers
    def _deliver_here(self, body: bytes) -> bool:
        ledger, consumer = self.queue.ledger, self._make_consumer()
        delivered = consumer.deliver(ledger.admit(body)) == DELIVERED
        if ledger.has_waiting():  # from a callback, or an interrupted call
            # One generation only: a callback that tracks for each failure would
            # otherwise keep the application in here for ever.
            consumer.drain(self.queue.store.waiting() or 1)
        return delivered

    def start(self) -> None:
        """Start a consumer for waiting events, also for events that dead processes left."""
        if self.state == NEW:
            self._prepare()
        if self.state != CLOSED and self._resting and not self.queue.is_attended():
            self._start_thread()

    def _prepare(self) -> bool:
        """Prepare for the first event in this process; return False if it comes too late."""
        if self.state > RUNNING or self.queue.closed or process_exit.is_over():
            return False
        made = self._made
        process_exit.add(self)
        resting = made.setdefault('resting', list(self.consumers))
        if made is self._made:  # otherwise this is a child, forked inside this call
            self._resting = resting
            if self.state == NEW:
                self.state = RUNNING
        if self.state == CLOSED:
            process_exit.discard(self)  # another thread shut us down
        if self._threads:
            self._on_start()
            _warn_of_uwsgi()  # last: a log handler may track
        return True

    def call_when_started(self, function: Callable[[], None]) -> None:
        """Call a function with the first event that is still to come, and in each child."""
        self._on_start = function

    # -- threads ---------------------------------------------------------------------

    def _start_thread(self) -> None:
        if self._starting or monotonic() < self._next_start:
            return
        if not any(each.running for each in list(self._resting)):
            return  # the application has paused them
        try:
            self._starter = get_ident()
            self._starting = True
            if not start_thread(self._serve):
                self._starting = False
                # The events wait for a flush, the exit, or the next event.
                self._next_start = monotonic() + START_RETRY_INTERVAL
        except BaseException:  # raised by a signal handler
            self._starting = False
            raise
        finally:
            self._starter = None

    def _serve(self) -> None:
        """Run a consumer on this thread until it is idle."""
        pid = getpid()
        try:
            consumer = self._resting.pop()
        except IndexError:  # another thread took the last consumer
            self._starting = False
            return self._delivery_ended(True)
        self._starting = False
        in_time = True
        try:
            # A consumer of a spool looks for events of dead processes.
            idle_after = None if self.queue.store.policy.durable else IDLE_AFTER
            in_time = consumer.serve(idle_after, self._batch_taken)
        finally:
            if getpid() == pid:  # otherwise this thread has forked, and is the child
                consumer.rest()
                self._resting.insert(0, consumer)  # a paused one is popped last
                self._delivery_ended(in_time)

    def _batch_taken(self) -> None:
        """Let another consumer collect while this one sends."""
        ledger, store = self.queue.ledger, self.queue.store
        if self._resting and (ledger.has_waiting() or store.may_have_more()):
            self._start_thread()

    def _delivery_ended(self, in_time: bool) -> None:
        """Go on after the last delivery of a thread.

        :param in_time: False if the client is closing, and no more can be delivered in time
        """
        if self.state == CLOSED:
            self._release()  # a request that outlasted the shutdown has taken it again
            return
        ledger = self.queue.ledger
        waits = ledger.has_waiting() or ledger.is_urgent()
        if waits and in_time:
            if self._resting:
                self._start_thread()  # an event or a flush came just before the end
        # In CLOSING, `finish` ends everything.
        elif self.state == DRAINING and not self.has_threads():
            if waits:
                self._give_up()
            self._end()

    def has_threads(self) -> bool:
        """Whether a consumer runs on a thread of its own, or is about to."""
        # A signal handler may have interrupted its thread just before that starts another.
        is_starting = self._starting and self._starter != get_ident()
        return is_starting or len(self._resting) < len(self._present)

    # -- flush and shutdown ----------------------------------------------------------

    @_unlocking
    def flush(self, timeout: Optional[float]) -> bool:
        """Send the waiting events now; see `Client.flush`."""
        self.start()
        if self.must_not_wait():
            return self.queue.begin_flush()
        return self.flush_until(Deadline(timeout))

    def must_not_wait(self) -> bool:
        """Whether the caller has interrupted code that a consumer may wait for.

        It continues only when our caller returns: a delivery on this thread, or code that
        holds a lock of ours, or of a log handler.
        """
        return (
            is_delivering()
            or self.queue.is_held()
            # Without consumers no delivery waits for a lock.
            or any(each.holds_lock() for each in self._present[:1])
            or is_in_a_line()
        )

    def flush_until(self, deadline: Deadline) -> bool:
        """Send the waiting events, on this thread if no other one runs, and wait."""
        ledger = self.queue.ledger
        ledger.recover()
        # In this order: a thread that ends first rests its consumer, then looks for a flush.
        flush = self.queue.start_flush()
        if self.state != CLOSED and not self.has_threads():
            # On this thread, because no other one runs.
            consumer = self._make_consumer()
            consumer.hurry(deadline, keeps=True)
            consumer.drain()
        return ledger.flushes.wait(flush, deadline)

    def close(self, deadline: Deadline) -> None:
        """Refuse new events, and let no retry wait beyond the deadline."""
        self.queue.close()
        for consumer in self._present:
            consumer.hurry(deadline)

    def report(self, error: Exception, messages: List[Any]) -> None:
        """Say once that messages are lost: see `Consumer.report`."""
        self._make_consumer().report(error, messages)

    def finish(self, deadline: Deadline) -> bool:
        """Deliver what is left, report what is not delivered in time, end the threads."""
        self.state = max(self.state, CLOSING)
        complete = self.flush_until(deadline)
        # They end when the queue is empty. An event may have come during the flush.
        self._join_consumers(deadline)
        complete = self._give_up() and complete
        # The exit would cut a running callback short.
        self.queue.ledger.wait_for_callbacks(deadline.extended(LAST_CALLBACK))
        for consumer in self._present:
            consumer.pause()
        self._join_consumers(deadline)
        self._end()
        return complete

    def _join_consumers(self, deadline: Deadline) -> None:
        for consumer in self._present:
            consumer.join(deadline.remaining())

    @_unlocking
    def shutdown(self, timeout: Optional[float]) -> bool:
        """Flush, and end everything; see `Client.shutdown`."""
        deadline = Deadline(timeout)
        self.close(deadline)
        if self.must_not_wait():
            self.retire()
            return self.queue.begin_flush()
        return self.finish(deadline)

    def _give_up(self) -> bool:
        """Report the events that are lost now; return whether none is lost."""
        lost = self.queue.give_up()
        if lost is not None:
            error = NotDeliveredError(
                'The client was shut down before these events were delivered; some may '
                'have arrived without an answer.',
                self.queue.ledger.last_error,
            )
            self._make_consumer().report_lost(error, [lost])
        self._make_consumer().report_damage()
        return lost is None

    def retire(self) -> None:
        """Refuse new events, and end once the queue is empty. Waits for nothing."""
        if self.state >= CLOSING or process_exit.is_over():
            return
        self.state = DRAINING
        self.queue.close()
        if self.queue.ledger.has_waiting():
            if self._resting:
                self._start_thread()
        elif not self.has_threads():
            self._end()

    def _end(self) -> None:
        """Release everything. Twice is harmless, also by two threads."""
        self.state = CLOSED
        for consumer in self._present:
            consumer.pause()
        process_exit.discard(self)
        self.queue.release()
        self._release()
        try:
            while True:
                self.on_end.pop()()
        except IndexError:
            pass

    @_unlocking
    def stats(self) -> Stats:
        return self.queue.ledger.stats()


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
