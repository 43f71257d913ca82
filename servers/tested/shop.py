"""A shop that tracks: the application of which the tests beside it are an example."""

import os
import sys

import django
from django.conf import settings

import hightouch.htevents as htevents

settings.configure(
    ALLOWED_HOSTS=['testserver'],
    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}},
    DEFAULT_AUTO_FIELD='django.db.models.AutoField',
    INSTALLED_APPS=['django.contrib.auth', 'django.contrib.contenttypes'],
    ROOT_URLCONF=__name__,
    SECRET_KEY='shop',
    USE_TZ=True,
)
django.setup()

from django.contrib.auth import get_user_model  # noqa: E402
from django.db import transaction  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402


def scrub(message):
    """Drop what must not leave the shop."""
    message.get('properties', {}).pop('card', None)
    return message


htevents.configure(
    write_key='shop',
    host=os.environ['COLLECTOR'],
    before_send=scrub,
    spool_dir=os.environ['SPOOL'],
)
# A tenant's own client.
tenant = htevents.Client('tenant', host=os.environ['COLLECTOR'], send=False)


def sign_up(request):
    """Make a user. A name that is taken sends no event."""
    with transaction.atomic(), htevents.deferred(transaction.on_commit):
        name = request.GET['name']
        htevents.track(name, 'Signed Up', {'plan': 'pro'})
        get_user_model().objects.create(username=name)
    return HttpResponse()


def order(user_id, *prices):
    lines = [{'price': price, 'quantity': 1} for price in prices]
    properties = {'total': sum(prices), 'products': lines, 'card': '4242'}
    htevents.track(user_id, 'Order Placed', properties)
    tenant.track(user_id, 'Order Placed', {'total': sum(prices)})


async def greet(user_id):
    htevents.identify(user_id, {'greeted': True})


def close():
    """End as the shop does in production: a test that calls it must not harm the others."""
    htevents.shutdown()


urlpatterns = [path('sign-up', sign_up)]
sys.modules.setdefault('shop', sys.modules[__name__])
