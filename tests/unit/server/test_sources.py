"""Sources are asked in the order of their priority, and one that fails does not hide the others."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from appliance.errors import AccessFileError, ApplianceError, OperationError
from appliance.pva.credentials import Credentials
from appliance.server.source import Handler, Source, StaticSource
from appliance.server.sources import Sources

NOBODY = Credentials()


def static(*names: str) -> StaticSource:
    source = StaticSource()
    source.pvs = {name: Handler() for name in names}
    return source


class Failing(Source):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def claims(self, name: str, host: str) -> bool:
        raise self.error

    def open(self, name: str, peer: Credentials) -> Handler | None:
        raise self.error

    def names(self) -> Iterable[str]:
        return ()


def test_the_lowest_priority_is_asked_first_and_equals_in_the_order_in_which_they_came() -> None:
    first, second, third = static("a", "b"), static("a", "b", "c"), static("a", "c")
    sources = Sources()
    sources.add("third", third, 1)
    sources.add("first", first, -1)
    sources.add("second", second, 1)
    assert sources.open("a", NOBODY) is first.pvs["a"]
    assert sources.open("c", NOBODY) is third.pvs["c"]
    assert list(sources.names()) == ["a", "b", "a", "c", "a", "b", "c"]
    sources.remove("third")
    assert sources.open("c", NOBODY) is second.pvs["c"]


def test_a_label_is_given_once() -> None:
    sources = Sources()
    sources.add("x", static(), 0)
    with pytest.raises(ValueError, match="there is a source 'x' already"):
        sources.add("x", static(), 0)
    sources.remove("x")
    sources.add("x", static(), 0)


def test_a_broken_source_does_not_hide_the_others_from_searches(caplog: pytest.LogCaptureFixture) -> None:
    sources = Sources()
    sources.add("broken", Failing(RuntimeError("defect")), 0)
    sources.add("good", static("pv"), 1)
    assert sources.claims("pv", "10.0.0.1")
    assert not sources.claims("other", "10.0.0.1")
    assert "the source broken failed when asked for 'pv'" in caplog.text


def test_a_client_reads_why_a_name_is_not_opened_and_nothing_of_a_defect() -> None:
    sources = Sources()
    with pytest.raises(OperationError, match="there is no PV 'pv' here"):
        sources.open("pv", NOBODY)
    with pytest.raises(OperationError) as caught:
        sources.open("p" * 10_000, NOBODY)
    assert len(str(caught.value)) < 300
    sources.add("refusing", Failing(AccessFileError("not for you")), 1)
    with pytest.raises(AccessFileError, match="not for you"):
        sources.open("pv", NOBODY)
    sources.add("broken", Failing(RuntimeError("secret")), 0)
    with pytest.raises(ApplianceError, match="internal error; the server's log has the details"):
        sources.open("pv", NOBODY)
