"""Python in the IOC: subroutines of records, device support, shell commands, hooks.

EPICS calls all of these on its own threads, most of them with a record locked. An exception never reaches C:
it is logged, and the record, if there is one, gets an INVALID alarm.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_char_p, c_double, c_int, c_long, c_void_p
from enum import IntEnum
from typing import Any, Final

from appliance.errors import ApplianceError, PVDataError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.boot import keep
from appliance.ioc.dbcore.records import field_place, record_name_of, record_type_of, text_at
from appliance.ioc.dbcore.words import status_text

_log = logging.getLogger(__name__)

_SOFT_ALARM, _INVALID_ALARM = 15, 3
_RECORD_FUNCTION: Final = ctypes.CFUNCTYPE(c_long, c_void_p)
_HOOK_FUNCTION: Final = ctypes.CFUNCTYPE(None, c_int)
_NOTHING: Final = ctypes.CFUNCTYPE(None)
_COMMAND_FUNCTION: Final = ctypes.CFUNCTYPE(None, c_void_p)

_SCALARS: Final[dict[int, Any]] = {
    _c.DBF_CHAR: ctypes.c_int8,
    _c.DBF_UCHAR: ctypes.c_uint8,
    _c.DBF_SHORT: ctypes.c_int16,
    _c.DBF_USHORT: ctypes.c_uint16,
    _c.DBF_LONG: ctypes.c_int32,
    _c.DBF_ULONG: ctypes.c_uint32,
    _c.DBF_INT64: ctypes.c_int64,
    _c.DBF_UINT64: ctypes.c_uint64,
    _c.DBF_FLOAT: ctypes.c_float,
    _c.DBF_DOUBLE: ctypes.c_double,
    _c.DBF_ENUM: ctypes.c_uint16,
    _c.DBF_MENU: ctypes.c_uint16,
    _c.DBF_DEVICE: ctypes.c_uint16,
}


class InitHook(IntEnum):
    """initHooks.h: the states of iocInit at which this IOC does something, in their order."""

    AT_IOC_BUILD = 0
    AFTER_INIT_DEVICE_SUPPORT = 6
    AFTER_INIT_DATABASE = 7
    AFTER_IOC_RUNNING = 16


class RecordView:
    """A record's own memory, for code that EPICS calls while the record is locked.

    ``view["NEVA"]`` reads and ``view["NEVA"] = 3`` writes a number or a string; nothing is posted or processed.
    """

    __slots__ = ("_type", "address")

    def __init__(self, address: int) -> None:
        #: address of the record (``dbCommon``)
        self.address = address
        self._type = record_type_of(address)

    @property
    def name(self) -> str:
        """Name of the record."""
        return record_name_of(self.address)

    def __getitem__(self, field: str) -> Any:
        place = field_place(self._type, field)
        if place.field_type == _c.DBF_STRING:
            return text_at(self.address, place)
        return self._scalar(field).value

    def __setitem__(self, field: str, value: float | str) -> None:
        place = field_place(self._type, field)
        if place.field_type == _c.DBF_STRING:
            data = _c.raw(str(value))[: place.size - 1]
            ctypes.memmove(self.address + place.offset, data + b"\0", len(data) + 1)
        else:
            self._scalar(field).value = value

    def _scalar(self, field: str) -> Any:
        place = field_place(self._type, field)
        kind = _SCALARS.get(place.field_type)
        if kind is None:
            raise PVDataError(f"{self.name}.{field} is neither a number nor a string")
        return kind.from_address(self.address + place.offset)

    def array(self, field: str, data_type: int, elements: int) -> Any:
        """Return a writable numpy array over the memory that a pointer field (DBF_NOACCESS) points to.

        Args:
            field: for instance ``VALA`` of an aSub, ``BPTR`` of a waveform.
            data_type: the DBR code of the elements, for instance ``view["FTVA"]``.
            elements: their number, for instance ``view["NOVA"]``.

        """
        import numpy as np

        if not 0 <= data_type <= _c.DBF_ENUM or data_type == _c.DBF_STRING:
            raise PVDataError(f"{self.name}.{field} is not an array of numbers")
        pointer = c_void_p.from_address(self.address + field_place(self._type, field).offset).value
        dtype = np.dtype(_c.NUMPY_CODES[data_type])
        if not pointer:
            return np.empty(0, dtype)
        memory = (ctypes.c_char * (elements * dtype.itemsize)).from_address(pointer)
        return np.frombuffer(memoryview(memory), dtype)

    def link_number(self, field: str) -> float:
        """Fetch a number through one of the record's links (dbGetLink).

        Raises:
            ApplianceError: the link has no value now.

        """
        value = c_double()
        link = self.address + field_place(self._type, field).offset
        status = _c.dbGetLink(link, _c.DBF_DOUBLE, ctypes.addressof(value), None, None)
        if status:
            raise ApplianceError(f"{self.name}.{field}: {status_text(status)}")
        return value.value

    def set_invalid(self, condition: int = _SOFT_ALARM) -> None:
        """Give the record an INVALID alarm for this processing (recGblSetSevr)."""
        _c.recGblSetSevr(self.address, condition, _INVALID_ALARM)


def _guarded(name: str, function: Callable[[RecordView], int | None]) -> Any:
    def call(address: int) -> int:
        try:
            return int(function(RecordView(address)) or 0)
        except Exception:  # noqa: BLE001 - an exception must not enter C
            _log.exception("%s failed in record %s", name, record_name_of(address))
            _c.recGblSetSevr(address, _SOFT_ALARM, _INVALID_ALARM)
            return -1

    callback = _RECORD_FUNCTION(call)
    keep(callback)
    return callback


def register_function(name: str, function: Callable[[RecordView], int | None]) -> None:
    """Register a Python function as ``SNAM`` or ``INAM`` of sub and aSub records (registryFunctionAdd).

    Register before :func:`.boot.ioc_init`. The function runs with the record locked and the GIL held.
    """
    # The registry keeps the pointer to the name, not a copy.
    kept = ctypes.create_string_buffer(name.encode())
    keep(kept)
    _c.registryFunctionAdd(ctypes.cast(kept, c_char_p), ctypes.cast(_guarded(name, function), c_void_p))


def skip_registrar(name: str) -> None:
    """Make a registrar of EPICS Base do nothing, because what it would register is registered already; before :func:`.boot.boot`.

    EPICS refuses a second function of the same name, prints a line about it, and skips what follows in that registrar.
    """
    nothing = _NOTHING(lambda: None)
    keep(nothing)
    # What the declaration ``registrar(name)`` finds: a pointer to the function (epicsExportRegistrar).
    c_void_p.in_dll(ctypes.CDLL(None), f"pvar_func_{name}").value = ctypes.cast(nothing, c_void_p).value


#: Records of softIoc's ``-x PREFIX``, with the macro IOC; see :func:`register_exit`.
EXIT_RECORDS: Final = """
record(sub, "$(IOC):exit") {
  field(DESC, "A=0 ends well, else with an error") field(SNAM, "exit")
}
record(stringin, "$(IOC):BaseVersion") {
  field(DESC, "EPICS Base Version") field(DTYP, "getenv") field(INP, "@EPICS_VERSION_FULL") field(PINI, "YES")
}
"""


def register_exit(function: Callable[[int], None]) -> None:
    """Call a function with the exit status when a record of :data:`EXIT_RECORDS` is processed.

    It runs on an EPICS thread with the record locked, so it may only ask the daemon to end, not end it.
    """

    def leave(record: RecordView) -> None:
        function(0 if record["A"] == 0 else 1)

    register_function("exit", leave)


# Functions of soft device support (devSup.h): how many there are, and the places of those that are made here.
_FUNCTIONS, _INIT_RECORD, _PROCESS = 5, 2, 4


def register_device(
    symbol: str,
    process: Callable[[RecordView], int | None],
    init_record: Callable[[RecordView], int | None] | None = None,
) -> None:
    """Register soft device support of five functions (registryDeviceSupportAdd).

    The database definition must declare it, ``device(waveform, CONSTANT, <symbol>, "...")``, and this must be
    called before that definition's support is registered.
    """

    class Table(ctypes.Structure):
        _fields_ = (("number", c_long), ("functions", c_void_p * _FUNCTIONS))

    table = Table(_FUNCTIONS)
    if init_record is not None:
        table.functions[_INIT_RECORD] = ctypes.cast(_guarded(symbol, init_record), c_void_p).value
    table.functions[_PROCESS] = ctypes.cast(_guarded(symbol, process), c_void_p).value
    name = ctypes.create_string_buffer(symbol.encode())
    keep(table, name)
    _c.registryDeviceSupportAdd(ctypes.cast(name, c_char_p), ctypes.addressof(table))


_keeping: Final = threading.local()


@contextmanager
def kept_failures() -> Iterator[list[ApplianceError]]:
    """Collect why commands of :func:`register_command` fail in this thread, instead of logging it."""
    found: list[ApplianceError] = []
    before = getattr(_keeping, "failures", None)
    _keeping.failures = found
    try:
        yield found
    finally:
        _keeping.failures = before


class _ShellArgument(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("type", c_int))


class _ShellFunction(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("nargs", c_int), ("arg", c_void_p), ("usage", c_char_p))


class _ShellValue(ctypes.Union):
    _fields_ = (
        ("ival", c_int),
        ("dval", c_double),
        ("sval", c_char_p),
        # iocshArgArgv, the largest member: it decides the distance of two arguments
        ("argv", c_void_p * 2),
    )


_SHELL_TYPES: Final[dict[type, tuple[int, str]]] = {int: (0, "ival"), float: (1, "dval"), str: (2, "sval")}


def register_command(
    name: str, arguments: Sequence[tuple[str, type]], function: Callable[..., None], usage: str = ""
) -> None:
    """Add a command to the IOC shell, or replace one of that name (iocshRegister).

    Args:
        name: the command's name.
        arguments: name and type (int, float or str) of each; a missing string arrives as None, a missing
            number as 0.
        function: called with the arguments; what it prints goes to standard output. An ApplianceError is
            printed and makes the command fail.
        usage: text for ``help``.

    """
    count = len(arguments)
    table = (_ShellArgument * max(count, 1))()
    pointers = (c_void_p * max(count, 1))()
    for index, (argument, kind) in enumerate(arguments):
        table[index].name = argument.encode()
        table[index].type = _SHELL_TYPES[kind][0]
        pointers[index] = ctypes.addressof(table[index])
    definition = _ShellFunction(name.encode(), count, ctypes.addressof(pointers), usage.encode())
    members = [_SHELL_TYPES[kind][1] for _, kind in arguments]

    def call(address: int | None) -> None:
        try:
            values: list[Any] = []
            for index, member in enumerate(members):
                assert address is not None
                value = getattr(
                    _ShellValue.from_address(address + index * ctypes.sizeof(_ShellValue)), member
                )
                values.append(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value)
            function(*values)
        except ApplianceError as error:
            failures = getattr(_keeping, "failures", None)
            if failures is None:
                _log.error("%s: %s", name, error)
            else:
                failures.append(error)
            _c.com.iocshSetError(-1)
        except Exception:  # noqa: BLE001 - an exception must not enter C
            _log.exception("command %s failed", name)
            _c.com.iocshSetError(-1)

    callback = _COMMAND_FUNCTION(call)
    keep(table, pointers, definition, callback)
    _c.iocshRegister(ctypes.addressof(definition), ctypes.cast(callback, c_void_p))


def on_init_hook(function: Callable[[int], None]) -> None:
    """Call a function at every state of :func:`.boot.ioc_init` and the end (initHookRegister).

    This includes ``iocInit`` in the shell and in ``st.cmd``. The argument is one of
    :class:`InitHook` or a state between them.
    """

    def call(state: int) -> None:
        try:
            function(state)
        except Exception:  # noqa: BLE001 - an exception must not enter C
            _log.exception("init hook failed at state %d", state)

    callback = _HOOK_FUNCTION(call)
    keep(callback)
    _c.initHookRegister(ctypes.cast(callback, c_void_p))
