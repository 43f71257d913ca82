"""Lets through what a signal handler of the application raises inside our calls.

A job's time limit, say: its handler raises in whatever code it interrupts, and where that
is ours, or code that we call, an ``except`` of ours would take the exception for an error
of the network, of a callback, or of a value. Nothing but its traceback tells.
"""

import sys
from types import FrameType
from typing import Any, Iterator, List, Optional

# inspect.CO_VARARGS: inspect takes long to import.
_VARARGS = 4


def raise_interruption(error: BaseException) -> None:
    """Raise what a signal handler raised, if ``error`` is that, or was made of it.

    For an ``except`` that would turn ``error`` into something else. Returns else.
    """
    caller = sys._getframe(1)
    found: Optional[BaseException] = None
    seen: List[BaseException] = []
    todo: List[Optional[BaseException]] = [error]
    while todo:
        each = todo.pop()
        if each is None or any(each is other for other in seen):
            continue
        seen.append(each)
        todo += [each.__cause__, each.__context__]
        # What somebody handled already when we were called is in the chain as well.
        if _left_handler(each) and (each is error or _began_below(caller, each)):
            found = (
                each  # the last one: urllib3 gives its own errors that traceback too
            )
    if found is not None:
        raise found


def _left_handler(error: BaseException) -> bool:
    """Whether an exception went from a signal handler into the code it interrupted."""
    frames = list(_frames(error))
    return any(
        inner.f_back is outer and _is_handler(inner)
        for outer, inner in zip(frames, frames[1:])
    )


def _began_below(caller: FrameType, error: BaseException) -> bool:
    return any(_is_below(caller, frame) for frame in _frames(error))


def _frames(error: BaseException) -> Iterator[FrameType]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame
        step = step.tb_next


def _is_handler(frame: FrameType) -> bool:
    """Whether a frame is a signal handler's: called with a number and its caller's frame."""
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


def _is_below(caller: FrameType, frame: Optional[FrameType]) -> bool:
    while frame is not None and frame is not caller:
        frame = frame.f_back
    return frame is not None
