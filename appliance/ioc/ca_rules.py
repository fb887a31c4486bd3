"""Translate our rules into EPICS Base's format for its Channel Access server, which judges by its own library (asLib).

Only rules that an unauthenticated name can satisfy over plain TCP are exported. Conditions that EPICS Base cannot judge as we do are
left out, together with their rules, so that these grant nothing: METHOD(x509), AUTHORITY, SAG, PROTOCOL(tls), roles, and CALC with
inputs that are not records of this IOC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from appliance.acf import AccessSecurity
from appliance.acf.model import DEFAULT, READ, RPC, WRITE, Group, Rule
from appliance.errors import AccessFileError

__all__ = ["rules_for_channel_access"]

_TOP_LEVEL: Final = 1
"""No field has a higher access security level (dbFldDes, ``as_level``)."""
_SAFE: Final = re.compile(r'[^"\\\x00-\x1f\x7f]+')
_HEADER: Final = "# What Channel Access may do\n"


def rules_for_channel_access(security: AccessSecurity, is_record: Callable[[str], bool]) -> str:
    """Return the rules as EPICS Base reads them.

    Args:
        security: The rules in force for PVAccess.
        is_record: Tells whether an input is a field of this IOC.

    Raises:
        AccessFileError: EPICS Base cannot read the name of a group; ASG(DEFAULT) would apply to its records.
    """
    lines = []
    for name, users in security.uags.items():
        if _is_safe(name):
            # A name with a slash is only a claim of the client here: x509/alice and role/shift prove nothing.
            claimed = sorted({user.removeprefix("ca/") for user in users})
            lines.append(_group("UAG", name, (user for user in claimed if "/" not in user)))
    for name, hosts in security.hags.items():
        if _is_safe(name):
            lines.append(_group("HAG", name, (host for host in sorted(hosts) if _is_ipv4(host))))
    groups = dict(security.groups)
    groups.setdefault(DEFAULT, Group(DEFAULT, (), {}))
    for group in groups.values():
        if not _is_safe(group.name):
            raise AccessFileError(
                f"ASG({group.name!r}): Channel Access cannot use a group with this name; rename it, or switch Channel Access off",
                file=security.file,
            )
        lines += _asg(group, is_record)
    return _HEADER + "\n".join(lines) + "\n"


def _is_safe(text: str) -> bool:
    return _SAFE.fullmatch(text) is not None


def _is_ipv4(host: str) -> bool:
    return re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", host) is not None


def _group(keyword: str, name: str, members: Iterable[str]) -> str:
    usable = [f'"{member}"' for member in members if _is_safe(member)]
    return f'{keyword}("{name}")' + (f" {{ {', '.join(usable)} }}" if usable else "")


def _asg(group: Group, is_record: Callable[[str], bool]) -> list[str]:
    inputs = {letter: pv for letter, pv in group.inputs.items() if _is_safe(pv) and is_record(pv)}
    # For us RPC is more than WRITE; for EPICS Base it is the same. Base uses the first matching rule to decide about logging.
    logged = any(rule.trapwrite and rule.grants & RPC for rule in group.rules)
    rules = [text for rule in group.rules if (text := _rule(rule, inputs, logged=logged))]
    if not rules:
        return [f'ASG("{group.name}")']
    return [
        f'ASG("{group.name}") {{',
        *(f'    INP{letter}("{pv}")' for letter, pv in sorted(inputs.items())),
        *rules,
        "}",
    ]


def _rule(rule: Rule, inputs: Mapping[str, str], *, logged: bool) -> str:
    """Return one rule as text; "" if nobody can satisfy it over Channel Access."""
    access = "WRITE" if rule.grants & WRITE else "READ" if rule.grants & READ else ""
    if (
        not access
        or rule.authorities
        or rule.sags
        or (rule.methods and "ca" not in rule.methods)
        or (rule.protocols and "tcp" not in rule.protocols)
        or not all(map(_is_safe, (*rule.uags, *rule.hags)))
    ):
        return ""
    conditions = []
    for word, names in (("UAG", rule.uags), ("HAG", rule.hags)):
        if names:
            quoted = ", ".join(f'"{name}"' for name in names)
            conditions.append(f"{word}({quoted})")
    if rule.calc is not None:
        if rule.calc.uses_val or not _is_safe(rule.calc.text) or not rule.calc.letters <= inputs.keys():
            return ""
        conditions.append(f'CALC("{rule.calc.text}")')
    trap = ", TRAPWRITE" if rule.trapwrite or (logged and access == "WRITE") else ""
    body = f" {{ {' '.join(conditions)} }}" if conditions else ""
    return f"    RULE({min(rule.level, _TOP_LEVEL)}, {access}{trap}){body}"
