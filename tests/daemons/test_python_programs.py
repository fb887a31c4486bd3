"""Programs in Python, as README and the how-to page show them, in the shell that the quick start hands out."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import Context, Server, SharedPV, Value
from appliance.config.pva import resolve_client, resolve_server
from appliance.errors import ChannelClosedError, ConfigurationError, KeychainError
from appliance.pvdata import FLOAT64
from appliance.pvdata.nt import NTScalar
from tests.helpers.pki import DAY, NOW, site, write_keychain
from tests.helpers.programs import Program

ROOT = Path(__file__).parents[2]
LOCAL = {
    "intf_addr_list": "127.0.0.1",
    "auto_beacon_addr_list": False,
    "server_port": 0,
    "tls_port": 0,
    "broadcast_port": 0,
}


def programs(page: str) -> dict[str, str]:
    """The whole programs among the Python blocks of a page, by the name in their first line."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    found = {}
    for block in blocks:
        if "asyncio.run(" in block or "with Context() as ctx:" in block:
            name = re.match(r"# example: (\w+)", block)
            found[name[1] if name else page] = block
    return found


PAGE = "docs/how-to/python-programs.md"


def test_the_pages_have_the_programs_that_are_tried_here() -> None:
    assert list(programs("README.md")) == ["README.md"]
    assert sorted(programs(PAGE)) == ["client", "display", "script", "server", "settings", "who"]


# -- in the quick start ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A quick start that has told its story and runs; gives its directory."""
    directory = tmp_path_factory.mktemp("quick") / "stack"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance", "quickstart", "--dir", str(directory)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("The stack is running"):
                break
        else:
            pytest.fail("the quick start's story did not come to its end")
        yield directory
        process.send_signal(signal.SIGINT)
        process.wait(40)
    finally:
        process.kill()
        process.wait()


def run_in_shell(stack: Path, program: str, until: str, **variables: str) -> str:
    """Run ``program`` in the operator's shell until its output has ``until``; returns the output."""
    settings = " ".join(f"{name}={value}" for name, value in variables.items())
    shell = f'. "{stack}/env/operator.sh" && exec env {settings} "{sys.executable}" -u -c "$PROGRAM"'
    environ = {"HOME": str(stack), "PATH": os.environ["PATH"], "PROGRAM": program}
    with Program("-c", shell, environ=environ, runs="bash") as running:
        running.until(until)
        return running.output


@pytest.mark.timeout(240)
def test_readmes_program_reads_writes_and_watches_over_tls(stack: Path) -> None:
    seen = run_in_shell(
        stack, programs("README.md")["README.md"], r"^\d[\d.]*\n", EPICS_PVA_TLS_OPTIONS="tls_required"
    )
    assert "Traceback" not in seen


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "until"),
    [
        ("client", r"update \d"),
        ("display", r"show \d"),
        ("script", r"update \d"),
        ("who", r"True softioc"),
        ("settings", r"^\d[\d.]*\n"),
    ],
)
def test_the_pages_clients_do_what_the_page_says(stack: Path, name: str, until: str) -> None:
    seen = run_in_shell(stack, programs(PAGE)[name], until)
    assert "refused" not in seen


