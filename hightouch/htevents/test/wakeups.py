import random
import threading
import unittest
from types import SimpleNamespace
from typing import Any, List

from hightouch.htevents._process.waiting import Signal
from hightouch.htevents._queue.queue import Queue
from hightouch.htevents._queue.stores import BATCH_BYTES, MemoryStore
from hightouch.htevents.test.support import LIMIT


class CountingSignal(Signal):
    __slots__ = ('calls',)

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def set(self) -> None:
        self.calls += self._lock.locked()  # otherwise it was woken already
        super().set()


class WakeTest(unittest.TestCase):
    def wakes_for_a_batch(self, size: int, length: int) -> int:
        """Offer messages of about ``length`` bytes until a batch of ``size`` is full."""
        sizes, queue, wakeup = random.Random(1), Queue(MemoryStore(0)), CountingSignal()
        taker = SimpleNamespace(
            running=True, wakeup=wakeup, upload_size=size, upload_interval=100 * LIMIT
        )
        batches: List[Any] = []
        thread = threading.Thread(target=lambda: batches.append(queue.take(taker)))
        thread.start()
        count = filled = 0
        while count < size and filled < BATCH_BYTES:
            self.assertEqual(batches, [], (size, length, count, filled))
            body = b'x' * sizes.randint(1, 2 * length)
            queue.offer(body)
            count, filled = count + 1, filled + len(body) + 1
        thread.join(LIMIT)
        self.assertFalse(thread.is_alive(), (size, length, count, filled))
        self.assertLessEqual(count - 1, len(batches[0]))
        return wakeup.calls

    def test_a_full_batch_is_taken_at_once_whatever_is_in_it(self) -> None:
        for size in (1, 7, 100, 1000, 100000):
            for length in (5, 300, 20000):
                self.wakes_for_a_batch(size, length)

    def test_a_batch_of_thousands_wakes_its_consumer_a_few_times(self) -> None:
        self.assertLess(self.wakes_for_a_batch(10000, 300), 10)


if __name__ == '__main__':
    unittest.main()
