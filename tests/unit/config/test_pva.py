"""Every EPICS_* variable: what it changes, what it leaves alone, what it loses against."""

import os
from pathlib import Path

import pytest

from appliance.config import pva
from appliance.config.address import Endpoint
from appliance.config.files import write_private
from appliance.config.loader import Settings, loads_document
from appliance.config.pva import resolve_client, resolve_server
from appliance.config.section import Section
from appliance.config.settings import ClientSettings, ServerSettings
from appliance.errors import ConfigurationError

HOME = "/home/client"
A = (Endpoint("10.0.0.1"), Endpoint("gw", 5086))


def client(environ=None, arguments=None, yaml=None):
    return resolve_client(arguments, yaml, environ or {}, home=HOME)


def server(environ=None, arguments=None, yaml=None, *, cms=False):
    return resolve_server(arguments, yaml, environ or {}, cms=cms, home=HOME)


CLIENT = [
    ("EPICS_PVA_ADDR_LIST", "10.0.0.1 gw:5086", "addr_list", A),
    ("EPICS_PVA_AUTO_ADDR_LIST", "NO", "auto_addr_list", False),
    ("EPICS_PVA_BROADCAST_PORT", "15076", "broadcast_port", 15076),
    ("EPICS_PVA_CERT_PV_PREFIX", "SITE_CERTS", "cert_pv_prefix", "SITE_CERTS"),
    ("EPICS_PVA_CONN_TMO", "12.5", "conn_tmo", 12.5),
    ("EPICS_PVA_INTF_ADDR_LIST", "10.0.0.1 gw:5086", "intf_addr_list", A),
    ("EPICS_PVA_NAME_SERVERS", "pvas://gw:1/x 10.0.0.1", "name_servers", (Endpoint("gw", 1, tls=True), A[0])),
    ("EPICS_PVA_NO_STATUS_CACHE", "yes", "no_status_cache", True),
    ("EPICS_PVA_SERVER_PORT", "15075", "server_port", 15075),
    ("EPICS_PVAS_SERVER_PORT", "15075", "server_port", 15075),
    ("EPICS_PVA_STATUS_CACHE_DIR", "/var/cache/pva", "status_cache_dir", "/var/cache/pva"),
    ("EPICS_PVA_TLS_KEYCHAIN", "/etc/c.p12", "tls_keychain", "/etc/c.p12"),
    (
        "EPICS_PVA_TLS_OPTIONS",
        "on_expiration=standby",
        "tls_options",
        pva.TLSOptions(on_expiration="standby"),
    ),
    ("EPICS_PVA_TLS_PORT", "8076", "tls_port", 8076),
    ("SSLKEYLOGFILE", "/run/keys", "tls_keylog_file", "/run/keys"),
    ("XDG_CONFIG_HOME", "/etc/ioc/", "xdg_config_home", "/etc/ioc"),
    ("XDG_DATA_HOME", "/var/lib/ioc", "xdg_data_home", "/var/lib/ioc"),
]
SERVER = [
    ("EPICS_PVAS_AUTO_BEACON_ADDR_LIST", "NO", "auto_beacon_addr_list", False),
    ("EPICS_PVA_AUTO_ADDR_LIST", "0", "auto_beacon_addr_list", False),
    ("EPICS_PVAS_BEACON_ADDR_LIST", "10.0.0.1 gw:5086", "beacon_addr_list", A),
    ("EPICS_PVA_ADDR_LIST", "10.0.0.1 gw:5086", "beacon_addr_list", A),
    ("EPICS_PVAS_BEACON_PERIOD", "5", "beacon_period", 5.0),
    ("EPICS_PVA_BEACON_PERIOD", "5", "beacon_period", 5.0),
    ("EPICS_PVAS_BROADCAST_PORT", "0", "broadcast_port", 0),
    ("EPICS_PVA_BROADCAST_PORT", "7", "broadcast_port", 7),
    ("EPICS_PVAS_CERT_PV_PREFIX", "X", "cert_pv_prefix", "X"),
    ("EPICS_PVA_CERT_PV_PREFIX", "X", "cert_pv_prefix", "X"),
    ("EPICS_PVA_CONN_TMO", "3", "conn_tmo", 3.0),
    ("EPICS_PVAS_IGNORE_ADDR_LIST", "10.0.0.1 gw:5086", "ignore_addr_list", A),
    ("EPICS_PVAS_INTF_ADDR_LIST", "10.0.0.1 gw:5086", "intf_addr_list", A),
    ("EPICS_PVA_NO_STATUS_CACHE", "1", "no_status_cache", True),
    ("EPICS_PVAS_SERVER_PORT", "0", "server_port", 0),
    ("EPICS_PVA_SERVER_PORT", "15075", "server_port", 15075),
    ("EPICS_PVA_STATUS_CACHE_DIR", "/c", "status_cache_dir", "/c"),
    ("EPICS_PVAS_TLS_KEYCHAIN", "/s.p12", "tls_keychain", "/s.p12"),
    ("EPICS_PVA_TLS_KEYCHAIN", "/s.p12", "tls_keychain", "/s.p12"),
    ("EPICS_PVAS_TLS_OPTIONS", "client_cert=require", "tls_options", pva.TLSOptions(client_cert="require")),
    ("EPICS_PVA_TLS_OPTIONS", "client_cert=require", "tls_options", pva.TLSOptions(client_cert="require")),
    ("EPICS_PVAS_TLS_PORT", "0", "tls_port", 0),
    ("EPICS_PVA_TLS_PORT", "8076", "tls_port", 8076),
    ("EPICS_PVAS_TLS_STOP_IF_NO_CERT", "YES", "tls_stop_if_no_cert", True),
    ("SSLKEYLOGFILE", "/run/keys", "tls_keylog_file", "/run/keys"),
    ("XDG_CONFIG_HOME", "/etc/ioc", "xdg_config_home", "/etc/ioc"),
    ("XDG_DATA_HOME", "/var/lib/ioc", "xdg_data_home", "/var/lib/ioc"),
]


