"""What the SDK costs its caller, beside the published package and others of its kind.

    python benchmarks/run.py [--quick] [--envs DIR] [--only PART] [--json FILE]
                             [--svg FILE]

Makes an environment for each package (kept and used again with ``--envs``), runs each
workload in processes of their own against a sink on this machine, and prints medians with
their ratios to the published package, and the targets. The packages take turns within a
round, so that what else the machine does hits all alike; the order turns, too.

Needs Linux, Python 3.8 or later and a package index; sends nothing but to 127.0.0.1.
"""

import argparse
import contextlib
import json
import os
import platform
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

sys.dont_write_bytecode = True  # nothing is left behind, not even that

import environments  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
from sink import SinkProcess  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
WORKLOADS = os.path.join(HERE, 'workloads.py')

PARTS = (
    'burst',
    'gzip',
    'threads',
    'import',
    'single',
    'shutdown',
    'idle',
    'memory',
    'throughput',
    'growth',
)

# Seconds of the latency that throughput is measured with.
LATENCY = 0.05

# Seconds that a workload may take, and those that its end may take on top.
LIMIT = 90
LONG_LIMIT = 300
END_LIMIT = 10

# Seconds until all idle clients have to be idle; well below LONG_LIMIT.
READY_LIMIT = 180

# Wall time and modules of an import, in an interpreter that has loaded nothing else.
IMPORT = """
import sys, time
before, start = len(sys.modules), time.perf_counter()
import %s
print('[%%f, %%d]' %% (1e3 * (time.perf_counter() - start), len(sys.modules) - before))
"""

Raw = Dict[str, Any]
Results = Dict[str, Dict[str, List[Raw]]]


class Scale(NamedTuple):
    """How much is run: events of a workload, and rounds."""

    rounds: int
    gzip_rounds: int
    few_rounds: int
    import_rounds: int
    burst: int
    callers: int
    single_seconds: float
    shutdown_times: int
    idle_seconds: float
    memory: int
    throughput: int
    sizes: List[int]


FULL = Scale(
    rounds=5,
    gzip_rounds=5,
    few_rounds=5,
    import_rounds=11,
    burst=10000,
    callers=10000,
    single_seconds=3,
    shutdown_times=3,
    idle_seconds=20,
    memory=50000,
    throughput=16000,
    sizes=[1000, 10000, 100000, 1000000],
)
QUICK = Scale(
    rounds=2,
    gzip_rounds=1,
    few_rounds=1,
    import_rounds=3,
    burst=10000,
    callers=10000,
    single_seconds=0.3,
    shutdown_times=2,
    idle_seconds=5,
    memory=10000,
    throughput=4000,
    sizes=[1000, 10000, 100000],
)


def _no_sdk(peer: peers.Peer) -> bool:
    return peer.limit


class Step(NamedTuple):
    """One line of the plan: a workload with its options, for some of the peers.

    :ivar name: names it in the results
    :ivar skips: tells of a peer whether it cannot do this
    """

    name: str
    part: str
    workload: str
    options: Dict[str, Any]
    rounds: int
    skips: Callable[[peers.Peer], bool] = _no_sdk
    limit: int = LIMIT


def plan(scale: Scale) -> List[Step]:
    rounds, few = scale.rounds, scale.few_rounds
    burst = {'events': scale.burst}
    zipped = dict(burst, gzip=True)
    callers = {'events': scale.callers, 'callers': 8}
    single = {'seconds': scale.single_seconds, 'most': 200}
    ending = {'events': 1000, 'times': scale.shutdown_times}
    slow = {'events': scale.throughput, 'latency': LATENCY}

    def idle_step(count: int) -> Step:
        options = {'clients': count, 'seconds': scale.idle_seconds}
        return Step('idle_%d' % count, 'idle', 'idle', options, 1, limit=LONG_LIMIT)

    return [
        Step('burst', 'burst', 'burst', burst, rounds, lambda peer: False),
        Step(
            'gzip',
            'gzip',
            'burst',
            zipped,
            scale.gzip_rounds,
            lambda peer: not peer.gzip,
        ),
        Step('threads', 'threads', 'threads', callers, few),
        Step('import', 'import', 'import', {}, scale.import_rounds),
        Step('single', 'single', 'single', single, few),
        Step('shutdown', 'shutdown', 'shutdown', ending, few),
        idle_step(1),
        idle_step(1000),
        Step('memory', 'memory', 'memory', {'events': scale.memory}, few),
        Step(
            'throughput',
            'throughput',
            'throughput',
            slow,
            few,
            lambda peer: peer.limit or not peer.threads,
        ),
    ] + growth(scale)


