"""A certificate service whose authority's key is in a token (SoftHSM 2)."""

import asyncio
import signal
import sqlite3
import threading
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.certs.keychain import make_keychain
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import build_ca, generate_key
from appliance.certs.status import CertState, OCSPState
from appliance.certs.x509 import is_self_signed
from appliance.cms import pkcs11
from appliance.cms.ceremony import install_chain, make_request, new_authority
from appliance.cms.config import FormerAuthority
from appliance.cms.model import Actor
from appliance.config.secret import FilePath, Secret
from appliance.errors import ConfigurationError, RemoteError, SigningError
from tests.helpers import pki
from tests.helpers.cms import (
    Clock,
    Process,
    admin_keychain,
    ccr,
    effective,
    keychain_of,
    plain,
    running,
    secure,
)
from tests.helpers.softhsm import PIN, WRONG, token_here

ROOT = pki.Authority("Site Root")
BELOW = ROOT.intermediate("Site Issuing CA")
OPEN = {f"require_{usage}_approval": False for usage in ("client", "server", "ioc")}


@pytest.fixture
def token(tmp_path, monkeypatch):
    monkeypatch.setattr(pkcs11, "_AGAIN_S", 0.02)
    monkeypatch.setattr(pkcs11, "_AGAIN_MAX_S", 0.1)
    return token_here(tmp_path, monkeypatch)


def pin_file(directory, pin=PIN):
    path = directory / "pin"
    path.touch(mode=0o600)
    path.write_text(pin + "\n")
    return path


def settings_of(token, directory, pin=PIN):
    return {
        "ca_key": token.uri,
        "ca_key_pin": Secret.from_file(pin_file(directory, pin)),
        "ca_certificate": FilePath(directory / "ca.pem"),
        "cert_auth_tls_keychain": FilePath(),
        **OPEN,
    }


def put_chain(directory, *certificates):
    (directory / "ca.pem").write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))


async def until_it_works(service):
    async with asyncio.timeout(60):
        while service.authority.issuer.signer.trouble:
            await asyncio.sleep(0.01)


def rows(directory, table):
    with sqlite3.connect(directory / "certs.db") as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


async def test_an_intermediate_authority_whose_key_is_in_a_token_issues_and_signs_statuses(token, tmp_path):
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    async with (
        running(tmp_path, admin="admin", **settings_of(token, tmp_path)) as service,
        plain(service) as anyone,
    ):
        key = generate_key("ec-p256")
        reply = await anyone.rpc("CERT:CREATE", ccr(key=key))
        keychain = keychain_of(reply, key)
        assert keychain.chain == (BELOW.certificate, ROOT.certificate)
        keychain.certificate.verify_directly_issued_by(BELOW.certificate)
        der = bytes((await anyone.get(reply["status_pv"]))["ocsp_response"])
        answer = verify_response(der, issuer=BELOW.certificate, serial=keychain.serial, now=service.clock())
        assert answer.state is OCSPState.GOOD
        async with secure(service, admin_keychain(tmp_path)) as admin:
            await admin.put(reply["status_pv"], {"state": "REVOKED"})
        # The token signs it a moment after the administrator has the answer.
        async with asyncio.timeout(60):
            while (await anyone.get(reply["status_pv"]))["state"] != "REVOKED":
                await asyncio.sleep(0.01)
        assert (await anyone.get("CERT:HEALTH"))["value.index"] == 1
    assert not (tmp_path / "cert_auth.p12").exists()


async def test_the_first_start_makes_a_root_for_the_tokens_key_and_later_ones_keep_it(token, tmp_path):
    token.store(generate_key("ec-p384"))
    settings = settings_of(token, tmp_path)
    async with running(tmp_path, **settings) as service:
        root = service.authority.root
        assert is_self_signed(root)
        assert root.public_key() == service.authority.issuer.signer.public_key()
    async with running(tmp_path, **settings) as service:
        assert service.authority.root == root
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(ConfigurationError, match=r"ca\.pem: the authority's certificate is missing"):
        async with running(tmp_path, **settings):
            pass
    assert not (tmp_path / "ca.pem").exists()


