"""Renewal over the wire: what moves the date, and every way in which somebody else, or something else, does not (SPVA 9.4)."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from appliance.authn.ccr import CertRequest, request_value
from appliance.authn.jwt.config import JWTConfig
from appliance.authn.proof import PROOF_FIELD, make_proof
from appliance.certs.keychain import dump_trust_anchors, load_keychain
from appliance.certs.profiles import generate_key
from appliance.certs.san import San
from appliance.certs.schedule import Schedule, Window
from appliance.certs.status import CertState
from appliance.certs.x509 import san
from appliance.cms.audit import verify_audit
from appliance.cms.model import SERVICE
from appliance.config.duration import Duration
from appliance.errors import ApplianceError, RemoteError
from tests.helpers.cms import (
    KEY,
    Clock,
    admin_keychain,
    database,
    keychain_of,
    pem,
    plain,
    running,
    secure,
    settled,
    where,
)
from tests.helpers.tokens import b64, jwks_issuer
from tests.helpers.tokens import running as running_idp

pytestmark = pytest.mark.usefixtures("engine")

NOW = datetime.now(UTC).replace(microsecond=0)
"""The present, because TLS looks at the real clock."""
OTHER = generate_key("ec-p256")
CREATE = "CERT:CREATE"
NAMES = (San("dns", "ioc7.lab"), San("ip", "10.0.0.7"))
MONTH = Duration(seconds=30 * 86400)
HOURLY = {f"cert_renewal_{usage}": Duration(seconds=3600) for usage in ("client", "server", "ioc")}
OPEN = {f"require_{usage}_approval": False for usage in ("client", "server", "ioc")}
EPOCH = int(NOW.timestamp())


@pytest.fixture
async def idp():
    async with running_idp() as found:
        yield found


class Site:
    """A service with a clock, an issuer of tokens whose certificates live for a month, and an hour's cadence for the others."""

    def __init__(self, service, clock, idp, directory):
        self.service = service
        self.clock = clock
        self.idp = idp
        self.directory = directory
        self.tokens = 0

    def token(self, *, life=3600, **claims):
        """A fresh token of the present time."""
        self.tokens += 1
        now = int(self.clock().timestamp())
        return self.idp.token(
            **{"iat": now, "nbf": now, "exp": now + life, "jti": f"t{self.tokens}", **claims}
        )

    def request(self, *, token="", key=KEY, proving=True, proof="", **fields):
        """A request, for its authenticator's sake with a token, and with the proof of its key."""
        asked = CertRequest("jwt" if token else "std", "client", pem(key))
        if not token:
            asked = asked._replace(name="softioc", organization="lab")
        asked = asked._replace(**fields)
        verifier = {"token": token} if token else {}
        if proving:
            made = int(self.clock().timestamp())
            verifier[PROOF_FIELD] = proof or make_proof(asked, key, made=made, token=token)
        return request_value(CREATE, asked._replace(verifier=verifier))

    async def ask(self, peer, **fields):
        return await peer.rpc(CREATE, self.request(**fields))

    async def decide(self, reply, state):
        async with secure(self.service, admin_keychain(self.directory)) as admin:
            await admin.put(reply["status_pv"], {"state": state})

    def row(self, reply):
        return self.service.lifecycle.peek(reply["serial"])

    def state(self, reply):
        return self.service.lifecycle.state(self.row(reply))

    def audited(self, action):
        with database(self.directory) as db:
            rows = db.execute("SELECT record FROM audit WHERE action = ? ORDER BY seq", (action,)).fetchall()
        return [json.loads(text) for (text,) in rows]

    async def later(self, **duration):
        self.clock.advance(**duration)
        await settled(self.service)


class At:
    """A site that runs, and a client of it over TLS that has no certificate."""

    def __init__(self, directory, idp, *, issuer=None, issuers=(), **settings):
        self.directory, self.idp = directory, idp
        own = jwks_issuer(idp, **{"lifetime": MONTH, "san_claim": "hosts", **(issuer or {})})
        self.settings = {
            "jwt": JWTConfig(issuers=(own, *issuers), peer_per_minute=0.0), **HOURLY, **settings
        }  # fmt: skip
        self.clock = Clock(NOW)
        self.stack = []

    async def __aenter__(self):
        service = await self.enter(running(self.directory, self.clock, **self.settings))
        trust = load_keychain(dump_trust_anchors([service.authority.root]))
        peer = await self.enter(secure(service, trust))
        return Site(service, self.clock, self.idp, self.directory), peer

    async def enter(self, context):
        found = await context.__aenter__()
        self.stack.append(context)
        return found

    async def __aexit__(self, *error):
        while self.stack:
            await self.stack.pop().__aexit__(*error)
        assert verify_audit(where(self.directory)).intact


