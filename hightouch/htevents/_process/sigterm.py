"""Flushes the clients that asked for it on SIGTERM, and then runs the previous handler.

A signal handler may interrupt the main thread while that holds a lock which a delivery
needs, so the handler must not wait. It starts a thread that flushes, and the main thread
goes on. After the flush, that thread raises SIGTERM again, and this time our handler calls
the previous one. The handler flushes itself only if no thread can be started.
"""

import _thread
import os
import signal
import threading
import time
from types import BuiltinFunctionType
from typing import Any, Callable, List, Tuple
from weakref import WeakKeyDictionary

from hightouch.htevents._process import exit as process_exit
from hightouch.htevents._process import fork
from hightouch.htevents._process.logs import log
from hightouch.htevents._process.waiting import Deadline, monotonic, start_thread

# Seconds after which a signal is raised again if our handler has not run.
_RAISE_AGAIN = 0.1


class _Drain:
    """The handler of the process, shared by all clients that asked for it."""

    def __init__(self) -> None:
        # Seconds by delivery. Weak: a client that was dropped needs no flush.
        self.timeouts: 'WeakKeyDictionary[Any, float]' = WeakKeyDictionary()
        # The handlers that ours replaced. The list grows when the application replaces our
        # handler, and then asks for it again.
        self.previous: List[Any] = []
        # The reading and the writing end of the pipe that `watch` makes.
        self._wakeup: Tuple[int, ...] = ()
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        self.draining = False  # the flush has begun
        self.drained = False  # the flush has ended, and the next SIGTERM is our own
        # The number of previous handlers that run, each called by the one above it.
        self.running = 0
        self.seen_at = float('-inf')  # when our handler last ran
        if self._wakeup:
            # The pipe belongs to the parent, which must not see signals of this child.
            signal.set_wakeup_fd(-1)
            for descriptor in self._wakeup:
                os.close(descriptor)
            self._wakeup = ()

    def watch(self) -> None:
        """In the worker of a pool, start a thread that makes Python run the handler.

        Python only notes a signal in C, and calls the handler between two bytecodes of the
        main thread. If the main thread begins to wait for a lock between those moments,
        the handler runs after that wait, which may never end. The worker of a pool waits
        for a lock when its work is done, and that is when the pool terminates it.
        """
        if not any(map(process_exit.is_worker, process_exit.MULTIPROCESSING)):
            return
        if self._wakeup or threading.current_thread() is not threading.main_thread():
            return
        if not isinstance(_thread.start_new_thread, BuiltinFunctionType):
            return  # gevent has replaced the function, and handles signals differently
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer)
        # An event loop, which has a descriptor already, waits for no lock.
        if before == -1 and start_thread(self._raise_missed, reader, os.getpid()):
            self._wakeup = (reader, writer)
            return
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)

    def _raise_missed(self, reader: int, pid: int) -> None:
        while True:
            if signal.SIGTERM in os.read(reader, 100):
                # The handler may have run already. A second SIGTERM within this second
                # needs no help: the handler ignores it, or `_flush_and_raise` repeats it.
                since = monotonic() - 1
                self._raise_until(lambda: self.seen_at >= since, pid)

    def _raise_until(self, is_seen: Callable[[], bool], pid: int) -> None:
        time.sleep(_RAISE_AGAIN)
        # If the application has replaced our handler, nothing tells whether that one ran.
        while not is_seen() and signal.getsignal(signal.SIGTERM) == self.handle:
            os.kill(pid, signal.SIGTERM)
            time.sleep(_RAISE_AGAIN)

    def handle(self, number: int, frame: Any) -> None:
        drained, self.drained = self.drained, False
        self.seen_at = monotonic()
        fork.check()
        if not (drained or self.running):
            if self.draining:
                return  # a supervisor sent a second SIGTERM during the flush
            self.draining = True
            if start_thread(self._flush_and_raise, os.getpid()):
                return
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

    def _flush_and_raise(self, pid: int) -> None:
        try:
            self._flush()
        finally:
            if _is_asyncios(self.previous[-1]):
                self.draining = False  # the loop has called the application's handler
            else:
                self.drained = True
                os.kill(pid, signal.SIGTERM)
                # One signal may not suffice: the main thread may return from our handler
                # into a wait for a lock, see `watch`.
                self._raise_until(lambda: not self.drained, pid)

    def _go_on(self, number: int, frame: Any) -> None:
        # A previous handler may call the handler that it replaced. If that is ours, the
        # call is meant for the handler before it.
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
    """Whether a handler is the placeholder that an asyncio loop installs.

    The loop calls the application's function as soon as it has seen the signal.
    """
    module = str(getattr(handler, '__module__', ''))
    return module.partition('.')[0] in ('asyncio', 'uvloop')


_drain = _Drain()


def drain(delivery: Any, timeout: float) -> None:
    """Flush ``delivery`` on SIGTERM, before the present handler runs.

    :param timeout: seconds
    :raises RuntimeError: when called on another thread than the main one, or when SIGTERM
        has a handler that was not installed from Python
    """
    fork.check()
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            'drain_on_sigterm: expected the main thread, got %s; Python lets only the '
            'main thread install signal handlers' % threading.current_thread().name
        )
    previous = signal.getsignal(signal.SIGTERM)
    if previous is None:
        raise RuntimeError(
            'drain_on_sigterm: expected a SIGTERM handler that was installed from '
            'Python; the present handler was not. Call flush() inside it'
        )
    if previous != _drain.handle:
        signal.signal(signal.SIGTERM, _drain.handle)
        _drain.previous.append(previous)
    _drain.timeouts[delivery] = timeout
    _drain.watch()
    delivery.call_when_started(_drain.watch)  # for workers that are forked later
