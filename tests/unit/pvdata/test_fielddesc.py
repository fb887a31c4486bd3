"""FieldDesc: every form of a type on the wire (pva.rst section 5.4)."""

from __future__ import annotations

import gc

import pytest

from appliance.errors import DecodeError
from appliance.pva.typed import decode_typed
from appliance.pvdata import (
    ANY,
    FLOAT64,
    INT16,
    INT32,
    STRING,
    ArrayType,
    BoundedString,
    StructType,
    UnionType,
    fielddesc,
)
from appliance.pvdata.fielddesc import TypeReader, TypeWriter, decode_type, encode_type
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.pvrequest import request_mask
from appliance.pvdata.types import SCALARS

POINT = StructType([("x", INT32), ("y", INT32)], "p_t")
POINT_HEX = "80" + "03" + b"p_t".hex() + "02" + "0178" + "22" + "0179" + "22"

KINDS = {
    "bool": ("00", "08"),
    "int8": ("20", "28"),
    "int16": ("21", "29"),
    "int32": ("22", "2a"),
    "int64": ("23", "2b"),
    "uint8": ("24", "2c"),
    "uint16": ("25", "2d"),
    "uint32": ("26", "2e"),
    "uint64": ("27", "2f"),
    "float32": ("42", "4a"),
    "float64": ("43", "4b"),
    "string": ("60", "68"),
}
OTHERS = [
    (ANY, "82", "82"),
    (ArrayType(ANY), "8a", "8a"),
    (POINT, POINT_HEX, POINT_HEX),
    (ArrayType(POINT), "88" + POINT_HEX, "88" + POINT_HEX),
    (UnionType([("x", INT32), ("y", INT32)], "p_t"), "81" + POINT_HEX[2:], "81" + POINT_HEX[2:]),
    (
        ArrayType(UnionType([("x", INT32), ("y", INT32)], "p_t")),
        "8981" + POINT_HEX[2:],
        "8981" + POINT_HEX[2:],
    ),
    (ArrayType(INT16, "bounded", 300), "31fe2c010000", "31fe0000012c"),
    (ArrayType(INT16, "fixed", 3), "3903", "3903"),
    (ArrayType(STRING, "bounded", 2), "7002", "7002"),
    (BoundedString(16), "8310", "8310"),
    (None, "ff", "ff"),
]


def read(text, big=False, types=None):
    raw = bytes.fromhex(text)
    t, pos = decode_type(raw, 0, len(raw), big, types or TypeReader())
    assert pos == len(raw)
    return t


@pytest.mark.parametrize("name", KINDS)
def test_scalars_and_their_arrays_are_one_octet(name):
    """Section 5.4.3."""
    t = SCALARS[name]
    scalar, array = KINDS[name]
    assert encode_type(t, False).hex() == scalar
    assert encode_type(ArrayType(t), True).hex() == array
    assert read(scalar) is t
    assert read(array) == ArrayType(t)


@pytest.mark.parametrize(("t", "little", "big"), OTHERS, ids=lambda x: repr(x)[:30])
def test_compound_and_sized_types(t, little, big):
    """Section 5.4.4; structure arrays carry the whole FieldDesc of their element, as all peers do."""
    assert encode_type(t, False).hex() == little
    assert encode_type(t, True).hex() == big
    assert read(little) == t
    assert read(big, big=True) == t


def test_a_type_with_an_id_is_remembered():
    """Section 5.4.1: 0xFD defines, 0xFE refers; the ID is in the message's byte order."""
    types = TypeReader()
    assert read("fd0102" + POINT_HEX, True, types) == POINT
    assert read("fe0102", True, types) is types.types[0x0102]
    assert read("fe0201", False, types) == POINT


def test_ids_appear_inside_other_types():
    types = TypeReader()
    outer = read("80" + "00" + "02" + "0161" + "fd0100" + POINT_HEX + "0162" + "88fe0100", False, types)
    assert outer == StructType([("a", POINT), ("b", ArrayType(POINT))])


def test_an_id_may_be_defined_anew():
    types = TypeReader()
    read("fd0100" + POINT_HEX, False, types)
    read("fd010022", False, types)
    assert read("fe0100", False, types) is INT32


def test_a_writer_sends_a_structure_in_full_once_and_a_scalar_always():
    writer = TypeWriter()
    assert encode_type(POINT, False, writer).hex() == "fd0000" + POINT_HEX
    assert encode_type(POINT, False, writer).hex() == "fe0000"
    assert encode_type(INT32, False, writer).hex() == "22"
    assert encode_type(ArrayType(POINT), True, writer).hex() == "fd0001" + "88" + POINT_HEX


def test_a_writer_that_is_full_sends_in_full():
    writer = TypeWriter(limit=0)
    assert encode_type(POINT, False, writer).hex() == POINT_HEX


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "truncated"),
        ("fe0500", "type ID 5 has not been defined"),
        ("fe05", "truncated"),
        ("fd0500ff", "unknown type code 0xff"),
        ("fc0000000022", "unknown type code 0xfc"),
        ("fb", "unknown type code 0xfb"),
        ("a0", "unknown type code 0xa0"),
        ("e0", "unknown type code 0xe0"),
        ("01", "unknown type code 0x01"),
        ("40", "unknown type code 0x40"),
        ("92", "unknown type code 0x92"),
        ("8822", "the element of array kind 0x88"),
        ("88" + "81" + POINT_HEX[2:], "the element of array kind 0x88"),
        ("8000010161ff", "unknown type code 0xff"),
        ("800001006022", "invalid field name"),
        ("80000203612e622203612e6222", "appears twice"),
        ("80000103612e6222", "invalid field name 'a.b'"),
        ("8000fe00000010", "truncated"),
        ("8000ff", "null size"),
        ("3afeffffffff", "not acceptable"),
        ("83feffffffff", "not acceptable"),
    ],
)
def test_malformed_types_are_refused(text, why):
    raw = bytes.fromhex(text)
    with pytest.raises(DecodeError, match=why):
        decode_type(raw, 0, len(raw), False, TypeReader())


