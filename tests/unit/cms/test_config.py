"""Every option changes its own effective setting and no other, from wherever it comes."""

import argparse

import msgspec
import pytest

from appliance.cms.config import CMSSettings, resolve
from appliance.cms.options import JWT_FLAGS, NO_EFFECT, OPTIONS, add_flags
from appliance.config.duration import Duration
from appliance.config.loader import loads
from appliance.errors import ConfigurationError

HOME = {"XDG_CONFIG_HOME": "/nowhere/config", "XDG_DATA_HOME": "/nowhere/data"}
SAMPLES = {
    "cert_auth_country": "DE",
    "pvacms_country": "DE",
    "key_algorithm": "rsa-4096",
    "certs_require_subscription": "NO",
    "cert_status_validity_mins": "45",
    "ccr_per_minute": "7",
    "ccr_rate": "2.5",
    "ccr_rate_burst": "7",
    "ccr_in_flight": "7",
    "health_interval_s": "7",
    "integrity_check_interval_s": "60",
    "audit_retention_days": "30",
    "backup_interval_s": "60",
    "backup_retention": "3",
    "cert_pv_prefix": "LAB",
}


def sample(option):
    key = option.keys[0]
    if option.constant is not None:
        return "NO" if option.constant is False else "YES"
    if key in SAMPLES:
        return SAMPLES[key]
    if "validity" in key or "renewal" in key:
        return "2d"
    if option.metavar == "FILE":
        return "/somewhere/else"
    return "Something"


def parse(*arguments):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    return parser.parse_args(arguments)


def flat(effective):
    """All settings, those of the server too, by key."""
    values = msgspec.structs.asdict(effective.settings)
    values.pop("server")
    values |= {f"server.{key}": value for key, value in vars(effective.server).items()}
    return values


def changed(effective):
    before, after = flat(resolve(parse(), environ=HOME)), flat(effective)
    return {key for key in before if before[key] != after[key]}


def expected(option):
    names = {"tls_keychain_pwd_file": "tls_keychain_password"}
    found = {f"server.{names.get(key, key)}" if option.server else key for key in option.keys}
    return found | {"db"} if needs_server(option) else found


SERVER = {"EPICS_PVACMS_DB": "postgresql+psycopg://cms@db/cms"}


def needs_server(option):
    """Whether a setting is refused if the database is a file."""
    return option.keys == ("node",)


OF_TOKENS = ("ca_key", "ca_key_pin", "ca_certificate")
"""Settings that are of use together only."""


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.flags[-1])
def test_a_flag_changes_its_own_setting_and_no_other(option, tmp_path):
    value = sample(option)
    if option.keys[0] == "tls_keychain_pwd_file":
        secret = tmp_path / "password"
        secret.touch(mode=0o600)
        secret.write_text("secret")
        value = str(secret)
    for flag in option.flags:
        arguments = (flag,) if option.constant is not None else (flag, value)
        environ = HOME | SERVER if needs_server(option) else HOME
        assert changed(resolve(parse(*arguments), environ=environ)) == expected(option)


