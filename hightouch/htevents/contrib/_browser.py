"""Facts of a request about its browser: the context of its events, and the anonymous id.

All of it comes from outside. A text is cut to a length and freed of control characters, and
nothing here raises, whatever a client sends. The names are those of Hightouch's browser SDK.
"""

import json
import re
import sys
from functools import partial
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Mapping,
    NamedTuple,
    Optional,
    Union,
)
from urllib.parse import parse_qsl, quote, unquote

from hightouch.htevents._context.scopes import Scope, entered
from hightouch.htevents.contrib._proxies import Proxies

# Limits in characters. An event may have 32 KB, and a context at its limits has at most 12 KB
# as JSON in UTF-8. URLs are ASCII. A character of the other texts may take 4 bytes.
MOST_PATH = 1000
MOST_SEARCH = 1500
MOST_REFERRER = 1500
MOST_USER_AGENT = 500
MOST_CAMPAIGN = 120
MOST_LOCALE = 35  # as RFC 5646 recommends
MOST_ID = 200

# Characters of a header that are looked at. More are useless because of the limits above.
MOST_TEXT = 8192

# Python 3.6 has one context for all tasks of a thread.
HAS_TASK_CONTEXTS = sys.version_info >= (3, 7)

COOKIE = 'htjs_anonymous_id'

# The headers that are used.
HEADERS = (
    'accept-language cookie forwarded host referer user-agent'
    ' x-forwarded-for x-forwarded-proto'
).split()

# Parameters of a URL, and their names in a campaign.
CAMPAIGN = {
    'utm_source': 'source',
    'utm_medium': 'medium',
    'utm_campaign': 'name',
    'utm_term': 'term',
    'utm_content': 'content',
}

# The C0 and C1 controls, DEL, the line separators of Unicode, and lone surrogates.
_CONTROLS = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')

_USUAL_PORTS = {'http': '80', 'ws': '80', 'https': '443', 'wss': '443'}
_HOST = re.compile(r'[A-Za-z0-9._:\[\]-]{1,255}')
_LANGUAGE = re.compile(r'[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8})*')
_WEIGHT = re.compile(r'q=(0(\.[0-9]{0,3})?|1(\.0{0,3})?)', re.IGNORECASE)

# Characters that a URL has without an escape, beside letters and digits.
_SAFE_IN_PATH = "/:@!$&'()*+,;="
_SAFE_IN_URL = _SAFE_IN_PATH + '%?#[]'

# The rest of an escape such as %C3 that was cut.
_CUT_ESCAPE = re.compile('%.?$')


class Request(NamedTuple):
    """The raw facts of a request.

    :ivar peer: the address of the other end of the connection; None or '' without one
    :ivar path: without escapes, as bytes or as text
    :ivar query: with escapes, without the question mark
    :ivar headers: the values of the `HEADERS` that came, by name
    """

    peer: Any
    scheme: str
    path: Union[bytes, str]
    query: Union[bytes, str]
    headers: Mapping[str, str]


def from_environ(environ: Mapping[str, Any]) -> Request:
    """Return the facts of a WSGI request."""
    headers = {}
    for name in HEADERS:
        value = environ.get('HTTP_' + name.upper().replace('-', '_'))
        if isinstance(value, str):
            headers[name] = value
    scheme = str(environ.get('wsgi.url_scheme', ''))
    server = environ.get('SERVER_NAME'), environ.get('SERVER_PORT')
    add_host(headers, server, scheme)
    path = str(environ.get('SCRIPT_NAME', '')) + str(environ.get('PATH_INFO', ''))
    return Request(
        environ.get('REMOTE_ADDR'),
        scheme,
        _bytes_of(path),
        _bytes_of(str(environ.get('QUERY_STRING', ''))),
        headers,
    )


def add_host(headers: Dict[str, str], server: Any, scheme: str) -> None:
    """Add the Host header that HTTP/1.0 and tests leave out, if it is missing.

    :param server: the name and the port of the server; None: not known
    """
    name, port = server or (None, None)
    if 'host' in headers or not name:
        return
    host = '[%s]' % name if ':' in str(name) else str(name)
    is_usual = not port or str(port) == _USUAL_PORTS.get(scheme)
    headers['host'] = host if is_usual else '%s:%s' % (host, port)


