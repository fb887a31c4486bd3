"""Whatever happens to certificates, in whatever order: the invariants of their life hold (SPVA 8)."""

import asyncio
import json
import shutil
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from appliance.authn.ccr import parse_request
from appliance.authn.grant import backdated
from appliance.certmon.status_pv import STATUS_TYPE as STATUS
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import generate_key
from appliance.certs.status import TRANSITIONS, CertState, OCSPState, ocsp_state
from appliance.cms.audit import verify_audit
from appliance.cms.backup import backup
from appliance.cms.model import Actor
from appliance.cms.service import CertificateService
from appliance.errors import RequestRefused
from appliance.pva.credentials import Credentials
from tests.helpers.cms import Clock, ccr, effective

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
BOSS = Actor("x509", "admin", "127.0.0.1:1")
PEER = Credentials(peer="127.0.0.1:2")
FINAL = (CertState.REVOKED, CertState.EXPIRED)


class Lives(RuleBasedStateMachine):
    certificates = Bundle("certificates")
    backups = Bundle("backups")

    @initialize()
    def begin(self):
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp())
        self.clock = Clock(START)
        self.model = {}  # serial -> (recorded state, not_before, not_after)
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
        for serial, (state, start, end) in self.model.items():
            if state not in FINAL:
                if now >= end:
                    state = CertState.EXPIRED
                elif state is CertState.PENDING and now >= start:
                    state = CertState.VALID
            self.model[serial] = (state, start, end)

    @rule(
        target=certificates,
        delay=st.sampled_from([0, 0, 0, 600]),
        life=st.sampled_from([300, 3600, 86400]),
        approval=st.booleans(),
    )
    def create(self, delay, life, approval):
        rules = self.service.issuing.rules
        usages = {usage: r._replace(approval=approval) for usage, r in rules.usages.items()}
        self.service.issuing.rules = rules._replace(usages=usages)
        self.names += 1
        now = int(self.clock().timestamp())
        # A key of its own: one that was revoked is not certified again.
        asked = ccr(
            f"n{self.names}",
            key=generate_key("ec-p256"),
            clock=self.clock,
            not_before=now + delay,
            not_after=now + delay + life,
        )
        request = parse_request(asked)
        issued = self.run(self.service.issuing.issue(request, PEER))
        start, end = (datetime.fromtimestamp(now + d, UTC) for d in (delay, delay + life))
        if not delay:
            start = backdated(start, end).replace(microsecond=0)
        assert issued.record.not_before == int(start.timestamp())
        state = CertState.PENDING_APPROVAL if approval else CertState.PENDING if delay else CertState.VALID
        assert issued.record.state is state
        if not approval:
            self.approved_once.add(issued.record.serial)
        self.model[issued.record.serial] = (state, start, end)
        return issued.record.serial

    def expect(self, work, serial, allowed, then):
        state = self.model.get(serial, (CertState.UNKNOWN, None, None))[0]
        try:
            record = self.run(work)
        except RequestRefused:
            assert state not in allowed
            return
        assert state in allowed
        _, start, end = self.model[serial]
        assert record.state is then(start, end)
        self.model[serial] = (record.state, start, end)

    @rule(serial=certificates)
    def approve(self, serial):
        self.tick()

        def then(start, end):
            now = self.clock()
            return CertState.PENDING if now < start else CertState.VALID if now < end else CertState.EXPIRED

        if self.model.get(serial, (None,))[0] is CertState.PENDING_APPROVAL:
            self.approved_once.add(serial)
        self.expect(self.service.lifecycle.approve(serial, BOSS), serial, (CertState.PENDING_APPROVAL,), then)

    @rule(serial=certificates)
    def deny(self, serial):
        self.tick()
        was = self.model.get(serial, (None,))[0]
        self.expect(
            self.service.lifecycle.deny(serial, BOSS),
            serial,
            (CertState.PENDING_APPROVAL,),
            lambda _s, _e: CertState.REVOKED,
        )
        if was is CertState.PENDING_APPROVAL:
            self.revoked.add(serial)

    @rule(serial=certificates)
    def revoke(self, serial):
        self.tick()
        was = self.model.get(serial, (CertState.UNKNOWN,))[0]
        allowed = (CertState.PENDING_APPROVAL, CertState.PENDING, CertState.VALID)
        self.expect(
            self.service.lifecycle.revoke(serial, BOSS), serial, allowed, lambda _s, _e: CertState.REVOKED
        )
        if was in allowed:
            self.revoked.add(serial)

    @rule(seconds=st.sampled_from([1, 299, 301, 700, 4000, 90_000, -400, -5000]))
    def clock_jump(self, seconds):
        self.clock.offset += timedelta(seconds=seconds)
        # The certificate authority is not valid before its own beginning.
        self.clock.offset = max(self.clock.offset, timedelta(0))
        if seconds < 0:
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
            state, start, end = model[serial]
            if state is not CertState.EXPIRED:
                self.model[serial] = (CertState.REVOKED, start, end)
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
            store, _ = self.service.publisher.make(serial, record, now)
            state = CertState(store[STATUS.offsets["state"]])
            expected = self.model.get(serial, (CertState.UNKNOWN,))[0]
            assert state is expected, (serial, state, expected)
            der = bytes(store[STATUS.offsets["ocsp_response"]])
            answer = verify_response(der, issuer=authority, serial=serial, now=now)
            assert answer.state is ocsp_state(state)
            if state is CertState.VALID:
                assert serial in self.approved_once
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
            after = CertState(record.get("state", "REVOKED"))
            assert before is None or after in TRANSITIONS[before], (serial, before, after)
            told[serial] = after
        connection.close()
        # One row per change: the last one told is the present state.
        assert {int(serial): state.value for serial, state in told.items()} == states
        shutil.rmtree(self.directory)


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
