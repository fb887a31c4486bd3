"""The YAML form: the same model from keys and values."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.acf import AccessSecurity, Principal, acf_from_tree, load_acf, looks_like_yaml
from appliance.errors import AccessFileError

ROOT = "EPICS Root Certificate Authority"

SITE = f"""\
# EPICS YAML
version: 1.0
$schema: https://json-schema.org/draft/2020-12/schema
authorities:
  - id: ROOT
    name: {ROOT}
    authorities:
      - name: Middle
        authorities:
          - id: LEAF
            name: Leaf CA
uags:
  - name: operators
    users: [alice, "role/shift"]
  - name: nobody
hags:
  - name: room
    hosts:
      - 127.0.0.1
      - Console
sags:
  - name: iocs
    ip: [10.0.0.0/8]
    dns: ["*.example.org"]
asgs:
  - name: DEFAULT
    rules:
      - level: 0
        access: NONE
  - name: ro
    rules:
      - level: 1
        access: READ
        methods: [ca]
        uags: [operators]
  - name: rw
    links:
      - INPA: "SYS:MODE"
      - INPB: SYS:KEY
    rules:
      - level: 1
        access: WRITE
        trapwrite: true
        calc: A=1
        methods: [x509]
        authorities: [LEAF]
        protocols: [TLS]
      - level: 1
        access: RPC
        uags: [operators]
        hags: [room]
        sags: [iocs]
        authorities:
          - {ROOT}
