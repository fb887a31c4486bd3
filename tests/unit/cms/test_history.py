"""The checker of histories finds each kind of fault, in histories that are forged to have it."""

import pytest

from appliance.daemon.audit import GENESIS, chain
from tests.helpers.history import (
    INVOKED,
    OK,
    REFUSED,
    UNKNOWN,
    AuditRecord,
    Event,
    Recorder,
    check,
    read,
)


class Forger:
    """Makes a history and the audit that belongs to it."""

    def __init__(self):
        self.history = []
        self.audit = []
        self.states = {"a": {}, "b": {}}
        self.calls = 0
        self.at = 1000.0

    def call(self, op, phase, **what):
        self.calls += 1
        for when in (INVOKED, phase):
            self.at += 1
            asked = {} if when == phase else {"serial": what.get("serial", 0) if op != "create" else 0}
            self.history.append(Event(self.calls, when, self.at, "c", op, **{"node": "a", **what, **asked}))

    def record(self, action, serial, **facts):
        record = {"seq": len(self.audit) + 1, "at": 1, "action": action, "serial": str(serial), **facts}
        before = self.audit[-1].hash if self.audit else GENESIS
        self.audit.append(AuditRecord(record, chain(before, record)))

    def create(self, subject, serial, phase=OK, **what):
        self.call("create", phase, subject=subject, serial=serial if phase == OK else 0, **what)
        self.record("create", serial, subject=f"CN={subject}, O=lab", state="VALID")
        self.say(serial, "VALID")

    def revoke(self, serial):
        self.call("revoke", OK, serial=serial)
        self.record("revoke", serial)
        self.say(serial, "REVOKED")

    def say(self, serial, state):
        for known in self.states.values():
            known[serial] = state

    def check(self):
        return check(self.history, self.audit, self.states)


@pytest.fixture
def good():
    """A history of which all is true: issued, revoked, issued again, and one request that had to be sent twice."""
    forger = Forger()
    forger.create("alice", 1, jti="t1", key="k1")
    forger.revoke(1)
    forger.create("alice", 2, key="k1")
    forger.create("bob", 3, UNKNOWN)
    forger.record("revoke", 3)
    forger.say(3, "REVOKED")
    forger.create("bob", 4)
    forger.call("create", REFUSED, subject="carol", why="duplicate")
    forger.call("status", OK, serial=1, state="VALID", signed_at=1003.0)
    return forger


def test_a_history_of_which_all_is_true_has_no_fault(good):
    assert good.check() == []


def test_a_history_is_read_as_it_was_written(good, tmp_path):
    recorder = Recorder(tmp_path / "history.jsonl")
    for event in good.history:
        recorder.note(event)
    recorder.close()
    assert read(tmp_path / "history.jsonl") == good.history == recorder.events


def two_live(forger):
    forger.create("dora", 5)
    forger.create("dora", 6)


def lost_certificate(forger):
    forger.call("create", OK, subject="dora", serial=5)
    forger.say(5, "VALID")


def unknown_at_a_node(forger):
    forger.create("dora", 5)
    forger.states["b"][5] = "UNKNOWN"


def lost_revocation(forger):
    forger.call("revoke", OK, serial=2)
    forger.say(2, "REVOKED")


def revocation_that_a_node_missed(forger):
    forger.revoke(2)
    forger.states["b"][2] = "VALID"


def issued_twice(forger):
    forger.call("create", OK, subject="dora", serial=5)
    forger.record("create", 5, subject="CN=dora, O=lab", state="VALID")
    forger.record("revoke", 5)
    forger.record("create", 6, subject="CN=dora, O=lab", state="VALID")


def refused_and_issued(forger):
    forger.call("create", REFUSED, subject="dora")
    forger.record("create", 5, subject="CN=dora, O=lab", state="VALID")


def unanswered(forger):
    forger.call("create", UNKNOWN, subject="dora")


def token_of_two_keys(forger):
    forger.create("dora", 5, jti="t5", key="k5")
    forger.create("emil", 6, jti="t5", key="k6")


def token_of_two_certificates(forger):
    forger.create("dora", 5, jti="t5", key="k5")
    forger.revoke(5)
    forger.create("dora", 6, jti="t5", key="k5")


def good_after_revocation(forger):
    forger.revoke(2)
    forger.call("status", OK, serial=2, state="VALID", signed_at=forger.at + 3.5)


def gap(forger):
    del forger.audit[2]


def changed_record(forger):
    forger.audit[2] = AuditRecord({**forger.audit[2].record, "serial": "9"}, forger.audit[2].hash)


def jump(forger):
    record = {"seq": len(forger.audit) + 2, "at": 1, "action": "clock", "serial": "2", "state": "VALID"}
    forger.audit.append(AuditRecord(record, chain(forger.audit[-1].hash, record)))


def ended_twice(forger):
    forger.record("revoke", 1)


def created_twice(forger):
    forger.record("create", 1, subject="CN=zoe, O=lab", state="VALID")


def without_an_end(forger):
    forger.call("status", OK, serial=2, state="VALID")
    del forger.history[-1]


def without_a_beginning(forger):
    forger.call("status", OK, serial=2, state="VALID")
    del forger.history[-2]


def ended_before_it_began(forger):
    forger.call("status", OK, serial=2, state="VALID")
    forger.history[-1] = forger.history[-1]._replace(at=1.0)


@pytest.mark.parametrize(
    ("forge", "found"),
    [
        (two_live, "two live: CN=dora, O=lab got 6"),
        (lost_certificate, "lost: the certificate 5 of dora was answered, and the audit"),
        (unknown_at_a_node, "lost: 5 was issued to dora, and b does not know it"),
        (lost_revocation, "lost: the revocation of 2 was answered, and the audit"),
        (revocation_that_a_node_missed, "lost: 2 was revoked, and b says VALID"),
        (issued_twice, "too many: dora has 2 certificates, and at most 1"),
        (refused_and_issued, "too many: dora has 1 certificates, and at most 0"),
        (unanswered, "unanswered: what became of create dora"),
        (token_of_two_keys, "token used twice: t5 gave certificates to 2 keys"),
        (token_of_two_certificates, "token used twice: t5 gave one key 2 certificates"),
        (good_after_revocation, "good after revocation: a signed 2 as VALID 3.5 s after"),
        (gap, "audit: record 3 was changed, or one before it is missing"),
        (changed_record, "audit: record 3 was changed"),
        (jump, "is missing, "),
        (ended_twice, "audit: the certificate 1 ended twice"),
        (created_twice, "audit: the certificate 1 was created twice"),
        (without_an_end, "has no end"),
        (without_a_beginning, "ends before it begins"),
        (ended_before_it_began, "ends earlier than it begins"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_kind_of_fault_is_found(good, forge, found):
    forge(good)
    assert any(found in fault for fault in good.check()), good.check()


def test_a_token_may_bring_a_second_live_certificate(good):
    good.call("create", OK, subject="alice", serial=7)
    good.record("create", 7, subject="CN=alice, O=lab", state="VALID", identity="https://issuer|alice")
    good.say(7, "VALID")
    assert good.check() == []


def test_a_pruned_audit_is_checked_from_the_record_that_is_left(good):
    left = good.audit[1:]
    assert check([], left, {}, after=(1, good.audit[0].hash)) == []
    assert check([], left, {})
