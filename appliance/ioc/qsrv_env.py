"""The variables that switch the servers of an IOC on and off, as in QSRV2 and EPICS Base.

They are read at ``iocInit``, from the environment that ``epicsEnvSet`` also changes. EPICS Base itself obeys
EPICS_IOC_IGNORE_SERVERS for its Channel Access server (``rsrv``).
"""

from __future__ import annotations

import logging
import os
from typing import Final

from appliance.config.pva import variables
from appliance.ioc import dbcore

__all__ = ["LateSettings", "shell_environment", "why_not_served"]

_log: Final = logging.getLogger(__name__)

_QSRV_ENABLE: Final = "PVXS_QSRV_ENABLE"
_IGNORE_SERVERS: Final = "EPICS_IOC_IGNORE_SERVERS"
_NAME: Final = "qsrv2"


def why_not_served(*, report: bool = False) -> str:
    """Return the variable that forbids to serve records over PVAccess; "" if none does. ``report`` logs a bad value."""
    ignored = dbcore.environment_value(_IGNORE_SERVERS) or ""
    if _NAME in ignored.split():
        return f"{_IGNORE_SERVERS}={ignored}"
    enable = dbcore.environment_value(_QSRV_ENABLE)
    if enable is not None and enable.upper() == "NO":
        return f"{_QSRV_ENABLE}={enable}"
    if report and enable is not None and enable.upper() != "YES":
        _log.error("%s=%s is neither YES nor NO: YES is assumed", _QSRV_ENABLE, enable)
    return ""


def shell_environment() -> dict[str, str]:
    """Return the environment with the variables of PVAccess as ``epicsEnvSet`` has left them."""
    environ = dict(os.environ)
    for name in variables():
        value = dbcore.environment_value(name)
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return environ


class LateSettings:
    """Finds variables of PVAccess that a script sets too late: they have no effect, as with QSRV2."""

    def __init__(self) -> None:
        self._before = {name: dbcore.environment_value(name) for name in sorted(variables())}

    def report(self) -> None:
        """Log each variable that has changed since the start. Its value is not shown: it may be a password."""
        for name, before in self._before.items():
            now = dbcore.environment_value(name)
            if now != before:
                self._before[name] = now
                _log.warning(
                    "%s was set in the IOC shell, which is too late: PVAccess settings are read when the IOC starts; set "
                    "the variable before softIocPVX is started, or write the setting under 'pva' in a --config file",
                    name,
                )