FOLLOWS = {"tls_keychain_default"}
"""What is not set but follows from what is."""


def names(config):
    return set(config.__fields__)


def changed(before, after):
    return {name for name in names(after) if getattr(after, name) != getattr(before, name)} - FOLLOWS


@pytest.mark.parametrize(("resolve", "variable", "text", "key", "value"), [
    *((client, *row) for row in CLIENT),
    *((server, *row) for row in SERVER),
])  # fmt: skip
def test_a_variable_changes_its_own_setting_and_no_other(resolve, variable, text, key, value):
    plain, effective = resolve(), resolve({variable: text})
    assert getattr(effective.config, key) == value
    assert changed(plain.config, effective.config) == {key}
    assert effective.sources == plain.sources | {key: variable}
    assert effective.warnings == []


def test_the_tables_cover_every_setting():
    own = {"tls_keychain_password"}
    assert {row[2] for row in CLIENT} | own == names(client().config)
    assert {row[2] for row in SERVER} | own | FOLLOWS == names(server().config)
    assert {row[0] for row in CLIENT} == {name for item in pva._CLIENT for name in item.variables} | {
        "XDG_CONFIG_HOME", "XDG_DATA_HOME"}  # fmt: skip
    assert {row[0] for row in SERVER} == {name for item in pva._SERVER for name in item.variables} | {
        "XDG_CONFIG_HOME", "XDG_DATA_HOME"}  # fmt: skip


@pytest.mark.parametrize(
    "setting", [item for item in pva._CMS if len(item.variables) > 1], ids=lambda item: item.key
)
def test_the_more_specific_variable_wins(setting):
    texts = {
        "auto_beacon_addr_list": ("NO", "YES", "YES"),
        "beacon_period": ("1", "2", "3"),
        "cert_pv_prefix": ("A", "B", "C"),
        "no_status_cache": ("YES", "NO"),
        "tls_options": ("on_no_cms=throw", "no_stapling", "on_expiration=shutdown"),
        "tls_stop_if_no_cert": ("YES", "NO"),
        "tls_keychain": ("/a", "/b", "/c"),
        "status_cache_dir": ("/a", "/b"),
    }.get(setting.key, ("1", "2", "3"))
    environ = dict(zip(setting.variables, texts, strict=False))
    assert setting.variables[0] == f"EPICS_PVACMS_{setting.key.upper()}"
    effective = server(environ, cms=True)
    assert effective.sources[setting.key] == setting.variables[0]
    assert getattr(effective.config, setting.key) == setting.read(texts[0])
    # A plain server does not look at the certificate service's own variables.
    effective = server(environ)
    assert effective.sources[setting.key] == setting.variables[1]
    assert getattr(effective.config, setting.key) == setting.read(texts[1])


