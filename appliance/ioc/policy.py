"""The access policy of the IOC's server: it finds the PV of a name and asks it for a client's rights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from appliance.ioc.access import FieldAccess
from appliance.ioc.dbcore import DBChannel
from appliance.pva.credentials import Credentials
from appliance.server.access import ALL_RIGHTS, Rights

__all__ = ["HasChannels", "IocPolicy", "OpenPVs"]


class HasChannels(Protocol):
    """A PV that shows fields of records."""

    def channels(self) -> Sequence[DBChannel]:
        """Return the fields that the PV shows."""

    def rights(self, peer: Credentials) -> Rights:
        """Return a client's rights to the PV."""


class OpenPVs(Protocol):
    """A source of such PVs."""

    def find(self, name: str) -> HasChannels | None:
        """Return the PV that is open under a name."""


class IocPolicy:
    """The AccessPolicy of the IOC's server."""

    def __init__(self, access: FieldAccess) -> None:
        self._access = access
        self._sources: tuple[OpenPVs, ...] = ()

    def attach(self, *sources: OpenPVs) -> None:
        """Use these sources; if several have a name, the first one counts."""
        self._sources = sources

    def _find(self, name: str) -> HasChannels | None:
        for source in self._sources:
            if (pv := source.find(name)) is not None:
                return pv
        return None

    def rights(self, name: str, peer: Credentials) -> Rights:
        """Return a client's rights to an open channel."""
        if not self._access.is_restricted:
            return ALL_RIGHTS
        pv = self._find(name)
        # Otherwise it is one of the server's own PVs, which list names and show no record.
        return pv.rights(peer) if pv is not None else Rights(read=True, write=False, rpc=True)

    def concerns(self, name: str, is_concerned: Callable[[DBChannel], bool]) -> bool:
        """Whether one of the PV's fields is concerned."""
        pv = self._find(name)
        return pv is not None and any(map(is_concerned, pv.channels()))
