"""Options of dbChannelGet, and the layout of its result in our memory (db_access.h, dbAccessDefs.h).

EPICS writes one block for each option, in a fixed order, and the value last. It takes the options and the
number of elements by address, and writes there the supported options and the number of elements read.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final

from appliance.ioc.dbcore import _c

#: Alarm, time stamp and user tag.
META: Final = _c.DBR_STATUS | _c.DBR_AMSG | _c.DBR_TIME | _c.DBR_UTAG
# status, severity, acks, ackt, amsg, seconds, nanoseconds, tag. Nanoseconds have a sign on the wire: of an impossible time they are negative there, too.
_META_FORMAT: Final = "4H40sIiQ"
META_STRUCT: Final = struct.Struct("=" + _META_FORMAT)
META_SIZE: Final = META_STRUCT.size
#: The same with one value behind it, by DBR code.
SCALAR_STRUCTS: Final = tuple(struct.Struct(f"={_META_FORMAT}{code}") for code in _c.STRUCT_CODES)
#: One value, by DBR code.
VALUE_STRUCTS: Final = tuple(struct.Struct("=" + code) for code in _c.STRUCT_CODES)
#: Octets of one value, by DBR code.
ITEM_SIZES: Final = tuple(each.size for each in VALUE_STRUCTS)

PROPERTIES: Final = (
    _c.DBR_UNITS
    | _c.DBR_PRECISION
    | _c.DBR_ENUM_STRS
    | _c.DBR_GR_DOUBLE
    | _c.DBR_CTRL_DOUBLE
    | _c.DBR_AL_DOUBLE
)
#: Choices of an enum, at most (DB_MAX_CHOICES).
MAX_CHOICES: Final = 30
# units, precision, number of choices, padding, choices, upper and lower display and control limits, and the
# alarm limits: upper alarm, upper warning, lower warning, lower alarm
PROPERTIES_STRUCT: Final = struct.Struct(f"=16sqIi{MAX_CHOICES * _c.MAX_STRING_SIZE}s2d2d4d")

#: Options and number of elements, which EPICS takes by address.
CONTROL: Final = struct.Struct("=qq")
#: DBR codes as arguments, made once.
_CODES: Final = {code: ctypes.c_short(code) for code in range(12)}
#: No field log: read the record itself.
_NO_LOG: Final = ctypes.c_void_p(None)


def get_arguments(channel: int, code: int, data: int, control: int) -> tuple[Any, ...]:
    """Return the arguments of dbChannelGet, made once for all calls.

    Args:
        channel: Address of the dbChannel.
        code: DBR code of the value.
        data: Address of the block that EPICS fills.
        control: Address of the options and the number of elements (`CONTROL`).
    """
    return (
        ctypes.c_void_p(channel),
        _CODES[code],
        ctypes.c_void_p(data),
        ctypes.c_void_p(control),
        ctypes.c_void_p(control + 8),
        _NO_LOG,
    )
