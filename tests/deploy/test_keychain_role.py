"""The role spva_keychain: what it refuses, and what it writes for a timer and for a daemon."""

from __future__ import annotations

import importlib
import json
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from appliance.authn.jwt.oauth import load_settings
from tests.deploy.test_templates import ROOT, run_play

OAUTH = {"grant": "client_credentials", "issuer": "https://idp.example/realm", "client_id": "ioc"}
SECRETS = {"one": "a-secret-indeed"}
FILE = {"token_file": "/run/t"}
URL = {"token_url": "https://idp.example/token", "token_user": "one"}

WRONG = [
    ({}, "method jwt needs token_file, token_url or oauth"),
    ({**FILE, "oauth": OAUTH}, "more than one of token_file, token_url and oauth"),
    ({"oauth": OAUTH, "secret": None}, "lacks the secret of a keychain with oauth"),
    ({**FILE, "secret": "x"}, "has a name that no keychain with oauth"),
    ({"oauth": {**OAUTH, "token_url": "https://idp.example/t"}}, "needs either issuer or token_url"),
    ({"oauth": {"grant": "client_credentials", "client_id": "ioc"}}, "needs either issuer or token_url"),
    ({"oauth": {**OAUTH, "issuer": "http://idp.example/"}}, "a URL in oauth must be https"),
    ({"oauth": {**OAUTH, "client_auth": "none"}, "secret": None}, "client_credentials needs a secret"),
    ({"oauth": {**OAUTH, "grant": "device_code"}}, "device_code needs form daemon"),
    ({"oauth": {**OAUTH, "grant": "password"}}, "value of grant must be one of"),
    ({"oauth": {**OAUTH, "colour": "red"}}, "colour"),
    ({**FILE, "token_ca": "PEM"}, "a token_ca in spva_keychain_list has no effect"),
    ({"token_file": "/home/me/token", "form": "daemon"}, "a directory that services cannot see"),
    ({**FILE, "form": "cron"}, "value of form must be one of"),
    ({**FILE, "add_config_uri": True}, "add_config_uri needs form daemon"),
    ({**FILE, "san": ["dns=a b"]}, "a san in spva_keychain_list must be"),
    ({**FILE, "san": ["mail=a"]}, "a san in spva_keychain_list must be"),
    ({**FILE, "schedule": ["MON 8-17"]}, "a schedule in spva_keychain_list must be DAY,HH:MM,HH:MM"),
    ({**FILE, "schedule": ["*,08:00,17:00"], "time_zone": "Europe/Berlin; x"}, "is not a name such as"),
    ({**FILE, "time_zone": "Europe/Berlin"}, "has no effect without schedule"),
    ({"oauth": OAUTH, "extras": ["ioc"]}, "need the extra oauth"),
]  # fmt: skip
RIGHT = [
    FILE,
    {"oauth": OAUTH},
    {"oauth": {**OAUTH, "issuer": "http://localhost:8080/realm"}, "form": "daemon"},
    {"oauth": {**OAUTH, "issuer": "http://idp.example/", "allow_insecure_http": True}},
    {"oauth": {**OAUTH, "grant": "device_code", "client_auth": "none"}, "form": "daemon", "secret": None},
    {**URL, "form": "daemon", "token_ca": "PEM", "add_config_uri": True},
    {"method": "std", "form": "daemon", "san": ["dns=a.example", "ip=fe80::1"], "schedule": ["MON-FRI,08:00,17:00", "*,22:00,06:00"], "time_zone": "Europe/Berlin"},
]  # fmt: skip


EXAMPLE = yaml.safe_load((ROOT / "inventory.example/large/group_vars/spva_ioc.yml").read_text())
RIGHT += [{**item, "name": "one", "token_ca": "PEM"} for item in EXAMPLE["spva_keychain_list"]]


