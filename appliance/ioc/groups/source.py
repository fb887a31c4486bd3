"""All groups of the IOC as a source of PVs."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.ioc.access import FieldAccess
from appliance.ioc.event_stream import EventStream
from appliance.ioc.groups.group import RecordGroup
from appliance.ioc.groups.group_pv import GroupPV
from appliance.ioc.putlog import PutLog
from appliance.pva.credentials import Credentials
from appliance.server.source import Source

__all__ = ["GroupSource"]


class GroupSource(Source):
    """All groups as a source of PVs.

    Args:
        groups: the groups; :meth:`close` closes them.
        stream: the source of the events of their records.
        access: decides about the rights to their members.
        put_log: logs puts.

    """

    def __init__(
        self, groups: Iterable[RecordGroup], stream: EventStream, access: FieldAccess, put_log: PutLog
    ) -> None:
        self._pvs = {group.name: GroupPV(group, stream, access, put_log) for group in groups}

    def claims(self, name: str, host: str) -> bool:
        """Whether there is such a group."""
        return name in self._pvs

    def open(self, name: str, peer: Credentials) -> GroupPV | None:
        """Give the group."""
        return self._pvs.get(name)

    def find(self, name: str) -> GroupPV | None:
        """Give the group."""
        return self._pvs.get(name)

    def groups(self) -> Iterable[RecordGroup]:
        """Return all groups."""
        return [pv.group for pv in self._pvs.values()]

    def names(self) -> Iterable[str]:
        """Return the names of all groups."""
        return self._pvs

    def close(self) -> None:
        """Close all channels; the server must have stopped."""
        for pv in self._pvs.values():
            pv.close()
        self._pvs.clear()
