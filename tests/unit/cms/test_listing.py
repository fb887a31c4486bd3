"""CERT:LIST in pages: whatever is asked, the pages together are the whole list, in its order, each row once."""

import contextlib
import random

import pytest
import sqlalchemy as sa

from appliance.cms.listing import Place, Wanted, find_page
from appliance.cms.schema import certs
from appliance.cms.store import Store
from appliance.errors import RequestRefused
from tests.helpers.many_certificates import DAY_S, fill

ISSUER, OTHER = "01234567", "89abcdef"
NOW = 1_800_000_000
RANK = ["PENDING_APPROVAL", "PENDING_RENEWAL", "PENDING", "VALID", "SCHEDULED_OFFLINE", "EXPIRED", "REVOKED"]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def store(request, tmp_path_factory):
    """A database of each kind with the same certificates; tests only read it."""
    with contextlib.ExitStack() as stack:
        if request.param == "sqlite":
            where = str(tmp_path_factory.mktemp("list") / "certs.db")
        else:
            server = request.getfixturevalue("postgres")
            name = server.new()
            stack.callback(server.drop, name)
            where = server.url(name)
        yield stack.enter_context(filled(where))


@contextlib.contextmanager
def filled(where):
    made = Store(where, ISSUER)
    made.open()

    def job(transaction):
        fill(transaction.connection, 150, ISSUER, now=NOW)
        fill(transaction.connection, 20, OTHER, now=NOW, seed=2)
        # Names in which bytes, code points and case differ in their order.
        for number, name in enumerate(
            ("host", "hostÄ", "host\U0001f600", "hos", "hosu", "Host0000001", "ho%t", "ho_t")
        ):
            row = next(
                iter(
                    transaction.connection.execute(
                        sa.select(certs).where(certs.c.issuer == ISSUER)
                    ).mappings()
                )
            )
            new = {**row, "serial": 1 + number, "cn": name, "subject": f"{name}\x1flab\x1fx\x1f"}
            transaction.connection.execute(sa.insert(certs).values(**new))

    try:
        made.run(job)
        yield made
    finally:
        made.close()


def everything(store):
    return store.run(lambda t: [dict(row) for row in t.connection.execute(sa.select(certs)).mappings()])


def pages(store, wanted, **options):
    """The serials of all pages, and how many pages there were."""
    serials, count = [], 0
    while True:
        found, place = store.run(lambda t, w=wanted: find_page(t.connection, w, **options))
        assert len(found) <= wanted.limit
        serials += [row[0] for row in found]
        count += 1
        if place is None:
            return serials, count
        wanted = wanted._replace(after=Place.from_text(place.to_text()))


def expected(store, wanted):
    """The same list, by Python."""
    key = {
        "created": lambda row: (RANK.index(row["state"]), -row["created"], -row["serial"]),
        "expiry": lambda row: (row["not_after"], row["serial"]),
        "name": lambda row: (row["cn"], row["serial"]),
    }[wanted.order]

    def fits(row):
        text = wanted.subject.lower()
        return (
            row["issuer"] == wanted.issuer
            and (not wanted.states or row["state"] in wanted.states)
            and (not text or any(text in row[part].lower() for part in ("cn", "o", "ou", "c")))
            and row["cn"].startswith(wanted.name)
            and wanted.ends_from <= row["not_after"] < wanted.ends_before
        )

    return [row["serial"] for row in sorted(filter(fits, everything(store)), key=key)]


ASKED = {
    "all": {},
    "other authority": {"issuer": OTHER},
    "nobody's": {"issuer": "00000000"},
    "state": {"states": ("REVOKED", "PENDING_APPROVAL")},
    "unknown": {"states": ("UNKNOWN",)},
    "subject": {"subject": "HALL7"},
    "subject and state": {"subject": "00001", "states": ("VALID", "EXPIRED")},
    "wildcards are letters": {"subject": "%"},
    "name": {"name": "host"},
    "name with a letter of four octets": {"name": "host\U0001f600"},
    "name is exact in case": {"name": "Host"},
    "no name": {"name": "zzz"},
    "soon": {"ends_from": NOW, "ends_before": NOW + 300 * DAY_S},
    "over": {"ends_before": NOW},
    "late and revoked": {"ends_from": NOW + 300 * DAY_S, "states": ("REVOKED",)},
    "all at once": {"name": "host", "subject": "hall", "ends_from": NOW, "states": ("VALID", "REVOKED")},
}


@pytest.mark.parametrize("order", ["created", "expiry", "name"])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize(("limit", "looked_at"), [(1000, 50_000), (7, 30)])
def test_the_pages_of_a_list_are_the_list(store, order, asked, limit, looked_at):
    wanted = Wanted(**{"issuer": ISSUER, **asked}, order=order, limit=limit)
    found, count = pages(store, wanted, looked_at=looked_at)
    assert found == expected(store, wanted)
    if limit == 1000:
        assert count == 1


