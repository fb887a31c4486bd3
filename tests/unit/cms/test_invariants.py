"""What must be true of all rows together is looked at each night, and HEALTH says what is not."""

import re

import pytest
import sqlalchemy as sa

from appliance.cms import invariants
from appliance.cms.invariants import RowsCheck, check_head, check_part
from appliance.cms.model import utc
from appliance.cms.reading import Readers
from appliance.cms.schema import audit, authorities, certs
from appliance.cms.store import Store
from tests.helpers.cms import running
from tests.helpers.many_certificates import fill

ISSUER = "01234567"
NOW = 1_800_000_000
MANY = 60
C, A = certs.c, audit.c


@pytest.fixture
def store(tmp_path, engine):
    """A database with certificates in all states, as a service finds it."""
    where = engine.db(tmp_path)
    made = Store(where, ISSUER, wait_s=30.0)
    made.open()
    authority = {"issuer": ISSUER, "chain": "", "crossed": "", "since": 0}

    def job(transaction):
        transaction.connection.execute(sa.insert(authorities).values(authority))
        fill(transaction.connection, MANY, ISSUER, now=NOW)

    made.run(job)
    made.close()
    made = Store(where, ISSUER, wait_s=30.0)
    made.open()
    made.start()
    yield made
    made.close()


async def look(store, most=invariants._PART):
    faults, after = [], -1
    while True:
        part = await store.submit(lambda t, a=after: check_part(t.connection, a, now=NOW, most=most))
        faults += part.faults
        after = part.last
        if part.number < most:
            return faults


def first(*states):
    """The least serial number of a certificate in one of these states."""
    return sa.select(sa.func.min(C.serial)).where(C.state.in_(states)).scalar_subquery()


@pytest.mark.parametrize("most", [7, 1000])
async def test_a_database_as_a_service_leaves_it_has_no_faults(store, most):
    assert await look(store, most) == []
    assert await store.submit(check_head) == ""


def test_a_look_finds_what_it_needs_by_indexes(tmp_path):
    """A part must cost the same, however many certificates there are."""
    made = Store(str(tmp_path / "certs.db"), ISSUER)
    made.open()

    def job(transaction):
        connection, sent = transaction.connection, []
        fill(connection, MANY, ISSUER, now=NOW)

        @sa.event.listens_for(connection, "before_cursor_execute")
        def note(_connection, _cursor, statement, parameters, *_):
            sent.append((statement, parameters))

        check_part(connection, -1, now=NOW)
        sa.event.remove(connection, "before_cursor_execute", note)
        return [
            row.detail
            for statement, parameters in sent
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        ]

    plans = made.run(job)
    made.close()
    used = [
        line
        for line in plans
        if line.startswith(("SEARCH certs", "SCAN certs", "SEARCH audit", "SCAN audit"))
    ]
    assert used == [
        "SEARCH certs USING INTEGER PRIMARY KEY (rowid>?)",
        "SEARCH audit USING INDEX audit_serial (serial=?)",
        "SEARCH audit",
        "SEARCH audit",
        "SEARCH certs USING INDEX certs_subject (subject=?)",
    ]


LIVE = ("VALID", "PENDING", "PENDING_RENEWAL", "SCHEDULED_OFFLINE")
BROKEN = {
    "names": (
        sa.update(certs).where(C.serial == first("VALID")).values(cn="another"),
        "its subject 'host[0-9]+, lab, hall[0-9]+' is not made of its names",
    ),
    "authority": (
        sa.update(certs).where(C.serial == first("VALID")).values(issuer="89abcdef"),
        "no authority '89abcdef' is known, which has signed it",
    ),
    "state": (sa.update(certs).where(C.serial == first("REVOKED")).values(state="GONE"), "GONE"),
    "hours": (sa.update(certs).where(C.serial == first("VALID")).values(schedule="x"), "damaged"),
    "added": (
        sa.insert(certs).from_select(
            [column.name for column in certs.c],
            sa.select(
                sa.literal(5),
                *(sa.literal("EXPIRED") if c is C.state else c for c in certs.c if c is not C.serial),
            ).where(C.serial == first("EXPIRED")),
        ),
        "certificate 5: the audit does not say that it was issued",
    ),
    "given twice": (
        sa.insert(audit).values(seq=9999, at=NOW, action="create", serial="", record="{}", hash="0" * 64),
        "was given to 2 certificates",
    ),
    "two of one subject": (
        sa.update(certs)
        .where(
            C.state.in_(LIVE),
            C.serial.in_(sa.select(C.serial).where(C.state.in_(LIVE)).order_by(C.serial).limit(2)),
        )
        .values(subject="a\x1fb\x1f\x1f", cn="a", o="b", ou="", c=""),
        "the subject 'a, b' has 2 certificates in use",
    ),
}


