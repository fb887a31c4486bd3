"""PKCS#11 URIs: RFC 7512 sections 2.2 to 2.4."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.pkcs11_uri import parse_pkcs11_uri
from appliance.errors import ConfigurationError

MODULE = "?module-path=/usr/lib/softhsm/libsofthsm2.so"


def test_all_parts_are_read():
    text = (
        "pkcs11:token=The%20Site%3B%201;manufacturer=SoftHSM%20project;model=SoftHSM%20v2;serial=0a1b;slot-id=17;"
        "slot-description=S;slot-manufacturer=M;object=k%C3%BCche;id=%00%01a;type=private"
        "?module-path=/usr/lib/a%20b.so&pin-source=file:/run/pin"
    )
    uri = parse_pkcs11_uri(text)
    assert uri._replace(shown="") == (
        "/usr/lib/a b.so",
        "The Site; 1",
        "SoftHSM project",
        "SoftHSM v2",
        "0a1b",
        17,
        "S",
        "M",
        "küche",
        b"\0\1a",
        "/run/pin",
        "",
    )
    assert str(uri) == text.partition("?")[0]


@pytest.mark.parametrize("written", ["file:/run/pin", "file:///run/pin", "/run/pin"])
def test_the_file_of_the_pin_is_named_in_three_ways(written):
    assert parse_pkcs11_uri(f"pkcs11:object=ca{MODULE}&pin-source={written}").pin_source == "/run/pin"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "named by a PKCS#11 URI"),
        ("awskms:key", "named by a PKCS#11 URI"),
        ("PKCS11:object=ca" + MODULE, "named by a PKCS#11 URI"),
        ("pkcs11:object=ca", "which library"),
        ("pkcs11:object=ca?module-path=softhsm.so", "which library"),
        ("pkcs11:token=t" + MODULE, "names no key"),
        ("pkcs11:object=" + MODULE, "names no key"),
        ("pkcs11:" + MODULE, "names no key"),
        ("pkcs11:object=ca;object=cb" + MODULE, "object twice"),
        ("pkcs11:object=ca;x-vendor=1" + MODULE, "'x-vendor', which is not understood"),
        ("pkcs11:object=ca;" + MODULE, "'', which is not understood"),
        ("pkcs11:object" + MODULE, "'object', which is not understood"),
        ("pkcs11:object=ca;type=cert" + MODULE, "no private key"),
        ("pkcs11:object=c a" + MODULE, "written as %xx"),
        ("pkcs11:object=c%2" + MODULE, "written as %xx"),
        ("pkcs11:object=kü" + MODULE, "written as %xx"),
        ("pkcs11:object=%ff" + MODULE, "not printable text"),
        ("pkcs11:object=%00" + MODULE, "not printable text"),
        ("pkcs11:object=ca;slot-id=x" + MODULE, "must be a number"),
        ("pkcs11:object=ca;library-version=3" + MODULE, "by module-path alone"),
        ("pkcs11:object=ca" + MODULE + "&module-name=softhsm", "by its path"),
        ("pkcs11:object=ca" + MODULE + "&pin-source=%7Cgetpin", "programs are not run"),
        ("pkcs11:object=ca" + MODULE + "&pin-source=pin", "must name a file"),
        ("pkcs11:object=ca" + MODULE + "&unknown=1", "not understood"),
        ("pkcs11:object=" + "a" * 1024 + MODULE, "at most 1024"),
    ],
    ids=range(25),
)
def test_everything_else_is_refused_with_a_sentence(text, why):
    with pytest.raises(ConfigurationError, match=why) as caught:
        parse_pkcs11_uri(text)
    assert caught.value.key == "ca_key"


@pytest.mark.parametrize(
    ("name", "why"), [("pin-value", "must not stand in a setting"), ("pin_value", "which is not understood")]
)
def test_a_pin_in_the_uri_is_refused_and_not_repeated(name, why):
    with pytest.raises(ConfigurationError, match=why) as caught:
        parse_pkcs11_uri(f"pkcs11:object=ca{MODULE}&{name}=87654321")
    assert "87654321" not in str(caught.value)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(ConfigurationError):
        parse_pkcs11_uri("pkcs11:" + text)
