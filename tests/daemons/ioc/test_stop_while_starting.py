"""An IOC that is told to end while it starts: it ends, whatever the start was doing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.helpers.ioc_process import IocProcess, starting_ioc

MANY = "".join(f'record(ai, "many:{number}") {{ field(INP, "{number}") }}\n' for number in range(5000))


async def end(ioc: IocProcess) -> None:
    ioc.process.terminate()
    assert await ioc.ended() == 0, ioc.log
    assert "Traceback" not in ioc.log
    assert "Error" not in ioc.log


async def test_a_trial_that_waits_for_a_file_is_ended(tmp_path: Path) -> None:
    pipe = tmp_path / "never.db"
    os.mkfifo(pipe)
    async with starting_ioc("-S", "-d", str(pipe)) as ioc:
        # This returns when the other side has opened it: there it waits for what is never written.
        writer = await asyncio.to_thread(pipe.open, "wb")
        with writer:
            await end(ioc)


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 30, 100])
async def test_an_iocinit_that_is_under_way_comes_to_its_end_first(tmp_path: Path, turns: int) -> None:
    """The moments are different ones of iocInit, and of what is made ready in it."""
    (tmp_path / "many.db").write_text(MANY)
    (tmp_path / "st.cmd").write_text(f'dbLoadRecords("{tmp_path}/many.db")\niocInit\n')
    async with starting_ioc("-S", str(tmp_path / "st.cmd")) as ioc:
        await ioc.printed("(?m)^iocInit$")
        for _ in range(turns):
            await asyncio.sleep(0.001)
        await end(ioc)


async def test_an_iocinit_that_was_typed_comes_to_its_end_first(tmp_path: Path) -> None:
    (tmp_path / "many.db").write_text(MANY)
    async with starting_ioc() as ioc:
        await ioc.printed("epics> ")
        ioc.type(f'dbLoadRecords("{tmp_path}/many.db")\niocInit\n')
        await ioc.printed("Starting iocInit")
        await end(ioc)
