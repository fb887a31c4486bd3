"""A service with many certificates; 20 000 here, a million in `bench.bench_million`."""

import contextlib
import json
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from appliance.client.uri import uri_value
from appliance.cms.schema import certs
from appliance.cms.service import CertificateService
from appliance.errors import RemoteError
from appliance.pvdata import STRING, StructType, Value
from tests.helpers import tools
from tests.helpers.cms import Clock, admin_keychain, effective, plain, running, secure
from tests.helpers.many_certificates import DAY_S, fill

MANY = 20_000


@contextlib.asynccontextmanager
async def serving(directory, count, **settings):
    """A service whose database has ``count`` certificates beside its own."""
    service = CertificateService.open(effective(directory, **settings), clock=Clock())
    try:
        service.first_start()
        now = int(service.clock().timestamp())
        service.store.run(lambda t: fill(t.connection, count, service.names.issuer_id, now=now))
    finally:
        service.close()
    async with running(directory, **settings) as service:
        yield service


@pytest.fixture
def pvxcert(tmp_path):
    async def call(service, *arguments):
        variables = {
            "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{service.server.tcp_port}",
            "EPICS_PVA_TLS_KEYCHAIN": str(tmp_path / "admin.p12"),
            "EPICS_PVA_ADDR_LIST": "",
        }
        return await tools.run(
            "pvxcert", "list", *arguments, env=tools.environment(5076, tmp_path, **variables)
        )

    return call


def known(service, *where):
    """Serials in the database."""
    query = sa.select(certs.c.serial).where(certs.c.issuer == service.names.issuer_id, *where)
    return service.store.submit(lambda t: set(t.connection.execute(query).scalars()))


def listed(done):
    """Serials of a list in JSON."""
    assert done.err == ""
    serials = [int(json.loads(line)["cert_id"].partition(":")[2]) for line in done.out.splitlines()]
    assert len(serials) == len(set(serials))
    return set(serials)


async def asked(admin, **query):
    """Rows of all pages of a list: serial, state, name and end."""
    found, place = [], ""
    while True:
        query |= {"after": place} if place else {}
        table = await admin.rpc("CERT:LIST", uri_value("CERT:LIST", query), timeout=60)
        columns = [table[f"value.{name}"] for name in ("cert_id", "state", "name", "not_after")]
        found += [(int(row[0].partition(":")[2]), *row[1:]) for row in zip(*columns, strict=True)]
        place = table["next"]
        if not place:
            assert len({row[0] for row in found}) == len(found)
            return found


def serials(rows):
    return {row[0] for row in rows}


@pytest.mark.usefixtures("engine")
async def test_a_list_of_20_000_certificates_comes_in_pages_and_is_searched_by_name_state_and_date(tmp_path):
    async with serving(tmp_path, MANY) as service, secure(service, admin_keychain(tmp_path)) as admin:
        everything = await known(service)
        assert len(everything) == MANY + 2
        rows = await asked(admin, limit=5000)
        assert serials(rows) == everything
        # The states that wait for somebody come first.
        states = [row[1] for row in rows]
        assert sorted(range(len(states)), key=lambda i: states.index(states[i])) == list(range(len(states)))
        assert states[0] == "PENDING_APPROVAL"

        waiting = await known(service, certs.c.state == "PENDING_APPROVAL")
        assert serials(await asked(admin, state="PENDING_APPROVAL", limit=150)) == waiting
        hall = await known(service, certs.c.ou == "hall7", certs.c.state == "REVOKED")
        assert serials(await asked(admin, subject="HALL7", state="REVOKED")) == hall
        some = await asked(admin, name="host00012", limit=30)
        assert [row[2] for row in some] == [f"host00012{n:02d}" for n in range(100)]

        begin, end = (int(service.clock().timestamp()) + DAY_S * days for days in (100, 110))
        dates = [datetime.fromtimestamp(seconds, UTC).isoformat() for seconds in (begin, end)]
        ending = await known(service, certs.c.not_after >= begin, certs.c.not_after < end)
        found = await asked(admin, expires_after=dates[0], expires_before=dates[1], limit=99)
        assert serials(found) == ending
        assert [row[3] for row in found] == sorted(row[3] for row in found)


@pytest.mark.usefixtures("engine")
async def test_the_filters_of_the_tool_are_those_of_the_service(tmp_path, pvxcert):
    async with serving(tmp_path, 1200) as service:
        begin, end = (int(service.clock().timestamp()) + DAY_S * days for days in (100, 400))
        dates = [datetime.fromtimestamp(seconds, UTC).isoformat() for seconds in (begin, end)]
        columns = certs.c
        named = columns.cn.startswith("host00001")
        ending = (columns.not_after >= begin, columns.not_after < end, named, columns.state == "VALID")
        found = await pvxcert(
            service, "--name", "host00001", "--state", "VALID", "--expires-after", dates[0], "--expires-before",
            dates[1], "--json",
        )  # fmt: skip
        assert listed(found) == await known(service, *ending)
        assert listed(await pvxcert(service, "--all", "--json")) == await known(service)
        assert len(listed(await pvxcert(service, "--limit", "1100", "--json"))) == 1100
        first = await pvxcert(service)
        assert len(first.out.splitlines()) == 1001
        assert "add --all" in first.err
        other = await pvxcert(service, "--issuer", "00000000")
        assert (other.status, other.out, other.err) == (0, "", "no certificates\n")


