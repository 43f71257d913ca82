"""The results as text and as a picture: medians, ratios and targets."""

import math
import statistics
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import peers

DASH = '–'

Rounds = Dict[str, Dict[str, List[Dict[str, Any]]]]
Value = Optional[float]


class Figures:
    """The rounds of all steps, asked for by step, peer and name of a figure."""

    def __init__(self, results: Rounds) -> None:
        self._results = results

    def _rounds(self, step: str, peer: str) -> List[Dict[str, Any]]:
        return self._results.get(step, {}).get(peer, [])

    def has(self, step: str) -> bool:
        return step in self._results

    def peers(self, step: str) -> List[str]:
        return [each.key for each in peers.ALL if self._rounds(step, each.key)]

    def median(self, step: str, peer: str, figure: str) -> Value:
        values = [
            each['figures'][figure]
            for each in self._rounds(step, peer)
            if figure in each.get('figures', {})
        ]
        return statistics.median(values) if values else None

    def ratio(self, step: str, peer: str, figure: str) -> Value:
        """To the published package."""
        return divided(
            self.median(step, peer, figure), self.median(step, peers.PUBLISHED, figure)
        )

    def trouble(self, step: str, peer: str) -> str:
        """What went wrong in any round: events lost, or no result at all."""
        lost, errors = 0, []
        for each in self._rounds(step, peer):
            lost += each.get('expected', 0) - each.get('delivered', 0)
            if 'error' in each:
                errors.append(each['error'])
        said = ['lost %d' % lost] if lost else []
        if any(each.get('in_order') is False for each in self._rounds(step, peer)):
            said.append('out of order')
        if errors:
            said.append('failed %d×: %s' % (len(errors), errors[-1][:60]))
        return ', '.join(said)

    def medians(self) -> Dict[str, Dict[str, Dict[str, Value]]]:
        return {
            step: {
                peer: {name: self.median(step, peer, name) for name in _names(rounds)}
                for peer, rounds in by_peer.items()
            }
            for step, by_peer in self._results.items()
        }


def _names(rounds: List[Dict[str, Any]]) -> List[str]:
    return sorted({name for each in rounds for name in each.get('figures', {})})


def divided(value: Value, base: Value) -> Value:
    return None if value is None or not base else value / base


# -- the tables ----------------------------------------------------------------------


class Column(NamedTuple):
    """A figure of a step.

    :ivar ratio: whether its ratio to the published package stands beside it
    :ivar limits: whether the rows of the limits have it
    """

    heading: str
    step: str
    figure: str
    ratio: bool = True
    limits: bool = False


# Heading, columns.
TABLES: List[Tuple[str, List[Column]]] = [
    (
        'CPU of the sending process, per event that arrived',
        [
            Column('CPU µs', 'burst', 'cpu_us', limits=True),
            Column('with gzip µs', 'gzip', 'cpu_us', limits=True),
            Column('switches/1000', 'burst', 'switches', limits=True),
        ],
    ),
    (
        'track() in a burst, while the client sends',
        [
            Column('p50 µs', 'burst', 'p50_us'),
            Column('p99 µs', 'burst', 'p99_us'),
            Column('8 threads p99 µs', 'threads', 'p99_us'),
        ],
    ),
    (
        'Import',
        [
            Column('ms', 'import', 'ms'),
            Column('modules', 'import', 'modules'),
        ],
    ),
    (
        'One event and flush(), beside a bare POST; shutdown() with 1,000 queued',
        [
            Column('event ms', 'single', 'event_ms'),
            Column('POST ms', 'single', 'post_ms', ratio=False),
            Column('more ms', 'single', 'more_ms', ratio=False),
            Column('send 1000 ms', 'shutdown', 'send_ms'),
            Column('shutdown ms', 'shutdown', 'shutdown_ms'),
        ],
    ),
    (
        'Idle: the whole process, with 1 and with 1,000 clients',
        [
            Column('1: CPU ms', 'idle_1', 'cpu_ms', ratio=False),
            Column('switches', 'idle_1', 'switches', ratio=False),
            Column('1000: CPU ms', 'idle_1000', 'cpu_ms', ratio=False),
            Column('switches', 'idle_1000', 'switches', ratio=False),
            Column('KB each', 'idle_1000', 'kb'),
        ],
    ),
    (
        'Memory per queued event',
        [Column('bytes', 'memory', 'bytes')],
    ),
    (
        'Events per second to a server that takes 50 ms',
        [
            Column('1 thread', 'throughput', 'rate_1'),
            Column('4 threads', 'throughput', 'rate_4'),
            Column('4 : 1', 'throughput', 'speedup', ratio=False),
        ],
    ),
]

