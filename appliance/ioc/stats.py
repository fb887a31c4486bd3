"""Records about the state of the IOC, with the names of the module iocStats: the values come from here.

The records are ``db/iocStats.db``: soft records, each with an ``info(iocStats, ...)`` that says which value it gets. A
task of the event loop looks once a second and writes, in a thread beside it, what has changed. So no scan thread of EPICS waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import platform
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.dbcore import queues

__all__ = ["SHIPPED", "ServerCounts", "Stats", "StatsHost", "up_time"]

_log: Final = logging.getLogger(__name__)

SHIPPED: Final = Path(__file__).parent / "db"
"""The folder of the databases that come with the program."""
_INFO: Final = "iocStats"
_EVERY_S: Final = 1.0
_PART: Final = 39
"""Characters of a stringin."""
_PERIODS: Final = {"MEM": 10.0, "LOAD": 10.0, "FD": 20.0, "CA": 15.0}
_QUEUES: Final = ("scanOnce", "cbLow", "cbMedium", "cbHigh")
_QUEUE_PARTS: Final = ("QueueUsed", "QueueHiWtrMrk", "QueueOverruns")
_KIND: Final = {
    **dict.fromkeys(("free_bytes", "allocated_bytes", "total_bytes"), "MEM"),
    **dict.fromkeys(("sys_cpuload", "ioc_cpuload", "no_of_cpus", "suspended_tasks"), "LOAD"),
    **dict.fromkeys(("fd", "maxfd"), "FD"),
    **dict.fromkeys(("ca_clients", "ca_connections", "pva_clients", "pva_tls_clients", "pva_channels"), "CA"),
}
"""Which record with a period, ``..._UPD_TIME``, says how often a value is looked for; all others each second."""


class ServerCounts(NamedTuple):
    """What the PVAccess server has at present."""

    clients: int
    tls_clients: int
    channels: int


class StatsHost(Protocol):
    """The part of the IOC that is asked."""

    def server_counts(self) -> ServerCounts:
        """Return the clients of the PVAccess server; called on the event loop."""


class _Target(NamedTuple):
    item: str
    channel: dbcore.DBChannel
    prefix: str
    is_waveform: bool


def up_time(seconds: float) -> str:
    """Write a time as iocStats does: ``2 days, 03:04:05``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    before = "" if not days else "1 day, " if days == 1 else f"{days} days, "
    return f"{before}{hour:02d}:{minute:02d}:{second:02d}"


