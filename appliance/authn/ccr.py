"""The certificate creation request and its answer, as CERT:CREATE takes and gives them: in one place for both ends.

Source: SPVA specification 9.1 and 9.2; peers of 2025 and 2026 send the same fields in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from appliance.certs.status import CertState, parse_state
from appliance.errors import PVDataError, RemoteError
from appliance.pvdata.types import BOOL, STRING, UINT16, UINT64, StructType
from appliance.pvdata.value import Value

__all__ = [
    "USAGE_NUMBERS",
    "CertReply",
    "CertRequest",
    "read_reply",
    "request_type",
    "request_value",
]

USAGE_NUMBERS: Final[Mapping[str, int]] = {"client": 1, "server": 2, "ioc": 3}
"""How the wire spells a certificate's usage; ``ioc`` is both ends of a connection."""

MAX_PEM_CHARS: Final = 256 * 1024
"""Longest certificate chain, as text, that is read from an answer."""
_MAX_NAME: Final = 500


class CertRequest(NamedTuple):
    """What a requester asks for. Its ``repr`` does not show what proves the identity."""

    type: str
    """The authenticator: ``std`` or ``jwt``."""
    usage: str
    """A key of `USAGE_NUMBERS`."""
    pub_key: str = ""
    """The public key in PEM form; empty asks for the trust anchor only."""
    name: str = ""
    country: str = ""
    organization: str = ""
    organizational_unit: str = ""
    not_before: int = 0
    """POSIX seconds; 0 leaves it to the certificate service."""
    not_after: int = 0
    """POSIX seconds; 0 leaves it to the certificate service."""
    config_uri_base: str = ""
    no_status: bool = False
    verifier: Mapping[str, str] = {}
    """What the authenticator needs beyond that, such as the token of ``jwt``: may hold secrets."""

    def __repr__(self) -> str:
        return f"<CertRequest {self.type} {self.usage} {self.name!r}>"


def request_type(*verifier: str) -> StructType:
    """The type of a request whose sub-structure ``verifier`` has these text fields."""
    query = StructType(
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
            ("verifier", StructType([(name, STRING) for name in verifier])),
        ]
    )
    return StructType(
        [("scheme", STRING), ("authority", STRING), ("path", STRING), ("query", query)], "epics:nt/NTURI:1.0"
    )


def request_value(path: str, request: CertRequest) -> Value:
    """The argument of the call of ``path``. Raises PVDataError for text that does not fit."""
    query = {
        "type": request.type,
        "name": request.name,
        "country": request.country,
        "organization": request.organization,
        "organization_unit": request.organizational_unit,
        "usage": USAGE_NUMBERS[request.usage],
        "not_before": request.not_before,
        "not_after": request.not_after,
        "pub_key": request.pub_key,
        "config_uri_base": request.config_uri_base,
        "no_status": request.no_status,
    }
    value = Value(request_type(*request.verifier), {"scheme": "pva", "path": path, "query": query})
    for name, text in request.verifier.items():
        value[f"query.verifier.{name}"] = text
    value.mark()
    return value


class CertReply(NamedTuple):
    """What the certificate service answered; nothing in it is proven yet."""

    state: CertState
    issuer: str
    serial: int
    cert: str
    """The certificate and the chain above it, in PEM form; empty where the one that the requester has was renewed."""
    status_pv: str
    renew_by: int = 0
    """As it was sent: see ``certs.status.read_renew_by``."""


def read_reply(value: Value | None) -> CertReply:
    """Read the answer of CERT:CREATE.

    One without certificate, that tells a state and a serial number, says that the certificate of that number was renewed
    (9.2, 9.4). Raises RemoteError for one that has not the fields, or fields that are far too long.
    """
    if value is None:
        raise RemoteError("the certificate service answered without a certificate; check that it is a PVACMS")
    texts: dict[str, str] = {}
    for field, limit in (("cert", MAX_PEM_CHARS), ("state", 64), ("issuer", 64), ("status_pv", _MAX_NAME)):
        texts[field] = _text(value, field, limit)
    serial = _number(value, "serial")
    if not texts["cert"] and not (texts["state"] and serial):
        raise RemoteError("the certificate service's answer has no usable field 'cert'; nothing was written")
    return CertReply(
        parse_state(texts["state"]),
        texts["issuer"].lower(),
        serial,
        texts["cert"],
        texts["status_pv"],
        _number(value, "renew_by"),
    )


def _number(value: Value, field: str) -> int:
    found = _field(value, field)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def _text(value: Value, field: str, limit: int) -> str:
    text = _field(value, field)
    if text is None:
        return ""
    if not isinstance(text, str) or len(text) > limit:
        raise RemoteError(f"the certificate service's answer has no usable field {field!r}")
    return text


def _field(value: Value, field: str) -> object:
    try:
        found: object = value.get(field)
    except PVDataError:
        return None
    return found
