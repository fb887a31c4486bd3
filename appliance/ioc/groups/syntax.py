"""JSON as EPICS' parser accepts it: with comments, trailing commas, single quotes and bare keys (JSON5).

Python's own parser accepts none of these, and people write these files by hand.
"""

from __future__ import annotations

import re
from typing import Any, Final

from appliance.errors import ConfigurationError

__all__ = ["MAX_DEPTH", "Tree", "parse_json"]

MAX_DEPTH: Final = 8
_SPACE: Final = re.compile(r"(?:\s+|//[^\n]*|#[^\n]*|/\*.*?\*/)+", re.DOTALL)
_BARE: Final = re.compile(r"[A-Za-z_+$][\w+$.\-]*")
_NUMBER: Final = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|Infinity|NaN)")
_WORDS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None}
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0", "\n": ""}


class Tree(dict[str, Any]):
    """An object, and the line of each of its keys."""

    __slots__ = ("lines",)

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}


class _Parser:
    def __init__(self, text: str, file: str | None) -> None:
        self.text = text
        self.file = file
        self.pos = 0
        self._line = 1
        self._counted = 0

    def line(self) -> int:
        """Return the line of the present position; positions only increase."""
        self._line += self.text.count("\n", self._counted, self.pos)
        self._counted = self.pos
        return self._line

    def fail(self, why: str) -> ConfigurationError:
        return ConfigurationError(why, file=self.file, line=self.line() if self.file is not None else None)

    def peek(self) -> str:
        match = _SPACE.match(self.text, self.pos)
        if match:
            self.pos = match.end()
        return self.text[self.pos : self.pos + 1]

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} levels")
        here = self.peek()
        if here == "{":
            return self.object(depth)
        if here == "[":
            return self.array(depth)
        if here in ('"', "'"):
            return self.string(here)
        match = _NUMBER.match(self.text, self.pos)
        if match:
            self.pos = match.end()
            return _number(match.group())
        match = _BARE.match(self.text, self.pos)
        if match and match.group() in _WORDS:
            self.pos = match.end()
            return _WORDS[match.group()]
        raise self.fail(f"a value is expected, not {self.text[self.pos : self.pos + 12]!r}")

    def object(self, depth: int) -> dict[str, Any]:
        self.pos += 1
        found = Tree()
        while self.peek() != "}":
            found_at = self.line()
            key = self.key()
            found.lines[key] = found_at
            if self.peek() != ":":
                raise self.fail(f"':' is expected after the key {key!r}")
            self.pos += 1
            found[key] = self.value(depth + 1)
            following = self.peek()
            if following == ",":
                self.pos += 1
            elif following != "}":
                raise self.fail(f"',' or '}}' is expected after the value of {key!r}")
        self.pos += 1
        return found

    def key(self) -> str:
        here = self.peek()
        if here in ('"', "'"):
            return self.string(here)
        match = _BARE.match(self.text, self.pos)
        if not match:
            raise self.fail("a key is expected" if here else "the text ends inside braces: a '}' is missing")
        self.pos = match.end()
        return match.group()

    def array(self, depth: int) -> list[Any]:
        self.pos += 1
        found = []
        while self.peek() != "]":
            found.append(self.value(depth + 1))
            following = self.peek()
            if following == ",":
                self.pos += 1
            elif following != "]":
                raise self.fail("',' or ']' is expected")
        self.pos += 1
        return found

    def string(self, quote: str) -> str:
        out = []
        self.pos += 1
        start = self.pos
        text = self.text
        while True:
            end = self.pos
            if end >= len(text) or text[end] == "\n":
                raise self.fail("the quoted text does not end")
            here = text[end]
            if here == quote:
                out.append(text[start:end])
                self.pos += 1
                return _paired("".join(out))
            if here != "\\":
                self.pos += 1
                continue
            out.append(text[start:end])
            out.append(self.escape())
            start = self.pos

    def escape(self) -> str:
        letter = self.text[self.pos + 1 : self.pos + 2]
        digits = {"u": 4, "x": 2}.get(letter)
        if digits is None:
            self.pos += 2
            return _ESCAPES.get(letter, letter)
        code = self.text[self.pos + 2 : self.pos + 2 + digits]
        if not re.fullmatch(rf"[0-9a-fA-F]{{{digits}}}", code):
            raise self.fail(f"\\{letter} needs {digits} hexadecimal digits")
        self.pos += 2 + digits
        return chr(int(code, 16))


def _paired(text: str) -> str:
    """Join the two escaped halves of a character beyond 16 bits."""
    if text.isascii() or not re.search("[\ud800-\udfff]", text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _number(text: str) -> int | float:
    body = text.lstrip("+-").lower()
    if body.startswith("0x"):
        return -int(body, 16) if text[0] == "-" else int(body, 16)
    return float(text) if re.search(r"[.einf]", body) else int(text)


def parse_json(text: str, *, file: str | None = None) -> Any:
    """Read one value.

    Raises:
        ConfigurationError: The text is wrong; the error names file and line.
    """
    parser = _Parser(text, file)
    found = parser.value(0)
    if parser.peek():
        raise parser.fail(f"nothing may follow the end, not {text[parser.pos : parser.pos + 12]!r}")
    return found
