"""A server of the p4p API of ours, and the clients of p4p (on pvxslibs) and of pvapy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from appliance.p4p.nt import NTEnum, NTNDArray, NTScalar, NTTable
from appliance.p4p.rpc import NTURIDispatcher, rpc
from appliance.p4p.server import DynamicProvider, Server, StaticProvider
from appliance.p4p.server.thread import Handler, SharedPV
from appliance.p4p.util import ThreadedWorkQueue
from tests.helpers.peers import Peer, PeerError, client_environment

pytestmark = pytest.mark.interop
SIZE = 1_000_000


class Mailbox(Handler):
    """Posts what is put, refuses negative numbers, and notes who comes and goes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gone = threading.Event()

    def put(self, pv: Any, op: Any) -> None:
        if isinstance(op.value(), float) and op.value() < 0:
            op.done(error="must not be negative")
        else:
            pv.post(op.value())
            op.done()

    def onFirstConnect(self, pv: Any) -> None:
        self.log.append("first")

    def onLastDisconnect(self, pv: Any) -> None:
        self.log.append("last")
        self.gone.set()


class Adder:
    @rpc(NTScalar("d"))
    def add(self, lhs: Any, rhs: Any) -> float:
        return float(lhs) + float(rhs)


class Dynamic:
    def testChannel(self, name: str) -> bool:
        return name.startswith("dynamic:")

    def makeChannel(self, name: str, peer: str) -> Any:
        return SharedPV(nt=NTScalar("s"), initial=name) if self.testChannel(name) else None


class Site:
    def __init__(self) -> None:
        self.handler = Mailbox()
        self.number = SharedPV(nt=NTScalar("d"), initial=1.5, handler=Mailbox())
        self.watched = SharedPV(nt=NTScalar("d"), initial=1.5, handler=self.handler)
        self.array = SharedPV(nt=NTScalar("ad"), initial=np.zeros(3), handler=Mailbox())
        table = NTTable([("name", "s"), ("current", "d")])
        self.static = StaticProvider("static")
        for name, pv in {
            "number": self.number,
            "watched": self.watched,
            "array": self.array,
            "text": SharedPV(nt=NTScalar("s"), initial="gr\u00fc\u00dfe \u2603"),
            "enum": SharedPV(nt=NTEnum(), initial={"index": 1, "choices": ["OFF", "ON"]}, handler=Mailbox()),
            "table": SharedPV(
                nt=table, initial=[{"name": "q1", "current": 1.5}, {"name": "q2", "current": 2.0}]
            ),
            "image": SharedPV(nt=NTNDArray(), initial=np.arange(12, dtype="u1").reshape(3, 4)),
        }.items():
            self.static.add(name, pv)


@pytest.fixture(scope="module")
def site() -> Site:
    return Site()


@pytest.fixture(scope="module")
def udp(site: Site) -> Iterator[int]:
    dynamic = DynamicProvider("dynamic", Dynamic())
    with ThreadedWorkQueue() as queue:
        methods = NTURIDispatcher(queue, target=Adder(), prefix="call:")
        with Server(providers=[site.static, dynamic, methods], isolate=True) as server:
            yield int(server.conf()["EPICS_PVA_BROADCAST_PORT"])


@pytest.fixture(scope="module", params=["p4p_client.py", "pvapy_client.py"])
def peer(request: Any, udp: int) -> Iterator[Peer]:
    with Peer(request.param, environ=client_environment(udp)) as peer:
        yield peer


def is_pvapy(peer: Peer) -> bool:
    return peer.script.startswith("pvapy")


async def test_a_client_reads_every_kind_of_pv(peer: Peer) -> None:
    assert (await peer.do("get", pv="number"))["value"] == 1.5
    assert (await peer.do("get", pv="text"))["value"] == "gr\u00fc\u00dfe \u2603"
    enum = (await peer.do("get", pv="enum"))["value"]
    assert (enum["index"], enum["choices"]) == (1, ["OFF", "ON"])
    table = (await peer.do("get", pv="table"))["value"]
    assert table == {"name": ["q1", "q2"], "current": [1.5, 2.0]}
    image = await peer.do("get", pv="image")
    assert [item["size"] for item in image["dimension"]] == [4, 3]


async def test_a_put_reaches_the_handler_and_its_refusal_the_client(peer: Peer, site: Site) -> None:
    await peer.do("put", pv="number", value=4.5)
    assert site.number.current() == 4.5
    with pytest.raises(PeerError, match="must not be negative"):
        await peer.do("put", pv="number", value=-1.0)
    site.number.post(1.5)


async def test_a_large_array_goes_both_ways(peer: Peer, site: Site) -> None:
    await peer.do("put_big", pv="array", count=SIZE)
    assert np.array_equal(site.array.current(), np.arange(SIZE, dtype=float))
    read = (await peer.do("get", pv="array"))["value"]
    assert (read["size"], read["last"]) == (SIZE, SIZE - 1.0)
    site.array.post(np.zeros(3))


async def test_a_subscriber_gets_what_is_posted_and_outlives_a_closed_pv(peer: Peer, site: Site) -> None:
    def update(value: float) -> Any:
        return lambda event: event["event"] == "update" and event["value"]["value"] == value

    # A PV of its own: pvapy crashes if a channel that is connected gets a callback.
    site.handler.gone.clear()
    site.handler.log.clear()
    await peer.do("monitor", pv="watched")
    await peer.saw(update(1.5))
    site.watched.post(2.5, severity=1, message="high")
    event = await peer.saw(update(2.5))
    assert event["value"]["alarm"]["message"] == "high"
    site.watched.close()
    assert site.handler.gone.wait(30)
    site.watched.open(3.5)
    await peer.saw(update(3.5))
    await peer.do("unmonitor", pv="watched")
    assert site.handler.log[:2] == ["first", "last"]
    site.watched.post(1.5)


async def test_pvs_are_made_on_demand(peer: Peer) -> None:
    assert (await peer.do("get", pv="dynamic:one"))["value"] == "dynamic:one"


async def test_methods_can_be_called(peer: Peer) -> None:
    if is_pvapy(peer):
        with pytest.raises(PeerError, match="Error handling RPC"):  # its arguments are no NTURI
            await peer.do("rpc", pv="call:add", lhs=1, rhs=2)
    else:
        assert (await peer.do("rpc", pv="call:add", lhs=1, rhs=2))["value"] == 3.0


async def test_a_put_get_is_answered_with_the_new_value(peer: Peer, site: Site) -> None:
    if is_pvapy(peer):
        assert (await peer.do("put_get", pv="number", value=7.5))["value"] == 7.5
        site.number.post(1.5)
