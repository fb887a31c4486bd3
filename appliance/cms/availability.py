"""Whether this node can answer what only the database knows. While it cannot, its clients are sent to other nodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Container
from typing import Final

from appliance.cms.feed import Feed
from appliance.cms.hostclock import HostClock
from appliance.cms.nodes import Nodes
from appliance.cms.store import Store
from appliance.server import Server

__all__ = ["Availability"]

_log: Final = logging.getLogger(__name__)
_SURE_S: Final = 2.0
"""Seconds for which a node must have had its database again before it answers searches."""
_GIVES_UP_S: Final = 10.0
"""Seconds without the database after which clients are sent to other nodes."""
_AT_ONCE_S: Final = 0.1
"""Seconds that a request waits for a database that has been away for longer than that."""
_AWAY_AT_ONCE: Final = 200
_AWAY_PAUSE_S: Final = 0.1
"""How many channels are closed at a time, and the pause before the next: all their clients search, and ask another node."""


class Availability:
    """Looks whether the database is there, and what becomes of the clients.

    Args:
        store: The writer.
        feed: Knows when the database was seen last.
        nodes: This node among those that share the database; None with an embedded database.
        waits_s: Returns the seconds that a request waits for a lost database.
    """

    def __init__(
        self, store: Store, feed: Feed, nodes: Nodes | None, *, waits_s: Callable[[], float]
    ) -> None:
        self._store = store
        self._feed = feed
        self._nodes = nodes
        self._waits_s = waits_s
        self._was_able = True
        self._sending_away: asyncio.Task[None] | None = None
        self.clock: HostClock | None = None
        """This host's clock; None: it is believed."""
        self.server: Server | None = None
        """Has the clients; None until it serves."""
        self.without_database: frozenset[str] = frozenset()
        """Names of PVs that need no database."""

    def is_able(self) -> bool:
        """Whether this node can answer what only the database knows, and will in a moment too.

        With a wrong clock of its own it leaves that to other nodes. Alone it answers: who must revoke finds it.
        """
        if self.clock is not None and self.has_others() and self.clock.is_set():
            return False
        return self._feed.fresh_for_s() >= _SURE_S

    def unseen(self) -> str:
        """Return that what other nodes do has not been seen for too long, if that is so."""
        if self.server is None or self._feed.is_fresh():
            return ""
        return "what other nodes have done is not known, so no status is signed that they could have changed"

    def gives_up(self) -> bool:
        """Whether the database has been away for so long that it is not waited for any more."""
        return self._feed.age_s() >= _GIVES_UP_S

    def has_others(self) -> bool:
        """Whether other nodes lived when the database was seen last."""
        return self._nodes is not None and len(self._nodes.alive) > 1

    def look(self) -> None:
        """Send clients to other nodes while this one has no database, and say when it has it again."""
        able, server = self.is_able(), self.server
        if server is None or (able and self._was_able):
            return
        # Who asks now would wait for nothing.
        waits_s = self._waits_s()
        self._store.wait_s = min(waits_s, _AT_ONCE_S) if self.gives_up() else waits_s
        if able:
            server.change_count += 1
            if server._announcer is not None:
                server._announcer.hurry()
        elif (
            self.gives_up() and self._sending_away is None and not self._feed.is_fresh() and self.has_others()
        ):
            self._sending_away = asyncio.get_running_loop().create_task(self._send_away(server))
        self._was_able = able

    async def _send_away(self, server: Server) -> None:
        """Close the channels of PVs that need the database: the clients search, and find another node."""
        try:
            channels = [channel for channel in server.channels() if channel.name not in self.without_database]
            if channels:
                _log.warning(
                    "the database is lost, so %d channels are closed: their clients find another node",
                    len(channels),
                    extra={"event": "clients-sent-away"},
                )
            while channels and not self._feed.is_fresh():
                for channel in channels[-_AWAY_AT_ONCE:]:
                    channel.close()
                del channels[-_AWAY_AT_ONCE:]
                await asyncio.sleep(_AWAY_PAUSE_S)
        finally:
            self._sending_away = None

    def send_to_others(self, names: Container[str]) -> None:
        """Close the channels of PVs that this node leaves to others: the clients search, and find another node."""
        if self.server is not None:
            for channel in [channel for channel in self.server.channels() if channel.name in names]:
                channel.close()

    def stop(self) -> None:
        """Send nobody away any more."""
        if self._sending_away is not None:
            self._sending_away.cancel()
