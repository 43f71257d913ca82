"""Posts to a server, over connections that all clients of the process share.

A session for each client would hold a socket open for each tenant. The shared session keeps no
cookies and knows no credentials, so nothing can leak from one tenant to another. A user's own
session is used through its public methods.

This module is imported with the first client, because requests takes long to import. It also
imports every module that a delivery needs. If a consumer imported one of them with its first
request, a fork at that moment would leave the child with an import lock that nobody releases.
"""

import encodings.idna  # noqa: F401 - requests imports it with the first host name
import ipaddress  # noqa: F401 - see proxies
import netrc  # noqa: F401 - requests imports it with the first redirect
import os
from functools import partial
from queue import Empty
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

import backoff  # noqa: F401 - see retry
import requests
from requests.cookies import RequestsCookieJar
from requests.models import PreparedRequest
from requests.sessions import HTTPAdapter

from hightouch.htevents._process import fork
from hightouch.htevents._process.answers import Answer, read
from hightouch.htevents._process.credentials import (
    basic,
    mask,
    secrets_of,
    split_credentials,
)
from hightouch.htevents._process.interruption import is_interruption, raise_interruption
from hightouch.htevents._process.logs import log
from hightouch.htevents._process.proxies import all_proxies, proxies_for
from hightouch.htevents._process.waiting import Timeout
from hightouch.htevents.errors import is_retryable, name_of

# Hosts that are remembered, and idle sockets to one of them that are kept open.
POOL_SIZE = 100

# The environment variables that requests reads.
_VARIABLES = tuple(
    name
    for scheme in ('http', 'https', 'all', 'no')
    for name in (scheme + '_proxy', scheme.upper() + '_PROXY')
) + ('REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE', 'REQUEST_METHOD')

# An application's test may have replaced a name of requests when this module is imported.
_Session: Any = next(
    each
    for each in (requests.sessions.Session, requests.Session)
    if isinstance(each, type)
)


def _genuine(method: Any) -> Any:
    file = _Session.__init__.__code__.co_filename
    code = getattr(method, '__code__', None)
    return method if code is not None and code.co_filename == file else None


# If a test or a tracer replaces one of them, our requests go through it. None: it was replaced
# before this module was imported, and is never found equal.
_METHODS = [_genuine(each) for each in (_Session.post, _Session.request, _Session.send)]

_Proxies = Optional[Mapping[str, Optional[str]]]


def post(
    session: Any,
    url: str,
    data: bytes,
    headers: Mapping[str, str],
    token: Optional[str],
    timeout: Optional[Timeout],
    proxies: _Proxies,
) -> Answer:
    """Post ``data``; follow no redirect, which could carry the write key elsewhere.

    :param session: a user's ``requests.Session``, or the result of `Lease.get`. None: the
        session of the process
    :param token: of OAuth, if the server needs one
    :param timeout: seconds for the connection, and for each wait for the answer's headers,
        or a pair of them; the whole body may take as long as the headers
    :raises requests.RequestException: when no answer comes
    """
    if session is None:
        with Lease() as shared:
            return post(shared, url, data, headers, token, timeout, proxies)
    place, credentials = split_credentials(url)
    authorization = basic(credentials) if token is None else 'Bearer ' + token
    chosen = proxies_for(place, session, proxies)
    answers: List[Answer] = []
    try:
        methods = [_Session.post, _Session.request, _Session.send]
        if type(session) is SharedSession and methods == _METHODS:
            response = session.send_bytes(
                place, data, headers, authorization, timeout, chosen
            )
            return read(response, timeout)
        has_auth = token is None and getattr(session, 'auth', None)
        _post_publicly(
            answers,
            session,
            place,
            data=data,
            headers=dict(headers),
            # Without an ``auth``, requests replaces a header by credentials of ~/.netrc.
            auth=None if has_auth else partial(_authorize, authorization),
            timeout=timeout,
            proxies=chosen,
        )
    except BaseException as error:
        # Code that was interrupted may have left a lock held.
        if is_interruption(error) or not isinstance(error, Exception):
            forget(session)
        # Our session may have been made while a test had patched requests. Only an error of
        # the network says that it works.
        elif not (isinstance(error, OSError) and is_retryable(error)):
            _shared.drop(session)
        raise_interruption(error, wrapped=True)
        if not (answers and isinstance(error, Exception)):
            mask(error, secrets_of([url, *all_proxies(session, proxies)]))
            raise  # otherwise a hook has raised, because of the status for example
    return answers[-1]


