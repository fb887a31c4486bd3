"""The options of a PVA link: ``"name"``, or an object with the key ``pv`` and others."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, NamedTuple

from appliance.client.channels import check_name
from appliance.errors import ApplianceError, PVDataError

__all__ = ["LinkOptions", "Process", "Severity", "parse_options"]


class Process(Enum):
    """The option ``proc``."""

    DEFAULT = "Def"
    """The server decides; of an input: as NPP."""
    NPP = "NPP"
    PP = "PP"
    CP = "CP"
    CPP = "CPP"


class Severity(Enum):
    """The option ``sevr``: which severities of the PV the record gets."""

    NMS = "NMS"
    MS = "MS"
    MSI = "MSI"


class LinkOptions(NamedTuple):
    """The options of one link."""

    pv: str
    field: str = ""
    """The dotted path of the used field; empty for the top."""
    queue_size: int = 4
    """Updates that wait for a record that is processed by each of them."""
    pipeline: bool = False
    proc: Process = Process.DEFAULT
    sevr: Severity = Severity.NMS
    time: bool = False
    monorder: int = 0
    defer: bool = False
    retry: bool = False
    local: bool = False
    always: bool = False
    """Accepted and without effect, as in pvxs."""
    atomic: bool = False


_PROC: Final[dict[Any, Process]] = {
    None: Process.DEFAULT,
    "": Process.DEFAULT,
    True: Process.PP,
    False: Process.NPP,
    "NPP": Process.NPP,
    "PP": Process.PP,
    "CP": Process.CP,
    "CPP": Process.CPP,
}
_SEVR: Final[dict[Any, Severity]] = {
    None: Severity.NMS,
    True: Severity.MS,
    False: Severity.NMS,
    "NMS": Severity.NMS,
    "MS": Severity.MS,
    "MSI": Severity.MSI,
    # The severity of a PV says nothing of the condition that EPICS would copy; pvxs takes MSS as MS.
    "MSS": Severity.MS,
}
_TEXTS: Final = frozenset(("pv", "field"))
_FLAGS: Final = frozenset(("pipeline", "time", "defer", "retry", "local", "always", "atomic"))
_NUMBERS: Final = {"Q": ("queue_size", 1, 65_536), "monorder": ("monorder", -1024, 1024)}
"""By key: the field's name, and the bounds to which numbers are limited, as pvxs does."""
_KEYS: Final = (
    "pv", "field", "local", "Q", "pipeline", "proc", "sevr", "time", "monorder", "retry", "always", "defer", "atomic",
)  # fmt: skip


def parse_options(said: Any) -> LinkOptions:
    """Return the options of a link.

    Args:
        said: A text, which is the PV's name, or pairs of key and value. Values are what JSON has: None, bool, int, float, str.

    Raises:
        PVDataError: Something is wrong with them; the text is one sentence.
    """
    if isinstance(said, str):
        return LinkOptions(_name(said))
    if not isinstance(said, list):
        raise PVDataError(f'{_shown(said)} names no PV; write {{pva:"name"}} or {{pva:{{pv:"name"}}}}')
    found: dict[str, Any] = {}
    for key, value in said:
        field = "queue_size" if key == "Q" else key
        if field in found:
            raise PVDataError(f"the key {key} is given twice")
        found[field] = _read(key, value)
    if "pv" not in found:
        raise PVDataError("the key pv is missing, which names the PV")
    return LinkOptions(**found)


def _read(key: str, value: Any) -> Any:
    if key in _TEXTS:
        if not isinstance(value, str):
            raise PVDataError(f"{key} must be text, not {_shown(value)}")
        return _name(value) if key == "pv" else value
    if key in _FLAGS:
        if value is None and key == "local":
            return False
        if not isinstance(value, bool):
            raise PVDataError(f"{key} must be true or false, not {_shown(value)}")
        return value
    if key in _NUMBERS:
        if type(value) is not int:
            raise PVDataError(f"{key} must be a whole number, not {_shown(value)}")
        _, low, high = _NUMBERS[key]
        return max(low, min(value, high))
    # 1 and 1.0 would be found as true.
    is_word = value is None or isinstance(value, (bool, str))
    if key == "proc":
        if not is_word or value not in _PROC:
            raise PVDataError(
                f'proc must be true, false, null, "NPP", "PP", "CP" or "CPP", not {_shown(value)}'
            )
        return _PROC[value]
    if key == "sevr":
        if not is_word or value not in _SEVR:
            raise PVDataError(f'sevr must be true, false, "NMS", "MS", "MSI" or "MSS", not {_shown(value)}')
        return _SEVR[value]
    raise PVDataError(f"there is no key {key[:64]!r}; the keys are {', '.join(_KEYS)}")


def _name(name: str) -> str:
    if not name:
        raise PVDataError("the name of the PV is empty")
    try:
        check_name(name)
    except ApplianceError as error:
        raise PVDataError(str(error)) from None
    return name


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)[:64]
