"""The end of the process: deliver what is queued, within bounds.

One hook for the whole package, however many clients there are. A client's delivery is
registered with its first event and leaves when it is shut down, so that clients that are
done leave nothing behind.
"""

import atexit
import sys
import weakref
from typing import Any, Set

from hightouch.htevents._process import fork
from hightouch.htevents._process.waiting import Deadline

# multiprocessing and its forks: with dill, and for Celery.
MULTIPROCESSING = ('multiprocessing', 'multiprocess', 'billiard')


class _Lifecycle:
    def __init__(self) -> None:
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # Dispatchers that may hold undelivered events. Strong references: the client may
        # be gone. Only changed by set.add and set.discard, which are atomic.
        self.active: Set[Any] = set()
        self.over = False
        # What will tell us of the end of this process, beside atexit.
        self.hooked: Set[str] = set()


_state = _Lifecycle()


def is_over() -> bool:
    """Whether the process is so far in its exit that new work would be lost."""
    return _state.over


def add(delivery: Any) -> None:
    """Shut ``delivery`` down when the process ends."""
    _state.active.add(delivery)
    _hook_child()


def discard(delivery: Any) -> None:
    _state.active.discard(delivery)


def is_worker(package: str) -> bool:
    """Whether a package such as multiprocessing has started this process."""
    processes = sys.modules.get(package + '.process')
    if processes is None:
        return False
    return type(processes.current_process()).__name__ != '_MainProcess'


def _hook_child() -> None:
    # The children of multiprocessing leave through os._exit, without atexit; but they
    # run their own finalizers before. Those registered before the child began are
    # cleared there, hence this is done with the first event.
    for name in MULTIPROCESSING:
        if name + '.process' not in sys.modules or name in _state.hooked:
            continue
        util = sys.modules.get(name + '.util')  # loaded before a child runs
        if is_worker(name) and util is not None:
            util.Finalize(None, end, exitpriority=0)
        _state.hooked.add(name)  # last: if we are interrupted, it is done again
    # The workers of Celery leave the same way, and tell of it by a signal of Celery's.
    signals = sys.modules.get('celery.signals')
    if signals is not None and 'celery' not in _state.hooked:
        signals.worker_process_shutdown.connect(_end_of_worker, weak=False)
        _state.hooked.add('celery')


def _end_of_worker(**kwargs: Any) -> None:
    end()


def end() -> None:
    """Deliver what all clients hold, each within its ``shutdown_timeout``."""
    _state.over = True
    deliveries = [
        (each, Deadline(each.shutdown_timeout)) for each in list(_state.active)
    ]
    for delivery, deadline in deliveries:
        delivery.close(deadline)  # all at once; then wait for one after the other
    for delivery, deadline in deliveries:
        delivery.finish(deadline)


# Handlers run in reverse order of registration: those that the application registers
# after its import of this package run before ours, and may still track. The one of
# weakref.finalize has to run after ours: it closes the connections of urllib3, and who
# asks a closed pool for one waits for ever. It is registered by the first finalizer.
weakref.finalize(_state, int)
atexit.register(end)
