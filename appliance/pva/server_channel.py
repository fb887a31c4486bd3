"""A channel at the server's end."""

from __future__ import annotations

from typing import Any, Protocol

from appliance.errors import LocalProtocolError
from appliance.pva import commands as c
from appliance.pva.packing import U32, U32_U32
from appliance.pva.server_operation import OperationOwner, ServerOperation
from appliance.pva.states import CLOSED, ConnectionState
from appliance.pva.status import OK_BYTES, Status

__all__ = ["ChannelOwner", "ServerChannel"]


class ChannelOwner(OperationOwner, Protocol):
    """What a channel needs of its connection."""

    state: ConnectionState
    channels: dict[int, ServerChannel]
    pending: dict[int, ServerChannel]

    def drop_channel(self, channel: ServerChannel) -> None:
        """Forget a channel that has ended, and report it."""


class ServerChannel:
    """A name that a client opened. ``context`` is the layer above's to use.

    Once the connection is gone, all methods do nothing, so a late decision does no harm.
    """

    __slots__ = ("cid", "connection", "context", "name", "open", "operations", "permissions", "sid")

    def __init__(self, connection: ChannelOwner, sid: int, cid: int, name: str) -> None:
        self.connection = connection
        self.sid = sid
        self.cid = cid
        self.name = name
        self.open = False
        self.permissions = 0
        self.operations: dict[int, ServerOperation] = {}
        self.context: Any = None

    def _answer(self) -> bool:
        """Remove the channel from those that wait for an answer; return whether the client still waits."""
        connection = self.connection
        if connection.state is CLOSED:
            return False
        if connection.pending.pop(self.sid, None) is None:
            raise LocalProtocolError(f"channel {self.name!r} was accepted or rejected already")
        return True

    def accept(self, permissions: int = c.PERMIT_ALL) -> None:
        """Create the channel; its permissions go out first (section 13)."""
        if not self._answer():
            return
        connection = self.connection
        connection.channels[self.sid] = self
        self.open = True
        self._send_permissions(permissions)
        outbox = connection.outbox
        outbox.send(c.CMD_CREATE_CHANNEL, U32_U32[outbox.big].pack(self.cid, self.sid) + OK_BYTES)

    def reject(self, message: str) -> None:
        """Refuse to create the channel."""
        if self._answer():
            self.refuse(message)

    def refuse(self, message: str) -> None:
        """Refuse a channel that never waited for an answer."""
        outbox = self.connection.outbox
        big = outbox.big
        outbox.send(
            c.CMD_CREATE_CHANNEL,
            U32_U32[big].pack(self.cid, 0xFFFFFFFF) + Status.error(message).encode(big=big),
        )

    def set_permissions(self, permissions: int) -> None:
        """Send the client its permissions: a union of ``PERMIT_*`` bits (section 8.2)."""
        if self.open and self.permissions != permissions:
            self._send_permissions(permissions)

    def _send_permissions(self, permissions: int) -> None:
        self.permissions = permissions
        outbox = self.connection.outbox
        outbox.send(c.CMD_ACL_CHANGE, U32[outbox.big].pack(self.cid) + bytes((permissions,)))

    def close(self) -> None:
        """Close the channel; the client will search for the name again."""
        if not self.open:
            return
        outbox = self.connection.outbox
        outbox.send(c.CMD_DESTROY_CHANNEL, U32_U32[outbox.big].pack(self.sid, self.cid))
        self.connection.drop_channel(self)

    def __repr__(self) -> str:
        return f"<ServerChannel {self.name!r} sid={self.sid} cid={self.cid}>"
