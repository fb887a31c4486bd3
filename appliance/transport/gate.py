"""The seam where live certificate status plugs in, at either end."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from appliance.pva.credentials import Credentials

if TYPE_CHECKING:
    from appliance.tls.engine import TLSEngine

__all__ = ["PeerGate", "Standing", "Verdict"]


class Standing(Enum):
    """What a connection may do (SPVA 8.4)."""

    GOOD = "good"
    """Go on."""
    SUSPENDED = "suspended"
    """A connection that is up stays: its monitors pause, PUT, PROCESS and RPC are refused, GET goes on. One that is
    not yet admitted is given up (7.3.1)."""
    UNKNOWN = "unknown"
    """As SUSPENDED, but nothing goes on."""
    BAD = "bad"
    """Close."""


class Verdict(NamedTuple):
    """A gate's word about one connection."""

    standing: Standing
    message: str = ""
    """Why, fit for the peer's and the operator's eyes."""


class PeerGate(Protocol):
    """Decides about connections by what lies outside them: the status of the certificates at both ends."""

    def watch(
        self,
        credentials: Credentials,
        verdict: Callable[[Verdict], None],
        *,
        engine: TLSEngine,
        guid: bytes = b"",
    ) -> Callable[[], None]:
        """Call ``verdict`` as soon as it is known whether the peer may go on, and whenever that changes.

        Until the first call the connection waits. ``verdict`` may be called from inside ``watch``. ``guid`` is the
        server's where the watcher is a client. Returns what to call when the peer has gone.
        """

    def avoids(self, guid: bytes) -> bool:
        """Whether TLS to the server with this GUID is of no use at present (12.5); asked by clients only."""
        return False

    def gave_up(self, guid: bytes) -> None:
        """The server with this GUID has closed a TLS connection before it was validated."""
        return
