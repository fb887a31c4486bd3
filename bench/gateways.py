"""The gateways under test, each a process of its own: ours, and p4p's."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.servers import Running, free_ports

READY_IN = 20.0


@contextlib.contextmanager
def gateway(which: str, upstream: Running, keychain: str = "") -> Iterator[Running]:
    """A gateway between 127.0.0.1 and ``upstream``; with ``keychain`` TLS on both sides (ours only)."""
    tcp, udp, tls = free_ports(3)
    with tempfile.TemporaryDirectory() as folder:
        if which == "ours":
            path = Path(folder, "gateway.yml")
            path.write_text(ours(upstream, tcp, udp, tls, keychain))
            words = ["-m", "appliance.gateway.daemon", "--config", str(path)]
        else:
            path = Path(folder, "gateway.conf")
            path.write_text(p4p(upstream, tcp, udp))
            words = ["-m", "p4p.gw", str(path)]
        process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for_port(process, tls if keychain else tcp)
            yield Running(tcp, udp, tls, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.perf_counter() + READY_IN
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended with {process.returncode}")
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.02)
    raise RuntimeError("the gateway did not open its port")


def ours(upstream: Running, tcp: int, udp: int, tls: int, keychain: str) -> str:
    """The configuration. YAML is a superset of JSON, which needs no library to write; the dashes say that it is not p4p's JSON."""
    client: dict[str, object] = {
        "addr_list": "127.0.0.1",
        "auto_addr_list": False,
        "broadcast_port": upstream.udp,
    }
    server: dict[str, object] = {
        "intf_addr_list": "127.0.0.1",
        "auto_beacon_addr_list": False,
        "beacon_addr_list": "127.0.0.1",
        "server_port": tcp,
        "broadcast_port": udp,
    }
    if keychain:
        client["tls_keychain"] = keychain
        server |= {"tls_keychain": keychain, "tls_port": tls}
    return "---\n" + json.dumps(
        {"clients": {"c": {"pva": client}}, "servers": {"s": {"clients": ["c"], "pva": server}}}, indent=2
    )


def p4p(upstream: Running, tcp: int, udp: int) -> str:
    return json.dumps(
        {
            "version": 2,
            "clients": [
                {"name": "c", "addrlist": "127.0.0.1", "autoaddrlist": False, "bcastport": upstream.udp}
            ],
            "servers": [
                {
                    "name": "s",
                    "clients": ["c"],
                    "interface": ["127.0.0.1"],
                    "addrlist": "127.0.0.1",
                    "autoaddrlist": False,
                    "serverport": tcp,
                    "bcastport": udp,
                }
            ],
        }
    )
