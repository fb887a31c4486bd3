"""A standby of the role spva_database: what is refused, and its programs with real servers."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.test_database_role import ROLE, play
from tests.deploy.test_templates import ROOT
from tests.helpers.ports import free_port
from tests.helpers.postgres import Server, binaries, owner, prefix

PAIR = {"spva_database_replication_password": "another-password"}
VERSION = binaries().parent.name


def data(state: str, timeline: int = 1, system: str = "7", version: str = "15") -> dict:
    return {
        "version": version, "state": state, "timeline": timeline, "system": system, "shape": "", "runs": True, "end": "0/1",
    }  # fmt: skip


def preflight(tmp_path: Path, here: dict, there: dict | None, variables: dict) -> tuple[int, str]:
    """Run the checks on this machine as one of two hosts; of the other one this run knows the data, or nothing."""
    facts = {"all_ipv4_addresses": ["192.0.2.9"], "cacheable": True}
    known = [{"spva_database_data": there}, facts] if there else []
    others = [
        {"name": "Facts", "ansible.builtin.set_fact": each, "delegate_to": "other1", "delegate_facts": True}
        for each in known
    ]
    role = {"name": "spva_database", "tasks_from": "preflight"}
    tasks = [*others, {"name": "Preflight", "ansible.builtin.include_role": role}]
    variables = {**PAIR, "spva_database_ask": ["echo", json.dumps(here)], **variables}
    return play(tmp_path, tasks, variables, databases=2)


OTHER = {"spva_database_primary": "other1"}


@pytest.mark.parametrize(
    ("here", "there", "variables", "sentence"),
    [
        (data("none"), data("none"), {}, ""),
        (data("standby"), data("primary"), OTHER, ""),
        (data("standby"), data("primary"), {}, "it is a standby, and the inventory has it as the primary"),
        (data("none"), data("standby"), {}, "it has no database, and other1 has one"),
        (data("primary"), data("primary", 2), {}, "other1 has taken over from it since"),
        (data("primary"), data("primary", 2), OTHER, "it has data of its own, and the inventory has it as a standby"),
        (data("standby"), data("primary", 1, "8"), OTHER, "it has a copy of another database than that of other1"),
        (data("standby"), data("primary", version="17"), OTHER, "a standby needs the same version"),
        (data("standby"), None, OTHER, "the addresses of other1 are not known in this run"),
        (
            data("standby"), None, {**OTHER, "spva_database_peers": ["192.0.2.9"]},
            "it is a standby of other1, which is not in this run",
        ),
        (
            data("none"), data("none"), {"spva_database_replication_password": "a-good-password"},
            "each node could copy the whole database",
        ),
        (data("none"), data("none"), {"spva_database_primary": "elsewhere"}, "is no host of the group spva_database"),
    ],
    ids=[
        "blank", "pair", "standby as primary", "lost primary", "taken over", "former primary", "another database",
        "another version", "addresses", "primary not in the run", "one password", "no host of the group",
    ],
)  # fmt: skip
def test_data_that_do_not_agree_with_the_inventory_are_left_as_they_are(
    tmp_path, here, there, variables, sentence
):
    status, said = preflight(tmp_path, here, there, variables)
    assert (status == 0) is not sentence, said
    assert sentence in said


def test_a_standby_is_told_how_it_reaches_its_primary_and_lets_the_others_in(tmp_path):
    """Its password as libpq reads it from a file, its connection, and the rules of who may log in."""
    variables = {
        **OTHER, "spva_database_replication_password": r"a:good\password", "spva_database_peers": ["192.0.2.9"],
        "spva_database_found": {"stdout": "/etc/postgresql/15/spva/postgresql.conf"},
    }  # fmt: skip
    wanted = {
        "pass": "{{ spva_database_pass }}",
        "conf": (ROLE / "templates/spva.conf.j2").read_text().replace("{{ ansible_managed }}", ""),
        "hba": (ROLE / "templates/pg_hba.conf.j2").read_text().replace("{{ ansible_managed }}", ""),
    }
    files = [
        {"name": "Variables", "ansible.builtin.include_vars": {"file": str(ROLE / f"{part}/main.yml")}}
        for part in ("defaults", "vars")
    ]
    made = [
        {
            "name": "Write",
            "ansible.builtin.copy": {"content": text, "dest": str(tmp_path / name), "mode": "0600"},
        }
        for name, text in wanted.items()
    ]
    status, said = play(tmp_path, [*files, *made], variables, databases=2)
    assert status == 0, said
    assert (tmp_path / "pass").read_text().strip() == r"a\:good\\password"
    conf = (tmp_path / "conf").read_text()
    assert "primary_conninfo = 'host=other1 port=5432 user=spva_replication " in conf
    assert (
        " sslmode=verify-full sslrootcert=/etc/postgresql/15/spva/peers.crt application_name=spva_localhost "
        in conf
    )
    assert "primary_slot_name = 'spva_localhost'" in conf
    assert "max_slot_wal_keep_size = '1GB'" in conf
    assert "good" not in conf
    lines = [line.split() for line in (tmp_path / "hba").read_text().splitlines() if "replication" in line]
    assert lines == [["hostssl", "replication", "spva_replication", "192.0.2.9/32", "scram-sha-256"]]


# ---------------------------------------------------------------------- programs, with real servers


class Host:
    """Directories as Debian's package has them, and the role's programs for them."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="spva-pg-"))
        self.home.chmod(0o755)
        self.data = self.home / f"lib/{VERSION}/spva"
        self.data.parent.mkdir(parents=True)
        self.configuration = self.home / f"etc/{VERSION}/spva"
        self.configuration.mkdir(parents=True)
        (self.configuration / "postgresql.conf").touch()

    def run(self, program: str, *arguments: str) -> tuple[int, str]:
        text = (ROLE / "files" / program).read_text()
        for there, here in (
            ("/var/lib/postgresql", str(self.home / "lib")),
            ("/etc/postgresql", str(self.home / "etc")),
            ("cut -d/ -f4", "rev | cut -d/ -f3 | rev"),
            ("-o postgres -g postgres", f"-o {owner()}"),
            ("runuser -u postgres --", " ".join(prefix())),
        ):
            text = text.replace(there, here)
        done = subprocess.run(
            ["/bin/sh", "-c", text, "sh", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        return done.returncode, done.stdout + done.stderr

    def state(self) -> dict:
        status, said = self.run("state.sh")
        assert status == 0, said
        return json.loads(said)


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    shutil.rmtree(made.home)


@pytest.fixture(scope="module")
def primary() -> Iterator[Server]:
    server = Server(fast=False)
    with (server.data / "pg_hba.conf").open("a") as rules:
        rules.write("host replication standby 127.0.0.1/32 scram-sha-256\n")
    with server:
        server.sql("CREATE ROLE standby LOGIN REPLICATION PASSWORD 'of-the-standby'")
        server.sql("SELECT pg_create_physical_replication_slot('spva_two', true)")
        yield server


def conninfo(host: Host, port: int, password: str = "of-the-standby") -> str:
    secret = host.home / "pass"
    secret.write_text(f"*:*:*:standby:{password}\n")
    shutil.chown(secret, owner())
    secret.chmod(0o600)
    return f"host=127.0.0.1 port={port} user=standby passfile={secret} connect_timeout=5"


def test_a_host_without_data_becomes_a_standby_that_can_be_promoted(host, primary):
    half = host.data.with_name("spva.new")
    half.mkdir()
    (half / "PG_VERSION").write_text(VERSION)
    assert host.state()["state"] == "none"
    status, said = host.run("basebackup.sh", VERSION, conninfo(host, primary.port), "spva_two")
    assert status == 0, said
    assert not half.exists(), "a copy that was interrupted is made anew"
    its = host.state()
    assert its["state"] == "standby"
    assert its["timeline"] == 1
    assert its["system"] == str(primary.sql("SELECT system_identifier FROM pg_control_system()")[0][0])


def test_what_pg_createcluster_has_made_gives_way_and_other_data_do_not(host, primary):
    shutil.copytree(primary.data, host.data, ignore=shutil.ignore_patterns("*.pid", "*.opts"))
    assert host.state()["state"] == "primary"
    status, said = host.run("basebackup.sh", VERSION, conninfo(host, primary.port), "spva_two")
    assert status == 1
    assert "has data already, and was not changed" in said
    assert not (host.data / "standby.signal").exists()
    blank = host.data.with_name("spva.blank")
    blank.touch()
    assert host.state()["state"] == "none"
    status, said = host.run("basebackup.sh", VERSION, conninfo(host, primary.port), "spva_two")
    assert status == 0, said
    assert host.state()["state"] == "standby"
    assert not blank.exists()


@pytest.mark.parametrize(
    ("password", "is_up", "slot", "sentence"),
    [
        ("wrong", True, "spva_two", "the primary has another spva_database_replication_password"),
        ("of-the-standby", False, "spva_two", "the primary cannot be reached"),
        ("of-the-standby", True, "spva_three", "the primary has no usable slot spva_three"),
    ],
    ids=["password", "unreachable", "slot"],
)
def test_a_copy_that_fails_says_why_and_leaves_nothing(host, primary, password, is_up, slot, sentence):
    port = primary.port if is_up else free_port()
    status, said = host.run("basebackup.sh", VERSION, conninfo(host, port, password), slot)
    assert status == 1
    assert f"no copy of the primary was made: {sentence}" in said
    assert "Traceback" not in said
    assert password not in said
    assert list(host.data.parent.iterdir()) == []


def test_a_copy_for_which_the_disk_is_too_small_says_so(host, primary):
    """A file system of one megabyte, in a mount namespace of its own."""
    program = (ROLE / "files/basebackup.sh").read_text()
    status, said = host.run("basebackup.sh", VERSION, conninfo(host, primary.port), "spva_two")
    assert status == 0, said
    shutil.rmtree(host.data)
    text = program.replace("/var/lib/postgresql", str(host.home / "lib"))
    text = text.replace("-o postgres -g postgres", f"-o {owner()}").replace(
        "runuser -u postgres --", " ".join(prefix())
    )
    mount = f'mount -t tmpfs -o size=1m,mode=755 none "{host.data.parent}"\n'
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", mount + text, "sh", VERSION, conninfo(host, primary.port), "spva_two"],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the disk of this host is full" in done.stderr


def test_a_primary_whose_place_was_taken_is_not_started(host):
    with Server(fast=False) as server:
        standby = server.standby()
        try:
            standby.start()
            shutil.copytree(server.data, host.data, ignore=shutil.ignore_patterns("*.pid", "*.opts"))
            peers = host.configuration / "peers"
            peers.write_text(f"other host={standby.directory} port={standby.port} user=postgres\n")
            assert host.run("guard.sh", VERSION) == (0, "")
            standby.promote()
            standby.sql("CHECKPOINT")
            status, said = host.run("guard.sh", VERSION)
            assert status == 1
            assert "not started: other has taken over from this host (timeline 2, here 1)" in said
            (host.data / "standby.signal").touch()
            assert host.run("guard.sh", VERSION) == (0, ""), "a standby of the other one may start"
            (host.data / "standby.signal").unlink()
        finally:
            standby.close()
        assert host.run("guard.sh", VERSION) == (0, ""), "an other one that is silent forbids nothing"


def test_standbys_that_may_log_in_stay_known_while_their_hosts_are_away(host):
    assert host.state()["admitted"] == []
    lines = "hostssl  spva  spva  192.0.2.1/32  x\nhostssl  replication  spva_replication  192.0.2.9/32  x\n"
    (host.configuration / "pg_hba.conf").write_text(lines * 2)
    assert host.state()["admitted"] == ["192.0.2.9/32", "192.0.2.9/32"]


def test_slots_are_those_of_the_standbys_and_a_lost_one_is_made_anew(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("account", ROLE / "files/account.py")
    account = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(account)
    with Server("max_slot_wal_keep_size=1MB", fast=False) as server:
        monkeypatch.setenv("PGHOST", str(server.directory))
        monkeypatch.setenv("PGUSER", "postgres")

        def give(*wanted: str) -> str:
            account.give_slots(str(server.port), list(wanted))
            return capsys.readouterr().out

        assert give("spva_a", "spva_b") == "CREATE SLOT spva_a\nCREATE SLOT spva_b\n"
        assert give("spva_a", "spva_b") == ""
        assert give("spva_a") == "DROP SLOT spva_b\n"
        server.sql("SELECT pg_create_physical_replication_slot('of_another', true)")
        for _ in range(3):
            server.sql("SELECT pg_switch_wal()")
            server.sql("CHECKPOINT")
        lost = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'spva_a'"
        assert server.sql(lost) == [("lost",)], "the disk of the primary is safe from a standby that is gone"
        assert give("spva_a") == "DROP SLOT spva_a\nCREATE SLOT spva_a\n"
        assert server.sql(lost) == [("reserved",)]
        names = server.sql("SELECT slot_name FROM pg_replication_slots ORDER BY 1")
        assert names == [("of_another",), ("spva_a",)]


# ---------------------------------------------------------------------- playbooks


def playbook(tmp_path: Path, name: str, hosts: dict[str, dict | None], *arguments: str) -> tuple[int, str]:
    """Run a playbook for hosts that have these data. None: it cannot be reached."""
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    found = {host: here if its else away for host, its in hosts.items()}
    (tmp_path / "hosts.yml").write_text(
        yaml.safe_dump({"all": {"children": {"spva_database": {"hosts": found}}}})
    )
    said = {host: json.dumps(its) for host, its in hosts.items()}
    (tmp_path / "extra.json").write_text(
        json.dumps(
            {
                "ansible_become": False,
                "said": said,
                "spva_database_ask": ["echo", "{{ said[inventory_hostname] }}"],
            }
        )
    )
    done = subprocess.run(
        [
            Path(sys.executable).parent / "ansible-playbook", f"--inventory={tmp_path / 'hosts.yml'}", "--check",
            f"--extra-vars=@{tmp_path / 'extra.json'}", ROOT / "playbooks" / name, *arguments,
        ],
        capture_output=True, text=True, check=False, timeout=200, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("hosts", "arguments", "sentence"),
    [
        ({"db1": data("primary"), "db2": data("standby")}, [], "name the host that becomes the primary: -e primary=HOST, one of db1, db2"),
        ({"db1": data("primary"), "db2": None}, ["primary=db2"], "db2 cannot be reached"),
        ({"db1": data("primary"), "db2": data("none")}, ["primary=db2"], "db2 has no database"),
        (
            {"db1": data("primary"), "db2": {**data("standby"), "runs": False}}, ["primary=db2"],
            "PostgreSQL does not run on db2",
        ),
        ({"db1": None, "db2": data("standby")}, ["primary=db2"], "db1 cannot be reached, and may still take commits"),
        ({"db1": data("primary"), "db2": data("primary", 2)}, ["primary=db1"], "db2 has taken over from db1 since"),
        (
            {"db1": None, "db2": {**data("standby"), "end": "9/FF"}, "db3": {**data("standby"), "end": "A/1"}},
            ["primary=db2", "fenced=db1"], "db3 has received more than db2",
        ),
    ],
    ids=["nobody", "away", "blank", "stopped", "a silent primary", "out of date", "behind another"],
)  # fmt: skip
def test_nothing_is_promoted_that_would_do_harm(tmp_path, hosts, arguments, sentence):
    status, said = playbook(tmp_path, "promote.yml", hosts, *(f"--extra-vars={word}" for word in arguments))
    assert status != 0
    assert sentence in said
    assert "nothing was changed" in said
    assert "Stop the former primary" not in said


@pytest.mark.parametrize(
    ("hosts", "arguments", "sentence"),
    [
        ({"db1": data("primary"), "db2": data("standby")}, [], "name the host that becomes a standby"),
        ({"db1": data("primary"), "db2": data("standby")}, ["standby=db1"], "db1 is the primary by the inventory"),
        (
            {"db1": {**data("primary", 2), "runs": False}, "db2": data("primary")}, ["standby=db2"],
            "db1, the primary by the inventory, cannot be reached or takes no commits",
        ),
        (
            {"db1": data("primary"), "db2": data("primary")}, ["standby=db2"],
            "db2 has a database that db1 has not taken over",
        ),
    ],
    ids=["nobody", "the primary", "no primary", "two primaries"],
)  # fmt: skip
def test_no_data_are_moved_aside_that_may_be_the_last(tmp_path, hosts, arguments, sentence):
    status, said = playbook(tmp_path, "standby.yml", hosts, *(f"--extra-vars={word}" for word in arguments))
    assert status != 0
    assert sentence in said
    assert "nothing was changed" in said
