"""The end of a connection whose peer was told why it is refused, and may still send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["linger"]

LINGER_S: Final = 1.0
"""Seconds that a refused peer may continue to send before it reads why it is refused."""
LINGER_OCTETS: Final = 64 * 1024
"""Octets that such a peer may go on sending."""


class _Lingering(asyncio.Protocol):
    """Reads and drops what the peer still sends."""

    def __init__(self, transport: asyncio.Transport, lost: Callable[[Exception | None], None]) -> None:
        self._transport = transport
        self._lost = lost
        self._left = LINGER_OCTETS

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)


def linger(
    transport: asyncio.Transport,
    lost: Callable[[Exception | None], None],
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Close the sending half of a connection; close the rest when the peer closes or its time is over.

    A socket that is closed with something unread resets the connection, and a peer that is reset while it writes never
    reads why it was refused.

    Args:
        transport: The connection; what was written to it leaves first.
        lost: Called when it has ended, as `asyncio.Protocol.connection_lost` is.
        loop: Measures the time.
    """
    transport.set_protocol(_Lingering(transport, lost))
    transport.write_eof()
    loop.call_later(LINGER_S, transport.abort)
    transport.resume_reading()