def _bytes_of(text: str) -> Union[bytes, str]:
    """Return the bytes that a text of WSGI stands for."""
    try:
        return text.encode('latin-1')
    except UnicodeEncodeError:
        return text  # against the standard of WSGI


def inside(
    request: Request, proxies: Proxies, find_user: Optional[Callable[[], Any]]
) -> ContextManager[None]:
    """Return what opens the scope of a request. The first event computes its context."""
    cookies = request.headers.get('cookie', '')
    scope = Scope(
        (None, anonymous_id(cookies) if COOKIE in cookies else None),
        find_user=find_user,
        find_context=partial(context_of, request, proxies),
    )
    return entered(scope)


def anonymous_id(cookies: str) -> Optional[str]:
    """Return the id in the cookie of the browser SDK; None without a usable one."""
    for cookie in cookies.split(';'):
        name, _, value = cookie.partition('=')
        if name.strip() == COOKIE and len(value) < MOST_TEXT:
            text = unquote(value.strip())
            try:
                found = json.loads(text, strict=False) if text[:1] == '"' else ''
            except ValueError:
                continue
            if _text(found, MOST_ID):
                return _text(found, MOST_ID)
    return None


def context_of(request: Request, proxies: Proxies) -> Dict[str, Any]:
    """Return the context of the events of a request. Keys without a value are left out."""
    headers = request.headers
    query = _escaped(request.query, _SAFE_IN_URL, MOST_TEXT)
    scheme = proxies.scheme(request.peer, headers) or request.scheme
    return _filled(
        ip=proxies.client(request.peer, headers),
        userAgent=_text(_utf8(headers.get('user-agent', '')), MOST_USER_AGENT),
        locale=locale_of(headers.get('accept-language', '')),
        page=_page(request, scheme, query),
        campaign=_campaign(query),
    )


def _page(request: Request, scheme: str, query: str) -> Dict[str, Any]:
    path = _escaped(request.path, _SAFE_IN_PATH, MOST_PATH)
    search = _escaped('?' + query, _SAFE_IN_URL, MOST_SEARCH) if query else ''
    host = request.headers.get('host', '')
    is_known = scheme and _HOST.fullmatch(host)
    referrer = _utf8(request.headers.get('referer', ''))
    return _filled(
        path=path,
        url='%s://%s%s%s' % (scheme, host, path, search) if is_known else '',
        referrer=_escaped(referrer, _SAFE_IN_URL, MOST_REFERRER),
        search=search,
    )


def _campaign(query: str) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for name, value in parse_qsl(query):
        if name in CAMPAIGN:
            found.setdefault(CAMPAIGN[name], _text(value, MOST_CAMPAIGN))
    return _filled(**found)


def locale_of(languages: str) -> str:
    """Return the preferred language of an Accept-Language header; '' without one."""
    best, found = 0.0, ''
    for each in languages[:MOST_TEXT].split(','):
        language, *parameters = [part.strip() for part in each.split(';')]
        weight = 1.0
        if parameters:
            matched = _WEIGHT.fullmatch(parameters[0])
            weight = float(matched.group(1)) if matched else 0.0
        is_one = len(language) <= MOST_LOCALE and _LANGUAGE.fullmatch(language)
        if is_one and weight > best:
            best, found = weight, language
    return found


def _utf8(header: str) -> str:
    """Return a header that servers have read as Latin-1 as the UTF-8 that it usually is."""
    data = _bytes_of(header[:MOST_TEXT])
    try:
        return data if isinstance(data, str) else data.decode('utf-8')
    except UnicodeDecodeError:
        return header


def _text(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters, without controls."""
    return _CONTROLS.sub('', text[: 2 * most])[:most].strip()


def _escaped(text: Union[bytes, str], safe: str, most: int) -> str:
    """Return a part of a URL in ASCII, at most ``most`` characters."""
    if isinstance(text, str):
        text = text[:most].encode('utf-8', 'replace')
    escaped = quote(text[:most], safe)
    return escaped if len(escaped) <= most else _CUT_ESCAPE.sub('', escaped[:most])


def _filled(**values: Any) -> Dict[str, Any]:
    return {name: value for name, value in values.items() if value}
