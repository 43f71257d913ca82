"""The command ``python -m hightouch.htevents``: collect, demo, send, spool."""

import argparse
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from time import sleep, time
from typing import Any, Dict, List, Optional, Sequence, TextIO, Tuple
from urllib.parse import urlsplit

from hightouch.htevents._process.logs import logger, printable
from hightouch.htevents._process.waiting import Deadline, monotonic
from hightouch.htevents.cli import files, inspector
from hightouch.htevents.client import DEFAULT_TIMEOUT, Client
from hightouch.htevents.errors import MessageTooLargeError, ValidationError
from hightouch.htevents.request import DEFAULT_HOST
from hightouch.htevents.settings import (
    ENV_HOST,
    ENV_WRITE_KEY,
    NAMES,
    DefaultConfig,
    check_write_key,
)
from hightouch.htevents.version import NAME, VERSION

PROGRAM = 'python -m hightouch.htevents'

DEFAULT_PORT = 8765

# Exit codes: 0 done, 1 not delivered, 2 wrong arguments (argparse's own).
NOT_DELIVERED = 1
USAGE = 2

TYPES = tuple(files.ARGUMENTS)

# The calls that take an option; all calls take the options in files.COMMON.
_OPTIONS = {
    name: tuple(kind for kind in TYPES if name in files.ARGUMENTS[kind])
    for name in sorted({name for names in files.ARGUMENTS.values() for name in names})
}

# The settings that a command takes from the environment, beside the key and the host.
_CONNECTION = [
    name
    for name in NAMES
    if name in ('timeout', 'proxies') or name.startswith('oauth_')
]


def _defaults(but: Sequence[str] = ()) -> Dict[str, Any]:
    """Return the defaults of all settings, so that the environment sets no other ones."""
    return {name: getattr(DefaultConfig, name) for name in NAMES if name not in but}


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; return its exit code."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)  # type: ignore[no-any-return]
    except OSError as error:
        # stdout cannot be written. Python would report that once more at exit.
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0  # the reader of our output has gone
        _print_error('%s: %s' % (PROGRAM, error))
        return NOT_DELIVERED


def _print_error(text: str) -> None:
    print(text, file=sys.stderr)


def _wrong(text: str) -> int:
    _print_error('%s: %s' % (PROGRAM, text))
    return USAGE


def _reason(error: Exception) -> str:
    return printable('%s: %s' % (type(error).__name__, error), 300)


# -- arguments -----------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description='Hightouch events on the command line.'
    )
    parser.add_argument(
        '--version', action='version', version='%s %s' % (NAME, VERSION)
    )
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    commands.required = True

    one = commands.add_parser('collect', help='run a collector on loopback')
    one.set_defaults(run=collect)
    one.add_argument('--port', type=_port, default=DEFAULT_PORT, help='0: a free one')
    one.add_argument('--out', metavar='FILE', help='append events here as JSON lines')
    one.add_argument(
        '--json', action='store_true', help='print each event as a line of JSON'
    )
    one.add_argument(
        '--filter',
        metavar='NAME=PATTERN',
        type=_pattern,
        action='append',
        default=[],
        help="print only such events, e.g. 'event=Order*', user=7, bad=1",
    )
    one.add_argument(
        '--forward',
        metavar='URL',
        nargs='?',
        const='',
        type=_url,
        help='pass events on to Hightouch or to this URL, and show its answers',
    )

    one = commands.add_parser('demo', help='send some thousand events, and count them')
    one.set_defaults(run=demo)
    one.add_argument('--events', type=int, default=5000, help=argparse.SUPPRESS)

    one = commands.add_parser('send', help='send one event, or the lines of a file')
    one.set_defaults(run=send)
    one.add_argument('type', choices=TYPES, nargs='?', help='of the event')
    _add_server(one, None, '%d, for a file no limit' % DEFAULT_TIMEOUT)
    _add_arguments_of_calls(one)
    _add_file(one.add_argument_group('the lines of a file'))

    one = commands.add_parser('spool', help='show or send the events in a spool_dir')
    one.set_defaults(run=show_spool)
    one.add_argument('dir', metavar='DIR', help='the spool_dir of a client')
    one.add_argument(
        '--send', action='store_true', help='deliver the events of dead processes'
    )
    _add_server(one, None)
    return parser


