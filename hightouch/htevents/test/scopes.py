"""What the calls of a request share, and that no call gets what belongs to another one."""

import asyncio
import json
import logging
import os
import sys
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any, Iterator, List, Tuple

import hightouch.htevents as htevents
from hightouch.htevents import Client
from hightouch.htevents._context import blocks, scopes
from hightouch.htevents._context.scopes import Scope, entered
from hightouch.htevents.test.support import LIMIT, LogCatcher, TestCase, run_loop
from hightouch.htevents.version import NAME, VERSION

LIBRARY = {'name': NAME, 'version': VERSION}
HAS_CONTEXTS = sys.version_info >= (3, 7)


class ScopeTestCase(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.caller = Client('key', send=False)
        scopes._failures.__init__()  # type: ignore[misc]

    def track(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault('event', 'Event')
        return self.caller.track(*args, **kwargs)[1]

    def ids(self, *args: Any, **kwargs: Any) -> Tuple[Any, Any]:
        message = self.track(*args, **kwargs)
        return message['userId'], message['anonymousId']

    def context(self, **kwargs: Any) -> Any:
        context = self.track('user', **kwargs)['context']
        self.assertEqual(context.pop('library'), LIBRARY)
        return context


class ScopeTest(ScopeTestCase):
    def test_each_of_the_six_calls_of_every_client_takes_it(self) -> None:
        one, other = self.client(), self.client()
        with htevents.scope('user', 'visitor', {'ip': '192.0.2.1'}, {'All': False}):
            for client in (one, other):
                client.identify()
                client.track(event='Event')
                client.group(group_id='group')
                client.page()
                client.screen()
                client.alias('previous')
                self.assertTrue(client.flush(LIMIT))
        events = self.collector.events
        self.assertEqual(len(events), 12)
        for each in events:
            anonymous_id = None if each['type'] == 'alias' else 'visitor'
            self.assertEqual(each['userId'], 'user')
            self.assertEqual(each['anonymousId'], anonymous_id)
            self.assertEqual(each['context'], {'ip': '192.0.2.1', 'library': LIBRARY})
            self.assertEqual(each['integrations'], {'All': False})

    def test_what_a_call_gives_itself_wins(self) -> None:
        with htevents.scope(
            'user',
            'visitor',
            {'ip': 1, 'os': {'name': 'a', 'version': 'b'}},
            {'All': True},
        ):
            message = self.track(
                'user',
                context={'os': {'name': 'c'}, 'locale': None},
                anonymous_id='own',
                integrations={'All': False, 'S3': True},
            )
        self.assertEqual(message['anonymousId'], 'own')
        expected = {'ip': 1, 'os': {'name': 'c'}, 'locale': None, 'library': LIBRARY}
        self.assertEqual(message['context'], expected)
        self.assertEqual(message['integrations'], {'All': False, 'S3': True})

    def test_it_cannot_replace_the_library(self) -> None:
        with htevents.scope('user', context={'library': {'name': 'other'}}):
            self.assertEqual(self.track()['context'], {'library': LIBRARY})

    def test_another_user_never_carries_the_anonymous_id_of_the_scope(self) -> None:
        with htevents.scope('user', 'visitor'):
            self.assertEqual(self.ids('user'), ('user', 'visitor'))
            for other in ('somebody-else', 7, 'user ', 'USER'):
                self.assertEqual(self.ids(other), (str(other), None))
            for call in (self.caller.identify, self.caller.page, self.caller.screen):
                self.assertIsNone(call('somebody-else')[1]['anonymousId'])
            group = self.caller.group('somebody-else', 'group')[1]
            self.assertIsNone(group['anonymousId'])
        with htevents.scope(anonymous_id='visitor'):
            self.assertEqual(self.ids('somebody-else'), ('somebody-else', None))
            self.assertEqual(self.ids(), (None, 'visitor'))

    def test_another_visitor_never_carries_the_user_of_the_scope(self) -> None:
        with htevents.scope('user', 'visitor'):
            self.assertEqual(self.ids(anonymous_id='other'), (None, 'other'))
            self.assertEqual(self.ids(anonymous_id='visitor'), ('user', 'visitor'))
        with htevents.scope('user'):  # nothing says that it is another one
            self.assertEqual(self.ids(anonymous_id='visitor'), ('user', 'visitor'))

    def test_ids_are_compared_as_they_go_on_the_wire(self) -> None:
        with htevents.scope(7, 8):
            self.assertEqual(self.ids('7'), ('7', '8'))
            self.assertEqual(self.ids(7), ('7', '8'))
            self.assertEqual(self.ids(''), ('7', '8'))

    def test_before_send_sees_the_complete_message(self) -> None:
        def scrub(message: Any) -> Any:
            message['context']['page'].pop('search')
            return message

        self.caller = Client('key', send=False, before_send=scrub)
        page = {'path': '/', 'search': '?token=secret'}
        with htevents.scope('user', context={'page': page}):
            for _ in range(2):
                self.assertEqual(self.context(), {'page': {'path': '/'}})

    def test_scopes_nest_and_merge_key_by_key(self) -> None:
        with htevents.scope('user', 'visitor', {'a': 1, 'b': {'x': 1}}, {'S3': True}):
            with htevents.scope(context={'b': {'y': 2}, 'c': 3}):
                self.assertEqual(self.context(), {'a': 1, 'b': {'y': 2}, 'c': 3})
                self.assertEqual(self.ids(), ('user', 'visitor'))
                self.assertEqual(self.track()['integrations'], {'S3': True})
            self.assertEqual(self.context(), {'a': 1, 'b': {'x': 1}})
        self.assertEqual(self.context(), {})
        with htevents.scope(anonymous_id='visitor'), htevents.scope('user'):
            self.assertEqual(self.ids(), ('user', 'visitor'))  # a login

    def test_a_nested_scope_of_another_user_has_no_anonymous_id(self) -> None:
        with htevents.scope('user', 'visitor'), htevents.scope('other'):
            self.assertEqual(self.ids(), ('other', None))
            self.assertEqual(self.ids('user'), ('user', None))

    def test_without_ids_anywhere_the_error_is_the_same(self) -> None:
        with self.assertRaises(htevents.ValidationError) as without:
            self.track()
        with htevents.scope(context={'ip': 1}):
            with self.assertRaises(htevents.ValidationError) as inside:
                self.track()
        self.assertEqual(str(inside.exception), str(without.exception))

    def test_bad_arguments_are_told_when_the_scope_is_opened(self) -> None:
        for wrong in (
            {'user_id': ['u']},
            {'anonymous_id': True},
            {'context': 'ip'},
            {'integrations': ['All']},
        ):  # type: Any
            for use in (htevents.scope, htevents.update_scope):
                with self.assertRaisesRegex(htevents.ValidationError, list(wrong)[0]):
                    made = use(**wrong)
                    with made:  # type: ignore[union-attr]
                        pass
        with htevents.scope('user', context=[], integrations=0):  # type: ignore[arg-type]
            self.assertEqual(self.context(), {})

    def test_later_changes_reach_neither_the_scope_nor_its_events(self) -> None:
        page = {'path': '/'}
        with htevents.scope('user', context={'page': page}):
            page['path'] = '/changed'
            message = self.track()
            message['context']['page']['path'] = '/changed'
            self.assertEqual(self.context(), {'page': {'path': '/'}})

    def test_values_that_json_lacks_are_converted_with_few_warnings(self) -> None:
        with LogCatcher() as log:
            for _ in range(200):
                with htevents.scope(
                    'user', context={'odd': object(), 'n': float('nan')}
                ):
                    self.assertIsNone(self.context()['n'])
        self.assertLessEqual(len(log.lines(logging.WARNING)), 5)

    def test_without_a_scope_nothing_changes_on_the_wire(self) -> None:
        client = self.client()
        message_id, timestamp = 'id', datetime.now(timezone.utc)
        args = ('user', 'Event', {'a': 1}, {'ip': 1}, timestamp, 'v', {}, message_id)
        client.track(*args)
        with htevents.scope():
            client.track(*args)
        client.track(*args)
        self.assertTrue(client.flush(LIMIT))
        first, inside, after = map(json.dumps, self.collector.events)
        self.assertEqual(first, inside)
        self.assertEqual(first, after)


class UpdateTest(ScopeTestCase):
    def test_a_login_adds_the_user_to_the_innermost_scope(self) -> None:
        with htevents.scope(anonymous_id='visitor', context={'a': 1}):
            with htevents.scope():
                htevents.update_scope('user', context={'b': 2})
                self.assertEqual(self.ids(), ('user', 'visitor'))
                self.assertEqual(self.context(), {'a': 1, 'b': 2})
            self.assertEqual(self.ids(), (None, 'visitor'))

    def test_another_user_ends_the_use_of_the_anonymous_id(self) -> None:
        with htevents.scope('user', 'visitor'):
            htevents.update_scope('user')
            self.assertEqual(self.ids(), ('user', 'visitor'))
            htevents.update_scope('other')
            self.assertEqual(self.ids(), ('other', None))

    def test_a_login_in_a_thread_counts_for_the_whole_scope(self) -> None:
        def login() -> None:
            htevents.update_scope('user')

        with htevents.scope(anonymous_id='visitor'):
            run = blocks.opened()
            thread = threading.Thread(
                target=lambda: (blocks.variable.set(run), login())
            )
            thread.start()
            thread.join()
            self.assertEqual(self.ids(), ('user', 'visitor'))

    def test_threads_that_add_at_once_lose_nothing(self) -> None:
        def add(number: int) -> None:
            for step in range(200):
                htevents.update_scope(context={'%d-%d' % (number, step): 1})

        with htevents.scope('user'):
            opened = blocks.opened()

            def run(number: int) -> None:
                blocks.variable.set(opened)
                add(number)

            threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(len(self.context()), 1600)

    def test_outside_of_a_scope_it_is_one_warning_and_no_effect(self) -> None:
        with LogCatcher() as log:
            htevents.update_scope('user')
            htevents.update_scope('user')
        self.assertEqual(len(log.lines(logging.WARNING)), 1)
        with self.assertRaises(htevents.ValidationError):
            self.track()


class FoundUserTest(ScopeTestCase):
    def test_the_user_is_looked_for_with_each_event(self) -> None:
        found: List[Any] = [None, 7, '', 'user']
        with entered(Scope((None, 'visitor'), find_user=lambda: found.pop(0))):
            ids = [self.ids() for _ in range(4)]
        expected = [(None, 'visitor'), ('7', 'visitor')]
        self.assertEqual(ids, expected + [(None, 'visitor'), ('user', 'visitor')])

    def test_code_that_raises_or_tracks_itself_costs_no_event(self) -> None:
        def find() -> Any:
            self.track('inner')
            raise ValueError('secret')

        with LogCatcher() as log, entered(Scope((None, 'v'), find_user=find)):
            self.assertEqual(self.ids(), (None, 'v'))
            self.assertEqual(self.ids('user'), ('user', None))
        (line,) = log.lines(logging.WARNING)
        self.assertIn('ValueError', line)
        self.assertNotIn('secret', line)

    def test_a_user_that_the_application_sets_is_not_looked_for(self) -> None:
        with entered(Scope(find_user=lambda: 1 / 0)):
            with LogCatcher() as log:
                htevents.update_scope('user')
                self.assertEqual(self.ids(), ('user', None))
        self.assertEqual(log.lines(logging.WARNING), [])

    def test_an_update_does_not_keep_the_user_that_was_found(self) -> None:
        found = ['alice']
        with entered(Scope((None, 'visitor'), find_user=lambda: found[0])):
            htevents.update_scope(context={'plan': 'pro'})
            htevents.update_scope(anonymous_id='other')
            self.assertEqual(self.ids(), ('alice', 'other'))
            found[0] = 'bob'
            self.assertEqual(self.ids(), ('bob', 'other'))
            htevents.update_scope('carol')
            self.assertEqual(self.ids(), ('carol', None))

    def test_the_user_is_not_looked_for_where_it_does_not_matter(self) -> None:
        def find() -> Any:
            raise AssertionError

        with LogCatcher() as log, entered(Scope(find_user=find)):
            self.assertEqual(self.ids('user'), ('user', None))
            htevents.carry(self.ids)('user')
            htevents.update_scope(context={'a': 1})
        self.assertEqual(log.lines(logging.WARNING), [])

    def test_a_context_that_cannot_be_found_costs_no_event(self) -> None:
        def find() -> Any:
            self.track('inner')
            raise ValueError

        with LogCatcher() as log:
            for wrong in (find, lambda: None):  # type: Any
                with entered(Scope(('user', None), {'a': 1}, find_context=wrong)):
                    self.assertEqual(self.context(), {'a': 1})
        self.assertEqual(len(log.lines(logging.WARNING)), 1)

    def test_a_request_leaves_no_scope_behind(self) -> None:
        with entered(Scope(('user', None))):
            blocks.enter(Scope(('left behind', None)))  # as an interrupted block may
        with self.assertRaises(htevents.ValidationError):
            self.track()

    def test_callbacks_of_a_sync_client_are_outside_of_the_callers_scope(self) -> None:
        found: List[Any] = []
        client = self.client(
            sync_mode=True, on_success=lambda _: found.append(blocks.opened())
        )
        with htevents.scope('user'), htevents.deferred():
            client.track(event='Event')
        self.assertEqual(found, [()])

    def test_the_context_is_looked_for_once(self) -> None:
        calls = []

        def find() -> Any:
            calls.append(1)
            return {'ip': '192.0.2.1', 'locale': 'de'}

        with entered(Scope(('user', None), find_context=find)):
            htevents.update_scope(context={'locale': 'fr'})
            for _ in range(3):
                expected = {'ip': '192.0.2.1', 'locale': 'fr'}
                self.assertEqual(self.context(), expected)
        self.assertEqual(len(calls), 1)


class ThreadTest(ScopeTestCase):
    def test_threads_have_their_own_scopes(self) -> None:
        barrier, wrong = threading.Barrier(8), []  # type: Any

        def run(number: int) -> None:
            barrier.wait(LIMIT)
            for step in range(300):
                user = '%d-%d' % (number, step)
                with htevents.scope(user):
                    if self.ids() != (user, None):
                        wrong.append(user)

        with htevents.scope('outside'):
            threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(wrong, [])

    def test_carry_takes_the_scope_to_a_thread_and_to_a_pool(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            with htevents.scope('one', 'visitor', {'ip': 1}):
                first = pool.submit(htevents.carry(self.track))
                carried = htevents.carry(self.ids)
                htevents.update_scope('two')
            with htevents.scope('three'):
                self.assertEqual(carried(), ('two', None))  # the scope, as it is now
                self.assertEqual(self.ids(), ('three', None))
                second = pool.submit(carried)
            self.assertEqual(first.result()['context']['ip'], 1)
            self.assertEqual(second.result(), ('two', None))
            with self.assertRaises(htevents.ValidationError):
                pool.submit(self.track).result()  # nothing stays behind

    def test_carry_outside_of_a_scope_means_without_one(self) -> None:
        carried = htevents.carry(self.track)
        with htevents.scope('user'):
            with self.assertRaises(htevents.ValidationError):
                carried()

    def test_a_carried_function_keeps_its_name_its_result_and_its_error(self) -> None:
        def job(first: int, second: int = 2) -> int:
            """Text."""
            return first // second

        carried = htevents.carry(job)
        self.assertEqual((carried.__name__, carried.__doc__), ('job', 'Text.'))
        self.assertEqual(carried(8, second=4), 2)
        with self.assertRaises(ZeroDivisionError):
            carried(1, 0)

    def test_what_no_block_can_be_around_is_told(self) -> None:
        def steps() -> Iterator[int]:
            yield 1

        for wrap in (htevents.carry, htevents.scope('user'), htevents.deferred()):
            for wrong in ('job', steps):  # type: Any
                with self.assertRaisesRegex(htevents.ValidationError, 'function: '):
                    wrap(wrong)

    def test_a_login_in_a_carried_function_counts_for_the_request(self) -> None:
        with htevents.scope(anonymous_id='visitor'):
            login = threading.Thread(
                target=htevents.carry(htevents.update_scope), args=('user',)
            )
            login.start()
            login.join()
            self.assertEqual(self.ids(), ('user', 'visitor'))

    @unittest.skipUnless(hasattr(os, 'fork'), 'no fork here')
    def test_a_forked_child_starts_without_one(self) -> None:
        with htevents.scope('user', 'visitor', {'ip': 1}):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    try:
                        self.track()
                    except htevents.ValidationError:
                        with htevents.scope('child'):
                            status = 0 if self.ids() == ('child', None) else 2
                finally:
                    os._exit(status)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)
            self.assertEqual(self.ids(), ('user', 'visitor'))


class GeneratorTest(ScopeTestCase):
    def steps(self, user: str) -> Iterator[Any]:
        with htevents.scope(user):
            yield self.ids()
            yield self.ids()

    def test_generators_may_end_their_scopes_in_any_order(self) -> None:
        first, second = self.steps('first'), self.steps('second')
        next(first)
        next(second)
        first.close()
        self.assertEqual(self.ids(), ('second', None))
        second.close()
        with self.assertRaises(htevents.ValidationError):
            self.track()

    def test_a_scope_that_ends_in_another_thread_raises_nothing(self) -> None:
        steps, errors = self.steps('user'), []  # type: Any

        def finish() -> None:
            try:
                with htevents.scope('thread'):
                    list(steps)
                    self.assertEqual(self.ids(), ('thread', None))
            except BaseException as error:
                errors.append(error)

        next(steps)
        thread = threading.Thread(target=finish)
        thread.start()
        thread.join()
        self.assertEqual(errors, [])
        with self.assertRaises(htevents.ValidationError):
            self.track()  # the scope is over in this thread as well

    def test_a_function_may_be_decorated_with_a_scope(self) -> None:
        @htevents.scope('user')
        def job() -> Any:
            return self.ids()

        self.assertEqual([job(), job()], [('user', None)] * 2)

    def test_no_update_reaches_the_next_use_of_a_scope(self) -> None:
        @htevents.scope('user')
        def job() -> None:
            self.assertEqual(self.ids(), ('user', None))
            htevents.update_scope('other')

        job()
        job()
        opened = htevents.scope('user')
        with opened:
            pass
        with self.assertRaises(RuntimeError):  # as of other context managers
            with opened:
                pass

    def test_a_scope_that_is_open_twice_ends_twice(self) -> None:
        scope = Scope(('user', None))
        with entered(scope):
            with entered(scope):
                pass
            self.assertEqual(self.ids(), ('user', None))
        with entered(scope):
            self.assertEqual(self.ids(), ('user', None))


@unittest.skipUnless(HAS_CONTEXTS, 'no contextvars on Python 3.6')
class AsyncTest(ScopeTestCase):
    def test_of_10000_interleaved_requests_none_has_anothers_id(self) -> None:
        wrong = []

        async def request(number: int) -> None:
            user = 'user-%d' % number
            with htevents.scope(user, 'visitor-%d' % number, {'number': number}):
                await asyncio.sleep(0)
                with htevents.scope(context={'inner': number}):
                    await asyncio.sleep(number % 7 / 1000)
                    message = self.track()
                await asyncio.sleep(0)
                ids = self.ids()
            if (
                ids != (user, 'visitor-%d' % number)
                or message['userId'] != user
                or message['context']['number'] != number
                or message['context']['inner'] != number
            ):
                wrong.append(number)

        async def main() -> None:
            await asyncio.gather(*[request(number) for number in range(10000)])

        run_loop(main())
        self.assertEqual(wrong, [])

    def test_a_task_keeps_the_scope_in_which_it_was_made(self) -> None:
        async def main() -> Any:
            with htevents.scope('user'):
                task = asyncio.ensure_future(later())
            with htevents.scope('other'):
                return await task

        async def later() -> Any:
            await asyncio.sleep(0.01)
            return self.ids()

        self.assertEqual(run_loop(main()), ('user', None))

    def test_an_executor_gets_the_scope_by_carry(self) -> None:
        async def main() -> Any:
            loop = asyncio.get_event_loop()
            with htevents.scope('user'):
                return await loop.run_in_executor(None, htevents.carry(self.ids))

        self.assertEqual(run_loop(main()), ('user', None))

    @unittest.skipUnless(hasattr(asyncio, 'to_thread'), 'no asyncio.to_thread here')
    def test_to_thread_has_the_scope_and_a_login_in_it_counts(self) -> None:
        async def main() -> Any:
            with htevents.scope(anonymous_id='visitor'):
                await asyncio.to_thread(htevents.update_scope, 'user')
                return await asyncio.to_thread(self.ids), self.ids()

        self.assertEqual(run_loop(main()), (('user', 'visitor'),) * 2)

    def test_carry_takes_coroutine_functions(self) -> None:
        async def job() -> Any:
            await asyncio.sleep(0.001)
            return self.ids()

        with htevents.scope('user'):
            carried = htevents.carry(job)
        self.assertTrue(asyncio.iscoroutinefunction(carried))
        self.assertEqual(run_loop(carried()), ('user', None))

    def test_coroutine_functions_may_be_decorated(self) -> None:
        @htevents.scope('user')
        async def job() -> Any:
            await asyncio.sleep(0.001)
            return self.ids()

        async def main() -> Any:
            return await asyncio.gather(job(), job())

        self.assertEqual(run_loop(main()), [('user', None)] * 2)

    def test_a_generator_that_another_task_ends_raises_nothing(self) -> None:
        async def steps() -> Any:
            with htevents.scope('user'):
                yield self.ids()
                yield self.ids()

        async def main() -> Any:
            generator = steps()
            await generator.__anext__()
            await asyncio.ensure_future(generator.aclose())
            return True

        self.assertTrue(run_loop(main()))

    def test_an_async_generator_that_is_left_early_leaves_no_scope(self) -> None:
        async def steps() -> Any:
            with htevents.scope('user'):
                yield 1
                yield 2

        async def main() -> None:
            generator = steps()
            async for _ in generator:
                break
            # The loop does this when the generator is garbage: in a task of its own.
            await asyncio.ensure_future(generator.aclose())
            with self.assertRaises(htevents.ValidationError):
                self.track()

        run_loop(main())
