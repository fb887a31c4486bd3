"""Several ``pvacms`` processes on one PostgreSQL, which can all be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from appliance.certs.keychain import Keychain, load_keychain
from tests.helpers.cms import Process
from tests.helpers.history import AuditRecord
from tests.helpers.postgres import Server

START_S = 300.0
"""A node starts in two seconds. It may be that this machine does something else for a while."""


class Node:
    """One ``pvacms`` with a directory and ports of its own, which it keeps over its lives."""

    def __init__(self, name: str, directory: Path, database: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.directory = directory
        self.process: Process | None = None
        self.tcp_port = self.tls_port = 0
        self.is_up = False
        self._database = database
        self._arguments = arguments

    def start(self) -> Node:
        """Start it, and wait until it serves."""
        ports = {"EPICS_PVACMS_SERVER_PORT": str(self.tcp_port), "EPICS_PVACMS_TLS_PORT": str(self.tls_port)}
        self.process = Process(
            self.directory,
            *self._arguments,
            EPICS_PVACMS_DB=self._database,
            EPICS_PVACMS_NODE=self.name,
            **ports,
        )
        self.process.ready(START_S)
        self.tcp_port, self.tls_port = self.process.tcp_port, self.process.tls_port
        self.is_up = True
        return self

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.is_up = False
        self.process.process.kill()
        self.process.process.wait(30)

    def close(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGCONT)
            if self.process.process.poll() is None:
                self.process.process.terminate()
                with contextlib.suppress(Exception):
                    self.process.process.wait(30)
            if self.process.process.poll() is None:
                self.kill()

    @property
    def log(self) -> str:
        """What it has logged up to now."""
        if self.process is None:
            return ""
        return "".join([*self.process.log, *(line for line in list(self.process._err.queue) if line)])


class Cluster:
    """Nodes of one authority, on a database of a server."""

    def __init__(self, directory: Path, server: Server, *arguments: str, names: str = "ab") -> None:
        self.server = server
        self.database = server.empty()
        url = server.url(self.database)
        self.nodes = {name: Node(name, directory / name, url, arguments) for name in names}
        for node in self.nodes.values():
            node.directory.mkdir()

    def start(self) -> Cluster:
        first, *others = self.nodes.values()
        first.start()
        assert first.process is not None
        home = first.process.config_dir
        for node in others:
            # The authority is made once, and copied by the site's administrator.
            there = node.directory / home.relative_to(first.directory)
            there.mkdir(parents=True)
            shutil.copy2(home / "cert_auth.p12", there / "cert_auth.p12")
            shutil.copy2(home / "pvacms.acf", there / "pvacms.acf")
            node.start()
        return self

    @property
    def issuer(self) -> str:
        process = next(iter(self.nodes.values())).process
        assert process is not None
        return process.issuer

    @property
    def administrator(self) -> Keychain:
        process = next(iter(self.nodes.values())).process
        assert process is not None
        return load_keychain((process.config_dir / "admin.p12").read_bytes())

    def kill_database(self) -> None:
        """Kill the server and each of its processes, as a power cut does, and start it again."""
        main = self.server._process
        assert main is not None
        children = list(_children(main.pid))
        self.server.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A new server refuses to start beside processes of the old one.
        end = time.monotonic() + 30
        while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < end:
            time.sleep(0.01)
        self.server.start()

    def cut_connections(self) -> None:
        """Have the server end the connections of all nodes."""
        self.server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pvacms%'"
        )

    @property
    def situation(self) -> str:
        """What an engineer wants to see of a test that failed."""
        activity = (
            "SELECT application_name, pid, state, wait_event, now() - state_change, left(query, 200) FROM pg_stat_activity "
            "WHERE datname IS NOT NULL ORDER BY application_name"
        )
        locks = "SELECT pid, objid, granted FROM pg_locks WHERE locktype = 'advisory' ORDER BY objid, granted"
        lines = [
            f"{name}: {line}" for name, node in self.nodes.items() for line in node.log.splitlines()[-30:]
        ]
        with contextlib.suppress(Exception):
            lines += [str(row) for query in (activity, locks) for row in self.server.sql(query)]
        return "\n".join(lines)

    def audit(self) -> list[AuditRecord]:
        rows = self.server.sql("SELECT record, hash FROM audit ORDER BY seq", self.database)
        return [AuditRecord(json.loads(record), seal) for record, seal in rows]

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.start)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)


def _children(pid: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    yield int(entry.name)
