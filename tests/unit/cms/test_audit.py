"""The audit as a whole, part by part, and as a file: whatever is changed in it is found."""

import json
import logging
import stat

import pytest
import sqlalchemy as sa

from appliance.cms import audit as cms_audit
from appliance.cms import daemon, upkeep
from appliance.cms.audit import export_audit, prune_audit, verify_audit, verify_exported
from appliance.cms.dialect import engine_for
from appliance.cms.model import utc
from appliance.cms.schema import audit, meta
from appliance.cms.store import Store
from appliance.cms.upkeep import AuditCheck
from appliance.daemon.audit import canonical, chain, verify_file
from appliance.errors import ConfigurationError
from tests.helpers.cms import Clock

DAY_S = 86_400
START = utc(1_800_000_000)


class Reading:
    """Reads at once, in a connection of its own."""

    def __init__(self, where):
        self._engine = engine_for(where, read_only=True)
        self.parts = 0

    async def read_much(self, job):
        self.parts += 1
        with self._engine.connect() as connection:
            return job(connection)


@pytest.fixture
def store(tmp_path):
    made = Store(str(tmp_path / "certs.db"), "01234567")
    made.open()
    made.start()
    yield made
    made.close()


@pytest.fixture
def reading(store):
    return Reading(store.where)


@pytest.fixture
def clock():
    return Clock(START)


@pytest.fixture
def check(store, reading, clock, monkeypatch):
    monkeypatch.setattr(upkeep, "_PART", 3)
    made = AuditCheck(store, reading, clock)
    made.pause_s = 0.0
    return made


async def add(store, days):
    for day in days:
        await store.submit(
            lambda t, day=day: t.audit(day * DAY_S, "refuse", None, {"day": day, "why": "ž \x1b"})
        )


async def change(store, statement):
    await store.submit(lambda t: t.connection.execute(statement))


async def change_record(store, number):
    row = await store.submit(
        lambda t: t.connection.execute(sa.select(audit).where(audit.c.seq == number)).one()
    )
    changed = canonical({**json.loads(row.record), "day": "77"}).decode()
    await change(store, sa.update(audit).where(audit.c.seq == number).values(record=changed))


# ---------------------------------------------------------------------- part by part


async def test_the_audit_is_checked_in_parts_and_then_only_what_is_new(store, reading, check):
    await add(store, range(10))
    await check.run(DAY_S)
    assert (check.verified, check.last, check.fault) == (10, 10, "")
    parts = reading.parts
    assert parts >= 4
    await check.run(DAY_S)
    assert reading.parts - parts == 2, "where it was, and whether there is more"
    await add(store, [10])
    await check.run(DAY_S)
    assert (check.verified, check.fault) == (11, "")


async def test_where_the_check_was_is_known_after_a_restart(store, reading, clock, check):
    await add(store, range(10))
    await check.run(DAY_S)
    again = AuditCheck(store, reading, clock)
    await again.look()
    assert (again.verified, again.last) == (10, 10)


@pytest.mark.parametrize("number", [1, 4, 10])
async def test_a_changed_record_is_found_and_named_until_it_is_mended(store, check, caplog, number):
    await add(store, range(10))
    before = await store.submit(lambda t: t.connection.execute(sa.select(audit.c.seq, audit.c.record)).all())
    await change_record(store, number)
    for _ in range(2):
        await check.run(DAY_S)
    assert check.fault.startswith(f"record {number} was changed")
    assert check.verified == number - 1
    assert check.trouble().startswith("the audit is broken: record")
    told = [record for record in caplog.records if getattr(record, "event", "") == "audit-broken"]
    assert len(told) == 1
    assert told[0].levelno == logging.ERROR
    await change(
        store, sa.update(audit).where(audit.c.seq == number).values(record=dict(map(tuple, before))[number])
    )
    await check.run(DAY_S)
    assert (check.verified, check.trouble()) == (10, "")


async def test_a_change_behind_the_place_is_found_by_the_next_whole_check(store, clock, check):
    await add(store, range(10))
    await check.run(7 * DAY_S)
    await change_record(store, 5)
    clock.advance(days=1)
    await check.run(7 * DAY_S)
    assert check.fault == ""
    clock.advance(days=6)
    await check.run(7 * DAY_S)
    assert check.fault.startswith("record 5 was changed")


