"""The smallest parts of messages: Size and String, and the error for missing octets.

Every decoder takes ``buf``, the position and the end of what it may read. It returns the value and the new
position. Source: pva.rst section 5.1; for differences to PVXS see docs/conformance.md.
"""

from __future__ import annotations

from appliance.errors import DecodeError, PVDataError

__all__ = [
    "DecodeLimits",
    "Lendable",
    "decode_count",
    "decode_size",
    "decode_string",
    "encode_size",
    "encode_string",
]

Buffer = bytes | bytearray | memoryview


class Lendable(bytearray):
    """A buffer whose owner promises: after a read-only view of it was decoded, it does not change any more."""


class DecodeLimits:
    """Bounds of the memory that a peer can make us use."""

    CACHED_TYPES = 16384
    """Type IDs that one connection may define."""
    CACHED_OCTETS = 32 << 20
    """Octets of memory for all types in the cache of one connection, estimated by ``TypeDesc.weight``."""
    ALL_CACHED_OCTETS = 256 << 20
    """The same for all connections of a process together."""
    KNOWN_OCTETS = 1 << 20
    """The same for types without an ID, which a connection keeps to recognise equal types."""
    BITSET_BYTES = 8192
    """Octets of a bit set: 65536 fields."""
    NESTED_VALUES = 32
    """Levels of values inside unions, anys and structure arrays."""


_ONE = tuple([bytes((i,)) for i in range(254)])
_MAX_SIZE = 0xFFFFFFFF


def truncated(pos: int, end: int) -> DecodeError:
    """Return the error for a message that ends before its content."""
    return DecodeError(f"truncated: byte {pos} is needed of {end}")


def encode_size(n: int | None, big: bool = False) -> bytes:
    """Encode a Size; ``None`` is the null form 0xFF. The long form is in the message's byte order."""
    if n is None:
        return b"\xff"
    if 0 <= n < 254:
        return _ONE[n]
    if 254 <= n <= _MAX_SIZE:
        return b"\xfe" + n.to_bytes(4, "big" if big else "little")
    raise PVDataError(f"a size must be from 0 to {_MAX_SIZE}, not {n}")


def decode_size(buf: Buffer, pos: int, end: int, big: bool) -> tuple[int | None, int]:
    """Decode a Size; ``None`` stands for the null form.

    There is no 64-bit form: neither the specification nor PVXS has one, and no message can be so large.
    """
    if pos >= end:
        raise truncated(pos, end)
    n = buf[pos]
    if n < 254:
        return n, pos + 1
    if n == 255:
        return None, pos + 1
    if pos + 5 > end:
        raise truncated(pos + 4, end)
    return int.from_bytes(buf[pos + 1 : pos + 5], "big" if big else "little"), pos + 5


def decode_count(buf: Buffer, pos: int, end: int, big: bool) -> tuple[int, int]:
    """Decode a Size where null is not allowed."""
    n, pos = decode_size(buf, pos, end, big)
    if n is None:
        raise DecodeError(f"null size at byte {pos - 1} where a number is needed")
    return n, pos


def encode_string(s: str, big: bool = False) -> bytes:
    """Encode a String (pva.rst section 5.1.2). Octets that were not UTF-8 when decoded are sent unchanged."""
    if not s:
        return b"\0"
    try:
        raw = s.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as e:
        raise PVDataError(f"the string cannot be encoded as UTF-8: {e.reason}") from None
    n = len(raw)
    return (_ONE[n] if n < 254 else encode_size(n, big)) + raw


def decode_string(buf: Buffer, pos: int, end: int, big: bool) -> tuple[str, int]:
    """Decode a String; null reads as the empty string, as PVXS does.

    Octets that are not UTF-8 are kept as surrogates. Records of older sites have Latin-1 units such as the
    degree sign, and PVXS passes them unchanged. To refuse them would end the whole connection.
    """
    n, pos = decode_size(buf, pos, end, big)
    if not n:
        return "", pos
    if n > end - pos:
        raise truncated(pos + n, end)
    return str(buf[pos : pos + n], "utf-8", "surrogateescape"), pos + n
