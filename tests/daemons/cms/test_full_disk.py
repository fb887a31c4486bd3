"""The certificate database on a full disk: nothing is lost, nothing is half done, and everybody is told."""

import contextlib
import os
import resource
import subprocess
from pathlib import Path

import pytest

from appliance.certs.keychain import load_keychain
from appliance.errors import RemoteError
from tests.helpers.cms import Process, ccr, client

OPEN = "--certs-dont-require-approval"
MOUNT = 'mount -t tmpfs -o size=4m none "$0" && exec "$@"'


def can_mount() -> bool:
    """Whether this user may have a file system of its own."""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


class FileSizeLimit:
    """The process may write no file beyond a size."""

    def __init__(self, directory: Path) -> None:
        self.prefix = ()
        self._process: Process | None = None

    def fill(self, process: Process) -> None:
        self._process = process
        used = max(path.stat().st_size for path in process.db.parent.iterdir())
        limit = (used, resource.RLIM_INFINITY)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, limit)

    def free(self) -> None:
        assert self._process is not None
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self._process.process.pid, resource.RLIMIT_FSIZE, unlimited)


class SmallDisk:
    """The database is on a file system of 4 MB, in a mount namespace of the service's own, that is filled up."""

    def __init__(self, directory: Path) -> None:
        data = directory / "data"
        data.mkdir()
        self.prefix = ("unshare", "-m", "sh", "-c", MOUNT, str(data))
        self._filler = Path("/")

    def fill(self, process: Process) -> None:
        self._filler = Path(f"/proc/{process.process.pid}/root{process.db.parent}/filler")
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        space = os.statvfs(self._filler)
        assert space.f_bavail == 0

    def free(self) -> None:
        self._filler.unlink()


@pytest.mark.parametrize("disk", [FileSizeLimit, *([SmallDisk] if can_mount() else [])])
async def test_a_full_disk_is_told_by_log_and_health_and_loses_nothing(tmp_path, disk) -> None:
    full = disk(tmp_path)
    config = tmp_path / "cms.yml"
    config.write_text("health_interval_s: 0.2\n")
    with Process(tmp_path, OPEN, "--config", str(config), prefix=full.prefix) as process:
        process.ready()
        administrator = load_keychain((process.config_dir / "admin.p12").read_bytes())
        async with client(process.tcp_port) as anyone, client(process.tls_port, administrator) as admin:
            issued = [await anyone.rpc("CERT:CREATE", ccr(f"before{i}")) for i in range(3)]
            full.fill(process)
            with pytest.raises(RemoteError, match="database cannot be written"):
                while len(issued) < 3000:
                    issued += [await anyone.rpc("CERT:CREATE", ccr(f"u{len(issued)}"))]
            assert "ERROR" in process.log_line(
                "the certificate database .* cannot be written: .*full|disk I/O"
            )
            with pytest.raises(RemoteError, match="nothing was done"):
                await admin.put(issued[0]["status_pv"], {"state": "REVOKED"})
            line = process.log_line("REVOKED of .* by admin was NOT done")
            assert "ERROR" in line
            # Small writes may still find room; the state must not flicker for that.
            async with anyone.monitor("CERT:HEALTH") as health:
                red = 0
                async for value in health:
                    red = red + 1 if value["value.index"] == 0 else 0
                    if red == 5:
                        assert not value["db_ok"]
                        assert value["alarm.severity"] == 2
                        break
            assert (await anyone.get(issued[0]["status_pv"]))["state"] == "VALID"
            full.free()
            assert (await anyone.rpc("CERT:CREATE", ccr("after")))["state"] == "VALID"
            process.log_line("the certificate database can be written again; [0-9]+ attempts failed")
            async with anyone.monitor("CERT:HEALTH") as health:
                async for value in health:
                    if value["value.index"] == 1:
                        break
            await admin.put(issued[0]["status_pv"], {"state": "REVOKED"})
            states = [
                status["state"] for status in await anyone.get([reply["status_pv"] for reply in issued])
            ]
            assert states == ["REVOKED"] + ["VALID"] * (len(issued) - 1)
            # Once a minute, and not at each look of health.
            assert (
                sum(
                    "cannot be written:" in line and "ERROR" in line and "NOT done" not in line
                    for line in process.log
                )
                == 1
            )