@pytest.mark.parametrize(
    ("option", "variable"),
    [(o, v) for o in OPTIONS for v in o.variables],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_variable_changes_its_own_setting_and_no_other(option, variable):
    environ = HOME | SERVER if needs_server(option) else HOME
    assert changed(resolve(parse(), environ={**environ, variable: sample(option)})) == expected(option)


@pytest.mark.parametrize(
    ("variable", "key", "value"),
    [
        ("EPICS_PVACMS_TLS_KEYCHAIN", "tls_keychain", "/else/x.p12"),
        ("EPICS_PVAS_TLS_KEYCHAIN", "tls_keychain", "/else/x.p12"),
        ("EPICS_PVACMS_CERT_PV_PREFIX", "cert_pv_prefix", "LAB"),
        ("EPICS_PVACMS_SERVER_PORT", "server_port", "1234"),
        ("EPICS_PVACMS_TLS_PORT", "tls_port", "1234"),
    ],
)
def test_a_variable_of_the_server_changes_the_server(variable, key, value):
    assert changed(resolve(parse(), environ={**HOME, variable: value})) == {f"server.{key}"}


@pytest.mark.parametrize(
    "key",
    [
        f.name
        for f in msgspec.structs.fields(CMSSettings)
        if f.name not in ("server", "jwt", "former_authorities", *OF_TOKENS)
    ],
)
def test_a_key_of_the_file_changes_its_own_setting_and_no_other(key, tmp_path):
    default = getattr(CMSSettings(), key)
    if isinstance(default, bool):
        text = "false" if default else "true"
    elif isinstance(default, Duration):
        text = "3d"
    elif isinstance(default, (int, float)):
        text = str(int(default) + 1)
    elif key in ("cert_auth_country", "pvacms_country"):
        text = "DE"
    else:
        choices = {
            "key_algorithm": "ed25519",
            "certs_require_subscription": '"no"',
            "status_extension_form": "raw",
            "organizations": "[example.org]",
            "proxy_from": "[192.0.2.1]",
            "preload": "[/some/certificate.pem]",
            "san": "refuse",
            "log_level": "DEBUG",
            "node": "a",
            "db_password": f"${{file:{tmp_path}/password}}",
        }
        text = choices.get(key, "/some/thing")
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text("geheim")
    file = tmp_path / "cms.yml"
    file.touch(mode=0o600)
    file.write_text(f"{key}: {text}\n")
    is_of_server = key in ("db_password", "db_tls_ca", "db_wait_s", "node")
    environ = HOME | SERVER if is_of_server else HOME
    assert changed(resolve(parse(), config=str(file), environ=environ)) == {key} | (
        {"db"} if is_of_server else set()
    )


@pytest.mark.parametrize("flag", NO_EFFECT)
def test_an_option_of_the_reference_without_a_meaning_here_is_a_warning(flag):
    variable, why = NO_EFFECT[flag]
    for effective, name in (
        (resolve(parse(flag, "7"), environ=HOME), flag),
        (resolve(parse(), environ={**HOME, variable: "7"}), variable),
    ):
        assert effective.warnings == [f"{name} has no effect: {why}"]
        assert changed(effective) == set()


def test_a_cluster_is_refused_with_a_sentence_if_the_database_is_a_file():
    with pytest.raises(
        ConfigurationError, match=r"--cluster-mode: nodes share a database server, and db is a file"
    ):
        resolve(parse("--cluster-mode"), environ=HOME)
    assert resolve(parse("--cluster-mode"), environ=HOME | SERVER).settings.db.startswith("postgresql")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("node: a", "node: it is for a database server"),
        ("db_tls_ca: /ca.pem", "db_tls_ca: it is for a database server"),
        ("db_wait_s: 6", "db_wait_s: it is for a database server"),
        ("db: mysql://h/x", "db: 'mysql' is not supported"),
        ("db: postgresql+psycopg://me:geheim@h/x", "db: the URL of the database contains a password"),
        ("db: postgresql+psycopg://h/x?password=geheim", "db: the URL of the database contains a password"),
        ("db: postgresql+psycopg://h:x/y", "db: the URL of the database server cannot be read"),
        ("db: postgresql+psycopg:/me:geheim@h/x", "db: the URL of the database server cannot be read"),
    ],
)
def test_a_database_server_and_what_belongs_to_it_are_checked(tmp_path, text, says):
    file = tmp_path / "cms.yml"
    file.write_text(text + "\n")
    with pytest.raises(ConfigurationError) as refusal:
        resolve(parse(), config=str(file), environ=HOME)
    assert says in str(refusal.value)
    assert "geheim" not in str(refusal.value)


@pytest.mark.parametrize(
    ("host", "warns"), [("db.lab", True), ("10.0.0.1", True), ("127.0.0.1", False), ("", False)]
)
def test_a_connection_that_does_not_check_the_server_is_a_warning(host, warns):
    url = f"postgresql+psycopg://cms@{host}/cms?sslmode=require"
    found = resolve(parse("-d", url), environ=HOME).warnings
    assert any("sslmode=require lets whoever is on the way" in warning for warning in found) is warns


