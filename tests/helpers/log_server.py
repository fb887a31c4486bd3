"""A log server for tests, as iocLogServer of EPICS Base is one."""

from __future__ import annotations

import socket
import threading

__all__ = ["LogServer"]


class LogServer:
    """It takes lines of text over TCP from whoever connects."""

    def __init__(self, port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self.lines: list[bytes] = []
        self._grown = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        try:
            for line in connection.makefile("rb"):
                with self._grown:
                    self.lines.append(line)
                    self._grown.notify_all()
        except OSError:
            pass

    def wait(self, count: int) -> list[bytes]:
        """Return the lines when there are so many."""
        with self._grown:
            assert self._grown.wait_for(lambda: len(self.lines) >= count, 30), self.lines
            return list(self.lines)

    def close(self) -> None:
        """Close the port and all connections."""
        # Without shutdown the thread that waits in accept() would keep the port.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
