"""A request that only claims a name: the account and the host, or what the user gives instead.

Source: SPVA documentation, standard authenticator; specification 9.1 (type ``std``, empty verifier).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from appliance.authn.ccr import CertRequest
from appliance.authn.settings import RequesterSettings
from appliance.certs.profiles import subject_name

__all__ = ["as_before", "std_request", "std_subject"]


def std_subject(settings: RequesterSettings) -> x509.Name:
    """Return the requested subject.

    Raises:
        CertificateError: For a part that cannot be in a certificate.
    """
    return subject_name(
        settings.name,
        country=settings.country,
        organization=settings.organization,
        organizational_unit=settings.organizational_unit,
    )


_PARTS: Final = {
    "name": NameOID.COMMON_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
    "organizational_unit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "country": NameOID.COUNTRY_NAME,
}


def as_before(settings: RequesterSettings, certificate: x509.Certificate | None) -> RequesterSettings:
    """Return the settings for a request that keeps the existing keychain's identity, except for the parts that the user set.

    A keychain is renewed more often than it is made for somebody else. A subject with parts that a request cannot have
    is left alone; the request is then refused, because it would be for another subject. If the user sets another subject,
    nothing is taken from the keychain, so that the refusal names the subject that --force gives.
    """
    if certificate is None:
        return settings
    there = {attribute.oid: str(attribute.value) for attribute in certificate.subject}
    if not set(_PARTS.values()).issuperset(there) or len(there) != len(list(certificate.subject)):
        return settings
    kept: dict[str, Any] = {
        part: there.get(oid, "") for part, oid in _PARTS.items() if part not in settings.named
    }
    same = settings._replace(**kept)
    named = {part: getattr(same, part) for part in _PARTS}
    return same if named == {part: there.get(oid, "") for part, oid in _PARTS.items()} else settings


def std_request(settings: RequesterSettings, *, now: datetime) -> Callable[[str], CertRequest]:
    """Return the function that makes the request from the public key.

    Raises:
        ConfigurationError: For an endless duration.
    """
    end = settings.validity.after(now) if settings.validity else None

    def make(pub_key: str) -> CertRequest:
        return CertRequest(
            type="std",
            usage=settings.usage,
            pub_key=pub_key,
            name=settings.name,
            country=settings.country,
            organization=settings.organization,
            organizational_unit=settings.organizational_unit,
            # The C++ service reads a begin of 0 as 1970, which is before its authority's begin, and refuses.
            not_before=int(now.timestamp()),
            not_after=int(end.timestamp()) if end is not None else 0,
            no_status=settings.no_status,
            schedule=settings.schedule,
            time_zone=settings.time_zone,
            san=settings.san,
            config_uri_base=settings.config_uri_base,
        )

    return make