@pytest.mark.parametrize(
    ("order", "asked", "index"),
    [
        ("created", {}, "certs_listed (issuer=? AND state=?)"),
        (
            "created",
            {"subject": "hall", "name": "host", "ends_from": NOW},
            "certs_listed (issuer=? AND state=?)",
        ),
        ("expiry", {}, "certs_ends (issuer=? AND not_after>? AND not_after<?)"),
        (
            "expiry",
            {"states": ("VALID",), "name": "host"},
            "certs_ends (issuer=? AND not_after>? AND not_after<?)",
        ),
        ("name", {"name": "host"}, "certs_name (issuer=? AND cn>? AND cn<?)"),
        (
            "name",
            {"name": "host", "states": ("VALID",), "ends_from": NOW},
            "certs_name (issuer=? AND cn>? AND cn<?)",
        ),
    ],
)
def test_each_list_is_read_in_the_order_of_an_index(tmp_path_factory, order, asked, index):
    """So a page costs the same, however many certificates there are. SQLite says for sure; PostgreSQL decides by statistics."""
    wanted = Wanted(ISSUER, order=order, limit=5, **asked)
    plans = []

    def job(transaction):
        connection = transaction.connection
        find_page(connection, wanted)
        _, place = find_page(connection, wanted)
        sent = []

        @sa.event.listens_for(connection, "before_cursor_execute")
        def note(_connection, _cursor, statement, parameters, *_):
            sent.append((statement, parameters))

        find_page(connection, wanted, looked_at=30)
        find_page(connection, wanted._replace(after=place), looked_at=30)
        sa.event.remove(connection, "before_cursor_execute", note)
        for statement, parameters in sent:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            plans.append(" / ".join(row.detail for row in plan))

    with filled(str(tmp_path_factory.mktemp("plans") / "certs.db")) as store:
        store.run(job)
    assert len(plans) >= 2
    for plan in plans:
        assert index.split(" (")[0] in plan, plan
        assert "TEMP B-TREE" not in plan, plan
        assert "SCAN certs" not in plan, plan
    assert any(index in plan for plan in plans), plans


@pytest.mark.parametrize("order", ["created", "expiry", "name"])
def test_the_last_page_costs_as_little_as_the_first(tmp_path, order):
    """Counted in steps of SQLite's machine, a hundred at a time."""
    store = Store(str(tmp_path / "certs.db"), ISSUER)
    store.open()
    store.run(lambda t: fill(t.connection, 4000, ISSUER, now=NOW))
    steps = []

    def job(transaction, wanted):
        raw = transaction.connection.connection.driver_connection
        steps.append(0)

        def count():
            steps[-1] += 1
            return 0

        raw.set_progress_handler(count, 100)
        try:
            return find_page(transaction.connection, wanted)
        finally:
            raw.set_progress_handler(None, 0)

    place, wanted = (
        None,
        Wanted(ISSUER, states=("VALID",) if order == "created" else (), order=order, limit=50),
    )
    while True:
        _, place = store.run(lambda t, w=wanted: job(t, w))
        if place is None:
            break
        wanted = wanted._replace(after=place)
    store.close()
    assert len(steps) > 20
    assert max(steps) <= 2 * steps[0] + 1


def test_a_full_page_says_that_there_is_more_only_if_there_is(store):
    wanted = Wanted(ISSUER, states=("EXPIRED",))
    number = len(expected(store, wanted))
    assert number > 2
    assert pages(store, wanted._replace(limit=number))[1] == 1
    assert pages(store, wanted._replace(limit=number - 1))[1] == 2


def test_rows_that_come_and_go_meanwhile_make_no_other_row_appear_twice_or_never(tmp_path):
    store = Store(str(tmp_path / "certs.db"), ISSUER)
    store.open()
    store.run(lambda t: fill(t.connection, 200, ISSUER, now=NOW))
    rng = random.Random(7)
    wanted = Wanted(ISSUER, states=("VALID",), limit=10)
    before = expected(store, wanted)
    seen, gone, place = [], set(), None
    for number in range(100):
        found, place = store.run(lambda t, w=wanted: find_page(t.connection, w))
        seen += [row[0] for row in found]
        if place is None:
            break

        def change(transaction, number=number):
            victim = rng.choice(before)
            gone.add(victim)
            transaction.connection.execute(sa.delete(certs).where(certs.c.serial == victim))
            fill(transaction.connection, 3, ISSUER, now=NOW + DAY_S, seed=100 + number)

        store.run(change)
        wanted = wanted._replace(after=place)
    store.close()
    assert len(seen) == len(set(seen))
    assert set(before) - gone <= set(seen)


@pytest.mark.parametrize(
    "text",
    ["", "v1:", "v2:WzFd", "v1:!!!!", "v1:W10=", "v1:" + "A" * 5000, "v1:" + "W" * 2000]
    + [
        Place(*parts).to_text()
        for parts in (
            ("created", 0, -1, 1),
            ("created", 7, 1, 1),
            ("created", 0, 1 << 62, 1),
            ("created", 0, 1, 1 << 63),
            ("created", True, 1, 1),
            ("created", 0, "x", 1),
            ("name", 0, 1, 1),
            ("name", 0, "a\0b", 1),
            ("name", 0, "a\ud800", 1),
            ("serial", 0, 1, 1),
            (["created"], 0, 1, 1),
        )
    ],
)
def test_a_place_that_the_service_has_not_given_is_refused(text):
    with pytest.raises(RequestRefused, match="earlier answer"):
        Place.from_text(text)