"""


def proved(account, *authority, **more):
    return Principal(account, "x509", authority or (ROOT,), protocol="tls", **more)


@pytest.mark.parametrize(
    ("asg", "who", "inputs", "access"),
    [
        ("other", proved("alice"), {}, "NONE"),
        ("ro", Principal("alice", "ca"), {}, "READ"),
        ("ro", Principal("zoe", "ca", roles=frozenset({"shift"})), {}, "READ"),
        ("ro", proved("alice"), {}, "NONE"),
        ("ro", Principal("bob", "ca"), {}, "NONE"),
        ("rw", proved("bob", "Leaf CA", "Middle", ROOT), {"A": 1.0}, "WRITE"),
        ("rw", proved("bob", "Leaf CA", "Middle", ROOT), {"A": 0.0}, "NONE"),
        ("rw", proved("bob", "Leaf CA", "Middle", ROOT), {}, "NONE"),
        ("rw", proved("bob", "Leaf CA", ROOT), {"A": 1.0}, "NONE"),
        ("rw", proved("alice", host="127.0.0.1", san=(("ip", "10.9.9.9"),)), {}, "RPC"),
        ("rw", proved("alice", host="console", san=(("dns", "a.example.org"),)), {}, "RPC"),
        ("rw", proved("alice", host="127.0.0.2", san=(("ip", "10.9.9.9"),)), {}, "NONE"),
        ("rw", proved("alice", host="127.0.0.1"), {}, "NONE"),
    ],
)
def test_yaml_says_the_same_as_the_classic_form(asg, who, inputs, access):
    security = load_acf(SITE, file="site.yaml")
    assert security.warnings == ()
    assert security.decide(asg, 0, who, inputs).access == access


def test_inputs_and_logging_are_read():
    security = load_acf(SITE)
    assert dict(security.group("rw").inputs) == {"A": "SYS:MODE", "B": "SYS:KEY"}
    assert security.decide("rw", 0, proved("bob", "Leaf CA", "Middle", ROOT), {"A": 1}).trapwrite


def test_a_common_name_that_is_not_declared_is_taken_for_a_root():
    security = load_acf(
        "asgs:\n- name: A\n  rules:\n  - level: 1\n    access: READ\n    authorities:\n    - Lab Root\n",
        file="a.yaml",
    )
    assert security.warnings == (
        "a.yaml:7: AUTHORITY 'Lab Root' is not declared: taken as the common name of a root",
    )
    assert security.decide("A", 0, proved("x", "Sub", "Lab Root")).read
    assert not security.decide("A", 0, proved("x", "Lab Root", "Another")).read
    assert not security.decide("A", 0, proved("x", "Lab Root 2")).read


_RULE = "asgs:\n- name: A\n  rules:\n  - level: 1\n    access: READ\n"


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("asgs: []\nusers: []\n", 2, "unknown key 'users'"),
        ("version: 2\nasgs: []\n", 1, "version 2"),
        ("kind: epics.db\nasgs: []\n", 1, "epics.acf"),
        ("uags: []\n", None, "'asgs' is missing"),
        ("asgs: []\n", None, "defines nothing"),
        ("asgs: 3\n", 1, "a list, found 3"),
        ("asgs:\n- A\n", 2, "keys and values"),
        ("asgs:\n- rules: []\n", 2, "'name' is missing"),
        ("asgs:\n- name: A\n- name: A\n", 3, "defined twice"),
        ("asgs:\n- name: A\n  rules:\n  - access: READ\n", 4, "'level' is missing"),
        ("asgs:\n- name: A\n  rules:\n  - level: high\n    access: READ\n", 4, "whole number"),
        ("asgs:\n- name: A\n  rules:\n  - level: 1\n    access: EXECUTE\n", 5, "not 'EXECUTE'"),
        (_RULE + "    trapwrite: 1\n", 6, "true or false"),
        (_RULE + "    uag: [x]\n", 6, "unknown key 'uag'"),
        (_RULE + "    uags: [x]\n", 6, "not defined"),
        (_RULE + "    uags: []\n", 6, "empty"),
        (_RULE + "    methods:\n", 6, "empty"),
        (_RULE + "    methods: x509\n", 6, "a list"),
        (_RULE + "    protocols: [udp]\n", 6, "tls or tcp"),
        (_RULE + "    calc: A=\n", 6, "operand"),
        (_RULE + "    calc: true\n", 6, "expected text"),
        (_RULE + "  links:\n  - INPZ: x\n", 7, "INPA to INPU"),
        (_RULE + "  links:\n  - INPA\n", 7, "an input and its PV"),
        ("uags:\n- name: u\n  users:\n  - 1.50\nasgs: []\n", 4, "quotes"),
        ("uags:\n- name: u\n  users:\n  - [x]\nasgs: []\n", 4, "a list"),
        ("sags:\n- name: s\n  ip: [x]\nasgs: []\n", 3, "neither an IP address"),
        ("asgs:\n- name: $(NAME)\n", 2, "not defined"),
        ("asgs:\n- name: A\n  name: B\n", 3, "given twice"),
        ("asgs: [\n", 2, "YAML"),
    ],
)
def test_an_error_has_its_line_and_its_reason(text, line, why):
    with pytest.raises(AccessFileError, match=why) as caught:
        load_acf(text, file="a.yaml")
    assert caught.value.file == "a.yaml"
    assert caught.value.line == line


def test_without_positions_an_error_names_the_path():
    with pytest.raises(AccessFileError, match=r"asgs\.0\.rules\.0\.uag: unknown key"):
        acf_from_tree({"asgs": [{"name": "A", "rules": [{"level": 1, "access": "READ", "uag": ["x"]}]}]})


def test_macros_are_expanded_in_values():
    security = load_acf("asgs:\n- name: $(NAME)\n  inps: {INPA: '${P=SYS}:MODE'}\n", macros={"NAME": "A"})
    assert dict(security.groups["A"].inputs) == {"A": "SYS:MODE"}


def test_the_gateways_words_are_read_for_a_gateway_only():
    text = _RULE.replace("READ", "PUT")
    assert load_acf(text, gateway=True).decide("A", 0, Principal()).write
    with pytest.raises(AccessFileError, match="not 'PUT'"):
        load_acf(text)


@pytest.mark.parametrize(
    ("text", "yaml"),
    [
        ("# EPICS YAML\n", True),
        ("\n\n# other\n---\n", True),
        ("uags:\n", True),
        ("$schema: x\n", True),
        ("version: 1.0\n", True),
        ("ASG(A)\n", False),
        ("# comment: x\nUAG(x) {a:b}\n", False),
        ("ASG (A) { INPA(x:y) }", False),
        ("", False),
        ("\n" * 100000 + " " * 100000 + "x", False),
    ],
)
def test_the_form_is_told_by_the_content(text, yaml):
    assert looks_like_yaml(text) is yaml


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.sampled_from(["A", "READ", "", "x", "$(A", "tls"])
)
_keys = st.sampled_from(
    ["version", "kind", "authorities", "uags", "hags", "sags", "asgs", "name", "id", "users", "hosts", "ip", "dns", "links",
     "inps", "rules", "level", "access", "trapwrite", "methods", "protocols", "calc", "INPA", "bogus"]
)  # fmt: skip
_trees = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_keys, inner, max_size=6),
    max_leaves=25,
)


@settings(max_examples=500, deadline=None)
@given(_trees | st.fixed_dictionaries({"asgs": _trees}))
def test_any_tree_is_an_access_security_file_or_an_access_file_error(tree):
    with contextlib.suppress(AccessFileError):
        assert isinstance(acf_from_tree(tree), AccessSecurity)


def test_authorities_nest_only_so_deep():
    tree = {"name": "x"}
    for _ in range(50):
        tree = {"name": "x", "authorities": [tree]}
    with pytest.raises(AccessFileError, match="deep"):
        acf_from_tree({"authorities": [tree], "asgs": []})
