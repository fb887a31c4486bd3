"""Our IOC, and the reference IOC, as processes on loopback with ports of their own."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.client import Context
from appliance.config.pva import resolve_client
from tests.helpers.ports import free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "appliance" / "quickstart" / "data"
EXAMPLE_FILES = [EXAMPLES / name for name in ("example.db", "groups.db", "image.db")]


class IocProcess:
    """A process and what it has printed, both streams together."""

    def __init__(self, process: asyncio.subprocess.Process, udp: int, tcp: int) -> None:
        self.process = process
        self.udp = udp
        self.tcp = tcp
        self.log = ""
        self._grown = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while data := await self.process.stdout.read(65536):
            async with self._grown:
                self.log += data.decode(errors="replace")
                self._grown.notify_all()
        async with self._grown:
            self._grown.notify_all()

    async def printed(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Wait until the output holds the pattern."""
        async with asyncio.timeout(30), self._grown:
            while (match := re.compile(pattern).search(self.log, after)) is None:
                if self._reader.done():
                    raise AssertionError(f"{pattern} was not printed:\n{self.log}")
                await self._grown.wait()
            return match

    def type(self, text: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())

    async def ended(self) -> int:
        """Wait for its end; the exit status."""
        async with asyncio.timeout(30):
            status = await self.process.wait()
            await self._reader
        return status

    async def stop(self) -> int:
        """Terminate it."""
        if self.process.returncode is None:
            self.process.terminate()
        return await self.ended()

    def client(self, **options: object) -> Context:
        """A client of this IOC and no other."""
        settings = {"addr_list": f"127.0.0.1:{self.udp}", "auto_addr_list": False, **options}
        return Context(resolve_client(settings, environ={}).config)


def environment(udp: int, tcp: int, **variables: str | None) -> dict[str, str]:
    """Loopback only, nothing from the developer's own settings; None leaves a variable unset."""
    base = {key: value for key, value in os.environ.items() if not key.startswith(("EPICS_", "PVXS", "XDG_"))}
    found = {
        **base,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
        "EPICS_PVAS_BROADCAST_PORT": str(udp),
        "EPICS_PVAS_SERVER_PORT": str(tcp),
        "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{udp}",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_TLS_KEYCHAIN": "",
        "EPICS_PVAS_TLS_KEYCHAIN": "",
        **variables,
    }
    return {name: value for name, value in found.items() if value is not None}


@asynccontextmanager
async def _running(*command: str, cwd: Path | None, **variables: str | None) -> AsyncIterator[IocProcess]:
    udp, tcp = free_port(), free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=cwd,
        env=environment(udp, tcp, **variables),
    )
    ioc = IocProcess(process, udp, tcp)
    try:
        yield ioc
    finally:
        await ioc.stop()


@asynccontextmanager
async def starting_ioc(
    *arguments: object, cwd: Path | None = None, **variables: str | None
) -> AsyncIterator[IocProcess]:
    """Our IOC, not waited for."""
    async with _running("-m", "appliance.cli.softiocpvx", *map(str, arguments), cwd=cwd, **variables) as ioc:
        yield ioc


@asynccontextmanager
async def running_ioc(
    *arguments: object, cwd: Path | None = None, **variables: str | None
) -> AsyncIterator[IocProcess]:
    """Our IOC, its records served. A process that ends before fails the test with its output."""
    async with starting_ioc(*arguments, cwd=cwd, **variables) as ioc:
        await ioc.printed(r"serving \d+ records|epics> ")
        yield ioc


def loading(
    databases: Sequence[Path], groups: Sequence[Path] = (), macros: str = "user=test,N=tst,P=tst"
) -> list[object]:
    """Arguments that load files, without a shell."""
    words: list[object] = ["-S", "-m", macros]
    for file in databases:
        words += ["-d", file]
    for file in groups:
        words += ["-G", file]
    return words


@asynccontextmanager
async def running_reference(
    databases: Sequence[Path], groups: Sequence[Path] = (), macros: str = "user=test,N=tst,P=tst"
) -> AsyncIterator[IocProcess]:
    """pvxslibs' IOC with the same files."""
    script = str(ROOT / "tests" / "helpers" / "pvxs_ioc.py")
    files = [*map(str, databases), "--", *map(str, groups)]
    async with _running(script, macros, *files, cwd=None) as ioc:
        await ioc.printed("READY")
        yield ioc
