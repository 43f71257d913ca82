"""Scopes: the user and the context that the calls in a request, a job or a task share.

A scope is the object of one open block. All contexts that share the block share the object, so
that a login in a thread or a task of a request counts for the whole request.

A user id and an anonymous id on one event tell the warehouse permanently that both are one
person. So `_joined` never puts ids together that may belong to two people.
"""

from functools import partial
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    List,
    Mapping,
    Optional,
    Tuple,
    TypeVar,
    Union,
)

from hightouch.htevents._context import blocks
from hightouch.htevents._context.blocks import Block, Opening, around, replaced
from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.logs import Sparse, log
from hightouch.htevents.arguments import as_text, checked_id, copied, is_missing
from hightouch.htevents.encoding import plain_copy
from hightouch.htevents.errors import ValidationError, name_of
from hightouch.htevents.findings import Finding, Findings

# A user id and an anonymous id, each a text or None.
Person = Tuple[Optional[str], Optional[str]]

Id = Union[str, int, float]

_Function = TypeVar('_Function', bound=Callable[..., Any])

NOBODY: Person = (None, None)

_findings = Findings()
_failures = Sparse()


class Scope(Block):
    """The values of an open scope. Safe to use from all threads.

    No lock guards them: a person is replaced as a whole, and the dicts of plain values are
    changed in single steps.

    :param find_user: called with an event that needs it while no user id is set; returns an
        id or None
    :param find_context: called with the first event; returns more of the context
    """

    __slots__ = (
        '_person',
        '_context',
        'integrations',
        '_find_user',
        '_find_context',
    )

    def __init__(
        self,
        person: Person = NOBODY,
        context: Optional[Dict[str, Any]] = None,
        integrations: Optional[Dict[str, Any]] = None,
        find_user: Optional[Callable[[], Any]] = None,
        find_context: Optional[Callable[[], Dict[str, Any]]] = None,
    ) -> None:
        super().__init__()
        self._person = person
        self._context = context or {}
        self.integrations = integrations or {}
        self._find_user = find_user
        self._find_context = find_context

    @property
    def person(self) -> Person:
        user_id, anonymous_id = self._person
        if user_id is None and self._find_user is not None:
            find = self._find_user
            user_id = _found(lambda: as_text(checked_id('user_id', find())), 'user')
            user_id = user_id or None
        return user_id, anonymous_id

    @property
    def context(self) -> Dict[str, Any]:
        find = self._find_context
        if find is not None:
            for key, value in (_found(find, 'context') or {}).items():
                self._context.setdefault(key, value)  # an update may have come first
            self._find_context = None
        return self._context

    def update(self, other: 'Scope') -> None:
        """Take over what another scope gives."""
        user_id, anonymous_id = other._person
        if user_id is not None:
            # Without a visitor, the user that was there does not matter.
            before = self.person if self._person[1] else NOBODY
            self._person = _joined(other._person, before)
        elif anonymous_id is not None:
            # Not the user that was found: the next event looks for it again.
            self._person = self._person[0], anonymous_id
        self._context.update(other.context)
        self.integrations.update(other.integrations)


def _found(find: Callable[[], Any], what: str) -> Any:
    """Return what code of the application finds; None if it raises."""
    try:
        with replaced(()):  # it may track, or make a query whose hooks track
            return find()
    except Exception as error:
        raise_interruption(error)
        if _failures.is_due(what):
            # Without its text, which may quote anything.
            log.warning(
                'The %s of a request could not be found (%s): its events have only what '
                'their calls give',
                what,
                name_of(type(error)),
            )
    return None


def _joined(inner: Person, outer: Person, is_call: bool = False) -> Person:
    """Complete the ids of an inner place by those of an outer one, if that is safe.

    :param is_call: whether the inner ids are those of a call. A call that names a user in a
        scope without one may mean anybody. A scope that does so is a login
    """
    user_id, anonymous_id = inner
    if is_missing(user_id):
        if is_missing(anonymous_id):
            return outer
        if outer[1] in (None, anonymous_id):
            user_id = outer[0]
    elif is_missing(anonymous_id):
        if outer[0] == user_id or outer[0] is None and not is_call:
            anonymous_id = outer[1]
    return user_id, anonymous_id


def _scopes() -> List[Scope]:
    return [each for each in blocks.opened() if isinstance(each, Scope)]


def _person(scopes: List[Scope]) -> Person:
    person = NOBODY
    for each in scopes:
        person = _joined(each.person, person)
    return person


def ids(user_id: Any, anonymous_id: Any) -> Tuple[Any, Any]:
    """Return both ids of a call as text. `complete` adds those of the open scopes.

    :raises ValidationError: when an id is of a wrong type, or both are missing
    """
    kind = type(user_id)
    # The common case first, in one test, because every event passes here.
    if kind is str and user_id and anonymous_id is None:
        return user_id, None
    user_id = checked_id('user_id', user_id)
    # With a user_id, the anonymous_id may be of any type.
    if is_missing(user_id):
        anonymous_id = checked_id('anonymous_id', anonymous_id)
        if is_missing(anonymous_id) and not blocks.opened():
            raise _nobody()
    return as_text(user_id), as_text(anonymous_id)


def _nobody() -> ValidationError:
    return ValidationError(
        'user_id or anonymous_id: expected a str or a number in one of them, got neither'
    )


