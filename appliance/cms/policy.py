"""Who may do what: the access security file, and the state of the peers' own certificates.

Groups of the file: ``CERT_CREATE`` for requests (everybody if the file does not define it), ``CERT_STATUS`` for reading
the status (``DEFAULT`` if it is not defined), ``DEFAULT`` for everything else. An administrator is a peer that may write a
field of level 1 in ``DEFAULT`` and has proved its identity with a certificate, over TLS.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Final

from appliance.acf import AccessSecurity, Principal, load_acf
from appliance.certs.status import STATUS_CLASS, CertState, StatusClass
from appliance.certs.x509 import NO_STATUS, canonical_pv_name, names_status
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.transaction import CertRecord
from appliance.errors import AccessFileError, ApplianceError
from appliance.pva.credentials import Credentials
from appliance.server import NO_RIGHTS, AccessPolicy, Rights
from appliance.transport.gate import PeerGate, Verdict

if TYPE_CHECKING:
    from cryptography import x509

    from appliance.tls.engine import TLSEngine

__all__ = ["CertificateGate", "Names", "Policy", "read_acf"]

_log: Final = logging.getLogger(__name__)
_MAX_BYTES: Final = 4 << 20
_WHAT_TO_DO: Final = {
    CertState.SCHEDULED_OFFLINE: "it can be used in its hours, which pvxcert shows; until then connect without it",
    CertState.PENDING_RENEWAL: "renew it, on a connection without it",
    CertState.PENDING_APPROVAL: "an administrator has to approve it; until then connect without it",
}
"""What its holder can do about a certificate that is not VALID; for the other states another certificate is needed."""
_FINAL: Final = (CertState.REVOKED, CertState.EXPIRED)
_GOOD: Final = Verdict(StatusClass.GOOD)
_NOT_NOW: Final = Verdict(
    StatusClass.UNKNOWN, "the state of your certificate is not known at the moment; try again"
)
_NOT_HERE: Final = Verdict(
    StatusClass.BAD,
    "the state of your certificate cannot be known, because this node of the certificate service has lost its database; use another node",
)
_LAST_WORDS_S: Final = 0.02


class Names:
    """The names of the service's PVs."""

    __slots__ = (
        "_status",
        "create",
        "former",
        "health",
        "issuer",
        "issuer_id",
        "list",
        "metrics",
        "prefix",
        "root",
        "schedule",
    )

    def __init__(
        self, prefix: str, issuer_id: str, *, health: str = "", metrics: str = "", former: Sequence[str] = ()
    ) -> None:
        """Make the names.

        Args:
            prefix: Their first part.
            issuer_id: The authority that issues.
            health: Another name for CERT:HEALTH.
            metrics: Another name for CERT:METRICS.
            former: Authorities that issue no more. What is asked under their names is done by the present one, except that
                each has certificates, and so statuses, and a CERT:ISSUER of its own.
        """
        self.prefix = prefix
        self.issuer_id = issuer_id
        self.former = tuple(former)
        self.root, self.create, self.list, self.schedule = (
            (f"{prefix}:{what}", *(f"{prefix}:{what}:{each}" for each in (issuer_id, *former)))
            for what in ("ROOT", "CREATE", "LIST", "SCHEDULE")
        )
        self.issuer = (f"{prefix}:ISSUER", f"{prefix}:ISSUER:{issuer_id}")
        self.health, self.metrics = (
            (name, f"{name}:{issuer_id}")
            for name in (health or f"{prefix}:HEALTH", metrics or f"{prefix}:METRICS")
        )
        issuers = "|".join((issuer_id, *former))
        self._status = re.compile(rf"{re.escape(prefix)}:STATUS:({issuers}):([0-9]{{1,20}})", re.IGNORECASE)

    def status(self, serial: int) -> str:
        """Return the name of a certificate's status PV, as certificates contain it."""
        return f"{self.prefix}:STATUS:{self.issuer_id}:{serial:020d}"

    def issuer_of(self, former: str) -> str:
        """Return the name of a former authority's CERT:ISSUER."""
        return f"{self.prefix}:ISSUER:{former}"

    def status_of(self, name: str) -> tuple[str, int] | None:
        """Return the authority and the serial number, padded or not, in a status PV's name; None for any other name."""
        found = self._status.fullmatch(canonical_pv_name(name))
        if found is None or not name.isascii():
            return None
        serial = int(found[2])
        return (found[1].lower(), serial) if serial < 1 << 64 else None

    def serial_of(self, name: str) -> int | None:
        """Return the serial number in a status PV's name; None for any other name."""
        found = self.status_of(name)
        return None if found is None else found[1]


