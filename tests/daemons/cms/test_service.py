"""The service through real sockets, with our own client over TCP and TLS."""

import asyncio
import struct
import subprocess
from datetime import timedelta

import pytest

from appliance.authn.ccr import parse_request
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import generate_key
from appliance.certs.status import CertState, OCSPState
from appliance.certs.x509 import cert_id, status_pv
from appliance.cli.certlist import Filters, list_certificates
from appliance.cms.audit import verify_audit
from appliance.errors import ApplianceError, RemoteError
from appliance.pva.credentials import Credentials
from appliance.pva.typed import encode_typed
from appliance.pvdata import INT8, STRING, UINT16, ArrayType, StructType, Value
from tests.helpers.cms import Clock, admin_keychain, ccr, keychain_of, plain, running, secure, settled, where
from tests.helpers.raw import RawClient

pytestmark = pytest.mark.usefixtures("engine")

OTHER_KEY = generate_key("ec-p256")
OPEN = {"require_client_approval": False, "require_server_approval": False, "require_ioc_approval": False}


def verified(service, status):
    """The OCSP answer in a status, verified as a client does."""
    return verify_response(
        bytes(status["ocsp_response"]),
        issuer=service.authority.issuer.certificate,
        serial=status["serial"],
        now=service.clock(),
    )


def _all_marked(value, state):
    value.mark()
    value["state"] = state
    return value


async def test_a_request_waits_for_approval_and_is_approved_by_an_administrator(tmp_path):
    async with running(tmp_path) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        assert reply["state"] == "PENDING_APPROVAL"
        assert reply["cert_id"] == cert_id(service.names.issuer_id, reply["serial"])
        keychain = keychain_of(reply)
        assert status_pv(keychain.certificate) == reply["status_pv"]
        status = await anyone.get(reply["status_pv"])
        assert status["state"] == "PENDING_APPROVAL"
        assert verified(service, status).state is OCSPState.UNKNOWN
        async with (
            secure(service, admin_keychain(tmp_path)) as admin,
            anyone.monitor(reply["status_pv"]) as updates,
        ):
            assert (await anext(updates))["state"] == "PENDING_APPROVAL"
            await admin.put(reply["status_pv"], {"state": "APPROVED"})
            status = await asyncio.wait_for(anext(updates), 30)
            assert status["state"] == "VALID"
            assert verified(service, status).state is OCSPState.GOOD
            for more in ({"renew_by": 5}, {"display.description": "mine"}, {"no_status": True}):
                with pytest.raises(
                    RemoteError,
                    match=f"only the field state can be put, and {next(iter(more))} would not change",
                ):
                    await admin.put(reply["status_pv"], {"state": "REVOKED", **more})
            assert (await anyone.get(reply["status_pv"]))["state"] == "VALID"
            # Some clients send all that they have read.
            await admin.put(reply["status_pv"], lambda value: _all_marked(value, "REVOKED"), get=True)
            status = await asyncio.wait_for(anext(updates), 30)
            assert status["state"] == "REVOKED"
            assert verified(service, status).state is OCSPState.REVOKED
            assert status["status.value.choices"][status["status.value.index"]] == "REVOKED"
            assert status["value.choices"][status["value.index"]] == "REVOKED"
    assert verify_audit(where(tmp_path)).intact


async def test_only_administrators_may_change_a_state_and_owners_revoke_their_own(tmp_path):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        own = await anyone.rpc("CERT:CREATE", ccr("owner"))
        other = await anyone.rpc("CERT:CREATE", ccr("other"))
        assert own["state"] == "VALID"
        with pytest.raises(RemoteError, match="denied"):
            await anyone.put(own["status_pv"], {"state": "REVOKED"})
        async with secure(service, keychain_of(own)) as owner:
            with pytest.raises(RemoteError, match="denied"):
                await owner.put(other["status_pv"], {"state": "REVOKED"})
            with pytest.raises(RemoteError, match="denied"):
                await owner.rpc("CERT:LIST", ccr())
            with pytest.raises(RemoteError, match="not permitted"):
                await owner.put(own["status_pv"], {"state": "APPROVED"})
            await owner.put(own["status_pv"], {"state": "REVOKED"})
        assert (await anyone.get(own["status_pv"]))["state"] == "REVOKED"
        assert (await anyone.get(other["status_pv"]))["state"] == "VALID"


