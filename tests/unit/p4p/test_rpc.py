"""Methods of Python objects as PVs: dispatchers, proxies, and what goes wrong."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.errors import OperationError
from appliance.p4p._errors import RemoteError
from appliance.p4p.nt import NTURI, NTScalar
from appliance.p4p.rpc import (
    MASARDispatcher,
    NTURIDispatcher,
    RPCDispatcherBase,
    RPCProxyBase,
    WorkQueue,
    quickRPCServer,
    rpc,
    rpccall,
    rpcproxy,
)
from appliance.p4p.server import Server
from appliance.p4p.util import ThreadedWorkQueue
from appliance.p4p.wrapper import Type, Value
from appliance.threads import engine
from tests.helpers.native_client import PATIENCE_S, NativeClient


class Service:
    @rpc(NTScalar("d"))
    def add(self, lhs: Any, rhs: Any) -> float:
        return float(lhs) + float(rhs)

    @rpc([("result", "s")])
    def shout(self, text: str) -> dict[str, str]:
        return {"result": text.upper()}

    @rpc(Type([("count", "i")]))
    def count(self) -> Any:
        return {"count": 3}

    @rpc()
    def whole(self) -> Value:
        return NTScalar("i").wrap(5)

    @rpc(NTScalar("d"))
    def refuse(self) -> float:
        raise RemoteError("not today")

    @rpc(NTScalar("d"))
    def defect(self) -> float:
        raise LookupError("the method's defect")

    @rpc([("result", "i")])
    def misfit(self) -> dict[str, str]:
        return {"result": "no number"}

    def hidden(self) -> None:
        raise AssertionError("it is not marked")


@pytest.fixture
def served() -> Iterator[tuple[Service, NativeClient]]:
    service = Service()
    with ThreadedWorkQueue(maxsize=1) as queue:
        dispatcher = NTURIDispatcher(queue, target=service, prefix="rpc:", name="service")
        with Server(providers=[dispatcher], isolate=True) as server, NativeClient(server.conf()) as client:
            yield service, client


def test_marked_methods_can_be_called(served: Any) -> None:
    _, client = served
    assert client.rpc("rpc:add", {"lhs": 1, "rhs": "2.5"})["value"] == 3.5
    assert client.rpc("rpc:shout", {"text": "hello"})["result"] == "HELLO"
    assert client.rpc("rpc:count", {})["count"] == 3
    assert client.rpc("rpc:whole", {})["value"] == 5


def test_names_of_marked_methods_only_are_pvs() -> None:
    dispatcher = NTURIDispatcher(WorkQueue(), target=Service(), prefix="rpc:")
    marked = (
        Service.add,
        Service.shout,
        Service.count,
        Service.whole,
        Service.refuse,
        Service.defect,
        Service.misfit,
    )
    assert dispatcher.channels == {f"rpc:{method.__name__}" for method in marked}
    assert not hasattr(Service.hidden, "_reply_Type")
    assert dispatcher.testChannel("rpc:add")
    assert dispatcher.makeChannel("rpc:add", "") is dispatcher.makeChannel("rpc:count", "")
    assert dispatcher.makeChannel("rpc:hidden", "") is None


def test_only_a_remote_error_is_told_in_words(served: Any, caplog: Any) -> None:
    _, client = served
    with pytest.raises(OperationError, match="not today"):
        client.rpc("rpc:refuse", {})
    assert "not today" not in caplog.text
    with caplog.at_level(logging.ERROR, logger="appliance.p4p"):
        with pytest.raises(OperationError) as caught:
            client.rpc("rpc:defect", {})
        assert "the method's" not in str(caught.value)
        assert "the method's defect" in caplog.text
        with pytest.raises(OperationError, match="Error encoding reply"):
            client.rpc("rpc:misfit", {})
        for bad in ({"lhs": 1}, {"lhs": 1, "rhs": 2, "more": 3}):
            with pytest.raises(OperationError, match="Error handling RPC"):
                client.rpc("rpc:add", bad)
        with pytest.raises(OperationError, match="Error handling RPC"):
            client.rpc("rpc:add")
    assert client.rpc("rpc:add", {"lhs": 1, "rhs": 2})["value"] == 3.0


def test_calls_beyond_the_queue_are_refused() -> None:
    queue = WorkQueue(maxsize=1)
    dispatcher = NTURIDispatcher(queue, target=Service(), prefix="rpc:")
    with Server(providers=[dispatcher], isolate=True) as server, NativeClient(server.conf()) as client:

        async def both() -> list[Any]:
            calls = [client.context.rpc("rpc:count", {}, timeout=PATIENCE_S) for _ in range(2)]
            tasks = [asyncio.ensure_future(call) for call in calls]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            threading.Thread(target=queue.handle).start()
            return await asyncio.gather(*tasks, return_exceptions=True)

        outcomes = engine().run(both())
        queue.interrupt()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["RemoteError", "Value"]
    assert any("Too many concurrent RPC calls" in str(outcome) for outcome in outcomes)


def test_a_request_of_masar_names_the_method() -> None:
    request = Type([("function", "s"), ("name", "as"), ("value", "as")])
    with ThreadedWorkQueue() as queue:
        dispatcher = MASARDispatcher(queue, target=Service(), channels={"masar"}, name="masar")
        with Server(providers=[dispatcher], isolate=True) as server, NativeClient(server.conf()) as client:
            asked = request({"function": "add", "name": ["lhs", "rhs"], "value": ["1", "2"]})
            assert client.rpc("masar", asked._fields)["value"] == 3.0


def test_a_dispatcher_needs_a_way_to_read_requests() -> None:
    with pytest.raises(NotImplementedError):
        RPCDispatcherBase(WorkQueue()).getMethodNameArgs(Value(Type([])))


def test_a_dispatcher_is_freed_with_its_server() -> None:
    queue = WorkQueue()
    dispatcher = NTURIDispatcher(queue, target=Service(), prefix="rpc:")
    left = weakref.ref(dispatcher)
    with Server(providers=[dispatcher], isolate=True):
        pass
    del dispatcher
    gc.collect()
    assert left() is None


def test_a_type_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="rtype"):
        rpc(5)


def test_a_server_of_methods_runs_until_it_is_interrupted() -> None:
    program = (
        "import logging, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have had it ignored
        "from appliance.p4p.rpc import quickRPCServer, rpc\n"
        "from appliance.p4p.nt import NTScalar\n"
        "class Service:\n"
        "    @rpc(NTScalar('d'))\n"
        "    def half(self, of): return of / 2\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')\n"
        "quickRPCServer('service', 'rpc:', Service(), isolate=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert any("methods are served" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    with pytest.raises(AssertionError, match="isolate"):
        quickRPCServer("service", "rpc:", Service(), conf={}, isolate=True)


# -- proxies -----------------------------------------------------------------------------------------


class Called:
    """Stands for a client Context: what it was asked is returned."""

    name = "fake"

    def rpc(self, *args: Any, **kws: Any) -> Any:
        return args, kws


@rpcproxy
class Proxy:
    def __init__(self, mine: int = 5) -> None:
        self.mine = mine

    @rpccall("%sfoo", request="field(value)")
    def foo(a: Any = "i", b: Any = "s") -> None:  # type: ignore[misc]  # noqa: N805
        """Nothing."""

    @rpccall("%sbar")
    def bar() -> None:  # type: ignore[misc]
        """Nothing."""


def test_a_proxy_sends_arguments_as_an_nturi() -> None:
    proxy = Proxy(mine=3, context=Called(), format="pv:")
    assert proxy.mine == 3
    (name, uri), kws = proxy.foo(4, b="one")
    assert name == "pv:foo"
    assert uri.tolist() == [
        ("scheme", "fake"),
        ("authority", ""),
        ("path", "pv:foo"),
        ("query", [("a", 4), ("b", "one")]),
    ]
    assert kws == {"request": "field(value)", "timeout": 3.0, "throw": True}
    (_, uri), _ = proxy.foo(4)
    assert uri.tolist()[3] == ("query", [("a", 4)])
    (name, uri), kws = proxy.bar()
    assert (name, uri.tolist()[3], kws["request"]) == ("pv:bar", ("query", []), None)


def test_a_proxy_can_be_adjusted() -> None:
    proxy = Proxy(context=Called(), format="pv:")
    proxy.timeout, proxy.throw, proxy.authority, proxy.scheme = 1.0, False, "here", "pva"
    (_, uri), kws = proxy.bar()
    assert uri.tolist()[:2] == [("scheme", "pva"), ("authority", "here")]
    assert (kws["timeout"], kws["throw"]) == (1.0, False)
    assert isinstance(proxy, RPCProxyBase)


def test_a_proxy_refuses_what_it_cannot_send() -> None:
    with pytest.raises(AssertionError, match="context"):
        Proxy()
    with pytest.raises(ValueError, match="Unable to wrap"):
        Proxy(context=Called(), format="pv:").foo("no number")

    def proxied(method: Any) -> None:
        rpcproxy(type("Bad", (), {"method": rpccall("pv")(method)}))

    for bad in (lambda self: None, lambda *args: None, lambda **kws: None, lambda a="no such code": None):
        with pytest.raises(TypeError, match="proxy method"):
            proxied(bad)


def test_proxy_and_dispatcher_fit_together(served: Any) -> None:
    _, client = served
    uri = NTURI([("lhs", "d"), ("rhs", "d")]).wrap("rpc:add", kws={"lhs": 1, "rhs": 1}, scheme="pva")
    assert client.rpc("rpc:add", uri._fields)["value"] == 2.0
