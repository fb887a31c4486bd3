"""Which server the connections of a process are to, and that no end of it waits for one that is frozen."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from appliance.cms import database as module
from appliance.cms import limits as limits_module
from appliance.cms.database import Database
from appliance.cms.dialect import Login
from appliance.cms.feed import Feed
from appliance.cms.limits import Rate, SharedLimits
from appliance.cms.nodes import Nodes
from appliance.cms.reading import Readers
from appliance.cms.store import Store
from appliance.errors import DatabaseLost
from tests.helpers.postgres import ACCOUNT, Server
from tests.helpers.proxy import Proxy


def processes(server: Server) -> list[int]:
    assert server._process is not None
    first = server._process.pid
    return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]


async def test_nothing_waits_at_its_end_for_a_server_that_is_frozen(monkeypatch):
    for each in (module, limits_module):
        monkeypatch.setattr(each, "END_S", 0.2)
    with Server() as server:
        store = Store(server.url(server.new()), "01234567", login=Login(node="a"))
        store.open()
        nodes = Nodes(store)
        nodes.enter()
        store.start()
        nodes.start()
        feed, readers = Feed(store.database), Readers(store.database)
        await feed.start()
        await readers.read(lambda _: None)
        limits = SharedLimits(lambda: store.database.connect("limits"), cut=store.database.cut)
        asks = [{"10.0.0.1": Rate(60, 10)}] * 2
        assert await limits.take(asks[0]) == 0
        frozen = processes(server)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            waiting = [
                asyncio.ensure_future(limits.take(asks[1])),
                readers.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar()),
                store.submit(lambda _: None),
            ]
            await asyncio.sleep(0)
            await limits.close()
            nodes.stop()
            feed.close()
            readers.close()
            store.close()
            with pytest.raises(DatabaseLost, match="the service stops"):
                store.database.connect("reader")
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        told = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, Exception) for each in told)


def test_a_thread_whose_statement_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(module, "END_S", 0.2)
    with Server() as server:
        database = Database(server.url(server.new()))
        connection = database.connect("reader")

        def wait():
            with pytest.raises(sa.exc.OperationalError):
                connection.exec_driver_sql("SELECT pg_sleep(600)")

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        database.end(thread)
        assert not thread.is_alive()


@pytest.fixture
def taken_over():
    """A primary, and a copy of it that has taken over. Both answer."""
    with Server() as former:
        name = former.new()
        former.stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        primary = Server("restore_command=false")
        try:
            shutil.rmtree(primary.data)
            subprocess.run(["cp", "-a", former.data, primary.data], check=True, timeout=60)
            (primary.data / "recovery.signal").touch()
            if os.geteuid() == 0:
                shutil.chown(primary.data / "recovery.signal", ACCOUNT, ACCOUNT)
            primary.port = port
            primary.start()
            former.start()
            yield former, primary, name
        finally:
            primary.close()


async def test_what_follows_a_former_primary_moves_when_another_one_has_taken_over(taken_over):
    former, primary, name = taken_over
    with Proxy(former.port) as proxy:
        store = Store(former.url(name, host="127.0.0.1", port=proxy.port), "01234567", wait_s=30)
        store.open()
        store.start()
        feed = Feed(store.database)
        looked = asyncio.Event()
        feed.on_look = looked.set
        await feed.start()
        try:
            proxy._target = (
                primary.port
            )  # the name leads to the other one now, and all connections are as they were
            await asyncio.to_thread(lambda: store.database.connect("nodes").close())

            def where(transaction):
                return transaction.connection.exec_driver_sql("SHOW port").scalar()

            assert await store.submit(where) == str(primary.port)
            await store.submit(lambda transaction: transaction.audit(1, "test", None, {}))
            async with asyncio.timeout(60):
                await feed.caught_up(1)
            proxy._target = former.port
            with pytest.raises(DatabaseLost, match="was the primary before another one took over"):
                await asyncio.to_thread(store.database.connect, "nodes")
        finally:
            feed.close()
            store.close()


def test_what_was_committed_is_on_the_disk_though_the_server_would_write_it_later():
    with Server("synchronous_commit=off", "wal_writer_delay=10s", fast=False) as server:
        name = server.new()
        store = Store(server.url(name), "01234567")
        store.open()
        try:
            server.sql("CHECKPOINT")
            store.run(lambda transaction: transaction.audit(1, "test", None, {}))
            server.kill()
            server.start()
        finally:
            store.close()
        assert server.sql("SELECT action FROM audit", name) == [("test",)]


def test_a_server_that_promises_more_is_left_as_it_is():
    with Server("synchronous_commit=remote_apply", fast=False) as server:
        store = Store(server.url(server.new()), "01234567")
        store.open()
        try:
            shown = store.run(lambda t: t.connection.exec_driver_sql("SHOW synchronous_commit").scalar())
        finally:
            store.close()
    assert shown == "remote_apply"
