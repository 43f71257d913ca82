"""Lets through what a signal handler of the application raises inside our calls.

A job's time limit, say: its handler raises in whatever code it interrupts, and where that
is ours, or code that we call, an ``except`` of ours would take the exception for an error
of the network, of a callback, or of a value. Nothing but its traceback tells.
"""

import signal
import sys
from functools import partial
from types import FrameType
from typing import Any, Iterator, List, Optional

# inspect.CO_VARARGS: inspect takes long to import.
_VARARGS = 4

# signal's own one makes an enum of what it returns, which takes ten times as long.
_getsignal: Any = __import__('_signal').getsignal


def raise_interruption(error: BaseException, wrapped: bool = False) -> None:
    """Raise what a signal handler raised, if ``error`` is that; else return.

    For an ``except`` that would turn it into something else.

    :param wrapped: or if ``error`` was made of it: as libraries of the network do, which
        take a handler's TimeoutError for one of theirs
    """
    found: Optional[BaseException] = None
    handler: Optional[FrameType] = None
    for each in causes(error, sys._getframe(1)) if wrapped else [error]:
        frame = handler_of(each)
        # urllib3 gives an error of its own the traceback of the first: that is deeper.
        if frame is not None and handler in (None, frame):
            found, handler = each, frame
    if found is None:
        return
    try:
        raise found
    finally:
        # Else they, their traceback and this frame would keep each other alive.
        del found, each, error


def is_instance(value: Any, kinds: Any) -> bool:
    """Whether it is of one of ``kinds``, or says so: isinstance() may run code of its."""
    try:
        return isinstance(value, kinds)
    except Exception as error:
        raise_interruption(error)
    return False


def is_interruption(error: BaseException) -> bool:
    """Whether a signal handler raised ``error``, or what it was made of."""
    return any(handler_of(each) for each in causes(error, sys._getframe(1)))


def causes(error: BaseException, caller: FrameType) -> Iterator[BaseException]:
    """Yield an error and those it came of, as far as they began below ``caller``.

    Not what the application was handling already when it called us.
    """
    seen: List[BaseException] = []
    todo: List[Optional[BaseException]] = [error]
    while todo:
        each = todo.pop(0)
        if each is None or any(each is other for other in seen):
            continue
        seen.append(each)
        if each is error or any(is_below(caller, frame) for frame in _frames(each)):
            yield each
        todo += [each.__cause__, each.__context__]


def handler_of(error: BaseException) -> Optional[FrameType]:
    """Return the frame of the signal handler that an exception left, if it did."""
    frames = list(_frames(error))
    if len(frames) < 2:
        return None
    codes = [_code(_getsignal(number)) for number in range(1, signal.NSIG)]
    for outer, inner in zip(frames, frames[1:]):
        if inner.f_back is outer and (
            inner.f_code in codes or is_called_by_a_signal(inner)
        ):
            return inner
    return None


def _code(handler: Any) -> Any:
    while isinstance(handler, partial):
        handler = handler.func
    return getattr(handler, '__code__', None)


def is_called_by_a_signal(frame: FrameType) -> bool:
    """Whether it was called with a number and its caller's frame, as signal handlers are.

    Also objects that can be called, and handlers that put back another one.
    """
    values = _positional(frame)
    return any(
        interrupted is frame.f_back and isinstance(number, int)
        for number, interrupted in zip(values, values[1:])
    )


def _positional(frame: FrameType) -> Any:
    code = frame.f_code
    local = frame.f_locals
    values = [local.get(name) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & _VARARGS:
        name = code.co_varnames[code.co_argcount + code.co_kwonlyargcount]
        values.extend(local.get(name, ()))
    return values


def _frames(error: BaseException) -> Iterator[FrameType]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame
        step = step.tb_next


def is_below(caller: Optional[FrameType], frame: Optional[FrameType]) -> bool:
    """Whether ``frame`` is ``caller``, or was called from there, however deep."""
    while frame is not None and frame is not caller:
        frame = frame.f_back
    return frame is not None
