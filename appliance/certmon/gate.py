"""Decide by certificate status about connections: the gate of clients and of servers.

Source: SPVA specification 7.3 to 7.3.1, 8.4, 12.5, 15.2.

One gate serves one Context or one Server. The worse of two certificates decides about a connection: the peer's, if it has
one that names a status PV, and our own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from appliance.certmon.status_source import CertStatus, Following, StatusSource, reference
from appliance.certs.status import CertState, StatusClass
from appliance.certs.x509 import NO_STATUS, names_status, shown_id
from appliance.config.tls_options import TLSOptions
from appliance.errors import ApplianceError, CertificateStatusError
from appliance.pva.credentials import Credentials
from appliance.transport.gate import PeerGate, Verdict

if TYPE_CHECKING:
    from appliance.tls.engine import TLSEngine

__all__ = ["StatusGate", "describe_plight"]

_log: Final = logging.getLogger(__name__)

PATIENCE_S: Final = 1.5
"""Seconds for which a connection waits for the first status of a certificate. This is half a second more than three search
intervals, so a lost datagram does no harm; two such waits fit into the five seconds that tools wait.
"""
SERVER_PATIENCE_S: Final = 3.0
"""The same at a server: longer, so that a client that can use plain TCP decides for itself."""
MAX_AVOIDED: Final = 256
AVOID_S: Final = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds for which a client does not use TLS with a server after a failure, longer each time."""

_ORDER: Final = (StatusClass.GOOD, StatusClass.SUSPENDED, StatusClass.UNKNOWN, StatusClass.BAD)


class _Avoided:
    """A server with which TLS does not work at present."""

    __slots__ = ("count", "following", "timer", "until")

    def __init__(self) -> None:
        self.following: Following | None = None
        """The interest that is kept, so that the server's recovery is noticed (12.5.2)."""
        self.until = 0.0
        self.count = 0
        self.timer: asyncio.TimerHandle | None = None


