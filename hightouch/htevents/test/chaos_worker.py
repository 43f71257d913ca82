"""A process of the chaos suite: tracks events until somebody kills it (see chaos)."""

import faulthandler
import logging
import os
import random
import signal
import struct
import sys
import threading
import time
import traceback
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from hightouch.htevents import Client, lifecycle, retry

# Seconds that a client waits for an answer; faults are made longer or shorter than it.
TIMEOUT = 0.6

# Events that one client may owe before its threads wait: the collector is the slow part.
MAX_PENDING = 1500

# Seconds after which a process that does not end by itself shows its stacks and dies.
STUCK = 90

# A life is a process. Those that a worker forks are numbered between it and the next
# worker: together they are a family.
FAMILY = 64

# What a note says: a call answered True, or False; on_error told of a poisoned event,
# or of another one; a process or client of this family ends at that time.
ACCEPTED, REFUSED, REPORTED, MISREPORTED, END = b'A', b'F', b'R', b'X', b'E'
RECORD = struct.Struct('>cQd')


class Plan(NamedTuple):
    """What a process is to do; all of it follows from the seed and its number.

    :ivar role: 'plain', 'limited' (its files may not grow), 'small' (its spool is)
    :ivar folder: where notes and logs go
    :ivar kill_after: seconds after which it is killed; None: it ends by itself
    :ivar ending: how it ends by itself
    """

    seed: int
    life: int
    role: str
    key: str
    url: str
    folder: str
    settings: Dict[str, Any]
    threads: int
    events: int
    forks: int
    kill_after: Optional[float]
    ending: str


class Notes:
    """What a process says about its events, in a file that survives it.

    Each note is one write, made after the fact: whoever is killed in between has done
    something that it could not say, and never the other way round.
    """

    def __init__(self, folder: str, life: int) -> None:
        path = os.path.join(folder, '%d.notes' % life)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, kind: bytes, number: int, at: float = 0) -> None:
        os.write(self._fd, RECORD.pack(kind, number, at or time.monotonic()))


def read_notes(folder: str) -> Iterator[Tuple[int, bytes, int, float]]:
    """Give (life, kind, event, time) for each note of all processes."""
    for name in os.listdir(folder):
        life, suffix = os.path.splitext(name)
        if suffix == '.notes':
            with open(os.path.join(folder, name), 'rb') as file:
                data = file.read()
            whole = len(data) - len(data) % RECORD.size  # a limit may have cut the last
            for record in RECORD.iter_unpack(data[:whole]):
                yield (int(life),) + record


class _Log(logging.Handler):
    """Writes what the package says; one write for each line, also of many processes."""

    def __init__(self, folder: str) -> None:
        super().__init__(logging.WARNING)
        path = os.path.join(folder, 'log')
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            traceback.print_exception(*record.exc_info)
        line = '%s\t%d\t%s\n' % (record.msg, os.getpid(), record.getMessage())
        try:
            os.write(self._fd, line.encode('utf-8', 'replace'))
        except OSError:
            pass  # our own files may not grow either


