"""A server of pvapy (pvAccessCPP)."""

import pvaccess as pva
from common import serve

server = pva.PvaServer()
pvs = {
    "double": pva.PvObject({"value": pva.DOUBLE}, {"value": 1.5}),
    "string": pva.PvObject({"value": pva.STRING}, {"value": "grüße ☃"}),
    "array": pva.PvObject({"value": [pva.INT]}, {"value": [1, 2, 3]}),
    "struct": pva.PvObject(
        {"point": {"x": pva.DOUBLE, "name": pva.STRING}, "list": [{"n": pva.INT}], "any": ()},
        {"point": {"x": 2.5, "name": "p"}, "list": [{"n": 1}, {"n": 2}]},
    ),
    "enum": pva.NtEnum(["OFF", "ON"], 1),
    "table": pva.NtTable([pva.DOUBLE, pva.STRING]),
}
pvs["table"].setLabels(["current", "name"])
pvs["table"].setColumn(0, [1.5, 2.5])
pvs["table"].setColumn(1, ["q1", "q2"])
big = pva.PvObject({"value": [pva.DOUBLE]})
import numpy as np  # noqa: E402 - pvaccess must be there first

big.set({"value": np.arange(1_048_576, dtype=float)})
pvs["big"] = big
image = pva.NtNdArray()
image["dimension"] = [pva.PvDimension(4, 0, 4, 1, False), pva.PvDimension(3, 0, 3, 1, False)]
image["value"] = {"ubyteValue": np.arange(12, dtype="u1")}
pvs["image"] = image
for name, pv in pvs.items():
    server.addRecord("pvapy:" + name, pv, None)


def post(pv, value, count=1):
    for index in range(count):
        pvs[pv]["value"] = value + index if count > 1 else value
        server.update("pvapy:" + pv, pvs[pv])


rpc_server = pva.RpcServer()


def add(request):
    query = request["query"] if "query" in request.getStructureDict() else request.toDict()
    return pva.PvObject({"value": pva.DOUBLE}, {"value": float(query["lhs"]) + float(query["rhs"])})


rpc_server.registerService("pvapy:add", add)
rpc_server.startListener()
serve({"post": post})
