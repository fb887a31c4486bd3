"""A new authority takes over from one whose certificates still live: both statuses, one service, and an end."""

import asyncio
import os
import subprocess
from datetime import timedelta

import pytest
from cryptography import x509

from appliance.authn.trust import KnownAnchors, decide, read_offer
from appliance.certs.keychain import Keychain, load_keychain, make_keychain
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import CertificateAuthority, generate_key
from appliance.certs.status import OCSPState
from appliance.cms import ceremony
from appliance.cms.authorities import Authority, known_authorities
from appliance.cms.ceremony import install_chain, make_request, new_authority, print_bundle
from appliance.cms.config import FormerAuthority
from appliance.cms.service import CertificateService
from appliance.cms.setup import ensure_administrator
from appliance.config.secret import FilePath
from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import ConfigurationError, DatabaseLost, RemoteError
from tests.helpers import pki
from tests.helpers.cms import (
    Clock,
    admin_keychain,
    ccr,
    database,
    effective,
    keychain_of,
    plain,
    running,
    secure,
    settled,
)
from tests.helpers.live import until
from tests.transport.test_crossed import failures

pytestmark = pytest.mark.usefixtures("engine")
CLIENT, SERVER, IOC = 1, 2, 3
OPEN = {f"require_{usage}_approval": False for usage in ("client", "server", "ioc")}
LIVES = timedelta(days=30)


async def issued(context, name, usage=CLIENT, key=None, **more):
    key = key or generate_key("ec-p256")
    return keychain_of(await context.rpc("CERT:CREATE", ccr(name, usage=usage, key=key, **more)), key)


def ends_in(clock, **duration):
    return f"{(clock() + timedelta(**duration)).replace(microsecond=0).isoformat()}"


def successors(directory):
    """The keychains that `new_authority` has left."""
    return sorted(directory.glob("cert_auth-*.p12"))


def switched(directory, ends="", **more):
    """The settings of the service after the switch."""
    (new,) = successors(directory)
    old = FormerAuthority(keychain=FilePath(directory / "cert_auth.p12"), ends=ends)
    return {"cert_auth_tls_keychain": FilePath(new), "former_authorities": (old,), **OPEN, **more}


def introduce(directory, clock):
    new_authority(effective(directory).settings, clock())
    (new,) = successors(directory)
    return load_keychain(new.read_bytes())


def status_of(value):
    by = value["renew_by"]
    return value["state"], value["renewal_due"], by + EPICS_EPOCH_S if by else 0


async def test_both_authorities_statuses_are_served_and_only_the_new_one_issues(tmp_path, capsys):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        alice = await issued(context, "alice")
        old_root = service.authority.root
        old_own = service.own.keychain
    new = introduce(tmp_path, clock)
    assert new.certificate.not_valid_before_utc > old_root.not_valid_before_utc, (
        "even if both are of one moment"
    )
    said = capsys.readouterr().out
    assert "Nothing was switched" in said
    assert f"cert_auth_tls_keychain: {successors(tmp_path)[0]}" in said
    async with running(tmp_path, clock, **switched(tmp_path, ends_in(clock, days=30))) as service:
        assert service.own.keychain.issuer == new.certificate != old_own.issuer, (
            "its own certificate is a new one"
        )
        assert set(service.own.keychain.crossed) == set(new.crossed)
        async with plain(service) as context:
            before = await context.get(alice.status_pv)
            assert before["state"] == "VALID"
            verify_response(bytes(before["ocsp_response"]), issuer=old_root, serial=alice.serial, now=clock())
            bob = await issued(context, "bob")
            assert (bob.issuer, bob.issuer_id) == (new.certificate, service.names.issuer_id)
            after = await context.get(bob.status_pv)
            verify_response(
                bytes(after["ocsp_response"]), issuer=new.certificate, serial=bob.serial, now=clock()
            )
            # Neither authority says anything about certificates of the other one.
            crossed = alice.status_pv.replace(alice.issuer_id, bob.issuer_id)
            assert (await context.get(crossed))["state"] == "UNKNOWN"
            for name in ("CERT:ROOT", f"CERT:ROOT:{bob.issuer_id}", f"CERT:ROOT:{alice.issuer_id}"):
                root = await context.get(name)
                bundle = x509.load_pem_x509_certificates(root["bundle"].encode())
                assert bundle == [new.certificate, *new.crossed, old_root], name
                assert root["issuer"] == bob.issuer_id
            issuer = await context.get(f"CERT:ISSUER:{alice.issuer_id}")
            assert x509.load_pem_x509_certificates(issuer["cert"].encode()) == [old_root]
            under_old = await context.rpc(f"CERT:CREATE:{alice.issuer_id}", ccr("carol"))
            assert under_old["issuer"] == bob.issuer_id
    print_bundle(effective(tmp_path, **switched(tmp_path)).settings, clock())
    text = capsys.readouterr().out.partition("-----BEGIN")
    assert x509.load_pem_x509_certificates((text[1] + text[2]).encode())[0] == new.certificate