def variables(case: dict) -> dict:
    item = {"name": "one", **{key: value for key, value in case.items() if key not in {"secret", "extras"}}}
    secret = case.get("secret", SECRETS["one"] if "oauth" in case else None)
    return {
        "spva_keychain_list": [item],
        "spva_keychain_passwords": {"one": "x"} if "token_url" in case else {},
        "spva_keychain_client_secrets": {"one": secret} if secret else {},
        "spva_common_extras": case.get("extras", ["all"]),
        "spva_common_trust_anchor": "BEGIN CERTIFICATE",
    }


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the preflight checks say of each case. Each case is a host of one play, because Ansible is slow to start."""
    where = tmp_path_factory.mktemp("preflight")
    role = ROOT / "roles/spva_keychain"
    # Without the role around them, whose dependencies would run for each host.
    tasks = (role / "tasks/preflight.yml").read_text().replace("role_path ~ '", f"'{role}")
    (where / "preflight.yml").write_text(tasks)
    hosts = {
        f"case{number}": {**variables(case), "ansible_connection": "local"}
        for number, case in enumerate([case for case, _ in WRONG] + RIGHT)
    }
    (where / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    play = {
        "name": "Judge",
        "hosts": "all",
        "tasks": [{"name": "Preflight", "ansible.builtin.import_tasks": str(where / "preflight.yml")}],
        "vars_files": [str(role / "vars/main.yml")],
    }
    done = run_play(where, play, inventory=where / "hosts.yml")
    failures = re.findall(r"^fatal: \[(case\d+)\]: (.*?)(?=^\S|\Z)", done.stdout, re.MULTILINE | re.DOTALL)
    said = {host: " ".join(text.split()) for host, text in failures}
    assert re.search(r"^case0 .* failed=1 ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    return [said.get(host, "") for host in hosts]


def test_what_does_not_fit_is_refused_before_anything_changes(judged: list[str]) -> None:
    for (case, why), said in zip(WRONG, judged, strict=False):
        assert why in said, f"{case}: {said or 'accepted'}"


def test_what_fits_is_accepted(judged: list[str]) -> None:
    assert judged[len(WRONG) :] == [""] * len(RIGHT)


OPTIONS = [
    ({**FILE}, False, "--token-file /run/spva/keychain-one/token"),
    ({**FILE}, True, "--token-file /run/t"),
    ({**URL}, False, "--token-file /run/spva/keychain-one/token"),
    ({**URL, "issuer": "47530d89"}, True, "--issuer 47530d89 --token-command /etc/spva/keychain/one.token"),
    ({"oauth": OAUTH}, False, "--oauth /etc/spva/keychain/one.oauth.yml"),
    ({"oauth": OAUTH, "add_config_uri": True}, True, "--add-config-uri --oauth /etc/spva/keychain/one.oauth.yml"),
    ({"method": "std", "validity": "90d"}, True, "--time 90d"),
    (
        {"method": "std", "san": ["dns=a.example", "ip=10.0.0.7"], "schedule": ["1-5,08:00,17:00"], "time_zone": "Europe/Berlin"},
        True,
        "--san dns=a.example --san ip=10.0.0.7 --schedule 1-5,08:00,17:00 --time-zone Europe/Berlin",
    ),
]  # fmt: skip


PROVIDER = {**OAUTH, "scope": "openid 'x' \"y\"", "resource": ["urn:a"], "token": "id_token"}
PERSON = {**OAUTH, "grant": "device_code"}
TOKEN_URL = "https://idp.example/token?x=%41&y=$HOME"
RENDERED: list[tuple[str, dict]] = [
    *(("keychain.conf.j2", {"item": item, "spva_keychain_daemon": daemon}) for item, daemon, _ in OPTIONS),
    (
        "keychain.conf.j2",
        {"item": {"oauth": PERSON}, "spva_keychain_daemon": True, "spva_keychain_client_secrets": {}},
    ),
    ("oauth.yml.j2", {"item": {"oauth": PROVIDER, "token_ca": "PEM"}}),
    ("token.sh.j2", {"item": {**URL, "token_url": TOKEN_URL, "token_ca": "PEM"}}),
]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the templates become: one run of Ansible for all, because it is slow to start."""
    where = tmp_path_factory.mktemp("rendered")
    cases = [
        {
            "template": str(ROOT / "roles/spva_keychain/templates" / template),
            "vars": {
                "spva_keychain_client_secrets": SECRETS,
                **given,
                "item": {"name": "one", **given["item"]},
            },
        }
        for template, given in RENDERED
    ]
    lookup = "lookup('ansible.builtin.template', case.template, template_vars=case.vars)"
    copy = {
        "content": "{%- set out = [] -%}{%- for case in cases -%}{%- set _ = out.append("
        + lookup
        + ") -%}{%- endfor -%}{{ out | to_json }}",
        "dest": str(where / "out.json"),
        "mode": "0644",
    }
    play = {
        "name": "Render",
        "vars": {"cases": cases, "spva_common_current": "0.0.0 0"},
        "tasks": [{"name": "Render", "ansible.builtin.copy": copy}],
    }
    done = run_play(where, play)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((where / "out.json").read_text())


