"""What a daemon does next for one keychain. Pure: facts come in, a step goes out."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from cryptography import x509

from appliance.certs.status import CertState

__all__ = ["Action", "Facts", "Failure", "Past", "Step", "next_step"]


class Action(StrEnum):
    """What to do."""

    WAIT = "wait"
    RENEW = "renew"
    """Ask the service to renew; the file stays."""
    REPLACE = "replace"
    """Ask for a new certificate, and write the file."""
    STOP = "stop"
    """Give up: the certificate was revoked."""


class Failure(StrEnum):
    """Why the last request failed."""

    TRANSIENT = "transient"
    """The service did not answer, or could not work."""
    LIMITED = "limited"
    """The service named a time to wait."""
    NO_TOKEN = "no token"  # noqa: S105 - a reason
    """There is no token that would help."""
    REFUSED = "refused"
    """The service said no."""


class Facts(NamedTuple):
    """What is known of the keychain and its certificate."""

    now: datetime
    certificate: x509.Certificate | None
    issued: datetime | None
    """When the certificate was issued, if the file says so."""
    state: CertState
    """What the service says now; UNKNOWN if it says nothing."""
    known: bool
    """Whether the service knows the certificate, as far as it has said."""
    renew_by: datetime | None
    renewed_at: datetime | None
    """When ``renew_by`` was last seen to move."""
    hint: bool
    """Whether the service has asked for a renewal since then."""


class Past(NamedTuple):
    """What was tried since the last success."""

    failures: int = 0
    last: datetime | None = None
    kind: Failure | None = None
    not_before: datetime | None = None
    """Until when nothing may be tried."""


class Step(NamedTuple):
    """What to do next."""

    action: Action
    until: datetime | None = None
    """When to ask again, with WAIT."""
    why: str = ""


def next_step(facts: Facts, past: Past, spread: float) -> Step:
    """Return what to do now.

    Args:
        facts: What is known.
        past: What was tried.
        spread: A number from 0 to 1, drawn once for each cadence, so that not all hosts renew at once.
    """
    raise NotImplementedError
