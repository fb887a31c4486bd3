"""The text of an access security file: macros, positions and tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final, NamedTuple

from appliance.errors import AccessFileError

__all__ = ["END", "MAX_TEXT", "STRING", "WORD", "Lexeme", "SourceText", "expand_macros"]

MAX_TEXT: Final = 4 << 20
"""Largest file, and largest result of expanding its macros, in characters."""

_MAX_MACRO_DEPTH: Final = 32
_MAX_REFERENCES: Final = 100_000

WORD: Final = "word"
STRING: Final = "string"
END: Final = "end"

_NAME: Final = re.compile(r"[A-Za-z0-9_\-+:.\[\]<>;]+", re.ASCII)

# Wider than Base's names: a word that Base would split is one token here, so that the message can name it and say that
# quotes are missing. SAG entries use * ? / legitimately.
_TOKEN: Final = re.compile(
    r"""(?P<skip>[ \t\r\n]+|\#[^\n]*)
      |(?P<string>"(?:[^"\n\\]|\\[^\n])*")
      |(?P<word>[A-Za-z0-9_\-+:.\[\]<>;*?/@=%&!~^|'\\$]+)
      |(?P<punctuation>[(){},])""",
    re.VERBOSE | re.ASCII,
)
_MARK: Final = re.compile(r'["#\\\n]|\$[({]')


class Lexeme(NamedTuple):
    """One token of the text; ``kind`` is ``word``, ``string``, ``end`` or the punctuation character itself."""

    kind: str
    text: str
    offset: int

    @property
    def plain(self) -> bool:
        """Whether the text may be written without quotes."""
        return self.kind == STRING or _NAME.fullmatch(self.text) is not None

    def __str__(self) -> str:
        return "the end of the file" if self.kind == END else f"'{self.text}'"


class SourceText:
    """A text with its macros expanded that still knows where each character came from."""

    def __init__(
        self, text: str, *, file: str | None = None, macros: Mapping[str, str] | None = None
    ) -> None:
        self.file = file
        if len(text) > MAX_TEXT:
            raise AccessFileError(f"the file is larger than {MAX_TEXT} characters", file=file)
        self._raw = text.removeprefix("\ufeff")
        self._lines = [0, *(match.end() for match in re.finditer("\n", self._raw))]
        self._expanded_at = [0]
        self._raw_at = [0]
        self.text = self._expand(macros or {})

    def position(self, offset: int) -> tuple[int, int]:
        """Return line and column, both from 1, in the file as it was written."""
        index = bisect_right(self._expanded_at, offset) - 1
        raw = self._raw_at[index] + offset - self._expanded_at[index]
        if index + 1 < len(self._raw_at):
            raw = min(raw, self._raw_at[index + 1])
        line = bisect_right(self._lines, raw)
        return line, raw - self._lines[line - 1] + 1

    def error(self, why: str, offset: int) -> AccessFileError:
        """Return an error at an offset of the text."""
        line, column = self.position(offset)
        return AccessFileError(why, file=self.file, line=line, column=column)

    def tokens(self) -> list[Lexeme]:
        """Return every token; the last one is ``END``."""
        found: list[Lexeme] = []
        at = 0
        text = self.text
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                if text[at] == '"':
                    raise self.error("a quoted string is not closed on its line", at)
                raise self.error(f"the character {text[at]!r} is not allowed outside quotes", at)
            kind = match.lastgroup
            value = match[0]
            if kind == "string":
                found.append(Lexeme(STRING, value[1:-1], at))
            elif kind == "word":
                found.append(Lexeme(WORD, value, at))
            elif kind == "punctuation":
                found.append(Lexeme(value, value, at))
            at = match.end()
        found.append(Lexeme(END, "", len(text.rstrip())))
        return found

    def _expand(self, macros: Mapping[str, str]) -> str:
        """Expand everywhere except in comments, also inside quotes, as Base's macLib does for a line."""
        raw = self._raw
        if "$" not in raw:
            return raw
        expander = _Expander(macros)
        parts: list[str] = []
        size = at = 0
        quoted = False
        search = 0
        while (match := _MARK.search(raw, search)) is not None:
            mark = match[0]
            search = match.end()
            if mark == '"':
                quoted = not quoted
            elif mark == "\n":
                quoted = False
            elif mark == "\\":
                search += quoted
            elif mark == "#":
                if not quoted:
                    end = raw.find("\n", search)
                    search = len(raw) if end < 0 else end
            else:
                try:
                    value, end = expander.reference(raw, match.start())
                except AccessFileError as error:
                    line = bisect_right(self._lines, match.start())
                    column = match.start() - self._lines[line - 1] + 1
                    raise AccessFileError(error.why, file=self.file, line=line, column=column) from None
                parts += (raw[at : match.start()], value)
                size += match.start() - at
                self._expanded_at.append(size)
                self._raw_at.append(match.start())
                size += len(value)
                self._expanded_at.append(size)
                self._raw_at.append(end)
                at = search = end
                if size > MAX_TEXT:
                    raise AccessFileError(
                        f"its macros expand to more than {MAX_TEXT} characters", file=self.file
                    )
        parts.append(raw[at:])
        return "".join(parts)


def expand_macros(text: str, macros: Mapping[str, str]) -> str:
    """Expand the macros of one value.

    Raises:
        AccessFileError: The text is wrong. The error has no line and column; the caller knows them.
    """
    return text if "$" not in text else _Expander(macros).expand(text, 0)


class _Expander:
    """Expands references, which may be nested in names, values and defaults, with a limit for the whole work."""

    def __init__(self, macros: Mapping[str, str]) -> None:
        self.macros = macros
        self.left = _MAX_REFERENCES

    def expand(self, text: str, depth: int) -> str:
        parts: list[str] = []
        at = size = 0
        while (start := text.find("$", at)) >= 0:
            parts.append(text[at:start])
            size += start - at
            if text[start + 1 : start + 2] in {"(", "{"}:
                value, at = self.reference(text, start, depth)
            else:
                value, at = "$", start + 1
            parts.append(value)
            size += len(value)
            if size > MAX_TEXT:
                raise AccessFileError(f"macros expand to more than {MAX_TEXT} characters")
        parts.append(text[at:])
        return "".join(parts)

    def reference(self, text: str, start: int, depth: int = 0) -> tuple[str, int]:
        """Return the value of the macro reference at ``start``, and where it ends."""
        self.left -= 1
        if depth >= _MAX_MACRO_DEPTH or self.left < 0:
            raise AccessFileError("macros refer to each other without end")
        opening = text[start + 1]
        closing = ")" if opening == "(" else "}"
        level = 1
        at = start + 2
        while level:
            if at >= len(text) or text[at] == "\n":
                raise AccessFileError(f"a macro reference is not closed: '{closing}' is missing")
            if text[at] == closing:
                level -= 1
            elif text[at] == opening:
                level += 1
            at += 1
        name, equals, default = text[start + 2 : at - 1].partition("=")
        name = self.expand(name, depth + 1).strip()
        if name in self.macros:
            return self.expand(self.macros[name], depth + 1), at
        if equals:
            return self.expand(default, depth + 1), at
        raise AccessFileError(
            f"the macro '{name}' is not defined; define it, or give it a default: $({name}=...)"
        )
