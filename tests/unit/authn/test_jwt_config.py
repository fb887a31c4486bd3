"""Settings of trusted issuers: what is refused, and what the EPICS_AUTH_JWT_* variables mean."""

from __future__ import annotations

import msgspec
import pytest

from appliance.authn.jwt.config import ENVIRONMENT, JWTConfig, TrustedIssuer, from_environment
from appliance.config import loader
from appliance.errors import ConfigurationError

GOOD = """
issuers:
  - issuer: https://idp.example.org/realms/epics
    mode: jwks
    jwks_uri: https://idp.example.org/realms/epics/certs
    audience: [pvacms]
    usages: [client, ioc]
    usage_claims:
      ioc: {claim: groups, values: [ioc-hosts]}
    subject_rule: "*@example.org"
  - trusted_uri: http://localhost:8080/default/verify
    request_method: GET
    response_format: '{ *, "valid": "#response#" }'
allow_plaintext_token: false
"""


def test_a_file_is_read_into_structs() -> None:
    config = loader.loads(GOOD, JWTConfig)
    assert config.issuers[0].usage_claims["ioc"].values == ("ioc-hosts",)
    assert config.issuers[1].name == "http://localhost:8080/default/verify"
    assert config.issuers[1].usages == ("client",)
    assert loader.loads(loader.dump(config), JWTConfig) == config
    assert loader.schema(JWTConfig)["$ref"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("mode: jwks", "mode: trust"), "mode"),
        (("mode: jwks", "mode: jwks\n    wat: 1"), "unknown key"),
        (("    audience: [pvacms]\n", ""), "audience: required in mode jwks"),
        (
            ("https://idp.example.org/realms/epics\n", "http://idp.example.org/realms/epics\n"),
            "issuer: must use https",
        ),
        (("epics/certs", "epics/certs?x=1"), "jwks_uri: must be a plain"),
        (("    jwks_uri: https://idp.example.org/realms/epics/certs\n", ""), "jwks_uri: required"),
        (("jwks_uri: https", "jwks_uri: http"), "jwks_uri: must use https"),
        (("mode: jwks", "mode: jwks\n    algorithms: [RS256, HS256]"), "cannot be mixed"),
        (("mode: jwks", "mode: jwks\n    algorithms: [HS256]"), "no published keys"),
        (("mode: jwks", "mode: jwks\n    algorithms: [none]"), "algorithms"),
        (("mode: jwks", "mode: jwks\n    leeway_s: 0"), "leeway_s"),
        (("mode: jwks", "mode: jwks\n    leeway_s: 601"), "leeway_s"),
        (("mode: jwks", "mode: jwks\n    trusted_uri: https://x.example/v"), "has no meaning"),
        (("usages: [client, ioc]", "usages: [client]"), "usage_claims: ioc is not among usages"),
        (('"*@example.org"', '"@example.org"'), "subject_rule"),
        (('"*@example.org"', '"*@*"'), "subject_rule"),
        (("#response#", "*#response#"), "response_format"),
        (("    request_method: GET", "    request_format: x"), "request_format: must hold #token#"),
        (
            ("mode: jwks", f"mode: jwks\n    organization: {'é' * 33}"),
            "has 66 octets in UTF-8, and a certificate's name holds 64",
        ),
        (
            ("https://idp.example.org/realms/epics\n", f"https://{'x' * 61}.org/realms/epics\n"),
            "issuer: its host becomes",
        ),
        (("http://localhost:8080", f"https://{'x' * 61}.org"), "trusted_uri: its host becomes"),
        (("localhost:8080", "cms.example.org:8080"), "trusted_uri: must use https"),
        (
            ("https://idp.example.org/realms/epics\n", "https://IdP.example.org/epics\n"),
            "must be in lower case",
        ),
        (
            ("https://idp.example.org/realms/epics\n", "HTTPS://idp.example.org/epics\n"),
            "must be in lower case",
        ),
        (
            ("https://idp.example.org/realms/epics\n", "https://idp.example.org/my%20realm\n"),
            "a percent sign",
        ),
        (
            ("https://idp.example.org/realms/epics\n", "https://me@idp.example.org/\n"),
            "without user information",
        ),
        (
            ("https://idp.example.org/realms/epics\n", "https://idp.example.org/#x\n"),
            "without query or fragment",
        ),
        (("https://idp.example.org/realms/epics\n", "https://idp.example.org:0/x\n"), "the port must be"),
        (("https://idp.example.org/realms/epics\n", "https://idp.example.org/a//b\n"), "an empty part"),
        (("https://idp.example.org/realms/epics\n", "idp.example.org\n"), "begins with http:// or https://"),
        (("https://idp.example.org/realms/epics\n", "'https://idp.example.org/my realm'\n"), "white space"),
        (("localhost:8080", "LOCALHOST:8080"), "trusted_uri: must be a plain http(s) URI: scheme and host"),
        (("values: [ioc-hosts]", "values: ['']"), "values"),
        (("claim: groups, values: [ioc-hosts]", "claim: scope, values: [IOC Hosts]"), "each word as a value"),
        (("    request_method: GET", "    response_member: active"), "nothing for response_format"),
        (
            (
                '    response_format: \'{ *, "valid": "#response#" }\'',
                "    response_member: a\n    use_response_code: true",
            ),
            "nothing for use_response_code",
        ),
        (
            ("mode: jwks", "mode: jwks\n    response_member: active"),
            "response_member: has no meaning in mode jwks",
        ),
        (
            ("mode: jwks", "mode: jwks\n    use_response_code: true"),
            "use_response_code: has no meaning in mode jwks",
        ),
        (
            ("    request_method: GET", "    request_method: GET\n    jwks_stale_s: 7"),
            "jwks_stale_s: has no meaning",
        ),
        (
            ("allow_plaintext_token", "- trusted_uri: https://x.example/v\nallow_plaintext_token"),
            "only one issuer can be known",
        ),
        (
            ("  - trusted_uri", "  - issuer: https://idp.example.org/realms/epics\n    trusted_uri"),
            "listed twice",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: tuple[str, str], why: str) -> None:
    text = GOOD.replace(*change).replace("\n- trusted_uri", "\n  - trusted_uri")
    assert text != GOOD
    with pytest.raises(ConfigurationError) as refused:
        loader.loads(text, JWTConfig)
    assert why in str(refused.value)


