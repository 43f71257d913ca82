"""Which proxy a request goes through: that of the setting, of the session, or of none."""

import os
from functools import lru_cache
from typing import Any, Dict, List, Mapping, Optional, Tuple

from hightouch.htevents._process.interruption import is_instance
from hightouch.htevents.errors import ValidationError, name_of

# As requests takes them, by scheme; None: not that of the environment.
_Proxies = Dict[str, Optional[str]]


def normalize_proxies(value: Any) -> Optional[_Proxies]:
    """Return proxies as requests takes them.

    :param value: a dict for requests, or 'host:port' or a URL for both schemes; anything
        falsy: None
    :raises ValidationError: when it is something else
    """
    if value is not None and is_instance(value, str):
        value = value.strip()
    if not value:
        return None
    if is_instance(value, str):
        url = value
        if '://' not in url:
            url = 'http://' + url
        return {'http': url, 'https': url}
    if is_instance(value, Mapping):
        # None says, as in requests: not the proxy of this scheme in the environment.
        proxies = {
            scheme: (url.strip() if is_instance(url, str) else url) or None
            for scheme, url in value.items()
        }
        if all(
            is_instance(each, str) for each in [*proxies, *proxies.values()] if each
        ):
            return proxies
    raise ValidationError(
        "proxies: expected a dict such as {'https': 'http://proxy:8080'}, "
        "'host:port' or a URL, got %s" % name_of(type(value))
    )


def proxies_for(
    url: str, session: Any, given: Optional[Mapping[str, Optional[str]]]
) -> Optional[Mapping[str, Optional[str]]]:
    """Return the proxies to send a request with: those of the environment are not for all.

    It may name one for a development server on loopback, which no proxy can reach.

    :param given: of the setting ``proxies``; None: as the session and the environment say
    """
    if not (is_loopback(url) or _is_excepted(url)):
        return given
    proxies: _Proxies = dict.fromkeys(('http', 'https', 'all'))
    own = getattr(session, 'proxies', None)
    proxies.update(own if isinstance(own, Mapping) else {})
    proxies.update(given or {})
    return proxies


def all_proxies(
    session: Any, given: Optional[Mapping[str, Optional[str]]]
) -> List[Optional[str]]:
    """Return all proxies that a request may have been sent with."""
    from urllib.request import getproxies  # imported by requests

    own = getattr(session, 'proxies', None)
    found = [given or {}, own if isinstance(own, Mapping) else {}, getproxies()]
    return [url for each in found for url in each.values()]


@lru_cache(maxsize=100)
def is_loopback(url: str) -> bool:
    """Whether a URL is one of this machine, by its text: the DNS is not asked."""
    host, _ = _place(url)
    if host == 'localhost' or host.endswith('.localhost'):
        return True
    address = _address(host)
    mapped = getattr(address, 'ipv4_mapped', None) or address
    # One that means each address of this machine is reached there, too.
    return mapped is not None and (mapped.is_loopback or mapped.is_unspecified)


def _is_excepted(url: str) -> bool:
    """Whether NO_PROXY names the IPv6 host of a URL: requests knows names and IPv4 only."""
    if '://[' not in url:
        return False
    from ipaddress import ip_network

    host, port = _place(url)
    address = _address(host)
    named = os.environ.get('no_proxy') or os.environ.get('NO_PROXY') or ''
    for entry in named.split(',') if address is not None else ():
        text, _, its_port = entry.strip().lstrip('[').partition(']')
        try:
            known = address in ip_network(text, strict=False)
        except ValueError:
            continue  # a name
        if known and its_port in ('', ':%s' % port):
            return True
    return False


def _place(url: str) -> Tuple[str, Optional[int]]:
    from urllib.parse import urlsplit  # imported by requests

    try:
        parts = urlsplit(url)
        port = parts.port or {'http': 80, 'https': 443}.get(parts.scheme)
        return (parts.hostname or '').partition('%')[0].rstrip('.'), port
    except ValueError:
        return '', None  # requests will say so


def _address(host: str) -> Any:
    from ipaddress import ip_address  # there already: see transport.preload

    try:
        return ip_address(host)
    except ValueError:
        return None
