"""A client of our own for tests that block: it runs on the event loop of the package `appliance.p4p`."""

from __future__ import annotations

import asyncio
import queue
from typing import Any, Self

from appliance.certmon.endpoints import open_client
from appliance.client.context import Context
from appliance.config.pva import resolve_client
from appliance.threads import engine

PATIENCE_S = 30.0


class NativeClient:
    """A client with the settings that a server's ``conf()`` gave."""

    def __init__(self, settings: dict[str, str], **more: str) -> None:
        self._settings = {**settings, **more}
        self.context: Context
        self._tasks: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        config = resolve_client(environ=self._settings).config
        self._opened = open_client(config)
        self.context = engine().run(self._opened.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        async def close() -> None:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks.clear()
            await self._opened.__aexit__(None, None, None)

        engine().run(close())

    def get(self, name: str, **more: Any) -> Any:
        return engine().run(self.context.get(name, timeout=PATIENCE_S, **more))

    def put(self, name: str, value: Any, **more: Any) -> None:
        engine().run(self.context.put(name, value, timeout=PATIENCE_S, **more))

    def rpc(self, name: str, argument: Any = None) -> Any:
        return engine().run(self.context.rpc(name, argument, timeout=PATIENCE_S))

    def info(self, name: str) -> Any:
        return engine().run(self.context.info(name, timeout=PATIENCE_S))

    def begin(self, coroutine: Any) -> asyncio.Task[Any]:
        """Begin an operation on the loop."""

        def start() -> asyncio.Task[Any]:
            return engine().loop.create_task(coroutine)

        return engine().call(start)

    def watch(self, name: str, request: str = "", **more: Any) -> queue.Queue[Any]:
        """Subscribe; what comes is put into the queue."""
        items: queue.Queue[Any] = queue.Queue()

        async def run() -> None:
            async with self.context.monitor(name, request, **more) as updates:
                async for update in updates:
                    items.put(update)

        self._tasks.append(self.begin(run()))
        return items


def taken(items: queue.Queue[Any]) -> Any:
    """The next item; it has all the time that a busy machine may need."""
    return items.get(timeout=PATIENCE_S)
