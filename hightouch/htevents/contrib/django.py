"""A scope for each request of Django, sync and async.

::

    MIDDLEWARE = [
        …,
        'django.contrib.auth.middleware.AuthenticationMiddleware',
        'hightouch.htevents.contrib.django.ScopeMiddleware',
    ]

The setting ``HTEVENTS_TRUSTED_PROXIES`` has the networks or addresses of the proxies whose
headers tell the address of the client, as str; ``'unix'`` is a peer on a UNIX socket. By
default none is trusted.
"""

import asyncio
from functools import partial
from typing import Any, AsyncIterator, Callable, ContextManager, Iterator, Optional

from django.conf import settings
from django.utils.functional import LazyObject, empty

from hightouch.htevents._context.blocks import around
from hightouch.htevents._context.scopes import current_user
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents.contrib import _browser
from hightouch.htevents.contrib._proxies import Proxies

try:
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
except ImportError:  # Django before 4.2
    iscoroutinefunction = asyncio.iscoroutinefunction

    def markcoroutinefunction(function: Any) -> Any:
        function._is_coroutine = vars(asyncio.coroutines)['_is_coroutine']
        return function


class ScopeMiddleware:
    """Opens a scope for each request, with its user and the facts of its browser.

    The user is looked at with an event that needs it, so that a login or a logout in a view
    counts. A sync request that needs no user causes no query, and does not touch the session
    (which adds ``Vary: Cookie`` to the answer). Code in an event loop cannot load the user. So
    a request of an async view, or in an async chain, loads it if it has a session cookie.

    :raises ValidationError: (an ``AssertionError``) when the setting is wrong
    """

    sync_capable = True
    # Otherwise the requests of a thread could not be told apart.
    async_capable = _browser.HAS_TASK_CONTEXTS

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self._proxies = Proxies(getattr(settings, 'HTEVENTS_TRUSTED_PROXIES', ()))
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        else:
            # Not a method: async Django would call it on another thread.
            self.process_view = _load_for_async_view

    def user_id(self, user: Any) -> Any:
        """Return the id of an authenticated user; None for no id. A subclass may override it.

        In async Django it is called in the event loop, so it must not make a query.
        """
        return None if user.pk is None else str(user.pk)

    def __call__(self, request: Any) -> Any:
        user = _User(request, self.user_id)
        facts = _browser.from_environ(request.META)._replace(
            scheme=request.scheme, path=request.path
        )
        inside = _browser.inside(facts, self._proxies, user.id)
        if self._is_async:
            return self._acall(request, user, inside)
        with inside:
            return _streamed(self.get_response(request), inside)

    async def _acall(
        self, request: Any, user: '_User', inside: ContextManager[None]
    ) -> Any:
        with inside:
            await user.load()
            return _streamed(await self.get_response(request), inside)


class _User:
    """The user of a request.

    :param id_of: returns the id of an authenticated user
    """

    def __init__(self, request: Any, id_of: Callable[[Any], Any]) -> None:
        self._request = request
        self._id_of = id_of
        self._loaded: Any = None
        self._error: Optional[Exception] = None

    async def load(self) -> None:
        """Load the user of the session, for events that are tracked in the event loop."""
        request = self._request
        if not _has_session(request):
            return
        try:
            if not hasattr(request, 'auser'):  # before Django 5.0
                from asgiref.sync import sync_to_async

                await sync_to_async(self.id)()
                return
            self._loaded = await request.auser()
            if not self._loaded.is_authenticated:
                # Django keeps it through a login. Its application would not see the new one.
                vars(request).pop('_acached_user', None)
        except Exception as error:
            raise_interruption(error)
            self._error = error

    def id(self) -> Any:
        """Return the id of the user; None if nobody is logged in."""
        user = getattr(self._request, 'user', None)
        if isinstance(user, LazyObject) and user._wrapped is empty:
            # The application has not looked at it, and no login has replaced it.
            if self._error is not None:
                raise self._error.with_traceback(None)
            if self._loaded is not None:
                user = self._loaded
            elif asyncio._get_running_loop() is not None:
                return None  # a query would block the loop
        if user is None or not user.is_authenticated:
            return None
        return self._id_of(user)


def _has_session(request: Any) -> bool:
    return settings.SESSION_COOKIE_NAME in request.COOKIES


def _load_for_async_view(request: Any, view: Any, args: Any, kwargs: Any) -> None:
    """Load the user while the thread has no event loop, for an async view in a sync chain."""
    if iscoroutinefunction(view) and _has_session(request):
        current_user()


def _streamed(response: Any, inside: ContextManager[None]) -> Any:
    """Let the steps of a streamed answer run in the scope. Files run no code of the app."""
    is_file = getattr(response, 'file_to_stream', None) is not None
    if getattr(response, 'streaming', False) and not is_file:
        is_async = getattr(response, 'is_async', False)
        steps = response.streaming_content
        run = _async_steps if is_async else _steps
        response.streaming_content = run(steps, inside)
        close = around(lambda: inside, response.close)
        response.close = partial(_close_async, response, close) if is_async else close
    return response


def _close_async(response: Any, close: Callable[[], None]) -> None:
    """Close an answer, and drop its steps, so that the event loop closes their generator.

    Not in the scope: the loop may enter it immediately, on another thread.
    """
    try:
        close()
    finally:
        response.streaming_content = ()


def _steps(steps: Iterator[bytes], inside: ContextManager[None]) -> Iterator[bytes]:
    """Run the steps of an answer in a scope. The answer closes the original iterator."""
    while True:
        with inside:
            try:
                step = next(steps)
            except StopIteration:
                return
        yield step


async def _async_steps(
    steps: AsyncIterator[bytes], inside: ContextManager[None]
) -> AsyncIterator[bytes]:
    """Run the steps of an async answer in a scope, and close it there.

    Django does not close it. If the client is gone, its last reference is dropped.
    """
    try:
        while True:
            with inside:
                try:
                    step = await steps.__anext__()
                except StopAsyncIteration:
                    return
            yield step
    finally:
        close = getattr(steps, 'aclose', None)
        if close is not None:
            with inside:
                await close()
