"""Renewal, schedule and SAN on the wire, octet for octet.

The structures and the values are those of pvxs-cms ``dev`` 3ea66ca, read in its sources: the request in ``common/security.h``,
the answer in ``pvacms/pvacms.cpp`` (``getCreatePrototype``), the status in ``common/certstatus.h`` (``getStatusPrototype``) and
``postCertificateStatus``, the schedule in ``pvacms/serverhandle.cpp`` and ``tools/pvxcert/pvxcert.cpp``. SPVA 4.7.3, 4.7.4, 7.2, 9.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from appliance.authn.ccr import REPLY_TYPE, CertRequest, parse_request, read_reply, request_value
from appliance.certmon.status_pv import STATUS_TYPE, decode_status
from appliance.certs.san import San
from appliance.certs.schedule import Schedule, Window
from appliance.certs.status import CertState, format_date, read_renew_by
from appliance.cms.model import state_now
from appliance.cms.publisher import Publisher
from appliance.cms.transaction import CertRecord
from appliance.errors import RequestRefused
from appliance.pva.typed import decode_typed, encode_typed
from appliance.pvdata.fielddesc import TypeReader, encode_type
from appliance.pvdata.value import Value
from tests.helpers.octets import (
    ALARM_T,
    BOOL,
    DISPLAY,
    ENUM_T,
    NT_ENUM,
    OCTETS,
    SAN,
    SCHEDULE,
    STRING,
    STRINGS,
    TIME_T,
    UINT16,
    UINT64,
    structure,
    text,
    whole,
)

EIGHT = (
    "UNKNOWN", "VALID", "PENDING", "PENDING_APPROVAL", "PENDING_RENEWAL", "SCHEDULED_OFFLINE", "EXPIRED", "REVOKED",
)  # fmt: skip
OCSP = ("OCSP_CERTSTATUS_GOOD", "OCSP_CERTSTATUS_REVOKED", "OCSP_CERTSTATUS_UNKNOWN")
EPICS = 631_152_000
"""Seconds from 1970 to 1990."""

STATUS_OF_CPP = structure(
    "epics:nt/NTEnum:1.0", value=ENUM_T, alarm=ALARM_T, timeStamp=TIME_T, display=DISPLAY, serial=UINT64,
    state=STRING, renew_by=UINT64, renewal_due=BOOL, ocsp_status=NT_ENUM, ocsp_state=STRING,
    ocsp_status_date=STRING, ocsp_certified_until=STRING, ocsp_revocation_date=STRING, ocsp_response=OCTETS,
    pvacms_node_id=STRING, schedule=SCHEDULE, san=SAN,
)  # fmt: skip
ANSWER_OF_CPP = structure(
    "epics:nt/NTEnum:1.0", value=ENUM_T, alarm=ALARM_T, timeStamp=TIME_T, display=DISPLAY, issuer=STRING,
    serial=UINT64, state=STRING, cert_id=STRING, status_pv=STRING, renew_by=UINT64, expiration=UINT64,
    cert=STRING, schedule=SCHEDULE, san=SAN,
)  # fmt: skip


def request_of_cpp(**verifier):
    query = structure(
        "", type=STRING, name=STRING, country=STRING, organization=STRING, organization_unit=STRING,
        usage=UINT16, not_before=UINT64, not_after=UINT64, pub_key=STRING, config_uri_base=STRING,
        no_status=BOOL, verifier=structure("", **verifier), schedule=SCHEDULE, san=SAN,
    )  # fmt: skip
    return structure("epics:nt/NTURI:1.0", scheme=STRING, authority=STRING, path=STRING, query=query)


def window(day, begin, end):
    return {"day_of_week": day, "start_time": begin, "end_time": end}


def read(octets, order="<"):
    value, end = decode_typed(octets, 0, len(octets), order == ">", TypeReader(100))
    assert end == len(octets)
    return value


def written(value, order):
    return b"".join(encode_typed(value, big=order == ">"))


both_orders = pytest.mark.parametrize("order", "<>", ids=["little", "big"])
NOW = datetime(2026, 11, 30, 8, 30, tzinfo=UTC)
RENEW_BY = datetime(2026, 12, 24, tzinfo=UTC)
COUNTED = int(RENEW_BY.timestamp()) - EPICS
WORK = window("1", "08:00", "17:00")
NIGHT = window("*", "22:00", "06:00")
WINDOWS = (Window("*", 22 * 60, 6 * 60), Window("1", 8 * 60, 17 * 60))
NAMES = ({"type": "dns", "value": "ioc1.lab.example"}, {"type": "ip", "value": "10.0.0.7"})
SANS = (San("dns", "ioc1.lab.example"), San("ip", "10.0.0.7"))


# -- the request ---------------------------------------------------------------------------------------


def asked(**more):
    fields = {
        "type": "std",
        "name": "ioc1",
        "country": "CH",
        "organization": "lab",
        "organization_unit": "ops",
    }
    fields |= {"usage": 3, "not_before": 1, "not_after": 2, "pub_key": "PEM", "config_uri_base": "CERT"}
    return {"scheme": "pva", "path": "CERT:CREATE:abcd0123", "query": fields | more}


REQUEST = CertRequest("std", "ioc", "PEM", "ioc1", "CH", "lab", "ops", 1, 2, "CERT")


@both_orders
def test_a_request_without_schedule_and_names_is_what_pvxs_cms_sends(order):
    value = request_value("CERT:CREATE:abcd0123", REQUEST)
    assert written(value, order) == whole(request_of_cpp(), asked(), order)


@both_orders
def test_schedule_and_names_of_a_request_are_written_and_read(order):
    request = REQUEST._replace(schedule=WINDOWS, san=SANS)
    octets = whole(request_of_cpp(), asked(schedule=[NIGHT, WORK], san=NAMES), order)
    assert written(request_value("CERT:CREATE:abcd0123", request), order) == octets
    assert parse_request(read(octets, order)) == request


def test_a_time_zone_stands_behind_what_pvxs_cms_knows():
    request = REQUEST._replace(schedule=WINDOWS, time_zone="Europe/Berlin")
    octets = written(request_value("CERT:CREATE:abcd0123", request), "<")
    assert b"\x03san" + SAN.described + b"\x09time_zone\x60" in octets
    assert octets.endswith(text("Europe/Berlin"))
    assert parse_request(read(octets)) == request


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"schedule": [window("MONDAY", "08:00", "17:00")]}, "day of the week"),
        ({"schedule": [window("7", "08:00", "17:00")]}, "day of the week"),
        ({"schedule": [window("1", "8:00", "17:00")]}, "time of the day"),
        ({"schedule": [window("1", "08:00", "24:00")]}, "time of the day"),
        ({"schedule": [WORK] * 65}, "schedule has 65 elements; at most 64"),
        ({"san": [{"type": "email", "value": "a@b"}]}, "email"),
        ({"san": [{"type": "dns", "value": "a b"}]}, "a b"),
        ({"san": [{"type": "dns", "value": f"a{n}"} for n in range(33)]}, "san has 33 elements; at most 32"),
        ({"san": [NAMES[0], NAMES[0]]}, "ioc1.lab.example"),
    ],
    ids=["day name", "day", "one digit", "24:00", "65 windows", "email", "blank", "33 names", "twice"],
)  # fmt: skip
def test_a_schedule_or_a_name_that_cannot_be_used_is_refused_and_not_dropped(more, why):
    """pvxs-cms drops what it cannot read from a flag, and refuses what it cannot read in a request."""
    with pytest.raises(RequestRefused, match=re.escape(why)):
        parse_request(read(whole(request_of_cpp(), asked(**more))))


@pytest.mark.parametrize(
    ("windows", "zone", "why"),
    [((), "Europe/Berlin", "no effect without a schedule"), (WINDOWS, "x" * 65, "name of a time zone")],
    ids=["alone", "too long"],
)
def test_a_time_zone_that_has_no_effect_is_refused(windows, zone, why):
    request = REQUEST._replace(schedule=windows, time_zone=zone)
    with pytest.raises(RequestRefused, match=why):
        parse_request(read(written(request_value("CERT:CREATE", request), "<")))


# -- the status ----------------------------------------------------------------------------------------


def status_of_cpp(state, **more):
    """What ``postCertificateStatus`` sends; its dates count from 1990."""
    ocsp = OCSP.index({"VALID": OCSP[0], "REVOKED": OCSP[1]}.get(state, OCSP[2]))
    now = int(NOW.timestamp()) - EPICS
    told = {
        "value": {"index": EIGHT.index(state), "choices": EIGHT}, "timeStamp": {"secondsPastEpoch": now},
        "serial": 42, "state": state, "renew_by": COUNTED,
        "ocsp_status": {"value": {"index": ocsp, "choices": OCSP}, "timeStamp": {"secondsPastEpoch": now}},
        "ocsp_state": OCSP[ocsp], "ocsp_status_date": "Mon Nov 30 08:30:00 2026 UTC",
        "ocsp_certified_until": "Mon Nov 30 09:00:00 2026 UTC", "ocsp_response": b"\x30\x03abc",
    }  # fmt: skip
    return told | more


CPP = {
    "valid": (status_of_cpp("VALID"), COUNTED, False),
    "hint": (status_of_cpp("VALID", renew_by=0, renewal_due=True), 0, True),
    "renewed": (status_of_cpp("VALID", schedule=[WORK], san=NAMES), COUNTED, False),
    "pending renewal": (status_of_cpp("PENDING_RENEWAL"), COUNTED, False),
    "offline": (status_of_cpp("SCHEDULED_OFFLINE", schedule=[NIGHT, WORK]), COUNTED, False),
    "expired": (status_of_cpp("EXPIRED"), COUNTED, False),
    "revoked": (status_of_cpp("REVOKED", san=NAMES), COUNTED, False),
}


@both_orders
@pytest.mark.parametrize("what", CPP)
def test_the_status_of_pvxs_cms_is_read(what, order):
    """Its hint says 0 for ``renew_by``: pvacms.cpp reads a column there that its query does not have."""
    told, renew_by, due = CPP[what]
    report = decode_status(read(whole(STATUS_OF_CPP, told, order), order))
    assert report.state is CertState(told["state"])
    assert (report.serial, report.ocsp_response) == (42, b"\x30\x03abc")
    assert (report.renew_by, report.renewal_due) == (renew_by, due)
    assert read_renew_by(report.renew_by, NOW) == (RENEW_BY if renew_by else None)
    assert [str(w) for w in report.schedule] == sorted(",".join(w.values()) for w in told.get("schedule", ()))
    assert report.san == (SANS if "san" in told else ())
    assert report.time_zone == ""


STATUS_OF_OURS = structure(
    "", status=NT_ENUM, serial=UINT64, state=STRING, ocsp_status=NT_ENUM, ocsp_state=STRING,
    ocsp_status_date=STRING, ocsp_certified_until=STRING, ocsp_revocation_date=STRING, ocsp_response=OCTETS,
    renew_by=UINT64, renewal_due=BOOL, pvacms_node_id=STRING, schedule=SCHEDULE, san=SAN, value=ENUM_T,
    alarm=ALARM_T, timeStamp=TIME_T, display=DISPLAY, not_before=UINT64, not_after=UINT64, no_status=BOOL,
    time_zone=STRING,
)  # fmt: skip
SEVEN = tuple(state for state in EIGHT if state != "SCHEDULED_OFFLINE")
HALF_AN_HOUR = timedelta(minutes=30)
RECORD = CertRecord(
    serial=42, subject="ioc1", usage="ioc", method="std", not_before=int(NOW.timestamp()) - 60,
    not_after=int(NOW.timestamp()) + 365 * 86400, renew_by=int(RENEW_BY.timestamp()), state=CertState.VALID,
    state_date=int(NOW.timestamp()), approved=True, delivered=1, no_status=False,
)  # fmt: skip


class Signer:
    """Signs nothing: what the answer holds is in other tests."""

    signed = 0
    is_quick = True

    @property
    def signer(self):
        return self

    def prepare(self, *_args, **_more):
        return b"what is signed"

    def sign(self, _body):
        self.signed += 1
        return b"a signature"

    def finish(self, _body, _signature):
        return b"\x30\x03abc"


class Life:
    """The clock and the records of a service."""

    def __init__(self, now):
        self.now = now
        self.listeners = []
        self.vanished = []

    def clock(self):
        return self.now

    def state(self, record):
        return state_now(record, self.now)


def publisher(now=NOW):
    life = Life(now)
    return life, Publisher(life, Signer(), issuer="abcd0123", validity=HALF_AN_HOUR)


def status_of_ours(index, state, alarm, ocsp, now, signed, until, **more):
    clock = {"secondsPastEpoch": int(now.timestamp())}
    told = {
        "status": {"value": {"index": index, "choices": SEVEN}, "alarm": alarm, "timeStamp": clock},
        "value": {"index": index, "choices": SEVEN}, "alarm": alarm, "timeStamp": clock, "serial": 42,
        "state": state, "renew_by": COUNTED, "ocsp_response": b"\x30\x03abc", "ocsp_state": OCSP[ocsp],
        "ocsp_status": {
            "value": {"index": ocsp, "choices": OCSP},
            "timeStamp": {"secondsPastEpoch": int(signed.timestamp())},
        },
        "ocsp_status_date": format_date(signed), "ocsp_certified_until": format_date(until),
        "display": {"description": "status of certificate abcd0123:42"},
        "not_before": RECORD.not_before, "not_after": RECORD.not_after,
    }  # fmt: skip
    return told | more


def our_octets(made, order):
    value = Value.from_store(STATUS_TYPE, made, STATUS_TYPE.leaf_mask)
    return written(value, order)


GOOD = {}
MINOR = {"severity": 1, "status": 1}
HALF_WAY = NOW + (RENEW_BY - NOW) / 2


@both_orders
def test_a_hint_is_written_beside_the_signature_that_exists(order):
    """Nothing is signed for it: 10 000 hints in one second are no 10 000 signatures."""
    life, ours = publisher(HALF_WAY - timedelta(minutes=1))
    before, signed = ours.make(42, RECORD, life.now)
    at = life.now
    told = status_of_ours(1, "VALID", GOOD, 0, at, at, at + HALF_AN_HOUR)
    assert our_octets(before, order) == whole(STATUS_OF_OURS, told, order)
    life.now = HALF_WAY
    hint, again = ours.make(42, RECORD, life.now, signed)
    told = status_of_ours(1, "VALID", GOOD, 0, HALF_WAY, at, at + HALF_AN_HOUR, renewal_due=True)
    assert our_octets(hint, order) == whole(STATUS_OF_OURS, told, order)
    assert again is signed
    assert ours.signed == 1


@both_orders
def test_pending_renewal_is_written_with_its_index_and_still_says_that_it_is_due(order):
    """A daemon of pvxs-cms that missed the hint asks again at each such status, because it looks at ``renewal_due`` alone."""
    life, ours = publisher(RENEW_BY)
    made, _ = ours.make(42, RECORD, life.now)
    alarm = MINOR | {"message": "waits for renewal"}
    told = status_of_ours(
        4, "PENDING_RENEWAL", alarm, 2, RENEW_BY, RENEW_BY, RENEW_BY + HALF_AN_HOUR, renewal_due=True
    )
    assert our_octets(made, order) == whole(STATUS_OF_OURS, told, order)


@both_orders
def test_renewed_is_written_valid_with_the_new_date(order):
    life, ours = publisher()
    earlier = RECORD._replace(renew_by=RECORD.renew_by - 86400, state_date=RECORD.state_date - 86400)
    _, signed = ours.make(42, earlier, life.now)
    made, again = ours.make(
        42, RECORD._replace(san=json.dumps([list(name) for name in SANS])), life.now, signed
    )
    told = status_of_ours(1, "VALID", GOOD, 0, NOW, NOW, NOW + HALF_AN_HOUR, san=NAMES)
    assert our_octets(made, order) == whole(STATUS_OF_OURS, told, order)
    assert again is signed


@both_orders
def test_scheduled_offline_is_unknown_by_number_and_said_in_words(order):
    """Decision 0031: seven choices, so that 5 stays EXPIRED and 6 REVOKED; ``schedule`` is in UTC."""
    sunday_night = datetime(2026, 11, 29, 20, 0, tzinfo=UTC)
    life, ours = publisher(sunday_night)
    record = RECORD._replace(
        not_before=RECORD.not_before - 7 * 86400,
        state_date=RECORD.state_date - 7 * 86400,
        schedule=Schedule((Window("1", 9 * 60, 18 * 60),), "Europe/Berlin", "admin").to_text(),
    )
    made, signed = ours.make(42, record, life.now)
    alarm = MINOR | {"message": "offline by schedule"}
    told = status_of_ours(
        0, "SCHEDULED_OFFLINE", alarm, 2, sunday_night, sunday_night, sunday_night + HALF_AN_HOUR,
        schedule=[WORK], time_zone="Europe/Berlin", not_before=record.not_before,
    )  # fmt: skip
    assert our_octets(made, order) == whole(STATUS_OF_OURS, told, order)
    life.now = NOW  # Monday, half past nine in Berlin
    made, signed = ours.make(42, record, life.now, signed)
    told = status_of_ours(
        1, "VALID", GOOD, 0, NOW, NOW, NOW + HALF_AN_HOUR,
        schedule=[WORK], time_zone="Europe/Berlin", not_before=record.not_before,
    )  # fmt: skip
    assert our_octets(made, order) == whole(STATUS_OF_OURS, told, order)


@pytest.mark.parametrize(
    ("record", "end"),
    [
        (RECORD._replace(renew_by=RECORD.state_date + 600), 600),
        (RECORD._replace(not_after=RECORD.state_date + 700), 700),
        (RECORD._replace(renew_by=0, schedule=Schedule((Window("1", 480, 515),)).to_text()), 300),
        (RECORD._replace(renew_by=RECORD.state_date + 1801), 1800),
        (RECORD, 1800),
    ],
    ids=["renew_by", "notAfter", "window", "a second later", "far away"],
)
def test_good_is_signed_until_the_next_crossing_and_never_beyond(record, end):
    """PVXS ignores that a peer is suspended, and doubts it when the signed answer ends."""
    life, ours = publisher()
    _, signed = ours.make(42, record, life.now)
    assert (signed.next_update - signed.this_update).total_seconds() == end
    # One that ends with the crossing is not signed again before it: that would be ever shorter times.
    assert signed.refresh_at - NOW.timestamp() == (end if end < 1800 else 1500)


def test_an_answer_is_signed_again_when_the_renewal_makes_it_good_for_longer():
    life, ours = publisher()
    _, signed = ours.make(42, RECORD._replace(renew_by=RECORD.state_date + 600), life.now)
    _, again = ours.make(42, RECORD, life.now, signed)
    assert again is not signed
    assert again.next_update == NOW + HALF_AN_HOUR


# -- what nobody has sent yet --------------------------------------------------------------------------


STRANGE = {
    "day name": {"schedule": [window("MON", "08:00", "17:00")]},
    "seconds": {"schedule": [window("1", "08:00:00", "17:00:00")]},
    "65 windows": {"schedule": [WORK] * 65},
    "101 names": {"san": [NAMES[0]] * 101},
}


@pytest.mark.parametrize("state", ["VALID", "SCHEDULED_OFFLINE", "REVOKED", "EXPIRED"])
@pytest.mark.parametrize("what", [name for name in STRANGE if name != "day name"])
def test_beside_what_cannot_be_read_nothing_is_good(what, state):
    report = decode_status(read(whole(STATUS_OF_CPP, status_of_cpp(state, **STRANGE[what]))))
    assert report.state is (CertState(state) if state in ("REVOKED", "EXPIRED") else CertState.UNKNOWN)
    assert report.schedule == report.san == ()


def test_days_by_name_are_read():
    """The specification's table has ``MON``; pvxs-cms takes a digit."""
    report = decode_status(read(whole(STATUS_OF_CPP, status_of_cpp("VALID", **STRANGE["day name"]))))
    assert (report.state, report.schedule) == (CertState.VALID, (Window("1", 480, 1020),))


