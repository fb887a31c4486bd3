"""The version of p4p whose API this is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["Version", "version"]

_FORM: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:([ab])(\d+))?")
_BEFORE: Final = {None: 0, "b": -1, "a": -2}
_LETTER: Final = {number: letter or "" for letter, number in _BEFORE.items()}


class Version:
    """A version that compares with texts and with tuples of up to five integers.

    The first three numbers are those of the release. The fourth is 0 for a release, -1 for a beta and -2 for an alpha; the
    fifth is the number of that beta or alpha.

    Args:
        s: The text, for example ``4.3.0`` or ``4.3.0a1``.

    Raises:
        ValueError: The text is no version.
    """

    __hash__ = None  # type: ignore[assignment]  # as in p4p: equal to texts and tuples with other hashes

    def __init__(self, s: str) -> None:
        self._parts = _parse(s)

    @property
    def is_release(self) -> bool:
        """Whether this is no alpha and no beta."""
        return self._parts[3] == 0

    def __repr__(self) -> str:
        return f"Version({str(self)!r})"

    def __str__(self) -> str:
        major, minor, patch, before, number = self._parts
        letter = _LETTER[before]
        return f"{major}.{minor}.{patch}" + (f"{letter}{number}" if letter else "")

    def __lt__(self, o: str | Iterable[int]) -> bool:
        return self._parts < _five(o)

    def __le__(self, o: str | Iterable[int]) -> bool:
        return self._parts <= _five(o)

    def __eq__(self, o: str | Iterable[int]) -> bool:  # type: ignore[override]  # another type is a TypeError in p4p
        return self._parts == _five(o)

    def __ge__(self, o: str | Iterable[int]) -> bool:
        return self._parts >= _five(o)

    def __gt__(self, o: str | Iterable[int]) -> bool:
        return self._parts > _five(o)


def _parse(text: str) -> tuple[int, ...]:
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"Invalid version {text!r}")
    major, minor, patch, letter, number = found.groups()
    return int(major), int(minor), int(patch), _BEFORE[letter], int(number or 0)


def _five(other: str | Iterable[int]) -> tuple[int, ...]:
    parts = _parse(other) if isinstance(other, str) else tuple(other)
    if len(parts) > 5:
        raise ValueError("must compare with iterable len() <= 5")
    return parts + (0,) * (5 - len(parts))


version: Final = Version("4.3.0")