def test_files_to_preload_may_be_named_several_times():
    found = resolve(parse("--preload-cert", "/a.pem", "--preload-cert", "/b.p12"), environ=HOME)
    assert found.settings.preload == ("/a.pem", "/b.p12")


def test_flags_win_over_the_file_and_the_file_over_variables(tmp_path):
    file = tmp_path / "cms.yml"
    file.write_text("cert_auth_name: file\nrequire_client_approval: true\n")
    environ = {**HOME, "EPICS_CERT_AUTH_NAME": "variable", "EPICS_PVACMS_REQUIRE_APPROVAL": "NO"}
    effective = resolve(parse(), config=str(file), environ=environ)
    assert effective.settings.cert_auth_name == "file"
    assert effective.settings.require_client_approval
    assert not effective.settings.require_server_approval
    effective = resolve(parse("--cert-auth-name", "flag"), config=str(file), environ=environ)
    assert effective.settings.cert_auth_name == "flag"


def test_what_is_said_for_one_usage_wins_over_what_is_said_for_all():
    environ = {**HOME, "EPICS_PVACMS_REQUIRE_APPROVAL": "NO", "EPICS_PVACMS_REQUIRE_IOC_APPROVAL": "YES"}
    settings = resolve(parse(), environ=environ).settings
    assert (settings.require_client_approval, settings.require_ioc_approval) == (False, True)
    flags = parse("--cert_validity-ioc", "2d", "--cert_validity", "1d")
    settings = resolve(flags, environ=HOME).settings
    assert (settings.cert_validity_client, settings.cert_validity_ioc) == (
        Duration(0, 86400),
        Duration(0, 172800),
    )


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"EPICS_PVACMS_REQUIRE_APPROVAL": "maybe"}, "EPICS_PVACMS_REQUIRE_APPROVAL"),
        ({"EPICS_PVACMS_CERT_VALIDITY": "1.5h"}, "EPICS_PVACMS_CERT_VALIDITY"),
        ({"EPICS_PVACMS_CERT_VALIDITY": "0"}, "cert_validity_client"),
        ({"EPICS_PVACMS_CERT_STATUS_VALIDITY_MINS": "1M"}, "cert_status_validity_mins"),
        ({"EPICS_CERT_AUTH_COUNTRY": "Germany"}, "cert_auth_country"),
        ({"EPICS_PVACMS_KEY_ALGORITHM": "rsa-1024"}, "key_algorithm"),
        ({"EPICS_PVACMS_BACKUP_RETENTION": "0"}, "backup_retention"),
        ({"EPICS_AUTH_JWT_REQUEST_METHOD": "GET"}, "EPICS_AUTH_JWT_TRUSTED_URI"),
    ],
)
def test_a_bad_value_is_refused_by_name(environ, key):
    with pytest.raises(ConfigurationError) as refusal:
        resolve(parse(), environ={**HOME, **environ})
    assert refusal.value.key == key


def test_the_flags_of_tokens_do_what_their_variables_do():
    uri = "http://127.0.0.1:8080/default/verify"
    flags = (
        "--jwt-trusted-uri",
        uri,
        "--jwt-request-format",
        '{"token": "#token#"}',
        "--jwt-use-response-code",
    )
    by_flags = resolve(parse(*flags), environ=HOME).settings.jwt
    environ = {
        **HOME,
        "EPICS_AUTH_JWT_TRUSTED_URI": uri,
        "EPICS_AUTH_JWT_REQUEST_FORMAT": '{"token": "#token#"}',
        "EPICS_AUTH_JWT_USE_RESPONSE_CODE": "YES",
    }
    assert by_flags == resolve(parse(), environ=environ).settings.jwt
    assert by_flags.issuers[0].use_response_code
    assert len(JWT_FLAGS) == 5