async def test_an_administrator_of_the_old_authority_revokes_certificates_of_both(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        alice = await issued(context, "alice")
        admin = admin_keychain(tmp_path)
    introduce(tmp_path, clock)
    async with (
        running(tmp_path, clock, **switched(tmp_path, ends_in(clock, days=30))) as service,
        plain(service) as context,
        secure(service, admin) as administrator,
    ):
        bob = await issued(context, "bob")
        for keychain, issuer in ((alice, alice.issuer), (bob, bob.issuer)):
            wrong = keychain.status_pv.replace(
                keychain.issuer_id, ({alice.issuer_id, bob.issuer_id} - {keychain.issuer_id}).pop()
            )
            with pytest.raises(RemoteError, match="is not known here"):
                await administrator.put(wrong, {"state": "REVOKED"})
            await administrator.put(keychain.status_pv, {"state": "REVOKED"})
            status = await context.get(keychain.status_pv)
            answer = verify_response(
                bytes(status["ocsp_response"]), issuer=issuer, serial=keychain.serial, now=clock()
            )
            assert answer.state is OCSPState.REVOKED
        # A key that was revoked with its certificate is not certified by the new authority either.
        with pytest.raises(RemoteError, match="never certified again"):
            await issued(context, "alice", key=alice.key)
    # The journal of revocations knows those of both.
    async with (
        running(tmp_path, clock, **switched(tmp_path, ends_in(clock, days=30))) as service,
        plain(service) as context,
    ):
        assert (await context.get(alice.status_pv))["state"] == "REVOKED"
        assert {alice.serial, bob.serial} <= set(service.journal.known)


async def test_the_holder_of_an_old_certificate_is_told_to_ask_and_gets_a_new_one_by_its_key(
    tmp_path, capsys
):
    """A name of a live certificate goes to its holder alone, also under the new authority, though nothing needs approval."""
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        alice = await issued(context, "alice")
    introduce(tmp_path, clock)
    capsys.readouterr()
    async with running(tmp_path, clock, **switched(tmp_path, ends_in(clock, days=30))) as service:
        said = capsys.readouterr().out
        assert f"3 certificates of the former authority {alice.issuer_id} CN=EPICS Root" in said
        assert "and it ends at" in said
        async with plain(service) as context:
            state, due, by = status_of(await context.get(alice.status_pv))
            assert (state, due) == ("VALID", True)
            start = clock().timestamp()
            assert start + 2.9 * 86400 < by < start + 3.1 * 86400, "most ask in the first tenth of the time"
            with pytest.raises(RemoteError, match="Duplicate Certificate Subject"):
                await issued(context, "alice")
            fresh = await issued(context, "alice", key=alice.key)
            assert fresh.issuer_id == service.names.issuer_id != alice.issuer_id
            assert (await context.get(alice.status_pv))["state"] == "VALID", (
                "it is used until the new one is in place"
            )
            with pytest.raises(RemoteError, match="Duplicate Certificate Subject"):
                await issued(context, "alice", key=alice.key)
            assert status_of(await context.get(fresh.status_pv))[1] is False
            clock.advance(days=5)
            await settled(service)
            later = (await context.get(alice.status_pv))["renew_by"] + EPICS_EPOCH_S
            assert later > start + 29 * 86400, "those who could not ask are told the end"


async def test_an_approval_under_the_old_authority_counts_under_the_new_one(tmp_path):
    clock = Clock()
    async with (
        running(tmp_path, clock) as service,
        plain(service) as context,
        secure(service, admin_keychain(tmp_path)) as admin,
    ):
        alice = await issued(context, "alice")
        await admin.put(alice.status_pv, {"state": "APPROVED"})
    introduce(tmp_path, clock)
    settings = switched(tmp_path, ends_in(clock, days=30))
    for usage in ("client", "server", "ioc"):
        del settings[f"require_{usage}_approval"]
    async with running(tmp_path, clock, **settings) as service, plain(service) as context:
        fresh = await issued(context, "alice", key=alice.key)
        assert (await context.get(fresh.status_pv))["state"] == "VALID"
        stranger = await issued(context, "bob")
        assert (await context.get(stranger.status_pv))["state"] == "PENDING_APPROVAL"


async def test_the_old_authority_ends_at_its_date(tmp_path, caplog):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        alice, eve = await issued(context, "alice"), await issued(context, "eve")
        old_own = service.own.keychain
        old_record = await service.lifecycle.find(eve.serial)
        assert old_record is not None
    introduce(tmp_path, clock)
    ends = (clock() + timedelta(days=30)).replace(microsecond=0)
    async with running(tmp_path, clock, **switched(tmp_path, ends.isoformat())) as service:
        async with plain(service) as context:
            bob = await issued(context, "bob")
            clock.advance(days=29, hours=23, minutes=45)
            await settled(service)
            status = await context.get(alice.status_pv)
            answer = verify_response(
                bytes(status["ocsp_response"]), issuer=alice.issuer, serial=alice.serial, now=clock()
            )
            assert answer.next_update <= ends, "nothing is signed beyond the end"
            clock.advance(minutes=20)
            await settled(service)
            status = await context.get(alice.status_pv)
            answer = verify_response(
                bytes(status["ocsp_response"]), issuer=alice.issuer, serial=alice.serial, now=clock()
            )
            assert (status["state"], answer.next_update > clock() + timedelta(minutes=10)) == (
                "EXPIRED",
                True,
            ), "who watches need not ask again in a second"
            of_the_service = alice.status_pv.replace(f"{alice.serial:020}", f"{old_own.serial:020}")
            assert (await context.get(of_the_service))["state"] == "EXPIRED", "its own one of then too"
            service.lifecycle.memory.put(old_record)  # whatever is known of a certificate
            assert (await context.get(eve.status_pv))["state"] == "EXPIRED"
            assert (await context.get(bob.status_pv))["state"] == "VALID"
        async with secure(service, alice) as refused:
            refused.channel(bob.status_pv)
            await until(lambda: "your certificate is EXPIRED" in caplog.text)
        found = await service.store.submit(lambda t: t.get(alice.serial).state.value)
        assert found == "EXPIRED", "and the database says it"
    async with (
        running(tmp_path, clock, **switched(tmp_path, ends.isoformat())) as service,
        plain(service) as context,
    ):
        root = await context.get("CERT:ROOT")
        assert len(x509.load_pem_x509_certificates(root["bundle"].encode())) == 3
        assert service.names.former == (), "at the next start it is left out"


async def trusting(context, clock, directory):
    """What an authenticator takes over from a service, without a keychain."""
    offer = read_offer(await context.get("CERT:ROOT"), now=clock())
    known = KnownAnchors(f"{directory}/{{}}".format, "CERT", "")
    return decide(offer, known=known, first_use=True, now=clock(), say=[].append)


async def test_who_checks_no_status_does_not_know_the_end_but_a_keychain_of_after_it_trusts_the_old_root_in_no_way(
    tmp_path,
):
    """With ``no_revocation_check`` the keychains alone decide, and the cross-certificate may end later than ``ends`` says."""
    clock = Clock()
    clock.advance(days=-40)  # TLS has the host's clock, so all that happens is over by then
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        old_ioc = await issued(context, "ioc", IOC)
    introduce(tmp_path, clock)
    settings = switched(tmp_path, ends_in(clock, days=30))
    found = {}
    async with running(tmp_path, clock, **settings) as service, plain(service) as context:
        for when, days in (("before", 1), ("after", 30)):
            clock.advance(days=days)
            await settled(service)
            await service.succession.look_after()
            key = generate_key("ec-p256")
            made = await issued(context, when, IOC, key)
            trust = await trusting(context, clock, tmp_path / when)
            found[when] = Keychain(key, made.certificate, made.chain, trust.anchors, trust.crossed)
            assert trust.anchors == (service.authority.root,)
        assert (await context.get(old_ioc.status_pv))["state"] == "EXPIRED"
    new_with_old, old_with_new = found["before"].crossed
    assert (new_with_old.issuer, old_with_new.not_valid_after_utc > clock()) == (
        old_ioc.certificate.issuer,
        True,
    )
    assert failures(old_ioc, found["before"]) == ["", ""], "as the how-to says"
    assert found["after"].crossed == ()
    assert any(failures(old_ioc, found["after"]))
    assert any(failures(found["after"], old_ioc))
    for one, other in (("before", "after"), ("after", "before"), ("after", "after")):
        assert failures(found[one], found[other]) == ["", ""]


@pytest.mark.parametrize("has_certificates", [True, False], ids=["with-certificates", "without"])
async def test_an_authority_that_was_not_introduced_does_not_get_the_database(tmp_path, has_certificates):
    async with running(tmp_path, **OPEN) as service, plain(service) as context:
        await issued(context, "alice")
        old = service.authority
    if not has_certificates:
        with database(tmp_path) as db:
            db.execute("DELETE FROM certs")
    stranger = pki.Authority("Another Root")
    path = pki.write_keychain(tmp_path / "other.p12", make_keychain(stranger.key, [stranger.certificate]))
    other = effective(tmp_path, cert_auth_tls_keychain=FilePath(path))
    with pytest.raises(
        ConfigurationError, match=f"the database belongs to the authority {old.issuer_id} CN=EPICS Root"
    ):
        CertificateService.open(other, clock=Clock())
    twice = FormerAuthority(keychain=FilePath(tmp_path / "cert_auth.p12"))
    with pytest.raises(ConfigurationError, match="is the present authority; name each authority once"):
        CertificateService.open(effective(tmp_path, former_authorities=(twice,)), clock=Clock())
    async with running(tmp_path, **OPEN) as service:
        known = await service.store.submit(lambda t: known_authorities(t.connection))
        assert set(known) == {old.issuer_id}, "what was refused has left nothing"


async def test_a_service_that_has_not_switched_brings_the_new_root_already(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN):
        pass
    new = introduce(tmp_path, clock)
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        root = await context.get("CERT:ROOT")
        bundle = x509.load_pem_x509_certificates(root["bundle"].encode())
        assert bundle[0] == service.authority.root
        assert new.certificate in bundle
        assert set(new.crossed) <= set(bundle)
        alice = await issued(context, "alice")
        assert status_of(await context.get(alice.status_pv)) == ("VALID", False, 0)


def test_a_new_root_needs_the_key_of_the_old_one(tmp_path):
    below = pki.site().ca.intermediate()
    pki.write_keychain(
        tmp_path / "cert_auth.p12", make_keychain(below.key, [below.certificate, *below.chain])
    )
    with pytest.raises(ConfigurationError, match="its root's key is not here; use --make-csr"):
        new_authority(effective(tmp_path).settings, Clock()())
    with pytest.raises(ConfigurationError, match="there is no authority yet"):
        new_authority(effective(tmp_path / "empty").settings, Clock()())


def test_a_new_authority_is_introduced_to_a_database_that_the_present_one_has_used(tmp_path, capsys):
    root = pki.site().ca
    pki.write_keychain(tmp_path / "cert_auth.p12", make_keychain(root.key, [root.certificate]))
    settings = effective(tmp_path, db=str(tmp_path / "certs.db")).settings
    with pytest.raises(ConfigurationError, match="there is no database yet"):
        new_authority(settings, Clock()())
    assert not successors(tmp_path), "nothing was made"
    print_bundle(settings, Clock()())
    assert x509.load_pem_x509_certificates(capsys.readouterr().out.encode()) == [root.certificate]
    assert not (tmp_path / "certs.db").exists()


def test_an_authority_that_cannot_be_introduced_is_not_made(tmp_path):
    root = pki.site().ca
    pki.write_keychain(tmp_path / "cert_auth.p12", make_keychain(root.key, [root.certificate]))
    (tmp_path / "certs.db").mkdir()
    settings = effective(tmp_path, db=str(tmp_path / "certs.db")).settings
    with pytest.raises(ConfigurationError, match="cannot be used"):
        new_authority(settings, Clock()())
    assert not successors(tmp_path)


async def test_what_an_administrator_has_to_do_is_said(tmp_path, capsys):
    clock = Clock()
    async with running(tmp_path, clock) as service:
        old = service.authority.issuer_id
    new_authority(effective(tmp_path, cert_auth_name="Site Root G2").settings, clock())
    assert f"First let {tmp_path / 'pvacms.acf'} name both authorities" in capsys.readouterr().out
    async with running(tmp_path, clock, **switched(tmp_path)) as service:
        settings = effective(tmp_path, admin_tls_keychain=FilePath(tmp_path / "other.p12")).settings
        with pytest.raises(ConfigurationError, match=rf"CN=admin, C=US already has a certificate \({old}:"):
            ensure_administrator(settings, service.issuing, "admin", must_be_new=True)


def test_what_root_makes_belongs_to_the_service(tmp_path):
    """An administrator may be root."""
    root = os.geteuid() == 0
    os.chown(tmp_path, 4711 if root else -1, 4712 if root else -1)
    make_request(effective(tmp_path).settings, str(tmp_path / "ca.csr"))
    key = (tmp_path / "cert_auth.p12.request").stat()
    expected = (4711, 4712) if root else (os.geteuid(), key.st_gid)
    assert (key.st_uid, key.st_gid) == expected
    assert key.st_mode & 0o777 == 0o600


def openssl(directory, command, data=b""):
    """One of the commands of docs/how-to/rotate-authority.md."""
    return subprocess.run(
        ["openssl", *command.split()], cwd=directory, input=data, check=True, capture_output=True, timeout=60
    ).stdout


def offline_root(directory, name):
    openssl(
        directory,
        f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -days 7300 -subj /CN=Site_Root",
    )


def crossed(directory, subject, signer, out):
    request = openssl(
        directory, f"x509 -x509toreq -in {subject}.pem -signkey {subject}.key -copy_extensions copyall"
    )
    openssl(
        directory,
        f"x509 -req -CA {signer}.pem -CAkey {signer}.key -days 400 -copy_extensions copyall -out {out}.pem",
        request,
    )


def signed(directory, root):
    openssl(
        directory,
        f"x509 -req -in ca.csr -CA {root}.pem -CAkey {root}.key -days 300 -copy_extensions copyall -out ca.pem",
    )


def test_the_key_of_a_request_stays_until_the_database_knows_the_authority(tmp_path, monkeypatch):
    settings = effective(tmp_path).settings
    offline_root(tmp_path, "old")
    make_request(settings, str(tmp_path / "ca.csr"))
    signed(tmp_path, "old")
    files = [str(tmp_path / "ca.pem"), str(tmp_path / "old.pem")]

    def lost(*_args):
        raise DatabaseLost("the database cannot be used")

    with monkeypatch.context() as patch:
        patch.setattr("appliance.cms.ceremony._finish", lost)
        with pytest.raises(DatabaseLost):
            install_chain(settings, files, Clock()())
    request = tmp_path / "cert_auth.p12.request"
    assert request.exists()
    (tmp_path / "cert_auth.p12").unlink()
    install_chain(settings, files, Clock()())
    assert not request.exists()


def test_a_new_root_that_no_authenticator_would_accept_is_told(capsys):
    old, new = pki.Authority("Site Root", begun=timedelta(days=3000)), pki.Authority("Site Root")
    present = Authority(CertificateAuthority(old.signer, old.certificate), old.certificate)
    for path_length in (0, None):
        crossed = old.crossed(new, path_length=path_length), new.crossed(old)
        later = Authority(CertificateAuthority(new.signer, new.certificate, (), crossed), new.certificate)
        ceremony._check_introduced(later, present, Clock()())
        said = capsys.readouterr().out
        assert ("authenticators refuse this new root" in said) is (path_length == 0)


async def test_a_service_goes_to_an_intermediate_of_a_new_offline_root(tmp_path, capsys):
    """The commands of the how-to, with openssl's own forms of everything."""
    clock = Clock()
    settings = effective(tmp_path).settings

    def install(*names):
        install_chain(settings, [str(tmp_path / f"{name}.pem") for name in names], clock())

    offline_root(tmp_path, "old")
    make_request(settings, str(tmp_path / "ca.csr"))
    signed(tmp_path, "old")
    install("ca", "old")
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        alice = await issued(context, "alice")
    offline_root(tmp_path, "new")
    make_request(settings, str(tmp_path / "ca.csr"))
    signed(tmp_path, "new")
    with pytest.raises(
        ConfigurationError, match=r"no cross-certificates, so no end would trust it.*openssl x509"
    ):
        install("ca", "new")
    crossed(tmp_path, "new", "old", "new-with-old")
    with pytest.raises(ConfigurationError, match="is neither above the authority"):
        install("ca", "new", "new-with-old")
    crossed(tmp_path, "old", "new", "old-with-new")
    install("old", "ca", "old-with-new", "new", "new-with-old")
    assert "pvacms.acf name both" not in capsys.readouterr().out, "both roots have one name"
    async with running(tmp_path, clock, **switched(tmp_path)) as service, plain(service) as context:
        bob = await issued(context, "bob")
        assert len(bob.chain) == 2
        assert (await context.get(alice.status_pv))["state"] == "VALID"
        async with secure(service, alice) as known:
            assert (await known.get(bob.status_pv))["state"] == "VALID", (
                "the old keychain knows the new service"
            )
        async with secure(service, bob) as known:
            assert (await known.get(alice.status_pv))["state"] == "VALID"


async def test_the_next_authority_may_have_its_key_elsewhere(tmp_path, capsys):
    """In a token, or in a file: the settings are those of after the switch."""
    clock = Clock()
    offline_root(tmp_path, "root")
    make_request(effective(tmp_path).settings, str(tmp_path / "ca.csr"))
    signed(tmp_path, "root")
    files = [str(tmp_path / name) for name in ("ca.pem", "root.pem")]
    install_chain(effective(tmp_path).settings, files, clock())
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        alice = await issued(context, "alice")
    openssl(tmp_path, "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out next.key")
    (tmp_path / "next.key").chmod(0o600)
    after = {
        "cert_auth_tls_keychain": FilePath(""),
        "ca_key": str(tmp_path / "next.key"),
        "ca_certificate": FilePath(tmp_path / "next.pem"),
        "former_authorities": (FormerAuthority(keychain=FilePath(tmp_path / "cert_auth.p12")),),
    }
    settings = effective(tmp_path, **after).settings
    make_request(settings, str(tmp_path / "ca.csr"))
    signed(tmp_path, "root")
    capsys.readouterr()
    install_chain(settings, files, clock())
    assert "have these settings and the file on each node" in capsys.readouterr().out
    async with running(tmp_path, clock, **after, **OPEN) as service, plain(service) as context:
        bob = await issued(context, "bob")
        assert bob.chain[0] != alice.chain[0]
        assert (await context.get(alice.status_pv))["renewal_due"]


async def test_who_follows_a_second_time_takes_the_first_root_along(tmp_path, capsys):
    """The root stays, and ends with the root before it are still there: its cross-certificates are known, and need not be given."""
    clock = Clock()
    settings = effective(tmp_path).settings

    def install(to, *names):
        install_chain(to, [str(tmp_path / f"{name}.pem") for name in names], clock())

    offline_root(tmp_path, "old")
    make_request(settings, str(tmp_path / "ca.csr"))
    signed(tmp_path, "old")
    install(settings, "ca", "old")
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        alice = await issued(context, "alice")
    offline_root(tmp_path, "new")
    crossed(tmp_path, "new", "old", "new-with-old")
    crossed(tmp_path, "old", "new", "old-with-new")
    make_request(settings, str(tmp_path / "ca.csr"))
    signed(tmp_path, "new")
    install(settings, "ca", "new", "new-with-old", "old-with-new")
    second = switched(tmp_path)
    async with running(tmp_path, clock, **second):
        pass
    capsys.readouterr()
    after = effective(tmp_path, **second).settings
    make_request(after, str(tmp_path / "ca.csr"))
    signed(tmp_path, "new")
    install(after, "ca", "new")
    said = capsys.readouterr().out
    assert "Cross-certificates taken: those of the root and the former root CN=Site_Root, until" in said
    assert f"those that are there already: {tmp_path / 'cert_auth.p12'}" in said
    (third,) = {*tmp_path.glob("cert_auth-*-*.p12")}
    assert len(load_keychain(third.read_bytes()).crossed) == 2
    former = (
        FormerAuthority(keychain=second["cert_auth_tls_keychain"]),
        *second["former_authorities"],
    )
    third_settings = {"cert_auth_tls_keychain": FilePath(third), "former_authorities": former, **OPEN}
    async with running(tmp_path, clock, **third_settings) as service, plain(service) as context:
        bob = await issued(context, "bob")
        assert bob.issuer_id == service.names.issuer_id
        for keychain, other in ((alice, bob), (bob, alice)):
            async with secure(service, keychain) as known:
                assert (await known.get(other.status_pv))["state"] == "VALID"


async def test_a_root_that_would_cut_off_the_ends_of_an_earlier_one_is_not_made(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        alice = await issued(context, "alice")
    introduce(tmp_path, clock)
    second = switched(tmp_path, ends_in(clock, days=30))
    async with running(tmp_path, clock, **second):
        pass
    made = successors(tmp_path)
    with pytest.raises(
        ConfigurationError,
        match=rf"3 certificates of the former authority {alice.issuer_id} .* would be cut off now\. Wait until then; or",
    ):
        new_authority(effective(tmp_path, **second).settings, clock())
    assert successors(tmp_path) == made
    clock.advance(days=31)
    async with running(tmp_path, clock, **second) as service:
        await settled(service)
    new_authority(effective(tmp_path, **second).settings, clock())
    assert len(successors(tmp_path)) == 2


async def test_the_end_of_a_former_authority_is_told_each_day_and_by_health_and_metrics(tmp_path, caplog):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        await issued(context, "alice")
    introduce(tmp_path, clock)
    async with (
        running(tmp_path, clock, **switched(tmp_path, ends_in(clock, days=40))) as service,
        plain(service) as context,
    ):

        async def told():
            await service.succession.look_after()
            await service.health.check()
            health, metrics = await context.get("CERT:HEALTH"), await context.get("CERT:METRICS")
            assert health["value.index"] == 1
            lines = [r.message for r in caplog.records if getattr(r, "event", "") == "authority-ends"]
            return health["alarm.severity"], metrics["certs_former"], metrics["certs_ending"], len(lines)

        assert await told() == (0, 3, 0, 0)
        clock.advance(days=11)
        assert await told() == (1, 3, 3, 1)
        assert "3 certificates of the former authority" in (await context.get("CERT:HEALTH"))["alarm.message"]
        clock.advance(hours=3)
        assert await told() == (1, 3, 3, 1)
        clock.advance(hours=22)
        assert await told() == (1, 3, 3, 2)
        clock.advance(days=40)
        await settled(service)
        assert await told() == (0, 0, 0, 2), "it has ended"


async def test_an_authority_that_is_introduced_while_the_service_runs_is_known_at_once(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        async with context.monitor("CERT:ROOT") as updates:
            await anext(updates)
            new = await asyncio.to_thread(introduce, tmp_path, clock)
            text = (await asyncio.wait_for(anext(updates), 60))["bundle"]
        assert new.certificate in x509.load_pem_x509_certificates(text.encode())
        assert (await issued(context, "alice")).issuer == service.authority.root, "nothing is switched"
    # Who starts it again with the settings of before the switch is told, and nothing is issued by mistake.
    async with running(tmp_path, clock, **switched(tmp_path)):
        pass
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as context:
        with pytest.raises(RemoteError, match=r"issues nothing, because the authority .* has taken over"):
            await issued(context, "bob")
