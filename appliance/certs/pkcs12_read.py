"""Read PKCS#12 (RFC 7292), with a limit on the work that a file may require.

A file itself says how many rounds are needed to unlock it, once for its integrity and once for each encrypted part, also
for parts that appear only after decryption. So each number is checked just before its use. The library's reader has no such
place, and holds the interpreter's lock all the time: see docs/decisions/0050-reading-keychains.md.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import load_der_private_key

from appliance.certs.ber import Element, read_ber
from appliance.certs.der import DERError
from appliance.certs.der import oid as _oid
from appliance.certs.pkcs12 import derive, wide_passwords
from appliance.certs.x509 import quiet
from appliance.errors import KeychainError

__all__ = ["MAX_ROUNDS", "CertificateBag", "Contents", "read_pkcs12"]

MAX_ROUNDS: Final = 2_000_000
"""Rounds for one derivation of a key. A file may require three times that in all."""
_MAX_SCRYPT_BYTES: Final = 128 << 20
_MAX_SCRYPT_WORK: Final = 1 << 20
_MAX_KEY_BYTES: Final = 8192
"""An RSA key of 8192 bits has 4.7 KB; checking larger ones would take minutes."""
_MAX_NESTED: Final = 4

_SEQUENCE, _SET, _OBJECT = 0x30, 0x31, 0x06
_WRAPPED = 0xA0


def _value(dotted: str) -> bytes:
    return _oid(dotted)[2:]


_DATA = _value("1.2.840.113549.1.7.1")
_ENCRYPTED = _value("1.2.840.113549.1.7.6")
_BAGS = {_value(f"1.2.840.113549.1.12.10.1.{number}"): number for number in range(1, 7)}
_KEY_BAG, _SHROUDED_BAG, _CERT_BAG, _SAFE_BAG = 1, 2, 3, 6
_X509 = _value("1.2.840.113549.1.9.22.1")
_LOCAL_KEY_ID = _value("1.2.840.113549.1.9.21")
_PBES2 = _value("1.2.840.113549.1.5.13")
_PBKDF2 = _value("1.2.840.113549.1.5.12")
_SCRYPT = _value("1.3.6.1.4.1.11591.4.11")
_PBMAC1 = _value("1.2.840.113549.1.5.14")
_HASHES = {
    _value("1.3.14.3.2.26"): "sha1",
    _value("2.16.840.1.101.3.4.2.4"): "sha224",
    _value("2.16.840.1.101.3.4.2.1"): "sha256",
    _value("2.16.840.1.101.3.4.2.2"): "sha384",
    _value("2.16.840.1.101.3.4.2.3"): "sha512",
}
_HMACS = {
    _value("1.2.840.113549.2.7"): "sha1",
    _value("1.2.840.113549.2.8"): "sha224",
    _value("1.2.840.113549.2.9"): "sha256",
    _value("1.2.840.113549.2.10"): "sha384",
    _value("1.2.840.113549.2.11"): "sha512",
}
_AES = {
    _value("2.16.840.1.101.3.4.1.2"): 16,
    _value("2.16.840.1.101.3.4.1.22"): 24,
    _value("2.16.840.1.101.3.4.1.42"): 32,
}
_TRIPLE_DES = _value("1.2.840.113549.3.7")
_PBES1 = {
    _value("1.2.840.113549.1.12.1.3"): ("3des", 24),
    _value("1.2.840.113549.1.12.1.4"): ("3des", 16),
    _value("1.2.840.113549.1.12.1.5"): ("rc2", 16),
    _value("1.2.840.113549.1.12.1.6"): ("rc2", 5),
}
_KEY_KINDS = {
    _value("1.2.840.113549.1.1.1"),
    _value("1.2.840.10045.2.1"),
    _value("1.3.101.112"),
    _value("1.3.101.113"),
}
"""RSA, EC, Ed25519 and Ed448."""

_AGAIN = "write it again with `openssl pkcs12 -export`, which uses AES-256"


class CertificateBag(NamedTuple):
    """One certificate, and the key that it says it belongs to."""

    der: bytes
    local_key_id: bytes


class _KeyBag(NamedTuple):
    """One private key, and the certificates that it says it belongs to."""

    der: bytes
    local_key_id: bytes

    def __repr__(self) -> str:
        return "<_KeyBag>"


class Contents(NamedTuple):
    """What a PKCS#12 file holds."""

    key: PrivateKeyTypes | None
    """The first private key."""
    local_key_id: bytes
    certificates: tuple[CertificateBag, ...]
    """All certificates in the order of the file, not parsed yet."""


