"""The role spva_database: what it refuses, who may log in, and what the server stores of the password."""

from __future__ import annotations

import base64
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.test_templates import ROOT, run_play

ROLE = ROOT / "roles/spva_database"
GOOD = {"spva_database_password": "a-good-password"}
TWO_NODES = {"one": ["192.0.2.1", "198.51.100.1"], "two": ["192.0.2.2"]}
"""Nodes with the addresses that Ansible has found there."""


def play(
    tmp_path: Path, tasks: list[dict], variables: dict, *, nodes: dict | None = None, databases: int = 1
):
    """Run tasks on this machine as a host of the group, with nodes of whose hosts this run knows the facts."""
    nodes = TWO_NODES if nodes is None else nodes
    groups = {
        "spva_database": {"hosts": {"localhost": {}, **{f"other{n}": {} for n in range(1, databases)}}},
        "spva_cms": {"hosts": {node: {} for node in nodes}},
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    found = [
        {
            "name": "Facts",
            "ansible.builtin.set_fact": {"all_ipv4_addresses": addresses, "cacheable": True},
            "delegate_to": node,
            "delegate_facts": True,
        }
        for node, addresses in nodes.items()
        if addresses
    ]
    role = {"name": "Role", "tasks": [*found, *tasks]}
    done = run_play(tmp_path, role, {**GOOD, **variables}, tmp_path / "hosts.yml")
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def preflight(tmp_path: Path, variables: dict, **more) -> tuple[int, str]:
    role = {"name": "spva_database", "tasks_from": "preflight"}
    return play(tmp_path, [{"name": "Preflight", "ansible.builtin.include_role": role}], variables, **more)


@pytest.mark.parametrize(
    ("password", "clients"),
    [
        ("short", ["192.0.2.1 trust"]),
        ("blanks are out", ["all"]),
        ("fünfzehn-Zeichen", ["192.0.2.1/32,::/0"]),
    ],
    ids=["short", "blanks", "not ASCII"],
)
def test_each_wrong_variable_is_refused_with_a_sentence(tmp_path, password, clients):
    variables = {
        "spva_database_password": password,
        "spva_database_port": 0,
        "spva_database_listen": [],
        "spva_database_clients": clients,
        "spva_database_names": ["a b"],
        "spva_database_tls_certificate": "PEM",
        "spva_database_settings": {"ssl = off #": "x"},
    }
    status, said = preflight(tmp_path, variables, databases=2)
    assert status != 0
    for sentence in (
        "spva_database_password needs at least 12 characters",
        "spva_database_port is not a port",
        "spva_database_listen is empty",
        "spva_database_clients has something that is no address and no network",
        "neither a name of a host nor an address",
        "only one of spva_database_tls_certificate and spva_database_tls_key is set",
        "is no setting of postgresql.conf",
        "the group spva_database has more than one host",
    ):
        assert sentence in said


def test_nodes_of_which_this_run_knows_no_address_are_not_locked_out(tmp_path):
    status, said = preflight(tmp_path, {}, nodes={**TWO_NODES, "three": []})
    assert status != 0
    assert "the addresses of three are not known in this run" in said


def test_a_database_for_nobody_is_refused(tmp_path):
    status, said = preflight(tmp_path, {}, nodes={})
    assert status != 0
    assert "nobody could log in to the database" in said


@pytest.mark.parametrize(
    ("variables", "admitted"),
    [
        ({}, ["192.0.2.1/32", "192.0.2.2/32", "198.51.100.1/32"]),
        ({"spva_database_clients": ["192.0.2.0/24", "2001:db8::1"]}, ["192.0.2.0/24", "2001:db8::1/128"]),
    ],
    ids=["the nodes", "named"],
)
def test_nodes_alone_may_log_in_with_tls_and_a_password(tmp_path, variables, admitted):
    tasks = [
        {
            "name": "Preflight",
            "ansible.builtin.include_role": {"name": "spva_database", "tasks_from": "preflight"},
        },
        {"name": "Variables", "ansible.builtin.include_vars": {"file": str(ROLE / "defaults/main.yml")}},
        {"name": "More", "ansible.builtin.include_vars": {"file": str(ROLE / "vars/main.yml")}},
        {
            "name": "Template",
            "ansible.builtin.template": {
                "src": str(ROLE / "templates/pg_hba.conf.j2"),
                "dest": str(tmp_path / "pg_hba.conf"),
            },
        },
    ]
    status, said = play(tmp_path, tasks, variables)
    assert status == 0, said
    lines = [line.split() for line in (tmp_path / "pg_hba.conf").read_text().splitlines()]
    local, *remote = [words for words in lines if words and words[0] != "#"]
    assert local == ["local", "all", "postgres", "peer"]
    assert remote == [["hostssl", "spva", "spva", address, "scram-sha-256"] for address in admitted]


def test_the_server_gets_the_verifier_of_the_password():
    """The example of RFC 7677."""
    spec = importlib.util.spec_from_file_location("account", ROLE / "files/account.py")
    account = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(account)
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    assert account.verifier("pencil", salt, 4096) == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


def test_a_certificate_is_made_once_and_anew_for_other_names(tmp_path):
    def make(*names: str) -> str:
        # Its owner is the server's account, which only root can set.
        script = (ROLE / "files/certificate.sh").read_text().replace("chown postgres:postgres", ": chown")
        command = ["/bin/sh", "-c", script, "sh", tmp_path, *names]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def names() -> str:
        shown = ["openssl", "x509", "-in", tmp_path / "server.crt", "-noout", "-ext", "subjectAltName"]
        return subprocess.run(shown, capture_output=True, text=True, check=True).stdout

    assert make("db.example", "192.0.2.9", "2001:db8::9") == "made\n"
    assert "DNS:db.example, IP Address:192.0.2.9, IP Address:2001:DB8:0:0:0:0:0:9" in names()
    first = (tmp_path / "server.crt").read_bytes()
    assert make("db.example", "192.0.2.9", "2001:db8::9") == ""
    assert (tmp_path / "server.crt").read_bytes() == first
    assert make("db.example") == "made\n"
    assert "192.0.2.9" not in names()
    assert (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".certificate.*"))
