"""Values as JSON.

JSON has no NaN and no infinities, so they become the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which
``Value.assign`` reads back as numbers. Integers keep all their digits, also beyond 2**53. A union is
``{"member": value}`` or null, an any is its value or null. Octets that are not UTF-8 become U+FFFD.
"""

from __future__ import annotations

from appliance.pvdata.value import Value, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["to_plain"]


def to_plain(value: Any) -> Any:
    """Convert a Value, a View or a leaf to what ``json.dumps(..., allow_nan=False)`` accepts."""
    if isinstance(value, (Value, View)):
        return _clean(value.to_dict())
    from appliance.pvdata.value import plain

    return _clean(plain(value))


def _clean(x: Any) -> Any:
    if isinstance(x, float):
        if x != x:  # noqa: PLR0124 - NaN
            return "NaN"
        if x in (float("inf"), float("-inf")):
            return "Infinity" if x > 0 else "-Infinity"
        return x
    if isinstance(x, str):
        return x if x.isascii() else x.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(x, dict):
        return {_clean(name): _clean(item) for name, item in x.items()}
    if isinstance(x, list):
        return [_clean(item) for item in x]
    return x
