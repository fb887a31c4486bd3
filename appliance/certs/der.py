"""The few parts of DER (X.690) that `cryptography` does not read or write for us."""

from __future__ import annotations

from typing import TypeVar

__all__ = [
    "DERError",
    "context",
    "integer",
    "null",
    "octets",
    "oid",
    "read_tlv",
    "sequence",
    "set_of",
    "tlv",
]


_Buffer = TypeVar("_Buffer", bytes, memoryview)


class DERError(ValueError):
    """Bytes that are not the DER that was expected."""


def tlv(tag: int, value: bytes) -> bytes:
    """Return one element: tag, length in its shortest form, value."""
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + value


def sequence(*items: bytes) -> bytes:
    """Encode a SEQUENCE."""
    return tlv(0x30, b"".join(items))


def set_of(*items: bytes) -> bytes:
    """Return a SET OF with its elements in the order of DER."""
    return tlv(0x31, b"".join(sorted(items)))


def octets(value: bytes) -> bytes:
    """Encode an OCTET STRING."""
    return tlv(0x04, value)


def null() -> bytes:
    """Encode NULL."""
    return b"\x05\x00"


def integer(value: int) -> bytes:
    """Encode an INTEGER that is not negative."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def context(number: int, value: bytes, *, constructed: bool = True) -> bytes:
    """Return a context-specific element [number]."""
    return tlv((0xA0 if constructed else 0x80) | number, value)


def oid(dotted: str) -> bytes:
    """Encode an OBJECT IDENTIFIER."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    body = bytearray((first * 40 + second,))
    for arc in rest:
        digits = [arc & 0x7F]
        while arc := arc >> 7:
            digits.append(0x80 | (arc & 0x7F))
        body.extend(reversed(digits))
    return tlv(0x06, bytes(body))


def read_tlv(data: _Buffer) -> tuple[int, _Buffer, _Buffer]:
    """Return the first element's tag and value, and what follows it.

    Only low tag numbers, and definite lengths in their shortest form.

    Raises:
        DERError: The data is cut off, or has another form.
    """
    if len(data) < 2:
        msg = "too short for a DER element"
        raise DERError(msg)
    tag, size, start = data[0], data[1], 2
    if tag & 0x1F == 0x1F:
        msg = "a high tag number"
        raise DERError(msg)
    if size >= 0x80:
        count = size & 0x7F
        if not 1 <= count <= 4 or len(data) < 2 + count:
            msg = "a length of an unknown form"
            raise DERError(msg)
        size = int.from_bytes(data[2 : 2 + count], "big")
        start += count
        if size < 0x80 or size.bit_length() <= 8 * (count - 1):
            msg = "a length that is not in its shortest form"
            raise DERError(msg)
    if len(data) - start < size:
        msg = f"{size} bytes announced, {len(data) - start} present"
        raise DERError(msg)
    return tag, data[start : start + size], data[start + size :]
