"""Programs that track in the ways of their own; ``python programs.py NAME``."""

import os
import signal
import sys
import threading
import time


def multiprocess(method):
    import multiprocessing

    from app import client, track

    context = multiprocessing.get_context(method)
    track(client, 'parent', 10)
    processes = [context.Process(target=child, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0, process.exitcode
    # The workers of a pool are ended by SIGTERM; close() and join() let them end.
    pool = context.Pool(2)
    pool.map(child, range(20))
    pool.close()
    pool.join()


def child(number):
    from app import client, track

    track(client, 'child-%d' % number, 5)


def executor():
    from concurrent.futures import ProcessPoolExecutor

    from app import client, track

    track(client, 'parent', 10)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(child, range(40)))


def gevent(first):
    if first:
        from gevent import monkey

        monkey.patch_all()
        from app import client, track
    else:
        from app import client, track
        from gevent import monkey

        monkey.patch_all()
    import gevent

    def run(number):
        for _ in range(5):
            track(client, 'greenlet')
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(run, number) for number in range(200)], timeout=60)
    assert client.flush(30), client.stats()
    track(client, 'after', 10)


def asynchronous():
    import asyncio

    from app import client, track

    longest = [0.0]

    async def beat():
        while True:
            start = time.monotonic()
            await asyncio.sleep(0.001)
            longest[0] = max(longest[0], time.monotonic() - start)

    async def run(number):
        for _ in range(5):
            track(client, 'task')
            await asyncio.sleep(0.01)

    async def main():
        heart = asyncio.ensure_future(beat())
        await asyncio.gather(*[run(number) for number in range(300)])
        heart.cancel()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    assert client.flush(30)
    print('longest stall %.0f ms' % (1000 * longest[0]))
    assert longest[0] < 1, longest  # the collector takes 0.5 s for each answer


def jobs():
    """A worker in the way of RQ: a child for each job, which leaves by os._exit."""
    from app import client, make_client, track

    for number in range(10):
        pid = os.fork()
        if pid == 0:
            if number % 2:
                with make_client() as own:
                    track(own, 'job', 5)
            else:
                track(client, 'job', 5)
                client.flush(30)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0


def freeze():
    """A function that is frozen between its calls: one for each line of stdin."""
    from app import client, track

    for line in sys.stdin:
        track(client, 'invocation', 3)
        print(client.flush(30), flush=True)


def sigterm(own_handler):
    from app import client, track

    if own_handler:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    client.drain_on_sigterm()
    track(client, 'event', 250)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    while True:
        time.sleep(0.1)


PROGRAMS = {
    'fork': lambda: multiprocess('fork'),
    'spawn': lambda: multiprocess('spawn'),
    'forkserver': lambda: multiprocess('forkserver'),
    'executor': executor,
    'gevent-first': lambda: gevent(True),
    'gevent-after': lambda: gevent(False),
    'asyncio': asynchronous,
    'jobs': jobs,
    'freeze': freeze,
    'sigterm': lambda: sigterm(False),
    'sigterm-handler': lambda: sigterm(True),
}

if __name__ == '__main__':
    PROGRAMS[sys.argv[1]]()
