"""The journal of revocations and the database: each gets what it lacks, and a start compares only what came after the checkpoint."""

import pytest
import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms.journal import Journal
from appliance.cms.revocations import Revocations
from appliance.cms.schema import ends_of
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord

ISSUER = "01234567"
MORE = {"cn": "a", "o": "", "ou": "", "c": "", "identity": "", "skid": "", "created": 0}


class Site:
    """A database and a journal, of a service that starts again and again."""

    def __init__(self, directory):
        self.directory = directory
        self.journal_path = directory / "certs.db.revoked"
        self.node = ""
        self.open("certs.db")

    def open(self, name):
        self.store = Store(str(self.directory / name), ISSUER)
        self.store.open()
        self.store.node = self.node
        self.journal = Journal(str(self.journal_path), ISSUER)
        self.revocations = Revocations(self.store, self.journal)
        self.restored = self.store.run(lambda t: self.revocations.combine(t, 100))

    def close(self):
        self.store.close()
        self.journal.close()

    def restart(self, name="certs.db"):
        self.close()
        self.open(name)

    def issue(self, *serials):
        def job(transaction):
            for serial in serials:
                row = CertRecord(serial, f"n{serial}", "client", "std", 0, 10, 0, CertState.VALID, 0, True, 1)
                transaction.add(row, MORE)
                transaction.audit(1, "create", serial, {})

        self.store.run(job)

    def revoke(self, serial, *, journal=True):
        def job(transaction):
            transaction.change(transaction.get(serial), CertState.REVOKED, at=5, approved=False, bar_key=True)
            transaction.audit(5, "revoke", serial, {})

        self.store.run(job)
        if journal:
            self.journal.add([(serial, 5)], barred=[serial])

    def state(self, serial):
        return self.store.run(lambda t: t.get(serial)).state

    async def checkpoint(self):
        """Two of them: the second one is about the audit as the first one has seen it."""
        self.store.start()
        for _ in range(2):
            await self.revocations.checkpoint()
        self.restart()

    def backup(self, name):
        from appliance.cms.backup import backup

        self.close()
        backup(str(self.directory / "certs.db"), str(self.directory / name))
        self.open("certs.db")

    def restore(self, name):
        self.close()
        for suffix in ("-wal", "-shm"):
            (self.directory / f"certs.db{suffix}").unlink(missing_ok=True)
        (self.directory / name).replace(self.directory / "certs.db")
        self.open("certs.db")


@pytest.fixture(params=["", "a"], ids=["the only service", "one of several nodes"])
def site(request, tmp_path):
    made = Site(tmp_path)
    made.node = made.store.node = request.param
    yield made
    made.close()


async def test_a_restored_database_gets_exactly_what_it_lacks(site, caplog):
    site.issue(1, 2, 3)
    site.revoke(1)
    await site.checkpoint()
    site.backup("old.db")
    site.revoke(2)
    await site.checkpoint()
    site.restore("old.db")
    assert [record.serial for record in site.restored] == [2]
    assert "1 certificates were revoked again" in caplog.text
    assert [site.state(serial) for serial in (1, 2, 3)] == [
        CertState.REVOKED,
        CertState.REVOKED,
        CertState.VALID,
    ]
    site.restart()
    assert not site.restored


async def test_what_is_before_the_checkpoint_is_not_compared_again(site, monkeypatch):
    site.issue(1, 2, 3)
    site.revoke(1)
    await site.checkpoint()
    asked = []
    live = Revocations._live
    monkeypatch.setattr(
        Revocations, "_live", lambda self, t, batch: asked.extend(batch) or live(self, t, batch)
    )
    site.restart()
    assert asked == []
    site.revoke(2)
    site.restart()
    assert asked == [2]
    assert site.journal.known == {1: 5, 2: 5}


async def test_a_revocation_that_is_not_in_the_journal_yet_is_added_at_the_next_start(site):
    site.issue(1, 2)
    await site.checkpoint()
    site.revoke(1, journal=False)
    site.restart()
    assert site.journal.known == {1: 5}
    assert site.journal.barred == {1}