def read_acf(path: str) -> AccessSecurity:
    """Read the access security file.

    Raises:
        AccessFileError: The file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - path is text
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise AccessFileError(f"cannot read: {error.strerror}", file=path) from error
    except UnicodeDecodeError as error:
        raise AccessFileError("not UTF-8 text", file=path) from error
    if len(text) > _MAX_BYTES:
        raise AccessFileError(f"larger than {_MAX_BYTES} bytes", file=path)
    # As in a gateway, WRITE includes RPC: existing files expect it.
    return load_acf(text, file=path, gateway=True)


def _administrators(acf: AccessSecurity) -> frozenset[str]:
    names = {
        name.rpartition("/")[2]
        for members in acf.uags.values()
        for name in members
        if not name.startswith("role/")
    }
    entries = (entry for found in acf.subjects.values() for entry in found)
    return frozenset(names | {text for entry in entries for key, text in entry.parts if key == "CN"})


class Policy(AccessPolicy):
    """Judges peers by the access security file. `acf` may be replaced at any time."""

    def __init__(
        self, acf: AccessSecurity, names: Names, organizations: frozenset[str] = frozenset()
    ) -> None:
        self.acf = acf
        self._administrators = acf, _administrators(acf)
        self.names = names
        self.organizations = organizations
        """Organizations whose users the file names without organization, besides the service's own."""

    def administers(self, peer: Credentials) -> bool:
        """Whether a peer may approve, deny and revoke."""
        if peer.method != "x509" or not peer.is_tls:
            return False
        return self.acf.decide("DEFAULT", 1, Principal.of(peer, self.organizations)).write

    def owns(self, peer: Credentials, serial: int) -> bool:
        """Whether a peer proved its identity with exactly this certificate."""
        return (
            peer.method == "x509"
            and peer.is_tls
            and peer.serial == serial
            and peer.issuer_id in (self.names.issuer_id, *self.names.former)
        )

    def administrators(self) -> frozenset[str]:
        """Return names with a meaning in access security: nobody obtains them without approval."""
        of, names = self._administrators
        if of is not self.acf:
            self._administrators = self.acf, names = self.acf, _administrators(self.acf)
        return names

    def rights(self, name: str, peer: Credentials) -> Rights:
        """Return the rights of a peer on a channel."""
        name = canonical_pv_name(name)
        names, acf = self.names, self.acf
        principal = Principal.of(peer, self.organizations)
        if name in names.create:
            if "CERT_CREATE" in acf.groups:
                decision = acf.decide("CERT_CREATE", 1, principal)
                return Rights(read=decision.rpc or decision.write, rpc=decision.rpc or decision.write)
            return Rights(read=True, rpc=True)
        serial = names.serial_of(name)
        if serial is not None:
            group = "CERT_STATUS" if "CERT_STATUS" in acf.groups else "DEFAULT"
            write = self.administers(peer) or self.owns(peer, serial)
            return Rights(read=write or acf.decide(group, 0, principal).read, write=write)
        if name in names.list:
            allowed = self.administers(peer)
            return Rights(read=allowed, rpc=allowed)
        if name in names.schedule:
            # Whose certificate it is about stands in the request; the PV judges it.
            proved = peer.method == "x509" and peer.is_tls
            return Rights(read=proved, rpc=proved)
        if name in (*names.root, *names.issuer, *map(names.issuer_of, names.former)):
            # Public, and needed before a peer can prove anything.
            return Rights(read=True)
        if name in names.health or name in names.metrics or name == "server":
            read = acf.decide("DEFAULT", 0, principal).read
            return Rights(read=read, rpc=read)
        return NO_RIGHTS


