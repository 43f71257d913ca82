"""Fixtures for pytest: `htevents_capture` and `htevents_collector`.

pytest imports this module in every run where the package is installed. So it is no part of the
package, whose import takes longer, and imports it where a test uses a fixture.
"""

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, ContextManager, Iterator, TypeVar

import pytest

if TYPE_CHECKING:
    from hightouch.htevents.collector import Collector
    from hightouch.htevents.testing import Events

_Given = TypeVar('_Given')


@contextmanager
def _patched(
    monkeypatch: 'pytest.MonkeyPatch', block: 'ContextManager[_Given]'
) -> 'Iterator[_Given]':
    """Run a block that restores the default client and the settings before ``monkeypatch`` does.

    The undo of monkeypatch puts back the default client that a test has patched, which is closed
    then, and fails for a setting that is not there any more. So the undo of the first entry puts
    back the right client, and the last entries are the settings that the block removes.
    """
    from hightouch import htevents

    settings = vars(htevents)
    monkeypatch.setitem(settings, 'default_client', settings['default_client'])
    with block as given:
        yield given
        inside = dict(settings)
    for name in set(inside) - set(settings):
        monkeypatch.setitem(settings, name, inside[name])


@pytest.fixture
def htevents_capture(monkeypatch: 'pytest.MonkeyPatch') -> 'Iterator[Events]':
    """What every client of the process tracks in a test; nothing is sent.

    See ``hightouch.htevents.testing.capture``.
    """
    from hightouch.htevents.testing import capture

    with _patched(monkeypatch, capture()) as events:
        yield events


@pytest.fixture
def htevents_collector(monkeypatch: 'pytest.MonkeyPatch') -> 'Iterator[Collector]':
    """A real collector on loopback, to which the default client sends.

    See ``hightouch.htevents.testing.collector``.
    """
    from hightouch.htevents.testing import collector

    # The undo of a test's patch puts a variable of the collector back, after the collector's
    # end. The undo of these entries comes after it.
    for name in ('HTEVENTS_WRITE_KEY', 'HTEVENTS_HOST', 'HTEVENTS_SEND'):
        before = os.environ.get(name)
        monkeypatch.setenv(name, before or '')
        if before is None:
            del os.environ[name]
    with _patched(monkeypatch, collector()) as running:
        yield running
