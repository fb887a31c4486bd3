"""A program of a user of the package: mypy and pyright accept it in their strict modes. It is checked, and not run."""

from __future__ import annotations

import asyncio
from typing import assert_type

from appliance import (
    FLOAT64,
    INT32,
    STRING,
    ApplianceError,
    ArrayType,
    ClientConfig,
    Context,
    NTEnum,
    NTScalar,
    NTTable,
    OperationTimeoutError,
    Server,
    SharedPV,
    StructType,
    Value,
    blocking,
    resolve_client,
)
from appliance.client import Connected, Credentials, Disconnected, Info, Monitor
from appliance.pvdata import View, render
from appliance.server import ALL_RIGHTS, NO_RIGHTS, Handler, Operation, Rights, Subscription, WildcardSource


async def read(ctx: Context) -> float:
    value = await ctx.get("demo:temperature", timeout=2.0)
    assert_type(value, Value)
    several = await ctx.get(["demo:temperature", "demo:setpoint"])
    assert_type(several, list[Value])
    for result in await ctx.get(["demo:temperature", "no:such"], return_exceptions=True):
        if isinstance(result, ApplianceError):
            print(result)
        else:
            print(render(result), result.changed, result.to_dict())
    temperature: float = value["value"]
    alarm = value["alarm"]
    if isinstance(alarm, View):
        print(alarm.keys())
    return temperature


async def write(ctx: Context) -> None:
    await ctx.put("demo:setpoint", 4.5)
    await ctx.put("demo:setpoint", {"value": 4.5}, get=True)
    try:
        answer = await ctx.rpc("demo:sum", {"a": 1, "b": 2})
    except OperationTimeoutError:
        return
    assert_type(answer, Value | None)


async def watch(ctx: Context) -> None:
    async with ctx.monitor("demo:temperature") as updates:
        assert_type(updates, Monitor[Value])
        async for value in updates:
            assert_type(value, Value)
            break
    async with ctx.monitor("demo:temperature", notify=True, max_rate=10) as news:
        async for item in news:
            if isinstance(item, Connected):
                print(item.server)
            elif isinstance(item, Disconnected):
                print(item.why)
            else:
                assert_type(item, Value)


async def look(ctx: Context) -> Credentials:
    info = await ctx.info("demo:temperature")
    assert_type(info, Info)
    async for server in ctx.discover():
        print(server.server, server.online)
        break
    return info.peer


def accept(pv: SharedPV, operation: Operation, value: Value) -> None:
    print(operation.peer.account, operation.name)
    pv.post(value)


async def add(pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
    result = Value(NTScalar(FLOAT64))
    result["value"] = 0.0 if argument is None else argument["query.a"] + argument["query.b"]
    return result


class Policy:
    """Who may do what: the type fits because the method does."""

    def rights(self, name: str, peer: Credentials) -> Rights:
        return ALL_RIGHTS if peer.is_tls else NO_RIGHTS


class Clock(Handler):
    """A handler of one's own."""

    def init(self, operation: Operation) -> None:
        operation.ready(NTScalar(INT32))

    def get(self, operation: Operation) -> None:
        operation.reply(Value(NTScalar(INT32), 1))

    def subscribe(self, subscription: Subscription) -> None:
        subscription.fail("read it")


def make(name: str, parts: tuple[str, ...]) -> Handler | None:
    return Clock() if parts else None


async def serve() -> None:
    table = NTTable([("name", STRING), ("position", FLOAT64)]).create()
    point = StructType([("x", FLOAT64), ("y", ArrayType(FLOAT64))], "example:point")
    server = Server(policy=Policy())
    server.add_pv("demo:setpoint", SharedPV(Value(NTScalar(FLOAT64), 1.0), on_put=accept))
    server.add_pv("demo:sum", SharedPV(on_rpc=add))
    server.add_pv("demo:table", SharedPV(table))
    server.add_pv("demo:point", SharedPV.mailbox(point))
    server.add_pv("demo:choice", SharedPV.mailbox(Value(NTEnum(), {"value.choices": ["off", "on"]})))
    server.add_source("clocks", WildcardSource("demo:clock:*", make), priority=1)
    async with server:
        print(server.tcp_port, list(server.names()))
        await server.wait_closed()


def script() -> None:
    with blocking.Context(require_tls=True) as ctx:
        assert_type(ctx.get("demo:temperature"), Value)
        assert_type(ctx.get(["demo:temperature"]), list[Value])
        ctx.put("demo:setpoint", 4.5)
        with ctx.monitor("demo:temperature", max_rate=0.5) as updates:
            assert_type(updates, blocking.Monitor[Value])
            assert_type(updates.read(timeout=2.0), Value)
            for value in updates:
                assert_type(value, Value)
                break


async def main() -> None:
    settings = resolve_client({"addr_list": "127.0.0.1"}).config
    assert_type(settings, ClientConfig)
    async with Context(settings, require_tls=True) as ctx:
        print(await read(ctx))
        await write(ctx)
        await watch(ctx)
        print((await look(ctx)).account)
    await serve()


if __name__ == "__main__":
    asyncio.run(main())
    script()
