"""Words in links that EPICS ignores."""

from __future__ import annotations

import pytest

from appliance.ioc.dbcore import _c
from appliance.ioc.modifiers import FORWARD, INPUT, OUTPUT, ignored


def test_the_kinds_of_links_have_epics_numbers() -> None:
    assert (INPUT, OUTPUT, FORWARD) == (_c.DBF_INLINK, _c.DBF_OUTLINK, _c.DBF_FWDLINK)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (INPUT, "L:1"),
        (INPUT, "L:1.VAL CP MS"),
        (INPUT, "L:1  NPP NMS"),
        (INPUT, "L:1 PPMS"),
        (OUTPUT, "L:1 PP MSS"),
        (OUTPUT, "L:1 CA"),
        (OUTPUT, "L:1 CP"),
        (FORWARD, "L:1 PP NMS"),
        (FORWARD, "L:1.PROC CA"),
        (INPUT, "1.5"),
        (INPUT, " 0x10 "),
        (INPUT, "@asyn(PORT 1) x"),
        (INPUT, "#C0 S1 @a b"),
        (INPUT, '{pva:{pv:"L:1", proc:"CP"}}'),
        (INPUT, "[1, 2]"),
        (INPUT, ""),
    ],
)
def test_what_epics_uses_is_not_told(kind: int, text: str) -> None:
    assert ignored(kind, text) == ""


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (INPUT, "L:1 CPX", "'CPX' is no modifier of a link, and EPICS reads CP in it"),
        (INPUT, "L:1 PP ms", "'ms' is no modifier of a link, and EPICS ignores it; write MS"),
        (INPUT, "some text", "'text' is no modifier of a link, and EPICS ignores it"),
        (INPUT, "L:1 PP PP", "PP is given 2 times"),
        (INPUT, "L:1 CP PP", "PP and CP contradict each other, and EPICS uses PP"),
        (INPUT, "L:1 NMS MS", "NMS and MS contradict each other, and EPICS uses NMS"),
        (INPUT, "L:1 CA PP MSS MSI", "PP and CA contradict each other, and EPICS uses PP; MSI and MSS contradict each other, and EPICS uses MSI"),
        (FORWARD, "L:1 CP", "CP has no effect in a forward link"),
        (FORWARD, "L:1 MS", "MS has no effect in a forward link"),
        (INPUT, '{pva:{pv:"L:1"}} PP', "'PP' follows the last }, so EPICS takes all of it for the name of a PV: remove it"),
        (INPUT, "[1,2] NPP", "'NPP' follows the last ], so EPICS takes all of it for the name of a PV"),
        (INPUT, "1.5 NPP NMS", "'NPP NMS' follows a number, so EPICS takes 1.5 for the name of a PV: remove it"),
    ],
)  # fmt: skip
def test_what_epics_ignores_is_told(kind: int, text: str, said: str) -> None:
    assert ignored(kind, text).startswith(said)
