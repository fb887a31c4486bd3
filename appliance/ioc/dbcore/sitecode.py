"""A site's own support in C: loaded into the process, or replaced by stand-ins where its code must not run."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_long, c_void_p
from pathlib import Path
from typing import Final

from appliance.errors import ConfigurationError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.boot import environment_value, keep

__all__ = [
    "base_folder",
    "base_version",
    "has_symbol",
    "is_loaded",
    "load_library",
    "stand_in_device",
    "stand_in_driver",
    "stand_in_function",
]

_process: Final = ctypes.CDLL(None)
_libraries: Final[dict[str, ctypes.CDLL]] = {}
_FUNCTION: Final = ctypes.CFUNCTYPE(c_long, c_void_p)
_FUNCTIONS: Final = 20
"""More functions than any device support of EPICS Base has."""
_REPORT_TO_INTERRUPT: Final = 4
"""report, init, init_record, get_ioint_info: the functions of a device support that may be missing."""


def base_folder() -> Path:
    """Return the folder of EPICS Base, with ``lib``, ``dbd`` and ``include``."""
    return _c.epics_base()


def base_version() -> str:
    """Return the version of EPICS Base, after :func:`.boot.boot`."""
    return environment_value("EPICS_VERSION_FULL") or ""


def has_symbol(name: str) -> bool:
    """Whether a library of this process has a symbol for others."""
    return hasattr(_process, name)


def is_loaded(soname: str) -> bool:
    """Whether a shared library is part of this process already; it is not loaded."""
    try:
        ctypes.CDLL(soname, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True


def load_library(path: str) -> None:
    """Load a shared library, so that EPICS finds its symbols (dlopen, RTLD_NOW and RTLD_GLOBAL). Its constructors run.

    Raises:
        ConfigurationError: The system's loader refused it.
    """
    if path in _libraries:
        return
    try:
        _libraries[path] = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise ConfigurationError(f"cannot be loaded: {said}", file=path) from None


def _nothing(_argument: int | None) -> int:
    return 0


class _Device(ctypes.Structure):
    _fields_ = (("number", c_long), ("functions", c_void_p * _FUNCTIONS))


class _Driver(ctypes.Structure):
    _fields_ = (("number", c_long), ("functions", c_void_p * 2))


_stand_in: Final = _FUNCTION(_nothing)
_device: Final = _Device(_FUNCTIONS)
for _index in range(_REPORT_TO_INTERRUPT, _FUNCTIONS):
    _device.functions[_index] = ctypes.cast(_stand_in, c_void_p).value
_driver: Final = _Driver(2)


def _name(name: str) -> c_char_p:
    # The registries keep the pointer.
    kept = ctypes.create_string_buffer(name.encode())
    keep(kept)
    return ctypes.cast(kept, c_char_p)


def stand_in_device(name: str) -> None:
    """Register device support that does nothing."""
    _c.registryDeviceSupportAdd(_name(name), ctypes.addressof(_device))


def stand_in_driver(name: str) -> None:
    """Register driver support that does nothing."""
    add = _c.core.registryDriverSupportAdd
    add.argtypes, add.restype = (c_char_p, c_void_p), c_int
    add(_name(name), ctypes.addressof(_driver))


def stand_in_function(name: str) -> None:
    """Register a function of sub and aSub records that does nothing."""
    _c.registryFunctionAdd(_name(name), ctypes.cast(_stand_in, c_void_p))
