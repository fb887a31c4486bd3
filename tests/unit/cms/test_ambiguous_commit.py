"""A commit whose answer is lost is done once, and told once; without its database a service does nothing and says so."""

from __future__ import annotations

import asyncio
import queue
import threading
import uuid

import psycopg
import pytest
import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms import reading
from appliance.cms.audit import verify_audit
from appliance.cms.dialect import Login
from appliance.cms.jobs import Question, Waiting
from appliance.cms.nodes import Nodes
from appliance.cms.reading import Readers
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord, StoreError
from appliance.errors import ConfigurationError, DatabaseLost, RequestRefused
from tests.helpers.postgres import Server, raw
from tests.helpers.proxy import Proxy

MORE = {"cn": "a", "o": "", "ou": "", "c": "", "created": 0, "key_id": ""}
ISSUER = "01234567"
COMMIT = b"COMMIT\0"


def record(serial: int) -> CertRecord:
    return CertRecord(serial, f"{serial}\x1f\x1f\x1f", "client", "std", 0, 10, 0, CertState.VALID, 0, True, 1)


def issue(serial: int, calls: list[int] | None = None):
    """A job as the service has them: it looks, refuses what is there, and writes."""

    def job(transaction):
        if calls is not None:
            calls.append(serial)
        if transaction.get(serial) is not None:
            raise RequestRefused(f"{serial} is there")
        made = transaction.add(record(serial), MORE)
        transaction.audit(1, "create", serial, {})
        return made.serial

    return job


class Site:
    """A node behind a proxy, and the database behind that."""

    def __init__(self, server: Server, *, wait_s: float = 30.0, node: str = "a") -> None:
        self.server = server
        self.name = server.new()
        self.proxy = Proxy(server.port)
        self.store = self.another(node, wait_s=wait_s, port=self.proxy.port)

    def another(self, node: str, *, wait_s: float = 30.0, port: int = 0) -> Store:
        """A store of a further node, without the proxy unless its port is named."""
        url = self.server.url(self.name, host="127.0.0.1", port=port)
        store = Store(url, ISSUER, login=Login(node=node), wait_s=wait_s)
        store.open()
        if node:
            store.run(lambda transaction: Nodes(store)._record(transaction.connection, ""))
        store.start()
        return store

    @property
    def where(self) -> str:
        return self.server.url(self.name)

    def serials(self) -> list[int]:
        with raw(self.where) as db:
            return [row[0] for row in db.execute("SELECT serial FROM certs ORDER BY serial").fetchall()]

    def close(self) -> None:
        self.store.close()
        self.proxy.close()
        self.server.drop(self.name)


@pytest.fixture
def site(postgres):
    made = Site(postgres)
    yield made
    made.close()


async def test_a_commit_whose_answer_is_lost_is_done_once_and_told_once(site):
    calls: list[int] = []
    assert await site.store.submit(issue(1)) == 1
    site.proxy.swallow_answer_to(COMMIT)
    assert await site.store.submit(issue(2, calls)) == 2
    assert site.proxy.swallowed.is_set()
    assert calls == [2], "the database was asked what became of the first time"
    assert await site.store.submit(issue(3)) == 3
    assert site.serials() == [1, 2, 3]
    assert verify_audit(site.where).records == 3
    assert site.store.database.reconnects == 1


async def test_all_jobs_of_a_group_are_told_what_became_of_it(site):
    held = threading.Event()
    first = site.store.submit(lambda _: held.wait(30))
    jobs = [asyncio.ensure_future(site.store.submit(issue(n))) for n in range(1, 21)]
    site.proxy.swallow_answer_to(COMMIT)
    held.set()
    await first
    assert await asyncio.gather(*jobs) == list(range(1, 21))
    assert site.serials() == list(range(1, 21))


async def test_what_was_lost_before_its_commit_is_done_again(site):
    calls: list[int] = []
    await site.store.submit(issue(1))
    site.proxy.swallow_answer_to(b"INSERT INTO certs")
    assert await site.store.submit(issue(2, calls)) == 2
    assert calls == [2, 2]
    assert site.serials() == [1, 2]
    assert verify_audit(site.where).intact


async def test_a_command_without_a_node_is_told_that_nobody_knows(postgres):
    site = Site(postgres, node="")
    try:
        site.proxy.swallow_answer_to(COMMIT)
        with pytest.raises(
            DatabaseLost, match="it is not known whether this was done; ask again, it is safe"
        ):
            await site.store.submit(issue(1))
    finally:
        site.close()


