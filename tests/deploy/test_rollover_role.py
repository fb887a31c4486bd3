"""A new authority by Ansible: what the roles refuse, what the service is told, and whom its rules let in."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from tests.deploy.test_cluster_role import preflight
from tests.deploy.test_templates import ROOT, check, render

PASSWORD = {"spva_cms_cert_auth_password": "x" * 12}
SWITCHED = {
    "spva_cms_cert_auth_name": "Root G2",
    "spva_cms_cert_auth_keychain": "cert_auth-7d02c4e1.p12",
    "spva_cms_former_authorities": [
        {"keychain": "cert_auth.p12", "name": "Root", "ends": "2027-03-01T00:00:00Z"}
    ],
}


def test_each_wrong_variable_is_refused_with_a_sentence(tmp_path):
    variables = {
        "spva_cms_cert_auth_keychain": "/var/lib/spva/cms/new.p12",
        "spva_cms_former_authorities": [
            {"keychain": "/var/lib/spva/cms/new.p12", "ends": "in March"},
            {"ca_key": "pkcs11:object=ca", "keychain_pwd_file": "${credential:nonesuch}"},
        ],
        "spva_cms_authorities": ["Site Root"],
    }
    status, said = preflight(tmp_path, variables, nodes=1)
    assert status != 0
    for sentence in (
        "are names of files in /var/lib/spva/cms; leave the directory out",
        "spva_cms_former_authorities has the keychain of the present authority",
        "needs either keychain, or ca_key and ca_certificate",
        "an ends in spva_cms_former_authorities is no time such as",
        "spva_cms_authorities needs lists of names",
        "names a ${credential:...} that spva_cms_credentials does not hold",
        "is on no node, and an authority that follows a former one is not made by a start",
    ):
        assert sentence in said, sentence


def test_the_service_is_told_of_the_former_authority(tmp_path):
    text = render(tmp_path, "spva_cms", "cms.yml.j2", **PASSWORD, **SWITCHED)
    document = yaml.safe_load(text)
    assert document["cert_auth_tls_keychain"] == "/var/lib/spva/cms/cert_auth-7d02c4e1.p12"
    assert document["former_authorities"] == [
        {
            "keychain": "/var/lib/spva/cms/cert_auth.p12",
            "keychain_pwd_file": "${credential:cert-auth-password}",
            "ends": "2027-03-01T00:00:00Z",
        }
    ]
    (tmp_path / "cms.yml").write_text(text.replace("/etc/spva/pvacms.acf", str(tmp_path / "none.acf")))
    check(
        tmp_path, "appliance.cli.pvacms", "--config", str(tmp_path / "cms.yml"), "--check-config",
        credentials=("cert-auth-password",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "allowed", "refused"),
    [
        ({"spva_cms_cert_auth_name": "Root"}, [["Root"]], [["Root G2"], ["Other"]]),
        (SWITCHED, [["Root"], ["Root G2"], ["Root G2", "Root"], ["Root", "Root G2"]], [["Other"], ["Other", "Root"]]),
        (
            {"spva_cms_authorities": [["Root", "CA"], ["Root G2", "CA 2"]]},
            [["Root", "CA"], ["Root", "Root G2", "CA 2"], ["Root G2", "CA 2"], ["Root G2", "Root", "CA"]],
            [["Root"], ["Root", "Other"], ["CA"], ["Other", "Root", "CA"]],
        ),
    ],
    ids=["before", "during", "intermediate"],
)  # fmt: skip
def test_administrators_of_both_authorities_are_let_in_during_the_rollover(
    tmp_path, variables, allowed, refused
):
    (tmp_path / "cms.acf").write_text(render(tmp_path, "spva_cms", "pvacms.acf.j2", **PASSWORD, **variables))
    let_in = []
    for path in allowed + refused:
        chain = [option for name in reversed(path) for option in ("--authority", name)]
        done = subprocess.run(
            [
                sys.executable, "-m", "appliance.cli.acf_test", "--gateway", "--asg", "DEFAULT", "--asl", "1", "--user", "admin",
                "--method", "x509", *chain, "--require", "WRITE", str(tmp_path / "cms.acf"),
            ],
            capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
        )  # fmt: skip
        if done.returncode == 0:
            let_in.append(path)
    assert let_in == allowed


def test_hosts_get_the_bundle_of_the_service_as_its_own_account_prints_it():
    tasks = yaml.safe_load((ROOT / "roles/spva_common/tasks/trust_anchor.yml").read_text())
    script = tasks[0]["ansible.builtin.command"]["argv"][-1]
    assert "--print-bundle" in script
    assert "--uid=spva-cms" in script


def test_other_rules_alone_do_not_restart_an_ioc():
    """A restart would cost each monitor a second connection in a rollover."""
    tasks = {
        task["name"]: task for task in yaml.safe_load((ROOT / "roles/spva_ioc/tasks/ioc.yml").read_text())
    }
    reload = tasks["Reload the IOCs that have other rules only"]
    assert reload["vars"]["spva_common_state"] == "reloaded"
    assert "spva_ioc_access" not in str(tasks["Restart the IOCs that changed"])
    instance = yaml.safe_load((ROOT / "roles/spva_ioc/tasks/instance.yml").read_text())
    remembered = instance[-1]["ansible.builtin.set_fact"]
    assert "spva_ioc_access" not in remembered["spva_ioc_changed"]
    assert "spva_ioc_access" in remembered["spva_ioc_other_rules"]