def growth(scale: Scale) -> List[Step]:
    """The steps whose CPU per event should not grow; of ours only."""
    cases = [
        ('events_%d' % size, 'bursts', {'events': size, 'times': max(1, 10000 // size)})
        for size in scale.sizes
    ]
    for count in (1, 2, 4, 8):
        options = {'events': scale.callers, 'callers': count}
        cases.append(('callers_%d' % count, 'threads', options))
    for count in (10, 10000):
        cases.append(('depth_%d' % count, 'depth', {'depth': count, 'events': 10000}))
    for count in (1, 10, 100, 1000):
        options = {'clients': count, 'events': 10000}
        cases.append(('clients_%d' % count, 'clients', options))
    return [
        Step(
            name,
            'growth',
            workload,
            options,
            scale.few_rounds,
            lambda peer: not peer.ours,
            LONG_LIMIT,
        )
        for name, workload, options in cases
    ]


class Child:
    """A workload in a process of its own, as a context manager that ends it."""

    def __init__(self, python: str, step: Step, peer: peers.Peer, url: str) -> None:
        self._limit = step.limit
        if step.workload == 'import':
            command = [python, '-I', '-c', IMPORT % peer.module]
        else:
            options = json.dumps(step.options)
            command = [python, WORKLOADS, step.workload, peer.key, url, options]
            command.append(str(step.limit))
        # A file: some clients log so much that a pipe would fill and stop them.
        self._errors = tempfile.TemporaryFile('w+', errors='replace')
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            universal_newlines=True,
            env=environments.clean_environ(),
            cwd=tempfile.gettempdir(),  # not where a hightouch/ is
        )

    def __enter__(self) -> 'Child':
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()

    def is_ready(self, deadline: float) -> bool:
        """Wait for the first line of output, or for the end of the process."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0, deadline - time.monotonic())):
                return False
        return self._process.stdout.readline() == 'ready\n'

    def go(self) -> None:
        """Have a child that is ready begin."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write('\n')
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended: its result tells why

    def result(self) -> Raw:
        """Wait for the end of the child; what it printed, or why there is nothing."""
        try:
            out, _ = self._process.communicate(timeout=self._limit + END_LIMIT)
        except subprocess.TimeoutExpired:
            return {'error': 'took more than %d s' % self._limit}
        if self._process.returncode == -signal.SIGALRM:
            return {'error': 'took more than %d s' % self._limit}
        try:
            return _as_result(json.loads(out.splitlines()[-1]))
        except (IndexError, ValueError):
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
            return {'error': lines[-1] if lines else 'ended without a result'}


def _as_result(printed: Any) -> Raw:
    if isinstance(printed, dict):
        return printed
    return {'figures': {'ms': printed[0], 'modules': printed[1]}}


class Runner:
    def __init__(self, pythons: Dict[str, str], chosen: List[peers.Peer]) -> None:
        self._pythons = pythons
        self._peers = [each for each in chosen if each.key in pythons]
        self.results: Results = {}

    def run(self, steps: List[Step]) -> None:
        """Run the steps of a part together: a round has each of them once per peer."""
        start = time.monotonic()
        if any(step.workload == 'idle' for step in steps):
            self._all_at_once(steps)
        else:
            for number in range(max(step.rounds for step in steps)):
                for step in steps:
                    if number < step.rounds:
                        self._round(step, number)
        _say('%s: %.0f s' % (steps[0].part, time.monotonic() - start))

    def _round(self, step: Step, number: int) -> None:
        able = [each for each in self._peers if not step.skips(each)]
        turn = number % len(able) if able else 0
        able = able[turn:] + able[:turn]
        # A sink of its own for each round: its memory does not grow from one to the next.
        with SinkProcess() as url:
            for peer in able:
                with Child(self._pythons[peer.key], step, peer, url) as child:
                    self._keep(step, peer, child.result())

    def _all_at_once(self, steps: List[Step]) -> None:
        """Idle processes do not disturb each other, and would take long in turn."""
        pairs = [(s, p) for s in steps for p in self._peers if not s.skips(p)]
        with contextlib.ExitStack() as stack:
            children = []
            for step, peer in pairs:
                url = stack.enter_context(SinkProcess())
                child = Child(self._pythons[peer.key], step, peer, url)
                children.append(stack.enter_context(child))
            deadline = time.monotonic() + READY_LIMIT
            ready = [child for child in children if child.is_ready(deadline)]
            for child in ready:
                child.go()
            for (step, peer), child in zip(pairs, children):
                self._keep(step, peer, child.result())

    def _keep(self, step: Step, peer: peers.Peer, result: Raw) -> None:
        self.results.setdefault(step.name, {}).setdefault(peer.key, []).append(result)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> Dict[str, Any]:
    return {
        'python': platform.python_version(),
        'implementation': platform.python_implementation(),
        'cpus': len(os.sched_getaffinity(0)),
        'system': platform.system(),
        'architecture': platform.machine(),
    }


@contextlib.contextmanager
def scratch_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix='htevents-benchmark-')
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def parse(args: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='about three minutes')
    parser.add_argument('--envs', metavar='DIR', help='keep the environments there')
    parser.add_argument('--only', metavar='PART', choices=PARTS, action='append')
    parser.add_argument('--json', metavar='FILE', help='all rounds, and the medians')
    parser.add_argument('--svg', metavar='FILE', help='a picture')
    return parser.parse_args(args)


def main() -> None:
    args = parse()
    # So that `finally` and the context managers end what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scale = QUICK if args.quick else FULL
    steps = plan(scale)
    with scratch_folder() as scratch:
        folder = os.path.abspath(args.envs or os.path.join(scratch, 'envs'))
        os.makedirs(folder, exist_ok=True)
        _say('environments: %s' % folder)
        pythons, versions, missing = environments.prepare(folder, scratch, peers.ALL)
        for key, reason in missing.items():
            print('skipped %s: %s' % (peers.BY_KEY[key].label, reason))
        runner = Runner(pythons, peers.ALL)
        for part in args.only or PARTS:
            runner.run([step for step in steps if step.part == part])
    facts = {
        'machine': machine(),
        'quick': args.quick,
        'versions': versions,
        'skipped': missing,
        'scale': scale._asdict(),
    }
    figures = report.Figures(runner.results)
    print(report.text(figures, facts))
    if args.json:
        with open(args.json, 'w') as file:
            json.dump(
                dict(facts, medians=figures.medians(), rounds=runner.results),
                file,
                indent=1,
            )
            file.write('\n')
    if args.svg:
        with open(args.svg, 'w') as file:
            file.write(report.svg(figures, facts))


if __name__ == '__main__':
    main()
