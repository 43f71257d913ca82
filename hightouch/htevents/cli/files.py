"""Sends the lines of a file: events as JSON, the arguments of calls as JSON, or CSV.

All lines are checked before the first one is sent. Then they are sent in order, one batch at a
time: after each batch its last line is noted in the checkpoint. So a run that is killed sends at
most one batch again when it is resumed, with the same ids.
"""

import argparse
import csv
import difflib
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import zlib
from collections import Counter
from time import sleep
from typing import (
    Any,
    BinaryIO,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
)

from hightouch.htevents._process.logs import printable
from hightouch.htevents._process.waiting import Deadline, monotonic
from hightouch.htevents._queue.stores import BATCH_BYTES
from hightouch.htevents.client import Client
from hightouch.htevents.collector import (
    MAX_AGE,
    TOO_OLD,
    WIRE_NAMES,
    check_event,
    read_json,
)
from hightouch.htevents.encoding import encode
from hightouch.htevents.errors import APIError, MessageTooLargeError, ValidationError
from hightouch.htevents.settings import ENV_HOST, check_write_key, find_text
from hightouch.htevents.stamps import stable_message_id

# Events in a request.
BATCH_EVENTS = 100

# Statuses that are about the events of a request, not about the sender.
EVENT_STATUSES = (400, 413, 422)

# Where the rule on old events is documented.
RULE = 'a rule of Hightouch, see https://hightouch.com/docs/events'

# The arguments of each call, also by their names on the wire.
COMMON = ('user_id', 'context', 'integrations', 'timestamp', 'message_id')
ARGUMENTS = {
    'track': ('anonymous_id', 'event', 'idempotency_key', 'properties'),
    'identify': ('anonymous_id', 'traits'),
    'group': ('anonymous_id', 'group_id', 'traits'),
    'alias': ('previous_id',),
    'page': ('anonymous_id', 'category', 'name', 'properties'),
    'screen': ('anonymous_id', 'category', 'name', 'properties'),
}
ARGUMENT_NAMES = {wire: name for name, wire in WIRE_NAMES.items()}
# Each makes the id of one event.
IDS = ('message_id', 'idempotency_key')
# Stands for a stable id in an event that is only checked: making one takes a third of the time.
NO_ID = '-' * 36
OBJECTS = ('properties', 'traits', 'context', 'integrations')

# Seconds between two drawings of the progress bar.
DRAW_INTERVAL = 0.3
BAR_WIDTH = 24

# What a line is: to be sent as it is, or by a call, or not at all.
RAW, CALL, REJECTED = b'RC-'


class Bad(Exception):
    """A line cannot be sent; the text says why."""


class Line(NamedTuple):
    """A record of the file.

    :ivar number: of the line in the file, from 1 on; of its last line in a CSV file
    :ivar text: as it is in the file
    :ivar read: returns the fields, or raises `Bad`
    """

    number: int
    text: bytes
    read: Callable[[], Any]


class Stopped(Exception):
    """The rest cannot be sent now; the text says why."""


# -- reading -------------------------------------------------------------------------


def json_lines(file: BinaryIO) -> Iterator[Line]:
    """Read lines of JSON; empty ones are left out."""
    for number, text in enumerate(file, 1):
        if number == 1 and text.startswith(b'\xef\xbb\xbf'):
            text = text[3:]
        text = text.strip()
        if text:
            yield Line(number, text, lambda text=text: _parsed(text))  # type: ignore[misc]


def _parsed(text: bytes) -> Any:
    try:
        value = read_json(text.decode('utf-8'))
    except RecursionError:
        raise Bad('expected JSON, got one that is nested too deep')
    except ValueError as error:
        raise Bad('expected JSON: %s' % error)
    if not isinstance(value, dict):
        raise Bad('expected a JSON object, got %s' % type(value).__name__)
    return value


_NUMBER = re.compile(r'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z')


def _number(text: str) -> Any:
    """Read a number as spreadsheets and databases write it; Python reads more."""
    text = text.strip()
    value = float(text)
    if _NUMBER.match(text) is None or math.isinf(value):
        raise ValueError
    return int(text) if text.lstrip('-+').isdigit() else value


_BOOLS = {'true': True, '1': True, 'yes': True, 'false': False, '0': False, 'no': False}


