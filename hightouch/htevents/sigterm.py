"""What SIGTERM does to clients that asked for it: they flush, then all goes its way.

The handler itself waits for nothing. It interrupts the main thread anywhere, perhaps
where that holds a lock which a delivery needs; so the flush runs on a thread of its own
while the main thread goes on, and then the signal is raised a second time. That time the
previous handler runs.
"""

import _thread
import os
import signal
import threading
import time
from typing import Any, List
from weakref import WeakKeyDictionary

from hightouch.htevents import fork
from hightouch.htevents.concurrency import Deadline
from hightouch.htevents.logs import log

# Seconds after which a signal is raised once more that was not handled.
_RAISE_AGAIN = 0.1


class _Drain:
    """The one handler of the process, for all clients that asked."""

    def __init__(self) -> None:
        # Seconds by dispatcher. Weak: a client that is gone needs no flush.
        self.timeouts: 'WeakKeyDictionary[Any, float]' = WeakKeyDictionary()
        # What SIGTERM did before: more than one where the application has put its own
        # handler over ours, and asked again.
        self.previous: List[Any] = []
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        self.draining = False
        self.drained = False
        # How many of the previous handlers run just now, each called by the one above.
        self.running = 0

    def install(self) -> None:
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None:
            raise RuntimeError(
                'drain_on_sigterm: SIGTERM has a handler that was not installed from '
                'Python, and could not run after ours; call flush() in there'
            )
        if previous == self.handle:
            return
        # ValueError from here: not the main thread.
        signal.signal(signal.SIGTERM, self.handle)
        self.previous.append(previous)

    def handle(self, number: int, frame: Any) -> None:
        fork.check()
        if self.drained or self.running:
            self.drained = self.draining = False
            return self._go_on(number, frame)
        if self.draining:
            return  # a second SIGTERM, as supervisors send: the first one is at work
        self.draining = True
        try:
            # Not threading.Thread: it takes a lock that we may have interrupted.
            _thread.start_new_thread(self.drain, (os.getpid(),))
        except RuntimeError:  # no thread to be had, or the interpreter ends
            self.draining = False
            self._go_on(number, frame)

    def drain(self, pid: int) -> None:
        try:
            deadlines = [
                (each, Deadline(seconds)) for each, seconds in self.timeouts.items()
            ]
            for dispatcher, deadline in deadlines:
                dispatcher.flush(deadline.remaining())
        except Exception:
            log.warning('The flush on SIGTERM failed', exc_info=True)
        finally:
            if _is_asyncios(self.previous[-1]):
                self.draining = False  # its loop has called the application already
            else:
                self.drained = True
                # The main thread may be on its way back into a wait that only a signal
                # ends, where one that came too early is not seen: so until it is.
                while self.drained:
                    os.kill(pid, signal.SIGTERM)
                    time.sleep(_RAISE_AGAIN)

    def _go_on(self, number: int, frame: Any) -> None:
        # A previous handler may call the one that it found: us. That call is for the
        # handler before.
        self.running += 1
        try:
            previous = self.previous[-min(self.running, len(self.previous))]
            if callable(previous):
                previous(number, frame)
            elif previous == signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        finally:
            self.running -= 1


def _is_asyncios(handler: Any) -> bool:
    """Whether an asyncio loop handles the signal: beside Python's handlers, at once."""
    module = str(getattr(handler, '__module__', ''))
    return module.partition('.')[0] in ('asyncio', 'uvloop')


_drain = _Drain()


def drain(dispatcher: Any, timeout: float) -> None:
    """Have ``dispatcher`` flushed on SIGTERM, before what that did until now.

    :param timeout: seconds
    :raises RuntimeError: when it cannot be done: not on the main thread, or SIGTERM has
        a handler that is not Python's
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            'drain_on_sigterm: expected the main thread, got %s; Python lets only the '
            'main thread install signal handlers' % threading.current_thread().name
        )
    _drain.install()
    _drain.timeouts[dispatcher] = timeout
