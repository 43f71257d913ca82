"""Rare requests of the Django application, sent without a server."""

import asyncio
import logging
import tempfile

import django_app
import glue
from django.contrib import auth
from django.db import connection
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from hightouch.htevents import scope
from hightouch.htevents.contrib.django import ScopeMiddleware

HOST = 'localhost'  # which Django allows
EVENTS = []
WARNINGS = []


def track(request, **ids):
    accepted, message = glue.client.track(event='case', **ids)
    glue.note(message['messageId'])
    EVENTS.append(message)
    return HttpResponse()


async def async_track(request):
    return track(request, anonymous_id='anonymous')


def user_of_last():
    return EVENTS[-1]['userId']


class Handler(logging.Handler):
    def emit(self, record):
        WARNINGS.append(record.getMessage())


class OwnMiddleware(ScopeMiddleware):
    def user_id(self, user):
        return 'own-%s' % user.username


def request_of(client, **extra):
    """Return a request with the session of a client, as the middlewares of Django make it."""
    from django.contrib.auth.middleware import AuthenticationMiddleware
    from django.contrib.sessions.middleware import SessionMiddleware

    request = RequestFactory(HTTP_HOST=HOST).get('/', **extra)
    request.COOKIES.update({key: each.value for key, each in client.cookies.items()})
    for kind in (SessionMiddleware, AuthenticationMiddleware):
        kind(lambda request: HttpResponse()).process_request(request)
    return request


def run(coroutine):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def logged_in():
    client = Client(HTTP_HOST=HOST)
    client.force_login(auth.get_user_model().objects.get(pk=1), django_app.BACKEND)
    return client


def no_query_without_an_event(client):
    request = request_of(client)
    with CaptureQueriesContext(connection) as queries:
        ScopeMiddleware(lambda request: HttpResponse())(request)
    assert not queries.captured_queries and not request.session.accessed


def a_subclass_tells_the_id(client):
    OwnMiddleware(track)(request_of(client))
    assert user_of_last() == 'own-user-1'


def a_user_that_is_set_counts(client):
    request = request_of(client)
    request.user = auth.get_user_model()(pk=77)
    ScopeMiddleware(track)(request)
    assert user_of_last() == '77'


def no_user_without_middlewares(client):
    request = RequestFactory(HTTP_HOST=HOST).get('/')
    ScopeMiddleware(lambda request: track(request, anonymous_id='anonymous'))(request)
    assert user_of_last() is None


def a_file_is_left_alone(client):
    with tempfile.TemporaryFile() as file:
        given = FileResponse(file)
        found = ScopeMiddleware(lambda request: given)(request_of(client))
        assert found is given and found.file_to_stream is file
        found.close()


def a_file_response_of_a_generator_runs_in_the_scope(client):
    def body():
        track(None, anonymous_id='anonymous')
        yield b'1'

    def started(request):
        return FileResponse(body(), filename='export.csv')

    response = ScopeMiddleware(started)(request_of(client))
    assert list(response) == [b'1']
    assert user_of_last() == '1'


def a_stream_keeps_its_blocks_and_is_closed_in_the_scope(client):
    def body():
        try:
            with scope(context={'own': True}):
                track(None)
                yield b'1'
                track(None)
                yield b'2'
        finally:
            track(None)

    def started(request):
        return StreamingHttpResponse(body())

    request = request_of(client)
    response = ScopeMiddleware(started)(request)
    steps = iter(response)
    next(steps), next(steps)
    response.close()  # early, as of a client that is gone
    assert [each['userId'] for each in EVENTS[-3:]] == ['1'] * 3, EVENTS[-3:]
    found = [each['context'].get('own') for each in EVENTS[-3:]]
    assert found == [True, True, None], found


def an_async_stream_that_is_given_up_ends_in_the_scope(client):
    async def give_up():
        ended = asyncio.Event()

        async def body():
            try:
                track(None)
                yield b'1'
                yield b'2'
            finally:
                track(None, anonymous_id='anonymous')
                ended.set()

        async def started(request):
            return StreamingHttpResponse(body())

        response = await ScopeMiddleware(started)(request_of(client))
        steps = response.__aiter__()
        await steps.__anext__()
        await steps.aclose()  # as Django does when the client is gone
        response.close()
        del steps, response
        await asyncio.wait_for(ended.wait(), 60)

    run(give_up())
    assert [each['userId'] for each in EVENTS[-2:]] == ['1'] * 2, EVENTS[-2:]


def async_chain(client):
    run(ScopeMiddleware(async_track)(request_of(client)))
    assert user_of_last() == '1'


def async_chain_without_a_session(client):
    request = request_of(Client(HTTP_HOST=HOST))
    run(ScopeMiddleware(async_track)(request))
    assert user_of_last() is None and not request.session.accessed


def async_view_in_a_sync_chain(client):
    from asgiref.sync import async_to_sync

    request = request_of(client)

    def get_response(request):
        middleware.process_view(request, async_track, (), {})
        return async_to_sync(async_track)(request)

    middleware = ScopeMiddleware(get_response)
    middleware(request)
    assert user_of_last() == '1'


def a_user_that_cannot_be_found_is_one_warning(client):
    def failing(user):
        raise LookupError('secret')

    def view(request):
        return track(request, anonymous_id='anonymous')

    middleware = ScopeMiddleware(view)
    middleware.user_id = failing
    middleware(request_of(client))
    assert user_of_last() is None
    if ScopeMiddleware.async_capable:
        request = request_of(client)

        async def auser():
            raise LookupError('secret')

        request.auser = auser
        run(ScopeMiddleware(async_track)(request))
        assert user_of_last() is None
    assert len(WARNINGS) == 1 and 'secret' not in WARNINGS[0], WARNINGS


CASES = [
    no_query_without_an_event,
    a_subclass_tells_the_id,
    a_user_that_is_set_counts,
    no_user_without_middlewares,
    a_file_is_left_alone,
    a_file_response_of_a_generator_runs_in_the_scope,
    a_stream_keeps_its_blocks_and_is_closed_in_the_scope,
]
if ScopeMiddleware.async_capable:
    CASES += [
        async_chain,
        async_chain_without_a_session,
        async_view_in_a_sync_chain,
    ]
    if hasattr(StreamingHttpResponse, '__aiter__'):  # since Django 4.2
        CASES.append(an_async_stream_that_is_given_up_ends_in_the_scope)
CASES.append(a_user_that_cannot_be_found_is_one_warning)

if __name__ == '__main__':
    logging.getLogger('hightouch').addHandler(Handler())
    django_app.prepare(1)
    for case in CASES:
        case(logged_in())
        print('passed', case.__name__, flush=True)
