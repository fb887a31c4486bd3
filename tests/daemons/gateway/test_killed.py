"""The gateway is killed under load: clients see it at once, and go on when there is one again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from appliance.client import Context
from appliance.client.monitor import Disconnected
from appliance.pvdata.value import Value
from tests.helpers import gateway_process
from tests.helpers.ours import client_config, double, served

COUNT = 20


async def test_clients_go_on_with_the_next_gateway(tmp_path: Path):
    pvs = {f"pv:{number}": double() for number in range(COUNT)}
    seen: dict[str, list[Any]] = {name: [] for name in pvs}
    posted = 0.0

    async def post() -> None:
        nonlocal posted
        while True:
            posted += 1
            for pv in pvs.values():
                pv.post(posted)
            await asyncio.sleep(0.005)

    async def all_have(kind: type, least: float = 0.0) -> None:
        async with asyncio.timeout(30):
            while not all(
                items
                and isinstance(items[-1], kind)
                and (kind is Disconnected or items[-1]["value"] >= least)
                for items in seen.values()
            ):
                await asyncio.sleep(0.01)

    async with served(pvs) as server:
        posting = asyncio.create_task(post())
        try:
            async with gateway_process.ours(tmp_path, server.udp_port) as gateway:
                client = Context(client_config(gateway.udp), beacons=False)
                await client.start()
                for name, items in seen.items():
                    client.monitor(name, notify=True, on_update=items.append)
                await all_have(Value, posted + 5)
                gateway.process.kill()
                await all_have(Disconnected)
            before = posted
            async with gateway_process.ours(tmp_path, server.udp_port, tcp=gateway.tcp, udp=gateway.udp):
                await all_have(Value, before)
            await client.close()
        finally:
            posting.cancel()
    for items in seen.values():
        values = [item["value"] for item in items if isinstance(item, Value)]
        assert values == sorted(values)
