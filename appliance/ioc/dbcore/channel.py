"""A dbChannel: one record's field, with get, put, metadata and lock.

Every get takes value, alarm, time stamp and tag under one lock, so that they belong together. Values come as the
types that :mod:`appliance.pvdata` keeps in its store: ``int``, ``float``, ``str``, a read-only one-dimensional
numpy array, ``tuple[str, ...]``.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, Self

from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import AccessDeniedError, ApplianceError, OperationError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.dbr import (
    CONTROL,
    ITEM_SIZES,
    MAX_CHOICES,
    META,
    META_SIZE,
    META_STRUCT,
    PROPERTIES,
    PROPERTIES_STRUCT,
    SCALAR_STRUCTS,
    get_arguments,
)
from appliance.ioc.dbcore.errlog import printed_aside
from appliance.ioc.dbcore.put_value import encode
from appliance.ioc.dbcore.reading import AlarmLimits, Properties, Range, Reading
from appliance.ioc.dbcore.records import (
    common_field,
    common_place,
    info_of,
    record_group,
    record_name_of,
    record_type_of,
    text_at,
)
from appliance.ioc.dbcore.words import status_text

#: Characters that a link field may have (QSRV's and RSRV's PVLINK_STRINGSZ).
LINK_TEXT_SIZE: Final = 1024

_SPC_DBADDR: Final = 2
_get_field_fast: Final = _c.dbChannelGetFieldFast
_get_held: Final = _c.dbChannelGetHeld


class PutWatch(Protocol):
    """An observer that learns of a put before it is done, such as a log."""

    def begin(self, old: Any) -> None:
        """Note a put that will be done now; ``old`` is the present value, read under the same lock.

        It is called in the thread of the put, with the record locked. An ApplianceError prevents the put.
        """

    def failed(self, error: object) -> None:
        """Note that the put was not done, whether it had begun or not."""


_new: Final[Any] = tuple.__new__
#: A field as long text; neither records nor fields have a dot or a dollar in their names.
_AS_TEXT: Final = re.compile(r"[^.]*\.\w+\$")


def _menu_size(description: _c.dbFldDes) -> int | None:
    """Return the number of choices of a menu field; None for other fields."""
    kinds: dict[int, Any] = {_c.DBF_MENU: _c.dbMenu, _c.DBF_DEVICE: _c.dbDeviceMenu}
    kind = kinds.get(description.field_type)
    if kind is None or not description.ftPvt:
        return None
    return int(kind.from_address(description.ftPvt).nChoice)


_CONTROL_CHARACTER: Final = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


def exists(name: str) -> bool:
    """Whether record and field exist (dbChannelTest); modifiers and filters are not checked.

    A name with control characters never exists, whatever its modifiers: EPICS would print it.
    """
    if len(name) >= 1024 or (not name.isprintable() and _CONTROL_CHARACTER.search(name) is not None):
        return False
    return not _c.dbChannelTest(_c.raw(name))


_c_text: Final = _c.c_text


def _check(status: int, what: str) -> None:
    if status:
        raise OperationError(f"{what}: {status_text(status)}")


def _create(name: str) -> tuple[Any, str]:
    """Make a channel; return it and, after a failure, EPICS' message, which it would otherwise print."""
    if "{" not in name:
        return _c.dbChannelCreate(_c.raw(name)), ""
    with printed_aside() as printed:
        chan = _c.dbChannelCreate(_c.raw(name))
    said = printed.text.partition("\n")[0].removeprefix("dbChannelCreate: ").strip(" .")
    return chan, f": {said}" if said else ""


