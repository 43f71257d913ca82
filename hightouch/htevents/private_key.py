"""Reads the private key of an OAuth client, in each form in which applications keep one."""

import base64
import binascii
import codecs
import os
import re
from typing import Any, Callable, Dict
from urllib.parse import unquote

from hightouch.htevents._process.interruption import is_instance, raise_interruption
from hightouch.htevents.errors import ValidationError, name_of

_ENCRYPTED = 'one that is encrypted; store it without a passphrase'
_PUBLIC = 'a public key'
_DAMAGED = 'a damaged one: a part of its text is missing, or was changed'
_OTHER_KIND = 'a key of the kind %s; RS256 takes an RSA key'

# By the label of its PEM, without spaces: what is there instead of a private key.
_OTHERS = {
    'ECPRIVATEKEY': _OTHER_KIND % 'EC',
    'DSAPRIVATEKEY': _OTHER_KIND % 'DSA',
    'PUBLICKEY': _PUBLIC,
    'RSAPUBLICKEY': _PUBLIC,
    'SSH2PUBLICKEY': _PUBLIC,
    'CERTIFICATE': 'a certificate',
    'CERTIFICATEREQUEST': 'a request for a certificate',
}

# A block of PEM, also without its line breaks or any white space.
_BLOCK = re.compile(r'-----BEGIN([A-Z0-9+\s]*)-----(.*?)-----END', re.DOTALL)
# Characters and line breaks as they are written in JSON, in shells and in .env files.
_CODED = re.compile(r'\\+(?:u00|x)([0-9a-fA-F]{2})')
_ESCAPED = re.compile(r'\\+[nrt]|`[nr]')
_URLSAFE = str.maketrans('-_', '+/')
_AROUND = re.compile(r"""[\s"'`,\\]+""")


def read_private_key(value: Any) -> Callable[[], Any]:
    """Return a function that loads a key for PyJWT to sign with, which takes some 30 ms.

    Both raise a `ValidationError` that names what it is instead, and quotes nothing of it,
    and an ImportError where cryptography cannot be imported.

    :param value: an RSA key as PEM, str or bytes: also with escaped line breaks, in quotes,
        indented, on one line, or in base64 as a whole; as DER; or as an object
    """
    if is_instance(value, os.PathLike):
        raise _unusable('a path; give the text of the file')
    if not is_instance(value, (str, bytes, bytearray, memoryview)):
        key = _checked(value)
        return lambda: key
    data = value.encode('utf-8', 'replace') if is_instance(value, str) else bytes(value)
    given = _decoded(data)
    for _ in range(3):  # base64 of it may come in base64, say from Kubernetes
        text = _decoded(data)
        if '-----BEGIN' in text:
            return _read_pem(_unescaped(text))
        if data[:1] == b'0' and len(data) > 64:  # a sequence of ASN.1: DER
            der = data
            return lambda: _load_der(der)
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
            return lambda: _load_der(der)
        if label == 'OPENSSHPRIVATEKEY':
            openssh = body
            return lambda: _load_openssh(openssh)
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
        return 'what looks like a path; give the text of the file'
    return 'a text without "-----BEGIN PRIVATE KEY-----"'


def _unusable(what: str) -> ValidationError:
    return ValidationError(
        'oauth_client_key: expected an RSA private key in PEM, got ' + what
    )


def _decoded(data: bytes) -> str:
    encoding = 'utf-8-sig'
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = 'utf-16'
    return data.decode(encoding, 'replace')


def _unescaped(text: str) -> str:
    if '%' in text:
        text = unquote(text)
    text = _CODED.sub(lambda found: chr(int(found.group(1), 16)), text)
    return _ESCAPED.sub('\n', text)


def _from_base64(text: str) -> Any:
    """Return the bytes of base64, None when it is none."""
    compact = _AROUND.sub('', text).rstrip('=').translate(_URLSAFE)
    try:
        return base64.b64decode(compact + '=' * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _load_der(data: bytes) -> Any:
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives import serialization

    key, problem = None, _DAMAGED
    for load in (
        lambda: serialization.load_der_private_key(data, None, default_backend()),
        lambda: serialization.load_der_public_key(data, default_backend()),
    ):
        try:
            key = load()
            break
        except TypeError as error:  # a password is needed
            raise_interruption(error)
            problem = _ENCRYPTED
            break
        except Exception as error:
            # Each version has errors of its own for this.
            raise_interruption(error)
    if key is None:
        # Out here, without their context: that may quote the key.
        raise _unusable(problem)
    return _checked(key)


def _load_openssh(body: str) -> Any:
    from cryptography.hazmat.backends import default_backend
    from cryptography.hazmat.primitives import serialization

    pem = '-----BEGIN OPENSSH PRIVATE KEY-----\n%s\n-----END OPENSSH PRIVATE KEY-----\n'
    lines = _AROUND.sub('', body)
    lines = '\n'.join(lines[at : at + 70] for at in range(0, len(lines), 70))
    key, problem = None, _DAMAGED
    try:
        data = (pem % lines).encode('ascii', 'replace')
        key = serialization.load_ssh_private_key(data, None, default_backend())
    except Exception as error:
        raise_interruption(error)
        if 'assw' in str(error):  # of a password, or of a passphrase
            problem = _ENCRYPTED
    if key is None:
        raise _unusable(problem)
    return _checked(key)


def _checked(key: Any) -> Any:
    """Return a key object if it is one of RSA, and private."""
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
