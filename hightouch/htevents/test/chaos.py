"""Chaos: everything goes wrong at once, and nothing that was accepted is lost.

``python -m hightouch.htevents.test.chaos`` runs the short form, ``--long`` the long one.
Workers share one spool directory. They are killed at random moments, they fork, leave by
``os._exit``, hit limits of the file system, and talk to a collector that fails in every
way it can. At the end what was accepted is compared with what the collector received.

A run follows from its seed, but for the timing of processes.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import uuid
from collections import Counter
from typing import (
    Any,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Set,
    TextIO,
    Tuple,
)

import requests

from hightouch.htevents import Client
from hightouch.htevents._queue import retry
from hightouch.htevents._spool.directory import stream_name
from hightouch.htevents.collector import Collector, Fault, Received, Refused

# Each worker's write key is told by the first letter of its name.
KEYS = {'a': 'chaos-key-a', 'b': 'chaos-key-b'}

# How a worker lives, and how often.
MODES = (
    ('plain', 5),
    ('threads', 3),
    ('fork', 3),  # while another thread tracks
    ('exit', 1),  # os._exit
    ('small', 1),  # a spool of 1 MiB
    ('limit', 1),  # on the size of files
    ('fsync', 1),
)

# Without kills nobody ends before an answer was read, so that only a lost answer explains
# what comes twice.
HARMLESS = (('plain', 1), ('threads', 1))

# Seconds that the clients wait for an answer; a slow one comes later.
CLIENT_TIMEOUT = 0.5
SLOW = 0.8

# Answers of the collector, in percent of the requests; the others succeed.
FAULTS = (
    (503, 7),
    (429, 5),
    (413, 5),  # of batches over 60 events
    ('reset-before', 5),
    ('reset', 5),
    ('reset-after', 5),
    ('slow', 3),
    ('hang', 1),
)

# Seconds for the end: everything that waits has to arrive in that time. In the long form
# most batches hold an event that is refused, and are halved until it is found.
DRAIN_LIMIT = 600
LONG_DRAIN_LIMIT = 1800

# Children of a worker that forks.
FORKS = 5

# Seconds after which a worker that nobody killed ends by itself.
LIFETIME = 60

WORKERS = 4


def pick(choice: random.Random, weighted: Any, total: int = 0) -> Any:
    """Pick one by its weight; None for what is left of ``total``."""
    number = choice.uniform(0, total or sum(weight for _, weight in weighted))
    for value, weight in weighted:
        number -= weight
        if number < 0:
            return value
    return None


# -- the collector, in a process of its own ------------------------------------------


class ChaosCollector(Collector):
    """A collector that fails, and counts ids instead of keeping events."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        # By the id of an event: the requests that brought it.
        self.received: Dict[str, List[str]] = {}
        self.wrong_key: List[str] = []
        self.counts: 'Counter[str]' = Counter()
        self._choice = random.Random(seed)
        self._current = threading.local()

    def _next_step(self, path: str) -> Any:
        with self._arrival:
            step = pick(self._choice, FAULTS, 100)
        self._current.step = step
        if step == 429:
            return Fault(429, {'Retry-After': '0'})
        if step == 'slow':
            return Fault(200, delay=SLOW)
        if step == 413:
            return lambda received: 413 if len(received.body['batch']) > 60 else 200
        return 200 if step is None else step

    def _check(self, received: Received, type_: str) -> List[Any]:
        batch = received.body['batch']
        if any(each['event'] == 'poison' for each in batch):
            raise Refused('poison')
        with self._arrival:
            for each in [each['messageId'] for each in batch]:
                self.received.setdefault(each, []).append(received.headers['x-request'])
                if received.body['writeKey'] != KEYS[each[0]]:
                    self.wrong_key.append(each)
        return list(batch)

    def _note(self, received: Received, events: Any = (), why: str = '') -> None:
        step = self._current.step
        # A fault that did not apply (413 to a small batch) is none.
        fault = step is not None and (step != 413 or received.status == 413)
        with self._arrival:
            self.counts[str(step) if fault else str(received.status)] += 1

    def outage(self) -> None:
        """Break all connections; what was just taken gets no answer."""
        self.stop()
        with self._arrival:
            self.counts['outages'] += 1

    def report(self) -> Dict[str, Any]:
        with self._arrival:
            return {
                'received': self.received,
                'wrong_key': self.wrong_key,
                'counts': self.counts,
            }


def serve(seed: int) -> None:
    """Run the collector; commands come by stdin, answers go to stdout."""
    collector = ChaosCollector(seed)
    with collector:
        print(collector.url, flush=True)
        for line in sys.stdin:
            command, _, argument = line.strip().partition(' ')
            if command == 'outage':
                collector.outage()
                time.sleep(float(argument))
                collector.start()
            elif command == 'report':
                with open(argument, 'w') as file:
                    json.dump(collector.report(), file)
            print('done', flush=True)


