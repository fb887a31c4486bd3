"""Start the daemons of the quick start as processes, and wait until they say that they serve."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError

__all__ = ["ChildDaemon", "module_command"]

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 10.0

MODULES: Final = {
    "authnjwt": "appliance.cli.authnjwt",
    "authnstd": "appliance.cli.authnstd",
    "jwt-issuer": "appliance.issuer.daemon",
    "pvagw": "appliance.gateway.daemon",
    "pvacms": "appliance.cli.pvacms",
    "pvxcert": "appliance.cli.pvxcert",
    "pvxget": "appliance.cli.pvxget",
    "pvxinfo": "appliance.cli.pvxinfo",
    "pvxmonitor": "appliance.cli.pvxmonitor",
    "pvxput": "appliance.cli.pvxput",
    "softIocPVX": "appliance.cli.softiocpvx",
}


def module_command(words: list[str]) -> list[str]:
    """Return the command that runs ``words`` with this interpreter and package, whatever PATH says."""
    return [sys.executable, "-m", MODULES[words[0]], *words[1:]]


class ChildDaemon:
    """One daemon. Its output goes to ``log``. It reports that it serves in the way it would report to systemd."""

    def __init__(
        self,
        name: str,
        words: list[str],
        environment: dict[str, str],
        log: Path,
        inherited: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.words = words
        self.environment = environment
        self.log = log
        self.status = ""
        """The daemon's last status message."""
        self._inherited = inherited
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None

    async def start(self) -> None:
        """Start, and wait until the daemon serves.

        Raises:
            ApplianceError: It does not; the text has the end of the log.
        """
        loop = asyncio.get_running_loop()
        name = f"spva-quickstart-{os.getpid()}-{self.name}"
        # An abstract address, because a path below the directory could be too long for a socket.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.bind(f"\0{name}")
        environment = self.environment | {"NOTIFY_SOCKET": f"@{name}"}
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *module_command(self.words),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=self._inherited,
            )
        ready = asyncio.ensure_future(self._until_ready(loop))
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait((ready, ended), timeout=READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not ready.cancelled():
                return
            why = (
                f"ended with status {ended.result()}"
                if ended.done()
                else f"was not ready in {READY_TIMEOUT_S:.0f} s"
            )
            raise ApplianceError(f"{self.name} {why}; the end of {self.log}:\n{self.tail()}")
        finally:
            ready.cancel()
            ended.cancel()

    async def _until_ready(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._socket is not None
        while True:
            message = (await loop.sock_recv(self._socket, 4096)).decode("utf-8", "replace")
            for line in message.splitlines():
                if line.startswith("STATUS="):
                    self.status = line[7:]
            if "READY=1" in message.splitlines():
                return

    @property
    def pid(self) -> int:
        """The process number, 0 before the start."""
        return 0 if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    def tail(self, lines: int = 15) -> str:
        """Return the end of what the daemon printed."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])
        return ""

    async def stop(self) -> None:
        """Ask the daemon to stop; kill it if it does not."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
