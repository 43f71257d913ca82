"""Runs the consumers of one client: starts them, flushes, shuts down, survives a fork."""

import sys
import threading
from typing import Any, Callable, Dict, List, Optional

from hightouch.htevents import fork, lifecycle, pool
from hightouch.htevents.batch import Batch
from hightouch.htevents.concurrency import (
    Deadline,
    delivery_depth,
    monotonic,
    try_start,
    unlocking,
)
from hightouch.htevents.consumer import Consumer
from hightouch.htevents.errors import NotDeliveredError
from hightouch.htevents.event_queue import EventQueue, Stats
from hightouch.htevents.logs import is_in_a_line, log
from hightouch.htevents.shared_consumers import SharedConsumers

# Seconds beyond the end of a client's time in which a callback may still return.
LAST_CALLBACK = 0.1

# Clients of a process that have threads of their own; those of more share theirs.
CLIENTS_WITH_THREADS = 10


_unlocking = unlocking(lambda dispatcher: dispatcher.queue.locks())


class Dispatcher:
    """Between a client and its consumers; knows no message and no HTTP.

    Consumers refer to this object, never to the client: a client that is dropped
    without a shutdown is garbage, and its consumers end when the queue is empty.

    Where there are many clients the later ones have no threads of their own: see
    `SharedConsumers`.

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
        make_consumer: Callable[[Callable[[], None]], Consumer],
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
        self._forget_consumers()
        # None for a client that has threads of its own.
        self._shared: Optional[SharedConsumers] = None
        self._made_shared: Dict[None, SharedConsumers] = {}
        self._running = False
        self._prepared = False
        self._next_start = 0.0
        self._ended = False
        # The one thread that ends everything, and whether it has. If a signal handler
        # interrupts that, its next call goes on.
        self._ender: Dict[None, int] = {}
        self._is_over = False
        self._finishing = False
        # Calls that want to start the consumers; the first of the list does. No lock: the
        # exception of a signal handler could leave it held.
        self._starters: List[object] = []

    def _forget_consumers(self) -> None:
        # Made when they are needed: a thread object takes as much memory as a queue.
        # Under one key each, by setdefault: threads that make them at once get the same.
        self._made: Dict[str, List[Consumer]] = {}
        # What they are made of.
        self._lock_type: Any = threading.Lock

    def _make_once(
        self, use: str, count: int, on_end: Callable[[], None]
    ) -> List[Consumer]:
        return self._made.get(use) or self._made.setdefault(
            use, [self._make_consumer(on_end) for _ in range(count)]
        )

    @property
    def consumers(self) -> List[Consumer]:
        """The threads, started by the first event; where there are many clients never."""
        return self._make_once('threads', self._threads, self._consumer_ended)

    @property
    def _present(self) -> List[Consumer]:
        """The threads as far as they were made: to ask for them makes none."""
        return self._made.get('threads', [])

    @property
    def _inline(self) -> Consumer:
        """Never started: delivers on the thread that asks for it."""
        return self._make_once('inline', 1, _nothing)[0]

    def _after_fork(self) -> None:
        for consumer in self._present:
            consumer.running = False  # if one of them forked, it must not go on
        if self._shared is not None:
            self._shared.stop()
        self._make()

    # -- events ----------------------------------------------------------------------

    def put(self, body: bytes, block_timeout: float = 0) -> bool:
        """Queue an encoded message and see that somebody delivers it."""
        if not self._running and not self.start():
            return self.queue.refuse()
        accepted = self.queue.offer(body, block_timeout)
        if self._shared is not None:
            self._shared.event_queued()
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
        """Start the consumers if need be: with the first event, or when something waits.

        :returns: False when events would be lost
        """
        if not self._prepared:
            if self.queue.closed or lifecycle.is_over():
                return False
            self._prepare()
        if self._running or self._threads == 0 or monotonic() < self._next_start:
            return True
        if self.queue.closed and not self.queue.has_waiting():
            return True  # there is nothing for them, and there will be nothing
        me, starters = object(), self._starters  # a child, forked in here, has others
        try:
            try:
                starters.append(me)
                # Else another thread, or the code below us on this one, is at it.
                if starters[0] is me and not self._running:
                    self._start_threads()
            finally:
                if me in starters:
                    starters.remove(me)
        except BaseException:
            # Up to Python 3.9 a signal handler may raise before the one above.
            if me in starters:
                starters.remove(me)
            raise
        return True

    def _prepare(self) -> None:
        """Do what is done once in a process, with the first event."""
        made = self._made
        many = lifecycle.add(self) > CLIENTS_WITH_THREADS
        # With a spool somebody has to look for what dead processes left.
        shares = many and self._threads > 0 and not self.queue.durable
        shared = self._make_shared() if shares else None
        if made is self._made:  # else this is a child, forked in here
            if shared is not None:
                shared.start()
                self._shared, self._running = shared, True
            self._prepared = True
        if self._ended:
            self._leave()  # another thread shut us down meanwhile
        if self._threads:
            self._on_start()
            _warn_of_uwsgi()  # last: a log handler may track

    def call_when_started(self, function: Callable[[], None]) -> None:
        """Call a function with the first event that is still to come, and in each child."""
        self._on_start = function

    def _make_shared(self) -> SharedConsumers:
        made = self._made_shared  # of threads that come here at once all get the same
        return made.get(None) or made.setdefault(
            None, SharedConsumers(self.queue, self.consumers, self._consumer_ended)
        )

    def _start_threads(self) -> None:
        if threading.Lock is not self._lock_type:
            self._forget_consumers()  # gevent has replaced it meanwhile
        consumers = self.consumers
        for number, consumer in enumerate(consumers):
            if consumer.began:
                continue
            if consumer.tried:
                # A signal handler raised in there. It may begin yet, or never: if it does
                # it ends at once, and another one takes its place.
                consumer.pause()
                consumer = consumers[number] = self._make_consumer(self._consumer_ended)
            consumer.tried = True
            if not try_start(consumer):
                consumer.tried = False
                # Events wait for a flush, the exit, or the next try.
                self._next_start = monotonic() + pool.START_RETRY_INTERVAL
                return
        self._running = self._prepared  # no longer in a child that was forked in here

    def _has_threads(self) -> bool:
        if self._shared is not None:
            return pool.is_running()
        # Alive alone will not do: in a signal handler, one that is just started may wait
        # for a lock of threading's that the code below us holds.
        return any(each.began and each.is_alive() for each in self._present)

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
            if consumer.began and consumer is not current:
                consumer.wait_until_ended(deadline)
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
        if not (self.queue.has_waiting() or self._is_delivering()):
            self._end()

    def _consumer_ended(self) -> None:
        if self._ended:
            self._lease.close()  # taken anew by a request that outlasted the shutdown
        # Who waits for us ends everything: it may be the only thread that can, because
        # it has interrupted a call of its own.
        if self.queue.closed and not (self.queue.has_waiting() or self._finishing):
            if not self._is_delivering():
                self._end()

    def _is_delivering(self) -> bool:
        if self._shared is not None:
            return self._shared.in_use
        # By what they set before they end, not by is_alive(): of two that end together
        # each would see the other one alive.
        return any(each.ident is not None and each.running for each in self._present)

    def _end(self) -> None:
        ident = threading.get_ident()
        if self._ender.setdefault(None, ident) != ident or self._is_over:
            return
        self._ended = True
        self._leave()
        self.queue.release()
        self._lease.close()
        self._is_over = True
        self._on_end()

    def _leave(self) -> None:
        lifecycle.discard(self)
        if self._shared is not None:
            self._shared.stop()

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