async def test_jobs_wait_for_a_lost_database_and_are_refused_when_it_stays_away(postgres):
    site = Site(postgres, wait_s=0.5)
    try:
        await site.store.submit(issue(1))
        site.proxy.cut()
        with pytest.raises(DatabaseLost, match="nothing was done"):
            await site.store.submit(issue(2))
        assert site.store.database.state == "lost"
        assert not site.store.healthy
        # One that waits behind another is refused in time, too, and never done.
        results = await asyncio.gather(*(site.store.submit(issue(n)) for n in (3, 4)), return_exceptions=True)
        assert [type(result) for result in results] == [DatabaseLost, DatabaseLost]
        site.proxy.mend()
        await until_works(site.store, 5)
        assert site.serials() == [1, 5]
        assert site.store.healthy
    finally:
        site.close()


async def until_works(store: Store, serial: int) -> None:
    # What is given up just as it is done would be asked for twice.
    store.wait_s = 30.0
    async with asyncio.timeout(60):
        while True:
            try:
                await store.submit(issue(serial))
            except DatabaseLost:
                continue
            return


async def test_a_job_whose_waiter_was_told_that_nobody_knows_is_handed_over_when_it_turns_out_done(postgres):
    site = Site(postgres, wait_s=0.5)
    late: list[int] = []
    site.store.unclaimed = late.append
    try:
        site.proxy.swallow_answer_to(COMMIT)

        def job(transaction):
            made = issue(1)(transaction)
            site.proxy._is_cut = True  # what was asked for comes, and then nothing
            return made

        with pytest.raises(DatabaseLost, match="not known whether this was done"):
            await site.store.submit(job)
        assert site.serials() == [1]
        site.proxy.mend()
        await until_works(site.store, 2)
        assert late == [1]
        assert site.serials() == [1, 2]
    finally:
        site.close()


async def test_each_job_of_a_group_is_told_what_is_known_of_itself(site):
    def job(transaction):
        made = issue(2)(transaction)
        site.proxy._is_cut = True  # what was asked for comes, and then nothing
        return made

    group = [Waiting(issue(1)), Waiting(job)]
    group[0].is_late = True  # it gave up before
    site.proxy.swallow_answer_to(COMMIT)
    (_, first), (_, second) = await asyncio.to_thread(site.store._on_server, group, trial=False, until=0.0)
    assert "nothing was done" in str(first)
    assert "it is not known whether this was done" in str(second)
    assert site.serials() == [2]
    site.proxy.mend()


async def test_two_nodes_write_one_after_the_other_and_each_sees_what_the_other_did(site):
    other = site.another("b")
    try:
        done = await asyncio.gather(
            *(store.submit(issue(n)) for n in range(1, 41) for store in (site.store, other)),
            return_exceptions=True,
        )
        assert sorted(found for found in done if isinstance(found, int)) == list(range(1, 41))
        assert sum(isinstance(found, RequestRefused) for found in done) == 40
        found = verify_audit(site.where)
        assert (found.intact, found.records) == (True, 40)
    finally:
        other.close()


async def test_what_comes_while_another_node_has_the_lock_shares_the_next_commit(site):
    other = site.another("b")
    held, entered = threading.Event(), threading.Event()

    def hold(_):
        entered.set()
        held.wait(30)

    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    first = asyncio.ensure_future(other.submit(hold))
    try:
        await asyncio.get_running_loop().run_in_executor(None, entered.wait, 30)
        before = site.store.commits
        jobs = [asyncio.ensure_future(site.store.submit(issue(1)))]
        async with asyncio.timeout(30):
            while site.server.sql(waits) == [(0,)]:
                await asyncio.sleep(0)
        jobs += [asyncio.ensure_future(site.store.submit(issue(n))) for n in range(2, 21)]
        await asyncio.sleep(0)
        held.set()
        assert await asyncio.gather(*jobs) == list(range(1, 21))
        assert site.store.commits == before + 1
        site.store.close()
        assert site.serials() == list(range(1, 21))
    finally:
        held.set()
        await first
        other.close()


async def test_a_node_that_is_frozen_in_its_commit_gives_the_others_the_lock_back(site):
    other = site.another("b")
    held, entered = threading.Event(), threading.Event()

    def frozen(_):
        entered.set()
        held.wait(60)

    stuck = asyncio.ensure_future(site.store.submit(frozen))
    try:
        await asyncio.get_running_loop().run_in_executor(None, entered.wait, 30)
        assert await other.submit(issue(1), patient=True) == 1
    finally:
        held.set()
        await asyncio.gather(stuck, return_exceptions=True)
        other.close()