def test_a_client_prefers_its_own_name_of_the_server_port():
    both = {"EPICS_PVA_SERVER_PORT": "1", "EPICS_PVAS_SERVER_PORT": "2"}
    assert client(both).config.server_port == 1
    assert server(both).config.server_port == 2


def test_a_servers_any_free_port_tells_a_client_nothing():
    found = client({"EPICS_PVAS_SERVER_PORT": "0"})
    assert (found.config.server_port, list(found.warnings)) == (5075, [])
    (warning,) = client({"EPICS_PVA_SERVER_PORT": "0"}).warnings
    assert "for servers only" in warning


def test_argument_beats_yaml_beats_environment_beats_default():
    section = Section({"tls_port": 2}, "/etc/x.yml", {("tls_port",): 7})
    environ = {"EPICS_PVA_TLS_PORT": "3"}
    for arguments, yaml, env, value, source in (
        ({"tls_port": 1}, section, environ, 1, "argument"),
        ({"tls_port": None}, section, environ, 2, "/etc/x.yml:7"),
        ({}, None, environ, 3, "EPICS_PVA_TLS_PORT"),
        ({}, None, {}, 5076, "default"),
    ):
        for resolve in (client, server):
            effective = resolve(env, arguments, yaml)
            assert (effective.config.tls_port, effective.sources["tls_port"]) == (value, source)
            assert f"= {value}  ({source})" in effective.explain()


def test_effective_config_reads_as_in_the_quick_start(tmp_path):
    keychain = tmp_path / "pva/1.5/client.p12"
    keychain.parent.mkdir(parents=True)
    keychain.write_bytes(b"x")
    effective = client({"XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": "/home/client/.local/share"})
    assert (
        effective.render()
        == f"""\
Effective config
EPICS_PVA_AUTO_ADDR_LIST=YES
EPICS_PVA_BROADCAST_PORT=5076
EPICS_PVA_CONN_TMO=30
EPICS_PVA_SERVER_PORT=5075
EPICS_PVA_TLS_KEYCHAIN={keychain}
EPICS_PVA_TLS_OPTIONS=on_expiration=fallback-to-tcp on_no_cms=fallback-to-tcp
EPICS_PVA_TLS_PORT=5076
XDG_CONFIG_HOME={tmp_path}/pva/1.5
XDG_DATA_HOME=/home/client/.local/share/pva/1.5"""
    )


def test_effective_config_shows_what_is_set_and_never_the_password(tmp_path):
    (tmp_path / "pwd").write_text("geheim\n")
    (tmp_path / "pwd").chmod(0o600)
    environ = {
        "EPICS_PVA_ADDR_LIST": "127.0.0.1 [::1]:5 224.0.0.1,3@eth0",
        "EPICS_PVA_NAME_SERVERS": "pvas://gw",
        "EPICS_PVA_TLS_KEYCHAIN": "/k.p12",
        "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE": str(tmp_path / "pwd"),
        "EPICS_PVA_CERT_PV_PREFIX": "S",
    }
    effective = client(environ)
    lines = effective.render().splitlines()
    assert lines == ["Effective config", *sorted(lines[1:])]
    assert "EPICS_PVA_ADDR_LIST=127.0.0.1 [::1]:5 224.0.0.1,3@eth0" in lines
    assert "EPICS_PVA_NAME_SERVERS=pvas://gw" in lines
    assert "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE=<password read>" in lines
    assert "EPICS_PVA_CERT_PV_PREFIX=S" in lines
    assert effective.config.tls_keychain_password.reveal() == "geheim"
    for shown in (effective.render(), effective.explain(), repr(effective.config), repr(effective.warnings)):
        assert "geheim" not in shown


def test_a_server_renders_its_own_variables():
    assert server({"EPICS_PVA_SERVER_PORT": "0"}).render().splitlines() == [
        "Effective config",
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST=YES",
        "EPICS_PVAS_BROADCAST_PORT=5076",
        "EPICS_PVAS_SERVER_PORT=0",
        "EPICS_PVAS_TLS_OPTIONS=on_expiration=fallback-to-tcp on_no_cms=fallback-to-tcp",
        "EPICS_PVAS_TLS_PORT=5076",
        "EPICS_PVAS_TLS_STOP_IF_NO_CERT=NO",
    ]


