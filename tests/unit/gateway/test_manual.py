"""The examples of the manual of p4p's gateway, and what they mean here; p4p's own PV list is asked the same questions."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from p4p.asLib.pvlist import PVList as Theirs

from appliance.acf import PVList
from appliance.errors import AccessFileError
from appliance.gateway.route import Router

H = "10.0.0.1"
MANUAL = """
ACCL:CRYO:.* DENY
ACCL:.*      ALLOW MISCONFIG
ACCL:.*      ALLOW
ACCL:RF.*    ALLOW RF
"""
DENY_LAST = """
ACCL:.*      ALLOW MISCONFIG
ACCL:.*      ALLOW
ACCL:RF.*    ALLOW RF
ACCL:CRYO:.* DENY
"""
SPECIAL_FIRST = """
ACCL:RF.*    ALLOW RF
ACCL:.*      ALLOW
"""
HOSTS = """
.* ALLOW
B.* DENY FROM 1.2.3.4
C.* deny From 1.2.3.4
C.* DENY from 1.2.3.5
D.* DENY 1.2.3.6
"""
ALIASES = r"""
X(.*) ALIAS Y\1 G
a:([^:]*):b:([^:]*) ALIAS A:\2:B:\1
THIS ALIAS THAT
B allow G 1
N(?:A|B):.* ALLOW
"""
DENIED = None

TABLE = [
    ("", "anything", H, ("anything", "DEFAULT", 0)),
    (MANUAL, "ACCL:CRYO:ESTOP", H, DENIED),
    (MANUAL, "ACCL:RF:FPWR", H, ("ACCL:RF:FPWR", "RF", 0)),
    (MANUAL, "ACCL:ARC:CNT", H, ("ACCL:ARC:CNT", "DEFAULT", 0)),
    (MANUAL, "LCLS:X", H, DENIED),
    (DENY_LAST, "ACCL:CRYO:ESTOP", H, DENIED),
    (DENY_LAST, "ACCL:RF:FPWR", H, ("ACCL:RF:FPWR", "RF", 0)),
    (DENY_LAST, "ACCL:ARC:CNT", H, ("ACCL:ARC:CNT", "DEFAULT", 0)),
    (SPECIAL_FIRST, "ACCL:RF:FPWR", H, ("ACCL:RF:FPWR", "DEFAULT", 0)),
    (HOSTS, "BX", "1.2.3.4", DENIED),
    (HOSTS, "BX", H, ("BX", "DEFAULT", 0)),
    (HOSTS, "CX", "1.2.3.4", DENIED),
    (HOSTS, "CX", "1.2.3.5", DENIED),
    (HOSTS, "CX", H, ("CX", "DEFAULT", 0)),
    (HOSTS, "DX", "1.2.3.6", DENIED),
    (HOSTS, "DX", H, ("DX", "DEFAULT", 0)),
    (ALIASES, "Xsome", H, ("Ysome", "G", 0)),
    (ALIASES, "a:one:b:two", H, ("A:two:B:one", "DEFAULT", 0)),
    (ALIASES, "THIS", H, ("THAT", "DEFAULT", 0)),
    (ALIASES, "THISX", H, DENIED),
    (ALIASES, "B", H, ("B", "G", 1)),
    (ALIASES, "NB:1", H, ("NB:1", "DEFAULT", 0)),
    ("EVALUATION ORDER DENY, ALLOW\nA DENY\nA.* ALLOW\n", "A", H, DENIED),
    ("EVALUATION ORDER DENY, ALLOW\nA DENY\nA.* ALLOW\n", "AB", H, ("AB", "DEFAULT", 0)),
]


@pytest.mark.parametrize(("text", "name", "host", "answer"), TABLE)
def test_a_name_leads_where_the_manual_says(
    text: str, name: str, host: str, answer: tuple[str, str, int] | None
):
    router = Router(PVList(text) if text else None)
    for _ in range(2):  # the second answer is a remembered one
        assert router.route(name, host) == answer
    assert str(ip_address(host)) == host


@pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated")
@pytest.mark.parametrize(("text", "name", "host", "answer"), TABLE)
def test_p4p_answers_the_same(text: str, name: str, host: str, answer: tuple[str, str, int] | None):
    assert Theirs(text).compute(name.encode(), host) == (answer or (None, None, None))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("(A|B):.* ALLOW", r"gw.pvlist:1:1: '\(A\|B\):\.\*' has a capture group, which has no use with ALLOW; write \(\?:"),
        (r"A(.) ALIAS B\2", "the real name uses .2, but"),
        (r"A(.) ALIAS B\0", "is neither"),
        (".* ALLW", "expected ALLOW, ALIAS or DENY, found 'ALLW'"),
    ],
)  # fmt: skip
def test_what_p4p_refuses_is_refused(line: str, why: str):
    with pytest.raises(AccessFileError, match=why):
        PVList(line, file="gw.pvlist")
    with pytest.raises(Exception, match="Error on line"):
        Theirs(line)


def test_the_number_of_a_group_in_a_group_s_name_is_refused_where_p4p_takes_it_as_a_name():
    with pytest.raises(AccessFileError, match="capture groups can be used in the real name of an ALIAS only"):
        PVList(r"A ALLOW G\1")
    assert Theirs(r"A ALLOW G\1").compute(b"A", H) == ("A", r"G\1", 0)


def test_the_order_that_is_not_supported_is_said():
    (warning,) = PVList("EVALUATION ORDER DENY, ALLOW\n", file="gw.pvlist").warnings
    assert warning.startswith("gw.pvlist:1:1: EVALUATION ORDER DENY, ALLOW is not supported")


def test_a_denial_stays_where_p4p_forgets_it():
    text = "A DENY\nA ALLOW\n"
    assert Router(PVList(text)).route("A", H) is None
    assert Theirs(text).compute(b"A", H) == ("A", "DEFAULT", 0)
