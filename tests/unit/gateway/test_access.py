"""Access security of the gateway: p4p's rules, judged as ``acf-test --gateway`` and p4p's own engine judge them."""

from __future__ import annotations

import contextlib
import json
import logging
from typing import Any

import pytest
from p4p.asLib import Engine

from appliance.acf import PVList, load_acf
from appliance.cli import acf_test
from appliance.gateway.access import GatewayAccess
from appliance.gateway.config import Access, ServerSide
from appliance.gateway.route import Route, Router
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.server import Rights

ROLES = """
UAG(SPECIAL) { root, "role/admin" }
ASG(DEFAULT) {
    RULE(1, READ)
    RULE(1, WRITE) { UAG(SPECIAL) }
}
"""
LABS = """
UAG(PHOTON) { root }
UAG(test-operators) { tstioc, tstopr }
HAG(STATS) { "10.0.0.3" }
HAG(PHOTON) { "10.0.0.44", "10.0.0.45" }
ASG(DEFAULT) { RULE(1, READ) }
ASG(CANWRITE) { RULE(1, READ) RULE(1, WRITE, TRAPWRITE) }
ASG(AMOWRITE) { RULE(1, READ) RULE(1, WRITE, TRAPWRITE) { UAG(PHOTON) HAG(PHOTON) } }
ASG(TSTWRITE) { RULE(1, READ) RULE(1, WRITE, TRAPWRITE) { UAG(PHOTON, test-operators) HAG(PHOTON, STATS) } }
"""
REMOTE = """
HAG(control) { "10.0.0.10" }
UAG(ioc) { softioc, rtems }
HAG(remote) { "10.0.0.20" }
ASG(OPERATOR) {
    INPA("ACC-CT{}Prmt:Remote-Sel")
    RULE(1, READ)
    RULE(1, WRITE, TRAPWRITE) { HAG(control) }
    # between IOCs
    RULE(1, WRITE, TRAPWRITE) { UAG(ioc) }
    # remote consoles, if the control room lets them
    RULE(1, WRITE, TRAPWRITE) { HAG(remote) CALC("A!=0") }
}
"""
APART = """
UAG(putter) { putter } UAG(caller) { caller } UAG(watcher) { watcher }
ASG(DEFAULT) {
    RULE(1, READ)
    RULE(1, PUT, TRAPWRITE) { UAG(putter) }
    RULE(1, RPC) { UAG(caller) }
    RULE(1, UNCACHED) { UAG(watcher) }
}
"""
SELECT = "ACC-CT{}Prmt:Remote-Sel"
# rules, group, user, host, roles, value of the input -> put, rpc, uncached, logged
TABLE = [
    (None, "DEFAULT", "someone", "10.9.9.9", (), None, "put rpc uncached"),
    (None, "other", "someone", "10.9.9.9", (), None, "put rpc uncached"),
    (ROLES, "DEFAULT", "someone", "10.9.9.9", (), None, ""),
    (ROLES, "DEFAULT", "root", "10.0.0.3", (), None, "put rpc"),
    (ROLES, "DEFAULT", "someone", "10.0.0.3", ("admin",), None, "put rpc"),
    (ROLES, "unknown", "root", "10.0.0.3", (), None, "put rpc"),
    (LABS, "DEFAULT", "someone", "10.9.9.9", (), None, ""),
    (LABS, "DEFAULT", "root", "10.0.0.3", (), None, ""),
    (LABS, "CANWRITE", "someone", "10.9.9.9", (), None, "put rpc audit"),
    (LABS, "CANWRITE", "root", "10.0.0.44", (), None, "put rpc audit"),
    (LABS, "AMOWRITE", "someone", "10.9.9.9", (), None, ""),
    (LABS, "AMOWRITE", "someone", "10.0.0.44", (), None, ""),
    (LABS, "AMOWRITE", "root", "10.9.9.9", (), None, ""),
    (LABS, "AMOWRITE", "root", "10.0.0.44", (), None, "put rpc audit"),
    (LABS, "TSTWRITE", "tstopr", "10.0.0.3", (), None, "put rpc audit"),
    (LABS, "TSTWRITE", "tstopr", "10.0.0.4", (), None, ""),
    (REMOTE, "OPERATOR", "joe", "10.0.0.10", (), 0.0, "put rpc audit"),
    (REMOTE, "OPERATOR", "softioc", "10.0.0.99", (), 0.0, "put rpc audit"),
    (REMOTE, "OPERATOR", "joe", "10.0.0.99", (), 1.0, ""),
    (REMOTE, "OPERATOR", "joe", "10.0.0.20", (), 0.0, ""),
    (REMOTE, "OPERATOR", "joe", "10.0.0.20", (), 1.0, "put rpc audit"),
    (REMOTE, "DEFAULT", "joe", "10.0.0.10", (), 1.0, ""),
    (APART, "DEFAULT", "putter", "10.0.0.1", (), None, "put audit"),
    (APART, "DEFAULT", "caller", "10.0.0.1", (), None, "rpc"),
    (APART, "DEFAULT", "watcher", "10.0.0.1", (), None, "uncached"),
    (APART, "DEFAULT", "nobody", "10.0.0.1", (), None, ""),
]


