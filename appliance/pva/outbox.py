"""What one end of a connection has to send: framing, segmentation and byte order.

Channels and operations put messages in, the connection hands them to the transport.

Source: PVAccess protocol specification, sections 4.2 (header), 11 (segmentation), 12 (control messages).
"""

from __future__ import annotations

from typing import Final

from appliance.pva import commands as c
from appliance.pva.packing import HEADER
from appliance.pvdata.primitives import Buffer

__all__ = ["COPY_LIMIT", "Outbox"]

COPY_LIMIT: Final = 4096
"""Octets up to which joining a payload to its header is cheaper than sending it as a chunk of its own."""


class Outbox:
    """Messages that wait to be sent, in order.

    Hot loops make a whole message themselves, append it to ``chunks`` and add its octets to ``size``: a call for
    each update would be felt there. They do so for messages of at most ``one_piece`` octets of payload.

    Attributes:
        big: Whether numbers in our messages are big-endian.
        flags: Header flags of our messages: direction and byte order.
        chunks: What waits. ``take`` replaces the list, so keep no reference to it beyond one call.
        size: Octets of ``chunks``.
        segment_size: Octets of payload above which a message leaves in segments; 0 never segments.
        one_piece: Octets of payload up to which a message is one chunk; -1 where messages leave in segments.
    """

    __slots__ = ("_direction", "big", "chunks", "flags", "one_piece", "segment_size", "size")

    def __init__(self, *, from_server: bool, big: bool = False, segment_size: int = 0) -> None:
        self._direction = c.FLAG_SERVER if from_server else 0
        self.chunks: list[Buffer] = []
        self.size = 0
        self.segment_size = segment_size
        self.one_piece = -1 if segment_size else COPY_LIMIT
        self.big = big
        self.flags = self._direction | (c.FLAG_BIG_ENDIAN if big else 0)

    def set_byte_order(self, *, big: bool) -> None:
        """Use this byte order from the next message on."""
        self.big = big
        self.flags = self._direction | (c.FLAG_BIG_ENDIAN if big else 0)

    def take(self) -> list[Buffer]:
        """Return everything that waits, and forget it."""
        chunks = self.chunks
        if chunks:
            self.chunks = []
            self.size = 0
        return chunks

    def control(self, command: int, value: int) -> None:
        """Send a control message, which has a value in the place of a payload."""
        head = HEADER[self.big].pack(c.MAGIC, c.VERSION, self.flags | c.FLAG_CONTROL, command, value)
        self.chunks.append(head)
        self.size += 8

    def send(self, command: int, payload: bytes) -> None:
        """Send a message, in segments if it is longer than ``segment_size``."""
        size = len(payload)
        if self.segment_size and size > self.segment_size:
            self._send_segments(command, payload)
            return
        head = HEADER[self.big].pack(c.MAGIC, c.VERSION, self.flags, command, size)
        if size <= COPY_LIMIT:
            self.chunks.append(head + payload)
        else:
            self.chunks.append(head)
            self.chunks.append(payload)
        self.size += 8 + size

    def send_parts(self, command: int, parts: list[Buffer]) -> None:
        """Send a message whose payload is ``parts``; long ones are not copied."""
        size = sum(map(len, parts))
        if size <= COPY_LIMIT or (self.segment_size and size > self.segment_size):
            self.send(command, b"".join(parts))
            return
        self.chunks.append(HEADER[self.big].pack(c.MAGIC, c.VERSION, self.flags, command, size))
        self.chunks.extend(parts)
        self.size += 8 + size

    def _send_segments(self, command: int, payload: bytes) -> None:
        view = memoryview(payload)
        step = self.segment_size
        last = (len(view) - 1) // step
        pack = HEADER[self.big].pack
        for index in range(last + 1):
            part = view[index * step : (index + 1) * step]
            if index == 0:
                position = c.FLAG_SEGMENT_FIRST
            elif index == last:
                position = c.FLAG_SEGMENT_LAST
            else:
                position = c.FLAG_SEGMENT_MIDDLE
            self.chunks.append(pack(c.MAGIC, c.VERSION, self.flags | position, command, len(part)))
            self.chunks.append(part)
        self.size += len(view) + 8 * (last + 1)

    def __repr__(self) -> str:
        return f"<Outbox {len(self.chunks)} chunks, {self.size} octets>"
