"""Puts over Channel Access that must be logged (TRAPWRITE, asTrapWrite.h)."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_int, c_void_p
from typing import Any, Final, NamedTuple

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.boot import keep
from appliance.ioc.dbcore.channel import DBChannel
from appliance.ioc.dbcore.records import common_place

__all__ = ["TrappedPut", "on_trapped_put"]

_log: Final = logging.getLogger(__name__)
_SHOWN: Final = 1024
"""The most elements of a value that are reported; a log shows fewer."""


class _Message(Structure):
    _fields_ = (
        ("userid", c_char_p),
        ("hostid", c_char_p),
        ("channel", POINTER(_c.dbChannel)),
        ("private", c_void_p),
        ("dbrType", c_int),
        ("no_elements", c_int),
        ("data", c_void_p),
    )


_LISTENER: Final = ctypes.CFUNCTYPE(None, POINTER(_Message), c_int)
_CODES: Final = ("S40", "i2", "f4", "u2", "i1", "i4", "f8")
"""numpy type strings of Channel Access' own types, by number: STRING SHORT FLOAT ENUM CHAR LONG DOUBLE."""
_CHAR: Final = 4
_ACKNOWLEDGE: Final = (35, 36)
"""DBR_PUT_ACKT and DBR_PUT_ACKS: a number of 16 bits."""


class TrappedPut(NamedTuple):
    """One put, before it is done."""

    account: str
    """The name that the client claims."""
    host: str
    pv: str
    record: str
    field: str
    old: Any
    new: Any
    """The value that the client sent."""


def _sent(message: _Message) -> Any:
    """Return the value that a client sent; of a long array only the first elements."""
    import numpy as np

    kind, count = message.dbrType, min(max(message.no_elements, 0), _SHOWN)
    code = "u2" if kind in _ACKNOWLEDGE else _CODES[kind] if 0 <= kind < len(_CODES) else ""
    if not code or not message.data or not count:
        return None
    dtype = np.dtype(code)
    data = ctypes.string_at(message.data, count * dtype.itemsize)
    if code == "S40":
        texts = [_c.c_text(data[at : at + dtype.itemsize]) for at in range(0, len(data), dtype.itemsize)]
        return texts[0] if message.no_elements == 1 else texts
    field_type = message.channel.contents.addr.pfldDes.contents.field_type
    if kind == _CHAR and (field_type == _c.DBF_STRING or _c.DBF_INLINK <= field_type <= _c.DBF_FWDLINK):
        return _c.c_text(data)
    numbers = np.frombuffer(data, dtype)
    return numbers[0].item() if message.no_elements == 1 else numbers


class _Vetoes:
    """Makes EPICS refuse a put, which a listener cannot do itself: it sets the record's field DISP during the put.

    DISP gets a special value, so that a value from somebody else is not overwritten.
    """

    _MARK: Final = 0x80

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[int, int] = {}

    def begin(self, message: _Message) -> None:
        """Make EPICS refuse this put."""
        address = message.channel.contents.addr
        disabled = ctypes.c_ubyte.from_address(address.precord + common_place("DISP"))
        if address.pfield == ctypes.addressof(disabled):
            # DISP does not protect itself: the client's value is replaced by the present one.
            _overwrite(message, disabled.value & ~self._MARK)
            return
        with self._lock:
            self._records[address.precord] = self._records.get(address.precord, 0) + 1
            disabled.value |= self._MARK

    def end(self, message: _Message) -> None:
        """Allow puts to the record again: this put was refused."""
        address = message.channel.contents.addr
        disabled = ctypes.c_ubyte.from_address(address.precord + common_place("DISP"))
        if address.pfield == ctypes.addressof(disabled):
            return
        with self._lock:
            left = self._records[address.precord] - 1
            if left:
                self._records[address.precord] = left
                return
            del self._records[address.precord]
            if disabled.value & self._MARK:
                disabled.value &= ~self._MARK


def _overwrite(message: _Message, value: int) -> None:
    """Replace everything that the client sent by a number."""
    import numpy as np

    if not message.data or not 0 <= message.dbrType < len(_CODES):
        return
    code = _CODES[message.dbrType]
    new = np.array([str(value).encode() if code == "S40" else value] * max(message.no_elements, 1), code)
    ctypes.memmove(message.data, new.tobytes(), new.nbytes)


def on_trapped_put(function: Callable[[TrappedPut], None]) -> None:
    """Call a function, in threads of EPICS, before each put of the Channel Access server that must be logged.

    A put for which the function raises is not done.
    """
    vetoes = _Vetoes()

    def handle(message: _Message) -> None:
        channel = DBChannel(_c.text(message.channel.contents.name))
        try:
            put = TrappedPut(
                _c.text(message.userid), _c.text(message.hostid), channel.name, channel.record, channel.field,
                channel.get().value, _sent(message),
            )  # fmt: skip
        finally:
            channel.close()
        function(put)

    def listen(pointer: Any, after: int) -> None:
        message = pointer.contents
        try:
            if after:
                if message.private:
                    vetoes.end(message)
                return
            try:
                handle(message)
            except Exception as error:
                message.private = 1
                vetoes.begin(message)
                if not isinstance(error, ApplianceError):
                    raise
        except Exception:  # noqa: BLE001 - an exception must not enter C
            _log.exception("the put log misses a put over Channel Access")

    listener = _LISTENER(listen)
    keep(listener)
    _c.asTrapWriteRegisterListener(ctypes.cast(listener, c_void_p))
