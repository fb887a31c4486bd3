"""The whole way of the JWT quick start: a token becomes a keychain, and the tools say so in its words."""

import json
import re
import stat
from datetime import UTC, datetime, timedelta

import pytest

from appliance.certs.status import format_date
from appliance.certs.x509 import status_pv, subject_text
from tests.helpers.authn import running_site

CREATED = re.compile(
    r"Keychain file created   : (?P<path>/\S+)\n"
    r"Certificate identifier  : (?P<id>[0-9a-f]{8}:[0-9]+)\n"
)
DATE = r"[A-Z][a-z]{2} [A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d \d{4} UTC"


def claims(token):
    import base64

    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


@pytest.mark.parametrize(
    ("usage", "file"), [("server", "server.p12"), ("client", "client.p12"), ("ioc", "server.p12")]
)
def test_a_token_becomes_a_valid_keychain_and_every_line_is_the_quick_starts(site, usage, file):
    account = site.account()
    name = f"softioc-{usage}"
    token_file = account.token_file(name)
    token = claims(token_file.read_text())
    arguments = ["--token-file", token_file] + ([] if usage == "client" else ["-u", usage])
    done = account.run("authnjwt", *arguments)
    assert done.status == 0, done.err
    created = CREATED.fullmatch(done.out)
    assert created, done.out
    path = account.config / file
    assert created["path"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keychain = account.keychain(file)
    certificate = keychain.certificate
    assert subject_text(certificate.subject) == f"CN={name}, O=localhost"
    assert certificate.not_valid_before_utc == datetime.fromtimestamp(token["nbf"], UTC)
    assert certificate.not_valid_after_utc == datetime.fromtimestamp(token["exp"], UTC)
    assert created["id"] == f"{site.cms.issuer}:{certificate.serial_number}"
    shown = account.run("pvxcert", "-f", path)
    assert shown.status == 0, shown.err
    expected = (
        "Certificate Details:\n"
        "============================================\n"
        f"Certificate ID : {created['id']}\n"
        f"Entity Subject : CN={name}, O=localhost\n"
        "Issuer Subject : CN=EPICS Root Certificate Authority, C=US, O=certs.epics.org, OU=EPICS Certificate Authority\n"
        f"Valid From     : {format_date(certificate.not_valid_before_utc)}\n"
        f"Expires On     : {format_date(certificate.not_valid_after_utc)}\n"
        "--------------------------------------------\n"
        "\n"
        "Certificate Status:\n"
        "============================================\n"
        f"Certificate ID: {created['id']}\n"
        "Status        : VALID\n"
    )
    assert shown.out.startswith(expected)
    rest = shown.out.removeprefix(expected)
    assert re.fullmatch(f"Status Issued : {DATE}\nStatus Expires: {DATE}\n-{{44}}\n", rest), rest


def test_a_name_becomes_a_keychain_that_waits_until_an_administrator_has_found_and_approved_it(site):
    account, administrator = site.account(), site.administrator()
    done = account.run(
        "authnstd", "-u", "server", "-n", "IOC1", "-o", "KLI:LI01:10", "--ou", "FACET", "-c", "US"
    )
    created = CREATED.fullmatch(done.out)
    assert created, done.err
    identifier = created["id"]
    assert done.status == 3
    assert f"pvxcert --approve {identifier}" in done.err
    assert "PENDING_APPROVAL" in done.err
    waiting = account.keychain("server.p12")
    assert waiting.subject == "CN=IOC1, C=US, O=KLI:LI01:10, OU=FACET"
    assert account.run("pvxcert", identifier).status == 3
    assert account.run("pvxcert", "-f", account.config / "server.p12").status == 3
    again = account.run("authnstd", "-u", "server", "-n", "IOC1")
    assert (again.status, again.out) == (3, "")
    assert "waits for an administrator's approval" in again.err
    listed = administrator.run("pvxcert", "list", "--pending", "--subject", "ioc1", "--json")
    assert [json.loads(line)["cert_id"] for line in listed.out.splitlines()] == [identifier]
    table = administrator.run("pvxcert", "list").out.splitlines()
    assert table[0].split()[:2] == ["STATE", "CERTIFICATE"]
    assert table[1].startswith("PENDING_APPROVAL"), "what waits for a decision comes first"
    approved = administrator.run("pvxcert", "--approve", identifier)
    assert approved.status == 0, approved.err
    assert (
        approved.out
        == f"Approve ==> {status_pv(waiting.certificate)} ({identifier}) ==> Completed Successfully\n"
    ), (
        "the name that the certificate carries, which is the one that others watch, and the identifier that a search finds"
    )
    assert account.run("pvxcert", identifier).status == 0
    other_way = account.run("pvxcert", f"{site.cms.issuer.upper()}:{int(identifier.split(':')[1]):020d}")
    assert other_way.status == 0
    assert f"Certificate ID: {identifier}\n" in other_way.out


def test_several_identifiers_at_once_and_what_ends_soon_for_a_monitor(site):
    administrator = site.administrator()
    accounts = [site.account() for _ in range(2)]
    identifiers = [
        CREATED.fullmatch(account.run("authnstd", "-n", name, "-t", validity).out)["id"]
        for account, name, validity in zip(accounts, ("soon", "later"), ("10d", "60d"), strict=True)
    ]
    issuer = identifiers[0].partition(":")[0]
    unknown = f"{issuer}:1"
    assert accounts[0].run("pvxcert", *identifiers).status == 3
    slip = administrator.run("pvxcert", "-A", *identifiers, "nonsense")
    assert slip.status == 1
    assert "==>" not in slip.out, "nothing is done when one of them cannot be read"
    done = administrator.run("pvxcert", "-A", unknown, *identifiers)
    assert done.status == 1, "one of them is not known"
    assert f"Error: {unknown.partition(':')[0]}:" in done.err
    assert done.out.count("Completed Successfully") == 2
    assert accounts[0].run("pvxcert", *identifiers).status == 0

    listed = administrator.run("pvxcert", "list", "--expiring", "30d", "--subject", "soon", "--json")
    assert listed.status == 8, listed.err
    (row,) = [json.loads(line) for line in listed.out.splitlines()]
    assert row["cert_id"] == identifiers[0]
    ends = datetime.fromisoformat(row["not_after"])
    assert datetime.fromisoformat(row["created"]) <= datetime.now(UTC)
    assert timedelta(days=9) < ends - datetime.now(UTC) <= timedelta(days=10)
    assert datetime.fromisoformat(row["not_before"]) < datetime.fromisoformat(row["status_date"]) + timedelta(
        1
    )
    nothing = administrator.run("pvxcert", "list", "--expiring", "30d", "--subject", "later")
    assert (nothing.status, nothing.out) == (0, "")
    both = administrator.run("pvxcert", "list", "--expiring", "61d", "--limit", "1", "--json")
    assert both.status == 8
    assert json.loads(both.out)["cert_id"] != identifiers[1], "what ends first is first"
    assert administrator.run("pvxcert", "-R", *identifiers).status == 0
    assert administrator.run("pvxcert", "list", "--expiring", "61d", "--subject", "later").status == 0


def test_a_name_cannot_pose_as_several_parts_in_the_list(site):
    """What the list shows is RFC 4514's text, as everywhere."""
    account = site.account()
    made = CREATED.fullmatch(
        account.run("authnstd", "-n", "poser, O=control-room, OU=shift", "-o", "host17").out
    )
    assert made
    (_, line) = site.administrator().run("pvxcert", "list", "--subject", "poser").out.splitlines()
    assert r"CN=poser\, O=control-room\, OU=shift" in line
    assert "CN=poser, O=" not in line


def test_the_tool_shows_that_a_certificate_has_no_status_pv(tmp_path):
    allowed = {"EPICS_PVACMS_CERTS_REQUIRE_SUBSCRIPTION": "requester"}
    with running_site(tmp_path, **allowed) as site:
        identifiers = {}
        for name, more in (("without", ["--no-status"]), ("with", [])):
            done = site.account().run("authnstd", "-n", name, *more)
            identifiers[name] = CREATED.fullmatch(done.out)["id"]
        head, *lines = site.administrator().run("pvxcert", "list").out.splitlines()
        column = head.index("STATUS ")
        shown = {
            name: line[column:].split()[0]
            for name in identifiers
            for line in lines
            if identifiers[name] in line
        }
        assert shown == {"without": "no", "with": "yes"}
        account = site.account()
        assert (
            "Status PV     : none; revoking this certificate stops nobody\n"
            in account.run("pvxcert", identifiers["without"]).out
        )
        assert "Status PV" not in account.run("pvxcert", identifiers["with"]).out


def test_a_denied_certificate_is_revoked_and_says_when(site):
    account, administrator = site.account(), site.administrator()
    identifier = CREATED.fullmatch(account.run("authnstd", "-n", "denied").out)["id"]
    assert administrator.run("pvxcert", "-D", identifier).out.startswith("Deny ==> ")
    shown = account.run("pvxcert")
    assert shown.status == 4
    assert "Status        : REVOKED\n" in shown.out
    assert re.search(f"^Revocation Date: {DATE}$", shown.out, re.MULTILINE)


def test_an_owner_revokes_its_own_certificate_and_nobody_elses(site):
    account, other = site.account(), site.account()
    for who, name in ((account, "owner"), (other, "victim")):
        assert who.run("authnjwt", "--token-file", who.token_file(name)).status == 0
    victim = other.keychain()
    refused = account.run("pvxcert", "-R", victim.cert_id)
    assert refused.status == 1
    assert "not permitted" in refused.err or "denied" in refused.err
    assert other.run("pvxcert").status == 0
    done = account.run("pvxcert", "-R")
    assert done.status == 0, done.err
    own = account.keychain()
    assert done.out == f"Revoke ==> {status_pv(own.certificate)} ({own.cert_id}) ==> Completed Successfully\n"
    assert account.run("pvxcert").status == 4


def test_an_administrator_is_kept_from_revoking_its_own_certificate_by_accident(site):
    administrator = site.administrator()
    done = administrator.run("pvxcert", "-R")
    assert done.status == 1
    assert "lock yourself out" in done.err
    assert "--own" in done.err
    assert administrator.run("pvxcert").status == 0


def test_a_user_without_rights_cannot_list_or_approve(site):
    account = site.account()
    assert account.run("authnjwt", "--token-file", account.token_file("nobody-special")).status == 0
    listed = account.run("pvxcert", "list")
    assert (listed.status, listed.out) == (1, "")
    assert "not permitted" in listed.err or "denied" in listed.err or "administrators" in listed.err
    nothing = site.account().run("pvxcert", "list")
    assert nothing.status == 1
    assert "authnjwt or authnstd" in nothing.err


def test_json_says_the_same_for_programs(site):
    account = site.account()
    account.run("authnjwt", "--token-file", account.token_file("json"))
    done = account.run("pvxcert", "--json")
    found = json.loads(done.out)
    assert done.status == 0
    assert found["subject"] == "CN=json, O=localhost"
    assert found["status"]["state"] == "VALID"
    assert found["status"]["verified"] is True
    administrator = site.administrator()
    revoked = json.loads(administrator.run("pvxcert", "-R", "--json", found["cert_id"]).out)
    assert revoked == {"action": "revoke", "cert_id": found["cert_id"], "done": True}
    again = administrator.run("pvxcert", "-R", "--json", found["cert_id"])
    assert again.status == 1
    assert json.loads(again.out)["done"] is False


def test_a_dump_shows_the_chain_and_who_answered(site):
    account = site.account()
    account.run("authnjwt", "--token-file", account.token_file("dump"))
    done = account.run("pvxcert", "-X")
    assert done.status == 0
    assert done.out.count("Public Key     : ") == 2
    assert "Extended Usage : clientAuth (client)" in done.out
    assert "Signature     : verified" in done.out
    assert f"Answered By   : 127.0.0.1:{site.tcp.port}" in done.out


def test_a_status_that_no_known_authority_signed_is_not_believed(site):
    account, stranger = site.account(), site.account()
    account.run("authnjwt", "--token-file", account.token_file("known"))
    identifier = account.keychain().cert_id
    done = stranger.run("pvxcert", identifier)
    assert done.status == 7
    assert "Status        : UNKNOWN\n" in done.out
    assert "says VALID, but this is not verified" in done.err
    anchor = account.config / "trust-anchor.pem"
    trusting = stranger.run("pvxcert", identifier, "--trust-anchor", anchor)
    assert trusting.status == 0, trusting.err


def test_what_the_service_does_not_know_is_unknown(site):
    account = site.account()
    account.run("authnstd", "-a")
    done = account.run("pvxcert", f"{site.cms.issuer}:12345")
    assert done.status == 7
    assert "Status        : UNKNOWN\n" in done.out
    nowhere = account.run("pvxcert", "-w", "0.5", "00000000:12345")
    assert nowhere.status == 1
    assert "timeout after 0.5 s" in nowhere.err


def test_a_keychain_of_trust_anchors_is_shown_with_the_fingerprint(site):
    account = site.account()
    done = account.run("authnstd", "--trust-anchor")
    assert done.status == 0, done.err
    assert done.out.startswith("Trust Anchor retrieved\n")
    keychain = account.keychain()
    assert keychain.is_trust_only
    assert keychain.anchors == (site.authority.certificate,)
    shown = account.run("pvxcert")
    assert shown.status == 0
    assert re.search(r"^Fingerprint    : sha256:[0-9a-f]{64}$", shown.out, re.MULTILINE)
    assert account.run("authnjwt", "--token-file", account.token_file("upgraded")).status == 0
    assert account.keychain().subject == "CN=upgraded, O=localhost"
    kept = account.run("authnstd", "-a")
    assert kept.status == 1
    assert "--force" in kept.err


def test_a_keychain_with_a_password_is_opened_with_it_and_with_nothing_else(site, tmp_path):
    password = tmp_path / "pw"
    password.touch(mode=0o600)
    password.write_text("open sesame\n")
    account = site.account()
    keychain = account.config / "client.p12"
    variables = {
        "EPICS_PVA_TLS_KEYCHAIN": str(keychain),
        "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE": str(password),
    }
    assert account.run("authnjwt", "--token-file", account.token_file("locked"), **variables).status == 0
    assert account.run("pvxcert", **variables).status == 0
    without = account.run("pvxcert", "-f", keychain)
    assert without.status == 1
    assert "-p asks for a password" in without.err
    assert account.run("pvxcert", "-p", "-f", keychain, stdin="open sesame\n").status == 0
    assert account.run("pvxcert", "-p", "-f", keychain, stdin="wrong\n").status == 1


def test_a_keychain_is_written_with_the_password_behind_its_name(site):
    account = site.account()
    keychain = account.config / "client.p12"
    variables = {"EPICS_PVA_TLS_KEYCHAIN": f"{keychain};open;sesame"}
    done = account.run("authnjwt", "-v", "--token-file", account.token_file("locked2"), **variables)
    assert done.status == 0, done.err
    assert sorted(path.name for path in keychain.parent.glob("*.p12*")) == ["client.p12"]
    shown = account.run("pvxcert", "-v", **variables)
    assert shown.status == 0, shown.err
    assert "sesame" not in done.out + done.err + shown.out + shown.err
    assert account.run("pvxcert", "-f", keychain).status == 1
    assert account.run("pvxcert", "-p", "-f", keychain, stdin="open;sesame\n").status == 0


def test_an_administrator_who_means_it_can_revoke_its_own_certificate(tmp_path):
    with running_site(tmp_path) as site:
        administrator = site.administrator()
        done = administrator.run("pvxcert", "-R", "--own")
        assert done.status == 0, done.err
        assert done.out.endswith(" ==> Completed Successfully\n")
        assert administrator.run("pvxcert").status in (0, 4)
        refused = administrator.run("pvxcert", "list", "-w", "2")
        assert refused.status == 1
