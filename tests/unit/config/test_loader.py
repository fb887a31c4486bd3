"""Configuration files: what is accepted, and where a fault is said to be."""

import contextlib
import json
import os
from typing import Annotated

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config.duration import Duration
from appliance.config.loader import (
    Settings,
    default,
    dump,
    load,
    load_document,
    loads,
    loads_document,
    schema,
)
from appliance.config.secret import FilePath, Secret
from appliance.config.tree import MAXIMUM_DEPTH, MAXIMUM_SIZE, read_tree
from appliance.errors import ConfigurationError


class Route(Settings, frozen=True, kw_only=True):
    name: str
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 5075


class Site(Settings, frozen=True, kw_only=True):
    title: str = ""
    ratio: float = 1.0
    debug: bool = False
    keychain: FilePath = default(FilePath(""))
    validity: Duration = default(Duration(6))
    password: Secret = default(Secret())
    routes: list[Route] = []
    named: dict[str, Route] = {}
    main: Route | None = None


def refused(text, **more):
    with pytest.raises(ConfigurationError) as caught:
        loads(text, Site, file="/etc/site.yml", **more)
    return str(caught.value)


def test_a_file_becomes_a_frozen_struct(tmp_path):
    path = tmp_path / "site.yml"
    path.write_text("""\
# a comment
title: "Main: hall"
ratio: 2
debug: YES
keychain: keys/server.p12
validity: 30
routes:
  - {name: a}
  - name: b
    port: 0
main: null
""")
    site = load(path, Site)
    assert site == Site(
        title="Main: hall",
        ratio=2.0,
        debug=True,
        keychain=FilePath(f"{tmp_path}/keys/server.p12"),
        validity=Duration(0, 1800),
        routes=[Route(name="a"), Route(name="b", port=0)],
    )
    with pytest.raises(AttributeError):
        site.title = "x"


def test_an_empty_file_is_all_defaults():
    assert loads("# nothing\n", Site) == Site()


@pytest.mark.parametrize(("text", "message"), [
    ("title: a\ntitel: b\n", "/etc/site.yml:2: titel: unknown key; did you mean title? Known are "),
    ("title: a\n\ntitle: b\n", "/etc/site.yml:3: title: given twice, first in line 1"),
    ("ratio: x\n", "/etc/site.yml:1: ratio: expected a number, not text"),
    ("title: 3\n", "/etc/site.yml:1: title: expected text, not a number; write: title: "),
    ("title: NO\n", "/etc/site.yml:1: title: expected text, not true or false; write it in quotes"),
    ("debug: 'yes'\n", "/etc/site.yml:1: debug: expected true or false, not text"),
    ("routes:\n  - name: a\n  - nam: b\n    name: c\n", "/etc/site.yml:3: routes[1].nam: unknown key; did you mean name? Known are name, port"),
    ("routes:\n  - name: a\n  -\n    port: 1\n", "/etc/site.yml:4: routes[1]: missing: name"),
    ("routes:\n  - name: a\n    port: 70000\n", "/etc/site.yml:3: routes[0].port: expected a number of at most 65535, not 70000"),
    ("named:\n  x: {name: 1}\n", "/etc/site.yml:2: named.x.name: expected text, not a number"),
    ("main:\n  name: a\n  prt: 1\n", "/etc/site.yml:3: main.prt: unknown key; did you mean port? Known are name, port"),
    ("validity: 1x\n", "/etc/site.yml:1: validity: '1x' is not a duration"),
    ("validity: [1]\n", "/etc/site.yml:1: validity: expected text, not a list"),
    ("- a\n", "/etc/site.yml: expected a mapping with the keys title, "),
    ("a: [1\nb: 2\n", "/etc/site.yml:2: not valid YAML: "),
    ("a: b: c\n", "/etc/site.yml:1: not valid YAML: "),
    ("title: \x07\n", "/etc/site.yml:1: not valid YAML: "),
    ("title: !!python/object/apply:os.system ['id']\n", "/etc/site.yml:1: title: tags (tag:yaml.org,2002:python/"),
    ("title: !!str 3\n", "/etc/site.yml:1: title: tags (tag:yaml.org,2002:str) are not allowed"),
    ("title: &a x\n", "/etc/site.yml:1: title: anchors (&name) are not allowed"),
    ("title: a\nnamed: *a\n", "/etc/site.yml:2: named: aliases (*name) are not allowed"),
    ("main:\n  <<: {name: a}\n", "/etc/site.yml:2: main: merge keys (<<) are not allowed"),
    ("? [a]\n: b\n", "/etc/site.yml:1: a key must be plain text"),
    ("title: a\n---\ntitle: b\n", "/etc/site.yml:2: only one document is allowed in a file"),
    ("ratio: " + "9" * 5000, "/etc/site.yml:1: ratio: the number has too many digits"),
    ("password: hunter2\n", "/etc/site.yml:1: password: a secret must not stand in the file"),
    ("keychain: ${credential:a/b}\n", "/etc/site.yml:1: keychain: 'a/b' is not the name of a credential"),
    ("keychain: ${file:x}\n", "/etc/site.yml:1: keychain: ${file:...} needs an absolute path"),
])  # fmt: skip
def test_a_fault_is_told_with_file_line_key_and_reason(text, message):
    assert refused(text, environ={}).startswith(message)


