"""PVData in octets, written by hand: what a test expects must not come from the encoder that it tests.

A type is ``(code, write)``: its description, and what encodes a value of it. Source: PVAccess specification, 5.3 and 5.4.
"""

from __future__ import annotations

import struct as packing
from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A type: how it is described, and how its values are encoded for one byte order (``<`` or ``>``)."""

    described: bytes
    write: Callable[[str, Any], bytes]


def text(value: str) -> bytes:
    """A string shorter than 254 octets."""
    return bytes((len(value),)) + value.encode()


def _number(code: int, form: str) -> Kind:
    return Kind(bytes((code,)), lambda order, x: packing.pack(order + form, x))


BOOL = _number(0x00, "?")
INT32 = _number(0x22, "i")
INT64 = _number(0x23, "q")
UINT16 = _number(0x25, "H")
UINT64 = _number(0x27, "Q")
STRING = Kind(b"\x60", lambda _order, x: text(x))
STRINGS = Kind(b"\x68", lambda _order, x: bytes((len(x),)) + b"".join(map(text, x)))
OCTETS = Kind(b"\x2c", lambda _order, x: bytes((len(x),)) + x)


def structure(name: str, /, **fields: Kind) -> Kind:
    """A structure; its values are dicts, and what they leave out is zero or empty."""
    described = b"\x80" + text(name) + bytes((len(fields),))
    described += b"".join(text(field) + kind.described for field, kind in fields.items())

    def write(order: str, value: dict[str, Any]) -> bytes:
        assert set(value) <= set(fields), value
        return b"".join(kind.write(order, value.get(field, _nothing(kind))) for field, kind in fields.items())

    return Kind(described, write)


def structures(name: str, /, **fields: Kind) -> Kind:
    """An array of structures: each element is preceded by an octet that says that it is there."""
    one = structure(name, **fields)
    return Kind(
        b"\x88" + one.described,
        lambda order, x: bytes((len(x),)) + b"".join(b"\x01" + one.write(order, each) for each in x),
    )


def _nothing(kind: Kind) -> Any:
    if kind.described[:1] == b"\x80":
        return {}
    if kind is STRING:
        return ""
    return b"" if kind is OCTETS else [] if kind is STRINGS or kind.described[:1] == b"\x88" else 0


def whole(kind: Kind, value: dict[str, Any], order: str = "<") -> bytes:
    """A value with its type, as the argument of a call has it."""
    return kind.described + kind.write(order, value)


ENUM_T = structure("enum_t", index=INT32, choices=STRINGS)
ALARM_T = structure("alarm_t", severity=INT32, status=INT32, message=STRING)
TIME_T = structure("time_t", secondsPastEpoch=INT64, nanoseconds=INT32, userTag=INT32)
DISPLAY = structure("", description=STRING)
NT_ENUM = structure("epics:nt/NTEnum:1.0", value=ENUM_T, alarm=ALARM_T, timeStamp=TIME_T, display=DISPLAY)
SCHEDULE = structures("", day_of_week=STRING, start_time=STRING, end_time=STRING)
SAN = structures("", type=STRING, value=STRING)
