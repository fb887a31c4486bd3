"""OCSP answers about certificates (RFC 6960): made and signed by a CA, and verified.

Source: SPVA specification 7.2 (``ocsp_response``), 8.4, 13. An answer is written without the CA's key (decision 103).

Clocks: an answer may be from up to ``leeway`` in the future, because the service's clock may be ahead of ours. Its end is
exact: after ``next_update`` nothing is known any more (8.4).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from appliance.certs.der import context, integer, null, octets, oid, sequence, tlv
from appliance.certs.signer import SIGNATURES, Signer
from appliance.certs.status import OCSPState
from appliance.certs.tbs import encoded_key, key_bits
from appliance.certs.x509 import UNREADABLE, quiet, subject_text
from appliance.errors import CertificateError, CertificateStatusError

__all__ = ["DEFAULT_LEEWAY", "OCSPSigner", "StatusAnswer", "read_response", "verify_response"]

DEFAULT_LEEWAY = timedelta(seconds=60)
_MAX_BYTES = 1 << 16
_STATE = {
    ocsp.OCSPCertStatus.GOOD: OCSPState.GOOD,
    ocsp.OCSPCertStatus.REVOKED: OCSPState.REVOKED,
    ocsp.OCSPCertStatus.UNKNOWN: OCSPState.UNKNOWN,
}
_HASHES = (hashes.SHA1, hashes.SHA256, hashes.SHA384, hashes.SHA512)
_SIGNATURE_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_BASIC: Final = oid("1.3.6.1.5.5.7.48.1.1")
_SHA1: Final = sequence(oid("1.3.14.3.2.26"), null())
_SUCCESSFUL: Final = b"\x0a\x01\x00"
_BIT_STRING: Final = 0x03
_GENERALIZED_TIME: Final = 0x18


class StatusAnswer(NamedTuple):
    """A verified OCSP answer. Times are aware UTC."""

    state: OCSPState
    serial: int
    this_update: datetime
    next_update: datetime
    revocation_date: datetime | None
    """When the certificate was revoked, only with ``REVOKED``."""
    der: bytes


class OCSPSigner:
    """Signs status answers in the name of one CA."""

    def __init__(
        self,
        signer: Signer,
        certificate: x509.Certificate,
        chain: tuple[x509.Certificate, ...] = (),
    ) -> None:
        """Check the key. ``chain``: the certificates above an intermediate CA; peers verify with the certificates in the answer."""
        if signer.public_key() != certificate.public_key():
            msg = f"the key does not belong to the CA {subject_text(certificate.subject)}"
            raise CertificateError(msg)
        self.signer = signer
        self._certificate = certificate
        self._responder = context(1, certificate.subject.public_bytes())
        name_hash, key_hash = issuer_hashes(certificate, hashes.SHA1())  # noqa: S303
        self._issuer = _SHA1 + octets(name_hash) + octets(key_hash)
        self._algorithm = SIGNATURES[signer.algorithm]
        sent = (link.public_bytes(Encoding.DER) for link in (certificate, *chain))
        self._certificates = context(0, sequence(*sent))

    def __repr__(self) -> str:
        return f"<OCSPSigner {subject_text(self._certificate.subject)}>"

    def sign(
        self,
        serial: int,
        state: OCSPState,
        *,
        this_update: datetime,
        next_update: datetime,
        revocation_date: datetime | None = None,
    ) -> bytes:
        """Return a basic OCSP response in DER, signed by the CA. The arguments are those of `prepare`.

        Raises:
            CertificateStatusError: The times are impossible.
            SigningError: The CA's key does not sign.
        """
        body = self.prepare(
            serial, state, this_update=this_update, next_update=next_update, revocation_date=revocation_date
        )
        return self.finish(body, self.signer.sign(body))

    def prepare(
        self,
        serial: int,
        state: OCSPState,
        *,
        this_update: datetime,
        next_update: datetime,
        revocation_date: datetime | None = None,
    ) -> bytes:
        """Return what has to be signed for an answer, with a SHA-1 CertID as the peers expect.

        Parts of a second are dropped from all times. An answer is made when it becomes true.

        Args:
            serial: The certificate's serial number, not negative.
            state: What is said of it.
            this_update: When this is true, aware.
            next_update: Until when it may be believed, aware.
            revocation_date: When it was revoked, aware; for REVOKED only. Default: ``this_update``.

        Returns:
            The octets to sign, for `finish`.

        Raises:
            CertificateStatusError: The times are impossible.
        """
        if next_update.replace(microsecond=0) <= this_update.replace(microsecond=0):
            msg = "the status would end before it begins"
            raise CertificateStatusError(msg)
        try:
            begin = _time(this_update)
            if state is OCSPState.GOOD:
                said = context(0, b"", constructed=False)
            elif state is OCSPState.REVOKED:
                said = context(1, _time(revocation_date or this_update))
            else:
                said = context(2, b"", constructed=False)
            about = sequence(self._issuer, integer(serial))
            single = sequence(about, said, begin, context(0, _time(next_update)))
            return sequence(self._responder, begin, sequence(single))
        except (ValueError, OverflowError) as exc:
            msg = f"the status of serial {serial} cannot be signed: {exc}"
            raise CertificateStatusError(msg) from exc

    def finish(self, body: bytes, signature: bytes) -> bytes:
        """Return the answer of what `prepare` returned and the signature of it."""
        basic = sequence(body, self._algorithm, tlv(_BIT_STRING, b"\0" + signature), self._certificates)
        return sequence(_SUCCESSFUL, context(0, sequence(_BASIC, octets(basic))))


def _time(when: datetime) -> bytes:
    utc = when.astimezone(UTC)
    return tlv(_GENERALIZED_TIME, f"{utc.year:04d}{utc:%m%d%H%M%S}Z".encode())


def issuer_hashes(issuer: x509.Certificate, algorithm: hashes.HashAlgorithm) -> tuple[bytes, bytes]:
    """Return the hashes of a CertID: of the issuer's name and of its public key's bits (RFC 6960 4.1.1)."""
    name = hashes.Hash(algorithm)
    name.update(issuer.subject.public_bytes())
    if isinstance(algorithm, hashes.SHA1):
        return name.finalize(), x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
    key = hashes.Hash(algorithm)
    key.update(key_bits(encoded_key(issuer.public_key())))
    return name.finalize(), key.finalize()


def verify_response(
    der: bytes,
    *,
    issuer: x509.Certificate,
    serial: int,
    now: datetime,
    leeway: timedelta = DEFAULT_LEEWAY,
) -> StatusAnswer:
    """Verify an OCSP answer about ``serial`` of ``issuer`` at ``now`` (aware).

    The issuing CA itself must have signed it: delegated responders are not accepted (13.1 names the trust anchor only).

    Args:
        der: The answer.
        issuer: Certificate of the CA that issued the certificate in question.
        serial: Serial number of the certificate in question.
        now: The present time, aware.
        leeway: How far this host's clock may be behind the service's.

    Raises:
        CertificateStatusError: There is any doubt; the text says what is wrong.
    """
    answer = read_response(der, issuer=issuer, serial=serial)
    if answer.this_update > now + leeway:
        msg = (
            f"the status is not valid before {answer.this_update:%Y-%m-%d %H:%M:%S} UTC, and this host's time is "
            f"{now:%Y-%m-%d %H:%M:%S}; check the clocks"
        )
        raise CertificateStatusError(msg)
    if answer.next_update <= now:
        msg = f"the status was valid until {answer.next_update:%Y-%m-%d %H:%M:%S} UTC; a fresh one is needed"
        raise CertificateStatusError(msg)
    return answer


def read_response(der: bytes, *, issuer: x509.Certificate, serial: int) -> StatusAnswer:
    """Verify everything in an OCSP answer except its times, to tell a wrong clock from a wrong answer.

    Never trust the result: use `verify_response` for that.

    Raises:
        CertificateStatusError: The answer does not verify.
    """
    if not der or len(der) > _MAX_BYTES:
        msg = f"the OCSP response has {len(der)} bytes; 1 to {_MAX_BYTES} are accepted"
        raise CertificateStatusError(msg)
    try:
        with quiet():
            return _read(der, issuer, serial)
    except UNREADABLE as exc:
        msg = f"the OCSP response cannot be read: {exc}"
        raise CertificateStatusError(msg) from exc


def _read(der: bytes, issuer: x509.Certificate, serial: int) -> StatusAnswer:
    response = ocsp.load_der_ocsp_response(der)
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        msg = f"the OCSP response says {response.response_status.name}, which is not a status"
        raise CertificateStatusError(msg)
    _check_responder(response, issuer)
    _check_signature(response, issuer)
    singles = list(response.responses)
    if len(singles) != 1:
        msg = f"the OCSP response holds {len(singles)} answers; exactly one is accepted"
        raise CertificateStatusError(msg)
    single = singles[0]
    _check_subject(single, serial, issuer)
    _check_extensions(response)
    if single.next_update_utc is None:
        msg = "the OCSP response does not say how long it is valid"
        raise CertificateStatusError(msg)
    if single.next_update_utc <= single.this_update_utc:
        msg = "the OCSP response ends before it begins"
        raise CertificateStatusError(msg)
    return StatusAnswer(
        _STATE[single.certificate_status],
        single.serial_number,
        single.this_update_utc,
        single.next_update_utc,
        single.revocation_time_utc,
        der,
    )


def _check_responder(response: ocsp.OCSPResponse, issuer: x509.Certificate) -> None:
    if response.responder_name is not None:
        same = response.responder_name == issuer.subject
    else:
        same = response.responder_key_hash == issuer_hashes(issuer, hashes.SHA1())[1]  # noqa: S303
    if not same:
        msg = f"the OCSP response was not made by the issuing CA {subject_text(issuer.subject)}"
        raise CertificateStatusError(msg)


def _check_signature(response: ocsp.OCSPResponse, issuer: x509.Certificate) -> None:
    key, algorithm = issuer.public_key(), response.signature_hash_algorithm
    signature, signed = response.signature, response.tbs_response_bytes
    if not isinstance(key, ed25519.Ed25519PublicKey) and not isinstance(algorithm, _SIGNATURE_HASHES):
        msg = f"the OCSP response is signed with {algorithm.name if algorithm else 'an unknown hash'}, which is too weak"
        raise CertificateStatusError(msg)
    try:
        if isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
            key.verify(signature, signed, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
            key.verify(signature, signed, ec.ECDSA(algorithm))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, signed)
        else:
            msg = f"a CA with a key of the type {type(key).__name__} is not supported"
            raise CertificateStatusError(msg)
    except InvalidSignature as exc:
        msg = f"the OCSP response's signature is not that of the CA {subject_text(issuer.subject)}"
        raise CertificateStatusError(msg) from exc


def _check_subject(single: ocsp.OCSPSingleResponse, serial: int, issuer: x509.Certificate) -> None:
    if single.serial_number != serial:
        msg = f"the OCSP response is about serial {single.serial_number}, not {serial}"
        raise CertificateStatusError(msg)
    if not isinstance(single.hash_algorithm, _HASHES):
        msg = f"the OCSP response identifies the CA by {single.hash_algorithm.name}, which is not supported"
        raise CertificateStatusError(msg)
    if (single.issuer_name_hash, single.issuer_key_hash) != issuer_hashes(issuer, single.hash_algorithm):
        msg = f"the OCSP response is about a certificate of another CA than {subject_text(issuer.subject)}"
        raise CertificateStatusError(msg)


def _check_extensions(response: ocsp.OCSPResponse) -> None:
    for found in (*response.extensions, *response.single_extensions):
        if found.critical and not isinstance(found.value, x509.OCSPNonce):
            msg = f"the OCSP response has a critical extension that is not known: {found.oid.dotted_string}"
            raise CertificateStatusError(msg)
