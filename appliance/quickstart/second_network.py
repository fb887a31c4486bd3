"""The chapters of the quick start about a gateway: a second network, whose programs reach the stack through it alone.

On one machine a network is a UDP port: programs of the office network search on another port than those of the controls
network, and only the gateway answers there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError
from appliance.quickstart.story import Story

__all__ = ["tell_of_the_gateway"]

_DATA: Final = Path(__file__).parent / "data"
_CLOSES_S: Final = 3.0
"""Seconds that are promised between a revocation and the end of the connections behind a gateway."""


async def tell_of_the_gateway(story: Story) -> None:
    """Tell the chapters; the stack of the other chapters is running.

    Args:
        story: The story, whose layout has a gateway.

    Raises:
        ApplianceError: A step did something else than it should.
    """
    await _gateway_up(story)
    await _certificate(story)
    await _reading(story)
    await _writing(story)
    story.chapter("12. A revocation reaches the office")
    await story.revoke_while_watching("guest", _CLOSES_S)


async def _gateway_up(story: Story) -> None:
    layout = story.layout
    story.chapter("8. A gateway into the office network")
    await story.request("gateway", "ioc")
    home = layout.home("gateway")
    layout.write_gateway_files(_DATA)
    for name in ("office.pvlist", "gateway.yml"):
        story.say(f"\ngateway$ cat {name}")
        story.say((home / name).read_text().rstrip())
    await story.serve("gateway", "pvagw", ["pvagw", "--config", str(home / "gateway.yml")])


async def _certificate(story: Story) -> None:
    story.chapter("9. A guest in the office gets a certificate, through the gateway")
    await story.request("guest", "client")
    await story.run(
        "guest",
        ["pvxcert", "-f", str(story.layout.keychain("guest"))],
        "Entity Subject : CN=guest, O=localhost",
        "Status        : VALID",
    )


async def _reading(story: Story) -> None:
    story.chapter("10. Reading through the gateway: over TLS, what the PV list allows")
    await story.run("guest", ["pvxget", "test:aiExample"], "test:aiExample")
    await story.run(
        "guest",
        ["pvxinfo", "-v", "test:aiExample"],
        "# TLS x509:",
        "EPICS Root Certificate Authority/gateway@127.0.0.1:",
    )
    await story.run("guest", ["pvxget", "-w", "1", "test:structExample"], "no server answered", status=1)


async def _writing(story: Story) -> None:
    story.chapter("11. Writing through the gateway: it knows who the guest is, the IOC knows the gateway")
    await story.run("guest", ["pvxput", "test:spec", "1"], "denied", status=1)
    await story.run("guest", ["pvxput", "test:longExample", "47"])
    await story.run("operator", ["pvxget", "test:longExample"], "47")
    log = story.layout.home("gateway") / "puts.log"
    lines = await asyncio.to_thread(log.read_text) if log.exists() else ""
    story.say(f"\ngateway$ tail -n 1 {log.name}")
    last = lines.rstrip().rpartition("\n")[2]
    story.say(last)
    if '"guest"' not in last:
        raise ApplianceError("the gateway's log of puts does not name the guest")