@pytest.mark.parametrize(("variable", "text"), [
    ("EPICS_PVA_BROADCAST_PORT", "x"), ("EPICS_PVA_BROADCAST_PORT", "70000"), ("EPICS_PVA_BROADCAST_PORT", "0"),
    ("EPICS_PVA_SERVER_PORT", "-1"), ("EPICS_PVA_SERVER_PORT", ""), ("EPICS_PVA_SERVER_PORT", "0"),
    ("EPICS_PVA_TLS_PORT", "5076.0"), ("EPICS_PVA_TLS_PORT", "9" * 5000), ("EPICS_PVA_TLS_PORT", "\N{SUPERSCRIPT TWO}"),
    ("EPICS_PVA_CONN_TMO", "nan"), ("EPICS_PVA_CONN_TMO", "-1"), ("EPICS_PVA_CONN_TMO", "soon"),
    ("EPICS_PVA_CONN_TMO", "inf"), ("EPICS_PVA_AUTO_ADDR_LIST", "maybe"), ("EPICS_PVA_CERT_PV_PREFIX", ""),
])  # fmt: skip
def test_a_bad_variable_warns_with_name_and_value_and_the_default_stays(variable, text):
    plain, effective = client(), client({variable: text})
    assert effective.config == plain.config
    assert effective.sources == plain.sources
    (warning,) = effective.warnings
    assert warning.startswith(f"{variable}={text!r} ignored: ")


def test_a_bad_address_is_left_out_and_the_good_ones_stay():
    effective = client({"EPICS_PVA_ADDR_LIST": "10.0.0.1 [::1 gw:5086 pvas://x"})
    assert effective.config.addr_list == A
    assert len(effective.warnings) == 2
    assert "EPICS_PVA_ADDR_LIST: '[::1'" in effective.warnings[0]


@pytest.mark.parametrize("name", ["EPICS_PVAS_INTF_ADDR_LIST", "EPICS_PVAS_IGNORE_ADDR_LIST"])
def test_a_bad_list_that_restricts_a_server_stops_it(name):
    with pytest.raises(ConfigurationError, match=name):
        server({name: "10.0.0.1,x"})


@pytest.mark.parametrize(("key", "value"), [
    ("tls_port", "x"), ("tls_port", True), ("conn_tmo", -1), ("auto_addr_list", "perhaps"), ("addr_list", "a,b"),
    ("addr_list", 3), ("tls_options", "nonsense"), ("tls_options", 3), ("broadcast_port", 0), ("colour", "red"),
    ("xdg_config_home", "relative"), ("tls_keychain", 3), ("tls_keychain_pwd_file", "/does/not/exist"),
    ("conn_tmo", 10**400),
])  # fmt: skip
def test_a_bad_argument_or_yaml_value_is_refused(key, value):
    with pytest.raises(ConfigurationError, match=f"^{key}: "):
        client(arguments={key: value})
    with pytest.raises(ConfigurationError, match=f"^/f.yml:3: {key}: "):
        client(yaml=Section({key: value}, "/f.yml", {(key,): 3}))


class Both(Settings, frozen=True, kw_only=True):
    client: ClientSettings = ClientSettings()
    server: ServerSettings = ServerSettings()


def test_a_yaml_section_names_file_and_line_of_each_value():
    document = loads_document(
        """\
client:
  addr_list: [10.0.0.1, "gw:5086"]
  auto_addr_list: NO
  tls_keychain: c.p12
server:
  tls_options:
    client_cert: require
    no_stapling: true
""",
        Both,
        file="/etc/spva/x.yml",
    )
    effective = client({"EPICS_PVA_ADDR_LIST": "other"}, yaml=document.section("client"))
    assert effective.config.addr_list == A
    assert effective.config.auto_addr_list is False
    assert effective.config.tls_keychain == "/etc/spva/c.p12"
    assert effective.sources["tls_keychain"] == "/etc/spva/x.yml:4"
    effective = server(yaml=document.section("server"))
    assert effective.config.tls_options == pva.TLSOptions(client_cert="require", no_stapling=True)
    assert effective.sources["tls_options"] == "/etc/spva/x.yml:6"
    # The struct itself will do where nobody asks for lines.
    assert client(yaml=document.value.client).config.addr_list == A


