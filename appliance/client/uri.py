"""Arguments of an RPC as an NTURI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.pvdata.coerce import infer
from appliance.pvdata.types import STRING, StructType
from appliance.pvdata.value import Value

__all__ = ["uri_value"]


def uri_value(path: str, query: Mapping[str, Any], *, scheme: str = "pva") -> Value:
    """Make the NTURI that calls ``path`` with ``query``; a query value may be a Value.

    Raises:
        PVDataError: The type of an argument cannot be inferred.
    """
    fields = []
    values: dict[str, Any] = {}
    for name, item in query.items():
        kind, plain = (item.type, item) if isinstance(item, Value) else infer(item)
        fields.append((name, kind))
        values[name] = plain
    kind = StructType(
        (("scheme", STRING), ("path", STRING), ("query", StructType(fields))), id="epics:nt/NTURI:1.0"
    )
    value = Value(kind, {"scheme": scheme, "path": path})
    for name, item in values.items():
        value[f"query.{name}"] = item
    value.mark()
    return value
