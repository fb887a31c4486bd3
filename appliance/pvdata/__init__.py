"""PVData: types, values, normative types (`nt`) and text. Pure.

What programs need is exported here; codecs, bit sets and pvRequests are in modules of their own.

Everything here together imports in some milliseconds: no numpy, no typing, no dataclasses.
"""

from __future__ import annotations

from appliance.pvdata.render import render, render_type
from appliance.pvdata.store import AnyValue, UnionValue
from appliance.pvdata.types import (
    ANY,
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    AnyType,
    ArrayType,
    BoundedString,
    ScalarType,
    StructType,
    TypeDesc,
    UnionType,
)
from appliance.pvdata.value import Value, View

__all__ = [
    "ANY",
    "BOOL",
    "FLOAT32",
    "FLOAT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "STRING",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "AnyType",
    "AnyValue",
    "ArrayType",
    "BoundedString",
    "ScalarType",
    "StructType",
    "TypeDesc",
    "UnionType",
    "UnionValue",
    "Value",
    "View",
    "render",
    "render_type",
]
