"""What an application may write, checked by ``mypy --strict`` and run by no test.

All is inside functions, so that importing this file (as `all` does) does nothing.
"""

import concurrent.futures
import datetime
import logging
import pathlib
import queue
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, Optional
from unittest.mock import ANY

import requests
from cryptography.hazmat.primitives.asymmetric import rsa

import hightouch.htevents as htevents
from hightouch.htevents import testing
from hightouch.htevents.client import Client
from hightouch.htevents.collector import Collector
from hightouch.htevents.consumer import MAX_MSG_SIZE, Consumer, FatalError
from hightouch.htevents.contrib import asgi as asgi_glue
from hightouch.htevents.contrib import wsgi as wsgi_glue
from hightouch.htevents.oauth_manager import OauthManager
from hightouch.htevents.request import APIError, DatetimeSerializer, post
from hightouch.htevents.utils import (
    clean,
    guess_timezone,
    is_naive,
    remove_trailing_slash,
)
from hightouch.htevents.version import VERSION

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class Order(TypedDict):
        total: float
        items: List[str]


def order_placed(
    user: htevents.Id, order: 'Order', at: Optional[htevents.Timestamp] = None
) -> htevents.Result:
    """Use the names of the arguments' types, and a TypedDict as properties."""
    properties: htevents.Properties = order
    traits: htevents.Traits = {'orders': 1}
    context: htevents.Context = {'ip': '192.0.2.1'}
    integrations: htevents.Integrations = {'All': True}
    htevents.identify(user, traits, context, at, integrations=integrations)
    accepted, message = htevents.track(user, 'Order placed', order)
    sent: htevents.Message = message
    print(accepted, sent['type'])
    return htevents.track(user, 'Order placed', properties, timestamp=at)


def callbacks(
    lost: htevents.OnError, arrived: htevents.OnSuccess, scrub: htevents.BeforeSend
) -> None:
    proxies: htevents.Proxies = {'http': None, 'https': 'http://127.0.0.1:3128'}
    Client('key', on_error=lost, on_success=arrived, before_send=scrub, proxies=proxies)
    Client('key', timeout=(3, None), proxies='127.0.0.1:3128')


def on_error(error: Exception, batch: List[Dict[str, Any]]) -> None:
    if isinstance(error, APIError):
        print(error.status, error.code, error.message, len(batch))
    elif isinstance(error, htevents.ExpiredError):
        print(error.days)
    elif isinstance(error, htevents.DamageError):
        print(error.count, error.path)


def on_success(batch: List[Dict[str, Any]]) -> None:
    print(len(batch))


