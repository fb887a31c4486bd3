"""Servers and clients of our own on 127.0.0.1, for tests through real sockets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.certs.keychain import Keychain
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig, ServerConfig
from appliance.config.tls_options import parse_tls_options
from appliance.errors import OperationTimeoutError
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value
from appliance.server.server import Server
from appliance.server.sharedpv import SharedPV
from tests.helpers.pki import write_keychain

HOST = "127.0.0.1"


def options(text: str = "") -> Any:
    parsed, warnings = parse_tls_options(text)
    assert warnings == []
    return parsed


def server_config(keychain: Path | str = "", tls_options: str = "", **more: Any) -> ServerConfig:
    """A server on free ports of this machine, silent beyond it."""
    return ServerConfig(
        intf_addr_list=(Endpoint(HOST),),
        auto_beacon_addr_list=False,
        broadcast_port=0,
        server_port=0,
        tls_port=0,
        tls_keychain=str(keychain),
        tls_options=options(tls_options),
        **{"no_status_cache": True, **more},
    )


def client_config(
    *servers: Server | int, keychain: Path | str = "", tls_options: str = "", **more: Any
) -> ClientConfig:
    """A client that asks ``servers`` (or UDP ports) only."""
    ports = [server if isinstance(server, int) else server.udp_port for server in servers]
    return ClientConfig(
        addr_list=tuple(Endpoint(HOST, port) for port in ports),
        auto_addr_list=False,
        tls_keychain=str(keychain),
        tls_options=options(tls_options),
        **{"no_status_cache": True, **more},
    )


def number(value: float = 0.0) -> SharedPV:
    return SharedPV.mailbox(Value(NTScalar(FLOAT64), {"value": value}))


def keychain_file(directory: Path, name: str, keychain: Keychain) -> Path:
    return write_keychain(directory / f"{name}.p12", keychain)


def replace_keychain(path: Path, keychain: Keychain) -> None:
    """Put another keychain in the place of one, in one step, as the tools do it."""
    write_keychain(path, keychain)


async def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
    """Wait until ``condition`` holds; what it watches tells nobody of its changes."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def promptly(condition: Callable[[], Any], within_s: float = 1.0) -> None:
    """Wait for ``condition`` as somebody would who looks every 5 ms for ``within_s`` seconds.

    Looks are counted, not seconds: while the machine does other things nobody looks, and that is not the program's fault.
    """
    looks = round(within_s / 0.005)
    for _ in range(looks):
        if condition():
            return
        await asyncio.sleep(0.005)
    assert condition(), f"not after {looks} looks, {within_s} s or more"


async def never_comes(ask: Callable[[], Awaitable[Any]], why: str) -> None:
    """Ask, with a short limit, again and again until the error says why nothing comes.

    The reason is known when the server has said it. On a busy machine the short limit may end before that.
    """
    deadline = asyncio.get_running_loop().time() + 30
    while True:
        with pytest.raises(OperationTimeoutError) as caught:
            await ask()
        if re.search(why, str(caught.value)):
            return
        assert asyncio.get_running_loop().time() < deadline, f"{why!r} is not the reason: {caught.value}"
