"""Roles keep their word: every variable is described, has the default that is described, and is documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(path: Path):
    return yaml.safe_load(path.read_text())


def options(role: str) -> dict:
    return load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def test_all_roles_are_there():
    assert ROLES == ["spva_cms", "spva_common", "spva_ioc", "spva_issuer", "spva_keychain", "spva_tools"]


@pytest.mark.parametrize("role", ROLES)
def test_defaults_equal_argument_specs(role):
    described = {name: spec["default"] for name, spec in options(role).items() if not spec.get("required")}
    assert load(ROOT / "roles" / role / "defaults/main.yml") == described


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_the_roles_own_and_described(role):
    for name, spec in options(role).items():
        assert name.startswith(f"{role}_")
        assert spec["description"].endswith(".")
        assert spec["type"]


@pytest.mark.parametrize("role", ROLES)
def test_secrets_are_marked(role):
    for name, spec in options(role).items():
        if re.search(r"password|secret|tls_key$|credentials", name):
            assert spec.get("no_log") is True, name


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_in_the_reference(role):
    text = (ROOT / "docs/reference/ansible.md").read_text()
    missing = [name for name in options(role) if f"`{name}`" not in text]
    assert not missing


@pytest.mark.parametrize("role", ROLES)
def test_role_starts_with_checks_that_change_nothing(role):
    """Preflight runs on every host before anything changes anywhere: only modules that read may be in it."""
    harmless = {"assert", "validate_argument_spec", "set_fact", "slurp", "stat", "command"}
    for task in load(ROOT / "roles" / role / "tasks/preflight.yml"):
        modules = [key.removeprefix("ansible.builtin.") for key in task if key.startswith("ansible.builtin.")]
        assert modules, task
        assert set(modules) <= harmless, task
        if "command" in modules:
            assert task["changed_when"] is False
            assert task["check_mode"] is False


def every_task(node):
    if isinstance(node, dict):
        if any(key.startswith("ansible.builtin.") for key in node):
            yield node
        for value in node.values():
            yield from every_task(value)
    elif isinstance(node, list):
        for value in node:
            yield from every_task(value)


def test_files_with_secrets_show_nothing():
    """What writes a credential is silent: no log, no diff."""
    tasks = list(every_task(load(ROOT / "roles/spva_common/tasks/credentials.yml")))
    writer = next(task for task in tasks if "ansible.builtin.copy" in task)
    assert writer["no_log"] is True
    assert writer["diff"] is False
    assert writer["ansible.builtin.copy"]["mode"] == "0600"


@pytest.mark.parametrize("role", ROLES)
def test_templates_of_configuration_are_validated_by_the_daemon(role):
    for path in (ROOT / "roles" / role / "tasks").glob("*.yml"):
        for task in every_task(load(path)):
            template = task.get("ansible.builtin.template")
            if template and template["src"].endswith((".yml.j2", ".acf.j2")):
                assert re.search(r"--check-config|acf-test", template["validate"]), task["name"]


def test_no_environment_carries_a_secret():
    """sudo logs the environment that Ansible sets: secrets must not get there."""
    for path in [*(ROOT / "roles").rglob("*.yml"), *(ROOT / "playbooks").rglob("*.yml")]:
        for task in every_task(load(path)):
            assert not re.search(r"passw|secret|token", str(task.get("environment", "")), re.IGNORECASE), path
