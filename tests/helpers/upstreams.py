"""A name at a server behind the gateway, without sockets: the server's half of the protocol answers by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from appliance.client.channel import ChannelRequest, ChannelState
from appliance.gateway.accounts import PVAccount
from appliance.pva import commands as c
from appliance.pva.events import (
    MonitorFinished,
    MonitorOctets,
    MonitorUpdate,
    OperationReady,
    OperationReply,
    ReplyOctets,
)
from tests.helpers.clock import FakeClock
from tests.helpers.wire import Wire, frame, take, u32


class Link:
    """The connection: whether it pauses, and how often it was told to send."""

    def __init__(self) -> None:
        self.held: Any = None
        self.flushes = 0
        self.why = "paused"

    def schedule_flush(self) -> None:
        self.flushes += 1

    flush_at_end = schedule_flush

    def refusal(self, *, changes: bool) -> str:
        return self.why if self.held is not None else ""


class Channel:
    """The channel of the name ``d``, whose server is the responder of a `Wire`."""

    def __init__(self, wire: Wire, clock: FakeClock) -> None:
        self.name = "d"
        self.state = ChannelState.ACTIVE
        self.wire = wire.open("d")
        self.link: Any = Link()
        self.requests: dict[ChannelRequest, None] = {}
        self.end = SimpleNamespace(clock=clock, loop=clock)

    @property
    def is_paused(self) -> bool:
        return self.link.held is not None

    def add(self, request: ChannelRequest) -> None:
        self.requests[request] = None
        request.start()

    def remove(self, request: ChannelRequest) -> None:
        self.requests.pop(request, None)


class OneUpstream(PVAccount):
    """What the requests of the gateway see of a name."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Wire().handshake()
        self.clock = FakeClock()
        self.channel: Any = Channel(self.server, self.clock)
        self.monitors: dict[Any, Any] = {}
        self.gets: dict[Any, Any] = {}
        self.renewals = 0

    def renew(self) -> None:
        self.renewals += 1

    def run(self) -> None:
        """Carry everything that waits, and hand the events over as the link does."""
        for event in self.server.pump():
            self.handle(event)

    def handle(self, event: Any) -> None:
        request: Any = getattr(event, "operation", None) and event.operation.context
        if request is None:
            return
        if type(event) is OperationReady:
            request.ready(event.status)
        elif type(event) is MonitorOctets:
            request.octets(event)
        elif type(event) is MonitorUpdate:
            request.update(event.bits, event.store, event.overrun, event.size)
        elif type(event) is ReplyOctets:
            request.reply_octets(event)
        elif type(event) is OperationReply:
            request.reply(event.status, event.value)
        elif type(event) is MonitorFinished:
            request.finished(event.status)

    def say(self, operation: Any, *payloads: bytes, sub: int = 0, big: bool = False) -> None:
        """Let the server send these answers or updates in one read."""
        command = operation.command
        data = b"".join(
            frame(command, u32(operation.ioid, big) + bytes((sub,)) + payload, server=True, big=big)
            for payload in payloads
        )
        for event in self.server.client.receive_data(data):
            self.handle(event)

    def sent(self) -> list[int]:
        """The commands that wait to be sent to the server, which does not get them."""
        data = take(self.server.client)
        commands = []
        while data:
            commands.append(data[3])
            data = data[8 + int.from_bytes(data[4:8], "little") :]
        return commands


DESTROY = c.CMD_DESTROY_REQUEST
