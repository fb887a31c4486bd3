"""How often an address may ask is counted in the database server, so for all nodes together, and across their restarts."""

import pytest

from appliance.certs.profiles import generate_key
from appliance.errors import RemoteError
from tests.helpers.cms import ccr, plain, running

LIMITS = {"require_client_approval": False, "ccr_per_minute": 0.1}
"""So slow that no test gets another one by waiting."""


@pytest.fixture
def database(postgres):
    name = postgres.new()
    yield postgres.url(name)
    postgres.drop(name)


async def ask(service, count):
    async with plain(service) as requester:
        for number in range(count):
            await requester.rpc("CERT:CREATE", ccr(f"n{number}", key=generate_key("ec-p256")))


async def test_a_restart_opens_no_limit(tmp_path, database):
    async with running(tmp_path, db=database, ccr_burst=3, **LIMITS) as service:
        await ask(service, 3)
        # The node's own limit refuses this one.
        with pytest.raises(RemoteError, match="rate limited, retry in"):
            await ask(service, 1)
    async with running(tmp_path, db=database, ccr_burst=3, **LIMITS) as service:
        with pytest.raises(RemoteError, match="rate limited, retry in"):
            await ask(service, 1)
        assert service.counters.limited == 1
        assert service.counters.in_flight == 0


async def test_the_rate_of_all_addresses_is_counted_in_the_database_too(tmp_path, database):
    limits = {**LIMITS, "ccr_per_minute": 0.0, "ccr_rate": 0.001, "ccr_rate_burst": 2}
    for allowed in (2, 0):
        async with running(tmp_path, db=database, **limits) as service:
            await ask(service, allowed)
            with pytest.raises(RemoteError, match="rate limited, retry in"):
                await ask(service, 1)