class _WrongPasswordError(Exception):
    """The decrypted data makes no sense."""


def read_pkcs12(data: bytes, password: bytes, *, source: str = "") -> Contents:
    """Read a file of at most a few hundred KB. For an empty password, both no password and an empty one are tried.

    Derivations by OpenSSL run without the interpreter's lock, so a thread that reads does not block an event loop. ``source``
    says where the password came from, for messages.

    Raises:
        KeychainError: The file cannot be read; the text says what to do.
    """
    reader = _Reader(password)
    try:
        reader.file(read_ber(data))
        key = None if not reader.keys else _load_key(reader.keys[0].der)
    except _WrongPasswordError as exc:
        msg = (
            f"the keychain's password is wrong, or the file is damaged; check the password{f' in {source}' if source else ''}"
            if password
            else f"the keychain is protected by a password, and the one in {source} is empty; "
            "write it there, in the first line if that is a file"
            if source
            else "the keychain is protected by a password but none was given, or the file is damaged; "
            "set its password file"
        )
        raise KeychainError(msg) from exc
    except DERError as exc:
        msg = f"the file is not a PKCS#12 keychain, or is damaged ({exc}); restore it or request a new certificate"
        raise KeychainError(msg) from exc
    return Contents(key, reader.keys[0].local_key_id if reader.keys else b"", tuple(reader.certificates))


def _unsupported(what: str) -> KeychainError:
    return KeychainError(f"the keychain is protected by {what}, which is not supported here; {_AGAIN}")


