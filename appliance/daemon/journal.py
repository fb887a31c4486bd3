"""systemd-journald's native protocol: log records as fields that ``journalctl`` can search.

A datagram to journald's socket holds fields, each ``NAME=value`` and a line end. A value that contains line ends is sent
as ``NAME``, a line end, its length (64 bits, little endian), the value, a line end. What does not fit into a datagram is
sent as the descriptor of a sealed memory file. Source: systemd's JOURNAL_NATIVE_PROTOCOL, systemd.journal-fields(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["PREFIX", "SOCKET", "JournalSender", "encode", "field_name"]

SOCKET: Final = "/run/systemd/journal/socket"
PREFIX: Final = "SPVA_"
"""Prefix of the appliance's own fields."""

_LONGEST_NAME: Final = 64
_TIMEOUT_S: Final = 1.0
"""Seconds for which a full socket may delay the daemon: much less than its watchdog allows."""
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def field_name(key: str) -> str:
    """Return the journal field of an extra field of a record: upper case, with the appliance's prefix."""
    return (PREFIX + re.sub("[^A-Z0-9_]", "_", key.upper()))[:_LONGEST_NAME]


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return one entry as journald reads it."""
    parts = []
    for name, text in fields:
        value = text.encode(errors="backslashreplace")
        if b"\n" in value:
            parts += [name.encode(), b"\n", len(value).to_bytes(8, "little"), value, b"\n"]
        else:
            parts += [name.encode(), b"=", value, b"\n"]
    return b"".join(parts)


class JournalSender:
    """Sends records to journald."""

    def __init__(self, address: str = SOCKET) -> None:
        self._address = address
        self._identifier = os.path.basename(sys.argv[0])  # noqa: PTH119 - start-up time
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_TIMEOUT_S)

    def record(
        self, record: logging.LogRecord, priority: int, message: str, extra: Mapping[str, Any]
    ) -> bool:
        """Send one record; False if journald did not take it, so that somebody else must report it."""
        fields = [
            ("MESSAGE", message),
            ("PRIORITY", str(priority)),
            ("SYSLOG_IDENTIFIER", self._identifier),
            ("CODE_FILE", record.pathname),
            ("CODE_LINE", str(record.lineno)),
            ("CODE_FUNC", record.funcName or ""),
            (PREFIX + "LOGGER", record.name),
        ]
        for key, value in extra.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            fields.append((field_name(key), text))
        return self.send(encode(fields))

    def send(self, entry: bytes) -> bool:
        """Send an encoded entry of any size; False if journald did not take it."""
        try:
            self._socket.sendto(entry, self._address)
        except OSError as error:
            return error.errno in {errno.EMSGSIZE, errno.ENOBUFS} and self._send_sealed(entry)
        return True

    def _send_sealed(self, entry: bytes) -> bool:
        try:
            file = os.memfd_create("spva-journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            return False
        try:
            with open(file, "wb", closefd=False) as stream:
                stream.write(entry)
            # journald refuses a file that could change while it is read.
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            rights = file.to_bytes(4, sys.byteorder)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            self._socket.sendmsg([], ancillary, 0, self._address)
        except OSError:
            return False
        finally:
            os.close(file)
        return True

    def close(self) -> None:
        """Close the socket."""
        with contextlib.suppress(OSError):
            self._socket.close()
