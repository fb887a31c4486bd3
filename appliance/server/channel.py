"""One channel of one client, as operations and the handlers of PVs see it."""

from __future__ import annotations

from typing import Protocol

from appliance.pva.credentials import Credentials
from appliance.pva.server_channel import ServerChannel
from appliance.server.access import AccessControl, Rights
from appliance.server.quota import Allowance
from appliance.transport.gate import Verdict
from appliance.transport.stream import StreamLink

__all__ = ["Channel", "ChannelOwner", "Pumped"]


class Pumped(Protocol):
    """Something that waits to be sent."""

    def pump(self) -> bool:
        """Send what may be sent; return whether the rest waits only for room in the socket."""

    def broken(self, error: Exception) -> None:
        """End with this error: a defect has stopped `pump`."""


class ChannelOwner(Protocol):
    """The connection that a channel belongs to."""

    @property
    def stream(self) -> StreamLink:
        """The link that sends the answers."""

    @property
    def credentials(self) -> Credentials:
        """The client's identity; its groups may become known while channels are open."""

    @property
    def held(self) -> Verdict | None:
        """Why requests are refused and updates wait at present; None if they do not."""

    @property
    def access(self) -> AccessControl:
        """Decides about rights."""

    @property
    def allowance(self) -> Allowance:
        """What the client may still have."""

    def dirty(self, waiting: Pumped) -> None:
        """Pump ``waiting`` at the end of this turn of the event loop."""


class Channel:
    """A PV's name, the client that opened it and the client's rights.

    Example:
        >>> from appliance.server import Handler
        >>> class Watched(SharedPV):
        ...     def attached(self, channel):
        ...         print(channel.name, channel.rights.write)
        >>> server.add_pv("demo:watched", Watched(Value(NTScalar(FLOAT64), 1.0)))
        >>> (await ctx.get("demo:watched"))["value"]
        demo:watched True
        1.0
    """

    __slots__ = ("owner", "rights", "stream", "wire")

    def __init__(self, owner: ChannelOwner, wire: ServerChannel, rights: Rights) -> None:
        self.owner = owner
        self.stream = owner.stream
        self.wire = wire
        self.rights = rights
        """What the client may do with the PV."""

    @property
    def name(self) -> str:
        """The PV's name as the client wrote it."""
        return self.wire.name

    @property
    def peer(self) -> Credentials:
        """Who opened the channel."""
        return self.owner.credentials

    def dirty(self, waiting: Pumped) -> None:
        """Send ``waiting`` at the end of this turn of the event loop."""
        self.owner.dirty(waiting)

    def refused(self, right: str) -> None:
        """Report a refused request, which lacks ``right``: read, write or rpc."""
        self.owner.access.refused(self.name, self.peer, right)

    def denial(self, right: str) -> str:
        """Return the message that refuses a request which lacks ``right``: read, write or rpc."""
        return self.owner.access.denial(right, self.peer, self.rights)

    def close(self) -> None:
        """Close the channel; the client is told, and searches for the PV again.

        Example:
            >>> opened = []
            >>> class Watched(SharedPV):
            ...     def attached(self, channel):
            ...         opened.append(channel)
            >>> server.add_pv("demo:watched", Watched(Value(NTScalar(FLOAT64), 1.0)))
            >>> value = await ctx.get("demo:watched")
            >>> opened[0].close()
        """
        self.wire.close()
        self.stream.schedule_flush()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.peer.account or 'anonymous'}@{self.peer.peer}>"