# Steps whose CPU per event is compared within a row: what grows, names, headings.
GROWTH: List[Tuple[str, str, List[int]]] = [
    ('events in a burst', 'events', [1000, 10000, 100000, 1000000]),
    ('calling threads', 'callers', [1, 2, 4, 8]),
    ('queued, 10 a request', 'depth', [10, 10000]),
    ('clients in a process', 'clients', [1, 10, 100, 1000]),
]


def number(value: Value) -> str:
    """Three figures that say something; thousands with commas."""
    if value is None:
        return DASH
    if abs(value) >= 100:
        return '{:,.0f}'.format(value)
    return '%.1f' % value if abs(value) >= 10 else '%.2f' % value


def short(ratio: float) -> str:
    return '%.2f' % ratio if ratio >= 0.1 else '%.3f' % ratio


def grid(rows: List[List[str]]) -> List[str]:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    return [
        '  '.join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        ).rstrip()
        for row in rows
    ]


def _table(figures: Figures, columns: List[Column]) -> List[str]:
    steps = list(dict.fromkeys(column.step for column in columns))
    rows = [[''] + [column.heading for column in columns]]
    troubles = ['']
    for peer in peers.ALL:
        measured = [step for step in steps if peer.key in figures.peers(step)]
        with_limits = any(column.limits for column in columns)
        if not measured or (peer.limit and not with_limits):
            continue
        cells = [_cell(figures, column, peer) for column in columns]
        rows.append([peer.label] + cells)
        said = (figures.trouble(step, peer.key) for step in measured)
        troubles.append('; '.join(dict.fromkeys(each for each in said if each)))
    lines = grid(rows)
    return [(line + '   ' + trouble).rstrip() for line, trouble in zip(lines, troubles)]


def _cell(figures: Figures, column: Column, peer: peers.Peer) -> str:
    if peer.limit and not column.limits:
        return DASH
    text = number(figures.median(column.step, peer.key, column.figure))
    ratio = figures.ratio(column.step, peer.key, column.figure)
    if column.ratio and ratio is not None:
        text += ' (%s)' % short(ratio)
    return text


def _growth_table(figures: Figures) -> List[str]:
    """CPU µs per event of each size, and the largest beside the first."""
    lines = []
    for heading, name, sizes in GROWTH:
        sizes = [size for size in sizes if figures.has('%s_%d' % (name, size))]
        if not sizes:
            continue
        rows = [[heading] + ['{:,}'.format(size) for size in sizes] + ['growth']]
        for peer in (peers.OURS, peers.FAST):
            values = [_growth_value(figures, name, size, peer) for size in sizes]
            row = [number(value) for value in values]
            row.append(number(_growth(figures, name, sizes, peer)))
            troubles = {figures.trouble('%s_%d' % (name, s), peer) for s in sizes}
            rows.append(['  ' + peers.BY_KEY[peer].label] + row)
            rows[-1][-1] += ''.join('  ' + each for each in sorted(troubles) if each)
        lines += grid(rows)
    return lines


def _growth_value(figures: Figures, name: str, size: int, peer: str) -> Value:
    return figures.median('%s_%d' % (name, size), peer, 'cpu_us')


def _growth(figures: Figures, name: str, sizes: List[int], peer: str) -> Value:
    values = [_growth_value(figures, name, size, peer) for size in sizes]
    known = [value for value in values if value is not None]
    if len(known) < 2 or values[0] is None:
        return None
    return max(known) / values[0]


# -- the targets ---------------------------------------------------------------------


