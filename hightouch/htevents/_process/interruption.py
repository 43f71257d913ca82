"""Lets an exception through that a signal handler of the application raises in our calls.

The handler of a job's time limit is an example: it raises inside the code that it interrupts.
If that is the package, or code that the package calls, an ``except`` of the package would
mistake the exception for an error of the network, a callback or a value. Only the traceback
tells the difference.
"""

import signal
import sys
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Callable, Iterable, Iterator, Optional

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
    for each in reachable(error, lambda one: (one.__cause__, one.__context__)):
        if each is error or any(
            caller in callers(step.tb_frame) for step in steps(each)
        ):
            yield each


def reachable(
    error: BaseException, following: Callable[[BaseException], Iterable[Any]]
) -> Iterator[BaseException]:
    """Yield an error and each error that ``following`` returns for one, nearest first."""
    found = [error]
    for each in found:
        yield each
        for other in following(each):
            if isinstance(other, BaseException) and all(
                other is not one for one in found
            ):
                found.append(other)


def handler_of(error: BaseException) -> Optional[FrameType]:
    """Return the frame of the signal handler that raised an error; None for other errors."""
    frames = [step.tb_frame for step in steps(error)]
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
    code, local = frame.f_code, frame.f_locals
    values = [local.get(name) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & _VARARGS:
        name = code.co_varnames[code.co_argcount + code.co_kwonlyargcount]
        values.extend(local.get(name, ()))
    return any(
        interrupted is frame.f_back and issubclass(type(number), int)
        for number, interrupted in zip(values, values[1:])
    )


def steps(error: BaseException) -> Iterator[TracebackType]:
    """Yield the entries of an error's traceback, outermost first."""
    step = error.__traceback__
    while step is not None:
        yield step
        step = step.tb_next


def callers(frame: Optional[FrameType]) -> Iterator[FrameType]:
    """Yield a frame and the frames that called it, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back
