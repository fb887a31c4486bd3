"""What is watched is in memory and true, however reads, own commits and the changes of others follow each other."""

import asyncio
import shutil
import threading

import pytest

from appliance.certs.status import CertState as S
from appliance.cms import clockwork as clockwork_module
from appliance.cms import memory as memory_module
from appliance.cms.reading import Readers
from appliance.cms.store import Store
from appliance.cms.transaction import StoreError
from tests.unit.cms.test_clockwork import ALICE, BOSS, ISSUER, Service, asked


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    path = tmp_path_factory.mktemp("empty") / "certs.db"
    store = Store(str(path), ISSUER)
    store.open()
    store.close()
    return path


class Other:
    """Another program that uses the same database."""

    def __init__(self, path):
        self.store = Store(str(path), ISSUER)
        self.store.open(beside=True)

    def change(self, serial, state):
        def job(transaction):
            record = transaction.get(serial)
            changed = transaction.change(record, state, at=record.state_date + 1, approved=False)
            transaction.audit(record.state_date + 1, "revoke", serial, {"state": state.value})
            return changed, transaction.audit_head[0]

        return self.store.run(job)


@pytest.fixture
async def service(tmp_path, empty):
    shutil.copy(empty, tmp_path)
    found = Service(tmp_path)
    found.watches = False
    yield found
    await found.close()


@pytest.fixture
def other(service):
    found = Other(service.path)
    yield found
    found.store.close()


async def until_read(service):
    """Wait until everything that is to be read is read."""
    while service.life.memory._reading:
        await asyncio.sleep(0.001)


def fresh(service):
    """The same database, and nothing in memory."""
    service.life.memory.change_all()
    service.told.clear()
    return service.life.memory


async def test_nothing_is_read_before_somebody_asks_and_then_once_for_all_who_do(service):
    await service.life.create(asked(1), ALICE)
    memory = fresh(service)
    assert memory.peek(1) is None
    assert not memory.is_certain(1)
    questions = []
    read = service.readers.read
    service.readers.read = lambda job: (questions.append(job), read(job))[1]
    found = await asyncio.gather(*(memory.find(serial) for serial in (1, 1, 2, 1)))
    assert [record and record.serial for record in found] == [1, 1, None, 1]
    assert len(questions) == 1
    assert (await memory.find(1)).serial == 1
    assert len(questions) == 1


async def test_a_serial_number_that_no_row_can_have_is_unknown(service):
    assert await service.life.memory.find((1 << 64) - 1) is None


async def test_what_others_change_is_told_if_it_is_watched_and_forgotten_if_not(service, other):
    for serial in (1, 2):
        await service.life.create(asked(serial), ALICE)
    memory = fresh(service)
    memory.pin(1)
    await memory.find(1)
    await memory.find(2)
    for serial in (1, 2):
        _, seq = other.change(serial, S.REVOKED)
        memory.change({serial: seq})
    assert memory.peek(2) is None
    assert not memory.is_certain(1), "until it is read again nobody may rely on it"
    await until_read(service)
    assert service.told == [(1, S.REVOKED)]
    assert memory.is_certain(1)
    assert (await memory.find(2)).state is S.REVOKED
    assert service.told == [(1, S.REVOKED)]


async def test_a_certificate_that_another_node_issues_takes_the_place_of_unknown(service):
    memory = service.life.memory
    memory.pin(5)
    assert await memory.find(5) is None
    assert memory.is_certain(5)
    await service.life.create(asked(5), ALICE)
    memory.unpin(5)
    memory = fresh(service)
    memory.pin(6)
    assert await memory.find(6) is None
    service.store.submit(lambda t: t.connection.exec_driver_sql("UPDATE certs SET serial = 6"))
    await service.store.submit(lambda t: None)
    memory.change({6: 2})
    await until_read(service)
    assert service.told == [(6, S.VALID)]


async def test_a_certificate_that_is_in_the_database_no_more_is_told_as_vanished(service):
    await service.life.create(asked(1), ALICE)
    memory = fresh(service)
    gone = []
    service.life.vanished.append(gone.append)
    memory.pin(1)
    await memory.find(1)
    await service.store.submit(lambda t: t.connection.exec_driver_sql("DELETE FROM certs"))
    memory.change_all()
    await until_read(service)
    assert (gone, memory.peek(1)) == ([1], None)


class HeldBack(Readers):
    """A reader that keeps its answers back until the test lets them go."""

    def __init__(self, database):
        super().__init__(database)
        self.asked = threading.Event()
        self.gate = threading.Event()

    def read(self, job):
        def held(connection):
            answer = job(connection)
            self.asked.set()
            assert self.gate.wait(60)
            return answer

        return super().read(held)


async def hold(service):
    held = HeldBack(service.store.database)
    service.life.memory._readers = held
    return held


@pytest.mark.parametrize("pinned", [True, False], ids=["watched", "not watched"])
async def test_a_row_that_was_changed_while_it_was_read_is_read_again(service, other, pinned):
    await service.life.create(asked(1), ALICE)
    memory = fresh(service)
    held = await hold(service)
    if pinned:
        memory.pin(1)
    found = asyncio.ensure_future(memory.find(1))
    await asyncio.to_thread(held.asked.wait, 60)
    _, seq = other.change(1, S.REVOKED)
    memory.change({1: seq})
    held.gate.set()
    assert (await found).state is S.REVOKED
    assert memory.peek(1).state is S.REVOKED
    held.close()


