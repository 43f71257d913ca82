"""Tests of the shop with nothing but unittest and Django."""

import asyncio
import unittest

import app
import shop
from django.core.management import call_command
from django.test import TestCase

from hightouch.htevents import testing


def setUpModule():
    call_command('migrate', verbosity=0)


class OrderTest(unittest.TestCase):
    def setUp(self):
        capture = testing.capture()
        self.events = capture.__enter__()
        self.addCleanup(capture.__exit__, None, None, None)

    def test_an_order_is_tracked(self):
        shop.order('user-1', 9.5)
        self.events.assert_tracked('Order Placed', properties={'total': 9.5}, count=2)
        shop.close()

    def test_no_order_no_event(self):
        self.assertTrue(self.events.none())

    def test_a_coroutine_tracks(self):
        asyncio.new_event_loop().run_until_complete(shop.greet('user-1'))
        self.events.assert_event(type='identify', user_id='user-1')


class DeliveryTest(unittest.TestCase):
    def test_without_a_capture_the_shop_sends(self):
        accepted, message = shop.htevents.track('user', 'real')
        self.assertTrue(accepted)
        app.note(message['messageId'])
        self.assertTrue(shop.htevents.flush())

    def test_an_outage_loses_nothing(self):
        with testing.collector(faults=[503]) as collector:
            shop.order('user-1', 9.5)
            self.assertTrue(shop.htevents.flush())
            testing.Events(collector.events).assert_tracked('Order Placed', count=1)


class ViewTest(TestCase):
    @testing.capture()
    def test_a_view_tracks_what_was_committed(self, events):
        with self.captureOnCommitCallbacks(execute=True):
            self.client.get('/sign-up', {'name': 'jane'})
            self.assertTrue(events.none())
        events.assert_tracked('Signed Up', user_id='jane', properties={'plan': 'pro'})


if __name__ == '__main__':
    unittest.main()