@pytest.mark.parametrize(("change", "fault"), BROKEN.values(), ids=BROKEN)
async def test_what_no_service_writes_is_found(store, change, fault):
    await store.submit(lambda t: t.connection.execute(change) and None)
    if fault.startswith("was given"):
        serial = sa.cast(first("VALID"), sa.String)
        await store.submit(
            lambda t: (
                t.connection.execute(sa.update(audit).where(A.seq == 9999).values(serial=serial)) and None
            )
        )
    for most in (7, 1000):
        found = sorted(set(await look(store, most)))
        assert len(found) == 1, found
        assert re.search(fault, found[0])


@pytest.mark.parametrize(
    "values",
    [{"method": "jwt"}, {"not_after": NOW - 1}, {"state": "REVOKED"}],
    ids=["tokens", "over", "revoked"],
)
async def test_two_certificates_of_one_subject_are_no_fault_where_the_rule_permits_them(store, values):
    change, _ = BROKEN["two of one subject"]
    await store.submit(lambda t: t.connection.execute(change) and None)
    one = sa.select(sa.func.min(C.serial)).where(C.cn == "a").scalar_subquery()
    await store.submit(
        lambda t: t.connection.execute(sa.update(certs).where(C.serial == one).values(values)) and None
    )
    assert await look(store) == []


async def test_what_was_removed_from_the_audit_because_of_its_age_is_not_missing(store):
    await store.submit(lambda t: t.connection.execute(sa.delete(audit).where(A.seq <= MANY // 2)) and None)
    assert await look(store) == []
    assert await store.submit(check_head) == ""


@pytest.mark.parametrize("values", [{"hash": "f" * 64}, {"record": "{}"}], ids=["its hash", "its text"])
async def test_an_end_of_the_audit_that_was_changed_is_found_before_the_next_record_is_linked_to_it(
    store, values
):
    last = sa.select(sa.func.max(A.seq)).scalar_subquery()
    await store.submit(
        lambda t: t.connection.execute(sa.update(audit).where(A.seq == last).values(values)) and None
    )
    found = await store.submit(check_head)
    assert re.search("the last one of the audit, is not linked|not the one that was written last", found)


async def test_all_parts_are_looked_at_and_a_fault_that_is_mended_is_forgotten(store, monkeypatch, caplog):
    monkeypatch.setattr(invariants, "_PART", 7)
    readers = Readers(store.database)
    check = RowsCheck(store, readers, lambda: utc(NOW))
    check.rest = 0.0
    try:
        change, _ = BROKEN["authority"]
        await store.submit(lambda t: t.connection.execute(change) and None)
        await check.run()
        assert check.checked == MANY
        assert "no authority '89abcdef' is known" in check.trouble()
        assert "no authority '89abcdef' is known" in caplog.text
        await store.submit(lambda t: t.connection.execute(sa.update(certs).values(issuer=ISSUER)) and None)
        await check.run()
        assert check.trouble() == ""
    finally:
        readers.close()


async def test_health_says_that_rows_are_wrong(tmp_path):
    async with running(tmp_path) as service:
        await service.upkeep.look_after()
        await service.health.check()
        assert service.health.health.current["value.index"] == 1
        assert service.health.metrics.current["certs_checked"] == 2
        change = sa.update(certs).where(C.serial == first("VALID")).values(cn="another")
        await service.store.submit(lambda t: t.connection.execute(change) and None)
        await service.upkeep.look_after()
        await service.health.check()
        assert service.health.health.current["value.index"] == 0
        assert "is not made of its names" in service.health.health.current["alarm.message"]
