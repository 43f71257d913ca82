"""What is measured: each function is one workload, run in a fresh process.

    PYTHON benchmarks/workloads.py WORKLOAD PEER URL OPTIONS

PYTHON is that of the peer's environment, URL a sink, OPTIONS an object in JSON. The last
line that is printed is the result: ``figures``, how many events were ``expected`` and how
many unique ones were ``delivered``.

Before anything is measured one event is sent and flushed, so that no figure holds the
import of a library, the first connection or the start of a thread.
"""

import gc
import json
import os
import resource
import signal
import statistics
import sys
import threading
import time
from datetime import datetime, timezone
from functools import partial
from typing import Any, Callable, Dict, List, Tuple

from peers import BY_KEY, Settings
from sink import ask, raise_file_limit

# About 600 bytes as an event: ten properties, a datetime and a nested dict among them.
# It is one object for all events of a workload, but where memory is measured.
PROPERTIES: Dict[str, Any] = {
    'order_id': 'o-1234567',
    'total': 129.95,
    'currency': 'USD',
    'items': 3,
    'coupon': 'WELCOME-10',
    'first': True,
    'source': 'web',
    'campaign': 'autumn-sale-2026',
    'at': datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    'address': {'city': 'Berlin', 'zip': '10115', 'lines': ['Street 1', 'Floor 2']},
}

# Seconds between two looks at something that is waited for.
_TICK = 0.1

# Seconds until a client that delivered everything is taken to be idle.
_SETTLE = 2

# Seconds that the clients may take to deliver one event each.
_ARRIVAL_LIMIT = 45

_MICRO = 1e6
_MILLI = 1e3

Result = Dict[str, Any]


class Bench:
    """A peer's client on a sink that was reset, warmed up with one event."""

    def __init__(self, peer: str, url: str, **options: Any) -> None:
        self.url = url
        self.tracked = 0
        self._warmed = 0
        self._peer = BY_KEY[peer]
        self.client = self.make(**options)

    def make(self, **options: Any) -> Any:
        """Make a client and deliver its first event."""
        client = self._peer.adapter(Settings(self.url, **options))
        client.track(self.next_user(), PROPERTIES)
        client.flush()
        self._warmed += 1
        return client

    def next_user(self) -> str:
        self.tracked += 1
        return 'user-%d' % self.tracked

    def users(self, count: int) -> List[str]:
        """Make the users of that many events: their text is not the client's cost."""
        return [self.next_user() for _ in range(count)]

    def burst(self, users: List[str]) -> List[float]:
        """Track an event of each, and give the seconds that each call took."""
        client_track, clock = self.client.track, time.perf_counter
        times = []
        for user in users:
            start = clock()
            client_track(user, PROPERTIES)
            times.append(clock() - start)
        return times

    def finish(self) -> None:
        """Wait for all that was tracked: flush, then shutdown, which may send the rest."""
        self.client.flush()
        self.client.shutdown()

    def result(self, per_event: Dict[str, float], **figures: float) -> Result:
        """Divide sums by the events that arrived, those of the warm-up left out."""
        counted = ask(self.url, 'count')
        arrived = max(1, counted['unique'] - self._warmed)
        figures.update({name: value / arrived for name, value in per_event.items()})
        return {
            'figures': figures,
            'expected': self.tracked,
            'delivered': counted['unique'],
            'requests': counted['requests'],
        }


