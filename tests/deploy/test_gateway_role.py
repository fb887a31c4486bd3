"""The gateway's role: wrong variables are refused with a sentence, and the daemon accepts what the role writes."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.deploy.test_templates import ROOT, check, render, run_play
from tests.helpers.pki import site, write_keychain

PVLIST = ".* ALLOW\n"
ACF = "ASG(DEFAULT) { RULE(1, WRITE) }\n"
KEYCHAIN = {"name": "gw", "owner": "spva-gateway", "token_file": "/run/token"}


def sides(tmp_path: Path) -> dict:
    """A gateway between two networks, as an inventory describes it."""
    (tmp_path / "outer.pvlist").write_text(PVLIST)
    (tmp_path / "outer.acf").write_text(ACF)
    return {
        "name": "gw",
        "clients": {"inner": {"pva": {"addr_list": "10.1.0.255"}}},
        "servers": {
            "outer": {
                "clients": ["inner"],
                "pva": {"intf_addr_list": "10.2.0.5"},
                "pvlist": str(tmp_path / "outer.pvlist"),
                "access": {"file": str(tmp_path / "outer.acf")},
                "status_prefix": "GW:",
                "put_log": True,
                "relay": {},
            }
        },
    }


def change(*path):
    """Return what sets a value deep in the instance; the last of ``path`` is the value, None removes the key."""

    def done(gateway: dict) -> dict:
        *way, key, value = path
        at = gateway
        for step in way:
            at = at[step]
        if value is None:
            del at[key]
        else:
            at[key] = value
        return {"spva_gateway_instances": [gateway]}

    return done


def second(address: str):
    """Return what adds another gateway to the host, with its server at ``address``."""

    def done(gateway: dict) -> dict:
        other = copy.deepcopy(gateway)
        other.update(name="lab", keychain="gw")
        other["servers"]["outer"]["pva"]["intf_addr_list"] = address
        return {"spva_gateway_instances": [gateway, other]}

    return done


def beside(**variables):
    """Return what gives other variables for a good instance."""
    return lambda gateway: {"spva_gateway_instances": [gateway], **variables}


CASES = [
    (change("name", "gw"), None),
    (change("servers", "outer", {"clients": ["inner"], "pva": {"intf_addr_list": "10.2.0.5"}}), None),
    (change("servers", "outer", "relay", None), None),
    (second("10.3.0.5"), None),
    (second("10.2.0.5"), r"same port \(.*10.2.0.5 port 5075.*10.2.0.5 port 5075"),
    (change("name", "g w"), "letters, digits and _ only"),
    (change("servers", {}), "would serve nothing"),
    (change("clients", {"inner": {"pva": {}}}), r"would find no IOC \(gw, client inner\)"),
    (change("clients", {"in ner": {"pva": {"addr_list": "1.2.3.4"}}}), "files are named after it"),
    (change("servers", "outer", "clients", ["other"]), r"does not have \(gw, server outer\)"),
    (change("servers", "outer", "pva", {}), r"no pva.intf_addr_list \(gw, server outer\)"),
    (change("servers", "outer", "pvlist", "/none/x.pvlist"), "missing on the machine that runs Ansible: /none/x.pvlist"),
    (change("servers", "outer", "relay", {"tls_port": 5076}), r"same port \(10.2.0.5 port 5075, 10.2.0.5 port 5076,"),
    (change("keychain", "other"), "not in spva_keychain_list"),
    (change("servers", "outer", "pva", "tls_keychain_pwd_file", "${credential:p}"), "does not hold for it"),
    (change("clients", None), "missing required arguments: clients"),
    (change("servers", "outer", "pva", "intf_addr_list", "{{ no_such }}"), "no_such.* is undefined"),
    (change("settings", {"metrics": {"port": 9100}}), None),
    (lambda gateway: {**change("settings", {"metrics": {"port": 9100}})(gateway), "spva_common_extras": ["ioc"]}, "add it to spva_common_extras"),
    (beside(spva_gateway_inner_addresses=[]), "would take every client for the gateway"),
    (beside(spva_keychain_list=[{**KEYCHAIN, "owner": "spva-ioc"}]), "needs owner spva-gateway"),
    (beside(spva_keychain_list=[{**KEYCHAIN, "usage": "client"}]), "needs owner spva-gateway.*and usage ioc"),
    (beside(spva_common_release="0.1.0"), "release 0.1.0 has no gateway here, or is not installed"),
    (beside(group_names=["spva_cms"]), "same port .*every address port 5075"),
    (beside(group_names=["spva_ioc"], spva_ioc_instances=[{"name": "one"}]), "same port .*every address port 5076"),
]  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> list[str]:
    """What the role's checks say to each case: one run of Ansible for all, because its start takes longest."""
    tmp_path = tmp_path_factory.mktemp("preflight")
    role = {"name": "spva_gateway", "tasks_from": "preflight"}
    tasks = []
    for number, (how, _) in enumerate(CASES):
        variables = {
            "spva_keychain_list": [KEYCHAIN],
            "spva_gateway_inner_addresses": ["10.1.0.5"],
            **how(sides(tmp_path)),
        }
        said = {"msg": f"CASE {number}: {{{{ ansible_failed_result.msg }}}} END"}
        tasks.append(
            {
                "name": f"Try case {number}",
                "block": [{"name": "Check", "ansible.builtin.include_role": role, "vars": variables}],
                "rescue": [{"name": "Say why", "ansible.builtin.debug": said}],
            }
        )
    done = run_play(tmp_path, {"name": "Preflight", "tasks": tasks})
    assert done.returncode == 0, done.stdout + done.stderr
    text = re.sub(r"\s+", " ", done.stdout)
    said = [re.search(rf"CASE {number}: (.*?) END", text) for number in range(len(CASES))]
    return [found[1] if found else "" for found in said]


