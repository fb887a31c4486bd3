"""A subscription that takes octets, and its client, without sockets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from appliance.pva import commands as c
from appliance.pva.events import MonitorFinished, MonitorUpdate
from appliance.pva.octets import Batch
from appliance.server.octet_subscription import OctetSubscription
from appliance.server.quota import DEFAULT_QUOTA, Allowance, Shares
from tests.helpers.wire import SCALAR, Wire, request


class Subscriber:
    """One subscription of a client whose connection is a string of octets."""

    def __init__(
        self,
        *,
        queue: int = 4,
        text: str = "",
        window: int = 0,
        raw: bool | None = True,
        octets: int = 64 << 20,
    ) -> None:
        self.wire = Wire().handshake()
        self.flushes = 0
        self.dirty: list[Any] = []
        self.ends: list[Any] = []
        """How the subscription ended, as the client was told."""
        self.stream = SimpleNamespace(writable=True, schedule_flush=self._flush)
        self.allowance = Allowance(Shares(DEFAULT_QUOTA._replace(waiting_octets=octets)))
        self.allowance.join("10.0.0.1")
        self.owner = SimpleNamespace(held=None, allowance=self.allowance)
        channel = SimpleNamespace(stream=self.stream, owner=self.owner, dirty=self.dirty.append, name="d")
        made: list[OctetSubscription] = []

        def init(served: Any) -> None:
            subscription = OctetSubscription(channel, served)  # type: ignore[arg-type]
            made.append(subscription)
            if raw:
                subscription.ready_raw(SCALAR)
            elif raw is False:
                subscription.ready(SCALAR)

        self.wire.responder.init = init  # type: ignore[method-assign]
        self.wire.responder.flow = lambda operation: None  # type: ignore[assignment,method-assign]
        text = text or f"record[queueSize={queue}]"
        self.made = made
        self.channel = self.wire.open("d")
        self.operation = self.subscribe(text, window)
        (self.subscription,) = made

    def subscribe(self, text: str, window: int = 0) -> Any:
        operation = self.channel.operation(c.CMD_MONITOR, request(text), window=window)
        self.wire.pump()
        if operation.type is not None:
            operation.start()
            self.wire.pump()
        return operation

    def start(self) -> None:
        """Start a subscription that was made with ``raw=None``, once somebody else has answered its INIT."""
        self.wire.pump()
        self.operation.start()
        self.wire.pump()

    def _flush(self) -> None:
        self.flushes += 1

    def got(self) -> list[tuple[float, int, int]]:
        """What the client sees: value, fields, lost fields."""
        events = self.wire.pump()
        self.ends += [event.status for event in events if type(event) is MonitorFinished]
        return [
            (event.store[1], event.bits, event.overrun) for event in events if type(event) is MonitorUpdate
        ]

    def forward(self, batch: Batch) -> None:
        """What the gateway does with updates."""
        sent = self.subscription.forward(batch.bodies, batch.big)
        if sent != len(batch.bodies):
            self.subscription.post_batch(batch, sent)

    def send_waiting(self) -> bool:
        self.dirty.clear()
        return self.subscription.pump()