def test_yaml_structs_and_resolver_know_the_same_keys():
    xdg = {"xdg_config_home", "xdg_data_home", "tls_keychain_pwd_file"}
    assert set(ClientSettings.__struct_fields__) == {item.key for item in pva._CLIENT} | xdg
    assert set(ServerSettings.__struct_fields__) == {item.key for item in pva._SERVER} | xdg


@pytest.mark.parametrize(("resolve", "name"), [(client, "client.p12"), (server, "server.p12")])
def test_the_default_keychain_counts_only_if_it_exists(resolve, name, tmp_path):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert resolve(environ).config.tls_keychain == ""
    assert not resolve(environ).config.tls_enabled
    path = tmp_path / "pva/1.5" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert resolve(environ).config.tls_keychain == str(path)
    # Set to nothing it means plain TCP, whatever exists.
    assert resolve(environ | {"EPICS_PVA_TLS_KEYCHAIN": ""}).config.tls_keychain == ""
    assert resolve(environ, {"tls_keychain": ""}).config.tls_keychain == ""


def test_a_server_looks_for_its_keychain_at_the_usual_place_unless_it_was_told_otherwise(tmp_path):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    usual = f"{tmp_path}/pva/1.5/server.p12"
    assert server(environ).config.tls_keychain_default == usual
    assert server(environ | {"EPICS_PVA_TLS_KEYCHAIN": ""}).config.tls_keychain_default == ""
    assert server(environ, {"tls_keychain": ""}).config.tls_keychain_default == ""
    assert server(environ | {"EPICS_PVAS_TLS_KEYCHAIN": "/a.p12"}).config.tls_keychain_default == ""
    assert usual not in server(environ).render()
    assert server(cms=True).config.tls_keychain_default == ""


def test_the_certificate_service_has_a_keychain_path_before_the_file_exists():
    assert server(cms=True).config.tls_keychain == "/home/client/.config/pva/1.5/pvacms.p12"


def test_a_password_belongs_to_the_keychain_of_the_same_prefix(tmp_path):
    environ = {"EPICS_PVA_TLS_KEYCHAIN": "/a", "EPICS_PVAS_TLS_KEYCHAIN": "/b"}
    for prefix in ("PVA", "PVAS"):
        path = tmp_path / prefix
        path.write_text(prefix)
        path.chmod(0o600)
        environ[f"EPICS_{prefix}_TLS_KEYCHAIN_PWD_FILE"] = str(path)
    assert server(environ).config.tls_keychain_password.reveal() == "PVAS"
    del environ["EPICS_PVAS_TLS_KEYCHAIN_PWD_FILE"]
    assert server(environ).config.tls_keychain_password.reveal() == ""
    del environ["EPICS_PVAS_TLS_KEYCHAIN"]
    assert server(environ).config.tls_keychain_password.reveal() == "PVA"


def test_a_password_file_that_everybody_reads_is_a_warning_in_the_environment_and_an_error_elsewhere(
    tmp_path,
):
    path = tmp_path / "pwd"
    path.write_text("x")
    path.chmod(0o644)
    effective = client({"EPICS_PVA_TLS_KEYCHAIN_PWD_FILE": str(path)})
    assert effective.config.tls_keychain_password.reveal() == "x"
    assert "chmod 600" in effective.warnings[0]
    with pytest.raises(ConfigurationError, match="chmod 600"):
        client(arguments={"tls_keychain_pwd_file": str(path)})


def test_a_missing_password_file_is_a_warning():
    effective = client({"EPICS_PVA_TLS_KEYCHAIN_PWD_FILE": "/does/not/exist"})
    assert effective.warnings == [
        "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE ignored: /does/not/exist: cannot read: No such file or directory"
    ]


@pytest.mark.parametrize("value", ["", "relative/dir"])
def test_an_xdg_directory_that_is_empty_or_relative_counts_as_not_set(value):
    effective = client({"XDG_CONFIG_HOME": value, "HOME": "/elsewhere"})
    assert effective.config.config_dir == "/home/client/.config/pva/1.5"
    assert len(effective.warnings) == bool(value)


def test_the_home_directory_comes_from_the_password_data_base():
    import pwd

    home = pwd.getpwuid(os.getuid()).pw_dir
    assert resolve_client(environ={"HOME": "/elsewhere"}).config.xdg_data_home == f"{home}/.local/share"


