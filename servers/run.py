"""Run the SDK under real servers: each delivers exactly what was accepted.

    python servers/run.py [PART-OF-A-NAME] [--venv DIR]

Makes a virtual environment with the servers from PyPI (kept and used again with
``--venv``), runs each scenario against a collector on loopback, and prints a line for
each. What cannot be installed on this Python is skipped, and the line says why.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path.insert(0, ROOT)

from hightouch.htevents.collector import Collector  # noqa: E402

SERVERS = (
    *('gunicorn', 'uwsgi', 'celery', 'gevent', 'flask', 'fastapi', 'uvicorn', 'django'),
    'litestar',
    'packaging',  # which the gevent worker of gunicorn imports
    *('pytest', 'pytest-xdist', 'pytest-asyncio', 'pytest-django'),
    *('pyspark', 'distributed'),
)

# Seconds after which something hangs: many times what each takes on a busy machine.
LIMIT = 180

SCENARIOS = []


def scenario(*needs):
    def add(function):
        SCENARIOS.append((function.__name__.replace('_', '-'), function, needs))
        return function

    return add


class Bench:
    """What a scenario works with: a collector, a folder, the processes it starts."""

    def __init__(self, python, name):
        self.python = python
        self.folder = tempfile.mkdtemp(prefix='servers-')
        self.collector = Collector().start()
        self.log = os.path.join(self.folder, 'log')
        self.notes = os.path.join(self.folder, 'notes')
        self.processes = []
        self.twice = False  # whether an event may arrive twice (after a kill)
        self.remark = ''

    def path(self, name):
        path = os.path.join(self.folder, name)
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
        return path

    def start(self, *command, **variables):
        """Start a program of the environment; its output goes to the log."""
        environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
        environment.update(variables, COLLECTOR=self.collector.url, NOTES=self.notes)
        environment['PYTHONUNBUFFERED'] = '1'
        with open(self.log, 'ab') as log:
            process = subprocess.Popen(
                [os.path.join(os.path.dirname(self.python), command[0])]
                + list(command[1:]),
                cwd=HERE,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def run(self, program, status=0, **variables):
        process = self.start('python', 'programs.py', program, **variables)
        self.ended(process, status)

    def ended(self, process, status=0):
        try:
            found = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError('not done after %d s' % LIMIT)
        assert status is None or found == status, 'exit status %r' % found

    def stop(self, process, status=0):
        process.send_signal(signal.SIGTERM)
        self.ended(process, status)

    def accepted(self):
        try:
            with open(self.notes) as file:
                return set(file.read().split())
        except FileNotFoundError:
            return set()

    def output(self):
        with open(self.log, errors='replace') as file:
            return file.read()

    def check(self):
        accepted = self.accepted()
        assert accepted, 'nothing was accepted'
        ids = [each['messageId'] for each in self.collector.events]
        missing, unknown = accepted - set(ids), set(ids) - accepted
        if not self.twice:
            assert not unknown, '%d came that were not accepted' % len(unknown)
            assert len(ids) == len(set(ids)), 'events came twice'
        assert not missing, '%d of %d are missing' % (len(missing), len(accepted))

    def wait_for_all(self):
        """Wait until a process that runs has found and delivered what dead ones left."""
        deadline = time.monotonic() + LIMIT
        while self.accepted() - self.delivered() and time.monotonic() < deadline:
            time.sleep(0.05)

    def wait_for_accepted(self, count):
        """Wait for the last events: one that comes while its process ends may be lost."""
        deadline = time.monotonic() + LIMIT
        while len(self.accepted()) < count:
            assert time.monotonic() < deadline, 'only %d events' % len(self.accepted())
            assert all(each.poll() in (None, 0) for each in self.processes), 'one ended'
            time.sleep(0.05)

    def delivered(self):
        return {each['messageId'] for each in list(self.collector.events)}

    def close(self):
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except OSError:
                pass  # it has ended, with all that it started
            process.wait()
            process.stdin.close()
        self.collector.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def request(port, path='/'):
    url = 'http://127.0.0.1:%d%s' % (port, path)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(url, timeout=LIMIT).read()


def wait_for_server(port, process):
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        assert process.poll() is None, 'the server did not start'
        try:
            return request(port)
        except OSError:
            time.sleep(0.05)
    raise AssertionError('the server did not start')


def load(port, count=200, threads=4):
    """Send requests from several threads; some may fail while workers are replaced."""

    def run():
        for _ in range(count // threads):
            try:
                request(port)
            except OSError:
                pass

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()


# -- gunicorn ------------------------------------------------------------------------


def gunicorn(bench, *options, app='app', **variables):
    port = free_port()
    process = bench.start(
        *('gunicorn', app + ':application', '--bind', '127.0.0.1:%d' % port)
        + ('--workers', '2', '--graceful-timeout', '20')
        + options,
        **variables,
    )
    wait_for_server(port, process)
    return port, process


def serve(bench, *options, **variables):
    port, process = gunicorn(bench, *options, **variables)
    load(port)
    bench.stop(process)


@scenario('gunicorn')
def gunicorn_sync(bench):
    serve(bench)


@scenario('gunicorn')
def gunicorn_sync_preload(bench):
    serve(bench, '--preload')


@scenario('gunicorn')
def gunicorn_gthread(bench):
    serve(bench, '--worker-class', 'gthread', '--threads', '4')


@scenario('gunicorn')
def gunicorn_gthread_preload(bench):
    serve(bench, '--worker-class', 'gthread', '--threads', '4', '--preload')


@scenario('gunicorn')
def gunicorn_spool_preload(bench):
    serve(bench, '--preload', SPOOL=bench.path('spool'))


@scenario('gunicorn')
def gunicorn_worker_recycling(bench):
    serve(bench, '--max-requests', '20', '--max-requests-jitter', '5')


@scenario('gunicorn')
def gunicorn_reload(bench):
    port, process = gunicorn(bench)
    for _ in range(3):
        load(port, 60)
        process.send_signal(signal.SIGHUP)
    load(port, 60)
    bench.stop(process)


@scenario('gunicorn')
def gunicorn_drain_on_sigterm(bench):
    serve(bench, DRAIN='1')


@scenario('gunicorn')
def gunicorn_killed_workers(bench):
    bench.twice = True
    spool = bench.path('spool')
    port, process = gunicorn(
        bench, '--worker-class', 'gthread', '--threads', '4', SPOOL=spool
    )
    for _ in range(5):
        load(port, 40)
        try:
            request(port, '/kill')
        except OSError:
            pass  # its worker is gone
    load(port, 40)
    bench.stop(process)
    port, process = gunicorn(bench, SPOOL=spool)
    load(port)
    bench.wait_for_all()  # what is left comes with the next start
    bench.stop(process)


# -- uWSGI ---------------------------------------------------------------------------


def uwsgi(bench, *options, **variables):
    port = free_port()
    process = bench.start(
        *('uwsgi', '--http-socket', '127.0.0.1:%d' % port, '--module', 'app')
        + ('--master', '--processes', '2', '--die-on-term', '--need-app')
        + ('--worker-reload-mercy', '20')
        + options,
        **variables,
    )
    wait_for_server(port, process)
    load(port)
    bench.stop(process, status=None)


@scenario('uwsgi')
def uwsgi_threads(bench):
    uwsgi(bench, '--enable-threads')
    assert 'enable-threads' not in bench.output().partition('spawned')[2]


@scenario('uwsgi')
def uwsgi_threads_lazy_apps(bench):
    uwsgi(bench, '--enable-threads', '--lazy-apps')


@scenario('uwsgi')
def uwsgi_without_threads(bench):
    uwsgi(bench)
    assert 'enable-threads = true' in bench.output(), 'no warning'


@scenario('uwsgi')
def uwsgi_spool(bench):
    uwsgi(bench, '--enable-threads', SPOOL=bench.path('spool'))


# -- Celery --------------------------------------------------------------------------


def start_worker(bench, app, pool, *options, **variables):
    return bench.start(
        *('celery', '--app', app, 'worker', '--pool', pool)
        + ('--without-gossip', '--without-mingle', '--without-heartbeat')
        + options,
        **variables,
    )


def celery(bench, count, kill=False, **variables):
    variables.update(BROKER=bench.path('broker'), DONE=bench.path('done'))
    options = ('--concurrency', '2', '--max-tasks-per-child', '15')
    worker = start_worker(bench, 'tasks', 'prefork', *options, **variables)
    send = 'import tasks\nfor number in range(%d): tasks.work.delay(number)\n' % count
    if kill:
        send += 'for _ in range(4): tasks.die.delay()\n'
        send += 'for number in range(%d): tasks.work.delay(1000 + number)\n' % count
        count *= 2
    sender = bench.start('python', '-c', send, **variables)
    bench.ended(sender)
    deadline = time.monotonic() + LIMIT
    # Of the tasks that a killed worker had some are lost: those are Celery's.
    while len(os.listdir(bench.path('done'))) < count - (8 if kill else 0):
        assert time.monotonic() < deadline, 'the tasks were not done'
        assert worker.poll() is None, 'the worker ended'
        time.sleep(0.05)
    if kill:
        # Celery may wait for a killed process without end when it shuts down.
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    else:
        bench.stop(worker)


@scenario('celery')
def celery_prefork_with_retries(bench):
    celery(bench, 60)


@scenario('celery')
def celery_killed_workers(bench):
    bench.twice = True
    spool = bench.path('spool')
    celery(bench, 30, kill=True, SPOOL=spool)
    send = ('--send', '--write-key', 'servers', '--host', bench.collector.url)
    process = bench.start('python', '-m', 'hightouch.htevents', 'spool', spool, *send)
    bench.ended(process)


# -- requests and tasks of many users ------------------------------------------------

# Each has a number, which tells the id, the address, the language and so on.
USERS = range(1, 13)


class Browser:
    """The browser of a user, who may log in."""

    def __init__(self, port, number):
        self.port = port
        self.number = number
        self.cookies = {'htjs_anonymous_id': '%%22anonymous-%d%%22' % number}
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, page, campaign=True):
        number = self.number
        url = 'http://127.0.0.1:%d/%s?number=%d' % (self.port, page, number)
        headers = {
            'Accept-Language': 'en;q=0.5, de-%d' % number,
            'Cookie': '; '.join('%s=%s' % each for each in self.cookies.items()),
            'X-Forwarded-For': '203.0.113.1, 198.51.100.%d' % number,
            'X-User': str(number),
        }
        if campaign:
            url += '&utm_source=from-%d' % number
        request = urllib.request.Request(url, headers=headers)
        with self.opener.open(request, timeout=LIMIT) as answer:
            for line in answer.headers.get_all('Set-Cookie', ()):
                name, _, value = line.partition(';')[0].partition('=')
                self.cookies[name] = value
            return answer.read()


def browse(port, *pages, rounds=2, campaign=True):
    """Let all users visit pages, in this order, and all at the same time."""
    failed = []

    def run(number):
        browser = Browser(port, number)
        try:
            for page in pages * rounds:
                browser.get(page, campaign)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in USERS]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failed, failed[0]


def check_people(
    bench, servers, *places, anonymous=(), campaign=True, rounds=2, alone=0
):
    """Check that each user has an event of each place, with all that is the user's.

    :param servers: the processes to stop when all events were accepted, each with its
        exit status then (None: any)
    :param anonymous: the places where nobody is logged in
    :param alone: events of each user that are nobody's
    """
    bench.wait_for_accepted(len(USERS) * (len(places) * rounds + alone))
    for process, status in servers.items():
        bench.stop(process, status)
    bench.wait_for_all()
    found = {number: [] for number in USERS}
    for event in bench.collector.events:
        if event['event'] == 'alone':  # without a user
            continue
        number, context = event['properties']['number'], event['context']
        place = event['event']
        found[number].append(place)
        mine = {
            'userId': None if place in anonymous else str(number),
            'anonymousId': 'anonymous-%d' % number,
            'ip': '198.51.100.%d' % number,
            'locale': 'de-%d' % number,
            'campaign': {'source': 'from-%d' % number} if campaign else None,
        }
        given = {key: event.get(key, context.get(key)) for key in mine}
        assert given == mine, '%s: got %r, expected %r' % (place, given, mine)
    for events in found.values():
        assert sorted(events) == sorted(places * rounds), sorted(events)


def flask(bench, *options):
    port, process = gunicorn(bench, *options, app='flask_app')
    browse(port, 'work')
    check_people(
        bench, {process: 0}, 'view', 'thread', 'pool', 'body', 'body again', 'close'
    )


@scenario('gunicorn', 'flask')
def flask_gunicorn_sync(bench):
    flask(bench)


@scenario('gunicorn', 'flask')
def flask_gunicorn_gthread(bench):
    flask(bench, '--worker-class', 'gthread', '--threads', '4')


@scenario('gunicorn', 'flask', 'gevent')
def flask_gunicorn_gevent(bench):
    flask(bench, '--worker-class', 'gevent')


def uvicorn(bench, app, **variables):
    port = free_port()
    process = bench.start(
        *('uvicorn', app + ':application', '--port', str(port), '--no-proxy-headers'),
        **variables,
        # It ends by SIGTERM. The client of this application is closed before that.
        DRAIN='' if app == 'fastapi_app' else '1',
    )
    wait_for_server(port, process)
    return port, process


IN_TASKS = ('view', 'task', 'executor', 'thread', 'body', 'body again')
if sys.version_info >= (3, 9):
    IN_TASKS += ('to_thread',)
IN_THREADS = ('view', 'thread', 'pool', 'body', 'body again')


@scenario('uvicorn', 'fastapi')
def fastapi_uvicorn(bench):
    port, process = uvicorn(bench, 'fastapi_app')
    browse(port, 'work', 'sync')
    places = (*IN_TASKS, *IN_THREADS, 'background', 'background')
    check_people(bench, {process: None}, *places)


@scenario('uvicorn', 'litestar')
def litestar_uvicorn(bench):
    port, process = uvicorn(bench, 'litestar_app')
    browse(port, 'work')
    check_people(bench, {process: None}, *IN_TASKS, 'background')


def django_variables(bench):
    variables = {'DATABASE': os.path.join(bench.folder, 'database')}
    bench.ended(bench.start('python', 'django_app.py', str(len(USERS)), **variables))
    return variables


LOGIN = ('before login', 'after login', 'before logout', 'after logout')
ANONYMOUS = ('before login', 'after logout', 'Page Viewed')


@scenario('gunicorn', 'django')
def django_gunicorn_sync(bench):
    port, process = gunicorn(bench, app='django_wsgi', **django_variables(bench))
    browse(port, '', 'login', 'work', 'async-view', 'logout')
    places = ('Page Viewed', *LOGIN, *IN_THREADS, 'view')
    check_people(bench, {process: 0}, *places, anonymous=ANONYMOUS)


@scenario('gunicorn', 'django')
def django_gunicorn_gthread(bench):
    port, process = gunicorn(
        *(bench, '--worker-class', 'gthread', '--threads', '4'),
        **django_variables(bench),
        app='django_wsgi',
    )
    browse(port, 'login', 'work', 'logout')
    check_people(bench, {process: 0}, *LOGIN, *IN_THREADS, anonymous=ANONYMOUS)


@scenario('uvicorn', 'django')
def django_uvicorn(bench):
    port, process = uvicorn(bench, 'django_asgi', **django_variables(bench))
    browse(port, 'async-login', 'async-work', 'work', 'async-view', 'async-logout')
    browse(port, 'login', 'async-work', 'logout', rounds=1)
    in_async_work = IN_TASKS + ('sync_to_async', 'late')
    places = (LOGIN + in_async_work + IN_THREADS + ('view',)) * 2
    places += LOGIN + in_async_work
    check_people(bench, {process: None}, *places, anonymous=ANONYMOUS, rounds=1)


@scenario('django')
def django_rare_requests(bench):
    database = os.path.join(bench.folder, 'database')
    bench.ended(bench.start('python', 'django_cases.py', DATABASE=database))


def celery_scopes(bench, pool):
    variables = {'BROKER': bench.path('broker'), 'DONE': bench.path('done')}
    options = ('--concurrency', '4')
    worker = start_worker(bench, 'glue_tasks', pool, *options, **variables)
    send = 'import glue_tasks; glue_tasks.publish_all(%d)' % len(USERS)
    bench.ended(bench.start('python', '-c', send, **variables))
    places = ('try 0', 'try 1', 'try 2', 'nested', 'eager', 'chained')
    check_people(bench, {worker: 0}, *places, rounds=1, alone=2)
    alone = [each for each in bench.collector.events if each['event'] == 'alone']
    for event in alone:
        assert event['anonymousId'] is None and list(event['context']) == ['library']
    assert len(alone) == 2 * len(USERS), len(alone)


@scenario('celery')
def celery_scopes_prefork(bench):
    celery_scopes(bench, 'prefork')


@scenario('celery')
def celery_scopes_threads(bench):
    celery_scopes(bench, 'threads')


@scenario('gunicorn', 'uvicorn', 'django', 'celery', 'fastapi')
def online_shop(bench):
    """Let users visit the shop, log in, order, and get a receipt: four programs track."""
    variables = django_variables(bench)
    variables.update(BROKER=bench.path('broker'), DONE=bench.path('done'))
    service, service_process = uvicorn(bench, 'fastapi_app')
    options = ('--concurrency', '2')
    worker = start_worker(bench, 'glue_tasks', 'prefork', *options, **variables)
    shop, shop_process = gunicorn(
        bench, app='django_wsgi', SERVICE=str(service), **variables
    )
    browse(shop, '', 'login', 'order', 'logout', rounds=1)
    places = ('Page Viewed',) + LOGIN
    places += ('Order Completed', 'Stock Checked', 'Receipt Sent')
    servers = {shop_process: 0, worker: 0, service_process: None}
    check_people(bench, servers, *places, anonymous=ANONYMOUS, rounds=1)
    orders = [each['properties'].get('order') for each in bench.collector.events]
    expected = {'%d-1' % number for number in USERS}
    assert set(orders) - {None} == expected, 'an order came that was rolled back'


# -- engines: the code of the pages in docs/ -----------------------------------------


def check_orders(bench, count):
    """Check that each order came once, and the later ones, whose tasks failed, twice."""
    bench.twice = True
    found = {}
    for each in bench.collector.events:
        order = int(each['properties']['total'] * 2)
        found.setdefault(order, []).append(each['messageId'])
    for order in range(2 * count):
        times = 1 if order < count else 2
        assert len(found[order]) == times, '%d: %d times' % (order, len(found[order]))
        assert len(set(found[order])) == 1, 'an order has two ids'


def engine(bench, name):
    variables = {'DONE': bench.path('done'), 'WORK': bench.path('work')}
    bench.ended(bench.start('python', 'engines.py', name, **variables))
    check_orders(bench, 1000)


@scenario('pyspark', 'java')
def spark_page(bench):
    engine(bench, 'spark')


@scenario('distributed')
def dask_page(bench):
    engine(bench, 'dask')


@scenario('celery')
def celery_page(bench):
    variables = {'BROKER': bench.path('broker'), 'DONE': bench.path('done')}
    variables.update(HTEVENTS_WRITE_KEY='servers', HTEVENTS_HOST=bench.collector.url)
    options = ('--concurrency', '2')
    worker = start_worker(bench, 'celery_page', 'prefork', *options, **variables)
    send = 'import celery_page; celery_page.publish_all()'
    bench.ended(bench.start('python', '-c', send, **variables))
    deadline = time.monotonic() + LIMIT
    while len(os.listdir(bench.path('done'))) < 60 + 30:
        assert time.monotonic() < deadline, 'the tasks were not done'
        assert worker.poll() is None, 'the worker ended'
        time.sleep(0.05)
    bench.stop(worker)
    check_orders(bench, 30)


# -- tests of an application ---------------------------------------------------------


def run_tests(bench, *command):
    """Run tests of the shop. What a test captures must not arrive, the rest must."""
    variables = {'PYTHONPATH': os.pathsep.join((HERE, os.path.join(HERE, 'tested')))}
    process = bench.start(*command, SPOOL=bench.path('spool'), **variables)
    bench.ended(process)


@scenario('django', 'pytest', 'pytest-xdist', 'pytest-asyncio', 'pytest-django')
def tests_with_pytest(bench):
    options = ('-p', 'no:cacheprovider', '--override-ini')
    options += ('asyncio_default_fixture_loop_scope=function', 'tested/test_pytest.py')
    run_tests(bench, 'pytest', *options)
    run_tests(bench, 'pytest', '--numprocesses', '2', *options)


@scenario('django')
def tests_with_unittest(bench):
    run_tests(bench, 'python', '-m', 'unittest', 'tested/test_unittest.py')


# -- processes, loops ----------------------------------------------------------------


@scenario()
def multiprocessing_fork(bench):
    bench.run('fork')


@scenario()
def multiprocessing_spawn(bench):
    bench.run('spawn')


@scenario()
def multiprocessing_forkserver(bench):
    bench.run('forkserver')


@scenario()
def process_pool_executor(bench):
    bench.run('executor')


@scenario()
def process_pool_executor_spool(bench):
    bench.run('executor', SPOOL=bench.path('spool'))


@scenario('gevent')
def gevent_patched_before(bench):
    bench.run('gevent-first')


@scenario('gevent')
def gevent_patched_after(bench):
    bench.run('gevent-after')


@scenario('gevent')
def gevent_spool(bench):
    bench.run('gevent-first', SPOOL=bench.path('spool'))


@scenario()
def asyncio_slow_collector(bench):
    bench.collector.latency = 0.5
    bench.run('asyncio', INTERVAL='0.1')
    bench.remark = bench.output().strip().splitlines()[-1]


@scenario()
def asyncio_spool(bench):
    bench.collector.latency = 0.5
    bench.run('asyncio', INTERVAL='0.1', SPOOL=bench.path('spool'))
    bench.remark = bench.output().strip().splitlines()[-1]


@scenario()
def jobs_that_leave_by_os_exit(bench):
    bench.run('jobs')


@scenario()
def frozen_function(bench):
    process = bench.start('python', 'programs.py', 'freeze')
    for number in range(1, 4):
        process.stdin.write(b'go\n')
        process.stdin.flush()
        deadline = time.monotonic() + LIMIT
        while bench.output().count('True') < number:
            assert time.monotonic() < deadline, 'no flush'
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        bench.collector.stop()  # its connections break while it is frozen
        time.sleep(1)
        bench.collector.start()
        process.send_signal(signal.SIGCONT)
    process.stdin.close()
    bench.ended(process)


@scenario()
def sigterm_by_default(bench):
    bench.run('sigterm', status=-signal.SIGTERM)


@scenario()
def sigterm_with_a_handler(bench):
    bench.run('sigterm-handler', status=7)


# -- the run -------------------------------------------------------------------------


def install(folder):
    """Make the environment; gives its python, and why a server is not in it."""
    python = os.path.join(folder, 'bin', 'python')
    if not os.path.exists(python):
        subprocess.check_call([sys.executable, '-m', 'venv', folder])
    pip = [python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    source = os.path.join(folder, 'source')
    shutil.rmtree(source, ignore_errors=True)
    os.mkdir(source)
    for name in ('hightouch', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
        path = os.path.join(ROOT, name)
        if os.path.isdir(path):
            shutil.copytree(path, os.path.join(source, name))
        else:
            shutil.copy(path, source)
    subprocess.check_call(pip + ['--force-reinstall', '--no-deps', source])
    subprocess.check_call(pip + [source])
    reasons = {}
    for name in SERVERS:
        try:
            done = subprocess.run(
                pip + [name],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                universal_newlines=True,
                timeout=300,
            )
            if done.returncode:
                reasons[name] = done.stdout.strip().splitlines()[-1][:100]
        except subprocess.TimeoutExpired:
            reasons[name] = 'not installed after 300 s'
    if shutil.which('java') is None:
        reasons['java'] = 'there is no java'
    return python, reasons


def run(name, function, python):
    bench = Bench(python, name)
    start = time.monotonic()
    try:
        function(bench)
        bench.check()
        status, why = 'passed', bench.remark
    except Exception as error:
        status = 'FAILED'
        why = '%s: %s' % (type(error).__name__, error)
    try:
        ids = [each['messageId'] for each in bench.collector.events]
        print(
            '%-8s %-28s %5.1f s  accepted %5d, delivered %5d, twice %3d  %s'
            % (
                status,
                name,
                time.monotonic() - start,
                len(bench.accepted()),
                len(set(ids)),
                len(ids) - len(set(ids)),
                why,
            ),
            flush=True,
        )
        if status == 'FAILED':
            for line in bench.output().splitlines()[-25:]:
                print('    ' + line)
    finally:
        bench.close()
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('name', nargs='?', default='')
    parser.add_argument('--venv', help='keep the environment here, and use it again')
    args = parser.parse_args()
    folder = args.venv or tempfile.mkdtemp(prefix='servers-venv-')
    names = {'passed': [], 'FAILED': [], 'skipped': []}
    try:
        python, reasons = install(os.path.abspath(folder))
        for name, function, needs in SCENARIOS:
            if args.name in name:
                missing = [reasons[each] for each in needs if each in reasons]
                if missing:
                    print('skipped  %-28s %s' % (name, missing[0]))
                    names['skipped'].append(name)
                else:
                    names[run(name, function, python)].append(name)
    finally:
        if not args.venv:
            shutil.rmtree(folder, ignore_errors=True)
    print(
        'Python %d.%d: %d passed, %d failed, %d skipped  %s'
        % (
            *sys.version_info[:2],
            *(len(names[status]) for status in ('passed', 'FAILED', 'skipped')),
            ' '.join(names['FAILED']),
        )
    )
    return 1 if names['FAILED'] or not names['passed'] else 0


if __name__ == '__main__':
    sys.exit(main())
