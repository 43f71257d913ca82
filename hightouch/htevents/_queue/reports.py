"""Tells the application what became of its events: through its callbacks, and the log."""

from types import CoroutineType
from typing import Any, Callable, Dict, List, Optional

from hightouch.htevents._context.blocks import replaced
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.logs import log
from hightouch.htevents._process.waiting import delivers
from hightouch.htevents.errors import describe
from hightouch.htevents.settings import OnError


def report_loss(
    host: str,
    on_error: Optional[OnError],
    error: Exception,
    messages: List[Dict[str, Any]],
    count: Optional[int] = None,
) -> None:
    """Say once that events are lost: one ERROR line, one call of ``on_error``.

    :param host: for the line
    :param count: how many; None: as many as there are messages
    """
    try:
        number = len(messages) if count is None else count
        log.error('Lost %d event(s) for %s: %s', number, host, describe(error))
    finally:
        if on_error is not None:
            call(on_error, 'on_error', error, messages)


@delivers
def call(callback: Callable[..., Any], name: str, *args: Any) -> None:
    """Call a callback of the application; nothing that it raises ends the delivery."""
    try:
        # The caller of a sync client is in a request, and its events may be of another one.
        with replaced(()):
            result = callback(*args)
        if isinstance(result, CoroutineType):  # of a lambda, say
            result.close()
            log.warning('%s returned a coroutine, which nobody awaits', name)
    except Exception as error:
        raise_interruption(error)
        log.warning('%s raised; delivery goes on', name, exc_info=True)
    except KeyboardInterrupt:
        raise  # in a thread of the application
    except BaseException as error:
        raise_interruption(error)
        # sys.exit() in a callback would end this thread, and no other.
        log.warning('%s tried to exit; delivery goes on', name)
