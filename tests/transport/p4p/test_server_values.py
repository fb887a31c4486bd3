"""SharedPV of the p4p API: what its owner opens and posts, over real sockets."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from appliance.p4p.nt import NTEnum, NTScalar
from appliance.p4p.server.thread import SharedPV
from appliance.p4p.wrapper import Type, Value
from appliance.threads import engine
from tests.helpers.native_client import PATIENCE_S, taken
from tests.helpers.p4p_served import D, mailbox, served, until


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
