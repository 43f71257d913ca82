"""Names the current span of OpenTelemetry, so that an event can be joined with its trace."""

import sys
from typing import Any, Dict

from hightouch.htevents._process.interruption import raise_interruption
from hightouch.htevents._process.logs import Sparse, log
from hightouch.htevents.errors import name_of

_failures = Sparse()


def add_span(context: Dict[str, Any]) -> None:
    """Add the ids of the current span to an event's context, unless it has a trace.

    OpenTelemetry is not imported: without the application's import there is no span.
    """
    trace: Any = sys.modules.get('opentelemetry.trace')
    if trace is None or 'trace' in context:
        return
    try:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            context['trace'] = {
                'traceId': '%032x' % span.trace_id,
                'spanId': '%016x' % span.span_id,
            }
    except Exception as error:
        raise_interruption(error)
        if _failures.is_due('span'):
            kind = name_of(type(error))
            log.warning('trace_context: OpenTelemetry has no readable span (%s)', kind)
