"""Status: how an answer says whether it worked (section 15.1)."""

from __future__ import annotations

from typing import Final, NamedTuple

from appliance.errors import AccessDeniedError, DecodeError, RemoteError
from appliance.pvdata.primitives import Buffer, decode_string, encode_string

__all__ = ["OK", "OK_BYTES", "Status"]

_MAX_TEXT: Final = 4096

_DENIED: Final = (
    "not permitted",
    "permission denied",
    "access denied",
    "denied by",
    "no read access",
    "no write access",
    "no process access",
)
"""What servers write when access security refuses: QSRV "Put not permitted", pvAccessCPP "no write access", p4p's
gateway "Put permission denied by gateway" and "Denied", this package "... access denied by access security"."""


class Status(NamedTuple):
    """The outcome of a request. ``kind`` is 0 OK, 1 warning, 2 error, 3 fatal."""

    kind: int = 0
    message: str = ""
    trace: str = ""

    @property
    def ok(self) -> bool:
        """Whether a value follows: OK and warning."""
        return self.kind < 2

    @classmethod
    def error(cls, message: str) -> Status:
        """Make an error whose text is bounded, since it may quote what a peer sent."""
        return cls(2, message if len(message) <= _MAX_TEXT else message[: _MAX_TEXT - 3] + "...")

    def encode(self, *, big: bool) -> bytes:
        """Encode; a plain OK is the one octet 0xFF."""
        if self.kind == 0 and not self.message and not self.trace:
            return OK_BYTES
        return bytes((self.kind,)) + encode_string(self.message, big) + encode_string(self.trace, big)

    @classmethod
    def decode(cls, buf: Buffer, pos: int, end: int, *, big: bool) -> tuple[Status, int]:
        """Decode at ``pos``; raises DecodeError."""
        if pos >= end:
            raise DecodeError("a Status is missing at the end of the message")
        kind = buf[pos]
        if kind == 0xFF:
            return OK, pos + 1
        if kind > 3:
            raise DecodeError(f"a Status has the unknown kind {kind}")
        message, pos = decode_string(buf, pos + 1, end, big)
        trace, pos = decode_string(buf, pos, end, big)
        return cls(kind, message, trace), pos

    def raise_for(self, what: str) -> None:
        """Raise RemoteError unless ok: AccessDeniedError if the text says that access was denied."""
        if self.ok:
            return
        text = self.message or "the server gave no reason"
        lowered = text.lower()
        denied = lowered == "denied" or any(word in lowered for word in _DENIED)
        kind = AccessDeniedError if denied else RemoteError
        raise kind(f"{what}: {text}" if what else text)


OK: Final = Status()
OK_BYTES: Final = b"\xff"
