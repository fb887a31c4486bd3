"""All commands look alike: help at 80 columns with examples, versions, wrong command lines, missing parts."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from appliance.daemon.extras import EXTRAS

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = {name: [] for name in PROJECT["scripts"]} | {
    "appliance doctor": ["doctor"],
    "appliance quickstart": ["quickstart"],
}
OPTIONAL = sorted({package for packages in EXTRAS.values() for package in packages})
WORK = {
    "acf-test": ["none.acf"],
    "appliance": ["doctor", "-w", "0"],
    "appliance doctor": ["-w", "0"],
    "appliance quickstart": ["--once"],
    "authnjwt": ["--token-file", "none"],
    "authnstd": ["-w", "0", "-n", "x", "-o", "y"],
    "jwt-issuer": [],
    "pvacms": [],
    "pvagw": ["none.yml"],
    "pvxcall": ["-w", "0", "x"],
    "pvxcert": [],
    "pvxget": ["-w", "0", "x"],
    "pvxinfo": ["-w", "0", "x"],
    "pvxlist": ["-w", "0.1", "127.0.0.1:1"],
    "pvxmonitor": ["-r", "(", "x"],
    "pvxput": ["-w", "0", "x", "1"],
    "softIocPVX": ["-S", "-d", "none.db"],
}
"""What each command can do without a network."""
NEEDS = {"appliance quickstart": "all", "jwt-issuer": "issuer", "pvacms": "cms", "softIocPVX": "ioc"}
CODE = """
import contextlib, importlib, io, json, sys
module, function, blocked, runs = json.loads(sys.argv[1])
for name in blocked:
    sys.modules[name] = None
main = getattr(importlib.import_module(module), function)
told = []
for words in runs:
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code or 0
        out.flush()
    told.append((status, out.buffer.getvalue().decode(), err.getvalue()))
