"""The command line of ``pvagw``: each option of p4p's gateway, and ours; nothing but a run opens a port."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from p4p import gw

from appliance.errors import ConfigurationError
from appliance.gateway.daemon import main
from appliance.gateway.options import level, log_as, parser
from tests.helpers.pki import site, write_keychain
from tests.unit.gateway.test_p4p_json import SMALL

START_S = 600
"""A process that starts takes as long as the machine needs."""

CONFIG = {**SMALL, "servers": [{"name": "s", "clients": ["c"], "access": "a.acf", "pvlist": "p.pvlist"}]}


@pytest.fixture(autouse=True)
def no_ports(monkeypatch):
    """Fail a test that opens a port."""

    def refuse(*_):
        raise AssertionError("a port was opened")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    monkeypatch.setattr(socket.socket, "listen", refuse)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "a.acf").write_text("ASG(DEFAULT) { RULE(1, WRITE) }\n")
    (tmp_path / "p.pvlist").write_text(".* ALLOW\n")
    (tmp_path / "gw.conf").write_text(json.dumps(CONFIG))
    return tmp_path


def test_every_option_of_p4p_exists_here():
    theirs = {option for action in gw.getargs()._actions for option in action.option_strings}
    ours = {option for action in parser()._actions for option in action.option_strings}
    assert theirs <= ours


@pytest.mark.parametrize("option", ["-T", "--test-config", "--check-config"])
def test_checking_prints_the_names_of_all_files_as_p4p_does(files, capsys, option):
    assert main([option, str(files / "gw.conf")]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(files / name) for name in ("gw.conf", "a.acf", "p.pvlist")]
    assert err == f"{files}/gw.conf: good\n"
    gw.main(["-T", str(files / "gw.conf")])
    assert set(capsys.readouterr().out.split()) == {
        str(files / name) for name in ("gw.conf", "a.acf", "p.pvlist")
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.acf", "ASG(DEFAULT) {\n RULE(1, WRITES)\n}", "a.acf:2"),
        ("a.acf", "ASG(DEFAULT) {\n RULE(1, WRITE) { UAG(X) }\n}", "UAG(X) is not defined"),
        ("p.pvlist", ".* ALLOW\nA.* ALLW\n", "p.pvlist:2"),
        ("p.pvlist", "(a|aa)+\\1 ALLOW\n", "p.pvlist:1"),
        ("gw.conf", '{"version": 2,\n "clients": []}', "gw.conf"),
        ("gw.conf", "clients: {c: {}}\nservers: {s: {clients: [d]}}", "gw.conf:2: servers.s.clients"),
    ],
)
def test_a_wrong_file_is_one_sentence_and_exit_status_1(files, capsys, name, text, said):
    (files / name).write_text(text)
    for arguments in (["-T", str(files / "gw.conf")], [str(files / "gw.conf")]):
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Error: ")
        assert said in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "their_key", "our_key"), [("a.acf", "access", "access.file"), ("p.pvlist", "pvlist", "pvlist")]
)
def test_a_missing_file_is_said_with_the_line_and_the_key_that_name_it(
    files, capsys, name, their_key, our_key
):
    (files / name).unlink()
    (files / "gw.yml").write_text(
        "clients: {c: {}}\nservers:\n  s:\n    clients: [c]\n    pvlist: p.pvlist\n    access: {file: a.acf}\n"
    )
    line = 5 if name == "p.pvlist" else 6
    for file, place in (
        ("gw.conf", f"1: servers[0].{their_key}"),
        ("gw.yml", f"{line}: servers.s.{our_key}"),
    ):
        for option in ([], ["-T"]):
            assert main([*option, str(files / file)]) == 1
            said = (
                f"Error: {files}/{file}:{place}: {files}/{name} cannot be read: No such file or directory\n"
            )
            assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("given", "warned"), [("", True), (", tls_keychain: ''", False), (", tls_keychain: own.p12", False)]
)
def test_a_client_side_with_its_user_s_own_keychain_is_a_warning(files, capsys, monkeypatch, given, warned):
    own = files / "pva" / "1.5" / "client.p12"
    own.parent.mkdir(parents=True)
    for path in (own, files / "own.p12"):
        write_keychain(path, site().client)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(files))
    (files / "gw.yml").write_text(
        f"clients: {{c: {{pva: {{auto_addr_list: false{given}}}}}}}\nservers: {{s: {{clients: [c]}}}}\n"
    )
    assert main(["-T", str(files / "gw.yml")]) == 0
    said = f"clients.c: no tls_keychain is given, so servers see the certificate of the user who runs the gateway ({own})"
    assert (said in capsys.readouterr().err) is warned


def test_what_is_probably_not_meant_is_a_warning(files, capsys):
    (files / "p.pvlist").write_text(".* ALLOW\nA.* ALLOW RF\n")
    assert main(["-T", str(files / "gw.conf")]) == 0
    assert (
        "uses ASG(RF), which has no rules in this file; the rules of ASG(DEFAULT) apply"
        in capsys.readouterr().err
    )
    (files / "gw.conf").write_text(
        json.dumps({**CONFIG, "servers": [{"name": "s", "clients": ["c"], "pvlist": "p.pvlist"}]})
    )
    assert main(["-T", str(files / "gw.conf")]) == 0
    assert "there is no access security file: everybody may write them" in capsys.readouterr().err


@pytest.mark.parametrize("side", ["clients.c", "servers.s"])
@pytest.mark.parametrize("asked_for", [False, True])
def test_a_keychain_that_cannot_be_used_is_an_error_unless_plain_tcp_is_asked_for(
    files, capsys, side, asked_for
):
    options = ", tls_options: on_no_keychain=fallback-to-tcp" if asked_for else ""
    pva = f"pva: {{tls_keychain: {files}/no.p12{options}}}"
    client, server = (pva, "") if side == "clients.c" else ("", pva)
    (files / "gw.yml").write_text(
        f"clients: {{c: {{{client}}}}}\nservers: {{s: {{clients: [c], {server}}}}}\n"
    )
    status = main(["--config", str(files / "gw.yml"), "--check-config"])
    said = capsys.readouterr().err
    if asked_for:
        assert status == 0
        assert f"Warning: {side}: {files}/no.p12" in said
        return
    assert status == 1
    line = 1 if side == "clients.c" else 2
    assert said.startswith(f"Error: {files}/gw.yml:{line}: {side}.pva.tls_keychain: {files}/no.p12: ")
    assert "on_no_keychain=fallback-to-tcp" in said


@pytest.mark.timeout(START_S)
@pytest.mark.parametrize("side", ["clients.c", "servers.s"])
def test_a_gateway_does_not_start_without_a_keychain_that_is_named(files, side):
    pva = f"pva: {{tls_keychain: {files}/no.p12}}"
    client, server = (pva, "") if side == "clients.c" else ("", pva)
    (files / "gw.yml").write_text(
        f"clients: {{c: {{{client}}}}}\nservers: {{s: {{clients: [c], {server}}}}}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "appliance.gateway.daemon", str(files / "gw.yml")],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.count(f"{files}/no.p12") == 1, ended.stderr
    assert "does not start" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("pvlist", "warned"), [("A.* ALLOW\n", True), ("A.* ALLOW\nCERT:.* ALLOW\n", False)])
def test_a_pv_list_that_hides_the_status_of_certificates_is_a_warning(files, capsys, pvlist, warned):
    (files / "p.pvlist").write_text(pvlist)
    write_keychain(files / "own.p12", site().client)
    text = "clients: {c: {pva: {tls_keychain: own.p12}}}\nservers: {s: {clients: [c], pvlist: p.pvlist}}\n"
    (files / "gw.yml").write_text(text)
    assert main(["-T", str(files / "gw.yml")]) == 0
    assert ("servers.s: the PV list denies CERT:STATUS:" in capsys.readouterr().err) is warned


def test_a_put_log_without_a_directory_is_an_error(files, capsys):
    (files / "gw.yml").write_text("clients: {c: {}}\nservers: {s: {clients: [c], put_log: no/puts.log}}\n")
    assert main(["-T", str(files / "gw.yml")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {files}/gw.yml:2: servers.s.put_log: there is no directory {files}/no")


@pytest.mark.timeout(START_S)
@pytest.mark.parametrize("how", [["-T"], []])
def test_a_put_log_that_is_a_directory_is_an_error_before_the_start(files, how):
    (files / "gw.yml").write_text(
        f"clients: {{c: {{}}}}\nservers:\n  s: {{clients: [c], put_log: {files}}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "appliance.gateway.daemon", *how, str(files / "gw.yml")],
        capture_output=True,
        check=False,
        text=True,
        timeout=START_S,
    )
    assert done.returncode == 1
    assert f"{files}/gw.yml:3: servers.s.put_log: {files} is not a regular file" in done.stderr


@pytest.mark.parametrize("key", ["pvlist", "acf"])
def test_a_file_that_would_be_read_in_part_or_never_is_refused(files, capsys, key):
    file = files / "rules"
    named = f"pvlist: {file}" if key == "pvlist" else f"access: {{file: {file}}}"
    (files / "gw.yml").write_text(f"clients: {{c: {{}}}}\nservers: {{s: {{clients: [c], {named}}}}}\n")
    # Fewer characters than the limit and more octets: what stands at the end must not be lost.
    file.write_text(f"{'# ä' * 1_500_000}\nX DENY\n", encoding="utf-8")
    assert main(["-T", str(files / "gw.yml")]) == 1
    assert "larger than the limit of 4194304 bytes" in capsys.readouterr().err
    file.unlink()
    os.mkfifo(file)
    assert main(["-T", str(files / "gw.yml")]) == 1
    assert "not a regular file" in capsys.readouterr().err


def test_convert_prints_yaml(files, capsys):
    assert main(["--convert", str(files / "gw.conf")]) == 0
    out, _ = capsys.readouterr()
    (files / "gateway.yml").write_text(out)
    assert main(["-T", str(files / "gateway.yml")]) == 0
    (files / "gw.conf").write_text('{"version": 2')
    assert main(["--convert", str(files / "gw.conf")]) == 1


def test_print_schema_and_print_config(files, capsys):
    assert main(["--print-schema"]) == 0
    assert "enforce_read" in capsys.readouterr().out
    assert main(["--print-config", str(files / "gw.conf")]) == 0
    out = capsys.readouterr().out
    assert "Variables for addresses, ports and keychains (EPICS_PVA*) are not read" in out
    assert "# servers.s, after defaults" in out


def test_example_config_is_good(tmp_path, capsys):
    file = tmp_path / "mine.yml"
    assert main(["--example-config", str(file)]) == 0
    assert main(["-T", str(file)]) == 0
    capsys.readouterr()
    assert main(["--example-config", "-"]) == 0
    out, err = capsys.readouterr()
    assert out == file.read_text()
    assert "/etc/pvagw/NAME.yml" in err
    assert main(["--example-config", str(file)]) == 1, "a file that has text is not overwritten"


@pytest.mark.parametrize(
    ("name", "instance"), [("pvagw@blah.service", "blah"), ("pvagw@.service", "%i"), ("x.service", "%i")]
)
def test_example_systemd_names_the_instance_as_p4p_does(tmp_path, name, instance):
    file = tmp_path / name
    assert main(["--example-systemd", str(file)]) == 0
    text = file.read_text()
    assert f"-m appliance.gateway.daemon --config /etc/pvagw/{instance}.yml\n" in text
    assert "WantedBy=multi-user.target" in text


@pytest.mark.parametrize("arguments", [[], ["a", "--config", "b"], ["-T", "--convert", "a"], ["--no-such"]])
def test_a_wrong_command_line_is_exit_status_1(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    assert "Error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "WARNING"),
        (["-v"], "DEBUG,appliance.transport.messages=INFO"),
        (["--debug"], "WARNING,appliance.transport.messages=DEBUG"),
        (["-v", "--debug"], "DEBUG,appliance.transport.messages=DEBUG"),
    ],
)
def test_verbose_and_debug_are_different_as_with_p4p(arguments, wanted):
    assert level(parser().parse_args([*arguments, "gw.conf"]), "WARNING") == wanted


# -- --logging -----------------------------------------------------------------------------------------


LOGGING = """
/* Everything to one file, puts to another one. */
{{
    "version": 1,
    "formatters": {{"plain": {{"format": "%(name)s %(levelname)s %(message)s"}}}},
    "handlers": {{
        "all": {{"class": "logging.FileHandler", "filename": "{0}/all.log", "formatter": "plain"}},
        "puts": {{"class": "logging.FileHandler", "filename": "{0}/puts.log", "formatter": "plain"}}
    }},
    "loggers": {{"p4p.gw.audit": {{"handlers": ["puts"], "propagate": false}} {1} }},
    "root": {{"handlers": ["all"], "level": "INFO"}}
}}
"""
WRITES = """
import logging, sys
from appliance.gateway.options import log_as
from appliance.gateway.json_lines import read_json_file
log_as(read_json_file(sys.argv[1]), sys.argv[1])
logging.getLogger("appliance.gateway.source").info("one")
logging.getLogger("appliance.gateway.source").debug("not logged")
logging.getLogger("appliance.gateway.putlog").info("a put with eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln")
"""


FORGES = """logging.getLogger("appliance.gateway.putlog").info("put %s", "x\\nca/other@host put\\u2028\\x1b[2J")
"""


def log_with(tmp_path: Path, more: str, script: str = WRITES) -> tuple[str, str]:
    (tmp_path / "logging.json").write_text(LOGGING.format(tmp_path, more))
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "logging.json")],
        check=True,
        timeout=START_S,
    )
    return (tmp_path / "all.log").read_text(), (tmp_path / "puts.log").read_text()


@pytest.mark.timeout(START_S)
def test_a_logging_file_for_p4p_works_as_it_is(tmp_path):
    everything, puts = log_with(tmp_path, "")
    assert everything == "p4p.gw INFO one\n"
    assert puts == "p4p.gw.audit INFO a put with eyJ***\n"


@pytest.mark.parametrize("ours", ["", ', "appliance.gateway.putlog": {"handlers": ["puts"]}'])
def test_no_client_adds_lines_to_a_log_of_the_site_s_own_form(tmp_path, ours):
    *_, begins, _ = WRITES.splitlines(keepends=True)
    _, puts = log_with(tmp_path, ours, WRITES.replace(begins, FORGES))
    forged, secret = puts.splitlines()
    assert forged.endswith("put x\\nca/other@host put\\u2028\\x1b[2J")
    assert secret.endswith("a put with eyJ***")


def test_a_logging_file_that_names_our_loggers_gets_our_names(tmp_path):
    everything, puts = log_with(tmp_path, ', "appliance": {"level": "INFO"}')
    assert everything.splitlines() == [
        "appliance.gateway.source INFO one",
        "appliance.gateway.putlog INFO a put with eyJ***",
    ]
    assert puts == ""


@pytest.mark.parametrize(
    "given", [{}, {"version": 3}, {"version": 1, "handlers": {"h": {"class": "no.such"}}}, []]
)
def test_a_wrong_logging_file_is_one_sentence(given):
    before = logging.root.handlers[:]
    with pytest.raises(ConfigurationError, match=r"^log.json: not a logging configuration: "):
        log_as(given, "log.json")
    assert logging.root.handlers == before
