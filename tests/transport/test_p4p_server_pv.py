"""SharedPV of the p4p API: what its owner posts and what clients do, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from appliance.errors import ApplianceError, OperationError
from appliance.p4p._errors import RemoteError
from appliance.p4p.nt import NTEnum, NTScalar
from appliance.p4p.server import Server, StaticProvider, _core, _operation
from appliance.p4p.server import asyncio as on_loop
from appliance.p4p.server import raw as on_server
from appliance.p4p.server.thread import Handler, SharedPV
from appliance.p4p.util import ThreadedWorkQueue, WorkQueue, _defaultWorkQueue
from appliance.p4p.wrapper import Type, Value
from appliance.threads import Engine, engine, shutdown
from tests.helpers.native_client import PATIENCE_S, NativeClient, taken

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


# -- values ------------------------------------------------------------------------------------------


def test_what_is_put_is_converted_posted_and_read() -> None:
    pv = mailbox()
    with served(pv=pv) as client:
        client.put("pv", 4.5)
        assert client.get("pv")["value"] == 4.5
        assert pv.current() == 4.5
        assert pv.current().raw.changed("value")


def test_the_put_handler_sees_what_the_client_has_marked() -> None:
    seen: list[set[str]] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        seen.append(op.value().raw.changedSet())
        op.done()

    with served(pv=pv) as client:
        client.put("pv", {"alarm.severity": 2})
        client.put("pv", 5.0)
    assert seen == [{"alarm.severity"}, {"value"}]


def test_clients_wait_for_a_closed_pv_and_go_on_when_it_opens() -> None:
    pv = SharedPV(nt=D)
    with served(pv=pv) as client:
        get = client.begin(client.context.get("pv", timeout=PATIENCE_S))
        info = client.begin(client.context.info("pv", timeout=PATIENCE_S))
        updates = client.watch("pv")
        until(lambda: len(pv._core._waiting) == 3)
        pv.open(3.0)
        assert taken(updates)["value"] == 3.0

        async def both() -> Any:
            return (await get)["value"], (await info).type

        value, kind = engine().run(both())
        assert value == 3.0
        assert kind.id == "epics:nt/NTScalar:1.0"


def test_a_closed_pv_refuses_posts_and_reads_of_its_owner() -> None:
    pv = SharedPV(nt=D)
    assert not pv.isOpen()
    assert repr(pv) == "SharedPV(<closed>)"
    for attempt in (lambda: pv.post(1.0), lambda: pv.post(pv.nt.wrap(1)), pv.current):
        with pytest.raises(RuntimeError, match=r"closed; open\(\)"):
            attempt()
    pv.open(1.0)
    assert repr(pv).startswith("SharedPV(value=")
    with pytest.raises(RuntimeError, match=r"close\(\) it first"):
        pv.open(2.0)
    pv.close()
    pv.close(destroy=True)


def test_a_value_of_another_type_needs_close_and_open() -> None:
    pv = SharedPV(nt=D, initial=1.0)
    with pytest.raises(RuntimeError, match="cannot be posted to a PV of the type"):
        pv.post(NTScalar("i").wrap(1))
    pv.post(NTScalar("d").wrap(2.0))  # p4p refuses an equal type that another object made
    assert pv.current() == 2.0
    with served(pv=pv) as client:
        updates = client.watch("pv", notify=True)
        taken(updates)
        assert taken(updates)["value"] == 2.0
        pv.close()
        pv.open("text", nt=NTScalar("s"))
        while True:
            update = taken(updates)
            if hasattr(update, "store"):
                break
        assert update["value"] == "text"
        assert pv.current() == "text"


def test_alarm_and_time_are_posted_with_the_value() -> None:
    pv = SharedPV(nt=D, initial=1.0, timestamp=(1, 2))
    with served(pv=pv) as client:
        updates = client.watch("pv")
        first = taken(updates)
        assert (first["timeStamp.secondsPastEpoch"], first["timeStamp.nanoseconds"]) == (1, 2)
        pv.post(4.0, timestamp=10.25, severity=2, message="high")
        second = taken(updates)
        assert second["value"] == 4.0
        assert (second["timeStamp.secondsPastEpoch"], second["timeStamp.nanoseconds"]) == (10, 250_000_000)
        assert (second["alarm.severity"], second["alarm.message"]) == (2, "high")
        pv.post(5.0)
        third = taken(updates)
        # The update brings the value alone; the client keeps the rest.
        assert [third.is_marked(path) for path in ("value", "alarm", "timeStamp")] == [True, False, False]
        now = client.get("pv")
        assert (now["value"], now["alarm.message"]) == (5.0, "high")


QUICK = [
    ("d", 1.5, {}),
    ("d", 3, {}),
    ("d", 2**60, {}),
    ("d", "4.5", {}),
    ("d", True, {}),
    ("d", np.float32(1.5), {}),
    ("d", float("nan"), {}),
    ("d", 1.5, {"timestamp": 5}),
    ("d", 1.5, {"timestamp": -1.75}),
    ("d", 1.5, {"timestamp": -3.0, "severity": 1}),
    ("d", 1.5, {"timestamp": -1e-20, "severity": 1}),
    ("d", 1.5, {"timestamp": 1700000000.123456, "severity": 0}),
    ("d", 1.5, {"timestamp": 9e16, "severity": 2, "message": "m"}),
    ("d", 1.5, {"timestamp": 5, "severity": None}),
    ("d", 1.5, {"timestamp": 5, "nosuch": 1}),
    ("d", 1.5, {"timestamp": (5, 6)}),
    ("d", 1.5, {"timestamp": None, "severity": None, "message": None}),
    ("d", 1.5, {"severity": 1, "message": "m"}),
    ("d", 1.5, {"severity": 1.9, "message": 5}),
    ("d", 1.5, {"severity": 2**40}),
    ("d", 1.5, {"message": "\u00fc"}),
    ("d", 1.5, {"timestamp": 1e300}),
    ("d", 1.5, {"timestamp": float("nan")}),
    ("d", 1.5, {"nosuch": 1}),
    ("d", {"value": 4, "alarm.severity": 1}, {"message": "m"}),
    ("d", None, {}),
    ("i", 5, {}),
    ("i", 5.9, {}),
    ("i", 2**31, {}),
    ("i", -(2**31), {"severity": 3}),
    ("l", 2**63, {}),
    ("L", -1, {}),
    ("B", 256, {}),
    ("b", -128, {}),
    ("f", 1.1, {}),
    ("?", True, {}),
    ("?", 1, {}),
    ("?", True, {"severity": 1, "timestamp": 5}),
    ("B", 7, {"timestamp": 5}),
    ("s", "text", {"message": "m"}),
    ("s", "text", {"timestamp": 5.5, "severity": 1}),
    ("s", "text", {"severity": 1}),
    ("s", "gr\u00fc\u00df", {}),
    ("s", 5, {}),
]


@pytest.mark.parametrize(("code", "value", "kws"), QUICK)
def test_a_quick_post_has_the_result_of_a_long_one(code: str, value: Any, kws: dict[str, Any]) -> None:
    nt = NTScalar(code)
    outcomes = []
    for wrap in (None, functools.partial(nt.wrap)):  # any other wrap takes the long way
        pv = SharedPV(nt=nt, wrap=wrap, initial=nt.type())
        try:
            pv.post(value, **kws)
        except (ValueError, RuntimeError) as error:
            outcomes.append(type(error))
            continue
        raw = Value._of(pv._core.current())
        outcomes.append((repr(raw.tolist()), raw.changedSet()))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("code", ["d", "f", "i", "l", "B", "?", "s"])
@pytest.mark.parametrize("request_", ["", "field(value)", "field(value,alarm,timeStamp)"])
def test_numbers_that_travel_together_arrive_as_they_were_posted(code: str, request_: str) -> None:
    values: dict[str, Any] = {"d": [1.5, -2.5], "f": [1.5, 2.5], "?": [True, False], "s": ["a", "b"]}
    first, second = values.get(code, [1, 2])
    pv = SharedPV(nt=NTScalar(code), initial=first)
    with served(pv=pv) as client:
        updates = client.watch("pv", request_)
        taken(updates)
        for more in ({"severity": 2}, {"timestamp": 1700000000.25}, {"severity": 1, "timestamp": -0.5}):
            for value in (second, first):
                pv.post(value, **more)
                update = taken(updates)
                assert update["value"] == value
                held = Value._of(pv._core.current())
                for path in ("alarm.severity", "timeStamp.secondsPastEpoch", "timeStamp.nanoseconds"):
                    if request_ != "field(value)":
                        assert update[path] == held[path]
                        assert update.is_marked(path) is (path.split(".")[-1][:3] in marks(more))
                assert client.get("pv")["alarm.severity"] == held["alarm.severity"]


def marks(more: dict[str, Any]) -> set[str]:
    return ({"sev"} if "severity" in more else set()) | ({"sec", "nan"} if "timestamp" in more else set())


def test_what_was_posted_is_a_copy() -> None:
    nested = Type(
        [("value", ("S", None, [("texts", "as"), ("any", "v"), ("rows", ("aS", None, [("x", "i")]))]))]
    )
    pv = SharedPV(initial=nested({"value": {"texts": ["a"], "any": 1, "rows": [{"x": 1}]}}))
    value = nested({"value": {"texts": ["b"], "any": 2, "rows": [{"x": 2}]}})
    pv.post(value)
    value["value.texts"] = ["c"]
    value["value.any"] = 3
    value.value.rows[0].x = 3
    held = pv.current()
    assert (list(held.value.texts), held.value.any, held.value.rows[0].x) == (["b"], 2, 2)
    held.value.rows[0].x = 4
    assert pv.current().value.rows[0].x == 2


def test_a_large_array_is_not_copied_once_it_is_a_value() -> None:
    pv = SharedPV(nt=NTScalar("ad"), initial=np.zeros(3))
    array = np.arange(1_000_000, dtype=float)
    value = pv.nt.wrap(array)
    with served(pv=pv) as client:
        updates = client.watch("pv")
        taken(updates)
        pv.post(value)
        assert np.shares_memory(pv.current(), value.value)
        array[0] = -1.0  # the caller's own, as with p4p
        assert np.array_equal(taken(updates)["value"], np.arange(1_000_000, dtype=float))


def test_the_open_value_says_which_fields_are_valid() -> None:
    pv = SharedPV(initial=D.type({"value": 1.0}))
    assert pv.current().changedSet() == {"value"}
    pv.post(D.type({"alarm.severity": 1}))
    pv.post(D.type({}))
    assert pv.current().changedSet() == {"value", "alarm.severity"}


def test_pvs_that_were_given_one_enum_have_no_choices_of_each_other() -> None:
    nt = NTEnum()
    pump = SharedPV(nt=nt, initial={"index": 0, "choices": ["off", "on"]})
    bare = SharedPV(nt=nt, initial=1)
    seen: list[Any] = []

    @bare.put
    @pump.put
    def put(pv: SharedPV, op: Any) -> None:
        seen.append(op.value().choice)
        pv.post(op.value())
        op.done()

    pump.post("on")
    assert (pump.current(), pump.current().choice) == (1, "on")
    assert (bare.current(), bare.current().choice) == (1, None)
    with pytest.raises(ValueError, match="on"):
        bare.post("on")
    with served(pump=pump, bare=bare) as client:
        client.put("pump", {"value.index": 0})
        client.put("bare", {"value.index": 0})
    assert seen == ["off", None]


# -- many posts --------------------------------------------------------------------------------------


def test_posts_of_one_thread_arrive_in_their_order_and_the_last_one_always() -> None:
    pv = SharedPV(nt=D, initial=0.0)
    with served(pv=pv) as client:
        updates = client.watch("pv")
        assert taken(updates)["value"] == 0.0
        for number in range(1, 20_001):
            pv.post(float(number))
        got = [taken(updates)["value"]]
        while got[-1] != 20_000.0:
            got.append(taken(updates)["value"])
        assert got == sorted(got)
        assert client.get("pv")["value"] == 20_000.0


def test_threads_may_post_at_the_same_time() -> None:
    kind = Type([(name, "l") for name in "abcd"])
    pv = SharedPV(initial=kind())
    with served(pv=pv) as client:
        updates = client.watch("pv")
        taken(updates)

        def post(name: str) -> None:
            for number in range(1, 1001):
                pv.post(kind({name: number}))

        threads = [threading.Thread(target=post, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pv.current().tolist() == [(name, 1000) for name in "abcd"]
        state = dict.fromkeys("abcd", 0)
        while state != dict.fromkeys("abcd", 1000):
            update = taken(updates)
            for name in "abcd":
                if update.is_marked(name):
                    assert update[name] >= state[name]
                    state[name] = update[name]


@pytest.mark.parametrize("full", [False, True])
def test_what_does_not_fit_is_squashed_into_the_latest_post(full: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(_core, "ROOM", 4)
    pv = SharedPV(nt=D, initial=0.0)
    more = {"severity": 1} if full else {}
    with served(pv=pv) as client:
        updates = client.watch("pv", "record[queueSize=100]")
        taken(updates)
        with held_engine():
            for number in range(1, 21):
                pv.post(float(number), **more)
            room = 8 if full else 4
            assert len(pv._core._pending) == room
            assert pv.current() == 20.0
        assert [taken(updates)["value"] for _ in range(room)] == [*map(float, range(1, room)), 20.0]
        pv.post(21.0)
        assert taken(updates)["value"] == 21.0


def test_a_burst_of_whole_values_is_sent_although_the_clients_queue_is_short() -> None:
    pv = SharedPV(nt=D, initial=0.0)
    got: list[float] = []
    there, all_there = threading.Event(), threading.Event()

    def update(value: Any) -> None:
        got.append(value["value"])
        there.set()
        if got[-1] == 20.0:
            all_there.set()

    with served(pv=pv) as client:
        monitor = engine().call(lambda: client.context.monitor("pv", on_update=update))
        assert there.wait(PATIENCE_S)
        with held_engine():
            for number in range(1, 21):
                pv.post(float(number), severity=number % 4)
        assert all_there.wait(PATIENCE_S)
        assert got == [float(number) for number in range(21)]
        engine().call(monitor.close)


def test_plain_and_full_posts_that_are_squashed_lose_no_field(monkeypatch: Any) -> None:
    monkeypatch.setattr(_core, "ROOM", 0.5)
    pv = SharedPV(nt=D, initial=0.0)
    with served(pv=pv) as client:
        updates = client.watch("pv")
        taken(updates)
        for posts in (
            [(1.0, {}), (2.0, {"severity": 1})],
            [(3.0, {"severity": 2}), (4.0, {})],
            [(5.0, {"severity": 3}), (6.0, {}), (7.0, {})],
        ):
            with held_engine():
                for value, more in posts:
                    pv.post(value, **more)
            update = taken(updates)
            assert update["value"] == posts[-1][0]
            assert update["alarm.severity"] == next(more["severity"] for _, more in posts if more)
            assert update.is_marked("alarm.severity")


def test_a_thread_that_posts_without_pause_waits_for_the_pvaccess_thread_only_for_a_moment() -> None:
    pv = SharedPV(nt=D, initial=0.0)
    with served(pv=pv) as client:
        taken(client.watch("pv"))
        with held_engine():
            for number in range(2 * _core.posts.ROOM + 10):
                pv.post(float(number))  # each wait ends by itself: the thread that would end it is held
        assert client.get("pv")["value"] == float(number)


def test_a_get_after_a_post_sees_it() -> None:
    pv = SharedPV(nt=D, initial=0.0)
    with served(pv=pv) as client:
        for number in range(50):
            pv.post(float(number))
            assert client.get("pv")["value"] == float(number)  # from the second on without asking the PV


def test_a_new_subscriber_gets_the_present_value_once() -> None:
    pv = SharedPV(nt=D, initial=0.0)
    with served(pv=pv) as client:
        first = client.watch("pv")
        assert taken(first)["value"] == 0.0
        with held_engine():
            second = threading.Thread(target=lambda: watched.append(client.watch("pv", "field(value)")))
            watched: list[Any] = []
            second.start()
            pv.post(1.0)
            pv.post(2.0)
        second.join()
        third = watched[0]
        seen = [taken(third)["value"]]
        pv.post(3.0)
        while seen[-1] != 3.0:
            seen.append(taken(third)["value"])
        assert seen == sorted(set(seen))
        assert [taken(first)["value"] for _ in range(3)] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("how", ["get", "monitor"])
def test_who_begins_to_look_while_a_thread_posts_misses_nothing(how: str) -> None:
    pvs = {f"pv{number}": SharedPV(nt=D, initial=0.0) for number in range(20)}
    done = threading.Event()
    posted = 0.0

    def post() -> None:
        nonlocal posted
        number = 0.0
        while not done.is_set():
            number += 1.0
            for pv in pvs.values():
                pv.post(number)
            posted = number

    with served(**pvs) as client:
        thread = threading.Thread(target=post)
        thread.start()
        try:
            queues = {}
            for name in pvs:
                before = posted
                if how == "get":
                    assert client.get(name)["value"] >= before
                else:
                    queues[name] = client.watch(name)
                    assert taken(queues[name])["value"] >= before
        finally:
            done.set()
            thread.join()
        for updates in queues.values():
            while taken(updates)["value"] != posted:
                pass
        for name in pvs:
            assert client.get(name)["value"] == posted


def test_posts_of_all_kinds_arrive_in_their_order() -> None:
    pv = SharedPV(nt=D, initial=0.0)
    with served(pv=pv) as client:
        updates = client.watch("pv", "record[queueSize=60]")
        taken(updates)
        expected = []
        with held_engine():
            for number in range(1, 41, 4):
                pv.post(float(number))
                pv.post(float(number + 1), severity=number % 4)
                pv.post(float(number + 2), severity=(number + 1) % 4, timestamp=number)
                pv.post(D.wrap(float(number + 3), message=str(number)))
                expected += [
                    (float(number), {"value"}),
                    (float(number + 1), {"value", "alarm.severity"}),
                    (
                        float(number + 2),
                        {"value", "alarm.severity", "timeStamp.nanoseconds", "timeStamp.secondsPastEpoch"},
                    ),
                    (float(number + 3), {"value", "alarm.message"}),
                ]
        for value, fields in expected:
            update = taken(updates)
            assert (update["value"], Value._of(update).changedSet()) == (value, fields)
        now = pv.current()
        assert (now, now.severity, now.timestamp) == (40.0, 2, 37.0)


def test_what_was_squashed_is_marked_as_lost_and_lacks_no_field(monkeypatch: Any) -> None:
    monkeypatch.setattr(_core, "ROOM", 1)
    pv = SharedPV(nt=D, initial=0.0)
    with served(pv=pv) as client:
        updates = client.watch("pv", "record[queueSize=60]")
        taken(updates)
        with held_engine():
            pv.post(1.0, severity=1)
            pv.post(2.0, timestamp=5)
            pv.post(3.0, severity=2)  # no room: takes the place of the one before
            pv.post(4.0)
            pv.post(5.0, severity=3, timestamp=6)
            pv.post(6.0)
        assert (first := taken(updates))["value"] == 1.0
        assert Value._of(first).changedSet() == {"value", "alarm.severity"}
        last = taken(updates)
        assert (last["value"], last["alarm.severity"], last["timeStamp.secondsPastEpoch"]) == (6.0, 3, 6)
        pv.post(7.0, severity=0)
        assert taken(updates)["value"] == 7.0
        got = client.get("pv")
        assert (got["value"], got["alarm.severity"], got["timeStamp.secondsPastEpoch"]) == (7.0, 0, 6)


# -- handlers ----------------------------------------------------------------------------------------


def test_a_refusal_is_the_clients_error() -> None:
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        if op.value() < 0:
            op.done(error="must not be negative")
        else:
            op.done()

    with served(pv=pv) as client:
        with pytest.raises(OperationError, match="must not be negative"):
            client.put("pv", -1)
        client.put("pv", 1)


def test_an_error_in_a_handler_is_told_and_logged_and_the_next_request_is_handled(caplog: Any) -> None:
    pv = SharedPV(nt=D, initial=1.0)
    errors: list[Exception] = [
        ZeroDivisionError("the handler's defect"),
        RemoteError("said to the client"),
        KeyError(),
    ]

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        if errors:
            raise errors.pop(0)
        op.done()

    with served(pv=pv) as client, caplog.at_level(logging.ERROR, logger="appliance.p4p"):
        with pytest.raises(OperationError, match="the handler's defect"):
            client.put("pv", 1)
        assert "ZeroDivisionError" in caplog.text
        caplog.clear()
        with pytest.raises(OperationError, match="said to the client"):
            client.put("pv", 1)
        assert not caplog.records
        with pytest.raises(OperationError, match="KeyError"):
            client.put("pv", 1)
        client.put("pv", 1)


def test_a_text_of_an_error_that_no_message_can_carry_is_written_out() -> None:
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        op.done(error="bad: \ud800")

    with served(pv=pv) as client, pytest.raises(OperationError, match=r"bad: \\ud800"):
        client.put("pv", 1)


def test_a_pv_without_handlers_is_read_only() -> None:
    with served(
        pv=SharedPV(nt=D, initial=1.0), base=SharedPV(nt=D, initial=1.0, handler=Handler())
    ) as client:
        with pytest.raises(OperationError, match="Put not supported"):
            client.put("pv", 1)
        with pytest.raises(OperationError, match="RPC not supported"):
            client.rpc("pv")
        with pytest.raises(OperationError, match="Not supported"):
            client.put("base", 1)
        with pytest.raises(OperationError, match="Not supported"):
            client.rpc("base")


def test_an_rpc_is_answered_also_by_a_closed_pv() -> None:
    pv = SharedPV()
    seen: list[Any] = []

    @pv.rpc
    def rpc(pv: SharedPV, op: Any) -> None:
        seen.append((op.value().tolist(), op.name(), op.pvRequest().tolist()))
        if op.value().get("fail"):
            op.done(error="failed")
        elif op.value().get("null"):
            op.done()
        else:
            op.done(NTScalar("i").wrap(42))

    def asked(**fields: Any) -> Any:
        return Type([(name, "i") for name in fields])(fields)._fields

    with served(pv=pv) as client:
        assert client.rpc("pv")["value"] == 42
        assert client.rpc("pv", asked(null=1)) is None
        with pytest.raises(OperationError, match="failed"):
            client.rpc("pv", asked(fail=1))
    assert seen[0] == ([], "pv", [("field", [])])
    assert seen[1][0] == [("null", 1)]


def test_a_handler_learns_who_asks() -> None:
    seen: list[Any] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        seen.append((op.name(), op.peer(), op.account(), op.roles(), op.credentials()))
        op.info("nothing is sent")
        op.warn("a text for the log")
        op.done()

    with served(pv=pv) as client:
        client.put("pv", 1)
    name, peer, account, roles, credentials = seen[0]
    assert name == "pv"
    assert peer.startswith("127.0.0.1:")
    assert account == credentials.account
    assert roles == set(credentials.roles)
    assert (credentials.method, credentials.is_tls) == ("ca", False)


def test_done_takes_what_p4p_takes() -> None:
    seen: list[str] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        for bad in ({"error": ""}, {"error": 5}, {"value": "no number"}, {"value": 5}):
            try:
                op.done(**bad)
            except (TypeError, ValueError) as error:
                seen.append(type(error).__name__)
        op.note = "a handler may keep something with its request"
        op.done()
        op.done()
        op.done(error="too late")

    called = SharedPV()

    @called.rpc
    def rpc(pv: SharedPV, op: Any) -> None:
        try:
            op.done(5)
        except TypeError as error:
            op.done(error=str(error))

    with served(pv=pv, called=called) as client:
        client.put("pv", 1)
        client.put("pv", 2)
        with pytest.raises(OperationError, match="must be a Value, not int"):
            client.rpc("called")
    assert seen == ["ValueError", "TypeError", "ValueError", "ValueError"] * 2


def test_a_request_that_its_handler_has_lost_fails_at_once(caplog: Any) -> None:
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        pass

    with served(pv=pv) as client, caplog.at_level(logging.WARNING, logger="appliance.p4p.server"):
        with pytest.raises(OperationError, match="without an answer"):
            client.put("pv", 1)
        assert "without calling done()" in caplog.text


def test_a_request_may_be_answered_later_and_from_another_thread() -> None:
    waiting: list[Any] = []
    there = threading.Event()
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        waiting.append(op)
        there.set()

    with served(pv=pv) as client:
        task = client.begin(client.context.put("pv", 5, timeout=PATIENCE_S))
        assert there.wait(PATIENCE_S)
        gc.collect()
        assert not task.done()
        waiting.pop().done()

        async def wait() -> None:
            await task

        engine().run(wait())


@pytest.mark.parametrize("how", ["cancel", "disconnect", "close"])
def test_a_handler_is_told_when_nobody_waits_any_more(how: str) -> None:
    there, cancelled = threading.Event(), threading.Event()
    kept: list[Any] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        op.onCancel(cancelled.set)
        kept.append(op)
        there.set()
        cancelled.wait(PATIENCE_S)  # the queue of this PV is busy: it is told all the same

    with served(pv=pv) as client:
        task = client.begin(client.context.put("pv", 5, timeout=PATIENCE_S))
        assert there.wait(PATIENCE_S)
        if how == "cancel":
            engine().soon(task.cancel)
        elif how == "close":
            pv.close()
        else:
            engine().run(client.context.close())
        assert cancelled.wait(PATIENCE_S)
        kept.pop().done()

        async def wait() -> None:
            await asyncio.gather(task, return_exceptions=True)

        engine().soon(task.cancel)
        engine().run(wait())


def test_a_request_that_was_answered_is_not_cancelled() -> None:
    cancelled: list[int] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        op.onCancel(lambda: cancelled.append(1))
        kept.append(op)
        op.done()

    kept: list[Any] = []
    with served(pv=pv) as client:
        client.put("pv", 1)
    _operation.server_queue.sync(PATIENCE_S)
    assert not cancelled


def test_an_error_of_what_a_cancelled_request_calls_is_logged(caplog: Any) -> None:
    there = threading.Event()
    kept: list[Any] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        op.onCancel(lambda: {}["missing"])
        kept.append(op)
        there.set()

    with caplog.at_level(logging.ERROR, logger="appliance.p4p"):
        with served(pv=pv) as client:
            client.begin(client.context.put("pv", 5, timeout=PATIENCE_S))
            assert there.wait(PATIENCE_S)
        _operation.server_queue().sync(PATIENCE_S)
    assert "missing" in caplog.text


def test_handlers_may_have_so_many_requests_and_no_more(monkeypatch: Any) -> None:
    there = threading.Event()
    kept: list[Any] = []
    pv = SharedPV(nt=D, initial=1.0)

    @pv.put
    def put(pv: SharedPV, op: Any) -> None:
        kept.append(op)
        there.set()

    def begun() -> int:
        return _operation._begun - len(_operation._ended)

    with served(pv=pv) as client:
        gc.collect()  # what other tests have left
        monkeypatch.setattr(_operation, "MAX_OPERATIONS", begun() + 1)
        task = client.begin(client.context.put("pv", 5, timeout=PATIENCE_S))
        assert there.wait(PATIENCE_S)
        with pytest.raises(ApplianceError, match="requests in progress; try again later"):
            client.put("pv", 6)
        kept.pop().done()

        async def wait() -> None:
            await task

        engine().run(wait())
        there.clear()
        task = client.begin(client.context.put("pv", 7, timeout=PATIENCE_S))
        assert there.wait(PATIENCE_S)
        kept.pop().done()
        engine().run(wait())


def test_a_full_queue_refuses_the_request(caplog: Any) -> None:
    queue = WorkQueue(maxsize=1)
    pv = SharedPV(nt=D, initial=1.0, queue=queue)
    queue.push(lambda: None)
    pv.put(lambda pv, op: op.done())
    with (
        served(pv=pv) as client,
        caplog.at_level(logging.ERROR, logger="appliance.p4p"),
        pytest.raises(OperationError, match="log"),
    ):
        client.put("pv", 1)
    assert "Full" in caplog.text


def test_handlers_run_in_the_queue_that_was_given() -> None:
    names: list[str] = []
    with ThreadedWorkQueue(name="mine", maxsize=0) as queue:
        pv = SharedPV(nt=D, initial=1.0, queue=queue)

        @pv.put
        def put(pv: SharedPV, op: Any) -> None:
            names.append(threading.current_thread().name)
            op.done()

        with served(pv=pv) as client:
            client.put("pv", 1)
    assert names == ["mine[0]"]


def test_a_handler_of_the_simplest_kind_may_wait_for_pvaccess() -> None:
    pv = on_server.SharedPV(nt=D, initial=1.0)
    client: NativeClient

    @pv.put
    def put(pv: Any, op: Any) -> None:
        pv.post(client.get("other")["value"])
        op.done()

    with served(pv=pv, other=SharedPV(nt=D, initial=7.0)) as client:
        client.put("pv", 1)
        assert client.get("pv")["value"] == 7.0


# -- clients come and go -----------------------------------------------------------------------------


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


# -- on an event loop --------------------------------------------------------------------------------


def on_a_loop(main: Callable[[], Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await main()

    return asyncio.run(limited())


def test_coroutines_handle_requests_of_one_pv_at_the_same_time() -> None:
    async def main() -> list[Any]:
        pv = on_loop.SharedPV(nt=D, initial=0.0)
        both = asyncio.Event()
        waiting: list[float] = []

        @pv.put
        async def put(pv: Any, op: Any) -> None:
            waiting.append(float(op.value()))
            if len(waiting) == 2:
                both.set()
            await both.wait()
            pv.post(max(waiting))
            op.done()

        @pv.rpc
        def rpc(pv: Any, op: Any) -> None:
            op.done(D.wrap(7.0))

        def work() -> list[Any]:
            with NativeClient(server.conf()) as one, NativeClient(server.conf()) as two:
                tasks = [
                    client.begin(client.context.put("pv", number, timeout=PATIENCE_S))
                    for number, client in enumerate((one, two), 1)
                ]

                async def wait() -> None:
                    await asyncio.gather(*tasks)

                engine().run(wait())
                return [one.get("pv")["value"], two.rpc("pv")["value"]]

        with Server(providers=[{"pv": pv}], isolate=True) as server:
            return await asyncio.to_thread(work)

    assert on_a_loop(main) == [2.0, 7.0]


def test_an_error_of_a_coroutine_is_told_and_logged(caplog: Any) -> None:
    async def main() -> list[str]:
        pv = on_loop.SharedPV(nt=D, initial=0.0)
        outcomes: list[BaseException] = [
            ZeroDivisionError("the handler's defect"),
            RemoteError("said to the client"),
            asyncio.CancelledError(),
        ]

        @pv.put
        async def put(pv: Any, op: Any) -> None:
            await asyncio.sleep(0)
            raise outcomes.pop(0)

        @pv.rpc
        def rpc(pv: Any, op: Any) -> None:
            raise ValueError("no coroutine")

        def work() -> list[str]:
            said = []
            with NativeClient(server.conf()) as client:
                for _ in range(3):
                    with pytest.raises(OperationError) as caught:
                        client.put("pv", 1)
                    said.append(str(caught.value))
                with pytest.raises(OperationError) as caught:
                    client.rpc("pv")
                said.append(str(caught.value))
            return said

        with Server(providers=[{"pv": pv}], isolate=True) as server:
            return await asyncio.to_thread(work)

    with caplog.at_level(logging.ERROR, logger="appliance.p4p"):
        said = on_a_loop(main)
    for part, text in zip(("defect", "said to", "cancelled", "no coroutine"), said, strict=True):
        assert part in text
    assert "ZeroDivisionError" in caplog.text
    assert "said to" not in caplog.text


def test_closing_a_pv_on_a_loop_can_be_awaited() -> None:
    async def main() -> list[str]:
        comings = Comings()
        pv = on_loop.SharedPV(nt=D, initial=0.0, handler=comings)
        begun, leave = asyncio.Event(), asyncio.Event()

        @pv.put
        async def put(pv: Any, op: Any) -> None:
            begun.set()
            await leave.wait()
            comings.log.append("put")
            op.done()

        with Server(providers=[{"pv": pv}], isolate=True) as server:
            client = NativeClient(server.conf())
            await asyncio.to_thread(client.__enter__)
            task = client.begin(client.context.put("pv", 1, timeout=PATIENCE_S))
            await begun.wait()
            closing = pv.close(sync=True)
            asyncio.get_running_loop().call_soon(leave.set)
            await closing
            engine().soon(task.cancel)
            await asyncio.to_thread(client.__exit__)
            assert pv.close() is None
        return comings.log

    log = on_a_loop(main)
    assert set(log[:3]) == {"first", "put", "last"}


def test_a_pv_for_an_event_loop_needs_one() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        on_loop.SharedPV(nt=D)


def test_a_handler_on_a_loop_that_has_ended_is_an_error_of_the_client() -> None:
    async def main() -> Any:
        pv = on_loop.SharedPV(nt=D, initial=0.0)
        pv.put(lambda pv, op: op.done())
        return pv

    provider = StaticProvider()
    provider.add("pv", asyncio.run(main()))
    with Server(providers=[provider], isolate=True) as server, NativeClient(server.conf()) as client:
        assert client.get("pv")["value"] == 0.0
        with pytest.raises(OperationError, match="log"):
            client.put("pv", 1)


def test_cothread_is_refused_with_a_sentence() -> None:
    with pytest.raises(ImportError, match=r"use server\.thread or server\.asyncio"):
        __import__("appliance.p4p.server.cothread")


def test_a_forked_child_that_leaves_a_server_ends_with_its_own_status() -> None:
    pv = SharedPV(nt=D, initial=1.0)
    server = Server(providers=[{"pv": pv}], isolate=True)
    child = os.fork()
    if not child:
        status = 1
        try:
            with server:
                pass
            status = 3
        finally:
            os._exit(status)
    _, how = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(how) == 3
    with NativeClient(server.conf()) as client:
        assert client.get("pv")["value"] == 1.0
    server.stop()
