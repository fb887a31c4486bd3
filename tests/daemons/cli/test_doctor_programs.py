"""What the doctor says of the release, and of Python programs that import p4p."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from appliance.cli.doctor.programs import check_programs, check_release
from appliance.cli.doctor.report import NOTE, OK, Report
from appliance.version import __version__
from tests.helpers.tools import run


def findings(*, server: bool = False, **environ: str) -> list[tuple[str, str, str]]:
    report = Report()
    check_programs(report, environ, server=server)
    assert {finding.check for finding in report.findings} == {"programs"}
    return [(finding.level, finding.what, finding.do) for finding in report.findings]


def test_the_release_that_runs_is_named_with_its_place() -> None:
    report = Report()
    check_release(report)
    [finding] = report.findings
    assert (finding.check, finding.level) == ("release", OK)
    assert finding.what == f"Secure PVAccess appliance {__version__} in {sys.prefix}"


def test_p4p_beside_the_appliance_is_told_with_the_way_to_tls_for_programs_and_ophyd_async() -> None:
    [(level, what, do)] = findings()
    assert level == NOTE
    assert what.startswith("p4p 4.")
    assert f"{sys.executable} -m appliance.p4p PROGRAM" in do
    assert f"for ophyd-async and bluesky: {sys.executable} -m appliance.p4p -m IPython" in do


def test_for_a_server_the_way_to_tls_of_a_soft_ioc_is_told() -> None:
    [(_, _, do)] = findings(server=True)
    assert do.endswith(f"{sys.executable} -m appliance.p4p IOC.py")


def test_without_p4p_the_way_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [(level, what, _)] = findings()
    assert level == OK
    assert what.endswith(f"{sys.executable} -m appliance.p4p PROGRAM")


@pytest.mark.parametrize("has_appliance", [True, False])
def test_p4p_in_the_active_environment_is_found(tmp_path: Path, *, has_appliance: bool) -> None:
    packages = tmp_path / "lib/python3.12/site-packages"
    (packages / "p4p").mkdir(parents=True)
    (packages / "p4p/__init__.py").touch()
    if has_appliance:
        (packages / "spva_appliance-0.1.0.dist-info").mkdir()
    _, (level, what, do) = findings(VIRTUAL_ENV=str(tmp_path))
    assert level == NOTE
    assert str(tmp_path) in what
    assert do.startswith("install the appliance there as well") is not has_appliance
    assert do.endswith(f"{tmp_path}/bin/python -m appliance.p4p PROGRAM")


def test_the_own_environment_is_told_once() -> None:
    assert len(findings(VIRTUAL_ENV=sys.prefix)) == 1


async def test_the_doctors_report_has_it(tmp_path: Path) -> None:
    done = await run(
        "main", "doctor", "-w", "1", env={"HOME": str(tmp_path), "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
    )
    assert "programs: p4p" in done.out
