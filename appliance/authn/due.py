"""When the next request for a keychain is due: by the cadence that the certificate service sets, else by the certificate's age.

Source: SPVA specification 4.7.3, 9.4.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509

from appliance.certs.status import CertState, OCSPState, format_date, read_renew_by
from appliance.certs.x509 import renew_by

if TYPE_CHECKING:
    from appliance.authn.status import CheckedStatus

__all__ = ["Due", "cadence", "due_by_age", "due_by_status", "ended_early", "renewal_time"]

_LIFETIME_USED: Final = 2 / 3
"""Part of a certificate's lifetime after which it is replaced."""
_LATE: Final = timedelta(minutes=15)
"""This long before ``renew_by`` a renewal is due even if the service gives no hint. pxvs-cms of 2026 gives one, at most so early."""
_OLDEST: Final = 2015
"""No service of Secure PVAccess is older; a certificate may be valid from long before, because a token's `nbf` says so."""
_ENDED: Final = (
    "the certificate service says that its certificate has EXPIRED, whatever its date says, so it is useless"
)
_REVOKED: Final = "its certificate is revoked"
_FORGOTTEN: Final = (
    "the certificate service does not know its certificate (was its database restored?), so it is useless"
)


class Due(NamedTuple):
    """Whether a request is due."""

    due: bool
    when: datetime | None = None
    """From when; None if the certificate cannot be used, or has a cadence."""
    why: str = ""
    """What is wrong with the certificate apart from its age."""
    renew_by: datetime | None = None
    """When a certificate with a cadence must have been renewed."""
    is_guess: bool = False
    """Whether the certificate service was asked and did not answer, so that only the certificate's age counts."""

    @property
    def sentence(self) -> str:
        """What the user must see of it."""
        if self.renew_by is not None:
            what = "its renewal is due" if self.due else "its renewal is not due yet"
            return f"{what}; it must be renewed by {format_date(self.renew_by)}"
        if not self.due:
            when = f"not due before {format_date(self.when)}"
            return (
                f"{when} by its age; the certificate service does not answer, so it may be due earlier"
                if self.is_guess
                else when
            )
        if self.when is not None:
            return f"due: since {format_date(self.when)}"
        return f"due: {self.why or 'there is no usable certificate'}"


def renewal_time(certificate: x509.Certificate, issued: datetime | None = None) -> datetime:
    """Return when to ask for the next certificate: at two thirds of the lifetime, or of the time until renew-by if earlier.

    A certificate may be valid from long before it was ``issued``, because a token's `nbf` says so. Then the lifetime counts
    from ``issued``; otherwise each certificate would be due at once.
    """
    start = certificate.not_valid_before_utc
    end = certificate.not_valid_after_utc
    if issued is not None and start < issued < end:
        start = issued
    by = renew_by(certificate)
    if by is not None and start < by < end:
        end = by
    return start + (end - start) * _LIFETIME_USED


def cadence(seconds: int, certificate: x509.Certificate) -> datetime | None:
    """Return the date that ``renew_by`` on the wire means for this certificate; None if there is no cadence.

    Services write 0, or the certificate's own end, if it need not be renewed.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    by = read_renew_by(seconds, begin if begin.year >= _OLDEST else None)
    return by if by is not None and by < end else None


def due_by_age(certificate: x509.Certificate, issued: datetime | None, now: datetime) -> Due:
    """Return whether two thirds of the lifetime are over: the rule for certificates without a cadence."""
    when = renewal_time(certificate, issued)
    return Due(now >= when, when)


def due_by_status(certificate: x509.Certificate, report: CheckedStatus | None, now: datetime) -> Due | None:
    """Return whether a request is due according to the certificate's status; None if it says nothing about that."""
    if report is None or not report.verified:
        return None
    why = ended_early(report)
    if why:
        return Due(True, None, why)
    if report.state is CertState.REVOKED:
        # Somebody has to look at it, and a request that is not due would hide it until two thirds of the lifetime are over.
        return Due(True, None, _REVOKED)
    by = cadence(report.report.renew_by, certificate)
    if report.state is CertState.PENDING_RENEWAL:
        return Due(True, None, "", by or now)
    if by is None:
        return None
    return Due(report.report.renewal_due or now >= by - _LATE, None, "", by)


def ended_early(report: CheckedStatus | None) -> str:
    """Say why the service's signed status ends a certificate before its own date; empty if it does not.

    EXPIRED is final: a service whose clock was ahead for a moment has recorded it.
    """
    if report is None:
        return ""
    if _unknown_for_good(report):
        return _FORGOTTEN
    expired = report.claimed is CertState.EXPIRED and report.answer is not None
    return _ENDED if expired and report.state is CertState.EXPIRED else ""


def _unknown_for_good(report: CheckedStatus) -> bool:
    """Whether the service that issued a certificate has signed that it does not know it. Then it is useless for ever.

    This happens after a restore of the service's database, to certificates issued since the backup.
    """
    answer = report.answer
    return answer is not None and answer.state is OCSPState.UNKNOWN and report.claimed is CertState.UNKNOWN
