"""The programs in examples/, as a reader starts them: in two shells, over plain TCP and over TLS, ended with Ctrl-C."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.peers import client_environment, free_port, server_environment
from tests.helpers.pki import site, write_keychain
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
    page = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path
        assert f"({path.name})" in page, path


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_an_example_does_and_needs_no_network(name: str) -> None:
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", "--help"],
        capture_output=True, text=True, cwd=ROOT, timeout=60, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {name}.py")


def test_read_prints_values_with_units_and_choices_and_says_what_is_missing(
    shells: Shells, ioc: Program
) -> None:
    seen = shells.printed("read", "demo:setpoint", "demo:mode", "demo:temperature")
    assert re.search(r"(?m)^demo:setpoint [\d.]+ °C$", seen)
    assert re.search(r"(?m)^demo:mode (OFF|ON)$", seen)
    assert re.search(r"(?m)^demo:temperature [\d.]+ °C$", seen)
    with shells.run("read", "demo:mode", "demo:none", "--timeout", "0.5") as program:
        assert program.ended() == 1
        assert "demo:none" in program.output
        assert re.search(r"(?m)^demo:mode (OFF|ON)$", program.output)


def test_write_says_what_changed_and_why_a_value_is_refused(shells: Shells, ioc: Program) -> None:
    shells.printed("write", "demo:setpoint", 21.5)
    assert shells.printed("write", "demo:setpoint", 22.5) == "demo:setpoint: 21.5 -> 22.5\n"
    shells.printed("write", "demo:mode", "OFF")
    assert shells.printed("write", "demo:mode", "ON") == "demo:mode: OFF -> ON\n"
    ioc.until(r"^\S+ at \S+ sets the mode to 1$")
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
            program.until("^archiving")
            program.until(rf"^{5 * part} lines", 0)
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
