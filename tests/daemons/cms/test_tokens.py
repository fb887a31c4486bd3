"""Tokens as proof of identity, through the service: inside TLS, once each, rolling over without a gap."""

import logging
import shutil
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from appliance.authn.jwt.config import JWTConfig, TrustedIssuer
from appliance.certs.keychain import dump_trust_anchors, load_keychain
from appliance.client.uri import uri_value
from appliance.cms.backup import backup
from appliance.errors import RemoteError
from tests.helpers.cms import (
    Clock,
    contents,
    database,
    jwt_request,
    keychain_of,
    plain,
    running,
    secure,
    settled,
)
from tests.helpers.tokens import NOW, jwks_issuer
from tests.helpers.tokens import running as running_idp

pytestmark = pytest.mark.usefixtures("engine")


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
    with database(tmp_path) as db:
        rows = db.execute("SELECT action, record FROM audit ORDER BY seq").fetchall()
        identity = db.execute("SELECT identity FROM certs WHERE serial = ?", (reply["serial"],)).fetchone()[0]
    assert identity == f"{idp.issuer}|softioc"
    created = next(
        msgspec.json.decode(text) for action, text in rows if '"type":"jwt"' in text and action == "create"
    )
    assert created["iss"] == idp.issuer
    refused = msgspec.json.decode(rows[-1][1])
    assert (refused["action"], refused["reason"]) == ("refuse", "aud_wrong")
    data = contents(tmp_path)
    for token in (good, bad):
        assert token.encode() not in data
        assert token.split(".")[2].encode() not in data


async def test_audit_log_and_requester_learn_why_an_issuer_did_not_answer(tmp_path, idp, caplog):
    """Refused is not unreachable, and the HTTP status is told."""

    async def answer(request):
        return web.Response(status=statuses.pop(0), text="no")

    idp.introspection = answer
    asked = TrustedIssuer(trusted_uri=idp.verify_uri)
    gone = TrustedIssuer(issuer="http://127.0.0.1:9/realm", trusted_uri="http://127.0.0.1:9/realm/verify")
    jwt = JWTConfig(issuers=(asked, gone), peer_per_minute=0.0)
    statuses = [405, 500, 200]
    said, facts = [], []
    with caplog.at_level(logging.INFO):
        async with running(tmp_path, Clock(NOW), jwt=jwt) as service:
            async with secure(service, trusting(service)) as holder:
                for more in ({}, {}, {}, {"iss": gone.issuer}):
                    with pytest.raises(RemoteError) as refusal:
                        await holder.rpc("CERT:CREATE", jwt_request(idp.token(**more)))
                    said.append(str(refusal.value))
    with database(tmp_path) as db:
        rows = db.execute("SELECT record FROM audit WHERE action = 'refuse' ORDER BY seq").fetchall()
    for (text,) in rows:
        record = msgspec.json.decode(text)
        facts.append((record["reason"], record.get("http_status", ""), record["issuer_answer"]))
    assert facts == [
        ("introspect_unexpected_status", "405", "HTTP status 405"),
        ("introspect_server_error", "500", "HTTP status 500"),
        ("introspect_says_invalid", "200", "HTTP status 200"),
        ("introspect_not_reachable", "", "not reachable"),
    ]
    assert "HTTP status 405" in said[0]
    assert "HTTP status 500" in said[1]
    assert "does not say that the token is valid" in said[2]
    assert "could not be asked; try again later" in said[3]
    for reason, _, answered in facts:
        assert f"({reason}; its issuer answered: {answered})" in caplog.text


async def test_without_an_issuer_of_tokens_the_list_of_types_is_told(tmp_path):
    async with running(tmp_path) as service, secure(service, trusting(service)) as holder:
        with pytest.raises(RemoteError, match="no issuer of tokens"):
            await holder.rpc("CERT:CREATE", jwt_request("a.b.c"))
        with pytest.raises(RemoteError, match="denied"):
            await holder.rpc("CERT:LIST", uri_value("CERT:LIST", {}))


