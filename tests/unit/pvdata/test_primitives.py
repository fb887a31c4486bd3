"""Size, String and BitSet, octet by octet (pva.rst sections 5.1 and 5.5)."""

from __future__ import annotations

import pytest

from appliance.errors import DecodeError, PVDataError
from appliance.pvdata.bitset import decode_bitset, encode_bitset, iter_bits
from appliance.pvdata.primitives import decode_count, decode_size, decode_string, encode_size, encode_string

SIZES = [
    (0, "00", "00"),
    (1, "01", "01"),
    (253, "fd", "fd"),
    (254, "fefe000000", "fe000000fe"),
    (255, "feff000000", "fe000000ff"),
    (0x12345678, "fe78563412", "fe12345678"),
    (0x7FFFFFFF, "feffffff7f", "fe7fffffff"),
    (0xFFFFFFFF, "feffffffff", "feffffffff"),
    (None, "ff", "ff"),
]


@pytest.mark.parametrize(("n", "little", "big"), SIZES)
def test_every_form_of_size(n, little, big):
    """Section 5.1.1: the long form follows the message's byte order."""
    for order, text in ((False, little), (True, big)):
        raw = bytes.fromhex(text)
        assert encode_size(n, order) == raw
        for buf in (raw, bytearray(raw), memoryview(raw)):
            assert decode_size(buf, 0, len(raw), order) == (n, len(raw))


def test_null_is_no_count():
    """Section 5.1.1: outside nullable contexts 0xFF is malformed."""
    with pytest.raises(DecodeError, match="null size at byte 0"):
        decode_count(b"\xff", 0, 1, False)
    assert decode_count(b"\x07", 0, 1, False) == (7, 1)


@pytest.mark.parametrize("raw", ["", "fe", "fe010203"])
def test_a_size_that_is_cut_off_is_refused(raw):
    data = bytes.fromhex(raw)
    with pytest.raises(DecodeError, match="truncated"):
        decode_size(data, 0, len(data), False)


def test_end_is_respected_though_the_buffer_goes_on():
    with pytest.raises(DecodeError):
        decode_size(b"\xfe\1\0\0\0", 0, 4, False)
    with pytest.raises(DecodeError):
        decode_string(b"\3abc", 0, 3, False)
    with pytest.raises(DecodeError):
        decode_bitset(b"\2\1\1", 0, 2, False)


@pytest.mark.parametrize("n", [-1, 1 << 32])
def test_a_size_out_of_range_is_refused(n):
    with pytest.raises(PVDataError, match="a size must be"):
        encode_size(n)


def test_strings_count_octets_and_not_characters():
    """Section 5.1.2."""
    assert encode_string("\u00b5A") == b"\3\xc2\xb5A"
    assert encode_string("") == b"\0"
    long = "x" * 254
    assert encode_string(long, True) == b"\xfe\0\0\0\xfe" + long.encode()
    assert encode_string(long, False)[:5] == b"\xfe\xfe\0\0\0"
    assert decode_string(b"\3\xc2\xb5A", 0, 4, False) == ("\u00b5A", 4)


def test_a_null_string_reads_as_empty():
    assert decode_string(b"\xff", 0, 1, False) == ("", 1)


def test_octets_that_are_not_utf8_pass_through_unchanged():
    """A Latin-1 degree sign, as the EGU of many a record holds it."""
    text, pos = decode_string(b"\2\xb0C", 0, 3, False)
    assert pos == 3
    assert encode_string(text) == b"\2\xb0C"


def test_a_lone_surrogate_of_another_origin_is_refused():
    with pytest.raises(PVDataError, match="UTF-8"):
        encode_string("\ud800")


def test_a_string_that_is_longer_than_the_message_is_refused_before_it_is_read():
    with pytest.raises(DecodeError, match="truncated"):
        decode_string(b"\xfe\xff\xff\xff\x7fabc", 0, 8, False)


def test_long_bit_sets_carry_words_in_the_byte_order_of_the_message():
    """As pvDataCPP and PVXS; section 5.5.2 says otherwise, see docs/conformance.md."""
    bits = 1 << 0 | 1 << 62 | 1 << 65
    assert encode_bitset(bits, False).hex() == "09" + "0100000000000040" + "02"
    assert encode_bitset(bits, True).hex() == "09" + "4000000000000001" + "02"


def test_an_empty_bit_set_is_one_octet():
    """Section 5.5.6."""
    assert encode_bitset(0, True) == b"\0"
    assert decode_bitset(b"\0", 0, 1, True) == (0, 1)


@pytest.mark.parametrize("raw", ["", "01", "0700000000", "08" + "00" * 7, "fe"])
def test_a_bit_set_that_is_cut_off_is_refused(raw):
    data = bytes.fromhex(raw)
    with pytest.raises(DecodeError, match="truncated"):
        decode_bitset(data, 0, len(data), False)


def test_a_bit_set_beyond_any_type_is_refused():
    raw = encode_size(9000) + b"\xff" * 9000
    with pytest.raises(DecodeError, match="at most 8192"):
        decode_bitset(raw, 0, len(raw), False)


def test_a_negative_bit_set_is_refused():
    with pytest.raises(PVDataError):
        encode_bitset(-1, False)


def test_bits_come_lowest_first():
    assert list(iter_bits(1 << 200 | 1 << 64 | 0b101)) == [0, 2, 64, 200]
