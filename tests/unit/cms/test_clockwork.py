"""Every change that the clock, a renewal or a schedule makes: at its second, told once, recorded, and true after a restart."""

import asyncio
import json
import shutil
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from appliance.certs.san import San
from appliance.certs.schedule import Schedule, parse_windows
from appliance.certs.status import CertState as S
from appliance.cms import lifecycle as lifecycle_module
from appliance.cms.audit import verify_audit
from appliance.cms.journal import Journal
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.model import (
    Actor,
    NewCertificate,
    is_renewal_due,
    names_of,
    posix,
    schedule_of,
    windows_now,
)
from appliance.cms.reading import Readers
from appliance.cms.renewal import Fresh, Renewed
from appliance.cms.store import Store
from appliance.cms.transaction import StoreError
from appliance.errors import RequestRefused
from tests.helpers.cms import Clock

START = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday
HOUR = 3600
DAY = 24 * HOUR
ISSUER = "01234567"
BOSS = Actor("x509", "admin", "192.0.2.1:1")
ALICE = Actor("x509", "alice", "192.0.2.2:2")
SHIFT = Schedule(parse_windows("2,08:00,17:00"))  # Tuesday
TUESDAY_8, TUESDAY_17 = 20 * HOUR, 29 * HOUR


def after(seconds):
    return START + timedelta(seconds=seconds)


def asked(serial, name="", **changes):
    fields = {
        "subject": {"CN": name or f"n{serial}", "O": "", "OU": "", "C": ""},
        "usage": "client",
        "method": "std",
        "identity": "",
        "skid": f"{serial:040d}",
        "not_before": START,
        "not_after": after(30 * DAY),
        "approval_needed": False,
        "inherit": True,
        "roll_over": False,
        "facts": {},
        "key_id": f"key{serial}",
        "proved": True,
    }
    return NewCertificate(serial=serial, **(fields | changes))


