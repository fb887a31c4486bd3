"""CERT:SCHEDULE, schedules in requests, and hints, through real sockets."""

import asyncio
from datetime import UTC, datetime

import pytest

from appliance.certmon.wire_arrays import SCHEDULE_ARRAY
from appliance.certs.ocsp import verify_response
from appliance.certs.status import OCSPState
from appliance.client.uri import uri_value
from appliance.cms.audit import verify_audit
from appliance.cms.transaction import Transaction
from appliance.errors import RemoteError
from appliance.pvdata import BOOL, STRING, UINT64, StructType, Value
from tests.helpers.cms import Clock, admin_keychain, ccr, keychain_of, plain, running, secure, settled, where

pytestmark = pytest.mark.usefixtures("engine")

OPEN = {"require_client_approval": False, "require_server_approval": False, "require_ioc_approval": False}
MONDAY = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
EPICS = 631_152_000


def window(day, begin, end):
    return {"day_of_week": day, "start_time": begin, "end_time": end}


def windows(value, field="schedule"):
    return [tuple(w[part] for part in ("day_of_week", "start_time", "end_time")) for w in value[field]]


def call(serial, *schedule, read_only=False, **more):
    """What the C++ pvxcert sends: a structure that is no NTURI."""
    kind = [("serial", UINT64), ("read_only", BOOL), ("schedule", SCHEDULE_ARRAY)]
    query = {"serial": serial, "read_only": read_only, "schedule": list(schedule)}
    for name, text in more.items():
        kind.append((name, STRING))
        query[name] = text
    value = Value(StructType([("query", StructType(kind))]), {"query": query})
    value.mark()
    return value


def verified(service, status):
    return verify_response(
        bytes(status["ocsp_response"]), issuer=service.authority.issuer.certificate, serial=status["serial"],
        now=service.clock(),
    )  # fmt: skip


async def until_state(updates, state):
    while (status := await asyncio.wait_for(anext(updates), 30))["state"] != state:
        pass
    return status


async def test_a_schedule_suspends_and_resumes_to_the_second_and_good_is_never_signed_beyond_it(tmp_path):
    clock = Clock(MONDAY)
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr(clock=clock))
        async with (
            secure(service, admin_keychain(tmp_path)) as admin,
            anyone.monitor(reply["status_pv"]) as updates,
        ):
            assert (await anext(updates))["state"] == "VALID"
            told = await admin.rpc("CERT:SCHEDULE", call(reply["serial"], window("1", "08:00", "12:10")))
            assert (told["result"], told["state"], told["by"]) == ("ok", "VALID", "admin")
            assert windows(told) == [("1", "08:00", "12:10")]
            status = await asyncio.wait_for(anext(updates), 30)
            assert windows(status) == [("1", "08:00", "12:10")]
            assert verified(service, status).next_update == datetime(2026, 3, 2, 12, 10, tzinfo=UTC)
            clock.advance(minutes=9, seconds=59)
            await settled(service)
            assert (await anyone.get(reply["status_pv"]))["state"] == "VALID"
            clock.advance(seconds=1)
            await settled(service)
            status = await until_state(updates, "SCHEDULED_OFFLINE")
            assert status["value.choices"][status["value.index"]] == "UNKNOWN"
            assert verified(service, status).state is OCSPState.UNKNOWN
            clock.advance(days=6, hours=19, minutes=50)
            await settled(service)
            assert verified(service, await until_state(updates, "VALID")).state is OCSPState.GOOD
    assert verify_audit(where(tmp_path)).intact


async def test_administrators_set_a_schedule_its_holder_reads_it_and_nobody_else_does_either(tmp_path):
    clock = Clock()
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as anyone:
        own = await anyone.rpc("CERT:CREATE", ccr("owner", clock=clock))
        other = await anyone.rpc("CERT:CREATE", ccr("other", clock=clock))
        serial = own["serial"]
        with pytest.raises(RemoteError, match="denied"):
            await anyone.rpc("CERT:SCHEDULE", call(serial, read_only=True))
        async with (
            secure(service, admin_keychain(tmp_path)) as admin,
            secure(service, keychain_of(own)) as owner,
        ):
            always = window("*", "00:00", "00:00")
            for name in service.names.schedule:
                assert windows(await admin.rpc(name, call(serial, always))) == [("*", "00:00", "00:00")]
            assert windows(await owner.rpc("CERT:SCHEDULE", call(serial, read_only=True))) == [
                ("*", "00:00", "00:00")
            ]
            with pytest.raises(RemoteError, match="only administrators may set"):
                await owner.rpc("CERT:SCHEDULE", call(serial, always))
            with pytest.raises(RemoteError, match="only administrators may set"):
                await owner.rpc("CERT:SCHEDULE", call(other["serial"], read_only=True))
            # An NTURI, as our tools send it; nothing set means always.
            asked = uri_value("CERT:SCHEDULE", {"serial": serial})
            assert windows(await admin.rpc("CERT:SCHEDULE", asked)) == []
            for bad, why in (
                (call(serial, window("8", "08:00", "17:00")), "not changed: .*day of the week"),
                (call(serial, window("1", "08:00", "17:00"), time_zone="Europe/Atlantis"), "Europe/Atlantis"),
                (call(serial, time_zone="Europe/Berlin"), "no effect without windows"),
                (call(0), "no serial"),
                (Value(StructType((("query", STRING),)), {"query": "x"}), "the queries are no structure"),
                (call(serial, always, time_zone="localtime"), "is no place"),
                (call(serial, always, time_zone="right/UTC"), "is no place"),
                (call(12345, always), "not known here"),
                (call(serial, always, read_only=True), "no effect with read_only"),
                (
                    uri_value("CERT:SCHEDULE", {"serial": 5, "readonly": True}),
                    "'readonly'; did you mean read_only",
                ),
                (uri_value("CERT:SCHEDULE", {"serial": "x"}), "serial must be a whole number"),
                (
                    uri_value("CERT:SCHEDULE", {"serial": 5, "read_only": 1}),
                    "read_only must be true or false",
                ),
            ):
                with pytest.raises(RemoteError, match=why):
                    await admin.rpc("CERT:SCHEDULE", bad)
            table = await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {"subject": "owner"}))
            assert table["value.schedule"] == ("always",)
            await admin.rpc(
                "CERT:SCHEDULE", call(serial, window("1", "08:00", "17:00"), time_zone="Europe/Berlin")
            )
            table = await admin.rpc("CERT:LIST", uri_value("CERT:LIST", {"subject": "owner"}))
            assert table["value.schedule"] == ("1,08:00,17:00 Europe/Berlin",)


