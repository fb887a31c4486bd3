"""Reports of the IOC's shell: rules in force, the server and its clients, groups."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Final

from appliance.ioc.access import FieldAccess
from appliance.ioc.groups.group import RecordGroup
from appliance.server.channel import Channel
from appliance.server.server import Server

__all__ = ["access_lines", "group_lines", "server_lines"]

_TOP: Final = '""'


def access_lines(access: FieldAccess) -> list[str]:
    """Show the access security rules in force."""
    if not access.is_restricted:
        return ["access security is off: everybody may do everything"]
    lines = [f"file: {access.security.file}"]
    for group in access.security.groups.values():
        lines.append(f"ASG({group.name})")
        lines += [
            f"  INP{letter}({pv}) = {access.value_of(pv)}" for letter, pv in sorted(group.inputs.items())
        ]
        for rule in group.rules:
            lines.append(f"  {rule}")
            for word, names in (
                ("UAG", rule.uags),
                ("HAG", rule.hags),
                ("SAG", rule.sags),
                ("METHOD", rule.methods),
                ("AUTHORITY", tuple(each.name for each in rule.authorities)),
                ("PROTOCOL", rule.protocols),
                ("CALC", (rule.calc.text,) if rule.calc is not None else ()),
            ):
                if names:
                    lines.append(f"    {word}({', '.join(names)})")
    return lines


def server_lines(server: Server, level: int, switched_off: str) -> list[str]:
    """Show the state of the server.

    Args:
        server: the server.
        level: 0 shows addresses, 1 also clients, 2 also channels.
        switched_off: the variable that forbids to serve records; empty if none does.

    """
    lines = [f"records are not served: {switched_off}"] if switched_off else []
    lines += [
        f"TCP port {server.tcp_port or 'off'}, TLS port {server.tls_port or 'off'}, UDP port {server.udp_port}",
        f"{len(server.peers)} clients, {server.access.refusals} requests refused",
    ]
    if level > 0:
        for peer in server.peers.values():
            who = peer.credentials
            channels = list(peer.channels())
            protocol = "tls" if who.is_tls else "tcp"
            lines.append(
                f"  {who.method}/{who.account or '-'} {protocol} {who.peer} {len(channels)} channels"
            )
            if level > 1:
                lines += [f"    {channel.name}{_rights(channel)}" for channel in channels]
    return lines


def _rights(channel: Channel) -> str:
    rights = channel.rights
    words = [word for word, have in (("read", rights.read), ("write", rights.write)) if have]
    return f" ({', '.join(words) or 'no access'})"


def group_lines(groups: Iterable[RecordGroup], level: int, pattern: str) -> list[str]:
    """List groups by name; level 1 adds their members. A pattern (``*``, ``?``) selects groups."""
    lines = []
    for group in sorted(groups, key=lambda each: each.name):
        if pattern and not fnmatch.fnmatchcase(group.name, pattern):
            continue
        lines.append(group.name)
        if level > 0:
            lines.append(f"  atomic={'yes' if group.atomic else 'no'} members={len(group.members)}")
            for member in group.members:
                triggers = ",".join(each.name or _TOP for each in member.triggers)
                lines.append(
                    f"  {member.name or _TOP} {member.kind} {member.config.channel}"
                    f" putorder={member.config.put_order} triggers={triggers or '-'}"
                )
    return lines
