"""A certificate service whose clock was wrong for a moment."""

from pathlib import Path

from appliance.authn.requester import Requester, Trusting
from appliance.authn.settings import resolve_requester
from appliance.authn.std.requester import std_request, std_subject
from appliance.config.duration import Duration
from tests.helpers.cms import Clock, running, settled


async def test_a_certificate_that_the_service_calls_expired_is_due(tmp_path):
    """EXPIRED stays when the clock is right again, so waiting for the certificate's own date would be in vain."""
    clock, said = Clock(), []
    async with running(tmp_path / "cms", clock, require_client_approval=False) as service:
        environ = {
            "XDG_CONFIG_HOME": str(tmp_path / "account"),
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{service.server.tcp_port}",
        }
        settings = resolve_requester("client", {"name": "operator", "validity": "1d"}, environ)
        asking = Requester(settings, Trusting(), say=said.append, timeout_s=10)

        async def ask(**more):
            make = std_request(settings, now=asking.now())
            return await asking.request(make, subject=std_subject(settings), **more)

        first = await ask()
        assert (await ask(if_due=True)).action == "not due"
        assert (await asking.due(asking.look()))[0] is False
        clock.advance(days=2)
        await settled(service)
        clock.advance(days=-2)
        service.publisher.step_back()
        found = await asking.due(asking.look())
        assert (found.due, "EXPIRED" in found.why) == (True, True)
        for more in ({"if_due": True}, {}):
            renewed = await ask(**more)
            if more:
                assert (renewed.action, renewed.cert_id != first.cert_id) == ("created", True)
            else:
                assert renewed.action == "kept", "the new one is good"


async def test_a_timer_renews_by_the_cadence_and_leaves_the_file(tmp_path):
    """The service's date decides, and not the age; a certificate that is overdue is renewed without --if-due, too."""
    clock, mine = Clock(), Clock()
    options = {"require_client_approval": False, "cert_renewal_client": Duration(seconds=1000)}
    async with running(tmp_path / "cms", clock, **options) as service:
        environ = {
            "XDG_CONFIG_HOME": str(tmp_path / "account"),
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{service.server.tcp_port}",
        }
        settings = resolve_requester("client", {"name": "operator"}, environ)
        asking = Requester(settings, Trusting(), say=lambda _: None, timeout_s=60, now=mine)

        async def ask(**more):
            make = std_request(settings, now=asking.now())
            return await asking.request(make, subject=std_subject(settings), **more)

        first = await ask()
        assert first.renew_by is not None
        before = Path(settings.keychain).stat()
        mine.advance(seconds=-60)
        waiting = await asking.due(asking.look())
        assert not waiting.due
        assert (await ask(if_due=True)).action == "not due"
        mine.advance(seconds=60 + 240)
        clock.advance(seconds=55)
        assert (await asking.due(asking.look())).due
        renewed = await ask(if_due=True)
        assert (renewed.action, renewed.cert_id) == ("renewed", first.cert_id)
        assert renewed.renew_by > first.renew_by
        clock.advance(seconds=1001)
        mine.advance(seconds=1001)
        await settled(service)
        assert (await ask()).action == "renewed", "overdue: a person need not know --force"
        after = Path(settings.keychain).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
