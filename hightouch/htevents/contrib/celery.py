"""Carries the scope in which a task of Celery is published to the worker that runs it.

::

    app = Celery('shop')
    carry_scope(app)

The application calls it where it makes the app, so that publishers and workers both do.
"""

import json
from typing import Any, Dict, Optional
from weakref import WeakSet

from celery import signals

from hightouch.htevents._context import blocks
from hightouch.htevents._context.scopes import Scope, snapshot
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents.encoding import encode

HEADER = 'htevents_scope'

# Bytes of a header. Brokers limit a message's headers, and an event cannot have more. The
# header of a larger scope has only the ids.
MOST_BYTES = 32 << 10

_apps: 'WeakSet[Any]' = WeakSet()


def carry_scope(app: Any) -> None:
    """Let the tasks of a Celery app run in the scope in which they were published.

    Retries, chains and the tasks that a task publishes are included. Each message gets one
    header, with the values of the open scopes: the ids, the context, the integrations.
    A header over 32 KB has only the ids. The user is looked for when a task is published.
    Celery does not tell for which app a message is published, so the messages of other apps
    in the process get it, too. A second call for an app does nothing.

    :param app: the Celery app
    """
    # A proxy such as celery.current_app stands for the app.
    _apps.add(getattr(app, '_get_current_object', lambda: app)())
    for signal, receiver in (
        (signals.before_task_publish, _publish),
        (signals.task_prerun, _enter),
        (signals.task_postrun, _leave),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=receiver.__module__)


def _publish(headers: Any = None, **_: Any) -> None:
    scope = snapshot()
    if scope is not None and isinstance(headers, dict):
        headers[HEADER] = written(scope)


def _is_carried_to(task: Any) -> bool:
    """Whether a task gets a scope. An eager one runs in the scope of its caller."""
    return task is not None and task.app in _apps and not task.request.is_eager


def _enter(task: Any = None, **_: Any) -> None:
    if _is_carried_to(task):
        scope = read(getattr(task.request, HEADER, None))
        # Nothing of an earlier task whose end was interrupted.
        blocks.restart(() if scope is None else (scope,))


def _leave(task: Any = None, **_: Any) -> None:
    if _is_carried_to(task):
        blocks.restart(())


def written(scope: Scope) -> str:
    """Return the header for a scope."""
    user_id, anonymous_id = scope.person
    values: Dict[str, Any] = {'userId': user_id, 'anonymousId': anonymous_id}
    text, _ = encode(
        dict(values, context=scope.context, integrations=scope.integrations)
    )
    if len(text) > MOST_BYTES:
        text, _ = encode(values)
    return text.decode('utf-8')


def read(header: Any) -> Optional[Scope]:
    """Return the scope in a header; None if it cannot be read."""
    try:
        values = json.loads(header)
        person = values['userId'], values['anonymousId']
        given = values.get('context', {}), values.get('integrations', {})
    except Exception as error:
        raise_interruption(error)
        return None
    is_known = all(each is None or isinstance(each, str) for each in person)
    if is_known and all(isinstance(each, dict) for each in given):
        return Scope(person, *given)
    return None