async def test_an_administrator_does_not_revoke_himself_by_accident_but_can_on_purpose(tmp_path):
    async with running(tmp_path) as service, plain(service) as anyone:
        keychain = admin_keychain(tmp_path)
        name = service.names.status(keychain.serial)
        async with secure(service, keychain) as admin:
            with pytest.raises(RemoteError, match="REVOKED_OWN"):
                await admin.put(name, {"state": "REVOKED"})
            assert (await anyone.get(name))["state"] == "VALID"
            await admin.put(name, {"state": "REVOKED_OWN"})
        assert (await anyone.get(name))["state"] == "REVOKED"


async def test_a_revoked_certificate_loses_its_connection_to_the_service_and_gets_no_other(tmp_path):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        async with (
            secure(service, keychain_of(reply)) as holder,
            secure(service, admin_keychain(tmp_path)) as admin,
        ):
            async with holder.monitor("CERT:HEALTH", notify=True) as updates:
                seen = [type(await anext(updates)).__name__, type(await anext(updates)).__name__]
                assert "Connected" in seen
                await admin.put(reply["status_pv"], {"state": "REVOKED"})
                while type(update := await asyncio.wait_for(anext(updates), 30)).__name__ != "Disconnected":
                    pass
                assert update
            with pytest.raises(ApplianceError):
                await holder.get("CERT:HEALTH", timeout=1)


async def test_the_list_is_for_administrators_and_shows_what_waits_first(tmp_path):
    async with running(tmp_path, require_server_approval=False) as service, plain(service) as anyone:
        await anyone.rpc("CERT:CREATE", ccr("srv", usage=2))
        await anyone.rpc("CERT:CREATE", ccr("waits"))
        async with secure(service, admin_keychain(tmp_path)) as admin:
            from appliance.client.uri import uri_value

            table = await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {}))
            assert table["value.name"][0] == "waits"
            assert set(table["value.name"]) == {"waits", "srv", "admin", "PVACMS Service"}
            table = await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {"state": "VALID", "subject": "SRV"}))
            assert table["value.name"] == ("srv",)
            assert table["value.usage"] == ("server",)
            with pytest.raises(RemoteError, match="limit"):
                await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {"limit": "many"}))
            with pytest.raises(RemoteError, match="not known"):
                await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {"state": "GOOD"}))


