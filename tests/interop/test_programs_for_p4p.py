"""Programs that were written for p4p, unchanged, over TLS: those of the how-to, and ophyd-async's devices in a bluesky scan."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from appliance import Context
from appliance.config.pva import resolve_client
from tests.helpers.ioc_process import IocProcess, environment, running_ioc
from tests.helpers.pki import site, write_keychain
from tests.helpers.ports import free_port

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/change-from-p4p.md").read_text()
ALIAS = [sys.executable, "-u", "-m", "appliance.p4p"]


def example(name: str) -> str:
    found = re.search(rf"```python\n# example: {name}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture
def keychains(tmp_path: Path) -> dict[str, str]:
    """Variables: both ends have a keychain, and none may speak plain TCP."""
    (tmp_path / "keys").mkdir(mode=0o700)
    return {
        "EPICS_PVA_TLS_KEYCHAIN": str(write_keychain(tmp_path / "keys/client.p12", site().client)),
        "EPICS_PVAS_TLS_KEYCHAIN": str(write_keychain(tmp_path / "keys/server.p12", site().server)),
        "EPICS_PVA_TLS_OPTIONS": "tls_required",
        "EPICS_PVAS_TLS_PORT": str(free_port()),
        "XDG_DATA_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
    }


async def output(*command: str, env: dict[str, str]) -> str:
    """What a program prints; it must end well."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    try:
        async with asyncio.timeout(90):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_pages_soft_ioc_and_client_talk_over_tls(keychains: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ioc.py").write_text(example("ioc"))
    (tmp_path / "client.py").write_text(example("client"))
    env = environment(free_port(), free_port(), **keychains)
    ioc = await asyncio.create_subprocess_exec(
        *ALIAS, str(tmp_path / "ioc.py"), stdout=subprocess.PIPE, env=env
    )
    try:
        shown = await output(*ALIAS, str(tmp_path / "client.py"), env={**env, "EPICS_PVA_CONN_TMO": "60"})
        assert re.fullmatch(r".* 5\.5 V\n", shown)
        assert ioc.stdout is not None
        # The name in the certificate, which is proved; plain TCP would have the name of the user.
        assert (await asyncio.wait_for(ioc.stdout.readline(), 30)).decode() == "client writes 5.5\n"
        async with Context(resolve_client({}, environ=env).config) as ctx:
            assert (await ctx.info("demo:voltage")).peer.is_tls
    finally:
        ioc.terminate()
        await ioc.wait()


# -- ophyd-async --------------------------------------------------------------------------------------------

OPHYD = Path(find_spec("ophyd_async").origin).parent / "epics"  # type: ignore[union-attr, arg-type]
RECORDS = [
    ("P=demo:STAGE:X:", "demo/motor.db"),
    ("P=demo:STAGE:Y:", "demo/motor.db"),
    ("P=demo:DET:", "demo/point_detector.db"),
    ("P=demo:DET:,CHANNEL=1,X=demo:STAGE:X:,Y=demo:STAGE:Y:", "demo/point_detector_channel.db"),
    ("device=test:", "testing/_epics_test_ca_records.db"),
    ("device=test:", "testing/_epics_test_pva_records.db"),
]

SIGNALS = """
import asyncio

import numpy as np
from ophyd_async.core import SignalR, SignalRW, observe_value
from ophyd_async.epics.testing import EpicsTestPvaDevice


def shown(value):
    if hasattr(value, "model_dump"):
        return {key: shown(column) for key, column in value.model_dump().items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


async def main():
    device = EpicsTestPvaDevice("pva://test:", name="device")
    await device.connect(timeout=60)
    for name, signal in device.children():
        if not isinstance(signal, SignalR):
            await signal.trigger()
            print(name, "triggered")
            continue
        if isinstance(signal, SignalRW):
            await signal.set(await signal.get_value(), timeout=60)
        reading = (await signal.read())[signal.name]
        about = (await signal.describe())[signal.name]
        print(name, shown(reading["value"]), reading["alarm_severity"], reading["timestamp"] > 0, sorted(about.items()))
        async for seen in observe_value(signal, timeout=60):
            print(name, "seen", shown(seen))
            break


asyncio.run(main())
"""


@pytest.fixture
async def ioc(keychains: dict[str, str]) -> AsyncIterator[IocProcess]:
    """Our IOC, with the records that ophyd-async brings for its own tests and its tutorial."""
    words: list[object] = ["-S"]
    for macros, file in RECORDS:
        words += ["-m", macros, "-d", OPHYD / file]
    # p4p itself can use it, too: over plain TCP.
    async with running_ioc(*words, **{**keychains, "EPICS_PVA_TLS_OPTIONS": ""}) as running:
        yield running


def client_environment(ioc: IocProcess, keychains: dict[str, str]) -> dict[str, str]:
    return environment(ioc.udp, ioc.tcp, **keychains)


async def test_a_bluesky_scan_moves_a_stage_of_our_ioc_over_tls(
    ioc: IocProcess, keychains: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "scan.py").write_text(example("scan"))
    env = client_environment(ioc, keychains)
    shown = [
        ast.literal_eval(line)
        for line in (await output(*ALIAS, str(tmp_path / "scan.py"), env=env)).splitlines()
    ]
    assert [round(point["stage-x"], 6) for point in shown] == [0, 0.1, 0.2]
    assert all(point["detector-channel-1-value"] >= 0 for point in shown)


async def test_ophyds_signals_of_all_kinds_are_the_same_with_p4p_and_over_tls_with_ours(
    ioc: IocProcess, keychains: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "signals.py").write_text(SIGNALS)
    env = client_environment(ioc, keychains)
    ours = (await output(*ALIAS, str(tmp_path / "signals.py"), env=env)).splitlines()
    theirs = (await output(sys.executable, str(tmp_path / "signals.py"), env=env)).splitlines()
    assert len(ours) > 60
    assert ours == theirs
