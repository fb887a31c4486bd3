"""A server that comes to speak TLS: the gateway moves to it, and its clients keep their channels."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from appliance.client import Disconnected
from appliance.pva.commands import CMD_PUT
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.pvrequest import PVRequest
from appliance.pvdata.types import STRING
from appliance.pvdata.value import Value
from appliance.server import SharedPV
from appliance.tls.context import server_context
from tests.helpers.gateways import client_side, client_to, gateway_with, server_side
from tests.helpers.ours import double, served
from tests.helpers.pki import site, write_keychain
from tests.helpers.requests import Asked

S = site()


async def settled(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def test_clients_keep_their_channels(tmp_path: Path):
    pv, other = double(1.0), double(5.0)
    keychain = write_keychain(tmp_path / "gw.p12", S.ioc)
    async with served({"pv": pv, "other": other}) as server:
        clients = {"inner": client_side(server, pva={"tls_keychain": str(keychain), "no_status_cache": True})}
        async with (
            gateway_with(clients, {"outer": server_side("inner")}) as gateway,
            client_to(gateway) as client,
        ):
            seen: list[Any] = []
            client.monitor("pv", on_update=seen.append, notify=True)
            assert (await client.get(["pv", "other"]))[1]["value"] == 5.0
            put = Asked(client.channel("other"), CMD_PUT, PVRequest("field(value)").value)
            operation = await put.ready_
            await settled(lambda: any(isinstance(item, Value) for item in seen))
            (plain,) = server.peers.values()
            await server.set_tls(server_context(S.server, require_client_cert=False))
            gateway.clients["inner"].context.probe_tls()
            await settled(lambda: [peer.credentials.is_tls for peer in server.peers.values()] == [True])
            await settled(lambda: all(upstream.active for upstream in gateway.clients["inner"]))
            pv.post(2.0)
            await settled(lambda: isinstance(seen[-1], Value) and seen[-1]["value"] == 2.0)
            assert not any(isinstance(item, Disconnected) for item in seen)
            assert (await client.get("other"))["value"] == 5.0, (
                "the same operation reads over the new connection"
            )
            assert operation.type is not None
            value = Value(operation.type)
            value["value"] = 6.0
            await put.do(lambda wire: wire.put(value))
            assert other.current["value"] == 6.0
            del plain


async def test_clients_lose_their_channels_if_the_type_is_another_one(tmp_path: Path):
    keychain = write_keychain(tmp_path / "gw.p12", S.ioc)
    async with served({"pv": double(1.0)}) as server:
        clients = {"inner": client_side(server, pva={"tls_keychain": str(keychain), "no_status_cache": True})}
        async with (
            gateway_with(clients, {"outer": server_side("inner")}) as gateway,
            client_to(gateway) as client,
        ):
            seen: list[Any] = []
            client.monitor("pv", on_update=seen.append, notify=True)
            assert (await client.get("pv"))["value"] == 1.0
            await settled(lambda: any(isinstance(item, Value) for item in seen))
            # As if the server had been replaced: its channels stay, new operations get the new type.
            server._static.pvs["pv"] = SharedPV.mailbox(Value(NTScalar(STRING), {"value": "new"}))
            await server.set_tls(server_context(S.server, require_client_cert=False))
            gateway.clients["inner"].context.probe_tls()
            await settled(lambda: isinstance(seen[-1], Value) and seen[-1]["value"] == "new")
            assert any(isinstance(item, Disconnected) for item in seen)
            assert (await client.get("pv"))["value"] == "new"
