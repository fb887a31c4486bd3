"""A client of pvapy (pvAccessCPP)."""

import numpy as np
import pvaccess as pva
from common import say, serve

channels = {}


def channel(pv):
    if pv not in channels:
        channels[pv] = pva.Channel(pv)
        channels[pv].setTimeout(10.0)
    return channels[pv]


def plain(value):
    if isinstance(value, pva.PvObject):
        return plain(value.toDict())
    if isinstance(value, np.ndarray):
        if value.size > 1000:
            return {
                "size": value.size,
                "dtype": str(value.dtype),
                "last": value[-1].item(),
                "sum": float(value.sum()),
            }
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def get(pv, request="field()"):
    return plain(channel(pv).get(request))


def put(pv, value, request="field(value)"):
    channel(pv).put(value, request)


def put_big(pv, count):
    value = pva.PvObject({"value": [pva.DOUBLE]})
    value["value"] = np.arange(count, dtype=float)
    channel(pv).put(value, "field(value)")


def put_get(pv, value, request="putField(value)getField(value)"):
    return plain(channel(pv).putGet(value, request))


def typeof(pv):
    return plain_type(channel(pv).getIntrospectionDict())


def plain_type(kind):
    if isinstance(kind, dict):
        return {key: plain_type(item) for key, item in kind.items()}
    if isinstance(kind, (list, tuple)):
        return [plain_type(item) for item in kind]
    return str(kind)


def monitor(pv, request="field()", connection=False):
    # Only if it is wanted: pvapy crashes if this callback comes while another call of it is under way.
    if connection:
        channel(pv).setConnectionCallback(
            lambda connected: say(event="connection", pv=pv, connected=connected)
        )
    channel(pv).subscribe("s", lambda value: say(event="update", pv=pv, value=plain(value)))
    channel(pv).startMonitor(request)


def unmonitor(pv):
    channel(pv).stopMonitor()


def rpc(pv, **arguments):
    types = {int: pva.LONG, float: pva.DOUBLE, str: pva.STRING}
    request = pva.PvObject({name: types[type(value)] for name, value in arguments.items()}, arguments)
    return plain(pva.RpcClient(pv).invoke(request))


serve(
    {
        "get": get,
        "put": put,
        "put_big": put_big,
        "put_get": put_get,
        "typeof": typeof,
        "monitor": monitor,
        "unmonitor": unmonitor,
        "rpc": rpc,
    }
)