class StatusGate(PeerGate):
    """Admits, suspends and closes connections by certificate status. ``recovered`` gets a server's GUID when TLS to it works again."""

    def __init__(self, source: StatusSource, options: TLSOptions, *, server_side: bool) -> None:
        self.source = source
        self.options = options
        self.recovered: Callable[[bytes], None] | None = None
        self.server_side = server_side
        self._own: Following | None = None
        self._watches: dict[_Watch, None] = {}
        self._avoided: OrderedDict[bytes, _Avoided] = OrderedDict()

    @property
    def patience_s(self) -> float:
        """Seconds for which a connection waits for the first status."""
        return SERVER_PATIENCE_S if self.server_side else PATIENCE_S

    # -- the own certificate -------------------------------------------------------------------------

    @property
    def own(self) -> Following | None:
        """What is known of our own certificate; None if nobody tells its status."""
        return self._own

    @own.setter
    def own(self, following: Following | None) -> None:
        self._own = following

    def own_changed(self) -> None:
        """Judge all connections again, after the status of our own certificate has changed."""
        for watch in list(self._watches):
            watch.judge()

    # -- PeerGate ------------------------------------------------------------------------------------

    def watch(
        self,
        credentials: Credentials,
        verdict: Callable[[Verdict], None],
        *,
        engine: TLSEngine,
        guid: bytes = b"",
    ) -> Callable[[], None]:
        """See PeerGate. The certificate that TLS has verified is the one that counts."""
        watch = _Watch(self, credentials, verdict, guid)
        try:
            chain = engine.peer_chain
            ref = reference(chain)
            if ref is None and self.source.follows_issuer_of(chain) and not names_status(chain):
                raise CertificateStatusError(f"the certificate of {watch.name} {NO_STATUS}")
            if ref is not None:
                watch.peer = self.source.follow(ref, watch.judge)
                if engine.peer_staple:
                    watch.peer.offer(engine.peer_staple)
        except ApplianceError as error:
            # An unreadable extension, too many certificates, an end that is closing: no status, so no admission.
            watch.close()
            verdict(Verdict(StatusClass.BAD, str(error)))
            return _nothing
        self._watches[watch] = None
        watch.start()
        return watch.close

    def forget(self, watch: _Watch) -> None:
        """Forget a closed connection."""
        self._watches.pop(watch, None)

    def avoids(self, guid: bytes) -> bool:
        """See PeerGate."""
        entry = self._avoided.get(guid)
        if entry is None:
            return False
        if entry.following is not None and entry.following.status.status_class is not StatusClass.GOOD:
            return True
        return entry.until > self.source.loop.time()

    def plight(self, guid: bytes) -> str:
        """See PeerGate."""
        if self._own is not None and self._own.status.status_class is not StatusClass.GOOD:
            return f"this client used plain TCP, where it has no proved name: {describe_plight(self._own.status)}"
        entry = self._avoided.get(guid)
        if entry is None or not self.avoids(guid):
            return ""
        why = "TLS with this server failed a moment ago"
        if entry.following is not None and entry.following.status.status_class is not StatusClass.GOOD:
            why = describe_plight(entry.following.status, "the server's certificate")
        return f"this client used plain TCP, where it has no proved name: {why}"

    def gave_up(self, guid: bytes) -> None:
        """Use plain TCP for a while with a server that does not accept our certificate and does not say why."""
        if guid and self.options.on_no_cms == "fallback-to-tcp":
            pause = self._avoid(guid)
            _log.warning(
                "the server did not admit this client over TLS; the next attempt is in %.0f s", pause
            )

    # -- servers to which TLS is of no use -----------------------------------------------------------

    def avoid(self, guid: bytes, following: Following) -> None:
        """Do not use TLS with a server until its certificate is good again, or it has another one."""
        if not guid or self.server_side:
            return
        self._avoid(guid)
        entry = self._avoided[guid]
        if entry.following is not None:
            if entry.following.ref.key == following.ref.key:
                return
            entry.following.close()
            entry.following = None

        def changed() -> None:
            if entry.following is not None and entry.following.status.status_class is StatusClass.GOOD:
                self.validated(guid)
                self._tell(guid)

        try:
            entry.following = self.source.follow(following.ref, changed)
        except CertificateStatusError as error:
            _log.warning("%s", error)

    def _avoid(self, guid: bytes) -> float:
        """Do not use TLS with a server for a while, longer each time; return for how many seconds."""
        entry = self._avoided.get(guid)
        if entry is None:
            while len(self._avoided) >= MAX_AVOIDED:
                self._drop(next(iter(self._avoided)))
            entry = self._avoided[guid] = _Avoided()
        pause = AVOID_S[min(entry.count, len(AVOID_S) - 1)]
        loop = self.source.loop
        if entry.until <= loop.time():
            entry.count += 1
            entry.until = loop.time() + pause
            if entry.timer is not None:
                entry.timer.cancel()
            entry.timer = loop.call_later(pause + 0.01, self._try_again, guid)
        return pause

    def _try_again(self, guid: bytes) -> None:
        """Have a TLS connection tried beside the plain one: the server may have a new certificate."""
        entry = self._avoided.get(guid)
        if entry is not None:
            entry.timer = self.source.loop.call_later(AVOID_S[-1], self._try_again, guid)
            self._tell(guid)

    def _tell(self, guid: bytes) -> None:
        if self.recovered is not None:
            self.recovered(guid)

    def validated(self, guid: bytes) -> None:
        """Forget a server's former failures: TLS to it works."""
        if guid in self._avoided:
            self._drop(guid)

    def _drop(self, guid: bytes) -> None:
        entry = self._avoided.pop(guid)
        if entry.timer is not None:
            entry.timer.cancel()
        if entry.following is not None:
            entry.following.close()

    def close(self) -> None:
        """Forget everything."""
        for guid in list(self._avoided):
            self._drop(guid)


