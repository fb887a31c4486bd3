"""The fixed-size parts of messages, each as a pair of ``Struct``: little-endian, big-endian.

Index a pair with the byte order: ``U32[big].pack(ioid)``.

Source: PVAccess protocol specification, sections 4.2 (header), 8 (channels) and 9 (operations).
"""

from __future__ import annotations

from struct import Struct
from typing import Final, TypeAlias

__all__ = ["HEADER", "REPLY", "REQUEST", "REQUEST_HEAD", "U16", "U32", "U32_U32"]

Pair: TypeAlias = tuple[Struct, Struct]

HEADER: Final[Pair] = (Struct("<BBBBI"), Struct(">BBBBI"))
"""Magic, version, flags, command, octets of the payload (of a control message: its value)."""
U16: Final[Pair] = (Struct("<H"), Struct(">H"))
U32: Final[Pair] = (Struct("<I"), Struct(">I"))
U32_U32: Final[Pair] = (Struct("<II"), Struct(">II"))
REQUEST_HEAD: Final[Pair] = (Struct("<IIB"), Struct(">IIB"))
"""What a request of an operation starts with: sid, ioid, sub-command."""
REQUEST: Final[Pair] = (Struct("<BBBBIIIB"), Struct(">BBBBIIIB"))
"""Header and REQUEST_HEAD as one unit."""
REPLY: Final[Pair] = (Struct("<BBBBIIB"), Struct(">BBBBIIB"))
"""Header and what a reply of an operation starts with, as one unit: ioid, sub-command."""
