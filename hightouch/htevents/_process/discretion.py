"""Keeps secrets out of tracebacks.

Error reporters such as Sentry send the local variables of each frame of a traceback.
"""

import sys
from functools import wraps
from types import FrameType
from typing import Any, Callable, List, TypeVar

from hightouch.htevents._process.interruption import causes, handler_of, steps

# The CO_ flags of generators and coroutines, because inspect takes long to import.
_SUSPENDS = 0x20 | 0x80 | 0x100 | 0x200

_Call = TypeVar('_Call', bound=Callable[..., Any])


def discreet(call: _Call) -> _Call:
    """Clear the arguments and local variables in the traceback of a function's errors.

    The traceback still shows the lines. If a signal handler of the application raised the
    error, its local variables stay.
    """

    @wraps(call)
    def discreet_call(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            _clear(error, sys._getframe())
            raise

    return discreet_call  # type: ignore[return-value]


def _clear(error: BaseException, caller: FrameType) -> None:
    for each in causes(error, caller):
        end = handler_of(each)
        for step in steps(each):
            frame = step.tb_frame
            if frame is end:
                break
            if frame.f_code.co_flags & _SUSPENDS:
                continue  # clear() would end a generator of the application
            try:
                frame.clear()
                frame.f_locals  # up to Python 3.12, this also clears the frame's copy
            except RuntimeError:
                pass  # the frame of `discreet_call`, which still runs


def drop_own_frames(error: BaseException) -> None:
    """Remove the package's frames from the traceback of an error that the caller caught.

    The tracebacks of its causes and contexts are treated the same way: see `causes`.
    """
    for each in causes(error, sys._getframe(1)):
        kept: List[Any] = []
        for step in steps(each):
            if not _is_ours(step.tb_frame.f_globals.get('__name__')):
                kept.append(step)
            elif sys.version_info < (3, 7):  # there tb_next cannot be set
                kept.clear()
        if sys.version_info >= (3, 7):
            for step, following in zip(kept, kept[1:] + [None]):
                step.tb_next = following
        each.__traceback__ = kept[0] if kept else None


def _is_ours(module: Any) -> bool:
    names = str(module).split('.')
    # The package's tests play the part of an application.
    return names[:2] == ['hightouch', 'htevents'] and names[2:3] != ['test']
