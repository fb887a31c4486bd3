"""What a principal may do: SPVA specification section 11, and EPICS Base's access security."""

import math
from typing import NamedTuple

import pytest

from appliance.acf import AccessSecurity, Principal, load_acf
from appliance.pva.credentials import Credentials

ROOT = "EPICS Root Certificate Authority"


def proved(account, *authority, **more):
    return Principal(account=account, method="x509", authority=authority or (ROOT,), protocol="tls", **more)


def claimed(account, **more):
    return Principal(account=account, method="ca", **more)


NOBODY = Principal("anonymous", "anonymous")

# The same rules as an IOC of the reference implementation's tests has, in our own words: a group that everybody
# may read, and one that two named people may write if a certificate of the site's root proves who they are.
SITE = f"""
AUTHORITY(SITE_ROOT, "{ROOT}")
UAG(owners) {{ "george" }}
UAG(helpers) {{ "michael" }}
ASG(RO) {{ RULE(1, READ, TRAPWRITE) }}
ASG(SPECIAL) {{
    RULE(1, WRITE, TRAPWRITE) {{
        UAG(owners)
        UAG(helpers)
        AUTHORITY(SITE_ROOT)
        METHOD(x509)
        PROTOCOL(tls)
    }}
}}
"""


@pytest.mark.parametrize(
    ("asg", "asl", "who", "access", "trapwrite"),
    [
        ("RO", 0, NOBODY, "READ", True),
        ("RO", 1, claimed("george"), "READ", True),
        ("RO", 2, claimed("george"), "NONE", False),
        ("SPECIAL", 0, proved("george"), "WRITE", True),
        ("SPECIAL", 1, proved("michael"), "WRITE", True),
        ("SPECIAL", 2, proved("george"), "NONE", False),
        ("SPECIAL", 0, proved("mallory"), "NONE", False),
        ("SPECIAL", 0, claimed("george"), "NONE", False),
        ("SPECIAL", 0, claimed("george", protocol="tls"), "NONE", False),
        ("SPECIAL", 0, NOBODY, "NONE", False),
        ("SPECIAL", 0, proved("george", "Another Root"), "NONE", False),
        ("SPECIAL", 0, proved("george", ROOT + " 2"), "NONE", False),
        ("SPECIAL", 0, proved("george", "EPICS"), "NONE", False),
        ("SPECIAL", 0, proved("george", "Site CA", ROOT), "WRITE", True),
        ("SPECIAL", 0, proved("george", ROOT, "Another Root"), "NONE", False),
        ("SPECIAL", 0, proved("george")._replace(authority=()), "NONE", False),
        ("SPECIAL", 0, proved("george")._replace(protocol="tcp"), "NONE", False),
        ("DEFAULT", 0, proved("george"), "NONE", False),
        ("no such group", 0, proved("george"), "NONE", False),
    ],
)
def test_site_file_grants_exactly_what_it_says(asg, asl, who, access, trapwrite):
    decision = load_acf(SITE, file="site.acf").decide(asg, asl, who)
    assert (decision.access, decision.trapwrite) == (access, trapwrite)
    assert decision.why


CHAINS = """
AUTHORITY(ROOT_A, "Root A") {
    AUTHORITY("Middle A") {
        AUTHORITY(CONTROLS, "Controls CA")
        AUTHORITY(BEAMLINE, "Beamline CA")
    }
}
AUTHORITY("Root B") { AUTHORITY(USERS_B, "Users CA") }
ASG(ROOT) { RULE(1, WRITE) { AUTHORITY(ROOT_A) } }
ASG(CONTROLS) { RULE(1, WRITE) { AUTHORITY(CONTROLS) } }
ASG(EITHER) { RULE(1, WRITE) { AUTHORITY(BEAMLINE, USERS_B) } }
ASG(NAMED) { RULE(1, WRITE) { AUTHORITY("Users CA") } }
"""


@pytest.mark.parametrize(
    ("asg", "chain", "granted"),
    [
        ("ROOT", ("Root A",), True),
        ("ROOT", ("Controls CA", "Middle A", "Root A"), True),
        ("ROOT", ("Controls CA", "Middle A", "Root B"), False),
        ("CONTROLS", ("Controls CA", "Middle A", "Root A"), True),
        ("CONTROLS", ("Shift CA", "Controls CA", "Middle A", "Root A"), True),
        ("CONTROLS", ("Controls CA", "Middle A", "Unnamed CA", "Root A"), True),
        ("CONTROLS", ("Beamline CA", "Middle A", "Root A"), False),
        ("CONTROLS", ("Controls CA", "Root A"), False),
        ("CONTROLS", ("Controls CA",), False),
        ("CONTROLS", ("Middle A", "Controls CA", "Root A"), False),
        ("EITHER", ("Beamline CA", "Middle A", "Root A"), True),
        ("EITHER", ("Users CA", "Root B"), True),
        ("EITHER", ("Users CA", "Root A"), False),
        ("EITHER", ("Root B",), False),
        ("NAMED", ("Users CA", "Root B"), True),
        ("NAMED", ("Users CA", "Root A"), False),
    ],
)
def test_authority_is_the_whole_chain_from_the_root(asg, chain, granted):
    security = load_acf(CHAINS)
    assert security.warnings == ()
    assert security.decide(asg, 0, proved("x", *chain)).write is granted


