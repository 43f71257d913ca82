"""Keeps secrets out of errors: who reports one may send the locals of its frames along."""

import sys
from functools import wraps
from typing import Any, Callable, List, Optional, TypeVar

from hightouch.htevents.interruption import causes, handler_of

_Call = TypeVar('_Call', bound=Callable[..., Any])


def discreet(call: _Call) -> _Call:
    """Have errors of a function show nothing of its arguments, and no locals.

    They still show the lines that it came by. What a signal handler of the application
    raises in there keeps the locals of that.
    """

    @wraps(call)
    def discreet_call(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            for each in causes(error, sys._getframe()):
                _clear_frames(each)
            raise

    return discreet_call  # type: ignore[return-value]


def _clear_frames(error: BaseException) -> None:
    end = handler_of(error)
    step = error.__traceback__
    while step is not None and step.tb_frame is not end:
        try:
            step.tb_frame.clear()
        except RuntimeError:
            pass  # it goes on: our own
        step = step.tb_next


def drop_own_frames(error: BaseException) -> None:
    """Leave only the frames of others in an error and in those that it came of."""
    seen: List[BaseException] = []
    todo: List[Optional[BaseException]] = [error]
    while todo:
        each = todo.pop()
        if each is None or any(each is other for other in seen):
            continue
        seen.append(each)
        todo += [each.__cause__, each.__context__]
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
    package, _, name = str(module).rpartition('.')
    return package == __package__ or (package, name) == ('hightouch', 'htevents')
