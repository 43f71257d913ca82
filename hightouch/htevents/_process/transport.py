"""The sockets: one ``requests.Session`` for all clients of the process.

A session of each client's own would hold open a socket for each tenant. What could
leak from one tenant to another through a shared one is switched off: it keeps no
cookies, and knows no credentials.
"""

import os
from operator import is_not
from typing import Any, Dict, List, Sequence, Set, Tuple

from hightouch.htevents._process import fork
from hightouch.htevents._process.logs import log

# Hosts that are remembered, and idle sockets to one of them that are kept open.
POOL_SIZE = 100

# What requests reads from the environment.
_VARIABLES = tuple(
    name
    for scheme in ('http', 'https', 'all', 'no')
    for name in (scheme + '_proxy', scheme.upper() + '_PROXY')
) + ('REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE', 'REQUEST_METHOD')


class _Shared:
    """The process's session, and who uses it.

    Has no lock: up to Python 3.9 the exception of a signal handler can leave one held.
    What threads change at once are a set and a dict, each by one step of the interpreter.
    """

    def __init__(self) -> None:
        self._forgotten: List[Any] = []
        self._made: Dict[None, Tuple[Sequence[Any], Any]] = {}
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # A child forgets its parent's sockets and does not close them: a TLS goodbye
        # from here would end the parent's connection.
        self._forgotten.append(self._made)
        self.drop()
        self.users: Set[Any] = set()

    @property
    def session(self) -> Any:
        return self._made.get(None, (None, None))[1]

    def get(self) -> Any:
        ingredients = _ingredients()
        made = self._made
        if None in made and any(map(is_not, ingredients, made[None][0])):
            # A test had replaced something (mock.patch), or has now: what was made then
            # must not outlast it.
            made = self._made = {}
        if None not in made:
            # Of threads that come here at once all get the same.
            made.setdefault(None, (ingredients, _make_session()))
        return made[None][1]

    def drop(self) -> None:
        self._made = {}  # no close: another thread may be using it

    def discard(self, user: Any) -> None:
        """Close the session with the last of its users; twice is harmless."""
        self.users.discard(user)
        if self.users:
            return
        made, self._made = self._made, {}
        if None not in made:
            return
        # A new user adds itself, and then gets the session. So either it is seen here, or
        # it has got a new one.
        if self.users:
            self._made.setdefault(None, made[None])
        else:
            made[None][1].close()


_shared = _Shared()


def _ingredients() -> Sequence[Any]:
    """Return what a session is made of, as these names have it now."""
    from requests import adapters, cookies, models, sessions

    return (
        sessions.Session,
        sessions.PreparedRequest,
        sessions.get_environ_proxies,
        models.Request,
        adapters.HTTPAdapter,
        adapters.PoolManager,
        cookies.RequestsCookieJar,
    )


def _no_auth(prepared: Any) -> Any:
    return prepared


def _make_session() -> Any:
    import requests.sessions
    from requests.adapters import HTTPAdapter
    from requests.cookies import RequestsCookieJar
    from requests.models import Request

    class NoCookies(RequestsCookieJar):
        """A jar that stays empty.

        A cookie policy would do, but versions of requests copy a jar without it.
        """

        def set_cookie(self, cookie: Any, *args: Any, **kwargs: Any) -> None:
            pass

    class Session(requests.sessions.Session):
        """Keeps what is the same for each request: that is half of its calls."""

        def __init__(self) -> None:
            super().__init__()
            # The last key and what belongs to it, in one step: threads share a session.
            self._template: Tuple[Any, Any] = (None, None)
            self._merged: Tuple[Any, Any] = (None, None)

        def prepare_request(self, request: Any) -> Any:
            """Prepare what `request.send` sends as the last one to the same place."""
            if not (isinstance(request.data, bytes) and request.auth):
                return super().prepare_request(request)
            key = (request.method, request.url, dict(request.headers))
            known, template = self._template
            if known != key:
                # Without its body and credentials: those are each request's own.
                method, url, headers = key
                blank = Request(method, url, headers, auth=_no_auth)
                template = super().prepare_request(blank)
                self._template = (key, template)
            prepared = template.copy()
            prepared.body = request.data
            prepared.hooks = request.hooks
            prepared.prepare_auth(request.auth)  # sets the length as well
            return prepared

        def merge_environment_settings(
            self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
        ) -> Any:
            """Ask the environment again only when it has changed."""
            given = (url, dict(proxies or {}), stream, verify, cert)
            key = (given, [os.environ.get(name) for name in _VARIABLES])
            known, settings = self._merged
            if known != key:
                # With a copy: it changes the dict, and that is a part of the key.
                settings = super().merge_environment_settings(
                    url, dict(given[1]), stream, verify, cert
                )
                self._merged = (key, settings)
            return dict(settings, proxies=dict(settings['proxies'] or {}))

    class Adapter(HTTPAdapter):
        """Looks the pool of connections up again only for another place."""

        _pool: Tuple[Any, Any] = (None, None)

        def get_connection_with_tls_context(
            self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
        ) -> Any:
            key = (request.url, verify, dict(proxies or {}), cert)
            known, pool = self._pool
            if known != key or pool.pool is None:  # that is: it was closed
                pool = super().get_connection_with_tls_context(
                    request, verify, proxies, cert
                )
                self._pool = (key, pool)
            return pool

        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            _use_stacks(self.poolmanager)

        def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
            manager = super().proxy_manager_for(*args, **kwargs)
            _use_stacks(manager)
            return manager

        def close(self) -> None:
            self._pool = (None, None)
            super().close()

    session = Session()
    session.cookies = NoCookies()
    for prefix in ('https://', 'http://'):
        session.mount(
            prefix, Adapter(pool_connections=POOL_SIZE, pool_maxsize=POOL_SIZE)
        )
    return session


