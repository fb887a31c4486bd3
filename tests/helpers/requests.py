"""Operations of our client that `Context` has no method for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from appliance.client.channel import Channel, ChannelRequest, Waiter
from appliance.errors import RemoteError
from appliance.pva.client_operation import ClientOperation
from appliance.pva.status import Status
from appliance.pvdata.value import Value


class Asked(ChannelRequest):
    """One operation of any command, used step by step."""

    __slots__ = ("answer", "command", "ready_", "request")

    def __init__(self, channel: Channel, command: int, request: Value) -> None:
        super().__init__(channel, Waiter(channel.end.loop))
        self.command = command
        self.request = request
        self.ready_: asyncio.Future[ClientOperation] = channel.end.loop.create_future()
        self.answer: asyncio.Future[Any] | None = None
        channel.add(self)

    def start(self) -> None:
        self._begin(self.command, self.request)

    def ready(self, status: Status) -> None:
        if status.ok:
            self.ready_.set_result(self.operation)
        else:
            self.ready_.set_exception(RemoteError(status.message))

    def reply(self, status: Status, value: Value | None) -> None:
        assert self.answer is not None
        if status.ok:
            self.answer.set_result(value)
        else:
            self.answer.set_exception(RemoteError(status.message))

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        super().disconnected(why, moving=moving)
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(RemoteError(why))

    async def do(self, act: Callable[[ClientOperation], None]) -> Any:
        """Send one request, and wait for the answer; raises RemoteError."""
        assert self.operation is not None
        self.answer = self.channel.end.loop.create_future()
        act(self.operation)
        assert self.channel.link is not None
        self.channel.link.schedule_flush()
        return await self.answer
