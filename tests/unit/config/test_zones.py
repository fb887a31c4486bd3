"""Time zones on a host that has no database of them."""

from __future__ import annotations

import sys
import zoneinfo
from collections.abc import Iterator

import pytest

from appliance.config.zones import time_zone
from appliance.errors import ConfigurationError


@pytest.fixture
def _bare_host() -> Iterator[None]:
    """A host without /usr/share/zoneinfo, such as a small container."""
    zoneinfo.reset_tzpath(to=[])
    zoneinfo.ZoneInfo.clear_cache()
    yield
    zoneinfo.reset_tzpath()
    zoneinfo.ZoneInfo.clear_cache()


@pytest.mark.usefixtures("_bare_host")
def test_the_service_brings_its_own_zones_to_a_host_without_any() -> None:
    """The extra ``cms`` installs tzdata."""
    assert str(time_zone("Europe/Berlin")) == "Europe/Berlin"


@pytest.mark.usefixtures("_bare_host")
def test_without_any_zones_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tzdata"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tzdata", None)
    with pytest.raises(ConfigurationError, match="install the Python package tzdata"):
        time_zone("Europe/Berlin")
    assert time_zone("UTC") is not None
