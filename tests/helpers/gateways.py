"""Our gateway in the event loop of a test, on 127.0.0.1 and free ports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from appliance.client import Context
from appliance.config import loader
from appliance.gateway.config import GatewayConfig, resolve_sides
from appliance.gateway.gateway import Gateway
from appliance.server import Server
from tests.helpers.ours import client_config


def client_side(*servers: Server | int, **more: Any) -> dict[str, Any]:
    """A client side that finds servers on 127.0.0.1, by their objects or their UDP ports."""
    ports = [server if isinstance(server, int) else server.udp_port for server in servers]
    pva = {
        "addr_list": [f"127.0.0.1:{port}" for port in ports],
        "auto_addr_list": False,
        "intf_addr_list": "127.0.0.1",
        "broadcast_port": ports[0] if ports else 5076,
        "tls_keychain": "",
    }
    return {"pva": {**pva, **more.pop("pva", {})}, **more}


def server_side(*clients: str, **more: Any) -> dict[str, Any]:
    """A server side on 127.0.0.1 and free ports."""
    pva = {
        "intf_addr_list": "127.0.0.1",
        "server_port": 0,
        "tls_port": 0,
        "broadcast_port": 0,
        "auto_beacon_addr_list": False,
        "tls_keychain": "",
    }
    return {"clients": clients, "pva": {**pva, **more.pop("pva", {})}, **more}


def configuration(clients: Mapping[str, Any], servers: Mapping[str, Any], **more: Any) -> GatewayConfig:
    """A configuration from plain mappings, checked as a file is."""
    return loader.loads(json.dumps({"clients": clients, "servers": servers, **more}), GatewayConfig)


@asynccontextmanager
async def gateway_with(
    clients: Mapping[str, Any], servers: Mapping[str, Any], **more: Any
) -> AsyncIterator[Gateway]:
    """A running gateway."""
    config = configuration(clients, servers, **more)
    gateway = Gateway(config, resolve_sides(config, environ={"XDG_CONFIG_HOME": "/nowhere"}))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


@asynccontextmanager
async def gateway_to(*servers: Server | int, **more: Any) -> AsyncIterator[Gateway]:
    """A gateway with the client side ``inner`` and the server side ``outer``; ``more`` is for the latter or for ``bounds``."""
    top = {key: more.pop(key) for key in ("bounds", "metrics", "read_only") if key in more}
    client = more.pop("client", {})
    async with gateway_with(
        {"inner": client_side(*servers, **client)}, {"outer": server_side("inner", **more)}, **top
    ) as gateway:
        yield gateway


def server_of(gateway: Gateway, side: str = "outer") -> Server:
    """The running server of a side."""
    server = gateway.servers[side].server
    assert server is not None
    return server


def client_to(gateway: Gateway, side: str = "outer", **options: Any) -> Context:
    """A client that finds a side of the gateway; not yet started."""
    return Context(client_config(server_of(gateway, side).udp_port), beacons=False, **options)


def direct(gateway: Gateway, side: str = "outer") -> tuple[str, int, bool]:
    """The address of a side for an operation that is not searched for."""
    return ("127.0.0.1", server_of(gateway, side).tcp_port, False)


def names(upstreams: Iterable[Any]) -> set[str]:
    """The names of upstreams."""
    return {upstream.name for upstream in upstreams}


async def refusal(client: Context, name: str, server: tuple[str, int, bool]) -> str:
    """Ask for a PV of a server that refuses its channel; return why."""
    asking = asyncio.create_task(client.get(name, server=server, timeout=None))
    try:
        async with asyncio.timeout(30):
            while not (why := client.channel(name, server).trouble):
                await asyncio.sleep(0.01)
    finally:
        asking.cancel()
    return why
