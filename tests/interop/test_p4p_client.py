"""p4p's client (PVXS) against our server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from appliance.pva.credentials import Credentials
from appliance.server import Rights, Server, SharedPV
from tests.helpers.ours import double, gallery, served, server_config
from tests.helpers.peers import Peer, PeerError, client_environment
from tests.helpers.ports import free_port

pytestmark = pytest.mark.interop
SIZE = 1_048_576


@pytest.fixture(scope="module")
def udp() -> int:
    return free_port()


@pytest.fixture(scope="module")
def peer(udp: int) -> Iterator[Peer]:
    with Peer("p4p_client.py", environ=client_environment(udp)) as peer:
        yield peer


@pytest.fixture
async def pvs(peer: Peer, udp: int, request: pytest.FixtureRequest) -> AsyncIterator[dict[str, SharedPV]]:
    # A prefix of its own for each test: p4p remembers where a name was served last.
    pvs = gallery(f"{request.node.name}:")
    server = served(pvs, config=server_config(udp))
    async with server:
        yield {name.rpartition(":")[2]: pv for name, pv in pvs.items()}
        peer.events.clear()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}:"


def updates_of(pv: str) -> Any:
    return lambda event: event["event"] == "update" and event["pv"] == pv


async def test_get_reads_every_kind_of_pv(peer: Peer, pvs: dict[str, SharedPV], name: str) -> None:
    assert (await peer.do("get", pv=name + "double"))["value"] == 1.5
    assert (await peer.do("get", pv=name + "string"))["value"] == "grüße ☃ 日本 🚀"
    assert (await peer.do("get", pv=name + "strings"))["value"] == ["ä", "", "z" * 300]
    assert (await peer.do("get", pv=name + "enum"))["value"] == {
        "index": 1,
        "choices": ["OFF", "ON", "BROKEN"],
    }
    assert (await peer.do("get", pv=name + "table"))["value"] == {"name": ["q1", "q2"], "current": [1.5, 2.0]}
    image = await peer.do("get", pv=name + "image")
    assert image["value"] == list(range(12))
    assert [item["size"] for item in image["dimension"]] == [4, 3]
    odd = await peer.do("get", pv=name + "odd")
    assert odd["points"] == [{"x": 1.0, "label": "a"}, {"x": 2.0, "label": "b"}]
    assert odd["choice"] == "ü"
    assert odd["choices"] == [7, "t"]
    assert odd["anything"] == 2.5
    assert odd["anythings"] == [1, "two"]
    assert odd["flags"] == [True, False]
    assert (odd["small"], odd["huge"]) == (-3, 2**63 + 1)


async def test_put_writes_what_it_names_and_nothing_else(
    peer: Peer, pvs: dict[str, SharedPV], name: str
) -> None:
    await peer.do("put", pv=name + "double", value=2.5)
    assert pvs["double"].current["value"] == 2.5
    await peer.do("put", pv=name + "string", value="žluťoučký 🐎")
    assert pvs["string"].current["value"] == "žluťoučký 🐎"
    await peer.do("put", pv=name + "table", value={"value": {"name": ["s"], "current": [3.5]}})
    assert pvs["table"].current["value"].to_dict() == {"name": ["s"], "current": [3.5]}
    await peer.do("put", pv=name + "odd", value={"points": [{"x": 9.0, "label": "ß"}], "anything": "text"})
    odd = pvs["odd"].current.to_dict()
    assert odd["points"] == [{"x": 9.0, "label": "ß"}]
    assert odd["anything"] == "text"
    assert odd["choice"] == {"text": "ü"}


async def test_arrays_of_eight_megabytes_go_both_ways(
    peer: Peer, pvs: dict[str, SharedPV], name: str
) -> None:
    value = (await peer.do("get", pv=name + "big"))["value"]
    assert value == {
        "size": SIZE,
        "dtype": "float64",
        "first": 0.0,
        "last": SIZE - 1.0,
        "sum": float(np.arange(float(SIZE)).sum()),
    }
    await peer.do("put_big", pv=name + "array", count=SIZE)
    assert np.array_equal(pvs["array"].current["value"], np.arange(SIZE, dtype=float))


async def test_a_refused_put_tells_our_reason(peer: Peer, pvs: dict[str, SharedPV], name: str) -> None:
    with pytest.raises(PeerError, match="interlock is active"):
        await peer.do("put", pv=name + "refusing", value=1.0)


async def test_rpc_returns_our_result_and_our_errors(peer: Peer, pvs: dict[str, SharedPV], name: str) -> None:
    assert (await peer.do("rpc", pv=name + "add", lhs=1.5, rhs=2))["value"] == 3.5
    with pytest.raises(PeerError, match="cannot be called"):
        await peer.do("rpc", pv=name + "double", lhs=1)


async def test_monitor_starts_with_the_present_value_and_follows(
    peer: Peer, pvs: dict[str, SharedPV], name: str
) -> None:
    await peer.do("monitor", pv=name + "array")
    first = await peer.saw(updates_of(name + "array"))
    assert first["value"]["value"] == [1.0, 2.5]
    pvs["array"].post([7.0])
    second = await peer.saw(updates_of(name + "array"))
    assert second["value"]["value"] == [7.0]
    assert second["changed"] == ["value"]
    await peer.do("unmonitor", pv=name + "array")


@pytest.mark.parametrize(
    "request_", ["", "record[queueSize=4,pipeline=true]", "record[queueSize=100,pipeline=true]"]
)
async def test_a_burst_ends_with_the_latest_value_in_rising_order(
    peer: Peer, udp: int, request_: str
) -> None:
    pv = double()
    name = f"burst:{request_}"
    async with served({name: pv}, config=server_config(udp)):
        await peer.do("monitor", pv=name, request=request_ or None)
        await peer.saw(updates_of(name))
        for value in range(1, 2001):
            pv.post(float(value))
            if value % 100 == 0:
                await asyncio.sleep(0)
        seen = [0.0]
        while seen[-1] != 2000:
            seen.append((await peer.saw(updates_of(name)))["value"]["value"])
        assert seen == sorted(set(seen))
        await peer.do("unmonitor", pv=name)


async def test_a_pv_that_closes_and_opens_again_is_followed(
    peer: Peer, pvs: dict[str, SharedPV], name: str
) -> None:
    await peer.do("monitor", pv=name + "int")
    await peer.saw(updates_of(name + "int"))
    pv = pvs["int"]
    value = pv.current
    pv.close()
    await peer.saw(lambda event: event["event"] == "disconnected")
    value["value"] = 77
    pv.open(value)
    assert (await peer.saw(updates_of(name + "int")))["value"]["value"] == 77
    await peer.do("unmonitor", pv=name + "int")


async def test_access_security_is_told_in_words(peer: Peer, udp: int) -> None:
    class Policy:
        def rights(self, name: str, peer: Credentials) -> Rights:
            if name == "acl:hidden":
                return Rights()
            return Rights(read=True)

    server = served(
        {"acl:ro": double(4.0), "acl:hidden": double()}, config=server_config(udp), policy=Policy()
    )
    async with server:
        assert (await peer.do("get", pv="acl:ro"))["value"] == 4.0
        with pytest.raises(PeerError, match="write access denied"):
            await peer.do("put", pv="acl:ro", value=1.0, get=False)
        with pytest.raises(PeerError, match="read access denied"):
            await peer.do("get", pv="acl:hidden")
        assert server.access.refusals == 1


async def test_the_server_sees_who_the_client_claims_to_be(peer: Peer, udp: int) -> None:
    async with served({"who:pv": double()}, config=server_config(udp)) as server:
        await peer.do("get", pv="who:pv")
        (client,) = server.peers.values()
        assert client.credentials.method == "ca"
        assert client.credentials.account == "root"
        assert "root" in client.credentials.roles


async def test_a_client_comes_back_after_the_server_was_restarted(peer: Peer, udp: int) -> None:
    pv = double(1.0)
    async with served({"again:pv": pv}, config=server_config(udp)):
        await peer.do("monitor", pv="again:pv")
        await peer.saw(updates_of("again:pv"))
    await peer.saw(lambda event: event["event"] == "disconnected")
    beacons = server_config(udp, beacon_addr_list="127.0.0.1", beacon_period=0.2)
    async with served({"again:pv": double(2.0)}, config=beacons) as server:
        assert (await peer.saw(updates_of("again:pv")))["value"]["value"] == 2.0
        assert server.udp_port == udp
    await peer.do("unmonitor", pv="again:pv")


async def test_our_server_is_a_name_server_for_its_own_pvs(udp: int) -> None:
    server: Server = served({"ns:pv": double(3.0)})
    async with server:
        environ = client_environment(free_port(), EPICS_PVA_NAME_SERVERS=f"127.0.0.1:{server.tcp_port}")
        environ["EPICS_PVA_ADDR_LIST"] = ""
        peer = Peer("p4p_client.py", environ=environ)
        try:
            await asyncio.to_thread(peer.started)
            assert (await peer.do("get", pv="ns:pv"))["value"] == 3.0
        finally:
            await asyncio.to_thread(peer.stop)
