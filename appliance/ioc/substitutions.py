"""Substitution files (dbLoadTemplate): what they load, and what is wrong with them, as one sentence with file and line.

EPICS Base loads them. Its parser says "syntax error" near a word, goes on after some faults, writes beyond its buffer if the values are very long,
and does not come back from a file that is no text. So a file is read here first, by the same grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, NoReturn

from appliance.errors import ConfigurationError

__all__ = ["Load", "Substitutions", "parse_substitutions"]

_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
      | (?P<quote>"(?:[^"\n\\]|\\[^\n])*"|'(?:[^'\n\\]|\\[^\n])*')
      | (?P<word>[A-Za-z0-9_\-+:./\\\[\]<>;]+)
      | (?P<mark>[={},])
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS: Final = frozenset(("pattern", "file", "global"))
_ROOM: Final = 50
"""Octets of EPICS Base's buffer for the macros of one set, for each permitted name."""
_AROUND: Final = 2
"""The comma before the macros in that buffer, and the NUL after them."""
_MOST_LOADS: Final = 250_000
"""Sets of one file, at most: EPICS Base reads a database for each."""
_MOST_OCTETS: Final = 256 << 20
"""Octets of the macros of all sets of one file, at most: a set with macros of its own has those of ``global`` too."""
_END: Final = "the end of the file"
_SHOWN: Final = 40


class Load(NamedTuple):
    """One set of macros, with which a database is loaded."""

    file: str
    macros: str
    """Macros as EPICS writes them: ``A="x",B=y``."""
    line: int


class Substitutions(NamedTuple):
    """What a substitution file says."""

    loads: tuple[Load, ...]
    warnings: tuple[str, ...]
    """What EPICS Base ignores, each with file and line."""


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def parse_substitutions(
    text: str, file: str, given: str = "", *, most_names: int | None = None
) -> Substitutions:
    """Read a substitution file.

    Args:
        text: Its text.
        file: Its name, for messages.
        given: The macros of the command.
        most_names: ``dbTemplateMaxVars``, from which EPICS Base's room follows. None does not judge this, for who does not load the file.

    Raises:
        ConfigurationError: It is wrong.
    """
    return _Parser(text, file, given, most_names).read()


