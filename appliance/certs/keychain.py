"""PKCS#12 keychains: one key, its certificate, the chain above it and the trust anchors.

Source: SPVA specification 4.1.1 (keychain profile) and 4.6 (trust anchors).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from appliance.certs.crossed import belonging, is_same_authority, sent_above
from appliance.certs.pkcs12 import Bag, write_pkcs12
from appliance.certs.pkcs12_read import Contents, read_pkcs12
from appliance.certs.x509 import (
    UNREADABLE,
    check_extended_key_usage,
    common_name,
    find_extension,
    is_ca,
    is_self_signed,
    issuer_id,
    load_der,
    public_key,
    serial_number,
    shown_id,
    signed_by,
    status_pv,
    subject_text,
)
from appliance.errors import CertificateError, KeychainError

__all__ = [
    "Keychain",
    "Password",
    "Revealing",
    "chain_above",
    "check_keychain",
    "dump_keychain",
    "dump_trust_anchors",
    "ended_anchor_warnings",
    "ended_anchors",
    "load_key",
    "load_keychain",
    "make_keychain",
]

_MAX_BYTES = 1 << 18
_MAX_CERTIFICATES = 64
_MAX_CHAIN = 8


class Revealing(Protocol):
    """A secret that hides its text until asked, such as a password from the configuration."""

    def reveal(self) -> str:
        """Return the secret text."""


Password = bytes | Revealing | None


class Keychain(NamedTuple):
    """The content of one PKCS#12 file. Immutable; its ``repr`` never shows the key."""

    key: PrivateKeyTypes | None
    certificate: x509.Certificate | None
    """The certificate of ``key``; ``None`` in a keychain with trust anchors only."""
    chain: tuple[x509.Certificate, ...]
    """Certificates above ``certificate``, its direct issuer first, the root last."""
    anchors: tuple[x509.Certificate, ...]
    """Self-signed CA certificates: what this keychain trusts."""
    crossed: tuple[x509.Certificate, ...] = ()
    """Cross-certificates of the anchors (`appliance.certs.crossed`). They are no anchors: each one leads to an anchor, or to
    a root that a peer may know.
    """

    @property
    def is_trust_only(self) -> bool:
        """Whether it has no identity of its own, so that it only authenticates servers."""
        return self.certificate is None

    def anchors_alone(self) -> Keychain:
        """Return a keychain with the same trust anchors that proves nothing."""
        return Keychain(None, None, (), self.anchors, self.crossed)

    def goes_on(self, former: Keychain) -> bool:
        """Whether it proves the same identity as ``former`` and trusts everybody whom ``former`` trusted."""
        return self.certificate == former.certificate and self._trusts_all_of(former)

    def takes_over(self, former: Keychain) -> bool:
        """Whether another authority has certified the identity of ``former``, its key and all names, and nobody is trusted less."""
        one, other = self.certificate, former.certificate
        if one is None or other is None or self.issuer is None or former.issuer is None:
            return False
        return (
            one.subject == other.subject
            and public_key(one) == public_key(other)
            and find_extension(one, x509.SubjectAlternativeName)
            == find_extension(other, x509.SubjectAlternativeName)
            and not is_same_authority(self.issuer, former.issuer)
            and self._trusts_all_of(former)
        )

    def _trusts_all_of(self, former: Keychain) -> bool:
        present = (*self.anchors, *self.crossed)
        return all(
            any(is_same_authority(trusted, known) for known in present)
            for trusted in (*former.anchors, *former.crossed)
        )

    @property
    def sent_above(self) -> tuple[x509.Certificate, ...]:
        """What a peer gets above ``certificate``: the chain, with cross-certificates in front of the root."""
        return sent_above(self.chain, self.crossed)

    @property
    def issuer(self) -> x509.Certificate | None:
        """The certificate that signed ``certificate``; ``certificate`` itself if it is self-signed."""
        if self.certificate is None:
            return None
        return self.chain[0] if self.chain else self.certificate

    @property
    def issuer_id(self) -> str:
        """First eight hex digits of the issuer's subject key identifier, empty without a certificate."""
        return "" if self.issuer is None else issuer_id(self.issuer)

    @property
    def serial(self) -> int:
        """The certificate's serial number, 0 without a certificate."""
        return 0 if self.certificate is None else serial_number(self.certificate)

    @property
    def cert_id(self) -> str:
        """``issuer_id:serial`` as people see it, empty without a certificate."""
        return "" if self.certificate is None else shown_id(self.issuer_id, self.serial)

    @property
    def status_pv(self) -> str:
        """Name of the certificate's status PV, empty if it names none."""
        return "" if self.certificate is None else status_pv(self.certificate)

    @property
    def subject(self) -> str:
        """The certificate's subject as text, empty without a certificate."""
        return "" if self.certificate is None else subject_text(self.certificate.subject)

    def __repr__(self) -> str:
        held = "trust anchors only" if self.certificate is None else f"{self.subject} {self.cert_id}"
        return f"<Keychain {held}, anchors: {', '.join(subject_text(a.subject) for a in self.anchors)}>"


