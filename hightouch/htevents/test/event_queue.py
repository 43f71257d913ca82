import random
import unittest

from hightouch.htevents.event_queue import BATCH_BYTES, EventQueue
from hightouch.htevents.test.support import LIMIT


class Leader:
    """Looks at the queue whenever it is woken, as a consumer does."""

    def __init__(self, queue: EventQueue, size: int) -> None:
        self.looks = 0
        self.is_full = False
        self._queue = queue
        self._size = size
        queue._wakeup = self  # type: ignore[assignment]

    def set(self) -> None:
        self.looks += 1
        self._queue._wake_when_full(self._size)
        self.is_full = self._queue._ripe(self._size, LIMIT)


class WakeTest(unittest.TestCase):
    def looks_for_a_batch(self, size: int, length: int) -> int:
        """Offer messages of about ``length`` bytes until a batch of ``size`` is full."""
        sizes = random.Random(1)
        queue = EventQueue()
        leader = Leader(queue, size)
        leader.set()
        count = filled = 0
        while count < size and filled < BATCH_BYTES:
            self.assertFalse(leader.is_full, (size, length, count, filled))
            body = b'x' * sizes.randint(1, 2 * length)
            queue.offer(body)
            count, filled = count + 1, filled + len(body) + 1
        self.assertTrue(leader.is_full, (size, length, count, filled))
        return leader.looks

    def test_the_leader_knows_a_full_batch_at_once_whatever_is_in_it(self) -> None:
        for size in (1, 7, 100, 1000, 100000):
            for length in (5, 300, 20000):
                self.looks_for_a_batch(size, length)

    def test_a_batch_of_thousands_wakes_its_leader_a_few_times(self) -> None:
        self.assertLess(self.looks_for_a_batch(10000, 300), 100)


if __name__ == '__main__':
    unittest.main()
