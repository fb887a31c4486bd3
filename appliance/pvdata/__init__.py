"""PVData: types, values, bit sets, compiled codecs, pvRequest, normative types and text. Pure.

Everything here together imports in some milliseconds: no numpy, no typing, no dataclasses.
"""

from __future__ import annotations

from appliance.pvdata.bitset import decode_bitset, encode_bitset, iter_bits
from appliance.pvdata.codec import Codec, codec
from appliance.pvdata.fielddesc import TypeReader, TypeWriter, decode_type, encode_type
from appliance.pvdata.primitives import (
    DecodeLimits,
    decode_count,
    decode_size,
    decode_string,
    encode_size,
    encode_string,
)
from appliance.pvdata.pvrequest import PVRequest, request_mask, request_options, select_bits
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
    "Codec",
    "DecodeLimits",
    "PVRequest",
    "ScalarType",
    "StructType",
    "TypeDesc",
    "TypeReader",
    "TypeWriter",
    "UnionType",
    "UnionValue",
    "Value",
    "View",
    "codec",
    "decode_bitset",
    "decode_count",
    "decode_size",
    "decode_string",
    "decode_type",
    "encode_bitset",
    "encode_size",
    "encode_string",
    "encode_type",
    "iter_bits",
    "render",
    "render_type",
    "request_mask",
    "request_options",
    "select_bits",
]