def load_keychain(data: bytes, password: Password = None) -> Keychain:
    """Read the content of a PKCS#12 file.

    No password and an empty one are the same for a user, so both are tried. The key must match its certificate, and a chain
    must lead from there to a self-signed CA certificate in the same file. `check_keychain` checks dates.

    Raises:
        KeychainError: The file cannot be used; the text says what to do.
    """
    if not data:
        msg = "the keychain file is empty; restore it from its backup or request a new certificate"
        raise KeychainError(msg)
    if len(data) > _MAX_BYTES:
        msg = f"the keychain is larger than {_MAX_BYTES} bytes; check that the file is a PKCS#12 keychain"
        raise KeychainError(msg)
    found = read_pkcs12(data, _password_bytes(password), source=str(getattr(password, "source", "")))
    if len(found.certificates) > _MAX_CERTIFICATES:
        msg = (
            f"the keychain holds more than {_MAX_CERTIFICATES} certificates; remove those that are not needed"
        )
        raise KeychainError(msg)
    try:
        return _assemble(found.key, *_sorted(found))
    except (*UNREADABLE, CertificateError) as exc:
        msg = f"a certificate in the keychain cannot be used: {exc}; request a new certificate"
        raise KeychainError(msg) from exc


def check_keychain(keychain: Keychain, *, now: datetime, usage: str) -> None:
    """Refuse a keychain that a peer would refuse.

    A trust anchor outside the own chain may have expired: then it authenticates nobody, and the others are still good (see
    `ended_anchors`).

    Args:
        keychain: The keychain.
        now: The present time, aware.
        usage: ``client`` or ``server``.

    Raises:
        KeychainError: A peer would refuse it; the text says what to do.
    """
    if keychain.anchors and len(ended_anchors(keychain, now)) == len(keychain.anchors):
        for anchor in keychain.anchors:
            _check_dates("trust anchor", anchor, now, "get the site's new trust anchor")
    if keychain.certificate is None:
        if usage == "server":
            msg = "the keychain holds trust anchors only; a server needs its own certificate: request one"
            raise KeychainError(msg)
        return
    _check_dates("certificate", keychain.certificate, now, "request a new one")
    for certificate in keychain.chain:
        _check_dates(
            "issuing certificate", certificate, now, "ask the administrator of the certificate service"
        )
    if is_ca(keychain.certificate):
        msg = (
            f"the keychain's certificate {keychain.subject} belongs to a certificate authority; "
            f"use a keychain with a {usage} certificate"
        )
        raise KeychainError(msg)
    try:
        check_extended_key_usage(keychain.certificate, usage)
    except CertificateError as exc:
        msg = f"the keychain cannot be used for a {usage}: {exc}; request a certificate for that usage"
        raise KeychainError(msg) from exc


def ended_anchors(keychain: Keychain, now: datetime) -> tuple[x509.Certificate, ...]:
    """Return the trust anchors that authenticate nobody at ``now``, because they have expired or are not valid yet."""
    return tuple(c for c in keychain.anchors if not c.not_valid_before_utc <= now <= c.not_valid_after_utc)


def ended_anchor_warnings(keychain: Keychain, now: datetime) -> list[str]:
    """Return one sentence for each trust anchor that is not used because of its dates."""
    return [
        f"the trust anchor {subject_text(c.subject)} is valid only from {c.not_valid_before_utc:%Y-%m-%d} to "
        f"{c.not_valid_after_utc:%Y-%m-%d} and is ignored; write the keychain again without it"
        for c in ended_anchors(keychain, now)
    ]


