"""Inputs of access security that live on other servers: followed as a client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final

from appliance.certmon.wiring import open_client
from appliance.client import Context, Disconnected
from appliance.config.pva import resolve_client
from appliance.errors import ApplianceError

__all__ = ["ExternalInputs"]

_log: Final = logging.getLogger(__name__)
_INVALID: Final = 3
_RETRY_S: Final = 5.0


class ExternalInputs:
    """Calls ``changed(name, value)`` from the event loop; None while a PV is not connected, invalid or no number."""

    def __init__(self, changed: Callable[[str, float | None], None]) -> None:
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()
        self._opening: asyncio.Task[Context] | None = None

    def follow(self, names: Iterable[str]) -> None:
        """Follow these and no others."""
        wanted = set(names)
        for name in [name for name in self._tasks if name not in wanted]:
            self._tasks.pop(name).cancel()
        for name in wanted - self._tasks.keys():
            self._changed(name, None)
            self._tasks[name] = asyncio.get_running_loop().create_task(
                self._watch(name), name=f"access security input {name}"
            )

    async def _open(self) -> Context:
        return await self._stack.enter_async_context(open_client(resolve_client()))

    async def _watch(self, name: str) -> None:
        while True:
            try:
                await self._values(name)
            except ApplianceError as error:
                _log.warning("input %s of access security: %s", name, error)
            self._changed(name, None)
            await asyncio.sleep(_RETRY_S)

    async def _values(self, name: str) -> None:
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        context = await asyncio.shield(self._opening)
        async with context.monitor(name) as subscription:
            async for item in subscription:
                self._changed(name, None if isinstance(item, Disconnected) else _number(item))

    async def close(self) -> None:
        """Stop."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        await self._stack.aclose()


def _number(value: Any) -> float | None:
    try:
        if value.get("alarm.severity", 0) >= _INVALID:
            return None
        found = value["value"]
        index = found["index"] if hasattr(found, "type") and "index" in found else found
        return float(index)
    except (ApplianceError, TypeError, ValueError, AttributeError):
        return None