async def test_a_checkpoint_does_not_promise_what_was_committed_a_moment_ago(site):
    """The event loop adds a revocation to the journal after its commit; a service that is killed in between does not."""
    site.issue(1)
    site.store.start()
    await site.revocations.checkpoint()

    def job(transaction):
        transaction.change(transaction.get(1), CertState.REVOKED, at=5, approved=False)
        transaction.audit(5, "revoke", 1, {})

    await site.store.submit(job)
    await site.revocations.checkpoint()
    site.restart()
    assert site.journal.known == {1: 5}


@pytest.mark.parametrize("how", ["lost", "another", "shorter"])
async def test_with_another_journal_everything_is_compared(site, how):
    site.issue(1, 2)
    site.revoke(1)
    await site.checkpoint()
    site.close()
    if how == "lost":
        site.journal_path.unlink()
    elif how == "another":
        site.journal_path.write_text(f"pvacms revocations 1 {ISSUER}\n2 7 only\n2 7 only\n2 7 only\n")
    else:
        site.journal_path.write_text(f"pvacms revocations 1 {ISSUER}\n")
    site.open("certs.db")
    assert 1 in site.journal.known
    assert site.state(2) is (CertState.REVOKED if how == "another" else CertState.VALID)


async def test_nothing_is_written_while_nothing_happens(site):
    site.issue(1)
    site.store.start()
    for _ in range(2):
        await site.revocations.checkpoint()
    written = site.revocations._written
    before = site.store.commits
    await site.revocations.checkpoint()
    assert site.revocations._written is not None
    assert site.revocations._written == written
    assert site.store.commits == before + 1, "it asks for the audit's head, and changes nothing"


async def test_what_a_database_has_lost_while_the_service_ran_is_revoked_again(site):
    site.issue(1, 2, 3)
    site.revoke(1)
    await site.checkpoint()
    site.revoke(2)

    def lose(transaction):
        """What came after the checkpoint, as when a standby takes over that did not have it yet."""
        transaction.connection.exec_driver_sql("UPDATE certs SET state = 'VALID' WHERE serial = 2")

    site.store.run(lose)
    again = site.store.run(lambda transaction: site.revocations.make_good(transaction, 7))
    assert [record.serial for record in again] == [2]
    assert [site.state(serial) for serial in (1, 2, 3)] == [
        CertState.REVOKED,
        CertState.REVOKED,
        CertState.VALID,
    ]


def test_the_ends_of_the_audit_are_found_without_reading_it(site):
    """A start asks for them. SQLite reads all records if it is asked for the first and the last together."""
    assert site.store.run(lambda transaction: ends_of(transaction.connection)) is None
    site.issue(1, 2, 3)

    def job(transaction):
        sent = []
        connection = transaction.connection

        @sa.event.listens_for(connection, "before_cursor_execute")
        def note(_connection, _cursor, statement, *_):
            sent.append(statement)

        found = ends_of(connection)
        sa.event.remove(connection, "before_cursor_execute", note)
        return found, [
            row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sent[0]}").all()
        ]

    found, plan = site.store.run(job)
    assert found == (1, 3)
    assert [line for line in plan if "audit" in line] == ["SEARCH audit"] * 2


async def test_what_a_database_has_revoked_is_read_in_parts_and_each_gets_what_it_lacks(site, monkeypatch):
    """A database server ends a question that takes some seconds, and a hundred thousand revocations are one."""
    monkeypatch.setattr("appliance.cms.revocations._AT_ONCE", 2)
    site.issue(*range(1, 12))
    for serial in range(1, 8):
        site.revoke(serial, journal=serial > 3)
    site.journal.add([(9, 5)])
    site.restart()
    assert [record.serial for record in site.restored] == [9]
    assert set(site.journal.known) == {1, 2, 3, 4, 5, 6, 7, 9}
    assert {serial for serial in range(1, 12) if site.state(serial) is CertState.REVOKED} == set(
        site.journal.known
    )
