"""What clients and PVs cost, as rates between two refreshes and as totals; and the bound of requests in flight."""

from __future__ import annotations

from appliance.gateway.accounts import MAX_GONE, OTHERS, Accounts, Connection, InFlight, PVAccount


def _client(key: int, tx: int, **more: int) -> Connection:
    return Connection(key, f"10.0.0.{key}:1", "ann", tx, **more)


def test_rates_are_those_since_the_last_refresh() -> None:
    accounts = Accounts(100.0)
    account = PVAccount()
    account.us_rx += 1000
    account.ds_tx += 3000
    account.requests += 20
    accounts.fold([("A", account)])
    rates = accounts.rates(
        110.0, [Connection("s", "ioc:5075", tx=50, rx=1000)], [_client(1, 3000, requests=20)]
    )
    assert rates.seconds == 10.0
    assert [(rate.name, rate.rx) for rate in rates.us_pvs.rx] == [("A", 100.0)]
    assert rates.us_pvs.tx == ()  # nothing was sent for it
    assert [(rate.name, rate.tx) for rate in rates.ds_pvs.tx] == [("A", 300.0)]
    assert [rate.requests for rate in rates.ds_pvs.requests] == [2.0]
    assert [(rate.name, rate.tx, rate.rx) for rate in rates.us_hosts.tx] == [("ioc:5075", 5.0, 100.0)]
    assert [(rate.account, rate.name, rate.tx, rate.requests) for rate in rates.ds_hosts.tx] == [
        ("ann", "10.0.0.1:1", 300.0, 2.0)
    ]
    again = accounts.rates(120.0, [Connection("s", "ioc:5075", tx=50, rx=1000)], [_client(1, 3500)])
    assert again.us_pvs == again.us_hosts == ((), (), ())
    assert [rate.tx for rate in again.ds_hosts.tx] == [50.0]


def test_what_ends_between_two_refreshes_is_counted() -> None:
    accounts = Accounts(0.0)
    accounts.rates(10.0, [], [_client(1, 1000)])
    accounts.client_gone(_client(1, 1600, requests=3, dropped=7))
    accounts.client_gone(_client(2, 400, requests=1))
    accounts.server_gone(Connection("s", "ioc:5075", tx=5, rx=6))
    rates = accounts.rates(20.0, [], [])
    assert {(rate.name, rate.tx) for rate in rates.ds_hosts.tx} == {
        ("10.0.0.1:1", 60.0),
        ("10.0.0.2:1", 40.0),
    }
    assert [(rate.name, rate.tx, rate.rx) for rate in rates.us_hosts.rx] == [("ioc:5075", 0.5, 0.6)]
    assert accounts.totals([], [_client(3, 10)]) == (5, 6, 2010, 0, 4, 7)


def test_the_ten_largest_make_a_table() -> None:
    accounts = Accounts(0.0)
    rates = accounts.rates(1.0, [], [_client(key, key) for key in range(1, 40)])
    assert [rate.tx for rate in rates.ds_hosts.tx] == [float(key) for key in range(39, 29, -1)]
    assert rates.ds_total == sum(range(1, 40))


def test_names_and_clients_that_come_and_go_take_bounded_memory() -> None:
    accounts = Accounts(0.0)
    for key in range(2 * MAX_GONE):
        accounts.client_gone(_client(key, 1))
    account = PVAccount()
    for number in range(11 * MAX_GONE):
        account.ds_tx = 1
        accounts.fold([(f"PV{number}", account)])
    rates = accounts.rates(1.0, [], [])
    assert (rates.ds_hosts.tx[0].name, rates.ds_hosts.tx[0].tx) == (OTHERS, MAX_GONE)
    assert (rates.ds_pvs.tx[0].name, rates.ds_pvs.tx[0].tx) == (OTHERS, MAX_GONE)
    assert rates.ds_total == 2 * MAX_GONE


def test_clients_that_lost_updates_are_named() -> None:
    accounts = Accounts(0.0)
    accounts.rates(1.0, [], [_client(1, 0, dropped=5), _client(2, 0)])
    rates = accounts.rates(
        2.0, [], [_client(1, 0, dropped=9, waiting=77), _client(2, 0), _client(3, 0, dropped=100)]
    )
    assert [(slow.name, slow.dropped, slow.waiting) for slow in rates.slow] == [
        ("10.0.0.3:1", 100, 0),
        ("10.0.0.1:1", 4, 77),
    ]


def test_requests_in_flight_are_bounded_for_a_connection_and_for_all() -> None:
    flight = InFlight(1000, per_connection=2, in_all=3)
    assert [flight.begin("a"), flight.begin("a")] == ["", ""]
    assert "2 requests of this connection" in flight.begin("a")
    assert flight.begin("b") == ""
    assert "3 requests of all clients wait" in flight.begin("c")
    assert "3 requests of all clients wait" in flight.begin("b")
    flight.end("a")
    assert flight.begin("c") == ""
    for who in "abc":
        flight.end(who)
    assert (flight.count, len(flight), flight.refused) == (0, 0, 3)


def test_requests_in_flight_are_bounded_by_their_octets() -> None:
    flight = InFlight(1000)
    assert flight.begin("a") == ""
    flight.weigh("a", 1000)
    assert "1 requests of this connection with 1000 octets" in flight.begin("a")
    assert flight.begin("b") == ""
    flight.end("a", 1000)
    assert flight.begin("a") == ""
