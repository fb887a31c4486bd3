"""The programs in examples/, as a reader starts them: in two shells, over plain TCP and over TLS, ended with Ctrl-C."""

from __future__ import annotations

import ast
import asyncio
import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.live import until
from tests.helpers.peers import client_environment, server_environment
from tests.helpers.pki import site, write_keychain
from tests.helpers.ports import free_port
from tests.helpers.programs import Program
from tests.helpers.tools import ROOT

EXAMPLES = ROOT / "examples"
NAMES = [
    "archive", "camera", "plot_live", "read", "rpc_service", "scan", "soft_ioc", "table", "watch", "write",
]  # fmt: skip


class Shells:
    """Two shells with the settings of a server and of a client that find each other."""

    def __init__(self, directory: Path, *, tls: bool) -> None:
        port = free_port()
        more = {"XDG_CONFIG_HOME": str(directory), "XDG_DATA_HOME": str(directory), "MPLBACKEND": "Agg"}
        server, client = dict(more), dict(more)
        if tls:
            # Nothing can go over plain TCP by mistake.
            server["EPICS_PVAS_TLS_OPTIONS"] = client["EPICS_PVA_TLS_OPTIONS"] = "tls_required"
            server["EPICS_PVAS_TLS_KEYCHAIN"] = str(write_keychain(directory / "server.p12", site().server))
            client["EPICS_PVA_TLS_KEYCHAIN"] = str(write_keychain(directory / "client.p12", site().client))
        self.server = {**server_environment(port, EPICS_PVAS_TLS_PORT=0), **server}
        self.client = {**client_environment(port), **client}

    def serve(self, name: str, *words: object) -> Program:
        return Program(f"examples/{name}.py", *words, environ=self.server)

    def run(self, name: str, *words: object, module: tuple[str, ...] = ()) -> Program:
        return Program(*module, f"examples/{name}.py", *words, environ=self.client)

    def printed(self, name: str, *words: object) -> str:
        """What a program prints that ends by itself, and well."""
        with self.run(name, *words) as program:
            status = program.ended()
            assert status == 0, program.output
            return program.output


