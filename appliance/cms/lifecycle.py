"""The life of certificates: which changes are permitted, when they happen, and who is told.

Source: SPVA specification 8 and 9.3. The permitted transitions are `appliance.certs.status.TRANSITIONS`.

All certificates whose state can still change are in memory; the others are read from the database when somebody asks.
Changes are committed before anybody is told, except those that the clock makes: these are valid without a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, Final

from appliance.authn.ratelimit import peer_key
from appliance.certs.schedule import Schedule
from appliance.certs.status import CertState, may_change, state_at_approval
from appliance.certs.x509 import shown_value
from appliance.cms.clockwork import AT_ONCE, Clockwork
from appliance.cms.inherit import (
    BARRED,
    approved_before,
    key_problem,
    may_supersede,
    other_holder,
    proves_the_name,
)
from appliance.cms.journal import Journal, JournalError
from appliance.cms.model import (
    SERVICE,
    Actor,
    NewCertificate,
    posix,
    shown_name,
    shown_time,
    state_now,
    utc,
)
from appliance.cms.store import (
    CertRecord,
    Store,
    Transaction,
    doubt_undelivered,
    live_records,
    mark_delivered,
)
from appliance.errors import ApplianceError, RequestRefused

__all__ = ["Lifecycle"]

_log: Final = logging.getLogger(__name__)
_FINISHED: Final = 20_000
"""Number of finished certificates that are kept in memory."""
_MOST_WAITING: Final = 10_000
_MOST_OF_ONE: Final = 500
"""Limits for requests that wait for approval: all, and those of one address."""
_SOON_S: Final = 0.2
_AGAIN_S: Final = 10.0
"""Seconds after which an end of a request that could not be recorded is tried again."""


class WaitingRequests:
    """The requests that wait for approval: serial number to the address that each came from, empty after a restart."""

    def __init__(self) -> None:
        self.came_from: dict[int, str] = {}

    def check(self, address: str) -> None:
        """Check that another request of this address may wait.

        Raises:
            RequestRefused: Too many requests wait already, all together or of this address.
        """
        here = self.came_from
        if len(here) >= _MOST_WAITING or (
            len(here) >= _MOST_OF_ONE and sum(other == address for other in here.values()) >= _MOST_OF_ONE
        ):
            raise RequestRefused(
                f"{len(here)} requests wait for approval, so no more are accepted now; ask an administrator to approve or deny them"
            )


Listener = Callable[[CertRecord], None]


class Lifecycle:
    """The states of all certificates of one service. ``clock`` gives the present time, aware.

    ``changed`` is called with the record of each certificate whose state has changed.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        clock: Callable[[], datetime],
        *,
        pending_s: int = 14 * 86400,
    ) -> None:
        self.store = store
        self.journal = journal
        self.clock = clock
        self.live: dict[int, CertRecord] = {}
        self.clockwork = Clockwork(
            clock, self.live, pending_s=pending_s, crossed=self._crossed, lapsed=self._lapsed
        )
        self.waiting = WaitingRequests()
        self.created = 0
        self.revoked = 0
        self.renewed = 0
        self.listeners: list[Listener] = []
        self._delivered: list[int] = []
        self._finished: OrderedDict[int, CertRecord] = OrderedDict()
        self._recording: set[asyncio.Task[None]] = set()
        self._noting = False
        self._pending: dict[int, CertRecord] = {}
        """Changes by the clock that wait to be recorded: serial to the record as the database has it."""

    # -- start ---------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the database before the service starts, and apply revocations that only the journal knows."""
        store, journal = self.store, self.journal
        now = posix(self.clock())

        def job(transaction: Transaction) -> tuple[list[CertRecord], list[tuple[int, int, bool]]]:
            doubt_undelivered(transaction)
            restored = 0
            for serial, at in journal.known.items():
                record = transaction.get(serial)
                if record is None or record.state in (CertState.REVOKED, CertState.EXPIRED):
                    continue
                bar_key = serial in journal.barred
                transaction.change(record, CertState.REVOKED, at=at, approved=False, bar_key=bar_key)
                transaction.audit(
                    now,
                    "revoke",
                    serial,
                    {**SERVICE.facts(), "why": "revoked before the database was restored"},
                )
                restored += 1
            if restored:
                _log.warning(
                    "%d certificates were revoked again: the database was restored from a backup", restored
                )
            return live_records(transaction), revoked_in(transaction)

        records, revoked = store.run(job)
        try:
            journal.add(
                [(serial, at) for serial, at, _ in revoked],
                barred=[serial for serial, _, barred in revoked if barred],
            )
        except JournalError as error:
            _log.error("%s", error)
        for record in records:
            self.live[record.serial] = record
            if record.state is CertState.PENDING_APPROVAL:
                self.waiting.came_from[record.serial] = ""
        self.clockwork.start(records)

    async def adopt(self) -> None:
        """Load what a command beside this service has recorded.

        Raises:
            StoreError: The database could not be used; nothing has changed.
        """
        for record in await self.store.submit(live_records):
            if self.peek(record.serial) is None:
                self._remember(record)

    # -- questions -----------------------------------------------------------------------------------

    def peek(self, serial: int) -> CertRecord | None:
        """Return what is known without asking the database."""
        return self.live.get(serial) or self._finished.get(serial)

    async def find(self, serial: int) -> CertRecord | None:
        """Return a certificate; None if it is not known.

        Raises:
            StoreError: The database could not be read.
        """
        found = self.peek(serial)
        if found is None:
            found = await self.store.submit(lambda transaction: transaction.get(serial))
            known = self.peek(serial)
            if known is not None:
                return known
            if found is not None:
                self._remember(found)
        return found

    def state(self, record: CertRecord) -> CertState:
        """Return the present state of a record."""
        return state_now(record, self.clock())

    # -- changes -------------------------------------------------------------------------------------

    async def create(self, request: NewCertificate, actor: Actor) -> CertRecord:
        """Record a certificate, or renew one that its requester has already.

        Returns:
            The record. With the request's serial number it is new, and the caller may sign it after this returns. With
            another one that certificate was renewed, and nothing is signed.

        Raises:
            RequestRefused: The certificate is not permitted.
            StoreError: The database could not be used.
        """
        now = self.clock()
        at = posix(now)
        key = request.key
        if request.approval_needed:
            self.waiting.check(peer_key(actor.peer))
        superseded: list[CertRecord] = []

        def refuse(transaction: Transaction, why: str) -> RequestRefused:
            transaction.audit(at, "refuse", None, {**actor.facts(), **_named(request), "why": why})
            return RequestRefused(why)

        def job(transaction: Transaction) -> CertRecord:
            superseded.clear()
            why = key_problem(request, transaction.of_key(request.key_id, request.skid))
            if why:
                raise refuse(transaction, why)
            known = transaction.of_subject(key)
            needed = request.approval_needed
            inherited = needed and approved_before(request, known)
            granted = not needed or inherited
            proven = proves_the_name(request, known)
            giving_way: list[tuple[CertRecord, str]] = []
            ended = (CertState.EXPIRED, CertState.REVOKED)
            live = [(old, state) for old in known if (state := state_now(old, now)) not in ended]
            why = other_holder(request, [old for old, _ in live])
            if why:
                raise refuse(transaction, why)
            for old, state in live:
                reason = may_supersede(request, old, state, granted=granted, proven=proven)
                if reason:
                    giving_way.append((old, reason))
                elif not request.roll_over:
                    raise refuse(transaction, _duplicate(request, state))
            for old, reason in giving_way:
                superseded.append(transaction.change(old, CertState.REVOKED, at=at, approved=False))
                transaction.audit(at, "revoke", old.serial, {**SERVICE.facts(), "why": reason})
            if granted:
                state = state_at_approval(now, request.not_before, request.not_after)
            else:
                state = CertState.PENDING_APPROVAL
            record = CertRecord(
                serial=request.serial,
                subject=key,
                usage=request.usage,
                method=request.method,
                not_before=posix(request.not_before),
                not_after=posix(request.not_after),
                renew_by=0,
                state=state,
                state_date=at,
                # A certificate that needed no approval has none that others could inherit.
                approved=inherited,
                delivered=0,
                skid=request.skid,
                identity=request.identity,
                no_status=request.no_status,
            )
            parts = request.subject
            more = {
                "cn": parts["CN"], "o": parts["O"], "ou": parts["OU"], "c": parts["C"], "created": at,
                "key_id": request.key_id,
            }  # fmt: skip
            transaction.add(record, more)
            facts = {**request.facts, **actor.facts(), **_named(request), "state": state.value}
            facts |= {
                "not_before": shown_time(request.not_before), "not_after": shown_time(request.not_after),
                "no_status": "yes" if request.no_status else "no", "proof": request.proof,
            }  # fmt: skip
            facts["why"] = (
                "approved before" if inherited else "approval needed" if needed else "no approval needed"
            )
            transaction.audit(at, "create", request.serial, facts)
            return record

        record = await self.store.submit(job, key)
        for old in superseded:
            self._journal(old)
            self._announce(old)
        self.created += 1
        if record.state is CertState.PENDING_APPROVAL:
            self.waiting.came_from[record.serial] = peer_key(actor.peer)
        self._announce(record)
        return record

    def delivered(self, serial: int) -> None:
        """Record, without hurry, that a requester has got its certificate."""
        self._delivered.append(serial)
        if len(self._delivered) == 1:
            asyncio.get_running_loop().call_later(_SOON_S, self._flush_delivered)

    def _flush_delivered(self) -> None:
        serials, self._delivered = self._delivered, []
        if serials:
            # Not awaited: if it is lost, the next start does not know whether they were delivered, which is safe.
            self.store.submit(mark_delivered(serials)).add_done_callback(_ignore)

    async def withdraw(self, record: CertRecord, why: str) -> None:
        """Revoke a certificate that could not be signed or handed over."""
        await self._change(
            record.serial, lambda _r, _s: (CertState.REVOKED, record.approved), "revoke", SERVICE, why
        )

    async def approve(self, serial: int, actor: Actor) -> CertRecord:
        """Approve a certificate.

        Raises:
            RequestRefused: The request is not permitted; the text says why.
            StoreError: The database could not be used; nothing has changed.
        """

        def decide(record: CertRecord, state: CertState) -> tuple[CertState, bool]:
            if state is not CertState.PENDING_APPROVAL:
                raise RequestRefused(
                    f"the certificate is {state}: only one that is PENDING_APPROVAL can be approved"
                )
            return state_at_approval(self.clock(), utc(record.not_before), utc(record.not_after)), True

        def check(transaction: Transaction) -> None:
            if any(use.barred for use in transaction.of_key(*transaction.key_of(serial))):
                raise RequestRefused(f"{BARRED}; deny this one, and have its requester make a new key")

        return await self._change(serial, decide, "approve", actor, "", check=check)

    async def deny(self, serial: int, actor: Actor) -> CertRecord:
        """Deny approval to a certificate.

        Raises:
            RequestRefused: The certificate is not known, or it does not wait for approval.
            StoreError: The database could not be used; nothing has changed.
        """

        def decide(_record: CertRecord, state: CertState) -> tuple[CertState, bool]:
            if state is not CertState.PENDING_APPROVAL:
                raise RequestRefused(
                    f"the certificate is {state}: only one that is PENDING_APPROVAL can be denied; "
                    "revoke it to end its use"
                )
            return CertState.REVOKED, False

        return await self._change(serial, decide, "deny", actor, "")

    async def revoke(self, serial: int, actor: Actor, why: str = "") -> CertRecord:
        """Revoke a certificate.

        Raises:
            RequestRefused: The request is not permitted; the text says why.
            StoreError: The database could not be used; nothing has changed.
        """

        def decide(record: CertRecord, state: CertState) -> tuple[CertState, bool]:
            if record.usage == "cms":
                raise RequestRefused(
                    "it is the certificate service's own certificate: nobody follows its status, so revoking it would stop "
                    "nobody. The service renews it by itself; if its key was stolen, stop the service, remove its keychain "
                    "and start it again; if the authority's key was stolen, make a new authority"
                )
            if state in (CertState.REVOKED, CertState.EXPIRED):
                raise RequestRefused(f"the certificate is {state} already")
            return CertState.REVOKED, False

        return await self._change(serial, decide, "revoke", actor, why, bar_key=True)

    async def reschedule(self, serial: int, schedule: Schedule, actor: Actor) -> CertRecord:
        """Set the schedule of a certificate.

        Raises:
            RequestRefused: The certificate is not known, or can have no schedule.
            StoreError: The database could not be used; nothing has changed.
        """
        raise NotImplementedError

    async def _change(
        self,
        serial: int,
        decide: Callable[[CertRecord, CertState], tuple[CertState, bool]],
        action: str,
        actor: Actor,
        why: str,
        *,
        check: Callable[[Transaction], None] | None = None,
        bar_key: bool = False,
    ) -> CertRecord:
        now = self.clock()
        at = posix(now)

        def job(transaction: Transaction) -> CertRecord:
            recorded = transaction.get(serial)
            facts: dict[str, Any] = {**actor.facts(), **({"why": why} if why else {})}
            if recorded is None:
                raise RequestRefused("the certificate is not known here")
            state = state_now(recorded, now)
            try:
                new, approved = decide(recorded, state)
                if check is not None:
                    check(transaction)
            except RequestRefused as refusal:
                transaction.audit(at, "refuse", serial, {**facts, "asked": action, "why": str(refusal)})
                raise
            if state is not recorded.state:
                # The clock's change comes first, because it happened first.
                recorded = transaction.change(recorded, state, at=at, approved=recorded.approved)
                transaction.audit(at, "clock", serial, {"state": state.value})
            if not may_change(state, new):
                raise RequestRefused(f"a certificate cannot go from {state} to {new}")
            changed = transaction.change(recorded, new, at=at, approved=approved, bar_key=bar_key)
            transaction.audit(at, action, serial, {**facts, "from": state.value, "state": new.value})
            return changed

        record = await self.store.submit(job)
        if record.state is CertState.REVOKED:
            self._journal(record, bar_key=bar_key)
            self.revoked += 1
        self._announce(record)
        return record

    async def note(self, action: str, serial: int | None, actor: Actor, facts: Mapping[str, str]) -> None:
        """Add a record to the audit that changes nothing.

        Raises:
            StoreError: The database could not be used; nothing has changed.
        """
        at = posix(self.clock())
        await self.store.submit(lambda t: t.audit(at, action, serial, {**facts, **actor.facts()}))

    def _journal(self, record: CertRecord, *, bar_key: bool = False) -> None:
        try:
            self.journal.add([(record.serial, record.state_date)], barred=(record.serial,) if bar_key else ())
        except JournalError as error:
            # The database has it. The journal only guards against restoring an older database.
            _log.error("%s; the service tries again soon", error)

    def catch_up_journal(self) -> None:
        """Write what the journal could not take before, if anything. Called now and then."""
        if self.journal.missing:
            with contextlib.suppress(JournalError):
                self.journal.add(())

    def _announce(self, record: CertRecord) -> None:
        if record.state is CertState.PENDING_APPROVAL:
            self.waiting.came_from.setdefault(record.serial, "")
        else:
            self.waiting.came_from.pop(record.serial, None)
        if record.state in (CertState.REVOKED, CertState.EXPIRED):
            self.live.pop(record.serial, None)
        self._remember(record)
        for listener in self.listeners:
            listener(record)

    def _remember(self, record: CertRecord) -> None:
        if record.state not in (CertState.REVOKED, CertState.EXPIRED):
            self.live[record.serial] = record
            self.clockwork.follow(record)
            return
        self._finished[record.serial] = record
        self._finished.move_to_end(record.serial)
        if len(self._finished) > _FINISHED:
            self._finished.popitem(last=False)

    # -- the clock -----------------------------------------------------------------------------------

    def tick(self) -> int:
        """Apply some of the changes that the clock makes, and have them recorded.

        Returns:
            Their number; 0 if nothing is left to do now.
        """
        due = self.clockwork.tick()
        if self._pending and not self._noting:
            self._noting = True
            self._start(self._record())
        return due

    def _crossed(self, record: CertRecord, state: CertState) -> None:
        self._pending.setdefault(record.serial, record)
        self._announce(record._replace(state=state, state_date=posix(self.clock())))

    def _lapsed(self, record: CertRecord) -> None:
        self._start(self._lapse(record))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    async def _lapse(self, record: CertRecord) -> None:
        """End a request that nobody has decided on."""

        def decide(_record: CertRecord, state: CertState) -> tuple[CertState, bool]:
            if state is not CertState.PENDING_APPROVAL:
                raise RequestRefused("it was decided in the meantime")
            return CertState.REVOKED, False

        waited = self.clockwork.pending_s
        why = f"nobody has approved it in {waited // 86400} days" if waited >= 86400 else (
            f"nobody has approved it in {waited} s"
        )  # fmt: skip
        try:
            await self._change(record.serial, decide, "lapse", SERVICE, why)
        except RequestRefused:
            return
        except ApplianceError as error:
            _log.error("%s", error)
            self.clockwork.look_again(record.serial, self.clock().timestamp() + _AGAIN_S)

    async def _record(self) -> None:
        try:
            await self._record_all()
        finally:
            self._noting = False

    async def _record_all(self) -> None:
        while self._pending:
            batch = dict(list(self._pending.items())[:AT_ONCE])
            now = self.clock()
            at = posix(now)

            def job(
                transaction: Transaction,
                serials: tuple[int, ...] = tuple(batch),
                now: datetime = now,
                at: int = at,
            ) -> None:
                for serial in serials:
                    recorded = transaction.get(serial)
                    known = self.peek(serial)
                    if recorded is None or known is None:
                        continue
                    state = (
                        known.state if may_change(recorded.state, known.state) else state_now(recorded, now)
                    )
                    if state is not recorded.state:
                        transaction.change(recorded, state, at=at, approved=recorded.approved)
                        transaction.audit(at, "clock", serial, {"state": state.value})

            try:
                await self.store.submit(job)
            except ApplianceError as error:
                # The change is valid without the record. The next tick tries again, and the store logs what is wrong.
                _log.debug("%s", error)
                return
            for serial in batch:
                self._pending.pop(serial, None)

    async def settle(self) -> None:
        """Wait until everything is recorded, also what is not urgent."""
        self._flush_delivered()
        while self._recording:
            await asyncio.wait(self._recording)