class Service:
    """A life cycle with its database, and a clock that the test sets."""

    def __init__(self, directory):
        self.path = directory / "certs.db"
        self.clock = Clock(START)
        self.watches = True
        """Whether somebody watches each certificate from its first state on."""
        self.open()

    def open(self):
        self.store = Store(str(self.path), ISSUER)
        self.store.open()
        self.readers = Readers(self.store.database)
        journal = Journal(str(self.path) + ".revoked", ISSUER)
        self.life = Lifecycle(self.store, journal, self.clock, self.readers)
        self.told = []
        self.pinned = set()
        self.life.listeners.append(self.hear)
        self.life.load()
        self.store.start()

    def hear(self, record):
        self.told.append((record.serial, record.state))
        if self.watches and record.serial not in self.pinned:
            self.pinned.add(record.serial)
            self.life.memory.pin(record.serial)

    async def close(self):
        await self.life.settle()
        self.readers.close()
        self.store.close()

    async def restart(self):
        await self.close()
        self.open()

    async def at(self, seconds):
        """Set the clock, and let it make its changes."""
        self.clock.offset = timedelta(seconds=seconds)
        while self.life.tick():
            pass
        await self.life.settle()

    def recorded(self, serial, columns="state"):
        connection = sqlite3.connect(self.path)
        try:
            row = connection.execute(f"SELECT {columns} FROM certs WHERE serial = ?", (serial,)).fetchone()
        finally:
            connection.close()
        return row[0] if len(row) == 1 else row

    def audit(self, action):
        connection = sqlite3.connect(self.path)
        try:
            texts = connection.execute("SELECT record FROM audit WHERE action = ? ORDER BY seq", (action,))
            return [json.loads(text) for (text,) in texts]
        finally:
            connection.close()


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database without certificates: to make one takes longer than most of these tests."""
    path = tmp_path_factory.mktemp("empty") / "certs.db"
    store = Store(str(path), ISSUER)
    store.open()
    store.close()
    return path


@pytest.fixture
async def service(tmp_path, empty):
    shutil.copy(empty, tmp_path)
    found = Service(tmp_path)
    yield found
    await found.close()
    assert verify_audit(str(found.path)).intact


@pytest.fixture
def renewing(monkeypatch):
    """Each request renews the youngest certificate of its subject, to the date that it brings."""

    def judge(request, live, _now):
        return Renewed(live[-1][0], posix(request.renew_by)) if live else None

    monkeypatch.setattr(lifecycle_module, "judge", judge)


# ---------------------------------------------------------------------- the clock

LIVES = {
    "begins": ({"not_before": after(HOUR)}, [(0, S.PENDING), (HOUR, S.VALID)]),
    "begins outside of its hours": (
        {"not_before": after(HOUR), "schedule": SHIFT},
        [(0, S.PENDING), (HOUR, S.SCHEDULED_OFFLINE), (TUESDAY_8, S.VALID)],
    ),
    "begins when it should have been renewed": (
        {"not_before": after(HOUR), "renew_by": after(HOUR // 2)},
        [(0, S.PENDING), (HOUR, S.PENDING_RENEWAL)],
    ),
    "begins and ends unseen": (
        {"not_before": after(HOUR), "not_after": after(2 * HOUR)},
        [(0, S.PENDING), (HOUR, S.VALID), (2 * HOUR, S.EXPIRED)],
    ),
    "has its hours": (
        {"schedule": SHIFT},
        [
            (0, S.SCHEDULED_OFFLINE),
            (TUESDAY_8, S.VALID),
            (TUESDAY_17, S.SCHEDULED_OFFLINE),
            (TUESDAY_8 + 7 * DAY, S.VALID),
            (TUESDAY_17 + 7 * DAY, S.SCHEDULED_OFFLINE),
        ],
    ),
    "must be renewed": ({"renew_by": after(HOUR)}, [(0, S.VALID), (HOUR, S.PENDING_RENEWAL)]),
    "must be renewed from now on": (
        {"cadence": HOUR},
        [(0, S.VALID), (HOUR, S.PENDING_RENEWAL), (30 * DAY, S.EXPIRED)],
    ),
    "must be renewed while it is offline": (
        {"renew_by": after(HOUR), "schedule": SHIFT},
        [(0, S.SCHEDULED_OFFLINE), (HOUR, S.PENDING_RENEWAL), (30 * DAY, S.EXPIRED)],
    ),
    "must be renewed in its hours": (
        {"renew_by": after(TUESDAY_8 + HOUR), "schedule": SHIFT},
        [(0, S.SCHEDULED_OFFLINE), (TUESDAY_8, S.VALID), (TUESDAY_8 + HOUR, S.PENDING_RENEWAL)],
    ),
    "need not be renewed, because it ends": (
        {"renew_by": after(HOUR), "not_after": after(HOUR)},
        [(0, S.VALID), (HOUR, S.EXPIRED)],
    ),
    "ends": ({"not_after": after(HOUR)}, [(0, S.VALID), (HOUR, S.EXPIRED)]),
    "ends while it is offline": (
        {"not_after": after(HOUR), "schedule": SHIFT},
        [(0, S.SCHEDULED_OFFLINE), (HOUR, S.EXPIRED)],
    ),
    "ends while it waits for approval": (
        {"not_after": after(HOUR), "approval_needed": True},
        [(0, S.PENDING_APPROVAL), (HOUR, S.EXPIRED)],
    ),
    "is not approved in time": (
        {"approval_needed": True, "cadence": HOUR, "schedule": SHIFT},
        [(0, S.PENDING_APPROVAL), (14 * DAY, S.REVOKED)],
    ),
}


@pytest.mark.parametrize("watches", [True, False], ids=["watched", "not watched"])
@pytest.mark.parametrize("life", LIVES)
async def test_the_clock_makes_each_change_at_its_second_once_and_it_is_recorded(service, life, watches):
    changes, steps = LIVES[life]
    service.watches = watches
    record = await service.life.create(asked(1, **changes), ALICE)
    assert record.state is steps[0][1]
    assert service.told == [(1, record.state)]
    for (_, before), (seconds, state) in pairwise(steps):
        await service.at(seconds - 1)
        assert service.life.state(service.life.peek(1)) is before
        assert len(service.told) == 1 or service.told[-1] == (1, before), "a hint tells no other state"
        service.told.clear()
        await service.at(seconds)
        assert service.told == [(1, state)]
        assert service.recorded(1) == state.value


@pytest.mark.parametrize("life", [name for name in LIVES if name != "is not approved in time"])
async def test_what_happens_while_the_service_is_down_is_told_after_the_start(service, life):
    changes, steps = LIVES[life]
    await service.life.create(asked(1, **changes), ALICE)
    (seconds, state) = steps[-1]
    service.clock.offset = timedelta(seconds=seconds)
    await service.restart()
    assert service.life.state(await service.life.find(1)) is state, "true before anybody has recorded it"
    recorded = service.recorded(1)
    await service.at(seconds)
    assert service.recorded(1) == state.value
    assert service.told == ([] if recorded == state.value else [(1, state)])


async def test_a_step_changes_at_least_one_and_leaves_the_others_for_the_next(service):
    for serial in (1, 2, 3):
        await service.life.create(asked(serial, not_after=after(HOUR)), ALICE)
    service.told.clear()
    service.clock.offset = timedelta(seconds=HOUR)
    assert [service.life.clockwork.tick(budget_s=0) for _ in range(4)] == [1, 1, 1, 0]
    assert service.told == [(1, S.EXPIRED), (2, S.EXPIRED), (3, S.EXPIRED)]


async def test_a_clock_that_is_set_back_moves_only_what_a_schedule_says(service):
    await service.life.create(asked(1, schedule=SHIFT), ALICE)
    await service.life.create(asked(2, renew_by=after(HOUR)), ALICE)
    await service.life.create(asked(3, not_after=after(HOUR)), ALICE)
    await service.at(TUESDAY_8)
    assert service.told[-3:] == [(2, S.PENDING_RENEWAL), (3, S.EXPIRED), (1, S.VALID)]
    service.told.clear()
    service.clock.offset = timedelta(seconds=1)
    service.life.step_back()
    await service.at(1)
    assert service.told == [(1, S.SCHEDULED_OFFLINE)]
    await service.at(TUESDAY_8)
    assert service.told[1:] == [(1, S.VALID)]
    assert [service.recorded(serial) for serial in (1, 2, 3)] == ["VALID", "PENDING_RENEWAL", "EXPIRED"]


async def test_other_windows_in_utc_are_told_when_the_clocks_are_changed(service):
    berlin = Schedule(parse_windows("*,08:00,17:00"), "Europe/Berlin")
    await service.life.create(asked(1, schedule=berlin, not_after=after(60 * DAY)), ALICE)
    record = service.life.peek(1)
    summer = posix(datetime(2026, 3, 29, 1, tzinfo=UTC)) - posix(START)
    await service.at(summer - 1)
    assert [str(window) for window in windows_now(record, service.clock())] == ["*,07:00,16:00"]
    service.told.clear()
    await service.at(summer)
    assert service.told == [(1, S.SCHEDULED_OFFLINE)]
    assert [str(window) for window in windows_now(record, service.clock())] == ["*,06:00,15:00"]


# ---------------------------------------------------------------------- renewals


async def test_a_renewal_is_due_from_half_of_the_way_and_said_once(service, renewing):
    record = await service.life.create(asked(1, renew_by=after(2 * HOUR)), ALICE)
    assert (record.renew_by, record.renewed_at) == (posix(after(2 * HOUR)), posix(START))
    await service.at(HOUR - 1)
    assert not is_renewal_due(service.life.peek(1), service.clock())
    service.told.clear()
    await service.at(HOUR)
    assert service.told == [(1, S.VALID)]
    assert is_renewal_due(service.life.peek(1), service.clock())
    await service.at(HOUR + 1)
    assert len(service.told) == 1
    # Renewed: the next half of the way counts from now.
    await service.life.create(asked(2, "n1", renew_by=after(3 * HOUR + 1)), ALICE)
    assert not is_renewal_due(service.life.peek(1), service.clock())
    service.told.clear()
    await service.at(2 * HOUR)
    assert service.told == [], "the date that was moved means nothing any more"
    await service.at(2 * HOUR + 1)
    assert service.told == [(1, S.VALID)]
    await service.at(3 * HOUR + 1)
    assert service.told[1:] == [(1, S.PENDING_RENEWAL)]
    assert is_renewal_due(service.life.peek(1), service.clock()), "now more than ever"


@pytest.mark.parametrize(
    ("schedule", "seconds", "before", "then"),
    [
        (Schedule(), HOUR, S.VALID, S.VALID),
        (Schedule(), 3 * HOUR, S.PENDING_RENEWAL, S.VALID),
        (SHIFT, 3 * HOUR, S.PENDING_RENEWAL, S.SCHEDULED_OFFLINE),
        (SHIFT, HOUR, S.SCHEDULED_OFFLINE, S.SCHEDULED_OFFLINE),
        (SHIFT, TUESDAY_8, S.PENDING_RENEWAL, S.VALID),
    ],
)
async def test_a_renewal_moves_the_date_and_nothing_else(service, renewing, schedule, seconds, before, then):
    first = await service.life.create(
        asked(1, renew_by=after(2 * HOUR), schedule=schedule, san=(San("dns", "a.example"),)), ALICE
    )
    await service.at(seconds)
    assert service.life.state(service.life.peek(1)) is before
    service.told.clear()
    renew_by = after(seconds + 2 * HOUR)
    record = await service.life.create(asked(2, "n1", renew_by=renew_by), ALICE)
    assert service.told == [(1, then)]
    assert record == service.life.peek(1)
    assert record == first._replace(
        renew_by=posix(renew_by),
        renewed_at=posix(after(seconds)),
        state=then,
        state_date=record.state_date,
        next_at=record.next_at,
    )
    assert names_of(record.san) == (San("dns", "a.example"),)
    assert (service.life.created, service.life.renewed) == (1, 1)
    assert service.recorded(1, "state, renew_by, renewed_at") == (
        then.value,
        posix(renew_by),
        posix(after(seconds)),
    )
    (entry,) = service.audit("renew")
    assert (entry["serial"], entry["from"], entry["state"]) == ("1", before.value, then.value)
    assert entry["renew_by"] == f"{renew_by:%Y-%m-%dT%H:%M:%SZ}"
    assert entry["renew_by_before"] == f"{after(2 * HOUR):%Y-%m-%dT%H:%M:%SZ}"
    await service.restart()
    assert (await service.life.find(1))._replace(delivered=0) == record


async def test_renewals_in_one_commit_see_each_other_and_what_was_issued_in_it(service, renewing):
    gate = hold(service)
    work = [
        asyncio.ensure_future(service.life.create(asked(serial, "n1", renew_by=after(serial * HOUR)), ALICE))
        for serial in (1, 2, 3)
    ]
    await asyncio.sleep(0)
    gate.set()
    records = await asyncio.gather(*work)
    assert [record.serial for record in records] == [1, 1, 1]
    assert service.recorded(1, "renew_by") == posix(after(3 * HOUR))
    assert [entry["renew_by_before"][11:16] for entry in service.audit("renew")] == ["13:00", "14:00"]


async def test_renewals_in_one_commit_see_what_the_clock_has_changed_unseen(service, renewing):
    await service.life.create(asked(1, renew_by=after(HOUR)), ALICE)
    gate = hold(service)
    commits = service.store.commits
    service.clock.offset = timedelta(seconds=HOUR)
    work = [
        asyncio.ensure_future(service.life.create(asked(serial, "n1", renew_by=after(serial * HOUR)), ALICE))
        for serial in (2, 3, 4)
    ]
    await asyncio.sleep(0)
    gate.set()
    records = await asyncio.gather(*work)
    assert [record.state for record in records] == [S.VALID] * 3
    assert service.store.commits == commits + 2, "the one that waited, and one for all"
    assert [entry["from"] for entry in service.audit("renew")] == ["PENDING_RENEWAL", "VALID", "VALID"]
    assert service.recorded(1, "state, renew_by") == ("VALID", posix(after(4 * HOUR)))


async def test_a_new_certificate_lets_the_old_one_run_out_undisturbed(service, monkeypatch):
    await service.life.create(asked(1, renew_by=after(HOUR), roll_over=True), ALICE)
    await service.at(2 * HOUR)
    assert service.recorded(1) == "PENDING_RENEWAL"
    monkeypatch.setattr(lifecycle_module, "judge", lambda _request, live, _now: Fresh(live[0][0]))
    record = await service.life.create(asked(2, "n1", roll_over=True), ALICE)
    assert record.serial == 2
    assert service.recorded(1, "state, renew_by") == ("VALID", 0)
    assert service.told[-2:] == [(1, S.VALID), (2, S.VALID)]


async def test_a_renewal_that_is_refused_is_in_the_audit(service, monkeypatch):
    def judge(*_):
        raise RequestRefused("the request does not prove that the certificate is yours")

    monkeypatch.setattr(lifecycle_module, "judge", judge)
    with pytest.raises(RequestRefused, match="does not prove"):
        await service.life.create(asked(1), ALICE)
    assert service.audit("refuse")[0]["why"].startswith("the request does not prove")


def hold(service):
    """Let the database's thread wait, so that what is queued shares one commit."""
    gate = threading.Event()
    begun = threading.Event()

    def job(_transaction):
        begun.set()
        assert gate.wait(60)

    service.store.submit(job)
    service.store._send()  # at once: this turn of the event loop stands still until the job has begun
    assert begun.wait(60)
    return gate