def test_authority_means_nothing_without_a_certificate():
    security = load_acf(CHAINS)
    for who in (
        claimed("x", authority=("Root A",), protocol="tls"),
        proved("x", "Root A")._replace(protocol="tcp"),
    ):
        assert security.decide("ROOT", 0, who).access == "NONE"


@pytest.mark.parametrize(
    ("condition", "who", "granted"),
    [
        ("METHOD(x509)", proved("u"), True),
        ("METHOD(X509)", proved("u"), True),
        ('METHOD("ca", "anonymous")', claimed("u"), True),
        ('METHOD("ca", "anonymous")', NOBODY, True),
        ('METHOD("ca", "anonymous")', proved("u"), False),
        ("METHOD(x509)", claimed("u", protocol="tls"), False),
        ("METHOD(x509)", proved("u")._replace(protocol="tcp"), False),
        ("PROTOCOL(tls)", claimed("u", protocol="tls"), True),
        ("PROTOCOL(TLS)", proved("u"), True),
        ("PROTOCOL(tls)", claimed("u"), False),
        ('PROTOCOL("TCP")', claimed("u"), True),
        ("PROTOCOL(tcp)", proved("u"), False),
        ("UAG(people)", claimed("alice"), True),
        ("UAG(people)", proved("alice"), True),
        ("UAG(people)", claimed("Alice"), False),
        ("UAG(people)", claimed("zoe", roles=frozenset({"wheel"})), True),
        ("UAG(people)", claimed("zoe", roles=frozenset({"users"})), False),
        ("UAG(people)", claimed("role/wheel"), False),
        ("UAG(people)", proved("role/wheel"), False),
        ("UAG(people)", Principal("wheel", "role", protocol="tls"), False),
        ("UAG(people)", Principal("wheel", "x/role"), False),
        ("UAG(people)", claimed("x509/carol"), False),
        ("UAG(people)", proved("carol"), True),
        ("UAG(people)", proved("x509/carol"), False),
        ("UAG(people)", claimed("carol"), False),
        ("UAG(people)", proved("carol")._replace(protocol="tcp"), False),
        ("UAG(people)", proved("alice")._replace(protocol="tcp"), False),
        ("UAG(people)", claimed("dan"), True),
        ("UAG(people)", claimed("DOMAIN/alice"), True),
        ("UAG(people)", proved("dan"), False),
        ("UAG(people)", proved("ca/dan"), False),
        ("UAG(people)", Principal("alice", "anonymous"), False),
        ("UAG(people)", claimed(""), False),
        ("UAG(strangers)", NOBODY, True),
        ("UAG(strangers)", Principal("", "anonymous"), True),
        ("HAG(room)", claimed("u", host="10.0.0.7"), True),
        ("HAG(room)", claimed("u", host="CONSOLE"), True),
        ("HAG(room)", claimed("u", host="::ffff:10.0.0.7"), True),
        ("HAG(room)", claimed("u", host="fe80:0::1"), True),
        ("HAG(room)", claimed("u", host="10.0.0.70"), False),
        ("HAG(room)", claimed("u"), False),
        ("SAG(hosts)", proved("u", san=(("ip", "10.1.2.3"),)), True),
        ("SAG(hosts)", proved("u", san=(("ip", "10.2.0.1"),)), False),
        ("SAG(hosts)", proved("u", san=(("ip", "172.16.0.1"),)), True),
        ("SAG(hosts)", proved("u", san=(("ip", "2001:DB8:0::1"),)), True),
        ("SAG(hosts)", proved("u", san=(("dns", "IOC7.lab.example.org"),)), True),
        ("SAG(hosts)", proved("u", san=(("dns", "lab.example.org"),)), False),
        ("SAG(hosts)", proved("u", san=(("uri", "10.1.2.3"), ("dns", "10.1.2.3"))), False),
        ("SAG(hosts)", proved("u", san=(("ip", "not an address"),)), False),
        ("SAG(hosts)", proved("u"), False),
        ("SAG(hosts)", claimed("u", protocol="tls", san=(("ip", "10.1.2.3"),)), False),
        ("UAG(people) HAG(room)", claimed("alice", host="10.0.0.7"), True),
        ("UAG(people) HAG(room)", claimed("alice", host="10.0.0.8"), False),
        ("UAG(people) HAG(room)", claimed("mallory", host="10.0.0.7"), False),
    ],
)
def test_a_rule_counts_only_for_whom_its_conditions_describe(condition, who, granted):
    security = load_acf(f"""
        UAG(people) {{ alice, "role/wheel", "x509/carol", "ca/dan" }}
        UAG(strangers) {{ anonymous }}
        HAG(room) {{ 10.0.0.7, Console, "FE80::0:1" }}
        SAG(hosts) {{ IP(10.1.0.0/16), IP(172.16.0.1), IP(2001:db8::1), DNS(ioc?.*.example.org) }}
        ASG(DEFAULT) {{ RULE(1, WRITE) {{ {condition} }} }}
    """)
    decision = security.decide("DEFAULT", 0, who)
    assert decision.write is granted
    assert ("does not apply" in decision.why[0]) is not granted