async def approved(site, peer, **fields):
    """A certificate of the standard authenticator that an administrator has approved."""
    reply = await site.ask(peer, **fields)
    assert reply["state"] == "PENDING_APPROVAL"
    await site.decide(reply, "APPROVED")
    assert site.state(reply) is CertState.VALID
    return reply


# -- what a renewal does ---------------------------------------------------------------------------------


async def test_the_next_token_moves_the_date_and_nothing_else(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer, token=site.token())
        certificate = keychain_of(first).certificate
        assert certificate.not_valid_after_utc == NOW + timedelta(days=30)
        assert site.row(first).renew_by == EPOCH + 3600
        await site.later(minutes=40)
        again = await site.ask(peer, token=site.token())
        assert again["cert"] == ""
        assert (again["serial"], again["state"]) == (first["serial"], "VALID")
        assert again["status_pv"] == first["status_pv"]
        assert again["expiration"] == int(certificate.not_valid_after_utc.timestamp())
        assert site.row(first).renew_by == EPOCH + 2400 + 3600
        async with plain(site.service) as anyone:
            assert (await anyone.get(first["status_pv"]))["state"] == "VALID"
        (record,) = site.audited("renew")
        assert record["serial"] == str(first["serial"])
        assert record["iss"] == idp.issuer
        assert [r["serial"] for r in site.audited("create") if r.get("type") == "jwt"] == [
            str(first["serial"])
        ]


async def test_a_suspended_holder_comes_back_by_a_connection_without_its_certificate(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer, token=site.token())
        await site.later(hours=2)
        assert site.state(first) is CertState.PENDING_RENEWAL
        async with secure(site.service, keychain_of(first)) as suspended:
            with pytest.raises(ApplianceError):
                await suspended.get("CERT:HEALTH", timeout=0.5)
        async with plain(site.service) as anyone:
            with pytest.raises(RemoteError, match="TLS"):
                await site.ask(anyone, token=site.token())
            assert site.state(first) is CertState.PENDING_RENEWAL
            assert (await site.ask(peer, token=site.token()))["state"] == "VALID"
            assert (await anyone.get(first["status_pv"]))["state"] == "VALID"
        async with secure(site.service, keychain_of(first)) as holder:
            assert (await holder.get("CERT:HEALTH"))["value.index"] == 1


async def test_the_standard_authenticator_renews_by_the_key_and_by_plain_tcp(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer), plain(site.service) as anyone:
        first = await approved(site, peer)
        assert site.row(first).renew_by == EPOCH + 3600
        await site.later(hours=2)
        again = await site.ask(anyone)
        assert (again["cert"], again["state"], again["serial"]) == ("", "VALID", first["serial"])
        assert site.row(first).renew_by == EPOCH + 3 * 3600
        assert site.row(first).approved


async def test_the_cadence_begins_when_somebody_approves(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer)
        await site.later(days=3)
        await site.decide(first, "APPROVED")
        assert site.state(first) is CertState.VALID
        assert site.row(first).renew_by == EPOCH + 3 * 86400 + 3600


async def test_without_a_status_a_certificate_lives_no_longer_than_the_cadence(tmp_path, idp):
    """Nobody would learn that it was not renewed, so asking for one without a status is no way around the cadence."""
    async with At(tmp_path, idp, certs_require_subscription="requester") as (site, peer):
        first = await site.ask(peer, no_status=True)
        row = site.row(first)
        assert row.no_status
        assert (row.not_after, row.renew_by, row.cadence) == (EPOCH + 3600, 0, 0)


async def test_the_cadence_of_a_certificate_that_begins_later_begins_with_it(tmp_path, idp):
    begin = EPOCH + 86400
    for settings in ({}, OPEN):
        async with At(tmp_path, idp, **settings) as (site, peer):
            first = await site.ask(peer, name=f"later{len(settings)}", not_before=begin)
            if not settings:
                await site.decide(first, "APPROVED")
            assert site.state(first) is CertState.PENDING
            assert site.row(first).renew_by == begin + 3600
            again = await site.ask(peer, name=f"later{len(settings)}", not_before=begin)
            assert (again["cert"], again["state"]) == ("", "PENDING")


