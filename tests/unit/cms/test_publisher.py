"""What is signed is told only while nobody can have changed it unseen, also if a token takes its time."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from appliance.certs.status import CertState
from appliance.cms import publisher as publishing
from appliance.cms.model import state_now
from appliance.cms.publisher import Publisher
from appliance.cms.status_handler import CannotKnow
from appliance.cms.transaction import CertRecord

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
AT = int(NOW.timestamp())
GOOD = CertRecord(
    42, "a", "client", "std", AT - 60, AT + 86400, 0, CertState.VALID, AT, True, 1, issuer="abcd0123"
)
REVOKED = GOOD._replace(state=CertState.REVOKED)


class SlowSigner:
    """A token that has other work first."""

    is_quick = False

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()

    @property
    def signer(self):
        return self

    def prepare(self, *_args, **_more):
        return b"what is signed"

    def sign(self, _body):
        self.begun.set()
        assert self.go_on.wait(60)
        return b"a signature"

    def finish(self, _body, _signature):
        return b"\x30\x03abc"


class Life:
    """The records of a service, all in memory."""

    def __init__(self, record):
        self.record = record
        self.listeners, self.vanished = [], []

    def clock(self):
        return NOW

    def peek(self, _serial):
        return self.record

    def state(self, record):
        return state_now(record, NOW)


@pytest.mark.parametrize(
    ("record", "is_told"), [(GOOD, False), (REVOKED, True)], ids=["may be revoked now", "stays revoked"]
)
async def test_what_a_token_signs_after_the_database_was_lost_is_told_only_if_it_cannot_have_changed(
    record, is_told
):
    signer = SlowSigner()
    publisher = Publisher(Life(record), signer, issuer="abcd0123", validity=timedelta(minutes=30))
    told = asyncio.get_running_loop().create_future()
    pv = publisher.pv(42)
    pv.waiting.append((None, told.set_result))
    publisher._publish(pv, record)
    assert await asyncio.to_thread(signer.begun.wait, 60)
    publisher.is_fresh = lambda: False
    signer.go_on.set()
    error = await told
    assert (error is None, pv.store is not None) == (is_told, is_told)
    await publisher.stop()


class Asked(Life):
    """A service whose database answers when the test says so."""

    def __init__(self, record):
        super().__init__(record)
        self.memory = SimpleNamespace(pin=lambda _: None, unpin=lambda _: None, is_certain=lambda _: False)
        self.answer = asyncio.get_running_loop().create_future()

    async def find(self, _serial):
        return await self.answer


class Question:
    """Who asks, and what was told."""

    def __init__(self, pv):
        self.alive = True
        self.peer = SimpleNamespace(peer="192.0.2.1:5")
        self.told = asyncio.get_running_loop().create_future()
        pv.when_ready(self.told.set_result, self)


@pytest.fixture
async def out_of_sight():
    """A publisher that cannot see its database."""
    signer = SlowSigner()
    signer.go_on.set()
    publisher = Publisher(Asked(GOOD), signer, issuer="abcd0123", validity=timedelta(minutes=30))
    publisher.is_fresh = lambda: False
    yield publisher
    await publisher.stop()


async def test_a_question_waits_for_the_database_and_is_refused_when_it_does_not_come(
    out_of_sight, monkeypatch
):
    monkeypatch.setattr(publishing, "_HOLD_S", 0.1)
    first, second = (Question(out_of_sight.pv(serial)) for serial in (1, 2))
    out_of_sight.looked()
    for question in (first, second):
        assert isinstance(await question.told, CannotKnow)
    assert not out_of_sight._held


async def test_a_question_that_waits_is_answered_when_the_database_is_seen_and_those_of_who_left_are_not_asked(
    out_of_sight, monkeypatch
):
    monkeypatch.setattr(publishing, "_HOLD_S", 3600)
    stays, leaves = (Question(out_of_sight.pv(serial)) for serial in (1, 2))
    leaves.alive = False
    out_of_sight.is_fresh = lambda: True
    out_of_sight.lifecycle.answer.set_result(GOOD)
    out_of_sight.looked()
    assert await stays.told is None
    assert not leaves.told.done()
    assert not out_of_sight.pv(2).waiting


async def test_a_question_whose_answer_comes_when_the_database_is_lost_again_waits_too(
    out_of_sight, monkeypatch
):
    monkeypatch.setattr(publishing, "_HOLD_S", 3600)
    out_of_sight.is_fresh = lambda: True
    pv = out_of_sight.pv(1)
    question = Question(pv)
    out_of_sight.is_fresh = lambda: False
    out_of_sight.lifecycle.answer.set_result(GOOD)
    while not out_of_sight._held:
        await asyncio.sleep(0)
    assert not question.told.done()
    out_of_sight.is_fresh = lambda: True
    out_of_sight.looked()
    assert await question.told is None


@pytest.mark.parametrize("reason", ["gives_up", "distrusts"])
async def test_nobody_waits_for_what_will_not_come(out_of_sight, reason, monkeypatch):
    monkeypatch.setattr(publishing, "_HOLD_S", 3600)
    setattr(out_of_sight, reason, lambda: "the clock is wrong")
    assert isinstance(await Question(out_of_sight.pv(1)).told, CannotKnow)
