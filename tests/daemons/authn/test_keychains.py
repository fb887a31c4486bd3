"""What becomes of keychains that are there, of keys, and of tokens that are no good."""

import os
import re
import stat
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.authn.jwt.requester import jwt_request, read_token
from appliance.authn.requester import Requester, Trusting
from appliance.authn.sending import Line
from appliance.authn.settings import resolve_requester
from appliance.authn.std.requester import std_request, std_subject
from appliance.certs.keychain import dump_keychain, load_keychain, make_keychain
from appliance.certs.profiles import build_ca, generate_key, subject_name
from appliance.certs.signer import KeySigner
from appliance.errors import RemoteError, SecurityError
from tests.helpers.authn import running_site

DAY = timedelta(days=1)


def public(keychain) -> bytes:
    return keychain.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def obtain(account, sub, *arguments, **variables):
    return account.run("authnjwt", "--token-file", account.token_file(sub), *arguments, **variables)


def test_a_valid_keychain_is_replaced_only_by_force_and_its_key_is_used_again(site):
    account = site.account()
    assert obtain(account, "again").status == 0
    first, before = account.keychain(), (account.config / "client.p12").read_bytes()
    kept = obtain(account, "again")
    assert (kept.status, kept.out) == (4, "")
    assert "--force" in kept.err
    assert (account.config / "client.p12").read_bytes() == before
    forced = obtain(account, "again", "--force")
    assert forced.status == 0, forced.err
    second = account.keychain()
    assert second.serial != first.serial
    assert public(second) == public(first)
    assert stat.S_IMODE((account.config / "client.p12").stat().st_mode) == 0o600


def test_an_expired_keychain_is_renewed_without_force_and_keeps_its_key(site):
    account = site.account()
    old = site.issue("old", begun=2 * DAY, left=-DAY)
    account.place(old)
    done = obtain(account, "old")
    assert done.status == 0, done.err
    assert public(account.keychain()) == public(old)


def test_authnstd_without_a_name_keeps_the_name_of_an_ended_keychain(site):
    """It is the cure that the doctor proposes: the account's own name must not take the operator's place."""
    account = site.account()
    old = site.issue("operator", begun=2 * DAY, left=-DAY)
    account.place(old)
    done = account.run("authnstd")
    assert done.status in (0, 3), done.err
    assert account.keychain().serial != old.serial
    assert account.keychain().subject == old.subject
    assert public(account.keychain()) == public(old)


def test_after_a_revocation_the_next_keychain_has_a_new_key(site):
    """The key may be what was lost."""
    account = site.account()
    obtain(account, "lost-laptop")
    old = account.keychain()
    assert site.administrator().run("pvxcert", "-R", old.cert_id).status == 0
    done = obtain(account, "lost-laptop")
    assert done.status == 0, done.err
    assert "revoked" in done.err
    assert public(account.keychain()) != public(old)


@pytest.mark.parametrize(
    ("begun", "left", "due"), [(DAY, 3 * DAY, False), (3 * DAY, DAY, True), (3 * DAY, -DAY, True)]
)
def test_a_timer_renews_when_two_thirds_of_the_lifetime_are_over(site, begun, left, due):
    account = site.account()
    old = site.issue("service", begun=begun, left=left)
    path = account.place(old)
    before = path.read_bytes()
    assert account.run("authnjwt", "--check-due").status == (0 if due else 4)
    # Without a token where nothing is due: a timer need not have one then.
    arguments = ["--token-file", account.token_file("service")] if due else []
    done = account.run("authnjwt", "--if-due", *arguments)
    assert done.status == 0, done.err
    assert (path.read_bytes() != before) is due
    assert bool(done.out) is due
    if due:
        assert public(account.keychain()) == public(old)