class _Reader:
    def __init__(self, password: bytes) -> None:
        self.password = password
        self.wide = wide_passwords(password)
        """The possible forms of the password in the key derivation of PKCS#12 itself."""
        self.spent = 0
        self.keys: list[_KeyBag] = []
        self.certificates: list[CertificateBag] = []

    # -- structure -------------------------------------------------------------------------------------

    def file(self, pfx: Element) -> None:
        if pfx.expect(_SEQUENCE).part(0).integer() != 3:
            msg = "its version is not 3"
            raise DERError(msg)
        kind, content = _content(pfx.part(1, _SEQUENCE))
        if kind != _DATA or content is None:
            raise _unsupported("a public key or a signature")
        safes = content.octet_string()
        if len(pfx.parts) > 2:
            self.check_mac(pfx.part(2, _SEQUENCE), safes)
        for info in read_ber(safes).expect(_SEQUENCE).parts:
            self.safe(info.expect(_SEQUENCE))

    def safe(self, info: Element) -> None:
        kind, content = _content(info)
        if content is None:
            return
        if kind == _DATA:
            self.bags(read_ber(content.octet_string()), 0)
        elif kind == _ENCRYPTED:
            encrypted = content.expect(_SEQUENCE).part(1, _SEQUENCE)
            cipher = encrypted.part(2)
            if cipher.tag & ~0x20 != 0x80:
                msg = "encrypted contents without bytes"
                raise DERError(msg)
            for plain in self.decrypt(encrypted.part(1, _SEQUENCE), cipher.octets()):
                try:
                    found = read_ber(plain)
                except DERError:
                    continue
                self.bags(found, 0)
                return
            raise _WrongPasswordError
        else:
            raise _unsupported("a public key")

    def bags(self, contents: Element, depth: int) -> None:
        for bag in contents.expect(_SEQUENCE).parts:
            kind = _BAGS.get(bag.part(0, _OBJECT).value, 0)
            value = bag.part(1, _WRAPPED).part(0)
            if kind == _KEY_BAG:
                self.keys.append(_KeyBag(value.raw, _local_key_id(bag)))
            elif kind == _SHROUDED_BAG:
                self.keys.append(_KeyBag(self.shrouded(value), _local_key_id(bag)))
            elif kind == _CERT_BAG and value.part(0, _OBJECT).value == _X509:
                der = value.part(1, _WRAPPED).part(0).octet_string()
                self.certificates.append(CertificateBag(der, _local_key_id(bag)))
            elif kind == _SAFE_BAG:
                if depth == _MAX_NESTED:
                    msg = "bags nested too deeply"
                    raise DERError(msg)
                self.bags(value, depth + 1)

    def shrouded(self, value: Element) -> bytes:
        for plain in self.decrypt(value.part(0, _SEQUENCE), value.part(1).octet_string()):
            try:
                read_ber(plain).expect(_SEQUENCE)
            except DERError:
                continue
            return plain
        raise _WrongPasswordError

    # -- keys from the password ------------------------------------------------------------------------

    def spend(self, rounds: int) -> int:
        """Check a number of rounds before they are done."""
        if rounds < 1:
            msg = "a number of rounds below 1"
            raise DERError(msg)
        self.spent += rounds
        if rounds > MAX_ROUNDS or self.spent > 3 * MAX_ROUNDS:
            msg = (
                f"the keychain's password protection takes more than {MAX_ROUNDS} rounds; write it again with fewer "
                "(`openssl pkcs12 -export` takes 2048)"
            )
            raise KeychainError(msg)
        return rounds

    def check_mac(self, mac: Element, safes: bytes) -> None:
        algorithm = mac.part(0, _SEQUENCE).part(0, _SEQUENCE)
        expected = mac.part(0).part(1).octet_string()
        kind = algorithm.part(0, _OBJECT).value
        if kind == _PBMAC1:
            parameters = algorithm.part(1, _SEQUENCE)
            scheme = _HMACS.get(parameters.part(1, _SEQUENCE).part(0, _OBJECT).value)
            if scheme is None:
                raise _unsupported("an unknown hash")
            key = self.stretched(parameters.part(0, _SEQUENCE), 0)
            if not hmac.compare_digest(hmac.digest(key, safes, scheme), expected):
                raise _WrongPasswordError
            return
        name = _HASHES.get(kind)
        if name is None:
            raise _unsupported("an unknown hash")
        salt = mac.part(1).octet_string()
        rounds = mac.part(2).integer() if len(mac.parts) > 2 else 1
        for wide in self.wide:
            key = derive(name, 3, wide, salt, self.spend(rounds), hashlib.new(name).digest_size)
            if hmac.compare_digest(hmac.digest(key, safes, name), expected):
                self.wide = (wide,)
                return
        raise _WrongPasswordError

    def stretched(self, function: Element, size: int) -> bytes:
        """Return a key by PBKDF2 or scrypt; ``size`` is what the cipher needs, 0 if the parameters must say."""
        kind, parameters = function.part(0, _OBJECT).value, function.part(1, _SEQUENCE)
        salt = parameters.part(0).octet_string()
        rest = list(parameters.parts[1:])
        if kind == _SCRYPT:
            n, r, p = (parameters.part(i).integer() for i in (1, 2, 3))
            if not (n > 1 and n & (n - 1) == 0 and r > 0 and p > 0):
                msg = "parameters that scrypt does not allow"
                raise DERError(msg)
            if 128 * n * r > _MAX_SCRYPT_BYTES or n * r * p > _MAX_SCRYPT_WORK or not size:
                msg = (
                    f"the keychain's password protection takes too much memory or time (scrypt, N={n if n < 1 << 40 else 'huge'}); "
                    "write it again with less"
                )
                raise KeychainError(msg)
            self.spend(n * r * p)
            return hashlib.scrypt(
                self.password, salt=salt, n=n, r=r, p=p, dklen=size, maxmem=2 * _MAX_SCRYPT_BYTES
            )
        if kind != _PBKDF2 or not rest:
            raise _unsupported("an unknown key derivation")
        rounds = self.spend(rest.pop(0).integer())
        if rest and rest[0].tag == 0x02:
            said = rest.pop(0).integer()
            if not 0 < said <= 64 or (size and said != size):
                msg = "a key of an impossible length"
                raise DERError(msg)
            size = said
        name = "sha1" if not rest else _HMACS.get(rest[0].expect(_SEQUENCE).part(0, _OBJECT).value)
        if name is None or not size:
            raise _unsupported("an unknown hash")
        return hashlib.pbkdf2_hmac(name, self.password, salt, rounds, size)

    # -- ciphers ---------------------------------------------------------------------------------------

    def decrypt(self, algorithm: Element, data: bytes) -> list[bytes]:
        """Return what the data may be: one text for each form of the password with valid padding."""
        kind = algorithm.part(0, _OBJECT).value
        parameters = algorithm.part(1, _SEQUENCE)
        texts = []
        if kind == _PBES2:
            scheme = parameters.part(1, _SEQUENCE)
            cipher, iv = scheme.part(0, _OBJECT).value, scheme.part(1).octet_string()
            size = 24 if cipher == _TRIPLE_DES else _AES.get(cipher, 0)
            if not size:
                raise _unsupported("an unknown cipher")
            key = self.stretched(parameters.part(0, _SEQUENCE), size)
            texts.append(_decrypt_cbc("3des" if cipher == _TRIPLE_DES else "aes", key, iv, data))
        elif kind in _PBES1:
            cipher_name, size = _PBES1[kind]
            salt = parameters.part(0).octet_string()
            rounds = parameters.part(1).integer()
            for wide in self.wide:
                key = derive("sha1", 1, wide, salt, self.spend(rounds), size)
                iv = derive("sha1", 2, wide, salt, self.spend(rounds), 8)
                texts.append(_decrypt_cbc(cipher_name, key, iv, data))
        else:
            raise _unsupported("an unknown cipher")
        return [text for text in texts if text]