async def test_nothing_is_written_where_a_frozen_node_would_keep_the_lock(site, monkeypatch):
    """Between the statements of a pipeline none of the server's time limits counts."""

    def executemany(_cursor, statement, _rows):
        raise AssertionError(f"this is sent in a pipeline: {statement}")

    monkeypatch.setattr(psycopg.Cursor, "executemany", executemany)

    def many(transaction):
        for serial in range(1, 101):
            issue(serial)(transaction)

    def renew(transaction):
        for serial in (1, 2, 3):
            old = transaction.get(serial)
            transaction.prefetch([old.subject])
            for renew_by in (5, 6):
                old = transaction.renew(
                    old, renew_by=renew_by, renewed_at=1, state=CertState.PENDING_RENEWAL, at=renew_by
                )
            transaction.audit(1, "renew", serial, {})

    await site.store.submit(many)
    await site.store.submit(renew)
    found = await site.store.submit(lambda transaction: [transaction.get(serial) for serial in (1, 2, 3, 4)])
    assert [(each.renew_by, each.state, each.state_date) for each in found] == [
        *[(6, CertState.PENDING_RENEWAL, 5)] * 3,
        (0, CertState.VALID, 0),
    ]
    assert site.serials() == list(range(1, 101))
    assert verify_audit(site.where).records == 103


async def test_a_node_whose_host_is_gone_keeps_no_lock_for_long(site):
    asked = "SHOW tcp_keepalives_idle"
    found = await site.store.submit(
        lambda transaction: transaction.connection.exec_driver_sql(asked).scalar()
    )
    assert found == "5", "the server looks whether the node's host is there, too"


async def test_a_question_to_a_server_that_is_frozen_ends(site, monkeypatch):
    readers, thawed, asked = Readers(site.store.database), threading.Event(), []
    begun: queue.SimpleQueue[None] = queue.SimpleQueue()

    def frozen(_connection):
        begun.put(None)
        thawed.wait(60)

    try:
        stuck = [asyncio.ensure_future(read(frozen)) for read in (readers.read, readers.read_much)]
        for _ in stuck:
            await asyncio.to_thread(begun.get, timeout=60)
        with monkeypatch.context() as short:
            short.setattr(reading, "_SILENT_S", {"reader": 0.1, "list": 0.1})
            for read in (readers.read, readers.read_much):
                with pytest.raises(DatabaseLost, match="does not answer"):
                    await read(asked.append)
        thawed.set()
        await asyncio.gather(*stuck, return_exceptions=True)
        assert [await read(lambda _: 1) for read in (readers.read, readers.read_much)] == [1, 1]
        assert asked == [], "nobody waits for it any more"
    finally:
        thawed.set()
        readers.close()


async def test_a_standby_that_does_not_take_writes_is_as_good_as_lost(site, caplog):
    await site.store.submit(issue(1))
    site.server.sql(f"ALTER DATABASE {site.name} SET default_transaction_read_only = on")
    site.proxy.cut()
    site.proxy.mend()
    site.store.wait_s = 0.5
    async with asyncio.timeout(60):
        while "it is read-only" not in caplog.text:  # the log has the reason, and who asks has not
            with pytest.raises(
                DatabaseLost, match=r"the certificate database cannot be (reached|used); nothing was done"
            ):
                await site.store.submit(issue(2))
    site.server.sql(f"ALTER DATABASE {site.name} RESET default_transaction_read_only")
    site.store.wait_s = 30.0
    assert await site.store.submit(issue(3)) == 3
    assert site.serials() == [1, 3]


async def test_a_full_disk_of_the_server_refuses_what_does_not_fit_and_loses_nothing(site):
    """The server says so with SQLSTATE 53100, here from a trigger: no disk has to be full for that."""
    await site.store.submit(issue(1))
    site.server.sql(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
        "'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
        site.name,
    )
    site.server.sql(
        "CREATE TRIGGER full_disk BEFORE INSERT ON certs FOR EACH ROW WHEN (NEW.serial = 2) EXECUTE FUNCTION full_disk()",
        site.name,
    )
    held = threading.Event()
    first = site.store.submit(lambda _: held.wait(30))
    jobs = [asyncio.ensure_future(site.store.submit(issue(n))) for n in (2, 3)]
    held.set()
    await first
    done = await asyncio.gather(*jobs, return_exceptions=True)
    assert isinstance(done[0], StoreError)
    assert "cannot be written (the service's log says why); nothing was done" in str(done[0])
    assert done[1] == 3
    assert site.store.database.state == "up", "the server is there"
    with pytest.raises(StoreError):
        await site.store.submit(issue(2))
    assert not site.store.healthy, "until something of the service's own is committed"
    site.server.sql("DROP TRIGGER full_disk ON certs", site.name)
    assert await site.store.submit(issue(2)) == 2
    assert site.store.healthy
    assert site.serials() == [1, 2, 3]
    assert verify_audit(site.where).records == 3


