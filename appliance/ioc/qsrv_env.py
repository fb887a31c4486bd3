"""The variables by which EPICS users switch servers of an IOC on and off; the same as for QSRV2 and EPICS Base.

They are looked at with ``iocInit``, in the environment that ``epicsEnvSet`` changes too. EPICS Base itself obeys
EPICS_IOC_IGNORE_SERVERS for its Channel Access server (``rsrv``).
"""

from __future__ import annotations

import logging
from typing import Final

from appliance.ioc import dbcore

__all__ = ["why_not_served"]

_log: Final = logging.getLogger(__name__)

_QSRV_ENABLE: Final = "PVXS_QSRV_ENABLE"
_IGNORE_SERVERS: Final = "EPICS_IOC_IGNORE_SERVERS"
_NAME: Final = "qsrv2"


def why_not_served(*, report: bool = False) -> str:
    """Return which variable forbids to serve records over PVAccess; empty where none does. ``report`` logs a bad value."""
    ignored = dbcore.environment_value(_IGNORE_SERVERS) or ""
    if _NAME in ignored.split():
        return f"{_IGNORE_SERVERS}={ignored}"
    enable = dbcore.environment_value(_QSRV_ENABLE)
    if enable is not None and enable.upper() == "NO":
        return f"{_QSRV_ENABLE}={enable}"
    if report and enable is not None and enable.upper() != "YES":
        _log.error("%s=%s is neither YES nor NO: YES is assumed", _QSRV_ENABLE, enable)
    return ""
