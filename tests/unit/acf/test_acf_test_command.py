"""The command acf-test."""

import io
import json
import os
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.cli.acf_test import main
from tests.helpers import pki

ROOT = "EPICS Root Certificate Authority"

SITE = f"""
AUTHORITY(ROOT, "{ROOT}")
UAG(owners) {{ george, "role/wheel" }}
HAG(room) {{ localhost }}
ASG(DEFAULT) {{ RULE(1, READ) }}
ASG(SPECIAL) {{
    INPA("$(P=SYS):MODE")
    RULE(1, READ)
    RULE(1, WRITE, TRAPWRITE) {{ UAG(owners) METHOD(x509) AUTHORITY(ROOT) PROTOCOL(tls) }}
    RULE(1, WRITE) {{ CALC("A=1") METHOD(ca) }}
    RULE(1, WRITE) {{ HAG(room) METHOD(anonymous) }}
}}
"""


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.acf"
    path.write_text(SITE)
    return str(path)


PROVED = ["--method", "x509", "--authority", ROOT]


@pytest.mark.parametrize(
    ("arguments", "access", "logged"),
    [
        (["--user", "george", *PROVED, "--protocol", "tls"], "WRITE", True),
        (["--user", "george", *PROVED], "WRITE", True),
        (["--user", "zoe", "--role", "wheel", *PROVED], "WRITE", True),
        (["--user", "zoe", *PROVED], "READ", False),
        (["--user", "george", *PROVED, "--protocol", "tcp"], "READ", False),
        (["--user", "george", "--method", "x509", "--authority", "Other"], "READ", False),
        (["--user", "george", "--method", "x509", "--authority", "Sub", "--authority", ROOT], "WRITE", True),
        (["--user", "george", *PROVED, "--asl", "2"], "NONE", False),
        (["--user", "george"], "READ", False),
        (["--user", "george", "--input", "A=1"], "WRITE", False),
        (["--host", "localhost"], "WRITE", False),
        (["--host", "127.0.0.1"], "READ", False),
        (["--host", "127.0.0.1", "--resolve"], "WRITE", False),
        ([], "READ", False),
    ],
)
def test_it_answers_what_a_principal_may_do(site, capsys, arguments, access, logged):
    assert main([site, "--asg", "SPECIAL", *arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["access"], answer["trapwrite"]) == (access, logged)
    assert answer["write"] is (access == "WRITE")
    assert len(answer["why"]) == 4


def test_the_answer_for_people_says_why(site, capsys):
    assert main([site, "--asg", "SPECIAL", "--user", "zoe", *PROVED]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "x509/zoe over tls in ASG(SPECIAL): READ"
    assert lines[1] == "  may: read"
    assert lines[2] == f"  {site}:8: RULE(1,READ): grants READ"
    assert lines[3].endswith("UAG(owners): 'zoe' (x509) is not in it")


def test_a_group_that_is_not_defined_has_the_rules_of_default(site, capsys):
    assert main([site, "--asg", "OTHER"]) == 0
    assert "the rules of ASG(DEFAULT) apply" in capsys.readouterr().out


def test_without_a_group_the_file_is_checked_and_listed(site, capsys):
    assert main([site, "--macro", "P=LAB"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ASG(DEFAULT): 1 rule", "ASG(SPECIAL): 4 rules", "  INPA LAB:MODE", "UAG(owners): george, role/wheel",
        ("a proved name alone in a UAG means a member of the server's own organization; "
        "ask with --organization and --home"),
    ]  # fmt: skip
    assert main([site, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"][1]["inputs"] == {"A": "SYS:MODE"}


@pytest.mark.parametrize(
    ("require", "arguments", "status"),
    [
        ("READ", [], 0),
        ("WRITE", [], 3),
        ("WRITE", ["--user", "george", *PROVED], 0),
        ("RPC", ["--user", "george", *PROVED], 3),
        ("RPC", ["--user", "george", *PROVED, "--gateway"], 0),
    ],
)
def test_require_makes_the_answer_the_exit_status(site, require, arguments, status):
    assert main([site, "--asg", "SPECIAL", "--require", require, *arguments]) == status


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"ASG(A) {\n  FUTURE(x)\n}", ":2:3: unknown keyword 'FUTURE'"),
        (b"UAG(A)\n{\xff}", ":2: not UTF-8 text"),
        (b"", "defines nothing"),
        (b"asgs:\n- nam: x\n", ":2: unknown key 'nam'"),
    ],
)
def test_a_wrong_file_is_status_1_with_its_place(tmp_path, capsys, content, why):
    path = tmp_path / "bad"
    path.write_bytes(content)
    assert main([str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"Error: {path}" in captured.err
    assert why in captured.err


def test_a_file_that_is_not_there_is_status_1(tmp_path, capsys):
    assert main([str(tmp_path / "none.acf")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--input", "A"], ["--input", "A=x"], ["--input", "Z=1"], ["--macro", "=x"], ["--san", "mail=x"], ["--require", "READ"],
     ["--protocol", "udp"], ["--asl", "x"]],
)  # fmt: skip
def test_a_wrong_command_line_is_status_1(site, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main([site, *arguments])
    assert caught.value.code == 1
    assert capsys.readouterr().err


def test_warnings_go_to_standard_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'ASG(A) {RULE(1,READ) {METHOD("krb5")}}')))
    assert main(["-"]) == 0
    assert "Warning: -:1:30: METHOD 'krb5'" in capsys.readouterr().err


def test_it_starts_without_what_it_does_not_need():
    code = (
        "import sys; from appliance.cli.acf_test import main; main(['/dev/null']);"
        "sys.exit(bool({'yaml', 'numpy', 'asyncio', 'socket', 'json', 'msgspec'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.DEVNULL).returncode == 0
    )


@pytest.mark.parametrize("option", ["--organization", "--unit", "--user"])
def test_an_empty_part_of_a_certificates_name_is_refused_and_not_taken_for_none(site, capsys, option):
    with pytest.raises(SystemExit) as ended:
        main([site, "--asg", "SPECIAL", "--method", "x509", "--user", "george", option, ""])
    assert ended.value.code == 1
    assert f"{option} is empty: write a value, or leave the option out" in capsys.readouterr().err


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path):
    (tmp_path / "a.acf").write_text("ASG(DEFAULT) { RULE(1, READ) }")
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        "-m",
        "appliance.cli.acf_test",
        str(tmp_path / "a.acf"),
        "--asg",
        "DEFAULT",
        "--user",
        "u",
    ]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_chain_says_who_it_is_and_which_rule_with_an_authority_matches(tmp_path, capsys):
    file, chain = tmp_path / "site.acf", tmp_path / "george.pem"
    file.write_text(
        'AUTHORITY("Site Root") { AUTHORITY(SITE, "Site Issuing CA") AUTHORITY(OTHER, "Site Guest CA") }\n'
        "UAG(owners) { george }\n"
        "ASG(DEFAULT) {\n    RULE(1, READ)\n    RULE(1, RPC) { UAG(owners) AUTHORITY(OTHER) }\n"
        "    RULE(1, WRITE) { UAG(owners) AUTHORITY(SITE) }\n}\n"
    )
    root = pki.Authority("Site Root")
    below = root.intermediate("Site Issuing CA")
    george = below.keychain("george", "client")
    question = [str(file), "--asg", "DEFAULT", "--chain", str(chain)]
    certificates = [*george.chain, george.certificate]  # in any order
    chain.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
    assert main([*question, "--home", "localhost"]) == 0
    said = capsys.readouterr().out
    assert "x509/george of O=localhost over tls in ASG(DEFAULT): WRITE" in said
    assert f"{file}:6" in next(line for line in said.splitlines() if "grants WRITE" in line)
    assert f"{file}:5" in next(line for line in said.splitlines() if "does not apply" in line)
    assert main([*question, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["access"] == "READ", "george of another organization is not the george of the group"
    assert answer["principal"]["authority"] == ["Site Issuing CA", "Site Root"]
    for wrong, why in (
        (below.certificate.public_bytes(Encoding.PEM), "all its certificates are of authorities"),
        (george.certificate.public_bytes(Encoding.PEM), "CN=Site Issuing CA"),
        (b"", "there is nothing in it"),
    ):
        chain.write_bytes(wrong)
        assert main(question) == 1
        assert why in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*question, "--user", "george"])
    assert "--user stands in the certificate of --chain" in capsys.readouterr().err
