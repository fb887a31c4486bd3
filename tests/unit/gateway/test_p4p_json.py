"""Files of p4p's gateway: every key of versions 1 and 2, and the sentence for every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from p4p import gw

from appliance.config import loader
from appliance.errors import ConfigurationError
from appliance.gateway.convert import converted
from appliance.gateway.p4p_json import Loaded, load_config

TWO_NETWORKS = """
/* The gateway between 10.1.1.0/24 (clients) and 192.168.1.0/24 (IOCs).
 * A brace { in a comment, and a "quote.
 */
{
    "version": 2,
    "readOnly": false,
    "clients": [
        {
            "name": "inner",
            "provider": "pva",
            "addrlist": "192.168.1.255",
            "autoaddrlist": false,
            "serverport": 5075,
            "bcastport": 5086
        }
    ],
    "servers": [
        {
            "name": "outer",
            "clients": ["inner"],
            "interface": ["10.1.1.4"],
            "addrlist": "10.1.1.255",
            "ignoreaddr": ["10.1.1.99"],
            "autoaddrlist": false,
            "serverport": 5075,
            "bcastport": 5076,
            "getholdoff": 1.0,
            "statusprefix": "GW:",
            "access": "rules.acf",
            "pvlist": "names.pvlist",
            "acf_client": "inner" /* "note": "none" */
        }
        /* only the status PVs, for the inner network */
        ,{
            "name": "inside",
            "clients": [],
            "interface": ["192.168.1.5"],
            "addrlist": "192.168.1.255",
            "autoaddrlist": false,
            "statusprefix": "GW:"
        }
    ]
}
"""
SMALL: dict[str, Any] = {
    "version": 2,
    "clients": [{"name": "c"}],
    "servers": [{"name": "s", "clients": ["c"]}],
}


def load(tmp_path: Path, given: str | dict[str, Any]) -> Loaded:
    file = tmp_path / "gw.conf"
    file.write_text(given if isinstance(given, str) else json.dumps(given, indent=1))
    return load_config(str(file), environ={})


def changed(
    client: dict[str, Any] | None = None, server: dict[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    """Return the small file with other keys."""
    clients = [{**SMALL["clients"][0], **(client or {})}]
    return {**SMALL, "clients": clients, "servers": [{**SMALL["servers"][0], **(server or {})}], **top}


def pva(side: Any) -> dict[str, Any]:
    """Return the settings of a side that its file gives."""
    return {key: value for key in side.pva.__struct_fields__ if (value := getattr(side.pva, key)) is not None}


def test_every_key_of_version_2_means_what_it_means_to_p4p(tmp_path):
    loaded = load(tmp_path, TWO_NETWORKS)
    config = loaded.config
    assert not config.read_only
    assert pva(config.clients["inner"]) == {
        "addr_list": "192.168.1.255", "auto_addr_list": False, "server_port": 5075, "broadcast_port": 5086,
    }  # fmt: skip
    outer, inside = config.servers["outer"], config.servers["inside"]
    assert pva(outer) == {
        "intf_addr_list": ["10.1.1.4"], "auto_beacon_addr_list": False, "beacon_addr_list": "10.1.1.255",
        "ignore_addr_list": ["10.1.1.99"], "server_port": 5075, "broadcast_port": 5076,
    }  # fmt: skip
    assert (outer.clients, outer.get_holdoff, outer.status_prefix) == (("inner",), 1.0, "GW:")
    assert (outer.access.file, outer.access.inputs) == (f"{tmp_path}/rules.acf", "inner")
    assert outer.pvlist == f"{tmp_path}/names.pvlist"
    assert not outer.enforce_read, "p4p's gateway lets everybody read"
    assert (inside.clients, inside.status_prefix) == ((), "GW:")
    assert loaded.warnings == []
    sides = loaded.sides(environ={})
    assert [str(end) for end in sides.clients["inner"].config.addr_list] == ["192.168.1.255"]
    assert sides.servers["outer"].config.server_port == 5075


def test_the_example_that_p4p_writes_is_read(tmp_path):
    file = tmp_path / "example.conf"
    with pytest.raises(SystemExit):
        gw.main(["--example-config", str(file)])
    loaded = load_config(str(file), environ={})
    assert set(loaded.config.servers) == {"theserver", "stserver"}
    assert loaded.config.servers["theserver"].clients == ("theclient",)
    assert loaded.warnings == []


def test_what_p4p_leaves_out_has_its_defaults(tmp_path):
    config = load(tmp_path, SMALL).config
    assert pva(config.clients["c"]) == {"auto_addr_list": True}
    assert pva(config.servers["s"]) == {"auto_beacon_addr_list": True}
    server = config.servers["s"]
    assert (server.get_holdoff, server.status_prefix, server.pvlist, server.access.file) == (0.0, "", "", "")


def test_ports_of_tests_are_any_ports(tmp_path):
    """serverport 0 of a client means nothing; of a server it means any port. Null is no hold-off."""
    config = load(
        tmp_path,
        changed(
            {"serverport": 0, "bcastport": "5099"}, {"serverport": 0, "bcastport": 0, "getholdoff": None}
        ),
    ).config
    assert pva(config.clients["c"]) == {"auto_addr_list": True, "broadcast_port": 5099}
    assert (config.servers["s"].pva.server_port, config.servers["s"].pva.broadcast_port) == (0, 0)
    assert config.servers["s"].get_holdoff == 0.0


def test_variables_as_keys_mean_what_they_mean_to_pvxs(tmp_path):
    loaded = load(
        tmp_path,
        changed(
            {
                "bcastport": 5076,
                "EPICS_PVA_BROADCAST_PORT": "5099",
                "EPICS_PVA_NAME_SERVERS": "10.0.0.1:5075",
                "EPICS_PVA_CONN_TMO": "12",
                "EPICS_PVA_INTF_ADDR_LIST": "10.0.0.2",
                "EPICS_PVA_TLS_KEYCHAIN": "client.p12",
                "EPICS_PVA_TLS_OPTIONS": "on_expiration=standby",
            },
            {
                "interface": ["1.2.3.4"],
                "EPICS_PVAS_SERVER_PORT": "5081",
                "EPICS_PVA_SERVER_PORT": "5082",
                "EPICS_PVAS_TLS_KEYCHAIN": "/etc/server.p12",
                "EPICS_PVAS_TLS_STOP_IF_NO_CERT": "YES",
                "EPICS_PVA_TLS_PORT": "5083",
                "EPICS_PVA_ADDR_LIST": "9.9.9.9",
                "EPICS_PVA_MAX_ARRAY_BYTES": "1000000",
            },
        ),
    )
    assert pva(loaded.config.clients["c"]) == {
        "auto_addr_list": True, "broadcast_port": 5099, "name_servers": "10.0.0.1:5075", "conn_tmo": 12.0,
        "intf_addr_list": "10.0.0.2", "tls_keychain": f"{tmp_path}/client.p12", "tls_options": "on_expiration=standby",
    }  # fmt: skip
    assert pva(loaded.config.servers["s"]) == {
        "intf_addr_list": ["1.2.3.4"], "auto_beacon_addr_list": True, "server_port": 5081,
        "tls_keychain": "/etc/server.p12", "tls_stop_if_no_cert": True, "tls_port": 5083,
    }  # fmt: skip
    texts = [(note.key, note.text) for note in loaded.notes]
    assert (
        "clients[0].EPICS_PVA_BROADCAST_PORT",
        "it is used, and clients[0].bcastport is not, as with p4p",
    ) in texts
    assert any(
        key.endswith("EPICS_PVA_ADDR_LIST") and "addrlist goes before it" in text for key, text in texts
    )
    assert any(key.endswith("MAX_ARRAY_BYTES") and "no effect" in text for key, text in texts)


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ({"tls_keychain": "c.p12;geheim"}, {"tls_keychain": "/s.p12;geheim"}),
        ({"EPICS_PVA_TLS_KEYCHAIN": "c.p12;geheim"}, {"EPICS_PVAS_TLS_KEYCHAIN": "/s.p12;geheim"}),
    ],
)
def test_a_password_behind_a_keychain_is_read_and_shown_by_nothing(tmp_path, client, server):
    loaded = load(tmp_path, changed(client, server))
    sides = loaded.sides(environ={})
    found = [sides.clients["c"], sides.servers["s"]]
    assert [one.config.tls_keychain for one in found] == [f"{tmp_path}/c.p12", "/s.p12"]
    assert [one.config.tls_keychain_password.reveal() for one in found] == ["geheim", "geheim"]
    shown = [one.explain() for one in found] + [one.render() for one in found] + [loader.dump(loaded.config)]
    shown += [warning for one in found for warning in one.warnings] + loaded.warnings
    assert "geheim" not in "\n".join(shown)
    with pytest.raises(ConfigurationError, match="semicolon") as caught:
        converted(loaded)
    assert "geheim" not in str(caught.value)


def test_the_keychain_key_of_p4p_with_tls_is_taken_on_either_side(tmp_path):
    config = load(tmp_path, changed({"tls_keychain": "c.p12"}, {"tls_keychain": "/s.p12"})).config
    assert config.clients["c"].pva.tls_keychain == f"{tmp_path}/c.p12"
    assert config.servers["s"].pva.tls_keychain == "/s.p12"


def test_several_interfaces_are_one_server_and_keep_their_beacons(tmp_path):
    loaded = load(tmp_path, changed(None, {"interface": ["1.2.3.4", "5.6.7.8"], "addrlist": "5.6.7.255"}))
    assert pva(loaded.config.servers["s"]) == {
        "intf_addr_list": ["1.2.3.4", "5.6.7.8"], "auto_beacon_addr_list": True, "beacon_addr_list": "5.6.7.255",
    }  # fmt: skip
    assert {note.key for note in loaded.notes} == {"servers[0].interface", "servers[0].addrlist"}


@pytest.mark.parametrize(
    ("interface", "found", "noted"),
    [("1.2.3.4", ["1.2.3.4"], False), (["1.2.3.4"], ["1.2.3.4"], True), ("", None, False)],
)
def test_version_1_has_one_interface_as_text(tmp_path, interface, found, noted):
    loaded = load(tmp_path, changed(None, {"interface": interface}, version=1))
    assert loaded.config.servers["s"].pva.intf_addr_list == found
    assert bool(loaded.notes) is noted


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_another_version_is_read_as_version_2_and_said(tmp_path, version):
    loaded = load(tmp_path, changed(version=version))
    (note,) = loaded.notes
    assert "read as version 2" in note.text


def test_a_port_that_an_earlier_server_has_gives_way_as_with_p4p(tmp_path):
    given = changed(None, {"serverport": 5075, "interface": ["1.2.3.4"]})
    given["servers"] += [
        {"name": "t", "clients": ["c"], "serverport": 5075},
        {"name": "u", "clients": ["c"], "serverport": 5075, "interface": ["5.6.7.8"]},
    ]
    loaded = load(tmp_path, given)
    ports = {name: side.pva.server_port for name, side in loaded.config.servers.items()}
    assert ports == {"s": 5075, "t": 0, "u": 5075}
    (note,) = loaded.notes
    assert note.key == "servers[1].serverport"


def test_names_that_cannot_be_keys_are_changed_and_said(tmp_path):
    given = changed({"name": "the client"}, {"clients": ["the client"], "acf_client": "the client"})
    given["clients"].append({"name": "the_client"})
    loaded = load(tmp_path, given)
    assert set(loaded.config.clients) == {"the_client", "the_client_2"}
    assert loaded.config.servers["s"].clients == ("the_client",)
    assert loaded.config.servers["s"].access.inputs == "the_client"
    assert [note.key for note in loaded.notes] == ["clients[0].name", "clients[1].name"]


def test_an_ambiguous_client_for_inputs_is_said(tmp_path):
    given = changed(None, {"clients": ["c", "d"], "access": "x.acf"})
    given["clients"].append({"name": "d"})
    (note,) = load(tmp_path, given).notes
    assert (note.key, "acf_client" in note.text) == ("servers[0].access", True)


def test_a_database_for_statistics_is_not_kept_and_this_is_said(tmp_path):
    (warning,) = load(tmp_path, changed(statsdb="/tmp/x.db")).warnings
    assert warning.endswith("statsdb: no database is kept: the tables of the status PVs are in memory")


def test_what_looks_like_a_comment_in_a_string_is_text(tmp_path):
    config = load(tmp_path, changed(None, {"statusprefix": "a/*b*/c:"})).config
    assert config.servers["s"].status_prefix == "a/*b*/c:"


@pytest.mark.parametrize("head", ["", "\ufeff", "\n\t ", "/* { */\n", "/* a */ /* b */"])
def test_a_file_that_begins_with_a_brace_is_json_whatever_its_name_is(tmp_path, head):
    assert load(tmp_path, head + json.dumps(SMALL)).keys is not None


def test_any_other_file_is_yaml(tmp_path):
    loaded = load(tmp_path, "# { a comment\nclients: {c: {}}\nservers: {s: {clients: [c]}}\n")
    assert loaded.keys is None
    assert loaded.config.servers["s"].clients == ("c",)


FAULTS = [
    ({"client": {"adrlist": ""}}, "clients[0].adrlist", "unknown key; did you mean addrlist?"),
    ({"server": {"acl": ""}}, "servers[0].acl", "unknown key"),
    ({"readonly": True}, "readonly", "did you mean readOnly?"),
    ({"readOnly": "yes"}, "readOnly", "expected true or false, not text"),
    ({"client": {"name": 1}}, "clients[0].name", "expected text, not a number"),
    ({"client": {"provider": "ca"}}, "clients[0].provider", "there is only the provider 'pva', not 'ca'"),
    ({"client": {"addrlist": ["1.2.3.4"]}}, "clients[0].addrlist", "expected text, not a list"),
    ({"client": {"addrlist": "1.2.3.4:x"}}, "clients[0].addrlist", "1.2.3.4:x"),
    ({"client": {"autoaddrlist": 1}}, "clients[0].autoaddrlist", "expected true or false, not a number"),
    ({"client": {"bcastport": 0}}, "clients[0].bcastport", "expected a port number from 1 to 65535"),
    ({"client": {"bcastport": 70000}}, "clients[0].bcastport", "expected a port number"),
    ({"client": {"serverport": True}}, "clients[0].serverport", "expected a port number, not true or false"),
    ({"client": {"EPICS_PVA_AUTO_ADDR_LIST": "perhaps"}}, "clients[0].EPICS_PVA_AUTO_ADDR_LIST", "YES or NO"),
    ({"client": {"EPICS_PVA_NONSENSE": "1"}}, "clients[0].EPICS_PVA_NONSENSE", "no client of the gateway has"),
    ({"client": {"EPICS_PVAS_SERVER_PORT": "1"}}, "clients[0].EPICS_PVAS_SERVER_PORT", "unknown key"),
    ({"server": {"EPICS_PVAS_NONSENSE": "1"}}, "servers[0].EPICS_PVAS_NONSENSE", "no server of the gateway has"),
    ({"server": {"clients": "c"}}, "servers[0].clients", "expected a list, not text"),
    ({"server": {"clients": ["d"]}}, "servers[0].clients[0]", "there is no client 'd'; there are: c"),
    ({"server": {"clients": ["c", "c"]}}, "servers[0].clients", "named twice"),
    ({"server": {"clients": []}}, "servers[0].name", "serves nothing"),
    ({"server": {"acf_client": "d"}}, "servers[0].acf_client", "there is no client 'd'"),
    ({"server": {"interface": [1]}}, "servers[0].interface[0]", "expected text, not a number"),
    ({"server": {"ignoreaddr": 7}}, "servers[0].ignoreaddr", "expected text, not a number"),
    ({"server": {"ignoreaddr": "1.2.3.4:x"}}, "servers[0].ignoreaddr", "1.2.3.4:x"),
    ({"server": {"getholdoff": "1"}}, "servers[0].getholdoff", "expected a number of seconds, not text"),
    ({"server": {"getholdoff": 1e9}}, "servers[0].getholdoff", "3600"),
    ({"server": {"statusprefix": None}}, "servers[0].statusprefix", "expected text, not null"),
    ({"server": {"access": 1}}, "servers[0].access", "expected text"),
    ({"server": {"EPICS_PVAS_TLS_KEYCHAIN": ";secret"}}, "servers[0].EPICS_PVAS_TLS_KEYCHAIN", "FILE;PASSWORD"),
    ({"clients": {}}, "clients", "expected a list, not an object"),
    ({"servers": [1]}, "servers[0]", "expected an object, not a number"),
    ({"clients": [{}], "servers": []}, "clients[0]", "missing: name"),
    ({"clients": [{"name": "c"}, {"name": "c"}]}, "clients[1].name", "two of the clients have the name 'c'"),
    ({"servers": []}, "servers", "name at least one server side"),
    ({"servers": [{"name": "s"}]}, "servers[0]", "missing: clients"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "key", "why"), FAULTS, ids=[key for _, key, _ in FAULTS])
def test_a_fault_is_one_sentence_with_file_line_and_key(tmp_path, change, key, why):
    given = changed(**change)
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, given).sides(environ={})
    text = str(caught.value)
    last = key.split(".")[-1].split("[")[0]
    line = caught.value.line
    assert text.startswith(f"{tmp_path}/gw.conf:{line}: {key}: "), text
    assert why in text
    assert "secret" not in text
    assert line is not None
    lines = json.dumps(given, indent=1).splitlines()
    around = "".join(lines[max(line - 2, 0) : line + 3])
    assert last in around or last in {"clients", "servers"}


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ('{\n "version": 2,\n}', 3, "not valid JSON"),
        ('{\n // no\n "version": 2}', 2, "comments are written /* ... */"),
        ('{"a": 1}\n/* open', 2, "the comment that begins here has no end"),
        ('{"version": 2,\n "version": 1}', 2, "version: given twice, first in line 1"),
        ('{"clients": [{"name": "a",\n\n "name": "b"}]}', 3, "clients[0].name: given twice"),
        ('{"version": 2} {', 1, "not valid JSON: Extra data"),
        ('{"getholdoff": NaN}', None, "NaN is not a number here"),
        ('{"a": ' * 40 + "1" + "}" * 40, 1, "more than 32 nested"),
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, None, "more than 32 nested"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_said_with_the_line(tmp_path, text, line, why):
    with pytest.raises(ConfigurationError, match=f"gw.conf:{line}: " if line else "gw.conf: ") as caught:
        load(tmp_path, text)
    assert why in str(caught.value)


def test_hostile_files_are_refused_quickly(tmp_path):
    """Comments that do not end and strings that do not end cost no more than reading the file once."""
    for text in ("{" + "/*" * 400_000, '{"' + '\\"' * 400_000, "/* " * 300_000):
        with pytest.raises(ConfigurationError):
            load(tmp_path, text)
