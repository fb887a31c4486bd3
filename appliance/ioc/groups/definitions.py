"""All groups of the IOC, made from their definitions: info items of records, and files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc import dbcore
from appliance.ioc.config import LoadStep
from appliance.ioc.groups.config import DefinitionOrigin, GroupConfigs, GroupError
from appliance.ioc.groups.group import RecordGroup
from appliance.ioc.locate import FileLine
from appliance.ioc.macros import expand, parse_macros

__all__ = ["Groups", "read_group_file"]

_log: Final = logging.getLogger(__name__)
_LIMIT: Final = 16 * 1024 * 1024


def read_group_file(step: LoadStep) -> str:
    """Read a file of group definitions and expand its macros.

    Raises:
        ConfigurationError: The file cannot be read, or a macro has no value.
    """
    path = Path(step.file)
    try:
        if path.stat().st_size > _LIMIT:
            raise ConfigurationError(f"is larger than {_LIMIT} bytes", file=step.file)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigurationError(f"cannot read the group definitions: {why}", file=step.file) from None
    return expand(text, parse_macros(step.macros), file=step.file) if step.macros else text


class Groups:
    """All groups, made from the info items ``Q:group`` of all records and then from files.

    A wrong definition makes its own group fail. It is logged and added to ``faults``, and the trial before a start refuses it.
    A file that cannot be read or parsed raises ConfigurationError, as a database does.

    Args:
        files: definitions in addition to those of the records.
        place: returns file and line of a part of a definition.
        report: called with each ignored part of a definition; the default is the log.

    """

    def __init__(
        self,
        files: Iterable[LoadStep] = (),
        *,
        place: Callable[[DefinitionOrigin | None, str], FileLine | None] = lambda _origin, _near: None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.groups: dict[str, RecordGroup] = {}
        self.faults: list[ConfigurationError] = []
        """The reasons why groups are not served."""
        self._place = place
        self._tell = report or (lambda text: _log.warning("group %s", text))
        configs = GroupConfigs(self._tell)
        for record, text in dbcore.info_items("Q:group"):
            try:
                configs.add(text, record=record)
            except GroupError as error:
                self._refuse(error, f'{record}: info("Q:group")')
            except ConfigurationError as error:
                self._refuse(
                    GroupError(
                        error.why, key=f'{record}: info("Q:group")', origin=DefinitionOrigin(record, None)
                    )
                )
        for step in files:
            try:
                configs.add(read_group_file(step), file=step.file)
            except GroupError as error:
                raise self._located(error) from None
        for name, config in sorted(configs.groups.items()):
            if dbcore.exists(name):
                self._refuse(
                    GroupError(
                        "a record has the name of this group", key=name, origin=config.origin, near=name
                    )
                )
                continue
            try:
                self.groups[name] = RecordGroup(config, self._tell)
            except GroupError as error:
                self._refuse(error)
            except ApplianceError as error:
                self._refuse(GroupError(str(error), key=name, origin=config.origin, near=name))

    def _located(self, fault: GroupError, prefix: str = "") -> ConfigurationError:
        place = self._place(fault.origin, fault.near)
        key = f"group {fault.key}" if not prefix else f"{prefix}: {fault.key}"
        if place is None:
            return ConfigurationError(fault.why, key=key, file=fault.origin.file if fault.origin else None)
        return ConfigurationError(fault.why, key=key, file=place.file, line=place.line)

    def _refuse(self, fault: GroupError, prefix: str = "") -> None:
        error = self._located(fault, prefix)
        self.faults.append(error)
        _log.error("%s: this group is not served", error)