def test_a_token_without_a_beginning_is_not_due_at_once(tmp_path):
    """Its nbf is 0, so the certificate is as old as its authority: due is reckoned from what was left of it at issue."""
    now = datetime.now(UTC).replace(microsecond=0)
    key = generate_key("ec-p256")
    authority = build_ca(
        KeySigner(key),
        subject=subject_name("Old CA"),
        not_before=now - 700 * DAY,
        not_after=now + 700 * DAY,
        serial=7,
    )
    path = tmp_path / "old_authority.p12"
    path.touch(mode=0o600)
    path.write_bytes(dump_keychain(make_keychain(key, [authority])))
    with running_site(tmp_path, EPICS_CERT_AUTH_TLS_KEYCHAIN=str(path)) as site:
        account = site.account()
        claims = jwt.decode(site.token("eternal"), options={"verify_signature": False})
        header = jwt.get_unverified_header(site.token("eternal"))
        signer = (site.directory / "issuer" / "id_rsa.pem").read_bytes()
        token = jwt.encode({**claims, "nbf": 0, "jti": "eternal"}, signer, algorithm="RS256", headers=header)
        done = account.run("authnjwt", "--token-file", "-", stdin=token)
        assert done.status == 0, done.err
        assert account.keychain().certificate.not_valid_before_utc == now - 700 * DAY
        before = (account.config / "client.p12").read_bytes()
        assert account.run("authnjwt", "--check-due").status == 4
        assert account.run("authnjwt", "--if-due").status == 0
        assert (account.config / "client.p12").read_bytes() == before
        settings = resolve_requester("client", {}, account.environment())
        for minutes, due in ((38, False), (42, True)):
            later = Requester(
                settings,
                Trusting(),
                say=print,
                timeout_s=1,
                now=lambda minutes=minutes: datetime.now(UTC) + timedelta(minutes=minutes),
            )
            assert later.renewal_due(later.look())[0] is due


@pytest.mark.parametrize("arguments", [[], ["--if-due"]])
@pytest.mark.parametrize("tool", ["authnjwt", "authnstd"])
def test_a_certificate_that_the_service_does_not_know_counts_as_ended(site, tool, arguments):
    """As after a restore of the service's database: it needs no --force, and a timer renews it."""
    account = site.account()
    name = f"forgotten-{tool}{len(arguments)}"
    old = site.issue(name, begun=DAY, left=3 * DAY, status=True)
    account.place(old)
    verbose = account.run(tool, "--check-due", "-v")
    assert verbose.status == 0
    assert "does not know its certificate" in verbose.err
    proof = ["--token-file", account.token_file(name)] if tool == "authnjwt" else ["-n", name]
    done = account.run(tool, *proof, *arguments)
    assert done.status == (0 if tool == "authnjwt" else 3), done.err
    assert "does not know its certificate (was its database restored" in done.err
    new = account.keychain()
    assert new.serial != old.serial
    assert public(new) == public(old)


def test_a_certificate_of_which_nothing_is_heard_is_left_alone(site):
    account = site.account()
    account.place(site.issue("silent", begun=DAY, left=3 * DAY, status=True))
    before = (account.config / "client.p12").read_bytes()
    nobody = {"EPICS_PVA_NAME_SERVERS": "127.0.0.1:9"}
    assert account.run("authnjwt", "--check-due", **nobody).status == 4
    unheard = account.run("authnjwt", "--if-due", **nobody)
    assert unheard.status == 0
    assert "by its age; the certificate service does not answer, so it may be due earlier" in unheard.err
    assert (account.config / "client.p12").read_bytes() == before


def test_a_timer_makes_the_first_keychain_too(site):
    account = site.account()
    assert account.run("authnstd", "--check-due", "-u", "server").status == 0
    assert obtain(account, "first", "--if-due", "-u", "server").status == 0
    assert account.run("authnstd", "--check-due", "-u", "server").status == 4


@pytest.mark.parametrize("content", [b"", b"not a keychain"])
def test_a_file_that_is_no_keychain_is_left_alone(site, content):
    account = site.account()
    account.config.mkdir(parents=True)
    path = account.config / "client.p12"
    path.touch(mode=0o600)
    path.write_bytes(content)
    done = obtain(account, "alone")
    assert done.status == 1
    assert "--force" in done.err
    assert path.read_bytes() == content
    assert obtain(account, "alone", "--force").status == 0
    assert account.keychain().subject == "CN=alone, O=localhost"


