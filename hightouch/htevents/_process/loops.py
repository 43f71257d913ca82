"""Lets coroutines wait for threads, on asyncio (also uvloop) and on trio.

The event loops are imported inside of functions: code that runs on one has imported it.
"""

import sys
from typing import Any, Callable, List, Optional

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.waiting import start_thread


class AsyncioSignal:
    """A wake-up call for one waiting task of the running loop: see `waiting.Signal`.

    A future and a timer, because ``asyncio.wait_for`` starts a task for each waiter, and up to
    Python 3.11 may lose a cancellation.
    """

    def __init__(self) -> None:
        import asyncio

        # Inside a coroutine it is the running loop, also on Python 3.6.
        self._loop = asyncio.get_event_loop()
        self._is_set = False
        self._future: Any = None

    def set(self) -> None:
        """Wake the task. May be called from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError as error:
            raise_interruption(error)
            # Otherwise the loop is closed, and the task is gone.

    def _wake(self) -> None:
        self._is_set = True
        _resolve(self._future)

    async def wait(self, timeout: Optional[float] = None) -> None:
        """Wait for a call, at most ``timeout`` seconds (None: without bound)."""
        if not self._is_set:
            self._future = future = self._loop.create_future()
            timer = timeout is not None and self._loop.call_later(
                timeout, _resolve, future
            )
            try:
                await future
            finally:
                if timer:
                    timer.cancel()
        self._is_set = False


def _resolve(future: Any) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class TrioSignal:
    """The same for a task of trio."""

    def __init__(self, trio: Any) -> None:
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._event = trio.Event()

    def set(self) -> None:
        try:
            self._token.run_sync_soon(self._wake)
        except self._trio.RunFinishedError:
            pass

    def _wake(self) -> None:
        self._event.set()

    async def wait(self, timeout: Optional[float] = None) -> None:
        with self._trio.move_on_after(float('inf') if timeout is None else timeout):
            await self._event.wait()
        self._event = self._trio.Event()


def make_signal() -> Any:
    """Return a signal for the current task."""
    trio: Any = sys.modules.get('trio')
    if trio is not None:
        try:
            trio.lowlevel.current_task()
            return TrioSignal(trio)
        except RuntimeError:
            pass  # not inside trio, which may run as a guest of asyncio
    return AsyncioSignal()


async def in_thread(function: Callable[[], bool]) -> bool:
    """Run a function on a thread of its own; where none can be started, on this one.

    The function also runs to its end if the task is cancelled.
    """
    signal = make_signal()
    outcome: List[Any] = []

    def run() -> None:
        try:
            outcome.extend((function(), None))
        except BaseException as error:
            outcome.extend((False, error))
        signal.set()

    if not start_thread(run):
        run()
    while not outcome:
        await signal.wait()
    result, error = outcome
    if error is not None:
        raise error
    return bool(result)
