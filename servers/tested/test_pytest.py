"""Tests of the shop with pytest, pytest-django, pytest-asyncio and xdist."""

import os
from unittest import mock

import app
import pytest
import shop

import hightouch.htevents as htevents
from hightouch.htevents.testing import Events, capture


def test_an_order_is_tracked(htevents_capture):
    shop.order('user-1', 9.5, 3)
    htevents_capture.assert_tracked(
        'Order Placed',
        user_id='user-1',
        properties={'total': 12.5, 'products': [{'price': 9.5}, {'price': mock.ANY}]},
    )
    assert len(htevents_capture.find(event='Order Placed')) == 2
    assert 'card' not in htevents_capture[0]['properties']


def test_a_failure_says_what_came_nearest(htevents_capture):
    shop.order('user-1', 9.5)
    with pytest.raises(AssertionError) as failure:
        htevents_capture.assert_tracked('Order Placed', properties={'total': 9})
    assert 'properties.total: expected 9, got 9.5' in str(failure.value)


@pytest.mark.parametrize('number', range(20))
def test_a_test_begins_with_an_open_client_and_no_events(htevents_capture, number):
    assert htevents_capture.none()
    shop.order('user-%d' % number, number)
    assert len(htevents_capture) == 2
    shop.close()
    assert htevents.track('user', 'late') == (False, mock.ANY)


@pytest.mark.asyncio
async def test_a_coroutine_tracks(htevents_capture):
    await shop.greet('user-1')
    htevents_capture.assert_event(type='identify', traits={'greeted': True}, count=1)


@pytest.mark.django_db(transaction=True)
def test_a_view_tracks_what_was_committed(htevents_capture, client):
    client.get('/sign-up', {'name': 'jane'})
    htevents_capture.assert_tracked('Signed Up', user_id='jane', count=1)
    client.raise_request_exception = False
    assert client.get('/sign-up', {'name': 'jane'}).status_code == 500
    assert len(htevents_capture) == 1


@pytest.mark.django_db
def test_a_view_in_a_transaction_of_the_test(
    htevents_capture, client, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        client.get('/sign-up', {'name': 'jane'})
        assert htevents_capture.none()
    htevents_capture.assert_tracked('Signed Up', user_id='jane')


def test_an_outage_loses_nothing(htevents_collector):
    htevents_collector.script(503, 'reset')
    shop.order('user-1', 9.5)
    assert htevents.flush()
    Events(htevents_collector.events).assert_tracked('Order Placed', count=1)
    assert len(htevents_collector.requests) == 3


@capture()
def test_the_decorator_passes_its_events(events):
    shop.order('user-1', 9.5)
    events.assert_tracked('Order Placed', properties={'total': 9.5}, count=2)


@pytest.mark.parametrize('fixture', ['htevents_capture', 'htevents_collector'])
def test_settings_may_be_patched(request, monkeypatch, fixture):
    request.getfixturevalue(fixture)
    htevents.track('user', 'patched')
    monkeypatch.setattr(htevents, 'default_client', None)
    monkeypatch.setattr(htevents, 'gzip', True)
    for name in ('WRITE_KEY', 'HOST', 'MAX_RETRIES'):
        monkeypatch.setenv('HTEVENTS_' + name, '1')
    assert htevents.gzip


def test_without_a_fixture_the_shop_sends():
    assert not htevents.gzip
    assert not [name for name in os.environ if name.startswith('HTEVENTS_')]
    accepted, message = htevents.track('user', 'real')
    assert accepted
    app.note(message['messageId'])
    assert htevents.flush()
    assert os.listdir(os.environ['SPOOL'])