def test_a_secret_that_stands_in_the_file_is_not_repeated():
    assert "hunter2" not in refused("password: hunter2\n")


def test_all_faults_are_told_at_once_in_the_order_of_lines():
    lines = refused("titel: x\nratio: a\nroutes:\n- {nam: x, port: b}\n").splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["/etc/site.yml:1", "titel"],
        ["/etc/site.yml:2", "ratio"],
        ["/etc/site.yml:4", "routes[0].nam"],
        ["/etc/site.yml:4", "routes[0].port"],
        ["/etc/site.yml:4", "routes[0]"],
    ]


def test_a_file_full_of_faults_gives_a_message_of_bounded_length():
    message = refused("".join(f"k{number}: 1\n" for number in range(5000)))
    assert message.splitlines()[-1] == "/etc/site.yml: and 4980 more"
    assert len(message) < 10000


@pytest.mark.parametrize(("text", "value"), [
    ("12:30:00", "12:30:00"), ("0600", "0600"), ("2026-01-01", "2026-01-01"), ("1_000", "1_000"), ("0x1F", 31),
    ("-3", -3), ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0), ("~", None), ("on", True), ("Off", False), ("oN", "oN"),
    ("'1'", "1"), ('"no"', "no"), ("1e", "1e"), (".", "."), ("=", "="), ("|\n  a\n  b\n", "a\nb\n"),
])  # fmt: skip
def test_how_plain_text_is_read(text, value):
    tree, _ = read_tree(f"a: {text}", "f")
    assert tree == {"a": value}
    assert type(tree["a"]) is type(value)


def test_depth_is_bounded():
    deep = "[" * MAXIMUM_DEPTH + "]" * MAXIMUM_DEPTH
    assert read_tree(deep, "f")[0] is not None
    with pytest.raises(ConfigurationError, match="nested mappings"):
        read_tree(f"[{deep}]", "f")
    with pytest.raises(ConfigurationError, match="nested mappings"):
        read_tree("[" * 100_000, "f")


def test_size_is_bounded(tmp_path):
    with pytest.raises(ConfigurationError, match="larger than"):
        read_tree("#" * (MAXIMUM_SIZE + 1), "f")
    path = tmp_path / "big"
    path.write_bytes(b"#" * (MAXIMUM_SIZE + 1))
    with pytest.raises(ConfigurationError, match="larger than"):
        load(path, Site)


def test_a_bomb_of_aliases_is_refused_at_once():
    bomb = "a0: &a0 x\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(30))
    with pytest.raises(ConfigurationError, match="anchors"):
        read_tree(bomb, "f")  # without the refusal this ends never


