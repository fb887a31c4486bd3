"""The service manager's side of a daemon: readiness, status, watchdog and inherited sockets.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

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
