"""The operators' console: the IOC shell on a UNIX socket.

The socket belongs to a group, and only its members can open it. Each command is logged with its user. One
line is one command; the answer is its output and then a prompt. A line that begins with a TAB asks for completions
(:mod:`appliance.ioc.attach`).
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import pwd
import socket
import stat
import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from appliance.daemon.logging import redact
from appliance.errors import ConfigurationError
from appliance.ioc.completion import Completer
from appliance.ioc.editing import plain
from appliance.ioc.lines import captured_line

__all__ = ["Console"]

_log: Final = logging.getLogger("appliance.ioc.console")
_PROMPT: Final = b"epics> "
_LINE: Final = 4096
_CLIENTS: Final = 16
_TURNS: Final = 3
"""Turns of the loop after which what was written is with the system."""
_CREDENTIALS: Final = struct.Struct("3i")
_T = TypeVar("_T")


class Console:
    """The console; it listens from :meth:`start` to :meth:`stop`."""

    def __init__(self, path: str, group: str = "") -> None:
        self._path = Path(path)
        self._group = group
        self._server: asyncio.AbstractServer | None = None
        self._clients: set[asyncio.Task[None]] = set()
        # Commands of EPICS use buffers that all share.
        self._one = asyncio.Lock()
        self._runs = ""
        """The command that runs, and whose it is."""
        self._completer = Completer()

    async def start(self) -> None:
        """Make the socket.

        Raises:
            ConfigurationError: The group does not exist, or the socket cannot be made.
        """
        path = self._path
        gid = -1
        if self._group:
            try:
                gid = grp.getgrnam(self._group).gr_gid
            except KeyError:
                raise ConfigurationError(
                    f"this host has no group {self._group!r}", key="console_group"
                ) from None
        self._remove_stale()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777)
        try:
            sock.bind(os.fspath(path))
        except OSError as error:
            sock.close()
            raise ConfigurationError(
                f"cannot make the console {path}: {error.strerror or error}", key="console"
            ) from None
        finally:
            os.umask(before)
        try:
            # Nobody can open the socket yet: set the owner first, then the mode.
            # A sandbox may forbid this call even if it would change nothing.
            if gid not in (-1, path.lstat().st_gid):
                os.chown(path, -1, gid)
            path.chmod(0o660)
            self._server = await asyncio.start_unix_server(self._client, sock=sock, limit=_LINE)
        except OSError as error:
            sock.close()
            path.unlink(missing_ok=True)
            raise ConfigurationError(
                f"cannot give the console {path} to the group {self._group!r}: {error.strerror or error}",
                key="console",
            ) from None

    def _remove_stale(self) -> None:
        path = self._path
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise ConfigurationError(f"{path} exists and is not a socket", key="console")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(os.fspath(path))
                except OSError:
                    path.unlink()
                else:
                    raise ConfigurationError(f"another IOC has its console at {path}", key="console")

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        who = _user(writer)
        try:
            if len(self._clients) >= _CLIENTS:
                writer.write(b"too many consoles are open\n")
                return
            self._clients.add(task)
            _log.info("%s opened the console", who, extra={"event": "console-opened", "account": who})
            await self._serve(reader, writer, who)
        except (ConnectionError, ValueError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:
            # The IOC stops. Python's streams log a handler that ends as cancelled as an error (before 3.12).
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, who: str) -> None:
        prompt = _PROMPT
        while True:
            writer.write(prompt)
            await writer.drain()
            line = await reader.readline()
            if line.startswith(b"\t"):
                # A program is at the other end. No output has a NUL, so it can tell the prompt from it.
                prompt = b"\0" + _PROMPT
                await self._complete(line, writer)
                continue
            command = line.decode("utf-8", "replace").strip()
            if not line or command in ("exit", "quit"):
                return
            if not command or command.startswith("#"):
                continue
            told = {"event": "console-command", "account": who, "command": command}
            _log.info("%s: %s", who, command, extra=told)
            if not await self._turn(writer):
                _log.warning("%s: not run, since the console was closed meanwhile: %s", who, command)
                return
            try:
                self._runs = redact(f"{who}: {command}")
                ok, text = await _in_thread(partial(captured_line, command))
            finally:
                self._one.release()
            writer.write(plain(text).encode())
            if not ok:
                writer.write(b"(failed)\n")

    async def _turn(self, writer: asyncio.StreamWriter) -> bool:
        """Wait until no other command runs; return whether somebody still waits for this one."""
        if not self._one.locked():
            await self._one.acquire()
            return True
        writer.write(f"(waits for the command of {self._runs})\n".encode())
        await self._one.acquire()
        try:
            # Whoever has left wants nothing any more; whoever has only sent all of its lines does. Writing tells.
            writer.write(b"(it has ended)\n")
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if not writer.is_closing():
                return True
        except BaseException:
            self._one.release()
            raise
        self._one.release()
        return False

    async def _complete(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        """Answer a question for completions; it is no command and not logged."""
        text, _, typed = line.decode("utf-8", "replace").strip("\r\n")[1:].partition("\t")
        found: list[str] = []
        # Whoever presses TAB, or opens the console, must not wait for somebody's command.
        if not self._one.locked():
            async with self._one:
                found = await _in_thread(partial(self._completer.found, text, typed))
        writer.write("".join(f"{each}\n" for each in found if each.isprintable()).encode())

    async def stop(self) -> None:
        """Close the socket."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)
        for task in list(self._clients):
            task.cancel()


async def _in_thread(function: Callable[[], _T]) -> _T:
    """Call a function in a thread of its own. The end of the process does not wait for it: a command may never end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def finish(result: _T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is a result

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as caught:  # noqa: BLE001 - whoever waits gets it
            error = caught
        # The loop may be closed by now: the IOC has ended.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=work, name="console", daemon=True).start()
    return await done


def _user(writer: asyncio.StreamWriter) -> str:
    sock = writer.get_extra_info("socket")
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
