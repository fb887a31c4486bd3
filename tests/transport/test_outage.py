"""After an outage of the certificate service: who asks when, and what is said to those who are refused meanwhile."""

import asyncio
from datetime import timedelta

import pytest

from appliance.certmon.endpoints import open_client, open_server
from appliance.certmon.status_source import SEARCH_S, StatusSource, reference
from appliance.certs.status import CertState, StatusClass
from appliance.client.channel import ChannelState
from appliance.client.context import Context
from appliance.client.end import Timings
from appliance.config.address import Endpoint
from appliance.errors import AccessDeniedError
from appliance.server import AccessPolicy, Rights
from appliance.server.server import Server
from tests.helpers.live import client_config, keychain_file, number, server_config, until
from tests.helpers.pki import site
from tests.helpers.ports import free_port
from tests.helpers.status_service import StatusService

S = site()
LONG_S = 3600.0
QUICKLY = Timings(hurry_holdoff_s=1.0)


def wait_long(context: Context) -> None:
    """As after a long outage: the next search for each name is far away."""
    searcher = context._links.searcher
    searcher._heap.clear()
    for instance, name in searcher._wanted.items():
        name.attempts = 9
        searcher._plan(instance, name, asyncio.get_running_loop().time() + LONG_S)


def connected(context: Context, name: str) -> bool:
    return context.channel(name).state is ChannelState.ACTIVE


async def searching(context: Context, *names: str) -> None:
    for name in names:
        context.monitor(name, on_update=lambda _: None)
    await until(lambda: len(context._links.searcher._wanted) == len(names))


def serving(server: Server, *names: str) -> Server:
    for name in names:
        server.add_pv(name, number())
    return server


async def test_the_answer_to_one_search_hurries_all_others():
    port = free_port()
    async with Context(client_config(port), beacons=False, timings=QUICKLY) as context:
        await searching(context, "one", "two", "three")
        wait_long(context)
        async with serving(Server(server_config()._replace(broadcast_port=port)), "one", "two", "three"):
            context._links.searcher.want(context.channel("one").instance)
            await until(lambda: all(connected(context, name) for name in ("one", "two", "three")))


@pytest.mark.parametrize("same_process", [True, False])
async def test_a_beacon_of_the_server_that_was_lost_hurries_the_search(same_process):
    """The same process too: it is the network that was cut."""
    port, heard = free_port(), free_port()
    config = server_config()._replace(
        broadcast_port=port, beacon_addr_list=(Endpoint("127.255.255.255", heard),), beacon_period=0.2
    )
    first = serving(Server(config), "pv")
    settings = client_config(port)._replace(broadcast_port=heard)
    async with Context(settings, beacons=True, timings=QUICKLY) as context:
        async with first:
            await context.get("pv")
            context.monitor("pv", on_update=lambda _: None)
            await until(lambda: connected(context, "pv"))
            fixed = config._replace(server_port=first.tcp_port)
        await until(lambda: context._links.searcher._wanted)
        wait_long(context)
        second = Server(fixed, guid=first.guid) if same_process else Server(fixed)
        async with serving(second, "pv"):
            await until(lambda: connected(context, "pv"))


async def test_news_that_come_too_soon_after_others_are_heeded_a_little_later():
    port = free_port()
    async with Context(client_config(port), beacons=False, timings=QUICKLY) as context:
        await searching(context, "pv")
        context._links.searcher.hurry_at_news()
        wait_long(context)
        async with serving(Server(server_config()._replace(broadcast_port=port)), "pv"):
            context._links.searcher.hurry_at_news()
            await until(lambda: connected(context, "pv"))


async def test_a_status_is_searched_for_every_few_seconds_however_long_the_outage_was():
    keychain = S.ca.keychain("softioc", "server", status=True)
    source = StatusSource(client_config(free_port()), beacons=False)
    await source.start()
    try:
        following = source.follow(reference((keychain.certificate, *keychain.chain)), lambda: None)
        searcher = source.context._links.searcher
        await until(lambda: searcher._wanted)
        assert searcher._interval(1000) <= SEARCH_S
        following.close()
    finally:
        await source.close()
    async with Context(client_config(free_port()), beacons=False) as ordinary:
        assert ordinary._links.searcher._interval(1000) == 30.0