class _Watch:
    """One connection."""

    __slots__ = ("_admitted", "_credentials", "_gate", "_guid", "_last", "_timer", "_verdict", "peer")

    def __init__(
        self, gate: StatusGate, credentials: Credentials, verdict: Callable[[Verdict], None], guid: bytes
    ) -> None:
        self._gate = gate
        self._credentials = credentials
        self._verdict = verdict
        self._guid = guid
        self._admitted = False
        self._last: Verdict | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.peer: Following | None = None

    def start(self) -> None:
        self.judge()
        if self._last is None:
            gate = self._gate
            self._timer = gate.source.loop.call_later(gate.patience_s, self._too_long)

    def close(self) -> None:
        """End the watch of a closed connection. May be called again."""
        self._gate.forget(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.peer is not None:
            self.peer.close()
            self.peer = None

    def judge(self) -> None:
        """Tell the connection its state, if that has changed."""
        try:
            self._judge()
        except Exception:  # noqa: BLE001 - any doubt is less access
            _log.exception("%s: judging the status of the certificate failed", self.name)
            self._verdict(Verdict(StatusClass.BAD, "the status of a certificate could not be judged"))

    def _judge(self) -> None:
        gate = self._gate
        own, peer = gate.own, self.peer
        parties: list[tuple[str, Following]] = []
        if peer is not None:
            parties.append((f"the certificate of {self.name}", peer))
        if own is not None:
            # Peers see this text too, so it says no more than they may know.
            parties.append((f"this {'server' if gate.server_side else 'client'}'s certificate", own))
        if self._admitted:
            # The keychain has just been replaced: this connection does not use the new certificate.
            parties = [(what, party) for what, party in parties if party.status.delivered]
        elif any(not party.status.delivered for _, party in parties) and not any(
            party.status.status_class is StatusClass.BAD for _, party in parties
        ):
            return
        worst = StatusClass.GOOD
        message = ""
        culprit: Following | None = None
        for what, party in parties:
            status = party.status
            if _ORDER.index(status.status_class) > _ORDER.index(worst):
                worst, message, culprit = status.status_class, f"{what} {_describe(status)}", party
        self._say(Verdict(worst, message), culprit)

    @property
    def name(self) -> str:
        """The peer's name for messages."""
        credentials = self._credentials
        identity = f" ({shown_id(credentials.issuer_id, credentials.serial)})" if credentials.serial else ""
        return f"{credentials.account or 'the peer'}{identity}"

    def _say(self, verdict: Verdict, culprit: Following | None = None) -> None:
        if verdict == self._last:
            return
        self._last = verdict
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gate = self._gate
        if verdict.good:
            self._admitted = True
            gate.validated(self._guid)
        elif culprit is not None and culprit is self.peer and self._is_hopeless(verdict, culprit):
            gate.avoid(self._guid, culprit)
        self._verdict(verdict)

    def _is_hopeless(self, verdict: Verdict, culprit: Following) -> bool:
        """Whether the next connection over TLS would fail as well.

        A certificate that has EXPIRED under a connection was not the last one: servers replace theirs before, and keep their connections
        if another authority has certified the same key.
        """
        if not self._admitted:
            return True
        return verdict.bad and culprit.status.state is not CertState.EXPIRED

    def _too_long(self) -> None:
        self._timer = None
        gate = self._gate
        waited = self.peer if self.peer is not None and not self.peer.status.delivered else None
        if waited is not None and gate.options.on_no_cms == "fallback-to-tcp":
            gate.avoid(self._guid, waited)
        name = self.name if waited is not None else "this end"
        self._say(
            Verdict(
                StatusClass.UNKNOWN,
                f"no status for {name}'s certificate within {gate.patience_s:g} s; "
                "check that the certificate service runs and that EPICS_PVA_ADDR_LIST reaches it",
            )
        )


def _nothing() -> None:
    """Do nothing: there is nothing to end."""


def _describe(status: CertStatus) -> str:
    """Return the end of a sentence that begins with a certificate."""
    if status.status_class is StatusClass.UNKNOWN and status.valid_until is not None:
        return (
            f"is {status.state}: its status is not known at present; its last status has expired, or the service does not "
            "know the certificate"
        )
    return f"is {status.state}"


def describe_plight(status: CertStatus, whose: str = "its certificate") -> str:
    """Explain to a refused peer that a certificate cannot be used now."""
    if status.state is CertState.UNKNOWN:
        return (
            f"the status of {whose} is not known at present; try again when the certificate service answers"
        )
    return f"{whose} is {status.state}"