async def test_a_zone_is_told_in_utc_as_it_is_today_and_as_it_was_set(tmp_path):
    """Monday in March, 12:00 UTC: 13:00 in Berlin."""
    clock = Clock(MONDAY)
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as anyone:
        asked = ccr(clock=clock, schedule=[window("1", "09:00", "17:00")], time_zone="Europe/Berlin")
        reply = await anyone.rpc("CERT:CREATE", asked)
        assert reply["state"] == "VALID"
        for told in (reply, await anyone.get(reply["status_pv"])):
            assert windows(told) == [("1", "08:00", "16:00")]
            assert told["time_zone"] == "Europe/Berlin"
        assert windows(reply, "local") == [("1", "09:00", "17:00")]
        with pytest.raises(RemoteError, match=r"time_zone cannot be used by this service: .*Europe/Atlantis"):
            await anyone.rpc(
                "CERT:CREATE",
                ccr(
                    "bob", clock=clock, schedule=[window("1", "09:00", "17:00")], time_zone="Europe/Atlantis"
                ),
            )


async def due_at(service, serial, clock, seconds):
    """Give a certificate a date of renewal, as an authenticator with a cadence does."""
    now = int(clock().timestamp())

    def job(transaction: Transaction):
        old = transaction.get(serial)
        return transaction.renew(old, renew_by=now + seconds, renewed_at=now, state=old.state, at=now)

    service.lifecycle._announce(await service.store.submit(job))


async def test_a_renewal_that_is_due_is_hinted_once_without_a_signature_and_then_suspends(tmp_path):
    clock = Clock(MONDAY)
    async with running(tmp_path, clock, **OPEN) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr(clock=clock))
        now = int(clock().timestamp())
        await due_at(service, reply["serial"], clock, 600)
        async with anyone.monitor(reply["status_pv"]) as updates:
            first = await anext(updates)
            assert first["renew_by"] == now + 600 - EPICS
            assert not first["renewal_due"]
            assert verified(service, first).next_update.timestamp() == now + 600
            signed = service.publisher.signed
            clock.advance(seconds=299)
            await settled(service)
            clock.advance(seconds=1)
            await settled(service)
            hint = await asyncio.wait_for(anext(updates), 30)
            assert (hint["state"], hint["renewal_due"]) == ("VALID", True)
            assert hint["timeStamp.secondsPastEpoch"] == now + 300
            assert bytes(hint["ocsp_response"]) == bytes(first["ocsp_response"])
            assert service.publisher.signed == signed
            clock.advance(seconds=300)
            await settled(service)
            late = await asyncio.wait_for(anext(updates), 30)
            assert (late["state"], late["renewal_due"]) == ("PENDING_RENEWAL", True)
            assert verified(service, late).state is OCSPState.UNKNOWN
            await service.health.check()
            assert (await anyone.get("CERT:METRICS"))["certs_pending_renewal"] == 1


async def test_an_administrator_does_not_lock_itself_out_by_hours_of_its_own_certificate(tmp_path):
    clock = Clock(MONDAY)
    async with running(tmp_path, clock, **OPEN) as service:
        keychain = admin_keychain(tmp_path)
        async with secure(service, keychain) as admin:
            for hours, more in (
                (window("1", "13:00", "17:00"), {}),
                (window("1", "08:00", "12:30"), {"time_zone": "Europe/Berlin"}),
            ):
                with pytest.raises(RemoteError, match="do not include the present time"):
                    await admin.rpc("CERT:SCHEDULE", call(keychain.serial, hours, **more))
            told = await admin.rpc("CERT:SCHEDULE", call(keychain.serial, window("1", "08:00", "17:00")))
            assert told["state"] == "VALID"
            assert (await admin.rpc("CERT:SCHEDULE", call(keychain.serial)))["state"] == "VALID"
    assert verify_audit(where(tmp_path)).intact
