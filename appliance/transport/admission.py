"""Turns a gate's verdicts into what happens to one connection. Client and server follow the same rule.

Source: SPVA specification 7.3.1 (the give-up rule) and 8.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from appliance.pva.credentials import Credentials
from appliance.transport.gate import PeerGate, Verdict

if TYPE_CHECKING:  # a tool that speaks plain TCP starts faster without OpenSSL
    from appliance.tls.engine import TLSEngine

__all__ = ["Admission", "AdmissionOwner"]


class AdmissionOwner(Protocol):
    """One end of a connection, which does what the rule says. All methods are called in the event loop."""

    @property
    def validated(self) -> bool:
        """Whether the peer was let in: the connection has been validated (PVAccess 6.2)."""

    def admit(self) -> None:
        """Let the peer in, or begin to. Called at most once, and before `pause`, `resume` and `cut`."""

    def refuse(self, verdict: Verdict) -> None:
        """Give up a connection that is not validated. Nothing else is called afterwards."""

    def pause(self, verdict: Verdict) -> None:
        """Pause a validated connection. A pause may follow a pause, for another reason."""

    def resume(self) -> None:
        """Continue after a pause. Also called if there is no pause."""

    def cut(self, verdict: Verdict) -> None:
        """Close a validated connection at once. Nothing else is called afterwards."""

    def broken(self, error: Exception) -> None:
        """Close the connection at once: a defect has stopped one of the methods above. Nothing else is called afterwards."""


class Admission:
    """The admission of one peer, from the moment its identity is known to the end of the connection.

    Only a connection with TLS and a gate has one. On any other there is no certificate to judge: its peer is admitted
    at once.

    | verdict | connection that is not validated | connection that is |
    |---|---|---|
    | GOOD | the peer is admitted | goes on |
    | SUSPENDED, UNKNOWN | is given up: the status will not become good while it waits | pauses |
    | BAD | is given up | is cut off |

    Args:
        owner: Does what the rule says.
    """

    __slots__ = ("_admitted", "_ended", "_over", "_owner", "_unwatch")

    def __init__(self, owner: AdmissionOwner) -> None:
        self._owner = owner
        self._admitted = False
        """Whether `admit` was called; a client is validated a moment later, when the server answers."""
        self._over = False
        """Whether the peer was refused or cut off, or has gone: a later verdict changes nothing."""
        self._ended = False
        self._unwatch: Callable[[], None] | None = None

    def begin(
        self, gate: PeerGate, credentials: Credentials, engine: TLSEngine, *, guid: bytes = b""
    ) -> None:
        """Let ``gate`` judge the peer from now on.

        Args:
            gate: Judges peers.
            credentials: The peer's identity.
            engine: The connection's TLS.
            guid: The server's GUID if this end is the client.
        """
        unwatch = gate.watch(credentials, self._judge, engine=engine, guid=guid)
        if self._ended:  # the first verdict came from inside `watch` and ended the connection
            unwatch()
        else:
            self._unwatch = unwatch

    def end(self) -> None:
        """Stop judging: the connection has ended. A second call does nothing."""
        self._ended = self._over = True
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()

    def _judge(self, verdict: Verdict) -> None:
        if self._over:
            return
        try:
            self._do(verdict)
        except Exception as error:  # noqa: BLE001 - in doubt the connection ends, and others with the same verdict get theirs
            self._over = True
            self._owner.broken(error)

    def _do(self, verdict: Verdict) -> None:
        owner = self._owner
        if not owner.validated:
            if not verdict.good:
                self._over = True
                owner.refuse(verdict)
            elif not self._admitted:
                self._admitted = True
                owner.admit()
        elif verdict.good:
            owner.resume()
        elif verdict.bad:
            self._over = True
            owner.cut(verdict)
        else:
            owner.pause(verdict)
