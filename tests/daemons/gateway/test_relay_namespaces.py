"""A host with no route to the certificate service gets its certificate through the gateway: needs root, for network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.helpers.cms import Process
from tests.helpers.tools import ROOT
from tests.transport.gateway.test_namespaces import World


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EPICS_", "XDG_"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        **more,
    }


def test_audit_and_limits_see_the_outer_host_by_its_own_address(tmp_path: Path) -> None:
    world = World()
    settings = tmp_path / "pvacms.yml"
    settings.write_text("proxy_from: [10.92.1.1]\n")
    gateway = tmp_path / "gateway.yml"
    gateway.write_text(
        yaml.safe_dump(
            {
                "clients": {"inner": {"pva": {"addr_list": "10.92.1.255", "auto_addr_list": False}}},
                "servers": {
                    "outer": {
                        "clients": ["inner"],
                        "pva": {"intf_addr_list": "10.92.2.1", "tls_keychain": ""},
                        "relay": {"tls_port": 5077},
                    }
                },
            }
        )
    )
    inside = ("ip", "netns", "exec")
    try:
        world.make()
        with (
            Process(
                tmp_path / "cms",
                "--config",
                str(settings),
                prefix=(*inside, world.host("inner")),
                PYTHONPATH=str(ROOT),
                EPICS_PVAS_INTF_ADDR_LIST="10.92.1.2",
                EPICS_PVACMS_BROADCAST_PORT="5076",
            ) as cms,
            (tmp_path / "gateway.log").open("wb") as out,
            subprocess.Popen(
                [
                    *inside,
                    world.host("gateway"),
                    sys.executable,
                    "-m",
                    "appliance.gateway.daemon",
                    str(gateway),
                ],
                env=environment(tmp_path / "gateway"),
                stdout=out,
                stderr=out,
            ) as process,
        ):
            try:
                cms.ready()
                log = tmp_path / "gateway.log"
                end = time.monotonic() + 30
                while "the certificate service is at 10.92.1.2:" not in log.read_text():
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < end, log.read_text()
                    time.sleep(0.05)
                route = ["ip", "-n", world.host("outer"), "route", "get", "10.92.1.2"]
                assert b"unreachable" in subprocess.run(route, capture_output=True, check=False).stderr
                done = subprocess.run(
                    [
                        *(*inside, world.host("outer"), sys.executable, "-m", "appliance.cli.authnstd"),
                        *("-n", "outer-host", "-o", "outer"),
                    ],
                    env=environment(tmp_path / "outer", EPICS_PVA_ADDR_LIST="10.92.2.255"),
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                    cwd="/",
                )
                assert done.returncode == 3, done.stderr + log.read_text()
                record = json.loads(cms.log_line("issued to CN=outer-host"))
                assert record["peer"].startswith("10.92.2.2:")
                assert record["via"].startswith("10.92.1.1:")
            finally:
                process.terminate()
    finally:
        world.remove()
