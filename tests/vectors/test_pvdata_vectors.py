"""Bytes and texts that PVXS 1.5.3 produced from the same values; made by feeding libpvxs our messages and
keeping what it wrote back: its own encoding in both byte orders, and what pvxinfo and pvxget would print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import PVRequestError
from appliance.pvdata import Value, nt, render, render_type
from appliance.pvdata.bitset import decode_bitset, encode_bitset, iter_bits
from appliance.pvdata.codec import codec
from appliance.pvdata.fielddesc import TypeReader, decode_type, encode_type
from appliance.pvdata.pvrequest import PVRequest, request_mask
from appliance.pvdata.types import SCALARS

HERE = Path(__file__).parent
VALUES = json.loads((HERE / "pvdata_values.json").read_text())["cases"]
NT = json.loads((HERE / "pvdata_nt.json").read_text())
REQUESTS = json.loads((HERE / "pvdata_requests.json").read_text())


def latin(text):
    """The vectors hold octets one by one."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def receive(case, big):
    """Decode a message of type, bit set and fields, as a client does with its first update."""
    raw = bytes.fromhex(case["message_be" if big else "message_le"])
    types = TypeReader()
    t, pos = decode_type(raw, 0, len(raw), big, types)
    bits, pos = decode_bitset(raw, pos, len(raw), big)
    assert bits == case["mask"]
    value = Value(t)
    pos = codec(t, big).decode_partial(raw, pos, len(raw), bits, value.store, types)
    assert pos == len(raw)
    value.changed = bits
    return value


@pytest.mark.parametrize("case", VALUES, ids=lambda c: c["name"])
@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
def test_a_message_that_pvxs_accepted_encodes_to_the_same_bytes(case, big):
    value = receive(case, big)
    made = codec(value.type, big).encode_partial(value.store, case["mask"])
    message = encode_type(value.type, big) + encode_bitset(case["mask"], big) + made
    assert message.hex() == case["message_be" if big else "message_le"]


@pytest.mark.parametrize("case", [c for c in VALUES if "full_le" in c], ids=lambda c: c["name"])
@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
def test_types_and_full_values_are_octet_for_octet_those_of_pvxs(case, big):
    value = receive(case, big)
    order = "be" if big else "le"
    assert encode_type(value.type, big).hex() == case["type_" + order]
    assert codec(value.type, big).encode(value.store).hex() == case["full_" + order]
    assert b"".join(codec(value.type, big).encode_chunks(value.store)).hex() == case["full_" + order]


@pytest.mark.parametrize("case", VALUES, ids=lambda c: c["name"])
def test_pvxinfo_text(case):
    value = receive(case, big=False)
    assert latin(render_type(value.type)) == case["info"]


@pytest.mark.parametrize("case", VALUES, ids=lambda c: c["name"])
@pytest.mark.parametrize("fmt", ["delta", "tree"])
def test_pvxget_text(case, fmt):
    value = receive(case, big=True)
    assert latin(render(value, fmt, case["limit"])) == case[fmt]


@pytest.mark.parametrize("case", VALUES, ids=lambda c: c["name"])
def test_delta_without_values(case):
    assert latin(render(receive(case, big=False), show_value=False)) == case["types"]


@pytest.mark.parametrize("case", NT["scalars"], ids=lambda c: "-".join(str(x) for x in list(c.values())[:5]))
def test_scalar_normative_types_are_those_of_pvxs(case):
    name = case["value"].lower()
    t = SCALARS[name.removesuffix("[]")]
    flags = {key: case[key] for key in ("display", "control", "value_alarm", "form")}
    made = nt.NTScalarArray(t, **flags) if name.endswith("[]") else nt.NTScalar(t, **flags)
    assert encode_type(made, big=False).hex() == case["type_le"]
    assert render_type(made) == case["info"]


@pytest.mark.parametrize("name", NT["others"])
def test_other_normative_types_are_those_of_pvxs(name):
    made = {
        "enum": nt.NTEnum,
        "ndarray": nt.NTNDArray,
        "uri": lambda: nt.NTURI([("a", SCALARS["string"]), ("b", SCALARS["int32"])]),
        "table": lambda: nt.NTTable([("x", SCALARS["int32"]), ("y", SCALARS["string"])]).build(),
    }[name]()
    assert encode_type(made, big=False).hex() == NT["others"][name]["type_le"]
    assert render_type(made) == NT["others"][name]["info"]


@pytest.mark.parametrize("case", REQUESTS["requests"], ids=lambda c: c["text"] or "empty")
def test_pvrequest_text_becomes_what_pvxs_sends(case):
    if case["wire_le"] is None:
        with pytest.raises(PVRequestError, match="pvRequest"):
            PVRequest(case["text"])
        return
    request = PVRequest(case["text"])
    wire = encode_type(request.type, big=False) + codec(request.type, False).encode(request.store)
    assert wire.hex() == case["wire_le"]


@pytest.mark.parametrize("case", REQUESTS["masks"], ids=lambda c: c["text"] or "empty")
def test_pvrequest_selects_the_fields_that_pvxs_selects(case):
    raw = bytes.fromhex(REQUESTS["mask_type"])
    t, _ = decode_type(raw, 0, len(raw), False, TypeReader())
    request = PVRequest(case["text"]).value
    if case["bits"] is None:
        with pytest.raises(PVRequestError, match="must select at least one field"):
            request_mask(request, t)
    else:
        assert list(iter_bits(request_mask(request, t))) == case["bits"]


@pytest.mark.parametrize(
    "case", REQUESTS["bitsets"], ids=lambda c: f"{len(c['bits'])}-{max(c['bits'], default=0)}"
)
@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
def test_bit_sets_are_octet_for_octet_those_of_pvxs(case, big):
    raw = bytes.fromhex(case["be" if big else "le"])
    bits = sum(1 << bit for bit in case["bits"])
    assert encode_bitset(bits, big) == raw
    assert decode_bitset(raw, 0, len(raw), big) == (bits, len(raw))
