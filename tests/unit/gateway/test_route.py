"""Where names lead: the PV list, its remembered denials, and names that are the gateway's own."""

from __future__ import annotations

import pytest

from appliance.acf import PVList
from appliance.gateway import route
from appliance.gateway.route import Route, Router

H = "10.0.0.1"


def test_without_a_list_every_name_leads_to_itself():
    router = Router(own=["GW:stats"])
    assert router.route("any", H) == Route("any", "DEFAULT", 0)
    assert router.route("GW:stats", H) is None
    router.reserve(["GW:clients"])
    assert router.route("GW:clients", H) is None
    assert router.own == {"GW:stats", "GW:clients"}


def test_a_banned_host_gets_nothing():
    router = Router(banned_hosts=["10.0.0.9", "::ffff:10.0.0.8"])
    assert router.route("pv", "10.0.0.9") is None
    assert router.route("pv", "10.0.0.8") is None
    assert router.route("pv", H) == Route("pv")
    assert router.sizes.hosts == 2


def test_denials_are_remembered_by_name_or_by_name_and_host():
    router = Router(PVList("A.* ALLOW\nAB DENY FROM 10.0.0.9\nAC DENY"))
    assert router.route("A", H) == Route("A")
    for _ in range(2):
        assert router.route("AC", H) is None
        assert router.route("AB", "10.0.0.9") is None
        assert router.route("AB", H) == Route("AB")
        assert router.route("X", "") is None
    assert router.sizes == (0, 2, 1)


def test_remembered_denials_are_bounded_and_the_oldest_gives_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(route, "MAX_NAMES", 3)
    router = Router(PVList("A ALLOW"))
    for number in range(10):
        assert router.route(f"X{number}", H) is None
    assert router.sizes == (0, 3, 0)
    assert list(router._names._known) == ["X7", "X8", "X9"]
