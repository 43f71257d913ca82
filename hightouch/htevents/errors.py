"""The exceptions of the package. Each one carries its data as attributes.

This module imports nothing from the package. No text or ``repr`` of these exceptions holds a
write key, a private key, a token or the content of an event.
"""

from typing import Any, Callable, Optional

# Statuses after which a retry may succeed. A 1xx is not a final answer. Retries do not
# change 501 (Not Implemented) and 505 (HTTP Version Not Supported).
RETRYABLE_STATUSES = frozenset(
    {408, 429} | set(range(100, 200)) | set(range(500, 600)) - {501, 505}
)

# Statuses that end an event on the disk. Any other status may come from a gateway, a proxy
# or a captive portal, and be temporary.
FINAL_STATUSES = frozenset(
    {400, 401, 403, 404, 405, 410, 411, 413, 414, 415, 422, 431, 501, 505}
)

# Days after which the collector refuses an event.
MAX_AGE_DAYS = 7

# Exceptions of requests and urllib3 for a wrong setting, and their base classes. By name,
# because this module must not import them, and old releases lack some.
_WRONG_SETTING = frozenset(
    'InvalidURL InvalidSchema MissingSchema InvalidHeader LocationValueError'.split()
)

# The name of a class. type.__name__ itself, because a metaclass may define one that raises.
name_of: Callable[[type], str] = vars(type)['__name__'].__get__


class ValidationError(AssertionError):
    """An argument of a call is wrong. The text names the expected and the given value.

    It is an ``AssertionError`` because applications written for releases before 0.1 catch
    that. Unlike an assertion, it is also raised under ``python -O``.
    """

    retryable = False


class MessageTooLargeError(RuntimeError):
    """An event's JSON is over the limit of one message.

    :ivar size: bytes of UTF-8 JSON that the event takes
    :ivar limit: bytes that one event may take
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            'Message exceeds the limit of %d bytes: this one takes %d bytes as JSON. '
            'Send fewer or shorter properties.' % (self.limit, self.size)
        )


class APIError(Exception):
    """The answer of the server was not a success.

    :ivar status: HTTP status, an int
    :ivar code: the ``code`` of a JSON error body; without one, the reason phrase or ''
    :ivar message: the ``message`` of a JSON error body; without one, a short text
    :ivar retry_after: seconds that the server asked to wait, or None
    :ivar token_refused: whether the server refused the access token, which is dropped then
    """

    token_refused = False

    def __init__(
        self,
        status: int,
        code: Any,
        message: Any,
        retry_after: Optional[float] = None,
    ) -> None:
        super().__init__(status, code, message, retry_after)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in RETRYABLE_STATUSES

    def __str__(self) -> str:
        return '[Hightouch] %s: %s (%s)' % (self.code, self.message, self.status)


class OauthError(APIError):
    """The client cannot get a token, and a retry cannot help.

    The ``status`` is from the answer of the token server, or 0 without a request.
    """

    retryable = False


class FatalError(Exception):
    """A retry cannot help. Applications import this class from ``consumer``."""

    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return '[Hightouch] %s' % (self.message,)


class NotDeliveredError(Exception):
    """Accepted events could not be delivered before time ran out.

    :ivar reason: a text
    :ivar last_error: the last error of a request as a short text without payload, or None
    """

    def __init__(self, reason: str, last_error: Optional[str] = None) -> None:
        super().__init__(reason, last_error)
        self.reason = reason
        self.last_error = last_error

    def __str__(self) -> str:
        if self.last_error is None:
            return self.reason
        return '%s The last error was: %s' % (self.reason, self.last_error)


class ExpiredError(Exception):
    """Events waited in the spool until they were too old for the collector.

    :ivar days: the age that the collector still accepts
    """

    def __init__(self, days: int) -> None:
        super().__init__(days)
        self.days = days

    def __str__(self) -> str:
        return 'Expired: the collector takes no event older than %d days.' % self.days


class DamageError(Exception):
    """Accepted events were lost with a damaged or deleted file of the spool.

    It is reported with an empty batch.

    :ivar count: number of lost events
    :ivar path: path of the file
    """

    def __init__(self, count: int, path: str) -> None:
        super().__init__(count, path)
        self.count = count
        self.path = path

    def __str__(self) -> str:
        text = '%d event(s) can no longer be read: %s is damaged or missing.'
        return text % (self.count, self.path)


class BeforeSendError(Exception):
    """The user's ``before_send`` raised, or did not return a message.

    The event was dropped, because it may contain data that ``before_send`` had to remove.
    The ``__cause__`` is the original error.
    """


def is_retryable(error: BaseException) -> bool:
    """Whether a retry of the same request may succeed.

    The attribute ``retryable`` of an error decides. Of the other errors only a wrong setting
    (URL, scheme, header or proxy) is final. An unknown error may be temporary.
    """
    known = getattr(error, 'retryable', None)
    if isinstance(known, bool):
        return known
    if _is_of_answer(error):
        return True
    return not _WRONG_SETTING.intersection(map(name_of, type(error).__mro__))


def _is_of_answer(error: BaseException) -> bool:
    """Whether an error is about a header from the server, and not from the request.

    Only requests itself reports a wrong header of the request. A header of an answer is
    reported by urllib3, whose error requests may wrap.
    """
    found = [error] + list(error.args)
    return any(type(each).__module__.startswith('urllib3') for each in found) and any(
        name_of(type(each)) == 'InvalidHeader' for each in found
    )


def describe(error: BaseException) -> str:
    """Return the kind and the status of an error, without payload, as text for a log."""
    status = getattr(error, 'status', None)
    if isinstance(error, NotDeliveredError):
        last = error.last_error
        return 'not delivered in time' + (' (last error: %s)' % last if last else '')
    if isinstance(error, OauthError):
        return 'no OAuth token' + (' (HTTP %d)' % status if status else '')
    if isinstance(status, int):
        return 'HTTP %d' % status
    return name_of(type(error))
