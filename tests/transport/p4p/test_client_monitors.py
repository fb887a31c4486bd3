"""The blocking client with p4p's API: its subscriptions."""

from __future__ import annotations

import gc
import logging
import queue
import threading
import weakref

import pytest

from appliance.p4p.client.thread import Context, Disconnected, RemoteError
from appliance.p4p.util import ThreadedWorkQueue
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value as NativeValue
from tests.helpers.live import number
from tests.helpers.native_client import PATIENCE_S
from tests.helpers.p4p_served import collect, until


def test_a_subscription_tells_of_values_and_of_the_channel(site, ctxt):
    pv = number(1.0)
    site.do(site.server.add_pv, "m1", pv)
    came, subscription = collect(ctxt, "m1", notify_disconnect=True)
    with subscription:
        assert type(came.get(timeout=PATIENCE_S)) is Disconnected, (
            "every subscription begins without a connection"
        )
        assert came.get(timeout=PATIENCE_S) == 1.0
        site.do(pv.post, 2.0)
        value = came.get(timeout=PATIENCE_S)
        assert value == 2.0
        assert value.raw.changed("value")
        site.do(pv.close)
        assert isinstance(came.get(timeout=PATIENCE_S), Disconnected)
        site.do(pv.open, NativeValue(NTScalar(FLOAT64), {"value": 3.0}))
        assert came.get(timeout=PATIENCE_S) == 3.0
        assert (subscription.done, subscription.name) == (False, "m1")
    assert (subscription.done, subscription.empty) == (True, True)
    site.do(pv.post, 4.0)
    assert ctxt.get("m1", timeout=PATIENCE_S) == 4.0
    assert came.empty(), "nothing comes after close()"


def test_disconnect_ends_the_channel_and_the_subscription_comes_back(ctxt):
    came, subscription = collect(ctxt, "b", notify_disconnect=True)
    came.get(timeout=PATIENCE_S)
    assert came.get(timeout=PATIENCE_S) == 2.5
    ctxt.disconnect("nowhere")
    ctxt.disconnect("b")
    assert isinstance(came.get(timeout=PATIENCE_S), Disconnected)
    assert came.get(timeout=PATIENCE_S) == 2.5
    ctxt.disconnect()
    assert isinstance(came.get(timeout=PATIENCE_S), Disconnected)
    assert came.get(timeout=PATIENCE_S) == 2.5
    with pytest.raises(TypeError):
        ctxt.disconnect(5)
    ctxt.hurryUp()
    subscription.close()


def test_without_notification_only_values_come(site, ctxt, caplog):
    pv = number(1.0)
    site.do(site.server.add_pv, "m2", pv)
    came, subscription = collect(ctxt, "m2")
    assert came.get(timeout=PATIENCE_S) == 1.0
    site.do(pv.close)
    site.do(pv.open, NativeValue(NTScalar(FLOAT64), {"value": 2.0}))
    assert came.get(timeout=PATIENCE_S) == 2.0
    subscription.close()
    with caplog.at_level(logging.ERROR):
        came, subscription = collect(ctxt, "m2", request="field(nothing_like_it)")
        until(lambda: "nothing_like_it" in caplog.text or "m2 failed" in caplog.text)
    assert came.empty()
    subscription.close()


def test_an_error_of_the_server_is_told_to_whoever_wants_to_know(ctxt):
    came, subscription = collect(ctxt, "a", request="field(nothing_like_it)", notify_disconnect=True)
    assert type(came.get(timeout=PATIENCE_S)) is Disconnected
    assert isinstance(came.get(timeout=PATIENCE_S), RemoteError)
    subscription.close()


@pytest.mark.parametrize(("request_", "kept"), [(None, 4), ("record[queueSize=7]", 7)])
def test_a_slow_callback_loses_values_but_never_the_latest(site, ctxt, request_, kept):
    pv = number(0.0)
    name = f"slow{kept}"
    site.do(site.server.add_pv, name, pv)
    first, go_on = threading.Event(), threading.Event()
    came: list[float] = []

    def slow(value: float) -> None:
        came.append(float(value))
        first.set()
        go_on.wait(PATIENCE_S)

    subscription = ctxt.monitor(name, slow, request=request_)
    assert first.wait(PATIENCE_S)
    for index in range(1, 51):
        # Each post is sent before the next, so that nothing is merged by the server.
        site.do(pv.post, float(index))
        ctxt.get(name, timeout=PATIENCE_S)
    go_on.set()
    until(lambda: came[-1] == 50.0)
    assert came == [0.0, *(float(index) for index in range(1, kept)), 50.0]
    subscription.close()


def test_with_pipeline_the_server_waits_for_the_callback(site, ctxt):
    pv = number(0.0)
    site.do(site.server.add_pv, "piped", pv)
    first, go_on = threading.Event(), threading.Event()
    came: list[float] = []

    def slow(value: float) -> None:
        came.append(float(value))
        first.set()
        go_on.wait(PATIENCE_S)

    subscription = ctxt.monitor("piped", slow, request="record[queueSize=4,pipeline=true]")
    assert first.wait(PATIENCE_S)
    for index in range(1, 51):
        site.do(pv.post, float(index))
        ctxt.get("piped", timeout=PATIENCE_S)
    go_on.set()
    until(lambda: came[-1] == 50.0)
    assert came == sorted(came)
    site.do(pv.post, 51.0)
    until(lambda: came[-1] == 51.0)
    subscription.close()


def test_a_callback_that_fails_ends_its_subscription_and_is_logged(ctxt, caplog):
    def fails(value: float) -> None:
        raise ArithmeticError("of the callback")

    subscription = ctxt.monitor("a", fails)
    until(lambda: subscription.done)
    assert "ArithmeticError: of the callback" in caplog.text


def test_a_queue_of_the_program_runs_the_callbacks(site):
    with (
        ThreadedWorkQueue(name="mine", maxsize=10) as work,
        Context("pva", conf=site.conf, useenv=False, queue=work) as ctxt,
    ):
        threads: queue.Queue = queue.Queue()
        subscription = ctxt.monitor("a", lambda value: threads.put(threading.current_thread().name))
        assert threads.get(timeout=PATIENCE_S).startswith("mine")
        subscription.close()


def test_a_forgotten_subscription_ends_with_the_garbage_collection(site, ctxt):
    pv = number(1.0)
    site.do(site.server.add_pv, "m3", pv)
    came, subscription = collect(ctxt, "m3")
    assert came.get(timeout=PATIENCE_S) == 1.0
    gone = weakref.ref(subscription)
    del subscription
    until(lambda: gc.collect() or gone() is None)
    site.do(pv.post, 2.0)
    assert ctxt.get("m3", timeout=PATIENCE_S) == 2.0
    assert came.empty()


def test_a_callback_may_use_the_context(ctxt):
    answers: queue.Queue = queue.Queue()
    subscription = ctxt.monitor("a", lambda value: answers.put(ctxt.get("b")))
    assert answers.get(timeout=PATIENCE_S) == 2.5
    subscription.close()
