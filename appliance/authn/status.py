"""Ask once for a certificate's status, over plain TCP, and believe only what the CA has signed.

Source: SPVA specification 7.2, 8.4. `appliance.certmon` follows a status live.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509

from appliance.certmon.status_pv import StatusReport, decode_status
from appliance.certs.ocsp import StatusAnswer, verify_response
from appliance.certs.status import CertState, effective_state, format_date, judge
from appliance.certs.x509 import is_ca, is_self_signed, issuer_id, signed_by
from appliance.errors import ApplianceError, CertificateStatusError

if TYPE_CHECKING:
    from appliance.client.context import Context
    from appliance.config.pva import ClientConfig
    from appliance.pvdata.value import Value

__all__ = ["CheckedStatus", "fetch_status", "find_issuer", "public_context", "read_status", "verified_chain"]

_MAX_TEXT: Final = 200


def public_context(config: ClientConfig, anchors: Iterable[x509.Certificate]) -> Context:
    """Return a client for what everybody may read and what is signed: the trust anchor, and statuses.

    It shows no certificate. It uses plain TCP, because neither can depend on a certificate; TLS only where
    EPICS_PVA_NAME_SERVERS leaves nothing else.

    Args:
        config: The settings.
        anchors: What verifies servers: trust anchors, and cross-certificates of them.

    Raises:
        CertificateStatusError: Servers are reached over TLS only, and there is nothing to verify them with.
    """
    from appliance.client.context import Context

    tls = None
    if config.tls_alone:
        from appliance.authn.trust import trust_only
        from appliance.tls.context import client_context

        known = tuple(dict.fromkeys(anchors))
        trusted = [certificate for certificate in known if is_self_signed(certificate)]
        if not trusted:
            raise CertificateStatusError(
                "EPICS_PVA_NAME_SERVERS has only pvas:// servers, and there is no trust anchor to verify them with; give it with "
                "--trust-anchor FILE, or name a server without pvas://"
            )
        tls = client_context(trust_only(trusted, (c for c in known if c not in trusted)), want_staple=False)
    return Context(config, tls=tls, beacons=False)


class CheckedStatus(NamedTuple):
    """What is known of a certificate's status."""

    state: CertState
    """The state to use: UNKNOWN unless the CA's signature confirms what the service says."""
    claimed: CertState
    """What the service says, unsigned."""
    answer: StatusAnswer | None
    """The verified OCSP answer; None where it could not be verified."""
    why: str
    """Why it could not be verified; empty if it was."""
    issued: str
    expires: str
    revoked: str
    """Dates as text: signed ones if there is a verified answer, else what the service wrote."""
    report: StatusReport
    """The service's whole answer."""

    @property
    def verified(self) -> bool:
        """Whether the CA has signed it."""
        return self.answer is not None


def read_status(
    value: Value,
    *,
    issuer: x509.Certificate | None,
    serial: int,
    now: datetime,
    certificate: x509.Certificate | None = None,
) -> CheckedStatus:
    """Judge a CERT:STATUS structure about ``serial``.

    Args:
        value: The structure.
        issuer: The CA's certificate; None if none is known that leads to a trust anchor. Then nothing is verified.
        serial: The serial number that was asked about.
        now: The present time, aware.
        certificate: If given, its own dates count as well.

    Returns:
        What is known of the status.

    Raises:
        CertificateStatusError: It is not a CERT:STATUS structure.
    """
    report = decode_status(value)
    claimed = report.state
    answer: StatusAnswer | None = None
    why = ""
    if issuer is None:
        why = "no known trust anchor leads to the certificate's issuer"
    else:
        try:
            answer = verify_response(report.ocsp_response, issuer=issuer, serial=serial, now=now)
        except CertificateStatusError as error:
            why = str(error)
    if answer is None:
        # An unsigned answer may only lower a certificate's state, and UNKNOWN is the lowest.
        issued, expires = report.ocsp_status_date[:_MAX_TEXT], report.ocsp_certified_until[:_MAX_TEXT]
        revoked = report.ocsp_revocation_date[:_MAX_TEXT]
        return CheckedStatus(CertState.UNKNOWN, claimed, None, why, issued, expires, revoked, report)
    state = judge(answer.state, claimed, next_update=answer.next_update, now=now).state
    if certificate is not None:
        state = effective_state(
            state,
            now=now,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    return CheckedStatus(
        state,
        claimed,
        answer,
        "",
        format_date(answer.this_update),
        format_date(answer.next_update),
        format_date(answer.revocation_date),
        report,
    )


async def fetch_status(
    context: Context,
    pv: str,
    *,
    issuer: x509.Certificate | None,
    serial: int,
    now: datetime,
    timeout: float,
    certificate: x509.Certificate | None = None,
) -> CheckedStatus:
    """Read a status PV and judge it.

    Args:
        context: The client that reads it.
        pv: The status PV's name.
        issuer: See `read_status`.
        serial: The serial number of the certificate.
        now: The present time, aware.
        timeout: Seconds to wait for the service.
        certificate: If given, its own dates count as well.

    Raises:
        OperationError: The service does not answer.
        CertificateStatusError: Its answer is not a CERT:STATUS structure.
    """
    value = await context.get(pv, timeout=timeout)
    return read_status(value, issuer=issuer, serial=serial, now=now, certificate=certificate)


def find_issuer(identifier: str, certificates: Iterable[x509.Certificate]) -> x509.Certificate | None:
    """Return the trusted CA certificate with this issuer ID; None if there is none."""
    for certificate in certificates:
        try:
            if is_ca(certificate) and issuer_id(certificate) == identifier:
                return certificate
        except ApplianceError:
            continue
    return None


def verified_chain(
    chain: Iterable[x509.Certificate], anchors: Iterable[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """Return those of some CA certificates from which a chain of signatures leads to an anchor."""
    trusted = list(anchors)
    waiting = [c for c in chain if c not in trusted]
    found: list[x509.Certificate] = []
    progress = True
    while progress:
        progress = False
        for candidate in list(waiting):
            if any(_signed(candidate, above) for above in trusted):
                waiting.remove(candidate)
                trusted.append(candidate)
                found.append(candidate)
                progress = True
    return tuple(found)


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        if not is_ca(certificate) or is_self_signed(certificate) or not is_ca(issuer):
            return False
    except ApplianceError:
        return False
    return signed_by(certificate, issuer)
