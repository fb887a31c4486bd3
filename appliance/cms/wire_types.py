"""The types and values of the PVs that tell of the service: CERT:ROOT, CERT:ISSUER, CERT:HEALTH and CERT:METRICS.

Source: SPVA specification 10.2; the fields of CERT:HEALTH and CERT:METRICS are those of the reference of 2026, with ours behind them.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from appliance.certs.x509 import pem_chain, serial_number
from appliance.pvdata import BOOL, FLOAT64, STRING, UINT32, UINT64, ArrayType, StructType, Value
from appliance.pvdata.nt import ALARM, NTEnum, NTScalar

__all__ = ["HEALTH", "MEMBER", "METRICS", "ROOT", "root_value"]

ROOT: Final = StructType(
    [
        ("issuer", STRING),
        ("serial", UINT64),
        ("name", STRING),
        ("org", STRING),
        ("org_unit", STRING),
        ("cert", STRING),
        ("alarm", ALARM),
        ("bundle", STRING),
    ]
)
"""Ours is ``bundle``, in PEM form: the present root, and the cross-certificates that lead from former roots to it and back."""

MEMBER: Final = StructType(
    [
        ("node_id", STRING),
        ("version_major", UINT32),
        ("version_minor", UINT32),
        ("version_patch", UINT32),
        ("connected", BOOL),
        ("name", STRING),
        ("last_seen", STRING),
    ]
)
"""One node of those that share a database; the first five fields as in the reference's list of members."""

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
        ("members", ArrayType(MEMBER)),
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
        ("renewals", UINT64),
        ("certs_pending_renewal", UINT64),
        ("certs_scheduled_offline", UINT64),
        ("audit_seq", UINT64),
        ("audit_verified_seq", UINT64),
        ("certs_watched", UINT64),
        ("feed_lag_ms", UINT64),
        ("db_reconnects", UINT64),
        ("cluster_members", UINT64),
        ("certs_checked", UINT64),
        ("certs_former", UINT64),
        ("certs_ending", UINT64),
    ],
    "epics:nt/NTScalar:1.0",
)


def root_value(
    issuer_id: str,
    certificate: x509.Certificate,
    chain: tuple[x509.Certificate, ...],
    bundle: tuple[x509.Certificate, ...] = (),
) -> Value:
    """Return the value of CERT:ROOT and CERT:ISSUER: a CA's certificate with those above it.

    Args:
        issuer_id: The issuer ID in the names of the service's PVs.
        certificate: The CA's certificate.
        chain: Those above it.
        bundle: What a peer needs to trust this authority and former ones.
    """

    def part(oid: x509.ObjectIdentifier) -> str:
        found = certificate.subject.get_attributes_for_oid(oid)
        return str(found[0].value) if found else ""

    return Value(
        ROOT,
        {
            "issuer": issuer_id,
            "serial": serial_number(certificate) & ((1 << 64) - 1),
            "name": part(NameOID.COMMON_NAME),
            "org": part(NameOID.ORGANIZATION_NAME),
            "org_unit": part(NameOID.ORGANIZATIONAL_UNIT_NAME),
            "cert": pem_chain(certificate, *chain),
            "bundle": pem_chain(*bundle),
        },
    )
