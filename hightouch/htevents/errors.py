"""What can go wrong, as values: each error carries its data as attributes.

A leaf: nothing of the package is imported here. No text or ``repr`` made here ever
holds a write key, a private key, a token or the content of an event.
"""

from typing import Any, Callable, Optional

# Answers that a later try may turn into a success: a 1xx is none yet. 501 (Not
# Implemented) and 505 (HTTP Version Not Supported) are the same however often one asks.
RETRYABLE_STATUSES = frozenset(
    {408, 429} | set(range(100, 200)) | set(range(500, 600)) - {501, 505}
)

# The collector's word that ends an event which waits on the disk. Any other answer may be
# of a gateway, a proxy or a captive portal, and pass.
FINAL_STATUSES = frozenset(
    {400, 401, 403, 404, 405, 410, 411, 413, 414, 415, 422, 431, 501, 505}
)

# The collector refuses older events.
MAX_AGE_DAYS = 7

# Exceptions of requests and urllib3 that say that a setting is wrong, and the bases of
# such exceptions. By name: nothing is imported here, and old releases lack some.
_WRONG_SETTING = {
    'InvalidURL',
    'InvalidSchema',
    'MissingSchema',
    'InvalidHeader',
    'LocationValueError',
}


# A metaclass may define a __name__ that raises.
name_of: Callable[[type], str] = vars(type)['__name__'].__get__


class ValidationError(AssertionError):
    """An argument of a call is wrong: what was expected, what came, what to do.

    An ``AssertionError``, so that ``except AssertionError``, as it was written for
    releases before 0.1, catches it; but raised under ``python -O`` as well.
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
    """The server answered, and the answer was not a success.

    :ivar status: HTTP status, an int
    :ivar code: the ``code`` of a JSON error body, else the reason phrase or ''
    :ivar message: the ``message`` of a JSON error body, else a short text
    :ivar retry_after: seconds the server asked to wait, None when it did not say
    :ivar token_refused: the access token was not accepted, and has been dropped
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
    """No token could be had, and asking again would not help.

    Its ``status`` is that of the token server's answer, 0 when it was not asked.
    """

    @property
    def retryable(self) -> bool:
        return False


class FatalError(Exception):
    """A retry cannot help.

    Kept for code that imports it from ``consumer``; see `APIError.retryable`.
    """

    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return '[Hightouch] %s' % (self.message,)


class NotDeliveredError(Exception):
    """Accepted events could not be delivered before time ran out.

    :ivar reason: why, as text
    :ivar last_error: the last error of a request, as a short text without payload; None
        when there was none
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

    :ivar days: how old an event may be
    """

    def __init__(self, days: int) -> None:
        super().__init__(days)
        self.days = days

    def __str__(self) -> str:
        return 'Expired: the collector takes no event older than %d days.' % self.days


class DamageError(Exception):
    """Accepted events cannot be read from the spool any more: its file was damaged.

    Reported with an empty batch.

    :ivar count: how many events
    :ivar path: of the file
    """

    def __init__(self, count: int, path: str) -> None:
        super().__init__(count, path)
        self.count = count
        self.path = path

    def __str__(self) -> str:
        return '%d event(s) cannot be read any more: %s is damaged, or gone.' % (
            self.count,
            self.path,
        )


class BeforeSendError(Exception):
    """The user's ``before_send`` raised, or returned what is not a message.

    The event was dropped, because sending it unscrubbed could leak what
    ``before_send`` is there to remove. The original error is the ``__cause__``.
    """


def is_retryable(error: BaseException) -> bool:
    """Say whether sending the same bytes again may succeed.

    An error that knows (it has a ``retryable``) is believed. Else only a wrong setting (a
    bad URL, scheme, header or proxy) is final; what is unknown may pass.
    """
    known = getattr(error, 'retryable', None)
    if isinstance(known, bool):
        return known
    if _is_of_answer(error):
        return True
    return not _WRONG_SETTING.intersection(map(name_of, type(error).__mro__))


def _is_of_answer(error: BaseException) -> bool:
    """Whether a header is at fault that the server has sent, and not one of ours.

    Of ours only requests itself complains; of an answer's urllib3 does, and requests may
    make an error of its own of that.
    """
    found = [error] + list(error.args)
    return any(type(each).__module__.startswith('urllib3') for each in found) and any(
        name_of(type(each)) == 'InvalidHeader' for each in found
    )


def is_of_network(error: BaseException) -> bool:
    """Whether an error is an answer of the server, or a failure on the way to it."""
    if isinstance(error, APIError):
        return True
    return isinstance(error, OSError) and is_retryable(error)


def describe(error: BaseException) -> str:
    """Name an error in a text that is safe in a log: its kind and status, no payload."""
    status = getattr(error, 'status', None)
    if isinstance(error, NotDeliveredError):
        last = error.last_error
        return 'not delivered in time' + (' (last error: %s)' % last if last else '')
    if isinstance(error, OauthError):
        return 'no OAuth token' + (' (HTTP %d)' % status if status else '')
    if isinstance(status, int):
        return 'HTTP %d' % status
    return name_of(type(error))
