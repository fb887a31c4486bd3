"""Every way to a certificate: whose approval counts for whom, which keys are certified, and what ends by itself."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from appliance.authn.jwt.config import JWTConfig
from appliance.authn.report import life_lines
from appliance.certmon.status_pv import decode_status
from appliance.certs.keychain import load_keychain
from appliance.certs.profiles import generate_key
from appliance.certs.status import format_date
from appliance.certs.x509 import shown_id, status_pv
from appliance.client.uri import uri_value
from appliance.config.duration import Duration
from appliance.errors import ApplianceError, RemoteError
from tests.helpers.cms import (
    KEY,
    KEY_PEM,
    Clock,
    admin_keychain,
    ccr,
    database,
    jwt_request,
    keychain_of,
    pem,
    plain,
    running,
    secure,
    settled,
)
from tests.helpers.tokens import NOW, jwks_issuer
from tests.helpers.tokens import running as running_idp

pytestmark = pytest.mark.usefixtures("engine")

OPEN = {"require_client_approval": False, "require_server_approval": False, "require_ioc_approval": False}
STRANGER = generate_key("ec-p256")
MORE = generate_key("ec-p256")


async def decide(service, directory, reply, state):
    async with secure(service, admin_keychain(directory)) as admin:
        await admin.put(reply["status_pv"], {"state": state})


async def create(anyone, *arguments, **query):
    return await anyone.rpc("CERT:CREATE", ccr(*arguments, **query))


async def listed(service, directory):
    async with secure(service, admin_keychain(directory)) as admin:
        table = await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {}))
    view = table["value"]
    names = list(view.keys())
    return {row[0]: dict(zip(names, row, strict=True)) for row in zip(*(view[n] for n in names), strict=True)}


def audited(directory, serial, action="create"):
    query = "SELECT record FROM audit WHERE serial = ? AND action = ? ORDER BY seq"
    with database(directory) as db:
        return [json.loads(text) for (text,) in db.execute(query, (str(serial), action)).fetchall()]


# -- approval ------------------------------------------------------------------------------------------


async def approved_and_ended(service, clock, directory, anyone):
    first = await create(anyone, "operator")
    await decide(service, directory, first, "APPROVED")
    clock.advance(days=190)
    await settled(service)
    return first


async def test_a_stranger_who_asks_for_an_approved_name_with_another_key_waits_for_approval(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        await approved_and_ended(service, clock, tmp_path, anyone)
        asked = int(clock().timestamp()) + 3000 * 86400
        with pytest.raises(RemoteError, match="without a status"):
            await create(anyone, "operator", key=STRANGER, clock=clock, no_status=True, not_after=asked)
        reply = await create(anyone, "operator", key=STRANGER, clock=clock, not_after=asked)
        assert reply["state"] == "PENDING_APPROVAL"
        assert status_pv(keychain_of(reply, STRANGER).certificate) == reply["status_pv"]
        left = keychain_of(reply, STRANGER).certificate.not_valid_after_utc - clock()
        assert left <= timedelta(days=366)


async def test_the_public_key_of_an_approved_certificate_without_proof_inherits_nothing(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        await approved_and_ended(service, clock, tmp_path, anyone)
        reply = await create(anyone, "operator", pub_key=KEY_PEM)
        assert reply["state"] == "PENDING_APPROVAL"


async def test_a_proof_that_was_recorded_some_time_ago_inherits_nothing(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        await approved_and_ended(service, clock, tmp_path, anyone)
        recorded = ccr("operator", clock=clock)
        clock.advance(minutes=16)
        assert (await anyone.rpc("CERT:CREATE", recorded))["state"] == "PENDING_APPROVAL"


@pytest.mark.parametrize("field", ["name", "usage", "not_after", "no_status", "config_uri_base"])
async def test_a_request_that_was_changed_on_its_way_is_refused(tmp_path, field):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        request = ccr()
        changed = {"name": "mallory", "usage": 2, "not_after": 4_000_000_000, "no_status": False}
        request[f"query.{field}"] = changed.get(field, "X")
        if field == "no_status":
            request["query.verifier.proof"] = ccr(no_status=True)["query.verifier.proof"]
        with pytest.raises(RemoteError, match=r"proof .* is false"):
            await anyone.rpc("CERT:CREATE", request)


async def test_the_references_inheritance_is_a_setting_that_is_warned_of(tmp_path, caplog):
    clock = Clock()
    async with running(tmp_path, clock, inherit_approval_unproven=True) as service, plain(service) as anyone:
        assert "anyone who claims a name that was approved once" in caplog.text
        await approved_and_ended(service, clock, tmp_path, anyone)
        assert (await create(anyone, "operator", key=STRANGER, clock=clock))["state"] == "VALID"


async def test_what_needed_no_approval_has_none_that_is_inherited_later(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as anyone:
        assert (await create(anyone, "operator"))["state"] == "VALID"
    clock.advance(days=190)
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        await settled(service)
        assert (await create(anyone, "operator", clock=clock))["state"] == "PENDING_APPROVAL"


async def test_after_a_denial_even_the_holder_of_the_key_waits_for_approval(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        await approved_and_ended(service, clock, tmp_path, anyone)
        wider = await create(anyone, "operator", usage=3, clock=clock)
        await decide(service, tmp_path, wider, "DENIED")
        assert (await create(anyone, "operator", clock=clock))["state"] == "PENDING_APPROVAL"


async def test_a_name_that_tokens_prove_is_never_given_to_who_only_claims_it(tmp_path):
    async with (
        running_idp() as idp,
        running(tmp_path, Clock(NOW), **OPEN, **tokens(idp)) as service,
        plain(service) as anyone,
    ):
        claimed = await create(anyone, "softioc", organization="127.0.0.1", clock=Clock(NOW))
        assert claimed["state"] == "PENDING_APPROVAL"
        assert (await create(anyone, "softioc", clock=Clock(NOW)))["state"] == "VALID"


async def test_nor_is_a_name_in_the_organization_that_the_configuration_gives_to_an_issuer(tmp_path):
    async with (
        running_idp() as idp,
        running(tmp_path, Clock(NOW), **OPEN, **tokens(idp, organization="Lab")) as service,
        plain(service) as anyone,
    ):
        for organization in ("lab", "127.0.0.1"):
            claimed = await create(anyone, "softioc", organization=organization, clock=Clock(NOW))
            assert claimed["state"] == "PENDING_APPROVAL"


# -- tokens --------------------------------------------------------------------------------------------


def tokens(idp, **more):
    return {
        "jwt": JWTConfig(issuers=(jwks_issuer(idp, **more),), peer_per_minute=0.0, allow_plaintext_token=True)
    }


async def test_a_start_tells_that_a_name_may_be_two_people_where_issuers_are_of_two_organizations(
    tmp_path, caplog
):
    async with running_idp() as one, running_idp() as other:
        issuers = (jwks_issuer(one, organization="a.example"), jwks_issuer(other, organization="b.example"))
        caplog.set_level("WARNING")
        async with running(tmp_path, Clock(NOW), jwt=JWTConfig(issuers=issuers)):
            pass
    assert "tokens of 2 organizations are accepted (a.example, b.example)" in caplog.text
    assert "a name alone in the access security file means nobody of a.example, b.example" in caplog.text


async def test_a_token_approved_once_renews_with_another_key_and_a_std_approval_does_not_count_for_it(
    tmp_path,
):
    clock = Clock(NOW)
    async with running_idp() as idp:
        async with (
            running(tmp_path, clock, **tokens(idp, approval=True)) as service,
            plain(service) as anyone,
        ):
            claimed = await create(anyone, "softioc", organization="127.0.0.1", clock=clock)
            await decide(service, tmp_path, claimed, "APPROVED")
            first = await anyone.rpc("CERT:CREATE", jwt_request(idp.token(), pem(MORE)))
            assert first["state"] == "PENDING_APPROVAL"
            await decide(service, tmp_path, first, "APPROVED")
            again = await anyone.rpc("CERT:CREATE", jwt_request(idp.token(more=2), pem(STRANGER)))
            assert again["state"] == "VALID"


async def test_who_proves_a_name_by_token_supersedes_requests_that_only_claim_it(tmp_path):
    clock = Clock(NOW)
    async with running_idp() as idp:
        async with running(tmp_path, clock, **tokens(idp)) as service, plain(service) as anyone:
            claimed = await create(anyone, "softioc", organization="127.0.0.1", key=STRANGER, clock=clock)
            assert claimed["state"] == "PENDING_APPROVAL"
            assert (await anyone.rpc("CERT:CREATE", jwt_request(idp.token(), KEY_PEM)))["state"] == "VALID"
            assert (await anyone.get(claimed["status_pv"]))["state"] == "REVOKED"


async def test_a_revoked_key_is_refused_with_a_token_too(tmp_path):
    clock = Clock(NOW)
    async with running_idp() as idp:
        async with running(tmp_path, clock, **tokens(idp)) as service, plain(service) as anyone:
            first = await anyone.rpc("CERT:CREATE", jwt_request(idp.token(), KEY_PEM))
            await decide(service, tmp_path, first, "REVOKED")
            with pytest.raises(RemoteError, match="was revoked, and is never certified again"):
                await anyone.rpc("CERT:CREATE", jwt_request(idp.token(more=1), KEY_PEM))
            renewed = await anyone.rpc("CERT:CREATE", jwt_request(idp.token(more=2), pem(STRANGER)))
            assert renewed["state"] == "VALID"


async def test_a_token_lives_no_longer_than_its_usage_may(tmp_path):
    async with running_idp() as idp:
        async with (
            running(
                tmp_path,
                Clock(NOW),
                cert_validity_client=Duration(seconds=60),
                cert_validity_longest_client=Duration(seconds=600),
                **tokens(idp),
            ) as service,
            plain(service) as anyone,
        ):
            reply = await anyone.rpc("CERT:CREATE", jwt_request(idp.token(), KEY_PEM))
            assert reply["expiration"] == int(NOW.timestamp()) + 600


# -- certificates without status -----------------------------------------------------------------------


async def test_a_certificate_without_status_is_not_admitted_where_the_service_issues_none(tmp_path):
    async with running(tmp_path, **OPEN, certs_require_subscription="requester") as service:
        async with plain(service) as anyone:
            reply = await create(anyone, no_status=True)
        keychain = keychain_of(reply)
        assert not status_pv(keychain.certificate)
        async with secure(service, keychain) as holder:
            assert (await holder.get("CERT:HEALTH"))["value.index"] == 1
        service.issuing.rules = service.issuing.rules._replace(status_extension="default")
        async with secure(service, keychain) as holder:
            with pytest.raises(ApplianceError):
                await holder.get("CERT:HEALTH", timeout=0.5)


async def test_the_list_on_the_screen_shows_status_and_validity(tmp_path, capsys):
    from appliance.cli.certlist import Table, _rows

    async with running(tmp_path, **OPEN, certs_require_subscription="requester") as service:
        async with plain(service) as anyone:
            reply = await create(anyone, "without", no_status=True)
        async with secure(service, admin_keychain(tmp_path)) as admin:
            table = await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {"subject": "without"}))
    capsys.readouterr()
    Table().print(_rows(table), is_all=True)
    head, line = capsys.readouterr().out.splitlines()
    certificate = keychain_of(reply).certificate
    for title, cell in (
        ("VALID FROM", format_date(certificate.not_valid_before_utc)),
        ("EXPIRES ON", format_date(certificate.not_valid_after_utc)),
        ("STATUS ", "no "),
    ):
        assert line[head.index(title) :].startswith(cell)


async def test_no_status_and_validity_are_listed_shown_and_audited(tmp_path):
    async with running(tmp_path, **OPEN, certs_require_subscription="requester") as service:
        async with plain(service) as anyone:
            without = await create(anyone, "without", no_status=True, key=STRANGER)
            with_one = await create(anyone, "with")
            rows = await listed(service, tmp_path)
            for reply, word in ((without, "no"), (with_one, "yes")):
                row = rows[reply["cert_id"]]
                certificate = keychain_of(reply, STRANGER if reply is without else KEY).certificate
                assert row["status_extension"] == word
                assert row["not_before"] == int(certificate.not_valid_before_utc.timestamp())
                assert row["not_after"] == int(certificate.not_valid_after_utc.timestamp())
                status = await anyone.get(service.names.status(reply["serial"]))
                assert status["no_status"] is (word == "no")
                assert status["not_after"] == row["not_after"]
                assert status["not_before"] == row["not_before"]
                shown = "\n".join(life_lines(decode_status(status)))
                assert format_date(certificate.not_valid_after_utc) in shown
                assert format_date(certificate.not_valid_before_utc) in shown
                assert ("Status PV     : none" in shown) is (word == "no")
                (record,) = audited(tmp_path, reply["serial"])
                assert record["no_status"] == ("yes" if word == "no" else "no")
                assert record["not_after"] == f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
                assert record["not_before"] == f"{certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
                assert record["proof"] == "key"


# -- keys ----------------------------------------------------------------------------------------------


async def test_the_key_of_a_revoked_certificate_is_refused_for_every_name_and_in_every_form(tmp_path):
    key = generate_key("rsa-2048")
    numbers = key.public_key().public_numbers()
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        reply = await create(anyone, key=key)
        await decide(service, tmp_path, reply, "REVOKED")
        for name in ("alice", "bob"):
            with pytest.raises(RemoteError, match="never certified again"):
                await create(anyone, name, key=key)
            with pytest.raises(RemoteError, match="never certified again"):
                await create(anyone, name, pub_key=pem(key))
        other_exponent = rsa.RSAPublicNumbers(65539, numbers.n).public_key()
        with pytest.raises(RemoteError, match="never certified again"):
            await create(anyone, "carol", pub_key=public_pem(other_exponent))
        assert (await create(anyone))["state"] == "VALID"


def public_pem(key):
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


async def test_a_request_that_waits_with_a_key_that_is_revoked_meanwhile_cannot_be_approved(tmp_path):
    async with running(tmp_path, require_server_approval=False) as service, plain(service) as anyone:
        server = await create(anyone, "server", usage=2)
        waits = await create(anyone, "client")
        await decide(service, tmp_path, server, "REVOKED")
        with pytest.raises(RemoteError, match="never certified again"):
            await decide(service, tmp_path, waits, "APPROVED")
        await decide(service, tmp_path, waits, "DENIED")


async def test_a_denied_key_may_be_asked_for_again(tmp_path):
    async with running(tmp_path) as service, plain(service) as anyone:
        await decide(service, tmp_path, await create(anyone), "DENIED")
        assert (await create(anyone))["state"] == "PENDING_APPROVAL"


async def test_the_services_own_key_and_the_authoritys_are_never_certified(tmp_path):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        former = service.own.keychain.key
        authority = load_keychain(Path(service.settings.cert_auth_tls_keychain).read_bytes())
        for key in (former, authority.key):
            for arguments in ({"pub_key": pem(key)}, {"key": key}):
                with pytest.raises(RemoteError, match="certificate service's own"):
                    await create(anyone, "stranger", **arguments)
        service.own.keychain = None
        with pytest.raises(RemoteError, match="certificate service's own"):
            await create(anyone, "stranger", pub_key=pem(former))


async def test_somebody_elses_key_is_certified_only_with_proof(tmp_path):
    """Else one could have the other's key barred by having one's own certificate revoked."""
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        await create(anyone, "alice")
        with pytest.raises(RemoteError, match="that of another subject's certificate"):
            await create(anyone, "mallory", pub_key=KEY_PEM)
        assert (await create(anyone, "alice-too"))["state"] == "VALID"


async def test_a_request_without_proof_from_another_implementation_is_served(tmp_path):
    async with running(tmp_path) as service, plain(service) as anyone:
        reply = await create(anyone, pub_key=KEY_PEM)
        assert reply["state"] == "PENDING_APPROVAL"
        (record,) = audited(tmp_path, reply["serial"])
        assert record["proof"] == "none"


def bent(n, e=65537):
    """The PEM of an RSA key that `cryptography` itself would not make."""
    import base64

    from appliance.certs.der import sequence, tlv

    def integer(x):
        return tlv(2, x.to_bytes(x.bit_length() // 8 + 1, "big"))

    algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
    body = base64.encodebytes(sequence(algorithm, tlv(3, b"\0" + sequence(integer(n), integer(e))))).decode()
    return f"-----BEGIN PUBLIC KEY-----\n{body}-----END PUBLIC KEY-----\n"


def test_bent_keys_are_what_they_should_be():
    assert load_pem_public_key(bent((1 << 2047) + 1).encode()).public_numbers().n == (1 << 2047) + 1


MODULUS = generate_key("rsa-2048").public_key().public_numbers().n
A_PRIME = (1 << 2203) - 1
"""A Mersenne prime."""


@pytest.mark.parametrize(
    ("n", "e", "why"),
    [
        (MODULUS - 1, 65537, "even"),
        (MODULUS // 6 * 6 + 3, 65537, "factor"),
        ((1 << 2047) + 1, 65537, "factor below 752"),
        (A_PRIME, 65537, "power of two|prime"),
        (MODULUS, (1 << 2000) + 1, "exponent of 2001 bits|cannot be read"),
        (MODULUS, 3, "exponent 3|cannot be read"),
        (MODULUS, 65538, "exponent|cannot be read"),
    ],
    ids=["even", "three", "2^2047+1", "prime", "large exponent", "exponent 3", "even exponent"],
)
async def test_rsa_keys_that_anybody_can_break_are_refused(tmp_path, n, e, why):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        with pytest.raises(RemoteError, match=why):
            await create(anyone, pub_key=bent(n, e))


# -- what ends by itself -------------------------------------------------------------------------------


async def test_a_request_that_nobody_approves_ends_and_the_name_is_free(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        years = int(clock().timestamp()) + 8 * 365 * 86400
        blocking = await create(anyone, "operator", key=STRANGER, not_after=years)
        with pytest.raises(RemoteError, match="an administrator has to approve or deny it"):
            await create(anyone, "operator")
        clock.advance(days=13)
        await settled(service)
        assert (await anyone.get(blocking["status_pv"]))["state"] == "PENDING_APPROVAL"
        clock.advance(days=2)
        await settled(service)
        assert (await anyone.get(blocking["status_pv"]))["state"] == "REVOKED"
        assert audited(tmp_path, blocking["serial"], "lapse")[0]["why"] == "nobody has approved it in 14 days"
        assert (await create(anyone, "operator", clock=clock))["state"] == "PENDING_APPROVAL"


async def test_a_request_that_waited_too_long_while_the_service_was_down_ends_at_the_start(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        reply = await create(anyone)
    clock.advance(days=15)
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        await settled(service)
        assert (await anyone.get(reply["status_pv"]))["state"] == "REVOKED"


async def test_who_proves_an_approved_name_supersedes_a_strangers_request_for_it(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock) as service, plain(service) as anyone:
        await approved_and_ended(service, clock, tmp_path, anyone)
        blocking = await create(anyone, "operator", key=STRANGER, clock=clock)
        assert (await create(anyone, "operator", clock=clock))["state"] == "VALID"
        assert (await anyone.get(blocking["status_pv"]))["state"] == "REVOKED"


async def test_a_stranger_supersedes_nobodys_request(tmp_path):
    async with running(tmp_path) as service, plain(service) as anyone:
        waits = await create(anyone, "operator")
        for request in (
            ccr("operator", key=STRANGER),
            ccr("operator", pub_key=pem(STRANGER)),
            ccr("operator", pub_key=KEY_PEM),
        ):
            with pytest.raises(RemoteError, match="Duplicate"):
                await anyone.rpc("CERT:CREATE", request)
        assert (await anyone.get(waits["status_pv"]))["state"] == "PENDING_APPROVAL"
        again = await create(anyone, "operator")
        assert again["state"] == "PENDING_APPROVAL"
        assert (await anyone.get(waits["status_pv"]))["state"] == "REVOKED"


async def test_the_services_own_certificate_cannot_be_revoked_and_the_reason_is_told(tmp_path):
    async with running(tmp_path) as service, plain(service) as anyone:
        name = service.names.status(service.own.keychain.serial)
        async with secure(service, admin_keychain(tmp_path)) as admin:
            with pytest.raises(RemoteError, match="certificate service's own certificate"):
                await admin.put(name, {"state": "REVOKED"})
        assert (await anyone.get(name))["state"] == "VALID"


# -- dates ---------------------------------------------------------------------------------------------


async def test_a_fresh_certificate_is_valid_where_the_clock_is_behind(tmp_path):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        behind = service.clock() - timedelta(minutes=4)
        sent = int(service.clock().timestamp())
        for number, query in enumerate(({}, {"not_before": sent}, {"not_before": sent - 86400})):
            certificate = keychain_of(await create(anyone, f"n{number}", **query)).certificate
            assert certificate.not_valid_before_utc <= behind
            assert certificate.not_valid_before_utc > behind - timedelta(minutes=3)
        for own in (
            service.authority.issuer.certificate,
            service.own.keychain.certificate,
            admin_keychain(tmp_path).certificate,
        ):
            assert own.not_valid_before_utc <= behind


async def test_a_short_certificate_is_not_due_for_renewal_at_once(tmp_path):
    from appliance.authn.due import renewal_time

    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        end = int(service.clock().timestamp()) + 60
        certificate = keychain_of(await create(anyone, not_after=end)).certificate
        assert renewal_time(certificate) > service.clock() + timedelta(seconds=30)


@pytest.mark.parametrize(("usage", "days"), [(1, 366), (2, 732), (3, 732)])
async def test_the_life_of_a_certificate_is_capped_by_its_usage(tmp_path, usage, days):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        asked = int(service.clock().timestamp()) + 3600 * 86400
        reply = await create(anyone, usage=usage, not_after=asked)
        assert reply["expiration"] <= int(service.clock().timestamp()) + days * 86400
        (record,) = audited(tmp_path, reply["serial"])
        assert record["asked_not_after"].startswith("20")
        begin = int(service.clock().timestamp()) + 1000 * 86400
        with pytest.raises(RemoteError, match="ask for an earlier begin"):
            await create(anyone, "later", usage=usage, not_before=begin, not_after=asked)


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["name", "organization", "organization_unit"])
async def test_a_name_of_too_many_octets_is_refused_with_a_sentence(tmp_path, field):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        with pytest.raises(RemoteError, match="66 octets in UTF-8; at most 64 are allowed"):
            await create(anyone, **{field: "\u00e9" * 33})
        reply = await create(anyone, **{field: "\u00e9" * 32})
        assert "\u00e9" * 32 in keychain_of(reply).subject


def test_the_identifier_is_shown_without_padding():
    assert shown_id("47530d89", 1) == "47530d89:1"


@pytest.mark.sqlite_only("it is about the event loop, and slow")
async def test_many_large_keys_at_once_do_not_stop_the_service(tmp_path):
    good = _large_moduli(3)
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        await anyone.get("CERT:HEALTH")
        asked = [asyncio.ensure_future(create(anyone, f"n{i}", pub_key=bent(n))) for i, n in enumerate(good)]
        answered = 0
        while not asked[0].done():
            await anyone.get("CERT:HEALTH")
            answered += 1
        # A look at one of these keys has hundreds of steps; looked at in one go, it lets one answer through, or none.
        assert answered > 5
        for request in asked:
            request.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_a_name_that_one_identity_holds_is_not_given_to_another_of_the_same_organization(
    tmp_path, caplog
):
    """A certificate names the issuer's organization alone: where two issuers share it, they would be one person."""
    from appliance.authn.jwt.config import JWTConfig

    clock = Clock(NOW)
    async with running_idp() as idp:
        other = f"{idp.origin}/guests"
        trusted = (jwks_issuer(idp), jwks_issuer(idp, issuer=other))
        config = JWTConfig(
            issuers=tuple(msgspec.structs.replace(each, organization="site.example") for each in trusted),
            peer_per_minute=0.0,
            allow_plaintext_token=True,
        )
        async with running(tmp_path, clock, jwt=config) as service, plain(service) as anyone:
            assert "share the organization site.example" in caplog.text
            staff = jwt_request(idp.token(sub="operator"), KEY_PEM)
            assert (await anyone.rpc("CERT:CREATE", staff))["state"] == "VALID"
            guest = jwt_request(idp.token(sub="operator", iss=other), pem(STRANGER))
            with pytest.raises(RemoteError, match="the name belongs to another identity"):
                await anyone.rpc("CERT:CREATE", guest)
            renewed = jwt_request(idp.token(sub="operator", more=1), pem(MORE))
            assert (await anyone.rpc("CERT:CREATE", renewed))["state"] == "VALID"