def _add_server(
    parser: argparse.ArgumentParser, timeout: Optional[float], default: str = ''
) -> None:
    """Add the options of the commands that send."""
    parser.add_argument('--write-key', help='default: $%s' % ENV_WRITE_KEY)
    parser.add_argument('--host', help='default: $%s, then Hightouch' % ENV_HOST)
    parser.add_argument(
        '--timeout',
        type=_seconds,
        default=timeout,
        help='seconds to deliver in; default: %s' % (default or 'no limit'),
    )


def _add_file(parser: Any) -> None:
    parser.add_argument(
        '--file',
        help='lines of JSON, each an event or the arguments of a call, or CSV; - is stdin. '
        'The other options are for the lines that lack them',
    )
    parser.add_argument(
        '--map',
        metavar='COLUMN=PATH',
        action='append',
        help='the field of a CSV column, e.g. mail=traits.email, sum=properties.sum:number',
    )
    parser.add_argument('--dry-run', action='store_true', help='only check the lines')
    parser.add_argument(
        '--rejects', metavar='FILE', help='for bad lines; default: FILE.rejects'
    )
    parser.add_argument('--rate', type=_rate, help='events a second; default: no limit')
    parser.add_argument(
        '--checkpoint', metavar='FILE', help='note here what is sent, and go on there'
    )


def _add_arguments_of_calls(parser: argparse.ArgumentParser) -> None:
    for name in files.COMMON + tuple(_OPTIONS):
        parser.add_argument(
            _flag(name),
            type=_json_object if name in files.OBJECTS else str,
            metavar='JSON' if name in files.OBJECTS else 'TEXT',
            help='for %s' % ', '.join(_OPTIONS.get(name, ('all',))),
        )


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError('expected 0 to 65535, got %d' % port)
    return port


def _pattern(text: str) -> Tuple[str, str]:
    name, equals, pattern = text.partition('=')
    if not (name and equals):
        raise argparse.ArgumentTypeError('expected NAME=PATTERN, got %s' % text)
    return name, pattern


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ('http', 'https') and parts.hostname
        parts.port  # raises if it is not a port
    except ValueError:
        is_url = None
    if not is_url:
        raise argparse.ArgumentTypeError('expected a URL such as %s' % DEFAULT_HOST)
    return text


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0
    if not 0 < rate < float('inf'):  # also true for NaN
        raise argparse.ArgumentTypeError(
            'expected more than 0 events a second, got %s' % text
        )
    return rate


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not seconds >= 0:  # also true for NaN
        raise argparse.ArgumentTypeError('expected 0 or more seconds, got %s' % text)
    return seconds


def _json_object(text: str) -> Dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError('expected JSON: %s' % error)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('expected a JSON object, such as {"plan": 1}')
    return value


# -- collect -------------------------------------------------------------------------


def collect(args: argparse.Namespace) -> int:
    """Run a collector until Ctrl-C or SIGTERM, and print the events."""
    out = open(args.out, 'a', encoding='utf-8') if args.out else None
    try:
        return _collect(args, out)
    finally:
        if out is not None:
            out.close()


def _collect(args: argparse.Namespace, out: Optional[TextIO]) -> int:
    forward = DEFAULT_HOST if args.forward == '' else args.forward or ''
    if urlsplit(forward).netloc in {
        '%s:%d' % (name, args.port) for name in ('127.0.0.1', 'localhost', '[::1]')
    }:
        return _wrong('--forward: expected another server than this one')
    printer = _Printer(args.json, inspector.Filter(args.filter))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, printer.end)
    made = inspector.Inspector(args.port, out, printer.show, forward)
    try:
        made.start()
    except OSError as error:
        _print_error(
            'Port %d cannot be used (%s); choose another with --port, or 0'
            % (args.port, error.strerror)
        )
        return NOT_DELIVERED
    printer.say('Collecting on %s (Ctrl-C ends); open it to see the events' % made.url)
    # On Windows, a signal does not end a wait. Short waits see it on all platforms.
    while not printer.stop.wait(0.5) and _has_reader():
        pass
    made.stop()
    printer.say(printer.summary())
    return 0