def test_a_refused_request_leaves_everything_as_it_was(site):
    account = site.account()
    obtain(account, "kept")
    path = account.config / "client.p12"
    before = path.read_bytes()
    bad = account.home / "bad"
    bad.touch(mode=0o600)
    token = site.token("kept")
    bad.write_text(token[:-6] + ("AAAAAA" if not token.endswith("AAAAAA") else "BBBBBB"))
    done = account.run("authnjwt", "--force", "--token-file", bad)
    assert done.status == 1
    assert "token" in done.err
    assert path.read_bytes() == before
    assert [entry.name for entry in account.config.iterdir() if "p12" in entry.name] == ["client.p12"]


def test_the_place_is_checked_before_a_certificate_is_asked_for(site):
    account = site.account()
    (account.config / "client.p12").mkdir(parents=True)
    before = site.audit()
    done = account.run("authnstd", "-n", "homeless")
    assert done.status == 1
    assert "client.p12" in done.err
    assert site.audit() == before


def test_a_place_where_no_file_can_be_made_is_known_before_a_certificate_is_asked_for(site):
    """Not even root can make a file there, and nothing is in the way that would be noticed earlier."""
    before = site.audit()
    done = site.account().run("authnstd", "-n", "homeless", EPICS_PVA_TLS_KEYCHAIN="/proc/client.p12")
    assert (done.status, done.out) == (1, "")
    assert "/proc" in done.err
    assert site.audit() == before


def test_whatever_the_umask_what_authnstd_makes_is_the_accounts_alone(site):
    account = site.account()
    done = account.run("authnstd", "-n", "open-to-all", umask=0)
    assert done.status in (0, 3), done.err
    made = {path: stat.S_IMODE(path.stat().st_mode) for path in account.home.rglob("*")}
    assert {path: mode for path, mode in made.items() if path.is_dir() and mode != 0o700} == {}
    assert made[account.config / "client.p12"] == 0o600
    assert account.config.parent.parent in made
    assert {path: mode for path, mode in made.items() if mode & 0o022} == {}


def test_the_keychain_variables_say_where(site, tmp_path):
    account = site.account()
    for usage, variable in (("client", "EPICS_PVA_TLS_KEYCHAIN"), ("server", "EPICS_PVAS_TLS_KEYCHAIN")):
        path = tmp_path / usage / "mine.p12"
        done = obtain(account, "where", "-u", usage, **{variable: str(path)})
        assert done.status == 0, done.err
        assert f"Keychain file created   : {path}\n" in done.out
        assert load_keychain(path.read_bytes()).subject == "CN=where, O=localhost"


def test_a_token_comes_from_a_file_a_variable_or_standard_input(site):
    account = site.account()
    file = account.token_file("in")
    assert account.run("authnjwt", EPICS_AUTH_JWT_FILE=str(file)).status == 0
    piped = account.run("authnjwt", "--force", "--token-file", "-", stdin=site.token("in") + "\n")
    assert piped.status == 0, piped.err
    nothing = account.run("authnjwt", "--force")
    assert nothing.status == 1
    assert "EPICS_AUTH_JWT_FILE" in nothing.err


def test_a_token_on_the_command_line_is_refused_and_not_repeated(site):
    account = site.account()
    token = site.token("pasted")
    for arguments, variables in ((["--token-file", token], {}), ([], {"EPICS_AUTH_JWT_FILE": token})):
        done = account.run("authnjwt", *arguments, **variables)
        assert done.status == 1
        assert "fetch a new one" in done.err
        assert token not in done.err + done.out
        assert token.split(".")[2] not in done.err + done.out


def test_an_expired_token_is_refused_here_with_the_date_and_what_to_do(site):
    account = site.account()
    before = site.audit()
    file = account.home / "late"
    file.touch(mode=0o600)
    file.write_text(jwt.encode({"sub": "late", "exp": 1_700_000_000}, "0" * 32, "HS256"))
    done = account.run("authnjwt", "--token-file", file)
    assert done.status == 1
    assert "token expired at Tue Nov 14 22:13:20 2023 UTC; fetch a new one" in done.err
    assert site.audit() == before, "it never reached the service"


