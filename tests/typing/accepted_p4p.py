"""A program that is written for p4p, with our package in its place: mypy and pyright accept it in their strict modes."""

from __future__ import annotations

import asyncio
from typing import Any

from appliance.p4p import Type, Value, set_debug
from appliance.p4p.client.asyncio import Context as AsyncContext
from appliance.p4p.client.thread import Context, Disconnected, RemoteError
from appliance.p4p.nt import NTURI, NTEnum, NTScalar, NTTable
from appliance.p4p.rpc import quickRPCServer, rpc
from appliance.p4p.server import DynamicProvider, Server, ServerOperation, StaticProvider
from appliance.p4p.server.thread import SharedPV

pv = SharedPV(nt=NTScalar("d", display=True), initial=0.0)


@pv.put
def handle(pv: SharedPV, op: ServerOperation) -> None:
    pv.post(op.value(), severity=1)
    op.done()


class Adder:
    @rpc(NTScalar("d"))
    def add(self, lhs: Any, rhs: Any) -> float:
        return float(lhs) + float(rhs)


def show(value: Any) -> None:
    print(value)


def main() -> None:
    provider = StaticProvider("demo")
    provider.add("demo:pv", pv)
    with Server(providers=[provider, {"other": pv}], isolate=True) as server:
        with Context("pva", conf=server.conf(), useenv=False, nt=False) as ctxt:
            try:
                value = ctxt.get("demo:pv", timeout=2.0)
            except (TimeoutError, RemoteError, Disconnected) as error:
                print(error)
                return
            ctxt.put(["demo:pv"], [1.0], throw=False)
            ctxt.rpc("demo:add", NTURI([("lhs", "d")]).wrap("demo:add", kws={"lhs": 1.0}))
            subscription = ctxt.monitor("demo:pv", show, notify_disconnect=True, limitHz=10)
            subscription.close()
            print(value)
    quickRPCServer(provider="adder", prefix="demo:", target=Adder(), isolate=True)
    kind = Type([("x", "d")], id="demo:x")
    made = Value(kind, {"x": 1.5})
    print(made.x, made["x"], made.changedSet(), NTEnum().wrap(1), NTTable([("a", "d")]), DynamicProvider)
    set_debug(10)


async def amain() -> None:
    with AsyncContext("pva") as ctxt:
        print(await ctxt.get("demo:pv"))


main()
asyncio.run(amain())
