"""The blocking client with p4p's API, against a server of our own: the promises that programs for p4p rely on."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
import queue
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

from appliance.certmon.endpoints import open_server
from appliance.certs.status import CertState
from appliance.errors import OperationError
from appliance.p4p import Type, Value, nt
from appliance.p4p.client import _provider, raw
from appliance.p4p.client.thread import (
    Cancelled,
    Context,
    Disconnected,
    Finished,
    RemoteError,
    Subscription,
)
from appliance.p4p.nt import NTURI
from appliance.p4p.server import Server as P4PServer
from appliance.p4p.server.thread import SharedPV as ServedPV
from appliance.p4p.util import ThreadedWorkQueue
from appliance.pvdata.nt import NTEnum, NTScalar, NTScalarArray
from appliance.pvdata.primitives import Lendable
from appliance.pvdata.types import FLOAT64, StructType
from appliance.pvdata.value import Value as NativeValue
from appliance.server.sharedpv import SharedPV
from tests.helpers.live import HOST, keychain_file, number, server_config
from tests.helpers.pki import site as site_of_trust
from tests.helpers.pki import write_keychain
from tests.helpers.served import served
from tests.helpers.status_service import StatusService

S = site_of_trust()
PATIENCE_S = 30.0


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


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds; what it watches tells nobody of its changes."""
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return
        time.sleep(0.005)
    assert condition()


# -- get -----------------------------------------------------------------------------------------------


def test_a_name_gives_a_value_and_a_list_of_names_a_list_in_its_order(ctxt):
    assert ctxt.get("a") == 1.5
    assert ctxt.get(["b", "a", "b"]) == [2.5, 1.5, 2.5]
    assert ctxt.get(("a",)) == [1.5]
    assert ctxt.get([]) == []
    names = [f"n{index}" for index in range(100)]
    assert ctxt.get(names, timeout=PATIENCE_S) == [float(index) for index in range(100)]


def test_without_throw_a_value_that_cannot_be_unwrapped_takes_away_no_other():
    odd = NativeValue(StructType((("value", StructType((("x", FLOAT64),))),), id="epics:nt/NTScalar:1.0"))
    with (
        served(a=number(1.5), odd=SharedPV(odd)) as there,
        Context("pva", conf=there.conf, useenv=False) as client,
    ):
        good, bad = client.get(["a", "odd"], timeout=PATIENCE_S, throw=False)
        assert good == 1.5
        assert isinstance(bad, ValueError)
        with pytest.raises(ValueError, match="unwrap"):
            client.get(["a", "odd"], timeout=PATIENCE_S)


def test_a_client_does_not_keep_the_password_of_its_keychain(tmp_path):
    made = S.ca.keychain("operator", "client")
    file = str(write_keychain(tmp_path / "client.p12", made, b"secretive"))
    conf = {"EPICS_PVA_AUTO_ADDR_LIST": "NO", "EPICS_PVA_TLS_KEYCHAIN": f"{file};secretive"}
    with Context("pva", conf=conf, useenv=False) as ctxt:
        assert ctxt.conf()["EPICS_PVA_TLS_KEYCHAIN"] == file
        assert "secretive" not in repr(ctxt.conf()) + repr(vars(ctxt)) + repr(vars(ctxt._ctxt))


def test_a_value_is_unwrapped_unless_the_context_says_otherwise(site, ctxt):
    value = ctxt.get("a")
    assert (value.severity, type(value.timestamp), type(value.raw)) == (0, float, Value)
    for off in ({"nt": False}, {"unwrap": False}, {"unwrap": {}}):
        with Context("pva", conf=site.conf, useenv=False, **off) as plain:
            assert isinstance(plain.get("a", timeout=PATIENCE_S), Value)
    with Context(
        "pva", conf=site.conf, useenv=False, unwrap={"epics:nt/NTScalar:1.0": lambda box: "mine"}
    ) as own:
        assert own.get("a", timeout=PATIENCE_S) == "mine"


def test_a_missing_pv_is_a_timeout_that_says_why(ctxt):
    with pytest.raises(TimeoutError, match=r"nowhere.*no server answered"):
        ctxt.get("nowhere", timeout=0.05)
    answer = ctxt.get("nowhere", timeout=0.05, throw=False)
    assert isinstance(answer, TimeoutError)
    mixed = ctxt.get(["a", "nowhere", "b"], timeout=3.0, throw=False)
    assert [mixed[0], mixed[2]] == [1.5, 2.5]
    assert isinstance(mixed[1], TimeoutError)
    with pytest.raises(TimeoutError, match="nowhere"):
        ctxt.get(["a", "nowhere"], timeout=0.1)


