"""TLS on both sides of the gateway: whose certificate is revoked loses what it must, within three seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.keychain import Keychain, load_keychain
from appliance.client import Context
from appliance.client.channel import ChannelState
from appliance.client.search import Searcher
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig, resolve_client, resolve_server
from appliance.errors import ApplianceError
from appliance.server import Server
from appliance.tls.context import client_context, server_context
from tests.helpers.authn import INSIDE, Site
from tests.helpers.gateway_site import HOST, configuration, free_ports, gateway_process, site_inside
from tests.helpers.live import promptly
from tests.helpers.ours import double

WITHIN_S = 3.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_inside(tmp_path_factory.mktemp("inside")) as running:
        yield running


@pytest.fixture(scope="module")
def shared() -> dict[str, Holder]:
    """Keychains that no test has revoked, by who has them."""
    return {}


class Holder(NamedTuple):
    """A keychain that the service has issued."""

    path: str
    identifier: str


def issued(site: Site, name: str, usage: str) -> Holder:
    account = site.account()
    done = account.run("authnjwt", "-u", usage, "--token-file", account.token_file(name))
    assert done.status == 0, done.err
    file = "client.p12" if usage == "client" else "server.p12"
    keychain = account.keychain(file)
    assert keychain.certificate is not None
    return Holder(str(account.config / file), f"{site.cms.issuer}:{keychain.certificate.serial_number}")


class Chain(NamedTuple):
    """IOC, gateway and client, each with a certificate, connected over TLS. IOC and client look at no status themselves."""

    site: Site
    holders: dict[str, Holder]
    ioc: Server
    client: Context
    config: ClientConfig
    log: Path

    @property
    def gateways(self) -> list[str]:
        """Accounts of the connections over TLS at the IOC."""
        return [peer.credentials.account for peer in self.ioc.peers.values() if peer.credentials.is_tls]

    async def revoke(self, who: str) -> float:
        """Revoke a certificate; gives when the service had done it."""
        administrator = self.site.administrator()
        done = await asyncio.to_thread(administrator.run, "pvxcert", "--revoke", self.holders[who].identifier)
        assert done.status == 0, done.err
        return time.monotonic()


async def until(done: Callable[[], bool], since: float, what: str) -> float:
    """Wait; gives the seconds since ``since``."""
    try:
        await promptly(done, WITHIN_S)
    except AssertionError as late:
        raise AssertionError(f"{what}: {late}") from None
    return time.monotonic() - since


def keychain(holder: Holder) -> Keychain:
    return load_keychain(Path(holder.path).read_bytes())


@asynccontextmanager
async def chain(
    site: Site,
    folder: Path,
    shared: dict[str, Holder],
    revoked: str = "",
    *,
    client: str = "",
    server: str = "",
    following: bool = False,
    apart: bool = False,
) -> AsyncIterator[Chain]:
    """``client`` and ``server`` are EPICS_PVA_TLS_OPTIONS of the gateway's sides; with ``following`` the ends look at statuses;
    with ``apart`` the gateway's client side has a keychain of its own. ``revoked`` is whose certificate the test revokes."""
    holders = {}
    for who, usage in (
        ("ioc", "ioc"),
        ("gateway", "ioc"),
        ("client", "client"),
        *([("inner", "client")] if apart else []),
    ):
        if who == revoked:
            holders[who] = await asyncio.to_thread(issued, site, f"{who}-{folder.name[-20:]}", usage)
            continue
        if who not in shared:
            shared[who] = await asyncio.to_thread(issued, site, f"{who}-of-all", usage)
        holders[who] = shared[who]
    service = f"{INSIDE}:{site.cms.tcp_port}"
    ports = free_ports()
    common = {"auto_addr_list": False, "xdg_config_home": str(folder), "xdg_data_home": str(folder)}
    status = resolve_client(
        {**common, "addr_list": "", "name_servers": service, "tls_keychain": ""}, environ={}
    ).config
    at_ioc = resolve_server(
        {
            "intf_addr_list": HOST, "server_port": 0, "tls_port": 0, "broadcast_port": 0,
            "auto_beacon_addr_list": False, "tls_keychain": holders["ioc"].path,
            "status_cache_dir": str(folder / "ioc"),
        },
        environ={},
    ).config  # fmt: skip
    at_client = resolve_client(
        {
            **common, "addr_list": HOST, "broadcast_port": ports["udp"],
            "tls_keychain": holders["client"].path, "status_cache_dir": str(folder / "client"),
        },
        environ={},
    ).config  # fmt: skip

    def prepare(made: Server) -> None:
        made.add_pv("pv", double(1.0))

    async with AsyncExitStack() as stack:
        if following:
            ioc = await stack.enter_async_context(open_server(at_ioc, status_client=status, prepare=prepare))
        else:
            ioc = Server(at_ioc, tls=server_context(keychain(holders["ioc"]), require_client_cert=False))
            prepare(ioc)
            await stack.enter_async_context(ioc)
        settings = configuration(
            ports,
            {
                "addr_list": f"{HOST}:{ioc.udp_port}",
                "name_servers": service,
                "tls_keychain": holders["inner" if apart else "gateway"].path,
                "tls_options": client,
            },
            pva={"tls_keychain": holders["gateway"].path, "tls_options": server},
        )
        process = gateway_process(folder / "gateway", settings, (ports["tls"],))
        _, log = stack.enter_context(process)
        if following:
            context = await stack.enter_async_context(open_client(at_client, beacons=False))
        else:
            tls = client_context(keychain(holders["client"]), want_staple=False)
            context = await stack.enter_async_context(Context(at_client, tls=tls, beacons=False))
        yield Chain(site, holders, ioc, context, at_client, log)


