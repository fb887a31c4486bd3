"""Names of hosts in a gateway's configuration: one without an address is found by a check, with file, line and key."""

import asyncio
import json
import socket

import pytest

from appliance.errors import ConfigurationError
from appliance.gateway.daemon import main
from appliance.gateway.hosts import addresses, check_interfaces, unresolved
from appliance.gateway.p4p_json import load_config

GOOD = """\
clients:
  inner:
    ignore_servers: [127.0.0.1, localhost]
    pva:
      addr_list: [127.0.0.1:5076, "224.0.0.1,1@lo", localhost]
      name_servers: "pvas://localhost:5076 [::1]:5075"
servers:
  outer:
    clients: [inner]
    pva:
      intf_addr_list: [localhost]
      ignore_addr_list: [127.0.0.1]
"""


@pytest.fixture(autouse=True)
def resolver(monkeypatch):
    """Make a name service that knows one name: tests do not depend on the machine's."""
    real = socket.getaddrinfo

    def look_up(host, *more, **named):
        if host not in {"localhost", "127.0.0.2"}:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host.replace("localhost", "127.0.0.1"), *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def check(tmp_path, capsys, text, name="gw.yml"):
    """Return the exit status of ``pvagw -T``, and what it says to the standard error."""
    (tmp_path / name).write_text(text)
    status = main(["-T", str(tmp_path / name)])
    return status, capsys.readouterr().err


def test_names_with_an_address_and_numbers_are_good(tmp_path, capsys):
    assert check(tmp_path, capsys, GOOD) == (0, f"{tmp_path}/gw.yml: good\n")


@pytest.mark.parametrize(
    ("before", "after", "line", "key"),
    [
        ("intf_addr_list: [localhost]", "intf_addr_list: [127.0.0.1, gone]", 11, "servers.outer.pva.intf_addr_list[1]"),
        ("ignore_addr_list: [127.0.0.1]", "ignore_addr_list: gone", 12, "servers.outer.pva.ignore_addr_list"),
        ("ignore_addr_list: [127.0.0.1]", "beacon_addr_list: [gone]", 12, "servers.outer.pva.beacon_addr_list[0]"),
        ('"224.0.0.1,1@lo"', "gone:5076", 5, "clients.inner.pva.addr_list[1]"),
        ("pvas://localhost:5076", "pvas://gone:5076", 6, "clients.inner.pva.name_servers"),
        ("127.0.0.1, localhost", "localhost, gone", 3, "clients.inner.ignore_servers[1]"),
        ("clients: [inner]", "clients: [inner]\n    relay: {service: 'pvas://gone:5076'}", 10, "servers.outer.relay.service"),
    ],
)  # fmt: skip
def test_a_name_without_an_address_is_an_error_with_file_line_and_key(
    tmp_path, capsys, before, after, line, key
):
    text = GOOD.replace(before, after)
    assert text != GOOD
    said = f"Error: {tmp_path}/gw.yml:{line}: {key}: gone has no address: Name or service not known; write its address in numbers\n"
    assert check(tmp_path, capsys, text) == (1, said)


def test_all_of_them_are_told_at_once(tmp_path, capsys):
    text = GOOD.replace("[localhost]", "[gone, away]").replace("[127.0.0.1]", "[away]")
    status, said = check(tmp_path, capsys, text)
    assert status == 1
    assert [line.split(" has ")[0].rsplit(" ", 1)[1] for line in said.splitlines()] == [
        "gone",
        "away",
        "away",
    ]


def test_keychains_that_cannot_be_used_are_told_with_them(tmp_path, capsys):
    text = GOOD.replace("[localhost]", "[gone]").replace(
        "addr_list: [127", f"tls_keychain: {tmp_path}/no.p12\n      addr_list: [127", 1
    )
    status, said = check(tmp_path, capsys, text)
    assert status == 1
    keychain, host = said.splitlines()
    assert keychain.startswith(
        f"Error: {tmp_path}/gw.yml:5: clients.inner.pva.tls_keychain: {tmp_path}/no.p12: "
    )
    assert host.startswith(
        f"Error: {tmp_path}/gw.yml:12: servers.outer.pva.intf_addr_list[0]: gone has no address"
    )


def test_in_a_file_of_p4p_s_gateway_it_has_that_file_s_key(tmp_path, capsys):
    given = {
        "version": 2,
        "clients": [{"name": "c", "addrlist": "gone"}],
        "servers": [{"name": "s", "clients": ["c"], "interface": ["127.0.0.1", "away"]}],
    }
    status, said = check(tmp_path, capsys, json.dumps(given, indent=1), "gw.conf")
    assert status == 1
    assert [line for line in said.splitlines() if line.startswith("Error")] == [
        f"Error: {tmp_path}/gw.conf:{line}: {key}: {host} has no address: Name or service not known; write its address in numbers"
        for host, line, key in (("away", 17, "servers[0].interface[1]"), ("gone", 6, "clients[0].addrlist"))
    ]


def test_a_label_that_is_too_long_has_no_address_either(tmp_path, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "gw.yml").write_text(GOOD.replace("[localhost]", f"[{'a' * 64}.example]"))
    (error,) = unresolved(load_config(str(tmp_path / "gw.yml")).config)
    assert error.key == "servers.outer.pva.intf_addr_list[0]"


def test_a_start_needs_the_addresses_of_the_gateway_itself_only(tmp_path):
    (tmp_path / "gw.yml").write_text(GOOD.replace('"224.0.0.1,1@lo"', "gone"))
    check_interfaces(load_config(str(tmp_path / "gw.yml")).config)
    (tmp_path / "gw.yml").write_text(GOOD.replace("[localhost]", "[gone]"))
    with pytest.raises(ConfigurationError, match="gone has no address") as error:
        check_interfaces(load_config(str(tmp_path / "gw.yml")).config)
    assert error.value.key == "servers.outer.pva.intf_addr_list[0]"


def test_addresses_of_servers_to_ignore():
    assert asyncio.run(addresses("k", ["localhost", "127.0.0.2:5075"])) == {
        ("127.0.0.1", 0),
        ("127.0.0.2", 5075),
    }
