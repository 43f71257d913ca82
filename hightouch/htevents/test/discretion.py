import gc
import os
import signal
import threading
import unittest
import weakref
from functools import partial
from typing import Any, Iterator, List

import requests

from hightouch.htevents import Client, request
from hightouch.htevents.collector import Fault
from hightouch.htevents.consumer import Consumer
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.oauth_manager import OauthManager
from hightouch.htevents.test.support import LIMIT, Recorder, TestCase, make_key

KEY = make_key()
SECRETS = [
    'wk-secret',
    'host-secret',
    'proxy-secret',
    'token-',
    'Bearer',
    'client_assertion',
    'eyJ',  # a JWT begins with it
    KEY.splitlines()[1],
]
PACKAGE = os.path.dirname(request.__file__)


def raised(call: Any) -> BaseException:
    """Give what a call raises, with its frames: assertRaises clears them."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError('nothing was raised')


def chain(error: BaseException) -> List[BaseException]:
    found: List[BaseException] = []
    todo: List[Any] = [error]
    while todo:
        each = todo.pop()
        if each is not None and each not in found:
            found.append(each)
            todo += [each.__cause__, each.__context__]
    return found


def frames(error: BaseException) -> Iterator[Any]:
    for each in chain(error):
        step = each.__traceback__
        while step is not None:
            yield step.tb_frame
            step = step.tb_next


class DiscretionTest(TestCase):
    """What a reporter of errors finds that sends the locals of each frame along."""

    key = KEY

    def assert_discreet(self, error: BaseException) -> None:
        for frame in frames(error):
            if frame.f_code.co_filename == __file__:
                continue  # the application's, and it knows its own secrets
            for name, value in frame.f_locals.items():
                for secret in SECRETS:
                    place = (frame.f_code.co_name, name, type(value))
                    self.assertNotIn(secret, repr(value), place)

    def reported(self, *script: Any, **settings: Any) -> Any:
        """Give the error that a client reports."""
        self.collector.script(*script)
        lost = Recorder()
        settings.setdefault('write_key', 'wk-secret')
        settings.setdefault('max_retries', 0)
        url = self.collector.url.replace('//', '//me:host-secret@')
        settings.setdefault('host', url)
        client = self.client(on_error=lost, **settings)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        ((error, _),) = lost.calls
        for frame in frames(error):
            name = frame.f_globals['__name__']
            self.assertNotEqual(
                os.path.dirname(frame.f_code.co_filename), PACKAGE, name
            )
        self.assert_discreet(error)
        return error

    def test_what_is_reported_to_on_error(self) -> None:
        dead = 'http://me:host-secret@127.0.0.1:9'
        for mode in ({}, {'sync_mode': True}, {'gzip': True}):  # type: Any
            self.reported(401, **mode)
            self.reported('reset', **mode)
            self.reported('reset-before', **mode)
            self.reported('hang', timeout=0.1, **mode)
            self.reported(host=dead, **mode)
            self.reported(proxies='http://me:proxy-secret@127.0.0.1:9', **mode)
            self.reported(host='https' + self.collector.url[4:], **mode)
            self.reported(host='nonsense://me:host-secret@host', **mode)
            self.reported(write_key='wk-secret' + 'x' * 600, host='http://[', **mode)

    def test_with_oauth(self) -> None:
        oauth = {
            'oauth_client_id': 'id',
            'oauth_client_key': KEY,
            'oauth_key_id': 'kid',
            'oauth_auth_server': self.collector.url,
        }  # type: Any
        self.reported(403, **oauth)
        self.reported('reset', **oauth)
        for fault in (401, 500, 'reset', Fault(200, {}, b'{}')):  # type: Any
            self.collector.token_faults.append(fault)
            self.reported(**oauth)
        oauth['oauth_auth_server'] = 'http://me:host-secret@127.0.0.1:9'
        self.reported(**oauth)

    def test_what_a_call_raises(self) -> None:
        url = self.collector.url.replace('//', '//me:host-secret@')
        proxies = {'https': 'http://me:proxy-secret@proxy', 'http': 5}  # type: Any

        def callback(*args: Any) -> None:
            pass

        calls = [
            lambda: request.post('wk-secret', url, batch=[]),
            lambda: request.post('wk-secret', 'http://me:host-secret@[', batch=[]),
            lambda: request.post('wk-secret', url, timeout=0.1, batch=[]),
            lambda: request.post('wk-secret', url, proxies=proxies, batch=[]),
            lambda: OauthManager('id', KEY, 'kid', url, max_retries=0).get_token(),
            lambda: OauthManager('id', KEY, 'kid', url, proxies=proxies),
            lambda: Consumer(None, 'wk-secret', on_error=5),  # type: ignore[arg-type]
            lambda: Client('wk-secret', url, nonsense=KEY),  # type: ignore[call-arg]
            lambda: Client('wk-secret', url, proxies=proxies),
            lambda: Client('wk-secret', url, timeout=-1, oauth_client_key=KEY),
            lambda: Client('wk-secret', url, on_error=5),  # type: ignore[arg-type]
            lambda: Client('wk-secret', url, spool_dir='/nonsense/folder'),
        ]  # type: Any
        self.collector.token_faults.append(401)
        self.collector.script(401, 'hang')
        for call in calls:
            error = raised(call)
            self.assert_discreet(error)
            self.assertGreater(len(list(frames(error))), 2)

    @unittest.skipUnless(hasattr(signal, 'pthread_kill'), 'needs signals')
    def test_what_a_signal_handler_raises_in_a_call_keeps_only_its_own_locals(
        self,
    ) -> None:
        main = threading.get_ident()

        def handler(number: int, frame: Any) -> None:
            why_so = 'the limit of the job'
            raise RuntimeError(why_so)

        def hang(_: Any) -> str:
            signal.pthread_kill(main, signal.SIGUSR1)
            return 'hang'

        before = signal.signal(signal.SIGUSR1, handler)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        self.collector.script(hang)
        client = self.client(write_key='wk-secret', sync_mode=True)
        error = raised(lambda: client.track('user', 'event'))
        self.assert_discreet(error)
        found = [each for each in frames(error) if 'why_so' in each.f_locals]
        self.assertEqual([each.f_code.co_name for each in found], ['handler'])

    def test_an_error_of_the_application_keeps_its_frames(self) -> None:
        def before_send(message: Any) -> Any:
            detail = message['event']
            raise KeyError(detail)

        error = self.reported(before_send=before_send)
        found = [each for each in frames(error) if 'detail' in each.f_locals]
        self.assertEqual([each.f_code.co_name for each in found], ['before_send'])

        class Adapter(requests.adapters.HTTPAdapter):
            def send(self, *args: Any, **kwargs: Any) -> Any:
                raise LookupError

        with requests.Session() as session:
            session.mount('http://', Adapter())
            error = self.reported(session=session)
        names = [each.f_code.co_name for each in frames(error)]
        self.assertEqual(names[-1], 'send')

    def test_an_error_of_ours_that_was_handled_already_is_left_alone(self) -> None:
        client = self.client(sync_mode=True, on_error=Recorder())
        before = raised(lambda: client.track(None, 'event'))  # type: ignore[arg-type]
        count = len(list(frames(before)))
        self.assertGreater(count, 2)
        try:
            raise before
        except ValidationError:
            self.collector.script(401)
            client.track('user', 'event')
        self.assertGreaterEqual(len(list(frames(before))), count)

    def test_what_an_error_came_through_and_goes_on_is_not_ended(self) -> None:
        def tokens() -> Any:
            while True:
                try:
                    yield 'token'
                except ValueError as error:
                    remembered.append(error)

        class Manager:
            def get_token(self) -> str:
                source = running[0]
                source.throw(ValueError('no token'))
                raise remembered[-1]

            def clear_token(self) -> None:
                pass

        remembered = []  # type: List[Any]
        running = [tokens()]
        next(running[0])
        url = self.collector.url
        for _ in range(2):
            raised(lambda: request.post('key', url, oauth_manager=Manager(), batch=[]))
            self.assertEqual(next(running[0]), 'token')

    def test_an_error_is_gone_with_the_last_who_has_it(self) -> None:
        class Silent(Exception):
            pass

        class Manager:
            def get_token(self) -> str:
                raise Silent

        gone = []
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                url = self.collector.url
                call = partial(request.post, 'key', url, batch=[])
                gone.append(weakref.ref(raised(partial(call, oauth_manager=Manager()))))
            self.assertEqual([each() for each in gone], [None] * 3)
        finally:
            gc.enable()

    def test_what_was_handled_already_is_left_alone(self) -> None:
        def fail() -> None:
            detail = 'of the application'
            raise ValueError(detail)

        try:
            fail()
        except ValueError as before:
            raised(lambda: Client('wk-secret', timeout=-1))
            self.reported(401, sync_mode=True)
            found = [each for each in frames(before) if 'detail' in each.f_locals]
            self.assertEqual(len(found), 1)

    def test_a_request_shows_where_it_goes(self) -> None:
        body = b'{"writeKey":"wk-secret"}'
        built = request.build(body, 'http://me:host-secret@127.0.0.1:9', False)
        self.assertEqual(
            repr(built), '<Request of 24 bytes to http://127.0.0.1:9/v1/batch>'
        )
