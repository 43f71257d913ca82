"""The package's logger, and the handlers that clients ask for.

Everything is logged to ``hightouch``; nothing is printed unless the application
configures logging, or a client is made with ``debug=True`` or a ``log_handler``.
"""

import logging
import os
import sys
import threading
import traceback
from types import CodeType, FrameType
from typing import Any, Callable, Dict, List, Optional

from hightouch.htevents._process import fork
from hightouch.htevents._process.interruption import (
    is_called_by_a_signal,
    raise_interruption,
)
from hightouch.htevents.errors import name_of

logger = logging.getLogger('hightouch')
logger.addHandler(logging.NullHandler())

# So that a record names the line that logs, and not ours.
_CALLER: Dict[str, Any] = {'stacklevel': 3} if sys.version_info >= (3, 8) else {}


class _Log:
    """What the package logs with: the logger, but for errors of the application's own.

    A handler or a filter may raise, and we log on threads that must go on, and in calls
    that must not raise. Such an error is shown on stderr, as logging shows its own.
    """

    def is_enabled_for(self, level: int) -> bool:
        _handlers.enable()
        return logger.isEnabledFor(level)

    def debug(self, text: str, *args: Any) -> None:
        # A handler may track an event for each line: that makes no line in turn.
        frame = sys._getframe()
        if self.is_enabled_for(logging.DEBUG) and not _is_below(frame, frame.f_code):
            self._say(logging.DEBUG, text, args, False)

    def warning(self, text: str, *args: Any, exc_info: bool = False) -> None:
        self._say(logging.WARNING, text, args, exc_info)

    def error(self, text: str, *args: Any) -> None:
        self._say(logging.ERROR, text, args, False)

    def _say(self, level: int, text: str, args: Any, exc_info: bool) -> None:
        _handlers.enable()
        try:
            args = tuple(map(_shown, args))
            logger.log(level, text, *args, exc_info=exc_info, **_CALLER)
        except (Exception, SystemExit) as error:
            raise_interruption(error)
            _show_on_stderr(error)


log = _Log()


def outlive(error: BaseException, text: str) -> None:
    """Log what a thread of ours has caught, and must not end by.

    Whatever a handler of the log raises in turn.
    """
    _let_end(error)
    try:
        log.warning(text, exc_info=True)
    except BaseException as again:
        _let_end(again)
        _show_on_stderr(again)


def _let_end(error: BaseException) -> None:
    """Raise what may end a thread: gevent its greenlet, and Ctrl-C the main thread."""
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
            # Without its context, an error of ours: that may quote a value.
            sys.stderr.write(_traceback_of(error) + '\n')
        except (OSError, ValueError):
            pass  # stderr is closed: there is nobody to tell


def _write_traceback(record: logging.LogRecord) -> bool:
    """Write the traceback of a record whose errors have more than a line to say.

    Formatters take it as it is; all others they write themselves.
    """
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and not record.exc_text:
        try:
            errors = _with_its_causes(error)
            texts = [text for each in errors for text in _texts_of(each)]
            if not all(map(str.isprintable, texts)):
                record.exc_text = '\n\n'.join(map(_traceback_of, reversed(errors)))
        except Exception as failure:  # what an application's own has may be anything
            raise_interruption(failure)
            record.exc_text = _traceback_of(error)
    return True


def _with_its_causes(error: BaseException) -> List[BaseException]:
    found: List[BaseException] = [error]
    known = {id(error)}
    for each in found:
        causes = [
            each.__cause__ or (not each.__suppress_context__ and each.__context__)
        ]
        for cause in causes + list(getattr(each, 'exceptions', ())):  # of a group
            if isinstance(cause, BaseException) and id(cause) not in known:
                known.add(id(cause))
                found.append(cause)
    return found


def _texts_of(error: BaseException) -> List[str]:
    return [text_of(error), *map(str, getattr(error, '__notes__', ()))]


logger.addFilter(_write_traceback)


def _traceback_of(error: BaseException) -> str:
    """Write a traceback as Python does, but for the text of the error: on one line."""
    frames = ''.join(traceback.format_tb(error.__traceback__))
    text = _escaped('%s: %s' % (name_of(type(error)), text_of(error)))
    return 'Traceback (most recent call last):\n%s%s' % (frames, text)


def _shown(value: Any) -> Any:
    """Return what is logged of a value: a text is on one line, whoever it is from."""
    if isinstance(value, BaseException):
        value = text_of(value)
    return _escaped(value) if isinstance(value, str) else value


def text_of(error: BaseException) -> str:
    """Return the text of an error; the name of its class if it gives none."""
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


