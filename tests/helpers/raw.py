"""A client of a few lines that does exactly what it is told: also what no decent client would do."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from typing import Self

_EMPTY_REQUEST = b"\x80\x00\x01\x05field\x80\x00\x00"


def message(command: int, body: bytes) -> bytes:
    return struct.pack("<BBBBI", 0xCA, 2, 0, command, len(body)) + body


def text(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


ANONYMOUS = message(1, struct.pack("<IHH", 65536, 32767, 0) + text("anonymous") + b"\xff")


def claimed(user: str) -> bytes:
    """The message that claims an account without proof."""
    return message(
        1, struct.pack("<IHH", 65536, 32767, 0) + text("ca") + b"\x80\0\x01\x04user\x60" + text(user)
    )


def _encoded(request: str) -> bytes:
    if not request:
        return _EMPTY_REQUEST
    from appliance.pva.typed import encode_typed
    from appliance.pvdata.pvrequest import PVRequest
    from appliance.pvdata.value import Value

    parsed = PVRequest(request)
    return b"".join(encode_typed(Value.from_store(parsed.type, parsed.store), big=False))


class RawClient:
    """One validated connection, read only when a test reads."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next = 1

    @classmethod
    async def connect(
        cls,
        port: int,
        *,
        receive_buffer: int = 0,
        tls: bool = False,
        validation: bytes = ANONYMOUS,
        source: str = "",
    ) -> Self:
        """Connect to 127.0.0.1 as anonymous; small buffers make a reader that does not read felt soon.

        ``validation`` is the whole message that chooses another method; ``source`` is the client's own address.
        """
        sock = socket.socket()
        sock.setblocking(False)
        if source:
            sock.bind((source, 0))
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port))
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(
            sock=sock, limit=65536, ssl=context, server_hostname="" if tls else None
        )
        self = cls(reader, writer)
        while (await self.message())[0] != 1:
            pass
        await self.send(validation)
        while (await self.message())[0] != 9:
            pass
        return self

    async def message(self) -> tuple[int, bytes]:
        """Read one message: its command and body; control messages have command -1."""
        head = await self._reader.readexactly(8)
        _, _, flags, command, size = struct.unpack("<BBBBI", head)
        if flags & 1:
            return -1, b""
        return command, await self._reader.readexactly(size)

    async def message_size(self) -> int:
        """Read one message and tell how many octets it had."""
        return 8 + len((await self.message())[1])

    async def skip(self, size: int) -> None:
        """Read that many octets."""
        await self._reader.readexactly(size)

    async def read_some(self, size: int) -> bytes:
        """Read up to ``size`` octets, at least one; nothing at the end."""
        return await self._reader.read(size)

    async def send(self, data: bytes) -> None:
        """Write, and wait while the server does not take it."""
        self._writer.write(data)
        await self._writer.drain()

    async def channel(self, name: str) -> int:
        """Create a channel and give its server-side number."""
        number = self._next
        self._next += 1
        await self.send(message(7, struct.pack("<HI", 1, number) + text(name)))
        while True:
            command, body = await self.message()
            if command == 7:
                assert body[8] == 0xFF, body
                return int(struct.unpack_from("<II", body)[1])

    async def get_init(self, name: str, request: str = "") -> bytes:
        """Initialise a GET, with a pvRequest in words; what it gives is the message that asks once."""
        sid = await self.channel(name)
        ioid = self._next
        self._next += 1
        await self.send(message(10, struct.pack("<IIB", sid, ioid, 8) + _encoded(request)))
        while (await self.message())[0] != 10:
            pass
        return message(10, struct.pack("<IIB", sid, ioid, 0))

    async def permissions(self, name: str) -> int:
        """Create a channel and tell what the server permits: the bits of ACL_CHANGE, all if it says nothing."""
        number = self._next
        self._next += 2
        await self.send(message(7, struct.pack("<HI", 1, number) + text(name)))
        said, sid = 255, -1
        while True:
            command, body = await self.message()
            if command == 6:
                said = body[4]
            elif command == 7:
                assert body[8] == 0xFF, body
                sid = int(struct.unpack_from("<II", body)[1])
                await self.send(message(17, struct.pack("<II", sid, number + 1) + text("")))
            elif command == 17:
                return said

    async def monitor(self, name: str, queue_size: int = 0) -> None:
        """Subscribe and start; nothing that comes is read."""
        sid = await self.channel(name)
        ioid = self._next
        self._next += 1
        request = _EMPTY_REQUEST
        if queue_size:
            options = b"\x80\x00\x01" + text("queueSize") + b"\x60"
            request = (
                b"\x80\x00\x01"
                + text("record")
                + b"\x80\x00\x01"
                + text("_options")
                + options
                + text(str(queue_size))
            )
        await self.send(message(13, struct.pack("<IIB", sid, ioid, 8) + request))
        while (await self.message())[0] != 13:
            pass
        await self.send(message(13, struct.pack("<IIB", sid, ioid, 0x44)))

    def pause(self) -> None:
        """Leave in the socket whatever comes from now on."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def close(self) -> None:
        """Close without a word."""
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
