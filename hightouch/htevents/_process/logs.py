"""The package's logger, and the handlers that clients ask for.

The package logs to the logger ``hightouch``. Nothing is printed unless the application
configures logging, or a client is made with ``debug=True`` or a ``log_handler``.
"""

import logging
import os
import sys
import threading
import traceback
from functools import partial
from types import FrameType
from typing import Any, Callable, Dict, List, Optional, Tuple

from hightouch.htevents._process import fork
from hightouch.htevents._process.interruption import (
    callers,
    is_called_by_a_signal,
    raise_interruption,
    reachable,
)
from hightouch.htevents.errors import name_of

logger = logging.getLogger('hightouch')
logger.addHandler(logging.NullHandler())

# Makes a record name the line that called `log`, not a line of this module.
_CALLER: Dict[str, Any] = {'stacklevel': 3} if sys.version_info >= (3, 8) else {}


class _Log:
    """The logger, made safe against handlers and filters that raise.

    The package logs on threads that must go on, and in calls that must not raise. The
    error of a handler is therefore written to stderr, as `logging` does with its errors.
    """

    def is_enabled_for(self, level: int) -> bool:
        # `logging.config` disables every logger that its configuration does not name.
        if logger.disabled and _handlers.asked:
            logger.disabled = False
        return logger.isEnabledFor(level)

    def debug(self, text: str, *args: Any) -> None:
        # A handler may track an event for each line. That call must not log the next line.
        if self.is_enabled_for(logging.DEBUG) and not _is_below(_Log.debug):
            self._say(logging.DEBUG, text, args, False)

    def warning(self, text: str, *args: Any, exc_info: bool = False) -> None:
        self._say(logging.WARNING, text, args, exc_info)

    def error(self, text: str, *args: Any) -> None:
        self._say(logging.ERROR, text, args, False)

    def _say(self, level: int, text: str, args: Any, exc_info: bool) -> None:
        try:
            if self.is_enabled_for(level):
                shown = map(_shown, args)
                logger.log(level, text, *shown, exc_info=exc_info, **_CALLER)
        except (Exception, SystemExit) as error:
            raise_interruption(error)
            _show_on_stderr(error)


log = _Log()


def outlive(error: BaseException, text: str) -> None:
    """Log an error that must not end the current thread of the package.

    An error that a log handler raises at that moment must not end the thread either.
    """
    _let_end(error)
    try:
        log.warning(text, exc_info=True)
    except BaseException as again:
        _let_end(again)
        _show_on_stderr(again)


def _let_end(error: BaseException) -> None:
    """Raise an error that is meant to end the thread.

    gevent raises one to end a greenlet, Python to end the main thread on Ctrl-C.
    """
    raise_interruption(error)
    # Not by current_thread(), which raises while a test replaces threading.Thread.
    is_main = threading.get_ident() == threading.main_thread().ident
    if name_of(type(error)) == 'GreenletExit':
        raise error
    if is_main and isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error


def _show_on_stderr(error: BaseException) -> None:
    if logging.raiseExceptions and sys.stderr is not None:
        try:
            # Without the error's context, an error of the package that may quote a value.
            sys.stderr.write(_traceback_of(error) + '\n')
        except (OSError, ValueError):
            pass  # stderr is closed


def _write_traceback(record: logging.LogRecord) -> bool:
    """Format the traceback of a record whose errors have a text of several lines.

    This is a filter of the logger, and drops no record. Formatters use ``exc_text`` when it
    is set. They format all other tracebacks themselves.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and not record.exc_text:
        try:
            errors = list(reachable(error, _related))
            texts = [text_of(each) for each in errors]
            for each in errors:
                texts += map(str, getattr(each, '__notes__', ()))
            if not all(map(str.isprintable, texts)):
                record.exc_text = '\n\n'.join(map(_traceback_of, reversed(errors)))
        except Exception as failure:  # raised by the application's error
            raise_interruption(failure)
            record.exc_text = _traceback_of(error)
    return True


logger.addFilter(_write_traceback)


def _related(error: BaseException) -> List[Any]:
    """Return the cause that Python shows for an error, and the members of a group."""
    cause = error.__cause__ or (not error.__suppress_context__ and error.__context__)
    return [cause, *getattr(error, 'exceptions', ())]


def _traceback_of(error: BaseException) -> str:
    """Format a traceback as Python does, with the error's text on one line."""
    frames = ''.join(traceback.format_tb(error.__traceback__))
    text = _escaped('%s: %s' % (name_of(type(error)), text_of(error)))
    return 'Traceback (most recent call last):\n%s%s' % (frames, text)


def _shown(value: Any) -> Any:
    """Return a value as it is logged: a text and the text of an error on one line."""
    if isinstance(value, BaseException):
        value = text_of(value)
    return _escaped(value) if isinstance(value, str) else value


def text_of(error: BaseException) -> str:
    """Return the text of an error, or the name of its class if ``str()`` fails."""
    try:
        return str(error)
    except (Exception, SystemExit) as failure:
        raise_interruption(failure)
        return name_of(type(error))


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return ''.join(
        each if each.isprintable() else each.encode('unicode_escape').decode('ascii')
        for each in text
    )