async def test_a_token_that_outlives_the_certificate_gets_the_next_one_and_the_old_one_runs_out(
    tmp_path, idp
):
    async with At(tmp_path, idp, issuer={"lifetime": Duration(seconds=7200)}) as (site, peer):
        first = await site.ask(peer, token=site.token())
        await site.later(minutes=70)
        second = await site.ask(peer, token=site.token())
        assert second["serial"] != first["serial"]
        assert keychain_of(second).certificate.not_valid_after_utc == NOW + timedelta(hours=2, minutes=70)
        assert [site.state(r) for r in (first, second)] == [CertState.VALID, CertState.VALID]
        await site.later(minutes=51)
        assert [site.state(r) for r in (first, second)] == [CertState.EXPIRED, CertState.VALID]


async def test_without_a_lifetime_each_token_gets_its_own_certificate(tmp_path, idp):
    async with At(tmp_path, idp, issuer={"lifetime": Duration()}) as (site, peer):
        first = await site.ask(peer, token=site.token())
        second = await site.ask(peer, token=site.token())
        assert first["cert"]
        assert second["cert"]
        assert site.row(first).renew_by == site.row(second).renew_by == 0


# -- somebody else ---------------------------------------------------------------------------------------


async def unmoved(site, reply, peer, why, **fields):
    """A request is refused, and the certificate's row is what it was."""
    before = site.row(reply)
    refusals = len(site.audited("refuse"))
    with pytest.raises(RemoteError, match=why):
        await site.ask(peer, **fields)
    # Whether the first reply arrived is noted when its time has come.
    assert site.row(reply)._replace(delivered=before.delivered) == before
    assert len(site.audited("refuse")) == refusals + 1
    assert not site.audited("renew")


async def test_the_standard_authenticator_renews_no_certificate_of_a_token(tmp_path, idp):
    async with At(tmp_path, idp, **OPEN) as (site, peer):
        first = await site.ask(peer, token=site.token())
        for _ in range(2):
            for proving in (True, False):
                same = {"organization": "127.0.0.1", "proving": proving}
                await unmoved(site, first, peer, "Duplicate Certificate Subject", **same)
            await site.later(minutes=61)
        assert site.state(first) is CertState.PENDING_RENEWAL


