"""``pvagw --convert``: the YAML means the same as the JSON that it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.gateway.convert import converted
from appliance.gateway.p4p_json import load_config
from tests.unit.gateway.test_p4p_json import TWO_NETWORKS

ADDRESSES = st.lists(st.ip_addresses(v=4).map(str), max_size=3)
PORT = st.integers(1, 65535)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
FILES = TEXT.filter(lambda text: "$" not in text)
SEED = {"version": 2, "clients": [{"name": "c"}, {"name": "d\n# e"}]}


def optional(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


CLIENT = optional(
    addrlist=ADDRESSES.map(" ".join),
    autoaddrlist=st.booleans(),
    serverport=PORT,
    bcastport=PORT,
    EPICS_PVA_NAME_SERVERS=ADDRESSES.map(" ".join),
    EPICS_PVA_CONN_TMO=st.integers(0, 1000).map(str),
)
SERVER = optional(
    interface=ADDRESSES,
    addrlist=ADDRESSES.map(" ".join),
    autoaddrlist=st.booleans(),
    ignoreaddr=ADDRESSES,
    serverport=st.integers(0, 65535),
    bcastport=st.integers(0, 65535),
    getholdoff=st.none() | st.floats(0, 3600),
    statusprefix=TEXT.filter(lambda text: text.isprintable() and not any(map(str.isspace, text))),
    access=FILES,
    pvlist=FILES,
    acf_client=st.sampled_from(["c", "d\n# e"]),
)


def same(directory: Path, text: str) -> str:
    """Convert a file, and check that the YAML is read as the same configuration; return the YAML."""
    file = directory / "gw.conf"
    file.write_text(text, encoding="utf-8")
    first = load_config(str(file), environ={})
    made = converted(first)
    other = directory / "gateway.yml"
    other.write_text(made, encoding="utf-8")
    second = load_config(str(other), environ={})
    assert second.keys is None, "the result is YAML"
    assert second.config == first.config
    assert second.notes == ()
    return made


def test_the_example_of_two_networks(tmp_path):
    made = same(tmp_path, TWO_NETWORKS)
    assert "    access:\n      file: rules.acf\n      inputs: inner\n" in made
    assert "10.1.1.99" in made


def test_the_notes_stand_at_their_keys(tmp_path):
    made = same(
        tmp_path,
        json.dumps(
            {
                "statsdb": "x",
                "version": 7,
                "clients": [{"name": "a b"}],
                "servers": [{"name": "s", "clients": ["a b"], "interface": ["1.2.3.4", "1.2.3.5"]}],
            }
        ),
    )
    lines = [line.strip() for line in made.splitlines()]
    assert lines[2].startswith("# version: version 7 is unknown")
    assert lines[3].startswith("# statsdb: no database is kept")
    assert lines[lines.index("a_b:") - 1] == "# clients[0].name: the name 'a b' becomes a_b"
    at = lines.index("intf_addr_list: [1.2.3.4, 1.2.3.5]")
    assert lines[at - 1].startswith("# servers[0].interface: one server listens on all")


@settings(max_examples=60, deadline=None)
@given(
    client=CLIENT, server=SERVER, clients=st.lists(st.sampled_from(["c", "d\n# e"]), min_size=1, unique=True)
)
def test_any_file_means_the_same_as_yaml(tmp_path_factory, client, server, clients):
    given_ = {
        **SEED,
        "clients": [{**SEED["clients"][0], **client}, SEED["clients"][1]],
        "servers": [{"name": "s: [", "clients": clients, **server}],
    }
    same(tmp_path_factory.getbasetemp(), json.dumps(given_))