class Sparse:
    """Tells which of many equal lines to log: the first, the 10th, the 100th and so on.

    Thread-safe. A race between two threads only makes a count slightly wrong.
    """

    def __init__(self) -> None:
        self._counts: Dict[str, int] = {}

    def is_due(self, kind: str) -> bool:
        """Count an occurrence; return whether to log it."""
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        while count % 10 == 0:
            count //= 10
        return count == 1


def printable(text: str, most: int) -> str:
    """Return a text on one line, with its control characters escaped.

    :param most: maximum number of characters to return
    """
    text = _escaped(text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + '...'


def _is_below(method: Any) -> bool:
    """Whether a method has called the function that asks, at any depth."""
    return any(frame.f_code is method.__code__ for frame in callers(sys._getframe(2)))


def is_in_a_line() -> bool:
    """Whether a log handler is handling a line of the package on this thread."""
    return _is_below(_Log._say)


def is_echo() -> bool:
    """Whether a log handler is handling a line that a delivery made on this thread.

    An event tracked there would be delivered, make the next line, and so on without end.
    The function walks the whole stack, so only threads that deliver should call it.
    """
    frames: List[FrameType] = []
    speaker = before = ''
    for frame in callers(sys._getframe(1)):
        module = str(frame.f_globals.get('__name__'))
        if before == 'logging' and module != 'logging':
            # This may also be a package that wraps logging. The outermost module counts.
            speaker = module
        if module in _PLACES and speaker.partition('.')[0] in _SPEAKERS:
            # An event of a signal handler that interrupted the line is not an echo.
            return not any(map(is_called_by_a_signal, frames))
        frames.append(frame)
        before = module
    return False


# The modules whose callees log lines during a delivery, and the packages that log them.
_PLACES = (__name__, 'hightouch.htevents._process.transport')
_SPEAKERS = ('hightouch', 'requests', 'urllib3', 'charset_normalizer', 'chardet')


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes a record to sys.stderr, unless another handler shows it on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._is_shown(record):
                return
        except Exception as error:  # raised by a handler or stream of the application
            raise_interruption(error)
        self.stream = sys.stderr  # looked up for each record: a test may replace it
        super().emit(record)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        """Whether a handler of the application shows the record on the terminal."""
        current: Optional[logging.Logger] = logger
        while current is not None:
            for each in current.handlers:
                if each is not self and _shows(each, record):
                    return True
            current = current.parent if current.propagate else None
        return False


def _shows(handler: logging.Handler, record: logging.LogRecord) -> bool:
    """Whether a handler writes a record to the terminal."""
    # A StreamHandler has a stream, and the handler of Rich has a console.
    stream = getattr(handler, 'stream', None)
    stream = stream or getattr(getattr(handler, 'console', None), 'file', None)
    if record.levelno < handler.level or not _is_terminal(stream):
        return False
    # Only plain filters are called: a filter of the application may count its records.
    known = [each for each in handler.filters if type(each) is logging.Filter]
    return all(each.filter(record) for each in known)


def _is_terminal(stream: Any) -> bool:
    if stream in (sys.stderr, sys.stdout):
        return stream is not None
    try:
        place = os.fstat(stream.fileno())
        return any(os.path.samestat(place, os.fstat(number)) for number in (1, 2))
    except (AttributeError, OSError, ValueError):
        return False  # the stream has no descriptor


class _Handlers:
    """The handlers that clients asked for. Clients that share a handler attach it once."""

    def __init__(self) -> None:
        # For each client that asked for log lines, whether it debugs, and its handler.
        self.asked: List[Tuple[bool, logging.Handler]] = []
        self._level = logger.level  # the level before the first client that debugs
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # Guards the fields above. Re-entrant, because a finalizer that drops a client may
        # interrupt the thread that holds it.
        self._lock = threading.RLock()

    def attach(
        self, debug: bool, handler: Optional[logging.Handler]
    ) -> Callable[[], None]:
        """Attach the handler of a client; return the function that detaches it.

        :param debug: log at level DEBUG, to stderr if the client has no handler
        :param handler: the client's ``log_handler``; None for no handler
        """
        if debug and handler is None:
            handler = _stderr_handler
        if handler is None:
            return lambda: None
        with self._lock:
            if debug:
                if not self._is_debugging():
                    self._level = logger.level
                logger.setLevel(logging.DEBUG)
            client = (debug, handler)
            self.asked.append(client)
            logger.addHandler(handler)
        return partial(self._detach, client)

    def _detach(self, client: Tuple[bool, logging.Handler]) -> None:
        debug, handler = client
        with self._lock:
            self.asked = [each for each in self.asked if each is not client]
            if all(each is not handler for _, each in self.asked):
                logger.removeHandler(handler)
            if debug and not self._is_debugging():
                logger.setLevel(self._level)

    def _is_debugging(self) -> bool:
        return any(debug for debug, _ in self.asked)


_stderr_handler = _StderrHandler()
_handlers = _Handlers()
attach = _handlers.attach
