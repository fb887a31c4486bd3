"""Status answers: signed once per validity period, served from memory, sent when something changes.

Source: SPVA specification 7 and 13.1. Nothing is signed before somebody asks, so a service with a hundred thousand
certificates starts at once. An answer with subscribers is signed again before it expires; the others are signed when
somebody asks again.

GOOD is never signed beyond the next time at which the certificate ceases to be VALID. So a peer that ignores the word of a
suspended state doubts the certificate nevertheless, when the signature ends. What is not signed, such as the hint that a
renewal is due, is published beside the signature that exists already.

With a database server, other nodes change certificates too. So a status is signed only while this node is sure that it knows
of every change (`Publisher.is_fresh`); UNKNOWN is signed only after the database has said that there is no such certificate.
Who asks meanwhile waits a moment, because most losses are short: a server that starts again, or a standby that takes over.
What was signed before serves until it ends. Then the channel is closed, so that the client finds another node. The same holds
while this host's clock is not believed (`Publisher.distrusts`).

A key that is not in this process (`appliance.certs.signer.Signer.is_quick`) signs beside everything else. While it cannot be reached,
what was signed before serves until it ends, unless the certificate's state has changed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from appliance.certmon.status_pv import STATUS_TYPE as STATUS
from appliance.certmon.status_pv import status_template, write_status
from appliance.certmon.wire_arrays import san_array, schedule_array
from appliance.certs.ocsp import OCSPSigner
from appliance.certs.status import CertState, OCSPState, ocsp_state, written_renew_by
from appliance.certs.x509 import (
    shown_id,
)
from appliance.cms.clockwork import BUDGET_S
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.model import boundary_of, is_renewal_due, names_of, schedule_of, utc, windows_now
from appliance.cms.renewal import RENEWABLE
from appliance.cms.signing import UNREACHABLE
from appliance.cms.signing import signed as signed_by
from appliance.cms.status_handler import CannotKnow, PutHandler, Signed, StatusPV, WrongClock, refuse_put
from appliance.cms.transaction import CertRecord
from appliance.errors import ApplianceError, DatabaseLost, SigningError

__all__ = ["Publisher", "Successor"]

_log: Final = logging.getLogger(__name__)
_RENEW_AT: Final = 5 / 6
"""Part of its validity after which an answer is signed again."""
_AGAIN_S: Final = 1.0
"""Seconds after which a question that failed is asked again for those who subscribe."""
_HOLD_S: Final = 2.0
"""Seconds that a question waits for a database that was out of sight only now. Less than any client waits for an answer."""
_FETCHES: Final = 16
"""Questions to the database at a time. Each answer is signed, which takes a fraction of a millisecond."""
_KEPT: Final = 20_000
"""Number of PVs without a channel that stay in memory."""

_FINAL: Final = (CertState.REVOKED, CertState.EXPIRED)


class _Unsigned(NamedTuple):
    """An answer that has to be signed."""

    body: bytes
    state: OCSPState
    this_update: datetime
    next_update: datetime
    revoked: datetime | None
    refresh_at: float


class Successor(NamedTuple):
    """That another authority issues now, and the holders of these certificates are to ask it for new ones."""

    since: datetime
    ends: datetime
    """When the former authority ends."""

    def renew_by(self, record: CertRecord, now: datetime) -> int:
        """Return the date that makes the holder of a certificate ask, in POSIX seconds.

        First it is soon, so that most ask in the first tenth of the time, each at a moment of its own; those that could not are
        told the end. It is before the certificate's own end, because that means that nothing need be renewed.
        """
        soon = self.since + (self.ends - self.since) / 10
        by = soon if now < soon else self.ends
        dates = [int(by.timestamp()), record.not_after - 1, *([record.renew_by] if record.renew_by else [])]
        return max(1, min(dates))


class Publisher:
    """Makes and keeps the status answers of one authority. ``on_put`` is called for each PUT on a status PV.

    Args:
        lifecycle: Knows the certificates.
        signer: The authority's.
        issuer: The authority's identifier.
        validity: How long an answer is good.
        node: Identifies this node in the answers.
        always_valid: Serial numbers of the authority's own certificates.
        successor: For a former authority: what its certificates' holders are told.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        signer: OCSPSigner,
        *,
        issuer: str,
        validity: timedelta,
        node: str = "",
        always_valid: frozenset[int] = frozenset(),
        successor: Successor | None = None,
    ) -> None:
        self.lifecycle = lifecycle
        self.issuer = issuer
        self.successor = successor
        """That another authority has taken over; call `step_back` after a change."""
        self.validity = validity
        self.signed = 0
        self.on_put: PutHandler = refuse_put
        self.is_fresh: Callable[[], bool] = lambda: True
        """Whether no certificate can have been changed elsewhere without notice."""
        self.gives_up: Callable[[], bool] = lambda: False
        """Whether it has not been fresh for so long that it is not waited for any more."""
        self.distrusts: Callable[[], str] = lambda: ""
        """Returns why the clock is not to be believed. Nothing is signed then but what is final."""
        self.has_others: Callable[[], bool] = lambda: False
        """Whether other nodes can answer."""
        self._signer = signer
        self._always_valid = always_valid
        self._node = node
        self._template: list[Any] | None = None
        self._pvs: dict[int, StatusPV] = {}
        """Those that have a channel, and those that are kept."""
        self._kept: OrderedDict[int, StatusPV] = OrderedDict()
        self._refreshes: list[tuple[float, int, int]] = []
        self._count = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._signing: dict[StatusPV, asyncio.Task[None]] = {}
        """Where a slow signer signs. A PV may be forgotten meanwhile, and another one made for the same certificate."""
        self._to_sign: dict[StatusPV, CertRecord | None] = {}
        """What a slow signer signs next. A later change takes the place of an earlier one."""
        self._asked: dict[str, deque[StatusPV]] = {}
        """What to ask the database, by the requester's address."""
        self._held: dict[StatusPV, tuple[str, float]] = {}
        """What is asked when the database is seen again: by whom, and when (of the loop's time) it is refused."""
        self._hold_ends: asyncio.TimerHandle | None = None
        self._untold: set[int] = set()
        """What has changed while nobody could be sure of it: it is told when that is possible again."""
        lifecycle.listeners.append(self._changed)
        lifecycle.vanished.append(self._vanished)

    @property
    def node(self) -> str:
        """What the answers call the node that signed them."""
        return self._node

    @node.setter
    def node(self, name: str) -> None:
        self._node, self._template = name, None

    def blank(self) -> list[Any]:
        """Return a status without content. The first one imports numpy, which no start waits for."""
        if self._template is None:
            self._template = status_template().store
            self._template[STATUS.offsets["pvacms_node_id"]] = self._node
        return self._template.copy()

    def pv(self, serial: int) -> StatusPV:
        """Return the PV of a certificate, also for a certificate that does not exist."""
        found = self._pvs.get(serial)
        if found is None:
            found = self._pvs[serial] = StatusPV(self, serial)
        self._kept[serial] = found
        self._kept.move_to_end(serial)
        if len(self._kept) > _KEPT:
            self.let_go(self._kept.popitem(last=False)[1])
        return found

    def let_go(self, pv: StatusPV) -> None:
        """Forget a PV that has no channel, unless it is kept."""
        if not pv.channels and pv.serial not in self._kept and self._pvs.get(pv.serial) is pv:
            del self._pvs[pv.serial]
            pv.drop()

    def rest(self, pv: StatusPV) -> None:
        """End to watch the certificate of a PV that has no answer, unless somebody wants one."""
        if pv.is_watched and pv.store is None and not pv.waiting and not pv.subscriptions:
            pv.is_watched = False
            self.lifecycle.memory.unpin(pv.serial)

    def _watch(self, pv: StatusPV) -> None:
        if not pv.is_watched:
            pv.is_watched = True
            self.lifecycle.memory.pin(pv.serial)

    def _knows(self, serial: int) -> bool:
        """Whether memory has what a status is made of. Who has been revoked, or has expired, stays so."""
        record = self._peek(serial)
        if record is not None and self.lifecycle.state(record) in _FINAL:
            return True
        if self.distrusts():
            return False
        return serial in self._always_valid or (self.is_fresh() and self.lifecycle.memory.is_certain(serial))

    def _may_sign(self) -> bool:
        """Whether what the database says now may be signed."""
        return self.is_fresh() and not self.distrusts()

    def _cannot(self) -> CannotKnow:
        why = self.distrusts()
        return WrongClock(why, stays=not self.has_others()) if why else CannotKnow()

    def provide(self, pv: StatusPV, asks: str) -> None:
        """Make a PV's answer, at once if its certificate is in memory, else after the database has answered.

        The database gets a few questions at a time, and addresses take turns: anyone may ask for any number, and each answer
        is signed.
        """
        self._watch(pv)
        if self._knows(pv.serial):
            self._publish(pv, self._peek(pv.serial))
        elif self._may_sign():
            self._have_fetched(pv, asks)
        elif self._may_hold():
            self._hold(pv, asks)
        else:
            self._refuse(pv)

    def _refuse(self, pv: StatusPV) -> None:
        pv.answer_all(self._cannot())
        self.rest(pv)

    def _may_hold(self) -> bool:
        """Whether a question may wait. A wrong clock stays wrong, and after a long loss other nodes are to be asked."""
        return not self.distrusts() and not self.gives_up()

    def _hold(self, pv: StatusPV, asks: str) -> None:
        loop = asyncio.get_running_loop()
        _, until = self._held.setdefault(pv, (asks, loop.time() + _HOLD_S))
        if self._hold_ends is None:
            self._hold_ends = loop.call_at(until, self._end_hold)

    def _end_hold(self) -> None:
        """Refuse what has waited for long enough."""
        loop = asyncio.get_running_loop()
        self._hold_ends = None
        now = loop.time()
        for pv, (_, until) in list(self._held.items()):
            if until > now:
                self._hold_ends = loop.call_at(until, self._end_hold)
                break
            del self._held[pv]
            self._refuse(pv)

    def looked(self) -> None:
        """Ask what has waited for the database to be seen."""
        if not self._held or not self._may_sign():
            return
        held, self._held = self._held, {}
        for pv, (asks, _) in held.items():
            if pv.is_awaited():
                self.provide(pv, asks)
            else:
                pv.waiting.clear()
                self.rest(pv)

    def _have_fetched(self, pv: StatusPV, asks: str = "") -> None:
        if not pv.fetching:
            pv.fetching = True
            self._asked.setdefault(asks, deque()).append(pv)
            self._fetch_some()

    def _fetch_some(self) -> None:
        asked = self._asked
        while asked and len(self._tasks) < _FETCHES:
            address = next(iter(asked))
            line = asked.pop(address)
            pv = line.popleft()
            if line:
                asked[address] = line  # behind the others
            if (
                not pv.is_awaited() and not pv.subscriptions
            ):  # who asked is gone, and nothing is signed for nobody
                pv.fetching = False
                pv.waiting.clear()
                self.rest(pv)
                continue
            task = asyncio.get_running_loop().create_task(self._fetch(pv, address))
            self._tasks.add(task)
            task.add_done_callback(self._fetched)

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._fetch_some()

    async def _fetch(self, pv: StatusPV, asks: str) -> None:
        failure: ApplianceError | None = None
        try:
            record = await self.lifecycle.find(pv.serial)
            if pv.is_watched and self._pvs.get(pv.serial) is pv:  # otherwise it was forgotten meanwhile
                if not self._may_sign() and not self._knows(pv.serial):
                    raise self._cannot()
                self._publish(pv, self._mine(record))
        except ApplianceError as error:
            failure = error
        finally:
            pv.fetching = False
        if isinstance(failure, CannotKnow) and not pv.subscriptions and pv.is_awaited() and self._may_hold():
            self._hold(pv, asks)
            return
        if failure is not None or pv not in self._signing:
            pv.answer_all(failure)
        if failure is not None and pv.subscriptions:
            self._refresh_at(pv, self.lifecycle.clock().timestamp() + _AGAIN_S)
            if isinstance(failure, (CannotKnow, DatabaseLost)):
                self._untold.add(pv.serial)  # the last signature is not due yet
        self.rest(pv)

    async def stop(self) -> None:
        """Ask the database no more: the clients are gone."""
        self._asked.clear()
        self._held.clear()
        if self._hold_ends is not None:
            self._hold_ends.cancel()
        tasks = (*self._tasks, *self._signing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _mine(self, record: CertRecord | None) -> CertRecord | None:
        """Return a certificate of this authority; None for one of another, which this authority does not know."""
        return record if record is not None and record.issuer == self.issuer else None

    def _peek(self, serial: int) -> CertRecord | None:
        return self._mine(self.lifecycle.peek(serial))

    def _changed(self, record: CertRecord) -> None:
        if self._mine(record) is None:
            return
        pv = self._pvs.get(record.serial)
        if pv is None or (pv.store is None and not pv.subscriptions and pv not in self._signing):
            return
        if self._knows(record.serial):
            self._publish(pv, record)
        elif self._may_sign():
            self._have_fetched(pv)
        else:
            self._untold.add(record.serial)

    def tell_later(self, pv: StatusPV) -> None:
        """Tell those who subscribe when that is possible again."""
        self._watch(pv)
        self._untold.add(pv.serial)

    def _vanished(self, serial: int) -> None:
        pv = self._pvs.get(serial)
        if pv is not None and pv.store is not None:
            self._renew(pv)

    def _renew(self, pv: StatusPV) -> None:
        """Sign again for those who subscribe, from what is known now."""
        if self._knows(pv.serial):
            self._publish(pv, self._peek(pv.serial))
        else:
            self._have_fetched(pv)

    def _publish(self, pv: StatusPV, record: CertRecord | None) -> None:
        if self._signer.signer.is_quick:
            now = self.lifecycle.clock()
            self._show(pv, *self.make(pv.serial, record, now, pv.signed))
            return
        self._to_sign[pv] = record
        if pv not in self._signing:
            self._signing[pv] = asyncio.get_running_loop().create_task(self._sign_beside(pv))

    def _show(self, pv: StatusPV, store: list[Any], signed: Signed) -> None:
        last = pv.signed
        pv.set(store, signed)
        if signed is not last:
            self._refresh_at(pv, signed.refresh_at)
        if pv.waiting:
            pv.answer_all(None)

    async def _sign_beside(self, pv: StatusPV) -> None:
        """Have a slow signer sign what is said of a certificate, until nothing newer is to be said."""
        failure: ApplianceError | None = None
        try:
            while pv in self._to_sign:
                failure = await self._sign_newest(pv)
        except ApplianceError as error:
            failure = error
        finally:
            self._signing.pop(pv, None)
            self._to_sign.pop(pv, None)
        pv.answer_all(failure)
        self.rest(pv)

    async def _sign_newest(self, pv: StatusPV) -> ApplianceError | None:
        serial = pv.serial
        record = self._to_sign.pop(pv)
        now = self.lifecycle.clock()
        wanted = self._wanted(serial, record, now, pv.signed)
        if isinstance(wanted, _Unsigned):
            try:
                signature = await signed_by(self._signer.signer, wanted.body)
            except SigningError:
                if pv not in self._to_sign:
                    self._go_without(pv, wanted, now.timestamp())
                return SigningError(UNREACHABLE)
            if pv not in self._to_sign and not self._may_sign() and not self._knows(serial):
                # The database was lost while the token had other work. Somebody may have changed it meanwhile.
                self._go_without(pv, wanted, now.timestamp())
                self._untold.add(serial)
                return self._cannot()
            wanted = self._signed(wanted, signature)
        if pv not in self._to_sign and self._pvs.get(serial) is pv:  # otherwise it was forgotten meanwhile
            self._show(pv, self._answer(serial, record, now, wanted), wanted)
        return None

    def _go_without(self, pv: StatusPV, wanted: _Unsigned, now: float) -> None:
        """Do what is right while nothing can be signed. What is not true any more is not served."""
        last = pv.signed
        if last is None:
            return
        if (last.state, last.revoked) == (wanted.state, wanted.revoked):
            self._hold_out(pv, last, now)
        else:
            pv.close()

    def _refresh_at(self, pv: StatusPV, when: float) -> None:
        heapq.heappush(self._refreshes, (when, next(self._count), pv.serial))

    def make(
        self, serial: int, record: CertRecord | None, now: datetime, last: Signed | None = None
    ) -> tuple[list[Any], Signed]:
        """Make the answer about a certificate.

        Args:
            serial: The certificate's serial number.
            record: What the database has about it; None if it does not know it.
            now: The present time, aware.
            last: The last signature. It is used again if it says the same and is good for as long.

        Returns:
            The answer, and the signature in it.
        """
        signed = self._wanted(serial, record, now, last)
        if isinstance(signed, _Unsigned):
            signed = self._signed(signed, self._signer.signer.sign(signed.body))
        return self._answer(serial, record, now, signed), signed

    def _state(self, serial: int, record: CertRecord | None) -> CertState:
        if record is None and serial not in self._always_valid:
            return CertState.UNKNOWN
        state = CertState.VALID if record is None else self.lifecycle.state(record)
        has_ended = self.successor is not None and self.lifecycle.clock() >= self.successor.ends
        # Whatever is known of a certificate: its authority's end is its own end.
        return CertState.EXPIRED if has_ended and state is not CertState.REVOKED else state

    def _answer(self, serial: int, record: CertRecord | None, now: datetime, signed: Signed) -> list[Any]:
        state = self._state(serial, record)
        store = self.blank()
        write_status(
            store,
            state,
            serial,
            signed.der,
            published=now,
            this_update=signed.this_update,
            next_update=signed.next_update,
            revocation_date=signed.revoked,
        )
        at = STATUS.offsets
        if record is not None:
            store[at["not_before"]], store[at["not_after"]] = record.not_before, record.not_after
            store[at["no_status"]] = record.no_status is True
            renew_by, is_due = record.renew_by, is_renewal_due(record, now)
            if self.successor is not None and state in RENEWABLE:
                renew_by, is_due = self.successor.renew_by(record, now), True
            store[at["renew_by"]], store[at["renewal_due"]] = written_renew_by(renew_by), is_due
            if record.san:
                store[at["san"]] = san_array(names_of(record.san))
            if record.schedule:
                store[at["schedule"]] = schedule_array(windows_now(record, now))
                store[at["time_zone"]] = schedule_of(record).zone
        store[at["display.description"]] = f"status of certificate {shown_id(self.issuer, serial)}"
        return store

    def _wanted(
        self, serial: int, record: CertRecord | None, now: datetime, last: Signed | None
    ) -> Signed | _Unsigned:
        """Return the last signature if it still serves, else what has to be signed."""
        state = self._state(serial, record)
        wanted = ocsp_state(state)
        crossing = boundary_of(record, now) if record is not None and state is CertState.VALID else None
        end = None if crossing is None else utc(int(crossing))
        revoked = utc(record.state_date) if record is not None and state is CertState.REVOKED else None
        if (
            last is not None
            and (last.state, last.revoked) == (wanted, revoked)
            and last.this_update <= now
            and now.timestamp() < last.refresh_at
            and last.next_update == self._until(last.this_update, state, end)
        ):
            return last
        this_update = now.astimezone(UTC).replace(microsecond=0)
        next_update = self._until(this_update, state, end)
        body = self._signer.prepare(
            serial, wanted, this_update=this_update, next_update=next_update, revocation_date=revoked
        )
        # One that ends with the crossing is not signed again before: that would be ever shorter times.
        part = 1.0 if end is not None and next_update >= end else _RENEW_AT
        length = (next_update - this_update).total_seconds()
        return _Unsigned(
            body, wanted, this_update, next_update, revoked, this_update.timestamp() + length * part
        )

    def _signed(self, what: _Unsigned, signature: bytes) -> Signed:
        import numpy as np

        self.signed += 1
        der = np.frombuffer(self._signer.finish(what.body, signature), dtype=np.uint8)
        return Signed(what.state, der, what.this_update, what.next_update, what.revoked, what.refresh_at)

    def _until(self, begin: datetime, state: CertState, end: datetime | None) -> datetime:
        """Return until when an answer of ``begin`` is good, ``end`` being when the certificate ceases to be VALID."""
        usual = begin + self.validity
        if self.successor is not None and state not in _FINAL:
            usual = max(min(usual, self.successor.ends), begin + timedelta(seconds=1))
        return usual if end is None else max(min(usual, end), begin + timedelta(seconds=1))

    # -- the clock -----------------------------------------------------------------------------------

    def next_refresh(self) -> float | None:
        """Return the POSIX time at which the next answer must be signed again or forgotten."""
        return self._refreshes[0][0] if self._refreshes else None

    def tick(self, budget_s: float = BUDGET_S) -> int:
        """Sign again what is due: at least one answer, and no more of them after ``budget_s`` seconds.

        Returns:
            How many were due.
        """
        now = self.lifecycle.clock().timestamp()
        done = 0
        end = time.perf_counter() + budget_s
        while self._untold and self._may_sign() and time.perf_counter() < end:
            pv = self._pvs.get(self._untold.pop())
            if pv is not None and (pv.store is not None or pv.subscriptions):
                done += 1
                self._sign_again(pv)
        while self._refreshes and self._refreshes[0][0] <= now:
            _, _, serial = heapq.heappop(self._refreshes)
            pv = self._pvs.get(serial)
            if pv is None or pv.store is None or pv.signed is None or pv.signed.refresh_at > now:
                continue  # a later answer has its own entry
            done += 1
            if not self._may_sign() and not self._knows(serial):
                self._hold_out(pv, pv.signed, now)
            else:
                self._sign_again(pv)
            if time.perf_counter() >= end:
                break
        return done

    def _sign_again(self, pv: StatusPV) -> None:
        """Sign what is known now, or forget the answer if nobody subscribes."""
        if not pv.subscriptions:
            pv.drop()
            return
        try:
            self._renew(pv)
        except ApplianceError as error:
            _log.error("the status of %s cannot be signed: %s", pv.serial, error)
            pv.drop()

    def _hold_out(self, pv: StatusPV, signed: Signed, now: float) -> None:
        """Serve what was signed while nothing can be signed: until it ends, or until nothing is to be waited for."""
        end = signed.next_update.timestamp()
        if now >= end or self.gives_up():
            pv.close()
        else:
            self._refresh_at(pv, min(now + _AGAIN_S, end))

    def step_back(self) -> None:
        """Forget all answers after the clock was set back, because they seem to come from the future."""
        for pv in list(self._pvs.values()):
            if pv.store is None:
                continue
            if not self._may_sign() and not self._knows(pv.serial):
                continue  # it ends when its time is over, by the clock as it is now
            if pv.subscriptions:
                self._renew(pv)
            else:
                pv.drop()
