"""What others commit is learnt of: at once, after a lost notification, after a lost connection, and if the past is another one."""

import asyncio
import threading
from contextlib import contextmanager

import pytest

from appliance.certs.status import CertState
from appliance.cms import feed as feed_module
from appliance.cms.feed import Feed, OthersRevocations
from appliance.cms.journal import Journal
from appliance.cms.reading import Readers
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord
from appliance.errors import DatabaseLost

AT = 1_800_000_000


@pytest.fixture
def where(engine, tmp_path):
    """A database that has the newest schema."""
    found = engine.db(tmp_path)
    if engine.name == "sqlite":
        store = Store(found, "")
        store.open()
        store.close()
    return found


@pytest.fixture
def on_server(postgres):
    name = postgres.new()
    yield postgres.url(name)
    postgres.drop(name)


class Other:
    """Another node, or a command."""

    def __init__(self, where):
        self.store = Store(where, "01234567")
        self.store.open(beside=True)
        self.store.let_others_start()

    def audit(self, action, *serials):
        def job(transaction):
            for serial in serials:
                transaction.audit(AT, action, serial, {})
            return transaction.audit_head

        return self.store.run(job)

    def do(self, *statements):
        def job(transaction):
            for statement in statements:
                transaction.connection.exec_driver_sql(statement)

        self.store.run(job)


@contextmanager
def other(where):
    found = Other(where)
    try:
        yield found
    finally:
        found.store.close()


class Heard:
    """A feed, and what it has told."""

    def __init__(self, where):
        self.store = Store(where, "01234567")
        self.feed = Feed(self.store.database)
        self.news = asyncio.Queue()
        self.feed.on_change = self.news.put_nowait
        self.feed.on_all = lambda: self.news.put_nowait("all")

    async def __aenter__(self):
        await self.feed.start()
        return self

    async def __aexit__(self, *_):
        self.feed.close()
        self.store.close()

    async def next(self):
        return await asyncio.wait_for(self.news.get(), 60)


async def test_changes_of_others_come_with_their_numbers_and_refusals_do_not(where):
    with other(where) as node:
        node.audit("create", 7)
        async with Heard(where) as heard:
            assert heard.feed.seq == 1, "what was there before is known"
            node.audit("refuse", 8)
            seq, _ = node.audit("revoke", 9, 10, 9)
            assert await heard.next() == {9: seq, 10: seq - 1}
            await asyncio.wait_for(heard.feed.caught_up(seq), 60)
            assert (heard.feed.seq, heard.news.empty()) == (seq, True)


async def test_an_empty_database_is_followed_from_its_first_record_on(where):
    with other(where) as node:
        async with Heard(where) as heard:
            node.audit("create", 1)
            assert await heard.next() == {1: 1}


async def test_a_notification_tells_at_once(on_server, monkeypatch):
    monkeypatch.setattr(feed_module, "_PAUSE_S", 3600.0)
    with other(on_server) as node:
        async with Heard(on_server) as heard:
            for serial in (1, 2, 3):
                await asyncio.to_thread(node.audit, "create", serial)
                assert await heard.next() == {serial: serial}


async def test_without_notifications_the_next_look_finds_it(on_server):
    with other(on_server) as node:
        async with Heard(on_server) as heard:
            await asyncio.to_thread(unlisten, heard.feed)
            await asyncio.to_thread(node.audit, "create", 1)
            assert await heard.next() == {1: 1}


def unlisten(feed):
    """Have the feed's session hear nothing any more, in its own thread."""
    done = threading.Event()
    look = feed_module._look

    def once(connection, last):
        connection.exec_driver_sql("UNLISTEN *")
        feed_module._look = look
        done.set()
        return look(connection, last)

    feed_module._look = once
    feed.look()
    assert done.wait(60)


async def test_a_lost_connection_loses_no_change(on_server, postgres):
    with other(on_server) as node:
        async with Heard(on_server) as heard:
            for serial in range(1, 4):
                postgres.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'audit' AND pid <> pg_backend_pid()"
                )
                node.store.look_back()
                await asyncio.to_thread(node.audit, "create", serial)
                assert await heard.next() == {serial: serial}


