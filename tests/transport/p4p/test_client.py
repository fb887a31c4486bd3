"""The blocking client with p4p's API, against a server of our own: the promises that programs for p4p rely on."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest

from appliance.p4p import Type, Value
from appliance.p4p.client.thread import Context, Disconnected, RemoteError
from appliance.p4p.nt import NTURI
from appliance.pvdata.nt import NTEnum, NTScalarArray
from appliance.pvdata.primitives import Lendable
from appliance.pvdata.types import FLOAT64, StructType
from appliance.pvdata.value import Value as NativeValue
from appliance.server.sharedpv import SharedPV
from tests.helpers.live import number
from tests.helpers.native_client import PATIENCE_S
from tests.helpers.p4p_served import collect
from tests.helpers.pki import site as site_of_trust
from tests.helpers.pki import write_keychain
from tests.helpers.served import served

S = site_of_trust()


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
