"""A program with mistakes: mypy and pyright refuse each line that says ``# wrong``, and no other. It is checked, and not run."""

from __future__ import annotations

import asyncio

from appliance import FLOAT64, Context, NTScalar, Server, SharedPV, Value, blocking
from appliance.server import Operation


def accept(pv: SharedPV, operation: Operation) -> None:
    pv.post(operation.name)


def script() -> None:
    with blocking.Context() as ctx:
        await_me = ctx.get("demo:temperature", wait=3.0)  # wrong
        text: str = ctx.get("demo:temperature")  # wrong
        for value in ctx.monitor("demo:temperature"):
            print(value.why, text, await_me)  # wrong


async def main() -> None:
    async with Context(retries=3) as ctx:  # wrong
        text: str = await ctx.get("demo:temperature")  # wrong
        values: list[str] = await ctx.get(["demo:temperature"])  # wrong
        await ctx.get("demo:temperature", timeout="2 s")  # wrong
        await ctx.put("demo:setpoint")  # wrong
        await ctx.fetch("demo:setpoint")  # wrong
        async for value in ctx.monitor("demo:temperature"):
            print(value.why)  # wrong
        print(text, values)
    pv = SharedPV(NTScalar("double"))  # wrong
    pv = SharedPV(Value(NTScalar(FLOAT64)), on_put=accept)  # wrong
    server = Server()
    server.add_pv(pv, "demo:setpoint")  # wrong


script()
asyncio.run(main())
