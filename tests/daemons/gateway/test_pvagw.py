"""``pvagw`` as a process: it serves, reads its files again on SIGHUP, and stops on SIGTERM."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.client import Context
from appliance.pvdata.value import Value
from tests.helpers.gateway_process import Running, ours
from tests.helpers.gateways import refusal
from tests.helpers.ours import client_config, double, served
from tests.helpers.ports import free_port


async def logged(running: Running, text: str) -> str:
    async with asyncio.timeout(30):
        while not (found := re.search(text, running.log.read_text())):
            await asyncio.sleep(0.02)
    return found[0]


async def test_it_serves_until_it_is_told_to_stop(tmp_path: Path):
    async with served({"pv": double(1.5)}) as server, ours(tmp_path, server.udp_port) as running:
        async with Context(client_config(running.udp), beacons=False) as client:
            assert (await client.get("pv"))["value"] == 1.5
            running.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(running.process.wait, 60) == 0
    assert "Traceback" not in running.log.read_text()


async def test_sighup_reads_the_files_again_and_keeps_what_stays_allowed(tmp_path: Path):
    pvlist = tmp_path / "site.pvlist"
    pvlist.write_text("[ab] ALLOW\n")
    async with served({"a": double(1.0), "b": double(2.0), "c": double(3.0)}) as server:
        async with ours(tmp_path, server.udp_port, pvlist=str(pvlist)) as running:
            async with Context(client_config(running.udp), beacons=False) as client:
                seen: list[Any] = []
                client.monitor("a", on_update=seen.append, notify=True)
                assert (await client.get("b"))["value"] == 2.0
                pvlist.write_text("[ac] ALLOW\n")
                running.process.send_signal(signal.SIGHUP)
                await logged(running, "the configuration was read again")
                assert (await client.get("c", timeout=30))["value"] == 3.0
                assert "there is no PV 'b' here" in await refusal(client, "b", running.address)
                assert len(seen) == 2
                assert isinstance(seen[-1], Value)
                pvlist.write_text("( ALLOW\n")
                running.process.send_signal(signal.SIGHUP)
                await logged(running, "reload failed, the former settings stay: .*site.pvlist:1:1")
                assert (await client.get("c"))["value"] == 3.0
                path = tmp_path / "gateway.yml"
                path.write_text(path.read_text() + "\nno_such_key: 1\n")
                running.process.send_signal(signal.SIGHUP)
                await logged(running, r"reload failed, the former settings stay: .*gateway\.yml:\d+")
                assert (await client.get("c"))["value"] == 3.0


async def test_pvxlist_shows_what_is_known(tmp_path: Path):
    async with served({"pv": double(1.0), "other": double(2.0)}) as server:
        async with ours(tmp_path, server.udp_port) as running:
            async with Context(client_config(running.udp), beacons=False) as client:
                await client.get("pv")
                listing = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "appliance.cli.pvxlist", f"127.0.0.1:{running.tcp}",
                    stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                out, _ = await asyncio.wait_for(listing.communicate(), 30)
                assert out.decode().split() == ["pv"]


@pytest.mark.parametrize("key", ["pvlist", "clients"])
async def test_a_wrong_file_is_one_sentence_before_any_port_is_opened(tmp_path: Path, key: str):
    pvlist = tmp_path / "site.pvlist"
    pvlist.write_text("(a) ALLOW\n")
    with pytest.raises(
        RuntimeError, match=r"the gateway ended with 1: Error: \S+(site\.pvlist:1:1|gateway\.yml:\d+): .+\n$"
    ):
        async with ours(tmp_path, 1, **{"pvlist": str(pvlist)} if key == "pvlist" else {"clients": ["none"]}):
            pass


async def test_a_gateway_that_crashes_under_load_is_started_again_and_its_clients_go_on(tmp_path: Path):
    names = [f"pv{number}" for number in range(50)]
    pvs = {name: double(0.0) for name in names}
    posted = 0

    async def post() -> None:
        nonlocal posted
        while True:
            posted += 1
            for pv in pvs.values():
                pv.post(float(posted))
            await asyncio.sleep(0.02)

    async with served({**pvs}) as server:
        posting = asyncio.create_task(post())
        latest: list[dict[str, float]] = [{} for _ in range(3)]
        clients: list[Context] = []

        def note(into: dict[str, float], name: str, item: Any) -> None:
            if isinstance(item, Value):
                into[name] = item["value"]

        udp = free_port()
        try:
            for _ in range(3):
                async with ours(tmp_path, server.udp_port, udp=udp) as running:
                    if not clients:
                        for into in latest:
                            client = Context(client_config(udp), beacons=False)
                            await client.start()
                            clients.append(client)
                            for name in names:
                                client.monitor(name, on_update=partial(note, into, name))
                    begun = posted
                    async with asyncio.timeout(30):
                        while not all(
                            len(into) == len(names) and min(into.values()) > begun for into in latest
                        ):
                            await asyncio.sleep(0.05)
                    running.process.kill()
                    running.process.wait(30)
            async with asyncio.timeout(30):
                while list(server.channels()):
                    await asyncio.sleep(0.05)
        finally:
            posting.cancel()
            for client in clients:
                await client.close()