class Columns:
    """Says which field of an event each column of a CSV file is.

    :param maps: 'column=path' or 'column=path:kind', such as 'amount=properties.total:number'.
        Without any, a column is the field of its name
    """

    KINDS: Dict[str, Callable[[str], Any]] = {
        'text': str,
        'number': _number,
        'bool': lambda text: _BOOLS[text.strip().lower()],
        'json': read_json,
    }

    def __init__(self, maps: List[str]) -> None:
        self.maps: Dict[str, Tuple[List[str], str]] = {}
        for each in maps:
            column, equals, path = each.rpartition('=')
            path, _, kind = path.partition(':')
            kind = kind or 'text'
            if not (equals and column and path) or kind not in self.KINDS:
                expected = 'COLUMN=PATH or COLUMN=PATH:KIND (%s)' % ', '.join(
                    self.KINDS
                )
                raise ValidationError('--map: expected %s, got %s' % (expected, each))
            self.maps[column] = (_path(path), kind)

    def bind(self, header: List[str]) -> None:
        """Take the names of the columns; raise `ValidationError` if a mapped one is missing."""
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise ValidationError('the column %s is there twice' % twice[0])
        missing = [name for name in self.maps if name not in header]
        if missing:
            hint = _hint(missing[0], header)
            found = printable(','.join(header), 300)
            text = 'there is no column %s%s; the first line is %s'
            raise ValidationError(text % (missing[0], hint, found))
        if not self.maps:
            self.maps = {name: (_path(name), 'text') for name in header}
        places = sorted((path, name) for name, (path, _) in self.maps.items())
        for (path, name), (other, second) in zip(places, places[1:]):
            if other[: len(path)] == path:
                text = 'expected one column for a field, got %s and %s for %s'
                raise ValidationError(text % (name, second, '.'.join(path)))
        self.header = header

    def read(self, row: List[str]) -> Dict[str, Any]:
        """Return the fields of a row; an empty cell is left out."""
        if len(row) != len(self.header):
            what = (len(self.header), len(row))
            raise Bad('expected %d cells, got %d' % what)
        fields: Dict[str, Any] = {}
        for name, cell in zip(self.header, row):
            if name not in self.maps or not cell:
                continue
            path, kind = self.maps[name]
            try:
                cell.encode('utf-8')
                value = self.KINDS[kind](cell)
            except UnicodeError:
                raise Bad('%s: expected UTF-8' % name)
            except (ValueError, LookupError, RecursionError):
                raise Bad('%s: expected a %s, got another text' % (name, kind))
            place = fields
            for step in path[:-1]:
                place = place.setdefault(step, {})
            place[path[-1]] = value
        return fields


def _path(text: str) -> List[str]:
    """Return the steps of a path such as 'properties.total'."""
    first, *rest = text.split('.')
    first = ARGUMENT_NAMES.get(first, first)
    known = {'type', *COMMON, *(name for names in ARGUMENTS.values() for name in names)}
    if first not in known or bool(rest) > (first in OBJECTS) or '' in rest:
        raise ValidationError(
            '%s: expected a field such as user_id or properties.total%s'
            % (text, _hint(first, sorted(known)))
        )
    return [first, *rest]