async def test_not_before_and_not_after_are_published_when_the_clock_passes_them(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as anyone:
        now = int(clock().timestamp())
        reply = await anyone.rpc("CERT:CREATE", ccr(not_before=now + 100, not_after=now + 200))
        assert reply["state"] == "PENDING"
        async with anyone.monitor(reply["status_pv"]) as updates:
            assert (await anext(updates))["state"] == "PENDING"
            clock.advance(seconds=101)
            await settled(service)
            status = await asyncio.wait_for(anext(updates), 30)
            assert status["state"] == "VALID"
            assert verified(service, status).next_update.timestamp() == now + 200
            clock.advance(seconds=100)
            await settled(service)
            assert (await asyncio.wait_for(anext(updates), 30))["state"] == "EXPIRED"
            clock.advance(seconds=-300)
            service.publisher.step_back()
            await settled(service)
            assert (await asyncio.wait_for(anext(updates), 30))["state"] == "EXPIRED"


async def test_a_status_that_is_followed_is_signed_again_before_it_runs_out(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        async with anyone.monitor(reply["status_pv"]) as updates:
            first = verified(service, await anext(updates))
            for _ in range(3):
                clock.advance(minutes=26)
                await settled(service)
                again = verified(service, await asyncio.wait_for(anext(updates), 30))
                assert again.this_update > first.this_update
                first = again


async def test_one_signature_serves_all_who_ask_within_its_validity_and_none_is_served_after(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        name = reply["status_pv"]
        first = await anyone.get(name)
        signed = service.publisher.signed
        for _ in range(20):
            assert bytes((await anyone.get(name))["ocsp_response"]) == bytes(first["ocsp_response"])
        assert service.publisher.signed == signed
        clock.advance(minutes=31)
        service.tick()
        assert verified(service, await anyone.get(name)).state is OCSPState.GOOD


async def test_unknown_and_oddly_named_certificates(tmp_path):
    async with running(tmp_path) as service, plain(service) as anyone:
        issuer = service.names.issuer_id
        for serial in ("1", "00000000000000000001", str((1 << 64) - 1)):
            status = await anyone.get(f"CERT:STATUS:{issuer}:{serial}")
            assert status["state"] == "UNKNOWN"
            assert verified(service, status).state is OCSPState.UNKNOWN
        undecoded = f"\x16{chr(len(service.names.status(1)))}{service.names.status(1)}"
        assert (await anyone.get(undecoded))["state"] == "UNKNOWN"
        for name in (
            "x",
            f"{issuer}:",
            f"{issuer}:-1",
            f"{issuer}:{1 << 64}",
            f"{issuer}:1:2",
            "00000000:1",
            "%s%n",
        ):
            with pytest.raises(ApplianceError):
                await anyone.get(f"CERT:STATUS:{name}", timeout=0.3)
        assert (await anyone.get("CERT:HEALTH"))["value.index"] == 1


async def test_a_second_certificate_for_a_subject_is_refused_and_an_approval_is_inherited(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        with pytest.raises(RemoteError, match="Duplicate Certificate Subject: cn=alice, o=lab, ou=, c=:"):
            await anyone.rpc("CERT:CREATE", ccr(key=OTHER_KEY))
        async with secure(service, admin_keychain(tmp_path)) as admin:
            await admin.put(reply["status_pv"], {"state": "APPROVED"})
            clock.advance(days=190)
            await settled(service)
            assert (await anyone.get(reply["status_pv"]))["state"] == "EXPIRED"
            wider = await anyone.rpc("CERT:CREATE", ccr(usage=3, clock=clock))
            assert wider["state"] == "PENDING_APPROVAL"
            await admin.put(wider["status_pv"], {"state": "DENIED"})
            assert (await anyone.get(wider["status_pv"]))["state"] == "REVOKED"
            assert (await anyone.rpc("CERT:CREATE", ccr(clock=clock)))["state"] == "PENDING_APPROVAL"
        other = await anyone.rpc("CERT:CREATE", ccr("bob", clock=clock))
        assert other["state"] == "PENDING_APPROVAL"


async def test_who_has_the_key_of_an_approved_certificate_gets_the_next_one_at_once(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        async with secure(service, admin_keychain(tmp_path)) as admin:
            await admin.put(reply["status_pv"], {"state": "APPROVED"})
        clock.advance(days=190)
        await settled(service)
        assert (await anyone.rpc("CERT:CREATE", ccr(clock=clock)))["state"] == "VALID"


@pytest.mark.parametrize(
    "name",
    ["admin", "ADMIN", "adm1n", "PVACMS  Service", "PVACMS Service", "EPICS Root Certificate Authority"],
)
async def test_a_name_with_privileges_is_never_given_away_without_approval(tmp_path, name):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr(name))
        assert reply["state"] == "PENDING_APPROVAL"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"pub_key": "nonsense"}, "public key cannot be read"),
        ({"usage": 0}, "usage 0"),
        ({"usage": 4}, "usage 4"),
        ({"name": ""}, "name .CN. is empty"),
        ({"name": "a\nb"}, "control characters"),
        ({"name": "x" * 65}, "65 characters"),
        ({"country": "us"}, "two capital letters"),
        ({"type": "krb"}, "krb"),
        ({"type": "jwt"}, "no issuer of tokens"),
        ({"not_after": 1}, "ended"),
        ({"not_after": (1 << 64) - 1}, "not a date"),
        ({"not_after": 7_000_000_000}, "outlive"),
        ({"not_before": 4_000_000_000}, "before it begins"),
        ({"config_uri_base": "x y"}, "PV name"),
    ],
)
async def test_a_wrong_request_is_answered_with_what_is_wrong(tmp_path, fields, why):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        with pytest.raises(RemoteError, match=why):
            await anyone.rpc("CERT:CREATE", ccr(**fields))
        assert (await anyone.rpc("CERT:CREATE", ccr("next")))["state"] == "VALID"


