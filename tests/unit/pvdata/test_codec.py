"""Values on the wire (pva.rst sections 5.2, 5.3, 5.5), by reference, and from hostile peers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from appliance.errors import DecodeError, PVDataError
from appliance.pvdata import (
    ANY,
    BOOL,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    STRING,
    UINT8,
    AnyValue,
    ArrayType,
    BoundedString,
    StructType,
    UnionType,
    UnionValue,
    Value,
    nt,
)
from appliance.pvdata.codec import COMPILE_AFTER, MAX_PLANS, Codec, codec
from appliance.pvdata.fielddesc import TypeReader
from appliance.pvdata.primitives import Lendable, encode_size

POINT = StructType([("x", INT16), ("y", INT16)], "p_t")


def point(x, y):
    return Value(POINT, {"x": x, "y": y})


LEAVES = [
    (BOOL, True, "01", "01"),
    (INT8, -1, "ff", "ff"),
    (INT16, -2, "feff", "fffe"),
    (INT32, 0x01020304, "04030201", "01020304"),
    (FLOAT64, 1.0, "000000000000f03f", "3ff0000000000000"),
    (STRING, "ab", "026162", "026162"),
    (BoundedString(2), "ab", "026162", "026162"),
    (ArrayType(INT16), np.array([1, 2], "i2"), "0201000200", "0200010002"),
    (ArrayType(BOOL), np.array([True, False]), "020100", "020100"),
    (ArrayType(STRING), ("a", ""), "02016100", "02016100"),
    (ArrayType(INT16, "bounded", 3), np.array([1], "i2"), "010100", "010001"),
    (ArrayType(INT16, "fixed", 2), np.array([1, 2], "i2"), "01000200", "00010002"),
    (ArrayType(STRING, "fixed", 2), ("a", ""), "016100", "016100"),
    (ArrayType(POINT), [point(1, 2), None], "02" + "0101000200" + "00", "02" + "0100010002" + "00"),
    (UnionType([("i", INT16), ("s", STRING)]), UnionValue("s", "q"), "010171", "010171"),
    (UnionType([("i", INT16)]), UnionValue(None, None), "ff", "ff"),
    (
        ArrayType(UnionType([("i", INT16)])),
        [UnionValue("i", 5), None],
        "0201000500" + "00",
        "0201000005" + "00",
    ),
    (ANY, AnyValue(None, None), "ff", "ff"),
    (ANY, AnyValue(INT16, 5), "210500", "210005"),
    (ArrayType(ANY), [AnyValue(INT16, 5), None], "0201210500" + "00", "0201210005" + "00"),
]


@pytest.mark.parametrize(("t", "value", "little", "big"), LEAVES, ids=lambda x: repr(x)[:24])
def test_every_kind_of_leaf(t, value, little, big):
    for order, text in ((False, little), (True, big)):
        raw = bytes.fromhex(text)
        c = codec(t, order)
        assert c.encode(value) == raw
        assert b"".join(c.encode_chunks(value)) == raw
        back, pos = c.decode(raw, 0, len(raw), TypeReader())
        assert pos == len(raw)
        assert Value.from_store(t, [back]) == Value.from_store(t, [value])


def test_any_octet_but_0_is_true():
    assert codec(BOOL, False).decode(b"\x02", 0, 1, TypeReader()) == (True, 1)
    array, _ = codec(ArrayType(BOOL), False).decode(b"\2\x80\0", 0, 3, TypeReader())
    assert array.tolist() == [True, False]


def test_an_element_that_is_present_but_null_reads_as_absent():
    assert codec(ArrayType(ANY), False).decode(b"\1\1\xff", 0, 3, TypeReader()) == ([None], 3)
    assert codec(ArrayType(UnionType([("i", INT16)])), False).decode(b"\1\1\xff", 0, 3, TypeReader()) == (
        [None],
        3,
    )


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_arrays_are_read_only_and_native(big, make):
    c = codec(ArrayType(INT32), big)
    raw = make(c.encode(np.arange(3, dtype="i4")))
    array, _ = c.decode(raw, 0, len(raw), TypeReader())
    assert array.tolist() == [0, 1, 2]
    assert array.dtype.isnative
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 5


def test_arrays_never_see_later_changes_of_the_receive_buffer():
    c = codec(ArrayType(INT32), False)
    raw = bytearray(c.encode(np.arange(3, dtype="i4")))
    array, _ = c.decode(memoryview(raw).toreadonly(), 0, len(raw), TypeReader())
    raw[:] = bytes(len(raw))
    assert array.tolist() == [0, 1, 2]
    raw.extend(b"more")  # nothing holds on to the buffer


def test_an_array_refers_to_a_buffer_that_is_lent_and_to_no_other():
    c = codec(ArrayType(INT32), False)
    octets = c.encode(np.arange(300, dtype="i4"))
    for raw, is_lent in (
        (memoryview(Lendable(octets)).toreadonly(), True),
        (memoryview(Lendable(octets)), False),
        (Lendable(octets), False),
        (
            memoryview(Lendable(octets + bytes(2000))).toreadonly(),
            False,
        ),  # it would keep too much other memory
    ):
        array, _ = c.decode(raw, 0, len(raw), TypeReader())
        assert array.tolist() == list(range(300))
        assert not array.flags.writeable
        assert np.shares_memory(array, np.frombuffer(raw, "u1")) is is_lent


def test_a_big_array_refers_to_the_bytes_and_a_small_one_does_not_keep_them():
    c = codec(ArrayType(UINT8), False)
    raw = c.encode(np.zeros(10000, "u1"))
    big, _ = c.decode(raw, 0, len(raw), TypeReader())
    assert big.base is not None
    padded = raw + bytes(30000)
    small, _ = c.decode(padded, 0, len(padded), TypeReader())
    assert small.base is None


def test_big_arrays_are_handed_out_by_reference():
    value = Value(nt.NTScalarArray(FLOAT64), {"value": np.arange(1024, dtype="f8")})
    chunks = codec(value.type, False).encode_chunks(value.store)
    assert isinstance(chunks[1], memoryview)
    assert np.shares_memory(np.frombuffer(chunks[1], "f8"), value["value"])
    assert len(chunks) == 3
    assert b"".join(chunks) == codec(value.type, False).encode(value.store)


def test_arrays_inside_unions_are_handed_out_by_reference():
    value = Value(nt.NTNDArray())
    value["value->ubyteValue"] = np.zeros(100_000, "u1")
    chunks = codec(value.type, False).encode_chunks(value.store)
    assert any(isinstance(chunk, memoryview) and len(chunk) == 100_000 for chunk in chunks)


def test_a_structure_bit_stands_for_everything_below_it():
    """PVXS and pvDataCPP; children's bits beside it say nothing more (docs/conformance.md)."""
    t = nt.NTScalar(FLOAT64)
    value = Value(t, {"timeStamp": {"secondsPastEpoch": 7, "nanoseconds": 8, "userTag": 9}})
    c = codec(t, False)
    here = 1 << t.offsets["timeStamp"]
    whole = c.encode_partial(value.store, here)
    assert whole == c.encode_partial(value.store, here | 1 << t.offsets["timeStamp.userTag"])
    assert whole == c.encode_partial(value.store, t.masks[t.offsets["timeStamp"]] & t.leaf_mask)
    assert c.encode_partial(value.store, 1) == c.encode(value.store)


