"""Holds the events of a ``with`` block back until it is known that they really happened.

A block has a list of things to queue: its events, and the blocks nested in it, at their places.
So the events of a block and of those nested in it leave in the order of their calls.
Adding to the list and taking from it are atomic, because another thread or task that
shares the block may add while it ends: it adds first, and then looks whether the block is
still open.
"""

from collections import deque
from typing import Callable, Deque, Optional, Tuple

from hightouch.htevents._context import blocks
from hightouch.htevents._context.blocks import Block, Opening
from hightouch.htevents._process.fork import getpid
from hightouch.htevents.settings import check_callable

# The states of a block.
OPEN = 'open'
ENDED = 'ended'  # without an error, but its hook has not called `release`
RELEASED = 'released'  # its events may be queued
DISCARDED = 'discarded'

Hook = Callable[[Callable[[], None]], object]

# Queues something that was held back. It is told whether it may wait, for room or a delivery.
Item = Callable[[bool], object]


class Deferral(Block):
    """The events of one block. Safe to use from all threads.

    :param hook: see `deferred`
    :param opened: the blocks around it, outermost first
    """

    __slots__ = ('_hook', '_items', '_state', '_pid', '_outer')

    def __init__(self, hook: Optional[Hook], opened: Tuple[Block, ...] = ()) -> None:
        super().__init__()
        self._hook = hook
        self._items: Deque[Item] = deque()
        self._state = OPEN
        # A forked child must not queue the events of its parent once more.
        self._pid = getpid()
        self._outer = _holder(opened, self._queue)

    def add(self, item: Item) -> bool:
        """Hold something back; False if the block is closed, or belongs to a parent process."""
        if self._pid != getpid():
            return False
        self._items.append(item)
        if self._state != OPEN:
            try:
                self._items.remove(item)
                return False
            except ValueError:
                pass  # the end of the block has taken it
        return True

    def finish(self, failed: bool) -> None:
        """Queue the events, give them to the hook, or discard them."""
        if failed:
            self._state = DISCARDED
            self._items.clear()
            return
        self._state = ENDED
        if self._hook is None:
            self.release()
        elif self._items:
            self._hook(self.release)

    def release(self) -> None:
        """Queue the events, as part of the outer block where that has not been released."""
        if self._state == ENDED and self._pid == getpid():
            self._state = RELEASED
            if self._outer is None or self._outer._is_released():
                self._queue()

    def _is_released(self) -> bool:
        """Whether nothing holds this block back, nor those around it."""
        outer = self._outer
        return self._state == RELEASED and (outer is None or outer._is_released())

    def _queue(self, may_wait: bool = True) -> None:
        if self._state == RELEASED:
            try:
                self._drain(may_wait)
            finally:
                # The rest, if a signal handler has raised. Its exception must not wait.
                self._drain(False)

    def _drain(self, may_wait: bool) -> None:
        while self._items:
            # In this order: an item that was interrupted may not be queued yet.
            self._items[0](may_wait)
            self._items.popleft()


def _holder(opened: Tuple[Block, ...], item: Item) -> Optional[Deferral]:
    """Let the innermost open block hold something back, and return it; None without any.

    A task may outlive its block while the block around that is still open.
    """
    for each in reversed(opened):
        if isinstance(each, Deferral) and each.add(item):
            return each
    return None


def holds(opened: Tuple[Block, ...], item: Item) -> bool:
    """Whether one of the open blocks holds an item back from now on."""
    return _holder(opened, item) is not None


def deferred(hook: Optional[Hook] = None) -> Opening:
    """Queue the events of a ``with`` block when it ends; discard them if it raises.

    Calls in the block check and encode their event, and return ``(True, message)``. When the
    block ends, the events are queued in order, with each client's ``block_timeout``. An event
    that its client cannot take then is reported through ``on_error``. Until then the events
    are in memory, also those of a client with ``spool_dir``.

    In a nested block the events wait for the outer one as well. The block holds for all
    clients, and for the current thread or asyncio task, like `scope`. A task that goes on
    after the end of the block is no longer in it. ``@deferred()`` puts each call of a
    function, also of an ``async def``, into a block of its own.

    :param hook: called at the end with the function that queues the events, such as
        ``transaction.on_commit`` of Django; None: they are queued immediately
    :raises ValidationError: (an ``AssertionError``) when the hook cannot be called
    """
    checked = check_callable('hook', hook)
    return Opening(lambda: Deferral(checked, blocks.opened()))
