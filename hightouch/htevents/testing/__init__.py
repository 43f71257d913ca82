"""For the tests of applications that track: what they track, without a network or over loopback.

The pytest plugin ``hightouch.htevents_pytest`` has fixtures for both.
"""

import inspect
import json
import os
from contextlib import contextmanager
from functools import wraps
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple, TypeVar

from hightouch.htevents import settings
from hightouch.htevents._process import captures
from hightouch.htevents.collector import Collector, Step
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.settings import Message
from hightouch.htevents.testing.default_client import fresh_default_client
from hightouch.htevents.testing.events import Events

__all__ = ['Events', 'capture', 'collector']

_Function = TypeVar('_Function', bound=Callable[..., Any])


class capture:
    """Takes what every client of the process tracks, and sends nothing.

    A context manager that gives the `Events`, and a decorator of functions, also of async
    ones, that passes them as the argument ``events`` where the function has it. It takes the
    events of all threads and tasks, also of clients with ``send=False``. Calls check, complete
    and encode their event as always, and return ``(True, message)``. Those of a deferred block
    come when it ends. Within another capture, both take the events.

    The default client is a new one inside, with the settings of the application, but without
    its ``spool_dir`` and in need of no write key. One of a subclass of `Client` stays. Afterwards
    the default client and the settings of the module are as before. Events that a client
    accepted before are sent as always.
    """

    def __init__(self) -> None:
        self._entered: List[Any] = []

    def __enter__(self) -> Events:
        messages: List[Message] = []

        def take(body: bytes) -> None:
            messages.append(json.loads(body.decode('utf-8')))

        fresh = fresh_default_client(spool_dir=None)
        fresh.__enter__()
        captures.add(take)
        self._entered.append((take, fresh))
        return Events(messages)

    def __exit__(self, *_: object) -> None:
        take, fresh = self._entered.pop()
        try:
            fresh.__exit__(None, None, None)
        finally:
            captures.remove(take)

    def __call__(self, function: _Function) -> _Function:
        """Return a function each call of which runs inside a capture of its own.

        :raises ValidationError: for a class, a generator function, and what cannot be called
        """
        settings.expect(
            callable(function) and not isinstance(function, type),
            'function',
            'a function (of a class, decorate the methods)',
            function,
        )
        kind = settings.kind_that_does_not_run(function)
        if kind not in ('', settings.ASYNC):
            raise ValidationError(
                'function: expected a plain or async one, got %s' % kind
            )
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        others = [each for each in parameters if each.name != 'events']
        takes_events = len(others) < len(parameters)
        by_place = [
            each.name for each in parameters if each.kind is not each.KEYWORD_ONLY
        ]

        def call(events: Events, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
            place = by_place.index('events') if 'events' in by_place else len(args)
            if place < len(args):
                args = (*args[:place], events, *args[place:])
            elif takes_events:
                kwargs = dict(kwargs, events=events)
            return function(*args, **kwargs)

        if kind == settings.ASYNC:

            @wraps(function)
            async def inside(*args: Any, **kwargs: Any) -> Any:
                with capture() as events:
                    return await call(events, args, kwargs)

        else:

            @wraps(function)
            def inside(*args: Any, **kwargs: Any) -> Any:
                with capture() as events:
                    return call(events, args, kwargs)

        # Otherwise pytest would look for a fixture named events.
        inside.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return inside  # type: ignore[return-value]


@contextmanager
def collector(
    faults: Iterable[Step] = (), latency: float = 0, strict: bool = True
) -> Iterator[Collector]:
    """Run a `Collector` on loopback, and let a new default client send to it.

    The default client has the settings of the application, but for ``host``, ``send`` and
    ``spool_dir``, and a write key where there is none. Clients and processes that are made
    inside send to it as well, unless they are given a ``host``: it is in the environment.
    At the end the default client has 10 seconds to deliver. Then it and the settings are as
    before.

    :param faults: the answers to the first requests, such as 503 or 'reset': see `Collector`
    :param latency: seconds before each answer
    :param strict: answer 400 to a batch with a bad event
    """
    with Collector(faults=faults, latency=latency, strict=strict) as running:
        there = {
            settings.ENV_WRITE_KEY: os.environ.get(settings.ENV_WRITE_KEY)
            or captures.WRITE_KEY,
            settings.ENV_HOST: running.url,
            settings.ENV_SEND: '1',
        }
        with fresh_default_client(
            there, keeps_other=False, host=running.url, send=True, spool_dir=None
        ):
            yield running
