"""Lets coroutines wait for threads, on asyncio (also uvloop) and on trio.

The event loops are imported inside of functions: code that runs on one has imported it.
"""

import sys
from typing import Any, Callable, List, Optional

from hightouch.htevents._process.waiting import start_thread


class AsyncioSignal:
    """A wake-up call for one waiting task of the running loop: see `waiting.Signal`."""

    def __init__(self) -> None:
        import asyncio

        # Inside a coroutine it is the running loop, also on Python 3.6.
        self._loop = asyncio.get_event_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the task. May be called from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            pass  # the loop is closed, and the task is gone

    async def wait(self, timeout: Optional[float] = None) -> None:
        """Wait for a call, at most ``timeout`` seconds (None: without bound)."""
        import asyncio

        try:
            await asyncio.wait_for(self._event.wait(), timeout)
        except asyncio.TimeoutError:
            pass
        self._event.clear()


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
    import asyncio

    trio = sys.modules.get('trio')
    # Like asyncio.get_running_loop, but without an error, and on Python 3.6 as well.
    if trio is None or asyncio._get_running_loop() is not None:
        return AsyncioSignal()
    return TrioSignal(trio)


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
