"""A link type in Python: the tables ``jlif`` and ``lset`` with which EPICS Base reads and uses JSON links (dbJLink.h, dbLink.h).

EPICS calls all of these functions with the link's record locked, on any thread. They may only look at memory: whatever takes time
belongs to another thread, or scan threads would wait for it. An exception never reaches C; the link then counts as not connected.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_double, c_int, c_long, c_longlong, c_short, c_size_t, c_uint, c_void_p
from typing import Any, Final, NamedTuple, Protocol

from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import ApplianceError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.boot import IocState, ioc_state, keep, load_definition_text
from appliance.ioc.dbcore.dbr import ITEM_SIZES
from appliance.ioc.dbcore.output import shell_print
from appliance.ioc.dbcore.records import common_place, record_name_of, record_type_of
from appliance.ioc.dbcore.streams import STDERR, print_to

__all__ = [
    "IN_LINK",
    "MAX_STRING_SIZE",
    "NUMPY_CODES",
    "OUT_LINK",
    "LinkEnd",
    "LinkPlace",
    "LinkReading",
    "LinkType",
    "complete_put",
    "cut",
    "declaration",
    "raw",
    "register_link_type",
    "text",
]

_log: Final = logging.getLogger(__name__)

MAX_STRING_SIZE: Final = _c.MAX_STRING_SIZE
NUMPY_CODES: Final = _c.NUMPY_CODES
cut, raw, text = _c.cut, _c.raw, _c.text
IN_LINK: Final = _c.DBF_INLINK
OUT_LINK: Final = _c.DBF_OUTLINK
_LINK_ALARM, _INVALID = 14, 3
_STOP, _CONTINUE = 0, 1
_FAILED: Final = -1
_DECLARED_AS: Final = "lnkConstIf"
"""A table that is in the library: EPICS looks the declared name up before it takes our table instead."""


class LinkPlace(NamedTuple):
    """The link field of a record."""

    record: int
    """Address of the record (``dbCommon``)."""
    link: int
    """Address of the link (``struct link``), which lasts as long as the record."""
    record_name: str
    field: str
    kind: int
    """INLINK, OUTLINK or FWDLINK."""
    record_type: str = ""

    @property
    def name(self) -> str:
        """Record and field."""
        return f"{self.record_name}.{self.field}"


class LinkReading(NamedTuple):
    """The answer to a read of a link."""

    data: Any
    """The octets for EPICS; None if there is no value now."""
    elements: int = 0
    severity: int = 0
    """The severity that the record gets; 0 for none."""
    message: str = ""
    stamp: tuple[int, int, int] | None = None
    """Seconds since 1970, nanoseconds and tag for the record; None leaves its own."""


class LinkEnd(Protocol):
    """One open link, as EPICS uses it."""

    def is_connected(self) -> bool:
        """Whether it can be read or written now."""

    def field_type(self) -> int | None:
        """Return the DBF code of its value; None if it is not connected."""

    def elements(self) -> int | None:
        """Return the number of elements of its value; None if it is not connected."""

    def read(self, dbr: int, most: int | None) -> LinkReading:
        """Read up to ``most`` elements; None means one, whose place must be filled."""

    def read_number(self, dbr: int) -> bytes | None:
        """Read one plain number, the short way.

        Returns:
            Its octets; None if it must be read in the long way, for instance because there is a severity or a time for the record.
        """

    def limits(self, names: tuple[str, ...]) -> list[float | None] | None:
        """Return limits by their dotted paths; None if it is not connected."""

    def precision(self) -> int | None:
        """Return the precision; None if it is not connected."""

    def units(self) -> str | None:
        """Return the units; None if it is not connected."""

    def alarm(self) -> tuple[int, str] | None:
        """Return severity and message of the latest read; None if it is not connected."""

    def stamp(self) -> tuple[int, int, int] | None:
        """Return seconds since 1970, nanoseconds and tag of the latest read; None if it is not connected."""

    def put(self, dbr: int, data: bytes, count: int, *, wait: bool) -> bool:
        """Take a value; return whether it will be written. With ``wait``, :func:`complete_put` must follow."""

    def forward(self) -> str:
        """Process the target; return why that is impossible, or an empty text."""

    def close(self) -> None:
        """Forget the link."""


class LinkType(Protocol):
    """What a link type does with the text of links."""

    def parse(self, said: Any) -> Any:
        """Return the options of a link.

        Args:
            said: a text, or the keys with their values in the order of the link's text.

        Raises:
            ApplianceError: they are wrong; the link is refused with this sentence.
        """

    def open(self, place: LinkPlace, options: Any) -> LinkEnd:
        """Open a link."""

    def describe(self, options: Any, end: LinkEnd | None, level: int) -> str:
        """Return a line for ``dbjlr``."""


# -- the structures of C ---------------------------------------------------------------------------------------------


class _JLink(ctypes.Structure):
    """dbJLink.h: ``struct jlink``."""

    _fields_ = (("pif", c_void_p), ("parent", c_void_p), ("parseDepth", c_int), ("debug", c_uint, 1))


class _Link(ctypes.Structure):
    """link.h: ``struct link`` of a JSON link."""

    _fields_ = (
        ("precord", c_void_p),
        ("type", c_short),
        ("flags", ctypes.c_ushort),
        ("lset", c_void_p),
        ("text", c_void_p),
        ("string", c_void_p),
        ("jlink", c_void_p),
    )


class _Stamp(ctypes.Structure):
    """epicsTime.h: ``epicsTimeStamp``."""

    _fields_ = (("seconds", ctypes.c_uint32), ("nanoseconds", ctypes.c_uint32))


_Doubles = POINTER(c_double)
_ENUM16 = POINTER(ctypes.c_ushort)
_CONTROL: Final = ("control.limitLow", "control.limitHigh")
_DISPLAY: Final = ("display.limitLow", "display.limitHigh")
_ALARM: Final = (
    "valueAlarm.lowAlarmLimit",
    "valueAlarm.lowWarningLimit",
    "valueAlarm.highWarningLimit",
    "valueAlarm.highAlarmLimit",
)


def _format(text: str) -> bytes:
    """Return a text as a format of C without any argument."""
    return _c.raw(text.partition("\0")[0].replace("%", "%%"))


class _Text:
    """A link while its text is parsed, and afterwards."""

    __slots__ = ("end", "key", "kind", "link", "memory", "options", "said")

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.memory = _JLink()
        self.key = ""
        self.said: list[tuple[str, Any]] = []
        self.options: Any = None
        self.end: LinkEnd | None = None
        self.link = 0
        """Address of the open link."""


class _Numbers:
    """Where EPICS wanted the number of a link the last time: a record mostly asks for it in the same place."""

    __slots__ = ("read", "size", "target", "view")

    def __init__(self, end: LinkEnd) -> None:
        self.read = end.read_number
        self.target = self.size = 0
        self.view: memoryview | None = None

    def write(self, target: int, data: bytes) -> None:
        """Write a number to a place of EPICS."""
        size = len(data)
        if target != self.target or size != self.size:
            self.target, self.size, self.view = target, size, None
            ctypes.memmove(target, data, size)
            return
        view = self.view
        if view is None:
            # Twice in the same place: from now on no call is needed.
            view = self.view = memoryview((ctypes.c_char * size).from_address(target)).cast("B")
        view[:] = data


class _Functions:
    """The functions of one link type that EPICS calls."""

    def __init__(self, name: str, link_type: LinkType) -> None:
        self.name = name
        self.type = link_type
        self.links: dict[int, _Text] = {}
        """All links that exist, by the address that EPICS knows."""
        self.ends: dict[int, LinkEnd] = {}
        """All open links, by the address of the ``struct link``."""
        self._of = self.ends.get
        self.numbers: dict[int, _Numbers] = {}
        """The same links."""
        self.lset = _Lset(isConstant=0, isVolatile=1)

    # -- the text of a link ----------------------------------------------------------------------------------------

    def allocate(self, kind: int) -> int:
        link = _Text(kind)
        address = ctypes.addressof(link.memory)
        self.links[address] = link
        return address

    def free(self, address: int) -> None:
        link = self.links.pop(address, None)
        if link is not None and link.end is not None:
            self.ends.pop(link.link, None)
            self.numbers.pop(link.link, None)
            link.end.close()

    def _refuse(self, why: str) -> int:
        text = f"{self.name} link: {why}"
        if ioc_state() is IocState.VOID:
            # In the parser's own stream, so that its complaint about the field follows in the next line.
            print_to(STDERR, text.partition("\0")[0] + "\n")
        else:
            _c.errlogPrintf(_format(text) + b"\n")
        return _STOP

    def _finish(self, link: _Text, said: Any) -> int:
        try:
            link.options = self.type.parse(said)
        except ApplianceError as error:
            return self._refuse(str(error))
        return _CONTINUE

    def _value(self, address: int, value: Any) -> int:
        link = self.links[address]
        if link.memory.parseDepth == 0:
            return self._finish(link, value)
        link.said.append((link.key, value))
        return _CONTINUE

    def take_null(self, address: int) -> int:
        return self._value(address, None)

    def take_boolean(self, address: int, value: int) -> int:
        return self._value(address, bool(value))

    def take_number(self, address: int, value: int) -> int:
        return self._value(address, value)

    def take_double(self, address: int, value: float) -> int:
        return self._value(address, value)

    def take_text(self, address: int, text: int, length: int) -> int:
        return self._value(address, _c.text(ctypes.string_at(text, length)) if length else "")

    def start_map(self, address: int) -> int:
        link = self.links[address]
        if link.memory.parseDepth > 1:
            return self._refuse(f"{link.key} must not be an object")
        return _CONTINUE

    def take_key(self, address: int, text: int, length: int) -> int:
        self.links[address].key = _c.text(ctypes.string_at(text, length)) if length else ""
        return _CONTINUE

    def end_map(self, address: int) -> int:
        link = self.links[address]
        return self._finish(link, link.said)

    def start_array(self, address: int) -> int:
        key = self.links[address].key
        return self._refuse(f"{key or 'its value'} must not be an array")

    def get_lset(self, _address: int) -> int:
        return ctypes.addressof(self.lset)

    def report(self, address: int, level: int, indent: int) -> None:
        link = self.links.get(address)
        if link is not None:
            shell_print(" " * indent + f"'{self.name}': {self.type.describe(link.options, link.end, level)}")

    # -- life ------------------------------------------------------------------------------------------------------

    def open_link(self, link: int) -> None:
        memory = _Link.from_address(link)
        text = self.links[memory.jlink]
        place = LinkPlace(
            memory.precord,
            link,
            record_name_of(memory.precord),
            _c.text(_c.dbLinkFieldName(link)),
            text.kind,
            record_type_of(memory.precord),
        )
        text.link = link
        text.end = self.ends[link] = self.type.open(place, text.options)
        self.numbers[link] = _Numbers(text.end)

    def remove_link(self, _locker: int, link: int) -> None:
        self.free(_Link.from_address(link).jlink or 0)

    # -- reading ---------------------------------------------------------------------------------------------------

    def is_connected(self, link: int) -> int:
        end = self._of(link)
        return int(end is not None and end.is_connected())

    def field_type(self, link: int) -> int:
        end = self._of(link)
        found = None if end is None else end.field_type()
        return _FAILED if found is None else found

    def elements(self, link: int, count: Any) -> int:
        end = self._of(link)
        found = None if end is None else end.elements()
        if found is None:
            return _FAILED
        count[0] = found
        return 0

    def read(self, link: int, dbr: int, target: int, count: int | None) -> int:
        try:
            if count is None:
                numbers = self.numbers.get(link)
                if numbers is not None and (data := numbers.read(dbr)) is not None:
                    numbers.write(target, data)
                    return 0
            return self._read(link, dbr, target, count)
        except Exception as error:  # noqa: BLE001 - as of the others, but without a further call
            return _failed("read", error)

    def _read(self, link: int, dbr: int, target: int, count: int | None) -> int:
        end = self._of(link)
        if end is None or not 0 <= dbr <= _c.DBF_ENUM:
            return _FAILED
        if count is None:
            most = None
        else:
            room = c_long.from_address(count)
            most = max(0, room.value)
        data, elements, severity, message, stamp = end.read(dbr, most)
        record = _Link.from_address(link).precord
        if severity:
            _c.recGblSetSevrMsg(record, _LINK_ALARM, severity, _format(message))
        if stamp is not None:
            _set_stamp(record, stamp)
        if data is None:
            return _FAILED
        if elements:
            size = elements * ITEM_SIZES[dbr]
            if isinstance(data, bytes):
                ctypes.memmove(target, data, size)
            else:
                ctypes.memmove(target, data.__array_interface__["data"][0], size)
        elif most is None:
            # Device support passes memory that holds nothing yet.
            ctypes.memset(target, 0, ITEM_SIZES[dbr])
        if count is not None:
            room.value = elements
        return 0

    def _limits(self, link: int, names: tuple[str, ...], targets: tuple[Any, ...]) -> int:
        end = self._of(link)
        found = None if end is None else end.limits(names)
        if found is None:
            return _FAILED
        for target, value in zip(targets, found, strict=True):
            if target and value is not None:
                target[0] = value
        return 0

    def control_limits(self, link: int, low: Any, high: Any) -> int:
        return self._limits(link, _CONTROL, (low, high))

    def display_limits(self, link: int, low: Any, high: Any) -> int:
        return self._limits(link, _DISPLAY, (low, high))

    def alarm_limits(self, link: int, lolo: Any, low: Any, high: Any, hihi: Any) -> int:
        return self._limits(link, _ALARM, (lolo, low, high, hihi))

    def precision(self, link: int, target: Any) -> int:
        end = self._of(link)
        found = None if end is None else end.precision()
        if found is None:
            return _FAILED
        if target:
            target[0] = found
        return 0

    def units(self, link: int, target: int, size: int) -> int:
        end = self._of(link)
        found = None if end is None else end.units()
        if found is None:
            return _FAILED
        _set_text(target, size, found)
        return 0

    def alarm(self, link: int, status: Any, severity: Any) -> int:
        return self.alarm_message(link, status, severity, 0, 0)

    def alarm_message(self, link: int, status: Any, severity: Any, text: int, size: int) -> int:
        end = self._of(link)
        found = None if end is None else end.alarm()
        if found is None:
            return _FAILED
        if severity:
            severity[0] = found[0]
        if status:
            status[0] = _LINK_ALARM if found[0] else 0
        _set_text(text, size, found[1])
        return 0

    def stamp(self, link: int, stamp: Any) -> int:
        return self.stamp_and_tag(link, stamp, None)

    def stamp_and_tag(self, link: int, stamp: Any, tag: Any) -> int:
        end = self._of(link)
        found = None if end is None else end.stamp()
        if found is None:
            return _FAILED
        if stamp:
            stamp[0].seconds = _past_epoch(found[0])
            stamp[0].nanoseconds = found[1]
        if tag:
            tag[0] = found[2]
        return 0

    # -- writing ---------------------------------------------------------------------------------------------------

    def put(self, link: int, dbr: int, source: int, count: int) -> int:
        return self._put(link, dbr, source, count, wait=False)

    def put_and_wait(self, link: int, dbr: int, source: int, count: int) -> int:
        return self._put(link, dbr, source, count, wait=True)

    def _put(self, link: int, dbr: int, source: int, count: int, *, wait: bool) -> int:
        end = self._of(link)
        if end is None or count < 0 or not 0 <= dbr <= _c.DBF_ENUM:
            return _FAILED
        data = ctypes.string_at(source, count * ITEM_SIZES[dbr]) if count else b""
        return 0 if end.put(dbr, data, count, wait=wait) else _FAILED

    def forward(self, link: int) -> None:
        end = self._of(link)
        why = "not open" if end is None else end.forward()
        if why:
            _c.recGblSetSevrMsg(_Link.from_address(link).precord, _LINK_ALARM, _INVALID, _format(why))


_Row = tuple[str, Callable[..., Any] | None, Any, tuple[Any, ...]]
_JLIF: Final[tuple[_Row, ...]] = (
    ("alloc_jlink", _Functions.allocate, c_void_p, (c_short,)),
    ("free_jlink", _Functions.free, None, (c_void_p,)),
    ("parse_null", _Functions.take_null, c_int, (c_void_p,)),
    ("parse_boolean", _Functions.take_boolean, c_int, (c_void_p, c_int)),
    ("parse_integer", _Functions.take_number, c_int, (c_void_p, c_longlong)),
    ("parse_double", _Functions.take_double, c_int, (c_void_p, c_double)),
    ("parse_string", _Functions.take_text, c_int, (c_void_p, c_void_p, c_size_t)),
    ("parse_start_map", _Functions.start_map, c_int, (c_void_p,)),
    ("parse_map_key", _Functions.take_key, c_int, (c_void_p, c_void_p, c_size_t)),
    ("parse_end_map", _Functions.end_map, c_int, (c_void_p,)),
    ("parse_start_array", _Functions.start_array, c_int, (c_void_p,)),
    ("parse_end_array", None, c_int, (c_void_p,)),
    ("end_child", None, None, (c_void_p, c_void_p)),
    ("get_lset", _Functions.get_lset, c_void_p, (c_void_p,)),
    ("report", _Functions.report, None, (c_void_p, c_int, c_int)),
    ("map_children", None, c_long, (c_void_p, c_void_p, c_void_p)),
    ("start_child", None, None, (c_void_p, c_void_p)),
)
"""dbJLink.h: the functions of ``struct jlif`` after the name, in their order: name, ours, result, arguments."""
_LSET: Final[tuple[_Row, ...]] = (
    ("openLink", _Functions.open_link, None, (c_void_p,)),
    ("removeLink", _Functions.remove_link, None, (c_void_p, c_void_p)),
    ("loadScalar", None, c_long, ()),
    ("loadLS", None, c_long, ()),
    ("loadArray", None, c_long, ()),
    ("isConnected", _Functions.is_connected, c_int, (c_void_p,)),
    ("getDBFtype", _Functions.field_type, c_int, (c_void_p,)),
    ("getElements", _Functions.elements, c_long, (c_void_p, POINTER(c_long))),
    ("getValue", _Functions.read, c_long, (c_void_p, c_short, c_void_p, c_void_p)),
    ("getControlLimits", _Functions.control_limits, c_long, (c_void_p, _Doubles, _Doubles)),
    ("getGraphicLimits", _Functions.display_limits, c_long, (c_void_p, _Doubles, _Doubles)),
    ("getAlarmLimits", _Functions.alarm_limits, c_long, (c_void_p, _Doubles, _Doubles, _Doubles, _Doubles)),
    ("getPrecision", _Functions.precision, c_long, (c_void_p, POINTER(c_short))),
    ("getUnits", _Functions.units, c_long, (c_void_p, c_void_p, c_int)),
    ("getAlarm", _Functions.alarm, c_long, (c_void_p, _ENUM16, _ENUM16)),
    ("getTimeStamp", _Functions.stamp, c_long, (c_void_p, POINTER(_Stamp))),
    ("putValue", _Functions.put, c_long, (c_void_p, c_short, c_void_p, c_long)),
    ("putAsync", _Functions.put_and_wait, c_long, (c_void_p, c_short, c_void_p, c_long)),
    ("scanForward", _Functions.forward, None, (c_void_p,)),
    # Alarm and time are those of the latest read, whatever comes in between; without this function EPICS reads them at once.
    ("doLocked", None, c_long, (c_void_p, c_void_p, c_void_p)),
    ("getAlarmMsg", _Functions.alarm_message, c_long, (c_void_p, _ENUM16, _ENUM16, c_void_p, c_size_t)),
    (
        "getTimeStampTag",
        _Functions.stamp_and_tag,
        c_long,
        (c_void_p, POINTER(_Stamp), POINTER(ctypes.c_uint64)),
    ),
)
"""dbLink.h: the functions of ``struct lset`` after its two flags, in their order."""


class _Jlif(ctypes.Structure):
    _fields_ = (("name", c_char_p), *((name, c_void_p) for name, *_ in _JLIF))


class _Lset(ctypes.Structure):
    _fields_ = (
        ("isConstant", c_uint, 1),
        ("isVolatile", c_uint, 1),
        *((name, c_void_p) for name, *_ in _LSET),
    )


def _past_epoch(seconds: int) -> int:
    return (seconds - EPICS_EPOCH_S) & 0xFFFFFFFF


def _set_text(target: int | None, size: int, text: str) -> None:
    if target and size > 0:
        data = _c.cut(_c.raw(text.partition("\0")[0]), size - 1) + b"\0"
        ctypes.memmove(target, data, len(data))


def _set_stamp(record: int, stamp: tuple[int, int, int]) -> None:
    seconds, nanoseconds, tag = stamp
    memory = _Stamp.from_address(record + common_place("TIME"))
    memory.seconds, memory.nanoseconds = _past_epoch(seconds), nanoseconds
    ctypes.c_uint64.from_address(record + common_place("UTAG")).value = tag


_told: Final[set[tuple[str, str]]] = set()
"""The kinds of failures that the log has."""


def _failed(name: str, error: Exception) -> int:
    """Log a failure. Records may call many times a second: each kind is told once."""
    kind = name, type(error).__name__
    level = logging.DEBUG if kind in _told else logging.ERROR
    _told.add(kind)
    _log.log(level, "link support failed in %s", name, exc_info=error)
    return _FAILED


def _guarded(function: Callable[..., Any], result: Any, failed: int) -> Callable[..., Any]:
    if function.__name__ == "read":
        return function

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001 - an exception must not enter C
            _failed(function.__name__, error)
            return None if result is None else failed

    return call


def _fill(table: Any, layout: tuple[_Row, ...], functions: _Functions, failed: int) -> None:
    for name, function, result, arguments in layout:
        if function is not None:
            # Of a question whose answer is yes or no, the failure is no.
            bad = 0 if name == "isConnected" else failed
            made = ctypes.CFUNCTYPE(result, *arguments)(_guarded(function.__get__(functions), result, bad))
            keep(made)
            setattr(table, name, ctypes.cast(made, c_void_p).value)


def declaration(name: str) -> str:
    """Return the definition text of a link type; load it before files that may declare the same type for code in C."""
    return f'link("{name}", "{_DECLARED_AS}")'


def register_link_type(name: str, link_type: LinkType) -> None:
    """Let links ``{name: ...}`` be of this type; after :func:`.boot.boot` and before records are loaded.

    Args:
        name: the key of the JSON that names the type.
        link_type: reads the text of links, and opens them.
    """
    functions = _Functions(name, link_type)
    table = _Jlif(name=name.encode())
    _fill(table, _JLIF, functions, _STOP)
    _fill(functions.lset, _LSET, functions, _FAILED)
    keep(functions, table)
    load_definition_text(declaration(name))
    if not _c.registryJLinkAdd(_c.pdbbase(), ctypes.addressof(table)):
        raise ApplianceError(f"links of type {name} cannot be registered")


# -- from a thread that holds no lock ---------------------------------------------------------------------------------


def complete_put(place: LinkPlace, failure: str) -> None:
    """End a put that a record waits for (dbLinkAsyncComplete); waits for its lock.

    Args:
        place: the link.
        failure: why the put was not done, for the record's INVALID alarm; empty if it was done.
    """
    _c.dbScanLock(place.record)
    try:
        if not ctypes.c_ubyte.from_address(place.record + common_place("PACT")).value:
            return
        if failure:
            _c.recGblSetSevrMsg(place.record, _LINK_ALARM, _INVALID, _format(failure))
        _c.dbLinkAsyncComplete(place.link)
    finally:
        _c.dbScanUnlock(place.record)


def raise_alarm(place: LinkPlace, why: str) -> None:
    """Give a record the alarm LINK, INVALID now, without processing it; its next processing decides anew. Waits for its lock."""
    record = place.record
    _c.dbScanLock(record)
    try:
        _c.recGblSetSevrMsg(record, _LINK_ALARM, _INVALID, _format(why))
        if ctypes.c_ubyte.from_address(record + common_place("PACT")).value:
            # It is processed just now, and takes the alarm at the end.
            return
        if mask := _c.recGblResetAlarms(record):
            # Not only those who watch the alarm: the value is not what it was taken for.
            _c.db_post_events(record, None, mask)
    finally:
        _c.dbScanUnlock(record)
