"""Certificates that the service is to know though its database does not, as after the loss of a database."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

import sqlalchemy as sa
from cryptography import x509

from appliance.authn.report import usage_of
from appliance.certs.keychain import load_keychain
from appliance.certs.public_keys import key_identity
from appliance.certs.status import CertState
from appliance.certs.x509 import (
    is_ca,
    public_key,
    san,
    serial_number,
    shown_id,
    signed_by,
    status_pv,
    subject_key_identifier,
    subject_parts,
)
from appliance.cms.issuing import Issuing
from appliance.cms.model import SERVICE, posix, shown_name, shown_time, split_subject_key, subject_key, utc
from appliance.cms.schema import certs
from appliance.cms.setup import say
from appliance.cms.transaction import CertRecord, Transaction
from appliance.config.files import read_regular
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError, KeychainError

__all__ = ["preload_certificates"]

_LIMIT: Final = 1 << 18


def preload_certificates(files: Sequence[str], issuing: Issuing) -> None:
    """Record certificates of this authority that the database does not know, as after the loss of a database.

    Args:
        files: PEM, or keychains without a password; of each the first certificate.
        issuing: Knows the authority and the database.

    Raises:
        ConfigurationError: A file cannot be read, or its certificate is not one of this authority's subjects.
    """
    for path in files:
        certificate = _preloaded(path, issuing.issuer.certificate)
        record, more = _record_of(certificate, posix(issuing.lifecycle.clock()))

        def job(
            transaction: Transaction, record: CertRecord = record, more: Mapping[str, object] = more
        ) -> bool:
            known = sa.select(certs.c.serial).where(certs.c.serial == record.serial)
            if transaction.connection.execute(known).first() is not None:
                return False
            transaction.add(record, more)
            parts = split_subject_key(record.subject)
            facts = {**SERVICE.facts(), "subject": shown_name(parts), "usage": record.usage}
            facts |= {
                "not_before": shown_time(utc(record.not_before)), "not_after": shown_time(utc(record.not_after)),
                "no_status": "yes" if record.no_status else "no",
            }  # fmt: skip
            transaction.audit(
                record.state_date, "create", record.serial, {**facts, "state": "VALID", "why": "preload"}
            )
            return True

        if issuing.lifecycle.store.run(job):
            say(f"Certificate preloaded   : {shown_id(issuing.names.issuer_id, record.serial)} from {path}")


def _preloaded(path: str, authority: x509.Certificate) -> x509.Certificate:
    read = read_regular(path, _LIMIT)
    try:
        if b"-----BEGIN CERTIFICATE-----" in read:
            certificate = x509.load_pem_x509_certificates(read)[0]
        else:
            found = load_keychain(read, Secret()).certificate
            if found is None:
                raise ConfigurationError(
                    "it has trust anchors only, and no certificate to preload", file=path
                )
            certificate = found
    except KeychainError as error:
        raise ConfigurationError(
            f"a certificate to preload must be PEM, or in a keychain without a password: {error}", file=path
        ) from error
    except ValueError as error:
        raise ConfigurationError("the certificate to preload cannot be read", file=path) from error
    if not signed_by(certificate, authority) or is_ca(certificate):
        raise ConfigurationError(
            "the certificate to preload is not one that this certificate authority has issued to a client or server",
            file=path,
        )
    if not 0 < serial_number(certificate) < 1 << 63:
        raise ConfigurationError(
            "the database cannot hold the certificate to preload: its serial number has more than 63 bits",
            file=path,
        )
    return certificate


def _record_of(certificate: x509.Certificate, now: int) -> tuple[CertRecord, dict[str, object]]:
    found = dict(reversed(subject_parts(certificate.subject)))
    parts = {short: found.get(short, "") for short in ("CN", "O", "OU", "C")}
    record = CertRecord(
        serial=serial_number(certificate),
        subject=subject_key(parts),
        usage=usage_of(certificate),
        method="preload",
        not_before=posix(certificate.not_valid_before_utc),
        not_after=posix(certificate.not_valid_after_utc),
        renew_by=0,
        state=CertState.VALID,
        state_date=now,
        approved=True,
        delivered=1,
        skid=subject_key_identifier(certificate).hex(),
        no_status=not status_pv(certificate),
        san=json.dumps(sorted(san(certificate)), separators=(",", ":")) if san(certificate) else "",
    )
    more = {column: parts[part] for column, part in {"cn": "CN", "o": "O", "ou": "OU", "c": "C"}.items()}
    return record, {**more, "created": now, "key_id": key_identity(public_key(certificate))}
