"""A part of a configuration file with its line numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Path", "Section", "dotted"]

Path = tuple[str | int, ...]
"""Keys and indices from the top of a file (or of a section) to a value."""


class Section:
    """Plain values of one mapping in a file, with the line of every key."""

    __slots__ = ("above", "file", "lines", "value")

    def __init__(
        self,
        value: Mapping[str, Any],
        file: str = "",
        lines: Mapping[Path, int] | None = None,
        above: Path = (),
    ) -> None:
        self.value = value
        self.file = file
        self.lines = {} if lines is None else lines
        self.above = above
        """The keys from the top of the file to this mapping."""

    @classmethod
    def of(cls, value: Mapping[str, Any] | Any | None) -> Section:
        """Return a section without line numbers; fields of a struct that are None count as not given."""
        if value is None:
            return cls({})
        # Recognised by its form, so that tools without a configuration file need not import msgspec.
        fields: tuple[str, ...] | None = getattr(value, "__struct_fields__", None)
        items = value if fields is None else {key: getattr(value, key) for key in fields}
        return cls({key: item for key, item in items.items() if item is not None})

    def where(self, *path: str | int) -> str:
        """Return ``file:line`` of a key, as far as known."""
        line = self.lines.get(path)
        return f"{self.file}:{line}" if line is not None else self.file or "configuration"

    def key(self, *path: str | int) -> str | None:
        """Return the whole name of a key, from the top of the file: ``a.b[2]``."""
        return dotted((*self.above, *path))

    def section(self, *path: str | int) -> Section:
        """Return the mapping below ``path``; empty if there is none."""
        value: Any = self.value
        try:
            for key in path:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            value = None
        depth = len(path)
        lines = {
            key[depth:]: line for key, line in self.lines.items() if key[:depth] == path and len(key) > depth
        }
        return Section(value if isinstance(value, Mapping) else {}, self.file, lines, (*self.above, *path))


def dotted(path: Path) -> str | None:
    """Return ``a.b[2]`` for a path, None for the top."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    # A quoted key may contain a line end or a megabyte; a message is one line.
    return text.removeprefix(".")[:200].encode("unicode_escape").decode() or None
