"""The gateway's memory stays what it is: with many clients that watch, and with many that come and go.

Small by default. ``make soak`` sets SPVA_SOAK_CLIENTS, SPVA_SOAK_PVS, SPVA_SOAK_SECONDS and SPVA_SOAK_COMINGS to what is
promised: 100 clients x 500 PVs, and 10 000 comings.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from appliance.client import Context
from appliance.server import SharedPV
from tests.helpers import gateway_process
from tests.helpers.crowd import Watcher
from tests.helpers.ours import client_config, double, served
from tests.helpers.soak import FLAT, background, slope

CLIENTS = int(os.environ.get("SPVA_SOAK_CLIENTS", "10"))
PVS = int(os.environ.get("SPVA_SOAK_PVS", "20"))
SECONDS = float(os.environ.get("SPVA_SOAK_SECONDS", "2"))
COMINGS = int(os.environ.get("SPVA_SOAK_COMINGS", "100"))
pytestmark = pytest.mark.timeout(SECONDS * 2 + COMINGS * 0.2 + 120)

BOUND = {"bounds": {"client_octets": "1MiB"}}


async def _post(pvs: Sequence[SharedPV]) -> None:
    """Post each PV once a second, evenly spread."""
    began = time.monotonic()
    for number, pv in zip(itertools.count(), itertools.cycle(pvs), strict=False):
        pv.post(float(number))
        ahead = began + number / len(pvs) - time.monotonic()
        if ahead > 0.005:
            await asyncio.sleep(ahead)


async def test_many_clients_that_watch_many_pvs_leave_the_memory_flat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pvs = {f"soak:{number}": double() for number in range(PVS)}
    names = list(pvs)
    async with (
        served(pvs) as server,
        gateway_process.ours(tmp_path, server.udp_port, status_prefix="GW:", top=BOUND) as gateway,
        Context(client_config(gateway.udp), beacons=False) as client,
    ):
        await client.get(names, timeout=60)
        crowd = [await Watcher.connect(gateway.tcp, names) for _ in range(CLIENTS)]
        await asyncio.gather(*(watcher.ready for watcher in crowd))
        sleeper = await Watcher.connect(gateway.tcp, names)
        await sleeper.ready
        sleeper.stop_reading()

        async def churn() -> None:
            while True:
                guest = await Watcher.connect(gateway.tcp, names)
                await guest.ready
                guest.abort()
                await asyncio.sleep(1)

        process = psutil.Process(gateway.process.pid)
        samples = []
        began = time.monotonic()
        step = max(SECONDS / 300, 0.05)
        async with background(_post(list(pvs.values())), churn()):
            while (now := time.monotonic() - began) < SECONDS:
                samples.append((now, process.memory_info().rss))
                await asyncio.sleep(step)
            before = [watcher.octets for watcher in crowd]
            async with asyncio.timeout(30):
                while any(watcher.octets <= count for watcher, count in zip(crowd, before, strict=True)):
                    await asyncio.sleep(0.01)
        assert all(watcher.alive for watcher in crowd)
        channels = await client.get("GW:channels", server=gateway.address, timeout=30)
        assert channels["unconnected"] == 0
        grown = slope(samples)
        with capsys.disabled():
            print(
                f"\n{CLIENTS} clients x {PVS} PVs, {SECONDS:.0f} s: RSS {samples[0][1] >> 20} -> {samples[-1][1] >> 20} MiB, "
                f"slope of the second half {grown:+.1f} KiB/min, {sum(w.octets for w in crowd) / SECONDS / 1e6:.2f} MB/s, "
                f"CPU {sum(process.cpu_times()[:2]) / SECONDS:.0%}"
            )
        assert samples[-1][1] < samples[len(samples) // 2][1] + FLAT
        for watcher in (*crowd, sleeper):
            watcher.abort()


async def test_clients_that_come_and_go_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pvs = {f"go:{number}": double() for number in range(5)}
    names = list(pvs)
    async with (
        served(pvs) as server,
        gateway_process.ours(tmp_path, server.udp_port, status_prefix="GW:") as gateway,
        Context(client_config(gateway.udp), beacons=False) as client,
    ):
        await client.get(names, timeout=60)
        stays = await Watcher.connect(gateway.tcp, names)
        await stays.ready
        process = psutil.Process(gateway.process.pid)
        samples = []
        began = time.monotonic()
        async with background(_post(list(pvs.values()))):
            for number in range(COMINGS):
                guest = await Watcher.connect(gateway.tcp, names)
                if number % 3:  # the others leave before they have what they asked for
                    await guest.ready
                guest.abort()
                if not number % max(COMINGS // 300, 1):
                    samples.append((time.monotonic() - began, process.memory_info().rss))
            seen = stays.octets
            async with asyncio.timeout(30):
                while stays.octets == seen:
                    assert stays.alive
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(30):
            while True:
                await client.put("GW:poke", 1, server=gateway.address)
                clients = list((await client.get("GW:clients", server=gateway.address))["value"])
                if len(clients) == 2:  # the one that stays, and this one
                    break
        channels = await client.get("GW:channels", server=gateway.address)
        assert [channels[name] for name in ("active", "inactive", "unconnected")] == [5, 0, 0]
        with capsys.disabled():
            print(
                f"\n{COMINGS} comings: RSS {samples[0][1] >> 10} -> {samples[-1][1] >> 10} KiB, "
                f"slope of the second half {slope(samples):+.1f} KiB/min, "
                f"{COMINGS / (time.monotonic() - began):.0f} comings/s"
            )
        assert samples[-1][1] < samples[len(samples) // 2][1] + FLAT
        stays.abort()
