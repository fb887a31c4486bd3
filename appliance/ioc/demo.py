"""Support that example databases of QSRV2 ask for: a test image, a rotating sine, user tags.

Same names and same results as in pvxs (``ioc/imagedemo.c``, ``ioc/demo.cpp``), so that its databases load here.
"""

from __future__ import annotations

from math import pi
from typing import Final

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import RecordView, register_device, register_function

#: Declares the device support of :func:`register_demo`, for :func:`.dbcore.load_definition_text`.
DEMO_DEFINITION: Final = """
device(waveform, CONSTANT, devWfPDBQ2Demo, "QSRV2 Demo")
device(longin, CONSTANT, devLoPDBQ2UTag, "QSRV2 Set UTag")
"""

_READ_ALARM, _COMM_ALARM, _LINK_ALARM = 1, 9, 14
_DOUBLE = 10
_GRID = 50
_WHITE = 65535
_RADIANS = pi / 180


def register_demo() -> None:
    """Register ``QSRV2_image_demo``, ``QSRV2 Demo`` and ``QSRV2 Set UTag``.

    Call it before :func:`.dbcore.boot`; then load :data:`DEMO_DEFINITION` and call
    :func:`.dbcore.register_support`.
    """
    register_function("QSRV2_image_demo", _image)
    register_device("devWfPDBQ2Demo", _spin)
    register_device("devLoPDBQ2UTag", _user_tag)


def _image(record: RecordView) -> int:
    """Fill VALA (USHORT) with a gradient under a white grid; A is the size of a line, B the number of lines."""
    import numpy as np

    width = int(record.array("A", record["FTA"], 1)[0])
    lines = int(record.array("B", record["FTB"], 1)[0])
    size = width * lines
    if not 0 < size <= record["NOVA"]:
        record.set_invalid(_READ_ALARM)
        return 0
    image = record.array("VALA", record["FTVA"], size).reshape(lines, width)
    image[:] = np.arange(width, dtype=np.uint64) * _WHITE // width
    image[_GRID - 1 :: _GRID] = _WHITE
    image[:, _GRID - 1 :: _GRID] = _WHITE
    record["NEVA"] = size
    return 0


def _spin(record: RecordView) -> int:
    """Fill a waveform of doubles with a sine of 100 samples a turn whose phase in degrees comes from INP."""
    import numpy as np

    if record["FTVL"] != _DOUBLE:
        record.set_invalid(_COMM_ALARM)
        return 0
    try:
        phase = record.link_number("INP")
    except ApplianceError:
        record.set_invalid(_LINK_ALARM)
        return -1
    count = record["NELM"]
    samples = record.array("BPTR", _DOUBLE, count)
    # In the reference's order of operations: the last bit of each sample is to be the same.
    np.sin(np.arange(count) * (360.0 * _RADIANS / 100) + phase * _RADIANS, out=samples)
    record["NORD"] = count
    record["UTAG"] = (record["UTAG"] + 1) & 0x7FFFFFFF
    return 0


def _user_tag(record: RecordView) -> int:
    """Take value and user tag from INP."""
    try:
        record["VAL"] = int(record.link_number("INP"))
    except ApplianceError:
        return -1
    record["UTAG"] = record["VAL"]
    return 0
