"""Files that come with the package, and examples of the reference page, mean what they say."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from appliance.acf import Principal, load_acf

ROOT = "EPICS Root Certificate Authority"
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "access-security.md"


def proved(account, root=ROOT):
    return Principal(account, "x509", (root,), protocol="tls")


@pytest.mark.parametrize(
    ("asg", "who", "access"),
    [
        ("DEFAULT", Principal("anonymous"), "READ"),
        ("DEFAULT", Principal("client", "ca"), "READ"),
        ("DEFAULT", proved("client"), "WRITE"),
        ("DEFAULT", proved("client", "Another"), "READ"),
        ("RO", proved("admin"), "READ"),
        ("SPECIAL", proved("client"), "READ"),
        ("SPECIAL", proved("operator"), "WRITE"),
        ("SPECIAL", Principal("operator", "ca", protocol="tls"), "READ"),
    ],
)
def test_quick_start_grants_special_records_to_proved_operators_only(asg, who, access):
    text = files("appliance.quickstart").joinpath("data/ioc.acf").read_text()
    security = load_acf(text)
    assert security.warnings == ()
    decision = security.decide(asg, 1, who)
    assert (decision.access, decision.trapwrite) == (access, access == "WRITE")


def test_quick_start_takes_root_and_operator_from_macros():
    text = files("appliance.quickstart").joinpath("data/ioc.acf").read_text()
    security = load_acf(text, macros={"ROOT": "Lab", "OPERATOR": "zoe"})
    assert security.decide("SPECIAL", 1, proved("zoe", "Lab")).write
    assert not security.decide("SPECIAL", 1, proved("operator")).write


@pytest.mark.parametrize("form", ["text", "yaml"])
def test_both_examples_of_the_reference_page_load_and_let_an_operator_write(form):
    example, *_ = re.findall(rf"^```{form}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    security = load_acf(example)
    assert security.warnings == ()
    assert security.decide("BEAM", 1, proved("alice"), {"A": 1.0}).write
    assert not security.decide("BEAM", 1, proved("bob"), {"A": 1.0}).write
    assert not security.decide("BEAM", 1, proved("alice"), {"A": 0.0}).write
