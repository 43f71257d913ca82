"""Keeps secrets out of errors.

A reporter of errors, such as Sentry, sends the locals of each frame of a traceback along.
"""

import sys
from functools import wraps
from types import FrameType
from typing import Any, Callable, List, TypeVar

from hightouch.htevents._process.interruption import causes, handler_of

# Of a generator or a coroutine: the CO_ flags of inspect, which takes long to import.
_SUSPENDS = 0x20 | 0x80 | 0x100 | 0x200

_Call = TypeVar('_Call', bound=Callable[..., Any])


def discreet(call: _Call) -> _Call:
    """Have the traceback of a function's errors show no arguments and no locals.

    It still shows the lines. The locals of a signal handler of the application stay, if that
    is what raised.
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
        step = each.__traceback__
        while step is not None and step.tb_frame is not end:
            frame, step = step.tb_frame, step.tb_next
            if frame.f_code.co_flags & _SUSPENDS:
                continue  # it may be of the application, and clear() would end it
            try:
                frame.clear()
                frame.f_locals  # up to Python 3.12 it has a copy, made when it is asked for
            except RuntimeError:
                pass  # it runs: it is our own


def drop_own_frames(error: BaseException) -> None:
    """Leave only the frames of others in an error that the caller has caught.

    And in those that caused it; not in what the application was handling when it called us.
    """
    for each in causes(error, sys._getframe(1)):
        kept: List[Any] = []
        step = each.__traceback__
        while step is not None:
            if not _is_ours(step.tb_frame.f_globals.get('__name__')):
                kept.append(step)
            elif sys.version_info < (3, 7):  # which takes none out of the middle
                kept.clear()
            step = step.tb_next
        if sys.version_info >= (3, 7):
            for step, following in zip(kept, kept[1:] + [None]):
                step.tb_next = following
        each.__traceback__ = kept[0] if kept else None


def _is_ours(module: Any) -> bool:
    names = str(module).split('.')
    # The tests of the package stand for applications.
    return names[:2] == ['hightouch', 'htevents'] and names[2:3] != ['test']
