"""The classic form of an access security file.

The grammar is that of EPICS Base (``asLib.y``) with METHOD, AUTHORITY, PROTOCOL, SAG and the access RPC of Secure PVAccess.
Base since 7.0.10 skips a keyword that it does not know. Here it is an error, because the author of a skipped rule would
believe that it is in force.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from appliance.acf.builder import MAX_CHAIN, Builder, GroupDraft, Place, RuleDraft
from appliance.acf.lexer import END, STRING, WORD, Lexeme, SourceText
from appliance.acf.model import AccessSecurity
from appliance.errors import AccessFileError

__all__ = ["parse_classic"]

_TOP: Final = ("UAG", "HAG", "SAG", "AUTHORITY", "ASG")
_IN_RULE: Final = ("UAG", "HAG", "SAG", "CALC", "METHOD", "AUTHORITY", "PROTOCOL")
_INPUT: Final = re.compile(r"INP[A-U]")
_OUTER: Final = ("ASG", "RULE")
"""Keywords that stand in nothing that has other keywords, so something before them was not closed."""
_INTEGER: Final = re.compile(r"[+-]?\d{1,10}", re.ASCII)


def parse_classic(source: SourceText, builder: Builder) -> AccessSecurity:
    """Read a whole file.

    Raises:
        AccessFileError: The file is wrong; the error has line and column.
    """
    return _Parser(source, builder).run()


class _Parser:
    def __init__(self, source: SourceText, builder: Builder) -> None:
        self.source = source
        self.builder = builder
        self.tokens = source.tokens()
        self.at = 0

    # -- tokens

    def place(self, token: Lexeme) -> Place:
        return self.source.position(token.offset)

    def error(self, why: str, token: Lexeme) -> AccessFileError:
        return self.source.error(why, token.offset)

    @property
    def next(self) -> Lexeme:
        return self.tokens[self.at]

    def take(self) -> Lexeme:
        token = self.tokens[self.at]
        if token.kind != END:
            self.at += 1
        return token

    def expect(self, *kinds: str, after: str) -> Lexeme:
        token = self.take()
        if token.kind not in kinds:
            wanted = " or ".join(f"'{kind}'" for kind in kinds)
            raise self.error(f"expected {wanted} {after}, found {token}", token)
        return token

    def accept(self, kind: str) -> bool:
        if self.next.kind != kind:
            return False
        self.at += 1
        return True

    def name(self, what: str) -> Lexeme:
        token = self.take()
        if token.kind not in {WORD, STRING}:
            raise self.error(f"expected {what}, found {token}", token)
        if not token.plain:
            raise self.error(f"{token} must be written in quotes", token)
        return token

    def names(self, what: str, close: str) -> list[tuple[str, Place]]:
        """Return a list of one or more, up to and with the closing mark."""
        found: list[tuple[str, Place]] = []
        while True:
            token = self.name(what)
            found.append((token.text, self.place(token)))
            if self.expect(",", close, after=f"after {token}").kind == close:
                return found

    def keyword(self, known: tuple[str, ...], where: str, *, extra: str = "") -> Lexeme:
        token = self.take()
        if token.kind == WORD and (token.text in known or (extra and _INPUT.fullmatch(token.text))):
            return token
        wanted = f"{', '.join(known)}{extra}"
        if token.kind == WORD:
            hint = (
                f" (keywords are written in capitals: {token.text.upper()})"
                if token.text.upper() in known
                else ""
            )
            if token.text in _OUTER:
                hint = " (a '}' is missing before it)"
            raise self.error(f"unknown keyword {token} {where}{hint}; known are {wanted}", token)
        raise self.error(f"expected one of {wanted} {where}, found {token}", token)

    def heading(self, keyword: Lexeme) -> str:
        self.expect("(", after=f"after {keyword.text}")
        name = self.name(f"the name of the {keyword.text}")
        self.expect(")", after=f"after the name of the {keyword.text}")
        return name.text

    # -- grammar

    def run(self) -> AccessSecurity:
        readers: dict[str, Callable[[Lexeme], None]] = {
            "UAG": self.uag,
            "HAG": self.hag,
            "SAG": self.sag,
            "AUTHORITY": lambda keyword: self.authority(keyword, ()),
            "ASG": self.asg,
        }
        while self.next.kind != END:
            keyword = self.keyword(_TOP, "at the top level")
            readers[keyword.text](keyword)
        return self.builder.finish()

    def uag(self, keyword: Lexeme) -> None:
        name = self.heading(keyword)
        users = self.names("a user name", "}") if self.accept("{") else []
        self.builder.add_uag(name, users, self.place(keyword))

    def hag(self, keyword: Lexeme) -> None:
        name = self.heading(keyword)
        hosts = self.names("a host name", "}") if self.accept("{") else []
        self.builder.add_hag(name, hosts, self.place(keyword))

    def sag(self, keyword: Lexeme) -> None:
        name = self.heading(keyword)
        entries: list[tuple[str, str, Place]] = []
        if self.accept("{"):
            while True:
                kind = self.keyword(("IP", "DNS"), f"in SAG({name})")
                self.expect("(", after=f"after {kind.text}")
                value = self.take()
                if value.kind not in {WORD, STRING}:
                    raise self.error(f"expected an address or a DNS name, found {value}", value)
                entries.append((kind.text, value.text, self.place(value)))
                self.expect(")", after=f"after {value}")
                if self.expect(",", "}", after=f"after {kind.text}({value.text})").kind == "}":
                    break
        self.builder.add_sag(name, entries, self.place(keyword))

    def authority(self, keyword: Lexeme, above: tuple[str, ...]) -> None:
        if len(above) >= MAX_CHAIN:
            raise self.error(f"AUTHORITY declarations are nested more than {MAX_CHAIN} deep", keyword)
        self.expect("(", after="after AUTHORITY")
        first = self.name("the identifier or the common name of an AUTHORITY")
        identifier: str | None = None
        common_name = first.text
        if self.accept(","):
            identifier = first.text
            common_name = self.name("the common name of the AUTHORITY").text
        self.expect(")", after="at the end of the AUTHORITY's names")
        path = (*above, common_name)
        self.builder.add_authority(identifier, path, self.place(keyword))
        if self.accept("{"):
            while True:
                self.authority(self.keyword(("AUTHORITY",), f"within AUTHORITY '{common_name}'"), path)
                if self.accept("}"):
                    break

    def asg(self, keyword: Lexeme) -> None:
        group = self.builder.add_group(self.heading(keyword), self.place(keyword))
        if self.accept("{"):
            while True:
                item = self.keyword(("RULE",), f"in ASG({group.name})", extra=" and INPA to INPU")
                if item.text == "RULE":
                    self.rule(item, group)
                else:
                    self.builder.add_input(group, item.text, self.heading(item), self.place(item))
                if self.accept("}"):
                    break

    def rule(self, keyword: Lexeme, group: GroupDraft) -> None:
        self.expect("(", after="after RULE")
        level = self.take()
        if level.kind != WORD or not _INTEGER.fullmatch(level.text):
            raise self.error(f"expected the level of the RULE, a whole number, found {level}", level)
        self.expect(",", after="after the level of the RULE")
        access = self.name("NONE, READ, WRITE or RPC")
        trapwrite = False
        if self.expect(",", ")", after=f"after {access}").kind == ",":
            option = self.take()
            if option.text not in {"TRAPWRITE", "NOTRAPWRITE"}:
                raise self.error(f"expected TRAPWRITE or NOTRAPWRITE, found {option}", option)
            trapwrite = option.text == "TRAPWRITE"
            self.expect(")", after=f"after {option}")
        rule = self.builder.add_rule(
            group,
            (int(level.text), self.place(level)),
            (access.text, self.place(access)),
            self.place(keyword),
            trapwrite=trapwrite,
        )
        if self.accept("{"):
            while True:
                self.condition(rule)
                if self.accept("}"):
                    break

    def condition(self, rule: RuleDraft) -> None:
        keyword = self.keyword(_IN_RULE, "in a RULE")
        self.expect("(", after=f"after {keyword.text}")
        if keyword.text == "CALC":
            text = self.take()
            if text.kind not in {WORD, STRING}:
                raise self.error(f"expected an expression in quotes, found {text}", text)
            if not text.plain:
                raise self.error(f"the expression {text} must be written in quotes", text)
            self.expect(")", after="after the expression")
            self.builder.add_calc(rule, text.text, self.place(text))
            return
        first = self.at
        names = self.names(f"a name in {keyword.text}", ")")
        if keyword.text == "AUTHORITY":
            for index, (name, place) in enumerate(names):
                quoted = self.tokens[first + 2 * index].kind == STRING
                rule.authorities.setdefault(name, (place, quoted))
        elif keyword.text in {"METHOD", "PROTOCOL"}:
            add = self.builder.add_method if keyword.text == "METHOD" else self.builder.add_protocol
            for name, place in names:
                add(rule, name, place)
        else:
            target = {"UAG": rule.uags, "HAG": rule.hags, "SAG": rule.sags}[keyword.text]
            for name, place in names:
                target.setdefault(name, place)
