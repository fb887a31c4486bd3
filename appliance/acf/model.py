"""What an access security file says, and what follows for somebody who asks.

The rules are EPICS Base's (``asLibRoutines.c``) with the predicates of Secure PVAccess. All conditions of a
rule must hold; a rule counts only for fields whose level (ASL) does not exceed the rule's; the highest access
that any rule grants is given; a group that the file does not define has the rules of ``DEFAULT``; where
``DEFAULT`` itself has no rules there is no access. A CALC condition with an input that is not connected or
invalid does not hold.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from appliance.acf.calc import Calc
from appliance.acf.match import canonical_host, glob_match, host_of_peer, network_contains

__all__ = [
    "CA",
    "READ",
    "RPC",
    "UNCACHED",
    "WRITE",
    "X509",
    "Access",
    "AccessSecurity",
    "AuthorityRef",
    "Decision",
    "Group",
    "PeerIdentity",
    "Principal",
    "PrincipalAccess",
    "Rule",
    "SanGroup",
    "SubjectEntry",
]

READ: Final = 1
WRITE: Final = 2
RPC: Final = 4
UNCACHED: Final = 8
"""Bits of :attr:`Rule.grants`. UNCACHED is the gateway's: its client may bypass the shared subscription."""

X509: Final = "x509"
CA: Final = "ca"
ANONYMOUS: Final = "anonymous"
DEFAULT: Final = "DEFAULT"

_REMEMBERED: Final = 1024
"""Principals, and outcomes of one rule list, that are kept ready; beyond it they are worked out again."""


class PeerIdentity(Protocol):
    """What a connection knows of its peer; ``appliance.pva.Credentials`` is one."""

    @property
    def method(self) -> str:
        """``x509``, ``ca`` or ``anonymous``."""

    @property
    def account(self) -> str:
        """The user's name."""

    @property
    def peer(self) -> str:
        """The peer's address."""

    @property
    def authority(self) -> str:
        """The names of the certificate authorities, empty without a certificate."""

    @property
    def roles(self) -> frozenset[str]:
        """The account's groups."""

    @property
    def is_tls(self) -> bool:
        """Whether the connection uses TLS."""

    @property
    def san(self) -> tuple[tuple[str, str], ...]:
        """The certificate's alternative names: kind and value."""

    @property
    def subject(self) -> tuple[tuple[str, str], ...]:
        """The certificate's subject: part and value."""

    @property
    def home(self) -> str | None:
        """The organization that a name alone belongs to; None if it is not known."""


