"""What is signed is told only while nobody can have changed it unseen, also if a token takes its time."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest

from appliance.certs.status import CertState
from appliance.cms.model import state_now
from appliance.cms.publisher import Publisher
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