async def test_what_is_not_looked_at_for_three_seconds_is_not_fresh(on_server, monkeypatch):
    async with Heard(on_server) as heard:
        feed = heard.feed
        assert feed.is_fresh()
        begun = feed._looked
        monkeypatch.setattr(feed_module.time, "monotonic", lambda: begun + feed_module.FRESH_S)
        feed._looked = begun
        assert not feed.is_fresh()
        assert feed.fresh_for_s() == 0


def test_before_a_look_has_succeeded_the_lag_is_a_day(on_server):
    with other(on_server) as node:
        feed = Feed(node.store.database)
        assert feed.lag_ms() == 24 * 3600 * 1000
        feed._looked = feed_module.time.monotonic() - 2
        assert 2000 <= feed.lag_ms() < 3600 * 1000


async def test_a_file_has_no_elsewhere(tmp_path):
    where = str(tmp_path / "certs.db")
    store = Store(where, "")
    store.open()
    try:
        feed = Feed(store.database)
        assert feed.is_fresh()
        feed.close()
    finally:
        store.close()


async def test_records_that_were_pruned_in_the_meantime_mean_that_anything_may_have_changed(
    where, monkeypatch
):
    with other(where) as node:
        node.audit("create", *range(1, 10))
        async with Heard(where) as heard:
            node.do(
                "DELETE FROM audit WHERE seq <= 9",
                "INSERT INTO audit VALUES (10, 1, 'prune', '', '{}', 'abc')",
            )
            heard.feed.on_ends = lambda *_: heard.news.put_nowait("ends")
            heard.feed.look()
            assert await heard.next() == "all"
            assert (heard.feed.seq, heard.feed.hash) == (10, "abc")
            assert heard.news.empty(), "who keeps a journal has to look at all of it, too"


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM audit WHERE seq > 4",
        "DELETE FROM audit",
        "UPDATE audit SET hash = 'other' WHERE seq = 6",
    ],
    ids=["shorter", "empty", "other"],
)
async def test_another_history_is_made_good_before_anything_is_fresh_again(where, damage, caplog):
    with other(where) as node:
        node.audit("create", *range(1, 7))
        async with Heard(where) as heard:
            asked, go, failed = asyncio.Queue(), asyncio.Event(), []

            async def restore(seq, _hash):
                asked.put_nowait(seq)
                if not failed:
                    failed.append(1)
                    raise DatabaseLost("it is away")
                await go.wait()

            monkeypatch = pytest.MonkeyPatch()
            monkeypatch.setattr(feed_module, "_AGAIN_S", 0.0)
            heard.feed.on_restored = restore
            node.do(damage)
            heard.feed.look()
            assert [await asyncio.wait_for(asked.get(), 60) for _ in range(2)] == [6, 6]
            assert heard.feed.is_fresh() is not heard.store.database.is_server
            go.set()
            assert await heard.next() == "all"
            monkeypatch.undo()
    assert "another history" in caplog.text


async def test_more_than_one_look_can_read_is_read_at_once(where, monkeypatch):
    monkeypatch.setattr(feed_module, "_AT_ONCE", 3)
    with other(where) as node:
        async with Heard(where) as heard:
            seq, _ = node.audit("create", *range(1, 9))
            seen = {}
            while len(seen) < 8:
                seen |= await heard.next()
            await asyncio.wait_for(heard.feed.caught_up(seq), 60)


async def test_what_was_revoked_in_records_that_nobody_can_read_any_more_is_in_the_journal(
    where, tmp_path, monkeypatch
):
    monkeypatch.setattr("appliance.cms.feed._AT_ONCE", 2)
    with other(where) as node:

        def revoke(transaction):
            for serial, issuer, state in (
                *((n, "01234567", CertState.REVOKED) for n in range(1, 6)),
                (6, "01234567", CertState.VALID),
                (7, "89abcdef", CertState.REVOKED),
            ):
                record = CertRecord(serial, "a", "client", "std", 0, 9, 0, state, AT, False, 1, issuer=issuer)
                transaction.add(
                    record, {"cn": "a", "o": "", "ou": "", "c": "", "created": 0, "barred": serial == 2}
                )

        node.store.run(revoke)
        journal = Journal(str(tmp_path / "journal"), "01234567")
        readers = Readers(node.store.database)
        others = OthersRevocations(readers, journal, lambda: ["01234567"])
        try:
            others.take_all(7)
            assert others._task is not None
            await others._task
            assert (others.seq, sorted(journal.known), journal.barred) == (7, [1, 2, 3, 4, 5], {2})
        finally:
            readers.close()
            journal.close()