@pytest.mark.usefixtures("engine")
async def test_what_ends_soon_is_found_behind_many_that_are_over(tmp_path, pvxcert):
    """The first thousand of a list need not hold any of them."""
    async with serving(tmp_path, 3000) as service:
        until = int(service.clock().timestamp()) + 40 * DAY_S
        live = certs.c.state.not_in(("EXPIRED", "REVOKED"))
        soon = await known(service, certs.c.not_after < until, live)
        assert soon
        done = await pvxcert(service, "--expiring", "40d", "--json")
        assert done.status == 8
        assert soon <= listed(done) <= await known(service, certs.c.not_after < until + 600, live)
        one = await pvxcert(service, "--expiring", "40d", "--limit", "1", "--json")
        assert one.out.splitlines() == done.out.splitlines()[:1]
        assert (await pvxcert(service, "--expiring", "1h", "--json")).status == 0


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"limit": "0"}, "limit must be"),
        ({"order": "serial"}, "the order 'serial' is not known"),
        ({"issuer": "me"}, "an issuer ID"),
        ({"expires_before": "tomorrow"}, "must be a date"),
        ({"expires_after": "-5"}, "must be a date"),
        (
            {"expires_before": "2027"},
            "such as 2027-01-31, 20270131 or .*, or POSIX seconds of 9 to 11 digits, not '2027'",
        ),
        ({"expires_before": "20271331"}, "must be a date"),
        ({"expires_before": "202701311200"}, "must be a date"),
        (
            {"expires_befor": "2027-01-31"},
            "unknown query 'expires_befor'; did you mean expires_before.* are after, expires_after,",
        ),
        ({"state": "VALID", "cn": "alice"}, "unknown query 'cn'; known are .*subject"),
        ({"expires_after": "999999999999999999999"}, "must be a date"),
        ({"name": "x" * 257}, "longer than 256"),
        ({"name": "a\0b"}, "without NUL"),
        ({"subject": "a\0b"}, "without NUL"),
        ({"after": "v1:xyz"}, "earlier answer"),
        ({"after": 5.0}, "must be text"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
async def test_a_query_that_makes_no_sense_is_refused_with_a_sentence(tmp_path, query, why):
    async with running(tmp_path) as service, secure(service, admin_keychain(tmp_path)) as admin:
        with pytest.raises(RemoteError, match=why):
            await admin.rpc("CERT:LIST", uri_value("CERT:LIST", query))


async def test_eight_digits_are_a_date_and_no_second_of_1970(tmp_path):
    async with serving(tmp_path, 300) as service, secure(service, admin_keychain(tmp_path)) as admin:
        day = datetime.fromtimestamp(int(service.clock().timestamp()) + DAY_S * 200, UTC).date()
        midnight = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
        wanted = await known(service, certs.c.not_after < midnight)
        assert wanted
        for text in (f"{day:%Y%m%d}", f"{day:%Y-%m-%d}", str(midnight), midnight):
            table = await admin.rpc(
                "CERT:LIST", uri_value("CERT:LIST", {"expires_before": text, "limit": 10000})
            )
            assert len(table["value.cert_id"]) == len(wanted), text


async def test_a_list_without_queries_is_the_whole_list_however_it_is_asked_for(tmp_path):
    bare = StructType([("scheme", STRING), ("authority", STRING), ("path", STRING)], "epics:nt/NTURI:1.0")
    async with running(tmp_path) as service, secure(service, admin_keychain(tmp_path)) as admin:
        for argument in (
            None,
            Value(StructType([])),
            Value(bare, {"path": "CERT:LIST"}),
            uri_value("CERT:LIST", {}),
        ):
            table = await admin.rpc("CERT:LIST", argument)
            assert len(table["value.cert_id"]) == 2
        with pytest.raises(RemoteError, match="the queries are no structure; it may have after,"):
            await admin.rpc("CERT:LIST", Value(StructType([("query", STRING)]), {"query": "x"}))


async def test_a_place_of_one_list_is_no_place_of_another(tmp_path):
    async with serving(tmp_path, 30) as service, secure(service, admin_keychain(tmp_path)) as admin:
        table = await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {"limit": 5}))
        assert table["next"].startswith("v1:")
        with pytest.raises(RemoteError, match="earlier answer"):
            await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {"after": table["next"], "name": "host"}))
        rest = await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {"after": table["next"]}))
        assert rest["next"] == ""
        assert len(rest["value.cert_id"]) == 27
        assert not set(rest["value.cert_id"]) & set(table["value.cert_id"])


async def test_nobody_but_administrators_gets_a_page(tmp_path):
    async with running(tmp_path) as service, plain(service) as anyone:
        with pytest.raises(RemoteError, match=r"denied|administrators"):
            await anyone.rpc("CERT:LIST", uri_value("CERT:LIST", {"after": "v1:W10="}))
