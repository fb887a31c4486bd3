"""Bounds of what clients ask for: new names of each host, and searches that are answered late."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Final

from appliance.server.quota import who

__all__ = ["NewNames", "Promises"]

_log: Final = logging.getLogger(__name__)

PERIOD_S: Final = 10.0
"""Seconds in which a host's share of new names is renewed."""
MAX_HOSTS: Final = 10_000
MAX_PROMISES: Final = 10_000
MAX_ASKERS: Final = 8
"""Searches for one name that are answered late; the oldest give way."""


class _Bucket:
    __slots__ = ("at", "left", "told")

    def __init__(self, left: float, at: float) -> None:
        self.left = left
        self.at = at
        self.told = False


class NewNames:
    """How many names that are not known yet each host may ask for.

    Args:
        most: Names of one host in ten seconds. An IPv6 address stands for its network of 64 bits.
        now: Gives the time in seconds.
    """

    def __init__(self, most: int, now: Callable[[], float]) -> None:
        self._most = most
        self._now = now
        self._hosts: dict[str, _Bucket] = {}
        self.refused = 0
        """Names that were not looked for."""

    def admits(self, host: str) -> bool:
        """Whether one more new name of ``host`` is looked for."""
        key = who(host)
        now = self._now()
        bucket = self._hosts.get(key)
        if bucket is None:
            if len(self._hosts) >= MAX_HOSTS:
                self._tidy(now)
            bucket = self._hosts[key] = _Bucket(self._most, now)
        else:
            bucket.left = min(self._most, bucket.left + (now - bucket.at) * self._most / PERIOD_S)
            bucket.at = now
        if bucket.left >= 1:
            bucket.left -= 1
            return True
        self.refused += 1
        if not bucket.told:
            bucket.told = True
            _log.warning(
                "%s asks for more than %d new names in %g s: further ones are not looked for until it asks more slowly",
                host,
                self._most,
                PERIOD_S,
            )
        return False

    def _tidy(self, now: float) -> None:
        """Forget hosts that have asked for nothing lately, or else the one that was added first."""
        for key in [key for key, bucket in self._hosts.items() if now - bucket.at > PERIOD_S]:
            del self._hosts[key]
        if len(self._hosts) >= MAX_HOSTS:
            del self._hosts[next(iter(self._hosts))]


class _Promise:
    __slots__ = ("tell", "until")

    def __init__(self, tell: Callable[[], None], until: float) -> None:
        self.tell = tell
        self.until = until


class Promises:
    """Searches that are answered when a server of the name is found, if that is soon.

    Args:
        patience_s: How long a search can be answered late.
        now: Gives the time in seconds.
    """

    def __init__(self, patience_s: float, now: Callable[[], float]) -> None:
        self._patience_s = patience_s
        self._now = now
        self._by_key: dict[Hashable, dict[Hashable, _Promise]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: Hashable, asker: Hashable, tell: Callable[[], None]) -> None:
        """Call ``tell`` when `keep` is called with ``key``. A promise to the same ``asker`` is replaced."""
        if self._count >= MAX_PROMISES:
            self.tidy()
            if self._count >= MAX_PROMISES:
                return
        askers = self._by_key.setdefault(key, {})
        if askers.pop(asker, None) is None:
            self._count += 1
        askers[asker] = _Promise(tell, self._now() + self._patience_s)
        if len(askers) > MAX_ASKERS:
            del askers[next(iter(askers))]
            self._count -= 1

    def keep(self, key: Hashable) -> None:
        """Answer the searches for ``key``."""
        askers = self._by_key.pop(key, None)
        if askers is None:
            return
        self._count -= len(askers)
        now = self._now()
        for promise in askers.values():
            if promise.until >= now:
                promise.tell()

    def drop(self, key: Hashable) -> None:
        """Forget the searches for ``key``."""
        self._count -= len(self._by_key.pop(key, ()))

    def tidy(self) -> None:
        """Forget what is too old to be answered."""
        now = self._now()
        for key in list(self._by_key):
            askers = self._by_key[key]
            for asker in [asker for asker, promise in askers.items() if promise.until < now]:
                del askers[asker]
                self._count -= 1
            if not askers:
                del self._by_key[key]