class _Stack:
    """What urllib3 asks of a ``queue.LifoQueue`` for its connections; has no lock.

    The exception of a signal handler that interrupts a lock of queue's can leave it held.
    """

    def __init__(self, maxsize: int) -> None:
        self._items: List[Any] = []
        self._maxsize = maxsize

    def put(self, item: Any, block: bool = True, timeout: Any = None) -> None:
        if item is None:
            return  # the place of a connection that is not open: there is always one
        if len(self._items) >= self._maxsize:
            item.close()
        else:
            self._items.append(item)

    def get(self, block: bool = True, timeout: Any = None) -> Any:
        try:
            return self._items.pop()
        except IndexError:
            from queue import Empty  # imported by urllib3

            raise Empty

    def qsize(self) -> int:
        return len(self._items)


def _use_stacks(manager: Any) -> None:
    # Old releases of urllib3 know no classes but their own.
    classes = getattr(manager, 'pool_classes_by_scheme', {})
    manager.pool_classes_by_scheme = {
        scheme: type(made.__name__, (made,), {'QueueCls': _Stack})
        for scheme, made in classes.items()
    }


def preload() -> None:
    """Import what sending needs, on the thread of the application.

    Were it imported by a consumer, with its first request, a fork at that moment would
    leave the child with a module's import lock that nobody ever releases.
    """
    import encodings.idna  # noqa: F401 - requests imports it with the first host name
    import ipaddress  # noqa: F401 - we do: see proxies
    import netrc  # noqa: F401 - requests imports it with the first redirect

    import backoff  # noqa: F401
    import requests  # noqa: F401


class Lease:
    """The right to use a session, until `close`; safe to use from several threads.

    :param session: the user's own, given back as it is and never closed; None shares
        the process's, opened when it is first asked for, closed with the last lease
    """

    def __init__(self, session: Any = None) -> None:
        self._own = session
        # A forked child must not close its parent's sockets, see _Shared.
        self._forgotten: List[Any] = []
        fork.register(self)

    def _after_fork(self) -> None:
        self._forgotten.append(_forget_sockets(self._own))

    def get(self) -> Any:
        if self._own is not None:
            return self._own
        _shared.users.add(self)
        return _shared.get()

    def renew(self) -> None:
        """Have the next `get` open a new session, because this one seems to be broken.

        So it is when a test had replaced anything at all that requests is made of.
        """
        if self._own is None:
            _shared.drop()

    def close(self) -> None:
        """End the lease; twice is harmless. Used again, it is a new one."""
        _shared.discard(self)

    def __enter__(self) -> Any:
        return self.get()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def forget(session: Any) -> None:
    """Use nothing of a session again that another exchange has left as it was."""
    if session is _shared.session:
        _shared.drop()
    else:
        _forget_sockets(session)


def _forget_sockets(session: Any) -> List[Any]:
    """Have a user's session open other connections from now on.

    :returns: the old ones, which a forked child has to keep: they are its parent's
    """
    forgotten: List[Any] = []
    if session is None:
        return forgotten
    try:
        for adapter in session.adapters.values():
            forgotten.append(vars(adapter).copy())
            # As if it came out of a pickle, for which adapters leave sockets out.
            adapter.__setstate__(adapter.__getstate__())
    except Exception:  # not of the kind that requests makes
        log.warning('A forked child shares the sockets of its session', exc_info=True)
    return forgotten
