"""Delivers queued events at the exit of the process, within each ``shutdown_timeout``.

The package has one exit hook for all clients. A delivery is added with its first event and
removed when it is shut down. Clients that were shut down therefore leave nothing behind.
"""

import atexit
import sys
import weakref
from typing import Any, Set

from hightouch.htevents._process import fork
from hightouch.htevents._process.waiting import Deadline

# multiprocessing and its forks: multiprocess uses dill, billiard belongs to Celery.
MULTIPROCESSING = ('multiprocessing', 'multiprocess', 'billiard')


class _State:
    def __init__(self) -> None:
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # Deliveries that may hold events. Strong references, because the client may have
        # been dropped. Only changed by set.add and set.discard, which are atomic.
        self.active: Set[Any] = set()
        self.over = False  # `end` has begun
        # The packages whose exit hooks call `end` in this process.
        self.hooked: Set[str] = set()


_state = _State()


def is_over() -> bool:
    """Whether the process exits, and new events would be lost."""
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
    # The children of multiprocessing exit by os._exit, which skips atexit but not the
    # finalizers of multiprocessing. A new child clears the finalizers that it inherits,
    # so we register ours with the child's first event.
    for name in MULTIPROCESSING:
        util = sys.modules.get(name + '.util')  # imported before a child runs
        if util is not None and name not in _state.hooked and is_worker(name):
            util.Finalize(None, end, exitpriority=0)
            _state.hooked.add(name)  # last: an interrupted call must be repeated
    # The workers of Celery exit by os._exit, too. Celery sends a signal before, with
    # arguments that `end` ignores.
    signals = sys.modules.get('celery.signals')
    if signals is not None and 'celery' not in _state.hooked:
        signals.worker_process_shutdown.connect(end, weak=False)
        _state.hooked.add('celery')


def end(**ignored: Any) -> None:
    """Deliver the events of all clients, each within its ``shutdown_timeout``."""
    _state.over = True
    deliveries = [
        (each, Deadline(each.shutdown_timeout)) for each in list(_state.active)
    ]
    for delivery, deadline in deliveries:
        delivery.close(deadline)  # all deliver side by side, while we wait for each
    for delivery, deadline in deliveries:
        delivery.finish(deadline)


# Exit handlers run in reverse order of registration. Handlers that the application
# registers after its import of this package run before ours, and may still track. The
# handler of weakref.finalize must run after ours: it closes the connections of urllib3,
# and a request to a closed pool waits without end. The first finalizer registers it.
weakref.finalize(_state, int)
atexit.register(end)
