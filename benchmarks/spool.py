"""What a durable queue costs: `track()` with ``spool_dir`` beside 0.0.4 without one.

    python benchmarks/spool.py [--rounds 5] [--events 10000] [--backlog 1000000]

Installs the published package in an environment of its own, and runs both in turn
against the same collector, in processes of their own. A burst of events is timed call by
call, while the consumer runs. Then the memory and the start of a client that finds a
backlog, beside those of a client that finds none.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)

from hightouch.htevents.collector import Collector  # noqa: E402

PEER = 'events-sdk-python==0.0.4'

BURST = """
import json, sys, tempfile, time
from datetime import datetime, timezone
from hightouch.htevents.client import Client
url, count, spool_dir, settings = sys.argv[1], int(sys.argv[2]), sys.argv[3], {}
if spool_dir:
    settings = {'spool_dir': spool_dir}
client = Client('key', host=url, max_queue_size=10 * count, **settings)
properties = {
    'order_id': 'o-1234567', 'total': 129.95, 'currency': 'USD', 'items': 3,
    'coupon': None, 'first': True, 'source': 'web', 'campaign': 'autumn-sale-2026',
    'at': datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    'address': {'city': 'Berlin', 'zip': '10115', 'lines': ['Street 1', 'Floor 2']},
}
context = {'ip': '203.0.113.7', 'userAgent': 'Mozilla/5.0 (X11; Linux x86_64)'}
client.track('warm', 'up', properties, context)
times = []
for number in range(count):
    start = time.perf_counter()
    accepted = client.track('user-%d' % number, 'Order Completed', properties, context)
    times.append(time.perf_counter() - start)
    assert accepted[0]
client.flush()
times.sort()
print(json.dumps([1e6 * times[count // 2], 1e6 * times[count * 99 // 100],
                  1e6 * times[count * 999 // 1000]]))
"""

LEAVE = """
import os, sys
from hightouch.htevents import encoding
from hightouch.htevents.client import Client
from hightouch.htevents._spool.store import FileStore
_, message = Client('key', send=False).track('user', 'event', {'text': 'x' * 300})
body = encoding.encode(message)[0]
store = FileStore(sys.argv[1], 'key', False, 4 << 30)
for _ in range(int(sys.argv[2])):
    assert store.put(body)
os._exit(0)
"""

START = """
import json, resource, sys, time
import requests
from hightouch.htevents.client import Client
start = time.perf_counter()
client = Client('key', sys.argv[1], spool_dir=sys.argv[2])
client.track('user', 'own')
ready = time.perf_counter() - start
deadline = time.monotonic() + 1800
while client.stats().delivered < int(sys.argv[3]) and time.monotonic() < deadline:
    time.sleep(0.05)
client.shutdown()
delivered = client.stats().delivered
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
print(json.dumps([1e3 * ready, peak, delivered, seconds]))
"""


class Sink(Collector):
    """Takes all, keeps nothing, checks nothing."""

    def _check(self, received, type_):
        body = {'batch': [], 'writeKey': 'key'}
        return super()._check(received._replace(body=body), type_)

    def _note(self, received, events=()):
        pass


def run(python, code, *args, **options):
    done = subprocess.run(
        [python, '-c', code] + [str(each) for each in args],
        stdout=subprocess.PIPE,
        universal_newlines=True,
        timeout=3600,
        check=True,
        cwd=HERE,  # not where a hightouch/ is, that would stand before the peer's
        **options,
    )
    return json.loads(done.stdout) if done.stdout else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--events', type=int, default=10000)
    parser.add_argument('--backlog', type=int, default=1000000)
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix='spool-benchmark-')
    ours = dict(os.environ, PYTHONPATH=ROOT)
    peers = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    try:
        venv = os.path.join(folder, 'peer')
        subprocess.check_call([sys.executable, '-m', 'venv', venv])
        peer = os.path.join(venv, 'bin', 'python')
        subprocess.check_call([peer, '-m', 'pip', 'install', '--quiet', PEER])
        with SinkProcess() as url:
            burst(args, folder, url, peer, peers, ours)
            backlog(args, folder, url, ours)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class SinkProcess:
    """The collector in a process of its own, so that it shares no interpreter."""

    def __enter__(self):
        code = (
            'import sys; sys.path[:0] = %r\nimport spool\n'
            'with spool.Sink() as sink:\n'
            '    print(sink.url, flush=True)\n    sys.stdin.read()\n'
        ) % [HERE, ROOT]
        self._process = subprocess.Popen(
            [sys.executable, '-c', code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            universal_newlines=True,
        )
        return self._process.stdout.readline().strip()

    def __exit__(self, *exc_info):
        self._process.communicate()


def burst(args, folder, url, peer, peers, ours):
    rows = {'published': [], 'without spool': [], 'with spool': []}
    for number in range(args.rounds):
        spool_dir = os.path.join(folder, 'burst-%d' % number)
        os.mkdir(spool_dir)
        for name, python, environment, where in (
            ('published', peer, peers, ''),
            ('without spool', sys.executable, ours, ''),
            ('with spool', sys.executable, ours, spool_dir),
        ):
            rows[name].append(
                run(python, BURST, url, args.events, where, env=environment)
            )
    print('track() in a burst of %d, medians of %d:' % (args.events, args.rounds))
    base = [statistics.median(column) for column in zip(*rows['published'])]
    for name, values in rows.items():
        medians = [statistics.median(column) for column in zip(*values)]
        ratios = [value / each for value, each in zip(medians, base)]
        print(
            '  %-14s p50 %7.1f us (%.2f)  p99 %7.1f us (%.2f)  p99.9 %7.1f us (%.2f)'
            % ((name,) + sum(zip(medians, ratios), ()))
        )


def backlog(args, folder, url, ours):
    empty, full = os.path.join(folder, 'empty'), os.path.join(folder, 'full')
    os.mkdir(empty)
    os.mkdir(full)
    without = run(sys.executable, START, url, empty, 1, env=ours)
    run(sys.executable, LEAVE, full, args.backlog, env=ours)
    found = run(sys.executable, START, url, full, args.backlog + 1, env=ours)
    print(
        'a start that finds a backlog of %d, beside one that finds none:' % args.backlog
    )
    print(
        '  until the first event is accepted: %.1f and %.1f ms' % (found[0], without[0])
    )
    print(
        '  peak memory: %.1f and %.1f MB, %.1f more'
        % (found[1], without[1], found[1] - without[1])
    )
    print('  delivered %d in %.0f s' % (found[2], found[3]))


if __name__ == '__main__':
    main()
