"""The values of the gateway's own PVs, and the sentences of its log about heavy and slow clients."""

from __future__ import annotations

from appliance.gateway import report
from appliance.gateway.accounts import Counts, Rate, Rates, Slow, Top

NOW = 1_700_000_000.5


def _rates(*, hosts: tuple[Rate, ...] = (), pvs: tuple[Rate, ...] = (), slow: tuple[Slow, ...] = ()) -> Rates:
    total = sum(rate.tx for rate in hosts)
    return Rates(30.0, Top(), Top(pvs), Top(), Top(hosts), total, len(hosts), slow)


def test_a_table_of_rates_has_its_columns_and_labels() -> None:
    rows = [Rate("10.0.0.1:5", "ann", 5.0, 2.0, 1.0), Rate("10.0.0.2:5", "", 4.0, 3.0, 0.0)]
    value = report.rate_table("client", "rx", rows, NOW)
    assert list(value["labels"]) == ["Account", "Client", "RX (B/s)"]
    assert list(value["value.account"]) == ["ann", ""]
    assert list(value["value.name"]) == ["10.0.0.1:5", "10.0.0.2:5"]
    assert list(value["value.rate"]) == [2.0, 3.0]
    assert value["timeStamp.secondsPastEpoch"] == 1_700_000_000
    assert list(report.rate_table("server", "tx", [], NOW)["labels"]) == ["Server", "TX (B/s)"]
    assert list(report.rate_table("pv", "requests", rows, NOW)["value.rate"]) == [1.0, 0.0]


def test_stats_and_channels_are_real_counts() -> None:
    counts = Counts(5, 3, 2, 7, 1, 11, 12, 13)
    stats = report.stats_value(counts)
    sizes = ("ccacheSize", "mcacheSize", "gcacheSize", "banHostSize", "banPVSize", "banHostPVSize")
    assert [stats[f"{name}.value"] for name in sizes] == [10, 7, 1, 11, 12, 13]
    channels = report.channels_value(counts, NOW)
    assert [channels[name] for name in ("active", "inactive", "unconnected")] == [5, 3, 2]


def test_references_show_what_has_changed() -> None:
    references = report.References()
    first = references.value({"channel": 3, "monitor": 1}, NOW)
    assert (list(first["value.type"]), list(first["value.count"])) == (["channel", "monitor"], [3, 1])
    assert list(first["labels"]) == ["Type", "Count", "Delta"]
    later = references.value({"channel": 5, "get": 2}, NOW)
    assert list(later["value.type"]) == ["channel", "get", "monitor"]
    assert list(later["value.count"]) == [5, 2, 0]
    assert list(later["value.delta"]) == [2, 2, -1]
    assert list(references.value({"channel": 5, "get": 2}, NOW)["value.type"]) == []


def test_health_shows_the_worst_first() -> None:
    good = report.health_value([], NOW)
    assert (good["value.index"], list(good["value.choices"]), good["alarm.severity"]) == (
        0,
        ["OK", "DEGRADED", "BAD"],
        0,
    )
    bad = report.health_value(
        [(report.DEGRADED, "one name server is away"), (report.BAD, "nothing is reached")], NOW
    )
    assert (bad["value.index"], bad["alarm.severity"]) == (2, 2)
    assert bad["alarm.message"] == "nothing is reached; one name server is away"
    assert len(report.health_value([(report.BAD, "x" * 1000)], NOW)["alarm.message"]) == 256


def test_inputs_of_access_security_are_a_table() -> None:
    value = report.debug_table(
        [report.Row("DEFAULT", "A", 1.5, True), report.Row("RF", "B", 0.0, False)], NOW
    )
    assert list(value["value.asg"]) == ["DEFAULT", "RF"]
    assert list(value["value.value"]) == [1.5, 0.0]
    assert list(value["value.connected"]) == [True, False]
    assert list(report.debug_table([], NOW)["value.asg"]) == []


def test_whoever_has_more_than_half_is_named_once_a_minute() -> None:
    heaviness = report.Heaviness()
    hosts = (Rate("10.0.0.1:5", "ann", 8e6, 0.0, 0.0), Rate("10.0.0.2:5", "", 2e6, 0.0, 0.0))
    rates = _rates(hosts=hosts, pvs=(Rate("CAMERA", "", 9e6, 0.0, 0.0),))
    assert heaviness.heavy(rates, 0.0) == [
        "the client ann@10.0.0.1:5 is sent 80% of all that clients are sent: 8.0 of 10.0 MB/s",
        "the PV CAMERA is 90% of all that clients are sent: 9.0 of 10.0 MB/s",
    ]
    assert heaviness.heavy(rates, 59.0) == []
    assert len(heaviness.heavy(rates, 61.0)) == 2


def test_nobody_is_heavy_when_little_is_sent_or_all_is_for_one() -> None:
    little = (Rate("10.0.0.1:5", "ann", 800.0, 0.0, 0.0), Rate("10.0.0.2:5", "", 1.0, 0.0, 0.0))
    assert report.Heaviness().heavy(_rates(hosts=little), 0.0) == []
    assert report.Heaviness().heavy(_rates(hosts=(Rate("10.0.0.1:5", "ann", 8e6, 0.0, 0.0),)), 0.0) == []


def test_a_client_that_reads_too_slowly_is_named_once_a_minute_and_many_are_counted() -> None:
    heaviness = report.Heaviness()
    rates = _rates(slow=(Slow("10.0.0.1:5", "ann", 12, 4096),))
    (said,) = heaviness.slow(rates, 0.0)
    assert said.startswith(
        "ann@10.0.0.1:5 reads too slowly: 12 updates were merged into later ones in 30 s, 4096 octets"
    )
    assert heaviness.slow(rates, 30.0) == []
    many = _rates(slow=tuple(Slow(f"10.0.0.1:{port}", "", 1, 0) for port in range(100, 130)))
    said_of_many = heaviness.slow(many, 30.0)
    assert len(said_of_many) == 11
    assert said_of_many[-1] == "20 more clients read too slowly"
