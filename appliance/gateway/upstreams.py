"""One client side: its Context, and all names that are looked for or used there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final

from appliance.client.context import Context
from appliance.errors import ChannelClosedError
from appliance.gateway.config import Bounds
from appliance.gateway.names import Promises
from appliance.gateway.upstream import Upstream

__all__ = ["Upstreams"]

_log: Final = logging.getLogger(__name__)

SWEEPS: Final = 4
"""How often unused names are looked for while one may be idle."""
SLICE: Final = 1000
"""Names that one sweep looks at in one turn of the event loop."""


class Upstreams:
    """All names of one client side.

    Args:
        name: The side's name in the configuration.
        context: The client; it is started.
        bounds: The most names, and how long an unused one is kept.
        promises: The searches that are answered when a name is found.
        queue_size: ``record[queueSize]`` of shared subscriptions.
    """

    def __init__(
        self, name: str, context: Context, bounds: Bounds, promises: Promises, queue_size: int = 16
    ) -> None:
        self.name = name
        self.context = context
        self.queue_size = queue_size
        self.known: dict[str, Upstream] = {}
        """All names, also those that no server has (yet)."""
        self.on_gone: Callable[[Upstream], None] | None = None
        """Called for a name that is given up, while its counts can still be read."""
        self.dropped = 0
        """Names that were given up for others, because there were too many."""
        self._bounds = bounds
        self._promises = promises
        self._searching: dict[Upstream, None] = {}
        """Names without a server, those that nobody has asked for the longest first."""
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(bounds.idle_name_s / SWEEPS, self._sweep)
        self._told = False

    def __iter__(self) -> Iterator[Upstream]:
        return iter(self.known.values())

    @property
    def active(self) -> int:
        """How many names have a server."""
        return len(self.known) - len(self._searching)

    def want(self, name: str) -> Upstream | None:
        """Return the name, which is looked for from now on; None if no search can carry it, or if there are too many."""
        upstream = self.known.get(name)
        now = self._loop.time()
        if upstream is not None:
            upstream.asked = now
            if not upstream.active:
                self._searching[upstream] = self._searching.pop(upstream, None)
            return upstream
        if len(self._searching) >= self._bounds.names // 2 or len(self.known) >= self._bounds.names:
            self._drop_one()
            if len(self.known) >= self._bounds.names:
                return None
        try:
            channel = self.context.channel(name)
        except ChannelClosedError as error:
            _log.debug("%s: %s", self.name, error)
            return None
        upstream = self.known[name] = Upstream(self, channel, now)
        self._searching[upstream] = None
        upstream.search()
        return upstream

    def _drop_one(self) -> None:
        """Give up the name that nobody has asked for the longest, among those that no server has."""
        if not self._told:
            self._told = True
            _log.warning(
                "the client side %s has %d names, %d of them without a server: the oldest of these give way to new ones; raise "
                "bounds.names if clients really need more",
                self.name,
                len(self.known),
                len(self._searching),
            )
        for upstream in self._searching:
            if not upstream.waiting:
                self.dropped += 1
                self._give_back(upstream)
                return

    # -- UpstreamOwner -------------------------------------------------------------------------------

    def found(self, upstream: Upstream) -> None:
        """Answer the searches for the name: its server is there."""
        self._searching.pop(upstream, None)
        self._promises.keep(upstream)

    def lost(self, upstream: Upstream) -> None:
        """Count the name among those without a server."""
        if self.known.get(upstream.name) is upstream:
            self._searching[upstream] = None

    def access_changed(self, upstream: Upstream) -> None:
        """Judge the clients again: a server has changed what it permits the gateway."""
        for handler in list(upstream.handlers.values()):
            handler.review()

    # -- the end of names ----------------------------------------------------------------------------

    def _give_back(self, upstream: Upstream) -> None:
        self.known.pop(upstream.name, None)
        self._searching.pop(upstream, None)
        self._promises.drop(upstream)
        upstream.give_up()
        if self.on_gone is not None:
            self.on_gone(upstream)
        self.context.give_back(upstream.name)

    def _sweep(self) -> None:
        """Give back the names that nobody uses and nobody has asked for lately."""
        self._told = False
        self._promises.tidy()
        self._look(list(self.known.values()), 0)

    def _look(self, upstreams: list[Upstream], start: int) -> None:
        before = self._loop.time() - self._bounds.idle_name_s
        for upstream in upstreams[start : start + SLICE]:
            if upstream.asked < before and not upstream.in_use and self.known.get(upstream.name) is upstream:
                self._give_back(upstream)
        start += SLICE
        if start < len(upstreams):
            self._timer = self._loop.call_later(0, self._look, upstreams, start)
        else:
            self._timer = self._loop.call_later(self._bounds.idle_name_s / SWEEPS, self._sweep)

    def touch(self, upstream: Upstream) -> None:
        """Note that a client asks for the name."""
        upstream.asked = self._loop.time()

    def close(self) -> None:
        """Stop the sweep; the owner closes the Context."""
        self._timer.cancel()