class Principal(NamedTuple):
    """Who asks.

    ``method`` is ``x509`` (proved), ``ca`` (claimed) or ``anonymous``; ``protocol`` is ``tls`` or ``tcp``;
    ``authority`` holds the common names of the issuing chain, the direct issuer first and the root last;
    ``host`` is the peer's address in numbers, without port; ``roles`` are the groups that the server's own
    user database gives to the account. Source: SPVA specification, per-connection authorization inputs.
    """

    account: str = ""
    method: str = ANONYMOUS
    authority: tuple[str, ...] = ()
    host: str = ""
    roles: frozenset[str] = frozenset()
    protocol: str = "tcp"
    san: tuple[tuple[str, str], ...] = ()
    subject: tuple[tuple[str, str], ...] = ()
    own_authority: bool = True
    """Whether the certificate leads to the same root as the server's own."""
    at_home: bool = True
    """Whether names without an organisation mean this principal: it belongs to the server's own authority, and to an
    organisation that the server calls its own. Only for proved names.
    """

    @classmethod
    def of(cls, identity: PeerIdentity, organizations: Container[str] = ()) -> Principal:
        """Return the principal behind a connection.

        Args:
            identity: What the connection knows.
            organizations: Those whose members the server's rules name without organisation, besides the server's own; ``*``
                means all.
        """
        own = identity.home is not None
        named = [text for attribute, text in identity.subject if attribute == "O"]
        return cls(
            account=identity.account,
            method=identity.method,
            authority=tuple(name for name in identity.authority.split("\n") if name),
            host=host_of_peer(identity.peer),
            roles=identity.roles,
            protocol="tls" if identity.is_tls else "tcp",
            san=identity.san,
            subject=identity.subject,
            own_authority=own,
            # A certificate without organisation was named by the authority itself: a token always gives its issuer's.
            at_home=own
            and (
                not named
                or "*" in organizations
                or (len(named) == 1 and (named[0] == identity.home or named[0] in organizations))
            ),
        )

    @property
    def organization(self) -> str:
        """The organisation that the certificate proves; empty if it names none."""
        return ", ".join(text for attribute, text in self.subject if attribute == "O")

    def names(self) -> frozenset[str]:
        """Return what a UAG may list to mean this principal.

        The account itself, ``<method>/<account>`` and ``role/<group>`` for each group. Only the server decides the part before a
        slash, never the peer. So an account that contains a slash matches by its last part if it was only claimed, and with the
        method in front if it was proved. A proved name of an organisation that is not at home here counts only with that
        organisation: ``alice`` of another organisation is another person, and the server's user database does not know her.
        Source: pvxs ``ioc/credentials.cpp``, both the plain and the SPVA variant.
        """
        method = self.method.lower()
        if method == ANONYMOUS:
            return frozenset((ANONYMOUS, f"{ANONYMOUS}/{ANONYMOUS}"))
        if method == X509 and (self.protocol != "tls" or not self.at_home):
            return frozenset()
        if method == "role" or not method.isalnum():
            return frozenset()
        names = {f"role/{role}" for role in self.roles}
        account = self.account
        if method == CA:
            account = account.rpartition("/")[2]
        if account:
            names.add(f"{method}/{account}")
            if "/" not in account:
                names.add(account)
        return frozenset(names)


class AuthorityRef(NamedTuple):
    """A certificate authority in a rule; ``path`` goes from the root to the authority itself."""

    name: str
    path: tuple[str, ...]


class SubjectEntry(NamedTuple):
    """A member of a UAG by its certificate: all parts must match."""

    text: str
    """As it is written."""
    parts: tuple[tuple[str, str], ...]
    """Attribute and value; ``*`` for an organisation means any."""
    authority: AuthorityRef | None = None
    """The authority that must have issued it; None: the server's own."""

    def covers(self, who: Principal) -> bool:
        """Whether it means a principal whose certificate is verified."""
        if self.authority is None:
            if not who.own_authority:
                return False
        elif not _follows(self.authority.path, who.authority):
            return False
        stated = False
        for attribute, wanted in self.parts:
            values = [text for name, text in who.subject if name == attribute]
            if attribute == "O":
                stated = True
                if wanted == "*":
                    continue
            # A certificate with two of a kind is ambiguous, so it matches nothing.
            if values != [wanted]:
                return False
        return stated or self.authority is not None or who.at_home


class SanGroup(NamedTuple):
    """A SAG: addresses or IPv4 networks, and DNS names with ``*`` and ``?``, all in lower case."""

    addresses: tuple[str, ...]
    names: tuple[str, ...]


class Rule(NamedTuple):
    """One RULE. An empty tuple means that the predicate is absent; ``line`` is 0 if it is not known."""

    level: int
    access: str
    grants: int
    trapwrite: bool = False
    uags: tuple[str, ...] = ()
    hags: tuple[str, ...] = ()
    sags: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    authorities: tuple[AuthorityRef, ...] = ()
    protocols: tuple[str, ...] = ()
    calc: Calc | None = None
    line: int = 0

    def __str__(self) -> str:
        return f"RULE({self.level},{self.access}{',TRAPWRITE' if self.trapwrite else ''})"


class Group(NamedTuple):
    """One ASG: its rules in file order, and the PV behind each input letter."""

    name: str
    rules: tuple[Rule, ...]
    inputs: Mapping[str, str]
    lines: Mapping[str, int] = MappingProxyType({})
    """Where each input is defined, by its letter, if that is known."""


