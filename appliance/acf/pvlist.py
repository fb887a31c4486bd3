"""The gateway's pvlist: which names are served, under which real name, in which access security group.

Syntax and order of evaluation are those of the PVA gateway (p4p), which took them from the CA gateway: every DENY comes
before any ALLOW or ALIAS, of these the last one that matches counts, and a name that matches nothing is denied.
Expressions must match the whole name.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from appliance.acf.match import Resolver, canonical_host, is_address
from appliance.acf.pattern import Pattern
from appliance.errors import AccessFileError

__all__ = ["PVList", "PVListMatch"]

_MAX_TEXT: Final = 4 << 20
_REMEMBERED: Final = 8192
_WORD: Final = re.compile(r"\S+")
_EVERY_NAME: Final = frozenset((".*", ".+", "^.*", ".*$", "^.*$"))
_ORDER: Final = re.compile(r"EVALUATION\s+ORDER\s+(\w+)\s*,\s*(\w+)", re.IGNORECASE)
_REPLACEMENT: Final = re.compile(r"\\(.?)", re.DOTALL)


class PVListMatch(NamedTuple):
    """Where a permitted name leads."""

    real_name: str
    asg: str
    asl: int


class _Deny(NamedTuple):
    pattern: Pattern
    hosts: frozenset[str] | None


class _Allow(NamedTuple):
    pattern: Pattern
    alias: tuple[str | int, ...] | None
    asg: str
    asl: int


class PVList:
    """One pvlist file; immutable apart from the answers that it remembers."""

    __slots__ = ("_allow", "_answers", "_deny", "_hosts", "file", "groups", "warnings")

    def __init__(
        self, text: str = ".* ALLOW", *, file: str | None = None, resolve: Resolver | None = None
    ) -> None:
        """Read a pvlist. ``resolve`` gives the addresses of the hosts that DENY FROM names.

        Raises:
            AccessFileError: The text is wrong, or a host of a DENY FROM cannot be resolved, because a denial that cannot be
                enforced must not be skipped. The text has line and column.
        """
        reader = _Reader(file, resolve)
        reader.read(text)
        self.file: Final = file
        self.warnings: Final = tuple(reader.warnings)
        self._deny: Final = tuple(reader.deny)
        self._allow: Final = tuple(reversed(reader.allow))
        self._hosts: Final = frozenset().union(*(deny.hosts for deny in self._deny if deny.hosts is not None))
        self.groups: Final = frozenset(allow.asg for allow in reader.allow)
        self._answers: dict[tuple[str, str], PVListMatch | None] = {}

    def lookup(self, name: str, host: str) -> PVListMatch | None:
        """Return what ``name`` means for ``host`` (the client's address in numbers); ``None``: denied."""
        host = canonical_host(host)
        if host not in self._hosts:
            # A link-local address has its interface behind it; a DENY FROM without one means every interface.
            host = host.partition("%")[0]
        if host not in self._hosts:
            host = ""  # every host that no DENY FROM names gets the same answer
        key = (name, host)
        try:
            return self._answers[key]
        except KeyError:
            answer = self._find(name, host)
        if len(self._answers) >= _REMEMBERED:
            self._answers.clear()
        self._answers[key] = answer
        return answer

    def _find(self, name: str, host: str) -> PVListMatch | None:
        for pattern, hosts in self._deny:
            if (hosts is None or host in hosts) and pattern.match(name) is not None:
                return None
        for pattern, alias, asg, asl in self._allow:
            groups = pattern.match(name)
            if groups is not None:
                real = name
                if alias is not None:
                    real = "".join(groups[part - 1] if isinstance(part, int) else part for part in alias)
                return PVListMatch(real, asg, asl) if real else None
        return None


class _Word(NamedTuple):
    text: str
    column: int


class _Reader:
    def __init__(self, file: str | None, resolve: Resolver | None) -> None:
        self.file = file
        self.resolve = resolve
        self.deny: list[_Deny] = []
        self.allow: list[_Allow] = []
        self.warnings: list[str] = []
        self.line = 0

    def error(self, why: str, column: int) -> AccessFileError:
        return AccessFileError(why, file=self.file, line=self.line, column=column)

    def read(self, text: str) -> None:
        if len(text) > _MAX_TEXT:
            raise AccessFileError(f"the file is larger than {_MAX_TEXT} characters", file=self.file)
        for self.line, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            words = [_Word(match[0], match.start() + 1) for match in _WORD.finditer(line)]
            if not words or words[0].text.startswith("#"):
                continue
            if words[0].text.upper() == "EVALUATION":
                self.order(line.strip(), words[0].column)
            else:
                self.entry(words)

    def order(self, line: str, column: int) -> None:
        match = _ORDER.fullmatch(line)
        order = (match[1].upper(), match[2].upper()) if match else None
        if order == ("DENY", "ALLOW"):
            why = "EVALUATION ORDER DENY, ALLOW is not supported: DENY keeps precedence, as with ALLOW, DENY"
            self.warnings.append(str(self.error(why, column)))
        elif order != ("ALLOW", "DENY"):
            raise self.error("expected EVALUATION ORDER ALLOW, DENY", column)

    def entry(self, words: list[_Word]) -> None:
        (text, column), *rest = words
        if not rest:
            raise self.error(f"expected ALLOW, ALIAS or DENY after '{text}'", column)
        (command, where), *arguments = rest
        try:
            pattern = Pattern(text)
        except AccessFileError as error:
            raise self.error(error.why, column) from None
        command = command.upper()
        if command == "DENY":
            hosts = self.hosts(arguments)
            if hosts is None and text in _EVERY_NAME:
                why = "this line denies all names, because DENY counts before ALLOW; remove it: what no line allows is denied anyway"
                self.warnings.append(str(self.error(why, column)))
            self.deny.append(_Deny(pattern, hosts))
        elif command == "ALLOW":
            if pattern.groups:
                raise self.error(
                    f"'{text}' has a capture group, which has no use with ALLOW; write (?:...) instead of (...), or ALIAS with the "
                    "real name",
                    column,
                )
            self.allow.append(_Allow(pattern, None, *self.group(arguments)))
        elif command == "ALIAS":
            if not arguments:
                raise self.error("ALIAS needs the real name", where)
            alias = self.template(*arguments[0], pattern)
            self.allow.append(_Allow(pattern, alias, *self.group(arguments[1:])))
        else:
            raise self.error(f"expected ALLOW, ALIAS or DENY, found '{rest[0].text}'", where)

    def hosts(self, words: list[_Word]) -> frozenset[str] | None:
        if not words:
            return None
        # The CA gateway's manual writes FROM; its examples sometimes leave it out.
        if words[0].text.upper() == "FROM":
            words = words[1:]
        if not words:
            raise self.error("DENY FROM needs a host; leave FROM out to deny everybody", 1)
        return frozenset(address for word, column in words for address in self.addresses(word, column))

    def addresses(self, host: str, column: int) -> set[str]:
        host = canonical_host(host)
        if is_address(host):
            return {host}
        found: set[str] = set()
        if self.resolve is not None:
            try:
                found = {canonical_host(address) for address in self.resolve(host)}
            except OSError:
                found = set()
        if not found:
            raise self.error(
                f"host '{host}' has no address, so it cannot be denied; write its address", column
            )
        return found

    def group(self, words: list[_Word]) -> tuple[str, int]:
        if len(words) > 2:
            raise self.error(f"unexpected '{words[2].text}' at the end of the line", words[2].column)
        asg = words[0].text if words else "DEFAULT"
        if "\\" in asg:
            raise self.error(
                f"'{asg}' has a backslash: capture groups can be used in the real name of an ALIAS only, not in the group",
                words[0].column,
            )
        if len(words) < 2:
            return asg, 0
        level, column = words[1]
        if level not in {"0", "1"}:
            raise self.error(f"the access security level is 0 or 1, not '{level}'", column)
        return asg, int(level)

    def template(self, text: str, column: int, pattern: Pattern) -> tuple[str | int, ...]:
        r"""Return the real name of an ALIAS in parts: text, and the number of the group for each ``\1``."""
        parts: list[str | int] = []
        at = 0
        for match in _REPLACEMENT.finditer(text):
            parts.append(text[at : match.start()])
            at = match.end()
            if match[1] == "\\":
                parts.append("\\")
                continue
            if match[1] not in set("123456789"):
                raise self.error(f"'{match[0]}' in the real name is neither \\1 to \\9 nor \\\\", column)
            if int(match[1]) > pattern.groups:
                raise self.error(
                    f"the real name uses {match[0]}, but '{pattern.text}' has {pattern.groups or 'no'} group{'' if pattern.groups == 1 else 's'}",
                    column,
                )
            parts.append(int(match[1]))
        parts.append(text[at:])
        return tuple(part for part in parts if part != "")
