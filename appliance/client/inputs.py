"""Inputs of access security on other servers, followed by a client.

In doubt, access is denied. An input is bad (None) if its connection is lost, its alarm is INVALID or its value is not a
number. A rule whose CALC reads a bad input does not hold until a good value comes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final

from appliance.client.context import Context
from appliance.client.monitor import Connected, Disconnected, Monitor
from appliance.errors import ApplianceError

__all__ = ["ExternalInputs"]

_log: Final = logging.getLogger(__name__)
_INVALID: Final = 3
_RETRY_S: Final = 5.0
PAUSE_POLL_S: Final = 1.0
"""Seconds between two checks whether a connection pauses, for example because a certificate's status is unknown."""
_PATIENCE_S: Final = 5.0
"""Seconds without a connection before this is logged."""


class ExternalInputs:
    """Calls ``changed(name, value)`` on the event loop; the value is None if a PV is not connected, INVALID or not a number.

    Args:
        changed: Called for each input as soon as it is followed, and with each new value.
        opener: Opens the client when the first input is followed. It is closed by :meth:`close`.

    """

    def __init__(
        self,
        changed: Callable[[str, float | None], None],
        opener: Callable[[], AbstractAsyncContextManager[Context]],
    ) -> None:
        self._changed = changed
        self._opener = opener
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stack = AsyncExitStack()
        self._opening: asyncio.Task[Context] | None = None
        self._wanted: frozenset[str] = frozenset()
        self._is_reopening = False

    def follow(self, names: Iterable[str]) -> None:
        """Follow exactly these inputs."""
        wanted = self._wanted = frozenset(names)
        if self._is_reopening:
            for name in wanted:
                self._changed(name, None)
            return
        for name in [name for name in self._tasks if name not in wanted]:
            self._tasks.pop(name).cancel()
        for name in wanted - self._tasks.keys():
            self._changed(name, None)
            self._tasks[name] = asyncio.get_running_loop().create_task(
                self._watch(name), name=f"access security input {name}"
            )

    async def _open(self) -> Context:
        return await self._stack.enter_async_context(self._opener())

    async def _context(self) -> Context:
        """Return the client; the first caller opens it, and so does the first one after a failure."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except ApplianceError:
            if self._opening is opening:
                self._opening = None
            raise

    async def _watch(self, name: str) -> None:
        while True:
            why: object = "the server ended the subscription"
            try:
                await self._values(name)
            except ApplianceError as error:
                why = error
            except Exception:  # noqa: BLE001 - an input whose task has ended would keep its last value
                _log.exception("input %s of access security failed", name)
            finally:
                self._changed(name, None)
            _log.warning("input %s of access security: %s; rules that use it do not hold", name, why)
            await asyncio.sleep(_RETRY_S)

    async def _values(self, name: str) -> None:
        context = await self._context()
        late = asyncio.get_running_loop().call_later(
            _PATIENCE_S,
            _log.warning,
            "input %s of access security is not connected; rules that use it do not hold",
            name,
        )
        async with context.monitor(name, notify=True) as subscription:
            given = _Given(lambda value: self._changed(name, value))
            pauses = asyncio.get_running_loop().create_task(_watch_pauses(name, subscription, given))
            try:
                async for item in subscription:
                    late.cancel()
                    if isinstance(item, Connected):
                        _log.info("input %s of access security is connected to %s", name, item.server)
                    elif isinstance(item, Disconnected):
                        given.take(None)
                        _log.warning(
                            "input %s of access security is disconnected (%s); rules that use it do not hold",
                            name,
                            item.why,
                        )
                    else:
                        given.take(_number(item))
            finally:
                late.cancel()
                pauses.cancel()

    async def reopen(self) -> None:
        """Follow the same inputs with a new client; rules that use them do not hold meanwhile."""
        for name in list(self._tasks):
            self._changed(name, None)
        self._is_reopening = True
        try:
            await self.close()
        finally:
            self._is_reopening = False
        self._stack = AsyncExitStack()
        # Other rules may have been read meanwhile.
        self.follow(self._wanted)

    async def close(self) -> None:
        """Stop following all inputs, and close the client."""
        tasks: list[asyncio.Task[Any]] = list(self._tasks.values())
        if self._opening is not None:
            tasks.append(self._opening)
            self._opening = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        await self._stack.aclose()


class _Given:
    """The latest value of one input; it is valid unless its connection pauses."""

    __slots__ = ("_tell", "_value", "is_held")

    def __init__(self, tell: Callable[[float | None], None]) -> None:
        self._tell = tell
        self._value: float | None = None
        self.is_held = False

    def take(self, value: float | None) -> None:
        self._value = value
        self._tell(None if self.is_held else value)

    def hold(self, is_held: bool) -> None:
        self.is_held = is_held
        self.take(self._value)


async def _watch_pauses(name: str, monitor: Monitor[Any], given: _Given) -> None:
    """Mark the input as bad while its connection pauses: no updates come, so the last value may be wrong."""
    while True:
        held = monitor.channel.is_paused
        if held is not given.is_held:
            given.hold(held)
            _log.warning(
                "input %s of access security %s",
                name,
                "waits for a certificate's status; rules that use it do not hold"
                if held
                else "is connected again",
            )
        await asyncio.sleep(PAUSE_POLL_S)


def _number(value: Any) -> float | None:
    try:
        if value.get("alarm.severity", 0) >= _INVALID:
            return None
        found = value["value"]
        index = found["index"] if hasattr(found, "type") and "index" in found else found
        return float(index)
    except (ApplianceError, TypeError, ValueError, AttributeError):
        return None
