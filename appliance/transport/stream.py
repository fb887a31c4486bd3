"""One TCP connection, with or without TLS, under one sans-IO PVAccess connection.

The way of the data: socket -> [TLS engine] -> connection -> events -> owner, and back. All that one call
produces leaves in one write; what is produced outside a read (a post, a reply from a task) leaves at the end of
the turn of the event loop in which it was produced.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import socket
import sys
import termios
from collections.abc import Iterable
from itertools import chain
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from appliance.errors import (
    ApplianceError,
    ProtocolError,
    RemoteProtocolError,
    TLSError,
    TransportError,
    internal_error,
)
from appliance.pva.connection import Connection
from appliance.pva.events import Event
from appliance.pva.states import CLOSED
from appliance.pvdata.primitives import Buffer
from appliance.transport import lingering
from appliance.transport.address import NOWHERE, SocketAddress, format_address
from appliance.transport.proxy_header import SIGNATURE
from appliance.transport.turns import turns_of

if TYPE_CHECKING:  # OpenSSL would double the start-up time of a tool that speaks plain TCP
    from appliance.tls.engine import TLSEngine

__all__ = ["EARLY", "StreamLink", "StreamOwner"]

WRITE_HIGH: Final = 64 * 1024
"""Octets in the send queue above which the owner is told to hold back. The kernel's own buffer comes first: what
waits here is what it did not take. uvloop writes at once what would exceed this, and gathers what does not."""
WRITE_LOW: Final = 16 * 1024
EARLY: Final = 4096
"""Octets of a client's requests that are sent at once, so that the server works on them while more are made."""
TLS_SLICE: Final = 64 * 1024
"""A large value is encrypted and written in turns of this size, so that the kernel copies what the processor's
cache still holds: measured 8 MB in 5.8 ms, against 7.3 ms when all of it is encrypted first."""
CUT_S: Final = 0.5
"""Seconds that a peer has to receive the end of TLS after `cut`."""
LARGE_READ: Final = 128 * 1024
"""Octets of a read after which there is probably more to read."""
LARGE_READS: Final = 4
"""So many of them may come before others have their turn."""
_log: Final = logging.getLogger(__name__)
_messages: Final = logging.getLogger("appliance.transport.messages")
_U32: Final = Struct("=I")
_JOIN_LIMIT: Final = 256 * 1024
"""Octets up to which output is joined to one buffer; above, chunks go out as they are."""
_GATHERS: Final = not ((3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2))
"""Whether ``writelines`` may be used: in some versions it never tells that the send queue is full (CVE-2024-12254)."""
_JOIN_SHORT: Final = 8192
"""Octets of an average chunk up to which plain output is joined: copying longer ones costs more than a place in ``writev``."""


EventT = TypeVar("EventT", bound=Event)


class StreamOwner(Protocol[EventT]):
    """Handles the events of a link: a server or a client context."""

    def link_made(self, link: StreamLink) -> bool:
        """Return whether the connection is wanted; TCP is connected."""

    def link_up(self, link: StreamLink) -> None:
        """Handle that the transport is ready: TCP is connected and, with TLS, the handshake is complete."""

    def link_events(self, link: StreamLink, events: list[EventT]) -> list[EventT] | None:
        """Handle the peer's messages in order. Return those that must wait: when ``link.due()``, others go first."""

    def link_writable(self, link: StreamLink) -> None:
        """Handle that the send queue has room again."""

    def link_down(self, link: StreamLink, reason: ApplianceError | None) -> None:
        """Handle that the link has ended; ``reason`` is None after an orderly end."""


class _Nobody:
    """The owner of a link that has ended."""

    def link_made(self, link: StreamLink) -> bool:
        return False

    def link_up(self, link: StreamLink) -> None:
        pass

    def link_events(self, link: StreamLink, events: list[Any]) -> list[Any] | None:
        return None

    def link_writable(self, link: StreamLink) -> None:
        pass

    def link_down(self, link: StreamLink, reason: ApplianceError | None) -> None:
        pass


_NOBODY: Final = _Nobody()


def _no_relay() -> TLSError:
    return TLSError(
        "it begins with a header of the PROXY protocol, and its address is not one that may send it; if it is a gateway's relay, "
        "name its address in proxy_from"
    )


