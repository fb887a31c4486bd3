"""The event loop in its thread: safe from any thread, and honest after fork and at the end."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from appliance import threads
from appliance.threads import engine
from tests.helpers.live import number
from tests.helpers.served import Served, served

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def site():
    with served(a=number(1.5)) as there:
        yield there


NO_TIMES = "import logging; logging.getLogger('asyncio').addFilter(lambda record: 'took' not in record.msg)\n"
"""The development mode measures each callback, which only tells how busy the machine is."""


def run_program(text: str, site: Served, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a program that gets ``conf`` from its environment."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", NO_TIMES + textwrap.dedent(text)],
        env={**os.environ, **site.conf, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_calls_of_many_threads_are_all_made_each_threads_in_its_order() -> None:
    home = engine()
    made: list[tuple[int, int]] = []

    def hand_over(thread: int) -> None:
        for count in range(500):
            home.soon(made.append, (thread, count))

    threads = [threading.Thread(target=hand_over, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    home.call(lambda: None)
    assert len(made) == 8 * 500
    for thread in range(8):
        assert [count for whose, count in made if whose == thread] == list(range(500))


def test_a_call_that_fails_does_not_lose_the_next(caplog) -> None:
    home = engine()
    done = threading.Event()
    home.soon(lambda: 1 / 0)
    home.soon(done.set)
    assert done.wait(30)
    assert "ZeroDivisionError" in caplog.text


def test_who_is_stopped_while_waking_the_loop_and_asks_again_does_not_wait_for_himself(monkeypatch) -> None:
    # The garbage collector, or a signal's handler, may call us at any place.
    home = engine()
    wake = home.loop.call_soon_threadsafe
    asked: list[str] = []

    class Loop:
        def call_soon_threadsafe(self, function) -> None:
            if not asked:
                asked.append("again")
                assert home.call(lambda: "answer", timeout=60) == "answer"
                home.soon(asked.append, "inner")
                done = threading.Event()
                home.soon(done.set)
                assert done.wait(60)
            wake(function)

        def __getattr__(self, name):
            return getattr(loop, name)

    loop = home.loop
    monkeypatch.setattr(home, "loop", Loop())
    home.soon(asked.append, "outer")
    monkeypatch.undo()
    home.call(lambda: None)
    assert sorted(asked) == ["again", "inner", "outer"]


def test_after_ctrl_c_in_the_middle_of_waking_the_loop_the_next_call_is_made(monkeypatch) -> None:
    home = engine()

    class Loop:
        def call_soon_threadsafe(self, function) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(home, "loop", Loop())
    done = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        home.soon(done.set)
    monkeypatch.undo()
    home.soon(lambda: None)
    assert done.wait(60)


def test_a_call_gives_its_result_or_its_error() -> None:
    home = engine()
    assert home.call(lambda x: x + 1, 4) == 5
    with pytest.raises(KeyError):
        home.call({}.__getitem__, "x")
    with pytest.raises(TimeoutError):
        home.run(asyncio.sleep(60), timeout=0.01)


def test_the_loops_own_thread_is_told_that_it_cannot_wait() -> None:
    home = engine()

    def inside() -> str:
        assert home.call(lambda: 7) == 7, "a call on the loop's own thread is made at once"
        with pytest.raises(RuntimeError, match="work queue"):
            home.run(asyncio.sleep(0))
        return "done"

    assert home.call(inside) == "done"


def test_after_a_shutdown_the_old_engine_says_so_and_the_next_use_starts_another() -> None:
    before = engine()
    threads.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        before.soon(print)
    after = engine()
    assert after is not before
    assert after.call(lambda: 3) == 3
    gc.collect()


def test_a_forked_child_is_told_what_is_wrong_and_what_to_do_and_the_parent_goes_on(site) -> None:
    program = run_program(
        """
        import gc, os, sys
        from appliance.p4p.client.thread import Context
        ctxt = Context("pva")
        seen = []
        sub = ctxt.monitor("a", seen.append)
        print(ctxt.get("a", timeout=30), flush=True)
        pid = os.fork()
        if not pid:
            for use in (lambda: ctxt.get("a"), lambda: ctxt.put("a", 1), lambda: ctxt.monitor("a", print), ctxt.hurryUp):
                try:
                    use()
                except RuntimeError as error:
                    print(error, flush=True)
            sub.close()
            ctxt.close()
            del sub, ctxt
            gc.collect()
            with Context("pva") as own:
                print("child", own.get("a", timeout=30), flush=True)
            sys.exit(3)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print(ctxt.put("a", 2.5), ctxt.get("a"))
        """,
        site,
    )
    assert program.stderr == ""
    lines = program.stdout.splitlines()
    assert [line.split()[-1] for line in lines[:1]] == ["1.5"]
    assert all("forked" in line and "make a new one in the child" in line for line in lines[1:5])
    assert lines[5].startswith("child")
    assert lines[6] == "3"
    assert lines[7].endswith("2.5"), "the parent's connection works on"


def test_a_child_of_a_server_ends_without_a_word_and_leaves_the_server_to_its_parent(site) -> None:
    program = run_program(
        """
        import os, sys
        from appliance.p4p.client.thread import Context
        from appliance.p4p.nt import NTScalar
        from appliance.p4p.server import Server
        from appliance.p4p.server.thread import SharedPV

        server = Server(providers=[{"x": SharedPV(nt=NTScalar("d"), initial=4.0)}], isolate=True)
        conf = server.conf()
        if not (pid := os.fork()):
            with Context("pva", conf=conf, useenv=False) as ctxt:
                print("child", float(ctxt.get("x", timeout=30)), flush=True)
            sys.exit(3)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        with Context("pva", conf=conf, useenv=False) as ctxt:
            print("parent", float(ctxt.get("x", timeout=30)))
        """,
        site,
    )
    assert (program.stdout, program.stderr) == ("child 4.0\n3\nparent 4.0\n", "")


def test_a_child_of_multiprocessing_is_told_the_same(site) -> None:
    program = run_program(
        """
        import multiprocessing
        from appliance.p4p.client.thread import Context

        def use(ctxt, answers):
            try:
                ctxt.get("a")
            except RuntimeError as error:
                answers.put(str(error))

        ctxt = Context("pva")
        ctxt.get("a", timeout=30)
        fork = multiprocessing.get_context("fork")
        answers = fork.Queue()
        child = fork.Process(target=use, args=(ctxt, answers))
        child.start()
        print(answers.get(timeout=30))
        child.join()
        print(child.exitcode, type(ctxt.get("a")).__name__)
        """,
        site,
    )
    assert program.stderr == ""
    assert "spawn" in program.stdout.splitlines()[0]
    assert program.stdout.splitlines()[1].startswith("0 ")


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(0)",
        "ctxt.close(); thread.join()",
        "sub.close()",
        "del ctxt, sub",
        "import appliance.p4p; getattr(appliance.p4p, 'cleanup', lambda: None)()",
    ],
)
def test_a_program_ends_cleanly_with_a_live_subscription_and_a_thread_that_waits(site, end) -> None:
    program = run_program(
        f"""
        import sys, threading
        from appliance.p4p.client.thread import Context
        ctxt = Context("pva")
        first = threading.Event()
        sub = ctxt.monitor("a", lambda value: first.set())
        assert first.wait(30)
        waits = threading.Event()
        def wait_for_ever(get=ctxt.get):
            waits.set()
            get("there is no such PV", timeout=None)
        thread = threading.Thread(target=wait_for_ever, daemon=True)
        thread.start()
        waits.wait()
        print("end", flush=True)
        {end}
        """,
        site,
    )
    assert program.stdout == "end\n"
    if "join" in end:
        assert "Cancelled" in program.stderr, "whoever waits is told"
    else:
        assert program.stderr == ""
    assert program.returncode == 0


def test_a_program_ends_cleanly_while_threads_and_callbacks_use_its_context(site) -> None:
    program = run_program(
        """
        import threading
        from appliance.p4p.client.thread import Context
        ctxt = Context("pva")
        busy = threading.Barrier(4)
        def read_on():
            ctxt.get("a", timeout=30)
            busy.wait()
            while True:
                ctxt.get("a")
        for _ in range(2):
            threading.Thread(target=read_on, daemon=True).start()
        def wait_in_callback(value):
            busy.wait()
            ctxt.get("there is no such PV", timeout=None)
        sub = ctxt.monitor("a", wait_in_callback)
        busy.wait()
        print("end", flush=True)
        """,
        site,
    )
    assert (program.returncode, program.stdout, program.stderr) == (0, "end\n", "")


def test_a_program_that_breaks_off_a_wait_goes_on(site) -> None:
    program = run_program(
        """
        import os, signal, threading
        from appliance.p4p.client.thread import Context
        ctxt = Context("pva")
        ctxt.get("a", timeout=30)
        try:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            ctxt.get("there is no such PV", timeout=None)
        except KeyboardInterrupt:
            print("interrupted", type(ctxt.get("a")).__name__)
        """,
        site,
    )
    assert program.stdout.startswith("interrupted ")
    assert program.stderr == ""