def prepare(folder: str) -> None:
    """Make a process of this one, just forked: its errors are seen, and its end."""
    path = os.path.join(folder, 'stderr')
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(fd, 2)
    sys.stderr = os.fdopen(2, 'w', 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ended by the parent
    faulthandler.enable()
    faulthandler.dump_traceback_later(STUCK, exit=True)
    logger = logging.getLogger('hightouch')
    logger.addHandler(_Log(folder))
    logger.propagate = False
    hurry()


def hurry() -> None:
    """Have minutes of waiting in an outage take a second: the steps are the same."""
    from hightouch.htevents import spooled_queue

    retry.BASE, retry.MAX_WAIT = 0.03, 0.3
    spooled_queue.SCAN_INTERVAL, spooled_queue.IDLE_SCAN_INTERVAL = 0.3, 0.5
    spooled_queue.REOPEN_INTERVAL = 0.1


def on_error_into(notes: Notes) -> Any:
    """Give an ``on_error`` that notes each event it is told of."""

    def on_error(error: Exception, batch: List[Dict[str, Any]]) -> None:
        for event in batch:
            poisoned = event['properties'].get('poison')
            kind = REPORTED if poisoned else MISREPORTED
            notes.add(kind, int(event['messageId'], 16))
            if not poisoned:
                print('not poisoned, but reported:', repr(error), file=sys.stderr)

    return on_error


def run(plan: Plan) -> None:
    """Be a worker; does not return."""
    status = 1
    try:
        prepare(plan.folder)
        if plan.role == 'limited':
            limit_files(random.Random(plan.life).choice((72, 150, 400)) << 10)
        Worker(plan).work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond ``size`` bytes: the disk is full."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class Worker:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.life = plan.life
        self.notes = Notes(plan.folder, plan.life)
        self.random = random.Random('%d/%d' % (plan.seed, plan.life))
        # Replaced as a whole: threads choose from it.
        self.clients = [self.client() for _ in range(self.random.choice((1, 1, 2)))]
        self.forks = 0

    def client(self) -> Client:
        return Client(
            self.plan.key,
            '%s/%d' % (self.plan.url, self.plan.life),  # names the sender
            on_error=on_error_into(self.notes),
            **self.plan.settings,
        )

    def work(self) -> None:
        share = self.plan.events // self.plan.threads
        threads = self.start(self.plan.threads, share)
        while any(each.is_alive() for each in threads):
            time.sleep(self.random.uniform(0.001, 0.06))
            self.act()
        self.end(self.plan.ending)

    def start(self, count: int, events: int) -> List[threading.Thread]:
        threads = [
            threading.Thread(target=self.track, args=(number, events), daemon=True)
            for number in range(count)
        ]
        for each in threads:
            each.start()
        return threads

    def track(self, thread: int, count: int) -> None:
        try:
            chance = random.Random('%d/%d/%d' % (self.plan.seed, self.life, thread))
            for number in range(count):
                self.track_one(self.life << 32 | thread << 24 | number, chance)
        except Exception:
            traceback.print_exc()

    def track_one(self, number: int, chance: random.Random) -> None:
        text = '%016x' % number
        properties = {'id': text, 'pad': 'ä' * chance.randrange(120)}
        if self.plan.role == 'small' or chance.random() < 0.01:
            properties['more'] = 'x' * chance.randrange(9000)
        if chance.random() < 0.002:
            properties['poison'] = 'yes'
        client = chance.choice(self.clients)
        accepted, _ = client.track(self.plan.key, 'chaos', properties, message_id=text)
        self.notes.add(ACCEPTED if accepted else REFUSED, number)
        if not accepted:
            time.sleep(0.005)
        elif number % 32 == 0:
            patience = time.monotonic() + 3
            while client.stats().pending > MAX_PENDING and time.monotonic() < patience:
                time.sleep(0.01)

    def act(self) -> None:
        """Do one of the things that applications do while their threads track."""
        what = self.random.random()
        if what < 0.1 and self.forks < self.plan.forks:
            self.forks += 1
            if os.fork() == 0:
                self.be_child(self.plan.life + self.forks)
        elif what < 0.25:
            self.random.choice(self.clients).flush(self.random.choice((0, 0.05, 0.5)))
        elif what < 0.3:
            old = self.clients
            self.clients = [self.client()]
            self.notes.add(END, 0)
            for each in old:
                each.shutdown(self.random.choice((0, 0.1, 0.5)))
            self.notes.add(END, 0)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass

    def be_child(self, life: int) -> None:
        """Be a child that was forked while other threads tracked; does not return."""
        status = 1
        try:
            faulthandler.dump_traceback_later(STUCK, exit=True)
            self.life = life
            self.notes = Notes(self.plan.folder, life)
            self.random = random.Random('%d/%d' % (self.plan.seed, life))
            if self.random.random() < 0.5:
                # Nobody but the kernel knows us: it kills us as hard as a kill -9.
                delay = self.random.uniform(0.001, 0.3)
                self.notes.add(END, 0, time.monotonic() + delay)
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, delay)
            if self.random.random() < 0.3:
                self.clients = self.clients + [self.client()]
            for each in self.start(self.random.choice((1, 2)), 60):
                each.join()
            self.end(self.random.choice(('flush', 'exit', 'atexit')))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def end(self, how: str) -> None:
        self.notes.add(END, 0)
        if how == 'atexit':  # what the interpreter's own end would call
            lifecycle.end()
        elif how != 'exit':
            for each in self.clients:
                each.flush(2) if how == 'flush' else each.shutdown(0.5)
        self.notes.add(END, 0)


def drain(plan: Plan, deadline: float) -> None:
    """Be a client that only takes over what others left; does not return."""
    status = 1
    try:
        prepare(plan.folder)
        faulthandler.cancel_dump_traceback_later()
        worker = Worker(plan)
        while not is_empty(plan.settings['spool_dir']) and time.monotonic() < deadline:
            time.sleep(0.02)
        for each in worker.clients:
            each.shutdown(5)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def is_empty(directory: str) -> bool:
    """Whether no segment is left in any folder; what was set aside does not count."""
    return not any(
        not name.endswith('.damaged')
        for _, _, names in os.walk(directory)
        for name in names
    )
