"""``softIocPVX --check-config``: a start in a child process that ends before a record is processed."""

from __future__ import annotations

from appliance.errors import ConfigurationError
from appliance.ioc.config import Plan
from appliance.ioc.trial import Trial

__all__ = ["check"]


def check(plan: Plan) -> list[str]:
    """Load everything that the plan names and return warnings.

    Raises:
        ConfigurationError: The first fault that was found.
    """
    result = Trial(plan._replace(is_check=True)).result()
    if result.faults:
        others = len(result.faults) - 1
        raise ConfigurationError(result.faults[0] + (f" (and {others} more)" if others else ""))
    warnings = list(result.warnings)
    if result.left_out:
        warnings.append(f"links and groups are not checked: {result.left_out}")
    return warnings
