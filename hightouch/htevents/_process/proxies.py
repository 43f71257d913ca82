"""Selects the proxy of a request from the setting, the session and the environment."""

import os
from functools import lru_cache
from typing import Any, List, Mapping, Optional, Tuple

from hightouch.htevents._process.interruption import is_instance
from hightouch.htevents.errors import ValidationError, name_of

# The URLs of proxies by scheme, as in requests. None instead of a URL: ignore the
# environment's proxy. None instead of the mapping: the session or the environment decides.
_Proxies = Optional[Mapping[str, Optional[str]]]


def normalize_proxies(value: Any) -> _Proxies:
    """Return the setting ``proxies`` in the form of requests.

    :param value: a dict of requests, or 'host:port' or a URL for both schemes; a falsy
        value means None
    :raises ValidationError: for any other value
    """
    if is_instance(value, str):
        value = value.strip()
        if value:
            url = value if '://' in value else 'http://' + value
            return {'http': url, 'https': url}
    if not value:
        return None
    if is_instance(value, Mapping):
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


def proxies_for(url: str, session: Any, given: _Proxies) -> _Proxies:
    """Return the proxies to send a request with.

    The proxies of the environment do not apply to a server on loopback, which no proxy can
    reach, or to hosts that NO_PROXY names.

    :param given: the setting ``proxies``
    """
    if not (is_loopback(url) or _is_excepted(url)):
        return given
    ignored = dict.fromkeys(('http', 'https', 'all'))
    return {**ignored, **_proxies_of(session), **(given or {})}


def all_proxies(session: Any, given: _Proxies) -> List[Optional[str]]:
    """Return the URLs of all proxies that a request may have been sent with."""
    from urllib.request import getproxies  # imported by requests

    found = [given or {}, _proxies_of(session), getproxies()]
    return [url for each in found for url in each.values()]


def _proxies_of(session: Any) -> Mapping[str, Optional[str]]:
    proxies = getattr(session, 'proxies', None)
    return proxies if isinstance(proxies, Mapping) else {}


@lru_cache(maxsize=100)
def is_loopback(url: str) -> bool:
    """Whether the host of a URL is this machine, judged without a DNS query."""
    host, _ = _host_and_port(url)
    if host == 'localhost' or host.endswith('.localhost'):
        return True
    address = _address(host)
    mapped = getattr(address, 'ipv4_mapped', None) or address
    # Connections to the unspecified address (0.0.0.0, ::) reach this machine, too.
    return mapped is not None and (mapped.is_loopback or mapped.is_unspecified)


def _is_excepted(url: str) -> bool:
    """Whether NO_PROXY names the IPv6 host of a URL. requests handles names and IPv4 only."""
    if '://[' not in url:
        return False
    from ipaddress import ip_network

    host, port = _host_and_port(url)
    address = _address(host)
    named = os.environ.get('no_proxy') or os.environ.get('NO_PROXY') or ''
    for entry in named.split(',') if address is not None else ():
        text, _, its_port = entry.strip().lstrip('[').partition(']')
        try:
            known = address in ip_network(text, strict=False)
        except ValueError:
            continue  # a host name
        if known and its_port in ('', ':%s' % port):
            return True
    return False


def _host_and_port(url: str) -> Tuple[str, Optional[int]]:
    from urllib.parse import urlsplit  # imported by requests

    try:
        parts = urlsplit(url)
        port = parts.port or {'http': 80, 'https': 443}.get(parts.scheme)
        return (parts.hostname or '').partition('%')[0].rstrip('.'), port
    except ValueError:
        return '', None  # requests will report the malformed URL


def _address(host: str) -> Any:
    from ipaddress import ip_address  # imported already: see transport

    try:
        return ip_address(host)
    except ValueError:
        return None
