"""Deferred blocks in real transactions: of Django and of SQLAlchemy, on SQLite."""

import functools
import importlib.util
import unittest
from typing import Any, List

import hightouch.htevents as htevents
from hightouch.htevents.test.readme import snippets
from hightouch.htevents.test.support import LIMIT, TestCase


class RolledBack(Exception):
    pass


class TransactionTestCase(TestCase):
    """The same program for both: ``atomic`` opens a transaction, or a savepoint in one."""

    def setUp(self) -> None:
        super().setUp()
        self.caller = self.client()

    def atomic(self) -> Any:
        raise NotImplementedError

    def deferred(self) -> Any:
        raise NotImplementedError

    def insert(self, name: str) -> None:
        """Write a row and track its event."""
        raise NotImplementedError

    def rows(self) -> List[str]:
        raise NotImplementedError

    def check(self, *names: str) -> None:
        self.assertTrue(self.caller.flush(LIMIT))
        self.assertEqual([each['event'] for each in self.collector.events], list(names))
        self.assertEqual(self.rows(), list(names))

    def place(self, name: str) -> None:
        with self.deferred():
            self.insert(name)

    def commit_sends_in_order(self) -> None:
        with self.atomic():
            for name in 'abc':
                self.place(name)
            self.assertTrue(self.caller.flush(LIMIT))
            self.assertEqual(self.collector.events, [])
        self.check('a', 'b', 'c')

    def rollback_sends_nothing(self) -> None:
        with self.assertRaises(RolledBack), self.atomic():
            self.place('lost')
            raise RolledBack
        with self.atomic():
            self.place('kept')
        self.check('kept')

    def savepoints_count(self) -> None:
        with self.atomic():
            with self.deferred():
                self.insert('a')
                with self.assertRaises(RolledBack), self.atomic():
                    with self.deferred():
                        self.insert('lost')
                        with self.atomic(), self.deferred():
                            self.insert('lost, too')
                    raise RolledBack
                with self.atomic(), self.deferred():
                    self.insert('b')
            self.place('c')
        self.check('a', 'b', 'c')

    def an_outer_rollback_takes_the_savepoints_along(self) -> None:
        with self.assertRaises(RolledBack), self.atomic():
            self.place('lost')
            with self.atomic():
                self.place('lost, too')
            raise RolledBack
        self.check()

    def block_around_the_transaction(self) -> None:
        with self.deferred():
            with self.atomic():
                self.insert('a')
            self.assertTrue(self.caller.flush(LIMIT))
            self.assertEqual(self.collector.events, [])
        self.check('a')


@unittest.skipUnless(importlib.util.find_spec('django'), 'no Django here')
class DjangoTest(TransactionTestCase):
    @classmethod
    def setUpClass(cls) -> None:
        import django
        from django.conf import settings

        if not settings.configured:
            database = {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}
            settings.configure(DATABASES={'default': database})
            django.setup()

    def setUp(self) -> None:
        super().setUp()
        from django.db import connection, transaction

        self.transaction = transaction
        self.cursor = connection.cursor()
        self.cursor.execute('DROP TABLE IF EXISTS placed')
        self.cursor.execute('CREATE TABLE placed (name TEXT)')

    def atomic(self) -> Any:
        return self.transaction.atomic()

    def deferred(self) -> Any:
        return htevents.deferred(hook=self.transaction.on_commit)

    def insert(self, name: str) -> None:
        self.cursor.execute('INSERT INTO placed VALUES (%s)', [name])
        self.caller.track('user', name)

    def rows(self) -> List[str]:
        self.cursor.execute('SELECT name FROM placed ORDER BY rowid')
        return [name for (name,) in self.cursor.fetchall()]

    def test_a_commit_sends_in_order(self) -> None:
        self.commit_sends_in_order()

    def test_a_rollback_sends_nothing(self) -> None:
        self.rollback_sends_nothing()

    def test_a_savepoint_that_is_rolled_back_sends_nothing(self) -> None:
        self.savepoints_count()

    def test_an_outer_rollback_takes_the_savepoints_along(self) -> None:
        self.an_outer_rollback_takes_the_savepoints_along()

    def test_without_a_transaction_the_end_of_the_block_counts(self) -> None:
        self.place('a')
        self.check('a')

    def test_a_block_around_the_transaction_sends_at_its_own_end(self) -> None:
        self.block_around_the_transaction()

    def test_the_hook_of_a_named_database_is_a_partial(self) -> None:
        hook = functools.partial(self.transaction.on_commit, using='default')
        with self.atomic():
            with htevents.deferred(hook=hook):
                self.insert('a')
            self.assertTrue(self.caller.flush(LIMIT))
            self.assertEqual(self.collector.events, [])
        self.check('a')


