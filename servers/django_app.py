"""A Django application that tracks in each request, and the shop of the suite."""

import asyncio
import os
import sys
import urllib.request

import django
import glue
from app import client, note
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=['*'],
    DATABASES={
        'default': {
            'ENGINE': 'django.db.backends.sqlite3',
            'NAME': os.environ['DATABASE'],
            'OPTIONS': {'timeout': 60},
        }
    },
    DEFAULT_AUTO_FIELD='django.db.models.AutoField',
    HTEVENTS_TRUSTED_PROXIES=[glue.TRUSTED],
    INSTALLED_APPS=[
        'django.contrib.auth',
        'django.contrib.contenttypes',
        'django.contrib.sessions',
    ],
    MIDDLEWARE=[
        'django.contrib.sessions.middleware.SessionMiddleware',
        'django.contrib.auth.middleware.AuthenticationMiddleware',
        'hightouch.htevents.contrib.django.ScopeMiddleware',
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY='servers',
    USE_TZ=True,
)
django.setup()

from asgiref.sync import sync_to_async  # noqa: E402
from django.contrib import auth  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import transaction  # noqa: E402
from django.http import HttpResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from hightouch.htevents import deferred  # noqa: E402

BACKEND = 'django.contrib.auth.backends.ModelBackend'
# Before Django 5.0 an async view uses the sync functions.
alogin = getattr(auth, 'alogin', None) or sync_to_async(auth.login)
alogout = getattr(auth, 'alogout', None) or sync_to_async(auth.logout)


def prepare(count):
    """Make the database, with users whose primary keys are 1 to ``count``."""
    call_command('migrate', verbosity=0)
    for number in range(1, count + 1):
        auth.get_user_model().objects.create(id=number, username='user-%d' % number)


def user_of(request):
    return auth.get_user_model().objects.get(pk=request.GET['number'])


def home(request):
    if 'utm_source' in request.GET:
        glue.tracked('Page Viewed', request.GET['number'])
    response = HttpResponse('home')
    # A request that tracks nothing must not depend on the session.
    assert 'utm_source' in request.GET or not request.session.accessed
    return response


def login(request):
    number = request.GET['number']
    glue.tracked('before login', number)
    auth.login(request, user_of(request), BACKEND)
    glue.tracked('after login', number)
    return HttpResponse('in')


def logout(request):
    number = request.GET['number']
    glue.tracked('before logout', number)
    auth.logout(request)
    glue.tracked('after logout', number)
    return HttpResponse('out')


async def async_login(request):
    number = request.GET['number']
    glue.tracked('before login', number)
    user = await sync_to_async(user_of)(request)
    await alogin(request, user, BACKEND)
    glue.tracked('after login', number)
    if hasattr(request, 'auser'):
        assert await request.auser() == user, 'the middleware hides the login'
    return HttpResponse('in')


async def async_logout(request):
    number = request.GET['number']
    glue.tracked('before logout', number)
    await alogout(request)
    glue.tracked('after logout', number)
    return HttpResponse('out')


def work(request):
    number = request.GET['number']
    glue.track_in_threads(number)
    return StreamingHttpResponse(glue.body(number))


async def async_work(request):
    number = request.GET['number']
    await glue.track_in_tasks(number)
    await sync_to_async(glue.tracked)('sync_to_async', number)
    # Nobody waits for it: it may end after the request.
    request.task = asyncio.ensure_future(late(number))
    return StreamingHttpResponse(glue.async_body(number))


async def late(number):
    await asyncio.sleep(0.1)
    glue.tracked('late', number)


async def async_view(request):
    """Track in a view whose middlewares may be sync."""
    glue.tracked('view', request.GET['number'])
    return HttpResponse('done')


# -- the shop --------------------------------------------------------------------------


class NoMoney(Exception):
    pass


def order(request):
    """Order in a transaction; the second of two is rolled back."""
    from glue_tasks import send_receipt

    number = request.GET['number']
    for order_id in ('%s-1' % number, '%s-2' % number):
        try:
            request.session['order'] = order_id
            with transaction.atomic(), deferred(transaction.on_commit):
                request.session.save()  # SQLite: the first query of a transaction writes
                _, message = client.track(
                    event='Order Completed',
                    properties={'number': int(number), 'order': order_id},
                )
                transaction.on_commit(lambda: note(message['messageId']))
                transaction.on_commit(lambda: send_receipt.delay(number))
                if order_id.endswith('-2'):
                    raise NoMoney
        except NoMoney:
            pass
    ask_for_stock(request)
    return HttpResponse('ordered')


def ask_for_stock(request):
    """Call the other service as this one was called."""
    url = 'http://127.0.0.1:%s/stock?' % os.environ['SERVICE']
    names = ('Cookie', 'X-Forwarded-For', 'Accept-Language')
    headers = {name: request.headers[name] for name in names}
    headers['X-User'] = str(request.user.pk)
    called = urllib.request.Request(url + request.META['QUERY_STRING'], headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(called, timeout=60).read()


urlpatterns = [
    path('', home),
    path('login', login),
    path('logout', logout),
    path('async-login', async_login),
    path('async-logout', async_logout),
    path('work', work),
    path('async-work', async_work),
    path('async-view', async_view),
    path('order', order),
]


if __name__ == '__main__':
    prepare(int(sys.argv[1]))