@pytest.mark.parametrize(("number", "says"), [(number, says) for number, (_, says) in enumerate(CASES)])
def test_a_wrong_gateway_is_refused_with_a_sentence_before_anything_changes(answers, number, says):
    if says is None:
        assert answers[number] == ""
    else:
        assert re.search(says, answers[number]), answers[number]


def document(tmp_path: Path, **more) -> dict:
    item = {**sides(tmp_path), **more}
    return yaml.safe_load(render(tmp_path, "spva_gateway", "gateway.yml.j2", spva_gateway_item=item))


def test_sides_get_what_the_site_has_in_common(tmp_path):
    found = document(tmp_path, settings={"read_only": True, "servers": {"outer": {"get_holdoff": 0.5}}})
    keychain = "/var/lib/spva/keychain/gw/keychain.p12"
    common = {"broadcast_port": 5076, "cert_pv_prefix": "CERT", "tls_keychain": keychain}
    assert found == {
        "clients": {"inner": {"pva": {**common, "auto_addr_list": False, "addr_list": "10.1.0.255"}}},
        "servers": {
            "outer": {
                "pva": {**common, "server_port": 5075, "tls_port": 5076, "intf_addr_list": "10.2.0.5"},
                "clients": ["inner"],
                "pvlist": "/etc/spva/gateway/gw/outer.pvlist",
                "access": {"file": "/etc/spva/gateway/gw/outer.acf"},
                "status_prefix": "GW:",
                "put_log": "/var/lib/spva/gateway/gw/outer-puts.log",
                "relay": {},
                "get_holdoff": 0.5,
            }
        },
        "read_only": True,
    }


def test_secrets_of_a_gateway_are_credentials_of_its_own_unit(tmp_path):
    text = render(
        tmp_path, "spva_gateway", "site.conf.j2", spva_gateway_item={**sides(tmp_path), "keychain": "host", "memory_max": "4G"},
        spva_gateway_credentials={"gw": {"password": "a-secret-indeed"}, "other": {"more": "x"}},
    )  # fmt: skip
    assert "a-secret-indeed" not in text
    assert [line for line in text.splitlines() if line.startswith("LoadCredential=")] == [
        "LoadCredential=password:/etc/spva/credentials/gateway-gw/password"
    ]
    assert "\nAfter=spva-keychain@host.service spva-keychain-daemon@host.service\n" in text
    assert "\nMemoryMax=4G\n" in text


def test_rules_alone_are_reloaded_and_configuration_restarts(tmp_path):
    """A reload keeps the channels; new addresses and ports need a restart."""
    tasks = yaml.safe_load((ROOT / "roles/spva_gateway/tasks/instance.yml").read_text())
    by_name = {task["register"]: task for task in tasks if "register" in task}
    facts = tasks[-1]["ansible.builtin.set_fact"]
    assert set(re.findall(r"(\w+) is changed", facts["spva_gateway_changed"])) == {
        "spva_gateway_dropin", "spva_gateway_configured",
    }  # fmt: skip
    assert set(re.findall(r"(\w+) is changed", facts["spva_gateway_other_rules"])) == {
        "spva_gateway_rules", "spva_gateway_lists",
    }  # fmt: skip
    assert "--check-config" in by_name["spva_gateway_lists"]["ansible.builtin.copy"]["validate"]
    assert "acf-test --gateway" in by_name["spva_gateway_rules"]["ansible.builtin.copy"]["validate"]


def test_gateways_are_deployed_and_upgraded_one_after_the_other():
    for playbook, hosts in (
        ("site.yml", "spva_gateway"),
        ("upgrade.yml", ":spva_gateway:"),
        ("rotate.yml", ":spva_gateway:"),
    ):
        plays = yaml.safe_load((ROOT / "playbooks" / playbook).read_text())
        assert any(hosts in play.get("hosts", "") and play.get("serial") == 1 for play in plays), playbook


