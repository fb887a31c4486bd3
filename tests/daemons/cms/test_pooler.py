"""Nodes that reach their database through PgBouncer, which gives each connection a session of its own."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.certs.keychain import load_keychain
from appliance.cms.dialect import Login, engine_for
from appliance.config.secret import Secret
from appliance.pvdata import Value
from tests.daemons.cms.test_database_server import URL, Node, health, refused
from tests.helpers.cms import ccr, client
from tests.helpers.live import until
from tests.helpers.ports import free_port
from tests.helpers.postgres import PASSWORD, Server, owner, prefix

# Poolers are told to drop what they do not know of a connection's start. They say nothing of it.
CONFIGURATION = """[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = {mode}
ignore_startup_parameters = extra_float_digits,options
"""

LIMITED = (
    "lock_timeout",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "tcp_keepalives_idle",
    "timezone",
)


class Pooler:
    """A PgBouncer in front of a server, which can be killed and started again."""

    def __init__(self, server: Server, folder: Path, mode: str) -> None:
        self.port = free_port()
        self._configuration = folder / "pgbouncer.ini"
        self._configuration.write_text(
            CONFIGURATION.format(server=server.port, port=self.port, folder=folder, mode=mode)
        )
        users = folder / "users.txt"
        users.write_text(f'"pvacms" "{PASSWORD}"\n')
        for path in (folder, self._configuration, users):
            shutil.chown(path, owner())
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [*prefix(dies_with_us=True), "pgbouncer", str(self._configuration)]
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert self._process.stderr is not None
        assert any("process up" in line for line in self._process.stderr), "pgbouncer did not start"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def pooler(postgres: Server, request: pytest.FixtureRequest) -> Iterator[Pooler]:
    if not shutil.which("pgbouncer", path="/usr/sbin:/usr/bin"):
        pytest.fail("PgBouncer is not installed (apt install pgbouncer)")
    with tempfile.TemporaryDirectory(prefix="spva-pooler-") as folder:
        pooler = Pooler(postgres, Path(folder), getattr(request, "param", "session"))
        pooler.start()
        try:
            yield pooler
        finally:
            pooler.kill()


def settings(db: str) -> list[str]:
    """What a session of a node's writer has."""
    engine = engine_for(db, role="writer", login=Login(Secret(PASSWORD)))
    with engine.connect() as connection:
        return [str(connection.exec_driver_sql(f"SHOW {name}").scalar()) for name in LIMITED]


async def test_limits_of_a_session_hold_though_the_pooler_drops_options(postgres, pooler):
    name = postgres.empty()
    direct, pooled = (URL.format(port=port, name=name) for port in (postgres.port, pooler.port))
    found = await asyncio.to_thread(settings, pooled)
    assert found == await asyncio.to_thread(settings, direct)
    assert not {"0", ""} & set(found)
    own = "?options=-c%20lock_timeout%3D7000"
    assert (await asyncio.to_thread(settings, direct + own))[0] == "7s", "a site's own setting counts"
    postgres.drop(name)


async def test_two_nodes_work_through_a_pooler_that_drops_settings_and_dies(tmp_path, postgres, pooler):
    name = postgres.empty()
    db = URL.format(port=pooler.port, name=name)
    first = Node(tmp_path, "a", db, require_client_approval="false")
    with first.process() as a:
        a.ready(90)
        admin = load_keychain((a.config_dir / "admin.p12").read_bytes())
        second = Node(tmp_path, "b", db, require_client_approval="false").takes_authority_of(first)
        with second.process() as b:
            b.ready(90)
            async with client(a.tcp_port) as at_a, client(b.tcp_port) as at_b:
                reply = await at_a.rpc("CERT:CREATE", ccr("alice"))
                heard: list[Value] = []
                at_b.monitor(reply["status_pv"], on_update=heard.append)
                await until(lambda: heard and heard[-1]["state"] == "VALID")
                pooler.kill()
                await health(at_b, db_ok=False)
                pooler.start()
                for at_one in (at_a, at_b):
                    await health(at_one, db_ok=True)
                async with client(a.tls_port, admin) as administrator:
                    await administrator.put(reply["status_pv"], {"state": "REVOKED"})
                await until(lambda: heard[-1]["state"] == "REVOKED")
            assert b.stop()[0] == 0
        assert a.stop()[0] == 0
    postgres.drop(name)


@pytest.mark.parametrize("pooler", ["transaction"], indirect=True)
def test_a_pooler_that_gives_a_session_to_many_is_refused(tmp_path, postgres, pooler):
    name = postgres.empty()
    said = refused(Node(tmp_path, "a", URL.format(port=pooler.port, name=name)))
    assert "two connections have the same session" in said
    assert "PgBouncer: pool_mode = session" in said
    pooler.kill()
    postgres.drop(name)