@pytest.mark.parametrize("text", ["", "hello", "a.b.c", "x" * 20_000])
def test_what_is_no_token_is_called_so(site, text):
    account = site.account()
    file = account.home / "odd"
    file.touch(mode=0o600)
    file.write_text(text)
    done = account.run("authnjwt", "--token-file", file)
    assert done.status == 1
    assert re.search("holds no token|holds no usable JSON Web Token|larger than", done.err)
    assert len(text) < 10 or text[:100] not in done.err


def test_no_secret_shows_in_any_output_log_or_audit(site):
    account = site.account()
    file = account.token_file("discreet")
    token = file.read_text().strip()
    done = account.run("authnjwt", "-v", "-d", "--token-file", file, PVXS_LOG="*=DEBUG")
    assert done.status == 0, done.err
    refused = account.run("authnjwt", "-v", "-d", "--force", "--token-file", file)
    key = account.keychain().key
    secret = format(key.private_numbers().d, "x")
    log = "".join(site.cms.log) + site.audit()
    while not site.cms._err.empty():
        log += site.cms._err.get() or ""
    for text in (done.out, done.err, refused.out, refused.err, log):
        assert token not in text
        assert token.split(".")[1] not in text
        assert token.split(".")[2] not in text
        assert "PRIVATE KEY" not in text
        assert secret not in text
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in account.config.iterdir()}
    assert modes == {"client.p12": 0o600, "trust-anchor.pem": 0o644}
    assert stat.S_IMODE(account.config.stat().st_mode) == 0o700


def test_a_renewed_keychain_still_belongs_to_its_service(site):
    """Root renews for services; whoever else renews can only own what is his."""
    account = site.account()
    path = account.place(site.issue("daemon", begun=3 * DAY, left=-DAY))
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    before = path.stat()
    assert obtain(account, "daemon", "--if-due").status == 0
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


async def test_a_timer_of_a_claimed_name_waits_for_the_end_of_the_present_certificate(site):
    """The service gives a name that nothing proves no second live certificate; the timer must not fail for that."""
    account = site.account()
    assert account.run("authnstd", "-n", "patient", "-t", "30").status == 3
    before = (account.config / "client.p12").read_bytes()
    settings = resolve_requester("client", {"name": "patient"}, account.environment())
    said = []
    late = Requester(
        settings,
        Trusting(),
        say=said.append,
        timeout_s=10,
        now=lambda: datetime.now(UTC) + timedelta(minutes=25),
    )
    assert late.renewal_due(late.look())[0]
    outcome = await late.request(
        std_request(settings, now=late.now()), subject=std_subject(settings), if_due=True
    )
    assert outcome.action == "not due"
    assert "no second certificate while the present one is valid" in said[0]
    assert (account.config / "client.p12").read_bytes() == before
    with pytest.raises(RemoteError, match="Duplicate"):
        await late.request(std_request(settings, now=late.now()), subject=std_subject(settings), force=True)


async def test_a_token_renews_while_the_present_certificate_is_valid(site):
    """Services must roll over without a gap; what runs takes the new file into use."""
    account = site.account()
    assert obtain(account, "rolling", "-u", "ioc").status == 0
    old = account.keychain("server.p12")
    settings = resolve_requester("ioc", {}, account.environment())
    file = str(account.token_file("rolling"))
    late = Requester(
        settings,
        Trusting(first_use=False),
        say=lambda _: None,
        timeout_s=10,
        now=lambda: datetime.now(UTC) + timedelta(minutes=45),
    )
    async with Line(secret=True) as line:
        outcome = await late.request(
            jwt_request(settings, read_token(file, print)), subject=None, if_due=True, line=line
        )
    assert outcome.action == "created"
    new = account.keychain("server.p12")
    assert new.serial != old.serial
    assert public(new) == public(old)
    for keychain in (old, new):
        assert account.run("pvxcert", keychain.cert_id).status == 0


