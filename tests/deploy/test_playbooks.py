"""What playbooks say when there is nobody to talk to: no host is needed for that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
