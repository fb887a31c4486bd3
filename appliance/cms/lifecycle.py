"""The life of certificates: which changes are permitted, when they happen, and who is told.

Source: SPVA specification 8 and 9.3. The permitted transitions are `appliance.certs.status.TRANSITIONS`.

Certificates that somebody watches are in memory; the others are read from the database when somebody asks. Changes are
committed before anybody is told, except those that the clock makes: these are valid without a record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from appliance.authn.jwt.replay import USED_BEFORE
from appliance.authn.ratelimit import peer_key
from appliance.certs.schedule import Schedule
from appliance.certs.status import CertState, may_change
from appliance.cms.clockwork import Clockwork
from appliance.cms.feed import OthersRevocations
from appliance.cms.inherit import (
    BARRED,
    LATE,
    Deliveries,
    answer_lost,
    approved_before,
    came_of_token,
    changes_authority,
    has_just_been_answered,
    key_problem,
    may_supersede,
    other_holder,
    proves_the_name,
)
from appliance.cms.journal import Journal, JournalError
from appliance.cms.memory import Memory
from appliance.cms.model import (
    SERVICE,
    Actor,
    NewCertificate,
    as_told,
    boundary_of,
    posix,
    renewed_at,
    schedule_of,
    shown_time,
    state_now,
    utc,
)
from appliance.cms.reading import Readers
from appliance.cms.renewal import Fresh, Renewed, judge
from appliance.cms.replay import is_old_proof
from appliance.cms.revocations import Revocations
from appliance.cms.rows import (
    approval_begins,
    columns_beside,
    duplicate,
    facts_of,
    named,
    new_row,
    schedule_fault,
    schedule_that_holds,
    shown_schedule,
    state_when_renewed,
)
from appliance.cms.schema import certs
from appliance.cms.store import Store
from appliance.cms.sweep import Sweep
from appliance.cms.transaction import (
    IN_DOUBT,
    CertRecord,
    Transaction,
    doubt_undelivered,
    mark_delivered,
    mark_doubted,
)
from appliance.cms.waiting import WaitingRequests
from appliance.errors import ApplianceError, DatabaseLost, RequestRefused

__all__ = ["Lifecycle"]

_log: Final = logging.getLogger(__name__)
_SOON_S: Final = 0.2
_AGAIN_S: Final = 10.0
"""Seconds after which what could not be recorded is tried again."""


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
        readers: Readers,
        *,
        pending_s: int = 14 * 86400,
    ) -> None:
        self.store = store
        self.journal = journal
        self.clock = clock
        self.readers = readers
        self.memory = Memory(
            readers, lambda: store.authorities, learned=self._learned, told=self._changed_elsewhere
        )
        self.clockwork = Clockwork(clock, self.memory.watched, crossed=self._crossed, hinted=self._tell)
        self.sweep = Sweep(store, readers, told=self._told, done=self._swept, pending_s=pending_s)
        store.next_at = self._next_at
        self.waiting = WaitingRequests()
        self.deliveries = Deliveries()
        store.unclaimed = self._unclaimed
        self.others = OthersRevocations(readers, journal, lambda: store.authorities)
        self.revocations = Revocations(store, journal, heard=self._heard)
        self.known_to: int | None = None
        """Number of the last audit record that `load` knew of; None before it."""
        self.created = 0
        self.revoked = 0
        self.renewed = 0
        self.clock_fault: Callable[[], str] = lambda: ""
        """Returns why the clock is not to be believed; empty if it may be. While it is not, nothing that it changes is recorded."""
        self.listeners: list[Listener] = []
        self.vanished: list[Callable[[int], None]] = []
        """Called with the serial number of a certificate that was known and is in the database no more."""
        self._delivered: list[int] = []
        self._recording: set[asyncio.Task[None]] = set()
        self._sweeping = False
        self._lapses_differ = True
        """Whether the setting may have been another one when the ends of waiting requests were computed."""
        self._pending: dict[int, CertRecord] = {}
        """Changes by the clock that wait to be recorded: serial to the record as the database has it."""

    # -- start ---------------------------------------------------------------------------------------

    def load(self, doubted: Collection[str] | None = None) -> None:
        """Read the database before the service starts, and apply revocations that only the journal knows.

        Args:
            doubted: The nodes of whose undelivered certificates nobody knows what became of them; None: all.
        """
        now = posix(self.clock())

        def job(transaction: Transaction) -> None:
            doubt_undelivered(transaction, doubted)
            self.revocations.combine(transaction, now)
            self.known_to = transaction.audit_head[0]

        self.store.run(job)

    def _heard(self) -> int | None:
        if not self.store.database.is_server:
            return None
        return self.known_to if self.others.seq is None else self.others.seq

    # -- questions -----------------------------------------------------------------------------------

    def peek(self, serial: int) -> CertRecord | None:
        """Return what is known without asking the database."""
        return self.memory.peek(serial)

    async def find(self, serial: int) -> CertRecord | None:
        """Return a certificate; None if it is not known.

        Raises:
            StoreError: The database could not be read.
        """
        return await self.memory.find(serial)

    def state(self, record: CertRecord) -> CertState:
        """Return the present state of a record."""
        return state_now(record, self.clock())

    def _told(self, recorded: CertRecord, now: datetime) -> CertState:
        """Return the present state of a record as the database has it, in a job.

        What the clock has changed may have been told and not recorded yet. It stays told, wherever the clock goes.
        """
        return state_now(as_told(recorded, self.peek(recorded.serial)), now)

    def _next_at(self, record: CertRecord) -> int | None:
        """Return when the clock changes a record's state, or ends it if it waits for approval."""
        when = boundary_of(record, self.clock())
        if when is not None and record.state is CertState.PENDING_APPROVAL:
            when = min(when, record.state_date + self.sweep.pending_s)
        return None if when is None else math.ceil(when)

    def refuses(self) -> str:
        """Return why nothing is issued, approved or scheduled at present; empty if it is."""
        fault = self.clock_fault()
        return f"{fault}; until then ask another node" if fault and self.store.database.is_server else fault

    def _need_clock(self) -> None:
        why = self.refuses()
        if why:
            raise RequestRefused(why)

    # -- changes -------------------------------------------------------------------------------------

    async def create(self, asked: NewCertificate, actor: Actor, *, will_answer: bool = False) -> CertRecord:
        """Record a certificate, or renew one that its requester has already.

        Args:
            asked: What is asked for.
            actor: Who asks.
            will_answer: Whether the caller says afterwards what became of the answer: with `delivered`, `withdraw` or
                `doubt`. Until then the same request is told to wait.

        Returns:
            The record. With the request's serial number it is new, and the caller may sign it after this returns. With
            another one that certificate was renewed, and nothing is signed.

        Raises:
            RequestRefused: The certificate is not permitted.
            StoreError: The database could not be used.
        """
        self._need_clock()
        now = self.clock()
        at = posix(now)
        key = asked.key
        address = peer_key(actor.peer)
        answering = self.deliveries.answering
        others: list[CertRecord] = []
        seq = 0

        def refuse(transaction: Transaction, why: str) -> RequestRefused:
            transaction.audit(at, "refuse", None, {**actor.facts(), **named(asked), "why": why})
            return RequestRefused(why)

        def job(transaction: Transaction) -> CertRecord:
            nonlocal seq
            others.clear()
            why = key_problem(asked, transaction.of_key(asked.key_id, asked.skid))
            if why:
                raise refuse(transaction, why)
            known = transaction.of_subject(key)
            ended = (CertState.EXPIRED, CertState.REVOKED)
            live = [(old, state) for old in known if (state := self._told(old, now)) not in ended]
            why = other_holder(asked, [old for old, _ in live])
            if why:
                raise refuse(transaction, why)
            request = _believed(transaction, asked, live, at)
            lost = self._lost_answers(request, [old for old, _ in live], at)
            if request.repeated and not lost and any(came_of_token(request, old) for old, _ in live):
                raise refuse(transaction, USED_BEFORE)
            try:
                own = [(old, state) for old, state in live if old.issuer == transaction.issuer]
                decision = judge(request, [(old, state) for old, state in own if old not in lost], now)
            except RequestRefused as refusal:
                raise refuse(transaction, str(refusal)) from None
            if isinstance(decision, Renewed):
                renewed = self._renew(transaction, request, decision.record, decision.renew_by, actor, now)
                seq = transaction.audit_head[0]
                return renewed
            schedule, by_admin = schedule_that_holds(request, known, now)
            why = schedule_fault(schedule, no_status=request.no_status, by_admin=by_admin)
            if why:
                raise refuse(transaction, why)
            needed = request.approval_needed
            full = self.waiting.problem(transaction, address) if needed else ""
            if full:
                raise RequestRefused(full)
            inherited = needed and approved_before(request, known)
            granted = not needed or inherited
            proven = proves_the_name(request, known)
            giving_way: list[tuple[CertRecord, str]] = []
            for old, state in live:
                reason = lost.get(old) or may_supersede(request, old, state, granted=granted, proven=proven)
                may_stay = request.roll_over or changes_authority(request, old, transaction.issuer)
                if not reason and not may_stay and _gave_up(transaction, request, old, at):
                    reason = LATE
                if reason:
                    giving_way.append((old, reason))
                elif not may_stay:
                    raise refuse(transaction, duplicate(request, state, in_doubt=old.delivered == IN_DOUBT))
            if isinstance(decision, Fresh):
                others.append(self._renew(transaction, request, decision.release, 0, actor, now))
            for old, reason in giving_way:
                others.append(transaction.change(old, CertState.REVOKED, at=at, approved=False))
                transaction.audit(at, "revoke", old.serial, {**SERVICE.facts(), "why": reason})
            # A certificate that needed no approval has none that others could inherit.
            record = new_row(request, schedule, now, granted=granted, approved=inherited)
            if record.state is CertState.PENDING_APPROVAL:
                record = record._replace(came_from=address[:64])
            record = transaction.add(record, columns_beside(request, at))
            if record.state is CertState.PENDING_APPROVAL:
                self.waiting.add(transaction, record.came_from)
            if will_answer:
                answering.add(record.serial)
            facts = {**request.facts, **actor.facts(), **named(request)}
            facts |= facts_of(request, record, by_admin=by_admin)
            facts["why"] = (
                "approved before" if inherited else "approval needed" if needed else "no approval needed"
            )
            transaction.audit(at, "create", request.serial, facts)
            seq = transaction.audit_head[0]
            return record

        try:
            record = await self.store.submit(
                job,
                key,
                key=(asked.key_id, asked.skid),
                undone=partial(answering.discard, asked.serial),
            )
        except DatabaseLost:
            raise  # perhaps it is recorded: `_unclaimed` learns it, and nobody gets an answer until then
        except BaseException:
            answering.discard(asked.serial)
            raise
        for other in others:
            if other.state is CertState.REVOKED:
                self._journal(other)
            self._announce(other, seq)
        if record.serial != asked.serial:
            self.renewed += 1
        else:
            self.created += 1
        self._announce(record, seq)
        return record

    def _renew(
        self,
        transaction: Transaction,
        request: NewCertificate,
        old: CertRecord,
        renew_by: int,
        actor: Actor,
        now: datetime,
    ) -> CertRecord:
        """Move a certificate's ``renew_by``, inside a job; 0: it need not be renewed any more."""
        at = posix(now)
        before = self._told(old, now)
        if before is not old.state:
            # The clock's change comes first, because it happened first.
            old = transaction.change(old, before, at=at, approved=old.approved)
            transaction.audit(at, "clock", old.serial, {"state": before.value})
        state = state_when_renewed(old._replace(renew_by=renew_by), now)
        # A date that does not move puts off no hint.
        since = at if renew_by != old.renew_by else renewed_at(old)
        record = transaction.renew(old, renew_by=renew_by, renewed_at=since, state=state, at=at)
        facts = {**request.facts, **actor.facts(), **named(request), "proof": request.proof}
        facts |= {
            "from": before.value, "state": state.value,
            "renew_by": shown_time(utc(renew_by)) if renew_by else "none",
            "renew_by_before": shown_time(utc(old.renew_by)) if old.renew_by else "none",
        }  # fmt: skip
        transaction.audit(at, "renew", old.serial, facts)
        return record

    def _lost_answers(
        self, request: NewCertificate, live: Sequence[CertRecord], at: int
    ) -> dict[CertRecord, str]:
        """Return the certificates that give way because their requester has not got them, and why."""
        found = {}
        for old in live:
            why = answer_lost(request, old, at=at, node=self.store.node, deliveries=self.deliveries)
            if why:
                found[old] = why
        return found

    def delivered(self, serial: int) -> None:
        """Record, without hurry, that a requester has got its certificate."""
        self.deliveries.answering.discard(serial)
        self._delivered.append(serial)
        if len(self._delivered) == 1:
            asyncio.get_running_loop().call_later(_SOON_S, self._flush_delivered)

    def _flush_delivered(self) -> None:
        serials, self._delivered = self._delivered, []
        if serials:
            # Not awaited: if the process ends first, the next start does not know whether they were delivered, which is safe.
            done = self.store.submit(mark_delivered(serials))
            done.add_done_callback(lambda future: self._marked(serials, future))

    def _marked(self, serials: list[int], done: asyncio.Future[None]) -> None:
        if done.cancelled() or done.exception() is None:
            return
        # Otherwise another node would take them for certificates that nobody has.
        if not self._delivered:
            asyncio.get_running_loop().call_later(_AGAIN_S, self._flush_delivered)
        self._delivered += serials

    def _unclaimed(self, result: Any) -> None:
        """Take the result of a job whose requester was told that nobody knows what became of it."""
        if isinstance(result, CertRecord) and not result.delivered:
            self._start(self._doubt_quietly(result.serial))

    async def _doubt_quietly(self, serial: int) -> None:
        try:
            await self.doubt(serial)
        except ApplianceError as error:
            # The next start of this node doubts it, and what a dead node left is doubted by another.
            _log.error("%s", error)

    async def doubt(self, serial: int) -> None:
        """Record that nobody knows whether a requester has got its certificate.

        Raises:
            StoreError: The database could not be used; the next start records it.
        """
        try:
            await self.store.submit(mark_doubted(serial))
        finally:
            self.deliveries.answering.discard(serial)

    async def withdraw(self, record: CertRecord, why: str) -> None:
        """Revoke a certificate that could not be signed or handed over."""
        try:
            await self._change(
                record.serial, lambda _r, _s: (CertState.REVOKED, record.approved), "revoke", SERVICE, why
            )
        finally:
            self.deliveries.answering.discard(record.serial)

    async def approve(self, serial: int, actor: Actor) -> CertRecord:
        """Approve a certificate.

        Raises:
            RequestRefused: The request is not permitted; the text says why.
            StoreError: The database could not be used; nothing has changed.
        """
        self._need_clock()

        def decide(record: CertRecord, state: CertState) -> tuple[CertState, bool]:
            if state is not CertState.PENDING_APPROVAL:
                raise RequestRefused(
                    f"the certificate is {state}: only one that is PENDING_APPROVAL can be approved"
                )
            now = self.clock()
            return state_now(approval_begins(record, posix(now)), now), True

        def check(transaction: Transaction) -> None:
            if any(use.barred for use in transaction.of_key(*transaction.key_of(serial))):
                raise RequestRefused(f"{BARRED}; deny this one, and have its requester make a new key")

        return await self._change(serial, decide, "approve", actor, "", check=check, begins=True)

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
        self._need_clock()
        now = self.clock()
        at = posix(now)
        text = schedule.to_text()
        seq = 0

        def job(transaction: Transaction) -> CertRecord:
            nonlocal seq
            recorded = transaction.get(serial)
            if recorded is None:
                raise RequestRefused("the certificate is not known here")
            state = self._told(recorded, now)
            why = ""
            if recorded.usage == "cms":
                why = "it is the certificate service's own certificate, which has no schedule"
            elif state in (CertState.REVOKED, CertState.EXPIRED):
                why = f"the certificate is {state} already"
            elif recorded.no_status:
                why = "it names no status PV, so nobody would learn of a schedule"
            facts = {**actor.facts(), "new": shown_schedule(schedule)}
            if why:
                transaction.audit(at, "refuse", serial, {**facts, "asked": "schedule", "why": why})
                raise RequestRefused(why)
            if state is not recorded.state:
                recorded = transaction.change(recorded, state, at=at, approved=recorded.approved)
                transaction.audit(at, "clock", serial, {"state": state.value})
            new = state_now(recorded._replace(schedule=text), now)
            changed = transaction.reschedule(recorded, text, state=new, at=at)
            facts |= {"old": shown_schedule(schedule_of(recorded)), "from": state.value, "state": new.value}
            transaction.audit(at, "schedule", serial, facts)
            seq = transaction.audit_head[0]
            return changed

        record = await self.store.submit(job)
        self._announce(record, seq)
        return record

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
        begins: bool = False,
    ) -> CertRecord:
        now = self.clock()
        at = posix(now)
        seq = 0

        def job(transaction: Transaction) -> CertRecord:
            nonlocal seq
            recorded = transaction.get(serial)
            facts: dict[str, Any] = {**actor.facts(), **({"why": why} if why else {})}
            if recorded is None:
                raise RequestRefused("the certificate is not known here")
            state = self._told(recorded, now)
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
            first = approval_begins(recorded, at) if begins else recorded
            moved = (first.renew_by, first.renewed_at)
            changed = transaction.change(
                recorded, new, at=at, approved=approved, bar_key=bar_key, begins=moved if begins else None
            )
            if begins and first.renew_by:
                facts["renew_by"] = shown_time(utc(first.renew_by))
            transaction.audit(at, action, serial, {**facts, "from": state.value, "state": new.value})
            seq = transaction.audit_head[0]
            return changed

        record = await self.store.submit(job)
        if record.state is CertState.REVOKED:
            self._journal(record, bar_key=bar_key)
            self.revoked += 1
        self._announce(record, seq)
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

    def _announce(self, record: CertRecord, seq: int = 0) -> None:
        """Take what was just committed, with the audit up to ``seq``, or what the clock has changed, and tell it."""
        if self.memory.put(record, seq):
            self._tell(record)

    def _tell(self, record: CertRecord) -> None:
        for listener in self.listeners:
            try:
                listener(record)
            except Exception:  # noqa: BLE001 - a revocation must reach the others
                _log.exception("telling the state of certificate %s failed", record.serial)

    def _learned(self, record: CertRecord) -> None:
        self.clockwork.follow(record)

    def _changed_elsewhere(self, serial: int, record: CertRecord | None) -> None:
        if record is not None:
            self._tell(record)
            return
        for call in self.vanished:
            call(serial)

    # -- the clock -----------------------------------------------------------------------------------

    def tick(self) -> int:
        """Apply some of the changes that the clock makes, and have them recorded.

        Returns:
            Their number; 0 if nothing is left to do now.
        """
        if self.clock_fault():
            return 0
        due = self.clockwork.tick()
        now = self.clock()
        if not self._sweeping and (self._pending or self.sweep.is_due(now)):
            self._sweeping = True
            self._start(self._sweep(now))
        return due

    def next_crossing(self) -> float | None:
        """Return when `tick` has something to do next (POSIX seconds); None if nobody knows."""
        return None if self.clock_fault() else self.clockwork.next_crossing()

    def step_back(self) -> None:
        """Look at everything again after the clock was set back. What a schedule says is told by the next `tick`."""
        self.clockwork.step_back()

    def _crossed(self, record: CertRecord, state: CertState) -> None:
        self._pending.setdefault(record.serial, record)
        self._announce(record._replace(state=state, state_date=posix(self.clock())))

    def wait_for_approval(self, pending_s: int) -> None:
        """Change how many seconds requests wait for approval."""
        if pending_s != self.sweep.pending_s:
            self.sweep.pending_s = pending_s
            self._lapses_differ = True

    def _lapse_in_time(self, transaction: Transaction) -> None:
        """Have the sweep look at requests when they end by the present setting; until now it may have been another one."""
        end = certs.c.state_date + self.sweep.pending_s
        waits = (
            certs.c.issuer.in_([*transaction.authorities]),
            certs.c.state == CertState.PENDING_APPROVAL.value,
            certs.c.next_at > end,
        )
        transaction.connection.execute(sa.update(certs).where(*waits).values(next_at=end))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)

    async def _sweep(self, now: datetime) -> None:
        pending = dict(self._pending)
        try:
            if self._lapses_differ:
                self._lapses_differ = False
                try:
                    await self.store.submit(self._lapse_in_time)
                except ApplianceError as error:
                    self._lapses_differ = True
                    _log.debug("%s", error)  # the store logs what is wrong
            if await self.sweep.run(now, pending):
                for serial, record in pending.items():
                    if self._pending.get(serial) is record:
                        del self._pending[serial]
        finally:
            self._sweeping = False

    def _swept(self, changed: Sequence[CertRecord], seq: int) -> None:
        """Take what the sweep has recorded, and tell what was not told."""
        for record in changed:
            known = self.peek(record.serial)
            if record.state is CertState.REVOKED:
                self._journal(record)
                self.revoked += 1
            if self.memory.put(record, seq) and (known is None or known.state is not record.state):
                self._tell(record)

    async def settle(self) -> None:
        """Wait until everything is recorded, also what is not urgent."""
        self._flush_delivered()
        while self._recording:
            await asyncio.wait(self._recording)


def _gave_up(transaction: Transaction, request: NewCertificate, old: CertRecord, at: int) -> bool:
    """Whether the requester of a certificate asks again, with a new proof, because it gave up before the answer came."""
    return has_just_been_answered(request, old, at) and not is_old_proof(
        transaction, old.serial, request.proof_made, at, may_be_repeated=False
    )


def _believed(
    transaction: Transaction, request: NewCertificate, live: Sequence[tuple[CertRecord, CertState]], at: int
) -> NewCertificate:
    """Return a request without its proof of the key, if that is an old one and could end a certificate of the key."""
    ends = (
        record.serial
        for record, state in live
        if record.skid == request.skid and (record.delivered != 1 or state is CertState.PENDING_APPROVAL)
    )
    if request.proof_made and any(is_old_proof(transaction, n, request.proof_made, at) for n in ends):
        return request._replace(proved=False, proof_made=0)
    return request
