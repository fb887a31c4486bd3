"""SharedPV of the p4p API: clients come and go, PVs and processes end."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import weakref
from typing import Any

from appliance.p4p.server import Server
from appliance.p4p.server.thread import SharedPV
from appliance.p4p.util import _defaultWorkQueue
from appliance.threads import Engine, shutdown
from tests.helpers.native_client import PATIENCE_S, NativeClient, taken
from tests.helpers.p4p_served import Comings, D, held_engine, mailbox, served, until


def test_the_first_and_the_last_channel_are_told_and_not_subscriptions() -> None:
    comings = Comings()
    pv = SharedPV(nt=D, initial=1.0, handler=comings)
    with Server(providers=[{"pv": pv}], isolate=True) as server:
        with NativeClient(server.conf()) as one, NativeClient(server.conf()) as two:
            one.get("pv")
            assert comings.first.wait(PATIENCE_S)
            two.get("pv")
            taken(two.watch("pv"))
            _defaultWorkQueue.sync(PATIENCE_S)
            assert comings.log == ["first"]
        assert comings.last.wait(PATIENCE_S)
    assert comings.log == ["first", "last"]


def test_a_pv_may_open_for_its_first_client_and_close_after_its_last() -> None:
    pv = SharedPV(nt=D)
    gone = threading.Event()

    @pv.onFirstConnect
    def first(pv: SharedPV) -> None:
        pv.open(5.0)

    @pv.onLastDisconnect
    def last(pv: SharedPV) -> None:
        pv.close()
        gone.set()

    with Server(providers=[{"pv": pv}], isolate=True) as server:
        for _ in range(2):
            gone.clear()
            with NativeClient(server.conf()) as client:
                assert client.get("pv")["value"] == 5.0
            assert gone.wait(PATIENCE_S)
            assert not pv.isOpen()


def test_close_with_sync_returns_when_the_last_client_was_told_of() -> None:
    comings = Comings()
    pv = SharedPV(nt=D, initial=1.0, handler=comings)
    with served(pv=pv) as client:
        taken(client.watch("pv"))
        assert comings.first.wait(PATIENCE_S)
        pv.close(sync=True, timeout=PATIENCE_S)
        assert comings.log[:2] == ["first", "last"]
        pv.open(2.0)  # the same client comes back by itself
        assert client.get("pv")["value"] == 2.0
    SharedPV(nt=D, initial=1.0).close(sync=True)


def test_close_with_sync_gives_up_after_its_timeout_and_does_not_wait_for_itself() -> None:
    pv = SharedPV(nt=D, initial=1.0)
    pv._onFirstConnect(None)  # a client whose end nobody tells of
    pv.close(sync=True, timeout=0.01)
    told: list[str] = []

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        try:
            pv.close(sync=True)
        except RuntimeError as error:
            told.append(str(error))
        op.done()

    pv.open(1.0)
    with served(pv=pv) as client:
        client.put("pv", 1)
    assert "same work queue" in told[0]


def test_a_pv_is_freed_with_its_server(monkeypatch: Any) -> None:
    pv = mailbox()
    left = [weakref.ref(item) for item in (pv, pv._core, pv._whandler, pv._handler)]
    with served(pv=pv) as client:
        client.put("pv", 1)
        taken(client.watch("pv"))
    del pv, client
    _defaultWorkQueue.sync(PATIENCE_S)
    until(lambda: gc.collect() is not None and [item() for item in left] == [None] * 4)


def test_a_forked_child_is_told_that_the_pv_is_its_parents() -> None:
    pv = SharedPV(nt=D, initial=1.0)
    reading, writing = os.pipe()
    with served(pv=pv) as client:
        taken(client.watch("pv"))
        child = os.fork()
        if not child:
            try:
                pv.post(2.0)
            except RuntimeError as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.close(writing)
        text = os.read(reading, 1000).decode()
        os.close(reading)
        os.waitpid(child, 0)
        assert "forked" in text
        pv.post(3.0)
        assert client.get("pv")["value"] == 3.0


def test_a_pv_is_served_again_after_a_shutdown_that_left_posts_behind(monkeypatch: Any) -> None:
    monkeypatch.setattr("appliance.threads._END_S", 0.05)
    pv = SharedPV(nt=D, initial=1.0)
    server = Server(providers=[{"pv": pv}], isolate=True)
    client = NativeClient(server.conf())
    client.__enter__()
    taken(client.watch("pv"))
    with held_engine():
        pv.post(2.0)  # nobody looks at it any more
        ending = threading.Thread(target=shutdown)
        ending.start()
        until(lambda: not engine_of(pv).is_usable)
    ending.join()
    with contextlib.suppress(RuntimeError):  # only if the engine did not come to the end of the client
        pv.post(3.0)
    with served(pv=pv) as again:
        updates = again.watch("pv")
        assert taken(updates)["value"] == 3.0
        pv.post(4.0)
        assert taken(updates)["value"] == 4.0


def engine_of(pv: SharedPV) -> Engine:
    known = pv._core._engine
    assert known is not None
    return known
