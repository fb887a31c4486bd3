"""Read an issuer's answer: by a member of its JSON, or by the pattern of EPICS_AUTH_JWT_RESPONSE_FORMAT.

A pattern is literal text with one ``#response#`` and any number of ``*``. White space is removed from the pattern and
the response. The text at ``#response#`` is the answer. Parts of a response repeat the token's claims, so their author
could place a word where the pattern finds it. Therefore a response that can be read in two ways is refused. In a
response that is JSON, the pattern must mean a member of the outermost object, unless all text before ``#response#`` is
literal, because then only one place is possible. Matching takes linear time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from appliance.authn.jwt.strict_json import StrictFormatError, load_object

__all__ = ["ACCEPTED", "RAW", "ResponsePattern", "response_reader"]

RAW: Final = "#response#"
ACCEPTED: Final = frozenset(("valid", "ok", "true", "t", "yes", "y", "1"))
"""Answers that mean yes, in lower case. All others mean no."""
_LONGEST: Final = max(map(len, ACCEPTED)) + len('""')
_BOM: Final = "\ufeff"
SAYS_NO: Final = "says_invalid"
NO_PLACE: Final = "not_understood"
TWO_PLACES: Final = "ambiguous"
NOT_JSON: Final = "not_json"
NO_MEMBER: Final = "member_missing"
_LEXEME: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}:,]')
_NAMED: Final = re.compile(r'"([^"\\*]+)":"?$')

Reader = Callable[[bytes], str | None]
"""Takes the body of a response. Returns None if the token is valid, else a code for the reason."""


def response_reader(member: str, pattern: str) -> Reader:
    """Return the reader for the responses of one issuer: by `member` if it is set, else by `pattern`."""
    return _Member(member) if member else ResponsePattern(pattern).judge


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _says_yes(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value == 1
    return isinstance(value, str) and _squeeze(value).lower() in ACCEPTED


class _Member:
    """Reads one member of the outermost object, at any position in it."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, body: bytes) -> str | None:
        try:
            answer = load_object(body.removeprefix(_BOM.encode()))
        except StrictFormatError:
            return NOT_JSON
        if self._name not in answer:
            return NO_MEMBER
        return None if _says_yes(answer[self._name]) else SAYS_NO