def test_names_that_only_older_peers_would_send_are_read():
    assert read("80000103612d6222").members == {"a-b": INT32}


def test_nesting_without_end_is_refused():
    raw = b"\x80\0\1\1a" * 5000
    with pytest.raises(DecodeError, match="deeper than 32"):
        decode_type(raw, 0, len(raw), False, TypeReader())
    raw = b"\xfd\0\0" * 5000
    with pytest.raises(DecodeError, match="deeper than 32"):
        decode_type(raw, 0, len(raw), False, TypeReader())


def test_types_that_multiply_through_ids_are_refused():
    """Ten references to a type of ten references ... would soon fill any memory."""
    types = TypeReader()
    raw = b"\xfd\0\0\x80\0\x0a" + b"".join(b"\1%c\x22" % (97 + i) for i in range(10))
    decode_type(raw, 0, len(raw), False, types)
    with pytest.raises(DecodeError, match="more than 65535 fields"):
        for level in range(1, 10):
            refer = b"\xfe" + (level - 1).to_bytes(2, "little")
            raw = b"\xfd" + level.to_bytes(2, "little") + b"\x80\0\x0a"
            raw += b"".join(b"\1%c" % (97 + i) + refer for i in range(10))
            decode_type(raw, 0, len(raw), False, types)


def test_the_number_of_ids_is_limited():
    types = TypeReader(limit=2)
    for i in range(2):
        read(f"fd0{i}0022", False, types)
    read("fd000060", False, types)
    with pytest.raises(DecodeError, match="more than 2 type IDs"):
        read("fd020022", False, types)


def test_the_fields_behind_all_ids_are_limited():
    types = TypeReader()
    wide = encode_type(StructType([(f"f{i}", INT32) for i in range(60000)]), False)
    with pytest.raises(DecodeError, match="that the peer defines"):
        for i in range(6):
            raw = b"\xfd" + i.to_bytes(2, "little") + wide
            decode_type(raw, 0, len(raw), False, types)


def test_a_description_that_comes_again_is_the_same_type_and_nothing_else_is():
    from itertools import pairwise

    names = [f"a_field_number_{n}" for n in range(6)]
    first, second = (StructType([(name, kind) for name in names]) for kind in (INT32, STRING))
    cache = TypeReader()
    for big in (False, True):
        octets = {t: encode_type(t, big) for t in (first, second)}
        for before, t in pairwise((first, first, second, first, second, second)):
            assert decode_type(octets[before], 0, len(octets[before]), big, cache)[0] == before
            tail = octets[t] + b"\x01"
            for buf in (tail, bytearray(tail), memoryview(tail)):
                assert decode_type(buf, 0, len(tail), big, cache) == (t, len(tail) - 1)
            # One that is cut off is not taken for the one before it.
            with pytest.raises(DecodeError):
                decode_type(octets[t], 0, len(octets[t]) - 1, big, cache)
    cache.clear()
    assert cache.last is None


def test_a_description_with_an_id_means_what_the_id_means_now():
    cache = TypeReader()
    one, two = (StructType([(f"a_long_name_of_{word}", INT32)]) for word in ("one", "two"))

    def define(t):
        octets = b"\xfd\x07\x00" + encode_type(t, False)
        return decode_type(octets, 0, len(octets), False, cache)[0]

    def outer():
        name = b"x" * 80
        octets = b"\x80\x00\x01" + bytes((len(name),)) + name + b"\xfe\x07\x00"
        return decode_type(octets, 0, len(octets), False, cache)[0].fields[0][1]

    assert define(one) == one
    assert outer() == one
    assert define(two) == two
    assert outer() == two


def _request(name: str) -> StructType:
    return StructType([("field", StructType([(name, StructType())]))])


def test_connections_share_small_types() -> None:
    octets = encode_type(_request("value"), False)
    one, two = (decode_type(octets, 0, len(octets), False, TypeReader())[0] for _ in range(2))
    assert one is two
    assert one == _request("value")


def test_the_small_types_of_all_connections_are_bounded() -> None:
    for number in range(1000):
        octets = encode_type(_request(f"f{number}"), False)
        decode_type(octets, 0, len(octets), False, TypeReader())
    assert len(fielddesc._common) <= fielddesc._MOST_COMMON


def test_clients_that_come_and_go_with_the_same_requests_leave_nothing_behind() -> None:
    octets = encode_type(_request("value"), False)
    kind = NTScalar(FLOAT64)

    def come_and_go() -> None:
        value, _ = decode_typed(octets, 0, len(octets), False, TypeReader())
        assert value is not None
        request_mask(value, kind)

    come_and_go()
    gc.collect()
    for _ in range(20):
        come_and_go()
    assert gc.collect() == 0
