import contextlib
import io
import logging
import logging.config
import os
import tempfile
from asyncio import CancelledError
from typing import Any, Iterator, List

import mock

from hightouch.htevents import Client
from hightouch.htevents._process.logs import outlive
from hightouch.htevents._process.waiting import Signal, start_thread
from hightouch.htevents.collector import Fault
from hightouch.htevents.test.support import (
    LIMIT,
    LogCatcher,
    Recorder,
    TestCase,
    run_program,
)

_HEAD = (
    'import logging, logging.config, sys, threading\n'
    'from hightouch.htevents import Client\n'
    'url = sys.argv[1]\n'
)
_USE = (
    'client.track("user", "event")\n'
    'assert client.flush(30)\n'
    'client.shutdown(30)\n'
)


class ShownTest(TestCase):
    """What ``debug=True`` brings to the terminal."""

    def shown(self, before: str, after: str = '', settings: str = 'debug=True') -> str:
        """Give what a program writes that configures logging before or after us."""
        made = 'client = Client("key", url, %s)\n' % settings
        program = _HEAD + before + '\n' + made + after + '\n' + _USE
        result = run_program(program, self.collector.url)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout + result.stderr

    def test_each_line_once_wherever_the_application_writes_its_own(self) -> None:
        for configure in (
            '',
            'logging.basicConfig()',
            'logging.basicConfig(level=logging.INFO)',
            'logging.basicConfig(stream=sys.stdout)',
            'logging.basicConfig(filename="/dev/null")',
            'logging.getLogger().addHandler(logging.NullHandler())',
            'logging.getLogger("hightouch").addHandler(logging.StreamHandler())',
            'logging.getLogger("hightouch").propagate = False',
            # It shows some lines, and these are not among them.
            'logging.basicConfig(); logging.getLogger().handlers[0].setLevel("INFO")',
            'logging.basicConfig(); logging.getLogger().handlers[0].addFilter(\n'
            '    logging.Filter("other"))',
            # It writes each line once, if it is asked once.
            'logging.basicConfig(); seen = []\n'
            'logging.getLogger().handlers[0].addFilter(\n'
            '    lambda record: record not in seen and not seen.append(record))',
            'logging.basicConfig(handlers=[logging.FileHandler("/dev/stderr", "w")])',
            'class Rich(logging.StreamHandler):\n'
            '    console = property(lambda self: self)\n'
            '    file = sys.stderr\n'
            '    def emit(self, record): print(self.format(record), file=self.file)\n'
            'one = Rich(); del one.stream\n'
            'logging.getLogger().addHandler(one)',
            'class Broken(logging.StreamHandler):\n'
            '    def fileno(self): raise RuntimeError\n'
            '    def emit(self, record): pass\n'
            'logging.getLogger().addHandler(Broken(Broken()))',
            'logging.config.dictConfig({"version": 1, "root": {"handlers": ["c"]},\n'
            '    "handlers": {"c": {"class": "logging.StreamHandler"}}})',
        ):
            for text in (self.shown(configure), self.shown('', configure)):
                self.assertEqual(text.count('queueing'), 1, (configure, text))
                self.assertEqual(text.count('answer: HTTP 200'), 1, (configure, text))

    def test_a_handler_of_another_client_does_not_hide_them(self) -> None:
        text = self.shown(
            'other = Client("key", url, log_handler=logging.FileHandler("/dev/null"))'
        )
        self.assertEqual(text.count('queueing'), 1, text)

    def test_a_configuration_that_disables_all_loggers_does_not_hide_them(self) -> None:
        configure = 'logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})'
        for text in (self.shown(configure), self.shown('', configure)):
            self.assertEqual(text.count('queueing'), 1, text)
            self.assertEqual(text.count('answer: HTTP 200'), 1, text)

    def test_nor_those_that_a_log_handler_was_given_for(self) -> None:
        program = (
            _HEAD + 'client = Client("key", url, max_retries=0,\n'
            '    log_handler=logging.StreamHandler())\n'
            'logging.config.dictConfig({"version": 1})\n'
            'client.track("user", "event")\n'
            'client.shutdown(30)\n'
        )
        result = run_program(program, 'http://127.0.0.1:9')
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr.count('Lost 1 event'), 1, result.stderr)


