"""A scope for each request of an ASGI application (FastAPI, Starlette, Litestar, Quart).

::

    app.add_middleware(ScopeMiddleware, trusted_proxies='10.0.0.0/8')
"""

from functools import partial
from typing import Any, Awaitable, Callable, Dict, MutableMapping

from hightouch.htevents.contrib import _browser
from hightouch.htevents.contrib._proxies import Proxies
from hightouch.htevents.settings import check_callable

_Scope = MutableMapping[str, Any]
_App = Callable[[_Scope, Any, Any], Awaitable[Any]]

_HEADERS = {name.encode('ascii'): name for name in _browser.HEADERS}


class ScopeMiddleware:
    """Opens a scope for each HTTP request and each websocket, with the facts of its browser.

    It is open until the application is done with the request: also for a streamed body and
    for background tasks.

    :param app: the ASGI application
    :param trusted_proxies: networks or addresses of the proxies whose headers tell the
        address of the client, as str or objects of `ipaddress`; ``'unix'`` is a peer on a
        UNIX socket. By default none is trusted
    :param user_id: function that gets the ASGI scope and returns the id of the user, or
        None. It is called with an event that needs it, often in the event loop, so it must
        not block
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    :raises RuntimeError: on Python 3.6, where tasks could not be told apart
    """

    def __init__(
        self, app: _App, trusted_proxies: Any = (), user_id: Any = None
    ) -> None:
        if not _browser.HAS_TASK_CONTEXTS:
            raise RuntimeError('hightouch.htevents.contrib.asgi needs Python 3.7')
        self.app = app
        self._proxies = Proxies(trusted_proxies)
        self._user_id = check_callable('user_id', user_id)

    async def __call__(self, scope: _Scope, receive: Any, send: Any) -> None:
        if scope['type'] not in ('http', 'websocket'):
            await self.app(scope, receive, send)
            return
        user_id = self._user_id
        find_user = None if user_id is None else partial(user_id, scope)
        request = _request_of(scope)
        with _browser.inside(request, self._proxies, find_user):
            await self.app(scope, receive, send)


def _request_of(scope: _Scope) -> _browser.Request:
    client, headers = scope.get('client'), _headers_of(scope)
    scheme = scope.get('scheme', 'http')
    _browser.add_host(headers, scope.get('server'), scheme)
    path, root = scope.get('path', ''), scope.get('root_path', '').rstrip('/')
    has_root = path == root or path.startswith(root + '/')  # older servers leave it out
    return _browser.Request(
        client[0] if client else None,
        scheme,
        path if has_root else root + path,
        scope.get('query_string', b''),
        headers,
    )


def _headers_of(scope: _Scope) -> Dict[str, str]:
    headers: Dict[str, str] = {}
    for key, value in scope.get('headers', ()):
        name = _HEADERS.get(key.lower())
        if name is not None:
            text = value.decode('latin-1')
            if name in headers:  # HTTP/2 may send each cookie on its own
                text = headers[name] + ('; ' if name == 'cookie' else ', ') + text
            headers[name] = text
    return headers