@pytest.mark.parametrize(
    ("field", "kind", "content"),
    [
        ("time_zone", UINT64, 1),
        ("renew_by", STRING, "2026-12-24T00:00:00Z"),
        ("schedule", STRING, "MON-FRI,08:00,17:00"),
        ("san", STRINGS, ["ioc1.lab.example"]),
    ],
    ids=["zone as a number", "date as text", "schedule as text", "names as texts"],
)
def test_a_field_of_another_kind_is_not_read_as_good(field, kind, content):
    form = structure("", state=STRING, serial=UINT64, **{field: kind})
    for state, told in (("VALID", CertState.UNKNOWN), ("REVOKED", CertState.REVOKED)):
        octets = whole(form, {"state": state, "serial": 42, field: content})
        assert decode_status(read(octets)).state is told


# -- the answer ----------------------------------------------------------------------------------------


@both_orders
def test_the_answer_of_pvxs_cms_to_a_renewal_is_read(order):
    """Without ``cert``; its state is the one before the renewal."""
    told = {
        "value": {"index": 4, "choices": EIGHT}, "issuer": "abcd0123", "serial": 42, "state": "PENDING_RENEWAL",
        "cert_id": "abcd0123:00000000000000000042", "status_pv": "CERT:STATUS:abcd0123:00000000000000000042",
        "renew_by": COUNTED, "expiration": RECORD.not_after, "schedule": [WORK], "san": NAMES,
    }  # fmt: skip
    reply = read_reply(read(whole(ANSWER_OF_CPP, told, order), order))
    assert (reply.state, reply.serial, reply.cert) == (CertState.PENDING_RENEWAL, 42, "")
    assert read_renew_by(reply.renew_by, NOW) == RENEW_BY
    assert (reply.expiration, reply.schedule, reply.time_zone) == (RECORD.not_after, WINDOWS[1:], "")
    assert reply.san == SANS


def test_our_answer_has_both_forms():
    kind = structure(
        "", status=NT_ENUM, issuer=STRING, serial=UINT64, state=STRING, cert_id=STRING, status_pv=STRING,
        renew_by=UINT64, expiration=UINT64, cert=STRING, alarm=ALARM_T, value=ENUM_T, timeStamp=TIME_T,
        display=DISPLAY, schedule=SCHEDULE, san=SAN, time_zone=STRING, local=SCHEDULE,
    )  # fmt: skip
    assert encode_type(REPLY_TYPE, False) == kind.described
