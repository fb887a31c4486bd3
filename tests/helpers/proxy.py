"""A TCP proxy in front of a database server, which loses answers and connections when a test says so."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class Proxy:
    """Passes what comes on a port of its own to another one."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._is_cut = False
        self._swallow: bytes | None = None
        self.swallowed = threading.Event()
        """Set when the connection of a swallowed answer is gone."""
        threading.Thread(target=self._accept, daemon=True).start()

    def swallow_answer_to(self, statement: bytes) -> None:
        """Pass the next ``statement`` on, but end its connection instead of passing the answer back."""
        self.swallowed.clear()
        self._swallow = statement

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._is_cut = True
        self._end_all()

    def mend(self) -> None:
        """Pass on again."""
        self._is_cut = False

    def lead_to(self, port: int) -> None:
        """Pass new connections on to another server: what a name does that means another host now."""
        self._target = port

    def _end_all(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _end(*pair)

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_cut:
                _end(client)
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 10)
            except OSError:
                _end(client)
                continue
            server.settimeout(None)
            with self._lock:
                self._pairs.append((client, server))
            loses = threading.Event()
            for source, target, watched in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pass, args=(source, target, loses, watched), daemon=True
                ).start()

    def _pass(
        self, source: socket.socket, target: socket.socket, loses: threading.Event, watched: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                wanted = self._swallow
                if watched and wanted is not None and wanted in data:
                    self._swallow = None
                    loses.set()
                if not watched and loses.is_set():
                    # The server has answered, so what it was asked is done.
                    break
                target.sendall(data)
        _end(source, target)
        if not watched and loses.is_set():
            self.swallowed.set()


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
