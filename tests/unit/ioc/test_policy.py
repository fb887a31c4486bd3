"""Rights at the IOC: found by a PV's name, judged by its fields, and none where there is doubt."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest

from appliance.acf import load_acf
from appliance.ioc.access import FieldAccess
from appliance.ioc.config import LoadStep
from appliance.ioc.groups.group_pv import GroupPV
from appliance.ioc.groups.source import GroupSource
from appliance.ioc.policy import HasChannels, IocPolicy
from appliance.ioc.putlog import PutLog
from appliance.ioc.record_pv import RecordPV
from appliance.ioc.record_source import RecordSource
from appliance.pva.credentials import Credentials
from appliance.server.access import ALL_RIGHTS, NO_RIGHTS, Rights

READ_ONLY = Rights(read=True)
ALICE = Credentials("ca", "alice")


class PV:
    """Fields, which are texts here, and what is granted."""

    def __init__(self, *fields: str, rights: Rights = NO_RIGHTS) -> None:
        self.fields = fields
        self.granted = rights

    def channels(self) -> Sequence[Any]:
        return self.fields

    def rights(self, peer: Credentials) -> Rights:
        return self.granted


class Source:
    def __init__(self, **pvs: PV) -> None:
        self.pvs = pvs

    def find(self, name: str) -> HasChannels | None:
        return self.pvs.get(name)


def access(rules: str | None) -> FieldAccess:
    found = FieldAccess(lambda _: None, lambda _: None)
    if rules is not None:
        found.use(load_acf(rules, resolve=lambda host: []), LoadStep("rules.acf"))
    return found


@pytest.mark.parametrize("kind", [RecordSource, RecordPV, GroupSource, GroupPV])
def test_nothing_that_serves_records_can_be_made_without_access_security_and_put_log(kind: type) -> None:
    parameters = inspect.signature(kind).parameters
    for name in ("access", "put_log"):
        assert parameters[name].default is inspect.Parameter.empty
        assert "None" not in str(parameters[name].annotation)


def test_a_put_log_cannot_be_made_without_being_told_what_it_logs() -> None:
    with pytest.raises(TypeError):
        PutLog()  # type: ignore[call-arg]


def test_without_rules_everybody_may_do_everything() -> None:
    policy = IocPolicy(access(None))
    policy.attach(Source(pv=PV("f")))
    assert policy.rights("pv", ALICE) == ALL_RIGHTS


@pytest.mark.parametrize("attached", [False, True])
def test_with_rules_a_name_behind_which_no_record_is_found_cannot_be_written(attached: bool) -> None:
    policy = IocPolicy(access("ASG(DEFAULT) { RULE(1, WRITE) }"))
    if attached:
        policy.attach(Source(other=PV("f", rights=ALL_RIGHTS)))
    assert not policy.rights("pv", ALICE).write


def test_the_first_source_that_has_a_name_judges_it() -> None:
    policy = IocPolicy(access("ASG(DEFAULT) { RULE(1, READ) }"))
    policy.attach(
        Source(a=PV("f", rights=READ_ONLY)),
        Source(a=PV("g", rights=ALL_RIGHTS), b=PV("g", rights=ALL_RIGHTS)),
    )
    assert policy.rights("a", ALICE) == READ_ONLY
    assert policy.rights("b", ALICE) == ALL_RIGHTS


def test_a_change_concerns_the_pvs_that_show_such_a_field() -> None:
    policy = IocPolicy(access("ASG(DEFAULT) { RULE(1, READ) }"))
    policy.attach(Source(one=PV("f"), none=PV()), Source(group=PV("g", "f"), other=PV("g")))
    concerned = [
        name
        for name in ("one", "none", "group", "other", "nobody's")
        if policy.concerns(name, lambda field: field == "f")  # type: ignore[comparison-overlap]
    ]
    assert concerned == ["one", "group"]
