"""The packages that are measured, each behind the same few calls.

An adapter makes a client for a sink and drives it through the package's public names
only, with its defaults for all that is not said here. A request holds up to 100 events,
which is the default of most; Amplitude's own 200 are left. Nothing of a package is
imported before its adapter is made.

:track: ``track(user_id, properties)``: as directly as the package allows
:nudge: start to send what is queued, without waiting, where the package would wait long
:flush: return when all that was tracked is delivered
:shutdown: end the client
"""

import json
import socket
import zlib
from typing import Any, Callable, Dict, List, NamedTuple
from urllib.parse import urlsplit

EVENT = 'Order Completed'

# Seconds that any one step of a client may take.
PATIENCE = 60


class Settings(NamedTuple):
    """What a workload asks of a client."""

    url: str
    gzip: bool = False
    threads: int = 1
    queue_size: int = 100000
    upload_size: int = 100


class Htevents:
    """Ours, and the published package: the same calls."""

    def __init__(self, settings: Settings) -> None:
        from hightouch.htevents.client import Client

        self._client = client = Client('key', settings.url, **_segment_like(settings))
        track = client.track
        self.track = lambda user_id, properties: track(user_id, EVENT, properties)
        self.flush, self.shutdown = client.flush, client.shutdown

    def nudge(self) -> None:
        """Nothing: what is queued leaves after half a second."""


class Segment(Htevents):
    def __init__(self, settings: Settings) -> None:
        from segment.analytics.client import Client

        self._client = client = Client('key', settings.url, **_segment_like(settings))
        track = client.track
        self.track = lambda user_id, properties: track(user_id, EVENT, properties)
        self.flush, self.shutdown = client.flush, client.shutdown


class Rudder(Htevents):
    def __init__(self, settings: Settings) -> None:
        from rudderstack.analytics.client import Client

        self._client = client = Client('key', settings.url, **_segment_like(settings))
        track = client.track
        self.track = lambda user_id, properties: track(user_id, EVENT, properties)
        self.flush, self.shutdown = client.flush, client.shutdown


class Posthog(Htevents):
    def __init__(self, settings: Settings) -> None:
        from posthog import Posthog

        self._client = client = Posthog(
            'key',
            settings.url,
            gzip=settings.gzip,
            thread=settings.threads,
            max_queue_size=settings.queue_size,
        )
        capture = client.capture
        self.track = lambda user_id, properties: capture(
            EVENT, distinct_id=user_id, properties=properties
        )
        self.flush = lambda: client.flush(timeout_seconds=PATIENCE)
        self.shutdown = client.shutdown


class Snowplow:
    """Its user is a `Subject` of the event, and its datetimes need an encoder."""

    SCHEMA = 'iglu:com.acme/order_completed/jsonschema/1-0-0'

    def __init__(self, settings: Settings) -> None:
        import snowplow_tracker

        self._package = snowplow_tracker
        address = urlsplit(settings.url)
        emitter = snowplow_tracker.AsyncEmitter(
            address.hostname,
            protocol='http',
            port=address.port,
            batch_size=settings.upload_size,
            thread_count=settings.threads,
            buffer_capacity=settings.queue_size,
        )
        self._tracker = snowplow_tracker.Tracker(
            'key',
            emitter,
            encode_base64=False,
            json_encoder=lambda value: value.isoformat(),
        )

    def track(self, user_id: str, properties: Dict[str, Any]) -> None:
        package = self._package
        subject = package.Subject()
        subject.set_user_id(user_id)
        content = package.SelfDescribingJson(self.SCHEMA, properties)
        self._tracker.track(package.SelfDescribing(content, event_subject=subject))

    def nudge(self) -> None:
        self._tracker.flush(is_async=True)

    def flush(self) -> None:
        self._tracker.flush()

    def shutdown(self) -> None:
        self.flush()  # it has nothing else


class Amplitude:
    """It drops what is no JSON, so the datetime is made text before."""

    def __init__(self, settings: Settings) -> None:
        from amplitude import Amplitude, BaseEvent, Config

        config = Config(server_url=settings.url + '/2/httpapi')
        self._client = Amplitude('key', config)
        self._event = BaseEvent

    def track(self, user_id: str, properties: Dict[str, Any]) -> None:
        properties = dict(properties, at=properties['at'].isoformat())
        self._client.track(
            self._event(EVENT, user_id=user_id, event_properties=properties)
        )

    def nudge(self) -> None:
        self._client.flush()

    def flush(self) -> None:
        for future in self._client.flush():
            if future is not None:
                future.result(PATIENCE)

    def shutdown(self) -> None:
        self.flush()  # by itself shutdown() does not wait for what it sends
        self._client.shutdown()


