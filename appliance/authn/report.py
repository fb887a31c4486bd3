"""Certificates and their status as text and as JSON, as ``pvxcert`` shows them.

The blocks are those of the peers' tools, character by character: people and scripts read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from appliance.authn.status import CheckedStatus
from appliance.certmon.status_pv import StatusReport
from appliance.certs.keychain import Keychain
from appliance.certs.profiles import EXTENDED_KEY_USAGES, KEY_USAGES
from appliance.certs.schedule import DAYS, Window
from appliance.certs.status import CertState, format_date, read_renew_by
from appliance.certs.x509 import (
    UNREADABLE,
    config_pv,
    find_extension,
    is_ca,
    issuer_id,
    public_key,
    renew_by,
    san,
    serial_number,
    shown_id,
    status_pv,
    subject_key_identifier,
    subject_text,
)
from appliance.errors import ApplianceError, CertificateError

__all__ = [
    "anchor_lines",
    "certificate_facts",
    "details_lines",
    "dump_lines",
    "life_lines",
    "renewal_date",
    "schedule_lines",
    "status_facts",
    "status_lines",
    "usage_of",
    "window_facts",
]

WIDE: Final = "=" * 44
THIN: Final = "-" * 44


def usage_of(certificate: x509.Certificate) -> str:
    """Return ``client``, ``server``, ``ioc``, ``cms``, ``ca``, or an empty text for none of them."""
    try:
        if is_ca(certificate):
            return "ca"
        found = find_extension(certificate, x509.ExtendedKeyUsage)
    except ApplianceError:
        return ""
    purposes = frozenset(found or ())
    return next((usage for usage, wanted in EXTENDED_KEY_USAGES.items() if purposes == wanted), "")


def details_lines(keychain: Keychain) -> list[str]:
    """Return the block ``Certificate Details`` of a keychain that has a certificate."""
    certificate = keychain.certificate
    assert certificate is not None
    lines = [
        "Certificate Details:",
        WIDE,
        f"Certificate ID : {shown_id(keychain.issuer_id, keychain.serial)}",
        f"Entity Subject : {subject_text(certificate.subject)}",
        f"Issuer Subject : {subject_text(certificate.issuer)}",
        f"Valid From     : {format_date(certificate.not_valid_before_utc)}",
    ]
    by = renew_by(certificate)
    if by is not None:
        lines.append(f"Renew By       : {format_date(by)}")
    lines.append(f"Expires On     : {format_date(certificate.not_valid_after_utc)}")
    names = san(certificate)
    if names:
        lines.append(f"SAN            : {_names(names)}")
    config = config_pv(certificate)
    if config:
        lines.append(f"Config URI     : {config}")
    return [*lines, THIN]


def _names(names: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{kind}={text}" for kind, text in names)


def anchor_lines(anchor: x509.Certificate) -> list[str]:
    """Return a trust anchor in the same form, with its fingerprint, which is what people compare."""
    return [
        "Trust Anchor Details:",
        WIDE,
        f"Issuer ID      : {issuer_id(anchor)}",
        f"Entity Subject : {subject_text(anchor.subject)}",
        f"Valid From     : {format_date(anchor.not_valid_before_utc)}",
        f"Expires On     : {format_date(anchor.not_valid_after_utc)}",
        f"Fingerprint    : sha256:{anchor.fingerprint(SHA256()).hex()}",
        THIN,
    ]


def status_lines(identifier: str, verdict: CheckedStatus) -> list[str]:
    """Return the block ``Certificate Status``."""
    lines = [
        "Certificate Status:",
        WIDE,
        f"Certificate ID: {identifier}",
        f"Status        : {verdict.state.value}",
        f"Status Issued : {printable(verdict.issued)}",
        f"Status Expires: {printable(verdict.expires)}",
    ]
    report = verdict.report
    by = renewal_date(report)
    if by is not None:
        lines.append(f"Renew By      : {format_date(by)}")
    if by is not None or report.renewal_due:
        lines.append(f"Renewal Due   : {'yes' if report.renewal_due else 'no'}")
    if report.san:
        lines.append(f"SAN           : {printable(_names(report.san))}")
    if report.schedule:
        lines += ["Schedule:", *_window_rows(report.schedule, "")]
        if report.time_zone:
            lines.append(
                f"Time Zone     : {printable(report.time_zone)} (the hours are those of today in UTC)"
            )
    if verdict.state is CertState.REVOKED or verdict.revoked:
        lines.append(f"Revocation Date: {printable(verdict.revoked)}")
    return [*lines, THIN]


def renewal_date(report: StatusReport) -> datetime | None:
    """Return when the certificate must have been renewed, as the service says, unsigned; None if it need not be."""
    by = read_renew_by(report.renew_by)
    # A certificate that need not be renewed has its end there at C++ services.
    return None if by is None or (report.not_after and by.timestamp() >= report.not_after) else by


def _window_rows(windows: Iterable[Window], zone: str) -> list[str]:
    rows = []
    for window in windows:
        day, begin, end = window.wire
        name = "Every day" if day == "*" else DAYS[int(day)].capitalize()
        rows.append(f"  {name:<10}{begin} - {end} {zone or 'UTC'}")
    return rows


def schedule_lines(in_utc: Iterable[Window], local: Sequence[Window], zone: str) -> list[str]:
    """Return a schedule as the C++ ``pvxcert`` shows it, one window a line.

    Args:
        in_utc: Its windows in UTC.
        local: The windows as they were set, if that was in another time zone.
        zone: The name of that zone.
    """
    if not zone or not local:
        return _window_rows(in_utc, "")
    return [*_window_rows(local, zone), "In UTC, as of today:", *_window_rows(in_utc, "")]


def window_facts(windows: Iterable[Window]) -> list[dict[str, str]]:
    """Return windows for JSON, with the names of the wire's fields."""
    return [
        dict(zip(("day_of_week", "start_time", "end_time"), window.wire, strict=True)) for window in windows
    ]


