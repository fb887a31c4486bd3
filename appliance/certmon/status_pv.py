"""The structure of CERT:STATUS PVs, written by the certificate service and read by everybody else.

Source: SPVA specification 7.2, and what the peers of 2025 and 2026 send and expect.

One structure has the state twice. Peers of 2025 read ``status``, those of 2026 ``value``. Many take the index for the
state, whatever the choices say, and know seven states, without SCHEDULED_OFFLINE. So both fields have these seven
(docs/decisions/0031-seven-states-on-the-wire.md). Our readers accept either field alone, with seven states or eight, by
the text of the choice and never by its number.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, NamedTuple

from appliance.certmon.wire_arrays import (
    MAX_SHOWN_NAMES,
    SAN_ARRAY,
    SCHEDULE_ARRAY,
    read_rows,
    read_schedule,
    read_zone,
)
from appliance.certs.san import San
from appliance.certs.schedule import Window
from appliance.certs.status import (
    OCSP_CHOICES,
    STATUS_CLASS,
    WIRE_CHOICES,
    CertState,
    StatusClass,
    format_date,
    ocsp_state,
    parse_state,
)
from appliance.errors import CertificateStatusError, PVDataError
from appliance.pvdata.nt import ALARM, ENUM, TIME, NTEnum
from appliance.pvdata.types import BOOL, STRING, UINT8, UINT64, ArrayType, StructType
from appliance.pvdata.value import Value

__all__ = [
    "STATUS_TYPE",
    "StatusReport",
    "decode_status",
    "enum_index",
    "ocsp_response",
    "status_template",
    "write_status",
]

_WORST_FIRST: Final = (StatusClass.BAD, StatusClass.UNKNOWN, StatusClass.SUSPENDED, StatusClass.GOOD)

STATUS_TYPE: Final = StructType(
    [
        ("status", NTEnum()),
        ("serial", UINT64),
        ("state", STRING),
        ("ocsp_status", NTEnum()),
        ("ocsp_state", STRING),
        ("ocsp_status_date", STRING),
        ("ocsp_certified_until", STRING),
        ("ocsp_revocation_date", STRING),
        ("ocsp_response", ArrayType(UINT8)),
        ("renew_by", UINT64),
        ("renewal_due", BOOL),
        ("pvacms_node_id", STRING),
        ("schedule", SCHEDULE_ARRAY),
        ("san", SAN_ARRAY),
        ("value", ENUM),
        ("alarm", ALARM),
        ("timeStamp", TIME),
        ("display", StructType([("description", STRING)])),
        ("not_before", UINT64),
        ("not_after", UINT64),
        ("no_status", BOOL),
        ("time_zone", STRING),
    ]
)

_ALARMS: Final = {
    CertState.VALID: (0, ""),
    CertState.UNKNOWN: (3, "not known here"),
    CertState.EXPIRED: (2, "expired"),
    CertState.REVOKED: (2, "revoked"),
    CertState.PENDING: (1, "not valid yet"),
    CertState.PENDING_APPROVAL: (1, "waits for approval"),
    CertState.PENDING_RENEWAL: (1, "waits for renewal"),
    CertState.SCHEDULED_OFFLINE: (1, "offline by schedule"),
}
"""Severity and message of the alarm of each state."""


class StatusReport(NamedTuple):
    """What one CERT:STATUS value says. Nothing in it is verified: see ``certs.ocsp.verify_response``."""

    state: CertState
    """UNKNOWN also for a state that this version does not know."""
    serial: int
    ocsp_response: bytes
    """DER; empty if the service has signed nothing."""
    ocsp_state: str
    ocsp_status_date: str
    ocsp_certified_until: str
    ocsp_revocation_date: str
    renew_by: int
    """As it was sent, 0 if the certificate needs no renewal: see ``certs.status.read_renew_by``."""
    renewal_due: bool
    not_before: int = 0
    """POSIX seconds; 0 if the service does not say, as with services of others."""
    not_after: int = 0
    """POSIX seconds; 0 if the service does not say."""
    no_status: bool = False
    """Whether the certificate names no status PV, so that nobody follows its status."""
    schedule: tuple[Window, ...] = ()
    """The hours in which it is in use, in UTC; empty for always."""
    time_zone: str = ""
    """IANA name of the time zone in which the schedule was set; empty for UTC, or if the service does not say."""
    san: tuple[San, ...] = ()
    """Its alternative names, as the service has issued them."""


def decode_status(value: Value) -> StatusReport:
    """Read a CERT:STATUS value of either form.

    Raises:
        CertificateStatusError: It is not one.
    """
    told = _hours_and_names(value)
    try:
        return StatusReport(
            _state(value, strange=told is None),
            _number(value, "serial"),
            ocsp_response(value),
            _text(value, "ocsp_state"),
            _text(value, "ocsp_status_date"),
            _text(value, "ocsp_certified_until"),
            _text(value, "ocsp_revocation_date"),
            _number(value, "renew_by"),
            value.get("renewal_due") is True,
            _number(value, "not_before"),
            _number(value, "not_after"),
            value.get("no_status") is True,
            *(told or ()),
        )
    except (PVDataError, TypeError, ValueError) as error:
        raise CertificateStatusError(f"the PV is not a certificate status: {error}") from error


def _hours_and_names(value: Value) -> tuple[tuple[Window, ...], str, tuple[San, ...]] | None:
    """Return schedule, time zone and alternative names; None if one, or ``renew_by``, has a form that nobody has sent yet."""
    if not isinstance(value.get("renew_by", 0), int):
        return None
    try:
        names = read_rows(value, "san", ("type", "value"), MAX_SHOWN_NAMES)
        return read_schedule(value), read_zone(value), tuple(San(*row) for row in names)
    except ValueError:
        return None


def _state(value: Value, *, strange: bool) -> CertState:
    """Return the state in ``value``; if it has two, the one that permits less.

    A state that this version does not know, and an index without a choice, are UNKNOWN whatever the other field says. So is
    one that permits more beside something that is ``strange``.
    """
    choices = [text for path in ("value", "status.value") if (text := _choice(value, path)) is not None]
    state = _text(value, "state")
    if not state and not any(choices):
        raise CertificateStatusError("the PV has no certificate state, so it is not a status PV")
    if state == CertState.SCHEDULED_OFFLINE:
        choices = [
            text for text in choices if text != CertState.UNKNOWN
        ]  # all that seven states can say about it
    told = [parse_state(text) for text in choices]
    if strange:
        told.append(CertState.UNKNOWN)
    if state:
        told.append(parse_state(state))
    return min(told, key=lambda state: _WORST_FIRST.index(STATUS_CLASS[state]))


def ocsp_response(value: Value) -> bytes:
    """Return the signed answer in a CERT:STATUS value; empty if there is none.

    Raises:
        CertificateStatusError: The field has another type. Anybody can answer for a status PV, and a number there would
            otherwise be taken as the number of bytes to make.
    """
    found = value.get("ocsp_response")
    if found is None or isinstance(found, bytes):
        return found or b""
    if getattr(found, "itemsize", 0) != 1 or not hasattr(found, "tobytes"):
        raise CertificateStatusError(
            "the PV is not a certificate status: ocsp_response is not an array of bytes"
        )
    return bytes(found.tobytes())


def _choice(value: Value, path: str) -> str | None:
    """Return the text of the choice, "" for an index without a choice, None if there is no such enumeration."""
    index, choices = value.get(f"{path}.index"), value.get(f"{path}.choices")
    if not isinstance(index, int) or not isinstance(choices, tuple) or not choices:
        return None
    return str(choices[index]) if 0 <= index < len(choices) else ""


def _text(value: Value, path: str) -> str:
    found = value.get(path)
    return found if isinstance(found, str) else ""


def _number(value: Value, path: str) -> int:
    found = value.get(path)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def enum_index(state: CertState) -> int:
    """Return the index of a state in ``WIRE_CHOICES``; that of UNKNOWN for a state that is not there."""
    return WIRE_CHOICES.index(state) if state in WIRE_CHOICES else 0


def status_template() -> Value:
    """Return a status with everything set that never changes."""
    value = Value(STATUS_TYPE)
    value["status.value.choices"] = value["value.choices"] = WIRE_CHOICES
    value["ocsp_status.value.choices"] = OCSP_CHOICES
    return value


def write_status(
    store: list[Any],
    state: CertState,
    serial: int,
    ocsp_response: Any,
    *,
    published: datetime | None = None,
    this_update: datetime,
    next_update: datetime,
    revocation_date: datetime | None = None,
) -> None:
    """Write a status into the store of a `status_template`.

    Args:
        store: A copy of the template's store; the fields that are not named here stay as they are.
        state: The certificate's state.
        serial: The certificate's serial number.
        ocsp_response: The signed answer in DER, as an array of octets.
        published: When this status is made, aware; None if that is when the answer was signed.
        this_update: When the answer was signed, aware.
        next_update: Until when it holds, aware.
        revocation_date: When the certificate was revoked, aware; None where it was not.
    """
    at = STATUS_TYPE.offsets
    severity, message = _ALARMS[state]
    signed = ocsp_state(state)
    signed_at = int(this_update.timestamp())
    seconds = signed_at if published is None else int(published.timestamp())
    store[at["status.value.index"]] = store[at["value.index"]] = enum_index(state)
    for part in ("status.", ""):
        store[at[f"{part}alarm.severity"]] = severity
        store[at[f"{part}alarm.status"]] = 1 if severity else 0
        store[at[f"{part}alarm.message"]] = message
        store[at[f"{part}timeStamp.secondsPastEpoch"]] = seconds
    store[at["ocsp_status.timeStamp.secondsPastEpoch"]] = signed_at
    store[at["serial"]] = serial
    store[at["state"]] = state.value
    store[at["ocsp_status.value.index"]] = OCSP_CHOICES.index(signed)
    store[at["ocsp_state"]] = signed.value
    store[at["ocsp_status_date"]] = format_date(this_update)
    store[at["ocsp_certified_until"]] = format_date(next_update)
    store[at["ocsp_revocation_date"]] = format_date(revocation_date)
    store[at["ocsp_response"]] = ocsp_response