class Meter:
    """What the process used since: all of its threads, user and system."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._switches = _switches()

    def read(self) -> Tuple[float, int]:
        """CPU seconds, and how often a thread gave up the processor to wait."""
        return time.process_time() - self._cpu, _switches() - self._switches


def _switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def _percentile(values: List[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _rss() -> int:
    """Bytes of the process that are in memory now (Linux)."""
    gc.collect()
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def burst(peer: str, url: str, events: int, gzip: bool = False) -> Result:
    """A burst from one thread, while the client sends.

    ``cpu_us`` is CPU of the whole process per event that arrived, from the first call to
    the end of shutdown(); it holds the two looks at the clock around each call, 0.1 us.
    ``switches`` are the voluntary context switches per 1,000 of them. ``p50_us`` and
    ``p99_us`` are what a call took.
    """
    bench = Bench(peer, url, gzip=gzip)
    users = bench.users(events)
    meter = Meter()
    times = bench.burst(users)
    bench.finish()
    cpu, switches = meter.read()
    return bench.result(
        {'cpu_us': _MICRO * cpu, 'switches': 1000.0 * switches},
        p50_us=_MICRO * _percentile(times, 0.5),
        p99_us=_MICRO * _percentile(times, 0.99),
    )


def threads(peer: str, url: str, events: int, callers: int) -> Result:
    """The same burst, shared among threads that call at once."""
    bench = Bench(peer, url)
    client_track, clock = bench.client.track, time.perf_counter
    users = bench.users(events)
    times: List[List[float]] = [[] for _ in range(callers)]
    gate = threading.Barrier(callers)

    def call(number: int) -> None:
        own = times[number]
        gate.wait()
        for user in users[number::callers]:
            start = clock()
            client_track(user, PROPERTIES)
            own.append(clock() - start)

    meter = Meter()
    _run_threads([partial(call, each) for each in range(callers)])
    bench.finish()
    cpu, _ = meter.read()
    return bench.result(
        {'cpu_us': _MICRO * cpu}, p99_us=_MICRO * _percentile(sum(times, []), 0.99)
    )


def _run_threads(calls: List[Callable[[], None]]) -> None:
    running = [threading.Thread(target=each) for each in calls]
    for each in running:
        each.start()
    for each in running:
        each.join()


def single(peer: str, url: str, seconds: float, most: int) -> Result:
    """One event and flush(), in turn with a bare POST of the same bytes.

    ``event_ms`` and ``post_ms`` are medians, ``more_ms`` that of the differences. The POST
    is one of requests, on a session whose connection is open.
    """
    import requests

    bench = Bench(peer, url)
    target, headers, body = _last_request(url)
    session = requests.Session()
    session.post(target, data=body, headers=headers)
    pairs: List[Tuple[float, float]] = []
    deadline = time.monotonic() + seconds
    while len(pairs) < 3 or (len(pairs) < most and time.monotonic() < deadline):
        user = bench.next_user()
        start = time.perf_counter()
        bench.client.track(user, PROPERTIES)
        bench.client.flush()
        middle = time.perf_counter()
        session.post(target, data=body, headers=headers)
        end = time.perf_counter()
        pairs.append((_MILLI * (middle - start), _MILLI * (end - middle)))
    bench.finish()
    return bench.result(
        {},
        event_ms=statistics.median(event for event, _ in pairs),
        post_ms=statistics.median(post for _, post in pairs),
        more_ms=statistics.median(event - post for event, post in pairs),
    )


def _last_request(url: str) -> Tuple[str, Dict[str, str], bytes]:
    last = ask(url, 'last')
    lines = last['header'].split('\r\n')
    path = lines[0].split(' ')[1]
    fields = (line.split(': ', 1) for line in lines[1:])
    headers = {name: value for name, value in fields if name == 'Content-Type'}
    return url + path, headers, last['body'].encode('latin-1')


def shutdown(peer: str, url: str, events: int, times: int) -> Result:
    """Events, then flush() or shutdown(), in turn, each with a client of its own.

    ``send_ms`` and ``shutdown_ms`` go from the first call to the return.
    """
    bench = Bench(peer, url)
    sending: List[float] = []
    ending: List[float] = []
    for _ in range(times):
        for durations, verb in ((sending, 'flush'), (ending, 'shutdown')):
            client = bench.client = bench.make()
            users = bench.users(events)
            start = time.perf_counter()
            bench.burst(users)
            getattr(client, verb)()
            durations.append(_MILLI * (time.perf_counter() - start))
            client.shutdown()
    return bench.result(
        {},
        send_ms=statistics.median(sending),
        shutdown_ms=statistics.median(ending),
    )


def idle(peer: str, url: str, clients: int, seconds: float) -> Result:
    """Clients that have sent one event each and have nothing to do.

    Says that it is ready and waits for a line. ``cpu_ms`` and ``switches`` are those of
    the whole process in that time; one switch is the sleep of the measurement itself.
    ``kb`` is the memory that one client more took.
    """
    bench = Bench(peer, url)
    before = _rss()
    adapter = BY_KEY[peer].adapter
    others = [adapter(Settings(url)) for _ in range(clients - 1)]
    for each in others:
        each.track(bench.next_user(), PROPERTIES)
        each.nudge()
    _wait_for_arrival(url, clients)
    time.sleep(_SETTLE)
    grown = _rss() - before
    print('ready', flush=True)
    sys.stdin.readline()
    meter = Meter()
    time.sleep(seconds)
    cpu, switches = meter.read()
    figures = {'cpu_ms': _MILLI * cpu, 'switches': float(switches)}
    if others:
        figures['kb'] = grown / 1024.0 / len(others)
    return bench.result({}, **figures)


def _wait_for_arrival(url: str, count: int) -> None:
    deadline = time.monotonic() + _ARRIVAL_LIMIT
    while ask(url, 'count')['unique'] < count and time.monotonic() < deadline:
        time.sleep(_TICK)


def memory(peer: str, url: str, events: int) -> Result:
    """Memory of the process per event in the queue, while the server answers nothing.

    Each event has objects of its own. How many were queued is counted afterwards, when
    the server answers again and they arrive.
    """
    bench = Bench(peer, url, queue_size=2 * events)
    ask(url, 'reset', hold=True)
    users = bench.users(events)
    before = _rss()
    for number, user in enumerate(users):
        bench.client.track(user, _fresh_properties(number))
    grown = _rss() - before
    ask(url, 'release')
    bench.finish()
    bench.tracked -= 1  # the reset forgot the first one
    result = bench.result({})
    result['figures']['bytes'] = grown / max(1, result['delivered'])
    return result


def _fresh_properties(number: int) -> Dict[str, Any]:
    return dict(
        PROPERTIES,
        order_id='o-%d' % number,
        total=number + 0.95,
        coupon='WELCOME-%d' % number,
        address={
            'city': 'Berlin',
            'zip': '%05d' % number,
            'lines': ['Street %d' % number, 'Floor %d' % number],
        },
    )


def throughput(peer: str, url: str, events: int, latency: float) -> Result:
    """Events per second to a slow server, with one thread and with four."""
    known = BY_KEY[peer]
    rates = {}
    expected = delivered = 0
    for count in (1, 4) if known.threads else (1,):
        ask(url, 'reset', latency=latency)
        bench = Bench(peer, url, threads=count)
        users = bench.users(events)
        start = time.perf_counter()
        bench.burst(users)
        bench.client.flush()
        seconds = time.perf_counter() - start
        if ask(url, 'count')['unique'] < bench.tracked:
            bench.finish()  # its flush() does not wait for all
            seconds = time.perf_counter() - start
        result = bench.result({})
        expected += result['expected']
        delivered += result['delivered']
        rates['rate_%d' % count] = (result['delivered'] - 1) / seconds
    if len(rates) == 2:
        rates['speedup'] = rates['rate_4'] / rates['rate_1']
    return {'figures': rates, 'expected': expected, 'delivered': delivered}


def bursts(peer: str, url: str, events: int, times: int) -> Result:
    """CPU per event of bursts of a size, each flushed before the next one."""
    bench = Bench(peer, url, queue_size=2 * events)
    groups = [bench.users(events) for _ in range(times)]
    meter = Meter()
    for users in groups:
        bench.burst(users)
        bench.client.flush()
    bench.finish()
    return bench.result({'cpu_us': _MICRO * meter.read()[0]})


def depth(peer: str, url: str, depth: int, events: int) -> Result:
    """CPU per event with so many in the queue, ten in a request whatever the depth.

    The server answers nothing until they are queued. ``in_order`` says whether they came
    in the order in which they were tracked.
    """
    bench = Bench(peer, url, queue_size=2 * events, upload_size=10)
    groups = [bench.users(depth) for _ in range(events // depth)]
    asking = 0.0
    meter = Meter()
    for users in groups:
        asking += _cost_of(lambda: ask(url, 'hold'))
        bench.burst(users)
        asking += _cost_of(lambda: ask(url, 'release'))
        bench.client.flush()
    bench.finish()
    result = bench.result({'cpu_us': _MICRO * (meter.read()[0] - asking)})
    return dict(result, in_order=ask(url, 'count')['in_order'])


def _cost_of(call: Callable[[], Any]) -> float:
    """CPU seconds of this thread alone: the client's own go on meanwhile."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def clients(peer: str, url: str, clients: int, events: int) -> Result:
    """CPU per event with so many clients, at least a full request from each in a row.

    Like everywhere, each client is there and has sent an event before.
    """
    bench = Bench(peer, url)
    made = [bench.client] + [bench.make() for _ in range(clients - 1)]
    groups = [bench.users(max(100, events // clients)) for _ in made]
    meter = Meter()
    for client, users in zip(made, groups):
        bench.client = client
        bench.burst(users)
    for client in made:
        client.flush()
        client.shutdown()
    return bench.result({'cpu_us': _MICRO * meter.read()[0]})


WORKLOADS = {
    each.__name__: each
    for each in (
        burst,
        threads,
        single,
        shutdown,
        idle,
        memory,
        throughput,
        bursts,
        depth,
        clients,
    )
}


def main(name: str, peer: str, url: str, options: str, limit: str) -> None:
    signal.alarm(int(limit))  # a client that hangs must not outlive whoever asked
    raise_file_limit()
    ask(url, 'reset')
    result = WORKLOADS[name](peer, url, **json.loads(options))
    print(json.dumps(result), flush=True)
    # Not through the ends of the clients: some wait for seconds, and all is measured.
    os._exit(0)


if __name__ == '__main__':
    main(*sys.argv[1:])
