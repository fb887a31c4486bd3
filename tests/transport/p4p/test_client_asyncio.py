"""The client for event loops with p4p's API: on the caller's own loop, without threads."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import warnings
from contextlib import asynccontextmanager

import pytest

from appliance.errors import OperationError
from appliance.p4p import Value
from appliance.p4p.client.asyncio import Context, Disconnected, RemoteError, timesout
from appliance.p4p.nt import NTURI
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value as NativeValue
from appliance.server.server import Server
from appliance.server.sharedpv import SharedPV
from tests.helpers.live import HOST, number, server_config, until
from tests.helpers.served import served

PATIENCE_S = 30.0


def refuse(*_: object) -> None:
    raise OperationError("no, not today")


def call(pv: SharedPV, operation: object, argument: NativeValue | None) -> NativeValue:
    query = argument["query"] if argument is not None and "query" in argument else {"lhs": 0, "rhs": -1}
    return NativeValue(NTScalar(FLOAT64), {"value": float(query["lhs"] + query["rhs"])})


class Site:
    def __init__(self, server: Server, pv: SharedPV) -> None:
        self.server = server
        self.pv = pv
        self.conf = {
            "EPICS_PVA_ADDR_LIST": f"{HOST}:{server.udp_port}",
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        }


@asynccontextmanager
async def site():
    pv = number(1.5)
    initial = NativeValue(NTScalar(FLOAT64), {"value": 0.0})
    server = Server(server_config())
    for name, each in {
        "a": pv,
        "b": number(2.5),
        "refuses": SharedPV(initial, on_put=refuse),
        "adder": SharedPV(initial, on_rpc=call),
    }.items():
        server.add_pv(name, each)
    async with server:
        yield Site(server, pv)


def collect(ctxt: Context, name: str, **options: object):
    came: asyncio.Queue = asyncio.Queue()
    return came, ctxt.monitor(name, came.put, **options)


async def test_operations_are_coroutines_on_the_loop_that_runs():
    before = set(threading.enumerate())
    async with asyncio.timeout(PATIENCE_S), site() as there:
        with Context("pva", conf=there.conf, useenv=False) as ctxt:
            assert await ctxt.get("a") == 1.5
            assert await ctxt.get(["b", "a"]) == [2.5, 1.5]
            assert await ctxt.get("a", request="field(alarm)") == 0.0
            await ctxt.put("a", 3.5)
            await ctxt.put(["a", "b"], [4.5, {"value": 5.5}], wait=True)
            assert await ctxt.get(["a", "b"]) == [4.5, 5.5]
            result = await ctxt.rpc("adder", NTURI([("lhs", "d"), ("rhs", "d")]).wrap("adder", (1, 2)))
            assert result == 3.0
            assert await ctxt.rpc("adder", None) == -1.0
            ctxt.hurryUp()
            ctxt.disconnect()
            assert await ctxt.get("a") == 4.5
    started = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in started if not name.startswith("asyncio_")}, (
        "only getaddrinfo has a thread, asyncio's own"
    )


async def test_errors_are_those_of_p4p():
    async with asyncio.timeout(PATIENCE_S), site() as there:
        with Context("pva", conf=there.conf, useenv=False) as ctxt:
            with pytest.raises(RemoteError, match=r"^no, not today$"):
                await ctxt.put("refuses", 1.0)
            with pytest.raises(RemoteError):
                await ctxt.get(["a", "a"], request=["field(nosuch)", None])
            with pytest.raises(ValueError, match="hello"):
                await ctxt.put("a", "hello")
            with pytest.raises(TypeError):
                await ctxt.get(5)
            with pytest.raises(AssertionError):
                await ctxt.get(["a", "b"], request=["field(value)"])
            with pytest.raises(AssertionError):
                await ctxt.put(["a", "b"], [1])
            with pytest.raises(ValueError, match="exclusive"):
                await ctxt.put("a", 1, request="field()", wait=True)
            with pytest.raises(AssertionError, match="coroutine"):
                ctxt.monitor("a", print)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ctxt.get("nowhere")
            assert await ctxt.get("a") == 1.5
        with pytest.raises(RuntimeError, match="Context closed"):
            await ctxt.get("a")


async def test_a_subscription_tells_of_values_and_of_the_channel():
    async with asyncio.timeout(PATIENCE_S), site() as there:
        with Context("pva", conf=there.conf, useenv=False) as ctxt:
            came, subscription = collect(ctxt, "a", notify_disconnect=True)
            assert type(await came.get()) is Disconnected
            assert await came.get() == 1.5
            there.pv.post(2.0)
            assert await came.get() == 2.0
            there.pv.close()
            assert isinstance(await came.get(), Disconnected)
            there.pv.open(NativeValue(NTScalar(FLOAT64), {"value": 3.0}))
            assert await came.get() == 3.0
            assert not subscription.done
            assert subscription.empty
            with pytest.raises(AssertionError):
                await subscription.wait_closed()
            subscription.close()
            await subscription.wait_closed()
            assert subscription.done
            assert came.empty()


async def test_a_slow_callback_gets_the_latest_value_and_one_that_fails_ends_its_subscription(caplog):
    async with asyncio.timeout(PATIENCE_S), site() as there:
        with Context("pva", conf=there.conf, useenv=False, nt=False) as ctxt:
            go_on = asyncio.Event()
            came: list[Value] = []

            async def slow(value: Value) -> None:
                came.append(value.value)
                await go_on.wait()

            with ctxt.monitor("a", slow):
                await until(lambda: came)
                for index in range(50):
                    there.pv.post(float(index))
                    await ctxt.get("a")
                go_on.set()
                await until(lambda: came[-1] == 49.0)
            assert came == [1.5, 0.0, 1.0, 2.0, 49.0]

            async def fails(value: object) -> None:
                raise ArithmeticError("of the callback")

            subscription = ctxt.monitor("a", fails)
            await until(lambda: subscription.done)
            assert "ArithmeticError: of the callback" in caplog.text
            with caplog.at_level(logging.ERROR):
                subscription = ctxt.monitor("a", fails, request="field(nosuch)")
                await until(lambda: "the subscription to a failed" in caplog.text)
                await until(lambda: subscription.done)


async def test_a_cancelled_operation_leaves_nothing_behind():
    async with asyncio.timeout(PATIENCE_S), site() as there:
        with Context("pva", conf=there.conf, useenv=False) as ctxt:
            await ctxt.get("a")
            task = asyncio.create_task(ctxt.get(["nowhere", "not there"]))
            native = ctxt._ctxt.running()
            await until(lambda: {"nowhere", "not there"} <= {each.name for each in native._links.channels})
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            assert not any(each.requests for each in native._links.channels)


async def test_timesout_bounds_what_it_decorates():
    @timesout()
    async def quick(value: int) -> int:
        return value

    @timesout(deftimeout=0.01)
    async def slow() -> None:
        await asyncio.sleep(60)

    assert await quick(4) == 4
    assert await quick(5, timeout=None) == 5
    with pytest.raises(TimeoutError):
        await slow()
    with pytest.raises(AssertionError):
        timesout()(print)


def test_one_context_serves_one_loop_after_the_other_and_nothing_complains_at_the_end(caplog):
    """As a program with several ``asyncio.run`` does; the last one ends before the context has closed everything."""
    with served(a=number(1.5)) as there, warnings.catch_warnings():
        warnings.simplefilter("error")
        ctxt = Context("pva", conf=there.conf, useenv=False)

        async def use() -> float:
            async with asyncio.timeout(PATIENCE_S):
                return await ctxt.get("a")

        async def close() -> None:
            await use()
            ctxt.close()

        assert asyncio.run(use()) == 1.5
        assert asyncio.run(use()) == 1.5
        asyncio.run(close())
        gc.collect()
        with pytest.raises(RuntimeError, match="Context closed"):
            asyncio.run(use())

        loop = asyncio.new_event_loop()
        ctxt = Context("pva", conf=there.conf, useenv=False)
        assert loop.run_until_complete(use()) == 1.5
        ctxt.close()
        loop.close()
        gc.collect()
        there.do(until, lambda: not there.server.peers)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_keychain_that_cannot_be_used_fails_the_first_operation():
    with Context("pva", conf={"EPICS_PVA_TLS_KEYCHAIN": "/there/is/no/such/file.p12"}, useenv=False) as ctxt:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"file\.p12"):
                await ctxt.get("a")
