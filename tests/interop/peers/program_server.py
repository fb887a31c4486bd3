"""A server program as users of p4p write them: with ``p4p``, or, started by ``python -m appliance.p4p``, with ours."""

import threading
import time

import numpy as np
from common import say, serve
from p4p.nt import NTEnum, NTNDArray, NTScalar, NTTable
from p4p.rpc import NTURIDispatcher, RemoteError, rpc
from p4p.server import Server, StaticProvider
from p4p.server.thread import Handler, SharedPV
from p4p.util import ThreadedWorkQueue


class Mailbox(Handler):
    """Takes what is put, and counts the clients."""

    connected = 0

    def put(self, pv, op):
        pv.post(op.value(), timestamp=time.time())
        op.done()

    def onFirstConnect(self, pv):
        self.connected += 1

    def onLastDisconnect(self, pv):
        self.connected -= 1


mailbox = Mailbox()
columns = [("name", "s"), ("current", "d"), ("turns", "i")]
rows = [{"name": "q1", "current": 1.5, "turns": 10}, {"name": "q2", "current": 2.0, "turns": 20}]
pvs = {
    "number": SharedPV(handler=mailbox, nt=NTScalar("d", display=True, valueAlarm=True), initial=1.5),
    "whole": SharedPV(handler=mailbox, nt=NTScalar("i"), initial=42),
    "text": SharedPV(handler=mailbox, nt=NTScalar("s"), initial="grüße ☃"),
    "strings": SharedPV(handler=mailbox, nt=NTScalar("as"), initial=["a", "", "ü"]),
    "long": SharedPV(handler=mailbox, nt=NTScalar("ad"), initial=np.arange(1_048_576, dtype=float)),
    "choice": SharedPV(handler=mailbox, nt=NTEnum(), initial={"index": 1, "choices": ["OFF", "ON", "HALF"]}),
    "table": SharedPV(handler=mailbox, nt=NTTable(columns=columns), initial=rows),
    "image": SharedPV(handler=mailbox, nt=NTNDArray(), initial=np.arange(12, dtype="u2").reshape(3, 4)),
    "rgb": SharedPV(handler=mailbox, nt=NTNDArray(), initial=np.zeros((4, 5, 3), dtype="u1")),
    "readonly": SharedPV(nt=NTScalar("d"), initial=0.0),
    "closed": SharedPV(nt=NTScalar("d")),
}
refusing = pvs["refusing"] = SharedPV(nt=NTScalar("d"), initial=0.0)
raising = pvs["raising"] = SharedPV(nt=NTScalar("d"), initial=0.0)
slow = pvs["slow"] = SharedPV(nt=NTScalar("d"), initial=0.0)
who = pvs["who"] = SharedPV(nt=NTScalar("s"), initial="")
echo = pvs["echo"] = SharedPV(nt=NTScalar("s"), initial="")
kept = []


@refusing.put
def _(pv, op):
    op.done(error="interlock is active")


@raising.put
def _(pv, op):
    raise ValueError("a fault in the handler")


@slow.put
def _(pv, op):
    kept.append(op)  # answered by the command "answer"
    say(event="kept", pv="slow", value=op.value())


@who.put
def _(pv, op):
    pv.post(f"{op.account()} {op.name()} {' '.join(sorted(op.roles()))}")
    op.done()


@echo.rpc
def _(pv, op):
    op.done(op.value())


class Service:
    @rpc(NTScalar("d"))
    def add(self, lhs, rhs):
        return lhs + rhs

    @rpc(NTTable(columns))
    def rows(self, count):
        return rows[:count]

    @rpc(NTScalar("d"))
    def refuse(self):
        raise RemoteError("not today")

    @rpc(NTScalar("d"))
    def crash(self):
        raise ValueError("a fault in the service")


static = StaticProvider("pvs")
for name, pv in pvs.items():
    static.add("prog:" + name, pv)
queue = ThreadedWorkQueue(maxsize=20, workers=2)
calls = NTURIDispatcher(queue, target=Service(), prefix="prog:call:", name="calls")


def post(pv, value, **more):
    pvs[pv].post(value, **more)


def burst(pv, count):
    """Posts of many threads at the same time; the last one has the greatest number."""
    numbers = iter(range(1, count))
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                number = next(numbers, None)
                if number is None:
                    return
                pvs[pv].post(float(number))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pvs[pv].post(float(count))


def close(pv, destroy=False):
    pvs[pv].close(destroy=destroy)


def reopen(pv, value):
    pvs[pv].open(value)


def answer(error=None):
    while kept:
        kept.pop().done(error=error)


def stop():
    server.stop()


def connected():
    return mailbox.connected


with queue, Server(providers=[static, calls]) as server:
    serve(
        {
            "post": post,
            "burst": burst,
            "close": close,
            "reopen": reopen,
            "answer": answer,
            "stop": stop,
            "connected": connected,
        },
        ready=server.conf(),
    )
