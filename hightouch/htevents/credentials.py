"""The credentials that a URL may carry: apart from it, and out of all texts."""

import re
import sys
from base64 import b64encode
from typing import Any, Iterable, Iterator, List, Set, Tuple
from urllib.parse import unquote_to_bytes

from hightouch.htevents.interruption import causes

# What comes before the place of a URL, and a place: a host, and a port.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*:)?[/\\]+')
_PLACE = re.compile(r'(\[[^\]]*\]|[^:]*)(:[0-9]*)?\Z')


def split_credentials(url: str) -> Tuple[str, str]:
    """Return a URL without its credentials, and these: '' when there are none.

    Also of one that is malformed: it lacks a scheme, or has a slash in its password.
    """
    found = _SCHEME.match(url)
    start = url[: found.end()] if found is not None else ''
    rest = url[len(start) :]
    place = re.split('[/?#]', rest, maxsplit=1)[0]
    if '@' not in place:
        if _PLACE.match(place):
            return url, ''  # another @ is one of its path
        place = rest
    credentials, _, host = place.rpartition('@')
    return start + host + rest[len(place) :], credentials


def bare(url: str) -> str:
    """Return a URL without the credentials that it may carry."""
    return split_credentials(url)[0]


def basic(credentials: str) -> str:
    """Return the header that carries the credentials of a URL; '' for none."""
    if not credentials:
        return ''
    user, _, password = credentials.partition(':')
    pair = unquote_to_bytes(user) + b':' + unquote_to_bytes(password)
    return 'Basic ' + b64encode(pair).decode('ascii')


def secrets_of(urls: Iterable[Any]) -> List[str]:
    """Return the texts that no error may show of the credentials of URLs, longest first."""
    secrets: Set[str] = set()
    for url in urls:
        credentials = split_credentials(url)[1] if isinstance(url, str) else ''
        password = credentials.partition(':')[2]
        plain = unquote_to_bytes(password).decode('utf-8', 'replace')
        secrets.update(
            (credentials, password, plain, basic(credentials)[len('Basic ') :])
        )
    return sorted(filter(None, secrets), key=len, reverse=True)


def mask(error: BaseException, secrets: List[str]) -> None:
    """Take secrets out of the texts of an error that the caller has caught."""
    for each in causes(error, sys._getframe(1)):
        for part in _parts(each):
            part.args = tuple(masked(argument, secrets) for argument in part.args)


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
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, '***')
    return value
