"""SharedPV of the p4p API: handlers of put and rpc, and what clients hear of their errors."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from typing import Any

import pytest

from appliance.errors import ApplianceError, OperationError
from appliance.p4p._errors import RemoteError
from appliance.p4p.nt import NTScalar
from appliance.p4p.server import _operation
from appliance.p4p.server import raw as on_server
from appliance.p4p.server.thread import Handler, SharedPV
from appliance.p4p.util import ThreadedWorkQueue, WorkQueue
from appliance.p4p.wrapper import Type
from appliance.threads import engine
from tests.helpers.native_client import PATIENCE_S, NativeClient
from tests.helpers.p4p_served import D, served


def test_a_refusal_is_the_clients_error() -> None:
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        if op.value() < 0:
            op.done(error="must not be negative")
        else:
            op.done()

    with served(pv=pv) as client:
        with pytest.raises(OperationError, match="must not be negative"):
            client.put("pv", -1)
        client.put("pv", 1)


def test_an_error_in_a_handler_is_told_and_logged_and_the_next_request_is_handled(caplog: Any) -> None:
    pv = SharedPV(nt=D, initial=1.0)
    errors: list[Exception] = [
        ZeroDivisionError("the handler's defect"),
        RemoteError("said to the client"),
        KeyError(),
    ]

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        if errors:
            raise errors.pop(0)
        op.done()

    with served(pv=pv) as client, caplog.at_level(logging.ERROR, logger="appliance.p4p"):
        with pytest.raises(OperationError, match="the handler's defect"):
            client.put("pv", 1)
        assert "ZeroDivisionError" in caplog.text
        caplog.clear()
        with pytest.raises(OperationError, match="said to the client"):
            client.put("pv", 1)
        assert not caplog.records
        with pytest.raises(OperationError, match="KeyError"):
            client.put("pv", 1)
        client.put("pv", 1)


def test_a_text_of_an_error_that_no_message_can_carry_is_written_out() -> None:
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        op.done(error="bad: \ud800")

    with served(pv=pv) as client, pytest.raises(OperationError, match=r"bad: \\ud800"):
        client.put("pv", 1)


def test_a_pv_without_handlers_is_read_only() -> None:
    with served(
        pv=SharedPV(nt=D, initial=1.0), base=SharedPV(nt=D, initial=1.0, handler=Handler())
    ) as client:
        with pytest.raises(OperationError, match="Put not supported"):
            client.put("pv", 1)
        with pytest.raises(OperationError, match="RPC not supported"):
            client.rpc("pv")
        with pytest.raises(OperationError, match="Not supported"):
            client.put("base", 1)
        with pytest.raises(OperationError, match="Not supported"):
            client.rpc("base")


def test_an_rpc_is_answered_also_by_a_closed_pv() -> None:
    pv = SharedPV()
    seen: list[Any] = []

    @pv.rpc
    def rpc(pv: SharedPV, op: Any) -> None:
        seen.append((op.value().tolist(), op.name(), op.pvRequest().tolist()))
        if op.value().get("fail"):
            op.done(error="failed")
        elif op.value().get("null"):
            op.done()
        else:
            op.done(NTScalar("i").wrap(42))

    def asked(**fields: Any) -> Any:
        return Type([(name, "i") for name in fields])(fields)._fields

    with served(pv=pv) as client:
        assert client.rpc("pv")["value"] == 42
        assert client.rpc("pv", asked(null=1)) is None
        with pytest.raises(OperationError, match="failed"):
            client.rpc("pv", asked(fail=1))
    assert seen[0] == ([], "pv", [("field", [])])
    assert seen[1][0] == [("null", 1)]


def test_a_handler_learns_who_asks() -> None:
    seen: list[Any] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        seen.append((op.name(), op.peer(), op.account(), op.roles(), op.credentials()))
        op.info("nothing is sent")
        op.warn("a text for the log")
        op.done()

    with served(pv=pv) as client:
        client.put("pv", 1)
    name, peer, account, roles, credentials = seen[0]
    assert name == "pv"
    assert peer.startswith("127.0.0.1:")
    assert account == credentials.account
    assert roles == set(credentials.roles)
    assert (credentials.method, credentials.is_tls) == ("ca", False)


def test_done_takes_what_p4p_takes() -> None:
    seen: list[str] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        for bad in ({"error": ""}, {"error": 5}, {"value": "no number"}, {"value": 5}):
            try:
                op.done(**bad)
            except (TypeError, ValueError) as error:
                seen.append(type(error).__name__)
        op.note = "a handler may keep something with its request"
        op.done()
        op.done()
        op.done(error="too late")

    called = SharedPV()

    @called.rpc
    def rpc(pv: SharedPV, op: Any) -> None:
        try:
            op.done(5)
        except TypeError as error:
            op.done(error=str(error))

    with served(pv=pv, called=called) as client:
        client.put("pv", 1)
        client.put("pv", 2)
        with pytest.raises(OperationError, match="must be a Value, not int"):
            client.rpc("called")
    assert seen == ["ValueError", "TypeError", "ValueError", "ValueError"] * 2


def test_a_request_that_its_handler_has_lost_fails_at_once(caplog: Any) -> None:
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        pass

    with served(pv=pv) as client, caplog.at_level(logging.WARNING, logger="appliance.p4p.server"):
        with pytest.raises(OperationError, match="without an answer"):
            client.put("pv", 1)
        assert "without calling done()" in caplog.text


def test_a_request_may_be_answered_later_and_from_another_thread() -> None:
    waiting: list[Any] = []
    there = threading.Event()
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        waiting.append(op)
        there.set()

    with served(pv=pv) as client:
        task = client.begin(client.context.put("pv", 5, timeout=PATIENCE_S))
        assert there.wait(PATIENCE_S)
        gc.collect()
        assert not task.done()
        waiting.pop().done()

        async def wait() -> None:
            await task

        engine().run(wait())


@pytest.mark.parametrize("how", ["cancel", "disconnect", "close"])
def test_a_handler_is_told_when_nobody_waits_any_more(how: str) -> None:
    there, cancelled = threading.Event(), threading.Event()
    kept: list[Any] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        op.onCancel(cancelled.set)
        kept.append(op)
        there.set()
        cancelled.wait(PATIENCE_S)  # the queue of this PV is busy: it is told all the same

    with served(pv=pv) as client:
        task = client.begin(client.context.put("pv", 5, timeout=PATIENCE_S))
        assert there.wait(PATIENCE_S)
        if how == "cancel":
            engine().soon(task.cancel)
        elif how == "close":
            pv.close()
        else:
            engine().run(client.context.close())
        assert cancelled.wait(PATIENCE_S)
        kept.pop().done()

        async def wait() -> None:
            await asyncio.gather(task, return_exceptions=True)

        engine().soon(task.cancel)
        engine().run(wait())


def test_a_request_that_was_answered_is_not_cancelled() -> None:
    cancelled: list[int] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        op.onCancel(lambda: cancelled.append(1))
        kept.append(op)
        op.done()

    kept: list[Any] = []
    with served(pv=pv) as client:
        client.put("pv", 1)
    _operation.server_queue.sync(PATIENCE_S)
    assert not cancelled


def test_an_error_of_what_a_cancelled_request_calls_is_logged(caplog: Any) -> None:
    there = threading.Event()
    kept: list[Any] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        op.onCancel(lambda: {}["missing"])
        kept.append(op)
        there.set()

    with caplog.at_level(logging.ERROR, logger="appliance.p4p"):
        with served(pv=pv) as client:
            client.begin(client.context.put("pv", 5, timeout=PATIENCE_S))
            assert there.wait(PATIENCE_S)
        _operation.server_queue().sync(PATIENCE_S)
    assert "missing" in caplog.text


def test_handlers_may_have_so_many_requests_and_no_more(monkeypatch: Any) -> None:
    there = threading.Event()
    kept: list[Any] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        kept.append(op)
        there.set()

    def begun() -> int:
        return _operation._begun - len(_operation._ended)

    with served(pv=pv) as client:
        gc.collect()  # what other tests have left
        monkeypatch.setattr(_operation, "MAX_OPERATIONS", begun() + 1)
        task = client.begin(client.context.put("pv", 5, timeout=PATIENCE_S))
        assert there.wait(PATIENCE_S)
        with pytest.raises(ApplianceError, match="requests in progress; try again later"):
            client.put("pv", 6)
        kept.pop().done()

        async def wait() -> None:
            await task

        engine().run(wait())
        there.clear()
        task = client.begin(client.context.put("pv", 7, timeout=PATIENCE_S))
        assert there.wait(PATIENCE_S)
        kept.pop().done()
        engine().run(wait())


def test_a_full_queue_refuses_the_request(caplog: Any) -> None:
    queue = WorkQueue(maxsize=1)
    pv = SharedPV(nt=D, initial=1.0, queue=queue)
    queue.push(lambda: None)
    pv.put(lambda pv, op: op.done())
    with (
        served(pv=pv) as client,
        caplog.at_level(logging.ERROR, logger="appliance.p4p"),
        pytest.raises(OperationError, match="log"),
    ):
        client.put("pv", 1)
    assert "Full" in caplog.text


def test_handlers_run_in_the_queue_that_was_given() -> None:
    names: list[str] = []
    with ThreadedWorkQueue(name="mine", maxsize=0) as queue:
        pv = SharedPV(nt=D, initial=1.0, queue=queue)

        @pv.put
        def put(pv: SharedPV, op: Any) -> None:
            names.append(threading.current_thread().name)
            op.done()

        with served(pv=pv) as client:
            client.put("pv", 1)
    assert names == ["mine[0]"]


def test_a_handler_of_the_simplest_kind_may_wait_for_pvaccess() -> None:
    pv = on_server.SharedPV(nt=D, initial=1.0)
    client: NativeClient

    @pv.put
    def put(pv: Any, op: Any) -> None:
        pv.post(client.get("other")["value"])
        op.done()

    with served(pv=pv, other=SharedPV(nt=D, initial=7.0)) as client:
        client.put("pv", 1)
        assert client.get("pv")["value"] == 7.0
