"""A put log whose disk does not answer: others are served meanwhile, and no put is sent whose record is not written."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from appliance.daemon.audit import AuditLog
from appliance.errors import RemoteError
from appliance.gateway import put_writer
from tests.helpers.gateways import client_to, gateway_to
from tests.helpers.live import until
from tests.helpers.ours import served
from tests.transport.gateway.test_access import LOGGED, callee, puts, rules


@pytest.fixture
def disk(monkeypatch):
    """Make writes wait until the event is set; it is set at the beginning."""
    answers = threading.Event()
    answers.set()
    extend = AuditLog.extend

    def slow(self, records):
        answers.wait()
        return extend(self, records)

    monkeypatch.setattr(AuditLog, "extend", slow)
    yield answers
    answers.set()


async def test_others_are_served_while_the_disk_does_not_answer(tmp_path, disk):
    text = "ASG(DEFAULT) { RULE(1, WRITE) } ASG(LOGGED) { RULE(1, WRITE, TRAPWRITE) }"
    more = rules(tmp_path, text, "u:.* ALLOW\nu:logged ALLOW LOGGED\n")
    pvs = {"u:logged": callee(), "u:pv": callee()}
    async with (
        served(pvs) as server,
        gateway_to(server, put_log=str(tmp_path / "puts.log"), **more) as gateway,
    ):
        async with client_to(gateway) as client, client_to(gateway) as other:
            await client.put("u:logged", 1.0)
            disk.clear()
            waiting = asyncio.ensure_future(client.put("u:logged", 2.0))
            for value in (3.0, 4.0, 5.0):
                await other.put("u:pv", value)
                assert (await other.get("u:pv"))["value"] == value
                assert (await client.get("u:logged"))["value"] == 1.0
            assert not waiting.done()
            disk.set()
            await waiting
            assert (await other.get("u:logged"))["value"] == 2.0
    assert [(new, result) for _, new, result, _ in puts(tmp_path)] == [(1.0, "accepted"), (2.0, "accepted")]


async def test_a_put_that_is_given_up_before_its_record_is_written_is_never_sent(tmp_path, disk):
    more = rules(tmp_path, LOGGED)
    async with (
        served({"u:pv": callee()}) as server,
        gateway_to(server, put_log=str(tmp_path / "puts.log"), **more) as gateway,
    ):
        async with client_to(gateway) as client:
            await client.put("u:pv", 1.0)
            flight = gateway.flight
            disk.clear()
            waiting = asyncio.ensure_future(client.put("u:pv", 2.0))
            await until(lambda: flight.count == 1)
            waiting.cancel()
            await until(lambda: flight.count == 0)
            disk.set()
            await client.put("u:pv", 3.0)
            assert (await client.get("u:pv"))["value"] == 3.0
    assert [(new, result, why) for _, new, result, why in puts(tmp_path)] == [
        (1.0, "accepted", ""),
        (2.0, "accepted", ""),
        (2.0, "failed", "the client gave it up before it was sent"),
        (3.0, "accepted", ""),
    ]


async def test_a_put_whose_server_is_lost_before_its_record_is_written_was_not_done(tmp_path, disk):
    more = rules(tmp_path, LOGGED)
    server = served({"u:pv": callee()})
    await server.start()
    async with (
        gateway_to(server, put_log=str(tmp_path / "puts.log"), **more) as gateway,
        client_to(gateway) as client,
    ):
        await client.put("u:pv", 1.0)
        disk.clear()
        waiting = asyncio.ensure_future(client.put("u:pv", 2.0))
        await until(lambda: gateway.flight.count == 1)
        await server.stop()
        with pytest.raises(Exception, match="lost"):
            await waiting
        disk.set()
        await until(lambda: len(puts(tmp_path)) == 3)
    assert puts(tmp_path)[2] == ("put", 2.0, "failed", "the server of this PV is lost")


async def test_a_disk_that_does_not_answer_refuses_the_put_and_turns_health_yellow(
    tmp_path, disk, monkeypatch
):
    monkeypatch.setattr(put_writer, "PATIENCE_S", 0.05)
    more = rules(tmp_path, LOGGED)
    pv = callee()
    async with (
        served({"u:pv": pv}) as server,
        gateway_to(server, put_log=str(tmp_path / "puts.log"), **more) as gateway,
    ):
        async with client_to(gateway) as client:
            await client.put("u:pv", 1.0)
            disk.clear()
            for _ in range(2):
                with pytest.raises(
                    RemoteError,
                    match="the put log is not written at present; puts that it must record are refused",
                ):
                    await client.put("u:pv", 2.0)
            ((_, trouble),) = gateway.overview.troubles()
            assert "the disk has not taken a record" in trouble
            disk.set()
            await until(lambda: not gateway.overview.troubles())
            assert (await client.get("u:pv"))["value"] == 1.0
            await client.put("u:pv", 3.0)
    found = [json.loads(line) for line in (tmp_path / "puts.log").read_text().splitlines()]
    assert [(record["new"], record["result"]) for record in found] == [
        (1.0, "accepted"),
        (2.0, "accepted"),
        (2.0, "failed"),
        (3.0, "accepted"),
    ]
