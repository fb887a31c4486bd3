"""The gateway's configuration file: defaults, and what is refused with which sentence."""

from __future__ import annotations

import pytest

from appliance.config import loader
from appliance.errors import ConfigurationError
from appliance.gateway.config import GatewayConfig, resolve_sides

SMALLEST = """
clients:
  inner: {}
servers:
  outer:
    clients: [inner]
"""


def load(text: str) -> GatewayConfig:
    return loader.loads(text, GatewayConfig, file="gw.yml", environ={})


def test_the_smallest_file_has_sensible_defaults():
    config = load(SMALLEST)
    outer = config.servers["outer"]
    assert (outer.clients, outer.enforce_read, outer.get_holdoff, outer.status_prefix, outer.relay) == (
        ("inner",), False, 0.0, "", None,
    )  # fmt: skip
    assert (config.read_only, config.metrics.port, config.clients["inner"].queue_size) == (False, 0, 16)
    assert config.bounds.most_octets == 64 << 20
    assert config.used_clients == {"inner"}


def test_all_keys_are_read():
    config = load(
        """
read_only: true
log_level: DEBUG
metrics: {port: 9100, address: "::1"}
clients:
  inner:
    pva: {addr_list: 10.1.255.255, auto_addr_list: false, name_servers: [pva://10.1.0.1], broadcast_port: 5076, tls_options: "on_expiration=standby"}
    ignore_servers: [10.1.0.7]
    queue_size: 100
  labs: {}
servers:
  outer:
    clients: [inner, labs]
    pva: {intf_addr_list: [10.2.0.1], server_port: 5075, tls_port: 5076, beacon_addr_list: 10.2.255.255, ignore_addr_list: 10.2.0.9}
    status_client: inner
    pvlist: site.pvlist
    access: {file: site.acf, macros: {P: "X:"}, organizations: ["*"], inputs: labs}
    enforce_read: true
    get_holdoff: 0.5
    status_prefix: "GW:"
    put_log: /var/log/puts
    put_log_required: false
    relay: {names: [CERT:CREATE], tls_port: 5078, service: "pvas://10.1.0.2:5076"}
bounds: {names: 1000, new_names_per_host: 10, client_octets: 2 MiB, host_octets: 3MiB, open_patience_s: 5, promise_s: 2, idle_name_s: 30}
"""
    )
    assert config.bounds.most_octets == 2 << 20
    assert config.used_clients == {"inner", "labs"}
    assert config.servers["outer"].access.macros == {"P": "X:"}


def test_example_of_a_line_in_an_error():
    with pytest.raises(ConfigurationError, match=r"^gw.yml:6: servers.outer.client: unknown key"):
        load("clients:\n  inner: {}\n\nservers:\n  outer:\n    client: [inner]\n")


