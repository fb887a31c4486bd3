"""PVs of the p4p API, served for a client of our own, and what tests of them wait for."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from appliance.p4p.client.thread import Context, Subscription
from appliance.p4p.nt import NTScalar
from appliance.p4p.server import Server
from appliance.p4p.server.thread import Handler, SharedPV
from appliance.threads import engine
from tests.helpers.native_client import PATIENCE_S, NativeClient

D = NTScalar("d")


@contextlib.contextmanager
def served(**pvs: Any) -> Iterator[NativeClient]:
    with Server(providers=[pvs], isolate=True) as server, NativeClient(server.conf()) as client:
        yield client


def mailbox(**more: Any) -> SharedPV:
    pv = SharedPV(nt=D, initial=1.0, **more)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        pv.post(op.value())
        op.done()

    return pv


@contextlib.contextmanager
def held_engine() -> Iterator[None]:
    """The PVAccess thread does nothing meanwhile."""
    there, leave = threading.Event(), threading.Event()

    def hold() -> None:
        there.set()
        leave.wait()

    engine().soon(hold)
    assert there.wait(PATIENCE_S)
    try:
        yield
    finally:
        leave.set()


def until(condition: Callable[[], Any]) -> None:
    """Wait for what tells nobody."""
    ends = threading.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return
        ends.wait(0.005)
    raise AssertionError("it did not come true")


class Comings(Handler):
    def __init__(self) -> None:
        self.log: list[str] = []
        self.first, self.last = threading.Event(), threading.Event()

    def onFirstConnect(self, pv: Any) -> None:
        self.log.append("first")
        self.first.set()

    def onLastDisconnect(self, pv: Any) -> None:
        self.log.append("last")
        self.last.set()


def collect(ctxt: Context, name: str, **options: object) -> tuple[queue.Queue, Subscription]:
    came: queue.Queue = queue.Queue()
    return came, ctxt.monitor(name, came.put, **options)