async def test_without_its_token_it_refuses_requests_serves_statuses_and_is_not_healthy(token, tmp_path):
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    async with running(tmp_path, **settings_of(token, tmp_path)) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        before = bytes((await anyone.get(reply["status_pv"]))["ocsp_response"])
        token.unplug()
        # The first one finds out. What was recorded for it is revoked again: nobody has that certificate.
        with pytest.raises(RemoteError, match="the authority's key cannot be reached") as refusal:
            await anyone.rpc("CERT:CREATE", ccr("first"))
        assert "pkcs11:" not in str(refusal.value), "which token it is concerns no requester"
        await service.lifecycle.settle()
        with sqlite3.connect(tmp_path / "certs.db") as connection:
            assert connection.execute("SELECT state FROM certs WHERE cn = 'first'").fetchall() == [
                ("REVOKED",)
            ]
        known, noted = rows(tmp_path, "certs"), rows(tmp_path, "audit")
        with pytest.raises(RemoteError, match="nothing is issued at present; ask again later"):
            await anyone.rpc("CERT:CREATE", ccr("second"))
        assert (rows(tmp_path, "certs"), rows(tmp_path, "audit")) == (known, noted)
        await service.health.check()
        health = await anyone.get("CERT:HEALTH")
        assert health["value.index"] == 0
        assert "the authority's key cannot be reached" in health["alarm.message"]
        assert "pkcs11:" not in health["alarm.message"], "anybody reads it"
        assert bytes((await anyone.get(reply["status_pv"]))["ocsp_response"]) == before
        token.plug_in()
        await until_it_works(service)
        assert (await anyone.rpc("CERT:CREATE", ccr("second")))["state"] == "VALID"
        await service.health.check()
        assert (await anyone.get("CERT:HEALTH"))["value.index"] == 1


async def test_a_key_that_is_not_the_certificates_ends_the_start(token, tmp_path):
    token.store(generate_key("ec-p256"))
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    with pytest.raises(SigningError, match="not that of the authority's certificate"):
        async with running(tmp_path, **settings_of(token, tmp_path)):
            pass


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cannot be read"),
        ("below", "chain is incomplete"),
        ("-----BEGIN CERTIFICATE-----\nAA\n", "cannot be read"),
    ],
    ids=["empty", "without-root", "damaged"],
)
async def test_a_certificate_file_that_cannot_be_used_ends_the_start(token, tmp_path, text, why):
    token.store(BELOW.key)
    if text == "below":
        put_chain(tmp_path, BELOW.certificate)
    else:
        (tmp_path / "ca.pem").write_text(text)
    with pytest.raises(ConfigurationError, match=why):
        async with running(tmp_path, **settings_of(token, tmp_path)):
            pass


async def test_a_reload_tries_the_pin_that_an_administrator_has_corrected(token, tmp_path):
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    settings = settings_of(token, tmp_path)
    async with running(tmp_path, **settings) as service, plain(service) as anyone:
        signer = service.authority.issuer.signer
        signer._pin = Secret(WRONG)  # somebody has changed it in the token
        token.unplug()
        with pytest.raises(RemoteError):
            await anyone.rpc("CERT:CREATE", ccr("first"))
        token.plug_in()
        async with asyncio.timeout(60):
            while "the PIN is wrong" not in signer.trouble:
                await asyncio.sleep(0.01)
        await service.health.check()
        health = await anyone.get("CERT:HEALTH")
        assert health["alarm.message"] == "the authority's key cannot be reached; the service's log says why"
        await service.reload(effective(tmp_path, **settings))
        assert signer.trouble == ""
        assert (await anyone.rpc("CERT:CREATE", ccr("second")))["state"] == "VALID"
        other = {**settings, "ca_key": token.uri.replace("object=ca", "object=cb")}
        with pytest.raises(ConfigurationError, match=r"ca_key.* cannot change while the service runs"):
            await service.reload(effective(tmp_path, **other))