async def test_a_used_token_stays_used_when_the_clock_is_set_ahead_and_back(tmp_path, idp):
    clock = Clock(NOW)
    first, unused = idp.token(), idp.token(more=1)
    t = int(NOW.timestamp()) + 2 * 86400
    async with running(tmp_path, clock, **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder:
            await holder.rpc("CERT:CREATE", jwt_request(first))
            clock.advance(days=2)
            later = idp.token(iat=t, nbf=t, exp=t + 3600)
            await holder.rpc("CERT:CREATE", jwt_request(later))
            clock.advance(days=-2)
            with pytest.raises(RemoteError, match="used before"):
                await holder.rpc("CERT:CREATE", jwt_request(first))
            # Nobody knows any more whether one that ended no later was used.
            with pytest.raises(RemoteError, match="used before"):
                await holder.rpc("CERT:CREATE", jwt_request(unused))
            t = int(NOW.timestamp())
            await holder.rpc("CERT:CREATE", jwt_request(idp.token(exp=t + 7200)))
    async with running(tmp_path, clock, **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder:
            with pytest.raises(RemoteError, match="used before"):
                await holder.rpc("CERT:CREATE", jwt_request(first))


def restore(tmp_path, copy):
    for path in tmp_path.glob("certs.db-*"):
        path.unlink()
    shutil.copy(copy, tmp_path / "certs.db")


@pytest.mark.sqlite_only("a backup is a file that is put in the place of the database")
async def test_a_restored_database_keeps_the_tokens_that_were_used_since(tmp_path, idp):
    before, since = idp.token(), idp.token(more=1)
    async with running(tmp_path, Clock(NOW), **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder:
            await holder.rpc("CERT:CREATE", jwt_request(before))
            copy = backup(str(tmp_path / "certs.db"), str(tmp_path / "backup.db"))
            await holder.rpc("CERT:CREATE", jwt_request(since))
    restore(tmp_path, copy)
    async with running(tmp_path, Clock(NOW), **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder:
            for token in (before, since):
                with pytest.raises(RemoteError, match="used before"):
                    await holder.rpc("CERT:CREATE", jwt_request(token))
            assert await holder.rpc("CERT:CREATE", jwt_request(idp.token(more=2)))


@pytest.mark.sqlite_only("a backup is a file that is put in the place of the database")
async def test_a_database_that_is_restored_on_another_host_voids_tokens_that_were_issued_before(
    tmp_path, idp
):
    clock = Clock(NOW)
    used, unused, undated = idp.token(), idp.token(more=1), idp.token(iat=..., nbf=...)
    async with running(tmp_path, clock, **settings(idp)) as service:
        copy = backup(str(tmp_path / "certs.db"), str(tmp_path / "backup.db"))
        async with secure(service, trusting(service)) as holder:
            await holder.rpc("CERT:CREATE", jwt_request(used))
    restore(tmp_path, copy)
    (tmp_path / "certs.db.tokens").unlink()
    clock.advance(minutes=1)
    async with running(tmp_path, clock, **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder:
            for token in (used, unused, undated):
                with pytest.raises(RemoteError, match="used before"):
                    await holder.rpc("CERT:CREATE", jwt_request(token))
            t = int(clock().timestamp())
            fresh = idp.token(iat=t, nbf=t, exp=t + 600)
            assert await holder.rpc("CERT:CREATE", jwt_request(fresh))
    assert (tmp_path / "certs.db.tokens").stat().st_mode & 0o777 == 0o600


@pytest.mark.sqlite_only("a backup is a file that is put in the place of the database")
@pytest.mark.parametrize("what", ["older", "emptied"])
async def test_a_file_of_used_tokens_that_lacks_what_the_database_knows_voids_tokens_that_were_issued_before(
    tmp_path, idp, caplog, what
):
    clock = Clock(NOW)
    file = tmp_path / "certs.db.tokens"
    before, since, unused = idp.token(), idp.token(more=1), idp.token(more=2)
    async with running(tmp_path, clock, **settings(idp)) as service:
        older = file.read_bytes()
        async with secure(service, trusting(service)) as holder:
            await holder.rpc("CERT:CREATE", jwt_request(before))
            copy = backup(str(tmp_path / "certs.db"), str(tmp_path / "backup.db"))
            await holder.rpc("CERT:CREATE", jwt_request(since))
    restore(tmp_path, copy)
    file.write_bytes(older if what == "older" else b"")
    clock.advance(minutes=1)
    async with running(tmp_path, clock, **settings(idp)) as service:
        assert "certs.db.tokens is older than the database" in caplog.text
        async with secure(service, trusting(service)) as holder:
            for token in (before, since, unused):
                with pytest.raises(RemoteError, match="used before"):
                    await holder.rpc("CERT:CREATE", jwt_request(token))
            t = int(clock().timestamp())
            assert await holder.rpc("CERT:CREATE", jwt_request(idp.token(iat=t, nbf=t, exp=t + 600)))
    caplog.clear()
    async with running(tmp_path, clock, **settings(idp)):
        assert "used tokens" not in caplog.text


async def test_tokens_are_refused_when_their_use_cannot_be_written_down(tmp_path, idp):
    async with running(tmp_path, Clock(NOW), **settings(idp)) as service:
        async with secure(service, trusting(service)) as holder:
            Path(service.token_journal.path).unlink()
            with pytest.raises(RemoteError):
                await holder.rpc("CERT:CREATE", jwt_request(idp.token()))
