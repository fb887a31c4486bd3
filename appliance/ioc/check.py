"""``softIocPVX --check-config``: whatever can be known without starting the IOC."""

from __future__ import annotations

import os

from appliance.errors import ConfigurationError
from appliance.ioc.access import read_access_file
from appliance.ioc.channel_access import rules_for_channel_access
from appliance.ioc.config import Plan
from appliance.ioc.groups.config import GroupConfigs
from appliance.ioc.groups.source import read_group_file

__all__ = ["check"]


def check(plan: Plan) -> list[str]:
    """Look at all files that the plan names and return warnings. Raises an ApplianceError for the first fault."""
    warnings: list[str] = []
    files = [plan.definition, plan.script, *(step.file for step in plan.databases)]
    for file in filter(None, files):
        # Databases may also lie in EPICS_DB_INCLUDE_PATH: only what is named with a folder is known to be missing.
        if "/" in file and not os.access(file, os.R_OK):
            raise ConfigurationError("cannot be read", file=file)
    configs = GroupConfigs(warnings.append)
    for step in plan.groups:
        configs.add(read_group_file(step), file=step.file)
    for group in configs.groups.values():
        group.check(warnings.append)
    if plan.acf is not None:
        security = read_access_file(plan.acf)
        warnings.extend(security.warnings)
        if plan.channel_access:
            rules_for_channel_access(security, lambda _: True)
    return warnings
