"""The Celery application of the page in docs/, and its orders."""


import pages
import tasks
from pages import is_first

exec(pages.code('celery'))

app.conf.update(tasks.celery.conf.changes)  # noqa: F821 - of the page


def charge(order_id, total):
    """Fail once for each of the later orders."""
    if order_id >= COUNT and is_first('failed-%s' % order_id):
        raise ConnectionError
    is_first(order_id)


COUNT = 30  # orders that do not fail, and as many that do


def publish_all():
    pages.note_orders(range(2 * COUNT))
    for order in range(2 * COUNT):
        place_order.delay(order, 'user', order / 2)  # noqa: F821