def _ignore(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def revoked_in(transaction: Transaction) -> list[tuple[int, int, bool]]:
    """Return serial number and date of each revoked certificate in the database, and whether its key is barred."""
    import sqlalchemy as sa

    from appliance.cms.schema import certs

    query = sa.select(certs.c.serial, certs.c.state_date, certs.c.barred).where(
        certs.c.issuer == transaction._issuer, certs.c.state == CertState.REVOKED.value
    )
    return [
        (int(serial), int(at), bool(barred)) for serial, at, barred in transaction.connection.execute(query)
    ]


def _duplicate(request: NewCertificate, state: CertState) -> str:
    parts = {part: shown_value(text) for part, text in request.subject.items()}
    cure = (
        "an administrator has to approve or deny it"
        if state is CertState.PENDING_APPROVAL
        else "have that one revoked first"
    )
    return (
        f"Duplicate Certificate Subject: cn={parts['CN']}, o={parts['O']}, ou={parts['OU']}, "
        f"c={parts['C']}: it has a certificate that is not revoked or expired; {cure}"
    )


def _named(request: NewCertificate) -> dict[str, str]:
    named = {"subject": shown_name(request.subject)}
    if request.identity:
        named["identity"] = request.identity
    return named | {"usage": request.usage, "type": request.method, "skid": request.skid}