async def test_a_timer_does_not_undo_a_revocation(site):
    account = site.account()
    token_file = account.token_file("ended", exp_secs=1200)
    assert account.run("authnjwt", "--token-file", token_file).status == 0
    before = (account.config / "client.p12").read_bytes()
    settings = resolve_requester("client", {}, account.environment())
    late = Requester(
        settings,
        Trusting(),
        say=lambda _: None,
        timeout_s=10,
        now=lambda: datetime.now(UTC) + timedelta(minutes=15),
    )
    token = read_token(str(account.token_file("ended")), print)
    assert site.administrator().run("pvxcert", "-R", account.keychain().cert_id).status == 0
    soon = account.run("authnjwt", "--check-due")
    assert soon.status == 0, "the timer runs, and fails"
    assert "due: its certificate is revoked" in soon.out + soon.err
    soon = account.run("authnjwt", "--if-due", "--token-file", account.home / "token_file")
    assert soon.status == 1
    assert "revoked, and an automatic renewal" in soon.err
    assert "a new one is requested" not in soon.err
    assert late.renewal_due(late.look())[0]
    async with Line(secret=True) as line:
        with pytest.raises(SecurityError, match="revoked, and an automatic renewal"):
            await late.request(jwt_request(settings, token), subject=None, if_due=True, line=line)
    assert (account.config / "client.p12").read_bytes() == before
    by_hand = account.run("authnjwt", "--force", "--token-file", account.home / "token_file")
    assert by_hand.status == 0, by_hand.err
    assert "with a new key" in by_hand.err


def test_authnstd_proves_its_key_so_it_asks_again_for_its_own_name_and_a_stranger_does_not(tmp_path):
    with running_site(tmp_path) as site:
        account, stranger = site.account(), site.account()
        asked = ("authnstd", "-n", "operator", "-o", "lab", "-c", "US")
        assert account.run(*asked).status == 3
        first = account.keychain()
        refused = stranger.run(*asked)
        assert refused.status == 1
        assert "an administrator has to approve or deny it" in refused.err
        # Nobody has approved it yet; the same key asks again, and the first request gives way.
        assert account.run(*asked, "--force").status == 3
        second = account.keychain()
        assert public(second) == public(first)
        assert second.serial != first.serial
        assert account.run("pvxcert", first.cert_id).status == 4
        assert site.administrator().run("pvxcert", "-A", second.cert_id).status == 0
        shown = account.run("pvxcert", second.cert_id)
        assert shown.status == 0
        assert "Valid From    :" in shown.out
        again = account.run(*asked)
        assert again.status == 4
        assert f"use --force to replace it, after it was revoked (pvxcert -R {second.cert_id})" in again.err
        wish = stranger.run("authnstd", "-n", "other", "-o", "lab", "-c", "US", "--no-status")
        assert wish.status == 1
        assert "certificates without a status are not issued here" in wish.err
        long = stranger.run("authnstd", "-n", "\u00e9" * 33, "-o", "lab", "-c", "US")
        assert long.status == 1
        assert "66 octets in UTF-8; at most 64 are allowed" in long.err


def test_alternative_names_that_a_new_certificate_lacks_are_named(tmp_path):
    with running_site(tmp_path) as site:
        account = site.account()
        asked = ("authnstd", "-n", "operator", "-o", "lab", "-c", "US", "--force", "--san", "dns=one.lab")
        first = account.run(*asked, "--san", "ip=10.0.0.1")
        assert first.status == 3, first.err
        second = account.run(*asked)
        assert second.status == 3, second.err
        assert (
            "does not have the alternative names of the one before: ip=10.0.0.1; ask for them" in second.err
        )
        assert "alternative names" not in account.run(*asked).err


def test_one_token_makes_a_clients_and_a_servers_keychain(site):
    """Both requests leave over one connection, so the service takes the token once; a second run needs another token."""
    account = site.account()
    token_file = account.token_file("both")
    done = account.run("authnjwt", "-u", "client", "-u", "server", "--token-file", token_file)
    assert done.status == 0, done.err
    assert done.out.count("Keychain file created") == 2
    client, server = account.keychain(), account.keychain("server.p12")
    assert client.subject == server.subject
    assert client.serial != server.serial
    again = account.run("authnjwt", "-u", "client", "-u", "server", "--token-file", token_file)
    assert again.status == 4, "both are valid, so nothing is asked"
    new = account.run("authnjwt", "--new-key", "--token-file", account.token_file("both", "second"))
    assert new.status == 0, new.err
    assert public(account.keychain()) != public(client)
