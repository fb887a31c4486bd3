"""A site of two networks: certificate service and token issuer inside, accounts outside, and a gateway as a process between them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.helpers.authn import INSIDE, Account, Site, running_site
from tests.helpers.ports import free_port
from tests.helpers.tools import ROOT

HOST = "127.0.0.1"
START_S = 30.0
Ports = dict[str, int]


class Outside(NamedTuple):
    """How to reach the gateway."""

    site: Site
    ports: Ports
    """``tcp``, ``tls``, ``relay``, ``udp`` of the gateway."""
    log: Path
    process: subprocess.Popen[bytes]

    def account(self, way: str = "udp", **variables: str) -> Account:
        """An account that knows the gateway only: by ``udp`` search, or as a name server by ``tcp`` or ``tls``."""
        found = {
            "udp": {
                "EPICS_PVA_ADDR_LIST": HOST,
                "EPICS_PVA_BROADCAST_PORT": str(self.ports["udp"]),
                "EPICS_PVA_NAME_SERVERS": "",
            },
            "tcp": {"EPICS_PVA_NAME_SERVERS": f"{HOST}:{self.ports['tcp']}"},
            "tls": {"EPICS_PVA_NAME_SERVERS": f"pvas://{HOST}:{self.ports['tls']}"},
        }[way]
        return self.site.account(**{**found, **variables})

    def administrator(self, way: str = "udp") -> Account:
        return self.account(way, EPICS_PVA_TLS_KEYCHAIN=str(self.site.cms.config_dir / "admin.p12"))


def free_ports() -> Ports:
    """Ports for one gateway."""
    return {name: free_port() for name in ("tcp", "tls", "relay")} | {"udp": free_port()}


def configuration(ports: Ports, upstream: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A gateway before ``upstream`` (settings of its client side); ``more`` is for its server side."""
    pva = {
        "intf_addr_list": HOST,
        "auto_beacon_addr_list": False,
        "server_port": ports["tcp"],
        "tls_port": ports["tls"],
        "broadcast_port": ports["udp"],
        "tls_keychain": "",
        **more.pop("pva", {}),
    }
    client = {"auto_addr_list": False, "addr_list": "", "tls_keychain": "", **upstream}
    return {
        "clients": {"inner": {"pva": client}},
        "servers": {
            "outer": {"clients": ["inner"], "pva": pva, "relay": {"tls_port": ports["relay"]}, **more}
        },
    }


@contextlib.contextmanager
def gateway_process(
    folder: Path, settings: dict[str, Any], ready: tuple[int, ...]
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Our gateway as a process that accepts connections at the ports ``ready`` of 127.0.0.1, and its log."""
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "gateway.yml", folder / "gateway.log"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EPICS_", "PVXS_"))}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.gateway.daemon", "--config", str(path)],
            stdout=out,
            stderr=out,
            env={
                **kept,
                "PYTHONPATH": str(ROOT),
                "XDG_CONFIG_HOME": str(folder / "config"),
                "XDG_DATA_HOME": str(folder / "data"),
                "EPICS_PVA_STATUS_CACHE_DIR": str(folder / "statuses"),
            },
            cwd="/",
        )
    try:
        end = time.monotonic() + START_S
        for port in ready:
            while True:
                with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
                    break
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < end, log.read_text()[-3000:]
                time.sleep(0.02)
        yield process, log
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def site_inside(folder: Path, *, proxy_from: str = HOST, **settings: Any) -> Iterator[Site]:
    """The certificate service, which believes relays at ``proxy_from``, and the issuer of tokens."""
    path = folder / "pvacms.yml"
    written = {"proxy_from": [proxy_from] if proxy_from else [], **settings}
    path.write_text(json.dumps(written))
    with running_site(folder, "--config", str(path)) as site:
        yield site


@contextlib.contextmanager
def outside(site: Site, folder: Path, **more: Any) -> Iterator[Outside]:
    """A gateway before the site."""
    ports = free_ports()
    upstream = {"name_servers": f"{INSIDE}:{site.cms.tcp_port}", **more.pop("client", {})}
    settings = configuration(ports, upstream, **more)
    ready = (ports["tcp"], *((ports["tls"],) if settings["servers"]["outer"]["pva"]["tls_keychain"] else ()))
    with gateway_process(folder, settings, ready) as (process, log):
        yield Outside(site, ports, log, process)
