"""Give our rules to EPICS Base, whose Channel Access server judges by them, at the start and after each reload."""

from __future__ import annotations

import tempfile
from typing import Any

from appliance.acf import AccessSecurity
from appliance.errors import AccessFileError, ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.ca_rules import rules_for_channel_access

__all__ = ["ChannelAccessRules"]


class ChannelAccessRules:
    """Tells EPICS Base the rules; :meth:`prepare` before ``iocInit``, :meth:`replace` ever after.

    Both block.
    """

    def __init__(self) -> None:
        self._file: Any = None

    def prepare(self, security: AccessSecurity) -> None:
        """Make iocInit read the rules.

        Raises:
            AccessFileError: EPICS Base cannot express the rules.
        """
        text = rules_for_channel_access(security, dbcore.exists)
        self._file = tempfile.NamedTemporaryFile("w", suffix=".acf", encoding="utf-8")  # noqa: SIM115 - read again by each asInit
        self._write(text)
        dbcore.set_access_file(self._file.name)

    def replace(self, security: AccessSecurity) -> None:
        """Put other rules in force; does nothing if Channel Access is not served.

        Raises:
            AccessFileError: EPICS Base refuses the rules and keeps the former ones.
        """
        if self._file is None:
            return
        self._write(rules_for_channel_access(security, dbcore.exists))
        try:
            dbcore.init_access_security()
        except ApplianceError as error:
            raise AccessFileError(f"Channel Access refuses the rules: {error}", file=security.file) from error

    def _write(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