class Decision(NamedTuple):
    """What is permitted, and why: one line for each rule, in file order."""

    read: bool
    write: bool
    rpc: bool
    uncached: bool
    trapwrite: bool
    """Whether a put must be logged."""
    why: tuple[str, ...]

    @property
    def access(self) -> str:
        """The decision in one word: ``NONE``, ``READ``, ``WRITE`` or ``RPC``; the gateway's ``PUT`` is WRITE."""
        return "RPC" if self.rpc else "WRITE" if self.write else "READ" if self.read else "NONE"


class Access:
    """A principal's access to the fields of one group and level. It depends only on the inputs' values."""

    __slots__ = ("_conditional", "_known", "_lines", "_owner", "_rules", "inputs")

    def __init__(
        self,
        owner: AccessSecurity,
        rules: tuple[Rule, ...],
        lines: tuple[str, ...],
        inputs: Mapping[str, str],
    ) -> None:
        self._owner = owner
        self._rules = rules
        self._lines = lines
        """Why each rule does not apply; empty if it does, perhaps on a condition."""
        self._conditional = tuple(
            (index, rule.calc)
            for index, rule in enumerate(rules)
            if rule.calc is not None and not lines[index]
        )
        letters = frozenset().union(*(calc.letters for _, calc in self._conditional))
        self.inputs: Final[Mapping[str, str]] = MappingProxyType(
            {letter: pv for letter, pv in inputs.items() if letter in letters}
        )
        """The inputs that can make a difference: PV name by letter. Empty: the decision never changes."""
        self._known: dict[int, Decision] = {}

    def decide(self, inputs: Mapping[str, float | None] = MappingProxyType({})) -> Decision:
        """Judge for these input values. ``None`` or a missing value means that the input is not connected or invalid."""
        failed = 0
        for index, calc in self._conditional:
            if not calc.holds(inputs):
                failed |= 1 << index
        known = self._known.get(failed)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[failed] = self._judge(failed)
        return known

    def _judge(self, failed: int) -> Decision:
        have = 0
        trapwrite = False
        why: list[str] = []
        for index, rule in enumerate(self._rules):
            line = self._lines[index]
            if not line and failed >> index & 1:
                line = f'CALC("{rule.calc.text if rule.calc else ""}") does not hold, or one of its inputs is not connected or invalid'
            if line:
                why.append(f"{self._owner.place(rule)}: does not apply: {line}")
                continue
            if rule.grants & ~have:
                # Base logs by the rule that gave the access its level; the gateway by any rule that applied. A rule that adds RPC to
                # WRITE says nothing about puts: they stay logged.
                trapwrite = rule.trapwrite or (trapwrite and bool(self._owner.gateway or have & WRITE))
                have |= rule.grants
            elif self._owner.gateway:
                trapwrite |= rule.trapwrite
            why.append(f"{self._owner.place(rule)}: grants {rule.access if rule.grants else 'nothing'}")
        return _decision(have, tuple(why) or ("the group has no rules: no access",), trapwrite=trapwrite)


def _decision(have: int, why: tuple[str, ...], *, trapwrite: bool) -> Decision:
    return Decision(
        bool(have & READ), bool(have & WRITE), bool(have & RPC), bool(have & UNCACHED), trapwrite, why
    )


