"""Read BER (X.690 8), which some writers of PKCS#12 files use: indefinite lengths, strings in pieces.

DER is a special case of it. `appliance.certs.der` is for data that must be DER.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from appliance.certs.der import DERError

__all__ = ["Element", "read_ber"]

_MAX_DEPTH: Final = 24
_MAX_ELEMENTS: Final = 20_000
_OPEN: Final = -1


class Element(NamedTuple):
    """One element with what is inside it."""

    tag: int
    """The identifier octet: class, whether constructed, number."""
    raw: bytes
    """The whole element as it was encoded."""
    value: bytes
    """The contents of a primitive element."""
    parts: tuple[Element, ...]
    """The parts of a constructed element."""

    def expect(self, tag: int) -> Element:
        """Return the element if it has that tag.

        Raises:
            DERError: It has another tag.
        """
        if self.tag != tag:
            msg = f"an element of the kind 0x{self.tag:02x} instead of 0x{tag:02x}"
            raise DERError(msg)
        return self

    def part(self, index: int, tag: int | None = None) -> Element:
        """Return one of its parts, of the kind ``tag``.

        Raises:
            DERError: There is none.
        """
        if not index < len(self.parts):
            msg = f"an element of {len(self.parts)} parts; at least {index + 1} are needed"
            raise DERError(msg)
        found = self.parts[index]
        return found if tag is None else found.expect(tag)

    def octets(self) -> bytes:
        """Return the contents of a string, joined if it is in pieces.

        Raises:
            DERError: A piece is no OCTET STRING.
        """
        if not self.tag & 0x20:
            return self.value
        return b"".join(piece.octet_string() for piece in self.parts)

    def octet_string(self) -> bytes:
        """Return the octets of an OCTET STRING, whole or in pieces.

        Raises:
            DERError: It, or a piece of it, is of another kind.
        """
        return (self if self.tag == 0x24 else self.expect(0x04)).octets()

    def integer(self) -> int:
        """Return the number in an INTEGER.

        Raises:
            DERError: It is of another kind, or has no octets.
        """
        if not self.expect(0x02).value:
            msg = "a number without octets"
            raise DERError(msg)
        return int.from_bytes(self.value, "big", signed=True)


def read_ber(data: bytes) -> Element:
    """Return the one element in ``data``; nothing may follow it.

    Raises:
        DERError: It is not BER, something follows the element, or it has too many elements or levels.
    """
    reader = _Reader(data)
    element, end = reader.element(0, len(data), 0)
    if end != len(data):
        msg = f"{len(data) - end} bytes follow the element"
        raise DERError(msg)
    return element


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.left = _MAX_ELEMENTS

    def element(self, start: int, end: int, depth: int) -> tuple[Element, int]:
        """Return the element at ``start`` and where it ends, within ``end``."""
        self.left -= 1
        if depth > _MAX_DEPTH or self.left < 0:
            msg = "too many elements, or too deeply nested"
            raise DERError(msg)
        tag, at, size = self.head(start, end)
        constructed = tag & 0x20
        if size == _OPEN and not constructed:
            msg = "an indefinite length where none is allowed"
            raise DERError(msg)
        stop = end if size == _OPEN else at + size
        if not constructed:
            return Element(tag, self.data[start:stop], self.data[at:stop], ()), stop
        parts: list[Element] = []
        while size == _OPEN or at < stop:
            if size == _OPEN and self.data[at : at + 2] == b"\0\0" and at + 2 <= stop:
                at += 2
                break
            part, at = self.element(at, stop, depth + 1)
            parts.append(part)
        return Element(tag, self.data[start:at], b"", tuple(parts)), at

    def head(self, start: int, end: int) -> tuple[int, int, int]:
        """Return the tag, where the contents begin, and their size."""
        if end - start < 2 or self.data[start] & 0x1F == 0x1F:
            msg = "too short for an element, or a high tag number"
            raise DERError(msg)
        size, at = self.data[start + 1], start + 2
        if size == 0x80:
            return self.data[start], at, _OPEN
        if size > 0x80:
            count = size & 0x7F
            if count > 8 or end - at < count:
                msg = "a length of an unknown form"
                raise DERError(msg)
            size = int.from_bytes(self.data[at : at + count], "big")
            at += count
        if end - at < size:
            msg = f"{size} bytes announced, {end - at} present"
            raise DERError(msg)
        return self.data[start], at, size
