"""Clients that never send a datagram: they know the gateway as a name server, over TCP or TLS, perhaps behind NAT."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from appliance.certmon.endpoints import open_client, open_server
from appliance.client import Context
from appliance.server import Server
from tests.helpers.gateways import client_side, gateway_to, gateway_with, server_of, server_side
from tests.helpers.ours import client_config, double, served, server_config
from tests.helpers.pki import site, write_keychain

S = site()


def only_by_name_server(where: str, **more: Any) -> Any:
    return client_config(None, name_servers=where, **more)


async def test_over_tcp_alone():
    pv = double(1.0)
    async with served({"pv": pv}) as server, gateway_to(server) as gateway:
        config = only_by_name_server(f"127.0.0.1:{server_of(gateway).tcp_port}")
        async with Context(config, beacons=False) as client:
            assert (await client.get("pv"))["value"] == 1.0
            async with client.monitor("pv") as updates:
                await anext(updates)
                pv.post(2.0)
                assert (await anext(updates))["value"] == 2.0


async def test_the_gateway_itself_may_know_its_servers_as_name_servers_only():
    async with served({"pv": double(1.0)}) as server:
        clients = {
            "inner": {
                "pva": {
                    "addr_list": "", "auto_addr_list": False, "name_servers": f"127.0.0.1:{server.tcp_port}", "tls_keychain": "",
                }
            }
        }  # fmt: skip
        async with gateway_with(clients, {"outer": server_side("inner")}) as gateway:
            config = only_by_name_server(f"127.0.0.1:{server_of(gateway).tcp_port}")
            async with Context(config, beacons=False) as client:
                assert (await client.get("pv"))["value"] == 1.0


@asynccontextmanager
async def translated(port: int) -> AsyncIterator[str]:
    """Another address with the same port, as a router with fixed ports gives it."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        for job in (carry(reader, back), carry(there, writer)):
            task = asyncio.create_task(job)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.2", port)
    try:
        yield f"127.0.0.2:{port}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_behind_nat_with_fixed_ports():
    async with served({"pv": double(1.0)}) as server, gateway_to(server) as gateway:
        async with translated(server_of(gateway).tcp_port) as where:
            async with Context(only_by_name_server(where), beacons=False) as client:
                info = await client.info("pv")
                assert info.server == where, (
                    "the answer names no address: the client stays at the one that it knows"
                )
                assert (await client.get("pv"))["value"] == 1.0


async def test_over_tls_alone_and_with_tls_on_both_sides(tmp_path: Path):
    chains = {
        name: str(write_keychain(tmp_path / f"{name}.p12", getattr(S, name)))
        for name in ("server", "client", "ioc")
    }

    def prepare(server: Server) -> None:
        server.add_pv("pv", double(1.0))

    tls = {"tls_keychain": chains["server"], "no_status_cache": True}
    async with open_server(server_config(**tls), prepare=prepare, status_client=client_config()) as server:
        gateways = {"tls_keychain": chains["ioc"], "no_status_cache": True}
        clients = {"inner": client_side(server, pva={**gateways, "tls_options": "tls_required"})}
        outer = server_side("inner", pva={**gateways, "tls_options": "tls_required"})
        async with gateway_with(clients, {"outer": outer}) as gateway:
            assert server_of(gateway).tcp_port == 0, "nothing is served unencrypted"
            where = f"pvas://127.0.0.1:{server_of(gateway).tls_port}"
            config = only_by_name_server(where, tls_keychain=chains["client"], no_status_cache=True)
            async with open_client(config, beacons=False) as client:
                assert (await client.get("pv", timeout=30))["value"] == 1.0
                info = await client.info("pv")
                assert (info.peer.account, info.peer.is_tls) == ("ioc", True)
            (peer,) = server.peers.values()
            assert (peer.credentials.account, peer.credentials.method) == ("ioc", "x509")
