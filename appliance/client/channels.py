"""All channels of a client: one for each name. An unused channel is kept for a while."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from appliance.client.channel import Channel, Finder
from appliance.client.end import ClientEnd, ServerAddress
from appliance.errors import ChannelClosedError

__all__ = ["Channels", "check_name"]

MAX_NAME: Final = 1300
"""Octets of the longest PV name that always fits a search datagram (`appliance.pva.search.MAX_DATAGRAM`)."""


class NameFinder(Finder, Protocol):
    """A search to which names can be added."""

    def add(self, name: str, server: ServerAddress | None = None) -> int:
        """Register ``name`` and return its search instance ID."""


class Channels:
    """All channels, by name and by search instance ID.

    Args:
        end: What the parts of this client share.
        finder: Finds servers for the channels.
    """

    def __init__(self, end: ClientEnd, finder: NameFinder) -> None:
        self._end = end
        self._finder = finder
        self._by_key: dict[tuple[str, ServerAddress | None], Channel] = {}
        self._by_instance: dict[int, Channel] = {}

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._by_key.values())

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, name: str, server: ServerAddress | None = None) -> Channel:
        """Return the channel of ``name``; the search starts with the first request.

        Args:
            name: The PV's name.
            server: The server that has the PV; no search is made.

        Raises:
            ChannelClosedError: No search can carry the name.
        """
        key = (name, server)
        channel = self._by_key.get(key)
        if channel is None:
            check_name(name)
            instance = self._finder.add(name, server)
            channel = Channel(self._end, self._finder, name, instance, server)
            self._by_key[key] = self._by_instance[instance] = channel
        return channel

    def by_instance(self, instance: int) -> Channel | None:
        """Return the channel with this search instance ID."""
        return self._by_instance.get(instance)

    def close_idle(self) -> None:
        """Close channels that were not used for a while."""
        before = self._end.now() - self._end.timings.idle_channel_s
        for key, channel in list(self._by_key.items()):
            if not channel.requests and channel.last_used < before:
                del self._by_key[key]
                self._by_instance.pop(channel.instance, None)
                channel.close()

    def give_back(self, name: str) -> None:
        """Close the channel of ``name`` now, if no request uses it."""
        key = (name, None)
        channel = self._by_key.get(key)
        if channel is not None and not channel.requests:
            del self._by_key[key]
            self._by_instance.pop(channel.instance, None)
            channel.close()

    def close(self, *, tell: bool) -> None:
        """Close all channels; see `Channel.close`."""
        for channel in list(self._by_key.values()):
            channel.close(tell=tell)
        self._by_key.clear()
        self._by_instance.clear()


def check_name(name: str) -> None:
    """Refuse a name that does not fit into a search; it would spoil the searches for other names.

    Raises:
        ChannelClosedError: The name is bad; the text gives the reason.
    """
    if not name:
        raise ChannelClosedError("the PV name is empty")
    try:
        size = len(name) if name.isascii() else len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise ChannelClosedError(
            f"the PV name {name!r:.80} cannot be encoded as UTF-8: {error.reason}"
        ) from None
    if size > MAX_NAME:
        raise ChannelClosedError(
            f"the PV name {name[:40]!r}... has {size} octets; a search datagram takes {MAX_NAME}"
        )