class Limit:
    """No SDK: JSON once, a hundred joined, and one ``send``, on the caller's thread."""

    def __init__(self, settings: Settings) -> None:
        self._gzip = settings.gzip
        self._bodies: List[bytes] = []
        self._number = 0
        address = urlsplit(settings.url)
        self._socket = socket.create_connection(
            (address.hostname, address.port), PATIENCE
        )
        encode = json.JSONEncoder(
            separators=(',', ':'), default=lambda value: value.isoformat()
        ).encode
        self._encode: Callable[[Any], bytes] = lambda value: encode(value).encode()

    def track(self, user_id: str, properties: Dict[str, Any]) -> None:
        self._number += 1
        message = {
            'type': 'track',
            'event': EVENT,
            'properties': properties,
            'userId': user_id,
            'anonymousId': None,
            'context': {'library': {'name': 'limit', 'version': '0'}},
            'integrations': {},
            'timestamp': '2026-01-02T03:04:05.000+00:00',
            'messageId': '00000000-0000-4000-8000-%012d' % self._number,
        }
        self._bodies.append(self._encode(message))
        if len(self._bodies) >= 100:
            self.flush()

    def nudge(self) -> None:
        self.flush()

    def flush(self) -> None:
        if not self._bodies:
            return
        body = b'{"batch":[%s]}' % b','.join(self._bodies)
        self._bodies = []
        if self._gzip:
            compressor = zlib.compressobj(1, zlib.DEFLATED, 31)
            body = compressor.compress(body) + compressor.flush()
        self._socket.sendall(
            b'POST /v1/batch HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s'
            % (len(body), body)
        )
        self._socket.recv(65536)

    def shutdown(self) -> None:
        self.flush()
        self._socket.close()


class FastLimit(Limit):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        import orjson

        self._encode = orjson.dumps


def _segment_like(settings: Settings) -> Dict[str, Any]:
    return {
        'gzip': settings.gzip,
        'thread': settings.threads,
        'max_queue_size': settings.queue_size,
        'upload_size': settings.upload_size,
    }


class Peer(NamedTuple):
    """A row of the tables.

    :ivar key: names it on the command line of a workload and in the JSON
    :ivar label: names it in the table
    :ivar brand: names it, with its version, in the picture
    :ivar requirement: what pip installs; a key of another peer means: in its environment
    :ivar module: what an application imports
    :ivar ours: whether it is the checkout
    :ivar limit: whether it is a lower bound and no SDK: only its CPU is of interest
    """

    key: str
    label: str
    brand: str
    requirement: str
    module: str
    adapter: Callable[[Settings], Any]
    gzip: bool = True
    threads: bool = True
    ours: bool = False
    limit: bool = False


# The published package: what the ratios are ratios to.
PUBLISHED = 'published'
OURS = 'ours'
FAST = 'ours-fast'

_MODULE = 'hightouch.htevents'
ALL = [
    Peer(
        PUBLISHED,
        'published 0.0.4',
        'Hightouch',
        'events-sdk-python==0.0.4',
        _MODULE,
        Htevents,
    ),
    Peer(OURS, 'this checkout', 'Hightouch', '', _MODULE, Htevents, ours=True),
    Peer(
        FAST,
        'this checkout [fast]',
        'Hightouch [fast]',
        '[fast]',
        _MODULE,
        Htevents,
        ours=True,
    ),
    Peer(
        'segment',
        'segment',
        'Segment',
        'segment-analytics-python',
        'segment.analytics',
        Segment,
    ),
    Peer(
        'rudder',
        'rudder',
        'RudderStack',
        'rudder-sdk-python',
        'rudderstack.analytics',
        Rudder,
    ),
    Peer('posthog', 'posthog', 'PostHog', 'posthog', 'posthog', Posthog),
    Peer(
        'snowplow',
        'snowplow',
        'Snowplow',
        'snowplow-tracker',
        'snowplow_tracker',
        Snowplow,
        gzip=False,
    ),
    Peer(
        'amplitude',
        'amplitude',
        'Amplitude',
        'amplitude-analytics',
        'amplitude',
        Amplitude,
        gzip=False,
        threads=False,
    ),
    Peer('limit', 'limit: json, socket', '', OURS, '', Limit, limit=True),
    Peer('limit-fast', 'limit: orjson, socket', '', FAST, '', FastLimit, limit=True),
]
BY_KEY = {peer.key: peer for peer in ALL}
