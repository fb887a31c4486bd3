"""One PVA link of a record, as EPICS uses it: all answers come from memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from appliance.errors import ApplianceError
from appliance.ioc.dbcore.link_support import IN_LINK, LinkPlace, LinkReading
from appliance.ioc.links.channel import LinkChannel
from appliance.ioc.links.options import LinkOptions, Process, Severity
from appliance.ioc.links.places import Places
from appliance.ioc.links.values import dbf_of, from_dbr, to_dbr
from appliance.pvdata.types import ArrayType, ScalarType, StructType

__all__ = ["PvaLink"]

_INVALID: Final = 3


class PvaLink:
    """One link.

    Args:
        place: The record's field.
        options: What its text says.
        channel: The PV, which other links may share.
        closed: Called when EPICS removes the link.
    """

    __slots__ = ("_alarm", "_closed", "_places", "_stamp", "channel", "options", "place")

    def __init__(
        self, place: LinkPlace, options: LinkOptions, channel: LinkChannel, closed: Callable[[PvaLink], None]
    ) -> None:
        self.place = place
        self.options = options
        self.channel = channel
        self._closed = closed
        self._places: Places | None = None
        # Alarm and time of the latest read; EPICS asks for them afterwards.
        self._alarm: tuple[int, str] = (_INVALID, "")
        self._stamp = (0, 0, 0)

    @property
    def name(self) -> str:
        """Record and field."""
        return self.place.name

    @property
    def scans(self) -> bool:
        """Whether updates process the record."""
        return self.place.kind == IN_LINK and self.options.proc in (Process.CP, Process.CPP)

    @property
    def only_passive(self) -> bool:
        """Whether that is so only while the record's SCAN is Passive."""
        return self.options.proc is Process.CPP

    def _look(self) -> tuple[Places, list[Any]] | None:
        """Return the present value and where its parts are; None if the link has none."""
        channel = self.channel
        latest = channel.latest
        if latest is None or not channel.connected:
            return None
        places = self._places
        if places is None or places.kind is not latest.kind:
            places = self._places = Places(latest.kind, self.options.field)
        return places, latest.store

    @property
    def why_bad(self) -> str:
        """Why the link has no value although its PV is connected; empty if it has one."""
        found = self._look()
        return "" if found is None or found[0].has_value else found[0].why_not

    # -- LinkEnd: EPICS calls these with the record locked -----------------------------------------------------------

    def is_connected(self) -> bool:
        """Whether the PV is connected and has the field."""
        found = self._look()
        return found is not None and found[0].has_value

    def field_type(self) -> int | None:
        """Return the DBF code of the value."""
        found = self._look()
        if found is None or not found[0].has_value:
            return None
        kind = found[0].value_type
        if not isinstance(kind, (ScalarType, ArrayType, StructType)):
            # A union: its content tells.
            _, kind = found[0].value(found[1])
        return None if kind is None else dbf_of(kind)

    def elements(self) -> int | None:
        """Return the number of elements of the value."""
        found = self._look()
        if found is None or not found[0].has_value:
            return None
        value, _ = found[0].value(found[1])
        return len(value) if hasattr(value, "dtype") or type(value) is tuple else 1

    def read(self, dbr: int, most: int | None) -> LinkReading:
        """Read the value, and note alarm and time that belong to it."""
        options = self.options
        found = self._look()
        if found is None or not found[0].has_value:
            why = f"{self.place.field} Disconn" if found is None else found[0].why_not
            stamp = None
            if options.time and found is None:
                self._stamp = (*self.channel.lost_at, 0)
                stamp = self._stamp
            return LinkReading(None, 0, _INVALID, why, stamp)
        places, store = found
        value, kind = places.value(store)
        try:
            data, count = (b"", 0) if value is None or most == 0 else to_dbr(value, kind, dbr, most or 1)
        except ApplianceError as error:
            return LinkReading(None, 0, _INVALID, f"{self.place.field}: {error}")
        severity, message = self._alarm = places.alarm(store)
        self._stamp = places.stamp(store)
        wanted = options.sevr
        if wanted is Severity.NMS or (wanted is Severity.MSI and severity != _INVALID):
            severity = 0
        stamp = self._stamp if options.time and places.has_time else None
        return LinkReading(data, count, severity, message, stamp)

    def limits(self, names: tuple[str, ...]) -> list[float | None] | None:
        """Return limits."""
        found = self._look()
        if found is None:
            return None
        values = [found[0].beside(found[1], name) for name in names]
        return [float(value) if isinstance(value, (int, float)) else None for value in values]

    def precision(self) -> int | None:
        """Return the precision; 0 if the PV has none."""
        found = self._look()
        if found is None:
            return None
        value = found[0].beside(found[1], "display.precision")
        return max(-32768, min(value, 32767)) if isinstance(value, int) else 0

    def units(self) -> str | None:
        """Return the units; empty if the PV has none."""
        found = self._look()
        if found is None:
            return None
        value = found[0].beside(found[1], "display.units")
        return value if isinstance(value, str) else ""

    def alarm(self) -> tuple[int, str] | None:
        """Return severity and message of the latest read."""
        return None if self._look() is None else self._alarm

    def stamp(self) -> tuple[int, int, int] | None:
        """Return the time of the latest read."""
        return None if self._look() is None else self._stamp

    def put(self, dbr: int, data: bytes, count: int, *, wait: bool) -> bool:
        """Take a value."""
        return self.channel.write(self, from_dbr(dbr, data, count), wait=wait)

    def forward(self) -> str:
        """Process the PV."""
        return "" if self.channel.forward(self) else f"{self.place.field} Disconn"

    def close(self) -> None:
        """Forget the link."""
        self._closed(self)

    def __repr__(self) -> str:
        return f"<PvaLink {self.name} {self.options.pv}>"