def test_bits_beyond_the_type_are_ignored():
    """Section 5.5.3."""
    t = nt.NTScalar(FLOAT64)
    value = Value(t, 1.0)
    assert codec(t, False).encode_partial(value.store, 2 | 1 << 500) == codec(t, False).encode_partial(
        value.store, 2
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_a_store_is_untouched_when_decoding_fails(compiled):
    t = nt.NTScalar(FLOAT64)
    c = Codec(t, False)
    value = Value(t, {"value": 1.0, "alarm.message": "old"})
    raw = c.encode_partial(Value(t, {"value": 2.0, "alarm.message": "new"}).store, 0b100010)
    if compiled:
        for _ in range(COMPILE_AFTER + 2):
            c.decode_partial(raw, 0, len(raw), 0b100010, list(value.store), TypeReader())
    before = list(value.store)
    with pytest.raises(DecodeError):
        c.decode_partial(raw, 0, len(raw) - 1, 0b100010, value.store, TypeReader())
    assert value.store == before


@pytest.mark.parametrize("compiled", [False, True])
def test_every_truncation_of_a_value_is_noticed(compiled):
    t = nt.NTScalar(STRING, display=True)
    c = Codec(t, False)
    raw = c.encode(Value(t, {"value": "x" * 300, "alarm.message": "m"}).store)
    if compiled:
        for _ in range(COMPILE_AFTER + 2):
            c.decode(raw, 0, len(raw), TypeReader())
    for end in range(len(raw)):
        for buf in (raw[:end], raw):
            with pytest.raises(DecodeError):
                c.decode(buf, 0, end, TypeReader())


def test_plans_do_not_pile_up():
    t = StructType([(f"f{i}", INT32) for i in range(20)])
    c = Codec(t, False)
    store = Value(t).store
    for bits in range(2, 2 + 5 * MAX_PLANS):
        c.encode_partial(store, bits)
    assert len(c._encoders) <= MAX_PLANS


def test_equal_types_share_a_codec():
    assert codec(nt.NTScalar(FLOAT64), False) is codec(nt.NTScalar(FLOAT64), False)
    assert codec(nt.NTScalar(FLOAT64), False) is not codec(nt.NTScalar(FLOAT64), True)


@pytest.mark.parametrize(
    ("path", "bad", "why"),
    [
        ("value", "text", "value: cannot encode 'text'"),
        ("alarm.severity", 1 << 40, "alarm.severity: cannot encode"),
        ("alarm.message", None, "alarm.message: cannot encode None"),
        ("alarm.message", "\ud800", "alarm.message: cannot encode"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_bad_store_is_reported_with_the_field(path, bad, why, compiled):
    t = nt.NTScalar(FLOAT64)
    c = Codec(t, False)
    value = Value(t)
    for _ in range(COMPILE_AFTER + 2 if compiled else 0):
        c.encode(value.store)
    value.store[t.offsets[path]] = bad
    with pytest.raises(PVDataError, match=why):
        c.encode(value.store)
    with pytest.raises(PVDataError, match=why):
        c.encode_partial(value.store, t.leaf_mask)


@pytest.mark.parametrize(
    ("t", "bad"),
    [
        (ArrayType(INT32), [1, 2]),
        (ArrayType(INT32), np.zeros(2, "i8")),
        (ArrayType(INT32), np.zeros((2, 2), "i4")),
        (ArrayType(INT32, "bounded", 1), np.zeros(2, "i4")),
        (ArrayType(STRING), "ab"),
        (ArrayType(STRING), ("a", 1)),
        (ArrayType(STRING, "fixed", 1), ()),
        (ArrayType(POINT), [1]),
        (ArrayType(POINT), [Value(nt.ALARM)]),
        (UnionType([("i", INT16)]), UnionValue("z", 1)),
        (UnionType([("i", INT16)]), 5),
        (ANY, AnyValue(INT16, "x")),
        (ANY, 5),
        (BoundedString(1), "ab"),
        (INT8, 128),
    ],
    ids=repr,
)
def test_a_leaf_that_does_not_fit_is_refused(t, bad):
    with pytest.raises(PVDataError, match="cannot encode"):
        codec(t, False).encode(bad)


@pytest.mark.parametrize(
    ("t", "raw", "why"),
    [
        (ArrayType(FLOAT64), b"\xfe\xff\xff\xff\x7f" + bytes(64), "truncated"),
        (ArrayType(STRING), b"\xfe\xff\xff\xff\x7f" + bytes(64), "truncated"),
        (ArrayType(POINT), b"\xfe\xff\xff\xff\x7f" + bytes(64), "truncated"),
        (ArrayType(INT8), b"\xff", "null size"),
        (ArrayType(INT8, "bounded", 1), b"\2\1\1", "2 elements in a field of at most 1"),
        (BoundedString(1), b"\2ab", "2 octets in a field of at most 1"),
        (UnionType([("i", INT16)]), b"\1\0\0", "union selector 1; there are 1"),
        (ANY, b"\x82" * 100, "values nest deeper than 32"),
        (ANY, b"\x8a\1\1" * 100, "values nest deeper than 32"),
        (ANY, b"\xfe\1\0", "type ID 1 has not been defined"),
        (ANY, b"", "truncated"),
    ],
    ids=repr,
)
def test_hostile_leaves_are_refused(t, raw, why):
    with pytest.raises(DecodeError, match=why):
        codec(t, False).decode(raw, 0, len(raw), TypeReader())


def empty_structs(n):
    return StructType([(f"e{i}", StructType([])) for i in range(n)])


N = 5000
AMPLIFIERS = {
    "null elements": (ArrayType(POINT), b"\0" * N),
    "elements without leaves": (ArrayType(empty_structs(15)), b"\1" * N),
    "elements of a thousand structures": (ArrayType(empty_structs(1000)), b"\1" * N),
    "empty strings": (ArrayType(STRING), b"\0" * N),
    "empty arrays": (ArrayType(StructType([("a", ArrayType(INT8))])), b"\1\0" * N),
    "anys of empty structures": (ArrayType(ANY), b"\1\x80\0\0" * N),
    "ever new types": (
        ArrayType(ANY),
        b"".join(b"\1\x80\0\1\4%04x\x20\5" % i for i in range(N)).replace(b"\4", b"\5a"),
    ),
    "fixed arrays": (ArrayType(ANY), b"\1\x38\xfe\0\0\1\0" * N),
}


@pytest.mark.parametrize("name", AMPLIFIERS)
def test_memory_stays_within_300_bytes_for_each_octet_received(name):
    t, body = AMPLIFIERS[name]
    raw = encode_size(N) + body
    c = codec(t, False)
    types = TypeReader()
    tracemalloc.start()
    try:
        try:
            c.decode(raw, 0, len(raw), types)
        except DecodeError:
            refused = True
        else:
            refused = False
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000 + 300 * len(raw)
    assert refused is (name in ("elements of a thousand structures", "fixed arrays"))


def test_a_type_of_many_fields_is_never_compiled():
    t = StructType([(f"f{i}", STRING if i % 2 else INT8) for i in range(1000)])
    c = Codec(t, False)
    value = Value(t, {"f1": "x"})
    for _ in range(COMPILE_AFTER + 3):
        raw = c.encode(value.store)
        store, _ = c.decode(raw, 0, len(raw), TypeReader())
        assert store == value.store
    assert type(c.decode).__name__ == "_FullDecoder"


def test_names_never_reach_the_compiled_source():
    from appliance.pvdata import types as t_module

    evil = "s[0]);raise SystemExit(1)#"
    t = t_module.from_wire(StructType, [(evil, INT32), ("x'\"", STRING)], evil)
    c = Codec(t, False)
    for _ in range(COMPILE_AFTER + 3):
        raw = c.encode([None, 5, "a"])
        assert c.decode(raw, 0, len(raw), TypeReader())[0] == [None, 5, "a"]
