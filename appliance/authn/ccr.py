"""The certificate creation request and its answer, as CERT:CREATE takes and gives them. Both ends use this module.

Source: SPVA specification 9.1 and 9.2; peers of 2025 and 2026 send the same fields in the same order. What is not theirs,
such as ``time_zone``, follows at the end, in a request only if it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from appliance.authn.proof import MAX_PROOF, PROOF_FIELD
from appliance.certmon.wire_arrays import (
    MAX_SHOWN_NAMES,
    SAN_ARRAY,
    SCHEDULE_ARRAY,
    read_rows,
    read_schedule,
    read_zone,
    san_array,
    schedule_array,
)
from appliance.certs.san import MOST_NAMES, San, canonical, read_san
from appliance.certs.schedule import Window
from appliance.certs.status import CertState, parse_state
from appliance.errors import PVDataError, RemoteError, RequestRefused
from appliance.pvdata.nt import ALARM, ENUM, TIME, NTEnum
from appliance.pvdata.types import BOOL, STRING, UINT16, UINT64, StructType
from appliance.pvdata.value import Value

__all__ = [
    "REPLY_TYPE",
    "USAGE_NUMBERS",
    "CertReply",
    "CertRequest",
    "parse_request",
    "read_reply",
    "request_type",
    "request_value",
]

USAGE_NUMBERS: Final[Mapping[str, int]] = {"client": 1, "server": 2, "ioc": 3}
"""The number of each usage on the wire; ``ioc`` means both client and server."""

_USAGES: Final[Mapping[int, str]] = {number: usage for usage, number in USAGE_NUMBERS.items()} | {
    8: "ioc",
    11: "ioc",
}
"""Usages by number. Peers of 2025 have 3 for both ends; the specification's bit for IOCs is 8."""
_MAX_TEXT: Final = 256
_MAX_KEY: Final = 16384
_MAX_TOKEN: Final = 16384
MAX_PEM_CHARS: Final = 256 * 1024
"""Longest certificate chain, as text, that is read from an answer."""
_MAX_NAME: Final = 500


class CertRequest(NamedTuple):
    """What a requester asks for. Its ``repr`` does not show the proof of identity."""

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
    """What the authenticator needs in addition, such as the token of ``jwt``. May hold secrets."""
    schedule: tuple[Window, ...] = ()
    """The hours in which the certificate is to be in use, in ``time_zone``; empty for always."""
    time_zone: str = ""
    """IANA name of the time zone of ``schedule``; empty for UTC."""
    san: tuple[San, ...] = ()
    """Alternative names of the subject."""

    @property
    def token(self) -> str:
        """The bearer token; empty if the authenticator needs none."""
        return self.verifier.get("token", "")

    @property
    def proof(self) -> str:
        """The proof that the requester holds the private key (`appliance.authn.proof`); empty if none was sent."""
        return self.verifier.get(PROOF_FIELD, "")

    def __repr__(self) -> str:
        return f"<CertRequest {self.type} {self.usage} {self.name!r}>"


def request_type(*verifier: str, time_zone: bool = False) -> StructType:
    """Return the type of a request.

    Args:
        verifier: Names of the text fields of its sub-structure ``verifier``.
        time_zone: Whether it says in which time zone its schedule is.
    """
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
            ("schedule", SCHEDULE_ARRAY),
            ("san", SAN_ARRAY),
            *([("time_zone", STRING)] if time_zone else []),
        ]
    )
    return StructType(
        [("scheme", STRING), ("authority", STRING), ("path", STRING), ("query", query)], "epics:nt/NTURI:1.0"
    )


_FIELDS: Final = frozenset(dict(request_type(time_zone=True).fields)["query"].members)
"""What a request may ask for."""


def request_value(path: str, request: CertRequest) -> Value:
    """Return the argument for a call of ``path``.

    Raises:
        PVDataError: For text that is too long for its field.
    """
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
        "schedule": schedule_array(request.schedule),
        "san": san_array(request.san),
    }
    if request.time_zone:
        query["time_zone"] = request.time_zone
    kind = request_type(*request.verifier, time_zone=bool(request.time_zone))
    value = Value(kind, {"scheme": "pva", "path": path, "query": query})
    for name, text in request.verifier.items():
        value[f"query.verifier.{name}"] = text
    value.mark()
    return value


def parse_request(argument: Any) -> CertRequest:
    """Read the argument of a call of CERT:CREATE, which may be anything.

    Args:
        argument: What the client sent; None if it sent nothing.

    Returns:
        The request, checked for form. A request without a public key asks for the trust anchor only; its other fields are empty.

    Raises:
        RequestRefused: The argument is not a certificate creation request; the text names the field.
    """
    if argument is None:
        raise RequestRefused(
            "the request is empty; send an NTURI whose query holds the certificate creation request"
        )
    if not isinstance(argument.type, StructType):
        raise RequestRefused("the request is not a structure; send an NTURI with a query")
    query = argument.get("query") if "query" in argument else argument
    if not hasattr(query, "type") or not isinstance(query.type, StructType):
        raise RequestRefused("the request's query is not a structure")
    if "pub_key" not in query:
        raise RequestRefused("the request has no field pub_key; send a certificate creation request")
    pub_key = _asked_text(query, "pub_key", _MAX_KEY)
    if not pub_key:
        return CertRequest("", "client")
    _check_known(query)
    number = _asked_number(query, "usage")
    if number not in _USAGES:
        raise RequestRefused(f"the usage {number} is not known; use 1 (client), 2 (server) or 3 (ioc)")
    schedule, zone = _asked_schedule(query)
    kind = _asked_text(query, "type", 32) or "std"
    verifier = {}
    if kind == "jwt" and "verifier.token" in query:  # the token of krb is bytes, which we do not read
        verifier["token"] = _asked_text(query, "verifier.token", _MAX_TOKEN + 1)
    if kind in ("std", "jwt") and f"verifier.{PROOF_FIELD}" in query:
        verifier[PROOF_FIELD] = _asked_text(query, f"verifier.{PROOF_FIELD}", MAX_PROOF)
    no_status = query.get("no_status", default=False)
    if not isinstance(no_status, bool):
        raise RequestRefused("the field no_status must be a bool")
    return CertRequest(
        type=kind,
        usage=_USAGES[number],
        pub_key=pub_key,
        name=_asked_text(query, "name"),
        country=_asked_text(query, "country"),
        organization=_asked_text(query, "organization"),
        organizational_unit=_asked_text(query, "organization_unit"),
        not_before=_asked_number(query, "not_before"),
        not_after=_asked_number(query, "not_after"),
        config_uri_base=_asked_text(query, "config_uri_base"),
        no_status=no_status,
        verifier=verifier,
        schedule=schedule,
        time_zone=zone,
        san=_asked_names(query),
    )


