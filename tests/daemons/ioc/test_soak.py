"""The IOC's memory stays what it is: all record types of EPICS Base, scanned, linked, watched, put to, over TCP and TLS.

Small by default. ``make soak`` sets SPVA_SOAK_IOC_SECONDS to an hour, and SPVA_SOAK_IOC_COPIES to what a larger IOC has.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from appliance.certmon.endpoints import open_client
from appliance.client import Context
from appliance.config.pva import resolve_client
from tests.helpers import pki
from tests.helpers.crowd import Watcher
from tests.helpers.ioc_process import IocProcess, running_ioc
from tests.helpers.ports import free_port
from tests.helpers.soak import FLAT, background, slope

SECONDS = float(os.environ.get("SPVA_SOAK_IOC_SECONDS", "3"))
COPIES = int(os.environ.get("SPVA_SOAK_IOC_COPIES", "2"))
pytestmark = pytest.mark.timeout(SECONDS * 2 + 300)

ENVIRONMENT = {"EPICS_PVAS_TLS_KEYCHAIN": None, "EPICS_ALLOW_POSIX_THREAD_PRIORITY_SCHEDULING": "NO"}
"""With real-time priorities, which root may have, EPICS locks all memory: each thread's stack counts with 8 MiB, used or not."""
ALL_TYPES = Path(__file__).with_name("all_types.db")
SCANNED = {"event", "fanout", "dfanout", "seq", "subArray", "sub", "aSub"}
"""Types of which one scan a second is enough: they need a link or a routine to do more than nothing. Others scan at 10 Hz."""


def records(copies: int) -> tuple[str, list[str]]:
    """Copies of every record type, scanned, with records that link them over PVA; and the names of records and groups."""
    text = ALL_TYPES.read_text()
    kinds = dict(
        reversed(found) for found in re.findall(r'^record\((\w+), "(t:[^"]+)"\)', text, re.MULTILINE)
    )
    scans = "".join(
        f'record("*", "{name}") {{ field(SCAN, "{"1 second" if kind in SCANNED else ".1 second"}") }}\n'
        for name, kind in kinds.items()
        if name != "t:bad"  # its link goes nowhere, which is told in the log each time
    )
    links = """
record(ai, "t:link:in") { field(INP, {pva:{pv:"t:calc", proc:"CP"}}) }
record(stringin, "t:link:text") { field(INP, {pva:{pv:"t:stringin", proc:"CP"}}) }
record(ao, "t:link:out") { field(SCAN, ".1 second") field(OMSL, "closed_loop") field(DOL, "t:link:in NPP")
  field(OUT, {pva:{pv:"t:link:end", proc:"PP"}}) }
record(ai, "t:link:end") {}
"""
    whole = text + scans + links
    groups = sorted(set(re.findall(r'"(t:g:(?:enum|constants|split|mixed))": ', text)))
    names = [*kinds, *groups, "t:link:in", "t:link:text", "t:link:out", "t:link:end"]
    prefixes = [f"s{number}:" for number in range(copies)]
    return (
        "\n".join(
            whole.replace('"t:', f'"{prefix}').replace('DOL, "t:', f'DOL, "{prefix}') for prefix in prefixes
        ),
        [prefix + name.removeprefix("t:") for prefix in prefixes for name in names],
    )


async def put_always(client: Context, prefixes: list[str]) -> None:
    """Values of several kinds, each different from the one before."""
    for number in itertools.count():
        prefix = prefixes[number % len(prefixes)]
        values = {
            f"{prefix}longout": number % 10,
            f"{prefix}stringout": f"number {number}",
            f"{prefix}bo": number % 2,
            f"{prefix}wf:double": np.full(number % 9, number, dtype=float),
            f"{prefix}wf:text": "x" * (number % 120),
            f"{prefix}lso": "y" * (number % 120),
        }
        for name, value in values.items():
            await client.put(name, value)
        await asyncio.sleep(0.1)


