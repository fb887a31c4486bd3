"""Check that every variable of the roles is described, documented, and has the default that is described."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import ansible_page

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())


def load(path: Path):
    return yaml.safe_load(path.read_text())


def options(role: str) -> dict:
    return load(ROOT / "roles" / role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def test_all_roles_are_there():
    assert ROLES == [
        "spva_base", "spva_cms", "spva_common", "spva_database", "spva_gateway", "spva_ioc", "spva_issuer", "spva_keychain",
        "spva_tools",
    ]  # fmt: skip


def test_every_role_gets_the_common_variables_by_its_dependency_and_the_dependency_does_nothing():
    for role in ROLES:
        wanted = [] if role == "spva_common" else [{"role": "spva_common"}]
        assert load(ROOT / "roles" / role / "meta/main.yml")["dependencies"] == wanted, role
    assert not (ROOT / "roles/spva_common/tasks/main.yml").exists()


@pytest.mark.parametrize("role", ROLES)
def test_defaults_equal_argument_specs(role):
    described = {name: spec["default"] for name, spec in options(role).items() if not spec.get("required")}
    defaults = ROOT / "roles" / role / "defaults/main.yml"
    assert (load(defaults) if defaults.exists() else {}) == described


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_the_roles_own_and_described(role):
    assert all(name.startswith(f"{role}_") for name in options(role))
    for name, spec in named(options(role)):
        assert spec["description"].endswith("."), name
        assert spec["type"], name


def named(described: dict):
    """Yield every variable with its description, and every key below it."""
    for name, spec in described.items():
        yield name, spec
        yield from named(spec.get("options", {}))


@pytest.mark.parametrize("role", ROLES)
def test_secrets_are_marked(role):
    for name, spec in named(options(role)):
        if re.search(r"password|secret|tls_key$|credentials", name):
            assert spec.get("no_log") is True, name


def test_the_reference_has_every_role_every_variable_and_every_key_below_it():
    text = ansible_page.PAGE.read_text()
    assert sorted(ansible_page.documented(text)) == ROLES
    assert text == ansible_page.page(text), "write it anew: python -m tests.helpers.ansible_page"


def test_the_base_role_starts_with_the_common_checks():
    first = load(ROOT / "roles/spva_base/tasks/main.yml")[0]
    assert first["ansible.builtin.import_role"] == {"name": "spva_common", "tasks_from": "preflight"}


@pytest.mark.parametrize("role", [role for role in ROLES if role != "spva_base"])
def test_role_starts_with_checks_that_change_nothing(role):
    """The preflight checks run on every host before anything changes anywhere: only modules that read may be in them."""
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
def test_an_undefined_variable_is_never_lost_in_a_loop(role):
    """Ansible drops what a method is given if it is undefined (``set _ = found.append(...)``); an assignment keeps the error."""
    for path in (ROOT / "roles" / role).rglob("*.yml"):
        assert not re.search(r"set _ = ", path.read_text()), path


@pytest.mark.parametrize("role", ROLES)
def test_templates_of_configuration_are_validated_by_the_daemon(role):
    for path in (ROOT / "roles" / role / "tasks").glob("*.yml"):
        for task in every_task(load(path)):
            template = task.get("ansible.builtin.template")
            # What is in oauth.yml.j2 needs the unit's credentials: test_keychain_role.py has authnjwt's own reader read it.
            if (
                template
                and template["src"].endswith((".yml.j2", ".acf.j2"))
                and template["src"] != "oauth.yml.j2"
            ):
                assert re.search(r"--check-config|acf-test", template["validate"]), task["name"]


def test_no_environment_carries_a_secret():
    """sudo logs the environment that Ansible sets: secrets must not get there."""
    for path in [*(ROOT / "roles").rglob("*.yml"), *(ROOT / "playbooks").rglob("*.yml")]:
        for task in every_task(load(path)):
            assert not re.search(r"passw|secret|token", str(task.get("environment", "")), re.IGNORECASE), path


@pytest.mark.parametrize(
    "path", sorted((ROOT / "roles").glob("*/tasks/*.yml")), ids=lambda p: "/".join(p.parts[-3::2])
)
def test_apt_is_asked_in_one_place_for_what_is_missing_alone(path):
    """A host that has all packages must not need an archive."""
    apt = [task for task in every_task(load(path)) if "ansible.builtin.apt" in task]
    if path.parts[-3:] != ("spva_common", "tasks", "packages.yml"):
        assert not apt
        return
    (task,) = apt
    assert task["ansible.builtin.apt"]["name"] == "{{ spva_common_missing }}"
    assert "spva_common_missing | length > 0" in task["when"]


def test_the_test_hosts_have_the_packages_that_roles_ask_for_and_no_others():
    asked = set()
    for path in (ROOT / "roles").glob("*/defaults/main.yml"):
        found = load(path) or {}
        asked.update(*(value for name, value in found.items() if name.endswith("_packages")))
    for path in (ROOT / "roles").glob("*/tasks/*.yml"):
        for task in every_task(load(path)):
            need = task.get("vars", {}).get("spva_common_need", "")
            asked.update(need if isinstance(need, list) else ())
    (archived,) = re.findall(
        r'^ARCHIVED="([^"]*)"$', (ROOT / "molecule/hosts/spva-hosts").read_text(), re.MULTILINE
    )
    assert set(archived.split()) == asked


@pytest.mark.parametrize(
    ("there", "missing"),
    [(["dpkg"], []), (["dpkg", "no-such-package-anywhere"], ["no-such-package-anywhere"])],
)
def test_what_is_missing_is_told_by_dpkg(tmp_path, there, missing):
    play = tmp_path / "play.yml"
    tasks = load(ROOT / "roles/spva_common/tasks/packages.yml")
    apt = tasks[1].pop("ansible.builtin.apt")
    for word in ("retries", "delay", "until", "register"):
        tasks[1].pop(word)
    tasks[1]["ansible.builtin.debug"] = {"msg": f"MISSING {apt['name']}"}
    host = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    host["vars"] = {"spva_common_need": there, "spva_common_blank": False}
    play.write_text(yaml.safe_dump([{**host, "tasks": tasks}]))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", play],
        capture_output=True, text=True, check=False, timeout=100, env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("MISSING" in done.stdout) == bool(missing)
    assert all(name in done.stdout for name in missing)


def test_a_release_is_marked_complete_after_a_trial_without_rights():
    names = [
        next(iter(task)) and task for task in every_task(load(ROOT / "roles/spva_common/tasks/install.yml"))
    ]
    included = [task.get("ansible.builtin.include_tasks", {}) for task in names]
    trial = next(
        i for i, task in enumerate(included) if isinstance(task, dict) and task.get("file") == "modes.yml"
    )
    mark = next(i for i, task in enumerate(names) if ".complete" in str(task.get("ansible.builtin.copy", "")))
    assert trial < mark


def test_a_release_that_others_cannot_read_is_mended(tmp_path):
    """As umask 077 leaves it, also on a host where it was marked complete before. Without root nothing can be tried as nobody."""
    (task,) = load(ROOT / "roles/spva_common/tasks/modes.yml")
    script = task["ansible.builtin.command"]["argv"][2]
    release = tmp_path / "release"
    (release / "bin").mkdir(parents=True)
    (release / "bin/python").write_text("#!/bin/sh\nexit 0\n")
    (release / "pyvenv.cfg").write_text("home = /usr/bin\n")
    for path in (release, release / "bin", release / "bin/python"):
        path.chmod(0o700)
    (release / "pyvenv.cfg").chmod(0o600)
    if os.geteuid() != 0:
        script = script.replace("setpriv --reuid=nobody --regid=nogroup --clear-groups --", "false")
    else:
        for above in (tmp_path, *tmp_path.parents):
            if above.stat().st_uid == 0 and above.parts[:2] == ("/", "tmp") and len(above.parts) > 2:
                above.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-euc", script, "sh", release], capture_output=True, text=True, check=False
    )
    assert "modes were set" in done.stdout
    assert stat.S_IMODE((release / "pyvenv.cfg").stat().st_mode) == 0o644
    assert stat.S_IMODE((release / "bin/python").stat().st_mode) == 0o755
    if os.geteuid() == 0:
        assert done.returncode == 0, done.stderr
        again = subprocess.run(
            ["/bin/sh", "-euc", script, "sh", release], capture_output=True, text=True, check=True
        )
        assert again.stdout == ""
