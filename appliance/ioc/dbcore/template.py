"""The variable of EPICS Base that bounds substitution files (dbLoadTemplate); scripts set it with ``var dbTemplateMaxVars N``."""

from __future__ import annotations

from typing import Final

from appliance.errors import ConfigurationError
from appliance.ioc.dbcore import _c

__all__ = ["most_template_names", "set_most_template_names"]

_MOST: Final = (2**31 - 1) // 50
"""EPICS Base takes 50 octets for each name, and counts them in 32 bits: with more its buffer is too small."""


def most_template_names() -> int:
    """Return how many names a pattern may have (``dbTemplateMaxVars``).

    Raises:
        ConfigurationError: EPICS Base cannot load a substitution file with this number.
    """
    value = _c.dbTemplateMaxVars.value
    if not 1 <= value <= _MOST:
        raise ConfigurationError(f"dbTemplateMaxVars is {value}: it must be from 1 to {_MOST}")
    return int(value)


def set_most_template_names(value: int) -> None:
    """Set it, as ``var`` does."""
    _c.dbTemplateMaxVars.value = value
