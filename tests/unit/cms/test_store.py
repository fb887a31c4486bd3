"""The store's promises: one commit for many, all or nothing, and nobody hurt by another."""

import asyncio
import threading

import pytest
import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms.audit import verify_audit
from appliance.cms.key_uses import KeyUse
from appliance.cms.statements import rows_of
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord, StoreError, clean
from appliance.errors import ConfigurationError, RequestRefused


def record(serial, subject="a\x1f\x1f\x1f"):
    made = CertRecord(serial, subject, "client", "std", 0, 10, 0, CertState.VALID, 0, True, 1)
    return made._replace(issuer="01234567", next_at=0)


MORE = {"cn": "a", "o": "", "ou": "", "c": "", "identity": "", "skid": "", "created": 0}


@pytest.fixture
def store(tmp_path, engine):
    made = Store(engine.db(tmp_path), "01234567", wait_s=30.0)
    made.open()
    yield made
    made.close()


async def test_jobs_that_wait_share_one_commit(store):
    store.start()
    held = threading.Event()
    first = store.submit(lambda _: held.wait(10))
    before = store.commits
    others = [store.submit(lambda t, i=i: t.add(record(i), MORE)) for i in range(1, 101)]
    held.set()
    await asyncio.gather(first, *others)
    assert store.commits - before <= 2
    assert await store.submit(lambda t: t.get(57)) == record(57)


def test_a_row_says_who_recorded_it_and_when_the_clock_acts_next(store):
    store.node = "a"
    store.next_at = lambda record: None if record.state is CertState.REVOKED else record.not_after
    made = store.run(lambda t: t.add(record(1)._replace(came_from="10.0.0.1"), MORE))
    assert store.run(lambda t: t.get(1)) == made
    assert (made.issuer, made.node, made.came_from, made.next_at) == ("01234567", "a", "10.0.0.1", 10)
    store.node = "b"
    store.next_at = lambda record: record.renew_by or None
    renewed = store.run(lambda t: t.renew(made, renew_by=5, renewed_at=1, state=CertState.VALID, at=1))
    assert store.run(lambda t: t.get(1)) == renewed
    assert (renewed.node, renewed.next_at) == ("a", 5)
    hours = store.run(lambda t: t.reschedule(renewed, "{}", state=CertState.VALID, at=1))
    revoked = store.run(lambda t: t.change(hours, CertState.REVOKED, at=2, approved=True, begins=(0, 0)))
    assert store.run(lambda t: t.get(1)) == revoked
    assert (hours.next_at, revoked.next_at) == (5, None)


async def test_a_job_that_refuses_or_breaks_hurts_no_other(store):
    store.start()
    held = threading.Event()

    def refuse(transaction):
        transaction.audit(1, "refuse", None, {"why": "test"})
        raise RequestRefused("no")

    first = store.submit(lambda _: held.wait(10))
    jobs = [
        store.submit(lambda t: t.add(record(1), MORE)),
        store.submit(refuse),
        store.submit(lambda t: t.add(record(1), MORE)),
        store.submit(lambda _: 1 / 0),
        store.submit(lambda t: t.add(record(2), MORE)),
    ]
    held.set()
    await first
    done = await asyncio.gather(*jobs, return_exceptions=True)
    assert isinstance(done[1], RequestRefused)
    assert isinstance(done[2], StoreError)
    assert isinstance(done[3], StoreError)
    assert await store.submit(lambda t: (t.get(1), t.get(2))) == (record(1), record(2))
    store.close()
    verdict = verify_audit(store.where)
    assert (verdict.intact, verdict.records) == (True, 1)


def test_what_a_job_adds_it_finds_again_before_the_commit(store):
    def job(transaction):
        transaction.add(record(5), MORE)
        assert transaction.of_subject(record(5).subject) == [record(5)]
        changed = transaction.change(record(5), CertState.REVOKED, at=7, approved=False)
        assert transaction.get(5) == changed
        assert transaction.of_subject(record(5).subject) == [changed]
        with pytest.raises(StoreError):
            transaction.change(record(5), CertState.EXPIRED, at=8, approved=False)

    store.run(job)


def test_serials_that_cannot_be_in_the_database_are_not_known(store):
    assert store.run(lambda t: t.get((1 << 64) - 1)) is None


def test_certificates_of_another_authority_are_not_known(store):
    store.run(lambda t: t.add(record(5), MORE))
    store.issuer = "89abcdef"
    assert store.run(lambda t: t.get(5)) is None