# -- environment and keychain ------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with client.p12 and server.p12, and an environment that knows nothing of this user's own."""
    for name in list(os.environ):
        if name.startswith(("EPICS_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "keys").mkdir(mode=0o700)
    write_keychain(tmp_path / "keys/client.p12", site().client)
    write_keychain(tmp_path / "keys/server.p12", site().server)
    return tmp_path / "keys"


def pv() -> SharedPV:
    return SharedPV.mailbox(Value(NTScalar(FLOAT64), {"value": 1.5}))


def server_on_loopback(**settings: object) -> Server:
    server = Server(resolve_server({**LOCAL, **settings}).config)
    server.add_pv("p:pv", pv())
    return server


def client_of(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPICS_PVA_ADDR_LIST", "127.0.0.1")
    monkeypatch.setenv("EPICS_PVA_AUTO_ADDR_LIST", "NO")
    monkeypatch.setenv("EPICS_PVA_BROADCAST_PORT", str(server.udp_port))


async def test_client_and_server_use_the_keychains_that_the_environment_names(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPICS_PVAS_TLS_KEYCHAIN", str(keys / "server.p12"))
    monkeypatch.setenv("EPICS_PVA_TLS_KEYCHAIN", str(keys / "client.p12"))
    async with server_on_loopback() as server:
        client_of(server, monkeypatch)
        async with Context() as ctx:
            info = await ctx.info("p:pv")
            assert info.peer.is_tls
            assert info.peer.account == "softioc"
            await ctx.put("p:pv", 2.5)
            assert (await ctx.get("p:pv"))["value"] == 2.5
        async with Context(require_tls=True) as ctx:
            assert (await ctx.info("p:pv")).peer.is_tls
    await server.wait_closed()


async def test_without_a_keychain_both_speak_plain_tcp_and_where_tls_is_required_say_so(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server_on_loopback() as server:
        client_of(server, monkeypatch)
        async with Context() as ctx:
            assert not (await ctx.info("p:pv")).peer.is_tls
    with pytest.raises(KeychainError, match="EPICS_PVA_TLS_KEYCHAIN"):
        async with Context(require_tls=True):
            pass
    with pytest.raises(KeychainError, match=r"EPICS_PVAS_TLS_KEYCHAIN|no keychain|No such file"):
        async with Server(
            resolve_server(
                {**LOCAL, "tls_keychain": str(keys / "none.p12"), "tls_stop_if_no_cert": True}
            ).config,
            require_tls=True,
        ):
            pass


async def test_a_keychain_that_is_named_and_cannot_be_used_is_an_error_unless_plain_tcp_is_asked_for(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPICS_PVAS_TLS_KEYCHAIN", str(keys / "none.p12"))
    monkeypatch.setenv("EPICS_PVA_TLS_KEYCHAIN", str(keys / "none.p12"))
    with pytest.raises(KeychainError, match="does not start"):
        async with Context():
            pass
    with pytest.raises(KeychainError, match="does not start"):
        async with Server():
            pass
    monkeypatch.setenv("EPICS_PVA_TLS_OPTIONS", "on_no_keychain=fallback-to-tcp")
    async with server_on_loopback() as server:
        client_of(server, monkeypatch)
        async with Context() as ctx:
            assert not (await ctx.info("p:pv")).peer.is_tls


async def test_where_tls_is_required_a_server_waits_for_its_keychain_and_a_client_for_its_certificate(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPICS_PVA_ADDR_LIST", "127.0.0.1")
    monkeypatch.setenv("EPICS_PVA_AUTO_ADDR_LIST", "NO")
    monkeypatch.setenv("EPICS_PVA_TLS_OPTIONS", "no_revocation_check")
    monkeypatch.setenv("EPICS_PVA_TLS_KEYCHAIN", str(keys / "later.p12"))
    later = site().ca.keychain("operator", not_before=NOW + DAY, not_after=NOW + 2 * DAY)
    write_keychain(keys / "later.p12", later)
    config = resolve_server({**LOCAL, "tls_keychain": str(keys / "none.p12")}).config
    async with Server(config, require_tls=True) as server, Context(require_tls=True) as ctx:
        assert server.standby
        assert (server.tcp_port, server.tls_port) == (0, 0)
        assert ctx.tls is None


async def test_a_server_listens_where_the_environment_says_and_nowhere_else(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPICS_PVAS_INTF_ADDR_LIST", "127.0.0.1")
    monkeypatch.setenv("EPICS_PVAS_SERVER_PORT", "0")
    monkeypatch.setenv("EPICS_PVAS_BROADCAST_PORT", "0")
    monkeypatch.setenv("EPICS_PVAS_AUTO_BEACON_ADDR_LIST", "NO")
    from appliance.server import Server as Machinery

    for kind in (Server, Machinery):
        async with kind() as server:
            hexed = f"0100007F:{server.tcp_port:04X}"
            listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
                         if line.split()[3] == "0A"]  # fmt: skip
            assert hexed in listening
            assert f"00000000:{server.tcp_port:04X}" not in listening
    monkeypatch.setenv("EPICS_PVAS_INTF_ADDR_LIST", "127.0.0.1:x")
    for kind in (Server, Machinery):
        with pytest.raises(ConfigurationError, match="EPICS_PVAS_INTF_ADDR_LIST"):
            kind()


async def test_the_machinery_says_that_it_does_not_use_the_environments_keychain(
    keys: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from appliance.client import Context as Machinery

    monkeypatch.setenv("EPICS_PVA_TLS_KEYCHAIN", str(keys / "client.p12"))
    Machinery()
    assert "from appliance import Context" in caplog.text


async def test_a_context_that_is_not_open_says_how_to_open_it(keys: Path) -> None:
    context = Context()
    for work in (
        lambda: context.get("a"),
        lambda: context.get(["a", "b"]),
        lambda: context.put("a", 1),
        lambda: context.rpc("a"),
        lambda: context.info("a"),
        lambda: context.locate("a"),
        lambda: anext(context.discover()),
    ):
        with pytest.raises(ChannelClosedError, match="async with"):
            await work()
    with pytest.raises(ChannelClosedError, match="async with"):
        context.monitor("a")
    with pytest.raises(ChannelClosedError, match="async with"):
        context.hurry_up()
    async with Context() as closed:
        pass
    with pytest.raises(ChannelClosedError, match="closed; make a new one"):
        await closed.get("a")


def test_the_pages_server_serves(keys: Path) -> None:
    settings = {
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1", "EPICS_PVAS_SERVER_PORT": "0",
        "EPICS_PVAS_BROADCAST_PORT": "0", "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    program = programs(PAGE)["server"].replace(
        'print("serving", flush=True)', "print(server.tcp_port, flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ | settings
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())

        async def read() -> float:
            async with Context(resolve_client({"auto_addr_list": False, "tls_keychain": ""}).config) as ctx:
                async with ctx.monitor("demo:temperature", server=("127.0.0.1", port, False)) as updates:
                    async for value in updates:
                        if value["value"] == 21.5:
                            return float(value["value"])
            return 0.0

        assert asyncio.run(asyncio.wait_for(read(), 30)) == 21.5
    finally:
        process.kill()
        process.wait()


def test_the_package_lists_what_programs_use() -> None:
    code = "import appliance, sys; assert 'asyncio' not in sys.modules; print(sorted(appliance.__all__), dir(appliance) != [])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=30
    )
    assert "Context" in done.stdout
