"""The structure of CERT:STATUS: both forms that peers send, and what is none."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.certmon.status_pv import (
    STATUS_TYPE,
    decode_status,
    enum_index,
    status_template,
)
from appliance.certs.status import STATE_CHOICES, WIRE_CHOICES, CertState
from appliance.errors import CertificateStatusError
from appliance.pvdata.nt import NTEnum, NTScalar
from appliance.pvdata.types import BOOL, FLOAT64, INT32, STRING, UINT8, UINT64, ArrayType, StructType
from appliance.pvdata.value import Value
from tests.helpers.cert_status import encode_status

NOW = datetime(2026, 3, 8, 15, 23, 21, tzinfo=UTC)
FIELDS = [
    ("serial", UINT64),
    ("state", STRING),
    ("ocsp_status", NTEnum()),
    ("ocsp_state", STRING),
    ("ocsp_status_date", STRING),
    ("ocsp_certified_until", STRING),
    ("ocsp_revocation_date", STRING),
    ("ocsp_response", ArrayType(UINT8)),
]
FORM_2025 = StructType([("status", NTEnum()), *FIELDS])
FORM_2026 = StructType(
    [*NTEnum().fields, *FIELDS[:2], ("renew_by", UINT64), ("renewal_due", BOOL), *FIELDS[2:]],
    "epics:nt/NTEnum:1.0",
)


def old(state):
    value = Value(FORM_2025)
    value["status.value.choices"] = WIRE_CHOICES
    value["status.value.index"] = WIRE_CHOICES.index(state)
    value["state"] = state
    return value


def new(state):
    value = Value(FORM_2026)
    value["value.choices"] = STATE_CHOICES
    value["value.index"] = STATE_CHOICES.index(state)
    value["state"] = state
    return value


@pytest.mark.parametrize("state", STATE_CHOICES)
def test_our_form_is_read_back(state):
    value = encode_status(
        CertState(state), 42, b"\x30\x03abc", this_update=NOW, next_update=NOW + timedelta(minutes=30),
        renew_by=1_800_000_000, renewal_due=True,
    )  # fmt: skip
    report = decode_status(value)
    assert report.state is CertState(state)
    assert (report.serial, report.ocsp_response) == (42, b"\x30\x03abc")
    assert report.ocsp_status_date == "Sun Mar 08 15:23:21 2026 UTC"
    assert report.ocsp_certified_until == "Sun Mar 08 15:53:21 2026 UTC"
    assert (report.renew_by, report.renewal_due) == (1_800_000_000, True)


@pytest.mark.parametrize("state", WIRE_CHOICES)
def test_the_form_of_2025_is_read(state):
    value = old(state)
    value["ocsp_response"] = [1, 2, 255]
    value["serial"] = 2**64 - 1
    report = decode_status(value)
    assert (report.state, report.ocsp_response) == (CertState(state), b"\x01\x02\xff")
    assert report.serial == 2**64 - 1
    assert (report.renew_by, report.renewal_due) == (0, False)


@pytest.mark.parametrize("state", STATE_CHOICES)
def test_the_form_of_2026_is_read(state):
    assert decode_status(new(state)).state is CertState(state)


@pytest.mark.parametrize("state", WIRE_CHOICES)
def test_peers_that_read_the_index_find_theirs_in_both_forms(state):
    value = encode_status(CertState(state), 1, this_update=NOW, next_update=NOW + timedelta(1))
    assert value["status.value.index"] == (
        "UNKNOWN", "VALID", "PENDING", "PENDING_APPROVAL", "PENDING_RENEWAL", "EXPIRED", "REVOKED"
    ).index(state)  # fmt: skip
    assert value["value.index"] == value["status.value.index"]


def test_what_peers_have_no_word_for_is_unknown_to_them():
    assert enum_index(CertState.SCHEDULED_OFFLINE) == 0


def test_the_text_of_the_choice_counts_not_its_number():
    """Another order of the choices, as another version might have."""
    value = new("VALID")
    value["value.choices"] = tuple(reversed(STATE_CHOICES))
    value["value.index"] = tuple(reversed(STATE_CHOICES)).index("REVOKED")
    assert decode_status(value).state is CertState.REVOKED


def test_a_state_of_a_later_version_is_unknown():
    value = new("VALID")
    value["value.choices"] = ("ON_HOLIDAY",)
    value["value.index"] = 0
    assert decode_status(value).state is CertState.UNKNOWN


@pytest.mark.parametrize("index", [-1, 8, 2**31 - 1, -(2**31)])
def test_an_index_beyond_the_choices_is_not_a_state(index):
    value = new("VALID")
    value["value.index"] = index
    value["state"] = ""
    with pytest.raises(CertificateStatusError):
        decode_status(value)


@pytest.mark.parametrize(
    "value",
    [
        Value(NTScalar(FLOAT64)),
        Value(StructType([("value", INT32)])),
        Value(StructType([])),
        Value(StructType([("ocsp_response", STRING), ("serial", STRING)])),
        status_template(),
    ],
    ids=["number", "int", "empty", "wrong types", "nothing but choices"],
)
def test_what_is_no_status_is_refused_or_unknown(value):
    """Never VALID, never another exception."""
    with contextlib.suppress(CertificateStatusError):
        assert decode_status(value).state is CertState.UNKNOWN


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (UINT64, 2**40),
        (UINT64, 2**63),
        (INT32, 5),
        (STRING, "abc"),
        (ArrayType(FLOAT64), [1.0]),
        (ArrayType(UINT64), [1]),
        (ArrayType(STRING), ["a"]),
    ],
    ids=str,
)
def test_an_answer_of_another_type_is_refused(kind, content):
    """``bytes(2**40)`` would be a terabyte of zeros: anybody can answer the search for a status PV."""
    value = Value(StructType([("state", STRING), ("ocsp_response", kind)]))
    value["state"] = "VALID"
    value["ocsp_response"] = content
    with pytest.raises(CertificateStatusError, match="ocsp_response is not an array of bytes"):
        decode_status(value)


@given(
    st.sampled_from([STATUS_TYPE, FORM_2025, FORM_2026]),
    st.integers(-(2**31), 2**31 - 1),
    st.lists(st.text(max_size=20), max_size=10),
    st.text(max_size=20),
    st.binary(max_size=50),
)
def test_any_content_gives_a_report_or_the_one_error(kind, index, choices, state, response):
    value = Value(kind)
    for path in ("value", "status.value"):
        if f"{path}.index" in value:
            value[f"{path}.index"] = index
            value[f"{path}.choices"] = tuple(choices)
    value["state"] = state
    value["ocsp_response"] = list(response)
    try:
        report = decode_status(value)
    except CertificateStatusError:
        return
    assert report.ocsp_response == response
