"""An application that tracks, as each server of this suite runs it."""

import logging
import os
import uuid

from hightouch.htevents import Client

# Long enough that what is delivered before is delivered by the end of the process, and
# not by chance.
INTERVAL = float(os.environ.get('INTERVAL', '5'))


def make_client(**settings):
    settings.setdefault('upload_interval', INTERVAL)
    settings.setdefault('spool_dir', os.environ.get('SPOOL'))
    return Client('servers', os.environ['COLLECTOR'], **settings)


def note(message_id):
    """Note, for the suite, that an event was accepted; one write survives any end."""
    fd = os.open(os.environ['NOTES'], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, (message_id + '\n').encode('ascii'))
    os.close(fd)


def track(client, name, count=1):
    for _ in range(count):
        accepted, message = client.track('user', name, message_id=str(uuid.uuid4()))
        if accepted:
            note(message['messageId'])


logging.basicConfig()
client = make_client()
if os.environ.get('DRAIN'):
    client.drain_on_sigterm()


def application(environ, start_response):
    """Track three events for each request (WSGI)."""
    if environ['PATH_INFO'] == '/kill':
        os.kill(os.getpid(), 9)
    track(client, 'request', 3)
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [str(os.getpid()).encode('ascii')]
