"""A Celery application whose tasks track, fail and are tried again."""

import os
import time
import uuid

from app import client, note, track  # noqa: F401
from celery import Celery
from kombu.transport import filesystem
from kombu.utils.json import dumps


def put(channel, queue, payload, **_):
    """Add a message under its name only when it is whole. kombu's own may be read empty."""
    written = os.path.join(channel.data_folder_out, str(uuid.uuid4()))
    with open(written, 'w') as file:
        file.write(dumps(payload))
    name = '%015d_%s.%s.msg' % (time.monotonic() * 1000, uuid.uuid4(), queue)
    os.rename(written, os.path.join(channel.data_folder_out, name))


filesystem.Channel._put = put

folder = os.environ['BROKER']
celery = Celery('tasks', broker='filesystem://')
celery.conf.update(
    broker_transport_options={
        'data_folder_in': folder,
        'data_folder_out': folder,
        'control_folder': folder,
        'polling_interval': 0.02,  # s
    },
    # Once a worker has as many tasks as it may, it looks again two seconds later.
    worker_prefetch_multiplier=50,
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


@celery.task(bind=True, max_retries=3, default_retry_delay=0)
def work(self, number):
    track(client, 'task', 2)
    if number % 5 == 0 and self.request.retries < 2:
        raise self.retry(countdown=0)
    with open(os.path.join(os.environ['DONE'], str(number)), 'w'):
        pass


@celery.task
def die():
    os.kill(os.getpid(), 9)
