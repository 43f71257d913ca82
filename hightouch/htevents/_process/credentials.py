"""The credentials that a URL may carry: apart from it, and out of all texts."""

import re
import sys
from functools import lru_cache
from typing import Any, Iterable, Iterator, List, Set, Tuple

from hightouch.htevents._process.interruption import causes

# What comes before the place of a URL, and before that of a malformed one.
_START = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*:)?//')
_MALFORMED_START = re.compile(r'(([A-Za-z][A-Za-z0-9+.-]*:)?[/\\]+)?')

# Where the place of a URL ends: urllib3 has a backslash end it, too.
_END = re.compile(r'[/?#\\]')

# What parts a malformed URL, for an error that quotes a part of it.
_MARKS = re.compile(r'[\s/\\?#:@"\'\[\]]')

# Characters of what is looked for in texts: fewer would be found all over them.
_LEAST = 3

# Characters of an error's text that stay: it may quote what a server has sent.
_MOST_TEXT = 2000


@lru_cache(maxsize=100)
def split_credentials(url: str) -> Tuple[str, str]:
    """Return a URL without its credentials, and these: '' when there are none."""
    found = _START.match(url)
    if found is None:
        return url, ''
    rest = url[found.end() :]
    place = _END.split(rest, maxsplit=1)[0]
    credentials, _, host = place.rpartition('@')
    return found.group() + host + rest[len(place) :], credentials


def bare(url: str) -> str:
    """Return a URL to be shown: without the credentials that it may carry.

    Those of a malformed one can only be guessed: of one that has a slash in its password,
    or a typing error before it, all that is before the last ``@`` is hidden.
    """
    url, _ = split_credentials(url)
    hidden = _guessed(url)
    return url.replace(hidden + '@', '***@', 1) if hidden else url


def _guessed(url: str) -> str:
    start = _MALFORMED_START.match(url)
    return url[start.end() if start else 0 :].rpartition('@')[0]


@lru_cache(maxsize=100)
def basic(credentials: str) -> str:
    """Return the header that carries the credentials of a URL; '' for none."""
    if not credentials:
        return ''
    from base64 import b64encode  # imported by requests

    user, _, password = credentials.partition(':')
    pair = _unquoted(user) + b':' + _unquoted(password)
    return 'Basic ' + b64encode(pair).decode('ascii')


def _unquoted(text: str) -> bytes:
    from urllib.parse import unquote_to_bytes  # imported by requests

    # A variable of the environment may hold what is no text.
    return unquote_to_bytes(text.encode('utf-8', 'surrogatepass'))


def secrets_of(urls: Iterable[Any]) -> List[str]:
    """Return the texts that no error may show of the credentials of URLs, longest first."""
    secrets: Set[str] = set()
    for url in urls:
        if not isinstance(url, str):
            continue
        place, credentials = split_credentials(url)
        password = credentials.partition(':')[2]
        parts = [password, _unquoted(password).decode('utf-8', 'replace')]
        parts += _MARKS.split(password)
        hidden = _guessed(place)
        parts += _MARKS.split(hidden)
        parts += [credentials, hidden, basic(credentials)[len('Basic ') :]]
        secrets.update(each for each in parts if len(each) >= _LEAST)
    return sorted(secrets, key=len, reverse=True)


def mask(error: BaseException, secrets: List[str]) -> None:
    """Take secrets out of the texts of an error that the caller has caught."""
    for each in causes(error, sys._getframe(1)):
        for part in _parts(each):
            shown = tuple(_masked_text(given, secrets) for given in part.args)
            try:
                part.args = shown
            except AttributeError:
                pass  # of a class of the application's, which has no such texts


def _masked_text(value: Any, secrets: List[str]) -> Any:
    if not isinstance(value, str):
        return value
    value = masked(value, secrets)[:_MOST_TEXT]
    if secrets:  # then no part of a URL is shown, however it is quoted
        value = ' '.join(map(_without_start, value.split(' ')))
    return value


def _without_start(word: str) -> str:
    return '***@' + word.rpartition('@')[2] if '@' in word else word


def _parts(error: BaseException) -> Iterator[BaseException]:
    """Give an error, and those that it was made of without a cause: as urllib3 does."""
    found = [error]
    for each in found:
        yield each
        for argument in [*each.args, getattr(each, 'reason', None)]:
            if isinstance(argument, BaseException) and argument not in found:
                found.append(argument)


def masked(value: Any, secrets: Iterable[str]) -> Any:
    """Return a text without secrets, and anything else as it is."""
    if not isinstance(value, str):
        return value
    # A host is in small letters, whatever was given.
    pattern = '|'.join(map(re.escape, secrets))
    return re.sub(pattern, '***', value, flags=re.IGNORECASE) if pattern else value
