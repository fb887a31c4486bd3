"""How long the event loop is kept from others: measured in the thread's own time, so that a busy machine does not count."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import struct
import time
from collections.abc import Iterator

from tests.helpers.raw import ANONYMOUS

NAMED = (
    struct.pack("<BBBBI", 0xCA, 2, 0, 1, 26)
    + struct.pack("<IHH", 65536, 32767, 0)
    + b"\x02ca\x80\0\x01\x04user\x60\x05alice"
)
"""A client's choice of method ``ca``."""


class Turns:
    """The turns of a loop so far."""

    seconds = 0.0
    """Length of the longest one."""
    count = 0


@contextlib.contextmanager
def longest_turn() -> Iterator[Turns]:
    """Watch every turn of the running loop. Garbage collection is pytest's heap here, and another test's matter."""
    loop = asyncio.get_running_loop()
    found = Turns()
    running = True

    def tick() -> None:
        nonlocal last
        now = time.thread_time()
        found.seconds = max(found.seconds, now - last)
        found.count += 1
        last = now
        if running:
            loop.call_soon(tick)

    gc.collect()
    gc.disable()
    last = time.thread_time()
    loop.call_soon(tick)
    try:
        yield found
    finally:
        running = False
        gc.enable()


def frame(command: int, body: bytes) -> bytes:
    """One message of a client."""
    return struct.pack("<BBBBI", 0xCA, 2, 0, command, len(body)) + body


class Hostile:
    """A client with a blocking socket: to be used in a thread, so that what it takes is not the event loop's time."""

    def __init__(
        self, port: int, *names: str, validation: bytes = ANONYMOUS, source: str = "127.0.0.1"
    ) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0))
        self.file = self.sock.makefile("rb")
        self.wait_for(1)
        self.sock.sendall(validation)
        self.wait_for(9)
        self.last = b""
        self.sids: list[int] = []
        for cid, name in enumerate(names, 1):
            self.sock.sendall(frame(7, struct.pack("<HI", 1, cid) + bytes((len(name),)) + name.encode()))
            self.last = self.wait_for(7)
            self.sids.append(struct.unpack_from("<II", self.last)[1])

    def wait_for(self, command: int, count: int = 1) -> bytes:
        """Read until ``count`` messages of ``command`` have come; give the last one's body. EOFError at the end."""
        while True:
            head = self.file.read(8)
            if len(head) < 8:
                raise EOFError
            _, _, flags, got, size = struct.unpack("<BBBBI", head)
            body = b"" if flags & 1 else self.file.read(size)
            if not flags & 1 and got == command:
                count -= 1
                if not count:
                    return body

    def monitor(self, sid: int, ioid: int) -> bytes:
        """Begin a subscription and give the status of the answer."""
        self.sock.sendall(frame(13, struct.pack("<IIB", sid, ioid, 8) + b"\xff"))
        while True:
            body = self.wait_for(13)
            if body[4] == 8:
                return body[5:]

    def rpc_init(self, ioid: int = 1) -> None:
        """Initialise an RPC of the first channel."""
        self.sock.sendall(frame(20, struct.pack("<IIB", self.sids[0], ioid, 8) + b"\xff"))
        self.wait_for(20)

    def call(self, argument: bytes, ioid: int = 1) -> None:
        """Call it."""
        self.sock.sendall(frame(20, struct.pack("<IIB", self.sids[0], ioid, 0) + argument))

    def close(self) -> None:
        """Close without a word."""
        self.file.close()
        self.sock.close()
