"""JSON with comments, and the line of each key: how files of p4p's gateway are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, NoReturn

from appliance.config.files import read_trusted
from appliance.config.section import Path, dotted
from appliance.config.tree import MAXIMUM_DEPTH, MAXIMUM_SIZE
from appliance.errors import ConfigurationError

__all__ = ["begins_with_brace", "read_json", "read_json_file", "read_text"]

_START: Final = re.compile(r"\ufeff?(?>\s+|/\*.*?\*/)*+\{", re.DOTALL)
_STRING_OR_COMMENT: Final = re.compile(r'"(?:\\.|[^"\\])*+"|/\*.*?\*/|/\*|"', re.DOTALL)
_TOKEN: Final = re.compile(r'"(?:\\.|[^"\\])*+"|[{}\[\]:,]|[^\s{}\[\]:,"]++')
_TOO_DEEP: Final = f"more than {MAXIMUM_DEPTH} nested objects and lists"
_LEAST: Final = {"/": 4, '"': 2}
"""The least lengths of a comment and of a text, by their first character."""


def begins_with_brace(text: str) -> bool:
    """Whether the first thing in a file, after comments, is an object."""
    return _START.match(text) is not None


def read_text(path: str) -> str:
    """Return the text of a configuration file.

    Raises:
        ConfigurationError: It cannot be read, or it is not UTF-8.
    """
    data = read_trusted(path, MAXIMUM_SIZE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError("not valid UTF-8 text", file=path, line=line) from error


def read_json_file(path: str) -> Any:
    """Return the value of a JSON file with comments.

    Raises:
        ConfigurationError: It cannot be read, or it is no JSON.
    """
    return read_json(read_text(path), path)[0]


def read_json(text: str, file: str) -> tuple[Any, dict[Path, int]]:
    """Return the value of JSON with comments (``/* ... */``), and the line of every key and list item.

    Raises:
        ConfigurationError: It is not JSON, a key is given twice, or it is nested too deeply.
    """
    text = _without_comments(text.removeprefix("\ufeff"), file)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        hint = "; comments are written /* ... */" if text.startswith(("//", "#"), error.pos) else ""
        raise ConfigurationError(
            f"not valid JSON: {error.msg} at column {error.colno}{hint}", file=file, line=error.lineno
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"not valid JSON: {error}", file=file) from None
    except RecursionError:
        raise ConfigurationError(_TOO_DEEP, file=file) from None
    return value, _Lines(text, file).lines


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number here")


def _without_comments(text: str, file: str) -> str:
    """Replace comments with blanks, so that lines and columns stay; what looks like a comment in a string is text."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        if len(found) < _LEAST[found[0]]:
            # Said at once: to look for the end again after each beginning would take the square of the text's length.
            what = (
                "comment that begins here has no end (*/)"
                if found[0] == "/"
                else "text that begins here has no end"
            )
            raise ConfigurationError(f"the {what}", file=file, line=text.count("\n", 0, match.start()) + 1)
        return found if found[0] == '"' else re.sub(r"[^\n]", " ", found)

    return _STRING_OR_COMMENT.sub(blank, text)


class _Lines:
    """Finds the line of each key in text that is known to be JSON."""

    def __init__(self, text: str, file: str) -> None:
        self.lines: dict[Path, int] = {}
        self._file = file
        self._parts = self._split(text)
        self._value(next(self._parts), ())

    def _split(self, text: str) -> Iterator[_Part]:
        line, at = 1, 0
        for match in _TOKEN.finditer(text):
            line += text.count("\n", at, match.start())
            at = match.start()
            yield _Part(match[0], line)

    def _value(self, first: _Part, path: Path) -> None:
        if first.text not in {"{", "["}:
            return
        if len(path) >= MAXIMUM_DEPTH:
            raise ConfigurationError(_TOO_DEEP, file=self._file, line=first.line, key=dotted(path))
        index = 0
        for part in self._parts:
            if part.text in {"}", "]"}:
                return
            if part.text == ",":
                continue
            if first.text == "[":
                place: Path = (*path, index)
                index += 1
                self.lines[place] = part.line
                self._value(part, place)
                continue
            place = (*path, json.loads(part.text))
            if place in self.lines:
                raise ConfigurationError(
                    f"given twice, first in line {self.lines[place]}",
                    file=self._file,
                    line=part.line,
                    key=dotted(place),
                )
            self.lines[place] = part.line
            next(self._parts)  # the colon
            self._value(next(self._parts), place)


class _Part(NamedTuple):
    text: str
    line: int
