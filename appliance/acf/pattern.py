"""Regular expressions over PV names, in limited time whatever the expression and the name.

The names that a gateway looks up come from the network, so an expression that backtracks without end would let any client
stop the gateway. An expression whose form makes its worst case small (at most two loops, each over a single character, and
few alternatives) is left to :mod:`re`. Any other one runs here as a set of parallel states, in time proportional to its
size times the length of the name; the preference among possible matches, and so the captured groups, are the same.

The syntax is Python's without flags and without what cannot be matched in this way (back references, look-around).
"""

from __future__ import annotations

import re
import warnings
from typing import Final, NamedTuple

from appliance.errors import AccessFileError

__all__ = ["MAX_NAME", "Pattern"]

MAX_NAME: Final = 512
"""Longest name that is matched; a longer one matches nothing."""

_MAX_PROGRAM: Final = 1000
_MAX_NESTING: Final = 32
_MAX_PATTERN: Final = 512
_MAX_ALTERNATIVES: Final = 8
_MAX_LOOPS: Final = 2

_COUNTED: Final = re.compile(r"\{(?:(\d{1,4})|(\d{0,4}),(\d{0,4}))\}", re.ASCII)

_CHAR, _SPLIT, _JUMP, _SAVE, _START, _END, _MATCH = range(7)


class _Node(NamedTuple):
    """A piece of an expression: ``kind`` is one of char, start, end, group, all, any and repeat."""

    kind: str
    text: str = ""
    parts: tuple[_Node, ...] = ()
    low: int = 0
    high: int | None = 0
    lazy: bool = False
    group: int = 0


class Pattern:
    """A compiled expression that must match the whole name; immutable."""

    __slots__ = ("_program", "_quick", "groups", "text")

    def __init__(self, text: str) -> None:
        """Compile an expression.

        Raises:
            AccessFileError: The expression is wrong or too large. The error has no line and column; the
                caller knows them.
        """
        self.text: Final = text
        tree, self.groups = _Reader(text).read()
        try:
            with warnings.catch_warnings():
                # Python warns about a class that looks like another dialect's, such as [[:alpha:]].
                warnings.simplefilter("error", FutureWarning)
                quick = re.compile(text)
        except (re.error, OverflowError, FutureWarning) as error:
            raise AccessFileError(f"the expression '{text}' is wrong: {error}") from None
        loops, alternatives = _worst_case(tree)
        if loops <= _MAX_LOOPS and alternatives <= _MAX_ALTERNATIVES:
            self._quick: re.Pattern[str] | None = quick
            self._program: tuple[tuple[int, object, int], ...] = ()
        else:
            self._quick = None
            self._program = _Program().compile(tree)

    @property
    def quick(self) -> bool:
        """Whether :mod:`re` matches it."""
        return self._quick is not None

    def match(self, name: str) -> tuple[str, ...] | None:
        """Return what the groups captured, an empty text for an unused group; ``None`` if the name does not match."""
        if len(name) > MAX_NAME:
            return None
        if self._quick is not None:
            found = self._quick.fullmatch(name)
            return None if found is None else tuple(group or "" for group in found.groups())
        return self._parallel(name)

    def _parallel(self, name: str) -> tuple[str, ...] | None:
        program = self._program
        empty = (-1,) * (2 * self.groups)
        threads = self._reach([(0, empty)], 0, len(name))
        for position, character in enumerate(name):
            ahead: list[tuple[int, tuple[int, ...]]] = []
            for at, saved in threads:
                kind, operand, _ = program[at]
                if kind == _CHAR and operand.fullmatch(character):  # type: ignore[attr-defined]
                    ahead.append((at + 1, saved))
            if not ahead:
                return None
            threads = self._reach(ahead, position + 1, len(name))
        for at, saved in threads:
            if program[at][0] == _MATCH:
                return tuple(
                    name[saved[i] : saved[i + 1]] if saved[i + 1] >= 0 else ""
                    for i in range(0, len(saved), 2)
                )
        return None

    def _reach(
        self, threads: list[tuple[int, tuple[int, ...]]], position: int, end: int
    ) -> list[tuple[int, tuple[int, ...]]]:
        """Follow everything that consumes no character; the first way to reach an instruction is the preferred."""
        program = self._program
        seen: set[int] = set()
        found: list[tuple[int, tuple[int, ...]]] = []
        stack = threads[::-1]
        while stack:
            at, saved = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            kind, operand, other = program[at]
            if kind == _SPLIT:
                stack.append((other, saved))
                stack.append((operand, saved))  # type: ignore[arg-type]
            elif kind == _JUMP:
                stack.append((other, saved))
            elif kind == _SAVE:
                stack.append((at + 1, (*saved[:other], position, *saved[other + 1 :])))
            elif kind == _START:
                if position == 0:
                    stack.append((at + 1, saved))
            elif kind == _END:
                if position == end:
                    stack.append((at + 1, saved))
            else:
                found.append((at, saved))
        return found


