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


@pytest.mark.parametrize("aside", ["", "macLib: macro UNDEF is undefined (expanding string x)\n"])
def test_an_undefined_macro_is_named_whether_or_not_the_error_log_was_quick(aside: str) -> None:
    printed = (
        "ERROR: Bad character '$' in Record/Alias name \"$(UNDEF,undefined):x\"\n"
        "ERROR:  at or before ')' in file \"/d/x.db\" line 2\n"
    )
    said = str(complaint(aside + printed, "why", "/d/x.db"))
    assert said.startswith("/d/x.db:2: the macro UNDEF is not defined")
