"""Whatever happens to certificates, in whatever order: the invariants of their life hold (SPVA 8)."""

import asyncio
import json
import shutil
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from appliance.authn.ccr import parse_request
from appliance.authn.grant import backdated
from appliance.certmon.status_pv import STATUS_TYPE as STATUS
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import generate_key
from appliance.certs.schedule import Schedule, parse_windows
from appliance.certs.status import TRANSITIONS, CertState, OCSPState, ocsp_state
from appliance.cms.audit import verify_audit
from appliance.cms.backup import backup
from appliance.cms.model import Actor, schedule_of
from appliance.cms.service import CertificateService
from appliance.config.duration import Duration
from appliance.errors import RequestRefused
from appliance.pva.credentials import Credentials
from tests.helpers.cms import Clock, ccr, effective

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
BOSS = Actor("x509", "admin", "127.0.0.1:1")
PEER = Credentials(peer="127.0.0.1:2")
S = CertState
FINAL = (S.REVOKED, S.EXPIRED)
WINDOWS = ((), ("*,12:00,12:05",), ("0,12:00,13:00", "1,00:00,00:00"), ("2,08:00,17:00",))


def is_open(windows, now):
    """The rule in words, for windows that do not run over midnight, in UTC; an end of 00:00 is the end of the day."""
    if not windows:
        return True
    minute, today = now.hour * 60 + now.minute, (now.weekday() + 1) % 7
    for window in (window for text in windows for window in parse_windows(text)):
        if window.day in ("*", str(today)) and window.begin <= minute < (window.end or 1440):
            return True
    return False


class Life(NamedTuple):
    """What the model knows of a certificate."""

    state: CertState
    start: datetime
    end: datetime
    name: str
    renew_by: datetime | None = None
    cadence: int = 0
    windows: tuple[str, ...] = ()

    def at(self, now):
        """The same certificate when the clock has made its changes."""
        state = self.state
        if state in FINAL:
            return self
        if now >= self.end:
            return self._replace(state=S.EXPIRED)
        if state in (S.PENDING_APPROVAL, S.PENDING_RENEWAL) or (state is S.PENDING and now < self.start):
            return self
        if self.renew_by is not None and now >= self.renew_by:
            return self._replace(state=S.PENDING_RENEWAL)
        return self._replace(state=S.VALID if is_open(self.windows, now) else S.SCHEDULED_OFFLINE)

    def begun(self, now):
        """The same certificate when its cadence begins: it is issued or approved."""
        return self._replace(state=S.PENDING, renew_by=self._date(now)).at(now)

    def renewed(self, now):
        """The same certificate when its holder has renewed it: the date moves, never back, and a suspension ends.

        It is not issued anew. So one that the clock has put before its beginning stays VALID, as without a renewal.
        """
        by = self._date(now)
        state = S.VALID if self.state is S.PENDING_RENEWAL else self.state
        return self._replace(state=state, renew_by=by if by is None else max(by, self.renew_by)).at(now)

    def _date(self, now):
        by = max(now, self.start) + timedelta(seconds=self.cadence)
        return by if self.cadence and by < self.end else None


