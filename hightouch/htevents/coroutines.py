"""Flush and shutdown for coroutines, which wait without a thread and never block the loop.

The promises are those of `Delivery.flush` and `Delivery.shutdown`.
"""

from hightouch.htevents._process.loops import in_thread, make_signal
from hightouch.htevents._process.waiting import Deadline
from hightouch.htevents.delivery import CLOSED, LAST_CALLBACK, Delivery


async def flush(delivery: Delivery, deadline: Deadline) -> bool:
    """Send the waiting events, and wait for them."""
    delivery.start()
    queue = delivery.queue
    if delivery.must_not_wait():
        return queue.begin_flush()
    flushing = queue.start_flush(make_signal())
    try:
        waits = not flushing.done and queue.ledger.has_waiting()
        if waits and delivery.state != CLOSED and not delivery.has_threads():
            # sync_mode, or no thread could be started: to deliver here would block.
            return await in_thread(lambda: delivery.flush_until(deadline))
        return await queue.ledger.flushes.wait_async(flushing, deadline)
    finally:
        queue.ledger.flushes.forget(flushing)


async def shutdown(delivery: Delivery, deadline: Deadline) -> bool:
    """Flush, and end everything. A cancelled task loses nothing."""
    delivery.close(deadline)
    if delivery.must_not_wait():
        delivery.retire()
        return delivery.queue.begin_flush()
    try:
        complete = await flush(delivery, deadline)
        if not complete:
            # The callbacks for the events that are lost may take their time.
            return await in_thread(lambda: delivery.finish(deadline))
    except BaseException:
        delivery.close(Deadline(None))
        raise
    finally:
        delivery.retire()
    ended = make_signal()
    delivery.on_end.append(ended.set)
    if delivery.state != CLOSED:
        await ended.wait(deadline.extended(LAST_CALLBACK).remaining())
    return complete