class Target(NamedTuple):
    """What is to be reached.

    :ivar value: of the figures and a peer
    :ivar bound: for the standard library alone; ``fast`` with the extra
    :ivar least: the bound is one from below
    """

    text: str
    value: Callable[[Figures, str], Value]
    bound: float
    fast: Optional[float] = None
    least: bool = False

    def met(self, value: float, peer: str) -> bool:
        bound = self.bound_for(peer)
        return value >= bound if self.least else value <= bound

    def bound_for(self, peer: str) -> float:
        return self.fast if peer == peers.FAST and self.fast is not None else self.bound


def _ratio(step: str, figure: str) -> Callable[[Figures, str], Value]:
    return lambda figures, peer: figures.ratio(step, peer, figure)


def _own(step: str, figure: str) -> Callable[[Figures, str], Value]:
    return lambda figures, peer: figures.median(step, peer, figure)


def _shutdown(figures: Figures, peer: str) -> Value:
    return divided(
        figures.median('shutdown', peer, 'shutdown_ms'),
        figures.median('shutdown', peer, 'send_ms'),
    )


def _grows(name: str, sizes: List[int]) -> Callable[[Figures, str], Value]:
    return lambda figures, peer: _growth(figures, name, sizes, peer)


# No CPU and no wake-ups means: not more than the sleep of the measurement itself, which
# is one switch and less than a millisecond.
_NO_CPU = 1.0
_NO_SWITCHES = 1

# Two durations that ought to be the same differ by so much from noise alone.
_SAME = 1.1

TARGETS = [
    Target('CPU per delivered event', _ratio('burst', 'cpu_us'), 0.22, 0.12),
    Target('… with gzip', _ratio('gzip', 'cpu_us'), 0.28, 0.20),
    Target('track() p50', _ratio('burst', 'p50_us'), 0.25, 0.12),
    Target('track() p99', _ratio('burst', 'p99_us'), 0.5),
    Target('… from 8 threads', _ratio('threads', 'p99_us'), 0.03),
    Target('context switches', _ratio('burst', 'switches'), 0.05),
    Target('import, wall time', _ratio('import', 'ms'), 0.20),
    Target('import, modules', _ratio('import', 'modules'), 0.20),
    Target('one event, ms more than a POST', _own('single', 'more_ms'), 3),
    Target('shutdown() : sending 1,000', _shutdown, _SAME),
    Target('1 idle client, CPU ms', _own('idle_1', 'cpu_ms'), _NO_CPU),
    Target('1 idle client, switches', _own('idle_1', 'switches'), _NO_SWITCHES),
    Target('1,000 idle clients, CPU ms', _own('idle_1000', 'cpu_ms'), _NO_CPU),
    Target('1,000 idle clients, switches', _own('idle_1000', 'switches'), _NO_SWITCHES),
    Target('1,000 idle clients, KB each', _own('idle_1000', 'kb'), 20),
    Target('memory per queued event', _ratio('memory', 'bytes'), 0.6),
    Target('4 threads : 1, at 50 ms', _own('throughput', 'speedup'), 3.8, least=True),
] + [Target('growth: ' + heading, _grows(name, s), 1.5) for heading, name, s in GROWTH]


def _target_table(figures: Figures) -> List[str]:
    rows = [['', 'target', 'this checkout', '', 'target', '[fast]', '']]
    for target in TARGETS:
        row = [target.text]
        for peer in (peers.OURS, peers.FAST):
            value = target.value(figures, peer)
            sign = '≥' if target.least else '≤'
            row.append('%s %g' % (sign, target.bound_for(peer)))
            row.append(_ratio_text(value))
            row.append(
                DASH
                if value is None
                else 'met'
                if target.met(value, peer)
                else 'NOT MET'
            )
        if set(row[2::3]) != {DASH}:
            rows.append(row)
    return grid(rows) if len(rows) > 1 else []


def _ratio_text(value: Value) -> str:
    return '%.3f' % value if value is not None and abs(value) < 1 else number(value)


