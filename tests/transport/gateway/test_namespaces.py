"""A gateway host with two and with three networks, made of network namespaces: needs root, as the project's own CI has."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
NETWORKS = {"inner": 1, "outer": 2, "lab": 3}
"""10.92.N.0/24: the gateway is .1, the other host .2 on each."""

SERVER = """
    config = resolve_server({"server_port": 0, "tls_keychain": ""}, environ={}).config
    async with served({NAME: double(VALUE)}, config=config) as server:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
"""
CLIENT = """
    settings = {"tls_keychain": "", **SETTINGS}
    async with Context(resolve_client(settings, environ={}).config, beacons=False) as ctx:
        for name in NAMES:
            try:
                value = await ctx.get(name, timeout=TIMEOUT)
                info = await ctx.info(name)
            except Exception as error:
                print(name, "error", error, flush=True)
            else:
                print(name, value["value"], info.server.partition(":")[0], flush=True)
"""
FRAME = """
import asyncio, sys
sys.path.insert(0, {root!r})
from appliance.client import Context
from appliance.config.pva import resolve_client, resolve_server
from tests.helpers.ours import double, served
async def main():
{body}
asyncio.run(main())
"""
CLIENTS = """
clients:
  inner:
    pva: {addr_list: 10.92.1.255, auto_addr_list: false}
  lab:
    pva: {addr_list: 10.92.3.255, auto_addr_list: false}
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class World:
    """The gateway's host, and one host on each network."""

    def __init__(self) -> None:
        self.tag = f"pvgw{os.getpid()}"

    def host(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def make(self) -> None:
        for name in ("gateway", *NETWORKS):
            ip("netns", "add", self.host(name))
            ip("-n", self.host(name), "link", "set", "lo", "up")
        for name, number in NETWORKS.items():
            here, there = self.host("gateway"), self.host(name)
            ip("-n", here, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", there)
            for host, device, last in ((here, name, 1), (there, "eth0", 2)):
                ip("-n", host, "addr", "add", f"10.92.{number}.{last}/24", "brd", "+", "dev", device)
                ip("-n", host, "link", "set", device, "up")

    def remove(self) -> None:
        for name in ("gateway", *NETWORKS):
            subprocess.run(["ip", "netns", "delete", self.host(name)], check=False, capture_output=True)

    def run(self, host: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.host(host), sys.executable, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def python(self, host: str, body: str, **names: Any) -> subprocess.Popen[str]:
        for name, value in names.items():
            body = body.replace(name, repr(value))
        code = FRAME.format(root=str(ROOT), body=textwrap.indent(textwrap.dedent(body), "    "))
        return self.run(host, "-c", code)

    def ask(self, host: str, *wanted: str, timeout: float = 30.0, **settings: Any) -> list[str]:
        with self.python(host, CLIENT, NAMES=wanted, SETTINGS=settings, TIMEOUT=timeout) as process:
            out, _ = process.communicate(timeout=60)
        return out.splitlines()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """IOCs on the inner network and in the laboratory."""
    world = World()
    try:
        world.make()
        with ExitStack() as stack:
            for host, name, value in (("inner", "ioc:pv", 1.0), ("lab", "lab:pv", 2.0)):
                process = stack.enter_context(world.python(host, SERVER, NAME=name, VALUE=value))
                stack.callback(process.kill)
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            yield world
    finally:
        world.remove()


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def begin(servers: str) -> None:
            path = tmp_path / "gateway.yml"
            path.write_text(CLIENTS + textwrap.dedent(servers))
            process = stack.enter_context(
                world.run("gateway", "-m", "appliance.gateway.daemon", "--config", str(path))
            )
            stack.callback(process.kill)

        yield begin


def test_two_networks(world: World, start: Any) -> None:
    start("""
        servers:
          outer:
            clients: [inner]
            pva: {intf_addr_list: 10.92.2.1, beacon_addr_list: 10.92.2.255, auto_beacon_addr_list: false}
    """)
    # The client begins before the gateway answers: its search is repeated.
    assert world.ask("outer", "ioc:pv", timeout=30) == ["ioc:pv 1.0 10.92.2.1"]
    assert world.ask("outer", "lab:pv", timeout=0.5)[0].startswith("lab:pv error"), "another side's"
    assert world.ask("inner", "ioc:pv") == ["ioc:pv 1.0 10.92.1.2"], (
        "at its own server, not through the gateway"
    )
    by_name = {"name_servers": "10.92.2.1", "auto_addr_list": False}
    assert world.ask("outer", "ioc:pv", **by_name) == ["ioc:pv 1.0 10.92.2.1"], "over TCP alone"


def test_three_networks_linked_in_both_directions(world: World, start: Any) -> None:
    start("""
        servers:
          outer:
            clients: [inner, lab]
            pva: {intf_addr_list: 10.92.2.1, auto_beacon_addr_list: false}
          to_lab:
            clients: [inner]
            pva: {intf_addr_list: 10.92.3.1, auto_beacon_addr_list: false}
          to_inner:
            clients: [lab]
            pva: {intf_addr_list: 10.92.1.1, auto_beacon_addr_list: false}
    """)
    assert world.ask("outer", "ioc:pv", "lab:pv", timeout=30) == [
        "ioc:pv 1.0 10.92.2.1",
        "lab:pv 2.0 10.92.2.1",
    ]
    assert world.ask("lab", "ioc:pv", "lab:pv") == ["ioc:pv 1.0 10.92.3.1", "lab:pv 2.0 10.92.3.2"]
    assert world.ask("inner", "lab:pv", "ioc:pv") == ["lab:pv 2.0 10.92.1.1", "ioc:pv 1.0 10.92.1.2"]