def test_the_processs_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("EPICS_PVA_TLS_PORT", "1234")
    assert resolve_client().config.tls_port == 1234


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 40.0), ("0", 40.0), ("1", 2.0), ("60", 80.0), ("9e18", 40.0)]
)
def test_the_idle_timeout_is_four_thirds_of_the_variable(text, seconds):
    """PVXS config.cpp: tmoScale, enforceTimeout."""
    assert client({"EPICS_PVA_CONN_TMO": text}).config.idle_timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("path", "expanded"), [("~/x", "/elsewhere/x"), ("./x", f"{Path.cwd()}/x"), ("x", "x")]
)
def test_a_keychain_path_is_expanded_as_pvxs_does(path, expanded):
    effective = client({"EPICS_PVA_TLS_KEYCHAIN": path, "HOME": "/elsewhere"})
    assert effective.config.tls_keychain == expanded


def test_a_keychain_may_be_a_systemd_credential():
    environ = {
        "CREDENTIALS_DIRECTORY": "/run/credentials/x",
        "EPICS_PVA_TLS_KEYCHAIN": "${credential:server.p12}",
    }
    assert client(environ).config.tls_keychain == "/run/credentials/x/server.p12"


def test_the_status_cache_lives_below_the_data_directory_unless_told_otherwise():
    assert client().config.status_cache == "/home/client/.local/share/pva/1.5/status_cache"
    assert client({"EPICS_PVA_STATUS_CACHE_DIR": "/c"}).config.status_cache == "/c"
    assert client({"EPICS_PVA_NO_STATUS_CACHE": "1"}).config.status_cache == ""


@pytest.mark.parametrize(("resolve", "name"), [(client, "client.p12"), (server, "server.p12")])
def test_a_keychain_of_an_older_version_is_used_where_it_is_until_there_is_one_of_today(
    resolve, name, tmp_path
):
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    old, new = tmp_path / "pva/1.3" / name, tmp_path / "pva/1.5" / name
    old.parent.mkdir(parents=True)
    old.write_bytes(b"")
    found = resolve(environ)
    assert found.config.tls_keychain == found.config.config_file(name) == str(old)
    assert f"# {tmp_path}/pva/1.3 is of an older version" in found.render()
    assert not new.parent.exists(), "nothing is copied"
    new.parent.mkdir()
    new.write_bytes(b"")
    assert resolve(environ).config.tls_keychain == str(new)


def test_what_is_made_goes_where_the_tools_of_2026_look(tmp_path):
    environ = {"XDG_CONFIG_HOME": f"{tmp_path}/c", "XDG_DATA_HOME": f"{tmp_path}/d"}
    config = server(environ).config
    assert config.config_file("server.p12") == f"{tmp_path}/c/pva/1.5/server.p12"
    assert config.data_file("certs.db") == f"{tmp_path}/d/pva/1.5/certs.db"
    assert "older version" not in server(environ).render()


def test_each_file_of_a_service_stays_where_it_is(tmp_path):
    """A directory of today beside that of an older version must not make a second authority, or a second database."""
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    for version in ("1.3", "1.5"):
        (tmp_path / "pva" / version).mkdir(parents=True)
    for name in ("certs.db", "status_cache", "pvacms.p12"):
        (tmp_path / "pva/1.3" / name).touch()
    config = server(environ, cms=True).config
    assert config.data_file("certs.db") == f"{tmp_path}/pva/1.3/certs.db"
    assert config.status_cache == f"{tmp_path}/pva/1.3/status_cache"
    assert config.tls_keychain == f"{tmp_path}/pva/1.3/pvacms.p12"


WITH_PASSWORD = pytest.mark.parametrize(
    ("resolve", "variable", "more"),
    [
        (client, "EPICS_PVA_TLS_KEYCHAIN", {}),
        (server, "EPICS_PVA_TLS_KEYCHAIN", {}),
        (server, "EPICS_PVAS_TLS_KEYCHAIN", {}),
        (server, "EPICS_PVACMS_TLS_KEYCHAIN", {"cms": True}),
    ],
)


def everything_shown(effective):
    return "\n".join([effective.render(), effective.explain(), repr(effective.config), *effective.warnings])


