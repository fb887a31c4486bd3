"""Files of autosave: request files (``.req``), which name PVs, and save files (``.sav``), which hold their values.

A save file has a line per PV, its name, one blank and its value with C's escapes; an array is ``@array@ { "1" "2" }``, a PV without a
value is commented out and counted in a line ``! 3 channel(s) not connected``, and ``<END>`` says that it was written to its end.
Format: epics-modules/autosave, ``save_restore.c`` and ``dbrestore.c``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from appliance.errors import ConfigurationError
from appliance.ioc.macros import expand_known

__all__ = ["Saved", "escaped", "format_saved", "parse_saved", "requested", "unescaped"]

_END: Final = "<END>"
_ARRAY: Final = "@array@"
_MOST_PVS: Final = 200_000
_DEPTH: Final = 16
_FILE: Final = re.compile(r'file\s+"?\s*([^\s",#]+)"?[\s,]*(.*)')
_ELEMENT: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_LETTERS: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_NAMES: Final = {ord(char): f"\\{letter}" for letter, char in _LETTERS.items()} | {
    ord("\\"): "\\\\",
    ord('"'): '\\"',
    ord("'"): "\\'",
}


class Saved(NamedTuple):
    """What a save file holds."""

    values: list[tuple[str, str | tuple[str, ...]]]
    """Names with the text of their values, or the texts of an array's elements."""
    missing: int
    """PVs that had no value when it was written."""


def escaped(text: str) -> str:
    """Write a value on one line (epicsStrPrintEscaped)."""
    return "".join(_NAMES.get(ord(char), char if char >= " " else f"\\x{ord(char):02x}") for char in text)


def unescaped(text: str) -> str:
    """Undo :func:`escaped`; octets beyond ASCII that are escaped become text again as UTF-8."""
    if "\\" not in text:
        return text
    out = bytearray()
    at = 0
    for match in _ESCAPE.finditer(text):
        out += text[at : match.start()].encode("utf-8", "surrogateescape")
        at = match.end()
        code = match[1]
        if code[0] == "x" and len(code) > 1:
            out.append(int(code[1:], 16))
        elif code[0] in "01234567":
            out.append(int(code, 8) & 0xFF)
        else:
            out += _LETTERS.get(code, code).encode("utf-8", "surrogateescape")
    out += text[at:].encode("utf-8", "surrogateescape")
    return out.decode("utf-8", "surrogateescape")


def format_saved(
    values: Iterable[tuple[str, str | tuple[str, ...] | None]], *, program: str, written: str
) -> str:
    """Make the text of a save file; None stands for a PV without a value."""
    lines = []
    missing = 0
    for name, value in values:
        if value is None:
            missing += 1
            lines.append(f"#{name} Not Connected")
        elif isinstance(value, str):
            lines.append(f"{name} {_scalar(value)}")
        else:
            elements = "".join(f'"{_element(each)}" ' for each in value)
            lines.append(f"{name} {_ARRAY} {{ {elements}}}")
    head = [f"# {program}\tAutomatically generated - DO NOT MODIFY - {written}"]
    if missing:
        head.append(f"! {missing} channel(s) not connected - or not all gets were successful")
    return "\n".join([*head, *lines, _END, ""])


def _scalar(text: str) -> str:
    text = escaped(text)
    # Clients write texts: none of them may look like the beginning of an array.
    return f"\\x{ord('@'):02x}{text[1:]}" if text.startswith(_ARRAY) else text


def _element(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return text.replace("\n", "\\n").replace("\r", "\\r")


def parse_saved(text: str, macros: Mapping[str, str], *, file: str) -> Saved:
    """Read the text of a save file.

    Raises:
        ConfigurationError: The file is incomplete: it was not written to its end.
    """
    if not text.rstrip().endswith(_END):
        raise ConfigurationError("is incomplete: its last line <END> is missing", file=file)
    values: list[tuple[str, str | tuple[str, ...]]] = []
    missing = 0
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    at = 0
    while at < len(lines):
        line = expand_known(lines[at], macros) if macros else lines[at]
        at += 1
        if line.startswith("!"):
            digits = re.match(r"!\s*(\d{1,9})", line)
            missing += int(digits[1]) if digits else 1
            continue
        if line.startswith(_END):
            break
        name, _, value = line.partition(" ")
        found: str | tuple[str, ...]
        if value.startswith(_ARRAY):
            found, at = _array(value, lines, at)
        else:
            found = unescaped(value)
        if name and not name.startswith("#"):
            values.append((name, found))
        if len(values) > _MOST_PVS:
            raise ConfigurationError(f"holds more than {_MOST_PVS} PVs", file=file)
    return Saved(values, missing)


def _array(text: str, lines: Sequence[str], at: int) -> tuple[str | tuple[str, ...], int]:
    """Read the elements of an array, which may span several lines; return them, and the number of the line behind it.

    What never ends is no array but a text of a client, which autosave itself writes as it is: the lines behind it are other PVs.
    """
    said = [text[len(_ARRAY) :]]
    behind = at
    while not _closes(said[-1]):
        if behind == len(lines) or lines[behind].startswith(_END):
            return unescaped(text), at
        said.append(lines[behind])
        behind += 1
    return tuple(unescaped(match[1]) for match in _ELEMENT.finditer("\n".join(said))), behind


def _closes(line: str) -> bool:
    """Whether a line of an array ends with its brace, outside of its elements."""
    return re.search(r"\}\s*$", _ELEMENT.sub("", line)) is not None


def requested(
    file: str,
    macros: Mapping[str, str],
    read: Callable[[str], tuple[str, str]],
    parse_macros: Callable[[str], dict[str, str]],
) -> list[str]:
    """List the PVs of a request file and of those that it includes.

    Args:
        file: its name.
        macros: values for ``$(NAME)``.
        read: finds a file by its name; returns its path and text.
        parse_macros: reads ``A=1,B=2``.

    Raises:
        ConfigurationError: a file that cannot be read, or a macro that is not defined.

    """
    found: dict[str, None] = {}
    _requested(file, macros, read, parse_macros, found, 0)
    return list(found)


def _requested(
    file: str,
    macros: Mapping[str, str],
    read: Callable[[str], tuple[str, str]],
    parse_macros: Callable[[str], dict[str, str]],
    found: dict[str, None],
    depth: int,
) -> None:
    if depth > _DEPTH:
        raise ConfigurationError(f"request files include each other more than {_DEPTH} deep", file=file)
    path, text = read(file)
    for number, raw in enumerate(text.split("\n"), 1):
        line = expand_known(raw, macros).strip()
        if not line or line.startswith("#"):
            continue
        include = _FILE.match(line)
        if include is not None:
            given = re.sub(r"[\s,]+", ",", include[2].partition("#")[0].replace('"', "").strip(" ,\t"))
            _requested(include[1], parse_macros(given), read, parse_macros, found, depth + 1)
            continue
        name = line.split()[0]
        if "$(" in name or "${" in name:
            raise ConfigurationError(f"a macro of {name} is not defined", file=path, line=number)
        found[name] = None
        if len(found) > _MOST_PVS:
            raise ConfigurationError(f"names more than {_MOST_PVS} PVs", file=path)
