"""A measurer ends where a decoder ends and refuses what a decoder refuses, for every type, value and run of bytes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.errors import DecodeError, PVDataError
from appliance.pvdata import ANY, BOOL, INT32, STRING, ArrayType, StructType, UnionType, Value
from appliance.pvdata.bitset import decode_bitset, encode_bitset
from appliance.pvdata.codec import codec
from appliance.pvdata.fielddesc import TypeReader
from appliance.pvdata.measure import measurer
from appliance.pvdata.pace import MAX_VALUES, Pace
from tests.helpers.pvdata_strategies import any_struct, types

relaxed = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
orders = st.booleans()


def holds_any(t) -> bool:
    if t == ANY:
        return True
    if isinstance(t, ArrayType):
        return holds_any(t.element)
    if isinstance(t, StructType | UnionType):
        return any(holds_any(member) for _, member in t.fields)
    return False


@relaxed
@given(types())
def test_a_type_knows_whether_it_holds_an_any(t):
    assert t.holds_any is holds_any(t)


class Watched(bytes):
    """Octets that note the furthest one that was read."""

    furthest = -1

    def __getitem__(self, key):
        if isinstance(key, slice):
            self.furthest = max(self.furthest, (len(self) if key.stop is None else key.stop) - 1)
        else:
            self.furthest = max(self.furthest, key)
        return super().__getitem__(key)


def decoded_end(t, raw, end, big):
    """Where the decoder of updates stops; None if it refuses."""
    try:
        bits, pos = decode_bitset(raw, 0, end, big)
        if bits > t.full_mask:
            return None
        store = Value(t).store
        return bits, codec(t, big).decode_partial(raw, pos, end, bits, store, TypeReader())
    except DecodeError:
        return None


def measured_end(t, raw, end, big):
    watched = Watched(raw)
    try:
        return measurer(t, big).marked(watched, 0, end)
    except DecodeError:
        return None
    finally:
        assert watched.furthest < end


plain_struct = any_struct().filter(lambda v: not v.type.holds_any)


@relaxed
@given(plain_struct, st.data(), orders)
def test_it_ends_where_the_decoder_ends(v, data, big):
    bits = data.draw(st.integers(0, v.type.full_mask))
    raw = codec(v.type, big).encode_marked(v.store, bits)
    tail = data.draw(st.binary(max_size=5))
    for _ in range(2):
        assert measurer(v.type, big).marked(raw + tail, 0, len(raw) + len(tail)) == (bits, len(raw))
    assert measured_end(v.type, raw + b"\xff" * 300, len(raw), big) == (bits, len(raw))
    whole = codec(v.type, big).encode(v.store)
    assert measurer(v.type, big)(whole + tail, 0, len(whole) + len(tail)) == len(whole)


@relaxed
@given(plain_struct, st.data(), orders)
def test_what_is_cut_off_is_refused(v, data, big):
    bits = data.draw(st.integers(0, v.type.full_mask))
    raw = codec(v.type, big).encode_marked(v.store, bits)
    for end in range(len(raw)) if len(raw) < 60 else data.draw(st.lists(st.integers(0, len(raw) - 1))):
        assert measured_end(v.type, raw, end, big) is None
        assert decoded_end(v.type, raw, end, big) is None


@settings(relaxed, max_examples=80)
@given(plain_struct, st.data(), orders)
def test_it_refuses_mutated_octets_if_the_decoder_does(v, data, big):
    bits = data.draw(st.integers(0, v.type.full_mask))
    raw = bytearray(codec(v.type, big).encode_marked(v.store, bits))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw)))
        match data.draw(st.sampled_from(["set", "cut", "insert"])):
            case "set" if place < len(raw):
                raw[place] = data.draw(st.sampled_from([0, 1, 2, 127, 253, 254, 255]))
            case "cut":
                del raw[place:]
            case _:
                raw[place:place] = data.draw(st.binary(max_size=4))
    raw = bytes(raw)
    assert measured_end(v.type, raw, len(raw), big) == decoded_end(v.type, raw, len(raw), big)


@settings(relaxed, max_examples=80)
@given(types().filter(lambda t: not t.holds_any), st.binary(max_size=80), orders)
def test_random_octets_are_judged_as_the_decoder_judges_them(t, raw, big):
    kind = StructType([("value", t), ("other", INT32)])
    assert measured_end(kind, raw, len(raw), big) == decoded_end(kind, raw, len(raw), big)


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        (StructType([("a", BOOL)]), b"\x01\x04\x00"),
        (StructType([("a", ArrayType(BOOL))]), b"\x01\x02\xff"),
        (StructType([("a", UnionType([("b", BOOL)]))]), b"\x01\x02\x01\x00"),
        (StructType([("a", ArrayType(INT32, "bounded", 1))]), b"\x01\x02\x02" + bytes(8)),
        (
            StructType([("a", ArrayType(StructType([(f"f{i}", StructType()) for i in range(20)])))]),
            b"\x01\x02\x01\x01",
        ),
    ],
    ids=["unknown field", "null size", "union selector", "bound", "hollow structure"],
)
def test_what_it_refuses(kind, refused):
    assert decoded_end(kind, refused, len(refused), False) is None
    with pytest.raises(DecodeError):
        measurer(kind, False).marked(refused, 0, len(refused))


def test_a_type_with_an_any_is_not_measured():
    with pytest.raises(PVDataError, match="any"):
        measurer(StructType([("a", ArrayType(ANY))]), False)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (StructType([("a", ArrayType(STRING))]), b"\0"),
        (StructType([("a", ArrayType(StructType([("b", BOOL)])))]), b"\0"),
    ],
    ids=["strings", "structures"],
)
def test_a_message_of_too_many_values_is_refused_as_by_the_decoder(kind, body):
    count = MAX_VALUES + 257
    raw = b"\x01\x02\xfe" + count.to_bytes(4, "little") + body * count
    with pytest.raises(DecodeError, match="more than"):
        Pace(lambda: measurer(kind, False).marked(raw, 0, len(raw)), None).go_on()
    with pytest.raises(DecodeError, match="more than"):
        store = Value(kind).store
        Pace(
            lambda: codec(kind, False).decode_partial(raw, 2, len(raw), 2, store, TypeReader()), None
        ).go_on()


def test_a_long_value_pauses():
    kind = StructType([(f"f{i}", STRING) for i in range(1000)])
    raw = encode_bitset(1, False) + bytes(1000)
    pauses = 0

    def due():
        nonlocal pauses
        pauses += 1
        return True

    found = []
    pace = Pace(lambda: found.append(measurer(kind, False).marked(raw, 0, len(raw))), due)
    while not pace.go_on():
        assert pauses < 100
    assert found == [(1, len(raw))]
    assert pauses >= 3


@example(70)
@given(st.integers(0, 300))
@settings(relaxed, max_examples=20)
def test_ever_new_bit_sets_take_bounded_memory(seed):
    kind = StructType([(f"f{i}", STRING) for i in range(12)])
    m = measurer(kind, False)
    for bits in range(seed, seed + 100):
        raw = encode_bitset(bits * 2, False) + bytes(12)
        m.marked(raw, 0, len(raw))
    assert len(m._plans) <= 64
