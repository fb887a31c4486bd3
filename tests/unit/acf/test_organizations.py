"""A name is somebody only together with who vouches for it: organisations and authorities in UAGs."""

import json

import pytest

from appliance.acf import Principal, load_acf
from appliance.cli.acf_test import main
from appliance.errors import AccessFileError
from appliance.pva.credentials import Credentials

ROOT = "EPICS Root Certificate Authority"
HOME = "localhost"
GUEST = "guest-idp.example"


def certified(name, organization=HOME, *, home=HOME, root=ROOT, roles=(), unit=""):
    subject = (("CN", name), ("O", organization), ("OU", unit))
    return Credentials(
        method="x509", account=name, peer="10.0.0.7:1", authority=root, roles=frozenset(roles), is_tls=True,
        subject=tuple(part for part in subject if part[1]), home=home,
    )  # fmt: skip


def writes(uag, peer, organizations=(), *, before=""):
    security = load_acf(
        f"{before}UAG(operators) {{{uag}}} ASG(DEFAULT) {{ RULE(1, WRITE) {{ UAG(operators) }} }}"
    )
    return security.decide("DEFAULT", 1, Principal.of(peer, organizations)).write


def test_a_name_alone_means_nobody_of_another_organization():
    assert writes("operator", certified("operator"))
    assert not writes("operator", certified("operator", GUEST))
    assert not writes('"x509/operator"', certified("operator", GUEST))
    assert not writes('"role/shift"', certified("operator", GUEST, roles=["shift"]))
    assert writes('"role/shift"', certified("operator", roles=["shift"]))


def test_who_was_named_by_the_authority_itself_is_at_home():
    assert writes("operator", certified("operator", ""))
    assert not writes("operator", certified("operator", GUEST, home=""))
    assert writes("operator", certified("operator", "", home=""))


def test_a_name_alone_means_nobody_of_another_authority():
    assert not writes("operator", certified("operator", HOME, home=None))
    assert not writes("operator", certified("operator", "", home=None))
    assert not writes('"CN=operator, O=localhost"', certified("operator", HOME, home=None))
    assert not writes("operator", certified("operator", HOME, home=None), [HOME, "*"])


def test_organizations_can_be_called_the_servers_own():
    assert writes("operator", certified("operator", GUEST), [GUEST])
    assert writes("operator", certified("operator", GUEST), ["*"])
    assert not writes("operator", certified("operator", GUEST + ".evil.example"), [GUEST])


def test_a_certificate_with_two_organizations_is_of_none():
    both = certified("operator")._replace(subject=(("CN", "operator"), ("O", HOME), ("O", GUEST)))
    assert not writes("operator", both)
    assert not writes(f'"CN=operator, O={HOME}"', both)
    assert not writes(f'"CN=operator, O={GUEST}"', both)


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        (f"CN=operator, O={GUEST}", ["guest"]),
        (f"O={GUEST}", ["guest", "other"]),
        ("CN=operator", ["home"]),
        ("CN=operator,O=*", ["home", "guest"]),
        ("cn=operator , o = *, ou=shift", ["guest"]),
        ("OU=shift", []),
        ("O=*, OU=shift", ["guest"]),
        ("CN=oper", []),
    ],
)
def test_a_uag_can_say_what_the_certificate_must_say(entry, names):
    peers = {
        "home": certified("operator"),
        "guest": certified("operator", GUEST, unit="shift"),
        "other": certified("visitor", GUEST),
    }
    assert [name for name, peer in peers.items() if writes(f'"{entry}"', peer)] == names


def test_only_a_proved_certificate_is_asked_for_its_subject():
    claimed = certified("operator")._replace(method="ca")
    assert not writes(f'"CN=operator, O={HOME}"', claimed)
    assert not writes(f'"CN=operator, O={HOME}"', certified("operator")._replace(is_tls=False))
    # Who calls itself so is not it either.
    assert not writes(
        f'"CN=operator, O={HOME}"',
        Credentials(method="ca", account=f"CN=operator, O={HOME}", peer="10.0.0.7:1"),
    )


