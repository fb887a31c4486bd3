"""What a verifier hands to the certificate service: a grant, and nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple

__all__ = ["USAGES", "Grant", "ProvenIdentity", "backdated"]

USAGES: Final = ("client", "server", "ioc")
"""The usages that a certificate can be asked for, by name."""


_BACK: Final = timedelta(minutes=5)


def backdated(now: datetime, end: datetime) -> datetime:
    """The begin of a certificate that is to be used at once, also where the clock is some minutes behind.

    For one that lives less than an hour it is a tenth of its life, so that two thirds of that are still ahead.
    """
    return now - min(_BACK, max((end - now) / 10, timedelta()))


class ProvenIdentity(NamedTuple):
    """Who was proven: the pair, because a subject means nothing without its issuer."""

    issuer: str
    subject: str


class Grant(NamedTuple):
    """What one verified request may obtain; the certificate service's single signing path applies it.

    A grant is a ceiling: the service may give less (a shorter validity, an approval on top), never more.
    """

    method: str
    """The authenticator: ``jwt``, ``std``, ..."""
    subject: dict[str, str]
    """Distinguished name: keys CN, O, OU, C; an empty string means that the part is left out."""
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
