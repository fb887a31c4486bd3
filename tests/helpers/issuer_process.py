"""``jwt-issuer`` as the process that a site runs."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "appliance.issuer.daemon")


def environment(changes: Mapping[str, str] = {}) -> dict[str, str]:
    own = {"PORT", "ISSUER", "DEFAULT_AUDIENCE", "DEFAULT_EXP_SECS", "ALGO", "KEY_DIR", "KID", "HS_SECRET"}
    base = {
        name: value for name, value in os.environ.items() if name not in own and not name.startswith("PVXS")
    }
    return {**base, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **changes}


class Issuer:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = ""
        self.url = ""
        self._grown = asyncio.Condition()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            async with self._grown:
                self.log += line.decode()
                self._grown.notify_all()
        async with self._grown:
            self._grown.notify_all()

    async def logged(self, pattern: str) -> re.Match[str]:
        """Wait until the log holds the pattern."""

        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.log)
            if match is None and self._reader.done():
                raise AssertionError(f"{pattern} is not in the log:\n{self.log}")
            return match

        async with asyncio.timeout(30), self._grown:
            while (match := found()) is None:
                await self._grown.wait()
            return match

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(30):
            status = await self.process.wait()
            await self._reader
        return status


@asynccontextmanager
async def running_issuer(*arguments: str, **variables: str) -> AsyncIterator[Issuer]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment({"PORT": "0", **variables}),
        cwd="/",
    )
    issuer = Issuer(process)
    try:
        issuer.url = (await issuer.logged(r"listening on (https?://[^\s,\"]+)"))[1]
        yield issuer
    finally:
        await issuer.stop()


async def once(*arguments: str, given: str = "", **variables: str) -> tuple[int, str, str]:
    """Run to the end: status, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(variables),
        cwd="/",
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate(given.encode())
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
