"""A collector with a page that shows the events as they come.

Only programs of this machine may read what it has received. Its page and its answers are for
the origin of the page; a browser shows them to no other one. A web page elsewhere can give its
own host name our address (DNS rebinding) and is then of the same origin as we are, but its
requests still name that host.
"""

import base64
import hashlib
import json
import pkgutil
import re
import time
from collections import Counter, deque
from fnmatch import fnmatchcase
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    TextIO,
    Tuple,
)
from urllib.parse import parse_qsl, urlsplit

import requests

from hightouch.htevents._process import transport
from hightouch.htevents._process.answers import ENCODINGS
from hightouch.htevents._process.waiting import monotonic
from hightouch.htevents.collector import (
    REQUIRED,
    Collector,
    Fault,
    Handler,
    Received,
    Refused,
    answer_of,
)

# Events that `GET /events` has, and those of them that a page gets.
KEPT_EVENTS = 10000
PAGE_EVENTS = 1000

# Seconds of the chart.
CHART_SECONDS = 60

# Seconds between two messages to a page, at least.
TICK = 0.1

# Seconds to wait for the answer of the host to which requests are passed on, and for its body.
FORWARD_TIMEOUT = 15

_LOCAL = re.compile(r'(localhost|127\.0\.0\.1|\[::1\]|[a-z0-9.-]+\.localhost)(:\d+)?\Z')


class Entry(NamedTuple):
    """An event that came, or a request without any.

    :ivar number: 1, 2, …
    :ivar moment: seconds since the epoch
    :ivar problems: why it is bad; empty for a good one
    :ivar answer: of the host to which it was passed on, as a text; '' without one
    """

    number: int
    moment: float
    event: Any
    problems: Sequence[str]
    answer: str

    @property
    def kind(self) -> str:
        kind = self.event.get('type') if isinstance(self.event, dict) else None
        return kind if isinstance(kind, str) and kind in REQUIRED else 'other'

    def item(self) -> Dict[str, Any]:
        """Return it as a page gets it."""
        text = json.dumps(self.event, ensure_ascii=False, separators=(',', ':'))
        data = text.encode('utf-8', 'backslashreplace')  # escapes a lone surrogate
        return {
            'number': self.number,
            'time': int(self.moment * 1000),
            'size': len(data),
            'problems': self.problems,
            'answer': self.answer,
            'text': data.decode('utf-8'),
        }

    def flat(self) -> Any:
        """Return the event; a bad one, and one that was passed on, with what was said."""
        if not isinstance(self.event, dict):
            return {'value': self.event, 'problems': self.problems}
        more: Dict[str, Any] = {}
        if self.problems:
            more['problems'] = self.problems
        if self.answer:
            more['answer'] = self.answer
        return dict(self.event, **more)


class Filter:
    """Lets events through whose fields match all patterns.

    :param patterns: names and patterns such as ('event', 'Order*'). A name may be a path,
        such as 'properties.total'; 'user' is the userId or the anonymousId. ('bad', '1') lets
        only bad events through, ('bad', '0') only good ones. In a pattern, ``*``, ``?`` and
        ``[abc]`` stand for other characters. A pattern also matches its own text
    """

    def __init__(self, patterns: Iterable[Tuple[str, str]]) -> None:
        self._patterns = list(patterns)

    def lets(self, entry: Entry) -> bool:
        return all(self._matches(entry, *each) for each in self._patterns)

    def _matches(self, entry: Entry, path: str, pattern: str) -> bool:
        if path == 'bad':
            return bool(entry.problems) == (pattern.lower() not in ('0', 'false', 'no'))
        event = entry.event if isinstance(entry.event, dict) else {}
        if path == 'user':
            value: Any = event.get('userId') or event.get('anonymousId')
        else:
            value = event
            for name in path.split('.'):
                value = value.get(name) if isinstance(value, dict) else None
        if value is None:
            return False
        text = value if isinstance(value, str) else json.dumps(value)
        return text == pattern or fnmatchcase(text, pattern)


