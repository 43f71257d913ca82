"""What a forked child must forget: queues, locks, threads and sockets of its parent.

Objects that own such state register here. In the child each one's ``_after_fork`` runs
before any other Python code of the child: through ``os.register_at_fork`` where there
is one (3.7+). Elsewhere, and where C code forks without telling Python, at the next
`check`, which every entry point calls.
"""

import os
from typing import Any
from weakref import WeakSet

# The original, wherever we ask whether we were forked: a test may replace os.getpid.
getpid = os.getpid

_owners: 'WeakSet[Any]' = WeakSet()
_pid = getpid()


def register(owner: Any) -> None:
    """Have ``owner._after_fork()`` called in every child; holds no reference.

    It runs while no other thread exists, must not raise, and must not wait.
    """
    _owners.add(owner)


def check() -> None:
    """Run what is due if this process is a child that was not told so yet."""
    if getpid() != _pid:
        _run()


def _run() -> None:
    global _pid
    _pid = getpid()
    for owner in list(_owners):
        owner._after_fork()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_run)