async def test_a_crossing_that_was_told_and_not_recorded_undoes_no_renewal(service, renewing):
    """The renewal is queued, the clock crosses the old date and has this recorded behind it."""
    await service.life.create(asked(1, renew_by=after(HOUR)), ALICE)
    gate = hold(service)
    work = asyncio.ensure_future(service.life.create(asked(2, "n1", renew_by=after(3 * HOUR)), ALICE))
    await asyncio.sleep(0)
    service.clock.offset = timedelta(seconds=HOUR)
    service.life.tick()
    assert service.told[-1] == (1, S.PENDING_RENEWAL)
    gate.set()
    record = await work
    await service.life.settle()
    assert record.state is service.life.peek(1).state is S.VALID
    assert service.recorded(1, "state, renew_by") == ("VALID", posix(after(3 * HOUR)))


async def test_an_end_that_was_told_stays_though_it_is_not_recorded_and_the_clock_goes_back(
    service, renewing
):
    await service.life.create(asked(1, not_after=after(2 * HOUR), renew_by=after(HOUR)), ALICE)
    gate = hold(service)
    service.clock.offset = timedelta(seconds=2 * HOUR)
    service.life.tick()
    assert service.told[-1] == (1, S.EXPIRED)
    service.clock.offset = timedelta()
    service.life.step_back()
    work = asyncio.ensure_future(service.life.create(asked(2, "n1", renew_by=after(3 * HOUR)), ALICE))
    await asyncio.sleep(0)
    gate.set()
    assert (await work).serial == 2, "there is nothing to renew any more"
    await service.life.settle()
    assert service.recorded(1) == "EXPIRED"


