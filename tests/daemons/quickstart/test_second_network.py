"""The chapters of the quick start about the gateway, as its user sees them."""

from __future__ import annotations

import subprocess

import pytest

from tests.daemons.quickstart.test_quickstart import command, environment


@pytest.mark.timeout(180)
def test_a_guest_in_the_second_network_does_everything_through_the_gateway(tmp_path):
    """Certificate by token, reading, a hidden PV, a put refused and one granted, who wrote, revocation."""
    directory = tmp_path / "stack"
    done = subprocess.run(
        command(directory, "--once", "--gateway"),
        capture_output=True,
        text=True,
        timeout=170,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    told = done.stdout[done.stdout.index("=== 8. ") :]
    for line in (
        f"Keychain file created   : {directory}/gateway/config/pva/1.5/gateway.p12",
        f"Keychain file created   : {directory}/guest/config/pva/1.5/client.p12",
        "Entity Subject : CN=guest, O=localhost",
        "EPICS Root Certificate Authority/gateway@127.0.0.1:",
        "no server answered the search",
        "write access denied",
        "Status        : REVOKED",
        "every step did what it should",
    ):
        assert line in told, told
    variables = (directory / "env/guest.sh").read_text()
    inner = (directory / "env/operator.sh").read_text()
    port = next(line for line in variables.splitlines() if "EPICS_PVA_BROADCAST_PORT" in line)
    assert port not in inner
    token = (directory / "guest" / "token_file").read_text().strip()
    for log in (directory / "log").iterdir():
        assert token not in log.read_text(), log
