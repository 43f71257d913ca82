"""Fixtures for pytest: `htevents_capture` and `htevents_collector`.

pytest imports this module in every run where the package is installed. So it is no part of the
package, whose import takes longer, and imports it where a test uses a fixture.
"""

from typing import TYPE_CHECKING, Iterator

import pytest

if TYPE_CHECKING:
    from hightouch.htevents.collector import Collector
    from hightouch.htevents.testing import Events


@pytest.fixture
def htevents_capture() -> 'Iterator[Events]':
    """What every client of the process tracks in a test; nothing is sent.

    See ``hightouch.htevents.testing.capture``.
    """
    from hightouch.htevents.testing import capture

    with capture() as events:
        yield events


@pytest.fixture
def htevents_collector() -> 'Iterator[Collector]':
    """A real collector on loopback, to which the default client sends.

    See ``hightouch.htevents.testing.collector``.
    """
    from hightouch.htevents.testing import collector

    with collector() as running:
        yield running
