"""What a commit costs on a database server: few statements, each of them a journey for which no other node can commit."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading

import pytest
import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms import grouped
from appliance.cms.key_uses import KeyUse
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord, Transaction, mark_delivered

MORE = {"cn": "a", "o": "", "ou": "", "c": "", "created": 0}


@pytest.fixture
def store(postgres):
    name = postgres.new()
    made = Store(postgres.url(name), "01234567")
    made.open()
    yield made
    made.close()
    postgres.drop(name)


def record(serial: int, subject: str = "") -> CertRecord:
    return CertRecord(
        serial, subject or f"s{serial}", "client", "std", 0, 10, 0, CertState.VALID, 0, True, 0, skid=f"n{serial}"
    )  # fmt: skip


def create(serial: int):
    """What the service does for a request: it looks at the subject and the key, and writes."""

    def job(transaction: Transaction) -> None:
        assert transaction.of_subject(f"s{serial}") == []
        assert transaction.of_key(f"k{serial}", f"n{serial}") == []
        transaction.add(record(serial), MORE | {"key_id": f"k{serial}"})
        transaction.audit(1, "create", serial, {"why": "'\"\\ \x1f \u00e9 \U0001f600 %s"})

    return job


async def test_a_commit_of_many_requests_is_four_statements(store):
    seen: list[str] = []

    def note(_connection, _cursor, text, *_more):
        seen.append(text)

    store.start()

    def first(transaction: Transaction) -> None:
        held.wait(60)
        sa.event.listen(transaction.connection.engine, "before_cursor_execute", note)

    held = threading.Event()
    jobs = [store.submit(first)]
    jobs += [store.submit(create(n), f"s{n}", key=(f"k{n}", f"n{n}")) for n in range(1, 101)]
    await asyncio.sleep(0)
    held.set()
    await asyncio.gather(*jobs)
    await store.submit(lambda _: None)
    locks = [at for at, text in enumerate(seen) if "pg_advisory_xact_lock" in text]
    of_each = [seen[at:end] for at, end in itertools.pairwise([0, *locks, len(seen)])]
    assert [len(texts) for texts in of_each] == [1, 2], "the lock, what is read, what is written; and COMMIT"
    assert "pg_notify" in of_each[0][0]


async def test_all_kinds_of_text_arrive_as_they_were(store):
    store.run(create(1))

    def look(transaction: Transaction):
        rows = transaction.connection.exec_driver_sql("SELECT record FROM audit").all()
        return [json.loads(row[0])["why"] for row in rows], transaction.of_subject("s1"), transaction.get(1)

    why, of_subject, one = store.run(look)
    assert why == ["'\"\\ \\x1f \u00e9 \U0001f600 %s"]
    assert of_subject == [one] == [record(1)._replace(issuer="01234567", next_at=0)]


async def test_a_key_is_found_with_all_subjects_and_in_rows_of_the_first_version_by_its_other_name(store):
    def fill(transaction: Transaction) -> None:
        transaction.add(record(1, "a"), MORE | {"key_id": "k"})
        transaction.add(record(2, "b")._replace(skid="n1"), MORE | {"key_id": ""})
        transaction.add(record(3, "c"), MORE | {"key_id": "k", "barred": True})

    store.run(fill)
    a, b, c = KeyUse("a", "client", False), KeyUse("b", "client", False), KeyUse("c", "client", True)
    assert set(store.run(lambda t: t.of_key("k", "n1"))) == {a, b, c}
    assert set(store.run(lambda t: t.of_key("k", "unknown"))) == {a, c}
    assert set(store.run(lambda t: t.of_key("unknown", "n1"))) == {b}
    assert store.run(lambda t: t.of_key("unknown", "unknown")) == []


async def test_many_certificates_are_marked_as_delivered_at_once(store):
    def fill(transaction: Transaction) -> None:
        for serial in range(1, 1201):
            transaction.add(record(serial), MORE)

    store.run(fill)
    store.run(mark_delivered([*range(1, 1200)]))
    found = store.run(
        lambda t: t.connection.exec_driver_sql("SELECT serial FROM certs WHERE delivered = 0").all()
    )
    assert found == [(1200,)]


@pytest.mark.parametrize(
    "text", [grouped._read_text(CertRecord._fields), grouped._DELIVERED_TEXT], ids=["read", "deliver"]
)
async def test_what_each_request_asks_a_server_uses_the_indexes(store, text):
    def look(transaction: Transaction) -> str:
        transaction.connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        rows = transaction.connection.exec_driver_sql(f"EXPLAIN {text}", ("[1, 2]",) * text.count("%s")).all()
        return "\n".join(row[0] for row in rows)

    plan = store.run(look)
    assert "Seq Scan" not in plan
