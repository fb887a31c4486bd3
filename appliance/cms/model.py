"""The terms of a certificate's life: who asks, what is asked for, and how the clock changes a record's state."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from appliance.certs.status import CertState, effective_state, next_boundary
from appliance.certs.x509 import shown_subject
from appliance.cms.store import CertRecord

__all__ = [
    "SERVICE",
    "Actor",
    "NewCertificate",
    "boundary_of",
    "posix",
    "shown_name",
    "shown_time",
    "state_now",
    "subject_key",
    "utc",
]

_SEPARATOR: Final = "\x1f"


class Actor(NamedTuple):
    """Who asks, for the audit."""

    method: str = "service"
    account: str = ""
    peer: str = ""

    def facts(self) -> dict[str, str]:
        """Return what the audit records about the actor."""
        return {"method": self.method, "account": self.account[:256], "peer": self.peer[:128]}


SERVICE: Final = Actor("service", "pvacms", "")


class NewCertificate(NamedTuple):
    """A certificate to be recorded."""

    serial: int
    subject: Mapping[str, str]
    usage: str
    method: str
    identity: str
    skid: str
    not_before: datetime
    not_after: datetime
    approval_needed: bool
    inherit: bool
    """Whether an earlier approval of the same subject counts, if the requester proves that it was theirs."""
    roll_over: bool
    """Whether the subject may have another live certificate, because its identity was verified."""
    facts: Mapping[str, str]
    """For the audit, without secrets."""
    key_id: str = ""
    """What tells the key from others: `appliance.certs.public_keys.key_identity`."""
    proved: bool = False
    """Whether the requester has proved that it holds the private key."""
    peer_serial: int = 0
    """Serial number of our certificate that the requester's connection uses; 0: none."""
    inherit_unproven: bool = False
    """Whether an earlier approval counts for anyone who claims the same subject."""
    no_status: bool = False
    """Whether the certificate names no status PV."""

    @property
    def key(self) -> str:
        """The subject as the database compares it."""
        return subject_key(self.subject)

    def is_of(self, record: CertRecord) -> bool:
        """Whether the requester has proved that a certificate of the same subject is theirs."""
        return (
            (self.proved and record.skid == self.skid)
            or record.serial == self.peer_serial
            or (bool(self.identity) and record.identity == self.identity)
        )

    @property
    def proof(self) -> str:
        """What was proved, for the audit."""
        if self.identity:
            return "token and key" if self.proved else "token"
        if self.peer_serial:
            return "certificate"
        return "key" if self.proved else "none"


def subject_key(subject: Mapping[str, str]) -> str:
    """Return a subject as the database compares it."""
    return _SEPARATOR.join(subject.get(part, "") for part in ("CN", "O", "OU", "C"))


def split_subject_key(key: str) -> dict[str, str]:
    """Return the parts of `subject_key`."""
    return dict(zip(("CN", "O", "OU", "C"), key.split(_SEPARATOR), strict=True))


def shown_name(subject: Mapping[str, str]) -> str:
    """Show a subject in the order in which certificates and tools have its parts."""
    return shown_subject((part, subject.get(part, "")) for part in ("CN", "C", "O", "OU"))


def posix(when: datetime) -> int:
    """Whole POSIX seconds."""
    return int(when.timestamp())


def utc(seconds: int) -> datetime:
    """Return the aware time of POSIX seconds."""
    return datetime.fromtimestamp(seconds, UTC)


def state_now(record: CertRecord, now: datetime) -> CertState:
    """Return the state of a record at ``now``, from its recorded state and what the clock has changed since."""
    return effective_state(
        record.state,
        now=now,
        not_before=utc(record.not_before),
        not_after=utc(record.not_after),
        renew_by=utc(record.renew_by) if record.renew_by else None,
    )


def boundary_of(record: CertRecord, now: datetime) -> float | None:
    """Return POSIX time of the next change that the clock will make to a record."""
    when = next_boundary(
        record.state,
        now=now,
        not_before=utc(record.not_before),
        not_after=utc(record.not_after),
        renew_by=utc(record.renew_by) if record.renew_by else None,
    )
    return None if when is None else when.timestamp()


def shown_time(when: datetime) -> str:
    """Return a time as the audit has it."""
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
