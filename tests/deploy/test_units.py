"""Units: systemd understands them, finds them confined, and they hold to the rules of the house."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
DAEMONS = [name for name in SERVICES if "keychain@" not in name]
MOST = 1.5
PROGRAMS = ("jwt-issuer", "pvacms", "softIocPVX", "pvagw", "authnjwt", "authnstd")


def systemd_version() -> int:
    return int(re.search(r"systemd (\d+)", run("systemctl", "--version").stdout)[1])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A root file system with the units, systemd's own, and programs where units look for them."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(UNITS, root / "etc/systemd/system")
    if systemd_version() < 254:
        # The role copies it only where systemd knows its keys.
        (root / "etc/systemd/system/spva-.service.d/15-back-off.conf").unlink()
    shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    (root / "lib").symlink_to("usr/lib")
    for name in [f"opt/spva/current/bin/{program}" for program in PROGRAMS] + [
        "bin/kill",
        "bin/sh",
        "usr/bin/env",
    ]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return root


def instance(name: str) -> str:
    return name.replace("@.", "@one.")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", [*SERVICES, "spva-keychain@.timer", "spva.target"])
def test_systemd_has_nothing_to_say_against_it(root, name):
    done = run("systemd-analyze", f"--root={root}", "--man=no", "verify", instance(name))
    ours = [line for line in done.stderr.splitlines() if "spva" in line]
    assert done.returncode == 0, done.stderr
    assert not ours


@pytest.mark.parametrize("name", SERVICES)
def test_exposure_is_at_most_one_and_a_half(root, name):
    done = run(
        "systemd-analyze", "security", f"--root={root}", "--offline=true", "--no-pager", instance(name)
    )
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= MOST


@pytest.mark.parametrize("name", DAEMONS)
def test_daemons_tell_systemd_how_they_are(name):
    text = (UNITS / name).read_text()
    assert "\nType=notify\n" in text
    assert re.search(r"\nWatchdogSec=\d+\n", text)
    assert "\nExecReload=/bin/kill -HUP $MAINPID\n" in text
    start = re.search(r"\nExecStart=(.*)\n", text)[1]
    # An IOC and a gateway check everything at the start, and go on without what may come back later: a linked PV, a host's name.
    # An authenticator has no configuration of its own.
    checks_itself = any(f"/{program} " in start for program in ("softIocPVX", "pvagw", "authn${SPVA_METHOD}"))
    assert (f"\nExecStartPre={start} --check-config\n" in text) is not checks_itself


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_is_root(name):
    text = (UNITS / name).read_text()
    # Keychains belong to accounts that the site names: the role's drop-in has them, and refuses root.
    assert re.search(r"\nUser=spva-\w+\n", text) or "keychain" in name


def test_a_keychain_has_one_keeper():
    text = (UNITS / "spva-keychain-daemon@.service").read_text()
    (line,) = re.findall(r"\nConflicts=(.*)\n", text)
    assert line.split() == ["spva-keychain@%i.timer", "spva-keychain@%i.service"]
    # A certificate that was revoked is not replaced, however often systemd starts the daemon.
    assert "\nRestartPreventExitStatus=5\n" in text
    for name in ("spva-ioc@.service", "spva-gateway@.service"):
        after = re.search(r"\nAfter=(.*)\n", (UNITS / name).read_text())[1].split()
        assert {"spva-keychain@%i.service", "spva-keychain-daemon@%i.service"} <= set(after)


def test_sandbox_is_written_once():
    shared = (UNITS / "spva-.service.d/10-common.conf").read_text()
    keys = {
        line.partition("=")[0] for line in shared.splitlines() if "=" in line and not line.startswith("#")
    }
    keys -= {"EnvironmentFile"}
    for name in SERVICES:
        own = {line.partition("=")[0] for line in (UNITS / name).read_text().splitlines() if "=" in line}
        assert not own & keys, name


def test_no_unit_names_a_secret():
    for path in UNITS.rglob("*"):
        if path.is_file():
            assert not re.search(r"(?i)password=|secret=|token=", path.read_text()), path


@pytest.mark.parametrize(("program", "status"), [(0, 0), (4, 4), (1, 255), (2, 255), (139, 255), (None, 255)])
def test_a_renewal_that_cannot_be_judged_is_a_failed_unit(tmp_path, program, status):
    """systemd skips a unit for 1 to 254 of its condition, also where the program is not there at all (127)."""
    text = (UNITS / "spva-keychain@.service").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ExecCondition=")]
    command = line.removeprefix("ExecCondition=").replace("$$", "$").replace("${SPVA_METHOD}", "std")
    command = command.replace("${SPVA_USAGE}", "client").replace("/opt/spva/current/bin/", f"{tmp_path}/")
    if program is not None:
        tool = tmp_path / "authnstd"
        tool.write_text(f"#!/bin/sh\nexit {program}\n")
        tool.chmod(0o755)
    assert subprocess.run(shlex.split(command), check=False, capture_output=True).returncode == status
