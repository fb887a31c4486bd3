"""Clients that search before there are records find them as soon as there are: they need not ask again."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

from bench.iocs import message
from bench.wire import SEARCH, SEARCH_RESPONSE, Driver, text
from tests.helpers.ioc_process import starting_ioc
from tests.helpers.ports import free_port

RECORD = 'record(ai, "early") { field(VAL, "4") }\n'


def question(name: str, port: int) -> bytes:
    head = struct.pack("<IB3x16sHB", 7, 0x81, bytes(10) + b"\xff\xff\x7f\x00\x00\x01", port, 1) + text("tcp")
    return head + struct.pack("<HI", 1, 5) + text(name)


def claims(payload: bytes) -> bool:
    """Whether an answer claims a name; one that does not comes at once, since the question asks for it."""
    return bool(payload[35 + payload[34]])


def datagrams(port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    sock.settimeout(30)
    return sock


async def test_a_search_before_the_records_is_answered_when_they_are_served(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    file.write_text(RECORD)
    async with starting_ioc() as ioc:
        await ioc.printed("epics> ")

        def ask() -> tuple[socket.socket, Driver]:
            sock, driver = datagrams(), Driver(ioc.tcp)
            driver.sock.settimeout(30)
            for name in ("early", "never"):
                sock.sendto(message(SEARCH, question(name, sock.getsockname()[1])), ("127.0.0.1", ioc.udp))
                assert not claims(sock.recv(65536)[8:])
                driver.send(SEARCH, question(name, 0))
                assert not claims(driver.wait_for(SEARCH_RESPONSE))
            return sock, driver

        sock, driver = await asyncio.to_thread(ask)
        with sock:
            ioc.type(f'dbLoadRecords("{file}")\niocInit\n')
            assert claims((await asyncio.to_thread(sock.recv, 65536))[8:])
            assert claims(await asyncio.to_thread(driver.wait_for, SEARCH_RESPONSE))
        driver.close()


async def test_the_first_beacon_comes_when_records_are_served(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    file.write_text(RECORD)
    port = free_port()
    with datagrams(port) as sock:
        async with starting_ioc(EPICS_PVAS_BEACON_ADDR_LIST=f"127.0.0.1:{port}") as ioc:
            await ioc.printed("epics> ")
            ioc.type(f'dbLoadRecords("{file}")\niocInit\n')
            beacon = await asyncio.to_thread(sock.recv, 65536)
            assert beacon[3] == 0

            def ask() -> bool:
                with datagrams() as asking:
                    asking.sendto(
                        message(SEARCH, question("early", asking.getsockname()[1])), ("127.0.0.1", ioc.udp)
                    )
                    return claims(asking.recv(65536)[8:])

            assert await asyncio.to_thread(ask), "a client that hears the first beacon finds the record"
