"""Makes a forked child forget the queues, locks, threads and sockets of its parent.

Objects that own such state register here. In the child, ``os.register_at_fork`` (3.7+) calls
each one's ``_after_fork`` before any other Python code runs. On Python 3.6, and where C code
forks without telling Python, the next `check` does so. Every entry point calls `check`.
"""

import os
from typing import Any
from weakref import WeakSet

# The original function, because a test may replace os.getpid.
getpid = os.getpid

_owners: 'WeakSet[Any]' = WeakSet()
_pid = getpid()


def register(owner: Any) -> None:
    """Call ``owner._after_fork()`` in every child; hold only a weak reference to it.

    The method runs while the child has no other thread. It must not raise, and must not wait.
    """
    _owners.add(owner)


def check() -> None:
    """Call the registered functions if this process is a child that did not yet do so."""
    if getpid() != _pid:
        _run()


def _run() -> None:
    global _pid
    _pid = getpid()
    for owner in list(_owners):
        owner._after_fork()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_run)
