"""One PVA link of a record, as EPICS uses it: all answers come from memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.errors import ApplianceError
from appliance.ioc.dbcore.link_support import IN_LINK, LinkPlace, LinkReading, text
from appliance.ioc.links.channel import LinkChannel
from appliance.ioc.links.latest import Latest, NumberPlan, number_plan
from appliance.ioc.links.options import LinkOptions, Process, Severity
from appliance.ioc.links.places import Places
from appliance.ioc.links.values import CHARS, dbf_of, from_dbr, long_text, number_to_dbr, to_dbr
from appliance.pvdata.types import ArrayType, ScalarType, StructType

__all__ = ["PvaLink"]

_INVALID: Final = 3
_CHAR = 1
_STRING: Final = 0
_NO_SEVERITY: Final = bytes(4)
_LONG_TEXT: Final = frozenset(("lsi", "lso", "printf"))
"""Record types that read and write texts as characters if the link says that it has characters (dbGetLinkLS, dbPutLinkLS)."""


class PvaLink:
    """One link.

    Args:
        place: The record's field.
        options: What its text says.
        channel: The PV, which other links may share.
        closed: Called when EPICS removes the link.
    """

    __slots__ = ("_closed", "_is_lost", "_places", "_plan", "_seen", "channel", "options", "place")

    def __init__(
        self, place: LinkPlace, options: LinkOptions, channel: LinkChannel, closed: Callable[[PvaLink], None]
    ) -> None:
        self.place = place
        self.options = options
        self.channel = channel
        self._closed = closed
        self._places: Places | None = None
        self._plan: NumberPlan | None = None
        self._seen: Latest | None = None
        """What was read the last time: EPICS asks for its alarm and time afterwards."""
        self._is_lost = False
        """Whether there was nothing then, so that the time is that of the loss of the connection."""

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

    def _look(self) -> tuple[Places, Latest] | None:
        """Return the present value and where its parts are; None if the link has none."""
        channel = self.channel
        latest = channel.latest
        if latest is None or not channel.connected:
            return None
        return self._places_of(latest), latest

    def _places_of(self, latest: Latest) -> Places:
        places = self._places
        if places is None or places.kind is not latest.kind:
            places = self._places = Places(latest.kind, self.options.field)
        return places

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
        if self.place.record_type in _LONG_TEXT and isinstance(found[0].value(found[1].store)[0], str):
            return _CHAR
        kind = found[0].value_type
        if not isinstance(kind, (ScalarType, ArrayType, StructType)):
            # A union: its content tells.
            _, kind = found[0].value(found[1].store)
        return None if kind is None else dbf_of(kind)

    def elements(self) -> int | None:
        """Return the number of elements of the value."""
        found = self._look()
        if found is None or not found[0].has_value:
            return None
        value, _ = found[0].value(found[1].store)
        return len(value) if hasattr(value, "dtype") or type(value) is tuple else 1

    def read(self, dbr: int, most: int | None) -> LinkReading:
        """Read the value, and note alarm and time that belong to it."""
        options = self.options
        found = self._look()
        if found is None or not found[0].has_value:
            why = f"{self.place.field} Disconn" if found is None else found[0].why_not
            stamp = None
            if options.time and found is None:
                self._is_lost = True
                stamp = (*self.channel.lost_at, 0)
            return LinkReading(None, 0, _INVALID, why, stamp)
        places, latest = found
        store = latest.store
        value, kind = places.value(store)
        if dbr in CHARS and self.place.record_type in _LONG_TEXT:
            value = long_text(value)
        try:
            data, count = (b"", 0) if value is None or most == 0 else to_dbr(value, kind, dbr, most or 1)
        except ApplianceError as error:
            return LinkReading(None, 0, _INVALID, f"{self.place.field}: {error}")
        self._seen, self._is_lost = latest, False
        severity, message = places.alarm(store)
        wanted = options.sevr
        if wanted is Severity.NMS or (wanted is Severity.MSI and severity != _INVALID):
            severity = 0
        stamp = places.stamp(store) if options.time and places.has_time else None
        return LinkReading(data, count, severity, message, stamp)

    def read_number(self, dbr: int) -> bytes | None:
        """Read one plain number from the octets of the latest update."""
        channel = self.channel
        latest = channel.latest
        if latest is None or not channel.connected:
            return None
        plan = self._plan
        if plan is None or plan[0] is not latest.layout or plan[1] != dbr:
            plan = self._plan_number(latest, dbr)
            if plan is None:
                return None
        _, _, at, after, severity_at, severity, number = plan
        body = latest.body
        if at < 0:
            return None
        if severity_at >= 0:
            if body[severity_at : severity_at + 4] != _NO_SEVERITY:
                return None
        elif severity >= 0 and latest.base[severity]:
            return None
        try:
            found = body[at:after] if number is None else number_to_dbr(number.unpack_from(body, at)[0], dbr)
        except ApplianceError:
            # The other way to read it says what is wrong.
            return None
        self._seen, self._is_lost = latest, False
        return found

    def _plan_number(self, latest: Latest, dbr: int) -> NumberPlan | None:
        layout = latest.layout
        if layout is None:
            return None
        options = self.options
        places = self._places_of(latest)
        value = -1 if options.time or dbr == _STRING else places.number
        severity = -1 if options.sevr is Severity.NMS else places.severity
        plan = self._plan = number_plan(layout, dbr, value, severity)
        return plan

    def limits(self, names: tuple[str, ...]) -> list[float | None] | None:
        """Return limits."""
        found = self._look()
        if found is None:
            return None
        values = [found[0].beside(found[1].store, name) for name in names]
        return [float(value) if isinstance(value, (int, float)) else None for value in values]

    def precision(self) -> int | None:
        """Return the precision; 0 if the PV has none."""
        found = self._look()
        if found is None:
            return None
        value = found[0].beside(found[1].store, "display.precision")
        return max(-32768, min(value, 32767)) if isinstance(value, int) else 0

    def units(self) -> str | None:
        """Return the units; empty if the PV has none."""
        found = self._look()
        if found is None:
            return None
        value = found[0].beside(found[1].store, "display.units")
        return value if isinstance(value, str) else ""

    def alarm(self) -> tuple[int, str] | None:
        """Return severity and message of the latest read."""
        if self._look() is None:
            return None
        seen = self._seen
        return (_INVALID, "") if seen is None else self._places_of(seen).alarm(seen.store)

    def stamp(self) -> tuple[int, int, int] | None:
        """Return the time of the latest read."""
        if self._look() is None:
            return None
        if self._is_lost:
            return (*self.channel.lost_at, 0)
        seen = self._seen
        return (0, 0, 0) if seen is None else self._places_of(seen).stamp(seen.store)

    def put(self, dbr: int, data: bytes, count: int, *, wait: bool) -> bool:
        """Take a value."""
        if dbr in CHARS and self.place.record_type in _LONG_TEXT:
            return self.channel.write(self, text(data.partition(b"\0")[0]), wait=wait)
        return self.channel.write(self, from_dbr(dbr, data, count), wait=wait)

    def forward(self) -> str:
        """Process the PV."""
        return self.channel.unanswered if self.channel.forward(self) else f"{self.place.field} Disconn"

    def close(self) -> None:
        """Forget the link."""
        self._closed(self)

    def __repr__(self) -> str:
        return f"<PvaLink {self.name} {self.options.pv}>"