def test_settings_without_effect_or_with_several_meanings_are_warned_of() -> None:
    base = "https://i.example/v"
    for settings, said in (
        ({"response_format": '{*"active":#response#,*}'}, "response_member: active"),
        ({"response_format": "<#response#>", "use_response_code": True}, "response_format: no effect"),
        ({"request_format": "t=#token#", "request_method": "GET"}, "request_format: no effect"),
    ):
        (warning,) = TrustedIssuer(trusted_uri=base, **settings).warnings()
        assert said in warning
        assert base in warning
    assert not loader.loads(GOOD, JWTConfig).issuers[1].warnings()
    assert not TrustedIssuer(trusted_uri=base).warnings()


def test_plain_http_beyond_this_machine_is_accepted_in_plain_words_only_and_warned_of() -> None:
    far = "http://issuer.example/api/validate-token"
    with pytest.raises(ValueError, match="allow_insecure_http: true"):
        TrustedIssuer(trusted_uri=far)
    (warning,) = TrustedIssuer(trusted_uri=far, allow_insecure_http=True).warnings()
    assert f"{far} is asked unencrypted" in warning
    keys = {"mode": "jwks", "audience": ("cms",), "allow_insecure_http": True}
    named = TrustedIssuer(issuer="http://issuer.example", jwks_uri="https://issuer.example/keys", **keys)
    assert "only the name of the issuer has http" in named.warnings()[0]
    both = TrustedIssuer(issuer="http://issuer.example", jwks_uri="http://issuer.example/keys", **keys)
    assert "http://issuer.example/keys is asked unencrypted" in both.warnings()[0]
    for uri in ("https://issuer.example/v", "http://localhost:8080/v"):
        (warning,) = TrustedIssuer(trusted_uri=uri, allow_insecure_http=True).warnings()
        assert "allow_insecure_http: no effect" in warning


def test_pvacms_tells_these_warnings_and_variables_that_the_file_overrides(tmp_path) -> None:
    from appliance.cms.config import resolve

    file = tmp_path / "cms.yaml"
    file.write_text(
        "jwt:\n  issuers:\n    - trusted_uri: https://i.example/v\n      response_format: '{*\"a\":#response#,*}'\n"
    )
    environ = {"EPICS_AUTH_JWT_TRUSTED_URI": "https://other.example/v", "XDG_CONFIG_HOME": str(tmp_path)}
    warnings = "\n".join(resolve(config=str(file), environ=environ).warnings)
    assert "response_member: a" in warnings
    assert "EPICS_AUTH_JWT_TRUSTED_URI: no effect" in warnings


