"""Rate limits for submissions: one token bucket per key. The caller gives the clock.

The clock must be monotonic: with the wall clock, each step of the time would open the limit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

__all__ = ["MAX_KEYS", "RateLimiter", "SharedLimiter", "peer_key", "retry_sentence"]

MAX_KEYS: Final = 10_000
"""Number of buckets that one limiter keeps; a new key replaces the least recently used one."""


class RateLimiter:
    """Allow `burst` at once and `per_minute` in the long run, for each key separately.

    `per_minute` of 0 switches the limiter off. A refused attempt costs nothing, so a client that keeps trying is admitted
    as soon as one that waited.
    """

    __slots__ = ("_buckets", "_burst", "_clock", "_max_keys", "_rate")

    def __init__(
        self, per_minute: float, burst: int, *, clock: Callable[[], float], max_keys: int = MAX_KEYS
    ) -> None:
        if per_minute < 0 or not math.isfinite(per_minute) or burst < 1:
            raise ValueError("a rate limit needs per_minute >= 0 and burst >= 1")
        self._rate = per_minute / 60.0
        self._burst = float(burst)
        self._clock = clock
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one from `key`'s bucket: 0.0 when allowed, else the seconds until the next one is."""
        if not self._rate:
            return 0.0
        now = self._clock()
        level = self._level(key, now)
        wait = self._missing(level)
        self._buckets[key] = (level if wait else level - 1.0, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return wait

    def wait(self, key: str) -> float:
        """Return what `take` would answer, without taking. For limits that count failures only."""
        return self._missing(self._level(key, self._clock())) if self._rate else 0.0

    def _level(self, key: str, now: float) -> float:
        level, then = self._buckets.get(key, (self._burst, now))
        return min(self._burst, level + max(0.0, now - then) * self._rate)

    def _missing(self, level: float) -> float:
        return 0.0 if level >= 1.0 else (1.0 - level) / self._rate


class SharedLimiter(RateLimiter):
    """A limit for each key, and one for all of them together (`overall`)."""

    __slots__ = ("_overall",)

    def __init__(
        self, per_minute: float, burst: int, *, clock: Callable[[], float], overall: RateLimiter
    ) -> None:
        super().__init__(per_minute, burst, clock=clock)
        self._overall = overall

    def take(self, key: str) -> float:
        """Take one from both limits: 0.0 when allowed, else the seconds until the next one is. A refusal takes nothing."""
        return self.wait(key) or self._overall.take("") or super().take(key)


def retry_sentence(wait_s: float) -> str:
    """Return the sentence for a client over its limit; the seconds are rounded up, so that waiting for them is enough."""
    return f"rate limited, retry in {max(1, math.ceil(wait_s))} s"


def peer_key(peer: str) -> str:
    """Return the part of a peer's address that a limit applies to.

    The port is left out, because each new connection has another port. Of an IPv6 address only the first 64 bits
    count, because one machine owns all addresses below them.
    """
    host = peer
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if ":" not in host:
        return host
    from ipaddress import AddressValueError, IPv6Address

    try:
        address = IPv6Address(host.partition("%")[0])
    except AddressValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if address.is_loopback:
        return "::1"
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"