async def test_the_first_connection_is_over_tls_on_both_sides_as_later_ones_are(
    site: Site, tmp_path: Path, shared: dict[str, Holder]
) -> None:
    """That it waits for nothing that they do not wait for: tests/transport/gateway/test_first_connection.py."""
    async with chain(site, tmp_path, shared, following=True) as made:
        assert (await made.client.get("pv", timeout=30))["value"] == 1.0
        assert made.client.channel("pv").peer.account.startswith("gateway-")
        assert made.gateways, "the IOC sees the gateway over TLS"
        for _ in range(3):
            async with open_client(made.config, beacons=False) as other:
                await other.get("pv", timeout=30)
                assert other.channel("pv").peer.account.startswith("gateway-")


async def test_a_client_that_has_tls_alone_follows_statuses_through_the_gateway(
    site: Site, tmp_path: Path, shared: dict[str, Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``EPICS_PVA_NAME_SERVERS=pvas://...``, and nothing else: the statuses come over TLS as well."""
    async with chain(site, tmp_path, shared, "client", following=True) as made:
        port = int(made.log.parent.joinpath("gateway.yml").read_text().split("tls_port: ")[1].split()[0])
        config = made.config._replace(addr_list=(), name_servers=(Endpoint(HOST, port, tls=True),))
        assert config.tls_alone
        # There is no second search, which would come a second later.
        monkeypatch.setattr(Searcher, "_interval", lambda self, attempts: 10_000.0)
        async with open_client(config, beacons=False) as client:
            assert (await client.get("pv", timeout=30))["value"] == 1.0
            peer = client.channel("pv").peer
            assert peer.is_tls
            assert peer.account.startswith("gateway-")
            link = client.channel("pv").link
            since = await made.revoke("client")
            await until(
                lambda: client.channel("pv").link is not link, since, "the client ends its connection"
            )


async def test_a_client_whose_certificate_is_revoked_is_cut_off_and_others_go_on(
    site: Site, tmp_path: Path, shared: dict[str, Holder]
) -> None:
    async with chain(site, tmp_path, shared, "client") as made:
        await made.client.get("pv", timeout=30)
        link = made.client.channel("pv").link
        assert link is not None
        assert link.address.tls
        plain = made.config._replace(tls_keychain="")
        async with Context(plain, beacons=False) as other:
            await other.get("pv", timeout=30)
            its_link = other.channel("pv").link
            since = await made.revoke("client")
            took = await until(
                lambda: made.client.channel("pv").link is not link, since, "the client is cut off"
            )
            print(f"cut off after {took:.2f} s")
            assert other.channel("pv").link is its_link
            await other.get("pv")
            with pytest.raises(ApplianceError):
                await made.client.get("pv", timeout=1.0)


async def test_an_ioc_whose_certificate_is_revoked_is_lost_to_the_clients(
    site: Site, tmp_path: Path, shared: dict[str, Holder]
) -> None:
    """Over TLS only: otherwise the gateway goes on over plain TCP, as every client does."""
    async with chain(site, tmp_path, shared, "ioc", client="tls_required") as made:
        await made.client.get("pv", timeout=30)
        link = made.client.channel("pv").link
        assert link is not None
        async with made.client.monitor("pv") as updates:
            await anext(updates)
            channel = made.client.channel("pv")
            since = await made.revoke("ioc")
            took = await until(
                lambda: channel.state is not ChannelState.ACTIVE and not made.gateways,
                since,
                "the clients see that the IOC is lost",
            )
            print(f"lost after {took:.2f} s")
        with pytest.raises(ApplianceError):
            await made.client.get("pv", timeout=1.0)
        await made.client.get("CERT:ROOT", timeout=30)


@pytest.mark.parametrize("options", ["", "tls_required"])
async def test_a_gateway_whose_certificate_is_revoked_proves_nothing_any_more_to_either_side(
    site: Site, tmp_path: Path, shared: dict[str, Holder], options: str
) -> None:
    async with chain(site, tmp_path, shared, "gateway", client=options, server=options) as made:
        await made.client.get("pv", timeout=30)
        link = made.client.channel("pv").link
        assert link is not None
        since = await made.revoke("gateway")
        took = await until(
            lambda: made.client.channel("pv").link is not link and not made.gateways,
            since,
            "both sides are without the gateway's certificate",
        )
        print(f"ended after {took:.2f} s")
        if options:
            with pytest.raises(ApplianceError):
                await made.client.get("pv", timeout=1.0)
            assert not made.ioc.peers
        else:
            await made.client.get("pv", timeout=30)
            peer = made.client.channel("pv").peer
            assert not peer.is_tls


async def test_two_keychains_keep_the_sides_apart(
    site: Site, tmp_path: Path, shared: dict[str, Holder]
) -> None:
    async with chain(site, tmp_path, shared, "inner", apart=True) as made:
        await made.client.get("pv", timeout=30)
        link = made.client.channel("pv").link
        assert link is not None
        assert [name.partition("-")[0] for name in made.gateways] == ["inner"]
        since = await made.revoke("inner")
        await until(lambda: not made.gateways, since, "the IOC is without the inner certificate")
        await made.client.get("pv", timeout=30)
        assert made.client.channel("pv").peer.account.startswith("gateway-")
        assert made.client.channel("pv").link is link
