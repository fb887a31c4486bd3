"""Whether a request renews a certificate that its requester has already. Pure.

Source: SPVA specification 9.4. Who may renew is decided by what the service recorded when it issued: the same subject, key,
usage, authenticator and identity. See docs/decisions/0080.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from appliance.certs.san import in_certificate
from appliance.certs.status import CertState
from appliance.cms.model import NewCertificate, is_renewal_due, names_of, posix, san_text
from appliance.cms.transaction import IN_DOUBT, CertRecord
from appliance.errors import RequestRefused

__all__ = ["Fresh", "Renewed", "judge"]

RENEWABLE: Final = frozenset(
    {CertState.VALID, CertState.PENDING, CertState.PENDING_RENEWAL, CertState.SCHEDULED_OFFLINE}
)
"""A request that waits for approval is not renewed: its requester asks again, and the new request takes its place."""
_UNPROVEN: Final = (
    "the request does not prove that the certificate is yours: sign it with the certificate's key, as authnstd does (this "
    "host's clock must be right to 15 minutes, and each signature counts once), or ask over a TLS connection with that certificate"
)


class Renewed(NamedTuple):
    """The request renews this certificate; nothing is signed."""

    record: CertRecord
    renew_by: int
    """The new date (POSIX seconds); 0: it need not be renewed any more."""


class Fresh(NamedTuple):
    """The request gets a new certificate, although it could renew this one."""

    release: CertRecord
    """The old certificate, which need not be renewed any more and runs out undisturbed."""


def judge(
    request: NewCertificate, live: Sequence[tuple[CertRecord, CertState]], now: datetime
) -> Renewed | Fresh | None:
    """Decide what a request means for the certificates that its subject has.

    Args:
        request: The request, whose proof of identity was verified.
        live: The certificates of the subject that are not at their end, with their present states.
        now: The present time, aware.

    Returns:
        None if no certificate of the subject can be renewed by it, so that the request is one for a new certificate.

    Raises:
        RequestRefused: It is a renewal that is not permitted; the text says why.
    """
    for record in _candidates(request, live, now):
        found = _by_token(request, record) if request.identity else _by_name(request, record, now)
        if found is not None:
            return found
    return None


def _candidates(
    request: NewCertificate, live: Sequence[tuple[CertRecord, CertState]], now: datetime
) -> Iterator[CertRecord]:
    """Yield the certificates that the request may mean, the one that lives longest first.

    One of which nobody knows whether its holder got it is not meant: for who proves that it is theirs it gives way to a new one
    (`may_supersede`). Without a proof it stays, so a request that comes when a renewal is due renews it: that harms nobody.
    """
    found = [
        record
        for record, state in live
        if record.renew_by
        and state in RENEWABLE
        and (record.delivered != IN_DOUBT or (not request.is_of(record) and is_renewal_due(record, now)))
        and bool(record.no_status) == request.no_status
        and (record.skid, record.usage, record.method, record.identity)
        == (request.skid, request.usage, request.method, request.identity)
    ]
    yield from sorted(
        found, key=lambda record: (record.not_after, record.not_before, record.serial), reverse=True
    )


def _by_token(request: NewCertificate, record: CertRecord) -> Renewed | Fresh | None:
    """Judge a request with a token; None: a new certificate, which leaves this one as it is."""
    if request.san:
        if san_text(request.san) != record.san:
            return None
    elif not set(in_certificate(names_of(record.san))) <= set(request.san_proved):
        # The issuer no longer entitles the holder to these names, so they end with the last renewal.
        return None
    horizon = posix(request.renew_by or request.not_after)
    if horizon >= record.not_after:
        return Fresh(record)
    return None if request.renew_by is None else Renewed(record, max(record.renew_by, horizon))


def _by_name(request: NewCertificate, record: CertRecord, now: datetime) -> Renewed:
    """Judge a request without proof of identity. A name has one certificate, so there is no other way out.

    Raises:
        RequestRefused: The renewal is not permitted.
    """
    open_to_all = not request.approval_needed or (request.inherit and request.inherit_unproven)
    if not (open_to_all or request.is_of(record)):
        raise RequestRefused(_UNPROVEN)
    if request.san and san_text(request.san) != record.san:
        raise RequestRefused(
            "your certificate has other alternative names, and a renewal does not change them; have it revoked first"
            if record.san
            else "your certificate has no alternative names, and a renewal does not add any; have it revoked first"
        )
    # Not ``request.renew_by``: that depends on the end that the requester asks for.
    horizon = max(posix(now), record.not_before) + request.cadence
    if not request.cadence or horizon >= record.not_after:
        return Renewed(record, 0)
    return Renewed(record, max(record.renew_by, horizon))
