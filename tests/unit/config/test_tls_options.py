import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.tls_options import TLSOptions, parse_tls_options

DEFAULTS = "on_expiration=fallback-to-tcp on_no_cms=fallback-to-tcp"


@pytest.mark.parametrize(("text", "changed", "rendered"), [
    ("", {}, DEFAULTS),
    ("client_cert=optional", {"client_cert": "optional"}, f"client_cert=optional {DEFAULTS}"),
    ("client_cert=require", {"client_cert": "require"}, f"client_cert=require {DEFAULTS}"),
    ("on_expiration=fallback-to-tcp", {}, DEFAULTS),
    ("on_expiration=shutdown", {"on_expiration": "shutdown"}, "on_expiration=shutdown on_no_cms=fallback-to-tcp"),
    ("on_expiration=standby", {"on_expiration": "standby"}, "on_expiration=standby on_no_cms=fallback-to-tcp"),
    ("on_no_cms=fallback-to-tcp", {}, DEFAULTS),
    ("on_no_cms=throw", {"on_no_cms": "throw"}, "on_expiration=fallback-to-tcp on_no_cms=throw"),
    ("no_revocation_check", {"no_revocation_check": True},
     "on_expiration=fallback-to-tcp no_revocation_check on_no_cms=fallback-to-tcp"),
    ("no_revocation_check=", {"no_revocation_check": True},
     "on_expiration=fallback-to-tcp no_revocation_check on_no_cms=fallback-to-tcp"),
    ("no_revocation_check=no", {}, DEFAULTS),
    ("no_stapling=yes", {"no_stapling": True}, "on_expiration=fallback-to-tcp no_stapling on_no_cms=fallback-to-tcp"),
    ("no_stapling=FALSE", {}, DEFAULTS),
    ("tls_required", {"tls_required": True},
     "on_expiration=fallback-to-tcp tls_required on_no_cms=fallback-to-tcp"),
    ("tls_required=yes", {"tls_required": True},
     "on_expiration=fallback-to-tcp tls_required on_no_cms=fallback-to-tcp"),
    ("tls_required=no", {}, DEFAULTS),
    ("on_no_keychain=throw", {}, DEFAULTS),
    ("on_no_keychain=fallback-to-tcp", {"on_no_keychain": "fallback-to-tcp"},
     f"{DEFAULTS} on_no_keychain=fallback-to-tcp"),
    (" no_stapling\tclient_cert=require\n", {"no_stapling": True, "client_cert": "require"},
     "client_cert=require on_expiration=fallback-to-tcp no_stapling on_no_cms=fallback-to-tcp"),
])  # fmt: skip
def test_the_words_and_how_they_are_printed(text, changed, rendered):
    """PVXS config.cpp: parseTLSOptions, printTLSOptions."""
    options, warnings = parse_tls_options(text)
    assert options == TLSOptions(**changed)
    assert warnings == []
    assert options.render() == str(options) == rendered
    assert parse_tls_options(rendered) == (options, [])
    assert options.client_cert_required == ("client_cert=require" in text)


@pytest.mark.parametrize("word", [
    "client_cert", "client_cert=", "client_cert=requrie", "on_expiration", "on_no_cms=shutdown", "on_no_keychain", "on_no_keychain=tcp", "no_stapling=maybe",
    "no_revocation_check=maybe", "colour=red", "=", "=x",
])  # fmt: skip
def test_what_is_not_understood_is_named_and_the_rest_counts(word):
    options, warnings = parse_tls_options(f"{word} on_expiration=standby")
    assert options == TLSOptions(on_expiration="standby")
    (warning,) = warnings
    assert repr(word) in warning


@pytest.mark.parametrize("word", ["tls_required=maybe", "tls_required=yess", "tls_required=nope"])
def test_a_slip_of_the_pen_does_not_allow_plain_tcp(word):
    options, warnings = parse_tls_options(f"{word} on_expiration=standby")
    assert options == TLSOptions(on_expiration="standby", tls_required=True)
    (warning,) = warnings
    assert repr(word) in warning
    assert "is taken as tls_required=yes" in warning


def test_a_mapping_says_the_same():
    assert parse_tls_options(
        {"client_cert": "require", "no_stapling": True, "no_revocation_check": False}
    ) == (
        TLSOptions(client_cert="require", no_stapling=True),
        [],
    )


@given(st.text())
def test_no_text_is_an_exception(text):
    options, _ = parse_tls_options(text)
    assert parse_tls_options(options.render()) == (options, [])
