"""What a good token grants: a long life with a date, alternative names, and two certificates by one use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from appliance.authn.jwt.config import JWTConfig
from appliance.certs.san import San
from appliance.config import loader
from tests.helpers.tokens import NOW, Bench, IdP, T, jwks_issuer, running


@pytest.fixture
async def idp() -> AsyncIterator[IdP]:
    async with running() as server:
        yield server


def settings(idp: IdP, **more: str) -> JWTConfig:
    lines = "".join(f"\n    {key}: {value}" for key, value in more.items())
    return loader.loads(
        f"issuers:\n  - mode: jwks\n    issuer: {idp.issuer}\n    jwks_uri: {idp.jwks_uri}\n"
        f"    audience: [cms]\n    usages: [client, server, ioc]{lines}\n",
        JWTConfig,
    )


# -- life ----------------------------------------------------------------------------------------------


async def test_without_a_lifetime_the_certificate_ends_with_its_token(idp: IdP) -> None:
    async with Bench(*settings(idp).issuers) as bench:
        grant = await bench.accept(idp.token())
    assert (grant.not_after, grant.renew_by) == (NOW + timedelta(hours=1), None)


@pytest.mark.parametrize(("lifetime", "days"), [("1y", 365), ("30d", 30), ("12h", 0.5)])
async def test_with_a_lifetime_the_end_of_the_token_is_the_date_for_the_next_one(
    idp: IdP, lifetime: str, days: float
) -> None:
    async with Bench(*settings(idp, lifetime=lifetime).issuers) as bench:
        grant = await bench.accept(idp.token(), now=NOW + timedelta(seconds=10))
    assert grant.not_after == NOW + timedelta(days=days, seconds=10)
    assert grant.renew_by == NOW + timedelta(hours=1)
    assert grant.not_before == NOW


# -- alternative names ---------------------------------------------------------------------------------

NAMES = (San("dns", "ioc7.lab"), San("hostname", "ioc7"), San("ip", "10.0.0.7"))


@pytest.mark.parametrize(
    "claim",
    [
        {"hosts": "dns=ioc7.lab hostname=ioc7 ip=10.0.0.7"},
        {"hosts": ["IOC7.lab", "ioc7", "10.0.0.7", "a b", "", 7, None]},
        {"hosts": "  ioc7.lab ioc7  10.0.0.7 other.lab mail=x"},
        {"hosts": ["dns=ioc7", "dns=ioc7.lab", "ip=10.0.0.7"]},
    ],
)
async def test_names_of_the_claim_are_granted(idp: IdP, claim: dict[str, object]) -> None:
    async with Bench(*settings(idp, san_claim="hosts").issuers) as bench:
        grant = await bench.accept(idp.token(**claim), san=NAMES)
        assert set(grant.san) >= {("dns", "ioc7.lab"), ("dns", "ioc7"), ("ip", "10.0.0.7")}
        assert (await bench.accept(idp.token(jti="none", hosts=...))).san == ()


async def test_the_claim_may_lie_deeper(idp: IdP) -> None:
    async with Bench(*settings(idp, san_claim="epics.hosts").issuers) as bench:
        await bench.accept(idp.token(epics={"hosts": ["ioc7.lab"]}), san=NAMES[:1])


@pytest.mark.parametrize(
    "claim",
    [
        ...,
        None,
        True,
        7,
        "",
        [],
        {},
        {"dns": "ioc7.lab"},
        "*",
        "*.lab",
        ["*.lab", "lab"],
        "ioc7.lab.example",
        "xioc7.lab",
        ["dns=ioc7.lab,ip=10.0.0.7"],
        ["ioc7.lab other.lab"],
        "ip=ioc7.lab",
        "hostname=ioc7.lab",
        [["ioc7.lab"]],
        "ioc7.lab\0",
        "ioc7.l\u0430b",
    ],
    ids=repr,
)
async def test_what_the_claim_does_not_name_is_refused_and_the_token_is_not_used_up(
    idp: IdP, claim: object
) -> None:
    async with Bench(*settings(idp, san_claim="hosts").issuers) as bench:
        token = idp.token(hosts=claim)
        assert await bench.refuse(token, san=NAMES[:1]) == "san_not_in_claim"
        assert bench.refusal.facts["san"] == "dns=ioc7.lab"
        assert "san_claim" in bench.refusal.facts
        assert bench.refusal.public.endswith("to the alternative name dns=ioc7.lab")
        await bench.accept(token)


async def test_one_name_too_many_refuses_all(idp: IdP) -> None:
    async with Bench(*settings(idp, san_claim="hosts").issuers) as bench:
        token = idp.token(hosts=["ioc7.lab", "10.0.0.7"])
        assert await bench.refuse(token, san=NAMES) == "san_not_in_claim"
        assert "hostname=ioc7" in bench.refusal.public
        assert bench.refusal.facts["san_claim"] == "dns=ioc7.lab, ip=10.0.0.7"


async def test_without_a_claim_in_the_configuration_no_token_gets_names(idp: IdP) -> None:
    async with Bench(*settings(idp).issuers) as bench:
        assert await bench.refuse(idp.token(san=["ioc7.lab"]), san=NAMES[:1]) == "san_not_allowed"
        assert "--san" in bench.refusal.public


# -- one token, two usages -------------------------------------------------------------------------------

HERE = "192.0.2.7:40123"


async def test_one_connection_gets_each_usage_by_one_token_and_none_twice(idp: IdP) -> None:
    token = idp.token()
    async with Bench(jwks_issuer(idp)) as bench:
        first = await bench.accept(token, usage="client", peer=HERE)
        second = await bench.accept(token, usage="server", peer=HERE)
        assert "same_use" not in first.audit
        assert second.audit["same_use"] == "yes"
        for usage in ("client", "server"):
            assert await bench.refuse(token, usage=usage, peer=HERE) == "replayed"
        await bench.accept(token, usage="ioc", peer=HERE)


@pytest.mark.parametrize(
    "other",
    [
        {"peer": "192.0.2.7:40124"},
        {"peer": "192.0.2.8:40123"},
        {"is_tls": False},
        {"later": 30.0},
        {"usage": "client"},
    ],
    ids=str,
)
async def test_another_connection_a_later_time_and_the_same_usage_are_a_second_use(
    idp: IdP, other: dict[str, object]
) -> None:
    token = idp.token()
    async with Bench(jwks_issuer(idp), allow_plaintext_token=True) as bench:
        await bench.accept(token, usage="client", peer=HERE)
        bench.clock.now += float(other.pop("later", 29.9))
        assert await bench.refuse(token, **{"usage": "server", "peer": HERE, **other}) == "replayed"
        if "is_tls" not in other and bench.clock.now < 1030:
            await bench.accept(token, usage="ioc", peer=HERE)


async def test_a_token_that_came_unencrypted_is_used_once(idp: IdP) -> None:
    token = idp.token()
    async with Bench(jwks_issuer(idp), allow_plaintext_token=True) as bench:
        await bench.accept(token, usage="client", peer=HERE, is_tls=False)
        for is_tls in (False, True):
            assert await bench.refuse(token, usage="server", peer=HERE, is_tls=is_tls) == "replayed"


async def test_the_second_usage_is_judged_by_every_other_rule(idp: IdP) -> None:
    token = idp.token()
    async with Bench(jwks_issuer(idp, usages=("client",))) as bench:
        await bench.accept(token, usage="client", peer=HERE)
        assert await bench.refuse(token, usage="server", peer=HERE) == "usage_not_allowed"
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(token, usage="client", peer=HERE)
        late = NOW + timedelta(hours=2)
        assert await bench.refuse(token, usage="server", peer=HERE, now=late) == "expired"
        forged = idp.token(exp=T + 7200, jti=idp.claims()["jti"])[:-8] + "AAAAAAAA"
        assert await bench.refuse(forged, usage="server", peer=HERE) == "signature_wrong"


async def test_the_memory_of_uses_is_bounded(idp: IdP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.authn.jwt.verifier._MOST_USES", 3)
    async with Bench(jwks_issuer(idp)) as bench:
        made = [idp.token(jti=str(number)) for number in range(5)]
        for token in made:
            await bench.accept(token, usage="client", peer=HERE)
        assert await bench.refuse(made[0], usage="server", peer=HERE) == "replayed"
        await bench.accept(made[4], usage="server", peer=HERE)
        bench.clock.now += 60
        await bench.accept(idp.token(jti="x"), usage="client", peer=HERE)
        assert len(bench.verifier._same_use._begun) == 1
