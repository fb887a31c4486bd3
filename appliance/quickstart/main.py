"""``appliance quickstart``: the whole stack on this machine, in one command."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import time
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.quickstart.layout import ROLES, Layout, free_ports
from appliance.quickstart.story import Story

__all__ = ["main"]

INTERRUPTED = 2
"""Exit status of a story that was not heard to its end, as of the tools."""
MARKER = ".spva-quickstart"
"""A directory without it is not ours to empty."""


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    built = argparse.ArgumentParser(
        prog="appliance quickstart",
        description="Start issuer, certificate service and IOC on free loopback ports, and walk the quick start's story.",
    )
    built.add_argument(
        "--dir", default=".quickstart", metavar="DIR", help="directory for all state (default: %(default)s)"
    )
    built.add_argument(
        "--once", action="store_true", help="end after the story; status 0 only if every step did as told"
    )
    return built


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return asyncio.run(_quickstart(Path(arguments.dir).absolute(), once=arguments.once))
    except ApplianceError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


async def _quickstart(root: Path, *, once: bool) -> int:
    prepare(root)
    layout = Layout(root, free_ports())
    layout.make()
    (root / MARKER).touch()
    layout.write_environment_files()
    story = Story(layout)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    start = time.monotonic()
    told = asyncio.ensure_future(story.tell())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((told, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            story.say("\ninterrupted")
            return INTERRUPTED
        told.result()
        story.say(f"\nThe story took {time.monotonic() - start:.1f} s; every step did what it should.")
        if once:
            return 0
        story.say(_how_to_go_on(root))
        await stopping
        story.say("\nstopping")
        return 0
    finally:
        told.cancel()
        stopping.cancel()
        await asyncio.gather(told, stopping, return_exceptions=True)
        await story.stop()


def prepare(root: Path) -> None:
    """Make sure that ``root`` is new or an earlier quick start's, which is removed: each story begins afresh."""
    if not root.exists():
        return
    if not root.is_dir() or (any(root.iterdir()) and not (root / MARKER).exists()):
        raise ApplianceError(
            f"{root} exists and is not an earlier quick start's directory; choose another with --dir"
        )
    shutil.rmtree(root)


def _how_to_go_on(root: Path) -> str:
    return f"""
The stack is running; Ctrl-C stops it. In a second terminal, be any of {", ".join(ROLES)}:

    . {root}/env/operator.sh
    pvxget test:calcExample
    pvxput test:spec 12.5
    pvxmonitor test:enumExample

    . {root}/env/admin.sh
    pvxcert list

Any EPICS program joins with the same settings. Logs are in {root}/log."""