@pytest.mark.parametrize("make", [
    lambda path: None,
    lambda path: path.mkdir(),
    os.mkfifo,
    lambda path: path.write_bytes(b"title: \xff\n"),
    lambda path: (path.write_bytes(b"title: x\n"), path.chmod(0o666)),
], ids=["missing", "directory", "fifo", "not UTF-8", "everybody may write"])  # fmt: skip
def test_a_file_that_cannot_be_trusted_or_read_is_refused(make, tmp_path):
    path = tmp_path / "x.yml"
    make(path)
    with pytest.raises(ConfigurationError) as caught:
        load(path, Site)
    assert str(caught.value).startswith(str(path))


def test_positions_can_be_asked_for(tmp_path):
    document = loads_document("title: a\nroutes:\n  - name: b\n    port: 3\n", Site, file="f.yml")
    assert document.where("routes", 0, "port") == "f.yml:4"
    assert document.where("ratio") == "f.yml"
    assert str(document.error("taken", "routes", 0, "port")) == "f.yml:4: routes[0].port: taken"
    assert document.section("routes", 0).where("port") == "f.yml:4"
    assert document.section("main").value == {}


def test_secrets_are_read_from_files_and_credentials(tmp_path):
    path = tmp_path / "pwd"
    path.write_text("geheim\n")
    path.chmod(0o400)
    by_file = loads(f"password: ${{file:{path}}}", Site)
    by_credential = loads(
        "password: ${credential:pwd}", Site, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}
    )
    assert by_file.password.reveal() == by_credential.password.reveal() == "geheim"
    assert "geheim" not in repr(by_file)
    assert loads(dump(by_file), Site).password.reveal() == "geheim"
    assert "geheim" not in dump(by_file)
    with pytest.raises(ConfigurationError, match="written down"):
        dump(Site(password=Secret("x")))
    assert loads("password: ''", Site).password == Secret()
    assert "is not set" in refused("password: ${credential:pwd}", environ={})
    path.chmod(0o444)
    assert "/etc/site.yml:1: password: " in refused(f"password: ${{file:{path}}}")


def test_a_struct_that_takes_unknown_keys_is_a_mistake_of_its_author():
    class Loose(msgspec.Struct):
        a: int = 0

    class Outer(Settings, frozen=True, kw_only=True):
        inner: dict[str, Loose] = {}

    with pytest.raises(TypeError, match="Loose"):
        loads("", Outer)


def test_the_schema_is_json_and_forbids_unknown_keys():
    text = json.loads(json.dumps(schema(Site)))
    assert text["$defs"]["Site"]["additionalProperties"] is False
    assert "credential" in text["$defs"]["Site"]["properties"]["password"]["pattern"]


def test_a_schema_with_a_default_of_our_own_types_says_what_to_do():
    class Wrong(Settings, frozen=True, kw_only=True):
        validity: Duration = Duration(6)

    with pytest.raises(TypeError, match=r"default\(value\)"):
        schema(Wrong)


# Surrogates are no characters: they have no UTF-8 form.
_words = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["1e3", "0600", "yes", "NO", "null", "~", "12:30", "0x1f", "1.", "", " ", "<<", "-.5E+3"]
)


@given(
    title=_words,
    names=st.dictionaries(_words, _words, max_size=3),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
)
def test_what_is_dumped_is_read_back(title, names, ratio):
    site = Site(title=title, ratio=ratio, named={key: Route(name=value) for key, value in names.items()})
    assert loads(dump(site), Site) == site


_yaml = st.text() | st.text(
    alphabet=st.sampled_from("titlerous: {}[]-\n&*!|>'\"#,?%@`abc019.~<\t\0\ufeff\x85\ud800")
)


@settings(max_examples=300)
@given(_yaml)
def test_any_text_is_a_struct_or_a_configuration_error(text):
    with contextlib.suppress(ConfigurationError):
        loads(text, Site, environ={})


@given(st.binary(max_size=200))
def test_any_file_is_a_struct_or_a_configuration_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "x.yml"
    path.write_bytes(data)
    with contextlib.suppress(ConfigurationError):
        load_document(path, Site, environ={})
