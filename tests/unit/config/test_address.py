import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.address import Endpoint, parse_endpoint, parse_endpoints


@pytest.mark.parametrize(("text", "endpoint"), [
    ("host", Endpoint("host")),
    ("host.example.org:5075", Endpoint("host.example.org", 5075)),
    ("10.0.0.255", Endpoint("10.0.0.255")),
    ("10.0.0.255:0", Endpoint("10.0.0.255", 0)),
    ("::1", Endpoint("::1")),
    ("[::1]", Endpoint("::1")),
    ("[::1]:5076", Endpoint("::1", 5076)),
    ("[fe80::1%eth0]:5076", Endpoint("fe80::1%eth0", 5076)),
    ("224.0.0.128,1@eth0", Endpoint("224.0.0.128", None, 1, "eth0")),
    ("224.0.0.128:9,255", Endpoint("224.0.0.128", 9, 255)),
    ("224.0.0.128@127.0.0.1", Endpoint("224.0.0.128", None, None, "127.0.0.1")),
    ("[ff02::42:1]:7,2@eth1", Endpoint("ff02::42:1", 7, 2, "eth1")),
])  # fmt: skip
def test_the_forms_of_an_address(text, endpoint):
    """PVXS client::Config::addressList."""
    assert parse_endpoint(text) == endpoint
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(("text", "endpoint"), [
    ("pvas://gw:1", Endpoint("gw", 1, tls=True)), ("pva://[::1]/", Endpoint("::1")), ("pvas://gw/ignored:1", Endpoint("gw", tls=True)),
])  # fmt: skip
def test_a_name_server_may_be_a_uri(text, endpoint):
    assert parse_endpoint(text, uri=True) == endpoint
    with pytest.raises(ValueError, match="name servers"):
        parse_endpoint(text)


@pytest.mark.parametrize(("text", "why"), [
    ("", "names no host"), (":5", "names no host"), ("host:", "port"), ("host:x", "port"), ("host:65536", "port"),
    ("host:-1", "port"), ("host:\N{SUPERSCRIPT TWO}", "port"), ("[::1", "closing ]"), ("::1]", "bracket"), ("[::1]5", "only :port"),
    ("[host]", "IPv6"), ("a,256", "time to live"), ("a,", "time to live"), ("a@", "interface"),
    ("a@eth0,1", "before the @"), ("a\nb", "control"), ("a b", "blank"), ("http://x", "scheme"), ("a:b:c", "IPv6"), ("127.0.0.300", "IPv4"), ("1.2.3.4.5:5075", "IPv4"),
])  # fmt: skip
def test_a_bad_address_is_explained(text, why):
    with pytest.raises(ValueError, match=why):
        parse_endpoint(text, uri=True)


def test_duplicates_become_one_with_the_longest_time_to_live():
    """PVXS config.cpp: removeDups."""
    endpoints, faults = parse_endpoints(["224.0.0.1,1", "b", "224.0.0.1,9", "b", "224.0.0.1,3", "b:1"])
    assert endpoints == (Endpoint("224.0.0.1", None, 9), Endpoint("b"), Endpoint("b", 1))
    assert faults == []


@given(st.text(alphabet=st.sampled_from("ab1:.[],@/%ps \n")) | st.text())
def test_any_text_is_an_address_that_prints_as_itself_or_a_value_error(text):
    try:
        endpoint = parse_endpoint(text, uri=True)
    except ValueError:
        return
    assert parse_endpoint(str(endpoint), uri=True) == endpoint