def test_a_wrong_pin_ends_the_start_with_one_sentence_and_is_not_tried_again(token, tmp_path):
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    config = tmp_path / "pvacms.yml"
    config.write_text(
        f"ca_key: '{token.uri}'\nca_key_pin: '${{file:{pin_file(tmp_path, WRONG)}}}'\nca_certificate: ca.pem\n"
    )
    for pin, why in ((WRONG, "the PIN is wrong"), (PIN, "the last PIN that this token was given is wrong")):
        pin_file(tmp_path, pin)
        with Process(tmp_path, "--config", str(config), **token.environment) as process:
            status, out, err = process.wait(60)
        output = out + err
        assert status == 1
        assert output.count(why) == 1
        assert "Traceback" not in output
        assert WRONG not in output
        assert PIN not in output


def test_a_process_with_a_token_says_so_and_takes_its_pin_from_a_file_that_the_uri_names(token, tmp_path):
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    config = tmp_path / "pvacms.yml"
    config.write_text(f"ca_key: '{token.uri}&pin-source=file:{pin_file(tmp_path)}'\nca_certificate: ca.pem\n")
    with Process(tmp_path, "--config", str(config), **token.environment) as process:
        process.ready()
        assert process.issuer == BELOW.issuer_id
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(60) == 0


async def test_twenty_requests_at_once_wait_for_the_token_and_not_for_each_other(token, tmp_path):
    token.store(generate_key("rsa-2048"))
    async with running(tmp_path, **settings_of(token, tmp_path)) as service, plain(service) as anyone:
        replies = await asyncio.gather(*(anyone.rpc("CERT:CREATE", ccr(f"user{n}")) for n in range(20)))
        assert {reply["state"] for reply in replies} == {"VALID"}


async def signed_beside(service):
    async with asyncio.timeout(60):
        while service.publisher._signing:
            await asyncio.sleep(0.01)


async def test_a_revocation_while_the_token_is_gone_ends_what_was_said_before(token, tmp_path):
    """The old word is not repeated, although it is signed and has not ended."""
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    async with (
        running(tmp_path, admin="admin", **settings_of(token, tmp_path)) as service,
        plain(service) as anyone,
        secure(service, admin_keychain(tmp_path)) as admin,
    ):
        reply = await anyone.rpc("CERT:CREATE", ccr())
        assert (await anyone.get(reply["status_pv"]))["state"] == "VALID"
        token.unplug()
        await admin.put(reply["status_pv"], {"state": "REVOKED"})
        await signed_beside(service)
        with pytest.raises(RemoteError, match="the authority's key cannot be reached") as told:
            await anyone.get(reply["status_pv"])
        assert "pkcs11:" not in str(told.value), "anybody may ask"
        token.plug_in()
        await until_it_works(service)
        status = await anyone.get(reply["status_pv"])
        assert status["state"] == "REVOKED"
        answer = verify_response(
            bytes(status["ocsp_response"]),
            issuer=BELOW.certificate,
            serial=reply["serial"],
            now=service.clock(),
        )
        assert answer.state is OCSPState.REVOKED


async def test_what_was_signed_is_served_to_its_end_while_the_token_is_gone(token, tmp_path):
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    clock = Clock()
    async with (
        running(tmp_path, clock, **settings_of(token, tmp_path)) as service,
        plain(service) as anyone,
    ):
        reply = await anyone.rpc("CERT:CREATE", ccr())
        async with anyone.monitor(reply["status_pv"]) as updates:
            before = bytes((await anext(updates))["ocsp_response"])
            token.unplug()
            clock.advance(minutes=27)
            service.tick()
            await signed_beside(service)
            assert service.authority.issuer.signer.trouble
            assert bytes((await anyone.get(reply["status_pv"]))["ocsp_response"]) == before
            clock.advance(minutes=4)
            service.tick()
            await signed_beside(service)
            with pytest.raises(RemoteError, match="the authority's key cannot be reached"):
                await anyone.get(reply["status_pv"])
            token.plug_in()
            await until_it_works(service)
            fresh = bytes((await anyone.get(reply["status_pv"]))["ocsp_response"])
            assert fresh != before
            verify_response(fresh, issuer=BELOW.certificate, serial=reply["serial"], now=clock())


