import base64
import json
import logging
import pathlib
import textwrap
from typing import Any
from urllib.parse import quote

from cryptography.hazmat.backends import default_backend
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from hightouch.htevents.errors import ValidationError
from hightouch.htevents.oauth_manager import OauthManager
from hightouch.htevents.private_key import read_private_key
from hightouch.htevents.test.support import (
    LIMIT,
    LogCatcher,
    Recorder,
    TestCase,
    make_key,
)

PEM = make_key()
KEY = serialization.load_pem_private_key(PEM.encode('ascii'), None, default_backend())
NUMBERS = KEY.private_numbers()  # type: ignore[union-attr]

_PKCS8 = serialization.PrivateFormat.PKCS8
_PKCS1 = serialization.PrivateFormat.TraditionalOpenSSL
_PASSPHRASE = serialization.BestAvailableEncryption(b'passphrase')


def written(
    key: Any = KEY,
    encoding: Any = serialization.Encoding.PEM,
    format: Any = _PKCS8,
    encryption: Any = None,
) -> bytes:
    return key.private_bytes(  # type: ignore[no-any-return]
        encoding, format, encryption or serialization.NoEncryption()
    )


def public(key: Any) -> str:
    encoding = serialization.Encoding.PEM
    format = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, format).decode('ascii')  # type: ignore[no-any-return]


def forms(pem: str) -> Any:
    """Give the forms in which a PEM comes from variables, files and vaults."""
    yield pem
    yield pem.encode('ascii')
    yield bytearray(pem, 'ascii')
    yield memoryview(pem.encode('ascii'))
    yield pem.strip()
    yield pem.replace('\n', '\r\n')
    yield pem.replace('\n', '\\n')
    yield pem.replace('\n', '\\r\\n')
    yield pem.replace('\n', '\\\\n')
    yield pem.replace('\n', '\\n\n')
    yield pem.replace('\n', '\\\n')
    yield pem.replace('\n', ' ')
    yield pem.replace('\n', '')
    yield ''.join(pem.split())
    yield '"%s"' % pem
    yield "'%s'" % pem.replace('\n', '\\n')
    yield json.dumps(pem)
    yield json.dumps(json.dumps(pem))
    yield '\n'.join('"%s\\n"' % line for line in pem.splitlines())
    yield textwrap.indent(pem, '    ')
    yield textwrap.indent(pem, '\t')
    yield pem.replace('\n', '\n\n')
    yield '\n\n' + pem + '\n\n'
    yield '\ufeff' + pem
    yield pem.encode('utf-16')
    yield base64.b64encode(pem.encode('ascii'))
    yield base64.b64encode(pem.encode('ascii')).decode('ascii').rstrip('=')
    yield base64.encodebytes(pem.encode('ascii')).decode('ascii')
    yield base64.encodebytes(pem.encode('ascii')).decode('ascii').replace('\n', '\\n')
    yield base64.b64encode(base64.b64encode(pem.encode('ascii')))
    yield 'base64:' + base64.b64encode(pem.encode('ascii')).decode('ascii')
    yield json.dumps(pem).replace('+', '\\u002b').replace('=', '\\u003D')
    yield quote(pem)
    yield pem.replace('\n', '%0A')
    yield pem.replace('\n', '`n')
    yield 'Bag Attributes\n    friendlyName: key\n' + pem
    yield '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n' + pem


