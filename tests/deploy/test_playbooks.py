"""What playbooks say when there is nobody to talk to: no host is needed for that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