@pytest.mark.parametrize(
    ("rules", "gateway", "access"),
    [
        ("", False, "----"),
        ("RULE(1,NONE)", False, "----"),
        ("RULE(1,READ)", False, "r---"),
        ("RULE(1,WRITE)", False, "rw--"),
        ("RULE(1,RPC)", False, "rwp-"),
        ("RULE(1,RPC) RULE(1,READ)", False, "rwp-"),
        ("RULE(1,WRITE) RULE(1,RPC)", False, "rwp-"),
        ("RULE(1,NONE) RULE(1,READ)", False, "r---"),
        ("RULE(1,READ) RULE(1,NONE)", False, "r---"),
        ("RULE(1,READ)", True, "r---"),
        ("RULE(1,PUT)", True, "rw--"),
        ("RULE(1,RPC)", True, "r-p-"),
        ("RULE(1,WRITE)", True, "rwp-"),
        ("RULE(1,UNCACHED)", True, "---u"),
        ("RULE(1,WRITE) RULE(1,UNCACHED)", True, "rwpu"),
        ("RULE(1,PUT) RULE(1,RPC)", True, "rwp-"),
    ],
)
def test_the_highest_access_of_all_rules_is_granted(rules, gateway, access):
    body = f"{{ {rules} }}" if rules else ""
    decision = load_acf(f"ASG(DEFAULT) {body}", gateway=gateway).decide("X", 0, NOBODY)
    granted = (decision.read, decision.write, decision.rpc, decision.uncached)
    assert "".join(letter if yes else "-" for letter, yes in zip("rwpu", granted, strict=True)) == access


@pytest.mark.parametrize(
    ("rules", "gateway", "logged"),
    [
        ("RULE(1,READ,TRAPWRITE) RULE(1,WRITE)", False, False),
        ("RULE(1,READ) RULE(1,WRITE,TRAPWRITE)", False, True),
        ("RULE(1,WRITE) RULE(1,WRITE,TRAPWRITE)", False, False),
        ("RULE(1,WRITE,NOTRAPWRITE)", False, False),
        ("RULE(1,WRITE,TRAPWRITE) RULE(1,RPC)", False, True),
        ("RULE(1,WRITE) RULE(1,RPC,TRAPWRITE)", False, True),
        ("RULE(1,WRITE) RULE(1,WRITE,TRAPWRITE)", True, True),
        ("RULE(1,PUT,TRAPWRITE) RULE(1,RPC)", True, True),
    ],
)
def test_puts_are_logged_by_the_rule_that_permits_them(rules, gateway, logged):
    assert load_acf(f"ASG(DEFAULT) {{ {rules} }}", gateway=gateway).decide("X", 0, NOBODY).trapwrite is logged


def test_rules_follow_their_inputs():
    security = load_acf("""
        ASG(BEAM) {
            INPA("ACC:MODE") INPB(ACC:KEY.VAL) INPC(unused)
            RULE(1, READ)
            RULE(1, WRITE, TRAPWRITE) { CALC("A=1 && B!=0") }
            RULE(1, RPC) { CALC("B=7") UAG(nobody) }
        }
        UAG(nobody)
    """)
    assert dict(security.group("BEAM").inputs) == {"A": "ACC:MODE", "B": "ACC:KEY.VAL", "C": "unused"}
    access = security.compile_for(NOBODY).access("BEAM", 0)
    assert dict(access.inputs) == {"A": "ACC:MODE", "B": "ACC:KEY.VAL"}
    for inputs, granted in [
        ({}, "READ"),
        ({"A": 1.0}, "READ"),
        ({"A": 1.0, "B": None}, "READ"),
        ({"A": 1.0, "B": 0.0}, "READ"),
        ({"A": 1.0, "B": 7.0}, "WRITE"),
        ({"A": math.nan, "B": 7.0}, "READ"),
        ({"A": 2.0, "B": 7.0}, "READ"),
    ]:
        decision = access.decide(inputs)
        assert decision.access == granted
        assert decision == security.decide("BEAM", 0, NOBODY, inputs)
        assert decision.trapwrite is (granted == "WRITE")
    assert access.decide({"A": 1.0, "B": 7.0}) is access.decide({"A": 1, "B": 8.0})


