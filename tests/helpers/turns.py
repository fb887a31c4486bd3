"""How long the event loop is kept from others, counted in work: a busy machine is slower, but does not more of it.

The clock by which connections take turns is replaced by one that goes on with each line of the package that the event
loop's thread runs. So the same messages give the same turns on every machine, and a turn's length is a number of lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import appliance
from appliance.pvdata.pace import Pace
from tests.helpers.raw import ANONYMOUS

NAMED = (
    struct.pack("<BBBBI", 0xCA, 2, 0, 1, 26)
    + struct.pack("<IHH", 65536, 32767, 0)
    + b"\x02ca\x80\0\x01\x04user\x60\x05alice"
)
"""A client's choice of method ``ca``."""

GIVES_WAY = 10_000
"""The most lines in one turn of the loop. A slow machine takes ten milliseconds for them, a usual one takes one."""
_LINE_S = 1e-6
"""What a line counts for on the clock: more than it takes, so a slice is short and has few lines."""
_OURS = str(Path(appliance.__file__).parent)
_BREATHE = Pace._breathe.__code__


class Work:
    """What this thread has done so far."""

    lines = 0
    """Lines of the package that were run."""
    breathes = 0
    """How often long work could pause. It counts where one line moves very many octets."""


class Turns(Work):
    """The turns of a loop so far."""

    longest = 0
    """The most lines in one turn."""


@contextlib.contextmanager
def _counting(work: Work) -> Iterator[None]:
    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code is _BREATHE:
            work.breathes += 1
        # What is compiled at run time, as the codecs, has no file.
        return line if code.co_filename.startswith((_OURS, "<")) else None

    def line(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            work.lines += 1
        return line

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def lines_run() -> Iterator[Work]:
    """Count the lines that are run inside: how much work something is, on every machine."""
    work = Work()
    with _counting(work):
        yield work


@contextlib.contextmanager
def longest_turn() -> Iterator[Turns]:
    """Watch every turn of the running loop."""
    loop = asyncio.get_running_loop()
    found = Turns()
    running = True
    began = 0

    def tick() -> None:
        nonlocal began
        found.longest = max(found.longest, found.lines - began)
        began = found.lines
        if running:
            loop.call_soon(tick)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("turns", "udp"):
            patch.setattr(f"appliance.transport.{module}.monotonic", lambda: found.lines * _LINE_S)
        loop.call_soon(tick)
        try:
            with _counting(found):
                yield found
        finally:
            running = False


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

    def call(self, argument: bytes, ioid: int = 1, *, big: bool = False) -> None:
        """Call it, in a message that has the most significant octet first if ``big``."""
        order = ">" if big else "<"
        body = struct.pack(f"{order}IIB", self.sids[0], ioid, 0) + argument
        self.sock.sendall(struct.pack(f"{order}BBBBI", 0xCA, 2, 0x80 * big, 20, len(body)) + body)

    def close(self) -> None:
        """Close without a word."""
        self.file.close()
        self.sock.close()
