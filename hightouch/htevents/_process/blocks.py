"""The ``with`` blocks of the package that are open in the current context.

A context is what `contextvars` means by it: a thread has one, and each asyncio task has a copy
of the one that made it. On Python 3.6 each thread has one.
"""

import sys
import threading
from typing import Any, Tuple

from hightouch.htevents._process import fork

try:
    from contextvars import ContextVar as _Variable
except ImportError:  # Python 3.6

    class _Variable(threading.local):  # type: ignore[no-redef]
        value: Any

        def __init__(self, name: str, default: Any) -> None:
            self.value = default

        def get(self) -> Any:
            return self.value

        def set(self, value: Any) -> None:
            self.value = value


# The open blocks, outermost first. A tuple, because contexts share their values.
variable: Any = None


def _after_fork() -> None:
    """Start a child without blocks: they are about the request of its parent."""
    global variable
    variable = _Variable('htevents_blocks', default=())


_after_fork()
fork.register(sys.modules[__name__])


def enter(block: Any) -> None:
    """Open a block in the current context."""
    fork.check()
    variable.set(variable.get() + (block,))


def leave(block: Any) -> None:
    """Close a block in the current context, wherever it is among the open ones.

    Generators may leave their blocks in another order than they entered them, or in another
    context. A token of `contextvars` would raise there.
    """
    fork.check()
    variable.set(tuple(each for each in variable.get() if each is not block))


def opened() -> Tuple[Any, ...]:
    """Return the open blocks, outermost first."""
    fork.check()
    blocks: Tuple[Any, ...] = variable.get()
    return blocks


def replace(blocks: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """Let these be the open blocks of the current context; return those before."""
    before = opened()
    variable.set(blocks)
    return before
