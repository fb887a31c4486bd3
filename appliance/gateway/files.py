"""Read the PV lists and the access security files that a configuration names: before a port is opened, and at a reload."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from appliance.acf import AccessSecurity, PVList
from appliance.errors import ConfigurationError
from appliance.gateway.config import GatewayConfig, ServerSide
from appliance.server.access_file import load_access_file, load_pvlist

__all__ = ["Files", "ServerFiles", "read_files"]


class ServerFiles(NamedTuple):
    """The files of one server side."""

    pvlist: PVList | None
    """The PV list; None: every name is served."""
    security: AccessSecurity | None
    """The rules; None: everybody may do everything."""


class Files(NamedTuple):
    """The files of a configuration."""

    servers: Mapping[str, ServerFiles]
    """By server side."""
    names: tuple[str, ...]
    """The names of all files that were read, in the order of the configuration."""
    warnings: tuple[str, ...]
    """One sentence for each thing that is probably not meant."""


def read_files(config: GatewayConfig) -> Files:
    """Read PV lists and access security files, and look their hosts up; blocks.

    Raises:
        AccessFileError: A file is wrong; the text has file, line and column.
        ConfigurationError: A file cannot be read, or a put log cannot be where the configuration wants it.
    """
    servers: dict[str, ServerFiles] = {}
    names: list[str] = []
    warnings: list[str] = []
    for name, side in config.servers.items():
        security = pvlist = None
        if side.access.file:
            names.append(side.access.file)
            _check_readable(f"servers.{name}.access.file", side.access.file)
            security = load_access_file(side.access.file, macros=side.access.macros, gateway=True)
            warnings += security.warnings
        if side.pvlist:
            names.append(side.pvlist)
            _check_readable(f"servers.{name}.pvlist", side.pvlist)
            pvlist = load_pvlist(side.pvlist)
            warnings += pvlist.warnings
        warnings += _groups_without_rules(name, side, pvlist, security)
        if side.put_log:
            _check_place(name, side.put_log)
        servers[name] = ServerFiles(pvlist, security)
    return Files(servers, tuple(dict.fromkeys(names)), tuple(dict.fromkeys(warnings)))


def _groups_without_rules(
    name: str, side: ServerSide, pvlist: PVList | None, security: AccessSecurity | None
) -> list[str]:
    """Find groups of the PV list that the rules do not know."""
    used = pvlist.groups if pvlist is not None else frozenset(("DEFAULT",))
    if security is None:
        given = sorted(used - {"DEFAULT"})
        if not given:
            return []
        where = f"servers.{name}: the PV list puts PVs into {_named(given)}"
        return [f"{where}, but there is no access security file: everybody may write them; give access.file"]
    unknown = sorted(used - security.groups.keys())
    if not unknown:
        return []
    instead = (
        "the rules of ASG(DEFAULT) apply to them"
        if "DEFAULT" in security.groups
        else "nobody may write PVs of a group without rules"
    )
    where = f"the PV list {side.pvlist} uses" if side.pvlist else "every PV is in"
    return [f"{side.access.file}: {where} {_named(unknown)}, which has no rules in this file; {instead}"]


def _named(groups: list[str]) -> str:
    more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
    return ", ".join(f"ASG({group})" for group in groups[:5]) + more


def _check_regular(key: str, file: str) -> None:
    if os.path.exists(file) and not os.path.isfile(file):  # noqa: PTH110, PTH113
        raise ConfigurationError(f"{file} is not a regular file", key=key)


def _check_readable(key: str, file: str) -> None:
    _check_regular(key, file)  # to open a FIFO would wait for ever
    try:
        with open(file, "rb"):  # noqa: PTH123 - text in, text out
            pass
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}", key=key) from None


def _check_place(name: str, file: str) -> None:
    folder = os.path.dirname(os.path.abspath(file))  # noqa: PTH100, PTH120 - text in, text out
    key = f"servers.{name}.put_log"
    if not os.path.isdir(folder):  # noqa: PTH112
        raise ConfigurationError(f"there is no directory {folder}; create it for the gateway's user", key=key)
    _check_regular(key, file)
    if not os.access(file if os.path.exists(file) else folder, os.W_OK):  # noqa: PTH110
        raise ConfigurationError(f"this user may not write {file}; give it to the gateway's user", key=key)
