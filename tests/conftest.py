"""For all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from appliance import blocking
from appliance.client import Context
from tests.helpers.postgres import Engine, Server

# A run that was started in the background ignores SIGINT, and every tool that a test interrupts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The default of 5 s suits a user who waits. A test waits for what must come, on a machine that does other things, too.
for operation in (
    getattr(each, name) for each in (Context, blocking.Context) for name in ("get", "put", "rpc", "info")
):
    defaults = operation.__kwdefaults__
    assert defaults["timeout"] == 5.0
    defaults["timeout"] = 30.0

# How long one example takes depends on the machine and on what else runs there.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


# ---------------------------------------------------------------------- the databases of the certificate service


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses ``engine`` on both: the embedded SQLite, and a PostgreSQL that the tests start."""
    if "engine" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("sqlite_only")
        names = ["sqlite"] if only is not None else ["sqlite", "postgresql"]
        metafunc.parametrize("engine", names, indirect=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL for this process of the tests. It is slow to make, so it is made once; a test that stops it makes its own."""
    with Server() as server:
        yield server


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """What gives each directory of a test its database; services of `tests.helpers.cms` get theirs without being told."""
    server = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    made = Engine(request.param, server)
    monkeypatch.setattr("tests.helpers.cms.ENGINE", made)
    yield made
    made.close()


@pytest.fixture
def db(postgres: Server) -> Iterator[str]:
    """The address of an empty database, for several nodes of one service."""
    name = postgres.new()
    yield postgres.url(name)
    postgres.drop(name)