async def test_a_change_while_the_token_signs_is_what_is_told(token, tmp_path):
    """The signature that is under way says what is no longer true, and nobody gets it."""
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    async with (
        running(tmp_path, **settings_of(token, tmp_path)) as service,
        plain(service) as anyone,
    ):
        reply = await anyone.rpc("CERT:CREATE", ccr())
        signer, free = service.authority.issuer.signer, threading.Event()
        stuck = threading.Thread(target=signer._library.call, args=(free.wait, 60), daemon=True)
        stuck.start()
        asking = asyncio.ensure_future(anyone.get(reply["status_pv"]))
        async with asyncio.timeout(60):
            publisher = service.publisher
            while (
                not (pv := publisher._pvs.get(reply["serial"]))
                or pv not in publisher._signing
                or pv in publisher._to_sign
            ):
                await asyncio.sleep(0.01)
        # What an administrator puts waits for the PV's answer itself; another node's word does not.
        await service.lifecycle.revoke(reply["serial"], Actor("test", "test", "127.0.0.1:1"))
        assert publisher._to_sign[pv].state is CertState.REVOKED
        free.set()
        assert (await asking)["state"] == "REVOKED"
        stuck.join()


async def test_a_status_that_is_forgotten_while_the_token_signs_and_asked_again_is_answered(
    token, tmp_path, monkeypatch
):
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    monkeypatch.setattr("appliance.cms.publisher._KEPT", 1)
    async with running(tmp_path, **settings_of(token, tmp_path)) as service:
        async with plain(service) as anyone:
            reply = await anyone.rpc("CERT:CREATE", ccr())
        publisher, serial = service.publisher, reply["serial"]
        signer, free = service.authority.issuer.signer, threading.Event()
        stuck = threading.Thread(target=signer._library.call, args=(free.wait, 60), daemon=True)
        stuck.start()
        async with asyncio.timeout(60):
            async with plain(service) as gone:
                asking = asyncio.ensure_future(gone.get(reply["status_pv"]))
                while not (first := publisher._pvs.get(serial)) or first not in publisher._signing:
                    await asyncio.sleep(0.01)
                asking.cancel()
            publisher.pv(1)  # takes the only place of those that are kept
            while publisher._pvs.get(serial) is first:
                await asyncio.sleep(0.01)
            async with plain(service) as anyone:
                asking = asyncio.ensure_future(anyone.get(reply["status_pv"]))
                while publisher._pvs.get(serial) is None or not publisher._pvs[serial].waiting:
                    await asyncio.sleep(0.01)
                free.set()
                assert (await asking)["state"] == "VALID"
            await signed_beside(service)
        assert first.store is None, "nobody can ask it any more"
        assert len(service.lifecycle.memory.watched) == 1
        stuck.join()


async def test_the_services_own_certificate_is_renewed_beside_everything_else(token, tmp_path, monkeypatch):
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    clock = Clock()
    async with running(tmp_path, clock, **settings_of(token, tmp_path)) as service, plain(service) as anyone:
        first = service.own.keychain
        clock.advance(days=360)
        goes_on, sign = threading.Event(), pkcs11.TokenSigner.sign

        def slowly(signer, body):
            goes_on.wait(60)
            return sign(signer, body)

        with monkeypatch.context() as patch:
            patch.setattr(pkcs11.TokenSigner, "sign", slowly)
            service.own.look()
            service.own.look()
            assert (await anyone.get("CERT:HEALTH"))["value.index"] == 1
            assert service.own.keychain is first
            goes_on.set()
            async with asyncio.timeout(60):
                while service.own.keychain is first:
                    await asyncio.sleep(0.01)
        await service.tasks.finish()
        assert service.own.keychain.chain == first.chain
        assert rows(tmp_path, "certs") == 2, "it was asked for once"


