"""Reads what a shared library of Linux says of itself, without loading it: so none of its code runs."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from appliance.errors import ConfigurationError

__all__ = ["SharedObject", "read_shared_object"]

_SHARED: Final = 3
_DYNAMIC, _DYNAMIC_SYMBOLS = 6, 11
_NEEDED, _SONAME = 1, 14
_WEAK: Final = 2
_FORMS: Final = {
    # class: header from e_type on, section header, dynamic entry, symbol
    1: ("HHIIIIIHHHHHH", "IIIIIIIIII", "iI", "IIIBBH"),
    2: ("HHIQQQIHHHHHH", "IIQQQQIIQQ", "qQ", "IBBHQQ"),
}


class SharedObject(NamedTuple):
    """A shared library."""

    machine: tuple[int, int, int]
    """Width of words, byte order, and processor: equal for libraries that fit each other."""
    soname: str
    """The name by which other libraries ask for it; empty if it has none."""
    needed: tuple[str, ...]
    """The libraries that it was linked with."""
    defined: frozenset[str]
    """The symbols that it has for others."""
    undefined: frozenset[str]
    """The symbols that it cannot do without."""


class _Section(NamedTuple):
    kind: int
    data: bytes
    link: int


def read_shared_object(data: bytes, file: str) -> SharedObject:
    """Read a library.

    Args:
        data: The content of the file.
        file: Its path, for messages.

    Raises:
        ConfigurationError: It is not a shared library.
    """
    if data[:4] != b"\x7fELF" or len(data) < 16 or data[4] not in _FORMS or data[5] not in (1, 2):
        raise ConfigurationError(
            "is not a shared library of Linux (ELF): compile it with 'cc -shared -fPIC'", file=file
        )
    try:
        return _read(data, file)
    except (struct.error, IndexError, UnicodeDecodeError, ValueError):
        raise ConfigurationError(
            "is damaged: its tables cannot be read; compile it again", file=file
        ) from None


def _read(data: bytes, file: str) -> SharedObject:
    order = "<" if data[5] == 1 else ">"
    header, section, entry, symbol = (order + form for form in _FORMS[data[4]])
    kind, machine, _, _, _, sections_at, _, _, _, _, size, count, _ = struct.unpack_from(header, data, 16)
    if kind != _SHARED:
        raise ConfigurationError("is not a shared library: compile it with 'cc -shared -fPIC'", file=file)
    sections = []
    for index in range(count):
        fields = struct.unpack_from(section, data, sections_at + index * size)
        _, which, _, _, start, length, link = fields[:7]
        wanted = data[start : start + length] if which in (3, _DYNAMIC, _DYNAMIC_SYMBOLS) else b""
        sections.append(_Section(which, wanted, link))
    soname, needed = "", []
    defined, undefined = set(), set()
    for found in sections:
        if found.kind == _DYNAMIC:
            names = sections[found.link].data
            for tag, value in struct.iter_unpack(entry, found.data):
                if tag == _NEEDED:
                    needed.append(_name(names, value))
                elif tag == _SONAME:
                    soname = _name(names, value)
        elif found.kind == _DYNAMIC_SYMBOLS:
            names = sections[found.link].data
            for fields in struct.iter_unpack(symbol, found.data):
                name = _name(names, fields[0])
                info, where = (fields[1], fields[3]) if data[4] == 2 else (fields[3], fields[5])
                if name and where:
                    defined.add(name)
                elif name and info >> 4 != _WEAK:
                    undefined.add(name)
    return SharedObject(
        (data[4], data[5], machine), soname, tuple(needed), frozenset(defined), frozenset(undefined)
    )


def _name(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()
