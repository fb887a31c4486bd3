"""What holds for every type, every value and every run of bytes."""

from __future__ import annotations

import json
import tracemalloc

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import DecodeError
from appliance.pvdata import Value
from appliance.pvdata.bitset import decode_bitset, encode_bitset, iter_bits
from appliance.pvdata.codec import COMPILE_AFTER, codec, leaves_of
from appliance.pvdata.fielddesc import TypeReader, TypeWriter, decode_type, encode_type
from appliance.pvdata.jsonio import to_plain
from appliance.pvdata.render import render, render_type
from tests.helpers.pvdata_strategies import any_struct, not_hollow, types, values

relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
orders = st.booleans()


@relaxed
@given(types(), orders)
def test_a_type_survives_the_wire(t, big):
    raw = encode_type(t, big)
    assert decode_type(raw, 0, len(raw), big, TypeReader()) == (t, len(raw))


@relaxed
@given(st.lists(types(), max_size=6), orders)
def test_types_sent_by_id_arrive_as_they_were(sent, big):
    writer, reader = TypeWriter(), TypeReader()
    for t in sent * 2:
        raw = encode_type(t, big, writer)
        assert decode_type(raw, 0, len(raw), big, reader) == (t, len(raw))


@relaxed
@given(any_struct(), orders)
def test_a_value_survives_the_wire_interpreted_and_compiled(v, big):
    c = codec(v.type, big)
    raw = c.encode(v.store)
    for _ in range(COMPILE_AFTER + 2):
        assert c.encode(v.store) == raw
        assert b"".join(c.encode_chunks(v.store)) == raw
        store, pos = c.decode(raw, 0, len(raw), TypeReader())
        assert pos == len(raw)
        assert Value.from_store(v.type, store) == v


@relaxed
@given(st.data(), types().filter(not_hollow), orders)
def test_a_leaf_survives_the_wire(data, t, big):
    v = data.draw(values(t))
    c = codec(t, big)
    raw = c.encode(v if t.count == 1 and not isinstance(v, Value) else v.store)
    back, pos = c.decode(raw, 0, len(raw), TypeReader())
    assert pos == len(raw)
    assert c.encode(back) == raw


@relaxed
@given(any_struct(), st.data(), orders)
def test_a_partial_value_changes_the_selected_fields_and_no_others(v, data, big):
    bits = data.draw(st.integers(0, v.type.full_mask))
    c = codec(v.type, big)
    for _ in range(COMPILE_AFTER + 2):
        raw = c.encode_partial(v.store, bits)
        assert b"".join(c.encode_partial_chunks(v.store, bits)) == raw
        target = Value(v.type)
        before = list(target.store)
        pos = c.decode_partial(raw, 0, len(raw), bits, target.store, TypeReader())
        assert pos == len(raw)
        touched = set(v.type.leaves) if bits & 1 else set(leaves_of(v.type, bits))
        for number in v.type.leaves:
            expected = v.store[number] if number in touched else before[number]
            same = Value.from_store(v.type.leaf_types[number], [target.store[number]])
            assert same == Value.from_store(v.type.leaf_types[number], [expected])


@relaxed
@given(any_struct(), st.data())
def test_merging_two_updates_gives_what_the_sender_has(v, data):
    bits = data.draw(st.integers(0, v.type.full_mask))
    merged = Value(v.type)
    merged.merge(v.store, bits)
    merged.merge(v.store, v.type.full_mask & ~bits & v.type.leaf_mask)
    assert merged == v


@relaxed
@given(any_struct(), st.sampled_from(["delta", "tree"]), st.integers(0, 3))
def test_every_value_can_be_shown(v, fmt, limit):
    assert render(v, fmt, limit).isascii() or not v.type.id.isascii()
    assert render_type(v.type).endswith("\n")
    assert json.dumps(to_plain(v), allow_nan=False)
    assert repr(v)
    assert v.clone() == v


@relaxed
@given(any_struct())
def test_plain_python_goes_back_in(v):
    again = Value(v.type)
    again.assign(
        {path: v.store[number] for path, number in v.type.offsets.items() if number in v.type.leaves}
    )
    assert again == v


@given(st.integers(0, (1 << 300) - 1), orders)
def test_a_bit_set_survives_the_wire(bits, big):
    raw = encode_bitset(bits, big)
    assert decode_bitset(raw, 0, len(raw), big) == (bits, len(raw))
    assert sum(1 << bit for bit in iter_bits(bits)) == bits


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), orders)
def test_random_bytes_as_type_and_value_raise_decode_error_at_most(raw, big):
    decode_all(raw, big)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60), orders)
def test_random_bytes_inside_an_any_raise_decode_error_at_most(head, tail, big):
    decode_all(b"\x80\0\1\1a\x82" + head + tail, big)
    decode_all(b"\x80\0\1\1a\x8a" + head + tail, big)


@relaxed
@given(any_struct(), st.data(), orders)
def test_mutated_messages_raise_decode_error_at_most(v, data, big):
    raw = bytearray(encode_type(v.type, big) + codec(v.type, big).encode(v.store))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw)))
        match data.draw(st.sampled_from(["set", "cut", "insert", "delete"])):
            case "set" if place < len(raw):
                raw[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0x88, 0xFD, 0xFE, 0xFF]))
            case "cut":
                del raw[place:]
            case "insert":
                raw[place:place] = data.draw(st.binary(min_size=1, max_size=5))
            case _:
                del raw[place : place + 1]
    decode_all(bytes(raw), big)


def decode_all(raw, big):
    """Decode a type and a value of it, in every form of buffer, from bytes that nobody vouches for.

    Bound: 64 KiB and 600 bytes for each octet received, whatever the octets say.
    """
    tracemalloc.start()
    try:
        outcomes = [decode_once(buf, len(raw), big) for buf in (raw, bytearray(raw), memoryview(raw))]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert peak < 400_000 + 2000 * len(raw)


def decode_once(buf, end, big):
    types = TypeReader()
    try:
        t, pos = decode_type(buf, 0, end, big, types)
        if t is None:
            return None
        store, pos = codec(t, big).decode(buf, pos, end, types)
    except DecodeError as e:
        assert types.level == 0
        return str(e)
    assert types.level == 0
    assert pos <= end
    if t.count > 1:
        return Value.from_store(t, store)
    return pos