async def test_an_end_that_was_written_anew_is_found_by_the_next_check(store, check):
    """Every record fits to the one before it; only the place that was reached is another one."""
    await add(store, range(10))
    await check.run(DAY_S)

    def rewrite(transaction):
        connection = transaction.connection
        sealed = connection.execute(sa.select(audit.c.hash).where(audit.c.seq == 8)).scalar_one()
        for number in (9, 10):
            text = connection.execute(sa.select(audit.c.record).where(audit.c.seq == number)).scalar_one()
            record = {**json.loads(text), "why": "nothing"}
            sealed = chain(sealed, record)
            values = {"record": canonical(record).decode(), "hash": sealed}
            connection.execute(sa.update(audit).where(audit.c.seq == number).values(**values))

    await store.submit(rewrite)
    assert verify_audit(store.where).intact
    await check.run(DAY_S)
    assert check.fault == "record 10 is not the one that was there when the audit was checked before"
    await change(store, sa.delete(audit).where(audit.c.seq > 9))
    await check.run(DAY_S)
    assert check.fault == "record 10 is not the one that was there when the audit was checked before"


@pytest.mark.parametrize("meanwhile", [False, True], ids=["before", "meanwhile"])
async def test_records_that_went_because_of_their_age_are_no_fault(store, reading, check, meanwhile):
    await add(store, range(20))
    if meanwhile:
        real, calls = reading.read_much, []

        async def read_much(job):
            calls.append(job)
            if len(calls) == 3:
                await prune_audit(store, utc(25 * DAY_S), 10)
            return await real(job)

        reading.read_much = read_much
    else:
        await check.run(DAY_S)
        await prune_audit(store, utc(25 * DAY_S), 10)
    await check.run(DAY_S)
    assert check.fault == ""
    assert check.verified == check.last > 20
    await check.run(0 if meanwhile else 1)
    assert check.fault == ""


async def test_old_records_that_are_missing_without_a_word_are_a_fault(store, check):
    await add(store, range(10))
    sealed = await store.submit(
        lambda t: t.connection.execute(sa.select(audit.c.hash).where(audit.c.seq == 4)).scalar_one()
    )
    await change(store, sa.delete(audit).where(audit.c.seq <= 4))
    await change(store, sa.insert(meta).values(key="audit_anchor", value=f"4 {sealed}"))
    await check.run(DAY_S)
    assert "no record says that they were removed" in check.fault


@pytest.mark.parametrize(
    "text", ["", "x", "1 2 3 4", f"5 {'0' * 64} 9", f"-1 {'0' * 64} 1 1", f"1e3 {'0' * 64} 1 1"]
)
async def test_a_note_that_cannot_be_read_means_that_nothing_was_checked(store, check, text):
    await add(store, range(5))
    await change(store, sa.insert(meta).values(key="audit_verified", value=text))
    await check.run(DAY_S)
    assert (check.verified, check.fault) == (5, "")


async def test_an_empty_audit_is_whole(store, check):
    await check.run(DAY_S)
    assert (check.verified, check.last, check.fault) == (0, 0, "")


async def test_a_clock_that_was_ahead_does_not_put_the_whole_check_off(store, clock, check):
    await add(store, range(10))
    clock.advance(days=3650)
    await check.run(7 * DAY_S)
    clock.advance(days=-3650)
    await change_record(store, 5)
    await check.run(7 * DAY_S)
    assert check.fault.startswith("record 5 was changed")


# ---------------------------------------------------------------------- as a file


async def test_an_exported_audit_can_be_checked_anywhere(store, tmp_path, monkeypatch):
    monkeypatch.setattr(cms_audit, "_FETCHED", 4)
    await add(store, range(10))
    target = tmp_path / "audit.jsonl"
    told = []
    first, last, found = export_audit(store.where, str(target), progress=lambda *at: told.append(at))
    assert (first, last, found.intact) == (1, 10, True)
    assert told == [(4, 10), (8, 10)]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, 11))
    assert lines[3]["day"] == "3"
    assert lines[-1]["hash"] == found.head == verify_audit(store.where).head
    assert verify_file(target).records == 10
    assert verify_exported(str(target), head=lines[4]["hash"]).intact
    target.write_text(target.read_text().replace('"day":"6"', '"day":"7"'))
    assert verify_exported(str(target)).fault.startswith("record 7 was changed")