def test_a_request_selects_fields_as_text_or_as_a_value(ctxt):
    for request in ("field(value)", Context.makeRequest("field(value)")):
        assert ctxt.get("a", request=request) == 1.5
    for request in ("field(alarm)", Context.makeRequest("field(alarm)")):
        assert ctxt.get("a", request=request) == 0.0, "the value was not asked for"
    assert ctxt.get(["a", "a"], request=["field(alarm)", None]) == [0.0, 1.5]
    with pytest.raises(RemoteError):
        ctxt.get("a", request="field(nothing_like_it)")


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((b"a",), {}, TypeError),
        ((None,), {}, TypeError),
        ((5,), {}, TypeError),
        ((["a", 5],), {}, TypeError),
        (("",), {}, RuntimeError),
        (("a",), {"request": "field(value"}, RuntimeError),
        (("a",), {"request": 5}, TypeError),
        ((["a", "b"],), {"request": "field(value)"}, AssertionError),
        (("a",), {"timeout": -1}, ValueError),
        (("a",), {"timeout": "x"}, TypeError),
        (("a",), {"timeout": 0}, TimeoutError),
    ],
)
def test_an_odd_argument_raises_what_p4p_raises(ctxt, arguments, options, error):
    with pytest.raises(error):
        ctxt.get(*arguments, **options)


def test_all_threads_may_use_one_context_at_once(ctxt):
    wrong: list[object] = []

    def read(index: int) -> None:
        for _ in range(100):
            found = ctxt.get(f"n{index}", timeout=PATIENCE_S)
            if found != float(index):
                wrong.append(found)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_large_array_is_the_buffer_that_it_came_in_and_stays_as_it_came(site, ctxt):
    kind = NTScalarArray(FLOAT64)
    first, second = np.arange(1_000_000.0), np.arange(1_000_000.0, 2_000_000.0)
    pv = SharedPV(NativeValue(kind, {"value": first}))
    site.do(site.server.add_pv, "large", pv)
    learnt = ctxt.get("large", timeout=PATIENCE_S)  # from this one the client learns where the array stands
    one = ctxt.get("large", timeout=PATIENCE_S)
    site.do(pv.post, second)
    two, small = ctxt.get(["large", "a"], timeout=PATIENCE_S)
    assert small == 1.5
    for array, wanted in ((learnt, first), (one, first), (two, second)):
        assert np.array_equal(array, wanted)
        assert array.flags.aligned
        assert not array.flags.writeable
    for array in (one, two):
        owner: object = array
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, memoryview)
        assert isinstance(owner.obj, Lendable)


# -- put -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [3, 3.0, "3", {"value": 3}, '{"value": 3}', lambda box: box.__setitem__("value", 3)],
    ids=["int", "float", "text", "dict", "json", "builder"],
)
def test_a_value_is_written_in_any_of_its_forms(ctxt, value):
    assert ctxt.put("a", 0.0) is None
    assert ctxt.put("a", value) is None
    assert ctxt.get("a") == 3.0


def test_a_value_object_and_a_list_are_written(ctxt):
    box = ctxt.get("a").raw
    box.unmark()
    box.value = 7.5
    ctxt.put("a", box)
    assert ctxt.get("a") == 7.5
    assert ctxt.put(["a", "b"], [1.5, 2.5]) == [None, None]
    assert ctxt.get(["a", "b"]) == [1.5, 2.5]


@pytest.mark.parametrize("ends", [SystemExit, KeyboardInterrupt])
def test_a_builder_that_would_end_the_program_is_called_once_and_harms_no_connection(ctxt, ends):
    called = []

    def build(value):
        called.append(value)
        raise ends("by the builder")

    came = queue.Queue()
    subscription = ctxt.monitor("b", came.put, notify_disconnect=True)
    assert isinstance(came.get(timeout=PATIENCE_S), Disconnected)
    assert came.get(timeout=PATIENCE_S) == 2.5
    with pytest.raises(RemoteError, match="by the builder"):
        ctxt.put("a", build, timeout=PATIENCE_S)
    assert ctxt.get("a", timeout=PATIENCE_S) == 1.5
    assert len(called) == 1
    assert came.empty()
    subscription.close()


