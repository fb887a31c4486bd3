"""A small public key infrastructure for the tests of all parts.

`site()` is made once per process: keys are EC P-256, since RSA keys take long to make. Times are relative to the
real clock because OpenSSL reads it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from appliance.certs.keychain import Keychain, dump_keychain, dump_trust_anchors, load_keychain, make_keychain
from appliance.certs.ocsp import OCSPSigner
from appliance.certs.profiles import (
    CertificateAuthority,
    build_ca,
    build_certificate,
    generate_key,
    subject_name,
)
from appliance.certs.signer import KeySigner
from appliance.certs.status import OCSPState
from appliance.certs.x509 import cert_id, issuer_id

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
PASSWORD = b"p\xc3\xa4ssword"


class Authority:
    """A certificate authority that issues what a test asks for."""

    def __init__(
        self,
        name: str = "EPICS Root Certificate Authority",
        *,
        algorithm: str = "ec-p256",
        begun: timedelta = 30 * DAY,
    ) -> None:
        self.key = generate_key(algorithm)
        self.signer = KeySigner(self.key)
        self.certificate = build_ca(
            self.signer,
            subject=subject_name(
                name,
                country="US",
                organization="certs.epics.org",
                organizational_unit="EPICS Certificate Authority",
            ),
            not_before=NOW - begun,
            not_after=NOW + 3650 * DAY,
            serial=1,
        )
        self.beside: tuple[x509.Certificate, ...] = ()
        """Cross-certificates, for the keychains that it issues from now on."""
        self.chain: tuple[x509.Certificate, ...] = ()
        self.next_serial = 10_000_000_000_000_000_000

    @property
    def issuer(self) -> CertificateAuthority:
        return CertificateAuthority(self.signer, self.certificate, self.chain)

    @property
    def issuer_id(self) -> str:
        return issuer_id(self.certificate)

    def intermediate(self, name: str = "EPICS Intermediate CA", *, path_length: int | None = 0) -> Authority:
        """An authority below this one."""
        below = Authority(name)
        below.certificate = build_ca(
            below.signer,
            subject=subject_name(name),
            not_before=NOW - 30 * DAY,
            not_after=NOW + 3000 * DAY,
            serial=2,
            issuer=self.issuer,
            path_length=path_length,
        )
        below.chain, below.beside = (self.certificate, *self.chain), self.beside
        return below

    def crossed(
        self,
        other: Authority,
        *,
        not_before: datetime = NOW - 2 * DAY,
        not_after: datetime = NOW + 365 * DAY,
        path_length: int | None = None,
    ) -> x509.Certificate:
        """A cross-certificate: the name and the key of ``other``, signed by this authority."""
        return build_ca(
            other.signer,
            subject=other.certificate.subject,
            not_before=not_before,
            not_after=not_after,
            serial=3,
            issuer=self.issuer,
            path_length=path_length,
        )

    def keychain(
        self,
        name: str = "client",
        usage: str = "client",
        *,
        status: bool = False,
        not_before: datetime = NOW - DAY,
        not_after: datetime = NOW + DAY,
        algorithm: str = "ec-p256",
        serial: int | None = None,
        **more: Any,
    ) -> Keychain:
        """A key with its certificate and chain. ``status`` adds the status extension with the usual PV name."""
        if serial is None:
            serial = self.next_serial
            self.next_serial += 1
        key = generate_key(algorithm)
        if status:
            more.setdefault("status_pv", f"CERT:STATUS:{cert_id(self.issuer_id, serial)}")
        certificate = build_certificate(
            self.issuer,
            subject=subject_name(name, organization="localhost"),
            public_key=key.public_key(),
            usage=usage,
            not_before=not_before,
            not_after=not_after,
            serial=serial,
            **more,
        )
        return make_keychain(key, [certificate, self.certificate, *self.chain, *self.beside])

    def expired(self, name: str = "client", usage: str = "client", **more: Any) -> Keychain:
        return self.keychain(name, usage, not_before=NOW - 2 * DAY, not_after=NOW - DAY, **more)

    def trust_only(self) -> Keychain:
        """What a client needs that authenticates servers only."""
        return load_keychain(dump_trust_anchors([self.chain[-1] if self.chain else self.certificate]))

    def status(
        self,
        serial: int,
        state: OCSPState = OCSPState.GOOD,
        *,
        this_update: datetime = NOW,
        valid: timedelta = timedelta(minutes=30),
    ) -> bytes:
        """A signed status answer."""
        signer = OCSPSigner(self.signer, self.certificate, self.chain)
        return signer.sign(serial, state, this_update=this_update, next_update=this_update + valid)


class Site(NamedTuple):
    """The certificates that most tests need."""

    ca: Authority
    server: Keychain
    client: Keychain
    ioc: Keychain
    other_ca: Authority


@cache
def site() -> Site:
    ca = Authority()
    return Site(
        ca,
        ca.keychain("softioc", "server"),
        ca.keychain("client", "client"),
        ca.keychain("ioc", "ioc"),
        Authority("Another Certificate Authority"),
    )


def write_keychain(path: Path, keychain: Keychain, password: bytes = b"") -> Path:
    """A keychain file, readable by its owner only. It comes whole, in one step: somebody may be looking for it."""
    return replace_file(path, dump_keychain(keychain, password))


def replace_file(path: Path, content: bytes) -> Path:
    """Put a file for its owner only in the place of what is there, in one step."""
    fresh = path.with_name(path.name + ".new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    return fresh.rename(path)


def write_pem(directory: Path, keychain: Keychain) -> tuple[Path, Path, Path]:
    """Certificate, key and trust anchors as PEM files, as the openssl command wants them."""
    paths = directory / "cert.pem", directory / "key.pem", directory / "ca.pem"
    pem = serialization.Encoding.PEM
    if keychain.certificate is not None and keychain.key is not None:
        paths[0].write_bytes(keychain.certificate.public_bytes(pem))
        paths[1].write_bytes(
            keychain.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
    paths[2].write_bytes(b"".join(anchor.public_bytes(pem) for anchor in keychain.anchors))
    return paths