def test_a_shared_secret_comes_from_a_file_and_is_long_enough(tmp_path) -> None:
    file = tmp_path / "secret"
    file.write_text("x" * 32)
    file.chmod(0o600)
    text = (
        "issuers:\n  - {mode: shared_secret, issuer: https://idp.example.org, audience: [a], "
        f"algorithms: [HS256], shared_secret: '${{file:{file}}}'}}\n"
    )
    config = loader.loads(text, JWTConfig)
    assert "xxx" not in repr(config)
    file.write_text("short")
    with pytest.raises(ConfigurationError, match="at least 32 bytes"):
        loader.loads(text, JWTConfig)
    with pytest.raises(ConfigurationError, match="must not stand in the file"):
        loader.loads(text.replace("${file:", "").replace("}'", "'"), JWTConfig)


def test_the_quick_starts_variables_verbatim() -> None:
    issuer = from_environment(
        {
            "EPICS_AUTH_JWT_REQUEST_FORMAT": "#token#",
            "EPICS_AUTH_JWT_REQUEST_METHOD": "GET",
            "EPICS_AUTH_JWT_RESPONSE_FORMAT": '{ *, "valid": "#response#" }',
            "EPICS_AUTH_JWT_TRUSTED_URI": "http://localhost:8080/default/verify",
        }
    )
    assert issuer == TrustedIssuer(
        trusted_uri="http://localhost:8080/default/verify",
        request_method="GET",
        response_format='{ *, "valid": "#response#" }',
        usages=("client", "server", "ioc"),
    )


def test_the_variables_defaults() -> None:
    issuer = from_environment({"EPICS_AUTH_JWT_TRUSTED_URI": "https://issuer.example/api/validate-token"})
    assert issuer is not None
    assert (issuer.request_format, issuer.request_method, issuer.response_format) == (
        "#token#",
        "POST",
        "#response#",
    )
    assert not issuer.use_response_code
    assert from_environment({}) is None
    assert from_environment({"EPICS_AUTH_JWT_TRUSTED_URI": " "}) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("YES", True),
        ("yes", True),
        ("True", True),
        ("1", True),
        ("NO", False),
        ("0", False),
        ("on", False),
        ("", False),
    ],
)
def test_use_response_code_is_case_insensitive(text: str, value: bool) -> None:
    issuer = from_environment(
        {"EPICS_AUTH_JWT_TRUSTED_URI": "https://i.example/v", "EPICS_AUTH_JWT_USE_RESPONSE_CODE": text}
    )
    assert issuer is not None
    assert issuer.use_response_code is value


@pytest.mark.parametrize("variable", [name for name in ENVIRONMENT if not name.endswith("URI")])
def test_each_variable_changes_its_own_setting_and_no_other(variable: str) -> None:
    values = {
        "request_format": '{"t":"#token#"}',
        "request_method": "GET",
        "response_format": "<#response#>",
        "use_response_code": "YES",
    }
    base = {"EPICS_AUTH_JWT_TRUSTED_URI": "https://i.example/v"}
    before = msgspec.structs.asdict(from_environment(base))
    after = msgspec.structs.asdict(from_environment({**base, variable: values[ENVIRONMENT[variable]]}))
    assert {name for name in before if before[name] != after[name]} == {ENVIRONMENT[variable]}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EPICS_AUTH_JWT_TRUSTED_URI", "issuer/api"),
        ("EPICS_AUTH_JWT_TRUSTED_URI", "http://issuer.example/api"),
        ("EPICS_AUTH_JWT_REQUEST_METHOD", "PUT"),
        ("EPICS_AUTH_JWT_REQUEST_FORMAT", "{}"),
        ("EPICS_AUTH_JWT_RESPONSE_FORMAT", "valid"),
    ],
)
def test_an_error_names_the_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        from_environment({"EPICS_AUTH_JWT_TRUSTED_URI": "https://i.example/v", variable: value})
    assert str(refused.value).startswith(f"{variable}: ")


def test_variables_without_the_uri_are_an_error() -> None:
    with pytest.raises(ConfigurationError, match="EPICS_AUTH_JWT_TRUSTED_URI: required if"):
        from_environment({"EPICS_AUTH_JWT_REQUEST_METHOD": "GET"})
