"""Threads that deliver for the many: one set for all clients that have none of their own.

Theory of operation
-------------------
A process may have a client for each tenant, and most of them wait most of the time. A
thread for each takes memory; to start one when it is needed keeps the caller waiting; and
many that are at work at once hand the interpreter to and fro.

So each such client has a `Job` here instead, which is *called* for the time when its
batch is due, or *hurried* when that is full. *The watch*, a thread that leaves delivering
to others, keeps the calendar of those times, and passes what is due to the *workers*. One is
enough as long as nothing waits for it longer than `PATIENCE`; then the watch engages one
more, then two, then four. So a server that does not answer holds up its own client only.
Workers without work end, but for the last.

The application's side takes no lock and waits for nothing, as in `event_queue`: append,
and then look whether the watch has to be woken. The watch says first until when it would
sleep, and then looks at what was appended.
"""

import heapq
import threading
from collections import deque
from itertools import count
from time import sleep
from typing import Any, Callable, Deque, Dict, List, Optional, Set, Tuple

from hightouch.htevents import fork
from hightouch.htevents.concurrency import Signal, monotonic, try_start
from hightouch.htevents.fork import getpid
from hightouch.htevents.logs import outlive

# Seconds that a job waits for a worker that is busy before another one is engaged.
PATIENCE = 0.02

# Seconds without work after which a worker ends that is not the only one.
IDLE_AFTER = 1.0

# Seconds before a thread is tried again after the system refused one; and of refusals
# after which the watch does what the workers should.
START_RETRY_INTERVAL = 1.0

_FOREVER = float('inf')

_Thread = threading.Thread  # as it is now: a test may replace it for a while


class Job:
    """What one client has the workers do. All may be called from anywhere.

    :param serve: called on a worker: calls `begin`, delivers a batch if one `is_due`, and
        calls `end`; or nothing of this, when others are at it who will call `end`
    :param due: gives the monotonic time when a batch is to be taken; None when nothing
        waits
    """

    __slots__ = ('serve', 'called', 'hurried', '_due')

    def __init__(
        self, serve: Callable[[], None], due: Callable[[], Optional[float]]
    ) -> None:
        self.serve = serve
        self._due = due
        self.called = False  # is in the calendar
        self.hurried = 0.0  # since when it waits for a worker; 0: it does not

    def open(self) -> None:
        """To be called before all others; keeps the threads from ending."""
        _pools.jobs.add(self)

    def call(self, due: float) -> None:
        """Have the client looked at at that time."""
        try:
            self.called = True
            _current().call(due, self)
        except BaseException:  # KeyboardInterrupt: twice is better than never
            self.called = False
            raise

    def set(self) -> None:
        """Have the client served now. Named as in `Signal`: a queue wakes us by it."""
        if self.hurried:
            return
        try:
            self.hurried = monotonic()
            _current().hurry(self)
        except BaseException:
            self.hurried = 0.0
            raise

    def begin(self) -> None:
        """What comes from now on needs another turn."""
        self.hurried = 0.0

    def end(self) -> None:
        """See that what waits has its turn."""
        self.begin()
        self.look()

    def is_due(self) -> bool:
        due = self._due()
        return due is not None and due <= monotonic()

    def look(self) -> None:
        due = self._due()
        if due is None:
            return
        if due <= monotonic():
            self.set()
        elif not self.called:
            self.call(due)

    def close(self) -> None:
        """Let go of the client: it needs nothing any more."""
        self.serve = self._due = _nothing
        _pools.jobs.discard(self)
        if not _pools.jobs:
            for pool in list(_pools.made.values()):
                pool.end()


def _nothing() -> None:
    pass


class _Worker(threading.Thread):
    def __init__(self, run: Callable[['_Worker'], None]) -> None:
        super().__init__(name='htevents-worker')
        self.signal = Signal()
        self.engaged = True  # is on its way to work
        self._work = run

    def run(self) -> None:
        self._work(self)