def text(figures: Figures, facts: Dict[str, Any]) -> str:
    """Everything that was measured, for a terminal."""
    machine = facts['machine']
    lines = [
        '%s %s, %d CPUs, %s %s%s'
        % (
            machine['implementation'],
            machine['python'],
            machine['cpus'],
            machine['system'],
            machine['architecture'],
            ', quick' if facts['quick'] else '',
        ),
        ', '.join(
            '%s %s' % (peers.BY_KEY[key].label.replace(' ' + version, ''), version)
            for key, version in sorted(facts['versions'].items())
        ),
        'Medians; in brackets the ratio to the published package.',
    ]
    for heading, columns in TABLES:
        if any(figures.has(column.step) for column in columns):
            lines += ['', heading] + _table(figures, columns)
    growth = _growth_table(figures)
    if growth:
        lines += ['', 'Growth: CPU µs per event'] + growth
    targets = _target_table(figures)
    if targets:
        lines += ['', 'Targets'] + targets
    return '\n'.join(lines)


# -- the picture ---------------------------------------------------------------------

# Legible on white and on black alike, as the picture has no ground of its own.
_INK = '#7d8590'
_OURS = '#2f81f7'
_OTHERS = '#8b949e'
_FONT = 'system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'

_WIDTH = 760
_LABELS = 190  # room for the names
_ROW = 26
_BAR = 16
_HEAD = 44
_MARGIN = 12

_PANELS = [
    ('CPU per delivered event, µs', 'burst', 'cpu_us'),
    ('… with gzip, µs', 'gzip', 'cpu_us'),
    ('track() p99 in a burst of events, µs', 'burst', 'p99_us'),
]


def svg(figures: Figures, facts: Dict[str, Any]) -> str:
    """Bars by package; shorter is better."""
    body: List[str] = []
    y = _MARGIN
    for heading, step, figure in _PANELS:
        bars = [
            (peer, value)
            for peer in peers.ALL
            for value in [figures.median(step, peer.key, figure)]
            if value is not None and not peer.limit
        ]
        if bars:
            bars.sort(key=lambda bar: bar[1])
            body += _panel(heading, bars, facts['versions'], y)
            y += _HEAD + _ROW * len(bars) + _MARGIN
    machine = facts['machine']
    body.append(
        _text(
            _MARGIN,
            y + 14,
            'Shorter is better. Medians on %s %s, %d CPUs, against a server on the same '
            'machine.'
            % (machine['implementation'], machine['python'], machine['cpus']),
            size=11,
        )
    )
    height = y + 14 + _MARGIN
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" '
        'height="%d" role="img" aria-label="%s" font-family="%s">\n%s\n</svg>\n'
        % (
            _WIDTH,
            height,
            _WIDTH,
            height,
            'Cost of an event by package: CPU and the time of track()',
            _FONT,
            '\n'.join(body),
        )
    )


def _panel(
    heading: str,
    bars: List[Tuple[peers.Peer, float]],
    versions: Dict[str, str],
    top: int,
) -> List[str]:
    most = max(value for _, value in bars)
    room = _WIDTH - _LABELS - 3 * _MARGIN - 60  # the figures stand behind the bars
    parts = [_text(_MARGIN, top + 26, heading, size=15, weight=600)]
    for row, (peer, value) in enumerate(bars):
        y = top + _HEAD + _ROW * row
        color = _OURS if peer.ours else _OTHERS
        width = max(2, math.ceil(room * value / most))
        parts.append(
            _text(
                _LABELS,
                y + 13,
                _brand(peer, versions[peer.key]),
                anchor='end',
                color=_OURS if peer.ours else _INK,
                weight=600 if peer.ours else 400,
            )
        )
        parts.append(
            '<rect x="%d" y="%d" width="%d" height="%d" rx="3" fill="%s"/>'
            % (_LABELS + _MARGIN, y, width, _BAR, color)
        )
        x = _LABELS + 2 * _MARGIN + width - 4
        parts.append(_text(x, y + 13, number(value), color=_INK))
    return parts


def _brand(peer: peers.Peer, version: str) -> str:
    name, extra, rest = peer.brand.partition(' [')
    return '%s %s%s' % (name, version, extra + rest)


def _text(
    x: int,
    y: int,
    content: str,
    size: int = 13,
    anchor: str = 'start',
    color: str = _INK,
    weight: int = 400,
) -> str:
    escaped = content.replace('&', '&amp;').replace('<', '&lt;')
    return (
        '<text x="%d" y="%d" font-size="%d" text-anchor="%s" font-weight="%d" '
        'fill="%s">%s</text>' % (x, y, size, anchor, weight, color, escaped)
    )
