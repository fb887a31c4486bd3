"""Hosts with several networks, made of network namespaces: needs root, as the project's own CI has."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

SERVER = """
    config = resolve_server({
        "intf_addr_list": INTERFACES, "server_port": 0, "broadcast_port": 5076, "tls_keychain": "",
        "beacon_period": 0.2, "beacon_addr_list": TARGETS,
    }, environ={}).config
    async with served({"n:pv": double(1.0)}, config=config) as server:
        print("ready", server.tcp_port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
"""
CLIENT = """
    config = resolve_client({"addr_list": WHERE, "auto_addr_list": AUTO, "tls_keychain": ""}, environ={}).config
    async with Context(config, beacons=False) as ctx:
        try:
            info = await ctx.info("n:pv", timeout=TIMEOUT)
        except Exception as error:
            print("error", error, flush=True)
        else:
            print("found", info.server, flush=True)
"""
BEACONS = """
    config = resolve_client({"addr_list": "", "auto_addr_list": False, "tls_keychain": ""}, environ={}).config
    async with Context(config) as ctx:
        async for found in ctx.discover(ping=False):
            print("found", found.server, flush=True)
            break
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


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Networks:
    """``server`` is a host with the networks 10.91.1.0/24 and 10.91.2.0/24; ``one`` and ``two`` are on one each."""

    def __init__(self) -> None:
        tag = f"pva{os.getpid()}"
        self.names = {name: f"{tag}-{name}" for name in ("server", "one", "two")}

    def make(self) -> None:
        for name in self.names.values():
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            # Otherwise a link-local address is of no use until the kernel has looked for others that have it, for a second or more.
            quick = "for kind in all default; do echo 0 > /proc/sys/net/ipv6/conf/$kind/accept_dad; done"
            ip("netns", "exec", name, "sh", "-c", quick)
        for number, client in ((1, "one"), (2, "two")):
            here, there = f"veth{number}", "eth0"
            ip(
                "-n", self.names["server"], "link", "add", here, "type", "veth",
                "peer", "name", there, "netns", self.names[client],
            )  # fmt: skip
            for host, device, last in (("server", here, 1), (client, there, 2)):
                address = f"10.91.{number}.{last}/24"
                ip("-n", self.names[host], "addr", "add", address, "brd", "+", "dev", device)
                ip("-n", self.names[host], "link", "set", device, "up")
        for number, client in ((1, "one"), (2, "two")):
            for host, device, last in (("server", f"veth{number}", 1), (client, "eth0", 2)):
                address = f"fd91:{number}::{last}/64"
                ip("-n", self.names[host], "addr", "add", address, "dev", device, "nodad")
        # A second address on the first network, which the kernel would not choose by itself.
        ip("-n", self.names["server"], "addr", "add", "10.91.1.11/24", "brd", "+", "dev", "veth1")
        # Client one knows the way to the server's other network.
        ip("-n", self.names["one"], "route", "add", "10.91.2.0/24", "via", "10.91.1.1")

    def remove(self) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def run(self, host: str, body: str, **names: Any) -> subprocess.Popen[str]:
        for name, value in names.items():
            body = body.replace(name, repr(value))
        code = FRAME.format(root=str(ROOT), body=textwrap.indent(textwrap.dedent(body), "    "))
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, host: str, where: str, *, auto: bool = False, timeout: float = 30.0) -> str:
        with self.run(host, CLIENT, WHERE=where, AUTO=auto, TIMEOUT=timeout) as process:
            out, _ = process.communicate(timeout=30)
        return out.strip()


@pytest.fixture(scope="module")
def networks() -> Iterator[Networks]:
    networks = Networks()
    try:
        networks.make()
        yield networks
    finally:
        networks.remove()


@pytest.fixture
def serve(networks: Networks) -> Iterator[Callable[..., int]]:
    processes: list[subprocess.Popen[str]] = []

    def start(interfaces: str, beacons: str = "") -> int:
        process = networks.run("server", SERVER, INTERFACES=interfaces, TARGETS=beacons)
        processes.append(process)
        assert process.stdout is not None
        word, port = process.stdout.readline().split()
        assert word == "ready"
        return int(port)

    yield start
    for process in processes:
        with process:
            process.kill()


def test_clients_of_both_networks_find_the_server_by_broadcast(
    networks: Networks, serve: Callable[[str], int]
) -> None:
    port = serve("")
    assert networks.ask("one", "", auto=True) == f"found 10.91.1.1:{port}"
    assert networks.ask("two", "", auto=True) == f"found 10.91.2.1:{port}"


@pytest.mark.parametrize("where", ["10.91.1.1", "10.91.1.11", "10.91.2.1"])
def test_the_answer_leaves_by_the_address_that_was_asked(
    networks: Networks, serve: Callable[[str], int], where: str
) -> None:
    port = serve("")
    assert networks.ask("one", where) == f"found {where}:{port}"


