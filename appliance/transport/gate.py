"""The interface to live certificate status, for both ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from appliance.pva.credentials import Credentials

if TYPE_CHECKING:  # a tool that speaks plain TCP has no use for certificates, and starts faster without them
    from appliance.certs.status import StatusClass
    from appliance.tls.engine import TLSEngine

__all__ = ["PeerGate", "Verdict"]


class Verdict(NamedTuple):
    """A gate's decision about one connection.

    GOOD lets it go on. SUSPENDED and UNKNOWN give up one that is not yet admitted (7.3.1); one that is up stays, its
    monitors pause, PUT, PROCESS and RPC are refused, and with UNKNOWN GET too. BAD closes it.
    """

    status: StatusClass
    message: str = ""
    """The reason, for the peer and the operator."""

    @property
    def good(self) -> bool:
        """Whether the connection may go on."""
        return self.status.name == "GOOD"

    @property
    def bad(self) -> bool:
        """Whether the connection must close."""
        return self.status.name == "BAD"

    @property
    def lets_read(self) -> bool:
        """Whether at least GET is allowed."""
        return self.status.name in ("GOOD", "SUSPENDED")

    def forbids(self, *, changes: bool) -> bool:
        """Whether a request has to be refused while this verdict holds.

        Args:
            changes: Whether the request may change something: PUT, PROCESS and RPC.
        """
        return not (self.good or (self.lets_read and not changes))


class PeerGate(Protocol):
    """Decides about connections by the status of the certificates at both ends."""

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

    def plight(self, guid: bytes) -> str:
        """Return why this client speaks plain TCP with the server of this GUID; "" if the gate does not know."""
        return ""

    def gave_up(self, guid: bytes) -> None:
        """Note that the server with this GUID closed a TLS connection before validation; called by clients only."""
        return
