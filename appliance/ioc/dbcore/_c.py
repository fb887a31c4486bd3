# ruff: noqa: N801, N816 - all names here are those of C
"""The shared libraries of EPICS Base, the C structures and the prototypes that this package uses.

Loading them takes some milliseconds: the files are found beside the installed ``epicscorelibs`` package
without importing it, since its own loader pulls in the whole of setuptools (0.15 s).

Functions are bound through :class:`ctypes.CDLL`, which releases the GIL during the call. A function that may wait
for a record's lock must release it: the thread that owns the lock may be waiting for the GIL (a Python subroutine
of a ``sub`` record, the callback of a put, another Python thread). The few functions that are called with the GIL held
(:class:`ctypes.PyDLL`) take no lock for longer than some instructions: the rings of :mod:`.rings`, and reading a
record that is locked already. They exist because every release of the GIL beside a busy thread costs up to the
interpreter's switch interval, 5 ms.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from ctypes import POINTER, Structure, c_char_p, c_double, c_int, c_long, c_short, c_uint, c_void_p
from pathlib import Path
from typing import Any, Final

from appliance.daemon.extras import require
from appliance.errors import ConfigurationError

#: Bytes of one EPICS string, terminating nul included (epicsTypes.h).
MAX_STRING_SIZE: Final = 40

# dbFldTypes.h: codes of DBF_* and DBR_* are the same up to ENUM.
DBF_STRING, DBF_CHAR, DBF_UCHAR, DBF_SHORT, DBF_USHORT, DBF_LONG, DBF_ULONG = range(7)
DBF_INT64, DBF_UINT64, DBF_FLOAT, DBF_DOUBLE, DBF_ENUM, DBF_MENU, DBF_DEVICE = range(7, 14)
DBF_INLINK, DBF_OUTLINK, DBF_FWDLINK, DBF_NOACCESS = range(14, 18)

#: Names of the DBF codes, without the prefix.
DBF_NAMES: Final = (
    "STRING",
    "CHAR",
    "UCHAR",
    "SHORT",
    "USHORT",
    "LONG",
    "ULONG",
    "INT64",
    "UINT64",
    "FLOAT",
    "DOUBLE",
    "ENUM",
    "MENU",
    "DEVICE",
    "INLINK",
    "OUTLINK",
    "FWDLINK",
    "NOACCESS",
)

#: struct codes of the DBR types, by number.
STRUCT_CODES: Final = ("40s", "b", "B", "h", "H", "i", "I", "q", "Q", "f", "d", "H")
#: numpy type strings of the DBR types, by number.
NUMPY_CODES: Final = ("S40", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "u2")

# dbAccessDefs.h: the options of a get, in the order of their data in the buffer.
DBR_STATUS: Final = 0x1
DBR_AMSG: Final = 0x2
DBR_UNITS: Final = 0x4
DBR_PRECISION: Final = 0x8
DBR_TIME: Final = 0x10
DBR_UTAG: Final = 0x20
DBR_ENUM_STRS: Final = 0x40
DBR_GR_DOUBLE: Final = 0x100
DBR_CTRL_DOUBLE: Final = 0x400
DBR_AL_DOUBLE: Final = 0x1000


class ELLNODE(Structure):
    """ellLib.h."""

    _fields_ = (("next", c_void_p), ("previous", c_void_p))


class ELLLIST(Structure):
    """ellLib.h."""

    _fields_ = (("node", ELLNODE), ("count", c_int))


class dbFldDes(Structure):
    """dbBase.h: one field in a database definition."""

    _fields_ = (
        ("prompt", c_char_p),
        ("name", c_char_p),
        ("extra", c_char_p),
        ("pdbRecordType", c_void_p),
        ("indRecordType", c_short),
        ("special", c_short),
        ("field_type", c_int),
        ("process_passive", c_uint, 1),
        ("prop", c_uint, 1),
        ("isDevLink", c_uint, 1),
        ("base", c_int),
        ("promptgroup", c_short),
        ("interest", c_short),
        ("as_level", c_int),
        ("initial", c_char_p),
        ("ftPvt", c_void_p),
        ("size", c_short),
        ("offset", ctypes.c_ushort),
    )


class dbMenu(Structure):
    """dbBase.h: the start of what ``dbFldDes.ftPvt`` points to for DBF_MENU."""

    _fields_ = (
        ("node", ELLNODE),
        ("name", c_char_p),
        ("nChoice", c_int),
        ("papChoiceName", POINTER(c_char_p)),
        ("papChoiceValue", POINTER(c_char_p)),
    )


class dbDeviceMenu(Structure):
    """dbStaticPvt.h: the start of what it points to for DBF_DEVICE."""

    _fields_ = (("nChoice", c_int),)


class dbAddr(Structure):
    """dbAddr.h."""

    _fields_ = (
        ("precord", c_void_p),
        ("pfield", c_void_p),
        ("pfldDes", POINTER(dbFldDes)),
        ("no_elements", c_long),
        ("field_type", c_short),
        ("field_size", c_short),
        ("special", c_short),
        ("dbr_field_type", c_short),
    )


class dbChannel(Structure):
    """dbChannel.h."""

    _fields_ = (
        ("name", c_char_p),
        ("addr", dbAddr),
        ("final_no_elements", c_long),
        ("final_field_size", c_short),
        ("final_type", c_short),
        ("filters", ELLLIST),
        ("pre_chain", ELLLIST),
        ("post_chain", ELLLIST),
    )


class dbRecordNode(Structure):
    """dbBase.h: one record or alias."""


dbRecordNode._fields_ = (
    ("node", ELLNODE),
    ("precord", c_void_p),
    ("recordname", c_char_p),
    ("infoList", ELLLIST),
    ("flags", c_int),
    ("order", c_uint),
    ("aliasedRecnode", POINTER(dbRecordNode)),
)


class dbRecordType(Structure):
    """dbBase.h, up to the field tables."""

    _fields_ = (
        ("node", ELLNODE),
        ("attributeList", ELLLIST),
        ("recList", ELLLIST),
        ("devList", ELLLIST),
        ("cdefList", ELLLIST),
        ("name", c_char_p),
        ("no_fields", c_short),
    )


class dbEntry(Structure):
    """dbStaticLib.h: a cursor over the static database."""

    _fields_ = (
        ("pdbbase", c_void_p),
        ("precordType", POINTER(dbRecordType)),
        ("pflddes", POINTER(dbFldDes)),
        ("precnode", POINTER(dbRecordNode)),
        ("pinfonode", c_void_p),
        ("pfield", c_void_p),
        ("message", c_char_p),
        ("indfield", c_short),
    )


class processNotify(Structure):
    """dbNotify.h."""

    _fields_ = (
        ("restartNode", ELLNODE),
        ("isOnList", c_int),
        ("pnotifyPvt", c_void_p),
        ("status", c_int),
        ("wasProcessed", c_int),
        ("requestType", c_int),
        ("chan", c_void_p),
        ("putCallback", c_void_p),
        ("getCallback", c_void_p),
        ("doneCallback", c_void_p),
        ("usrPvt", c_void_p),
    )


def epics_base() -> Path:
    """Return the folder of the installed ``epicscorelibs``.

    Raises:
        ConfigurationError: it is not installed.

    """
    spec = importlib.util.find_spec("epicscorelibs")
    if spec is None or spec.origin is None:
        require("ioc")
        raise ConfigurationError("the package epicscorelibs is incomplete; install it again")
    return Path(spec.origin).parent


def library_file(name: str) -> str:
    """Return the path of one of Base's shared libraries; ``name`` is ``Com``, ``dbCore`` ..."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    path = epics_base() / "lib" / f"lib{name}{suffix}"
    if not path.is_file():
        raise ConfigurationError("EPICS Base's library is missing", file=str(path))
    return str(path)


