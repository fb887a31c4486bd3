"""What a verifier hands to the certificate service: a grant, and nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal, NamedTuple, get_args

from appliance.certs.san import San

__all__ = ["USAGES", "Grant", "ProvenIdentity", "Usage", "backdated"]

Usage = Literal["client", "server", "ioc"]
"""What a requested certificate is for."""
USAGES: Final[tuple[Usage, ...]] = get_args(Usage)
"""The names of the usages that a request can ask for."""

_BACK: Final = timedelta(minutes=5)


def backdated(now: datetime, end: datetime) -> datetime:
    """Return the start of validity for a certificate that must be usable at once, even if a clock is some minutes slow.

    For a lifetime below one hour it is a tenth of the lifetime, so that two thirds of the lifetime are still ahead.
    """
    return now - min(_BACK, max((end - now) / 10, timedelta()))


class ProvenIdentity(NamedTuple):
    """Who was proven: issuer and subject, because a subject means nothing without its issuer."""

    issuer: str
    subject: str


class Grant(NamedTuple):
    """What one verified request may obtain. The certificate service's only signing path applies it.

    A grant is a ceiling: the service may give less (a shorter validity, or only after approval), never more.
    """

    method: str
    """The authenticator: ``jwt``, ``std``, ..."""
    subject: dict[str, str]
    """Distinguished name: keys CN, O, OU, C. An empty string leaves the part out."""
    not_before: datetime
    """Start of the certificate's validity, aware, UTC."""
    not_after: datetime
    """Latest end of the certificate's validity, aware, UTC."""
    approval_needed: bool
    """Whether an administrator must approve before the certificate becomes VALID."""
    identity: ProvenIdentity | None
    """The verified identity, or None where the method proves none."""
    audit: dict[str, str]
    """Facts for the audit log, free of secrets and of control characters."""
    renew_by: datetime | None = None
    """Latest time, aware, at which the certificate must be renewed; None: it need not be."""
    san: tuple[San, ...] = ()
    """Alternative names that the subject may have; canonical."""
    repeated: int = 0
    """When the proof was used for the first time (POSIX seconds), by the same key; 0: never before. Its holder may have lost the
    answer. If it did not, nothing is granted."""
