"""What ``pvxcert -H``, ``-M`` and ``-S`` make of a service's answers: those of C++ services, and hostile ones.

A C++ service cannot run here, so its answers are made by hand: pvxs-cms 3ea66ca, ``serverhandle.cpp`` and ``pvxcert.cpp``.
"""

import asyncio
import contextlib

import pytest

from appliance.certmon.wire_arrays import SCHEDULE_ARRAY
from appliance.cli.certhealth import show_health, show_metrics
from appliance.cli.certschedule import call_schedule, read_change
from appliance.cms.wire_types import HEALTH, MEMBER, METRICS
from appliance.errors import ConfigurationError, RemoteError
from appliance.pvdata import STRING, UINT64, StructType, Value

ID = "47530d89:3826361579604613180"


class Answers:
    """A client whose calls and GETs have one answer; remembers what was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    async def get(self, name, *, timeout):
        return self.answer

    async def rpc(self, name, argument, *, timeout):
        self.asked.append(argument)
        return self.answer


def run(show, answer):
    context = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def opened():
        async with context:
            yield Answers(answer)

    return asyncio.run(show(opened(), "CERT:PV", as_json=False, timeout=1.0))


def health(**fields):
    return Value(
        HEALTH,
        {
            "value": {"index": 1, "choices": ("Not OK", "OK")},
            "db_ok": True,
            "ca_valid": True,
            "uptime_secs": 93_784,
            "cert_count": 7,
            "cluster_members": 1,
            "last_check": "2026-11-29T16:00:00Z",
            **fields,
        },
    )


def test_health_is_shown_as_the_c_plus_plus_tool_shows_it(capsys):
    assert run(show_health, health()) == 0
    assert capsys.readouterr().out == (
        "\nPVACMS Health\n"
        "============================================\n"
        "  Status                         : OK\n"
        "  Database Integrity             : OK\n"
        "  CA Certificate                 : Valid\n"
        "  Uptime                         : 1d 02:03:04 (93784s)\n"
        "  Certificate Count              : 7\n"
        "  Cluster Mode                   : DISABLED\n"
        "  Cluster Members                : 1\n"
        "  Last Check                     : Sun Nov 29 16:00:00 2026 UTC\n"
        "--------------------------------------------\n"
    )


def test_health_names_the_nodes_of_a_service_that_has_several(capsys):
    members = [
        {"node_id": "0a1b2c3d", "version_major": 1, "version_minor": 2, "connected": True, "name": "cms1"},
        {"node_id": "4e5f6a7b", "version_major": 1, "name": "cms2", "last_seen": "2026-11-29T16:00:00Z"},
        {"name": "\x1b[2J", "connected": True},
    ]
    shown = [Value(MEMBER, each) for each in members]
    answer = health(cluster_mode=True, cluster_members=2, members=shown)
    assert run(show_health, answer) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[8:10] == [
        "  Cluster Mode                   : ENABLED",
        "  Cluster Members                : 2",
    ]
    assert lines[11:14] == [
        "  Members",
        "    cms1                         : 0a1b2c3d, 1.2.0, connected",
        "    cms2                         : 4e5f6a7b, 1.0.0, not connected since Sun Nov 29 16:00:00 2026 UTC",
    ]
    assert all(line.isprintable() for line in lines)


def test_a_service_that_is_not_well_is_status_1_and_its_text_cannot_play_with_the_terminal(capsys):
    sick = health(db_ok=False, last_check="\x1b[2J\nStatus : OK", value={"index": 0})
    sick["alarm.message"] = "disk full\n\x1b[2J"
    assert run(show_health, sick) == 1
    shown = capsys.readouterr()
    assert "  Status                         : DEGRADED\n" in shown.out
    assert "  Database Integrity             : FAIL\n" in shown.out
    assert "disk full" in shown.err
    assert all(line.isprintable() for line in (shown.out + shown.err).splitlines())


def test_metrics_are_shown_with_what_the_service_has(capsys):
    value = Value(
        METRICS, {"value": 3, "certs_created": 9, "avg_ccr_time_ms": 1.5, "db_size_bytes": 3_145_728}
    )
    assert run(show_metrics, value) == 0
    out = capsys.readouterr().out
    for line in (
        "  Counters (since startup)",
        "    Certificates Created         : 9",
        "    Certificates Active          : 3",
        "    Avg CCR Time                 : 1.500 ms",
        "    Database Size                : 3.0 MiB (3145728)",
        "    Renewals                     : 0",
    ):
        assert line in out.splitlines()
    theirs = Value(
        StructType([("value", UINT64), ("certs_created", STRING)]), {"value": 3, "certs_created": "x"}
    )
    assert run(show_metrics, theirs) == 0
    out = capsys.readouterr().out
    assert "Renewals" not in out
    assert "    Certificates Created         : 0" in out


THEIRS = StructType([("result", STRING), ("schedule", SCHEDULE_ARRAY)])
"""The answer of a C++ service."""


def call(answer, words, zone=""):
    context = Answers(answer)
    asyncio.run(
        call_schedule(context, "CERT:SCHEDULE", ID, 7, read_change(words, zone), as_json=False, timeout=1.0)
    )
    return context.asked


def rows(*windows):
    kind = SCHEDULE_ARRAY.element
    names = ("day_of_week", "start_time", "end_time")
    return [Value(kind, dict(zip(names, window, strict=True))) for window in windows]


def test_a_c_plus_plus_service_is_asked_and_shown_as_by_its_own_tool(capsys):
    answer = Value(
        THEIRS, {"result": "ok", "schedule": rows(("*", "08:00", "17:00"), ("0", "22:00", "06:00"))}
    )
    (asked,) = call(answer, ["*,08:00,17:00", "SUN,22:00,06:00"])
    query = asked["query"]
    assert (query["serial"], query["read_only"], "time_zone" in query) == (7, False, False)
    assert [row["day_of_week"] for row in query["schedule"]] == ["*", "0"]
    assert capsys.readouterr().out.splitlines() == [
        "Schedule:",
        "=" * 44,
        "  Every day 08:00 - 17:00 UTC",
        "  Sun       22:00 - 06:00 UTC",
        "-" * 44,
    ]


def test_hours_of_a_time_zone_are_not_sent_to_a_service_that_would_take_them_for_utc():
    context = Answers(Value(THEIRS, {"result": "ok"}))
    change = read_change(["MON,08:00,17:00"], "Europe/Berlin")
    with pytest.raises(RemoteError, match="knows no time zones"):
        asyncio.run(call_schedule(context, "CERT:SCHEDULE", ID, 7, change, as_json=False, timeout=1.0))
    (asked,) = context.asked
    assert asked["query.read_only"] is True


@pytest.mark.parametrize("window", [("9", "08:00", "17:00"), ("*", "8", "17:00"), ("*", "\x1b[2J", "17:00")])
def test_an_answer_that_is_no_schedule_is_one_sentence(window):
    with pytest.raises(RemoteError, match="cannot be read"):
        call(Value(THEIRS, {"result": "ok", "schedule": rows(window)}), ["show"])


def test_a_schedule_has_an_upper_bound():
    words = [f"*,{minute // 60:02d}:{minute % 60:02d},23:59" for minute in range(65)]
    with pytest.raises(ConfigurationError, match="at most 64"):
        read_change(words, "")
