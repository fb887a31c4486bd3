"""What playbooks say when there is nobody to talk to: no host is needed for that."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.deploy.test_templates import run_play

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = """\
all:
  vars: {ansible_host: 127.0.0.1, ansible_port: 1, ansible_ssh_common_args: -o ConnectTimeout=2}
  children:
    spva_ioc:
      hosts:
        ioc1: {spva_keychain_list: [{name: demo}]}
        ioc2: {spva_keychain_list: [{name: host}]}
"""


@pytest.fixture
def play(tmp_path):
    (tmp_path / "hosts.yml").write_text(INVENTORY)

    def run(playbook: str, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [
                Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.yml",
                ROOT / "playbooks" / playbook, *arguments,
            ],
            capture_output=True, text=True, check=False, timeout=100, cwd=ROOT,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        )  # fmt: skip
        return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)

    return run


def test_status_tells_of_hosts_that_cannot_be_reached(play):
    status, said = play("status.yml")
    assert status != 0
    assert re.search(r"ioc1 - - - - cannot be reached ioc2 - - - - cannot be reached", said)
    assert "not well: ioc1, -, cannot be reached; ioc2, -, cannot be reached" in said


def test_rotating_a_keychain_that_nobody_has_is_refused_with_what_there_is(play):
    status, said = play("rotate.yml", "-e", "keychain=dmeo")
    assert status != 0
    assert "no host has a keychain dmeo; there are: demo, host" in said


def tasks_of(path: str) -> list[dict]:
    """Every task of a playbook or a role's file, those in blocks too."""
    found, left = [], yaml.safe_load((ROOT / path).read_text())
    while left:
        each = left.pop(0)
        inner = [task for part in ("tasks", "block", "always") for task in each.get(part, [])]
        left += inner
        found += [] if inner else [each]
    return found


@pytest.mark.parametrize(
    ("path", "name", "variable"),
    [
        ("playbooks/authority.yml", "Copy the certificates to the host", "chain"),
        ("playbooks/authority.yml", "Copy the request to this machine", "request"),
        ("roles/spva_cms/tasks/restore.yml", "Unpack the service's state", "backup"),
    ],
)
def test_a_relative_name_of_a_file_counts_from_where_ansible_playbook_was_started(
    tmp_path, path, name, variable
):
    """As the how-to has them. Ansible itself looks beside the playbook: a restore had stopped the nodes when it found no backup there."""
    task = next(task for task in tasks_of(path) if task["name"] == name)
    module = next(key for key in task if key.startswith("ansible.builtin."))
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "ca.pem").write_text("ca")
    subprocess.run(["tar", "-cf", here / "cms.tar", "-C", here, "ca.pem"], check=True)
    given = {"chain": here / "ca.pem", "request": here / "ca.csr", "backup": here / "cms.tar"}[variable]
    # Not on the service's host, and not for its account.
    changed = {key: value for key, value in task[module].items() if key not in ("owner", "group")}
    if variable != "request":
        changed["dest"] = str(there / "ca.pem" if variable == "chain" else there)
    play = {"tasks": [{**task, module: changed}]}
    relative = os.path.relpath(given, ROOT)
    pem = "-----BEGIN CERTIFICATE REQUEST-----\nAA\n-----END CERTIFICATE REQUEST-----"
    values = {variable: relative, "spva_authority_files": [relative], "spva_cms_said": {"stdout": pem}}
    done = run_play(tmp_path, play, values)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (here / "ca.csr" if variable == "request" else there / "ca.pem").is_file()


# ---------------------------------------------------------------------- on this machine


