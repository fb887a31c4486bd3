"""The gateway's own PVs have the names, types and labels of p4p's gateway, which runs beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.client import Context
from appliance.pvdata.types import STRING
from tests.helpers import gateway_process
from tests.helpers.ours import client_config, double, served

pytestmark = pytest.mark.interop

NAMES = (
    *("clients", "cache", "stats", "refs", "threads", "StatsTime", "asTest", "asDebug"),
    *(f"{side}:by{what}:{way}" for side in ("us", "ds") for what in ("pv", "host") for way in ("tx", "rx")),
)


async def test_names_types_and_labels_are_those_of_p4ps_gateway(tmp_path: Path):
    async with served({"up:x": double(1.5)}) as server:
        async with (
            gateway_process.p4ps(tmp_path, server.udp_port, statusprefix="GW:") as theirs,
            gateway_process.ours(tmp_path, server.udp_port, status_prefix="GW:") as ours,
            Context(client_config(), beacons=False) as client,
        ):
            for name in NAMES:
                there = await client.get(f"GW:{name}", server=theirs.address, timeout=30)
                here = await client.get(f"GW:{name}", server=ours.address, timeout=30)
                assert here.type == there.type, name
                if "labels" in here and name != "refs":
                    assert list(here["labels"]) == list(there["labels"]), name
                if here.type == (await client.get("GW:threads", server=ours.address)).type:
                    assert here["value"] == there["value"], name

            query = {"pv": "up:x", "user": "ann", "peer": "10.1.2.3"}
            there = await client.rpc("GW:asTest", query, server=theirs.address, timeout=30)
            here = await client.rpc("GW:asTest", query, server=ours.address, timeout=30)
            assert here.type == there.type
            assert here.to_dict() == there.to_dict()

            there = await client.rpc("GW:asDebug", {}, server=theirs.address, timeout=30)
            here = await client.rpc("GW:asDebug", {}, server=ours.address, timeout=30)
            assert here.type == there.type

            here = await client.rpc("GW:threads", {}, server=ours.address, timeout=30)
            assert here.type.members["value"] is STRING
            assert "Task status PVs" in here["value"]


async def test_a_client_of_p4p_reads_the_tables(tmp_path: Path):
    """p4p turns normative types into its own by their IDs."""
    from p4p.client.asyncio import Context as P4PContext

    async with served({"up:x": double(1.5)}) as server:
        async with gateway_process.ours(tmp_path, server.udp_port, status_prefix="GW:") as ours:
            conf = {
                "EPICS_PVA_ADDR_LIST": "127.0.0.1",
                "EPICS_PVA_AUTO_ADDR_LIST": "NO",
                "EPICS_PVA_BROADCAST_PORT": str(ours.udp),
            }
            with P4PContext("pva", conf=conf, useenv=False) as client:
                async with asyncio.timeout(30):
                    assert float(await client.get("up:x")) == 1.5
                    await client.put("GW:poke", 1)
                    assert "up:x" in list(await client.get("GW:cache"))
                    clients = list(await client.get("GW:clients"))
                    assert [name.rpartition(":")[0] for name in clients] == ["127.0.0.1"]
                    table = await client.get("GW:ds:byhost:tx")
                    assert set(clients) <= set(table.value.name)
                    assert table.value.rate[0] > 0
                    assert (await client.get("GW:stats")).ccacheSize.value == 1
                    assert int(await client.get("GW:health")) == 0
