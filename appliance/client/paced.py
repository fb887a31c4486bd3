"""Monitors with a limit of their rate: what comes faster is merged, and the latest value comes when its time has come."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from appliance.client.channel import Channel, ChannelRequest
from appliance.client.end import Clock, Timer
from appliance.client.monitor import Monitor, _Item
from appliance.pva.status import Status
from appliance.pvdata.value import Value

__all__ = ["Pace", "Paced", "PacedMonitor", "checked_rate"]


def checked_rate(rate: Any, argument: str) -> float | None:
    """Check a limit of updates per second.

    Args:
        rate: What the program gave; None means no limit.
        argument: The name of the argument, for the message.

    Raises:
        TypeError: It is no number.
        ValueError: It is not above zero, or not finite.
    """
    if rate is None:
        return None
    from numbers import Real

    wanted = f"{argument} is a number of updates per second above 0, or None for all updates"
    if type(rate) is bool or not isinstance(rate, Real):
        raise TypeError(f"{wanted}; it cannot be {type(rate).__name__}")
    number = float(rate)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{wanted}; it cannot be {number:g}")
    return number


class Pace:
    """Lets the first value through at once, and then one in each interval: the latest.

    Args:
        clock: The client's clock.
        rate: Values per second at most.
        deliver: Takes a value whose time has come.
    """

    __slots__ = ("_clock", "_deliver", "_due", "_held", "_interval", "_timer")

    def __init__(self, clock: Clock, rate: float, deliver: Callable[[Value], object]) -> None:
        self._clock = clock
        self._interval = 1.0 / rate
        self._deliver = deliver
        self._due = -math.inf
        """When the next value may be delivered."""
        self._held: Value | None = None
        self._timer: Timer | None = None
        """It runs while a value is held back, and only then."""

    def offer(self, value: Value) -> bool:
        """Deliver ``value`` now or when its time has come; return whether an earlier value was merged into it."""
        held, self._held = self._held, value
        if held is not None:
            if held.type == value.type:
                value.changed |= held.changed
            return True
        if self._clock.time() >= self._due:
            self.flush()
        else:
            self._timer = self._clock.call_at(self._due, self._time_came)
        return False

    def _time_came(self) -> None:
        # A clock may call a little early: the next time counts from when this value was due, so the rate holds.
        early_s = max(0.0, self._due - self._clock.time())
        self.flush()
        self._due += early_s

    def flush(self) -> None:
        """Deliver the value that is held back, if there is one, before its time."""
        value = self.drop()
        if value is not None:
            self._due = self._clock.time() + self._interval
            self._deliver(value)

    def drop(self) -> Value | None:
        """Forget the value that is held back, and return it."""
        value, self._held = self._held, None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return value


class Paced(Monitor[_Item]):
    """A monitor with a pace. What was held back comes before the loss of a connection and before the end."""

    __slots__ = ()

    _pace: Pace

    def update(self, bits: int, store: list[Any], overrun: int, size: int = 0) -> None:
        """Take an update: its time may come later."""
        if overrun:
            self.overruns += 1
        operation = self.operation
        assert operation is not None
        kind = operation.type
        assert kind is not None
        if self._pace.offer(Value.from_store(kind, store, bits)):
            self._merged()

    def _merged(self) -> None:
        self.squashed += 1
        if self.pipeline and self.operation is not None:
            self._count()

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """Deliver what was held back, then tell the loss."""
        ChannelRequest.disconnected(self, why, moving=moving)  # the server gets no credit any more
        self._pace.flush()
        super().disconnected(why, moving=moving)

    def finished(self, status: Status) -> None:
        """Deliver what was held back, then the end."""
        self.operation = None
        self._pace.flush()
        super().finished(status)

    def fail(self, error: Exception) -> None:
        """Deliver what was held back, then the error."""
        self._abandon()
        self._pace.flush()
        super().fail(error)

    def cancel(self) -> None:
        """End: nothing is delivered any more."""
        self._pace.drop()
        super().cancel()


class PacedMonitor(Paced[_Item]):
    """What `appliance.Context.monitor` makes if it gets ``max_rate``.

    Args:
        channel: The PV.
        request: The pvRequest.
        max_rate: Values per second at most.
        options: For `Monitor`.
    """

    __slots__ = ("_pace",)

    def __init__(self, channel: Channel, request: Value, *, max_rate: float, **options: Any) -> None:
        super().__init__(channel, request, **options)
        self._pace = Pace(channel.end.clock, max_rate, self._deliver)

    def _deliver(self, value: Value) -> None:
        if self.on_update is not None:
            self._call(value)
            if self.pipeline and self.operation is not None:
                self._count()
            return
        queue = self._queue
        # One value waits at most: a reader that was late must not get several at once.
        if queue and isinstance(last := queue[-1], Value) and last.type == value.type:
            value.changed |= last.changed
            queue[-1] = value
            self._merged()
            return
        self._put(value)