@pytest.mark.sqlite_only("nodes share a database server")
def test_two_stores_do_not_share_a_database(store):
    other = Store(store.where, "01234567")
    with pytest.raises(ConfigurationError, match="another pvacms"):
        other.open()


def test_a_peers_text_is_made_fit_for_the_audit(store):
    assert clean("a\nb\ud800") == r"a\nb\ud800"
    assert len(clean("x" * 10_000)) == 1024
    store.run(lambda t: t.audit(1, "refuse", None, {"name": "\ud800\n\0"}))
    store.close()
    assert verify_audit(store.where).intact


def test_a_key_of_very_many_certificates_is_as_quickly_judged_as_any(store):
    """The first and the last subject stand for all: whoever asks has another one or the same."""

    def fill(transaction):
        for serial in range(1, 2001):
            row = record(serial, f"s{serial:04d}")._replace(skid="k")
            transaction.add(row, {**MORE, "key_id": "k", "skid": "k"})

    store.run(fill)
    assert {use.subject for use in store.run(lambda t: t.of_key("k", "k"))} == {"s0001", "s2000"}
    middle = store.run(lambda t: t.get(1000))
    store.run(lambda t: t.change(middle, CertState.REVOKED, at=7, approved=False, bar_key=True))
    assert [use.subject for use in store.run(lambda t: t.of_key("k", "k")) if use.barred] == ["s1000"]


def test_what_a_key_was_used_for_is_known_from_the_database_and_from_the_group(store):
    def added(serial, subject, key, skid):
        row = record(serial, subject)._replace(skid=skid)
        return row, {**MORE, "key_id": key, "skid": skid}

    def subjects(transaction, *keys):
        transaction.prefetch((), keys)
        return ["".join(sorted(use.subject for use in transaction.of_key(*key))) for key in keys]

    def before(transaction):
        for row in (
            added(1, "a", "k1", "s1"),
            added(2, "b", "k1", "s1"),
            added(3, "c", "", "s1"),
            added(4, "d", "k2", "s2"),
        ):
            transaction.add(*row)

    store.run(before)

    def job(transaction):
        # A row of an earlier release has no key_id, so the skid counts beside it.
        keys = (("k1", "s1"), ("k2", "s2"), ("k3", "s3"), ("k1", "s9"), ("k9", "s1"))
        assert subjects(transaction, *keys) == ["abc", "d", "", "ab", "abc"]
        transaction.add(*added(5, "e", "k3", "s3"))
        assert subjects(transaction, *keys[:3]) == ["abc", "d", "e"]
        revoked = transaction.change(
            transaction.get(4), CertState.REVOKED, at=7, approved=False, bar_key=True
        )
        assert revoked.state is CertState.REVOKED
        # Others of the group must see it.
        assert [use.barred for use in transaction.of_key("k2", "s2")] == [True]
        assert subjects(transaction, *keys[:3]) == ["abc", "d", "e"]

    store.run(job)
    other = Store(store.where, "89abcdef")
    store.close()
    other.open()
    # A new authority takes over: what was barred before it stays barred.
    assert [use.barred for use in other.run(lambda t: t.of_key("k2", "s2"))] == [True]
    other.close()


@pytest.mark.parametrize("count", [1, 2, 3, 600])
def test_however_many_subjects_and_keys_are_asked_for_together_each_is_found(store, count):
    def add(within):
        for number in range(1, count + 2):
            row = record(number, f"s{number}")._replace(skid=f"n{number}")
            # The first version wrote no `key_id`.
            within.add(row, {**MORE, "key_id": f"k{number}" if number % 2 else "", "skid": f"n{number}"})

    def look(within):
        numbers = range(1, count + 1)
        within.prefetch([f"s{n}" for n in numbers], [(f"k{n}", f"n{n}") for n in numbers])
        return [
            ([record.serial for record in within.of_subject(f"s{n}")], within.of_key(f"k{n}", f"n{n}"))
            for n in numbers
        ]

    store.run(add)
    assert store.run(look) == [([n], [KeyUse(f"s{n}", "client", barred=False)]) for n in range(1, count + 1)]


def test_a_statement_that_fails_raises_what_callers_catch(store):
    def job(within):
        with pytest.raises(sa.exc.SQLAlchemyError):
            rows_of(within.connection, "SELECT nothing FROM nowhere")
        raise StoreError("done")

    with pytest.raises(StoreError, match="done"):
        store.run(job)
