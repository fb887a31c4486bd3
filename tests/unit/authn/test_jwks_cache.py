"""How long keys are kept, and how often an issuer is asked: with a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from appliance.authn.jwt.jwks import fresh_for
from tests.helpers.tokens import Bench, IdP, jwk, jwks_issuer, rsa_key, running


@pytest.fixture
async def idp() -> AsyncIterator[IdP]:
    async with running() as server:
        yield server


async def broken(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPServiceUnavailable


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", 300),
        ("max-age=1", 300),
        ("public, max-age=3600", 3600),
        ("MAX-AGE=3600", 3600),
        ("max-age=99999999", 86400),
        ("max-age=-5", 300),
        ("max-age=x", 300),
        ('max-age="600"', 600),
        ("s-maxage=9000", 300),
        ("no-store, max-age=3600", 300),
        ("max-age=" + "9" * 500, 86400),
    ],
)
def test_cache_control_is_clamped(header: str, seconds: float) -> None:
    assert fresh_for(header) == seconds


async def test_keys_are_fetched_once_while_fresh(idp: IdP) -> None:
    idp.headers = {"Cache-Control": "max-age=1000"}
    async with Bench(jwks_issuer(idp)) as bench:
        for number in range(5):
            await bench.accept(idp.token(jti=str(number)))
            bench.clock.now += 199
        assert len(idp.requests) == 1
        bench.clock.now += 6
        await bench.accept(idp.token(jti="x"))
        assert len(idp.requests) == 2


async def test_many_tokens_at_once_cause_one_fetch(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await asyncio.gather(*(bench.accept(idp.token(jti=str(number))) for number in range(20)))
    assert len(idp.requests) == 1


async def test_a_rotation_is_followed_at_once_and_strangers_cannot_abuse_that(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(jti="1"))
        idp.keys.append(jwk(rsa_key(number=1), kid="k2"))
        await bench.accept(idp.token(jti="2", header={"kid": "k2"}, key=rsa_key(number=1)))
        assert len(idp.requests) == 2
        for number in range(50):
            assert await bench.refuse(idp.token(header={"kid": f"x{number}"})) == "key_unknown"
            bench.clock.now += 0.5
        assert len(idp.requests) == 2
        bench.clock.now += 5.1
        assert await bench.refuse(idp.token(header={"kid": "y"})) == "key_unknown"
        assert len(idp.requests) == 3


async def test_a_key_that_is_published_too_late_is_found_half_a_minute_later(idp: IdP) -> None:
    """The rotation gap: tokens of the new key come before the key does."""
    early = {"header": {"kid": "k2"}, "key": rsa_key(number=1)}
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(jti="1"))
        assert await bench.refuse(idp.token(**early)) == "key_unknown"
        assert (
            bench.refusal.public
            == "the issuer does not publish the key of this token; try again in half a minute"
        )
        idp.keys = [jwk(rsa_key(number=1), kid="k2")]
        assert await bench.refuse(idp.token(**early)) == "key_unknown"
        bench.clock.now += 30
        await bench.accept(idp.token(**early))
        assert await bench.refuse(idp.token(jti="of the withdrawn key")) == "key_unknown"


async def test_tokens_that_wait_for_the_same_new_key_all_get_it(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(jti="first"))
        idp.keys.append(jwk(rsa_key(number=1), kid="k2"))
        new = [idp.token(jti=str(n), header={"kid": "k2"}, key=rsa_key(number=1)) for n in range(10)]
        await asyncio.gather(*(bench.accept(token) for token in new))
        assert len(idp.requests) == 2


async def test_old_keys_serve_for_a_bounded_time_when_the_issuer_is_away(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, jwks_stale_s=1000)) as bench:
        await bench.accept(idp.token(jti="1"))
        idp.jwks = broken
        bench.clock.now += 300 + 999
        await bench.accept(idp.token(jti="2"))
        bench.clock.now += 2
        assert await bench.refuse(idp.token(jti="3")) == "jwks_not_available"
        idp.jwks = idp.publish
        bench.clock.now += 31
        await bench.accept(idp.token(jti="3"))


async def test_an_issuer_that_is_away_is_not_hammered(idp: IdP) -> None:
    idp.jwks = broken
    async with Bench(jwks_issuer(idp)) as bench:
        for _ in range(20):
            assert await bench.refuse(idp.token()) == "jwks_not_available"
        assert len(idp.requests) == 1
        bench.clock.now += 5
        idp.jwks = idp.publish
        await bench.accept(idp.token())


async def test_an_unknown_kid_does_not_destroy_good_keys_when_the_refetch_fails(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(jti="1"))
        idp.jwks = broken
        assert await bench.refuse(idp.token(header={"kid": "x"})) == "key_unknown"
        await bench.accept(idp.token(jti="2"))


async def test_a_known_kid_with_another_algorithm_causes_no_fetch(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(jti="1"))
        assert await bench.refuse(idp.token(alg="PS256")) == "key_unknown"
    assert len(idp.requests) == 1


async def test_a_hundred_keys_are_read_and_one_more_is_too_many(idp: IdP) -> None:
    filler = [{"kty": "EC", "kid": str(number), "use": "enc"} for number in range(99)]
    idp.keys = [*filler, jwk(rsa_key(), kid="k1")]
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token())
    idp.keys.append({})
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"


@pytest.mark.parametrize("named", [True, False])
async def test_an_issuer_that_starts_afresh_under_the_same_name_is_followed(idp: IdP, named: bool) -> None:
    """A new key with the old kid, or keys without any: only the signature shows that it has changed."""
    header = {} if named else {"kid": ...}
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(jti="1", header=header))
        idp.keys = [jwk(rsa_key(number=1), kid="k1")]
        await bench.accept(idp.token(jti="2", header=header, key=rsa_key(number=1)))
        for number in range(9):
            assert await bench.refuse(idp.token(jti=f"x{number}", header=header)) == "signature_wrong"
        assert len(idp.requests) == 2
        bench.clock.now += 30
        assert await bench.refuse(idp.token(jti="y", header=header)) == "signature_wrong"
        assert len(idp.requests) == 3
