"""A client program as users of p4p write them: with ``p4p``, or, started by ``python -m appliance.p4p``, with ours."""

import asyncio
import json

import numpy as np
import p4p
from common import say, serve
from p4p.client.asyncio import Context as AsyncContext
from p4p.client.thread import Cancelled, Context, Disconnected, Finished, RemoteError, TimeoutError  # noqa: A004
from p4p.nt import NTURI
from p4p.rpc import rpccall, rpcproxy

context = Context("pva")
structures = Context("pva")
"""For NTTable and NTURI. A context of p4p that has met a type that it does not convert may also leave later values as they are."""
subscriptions = {}


@rpcproxy
class Service:  # a proxy's methods have no body, and no self
    @rpccall("%scall:add")
    def add(lhs="d", rhs="d"):  # noqa: N805
        pass

    @rpccall("%scall:rows")
    def rows(count="i"):  # noqa: N805
        pass

    @rpccall("%scall:refuse")
    def refuse():
        pass

    @rpccall("%scall:crash")
    def crash():
        pass


service = Service(context=structures, format="prog:")


def shown(value):
    """What a program sees of a value: its Python type, and what that holds."""
    plain = value
    if isinstance(value, Exception):
        plain = str(value)
    elif isinstance(value, np.ndarray):
        plain = {
            "shape": list(value.shape),
            "dtype": str(value.dtype),
            "first": value.flat[0].item() if value.size else None,
            "last": value.flat[-1].item() if value.size else None,
            "sum": float(value.sum()) if value.dtype.kind in "iuf" else None,
        }
    elif isinstance(value, p4p.Value):
        plain = {
            name: item
            for name, item in value.todict(wrapper=dict).items()
            if name not in ("timeStamp", "alarm")
        }
        plain = json.loads(json.dumps(plain, default=np.ndarray.tolist))
    elif isinstance(value, list):
        plain = [dict(item) if isinstance(item, dict) else item for item in value]
    elif isinstance(value, str):
        plain = str.__str__(value)  # a ntstr shows its time, too
    elif isinstance(value, (float, int)) and not isinstance(value, bool):
        plain = float(value) if isinstance(value, float) else int(value)
    result = {"type": type(value).__name__, "value": plain}
    for name in ("severity", "timestamp", "choice"):
        if hasattr(value, name):
            result[name] = getattr(value, name)
    return result


def context_of(pv):
    return structures if pv == "prog:table" else context


def get(pv, request=None, throw=True, timeout=30):
    found = context_of(pv).get(pv, request=request, throw=throw, timeout=timeout)
    return [shown(item) for item in found] if isinstance(pv, list) else shown(found)


def raw(pv):
    with Context("pva", nt=False) as plain:
        value = plain.get(pv, timeout=30)
        return {"id": value.getID(), "keys": sorted(value.keys()), "changed": sorted(value.changedSet())}


def aget(pv):
    async def main():
        with AsyncContext("pva") as ctx:
            return await asyncio.wait_for(ctx.get(pv), 30)

    return [shown(item) for item in asyncio.run(main())]


def put(pv, value, timeout=30, **options):
    context_of(pv).put(pv, value, timeout=timeout, **options)


def put_array(pv, count):
    context.put(pv, np.arange(count, dtype=float) * 2, timeout=30)


def put_image(pv, shape, dtype):
    context.put(pv, np.arange(np.prod(shape), dtype=dtype).reshape(shape), timeout=30)


def call(method, **arguments):
    return shown(getattr(service, method)(**arguments))


def echo(**arguments):
    types = {int: "l", float: "d", str: "s", bool: "?"}
    uri = NTURI([(name, types[type(value)]) for name, value in arguments.items()])
    return structures.rpc("prog:echo", uri.wrap("prog:echo", kws=arguments), timeout=30).todict()["query"]


def call_on(pv):
    return shown(context.rpc(pv, NTURI([]).wrap(pv), timeout=30))


def monitor(pv, request=None):
    def update(value):
        if isinstance(value, Exception):
            order = (Finished, Disconnected, Cancelled, RemoteError)
            kind = next((kind.__name__ for kind in order if isinstance(value, kind)), "other")
            say(event=kind, pv=pv, text=str(value))
        else:
            say(event="update", pv=pv, **shown(value))

    subscriptions[pv] = context_of(pv).monitor(pv, update, request=request, notify_disconnect=True)


def unmonitor(pv):
    subscriptions.pop(pv).close()


def times_out(pv):
    try:
        context.get(pv, timeout=0.2)
    except TimeoutError as error:
        return str(error)
    return None


def disconnect(pv):
    context.disconnect(pv)


def whose():
    """The module that ``p4p`` is."""
    return p4p.Value.__module__


commands = (
    get, raw, aget, put, put_array, put_image, call, echo, call_on, monitor, unmonitor, times_out, disconnect, whose
)  # fmt: skip
serve({command.__name__: command for command in commands})
