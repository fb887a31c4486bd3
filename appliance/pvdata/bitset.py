"""BitSet: which fields of a structure a message carries. In memory it is an ``int``.

Source: pva.rst section 5.5. PVXS and pvDataCPP write each full group of eight octets as one 64-bit word in
the message's byte order; the specification says that the order does not matter. We do as the peers do.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.errors import DecodeError, PVDataError
from appliance.pvdata.primitives import Buffer, DecodeLimits, decode_count, encode_size, truncated

__all__ = ["decode_bitset", "encode_bitset", "iter_bits"]


_short: dict[int, bytes] = {}
"""Encoded bit sets of less than eight octets: byte order does not matter there, and subscriptions send the same few."""
_SHORT_MAX = 4096


def encode_bitset(bits: int, big: bool) -> bytes:
    """Encode without trailing zero octets."""
    known = _short.get(bits)
    if known is not None:
        return known
    if bits < 0:
        raise PVDataError("a bit set cannot be negative")
    n = (bits.bit_length() + 7) // 8
    raw = bits.to_bytes(n, "little")
    if big and n >= 8:
        raw = _swap_words(raw)
    encoded = encode_size(n, big) + raw
    if n < 8:
        if len(_short) >= _SHORT_MAX:
            _short.clear()
        _short[bits] = encoded
    return encoded


def decode_bitset(buf: Buffer, pos: int, end: int, big: bool) -> tuple[int, int]:
    """Decode. The caller drops bits beyond the type's fields (``bits & t.full_mask``)."""
    if pos >= end:
        raise truncated(pos, end)
    n = buf[pos]
    if n < 8:
        # One octet is enough for nearly every type.
        stop = pos + 1 + n
        if stop > end:
            raise truncated(stop, end)
        return (buf[pos + 1] if n == 1 else int.from_bytes(buf[pos + 1 : stop], "little")), stop
    n, pos = decode_count(buf, pos, end, big)
    if n > end - pos:
        raise truncated(pos + n, end)
    if n > DecodeLimits.BITSET_BYTES:
        raise DecodeError(f"a bit set of {n} octets; at most {DecodeLimits.BITSET_BYTES} are allowed")
    raw = bytes(buf[pos : pos + n])
    return int.from_bytes(_swap_words(raw) if big else raw, "little"), pos + n


def iter_bits(bits: int) -> Iterator[int]:
    """Yield the numbers of the set bits, lowest first."""
    base = 0
    # Word by word, so that the work stays linear in a long set.
    while bits:
        word = bits & 0xFFFFFFFFFFFFFFFF
        while word:
            low = word & -word
            yield base + low.bit_length() - 1
            word ^= low
        bits >>= 64
        base += 64


def _swap_words(raw: bytes) -> bytes:
    whole = len(raw) // 8 * 8
    return b"".join([raw[i : i + 8][::-1] for i in range(0, whole, 8)]) + raw[whole:]