def test_a_builder_sees_the_present_value_without_marks_or_with_get_false_an_empty_one(ctxt):
    ctxt.put("a", 9.0)
    seen = []
    ctxt.put("a", lambda box: seen.append((box.value, box.changedSet())))
    ctxt.put("a", lambda box: seen.append((box.value, box.changedSet())), get=False)
    assert seen == [(9.0, set()), (0.0, set())]
    assert ctxt.get("a") == 9.0, "nothing was marked, so nothing was written"
    ctxt.put("a", 1.5)


def enum(index: int, *choices: str) -> SharedPV:
    return SharedPV.mailbox(NativeValue(NTEnum(), {"value": {"index": index, "choices": list(choices)}}))


@pytest.mark.parametrize("value", ["open", {"value": "open"}, '{"value": "open"}'])
def test_a_text_is_a_choice_of_the_pv_itself_also_without_get(value):
    with (
        served(door=enum(0, "closed", "broken", "open"), pump=enum(0, "open", "closed")) as there,
        Context("pva", conf=there.conf, useenv=False) as ctxt,
    ):
        assert ctxt.get("pump", timeout=PATIENCE_S).choice == "open"
        ctxt.put("door", value, get=False, timeout=PATIENCE_S)
        assert ctxt.get("door").choice == "open"
        assert ctxt.get("pump") == 0
        # What needs no choices is written without a look at the PV.
        seen = []
        ctxt.put("door", lambda present: seen.append(list(present.value.choices or [])), get=False)
        assert seen == [[]]


def test_a_pv_without_choices_has_none_of_another_pv():
    with (
        served(bare=enum(1), pump=enum(0, "off", "on")) as there,
        Context("pva", conf=there.conf, useenv=False) as ctxt,
    ):
        pump, bare = ctxt.get(["pump", "bare"], timeout=PATIENCE_S)
        assert (pump.choice, bare.choice, str(bare)) == ("off", None, "ntenum(1, None)")
        for get in (True, False):
            with pytest.raises(ValueError, match="on"):
                ctxt.put("bare", "on", get=get)
        updates, subscription = collect(ctxt, "bare")
        assert updates.get(timeout=PATIENCE_S).choice is None
        ctxt.put("bare", 0)
        assert updates.get(timeout=PATIENCE_S).choice is None
        subscription.close()


def test_errors_of_a_put_reach_the_caller_as_they_are(ctxt):
    with pytest.raises(RemoteError, match=r"^no, not today$"):
        ctxt.put("refuses", 1.0)
    answer = ctxt.put("refuses", 1.0, throw=False)
    assert isinstance(answer, RemoteError)
    with pytest.raises(ValueError, match="hello"):
        ctxt.put("a", "hello")
    with pytest.raises(ZeroDivisionError):
        ctxt.put("a", lambda box: 1 / 0)
    with pytest.raises(KeyError, match="nosuch"):
        ctxt.put("a", {"nosuch": 1})
    with pytest.raises(ValueError, match="json"):
        ctxt.put("a", '{"value": ')
    with pytest.raises(TimeoutError, match="did not answer"):
        ctxt.put("silent", 1.0, timeout=0.2)


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("a", 1), {"request": "field()", "wait": True}, ValueError),
        (("a", 1), {"request": "field()", "process": "true"}, ValueError),
        ((["a", "b"], 1), {}, TypeError),
        ((["a", "b"], [1]), {}, AssertionError),
        (("a", None), {}, TypeError),
    ],
)
def test_odd_arguments_of_a_put_raise_what_p4p_raises(ctxt, arguments, options, error):
    with pytest.raises(error):
        ctxt.put(*arguments, **options)


def test_wait_and_process_become_the_request_of_a_put(ctxt):
    assert ctxt.put("a", 4.5, wait=True) is None
    assert ctxt.put(["a", "b"], [4.5, 2.5], process="true", wait=False) == [None, None]
    assert ctxt.get("a") == 4.5
    ctxt.put("a", 1.5)


# -- rpc -----------------------------------------------------------------------------------------------


def test_a_call_takes_a_value_and_gives_the_result(ctxt):
    sum_of = NTURI([("lhs", "d"), ("rhs", "d")])
    assert ctxt.rpc("adder", sum_of.wrap("adder", kws={"lhs": 1, "rhs": 2.5})) == 3.5
    assert ctxt.rpc("adder", Value(Type([]))) == -1.0
    assert ctxt.rpc("adder", None) == -1.0
    with pytest.raises(RemoteError):
        ctxt.rpc("a", None)
    with pytest.raises(TypeError, match="NTURI"):
        ctxt.rpc("adder", {"lhs": 1})
    assert isinstance(ctxt.rpc("nowhere", None, timeout=0.05, throw=False), TimeoutError)


