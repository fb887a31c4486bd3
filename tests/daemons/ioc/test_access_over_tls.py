"""The IOC's access security over TLS, with certificates that the real service has issued and takes back."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from appliance.certmon.endpoints import open_client
from appliance.client import Connected, Context, Disconnected, Monitor
from appliance.config.pva import resolve_client
from appliance.errors import AccessDeniedError, ApplianceError
from appliance.pva import commands as c
from tests.helpers.authn import Account, Site, running_site
from tests.helpers.ioc_process import IocProcess, running_ioc
from tests.helpers.ports import free_port

RECORDS = """
record(ao, "open") { field(ASG, "DEFAULT") field(VAL, "1") field(PINI, "YES") }
record(ao, "proved") { field(ASG, "PROVED") field(VAL, "2") field(PINI, "YES") }
record(ao, "foreign") { field(ASG, "FOREIGN") field(VAL, "3") field(PINI, "YES") }
record(ao, "tls") { field(ASG, "TLS") field(VAL, "4") field(PINI, "YES") }
record(ao, "clear") { field(ASG, "CLEAR") field(VAL, "5") field(PINI, "YES") }
record(ao, "hidden") { field(ASG, "HIDDEN") field(VAL, "6") field(PINI, "YES") }
record(ao, "nobody") { field(ASG, "NOBODY") field(VAL, "7") field(PINI, "YES") }
record(ao, "named") { field(ASG, "NAMED") field(VAL, "8") field(PINI, "YES") }
"""
RULES = """
AUTHORITY(SITE, "EPICS Root Certificate Authority")
AUTHORITY(OTHER, "Another Certificate Authority")
UAG(operators) { operator }
SAG(desks) { DNS("*.control.lab"), IP("10.1.0.0/16") }
ASG(DEFAULT) { RULE(1, READ) }
ASG(PROVED) {
    RULE(1, READ)
    RULE(1, WRITE, TRAPWRITE) { UAG(operators) METHOD(x509) AUTHORITY(SITE) PROTOCOL(tls) }
}
ASG(FOREIGN) { RULE(1, READ) RULE(1, WRITE) { METHOD(x509) AUTHORITY(OTHER) } }
ASG(TLS) { RULE(1, READ) RULE(1, WRITE) { PROTOCOL(tls) } }
ASG(CLEAR) { RULE(1, READ) RULE(1, WRITE) { PROTOCOL(tcp) } }
ASG(HIDDEN) { RULE(1, READ) { METHOD(x509) AUTHORITY(SITE) } }
ASG(NOBODY) { RULE(1, NONE) }
ASG(NAMED) { RULE(1, READ) RULE(1, WRITE) { SAG(desks) } }
"""
NAMES = ("open", "proved", "foreign", "tls", "clear", "hidden", "nobody")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as running:
        yield running


def certified(site: Site, name: str, *, usage: str = "client") -> Account:
    """An account whose token has become a certificate."""
    account = site.account()
    done = account.run("authnjwt", "-u", usage, "--token-file", account.token_file(name))
    assert done.status == 0, done.err
    return account


def identifier(account: Account) -> str:
    found = re.search(r"Certificate ID : (\S+)", account.run("pvxcert").out)
    assert found
    return found[1]


async def revoke(site: Site, account: Account) -> None:
    words = "pvxcert", "-R", await asyncio.to_thread(identifier, account)
    done = await asyncio.to_thread(site.administrator().run, *words)
    assert done.status == 0, done.err


async def reaches(subscription: Monitor, kind: type) -> None:
    """Wait for the subscription's word of a connection."""
    async with asyncio.timeout(30):
        while not isinstance(await anext(subscription), kind):
            pass


