"""The structures of the certificate service as peers of 2025 and 2026 write and read them, octet for octet.

Written by hand from SPVA 7.2, 9 and 10.2 and from what pvxs-cms of 2026 sends; the types are PVData's (section 5.4).
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest

from appliance.authn.ccr import parse_request, read_reply
from appliance.certmon.status_pv import decode_status
from appliance.certs.status import CertState, read_renew_by
from appliance.cms.wire_types import HEALTH
from appliance.errors import CertificateStatusError
from appliance.pva.typed import decode_typed, encode_typed
from appliance.pvdata.fielddesc import TypeReader, encode_type
from appliance.pvdata.value import Value
from tests.helpers.cert_status import encode_status

SEVEN = ("UNKNOWN", "VALID", "PENDING", "PENDING_APPROVAL", "PENDING_RENEWAL", "EXPIRED", "REVOKED")
EIGHT = (*SEVEN[:5], "SCHEDULED_OFFLINE", *SEVEN[5:])
ENUM = b"\x80\x06enum_t\x02\x05index\x22\x07choices\x68"
NOW = datetime(2026, 11, 29, tzinfo=UTC)


def text(value: str) -> bytes:
    return bytes((len(value),)) + value.encode()


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def enum(index: int, choices: tuple[str, ...]) -> bytes:
    return struct.pack("<iB", index, len(choices)) + b"".join(map(text, choices))


def read(octets: bytes) -> Value:
    value, end = decode_typed(octets, 0, len(octets), False, TypeReader(100))
    assert end == len(octets)
    assert value is not None
    return value


def status_2026(
    index: int, choices: tuple[str, ...], state: str, renew_by: int = 0, more: bytes = b""
) -> bytes:
    """An NTEnum with value, serial, state and renew_by; ``more`` is the description of one string field at the end."""
    fields = 5 if more else 4
    kind = b"\x80" + text("epics:nt/NTEnum:1.0") + bytes((fields,)) + b"\x05value" + ENUM
    kind += b"\x06serial\x27\x05state\x60\x08renew_by\x27" + more
    return kind + enum(index, choices) + u64(42) + text(state) + u64(renew_by) + (b"\x03new" if more else b"")


@pytest.mark.parametrize("choices", [SEVEN, EIGHT], ids=["seven", "eight"])
@pytest.mark.parametrize("state", ["REVOKED", "EXPIRED", "VALID"])
def test_a_state_is_read_by_its_text_among_seven_choices_and_among_eight(choices, state):
    """7.2; pvxs-cms of 2026 has eight, PVXS 1.5 and the peers of 2025 seven."""
    octets = status_2026(choices.index(state), choices, state)
    assert decode_status(read(octets)).state is CertState(state)


@pytest.mark.parametrize("state", SEVEN)
def test_both_forms_that_we_write_have_seven_choices(state):
    """PVXS 1.5 takes ``value.index`` for the state: 5 is EXPIRED to it and 6 REVOKED, whatever the choices say."""
    value = encode_status(CertState(state), 42, this_update=NOW, next_update=NOW)
    octets = b"".join(encode_typed(value, big=False))
    assert octets.count(enum(SEVEN.index(state), SEVEN)) == 2


@pytest.mark.parametrize(
    ("octets", "state"),
    [
        (status_2026(0, ("ON_HOLIDAY",), "VALID"), "UNKNOWN"),
        (status_2026(1, EIGHT, "ON_HOLIDAY"), "UNKNOWN"),
        (status_2026(9, EIGHT, "VALID"), "UNKNOWN"),
        (status_2026(-1, EIGHT, "VALID"), "UNKNOWN"),
        (status_2026(1, EIGHT, "REVOKED"), "REVOKED"),
        (status_2026(7, EIGHT, "VALID"), "REVOKED"),
        (status_2026(1, SEVEN, "VALID", more=b"\x05later\x60"), "VALID"),
        (status_2026(0, (), "VALID"), "VALID"),
        (status_2026(5, EIGHT, "SCHEDULED_OFFLINE"), "SCHEDULED_OFFLINE"),
        (status_2026(0, SEVEN, "SCHEDULED_OFFLINE"), "SCHEDULED_OFFLINE"),
    ],
    ids=["new choice", "new state", "beyond", "negative", "state is worse", "choice is worse", "new field", "no choices",
         "scheduled", "scheduled in seven"],
)  # fmt: skip
def test_what_was_never_seen_is_unknown_and_of_two_words_the_worse_counts(octets, state):
    assert decode_status(read(octets)).state is CertState(state)


def test_a_status_that_tells_nothing_is_none():
    with pytest.raises(CertificateStatusError):
        decode_status(read(status_2026(9, EIGHT, "")))


def test_renew_by_counts_from_1990_in_pvxs_cms_of_2026():
    """7.2 has POSIX seconds; the octets are those of 2026-12-24 00:00:00 UTC, counted from 1990."""
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    meant = datetime(2026, 12, 24, tzinfo=UTC)
    posix = int(meant.timestamp())
    counted = posix - 631_152_000
    for seconds in (posix, counted):
        report = decode_status(read(status_2026(1, EIGHT, "VALID", seconds)))
        assert report.renew_by == seconds
        assert read_renew_by(report.renew_by, begin) == read_renew_by(report.renew_by) == meant
    assert read_renew_by(0) is read_renew_by(2**64 - 1) is read_renew_by(-5) is None


def created(cert: bytes | None, state: str = "VALID", serial: int = 42) -> bytes:
    """An answer of CERT:CREATE; ``cert`` None leaves the field out."""
    fields = 5 if cert is None else 6
    kind = (
        b"\x80"
        + text("epics:nt/NTEnum:1.0")
        + bytes((fields,))
        + b"\x05value"
        + ENUM
        + b"\x06issuer\x60\x06serial\x27"
    )
    kind += b"\x05state\x60\x08renew_by\x27" + (b"" if cert is None else b"\x04cert\x60")
    return (
        kind
        + enum(1, EIGHT)
        + b"\x08abcd0123"
        + u64(serial)
        + text(state)
        + u64(1_166_400_000)
        + (cert or b"")
    )


@pytest.mark.parametrize("cert", [None, b"\x00"], ids=["no field", "empty"])
def test_an_answer_without_certificate_says_that_the_present_one_was_renewed(cert):
    """9.2 and 9.4; pvxs-cms of 2026 answers so to a request for a subject that has a live certificate."""
    reply = read_reply(read(created(cert)))
    assert (reply.state, reply.issuer, reply.serial, reply.cert) == (CertState.VALID, "abcd0123", 42, "")
    assert read_renew_by(reply.renew_by) == datetime(2026, 12, 18, tzinfo=UTC)


def test_the_health_of_the_service_has_what_the_tool_of_2026_reads():
    """10.2: a bool and a uint32 between the number of certificates and the date of the last look."""
    described = encode_type(HEALTH, False)
    assert b"\x0acert_count\x27\x0ccluster_mode\x00\x0fcluster_members\x26\x0alast_check\x60" in described


def request_octets(kind: str, verifier_type: bytes, verifier: bytes) -> bytes:
    """An NTURI whose query has a type, a usage, a key and a verifier."""
    described = (
        b"\x80"
        + text("epics:nt/NTURI:1.0")
        + b"\x01\x05query\x80\x00\x04\x04type\x60\x05usage\x25\x07pub_key\x60"
    )
    return described + b"\x08verifier" + verifier_type + text(kind) + b"\x01\x00" + b"\x03PEM" + verifier


KRB = request_octets("krb", b"\x80\x00\x02\x05token\x28\x03mic\x28", b"\x02\x60\x82\x01\x05")
LDAP = request_octets("ldap", b"\x80\x00\x01\x09signature\x60", b"\x04c2ln")


@pytest.mark.parametrize(("octets", "kind"), [(KRB, "krb"), (LDAP, "ldap")], ids=["krb", "ldap"])
def test_a_request_of_another_authenticator_is_read_without_a_word_about_its_proof(octets, kind):
    """The ``token`` of krb is octets: whoever looks for text there says something that misleads."""
    ccr = parse_request(read(octets))
    assert (ccr.type, ccr.token, ccr.usage) == (kind, "", "client")