def _content(info: Element) -> tuple[bytes, Element | None]:
    """Return type and content of a ContentInfo."""
    content = info.part(1, _WRAPPED).part(0) if len(info.parts) > 1 else None
    return info.part(0, _OBJECT).value, content


def _local_key_id(bag: Element) -> bytes:
    for attribute in bag.part(2, _SET).parts if len(bag.parts) > 2 else ():
        if attribute.part(0, _OBJECT).value == _LOCAL_KEY_ID:
            return attribute.part(1, _SET).part(0).octet_string()
    return b""


def _decrypt_cbc(cipher: str, key: bytes, iv: bytes, data: bytes) -> bytes:
    """Return the text without its padding; empty if the padding is wrong."""
    block = 16 if cipher == "aes" else 8
    if not data or len(data) % block or len(iv) != block:
        return b""
    if cipher == "rc2":
        from appliance.certs.rc2 import decrypt_rc2_cbc

        plain = decrypt_rc2_cbc(key, iv, data)
    elif cipher == "3des":
        from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES

        key = key if len(key) == 24 else key + key[:8]
        plain = Cipher(TripleDES(key), modes.CBC(iv)).decryptor().update(data)
    else:
        plain = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor().update(data)
    fill = plain[-1]
    return plain[:-fill] if 1 <= fill <= block and plain.endswith(bytes((fill,)) * fill) else b""


def _load_key(der: bytes) -> PrivateKeyTypes:
    """Return the key of a PKCS#8 structure.

    Raises:
        KeychainError: The key is of a kind that is not supported, or is damaged.
        DERError: It is no PKCS#8 structure.
    """
    kind = read_ber(der).expect(_SEQUENCE).part(1, _SEQUENCE).part(0, _OBJECT).value
    if kind not in _KEY_KINDS or len(der) > _MAX_KEY_BYTES:
        msg = "the keychain's key is of a kind or a size that is not supported; make a new one and request a certificate for it"
        raise KeychainError(msg)
    try:
        with quiet():
            # The library's own check of RSA keys tests primes: 0.1 to 10 s, with the interpreter's lock. See _check_rsa.
            key = load_der_private_key(der, None, unsafe_skip_rsa_key_validation=True)
        if isinstance(key, RSAPrivateKey):
            _check_rsa(key)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        msg = "the keychain's key cannot be read; request a new certificate with a new key"
        raise KeychainError(msg) from exc
    return key


def _check_rsa(key: RSAPrivateKey) -> None:
    """Check that the numbers of the key belong together, so that nothing is signed with a damaged key.

    Raises:
        ValueError: They do not.
    """
    own = key.private_numbers()
    p, q, d, public = own.p, own.q, own.d, own.public_numbers
    if not (
        p > 1
        and q > 1
        and p * q == public.n
        and (d * public.e) % (p - 1) == 1
        and (d * public.e) % (q - 1) == 1
        and own.dmp1 == d % (p - 1)
        and own.dmq1 == d % (q - 1)
        and (own.iqmp * q) % p == 1
    ):
        msg = "the numbers of the RSA key do not belong together"
        raise ValueError(msg)
