"""A server of a few lines that does exactly what it is told: also what no decent server would do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self

from tests.helpers.raw import text

VALIDATION, SEARCH, SEARCH_RESPONSE, CREATE_CHANNEL, VALIDATED = 1, 3, 4, 7, 9
GET, PUT, MONITOR, RPC = 10, 11, 13, 20
OK = b"\xff"


def message(command: int, body: bytes) -> bytes:
    return struct.pack("<BBBBI", 0xCA, 2, 0x40, command, len(body)) + body


WELCOME = struct.pack("<BBBBI", 0xCA, 2, 0x41, 2, 0) + message(
    VALIDATION, struct.pack("<IH", 65536, 32767) + b"\x01" + text("anonymous")
)


class Conversation:
    """One connection of a client."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def message(self) -> tuple[int, bytes]:
        """The client's next message; control messages are left out."""
        while True:
            head = self._exactly(8)
            _, _, flags, command, size = struct.unpack("<BBBBI", head)
            if not flags & 1:
                return command, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data
        out, self._buffer = self._buffer[:size], self._buffer[size:]
        return out

    def until_end(self) -> None:
        """Read on, and say nothing."""
        while True:
            self.message()


Answer = Callable[[Conversation, int, bytes], None]


class RawServer:
    """Listens on 127.0.0.1 on threads of its own.

    Args:
        answer: Called with each message of a client that opened a channel. It claims every name that begins with ``odd``.
        welcome: Called instead of the usual beginning of a connection.
    """

    def __init__(
        self, answer: Answer | None = None, welcome: Callable[[Conversation], None] | None = None
    ) -> None:
        self._answer = answer
        self._welcome = welcome
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.connections = 0
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads[0].join()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for sock in self._open:
            sock.close()

    @property
    def conf(self) -> dict[str, str]:
        """The settings of a client that knows of this server, and of no other."""
        return {
            "EPICS_PVA_ADDR_LIST": "127.0.0.1:9",
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            **self.conf_of_name_server,
        }

    @property
    def conf_of_name_server(self) -> dict[str, str]:
        """The setting of a client that asks this server, too."""
        return {"EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{self.port}"}

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                self.connections += 1
                self._open.append(sock)
                thread = threading.Thread(target=self._serve, args=(Conversation(sock),))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: Conversation) -> None:
        with contextlib.suppress(OSError, EOFError):
            if self._welcome is not None:
                self._welcome(client)
                return
            client.send(WELCOME)
            while True:
                command, body = client.message()
                if command == VALIDATION:
                    client.send(message(VALIDATED, OK))
                elif command == SEARCH:
                    self._found(client, body)
                elif command == CREATE_CHANNEL:
                    (cid,) = struct.unpack_from("<I", body, 2)
                    client.send(message(CREATE_CHANNEL, struct.pack("<II", cid, cid) + OK))
                elif self._answer is not None:
                    self._answer(client, command, body)

    @staticmethod
    def _found(client: Conversation, body: bytes) -> None:
        seq = body[:4]
        at = 4 + 1 + 3 + 16 + 2
        for _ in range(body[at]):
            at += 1 + body[at + 1]
        at += 1
        (count,) = struct.unpack_from("<H", body, at)
        at += 2
        found = []
        for _ in range(count):
            number, size = body[at : at + 4], body[at + 4]
            if body[at + 5 : at + 5 + size].startswith(b"odd"):
                found.append(number)
            at += 5 + size
        if found:
            head = bytes(12) + seq + bytes(16) + struct.pack("<H", 0) + text("tcp") + b"\x01"
            client.send(message(SEARCH_RESPONSE, head + struct.pack("<H", len(found)) + b"".join(found)))
