"""What ``pvxcert list`` makes of pages, of services that have none, and of answers that make no sense."""

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta

import pytest

from appliance.cli.certlist import Filters, Table, list_certificates
from appliance.errors import AccessDeniedError, OperationTimeoutError, RemoteError, TransportError
from appliance.pvdata import STRING, UINT64, StructType, Value
from appliance.pvdata.nt import NTTable

COLUMNS = [("cert_id", STRING), ("state", STRING), ("name", STRING), ("not_after", UINT64), ("san", STRING)]
OLD = NTTable(COLUMNS)
NEW = StructType([*OLD.build().fields, ("next", STRING)], OLD.build().id)
COUNTED = StructType([*NEW.fields, ("total", UINT64), ("total_is", STRING)], OLD.build().id)
SOON = datetime.now(UTC) + timedelta(days=30)


class Service:
    """Answers the queries of a list with pages of given sizes; ``next`` names the next page."""

    def __init__(self, *pages, kind=NEW, is_stuck=False, total_is=""):
        self.total_is = total_is
        self.pages = pages
        self.kind = kind
        self.is_stuck = is_stuck
        self.asked = []

    async def rpc(self, name, query, *, timeout):
        self.asked.append(query)
        number = int(query.get("after", "0"))
        if isinstance(self.pages[number], BaseException):
            raise self.pages[number]
        value = Value(self.kind)
        if "total" in value:
            value["total"], value["total_is"] = sum(map(len, self.pages)), self.total_is
        rows = self.pages[number][: int(query.get("limit", 1000))]
        for column, _ in COLUMNS:
            value[f"value.{column}"] = [row[column] for row in rows]
        if "next" in value:
            value["next"] = "1" if self.is_stuck else str(number + 1) if number + 1 < len(self.pages) else ""
        return value


def rows(start, end, state="VALID", **more):
    ends = int(SOON.timestamp()) - 86_400
    return [
        {
            "cert_id": f"47530d89:{n + 1}",
            "state": state,
            "name": f"host{n}",
            "not_after": ends + n,
            "san": "",
            **more,
        }
        for n in range(start, end)
    ]


@pytest.fixture
def ask(capsys):
    def run(service, *, as_json=True, **filters):
        @contextlib.asynccontextmanager
        async def opened():
            yield service

        wanted = {"states": [], "subject": "", "limit": 0, **filters}
        work = list_certificates(opened(), "CERT:LIST", Filters(**wanted), as_json=as_json, timeout=1.0)
        status = asyncio.run(work)
        shown = capsys.readouterr()
        return status, shown.out.splitlines(), shown.err

    return run


def names(lines):
    return [json.loads(line)["name"] for line in lines]


def test_one_page_is_shown_and_the_user_is_told_of_the_others(ask):
    service = Service(rows(0, 1000), rows(1000, 1008))
    status, lines, err = ask(service)
    assert (status, names(lines)) == (0, [f"host{n}" for n in range(1000)])
    assert "There are more certificates; add --all" in err
    assert len(service.asked) == 1


def test_what_the_service_finds_page_by_page_is_shown_until_there_are_a_thousand(ask):
    """A service that looks for a part of a subject answers with short pages."""
    service = Service([], rows(0, 5), [], rows(5, 1200), rows(1200, 1300))
    status, lines, err = ask(service, subject="host")
    assert (status, names(lines)) == (0, [f"host{n}" for n in range(1000)])
    assert "There are more certificates" in err
    assert service.asked[3]["limit"] == "995"
    assert names(ask(Service([], [], rows(0, 5)), subject="host")[1]) == [f"host{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("how", "said"), [("exact", " (1234 in all)"), ("estimate", " (about 1234 in all)"), ("", ""), ("x", "")]
)
def test_the_user_is_told_how_many_there_are(ask, how, said):
    service = Service(rows(0, 1000), rows(1000, 1234), kind=COUNTED, total_is=how)
    assert f"There are more certificates{said}; add --all" in ask(service)[2]


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    "error", [TransportError("cut off"), OperationTimeoutError("no answer"), asyncio.CancelledError()]
)
def test_a_list_that_ends_too_early_says_so_and_its_lines_are_whole(capsys, as_json, error):
    """Ctrl-C comes as a cancellation."""
    service = Service(rows(0, 1000), error)

    @contextlib.asynccontextmanager
    async def opened():
        yield service

    wanted = Filters([], "", 0, everything=True)
    with pytest.raises(type(error)):
        asyncio.run(list_certificates(opened(), "CERT:LIST", wanted, as_json=as_json, timeout=1.0))
    shown = capsys.readouterr()
    assert shown.err == "The list is not complete: it ends after 1000 certificates\n"
    lines = shown.out.splitlines()
    assert lines[-1].rstrip().endswith("}" if as_json else "host999")
    if as_json:
        assert names(lines) == [f"host{n}" for n in range(1000)]


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (AccessDeniedError("CERT:LIST: RPC access denied"), "Only the administrators"),
        (
            OperationTimeoutError("CERT:LIST: no server answered the search"),
            "Not every certificate service has a list",
        ),
        (OperationTimeoutError("CERT:LIST: 10.0.0.1:5076 did not answer"), ""),
        (OperationTimeoutError("CERT:LIST: the certificate of this client is REVOKED"), ""),
    ],
    ids=["no right", "no service", "silent", "shut out"],
)
def test_a_list_that_is_refused_is_not_said_to_be_missing(ask, error, hint):
    with pytest.raises(type(error)) as caught:
        ask(Service(error))
    text = str(caught.value)
    assert text.startswith(str(error))
    assert (hint in text) if hint else text == str(error)


