"""The records of a running IOC, as tests use them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from appliance.client import Context
from tests.helpers.ioc_process import IocProcess


class Records:
    """The records of a running IOC, through a client."""

    def __init__(self, ioc: IocProcess, client: Context) -> None:
        self.ioc = ioc
        self.client = client

    async def get(self, name: str) -> Any:
        value = await self.client.get(name, timeout=30)
        found = value["value"]
        return value["value.index"] if hasattr(found, "type") else found

    async def put(self, name: str, value: Any) -> None:
        await self.client.put(name, value, "record[block=true]", timeout=30)

    async def process(self, name: str) -> None:
        await self.put(f"{name}.PROC", 1)

    async def becomes(self, name: str, wanted: Any) -> None:
        """Wait until a PV has a value, or a value that fits."""
        fits: Callable[[Any], bool] = wanted if callable(wanted) else lambda found: bool(found == wanted)
        async with asyncio.timeout(30), self.client.monitor(name) as updates:
            async for value in updates:
                found = value["value"]
                if fits(value["value.index"] if hasattr(found, "type") else found):
                    return

    async def connected(self, *names: str) -> None:
        """Wait until the links of records are connected."""
        for name in names:
            await self.shows("dbpvar", name, 2, f"{name}: connected", r"  1/1 channels")

    async def shows(self, command: str, name: str, level: int, what: str, pattern: str) -> str:
        """Repeat a command of the shell until it prints a pattern; return its output."""
        async with asyncio.timeout(30):
            while True:
                before = len(self.ioc.log)
                self.ioc.type(f'{command} "{name}" {level}\n')
                await self.ioc.printed(r"\d+ links\n(?s:.*)epics> ", before)
                if re.search(pattern, self.ioc.log[before:]):
                    return self.ioc.log[before:]
                await asyncio.sleep(0.02)