class World:
    """An IOC with a certificate, and clients of it and no other."""

    def __init__(self, site: Site, ioc: IocProcess, log: Path, stack: AsyncExitStack) -> None:
        self.site = site
        self.ioc = ioc
        self.log = log
        self.stack = stack

    async def client(self, account: Account | None, **variables: str) -> Context:
        environ = {
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{self.ioc.udp}",
            "EPICS_PVA_NO_STATUS_CACHE": "YES",
            "EPICS_PVA_TLS_KEYCHAIN": "",
            **variables,
        }
        if account is not None:
            environ["EPICS_PVA_NAME_SERVERS"] = f"127.0.0.1:{self.site.tcp.port}"
            environ["EPICS_PVA_TLS_KEYCHAIN"] = str(account.config / "client.p12")
        return await self.stack.enter_async_context(open_client(resolve_client(environ=environ)))


@pytest.fixture
async def world(site: Site, tmp_path: Path) -> AsyncIterator[World]:
    account = await asyncio.to_thread(certified, site, f"softioc-{tmp_path.name}", usage="server")
    (tmp_path / "records.db").write_text(RECORDS)
    (tmp_path / "rules.acf").write_text(RULES)
    (tmp_path / "ioc.yml").write_text(
        f"databases:\n  - file: {tmp_path / 'records.db'}\nacf:\n  file: {tmp_path / 'rules.acf'}\n"
        f"put_log: {tmp_path / 'puts.log'}\n"
    )
    variables = {
        "EPICS_PVAS_TLS_KEYCHAIN": str(account.config / "server.p12"),
        "EPICS_PVAS_TLS_PORT": str(free_port()),
        "EPICS_PVA_ADDR_LIST": "",
        "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{site.tcp.port}",
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    async with (
        AsyncExitStack() as stack,
        running_ioc("--config", tmp_path / "ioc.yml", **variables) as ioc,
    ):
        await ioc.printed(r"TLS port \d+")
        yield World(site, ioc, tmp_path / "puts.log", stack)
        await stack.aclose()


async def rights(client: Context) -> dict[str, str]:
    """What a client really can do with each record: r, w, or nothing."""
    found = {}
    for name in NAMES:
        letters = ""
        for letter, attempt in (("r", client.get(name)), ("w", client.put(name, 1.0))):
            try:
                await attempt
            except AccessDeniedError:
                continue
            letters += letter
        found[name] = letters
        wire = client.channel(name).wire
        assert wire is not None
        assert bool(wire.permissions & c.PERMIT_PUT) is ("w" in letters), "ACL_CHANGE says what is so"
    return found


async def test_rules_tell_who_proved_it_by_which_authority_over_which_protocol(world: World) -> None:
    operator = await asyncio.to_thread(certified, world.site, "operator")
    visitor = await asyncio.to_thread(certified, world.site, "visitor")
    assert await rights(await world.client(operator)) == {
        "open": "r", "proved": "rw", "foreign": "r", "tls": "rw", "clear": "r", "hidden": "r", "nobody": "",
    }  # fmt: skip
    assert await rights(await world.client(visitor)) == {
        "open": "r", "proved": "r", "foreign": "r", "tls": "rw", "clear": "r", "hidden": "r", "nobody": "",
    }  # fmt: skip
    assert await rights(await world.client(None)) == {
        "open": "r", "proved": "r", "foreign": "r", "tls": "r", "clear": "rw", "hidden": "", "nobody": "",
    }  # fmt: skip


async def test_a_name_that_another_organization_vouches_for_is_somebody_else(world: World) -> None:
    guest = world.site.account()
    done = await asyncio.to_thread(guest.run, "authnstd", "-n", "operator", "-o", "guest-idp.example")
    assert done.status == 3, done.err  # it waits for approval
    words = "pvxcert", "-A", await asyncio.to_thread(identifier, guest)
    done = await asyncio.to_thread(world.site.administrator().run, *words)
    assert done.status == 0, done.err
    assert await rights(await world.client(guest)) == {
        "open": "r", "proved": "r", "foreign": "r", "tls": "rw", "clear": "r", "hidden": "r", "nobody": "",
    }  # fmt: skip
    refused = (await world.ioc.printed(r'\{[^\n]*"event": ?"access-refused"[^\n]*\}\n'))[0]
    assert json.loads(refused)["organization"] == "guest-idp.example"


async def test_alternative_names_that_were_issued_give_rights(world: World) -> None:
    for number, (words, names, granted) in enumerate(
        (
            (("--san", "dns=desk.control.lab"), "", True),
            ((), "dns=home.lab,ip=10.1.2.3", True),
            (("--san", "dns=home.lab"), "", False),
        )
    ):
        account = world.site.account(EPICS_PVA_AUTH_SAN=names) if names else world.site.account()
        asked = "authnstd", "-n", f"desk{number}", "-o", "lab", *words
        done = await asyncio.to_thread(account.run, *asked)
        assert done.status == 3, done.err  # it waits for approval
        approval = "pvxcert", "-A", await asyncio.to_thread(identifier, account)
        done = await asyncio.to_thread(world.site.administrator().run, *approval)
        assert done.status == 0, done.err
        client = await world.client(account)
        assert (await client.get("named"))["value"] in (8.0, 9.0)
        if granted:
            await client.put("named", 9.0)
        else:
            with pytest.raises(AccessDeniedError):
                await client.put("named", 9.0)


async def test_the_put_log_has_the_identity_that_the_certificate_proves(world: World) -> None:
    account = await asyncio.to_thread(certified, world.site, "operator")
    client = await world.client(account)
    await client.put("proved", 41.5)
    line = (await world.ioc.printed(r'\{[^\n]*"logger": ?"appliance.ioc.putlog"[^\n]*\}\n'))[0]
    for record in (json.loads(line), json.loads(world.log.read_text().splitlines()[-1])):
        assert (record["account"], record["method"], record["protocol"]) == ("operator", "x509", "tls")
        assert record["authority"] == "EPICS Root Certificate Authority"
        assert record["organization"] in ("127.0.0.1", "localhost")
        assert record["host"].startswith("127.0.0.1:")
        assert (record["record"], record["old"], record["new"], record["result"]) == (
            "proved",
            2.0,
            41.5,
            "accepted",
        )


async def test_who_loses_its_certificate_loses_its_rights_at_once(world: World) -> None:
    account = await asyncio.to_thread(certified, world.site, "operator")
    client = await world.client(account)
    await client.put("proved", 3.0)
    proved = client.monitor("proved", notify=True)
    hidden = client.monitor("hidden")
    await reaches(proved, Connected)
    assert (await anext(hidden))["value"] == 6.0
    channel = client.channel("proved")
    assert channel.wire is not None
    assert channel.wire.permissions & c.PERMIT_PUT
    await revoke(world.site, account)
    await reaches(proved, Disconnected)
    await reaches(proved, Connected)
    assert channel.peer is not None
    assert not channel.peer.is_tls
    assert not channel.wire.permissions & c.PERMIT_PUT
    with pytest.raises(AccessDeniedError):
        await client.put("proved", 4.0)
    with pytest.raises(ApplianceError, match="read access denied"):
        await reaches(hidden, Disconnected)
    with pytest.raises(AccessDeniedError):
        await client.get("hidden")
    assert (await client.get("proved"))["value"] == 3.0
    await world.ioc.printed("refused write access to proved")


async def test_a_client_that_looks_away_is_shut_out_by_the_ioc(world: World) -> None:
    """The IOC itself follows the certificates of its clients; nothing depends on their good will."""
    account = await asyncio.to_thread(certified, world.site, "operator")
    client = await world.client(account, EPICS_PVA_TLS_OPTIONS="no_revocation_check")
    await client.put("proved", 3.0)
    proved = client.monitor("proved", notify=True)
    await reaches(proved, Connected)
    await revoke(world.site, account)
    await reaches(proved, Disconnected)
    await world.ioc.printed("REVOKED")
    with pytest.raises(ApplianceError):
        await client.put("proved", 4.0, timeout=3)
    plain = await world.client(None)
    assert (await plain.get("proved"))["value"] == 3.0
