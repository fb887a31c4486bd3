"""What EPICS Base prints, as one sentence."""

from __future__ import annotations

import pytest

from appliance.ioc.dbcore.words import complaint

ASIDE = "dbJLinkInit: Link type 'pva' not found\n"
PRINTED = (
    "ERROR: Can't set 'L:1.INP' to '{pva:\"x\"}'  : bad Field value\n"
    'ERROR:  at or before \')\' in file "/d/x.db" line 2\n\n 2 |  field(INP, {pva:"x"})\n\n'
)


@pytest.mark.parametrize("at", [0, PRINTED.index(" file"), PRINTED.index(" line 2"), len(PRINTED)])
def test_the_error_log_may_print_in_the_middle_of_the_parsers_line(at: int) -> None:
    said = complaint(PRINTED[:at] + ASIDE + PRINTED[at:], "why", "/d/x.db")
    assert str(said).startswith("/d/x.db:2: this IOC has no links of type pva")
