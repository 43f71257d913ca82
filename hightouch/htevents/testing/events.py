"""The events that a test looks at: finds them, compares them, and says how they differ."""

import difflib
import json
import os
from contextlib import suppress
from datetime import datetime
from functools import partial
from numbers import Number
from types import FunctionType
from typing import (
    Any,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Union,
    overload,
)
from unittest import mock

from hightouch.htevents import encoding, forms
from hightouch.htevents._process.logs import printable
from hightouch.htevents.arguments import as_text
from hightouch.htevents.collector import WIRE_NAMES
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.settings import Message
from hightouch.htevents.stamps import to_iso

# The fields of an event by the names that the calls give them.
FIELDS = (
    'type',
    'event',
    'user_id',
    'anonymous_id',
    'previous_id',
    'group_id',
    'category',
    'name',
    'properties',
    'traits',
    'context',
    'integrations',
    'timestamp',
    'message_id',
)

# Characters of an event, of a value and of a key that a failure shows at most.
_SHOWN = 4000
_SHOWN_OF_VALUE = 200
_SHOWN_OF_KEY = 200

_MISSING = object()
_IS_MISSING = 'it is missing'


class Events(Sequence[Message]):
    """Events as they go on the wire, in the order of their calls. Safe to use from all threads.

    Fields are given by the names that the calls have: ``type``, ``event``, ``user_id``,
    ``anonymous_id``, ``previous_id``, ``group_id``, ``category``, ``name``, ``properties``,
    ``traits``, ``context``, ``integrations``, ``timestamp``, ``message_id``. A field matches
    if it is equal. A dict matches if its keys are there and match; other keys may be there as
    well. A list matches if each element does, a set in any order. Anything with an ``==`` of
    its own, such as ``mock.ANY``, may stand at any place. A date, a Decimal and other values
    that are no JSON match what a call makes of them.

    :param messages: the events, such as those of a `Collector`: ``Events(collector.events)``
    """

    def __init__(self, messages: Optional[List[Message]] = None) -> None:
        self._messages: List[Message] = [] if messages is None else messages

    @overload
    def __getitem__(self, index: int) -> Message:
        ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]:
        ...

    def __getitem__(self, index: Union[int, slice]) -> Any:
        return self._messages[index]

    def __len__(self) -> int:
        return len(self._messages)

    def __repr__(self) -> str:
        return '<Events: %s>' % (', '.join(map(_title, list(self))) or 'none')

    def find(self, **fields: Any) -> List[Message]:
        """Return the events that match all these fields; all events without any.

        :raises TypeError: when there is no field of that name
        """
        expected = _as_sent(fields)
        return [each for each in list(self) if not _differences(expected, each)]

    def assert_event(self, *, count: Optional[int] = None, **fields: Any) -> Message:
        """Check that an event matches all these fields, and return it.

        :param count: how many events have to match; None: at least one
        :returns: the first event that does; an empty dict with ``count=0``
        :raises AssertionError: that says what was expected, which event comes nearest, and
            where it differs
        :raises TypeError: when there is no field of that name
        """
        __tracebackhide__ = True  # pytest then shows the line of the test
        found = self.find(**fields)
        if len(found) != count if count is not None else not found:
            raise AssertionError(_failure(_as_sent(fields), list(self), found, count))
        return found[0] if found else {}

    def assert_tracked(
        self, event: Any = mock.ANY, *, count: Optional[int] = None, **fields: Any
    ) -> Message:
        """Check that an event was tracked, and return it: `assert_event` with type 'track'."""
        __tracebackhide__ = True
        return self.assert_event(count=count, type='track', event=event, **fields)

    def none(self, **fields: Any) -> bool:
        """Check that no event matches all these fields; without any, that there is none.

        :returns: True, so that ``assert events.none()`` reads well
        :raises AssertionError: that shows the first event that does
        """
        __tracebackhide__ = True
        found = self.find(**fields)
        if found:
            lines = ['expected no event' + _listed(_as_sent(fields))]
            lines.append('but got %d. The first one:' % len(found))
            raise AssertionError('\n'.join(lines + [_json(found[0])]))
        return True

    def clear(self) -> None:
        """Forget the events until now."""
        del self._messages[:]


