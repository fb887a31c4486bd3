"""Our own client and server on 127.0.0.1, configured explicitly, and a set of PVs of every shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from appliance.client import Context
from appliance.config.pva import ClientConfig, ServerConfig, resolve_client, resolve_server
from appliance.errors import RemoteError
from appliance.pvdata.nt import NTEnum, NTNDArray, NTScalar, NTScalarArray, NTTable
from appliance.pvdata.types import (
    ANY,
    BOOL,
    FLOAT64,
    INT8,
    INT32,
    STRING,
    UINT64,
    ArrayType,
    StructType,
    UnionType,
)
from appliance.pvdata.value import Value
from appliance.server import Operation, Server, SharedPV

POINT = StructType((("x", FLOAT64), ("label", STRING)))
ODD = StructType(
    (
        ("points", ArrayType(POINT)),
        (
            "choice",
            UnionType((("number", INT32), ("text", STRING), ("point", StructType((("x", FLOAT64),))))),
        ),
        ("choices", ArrayType(UnionType((("number", INT32), ("text", STRING))))),
        ("anything", ANY),
        ("anythings", ArrayType(ANY)),
        ("flags", ArrayType(BOOL)),
        ("small", INT8),
        ("huge", UINT64),
    ),
    id="test:odd",
)


def client_config(udp_port: int | None = None, **more: Any) -> ClientConfig:
    """Search on 127.0.0.1 only; without a port nothing is ever searched for."""
    settings: dict[str, Any] = {"auto_addr_list": False, "tls_keychain": ""}
    if udp_port is not None:
        settings |= {"addr_list": "127.0.0.1", "broadcast_port": udp_port}
    return resolve_client({**settings, **more}, environ={}).config


def server_config(udp_port: int = 0, **more: Any) -> ServerConfig:
    """Serve on 127.0.0.1 only; every port is taken from the free ones unless given."""
    settings = {
        "intf_addr_list": "127.0.0.1",
        "server_port": 0,
        "tls_port": 0,
        "tls_keychain": "",
        "broadcast_port": udp_port,
        "auto_beacon_addr_list": False,
    }
    return resolve_server({**settings, **more}, environ={}).config


def client_of(server: Server, **options: Any) -> Context:
    """A client that finds ``server``; not yet started."""
    config = options.pop("config", None) or client_config(server.udp_port)
    return Context(config, beacons=options.pop("beacons", False), **options)


def double(value: float = 0.0) -> SharedPV:
    """A mailbox of one number."""
    return SharedPV.mailbox(Value(NTScalar(FLOAT64), {"value": value}))


def _refuse(pv: SharedPV, operation: Operation, value: Value) -> None:
    raise RemoteError("interlock is active")


def _add(pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
    if argument is None:
        raise RemoteError("lhs and rhs are needed")
    query = argument.get("query", argument)
    return Value(NTScalar(FLOAT64), {"value": float(query["lhs"]) + float(query["rhs"])})


def gallery(prefix: str = "our:") -> dict[str, SharedPV]:
    """PVs of every shape, by name."""
    table = NTTable().add_column(STRING, "name").add_column(FLOAT64, "current").create()
    table.assign({"value": {"name": ["q1", "q2"], "current": [1.5, 2.0]}})
    image = Value(NTNDArray())
    image.assign(
        {
            "value": {"ushortValue": np.arange(12, dtype="u2")},
            "dimension": [{"size": 4, "fullSize": 4, "binning": 1}, {"size": 3, "fullSize": 3, "binning": 1}],
        }
    )
    odd = Value(
        ODD,
        {
            "points": [{"x": 1.0, "label": "a"}, {"x": 2.0, "label": "b"}],
            "choice": {"text": "ü"},
            "choices": [{"number": 7}, {"text": "t"}],
            "anything": 2.5,
            "anythings": [1, "two"],
            "flags": [True, False],
            "small": -3,
            "huge": 2**63 + 1,
        },
    )
    scalar = Value(NTScalar(FLOAT64, display=True, control=True, value_alarm=True), {"value": 1.5})
    pvs = {
        "double": SharedPV.mailbox(scalar),
        "int": SharedPV.mailbox(Value(NTScalar(INT32), {"value": 42})),
        "string": SharedPV.mailbox(Value(NTScalar(STRING), {"value": "grüße ☃ 日本 🚀"})),
        "strings": SharedPV.mailbox(Value(NTScalarArray(STRING), {"value": ["ä", "", "z" * 300]})),
        "array": SharedPV.mailbox(Value(NTScalarArray(FLOAT64), {"value": [1.0, 2.5]})),
        "big": SharedPV.mailbox(Value(NTScalarArray(FLOAT64), {"value": np.arange(1_048_576.0)})),
        "enum": SharedPV.mailbox(
            Value(NTEnum(), {"value": {"index": 1, "choices": ["OFF", "ON", "BROKEN"]}})
        ),
        "table": SharedPV.mailbox(table),
        "image": SharedPV.mailbox(image),
        "odd": SharedPV.mailbox(odd),
        "refusing": SharedPV(Value(NTScalar(FLOAT64)), on_put=_refuse),
        "add": SharedPV(on_rpc=_add),
    }
    return {prefix + name: pv for name, pv in pvs.items()}


def served(pvs: dict[str, SharedPV], **options: Any) -> Server:
    """A server of ``pvs`` on 127.0.0.1, not yet started."""
    server = Server(options.pop("config", None) or server_config(), **options)
    for name, pv in pvs.items():
        server.add_pv(name, pv)
    return server
