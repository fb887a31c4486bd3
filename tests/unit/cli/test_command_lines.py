"""All commands look alike: help at 80 columns with examples, versions, wrong command lines, missing parts."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from appliance.daemon.extras import EXTRAS

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = {name: [] for name in PROJECT["scripts"]} | {
    "appliance doctor": ["doctor"],
    "appliance quickstart": ["quickstart"],
}
OPTIONAL = sorted({package for packages in EXTRAS.values() for package in packages})
CODE = (
    "import sys, importlib\n"
    "module, function, blocked, *sys.argv = sys.argv[1:]\n"
    "for name in filter(None, blocked.split(',')): sys.modules[name] = None\n"
    "sys.exit(getattr(importlib.import_module(module), function)())"
)


def run(command: str, *words: str, blocked: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as its entry point does, with packages that cannot be imported."""
    module, _, function = PROJECT["scripts"][command.split()[0]].partition(":")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EPICS_", "PVXS_", "XDG_", "SPVA_"))
    }
    return subprocess.run(
        [
            sys.executable,
            "-c",
            CODE,
            module,
            function,
            blocked,
            command.split()[0],
            *COMMANDS[command],
            *words,
        ],
        env={**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "EPICS_PVA_AUTO_ADDR_LIST": "NO", **variables},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_eighty_columns_and_has_examples(command: str) -> None:
    # Without the optional parts, which no help needs.
    done = run(command, "--help", blocked=",".join(OPTIONAL))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    examples = done.stdout.partition("\nexamples:\n")[2]
    assert f"  {command}" in examples or f" {command}" in examples
    assert "-V, --version" in done.stdout
    assert "--print-completion" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_versions_are_told_alike(command: str) -> None:
    from appliance import __version__

    short, long = run(command, "-V", blocked=",".join(OPTIONAL)), run(command, "--version")
    assert short.returncode == long.returncode == 0
    assert short.stdout.splitlines()[:2] == long.stdout.splitlines()[:2]
    assert short.stdout.startswith(f"Secure PVAccess appliance {__version__}\nPython 3.")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_line_is_status_1_and_an_error_line(command: str) -> None:
    done = run(command, "--no-such-option")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("usage: ")
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.stderr


WORK = {
    "acf-test": ["none.acf"],
    "appliance": ["doctor", "-w", "0"],
    "appliance doctor": ["-w", "0"],
    "appliance quickstart": ["--once"],
    "authnjwt": ["--token-file", "none"],
    "authnstd": ["-w", "0", "-n", "x", "-o", "y"],
    "jwt-issuer": [],
    "pvacms": [],
    "pvxcall": ["-w", "0", "x"],
    "pvxcert": [],
    "pvxget": ["-w", "0", "x"],
    "pvxinfo": ["-w", "0", "x"],
    "pvxlist": ["-w", "0.1", "127.0.0.1:1"],
    "pvxmonitor": ["-r", "(", "x"],
    "pvxput": ["-w", "0", "x", "1"],
    "softIocPVX": ["-S", "-d", "none.db"],
}
NEEDS = {"appliance quickstart": "all", "jwt-issuer": "issuer", "pvacms": "cms", "softIocPVX": "ioc"}


def test_every_command_is_tried_without_extras() -> None:
    assert WORK.keys() == COMMANDS.keys()
    assert EXTRAS.keys() == {"issuer", "cms", "ioc"} <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_without_extras_a_command_works_or_says_which_one_to_install(command: str, tmp_path: Path) -> None:
    """As after ``pip install .``."""
    done = run(
        command, *WORK[command], blocked=",".join(OPTIONAL), HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path)
    )
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
    extra = NEEDS.get(command)
    if extra is None:
        assert "not installed" not in done.stderr
    else:
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: the package")
        assert line.endswith(f"install the appliance with its extra '{extra}': pip install '.[{extra}]'")


@pytest.mark.parametrize("package", OPTIONAL)
@pytest.mark.parametrize("command", NEEDS)
def test_each_package_of_an_extra_is_missed(command: str, package: str, tmp_path: Path) -> None:
    extras = EXTRAS if NEEDS[command] == "all" else (NEEDS[command],)
    if any(package in EXTRAS[extra] for extra in extras):
        done = run(command, *WORK[command], blocked=package, HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path))
        assert done.returncode == 1
        assert done.stderr.startswith(f"Error: the package {package} is not installed; ")


