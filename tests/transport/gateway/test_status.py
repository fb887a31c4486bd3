"""The gateway's own PVs and its metrics, read through real connections."""

from __future__ import annotations

import asyncio
import urllib.request

import pytest

from appliance.errors import ConfigurationError, RemoteError, TransportError
from appliance.gateway.config import Metrics
from appliance.gateway.status import POKE_S, STATUS_PVS, Lookups
from appliance.server import Server
from tests.helpers.gateways import (
    client_side,
    client_to,
    direct,
    gateway_to,
    gateway_with,
    server_of,
    server_side,
)
from tests.helpers.live import never_comes
from tests.helpers.ours import double, served
from tests.helpers.ports import free_port


async def test_names_in_use_not_in_use_and_without_a_server_are_counted():
    async with (
        served({"a": double(), "b": double()}) as server,
        gateway_to(server, status_prefix="GW:") as gateway,
        client_to(gateway) as client,
    ):
        await client.get("b", timeout=30)
        client.give_back("b")
        async with client.monitor("a") as updates, asyncio.timeout(30):
            await anext(updates)
            gateway.clients["inner"].want("nowhere")
            await gateway.status.refresh()
            counts = await client.get("GW:channels", server=direct(gateway))
            stats = await client.get("GW:stats", server=direct(gateway))
            assert [counts[name] for name in ("active", "inactive", "unconnected")] == [1, 1, 1]
            assert (stats["ccacheSize.value"], stats["mcacheSize.value"]) == (3, 1)
            assert list((await client.get("GW:cache", server=direct(gateway)))["value"]) == [
                "a",
                "b",
                "nowhere",
            ]
            ports = {peer.stream.peer for peer in server_of(gateway).peers.values()}
            assert set((await client.get("GW:clients", server=direct(gateway)))["value"]) == ports


async def test_every_pv_of_the_list_is_served_and_listed():
    async with (
        served({}) as server,
        gateway_to(server, status_prefix="GW:") as gateway,
        client_to(gateway) as client,
    ):
        for pv in STATUS_PVS:
            value = await client.get(f"GW:{pv.name}", server=direct(gateway))
            assert value.type == pv.type
        assert {f"GW:{pv.name}" for pv in STATUS_PVS} <= set(server_of(gateway).names())


async def test_a_put_to_poke_refreshes_for_all_who_ask_and_not_more_often_than_once_a_second():
    async with (
        served({"a": double()}) as server,
        gateway_to(server, status_prefix="GW:") as gateway,
        client_to(gateway) as client,
    ):
        await client.get("a", timeout=30)
        first = gateway.status._refreshed
        await asyncio.gather(*(client.put("GW:poke", number) for number in range(20)))
        assert gateway.status._refreshed >= first + POKE_S
        assert list((await client.get("GW:cache"))["value"]) == ["a"]


async def test_own_names_are_never_those_of_a_server_behind_the_gateway():
    async with (
        served({"GW:poke": double(7.0), "GW:other": double(8.0)}) as server,
        gateway_to(server, status_prefix="GW:") as gateway,
        client_to(gateway) as client,
    ):
        assert (await client.get("GW:poke", timeout=30))["value"] == 0
        assert (await client.get("GW:other", timeout=30))["value"] == 8.0


async def test_a_second_server_side_may_show_status_only():
    async with (
        served({"a": double(3.0)}) as server,
        gateway_with(
            {"inner": client_side(server)},
            {"outer": server_side("inner"), "office": server_side(status_prefix="GW:")},
        ) as gateway,
        client_to(gateway) as client,
        client_to(gateway, "office") as office,
    ):
        await client.get("a", timeout=30)
        await gateway.status.refresh()
        assert list((await office.get("GW:cache", timeout=30))["value"]) == ["a"]
        await never_comes(
            lambda: office.get("a", server=direct(gateway, "office"), timeout=0.5), "there is no PV 'a' here"
        )


async def test_what_a_client_may_do_is_told_also_for_others():
    async with (
        served({}) as server,
        gateway_to(server, status_prefix="GW:") as gateway,
        client_to(gateway) as client,
    ):
        own = await client.rpc("GW:asTest", {"pv": "x"}, timeout=30)
        assert (own["pv"], own["peer"], own["asg"], own["permission.put"]) == (
            "x",
            "127.0.0.1",
            "DEFAULT",
            True,
        )
        other = await client.rpc(
            "GW:asTest", {"pv": "x", "user": "ann", "peer": "10.0.0.9", "roles": "ops", "method": "x509"}
        )
        assert (other["account"], other["peer"], list(other["roles"])) == ("ann", "10.0.0.9", ["ops"])
        for wrong, why in (
            ({}, "the argument pv is missing"),
            ({"pv": "x", "method": "magic"}, "method is one of"),
            ({"pv": "x", "usr": "ann"}, "unknown argument 'usr'; did you mean user"),
            ({"pv": "x", "peer": "no such host"}, "has no address"),
            ({"pv": "x", "roles": ["r"] * 1000}, "at most 256"),
        ):
            with pytest.raises(RemoteError, match=why):
                await client.rpc("GW:asTest", wrong)
        for name in ("GW:asDebug", "GW:threads"):
            with pytest.raises(RemoteError, match="takes no argument 'pv'"):
                await client.rpc(name, {"pv": "x"})