def test_a_rule_that_reads_an_input_which_its_group_does_not_define_never_applies():
    security = load_acf('ASG(A) { INPA(pv) RULE(1, WRITE) { CALC("A=1 || B=0") } }', file="x.acf")
    assert security.decide("A", 0, NOBODY, {"A": 1.0}).access == "NONE"
    assert "x.acf:1:19: " in security.warnings[0]
    assert "INPB" in security.warnings[0]


def test_without_a_file_everything_is_permitted_and_nothing_is_logged():
    security = AccessSecurity.unrestricted()
    for who in (NOBODY, claimed("x"), proved("y")):
        decision = security.decide("ANY", 1, who)
        assert (decision.access, decision.uncached, decision.trapwrite) == ("RPC", True, False)
    assert security.group("ANY").inputs == {}


def test_why_has_a_line_for_every_rule_with_its_place_and_reason():
    security = load_acf(SITE, file="site.acf")
    assert security.decide("SPECIAL", 0, proved("mallory")).why == (
        "site.acf:7: RULE(1,WRITE,TRAPWRITE): does not apply: UAG(owners, helpers): 'mallory' (x509) is not in it",
    )
    assert security.decide("SPECIAL", 0, proved("george")).why == (
        "site.acf:7: RULE(1,WRITE,TRAPWRITE): grants WRITE",
    )
    assert security.decide("DEFAULT", 0, NOBODY).why == ("the group has no rules: no access",)


def test_what_a_peer_calls_itself_cannot_forge_a_line_of_a_log():
    security = load_acf(SITE)
    who = proved("x\nALL GRANTED\x1b[2J", "CA\nroot")
    assert all(line.isprintable() for line in security.decide("SPECIAL", 0, who).why)
    other = proved("george", "CA\r\n")
    assert all(line.isprintable() for line in security.decide("SPECIAL", 0, other).why)


def test_decisions_about_a_flood_of_different_peers_stay_bounded():
    security = load_acf(SITE)
    for number in range(3000):
        assert security.decide("SPECIAL", 0, claimed(f"user{number}")).access == "NONE"
    assert len(security._compiled) <= 1024


class Peer(NamedTuple):
    peer: str
    host: str


@pytest.mark.parametrize(
    "case",
    [
        Peer("10.0.0.7:5075", "10.0.0.7"),
        Peer("10.0.0.7", "10.0.0.7"),
        Peer("[::1]:5075", "::1"),
        Peer("::1", "::1"),
        Peer("[::ffff:10.0.0.7]:1", "10.0.0.7"),
        Peer("[FE80::0001]:1", "fe80::1"),
        Peer("", ""),
    ],
)
def test_principal_of_a_connection_has_the_peers_address_without_its_port(case):
    assert Principal.of(Credentials(peer=case.peer)).host == case.host


def test_principal_of_a_connection_has_everything_that_rules_ask_for():
    credentials = Credentials(
        method="x509",
        account="george",
        peer="10.0.0.7:1234",
        authority=f"Site CA\n{ROOT}",
        roles=frozenset({"wheel"}),
        is_tls=True,
        san=(("dns", "a.example.org"),),
        subject=(("CN", "george"), ("O", "example.org")),
        home="example.org",
    )
    assert Principal.of(credentials) == Principal(
        "george",
        "x509",
        ("Site CA", ROOT),
        "10.0.0.7",
        frozenset({"wheel"}),
        "tls",
        (("dns", "a.example.org"),),
        (("CN", "george"), ("O", "example.org")),
    )
    assert Principal.of(Credentials()).protocol == "tcp"


def test_hosts_are_resolved_once_when_a_resolver_is_given():
    asked = []

    def resolve(host):
        asked.append(host)
        if host == "broken":
            raise OSError("no such host")
        return {"console": ["10.0.0.7", "::FFFF:10.0.0.8"]}.get(host, [])

    security = load_acf(
        "HAG(room) {Console, broken, gone, 10.0.0.9}\nASG(DEFAULT) {RULE(1,READ) {HAG(room)}}",
        file="h.acf",
        resolve=resolve,
    )
    assert asked == ["console", "broken", "gone"]
    for host, granted in [
        ("10.0.0.7", True), ("10.0.0.8", True), ("10.0.0.9", True), ("console", False), ("gone", False), ("", False),
    ]:  # fmt: skip
        assert security.decide("X", 0, claimed("u", host=host)).read is granted
    assert [warning.partition(": ")[0] for warning in security.warnings] == ["h.acf:1:21", "h.acf:1:29"]