class PrivateKeyTest(TestCase):
    def test_each_form_of_a_pem_is_read(self) -> None:
        for pem in (PEM, written().decode('ascii')):
            for form in forms(pem):
                key = read_private_key(form)()
                self.assertEqual(key.private_numbers(), NUMBERS, form)

    def test_objects_and_der_and_the_format_of_openssh_are_read(self) -> None:
        der = written(encoding=serialization.Encoding.DER)
        forms = [KEY, der, bytearray(der), base64.b64encode(der).decode('ascii')]
        forms.append(written(encoding=serialization.Encoding.DER, format=_PKCS1))
        if hasattr(serialization.PrivateFormat, 'OpenSSH'):
            openssh = written(format=serialization.PrivateFormat.OpenSSH)
            forms += [
                openssh,
                openssh.replace(b'\n', b'\\n'),
                openssh.replace(b'\n', b''),
            ]
        for form in forms:  # type: Any
            self.assertEqual(read_private_key(form)().private_numbers(), NUMBERS, form)

    def test_a_token_is_signed_with_it(self) -> None:
        for form in (PEM.replace('\n', '\\n'), bytearray(PEM, 'ascii'), KEY):  # type: Any
            manager = OauthManager('id', form, 'kid', self.collector.url)
            self.assertTrue(manager.get_token().startswith('token-'))

    def test_the_cause_is_named_when_it_is_none(self) -> None:
        curve = ec.generate_private_key(ec.SECP256R1(), default_backend())
        other = dsa.generate_private_key(1024, default_backend())
        pem = PEM.strip()
        body = pem.splitlines()[10]
        for value, cause in (
            (written(encryption=_PASSPHRASE), 'encrypted'),
            (written(format=_PKCS1, encryption=_PASSPHRASE), 'encrypted'),
            (
                written(format=_PKCS1, encryption=_PASSPHRASE).replace(b'\n', b'\\n'),
                'encrypted',
            ),
            (
                written(encoding=serialization.Encoding.DER, encryption=_PASSPHRASE),
                'encrypted',
            ),
            (written(curve), 'EC'),
            (written(curve, format=_PKCS1), 'EC'),
            (written(curve, format=_PKCS1).decode('ascii').replace('\n', '\\n'), 'EC'),
            (curve, 'EC'),
            (written(other), 'DSA'),
            (other, 'DSA'),
            (public(KEY), 'public'),
            (public(KEY).replace('\n', ' '), 'public'),
            (public(curve), 'public'),
            (KEY.public_key(), 'public'),
            ('ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB me@host', 'public'),
            (
                '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----',
                'certificate',
            ),
            (
                '-----BEGIN PGP PRIVATE KEY BLOCK-----\nMIIB\n'
                '-----END PGP PRIVATE KEY BLOCK-----',
                'another kind',
            ),
            ('/etc/keys/hightouch.pem', 'path'),
            ('C:\\keys\\new.pem', 'path'),
            ('hightouch.pem', 'path'),
            (b'keys/hightouch', 'path'),
            (pathlib.Path('hightouch.pem'), 'path'),
            (pem.splitlines()[0], 'missing'),
            (pem[: len(pem) // 2], 'missing'),
            (pem.replace(body, body[:-9]), 'damaged'),
            (pem.replace(body, ''), 'damaged'),
            (pem.replace(body, '*' + body[1:]), 'damaged'),
            (' ', 'empty'),
            ('{"kty": "RSA"}', 'JSON'),
            ('not a key', 'without "-----BEGIN'),
            (['key'], 'type list'),
            (open, 'type builtin_function'),
        ):  # type: Any
            with self.assertRaises(ValidationError) as caught:
                read_private_key(value)()
            text = str(caught.exception)
            self.assertIn('oauth_client_key: expected an RSA private key', text)
            self.assertIn(cause, text.partition(', got ')[2])
            self.assertIsNone(caught.exception.__context__, 'it may quote the key')

    def test_that_is_said_when_the_client_is_made_and_with_each_loss(self) -> None:
        for key, cause in (
            (public(KEY), 'public'),
            (object(), 'object'),
            (PEM[:500], 'missing'),
        ):  # type: Any
            lost = Recorder()
            with LogCatcher() as log:
                client = self.client(
                    oauth_client_id='id',
                    oauth_client_key=key,
                    oauth_key_id='kid',
                    oauth_auth_server=self.collector.url,
                    on_error=lost,
                )
                made = log.lines(logging.WARNING)
                client.track('user', 'event')
                self.assertTrue(client.flush(LIMIT))
                lines = log.lines()
            self.assertEqual(len(made), 1)
            self.assertIn(cause, made[0])
            ((error, _),) = lost.calls
            self.assertEqual(error.code, 'invalid_key')
            self.assertIn(cause, str(error))
            self.assertNotIn(PEM.splitlines()[1], ''.join(lines) + repr(error))

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.text(), st.binary(), st.integers(0, len(PEM) - 1)))
    def test_whatever_it_is_the_error_is_the_documented_one(self, value: Any) -> None:
        if isinstance(value, int):  # where it was cut and mended
            value = PEM[:value] + PEM[value + 1 :]
        try:
            self.assertIsInstance(read_private_key(value)(), rsa.RSAPrivateKey)
        except ValidationError:
            pass
