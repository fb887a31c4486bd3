"""Reports of the IOC's shell: rules in force, the server and its clients, groups."""

from __future__ import annotations

import fnmatch
import os
import platform
import sysconfig
import threading
from collections.abc import Iterable
from typing import Final

from appliance.config.pva import ClientConfig, Effective, ServerConfig
from appliance.ioc import dbcore
from appliance.ioc.access import FieldAccess
from appliance.ioc.groups.group import RecordGroup
from appliance.server.channel import Channel
from appliance.server.server import Server
from appliance.server.source import Source
from appliance.transport.interfaces import broadcast_addresses, interface_addresses
from appliance.version import __version__

__all__ = ["access_lines", "group_lines", "information_lines", "name_lines", "server_lines"]

_TOP: Final = '""'
_RULER: Final = "------------------"


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


def name_lines(sources: Iterable[tuple[str, int, Source]], details: int) -> list[str]:
    """List the names of all PVs of the sources, each with its label and priority, as QSRV2 does."""
    lines = []
    for label, priority, source in sources:
        names = list(source.names())
        if names and details:
            lines += [_RULER, f"SOURCE: {label}@{priority}", _RULER, "RECORDS: "]
        lines += [f"  {name}" if details else name for name in names]
    return lines


def information_lines(client: Effective[ClientConfig], server: Effective[ServerConfig]) -> list[str]:
    """Show versions, the host, and the settings that the environment gives: what a report of a fault needs."""
    from cryptography.hazmat.backends.openssl import backend

    host = platform.uname()
    addresses = [each.address for each in interface_addresses()]
    base = dbcore.environment_value("EPICS_VERSION_FULL") or ""
    return [
        f"Host: {sysconfig.get_platform()}",
        "Versions",
        f"    Secure PVAccess appliance {__version__}",
        f"    EPICS {base}",
        f"    Python {platform.python_version()} ({platform.python_compiler()})",
        f"    {backend.openssl_version_text()}",
        "Runtime",
        f"    uname() -> {' '.join(part for part in host[:5] if part)}",
        f"    CPUs -> {os.cpu_count()}",
        f"    threads -> {threading.active_count()}",
        f"    interfaces -> {' '.join(map(str, addresses))}",
        f"    broadcast addresses -> {' '.join(broadcast_addresses())}",
        "Effective Client config from environment",
        *(f"    {line}" for line in client.render().splitlines()[1:]),
        "Effective Server config from environment",
        *(f"    {line}" for line in server.render().splitlines()[1:]),
    ]


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