def access(rules: str | None, pvlist: str = ".* ALLOW", **more: Any) -> GatewayAccess:
    security = None if rules is None else load_acf(rules, file="gw.acf", gateway=True)
    read_only = more.pop("read_only", False)
    side = ServerSide(clients=("c",), **more)
    return GatewayAccess("outer", side, Router(PVList(pvlist)), security, read_only=read_only)


def peer(user: str = "someone", host: str = "10.9.9.9", roles: tuple[str, ...] = ()) -> Credentials:
    return Credentials("ca", user, f"{host}:4711", roles=frozenset(roles))


class _Channel:
    """What p4p's engine tells about its decision."""

    name = "any"
    told: dict[str, bool]

    def access(self, **told: bool) -> None:
        self.told = told


class _Inputs:
    """The client of p4p's engine: one input."""

    def __init__(self, value: float | None) -> None:
        self._value = value

    def monitor(self, pv: str, told: Any, **_: bool) -> Any:
        if self._value is not None:
            told(self._value)
        return contextlib.closing(self)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("rules", "group", "user", "host", "roles", "value", "wanted"), TABLE)
def test_rules_mean_what_they_mean_to_p4p_and_to_acf_test(
    tmp_path, capsys, rules, group, user, host, roles, value, wanted
):
    wanted = dict.fromkeys(("put", "rpc", "uncached", "audit"), False) | dict.fromkeys(wanted.split(), True)
    judge = access(rules)
    judge.input_changed(SELECT, value)
    decision = judge.decide(Route("x", group), peer(user, host, roles))
    ours = {
        "put": decision.write,
        "rpc": decision.rpc,
        "uncached": decision.uncached,
        "audit": decision.trapwrite,
    }
    assert ours == wanted

    channel = _Channel()
    Engine(rules, _Inputs(value)).create(channel, group, user, host, 0, list(roles))
    assert channel.told == wanted, "p4p"

    if rules is not None:
        (tmp_path / "gw.acf").write_text(rules)
        asked = ["--gateway", "--json", "--asg", group, "--user", user, "--host", host]
        asked += [word for role in roles for word in ("--role", role)]
        asked += [] if value is None else ["--input", f"A={value}"]
        acf_test.main([str(tmp_path / "gw.acf"), *asked])
        said = json.loads(capsys.readouterr().out)
        assert {
            "put": said["write"], "rpc": said["rpc"], "uncached": said["uncached"], "audit": said["trapwrite"],
        } == wanted  # fmt: skip


def test_everybody_may_read_unless_enforce_read_says_otherwise():
    hidden = "ASG(DEFAULT) { RULE(1, NONE) }"
    assert access(hidden).rights("x", peer()) == Rights(read=True, why=access(hidden).rights("x", peer()).why)
    assert not access(hidden, enforce_read=True).rights("x", peer()).read
    assert access(ROLES, enforce_read=True).rights("x", peer()).read


def test_the_pv_list_gives_group_and_level():
    rules = "ASG(DEFAULT) { RULE(0, WRITE) } ASG(RF) { RULE(1, RPC) }"
    judge = access(rules, "A.* ALLOW\nB.* ALLOW DEFAULT 1\nRF.* ALLOW RF\nX(.*) ALIAS A\\1 RF\nZ.* DENY\n")
    found = {name: judge.rights(name, peer()) for name in ("A1", "B1", "RF1", "X1", "Z1", "other")}
    assert {name: (rights.write, rights.rpc) for name, rights in found.items()} == {
        "A1": (True, True), "B1": (False, False), "RF1": (False, True), "X1": (False, True),
        "Z1": (False, False), "other": (False, False),
    }  # fmt: skip
    assert not found["Z1"].read, "what the PV list denies is not read either"


def test_read_only_refuses_everything_but_the_gateways_own_pvs():
    router = Router(PVList(".* ALLOW"))
    router.reserve(["GW:poke"])
    judge = GatewayAccess("outer", ServerSide(clients=("c",)), router, None, read_only=True)
    assert judge.rights("x", peer())[:3] == (True, False, False)
    assert judge.rights("GW:poke", peer())[:3] == (True, True, True)
    assert not judge.may_bypass("x", peer()), "as with p4p"