class CertificateGate(PeerGate):
    """Refuses peers whose certificates this service knows as not valid, and disconnects them when that changes."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        is_issuer: Callable[[x509.Certificate], bool],
        exempt: Container[x509.Certificate],
        status_required: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make the gate.

        Args:
            lifecycle: Knows the certificates.
            is_issuer: Whether a certificate is that of an authority whose certificates count here. What a certificate says of its issuer
                (a name, the first digits of an identifier) does not tell: another authority below the same root may say the same.
            exempt: Certificates that are in no database: those of authorities themselves.
            status_required: Whether a peer's certificate must name its status PV.
        """
        self._lifecycle = lifecycle
        self._is_issuer = is_issuer
        self._exempt = exempt
        self._status_required = status_required
        self.is_fresh: Callable[[], bool] = lambda: True
        """Whether no certificate can have been changed elsewhere without notice."""
        self.gives_up: Callable[[], bool] = lambda: False
        """Whether it has not been fresh for so long that it is not waited for any more."""
        self._watchers: dict[int, dict[int, tuple[str, Callable[[Verdict], None]]]] = {}
        self._next = 0
        self._tasks: set[object] = set()
        lifecycle.listeners.append(self._changed)
        lifecycle.vanished.append(self._vanished)

    def watch(
        self,
        credentials: Credentials,
        verdict: Callable[[Verdict], None],
        *,
        engine: TLSEngine,
        guid: bytes = b"",
    ) -> Callable[[], None]:
        """See PeerGate."""
        serial = credentials.serial
        chain = engine.peer_chain
        if credentials.method != "x509" or (chain and chain[0] in self._exempt):
            verdict(_GOOD)
            return _nothing
        if len(chain) < 2 or not self._is_issuer(chain[1]):
            verdict(Verdict(StatusClass.BAD, "your certificate was not issued by this certificate service"))
            return _nothing
        if self._status_required() and not names_status(chain):
            verdict(Verdict(StatusClass.BAD, f"your certificate {NO_STATUS}"))
            return _nothing
        self._next += 1
        token = self._next
        self._watchers.setdefault(serial, {})[token] = credentials.issuer_id, verdict
        memory = self._lifecycle.memory
        memory.pin(serial)

        def unwatch() -> None:
            watchers = self._watchers.get(serial, {})
            if watchers.pop(token, None) is None:
                return
            memory.unpin(serial)
            if not watchers:
                del self._watchers[serial]

        known = memory.peek(serial)
        if known is not None and self._lifecycle.state(known) in _FINAL:
            verdict(self._judge(known, credentials.issuer_id))
        elif not self.is_fresh():
            verdict(_NOT_HERE if self.gives_up() else _NOT_NOW)
        elif memory.is_certain(serial):
            verdict(self._judge(known, credentials.issuer_id))
        else:
            task = asyncio.get_running_loop().create_task(self._ask(serial, token))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return unwatch

    async def _ask(self, serial: int, token: int) -> None:
        failure: Verdict | None = None
        record = None
        try:
            record = await self._lifecycle.find(serial)
        except ApplianceError as error:
            _log.warning("a client's certificate cannot be looked up: %s", error)
            failure = _NOT_NOW
        watcher = self._watchers.get(serial, {}).get(token)
        if watcher is not None:
            issuer, verdict = watcher
            verdict(failure or self._judge(record, issuer))

    def _judge(self, record: CertRecord | None, issuer: str) -> Verdict:
        """Judge a certificate of an authority by what the database has; a row of another authority is no row."""
        known = record is not None and record.issuer == issuer
        try:
            state = self._lifecycle.state(record) if known and record is not None else CertState.UNKNOWN
        except Exception:  # noqa: BLE001 - any doubt is less access
            _log.exception("the state of a client's certificate could not be judged")
            return Verdict(StatusClass.BAD, "the state of your certificate could not be judged")
        if state is CertState.VALID:
            return _GOOD
        what = _WHAT_TO_DO.get(state, "connect without it or request another one")
        return Verdict(STATUS_CLASS[state], f"your certificate is {state}; {what}")

    def _changed(self, record: CertRecord) -> None:
        if record.serial in self._watchers:
            # A moment later, so that a client that revokes its own certificate gets its answer before it is disconnected.
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._tell, record)

    def _vanished(self, serial: int) -> None:
        for issuer, verdict in list(self._watchers.get(serial, {}).values()):
            verdict(self._judge(None, issuer))

    def _tell(self, record: CertRecord) -> None:
        known = self._lifecycle.peek(record.serial) or record
        for issuer, verdict in list(self._watchers.get(record.serial, {}).values()):
            verdict(self._judge(known, issuer))


def _nothing() -> None:
    return None
