"""Runs the code of the pages in docs/, as an application does that copies it."""

import os
import re

from hightouch.htevents.stamps import stable_message_id

DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'docs')
WRITE_KEY = 'servers'
ORDERS = (
    1000  # that are sent by tasks that do not fail; others are sent by tasks that do
)


def code(name):
    """Return the code of a page."""
    with open(os.path.join(DOCS, name + '.md'), encoding='utf-8') as file:
        (found,) = re.findall(r'```python\n(.*?)```', file.read(), re.DOTALL)
    return found


def id_of(order):
    """Return the id of an order's event. It has to be the same in each process."""
    return stable_message_id(WRITE_KEY, 'track', 'Order Placed', ('order', order))


def note_orders(orders):
    from app import note  # not on an executor, where it would find no collector

    for each in orders:
        note(id_of(each))


def is_first(name):
    """Whether this is asked for the first time, of all processes."""
    path = os.path.join(os.environ['DONE'], str(name))
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        return True
    except FileExistsError:
        return False