def test_the_gateways_own_pvs_have_the_group_that_the_pv_list_gives_and_cannot_be_hidden():
    router = Router(PVList(".* ALLOW\nGW:a.* ALLOW CALLED\nGW:poke DENY\nGW:refs ALIAS x CALLED\n"))
    router.reserve(["GW:asTest", "GW:poke", "GW:refs"])
    security = load_acf("ASG(DEFAULT) { RULE(1, READ) } ASG(CALLED) { RULE(1, RPC) }", gateway=True)
    judge = GatewayAccess("outer", ServerSide(clients=("c",)), router, security, read_only=False)
    assert {name: judge.rights(name, peer())[:3] for name in ("GW:asTest", "GW:poke", "GW:refs")} == {
        "GW:asTest": (True, False, True), "GW:poke": (True, False, False), "GW:refs": (True, False, False),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("permitted", "rights"),
    [
        (c.PERMIT_ALL, (True, True, True)),
        (c.PERMIT_RPC, (True, False, True)),
        (c.PERMIT_PUT, (True, True, False)),
        (0, (True, False, False)),
    ],
)
def test_a_client_is_told_no_more_than_the_server_permits_the_gateway(permitted, rights):
    judge = access(None)
    judge.permitted = lambda route: permitted
    assert judge.rights("x", peer())[:3] == rights


def test_an_input_that_is_lost_takes_the_right_away():
    """p4p's gateway reads 0 then, so that a rule with A=0 holds."""
    judge = access('ASG(DEFAULT) { INPA("a") RULE(1, WRITE) { CALC("A=0") } }')
    seen = []
    for value in (None, 0.0, None, 1.0):
        judge.input_changed("a", value)
        seen.append(judge.rights("x", peer()).write)
    assert seen == [False, True, False, False]


def test_only_channels_that_depend_on_the_input_are_judged_again():
    judge = access(REMOTE, "OP.* ALLOW OPERATOR\nX.* ALLOW DEFAULT\n")
    asked = []
    judge.review = asked.append

    class Channel:
        peer = peer()

        def __init__(self, name):
            self.name = name

    judge.input_changed(SELECT, 1.0)
    (concerns,) = asked
    assert [name for name in ("OP1", "X1", "denied") if concerns(Channel(name))] == ["OP1"]
    judge.input_changed(SELECT, 1.0)
    assert len(asked) == 1, "the same value changes nothing"


def test_inputs_are_shown_for_as_debug():
    judge = access(REMOTE)
    assert judge.inputs() == [("OPERATOR", "A", 0.0, False)]
    judge.input_changed(SELECT, 2.5)
    assert judge.inputs() == [("OPERATOR", "A", 2.5, True)]
    judgement = judge.judge("x", peer())
    assert (judgement.asg, judgement.asl, judgement.decision.read) == ("DEFAULT", 0, False)


def test_the_log_says_what_the_rules_apply_to(caplog):
    caplog.set_level(logging.INFO)
    rules = "ASG(DEFAULT) { RULE(1, READ) } ASG(HIDDEN) { RULE(1, NONE) } ASG(UNUSED) { RULE(1, NONE) }"
    pvlist = ".* ALLOW\nH.* ALLOW HIDDEN\n"
    access(rules, pvlist).report(PVList(pvlist))
    assert (
        "its rules apply to writing only, as in p4p's gateway; to apply them to reading too, set servers.outer.enforce_read to true"
        in caplog.text
    )
    assert "with enforce_read, nobody could read PVs of ASG(HIDDEN)" in caplog.text
    assert "UNUSED" not in caplog.text
    caplog.clear()
    access(rules, pvlist, enforce_read=True).report(PVList(pvlist))
    assert "its rules apply to reading and writing" in caplog.text
    assert [record.levelname for record in caplog.records if "nobody can read" in record.message] == [
        "WARNING"
    ]
    caplog.clear()
    access(None).report(None)
    assert caplog.text == ""


def test_organizations_of_a_side_count_as_at_home():
    rules = 'UAG(ops) { alice } ASG(DEFAULT) { RULE(1, WRITE) { UAG(ops) METHOD("x509") } }'
    alice = Credentials(
        "x509", "alice", "10.0.0.1:1", is_tls=True, subject=(("CN", "alice"), ("O", "guest.example")), home="here.example",
        authority="Root",
    )  # fmt: skip
    assert not access(rules).rights("x", alice).write
    assert access(rules, access=Access(organizations=("guest.example",))).rights("x", alice).write
