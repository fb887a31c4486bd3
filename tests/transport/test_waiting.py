"""The next certificate needs an administrator, and the present one is still good: nobody is without a certificate meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.authn.requester import Outcome, Requester, Trusting
from appliance.authn.settings import resolve_requester
from appliance.authn.std.requester import std_request, std_subject
from appliance.certs.keychain import load_keychain
from appliance.certs.status import CertState
from appliance.certs.x509 import common_name
from appliance.cms.ceremony import new_authority
from appliance.cms.config import FormerAuthority
from appliance.cms.service import CertificateService
from appliance.config.secret import FilePath
from appliance.errors import SecurityError
from tests.helpers.cms import ccr, effective, keychain_of, plain, secure
from tests.helpers.keepers import Names, keeping, ticking
from tests.helpers.live import until

LATE = 60.0


class Admin:
    """The only administrator, and his keychain."""

    def __init__(self, service: CertificateService, path: Path) -> None:
        self.service = service
        self.path = path
        assert service.server is not None
        options = {"keychain": str(path), "name": common_name(self.keychain.certificate.subject)}
        environ = {
            "XDG_CONFIG_HOME": str(path.parent / "of-admin"),
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{service.server.tcp_port}",
        }
        settings = resolve_requester("client", options, environ)._replace(country="US", organization="")
        self.said: list[str] = []
        self.requester = Requester(settings, Trusting(), say=self.said.append, timeout_s=LATE)

    @property
    def keychain(self) -> Any:
        return load_keychain(self.path.read_bytes())

    @property
    def waiting(self) -> Path:
        return self.path.with_name(self.path.name + ".waiting")

    async def ask(self, *, if_due: bool = True) -> Outcome:
        """Do what authnstd does, by a timer or by hand."""
        settings = self.requester.settings
        make = std_request(settings, now=self.requester.now())
        return await self.requester.request(make, subject=std_subject(settings), if_due=if_due)

    async def decide(self, status_pv: str, word: str) -> None:
        async with secure(self.service, self.keychain) as context:
            await context.put(status_pv, {"state": word})


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    """He asks after a new authority has taken over, so his next certificate needs an approval again."""
    site = tmp_path / "cms"
    site.mkdir()
    async with AsyncExitStack() as stack:
        async with ticking(site):
            pass
        new_authority(effective(site).settings, datetime.now(UTC))
        (new,) = site.glob("cert_auth-*.p12")
        at = (datetime.now(UTC) + timedelta(minutes=20)).isoformat()
        former = FormerAuthority(keychain=FilePath(site / "cert_auth.p12"), ends=at)
        settings = {"cert_auth_tls_keychain": FilePath(new), "former_authorities": (former,)}
        service = await stack.enter_async_context(ticking(site, **settings))
        yield Admin(service, site / "admin.p12")


async def test_the_only_administrator_approves_his_next_certificate_with_the_one_that_he_has(
    admin: Admin,
) -> None:
    before = admin.path.read_bytes()
    outcome = await admin.ask()
    assert (outcome.action, outcome.state) == ("waiting", CertState.PENDING_APPROVAL)
    assert admin.path.read_bytes() == before
    assert admin.waiting.stat().st_mode & 0o777 == 0o600
    again = await admin.ask()
    assert (again.action, again.cert_id) == ("waiting", outcome.cert_id), "nothing else is requested"
    assert outcome.keychain is not None
    await admin.decide(outcome.keychain.status_pv, "APPROVED")
    taken = await admin.ask()
    assert (taken.action, taken.cert_id, taken.state) == ("created", outcome.cert_id, CertState.VALID)
    assert admin.keychain.issuer_id == admin.service.names.issuer_id
    assert not admin.waiting.exists()
    async with plain(admin.service) as context:
        somebody = keychain_of(await context.rpc("CERT:CREATE", ccr("alice")))
    await admin.decide(somebody.status_pv, "APPROVED")


async def test_a_denied_one_is_asked_for_again_only_by_hand(admin: Admin) -> None:
    outcome = await admin.ask()
    assert outcome.keychain is not None
    await admin.decide(outcome.keychain.status_pv, "DENIED")
    before = admin.path.read_bytes()
    with pytest.raises(SecurityError, match="was denied or revoked"):
        await admin.ask()
    assert admin.path.read_bytes() == before
    kept = await admin.ask(if_due=False)
    assert kept.action == "kept"
    assert not admin.waiting.exists()
    again = await admin.ask()
    assert (again.action, again.cert_id != outcome.cert_id) == ("waiting", True)


async def test_a_daemon_keeps_the_certificate_that_it_has_until_the_next_is_approved(admin: Admin) -> None:
    before = admin.path.read_bytes()
    old = admin.keychain

    class Same(Names):
        @staticmethod
        def request(asking: Requester) -> Any:
            return std_request(asking.settings, now=asking.now()), std_subject(asking.settings)

    names = Same()
    async with keeping(admin.requester, maker=names) as keeper:
        await until(admin.waiting.exists, LATE)
        await until(lambda: "waits for approval" in keeper.kept[0].said, LATE)
        assert admin.path.read_bytes() == before
        waiting = load_keychain(admin.waiting.read_bytes())
        await admin.decide(waiting.status_pv, "APPROVED")
        keeper.look_now()
        await until(lambda: admin.keychain.serial == waiting.serial != old.serial, LATE)
        await until(lambda: keeper.kept[0].facts.state is CertState.VALID, LATE)
        assert names.answered == 1, "one request"