class _Printer:
    """Prints events, and counts them by type.

    :param as_json: print a line of JSON for each, and all other lines to stderr
    :param only: lets through what is printed
    """

    def __init__(self, as_json: bool, only: 'inspector.Filter') -> None:
        self.stop = threading.Event()  # set when the command should end
        self._counts: 'Counter[str]' = Counter()
        self._as_json = as_json
        self._only = only

    def end(self, number: int, frame: Any) -> None:
        """Handle a signal: end the command. The next signal ends the process.

        A reader that does not read, such as a pager, would otherwise keep it from ending.
        """
        self.stop.set()
        signal.signal(number, signal.SIG_DFL)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr if self._as_json else sys.stdout, flush=True)

    def show(self, entry: 'inspector.Entry') -> None:
        self._counts['bad' if entry.problems else entry.kind] += 1
        if not self._only.lets(entry):
            return
        try:
            print(
                json.dumps(entry.flat()) if self._as_json else _line(entry), flush=True
            )
        except OSError:
            # The reader has gone, and the platform has no `poll` to see that sooner.
            # The sender still gets its answer.
            self.stop.set()

    def summary(self) -> str:
        details = ', '.join('%s %d' % each for each in sorted(self._counts.items()))
        total = sum(self._counts.values())
        return '%d event(s)%s' % (total, ': ' + details if details else '')


def _has_reader() -> bool:
    """Whether our output may still have a reader; True when that is unknown."""
    if not hasattr(select, 'poll'):
        return True
    try:
        reader = select.poll()
        reader.register(sys.stdout.fileno(), 0)  # errors only
        return not any(
            found & (select.POLLERR | select.POLLHUP) for _, found in reader.poll(0)
        )
    except (OSError, ValueError, AttributeError):
        return True  # stdout has no descriptor


def _line(entry: 'inspector.Entry') -> str:
    """Return an event as it is printed, in colours on a terminal."""
    event = entry.event if isinstance(entry.event, dict) else {}
    user = event.get('userId') or event.get('anonymousId') or '-'
    name = event.get('event') or event.get('name') or event.get('groupId')
    if isinstance(entry.event, dict):
        values = event.get('properties') or event.get('traits') or {}
        parts = [
            '%-8s' % (event.get('type') or '-'),
            str(user),
            repr(name or event.get('previousId') or ''),
            json.dumps(values, ensure_ascii=False),
        ]
    else:
        parts = [repr(entry.event)]
    parts = [printable(each, 200) for each in parts]
    status, about = ('BAD ', '31') if entry.problems else ('ok  ', '2')
    more = [printable(each, 200) for each in entry.problems]
    if entry.answer:
        more.append('-> ' + printable(entry.answer, 400))
    if _has_colours():
        status = _in_colour(about, status)
        parts[0] = _in_colour(_COLOURS.get(entry.kind, '2'), parts[0])
        more = [_in_colour(about, each) for each in more]
    first = ' '.join([status, *parts])
    line = '\n       '.join([first, *more])
    # A character that the console cannot show becomes a question mark.
    encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
    return line.encode(encoding, 'replace').decode(encoding)


# Of the types, as in ANSI escapes.
_COLOURS = {
    'track': '32',
    'identify': '35',
    'page': '34',
    'screen': '36',
    'group': '33',
    'alias': '95',
}


def _in_colour(code: str, text: str) -> str:
    return '\x1b[%sm%s\x1b[0m' % (code, text)


def _has_colours() -> bool:
    if os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb':
        return False
    return sys.stdout.isatty() and os.name == 'posix'


# -- demo ----------------------------------------------------------------------------

_DEMO_COLLECTOR = """
import json, sys
from hightouch.htevents.collector import Collector
with Collector(faults=[200, 'reset']) as collector:
    print(collector.url, flush=True)
    sys.stdin.read()
    print(json.dumps({
        'types': [event['type'] for event in collector.events],
        'ids': [event['messageId'] for event in collector.events],
        'requests': len(collector.requests),
    }))
"""