@WITH_PASSWORD
@pytest.mark.parametrize("secret", ["geheim", "ge;heim", " ge//heim/../", ""])
def test_a_variable_may_hold_the_keychain_and_its_password_which_nothing_shows(
    resolve, variable, more, secret
):
    """As PVXS (src/config.cpp) and Phoebus (SecureSockets) read it: the first semicolon is the border."""
    found = resolve({variable: f"/home/u/client.p12;{secret}"}, **more)
    assert found.config.tls_keychain == "/home/u/client.p12"
    assert found.config.tls_keychain_password.reveal() == secret
    assert found.sources["tls_keychain_password"] == variable
    assert found.warnings == []
    shown = everything_shown(found)
    assert "heim" not in shown
    assert ("<password read>" in shown) is bool(secret)


@WITH_PASSWORD
def test_a_password_file_beside_a_password_behind_the_name_has_no_effect_and_that_is_said(
    tmp_path, resolve, variable, more
):
    write_private(tmp_path / "pwd", b"other\n")
    found = resolve({variable: "/k.p12;geheim", f"{variable}_PWD_FILE": str(tmp_path / "pwd")}, **more)
    assert found.config.tls_keychain_password.reveal() == "geheim"
    (warning,) = found.warnings
    assert warning.startswith(f"{variable}_PWD_FILE has no effect")
    assert "geheim" not in everything_shown(found)


def test_a_password_in_a_configuration_file_is_read_with_a_warning(tmp_path):
    found = client({}, None, {"tls_keychain": "/home/u/client.p12;geheim"})
    assert found.config.tls_keychain == "/home/u/client.p12"
    assert found.config.tls_keychain_password.reveal() == "geheim"
    (warning,) = found.warnings
    assert "tls_keychain_pwd_file" in warning
    assert "geheim" not in everything_shown(found)
    write_private(tmp_path / "pwd", b"other\n")
    both = {"tls_keychain": "/k.p12;geheim", "tls_keychain_pwd_file": str(tmp_path / "pwd")}
    found = client({}, None, both)
    assert found.config.tls_keychain_password.reveal() == "geheim"
    assert "has no effect" in found.warnings[-1]


@pytest.mark.parametrize("resolve", [client, server])
def test_an_argument_with_a_password_is_refused_and_not_repeated(resolve):
    """Arguments are often those of a command line, and every user can list the processes."""
    with pytest.raises(ConfigurationError, match="semicolon") as caught:
        resolve({}, {"tls_keychain": "/home/u/client.p12;geheim"})
    assert "_PWD_FILE" in str(caught.value)
    assert "geheim" not in repr(caught.value)


@pytest.mark.parametrize("where", ["environment", "yaml"])
@pytest.mark.parametrize("value", [";geheim", " ;geheim"])
def test_a_password_without_a_keychain_is_refused_and_not_repeated(where, value):
    with pytest.raises(ConfigurationError, match="FILE;PASSWORD") as caught:
        if where == "yaml":
            client({}, None, {"tls_keychain": value})
        else:
            client({"EPICS_PVA_TLS_KEYCHAIN": value})
    assert "geheim" not in repr(caught.value)


def test_a_password_behind_a_relative_path_in_a_file_stays_as_it_is(tmp_path):
    class Root(Settings, frozen=True, kw_only=True):
        pva: ClientSettings = ClientSettings()

    text = "pva: {tls_keychain: 'keys/../c.p12;a//b/../c'}\n"
    read = loads_document(text, Root, file=str(tmp_path / "x.yml"))
    assert read.value.pva.tls_keychain == f"{tmp_path}/c.p12;a//b/../c"


def test_a_default_keychain_that_nobody_may_look_for_is_not_taken_for_absent(tmp_path, monkeypatch):
    """Whoever opens it hears why; plain TCP is for those who have none."""

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pva.os, "stat", refuse)
    found = client({"XDG_CONFIG_HOME": str(tmp_path)})
    assert found.config.tls_keychain == f"{tmp_path}/pva/1.5/client.p12"


def test_an_empty_password_file_is_warned_about(tmp_path):
    write_private(tmp_path / "pwd", b"\n")
    found = client({"EPICS_PVA_TLS_KEYCHAIN": "/a", "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE": str(tmp_path / "pwd")})
    (warning,) = found.warnings
    assert "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE, is empty" in warning
