"""What a program with Qt may rely on: ``python -m tests.helpers.qt_program NAME`` does one of these in a process of its own.

A binding of Qt changes how Python imports, so tests do not load it into their own process.
"""

from __future__ import annotations

import ast
import doctest
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from qtpy.QtCore import QCoreApplication, QObject, QThread

from appliance.errors import OperationError
from appliance.p4p.client.Qt import (
    Cancelled,
    Context,
    Disconnected,
    MCache,
    RemoteError,
    Value,
)
from appliance.p4p.client.Qt import TimeoutError as Late
from appliance.p4p.nt import NTURI
from appliance.pvdata.nt import NTEnum, NTScalar
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value as NativeValue
from appliance.server.sharedpv import SharedPV
from appliance.threads import engine
from tests.helpers.clock import FakeClock
from tests.helpers.live import number
from tests.helpers.served import Served, served

PATIENCE_S = 30.0
app = QCoreApplication([])


class Window(QObject):
    """Keeps what its slots got, and checks that they run in its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.got: list[Any] = []

    def show(self, item: Any) -> None:
        assert QThread.currentThread() == self.thread()
        self.got.append(item)

    @property
    def kinds(self) -> list[type]:
        return [type(item) for item in self.got]


def wait_for(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.002)):
        app.processEvents()
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it did not come")


def refuse(*_: object) -> None:
    raise OperationError("no, not today")


def add(pv: SharedPV, operation: object, argument: NativeValue | None) -> NativeValue:
    assert argument is not None
    query = argument["query"]
    return NativeValue(NTScalar(FLOAT64), {"value": query["lhs"] + query["rhs"]})


class Silent(SharedPV):
    """Takes a put, and never answers."""

    __slots__ = ()

    def put(self, operation, value):
        pass


def the_site() -> Any:
    initial = NativeValue(NTScalar(FLOAT64), {"value": 0.0})
    mode = NativeValue(NTEnum(), {"value": {"index": 0, "choices": ["off", "on"]}})
    return served(
        a=number(1.5),
        adder=SharedPV(initial, on_rpc=add),
        refuses=SharedPV(initial, on_put=refuse),
        silent=Silent(initial),
        mode=SharedPV.mailbox(mode),
    )


def pv_of(site: Served, name: str) -> Any:
    return site.server._static.pvs[name]


def open_context(site: Served, **options: Any) -> Context:
    return Context("pva", conf=site.conf, useenv=False, **options)


def a_subscription_begins_without_a_connection_and_gives_values_in_the_windows_thread(site):
    window, other = Window(), Window()
    with open_context(site, parent=window) as ctxt:
        shared = ctxt.monitor("a", window.show)
        assert isinstance(shared, MCache)
        assert window.got == [], "nothing is called before monitor() has returned"
        wait_for(lambda: len(window.got) >= 2)
        assert window.kinds[0] is Disconnected
        assert window.got[1] == 1.5
        assert ctxt.monitor("a", other.show) is shared
        wait_for(lambda: other.got)
        assert other.got == [1.5], "a later slot gets the latest value"
        site.do(pv_of(site, "a").post, 2.5)
        wait_for(lambda: window.got[-1] == other.got[-1] == 2.5)
        site.do(pv_of(site, "a").close)
        wait_for(lambda: isinstance(window.got[-1], Disconnected) and isinstance(other.got[-1], Disconnected))


def a_put_tells_its_end(site):
    window = Window()
    with open_context(site) as ctxt:
        ctxt.put("mode", "on", window.show, timeout=PATIENCE_S)
        wait_for(lambda: window.got)
        assert window.got == [None]
        assert pv_of(site, "mode").current["value.index"] == 1
        ctxt.put("refuses", {"value": 1.0}, window.show, timeout=PATIENCE_S)
        wait_for(lambda: len(window.got) == 2)
        assert window.kinds[1] is RemoteError
        assert "no, not today" in str(window.got[1])
        kept = ctxt.put("mode", 7.5j, window.show, timeout=PATIENCE_S)
        wait_for(lambda: len(window.got) == 3)
        assert isinstance(window.got[2], Exception)
        assert kept.parent() is None, "what is done does not stay until the window closes"


def a_put_that_gets_no_answer_ends_in_time(site):
    window = Window()
    with open_context(site) as ctxt:
        ctxt.put("nowhere", 1, window.show, timeout=0.05)
        wait_for(lambda: window.got)
        assert window.kinds == [Late]
        assert str(window.got[0]) == "nowhere: timeout after 0.05 s"
        app.processEvents()
        assert len(window.got) == 1
        ctxt.rpc("nowhere", None, window.show, timeout=0.05)  # nobody keeps it
        wait_for(lambda: len(window.got) == 2)
        assert window.kinds[1] is Late


def a_later_put_cancels_the_earlier_one(site):
    first, second, third = Window(), Window(), Window()
    with open_context(site) as ctxt:
        ctxt.put("silent", 1, first.show, timeout=None)
        ctxt.put("silent", 2, second.show, timeout=None)
        wait_for(lambda: first.got)
        assert first.kinds == [Cancelled]
        assert second.got == []
        ctxt.disconnect("silent")
        wait_for(lambda: second.got)
        assert second.kinds == [Cancelled]
        ctxt.put("silent", 3, third.show, timeout=None)
    wait_for(lambda: third.got)
    assert third.kinds == [Cancelled]


def a_call_gives_its_result(site):
    window = Window()
    uri = NTURI([("lhs", "d"), ("rhs", "d")])
    with open_context(site) as ctxt:
        kept = ctxt.rpc(
            "adder", uri.wrap("adder", kws={"lhs": 1.0, "rhs": 2.5}), window.show, timeout=PATIENCE_S
        )
        wait_for(lambda: window.got)
        assert window.got == [3.5]
        again = ctxt.rpc("a", None, window.show, timeout=PATIENCE_S)
        wait_for(lambda: len(window.got) == 2)
        assert window.kinds[1] is RemoteError
        kept.close()
        again.close()


def a_limit_holds_and_the_latest_value_comes(site):
    window = Window()
    with open_context(site) as ctxt:
        every = Window()
        ctxt.monitor("a", every.show, limitHz=None)
        wait_for(lambda: len(every.got) == 2)  # connected: from here on the clock stands
        clock = FakeClock()
        engine().call(ctxt._ctxt.native._end.use_clock, clock)
        ctxt.monitor("a", window.show, limitHz=50)
        wait_for(lambda: len(window.got) == 2)
        for value in range(2, 200):
            site.do(pv_of(site, "a").post, float(value))
        wait_for(lambda: every.got[-1] == 199.0)
        assert window.got[1:] == [1.5]
        ticks = 0

        def tick() -> bool:
            nonlocal ticks
            ticks += 1
            engine().call(clock.advance, 1 / 50)
            return window.got[-1] == 199.0

        wait_for(tick)
        app.processEvents()
        assert len(window.got) <= 2 + ticks


def what_means_nothing_is_refused(site):
    with open_context(site) as ctxt:
        for call, error in [
            (lambda: ctxt.monitor("a", print, limitHz=0), ValueError),
            (lambda: ctxt.monitor("a", print, limitHz="fast"), TypeError),
            (lambda: ctxt.monitor(["a"], print), TypeError),
            (lambda: ctxt.put(["a"], 1), TypeError),
            (lambda: ctxt.put("a", 1, request="field()", wait=True), ValueError),
            (lambda: ctxt.rpc("adder", {"lhs": 1}, print), TypeError),
        ]:
            with pytest.raises(error, match=r"\w \w"):
                call()
    with pytest.raises(RuntimeError, match="closed"):
        ctxt.monitor("a", print)


def after_disconnect_a_subscription_is_a_new_one(site):
    window = Window()
    with open_context(site) as ctxt:
        first = ctxt.monitor("a", window.show)
        wait_for(lambda: len(window.got) == 2)
        ctxt.disconnect("nowhere")
        ctxt.disconnect("a")
        second = ctxt.monitor("a", window.show, request="field(value)")
        assert second is not first
        wait_for(lambda: len(window.got) == 4)
        assert window.kinds[2] is Disconnected
        assert window.got[3] == 1.5
        second.close()
        site.do(pv_of(site, "a").post, 9.0)
        third = Window()
        ctxt.monitor("a", third.show)
        wait_for(lambda: len(third.got) == 2)
        assert len(window.got) == 4, "nothing comes after close()"
        ctxt.disconnect()


def a_window_that_closes_takes_its_subscriptions_along(site):
    from shiboken6 import delete

    window, other = QObject(), Window()
    got: list[Any] = []
    with open_context(site, parent=window) as ctxt:
        mine = ctxt.monitor("a", got.append, limitHz=None)
        done = ctxt.put("silent", 1, got.append, timeout=None)
        wait_for(lambda: len(got) == 2)
        delete(window)
        with open_context(site) as elsewhere:
            elsewhere.monitor("a", other.show)
            wait_for(lambda: len(other.got) == 2)
            site.do(pv_of(site, "a").post, 2.0)
            wait_for(lambda: other.got[-1] == 2.0)
        wait_for(lambda: not mine._is_open)
        assert len(got) == 2
        done.close()
        app.processEvents()


def an_error_of_a_slot_harms_no_other(site):
    window = Window()

    def fails(item: Any) -> None:
        raise RuntimeError("a defect of the program")

    with open_context(site) as ctxt:
        ctxt.monitor("a", fails)
        ctxt.monitor("a", window.show)
        wait_for(lambda: len(window.got) == 2)


def values_are_unwrapped_unless_the_context_says_otherwise(site):
    window = Window()
    with open_context(site, nt=False) as ctxt:
        ctxt.monitor("a", window.show)
        wait_for(lambda: len(window.got) == 2)
        assert window.kinds[1] is Value


def the_example_of_the_class_does_what_it_says(site):
    site.do(site.server.add_pv, "demo:temperature", number(21.5))
    site.do(site.server.add_pv, "demo:setpoint", SharedPV.mailbox(NativeValue(NTScalar(FLOAT64), 4.0)))
    os.environ.update(site.conf)
    (example,) = doctest.DocTestParser().get_examples(Context.__doc__ or "")
    program = ast.parse(example.source)
    (block,) = program.body
    assert isinstance(block, ast.With)
    block.body += ast.parse("wait_for(lambda: len(label.got) == 2 and status.got)").body
    names = {"Context": Context, "label": Window(), "status": Window(), "wait_for": wait_for}
    exec(compile(program, "<example>", "exec"), names)
    assert names["label"].got[1] == 21.5
    assert names["status"].got == [None]
    assert pv_of(site, "demo:setpoint").current["value"] == 4.5


SCENARIOS = [
    a_subscription_begins_without_a_connection_and_gives_values_in_the_windows_thread,
    a_put_tells_its_end,
    a_put_that_gets_no_answer_ends_in_time,
    a_later_put_cancels_the_earlier_one,
    a_call_gives_its_result,
    a_limit_holds_and_the_latest_value_comes,
    what_means_nothing_is_refused,
    after_disconnect_a_subscription_is_a_new_one,
    a_window_that_closes_takes_its_subscriptions_along,
    an_error_of_a_slot_harms_no_other,
    values_are_unwrapped_unless_the_context_says_otherwise,
    the_example_of_the_class_does_what_it_says,
]

if __name__ == "__main__":
    for scenario in SCENARIOS:
        if scenario.__name__ in sys.argv[1:]:
            with the_site() as site:
                scenario(site)
            print("done:", scenario.__name__, flush=True)
