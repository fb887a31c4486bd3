"""The examples of the RFCs."""

from __future__ import annotations

import json

import pytest

from appliance.authn.jwt import jwk
from appliance.authn.jwt import token as tokens
from appliance.authn.jwt.strict_json import b64url_decode
from appliance.errors import TokenRefused

RSA_7638 = {
    "kty": "RSA",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3ok"
    "njhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvR"
    "L5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
    "e": "AQAB",
    "alg": "RS256",
    "kid": "2011-04-29",
}
EC_7515 = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}
ED_8037 = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
CLAIMS = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"


def published(key: dict[str, str]) -> jwk.Jwk:
    (read,) = jwk.read_key_set(json.dumps({"keys": [key]}).encode())
    return read


def test_thumbprints() -> None:
    """RFC 7638 section 3.1, RFC 8037 appendix A.3."""
    assert jwk.thumbprint(RSA_7638) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    assert jwk.thumbprint(ED_8037) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_hs256() -> None:
    """RFC 7515 appendix A.1; its header and claims hold line ends."""
    secret = b64url_decode(
        b"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
    )
    token = tokens.parse(
        f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{CLAIMS}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )
    assert token.claims == {"iss": "joe", "exp": 1300819380, "http://example.com/is_root": True}
    jwk.check_hmac(secret, token.alg, token.signing_input, token.signature)
    with pytest.raises(TokenRefused, match="refused"):
        jwk.check_hmac(secret + b"x", token.alg, token.signing_input, token.signature)


def test_es256() -> None:
    """RFC 7515 appendix A.3."""
    token = tokens.parse(
        f"eyJhbGciOiJFUzI1NiJ9.{CLAIMS}."
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    )
    key = published(EC_7515)
    jwk.check_signature(key, token.alg, token.signing_input, token.signature)
    for alg in ("ES384", "RS256", "EdDSA", "none", "HS256"):
        with pytest.raises(TokenRefused):
            jwk.check_signature(key, alg, token.signing_input, token.signature)


def test_eddsa() -> None:
    """RFC 8037 appendix A.4; its payload is no JSON, so only the signature is looked at."""
    data, _, signature = (
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    ).rpartition(".")
    jwk.check_signature(published(ED_8037), "EdDSA", data.encode(), b64url_decode(signature.encode()))
    with pytest.raises(TokenRefused):
        jwk.check_signature(
            published(ED_8037), "EdDSA", data.encode() + b"x", b64url_decode(signature.encode())
        )


def test_an_unsecured_token() -> None:
    """RFC 7519 section 6.1."""
    with pytest.raises(TokenRefused) as refused:
        tokens.parse(f"eyJhbGciOiJub25lIn0.{CLAIMS}.")
    assert refused.value.reason == "form_not_three_parts"