class DBChannel:
    """An open channel to a field (dbChannelCreate, dbChannelOpen).

    The name is a record or alias with an optional field, ``$`` (as characters) and JSON filters or array slices:
    ``rec``, ``rec.DESC$``, ``rec.VAL[2:5]``, ``rec.VAL{"dbnd":{"d":1.5}}``. Link fields and strings longer than
    40 characters are opened as long strings without ``$``, as QSRV does.

    Two threads must not use it at once; a server opens one channel per PV and uses it on its event loop.

    Raises:
        OperationError: no such record or field, a filter that EPICS does not understand, or a field without
            data (DBF_NOACCESS).

    """

    __slots__ = (
        "_arguments",
        "_buffer",
        "_process_channel",
        "_unpack",
        "address",
        "as_level",
        "choices",
        "elements",
        "ends_text",
        "field",
        "final_type",
        "form",
        "has_filters",
        "is_array",
        "is_link",
        "is_plain",
        "is_string",
        "is_value_field",
        "name",
        "process_passive",
        "record",
        "record_address",
        "record_type",
    )

    #: the name that was given
    name: str
    #: name of the record, never an alias
    record: str
    record_type: str
    #: name of the field, ``VAL`` when none was given
    field: str
    #: address of the ``dbChannel``, an identity that events carry; 0 when closed
    address: int
    #: address of the record (``dbCommon``)
    record_address: int
    #: DBR code of the data as it comes after conversion and filters
    final_type: int
    #: most elements that the field can have
    elements: int
    #: the data is an array (``elements`` is not 1) and not a long string
    is_array: bool
    #: read and written as ``str``: strings, and CHAR arrays that are long strings
    is_string: bool
    #: INLINK, OUTLINK or FWDLINK
    is_link: bool
    #: what is read passes filters of the name
    has_filters: bool
    #: one element, not of an array, without filters: read the short way; False once closed
    is_plain: bool
    #: choices of a menu field; None for other fields
    choices: int | None
    #: we must terminate written octets: EPICS copies them into a string and does not terminate it
    ends_text: bool
    #: the record type's value field, nearly always VAL
    is_value_field: bool
    #: writing processes a passive record, ``pp(TRUE)``
    process_passive: bool
    #: access security level of the field, 0 or 1
    as_level: int
    #: ``info(Q:form)`` of the value field, ``String`` for long strings, else ``Default``
    form: str

    def __init__(self, name: str) -> None:
        self.address = 0
        self._process_channel: DBChannel | None = None
        if not exists(name):
            raise OperationError(f"no such record or field: {name}")
        chan, why = _create(name)
        if not chan:
            raise OperationError(f"the modifiers of {name} are not understood{why}")
        self.address = ctypes.cast(chan, ctypes.c_void_p).value or 0
        try:
            self._open(name, chan)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str, chan: Any) -> None:
        channel = chan.contents
        addr = channel.addr
        description = addr.pfldDes.contents
        self.name = name
        self.record_address = addr.precord
        self.record = record_name_of(addr.precord)
        self.record_type = record_type_of(addr.precord)
        self.field = _c.text(description.name)
        self.is_link = _c.DBF_INLINK <= description.field_type <= _c.DBF_FWDLINK
        self.is_value_field = bool(_c.dbIsValueField(addr.pfldDes))
        self.process_passive = bool(description.process_passive)
        self.as_level = description.as_level
        self.choices = _menu_size(description)
        self.form = "Default"
        was_text = addr.field_type == _c.DBF_STRING
        if self.is_value_field:
            self.form = info_of(addr.precord, "Q:form") or "Default"
        if (
            addr.field_type == _c.DBF_STRING
            and addr.no_elements == 1
            and addr.field_size > _c.MAX_STRING_SIZE + 1
        ):
            addr.no_elements = addr.field_size
            addr.field_size = 1
            addr.field_type = addr.dbr_field_type = _c.DBF_CHAR
            self.form = "String"
        elif addr.dbr_field_type == _c.DBF_CHAR and _AS_TEXT.match(name):
            self.form = "String"
        elif _c.DBF_INLINK <= addr.field_type <= _c.DBF_FWDLINK:
            addr.no_elements = LINK_TEXT_SIZE
            addr.field_size = 1
            addr.dbr_field_type = _c.DBF_CHAR
            self.form = "String"
        _check(_c.dbChannelOpen(chan), f"cannot open {name}")
        # Octets into the memory of a string: EPICS copies them and does not terminate them.
        self.ends_text = addr.field_type == _c.DBF_CHAR and (
            was_text or description.field_type == _c.DBF_STRING or _AS_TEXT.match(name) is not None
        )
        final = channel.final_type
        if not 0 <= final <= _c.DBF_ENUM:
            raise OperationError(f"{name} has no value that can be read (DBF_NOACCESS)")
        self.final_type = final
        self.elements = channel.final_no_elements
        long_string = final == _c.DBF_CHAR and self.elements != 1 and self.form == "String"
        self.is_array = self.elements != 1 and not long_string
        self.is_string = final == _c.DBF_STRING or long_string
        self.has_filters = bool(channel.pre_chain.count or channel.post_chain.count)
        # An array of at most one element may be empty, and then a get leaves the buffer as it was.
        self.is_plain = self.elements == 1 and not self.has_filters and addr.special != _SPC_DBADDR
        self._prepare(scalar=self.elements == 1)

    def _prepare(self, *, scalar: bool) -> None:
        size = META_SIZE + (ITEM_SIZES[self.final_type] if scalar else 0)
        # Data, then options and count: one small block per channel, because ten thousand of them are read in turn.
        end = (size + 7) & ~7
        self._buffer = ctypes.create_string_buffer(end + CONTROL.size)
        CONTROL.pack_into(self._buffer, end, META, 1)
        control = ctypes.addressof(self._buffer) + end
        self._unpack = (SCALAR_STRUCTS[self.final_type] if scalar else META_STRUCT).unpack_from
        self._arguments = get_arguments(
            self.address, self.final_type, ctypes.addressof(self._buffer), control
        )

    def __repr__(self) -> str:
        return f"<DBChannel {self.name} {_c.DBF_NAMES[self.final_type]}[{self.elements}]>"

    def close(self) -> None:
        """Close the channel (dbChannelDelete); cancel its subscriptions before."""
        if self._process_channel is not None:
            self._process_channel.close()
            self._process_channel = None
        if self.address:
            _c.dbChannelDelete(self.address)
            self.address = 0
            # The short way of a get does not check whether the channel is open.
            self.is_plain = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- facts that can change ---------------------------------------------------------------------------------

    @property
    def access_group(self) -> str:
        """The record's access security group now (field ASG)."""
        # Under the lock: half of an old and half of a new name could be the name of a third group.
        with self.locked():
            return record_group(self.record_address)

    @property
    def process_channel(self) -> DBChannel:
        """The record's field PROC, which processes the record whatever its SCAN; it is open as long as this channel."""
        if self._process_channel is None:
            self._process_channel = DBChannel(self.record + ".PROC")
        return self._process_channel

    def info(self, name: str) -> str | None:
        """Return one of the record's ``info()`` items, for instance ``Q:time:tag``; ``None`` if it has none."""
        return info_of(self.record_address, name)

    @property
    def put_disabled(self) -> bool:
        """Whether the record refuses puts to all fields except DISP itself (field DISP)."""
        return self.field != "DISP" and bool(self._byte("DISP"))

    def _byte(self, field: str) -> int:
        return ctypes.c_ubyte.from_address(self.record_address + common_place(field)).value

    def _set_byte(self, field: str, value: int) -> None:
        ctypes.c_ubyte.from_address(self.record_address + common_place(field)).value = value

    # -- locks ---------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the record's lock (dbScanLock); it is recursive for the thread.

        Do not await and do nothing slow inside: scan threads wait for this lock.
        """
        _c.dbScanLock(self.record_address)
        try:
            yield
        finally:
            _c.dbScanUnlock(self.record_address)

    # -- get -----------------------------------------------------------------------------------------------------

    def get(self) -> Reading:
        """Read value, alarm, time and tag under the record's lock (dbChannelGetField).

        Raises:
            OperationError: EPICS cannot read the field.

        """
        if self.is_plain:
            return self._get_plain(_get_field_fast)
        if self.has_filters:
            with self.locked():
                return self.get_locked()
        if self.elements == 1:
            return self._get_scalar(_c.dbChannelGetField, None)
        return self._get_array(_c.dbChannelGetField, None)

    def _get_plain(self, function: Any) -> Reading:
        # Options and count are input and output; for one plain value they do not change.
        status = function(*self._arguments)
        if status:
            _check(status, f"cannot read {self.name}")
        st, severity, _, _, amsg, seconds, nanoseconds, tag, value = self._unpack(self._buffer)
        if self.is_string:
            value = _c_text(value)
        message = _c_text(amsg) if amsg[0] else ""
        reading: Reading = _new(
            Reading, (value, st, severity, message, seconds + EPICS_EPOCH_S, nanoseconds, tag)
        )
        return reading

    def get_locked(self) -> Reading:
        """Read like :meth:`get`, for a caller who holds the record's lock (dbChannelGet); keeps the GIL."""
        if self.is_plain:
            return self._get_plain(_get_held)
        self.refuse_closed()
        log = self._read_log() if self.has_filters else None
        try:
            if self.elements == 1:
                return self._get_scalar(_c.dbChannelGet, log)
            return self._get_array(_c.dbChannelGet, log)
        finally:
            if log:
                _c.db_delete_field_log(log)

    def _read_log(self) -> int | None:
        """Run the filters over the present value; a filter that drops it leaves the unfiltered value."""
        log = _c.db_create_read_log(self.address)
        if log:
            log = _c.dbChannelRunPreChain(self.address, log)
        if log:
            log = _c.dbChannelRunPostChain(self.address, log)
        return int(log) if log else None

    def _raw_get(
        self, function: Any, target: int, count: int, options: int, log: int | None
    ) -> tuple[int, int]:
        """Read into memory; return which options EPICS supports and how many elements came."""
        self.refuse_closed()
        control = ctypes.create_string_buffer(16)
        address = ctypes.addressof(control)
        CONTROL.pack_into(control, 0, options, count)
        status = function(self.address, self.final_type, target, address, address + 8, log)
        if status:
            _check(status, f"cannot read {self.name}")
        supported, came = CONTROL.unpack(control)
        return supported, came

    def _get_scalar(self, function: Any, log: int | None) -> Reading:
        _, count = self._raw_get(function, ctypes.addressof(self._buffer), 1, META, log)
        st, severity, _, _, amsg, seconds, nanoseconds, tag, value = self._unpack(self._buffer)
        if count < 1:
            value = b"" if self.is_string else 0
        if self.is_string:
            value = _c_text(value)
        message = _c_text(amsg) if amsg[0] else ""
        return Reading(value, st, severity, message, seconds + EPICS_EPOCH_S, nanoseconds, tag)

    def _get_array(self, function: Any, log: int | None) -> Reading:
        import numpy as np

        item = ITEM_SIZES[self.final_type]
        # EPICS writes straight into the array that is handed out; the metadata lies in front of it.
        memory = np.empty(META_SIZE + self.elements * item, np.uint8)
        address = memory.__array_interface__["data"][0]
        _, count = self._raw_get(function, address, self.elements, META, log)
        st, severity, _, _, amsg, seconds, nanoseconds, tag = self._unpack(memory.data)
        data = memory[META_SIZE : META_SIZE + min(max(count, 0), self.elements) * item]
        if 2 * data.size < memory.size:
            # A value may stay long in a queue: it must not hold memory for missing elements.
            data = data.copy()
        data.flags.writeable = False
        value: Any
        if self.is_string and self.final_type == _c.DBF_CHAR:
            value = _c_text(data.tobytes())
        elif self.final_type == _c.DBF_STRING:
            content = data.tobytes()
            value = tuple(_c_text(content[i : i + item]) for i in range(0, len(content), item))
        else:
            value = data.view(_c.NUMPY_CODES[self.final_type])
        message = _c_text(amsg) if amsg[0] else ""
        return Reading(value, st, severity, message, seconds + EPICS_EPOCH_S, nanoseconds, tag)

    def properties(self) -> Properties:
        """Read units, precision, choices, limits and description under the record's lock."""
        with self.locked():
            return self.properties_locked()

    def properties_locked(self) -> Properties:
        """Read like :meth:`properties`, for a caller who holds the record's lock."""
        data = ctypes.create_string_buffer(PROPERTIES_STRUCT.size)
        have, _ = self._raw_get(_c.dbChannelGet, ctypes.addressof(data), 0, PROPERTIES, None)
        units, precision, number, _, strings, dh, dl, ch, cl, hihi, high, low, lolo = (
            PROPERTIES_STRUCT.unpack(data)
        )
        size = _c.MAX_STRING_SIZE
        choices = tuple(_c_text(strings[i * size : (i + 1) * size]) for i in range(min(number, MAX_CHOICES)))
        return Properties(
            _c_text(units) if have & _c.DBR_UNITS else None,
            precision if have & _c.DBR_PRECISION else None,
            choices if have & _c.DBR_ENUM_STRS else None,
            Range(dl, dh) if have & _c.DBR_GR_DOUBLE else None,
            Range(cl, ch) if have & _c.DBR_CTRL_DOUBLE else None,
            AlarmLimits(lolo, low, high, hihi) if have & _c.DBR_AL_DOUBLE else None,
            text_at(self.record_address, common_field("DESC")),
        )

    # -- put -----------------------------------------------------------------------------------------------------

    def put(self, value: Any, process: bool | None = None, *, watch: PutWatch | None = None) -> None:
        """Write a value, and process the record according to ``process``.

        Args:
            value: what :meth:`get` returns for this field; text is converted by EPICS for numbers and enums.
            process: True: always process; False: never; None: as the database says, that is after a put to a
                ``pp(TRUE)`` field of a passive record, or to PROC.
            watch: called before the put, and when it fails.

        Raises:
            AccessDeniedError: the record's DISP is set.
            PVDataError: the value does not fit the field.
            OperationError: EPICS refused, for example because the field must not be modified.

        """
        if watch is None:
            self._put(value, process, None)
            return
        try:
            self._put(value, process, watch)
        except ApplianceError as error:
            watch.failed(error)
            raise

    def _put(self, value: Any, process: bool | None, watch: PutWatch | None) -> None:
        self.refuse_closed()
        data = encode(self, value)
        if self.is_link:
            # Changing a link changes lock sets: dbPutField takes the locks that it needs itself.
            self._refuse_disabled()
            if watch is not None:
                watch.begin(self.get().value)
            self._check_put(_c.dbChannelPutField(self.address, data.dbr, data.address, data.elements))
            return
        with self.locked():
            self._refuse_disabled()
            if watch is not None:
                watch.begin(self.get_locked().value)
            self._check_put(_c.dbChannelPut(self.address, data.dbr, data.address, data.elements))
            self.process_locked(process)

    def put_locked(self, value: Any) -> None:
        """Write without processing (dbChannelPut), for a caller who holds the lock; links cannot be written so."""
        self.refuse_closed()
        data = encode(self, value)
        self._refuse_disabled()
        if self.is_link:
            raise OperationError(f"{self.name} is a link and cannot be written together with other fields")
        self._check_put(_c.dbChannelPut(self.address, data.dbr, data.address, data.elements))

    def process_locked(self, process: bool | None = None) -> bool:
        """Process the record after a put, for a caller who holds its lock; return whether it was.

        A record that is active (asynchronous device support) is processed again when it is done (RPRO).
        """
        wanted = self.field == "PROC" or process is True
        if not wanted and process is None:
            wanted = self.process_passive and self._scan() == 0
        if not wanted:
            return False
        if self._byte("PACT"):
            self._set_byte("RPRO", 1)
            return True
        self._set_byte("PUTF", 1)
        if status := _c.dbProcess(self.record_address):
            # Mostly -1 alone; the alarm says more: which link, or why its put was not done.
            alarm = text_at(self.record_address, common_field("AMSG"))
            told = f", with the alarm {alarm!r}" if alarm else ""
            raise OperationError(f"cannot process {self.record}: {status_text(status)}{told}")
        return True

    def _scan(self) -> int:
        return ctypes.c_ushort.from_address(self.record_address + common_place("SCAN")).value

    def refuse_closed(self) -> None:
        """Check that the channel is open.

        Raises:
            OperationError: The channel is closed.
        """
        if not self.address:
            raise OperationError(f"{self.name} is closed")

    def _refuse_disabled(self) -> None:
        if self.put_disabled:
            raise AccessDeniedError(f"{self.record} refuses puts: its field DISP is set")

    def _check_put(self, status: int) -> None:
        if status:
            _check(status, f"cannot write {self.name}")