@pytest.mark.parametrize(
    ("kind", "verifier"),
    [
        ("krb", Value(StructType([("token", ArrayType(INT8)), ("mic", ArrayType(INT8))]), {"token": [96, -126], "mic": [1]})),
        ("ldap", Value(StructType([("signature", STRING)]), {"signature": "c2ln"})),
    ],
    ids=["krb", "ldap"],
)  # fmt: skip
async def test_requests_of_authenticators_that_are_not_here_are_refused_by_their_type(
    tmp_path, kind, verifier
):
    """What pvxs-cms' authnkrb and authnldap send; a word about the token would lead to the token."""
    query = StructType(
        [
            ("type", STRING),
            ("name", STRING),
            ("usage", UINT16),
            ("pub_key", STRING),
            ("verifier", verifier.type),
        ]
    )
    argument = Value(StructType([("query", query)], "epics:nt/NTURI:1.0"))
    argument["query.type"], argument["query.name"], argument["query.usage"] = kind, "alice", 1
    argument["query.pub_key"] = ccr()["query.pub_key"]
    argument["query.verifier"] = verifier
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        with pytest.raises(
            RemoteError, match=f"of the type '{kind}' .*not accepted here.*authnstd"
        ) as refusal:
            await anyone.rpc("CERT:CREATE", argument)
        assert "token" not in str(refusal.value)


async def test_without_a_public_key_the_trust_anchor_comes(tmp_path):
    async with running(tmp_path) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr(pub_key=""))
        root = await anyone.get(f"CERT:ROOT:{service.names.issuer_id}")
        assert reply["cert"] == root["cert"]
        assert root["issuer"] == service.names.issuer_id
        assert root["name"] == "EPICS Root Certificate Authority"
        status = await anyone.get(service.names.status(root["serial"]))
        assert status["state"] == "VALID"


async def test_requests_are_limited_per_peer_and_told_when_to_come_again(tmp_path):
    async with (
        running(tmp_path, ccr_per_minute=6.0, ccr_burst=2, **OPEN) as service,
        plain(service) as anyone,
    ):
        for name in ("one", "two"):
            await anyone.rpc("CERT:CREATE", ccr(name))
        with pytest.raises(RemoteError, match=r"rate limited, retry in [0-9]+ s"):
            await anyone.rpc("CERT:CREATE", ccr("three"))
        assert service.counters.limited == 1


async def test_requests_that_come_in_one_go_do_not_pass_the_limit_of_those_in_progress(tmp_path):
    async with running(tmp_path, ccr_in_flight=2, **OPEN) as service, plain(service) as anyone:
        await anyone.get("CERT:ROOT")
        replies = await asyncio.gather(
            *(anyone.rpc("CERT:CREATE", ccr(f"n{number}")) for number in range(12)), return_exceptions=True
        )
        refused = [reply for reply in replies if isinstance(reply, RemoteError)]
        assert all("rate limited, retry in" in str(error) for error in refused)
        assert service.counters.limited == len(refused) > 0
        assert len(replies) - len(refused) >= 2
        assert service.counters.in_flight == 0
        assert (await anyone.rpc("CERT:CREATE", ccr("later")))["state"] == "VALID"