class ResponsePattern:
    """One compiled pattern.

    Raises:
        ValueError: The pattern cannot decide anything.
    """

    __slots__ = ("_after", "_before", "_words", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._words = ACCEPTED
        self._before: list[str] = []
        self._after: list[str] = []
        if text == RAW:
            return
        before, marker, after = _squeeze(text).partition(RAW)
        if not marker or RAW in after:
            raise ValueError("the response format must hold #response# exactly once")
        if (
            before.endswith('"')
            and after.startswith('"')
            and not (before[:-1].endswith("*") or after[1:2] == "*")
        ):
            # A format may have quotes around the answer although the issuer sends a bare true, as the usual example does. So
            # the quotes become a part of the answer that is optional. There is only one reading, so a quoted word elsewhere in
            # the response cannot replace the bare answer.
            before, after = before[:-1], after[1:]
            self._words = ACCEPTED | {f'"{word}"' for word in ACCEPTED}
        if before.endswith("*") or after.startswith("*"):
            raise ValueError(
                "'*' next to #response# would accept any response that contains the right letters; write the text that stands there"
            )
        if after.startswith('"*') and "*" in before:
            raise ValueError("with '*' on both sides more text than a quote must follow #response#")
        self._before = before.split("*")
        self._after = after.split("*")

    def warning(self) -> str:
        """Return why this pattern may refuse good answers, in words for the log; empty if it cannot."""
        if len(self._before) < 2:
            return ""
        named = _NAMED.search(self._before[-1])
        instead = f"; if the answers are JSON, write response_member: {named[1]}" if named else ""
        if len(self._after) > 1:
            return (
                f"{self.text!r} has a '*' before and after #response#, so an answer may match in several ways; one that "
                f"does, or that matches below the outermost level, is refused{instead or '; write more of the text'}"
            )
        if self._before[0].startswith("{") and named is None:
            return (
                f'{self.text!r} does not have the whole name of a member, such as "active":, before #response#, '
                "so every answer that is JSON is refused; write response_member: NAME"
            )
        return ""

    def accepts(self, response: str) -> bool:
        """Whether `response` says that the token is valid."""
        return self.judge(response.encode("utf-8", "surrogatepass")) is None

    def judge(self, body: bytes) -> str | None:
        """Read a response; see `Reader`."""
        try:
            response = body.decode("utf-8")
        except UnicodeDecodeError:
            return "not_text"
        if not self._before:
            return None if response.lower() in ACCEPTED else SAYS_NO
        text = _squeeze(response.removeprefix(_BOM))
        found: tuple[int, int] | None = None
        for reading in _readings(text, self._before, self._after):
            if found is not None:
                return TWO_PLACES
            found = reading
        if found is None:
            return NO_PLACE
        begin, stop = found
        if stop - begin > _LONGEST or text[begin:stop].lower() not in self._words:
            return SAYS_NO
        return self._outermost(text, begin) if text[:1] in {"{", "["} else None

    def _outermost(self, text: str, begin: int) -> str | None:
        """Return None if this place in a JSON response is the intended one, else a code for the reason."""
        try:
            answer: dict[str, Any] | None = load_object(text.encode("utf-8", "surrogatepass"))
        except StrictFormatError as error:
            if error.reason not in {"json_invalid", "json_not_an_object"}:
                # For example two members with the same name: JSON, but readers disagree about its meaning.
                return TWO_PLACES
            # An answer such as {"valid": YES} is not JSON but has its structure, so its levels can still be found.
            answer = None
        if len(self._before) == 1:
            return None
        place = _member_at(text, begin)
        if place is None or place.begin < begin - len(self._before[-1]):
            return TWO_PLACES
        if answer is None or place.value != begin:
            return None
        try:
            name = json.loads(place.name)
        except ValueError:
            return TWO_PLACES
        return None if _says_yes(answer.get(name)) else TWO_PLACES


class _Place(NamedTuple):
    """Where a member of a JSON object stands in its text."""

    begin: int
    """Where its name begins."""
    name: str
    """The name as it is written, with its quotes."""
    value: int
    """Where its value begins."""


def _readings(text: str, before: list[str], after: list[str]) -> Iterator[tuple[int, int]]:
    """Yield where ``#response#`` can begin and end in `text`, the shortest reading for each beginning."""
    begin = _skip(text, before)
    limit = _skip(text[::-1], [part[::-1] for part in reversed(after)])
    if begin is None or limit is None:
        return
    # `begin` is the earliest end of the text before the answer, `end` the latest beginning of the text after it. A side
    # without a '*' is fixed there; a side with one moves to every further occurrence of its edge. The caller takes at
    # most two readings, so the whole is linear in the response.
    end = len(text) - limit
    left, right = before[-1], after[0]
    while begin <= end:
        stop = end if len(after) == 1 else text.find(right, begin, end + len(right))
        if stop < 0:
            return
        yield begin, stop
        if len(before) == 1:
            return
        found = text.find(left, begin - len(left) + 1)
        if found < 0:
            return
        begin = found + len(left)


def _skip(text: str, parts: list[str]) -> int | None:
    """Return the earliest end of `parts`, the first anchored at the start; None if they do not match."""
    if not text.startswith(parts[0]):
        return None
    place = len(parts[0])
    for part in parts[1:]:
        found = text.find(part, place)
        if found < 0:
            return None
        place = found + len(part)
    return place


def _member_at(text: str, place: int) -> _Place | None:
    """Return the member of the outermost object that has `place` in its value.

    Returns:
        None if `place` is at another level, or not in a value.
    """
    levels: list[str] = []
    name: tuple[int, str] | None = None
    value = -1
    for lexeme in _LEXEME.finditer(text):
        if lexeme.start() > place or (lexeme.start() == place and lexeme[0] in {",", "}", "]"}):
            break
        kind = lexeme[0]
        if kind in {"{", "["}:
            if lexeme.start() == place:
                break
            levels.append(kind)
        elif kind in {"}", "]"}:
            if not levels:
                return None
            levels.pop()
        elif len(levels) != 1:
            if lexeme.start() < place < lexeme.end():
                return None
        elif kind == ",":
            name, value = None, -1
        elif kind == ":":
            value = lexeme.end()
        elif value < 0:
            if lexeme.start() <= place < lexeme.end():
                return None
            name = (lexeme.start(), kind)
    if levels != ["{"] or name is None or value < 0:
        return None
    return _Place(*name, value)
