"""Tokens as proof of identity, through the service: inside TLS, once each, rolling over without a gap."""

import sqlite3
from datetime import timedelta

import msgspec
import pytest

from appliance.authn.jwt.config import JWTConfig
from appliance.certs.keychain import dump_trust_anchors, load_keychain
from appliance.client.uri import uri_value
from appliance.errors import RemoteError
from tests.helpers.cms import Clock, jwt_request, keychain_of, plain, running, secure, settled
from tests.helpers.tokens import NOW, jwks_issuer
from tests.helpers.tokens import running as running_idp


def trusting(service):
    return load_keychain(dump_trust_anchors([service.authority.root]))


@pytest.fixture
async def idp():
    async with running_idp() as found:
        yield found


def settings(idp, **more):
    return {"jwt": JWTConfig(issuers=(jwks_issuer(idp),), peer_per_minute=0.0, **more)}


async def test_a_token_gets_a_certificate_of_its_own_life_that_is_valid_at_once(tmp_path, idp):
    async with running(tmp_path, Clock(NOW), **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder, plain(service) as anyone:
            reply = await holder.rpc("CERT:CREATE", jwt_request(idp.token()))
            assert reply["state"] == "VALID"
            certificate = keychain_of(reply).certificate
            assert keychain_of(reply).subject == "CN=softioc, O=127.0.0.1"
            assert certificate.not_valid_after_utc == NOW + timedelta(hours=1)
            assert reply["expiration"] == int(certificate.not_valid_after_utc.timestamp())
            assert (await anyone.get(reply["status_pv"]))["state"] == "VALID"


async def test_a_token_in_the_clear_is_refused_unless_the_configuration_allows_it(tmp_path, idp):
    async with running(tmp_path, Clock(NOW), **settings(idp)) as service, plain(service) as anyone:
        with pytest.raises(RemoteError, match="TLS"):
            await anyone.rpc("CERT:CREATE", jwt_request(idp.token()))
    allowed = settings(idp, allow_plaintext_token=True)
    async with running(tmp_path, Clock(NOW), **allowed) as service, plain(service) as anyone:
        assert (await anyone.rpc("CERT:CREATE", jwt_request(idp.token(sub="other"))))["state"] == "VALID"


async def test_a_token_counts_once_even_across_a_restart(tmp_path, idp):
    token = idp.token()
    for attempt in range(2):
        async with running(tmp_path, Clock(NOW), **settings(idp)) as service:
            async with secure(service, trusting(service)) as holder:
                if attempt == 0:
                    await holder.rpc("CERT:CREATE", jwt_request(token))
                with pytest.raises(RemoteError, match="used before"):
                    await holder.rpc("CERT:CREATE", jwt_request(token))


async def test_a_verified_identity_gets_its_next_certificate_before_the_last_has_ended(tmp_path, idp):
    clock = Clock(NOW)
    async with running(tmp_path, clock, **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder, plain(service) as anyone:
            first = await holder.rpc("CERT:CREATE", jwt_request(idp.token()))
            clock.advance(minutes=50)
            t = int(clock().timestamp())
            second = await holder.rpc("CERT:CREATE", jwt_request(idp.token(iat=t, nbf=t, exp=t + 3600)))
            states = [(await anyone.get(r["status_pv"]))["state"] for r in (first, second)]
            assert states == ["VALID", "VALID"]
            clock.advance(minutes=15)
            await settled(service)
            states = [(await anyone.get(r["status_pv"]))["state"] for r in (first, second)]
            assert states == ["EXPIRED", "VALID"]


async def test_a_token_for_a_reserved_name_is_refused(tmp_path, idp):
    async with running(tmp_path, Clock(NOW), **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder:
            for name in ("admin", "Admin", "adm1n"):
                with pytest.raises(RemoteError):
                    await holder.rpc("CERT:CREATE", jwt_request(idp.token(sub=name)))


async def test_the_audit_knows_the_identity_and_the_reason_and_never_the_token(tmp_path, idp):
    good, bad = idp.token(), idp.token(aud="somebody else")
    async with running(tmp_path, Clock(NOW), **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder:
            reply = await holder.rpc("CERT:CREATE", jwt_request(good))
            with pytest.raises(RemoteError) as refusal:
                await holder.rpc("CERT:CREATE", jwt_request(bad))
            assert bad not in str(refusal.value)
    connection = sqlite3.connect(tmp_path / "certs.db")
    rows = connection.execute("SELECT action, record FROM audit ORDER BY seq").fetchall()
    identity = connection.execute(
        "SELECT identity FROM certs WHERE serial = ?", (reply["serial"],)
    ).fetchone()[0]
    connection.close()
    assert identity == f"{idp.issuer}|softioc"
    created = next(
        msgspec.json.decode(text) for action, text in rows if '"type":"jwt"' in text and action == "create"
    )
    assert created["iss"] == idp.issuer
    refused = msgspec.json.decode(rows[-1][1])
    assert (refused["action"], refused["reason"]) == ("refuse", "aud_wrong")
    data = (tmp_path / "certs.db").read_bytes()
    for token in (good, bad):
        assert token.encode() not in data
        assert token.split(".")[2].encode() not in data


async def test_without_an_issuer_of_tokens_the_list_of_types_is_told(tmp_path):
    async with running(tmp_path) as service, secure(service, trusting(service)) as holder:
        with pytest.raises(RemoteError, match="no issuer of tokens"):
            await holder.rpc("CERT:CREATE", jwt_request("a.b.c"))
        with pytest.raises(RemoteError, match="denied"):
            await holder.rpc("CERT:LIST", uri_value("CERT:LIST", {}))