def life_lines(report: StatusReport) -> list[str]:
    """Return what the service says, unsigned, about a certificate beside its status; empty if it says nothing."""
    if not report.not_after:
        return []
    lines = [f"Valid From    : {_date(report.not_before)}", f"Expires On    : {_date(report.not_after)}"]
    if report.no_status:
        lines.append("Status PV     : none; revoking this certificate stops nobody")
    return [*lines, THIN]


def _date(seconds: int) -> str:
    try:
        return format_date(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        return f"the second {seconds}"


def dump_lines(certificate: x509.Certificate) -> list[str]:
    """Return everything that a certificate says."""
    lines = [
        f"Subject        : {subject_text(certificate.subject)}",
        f"Issuer         : {subject_text(certificate.issuer)}",
        f"Serial         : {serial_number(certificate)} (0x{serial_number(certificate):x})",
        f"Not Before     : {format_date(certificate.not_valid_before_utc)}",
        f"Not After      : {format_date(certificate.not_valid_after_utc)}",
        f"Public Key     : {_key_text(certificate)}",
        f"Signature      : {_signature_text(certificate)}",
        f"SHA-256        : {certificate.fingerprint(SHA256()).hex(':').upper()}",
    ]
    try:
        lines += _extension_lines(certificate)
    except (ApplianceError, *UNREADABLE) as error:
        lines.append(f"Extensions     : cannot be read: {error}")
    return lines


def _extension_lines(certificate: x509.Certificate) -> list[str]:
    lines = [f"Key ID (SKID)  : {subject_key_identifier(certificate).hex(':').upper()}"]
    authority = find_extension(certificate, x509.AuthorityKeyIdentifier)
    if authority is not None and authority.key_identifier:
        lines.append(f"Authority (AKID): {authority.key_identifier.hex(':').upper()}")
    constraints = find_extension(certificate, x509.BasicConstraints)
    if constraints is not None:
        length = "" if constraints.path_length is None else f", path length {constraints.path_length}"
        lines.append(f"CA             : {'yes' if constraints.ca else 'no'}{length}")
    usage = find_extension(certificate, x509.KeyUsage)
    if usage is not None:
        names = [name.replace("_", " ") for name in KEY_USAGES if getattr(usage, name)]
        lines.append(f"Key Usage      : {', '.join(names)}")
    purposes = find_extension(certificate, x509.ExtendedKeyUsage)
    if purposes is not None:
        named = ", ".join(p._name if p._name != "Unknown OID" else p.dotted_string for p in purposes)
        lines.append(f"Extended Usage : {named} ({usage_of(certificate) or 'no usage of SPVA'})")
    names_ = san(certificate)
    if names_:
        lines.append(f"SAN            : {_names(names_)}")
    for label, text in (
        ("Status PV      ", status_pv(certificate)),
        ("Config URI     ", config_pv(certificate)),
        ("Renew By       ", format_date(renew_by(certificate))),
    ):
        if text:
            lines.append(f"{label}: {text}")
    known = {
        "2.5.29.14", "2.5.29.35", "2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17",
        "1.3.6.1.4.1.37427.1", "1.3.6.1.4.1.72473.1", "1.3.6.1.4.1.73639.1",
    }  # fmt: skip
    for extension in certificate.extensions:
        if extension.oid.dotted_string not in known:
            critical = " (critical)" if extension.critical else ""
            lines.append(f"Extension      : {extension.oid.dotted_string}{critical}")
    return lines


def _key_text(certificate: x509.Certificate) -> str:
    try:
        key = public_key(certificate)
    except CertificateError:
        return "cannot be read"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    return "Ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else type(key).__name__


def _signature_text(certificate: x509.Certificate) -> str:
    oid = certificate.signature_algorithm_oid
    return oid._name if oid._name != "Unknown OID" else oid.dotted_string


def certificate_facts(keychain: Keychain, path: str) -> dict[str, Any]:
    """Return a keychain for JSON output; dates in ISO form."""
    certificate = keychain.certificate
    facts: dict[str, Any] = {"keychain": path}
    if certificate is not None:
        by = renew_by(certificate)
        facts |= {
            "cert_id": shown_id(keychain.issuer_id, keychain.serial),
            "subject": subject_text(certificate.subject),
            "issuer": subject_text(certificate.issuer),
            "usage": usage_of(certificate),
            "not_before": certificate.not_valid_before_utc.isoformat(),
            "not_after": certificate.not_valid_after_utc.isoformat(),
            "renew_by": None if by is None else by.isoformat(),
            "san": [f"{kind}={text}" for kind, text in san(certificate)],
            "status_pv": keychain.status_pv,
            "chain": [subject_text(c.subject) for c in keychain.chain],
        }
    facts["trust_anchors"] = [
        {"subject": subject_text(a.subject), "fingerprint": f"sha256:{a.fingerprint(SHA256()).hex()}"}
        for a in keychain.anchors
    ]
    return facts


def status_facts(verdict: CheckedStatus) -> dict[str, Any]:
    """Return a status for JSON output."""
    answer = verdict.answer
    by = renewal_date(verdict.report)
    return {
        "state": verdict.state.value,
        "claimed": verdict.claimed.value,
        "verified": verdict.verified,
        "why": verdict.why,
        "issued": None if answer is None else answer.this_update.isoformat(),
        "expires": None if answer is None else answer.next_update.isoformat(),
        "revoked": None
        if answer is None or answer.revocation_date is None
        else answer.revocation_date.isoformat(),
        "renew_by": None if by is None else by.isoformat(),
        "renewal_due": verdict.report.renewal_due,
        "schedule": window_facts(verdict.report.schedule),
        "time_zone": verdict.report.time_zone,
        "san": [str(name) for name in verdict.report.san],
        "not_before": _iso(verdict.report.not_before),
        "not_after": _iso(verdict.report.not_after),
        "no_status": verdict.report.no_status,
    }


def _iso(seconds: int) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else None
    except (ValueError, OverflowError, OSError):
        return None


def printable(text: str) -> str:
    """Make text from outside safe for one line of output."""
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
