"""All PVA links of the IOC: EPICS opens them here, and the event loop connects them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from appliance.client.context import Context
from appliance.errors import ApplianceError
from appliance.ioc.dbcore import exists
from appliance.ioc.dbcore.link_support import LinkPlace, register_link_type
from appliance.ioc.dbcore.scanning import scan_once
from appliance.ioc.groups.source import GroupSource
from appliance.ioc.links.channel import ChannelKey, LinkChannel
from appliance.ioc.links.link import PvaLink
from appliance.ioc.links.local import LocalSource
from appliance.ioc.links.options import LinkOptions, parse_options
from appliance.ioc.links.remote import Opened, RemoteClient
from appliance.ioc.links.report import described, report
from appliance.ioc.links.worker import Worker
from appliance.ioc.record_source import RecordSource

__all__ = ["AllLinks"]

_log: Final = logging.getLogger(__name__)
_NOT_HERE: Final = "it is no record and no group of this IOC, and the link is local"


class AllLinks:
    """The links of type ``pva``; one per process, as EPICS' database."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[ChannelKey, LinkChannel] = {}
        self._worker = Worker()
        self.push = self._worker.push
        """Gives work to the worker."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: RemoteClient | None = None
        self._records: RecordSource | None = None
        self._groups: GroupSource | None = None

    def register(self) -> None:
        """Let EPICS read links of this type: after its definition is loaded, and before records are."""
        register_link_type("pva", self)

    # -- LinkType: EPICS calls these ---------------------------------------------------------------------------------

    def parse(self, said: Any) -> LinkOptions:
        """Return the options of a link.

        Raises:
            PVDataError: They are wrong.
        """
        return parse_options(said)

    def open(self, place: LinkPlace, options: LinkOptions) -> PvaLink:
        """Open a link; its PV is connected when the IOC runs."""
        key = ChannelKey(options.pv, options.queue_size, options.pipeline, options.local)
        with self._lock:
            channel = self._channels.get(key)
            is_new = channel is None
            if channel is None:
                channel = self._channels[key] = LinkChannel(key, self)
            link = PvaLink(place, options, channel, self._closed)
            scans_now = channel.add(link)
        if is_new:
            self.on_loop(lambda: self._connect(channel))
        if scans_now:
            scan_once(place.record)
        return link

    def _closed(self, link: PvaLink) -> None:
        channel = link.channel
        with self._lock:
            if not channel.remove(link):
                return
            self._channels.pop(channel.key, None)
        self.on_loop(lambda: self._disconnect(channel))

    def describe(self, options: LinkOptions, end: Any, level: int) -> str:
        """Return a line about a link, for ``dbjlr``."""
        if not isinstance(end, PvaLink):
            return described(options, None, level)
        return described(options, end.channel, level, end.why_bad)

    # -- Owner: any thread -------------------------------------------------------------------------------------------

    def on_loop(self, function: Callable[[], None]) -> None:
        """Call a function on the event loop; before the IOC runs and after its end, nothing happens."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(function)
            except RuntimeError:
                # The loop is closed: the IOC ends.
                self._loop = None

    # -- life: on the event loop -------------------------------------------------------------------------------------

    def start(
        self,
        records: RecordSource,
        groups: GroupSource | None,
        opener: Callable[[], AbstractAsyncContextManager[Context]],
    ) -> None:
        """Connect all links: the database runs.

        Args:
            records: The records of this IOC.
            groups: Its groups.
            opener: Opens the client for PVs of other servers.
        """
        self._records, self._groups = records, groups
        self._client = RemoteClient(opener)
        self._worker.start()
        with self._lock:
            # From now on, links that EPICS opens are connected at once.
            self._loop = asyncio.get_running_loop()
            channels = list(self._channels.values())
        for channel in channels:
            self._connect(channel)

    async def open_another(self, opener: Callable[[], AbstractAsyncContextManager[Context]]) -> Opened | None:
        """Open a client with other settings, for :meth:`use`; None while no link needs one.

        Raises:
            ApplianceError: It cannot be opened; all stays as it is.
        """
        return None if self._client is None else await self._client.open_another(opener)

    async def use(
        self, opener: Callable[[], AbstractAsyncContextManager[Context]], opened: Opened | None
    ) -> None:
        """Use a client with other settings from now on; each link to another server connects again, once."""
        if self._client is not None:
            await self._client.use(opener, opened)

    def is_local(self, name: str) -> bool:
        """Whether a name is that of a record's field or a group of this IOC."""
        return exists(name) or (self._groups is not None and self._groups.find(name) is not None)

    def _connect(self, channel: LinkChannel) -> None:
        name = channel.key.name
        if channel.source is not None or self._client is None or not channel.links():
            return
        if not self.is_local(name):
            if channel.key.local:
                channel.lost(_NOT_HERE)
                _log.error("PVA link %s: %s: %s", _names(channel), name, _NOT_HERE)
            else:
                self._client.connect(channel)
            return
        try:
            self._connect_here(channel)
        except ApplianceError as error:
            channel.lost(str(error))
            _log.error("PVA link %s: %s: %s", _names(channel), name, error)

    def _connect_here(self, channel: LinkChannel) -> None:
        name = channel.key.name
        pv = None if self._groups is None else self._groups.find(name)
        if pv is None:
            assert self._records is not None
            found = self._records.hold(name)
            source = LocalSource(channel, found)
        else:
            source = LocalSource(channel, pv)
        channel.source = source
        source.start()

    def _disconnect(self, channel: LinkChannel) -> None:
        if self._client is not None:
            self._client.forget(channel)
        channel.close()

    async def close(self) -> None:
        """Disconnect all links; EPICS may still use them, and finds them not connected."""
        with self._lock:
            channels = list(self._channels.values())
        for channel in channels:
            channel.close()
        if self._client is not None:
            await self._client.close()
        self._loop = None
        await self._worker.close()

    # -- reports -----------------------------------------------------------------------------------------------------

    def lines(self, pattern: str, level: int) -> list[str]:
        """Return the lines of ``dbpvar``; on the event loop."""
        with self._lock:
            channels = list(self._channels.values())
        client = self._client
        return report(
            channels, pattern, level, lambda channel: channel.why if client is None else client.why(channel)
        )

    def not_here(self, is_group: Callable[[str], bool]) -> list[tuple[str, str, str]]:
        """Return record, field and PV of the links that are local and lead to nothing here."""
        with self._lock:
            channels = list(self._channels.values())
        return [
            (link.place.record_name, link.place.field, channel.key.name)
            for channel in channels
            if channel.key.local and not exists(channel.key.name) and not is_group(channel.key.name)
            for link in channel.links()
        ]


def _names(channel: LinkChannel) -> str:
    return ", ".join(link.name for link in channel.links())[:200]
