"""What SIGTERM does to clients that asked for it: they flush, then all goes its way.

The handler itself waits for nothing, as long as there is a thread to be had. It
interrupts the main thread anywhere, perhaps where that holds a lock which a delivery
needs; so the flush runs on a thread of its own while the main thread goes on, and then
the signal is raised a second time. That time the previous handler runs.
"""

import _thread
import os
import signal
import threading
import time
from types import BuiltinFunctionType
from typing import Any, List, Tuple
from weakref import WeakKeyDictionary

from hightouch.htevents._process import exit as process_exit
from hightouch.htevents._process import fork
from hightouch.htevents._process.logs import log
from hightouch.htevents._process.waiting import Deadline, monotonic

# Seconds after which a signal is raised again, as long as our handler has not run.
_RAISE_AGAIN = 0.1


class _Drain:
    """The one handler of the process, for all clients that asked."""

    def __init__(self) -> None:
        # Seconds by delivery. Weak: a client that is gone needs no flush.
        self.timeouts: 'WeakKeyDictionary[Any, float]' = WeakKeyDictionary()
        # What SIGTERM did before: more than one where the application has put its own
        # handler over ours, and asked again.
        self.previous: List[Any] = []
        self._wakeup: Tuple[int, ...] = ()  # see watch
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        self.draining = False
        self.drained = False
        # How many of the previous handlers run just now, each called by the one above.
        self.running = 0
        self.seen_at = float('-inf')  # when the handler ran last
        if self._wakeup:
            # A signal of this child's is not for its parent's watch.
            signal.set_wakeup_fd(-1)
            for descriptor in self._wakeup:
                os.close(descriptor)
            self._wakeup = ()

    def install(self) -> None:
        previous = signal.getsignal(signal.SIGTERM)
        if previous is None:
            raise RuntimeError(
                'drain_on_sigterm: SIGTERM has a handler that was not installed from '
                'Python, and could not run after ours; call flush() in there'
            )
        if previous != self.handle:
            # ValueError from here: not the main thread.
            signal.signal(signal.SIGTERM, self.handle)
            self.previous.append(previous)

    def watch(self) -> None:
        """Have a thread see to it that the handler runs, in the worker of a pool.

        Python only notes a signal, and calls its handler when the main thread is between
        two steps. One that comes just before the main thread waits for a lock in C is seen
        after that wait: perhaps never. Workers begin such a wait when their work is done,
        and just then a pool ends them.
        """
        if not any(map(process_exit.is_worker, process_exit.MULTIPROCESSING)):
            return
        if self._wakeup or threading.current_thread() is not threading.main_thread():
            return
        if not isinstance(_thread.start_new_thread, BuiltinFunctionType):
            return  # gevent has replaced it, and has a way of its own
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer)
        if before != -1:  # of an event loop, which waits for no lock
            signal.set_wakeup_fd(before)
        else:
            try:
                _thread.start_new_thread(self._see_to_it, (reader, os.getpid()))
                self._wakeup = (reader, writer)
                return
            except RuntimeError:  # no thread to be had
                signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)

    def _see_to_it(self, reader: int, pid: int) -> None:
        while True:
            if signal.SIGTERM not in os.read(reader, 100):
                continue
            # The main thread may have been faster than we. What comes soon after one that
            # was handled is ignored anyway, or raised again by `drain`.
            while monotonic() - self.seen_at > 1 and self._is_installed():
                time.sleep(_RAISE_AGAIN)
                if monotonic() - self.seen_at > 1:
                    os.kill(pid, signal.SIGTERM)

    def handle(self, number: int, frame: Any) -> None:
        drained, self.drained = self.drained, False
        self.seen_at = monotonic()
        fork.check()
        if drained or self.running:
            self.draining = False
            return self._go_on(number, frame)
        if self.draining:
            return  # a second SIGTERM, as supervisors send: the first one is at work
        self.draining = True
        try:
            # Not threading.Thread: it takes a lock that we may have interrupted.
            _thread.start_new_thread(self.drain, (os.getpid(),))
        except RuntimeError:  # no thread to be had, or the interpreter ends
            self._flush()
            self.draining = False
            self._go_on(number, frame)

    def _flush(self) -> None:
        try:
            deadlines = [
                (each, Deadline(seconds)) for each, seconds in self.timeouts.items()
            ]
            for delivery, deadline in deadlines:
                if not delivery.flush(deadline.remaining()):
                    log.warning(
                        'On SIGTERM %d event(s) could not be delivered in time',
                        delivery.stats().pending,
                    )
        except Exception:
            log.warning('The flush on SIGTERM failed', exc_info=True)

    def drain(self, pid: int) -> None:
        try:
            self._flush()
        finally:
            if _is_asyncios(self.previous[-1]):
                self.draining = False  # its loop has called the application already
            else:
                self._raise_until_seen(pid)

    def _raise_until_seen(self, pid: int) -> None:
        # The handler that starts this is about to end, and the main thread goes back to
        # what it waited for: see watch.
        self.drained = True
        while True:
            os.kill(pid, signal.SIGTERM)
            time.sleep(_RAISE_AGAIN)
            if not (self.drained and self._is_installed()):
                return

    def _is_installed(self) -> bool:
        # Whether another one, that of the application, has run cannot be seen.
        return signal.getsignal(signal.SIGTERM) == self.handle

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


def drain(delivery: Any, timeout: float) -> None:
    """Have ``delivery`` flushed on SIGTERM, before what that did until now.

    :param timeout: seconds
    :raises RuntimeError: when it cannot be done: not on the main thread, or SIGTERM has
        a handler that is not Python's
    """
    fork.check()
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            'drain_on_sigterm: expected the main thread, got %s; Python lets only the '
            'main thread install signal handlers' % threading.current_thread().name
        )
    _drain.install()
    _drain.timeouts[delivery] = timeout
    _drain.watch()
    delivery.call_when_started(_drain.watch)  # in workers that are forked later
