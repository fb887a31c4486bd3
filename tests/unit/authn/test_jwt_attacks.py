"""Attacks on token authentication, each with real cryptography against a published key set on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from joserfc import jwk as joserfc_jwk
from joserfc import jwt as joserfc_jwt

from tests.helpers.tokens import (
    NOW,
    Bench,
    IdP,
    T,
    b64,
    ec_key,
    jwk,
    jwks_issuer,
    public_pem,
    raw,
    rsa_key,
    running,
    sign,
)


@pytest.fixture
async def idp() -> AsyncIterator[IdP]:
    async with running() as server:
        yield server


async def test_the_token_that_all_attacks_start_from_is_good(idp: IdP) -> None:
    """Minted by joserfc, so that our own way of minting is not the measure."""
    key = joserfc_jwk.import_key(
        rsa_key().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        "RSA",
    )
    token = joserfc_jwt.encode({"alg": "RS256", "typ": "JWT", "kid": "k1"}, idp.claims(), key)
    async with Bench(jwks_issuer(idp)) as bench:
        assert (await bench.accept(token)).subject["CN"] == "softioc"


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "nOnE", "none ", " none", "no\u0000ne", "\uff4eone", "", "null"]
)
@pytest.mark.parametrize("signature", [b"", b"x", b"\0" * 256])
async def test_alg_none_in_every_spelling(idp: IdP, alg: str, signature: bytes) -> None:
    token = raw({"alg": alg, "typ": "JWT", "kid": "k1"}, idp.claims(), signature=signature)
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(token) == ("alg_not_allowed" if signature else "form_not_three_parts")


@pytest.mark.parametrize("alg", [None, 0, True, ["RS256"], {"RS256": 1}])
async def test_alg_of_another_kind(idp: IdP, alg) -> None:
    token = raw({"alg": alg, "typ": "JWT", "kid": "k1"}, idp.claims(), signature=b"x")
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(token) == "alg_invalid"


def _spellings_of_the_public_key() -> list[bytes]:
    key = rsa_key().public_key()
    encodings = [
        key.public_bytes(encoding, form)
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
        for form in (serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.PKCS1)
    ]
    document = jwk(rsa_key(), kid="k1", use="sig", alg="RS256")
    bare = jwk(rsa_key())
    return [
        *encodings,
        encodings[0].rstrip(b"\n"),
        json.dumps(document).encode(),
        json.dumps({"keys": [document]}).encode(),
        json.dumps(bare, separators=(",", ":"), sort_keys=True).encode(),
        bare["n"].encode(),
    ]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
async def test_the_public_key_as_an_hmac_secret(idp: IdP, alg: str, number: int) -> None:
    secret = _spellings_of_the_public_key()[number]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(alg=alg, key=secret)) == "alg_not_allowed"


async def test_an_oct_key_in_the_published_set_is_never_used(idp: IdP) -> None:
    idp.keys = [{"kty": "oct", "kid": "k1", "k": b64(b"x" * 32), "alg": "HS256"}, jwk(rsa_key(), kid="k2")]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(alg="HS256", key=b"x" * 32)) == "alg_not_allowed"
        assert await bench.refuse(idp.token()) == "key_unknown"


async def test_keys_and_places_of_keys_in_the_header_are_not_followed(idp: IdP) -> None:
    attacker = rsa_key(number=7)
    async with running() as elsewhere:
        elsewhere.keys = [jwk(attacker, kid="k1")]
        for header in (
            {"jwk": jwk(attacker, kid="k1")},
            {"jku": elsewhere.jwks_uri},
            {"x5u": elsewhere.jwks_uri},
            {"x5c": [b64(public_pem(attacker))]},
        ):
            async with Bench(jwks_issuer(idp)) as bench:
                assert await bench.refuse(idp.token(header=header, key=attacker)) == "header_carries_key"
                assert await bench.refuse(idp.token(header=header)) == "header_carries_key"
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/etc/passwd",
        "k1' OR '1'='1",
        "k1'; DROP TABLE certs; --",
        "k1\" UNION SELECT 'key",
        "http://evil.example/key",
        "k1?x=1",
        "k1%00",
        "${jndi:ldap://x}",
        "$(id)",
        "\0",
    ],
)
async def test_kid_is_a_name_and_nothing_else(idp: IdP, kid: str) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(header={"kid": kid})) == "key_unknown"
    assert set(idp.requests) == {"GET /realm/keys"}
    assert idp.bodies == [b""] * len(idp.bodies)


async def test_the_same_kid_at_two_issuers(idp: IdP) -> None:
    async with running() as other:
        other.keys = [jwk(rsa_key(number=2), kid="k1")]
        async with Bench(jwks_issuer(idp), jwks_issuer(other)) as bench:
            await bench.accept(idp.token())
            await bench.accept(other.token(key=rsa_key(number=2)))
            assert await bench.refuse(idp.token(key=rsa_key(number=2), jti="3")) == "signature_wrong"
            assert await bench.refuse(other.token(key=rsa_key(), jti="4")) == "signature_wrong"


async def test_the_same_jti_at_two_issuers_are_two_tokens(idp: IdP) -> None:
    async with running() as other:
        async with Bench(jwks_issuer(idp), jwks_issuer(other)) as bench:
            await bench.accept(idp.token(jti="same"))
            await bench.accept(other.token(jti="same"))


_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize(
    ("r", "s"), [(0, 0), (0, 1), (1, 0), (_ORDER, _ORDER), (_ORDER, 0), (0, _ORDER), (1, 1), (_ORDER - 1, 1)]
)
async def test_ecdsa_with_degenerate_numbers(idp: IdP, r: int, s: int) -> None:
    """CVE-2022-21449: r = s = 0 verified for every message under every key."""
    idp.keys = [jwk(ec_key(), kid="k1")]
    token = raw(
        {"alg": "ES256", "typ": "JWT", "kid": "k1"},
        idp.claims(),
        signature=r.to_bytes(32, "big") + s.to_bytes(32, "big"),
    )
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(token) == "signature_wrong"


async def test_ecdsa_in_der_or_of_another_length(idp: IdP) -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    idp.keys = [jwk(ec_key(), kid="k1")]
    header = {"alg": "ES256", "typ": "JWT", "kid": "k1"}
    data = raw(header, idp.claims(), signature=b"x").rsplit(".", 1)[0].encode()
    fixed = sign("ES256", ec_key(), data)
    async with Bench(jwks_issuer(idp)) as bench:
        for signature in (
            ec_key().sign(data, ec.ECDSA(hashes.SHA256())),
            fixed[:-1],
            b"\0" + fixed,
            fixed + b"\0",
        ):
            assert await bench.refuse(raw(header, idp.claims(), signature=signature)) == "signature_wrong"
        await bench.accept(raw(header, idp.claims(), signature=fixed))


async def test_a_stripped_signature(idp: IdP) -> None:
    bare = idp.token().rsplit(".", 1)[0]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(bare) == "form_not_three_parts"
        assert await bench.refuse(bare + ".") == "form_not_three_parts"
        assert await bench.refuse(bare + ".AA") == "signature_wrong"


async def test_claims_changed_under_a_good_signature(idp: IdP) -> None:
    header, _, signature = idp.token().split(".")
    changed = b64(json.dumps(idp.claims(sub="boss")).encode())
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(f"{header}.{changed}.{signature}") == "signature_wrong"


async def test_a_wrong_audience(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(aud="mail")) == "aud_wrong"
        assert await bench.refuse(idp.token(aud="cms2")) == "aud_wrong"


async def test_a_replay(idp: IdP) -> None:
    token = idp.token()
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(token)
        assert await bench.refuse(token) == "replayed"
        assert await bench.refuse(token, now=NOW + timedelta(seconds=3599)) == "replayed"


async def test_two_uses_at_once_give_one_grant(idp: IdP) -> None:
    token = idp.token()
    async with Bench(jwks_issuer(idp)) as bench:
        results = await asyncio.gather(*(bench.accept(token) for _ in range(8)), return_exceptions=True)
    assert sum(not isinstance(result, Exception) for result in results) == 1


async def test_expired_by_one_second_beyond_the_leeway(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(iat=T - 900, nbf=T - 900, exp=T - 61)) == "expired"


@pytest.mark.parametrize("exp", [T + 8 * 86400, 253_402_300_799, 253_402_300_800, 2**63, 10**300])
async def test_an_end_in_the_far_future(idp: IdP, exp: int) -> None:
    reason = "validity_too_long" if exp <= 253_402_300_799 else "exp_out_of_range"
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(exp=exp)) == reason


@pytest.mark.parametrize(
    "exp", [str(T + 600), float(T + 600), T + 600.5, f"{T + 600}.0", [T + 600], {"$gt": 0}]
)
async def test_exp_as_a_string_or_a_float(idp: IdP, exp) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(exp=exp)) == "exp_not_integer"


async def test_a_claim_given_twice(idp: IdP) -> None:
    claims = json.dumps(idp.claims())[:-1].encode() + b',"sub":"boss"}'
    escaped = json.dumps(idp.claims())[:-1].encode() + b',"\\u0073ub":"boss"}'
    async with Bench(jwks_issuer(idp)) as bench:
        for payload in (claims, escaped):
            token = raw({"alg": "RS256", "typ": "JWT", "kid": "k1"}, payload, rsa_key())
            assert await bench.refuse(token) == "claims_json_duplicate_key"


async def test_an_oversize_token(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(pad="x" * 12_000)) == "form_too_long"
        assert await bench.refuse("A" * 10_000_000) == "form_too_long"
        await bench.accept(idp.token(pad="x" * 11_000))


async def test_a_deeply_nested_token(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            depth = 12_000 // (len(opening) + 1) // 2
            payload = f'{{"a":{opening * depth}1{closing * depth}}}'.encode()
            token = raw({"alg": "RS256", "typ": "JWT", "kid": "k1"}, payload, rsa_key())
            assert await bench.refuse(token) == "claims_json_too_deep"


# Key sets


async def test_a_slow_key_set(idp: IdP, monkeypatch) -> None:
    """One byte now and then: no single read is late, the whole is."""
    from appliance.authn.jwt import fetch

    assert fetch.TIMEOUT_S == 5.0
    let_go = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not let_go.is_set():
            await response.write(b" ")
            await asyncio.sleep(0.02)
        return response

    idp.jwks = drip
    async with Bench(jwks_issuer(idp)) as bench:
        bench.verifier._by_name[idp.issuer].fetcher._timeout_s = 0.3
        assert await bench.refuse(idp.token()) == "jwks_not_available"
        assert bench.refusal.public == "the token's issuer could not be asked for its keys; try again later"
    let_go.set()


@pytest.mark.parametrize("declared", [True, False])
async def test_a_huge_key_set(idp: IdP, declared: bool) -> None:
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        if declared:
            response.content_length = 1 << 30
        await response.prepare(request)
        try:
            while sent < 64 << 20:
                await response.write(b" " * 65536)
                sent += 65536
        except (ConnectionError, asyncio.CancelledError):
            pass
        return response

    idp.jwks = flood
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"
    assert sent < 32 << 20


async def test_a_compressed_key_set_is_not_unpacked(idp: IdP) -> None:
    async def bomb(_request: web.Request) -> web.StreamResponse:
        import gzip

        return web.Response(body=gzip.compress(b" " * (16 << 20)), headers={"Content-Encoding": "gzip"})

    idp.jwks = bomb
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"


async def test_a_key_set_that_redirects_to_another_host(idp: IdP) -> None:
    async with running() as elsewhere:
        elsewhere.keys = [jwk(rsa_key(number=7), kid="k1")]

        async def away(_request: web.Request) -> web.StreamResponse:
            raise web.HTTPFound(elsewhere.jwks_uri)

        idp.jwks = away
        async with Bench(jwks_issuer(idp)) as bench:
            assert await bench.refuse(idp.token(key=rsa_key(number=7))) == "jwks_not_available"
        assert elsewhere.requests == []


@pytest.mark.parametrize(
    "where",
    [
        "file:///etc/passwd",
        "http://user@127.0.0.1/",
        "gopher://x/",
        "//evil.example/",
        "http://169.254.169.254/latest",
        "",
        "http://[",
    ],
)
async def test_a_key_set_that_redirects_to_a_strange_place(idp: IdP, where: str) -> None:
    async def away(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": where})

    idp.jwks = away
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"
    assert set(idp.requests) == {"GET /realm/keys"}


async def test_a_key_set_that_redirects_on_the_same_host_is_followed_a_few_times(idp: IdP) -> None:
    hops = 0

    async def around(_request: web.Request) -> web.StreamResponse:
        nonlocal hops
        hops += 1
        if hops > 2:
            return await idp.publish(_request)
        raise web.HTTPFound("/realm/keys")

    idp.jwks = around
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token())

    async def forever(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/realm/keys")

    idp.jwks = forever
    idp.requests.clear()
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"
    assert len(idp.requests) == 4


@pytest.mark.parametrize(
    "poison",
    [
        b"",
        b"null",
        b"[]",
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":[null,7,"x",[]]}',
        b'{"keys":[{"kty":"RSA","kid":"k1","n":"AQAB","e":"AQAB"}]}',
        b'{"keys":[],"keys":[]}',
        b"<html>" * 100,
        b'{"keys":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"keys":[' + b'{"kty":"oct","k":"AA"},' * 100 + b'{"kty":"oct","k":"AA"}]}',
        b'{"keys":[{"kty":["RSA"]},{"kty":"EC","crv":["P-256"]},{"kty":"EC","crv":"P-256","x":7,"y":8}]}',
        b"\xff\xfe",
    ],
)
async def test_a_poisoned_key_set_neither_serves_nor_replaces_keys(idp: IdP, poison: bytes) -> None:
    async def poisoned(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=poison, content_type="application/json")

    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token())
        idp.jwks = poisoned
        bench.clock.now += 301
        await bench.accept(idp.token(jti="served by the keys from before"))
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"


async def test_a_published_private_key_is_not_used(idp: IdP) -> None:
    """Whoever can read the key set could sign: such a key proves nothing."""
    idp.keys = [{**jwk(rsa_key(), kid="k1"), "d": "AQAB"}, jwk(ec_key(), kid="k2")]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "key_unknown"


@pytest.mark.parametrize("empty", [None, "", [], {}])
@pytest.mark.parametrize(
    "member", ["d", "p", "k", "oth", "use", "key_ops", "alg", "x5c", "x5t", "x5u", "crv"]
)
async def test_an_empty_member_of_a_published_key_is_absent(idp: IdP, member: str, empty) -> None:
    """Serialisers of some platforms write out every member that a key could have."""
    idp.keys = [{**jwk(rsa_key(), kid="k1"), member: empty}]
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token())


async def test_the_key_sets_of_dot_net_are_read(idp: IdP) -> None:
    bare = jwk(rsa_key())
    idp.keys = [
        {
            "kty": "RSA", "kid": "k1", "use": "sig", "n": bare["n"], "e": bare["e"], "key_ops": [], "oth": [], "x5c": [],
            "d": None, "dp": None, "dq": None, "p": None, "q": None, "qi": None, "k": None, "x5t": None, "x5u": None,
        }
    ]  # fmt: skip
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token())
    idp.keys[0] |= {"use": None, "kid": ""}
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(header={"kid": ...}))
        assert await bench.refuse(idp.token(jti="x")) == "key_unknown"


@pytest.mark.parametrize("member", ["n", "e", "kty"])
@pytest.mark.parametrize("empty", [None, "", []])
async def test_a_published_key_without_its_numbers_is_named_in_the_log(
    idp: IdP, member: str, empty, caplog
) -> None:
    idp.keys = [{**jwk(rsa_key(), kid="k1"), member: empty}]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"
    assert f"jwks no usable key: key 'k1': '{member}' is missing" in caplog.text
    assert "jwks no usable key" in bench.refusal.facts["issuer_answer"]


async def test_a_published_key_without_kid_is_told_why_it_is_left_out(idp: IdP, caplog) -> None:
    idp.keys = [{**jwk(rsa_key()), "use": "enc"}]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "jwks_not_available"
    assert "jwks no usable key: a key without kid is not for signatures (use)" in caplog.text


@pytest.mark.parametrize(
    "member",
    [
        {"use": "enc"},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"alg": "RSA-OAEP"},
        {"e": b64(b"\x03")},
        {"e": "AQ=="},
        {"kid": 7},
    ],
)
async def test_keys_that_are_not_for_checking_signatures_are_left_out(idp: IdP, member) -> None:
    idp.keys = [{**jwk(rsa_key(), kid="k1"), **member}, jwk(ec_key(), kid="k2")]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "key_unknown"


async def test_an_ec_point_off_the_curve_is_left_out(idp: IdP) -> None:
    idp.keys = [
        {"kty": "EC", "crv": "P-256", "kid": "k1", "x": b64(b"\1" * 32), "y": b64(b"\1" * 32)},
        jwk(rsa_key(), kid="k2"),
    ]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(alg="ES256", key=ec_key())) == "key_unknown"


# Time


async def test_a_clock_that_jumps_ahead_ends_tokens_and_keeps_keys(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(jti="1"))
        assert await bench.refuse(idp.token(jti="2"), now=NOW + timedelta(days=3650)) == "expired"
        await bench.accept(idp.token(jti="2"))
    assert len(idp.requests) == 1


async def test_a_clock_that_jumps_back_revives_nothing(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        used = idp.token(jti="used")
        await bench.accept(used)
        ahead = NOW + timedelta(days=1)
        start = int(ahead.timestamp())
        await bench.accept(idp.token(jti="later", iat=start, nbf=start, exp=start + 600), now=ahead)
        assert await bench.refuse(used) == "replayed"
        assert await bench.refuse(idp.token(jti="never seen")) == "replayed"
        assert await bench.refuse(idp.token(jti="3"), now=NOW - timedelta(days=1)) == "nbf_in_future"


# Names


@pytest.mark.parametrize(
    "sub",
    [
        "softioc/CN=admin",
        "/CN=admin",
        "softioc,CN=admin",
        "softioc+CN=admin",
        "a,b",
        "admin\0",
        "a\0b",
        "CN=admin",
        "a;b",
        "a\\,b",
        "#0c05",
        "a=b",
        '"',
        "a\nCN=b",
    ],
)
async def test_a_subject_that_would_be_read_as_more_than_a_name(idp: IdP, sub: str) -> None:
    for settings in ({}, {"subject_non_ascii": True}, {"subject_extra_characters": "/,=;\\ #"}):
        async with Bench(jwks_issuer(idp, **settings)) as bench:
            assert await bench.refuse(idp.token(sub=sub)) == "sub_characters"


_LOOK_LIKE_ADMIN = [
    "\u0430dmin",
    "adm\u0456n",
    "\u0430d\u043c\u0456\u043d",
    "\uff41\uff44\uff4d\uff49\uff4e",
    "\U0001d41admin",
    "adm\u0131n",
    "a\u0501min",
    "\u00e0dmin",
    "admin\u0301",
    "ad\u200bmin",
    "\u03b1dmin",
    "adm\u026an",
]


@pytest.mark.parametrize("sub", _LOOK_LIKE_ADMIN)
async def test_a_homoglyph_of_a_reserved_name(idp: IdP, sub: str) -> None:
    async with Bench(jwks_issuer(idp), reserved=("admin",)) as bench:
        assert await bench.refuse(idp.token(sub=sub)) == "sub_characters"
    async with Bench(jwks_issuer(idp, subject_non_ascii=True), reserved=("admin",)) as bench:
        reason = await bench.refuse(idp.token(sub=sub))
        assert reason in {"sub_reserved", "sub_mixed_scripts", "sub_not_normalised", "sub_characters"}


async def test_a_name_of_another_script_is_accepted_where_the_site_allows_it(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, subject_non_ascii=True), reserved=("admin",)) as bench:
        assert (await bench.accept(idp.token(sub="\u6771\u4eac"))).subject["CN"] == "\u6771\u4eac"
        assert (await bench.accept(idp.token(sub="ren\u00e9"))).subject["CN"] == "ren\u00e9"
