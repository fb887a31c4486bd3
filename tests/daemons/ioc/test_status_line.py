"""What systemctl status shows of an IOC is so now, not as it was at the start."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.helpers.authn import running_site
from tests.helpers.ioc_process import running_ioc
from tests.helpers.ports import free_port


async def until(manager: socket.socket, text: str) -> str:
    """The next message to the service manager that holds ``text``."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        while True:
            message = (await loop.sock_recv(manager, 65536)).decode()
            if text in message:
                return message


async def test_the_status_line_follows_a_keychain_that_comes_later(tmp_path: Path) -> None:
    (tmp_path / "one.db").write_text('record(ao, "one") {}\n')
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.setblocking(False)
    port = free_port()
    with running_site(tmp_path / "site") as site:
        account = site.account()
        variables = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "EPICS_PVAS_TLS_KEYCHAIN": str(account.config / "server.p12"),
            "EPICS_PVAS_TLS_OPTIONS": "on_no_keychain=fallback-to-tcp",
            "EPICS_PVAS_TLS_PORT": str(port),
            "EPICS_PVA_ADDR_LIST": "",
            "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{site.tcp.port}",
        }
        account.config.mkdir(parents=True)
        async with running_ioc("-S", "-d", tmp_path / "one.db", **variables):
            assert "TLS port off" in await until(manager, "READY=1")
            token = account.token_file("softioc")
            done = await asyncio.to_thread(account.run, "authnjwt", "-u", "ioc", "--token-file", token)
            assert done.status == 0, done.err
            assert (await until(manager, f"TLS port {port}")).startswith("STATUS=1 records, TCP port ")
    manager.close()