async def test_an_own_certificate_that_cannot_be_signed_is_withdrawn_and_health_says_so(token, tmp_path):
    token.store(BELOW.key)
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    clock = Clock()
    async with running(tmp_path, clock, **settings_of(token, tmp_path)) as service, plain(service) as anyone:
        clock.advance(days=360)
        before = rows(tmp_path, "certs")
        token.unplug()
        for _ in range(3):
            service.own.look()
            await service.tasks.finish()
        assert rows(tmp_path, "certs") == before + 1, "tried once, and again after a while"
        token.plug_in()
        await until_it_works(service)
        await service.health.check()
        health = await anyone.get("CERT:HEALTH")
        assert "the service's own certificate ends at" in health["alarm.message"]
        with sqlite3.connect(tmp_path / "certs.db") as db:
            last = db.execute("SELECT state FROM certs ORDER BY created DESC, state LIMIT 1").fetchone()
        assert last == ("REVOKED",)
        await service.own.renew()
        await service.health.check()
        assert (await anyone.get("CERT:HEALTH"))["value.index"] == 1


async def test_a_reload_tries_the_pin_of_a_former_authoritys_token_too(token, tmp_path):
    token.store(BELOW.key)
    (tmp_path / "old").mkdir()
    put_chain(tmp_path / "old", BELOW.certificate, ROOT.certificate)
    before = settings_of(token, tmp_path / "old") | {"db": str(tmp_path / "certs.db")}
    clock = Clock()
    async with running(tmp_path, clock, **before) as service, plain(service) as anyone:
        alice = await anyone.rpc("CERT:CREATE", ccr("alice"))
    following = ROOT.intermediate("Site Issuing CA 2")
    new = make_keychain(following.key, [following.certificate, *following.chain])
    pki.write_keychain(tmp_path / "cert_auth.p12", new)
    with sqlite3.connect(tmp_path / "certs.db") as db:
        db.execute(
            "INSERT INTO authorities (issuer, chain, crossed, since) VALUES (?, '', '', 0)",
            (following.issuer_id,),
        )

    def after(pin):
        former = FormerAuthority(
            ca_key=token.uri,
            ca_key_pin=Secret.from_file(pin_file(tmp_path, pin)),
            ca_certificate=before["ca_certificate"],
        )
        return {"former_authorities": (former,), **OPEN}

    async with running(tmp_path, clock, **after(PIN)) as service, plain(service) as anyone:
        (signer,) = (former.issuer.signer for former in service.held.former)
        signer._pin = Secret(WRONG)  # somebody has changed it in the token
        token.unplug()
        with pytest.raises(SigningError):
            signer.sign(b"gone")
        token.plug_in()
        async with asyncio.timeout(60):
            while "the PIN is wrong" not in signer.trouble:
                await asyncio.sleep(0.01)
        await service.health.check()
        said = (await anyone.get("CERT:HEALTH"))["alarm.message"]
        assert said == "a former authority's key cannot be reached; the service's log says why"
        await service.reload(effective(tmp_path, **after(PIN)))
        assert signer.trouble == ""
        assert (await anyone.get(alice["status_pv"]))["state"] == "VALID"
        with pytest.raises(
            ConfigurationError, match="former_authorities cannot change while the service runs"
        ):
            await service.reload(effective(tmp_path, **OPEN))


