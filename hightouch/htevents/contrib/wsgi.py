"""A scope for each request of a WSGI application (Flask, Bottle, Pyramid, Falcon).

::

    app.wsgi_app = ScopeMiddleware(app.wsgi_app, trusted_proxies='10.0.0.0/8')
"""

from functools import partial
from typing import Any, Callable, ContextManager, Dict, Iterable, Iterator, Optional

from hightouch.htevents.contrib import _browser
from hightouch.htevents.contrib._proxies import Proxies
from hightouch.htevents.settings import check_callable

_Environ = Dict[str, Any]


class ScopeMiddleware:
    """Opens a scope for each request, with the facts of its browser.

    It is open while the application is called, in each step of its body, and when the body
    is closed.

    :param app: the WSGI application
    :param trusted_proxies: networks or addresses of the proxies whose headers tell the
        address of the client, as str or objects of `ipaddress`; ``'unix'`` is a peer on a
        UNIX socket. By default none is trusted
    :param user_id: function that gets the environ and returns the id of the user, or None.
        It is called with an event that needs it
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    """

    def __init__(
        self,
        app: Callable[[_Environ, Any], Iterable[bytes]],
        trusted_proxies: Any = (),
        user_id: Any = None,
    ) -> None:
        self.app = app
        self._proxies = Proxies(trusted_proxies)
        self._user_id = check_callable('user_id', user_id)

    def __call__(self, environ: _Environ, start_response: Any) -> Iterable[bytes]:
        user_id = self._user_id
        find_user = None if user_id is None else partial(user_id, environ)
        request = _browser.from_environ(environ)
        inside = _browser.inside(request, self._proxies, find_user)
        with inside:
            body = self.app(environ, start_response)
        if _is_known(body, environ.get('wsgi.file_wrapper')):
            return body
        return _Body(body, inside)


def _is_known(body: Any, wrapper: Any) -> bool:
    """Whether servers treat a body in a special way. Such bodies run no code of the app."""
    if isinstance(body, (list, tuple)):
        return not hasattr(body, 'close')
    if isinstance(wrapper, type):
        return isinstance(body, wrapper)
    # The wrapper of uWSGI is a function. It returns the file itself.
    return wrapper is not None and hasattr(body, 'read')


class _Body:
    """The body of an answer, whose steps run in a scope.

    The scope is not kept open between the steps. A server that does not close the body would
    leave it in the thread.
    """

    def __init__(self, body: Iterable[bytes], inside: ContextManager[None]) -> None:
        self._body = body
        self._inside = inside
        self._steps: Optional[Iterator[bytes]] = None

    def __iter__(self) -> '_Body':
        return self

    def __next__(self) -> bytes:
        with self._inside:
            if self._steps is None:
                self._steps = iter(self._body)
            return next(self._steps)

    def close(self) -> None:
        close = getattr(self._body, 'close', None)
        if close is not None:
            with self._inside:
                close()
