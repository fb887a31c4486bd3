"""Puts over Channel Access that access security has logged (TRAPWRITE, asTrapWrite.h)."""

from __future__ import annotations

import ctypes
import itertools
import logging
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_int, c_void_p
from typing import Any, Final, NamedTuple

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.boot import keep
from appliance.ioc.dbcore.channel import DBChannel

__all__ = ["TrappedPut", "on_trapped_put"]

_log: Final = logging.getLogger(__name__)


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


class TrappedPut(NamedTuple):
    """One put, as it was done."""

    account: str
    """What the client claims."""
    host: str
    pv: str
    record: str
    field: str
    old: Any
    new: Any
    """What the field had afterwards; the same as before where the put failed, which EPICS does not tell."""


class _Seen(NamedTuple):
    record: str
    field: str
    value: Any


def _read(name: str) -> _Seen:
    channel = DBChannel(name)
    try:
        return _Seen(channel.record, channel.field, channel.get().value)
    finally:
        channel.close()


def on_trapped_put(function: Callable[[TrappedPut], None]) -> None:
    """Call a function, in threads of EPICS, after each put of the Channel Access server that must be logged."""
    begun: dict[int, _Seen] = {}
    numbers = itertools.count(1)

    def handle(message: _Message, after: int) -> None:
        name = _c.text(message.channel.contents.name)
        if not after:
            number = next(numbers)
            message.private = number
            begun[number] = _read(name)
            return
        before = begun.pop(message.private or 0, None)
        now = _read(name)
        old = None if before is None else before.value
        function(
            TrappedPut(
                _c.text(message.userid), _c.text(message.hostid), name, now.record, now.field, old, now.value
            )
        )

    def listen(message: Any, after: int) -> None:
        try:
            handle(message.contents, after)
        except ApplianceError as error:
            _log.error("the put log misses a put over Channel Access: %s", error)
        except Exception:  # noqa: BLE001 - an exception must not enter C
            _log.exception("the put log misses a put over Channel Access")

    listener = _LISTENER(listen)
    keep(listener)
    _c.asTrapWriteRegisterListener(ctypes.cast(listener, c_void_p))
