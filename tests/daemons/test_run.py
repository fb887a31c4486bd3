"""``daemon.run`` as the service manager sees it: a real process, real signals, a real notification socket."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from appliance.daemon.notify import Notifier

LIMIT_S = 30.0


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address):
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(LIMIT_S)
        self.processes = []

    def start(self, body, **environ):
        source = "import asyncio, os, sys, time\nfrom appliance.daemon.run import run\nfrom appliance.errors import ApplianceError\n"
        source += textwrap.dedent(body) + "\nsys.exit(run(main, name='testd', grace_s=GRACE))\n"
        process = subprocess.Popen(
            [sys.executable, "-c", source.replace("GRACE", str(environ.pop("grace", 10)))],
            env=os.environ | {"NOTIFY_SOCKET": self.address} | environ,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def message(self):
        return self.socket.recv(65536).decode().split("\n")

    def until(self, line):
        while line not in (message := self.message()):
            pass
        return message


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@spva-test-{os.getpid()}")
    yield made
    made.socket.close()
    for process in made.processes:
        process.kill()
        process.communicate()


def finished(process):
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_then_a_clean_stop_on_a_signal(manager, number):
    process = manager.start("""
        async def main(daemon):
            daemon.ready("serving 3 PVs")
            daemon.status("serving\\n4 PVs")
            await daemon.wait()
            print("cleaned up")
    """)
    assert manager.message() == ["READY=1", "STATUS=serving 3 PVs"]
    assert manager.message() == ["STATUS=serving 4 PVs"]
    process.send_signal(number)
    assert manager.message() == ["STOPPING=1"]
    assert finished(process) == (0, "cleaned up\n", "")


def test_hangup_runs_the_reload_callbacks_between_reloading_and_ready(manager):
    process = manager.start("""
        async def main(daemon):
            async def second():
                await asyncio.sleep(0)
                print("second", flush=True)
            daemon.on_reload(lambda: print("first", flush=True))
            daemon.on_reload(second)
            daemon.ready("up")
            await daemon.wait()
    """)
    manager.until("READY=1")
    process.send_signal(signal.SIGHUP)
    reloading = manager.message()
    assert reloading[0] == "RELOADING=1"
    name, _, value = reloading[1].partition("=")
    assert name == "MONOTONIC_USEC"
    assert int(value) > 0
    assert manager.message() == ["READY=1", "STATUS=up"]
    process.terminate()
    assert finished(process) == (0, "first\nsecond\n", "")


def test_a_reload_that_fails_keeps_the_daemon_running_and_says_so(manager):
    process = manager.start("""
        async def main(daemon):
            def reload():
                raise ApplianceError("x.yml:3: port: bad")
            daemon.on_reload(reload)
            daemon.ready("up")
            await daemon.wait()
    """)
    manager.until("READY=1")
    process.send_signal(signal.SIGHUP)
    assert manager.until("READY=1") == ["READY=1", "STATUS=reload failed: x.yml:3: port: bad"]
    process.terminate()
    code, _, err = finished(process)
    assert code == 0
    assert err == "testd: reload failed, the former settings stay: x.yml:3: port: bad\n"


def test_the_watchdog_is_fed_and_a_frozen_loop_stops_feeding_it(manager):
    process = manager.start(
        """
        async def main(daemon):
            loop = asyncio.get_running_loop()
            daemon.on_reload(lambda: time.sleep(3600))
            daemon.ready()
            await daemon.wait()
        """,
        WATCHDOG_USEC="200000",
    )
    for _ in range(3):
        manager.until("WATCHDOG=1")
    process.send_signal(signal.SIGHUP)
    manager.until("RELOADING=1")
    # Ten periods of silence, seen by waiting for a message that must not come.
    manager.socket.settimeout(2.0)
    with pytest.raises(TimeoutError):
        manager.message()
    assert process.poll() is None


def test_a_watchdog_for_another_process_is_not_fed(manager):
    process = manager.start(
        """
        async def main(daemon):
            assert daemon.notifier.watchdog_s is None
            daemon.ready()
        """,
        WATCHDOG_USEC="200000",
        WATCHDOG_PID="1",
    )
    assert finished(process)[0] == 0


def test_an_appliance_error_is_one_sentence_and_status_1(manager):
    process = manager.start("""
        async def main(daemon):
            raise ApplianceError("keychain /x.p12: no such file")
    """)
    assert finished(process) == (1, "", "Error: keychain /x.p12: no such file\n")


@pytest.mark.parametrize("where", ["main", "reload"])
def test_a_defect_shows_its_trace_and_has_a_status_of_its_own(manager, where):
    process = manager.start(f"""
        async def main(daemon):
            if {where == "main"}:
                raise KeyError("oops")
            daemon.on_reload(lambda: 1 / 0)
            daemon.ready()
            daemon.reload()
            await daemon.wait()
    """)
    code, _, err = finished(process)
    assert code == 70
    assert "Traceback" in err
    assert ("oops" if where == "main" else "ZeroDivisionError") in err


def test_a_stop_before_readiness_does_not_wait(manager):
    process = manager.start("""
        async def main(daemon):
            daemon.status("connecting")
            await asyncio.sleep(3600)
    """, grace=3600)  # fmt: skip
    manager.until("STATUS=connecting")
    process.terminate()
    assert finished(process)[0] == 0


def test_a_second_signal_cuts_a_slow_stop_short(manager):
    process = manager.start("""
        async def main(daemon):
            daemon.ready()
            await daemon.wait()
            daemon.status("winding down")
            await asyncio.sleep(3600)
    """, grace=3600)  # fmt: skip
    manager.until("READY=1")
    process.terminate()
    manager.until("STATUS=winding down")
    process.terminate()
    assert finished(process)[0] == 0


def test_a_main_that_does_not_stop_is_cut_short_after_the_grace_period(manager):
    process = manager.start("""
        async def main(daemon):
            daemon.ready()
            await asyncio.sleep(3600)
    """, grace=0.1)  # fmt: skip
    manager.until("READY=1")
    process.terminate()
    code, _, err = finished(process)
    assert code == 1
    assert "did not stop within 0.1 s" in err


def test_a_thread_that_does_not_end_does_not_keep_the_process(manager):
    process = manager.start("""
        import threading
        async def main(daemon):
            daemon.ready()
            await asyncio.to_thread(threading.Event().wait)
    """, grace=0.1)  # fmt: skip
    manager.until("READY=1")
    process.terminate()
    code, _, err = finished(process)
    assert code == 1
    assert "testd: a thread did not end, so the program ends without it" in err


def test_without_a_service_manager_nothing_is_sent_and_all_works():
    notifier = Notifier({})
    assert not notifier.ready()
    assert notifier.watchdog_s is None
    notifier.close()


def test_a_start_that_takes_long_asks_for_more_time_until_it_has_ended(manager):
    process = manager.start("""
        async def main(daemon):
            with daemon.notifier.starting(every_s=0.05):
                sys.stdin.readline()
            daemon.ready()
    """)
    for _ in range(3):
        assert manager.message() == ["EXTEND_TIMEOUT_USEC=150000"]
    process.stdin.write("\n")
    process.stdin.flush()
    manager.until("READY=1")
    assert finished(process)[0] == 0


def test_a_start_that_hangs_asks_for_more_time_no_longer_than_an_hour(manager):
    process = manager.start("""
        async def main(daemon):
            with daemon.notifier.starting(every_s=0.02, most_s=0.06):
                sys.stdin.readline()
            daemon.ready()
    """)
    for _ in range(3):
        assert manager.message() == ["EXTEND_TIMEOUT_USEC=60000"]
    process.stdin.write("\n")
    process.stdin.flush()
    assert manager.until("READY=1"), "nothing else came"
    assert finished(process)[0] == 0


def test_a_manager_that_is_gone_does_not_hurt(tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "nonsense"})
    assert not notifier.ready()
    assert notifier.watchdog_s is None
    notifier.close()


def test_a_manager_that_does_not_read_does_not_block_us(tmp_path):
    address = str(tmp_path / "notify")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as deaf:
        deaf.bind(address)
        notifier = Notifier({"NOTIFY_SOCKET": address})
        sent = [notifier.status("x" * 1000) for _ in range(10_000)]
        assert sent[0]
        assert not sent[-1]
        notifier.close()
