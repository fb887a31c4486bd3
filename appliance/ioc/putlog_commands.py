"""The commands of the module caPutLog in the shell, for text and for JSON."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.caputlog import CaPutLog, parse_servers
from appliance.ioc.config import CaPutLogPlan

__all__ = ["PUT_LOG_COMMANDS", "check_start", "register_put_log", "start_put_log"]

PUT_LOG_COMMANDS: Final = (
    "caPutJsonLogAddMetadata",
    "caPutJsonLogInit",
    "caPutJsonLogReconf",
    "caPutJsonLogSetBurstTimeout",
    "caPutJsonLogShow",
    "caPutLogInit",
    "caPutLogReconf",
    "caPutLogSetBurstTimeout",
    "caPutLogSetTimeFmt",
    "caPutLogShow",
    "iocLogPrefix",
)
"""The commands of :func:`register_put_log`."""

_VARIABLES: Final = {
    "caPutLog": "EPICS_CA_PUT_LOG_ADDR",
    "caPutJsonLog": "EPICS_CA_JSON_PUT_LOG_ADDR",
}
"""Beginnings of the commands, and the variables that name servers."""


def start_put_log(log: CaPutLog, plan: CaPutLogPlan) -> None:
    """Start the log as the configuration says.

    Raises:
        ConfigurationError: The file cannot be opened.
    """
    log.is_json = plan.is_json
    log.configure(plan.mode, plan.burst_s)
    if plan.file:
        log.write_file(plan.file)
    if plan.servers:
        log.add_servers(parse_servers(plan.servers))


def register_put_log(log: CaPutLog, has_rules: Callable[[], bool]) -> None:
    """Add the commands.

    Args:
        log: The log.
        has_rules: Tells whether there is an access security file, without which no put is selected.
    """
    add: Any = dbcore.register_command
    add(
        "iocLogPrefix", [("prefix", str)], partial(_prefix, log), "Begin each line for log servers with it.\n"
    )
    for kind in _VARIABLES:
        variable = _VARIABLES[kind]
        add(
            f"{kind}Init",
            [("host[:port] ...", str), ("config", int), ("burst timeout", float)],
            partial(_init, log, kind, has_rules),
            f"Log puts to servers; without one to {variable}. config: -1 none, 0 changes, 1 all, 2 no bursts.\n",
        )
        add(
            f"{kind}Reconf",
            [("config", int), ("burst timeout", float)],
            partial(_reconfigure, log, kind),
            "Change what is logged: -1 none, 0 changes, 1 all, 2 without combining bursts.\n",
        )
        add(f"{kind}Show", [("level", int)], partial(_show, log, kind), "Show mode, count and servers.\n")
        add(
            f"{kind}SetBurstTimeout",
            [("seconds", float)],
            lambda seconds: log.configure(log.mode, seconds),
            "Seconds without a put after which a burst is over.\n",
        )
    add(
        "caPutLogSetTimeFmt", [("format", str)], partial(_format, log), "The form of date and time in text.\n"
    )
    add(
        "caPutJsonLogAddMetadata",
        [("property", str), ("value", str)],
        partial(_metadata, log),
        "Add a property to each line of JSON.\n",
    )


def check_start(
    kind: str, servers: str | None, *, is_running: bool, has_rules: bool
) -> list[tuple[str, int]]:
    """Return the servers that a command names, or its variable.

    Raises:
        ApplianceError: It cannot start the log.
    """
    if not is_running:
        raise ApplianceError(f"{kind}Init: access security is not active yet: use it after iocInit")
    if not has_rules:
        raise ApplianceError(
            f"{kind}Init: there is no access security file, so no put is selected: before iocInit use asSetFilename "
            "with a file whose rules have TRAPWRITE"
        )
    variable = _VARIABLES[kind]
    where = parse_servers((servers or "").strip() or dbcore.environment_value(variable) or "")
    if not where:
        raise ApplianceError(f'usage: {kind}Init("HOST:PORT", config, seconds), or set {variable}')
    return where


def _init(
    log: CaPutLog, kind: str, has_rules: Callable[[], bool], servers: str | None, mode: int, burst_s: float
) -> None:
    is_running = dbcore.ioc_state() is dbcore.IocState.RUNNING
    where = check_start(kind, servers, is_running=is_running, has_rules=has_rules())
    is_json = kind == "caPutJsonLog"
    if log.is_running and log.is_json is not is_json:
        raise ApplianceError(f"{kind}Init: the put log runs in the other form; there is one form at a time")
    log.is_json = is_json
    log.configure(mode, burst_s)
    log.add_servers(where)


def _running(log: CaPutLog, kind: str) -> None:
    if not log.is_running:
        raise ApplianceError(
            f"{kind}: it was not started: use {kind}Init, or 'ca_put_log' of the configuration"
        )


def _reconfigure(log: CaPutLog, kind: str, mode: int, burst_s: float) -> None:
    _running(log, kind)
    log.configure(mode, burst_s or log.burst_s)


def _show(log: CaPutLog, kind: str, _level: int) -> None:
    _running(log, kind)
    for line in log.lines():
        dbcore.shell_print(line)


def _format(log: CaPutLog, form: str | None) -> None:
    if not form or "\n" in form:
        raise ApplianceError('usage: caPutLogSetTimeFmt("%d-%b-%y %H:%M:%S")')
    log.time_format = form


def _metadata(log: CaPutLog, name: str | None, value: str | None) -> None:
    if not name or value is None:
        raise ApplianceError("usage: caPutJsonLogAddMetadata(property, value)")
    log.add_metadata(name, value)


def _prefix(log: CaPutLog, prefix: str | None) -> None:
    if not prefix or not prefix.isprintable():
        raise ApplianceError('usage: iocLogPrefix("NAME ")')
    if log.prefix and prefix != log.prefix:
        raise ApplianceError(f"iocLogPrefix: the prefix is {log.prefix!r} already and cannot be changed")
    log.prefix = prefix
    dbcore.set_log_prefix(prefix)