def test_ioc_in_the_outer_network_gets_its_certificate_through_the_gateway_of_the_same_run():
    plays = yaml.safe_load((ROOT / "playbooks/site.yml").read_text())
    order = [(play["hosts"], role["role"]) for play in plays for role in play.get("roles", ())]
    keychains = {hosts: number for number, (hosts, role) in enumerate(order) if role == "spva_keychain"}
    gateways = order.index(("spva_gateway", "spva_gateway"))
    assert keychains["spva_gateway"] < gateways
    (others,) = [
        number for hosts, number in keychains.items() if {"spva_ioc", "spva_tools"} <= set(hosts.split(":"))
    ]
    assert gateways < others < order.index(("spva_ioc", "spva_ioc"))
    # Each host that needs a keychain is in one of these plays.
    assert {"spva_issuer", "spva_cms", "spva_gateway", "spva_ioc", "spva_tools"} <= set(
        ":".join(keychains).split(":")
    )


def test_upgrade_checks_all_variables_first_and_leaves_new_hosts_to_site_yml():
    first, _, upgrade, last = yaml.safe_load((ROOT / "playbooks/upgrade.yml").read_text())
    roles = [
        task["ansible.builtin.include_role"]
        for task in first["tasks"]
        if "ansible.builtin.include_role" in task
    ]
    assert [role["tasks_from"] for role in roles] == ["preflight", "preflight"]
    assert "spva_gateway" in first["tasks"][1]["loop"]
    assert upgrade["tasks"][0]["when"] == "spva_common_current != ''"
    assert last["ansible.builtin.import_playbook"] == "site.yml"


@pytest.mark.parametrize("size", ["small", "large"])
def test_gateways_of_the_example_inventories_pass_the_checks(tmp_path, size):
    inventory = tmp_path / "inventory"
    shutil.copytree(ROOT / "inventory.example" / size, inventory)
    hosts = yaml.safe_load((inventory / "hosts.yml").read_text())
    group = hosts["all"]["children"]["spva"]["children"]["spva_gateway"]
    group["hosts"] = group["hosts"] or {"control1": None}
    name = next(iter(group["hosts"]))
    (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
    tasks = [
        {
            "name": "Preflight",
            "ansible.builtin.include_role": {"name": "spva_gateway", "tasks_from": "preflight"},
        },
        {
            "name": "Write",
            "ansible.builtin.copy": {
                "content": "{{ spva_gateway_document | to_json }}",
                "dest": f"{tmp_path}/out.json",
                "mode": "0600",
            },
            "vars": {"spva_gateway_item": "{{ spva_gateway_instances | first }}"},
        },
    ]
    variables = {
        "vars_files": [str(ROOT / "roles/spva_gateway/vars/main.yml")],
        "become": False,
        "roles": ["spva_common"],
    }
    play = {"name": "Preflight", "hosts": name, "tasks": tasks, **variables}
    more = {"ansible_become": False, "vault_softioc_password": "x", "vault_gateway_password": "x"}
    done = run_play(tmp_path, play, more, inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "out.json").read_text().replace("/etc/spva/gateway/office", str(inventory / "files"))
    text = text.replace("/var/lib/spva/gateway/office", str(tmp_path))
    keychain = write_keychain(tmp_path / "keychain.p12", site().ioc)
    text = text.replace("/var/lib/spva/keychain/office/keychain.p12", str(keychain))
    (tmp_path / "gateway.yml").write_text(yaml.safe_dump(json.loads(text)))
    said = check(
        tmp_path, "appliance.gateway.daemon", "--config", str(tmp_path / "gateway.yml"), "--check-config"
    )
    assert "office.pvlist\n" in said
    assert "office.acf\n" in said
    assert "Warning" not in said


def test_the_certificate_service_believes_the_gateways_of_the_inventory_and_nobody_else(tmp_path):
    inventory = tmp_path / "inventory"
    shutil.copytree(ROOT / "inventory.example/large", inventory)
    tasks = [
        {
            "name": "Write",
            "ansible.builtin.copy": {
                "content": "{{ spva_cms_proxy_from | to_json }}",
                "dest": f"{tmp_path}/out.json",
                "mode": "0600",
            },
        }
    ]
    play = {
        "name": "Proxies",
        "hosts": "cms1.example.org",
        "become": False,
        "vars_files": [str(ROOT / "roles/spva_cms/defaults/main.yml")],
        "tasks": tasks,
    }
    done = run_play(tmp_path, play, {"ansible_become": False}, inventory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text()) == ["192.0.2.11", "192.0.2.12"]