@pytest.fixture
def here(tmp_path):
    """Runs a playbook with this machine as the host of the certificate service, and ``pvacms`` of this environment."""
    (tmp_path / "hosts.yml").write_text(
        yaml.safe_dump({"all": {"children": {"spva_cms": {"hosts": {"cms1": None}}}}})
    )
    (tmp_path / "pvacms.yml").write_text("{}\n")
    (tmp_path / "pvacms.yml").chmod(0o600)
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        "spva_cms_run": [
            sys.executable,
            "-m",
            "appliance.cli.pvacms",
            "--config",
            str(tmp_path / "pvacms.yml"),
        ],
        "spva_cms_backup_store": str(tmp_path / "backups"),
        "spva_keychain_list": [{"name": "demo"}],
    }
    (tmp_path / "variables.json").write_text(json.dumps(variables))

    def run(playbook: Path | str, *arguments: str, **environ: str) -> tuple[int, str]:
        done = subprocess.run(
            [
                Path(sys.executable).parent / "ansible-playbook", "-i", tmp_path / "hosts.yml",
                "-e", f"@{tmp_path / 'variables.json'}", ROOT / "playbooks" / playbook, *arguments,
            ],
            capture_output=True, text=True, check=False, timeout=200, cwd=ROOT,
            env={
                **os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
                "XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_DATA_HOME": str(tmp_path / "data"), **environ,
            },
        )  # fmt: skip
        return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)

    return run


@pytest.mark.parametrize(
    ("playbook", "variable", "what"),
    [
        (
            "authority.yml",
            "request=ca.csr",
            "a key would be made on cms1, and its request written to .*/ca.csr",
        ),
        (
            "authority.yml",
            "chain=pyproject.toml",
            "cms1 would make an authority of the chain in pyproject.toml",
        ),
        ("authority.yml", "unused=1", "cms1 would make a new root"),
        ("backup.yml", "unused=1", ""),
        ("revoke.yml", "certificate=47530d89:1181554912", ""),
        ("rotate.yml", "keychain=demo", "would be rotated"),
    ],
)
def test_in_check_mode_a_playbook_succeeds_and_makes_nothing(tmp_path, here, playbook, variable, what):
    if variable == "request=ca.csr":
        variable = f"request={tmp_path / 'ca.csr'}"
    before = sorted(tmp_path.rglob("*"))
    status, said = here(playbook, "--check", "-e", variable)
    assert status == 0, said
    assert re.search(what, said)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_request_for_an_authority_is_written_to_this_machine(tmp_path, here):
    file = tmp_path / "ca.csr"
    status, said = here("authority.yml", "-e", f"request={file}")
    assert status == 0, said
    assert f"The request is in {file}. Its key stays on cms1" in said
    request = x509.load_pem_x509_csr(file.read_bytes())
    assert request.is_signature_valid
    (key,) = tmp_path.rglob("*.p12.request")
    assert request.public_key() == load_pem_private_key(key.read_bytes(), None).public_key()


SYSTEMCTL = """#!/bin/sh
case "$*" in
*list-units*) echo "spva-cms.service loaded active running" ;;
*StatusText*) echo "issuer 47530d89, 3 certificates" ;;
*NRestarts*) echo 0 ;;
*MainPID*) echo "$SERVES" ;;
*) exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("runs", "health"),
    [("9.0.0", "OK, issuer 47530d89, 3 certificates"), ("8.9.1", "runs release 8.9.1, restart it")],
)
def test_status_tells_of_a_node_that_runs_another_release_than_is_installed(tmp_path, here, runs, health):
    """Its process says which one, as it runs from the directory of its release. There is no systemd to ask here."""
    release = tmp_path / "spva/current/.complete"
    release.parent.mkdir(parents=True)
    release.write_text("9.0.0 0123abcd\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "systemctl").chmod(0o755)
    book = tmp_path / "playbooks"
    shutil.copytree(ROOT / "playbooks", book)
    script = book / "files/status.sh"
    text = script.read_text()
    for path in ("/opt/spva", "/run/spva-status"):
        assert path in text
        text = text.replace(path, str(tmp_path / path.rpartition("/")[2]))
    script.write_text(text)
    name = tmp_path / f"spva/releases/{runs}/bin/python"
    with subprocess.Popen([name, "60"], executable="/bin/sleep") as node:
        try:
            status, said = here(
                book / "status.yml", SERVES=str(node.pid), PATH=f"{programs}:{os.environ['PATH']}"
            )
        finally:
            node.kill()
    assert f"cms1 spva-cms - - - {health}" in said
    assert "cms1 release 9.0.0 - - - OK" in said
    is_well = health.startswith("OK")
    assert (status == 0) is is_well, said
    assert (f"not well: cms1, spva-cms, {health}" in said) is not is_well
