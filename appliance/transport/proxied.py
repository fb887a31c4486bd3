"""Connections that a relay makes for a client: the client's address is known before anything else happens.

A header is looked for only on connections from relays that the configuration names. Whoever else sends one fails, as with
any other octets that are not TLS.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, cast

from appliance.errors import DecodeError
from appliance.transport.address import SocketAddress, format_address
from appliance.transport.proxy_header import SIGNATURE, ProxyReader, check_client
from appliance.transport.stream import StreamLink

__all__ = ["ProxiedAccept"]

_log: Final = logging.getLogger(__name__)


class ProxiedAccept(asyncio.Protocol):
    """Waits for what a relay says about its client, then begins the connection. The peer must be the one that speaks first.

    A relay's own connections have no header: their first octet is not one of a header.

    Args:
        begin: Makes the link, once it is known for whom.
        trusted: Whether the host of this address may say for whom it speaks.
        patience_s: Seconds that a relay has for its header.
        waiting: Those that wait; this one is among them while it does.
    """

    def __init__(
        self,
        begin: Callable[[], StreamLink],
        trusted: Callable[[str], bool],
        patience_s: float,
        waiting: set[ProxiedAccept],
    ) -> None:
        self._begin = begin
        self._trusted = trusted
        self._patience_s = patience_s
        self._waiting = waiting
        self._reader = ProxyReader()
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle | None = None
        self._relay = SocketAddress("", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a header if a relay is at the other end; hand over at once if not."""
        self._transport = stream = cast("asyncio.Transport", transport)
        peer = stream.get_extra_info("peername")
        if peer is None:  # it has gone already
            stream.abort()
            return
        self._relay = SocketAddress(peer[0], peer[1])
        if not self._trusted(self._relay.host):
            self._hand_over(None, b"")
            return
        self._waiting.add(self)
        self._deadline = asyncio.get_running_loop().call_later(self._patience_s, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Read the header."""
        reader = self._reader
        if not reader.begun and data[0] != SIGNATURE[0]:
            self._hand_over(None, data)
            return
        try:
            header = reader.feed(data)
            if header is None:
                return
            client = check_client(header, self._relay.host)
        except DecodeError as error:
            self._refuse(f"its PROXY header is refused: {error}")
            return
        self._hand_over(client, reader.rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a relay that has gone."""
        if self._reader.begun:
            _log.warning("%s, which proxy_from names, has gone in the middle of a PROXY header", self._name)
        self._end()

    def close(self) -> None:
        """Close it: the server stops."""
        self._end()
        self._transport.abort()

    @property
    def _name(self) -> str:
        return format_address(self._relay)

    def _hand_over(self, source: SocketAddress | None, data: bytes) -> None:
        self._end()
        transport = self._transport
        link = self._begin()
        if source is not None:
            link.origin = source
            link.via = self._name
        transport.set_protocol(link)
        link.connection_made(transport)
        if data and not transport.is_closing():
            link.data_received(data)

    def _too_slow(self) -> None:
        self._refuse(f"it has sent neither a PROXY header nor TLS in {self._patience_s:.0f} s")

    def _refuse(self, why: str) -> None:
        _log.warning("a connection from %s, which proxy_from names, ends: %s", self._name, why)
        self.close()

    def _end(self) -> None:
        self._waiting.discard(self)
        self._reader = ProxyReader()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