class _Parser:
    def __init__(self, text: str, file: str, given: str, most_names: int | None) -> None:
        self.file = file
        self.most_names = most_names
        self.tokens = self._tokens(text)
        self.next: _Token = next(self.tokens)
        self.line = 1
        """Where the last token was."""
        self.common = given
        self.loads: list[Load] = []
        self.octets = 0
        """Octets of the macros of all loads."""
        self.stale = ""
        """The macros of the last set that had any: they stay in EPICS Base's buffer."""
        self.warnings: list[str] = []

    def fail(self, why: str, line: int | None = None) -> NoReturn:
        raise ConfigurationError(why, file=self.file, line=self.next.line if line is None else line)

    def _tokens(self, text: str) -> Iterator[_Token]:
        line = 1
        for match in _TOKEN.finditer(text):
            kind, found = match.lastgroup or "", match.group()
            if kind == "other":
                if found in "\"'":
                    self.fail("a quote is opened here that is not closed on the same line", line)
                if not found.isprintable():
                    self.fail(f"this is no text: it contains the octet {ord(found) & 0xFF:#04x}", line)
                self.fail(f"{found!r} is only permitted inside quotes", line)
            if kind == "word" and found in _KEYWORDS:
                kind = "keyword"
            if kind != "space":
                yield _Token(kind, found, line)
            line += found.count("\n")
        yield _Token("end", _END, line)

    def take(self) -> _Token:
        taken = self.next
        self.line = taken.line
        if taken.kind != "end":
            self.next = next(self.tokens)
        return taken

    def sees(self, text: str) -> bool:
        """Whether the next token is a keyword or a mark."""
        return self.next.kind in ("keyword", "mark") and self.next.text == text

    def said(self) -> str:
        """Name the next token in a message."""
        if self.next.kind == "end":
            return _END
        return repr(self.next.text[:_SHOWN])

    def opening(self, what: str) -> int:
        """Take the brace that begins something; return its line."""
        if not self.sees("{"):
            self.fail(f"expected '{{' {what}, and not {self.said()}")
        return self.take().line

    # -- the grammar ---------------------------------------------------------------------------------

    def read(self) -> Substitutions:
        self.check_room(self.common, "of the command", 1)
        if self.next.kind == "end":
            self.fail("the file is empty: it must begin with 'file' or 'global'")
        while self.next.kind != "end":
            if self.sees("global"):
                self.globals()
            elif self.sees("file"):
                self.file_block()
            elif self.sees("}"):
                self.fail("this '}' closes nothing: a '{' is missing, or this is one too many")
            else:
                hint = "; databases are loaded with dbLoadRecords" if self.next.text == "record" else ""
                self.fail(f"expected 'file' or 'global', and not {self.said()}{hint}")
        return Substitutions(tuple(self.loads), tuple(self.warnings))

    def refuse_comma(self) -> None:
        """Refuse a comma at the beginning of a list: only further on EPICS Base permits any number of them."""
        if self.sees(","):
            self.fail("a list cannot begin with a comma: remove it")

    def globals(self) -> None:
        self.take()
        opened = self.opening("after 'global'")
        self.common = self.joined(self.common, self.definitions(opened), opened)

    def file_block(self) -> None:
        self.take()
        if self.next.kind not in ("word", "quote"):
            self.fail(f"expected the name of a database after 'file', and not {self.said()}")
        name = self.take()
        database = name.text[1:-1] if name.kind == "quote" else name.text
        opened = self.opening(f"after the name {database[:_SHOWN]!r}")
        names: list[str] | None = None
        if self.sees("pattern"):
            self.take()
            names = self.names(self.opening("after 'pattern'"))
        while not self.sees("}"):
            if self.next.kind == "end":
                self.fail("a brace is opened here that nothing closes: a '}' is missing", opened)
            if self.sees("global"):
                self.globals()
                continue
            word = self.old_name() if self.next.kind == "word" else ""
            if not self.sees("{"):
                self.fail(f"expected a set of values in braces, or '}}', and not {self.said()}")
            begin = self.take().line
            if word and self.sees("}"):
                self.fail(f"a set without macros cannot have a word before it: remove {word!r}", begin)
            macros = self.definitions(begin) if names is None else self.values(begin, names)
            self.load(database, macros, begin)
        self.take()

    def load(self, database: str, own: str, line: int) -> None:
        """Note a set that defines these macros itself."""
        macros = self.joined(self.common, own, line)
        if not macros and self.stale:
            macros = self.stale
            self.warn(
                "this set has no macros, and EPICS Base loads it with those of the set before it: give it one",
                line,
            )
        self.stale = macros
        self.loads.append(Load(database, macros, line))
        self.octets += len(macros) if own else 0
        if len(self.loads) > _MOST_LOADS:
            self.fail(f"the file has more than {_MOST_LOADS} sets: divide it", line)
        if self.octets > _MOST_OCTETS:
            self.fail(
                f"the macros of all sets up to here have more than {_MOST_OCTETS} octets: divide the file",
                line,
            )

    def old_name(self) -> str:
        """Take a name before the braces, as very old files have it."""
        name = self.take()
        if not self.sees("{"):
            if name.text.startswith("pat"):
                self.fail(f"{name.text[:_SHOWN]!r} is not known here: did you mean 'pattern'?", name.line)
            self.fail(
                f"expected 'pattern', 'global' or a set of values in braces, and not {name.text[:_SHOWN]!r}",
                name.line,
            )
        if not self.loads and name.text.lower().startswith("pat"):
            self.fail(f"{name.text[:_SHOWN]!r} is not known here: did you mean 'pattern'?", name.line)
        self.warn(f"the word {name.text[:_SHOWN]!r} before '{{' has no effect", name.line)
        return name.text[:_SHOWN]

    def warn(self, text: str, line: int) -> None:
        self.warnings.append(str(ConfigurationError(text, file=self.file, line=line)))

    def names(self, opened: int) -> list[str]:
        names: list[str] = []
        self.refuse_comma()
        while not self.sees("}"):
            if self.sees(","):
                self.take()
                continue
            if self.next.kind == "end" or self.sees("{"):
                self.fail("a brace is opened here that nothing closes: a '}' is missing", opened)
            if self.next.kind != "word":
                self.fail(f"expected the name of a macro, without quotes and '=', and not {self.said()}")
            names.append(self.take().text)
        self.take()
        if self.most_names is not None and len(names) > self.most_names:
            self.fail(
                f"there are {len(names)} names, and EPICS Base has room for {self.most_names}: set 'var dbTemplateMaxVars {len(names)}' before",
                opened,
            )
        return names

    def values(self, opened: int, names: list[str]) -> str:
        """Read the values of a pattern, up to the closing brace."""
        parts: list[str] = []
        count = 0
        self.refuse_comma()
        while not self.sees("}"):
            if self.sees(","):
                self.take()
                continue
            if self.sees("="):
                self.fail("with 'pattern' only the values are written, without 'NAME='")
            if self.next.kind not in ("word", "quote"):
                self.unfinished(opened)
            value = self.take()
            if count < len(names):
                parts.append(f"{names[count]}={_requoted(value)}")
            count += 1
        self.take()
        if count > len(names):
            self.warn(
                f"there are {count} values for {len(names)} names: the last ones have no effect", opened
            )
        return ",".join(parts)

    def definitions(self, opened: int) -> str:
        """Read ``NAME=value, ...``, up to the closing brace."""
        parts: list[str] = []
        self.refuse_comma()
        while not self.sees("}"):
            if self.sees(","):
                self.take()
                continue
            if self.next.kind == "quote":
                self.fail(
                    f"expected NAME=value, and not {self.said()}: without 'pattern' each value needs its name"
                )
            if self.next.kind != "word":
                self.unfinished(opened)
            name = self.take()
            if not self.sees("="):
                self.fail(
                    f"expected '=' and a value after {name.text[:_SHOWN]!r}: without 'pattern' each value needs its name",
                    name.line,
                )
            self.take()
            if self.next.kind not in ("word", "quote"):
                self.fail(
                    f"expected a value after '{name.text[:_SHOWN]}=', and not {self.said()}; an empty one is \"\""
                )
            parts.append(f"{name.text}={_requoted(self.take())}")
        self.take()
        return ",".join(parts)

    def unfinished(self, opened: int) -> NoReturn:
        """Refuse what stands inside a set and does not belong there."""
        if self.next.kind == "end" or self.sees("{"):
            self.fail("a brace is opened here that nothing closes: a '}' is missing", opened)
        self.fail(
            f"expected a value, and not {self.said()}: the '{{' of line {opened} is not closed, or this word needs quotes"
        )

    def joined(self, before: str, more: str, line: int) -> str:
        both = ",".join(part for part in (before, more) if part)
        self.check_room(both, "of this set", line)
        return both

    def check_room(self, macros: str, whose: str, line: int) -> None:
        """Refuse macros for which EPICS Base has no room: it writes beyond its buffer."""
        size = len(macros.encode("utf-8", "surrogateescape")) + _AROUND
        if self.most_names is not None and size > _ROOM * self.most_names:
            self.fail(
                f"the macros {whose} have {size - _AROUND} octets, and EPICS Base has room for {_ROOM * self.most_names - _AROUND}: "
                f"set 'var dbTemplateMaxVars {-(-size // _ROOM)}' before",
                line,
            )


def _requoted(value: _Token) -> str:
    return f'"{value.text[1:-1]}"' if value.kind == "quote" else value.text
