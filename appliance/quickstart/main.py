"""``appliance quickstart``: the whole stack on this machine, in one command."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import signal
import sys
import time
from pathlib import Path

from appliance.daemon.commandline import Parser, add_completion, add_version
from appliance.daemon.extras import EXTRAS, require
from appliance.errors import ApplianceError
from appliance.quickstart.directory import Hold
from appliance.quickstart.layout import Layout, free_ports
from appliance.quickstart.renewal import Renewal
from appliance.quickstart.second_network import tell_of_the_gateway
from appliance.quickstart.story import Story

__all__ = ["main"]

_EPILOG = """\
exit status:
  0  the story was told to its end, and Ctrl-C ended what stayed
  1  a step did not do what it should, or the directory is in use
  2  interrupted before the story's end

examples:
  appliance quickstart
      tell the story, and stay; Ctrl-C stops everything
  appliance quickstart --once --dir /tmp/spva
      tell the story and end: for a check of an installation
  appliance quickstart --gateway
      add a second network and a gateway into it, and tell their chapters too
"""
INTERRUPTED = 2
"""Exit status of an interrupted story, as in the tools."""


def parser() -> argparse.ArgumentParser:
    """Build the command line."""
    built = Parser(
        prog="appliance quickstart",
        description="Start issuer, certificate service and IOC on free loopback ports, and walk the quick start's story.",
        epilog=_EPILOG,
    )
    add_version(built)
    add_completion(built)
    built.add_argument(
        "--dir", default=".quickstart", metavar="DIR", help="Directory for all state. Default %(default)s."
    )
    built.add_argument(
        "--once", action="store_true", help="End after the story; status 0 only if every step did as told."
    )
    built.add_argument(
        "--gateway", action="store_true", help="Add a gateway into a second network, and tell its chapters."
    )
    return built


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        require(*EXTRAS)
        return asyncio.run(
            _quickstart(Path(arguments.dir).absolute(), once=arguments.once, gateway=arguments.gateway)
        )
    except ApplianceError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # The screen is gone. Errors of the stack's files and sockets are ApplianceErrors.
        with contextlib.suppress(OSError):
            print(f"Error: {error}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, BrokenPipeError) or error.errno == errno.EIO else 1


async def _quickstart(root: Path, *, once: bool, gateway: bool) -> int:
    hold = Hold(root)
    try:
        return await _hold_and_tell(hold, once=once, gateway=gateway)
    finally:
        hold.release()


async def _hold_and_tell(hold: Hold, *, once: bool, gateway: bool) -> int:
    root = hold.root
    layout = Layout(root, free_ports(), gateway=gateway)
    layout.make()
    layout.write_environment_files()
    story = Story(layout)
    story.hold = hold
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    # SIGHUP: the terminal is closed, and nothing of the stack must be left running.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    start = time.monotonic()
    told = asyncio.ensure_future(_tell(story, gateway=gateway))
    stopping = asyncio.ensure_future(stop.wait())
    renewing = asyncio.ensure_future(Renewal(story).run())
    try:
        await asyncio.wait((told, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            story.say("\ninterrupted")
            return INTERRUPTED
        told.result()
        story.say(f"\nThe story took {time.monotonic() - start:.1f} s; every step did what it should.")
        if once:
            return 0
        story.say(_how_to_go_on(root, layout.roles))
        await asyncio.wait((stopping, renewing), return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            renewing.result()
        story.say("\nstopping")
        return 0
    finally:
        for each in (told, stopping, renewing):
            each.cancel()
        await asyncio.gather(told, stopping, renewing, return_exceptions=True)
        await story.stop()


async def _tell(story: Story, *, gateway: bool) -> None:
    await story.tell()
    if gateway:
        await tell_of_the_gateway(story)


def _how_to_go_on(root: Path, roles: tuple[str, ...]) -> str:
    office = (
        f"""
    . {root}/env/guest.sh
    pvxget test:aiExample
    pvxget GW:clients
"""
        if "guest" in roles
        else ""
    )
    revoked = "the client's and the guest's were" if office else "the client's was"
    return f"""
The stack is running; Ctrl-C stops it. In a second terminal, be any of {", ".join(roles)}:

    . {root}/env/operator.sh
    pvxget test:calcExample
    pvxput test:spec 12.5
    pvxmonitor test:enumExample

    . {root}/env/admin.sh
    pvxcert list
{office}
Certificates hold for an hour, and are renewed as long as this runs; {revoked} revoked and {"are" if office else "is"} not.
Any EPICS program joins with the same settings. Logs are in {root}/log."""