class PrincipalAccess:
    """Everything that one principal may do; made by :meth:`AccessSecurity.compile_for`."""

    __slots__ = ("_by_group", "_host", "_method", "_names", "_owner", "_trusted", "principal")

    def __init__(self, owner: AccessSecurity, principal: Principal) -> None:
        self._owner = owner
        self.principal: Final = principal
        self._names = principal.names()
        self._host = canonical_host(principal.host)
        self._method = principal.method.lower()
        self._trusted = self._method == X509 and principal.protocol == "tls"
        """Whether the statements of a certificate are verified."""
        self._by_group: dict[tuple[str, int], Access] = {}

    def access(self, asg: str, asl: int = 0) -> Access:
        """Return the access to fields of level ``asl`` of records in group ``asg``."""
        group = self._owner.group(asg)
        key = (group.name, asl)
        found = self._by_group.get(key)
        if found is None:
            lines = tuple(self._obstacle(rule, asl) for rule in group.rules)
            found = self._by_group[key] = Access(self._owner, group.rules, lines, group.inputs)
        return found

    def decide(
        self, asg: str, asl: int = 0, inputs: Mapping[str, float | None] = MappingProxyType({})
    ) -> Decision:
        """Judge one field; see :meth:`Access.decide`."""
        return self.access(asg, asl).decide(inputs)

    def _obstacle(self, rule: Rule, asl: int) -> str:
        """Return why the rule does not apply, apart from its CALC; empty if it does."""
        who = self.principal
        owner = self._owner
        if asl > rule.level:
            return f"it is for fields up to ASL{rule.level}, and this one has ASL{asl}"
        if rule.protocols and who.protocol not in rule.protocols:
            return f"PROTOCOL({', '.join(rule.protocols)}): the connection is {_shown(who.protocol)}"
        if rule.methods:
            if self._method not in rule.methods:
                return f"METHOD({', '.join(rule.methods)}): the peer's method is {_shown(self._method)}"
            if self._method == X509 and not self._trusted:
                return "METHOD(x509): a certificate is only believed over TLS"
        if rule.uags and not any(self._in_uag(name) for name in rule.uags):
            return f"UAG({', '.join(rule.uags)}): {self._called()} is not in it{self._hint(rule.uags)}"
        if rule.hags and not any(self._host in owner.hags[name] for name in rule.hags):
            return f"HAG({', '.join(rule.hags)}): host '{_shown(who.host)}' is not in it"
        if rule.authorities and not (
            self._trusted and any(_follows(ref.path, who.authority) for ref in rule.authorities)
        ):
            names = ", ".join(ref.name for ref in rule.authorities)
            if not self._trusted:
                return f"AUTHORITY({names}): the peer proved nothing with a certificate"
            chain = " < ".join(map(_shown, who.authority)) or "nobody that is known"
            return f"AUTHORITY({names}): the certificate was issued by {chain}"
        if rule.sags and not (self._trusted and any(self._in_sag(owner.sags[name]) for name in rule.sags)):
            return (
                f"SAG({', '.join(rule.sags)}): no subject alternative name of the peer's certificate is in it"
            )
        return ""

    def _called(self) -> str:
        account = f"'{_shown(self.principal.account)}'" if self.principal.account else "a peer without a name"
        roles = "".join(f", 'role/{role}'" for role in sorted(self.principal.roles))
        organization = f" of O={_shown(self.principal.organization)}" if self.principal.organization else ""
        return f"{account}{organization} ({_shown(self._method)}){roles}"

    def _in_uag(self, name: str) -> bool:
        owner = self._owner
        if self._names & owner.uags[name]:
            return True
        return self._trusted and any(entry.covers(self.principal) for entry in owner.subjects.get(name, ()))

    def _hint(self, uags: tuple[str, ...]) -> str:
        """Return a hint for a peer whose name is listed, but without the peer's organisation."""
        who = self.principal
        if not self._trusted or who.at_home:
            return ""
        if not any(who._replace(at_home=True).names() & self._owner.uags[name] for name in uags):
            return ""
        if not who.own_authority:
            return ": names without an authority mean this server's own authority only"
        return (
            ": names without an organization mean members of this server's own; to mean this one, write "
            f'"CN={_shown(who.account)}, O={_shown(who.organization)}"'
        )

    def _in_sag(self, group: SanGroup) -> bool:
        for kind, text in self.principal.san:
            if kind.lower() == "dns" and any(glob_match(pattern, text.lower()) for pattern in group.names):
                return True
            if kind.lower() == "ip" and any(network_contains(network, text) for network in group.addresses):
                return True
        return False


def _shown(text: str) -> str:
    """Make what a peer says of itself safe for one line of a log."""
    return text[:200].encode("unicode_escape").decode()


def _follows(path: tuple[str, ...], chain: tuple[str, ...]) -> bool:
    """Whether the chain (issuer first) starts at the path's root and passes its other members in order.

    Whole names are compared: a name that only begins like another belongs to another authority.
    """
    if not chain or not path or chain[-1] != path[0]:
        return False
    upward = iter(reversed(chain))
    return all(name in upward for name in path)


