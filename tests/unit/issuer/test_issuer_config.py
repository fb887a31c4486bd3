"""The issuer's settings and passwords."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import loader
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError
from appliance.issuer import passwords
from appliance.issuer.config import DEMO, VARIABLES, IssuerConfig, with_environment

HASH = passwords.hash_password("correct horse")
GOOD = f"port: 8080\nusers:\n  softioc:\n    password_hash: {HASH}\n"


def test_a_file_is_read() -> None:
    config = loader.loads(GOOD, IssuerConfig)
    assert passwords.matches("correct horse", config.users["softioc"].password_hash)
    assert not config.demo
    assert "scrypt" not in repr(config)
    assert loader.loads(loader.dump(config), IssuerConfig) == config
    assert loader.schema(IssuerConfig)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("listen: [0.0.0.0]", "set allow_remote: true if you really want that"),
        ("listen: ['::']", "reachable from other machines"),
        ("listen: [127.0.0.1, 192.0.2.1]", "192.0.2.1 is reachable"),
        ("listen: [example.org]", "reachable from other machines"),
        ("listen: []", "listen"),
        ("allow_remote: true\nlisten: [0.0.0.0]\ndemo: true", "everybody knows the password"),
        ("port: 65536", "port"),
        ("wat: 1", "unknown key"),
        ("demo_password: x", "unknown key"),
        ("algo: ES256", "algo"),
        ("algo: HS256", "needs at least 32 bytes"),
        ("hs_secret: plain", "must not stand in the file"),
        ("default_exp_secs: 700000", "larger than max_exp_secs"),
        ("default_exp_secs: 0", "default_exp_secs"),
        ("tls_key: /x", "go together"),
        ("kid: 'a b'", "kid"),
        ("users: {}", "nobody could fetch a token"),
        ("users: {x: {password_hash: plain}}", "make one with jwt-issuer --hash-password"),
        (
            "users: {x: {password_hash: 'scrypt$30$8$1$AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='}}",
            "make one",
        ),
        ("users: {x: {password: plain}}", "unknown key"),
        *(
            (f"users: {{x: {{password_hash: '{HASH}', claims: {claims}}}}}", why)
            for claims, why in (
                ("{exp: 4102444800}", "exp is one of the issuer's own claims"),
                ("{sub: admin}", "sub is one of the issuer's own claims"),
                ("{cnf: x}", "cnf is one of the issuer's own claims"),
                ("{groups: {a: b}}", "claims"),
                ("{groups: null}", "claims"),
                ("{groups: ['%s']}" % ("x" * 300), "claims"),
                ("{groups: '%s'}" % ("x" * 2100), "more than 2048 bytes"),
                ("{'': x}", "claims"),
                ("{level: 99999999999999999999}", "claims"),
                ("{level: 1.5}", "claims"),
            )
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: str, why: str) -> None:
    key = change.split(":")[0]
    text = "\n".join(
        line for line in GOOD.splitlines() if key != "users" or not line.startswith(("users", " "))
    )
    text = "\n".join(line for line in text.splitlines() if not line.startswith(f"{key}:"))
    with pytest.raises(ConfigurationError) as refused:
        loader.loads(f"{text}\n{change}\n", IssuerConfig)
    assert why in str(refused.value)


def test_remote_addresses_when_the_configuration_says_so() -> None:
    config = loader.loads(f"{GOOD}allow_remote: true\nlisten: [0.0.0.0]\n", IssuerConfig)
    assert config.listen == ("0.0.0.0",)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("PORT", "18080", 18080),
        ("ISSUER", "http://localhost:18080/x", "http://localhost:18080/x"),
        ("DEFAULT_AUDIENCE", "cms", "cms"),
        ("DEFAULT_EXP_SECS", "60", 60),
        ("ALGO", "hs256", "HS256"),
        ("KEY_DIR", "/tmp/k", "/tmp/k"),
        ("KID", "k7", "k7"),
        ("HS_SECRET", "s" * 32, Secret("s" * 32)),
    ],
)
def test_each_variable_changes_its_own_setting_and_no_other(variable: str, text: str, value) -> None:
    after = with_environment(DEMO, {variable: text})
    changed = {name for name in DEMO.__struct_fields__ if getattr(DEMO, name) != getattr(after, name)}
    assert changed == {VARIABLES[variable]}
    assert getattr(after, VARIABLES[variable]) == value


def test_the_file_counts_more_than_a_variable() -> None:
    after = with_environment(DEMO, {"PORT": "18080", "KID": "k7"}, written={"port", "demo"})
    assert (after.port, after.kid) == (8080, "k7")


def test_empty_variables_change_nothing() -> None:
    assert with_environment(DEMO, dict.fromkeys(VARIABLES, "")) is DEMO


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PORT", "x"),
        ("PORT", "99999"),
        ("DEFAULT_EXP_SECS", "-1"),
        ("DEFAULT_EXP_SECS", "99999999"),
        ("ALGO", "none"),
        ("KID", "../x"),
    ],
)
def test_an_error_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        with_environment(DEMO, {variable: text})
    assert str(refused.value).startswith(f"{variable}: ")


@given(st.text(max_size=20))
def test_anything_but_a_hash_is_no_hash(text: str) -> None:
    assert not passwords.is_hash(text)
    assert not passwords.matches("x", text)


def test_hashes_are_salted_and_match_their_password_only() -> None:
    other = passwords.hash_password("correct horse")
    assert other != HASH
    assert passwords.is_hash(other)
    assert passwords.matches("correct horse", other)
    for wrong in ("", "correct horse ", "Correct horse", "correct horse\0"):
        assert not passwords.matches(wrong, other)
    assert not passwords.matches("", passwords.UNKNOWN_USER)
    assert passwords.is_hash(passwords.UNKNOWN_USER)
