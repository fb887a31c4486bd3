"""Many clients that watch many PVs and only count what they get: a crowd costs little, so that the server is what is measured."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import Self

from tests.helpers.raw import message, text
from tests.helpers.turns import NAMED

_EMPTY_REQUEST = b"\x80\x00\x01\x05field\x80\x00\x00"
ECHO, CREATE, MONITOR = 2, 7, 13
ECHO_S = 10.0
"""A server takes a client that says nothing for one that has gone."""


class Watcher(asyncio.Protocol):
    """One connection that watches all ``names``."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.octets = 0
        """Octets of everything that came after the subscriptions were made."""
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._buffer = bytearray()
        self._sids: dict[int, int] = {}
        self._left = len(names)
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, port: int, names: Sequence[str]) -> Self:
        """Connect to 127.0.0.1; the subscriptions are ready when ``ready`` is."""
        loop = asyncio.get_running_loop()
        _, self = await loop.create_connection(lambda: cls(names), "127.0.0.1", port)
        return self

    @property
    def alive(self) -> bool:
        return not self.closed.done()

    def stop_reading(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("closed before its subscriptions were ready"))
            self.ready.exception()

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self.octets += len(data)
            return
        buffer = self._buffer
        buffer += data
        pos = 0
        while len(buffer) - pos >= 8:
            flags, command, size = struct.unpack_from("<BBI", buffer, pos + 2)
            if flags & 1:
                pos += 8
                continue
            if len(buffer) - pos < 8 + size:
                break
            self._message(command, bytes(buffer[pos + 8 : pos + 8 + size]))
            pos += 8 + size
        del buffer[:pos]

    def _message(self, command: int, body: bytes) -> None:
        if command == 1:
            self._send(NAMED)  # an address may have more channels if its clients say who they are
            self._echo()
        elif command == 9:
            self._send(
                b"".join(
                    message(CREATE, struct.pack("<HI", 1, number) + text(name))
                    for number, name in enumerate(self.names)
                )
            )
        elif command == CREATE:
            cid, sid = struct.unpack_from("<II", body)
            if body[8] == 0xFF:
                self._send(message(MONITOR, struct.pack("<IIB", sid, cid, 8) + _EMPTY_REQUEST))
                self._sids[cid] = sid
            elif not self.ready.done():
                self.ready.set_exception(ConnectionError(body[9:].decode("utf-8", "replace")))
        elif command == MONITOR and body[4] & 8:
            (ioid,) = struct.unpack_from("<I", body)
            self._send(message(MONITOR, struct.pack("<IIB", self._sids.pop(ioid), ioid, 0x44)))
            self._left -= 1
            if not self._left:
                self.ready.set_result(None)

    def _echo(self) -> None:
        if self.alive:
            self._send(message(ECHO, b""))
            asyncio.get_running_loop().call_later(ECHO_S, self._echo)

    def _send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
