"""The structures that the service's PVs have.

Source: SPVA specification 7.2, 9, 10.2, and what the peers of 2025 and 2026 send and expect.

The status of a certificate is told twice in one structure. Peers of 2025 take the number ``status.value.index`` for
the state, whatever the choices say, and have no SCHEDULED_OFFLINE; those of 2026 look at ``value``, in whose choices it
stands before EXPIRED. Each finds its own form where it looks for it, in its own order.
"""

from __future__ import annotations

from typing import Final

from appliance.certs.status import OCSP_CHOICES, STATE_CHOICES, CertState
from appliance.pvdata import BOOL, FLOAT64, STRING, UINT8, UINT16, UINT64, ArrayType, StructType, Value
from appliance.pvdata.nt import ALARM, ENUM, TIME, NTEnum, NTScalar, NTTable

__all__ = [
    "CHOICES_2025",
    "CREATED",
    "HEALTH",
    "LIST",
    "METRICS",
    "ROOT",
    "STATUS",
    "enum_index",
    "status_template",
]

CHOICES_2025: Final = tuple(text for text in STATE_CHOICES if text != CertState.SCHEDULED_OFFLINE)
_DISPLAY: Final = StructType([("description", STRING)])

STATUS: Final = StructType(
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
        (
            "schedule",
            ArrayType(StructType([("day_of_week", STRING), ("start_time", STRING), ("end_time", STRING)])),
        ),
        ("san", ArrayType(StructType([("type", STRING), ("value", STRING)]))),
        ("value", ENUM),
        ("alarm", ALARM),
        ("timeStamp", TIME),
        ("display", _DISPLAY),
    ]
)

CREATED: Final = StructType(
    [
        ("status", NTEnum()),
        ("issuer", STRING),
        ("serial", UINT64),
        ("state", STRING),
        ("cert_id", STRING),
        ("status_pv", STRING),
        ("renew_by", UINT64),
        ("expiration", UINT64),
        ("cert", STRING),
        ("alarm", ALARM),
    ]
)

ROOT: Final = StructType(
    [
        ("issuer", STRING),
        ("serial", UINT64),
        ("name", STRING),
        ("org", STRING),
        ("org_unit", STRING),
        ("cert", STRING),
        ("alarm", ALARM),
    ]
)

HEALTH: Final = StructType(
    [
        *NTEnum().fields,
        ("db_ok", BOOL),
        ("ca_valid", BOOL),
        ("uptime_secs", UINT64),
        ("cert_count", UINT64),
        ("last_check", STRING),
    ],
    "epics:nt/NTEnum:1.0",
)

METRICS: Final = StructType(
    [
        *NTScalar(UINT64, display=True).fields,
        ("certs_created", UINT64),
        ("certs_revoked", UINT64),
        ("avg_ccr_time_ms", FLOAT64),
        ("db_size_bytes", UINT64),
        ("uptime_secs", UINT64),
        ("ccrs_refused", UINT64),
        ("ccrs_rate_limited", UINT64),
        ("ccrs_in_flight", UINT64),
        ("certs_pending_approval", UINT64),
        ("status_signed", UINT64),
        ("db_commits", UINT64),
    ],
    "epics:nt/NTScalar:1.0",
)

LIST: Final = NTTable(
    [
        ("cert_id", STRING),
        ("state", STRING),
        ("name", STRING),
        ("organization", STRING),
        ("organization_unit", STRING),
        ("country", STRING),
        ("usage", STRING),
        ("type", STRING),
        ("not_before", UINT64),
        ("not_after", UINT64),
        ("status_date", UINT64),
        ("created", UINT64),
    ]
)

REQUEST: Final = StructType(
    [
        ("scheme", STRING),
        ("authority", STRING),
        ("path", STRING),
        (
            "query",
            StructType(
                [
                    ("type", STRING),
                    ("name", STRING),
                    ("country", STRING),
                    ("organization", STRING),
                    ("organization_unit", STRING),
                    ("usage", UINT16),
                    ("not_before", UINT64),
                    ("not_after", UINT64),
                    ("pub_key", STRING),
                    ("config_uri_base", STRING),
                    ("no_status", BOOL),
                    ("verifier", StructType([])),
                ]
            ),
        ),
    ],
    "epics:nt/NTURI:1.0",
)
"""A request as the standard authenticator sends it; others put something into ``verifier``."""


def status_template() -> Value:
    """A status with everything set that never changes."""
    value = Value(STATUS)
    value["status.value.choices"] = CHOICES_2025
    value["value.choices"] = STATE_CHOICES
    value["ocsp_status.value.choices"] = OCSP_CHOICES
    return value


def enum_index(state: CertState) -> tuple[int, int]:
    """The index of a state in the choices of 2025 (UNKNOWN where it is none of them), and in those of 2026."""
    return (
        CHOICES_2025.index(state) if state in CHOICES_2025 else 0,
        STATE_CHOICES.index(state),
    )