class TrackingHandler(logging.Handler):
    """Tracks each line of a level, as an application does that sends its log there."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.client: Any = None
        self.tracked: List[bool] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.client is not None:
            properties = {'text': record.getMessage(), 'name': record.name}
            self.tracked.append(self.client.track('log', 'Line', properties)[0])


class EchoTest(TestCase):
    """A log handler that tracks each line, those of the delivery included."""

    @contextlib.contextmanager
    def tracking(self, level: int, **settings: Any) -> Iterator[TrackingHandler]:
        handler = TrackingHandler(level)
        root = logging.getLogger()
        before = root.level
        root.addHandler(handler)
        root.setLevel(level)
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                handler.client = self.client(upload_interval=0, **settings)
                yield handler
                handler.client.shutdown(LIMIT)
        finally:
            root.setLevel(before)
            root.removeHandler(handler)

    def assert_ends(self, client: Client, most: int) -> None:
        for _ in range(3):
            self.assertTrue(client.flush(LIMIT))
        accepted = client.stats().accepted
        self.assertLessEqual(accepted, most)
        for _ in range(3):
            self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().accepted, accepted)

    def test_it_does_not_feed_itself(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for settings in (
                {},
                {'debug': True},
                {'debug': True, 'gzip': True, 'thread': 2},
                {'sync_mode': True},
                {'debug': True, 'sync_mode': True},
                {'debug': True, 'spool_dir': folder},
            ):  # type: Any
                with self.tracking(logging.DEBUG, **settings) as handler:
                    for _ in range(3):
                        self.assertTrue(handler.client.track('user', 'event')[0])
                    # An event for each line of a call is fine: it ends.
                    self.assert_ends(handler.client, 6)
                    self.assertIn(False, handler.tracked)
                    self.assertGreater(handler.client.stats().refused, 0)

    def test_nor_by_the_errors_of_its_own_losses(self) -> None:
        self.collector.script(*[401] * 50)
        with self.tracking(logging.WARNING) as handler:
            handler.client.track('user', 'event')
            self.assert_ends(handler.client, 1)

    def test_the_lines_of_the_application_are_events(self) -> None:
        """Also those of its callbacks, which run inside a delivery."""
        log = logging.getLogger('application')
        self.collector.script(401)

        def on_error(error: Exception, batch: Any) -> None:
            log.error('lost')

        with self.tracking(logging.ERROR, on_error=on_error) as handler:
            log.error('before')
            self.assert_ends(handler.client, 2)
        texts = [each['properties']['text'] for each in self.collector.events]
        self.assertEqual(texts, ['lost'])

    def test_it_is_one_warning(self) -> None:
        with self.tracking(logging.DEBUG) as handler, LogCatcher() as log:
            for _ in range(3):
                handler.client.track('user', 'event')
                self.assertTrue(handler.client.flush(LIMIT))
        lines = [each for each in log.lines(logging.WARNING) if 'log handler' in each]
        self.assertEqual(len(lines), 1)


class EndingHandler(logging.Handler):
    """Ends the program with each line, as it believes."""

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error

    def __init__(self, error: BaseException) -> None:
        super().__init__(logging.WARNING)
        self.error = error


class FlushingHandler(logging.Handler):
    def __init__(self, client: Any) -> None:
        super().__init__(logging.WARNING)
        self.client = client
        self.threads = Recorder()

    def emit(self, record: logging.LogRecord) -> None:
        self.client.flush(None)
        self.threads(record.threadName, record.getMessage())


class LineTest(TestCase):
    def test_a_handler_that_exits_ends_no_consumer_and_keeps_no_callback(self) -> None:
        for error in (SystemExit(3), KeyboardInterrupt(3), CancelledError(3)):  # type: Any
            handler = EndingHandler(error)
            on_error = Recorder()
            client = self.client(
                log_handler=handler, on_error=on_error, upload_interval=0
            )
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                for number in range(1, 4):
                    self.collector.script(400)
                    client.track('user', 'refused')
                    self.assertTrue(on_error.wait_for(number))
                    client.track('user', 'taken')
                    self.assertTrue(client.flush(LIMIT))
            self.assertIn(type(error).__name__ + ': 3', stderr.getvalue())
            self.assertEqual(client.stats().delivered, 3)
            client.shutdown(LIMIT)

    def test_what_ends_a_delivery_does_not_end_its_thread(self) -> None:
        class Manager:
            errors = [SystemExit(), GeneratorExit()]  # type: Any

            def get_token(self) -> str:
                if self.errors:
                    raise self.errors.pop()
                return 'token'

        client = self.client(upload_interval=0)
        assert client.consumers is not None
        client.consumers[0].oauth_manager = Manager()
        with LogCatcher() as log:
            client.track('user', 'event')
            self.assertTrue(self.collector.wait_for(1, LIMIT))
        lines = log.lines(logging.WARNING)
        self.assertEqual(len([each for each in lines if 'goes on' in each]), 2)

    def test_nor_does_a_test_that_replaces_threads(self) -> None:
        raised: List[BaseException] = []
        ended = Signal()

        def fail() -> None:
            try:
                outlive(ValueError(), 'The consumer goes on after an error')
            except BaseException as error:
                raised.append(error)
            ended.set()

        with mock.patch('threading.Thread'), contextlib.redirect_stderr(io.StringIO()):
            start_thread(fail)
            self.assertTrue(ended.wait(LIMIT))
        self.assertEqual(raised, [])

    def test_the_text_of_an_error_stays_on_the_last_line_of_its_traceback(self) -> None:
        def on_error(error: Exception, batch: Any) -> None:
            try:
                raise KeyError(strange)
            except KeyError:
                raise ValueError(strange)

        strange = 'one\n2026-01-01 CRITICAL forged \x1b[31m'
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        self.collector.script(400)
        client = self.client(on_error=on_error, log_handler=handler)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        lines = stream.getvalue().splitlines()
        self.assertIn('on_error raised; delivery goes on', lines)
        self.assertIn('ValueError: ' + strange.encode('unicode_escape').decode(), lines)
        self.assertEqual(lines.count('Traceback (most recent call last):'), 2)
        self.assertEqual([each for each in lines if each.startswith('2026')], [])
        self.assertNotIn('\x1b', stream.getvalue())

    def test_an_error_that_cannot_be_shown_is_named(self) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise RuntimeError('no text')

        def on_error(error: Exception, batch: Any) -> None:
            raise Mute from ValueError('\n')

        stream = io.StringIO()
        self.collector.script(400)
        client = self.client(
            on_error=on_error, log_handler=logging.StreamHandler(stream)
        )
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertIn('Mute: Mute', stream.getvalue().splitlines())

    def test_a_traceback_that_says_nothing_strange_is_the_formatters(self) -> None:
        class Formatter(logging.Formatter):
            def formatException(self, info: Any) -> str:
                return 'scrubbed'

        def on_error(error: Exception, batch: Any) -> None:
            raise ValueError('a card number')

        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(Formatter())
        self.collector.script(400)
        client = self.client(on_error=on_error, log_handler=handler)
        client.track('user', 'event')
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(stream.getvalue().splitlines()[-1], 'scrubbed')
        # Of one that another process has made there is only a text.
        record = logging.makeLogRecord({'levelno': 30, 'exc_text': 'elsewhere'})
        logging.getLogger('hightouch').handle(record)
        self.assertEqual(record.exc_text, 'elsewhere')

    def test_a_handler_may_flush_in_a_line_of_a_call(self) -> None:
        """It holds its lock, and the consumer has a line for it."""
        client = self.client(host='http://127.0.0.1:9', max_retries=0)
        flushing = FlushingHandler(client)
        logging.getLogger('hightouch').addHandler(flushing)
        self.addCleanup(logging.getLogger('hightouch').removeHandler, flushing)
        client.track('user', 'lost')
        client.track('user', 'lost', {'value': object()})
        self.assertTrue(flushing.threads.wait_for(2))
        self.assertTrue(client.flush(LIMIT))
        self.assertEqual(client.stats().failed, 2)

    def test_a_handler_may_flush_whoever_makes_the_line(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            client = self.client(spool_dir=folder, upload_interval=0.01)
            client.track('user', 'first')
            self.assertTrue(client.flush(LIMIT))
            flushing = FlushingHandler(client)
            logging.getLogger('hightouch').addHandler(flushing)
            self.addCleanup(logging.getLogger('hightouch').removeHandler, flushing)
            (own,) = [each.path for each in os.scandir(folder) if each.is_dir()]
            os.mkfifo(
                os.path.join(own, 'f' * 32 + '.000001.log')
            )  # the consumer tells of it
            client._queue.store._next_scan = 0  # type: ignore[attr-defined]
            client.track('user', 'second')
            self.assertTrue(flushing.threads.wait_for(1))
            self.assertEqual(flushing.threads.calls[0][0], 'htevents-consumer')
            client.track('user', 'third')
            self.assertTrue(client.flush(LIMIT))
            self.assertTrue(client.shutdown(LIMIT))
        self.assertEqual(len(self.collector.events), 3)

    def test_a_text_from_outside_stays_on_its_line(self) -> None:
        text = 'one\ntwo\r\x1b[31m\x9b2J\u2028three'
        self.collector.script(Fault(400, {}, text.encode('utf-8')))
        strange = type('Strange\nERROR forged', (), {})
        with LogCatcher() as log, contextlib.redirect_stderr(io.StringIO()):
            client = self.client(
                host=self.collector.url + '/x\ny\x1b', debug=True, on_error=None
            )
            client.track(text, text, {text: strange()}, context={'a': strange})
            client.track(text, text, message_id=text, anonymous_id=text)
            client.shutdown(LIMIT)  # in here: it puts back the level
        self.assertGreater(len(log.records), 3)
        for line in log.lines():
            self.assertTrue(line.isprintable(), line)
