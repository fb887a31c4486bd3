"""Whatever is sent as a token: a Token, or TokenRefused, and nothing else."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.authn.jwt import jwk, naming, uri
from appliance.authn.jwt import token as tokens
from appliance.authn.jwt.strict_json import StrictFormatError, b64url_decode, b64url_encode, load_object
from appliance.errors import TokenRefused
from tests.helpers.tokens import b64

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "cnf", "alg", "typ", "kid", "crit", "jwk"]
)
MEMBERS = st.dictionaries(NAMES | st.text(max_size=5), JSON | st.integers(0, 4_000_000_000), max_size=10)


def reason_for(text: str) -> str:
    try:
        token = tokens.parse(text)
        tokens.check_header(token, algorithms=("RS256",), types=("JWT", ""))
        claims = tokens.check_claims(
            token, now=2e9, leeway=60, longest_validity=10**10, audience=("a",), require_jti=False
        )
        if claims.confirmation:
            jwk.confirm(claims.confirmation, "x")
        naming.common_name(
            claims.subject,
            rule="*",
            extra_characters="",
            non_ascii=True,
            reserved=naming.ReservedNames(["admin"]),
        )
    except TokenRefused as refusal:
        return refusal.reason
    return "good"


def judge(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9_]{4,63}", reason_for(text))


@given(st.text(max_size=200) | st.text(alphabet="abcAB01_-.=+/ ", max_size=200))
def test_any_text(text: str) -> None:
    judge(text)


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=40))
def test_any_octets_in_three_parts(header: bytes, claims: bytes, signature: bytes) -> None:
    judge(f"{b64(header)}.{b64(claims)}.{b64(signature)}")


@settings(max_examples=300)
@given(MEMBERS, MEMBERS)
def test_any_header_and_claims(header: dict, claims: dict) -> None:
    judge(f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}.AAAA")
    good = {"alg": "RS256", "typ": "JWT"}
    judge(f"{b64(json.dumps(good).encode())}.{b64(json.dumps(claims).encode())}.AAAA")
    full = {"sub": "x", "exp": 2_000_000_100, "aud": "a", **claims}
    judge(f"{b64(json.dumps(good).encode())}.{b64(json.dumps(full).encode())}.AAAA")


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["kty", "crv", "x", "y", "n", "e", "kid", "alg", "use", "key_ops", "d"]),
            JSON | st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "A" * 43]),
            max_size=8,
        ),
        max_size=4,
    )
)
def test_any_key_set(entries: list) -> None:
    try:
        for key in jwk.read_key_set(json.dumps({"keys": entries}).encode()):
            assert key.kind in {"RSA", "P-256", "P-384", "P-521", "Ed25519"}
    except jwk.KeySetError:
        pass


@given(st.binary(max_size=60))
def test_base64url_has_one_spelling(data: bytes) -> None:
    text = b64url_encode(data).encode()
    assert b64url_decode(text) == data
    with pytest.raises(StrictFormatError):
        b64url_decode(text + b"=")


@given(st.binary(max_size=40))
def test_what_decodes_encodes_back(text: bytes) -> None:
    try:
        data = b64url_decode(text)
    except StrictFormatError:
        return
    assert b64url_encode(data).encode() == text


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_strict_json_reads_what_others_write(value: dict) -> None:
    try:
        data = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert load_object(data) == value


@given(
    st.text(max_size=60)
    | st.from_regex(r"https?://[a-z0-9.:@\[\]-]{0,20}(/[a-zA-Z0-9./%]{0,20})?", fullmatch=True)
)
def test_a_uri_that_is_read_has_no_second_spelling(text: str) -> None:
    where = uri.parse(text)
    if where is None:
        return
    from urllib.parse import urlsplit

    other = urlsplit(text)
    assert other.hostname == where.host
    assert (other.port or {"http": 80, "https": 443}[other.scheme]) == where.port
    assert (other.username, other.query, other.fragment) == (None, "", "")
    assert other.path == where.path


@given(st.text(max_size=80))
def test_a_name_is_what_any_reader_takes_it_for(subject: str) -> None:
    reserved = naming.ReservedNames(["admin", "root"])
    try:
        name = naming.common_name(
            subject, rule="*", extra_characters=" ,=/", non_ascii=True, reserved=reserved
        )
    except TokenRefused:
        return
    assert name == subject
    assert name.isprintable()
    assert not set(name) & set(',=;/\\"+<>#') - {"+"}
    assert name not in reserved
