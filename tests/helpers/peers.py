"""Independent EPICS implementations as processes: started, waited for, asked, and always ended.

A peer is a script of ``tests/interop/peers``. It prints one JSON document a line: first ``{"ready": ...}``, then an
answer (``{"id": n, "result": ...}`` or ``{"id": n, "error": text}``) for each request that it reads from its standard
input, and events (``{"event": ...}``) in between. It ends when its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

PEERS = Path(__file__).parents[1] / "interop" / "peers"
START_S = 60.0
ANSWER_S = 60.0


class PeerError(Exception):
    """The peer answered with an error; the text is the peer's."""


def epics_environment(**variables: object) -> dict[str, str]:
    """This process's environment without any EPICS setting, with ``variables`` put in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EPICS_", "PVXS_"))}
    return {**kept, **{name: str(value) for name, value in variables.items()}}


def client_environment(udp_port: int, **more: object) -> dict[str, str]:
    """For a peer that searches on 127.0.0.1 only."""
    return epics_environment(
        EPICS_PVA_ADDR_LIST="127.0.0.1",
        EPICS_PVA_AUTO_ADDR_LIST="NO",
        EPICS_PVA_BROADCAST_PORT=udp_port,
        **more,
    )


def server_environment(udp_port: int, tcp_port: int = 0, **more: object) -> dict[str, str]:
    """For a peer that serves on 127.0.0.1 only. Port 0 lets it take any."""
    return epics_environment(
        EPICS_PVAS_INTF_ADDR_LIST="127.0.0.1",
        EPICS_PVAS_SERVER_PORT=tcp_port,
        EPICS_PVA_SERVER_PORT=tcp_port,
        EPICS_PVAS_BROADCAST_PORT=udp_port,
        EPICS_PVA_BROADCAST_PORT=udp_port,
        EPICS_PVA_ADDR_LIST="127.0.0.1",
        EPICS_PVA_AUTO_ADDR_LIST="NO",
        EPICS_PVAS_BEACON_ADDR_LIST="127.0.0.1",
        EPICS_PVAS_AUTO_BEACON_ADDR_LIST="NO",
        **more,
    )


class Peer:
    """One process; a context manager that has it ready at its beginning and gone at its end.

    ``module`` are words of Python's command line before the script, as ``-m runner``.
    """

    def __init__(
        self,
        script: str,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        module: Sequence[str] = (),
    ) -> None:
        self.script = script
        self.ready: Any = None
        self.events: list[dict[str, Any]] = []
        self._output: list[str] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self._next = 0
        self._ended = False
        self._grown = threading.Condition()
        path = PEERS / script if not script.startswith("/") else Path(script)
        self.process = subprocess.Popen(
            [sys.executable, *module, str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A pipe of its own: what a library logs while an answer is written would end up inside it.
            stderr=subprocess.PIPE,
            env=dict(epics_environment() if environ is None else environ),
            cwd="/",
            text=True,
            errors="replace",
        )
        self._readers = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._grown:
                self._output.append(line)
                self._grown.notify_all()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            document: Any = None
            if line.startswith("{"):
                try:
                    document = json.loads(line)
                except ValueError:
                    document = None
            with self._grown:
                if document is None:
                    self._output.append(line)
                elif "id" in document:
                    self._answers[document["id"]] = document
                elif "ready" in document:
                    self.ready = document["ready"]
                else:
                    self.events.append(document)
                self._grown.notify_all()
        with self._grown:
            self._ended = True
            self._grown.notify_all()

    def _wait(self, found: Callable[[], Any], what: str, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        with self._grown:
            while True:
                result = found()
                if result is not None:
                    return result
                if self._ended or not self._grown.wait(deadline - time.monotonic()):
                    why = "ended" if self._ended else f"was silent for {timeout:g} s"
                    raise AssertionError(
                        f"{self.script} {why}, waiting for {what}; its output:\n{self.output}"
                    )

    @property
    def output(self) -> str:
        """What the peer printed beside the protocol."""
        return "".join(self._output[-200:])

    def started(self) -> Any:
        """Wait until it is ready."""
        return self._wait(lambda: self.ready, "readiness", START_S)

    def ask(self, op: str, **request: Any) -> Any:
        """Have the peer do something, and wait for the result; raises PeerError."""
        return self.answer(self.send(op, **request), op)

    def answer(self, number: int, what: str = "a request") -> Any:
        """Wait for the result of what ``send`` began; raises PeerError."""
        answer = self._wait(lambda: self._answers.pop(number, None), f"the answer to {what}", ANSWER_S)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["result"]

    def send(self, op: str, **request: Any) -> int:
        """Have the peer begin something."""
        self._next += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": self._next, "op": op, **request}) + "\n")
        self.process.stdin.flush()
        return self._next

    async def do(self, op: str, **request: Any) -> Any:
        """``ask`` while the event loop goes on."""
        return await asyncio.to_thread(lambda: self.ask(op, **request))

    async def saw(self, wanted: Callable[[dict[str, Any]], bool], what: str = "an event") -> dict[str, Any]:
        """Wait for an event; all before it are dropped."""

        def find() -> dict[str, Any] | None:
            for index, event in enumerate(self.events):
                if wanted(event):
                    del self.events[: index + 1]
                    return event
            return None

        return await asyncio.to_thread(self._wait, find, what, ANSWER_S)

    async def printed(self, text: str) -> None:
        """Wait until its output has a text."""
        await asyncio.to_thread(self._wait, lambda: text in self.output or None, repr(text), ANSWER_S)

    def stop(self) -> None:
        """End it in an orderly way; kill it where that does not help."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        for reader in self._readers:
            reader.join(30)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self.process.kill()
        self.process.wait(30)

    def freeze(self) -> None:
        """Have it vanish without a word: its sockets stay, nobody is behind them."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Bring it back."""
        os.kill(self.process.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            self.started()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.thaw()
        self.stop()
