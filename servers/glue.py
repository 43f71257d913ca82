"""The ways to track in a request, as the applications of this suite share them."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from app import client, note

from hightouch.htevents import carry

# The proxies that the applications trust: the suite sends X-Forwarded-For itself.
TRUSTED = '127.0.0.0/8'


def tracked(place, number):
    """Track an event that tells its request; the ids and the context are the scope's."""
    accepted, message = client.track(event=place, properties={'number': int(number)})
    if accepted:
        note(message['messageId'])


def track_in_threads(number):
    tracked('view', number)
    time.sleep(0.01)  # so that requests overlap
    thread = threading.Thread(target=carry(tracked), args=('thread', number))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(carry(tracked), 'pool', number).result()


def body(number):
    for place in ('body', 'body again'):
        tracked(place, number)
        time.sleep(0.01)
        yield b'.'


async def track_in_tasks(number):
    async def task():
        await asyncio.sleep(0.01)
        tracked('task', number)

    tracked('view', number)
    await asyncio.ensure_future(task())
    loop = asyncio.get_event_loop()
    await loop.run_in_executor(None, carry(tracked), 'executor', number)
    thread = threading.Thread(target=carry(tracked), args=('thread', number))
    thread.start()
    if hasattr(asyncio, 'to_thread'):  # since Python 3.9
        await asyncio.to_thread(tracked, 'to_thread', number)
    while thread.is_alive():
        await asyncio.sleep(0.01)


async def async_body(number):
    for place in ('body', 'body again'):
        tracked(place, number)
        await asyncio.sleep(0.01)
        yield b'.'