async def test_what_the_pv_list_denies_is_told_with_the_host(tmp_path):
    (tmp_path / "gw.pvlist").write_text("x ALLOW\nsecret DENY\nGW:.* ALLOW\n")
    async with (
        served({}) as server,
        gateway_to(server, status_prefix="GW:", pvlist=str(tmp_path / "gw.pvlist")) as gateway,
        client_to(gateway) as client,
    ):
        with pytest.raises(RemoteError, match=r"Denied: the PV list denies secret to 127\.0\.0\.1"):
            await client.rpc("GW:asTest", {"pv": "secret"}, timeout=30)


async def test_few_names_of_hosts_are_looked_up_at_the_same_time():
    lookups = Lookups()
    asked = (
        lookups.address(host)
        for host in ("localhost", "localhost", "localhost", "::ffff:10.0.0.9", "fe80::1")
    )
    one, two, refused, *numbers = await asyncio.gather(*asked, return_exceptions=True)
    assert one == two
    assert "too many names" in str(refused)
    assert numbers == ["10.0.0.9", "[fe80::1]"]
    assert await lookups.address("localhost") == one


async def test_health_says_what_is_wrong_and_that_it_is_over():
    server = served({"a": double()})
    await server.start()
    async with gateway_to(server, status_prefix="GW:") as gateway, client_to(gateway) as client:

        async def health() -> tuple[int, int, str]:
            await gateway.status.refresh()
            value = await client.get("GW:health", server=direct(gateway))
            return value["value.index"], value["alarm.severity"], value["alarm.message"]

        assert await health() == (0, 0, "")
        await client.get("a", timeout=30)
        assert await health() == (0, 0, "")
        await server.stop()
        async with asyncio.timeout(30):
            while gateway.clients["inner"].active:
                await asyncio.sleep(0)
        assert await health() == (2, 2, "the client side inner has no server for any of its 1 names")
        gateway.overview.checks.append(lambda: [(1, "the put log cannot be written")])
        assert (await health())[2].endswith("; the put log cannot be written")


async def test_a_missing_name_server_degrades():
    async with served({"a": double()}) as server:
        port = free_port()
        side = {"pva": {"name_servers": [f"127.0.0.1:{port}", f"127.0.0.1:{server.tcp_port}"]}}
        async with gateway_to(server, client=side, status_prefix="GW:") as gateway:
            async with asyncio.timeout(30):
                while len(gateway.clients["inner"].context.missing_name_servers()) > 1:
                    await asyncio.sleep(0.01)
            assert gateway.overview.troubles() == [
                (1, f"the client side inner has no connection to name server 127.0.0.1:{port}")
            ]


async def test_metrics_are_served_on_a_loopback_port_while_the_gateway_runs():
    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"

    def read() -> str:
        with urllib.request.urlopen(url, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    async with served({"a": double()}) as server:
        async with gateway_to(server, metrics={"port": port}) as gateway, client_to(gateway) as client:
            await client.get("a", timeout=30)
            text = await asyncio.to_thread(read)
            lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
            assert lines["pvagw_clients"] == "1.0"
            assert lines["pvagw_servers"] == "1.0"
            assert lines['pvagw_names{state="active"}'] == "1.0"
            assert lines["pvagw_health"] == "0.0"
            assert float(lines["pvagw_downstream_sent_octets_total"]) > 0
            assert "process_resident_memory_bytes" in lines
            with pytest.raises(TransportError, match=f"metrics: port {port} of 127.0.0.1 cannot be used"):
                async with gateway_to(server, metrics={"port": port}):
                    pass
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(read)


def test_metrics_leave_loopback_never():
    assert Metrics().port == 0
    with pytest.raises(ConfigurationError, match="not an address of loopback"):
        asyncio.run(_start_with({"port": 9100, "address": "0.0.0.0"}))


async def _start_with(metrics: dict[str, object]) -> None:
    async with gateway_to(Server(), metrics=metrics):
        pass