class _Reader:
    """Recursive descent over the expression's text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.groups = 0
        self.depth = 0

    def fail(self, why: str) -> AccessFileError:
        return AccessFileError(f"the expression '{self.text[:_MAX_PATTERN]}' {why}")

    def read(self) -> tuple[_Node, int]:
        if len(self.text) > _MAX_PATTERN:
            raise self.fail(f"is longer than {_MAX_PATTERN} characters")
        tree = self.alternatives()
        if self.at < len(self.text):
            raise self.fail("has a ')' without '('")
        return tree, self.groups

    def alternatives(self) -> _Node:
        branches = [self.sequence()]
        while self.text[self.at : self.at + 1] == "|":
            self.at += 1
            branches.append(self.sequence())
        return branches[0] if len(branches) == 1 else _Node("any", parts=tuple(branches))

    def sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.atom()))
        return _Node("all", parts=tuple(parts))

    def atom(self) -> _Node:
        text = self.text
        start = self.at
        character = text[start]
        self.at += 1
        if character == "(":
            return self.parenthesis()
        if character == "[":
            end = self.class_end(start)
            self.at = end + 1
            return _Node("char", text[start : self.at])
        if character == "\\":
            escaped = text[self.at : self.at + 1]
            self.at += 1
            if escaped.isdigit():
                raise self.fail("refers back to a group, which cannot be matched in bounded time")
            if not escaped or (escaped.isalpha() and escaped not in "dDwWsS"):
                raise self.fail(f"has '\\{escaped}', which is not supported here")
            return _Node("char", "\\" + escaped)
        if character in "*+?":
            raise self.fail(f"has a '{character}' with nothing to repeat")
        if character in "^$":
            return _Node("start" if character == "^" else "end")
        return _Node("char", character if character == "." else re.escape(character))

    def class_end(self, start: int) -> int:
        """Return where the ']' of the class is; one directly behind '[' or '[^' is a member instead."""
        text = self.text
        first = start + 2 if text[start + 1 : start + 2] == "^" else start + 1
        at = first
        while at < len(text) and (text[at] != "]" or at == first):
            at += 2 if text[at] == "\\" else 1
        if at >= len(text):
            raise self.fail("has a '[' without ']'")
        return at

    def parenthesis(self) -> _Node:
        self.depth += 1
        if self.depth > _MAX_NESTING:
            raise self.fail("is too deeply nested")
        group = 0
        if self.text.startswith("?:", self.at):
            self.at += 2
        elif self.text.startswith("?", self.at):
            raise self.fail(f"has '({self.text[self.at : self.at + 2]}', which is not supported here")
        else:
            self.groups += 1
            group = self.groups
        inside = self.alternatives()
        if self.text[self.at : self.at + 1] != ")":
            raise self.fail("has a '(' without ')'")
        self.at += 1
        self.depth -= 1
        return _Node("group", parts=(inside,), group=group) if group else inside

    def repeated(self, atom: _Node) -> _Node:
        text = self.text
        mark = text[self.at : self.at + 1]
        low, high = 0, None
        if mark and mark in "*+?":
            self.at += 1
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        elif match := _COUNTED.match(text, self.at):
            self.at = match.end()
            low = int(match[1] or match[2] or 0)
            upper = match[1] or match[3]
            high = int(upper) if upper else None
            if high is not None and high < low:
                raise self.fail("repeats at least as often as it may at most")
        else:
            return atom
        if atom.kind in {"start", "end"}:
            raise self.fail("repeats an anchor")
        lazy = text[self.at : self.at + 1] == "?"
        self.at += lazy
        follower = text[self.at : self.at + 1]
        if (follower and follower in "*+?") or _COUNTED.match(text, self.at):
            raise self.fail("repeats a repetition")
        return _Node("repeat", parts=(atom,), low=low, high=high, lazy=lazy)


def _worst_case(node: _Node) -> tuple[int, int]:
    """Return the number of loops, and of ways through the alternatives, that backtracking may have to combine."""
    loops, ways = 0, 1
    for part in node.parts:
        inner_loops, inner_ways = _worst_case(part)
        loops += inner_loops
        ways = ways + inner_ways if node.kind == "any" else ways * inner_ways
    if node.kind == "repeat" and node.high != node.low:
        if node.high == 1:
            return loops, 2 * ways
        return (loops + 1, ways) if node.parts[0].kind == "char" else (_MAX_LOOPS + 1, ways)
    if node.kind == "repeat" and node.parts[0].kind != "char":
        return _MAX_LOOPS + 1, ways
    return loops, ways


class _Program:
    """Instructions for the parallel matcher: (kind, operand, other)."""

    def __init__(self) -> None:
        self.code: list[tuple[int, object, int]] = []

    def compile(self, tree: _Node) -> tuple[tuple[int, object, int], ...]:
        self.node(tree)
        self.emit(_MATCH)
        return tuple(self.code)

    def emit(self, kind: int, operand: object = None, other: int = 0) -> int:
        if len(self.code) >= _MAX_PROGRAM:
            raise AccessFileError("the expression is too large; write its repetitions with * or +")
        self.code.append((kind, operand, other))
        return len(self.code) - 1

    def node(self, node: _Node) -> None:
        if node.kind == "char":
            self.emit(_CHAR, re.compile(node.text))
        elif node.kind == "start":
            self.emit(_START)
        elif node.kind == "end":
            self.emit(_END)
        elif node.kind == "group":
            self.emit(_SAVE, None, 2 * node.group - 2)
            self.node(node.parts[0])
            self.emit(_SAVE, None, 2 * node.group - 1)
        elif node.kind == "all":
            for part in node.parts:
                self.node(part)
        elif node.kind == "any":
            self.alternatives(node)
        else:
            self.repeat(node)

    def alternatives(self, node: _Node) -> None:
        exits: list[int] = []
        for part in node.parts[:-1]:
            split = self.emit(_SPLIT)
            self.node(part)
            exits.append(self.emit(_JUMP))
            self.code[split] = (_SPLIT, split + 1, len(self.code))
        self.node(node.parts[-1])
        for at in exits:
            self.code[at] = (_JUMP, None, len(self.code))

    def repeat(self, node: _Node) -> None:
        inside = node.parts[0]
        for _ in range(node.low):
            self.node(inside)
        if node.high is None:
            split = self.emit(_SPLIT)
            self.node(inside)
            self.emit(_JUMP, None, split)
            self.fork(split, lazy=node.lazy)
            return
        splits: list[int] = []
        for _ in range(node.high - node.low):
            splits.append(self.emit(_SPLIT))
            self.node(inside)
        for split in splits:
            self.fork(split, lazy=node.lazy)

    def fork(self, split: int, *, lazy: bool) -> None:
        enter, leave = split + 1, len(self.code)
        self.code[split] = (_SPLIT, leave, enter) if lazy else (_SPLIT, enter, leave)
