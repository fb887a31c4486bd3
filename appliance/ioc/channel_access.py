"""Access security of the Channel Access server, which judges by EPICS Base's own (asLib) and not by ours.

It is given those of our rules that somebody can satisfy who merely claims a name over plain TCP, in the form that EPICS
Base reads. Whatever it could not judge as we do is left out, and a rule that is left out grants nothing: METHOD(x509),
AUTHORITY, SAG, PROTOCOL(tls), roles, and CALC with inputs that are no records of this IOC.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from appliance.acf import AccessSecurity
from appliance.acf.model import DEFAULT, READ, WRITE, Group, Rule
from appliance.errors import AccessFileError, ApplianceError
from appliance.ioc import dbcore

__all__ = ["ChannelAccessRules", "rules_for_channel_access"]

_TOP_LEVEL: Final = 1
"""No field has a higher access security level (dbFldDes, ``as_level``)."""
_SAFE: Final = re.compile(r'[^"\\\x00-\x1f\x7f]+')
_HEADER: Final = "# What Channel Access may do\n"


def rules_for_channel_access(security: AccessSecurity, is_record: Callable[[str], bool]) -> str:
    """Return the rules as EPICS Base reads them.

    ``is_record`` tells whether an input is a field of this IOC. Raises AccessFileError for a group whose name EPICS
    Base cannot read: its records would come under ASG(DEFAULT).
    """
    lines = []
    for name, users in security.uags.items():
        if _is_safe(name):
            # A slash comes from nowhere but the client's own claim here: x509/alice and role/shift prove nothing.
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
                f"ASG({group.name!r}): Channel Access cannot use a group of this name; rename it, or do without Channel Access",
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
    rules = [text for rule in group.rules if (text := _rule(rule, inputs))]
    if not rules:
        return [f'ASG("{group.name}")']
    return [
        f'ASG("{group.name}") {{',
        *(f'    INP{letter}("{pv}")' for letter, pv in sorted(inputs.items())),
        *rules,
        "}",
    ]


def _rule(rule: Rule, inputs: Mapping[str, str]) -> str:
    """One rule; empty where nobody could satisfy it over Channel Access."""
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
    trap = ", TRAPWRITE" if rule.trapwrite else ""
    body = f" {{ {' '.join(conditions)} }}" if conditions else ""
    return f"    RULE({min(rule.level, _TOP_LEVEL)}, {access}{trap}){body}"


class ChannelAccessRules:
    """Keeps EPICS Base's rules in step with ours; :meth:`prepare` before ``iocInit``, :meth:`replace` ever after.

    Both block.
    """

    def __init__(self) -> None:
        self._file: Any = None

    def prepare(self, security: AccessSecurity) -> None:
        """Have iocInit read the rules. Raises AccessFileError."""
        text = rules_for_channel_access(security, dbcore.exists)
        self._file = tempfile.NamedTemporaryFile("w", suffix=".acf", encoding="utf-8")  # noqa: SIM115 - read again by each asInit
        self._write(text)
        dbcore.set_access_file(self._file.name)

    def replace(self, security: AccessSecurity) -> None:
        """Put other rules in force; nothing to do where Channel Access is not served.

        Raises AccessFileError when EPICS Base refuses them: then it keeps those that it has.
        """
        if self._file is None:
            return
        self._write(rules_for_channel_access(security, dbcore.exists))
        try:
            dbcore.init_access_security()
        except ApplianceError as error:
            raise AccessFileError(f"Channel Access refuses the rules: {error}", file=security.file) from error

    def _write(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
