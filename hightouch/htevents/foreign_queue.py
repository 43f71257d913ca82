"""A plain ``queue.Queue`` of dicts, seen by a consumer as if it were an `EventQueue`."""

import queue
from typing import Any, Callable, List, Optional, Sequence, Tuple

from hightouch.htevents.batch import Batch
from hightouch.htevents.concurrency import Deadline, Signal, monotonic, wait_until
from hightouch.htevents.encoding import encode
from hightouch.htevents.errors import MessageTooLargeError
from hightouch.htevents.event_queue import BATCH_BYTES
from hightouch.htevents.findings import Finding, Findings

# Seconds between looks at a queue that cannot be waited on without taking from it.
POLL_INTERVAL = 0.5


class ForeignQueue:
    """The consumers' verbs over somebody else's queue.

    :param source: has ``get``, ``task_done``; with a ``not_empty`` condition, as
        ``queue.Queue`` has, an idle consumer sleeps without polling
    :param limit: bytes that one message may take
    :param on_drop: called with an error and the message for each that is over it
    """

    durable = False

    def __init__(
        self, source: Any, limit: int, on_drop: Callable[[Exception, Any], None]
    ) -> None:
        self._source = source
        self._limit = limit
        self._on_drop = on_drop
        # Taken from the queue, for a batch that is still to come.
        self._held_back: List[bytes] = []
        self._findings = Findings()
        self.warned_of_setup = False  # as in an EventQueue

    def take(
        self,
        wakeup: Signal,
        running: Callable[[], bool],
        size: int,
        interval: float,
        idle: Optional[float] = None,
    ) -> Optional[Batch]:
        if idle is not None:
            return self._batch(size, Deadline(idle))
        while True:
            self._wait(running)
            if not (running() or self._held_back):
                return None
            batch = self._batch(size, Deadline(interval if running() else 0))
            if batch is not None:
                return batch
            # What came was dropped, or another consumer was faster.

    def _batch(self, size: int, deadline: Deadline) -> Optional[Batch]:
        bodies: List[bytes] = []
        length = 0
        while len(bodies) < size:
            body = self._next(deadline)
            if body is None:
                break
            if length + len(body) + 1 >= BATCH_BYTES and bodies:
                self._held_back.insert(0, body)
                break
            length += len(body) + 1
            bodies.append(body)
        return Batch(bodies, monotonic()) if bodies else None

    def _wait(self, running: Callable[[], bool]) -> None:
        """Wait for a first message, or until it is no longer running."""
        not_empty = getattr(self._source, 'not_empty', None)
        while running() and not self._held_back:
            if not_empty is None:
                body = self._next(Deadline(POLL_INTERVAL))
                if body is not None:
                    self._held_back.append(body)
                continue
            with not_empty:
                if self._has_items():
                    return
                if running():  # looked at under the lock: see wake
                    not_empty.wait()

    def _next(self, deadline: Deadline) -> Optional[bytes]:
        if self._held_back:
            return self._held_back.pop(0)
        while True:
            try:
                item = self._get(deadline)
            except queue.Empty:
                return None
            found: List[Finding] = []
            body, message = encode(item, found)
            self._findings.log(found)
            if len(body) <= self._limit:
                return body
            try:
                self._on_drop(MessageTooLargeError(len(body), self._limit), message)
            finally:
                self._source.task_done()

    def _get(self, deadline: Deadline) -> Any:
        not_empty = getattr(self._source, 'not_empty', None)
        if not_empty is None:
            return self._source.get(block=True, timeout=deadline.remaining())
        while True:
            try:
                return self._source.get(block=False)
            except queue.Empty:
                with not_empty:
                    if not wait_until(not_empty, self._has_items, deadline):
                        raise

    def _has_items(self) -> bool:
        return bool(self._source._qsize())

    def has_begun(self) -> bool:
        """Whether messages of a batch to come were taken already."""
        return bool(self._held_back)

    def wake(self) -> None:
        """Have a sleeping consumer look whether it shall go on."""
        not_empty = getattr(self._source, 'not_empty', None)
        if not_empty is not None and not_empty.acquire(timeout=1):
            try:
                not_empty.notify_all()
            finally:
                not_empty.release()

    def holds(self, batch: Batch) -> bool:
        return True

    def claim(self, batch: Batch, delivered: bool) -> bool:
        return True

    def split(self, batch: Batch) -> Optional[Tuple[Batch, Batch]]:
        return batch.halves()

    def divide(
        self, batch: Batch, chosen: Sequence[bool]
    ) -> Optional[Tuple[Batch, Batch]]:
        return batch.divided(chosen)

    def park(self, batch: Batch) -> None:
        # Not by put(): that may wait for room, which we are to make.
        self._held_back[:0] = batch.bodies

    def acknowledge(self, batch: Batch, delivered: bool) -> bool:
        for _ in range(len(batch)):
            self._source.task_done()
        return True

    def hand_out(self, batch: Batch) -> List[Any]:
        return batch.messages()

    def note_retry(self) -> None:
        """Somebody else's queue keeps no books."""

    def note_error(self, error: BaseException) -> None:
        """Somebody else's queue keeps no books."""