class Pool:
    """The watch and the workers of a process; no thread until something is called."""

    def __init__(self) -> None:
        self.pid = getpid()
        self._kind = threading.Lock
        # What is called for a time: as it comes, and sorted, which only the watch does.
        self._calls: Deque[Tuple[float, int, Job]] = deque()
        self._calendar: List[Tuple[float, int, Job]] = []
        self._number = count()  # jobs of the same time are not compared
        # What waits for a worker, and since when.
        self._ready: Deque[Tuple[float, Job]] = deque()
        self._workers: List[_Worker] = []
        self._idle: List[_Worker] = []
        self._to_engage = 1
        self._wakeup = Signal()  # of the watch
        # The watch looks by itself at that time, and while it is awake soon.
        self._next_look = 0.0
        self._awake = True
        self._started = False
        self.running = False  # whether the watch is there, and not only on its way
        self._next_start = 0.0
        # Taken by the one thread that is the watch. Several may be started at once, and one
        # that was started may seem not to be: an interrupt can come at any step of it.
        self._seat = [True]
        self._refused_since: Optional[float] = None  # of the workers

    # -- the application's side ------------------------------------------------------

    def call(self, due: float, job: Job) -> None:
        self._calls.append((due, next(self._number), job))
        if not self._started:
            self._start()
        elif due < self._next_look:
            self._wakeup.set()

    def hurry(self, job: Job) -> None:
        self._ready.append((monotonic(), job))
        if not self._started:
            self._start()
        elif not self._awake:
            self._wakeup.set()

    def _start(self) -> None:
        if self.running:
            self._wakeup.set()  # its start seemed to fail
            return
        if monotonic() < self._next_start:
            self._forget()
            return
        watch = _Thread(target=self._watch, name='htevents-watch')
        # Before it runs: what is called meanwhile has to wake it.
        self._started = True
        try:
            if not try_start(watch):
                self._started = False
                self._next_start = monotonic() + START_RETRY_INTERVAL
                self._forget()
        except BaseException:  # KeyboardInterrupt: it runs, or it does not
            self._started = False
            self._forget()
            raise

    def _forget(self) -> None:
        # No thread to be had: events wait for a flush, the exit, or a next call.
        for waiting in (self._calls, self._ready):  # type: Any
            while True:
                try:
                    job = waiting.popleft()[-1]
                except IndexError:
                    break
                job.called = False
                job.hurried = 0.0

    # -- the watch -------------------------------------------------------------------

    def end(self) -> None:
        """End the threads, unless there is something to do."""
        self._wakeup.set()

    def _watch(self) -> None:
        try:
            self._seat.pop()
        except IndexError:
            return
        self._started = self.running = True
        _scope.pool = self
        while getpid() == self.pid and not self._ends():
            try:
                self._look()
            except BaseException as error:
                _go_on_after(error)

    def _ends(self) -> bool:
        if _pools.jobs or self._calls or self._ready:
            return False
        self._calendar = []  # what is left there was closed
        self.running = self._started = False
        self._seat.append(True)
        if self._calls or self._ready:
            self._start()  # came just now
        for worker in list(self._idle):
            worker.signal.set()
        return True

    def _look(self) -> None:
        self._awake = True
        self._next_look = 0.0
        self._read_calendar()
        self._engage()
        if self._unattended() or not _pools.jobs:
            self._wakeup.wait(PATIENCE)
            return
        self._to_engage = 1
        self._awake = False
        self._next_look = self._calendar[0][0] if self._calendar else _FOREVER
        if not self._calls and not self._unattended():
            until = self._next_look
            self._wakeup.wait(None if until == _FOREVER else until - monotonic())

    def _read_calendar(self) -> None:
        while True:
            try:
                heapq.heappush(self._calendar, self._calls.popleft())
            except IndexError:
                break
        jobs = _pools.jobs
        if len(self._calendar) > 2 * len(jobs) + 100:  # most are of closed ones
            self._calendar = [each for each in self._calendar if each[2] in jobs]
            heapq.heapify(self._calendar)
        while self._calendar and self._calendar[0][0] <= monotonic():
            job = heapq.heappop(self._calendar)[2]
            job.called = False
            job.look()

    def _unattended(self) -> bool:
        return len(self._ready) > sum(each.engaged for each in list(self._workers))

    def _engage(self) -> None:
        try:
            since = self._ready[0][0]
        except IndexError:
            return
        busy = len(self._workers) > len(self._idle)
        if busy and monotonic() - since < PATIENCE:
            return
        for _ in range(min(self._to_engage, len(self._ready))):
            if not self._engage_one():
                return
        self._to_engage *= 2

    def _engage_one(self) -> bool:
        try:
            worker = self._idle.pop()
        except IndexError:
            return self._add_worker()
        worker.engaged = True
        worker.signal.set()
        return True

    def _add_worker(self) -> bool:
        if threading.Lock is not self._kind:
            # Patched by gevent after we came to life. What is started here now would not
            # run: it would wait for this thread, which does not know of it.
            self._serve_next()
            return False
        worker = _Worker(self._work)
        self._workers.append(worker)
        try:
            started = try_start(worker)
        except BaseException:
            self._workers.remove(worker)
            raise
        if not started:
            self._workers.remove(worker)
            # No thread to be had. Once may be bad luck, and a server that hangs would
            # take us from the calendar; but not to deliver at all is worse.
            now = monotonic()
            self._refused_since = self._refused_since or now
            if now - self._refused_since >= START_RETRY_INTERVAL:
                self._serve_next()
            return False
        self._refused_since = None
        return True

    # -- the workers -----------------------------------------------------------------

    def _work(self, worker: _Worker) -> None:
        _scope.pool = self
        while getpid() == self.pid:
            worker.engaged = False
            if self._serve_next():
                continue
            self._idle.append(worker)
            stays = self.running and len(self._workers) == 1
            woken = worker.signal.wait(None if stays else IDLE_AFTER)
            try:
                self._idle.remove(worker)
            except ValueError:
                if not woken:
                    worker.signal.wait()  # engaged just now
                continue
            if not self.running or not (woken or len(self._workers) == 1):
                self._workers.remove(worker)
                if self._workers or not self.running:
                    return
                self._workers.append(worker)  # two left together: one stays

    def _serve_next(self) -> bool:
        try:
            _, job = self._ready.popleft()
        except IndexError:
            return False
        try:
            job.serve()
        except BaseException as error:  # of a handler of the log, say
            _go_on_after(error)
        return True


def _go_on_after(error: BaseException) -> None:
    outlive(error, 'Delivery goes on after an error')
    sleep(1)  # a second try must not spin


class _Pools:
    """The pool of this process, made when it is first needed."""

    def __init__(self) -> None:
        self._after_fork()
        fork.register(self)

    def _after_fork(self) -> None:
        # By what threads and locks are made of: gevent may replace that at any time.
        self.made: Dict[Any, Pool] = {}
        # Those that may have something to do. When there are none the threads end.
        self.jobs: Set[Job] = set()


_pools = _Pools()


def is_running() -> bool:
    """Whether somebody takes care of what is called."""
    return _current().running


class _Scope(threading.local):
    """The pool that the current thread belongs to."""

    pool: Optional[Pool] = None


_scope = _Scope()


def _current() -> Pool:
    # One of its threads keeps to its pool, whatever gevent does meanwhile: threads that
    # it starts for the other pool would be of the wrong kind.
    own = _scope.pool
    if own is not None and own.pid == getpid():
        return own
    kind = threading.Lock
    return _pools.made.get(kind) or _pools.made.setdefault(kind, Pool())
