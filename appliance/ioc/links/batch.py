"""One PUT for the links of a PV that have something to write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from appliance.errors import ApplianceError, PVDataError
from appliance.ioc.links.options import LinkOptions, Process
from appliance.ioc.links.places import Places
from appliance.ioc.links.values import fit, is_enum
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value

__all__ = ["Batch", "Writer", "process_mode"]


class Writer(Protocol):
    """A link that writes."""

    @property
    def options(self) -> LinkOptions:
        """Its options."""

    @property
    def name(self) -> str:
        """Record and field of the link, for messages."""


def process_mode(links: Iterable[LinkOptions], *, is_forward: bool) -> bool | None:
    """Return whether the target is processed: True always, False never, None as the server likes.

    One PUT has one answer to this for all of its fields. A link that wants processing wins.
    """
    asked = {options.proc for options in links}
    if is_forward or asked & {Process.PP, Process.CP, Process.CPP}:
        return True
    return False if Process.NPP in asked else None


class Batch(NamedTuple):
    """What one PUT does."""

    values: dict[Any, Any]
    """What each link writes, as :func:`.values.from_dbr` makes it."""
    is_forward: bool
    """Whether a forward link is among them, which only processes."""
    waiting: frozenset[Any]
    """The links whose records wait until it is done."""

    @property
    def process(self) -> bool | None:
        """Whether the target is processed; see :func:`process_mode`."""
        return process_mode((link.options for link in self.values), is_forward=self.is_forward)

    @property
    def request(self) -> str:
        """The pvRequest."""
        process = {True: "true", False: "false", None: "passive"}[self.process]
        return f"record[block={'true' if self.waiting else 'false'},process={process}]"

    def needs_present(self, kind: StructType) -> bool:
        """Whether the present value must be read first: only it has the choices of an enumeration."""
        for link, value in self.values.items():
            target = Places(kind, link.options.field).target
            if target is not None and is_enum(target[1]) and isinstance(value, str):
                return True
        return False

    def write(self, value: Value) -> dict[Any, str]:
        """Write into a value of the PV's type; return the links that could not, and why.

        Raises:
            PVDataError: Nothing is left to be written.
        """
        faults: dict[Any, str] = {}
        kind = value.type
        assert isinstance(kind, StructType)
        for link, new in self.values.items():
            try:
                places = Places(kind, link.options.field)
                target = places.target
                if target is None:
                    raise PVDataError(places.why_not)
                value[target[0]] = fit(target[1], new)
            except ApplianceError as error:
                faults[link] = str(error)
        if faults and len(faults) == len(self.values) and not self.is_forward:
            raise PVDataError("; ".join(dict.fromkeys(faults.values())))
        return faults
