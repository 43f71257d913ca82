"""The consumers of a client that has no threads: workers of the `pool` deliver with them.

Each is free or in one thread's use: a client has no more requests under way at a time
than it has consumers. Whoever finds none free may leave, because who uses one looks at
the queue again after giving it back.
"""

from time import monotonic
from typing import Callable, List, Optional

from hightouch.htevents.consumer import Consumer
from hightouch.htevents.event_queue import EventQueue
from hightouch.htevents.pool import Job


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
        try:
            consumer = self._free.pop()
        except IndexError:
            return
        self._job.begin()
        try:
            if self._job.is_due():
                self._deliver(consumer)
        finally:
            self._free.append(consumer)
            self._job.end()
            self._on_free()

    def _deliver(self, consumer: Consumer) -> None:
        batch = self._queue.take_now(self._size)
        if batch is not None:
            if self._free and self._job.is_due():
                self._job.set()  # another worker may go on beside us
            consumer.deliver(batch)