@pytest.fixture(scope="module", params=["plain", "tls"])
def shells(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shells:
    return Shells(tmp_path_factory.mktemp("home"), tls=request.param == "tls")


@pytest.fixture(scope="module")
def ioc(shells: Shells) -> Iterator[Program]:
    """The soft IOC of the examples, which the clients use."""
    with shells.serve("soft_ioc", "--period", 0.05) as program:
        program.until("^serving demo:temperature demo:setpoint demo:mode$")
        yield program
        assert program.interrupt() == 0


def test_each_example_is_tried_here_and_short_and_on_the_page() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == NAMES
    page = (ROOT / "docs/how-to/example-programs.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path
        assert f"(../../examples/{path.name})" in page, path


def test_each_example_says_how_it_is_started_and_takes_arguments() -> None:
    for path in EXAMPLES.glob("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert f"examples/{path.name} " in docstring, path
        assert "argparse.ArgumentParser(description=" in path.read_text(), path


def test_read_prints_values_with_units_and_choices_and_says_what_is_missing(
    shells: Shells, ioc: Program
) -> None:
    seen = shells.printed("read", "demo:setpoint", "demo:mode", "demo:temperature")
    assert re.search(r"(?m)^demo:setpoint [\d.]+ °C$", seen)
    assert re.search(r"(?m)^demo:mode (OFF|ON)$", seen)
    assert re.search(r"(?m)^demo:temperature [\d.]+ °C$", seen)
    with shells.run("read", "demo:none", "--timeout", "0.5") as program:
        assert program.ended() == 1
        assert program.output.startswith("demo:none: ")


def test_write_says_what_changed_and_why_a_value_is_refused(shells: Shells, ioc: Program) -> None:
    shells.printed("write", "demo:setpoint", 21.5)
    assert shells.printed("write", "demo:setpoint", 22.5) == "demo:setpoint: 21.5 -> 22.5\n"
    shells.printed("write", "demo:mode", "OFF")
    assert shells.printed("write", "demo:mode", "ON") == "demo:mode: OFF -> ON\n"
    ioc.until(r"^\S+ at \S+ sets the mode to ON$")
    with shells.run("write", "demo:setpoint", 200) as program:
        assert program.ended() == 1
        assert "the set point must be between 0 and 100" in program.output


def test_watch_follows_a_pv_and_its_server(shells: Shells, ioc: Program) -> None:
    with shells.run("watch", "demo:temperature", "demo:setpoint") as program:
        program.until(r"^demo:temperature is connected to \S+$")
        program.until(r"^\S+ demo:setpoint [\d.]+$")
        for _ in range(2):
            program.until(r"^20\S+ demo:temperature [\d.]+$", after=len(program.output))
        assert program.interrupt() == 0


def test_watch_outlives_its_server(shells: Shells) -> None:
    with shells.run("watch", "ups:magnets") as program:
        for _ in range(2):
            seen = len(program.output)
            with shells.serve("table", "--prefix", "ups:") as server:
                program.until(r"^ups:magnets is connected", seen)
                assert server.interrupt() == 0
            program.until(r"^ups:magnets is disconnected: \S+", seen)
        assert program.interrupt() == 0


def test_archive_writes_each_update_as_a_line_and_continues_a_file(
    shells: Shells, ioc: Program, tmp_path: Path
) -> None:
    path = tmp_path / "archive.csv"
    for part in (1, 2):
        with shells.run("archive", path, "demo:temperature", "demo:mode") as program:
            asyncio.run(until(lambda: path.exists() and path.read_text().count("\n") > 5 * part))  # noqa: B023
            assert program.interrupt() == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["pv"] for row in rows} == {"demo:temperature", "demo:mode"}
    times = [row["time"] for row in rows if row["pv"] == "demo:temperature"]
    assert times == sorted(times)
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+\+00:00", moment) for moment in times)
    assert all(20 <= float(row["value"]) < 40 for row in rows if row["pv"] == "demo:temperature")


def test_table_is_served_with_labels_and_new_readings(shells: Shells) -> None:
    with shells.serve("table", "--prefix", "tab:", "--period", 0.05) as server:
        server.until("^serving tab:magnets$")
        with Program("-m", "appliance.cli.pvxget", "tab:magnets", environ=shells.client) as program:
            assert program.ended() == 0
            assert "Current [A]" in program.output
            assert re.search(r'value\.name.*"Q1", "Q2", "D1", "D2"', program.output), program.output
        assert server.interrupt() == 0


def test_rpc_service_answers_with_a_number_a_table_and_a_reason(shells: Shells) -> None:
    def call(*words: str) -> tuple[int, str]:
        with Program("-m", "appliance.cli.pvxcall", *words, environ=shells.client) as program:
            return program.ended(), program.output

    with shells.serve("rpc_service", "--prefix", "rpc:") as server:
        server.until("^serving rpc:add rpc:orbit$")
        status, seen = call("rpc:add", "lhs=1", "rhs=2.5")
        assert (status, "value double = 3.5" in seen or "double value = 3.5" in seen) == (0, True), seen
        status, seen = call("rpc:orbit", "points=3")
        assert status == 0, seen
        assert re.search(r"s = \{3\}\[0, 1, 2\]", seen), seen
        for words, reason in (
            (("rpc:orbit", "points=0"), "points must be between 1 and 1000"),
            (("rpc:add", "lhs=x", "rhs=1"), "could not convert string to float"),
        ):
            status, seen = call(*words)
            assert status != 0, seen
            assert reason in seen
        assert server.interrupt() == 0


def test_camera_makes_images_only_while_somebody_looks(shells: Shells) -> None:
    watch = """if True:
        import asyncio
        from appliance import Context
        async def main():
            async with Context() as ctx:
                async with ctx.monitor("cam:image", "record[pipeline=true]") as updates:
                    count = 0
                    async for image in updates:
                        value, size = image["value"], [part["size"] for part in image["dimension"]]
                        print(image["uniqueId"], value.value.dtype, value.value.size, size, value.value.max(), flush=True)
                        count += 1
                        if count == 3:
                            break
        asyncio.run(main())
    """
    with shells.serve("camera", "--prefix", "cam:", "--size", "64x48", "--rate", 50) as server:
        server.until("^serving cam:image$")
        for _ in range(2):
            with Program("-c", watch, environ=shells.client) as program:
                assert program.ended() == 0, program.output
                lines = program.output.splitlines()
                assert len(lines) == 3
                assert all(re.fullmatch(r"\d+ uint8 3072 \[64, 48\] 25\d", line) for line in lines), lines
        assert server.interrupt() == 0


def test_plot_live_saves_the_picture_of_what_came(shells: Shells, ioc: Program, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    seen = shells.printed("plot_live", "demo:temperature", "--points", 5, "--save", picture)
    assert re.search(rf"^\d+ points of demo:temperature in {picture}$", seen, re.MULTILINE), seen
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 5000


def test_plot_live_ends_with_ctrl_c(shells: Shells, ioc: Program) -> None:
    with shells.run("plot_live", "demo:temperature") as program:
        program.until("^plotting demo:temperature$")
        assert program.interrupt() == 0


def test_scan_steps_the_setpoint_and_reads_the_temperature(shells: Shells, ioc: Program) -> None:
    arguments = ("demo:setpoint", "demo:temperature", "--from", "30", "--to", "32", "--steps", "3")
    with shells.run("scan", *arguments, module=("-m", "appliance.p4p")) as program:
        assert program.ended() == 0, program.output
        for step, setpoint in enumerate(("30.000", "31.000", "32.000"), 1):
            assert re.search(rf"(?m)^step {step}: .*heater-setpoint={setpoint}", program.output), (
                program.output
            )
            assert re.search(rf"(?m)^step {step}: .*heater-temperature=\d", program.output)
        assert "the scan has ended: success" in program.output.splitlines()


def test_scan_is_given_up_with_ctrl_c(shells: Shells, ioc: Program) -> None:
    arguments = ("demo:setpoint", "demo:temperature", "--steps", "100000")
    with shells.run("scan", *arguments, module=("-m", "appliance.p4p")) as program:
        program.until("^step 3:")
        assert program.interrupt() == 0
        assert "the scan has ended: success" in program.output