# RTLD_GLOBAL because registerAllRecordDeviceDrivers() finds record and device support by symbol name.
com: Final = ctypes.CDLL(library_file("Com"), mode=ctypes.RTLD_GLOBAL)
core: Final = ctypes.CDLL(library_file("dbCore"), mode=ctypes.RTLD_GLOBAL)
_rec_std: Final = ctypes.CDLL(library_file("dbRecStd"), mode=ctypes.RTLD_GLOBAL)


def _bind(library: ctypes.CDLL, result: Any, name: str, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = arguments
    return function


_entry = POINTER(dbEntry)
_chan = POINTER(dbChannel)

# libCom
epicsRingPointerLockedCreate = _bind(com, c_void_p, "epicsRingPointerLockedCreate", c_int)
epicsRingPointerDelete = _bind(com, None, "epicsRingPointerDelete", c_void_p)
epicsEventCreate = _bind(com, c_void_p, "epicsEventCreate", c_int)
epicsEventDestroy = _bind(com, None, "epicsEventDestroy", c_void_p)
epicsEventTrigger = _bind(com, c_int, "epicsEventTrigger", c_void_p)
epicsEventTryWait = _bind(com, c_int, "epicsEventTryWait", c_void_p)
epicsEventWaitWithTimeout = _bind(com, c_int, "epicsEventWaitWithTimeout", c_void_p, c_double)
epicsExitCallAtExits = _bind(com, None, "epicsExitCallAtExits")
errSymLookup = _bind(com, None, "errSymLookup", c_long, c_char_p, ctypes.c_size_t)
errSymBld = _bind(com, c_int, "errSymBld")
errSymbolAdd = _bind(com, c_int, "errSymbolAdd", c_long, c_char_p)
errlogFlush = _bind(com, None, "errlogFlush")
#: A ``FILE *`` for what it prints; None means what this thread has for standard error now (epicsSetThreadStderr).
errlogSetConsole = _bind(com, c_int, "errlogSetConsole", c_void_p)
#: Only for texts without a percent sign, or with each of them doubled: nothing may be passed for the dots of its prototype.
errlogPrintf = _bind(com, c_int, "errlogPrintf", c_char_p)
errlogAddListener = _bind(com, None, "errlogAddListener", c_void_p, c_void_p)
errlogRemoveListeners = _bind(com, c_int, "errlogRemoveListeners", c_void_p, c_void_p)
initHookRegister = _bind(com, c_int, "initHookRegister", c_void_p)
iocshCmd = _bind(com, c_int, "iocshCmd", c_char_p)
iocshRegister = _bind(com, None, "iocshRegister", c_void_p, c_void_p)

# dbCore: start and stop
iocshRegisterCommon = _bind(core, None, "iocshRegisterCommon")
dbLoadDatabase = _bind(core, c_int, "dbLoadDatabase", c_char_p, c_char_p, c_char_p)
dbLoadRecords = _bind(core, c_int, "dbLoadRecords", c_char_p, c_char_p)
registerAllRecordDeviceDrivers = _bind(core, c_long, "registerAllRecordDeviceDrivers", c_void_p)
registryFunctionAdd = _bind(core, c_int, "registryFunctionAdd", c_char_p, c_void_p)
registryDeviceSupportAdd = _bind(core, c_int, "registryDeviceSupportAdd", c_char_p, c_void_p)
dbLoadTemplate = _bind(core, c_int, "dbLoadTemplate", c_char_p, c_char_p)
#: How many names a pattern of a substitution file may have; the room for macros follows from it.
dbTemplateMaxVars: Final = c_int.in_dll(core, "dbTemplateMaxVars")
iocBuildIsolated = _bind(core, c_int, "iocBuildIsolated")
iocInit = _bind(core, c_int, "iocInit")
getIocState = _bind(core, c_int, "getIocState")

# EPICS Base's access security, by which its Channel Access server judges
asSetFilename = _bind(core, c_int, "asSetFilename", c_char_p)
asSetSubstitutions = _bind(core, c_int, "asSetSubstitutions", c_char_p)
asInit = _bind(core, c_int, "asInit")
asTrapWriteRegisterListener = _bind(com, c_void_p, "asTrapWriteRegisterListener", c_void_p)
#: Judge by the address of a client and not by the host name that it claims.
asCheckClientIP: Final = c_int.in_dll(com, "asCheckClientIP")

# dbCore: the static database
dbInitEntry = _bind(core, None, "dbInitEntry", c_void_p, _entry)
dbInitEntryFromRecord = _bind(core, None, "dbInitEntryFromRecord", c_void_p, _entry)
dbFinishEntry = _bind(core, None, "dbFinishEntry", _entry)
dbFirstRecordType = _bind(core, c_long, "dbFirstRecordType", _entry)
dbNextRecordType = _bind(core, c_long, "dbNextRecordType", _entry)
dbFindRecordType = _bind(core, c_long, "dbFindRecordType", _entry, c_char_p)
dbFindMenu = _bind(core, POINTER(dbMenu), "dbFindMenu", c_void_p, c_char_p)
dbFirstRecord = _bind(core, c_long, "dbFirstRecord", _entry)
dbNextRecord = _bind(core, c_long, "dbNextRecord", _entry)
dbGetNRecords = _bind(core, c_int, "dbGetNRecords", _entry)
dbFindRecord = _bind(core, c_long, "dbFindRecord", _entry, c_char_p)
dbGetString = _bind(core, c_char_p, "dbGetString", _entry)
dbPutString = _bind(core, c_long, "dbPutString", _entry, c_char_p)
dbPutMenuIndex = _bind(core, c_long, "dbPutMenuIndex", _entry, c_int)
dbFindField = _bind(core, c_long, "dbFindField", _entry, c_char_p)
dbFirstField = _bind(core, c_long, "dbFirstField", _entry, c_int)
dbNextField = _bind(core, c_long, "dbNextField", _entry, c_int)
dbIsAlias = _bind(core, c_int, "dbIsAlias", _entry)
dbGetInfo = _bind(core, c_char_p, "dbGetInfo", _entry, c_char_p)

# dbCore: channels
dbChannelTest = _bind(core, c_long, "dbChannelTest", c_char_p)
dbChannelCreate = _bind(core, _chan, "dbChannelCreate", c_char_p)
dbChannelOpen = _bind(core, c_long, "dbChannelOpen", _chan)
dbChannelDelete = _bind(core, None, "dbChannelDelete", c_void_p)
dbChannelGet = _bind(core, c_long, "dbChannelGet", c_void_p, c_short, c_void_p, c_void_p, c_void_p, c_void_p)
dbChannelGetField = _bind(
    core, c_long, "dbChannelGetField", c_void_p, c_short, c_void_p, c_void_p, c_void_p, c_void_p
)
# The same function without declared arguments: the hot path passes ready-made ctypes objects, which saves 0.2 us.
dbChannelGetFieldFast: Any = ctypes.CDLL(library_file("dbCore")).dbChannelGetField
dbChannelGetFieldFast.restype = c_long
_held: Final = ctypes.PyDLL(library_file("dbCore"))
#: For callers that hold the record's lock; arguments must be ready-made.
dbChannelGetHeld: Any = _held.dbChannelGet
dbChannelGetHeld.restype = c_long
dbChannelPut = _bind(core, c_long, "dbChannelPut", c_void_p, c_short, c_void_p, c_long)
dbChannelPutField = _bind(core, c_long, "dbChannelPutField", c_void_p, c_short, c_void_p, c_long)
dbChannelRunPreChain = _bind(core, c_void_p, "dbChannelRunPreChain", c_void_p, c_void_p)
dbChannelRunPostChain = _bind(core, c_void_p, "dbChannelRunPostChain", c_void_p, c_void_p)
db_create_read_log = _bind(core, c_void_p, "db_create_read_log", c_void_p)
db_delete_field_log = _bind(core, None, "db_delete_field_log", c_void_p)
dbIsValueField = _bind(core, c_int, "dbIsValueField", POINTER(dbFldDes))
dbProcess = _bind(core, c_long, "dbProcess", c_void_p)
scanOnce = _bind(core, c_int, "scanOnce", c_void_p)
dbGetLink = _bind(core, c_long, "dbGetLink", c_void_p, c_short, c_void_p, c_void_p, c_void_p)
recGblSetSevr = _bind(core, c_int, "recGblSetSevr", c_void_p, c_int, c_int)
#: As with errlogPrintf: the text is a format.
db_post_events = _bind(core, c_int, "db_post_events", c_void_p, c_void_p, c_uint)
recGblResetAlarms = _bind(core, ctypes.c_ushort, "recGblResetAlarms", c_void_p)
recGblSetSevrMsg = _bind(core, c_int, "recGblSetSevrMsg", c_void_p, c_int, c_int, c_char_p)
dbProcessNotify = _bind(core, None, "dbProcessNotify", POINTER(processNotify))
dbNotifyCancel = _bind(core, None, "dbNotifyCancel", POINTER(processNotify))

# dbCore: link support
registryJLinkAdd = _bind(core, c_int, "registryJLinkAdd", c_void_p, c_void_p)
dbLinkFieldName = _bind(core, c_char_p, "dbLinkFieldName", c_void_p)
dbLinkAsyncComplete = _bind(core, None, "dbLinkAsyncComplete", c_void_p)

# dbCore: locks
dbScanLock = _bind(core, None, "dbScanLock", c_void_p)
dbScanUnlock = _bind(core, None, "dbScanUnlock", c_void_p)
# Only dbScanLockMany waits for records.
dbLockerAlloc = _bind(_held, c_void_p, "dbLockerAlloc", c_void_p, ctypes.c_size_t, c_uint)
dbLockerFree = _bind(_held, None, "dbLockerFree", c_void_p)
dbScanLockMany = _bind(core, None, "dbScanLockMany", c_void_p)
dbScanUnlockMany = _bind(_held, None, "dbScanUnlockMany", c_void_p)

# dbCore: events
db_init_events = _bind(core, c_void_p, "db_init_events")
db_start_events = _bind(core, c_int, "db_start_events", c_void_p, c_char_p, c_void_p, c_void_p, c_uint)
db_close_events = _bind(core, None, "db_close_events", c_void_p)
db_add_event = _bind(core, c_void_p, "db_add_event", c_void_p, c_void_p, c_void_p, c_void_p, c_uint)
db_event_enable = _bind(core, None, "db_event_enable", c_void_p)
db_event_disable = _bind(core, None, "db_event_disable", c_void_p)
db_cancel_event = _bind(core, None, "db_cancel_event", c_void_p)


def pdbbase() -> c_void_p:
    """Return the database of this process; its value is ``None`` before a definition is loaded."""
    return c_void_p.in_dll(core, "pdbbase")


def text(raw: bytes | None) -> str:
    """Decode a string of EPICS.

    EPICS knows bytes only. Those that are not UTF-8 become surrogate escapes, so that an encoder which
    uses the same rule sends them on unchanged, as the reference server does.
    """
    return "" if raw is None else raw.decode("utf-8", "surrogateescape")


def c_text(data: bytes) -> str:
    """Decode a field of fixed size, up to its nul or its end, whichever comes first."""
    return text(data.partition(b"\0")[0])


def raw(value: str) -> bytes:
    """Encode text for EPICS; the inverse of :func:`text`."""
    return value.encode("utf-8", "surrogateescape")


def cut(data: bytes, room: int) -> bytes:
    """Cut a string of EPICS to ``room`` octets, but never within a UTF-8 character.

    Octets that are not UTF-8 are cut at ``room``.
    """
    if len(data) <= room:
        return data
    # A character has at most three octets after its first one.
    for start in range(room, max(room - 4, -1), -1):
        if data[start] & 0xC0 != 0x80:
            length = (
                4 if data[start] >= 0xF0 else 3 if data[start] >= 0xE0 else 2 if data[start] >= 0xC0 else 1
            )
            return data[:start] if start + length > room else data[:room]
    return data[:room]