async def test_an_own_commit_is_not_undone_by_an_older_row(service):
    await service.life.create(asked(1), ALICE)
    memory = fresh(service)
    held = await hold(service)
    memory.pin(1)
    found = asyncio.ensure_future(memory.find(1))
    await asyncio.to_thread(held.asked.wait, 60)
    await service.life.revoke(1, BOSS)
    assert memory.peek(1).state is S.REVOKED
    held.gate.set()
    assert (await found).state is S.REVOKED
    assert service.told == [(1, S.REVOKED)]
    held.close()


async def test_an_own_commit_that_is_told_late_does_not_undo_what_another_node_did_after_it(service, other):
    """Its result waits in this process while the other's change comes from the database."""
    record = await service.life.create(asked(1), ALICE)
    memory = fresh(service)
    memory.pin(1)
    await memory.find(1)
    _, seq = other.change(1, S.REVOKED)
    memory.change({1: seq})
    assert not memory.put(record, seq - 1)
    await until_read(service)
    assert memory.peek(1).state is S.REVOKED
    # Or the row was read already, and the number has not come yet.
    memory._pinned[1].seq = 0
    assert not memory.put(record, seq - 1)
    await until_read(service)
    assert memory.peek(1).state is S.REVOKED


async def test_what_could_not_be_read_again_stays_uncertain_until_it_is_read(service, other):
    await service.life.create(asked(1), ALICE)
    memory = fresh(service)
    memory.pin(1)
    await memory.find(1)
    other.change(1, S.REVOKED)

    def lost(_connection):
        raise StoreError("the database is away")

    read = service.readers.read
    service.readers.read = lambda _job: read(lost)
    memory.change({1: 99})
    await until_read(service)
    memory.try_again()
    await until_read(service)
    assert not memory.is_certain(1)
    assert service.told == []
    with pytest.raises(StoreError, match="away"):
        await memory.find(1)
    service.readers.read = read
    memory.try_again()
    await until_read(service)
    assert service.told == [(1, S.REVOKED)]
    assert memory.is_certain(1)


async def test_what_nobody_watches_is_bounded_and_what_is_watched_is_not_lost(service, monkeypatch):
    monkeypatch.setattr(memory_module, "_KEPT", 2)
    for serial in (1, 2, 3, 4):
        await service.life.create(asked(serial), ALICE)
    memory = service.life.memory
    assert [memory.peek(serial) is not None for serial in (1, 2, 3, 4)] == [False, False, True, True]
    memory = fresh(service)
    memory.pin(1)
    await memory.find(1)
    for serial in (2, 3, 4):
        await memory.find(serial)
    assert memory.peek(1) is not None
    assert len(memory._others) == 2
    memory.pin(1)
    memory.unpin(1)
    assert len(memory.watched) == 1
    memory.unpin(1)
    assert len(memory.watched) == 0
    assert memory.peek(1) is not None, "it was asked for last"


async def test_who_begins_and_ends_to_watch_leaves_nothing_behind(service, monkeypatch):
    monkeypatch.setattr(clockwork_module, "_SPARE", 10)
    memory = service.life.memory
    await service.life.create(asked(1), ALICE)
    for _ in range(50):
        memory.pin(1)
        memory.unpin(1)
    assert len(service.life.clockwork._queue) <= 1
    for serial in range(100, 150):
        await service.life.create(asked(serial), ALICE)
        memory.pin(serial)
        memory.unpin(serial)
    assert len(service.life.clockwork._queue) <= 12


async def test_a_question_that_cannot_be_asked_fails_alone(service):
    await service.life.create(asked(1), ALICE)

    def wrong(connection):
        connection.exec_driver_sql("SELECT 1 FROM nowhere")

    bad = service.readers.read(wrong)
    good = service.readers.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())
    with pytest.raises(StoreError, match="cannot be read: no such table"):
        await bad
    assert await good == 1
    assert await service.readers.read_much(lambda c: c.exec_driver_sql("SELECT 2").scalar()) == 2


async def test_readers_cannot_write(service):
    with pytest.raises(StoreError, match="readonly"):
        await service.readers.read(lambda c: c.exec_driver_sql("DELETE FROM certs"))


async def test_an_own_commit_is_not_read_again_when_its_record_comes(service):
    questions = []
    read = service.readers.read
    service.readers.read = lambda job: (questions.append(job), read(job))[1]
    memory = service.life.memory
    for serial in (1, 2):
        await service.life.create(asked(serial), ALICE)
    memory.pin(1)
    memory.change({1: 1, 2: 2})
    assert memory.is_certain(1)
    assert memory.is_certain(2)
    assert not questions


async def test_an_own_commit_behind_which_another_node_has_changed_the_same_is_not_kept(service, other):
    record = await service.life.create(asked(1), ALICE)
    memory = fresh(service)
    _, seq = other.change(1, S.REVOKED)
    memory.change({1: seq})
    assert memory.put(record, seq - 1)
    assert (await memory.find(1)).state is S.REVOKED


async def test_an_own_commit_that_comes_from_the_database_first_is_kept(service, monkeypatch):
    record = await service.life.create(asked(1), ALICE)
    memory = fresh(service)
    memory.change({1: 5})
    memory.put(record, 5)
    assert memory.is_certain(1)
    # What is not remembered any more is not kept: another node may have changed it.
    monkeypatch.setattr(memory_module, "_SEEN", 0)
    memory.change({1: 6})
    memory.put(record, 6)
    assert not memory.is_certain(1)