async def test_a_token_renews_no_certificate_of_the_standard_authenticator(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        first = await approved(site, peer, organization="127.0.0.1")
        before = site.row(first)
        second = await site.ask(peer, token=site.token())
        assert second["cert"]
        assert second["serial"] != first["serial"]
        assert site.row(first) == before


async def test_who_has_only_the_public_key_renews_nothing_that_was_approved(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer), plain(site.service) as anyone:
        first = await approved(site, peer)
        for other in (peer, anyone):
            await unmoved(site, first, other, "does not prove that the certificate is yours", proving=False)
        recorded = make_proof(
            CertRequest("std", "client", pem(KEY), name="softioc", organization="lab"),
            KEY,
            made=int(site.clock().timestamp()),
        )
        await site.later(minutes=16)
        await unmoved(site, first, anyone, "does not prove that the certificate is yours", proof=recorded)


async def test_a_recorded_request_renews_once(tmp_path, idp):
    """Somebody on the network sends again what the holder sent, within the time in which its proof is good."""
    async with At(tmp_path, idp) as (site, peer), plain(site.service) as anyone:
        first = await approved(site, peer)
        await site.later(minutes=30)
        recorded = site.request()
        assert (await anyone.rpc(CREATE, recorded))["cert"] == ""
        before = site.row(first)
        assert before.renew_by == EPOCH + 1800 + 3600
        await site.later(minutes=10)
        with pytest.raises(RemoteError, match="each signature counts once"):
            await anyone.rpc(CREATE, recorded)
        assert site.row(first) == before
        assert (await site.ask(anyone))["cert"] == ""
        assert site.row(first).renew_by == EPOCH + 2400 + 3600


async def test_the_connection_with_the_certificate_proves_it_too(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        first = await approved(site, peer)
        await site.later(minutes=30)
        async with secure(site.service, keychain_of(first)) as holder:
            assert (await site.ask(holder, proving=False))["cert"] == ""
        assert site.row(first).renew_by == EPOCH + 1800 + 3600


@pytest.mark.parametrize("what", ["std", "jwt"])
async def test_another_key_does_not_renew(tmp_path, idp, what):
    async with At(tmp_path, idp) as (site, peer):
        if what == "std":
            first = await approved(site, peer)
            await unmoved(site, first, peer, "Duplicate Certificate Subject", key=OTHER)
            return
        first = await site.ask(peer, token=site.token())
        before = site.row(first)
        second = await site.ask(peer, token=site.token(), key=OTHER)
        assert second["cert"]
        assert site.row(first) == before


async def test_another_usage_does_not_renew(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer, token=site.token())
        before = site.row(first)
        for usage in ("server", "ioc"):
            assert (await site.ask(peer, token=site.token(), usage=usage))["cert"]
        assert site.row(first) == before
        assert not site.audited("renew")


async def test_the_same_name_of_another_identity_does_not_renew(tmp_path, idp):
    async with running_idp() as other:
        second = jwks_issuer(other, lifetime=MONTH, organization="lab")
        own = {"organization": "lab"}
        async with At(tmp_path, idp, issuer=own, issuers=(second,)) as (site, peer):
            first = await site.ask(peer, token=site.token())
            now = int(site.clock().timestamp())
            theirs = other.token(iat=now, nbf=now, exp=now + 3600)
            await unmoved(site, first, peer, "the name belongs to another identity", token=theirs)


# -- something else than the next token --------------------------------------------------------------------


async def test_no_bad_token_renews(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        used = site.token()
        first = await site.ask(peer, token=used)
        await unmoved(site, first, peer, "used before", token=used)
        await site.later(minutes=30)
        await unmoved(site, first, peer, "used before", token=used)
        good = site.token()
        head, claims, signature = good.split(".")
        bare = b64(b'{"alg":"none","typ":"JWT"}')
        now = int(site.clock().timestamp())
        for bad, why in (
            (f"{head}.{claims}.", "refused"),
            (f"{bare}.{claims}.{signature}", "refused"),
            (f"{head}.{claims}.{signature[:-4]}AAAA", "refused"),
            (site.token(exp=now - 61, iat=now - 3600, nbf=now - 3600), "expired"),
            (site.token(aud="somebody else"), "refused"),
            (site.token(exp=now + 9 * 86400), "refused"),
            (site.token(cnf={"jkt": "x" * 43}), "another key pair"),
            (site.token(iss="https://idp.example/realm"), "not trusted"),
            (site.token(sub="admin"), "refused"),
        ):
            await unmoved(site, first, peer, why, token=bad)
        assert (await site.ask(peer, token=good))["cert"] == ""


async def test_a_token_that_does_not_hold_the_usages_claim_does_not_renew(tmp_path, idp):
    from appliance.authn.jwt.config import ClaimRule

    rule = {"usage_claims": {"client": ClaimRule(claim="groups", values=("epics",))}}
    async with At(tmp_path, idp, issuer=rule) as (site, peer):
        first = await site.ask(peer, token=site.token(groups=["epics"]))
        await unmoved(site, first, peer, "does not entitle its holder to this usage", token=site.token())


async def test_a_wrong_proof_does_not_renew(tmp_path, idp):
    async with At(tmp_path, idp, **OPEN) as (site, peer):
        byname = await site.ask(peer, name="other")
        first = await site.ask(peer, token=site.token())
        for reply, fields in ((byname, {"name": "other"}), (first, {"token": site.token()})):
            asked = CertRequest("std", "client", pem(KEY))
            wrong = make_proof(asked, OTHER, made=int(site.clock().timestamp()))
            await unmoved(site, reply, peer, r"proof .* is false", proof=wrong, **fields)


async def test_a_shorter_token_takes_nothing_back(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer, token=site.token())
        await site.later(minutes=10)
        assert (await site.ask(peer, token=site.token(life=60)))["cert"] == ""
        assert site.row(first).renew_by == EPOCH + 3600
        # Nor does it put off the hint that a renewal is due.
        assert site.row(first).renewed_at == EPOCH


async def test_a_short_life_that_is_asked_for_does_not_end_the_cadence(tmp_path, idp):
    async with At(tmp_path, idp, **OPEN, certs_require_subscription="requester") as (site, peer):
        first = await site.ask(peer)
        await site.later(minutes=10)
        now = int(site.clock().timestamp())
        assert (await site.ask(peer, not_after=now + 600))["cert"] == ""
        assert site.row(first).renew_by == EPOCH + 600 + 3600
        with pytest.raises(RemoteError, match="Duplicate Certificate Subject"):
            await site.ask(peer, no_status=True)
        assert site.row(first).renew_by == EPOCH + 600 + 3600


# -- what is over stays over -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["std", "jwt"])
async def test_what_was_revoked_is_not_renewed_and_its_key_is_barred(tmp_path, idp, what):
    async with At(tmp_path, idp) as (site, peer):
        first = await (approved(site, peer) if what == "std" else site.ask(peer, token=site.token()))
        await site.decide(first, "REVOKED")
        fields = {} if what == "std" else {"token": site.token()}
        await unmoved(site, first, peer, "never certified again", **fields)
        assert site.state(first) is CertState.REVOKED


@pytest.mark.parametrize("what", ["std", "jwt"])
async def test_what_has_expired_is_not_renewed(tmp_path, idp, what):
    async with At(tmp_path, idp) as (site, peer):
        first = await (approved(site, peer) if what == "std" else site.ask(peer, token=site.token()))
        await site.later(days=200)
        assert site.state(first) is CertState.EXPIRED
        second = await site.ask(peer, **({} if what == "std" else {"token": site.token()}))
        assert second["cert"]
        assert second["serial"] != first["serial"]
        assert site.state(first) is CertState.EXPIRED


async def test_a_request_that_waits_for_approval_is_not_renewed(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer)
        second = await site.ask(peer)
        assert second["state"] == "PENDING_APPROVAL"
        assert second["serial"] != first["serial"]
        assert site.state(first) is CertState.REVOKED


async def test_a_renewal_that_nobody_waits_for_takes_the_certificate_from_nobody(tmp_path, idp):
    """A new certificate that nobody takes is revoked; a renewed one is in use."""
    from appliance.authn.ccr import parse_request
    from appliance.pva.credentials import Credentials

    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer, token=site.token())
        asked = parse_request(site.request(token=site.token()))
        sender = Credentials(peer="192.0.2.7:4", is_tls=True)
        issued = await site.service.issuing.issue(asked, sender, wanted=lambda: False)
        assert issued.renewed
        assert site.state(first) is CertState.VALID


async def test_strangers_who_wait_for_approval_keep_no_holder_from_renewing(tmp_path, idp, monkeypatch):
    monkeypatch.setattr("appliance.cms.waiting._MOST_OF_ONE", 2)
    async with At(tmp_path, idp) as (site, peer):
        first = await approved(site, peer)
        for name in ("a", "b"):
            await site.ask(peer, name=name, key=OTHER)
        with pytest.raises(RemoteError, match="wait for approval"):
            await site.ask(peer, name="c", key=OTHER)
        assert (await site.ask(peer))["cert"] == ""
        assert site.state(first) is CertState.VALID


# -- alternative names -------------------------------------------------------------------------------------


async def test_names_of_a_claim_are_in_the_certificate_and_a_renewal_keeps_them(tmp_path, idp):
    hosts = {"hosts": ["ioc7.lab", "10.0.0.7", "ioc8.lab"]}
    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer, token=site.token(**hosts), san=NAMES)
        assert san(keychain_of(first).certificate) == NAMES
        assert site.row(first).san == '[["dns","ioc7.lab"],["ip","10.0.0.7"]]'
        for more in ({}, {"san": NAMES}, {"san": NAMES[::-1]}):
            again = await site.ask(peer, token=site.token(**hosts), **more)
            assert again["cert"] == ""
            assert [(n["type"], n["value"]) for n in again["san"]] == list(NAMES)
        created = [r for r in site.audited("create") if r.get("type") == "jwt"]
        assert created[0]["san"] == "dns=ioc7.lab ip=10.0.0.7"


async def test_a_renewal_swaps_no_names_and_a_token_without_them_renews_nothing(tmp_path, idp):
    hosts = {"hosts": ["ioc7.lab", "10.0.0.7", "ioc8.lab"]}
    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer, token=site.token(**hosts), san=NAMES)
        before = site.row(first)
        swapped = (San("dns", "ioc8.lab"),)
        second = await site.ask(peer, token=site.token(**hosts), san=swapped)
        assert san(keychain_of(second).certificate) == swapped
        third = await site.ask(peer, token=site.token(), key=KEY)
        assert san(keychain_of(third).certificate) == ()
        assert site.row(first) == before
        await unmoved(site, first, peer, "entitle its holder .* dns=ioc7.lab", token=site.token(), san=NAMES)
        await site.later(minutes=61)
        assert site.state(first) is CertState.PENDING_RENEWAL


