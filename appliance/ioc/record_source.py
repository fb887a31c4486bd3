"""All records of the database as a source of PVs."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.ioc import dbcore
from appliance.ioc.access import FieldAccess
from appliance.ioc.event_stream import EventStream
from appliance.ioc.putlog import PutLog
from appliance.ioc.record import Record
from appliance.ioc.record_pv import RecordPV
from appliance.pva.credentials import Credentials
from appliance.server.source import Source

__all__ = ["RecordSource"]


class RecordSource(Source):
    """All records of the database, their aliases and fields.

    Args:
        stream: the source of their events.
        access: decides about rights, and follows the ASG of records that have clients.
        put_log: logs puts.

    """

    def __init__(self, stream: EventStream, access: FieldAccess, put_log: PutLog) -> None:
        self._stream = stream
        self._access = access
        self._put_log = put_log
        self._pvs: dict[str, RecordPV] = {}
        self._names: list[str] = []
        """The PVs that clients have open, by the name that they use."""

    def claims(self, name: str, host: str) -> bool:
        """Whether there is such a record and field."""
        return name in self._pvs or dbcore.exists(name)

    def open(self, name: str, peer: Credentials) -> RecordPV | None:
        """Return the PV of a name.

        Raises:
            OperationError: EPICS does not understand a filter in the name.
        """
        return self.hold(name) if name in self._pvs or dbcore.exists(name) else None

    def hold(self, name: str) -> RecordPV:
        """Return the PV of a name for one more user, who must release it.

        Raises:
            OperationError: There is no such record or field, or EPICS does not understand a filter in the name.
        """
        pv = self._pvs.get(name)
        if pv is None:
            pv = self._pvs[name] = RecordPV(
                Record(name), self._stream, self._access, self._put_log, self._forget
            )
            try:
                self._access.watch(pv.record.channel.record)
            except BaseException:
                pv.close()
                raise
        pv.hold()
        return pv

    def find(self, name: str) -> RecordPV | None:
        """Return a PV that clients have open."""
        return self._pvs.get(name)

    def _forget(self, pv: RecordPV) -> None:
        """Forget a PV that is being closed."""
        channel = pv.record.channel
        if self._pvs.get(channel.name) is pv:
            del self._pvs[channel.name]
            self._access.unwatch(channel.record)

    def names(self) -> Iterable[str]:
        """Return the names of all records and aliases."""
        count = dbcore.record_count()
        if count != len(self._names):
            # Walking through a large database takes long, and nobody is served meanwhile. Records never come or go while the IOC
            # runs, but aliases can come. Sorted names are quickly sorted again.
            self._names = sorted(dbcore.record_names())
        return self._names

    def close(self) -> None:
        """Close all PVs that are still open; the server must have stopped."""
        for pv in list(self._pvs.values()):
            pv.close()