def printable(text: str, most: int) -> str:
    """Show a text from outside on one line: its control characters are written out.

    :param most: characters that come back at most
    """
    text = _escaped(text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + '...'


def _is_below(frame: FrameType, code: CodeType) -> bool:
    """Whether a function was called by another one, however deep; or by itself."""
    outer = frame.f_back
    while outer is not None and outer.f_code is not code:
        outer = outer.f_back
    return outer is not None


def is_in_a_line() -> bool:
    """Whether a handler of the log calls us because of a line of ours."""
    return _is_below(sys._getframe(), _Log._say.__code__)


def is_echo() -> bool:
    """Whether a log handler calls us because of a line that a delivery made.

    To deliver what it tracks would make the next line, and so on for ever. Only for a
    thread that delivers: it looks at the whole stack.
    """
    frame: Optional[FrameType] = sys._getframe(1)
    frames: List[FrameType] = []
    speaker = before = ''
    while frame is not None:
        module = str(frame.f_globals.get('__name__'))
        if before == 'logging' and module != 'logging':
            # Or a package that wraps a part of logging; then the last one is meant.
            speaker = module
        if module in _PLACES and speaker.partition('.')[0] in _SPEAKERS:
            # A signal handler may have interrupted the line, and tracks its own event.
            return not any(map(is_called_by_a_signal, frames))
        frames.append(frame)
        before, frame = module, frame.f_back
    return False


# Below which a delivery makes lines, and the packages that make them.
_PLACES = (__name__, 'hightouch.htevents._process.transport')
_SPEAKERS = ('hightouch', 'requests', 'urllib3', 'charset_normalizer', 'chardet')


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to sys.stderr what no other handler shows there.

    It is looked up for each line: a test may replace it.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # the one of StreamHandler would keep a stream

    @property
    def stream(self) -> Any:
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        try:
            shown = self._is_shown(record)
        except Exception as error:  # of a handler or a stream of the application's
            raise_interruption(error)
            shown = False
        if not shown:
            super().emit(record)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        """Whether the application has the record shown there already."""
        current: Optional[logging.Logger] = logger
        while current is not None:
            for each in current.handlers:
                if each is not self and _shows(each, record):
                    return True
            current = current.parent if current.propagate else None
        return False


def _shows(handler: logging.Handler, record: logging.LogRecord) -> bool:
    """Whether a handler writes a record to the terminal."""
    # Of a StreamHandler, or of Rich.
    stream = getattr(handler, 'stream', None)
    stream = stream or getattr(getattr(handler, 'console', None), 'file', None)
    if record.levelno < handler.level or not _is_terminal(stream):
        return False
    # Those of the application may count what they see.
    known = [each for each in handler.filters if type(each) is logging.Filter]
    return all(each.filter(record) for each in known)


def _is_terminal(stream: Any) -> bool:
    if stream in (sys.stderr, sys.stdout):
        return stream is not None
    try:
        place = os.fstat(stream.fileno())
        return any(os.path.samestat(place, os.fstat(number)) for number in (1, 2))
    except (AttributeError, OSError, ValueError):
        return False  # not one of the system's


class _Handlers:
    """Which handlers are attached and by how many clients, so that lines come once."""

    def __init__(self) -> None:
        self._counts: Dict[logging.Handler, int] = {}
        self._debug = 0
        self._level = logger.level
        self._stream: Optional[logging.Handler] = None
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # Guards the fields above. Re-entrant: a finalizer that drops a client may run
        # while it is held.
        self._lock = threading.RLock()

    def attach(
        self, debug: bool, handler: Optional[logging.Handler]
    ) -> Callable[[], None]:
        with self._lock:
            if debug and handler is None:
                if self._stream is None:
                    self._stream = _StderrHandler()
                handler = self._stream
            if handler is not None:
                self._counts[handler] = self._counts.get(handler, 0) + 1
                logger.addHandler(handler)
            if debug:
                if self._debug == 0:
                    self._level = logger.level
                self._debug += 1
                logger.setLevel(logging.DEBUG)

        def release() -> None:
            with self._lock:
                if handler is not None:
                    self._counts[handler] -= 1
                    if not self._counts[handler]:
                        del self._counts[handler]
                        logger.removeHandler(handler)
                        if handler is self._stream:
                            self._stream = None
                if debug:
                    self._debug -= 1
                    if self._debug == 0:
                        logger.setLevel(self._level)

        return release

    def enable(self) -> None:
        """Enable the logger, if a client has asked for lines.

        logging.config disables each logger that exists and that it is not told of.
        """
        if logger.disabled and (self._counts or self._debug):
            logger.disabled = False


_handlers = _Handlers()


def attach(debug: bool, handler: Optional[logging.Handler]) -> Callable[[], None]:
    """Add what a client asks for; returns the function that takes it away again.

    :param debug: log at level DEBUG, to stderr if no handler is given
    :param handler: None for none of its own
    """
    if not debug and handler is None:
        return _nothing
    return _handlers.attach(debug, handler)


def _nothing() -> None:
    pass