def before_send(message: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    message.get('context', {}).pop('ip', None)
    return None if message.get('event') == 'Secret' else message


def settings_of_the_module() -> None:
    htevents.write_key = 'key'
    htevents.host = 'http://127.0.0.1:8765'
    htevents.debug = True
    htevents.max_queue_size = 100000
    htevents.send = False
    htevents.on_error = on_error
    htevents.gzip = True
    htevents.max_retries = 3
    htevents.sync_mode = False
    htevents.timeout = 10
    htevents.timeout = 2.5
    htevents.timeout = (3, 10)
    htevents.proxies = {'https': 'http://127.0.0.1:3128'}
    htevents.proxies = '127.0.0.1:3128'
    htevents.thread = 4
    htevents.upload_size = 50
    htevents.upload_interval = 0.1
    htevents.log_handler = logging.StreamHandler()
    htevents.oauth_client_id = 'id'
    htevents.oauth_client_key = 'key'
    htevents.oauth_client_key = rsa.generate_private_key(65537, 2048)
    htevents.oauth_key_id = 'key id'
    htevents.oauth_auth_server = 'https://oauth2.hightouch.io'
    htevents.oauth_scope = 'tracking_api:write'
    htevents.on_success = on_success
    htevents.before_send = before_send
    htevents.block_timeout = 0.5
    htevents.session = requests.Session()
    htevents.shutdown_timeout = 1
    htevents.spool_dir = '/var/lib/app/htevents'
    htevents.spool_dir = pathlib.Path('/var/lib/app/htevents')
    htevents.spool_fsync = True
    htevents.spool_max_bytes = 1 << 30
    htevents.default_client = None


def calls_of_the_module() -> None:
    context = {'ip': '192.0.2.1'}
    now = datetime.datetime.now(datetime.timezone.utc)
    accepted, message = htevents.track('user', 'Signed up')
    taken: bool = accepted
    event_id: str = message['messageId']
    print(taken, event_id)
    htevents.identify('user', {'plan': 'pro'}, context, now, 'anonymous')
    htevents.track(42, 'Ordered', {'total': 9.5}, context, now, None, {}, 'id')
    htevents.track(
        anonymous_id='anonymous', event='Seen', timestamp='2026-01-02T03:04Z'
    )
    htevents.alias('anonymous', 'user', context, now, {'All': True}, 'id')
    htevents.group('user', 7, {'seats': 3}, context, now, None, {}, 'id')
    htevents.page('user', 'Docs', 'Start', {'url': '/'}, context, now, None, {}, 'id')
    htevents.screen('user', 'Docs', 'Start', {}, context, now, None, {}, 'id')
    in_time: bool = htevents.flush()
    in_time = htevents.flush(timeout=None)
    in_time = htevents.flush(2.5)
    in_time = htevents.shutdown()
    in_time = htevents.shutdown(timeout=1)
    htevents.join()
    htevents.join(timeout=1)
    version: str = htevents.__version__
    print(in_time, version, VERSION)
    client: Optional[Client] = htevents.default_client
    if client is not None:
        print(client.stats())


def a_client_of_its_own() -> None:
    with Client(
        'key',
        host='http://127.0.0.1:8765',
        debug=False,
        max_queue_size=10000,
        send=True,
        on_error=on_error,
        gzip=True,
        max_retries=10,
        sync_mode=False,
        timeout=15,
        proxies=None,
        thread=2,
        upload_size=100,
        upload_interval=0.5,
        log_handler=logging.NullHandler(),
        oauth_client_id=None,
        oauth_client_key=bytearray(b'key'),
        oauth_key_id=None,
        oauth_auth_server=Client.DefaultConfig.oauth_auth_server,
        oauth_scope='tracking_api:write',
        shutdown_timeout=5,
        spool_dir=pathlib.Path('/var/lib/app/htevents'),
        spool_fsync=True,
        spool_max_bytes=1 << 30,
        on_success=on_success,
        before_send=before_send,
        block_timeout=0,
        session=requests.Session(),
    ) as client:
        same: Client = client
        accepted, message = same.track(user_id='user', event='Signed up')
        same.identify(user_id='user', traits={'plan': 'pro'})
        same.group(user_id='user', group_id=7, traits=None)
        same.page(user_id='user', name='Start', category=None)
        same.screen(user_id='user', name='Start', properties={'a': [1, 2]})
        same.alias(previous_id='anonymous', user_id='user')
        print(accepted, message['type'])
        done: bool = same.flush(timeout=10)
        stats = same.stats()
        total: int = stats.delivered + stats.failed + stats.pending
        counts: List[int] = [stats.accepted, stats.refused, stats.retried]
        age: Optional[float] = stats.oldest_pending_age
        durable: Optional[bool] = stats.durable
        same.drain_on_sigterm(timeout=10)
        print(done, total, counts, age, stats.last_error, durable)


def a_request(user_id: str, executor: concurrent.futures.Executor) -> None:
    client: Client = htevents.configure(write_key='key', gzip=True, timeout=(3, None))
    same: Client = htevents.get_client()
    with htevents.scope(anonymous_id='visitor', context={'ip': '192.0.2.1'}):
        htevents.update_scope(user_id=user_id, integrations={'All': True})
        htevents.track(event='Logged in', idempotency_key=('login', 7))
        carried = htevents.carry(send_receipt)
        receipt: bool = carried(7, urgent=True)
        future: 'concurrent.futures.Future[bool]' = executor.submit(carried, 8)
        print(client is same, receipt, future.result())

    def on_commit(queue: Callable[[], None]) -> None:
        queue()

    with htevents.deferred(), htevents.deferred(hook=on_commit):
        client.track(user_id, 'Order placed')


@htevents.scope(context={'app': {'name': 'shop'}})
def send_receipt(order: int, urgent: bool = False) -> bool:
    accepted, _ = htevents.track('user', 'Receipt sent', {'order': order})
    return accepted and urgent


def applications(wsgi: Any, asgi: Any) -> None:
    def user_of(environ: Dict[str, Any]) -> Optional[int]:
        return 7 if 'REMOTE_USER' in environ else None

    flask = wsgi_glue.ScopeMiddleware(wsgi, trusted_proxies='10.0.0.0/8')
    asgi_glue.ScopeMiddleware(asgi, trusted_proxies=('10.0.0.0/8', 'unix'))
    print(flask, wsgi_glue.ScopeMiddleware(wsgi, user_id=user_of))


async def coroutines() -> None:
    async with Client('key', trace_context=True) as client:
        same: Client = client
        flushed: bool = await same.aflush(timeout=5)
        closed: bool = await same.aclose(timeout=None)
        print(flushed, closed)
    carried: Callable[[], Awaitable[None]] = htevents.carry(coroutines)
    await carried()


def the_parts() -> None:
    waiting: 'queue.Queue[Any]' = queue.Queue()
    consumer = Consumer(
        waiting,
        'key',
        upload_size=100,
        host=None,
        on_error=on_error,
        upload_interval=0.5,
        gzip=False,
        retries=10,
        timeout=15,
        proxies=None,
        oauth_manager=None,
    )
    consumer.start()
    batch: List[Any] = consumer.next()
    delivered: bool = consumer.upload()
    consumer.request(batch)
    consumer.pause()
    print(delivered, consumer.running, consumer.retries, consumer.timeout)

    manager = OauthManager('id', 'key', 'key id', timeout=5, max_retries=1)
    token: str = manager.get_token()
    manager.clear_token()
    response: requests.Response = post(
        'key', 'http://127.0.0.1:8765', oauth_manager=manager, batch=[]
    )
    print(token, response.status_code, DatetimeSerializer, FatalError, MAX_MSG_SIZE)

    now = datetime.datetime.now()
    print(clean({'a': 1}), is_naive(now), guess_timezone(now))
    print(remove_trailing_slash('http://127.0.0.1/'))


def a_test_of_an_application() -> None:
    with Collector() as collector, Client('key', host=collector.url) as client:
        client.track('user', 'Signed up')
        arrived: bool = collector.wait_for(1, timeout=5)
        events: List[Dict[str, Any]] = collector.events
        print(arrived, events[0]['event'], collector.requests[0].status)


def tests_of_an_application(htevents_capture: testing.Events) -> None:
    with testing.capture() as events:
        htevents.track('user', 'Signed up')
        event: Dict[str, Any] = events.assert_tracked(
            'Signed up', user_id='user', count=1
        )
        found: List[Dict[str, Any]] = events.find(type='track', user_id=ANY)
        nothing: bool = events.none(event='Other')
        print(event, found, nothing, events[0]['event'], len(htevents_capture))
    with testing.collector(faults=[503, 'reset']) as running:
        print(running.url, testing.Events(running.events))

    @testing.capture()
    def sample(events: testing.Events) -> int:
        return len(events)

    print(sample)
