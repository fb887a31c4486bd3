"""A server that writes big-endian behind the gateway, whose own messages are little-endian: every client reads its values.

Each message says for itself which byte order it has, and p4p (PVXS) looks at that. pvAccessCPP does not, so the gateway writes
such values anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from appliance.gateway.gateway import Gateway
from appliance.pva.limits import DEFAULT_LIMITS
from appliance.pva.server_connection import ServerConnection
from appliance.server import SharedPV
from tests.helpers.gateways import client_to, gateway_to
from tests.helpers.ours import gallery, served
from tests.helpers.peers import Peer, client_environment
from tests.helpers.ports import free_port

pytestmark = pytest.mark.interop
BIG = DEFAULT_LIMITS._replace(max_name=2047)
"""Marks the server whose connections write big-endian."""
DOUBLE = {
    "double": 1.5,
    "int": 42,
    "string": "grüße ☃ 日本 🚀",
    "strings": ["ä", "", "z" * 300],
    "array": [1.0, 2.5],
}


def connection(**options: Any) -> ServerConnection:
    return ServerConnection(big=options["limits"] is BIG, **options)


@pytest.fixture(scope="module")
def udp() -> int:
    return free_port()


@pytest.fixture
async def pvs(udp: int, monkeypatch: pytest.MonkeyPatch, name: str) -> AsyncIterator[dict[str, SharedPV]]:
    monkeypatch.setattr("appliance.server.peer.ServerConnection", connection)
    pvs = gallery(name)
    async with served(pvs, limits=BIG) as server, gateway_to(server, pva={"broadcast_port": udp}):
        yield {path.rpartition(":")[2]: pv for path, pv in pvs.items()}


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}:"


@pytest.fixture(scope="module")
def p4p(udp: int) -> Iterator[Peer]:
    with Peer("p4p_client.py", environ=client_environment(udp)) as peer:
        yield peer


@pytest.fixture(scope="module")
def pvapy(udp: int) -> Iterator[Peer]:
    with Peer("pvapy_client.py", environ=client_environment(udp)) as peer:
        yield peer


@pytest.fixture(params=["p4p", "pvapy"])
def peer(request: pytest.FixtureRequest, udp: int) -> Peer:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Peer)
    return found


def value_of(pv: str, value: Any) -> Any:
    def wanted(event: dict[str, Any]) -> bool:
        return event["event"] == "update" and event["pv"] == pv and event["value"]["value"] == value

    return wanted


async def test_a_big_endian_server_s_values_are_read(peer: Peer, pvs: dict[str, SharedPV], name: str) -> None:
    for _ in range(2):
        for shape, value in DOUBLE.items():
            assert (await peer.do("get", pv=name + shape))["value"] == value
    assert (await peer.do("get", pv=name + "enum"))["value"]["choices"] == ["OFF", "ON", "BROKEN"]
    table = await peer.do("get", pv=name + "table")
    assert table["value"] == {"name": ["q1", "q2"], "current": [1.5, 2.0]}
    big = await peer.do("get", pv=name + "big")
    assert (big["value"]["size"], big["value"]["last"]) == (1_048_576, 1_048_575.0)
    if "pvapy" in peer.script:
        return  # it cannot show the strings of an any
    odd = await peer.do("get", pv=name + "odd")
    assert odd["points"] == [{"x": 1.0, "label": "a"}, {"x": 2.0, "label": "b"}]


async def test_a_big_endian_server_s_updates_are_watched(
    peer: Peer, pvs: dict[str, SharedPV], name: str
) -> None:
    pv = name + "double"
    await peer.do("monitor", pv=pv)
    await peer.saw(value_of(pv, 1.5))
    for value in (2.5, 3.5, 4.5):
        pvs["double"].post({"value": value})
        await peer.saw(value_of(pv, value))
    array = name + "array"
    await peer.do("monitor", pv=array)
    await peer.saw(value_of(array, [1.0, 2.5]))
    pvs["array"].post({"value": np.arange(500.0)})
    await peer.saw(value_of(array, list(np.arange(500.0))))
    await peer.do("put", pv=name + "int", value=7 if "pvapy" in peer.script else {"value": 7})
    assert (await peer.do("get", pv=name + "int"))["value"] == 7


async def test_our_own_client_reads_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.server.peer.ServerConnection", connection)
    pvs = gallery("our:")
    async with served(pvs, limits=BIG) as server, gateway_to(server) as gateway, client_to(gateway) as client:
        assert big_endian(gateway)
        for shape, value in DOUBLE.items():
            got = (await client.get(f"our:{shape}", timeout=30))["value"]
            assert list(got) == value if isinstance(value, list) else got == value
        await client.put("our:double", 9.5)
        async with client.monitor("our:double") as updates:
            assert (await anext(updates))["value"] == 9.5


def big_endian(gateway: Gateway) -> bool:
    """Whether the gateway's connections to servers are big-endian."""
    links = gateway.clients["inner"].context._links.by_address.values()
    return all(link.connection is None or link.connection.outbox.big for link in links)
