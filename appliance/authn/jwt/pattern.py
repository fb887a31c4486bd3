"""The response pattern of EPICS_AUTH_JWT_RESPONSE_FORMAT, matched in linear time.

A pattern is literal text with one ``#response#`` and any number of ``*``. White space is removed from pattern and
response alike; what ``#response#`` stands for is the answer. Where a ``*`` leaves room for several readings of one
response, every reading must say yes: parts of a response repeat the token's claims, so their author could
otherwise plant the reading that he needs.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ACCEPTED", "RAW", "ResponsePattern"]

RAW: Final = "#response#"
ACCEPTED: Final = frozenset(("valid", "ok", "true", "t", "yes", "y", "1"))
"""Answers that mean yes, in lower case. All else means no."""
_LONGEST: Final = max(map(len, ACCEPTED)) + len('""')


def _squeeze(text: str) -> str:
    return "".join(text.split())


class ResponsePattern:
    """One compiled pattern. Raises ValueError for a pattern that cannot decide anything."""

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
            # A format may quote the answer where the issuer sends a bare true, as the usual example does: the quotes
            # become a part of the answer that may be there or not. One reading, so that a quoted word planted
            # elsewhere in the response cannot stand in for the bare answer.
            before, after = before[:-1], after[1:]
            self._words = ACCEPTED | {f'"{word}"' for word in ACCEPTED}
        if before.endswith("*") or after.startswith("*"):
            raise ValueError("'*' beside #response# would accept any response that holds the right letters")
        if after.startswith('"*') and "*" in before:
            raise ValueError("with '*' on both sides more text than a quote must follow #response#")
        self._before = before.split("*")
        self._after = after.split("*")

    def accepts(self, response: str) -> bool:
        """Whether `response` says that the token is valid."""
        if not self._before:
            return response.lower() in ACCEPTED
        return _accepts(_squeeze(response), self._before, self._after, self._words)


def _accepts(text: str, before: list[str], after: list[str], words: frozenset[str]) -> bool:
    begin = _skip(text, before)
    limit = _skip(text[::-1], [part[::-1] for part in reversed(after)])
    if begin is None or limit is None:
        return False
    # `begin` is where the text before the answer ends at the earliest, `end` where the text after it begins at the
    # latest. A side without a '*' is fixed there; a side with one moves over every further occurrence of its edge.
    # Each turn looks at few characters or ends the loop, so the whole is linear in the response.
    end = len(text) - limit
    left, right = before[-1], after[0]
    seen = False
    while begin <= end:
        stop = end if len(after) == 1 else text.find(right, begin, end + len(right))
        if stop < 0:
            break
        if stop - begin > _LONGEST or text[begin:stop].lower() not in words:
            return False
        seen = True
        if len(before) == 1:
            break
        found = text.find(left, begin - len(left) + 1)
        if found < 0:
            break
        begin = found + len(left)
    return seen


def _skip(text: str, parts: list[str]) -> int | None:
    """Where `parts`, the first anchored at the start, end at the earliest; None when they do not fit."""
    if not text.startswith(parts[0]):
        return None
    place = len(parts[0])
    for part in parts[1:]:
        found = text.find(part, place)
        if found < 0:
            return None
        place = found + len(part)
    return place