def test_all_pages_are_fetched_also_those_that_are_empty(ask):
    service = Service(rows(0, 5), [], rows(5, 8), [])
    status, lines, err = ask(service, everything=True)
    assert (status, err) == (0, "")
    assert names(lines) == [f"host{n}" for n in range(8)]
    assert [query.get("after") for query in service.asked] == [None, "1", "2", "3"]


@pytest.mark.parametrize(("limit", "pages"), [(3, 1), (5, 1), (6, 2), (8, 2), (9, 2)])
def test_a_limit_is_reached_over_several_pages(ask, limit, pages):
    service = Service(rows(0, 5), rows(5, 8))
    _, lines, err = ask(service, limit=limit)
    assert names(lines) == [f"host{n}" for n in range(min(limit, 8))]
    assert (len(service.asked), err) == (pages, "")


def test_a_large_limit_is_asked_for_in_pages_that_services_allow(ask):
    service = Service(rows(0, 2))
    ask(service, limit=123_456)
    assert service.asked[0]["limit"] == "10000"


def test_what_expires_is_asked_for_by_date_and_all_of_it(ask):
    service = Service(rows(0, 2), rows(2, 3))
    status, lines, _ = ask(service, expiring=SOON)
    assert (status, len(lines)) == (8, 3)
    query = service.asked[0]
    assert datetime.fromisoformat(query["expires_before"]) == SOON
    assert datetime.fromisoformat(query["expires_after"]) < datetime.now(UTC)
    assert "EXPIRED" not in query["state"]
    assert ask(Service([]), expiring=SOON)[0] == 0


def test_an_older_service_is_asked_for_what_it_knows(ask):
    late = rows(0, 2) + rows(2, 4, not_after=int(SOON.timestamp()) + 999) + rows(4, 6, state="REVOKED")
    status, lines, err = ask(Service(late, kind=OLD.build()), expiring=SOON, limit=1)
    assert (status, names(lines), err) == (8, ["host0"], "")
    status, lines, err = ask(Service(rows(0, 1000), kind=OLD.build()), everything=True)
    assert (status, len(lines)) == (0, 1000)
    assert "has no pages; there may be more" in err


@pytest.mark.parametrize(
    ("filters", "flag"),
    [
        ({"name": "host"}, "--name"),
        ({"issuer": "47530d89"}, "--issuer"),
        ({"ends_after": SOON}, "--expires-after"),
        ({"ends_before": SOON}, "--expires-before"),
    ],
)
def test_a_filter_that_an_older_service_would_pass_over_is_an_error(ask, filters, flag):
    with pytest.raises(RemoteError, match=f"older than this tool and does not know {flag}"):
        ask(Service(rows(0, 5), kind=OLD.build()), **filters)


def test_a_service_that_gives_the_same_page_again_is_not_asked_for_ever(ask):
    with pytest.raises(RemoteError, match="the same page again and again"):
        ask(Service(rows(0, 5), rows(5, 6), is_stuck=True), everything=True)


def test_the_table_has_one_heading_and_its_columns_stay_where_they_are(ask):
    wide = rows(5, 6, san="dns:a.long.name.example.org")
    _, lines, _ = ask(Service(rows(0, 2), [], wide), as_json=False, everything=True)
    assert len(lines) == 4
    assert [line.split()[0] for line in lines] == ["STATE", "VALID", "VALID", "VALID"]
    # A later page may have what the first has not, so every column is there.
    assert "SAN" in lines[0]
    assert "dns:a.long.name.example.org" in lines[3]
    _, lines, _ = ask(Service(rows(0, 2)), as_json=False, everything=True)
    assert "SAN" not in lines[0]


def test_no_certificate_is_said_once(ask):
    status, lines, err = ask(Service([], []), as_json=False, everything=True)
    assert (status, lines, err) == (0, [], "no certificates\n")


def test_a_table_without_rows_prints_nothing(capsys):
    Table().print([], is_all=True)
    assert capsys.readouterr().out == ""
