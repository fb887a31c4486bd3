"""What one connection takes of its address's share, and that it gives all of it back."""

from __future__ import annotations

import pytest

from appliance.server.quota import Allowance, Quota, Shares, who

QUOTA = Quota(
    connections=3,
    anonymous_connections=2,
    channels=4,
    anonymous_channels=2,
    subscriptions=3,
    anonymous_subscriptions=1,
)


@pytest.fixture
def shares() -> Shares:
    return Shares(QUOTA)


def joined(shares: Shares, host: str = "10.0.0.1") -> Allowance:
    allowance = Allowance(shares)
    assert allowance.join(host)
    return allowance


def test_an_address_has_a_number_of_connections_and_its_trouble_is_logged_once(
    shares: Shares, caplog: pytest.LogCaptureFixture
) -> None:
    first = [joined(shares) for _ in range(3)]
    refused = [Allowance(shares) for _ in range(2)]
    assert [each.join("10.0.0.1") for each in refused] == [False, False]
    assert joined(shares, "10.0.0.2"), "another address has its own"
    assert (
        caplog.text.count("further connections from 10.0.0.1 are refused: this address has 3, the most") == 1
    )
    for each in refused:
        each.leave()
    first[0].leave()
    first[0].leave()  # is harmless
    assert joined(shares)
    assert not Allowance(shares).join("10.0.0.1")


def test_an_address_without_connections_is_forgotten(shares: Shares) -> None:
    allowances = [joined(shares, host) for host in ("10.0.0.1", "10.0.0.1", "2001:db8::1", "2001:db8::2")]
    assert len(shares) == 2
    for each in allowances:
        each.leave()
    assert len(shares) == 0


def test_a_connection_that_never_came_to_an_address_leaves_nothing(shares: Shares) -> None:
    Allowance(shares).leave()
    assert len(shares) == 0


def test_anonymous_clients_have_places_of_their_own(shares: Shares) -> None:
    one, two, three = (joined(shares) for _ in range(3))
    assert one.count_anonymous() == two.count_anonymous() == ""
    assert (
        "2 anonymous connections already; close some, or log in with an account name"
        in three.count_anonymous()
    )
    assert not three.is_anonymous
    one.leave()
    assert three.count_anonymous() == ""


def test_channels_are_counted_over_all_connections_of_an_address(shares: Shares) -> None:
    anonymous, named = joined(shares), joined(shares)
    anonymous.count_anonymous()
    anonymous.count_channel(1)
    anonymous.count_channel(1)
    assert "2 channels of anonymous clients already" in anonymous.refuses_channel()
    assert named.refuses_channel() == ""
    named.count_channel(1)
    named.count_channel(1)
    assert "4 channels already; close some" in named.refuses_channel()
    anonymous.count_channel(-1)
    assert anonymous.refuses_channel() == named.refuses_channel() == ""


def test_subscriptions_are_counted_for_each_pv(shares: Shares) -> None:
    anonymous, named = joined(shares), joined(shares)
    anonymous.count_anonymous()
    assert anonymous.count_subscription("pv") == ""
    assert "watches this PV 1 times already" in anonymous.count_subscription("pv")
    assert anonymous.count_subscription("other") == ""
    assert named.count_subscription("pv") == named.count_subscription("pv") == ""
    assert "watches this PV 3 times already" in named.count_subscription("pv")
    for _ in range(3):
        named.forget_subscription("pv")
    named.forget_subscription("pv")  # is harmless
    assert anonymous.count_subscription("pv") == ""


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "20010db800000000"),
        ("2001:db8::ffff:1%eth0", "20010db800000000"),
        ("a:path", "a:path"),
    ],
)
def test_an_ipv6_host_stands_for_its_network(host: str, key: str) -> None:
    assert who(host) == key


class Out:
    """A connection's way out."""

    def __init__(self, waiting: int = 0) -> None:
        self.waiting = waiting


MEMORY = Quota(waiting_octets=1000, host_octets=1600)


def test_updates_of_all_connections_of_an_address_are_bounded_together() -> None:
    shares = Shares(MEMORY)
    one, two, other = joined(shares), joined(shares), joined(shares, "10.0.0.2")
    assert not one.count_waiting(900)
    assert not two.count_waiting(700)
    assert two.count_waiting(1), "its own bound is far away: the address's is passed"
    assert (one.is_full, two.is_full) == (False, True)
    assert one.count_waiting(1), "the first growth tells it"
    assert not other.count_waiting(900), "another address has its own"
    one.count_waiting(-800)
    assert one.is_full
    two.count_waiting(-601)
    assert not two.is_full
    one.count_waiting(-101)
    two.count_waiting(-100)
    assert (one.is_full, one.waiting, two.waiting) == (False, 0, 0)


def test_requests_of_an_address_that_wait_for_servers_count_with_its_updates() -> None:
    shares = Shares(MEMORY)
    one, two = joined(shares), joined(shares)
    one.count_request(1500)
    assert two.refuses_request() == ""
    two.count_waiting(101)
    assert "wait for the clients of your address" in two.refuses_request()
    assert joined(shares, "10.0.0.2").refuses_request() == ""
    one.count_request(-1500)
    assert two.refuses_request() == ""


def test_answers_for_all_connections_of_an_address_are_bounded_together() -> None:
    most = 1 << 30
    shares = Shares(Quota(waiting_octets=most, host_octets=16 << 20))
    outs = [Out() for _ in range(3)]
    clients = [Allowance(shares) for _ in outs]
    for client, out in zip(clients, outs, strict=True):
        client.join("10.0.0.1", out)
    outs[0].waiting = outs[1].waiting = 9 << 20
    first = clients[0]
    assert not first.is_behind(9 << 20, 1 << 20), "not looked at yet"
    assert first.is_behind(9 << 20, 1)
    assert not clients[2].is_behind(0, 1 << 20), "a client that reads gets what is not very large"
    assert clients[2].is_behind(0, (1 << 20) + 1)
    other = Allowance(shares)
    other.join("10.0.0.2", Out())
    assert not other.is_behind(0, 4 << 20)
    outs[0].waiting = 0
    for _ in range(5000):
        if not first.is_behind(1, 300):
            break
    else:
        pytest.fail("small answers never end it")
    clients[1].leave()
    assert list(first._share.streams) == [outs[0], outs[2]]