async def test_names_without_proof_wait_for_approval_even_where_nothing_else_does(tmp_path, idp):
    async with At(tmp_path, idp, **OPEN) as (site, peer):
        assert (await site.ask(peer, name="plain"))["state"] == "VALID"
        first = await approved(site, peer, san=NAMES)
        assert san(keychain_of(first).certificate) == NAMES
        await site.later(minutes=10)
        assert (await site.ask(peer, san=NAMES))["cert"] == ""
        other = (San("dns", "ioc8.lab"),)
        before = site.row(first)
        with pytest.raises(RemoteError, match="a renewal does not change them"):
            await site.ask(peer, san=other)
        assert site.row(first) == before
        with pytest.raises(RemoteError, match="a renewal does not add any"):
            await site.ask(peer, name="plain", san=other)
        await site.later(days=200)
        assert (await site.ask(peer, san=NAMES))["state"] == "VALID"
        await site.later(days=200)
        assert (await site.ask(peer, san=NAMES, key=OTHER))["state"] == "PENDING_APPROVAL"
        assert (await site.ask(peer, name="x", san=NAMES))["state"] == "PENDING_APPROVAL"


async def test_a_name_that_was_added_on_the_way_waits_for_approval_or_is_refused(tmp_path, idp):
    async with At(tmp_path, idp, **OPEN) as (site, peer):
        made = int(site.clock().timestamp())
        asked = CertRequest("std", "client", pem(KEY), name="softioc", organization="lab")
        with pytest.raises(RemoteError, match=r"proof .* is false"):
            await site.ask(peer, san=NAMES, proof=make_proof(asked._replace(san=NAMES[:1]), KEY, made=made))
        reply = await site.ask(peer, san=NAMES, proof=make_proof(asked, KEY, made=made))
        assert reply["state"] == "PENDING_APPROVAL"
        created = [r for r in site.audited("create") if r["serial"] == str(reply["serial"])]
        assert created[0]["proof"] == "none"