class Inspector(Collector):
    """A collector with a page at ``/``.

    ``GET /events`` has the last events as JSON, with the patterns of a `Filter` as its query;
    ``DELETE /events`` forgets them. ``GET /stream`` has them as Server-Sent Events.

    :param show: called with each `Entry`, one at a time
    :param forward: the URL of a host to which requests are passed on; the sender gets its
        answer. '' to answer them here
    """

    _patience = 1  # a host may keep a request waiting, and its user presses Ctrl-C

    def __init__(
        self,
        port: int = 0,
        out: Optional[TextIO] = None,
        show: Callable[[Entry], None] = lambda entry: None,
        forward: str = '',
    ) -> None:
        super().__init__(port, out, keep=0)
        self._show = show
        self._forward = forward.rstrip('/')
        self._count = 0
        # Guarded by _arrival.
        self.entries: Deque[Entry] = deque(maxlen=KEPT_EVENTS)
        self._seconds: Deque[List[int]] = deque(maxlen=CHART_SECONDS)
        self.clear()

    def clear(self) -> None:
        """Forget all events and counts."""
        with self._arrival:
            self.entries.clear()
            self._seconds.clear()
            self.counts: 'Counter[str]' = Counter()
            self.total = 0
            self.cleared = self._count
            self._arrival.notify_all()

    def find(self, by: Filter) -> List[Any]:
        """Return the kept events that a filter lets through."""
        with self._arrival:
            entries = list(self.entries)
        return [each.flat() for each in entries if by.lets(each)]

    # -- called by the threads of the server -----------------------------------------

    def _handler(self) -> type:
        return _InspectorHandler

    def _check(self, received: Received, type_: str) -> List[Any]:
        batch, problems = self._examine(received, type_)
        answer, failed = '', None
        if self._forward:
            answer, failed = self._passed_on(received)
        elif any(problems):
            failed = Refused('; '.join(sum(problems, []))[:1000])
        for event, wrong in zip(batch, problems):
            self._add(event, wrong, answer)
        if failed is not None:
            failed.why = ''  # it is shown with the events
            raise failed
        self._write_out(batch)
        return batch

    def _note(
        self, received: Received, events: Sequence[Any] = (), why: str = ''
    ) -> None:
        super()._note(received, events, why)
        if why:
            body = received.body if isinstance(received.body, dict) else {}
            shown = {key: value for key, value in body.items() if key != 'writeKey'}
            self._add(shown, [why], '')

    def _add(self, event: Any, problems: Sequence[str], answer: str) -> None:
        with self._arrival:
            self._count += 1
            entry = Entry(self._count, time.time(), event, problems, answer)
            self.entries.append(entry)
            self.total += 1
            self.counts[entry.kind] += 1
            self.counts['bad'] += bool(problems)
            second = int(entry.moment)
            if not self._seconds or self._seconds[-1][0] != second:
                self._seconds.append([second, 0])
            self._seconds[-1][1] += 1
            self._show(entry)
            self._arrival.notify_all()

    def _passed_on(self, received: Received) -> Tuple[str, Optional[Refused]]:
        """Pass a request on; return what was answered, and the refusal if it is one."""
        kept = ('authorization', 'content-type', 'user-agent')
        headers = {k: v for k, v in received.headers.items() if k in kept}
        headers['accept-encoding'] = ENCODINGS
        begun = monotonic()
        try:
            answer = transport.post(
                None,
                self._forward + urlsplit(received.path).path,
                received.raw,
                headers,
                None,
                FORWARD_TIMEOUT,
                None,
            )
        except requests.RequestException as error:
            text = 'no answer (%s)' % type(error).__name__
            return text, Refused('%s from the host' % text, 502)
        took = 'in %d ms' % ((monotonic() - begun) * 1000)
        if 200 <= answer.status < 300:
            return '%d %s' % (answer.status, took), None
        refused = Refused(answer.reason, answer.status)
        names = ('Content-Type', 'Retry-After', 'X-RateLimit-Reset')
        said = {name: answer.header(name) for name in names if answer.header(name)}
        refused.answer = Fault(answer.status, said, answer.body)
        start = answer.body.decode('utf-8', 'replace')[:300]
        text = '%d %s: %s' % (answer.status, took, start)
        return text, refused

    # -- for pages -------------------------------------------------------------------

    def wait_for_news(self, after: int, cleared: int) -> bool:
        """Wait until there is news for a page, or a second is over; False at the end."""
        with self._arrival:
            if (self._count, self.cleared) == (after, cleared):
                self._arrival.wait(1)
        return not self._stopping.is_set()

    def message(self, after: int) -> Tuple[str, int]:
        """Return what a page has to know after an event, and the number of the last one.

        :param after: 0: the page knows nothing
        """
        with self._arrival:
            news: List[Entry] = []
            for entry in reversed(self.entries):
                if entry.number <= after or len(news) == PAGE_EVENTS:
                    break
                news.append(entry)
            counts, total, last = dict(self.counts), self.total, self._count
            is_first = after <= self.cleared
            by_second = {second: count for second, count in self._seconds}
        now = int(time.time())
        data = {
            'first': is_first,
            'events': [entry.item() for entry in reversed(news)],
            'counts': counts,
            'total': total,
            'seconds': [
                by_second.get(second, 0)
                for second in range(now - CHART_SECONDS + 1, now + 1)
            ],
        }
        return json.dumps(data, separators=(',', ':')), last