def is_empty(value: Any, fields: Iterable[str] = ()) -> bool:
    """Whether what a peer sent says nothing: zeros, false, empty texts and arrays.

    Args:
        value: A structure, or what one of its fields has.
        fields: Names of the fields that are asked for, which may be missing; empty: all.
    """
    kind = getattr(value, "type", None)
    if isinstance(kind, StructType):
        names = fields or kind.members
        return all(is_empty(value[name]) for name in names if name in value)
    return not len(value) if hasattr(value, "__len__") else not value


def _check_known(query: Any) -> None:
    """Refuse what would have no effect: whoever asks for it would take it for done. An empty field asks for nothing."""
    for name in query.type.members:
        if name not in _FIELDS and not is_empty(query[name]):
            from appliance.config.hints import unknown

            raise RequestRefused(
                f"the request asks for what has no effect here: {unknown(f'field {name[:64]!r}', name, _FIELDS)}"
            )


def _asked_text(query: Any, field: str, limit: int = _MAX_TEXT) -> str:
    try:
        value = query.get(field, default="")
    except PVDataError:
        value = None
    if not isinstance(value, str):
        raise RequestRefused(f"the field {field} must be text")
    if len(value) > limit:
        raise RequestRefused(f"the field {field} has {len(value)} characters; at most {limit} are accepted")
    return value


def _asked_schedule(query: Any) -> tuple[tuple[Window, ...], str]:
    try:
        windows, zone = read_schedule(query), read_zone(query)
    except ValueError as error:
        raise RequestRefused(str(error)) from error
    if zone and not windows:
        raise RequestRefused("the field time_zone has no effect without a schedule; send both or neither")
    return windows, zone


def _asked_names(query: Any) -> tuple[San, ...]:
    try:
        rows = read_rows(query, "san", ("type", "value"), MOST_NAMES)
        return canonical(read_san(*row) for row in rows) if rows else ()
    except ValueError as error:
        raise RequestRefused(str(error)) from error


def _asked_number(query: Any, field: str) -> int:
    value = query.get(field, default=0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RequestRefused(f"the field {field} must be a whole number that is not negative")
    return value


REPLY_TYPE: Final = StructType(
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
        ("value", ENUM),
        ("timeStamp", TIME),
        ("display", StructType([("description", STRING)])),
        ("schedule", SCHEDULE_ARRAY),
        ("san", SAN_ARRAY),
        ("time_zone", STRING),
        ("local", SCHEDULE_ARRAY),
    ]
)
"""What CERT:CREATE answers (9.2): the form of 2025, and that of 2026 from ``value`` on.

``schedule`` is in UTC, as it is today; ``local`` is what was set, in ``time_zone``, and empty if that is UTC.
"""


class CertReply(NamedTuple):
    """What the certificate service answered. Nothing in it is verified yet."""

    state: CertState
    issuer: str
    serial: int
    cert: str
    """The certificate and the chain above it, in PEM form; empty if the service renewed the certificate that the requester has."""
    status_pv: str
    renew_by: int = 0
    """As it was sent: see ``certs.status.read_renew_by``."""
    expiration: int = 0
    """End of the certificate's validity, POSIX seconds; 0 if it was not sent."""
    schedule: tuple[Window, ...] = ()
    """The schedule that is in force."""
    time_zone: str = ""
    """Time zone of ``schedule``; empty for UTC."""
    san: tuple[San, ...] = ()
    """The certificate's alternative names."""
    knows_zones: bool = True
    """Whether the service says in which time zone a schedule is; otherwise it takes all for UTC."""


def read_reply(value: Value | None) -> CertReply:
    """Read the answer of CERT:CREATE.

    An answer with a state and a serial number but without a certificate says that the certificate with this number was
    renewed (9.2, 9.4).

    Raises:
        RemoteError: A field is missing, or is far too long.
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
        _number(value, "expiration"),
        *_hours_and_names(value),
        knows_zones="time_zone" in value,
    )


def _hours_and_names(value: Value) -> tuple[tuple[Window, ...], str, tuple[San, ...]]:
    """Return the schedule that is in force, its time zone, and the alternative names."""
    try:
        zone = read_zone(value)
        windows = read_schedule(value, "local" if zone else "schedule")
        names = tuple(San(*row) for row in read_rows(value, "san", ("type", "value"), MAX_SHOWN_NAMES))
    except ValueError as error:
        raise RemoteError(f"the certificate service's answer cannot be read: {error}") from error
    return windows, zone, names


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
