"""A Celery application whose tasks are in the scope of their publisher."""

from concurrent.futures import ThreadPoolExecutor

import glue
from tasks import celery

import hightouch.htevents as htevents
from hightouch.htevents.contrib.celery import carry_scope

carry_scope(celery)
carry_scope(celery)  # which is harmless


@celery.task(bind=True, max_retries=3, default_retry_delay=0)
def first(self, number):
    glue.tracked('try %d' % self.request.retries, number)
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    nested.delay(number)
    own.apply(args=[number])


@celery.task
def nested(number):
    glue.tracked('nested', number)


@celery.task
def own(number):
    glue.tracked('eager', number)


@celery.task
def second(number):
    glue.tracked('chained', number)


@celery.task
def without_scope(number):
    """Track a task whose publisher has no scope: nothing of another task may be left."""
    client, note = glue.client, glue.note
    _, message = client.track('none', 'alone', {'number': number})
    note(message['messageId'])


@celery.task
def send_receipt(number):
    glue.tracked('Receipt Sent', number)


def publish(number):
    context = {
        'ip': '198.51.100.%d' % number,
        'locale': 'de-%d' % number,
        'campaign': {'source': 'from-%d' % number},
    }
    with htevents.scope(number, 'anonymous-%d' % number, context):
        (first.si(number) | second.si(number)).delay()
    without_scope.delay(number)
    without_scope.apply_async([number], headers={'htevents_scope': '{broken'})


def publish_all(count):
    """Publish the tasks of many users at the same time."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(publish, range(1, count + 1)))