# ---------------------------------------------------------------------- approval


@pytest.mark.parametrize(
    ("changes", "seconds", "state", "renew_by"),
    [
        ({}, 5 * HOUR, S.VALID, 0),
        ({"cadence": HOUR}, 5 * HOUR, S.VALID, 6 * HOUR),
        ({"cadence": 40 * DAY}, 5 * HOUR, S.VALID, 0),
        ({"renew_by": after(6 * HOUR)}, 5 * HOUR, S.VALID, 6 * HOUR),
        ({"renew_by": after(4 * HOUR)}, 5 * HOUR, S.PENDING_RENEWAL, 4 * HOUR),
        ({"schedule": SHIFT, "cadence": HOUR}, 5 * HOUR, S.SCHEDULED_OFFLINE, 6 * HOUR),
        ({"schedule": SHIFT}, TUESDAY_8, S.VALID, 0),
        ({"not_before": after(6 * HOUR), "schedule": SHIFT}, 5 * HOUR, S.PENDING, 0),
    ],
)
async def test_a_cadence_begins_with_the_approval(service, changes, seconds, state, renew_by):
    record = await service.life.create(asked(1, approval_needed=True, **changes), ALICE)
    assert record.state is S.PENDING_APPROVAL
    await service.at(seconds)
    record = await service.life.approve(1, BOSS)
    assert record.state is state
    assert record.renew_by == (posix(after(renew_by)) if renew_by else 0)
    assert record.approved
    assert service.recorded(1, "state, renew_by, renewed_at") == (
        state.value,
        record.renew_by,
        record.renewed_at,
    )
    if renew_by:
        assert record.renewed_at == posix(after(seconds))
        assert service.audit("approve")[0]["renew_by"] == f"{after(renew_by):%Y-%m-%dT%H:%M:%SZ}"