@pytest.mark.parametrize(
    ("command", "words", "why"),
    [
        ("acf-test", ["f.acf", "--user", "alice"], "--user asks what is permitted: say in which group, with --asg"),
        ("acf-test", ["f.acf", "--require", "WRITE"], "--require asks what is permitted"),
        ("acf-test", ["f.acf", "--asl", "1"], "--asl asks what is permitted"),
        ("acf-test", ["f.acf", "--asg", "A", "--method", "x508"], "invalid choice: 'x508'"),
        ("acf-test", ["f.acf", "--asg", "A", "--user", "a", "--authority", "CA"], "it needs --method x509"),
        ("acf-test", ["f.acf", "--asg", "A", "--user", "a", "--san", "dns=h"], "it needs --method x509"),
        ("acf-test", ["f.acf", "--asg", "A", "--user", "a", "--method", "anonymous"], "has no --user"),
        ("pvxget", ["--json", "-F", "tree", "x"], "-F has no effect with --json"),
        ("pvxmonitor", ["--json", "-#", "3", "x"], "-# has no effect with --json"),
        ("pvxcall", ["--json", "-F", "delta", "x"], "-F has no effect with --json"),
        ("pvxlist", ["-p", "127.0.0.1"], "-p is for discovery"),
        ("pvxlist", ["-A", "127.0.0.1"], "-A is for discovery"),
        ("pvxlist", ["-A", "-p"], "not allowed with argument"),
        ("pvxinfo", ["-D", "x"], "-D tells of this host only"),
        ("pvxinfo", ["-D", "--json"], "-D tells of this host only"),
        ("jwt-issuer", ["--config", "f", "--hash-password"], "--config has no effect with --hash-password"),
        ("jwt-issuer", ["--config", "f", "--print-schema"], "--config has no effect with --print-schema"),
        ("softIocPVX", ["--config", "f", "-S"], "no other options with it"),
        ("softIocPVX", ["--config", "f", "-v"], "no other options with it"),
        ("pvacms", ["--audit-head", "00"], "--audit-head"),
        ("authnstd", ["-a", "-n", "x"], "-n has no effect with -a"),
        ("authnstd", ["-a", "-t", "1d"], "-t has no effect with -a"),
        ("authnstd", ["--check-due", "-o", "x"], "-o has no effect with --check-due"),
        ("authnjwt", ["-a", "--token-file", "x"], "--token-file has no effect with -a"),
        ("authnjwt", ["--check-due", "--allow-plaintext-token"], "has no effect with --check-due"),
        ("pvxcert", ["list", "--trust-anchor", "f"], "--trust-anchor"),
        ("pvxcert", ["list", "--limit", "-1"], "--limit"),
        ("pvxcert", ["list", "--state", "VALIDD"], "invalid choice: 'VALIDD'"),
        ("pvxcert", ["--expiring", "30d"], "belong to: pvxcert list"),
        ("pvxcert", ["list", "1a2b3c4d:1"], "list stands alone"),
        ("pvxcert", ["-A", "1a2b3c4d:1", "1a2b3c4d:1"], "given twice"),
        ("pvxcert", ["-p", "1a2b3c4d:1"], "-p asks for the password of a keychain"),
    ],
)  # fmt: skip
def test_an_option_that_would_count_for_nothing_is_refused(
    command: str, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, function = PROJECT["scripts"][command].partition(":")
    try:
        status = getattr(importlib.import_module(module), function)(words)
    except SystemExit as end:
        status = end.code
    shown = capsys.readouterr()
    assert (status, shown.out) == (1, "")
    assert why in shown.err.splitlines()[-1]
    assert shown.err.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("words", [["list", "-p"], ["-A", "-p", "1a2b3c4d:1"]])
def test_a_password_is_asked_for_where_a_keychain_is_used(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    from appliance.cli.pvxcert import main

    keychain = tmp_path / "admin.p12"
    keychain.write_bytes((ROOT / "tests/unit/cli/test_command_lines.py").read_bytes())
    keychain.chmod(0o600)
    monkeypatch.setenv("EPICS_PVA_TLS_KEYCHAIN", str(keychain))
    monkeypatch.setattr(sys, "stdin", io.StringIO("open sesame\n"))
    assert main(words) == 1
    assert sys.stdin.read() == "", "the line was read"
    shown = capsys.readouterr()
    assert str(keychain) in shown.err
    assert "open sesame" not in shown.err + shown.out


def test_a_time_out_that_a_monitor_does_not_have_is_said() -> None:
    done = run("pvxmonitor", "-w", "3", "-r", "(", "x")
    assert done.stderr.startswith("Warning: -w has no effect: a subscription waits for ever")
