"""The configuration is read again: what stays allowed stays open, and a fault changes nothing."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from appliance.client import Disconnected
from appliance.errors import AccessFileError
from appliance.pvdata.value import Value
from tests.helpers.gateways import (
    client_side,
    client_to,
    configuration,
    direct,
    gateway_with,
    refusal,
    server_of,
    server_side,
)
from tests.helpers.ours import double, served, server_config
from tests.helpers.ports import free_port


class Site:
    """A PV list in a file, and the configuration that names it."""

    def __init__(self, folder: Path, *servers: Any) -> None:
        self.pvlist = folder / "site.pvlist"
        self.clients = {"inner": client_side(*servers)}

    def write(self, *lines: str) -> None:
        self.pvlist.write_text("".join(f"{line}\n" for line in lines))

    def sides(self, **more: Any) -> tuple[Any, Any]:
        return self.clients, {"outer": server_side("inner", pvlist=str(self.pvlist), **more)}


async def test_a_channel_that_stays_allowed_stays_open_and_the_others_close(tmp_path: Path):
    pvs = {name: double(number) for number, name in enumerate("abcd")}
    async with served({**pvs}) as server:
        site = Site(tmp_path, server)
        site.write("[abc] ALLOW", "x ALIAS c")
        async with gateway_with(*site.sides()) as gateway, client_to(gateway) as client:
            seen: dict[str, list[Any]] = {name: [] for name in ("a", "b", "x")}
            for name, into in seen.items():
                client.monitor(name, on_update=into.append, notify=True)
            async with asyncio.timeout(30):
                while not all(any(isinstance(item, Value) for item in items) for items in seen.values()):
                    await asyncio.sleep(0.01)
            assert await client.get(["a", "b", "x"])
            denied = gateway.servers["outer"].router
            assert denied.route("d", "127.0.0.1") is None
            site.write("[acd] ALLOW", "x ALIAS d")
            await gateway.reload(configuration(*site.sides()))
            async with asyncio.timeout(30):
                while not (
                    isinstance(seen["b"][-1], Disconnected)
                    and isinstance(seen["x"][-1], Value)
                    and seen["x"][-1]["value"] == 3.0
                ):
                    await asyncio.sleep(0.01)
            pvs["a"].post(7.0)
            assert (await client.get("d", server=direct(gateway)))["value"] == 3.0, (
                "what was denied is not any more"
            )
            assert not any(isinstance(item, Disconnected) for item in seen["a"])
            assert "there is no PV 'b' here" in await refusal(client, "b", direct(gateway))
            assert {channel.name for channel in server_of(gateway).channels()} == {"a", "x", "d"}


async def test_a_channel_that_still_waits_does_not_open_the_way_of_the_former_pv_list(tmp_path: Path):
    udp = free_port()
    site = Site(tmp_path, udp)
    site.write("x ALIAS secret")
    async with gateway_with(*site.sides()) as gateway, client_to(gateway) as client:
        waiting = asyncio.create_task(client.get("x", server=direct(gateway), timeout=None))
        while "secret" not in gateway.clients["inner"].known:
            await asyncio.sleep(0.01)
        site.write("x ALIAS open")
        await gateway.reload(configuration(*site.sides()))
        async with served({"secret": double(1.0), "open": double(2.0)}, config=server_config(udp)):
            assert (await asyncio.wait_for(waiting, 30))["value"] == 2.0


async def test_a_fault_in_a_file_changes_nothing(tmp_path: Path):
    async with served({"a": double(1.0), "b": double(2.0)}) as server:
        site = Site(tmp_path, server)
        site.write("a ALLOW")
        async with gateway_with(*site.sides()) as gateway, client_to(gateway) as client:
            assert (await client.get("a"))["value"] == 1.0
            site.write("b ALLOW", "(b) ALLOW")
            with pytest.raises(AccessFileError, match=r"site\.pvlist:2:1: .*capture group"):
                await gateway.reload(configuration(*site.sides()))
            assert (await client.get("a"))["value"] == 1.0
            assert list(server_of(gateway).names()) == ["a"]


async def test_what_needs_a_restart_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async with served({"a": double(1.0)}) as server:
        site = Site(tmp_path, server)
        site.write("a ALLOW")
        async with gateway_with(*site.sides()) as gateway, client_to(gateway) as client:
            assert (await client.get("a"))["value"] == 1.0
            clients, servers = site.sides(pva={"server_port": 1}, get_holdoff=0.1)
            with caplog.at_level(logging.WARNING):
                await gateway.reload(
                    configuration(
                        {**clients, "more": {}},
                        {**servers, "other": server_side("inner")},
                        bounds={"names": 50},
                    )
                )
            said = [
                record.message.partition(" has changed")[0]
                for record in caplog.records
                if record.levelno == logging.WARNING
            ]
            assert said == ["clients.more", "servers.other", "servers.outer.pva", "bounds"]
            assert gateway.servers["outer"].get_holdoff_s == 0.1
            assert gateway.clients.keys() == {"inner"}
            assert (await client.get("a"))["value"] == 1.0
