"""Passes octets between a client and a server behind us, unread: TLS stays between these two.

The server is connected to when the client has spoken, and is told first whom it hears (`proxy_header`). Each side's
octets wait in the other's send queue, which holds reading back when it is full, so one connection needs little memory
whatever its peers do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, cast

from appliance.errors import ApplianceError, DecodeError, TransportError
from appliance.transport.address import NOWHERE, SocketAddress, format_address, is_loopback
from appliance.transport.proxy_header import SIGNATURE, ProxyReader, check_client, pack

__all__ = ["DEFAULT_BOUNDS", "Splice", "SpliceBounds", "SpliceOwner", "Splices"]

_log: Final = logging.getLogger(__name__)
_HANDSHAKE: Final = 0x16
"""The first octet of a TLS connection (RFC 8446, 5.1)."""
_ALERT: Final = 7
"""Octets of an alert, with which a server refuses what is not TLS."""
_HIGH: Final = 64 * 1024
"""Octets that wait for one side, above which the other is not read."""
_TOLD_FOR_S: Final = 60.0


class SpliceBounds(NamedTuple):
    """The most that clients can make a relay hold, and for how long."""

    per_host: int = 16
    """Connections of one host."""
    total: int = 256
    """Connections of all hosts."""
    speak_s: float = 60.0
    """Seconds until the client has spoken, and as many until the server has answered it."""
    connect_s: float = 10.0
    """Seconds to find the server and to connect to it."""
    idle_s: float = 3600.0
    """Seconds without octets in either direction, after which a connection ends."""
    half_closed_s: float = 60.0
    """The same when one side has finished."""


DEFAULT_BOUNDS: Final = SpliceBounds()


class SpliceOwner(Protocol):
    """Knows the server that octets are passed to, and who counts as one host."""

    async def target(self) -> SocketAddress:
        """Return the server's address. Raises ApplianceError with the reason if it is not known."""

    def unreachable(self, address: SocketAddress) -> None:
        """Take note that the server does not accept a connection at this address."""

    def unanswered(self, address: SocketAddress, here: str) -> None:
        """Take note that the server has ended a connection from the address ``here`` before TLS began."""

    def host_key(self, host: str) -> str:
        """Return what counts as one host."""

    def admits(self, host: str) -> bool:
        """Whether a client at this address may connect at all."""


class Splices:
    """All connections of one relay.

    Args:
        owner: Knows the server.
        bounds: The most that there may be.
        trusted: Whether the host of an address is a relay further out, which may say for which client it speaks;
            None: nobody may.
    """

    def __init__(
        self,
        owner: SpliceOwner,
        bounds: SpliceBounds = DEFAULT_BOUNDS,
        *,
        trusted: Callable[[str], bool] | None = None,
    ) -> None:
        self.owner = owner
        self.bounds = bounds
        self.trusted = trusted
        self.open: set[Splice] = set()
        self.hosts: Counter[str] = Counter()
        """Connections by host."""
        self.refused = 0
        """Connections that were refused because there were too many."""
        self.on_ended: Callable[[Splice], None] | None = None
        """Called with each connection that has ended, when its octets are counted."""
        self._told_at = -_TOLD_FOR_S

    def accept(self) -> asyncio.Protocol:
        """Return the protocol of a new connection of a client."""
        return Splice(self).client

    def join(self, splice: Splice) -> bool:
        """Count a connection; return whether there is room for it."""
        bounds = self.bounds
        if not self.owner.admits(splice.peer.host):
            self._refuse(splice, "the PV list denies its host what the relay is for")
            return False
        key = self.owner.host_key(splice.peer.host)
        if self.hosts[key] >= bounds.per_host:
            self._refuse(
                splice, f"its host has {bounds.per_host} connections to the relay already; close some"
            )
            return False
        if len(self.open) >= bounds.total:
            self._refuse(
                splice,
                f"the relay has {bounds.total} connections, the most that it accepts; wait until others have ended",
            )
            return False
        self.open.add(splice)
        self.hosts[key] += 1
        return True

    def leave(self, splice: Splice) -> None:
        """Forget a connection that has ended. A second call does nothing."""
        if splice not in self.open:
            return
        self.open.discard(splice)
        key = self.owner.host_key(splice.peer.host)
        self.hosts[key] -= 1
        if self.hosts[key] <= 0:
            del self.hosts[key]

    def close(self) -> None:
        """End all connections."""
        for splice in list(self.open):
            splice.end(None)

    def _refuse(self, splice: Splice, why: str) -> None:
        self.refused += 1
        now = asyncio.get_running_loop().time()
        news = now - self._told_at >= _TOLD_FOR_S
        if news:
            self._told_at = now
        _log.log(
            logging.WARNING if news else logging.DEBUG,
            "a connection from %s is refused: %s (%d refused so far)",
            splice.peer,
            why,
            self.refused,
        )


