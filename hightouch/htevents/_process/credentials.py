"""Splits credentials from URLs, and removes them from the texts of errors."""

import re
import sys
from functools import lru_cache
from typing import Any, Iterable, List, Set, Tuple

from hightouch.htevents._process.interruption import causes, reachable

# The scheme and the credentials of a URL. For urllib3, a backslash ends the host, too.
_START = re.compile(r'((?:[A-Za-z][A-Za-z0-9+.-]*:)?//)([^/?#\\]*)@')

# The scheme of a malformed URL. It may be empty.
_MALFORMED_SCHEME = re.compile(r'(([A-Za-z][A-Za-z0-9+.-]*:)?[/\\]+)?')

# The characters at which an error may have split a malformed URL that it quotes in part.
_MARKS = re.compile(r'[\s/\\?#:@"\'\[\]]')

# Minimum length of a secret to mask: a shorter one would match in unrelated words.
_MIN_SECRET = 3

# Maximum length of an error's text, because it may quote a server's answer.
_MAX_TEXT = 2000


@lru_cache(maxsize=100)
def split_credentials(url: str) -> Tuple[str, str]:
    """Return a URL without its credentials, and the credentials ('' for none)."""
    start = _START.match(url)
    if start is None:
        return url, ''
    return start.group(1) + url[start.end() :], start.group(2)


def bare(url: str) -> str:
    """Return a URL without credentials, to be shown.

    The credentials of a malformed URL can only be guessed. An example is a URL with a slash
    in its password. Everything between its scheme and its last ``@`` is hidden.
    """
    url, _ = split_credentials(url)
    hidden = _guessed(url)
    return url.replace(hidden + '@', '***@', 1) if hidden else url


def _guessed(url: str) -> str:
    return _MALFORMED_SCHEME.sub('', url, count=1).rpartition('@')[0]


@lru_cache(maxsize=100)
def basic(credentials: str) -> str:
    """Return the value of the Authorization header for the credentials of a URL."""
    if not credentials:
        return ''
    from base64 import b64encode  # imported by requests

    user, _, password = credentials.partition(':')
    pair = _unquoted(user) + b':' + _unquoted(password)
    return 'Basic ' + b64encode(pair).decode('ascii')


def _unquoted(text: str) -> bytes:
    from urllib.parse import unquote_to_bytes  # imported by requests

    # An environment variable may hold bytes that are not UTF-8, as lone surrogates.
    return unquote_to_bytes(text.encode('utf-8', 'surrogatepass'))


def secrets_of(urls: Iterable[Any]) -> List[str]:
    """Return the parts of URLs' credentials that no error may show, longest first."""
    secrets: Set[str] = set()
    for url in urls:
        if not isinstance(url, str):
            continue
        rest, credentials = split_credentials(url)
        password, guessed = credentials.partition(':')[2], _guessed(rest)
        parts = [credentials, basic(credentials)[len('Basic ') :], password, guessed]
        parts += [_unquoted(password).decode('utf-8', 'replace')]
        parts += _MARKS.split(password) + _MARKS.split(guessed)
        secrets.update(each for each in parts if len(each) >= _MIN_SECRET)
    return sorted(secrets, key=len, reverse=True)


def mask(error: BaseException, secrets: List[str]) -> None:
    """Mask secrets in the texts of an error that the caller has caught."""
    for each in causes(error, sys._getframe(1)):
        # urllib3 stores errors as arguments of others.
        inner = reachable(each, lambda one: [*one.args, getattr(one, 'reason', None)])
        for part in inner:
            held = vars(part)
            held.update([(name, masked(held[name], secrets)) for name in held])
            try:
                part.args = tuple(_masked_text(given, secrets) for given in part.args)
            except AttributeError:
                pass  # a class of the application that makes them read-only


def _masked_text(value: Any, secrets: List[str]) -> Any:
    if not isinstance(value, str):
        return value
    value = masked(value, secrets)[:_MAX_TEXT]
    if secrets:  # also mask credentials that a library has quoted in another form
        value = re.sub('[^ ]*@', '***@', value)
    return value


def masked(value: Any, secrets: Iterable[str]) -> Any:
    """Return a text with its secrets masked; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    # Case is ignored, because libraries change a host to lower case.
    pattern = '|'.join(map(re.escape, secrets))
    return re.sub(pattern, '***', value, flags=re.IGNORECASE) if pattern else value