def _as_sent(fields: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the fields by the keys of the wire, ids and the time as there."""
    expected = {}
    for name, value in fields.items():
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, 1)
            hint = 'did you mean %s?' % near[0] if near else ', '.join(FIELDS)
            raise TypeError('an event has no field %s (%s)' % (name, hint))
        if name.endswith('_id') and isinstance(value, Number):
            value = as_text(value)
        if name == 'timestamp' and isinstance(value, (str, datetime)):
            with suppress(ValidationError):  # a text that is no time equals none
                value = to_iso(value)
        expected[WIRE_NAMES.get(name, name)] = value
    return expected


def _differences(expected: Any, actual: Any, path: str = '') -> List[str]:
    """Return a line for each place where an event is not as expected."""
    lines: List[str] = []
    if _decides(type(expected)) and _matches(expected, actual):
        return []
    if isinstance(expected, Mapping) and isinstance(actual, dict):
        for key, value in expected.items():
            text = forms.key_text(key)
            shown = printable(text, _SHOWN_OF_KEY)
            there = '%s.%s' % (path, shown) if path else shown
            lines += _differences(value, actual.get(text, _MISSING), there)
        return lines
    if isinstance(expected, (list, tuple)) and isinstance(actual, list):
        if len(expected) == len(actual):
            for index, value in enumerate(expected):
                lines += _differences(value, actual[index], '%s[%d]' % (path, index))
            return lines
    elif _matches(expected, actual):
        return []
    elif actual is not _MISSING:
        form = _form(expected)
        if form is not expected:
            lines = _differences(form, actual, path)
            if not lines or isinstance(form, dict):
                return lines
    if actual is _MISSING:
        return ['%s: expected %s, %s' % (path, _short(expected), _IS_MISSING)]
    return ['%s: expected %s, got %s' % (path, *_contrast(expected, actual))]


def _decides(kind: type) -> bool:
    """Whether a class has an ``==`` of its own: one in Python, not of the standard library."""
    equals = kind.__eq__
    module = str(getattr(equals, '__module__', ''))
    return isinstance(equals, FunctionType) and not module.lstrip('_').startswith(
        'collections'
    )


def _matches(expected: Any, actual: Any) -> bool:
    """Whether a value that is no dict and no list is as expected."""
    if isinstance(expected, bool) or isinstance(actual, bool):
        if type(expected) in (int, float, bool) and type(actual) in (int, float, bool):
            return expected is actual  # 1 == True
    try:
        if actual is not _MISSING and expected == actual:
            return True
    except Exception:  # an array, for example, has no truth value
        pass
    if actual is _MISSING or forms.known_form(type(expected)) is None:
        return False
    form = json.loads(encoding.encode({'value': expected})[0].decode('utf-8'))['value']
    if isinstance(expected, (set, frozenset)) and isinstance(actual, list):
        text = partial(json.dumps, sort_keys=True)
        return sorted(map(text, form)) == sorted(map(text, actual))
    return type(form) is not type(expected) and not _differences(form, actual)


def _form(value: Any) -> Any:
    """Return an object as a call sends it; the object itself if a call would not send it.

    Its fields are left as they are: there may be matchers among them.
    """
    if isinstance(value, Iterator) or forms.known_form(type(value)) is not None:
        return value  # an iterator could be read only once
    problems: List[str] = []
    try:
        form = forms.form(value, list, problems.append)
    except Exception:  # the object's own code, or NotSendable
        return value
    return value if problems else form


def _failure(
    expected: Mapping[str, Any],
    events: Sequence[Message],
    found: Sequence[Message],
    count: Optional[int],
) -> str:
    wanted = 'an event' if count is None else '%d event(s)' % count
    lines = ['expected %s%s' % (wanted, _listed(expected))]
    if found:
        lines.append('but got %d:' % len(found))
        return '\n'.join(lines + ['    ' + _title(each) for each in found[:20]])
    if not events:
        return '\n'.join(lines + ['but got none at all.'])
    nearest = min(events, key=lambda each: _distance(expected, each))
    lines.append(
        'but none of %d events matches. The nearest one differs:' % len(events)
    )
    lines += ['    ' + each for each in _differences(expected, nearest)]
    lines += ['It is:', _json(nearest)]
    others = [each for each in events if each is not nearest]
    if others:
        lines += ['The others:'] + ['    ' + _title(each) for each in others[:20]]
    return '\n'.join(lines)


def _distance(expected: Mapping[str, Any], event: Message) -> float:
    """Return how far an event is from what is expected: names count most, then ids."""
    weights = {'type': 8, 'event': 8, 'name': 4, 'userId': 2, 'anonymousId': 2}
    total = 0.0
    for key, value in expected.items():
        actual = event.get(key, _MISSING)
        lines = _differences(value, actual)
        missing = [each for each in lines if each.endswith(_IS_MISSING)]
        wrong = len(lines) + len(missing) / 2
        if wrong and isinstance(value, str) and isinstance(actual, str):
            ratio = difflib.SequenceMatcher(None, value, actual).ratio()
            wrong *= 1 - ratio / 2
        total += weights.get(key, 1) * wrong
    return total


def _listed(expected: Mapping[str, Any]) -> str:
    lines = [
        '    %s: %s' % (key, _short(value, _SHOWN // 2))
        for key, value in expected.items()
    ]
    return '\n'.join([' with'] + lines) if lines else ''


def _title(event: Message) -> str:
    """Name an event in a line: its type, its name, and whose it is."""
    names = [repr(event[key]) for key in ('event', 'name') if event.get(key)]
    who = event.get('userId') or event.get('anonymousId')
    return ' '.join([str(event.get('type'))] + names + ['of %r' % (who,)])


def _short(value: Any, most: int = _SHOWN_OF_VALUE) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + '…'


def _contrast(expected: Any, actual: Any) -> List[str]:
    """Show two values. Of long ones only the part that differs."""
    texts = [repr(expected), repr(actual)]
    same = len(os.path.commonprefix(texts))
    begin = max(0, same - _SHOWN_OF_VALUE // 4)
    if same < _SHOWN_OF_VALUE // 2:
        begin = 0
    shown = []
    for text in texts:
        end = begin + _SHOWN_OF_VALUE
        shown.append('…' * (begin > 0) + text[begin:end] + '…' * (len(text) > end))
    return shown


def _json(event: Message) -> str:
    text = json.dumps(event, indent=4, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + '…'
