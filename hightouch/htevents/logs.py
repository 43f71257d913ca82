"""The package's logger, and the handlers that clients ask for.

Everything is logged to ``hightouch``; nothing is printed unless the application
configures logging, or a client is made with ``debug=True`` or a ``log_handler``.
"""

import logging
import threading
from typing import Callable, Dict, Optional

from hightouch.htevents import fork

log = logging.getLogger('hightouch')
log.addHandler(logging.NullHandler())


class _Handlers:
    """Which handlers are attached and by how many clients, so that lines come once."""

    def __init__(self) -> None:
        self._counts: Dict[logging.Handler, int] = {}
        self._debug = 0
        self._level = log.level
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
                    self._stream = logging.StreamHandler()
                handler = self._stream
            if handler is not None:
                self._counts[handler] = self._counts.get(handler, 0) + 1
                log.addHandler(handler)
            if debug:
                if self._debug == 0:
                    self._level = log.level
                self._debug += 1
                log.setLevel(logging.DEBUG)

        def release() -> None:
            with self._lock:
                if handler is not None:
                    self._counts[handler] -= 1
                    if not self._counts[handler]:
                        del self._counts[handler]
                        log.removeHandler(handler)
                        if handler is self._stream:
                            self._stream = None
                if debug:
                    self._debug -= 1
                    if self._debug == 0:
                        log.setLevel(self._level)

        return release


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