def current_user() -> Optional[str]:
    """Return the user id of the open scopes; None if they have none."""
    return _person(_scopes())[0]


def complete(message: Dict[str, Any], found: List[Finding]) -> None:
    """Add what a message does not give itself, from the open scopes.

    :param found: list that collects the findings
    :raises ValidationError: when neither the message nor a scope has an id
    """
    scopes = _scopes()
    if message['type'] != 'alias':  # which has no anonymous id
        given = message['userId'], message['anonymousId']
        has_visitor = not given[1] and any([each._person[1] for each in scopes])
        # Otherwise the user of the scopes does not matter. To find it may take a query.
        if has_visitor or is_missing(given[0]):
            given = _joined(given, _person(scopes), is_call=True)
        if is_missing(given[0]) and is_missing(given[1]):
            raise _nobody()
        message['userId'], message['anonymousId'] = given
    for scope in reversed(scopes):
        for name in ('context', 'integrations'):
            mine, theirs = message[name], dict(getattr(scope, name))
            for key, value in theirs.items():
                if key not in mine:
                    # Copied: the application may change the message that it gets.
                    mine[key] = plain_copy(value, name, 2, found)


def _made(user_id: Any, anonymous_id: Any, context: Any, integrations: Any) -> Scope:
    found: List[Finding] = []
    person = (
        as_text(checked_id('user_id', user_id)) or None,
        as_text(checked_id('anonymous_id', anonymous_id)) or None,
    )
    made = Scope(
        person,
        copied('context', context, found),
        copied('integrations', integrations, found),
    )
    if found:
        _findings.log(found)
    return made


def entered(scope: Scope) -> ContextManager[None]:
    """Let a ``with`` block use a scope: a request or task, which leaves nothing behind."""
    return replaced(blocks.opened() + (scope,))


def scope(
    user_id: Optional[Id] = None,
    anonymous_id: Optional[Id] = None,
    context: Optional[Mapping[str, object]] = None,
    integrations: Optional[Mapping[str, object]] = None,
) -> Opening:
    """Set the ids, the context and the integrations of calls that do not give their own.

    It holds for all clients, and for the current thread or asyncio task: a task that is
    started in the block keeps the scope, another thread needs `carry`. Scopes nest. The keys
    of ``context`` and ``integrations`` are merged one by one: the inner scope's win, and the
    keys of a call win over all.

    A nested scope with a ``user_id`` in a scope that has only an ``anonymous_id`` is the login
    of that visitor. The ids of two people are never joined: a call with a ``user_id`` gets the
    ``anonymous_id`` only if that user is the scope's, and a call with an ``anonymous_id``
    does not get the ``user_id`` of a scope with another one.

    ``@scope(...)`` puts each call of a function, also of an ``async def``, into a scope.

    :param user_id: str or number; None: not set here
    :param anonymous_id: str or number; None: not set here
    :param context: dict; None: empty
    :param integrations: dict; None: empty
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    """
    return Opening(partial(_made, user_id, anonymous_id, context, integrations))


def update_scope(
    user_id: Optional[Id] = None,
    anonymous_id: Optional[Id] = None,
    context: Optional[Mapping[str, object]] = None,
    integrations: Optional[Mapping[str, object]] = None,
) -> None:
    """Add to the innermost open scope, for example the user after a login.

    It holds for everything that runs in that scope, also in other threads and tasks, until
    the scope ends. A user other than the scope's ends the use of its ``anonymous_id``. Without
    an open scope nothing happens, and one warning is logged. May be called from any thread.

    :param user_id: str or number; None: unchanged
    :param anonymous_id: str or number; None: unchanged
    :param context: dict whose keys are added or replaced; None: unchanged
    :param integrations: dict whose keys are added or replaced; None: unchanged
    :raises ValidationError: (an ``AssertionError``) when an argument is wrong
    """
    made = _made(user_id, anonymous_id, context, integrations)
    scopes = _scopes()
    if scopes:
        scopes[-1].update(made)
    elif _failures.is_due('no scope'):
        log.warning(
            'update_scope() has no effect outside of a scope: open one with htevents.scope() '
            'or a middleware of hightouch.htevents.contrib'
        )


def snapshot() -> Optional[Scope]:
    """Return a scope with the values of all open ones, as they are now; None without any."""
    scopes = _scopes()
    if not scopes:
        return None
    context: Dict[str, Any] = {}
    integrations: Dict[str, Any] = {}
    for each in scopes:
        context.update(each.context)
        integrations.update(each.integrations)
    return Scope(_person(scopes), context, integrations)


def carry(function: _Function) -> _Function:
    """Return a function that runs in the current scope, on any thread, at any time.

    ::

        executor.submit(htevents.carry(send_receipt), order)

    It is the scope itself: a login in the function counts for the whole scope, and the
    function sees later updates. A block of `deferred` is carried as well, as long as it is
    open. The function may be an ``async def``.

    :param function: any callable, but no generator function
    :raises ValidationError: (an ``AssertionError``) for other objects
    """
    carried = blocks.opened()

    def inside() -> ContextManager[None]:
        # A deferred block around the call counts as well.
        own = [
            each
            for each in blocks.opened()
            if each not in carried and not isinstance(each, Scope)
        ]
        return replaced(carried + tuple(own))

    return around(inside, function)