async def test_who_renews_does_not_wait_for_room_among_those_that_wait(service, renewing, monkeypatch):
    await service.life.create(asked(1, approval_needed=True), ALICE)
    await service.life.approve(1, BOSS)
    monkeypatch.setattr("appliance.cms.waiting._MOST", 0)
    record = await service.life.create(asked(2, "n1", approval_needed=True, renew_by=after(HOUR)), ALICE)
    assert record.serial == 1
    with pytest.raises(RequestRefused, match="wait for approval"):
        await service.life.create(asked(3, approval_needed=True), ALICE)


# ---------------------------------------------------------------------- schedules


def by_boss(*texts, zone=""):
    return Schedule(tuple(window for text in texts for window in parse_windows(text)), zone, "admin")


async def test_an_administrator_sets_a_schedule_and_its_state_follows_at_once(service):
    await service.life.create(asked(1), ALICE)
    service.told.clear()
    record = await service.life.reschedule(1, by_boss("2,08:00,17:00"), BOSS)
    assert service.told == [(1, S.SCHEDULED_OFFLINE)]
    assert service.recorded(1, "state, schedule") == ("SCHEDULED_OFFLINE", record.schedule)
    await service.at(TUESDAY_8)
    assert service.told[-1] == (1, S.VALID)
    await service.at(TUESDAY_17)
    await service.life.reschedule(1, by_boss(), BOSS)
    assert service.told[-2:] == [(1, S.SCHEDULED_OFFLINE), (1, S.VALID)]
    assert schedule_of(service.life.peek(1)) == by_boss()
    first, second = service.audit("schedule")
    assert (first["old"], first["new"], first["state"]) == (
        "always",
        "2,08:00,17:00 UTC",
        "SCHEDULED_OFFLINE",
    )
    assert (second["old"], second["new"], second["state"]) == ("2,08:00,17:00 UTC", "always", "VALID")
    assert first["account"] == "admin"
    # In the same state nothing but the windows changes, and this is told too.
    service.told.clear()
    since = service.life.peek(1).state_date
    await service.life.reschedule(1, by_boss("*,00:00,00:00"), BOSS)
    assert service.told == [(1, S.VALID)]
    assert service.life.peek(1).state_date == since