async def come_and_go(ioc: IocProcess, names: list[str]) -> None:
    """Clients that watch everything, of which some leave before they have it."""
    for number in itertools.count():
        guest = await Watcher.connect(ioc.tcp, names)
        if number % 3:
            await guest.ready
        guest.abort()
        await asyncio.sleep(0.5)


async def read_by_new_clients(settings: dict[str, object], names: list[str]) -> None:
    """Over TLS: each client connects, reads some PVs, and is gone."""
    for number in itertools.count():
        async with open_client(resolve_client(settings, environ={})) as client:
            await client.get(names[number % 40 :: 40], timeout=60)
        await asyncio.sleep(0.5)


async def use_the_console(path: Path, names: list[str]) -> None:
    for number in itertools.count():
        reader, writer = await asyncio.open_unix_connection(str(path))
        await reader.readuntil(b"epics> ")
        for line in ("pvxsr 2", f"dbpr {names[number % len(names)]} 4", "pvxrefshow", "dbpvar", "help"):
            writer.write(line.encode() + b"\n")
            await reader.readuntil(b"epics> ")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await asyncio.sleep(1)


async def test_everything_that_an_ioc_does_leaves_its_memory_flat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, names = records(COPIES)
    (tmp_path / "soak.db").write_text(database)
    site = pki.site()
    pki.write_keychain(tmp_path / "ioc.p12", site.server)
    pki.write_keychain(tmp_path / "client.p12", site.client)
    (tmp_path / "ioc.yml").write_text(
        "databases: [{file: soak.db}]\nconsole: console\nput_log: puts.log\n"
        f"pva: {{tls_keychain: ioc.p12, tls_port: {free_port()}}}\n"
    )
    async with running_ioc("--config", "ioc.yml", cwd=tmp_path, **ENVIRONMENT) as ioc:
        settings: dict[str, object] = {
            "addr_list": f"127.0.0.1:{ioc.udp}",
            "auto_addr_list": False,
            "tls_keychain": str(tmp_path / "client.p12"),
        }
        updates: dict[str, int] = {}

        async def watch(client: Context, name: str) -> None:
            async for _ in client.monitor(name):
                updates[name] = updates.get(name, 0) + 1

        async with ioc.client() as client, open_client(resolve_client(settings, environ={})) as secure:
            await client.get(names, timeout=60)
            sleeper = await Watcher.connect(ioc.tcp, names)
            await sleeper.ready
            sleeper.stop_reading()
            process = psutil.Process(ioc.process.pid)
            samples: list[tuple[float, int]] = []
            began = time.monotonic()
            step = max(SECONDS / 300, 0.05)
            async with background(
                put_always(client, [f"s{number}:" for number in range(COPIES)]),
                come_and_go(ioc, names),
                read_by_new_clients(settings, names),
                use_the_console(tmp_path / "console", names),
                *(watch(secure, name) for name in names),
            ):
                while (now := time.monotonic() - began) < SECONDS:
                    samples.append((now, process.memory_info().rss))
                    await asyncio.sleep(step)
                before = updates.get("s0:link:end", 0)
                async with asyncio.timeout(60):
                    while updates.get("s0:link:end", 0) <= before or len(updates) < len(names):
                        await asyncio.sleep(0.05)
            sleeper.abort()
        with capsys.disabled():
            print(
                f"\n{len(names)} PVs, {SECONDS:.0f} s: RSS {samples[0][1] >> 20} -> {samples[-1][1] >> 20} MiB, "
                f"slope of the second half {slope(samples):+.1f} KiB/min, {sum(updates.values()) / SECONDS:.0f} updates/s, "
                f"CPU {sum(process.cpu_times()[:2]) / SECONDS:.0%}, files {process.num_fds()}, threads {process.num_threads()}"
            )
        (tmp_path / "ioc.log").write_text(ioc.log)
        assert "Traceback" not in ioc.log, ioc.log[max(0, ioc.log.index("Traceback") - 300) :][:4000]
        assert samples[-1][1] < samples[len(samples) // 2][1] + FLAT
