"""All operations through the gateway: a server of ours, the gateway and a client of ours in one event loop."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest

from appliance.client import Context
from appliance.errors import RemoteError
from appliance.pva.commands import CMD_PROCESS, CMD_PUT_GET
from appliance.pva.octets import RawArgument
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.pvrequest import PVRequest
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value
from appliance.server import Handler, Operation, SharedPV
from tests.helpers.gateways import client_to, direct, gateway_to, names, refusal, server_of
from tests.helpers.ours import double, gallery, served
from tests.helpers.requests import Asked

EVERY = ["double", "int", "string", "strings", "array", "big", "enum", "table", "image", "odd"]


class Recorder(Handler):
    """Notes the pvRequests that reach it."""

    def __init__(self) -> None:
        self.requests: list[tuple[int, Any]] = []
        self.processed = 0
        self.warnings = 0
        self.value = Value(NTScalar(FLOAT64), {"value": 1.0})

    def init(self, operation: Operation) -> None:
        self.requests.append((operation.command, operation.request.to_dict()))
        operation.ready(None if operation.command == CMD_PROCESS else self.value.type)  # type: ignore[arg-type]

    def get(self, operation: Operation) -> None:
        operation.reply(self.value)

    def put(self, operation: Operation, value: Value) -> None:
        for _ in range(self.warnings):
            operation.warn("near the limit")
        self.value.assign(value)
        operation.done()

    def put_get(self, operation: Operation, value: Value) -> None:
        self.value["value"] = float(value["value"]) * 2
        operation.reply(self.value)

    def process(self, operation: Operation) -> None:
        self.processed += 1
        operation.done()


async def test_every_shape_is_read_and_watched_as_at_its_server():
    async with served(gallery()) as server, gateway_to(server) as gateway:
        async with client_to(gateway) as client, Context(client.config) as other:
            for name in EVERY:
                here = await client.get(f"our:{name}", timeout=30)
                there = await client.get(f"our:{name}", server=("127.0.0.1", server.tcp_port, False))
                assert here == there
                assert here.type == there.type
                async with other.monitor(f"our:{name}") as updates:
                    assert await anext(updates) == there


async def test_fields_are_selected_by_the_server_itself():
    async with served(gallery()) as server, gateway_to(server) as gateway, client_to(gateway) as client:
        value = await client.get("our:double", "field(value,alarm.severity)")
        assert value["value"] == 1.5
        with pytest.raises(RemoteError, match="must select at least one field"):
            await client.get("our:double", "field(nonsense)")
        with pytest.raises(RemoteError, match="must select at least one field"):
            async with client.monitor("our:double", "field(nonsense)") as updates:
                await anext(updates)


async def test_puts_and_calls():
    async with served(gallery()) as server, gateway_to(server) as gateway, client_to(gateway) as client:
        await client.put("our:double", 7.5)
        assert (await client.get("our:double"))["value"] == 7.5
        await client.put("our:enum", "BROKEN")
        assert (await client.get("our:enum"))["value.index"] == 2
        await client.put("our:array", [3.0, 4.0])
        assert np.array_equal((await client.get("our:array"))["value"], [3.0, 4.0])
        answer = await client.rpc("our:add", {"lhs": 2, "rhs": 3.5})
        assert answer is not None
        assert answer["value"] == 5.5
        with pytest.raises(RemoteError, match="lhs and rhs are needed"):
            await client.rpc("our:add")
        with pytest.raises(RemoteError, match="interlock is active"):
            await client.put("our:refusing", 1.0)
        info = await client.info("our:double", "alarm")
        assert info.type.id == "alarm_t"


async def test_what_is_put_and_what_calls_bring_pass_undecoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RawArgument, "value", None)
    async with served(gallery()) as server, gateway_to(server) as gateway, client_to(gateway) as client:
        await client.put("our:double", 7.5)
        assert (await client.get("our:double"))["value"] == 7.5
        await client.put("our:array", [3.0, 4.0])
        assert np.array_equal((await client.get("our:array"))["value"], [3.0, 4.0])
        answer = await client.rpc("our:add", {"lhs": 2, "rhs": 3.5})
        assert answer is not None
        assert answer["value"] == 5.5


async def test_the_client_s_pvrequest_reaches_the_server():
    pv = Recorder()
    async with served({"pv": pv}) as server, gateway_to(server) as gateway, client_to(gateway) as client:  # type: ignore[dict-item]
        await client.put("pv", 3.0, "field(value)record[process=true,block=false]")
        await client.get("pv", "field(value)record[queueSize=5,_x=1]")
        assert [asked for _, asked in pv.requests] == [
            {"field": {"value": {}}, "record": {"_options": {"block": "false", "process": "true"}}},
            {"field": {"value": {}}, "record": {"_options": {"_x": "1"}}},
        ]


@pytest.mark.parametrize(("warnings", "passed"), [(1, 1), (40, 16)])
async def test_warnings_of_the_server_reach_the_client(
    caplog: pytest.LogCaptureFixture, warnings: int, passed: int
):
    recorder = Recorder()
    recorder.warnings = warnings
    pvs: Any = {"r": recorder}
    async with served(pvs) as server, gateway_to(server) as gateway, client_to(gateway) as client:
        await client.put("r", {"value": 2.0}, timeout=30)
        port = server_of(gateway).tcp_port
        said = [record.getMessage() for record in caplog.records if "near the limit" in record.getMessage()]
        assert sum(f"127.0.0.1:{port} " in line for line in said) == passed


async def test_put_get_and_process():
    pv = Recorder()
    async with served({"pv": pv}) as server, gateway_to(server) as gateway, client_to(gateway) as client:  # type: ignore[dict-item]
        await client.get("pv")
        channel = client.channel("pv")
        put_get = Asked(channel, CMD_PUT_GET, PVRequest("").value)
        operation = await put_get.ready_
        assert operation.type is not None
        value = Value(operation.type)
        value["value"] = 4.0
        assert (await put_get.do(lambda wire: wire.put(value)))["value"] == 8.0
        process = Asked(channel, CMD_PROCESS, PVRequest("").value)
        await process.ready_
        await process.do(lambda wire: wire.process())
        await process.do(lambda wire: wire.process())
        assert pv.processed == 2


async def test_clients_share_a_subscription_and_a_late_one_gets_the_whole_value():
    pv = SharedPV(Value(NTScalar(FLOAT64), {"value": 1.0, "alarm.message": "first"}))
    async with served({"pv": pv}) as server, gateway_to(server) as gateway:
        async with client_to(gateway) as one, client_to(gateway) as two:
            async with one.monitor("pv") as first:
                whole = await anext(first)
                assert whole["value"] == 1.0
                pv.post(2.0)
                assert (await anext(first))["value"] == 2.0
                async with two.monitor("pv") as second:
                    late = await anext(second)
                    assert late["value"] == 2.0
                    assert late.changed == whole.changed | 2, "its first value is whole"
                    upstream = gateway.clients["inner"].known["pv"]
                    assert len(upstream.monitors) == 1
                    pv.post(3.0)
                    assert (await anext(first))["value"] == (await anext(second))["value"] == 3.0
                async with two.monitor("pv", "field(value)") as other:
                    await anext(other)
                    assert len(upstream.monitors) == 2
            await one.close()
            await two.close()
            while upstream.monitors:
                await asyncio.sleep(0.01)
            (channel,) = server.channels()
            assert not channel.wire.operations, "nobody watches: the server has no subscription"


async def test_an_uncached_pipeline_goes_on_as_its_client_takes():
    pvs = {"pv": double(0.0)}
    async with served(pvs) as server, gateway_to(server) as gateway, client_to(gateway) as client:
        request = "record[cache=false,pipeline=true,queueSize=4]"
        async with client.monitor("pv", request) as updates:
            for value in range(40):
                assert (await anext(updates))["value"] == value
                pvs["pv"].post({"value": value + 1.0})
            (upstream,) = gateway.clients["inner"]
            assert [type(monitor).__name__ for monitor in upstream.monitors.values()] == ["OwnMonitor"]
            for value in range(41, 101):
                pvs["pv"].post({"value": float(value)})
            seen = [(await anext(updates))["value"]]
            while seen[-1] < 100:
                seen.append((await anext(updates))["value"])
            assert seen == sorted(seen)


async def test_a_subscription_that_ends_ends_for_all():
    pv = double(1.0)
    async with served({"pv": pv}) as server, gateway_to(server) as gateway, client_to(gateway) as client:
        async with client.monitor("pv") as updates:
            await anext(updates)
            for channel in server.channels():
                for wire in channel.wire.operations.values():
                    wire.context.finish()
            with pytest.raises(StopAsyncIteration):
                await anext(updates)


async def test_many_gets_at_once_are_few_at_the_server():
    pv = Recorder()
    counted = 0

    class Counting(Recorder):
        def get(self, operation: Operation) -> None:
            nonlocal counted
            counted += 1
            asyncio.get_running_loop().call_later(0.05, operation.reply, self.value)

    pv = Counting()
    async with served({"pv": pv}) as server, gateway_to(server) as gateway:  # type: ignore[dict-item]
        clients = [client_to(gateway) for _ in range(10)]
        for client in clients:
            await client.start()
            await client.get("pv")
        counted = 0
        await asyncio.gather(*(client.get("pv") for client in clients))
        assert counted <= 2
        for client in clients:
            await client.close()


async def test_a_read_after_a_write_is_not_older_than_the_write():
    async with served({"pv": double(0.0)}) as server, gateway_to(server) as gateway:
        async with client_to(gateway) as writer, client_to(gateway) as reader:

            async def read() -> None:
                for _ in range(100):
                    await reader.get("pv")

            busy = asyncio.create_task(read())
            for number in range(50):
                await writer.put("pv", float(number))
                assert (await writer.get("pv"))["value"] == number
            await busy


async def test_a_get_holdoff_bounds_the_reads_at_the_server():
    times: list[float] = []

    class Timed(Recorder):
        def get(self, operation: Operation) -> None:
            times.append(asyncio.get_running_loop().time())
            super().get(operation)

    async with served({"pv": Timed()}) as server, gateway_to(server, get_holdoff=0.2) as gateway:  # type: ignore[dict-item]
        async with client_to(gateway) as one, client_to(gateway) as two:
            for _ in range(3):
                await asyncio.gather(one.get("pv"), two.get("pv"))
    assert len(times) <= 4
    assert all(later - earlier > 0.19 for earlier, later in itertools.pairwise(times))


async def test_a_pv_that_nobody_serves_is_refused_after_the_patience():
    async with served({"pv": double()}) as server:
        async with (
            gateway_to(server, bounds={"open_patience_s": 0.2}) as gateway,
            client_to(gateway) as client,
        ):
            why = await refusal(client, "other", direct(gateway))
            assert "no server behind this gateway has the PV 'other'" in why
            assert names(gateway.clients["inner"]) == {"other"}


async def test_a_value_with_an_any_of_any_type_passes():
    pv = SharedPV.mailbox(gallery()["our:odd"].current)
    async with served({"pv": pv}) as server, gateway_to(server) as gateway, client_to(gateway) as client:
        async with client.monitor("pv") as updates:
            await anext(updates)
            for thing in (1.5, "text", 7):
                changed = pv.current.clone()
                changed["anything"] = thing
                pv.post(changed)
                assert (await anext(updates))["anything"].value == thing


async def test_names_lists_what_is_known():
    async with served(gallery()) as server, gateway_to(server) as gateway, client_to(gateway) as client:
        assert list(server_of(gateway).names()) == []
        await client.get("our:int")
        answer = await client.rpc("server", {"op": "channels"}, server=direct(gateway))
        assert answer is not None
        assert list(answer["value"]) == ["our:int"]
