"""What a service does for its database over years: old records of the audit go, damage is found, lost rows come back."""

import asyncio
import contextlib
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.certs.profiles import build_certificate, generate_key, subject_name
from appliance.cms import audit as cms_audit
from appliance.cms import daemon, sweep
from appliance.cms.audit import export_audit, prune_audit, verify_audit, verify_exported
from appliance.cms.backup import backup, find_damage
from appliance.cms.model import state_now, utc
from appliance.cms.reading import counts
from appliance.cms.schema import audit, meta
from appliance.cms.service import CertificateService
from appliance.cms.store import Store
from appliance.config.secret import FilePath
from appliance.daemon.audit import GENESIS, verify_file
from appliance.errors import ConfigurationError
from tests.helpers.cms import Clock, effective, running
from tests.helpers.live import until
from tests.helpers.pki import site, write_keychain
from tests.helpers.postgres import raw

DAY_S = 86_400


@pytest.fixture
def store(tmp_path, engine):
    made = Store(engine.db(tmp_path), "01234567", wait_s=30.0)
    made.open()
    made.start()
    yield made
    made.close()


async def filled(store, days):
    for day in days:
        await store.submit(lambda t, day=day: t.audit(day * DAY_S, "refuse", None, {"day": day}))
    return verify_audit(store.where).head


async def actions(store):
    rows = await store.submit(lambda t: t.connection.execute(sa.select(audit.c.seq, audit.c.action)).all())
    return [(seq, action) for seq, action in rows]


@pytest.mark.parametrize("at_once", [1, 3, 5000])
async def test_old_records_go_and_the_chain_can_still_be_checked(store, monkeypatch, at_once):
    monkeypatch.setattr(cms_audit, "_AT_ONCE", at_once)
    first = await filled(store, range(3))
    head = await filled(store, range(3, 10))
    assert await prune_audit(store, utc(12 * DAY_S), 5) == 7
    found = await actions(store)
    assert [seq for seq, _ in found][:3] == [8, 9, 10]
    assert {action for _, action in found[3:]} == {"prune"}
    verdict = verify_audit(store.where, head=head)
    assert (verdict.intact, verdict.records) == (True, len(found))
    gone = verify_audit(store.where, head=first)
    assert "older than record 8" in gone.fault
    # Nothing is old any more, so nothing is done, and nothing is recorded.
    assert await prune_audit(store, utc(12 * DAY_S), 5) == 0
    assert await actions(store) == found
    await filled(store, [20])
    assert verify_audit(store.where, head=head).intact


async def test_the_newest_record_stays_and_a_wrong_clock_tears_no_hole(store):
    await filled(store, [1, 2, 900, 3, 4])
    assert await prune_audit(store, utc(500 * DAY_S), 5) == 2
    assert verify_audit(store.where).intact
    assert await prune_audit(store, utc(5000 * DAY_S), 5) > 0
    (last,) = [seq for seq, _ in await actions(store)][-1:]
    assert last >= 6
    assert verify_audit(store.where).intact


async def test_records_that_are_missing_without_a_word_are_a_break(store):
    await filled(store, range(10))
    store.close()
    with raw(store.where) as db:
        sealed = db.execute("SELECT hash FROM audit WHERE seq = 4").fetchone()[0]
        db.execute("DELETE FROM audit WHERE seq <= 4")
    assert not verify_audit(store.where).intact
    with raw(store.where) as db:
        db.execute("INSERT INTO meta VALUES ('audit_anchor', ?)", (f"4 {sealed}",))
    verdict = verify_audit(store.where)
    assert "no record says that they were removed" in verdict.fault
    with raw(store.where) as db:
        db.execute("UPDATE meta SET value = 'x' WHERE key = 'audit_anchor'")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        verify_audit(store.where)


async def test_a_record_after_the_beginning_that_was_changed_is_named_by_its_number(store):
    await filled(store, range(10))
    await prune_audit(store, utc(12 * DAY_S), 5)
    store.close()
    with raw(store.where) as db:
        text = json.loads(db.execute("SELECT record FROM audit WHERE seq = 9").fetchone()[0])
        db.execute("UPDATE audit SET record = ? WHERE seq = 9", (json.dumps({**text, "day": "77"}),))
    assert verify_audit(store.where).fault.startswith("record 9 was changed")


async def test_an_empty_audit_stays_empty(store):
    assert await prune_audit(store, utc(12 * DAY_S), 5) == 0
    keys = await store.submit(lambda t: t.connection.scalars(sa.select(meta.c.key)).all())
    assert sorted(keys) == ["database_id", "schema_oldest"], "there is no anchor"
    assert verify_audit(store.where).head == GENESIS


