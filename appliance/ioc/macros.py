"""Macro definitions as EPICS writes them, ``A=1,B="x, y"``, for files that EPICS itself does not read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from appliance.acf.lexer import expand_macros
from appliance.errors import AccessFileError, ConfigurationError

__all__ = ["expand", "expand_known", "parse_macros"]

_REFERENCE: Final = re.compile(r"\$(?:\(([^\s=(){},]+)(?:=([^(){}]*))?\)|\{([^\s=(){},]+)(?:=([^(){}]*))?\})")
_ROUNDS: Final = 8


def parse_macros(text: str) -> dict[str, str]:
    """Read definitions; quotes and backslashes protect what they enclose or precede.

    Raises:
        ConfigurationError: The text is not a macro definition.
    """
    found: dict[str, str] = {}
    for part in _split(text):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not name and not equals:
            continue
        if not name or not equals:
            raise ConfigurationError(f"{part.strip()[:80]!r} is not a macro definition: write NAME=VALUE")
        found[name] = _unquoted(value.strip())
    return found


def _split(text: str) -> list[str]:
    parts = [""]
    quote = ""
    escaped = False
    for char in text:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == ",":
            parts.append("")
            continue
        parts[-1] += char
    return parts


def _unquoted(text: str) -> str:
    out = ""
    quote = ""
    escaped = False
    for char in text:
        if escaped:
            out += char
            escaped = False
        elif char == "\\":
            escaped = True
        elif quote and char == quote:
            quote = ""
        elif not quote and char in "\"'":
            quote = char
        else:
            out += char
    return out


def expand(text: str, macros: Mapping[str, str], *, file: str) -> str:
    """Replace ``$(NAME)`` and ``${NAME=default}`` line by line.

    Raises:
        ConfigurationError: A macro has no value; the error names file and line.
    """
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            lines.append(expand_macros(line, macros))
        except AccessFileError as error:
            raise ConfigurationError(error.why, file=file, line=number) from None
    return "\n".join(lines)


def expand_known(text: str, macros: Mapping[str, str]) -> str:
    """Replace references to macros that are given or have a default; leave all others unchanged."""

    def value(match: re.Match[str]) -> str:
        name, default = match[1] or match[3], match[2] if match[1] else match[4]
        found = macros.get(name, default)
        return match.group() if found is None else found

    for _ in range(_ROUNDS):
        text, before = _REFERENCE.sub(value, text), text
        if text == before:
            break
    return text
