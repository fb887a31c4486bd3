"""The client without asyncio: the same promises as the asynchronous one's, from any thread."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import appliance
from appliance import (
    FLOAT64,
    ApplianceError,
    ChannelClosedError,
    KeychainError,
    NTScalar,
    OperationTimeoutError,
    Server,
    SharedPV,
    Value,
)
from appliance.blocking import Context, Monitor
from appliance.client import Connected
from tests.helpers.live import client_config, number, server_config, until
from tests.helpers.pki import site, write_keychain

ROOT = Path(__file__).parents[2]
threaded = asyncio.to_thread


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server(server_config())
    served.add_pv("n", number(1.0))
    async with served:
        yield served


def pv_of(server: Server, name: str = "n") -> Any:
    return server._static.pvs[name]


# -- the same as the asynchronous client ---------------------------------------------------------------------


def parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (p.kind, p.default) for name, p in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    "name", ["close", "get", "put", "rpc", "info", "monitor", "locate", "hurry_up", "discover"]
)
def test_each_method_takes_what_the_asynchronous_one_takes(name: str) -> None:
    ours = parameters(getattr(Context, name))
    theirs = parameters(getattr(appliance.Context, name))
    # An iterator cannot be given up from outside, as a task can: so it has a timeout. A function for updates would run elsewhere.
    if name == "discover":
        del ours["timeout"]
    if name == "monitor":
        del theirs["on_update"]
    assert ours == theirs


async def test_read_write_several_call_and_describe(server: Server) -> None:
    server.add_pv(
        "sum",
        SharedPV(on_rpc=lambda pv, operation, argument: Value(NTScalar(FLOAT64), argument["query.a"] + 1.0)),
    )

    def program() -> None:
        with Context(client_config(server)) as ctx:
            ctx.put("n", 2.5)
            assert ctx.get("n")["value"] == 2.5
            assert [value["value"] for value in ctx.get(["n", "n"])] == [2.5, 2.5]
            answer = ctx.rpc("sum", {"a": 1.0})
            assert answer is not None
            assert answer["value"] == 2.0
            assert ctx.info("n").type.id == "epics:nt/NTScalar:1.0"
            with pytest.raises(OperationTimeoutError, match=r"none: timeout after 0.1 s"):
                ctx.get("none", timeout=0.1)
            (error,) = ctx.get(["none"], timeout=0.1, return_exceptions=True)
            assert isinstance(error, ApplianceError)

    await threaded(program)


async def test_a_closed_context_says_so_and_can_be_closed_again(server: Server) -> None:
    def program() -> None:
        ctx = Context(client_config(server))
        ctx.close()
        ctx.close()
        for use in (lambda: ctx.get("n"), lambda: ctx.monitor("n"), ctx.hurry_up):
            with pytest.raises(ChannelClosedError, match="closed"):
                use()

    await threaded(program)


async def test_a_context_that_nobody_holds_any_more_is_closed(server: Server) -> None:
    def program() -> None:
        assert Context(client_config(server)).get("n")["value"] == 1.0

    await threaded(program)
    await until(lambda: not server.peers)


# -- monitors ------------------------------------------------------------------------------------------------


async def test_a_monitor_gives_each_update_in_order_to_who_keeps_up(server: Server) -> None:
    def program() -> list[float]:
        seen = []
        with Context(client_config(server)) as ctx, ctx.monitor("n") as updates:
            for value in updates:
                seen.append(value["value"])
                if len(seen) == 20:
                    break
                ctx.put("n", value["value"] + 1.0)
        return seen

    assert await threaded(program) == [float(n) for n in range(1, 21)]


async def test_a_slow_reader_gets_the_latest_update_last(server: Server) -> None:
    posted = threading.Event()
    started = threading.Event()

    def program() -> float:
        with Context(client_config(server)) as ctx, ctx.monitor("n") as updates:
            assert next(updates)["value"] == 1.0
            started.set()
            assert posted.wait(60)
            for value in updates:
                if value["value"] == 1000.0:
                    return float(value["value"])
        raise AssertionError

    running = asyncio.ensure_future(threaded(program))
    await until(started.is_set)
    for n in range(2, 1001):
        pv_of(server).post(float(n))
    posted.set()
    assert await running == 1000.0


async def test_a_read_that_waits_in_vain_raises_and_the_subscription_goes_on(server: Server) -> None:
    def program() -> None:
        with Context(client_config(server)) as ctx, ctx.monitor("n") as updates:
            assert updates.read(timeout=60.0)["value"] == 1.0
            with pytest.raises(OperationTimeoutError, match=r"n: no update within 0.05 s"):
                updates.read(timeout=0.05)
            ctx.put("n", 7.0)
            assert updates.read(timeout=60.0)["value"] == 7.0

    await threaded(program)


async def test_closing_from_another_thread_ends_the_iterator(server: Server) -> None:
    first = threading.Event()
    held: list[Monitor[Value]] = []

    def program() -> int:
        with Context(client_config(server)) as ctx:
            count = 0
            with ctx.monitor("n") as updates:
                held.append(updates)
                for _ in updates:
                    count += 1
                    first.set()
                with pytest.raises(ChannelClosedError, match="has ended"):
                    updates.read()
            return count

    running = asyncio.ensure_future(threaded(program))
    await until(first.is_set)
    await threaded(held[0].close)
    assert await running == 1


async def test_a_loop_that_is_left_ends_its_subscription(server: Server) -> None:
    pv = pv_of(server)

    def program() -> None:
        for value in held[0].monitor("n"):
            assert value["value"] == 1.0
            break

    held = [await threaded(Context, client_config(server))]
    await threaded(program)
    await until(lambda: not pv._subscriptions)
    assert (await threaded(held[0].get, "n"))["value"] == 1.0
    await threaded(held[0].close)


async def test_news_of_the_connection_come_with_notify(server: Server) -> None:
    def program() -> None:
        with Context(client_config(server)) as ctx, ctx.monitor("n", notify=True) as updates:
            news = next(updates)
            assert isinstance(news, Connected)
            assert isinstance(next(updates), Value)

    await threaded(program)


async def test_servers_are_discovered_until_there_is_no_news(server: Server) -> None:
    def program() -> None:
        with Context(client_config(server)) as ctx:
            found = next(ctx.discover())
            assert found.online
            assert found.guid == server.guid
            (place,) = ctx.locate("n", patience_s=60.0)
            assert place.port == server.tcp_port
            assert list(ctx.discover(ping=False, timeout=0.05)) == [found]

    await threaded(program)


# -- threads, processes, TLS ---------------------------------------------------------------------------------


async def test_many_threads_use_one_context(server: Server) -> None:
    def program() -> None:
        with Context(client_config(server)) as ctx:
            wrong: list[object] = []

            def work() -> None:
                for _ in range(50):
                    value = ctx.get("n")["value"]
                    if value != 1.0:
                        wrong.append(value)

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []

    await threaded(program)


async def test_a_call_inside_a_function_of_put_is_refused_and_does_not_hang(server: Server) -> None:
    def program() -> None:
        with Context(client_config(server)) as ctx:

            def build(present: Value) -> Value:
                ctx.get("n")
                return present

            with pytest.raises(RuntimeError, match="cannot wait"):
                ctx.put("n", build, get=True)
            assert ctx.get("n")["value"] == 1.0

    await threaded(program)


async def test_it_uses_tls_where_it_is_required(tmp_path: Path) -> None:
    served = appliance.Server(server_config(write_keychain(tmp_path / "server.p12", site().server)))
    served.add_pv("n", number(1.0))

    def program() -> None:
        config = client_config(served, keychain=write_keychain(tmp_path / "client.p12", site().client))
        with Context(config, require_tls=True) as ctx:
            assert ctx.get("n")["value"] == 1.0
            assert ctx.info("n").peer.is_tls
        with pytest.raises(KeychainError):
            Context(client_config(served), require_tls=True)

    async with served:
        await threaded(program)


def run(program: str, server: Server) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("EPICS_")}
    environment |= {
        "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{server.udp_port}",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=environment,
    )


async def test_a_program_that_closes_nothing_ends_silently_and_the_server_hears_of_it(server: Server) -> None:
    program = (
        "from appliance.blocking import Context\n"
        "ctx = Context()\n"
        "updates = ctx.monitor('n')\n"
        "print(next(updates)['value'])\n"
    )
    done = await threaded(run, program, server)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0\n", "")
    await until(lambda: not server.peers)


async def test_a_forked_child_is_told_to_make_its_own_context(server: Server) -> None:
    program = (
        "import os, sys\n"
        "from appliance.blocking import Context\n"
        "ctx = Context()\n"
        "ctx.get('n')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try:\n"
        "        ctx.get('n')\n"
        "    except RuntimeError as error:\n"
        "        assert 'forked' in str(error), error\n"
        "        with Context() as own:\n"
        "            os._exit(0 if own.get('n')['value'] == 1.0 else 3)\n"
        "    os._exit(4)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print(status, ctx.get('n')['value'])\n"
    )
    done = await threaded(run, program, server)
    assert (done.stdout, done.stderr) == ("0 1.0\n", "")