def test_a_server_of_one_network_is_not_announced_on_the_other(
    networks: Networks, serve: Callable[[str], int]
) -> None:
    port = serve("10.91.1.1")
    assert networks.ask("one", "", auto=True) == f"found 10.91.1.1:{port}"
    assert networks.ask("two", "", auto=True, timeout=0.5).startswith("error n:pv: timeout")


def test_a_multicast_group_is_joined_on_the_interface_that_is_named(
    networks: Networks, serve: Callable[[str], int]
) -> None:
    port = serve("0.0.0.0 224.0.1.99@veth2")
    assert networks.ask("two", "224.0.1.99,1@eth0") == f"found 10.91.2.1:{port}"


@pytest.mark.parametrize("interfaces", ["", "[fd91:1::1]"])
def test_a_search_over_ipv6_is_answered_over_ipv6(
    networks: Networks, serve: Callable[[str], int], interfaces: str
) -> None:
    port = serve(interfaces)
    assert networks.ask("one", "[fd91:1::1]") == f"found [fd91:1::1]:{port}"


def test_an_ipv6_group_is_joined_on_the_interface_that_is_named(
    networks: Networks, serve: Callable[[str], int]
) -> None:
    port = serve("[::] [ff02::42:1]@veth1")
    found = networks.ask("one", "[ff02::42:1],1@eth0")
    assert found.startswith("found [fe80::")
    assert found.endswith(f"]:{port}")
    assert networks.ask("two", "[ff02::42:1],1@eth0", timeout=0.5).startswith("error n:pv: timeout")


def test_beacons_go_to_an_ipv6_group(networks: Networks, serve: Callable[..., int]) -> None:
    hear = BEACONS.replace('"addr_list": ""', '"addr_list": "", "intf_addr_list": "[ff02::42:1]@eth0"')
    with networks.run("two", hear) as two:
        port = serve("[::]", "[ff02::42:1],1@veth2")
        try:
            assert two.stdout is not None
            found = two.stdout.readline().strip()
            assert found.startswith("found [fe80::")
            assert found.endswith(f"]:{port}")
        finally:
            two.kill()


def test_beacons_are_sent_on_all_networks(networks: Networks, serve: Callable[[str], int]) -> None:
    with networks.run("one", BEACONS) as one, networks.run("two", BEACONS) as two:
        port = serve("")
        try:
            assert one.stdout is not None
            assert two.stdout is not None
            assert one.stdout.readline().strip() == f"found 10.91.1.1:{port}"
            assert two.stdout.readline().strip() == f"found 10.91.2.1:{port}"
        finally:
            one.kill()
            two.kill()


def test_a_host_without_ipv6_is_served_all_the_same(networks: Networks, serve: Callable[[str], int]) -> None:
    subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            networks.names["server"],
            "sysctl",
            "-qw",
            "net.ipv6.conf.all.disable_ipv6=1",
        ],
        check=True,
    )
    port = serve("")
    assert networks.ask("two", "10.91.2.1") == f"found 10.91.2.1:{port}"


RESOLVE = """
    from pathlib import Path
    from appliance.client import Connected, Disconnected
    udp = 5076
    def config(host):
        return resolve_server({
            "intf_addr_list": host, "server_port": 0, "broadcast_port": udp, "tls_keychain": "",
            "auto_beacon_addr_list": False,
        }, environ={}).config
    hosts = Path("/etc/hosts")
    hosts.write_text("127.0.0.2 ioc.test\\n")
    client = resolve_client(
        {"addr_list": "ioc.test", "auto_addr_list": False, "tls_keychain": ""}, environ={}).config
    async with Context(client, beacons=False) as ctx:
        updates = ctx.monitor("n:pv", notify=True)
        async with served({"n:pv": double(1.0)}, config=config("127.0.0.2")):
            first = await anext(updates)
            await anext(updates)
            hosts.write_text("127.0.0.3 ioc.test\\n")
        assert isinstance(await anext(updates), Disconnected)
        async with served({"n:pv": double(2.0)}, config=config("127.0.0.3")):
            second = await anext(updates)
    print(first.server.split(":")[0], second.server.split(":")[0], flush=True)
"""


async def test_a_name_of_the_address_list_is_looked_up_again_when_its_server_is_lost(
    networks: Networks, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("")
    code = FRAME.format(root=str(ROOT), body=textwrap.indent(textwrap.dedent(RESOLVE), "    "))
    script = tmp_path / "resolve.py"
    script.write_text(code)
    process = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", networks.names["two"],
        "sh", "-c", f"mount --bind {hosts} /etc/hosts && exec {sys.executable} {script}",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert out.decode().split() == ["127.0.0.2", "127.0.0.3"]
