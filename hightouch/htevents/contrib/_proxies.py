"""The address of a client, from the headers of trusted proxies.

Any client can send the headers of a proxy. An entry of a header is believed only if the hop
that added it is trusted. The chain of hops is walked from the server towards the client.
"""

import re
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any, List, Mapping, Optional, Union

from hightouch.htevents._process.logs import printable
from hightouch.htevents.errors import ValidationError
from hightouch.htevents.settings import expect

_Address = Union[IPv4Address, IPv6Address]

# The types of a trusted proxy.
_KNOWN = (str, IPv4Address, IPv6Address, IPv4Network, IPv6Network)

UNIX = 'unix'
EXPECTED = (
    "networks or addresses such as '10.0.0.0/8', or 'unix' for a peer on a UNIX socket"
)

# Hops of a chain that are looked at, and characters of an address.
MOST_HOPS = 50
MOST_ADDRESS = 100

# Characters of a header Forwarded. A longer one is not read.
MOST_FORWARDED = 8192

# An address with an optional port, which may be a name.
_HOP = re.compile(r'\[(.+)\](?::[\w.-]*)?|([0-9.]+)(?::[\w.-]*)')

# Of the header Forwarded: an element, and a pair in it.
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ELEMENT = re.compile(r'(?:[^",]|%s)*' % _QUOTED)
_PAIR = re.compile(r'\s*([\w-]+)=(%s|[^\s";]*)\s*(?:;|$)' % _QUOTED)


def address_of(text: Any) -> Optional[_Address]:
    """Return an address in its usual form; None if the text is not one.

    An IPv4 address in IPv6 becomes IPv4. The zone of an address is dropped.
    """
    if not isinstance(text, str) or len(text) > MOST_ADDRESS:
        return None
    try:
        address = ip_address(text.partition('%')[0])
    except ValueError:
        return None
    return getattr(address, 'ipv4_mapped', None) or address


def _hop(entry: str) -> Optional[_Address]:
    """Return the address in an entry of a header, without its port and quotes."""
    text = entry.strip(' \t"')
    matched = _HOP.fullmatch(text)
    return address_of(matched.group(1) or matched.group(2) if matched else text)


def _network(value: Any) -> Union[IPv4Network, IPv6Network]:
    """Return a trusted network in the form of the addresses that `address_of` returns."""
    expect(isinstance(value, _KNOWN), 'trusted_proxies', EXPECTED, value)
    try:
        network = ip_network(str(value).strip())
    except ValueError as error:
        raise ValidationError(
            'trusted_proxies: expected %s, got %s (%s)'
            % (EXPECTED, printable(repr(value), MOST_ADDRESS), error)
        ) from None
    mapped = getattr(network.network_address, 'ipv4_mapped', None)
    if mapped and network.prefixlen >= 96:
        return ip_network('%s/%d' % (mapped, network.prefixlen - 96))
    return network


class Proxies:
    """The trusted proxies of a server. Reads their headers.

    :param trusted: networks or addresses; one str is one of them. `UNIX` stands for a peer
        without an address
    :raises ValidationError: when one is wrong
    """

    def __init__(self, trusted: Any) -> None:
        if isinstance(trusted, _KNOWN):
            trusted = (trusted,)
        try:
            values = list(trusted)
        except TypeError:
            expect(False, 'trusted_proxies', 'an iterable of ' + EXPECTED, trusted)
        self._unix = UNIX in values
        self._networks = [_network(each) for each in values if each != UNIX]

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)

    def _trusts_peer(self, peer: Any) -> bool:
        if self._unix and (not peer or str(peer).startswith('unix:')):
            return True
        address = _hop(str(peer))
        return address is not None and self._trusts(address)

    def client(self, peer: Any, headers: Mapping[str, str]) -> str:
        """Return the address of the client; '' if it is not known.

        It is not known if both kinds of header are there and tell different clients. A proxy
        manages only one of them, and the other may come from the client.
        """
        address = _hop(str(peer))
        if self._trusts_peer(peer):
            found = {
                self._walked(address, hops)
                for hops in (_hops(headers), _forwarded(headers, 'for'))
                if hops is not None
            }
            if found:
                address = found.pop() if len(found) == 1 else None
        return '' if address is None else str(address)

    def _walked(self, peer: Optional[_Address], hops: List[str]) -> Optional[_Address]:
        """Walk a chain from its end; return the last hop that a trusted one tells."""
        client = peer
        for entry in reversed(hops[-MOST_HOPS:]):
            address = _hop(entry)
            if address is None:
                break  # such as "unknown"; nothing left of it can be believed
            client = address
            if not self._trusts(address):
                break
        return client

    def scheme(self, peer: Any, headers: Mapping[str, str]) -> str:
        """Return ``http`` or ``https`` if a trusted proxy tells it, otherwise ''."""
        if not self._trusts_peer(peer):
            return ''
        found = set()
        if 'x-forwarded-proto' in headers:
            found.add(headers['x-forwarded-proto'].rpartition(',')[2].strip().lower())
        schemes = _forwarded(headers, 'proto')
        if schemes and schemes[-1]:
            found.add(schemes[-1].lower())
        scheme = found.pop() if len(found) == 1 else ''
        return scheme if scheme in ('http', 'https') else ''


def _hops(headers: Mapping[str, str]) -> Optional[List[str]]:
    """Return the entries of X-Forwarded-For; None without the header."""
    text = headers.get('x-forwarded-for')
    return None if text is None else text.rsplit(',', MOST_HOPS)


def _forwarded(headers: Mapping[str, str], name: str) -> Optional[List[str]]:
    """Return a parameter of each element of Forwarded; None without the header.

    It is '' for an element without it. A header that cannot be read has no elements.
    """
    text = headers.get('forwarded')
    if text is None:
        return None
    return [_parameter(each, name) for each in _elements(text)]


def _elements(text: str) -> List[str]:
    """Return the elements of a header Forwarded, which commas separate."""
    elements: List[str] = []
    end = -1
    while end < len(text) <= MOST_FORWARDED:
        matched = _ELEMENT.match(text, end + 1)
        assert matched  # the pattern matches an empty text
        elements.append(matched.group())
        end = matched.end()
        if text[end : end + 1] not in ('', ','):
            return []  # a quote without its end
    return elements


def _parameter(element: str, name: str) -> str:
    """Return the value of a pair in an element; '' without it, or if the form is wrong."""
    found = ''
    position = 0
    while position < len(element):
        matched = _PAIR.match(element, position)
        if matched is None:
            return ''
        if matched.group(1).lower() == name:
            found = matched.group(2)
        position = matched.end()
    return re.sub(r'\\(.)', r'\1', found[1:-1]) if found[:1] == '"' else found
