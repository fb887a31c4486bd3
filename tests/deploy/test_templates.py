"""Templates render as Ansible renders them, and the daemons accept what comes out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HASH = "scrypt$15$8$1$MnnrVpOO/Nv4CQ6qR5DVTg==$cyUrFnd5kguPpD3tLlxxpxDyAiL/Ns0GCU2KFhtzDiY="


def run_play(
    tmp_path: Path, play: dict, variables: dict | None = None, inventory: Path | str = "localhost,"
) -> subprocess.CompletedProcess[str]:
    """Run one play on this machine; ``variables`` win over all others."""
    on_this_machine = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([{**on_this_machine, **play}]))
    (tmp_path / "extra.json").write_text(json.dumps(variables or {}))
    return subprocess.run(
        [
            Path(sys.executable).parent / "ansible-playbook",
            f"--inventory={inventory}",
            f"--extra-vars=@{tmp_path / 'extra.json'}",
            f"--extra-vars=ansible_python_interpreter={sys.executable}",
            tmp_path / "play.yml",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_LOCALHOST_WARNING": "false"},
    )


def render(tmp_path: Path, role: str, template: str, **variables) -> str:
    """What ansible-playbook makes of a role's template, with the role's defaults."""
    out = tmp_path / "rendered"
    play = {
        "name": "Render",
        "vars": {"spva_common_current": "0.0.0 0", **variables},
        "roles": ["spva_common"],
        "tasks": [
            {
                "name": "Template",
                "ansible.builtin.template": {
                    "src": str(ROOT / "roles" / role / "templates" / template),
                    "dest": str(out),
                },
            },
        ],
        "vars_files": [
            str(ROOT / "roles" / role / name)
            for name in ("defaults/main.yml", "vars/main.yml")
            if (ROOT / "roles" / role / name).exists()
        ],
    }
    # What the inventory would say must win over defaults, which are files of the play here.
    done = run_play(tmp_path, play, variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return out.read_text()


def check(
    tmp_path: Path, module: str, *arguments: str, credentials: tuple[str, ...] = (), **variables: str
) -> str:
    store = tmp_path / "credentials"
    store.mkdir(mode=0o700)
    for name in credentials:
        (store / name).write_text("x" * 40)
        (store / name).chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "CREDENTIALS_DIRECTORY": str(store), **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"spva_issuer_algo": "HS256", "spva_issuer_hs_secret": "x" * 32},
        {
            "spva_issuer_listen": ["0.0.0.0"],
            "spva_issuer_allow_remote": True,
            "spva_issuer_tls_certificate": "PEM",
            "spva_issuer_tls_key": "PEM",
        },
    ],
    ids=["defaults", "HS256", "remote with TLS"],
)
def test_issuer_accepts_its_configuration(tmp_path, more):
    users = [{"name": "soft: ioc", "password_hash": HASH}]
    (tmp_path / "jwt-issuer.yml").write_text(
        render(tmp_path, "spva_issuer", "jwt-issuer.yml.j2", spva_issuer_users=users, **more)
    )
    check(
        tmp_path, "appliance.issuer.daemon", "--config", str(tmp_path / "jwt-issuer.yml"), "--check-config",
        credentials=("hs-secret", "tls.pem", "tls.key"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "spva_cms_keychain_password": "x" * 12,
            "spva_cms_admin_keychain_password": "x" * 12,
            "spva_cms_intf_addr_list": ["10.0.0.1"],
            "spva_cms_cert_auth_country": "NO",
            "spva_cms_settings": {"ccr_burst": 5, "server": {"beacon_period": 5}},
            "spva_cms_credentials": {"ca": "PEM"},
            "spva_cms_jwt_issuers": [
                {
                    "mode": "jwks",
                    "issuer": "https://idp.example/realm",
                    "jwks_uri": "https://idp.example/keys",
                    "ca_file": "${credential:ca}",
                    "audience": ["spva"],
                }
            ],
        },
        {
            "spva_cms_ca_key": "pkcs11:token=site;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so",
            "spva_cms_ca_key_pin": "1234",
        },
    ],
    ids=["defaults", "everything", "token"],
)
def test_certificate_service_accepts_its_configuration(tmp_path, more):
    text = render(tmp_path, "spva_cms", "cms.yml.j2", spva_cms_cert_auth_password="x" * 12, **more)
    (tmp_path / "cms.yml").write_text(text.replace("/etc/spva/pvacms.acf", str(tmp_path / "none.acf")))
    check(
        tmp_path, "appliance.cli.pvacms", "--config", str(tmp_path / "cms.yml"), "--check-config",
        credentials=("cert-auth-password", "keychain-password", "admin-keychain-password", "ca", "ca-key-pin"),
    )  # fmt: skip


def test_administrators_and_nobody_else_may_revoke(tmp_path):
    names = ["admin", "anna.b@example", "Two Words"]
    text = render(
        tmp_path, "spva_cms", "pvacms.acf.j2", spva_cms_cert_auth_password="x", spva_cms_administrators=names
    )
    (tmp_path / "cms.acf").write_text(text)
    allowed = []
    for name in [*names, "mallory", ""]:
        done = subprocess.run(
            [
                sys.executable, "-m", "appliance.cli.acf_test", "--gateway", "--asg", "DEFAULT", "--asl", "1", "--user", name or "x",
                "--method", "x509", "--authority", "EPICS Root Certificate Authority", "--require", "WRITE",
                str(tmp_path / "cms.acf"),
            ],
            capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
        )  # fmt: skip
        if done.returncode == 0:
            allowed.append(name)
    assert allowed == names


def test_ioc_accepts_its_configuration(tmp_path):
    (tmp_path / "one.db").write_text('record(ai, "$(P)one") {}\n')
    (tmp_path / "one.acf").write_text("ASG(DEFAULT) { RULE(1, WRITE) }\n")
    item = {
        "name": "one",
        "databases": [{"src": "files/one.db", "macros": {"P": "x:"}}],
        "acf": "one.acf",
        "put_log": True,
        "settings": {"pva": {"beacon_period": 5}, "exit_prefix": "x"},
    }
    text = render(tmp_path, "spva_ioc", "ioc.yml.j2", spva_ioc_item=item)
    assert yaml.safe_load(text)["pva"]["tls_keychain"] == "/var/lib/spva/keychain/one/keychain.p12"
    text = text.replace("/etc/spva/ioc/one/db", str(tmp_path)).replace(
        "/etc/spva/ioc/one/access.acf", str(tmp_path / "one.acf")
    )
    (tmp_path / "ioc.yml").write_text(text)
    check(tmp_path, "appliance.cli.softiocpvx", "--config", str(tmp_path / "ioc.yml"), "--check-config")


def test_ioc_loads_a_substitution_file_with_its_templates(tmp_path):
    home = tmp_path / "one"
    (home / "db").mkdir(parents=True)
    (home / "db/all.substitutions").write_text(
        'file "ai.template" { { N=1 } }\nfile "db/ao.template" { { N=2 } }\n'
    )
    (home / "db/ai.template").write_text('include "common.db"\nrecord(ai, "t:$(N)") {}\n')
    (home / "db/common.db").write_text('record(ai, "common:$(N)") {}\n')
    (home / "db/ao.template").write_text('record(ao, "t:$(N)") {}\n')
    (home / "db/more.db").write_text('record(ai, "more") {}\n')
    (home / "db/st.cmd").write_text('nonsense\ndbLoadRecords("more.db")\n')
    names = ("ai.template", "ao.template", "common.db", "more.db")
    item = {
        "name": "one",
        "databases": [{"src": "files/all.substitutions"}],
        "templates": [f"files/{name}" for name in names],
        "script": "files/st.cmd",
        "on_error": "continue",
        "keychain": "",
        "console": False,
    }
    text = render(tmp_path, "spva_ioc", "ioc.yml.j2", spva_ioc_item=item)
    assert yaml.safe_load(text)["on_error"] == "continue"
    (home / "ioc.yml").write_text(text.replace("/etc/spva/ioc/one", str(home)))
    unit = (ROOT / "systemd/spva-ioc@.service").read_text()
    include = re.search("EPICS_DB_INCLUDE_PATH=(.*)", unit)[1]
    task = (ROOT / "roles/spva_ioc/tasks/instance.yml").read_text()
    assert include.replace("%i", "{{ spva_ioc_item.name }}") in task
    said = check(
        tmp_path,
        "appliance.cli.softiocpvx",
        "--config",
        str(home / "ioc.yml"),
        "--check-config",
        EPICS_DB_INCLUDE_PATH=include.replace("/etc/spva/ioc/%i", str(home)),
    )
    assert "ioc.yml: good" in said
    assert said.count("Warning: ") == 1  # the command that there is not


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"templates": ["a/one.db", "c.template"]}, None),
        ({"templates": ["b/one.db"]}, "two files of one IOC have the same name.*(one)"),
        ({"templates": ["none.template"]}, "missing on the machine that runs Ansible: .*none.template"),
        ({"on_error": "continue"}, "there is no script"),
        ({"on_error": "ignore"}, "value of on_error must be one of"),
    ],
)
def test_files_of_an_ioc_are_checked_before_anything_is_copied(tmp_path, item, says):
    for name in ("a/one.db", "b/one.db", "c.template"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    ioc = {"name": "one", "databases": [{"src": str(tmp_path / "a/one.db")}], "keychain": "", **item}
    ioc["templates"] = [str(tmp_path / name) for name in item.get("templates", [])]
    play = {
        "name": "Preflight",
        "vars": {"spva_ioc_instances": [ioc]},
        "tasks": [
            {
                "name": "Preflight",
                "ansible.builtin.import_role": {"name": "spva_ioc", "tasks_from": "preflight"},
            }
        ],
    }
    done = run_play(tmp_path, play)
    if says is None:
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert done.returncode != 0
        assert re.search(says, done.stdout + done.stderr), done.stdout + done.stderr


def test_password_of_a_keychain_is_in_no_unit(tmp_path):
    item = {
        "name": "one",
        "token_url": "https://idp.example/token?x=%41",
        "token_user": "one",
        "owner": "spva-ioc",
    }
    text = render(
        tmp_path,
        "spva_keychain",
        "keychain.conf.j2",
        item=item,
        spva_keychain_passwords={"one": "a-secret-indeed"},
    )
    assert "a-secret-indeed" not in text
    assert "password@${CREDENTIALS_DIRECTORY}/password" in text
    assert "x=%%41" in text  # systemd's own escape
