"""The ``with`` blocks of the package that are open in the current context.

Contexts are those of `contextvars`: each thread has one, and each asyncio task has a copy of
the context that made it. Python 3.6 has no `contextvars`. There, tasks share their thread's.
"""

import sys
import threading
from functools import wraps
from typing import Any, Callable, ContextManager, Optional, Tuple, TypeVar

from hightouch.htevents._process import fork
from hightouch.htevents.errors import ValidationError
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

        def set(self, value: Any) -> Any:
            self.value = value
            return threading.get_ident()

        def reset(self, token: Any) -> None:
            if token != threading.get_ident():
                raise ValueError


_Function = TypeVar('_Function', bound=Callable[..., Any])

# The open blocks, outermost first. A tuple, because contexts share their values.
variable: Any = None

# Its token is bound to the context in which a block was opened.
_place = _Variable('htevents_place', default=None)


def _after_fork() -> None:
    """Start a child without blocks: they are about the request of its parent."""
    global variable
    variable = _Variable('htevents_blocks', default=())


_after_fork()
fork.register(sys.modules[__name__])


class Block:
    """An open block.

    :ivar is_over: whether it was closed in another context than it was opened in, as when
        another thread closes a generator. Contexts that still have it must not use it
    """

    __slots__ = ('is_over',)

    def __init__(self) -> None:
        self.is_over = False

    def finish(self, failed: bool) -> None:
        """Do what follows the end of the block.

        :param failed: whether an exception has ended it
        """


def enter(block: Block) -> Any:
    """Open a block in the current context; return a token for `leave`."""
    variable.set(opened() + (block,))
    return _place.set(None)


def leave(block: Block, token: Any) -> None:
    """Close a block in the current context, wherever it is among the open ones.

    Generators may leave their blocks in another order than they entered them, or in another
    context.
    """
    before = opened()
    for place in reversed(range(len(before))):
        if before[place] is block:
            variable.set(before[:place] + before[place + 1 :])
            break
    try:
        _place.reset(token)
    except ValueError:
        block.is_over = True


def opened() -> Tuple[Block, ...]:
    """Return the open blocks, outermost first."""
    fork.check()
    blocks: Tuple[Block, ...] = variable.get()
    if any([each.is_over for each in blocks]):
        blocks = tuple(each for each in blocks if not each.is_over)
        variable.set(blocks)
    return blocks


def restart(blocks: Tuple[Block, ...]) -> None:
    """Let these be the open blocks of the current context, and no others."""
    fork.check()
    variable.set(blocks)


class replaced:
    """Lets these be the open blocks in a ``with`` block, and leaves nothing of it behind.

    It may be entered again, as for each step of an iterator. Blocks that the step before has
    left open are then open again.
    """

    def __init__(self, blocks: Tuple[Block, ...]) -> None:
        self._blocks = blocks

    def __enter__(self) -> None:
        self._before = opened()
        # A child that is forked in the block has another variable.
        self._variable = variable
        variable.set(self._blocks)

    def __exit__(self, *_: object) -> None:
        self._blocks = self._variable.get()
        self._variable.set(self._before)


class Opening:
    """Opens a block: once in a ``with`` statement, or around each call of a function.

    :param make: returns a new block
    """

    def __init__(self, make: Callable[[], Block]) -> None:
        self._make = make
        self._block: Optional[Block] = None

    def __enter__(self) -> None:
        if self._block is not None:  # threads would close each other's blocks
            raise RuntimeError('a block can be opened once: make another one each time')
        self._block = self._make()
        self._token = enter(self._block)

    def __exit__(self, kind: Any, *_: object) -> None:
        assert self._block is not None
        leave(self._block, self._token)
        self._block.finish(kind is not None)

    def __call__(self, function: _Function) -> _Function:
        return around(lambda: Opening(self._make), function)


def around(make: Callable[[], ContextManager[None]], function: _Function) -> _Function:
    """Return a function whose calls run inside a new context manager; also an async one.

    :raises ValidationError: for an object that cannot be called, and for a generator
        function, whose code runs when no call of it is active
    """
    expect(callable(function), 'function', 'a function', function)
    kind = kind_that_does_not_run(function)
    if kind not in ('', ASYNC):
        raise ValidationError('function: expected a plain or async one, got %s' % kind)
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