async def test_where_the_site_says_so_names_without_proof_are_refused(tmp_path, idp):
    async with At(tmp_path, idp, san="refuse", **OPEN) as (site, peer):
        with pytest.raises(RemoteError, match="--san, EPICS_PVA_AUTH_SAN"):
            await site.ask(peer, san=NAMES)
        assert (await site.ask(peer, token=site.token(hosts="ioc7.lab 10.0.0.7"), san=NAMES))["cert"]


# -- schedules ---------------------------------------------------------------------------------------------


def other_hours(now):
    """A window of eight hours that begins six hours from now."""
    begin = (now.hour + 6) % 24
    return (Window("*", begin * 60, (begin + 8) % 24 * 60),)


@pytest.mark.parametrize("asked", [{}, {"schedule": (Window("*", 0, 0),)}], ids=["none", "another"])
async def test_neither_a_renewal_nor_a_new_key_gets_rid_of_an_administrators_schedule(tmp_path, idp, asked):
    async with At(tmp_path, idp) as (site, peer):
        first = await site.ask(peer, token=site.token())
        hours = Schedule(other_hours(site.clock()), "", "admin")
        await site.service.lifecycle.reschedule(first["serial"], hours, SERVICE)
        assert site.state(first) is CertState.SCHEDULED_OFFLINE
        schedule = site.row(first).schedule
        again = await site.ask(peer, token=site.token(), **asked)
        assert (again["cert"], again["state"]) == ("", "SCHEDULED_OFFLINE")
        fresh = await site.ask(peer, token=site.token(), key=OTHER, **asked)
        assert fresh["cert"]
        assert fresh["state"] == "SCHEDULED_OFFLINE"
        assert site.row(first).schedule == site.row(fresh).schedule == schedule


# -- one token, two certificates ---------------------------------------------------------------------------


async def test_one_connection_gets_both_certificates_of_a_run_by_one_token(tmp_path, idp):
    async with At(tmp_path, idp) as (site, peer):
        token = site.token()
        client = await site.ask(peer, token=token)
        server = await site.ask(peer, token=token, usage="server", key=OTHER)
        assert [site.row(r).usage for r in (client, server)] == ["client", "server"]
        trust = load_keychain(dump_trust_anchors([site.service.authority.root]))
        async with secure(site.service, trust) as other:
            with pytest.raises(RemoteError, match="used before"):
                await site.ask(other, token=token, usage="ioc")
        with pytest.raises(RemoteError, match="used before"):
            await site.ask(peer, token=token)
        await site.later(minutes=30)
        token = site.token()
        for usage, key, first in (("client", KEY, client), ("server", OTHER, server)):
            again = await site.ask(peer, token=token, usage=usage, key=key)
            assert (again["cert"], again["serial"]) == ("", first["serial"])
        assert [r.get("same_use") for r in site.audited("renew")] == [None, "yes"]