def _authorize(header: str, prepared: Any) -> Any:
    if header:
        prepared.headers['Authorization'] = header
    return prepared


def _post_publicly(
    answers: List[Answer], session: Any, place: str, **given: Any
) -> None:
    """Post by the public method of a session; append to ``answers``."""

    def note(response: Any, *args: Any, **kwargs: Any) -> None:
        # This is the first hook, and comes before the redirects of requests: both may read
        # a body without bounds, and raise.
        answers.append(read(response, given['timeout']))

    hooks = {'response': [note] + _hooks(session)}
    response = session.post(
        place, allow_redirects=False, stream=True, hooks=hooks, **given
    )
    if not (answers and answers[-1].response is response):
        note(response)  # a mock, or the response that a user's hook returned


def _hooks(session: Any) -> List[Any]:
    """Return the hooks of a session: the hooks of a request would replace them."""
    hooks = getattr(session, 'hooks', None)
    found = hooks.get('response') if isinstance(hooks, dict) else None
    return [found] if callable(found) else list(found or ())


# -- the session of the process ------------------------------------------------------


class SharedSession(_Session):  # type: ignore[misc]
    """Sends prepared requests straight through its adapters.

    So there are no cookies, redirects, ~/.netrc or hooks. Safe to use from several threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cookies = NoCookies()
        self._templates: Dict[Any, PreparedRequest] = {}
        # The last key and its settings, as one value: threads share a session.
        self._merged: Tuple[Any, Any] = (None, None)
        for prefix in ('https://', 'http://'):
            self.mount(
                prefix, Adapter(pool_connections=POOL_SIZE, pool_maxsize=POOL_SIZE)
            )

    def send_bytes(
        self,
        place: str,
        data: bytes,
        headers: Mapping[str, str],
        authorization: str,
        timeout: Optional[Timeout],
        proxies: _Proxies,
    ) -> Any:
        """Post bytes; return the ``requests.Response``, whose body is not read yet."""
        prepared = self._template(place, headers).copy()
        prepared.body = data
        prepared.headers['Content-Length'] = str(len(data))
        if authorization:
            prepared.headers['Authorization'] = authorization
        settings = self.merge_environment_settings(place, proxies, True, None, None)
        adapter: Any = self.get_adapter(place)
        return adapter.send(prepared, timeout=timeout, **settings)

    def _template(self, place: str, headers: Mapping[str, str]) -> PreparedRequest:
        """Return the part that all requests to a place share; raise for a wrong URL."""
        key = (place, tuple(headers.items()))
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= POOL_SIZE:
                self._templates = {}
            template = PreparedRequest()
            template.prepare('POST', place, {**self.headers, **headers})
            self._templates[key] = template
        return template

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        """Read the environment again only when it has changed."""
        given = (url, dict(proxies or {}), stream, verify, cert)
        key = (given, list(map(os.environ.get, _VARIABLES)))
        known, settings = self._merged
        if known != key:
            # A copy, because requests changes the dict, which is a part of the key.
            settings = super().merge_environment_settings(
                url, dict(given[1]), stream, verify, cert
            )
            self._merged = (key, settings)
        return dict(settings, proxies=dict(settings['proxies'] or {}))


class NoCookies(RequestsCookieJar):
    """A jar that stays empty. Some versions of requests copy a jar without its policy."""

    def set_cookie(self, cookie: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Adapter(HTTPAdapter):
    """Looks the pool of connections up only for another place than the last one."""

    _pool: Tuple[Any, Any] = (None, None)

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        key = (request.url, verify, dict(proxies or {}), cert)
        known, pool = self._pool
        if known != key or pool.pool is None:  # None: it was closed
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


class Stack:
    """The idle connections of a pool: the methods of ``queue.LifoQueue`` that urllib3 calls.

    It has no lock. A signal handler that raises inside ``queue`` can leave its lock held.
    """

    def __init__(self, maxsize: int) -> None:
        self._items: List[Any] = []
        self._maxsize = maxsize

    def put(self, item: Any, block: bool = True, timeout: Any = None) -> None:
        if item is None:
            return  # a placeholder for a connection that is not open
        if len(self._items) >= self._maxsize:
            item.close()
        else:
            self._items.append(item)

    def get(self, block: bool = True, timeout: Any = None) -> Any:
        try:
            return self._items.pop()
        except IndexError:
            raise Empty

    def qsize(self) -> int:
        return len(self._items)


def _use_stacks(manager: Any) -> None:
    # Old releases of urllib3 do not let the classes be chosen.
    classes = getattr(manager, 'pool_classes_by_scheme', {})
    manager.pool_classes_by_scheme = {
        scheme: type(made.__name__, (made,), {'QueueCls': Stack})
        for scheme, made in classes.items()
    }


# -- who uses it ---------------------------------------------------------------------


class _Shared:
    """The session of the process, and its users.

    It has no lock: up to Python 3.9 the exception of a signal handler can leave one held.
    Threads change a set and a dict, each by one step of the interpreter.
    """

    def __init__(self) -> None:
        self._forgotten: List[Any] = []
        self._made: Dict[None, SharedSession] = {}
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # A child forgets its parent's sockets and does not close them: a TLS goodbye
        # from here would end the parent's connection.
        self._forgotten.append(self._made)
        self._made = {}
        self.users: Set[Any] = set()

    @property
    def session(self) -> Optional[SharedSession]:
        return self._made.get(None)

    def get(self) -> SharedSession:
        # Threads that come here together all get the same session.
        return self._made.get(None) or self._made.setdefault(None, SharedSession())

    def drop(self, session: Any) -> None:
        if session is self.session:
            self._made = {}  # no close: another thread may be using it

    def discard(self, user: Any) -> None:
        """Close the session with its last user; twice is harmless."""
        self.users.discard(user)
        if self.users:
            return
        made, self._made = self._made, {}
        if None not in made:
            return
        # A new user adds itself before it gets the session. So it is either seen here, or
        # has a new session already.
        if self.users:
            self._made.setdefault(None, made[None])
        else:
            made[None].close()


_shared = _Shared()


class Lease:
    """The right to use a session, until `close`; safe to use from several threads.

    :param session: the user's session, which is never closed. None: the session of the
        process, which is opened with its first use and closed with the last lease
    """

    def __init__(self, session: Any = None) -> None:
        self._own = session
        # A forked child must not close its parent's sockets: see _Shared.
        self._forgotten: List[Any] = []
        if session is not None:
            fork.register(self)

    def _after_fork(self) -> None:
        self._forgotten.append(_forget_sockets(self._own))

    def get(self) -> Any:
        if self._own is not None:
            return self._own
        _shared.users.add(self)
        return _shared.get()

    def close(self) -> None:
        """End the lease; twice is harmless. The next `get` begins a new one."""
        _shared.discard(self)

    def __enter__(self) -> Any:
        return self.get()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def forget(session: Any) -> None:
    """Abandon the connections and locks of a session whose request was interrupted."""
    if type(session) is SharedSession:
        _shared.drop(session)
    else:
        _forget_sockets(session)


def _forget_sockets(session: Any) -> Sequence[Any]:
    """Let a user's session open other connections from now on.

    :returns: the old ones. A forked child has to keep them, because its parent uses them
    """
    forgotten: List[Any] = []
    try:
        for adapter in session.adapters.values():
            forgotten.append(vars(adapter).copy())
            # As after pickling, which leaves the sockets of an adapter out.
            adapter.__setstate__(adapter.__getstate__())
    except Exception as error:  # the session is not made by requests
        raise_interruption(error)
        # Not its traceback: that shows the error of the request, which may quote a secret.
        kind = name_of(type(error))
        log.warning('A session keeps connections it should not use (%s)', kind)
    return forgotten
