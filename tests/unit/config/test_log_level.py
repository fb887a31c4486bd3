"""A level of the log that does not exist is refused in every configuration file, and not ignored."""

from __future__ import annotations

import msgspec
import pytest

from appliance.cms.config import CMSSettings
from appliance.config import loader
from appliance.errors import ConfigurationError
from appliance.gateway.config import GatewayConfig
from appliance.ioc.config import IocConfig

FILES = {
    CMSSettings: "",
    IocConfig: "databases: [{file: a.db}]\n",
    GatewayConfig: "clients: {inner: {}}\nservers: {outer: {clients: [inner]}}\n",
}


@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("level", ["LOUD", "appliance.tls=LOUD", "INFO,=DEBUG"])
def test_an_unknown_level_is_refused_with_its_key(kind: type[msgspec.Struct], level: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"log_level: '.*' is no log level; write one of CRIT, .*, or NAME=LEVEL"
    ):
        loader.loads_document(f"{FILES[kind]}log_level: '{level}'\n", kind, file="x.yml")


@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("level", ["debug", "WARNING,appliance.tls=DEBUG", "pvxs.*=INFO"])
def test_levels_that_exist_are_taken(kind: type[msgspec.Struct], level: str) -> None:
    loader.loads_document(f"{FILES[kind]}log_level: '{level}'\n", kind, file="x.yml")
