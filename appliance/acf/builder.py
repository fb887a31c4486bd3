"""What both forms of an access security file have in common: names, limits, references, their errors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from appliance.acf.calc import Calc, compile_calc
from appliance.acf.match import Resolver, canonical_host, is_address
from appliance.acf.model import (
    READ,
    RPC,
    UNCACHED,
    WRITE,
    AccessSecurity,
    AuthorityRef,
    Group,
    Rule,
    SanGroup,
    SubjectEntry,
)
from appliance.errors import AccessFileError

__all__ = ["MAX_CHAIN", "Builder", "GroupDraft", "Place", "RuleDraft"]

Place = tuple[int, int | None] | None
"""Line and column, if known."""

MAX_CHAIN: Final = 16
"""Deepest chain of AUTHORITY declarations."""

_MAX_LEVEL: Final = (1 << 31) - 1

_ACCESS: Final = {"NONE": 0, "READ": READ, "WRITE": READ | WRITE, "RPC": READ | WRITE | RPC}
_GATEWAY_ACCESS: Final = {
    "NONE": 0,
    "READ": READ,
    "PUT": READ | WRITE,
    "RPC": READ | RPC,
    "WRITE": READ | WRITE | RPC,
    "UNCACHED": UNCACHED,
}
"""The gateway's words, as in p4p's gateway: WRITE means PUT and RPC."""

_METHODS: Final = frozenset(("x509", "ca", "anonymous"))
_PROTOCOLS: Final = ("tls", "tcp")
_SUBJECT: Final = re.compile(r"\s*(?:CN|OU|O|C|AUTHORITY)\s*=", re.IGNORECASE)
_SUBJECT_PART: Final = re.compile(r"\s*([A-Za-z]+)\s*=\s*((?:[^,\\]|\\.)*)(,|$)")
_SUBJECT_KEYS: Final = ("CN", "O", "OU", "C")
_IPV4_NETWORK: Final = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3})(?:/(\d{1,2}))?", re.ASCII)
_DNS_PATTERN: Final = re.compile(r"[a-z0-9_.*?\-]+", re.ASCII)


class RuleDraft:
    """A rule while it is read; its references are resolved at the end of the file."""

    __slots__ = (
        "access", "authorities", "calc", "hags", "level", "methods", "place", "protocols", "sags", "trapwrite", "uags",
    )  # fmt: skip

    def __init__(self, level: int, access: str, place: Place, *, trapwrite: bool) -> None:
        self.level = level
        self.access = access
        self.place = place
        self.trapwrite = trapwrite
        self.uags: dict[str, Place] = {}
        self.hags: dict[str, Place] = {}
        self.sags: dict[str, Place] = {}
        self.methods: dict[str, Place] = {}
        self.protocols: dict[str, Place] = {}
        self.authorities: dict[str, tuple[Place, bool]] = {}
        self.calc: Calc | None = None

    @property
    def conditional(self) -> bool:
        """Whether the rule depends on who asks or on inputs."""
        return bool(
            self.uags
            or self.hags
            or self.sags
            or self.methods
            or self.protocols
            or self.authorities
            or self.calc
        )


class GroupDraft:
    """An ASG while it is read."""

    __slots__ = ("inputs", "lines", "name", "rules")

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: dict[str, str] = {}
        self.lines: dict[str, int] = {}
        self.rules: list[RuleDraft] = []


class Builder:
    """Collects definitions in file order; :meth:`finish` checks what they refer to."""

    def __init__(self, *, file: str | None, resolve: Resolver | None, gateway: bool) -> None:
        self._file = file
        self._resolve = resolve
        self._gateway = gateway
        self._grants = _GATEWAY_ACCESS if gateway else _ACCESS
        self._uags: dict[str, frozenset[str]] = {}
        self._subjects: dict[str, list[tuple[str, dict[str, str], Place]]] = {}
        self._hags: dict[str, frozenset[str]] = {}
        self._sags: dict[str, SanGroup] = {}
        self._authorities: dict[str, AuthorityRef] = {}
        self._common_names: dict[str, set[tuple[str, ...]]] = {}
        self._groups: dict[str, GroupDraft] = {}
        self._warnings: list[str] = []

    def error(self, why: str, place: Place) -> AccessFileError:
        """Return an error at a place of the file."""
        line, column = place or (None, None)
        return AccessFileError(why, file=self._file, line=line, column=column)

    def warn(self, what: str, place: Place) -> None:
        """Record a warning at a place of the file."""
        self._warnings.append(str(self.error(what, place)))

    def add_uag(self, name: str, users: Iterable[tuple[str, Place]], place: Place) -> None:
        """Define a user access group."""
        self._new("UAG", name, self._uags, place)
        members: set[str] = set()
        for user, where in users:
            if not user:
                raise self.error(f"UAG({name}) lists an empty user name", where)
            if _SUBJECT.match(user):
                parts = self._subject(name, user, where)
                self._subjects.setdefault(name, []).append((user, parts, where))
                continue
            if user in members:
                self.warn(f"UAG({name}) lists '{user}' twice", where)
            members.add(user)
        self._uags[name] = frozenset(members)

    def _subject(self, name: str, user: str, place: Place) -> dict[str, str]:
        """Read ``CN=operator, O=example.org, AUTHORITY=SITE``; a backslash before a comma makes it a normal character."""
        parts: dict[str, str] = {}
        at = 0
        while at < len(user):
            part = _SUBJECT_PART.match(user, at)
            key = part[1].upper() if part else ""
            if part is None or key not in (*_SUBJECT_KEYS, "AUTHORITY") or key in parts:
                raise self.error(
                    f"'{user}' in UAG({name}) is not understood; conditions on a certificate are written "
                    '"CN=operator, O=example.org", with any of CN, O, OU, C and AUTHORITY once, and \\, for a comma in a value',
                    place,
                )
            value = re.sub(r"\\(.)", r"\1", part[2].rstrip())
            if not value:
                raise self.error(
                    f"{key} in '{user}' of UAG({name}) has no value; leave it out, or give one", place
                )
            if value == "*" and key != "O":
                raise self.error(
                    f"{key}=* in '{user}' of UAG({name}): only O can be any (*); leave {key} out", place
                )
            parts[key] = value
            at = part.end()
            if part[3] and at == len(user):
                raise self.error(f"'{user}' in UAG({name}) ends with a comma", place)
        if not parts.keys() & {"CN", "O", "OU"}:
            raise self.error(f"'{user}' in UAG({name}) must say CN, O or OU", place)
        return parts

    def add_hag(self, name: str, hosts: Iterable[tuple[str, Place]], place: Place) -> None:
        """Define a host access group."""
        self._new("HAG", name, self._hags, place)
        members: set[str] = set()
        for host, where in hosts:
            if not host:
                raise self.error(f"HAG({name}) lists an empty host name", where)
            members |= self._addresses(name, host, where)
        self._hags[name] = frozenset(members)

    def _addresses(self, name: str, host: str, place: Place) -> set[str]:
        host = canonical_host(host)
        if self._resolve is None or is_address(host):
            return {host}
        try:
            found = {canonical_host(address) for address in self._resolve(host)}
        except OSError:
            found = set()
        if not found:
            self.warn(f"host '{host}' in HAG({name}) has no address: no peer matches it", place)
        return found

    def add_sag(self, name: str, entries: Iterable[tuple[str, str, Place]], place: Place) -> None:
        """Define a SAG. Entries are ``(kind, text, place)`` with kind ``IP`` or ``DNS``."""
        self._new("SAG", name, self._sags, place)
        addresses: list[str] = []
        names: list[str] = []
        for kind, text, where in entries:
            text = text.lower()
            if kind == "IP":
                addresses.append(self._network(text, where))
            elif kind == "DNS":
                if not _DNS_PATTERN.fullmatch(text):
                    raise self.error(
                        f"'{text}' is neither a DNS name nor a pattern of one with * and ?", where
                    )
                names.append(text)
            else:
                raise self.error(f"an entry of a SAG is IP(...) or DNS(...), not {kind}(...)", where)
        self._sags[name] = SanGroup(tuple(addresses), tuple(names))

    def _network(self, text: str, place: Place) -> str:
        if match := _IPV4_NETWORK.fullmatch(text):
            if is_address(match[1]) and int(match[2] or 0) <= 32:
                return text
        elif is_address(canonical_host(text)):
            return canonical_host(text)
        hint = (
            "; IPv6 networks are not supported, only single addresses" if ":" in text and "/" in text else ""
        )
        raise self.error(
            f"'{text}' is neither an IP address nor an IPv4 network such as 10.0.1.0/24{hint}", place
        )

    def add_authority(self, name: str | None, path: tuple[str, ...], place: Place) -> None:
        """Declare the last member of ``path`` (root first), under ``name`` if it has one."""
        if len(path) > MAX_CHAIN:
            raise self.error(f"AUTHORITY declarations are nested more than {MAX_CHAIN} deep", place)
        if not path[-1]:
            raise self.error("AUTHORITY needs the common name of a certificate authority", place)
        self._common_names.setdefault(path[-1], set()).add(path)
        if name is not None:
            self._new("AUTHORITY", name, self._authorities, place)
            self._authorities[name] = AuthorityRef(name, path)

    def add_group(self, name: str, place: Place) -> GroupDraft:
        """Define an access security group, and return its draft."""
        known = self._groups.get(name)
        if known is not None and not (name == "DEFAULT" and not known.rules and not known.inputs):
            raise self.error(f"ASG({name}) is defined twice", place)
        self._named("ASG", name, place)
        draft = self._groups[name] = GroupDraft(name)
        return draft

    def add_input(self, group: GroupDraft, keyword: str, pv: str, place: Place) -> None:
        """Define an input PV (INPA to INPU) of a group."""
        letter = keyword[3:]
        if not pv:
            raise self.error(f"{keyword} needs the name of a PV", place)
        if letter in group.inputs:
            raise self.error(f"{keyword} is given twice in ASG({group.name})", place)
        group.inputs[letter] = pv
        if place is not None:
            group.lines[letter] = place[0]

    def add_rule(
        self,
        group: GroupDraft,
        level: tuple[int, Place],
        access: tuple[str, Place],
        place: Place,
        *,
        trapwrite: bool,
    ) -> RuleDraft:
        """Add a rule to a group, and return its draft."""
        number, where = level
        if not 0 <= number <= _MAX_LEVEL:
            raise self.error(f"the level of a RULE is 0, 1 or more, not {number}", where)
        word, where = access
        if word not in self._grants:
            hint = f"; write {word.upper()}" if word.upper() in self._grants else ""
            raise self.error(f"a RULE grants {_either(self._grants)}, not '{word}'{hint}", where)
        draft = RuleDraft(number, word, place, trapwrite=trapwrite)
        group.rules.append(draft)
        return draft

    def add_protocol(self, rule: RuleDraft, protocol: str, place: Place) -> None:
        """Require a protocol for a rule."""
        if protocol.lower() not in _PROTOCOLS:
            raise self.error(f"a PROTOCOL is tls or tcp, not '{protocol}'", place)
        rule.protocols[protocol.lower()] = place

    def add_method(self, rule: RuleDraft, method: str, place: Place) -> None:
        """Require an authentication method for a rule."""
        method = method.lower()
        if not method:
            raise self.error("METHOD needs a name: x509, ca or anonymous", place)
        if method not in _METHODS:
            self.warn(f"METHOD '{method}' is none of x509, ca and anonymous: no peer uses it", place)
        rule.methods[method] = place

    def add_calc(self, rule: RuleDraft, text: str, place: Place) -> None:
        """Set the condition of a rule."""
        if rule.calc is not None:
            raise self.error("a RULE takes one CALC; join conditions with &&", place)
        try:
            rule.calc = compile_calc(text)
        except AccessFileError as error:
            raise self.error(error.why, place) from None

    def finish(self) -> AccessSecurity:
        """Resolve every reference and return the rules."""
        if not (self._groups or self._uags or self._hags or self._sags or self._authorities):
            raise self.error("the file defines nothing; access security needs at least one ASG", None)
        groups = {draft.name: self._group(draft) for draft in self._groups.values()}
        return AccessSecurity(
            groups,
            uags=self._uags,
            subjects={name: tuple(map(self._entry, found)) for name, found in self._subjects.items()},
            hags=self._hags,
            sags=self._sags,
            authorities=self._authorities,
            gateway=self._gateway,
            file=self._file,
            warnings=tuple(self._warnings),
        )

    def _entry(self, entry: tuple[str, dict[str, str], Place]) -> SubjectEntry:
        text, parts, place = entry
        issuer = parts.get("AUTHORITY")
        return SubjectEntry(
            text,
            tuple((key, value) for key, value in parts.items() if key != "AUTHORITY"),
            None if issuer is None else self._authority(issuer, (place, True)),
        )

    def _group(self, draft: GroupDraft) -> Group:
        for rule in draft.rules:
            self._check_calc(draft, rule)
            if not self._grants[rule.access] and rule.conditional:
                self.warn("a RULE that grants NONE takes nothing away: other rules still grant", rule.place)
        return Group(
            draft.name,
            tuple(self._rule(rule) for rule in draft.rules),
            MappingProxyType(dict(draft.inputs)),
            MappingProxyType(dict(draft.lines)),
        )

    def _check_calc(self, draft: GroupDraft, rule: RuleDraft) -> None:
        if rule.calc is None:
            return
        missing = sorted(rule.calc.letters - draft.inputs.keys())
        if missing:
            self.warn(
                f'CALC("{rule.calc.text}") reads {_either(missing, "and")}, but ASG({draft.name}) defines no '
                f"{_either([f'INP{letter}' for letter in missing])}: the rule never applies",
                rule.place,
            )
        if rule.calc.uses_val:
            self.warn(
                f'VAL in CALC("{rule.calc.text}") always reads 0: decisions keep no history', rule.place
            )

    def _rule(self, draft: RuleDraft) -> Rule:
        line, _ = draft.place or (0, None)
        return Rule(
            level=draft.level,
            access=draft.access,
            grants=self._grants[draft.access],
            trapwrite=draft.trapwrite,
            uags=self._known("UAG", draft.uags, self._uags),
            hags=self._known("HAG", draft.hags, self._hags),
            sags=self._known("SAG", draft.sags, self._sags),
            methods=tuple(draft.methods),
            authorities=tuple(self._authority(*item) for item in draft.authorities.items()),
            protocols=tuple(draft.protocols),
            calc=draft.calc,
            line=line,
        )

    def _known(self, kind: str, names: dict[str, Place], defined: Mapping[str, object]) -> tuple[str, ...]:
        for name, place in names.items():
            if name not in defined:
                raise self.error(f"{kind}({name}) is not defined in this file", place)
        return tuple(names)

    def _authority(self, name: str, use: tuple[Place, bool]) -> AuthorityRef:
        """Return a declared identifier; or the common name itself, if the text cannot be an identifier."""
        place, literal = use
        if name in self._authorities:
            return self._authorities[name]
        paths = self._common_names.get(name, set())
        if len(paths) == 1:
            return AuthorityRef(name, next(iter(paths)))
        if len(paths) > 1:
            raise self.error(
                f"more than one declared AUTHORITY is called '{name}'; give them identifiers", place
            )
        if not literal:
            raise self.error(
                f'AUTHORITY {name} is not declared; write AUTHORITY({name}, "<common name of the CA>") at the '
                "top of the file, or the common name itself in quotes",
                place,
            )
        self.warn(f"AUTHORITY '{name}' is not declared: taken as the common name of a root", place)
        return AuthorityRef(name, (name,))

    def _new(self, kind: str, name: str, known: Mapping[str, object], place: Place) -> None:
        self._named(kind, name, place)
        if name in known:
            raise self.error(f"{kind}({name}) is defined twice", place)

    def _named(self, kind: str, name: str, place: Place) -> None:
        if not name:
            raise self.error(f"{kind} needs a name", place)


def _either(words: Iterable[str], joint: str = "or") -> str:
    *most, last = words
    return f"{', '.join(most)} {joint} {last}" if most else last
