"""The ``with`` blocks of the package that are open in the current context.

A context is what `contextvars` means by it: a thread has one, and each asyncio task has a copy
of the one that made it. On Python 3.6 each thread has one.
"""

import sys
import threading
from functools import wraps
from typing import Any, Callable, ContextManager, Optional, Tuple, TypeVar

from hightouch.htevents._process import fork
from hightouch.htevents.settings import ASYNC, expect, kind_that_does_not_run

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


_Function = TypeVar('_Function', bound=Callable[..., Any])

# The open blocks, outermost first. A tuple, because contexts share their values.
variable: Any = None


def _after_fork() -> None:
    """Start a child without blocks: they are about the request of its parent."""
    global variable
    variable = _Variable('htevents_blocks', default=())


_after_fork()
fork.register(sys.modules[__name__])


class Block:
    """An open block.

    :ivar is_over: whether it was closed in a context that did not have it, because another
        thread closed a generator. The contexts that still have it must not use it
    """

    __slots__ = ('is_over',)

    def __init__(self) -> None:
        self.is_over = False


def enter(block: Block) -> None:
    """Open a block in the current context."""
    variable.set(opened() + (block,))


def leave(block: Block) -> None:
    """Close a block in the current context, wherever it is among the open ones.

    Generators may leave their blocks in another order than they entered them, or in another
    context. A token of `contextvars` would raise there.
    """
    before = opened()
    for place in reversed(range(len(before))):
        if before[place] is block:  # a block may be open twice: this is the inner one
            variable.set(before[:place] + before[place + 1 :])
            return
    block.is_over = True


def opened() -> Tuple[Block, ...]:
    """Return the open blocks, outermost first."""
    fork.check()
    blocks: Tuple[Block, ...] = variable.get()
    if any([each.is_over for each in blocks]):
        blocks = tuple(each for each in blocks if not each.is_over)
        variable.set(blocks)
    return blocks


def replace(blocks: Tuple[Block, ...]) -> Tuple[Block, ...]:
    """Let these be the open blocks of the current context; return those before."""
    before = opened()
    variable.set(blocks)
    return before


class Opening:
    """Opens a block: once in a ``with`` statement, or around each call of a function.

    :param make: returns a new context manager
    """

    def __init__(self, make: Callable[[], ContextManager[None]]) -> None:
        self._make = make
        self._manager: Optional[ContextManager[None]] = None

    def __enter__(self) -> None:
        if self._manager is not None:  # threads would close each other's blocks
            raise RuntimeError('a block can be opened once: make another one each time')
        self._manager = self._make()
        self._manager.__enter__()

    def __exit__(self, *exc_info: Any) -> Optional[bool]:
        assert self._manager is not None
        return self._manager.__exit__(*exc_info)

    def __call__(self, function: _Function) -> _Function:
        return around(self._make, function)


def around(make: Callable[[], ContextManager[None]], function: _Function) -> _Function:
    """Return a function whose calls run inside a new context manager; also an async one.

    :raises ValidationError: for an object that cannot be called, and for a generator
        function, whose code runs when no call of it is active
    """
    kind = kind_that_does_not_run(function) if callable(function) else 'no function'
    expected = 'a plain or an async function'
    expect(kind in ('', ASYNC), 'function', expected, function)
    if kind == ASYNC:

        @wraps(function)
        async def inside(*args: Any, **kwargs: Any) -> Any:
            with make():
                return await function(*args, **kwargs)

    else:

        @wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with make():
                return function(*args, **kwargs)

    return inside  # type: ignore[return-value]
