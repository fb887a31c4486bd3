"""A channel at the client's end."""

from __future__ import annotations

from typing import Any, Protocol

from appliance.errors import ChannelClosedError, LocalProtocolError
from appliance.pva import commands as c
from appliance.pva.client_operation import ClientOperation, OperationOwner
from appliance.pva.packing import U32_U32
from appliance.pvdata.primitives import encode_string
from appliance.pvdata.value import Value

__all__ = ["ChannelOwner", "ClientChannel"]


class ChannelOwner(OperationOwner, Protocol):
    """What a channel needs of its connection."""

    channels: dict[int, ClientChannel]

    def new_ioid(self) -> int:
        """Return a number that no operation has."""

    def drop_channel(self, channel: ClientChannel) -> None:
        """Forget a channel that has ended, and report it."""


class ClientChannel:
    """A name that this client opened. ``context`` is the layer above's to use."""

    __slots__ = ("cid", "connection", "context", "name", "open", "operations", "permissions", "sid")

    def __init__(self, connection: ChannelOwner, cid: int, name: str) -> None:
        self.connection = connection
        self.cid = cid
        self.name = name
        self.sid = 0
        self.open = False
        """Whether the server has created the channel and not yet destroyed it."""
        self.permissions = c.PERMIT_ALL
        """Union of ``PERMIT_*``; a server that never says so permits everything."""
        self.operations: dict[int, ClientOperation] = {}
        self.context: Any = None

    def operation(
        self, command: int, request: Value, *, window: int = 0, raw: bool = False
    ) -> ClientOperation:
        """Begin an operation: queue its INIT.

        Args:
            command: ``CMD_*``.
            request: The pvRequest.
            window: The number of updates that a pipelined MONITOR grants at its start.
            raw: Whether values come as octets: see `ClientOperation.raw`.

        Raises:
            ChannelClosedError: The server took the channel away.
        """
        self._require_open()
        return ClientOperation(self, self.connection.new_ioid(), command, request, window, raw=raw)

    def get_field(self, field: str = "") -> ClientOperation:
        """Ask for the type of ``field``; "" means the whole (section 9.8)."""
        self._require_open()
        operation = ClientOperation(self, self.connection.new_ioid(), c.CMD_GET_FIELD, None, 0)
        outbox = self.connection.outbox
        big = outbox.big
        outbox.send(c.CMD_GET_FIELD, U32_U32[big].pack(self.sid, operation.ioid) + encode_string(field, big))
        return operation

    def _require_open(self) -> None:
        if self.open:
            return
        if self.connection.channels.get(self.cid) is self:
            raise LocalProtocolError(f"channel {self.name!r} has not been created yet")
        raise ChannelClosedError(f"{self.name}: the channel is closed")

    def close(self) -> None:
        """Close the channel here and at the server."""
        connection = self.connection
        if connection.channels.get(self.cid) is not self:
            return
        if self.open:
            outbox = connection.outbox
            outbox.send(c.CMD_DESTROY_CHANNEL, U32_U32[outbox.big].pack(self.sid, self.cid))
        connection.drop_channel(self)

    def __repr__(self) -> str:
        return f"<ClientChannel {self.name!r} cid={self.cid} sid={self.sid}>"