def demo(args: argparse.Namespace) -> int:
    """Send some thousand events, by all six calls, to a collector in a child process."""
    process = subprocess.Popen(
        [sys.executable, '-c', _DEMO_COLLECTOR],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        print('A collector runs at %s; it will reset one connection.' % url)
        sent, seconds, stats = _send_demo(url, args.events)
        report = json.loads(process.communicate(timeout=60)[0])
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    arrived = Counter(report['types'])
    lost = sent - len(set(report['ids']))
    twice = len(report['ids']) - len(set(report['ids']))
    for type_ in TYPES:
        print('  %-9s %6d' % (type_, arrived[type_]))
    print('requests   %6d' % report['requests'])
    print('retries    %6d' % stats.retried)
    print('events/s   %6d' % (sent / seconds))
    print('accepted %d, delivered %d, failed %d' % stats[:3])
    print('Nothing was lost.' if lost == 0 else '%d event(s) were lost.' % lost)
    if twice:
        print('%d arrived twice.' % twice)
    return 0 if lost == 0 and stats.delivered == sent else NOT_DELIVERED


def _send_demo(url: str, count: int) -> Any:
    start = monotonic()
    given = dict(_defaults(), write_key='demo-write-key', host=url, gzip=True, thread=2)
    with Client(**dict(given, block_timeout=30)) as client:
        results = [
            client.identify('user-1', {'email': 'ada@example.com'}),
            client.group('user-1', 'acme', {'plan': 'enterprise'}),
            client.alias('anonymous-1', 'user-1'),
            client.page('user-1', 'Docs', 'Start', {'url': 'https://example.com'}),
            client.screen('user-1', 'App', 'Home', {'dark': True}),
        ]
        for number in range(max(0, count - len(results))):
            results.append(
                client.track(
                    'user-%d' % (number % 100),
                    'Order Completed',
                    {'number': number, 'total': 12.5, 'items': ['book', 'pen']},
                )
            )
        client.flush(60)
        seconds = monotonic() - start
        stats = client.stats()
    return sum(accepted for accepted, _ in results), seconds, stats


# -- send ----------------------------------------------------------------------------


def send(args: argparse.Namespace) -> int:
    """Send one event, or a file; return 0 only if the collector acknowledged all."""
    logger.setLevel(logging.CRITICAL)  # the command prints its own messages
    arguments = {
        name: getattr(args, name)
        for name in files.COMMON + tuple(_OPTIONS)
        if getattr(args, name) is not None
    }
    given = dict(_defaults(_CONNECTION), write_key=args.write_key, host=args.host)
    if args.file is None:
        return _send_one(args, arguments, given)
    for name in files.IDS:
        if name in arguments:
            return _wrong('send: %s is for one event, not for --file' % _flag(name))
    if args.type is not None:
        arguments['type'] = args.type
    try:
        return files.send_file(args, arguments, given)
    except ValidationError as error:
        return _wrong(str(error))


def _send_one(
    args: argparse.Namespace, arguments: Dict[str, Any], given: Dict[str, Any]
) -> int:
    if args.type is None:
        return _wrong('send: expected a type (%s) or --file' % ', '.join(TYPES))
    for name in ('map', 'dry_run', 'rejects', 'rate', 'checkpoint'):
        if getattr(args, name):
            return _wrong('send: %s is for --file' % _flag(name))
    errors: List[Exception] = []
    for name in arguments:
        if args.type not in _OPTIONS.get(name, TYPES):
            return _wrong('%s takes no %s' % (args.type, _flag(name)))
    try:
        client = Client(**dict(given, on_error=lambda error, _: errors.append(error)))
        getattr(client, args.type)(**arguments)
    except (ValidationError, MessageTooLargeError) as error:
        return _wrong(str(error))
    client.shutdown(DEFAULT_TIMEOUT if args.timeout is None else args.timeout)
    if client.stats().delivered:
        print('Delivered.')
        return 0
    reason = _reason(errors[0]) if errors else 'time ran out'
    _print_error('Not delivered: %s' % reason)
    return NOT_DELIVERED


# -- spool ---------------------------------------------------------------------------

# Seconds between two updates of the progress bar.
_PROGRESS_INTERVAL = 0.2
_BAR_WIDTH = 30


def show_spool(args: argparse.Namespace) -> int:
    """Show the events in a spool; with --send deliver those of dead processes.

    With --send, return 0 only if all such events of the write key were delivered.
    """
    from hightouch.htevents._spool import directory, report

    try:
        directory.check_support()
        found = report.waiting(args.dir)
        if not args.send:
            _print_waiting(found)
            return 0
        write_key = check_write_key(args.write_key)
        return _send_spool(args, write_key, directory.stream_name(write_key), found)
    except OSError as error:
        return _wrong('%s: %s' % (args.dir, error.strerror or error))
    except ValidationError as error:
        return _wrong(str(error))


def _print_waiting(found: List[Any]) -> None:
    for stream in sorted({each.stream for each in found}):
        print('write key %s...' % _name(stream[:8]))
        for each in found:
            if each.stream == stream:
                print('  ' + _waiting_line(each))
    events = _events(found)
    size = sum(each.bytes for each in found if each.events)
    damaged = sum(each.events is None for each in found if each.state != 'foreign')
    print(
        '%d event(s), %s%s'
        % (events, _size(size), '; %d damaged file(s)' % damaged if damaged else '')
    )


def _events(found: List[Any]) -> int:
    return sum(each.events or 0 for each in found)


def _of(found: List[Any], stream: str, state: str) -> List[Any]:
    return [each for each in found if (each.stream, each.state) == (stream, state)]


def _waiting_line(each: Any) -> str:
    if each.state == 'foreign':
        return '%-8s of another user, left alone: %s' % (each.state, _name(each.path))
    if each.events is None:
        return '%-8s %s, %s' % (each.state, _size(each.bytes), _name(each.path))
    return '%-8s %8d event(s), %9s, oldest %7s  %s' % (
        each.state,
        each.events,
        _size(each.bytes),
        '-' if each.oldest is None else _age(time() - each.oldest),
        _name(each.owner),
    )


def _name(text: str) -> str:
    """Return a name that another program has chosen, to be printed."""
    return printable(text, 1000)


def _size(count: float) -> str:
    for unit in ('B', 'KB', 'MB'):
        if count < 1000:
            return '%.3g %s' % (count, unit)
        count /= 1000.0
    return '%.3g GB' % count


def _age(seconds: float) -> str:
    for unit, length in (('d', 86400), ('h', 3600), ('min', 60)):
        if seconds >= length:
            return '%.3g %s' % (seconds / length, unit)
    return '%d s' % max(0, seconds)


def _send_spool(
    args: argparse.Namespace, write_key: str, stream: str, found: List[Any]
) -> int:
    from hightouch.htevents._spool import report

    _print_not_sent(stream, found)
    left = _of(found, stream, 'left')
    # A damaged log has no count. Its new owner finds out which events can be read.
    if all(each.events == 0 for each in left):
        print('Nothing to send.')
        return 0
    logger.setLevel(logging.CRITICAL)  # the command prints its own messages
    refused: 'Counter[str]' = Counter()

    def on_error(error: Exception, batch: List[Any]) -> None:
        refused[_reason(error)] += len(batch)

    given = dict(_defaults(_CONNECTION), write_key=write_key, host=args.host)
    client = Client(**dict(given, spool_dir=args.dir, on_error=on_error))
    stats = _deliver(client, _events(left), Deadline(args.timeout))
    for reason, count in refused.items():
        _print_error('Refused %d: %s' % (count, reason))
    if stats.damaged_files:
        text = 'Set aside %d damaged file(s), and sent the events that could be read.'
        _print_error(text % stats.damaged_files)
    # The counts of this client do not tell: another process may have sent a part.
    left = _of(report.waiting(args.dir), stream, 'left')
    rest, unread = _events(left), [each for each in left if each.events is None]
    if rest:
        reason = stats.last_error or 'time ran out'
        _print_error('%d event(s) stay: %s' % (rest, reason))
    for each in unread:
        _print_error('Cannot be read now: %s' % _name(each.path))
    complete = not (rest or unread or stats.failed or stats.damaged_files)
    return 0 if complete else NOT_DELIVERED


def _print_not_sent(stream: str, found: List[Any]) -> None:
    running = _of(found, stream, 'running')
    others = [each for each in found if each.stream != stream]
    for events, text in (
        (running, 'of living processes, which send them'),
        (others, 'of another write key: give it with --write-key'),
    ):
        if _events(events):
            print('Not sent: %d event(s) %s.' % (_events(events), text))


def _deliver(client: Client, total: int, deadline: Deadline) -> Any:
    """Deliver the events of dead processes; return the client's counts."""
    try:
        # flush() does not help: it covers events that the client itself has accepted.
        while client._queue.store.has_backlog() and not deadline.over:
            sleep(_PROGRESS_INTERVAL)
            _show_progress(client.stats(), total)
    except KeyboardInterrupt:
        pass  # the rest stays in the spool
    client.shutdown(1)
    stats = client.stats()
    _show_progress(stats, total)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    # The client may have found more events in logs that could not be counted.
    print(
        'Delivered %d of %d event(s).' % (stats.delivered, max(total, stats.accepted))
    )
    return stats


def _show_progress(stats: Any, total: int) -> None:
    """On a terminal, draw a progress bar over the previous one."""
    if sys.stderr.isatty():
        done = stats.delivered + stats.failed
        filled = min(_BAR_WIDTH, _BAR_WIDTH * done // max(total, 1))
        bar = '#' * filled + '.' * (_BAR_WIDTH - filled)
        text = '[%s] %d/%d %s' % (bar, done, total, stats.last_error or '')
        sys.stderr.write('\r%-78s' % text[:78])
        sys.stderr.flush()