async def test_one_address_can_have_so_many_requests_wait_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr("appliance.cms.waiting._MOST_OF_ONE", 3)
    async with running(tmp_path) as service, plain(service) as anyone:
        waits = [await create(anyone, f"n{number}") for number in range(3)]
        with pytest.raises(RemoteError, match="3 requests wait for approval, so no more are accepted"):
            await create(anyone, "n3")
        await decide(service, tmp_path, waits[0], "DENIED")
        assert (await create(anyone, "n3"))["state"] == "PENDING_APPROVAL"
    monkeypatch.setattr("appliance.cms.waiting._MOST", 3)
    async with running(tmp_path) as service, plain(service) as anyone:
        with pytest.raises(RemoteError, match="3 requests wait for approval"):
            await create(anyone, "n4")


async def test_keys_that_take_long_to_look_at_do_not_take_all_places(tmp_path, monkeypatch):
    over = asyncio.Event()

    def steps(_modulus):
        while not over.is_set():  # a look that has not ended when the others come, however slow they are
            yield

    monkeypatch.setattr("appliance.cms.soundness._MOST_LARGE", 1)
    monkeypatch.setattr("appliance.cms.soundness.composite_steps", steps)
    large = [bent(n) for n in _large_moduli(3)]
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        await anyone.get("CERT:HEALTH")
        asked = [asyncio.ensure_future(create(anyone, f"n{i}", pub_key=key)) for i, key in enumerate(large)]
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert "too many RSA keys of this size" in str(done.pop().exception())
        assert (await create(anyone, "another"))["state"] == "VALID"
        over.set()
        for request in waiting:
            request.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def _large_moduli(count):
    found = []
    candidate = (1 << 8191) + (1 << 5000) + 1
    while len(found) < count:
        candidate += 2
        if all(candidate % p for p in range(3, 752, 2)):
            found.append(candidate)
    return found
