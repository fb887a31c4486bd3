"""The role spva_cms for several nodes: what it refuses, which database it takes, and what the service is told of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.test_templates import ROOT, check, render, run_play

PASSWORD = {"spva_cms_cert_auth_password": "x" * 12}
URL = "postgresql+psycopg://spva@db.example:5432/spva"


def preflight(tmp_path: Path, variables: dict, *, nodes: int = 2) -> tuple[int, str]:
    """Run the role's checks on this machine as one of several nodes; none has a database server but by ``variables``."""
    hosts = {"localhost": {}, **{f"node{number}": {} for number in range(1, nodes)}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": {"spva_cms": {"hosts": hosts}}}}))
    role = {"name": "spva_cms", "tasks_from": "preflight"}
    play = {"name": "Role", "tasks": [{"name": "Preflight", "ansible.builtin.include_role": role}]}
    done = run_play(tmp_path, play, {**PASSWORD, **variables}, tmp_path / "hosts.yml")
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def test_several_nodes_need_a_database_server(tmp_path):
    status, said = preflight(tmp_path, {})
    assert status != 0
    assert "the group spva_cms has more than one host, and several nodes need one database server" in said


def test_several_nodes_with_a_database_server_are_good(tmp_path):
    status, said = preflight(tmp_path, {"spva_cms_db": URL})
    assert status == 0, said


def test_each_wrong_variable_is_refused_with_a_sentence(tmp_path):
    variables = {
        "spva_cms_db": "mysql://spva:a-secret@db.example/spva",
        "spva_cms_db_tls_ca": "/etc/ssl/ca.pem",
        "spva_cms_node": "node one",
        "spva_cms_ca_key": "softhsm:ca?pin-value=1234",
        "spva_cms_ca_certificate": "-----BEGIN PRIVATE KEY-----",
        "spva_cms_token_devices": ["/etc/shadow"],
    }
    status, said = preflight(tmp_path, variables)
    assert status != 0
    for sentence in (
        "spva_cms_db is no URL of a PostgreSQL database",
        "spva_cms_db has a password in it",
        "spva_cms_db_tls_ca is not PEM text",
        "spva_cms_node needs 1 to 64 letters",
        "spva_cms_ca_key is no PKCS#11 URI",
        "spva_cms_ca_key has the PIN in it",
        "spva_cms_ca_certificate is not PEM text with certificates alone",
        "spva_cms_token_devices has something that is no device",
    ):
        assert sentence in said


def test_parts_of_the_package_that_the_service_needs_are_asked_for(tmp_path):
    variables = {"spva_common_extras": ["ioc"], "spva_cms_db": URL, "spva_cms_ca_key": "pkcs11:token=site"}
    status, said = preflight(tmp_path, variables)
    assert status != 0
    for part in (
        "part cms",
        "spva_cms_db needs the part postgresql",
        "spva_cms_ca_key needs the part pkcs11",
    ):
        assert part in said
    status, said = preflight(tmp_path, {**variables, "spva_common_extras": ["cms", "postgresql", "pkcs11"]})
    assert status == 0, said


@pytest.mark.parametrize(
    ("database", "expected"),
    [
        ({}, ["", "", False]),
        ({"db.example": {}}, ["postgresql+psycopg://spva@db.example:5432/spva", "p" * 12, True]),
        (
            {"db": {"ansible_host": "192.0.2.9", "spva_database_port": 5433}},
            ["postgresql+psycopg://spva@192.0.2.9:5433/spva", "p" * 12, True],
        ),
        (
            {"db": {"spva_database_tls_key": "PEM"}},
            ["postgresql+psycopg://spva@db:5432/spva", "p" * 12, False],
        ),
        (
            {"db1": {}, "db2": {"ansible_host": "192.0.2.9", "spva_database_port": 5433}},
            ["postgresql+psycopg://spva@/spva?host=db1:5432&host=192.0.2.9:5433", "p" * 12, True],
        ),
    ],
    ids=["none", "by name", "by address", "with the site's certificate", "with a standby"],
)
def test_the_database_is_that_of_the_group(tmp_path, database, expected):
    """Its URL, its password, and whether the certificate that the role spva_database makes proves who it is."""
    common = {"spva_database_password": "p" * 12} if database else {}
    groups = {"spva_cms": {"hosts": {"localhost": common}}}
    if database:
        groups["spva_database"] = {"hosts": database}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    wanted = "{{ [spva_cms_db, spva_cms_db_password, spva_cms_db_pinned | bool] | to_json }}"
    files = [str(ROOT / f"roles/spva_cms/{name}/main.yml") for name in ("defaults", "vars")]
    tasks = [
        {
            "name": "Write",
            "ansible.builtin.copy": {"content": wanted, "dest": str(tmp_path / "found"), "mode": "0600"},
        }
    ]
    play = {"name": "Show", "vars_files": files, "tasks": tasks}
    done = run_play(tmp_path, play, PASSWORD, tmp_path / "hosts.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "found").read_text()) == expected


def test_the_service_accepts_its_configuration_of_a_node(tmp_path):
    (tmp_path / "ca.pem").write_text("PEM")
    text = render(
        tmp_path, "spva_cms", "cms.yml.j2", **PASSWORD,
        spva_cms_db=URL, spva_cms_db_password="p" * 12, spva_cms_db_tls_ca="BEGIN CERTIFICATE", spva_cms_node="node-1.example",
    )  # fmt: skip
    document = yaml.safe_load(text)
    assert document["db"] == URL
    assert document["node"] == "node-1.example"
    assert document["db_password"] == "${credential:db-password}"
    assert "p" * 12 not in text
    text = text.replace("/etc/spva/pvacms.acf", str(tmp_path / "none.acf"))
    (tmp_path / "cms.yml").write_text(text.replace("/etc/spva/cms-database.pem", str(tmp_path / "ca.pem")))
    check(
        tmp_path, "appliance.cli.pvacms", "--config", str(tmp_path / "cms.yml"), "--check-config",
        credentials=("cert-auth-password", "db-password"),
    )  # fmt: skip


def test_a_node_is_started_again_for_as_long_as_its_database_is_away(tmp_path):
    one = render(tmp_path, "spva_cms", "site.conf.j2", **PASSWORD, spva_cms_db="")
    assert "StartLimitIntervalSec" not in one
    several = render(
        tmp_path, "spva_cms", "site.conf.j2", **PASSWORD, spva_cms_db=URL, spva_cms_db_password="p" * 12
    )
    unit, service = several.split("[Service]")
    assert "\nStartLimitIntervalSec=0\n" in unit
    assert "\nRestartSec=10\n" in service
    assert "LoadCredential=db-password:/etc/spva/credentials/cms/db-password" in service
    assert "p" * 12 not in several


def test_a_token_gets_its_devices_and_its_pin_and_no_others(tmp_path):
    key = {"spva_cms_ca_key": "pkcs11:token=site?module-path=/usr/lib/t.so", "spva_cms_ca_key_pin": "7531"}
    text = render(
        tmp_path, "spva_cms", "site.conf.j2", **key, spva_cms_token_devices=["/dev/bus/usb/001/002"]
    )
    assert text.endswith("\nPrivateDevices=no\nDeviceAllow=/dev/bus/usb/001/002\n")
    assert "LoadCredential=ca-key-pin:" in text
    assert "cert-auth-password" not in text
    assert "7531" not in text
    assert "PrivateDevices" not in render(tmp_path, "spva_cms", "site.conf.j2", **key)


def role_of(tmp_path: Path, nodes: dict, tasks: list, **variables) -> tuple[int, str]:
    """Run tasks with what the role spva_common knows, on this machine, which none of the nodes is."""
    groups = {"spva_cms": {"hosts": nodes}, "others": {"hosts": {"localhost": {}}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": groups}}))
    play = {"name": "Role", "roles": ["spva_common"], "tasks": tasks}
    done = run_play(tmp_path, play, variables, tmp_path / "hosts.yml")
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("nodes", "variables", "expected"),
    [
        ({"node0": {}}, {}, ("", None)),
        ({"node0": {}, "node1": {"ansible_host": "192.0.2.7"}}, {}, ("node0 192.0.2.7", None)),
        (
            {"node0": {"spva_cms_intf_addr_list": ["192.0.2.8", "192.0.2.9"]}, "node1": {"spva_cms_server_port": 5085}},
            {
                "spva_common_addr_list": "{{ ['192.0.2.255'] + spva_common_cms_addresses }}",
                "spva_common_name_servers": "{{ spva_common_cms_name_servers }}",
            },
            ("192.0.2.255 192.0.2.8 node1", "192.0.2.8:5075 node1:5085"),
        ),
    ],
    ids=["one node", "two nodes", "the site's own list"],
)  # fmt: skip
def test_clients_know_where_all_nodes_are(tmp_path, nodes, variables, expected):
    out = tmp_path / "pva.env"
    source = str(ROOT / "roles/spva_common/templates/pva.env.j2")
    write = {"name": "Write", "ansible.builtin.template": {"src": source, "dest": str(out), "mode": "0600"}}
    status, said = role_of(tmp_path, nodes, [write], **variables)
    assert status == 0, said
    found = dict(line.split("=", 1) for line in out.read_text().splitlines() if "=" in line)
    assert found["EPICS_PVA_ADDR_LIST"] == f'"{expected[0]}"'
    assert found.get("EPICS_PVA_NAME_SERVERS") == (f'"{expected[1]}"' if expected[1] else None)


def test_the_trust_anchor_is_asked_of_each_node_until_one_has_it(tmp_path):
    """None has it here: the first cannot be reached, the second is this machine."""
    nodes = {
        "absent": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1},
        "blank": {"ansible_connection": "local"},
    }
    tasks = [{"name": "Read", "ansible.builtin.include_role": {"name": "spva_common", "tasks_from": "trust_anchor"}}]  # fmt: skip
    status, said = role_of(tmp_path, nodes, tasks)
    assert status != 0
    assert "no host of the certificate service has given its trust anchor: absent, Task failed: " in said
    assert "Connection refused; blank, there is no certificate service on this host" in said


@pytest.mark.parametrize("databases", [[], ["db1", "db2"]], ids=["a file", "two hosts"])
def test_a_restore_begins_where_no_host_has_a_database(tmp_path, databases):
    hosts = {"spva_cms": {"hosts": {"localhost": {}}}}
    if databases:
        hosts["spva_database"] = {"hosts": {name: {"ansible_connection": "local"} for name in databases}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": hosts}}))
    (tmp_path / "cms.tar").touch()
    role = {"name": "spva_cms", "tasks_from": "restorable"}
    play = {"name": "Role", "tasks": [{"name": "Look", "ansible.builtin.include_role": role}]}
    done = run_play(tmp_path, play, {**PASSWORD, "backup": str(tmp_path / "cms.tar")}, tmp_path / "hosts.yml")
    assert done.returncode == 0, done.stdout + done.stderr