class StreamLink(asyncio.Protocol):
    """One connection and its socket.

    Args:
        connection: The protocol's state.
        owner: Acts on what the peer sends; until ``link_down``, the link is its.
        engine: TLS; None for plain TCP.
    """

    __slots__ = (
        "_backlog",
        "_closing",
        "_loop",
        "_parked",
        "_read_large",
        "_reason",
        "_rests",
        "_transport",
        "_turns",
        "_unfed",
        "connection",
        "due",
        "engine",
        "flush_pending",
        "flushes_at_end",
        "heard",
        "heard_at_tick",
        "interface",
        "is_up",
        "origin",
        "owner",
        "peer",
        "peer_address",
        "reset",
        "sent",
        "silent_ticks",
        "via",
        "waits",
        "writable",
    )

    def __init__(
        self, connection: Connection[EventT], owner: StreamOwner[EventT], engine: TLSEngine | None = None
    ) -> None:
        # Connection and owner play the same role. From here on their events are only handed over.
        self.connection: Connection[Any] = connection
        if _messages.isEnabledFor(logging.DEBUG):
            from appliance.transport import messages

            self.connection = messages.tapped(connection, lambda: str(self.peer))
        self.owner: StreamOwner[Any] = owner
        self.engine = engine
        self.peer = ""
        """The peer's address and port as text."""
        self.peer_address = NOWHERE
        self.origin: SocketAddress | None = None
        """The client that a trusted relay speaks for; it takes the place of the socket's peer. None: there is no relay."""
        self.via = ""
        """The relay's address and port as text; empty if there is none."""
        self.interface = ""
        """The local address and port as text."""
        self.is_up = False
        self.writable = True
        """Whether the send queue has room; monitors hold back while it has none."""
        self.heard = 0
        """Octets received; ``Liveness`` compares it with ``heard_at_tick``."""
        self.heard_at_tick = 0
        self.reset = False
        """Whether the peer ended the connection without ceremony: a reset, or in TLS no close_notify. Who leaves while
        something is on its way to it does, and some peers always."""
        self.sent = 0
        self.silent_ticks = 0
        self.waits = False
        """Whether received data waits for its turn; until then nothing is read."""
        self._loop = asyncio.get_running_loop()
        self._turns = turns_of(self._loop)
        self.due = self._turns.due
        """Says when it is time to let others go first."""
        connection.due = self.due
        self._backlog: list[Any] = []
        """Events that wait."""
        self._unfed: list[bytes] = []
        """What came and was not even decrypted, since it waits."""
        self._transport: asyncio.Transport | None = None
        self.flush_pending = False
        """Whether `schedule_flush` has to do nothing: who sends very much looks here first."""
        self._parked = False
        self._rests = False
        self.flushes_at_end = False
        self._read_large = 0
        """Large reads since the last wait."""
        self._closing = False
        self._reason: ApplianceError | None = None

    # -- asyncio.Protocol ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start: with an engine, start TLS; without one, the link is up."""
        self._transport = stream = cast("asyncio.Transport", transport)
        if self._closing:  # given up before it began
            stream.abort()
            return
        sock = stream.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = self.origin or stream.get_extra_info("peername")
        if peer is not None:
            self.peer_address = SocketAddress(peer[0], peer[1])
            self.peer = format_address(peer)
        here = stream.get_extra_info("sockname")
        if here is not None:
            self.interface = format_address(here)
        if not self.owner.link_made(self):
            self.abort()
            return
        if self.connection.IS_SERVER:
            stream.set_write_buffer_limits(high=WRITE_HIGH, low=WRITE_LOW)
        else:
            stream.set_write_buffer_limits(high=EARLY, low=0)
        if self.engine is None:
            self._up()
        elif not self.engine.server_side:
            self.engine.start()
            self._write_engine()

    def _up(self) -> None:
        self.is_up = True
        self.owner.link_up(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Decrypt, parse, hand over, answer."""
        self.heard += len(data)
        turns = self._turns
        if self.waits or (not self.is_up and turns.is_full):
            # A handshake takes as long as hundreds of requests.
            self._unfed.append(data)
            self._wait()
            return
        turns.begin()
        try:
            self._received(data)
        finally:
            turns.end()
        if len(data) >= LARGE_READ:
            # uvloop reads as long as there is something, up to 8 MB: what others have to write would wait for all of it.
            self._read_large += 1
            if self._read_large >= LARGE_READS and self._transport is not None:
                self._wait()

    def _received(self, data: bytes) -> None:
        engine = self.engine
        if engine is None:
            self._feed(data)
            return
        try:
            chunks = engine.receive_data(data)
        except TLSError as error:
            self._write_engine()  # the alert that tells the peer why
            self.close(_no_relay() if not self.is_up and data.startswith(SIGNATURE) else error, linger=True)
            return
        if not self.is_up:
            self._write_engine()
            if not engine.handshake_complete:
                return
            self._up()
        if chunks:
            self._feed(chunks[0] if len(chunks) == 1 else b"".join(chunks))
        if engine.eof and not self.waits:
            self.close(None)
        else:
            self._write_engine()

    def _feed(self, data: Buffer) -> None:
        """Parse decrypted octets, or continue with those that wait."""
        connection = self.connection
        try:
            events = self._backlog
            if events:
                self._backlog = []
            else:
                events = connection.receive_data(data)
            while True:
                if events:
                    self._hand_over(events)
                self.flush()
                if not connection.stalled and not self._backlog:
                    break
                if not self.writable and connection.IS_SERVER:
                    self._parked = True
                    return
                if self._backlog or self.due():
                    self._wait()
                    return
                events = connection.receive_data(b"")
        except RemoteProtocolError as error:
            self.flush()
            self.close(error)
            # The owner must not use what the end of the connection ended, not even until the socket is closed.
            self._hand_over(connection.receive_eof())
            if self._backlog or connection.stalled:
                self._wait()
            return
        if connection.state is CLOSED:
            self.close(None, linger=connection.IS_SERVER)
        elif connection.held and self._transport is not None:
            self._transport.pause_reading()

    def proceed(self) -> None:
        """Handle what a client sent before it was let in, at the end of this turn of the event loop."""
        self._loop.call_soon(self._proceed)

    def _proceed(self) -> None:
        if self._closing or self._transport is None or self.waits:
            return
        turns = self._turns
        turns.begin()
        try:
            if self.connection.stalled:
                self._feed(b"")
            else:
                self.flush()
            self._read_on()
        except Exception as error:  # noqa: BLE001 - nobody else would end the connection
            self.broken(error)
        finally:
            turns.end()

    def _hand_over(self, events: list[Any]) -> None:
        left = self.owner.link_events(self, events) if events else None
        if left:
            self._backlog = left

    def _wait(self) -> None:
        """Continue in the next turn of the event loop; until then read nothing."""
        if self.waits:
            return
        self.waits = True
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.pause_reading()
        self._turns.wait(self)

    def go_on(self) -> None:
        """Continue with the work that had to wait."""
        self.waits = False
        self._read_large = 0
        if self._transport is None:
            self._wind_up()
            return
        unfed = self._unfed
        if unfed:
            self._unfed = []
            self._received(b"".join(unfed))
        else:
            self._feed(b"")
            engine = self.engine
            if engine is not None and engine.eof and not self.waits:
                self.close(None)
        self._read_on()

    def rest(self, seconds: float) -> None:
        """Read nothing for a moment, so that what comes meanwhile is read together."""
        transport = self._transport
        if transport is None or self.waits or self._rests or transport.is_closing():
            return
        self._rests = True
        transport.pause_reading()
        self._loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._rests = False
        if not self._closing:
            self._read_on()

    def _read_on(self) -> None:
        """Read again, unless something still waits for its turn or for the peer to read."""
        transport = self._transport
        if (
            transport is not None
            and not self.waits
            and not self._rests
            and not self.connection.held
            and (self.writable or not self.connection.IS_SERVER)
            and not transport.is_closing()
        ):
            transport.resume_reading()

    def _wind_up(self) -> None:
        """Report to the owner what the end of the link ended, then the end itself."""
        connection = self.connection
        while True:
            events = self._backlog
            if events:
                self._backlog = []
                self._hand_over(events)
            if self._backlog or (connection.stalled and self.due()):
                self._wait()
                return
            if not connection.stalled:
                break
            self._backlog = connection.receive_data(b"")
        owner = self.owner
        self.owner = _NOBODY  # without the cycle both are freed now, and not by the garbage collector
        owner.link_down(self, self._reason)

    def settle(self) -> None:
        """Finish the waiting work now: the event loop is about to end."""
        if self.waits and self._transport is None:
            self._turns.hurry()
            self._wind_up()

    def eof_received(self) -> bool | None:
        """Handle that the peer sends no more. PVAccess has no half-open connections."""
        engine = self.engine
        if engine is not None:
            try:
                engine.receive_eof()
            except TLSError as error:
                self.reset = engine.handshake_complete
                self._remember(error)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the link to the owner, once."""
        self.reset = self.reset or isinstance(exc, ConnectionError)
        if exc is not None and not (
            self._closing and isinstance(exc, ConnectionError)
        ):  # both ends closed at the same time: this is routine
            self._remember(TransportError(f"the connection to {self.peer or 'the peer'} was lost: {exc}"))
        self.is_up = False
        self.writable = False
        self._transport = None
        self._unfed.clear()
        turns = self._turns
        turns.begin()
        try:
            self._backlog += self.connection.receive_eof()
            if not self.waits:
                self._wind_up()
        except Exception as error:  # noqa: BLE001 - the owner must learn of the end
            self.broken(error)
        finally:
            turns.end()

    def pause_writing(self) -> None:
        """Hold back: the send queue is full.

        A server stops reading too; a client must not, or two ends could wait for each other for ever.
        """
        self.writable = False
        if self.connection.IS_SERVER and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Continue with what waited: the send queue has room again."""
        self.writable = True
        if self._closing:
            return
        turns = self._turns
        turns.begin()
        try:
            self.owner.link_writable(self)
            if self._parked:
                self._parked = False
                self._feed(b"")
            if self.connection.IS_SERVER:
                self._read_on()
        except Exception as error:  # noqa: BLE001 - nobody else would end the connection
            self.broken(error)
        finally:
            turns.end()

    # -- output --------------------------------------------------------------------------------------

    def schedule_flush(self) -> None:
        """Send what waits at the end of this turn of the event loop."""
        if not self.flush_pending:
            self.flush_pending = True
            self._loop.call_soon(self._scheduled_flush)

    def flush_at_end(self) -> None:
        """Send what waits at the end of the read that caused it, which is another connection's: an answer, or a request."""
        if not self.flushes_at_end and not self._turns.flush_at_end(self):
            self.schedule_flush()
        connection = self.connection
        if connection.outbox.size > EARLY and not connection.IS_SERVER:
            self.flush()

    def _scheduled_flush(self) -> None:
        self.flush_pending = False
        try:
            self._flush_with_events(self.connection.pending_events())
        except Exception as error:  # noqa: BLE001 - nobody else would end the connection
            self.broken(error)

    def _flush_with_events(self, events: list[Any]) -> None:
        if self._backlog or self.waits:
            self._backlog += events
        elif events:
            self._turns.begin()
            try:
                self._hand_over(events)
            finally:
                self._turns.end()
            if self._backlog:
                self._wait()
        self.flush()

    def flush(self) -> None:
        """Send what waits now."""
        transport = self._transport
        if not self.is_up or transport is None or self._closing:
            return
        chunks = self.connection.data_to_send()
        if not chunks:
            return
        engine = self.engine
        if engine is None:
            if len(chunks) == 1:
                data = chunks[0]
                self.sent += len(data)
                transport.write(data)
                return
            size = sum(map(len, chunks))
            self.sent += size
            if (size <= _JOIN_LIMIT and size < _JOIN_SHORT * len(chunks)) or not _GATHERS:
                transport.write(b"".join(chunks))
            else:
                transport.writelines(chunks)
            return
        try:
            small: list[Buffer] = []
            size = 0
            for chunk in chunks:
                if len(chunk) > _JOIN_LIMIT:
                    if small:
                        engine.send(b"".join(small))
                        small = []
                        size = 0
                    view = memoryview(chunk).cast("B")
                    for start in range(0, len(view), TLS_SLICE):
                        engine.send(view[start : start + TLS_SLICE])
                        self._write_engine()
                else:
                    small.append(chunk)
                    size += len(chunk)
                    if size > _JOIN_LIMIT:
                        engine.send(b"".join(small))
                        small = []
                        size = 0
            if small:
                engine.send(small[0] if len(small) == 1 else b"".join(small))
        except (TLSError, ProtocolError) as error:
            self.close(error if isinstance(error, TLSError) else TLSError(str(error)))
            return
        self._write_engine()

    def _write_engine(self) -> None:
        engine = self.engine
        transport = self._transport
        if engine is None or transport is None:
            return
        chunks = engine.chunks_to_send()
        if chunks:
            self.sent += sum(map(len, chunks))
            if len(chunks) == 1:
                transport.write(chunks[0])
            else:
                transport.writelines(chunks)

    # -- end -----------------------------------------------------------------------------------------

    def _remember(self, reason: ApplianceError | None) -> None:
        if self._reason is None and reason is not None:
            self._reason = reason

    def close(self, reason: ApplianceError | None = None, *, linger: bool = False) -> None:
        """Send what waits, close TLS, and close the socket; ``link_down`` follows.

        Args:
            reason: Why, for the log; None for an orderly end.
            linger: Whether the peer gets a moment to read the last message, although it may still send.
        """
        transport = self._transport
        if transport is None:
            self.abort(reason)
            return
        if self._closing:
            return
        self._remember(reason)
        try:
            self.flush()
            self._closing = True
            if self.engine is not None:
                self.engine.close()
                self._write_engine()
        except Exception as error:  # noqa: BLE001 - it must end in any case, and so must others that are closed with it
            self.broken(error)
            return
        if not self.writable:
            transport.abort()  # the peer does not read: waiting for it would keep the link for ever
        elif linger and transport.can_write_eof():
            lingering.linger(transport, self.connection_lost, self._loop)
        else:
            transport.close()

    def cut(self, reason: ApplianceError) -> None:
        """Close TLS and the socket; drop what waits, because the peer must not receive it."""
        transport = self._transport
        if transport is None or self._closing:
            return
        self._remember(reason)
        self._closing = True
        if self.engine is not None and self.writable:
            try:
                self.engine.close()
                self._write_engine()
            except Exception as error:  # noqa: BLE001 - as in close()
                self.broken(error)
                return
            transport.close()
            self._loop.call_later(CUT_S, transport.abort)
        else:
            transport.abort()

    def abort(self, reason: ApplianceError | None = None) -> None:
        """Close at once and drop what waits: the peer no longer answers, or must receive nothing more."""
        self._remember(reason)
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def broken(self, error: Exception) -> None:
        """Close at once: a defect has stopped its work, and nobody knows what the peer has got.

        Args:
            error: The defect, for the log.
        """
        _log.error("the connection to %s ends: internal error", self.peer or "the peer", exc_info=error)
        self._backlog = []
        self.abort(ApplianceError(internal_error("the log")))
        if self._transport is None:
            owner, self.owner = self.owner, _NOBODY
            owner.link_down(self, self._reason)

    @property
    def ended_here(self) -> bool:
        """Whether this end has closed the link; then earlier requests of the peer are not served."""
        return self._closing

    @property
    def is_closing(self) -> bool:
        """Whether the link is closing or closed."""
        return self._closing or self._transport is None

    @property
    def reason(self) -> ApplianceError | None:
        """Why the link ended or is about to; None while there is none, and after an orderly end."""
        return self._reason

    @property
    def unhandled(self) -> Iterable[Any]:
        """Events of what the peer sent that the owner has not got yet."""
        return chain(self._backlog, self.connection.events)

    @property
    def waiting(self) -> int:
        """Octets that wait here: the kernel has not taken them."""
        transport = self._transport
        size: int = self.connection.outbox.size
        return size if self.writable or transport is None else size + transport.get_write_buffer_size()

    @property
    def drained(self) -> int:
        """Octets that the peer has acknowledged so far, as the kernel knows (SIOCOUTQ, tcp(7))."""
        transport = self._transport
        if transport is None:
            return self.sent
        waiting = transport.get_write_buffer_size()
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # The kernel's own queue holds megabytes: a slow peer is at work there long before we see any of it.
            with contextlib.suppress(OSError):
                waiting += _U32.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return self.sent - waiting

    def __repr__(self) -> str:
        return f"<StreamLink {'TLS' if self.engine else 'TCP'} {self.interface} - {self.peer}>"
