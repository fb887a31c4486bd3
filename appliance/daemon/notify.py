"""The service manager's side of a daemon: readiness, status, watchdog and inherited sockets.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping

__all__ = ["Notifier"]


class Notifier:
    """Sends state to $NOTIFY_SOCKET; without one every call does nothing.

    A message that cannot be sent is dropped: a service must not stop because its manager does not listen.
    """

    __slots__ = ("_address", "_socket", "watchdog_s")

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = ""
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            # A leading @ stands for the NUL of Linux's abstract name space.
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self.watchdog_s = self._watchdog(environ) if self._socket else None
        """Seconds within which the manager expects a message; None without a watchdog."""

    @staticmethod
    def _watchdog(environ: Mapping[str, str]) -> float | None:
        period, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        if not (period.isascii() and period.isdecimal() and len(period) < 20) or int(period) == 0:
            return None
        # Meant for another process, such as the shell that started us.
        return None if pid and pid != str(os.getpid()) else int(period) / 1e6

    def send(self, *assignments: str) -> bool:
        """Send ``NAME=value`` lines in one message; return whether the manager's socket took it."""
        if self._socket is None:
            return False
        lines = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
        try:
            self._socket.sendto(lines.encode(errors="replace"), self._address)
        except OSError:
            return False
        return True

    def ready(self, status: str = "") -> bool:
        """Tell the manager that start-up is finished."""
        return self.send("READY=1", *([f"STATUS={status}"] if status else []))

    @contextlib.contextmanager
    def starting(self, *, every_s: float = 10.0, most_s: float = 3600.0) -> Iterator[None]:
        """Ask the manager for more time as long as a start goes on: one that waits for a database, or changes its tables, is not dead.

        By a thread, because a start may block the event loop.

        Args:
            every_s: Seconds between two messages. Each asks for three times as long.
            most_s: Seconds after which the manager's own limit holds again: a start that hangs ends some time.
        """
        ended = threading.Event()

        def ask() -> None:
            for _ in range(max(1, int(most_s / every_s))):
                self.send(f"EXTEND_TIMEOUT_USEC={int(every_s * 3e6)}")
                if ended.wait(every_s):
                    return

        thread = threading.Thread(target=ask, name="starting", daemon=True)
        if self._socket is not None:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if self._socket is not None:
                thread.join()

    def status(self, text: str) -> bool:
        """Tell the manager one line for ``systemctl status``."""
        return self.send(f"STATUS={text}")

    def reloading(self) -> bool:
        """Tell the manager that a reload has begun; `ready` ends it (``Type=notify-reload`` needs both, and the time)."""
        return self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """Tell the manager that the service has begun to stop."""
        return self.send("STOPPING=1")

    def watchdog(self) -> bool:
        """Tell the manager that the service is alive."""
        return self.send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