async def test_a_schedule_is_refused_where_it_could_not_work(service):
    await service.life.create(asked(1, usage="cms"), ALICE)
    await service.life.create(asked(2, no_status=True), ALICE)
    await service.life.create(asked(3, not_after=after(HOUR)), ALICE)
    await service.life.create(asked(4), ALICE)
    await service.life.revoke(4, BOSS)
    await service.at(HOUR)
    for serial, why in ((1, "own"), (2, "status"), (3, "EXPIRED"), (4, "REVOKED"), (5, "not known")):
        with pytest.raises(RequestRefused, match=why):
            await service.life.reschedule(serial, by_boss("1,08:00,17:00"), BOSS)
    assert [entry["asked"] for entry in service.audit("refuse")] == ["schedule"] * 4
    with pytest.raises(RequestRefused, match="without a status has no schedule"):
        await service.life.create(asked(6, no_status=True, schedule=SHIFT), ALICE)


@pytest.mark.parametrize("end", ["revoked", "expired", "rolled over"])
async def test_what_an_administrator_set_stays_with_the_name(service, end):
    roll = {"roll_over": True, "identity": "idp|n1", "method": "jwt"} if end == "rolled over" else {}
    await service.life.create(asked(1, not_after=after(2 * HOUR), **roll), ALICE)
    await service.life.reschedule(1, by_boss("2,08:00,17:00"), BOSS)
    if end == "revoked":
        await service.life.revoke(1, BOSS)
    await service.at(2 * HOUR if end == "expired" else HOUR)
    wish = Schedule(parse_windows("*,00:00,00:00"))
    record = await service.life.create(
        asked(2, "n1", schedule=wish, not_before=after(HOUR), usage="ioc", **roll), ALICE
    )
    assert schedule_of(record) == by_boss("2,08:00,17:00")
    assert record.state is S.SCHEDULED_OFFLINE
    entry = service.audit("create")[-1]
    assert entry["schedule"] == "2,08:00,17:00 UTC"
    assert entry["asked_schedule"] == "*,00:00,00:00 UTC"
    # And to the next of the next, until an administrator ends it.
    await service.life.revoke(2, BOSS)
    await service.at(3 * HOUR)
    await service.life.create(asked(3, "n1", not_before=after(2 * HOUR)), ALICE)
    assert service.life.peek(3).state is S.SCHEDULED_OFFLINE
    await service.life.reschedule(3, by_boss(), BOSS)
    await service.life.revoke(3, BOSS)
    record = await service.life.create(asked(4, "n1", not_before=after(3 * HOUR), schedule=SHIFT), ALICE)
    assert schedule_of(record) == by_boss()
    assert record.state is S.VALID


