"""A new default client for a while, in a test of an application."""

import os
import threading
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Mapping, MutableMapping

from hightouch import htevents
from hightouch.htevents import settings

# What a capture changes of the module, and the variables of the environment that are settings.
_ATTRIBUTES = (*settings.NAMES, 'default_client', '_made')
_VARIABLES = ['HTEVENTS_' + name.upper() for name in settings.NAMES]


class _State:
    """The default client, and the settings in the module and the environment."""

    def __init__(self) -> None:
        self.module = _picked(vars(htevents), _ATTRIBUTES)
        self.environment = _picked(os.environ, _VARIABLES)

    def restore(self) -> None:
        _replace(vars(htevents), _ATTRIBUTES, self.module)
        _replace(os.environ, _VARIABLES, self.environment)


def _picked(source: Mapping[str, Any], names: Iterable[str]) -> Dict[str, Any]:
    return {name: source[name] for name in names if name in source}


def _replace(
    target: MutableMapping[str, Any], names: Iterable[str], values: Mapping[str, Any]
) -> None:
    target.update(values)
    for name in names:
        if name not in values:
            target.pop(name, None)


# The states to which the open blocks of fresh_default_client return, in the order in which
# the blocks began.
_states: List[_State] = []

# Guards _states, and the change of the module that belongs to it. Re-entrant, because a signal
# handler may run a capture.
_lock = threading.RLock()


@contextmanager
def fresh_default_client(
    environment: Mapping[str, str] = {}, keeps_other: bool = True, **changes: Any
) -> Iterator[None]:
    """Let the module make a new default client with these settings changed.

    Blocks of several threads or tasks may end in any order.

    :param environment: variables to set in the environment
    :param keeps_other: whether a default client of another class than `Client` stays
    """
    module = vars(htevents)
    with _lock:
        state = _State()
        default = state.module['default_client']
        last, given = state.module['_made']
        stays = False
        if default is None or default is not last():
            is_plain = type(default) is htevents.Client
            given = _settings_of(default) if is_plain else {}
            stays = keeps_other and default is not None and not is_plain
        os.environ.update(environment)
        _states.append(state)
        try:
            if not stays:
                module.update(changes, default_client=None)
                if given:
                    htevents.configure(**dict(given, **changes))
        except BaseException:
            _end(state)
            raise
    try:
        yield
    finally:
        inside = _end(state)
        client = inside.module.get('default_client')
        if client is not None and client is not default:
            if client is inside.module['_made'][0]():
                client.shutdown(10)
            elif isinstance(client, htevents.Client):
                client.flush(10)  # the application assigned it, and may go on to use it


def _settings_of(client: htevents.Client) -> Dict[str, Any]:
    """Return the settings of a client that change its messages and its calls."""
    given = _picked(vars(client), settings.NAMES)
    given.update(before_send=client._before_send, trace_context=client._trace_context)
    return given


def _end(state: _State) -> _State:
    """End the block that returns to a state. Return the state that it had inside."""
    with _lock:
        index = _states.index(state)
        del _states[index]
        inside = _State()
        if index == len(_states):
            state.restore()
        else:  # a later block is still open, and returns to our state
            later = _states[index]
            inside.module = later.module
            later.module, later.environment = state.module, state.environment
    return inside