def test_the_defaults_are_those_of_the_reference():
    effective = resolve(parse(), environ=HOME)
    settings = effective.settings
    assert settings.db == "/nowhere/data/pva/1.5/certs.db"
    assert settings.acf == "/nowhere/config/pva/1.5/pvacms.acf"
    assert settings.cert_auth_tls_keychain == "/nowhere/config/pva/1.5/cert_auth.p12"
    assert settings.admin_tls_keychain == "/nowhere/config/pva/1.5/admin.p12"
    assert effective.server.tls_keychain == "/nowhere/config/pva/1.5/pvacms.p12"
    assert settings.cert_status_validity_mins == Duration(seconds=1800)
    assert settings.cert_validity_client == Duration(months=6)


def test_a_relative_database_is_relative_to_the_file_that_names_it_and_a_url_stays(tmp_path):
    file = tmp_path / "cms.yml"
    file.write_text("db: data/certs.db\n")
    assert resolve(parse(), config=str(file), environ=HOME).settings.db == str(tmp_path / "data/certs.db")
    file.write_text("db: postgresql+psycopg://cms@db/cms\n")
    assert resolve(parse(), config=str(file), environ=HOME).settings.db == "postgresql+psycopg://cms@db/cms"


def test_a_token_issuer_in_the_file(tmp_path):
    settings = loads("jwt: {issuers: [{mode: introspect, trusted_uri: 'http://127.0.0.1:1/v'}]}", CMSSettings)
    assert settings.jwt.issuers[0].trusted_uri == "http://127.0.0.1:1/v"


# ------------------------------------------------------------- a key in a token


KEY = "ca_key: pkcs11:object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so"
CERTIFICATE = "ca_certificate: /etc/spva/ca.pem"


def test_a_key_in_a_token_needs_no_keychain(tmp_path):
    pin = tmp_path / "pin"
    pin.touch(mode=0o600)
    pin.write_text("1234\n")
    file = tmp_path / "cms.yml"
    file.write_text(f"{KEY}\n{CERTIFICATE}\nca_key_pin: ${{file:{pin}}}\n")
    settings = resolve(parse(), config=str(file), environ=HOME).settings
    assert settings.cert_auth_tls_keychain == ""
    assert settings.authority_file == "/etc/spva/ca.pem"
    assert settings.ca_key_pin.reveal() == "1234"
    assert "1234" not in repr(settings)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([KEY], "name the file of the authority's certificate"),
        ([CERTIFICATE], "ca_certificate: no effect without ca_key"),
        (["ca_key_pin: ${file:PIN}"], "ca_key_pin: no effect without ca_key"),
        ([KEY, CERTIFICATE, "cert_auth_tls_keychain: /etc/spva/ca.p12"], "leave one of the two away"),
        ([KEY, CERTIFICATE, "cert_auth_tls_keychain_pwd_file: PIN"], "leave one of the two away"),
        ([KEY + "&pin-source=PIN", CERTIFICATE, "ca_key_pin: ${file:PIN}"], "given twice"),
        ([KEY, CERTIFICATE, "ca_key_pin: '1234'"], "must not stand in the file"),
        (["ca_key: awskms:key", CERTIFICATE], "named by a PKCS#11 URI"),
    ],
    ids=["alone", "no-key", "pin-alone", "and-keychain", "and-password", "two-pins", "open-pin", "kms"],
)
def test_settings_of_a_token_that_do_not_fit_are_refused(tmp_path, lines, why):
    pin = tmp_path / "pin"
    pin.touch(mode=0o600)
    pin.write_text("1234\n")
    file = tmp_path / "cms.yml"
    file.write_text("\n".join(lines).replace("PIN", str(pin)))
    with pytest.raises(ConfigurationError, match=why) as caught:
        resolve(parse(), config=str(file), environ=HOME)
    assert "1234" not in str(caught.value)


def test_a_keychain_by_flag_or_variable_beside_a_key_in_a_token_is_refused(tmp_path):
    file = tmp_path / "cms.yml"
    file.write_text(f"{KEY}\n{CERTIFICATE}\n")
    for arguments, environ in (
        (("--cert-auth-keychain", "/x.p12"), {}),
        ((), {"EPICS_CERT_AUTH_TLS_KEYCHAIN": "/x.p12"}),
    ):
        with pytest.raises(ConfigurationError, match="leave one of the two away"):
            resolve(parse(*arguments), config=str(file), environ={**HOME, **environ})
