"""A Celery application whose tasks track, fail and are tried again."""

import os

from app import client, note, track  # noqa: F401
from celery import Celery

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
