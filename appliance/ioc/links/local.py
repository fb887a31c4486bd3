"""PVs of this IOC for its own links: read and written in the database, without the network and without access security."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from appliance.errors import ApplianceError, OperationError, internal_error
from appliance.ioc import dbcore
from appliance.ioc.behind import Pumped, Subscriber
from appliance.ioc.feed import DEFAULT_EVENTS
from appliance.ioc.groups.group_pv import GroupPV
from appliance.ioc.links.batch import Batch
from appliance.ioc.links.channel import LinkChannel
from appliance.ioc.record_pv import RecordPV
from appliance.pva.selection import leaves
from appliance.pvdata.primitives import Buffer
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value
from appliance.server.operation import Update

__all__ = ["LocalSource"]

_log: Final = logging.getLogger(__name__)


class _Reader:
    """A subscriber beside the clients. It takes each update at once: it is never behind, and is its own connection."""

    size = 0
    keeps = has_room = may_send = True

    def __init__(self, channel: LinkChannel) -> None:
        self._channel = channel
        self.state: Any = DEFAULT_EVENTS
        self.running = True
        self.queue: tuple[Update, ...] = ()
        self.queue_size = channel.key.queue_size
        self.on_room: Callable[[], None] | None = None
        self.channel = self.owner = self.outbox = self

    def dirty(self, waiting: Pumped) -> None:
        """Pump at once: there is nothing to wait for."""
        asyncio.get_running_loop().call_soon(waiting.pump)

    def pump(self) -> bool:
        """Have nothing to send."""
        return False

    def broken(self, error: Exception) -> None:
        """Take the PV for lost: a defect has stopped its updates."""
        _log.error("the link %s: internal error", self._channel.key.name, exc_info=error)
        self._channel.lost(internal_error("the log"))

    def sender(self, _bits: int, _code: str, _overrun: int = 0) -> None:
        """Give no short way: there are no octets."""

    def send_octets(self, _bits: int, _body: Buffer, *, big: bool) -> bool:
        """Take no octets."""
        return False

    def post(self, update: Update) -> None:
        """Take an update."""
        self._channel.deliver(update.kind, update.store)


class LocalSource:
    """A record or group of this IOC.

    Args:
        channel: Its links.
        pv: What serves it to clients. A record must be held for this source, which releases it.

    Raises:
        ApplianceError: EPICS cannot read it.
    """

    def __init__(self, channel: LinkChannel, pv: RecordPV | GroupPV) -> None:
        self._channel = channel
        self._pv = pv
        self._reader: Subscriber = _Reader(channel)
        self._waiting: dict[dbcore.BlockingPut, None] = {}

    def start(self) -> None:
        """Begin the updates; the first comes at once.

        Raises:
            ApplianceError: EPICS cannot read it.
        """
        self._pv.flow(self._reader)

    def close(self) -> None:
        """End the updates."""
        self.abandon()
        self._pv.unsubscribe(self._reader)
        if isinstance(self._pv, RecordPV):
            self._pv.release()

    def room(self) -> None:
        """Nothing waits here."""

    def abandon(self) -> None:
        """Wait no more for the processing of a record."""
        waiting, self._waiting = self._waiting, {}
        for put in waiting:
            put.cancel()

    def put(self, batch: Batch) -> None:
        """Write and process."""
        pv = self._pv
        try:
            faults = self._put_record(pv, batch) if isinstance(pv, RecordPV) else _put_group(pv, batch)
        except ApplianceError as error:
            self._channel.put_done(batch, str(error))
            return
        if faults is not None:
            self._channel.put_done(batch, "", faults=faults)

    def _put_record(self, pv: RecordPV, batch: Batch) -> dict[Any, str] | None:
        """Write to a record; return the faults, or None if the end of the processing is waited for."""
        record, process = pv.record, batch.process
        mapping, channel = record.mapping, record.channel
        value = _present(mapping.type, batch, lambda: record.read()[0])
        faults = batch.write(value)
        has_value = bool(leaves(mapping.type, value.changed) & mapping.value_bits)
        new = value.store[mapping.value]
        if batch.waiting and process is not False:
            self._wait(channel, new if has_value else None, batch, faults)
            return None
        if has_value:
            channel.put(new, process)
        elif process is not False:
            if channel.put_disabled:
                raise OperationError(f"{channel.record} refuses puts: its field DISP is set")
            with channel.locked():
                channel.process_locked(process=True)
        return faults

    def _wait(self, channel: dbcore.DBChannel, new: Any, batch: Batch, faults: dict[Any, str]) -> None:
        loop = asyncio.get_running_loop()
        began: list[dbcore.BlockingPut] = []

        def finish(error: str | None) -> None:
            if began and began[0] in self._waiting:
                del self._waiting[began[0]]
                self._channel.put_done(batch, error or "", faults=faults)

        def done(error: str | None) -> None:
            loop.call_soon_threadsafe(finish, error)

        if new is None:
            put = dbcore.put_notify(channel, done)
        else:
            put = dbcore.put_notify(channel, done, new, process=batch.process)
        began.append(put)
        self._waiting[put] = None


def _present(kind: StructType, batch: Batch, read: Any) -> Value:
    """Return a value of a type without marks; it holds the present value if the batch needs that."""
    return Value.from_store(kind, read()) if batch.needs_present(kind) else Value(kind)


def _put_group(pv: GroupPV, batch: Batch) -> dict[Any, str]:
    """Write the members of a group together, in the order of their ``+putorder``."""
    group = pv.group
    value = _present(group.type, batch, lambda: group.read(atomic=group.atomic)[0])
    faults = batch.write(value)
    bits = leaves(group.type, value.changed)
    with group.locked():
        for member in group.members:
            channel = member.channel
            has_value, new = member.written(value, bits)
            if channel is None or not (has_value or member.kind == "proc"):
                continue
            if has_value and member.config.put_order is None:
                raise OperationError(f"{member.name}: has no +putorder and cannot be written")
            if has_value:
                channel.put_locked(new)
            process = batch.process
            channel.process_locked(None if member.kind == "proc" and process is False else process)
    return faults