async def test_damage_is_found_and_turns_health_red_until_it_is_gone(tmp_path):
    async with running(tmp_path, audit_retention_days=30) as service:
        await service.upkeep.look_after()
        assert service.health.damage == ""
        broken = tmp_path / "broken.db"
        data = bytearray(Path(backup(service.store.where, str(broken))).read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        broken.write_bytes(data)
        assert str(broken) in find_damage(str(broken))
        assert "cannot be checked" in find_damage(str(tmp_path / "none.db"))
        service.store.where, real = str(broken), service.store.where
        await service.upkeep.look_after()
        service.store.where = real
        await service.health.check()
        value = service.health.health.current
        assert value["value.index"] == 0
        assert value["db_ok"] is False
        assert "broken.db" in value["alarm.message"]
        await service.upkeep.look_after()
        await service.health.check()
        assert service.health.health.current["db_ok"] is True


def issued(service, *, serial=77, usage="server", name="softioc", by=None):
    """A certificate of this service's authority that its database does not know."""
    now = service.clock().replace(microsecond=0)
    return build_certificate(
        by or service.authority.issuer,
        subject=subject_name(name, organization="lab"),
        public_key=generate_key("ec-p256").public_key(),
        usage=usage,
        not_before=now,
        not_after=service.authority.issuer.certificate.not_valid_after_utc.replace(microsecond=0),
        serial=serial,
    )


@contextlib.contextmanager
def restarted(tmp_path, **settings):
    service = CertificateService.open(effective(tmp_path, **settings), clock=Clock())
    try:
        service.first_start()
        yield service
    finally:
        service.close()


async def test_a_preloaded_certificate_is_known_once_and_for_all(tmp_path, capsys):
    with restarted(tmp_path) as service:
        certificate = issued(service)
    file = tmp_path / "softioc.pem"
    file.write_bytes(certificate.public_bytes(Encoding.PEM))
    for _ in range(2):
        with restarted(tmp_path, preload=(FilePath(file),)) as service:
            found = await service.lifecycle.find(77)
            assert (found.method, found.usage, found.no_status) == ("preload", "server", True)
            assert state_now(found, service.clock()).value == "VALID"
    assert capsys.readouterr().out.count("Certificate preloaded") == 1
    assert verify_audit(str(tmp_path / "certs.db")).intact


def test_what_this_authority_has_not_issued_is_not_preloaded(tmp_path):
    with restarted(tmp_path) as service:
        own = service.authority.issuer.certificate
    (tmp_path / "rubbish.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (tmp_path / "ca.pem").write_bytes(own.public_bytes(Encoding.PEM))
    write_keychain(tmp_path / "other.p12", site().ca.keychain("softioc", "server"))
    write_keychain(tmp_path / "locked.p12", site().ca.keychain("softioc", "server"), b"Sesame")
    for name, why in (
        ("rubbish.pem", "cannot be read"),
        ("ca.pem", "has issued to a client or server"),
        ("other.p12", "has issued to a client or server"),
        ("locked.p12", "without a password"),
        ("none.pem", "No such file"),
    ):
        with contextlib.ExitStack() as stack, pytest.raises(ConfigurationError, match=why) as caught:
            stack.enter_context(restarted(tmp_path, preload=(FilePath(tmp_path / name),)))
        assert name in str(caught.value)


async def test_records_are_exported_before_they_are_removed_and_stay_if_that_fails(tmp_path):
    exports = tmp_path / "exports"
    clock = Clock()
    settings = {"audit_retention_days": 30, "audit_export_dir": FilePath(exports)}
    async with running(tmp_path, clock, **settings) as service:
        number = verify_audit(service.store.where).records
        clock.advance(days=60)
        await service.upkeep.look_after()
        assert "cannot be removed" in service.upkeep.pruning
        await service.health.check()
        assert "No such file or directory" in service.health.health.current["alarm.message"]
        exports.mkdir()
        await service.upkeep.look_after()
        assert service.upkeep.pruning == ""
        (name,) = [path.name for path in exports.iterdir()]
        assert name == f"audit_{service.names.issuer_id}_{1:012d}_{number - 1:012d}.jsonl"
        one = verify_file(exports / name)
        assert (one.records, one.intact) == (number - 1, True)
        rows = await service.store.submit(lambda t: t.connection.execute(sa.select(audit)).all())
        prune = [json.loads(row.record) for row in rows if row.action == "prune"]
        assert prune[0]["exported"] == name
        assert prune[0]["up_to_hash"] == one.head
        # The next export begins where this one ends.
        clock.advance(days=60)
        await service.upkeep.look_after()
        two = max(exports.iterdir())
        assert verify_exported(str(two), head=one.head).intact
        assert verify_audit(service.store.where).intact


async def test_an_export_that_was_made_before_a_crash_is_used_and_another_file_is_not(tmp_path):
    exports = tmp_path / "exports"
    exports.mkdir()
    clock = Clock()
    settings = {"audit_retention_days": 30, "audit_export_dir": FilePath(exports)}
    async with running(tmp_path, clock, **settings) as service:
        where = service.store.where
        number = verify_audit(where).records
        clock.advance(days=60)
        target = exports / f"audit_{service.names.issuer_id}_{1:012d}_{number - 1:012d}.jsonl"
        target.write_text("somebody's\n")
        await service.upkeep.look_after()
        assert "this is not the export of these records" in service.upkeep.pruning
        assert verify_audit(where).records == number
        target.unlink()
        export_audit(where, str(target), last=number - 1)
        await service.upkeep.look_after()
        assert service.upkeep.pruning == ""
        assert list(exports.iterdir()) == [target]
        assert verify_audit(where).records == 2


# ---------------------------------------------------------------------- the periodic backup


async def test_the_clock_goes_on_while_a_backup_is_being_made_and_one_that_fails_is_not_the_last(
    monkeypatch, caplog
):
    monkeypatch.setattr(daemon, "_LONGEST_SLEEP_S", 0.001)
    begun, may_end, again = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def backup():
        if may_end.is_set():
            again.set()
        begun.set()
        await may_end.wait()
        raise ZeroDivisionError

    ticks = asyncio.Queue()

    async def nothing():
        """Do nothing."""

    service = SimpleNamespace(
        clock=lambda: datetime.now(UTC),
        publishers=(),
        store=SimpleNamespace(fatal=""),
        host_clock=SimpleNamespace(fault=str),
        tick=lambda: ticks.put_nowait(None),
        pause=lambda longest: longest,
        settings=SimpleNamespace(backup_interval_s=0.001, health_interval_s=60),
        health=SimpleNamespace(check=nothing, summary=str),
        own=SimpleNamespace(look=lambda: None),
        upkeep=SimpleNamespace(backup=backup),
    )
    tasks = [
        asyncio.create_task(daemon._keep_time(service, SimpleNamespace(status=lambda _: None))),
        asyncio.create_task(daemon._make_backups(service)),
    ]
    try:
        async with asyncio.timeout(60):
            await begun.wait()
            while not ticks.empty():
                ticks.get_nowait()
            for _ in range(3):
                await ticks.get()
            may_end.set()
            await again.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert "the database backup has failed" in caplog.text


async def test_many_certificates_are_counted_beside_everything_else(tmp_path, monkeypatch):
    """A start and a check of the health do not wait until a million rows are counted."""
    may_end = threading.Event()

    def held(connection, issuer):
        may_end.wait(60)
        return counts(connection, issuer)

    monkeypatch.setattr("appliance.cms.health._COUNTED_AT_ONCE", 0)
    monkeypatch.setattr("appliance.cms.health.counts", held)
    try:
        async with running(tmp_path) as service:
            health = service.health
            await health.check()
            assert "certificates are being counted" in health.summary()
            assert health.health.current["value.index"] == 1
            may_end.set()
            await until(lambda: health.states is not None)
            assert "2 certificates" in health.summary()
            assert health.health.current["cert_count"] == 2
    finally:
        may_end.set()


def test_what_the_clock_changes_next_is_found_by_its_index(tmp_path):
    """It is asked for each second; by issuer, SQLite would read a million certificates each time and keep all who ask waiting."""
    made = Store(str(tmp_path / "certs.db"), "01234567")
    made.open()

    def job(transaction):
        sent = []
        connection = transaction.connection

        @sa.event.listens_for(connection, "before_cursor_execute")
        def note(_connection, _cursor, statement, parameters, *_):
            sent.append((statement, parameters))

        assert sweep._due(connection, {"now": 1_800_000_000, "by": ["01234567", "89abcdef"]}) == []
        sa.event.remove(connection, "before_cursor_execute", note)
        ((statement, parameters),) = sent
        return [
            row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]

    plan = made.run(job)
    made.close()
    assert plan == ["SEARCH certs USING INDEX certs_due (next_at>? AND next_at<?)"]