async def test_an_authority_in_a_file_goes_over_to_one_in_a_token_and_that_to_another_key(
    token, tmp_path, capsys
):
    """The settings of after the switch have everything: the request, its chain, and the service use the same file."""
    clock = Clock()
    pki.write_keychain(
        tmp_path / "cert_auth.p12", make_keychain(BELOW.key, [BELOW.certificate, *BELOW.chain])
    )
    root = tmp_path / "root.pem"
    root.write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    async with running(tmp_path, clock, admin="admin", **OPEN) as service, plain(service) as anyone:
        issued = [await anyone.rpc("CERT:CREATE", ccr("alice", key=generate_key("ec-p256")))]
    former = [FormerAuthority(keychain=FilePath(tmp_path / "cert_auth.p12"))]
    for label, identifier in (("ca", "01"), ("ca2", "02")):
        token.store(generate_key("ec-p256"), label=label, identifier=identifier)
        after = {
            **settings_of(token, tmp_path),
            "ca_key": token.uri.replace("object=ca", f"object={label}"),
            "ca_certificate": FilePath(tmp_path / f"{label}.pem"),
            "former_authorities": tuple(former),
        }
        settings = effective(tmp_path, **after).settings
        with pytest.raises(
            ConfigurationError, match="the authority's key is in a token; make a new one there"
        ):
            new_authority(settings, clock())
        make_request(settings, str(tmp_path / "ca.csr"))
        request = x509.load_pem_x509_csr((tmp_path / "ca.csr").read_bytes())
        certificate = build_ca(
            SimpleNamespace(public_key=request.public_key),
            subject=request.subject,
            not_before=pki.NOW - pki.DAY,
            not_after=pki.NOW + 1000 * pki.DAY,
            serial=int(identifier),
            issuer=ROOT.issuer,
            path_length=0,
        )
        signed = tmp_path / "signed.pem"
        signed.write_bytes(certificate.public_bytes(Encoding.PEM))
        capsys.readouterr()
        install_chain(settings, [str(signed), str(root)], clock())
        assert "have these settings and the file on each node" in capsys.readouterr().out
        written = (tmp_path / f"{label}.pem").read_bytes()
        # Once more, because nobody knows whether the first time came to its end: on this node or on the next one.
        install_chain(settings, [str(signed), str(root)], clock())
        assert f"Certificates are there  : {tmp_path / label}.pem" in capsys.readouterr().out
        assert (tmp_path / f"{label}.pem").read_bytes() == written
        assert not list(tmp_path.glob(f"{label}-*.pem"))
        async with running(tmp_path, clock, **after) as service, plain(service) as anyone:
            reply = await anyone.rpc("CERT:CREATE", ccr(f"of {label}", key=generate_key("ec-p256")))
            assert reply["issuer"] == service.names.issuer_id != issued[-1]["issuer"]
            assert isinstance(service.authority.issuer.signer, pkcs11.TokenSigner)
            issued.append(reply)
            for each in issued:
                assert (await anyone.get(each["status_pv"]))["state"] == "VALID"
        pin = settings.ca_key_pin
        here = FormerAuthority(ca_key=after["ca_key"], ca_key_pin=pin, ca_certificate=after["ca_certificate"])
        former.insert(0, here)


async def test_an_authority_whose_file_was_put_there_by_hand_is_introduced_all_the_same(token, tmp_path):
    token.store(BELOW.key)
    old, clock = ROOT.intermediate("Old Issuing CA"), Clock()
    pki.write_keychain(
        tmp_path / "cert_auth.p12", make_keychain(old.key, [old.certificate, ROOT.certificate])
    )
    async with running(tmp_path, clock, **OPEN):
        pass
    put_chain(tmp_path, BELOW.certificate, ROOT.certificate)
    former = (FormerAuthority(keychain=FilePath(tmp_path / "cert_auth.p12")),)
    after = {**settings_of(token, tmp_path), "former_authorities": former}
    files = [str(tmp_path / "ca.pem")]
    # Without the present one in the settings nobody knows whose database it is.
    alone = effective(tmp_path, **{**after, "former_authorities": ()}).settings
    with pytest.raises(ConfigurationError, match=r"the database belongs to the authority .*Old Issuing CA"):
        install_chain(alone, files, clock())
    install_chain(effective(tmp_path, **after).settings, files, clock())
    async with running(tmp_path, clock, **after) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr(key=generate_key("ec-p256")))
        assert reply["issuer"] == BELOW.issuer_id
    assert not list(tmp_path.glob("ca-*.pem"))