def load_key(data: bytes, password: Password = None) -> PrivateKeyTypes:
    """Return the private key of a PKCS#12 file, even if its certificates are unusable, to request a new one with it.

    Raises:
        KeychainError: The file cannot be read, or holds no key.
    """
    if not data or len(data) > _MAX_BYTES:
        msg = "the keychain file is empty or far too large, so there is no key to reuse"
        raise KeychainError(msg)
    key = read_pkcs12(data, _password_bytes(password), source=str(getattr(password, "source", ""))).key
    if key is None:
        msg = "the keychain holds no private key to reuse"
        raise KeychainError(msg)
    return key


def make_keychain(key: PrivateKeyTypes, certificates: Sequence[x509.Certificate]) -> Keychain:
    """Return a keychain from a key, its certificate (first) and the chain, checked as `load_keychain` does.

    Raises:
        KeychainError: The keychain cannot be read or used.
    """
    if not certificates:
        msg = "no certificate came with the key"
        raise KeychainError(msg)
    return _assemble(key, certificates[0], list(certificates[1:]))


def chain_above(
    certificate: x509.Certificate, others: Sequence[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """Return those of ``others`` that lead from a certificate to a self-signed authority, the root last.

    Raises:
        KeychainError: They do not.
    """
    return _chain(certificate, list(others))


def dump_keychain(keychain: Keychain, password: Password = None, *, issued: datetime | None = None) -> bytes:
    """Return a PKCS#12 file that OpenSSL, pvxs and Java read: key and certificate linked, with the chain and anchors.

    AES-256-CBC and a SHA-256 MAC, also with the empty password (specification 4.1.1). ``issued`` is stored with the key, for
    `signing_time`.

    Raises:
        KeychainError: The file cannot be made.
    """
    secret = _password_bytes(password)
    if keychain.key is None or keychain.certificate is None:
        return dump_trust_anchors(keychain.anchors, password, crossed=keychain.crossed)
    name = common_name(keychain.certificate.subject) or keychain.cert_id
    link = keychain.certificate.fingerprint(SHA1())  # noqa: S303
    others = _unique((*keychain.sent_above, *keychain.anchors, *keychain.crossed))
    bags = [
        Bag(keychain.certificate.public_bytes(Encoding.DER), name, link),
        *(_authority_bag(c, keychain) for c in others if c != keychain.certificate),
    ]
    plain = keychain.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return write_pkcs12(bags, Bag(plain, name, link, signed=issued), secret)


def dump_trust_anchors(
    anchors: Iterable[x509.Certificate],
    password: Password = None,
    *,
    crossed: Sequence[x509.Certificate] = (),
) -> bytes:
    """Return a PKCS#12 file of trust anchors, marked so that Java accepts them as such, and of their cross-certificates.

    Raises:
        KeychainError: A certificate is not a trust anchor, or there is none.
    """
    certificates = _unique(anchors)
    for certificate in certificates:
        if not (is_ca(certificate) and is_self_signed(certificate)):
            msg = f"{subject_text(certificate.subject)} is not a self-signed CA certificate and cannot be a trust anchor"
            raise KeychainError(msg)
    if not certificates:
        msg = "there is no trust anchor to write"
        raise KeychainError(msg)
    held = Keychain(None, None, (), certificates, tuple(crossed))
    bags = [_authority_bag(certificate, held) for certificate in _unique((*certificates, *crossed))]
    return write_pkcs12(bags, None, _password_bytes(password))


def _authority_bag(certificate: x509.Certificate, keychain: Keychain) -> Bag:
    name = common_name(certificate.subject) or certificate.fingerprint(SHA1()).hex()  # noqa: S303
    # Java looks at no date of what is marked, so a former root would be trusted for ever.
    trusted = certificate not in keychain.crossed
    return Bag(certificate.public_bytes(Encoding.DER), name, trusted=trusted)


def _check_dates(what: str, certificate: x509.Certificate, now: datetime, remedy: str) -> None:
    subject = subject_text(certificate.subject)
    if now > certificate.not_valid_after_utc:
        msg = f"the {what} {subject} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC; {remedy}"
        raise KeychainError(msg)
    if now < certificate.not_valid_before_utc:
        msg = (
            f"the {what} {subject} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC; "
            "check this machine's clock"
        )
        raise KeychainError(msg)


def _password_bytes(password: Password) -> bytes:
    if password is None:
        return b""
    if isinstance(password, bytes):
        return password
    return password.reveal().encode()


def _sorted(found: Contents) -> tuple[x509.Certificate | None, list[x509.Certificate]]:
    """Return the key's own certificate, and the others. Of several for one key, the linked one counts."""
    everything = [(load_der(bag.der), bag.local_key_id) for bag in found.certificates]
    leaf = None
    if found.key is not None:
        own = [(linked, c) for c, linked in everything if _same_key(found.key, c)]
        leaf = next((c for linked, c in own if linked and linked == found.local_key_id), None)
        # A root's key also has certificates that other roots have signed.
        leaf = leaf or next((c for _, c in own if is_self_signed(c)), None) or next((c for _, c in own), None)
    return leaf, [c for c, _ in everything if c is not leaf]


def _assemble(
    key: PrivateKeyTypes | None, leaf: x509.Certificate | None, pool: list[x509.Certificate]
) -> Keychain:
    if key is not None and leaf is None:
        # Some writers leave localKeyId out; the public key links the pair equally well.
        leaf = next((c for c in pool if _same_key(key, c)), None)
        if leaf is None:
            msg = "the keychain holds a key but no certificate for it; request a certificate with this key"
            raise KeychainError(msg)
        pool = [certificate for certificate in pool if certificate != leaf]
    if key is None:
        if leaf is not None:
            pool = [leaf, *pool]
            leaf = None
        stray = next((c for c in pool if not is_ca(c)), None)
        if stray is not None:
            msg = (
                f"the keychain holds the certificate {subject_text(stray.subject)} without its private key; "
                "use the keychain that was written when the certificate was requested"
            )
            raise KeychainError(msg)
    if key is not None and leaf is not None and not _same_key(key, leaf):
        msg = "the keychain's private key does not belong to its certificate; request a new certificate"
        raise KeychainError(msg)
    anchors = _unique(
        c for c in ([*pool, leaf] if leaf is not None else pool) if is_ca(c) and is_self_signed(c)
    )
    if not anchors:
        msg = (
            "the keychain holds no trust anchor (a self-signed certificate of a certificate authority); "
            "write it again with the whole chain"
        )
        raise KeychainError(msg)
    chain = () if leaf is None else _chain(leaf, pool)
    return Keychain(key, leaf, chain, anchors, belonging((c for c in pool if c != leaf), anchors, chain))


def _chain(leaf: x509.Certificate, pool: list[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Return the certificates above ``leaf`` up to a self-signed one. Of several chains, the one that is valid longest.

    An authority may occur twice, self-signed and cross-signed by another one that has expired or is missing. So the chains
    are built from their upper ends down: each authority gets the best of its chains, and only that.
    """
    if is_self_signed(leaf):
        return ()
    authorities = [c for c in pool if is_ca(c) and c != leaf]
    ways: dict[x509.Certificate, tuple[x509.Certificate, ...]] = {
        c: (c,) for c in authorities if is_self_signed(c)
    }
    waiting = [c for c in authorities if c not in ways]
    while ways:
        best = max(ways, key=lambda c: (min(a.not_valid_after_utc for a in ways[c]), -len(ways[c])))
        way = ways.pop(best)
        if signed_by(leaf, best):
            return way
        if len(way) == _MAX_CHAIN:
            continue
        for below in [c for c in waiting if signed_by(c, best)]:
            waiting.remove(below)
            ways[below] = (below, *way)
    broken = leaf
    for _ in range(_MAX_CHAIN):
        above = next((c for c in authorities if signed_by(broken, c)), None)
        if above is None:
            break
        broken = above
    msg = (
        f"the keychain's chain is incomplete: the issuer {subject_text(broken.issuer)} of "
        f"{subject_text(broken.subject)} is missing or did not sign it; "
        "write the keychain again with the whole chain"
    )
    raise KeychainError(msg)


def _same_key(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    try:
        return _spki(key.public_key()) == _spki(public_key(certificate))  # type: ignore[arg-type]
    except CertificateError:
        return False


def _spki(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _unique(certificates: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    seen: dict[bytes, x509.Certificate] = {}
    for certificate in certificates:
        seen.setdefault(certificate.public_bytes(Encoding.DER), certificate)
    return tuple(seen.values())
