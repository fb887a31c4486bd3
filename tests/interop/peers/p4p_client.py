"""A client of p4p (PVXS). Values come back as JSON; long arrays as their length, type, first, last and sum."""

import numpy as np
from common import say, serve
from p4p import Value
from p4p.client.thread import Context, Disconnected, Finished, RemoteError
from p4p.nt import NTURI

context = Context("pva", nt=False)
subscriptions = {}


def plain(value):
    if isinstance(value, Value):
        return {name: plain(value[name]) for name in value.keys()}  # noqa: SIM118 - a Value is no dict
    if isinstance(value, np.ndarray):
        if value.size > 1000:
            return {
                "size": value.size,
                "dtype": str(value.dtype),
                "first": plain(value[0]),
                "last": plain(value[-1]),
                "sum": float(value.sum()),
            }
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def get(pv, request=None, timeout=30):
    return plain(context.get(pv, request=request, timeout=timeout, throw=True))


def put(pv, value, request=None, get=True):
    context.put(pv, value, request=request, get=get, timeout=30)


def put_big(pv, count):
    context.put(pv, {"value": np.arange(count, dtype=float)}, timeout=30)


def rpc(pv, **arguments):
    types = {int: "l", float: "d", str: "s", bool: "?"}
    uri = NTURI([(name, types[type(value)]) for name, value in arguments.items()])
    return plain(context.rpc(pv, uri.wrap(pv, kws=arguments, scheme="pva"), timeout=30))


def typeof(pv):
    return str(context.get(pv, timeout=30).type())


def monitor(pv, request=None):
    def update(value):
        if isinstance(value, Disconnected):
            say(event="disconnected", pv=pv)
        elif isinstance(value, Finished):
            say(event="finished", pv=pv)
        elif isinstance(value, RemoteError):
            say(event="error", pv=pv, text=str(value))
        elif isinstance(value, Exception):
            say(event="exception", pv=pv, text=repr(value))
        else:
            say(event="update", pv=pv, value=plain(value), changed=sorted(value.changedSet()))

    subscriptions[pv] = context.monitor(pv, update, request=request, notify_disconnect=True)


def unmonitor(pv):
    subscriptions.pop(pv).close()


serve(
    {
        "get": get,
        "put": put,
        "put_big": put_big,
        "rpc": rpc,
        "typeof": typeof,
        "monitor": monitor,
        "unmonitor": unmonitor,
    }
)