class ProvedWrite(AccessPolicy):
    def rights(self, name, peer):
        return Rights(read=True, write=peer.is_tls and peer.method == "x509")


@pytest.mark.parametrize("unknown", ["server", "client"])
async def test_a_refusal_says_that_a_status_is_not_known_at_present(tmp_path, unknown, monkeypatch):
    monkeypatch.setattr("appliance.certmon.tls_manager.PATIENCE_S", 30)
    keychains = {
        "server": S.ca.keychain("softioc", "server", status=True),
        "client": S.ca.keychain("operator", "client", status=True),
    }
    files = {name: keychain_file(tmp_path, name, keychain) for name, keychain in keychains.items()}
    async with StatusService(S.ca) as cms:
        for name, keychain in keychains.items():
            cms.set(keychain, CertState.UNKNOWN if name == unknown else CertState.VALID)
        async with open_server(
            server_config(files["server"]),
            prepare=lambda server: server.add_pv("pv", number()),
            status_client=cms.client_config(),
            policy=ProvedWrite(),
        ) as server:
            config = client_config(server, cms.udp_port, keychain=files["client"])
            async with open_client(config) as context:
                with pytest.raises(AccessDeniedError, match="denied by access security") as refusal:
                    await context.put("pv", 1.0)
                assert "the status of its certificate is not known at present" in str(refusal.value)
                said = (
                    "this server cannot verify your identity"
                    if unknown == "server"
                    else "this client used plain TCP"
                )
                assert said in str(refusal.value)
                cms.set(keychains[unknown], CertState.VALID)
                await until(lambda: server.tls is not None and context.tls is not None)
            assert server.access.plight == ""
            # Who comes now is let in.
            async with open_client(config) as context:
                await context.put("pv", 2.0)


async def test_who_is_refused_for_good_hears_of_no_status(tmp_path):
    async with serving(Server(server_config(), policy=ProvedWrite()), "pv") as server:
        async with Context(client_config(server), beacons=False) as context:
            with pytest.raises(AccessDeniedError, match=r"write access denied by access security$"):
                await context.put("pv", 1.0)


async def test_both_ends_are_back_soon_after_the_service(tmp_path, monkeypatch):
    """An outage that outlasts the statuses: each end's next searches are far away when the service comes back."""
    keychains = [
        S.ca.keychain("softioc", "server", status=True),
        S.ca.keychain("operator", "client", status=True),
    ]
    files = [
        keychain_file(tmp_path, name, k) for name, k in zip(("server", "client"), keychains, strict=True)
    ]
    cms = StatusService(S.ca, valid=timedelta(seconds=2))

    def post():
        for keychain in keychains:
            cms.set(keychain, CertState.VALID)

    await cms.start()
    post()
    try:
        async with (
            open_server(
                server_config(files[0]),
                prepare=lambda server: server.add_pv("pv", number()),
                status_client=cms.client_config(),
                policy=ProvedWrite(),
            ) as server,
            open_client(client_config(server, cms.udp_port, keychain=files[1])) as context,
        ):
            await context.put("pv", 1.0)
            await cms.stop()
            sources = [gate.source for gate in (server.entrance.gate, context.gate)]
            await until(lambda: server.tls is None and context.tls is None)
            for source in sources:
                await until(lambda source=source: len(source.context._links.searcher._wanted) == 2)
                for name in source.context._links.searcher._wanted.values():
                    name.attempts = 9
            cms.valid = timedelta(minutes=5)
            post()
            await cms.start()
            await until(lambda: server.tls is not None and context.tls is not None, 2 * SEARCH_S + 5)
            for source in sources:
                # Its own status lets an end use TLS again; its peer's may come a moment later.
                await until(
                    lambda source=source: (
                        [follower.status.status_class for follower in source._followers.values()]
                        == [StatusClass.GOOD] * 2
                    ),
                    SEARCH_S,
                )
            await context.put("pv", 2.0)
    finally:
        await cms.stop()
