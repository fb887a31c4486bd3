"""Alternative names: which are names, in which form, and how the certificate and the database have them."""

import pytest

from appliance.certs.san import (
    MOST_NAMES,
    San,
    canonical,
    in_certificate,
    parse_san,
    read_san,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ip=10.0.0.1", San("ip", "10.0.0.1")),
        ("ip=::ffff:10.0.0.1", San("ip", "10.0.0.1")),
        ("ip=2001:0DB8:0:0::1", San("ip", "2001:db8::1")),
        ("dns=IOC7.Lab.example.org", San("dns", "ioc7.lab.example.org")),
        ("dns=ioc7", San("dns", "ioc7")),
        ("hostname=IOC-7", San("hostname", "ioc-7")),
        (" DNS = a.b ", San("dns", "a.b")),
        (f"dns={'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}", San("dns", f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}")),
    ],
)  # fmt: skip
def test_a_name_has_one_form(text, name):
    assert parse_san(text) == name
    assert parse_san(str(name)) == name
    assert read_san(*name) == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no type"),
        ("ioc7.lab", "has no type"),
        ("uri=urn:x", "has the type 'uri'"),
        ("email=a@b", "write ip=ADDRESS, dns=NAME or hostname=LABEL"),
        ("ip=10.0.0.256", "no IPv4 or IPv6 address"),
        ("ip=010.0.0.1", "no IPv4 or IPv6 address"),
        ("ip=10.0.0.0/8", "no IPv4 or IPv6 address"),
        ("ip=fe80::1%eth0", "no IPv4 or IPv6 address"),
        ("ip=ioc7", "no IPv4 or IPv6 address"),
        ("dns=10.0.0.1", "write ip=10.0.0.1"),
        ("hostname=::1", "write ip=::1"),
        ("hostname=a.b", "has a dot"),
        ("dns=", "no host name"),
        ("dns=a..b", "no host name"),
        ("dns=a.b.", "no host name"),
        ("dns=.a", "no host name"),
        ("dns=*.lab", "no host name"),
        ("dns=a_b", "no host name"),
        ("dns=-a", "no host name"),
        ("dns=a-.b", "no host name"),
        ("dns=h\xf6st", "no host name"),
        ("dns=a b", "no host name"),
        ("dns=a\0b", "no host name"),
        (f"hostname={'a' * 64}", "no host name"),
        (f"dns={'.'.join(['a' * 63] * 4)}", "no host name"),
        ("dns=" + "a" * 100_000, "no host name"),
    ],
)
def test_what_is_no_name_is_refused_in_one_short_sentence(text, why):
    with pytest.raises(ValueError, match=why) as refused:
        parse_san(text)
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


def test_equal_sets_are_equal_and_doubles_and_too_many_are_refused():
    a, b = San("dns", "a"), San("ip", "10.0.0.1")
    assert canonical([b, a]) == canonical((a, b)) == (a, b)
    with pytest.raises(ValueError, match="dns=a is there twice"):
        canonical([a, b, a])
    with pytest.raises(ValueError, match=f"at most {MOST_NAMES}"):
        canonical(San("dns", f"n{number}") for number in range(MOST_NAMES + 1))


def test_a_certificate_has_a_host_name_as_a_name_in_dns_once():
    names = canonical([San("hostname", "ioc7"), San("dns", "ioc7"), San("ip", "10.0.0.1")])
    assert in_certificate(names) == (("dns", "ioc7"), ("ip", "10.0.0.1"))