@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_a_unit_gives_options_that_its_authenticator_takes(rendered: list[str], number: int) -> None:
    item, daemon, options = OPTIONS[number]
    text = rendered[number]
    assert f'\nEnvironment="SPVA_OPTIONS={options}"\n' in text
    method = item.get("method", "jwt")
    unit = (ROOT / f"systemd/spva-keychain{'-daemon' * daemon}@.service").read_text()
    start = re.search(r"\nExecStart=\S+ \S+ (.*)\n", unit)[1]
    for variable, value in (("${SPVA_USAGE}", "ioc"), ("${SPVA_TIMEOUT}", "10"), ("$SPVA_OPTIONS", options)):
        start = start.replace(variable, value)
    importlib.import_module(f"appliance.cli.authn{method}").parser().parse_args(start.split())
    # A daemon needs no directory below /run and no program before it starts.
    assert ("ExecStartPre" in text) is (not daemon and method == "jwt" and "oauth" not in item)
    assert ("SPVA_RELEASE" in text) is daemon
    assert "a-secret-indeed" not in text
    assert ("LoadCredential=client-secret:" in text) is ("oauth" in item)


def test_a_daemon_waits_for_a_person_as_long_as_a_code_lives(rendered: list[str]) -> None:
    assert "\nTimeoutStartSec=1h\n" in rendered[-3]
    assert "client-secret" not in rendered[-3]


def test_settings_of_a_provider_are_ones_that_authnjwt_reads(rendered: list[str], tmp_path: Path) -> None:
    (tmp_path / "client-secret").write_text("a-secret-indeed")
    (tmp_path / "token-ca").write_text("PEM")
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    assert "a-secret-indeed" not in rendered[-2]
    file = tmp_path / "oauth.yml"
    file.write_text(rendered[-2])
    read = load_settings(str(file), {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert read.client_secret.reveal() == "a-secret-indeed"
    assert read.ca_file == str(tmp_path / "token-ca")
    assert (read.scope, read.resource, read.token) == (PROVIDER["scope"], ("urn:a",), "id_token")


def test_the_program_that_fetches_a_token_sends_the_password_in_the_body(
    rendered: list[str], tmp_path: Path
) -> None:
    called = tmp_path / "curl"
    called.write_text(f'#!/bin/sh\nfor word; do echo "$word"; done > {tmp_path}/words\necho a.b.c\n')
    program = tmp_path / "one.token"
    program.write_text(rendered[-1].replace("/usr/bin/curl", str(called)))
    for path in (called, program):
        path.chmod(stat.S_IRWXU)
    environment = {"CREDENTIALS_DIRECTORY": "/run/c", "HOME": "/wrong"}
    done = subprocess.run([program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "a.b.c\n"
    words = (tmp_path / "words").read_text().splitlines()
    assert words[-1] == TOKEN_URL
    assert words[words.index("--cacert") + 1] == "/run/c/token-ca"
    sent = [words[at + 1] for at, word in enumerate(words) if word == "--data-urlencode"]
    assert sent == ["sub=one", "password@/run/c/password"]
