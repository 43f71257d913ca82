"""The methods of ``queue.Queue``, for users of ``client.queue``."""

import queue as queue_module
import threading
from time import sleep
from typing import Any, Callable, List, Optional

from hightouch.htevents._process.waiting import Deadline, unlocking
from hightouch.htevents._queue.batch import Batch
from hightouch.htevents._queue.queue import Queue
from hightouch.htevents.encoding import encode

_unlocking = unlocking(lambda queue_api: queue_api.source.locks())


class QueueApi:
    """A client's queue, as ``queue.Queue`` would show it. For inspection and tests.

    Safe to use from all threads.

    :param source: the queue itself
    :param maxsize: messages that may wait; 0 or less: no bound
    :param put: queues an encoded message, within so many seconds; False when it is refused
    """

    def __init__(
        self, source: Queue, maxsize: int, put: Callable[[bytes, float], bool]
    ) -> None:
        self.source = source
        self.maxsize = maxsize
        self._put = put
        # One entry for each message that was handed out: the last one of a batch is the batch.
        self._handed_out: List[Optional[Batch]] = []

    def qsize(self) -> int:
        return self.source.store.waiting()

    def empty(self) -> bool:
        return self.qsize() == 0

    def full(self) -> bool:
        return self.source.store.is_full()

    def put(
        self, item: Any, block: bool = True, timeout: Optional[float] = None
    ) -> None:
        """Put a message (a dict); raise ``queue.Full`` without room."""
        wait = (threading.TIMEOUT_MAX if timeout is None else timeout) if block else 0
        if not self._put(encode(item)[0], wait):
            raise queue_module.Full

    def put_nowait(self, item: Any) -> None:
        self.put(item, block=False)

    @_unlocking
    def get(self, block: bool = True, timeout: Optional[float] = None) -> Any:
        """Take one message (a dict); raise ``queue.Empty`` without one.

        ``task_done`` acknowledges it.
        """
        deadline = Deadline(timeout)
        while True:
            batch = self.source.take_now(1)
            if batch is not None:
                return self.hand_out(batch)[0]
            if not block or deadline.over:
                raise queue_module.Empty
            sleep(0.01)

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def hand_out(self, batch: Batch) -> List[Any]:
        """Return a batch's messages to a caller that calls `task_done` for each."""
        batch.owner = None
        self._handed_out.extend([None] * (len(batch) - 1) + [batch])
        return batch.messages()

    @_unlocking
    def task_done(self) -> None:
        """Mark the oldest message handed out as done; raise ValueError without one.

        A batch is acknowledged with its last message.
        """
        try:
            batch = self._handed_out.pop(0)
        except IndexError:
            raise ValueError('task_done() called too many times')
        if batch is not None:
            self.source.acknowledge(batch, delivered=True)

    @_unlocking
    def join(self) -> None:
        """Wait, without bound, until every message is acknowledged."""
        self.source.flush(Deadline(None))