# ---------------------------------------------------------------------- the database is another one, or older


async def test_a_process_whose_database_is_exchanged_for_another_one_does_nothing_more(site):
    await site.store.submit(issue(1))
    site.server.sql(f"UPDATE meta SET value = '{uuid.uuid4()}' WHERE key = 'database_id'", site.name)
    site.proxy.cut()
    site.proxy.mend()
    with pytest.raises(DatabaseLost, match="nothing was done"):
        await site.store.submit(issue(2))
    assert "is another one than at the start of this service, so this process must end" in site.store.fatal
    assert not site.store.healthy
    assert site.serials() == [1]


async def test_a_database_that_has_lost_commits_is_made_good_before_anything_else_is_written(site):
    restored, told = [], asyncio.Event()
    site.store.on_restored = told.set

    def make_good(transaction, last):
        restored.append(last)
        transaction.audit(2, "restored", None, {"seq": last[0]})

    site.store.restored = make_good
    for serial in (1, 2, 3):
        await site.store.submit(issue(serial))
    site.server.sql("DELETE FROM audit WHERE seq > 1", site.name)
    site.server.sql("DELETE FROM certs WHERE serial > 1", site.name)
    site.proxy.cut()
    site.proxy.mend()
    assert await site.store.submit(issue(4)) == 4
    assert [seq for seq, _ in restored] == [3]
    await told.wait()
    with raw(site.where) as db:
        assert [row[0] for row in db.execute("SELECT action FROM audit ORDER BY seq").fetchall()] == [
            "create",
            "restored",
            "create",
        ]
    # It is told once, and a reconnection to the same history is none of it.
    site.store.look_back()
    await site.store.submit(issue(6))
    site.proxy.cut()
    site.proxy.mend()
    await site.store.submit(issue(5))
    assert len(restored) == 1


async def test_records_that_others_wrote_or_pruned_meanwhile_are_no_loss(site):
    restored = []
    site.store.restored = lambda _, last: restored.append(last)
    other = site.another("b")
    try:
        await site.store.submit(issue(1))
        await other.submit(issue(2))
        site.proxy.cut()
        site.proxy.mend()
        await site.store.submit(issue(3))
        await other.submit(issue(4))
        site.server.sql("DELETE FROM audit WHERE seq <= 3", site.name)
        site.proxy.cut()
        site.proxy.mend()
        await site.store.submit(issue(5))
        assert restored == []
    finally:
        other.close()


def test_a_store_does_not_open_a_database_that_a_command_has_for_itself(site):
    engine = sa.create_engine(site.where)
    site.store.close()
    try:
        with engine.connect() as alone:
            # The server ends the store's sessions when it notices that they are closed.
            alone.exec_driver_sql("SET lock_timeout = '60s'")
            alone.exec_driver_sql("SELECT pg_advisory_lock(37427)")
            with pytest.raises(ConfigurationError, match="in use by a command that needs it alone"):
                site.another("b")
    finally:
        engine.dispose()


async def test_who_gave_up_is_told_once_it_is_known_that_nothing_was_done(postgres):
    site = Site(postgres, wait_s=0.2)
    try:
        undone = asyncio.Event()
        site.proxy.cut()
        with pytest.raises(DatabaseLost):
            await site.store.submit(issue(1), undone=undone.set)
        async with asyncio.timeout(60):
            await undone.wait()
        site.proxy.mend()
        # One whose commit was sent, and of which nobody knew what became of it.
        undone.clear()
        item = Waiting(issue(2), undone=undone.set)
        item.is_late = item.is_open = True
        site.store._question = Question("a token that no commit has written", [item], [(2, None)], (0, ""))
        await site.store.submit(issue(3), patient=True)
        async with asyncio.timeout(60):
            await undone.wait()
        assert site.serials() == [3]
    finally:
        site.close()
