"""The structures that the service's PVs have.

Source: SPVA specification 7.2, 9, 10.2, and what the peers of 2025 and 2026 send and expect.

The structure of CERT:STATUS is in ``certmon.status_pv``, where those find it who read it.
"""

from __future__ import annotations

from typing import Final

from appliance.authn.ccr import request_type
from appliance.pvdata import BOOL, FLOAT64, STRING, UINT32, UINT64, StructType
from appliance.pvdata.nt import ALARM, NTEnum, NTScalar, NTTable

__all__ = [
    "CREATED",
    "HEALTH",
    "LIST",
    "METRICS",
    "ROOT",
]

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
        ("cluster_mode", BOOL),
        ("cluster_members", UINT32),
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
        ("status_extension", STRING),
    ]
)

REQUEST: Final = request_type()
"""A request as the standard authenticator sends it; others put something into ``verifier``."""
