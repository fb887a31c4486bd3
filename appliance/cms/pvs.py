"""The service's PVs. Whatever a generic client tries on them, they answer.

Source: SPVA specification 10.2.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, Final

from appliance.authn.ccr import REPLY_TYPE, CertRequest, is_empty, parse_request
from appliance.authn.ratelimit import RateLimiter, peer_key, retry_sentence
from appliance.certmon.status_pv import STATUS_TYPE as STATUS
from appliance.certmon.status_pv import enum_index
from appliance.certmon.wire_arrays import san_array, schedule_array
from appliance.certs.status import WIRE_CHOICES, CertState, written_renew_by
from appliance.certs.x509 import (
    canonical_pv_name,
    cert_id,
    pem_chain,
    serial_number,
    shown_id,
)
from appliance.cms.issuing import Issued, Issuing
from appliance.cms.jobs import NOT_KNOWN
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.limits import Rates, SharedLimits
from appliance.cms.model import (
    Actor,
    names_of,
    schedule_of,
    shown_name,
    split_subject_key,
    windows_now,
)
from appliance.cms.policy import Names, Policy
from appliance.cms.publisher import Publisher
from appliance.cms.status_handler import StatusPV
from appliance.cms.transaction import CertRecord, StoreError
from appliance.config.hints import unknown
from appliance.config.zones import time_zone
from appliance.errors import ApplianceError, ConfigurationError, DatabaseLost, RequestRefused, TokenRefused
from appliance.pva.commands import CMD_RPC
from appliance.pva.credentials import Credentials
from appliance.pvdata import StructType, Value
from appliance.server import Handler, Operation, Source

__all__ = ["CMSSource", "CalledPV", "Counters", "CreatePV", "StatusCommands", "Tasks"]

_log: Final = logging.getLogger(__name__)
_LEAVES: Final = frozenset(STATUS.leaves)
REVOKED_OWN: Final = "REVOKED_OWN"
"""What an administrator puts to revoke their own certificate deliberately."""
_EVENTS: Final = {
    "APPROVED": "certificate-approved",
    "DENIED": "certificate-denied",
    "REVOKED": "certificate-revoked",
    REVOKED_OWN: "certificate-revoked",
}
"""The name of the event in the log, by what an administrator puts."""


class Counters:
    """What CERT:METRICS reports about requests."""

    __slots__ = ("average_ms", "in_flight", "limited", "refused")

    def __init__(self) -> None:
        self.refused = 0
        self.limited = 0
        self.in_flight = 0
        self.average_ms = 0.0

    def took(self, seconds: float) -> None:
        """Add the duration of one request to the moving average."""
        ms = seconds * 1000
        self.average_ms = ms if not self.average_ms else self.average_ms + (ms - self.average_ms) / 64


class Tasks:
    """Work that outlives the call that started it."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, operation: Operation | None, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work``; if it raises, the error is the operation's answer."""
        task = asyncio.get_running_loop().create_task(self._guard(operation, work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _guard(self, operation: Operation | None, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - a defect must be answered and logged, whoever asked
            if operation is not None:
                operation.broken(error)
            elif isinstance(error, ApplianceError):
                _log.warning("%s", error)
            else:
                _log.exception("internal error")

    async def finish(self) -> None:
        """Wait until everything is done."""
        while self._running:
            await asyncio.wait(self._running)


class CalledPV(Handler):
    """A PV that is called. Clients that ask for the PV's type get the type of its answer."""

    __slots__ = ("_answer", "_hint")

    def __init__(self, answer: StructType, hint: str) -> None:
        self._answer = answer
        self._hint = hint

    def init(self, operation: Operation) -> None:
        """Accept RPC only."""
        if operation.command == CMD_RPC:
            operation.ready()
        else:
            operation.fail(self._hint)

    def subscribe(self, subscription: Any) -> None:
        """Refuse."""
        subscription.fail(self._hint)

    def introspect(self, operation: Operation, field: str) -> None:
        """Tell the type of the answer."""
        if field not in self._answer.offsets:
            operation.fail(f"there is no field {field[:64]!r}")
        else:
            operation.reply_field(self._answer.leaf_types[self._answer.offsets[field]])


def asked(argument: Value | None, known: Collection[str]) -> Value | None:
    """Return the queries of a call: those of an NTURI, or the structure itself.

    Args:
        argument: What the client sent; None if it sent nothing.
        known: Names of the queries.

    Raises:
        RequestRefused: It has a query that is not known. What has no effect is never ignored: a misspelt filter would show too much.
    """
    if argument is None:
        return None
    query: Any = argument
    if isinstance(query.type, StructType):
        if "query" in query:
            query = query["query"]
        elif query.type.id.startswith("epics:nt/NTURI:"):
            return None
    if not isinstance(getattr(query, "type", None), StructType):
        raise RequestRefused(f"the queries are no structure; it may have {', '.join(sorted(known))}")
    for name in query.type.members:
        if name not in known:
            raise RequestRefused(unknown(f"query {name[:64]!r}", name, known))
    found: Value = query
    return found


class CreatePV(CalledPV):
    """CERT:CREATE."""

    __slots__ = (
        "_counters",
        "_issuing",
        "_limit",
        "_limiter",
        "_rates",
        "_shared",
        "_tasks",
        "_template",
        "refuses",
    )

    def __init__(
        self,
        issuing: Issuing,
        counters: Counters,
        tasks: Tasks,
        *,
        limiter: RateLimiter,
        in_flight: int,
        rates: Rates,
        shared: SharedLimits | None = None,
    ) -> None:
        super().__init__(
            REPLY_TYPE, "this PV is called with a certificate creation request; use authnstd or authnjwt"
        )
        self._issuing = issuing
        self._counters = counters
        self._tasks = tasks
        self._limiter = limiter
        self._limit = in_flight
        self._rates = rates
        self._shared = shared
        self.refuses: Callable[[], str] = lambda: ""
        """Returns why nothing is issued here; empty if that is not so."""
        self._template = Value(REPLY_TYPE)
        self._template["status.value.choices"] = self._template["value.choices"] = WIRE_CHOICES

    def limits(self, limiter: RateLimiter, in_flight: int, rates: Rates) -> None:
        """Use other limits."""
        self._limiter = limiter
        self._limit = in_flight
        self._rates = rates

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        """Issue a certificate; without a public key return the trust anchor."""
        counters = self._counters
        try:
            ccr = parse_request(argument)
            time_zone(ccr.time_zone)
        except ConfigurationError as error:
            counters.refused += 1
            raise RequestRefused(f"the field time_zone cannot be used by this service: {error}") from error
        except RequestRefused:
            counters.refused += 1
            raise
        if not ccr.pub_key:
            operation.reply(self._anchor())
            return
        why = self.refuses()
        if why:
            counters.refused += 1
            raise RequestRefused(why)
        wait_s = self._limiter.take(peer_key(operation.peer.peer))
        if wait_s:
            counters.limited += 1
            raise RequestRefused(retry_sentence(wait_s))
        if counters.in_flight >= self._limit:
            counters.limited += 1
            raise RequestRefused(retry_sentence(1.0))
        # Counted here and not in the task, so that requests that arrive together cannot all pass before the first begins.
        counters.in_flight += 1
        self._tasks.start(operation, self._create_within_limits(operation, ccr))

    async def _create_within_limits(self, operation: Operation, ccr: CertRequest) -> None:
        counters = self._counters
        try:
            if self._shared is not None:
                wait_s = await self._shared.take(self._rates.of(peer_key(operation.peer.peer)))
                if wait_s:
                    counters.limited += 1
                    raise RequestRefused(retry_sentence(wait_s))
            await self._create(operation, ccr)
        finally:
            counters.in_flight -= 1

    async def _create(self, operation: Operation, ccr: CertRequest) -> None:
        counters = self._counters
        started = time.monotonic()
        try:
            issued = await self._issuing.issue(ccr, operation.peer, wanted=lambda: operation.alive)
        except ApplianceError as error:
            counters.refused += 1
            told = {"event": "certificate-refused", "subject": ccr.name, **operation.peer.facts()}
            _log.info("refused a request of %s: %s%s", operation.peer.peer, error, _cause(error), extra=told)
            raise RequestRefused(f"Failed to create certificate for {_short(ccr)}: {error}") from error
        record = issued.record
        # Asked now, because the reply ends the operation of a client that declared that it calls only once.
        waits = operation.alive
        operation.reply(self._about(record, issued))
        counters.took(time.monotonic() - started)
        if waits and issued.pem:
            self._issuing.lifecycle.delivered(record.serial)
        elif issued.pem:
            await self._issuing.lifecycle.doubt(record.serial)
        subject = shown_name(split_subject_key(record.subject))
        event, done = (
            ("certificate-issued", "issued to") if issued.pem else ("certificate-renewed", "renewed by")
        )
        told = {
            "event": event, "cert_id": shown_id(self._issuing.names.issuer_id, record.serial), "state": record.state.value, "subject": subject,
            **operation.peer.facts(),
        }  # fmt: skip
        _log.info("%s is %s: %s %s", told["cert_id"], record.state.value, done, subject, extra=told)

    def _about(self, record: CertRecord, issued: Issued) -> Value:
        """Return the answer about a certificate that was issued, or renewed: then it has no ``cert`` (9.2)."""
        value = self._reply(
            record.state, record.serial, issued.cert_id, issued.status_pv, record.not_after, issued.pem
        )
        at, store = REPLY_TYPE.offsets, value.store
        store[at["renew_by"]] = written_renew_by(record.renew_by)
        if record.san:
            store[at["san"]] = san_array(names_of(record.san))
        if record.schedule:
            schedule = schedule_of(record)
            store[at["schedule"]] = schedule_array(windows_now(record, self._issuing.lifecycle.clock()))
            store[at["time_zone"]] = schedule.zone
            store[at["local"]] = schedule_array(schedule.windows if schedule.zone else ())
        return value

    def _reply(
        self, state: CertState, serial: int, identifier: str, status_pv: str, expiration: int, pem: str
    ) -> Value:
        value = Value.from_store(REPLY_TYPE, self._template.store.copy(), 1)
        at, store = REPLY_TYPE.offsets, value.store
        now = int(self._issuing.lifecycle.clock().timestamp())
        store[at["status.value.index"]] = store[at["value.index"]] = enum_index(state)
        store[at["status.timeStamp.secondsPastEpoch"]] = store[at["timeStamp.secondsPastEpoch"]] = now
        store[at["issuer"]] = self._issuing.names.issuer_id
        store[at["serial"]] = serial
        store[at["state"]] = state.value
        store[at["cert_id"]] = identifier
        store[at["status_pv"]] = status_pv
        store[at["expiration"]] = expiration
        store[at["cert"]] = pem
        return value

    def _anchor(self) -> Value:
        issuer = self._issuing.issuer
        root = issuer.chain[-1] if issuer.chain else issuer.certificate
        issuer_id = self._issuing.names.issuer_id
        serial = serial_number(issuer.certificate) & ((1 << 64) - 1)
        return self._reply(
            CertState.VALID,
            serial,
            cert_id(issuer_id, serial),
            self._issuing.names.status(serial),
            0,
            pem_chain(root),
        )


def _cause(error: ApplianceError) -> str:
    """Return why a token was refused, in the words of the audit. The requester is told less."""
    if not isinstance(error, TokenRefused):
        return ""
    answer = error.facts.get("issuer_answer")
    return f" ({error.reason}{f'; its issuer answered: {answer}' if answer else ''})"


def _short(ccr: CertRequest) -> str:
    if ccr.type == "jwt":
        return "the holder of the token"
    return f"{ccr.name[:64]}{f' ({ccr.organization[:64]})' if ccr.organization else ''}"


class StatusCommands:
    """PUT of ``state`` on a status PV: APPROVED, DENIED, REVOKED, and REVOKED_OWN."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        publishers: Iterable[Publisher],
        policy: Policy,
        names: Names,
        tasks: Tasks,
    ) -> None:
        self._lifecycle = lifecycle
        self._policy = policy
        self._names = names
        self._tasks = tasks
        self._refusals = RateLimiter(30, 30, clock=time.monotonic)
        self._failures = RateLimiter(60, 60, clock=time.monotonic)
        self._unrecorded = 0
        for publisher in publishers:
            publisher.on_put = self.put

    def put(self, pv: StatusPV, operation: Operation, value: Value, done: Callable[[], None]) -> None:
        """Do what an administrator, or the owner, asks for."""
        wanted = str(value["state"] if value.is_marked("state") else "").strip().upper()
        other = _other_field(pv, value)
        if wanted and other:
            raise RequestRefused(
                f"only the field state can be put, and {other} would not change; put state alone"
            )
        self._tasks.start(operation, self._put(pv.publisher.issuer, pv.serial, operation, wanted, done))

    async def _put(
        self, issuer: str, serial: int, operation: Operation, wanted: str, done: Callable[[], None]
    ) -> None:
        peer = operation.peer
        actor = Actor(peer.method, peer.account, peer.peer)
        administers, owns = self._policy.administers(peer), self._policy.owns(peer, serial)
        identifier = shown_id(issuer, serial)
        lifecycle = self._lifecycle
        why = ""
        if wanted not in ("APPROVED", "DENIED", "REVOKED", REVOKED_OWN):
            why = f"the state {wanted[:32]!r} cannot be put; use APPROVED, DENIED or REVOKED"
        elif wanted == REVOKED_OWN and not owns:
            why = f"{identifier} is not the certificate of your connection; put REVOKED"
        elif wanted == "REVOKED" and owns and administers:
            why = (
                f"{identifier} is your own administrator's certificate: you would lock yourself out. If you "
                f"want that, put {REVOKED_OWN}, or have another administrator revoke it"
            )
        elif not (administers or (owns and wanted in ("REVOKED", REVOKED_OWN))):
            why = f"{wanted} of {identifier} is not permitted to {peer.account or 'an anonymous client'}"
        if why:
            self.refused(peer, serial, wanted, why)
            raise RequestRefused(why)
        try:
            record = await lifecycle.find(serial)
            if record is not None and record.issuer != issuer:
                raise RequestRefused(f"{identifier} is not known here")
            if wanted == "APPROVED":
                record = await lifecycle.approve(serial, actor)
            elif wanted == "DENIED":
                record = await lifecycle.deny(serial, actor)
            else:
                record = await lifecycle.revoke(serial, actor, "by its owner" if owns else "")
        except (StoreError, DatabaseLost) as error:
            # The audit, which is in the same database, cannot record it.
            if not self._failures.take(""):
                told = {
                    "event": "command-failed", "command": wanted, "cert_id": identifier, **peer.facts()
                }  # fmt: skip
                became = "may have been done or not" if NOT_KNOWN in str(error) else "was NOT done"
                _log.error(
                    "%s of %s by %s %s: %s", wanted, identifier, peer.account, became, error, extra=told
                )
            raise
        told = {
            "event": _EVENTS[wanted], "cert_id": identifier, "state": record.state.value, **peer.facts()
        }  # fmt: skip
        _log.info("%s is %s: %s by %s", identifier, record.state.value, wanted, peer.account, extra=told)
        done()

    def refused(self, peer: Credentials, serial: int | None, wanted: str, why: str) -> None:
        """Record a refused attempt, unless this peer has filled the audit with them."""
        if self._refusals.take(peer_key(peer.peer)):
            self._unrecorded += 1
            return
        told = {"event": "command-refused", "command": wanted[:32], **peer.facts()}
        if serial is not None:
            told["cert_id"] = shown_id(self._names.issuer_id, serial)
        _log.warning("refused %s: %s", peer.peer, why, extra=told)
        facts = {"asked": wanted[:32], "why": why}
        if self._unrecorded:
            facts["unrecorded"] = str(self._unrecorded)
            self._unrecorded = 0
        actor = Actor(peer.method, peer.account, peer.peer)
        self._tasks.start(None, self._lifecycle.note("refuse", serial, actor, facts))

    def channel_refused(self, name: str, peer: Credentials, right: str) -> None:
        """Record a request that access security refused."""
        serial = self._names.serial_of(name)
        self.refused(peer, serial, right, f"access security refused {right} on {name[:128]!r}")


def _other_field(pv: StatusPV, value: Value) -> str:
    """Return a field beside ``state`` that a PUT would change; empty if there is none. Some clients send all that they have read."""
    shown = pv.store or pv.publisher.blank()
    for path, number in STATUS.offsets.items():
        if path != "state" and number in _LEAVES and value.is_marked(path):
            given = value.store[number]
            if not is_empty(given) and not _is_same(given, shown[number]):
                return path
    return ""


def _is_same(one: Any, other: Any) -> bool:
    return one.tobytes() == bytes(other) if hasattr(one, "tobytes") else bool(one == other)


class CMSSource(Source):
    """Maps names to the service's PVs."""

    def __init__(self, names: Names, publishers: Iterable[Publisher]) -> None:
        self.names_ = names
        self.pvs: dict[str, Handler] = {}
        self.is_able: Callable[[], bool] = lambda: True
        """Whether this node has its database. Without it other nodes are found for what only the database knows."""
        self.without_database: frozenset[str] = frozenset()
        """Names that are answered for in any case."""
        self.leaves_requests: Callable[[], bool] = lambda: False
        """Whether requests are left to other nodes."""
        self._publishers = {publisher.issuer: publisher for publisher in publishers}

    def add(self, handler: Handler, *names: str) -> None:
        """Serve a PV under some names."""
        for name in names:
            self.pvs[name] = handler

    def claims(self, name: str, host: str) -> bool:
        """Whether the name is one of ours, and can be answered for."""
        if name in self.without_database:
            return True
        if name in self.names_.create and self.leaves_requests():
            return False
        return (name in self.pvs or self.names_.serial_of(name) is not None) and self.is_able()

    def open(self, name: str, peer: Credentials) -> Handler | None:
        """Return the PV."""
        handler = self.pvs.get(canonical_pv_name(name))
        if handler is not None:
            return handler
        status = self.names_.status_of(name)
        return None if status is None else self._publishers[status[0]].pv(status[1])

    def names(self) -> list[str]:
        """Return all names except those of certificates."""
        return list(self.pvs)
