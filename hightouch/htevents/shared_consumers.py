"""The consumers of a client that has no threads: workers of the `pool` deliver with them.

Each is free or in one thread's use: a client has no more requests under way at a time
than it has consumers. Whoever finds none free may leave, because who uses one looks at
the queue again after giving it back.
"""

from typing import Callable, List, Optional

from hightouch.htevents.concurrency import Deadline, monotonic
from hightouch.htevents.consumer import Consumer
from hightouch.htevents.event_queue import EventQueue
from hightouch.htevents.pool import Job

# Seconds that a flush waits for a worker before it delivers by itself.
HELP_AFTER = 0.1


class SharedConsumers:
    """Safe to use from all threads, signal handlers and finalizers.

    :param queue: where the events wait
    :param consumers: at least one; none is ever started
    :param on_free: called when one of them is free again
    """

    def __init__(
        self, queue: EventQueue, consumers: List[Consumer], on_free: Callable[[], None]
    ) -> None:
        self._queue = queue
        self._count = len(consumers)
        self._free = list(consumers)
        self._on_free = on_free
        self._size = consumers[0].upload_size
        self._interval = consumers[0].upload_interval
        self._job = Job(self._serve, self._due)

    def start(self) -> None:
        """Have the events of the queue delivered, from now on."""
        self._job.open()
        self._queue.wake(self._job, self._size)
        self._queue.help = self._help

    def event_queued(self) -> None:
        """See that an event that was queued is delivered in time."""
        if not self._job.called:
            self._job.call(monotonic() + self._interval)

    @property
    def in_use(self) -> bool:
        return len(self._free) < self._count

    def stop(self) -> None:
        """Have nothing more delivered."""
        self._job.close()

    def _due(self) -> Optional[float]:
        return self._queue.due(self._size, self._interval)

    def _serve(self) -> None:
        self._use(self._deliver_due)

    def _use(self, deliver: Callable[[Consumer], None]) -> None:
        try:
            consumer = self._free.pop()
        except IndexError:
            return
        self._job.begin()
        try:
            deliver(consumer)
        finally:
            self._free.append(consumer)
            self._job.end()
            self._on_free()

    def _deliver_due(self, consumer: Consumer) -> None:
        batch = self._queue.take_now(self._size) if self._job.is_due() else None
        if batch is not None:
            if self._free and self._job.is_due():
                self._job.set()  # another worker may go on beside us
            consumer.deliver(batch)

    def _help(self, deadline: Deadline) -> float:
        """Deliver on the thread that waits for a flush, if no worker comes.

        The system may refuse threads while those that there are wait for a server; or we
        have interrupted code, as a signal handler, that keeps a thread from starting.
        """
        since = self._job.hurried
        if since and not self.in_use and monotonic() - since >= HELP_AFTER:
            self._use(lambda consumer: consumer.drain(deadline))
        return HELP_AFTER