@unittest.skipUnless(importlib.util.find_spec('sqlalchemy'), 'no SQLAlchemy here')
class SqlalchemyTest(TransactionTestCase):
    """Uses the recipe of the README."""

    recipe: Any = None

    @classmethod
    def setUpClass(cls) -> None:
        (code,) = [code for _, code in snippets() if 'from sqlalchemy' in code]
        names: Any = {}
        exec(code.partition('\nwith Session()')[0], names)  # registers its listeners
        cls.recipe = staticmethod(names['on_commit'])

    def setUp(self) -> None:
        super().setUp()
        from sqlalchemy import create_engine, text
        from sqlalchemy.orm import Session

        self.text = text
        engine = create_engine('sqlite://')
        self.addCleanup(engine.dispose)
        self.session = Session(engine)
        self.addCleanup(self.session.close)
        self.session.execute(text('CREATE TABLE placed (name TEXT PRIMARY KEY)'))
        self.session.commit()

    def atomic(self) -> Any:
        if self.session.in_transaction():
            return self.session.begin_nested()
        return self.session.begin()

    def deferred(self) -> Any:
        return htevents.deferred(hook=self.recipe(self.session))

    def insert(self, name: str) -> None:
        insert = self.text('INSERT INTO placed VALUES (:name)')
        self.session.execute(insert, {'name': name})
        self.caller.track('user', name)

    def rows(self) -> List[str]:
        select = self.text('SELECT name FROM placed ORDER BY rowid')
        names = [name for (name,) in self.session.execute(select)]
        self.session.rollback()
        return names

    def test_a_commit_sends_in_order(self) -> None:
        self.commit_sends_in_order()

    def test_a_rollback_sends_nothing(self) -> None:
        self.rollback_sends_nothing()

    def test_a_savepoint_that_is_rolled_back_sends_nothing(self) -> None:
        self.savepoints_count()

    def test_an_outer_rollback_takes_the_savepoints_along(self) -> None:
        self.an_outer_rollback_takes_the_savepoints_along()

    def test_a_block_around_the_transaction_sends_at_its_own_end(self) -> None:
        self.block_around_the_transaction()

    def test_a_session_that_is_closed_drops_its_events(self) -> None:
        for end in (self.session.close, self.session.invalidate):
            self.place('lost')
            end()
            self.session.execute(
                self.text('CREATE TABLE IF NOT EXISTS placed (name TEXT)')
            )
            self.session.commit()
        self.check()

    def mapped(self, name: str) -> Any:
        """Return an object whose flush inserts a row."""
        from sqlalchemy import Column, MetaData, String, Table
        from sqlalchemy.orm import registry

        class Placed:
            pass

        table = Table('placed', MetaData(), Column('name', String, primary_key=True))
        registry().map_imperatively(Placed, table)
        placed: Any = Placed()
        placed.name = name
        return placed

    def test_a_flush_that_fails_in_a_savepoint_sends_nothing_of_it(self) -> None:
        from sqlalchemy.exc import IntegrityError

        with self.atomic():
            self.place('a')
            with self.assertRaises(IntegrityError), self.atomic():
                self.place('lost')
                self.session.add(self.mapped('a'))
                self.session.flush()
            self.place('b')
        self.check('a', 'b')

    def test_a_savepoint_that_is_closed_sends_nothing(self) -> None:
        with self.atomic():
            self.place('a')
            savepoint = self.atomic()
            self.place('lost')
            savepoint.close()
            self.place('b')
        self.check('a', 'b')

    def test_a_transaction_of_two_commits_sends_with_its_own(self) -> None:
        self.place('a')
        self.session.commit()
        self.place('lost')
        self.session.rollback()
        self.place('b')
        self.session.commit()
        self.check('a', 'b')
