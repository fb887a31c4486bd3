"""Read YAML text into plain values with the line of every key: a strict part of YAML, limited in size and depth.

Not supported on purpose: tags (they name code), anchors and aliases (a kilobyte can mean gigabytes), merge keys,
several documents, repeated keys, and values that YAML 1.1 reads in surprising ways (``12:30`` and ``0600`` are text).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import yaml

from appliance.config.section import Path, dotted
from appliance.errors import ConfigurationError

__all__ = ["MAXIMUM_DEPTH", "MAXIMUM_SIZE", "read_tree"]

MAXIMUM_SIZE: Final = 1 << 20
"""Greatest size of a configuration file in bytes."""
MAXIMUM_DEPTH: Final = 32
"""Greatest depth of nested mappings and lists."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, bool | None]] = {
    form: value
    for word, value in (
        ("true", True),
        ("yes", True),
        ("on", True),
        ("false", False),
        ("no", False),
        ("off", False),
        ("null", None),
    )
    for form in (word, word.capitalize(), word.upper())
} | {"": None, "~": None}


def read_tree(text: str, file: str) -> tuple[Any, dict[Path, int]]:
    """Return the document's value, and the line (from 1) of every key and list item.

    Raises:
        ConfigurationError: It is not the YAML described above; the text has file and line.
    """
    try:
        if len(text.encode()) > MAXIMUM_SIZE:
            raise ConfigurationError(
                f"larger than the {MAXIMUM_SIZE} bytes allowed for a configuration", file=file
            )
        return _Builder(text, file).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(filter(None, (error.context, error.problem))) or "not valid YAML"
        if "nesting depth" in why:
            # A newer libyaml has a limit of its own, and reads ahead of us.
            why = f"more than {MAXIMUM_DEPTH} nested mappings and lists"
        raise ConfigurationError(
            f"not valid YAML: {why}", file=file, line=mark.line + 1 if mark else None
        ) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else None
        raise ConfigurationError(f"not valid YAML: {error.reason}", file=file, line=line) from error
    except UnicodeError as error:
        raise ConfigurationError("not valid UTF-8 text", file=file) from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"not valid YAML: {error}", file=file) from error


class _Builder:
    """Builds values from parser events, so that limits apply before anything is expanded."""

    def __init__(self, text: str, file: str) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.file = file
        self.lines: dict[Path, int] = {}

    def document(self) -> tuple[Any, dict[Path, int]]:
        value: Any = None
        seen = False
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    self.refuse("only one document is allowed in a file", event, ())
                seen = True
                value = self.node(next(self.events), (), 0)
        return value, self.lines

    def node(self, event: Any, path: Path, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            self.refuse("aliases (*name) are not allowed", event, path)
        if event.anchor is not None:
            self.refuse("anchors (&name) are not allowed", event, path)
        if event.tag is not None:
            self.refuse(f"tags ({event.tag}) are not allowed", event, path)
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event, path)
        if depth >= MAXIMUM_DEPTH:
            self.refuse(f"more than {MAXIMUM_DEPTH} nested mappings and lists", event, path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path, depth)
        return self.mapping(path, depth)

    def sequence(self, path: Path, depth: int) -> list[Any]:
        items: list[Any] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            place = (*path, len(items))
            self.lines[place] = event.start_mark.line + 1
            items.append(self.node(event, place, depth + 1))
        return items

    def mapping(self, path: Path, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.tag is not None:
                self.refuse("a key must be plain text", event, path)
            key: str = event.value
            place = (*path, key)
            if key == "<<" and event.implicit[0]:
                self.refuse("merge keys (<<) are not allowed", event, path)
            if key in result:
                self.refuse(f"given twice, first in line {self.lines[place]}", event, place)
            self.lines[place] = line
            result[key] = self.node(next(self.events), place, depth + 1)
        return result

    def scalar(self, event: Any, path: Path) -> Any:
        text: str = event.value
        if not event.implicit[0]:
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            if len(text) > 20:
                self.refuse("the number has too many digits", event, path)
            return int(text, 0)
        if _FLOAT.fullmatch(text):
            return float(text)
        return text

    def refuse(self, why: str, event: Any, path: Path) -> NoReturn:
        raise ConfigurationError(why, file=self.file, line=event.start_mark.line + 1, key=dotted(path))
