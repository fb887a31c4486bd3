"""Who signs for an authority: a key in memory, in a token, or behind a service. Pure.

Everything that is signed is written without the key (`appliance.certs.tbs`, `appliance.certs.ocsp`). A `Signer` gets the finished
octets and returns a signature, so it makes no difference where the key is.
"""

from __future__ import annotations

from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)

from appliance.certs.der import null, oid, sequence
from appliance.errors import CertificateError, SigningError

__all__ = ["SIGNATURES", "KeySigner", "Signer", "signature_algorithm"]

SIGNATURES: Final = {
    "ecdsa-sha256": sequence(oid("1.2.840.10045.4.3.2")),
    "ecdsa-sha384": sequence(oid("1.2.840.10045.4.3.3")),
    "rsa-sha256": sequence(oid("1.2.840.113549.1.1.11"), null()),
    "ed25519": sequence(oid("1.3.101.112")),
}
"""The algorithms of signatures, each with its AlgorithmIdentifier in DER (RFC 5758 3.2, RFC 4055 5, RFC 8410 3)."""
_SHA256: Final = ec.ECDSA(hashes.SHA256())
_SHA384: Final = ec.ECDSA(hashes.SHA384())


class Signer(Protocol):
    """An authority's key, wherever it is."""

    @property
    def algorithm(self) -> str:
        """One of `SIGNATURES`."""
        ...

    @property
    def is_quick(self) -> bool:
        """Whether `sign` may be called on the event loop."""
        ...

    @property
    def trouble(self) -> str:
        """Why nothing can be signed at present, as far as is known; empty if nothing is known."""
        ...

    def public_key(self) -> CertificatePublicKeyTypes:
        """Return the public half of the key."""
        ...

    def sign(self, body: bytes) -> bytes:
        """Return the signature of ``body``, in the form in which X.509 has it.

        Raises:
            SigningError: The key cannot be reached, or does not sign.
        """
        ...

    def close(self) -> None:
        """Give back what the signer holds."""
        ...


def signature_algorithm(key: CertificatePublicKeyTypes) -> str:
    """Return the algorithm, one of `SIGNATURES`, that the private half of a key signs with.

    Raises:
        CertificateError: Keys of this kind cannot sign certificates.
    """
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ecdsa-sha384" if key.curve.key_size > 256 else "ecdsa-sha256"
    if isinstance(key, rsa.RSAPublicKey):
        return "rsa-sha256"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519"
    msg = f"an authority cannot sign with a key of the type {type(key).__name__}; use RSA, P-256, P-384 or Ed25519"
    raise CertificateError(msg)


class KeySigner:
    """A key that is in memory. Its ``repr`` never shows the key."""

    is_quick: Final = True
    trouble: Final = ""

    def __init__(self, key: CertificateIssuerPrivateKeyTypes) -> None:
        """Take a key.

        Raises:
            CertificateError: Keys of this kind cannot sign certificates.
        """
        self._key = key
        self._public = key.public_key()
        self.algorithm: Final = signature_algorithm(self._public)

    def public_key(self) -> CertificatePublicKeyTypes:
        """Return the public half of the key."""
        return self._public

    def sign(self, body: bytes) -> bytes:
        """Return the signature of ``body``.

        Raises:
            SigningError: The key does not sign.
        """
        key = self._key
        try:
            if isinstance(key, ec.EllipticCurvePrivateKey):
                return key.sign(body, _SHA384 if self.algorithm == "ecdsa-sha384" else _SHA256)
            if isinstance(key, rsa.RSAPrivateKey):
                return key.sign(body, padding.PKCS1v15(), hashes.SHA256())
            assert isinstance(key, ed25519.Ed25519PrivateKey)
            return key.sign(body)
        except (ValueError, UnsupportedAlgorithm) as exc:
            msg = f"the authority's key does not sign: {exc}"
            raise SigningError(msg) from exc

    def close(self) -> None:
        """Do nothing: the key is in memory."""

    def __repr__(self) -> str:
        return f"<KeySigner {self.algorithm}>"
