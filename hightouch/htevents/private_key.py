"""Reads the private key of an OAuth client from any form that applications keep it in.

No error text quotes any part of the given value: it may hold the key.
"""

import base64
import codecs
import os
import re
from typing import Any, Callable, Dict
from urllib.parse import unquote

from hightouch.htevents._process.interruption import is_instance, raise_interruption
from hightouch.htevents.errors import ValidationError, name_of

_ENCRYPTED = 'an encrypted key; store it without a passphrase'
_PUBLIC = 'a public key'
_DAMAGED = 'a damaged key: a part of its text is missing or was changed'
_OTHER_KIND = 'a key of the kind %s; RS256 takes an RSA key'

# Functions of cryptography. The public one tells a public key from a damaged key.
_DER = ('load_der_private_key', 'load_der_public_key')
_OPENSSH = 'load_ssh_private_key'

# PEM blocks that hold no RSA private key, by their label without spaces.
_OTHERS = {
    'ECPRIVATEKEY': _OTHER_KIND % 'EC',
    'DSAPRIVATEKEY': _OTHER_KIND % 'DSA',
    'PUBLICKEY': _PUBLIC,
    'RSAPUBLICKEY': _PUBLIC,
    'SSH2PUBLICKEY': _PUBLIC,
    'CERTIFICATE': 'a certificate',
    'CERTIFICATEREQUEST': 'a request for a certificate',
}

# A PEM block. Its line breaks and spaces may be missing.
_BLOCK = re.compile(r'-----BEGIN([A-Z0-9+\s]*)-----(.*?)-----END', re.DOTALL)
# Escapes of JSON, shells and .env files: for one character, and for white space.
_ESCAPED_CHARACTER = re.compile(r'\\+(?:u00|x)([0-9a-fA-F]{2})')
_ESCAPED_SPACE = re.compile(r'\\+[nrt]|`[nr]')
_OPENSSH_PEM = (
    '-----BEGIN OPENSSH PRIVATE KEY-----\n%s\n-----END OPENSSH PRIVATE KEY-----\n'
)
_URLSAFE = str.maketrans('-_', '+/')
# Spaces, quotes and separators around and inside base64.
_NOISE = re.compile(r"""[\s"'`,\\]+""")


def read_private_key(value: Any) -> Callable[[], Any]:
    """Return a function that loads a key for PyJWT, which takes some 30 ms.

    The function is not a partial: the repr of a partial would show the key.

    :param value: an RSA key: PEM as str or bytes (escaped, quoted, indented, on one line,
        or encoded in base64 as a whole), DER, or a key object
    :raises ValidationError: when the value is not such a key; the function may raise it too
    :raises ImportError: where cryptography cannot be imported; so may the function
    """
    if is_instance(value, os.PathLike):
        raise _unusable('a path; give the text of the file')
    if not is_instance(value, (str, bytes, bytearray, memoryview)):
        key = _checked(value)
        return lambda: key
    data = value.encode('utf-8', 'replace') if is_instance(value, str) else bytes(value)
    given = _decoded(data)
    for _ in range(3):  # Kubernetes, for example, wraps base64 in base64
        text = _decoded(data)
        if '-----BEGIN' in text:
            return _read_pem(_unescaped(text))
        if data[:1] == b'0' and len(data) > 64:  # DER begins with an ASN.1 sequence
            return lambda: _load(data, *_DER)
        inner = _from_base64(re.sub('^(data:[^,]*,|base64:)', '', _unescaped(text)))
        if not inner:
            break
        data = inner
    raise _unusable(_kind_of_text(given.strip()))


def _read_pem(text: str) -> Callable[[], Any]:
    blocks: Dict[str, str] = {}
    for label, body in _BLOCK.findall(text):
        blocks.setdefault(re.sub('[^A-Z0-9]', '', label), body)
    for label, body in blocks.items():
        if 'PRIVATEKEY' in label and 'ENCRYPTED' in label + body:
            raise _unusable(_ENCRYPTED)
        if label in ('PRIVATEKEY', 'RSAPRIVATEKEY'):
            der = _from_base64(body)
            if not der:
                raise _unusable(_DAMAGED)
            return lambda: _load(der, *_DER)
        if label == 'OPENSSHPRIVATEKEY':
            pem = (_OPENSSH_PEM % _NOISE.sub('', body)).encode('ascii', 'replace')
            return lambda: _load(pem, _OPENSSH)
    if not blocks:
        raise _unusable('a PEM without its end: a part of it is missing')
    for label, what in _OTHERS.items():
        if label in blocks:
            raise _unusable(what)
    raise _unusable('a PEM of another kind')


def _kind_of_text(text: str) -> str:
    if not text:
        return 'an empty text'
    if text.startswith(('ssh-', 'ecdsa-')):
        return _PUBLIC
    if text.startswith('{'):
        return 'JSON'
    if len(text) < 300 and re.search(r'^[~.]{0,2}[/\\]|^\w:\\|^[\w./-]+$', text):
        return 'a text that looks like a path; give the text of the file'
    return 'a text without "-----BEGIN PRIVATE KEY-----"'


def _unusable(what: str) -> ValidationError:
    return ValidationError(
        'oauth_client_key: expected an RSA private key in PEM, got ' + what
    )


def _decoded(data: bytes) -> str:
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode('utf-16' if is_utf16 else 'utf-8-sig', 'replace')


def _unescaped(text: str) -> str:
    if '%' in text:
        text = unquote(text)
    text = _ESCAPED_CHARACTER.sub(lambda found: chr(int(found.group(1), 16)), text)
    return _ESCAPED_SPACE.sub('\n', text)


def _from_base64(text: str) -> Any:
    """Return the decoded bytes, or None when the text is not base64."""
    compact = _NOISE.sub('', text).rstrip('=').translate(_URLSAFE)
    try:
        return base64.b64decode(compact + '=' * (-len(compact) % 4), validate=True)
    except ValueError:
        return None


def _load(data: bytes, *loaders: str) -> Any:
    """Load a key with the first of cryptography's ``loaders`` that can read it."""
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives import serialization

    problem = _DAMAGED
    for name in loaders:
        password = (None,) if 'private' in name else ()
        try:
            key = getattr(serialization, name)(data, *password, default_backend())
            break
        except Exception as error:  # each release raises other classes
            raise_interruption(error)
            # Some releases speak of a password for damaged DER, too.
            if isinstance(error, TypeError) or (
                name == _OPENSSH and 'assw' in str(error)  # password or passphrase
            ):
                problem = _ENCRYPTED
    else:
        # Raised outside the except clause: the original error may quote the key.
        raise _unusable(problem)
    return _checked(key)


def _checked(key: Any) -> Any:
    """Return a key object; raise `ValidationError` unless it is an RSA private key."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    name = name_of(type(key))
    if name == 'PyJWK':  # of PyJWT
        return _checked(key.key)
    if is_instance(key, rsa.RSAPrivateKey):
        return key
    if 'Public' in name:
        raise _unusable(_PUBLIC)
    if 'PrivateKey' in name:
        kind = name.strip('_').partition('PrivateKey')[0]
        raise _unusable(_OTHER_KIND % {'EllipticCurve': 'EC'}.get(kind, kind))
    raise _unusable('an object of type %s' % name)
