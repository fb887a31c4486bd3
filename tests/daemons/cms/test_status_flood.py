"""Anyone may ask for the status of any serial number: who asks for thousands waits, the others do not."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.cms import plain, running
from tests.helpers.turns import GIVES_WAY, Hostile, frame, longest_turn
from tests.transport.test_bounds import ALL_TURN, ARGUMENTS

pytestmark = pytest.mark.usefixtures("engine")

COUNT = 3000


def ask(hostile: Hostile, issuer: str) -> None:
    """Open a channel for each serial, and begin a GET of each."""
    names = [f"CERT:STATUS:{issuer}:{serial}".encode() for serial in range(1, COUNT + 1)]
    items = [struct.pack("<I", cid) + bytes((len(name),)) + name for cid, name in enumerate(names, 1)]
    hostile.sock.sendall(frame(7, struct.pack("<H", COUNT) + b"".join(items)))
    hostile.wait_for(7, COUNT)
    hostile.sock.sendall(
        b"".join(frame(10, struct.pack("<IIB", n, n, 8) + b"\xff") for n in range(1, COUNT + 1))
    )
    hostile.wait_for(10, COUNT)
    hostile.sock.sendall(b"".join(frame(10, struct.pack("<IIB", n, n, 0)) for n in range(1, COUNT + 1)))


def publisher_tasks() -> list[str]:
    """The questions to the database that are left."""
    return [text for text in map(repr, asyncio.all_tasks()) if "Publisher" in text]


async def test_who_asks_for_thousands_of_unknown_serials_waits_for_itself_only(tmp_path: Path) -> None:
    async with running(tmp_path) as service, plain(service) as anyone:
        issuer = service.names.issuer_id
        await anyone.get(f"CERT:STATUS:{issuer}:900000001")
        hostile = await asyncio.to_thread(Hostile, service.server.tcp_port, source="127.0.0.2")
        signed = service.publisher.signed
        with longest_turn() as longest:
            await asyncio.to_thread(ask, hostile, issuer)
            for serial in range(900_000_002, 900_000_012):
                status = await anyone.get(f"CERT:STATUS:{issuer}:{serial}")
                assert status["state"] == "UNKNOWN"
            # They were answered between the others, long before all of these.
            assert service.publisher.signed - signed < COUNT
            await asyncio.to_thread(hostile.wait_for, 10, COUNT)
        assert service.publisher.signed - signed == COUNT + 10
        assert longest.longest < ALL_TURN
        hostile.close()


async def test_nothing_is_signed_for_who_is_gone_and_the_service_stops_in_the_middle_of_questions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as service:
        issuer = service.names.issuer_id
        hostile = await asyncio.to_thread(Hostile, service.server.tcp_port, source="127.0.0.2")
        signed = service.publisher.signed
        await asyncio.to_thread(ask, hostile, issuer)
        hostile.close()
        async with asyncio.timeout(30):
            while service.server.peers or publisher_tasks():
                await asyncio.sleep(0.01)
        assert service.publisher.signed - signed < COUNT // 2
        hostile = await asyncio.to_thread(Hostile, service.server.tcp_port, source="127.0.0.2")
        await asyncio.to_thread(ask, hostile, issuer)
    hostile.close()
    assert not publisher_tasks()
    assert not caplog.records or "pending" not in caplog.text


@pytest.mark.sqlite_only("no request reaches the database")
@pytest.mark.parametrize("what", [each for each in ARGUMENTS if each.startswith("any[]")])
async def test_the_service_gives_way_whatever_a_request_for_a_certificate_holds(
    tmp_path: Path, what: str
) -> None:
    argument = ARGUMENTS[what]()
    async with running(tmp_path) as service:
        hostile = await asyncio.to_thread(Hostile, service.server.tcp_port, "CERT:CREATE", source="127.0.0.2")
        await asyncio.to_thread(hostile.rpc_init)
        with longest_turn() as longest:
            sending = asyncio.create_task(asyncio.to_thread(hostile.call, argument))
            reply = await asyncio.to_thread(hostile.wait_for, 20)
            await sending
        assert reply[5] != 0xFF, "it is no request"
        assert longest.longest < GIVES_WAY
        hostile.close()


async def test_what_is_forgotten_while_the_database_is_asked_is_not_watched_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.cms.publisher._KEPT", 1)
    async with running(tmp_path) as service:
        publisher, memory = service.publisher, service.lifecycle.memory
        answer = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(service.readers, "read", lambda _: answer)
        asks = SimpleNamespace(alive=True, peer=SimpleNamespace(peer="192.0.2.1:5"))
        pv = publisher.pv(1)
        pv.when_ready(lambda _: None, asks)
        while not memory._reading:
            await asyncio.sleep(0)
        asks.alive = False
        publisher.pv(2)
        assert publisher._pvs.get(1) is None
        answer.set_result({})
        while publisher._tasks:
            await asyncio.sleep(0)
        assert pv.store is None
        assert len(memory.watched) == 0