class AccessSecurity:
    """One access security file, ready for use; immutable apart from what it remembers."""

    __slots__ = (
        "_compiled", "_default", "_open", "authorities", "file", "gateway", "groups", "hags", "sags", "subjects", "uags",
        "warnings",
    )  # fmt: skip

    def __init__(
        self,
        groups: Mapping[str, Group],
        *,
        uags: Mapping[str, frozenset[str]] = MappingProxyType({}),
        subjects: Mapping[str, tuple[SubjectEntry, ...]] = MappingProxyType({}),
        hags: Mapping[str, frozenset[str]] = MappingProxyType({}),
        sags: Mapping[str, SanGroup] = MappingProxyType({}),
        authorities: Mapping[str, AuthorityRef] = MappingProxyType({}),
        gateway: bool = False,
        file: str | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self.groups: Final[Mapping[str, Group]] = MappingProxyType(dict(groups))
        self.uags: Final = MappingProxyType(dict(uags))
        """Members by their names."""
        self.subjects: Final = MappingProxyType(dict(subjects))
        """Members by their certificates, for the UAGs that have such members."""
        self.hags: Final = MappingProxyType(dict(hags))
        """Hosts in canonical form. An entry without an address is kept as one that no peer can have."""
        self.sags: Final = MappingProxyType(dict(sags))
        self.authorities: Final = MappingProxyType(dict(authorities))
        self.gateway: Final = gateway
        self.file: Final = file
        self.warnings: Final = warnings
        """What the file's author should check, each with its place. Nothing in them widens access."""
        self._default = self.groups.get(DEFAULT) or Group(DEFAULT, (), MappingProxyType({}))
        self._open = False
        self._compiled: dict[Principal, PrincipalAccess] = {}

    @classmethod
    def unrestricted(cls) -> AccessSecurity:
        """Return access security for the case that no file is configured: everybody may do everything and nothing is logged."""
        rule = Rule(1 << 31, "RPC", READ | WRITE | RPC | UNCACHED)
        security = cls({DEFAULT: Group(DEFAULT, (rule,), MappingProxyType({}))})
        security._open = True
        return security

    def group(self, asg: str) -> Group:
        """Return the group of that name, or ``DEFAULT``."""
        return self.groups.get(asg, self._default)

    def is_readable(self, name: str) -> bool:
        """Whether the rules let anybody read records of a group: a rule grants reading, and its UAGs and HAGs have members."""

        def opens(rule: Rule) -> bool:
            members = not rule.uags or any(self.uags[uag] or self.subjects.get(uag) for uag in rule.uags)
            hosts = not rule.hags or any(self.hags[hag] for hag in rule.hags)
            return bool(rule.grants & READ) and members and hosts

        return any(map(opens, self.group(name).rules))

    def compile_for(self, principal: Principal) -> PrincipalAccess:
        """Return the principal's access with everything decided that does not depend on inputs. The result is remembered."""
        found = self._compiled.get(principal)
        if found is None:
            if len(self._compiled) >= _REMEMBERED:
                self._compiled.clear()
            found = self._compiled[principal] = PrincipalAccess(self, principal)
        return found

    def decide(
        self,
        asg: str,
        asl: int,
        principal: Principal,
        inputs: Mapping[str, float | None] = MappingProxyType({}),
    ) -> Decision:
        """Return what a principal may do with a field, and why.

        Args:
            asg: Access security group of the field's record.
            asl: Access security level of the field, 0 or 1.
            principal: Who asks.
            inputs: Value of each input of the group by its letter, None if it cannot be read.
        """
        return self.compile_for(principal).access(asg, asl).decide(inputs)

    def place(self, rule: Rule) -> str:
        """Return a rule and its place, for messages."""
        if self._open:
            return "access security is off"
        where = ":".join(str(part) for part in (self.file, rule.line or None) if part is not None)
        return f"{where}: {rule}" if where else str(rule)