class _InspectorHandler(Handler):
    collector: Inspector

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        hosts = self.headers.get_all('Host', [])
        if len(hosts) < 2 and all(_LOCAL.match(each.lower()) for each in hosts):
            return True
        self.close_connection = True
        text = (
            'the Host must be localhost or 127.0.0.1, because only this machine may ask'
        )
        self._write(Refused(text, 403).answer)
        return False

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        if place.path == '/':
            self._write(_page())
        elif place.path == '/stream':
            self._stream()
        elif place.path == '/events':
            found = self.collector.find(Filter(parse_qsl(place.query, True)))
            self._write(_private(answer_of(200, found)))
        else:
            self._write(Refused('no such path', 404).answer)

    def do_DELETE(self) -> None:
        if urlsplit(self.path).path != '/events':
            return self._write(Refused('no such path', 404).answer)
        self.collector.clear()
        self._write(Fault(204))

    def _route(self, received: Received) -> Tuple[Fault, List[Any]]:
        # A browser sends any other type for any web page, without asking first. The browser
        # SDK may use text/plain: a page of this machine may.
        kind = (
            received.headers.get('content-type', '').partition(';')[0].strip().lower()
        )
        origin = received.headers.get('origin', '')
        is_local = _LOCAL.match(origin.partition('://')[2].lower()) is not None
        is_token = received.path.endswith('/token')
        if not (
            is_token or kind == 'application/json' or kind == 'text/plain' and is_local
        ):
            raise Refused('Content-Type must be application/json', 415)
        return super()._route(received)

    def do_OPTIONS(self) -> None:
        if self.path.startswith(('/events', '/stream')):
            return self._write(Refused('not for pages of another origin', 403).answer)
        super().do_OPTIONS()

    def _stream(self) -> None:
        """Send messages as Server-Sent Events until one side ends."""
        self.close_connection = True
        self.send_response_only(200)
        for name, value in _private(Fault(200)).headers.items():
            self.send_header(name, value)
        self.send_header('Content-Type', 'text/event-stream')
        self.send_header('Connection', 'close')
        self.end_headers()
        collector, last = self.collector, 0
        while True:
            cleared = collector.cleared
            text, last = collector.message(last)
            self.wfile.write(b'data: %b\n\n' % text.encode('ascii'))
            self.wfile.flush()
            if collector._stopping.wait(TICK) or not collector.wait_for_news(
                last, cleared
            ):
                return


def _private(answer: Fault) -> Fault:
    """Add the headers of an answer that is only for pages of this origin."""
    headers = {
        'Cache-Control': 'no-store',
        'Cross-Origin-Resource-Policy': 'same-origin',
        'X-Content-Type-Options': 'nosniff',
    }
    return answer._replace(headers=dict(answer.headers, **headers))


def _page() -> Fault:
    """Return the page. It may run its own script, and fetch nothing from elsewhere."""
    page = pkgutil.get_data('hightouch.htevents.cli', 'inspector.html') or b''
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        'img-src data:',
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    for name in ('style', 'script'):
        start = page.index(b'<%b>' % name.encode()) + len(name) + 2
        text = page[start : page.index(b'</%b>' % name.encode())]
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        policy.append("%s-src 'sha256-%s'" % (name, digest))
    headers = {
        'Content-Type': 'text/html; charset=utf-8',
        'Content-Security-Policy': '; '.join(policy),
        'Referrer-Policy': 'no-referrer',
    }
    return _private(Fault(200, headers, page))
