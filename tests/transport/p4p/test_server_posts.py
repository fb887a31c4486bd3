"""SharedPV of the p4p API: many posts, from threads, in bursts and squashed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from appliance.p4p.server import _core
from appliance.p4p.server.thread import SharedPV
from appliance.p4p.wrapper import Type, Value
from appliance.threads import engine
from tests.helpers.native_client import PATIENCE_S, taken
from tests.helpers.p4p_served import D, held_engine, served


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
    # Each subscription is more work for the one thread that has to keep up with another that posts without pause.
    pvs = {f"pv{number}": SharedPV(nt=D, initial=0.0) for number in range(20 if how == "get" else 8)}
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