def test_a_uag_can_say_which_authority_vouches_for_it():
    partner = certified("operator", HOME, home=None, root="Partner Root")
    before = 'AUTHORITY(PARTNER, "Partner Root") '
    assert writes('"CN=operator, AUTHORITY=PARTNER"', partner, before=before)
    assert not writes('"CN=operator, AUTHORITY=PARTNER"', certified("operator"), before=before)
    assert not writes('"CN=operator, O=elsewhere, AUTHORITY=PARTNER"', partner, before=before)
    assert not writes(
        '"CN=operator, AUTHORITY=PARTNER"', partner._replace(authority="Partner Root 2"), before=before
    )


def test_a_comma_in_a_value_is_written_with_a_backslash():
    assert writes(r'"CN=operator, O=Lab\, Inc."', certified("operator", "Lab, Inc."))
    assert not writes(r'"CN=operator, O=Lab\, Inc."', certified("operator", "Lab"))


@pytest.mark.parametrize(
    "entry",
    [
        "CN=",
        "O=, CN=a",
        "CN=a, CN=b",
        "CN=a,",
        "CN=a, X=b",
        "CN=a b, and more",
        "C=US",
        "CN=*",
        "AUTHORITY=X",
    ],
)
def test_conditions_that_are_not_understood_are_refused(entry):
    with pytest.raises(AccessFileError, match=r"UAG\(operators\)|'CN=a,' in"):
        writes(f'"{entry}"', certified("operator"))


def test_the_yaml_form_says_it_likewise():
    text = (
        "version: 1.0\nuags:\n  - name: operators\n    users: [alice, 'CN=operator, O=guest-idp.example']\n"
        "asgs:\n  - name: DEFAULT\n    rules: [{level: 1, access: WRITE, uags: [operators]}]\n"
    )
    security = load_acf(text)
    for name, organization, may in (
        ("alice", HOME, 1),
        ("operator", HOME, 0),
        ("operator", GUEST, 1),
        ("alice", GUEST, 0),
    ):
        assert security.decide("DEFAULT", 1, Principal.of(certified(name, organization))).write is bool(may)


def test_a_refusal_says_what_to_write():
    security = load_acf("UAG(operators) {operator} ASG(DEFAULT) { RULE(1, WRITE) { UAG(operators) } }")
    (why,) = security.decide("DEFAULT", 1, Principal.of(certified("operator", GUEST))).why
    assert "'operator' of O=guest-idp.example (x509) is not in it" in why
    assert '"CN=operator, O=guest-idp.example"' in why


def test_acf_test_shows_organizations(tmp_path, capsys):
    file = tmp_path / "a.acf"
    file.write_text(
        'UAG(operators) {operator, "CN=guest, O=b.example"} ASG(DEFAULT) { RULE(1, WRITE) { UAG(operators) } }'
    )
    ask = [str(file), "--asg", "DEFAULT", "--method", "x509", "--require", "WRITE"]
    assert main([*ask, "--user", "operator"]) == 0
    assert main([*ask, "--user", "operator", "--organization", "b.example", "--home", "a.example"]) == 3
    assert "x509/operator of O=b.example over tls in ASG(DEFAULT): NONE" in capsys.readouterr().out
    assert main([*ask, "--user", "operator", "--organization", "b.example", "--home", "b.example"]) == 0
    assert main([*ask, "--user", "guest", "--organization", "b.example", "--home", "a.example"]) == 0
    capsys.readouterr()
    assert main([str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["users"] == {
        "operators": ["operator", "CN=guest, O=b.example"]
    }
    with pytest.raises(SystemExit):
        main([str(file), "--asg", "DEFAULT", "--user", "a", "--organization", "b.example"])
