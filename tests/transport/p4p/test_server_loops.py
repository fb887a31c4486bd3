"""SharedPV of the p4p API: handlers that are coroutines, on an event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import OperationError
from appliance.p4p._errors import RemoteError
from appliance.p4p.server import Server, StaticProvider
from appliance.p4p.server import asyncio as on_loop
from appliance.p4p.server.thread import SharedPV
from appliance.threads import engine
from tests.helpers.native_client import PATIENCE_S, NativeClient
from tests.helpers.p4p_served import Comings, D


def on_a_loop(main: Callable[[], Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await main()

    return asyncio.run(limited())


def test_coroutines_handle_requests_of_one_pv_at_the_same_time() -> None:
    async def main() -> list[Any]:
        pv = on_loop.SharedPV(nt=D, initial=0.0)
        both = asyncio.Event()
        waiting: list[float] = []

        @pv.put
        async def put(pv: Any, op: Any) -> None:
            waiting.append(float(op.value()))
            if len(waiting) == 2:
                both.set()
            await both.wait()
            pv.post(max(waiting))
            op.done()

        @pv.rpc
        def rpc(pv: Any, op: Any) -> None:
            op.done(D.wrap(7.0))

        def work() -> list[Any]:
            with NativeClient(server.conf()) as one, NativeClient(server.conf()) as two:
                tasks = [
                    client.begin(client.context.put("pv", number, timeout=PATIENCE_S))
                    for number, client in enumerate((one, two), 1)
                ]

                async def wait() -> None:
                    await asyncio.gather(*tasks)

                engine().run(wait())
                return [one.get("pv")["value"], two.rpc("pv")["value"]]

        with Server(providers=[{"pv": pv}], isolate=True) as server:
            return await asyncio.to_thread(work)

    assert on_a_loop(main) == [2.0, 7.0]


def test_an_error_of_a_coroutine_is_told_and_logged(caplog: Any) -> None:
    async def main() -> list[str]:
        pv = on_loop.SharedPV(nt=D, initial=0.0)
        outcomes: list[BaseException] = [
            ZeroDivisionError("the handler's defect"),
            RemoteError("said to the client"),
            asyncio.CancelledError(),
        ]

        @pv.put
        async def put(pv: Any, op: Any) -> None:
            await asyncio.sleep(0)
            raise outcomes.pop(0)

        @pv.rpc
        def rpc(pv: Any, op: Any) -> None:
            raise ValueError("no coroutine")

        def work() -> list[str]:
            said = []
            with NativeClient(server.conf()) as client:
                for _ in range(3):
                    with pytest.raises(OperationError) as caught:
                        client.put("pv", 1)
                    said.append(str(caught.value))
                with pytest.raises(OperationError) as caught:
                    client.rpc("pv")
                said.append(str(caught.value))
            return said

        with Server(providers=[{"pv": pv}], isolate=True) as server:
            return await asyncio.to_thread(work)

    with caplog.at_level(logging.ERROR, logger="appliance.p4p"):
        said = on_a_loop(main)
    for part, text in zip(("defect", "said to", "cancelled", "no coroutine"), said, strict=True):
        assert part in text
    assert "ZeroDivisionError" in caplog.text
    assert "said to" not in caplog.text


def test_closing_a_pv_on_a_loop_can_be_awaited() -> None:
    async def main() -> list[str]:
        comings = Comings()
        pv = on_loop.SharedPV(nt=D, initial=0.0, handler=comings)
        begun, leave = asyncio.Event(), asyncio.Event()

        @pv.put
        async def put(pv: Any, op: Any) -> None:
            begun.set()
            await leave.wait()
            comings.log.append("put")
            op.done()

        with Server(providers=[{"pv": pv}], isolate=True) as server:
            client = NativeClient(server.conf())
            await asyncio.to_thread(client.__enter__)
            task = client.begin(client.context.put("pv", 1, timeout=PATIENCE_S))
            await begun.wait()
            closing = pv.close(sync=True)
            asyncio.get_running_loop().call_soon(leave.set)
            await closing
            engine().soon(task.cancel)
            await asyncio.to_thread(client.__exit__)
            assert pv.close() is None
        return comings.log

    log = on_a_loop(main)
    assert set(log[:3]) == {"first", "put", "last"}


def test_a_pv_for_an_event_loop_needs_one() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        on_loop.SharedPV(nt=D)


def test_a_handler_on_a_loop_that_has_ended_is_an_error_of_the_client() -> None:
    async def main() -> Any:
        pv = on_loop.SharedPV(nt=D, initial=0.0)
        pv.put(lambda pv, op: op.done())
        return pv

    provider = StaticProvider()
    provider.add("pv", asyncio.run(main()))
    with Server(providers=[provider], isolate=True) as server, NativeClient(server.conf()) as client:
        assert client.get("pv")["value"] == 0.0
        with pytest.raises(OperationError, match="log"):
            client.put("pv", 1)


def test_cothread_is_refused_with_a_sentence() -> None:
    with pytest.raises(ImportError, match=r"use server\.thread or server\.asyncio"):
        __import__("appliance.p4p.server.cothread")


def test_a_forked_child_that_leaves_a_server_ends_with_its_own_status() -> None:
    pv = SharedPV(nt=D, initial=1.0)
    server = Server(providers=[{"pv": pv}], isolate=True)
    child = os.fork()
    if not child:
        status = 1
        try:
            with server:
                pass
            status = 3
        finally:
            os._exit(status)
    _, how = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(how) == 3
    with NativeClient(server.conf()) as client:
        assert client.get("pv")["value"] == 1.0
    server.stop()