SERVER = "clients: {inner: {}}\nservers: "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clients: {inner: {}}", "servers: name at least one server side"),
        (SERVER + "{outer: {clients: [iner]}}", "servers.outer.clients: there is no client side 'iner'; there are: inner"),
        (SERVER + "{outer: {clients: [inner, inner]}}", "servers.outer.clients: a client side is named twice"),
        (SERVER + "{outer: {clients: [inner], access: {inputs: x}}}", "servers.outer.access.inputs: there is no client side 'x'"),
        (SERVER + "{outer: {clients: [inner], status_client: x}}", "servers.outer.status_client: there is no client side 'x'"),
        (SERVER + "{outer: {}}", "servers.outer: it serves nothing; give clients, or status_prefix"),
        (SERVER + "{outer: {status_prefix: 'GW:', relay: {}}}", "servers.outer.relay: it needs a client side"),
        (SERVER + "{outer: {clients: [inner], relay: {service: ['pvas://a:1', 'pva://b:1']}}}", "service: 'pva://b:1' is not pvas://HOST:PORT"),
        (SERVER + "{outer: {clients: [inner], put_log_required: false}}", "servers.outer.put_log_required: it has no effect"),
        (SERVER + "{outer: {clients: [inner], access: {macros: {A: b}}}}", "servers.outer.access: macros and organizations have no effect"),
        (SERVER + "{a: {clients: [inner], pva: {server_port: 5075}}, b: {clients: [inner], pva: {server_port: 5075}}}", "servers.b.pva: TCP port 5075 is that of servers.a"),
        (SERVER + "{a: {clients: [inner], pva: {server_port: 5075, intf_addr_list: 10.0.0.1}}, b: {clients: [inner], pva: {server_port: 5075, intf_addr_list: [0.0.0.0]}}}", "servers.b.pva: TCP port 5075"),
        (SERVER + "{a: {clients: [inner], relay: {}}, b: {clients: [inner], relay: {}}}", "servers.b.pva: TCP port 5077"),
        (SERVER + "{a: {status_prefix: 'GW:'}, b: {status_prefix: 'GW:'}}", "servers.b.status_prefix: 'GW:' is that of servers.a"),
        (SERVER + "{a: {clients: [inner], put_log: /p}, b: {clients: [inner], put_log: /p}}", "servers.b.put_log: it is that of servers.a"),
        (SERVER + "{a: {clients: [inner]}}\nmetrics: {port: 1, address: 10.0.0.1}", "metrics.address: '10.0.0.1' is not an address of loopback"),
        (SERVER + "{a: {clients: [inner]}}\nmetrics: {port: 1, address: gateway}", "metrics.address: 'gateway' is not an address of loopback"),
        (SERVER + "{a: {clients: [inner]}}\nbounds: {client_octets: '10'}", "client_octets: 10 is too little"),
        (SERVER + "{a: {clients: [inner]}}\nbounds: {client_octets: 10MB}", "bounds.client_octets"),
        (SERVER + "{a: {clients: [inner]}}\nbounds: {host_octets: 63MiB}", "host_octets: 63MiB is less than client_octets (64MiB)"),
        (SERVER + "{a: {clients: [inner], get_holdoff: -1}}", "servers.a.get_holdoff"),
        (SERVER + "{a b: {clients: [inner]}}", "servers"),
        (SERVER + "{a: {status_prefix: 'GW :'}}", "servers.a.status_prefix: 'GW :' has a blank or a control character"),
        (SERVER + '{a: {status_prefix: "GW:\\n"}}', "servers.a.status_prefix: 'GW:\\n' has a blank or a control character"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, said: str):
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "servers",
    [
        "{a: {clients: [inner], pva: {server_port: 5075, intf_addr_list: 10.0.0.1}}, b: {clients: [inner], pva: {server_port: 5075, intf_addr_list: 10.0.0.2}}}",
        "{a: {clients: [inner], pva: {server_port: 0}}, b: {clients: [inner], pva: {server_port: 0}}}",
        "{a: {clients: [inner]}, b: {clients: [inner]}}",
        "{a: {status_prefix: 'GW:', pva: {intf_addr_list: 10.0.0.1}}, b: {status_prefix: 'GW:', pva: {intf_addr_list: 10.0.0.2}}}",
    ],
)
def test_sides_that_do_not_collide(servers: str):
    assert len(load(SERVER + servers).servers) == 2


@pytest.mark.parametrize("kind", ["clients", "servers"])
def test_an_error_in_a_sides_settings_names_the_whole_key(kind: str):
    text = """clients:
  x: {pva: {auto_addr_list: true}}
servers:
  x: {clients: [x], pva: {server_port: 5075}}
"""
    text = text.replace(
        "{auto" if kind == "clients" else "{server",
        "{tls_options: bogus=1, " + ("auto" if kind == "clients" else "server"),
    )
    document = loader.loads_document(text, GatewayConfig, file="gw.yml")
    line = 2 if kind == "clients" else 4
    with pytest.raises(ConfigurationError, match=rf"^gw.yml:{line}: {kind}.x.pva.tls_options: "):
        resolve_sides(document.value, document.section, {})


def test_the_sides_read_no_addresses_of_the_environment():
    document = loader.loads_document(
        SMALLEST + "    pva: {server_port: 0, tls_keychain: own.p12}\n", GatewayConfig, file="/etc/gw.yml"
    )
    environ = {
        "EPICS_PVA_ADDR_LIST": "10.9.9.9",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVAS_INTF_ADDR_LIST": "10.9.9.9",
        "EPICS_PVA_TLS_KEYCHAIN": "/stolen.p12",
        "EPICS_PVAS_SERVER_PORT": "1234",
        "EPICS_PVA_STATUS_CACHE_DIR": "/var/cache/pva",
        "XDG_CONFIG_HOME": "/nowhere",
    }
    sides = resolve_sides(document.value, document.section, environ)
    inner, outer = sides.clients["inner"].config, sides.servers["outer"].config
    assert (inner.addr_list, inner.auto_addr_list, inner.tls_keychain) == ((), True, "")
    assert (outer.intf_addr_list, outer.server_port, outer.tls_keychain) == ((), 0, "/etc/own.p12")
    assert inner.status_cache == outer.status_cache == "/var/cache/pva"
    assert sides.servers["outer"].sources["server_port"] == "/etc/gw.yml:7"


def test_a_bad_value_of_a_side_has_its_line():
    document = loader.loads_document(
        SMALLEST + "    pva: {intf_addr_list: '1.2.3.4.5:x'}\n", GatewayConfig, file="gw.yml"
    )
    with pytest.raises(ConfigurationError, match=r"^gw.yml:7: "):
        resolve_sides(document.value, document.section, {})