async def test_a_client_that_calls_once_only_has_got_its_certificate(tmp_path):
    """The destroy bit ends the operation with its reply; the certificate is not in doubt after the next start."""
    async with (
        running(tmp_path, **OPEN) as service,
        await RawClient.connect(service.server.tcp_port) as peer,
    ):
        head = struct.pack("<II", await peer.channel("CERT:CREATE"), 7)

        async def rpc(sub, body):
            data = head + bytes((sub,)) + body
            await peer.send(b"\xca\x02\x00\x14" + struct.pack("<I", len(data)) + data)
            while (answer := await peer.message())[0] != 20:
                pass
            assert answer[1][5] == 0xFF, answer

        await rpc(0x08, b"\xff")
        await rpc(0x10, b"".join(encode_typed(ccr(), big=False)))
        assert len(service.lifecycle._delivered) == 1


async def test_certificates_and_answers_satisfy_openssl(tmp_path):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr(usage=3))
        status = await anyone.get(reply["status_pv"])
        root = await anyone.get("CERT:ROOT")
    (tmp_path / "ca.pem").write_text(root["cert"])
    (tmp_path / "leaf.pem").write_text(reply["cert"])
    (tmp_path / "answer.der").write_bytes(bytes(status["ocsp_response"]))

    def openssl(*arguments):
        return subprocess.run(
            ["openssl", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )

    for purpose in ("sslclient", "sslserver"):
        checked = openssl("verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", "leaf.pem")
        assert checked.returncode == 0, checked.stderr
    checked = openssl(
        "ocsp", "-issuer", "ca.pem", "-cert", "leaf.pem", "-respin", "answer.der", "-CAfile", "ca.pem"
    )
    assert "Response verify OK" in checked.stderr
    assert "leaf.pem: good" in checked.stdout


async def test_the_configuration_and_never_a_request_alone_decides_about_certificates_without_status(
    tmp_path,
):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        for choice, asked, expected in (
            ("default", True, None),
            ("default", False, True),
            ("requester", True, False),
            ("requester", False, True),
            ("yes", True, True),
            ("no", False, False),
        ):
            service.issuing.rules = service.issuing.rules._replace(status_extension=choice)
            request = ccr(f"{choice}{asked}", no_status=asked)
            if expected is None:
                with pytest.raises(RemoteError, match="certificates without a status are not issued here"):
                    await anyone.rpc("CERT:CREATE", request)
                continue
            reply = await anyone.rpc("CERT:CREATE", request)
            assert bool(status_pv(keychain_of(reply).certificate)) is expected


async def test_a_certificate_that_nobody_takes_is_revoked(tmp_path):
    async with running(tmp_path, **OPEN) as service:
        issued = await service.issuing.issue(
            parse_request(ccr()), Credentials(peer="gone"), wanted=lambda: False
        )
        record = await service.lifecycle.find(issued.record.serial)
        assert record.state is CertState.REVOKED
        again = await service.issuing.issue(parse_request(ccr()), Credentials(peer="back"))
        assert again.record.state is CertState.VALID


async def test_the_service_renews_its_own_certificate_while_it_serves(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        first = service.own.keychain
        await service.own.renew()
        assert service.own.keychain is first
        clock.advance(days=360)
        await service.own.renew()
        assert service.own.keychain.serial != first.serial
        assert service.own.keychain.certificate.not_valid_after_utc > clock() + timedelta(days=364)
        assert (await anyone.get(service.names.status(service.own.keychain.serial)))["state"] == "VALID"


async def test_the_services_own_certificate_has_no_status_of_its_own(tmp_path):
    async with running(tmp_path) as service:
        assert status_pv(service.own.keychain.certificate) == ""
        left = service.own.keychain.certificate.not_valid_after_utc - service.clock()
        assert left > timedelta(days=300)


async def test_a_list_that_is_refused_says_so_and_nothing_of_services_without_one(tmp_path):
    nothing = Filters([], "", 0)
    async with running(tmp_path) as service:
        with pytest.raises(ApplianceError) as refused:
            await list_certificates(plain(service), "CERT:LIST", nothing, as_json=True, timeout=2)
        assert "access denied" in str(refused.value).lower()
        assert "Not every certificate service" not in str(refused.value)
        with pytest.raises(ApplianceError, match="Not every certificate service has a list"):
            await list_certificates(plain(service), "NO:LIST", nothing, as_json=True, timeout=0.3)
