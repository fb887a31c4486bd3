"""Several event loops in threads of one process, with clients and servers: what they share is right for all of them."""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from appliance.client import Context
from appliance.errors import RemoteError
from appliance.pvdata import bitset, fielddesc
from appliance.pvdata import codec as codec_module
from appliance.pvdata.nt import NTScalar, NTScalarArray
from appliance.pvdata.types import FLOAT64, INT32, STRING, StructType
from appliance.pvdata.value import Value
from appliance.server import Operation, Server, SharedPV
from tests.helpers.ours import client_config, server_config

SERVERS = 2
CLIENTS = 4
ROUNDS = 12
REQUESTS = (
    "",
    "field(value)",
    "field(value,alarm)",
    "field(timeStamp,value)",
    "record[queueSize=3]field(value)",
)
TEXTS = 4000


def answer(pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
    if argument is None:
        raise RemoteError("what is to be doubled?")
    # Each caller has other names, so the types are mostly new.
    query = argument["query"]
    result = Value(StructType([(f"{name}_doubled", FLOAT64) for name in query.type.members]))
    for name in query.type.members:
        result[f"{name}_doubled"] = 2 * query[name]
    return result


def pvs(number: int) -> dict[str, SharedPV]:
    texts = StructType([("texts", NTScalar(STRING)), ("number", INT32)])
    return {
        f"{number}:double": SharedPV.mailbox(Value(NTScalar(FLOAT64), 0.0)),
        f"{number}:int": SharedPV.mailbox(Value(NTScalar(INT32, display=True), 0)),
        f"{number}:nested": SharedPV.mailbox(Value(texts, {"texts": {"value": "ä"}, "number": 1})),
        f"{number}:texts": SharedPV.mailbox(Value(NTScalarArray(STRING), ["0"] * TEXTS)),
        f"{number}:rpc": SharedPV(Value(NTScalar(FLOAT64), 0.0), on_rpc=answer),
    }


@pytest.fixture
def turns_and_small_tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let threads take turns often, and the tables that they share be cleared all the time."""
    monkeypatch.setattr(fielddesc, "_MOST_COMMON", 4)
    monkeypatch.setattr(bitset, "_SHORT_MAX", 4)
    monkeypatch.setattr(codec_module, "_CACHED", 6)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


class Loop:
    """An event loop in a thread, with one piece of work."""

    def __init__(
        self, make_loop: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, None]
    ) -> None:
        self.error: BaseException | None = None
        self._make_loop = make_loop
        self._work = work
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._make_loop) as runner:
                runner.run(self._work)
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(100)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error


async def serve(number: int, ports: queue.Queue[int], stop: threading.Event) -> None:
    async with Server(server_config()) as server:
        for name, pv in pvs(number).items():
            server.add_pv(name, pv)
        ports.put(server.tcp_port)
        await asyncio.to_thread(stop.wait)


async def use(me: int, addresses: str) -> None:
    """Come and go, each time with the same requests as others, and with some that nobody else has."""
    for round_number in range(ROUNDS):
        async with Context(client_config(name_servers=addresses), beacons=False) as ctx:
            await asyncio.gather(*(use_server(ctx, me, round_number, number) for number in range(SERVERS)))


async def use_server(ctx: Context, me: int, round_number: int, server: int) -> None:
    request = REQUESTS[(me + round_number) % len(REQUESTS)]
    for name, kind in (("double", NTScalar(FLOAT64)), ("int", NTScalar(INT32, display=True))):
        await ctx.put(f"{server}:{name}", me, timeout=60)
        value = await ctx.get(f"{server}:{name}", request, timeout=60)
        assert value["value"] in range(CLIENTS)
        assert (await ctx.info(f"{server}:{name}", timeout=60)).type == kind
    async with asyncio.timeout(60), ctx.monitor(f"{server}:nested", "field(number)") as updates:
        async for update in updates:
            assert update["number"] == 1
            break
    names = ("same", f"of_{me}_{round_number}")
    for argument in ({name: float(number) for number, name in enumerate(names)}, {"same": 0.0}):
        found = await ctx.rpc(f"{server}:rpc", argument, timeout=60)
        assert found is not None
        assert {name: found[f"{name}_doubled"] for name in argument} == {
            name: 2 * number for name, number in argument.items()
        }
    # So many values that reading them is paced.
    await ctx.put(f"{server}:texts", [f"{me}"] * TEXTS, timeout=60)
    texts = (await ctx.get(f"{server}:texts", timeout=60))["value"]
    assert len(texts) == TEXTS
    assert len(set(texts)) == 1


@pytest.mark.usefixtures("turns_and_small_tables")
@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_clients_and_servers_on_several_loops_share_types_at_once(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ports: queue.Queue[int] = queue.Queue()
    stop = threading.Event()
    servers = [Loop(make_loop, serve(number, ports, stop)) for number in range(SERVERS)]
    try:
        addresses = " ".join(f"127.0.0.1:{ports.get(timeout=60)}" for _ in servers)
        clients = [Loop(make_loop, use(number, addresses)) for number in range(CLIENTS)]
        for client in clients:
            client.join()
    finally:
        stop.set()
    for server in servers:
        server.join()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert len(fielddesc._common) <= 4 + SERVERS + CLIENTS