# -- monitor -------------------------------------------------------------------------------------------


def collect(ctxt: Context, name: str, **options: object) -> tuple[queue.Queue, Subscription]:
    came: queue.Queue = queue.Queue()
    return came, ctxt.monitor(name, came.put, **options)


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
        wait_for(lambda: "nothing_like_it" in caplog.text or "m2 failed" in caplog.text)
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
    wait_for(lambda: came[-1] == 50.0)
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
    wait_for(lambda: came[-1] == 50.0)
    assert came == sorted(came)
    site.do(pv.post, 51.0)
    wait_for(lambda: came[-1] == 51.0)
    subscription.close()


def test_a_callback_that_fails_ends_its_subscription_and_is_logged(ctxt, caplog):
    def fails(value: float) -> None:
        raise ArithmeticError("of the callback")

    subscription = ctxt.monitor("a", fails)
    wait_for(lambda: subscription.done)
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
    wait_for(lambda: gc.collect() or gone() is None)
    site.do(pv.post, 2.0)
    assert ctxt.get("m3", timeout=PATIENCE_S) == 2.0
    assert came.empty()


def test_a_callback_may_use_the_context(ctxt):
    answers: queue.Queue = queue.Queue()
    subscription = ctxt.monitor("a", lambda value: answers.put(ctxt.get("b")))
    assert answers.get(timeout=PATIENCE_S) == 2.5
    subscription.close()


# -- the context ---------------------------------------------------------------------------------------


def test_close_wakes_who_waits_and_later_use_says_that_it_is_closed(site):
    ctxt = Context("pva", conf=site.conf, useenv=False)
    assert ctxt.conf()["EPICS_PVA_BROADCAST_PORT"] == site.conf["EPICS_PVA_BROADCAST_PORT"] or HOST in str(
        ctxt.conf()
    )
    began, errors = threading.Event(), []

    def wait() -> None:
        began.set()
        try:
            ctxt.get("nowhere", timeout=None)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait(PATIENCE_S)
    wait_for(lambda: any(ctxt._ctxt.native._links.channels))
    ctxt.close()
    thread.join(PATIENCE_S)
    assert [type(error) for error in errors] == [Cancelled]
    for use in (lambda: ctxt.get("a"), lambda: ctxt.put("a", 1), lambda: ctxt.monitor("a", print)):
        with pytest.raises(RuntimeError, match="Context closed"):
            use()
    assert ctxt.conf() == {}
    ctxt.close()


def test_a_forgotten_context_closes_its_connections(site):
    ctxt = Context("pva", conf=site.conf, useenv=False)
    ctxt.get("a", timeout=PATIENCE_S)
    native, gone = ctxt._ctxt.native, weakref.ref(ctxt)
    del ctxt
    gc.collect()
    assert gone() is None
    wait_for(lambda: native._end.closed)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"provider": 5}, TypeError),
        ({"conf": {"EPICS_PVA_SERVER_PORT": 5075}}, AttributeError),
        ({"conf": [1]}, AttributeError),
        ({"workers": 3}, TypeError),
        ({"conf": {"EPICS_PVA_TLS_KEYCHAIN": "/there/is/no/such/file.p12"}}, RuntimeError),
        ({"conf": {"EPICS_PVA_TLS_OPTIONS": "tls_required"}}, RuntimeError),
    ],
)
def test_a_context_that_cannot_be_made_says_why(arguments, error):
    with pytest.raises(error):
        Context(**{"useenv": False, **arguments})


