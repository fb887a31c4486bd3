"""A daemon as a process, and the service manager that it reports to."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.helpers.tools import ROOT

LIMIT_S = 60.0
"""Seconds for what takes a few: the machine may be busy."""


class Reporting:
    """``async with Reporting(directory, module, *arguments, **variables) as daemon``: what it reports comes to `until`."""

    def __init__(self, directory: Path, module: str, *arguments: object, **variables: str) -> None:
        self.directory = directory
        self.command = [sys.executable, "-m", module, *map(str, arguments)]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("EPICS_", "PVXS_", "XDG_"))}
        self.address = str(directory / f"notify{len(list(directory.glob('notify*')))}")
        self.environ = {**kept, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": self.address, **variables}
        self.log = ""
        self.said: list[str] = []
        self._more = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(self.address)
        self.process = await asyncio.create_subprocess_exec(
            *self.command,
            env=self.environ,
            cwd="/",
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
        )
        assert self.process.stderr is not None
        self._reading = asyncio.create_task(self._read(self.process.stderr))
        return self

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self.log += line.decode(errors="replace")
            self._more.set()

    async def logged(self, text: str) -> None:
        """Wait until its log holds ``text``."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while text not in self.log:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"never logged {text!r}:\n{self.log}") from None

    async def until(self, fits: Callable[[str], bool]) -> str:
        """Return the next status for which ``fits`` is true; ``READY`` stands before the one with which it became ready."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    lines = (await loop.sock_recv(self.socket, 65536)).decode().split("\n")
                    status = next((line[7:] for line in lines if line.startswith("STATUS=")), "")
                    text = f"READY {status}" if "READY=1" in lines else status
                    self.said.append(text)
                    if text and fits(text):
                        return text
        except TimeoutError:
            raise AssertionError(f"never reported: {self.said[-3:]}; its log:\n{self.log}") from None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; return its exit status."""
        async with asyncio.timeout(LIMIT_S):
            status = await self.process.wait()
            await self._reading
        assert "Traceback" not in self.log, self.log
        return status

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.signal(signal.SIGKILL)
        await self.process.wait()
        await self._reading
        self.socket.close()