async def test_exports_follow_each_other(store, tmp_path):
    await add(store, range(10))
    one, two = str(tmp_path / "1"), str(tmp_path / "2")
    *_, found = export_audit(store.where, one, last=6)
    assert found.records == 6
    await add(store, range(10, 12))
    first, last, more = export_audit(store.where, two, first=7)
    assert (first, last) == (7, 12)
    assert verify_exported(two, head=found.head) == more
    with pytest.raises(ConfigurationError, match=r"begins with record 7: give the hash .* --audit-head"):
        verify_exported(two)
    assert verify_exported(two, head=more.head).fault.startswith("record 7 was changed, or one before it")
    nothing = export_audit(store.where, str(tmp_path / "3"), first=13)
    assert nothing[2].head == more.head
    assert (tmp_path / "3").read_bytes() == b""
    with pytest.raises(ConfigurationError, match="no record 13 before"):
        export_audit(store.where, str(tmp_path / "4"), first=14)


async def test_an_export_begins_with_the_oldest_record_that_is_there(store, tmp_path):
    await add(store, range(10))
    await prune_audit(store, utc(12 * DAY_S), 5)
    first, _, found = export_audit(store.where, str(tmp_path / "audit"))
    assert first == 8
    assert found.head == verify_audit(store.where).head


async def test_a_broken_audit_is_not_exported_and_nothing_is_left(store, tmp_path):
    await add(store, range(10))
    await change_record(store, 5)
    with pytest.raises(ConfigurationError, match="not exported: record 5 was changed"):
        export_audit(store.where, str(tmp_path / "audit"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("audit")]


async def test_an_export_replaces_no_file_and_needs_a_directory(store, tmp_path):
    (tmp_path / "audit").write_text("somebody's")
    with pytest.raises(ConfigurationError, match="exists already"):
        export_audit(store.where, str(tmp_path / "audit"))
    assert (tmp_path / "audit").read_text() == "somebody's"
    with pytest.raises(ConfigurationError, match="No such file"):
        export_audit(store.where, str(tmp_path / "none" / "audit"))
    for text in ("", "[]", "{}", '{"seq":true}', "x" * 10):
        (tmp_path / "other").write_text(text)
        verdict = verify_exported(str(tmp_path / "other"))
        assert verdict.intact == (not text)


# ---------------------------------------------------------------------- the commands


@pytest.fixture
def pvacms(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def run(*arguments):
        status = daemon.main(["-d", store.where, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


async def test_the_commands_export_the_audit_and_check_what_they_exported(store, tmp_path, pvacms):
    await add(store, range(10))
    head = verify_audit(store.where).head
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert pvacms("--audit-export", one) == (0, f"audit exported: records 1 to 10, head {head}\n", "")
    assert pvacms("--audit-verify", "--audit-file", one) == (
        0,
        f"audit intact: 10 records, head {head}\n",
        "",
    )
    await add(store, range(10, 13))
    status, out, _ = pvacms("--audit-export", two, "--audit-from", "11")
    assert (status, out.partition(",")[0]) == (0, "audit exported: records 11 to 13")
    status, out, _ = pvacms("--audit-verify", "--audit-file", two, "--audit-head", head)
    assert (status, out.partition(",")[0]) == (0, "audit intact: 3 records")
    two.write_bytes(two.read_bytes().replace(b'"day":"12"', b'"day":"13"'))
    status, _, err = pvacms("--audit-verify", "--audit-file", two, "--audit-head", head)
    assert (status, "the audit is broken: record 13 was changed" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--audit-from", "3"], "--audit-from has no effect without --audit-export"),
        (["--audit-file", "x"], "--audit-file has no effect without --audit-verify"),
        (["--audit-export", "-", "--audit-from", "0"], "is not the number of a record"),
        (["--audit-export", "-", "--audit-from", "x"], "is not the number of a record"),
        (["--audit-verify", "--audit-file", "/none"], "cannot read the audit: No such file"),
    ],
)
def test_commands_that_make_no_sense_are_refused(pvacms, arguments, why):
    status, out, err = pvacms(*arguments)
    assert (status, out) == (1, "")
    assert why in err