class Lives(RuleBasedStateMachine):
    certificates = Bundle("certificates")
    backups = Bundle("backups")

    @initialize()
    def begin(self):
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp())
        self.clock = Clock(START)
        self.model = {}  # serial -> Life, its state as it is recorded
        self.keys = {}
        self.revoked = set()
        self.approved_once = set()
        self.names = 0
        self.copies = 0
        self.open()

    def open(self):
        async def work():
            self.service = CertificateService.open(effective(self.directory), clock=self.clock)
            self.service.first_start()
            self.service.store.start()

        self.loop.run_until_complete(work())

    def close(self):
        async def work():
            await self.service.lifecycle.settle()
            self.service.close()

        self.loop.run_until_complete(work())

    def run(self, work):
        return self.loop.run_until_complete(work)

    def tick(self):
        """The clock's changes happen, in the service and in the model."""

        async def work():
            while self.service.tick():
                pass
            await self.service.lifecycle.settle()

        self.run(work())
        now = self.clock()
        self.model = {serial: life.at(now) for serial, life in self.model.items()}

    def state(self, serial):
        return self.model[serial].state if serial in self.model else S.UNKNOWN

    def ask(self, name, *, approval, cadence, **query):
        """Send a request as authnstd does."""
        rules = self.service.issuing.rules
        usages = {
            usage: r._replace(approval=approval, renewal=Duration(seconds=cadence))
            for usage, r in rules.usages.items()
        }
        self.service.issuing.rules = rules._replace(usages=usages)
        request = parse_request(ccr(name, key=self.keys[name], clock=self.clock, **query))

        async def work():
            issued = await self.service.issuing.issue(request, PEER)
            self.service.lifecycle.delivered(issued.record.serial)
            await self.service.lifecycle.settle()
            # That it was delivered is on its way to the database. A backup without that would have it in doubt.
            await self.service.store.submit(lambda _transaction: None)
            return issued.record

        return self.run(work())

    @rule(
        target=certificates,
        delay=st.sampled_from([0, 0, 0, 600]),
        life=st.sampled_from([300, 3600, 86400, 7 * 86400]),
        approval=st.booleans(),
        cadence=st.sampled_from([0, 0, 200, 4000]),
    )
    def create(self, delay, life, approval, cadence):
        self.names += 1
        name = f"n{self.names}"
        # A key of its own: one that was revoked is not certified again.
        self.keys[name] = generate_key("ec-p256")
        now = self.clock()
        posix = int(now.timestamp())
        record = self.ask(
            name, approval=approval, cadence=cadence, not_before=posix + delay, not_after=posix + delay + life
        )
        start, end = (datetime.fromtimestamp(posix + d, UTC) for d in (delay, delay + life))
        if not delay:
            start = backdated(start, end).replace(microsecond=0)
        assert record.not_before == int(start.timestamp())
        new = Life(S.PENDING_APPROVAL, start, end, name, cadence=cadence)
        if not approval:
            new = new.begun(now)
            self.approved_once.add(record.serial)
        assert record.state is new.state
        assert record.renew_by == (int(new.renew_by.timestamp()) if new.renew_by else 0)
        self.model[record.serial] = new
        return record.serial

    @rule(serial=certificates)
    def renew(self, serial):
        """The holder asks again: with the same key, for the same name."""
        self.tick()
        now = self.clock()
        if serial not in self.model:
            return
        life = self.model[serial]
        renewable = life.renew_by is not None and life.state in (
            S.PENDING, S.VALID, S.SCHEDULED_OFFLINE, S.PENDING_RENEWAL,
        )  # fmt: skip
        if not renewable:
            return  # that is a request for another certificate
        record = self.ask(life.name, approval=True, cadence=life.cadence)
        assert record.serial == serial, "a renewal makes no other certificate"
        moved = life.renewed(now)
        assert record.state is moved.state
        assert record.renew_by == (int(moved.renew_by.timestamp()) if moved.renew_by else 0)
        self.model[serial] = moved

    @rule(serial=certificates, windows=st.sampled_from(WINDOWS))
    def schedule(self, serial, windows):
        self.tick()
        found = Schedule(tuple(window for text in windows for window in parse_windows(text)), "", "admin")
        self.expect(
            self.service.lifecycle.reschedule(serial, found, BOSS),
            serial,
            tuple(state for state in S if state not in (*FINAL, S.UNKNOWN)),
            lambda life, now: life._replace(windows=windows).at(now),
        )

    def expect(self, work, serial, allowed, then):
        state = self.state(serial)
        try:
            record = self.run(work)
        except RequestRefused:
            assert state not in allowed
            return
        assert state in allowed
        self.model[serial] = then(self.model[serial], self.clock())
        assert record.state is self.model[serial].state

    @rule(serial=certificates)
    def approve(self, serial):
        self.tick()
        if self.state(serial) is S.PENDING_APPROVAL:
            self.approved_once.add(serial)
        self.expect(
            self.service.lifecycle.approve(serial, BOSS),
            serial,
            (S.PENDING_APPROVAL,),
            lambda life, now: life.begun(now),
        )

    @rule(serial=certificates)
    def deny(self, serial):
        self.tick()
        was = self.state(serial)
        self.expect(
            self.service.lifecycle.deny(serial, BOSS),
            serial,
            (S.PENDING_APPROVAL,),
            lambda life, _: life._replace(state=S.REVOKED),
        )
        if was is S.PENDING_APPROVAL:
            self.revoked.add(serial)

    @rule(serial=certificates)
    def revoke(self, serial):
        self.tick()
        was = self.state(serial)
        allowed = tuple(state for state in S if state not in (*FINAL, S.UNKNOWN))
        self.expect(
            self.service.lifecycle.revoke(serial, BOSS),
            serial,
            allowed,
            lambda life, _: life._replace(state=S.REVOKED),
        )
        if was in allowed:
            self.revoked.add(serial)

    @rule(seconds=st.sampled_from([1, 150, 299, 301, 700, 4000, 40_000, 90_000, -400, -5000]))
    def clock_jump(self, seconds):
        self.clock.offset += timedelta(seconds=seconds)
        # The certificate authority is not valid before its own beginning.
        self.clock.offset = max(self.clock.offset, timedelta(0))
        if seconds < 0:
            self.service.lifecycle.step_back()
            self.service.publisher.step_back()
        self.tick()

    @rule()
    def restart(self):
        self.close()
        self.open()
        self.tick()

    @rule(target=backups)
    def back_up(self):
        self.tick()
        self.copies += 1
        copy = backup(str(self.directory / "certs.db"), str(self.directory / f"copy{self.copies}.db"))
        return copy, dict(self.model)

    @rule(target=certificates, saved=consumes(backups))
    def restore(self, saved):
        copy, model = saved
        self.close()
        for path in self.directory.glob("certs.db-*"):
            path.unlink()
        shutil.copy(copy, self.directory / "certs.db")
        self.model = model
        for serial in self.revoked & model.keys():
            if model[serial].state is not S.EXPIRED:
                self.model[serial] = model[serial]._replace(state=S.REVOKED)
        self.open()
        self.tick()
        return multiple()

    @rule(serial=certificates)
    def revoke_and_then_restore_an_older_database(self, serial):
        saved = self.back_up()
        self.revoke(serial)
        self.restore(saved)

    @invariant()
    def every_served_status_verifies_and_is_what_it_must_be(self):
        if not hasattr(self, "service"):
            return
        self.tick()
        now = self.clock()
        authority = self.service.authority.issuer.certificate
        seen = {*self.model, *self.revoked, 12345}
        for serial in seen:
            record = self.run(self.service.lifecycle.find(serial))
            store = self.service.publisher.make(serial, record, now)[0]
            state = S(store[STATUS.offsets["state"]])
            expected = self.state(serial)
            assert state is expected, (serial, state, expected)
            der = bytes(store[STATUS.offsets["ocsp_response"]])
            answer = verify_response(der, issuer=authority, serial=serial, now=now)
            assert answer.state is ocsp_state(state)
            if state is S.VALID:
                assert serial in self.approved_once
                assert schedule_of(record).by == "admin" or not record.schedule
                # Whoever believes the answer until its end believes nothing wrong, if nobody does anything.
                last = answer.next_update - timedelta(seconds=1)
                assert self.model[serial].at(last).state is S.VALID
            if serial in self.revoked:
                assert answer.state is not OCSPState.GOOD

    def teardown(self):
        if not hasattr(self, "service"):
            return
        self.close()
        self.loop.close()
        db = self.directory / "certs.db"
        assert verify_audit(str(db)).intact
        connection = sqlite3.connect(db)
        states = dict(connection.execute("SELECT serial, state FROM certs"))
        told = {}
        for serial, text in connection.execute("SELECT serial, record FROM audit ORDER BY seq"):
            record = json.loads(text)
            if record["action"] == "refuse" or not serial:
                continue
            before = told.get(serial)
            after = S(record.get("state", "REVOKED"))
            same = before is after and record["action"] in ("renew", "schedule")
            assert before is None or same or after in TRANSITIONS[before], (serial, before, after)
            told[serial] = after
        connection.close()
        # One row per change: the last one told is the present state.
        assert {int(serial): state.value for serial, state in told.items()} == states
        shutil.rmtree(self.directory)


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