class Stats:
    """Writes the values, from :meth:`start` to :meth:`stop`."""

    def __init__(self, host: StatsHost, script: str) -> None:
        self._host = host
        self._script = script
        self._task: asyncio.Task[None] | None = None
        self._targets: list[_Target] = []
        self._told: dict[str, Any] = {}
        self._looked: dict[tuple[str, str], float] = {}
        self._began = time.monotonic()
        self._cpu = (self._began, time.process_time(), _system_cpu())
        self._loads = (0.0, 0.0)
        self._has_channel_access = False
        self._records = 0

    def start(self) -> None:
        """Begin, if there are records for it; call it on the event loop when the IOC runs."""
        marked = dbcore.info_items(_INFO)
        if not marked:
            return
        kinds = {record.name: record.record_type for record in dbcore.records() if not record.is_alias}
        self._records = len(kinds)
        known = self._values()
        for name, item in marked:
            if item not in known:
                _log.warning(
                    "%s: info(iocStats, %r) names no value that is known; it is left alone", name, item
                )
                continue
            prefix = name.rpartition(":")[0]
            self._targets.append(_Target(item, dbcore.DBChannel(name), prefix, kinds[name] == "waveform"))
        self._has_channel_access = dbcore.serves_channel_access()
        self._task = asyncio.get_running_loop().create_task(self._work(), name="iocStats")

    async def stop(self) -> None:
        """End; the database must not be shut down before."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for target in self._targets:
            target.channel.close()
        self._targets = []

    async def _work(self) -> None:
        while True:
            round_ = asyncio.ensure_future(asyncio.to_thread(self._round, self._host.server_counts()))
            try:
                # A round that has begun ends before the records are closed.
                await asyncio.shield(round_)
            except asyncio.CancelledError:
                await asyncio.gather(round_, return_exceptions=True)
                raise
            except Exception:  # noqa: BLE001 - the next round may work
                _log.exception("the records of iocStats were not written")
            await asyncio.sleep(_EVERY_S)

    def _round(self, counts: ServerCounts) -> None:
        now = time.monotonic()
        due: set[tuple[str, str]] = set()
        for prefix in {target.prefix for target in self._targets}:
            for kind in _PERIODS:
                last = self._looked.get((prefix, kind))
                if last is None or now - last >= _period(prefix, kind) - _EVERY_S / 2:
                    due.add((prefix, kind))
                    self._looked[prefix, kind] = now
        if any(kind == "LOAD" for _, kind in due):
            self._measure(now)
        cache: dict[str, Any] = {}
        values = self._values(counts)
        for item, channel, prefix, is_waveform in self._targets:
            group = _KIND.get(item)
            if group is not None and (prefix, group) not in due:
                continue
            if item not in cache:
                cache[item] = values[item]()
            value = cache[item]
            if self._told.get(channel.name) == value:
                continue
            self._told[channel.name] = value
            try:
                channel.put(
                    _characters(value)
                    if is_waveform
                    else value[:_PART]
                    if isinstance(value, str)
                    else float(value)
                )
            except ApplianceError as error:
                _log.warning("%s: %s", channel.name, error)

    def _measure(self, now: float) -> None:
        before, own, all_before = self._cpu
        own_now, all_now = time.process_time(), _system_cpu()
        cpus = os.cpu_count() or 1
        if now - before > 0:
            self._loads = (
                100.0 * (own_now - own) / (now - before) / cpus,
                math.nan
                if all_now is None or all_before is None
                else 100.0 * (all_now[0] - all_before[0]) / max(all_now[1] - all_before[1], 1),
            )
        self._cpu = (now, own_now, all_now)

    def _values(self, counts: ServerCounts | None = None) -> dict[str, Callable[[], Any]]:
        """Return the source of each value."""
        there = counts or ServerCounts(0, 0, 0)
        access = queues.channel_access_clients if self._has_channel_access else lambda: (0, 0)
        folder = str(Path.cwd())
        found: dict[str, Callable[[], Any]] = {
            "up_time": lambda: up_time(time.monotonic() - self._began),
            "ca_clients": lambda: access()[0],
            "ca_connections": lambda: access()[1],
            "pva_clients": lambda: there.clients,
            "pva_tls_clients": lambda: there.tls_clients,
            "pva_channels": lambda: there.channels,
            "records": lambda: self._records,
            "maxfd": lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "fd": lambda: len(os.listdir("/proc/self/fd")) - 1,  # noqa: PTH208
            "ioc_cpuload": lambda: self._loads[0],
            "sys_cpuload": lambda: self._loads[1],
            "no_of_cpus": lambda: os.cpu_count() or 1,
            "suspended_tasks": queues.suspended_threads,
            "allocated_bytes": lambda: (
                int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            ),
            "free_bytes": lambda: _memory("MemAvailable", "SC_AVPHYS_PAGES"),
            "total_bytes": lambda: _memory("MemTotal", "SC_PHYS_PAGES"),
            "startup_script": lambda: self._script,
            "startup_script_1": lambda: self._script[:_PART],
            "startup_script_2": lambda: self._script[_PART:],
            "kernel_ver": lambda: f"{platform.system()} {platform.release()}",
            "epics_ver": lambda: f"EPICS {dbcore.environment_value('EPICS_VERSION_FULL') or ''}",
            "hostname": socket.gethostname,
            "pwd": lambda: folder,
            "pwd1": lambda: folder[:_PART],
            "pwd2": lambda: folder[_PART:],
            "engineer": lambda: dbcore.environment_value("ENGINEER") or "",
            "location": lambda: dbcore.environment_value("LOCATION") or "",
            "proc_id": os.getpid,
            "parent_proc_id": os.getppid,
            "scanOnceQueueSize": lambda: queues.queues()["scanOnce"].size,
            "cbQueueSize": lambda: queues.queues()["cbLow"].size,
        }
        for name in _QUEUES:
            for part, field in zip(_QUEUE_PARTS, ("used", "most", "overruns"), strict=True):
                found[name + part] = lambda name=name, field=field: getattr(queues.queues()[name], field)  # type: ignore[misc]
        return found


def _characters(text: str) -> Any:
    """Return text for a waveform of CHAR, with the nul behind it."""
    return np.frombuffer(text.encode() + b"\0", np.int8)


def _period(prefix: str, kind: str) -> float:
    name = f"{prefix}:{kind}_UPD_TIME"
    if not dbcore.exists(name):
        return _PERIODS[kind]
    with dbcore.DBChannel(name) as channel:
        return max(float(channel.get().value), _EVERY_S)


def _system_cpu() -> tuple[int, int] | None:
    """Return the time that all CPUs were busy, and all their time; None where the system hides it (systemd's ProcSubset=pid)."""
    try:
        text = Path("/proc/stat").read_text()
    except OSError:
        return None
    fields = [int(word) for word in text.split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def _memory(name: str, hidden: str) -> int:
    """Return octets of the host's memory, by the kernel's name, or by that of sysconf where /proc/meminfo is hidden."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return os.sysconf(hidden) * os.sysconf("SC_PAGE_SIZE")
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name + ":")), 0)