class _End(asyncio.Protocol):
    """One of the two connections."""

    __slots__ = ("finished", "octets", "other", "splice", "transport")

    def __init__(self, splice: Splice) -> None:
        self.splice = splice
        self.other: _End
        self.transport: asyncio.Transport | None = None
        self.octets = 0
        """Octets received."""
        self.finished = False
        """Whether this peer sends no more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = stream = cast("asyncio.Transport", transport)
        stream.set_write_buffer_limits(high=_HIGH)
        self.splice.made(self)

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self.octets += len(data)
        other = self.other.transport
        if other is not None:
            other.write(data)
        else:
            self.splice.early(data)

    def pause_writing(self) -> None:
        """Stop reading from the other side: this one does not take more."""
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.pause_reading()

    def resume_writing(self) -> None:
        """Read from the other side again."""
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.resume_reading()

    def eof_received(self) -> bool:
        """Tell the other side that this peer sends no more; it may go on sending."""
        self.finished = True
        return self.splice.finished(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other side too."""
        self.transport = None
        self.splice.end(exc)


class Splice:
    """A client's connection and the one to the server that belongs to it.

    Args:
        splices: All of the relay.
    """

    def __init__(self, splices: Splices) -> None:
        self.client = _End(self)
        self.server = _End(self)
        self.client.other = self.server
        self.server.other = self.client
        self.peer = NOWHERE
        """The client."""
        self._splices = splices
        self._header: ProxyReader | None = None
        """Reads what a relay further out says about its client, until that is known."""
        self._target = NOWHERE
        self._early = bytearray()
        """What the client sent before there was a server."""
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._seen = (0, 0)
        self._ended = False

    def made(self, end: _End) -> None:
        """Begin with one of the connections."""
        stream = end.transport
        assert stream is not None
        if end is self.client:
            peer = stream.get_extra_info("peername")
            if peer is None:
                stream.abort()
                return
            self.peer = SocketAddress(peer[0], peer[1])
            if not self._splices.join(self):
                self._ended = True
                stream.abort()
                return
            if self._splices.trusted is not None and self._splices.trusted(self.peer.host):
                self._header = ProxyReader()
            self._wait(self._splices.bounds.speak_s)
            return
        client = self.client.transport
        if self._ended or client is None:
            stream.abort()
            return
        stream.write(self._introduction(client, stream) + self._early)
        self._early.clear()
        if self.client.finished:
            stream.write_eof()
        else:
            client.resume_reading()
        self._wait(self._splices.bounds.speak_s)

    def _introduction(self, client: asyncio.Transport, server: asyncio.Transport) -> bytes:
        came_to = client.get_extra_info("sockname")
        here = server.get_extra_info("sockname")
        if came_to is None or here is None:
            return pack(None, None)
        if is_loopback(self.peer.host) and not is_loopback(str(here[0])):
            # For the server the client is on this host, whose address it sees; 127.0.0.1 would be its own.
            return pack(None, None)
        return pack(self.peer, SocketAddress(came_to[0], came_to[1]))

    def early(self, data: bytes) -> None:
        """Keep what the client says first, and connect to the server."""
        if self._ended:
            return
        reader = self._header
        if reader is not None:
            if reader.begun or data[0] == SIGNATURE[0]:
                data = self._read_header(reader, data)
                if not data:
                    return
            self._header = None
        if not self._early and data[0] != _HANDSHAKE:
            self.end(TransportError("it does not begin with TLS"))
            return
        self._early += data
        client = self.client.transport
        if client is not None:
            client.pause_reading()
        if self._task is None:
            self._task = self._loop.create_task(self._connect(), name="relay")

    def _read_header(self, reader: ProxyReader, data: bytes) -> bytes:
        """Return what follows the header of a relay further out; nothing while it is not complete."""
        try:
            header = reader.feed(data)
            if header is None:
                return b""
            client = check_client(header, self.peer.host)
        except DecodeError as error:
            self.end(TransportError(f"its PROXY header is refused: {error}"))
            return b""
        self._header = None
        if client is not None:
            self._splices.leave(self)
            self.peer = client
            if not self._splices.join(self):
                self.end(ConnectionAbortedError())
                return b""
        return reader.rest

    async def _connect(self) -> None:
        bounds, owner = self._splices.bounds, self._splices.owner
        address = None
        try:
            async with asyncio.timeout(bounds.connect_s):
                address = self._target = await owner.target()
                await self._loop.create_connection(lambda: self.server, address.host, address.port)
        except ApplianceError as error:
            self.end(error)
        except (OSError, TimeoutError) as error:
            if address is None:
                self.end(TransportError(f"the server is not found in {bounds.connect_s:.0f} s"))
                return
            owner.unreachable(address)
            why = str(error) or f"no answer in {bounds.connect_s:.0f} s"
            self.end(TransportError(f"{address} cannot be reached: {why}"))

    def finished(self, end: _End) -> bool:
        """Pass the end of one direction on; return whether the connection stays open for the other."""
        other = end.other
        if end is self.client and other.transport is None:
            if self._task is None:  # it left without a word
                self.end(None)
                return False
            return True
        if other.finished:
            self.end(None)
            return False
        if end is self.server and end.octets <= _ALERT and end.transport is not None:
            here = end.transport.get_extra_info("sockname")
            self._splices.owner.unanswered(self._target, str(here[0]) if here else "this host")
        stream = other.transport
        if stream is not None and not stream.is_closing():
            stream.write_eof()
        self._wait(self._splices.bounds.half_closed_s)
        return True

    def end(self, reason: Exception | None) -> None:
        """Close both connections; what waits for a peer is sent first, unless something went wrong."""
        if self._ended:
            return
        self._ended = True
        splices = self._splices
        if self in splices.open and splices.on_ended is not None:
            splices.on_ended(self)
        splices.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
        self._early.clear()
        for end in (self.client, self.server):
            stream = end.transport
            if stream is None:
                continue
            if reason is None:
                stream.close()
                if stream.get_write_buffer_size():
                    self._loop.call_later(self._splices.bounds.half_closed_s, stream.abort)
            else:
                stream.abort()
        level = logging.WARNING if isinstance(reason, ApplianceError) else logging.DEBUG
        _log.log(level, "%r ends%s", self, f": {reason}" if reason is not None else "")

    def _wait(self, silence_s: float) -> None:
        """End the connection when nothing passes for so long."""
        if self._timer is not None:
            self._timer.cancel()
        self._seen = (self.client.octets, self.server.octets)
        self._timer = self._loop.call_later(silence_s, self._silent, silence_s)

    def _silent(self, silence_s: float) -> None:
        now = (self.client.octets, self.server.octets)
        bounds = self._splices.bounds
        half = self.client.finished or self.server.finished
        if not now[1] and not half:
            what = "server has not answered" if now[0] else "client has said nothing"
            self.end(TransportError(f"the {what} in {silence_s:.0f} s"))
        elif now == self._seen:
            self.end(TransportError(f"nothing has passed in {silence_s:.0f} s"))
        else:
            self._wait(bounds.half_closed_s if half else bounds.idle_s)

    def __repr__(self) -> str:
        return f"<Splice {format_address(self.peer)} {self.client.octets}/{self.server.octets} octets>"
