"""A defect in one PV of a server: who reads others goes on, on the same connection and on others."""

from __future__ import annotations

import pytest

from appliance.errors import RemoteError
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value
from appliance.server import Handler, Subscription
from appliance.server.operation import Update
from appliance.server.peer import Peer
from tests.helpers.ours import client_of, double, served

KIND = NTScalar(FLOAT64)


class _Unsendable(Update):
    def encoded(self, mask: int, big: bool) -> bytes:
        raise ZeroDivisionError("of the PV")


class Bad(Handler):
    """A PV whose updates cannot be sent, or whose subscriptions call a function that fails."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.subscription: Subscription | None = None

    def subscribe(self, subscription: Subscription) -> None:
        self.subscription = subscription
        subscription.ready(KIND)
        subscription.post(Update(KIND, Value(KIND, 1.0).store, KIND.leaf_mask))

    def fail(self) -> None:
        assert self.subscription is not None
        if self.how == "update":
            self.subscription.post(_Unsendable(KIND, Value(KIND, 2.0).store, KIND.leaf_mask))
        elif self.how == "last of several":
            for kind in (Update, Update, _Unsendable):
                self.subscription.post(kind(KIND, Value(KIND, 2.0).store, KIND.leaf_mask))
        else:
            self.subscription.on_room = self._defect
            self.subscription.wait()

    def _defect(self) -> None:
        raise ZeroDivisionError("of the PV")


@pytest.mark.parametrize("how", ["update", "last of several", "room"])
async def test_a_subscription_that_fails_ends_with_an_error_and_the_others_go_on(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Bad(how), double(1.0)
    async with (
        served({"bad": bad, "good": good}) as server,
        client_of(server) as one,
        client_of(server) as two,
        one.monitor("bad") as watched,
        one.monitor("good") as beside,
        two.monitor("good") as elsewhere,
    ):
        for monitor in (watched, beside, elsewhere):
            assert (await anext(monitor))["value"] == 1.0
        bad.fail()
        good.post(2.0)
        for monitor in (beside, elsewhere):
            assert (await anext(monitor))["value"] == 2.0
        with pytest.raises(RemoteError, match="internal error; the server's log has the details"):
            async for _ in watched:
                pass
        good.post(3.0)
        for monitor in (beside, elsewhere):
            assert (await anext(monitor))["value"] == 3.0
    assert "of bad: internal error" in caplog.text
    assert "ZeroDivisionError: of the PV" in caplog.text


class Queued(Handler):
    """A PV whose updates wait for the end of the turn."""

    def __init__(self) -> None:
        self.number = 1.0
        self.subscriptions: list[Subscription] = []

    def subscribe(self, subscription: Subscription) -> None:
        self.subscriptions.append(subscription)
        subscription.ready(KIND)
        subscription.post(self._update())

    def post(self, number: float) -> None:
        self.number = number
        for subscription in self.subscriptions:
            subscription.post(self._update())

    def _update(self) -> Update:
        return Update(KIND, Value(KIND, self.number).store, KIND.leaf_mask)


async def test_a_connection_that_fails_is_closed_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good = Queued()
    broken: list[Peer] = []
    pump = Peer.pump

    def pumped(peer: Peer) -> None:
        if peer in broken:
            broken.remove(peer)
            raise ZeroDivisionError("of the connection")
        pump(peer)

    monkeypatch.setattr(Peer, "pump", pumped)
    async with (
        served({"good": good}) as server,
        client_of(server) as one,
        client_of(server) as two,
        one.monitor("good") as first,
    ):
        assert (await anext(first))["value"] == 1.0
        (link,) = server.peers
        assert isinstance(link.owner, Peer)
        async with two.monitor("good") as second:
            assert (await anext(second))["value"] == 1.0
            broken.append(link.owner)
            good.post(2.0)
            assert (await anext(second))["value"] == 2.0
            # The client comes back by itself.
            assert (await anext(first))["value"] == 2.0
            assert not broken
    assert "ends: internal error" in caplog.text
    assert "ZeroDivisionError: of the connection" in caplog.text