class CollectorProcess:
    """The collector as the parent sees it."""

    def __init__(self, seed: int) -> None:
        self._process = start_python('serve(%d)' % seed, stdin=subprocess.PIPE)
        self.url = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return str(self._process.stdout.readline().strip())

    def tell(self, command: str, wait: bool = True) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + '\n')
        self._process.stdin.flush()
        if wait:
            self._answer()

    def outage(self, seconds: float) -> threading.Thread:
        """Begin an outage; gives the thread that ends with it."""
        thread = threading.Thread(target=self.tell, args=('outage %f' % seconds,))
        thread.start()
        return thread

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def start_python(call: str, **options: Any) -> 'subprocess.Popen[str]':
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, '-c']
        + ['from hightouch.htevents.test.chaos import *; ' + call],
        stdout=subprocess.PIPE,
        universal_newlines=True,
        # Newer Pythons warn of a fork beside threads, which is just what we do.
        env=dict(os.environ, PYTHONPATH=paths, PYTHONWARNINGS='ignore'),
        **options,
    )


# -- a worker ------------------------------------------------------------------------


class Notes:
    """What a process knows, in a file that outlives it: one write for each line."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, kind: str, text: str = '') -> None:
        os.write(self._fd, ('%s %s\n' % (kind, text)).encode('ascii'))

    def on_error(self, error: Exception, batch: List[Dict[str, Any]]) -> None:
        for each in batch:
            self.add('reported', each['messageId'])


class NotingSession(requests.Session):
    """Names each request, and notes which got their answer: these must not come again."""

    def __init__(self, notes: Notes) -> None:
        super().__init__()
        self._notes = notes

    def post(self, url: Any, *args: Any, **kwargs: Any) -> Any:
        name = uuid.uuid4().hex
        kwargs['headers'] = dict(kwargs['headers'], **{'X-Request': name})
        response = super().post(url, *args, **kwargs)
        if response.status_code == 200:
            self._notes.add('answered', name)
        return response


class Life(NamedTuple):
    """What a worker is to do.

    :ivar killed: whether it lives until it is killed
    :ivar in_order: whether it shall wait for all answers at its end
    """

    url: str
    folder: str
    name: str
    mode: str
    count: int
    seed: int
    killed: bool
    in_order: bool


def work(life: Life) -> None:
    """Track events, and note each that was accepted."""
    choice = random.Random(life.seed)
    notes = Notes(os.path.join(life.folder, 'notes'))
    if life.mode == 'limit':
        size = choice.choice((100, 300, 1000)) << 10
        # The limit is for it, too.
        notes = Notes(os.path.join(life.folder, 'notes-' + life.name))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    client = Client(
        KEYS[life.name[0]],
        life.url,
        spool_dir=os.path.join(life.folder, 'spool'),
        spool_max_bytes=1 << 20 if life.mode == 'small' else 256 << 20,
        spool_fsync=life.mode == 'fsync',
        session=NotingSession(notes),
        on_error=notes.on_error,
        timeout=CLIENT_TIMEOUT,
        thread=choice.choice((1, 1, 2, 4)),
        upload_size=choice.choice((20, 100, 100, 500)),
        upload_interval=choice.choice((0, 0.05, 0.5)),
        shutdown_timeout=LIFETIME if life.in_order else choice.choice((0.1, 0.5, 2)),
        gzip=choice.random() < 0.3,
    )
    count = life.count // 10 or 1 if life.mode == 'fsync' else life.count

    def track(prefix: str, numbers: Iterable[int]) -> None:
        for number in numbers:
            message_id = '%s-%d' % (prefix, number)
            bad = number % 997 == 50
            size = 4000 if number % 50 == 0 else 300
            accepted, _ = client.track(
                'user',
                'poison' if bad else 'event',
                {'text': 'x' * size},
                message_id=message_id,
            )
            notes.add('accepted' if accepted else 'refused', message_id)

    def start(part: int, numbers: Iterable[int]) -> threading.Thread:
        thread = threading.Thread(
            target=track, args=('%s.%d' % (life.name, part), numbers)
        )
        thread.start()
        return thread

    if life.mode == 'threads':
        third = count // 3
        threads = [start(part, range(third)) for part in range(2)]
        track(life.name, range(count - 2 * third))
        for thread in threads:
            thread.join()
    elif life.mode == 'fork':
        other = start(0, range(count // 2))
        for number in range(FORKS):
            track('%s.%d' % (life.name, 1 + number), range(count // 2 // FORKS))
            notes.add('fork')
            if os.fork() == 0:
                be_a_child(client, track, '%s.f%d' % (life.name, number), choice)
        for _ in range(FORKS):
            os.wait()
        other.join()
    else:
        track(life.name, range(count))
    if life.mode == 'exit' and not life.killed:
        os._exit(0)
    deadline = time.monotonic() + LIFETIME
    number = count
    while life.killed and time.monotonic() < deadline:
        track(life.name, [number])
        number += 1
        time.sleep(0.002)


def be_a_child(client: Client, track: Any, name: str, choice: random.Random) -> None:
    signal.alarm(60)  # a hang is an end as well: SIGALRM, and the parent goes on
    track(name, range(20))
    end = choice.choice(('kill', 'flush', 'shutdown', 'exit'))
    if end == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    elif end == 'flush':
        client.flush(0.2)
    elif end == 'shutdown':
        client.shutdown(0.2)
    os._exit(0)


# -- the run -------------------------------------------------------------------------


class Result(NamedTuple):
    accepted: int
    delivered: int
    reported: int
    lost: List[str]
    wrong_key: List[str]
    duplicates: int
    answered_twice: int
    left: List[str]
    counts: 'Counter[str]'
    seconds: float


class Run:
    """One run: workers that come and go, then who sends the rest, then the comparison."""

    def __init__(
        self,
        seed: int,
        events: int,
        kills: int,
        out: Optional[TextIO],
        drain_limit: float = DRAIN_LIMIT,
    ) -> None:
        self._choice = random.Random(seed)
        self._events = events
        self._kills = kills
        self._out = out
        self._drain_limit = drain_limit
        self._folder = tempfile.mkdtemp()
        self._spool = os.path.join(self._folder, 'spool')
        os.mkdir(self._spool, 0o700)
        self._collector = CollectorProcess(seed)
        self._counts: 'Counter[str]' = Counter()
        self._workers: List[Tuple[Any, float]] = []  # process, when to kill it
        self._outage: Optional[threading.Thread] = None

    def __call__(self) -> Result:
        start = time.monotonic()
        try:
            self._run()
            self._drain()
            return self._compare(start)
        finally:
            for process, _ in self._workers:
                process.kill()
                process.communicate()
            self._collector.stop()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        lives = max(self._kills + self._kills // 4, 2 * WORKERS)
        each = max(1, self._events // lives)
        for number in range(lives):
            while len(self._workers) >= WORKERS:
                self._reap()
            self._start(number, each, kill=number < self._kills)
            self._maybe_fail()
            if self._out is not None and number % 50 == 49:
                print('  %d of %d workers' % (number + 1, lives), file=self._out)
                self._out.flush()
        while self._workers:
            self._reap()
        if self._outage is not None:
            self._outage.join()

    def _start(self, number: int, count: int, kill: bool) -> None:
        life = Life(
            url=self._collector.url,
            folder=self._folder,
            name='%s%d' % ('b' if number % 5 == 4 else 'a', number),
            mode=pick(self._choice, MODES if self._kills else HARMLESS),
            count=count,
            seed=self._choice.randrange(1 << 30),
            killed=kill,
            in_order=not self._kills,
        )
        process = start_python('work(%r)' % (life,))
        # Python itself starts for some 0.3 s; some are hit in there, most at work.
        delay = self._choice.uniform(0.1, 1.5) if kill else DRAIN_LIMIT
        self._workers.append((process, time.monotonic() + delay))
        self._counts['workers'] += 1

    def _reap(self) -> None:
        for worker in list(self._workers):
            process, kill_at = worker
            if process.poll() is None and time.monotonic() >= kill_at:
                process.kill()
                self._counts['kills'] += 1
                process.wait()
            if process.poll() is not None:
                process.communicate()
                self._workers.remove(worker)
        time.sleep(0.005)

    def _maybe_fail(self) -> None:
        if self._outage is not None and self._outage.is_alive():
            return
        if self._choice.random() < 0.05:
            self._outage = self._collector.outage(self._choice.uniform(0.2, 3))

    def _files(self, key: str) -> List[str]:
        try:
            names = os.listdir(os.path.join(self._spool, stream_name(key)))
        except FileNotFoundError:
            return []
        return [each for each in names if not each.endswith('.damaged')]

    def _drain(self) -> None:
        """Deliver all that waits."""
        notes = Notes(os.path.join(self._folder, 'notes'))
        deadline = time.monotonic() + self._drain_limit
        # The steps are the same, and minutes of waiting take seconds.
        before, retry.BASE = retry.BASE, 0.03
        try:
            self._send_what_is_left(notes, deadline)
        finally:
            retry.BASE = before

    def _send_what_is_left(self, notes: Notes, deadline: float) -> None:
        for key in KEYS.values():
            while self._files(key) and time.monotonic() < deadline:
                with Client(
                    key,
                    self._collector.url,
                    spool_dir=self._spool,
                    session=NotingSession(notes),
                    on_error=notes.on_error,
                    timeout=CLIENT_TIMEOUT,
                    # Most of the time they wait to try again.
                    thread=16,
                    upload_size=500,
                ):
                    pause = time.monotonic() + 5
                    while self._files(key) and time.monotonic() < pause:
                        time.sleep(0.02)

    def _compare(self, start: float) -> Result:
        path = os.path.join(self._folder, 'report')
        self._collector.tell('report ' + path)
        with open(path) as file:
            report = json.load(file)
        noted = self._read_notes()
        received: Dict[str, List[str]] = report['received']
        duplicates = answered_twice = 0
        for brought_by in received.values():
            answered = sum(each in noted['answered'] for each in brought_by)
            duplicates += len(brought_by) - 1
            answered_twice += max(0, answered - 1)
        self._counts.update(report['counts'])
        left = [each for key in KEYS.values() for each in self._files(key)]
        for _, _, names in os.walk(self._spool):
            left += [each for each in names if each.endswith('.damaged')]
        return Result(
            accepted=len(noted['accepted']),
            delivered=len(received),
            reported=len(noted['reported']),
            lost=sorted(noted['accepted'] - noted['reported'] - set(received)),
            wrong_key=report['wrong_key'],
            duplicates=duplicates,
            answered_twice=answered_twice,
            left=left,
            counts=self._counts,
            seconds=time.monotonic() - start,
        )

    def _read_notes(self) -> Dict[str, Set[str]]:
        noted: Dict[str, Set[str]] = {
            kind: set() for kind in ('accepted', 'reported', 'answered')
        }
        for name in os.listdir(self._folder):
            if name.startswith('notes'):
                with open(os.path.join(self._folder, name)) as file:
                    for line in file:
                        kind, _, text = line.strip().partition(' ')
                        if kind in noted:
                            noted[kind].add(text)
                        else:
                            self._counts[kind] += 1
        return noted


def show(result: Result) -> None:
    counts = result.counts
    names = [str(each) for each, _ in FAULTS] + ['400']
    faults = ', '.join('%s %d' % (each, counts[each]) for each in names)
    requests = sum(counts[each] for each in names + ['200'])
    print('accepted    %8d' % result.accepted)
    print('delivered   %8d' % result.delivered)
    print('reported    %8d (refused by the collector)' % result.reported)
    print('refused     %8d (answered False)' % counts['refused'])
    print(
        'duplicates  %8d (no answer came: %d; killed before it was noted: %d)'
        % (
            result.duplicates,
            result.duplicates - result.answered_twice,
            result.answered_twice,
        )
    )
    print('kills       %8d of %d workers' % (counts['kills'], counts['workers']))
    print('forks       %8d' % counts['fork'])
    print('outages     %8d' % counts['outages'])
    failed = sum(counts[str(each)] for each, _ in FAULTS)
    share = 100.0 * failed / (requests or 1)
    print('requests    %8d; faults %d %%: %s' % (requests, share, faults))
    print('seconds     %8.1f' % result.seconds)
    print('lost        %8d' % len(result.lost))
    for problem in problems(result):
        print(problem)


def problems(result: Result) -> List[str]:
    """Say what must not be."""
    found = [
        '%d %s: %s' % (len(items), title, ', '.join(items[:20]))
        for title, items in (
            ('lost', result.lost),
            ('sent with a wrong key', result.wrong_key),
            ('file(s) left or damaged', result.left),
        )
        if items
    ]
    if not result.counts['kills'] and result.answered_twice:
        found.append('%d came again although answered' % result.answered_twice)
    return found


def main(argv: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--seed', type=int, default=int(time.time()))
    parser.add_argument('--events', type=int, default=20000)
    parser.add_argument('--kills', type=int, default=24)
    parser.add_argument('--long', action='store_true', help='1,000,000 and 1,000')
    args = parser.parse_args(argv)
    limit = DRAIN_LIMIT
    if args.long:
        args.events, args.kills, limit = 1000000, 1000, LONG_DRAIN_LIMIT
    print('seed %d, %d events, %d kills' % (args.seed, args.events, args.kills))
    result = Run(args.seed, args.events, args.kills, sys.stdout, limit)()
    show(result)
    return 1 if problems(result) else 0


class ChaosTest(unittest.TestCase):
    def test_a_short_run_loses_nothing(self) -> None:
        result = Run(seed=7, events=1000, kills=4, out=None)()
        self.assertEqual(problems(result), [])
        self.assertGreater(result.accepted, 100)


if __name__ == '__main__':
    sys.exit(main())
