"""A server of our own, and a blocking client with p4p's API for it."""

from __future__ import annotations

import pytest

from appliance.errors import OperationError
from appliance.p4p.client.thread import Context
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value as NativeValue
from appliance.server.sharedpv import SharedPV
from tests.helpers.live import number
from tests.helpers.native_client import PATIENCE_S
from tests.helpers.served import served


def refuse(*_: object) -> None:
    raise OperationError("no, not today")


def call(pv: SharedPV, operation: object, argument: NativeValue | None) -> NativeValue:
    if argument is None or "query" not in argument:
        return NativeValue(NTScalar(FLOAT64), {"value": -1.0})
    query = argument["query"]
    return NativeValue(NTScalar(FLOAT64), {"value": query["lhs"] + query["rhs"]})


class Silent(SharedPV):
    """Takes a put, and never answers."""

    __slots__ = ()

    def put(self, operation, value):
        pass


@pytest.fixture(scope="module")
def site():
    initial = NativeValue(NTScalar(FLOAT64), {"value": 0.0})
    many = {f"n{index}": number(float(index)) for index in range(100)}
    with served(
        a=number(1.5),
        b=number(2.5),
        adder=SharedPV(initial, on_rpc=call),
        refuses=SharedPV(initial, on_put=refuse),
        silent=Silent(initial),
        **many,
    ) as there:
        yield there


@pytest.fixture
def ctxt(site):
    with Context("pva", conf=site.conf, useenv=False) as client:
        # On a busy machine the connection may take longer than the five seconds that an operation has.
        client.get(["a", "b", "adder", "refuses", "silent"], timeout=PATIENCE_S)
        yield client
