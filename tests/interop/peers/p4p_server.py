"""A server of p4p (PVXS)."""

import os

import numpy as np
from common import serve
from p4p import Type, Value
from p4p.nt import NTEnum, NTNDArray, NTScalar, NTTable
from p4p.rpc import NTURIDispatcher, rpc
from p4p.server import Server, StaticProvider
from p4p.server.thread import SharedPV
from p4p.util import ThreadedWorkQueue


def mailbox(**options):
    pv = SharedPV(**options)

    @pv.put
    def _(pv, operation):
        pv.post(operation.value())
        operation.done()

    return pv


table = NTTable(columns=[("name", "s"), ("current", "d"), ("turns", "i")])
odd = Type(
    [
        ("points", ("aS", None, [("x", "d"), ("label", "s")])),
        ("choice", ("U", None, [("number", "i"), ("text", "s"), ("point", ("S", None, [("x", "d")]))])),
        ("choices", ("aU", None, [("number", "i"), ("text", "s")])),
        ("anything", "v"),
        ("anythings", "av"),
        ("flags", "a?"),
        ("small", "b"),
        ("huge", "L"),
    ],
    id="test:odd",
)
big = np.arange(1_048_576, dtype=float)
pvs = {
    "double": mailbox(nt=NTScalar("d", display=True, control=True, valueAlarm=True), initial=1.5),
    "int": mailbox(nt=NTScalar("i"), initial=42),
    "string": mailbox(nt=NTScalar("s"), initial="grüße ☃ 日本 🚀"),
    "strings": mailbox(nt=NTScalar("as"), initial=["ä", "", "z" * 300]),
    "array": mailbox(nt=NTScalar("ad"), initial=[1.0, 2.5]),
    "big": mailbox(nt=NTScalar("ad"), initial=big),
    "enum": mailbox(nt=NTEnum(), initial={"index": 1, "choices": ["OFF", "ON", "BROKEN"]}),
    "table": mailbox(
        nt=table,
        initial=[{"name": "q1", "current": 1.5, "turns": 10}, {"name": "q2", "current": 2, "turns": 20}],
    ),
    "image": mailbox(initial=NTNDArray().wrap(np.arange(12, dtype="u2").reshape(3, 4))),
    "odd": mailbox(
        initial=Value(
            odd,
            {
                "points": [{"x": 1.0, "label": "a"}, {"x": 2.0, "label": "b"}],
                "choice": ("text", "ü"),
                "choices": [("number", 7), ("text", "t")],
                "anything": 2.5,
                "anythings": [1, "two"],
                "flags": [True, False],
                "small": -3,
                "huge": 2**63 + 1,
            },
        )
    ),
}
refusing = SharedPV(nt=NTScalar("d"), initial=0.0)


@refusing.put
def _(pv, operation):
    operation.done(error="interlock is active")


pvs["refusing"] = refusing
prefix = os.environ.get("PREFIX", "p4p:")
static = StaticProvider("static")
for name, pv in pvs.items():
    static.add(prefix + name, pv)


class Calls:
    @rpc(NTScalar("d"))
    def add(self, lhs, rhs):
        return float(lhs) + float(rhs)

    @rpc(NTScalar("s"))
    def fail(self, why):
        from p4p.rpc import RemoteError

        raise RemoteError(f"cannot: {why}")


queue = ThreadedWorkQueue(maxsize=20, workers=1)
queue.__enter__()
calls = NTURIDispatcher(queue, target=Calls(), name="calls", prefix=prefix + "call:")


def post(pv, value, count=1):
    for index in range(count):
        pvs[pv].post(value + index if count > 1 else value)


def reopen(pv, value):
    pvs[pv].close()
    pvs[pv].open(value)


server = Server(providers=[static, calls])
conf = server.conf()
serve(
    {"post": post, "reopen": reopen, "conf": server.conf},
    {"tcp": int(conf["EPICS_PVAS_SERVER_PORT"]), "udp": int(conf["EPICS_PVAS_BROADCAST_PORT"])},
)
