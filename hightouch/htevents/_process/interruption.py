"""Lets an exception through that a signal handler of the application raises in our calls.

The handler of a job's time limit is an example: it raises inside the code that it interrupts.
If that is the package, or code that the package calls, an ``except`` of the package would
mistake the exception for an error of the network, a callback or a value. Only the traceback
tells the difference.
"""

import signal
import sys
from functools import partial
from types import FrameType
from typing import Any, Iterator, List, Optional

# inspect.CO_VARARGS, because inspect takes long to import.
_VARARGS = 4

# signal.getsignal turns its result into an enum, which takes ten times as long.
_getsignal: Any = __import__('_signal').getsignal


def raise_interruption(error: BaseException, wrapped: bool = False) -> None:
    """Raise ``error`` if a signal handler raised it; otherwise return.

    Call this first in an ``except`` that does not raise the error itself.

    :param wrapped: also look at the errors that ``error`` was made from, and raise the one
        of the handler. Network libraries mistake a handler's TimeoutError for their own
    """
    found: Optional[BaseException] = None
    handler: Optional[FrameType] = None
    for each in causes(error, sys._getframe(1)) if wrapped else [error]:
        frame = handler_of(each)
        # urllib3 copies the traceback of the first error to its own. The first is deeper.
        if frame is not None and handler in (None, frame):
            found, handler = each, frame
    if found is None:
        return
    try:
        raise found
    finally:
        # Otherwise the errors, their tracebacks and this frame would form a cycle.
        del found, each, error


def is_instance(value: Any, kinds: Any) -> bool:
    """Like isinstance(), but False if the value's ``__class__`` raises."""
    try:
        return isinstance(value, kinds)
    except Exception as error:
        raise_interruption(error)
    return False


def is_interruption(error: BaseException) -> bool:
    """Whether a signal handler raised ``error``, or an error that it was made from."""
    return any(handler_of(each) for each in causes(error, sys._getframe(1)))


def causes(error: BaseException, caller: FrameType) -> Iterator[BaseException]:
    """Yield an error, its causes and its contexts that were raised below ``caller``.

    An error that the application was handling when it called the package is left out.
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
    """Return the frame of the signal handler that raised an error; None for other errors."""
    frames = list(_frames(error))
    if len(frames) < 2:
        return None
    handlers = map(_getsignal, range(1, signal.NSIG))
    codes = [_code(handler) for handler in handlers if callable(handler)]
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
    """Whether a function was called with a number and the frame of its caller.

    Python calls signal handlers that way. The arguments also identify callable objects,
    and handlers that have since been replaced.
    """
    values = _positional(frame)
    return any(
        interrupted is frame.f_back and issubclass(type(number), int)
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
    """Whether ``frame`` is ``caller``, or was called by it, at any depth."""
    while frame is not None and frame is not caller:
        frame = frame.f_back
    return frame is not None
