"""Sends orders from an engine: python engines.py spark|dask."""

import os
import sys

import pages
from pages import ORDERS, WRITE_KEY, is_first

exec(pages.code(sys.argv[1] if len(sys.argv) > 1 else 'dask'))

HOST = os.environ['COLLECTOR']
sent = send  # noqa: F821 - of the page


def send_and_fail_once(rows, **options):
    """Send the rows of a partition; fail after the first time."""
    rows = list(rows)
    result = sent(rows, **options)
    if is_first('failed-%s' % min(dict_of(each)['order_id'] for each in rows)):
        raise RuntimeError('this task fails after it has sent its events')
    return result


def dict_of(row):
    return row if isinstance(row, dict) else row.asDict()


def rows(begin):
    return [
        {'order_id': order, 'user_id': str(order % 7), 'total': order / 2}
        for order in range(begin, begin + ORDERS)
    ]


def spark():
    import pyspark
    from pyspark.sql import SparkSession

    os.environ.update(
        PYSPARK_PYTHON=sys.executable,
        SPARK_HOME=os.path.dirname(pyspark.__file__),
        SPARK_LOCAL_IP='127.0.0.1',
        SPARK_WORKER_DIR=os.environ['WORK'],
    )
    builder = SparkSession.builder.master('local-cluster[2,1,1024]')
    for name, value in (
        ('spark.driver.bindAddress', '127.0.0.1'),
        ('spark.driver.host', '127.0.0.1'),
        ('spark.executor.memory', '512m'),
        ('spark.executorEnv.DONE', os.environ['DONE']),
        ('spark.executorEnv.PYTHONPATH', os.path.dirname(os.path.abspath(__file__))),
        ('spark.local.dir', os.environ['WORK']),
        ('spark.ui.enabled', 'false'),
    ):
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    for begin, function in ((0, sent), (ORDERS, send_and_fail_once)):
        globals()['send'] = function
        orders = session.createDataFrame(rows(begin)).repartition(4)
        send_orders(orders, WRITE_KEY, HOST)  # noqa: F821
    session.stop()


def dask():
    from dask.distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        processes=True,
        host='127.0.0.1',
        dashboard_address=None,
    )
    with cluster, Client(cluster) as client:
        for begin, function in ((0, sent), (ORDERS, send_and_fail_once)):
            globals()['send'] = function
            parts = [rows(begin)[place::4] for place in range(4)]
            count = send_orders(client, parts, WRITE_KEY, HOST)  # noqa: F821
            assert count == ORDERS, count


if __name__ == '__main__':
    pages.note_orders(range(2 * ORDERS))
    globals()[sys.argv[1]]()