def test_a_setting_that_cannot_be_used_is_a_warning_as_in_p4p(caplog):
    conf = {"EPICS_PVA_SERVER_PORT": "abc", "EPICS_PVA_ADDR_LIST": "a..b", "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
    with (
        caplog.at_level(logging.WARNING, logger="appliance.p4p.client._provider"),
        Context("pva", conf=conf, useenv=False) as ctxt,
    ):
        assert ctxt.conf()["EPICS_PVA_SERVER_PORT"] == "5075"
        assert isinstance(ctxt.get("a", timeout=0.05, throw=False), TimeoutError)
    assert "'abc' ignored" in caplog.text


def test_the_environment_is_read_unless_it_is_switched_off_and_conf_goes_before_it(site, monkeypatch):
    for name, value in site.conf.items():
        monkeypatch.setenv(name, value)
    with Context("pva") as ctxt:
        assert ctxt.get("a", timeout=PATIENCE_S) == 1.5
    monkeypatch.setenv("EPICS_PVA_BROADCAST_PORT", "9")
    with Context("pva", conf=site.conf) as ctxt:
        assert ctxt.get("a", timeout=PATIENCE_S) == 1.5
    with Context("pva", useenv=False, conf={"EPICS_PVA_AUTO_ADDR_LIST": "NO"}) as ctxt:
        assert "EPICS_PVA_ADDR_LIST" not in ctxt.conf()


def test_the_static_methods_are_there():
    assert Context.providers() == ["pva"]
    assert Context.makeRequest("").tolist() == [("field", [])]
    request = Context.makeRequest("field(a.b)record[queueSize=10]")
    assert request.record._options.queueSize == "10"
    with pytest.raises(RuntimeError):
        Context.makeRequest("fie(")
    with pytest.raises(TypeError):
        Context.makeRequest(5)


# -- raw -----------------------------------------------------------------------------------------------


@pytest.fixture
def by_callback(site):
    with raw.Context("pva", conf=site.conf) as client:
        yield client


def test_raw_operations_report_by_callback(by_callback):
    came: queue.Queue = queue.Queue()
    held = [
        by_callback.get("a", came.put),
        by_callback.put("a", came.put, builder=1.5),
        by_callback.rpc("adder", came.put, None),
        by_callback.put("refuses", came.put, builder={"value": 2}),
    ]
    answers = [came.get(timeout=PATIENCE_S) for _ in held]
    assert 1.5 in answers
    assert None in answers
    assert -1.0 in answers
    assert [type(answer) for answer in answers if isinstance(answer, Exception)] == [RemoteError]
    assert held[0].name == "a"


@pytest.mark.parametrize("how", ["close", "forget", "cycle"])
def test_a_raw_operation_that_is_given_up_is_cancelled_at_once(by_callback, how):
    came = []

    def handler(answer: object) -> None:
        came.append(answer)

    operation = by_callback.get("nowhere", handler)
    gone = weakref.ref(operation)
    if how == "close":
        operation.close()
        operation.close()
    else:
        if how == "cycle":
            handler.held = operation
        del operation, handler
        gc.collect()
        assert gone() is None
    assert [type(answer) for answer in came] == [Cancelled]


def test_a_raw_subscription_is_read_when_its_handler_was_called(site, by_callback):
    pv = number(1.0)
    site.do(site.server.add_pv, "r1", pv)
    told = threading.Semaphore(0)
    subscription = by_callback.monitor("r1", told.release)
    assert told.acquire(timeout=PATIENCE_S)
    assert subscription.pop() == 1.0
    assert subscription.pop() is None
    site.do(pv.post, 2.0)
    assert told.acquire(timeout=PATIENCE_S)
    assert (subscription.pop(), subscription.pop()) == (2.0, None)
    site.do(pv.close)
    assert told.acquire(timeout=PATIENCE_S)
    assert isinstance(subscription.pop(), Disconnected)
    assert not subscription.complete()
    subscription.close()
    assert subscription.pop() is None


def test_a_raw_handler_cannot_wait_for_pvaccess(site, by_callback):
    came: queue.Queue = queue.Queue()
    with Context("pva", conf=site.conf, useenv=False) as ctxt:

        def handler(answer: object) -> None:
            try:
                ctxt.get("a")
            except RuntimeError as error:
                came.put(str(error))

        operation = by_callback.get("a", handler)
        assert "work queue" in came.get(timeout=PATIENCE_S)
        assert operation.name == "a"


def test_the_end_of_the_program_closes_all_contexts(site):
    ctxt = Context("pva", conf=site.conf, useenv=False)
    ctxt.get("a", timeout=PATIENCE_S)
    raw._cleanup_contexts()
    with pytest.raises(RuntimeError, match="Context closed"):
        ctxt.get("a")


# -- TLS -----------------------------------------------------------------------------------------------


async def test_a_program_over_tls_hears_of_a_revoked_server_as_disconnected(tmp_path, monkeypatch):
    monkeypatch.setattr("appliance.certmon.gate.PATIENCE_S", 30)
    monkeypatch.setattr("appliance.certmon.tls_manager.PATIENCE_S", 30)
    server_keychain = S.ca.keychain("softioc", "server", status=True)
    client_keychain = S.ca.keychain("operator", "client", status=True)
    files = [
        keychain_file(tmp_path, name, kept)
        for name, kept in (("server", server_keychain), ("client", client_keychain))
    ]
    pv = number(1.5)
    came: queue.Queue = queue.Queue()

    async with StatusService(S.ca) as cms:
        for each in (server_keychain, client_keychain):
            cms.set(each, CertState.VALID)
        async with open_server(
            server_config(files[0]),
            prepare=lambda server: server.add_pv("pv", pv),
            status_client=cms.client_config(),
        ) as server:
            conf = {
                "EPICS_PVA_ADDR_LIST": f"{HOST}:{server.udp_port} {HOST}:{cms.udp_port}",
                "EPICS_PVA_AUTO_ADDR_LIST": "NO",
                "EPICS_PVA_TLS_KEYCHAIN": str(files[1]),
                "EPICS_PVA_TLS_OPTIONS": "tls_required",
            }

            def use() -> Context:
                ctxt = Context("pva", conf=conf, useenv=False)
                assert ctxt.get("pv", timeout=PATIENCE_S) == 1.5
                ctxt.put("pv", 2.5)
                return ctxt

            ctxt = await asyncio.to_thread(use)
            subscription = ctxt.monitor("pv", came.put, notify_disconnect=True)
            first = [await asyncio.to_thread(came.get, timeout=PATIENCE_S) for _ in range(2)]
            assert type(first[0]) is Disconnected
            assert first[1] == 2.5
            cms.set(server_keychain, CertState.REVOKED)
            last = await asyncio.to_thread(came.get, timeout=PATIENCE_S)
            assert isinstance(last, Disconnected)
            assert not isinstance(last, Finished)
            with pytest.raises(TimeoutError, match="pv"):
                await asyncio.to_thread(ctxt.get, "pv", timeout=0.5)
            subscription.close()
            await asyncio.to_thread(ctxt.close)


def test_what_belongs_to_a_process_is_not_pickled_and_no_copy_of_it_can_end_it(site, ctxt):
    updates, subscription = collect(ctxt, "a")
    assert updates.get(timeout=PATIENCE_S) == 1.5
    served_pv = ServedPV(nt=nt.NTScalar("d"), initial=1.0)
    kept = []
    served_pv._handler.put = lambda pv, op: kept.append(op._op)
    with P4PServer(providers=[{"own": served_pv}], isolate=True) as server:
        with Context("pva", conf=server.conf(), useenv=False) as other:
            asked = other.get("own", timeout=PATIENCE_S)
            assert asked == 1.0
            putting = threading.Thread(target=lambda: other.put("own", 2.0, timeout=None))
            putting.start()
            wait_for(lambda: kept)
            for thing in (ctxt, subscription, served_pv, server, kept[0]):
                for attempt in (pickle.dumps, copy.deepcopy, *([copy.copy] if thing is not ctxt else [])):
                    with pytest.raises(
                        TypeError, match="cannot be pickled or copied: it belongs to this process"
                    ):
                        attempt(thing)
            gc.collect()
            kept[0].done()
            putting.join(PATIENCE_S)
            assert not putting.is_alive()
    # A flat copy of a Context is the same client, as in p4p.
    twin = copy.copy(ctxt)
    assert twin.get("a") == 1.5
    del twin
    gc.collect()
    site.do(site.server._static.pvs["a"].post, 7.5)
    assert updates.get(timeout=PATIENCE_S) == 7.5
    site.do(site.server._static.pvs["a"].post, 1.5)
    subscription.close()


def test_a_client_whose_start_is_broken_off_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    closed = threading.Event()

    class Native(_provider.NativeContext):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            made.append(self)

        async def close(self) -> None:
            await super().close()
            closed.set()

    class Broken(_provider.Engine):
        def run(self, work, timeout=None):
            super().run(work, timeout)
            raise KeyboardInterrupt

    home = _provider.engine()
    monkeypatch.setattr(_provider, "NativeContext", Native)
    monkeypatch.setattr(home, "__class__", Broken)
    with pytest.raises(KeyboardInterrupt):
        Context("pva", conf={"EPICS_PVA_ADDR_LIST": HOST, "EPICS_PVA_AUTO_ADDR_LIST": "NO"}, useenv=False)
    monkeypatch.undo()
    assert len(made) == 1
    assert closed.wait(PATIENCE_S)
