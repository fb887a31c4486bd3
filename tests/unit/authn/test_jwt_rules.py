"""Every rule for accepting a token, judged by the whole verifier against an identity provider on a real socket."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from appliance.authn.grant import ProvenIdentity
from appliance.authn.jwt import token as tokens
from appliance.authn.jwt.config import ClaimRule
from appliance.config.secret import Secret
from appliance.errors import DatabaseLost, TokenRefused
from tests.helpers.tokens import (
    NOW,
    Bench,
    IdP,
    T,
    ec_key,
    ed_key,
    jwk,
    jwks_issuer,
    public_pem,
    raw,
    rsa_key,
    running,
)


@pytest.fixture
async def idp() -> AsyncIterator[IdP]:
    async with running() as server:
        yield server


async def test_a_good_token_gives_the_grant_of_the_mapping(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        grant = await bench.accept(idp.token(nbf=T - 10, exp=T + 3000))
    assert grant.method == "jwt"
    assert grant.subject == {"CN": "softioc", "O": "127.0.0.1", "OU": "", "C": ""}
    assert grant.not_before == NOW - timedelta(seconds=10)
    assert grant.not_after == NOW + timedelta(seconds=3000)
    assert not grant.approval_needed
    assert grant.identity == ProvenIdentity(idp.issuer, "softioc")
    assert grant.audit["iss"] == idp.issuer
    assert grant.audit["kid"] == "k1"
    assert len(grant.audit["jti_hash"]) == 64


async def test_start_of_validity_is_iat_without_nbf_and_some_time_back_without_both(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert (await bench.accept(idp.token(nbf=..., iat=T - 7))).not_before == NOW - timedelta(seconds=7)
        assert (await bench.accept(idp.token(nbf=..., iat=...))).not_before == NOW - timedelta(minutes=5)


@pytest.mark.parametrize(
    ("alg", "key"), [("RS256", rsa_key), ("PS256", rsa_key), ("ES256", ec_key), ("EdDSA", ed_key)]
)
async def test_each_default_algorithm_is_accepted(idp: IdP, alg: str, key) -> None:
    idp.keys = [jwk(key(), kid="k1")]
    async with Bench(jwks_issuer(idp)) as bench:
        assert (await bench.accept(idp.token(alg=alg, key=key()))).subject["CN"] == "softioc"


# Rule 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t + "." + "A" * tokens.MAX_TOKEN_BYTES, "form_too_long"),
        (lambda t: "", "form_empty"),
        (lambda t: t.rsplit(".", 1)[0], "form_not_three_parts"),
        (lambda t: t + ".", "form_not_three_parts"),
        (lambda t: t + ".AAAA.AAAA", "form_not_three_parts"),
        (lambda t: "." + t.split(".", 1)[1], "form_not_three_parts"),
        (lambda t: t + "\n", "signature_base64url_invalid"),
        (lambda t: " " + t, "header_base64url_invalid"),
        (lambda t: t + "==", "signature_base64url_invalid"),
        (lambda t: t.replace(".", "=.", 1), "header_base64url_invalid"),
        (lambda t: t.replace("_", "/").replace("-", "+") + "+/", "signature_base64url_invalid"),
        (lambda t: "\u00e9" + t, "form_not_ascii"),
        (
            lambda t: (
                t + "A" * (1 if len(t.rsplit(".", 1)[1]) % 4 == 0 else 4 - len(t.rsplit(".", 1)[1]) % 4 + 1)
            ),
            "signature_base64url_invalid",
        ),
        (
            lambda t: json.dumps(dict(zip(("protected", "payload", "signature"), t.split("."), strict=True))),
            "form_not_three_parts",
        ),
    ],
)
async def test_only_a_compact_token_of_canonical_parts_is_read(idp: IdP, change, reason: str) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(change(idp.token())) == reason
    assert idp.requests == []


async def test_stray_bits_at_the_end_of_a_part_are_refused(idp: IdP) -> None:
    good = idp.token()
    head, tail = good[:-1], good[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = alphabet[alphabet.index(tail) ^ 1]  # 256 bytes leave four bits unused
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(head + other) == "signature_base64url_not_canonical"
        await bench.accept(good)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ({"enc": "A256GCM"}, "header_encrypted"),
        ({"zip": "DEF"}, "header_encrypted"),
        ({"b64": False}, "header_b64"),
        ({"b64": True}, "header_b64"),
    ],
)
async def test_headers_that_ask_for_another_reading_are_refused(idp: IdP, member, reason: str) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(header=member)) == reason


# Rule 2


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        (b'{"iss":"a","iss":"b"}', "claims_json_duplicate_key"),
        (b'{"x":{"a":1,"a":1}}', "claims_json_duplicate_key"),
        (b'{"exp":NaN}', "claims_json_not_finite"),
        (b'{"exp":-Infinity}', "claims_json_not_finite"),
        (b'{"exp":1e999}', "claims_json_not_finite"),
        (b'{"a":' * 17 + b"1" + b"}" * 17, "claims_json_too_deep"),
        (b'{"a":' + b"[" * 16 + b"]" * 16 + b"}", "claims_json_too_deep"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "claims_json_too_deep"),
        (b"[]", "claims_json_not_an_object"),
        (b"null", "claims_json_not_an_object"),
        (b'"x"', "claims_json_not_an_object"),
        (b'{"a":"\xff"}', "claims_json_not_utf8"),
        (b'\xef\xbb\xbf{"a":1}', "claims_json_invalid"),
        (b'{"a":"\\ud800"}', "claims_json_lone_surrogate"),
        (b'{"\\udfff":1}', "claims_json_lone_surrogate"),
        (b'{"a":1}{"a":2}', "claims_json_invalid"),
        (b'{"a":"\n"}', "claims_json_invalid"),
        (b'{"a":' + b"9" * 5000 + b"}", "claims_json_invalid"),
        (b"", "form_not_three_parts"),
    ],
)
async def test_only_strict_json_is_read(idp: IdP, claims: bytes, reason: str) -> None:
    token = raw({"alg": "RS256", "typ": "JWT", "kid": "k1"}, claims, rsa_key())
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(token) == reason


async def test_sixteen_levels_of_json_are_enough_and_allowed(idp: IdP) -> None:
    deep: object = 1
    for _ in range(15):
        deep = {"a": deep}
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(extra=deep))
        assert await bench.refuse(idp.token(extra={"a": deep})) == "claims_json_too_deep"


async def test_the_header_is_read_as_strictly(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert (
            await bench.refuse(raw(b'{"alg":"RS256","alg":"none"}', idp.claims(), rsa_key()))
            == "header_json_duplicate_key"
        )


# Rule 3


@pytest.mark.parametrize("typ", ["JOSE", "logout+jwt", "", ...])
async def test_other_types_are_refused(idp: IdP, typ) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(header={"typ": typ})) == "typ_not_allowed"


@pytest.mark.parametrize("typ", ["JWT", "jwt", "application/jwt", "at+jwt"])
async def test_listed_types_are_accepted_as_media_types(idp: IdP, typ: str) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(header={"typ": typ}))


async def test_a_site_can_accept_tokens_without_a_type(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, typ=("",))) as bench:
        await bench.accept(idp.token(header={"typ": ...}))


@pytest.mark.parametrize("crit", [["exp"], [], "x", ["b64"]])
async def test_any_crit_is_refused(idp: IdP, crit) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(header={"crit": crit})) == "header_crit"


# Rule 4


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i + "/",
        lambda i: i.upper(),
        lambda i: i + "#",
        lambda i: i.replace("127.0.0.1", "localhost"),
        lambda i: "https://evil.example",
    ],
)
async def test_the_issuer_is_compared_exactly(idp: IdP, change) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(iss=change(idp.issuer))) == "iss_not_trusted"


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i + "/",
        lambda i: i.replace("http", "HTTP"),
        lambda i: i.replace("realm", "%72ealm"),
    ],
    ids=["slash", "upper case", "escape"],
)
async def test_an_issuer_that_is_nearly_right_is_told_what_was_compared_with_what(idp: IdP, change) -> None:
    wrong = change(idp.issuer)
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(iss=wrong)) == "iss_not_trusted"
        assert f"its iss is {wrong!r}, compared letter by letter with {idp.issuer!r}" in bench.refusal.public
        assert await bench.refuse(idp.token(iss="https://a.example/\x1b[2J")) == "iss_not_trusted"
        told = bench.refusal.public
    assert idp.issuer not in told, "a stranger is not told whom this service trusts"
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (..., "iss_missing"),
        ("", "iss_invalid"),
        (7, "iss_invalid"),
        (None, "iss_invalid"),
        (["a"], "iss_invalid"),
        ("x" * 600, "iss_invalid"),
    ],
)
async def test_a_missing_or_malformed_issuer_is_refused(idp: IdP, value, reason: str) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(iss=value)) == reason


async def test_a_long_host_is_no_matter_where_an_organization_is_set(idp: IdP) -> None:
    """The host is no part of the name then."""
    long = f"https://{'x' * 61}.example/realm"
    async with Bench(jwks_issuer(idp, issuer=long, organization="lab")) as bench:
        grant = await bench.accept(idp.token(iss=long))
    assert grant.subject["O"] == "lab"


async def test_with_no_issuer_configured_nothing_is_accepted(idp: IdP) -> None:
    async with Bench() as bench:
        assert await bench.refuse(idp.token()) == "iss_not_trusted"


# Rule 5


async def test_an_algorithm_that_is_not_listed_is_refused(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, algorithms=("ES256",))) as bench:
        assert await bench.refuse(idp.token()) == "alg_not_allowed"


async def test_the_key_type_must_fit_the_algorithm(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(alg="ES256", key=ec_key())) == "key_unknown"


async def test_the_algorithm_named_by_the_published_key_binds(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(alg="PS256")) == "key_unknown"


async def test_a_shared_secret_issuer_is_served_by_hmac_only(idp: IdP) -> None:
    secret = "0123456789abcdef0123456789abcdef"
    issuer = jwks_issuer(
        idp, mode="shared_secret", jwks_uri="", algorithms=("HS256",), shared_secret=Secret(secret)
    )
    async with Bench(issuer) as bench:
        await bench.accept(idp.token(alg="HS256", key=secret.encode()))
        assert await bench.refuse(idp.token(alg="HS256", key=b"x" * 32)) == "signature_wrong"
        assert await bench.refuse(idp.token(alg="HS512", key=secret.encode())) == "alg_not_allowed"
        assert await bench.refuse(idp.token()) == "alg_not_allowed"


# Rule 6


async def test_rsa_keys_below_2048_bits_are_not_used(idp: IdP) -> None:
    idp.keys = [jwk(rsa_key(1024), kid="k1"), jwk(ec_key(), kid="other")]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(key=rsa_key(1024))) == "key_unknown"


# Rule 7


async def test_kid_must_match_exactly(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(header={"kid": "K1"})) == "key_unknown"
        assert await bench.refuse(idp.token(header={"kid": "k1 "})) == "key_unknown"


@pytest.mark.parametrize("kid", ["", 1, None, ["k1"], "k" * 300])
async def test_a_malformed_kid_is_refused(idp: IdP, kid) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(header={"kid": kid})) == "kid_invalid"


async def test_without_kid_exactly_one_key_must_fit(idp: IdP) -> None:
    idp.keys = [jwk(rsa_key(), kid="k1"), jwk(ec_key(), kid="k2")]
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(header={"kid": ...}))
    idp.keys = [jwk(rsa_key(), kid="k1"), jwk(rsa_key(number=1), kid="k2")]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(header={"kid": ...})) == "key_ambiguous"


async def test_two_keys_of_one_kid_are_no_key(idp: IdP) -> None:
    idp.keys = [jwk(rsa_key(), kid="k1"), jwk(rsa_key(number=1), kid="k1")]
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "key_ambiguous"
        assert "several keys that match" in bench.refusal.public


async def test_a_key_that_is_listed_twice_is_one_key(idp: IdP) -> None:
    idp.keys = [jwk(rsa_key(), kid="k1"), *idp.keys * 2, jwk(rsa_key(), kid="k9")]
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(jti="1"))
        await bench.accept(idp.token(jti="2", header={"kid": ...}))
        assert await bench.refuse(idp.token(header={"kid": "k2"})) == "key_unknown"
        assert await bench.refuse(idp.token(key=rsa_key(number=1))) == "signature_wrong"
    idp.keys.append(jwk(rsa_key(number=1), kid="k1"))
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token()) == "key_ambiguous", "two keys of one kid, one of them twice"


@pytest.mark.parametrize("listed", ["EdDSA", "Ed25519"])
@pytest.mark.parametrize("published", ["EdDSA", "Ed25519", None])
@pytest.mark.parametrize("alg", ["EdDSA", "Ed25519"])
async def test_ed25519_is_eddsa_with_that_curve(idp: IdP, alg: str, published, listed: str) -> None:
    """RFC 9864 gave the algorithm a name of its own."""
    idp.keys = [jwk(ed_key(), kid="k1", **({"alg": published} if published else {}))]
    async with Bench(jwks_issuer(idp, algorithms=(listed,))) as bench:
        await bench.accept(idp.token(header={"alg": alg}, key=ed_key(), alg="EdDSA"))
        wrong = idp.token(header={"alg": alg}, key=ed_key(1), alg="EdDSA", jti="wrong")
        assert await bench.refuse(wrong) == "signature_wrong"
    async with Bench(jwks_issuer(idp, algorithms=("RS256",))) as bench:
        assert (
            await bench.refuse(idp.token(header={"alg": alg}, key=ed_key(), alg="EdDSA")) == "alg_not_allowed"
        )


async def test_ed25519_is_a_default(idp: IdP) -> None:
    idp.keys = [jwk(ed_key(), kid="k1")]
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(header={"alg": "Ed25519"}, key=ed_key(), alg="EdDSA"))


async def test_thumbprints_of_keys_are_passed_over(idp: IdP) -> None:
    """They are neither keys nor places to fetch one; tokens of some widespread providers have them."""
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(header={"x5t": "AAAA", "x5t#S256": "BBBB"}))
        wrong = idp.token(header={"x5t": "AAAA"}, key=rsa_key(number=3), jti="wrong")
        assert await bench.refuse(wrong) == "signature_wrong"


# Rule 9


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": ...}, "exp_missing"),
        ({"exp": None}, "exp_not_integer"),
        ({"exp": True}, "exp_not_integer"),
        ({"exp": -1}, "exp_out_of_range"),
        ({"exp": T - 60}, "expired"),
        ({"nbf": T + 61}, "nbf_in_future"),
        ({"iat": T + 61}, "iat_in_future"),
        ({"nbf": T + 30, "exp": T + 20}, "nbf_not_before_exp"),
        ({"iat": T + 30, "exp": T + 20}, "iat_not_before_exp"),
        ({"nbf": "0"}, "nbf_not_integer"),
        ({"iat": 1.5}, "iat_not_integer"),
        ({"nbf": None}, "nbf_not_integer"),
    ],
)
async def test_times_are_integers_and_honoured(idp: IdP, changes, reason: str) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(**changes)) == reason


async def test_a_clock_behind_the_issuers_by_less_than_the_leeway_does_no_harm(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        grant = await bench.accept(idp.token(nbf=T + 60, iat=T + 60))
    assert grant.not_before == NOW + timedelta(seconds=60)


def test_the_claims_of_a_token_inside_the_leeway_are_good() -> None:
    idp = IdP()
    idp.origin = "http://127.0.0.1:1"
    token = tokens.parse(idp.token(exp=T - 59, iat=T - 100, nbf=T - 100))
    limits = {"leeway": 60, "longest_validity": 3600, "audience": (), "require_jti": False}
    assert tokens.check_claims(token, now=T, **limits).expires == T - 59
    with pytest.raises(TokenRefused) as refused:
        tokens.check_claims(token, now=T + 1, **limits)
    assert refused.value.reason == "expired"


async def test_no_certificate_is_granted_that_has_already_ended(idp: IdP) -> None:
    """Inside the leeway the claims are good, but notAfter is exp and lies in the past."""
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(exp=T - 1, iat=T - 100, nbf=T - 100)) == "no_validity_left"
        assert bench.refusal is not None
        assert "fetch a new one" in bench.refusal.public


# Rule 10


@pytest.mark.parametrize(
    ("aud", "reason"),
    [
        (..., "aud_missing"),
        ("other", "aud_wrong"),
        (["a", "b"], "aud_wrong"),
        ([], "aud_wrong"),
        (7, "aud_invalid"),
        (None, "aud_invalid"),
        (["cms", 7], "aud_invalid"),
        ({"cms": 1}, "aud_invalid"),
        ("CMS", "aud_wrong"),
    ],
)
async def test_the_token_must_be_made_out_to_this_service(idp: IdP, aud, reason: str) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(aud=aud)) == reason


async def test_one_audience_of_several_is_enough(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(aud=["other", "cms"]))


# Rule 11


@pytest.mark.parametrize("sub", [..., "", None, 7, ["a"], "x" * 65])
async def test_sub_is_a_string_of_1_to_64_characters(idp: IdP, sub) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(sub=sub)) == "sub_invalid"


@pytest.mark.parametrize(
    "sub",
    [
        "a\nb",
        "a\tb",
        "\x7f",
        "a b",
        "-x",
        ".x",
        "@x",
        "a\u202eb",
        "a\u200bb",
        "\u00e9t\u00e9",
        "a*b",
        'a"b',
        "a:b",
    ],
)
async def test_names_are_made_of_plain_characters(idp: IdP, sub: str) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(sub=sub)) == "sub_characters"


async def test_a_rule_takes_the_name_from_the_subject(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, subject_rule="*@example.org")) as bench:
        grant = await bench.accept(idp.token(sub="jane@example.org"))
        assert grant.subject["CN"] == "jane"
        assert grant.identity == ProvenIdentity(idp.issuer, "jane@example.org")
        for other in ("jane@example.org.evil", "jane@example.net", "@example.org", "example.org"):
            assert await bench.refuse(idp.token(sub=other)) == "sub_rule"


@pytest.mark.parametrize("sub", ["admin", "ADMIN", "Admin", "adm1n", "root", "r00t", "EPICS-CA", "adrnin"])
async def test_reserved_names_are_refused_by_look(idp: IdP, sub: str) -> None:
    async with Bench(jwks_issuer(idp), reserved=("admin", "root", "epics-ca")) as bench:
        assert await bench.refuse(idp.token(sub=sub)) == "sub_reserved"


async def test_a_reserved_name_is_refused_after_the_rule_too(idp: IdP) -> None:
    async with Bench(
        jwks_issuer(idp, subject_rule="*@example.org"), reserved=("admin", "boss@example.org")
    ) as bench:
        assert await bench.refuse(idp.token(sub="admin@example.org")) == "sub_reserved"
        assert await bench.refuse(idp.token(sub="boss@example.org")) == "sub_reserved"


async def test_new_administrators_are_protected_at_once(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.accept(idp.token(sub="jane"))
        bench.verifier.reserve(["jane"])
        assert await bench.refuse(idp.token(sub="jane", jti="2")) == "sub_reserved"


# Rule 12


async def test_a_site_can_require_jti(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, require_jti=True)) as bench:
        assert await bench.refuse(idp.token(jti=...)) == "jti_missing"


@pytest.mark.parametrize("jti", ["", 7, None, "x" * 300])
async def test_a_malformed_jti_is_refused(idp: IdP, jti) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(jti=jti)) == "jti_invalid"


async def test_a_refused_token_is_not_used_up(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, usages=("client",))) as bench:
        assert await bench.refuse(idp.token(), usage="ioc") == "usage_not_allowed"
        await bench.accept(idp.token())


async def test_a_store_that_fails_lets_nobody_in(idp: IdP, caplog) -> None:
    class Broken:
        async def use(self, *use: object, **about: str) -> bool:
            raise OSError("disk full near eyJhbGciOi")

    async with Bench(jwks_issuer(idp)) as bench:
        bench.verifier._replay = Broken()
        with caplog.at_level(logging.DEBUG):
            assert await bench.refuse(idp.token()) == "internal_error"
    assert "OSError" in caplog.text
    assert "eyJ" not in caplog.text


async def test_a_store_that_cannot_be_asked_at_the_moment_lets_nobody_in_and_says_when_to_ask_again(
    idp: IdP,
) -> None:
    class Lost:
        async def use(self, *use: object, **about: str) -> bool:
            raise DatabaseLost("the certificate database cannot be reached; nothing was done")

    async with Bench(jwks_issuer(idp)) as bench:
        bench.verifier._replay = Lost()
        assert await bench.refuse(idp.token()) == "use_unknown"
        with pytest.raises(TokenRefused, match="cannot be reached; nothing was done; retry in 5 s"):
            await bench.accept(idp.token())


# Rule 13


async def test_cnf_binds_the_token_to_the_key_of_the_request(idp: IdP) -> None:
    """RFC 7638 thumbprint, computed by an independent library."""
    from joserfc import jwk as joserfc_jwk

    for key, kind in ((rsa_key(), "RSA"), (ec_key(), "EC"), (ed_key(), "OKP")):
        pem = public_pem(key)
        jkt = joserfc_jwk.import_key(pem, kind).thumbprint()
        async with Bench(jwks_issuer(idp)) as bench:
            await bench.accept(idp.token(cnf={"jkt": jkt}), public_key=pem)
            await bench.accept(idp.token(cnf={"jwk": jwk(key)}), public_key=pem.decode())
            assert await bench.refuse(idp.token(cnf={"jkt": jkt}, jti="2")) == "cnf_wrong_key"
            assert (
                await bench.refuse(idp.token(cnf={"jkt": jkt, "jwk": jwk(ec_key(5))}), public_key=pem)
                == "cnf_wrong_key"
            )


@pytest.mark.parametrize(
    ("cnf", "reason"),
    [
        ({}, "cnf_invalid"),
        (None, "cnf_invalid"),
        ("x", "cnf_invalid"),
        ({"kid": "x"}, "cnf_not_supported"),
        ({"x5t#S256": "x"}, "cnf_not_supported"),
        ({"jkt": 7}, "cnf_wrong_key"),
        ({"jkt": "x", "kid": "y"}, "cnf_not_supported"),
        ({"jwk": 7}, "cnf_wrong_key"),
        ({"jwk": {"kty": "RSA"}}, "cnf_jwk_incomplete"),
        ({"jwk": {"kty": ["RSA"]}}, "cnf_jwk_incomplete"),
    ],
)
async def test_a_cnf_that_cannot_be_checked_is_refused(idp: IdP, cnf, reason: str) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(cnf=cnf)) == reason


async def test_cnf_with_an_unreadable_request_key_is_refused(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert (
            await bench.refuse(idp.token(cnf={"jkt": "x"}), public_key="nonsense")
            == "cnf_public_key_unreadable"
        )


# Rule 14


async def test_only_configured_usages_are_granted(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, usages=("client",))) as bench:
        for usage in ("server", "ioc", "", "CLIENT", "ca"):
            assert await bench.refuse(idp.token(), usage=usage) == "usage_not_allowed"


@pytest.mark.parametrize(
    ("claim", "claims", "good"),
    [
        ("groups", {"groups": ["iocs", "x"]}, True),
        ("groups", {"groups": ["x"]}, False),
        ("groups", {"groups": "iocs"}, True),
        ("scope", {"scope": "openid iocs"}, True),
        ("scope", {"scope": "openid-iocs"}, False),
        ("realm_access.roles", {"realm_access": {"roles": ["iocs"]}}, True),
        ("realm_access.roles", {"realm_access": ["iocs"]}, False),
        ("https://x.example/roles", {"https://x.example/roles": ["iocs"]}, True),
        ("groups", {}, False),
        ("groups", {"groups": {"iocs": True}}, False),
        ("groups", {"groups": [["iocs"]]}, False),
        ("groups", {"groups": True}, False),
        ("groups", {"groups": "applicants for iocs"}, False),
        ("groups", {"groups": "iocs "}, False),
        ("groups", {"groups": ["applicants for iocs"]}, False),
        ("groups", {"groups": [1, None, "iocs"]}, True),
        ("realm_access.roles", {"realm_access": {"roles": "not iocs"}}, False),
        ("realm_access.scope", {"realm_access": {"scope": "not iocs"}}, False),
        ("realm_access.roles", {"realm_access": None, "roles": "iocs"}, False),
        ("scope", {"scope": "iocs"}, True),
        ("scope", {"scope": ["openid iocs"]}, False),
        ("scope", {"scope": "openid\tiocs"}, False),
        ("scope", {"scope": "openid\u00a0iocs"}, False),
        ("scp", {"scp": "openid iocs"}, True),
        ("scp", {"scp": ["openid", "iocs"]}, True),
        ("scp", {"scp": {"iocs": 1}}, False),
        ("Scope", {"Scope": "openid iocs"}, False),
    ],
)
async def test_a_usage_can_depend_on_a_claim(idp: IdP, claim: str, claims, good: bool) -> None:
    rule = ClaimRule(claim=claim, values=("iocs",))
    async with Bench(jwks_issuer(idp, usage_claims={"ioc": rule})) as bench:
        if good:
            await bench.accept(idp.token(**claims), usage="ioc")
        else:
            assert await bench.refuse(idp.token(**claims), usage="ioc") == "usage_claim_missing"
        await bench.accept(idp.token(jti="client needs no claim", **claims), usage="client")


async def test_a_string_is_one_value_blanks_and_all(idp: IdP) -> None:
    rule = ClaimRule(claim="group", values=("ioc-hosts", "IOC Hosts"))
    async with Bench(jwks_issuer(idp, usage_claims={"ioc": rule})) as bench:
        assert (
            await bench.refuse(idp.token(group="applicants for ioc-hosts"), usage="ioc")
            == "usage_claim_missing"
        )
        await bench.accept(idp.token(group="IOC Hosts"), usage="ioc")
        await bench.accept(idp.token(group=["staff", "IOC Hosts"]), usage="ioc")
        assert await bench.refuse(idp.token(group=["IOC", "Hosts"]), usage="ioc") == "usage_claim_missing"


@pytest.mark.parametrize("held", [True, 1, 1.0, None, [True], [1]])
async def test_booleans_and_numbers_match_no_text(idp: IdP, held) -> None:
    rule = ClaimRule(claim="admin", values=("true", "True", "1", "1.0", "null", "None"))
    async with Bench(jwks_issuer(idp, usage_claims={"ioc": rule})) as bench:
        assert await bench.refuse(idp.token(admin=held), usage="ioc") == "usage_claim_missing"


def test_a_word_with_a_blank_in_it_is_refused_at_the_start() -> None:
    """No token could ever match it."""
    for claim in ("scope", "scp"):
        with pytest.raises(ValueError, match="write each word as a value of its own"):
            ClaimRule(claim=claim, values=("IOC Hosts",))
    ClaimRule(claim="groups", values=("IOC Hosts",))


async def test_approval_is_the_issuers_setting(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, approval=True)) as bench:
        assert (await bench.accept(idp.token())).approval_needed


# Rule 15


async def test_the_token_shows_nowhere(idp: IdP, caplog) -> None:
    text = idp.token()
    token = tokens.parse(text)
    pieces = [piece for piece in text.split(".") if len(piece) > 8]
    async with Bench(jwks_issuer(idp)) as bench:
        with caplog.at_level(logging.DEBUG):
            grant = await bench.accept(text)
            await bench.refuse(text)
    shown = (
        f"{token!r} {token} {grant!r} {bench.refusal!r} {bench.refusal} {bench.refusal.facts} {caplog.text}"
    )
    assert not [piece for piece in pieces if piece in shown]
    assert token.claims["jti"] not in shown
    with pytest.raises(TypeError):
        __import__("pickle").dumps(token)


async def test_refusals_carry_facts_fit_for_a_log(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        await bench.refuse(idp.token(sub="a\r\nforged line \u202e", header={"kid": "\x1b[31m"}))
        facts = bench.refusal.facts
    assert facts["sub"] == "a\\r\\nforged line \\u202e"
    assert facts["kid"] == "\\x1b[31m"
    assert all(value.isprintable() and value.isascii() for value in facts.values())


# Rule 16


async def test_submissions_are_limited_per_peer(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp), peer_per_minute=6.0, peer_burst=2) as bench:
        for number in range(2):
            await bench.accept(idp.token(jti=str(number)), peer=f"192.0.2.7:{number + 1}")
        assert await bench.refuse(idp.token(jti="3"), peer="192.0.2.7:9") == "rate_limited_peer"
        assert bench.refusal.public == "rate limited, retry in 10 s"
        await bench.accept(idp.token(jti="4"), peer="192.0.2.8:9")
        bench.clock.now += 10
        await bench.accept(idp.token(jti="3"), peer="192.0.2.7:9")


async def test_submissions_are_limited_per_issuer(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp, per_minute=60.0, burst=1)) as bench:
        await bench.accept(idp.token(jti="1"), peer="192.0.2.1")
        assert await bench.refuse(idp.token(jti="2"), peer="192.0.2.2") == "rate_limited_issuer"
        assert bench.refusal.public == "rate limited, retry in 1 s"


# Rule 17


async def test_a_token_over_plain_tcp_is_refused_unless_the_site_says_so(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(), is_tls=False) == "plaintext_transport"
    async with Bench(jwks_issuer(idp), allow_plaintext_token=True) as bench:
        await bench.accept(idp.token(), is_tls=False)


async def test_what_the_sender_is_told_does_not_depend_on_secrets(idp: IdP) -> None:
    """A wrong signature, an unlisted algorithm and a reserved name read the same to whoever sent them."""
    told = set()
    async with Bench(jwks_issuer(idp), reserved=("admin",)) as bench:
        for token in (
            idp.token(key=rsa_key(number=1)),
            idp.token(alg="HS256", key=b"x"),
            idp.token(sub="admin"),
        ):
            await bench.refuse(token)
            told.add(bench.refusal.public)
    assert told == {"the token was refused"}


async def test_a_time_without_a_zone_lets_nobody_in(idp: IdP) -> None:
    async with Bench(jwks_issuer(idp)) as bench:
        assert await bench.refuse(idp.token(), now=NOW.replace(tzinfo=None)) == "internal_error"