def csv_lines(file: BinaryIO, columns: Columns) -> Iterator[Line]:
    """Read the rows of a CSV file with a header."""
    text = io.TextIOWrapper(file, 'utf-8-sig', 'surrogateescape', newline='')
    try:
        # Without `strict` a quote that is never closed takes the rest of the file.
        reader = csv.reader(text, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            raise ValidationError('expected a header in the first line: %s' % error)
        if header is None:
            return
        columns.bind(header)
        while True:
            first = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                why = 'expected CSV: %s, in the row that begins in line %d' % (
                    error,
                    first,
                )
                yield Line(reader.line_num, b'', lambda why=why: _bad(why))  # type: ignore[misc]
                continue
            if row:
                joined = io.StringIO()
                csv.writer(joined, lineterminator='').writerow(row)
                line = joined.getvalue().encode('utf-8', 'surrogateescape')
                yield Line(reader.line_num, line, lambda row=row: columns.read(row))  # type: ignore[misc]
    finally:
        text.detach()


def _bad(why: str) -> Any:
    raise Bad(why)


# -- checking ------------------------------------------------------------------------


class Maker:
    """Makes the events of the lines.

    :param settings: of a client; the write key is a part of the ids
    :param name: of the file, a part of the ids
    :param given: arguments for the lines that lack them
    """

    def __init__(
        self, settings: Dict[str, Any], name: str, given: Dict[str, Any]
    ) -> None:
        self._write_key = settings['write_key']
        self._name = name
        self._given = given
        self._client = Client(**dict(settings, send=False))

    def check(self, line: Line) -> int:
        """Return what a line is; raise `Bad` if it cannot be sent."""
        fields = line.read()
        if _is_event(fields):
            problems = check_event(fields, size=len(line.text))
        else:
            # The client has checked the size.
            problems = check_event(self.message(line, fields, NO_ID), size=0)
        if problems:
            raise Bad('; '.join(problems))
        return RAW if _is_event(fields) else CALL

    def message(
        self, line: Line, fields: Dict[str, Any], message_id: Optional[str] = None
    ) -> Dict[str, Any]:
        """Return the event that a call with these arguments makes.

        :param message_id: for a line without one; None: the stable id of the line
        """
        arguments = dict(self._given)
        for name, value in fields.items():
            arguments[ARGUMENT_NAMES.get(name, name)] = value
        kind = arguments.pop('type', None)
        if not isinstance(kind, str) or kind not in ARGUMENTS:
            expected = 'type: expected one of %s' % ', '.join(ARGUMENTS)
            raise Bad('%s, got %s' % (expected, printable(repr(kind), 60)))
        for name in list(arguments):
            if name not in COMMON + ARGUMENTS[kind]:
                if name in self._given and name not in fields:
                    del arguments[name]  # given for the lines of another type
                    continue
                names = COMMON + ARGUMENTS[kind]
                raise Bad(
                    '%s has no %s%s' % (kind, printable(name, 60), _hint(name, names))
                )
        if all(arguments.get(name) is None for name in IDS):
            arguments['message_id'] = message_id or self._id(line, kind)
        try:
            _, message = getattr(self._client, kind)(**arguments)
        except (ValidationError, MessageTooLargeError) as error:
            raise Bad(str(error))
        return message  # type: ignore[no-any-return]

    def _id(self, line: Line, kind: str) -> str:
        key = (self._name, line.number, line.text.decode('utf-8', 'replace'))
        return stable_message_id(self._write_key, kind, '', key)

    def body(self, line: Line, kind: int) -> bytes:
        return line.text if kind == RAW else encode(self.message(line, line.read()))[0]


def _is_event(fields: Dict[str, Any]) -> bool:
    """Whether a line is an event as it goes on the wire, not the arguments of a call."""
    context = fields.get('context')
    return 'messageId' in fields and isinstance(context, dict) and 'library' in context


def _hint(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return ' (did you mean %s?)' % near[0] if near else ''


# -- files beside the file -----------------------------------------------------------


class Rejects:
    """The file of the lines that cannot be sent, as lines of JSON; made with the first.

    :param path: of the file
    :param upto: the line up to which what it has stays there, of a run that is resumed
    """

    def __init__(self, path: str, upto: int) -> None:
        self.path = path
        self.count = 0
        self.old = 0  # those that are refused for their age
        self._file: Any = None
        # What is no regular file, such as /dev/null, is only written to.
        exists = os.path.isfile(path)
        kept = self._read(upto) if exists else []
        if kept:
            with _writing(path + '.new') as file:
                for entry in kept:
                    self._note(file, entry)
            os.replace(path + '.new', path)
        elif exists:
            os.unlink(path)

    def _read(self, upto: int) -> List[Dict[str, Any]]:
        with open(self.path, encoding='utf-8') as file:
            try:
                found = [json.loads(line) for line in file]
                return [each for each in found if each['line'] <= upto]
            except (ValueError, LookupError, TypeError):
                text = '%s: expected rejected lines, got another file; choose --rejects'
                raise ValidationError(text % self.path)

    def add(self, line: Line, reason: str) -> None:
        if self._file is None:
            self._file = _writing(self.path)
        text = line.text.decode('utf-8', 'replace')
        entry = {'line': line.number, 'reason': reason, 'text': text}
        self._note(self._file, entry)

    def _note(self, file: Any, entry: Dict[str, Any]) -> None:
        file.write(json.dumps(entry, ensure_ascii=False) + '\n')
        self.count += 1
        self.old += TOO_OLD in entry['reason']

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def check_place(option: str, path: str) -> None:
    """Raise `ValidationError` if a file cannot be written, before anything is sent."""
    place = os.path.dirname(os.path.abspath(path))
    if os.path.exists(path) and not os.path.isfile(path):
        place = path
    if os.path.isdir(path) or not os.access(place, os.W_OK):
        text = '%s: expected a file in a folder that can be written, got %s'
        raise ValidationError(text % (option, path))


def _is_same(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _writing(path: str) -> Any:
    mode = 'a' if os.path.isfile(path) else 'w'  # Python 3.6 appends to no pipe
    return open(path, mode, encoding='utf-8', errors='backslashreplace')


class Checkpoint:
    """Notes up to which line a file was sent.

    :param path: of the file; None keeps nothing
    :param purpose: what is sent to where, as an opaque text
    :raises ValidationError: when the file is of another purpose, or cannot be understood
    """

    def __init__(self, path: Optional[str], purpose: str) -> None:
        self._path = path
        self._purpose = purpose
        self.line = 0
        self.delivered = 0
        self.checksum = 0  # of the lines up to this one
        if path is None or not os.path.exists(path):
            return
        with open(path, encoding='utf-8') as file:
            try:
                found = json.loads(file.read())
                self.line, self.delivered, self.checksum = (
                    int(found[name]) for name in ('line', 'delivered', 'checksum')
                )
                is_ours = found['purpose'] == purpose
            except (ValueError, LookupError, TypeError, RecursionError):
                raise ValidationError(
                    '%s: expected a checkpoint, got another file' % path
                )
        if not is_ours:
            raise ValidationError(
                '%s: it is of another file, host or write key; choose another --checkpoint, '
                'or delete it to begin anew' % path
            )

    def check(self, checksum: int) -> None:
        """Raise `ValidationError` if the lines that were sent are not those of the file."""
        if checksum != self.checksum:
            raise ValidationError(
                '%s: the file has changed up to line %d, which was sent; choose another '
                '--checkpoint, or delete it to begin anew' % (self._path, self.line)
            )

    def note(self, line: int, delivered: int, checksum: int) -> None:
        self.line, self.delivered, self.checksum = line, delivered, checksum
        if self._path is not None:
            text = {
                'line': line,
                'delivered': delivered,
                'checksum': checksum,
                'purpose': self._purpose,
            }
            with open(self._path + '.new', 'w', encoding='utf-8') as file:
                json.dump(text, file)
            os.replace(self._path + '.new', self._path)


# -- sending -------------------------------------------------------------------------


class Progress:
    """What is done, drawn on a terminal.

    :param verb: what is done
    :param total: lines; 0: unknown
    """

    def __init__(self, verb: str, total: int = 0) -> None:
        self._verb = verb
        self._total = total
        self.done = 0
        self.refused = 0
        self.note = ''
        self._began = monotonic()
        self._over = threading.Event()
        self._drawing = threading.Thread(target=self._draw_now_and_then, daemon=True)

    def __enter__(self) -> 'Progress':
        if sys.stderr.isatty():
            self._drawing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if sys.stderr.isatty():
            self._drawing.join()
            self._draw('', '\r')

    def _draw_now_and_then(self) -> None:
        while not self._over.wait(DRAW_INTERVAL):
            self._draw(self.text(monotonic() - self._began, _columns() - 1))

    def _draw(self, text: str, end: str = '') -> None:
        # A text as wide as the terminal would begin another row.
        sys.stderr.write('\r' + text.ljust(_columns() - 1) + end)
        sys.stderr.flush()

    def text(self, seconds: float, width: int = 79) -> str:
        """Return the text; where there is little room without the bar, which says the least."""
        text = self._text(seconds, True)
        return (text if len(text) <= width else self._text(seconds, False))[:width]

    def _text(self, seconds: float, has_bar: bool) -> str:
        rate = self.done / max(seconds, 0.001)
        parts = [self._verb]
        if self._total:
            filled = BAR_WIDTH * self.done // self._total
            if has_bar:
                parts.append('[%s]' % ('#' * filled + '.' * (BAR_WIDTH - filled)))
            parts.append('%d%%' % (100 * self.done // self._total))
        parts += ['{:,}'.format(self.done), '{:,.0f}/s'.format(rate)]
        if self._total and rate:
            left = int((self._total - self.done) / rate)
            parts.append('%d:%02d left' % (left // 60, left % 60))
        if self.refused:
            parts.append('{:,} refused'.format(self.refused))
        return ' '.join(parts + [self.note])


def _columns() -> int:
    """Return the width of the terminal; of a wide one, the usual 80."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    return min(columns or 80, 80)


class Sender:
    """Sends events in order, one batch at a time, on this thread.

    :param settings: of the client
    """

    def __init__(self, settings: Dict[str, Any]) -> None:
        self._errors: List[Tuple[Exception, List[Any]]] = []
        # In sync_mode a client has no threads, so that flush() delivers on this one.
        self._client = Client(
            **dict(
                settings,
                sync_mode=True,
                max_queue_size=0,
                max_retries=sys.maxsize,
                upload_size=BATCH_EVENTS,
                on_error=lambda error, batch: self._errors.append((error, batch)),
            )
        )

    def send(self, bodies: List[bytes], deadline: Deadline) -> Dict[str, str]:
        """Send a batch, and wait until all of it is resolved.

        :returns: the reasons for the events that were refused, by their ids
        :raises Stopped: when time runs out, or the server refuses all that we send
        """
        for body in bodies:
            self._client._queue.offer(body)
        if not self._client.flush(deadline.remaining()):
            raise Stopped(self.problem or 'time ran out')
        refused: Dict[str, str] = {}
        for error, batch in self._errors:
            status = error.status if isinstance(error, APIError) else None
            reason = printable('%s: %s' % (type(error).__name__, error), 300)
            if status not in EVENT_STATUSES:
                raise Stopped(reason)
            refused.update((each['messageId'], reason) for each in batch)
        del self._errors[:]
        return refused

    @property
    def problem(self) -> str:
        """Why the last request failed; '' after one that did not."""
        return self._client.stats().last_error or ''

    def close(self) -> None:
        self._client.shutdown(0)


def send_file(
    args: argparse.Namespace, given: Dict[str, Any], settings: Dict[str, Any]
) -> int:
    """Check the lines of a file, and send the good ones; return the exit code.

    :param given: arguments for the lines that lack them
    :param settings: of the client
    :raises ValidationError: when an option or the file is not as expected
    """
    write_key = check_write_key(settings['write_key'])
    with _opened(args.file) as file:
        return _Run(args, given, dict(settings, write_key=write_key), file).run()


class _Run:
    def __init__(
        self,
        args: argparse.Namespace,
        given: Dict[str, Any],
        settings: Dict[str, Any],
        file: BinaryIO,
    ) -> None:
        self._args = args
        self._settings = settings
        self._file = file
        self._is_csv = bool(args.map) or args.file.lower().endswith('.csv')
        for option, path in (
            ('--checkpoint', args.checkpoint),
            ('--rejects', args.rejects),
        ):
            if path is not None:
                check_place(option, path)
        name = os.path.basename(args.file)
        self._maker = Maker(settings, name, given)
        head = file.readline()
        host = find_text(settings['host'], ENV_HOST)
        where = '%s\n%s\n%s\n' % (settings['write_key'], host, name)
        digest = hashlib.sha256(where.encode('utf-8', 'replace') + head).hexdigest()
        self._checkpoint = Checkpoint(args.checkpoint, digest)
        self._begin = self._checkpoint.line
        self._checksum = 0  # of the lines that were read
        rejects = args.rejects or ('stdin' if name == '-' else args.file) + '.rejects'
        if args.checkpoint and _is_same(args.checkpoint, rejects):
            text = '%s: expected two files for --checkpoint and --rejects'
            raise ValidationError(text % rejects)
        self._rejects = Rejects(rejects, self._checkpoint.line)
        self._kinds = bytearray()  # of the lines that are still to be sent, in order

    def run(self) -> int:
        try:
            self._check()
            self._tell_rejects()
            if self._args.dry_run:
                print('{:,} line(s) can be sent.'.format(self._to_send()))
            elif self._to_send():
                self._send()
            else:
                print('No line is left to send.')
            return 1 if self._rejects.count else 0
        except Stopped as error:
            return self._stop(str(error))
        except KeyboardInterrupt:
            return self._stop('interrupted')
        finally:
            self._rejects.close()

    def _stop(self, why: str) -> int:
        hint = (
            'the next run goes on here'
            if self._args.checkpoint
            else ('with --checkpoint FILE the next run would go on here')
        )
        text = 'Stopped after line {:,}: {}; {}'
        print(text.format(self._checkpoint.line, why, hint), file=sys.stderr)
        return 1

    def _lines(self) -> Iterator[Line]:
        """Read the lines that are still to be sent.

        :raises ValidationError: when those that were sent have changed since
        """
        self._file.seek(0)
        columns = Columns(self._args.map or [])
        lines = (
            csv_lines(self._file, columns) if self._is_csv else json_lines(self._file)
        )
        number = self._checksum = 0
        for line in lines:
            if number <= self._begin < line.number:
                self._checkpoint.check(self._checksum)
            number = line.number
            self._checksum = zlib.crc32(line.text + b'\n', self._checksum)
            if number > self._begin:
                yield line
        if number <= self._begin:
            self._checkpoint.check(self._checksum)

    def _to_send(self) -> int:
        return len(self._kinds) - self._kinds.count(REJECTED)

    def _check(self) -> None:
        with Progress('Checking') as progress:
            for line in self._lines():
                try:
                    self._kinds.append(self._maker.check(line))
                except Bad as error:
                    self._kinds.append(REJECTED)
                    self._rejects.add(line, str(error))
                progress.done += 1
                progress.refused = self._rejects.count
        self._rejects.flush()

    def _tell_rejects(self) -> None:
        if self._rejects.count:
            text = '{:,} line(s) cannot be sent, see {}'
            print(text.format(self._rejects.count, self._rejects.path), file=sys.stderr)
        if self._rejects.old:
            text = '{:,} of them for their age: over {} days, {}'
            print(text.format(self._rejects.old, MAX_AGE.days, RULE), file=sys.stderr)

    def _send(self) -> None:
        deadline = Deadline(self._args.timeout)
        checked = self._rejects.count
        sender = Sender(self._settings)
        pace = _Pace(self._args.rate)
        try:
            with Progress('Sending', self._to_send()) as progress:
                for chunk, checksum in self._chunks(pace.size):
                    refused = sender.send([body for _, body in chunk], deadline)
                    if refused:
                        self._reject(chunk, refused)
                    delivered = self._checkpoint.delivered + len(chunk) - len(refused)
                    self._checkpoint.note(chunk[-1][0].number, delivered, checksum)
                    progress.done += len(chunk)
                    progress.refused = self._rejects.count
                    progress.note = sender.problem
                    pace.wait(progress.done)
        finally:
            sender.close()
            if self._rejects.count > checked:
                text = '{:,} line(s) were refused by the server, see {}'
                count = self._rejects.count - checked
                print(text.format(count, self._rejects.path), file=sys.stderr)
        print('Delivered {:,} line(s).'.format(self._checkpoint.delivered))

    def _chunks(self, size: int) -> Iterator[Tuple[List[Tuple[Line, bytes]], int]]:
        """Return the events of the good lines, so many that a request holds them.

        Beside them is the checksum of the file up to the last of these lines.
        """
        chunk: List[Tuple[Line, bytes]] = []
        room = BATCH_BYTES
        checksum = 0
        for line, kind in zip(self._lines(), self._kinds):
            if kind == REJECTED:
                continue
            body = self._maker.body(line, kind)
            if chunk and (len(chunk) == size or len(body) + 1 > room):
                yield chunk, checksum
                chunk, room = [], BATCH_BYTES
            chunk.append((line, body))
            room -= len(body) + 1
            checksum = self._checksum
        if chunk:
            yield chunk, checksum

    def _reject(self, chunk: List[Tuple[Line, bytes]], refused: Dict[str, str]) -> None:
        for line, body in chunk:
            reason = refused.get(json.loads(body.decode('utf-8'))['messageId'])
            if reason is not None:
                self._rejects.add(line, reason)
        self._rejects.flush()


class _Pace:
    """Holds a rate.

    :param rate: events a second; None: as fast as possible
    """

    def __init__(self, rate: Optional[float]) -> None:
        self._rate = rate
        self._began = monotonic()
        # A tenth of a second at a time.
        self.size = BATCH_EVENTS
        if rate is not None:
            self.size = max(1, min(BATCH_EVENTS, int(rate / 10)))

    def wait(self, done: int) -> None:
        if self._rate is not None:
            sleep(max(0.0, self._began + done / self._rate - monotonic()))


def _opened(name: str) -> BinaryIO:
    """Open a file; stdin is copied to a temporary one, because it is read twice."""
    if name != '-':
        return open(name, 'rb')
    copy: Any = tempfile.TemporaryFile()
    shutil.copyfileobj(sys.stdin.buffer, copy)
    copy.seek(0)
    return copy  # type: ignore[no-any-return]