async def test_a_certificate_without_status_is_no_way_around_a_schedule(service):
    await service.life.create(asked(1), ALICE)
    await service.life.reschedule(1, by_boss("2,08:00,17:00"), BOSS)
    await service.life.revoke(1, BOSS)
    with pytest.raises(RequestRefused, match="an administrator has set a schedule"):
        await service.life.create(asked(2, "n1", no_status=True), ALICE)


async def test_what_a_holder_chose_ends_with_the_certificate(service):
    await service.life.create(asked(1, schedule=SHIFT), ALICE)
    await service.life.revoke(1, BOSS)
    record = await service.life.create(asked(2, "n1"), ALICE)
    assert record.schedule == ""


async def test_a_zone_that_this_host_does_not_know_lets_nobody_in(service, caplog):
    lost = Schedule(parse_windows("*,00:00,00:00"), "Mars/Base")
    record = await service.life.create(asked(1, schedule=lost), ALICE)
    assert record.state is S.SCHEDULED_OFFLINE
    assert "Mars/Base" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        "schedule = '{bad'",
        "schedule = '{}'",
        "schedule = '[1]'",
        "renew_by = 99999999999999",
        "not_after = 'x'",
    ],
)
async def test_a_damaged_row_is_named_to_who_asks_for_it_and_hurts_no_other(service, damage, caplog):
    await service.life.create(asked(17), ALICE)
    await service.life.create(asked(18, not_after=after(HOUR)), ALICE)
    await service.close()
    with closing(sqlite3.connect(service.path)) as connection, connection:
        connection.execute(f"UPDATE certs SET {damage}, next_at = 0 WHERE serial = 17")
    service.open()
    with pytest.raises(StoreError, match=r"row of the certificate 17 is damaged \(.+\); restore a backup"):
        await service.life.find(17)
    await service.at(HOUR)
    await service.at(HOUR + 1)
    assert service.recorded(18) == "EXPIRED"
    assert caplog.text.count("row of the certificate 17 is damaged") == 1
