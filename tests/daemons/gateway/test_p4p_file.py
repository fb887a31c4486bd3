"""``pvagw gw.conf``: a file of p4p's gateway, run as it is, and its rules read again on SIGHUP."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.client import Context
from appliance.errors import AccessDeniedError
from appliance.pva import commands as c
from tests.helpers.gateway_process import p4ps
from tests.helpers.live import until
from tests.helpers.ours import client_config, double, served

DAEMON = "appliance.gateway.daemon"


async def test_rules_are_read_again_on_sighup_and_channels_stay(tmp_path: Path) -> None:
    rules = tmp_path / "gw.acf"
    rules.write_text("ASG(DEFAULT) { RULE(1, READ) }")
    async with served({"pv": double(1.5)}) as server:
        async with p4ps(tmp_path, server.udp_port, program=DAEMON, access="gw.acf") as gateway:
            async with Context(client_config(gateway.udp), beacons=False) as client:
                assert (await client.get("pv"))["value"] == 1.5
                channel = client.channel("pv")
                wire = channel.wire
                with pytest.raises(AccessDeniedError):
                    await client.put("pv", 2.0)
                for text, permissions in (
                    ("ASG(DEFAULT) { RULE(1, WRITE) }", c.PERMIT_ALL),
                    ("ASG(DEFAULT) { RULE(1, PUT) }", c.PERMIT_PUT | c.PERMIT_PUT_GET),
                    ("ASG(DEFAULT) { RULE(1, READ) }", 0),
                ):
                    rules.write_text(text)
                    gateway.process.send_signal(signal.SIGHUP)
                    await until(lambda permissions=permissions: channel.permissions == permissions)
                assert channel.wire is wire, "the channel stayed open"
                rules.write_text("ASG(DEFAULT) { RULE(1, WRITTE) }")
                gateway.process.send_signal(signal.SIGHUP)
                await until(lambda: "reload failed, the former settings stay" in gateway.log.read_text())
                assert "gw.acf:1:" in gateway.log.read_text()
                assert channel.permissions == 0
    assert "its rules apply to writing only, as in p4p's gateway" in gateway.log.read_text()


def test_the_command_converts_as_the_documentation_says(tmp_path: Path) -> None:
    """Check what `pvagw --convert gw.conf > gateway.yml` writes."""
    (tmp_path / "gw.conf").write_text(
        '{"version": 2, "clients": [{"name": "c"}], "servers": [{"name": "s", "clients": ["c"]}]}'
    )
    with (tmp_path / "gateway.yml").open("wb") as out:
        subprocess.run(
            [sys.executable, "-m", DAEMON, "--convert", "gw.conf"],
            stdout=out,
            cwd=tmp_path,
            check=True,
            timeout=30,
        )
    checked = subprocess.run(
        [sys.executable, "-m", DAEMON, "-T", "gateway.yml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=30,
        check=True,
    )
    assert checked.stdout == "gateway.yml\n"
    assert checked.stderr == "gateway.yml: good\n"