print(json.dumps(told))
"""


class Said(NamedTuple):
    status: int
    out: str
    err: str


@cache
def said(command: str) -> dict[str, Said]:
    """What a command says after ``pip install .``, that is without the packages of the extras; each in one process."""
    module, _, function = PROJECT["scripts"][command.split()[0]].partition(":")
    runs = {
        "help": ["--help"],
        "short": ["-V"],
        "long": ["--version"],
        "wrong": ["--no-such-option"],
        "work": WORK[command],
    }
    with tempfile.TemporaryDirectory() as home:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("EPICS_", "PVXS_", "XDG_", "SPVA_"))
        }
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                CODE,
                json.dumps(
                    [module, function, OPTIONAL, [COMMANDS[command] + words for words in runs.values()]]
                ),
            ],
            env={
                **kept,
                "PYTHONPATH": str(ROOT),
                "COLUMNS": "80",
                "EPICS_PVA_AUTO_ADDR_LIST": "NO",
                "HOME": home,
            },
            cwd=home,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return {name: Said(*told) for name, told in zip(runs, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_eighty_columns_and_has_examples(command: str) -> None:
    done = said(command)["help"]
    assert (done.status, done.err) == (0, "")
    assert [line for line in done.out.splitlines() if len(line) > 80] == []
    examples = done.out.partition("\nexamples:\n")[2]
    assert f"  {command}" in examples or f" {command}" in examples
    assert "-V, --version" in done.out
    assert "--print-completion" in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_versions_are_told_alike(command: str) -> None:
    from appliance import __version__

    short, long = said(command)["short"], said(command)["long"]
    assert short == long
    assert (short.status, short.err) == (0, "")
    assert short.out.startswith(f"Secure PVAccess appliance {__version__}\nPython 3.")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_line_is_status_1_and_an_error_line(command: str) -> None:
    done = said(command)["wrong"]
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("usage: ")
    assert done.err.splitlines()[-1].startswith("Error: ")


def test_every_command_is_tried_without_extras() -> None:
    assert WORK.keys() == COMMANDS.keys()
    assert (
        EXTRAS.keys()
        == {"issuer", "cms", "ioc", "gateway", "oauth"}
        <= PROJECT["optional-dependencies"].keys()
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_without_extras_a_command_works_or_says_which_one_to_install(command: str) -> None:
    done = said(command)["work"]
    assert "Traceback" not in done.err
    assert "defect" not in done.err
    extra = NEEDS.get(command)
    if extra is None:
        assert "not installed" not in done.err
    else:
        assert done.status == 1
        (line,) = done.err.splitlines()
        assert line.startswith("Error: the package")
        assert line.endswith(f"install the appliance with its extra '{extra}': pip install '.[{extra}]'")


@pytest.mark.parametrize("package", OPTIONAL)
@pytest.mark.parametrize("command", NEEDS)
def test_each_package_of_an_extra_is_missed(
    command: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Metrics of a gateway and tokens of an identity provider are choices of a configuration.
    extras = EXTRAS.keys() - {"gateway", "oauth"} if NEEDS[command] == "all" else {NEEDS[command]}
    if any(package in EXTRAS[extra] for extra in extras):
        module, _, function = PROJECT["scripts"][command.split()[0]].partition(":")
        main = getattr(importlib.import_module(module), function)
        monkeypatch.setitem(sys.modules, package, None)
        assert main(COMMANDS[command] + WORK[command]) == 1
        assert capsys.readouterr().err.startswith(f"Error: the package {package} is not installed; ")


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
        ("pvxinfo", ["-D", "x"], "-D is about this host only"),
        ("pvxinfo", ["-D", "--json"], "-D is about this host only"),
        ("jwt-issuer", ["--config", "f", "--hash-password"], "--config has no effect with --hash-password"),
        ("jwt-issuer", ["--config", "f", "--print-schema"], "--config has no effect with --print-schema"),
        ("softIocPVX", ["--config", "f", "-S"], "cannot be combined with other options"),
        ("softIocPVX", ["--config", "f", "-v"], "cannot be combined with other options"),
        ("pvacms", ["--audit-head", "00"], "--audit-head"),
        ("authnstd", ["-a", "-n", "x"], "-n has no effect with -a"),
        ("authnstd", ["-a", "-t", "1d"], "-t has no effect with -a"),
        ("authnstd", ["--check-due", "-o", "x"], "-o has no effect with --check-due"),
        ("authnjwt", ["-a", "--token-file", "x"], "--token-file has no effect with -a"),
        ("authnjwt", ["--check-due", "--allow-plaintext-token"], "has no effect with --check-due"),
        ("authnstd", ["-a", "--san", "dns=x"], "--san has no effect with -a"),
        ("authnstd", ["--check-due", "--schedule", "*,08:00,17:00"], "--schedule has no effect with --check-due"),
        ("authnstd", ["--server-san", "dns=x"], "--server-san has no effect on a client's certificate"),
        ("authnstd", ["--no-config-pv"], "--no-config-pv has no effect without -D"),
        ("authnstd", ["-u", "server", "-u", "ioc"], "-u server and -u ioc both write"),
        ("authnstd", ["-u", "client", "-u", "client"], "-u client is given twice"),
        ("authnstd", ["-u", "client", "-u", "server", "-n", "x"], "ask for two certificates of the name x"),
        ("authnstd", ["-D", "-u", "client", "-u", "ioc"], "use -u ioc, which is for both ends"),
        ("authnstd", ["--if-due", "--new-key"], "--if-due and --new-key cannot be used together"),
        ("authnstd", ["-D", "--force"], "-D and --force cannot be used together"),
        ("authnstd", ["-D", "--check-due"], "-D and --check-due cannot be used together"),
        ("authnstd", ["-D", "--if-due"], "-D and --if-due cannot be used together"),
        ("authnstd", ["-D", "-s"], "-D and --no-status cannot be used together"),
        ("authnstd", ["-D", "-a"], "a trust anchor is not renewed"),
        ("authnjwt", ["-vD", "--token-file", "-"], "-D cannot use --token-file -"),
        ("authnjwt", ["--daemon"], "no token was given"),
        ("authnjwt", ["-D", "--token-file", "x", "--oauth", "y"], "one source of tokens only"),
        ("pvxcert", ["list", "--trust-anchor", "f"], "--trust-anchor"),
        ("pvxcert", ["list", "--limit", "-1"], "--limit"),
        ("pvxcert", ["list", "--state", "VALIDD"], "invalid choice: 'VALIDD'"),
        ("pvxcert", ["--expiring", "30d"], "are for: pvxcert list"),
        ("pvxcert", ["list", "1a2b3c4d:1"], "list takes no identifiers"),
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
    assert (status, shown.out) == (255 if "--check-due" in words else 1, "")
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


def test_a_time_out_that_a_monitor_does_not_have_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from appliance.cli.pvxmonitor import main

    assert main(["-w", "3", "-r", "(", "x"]) == 1
    assert capsys.readouterr().err.startswith("Warning: -w has no effect: a subscription waits for ever")


def test_every_page_that_tells_exit_statuses_says_1_of_a_wrong_command_line() -> None:
    told = 0
    for page in sorted((ROOT / "docs/reference").glob("*.md")):
        text = " ".join(page.read_text().split())
        for name, sentence in re.findall(
            r"(\d)[^.;|]{0,60}(?:wrong|bad) command line|command line (?:is|gives) status (\d)", text
        ):
            told += 1
            assert (name or sentence) == "1", page.name
    assert told >= 4
