"""The report of the shell's command ``dbpvar``, as QSRV2 prints it."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable

from appliance.ioc.links.channel import LinkChannel
from appliance.ioc.links.options import LinkOptions

__all__ = ["described", "report"]


def _flag(value: bool) -> str:
    return "T" if value else "F"


def _details(options: LinkOptions) -> str:
    return (
        f"Q={options.queue_size} pipe={_flag(options.pipeline)} defer={_flag(options.defer)} "
        f"time={_flag(options.time)} retry={_flag(options.retry)} atomic={_flag(options.atomic)} morder={options.monorder}"
    )


def described(options: LinkOptions, channel: LinkChannel | None, level: int, why: str = "") -> str:
    """Return one line about a link, for ``dbjlr``."""
    words = [options.pv + (f"|.{options.field}" if options.field else "")]
    words += [options.proc.value, options.sevr.value]
    if level > 0:
        words.append(_details(options))
    if channel is None:
        words.append("No Channel")
    else:
        words.append(f"conn={_flag(channel.connected and not why)}")
        words += ["Put"] * channel.is_putting
        if level > 0:
            words.append(f"#disconn={channel.disconnects}")
        if why:
            words.append(f"({why})")
    return " ".join(words)


def report(
    channels: Iterable[LinkChannel], pattern: str, level: int, why: Callable[[LinkChannel], str]
) -> list[str]:
    """Return the lines of ``dbpvar``.

    Args:
        channels: All channels.
        pattern: Records with such names only; ``*`` and ``?`` stand for others. Empty for all.
        level: 0 counts, 1 adds what is not connected, 2 all PVs, 5 their links.
        why: Returns why a channel is not connected.
    """
    everything = not pattern or pattern == "*"
    lines = ["PVA links in all records" if everything else f"PVA links in record named '{pattern}'", ""]
    number = connected = links = 0
    for channel in sorted(channels, key=lambda each: each.key):
        mine = [
            link
            for link in channel.links()
            if everything or fnmatch.fnmatchcase(link.place.record_name, pattern)
        ]
        if not mine:
            continue
        number += 1
        links += len(mine)
        connected += channel.connected
        if level >= 2 or (level == 1 and not channel.connected):
            lines.append(_line(channel, why))
        if level >= 5:
            for link in mine:
                options = link.options
                lines.append(
                    f"{'':30}{link.name} {options.proc.value} {options.sevr.value} {_details(options)}"
                )
    lines.append(f"  {connected}/{number} channels connected used by {links} links")
    if not links and not everything:
        # The name of a PV that a link reads is a usual mistake here.
        lines.append("  the name selects records of this IOC, not PVs: none of them has a PVA link")
    return lines


def _line(channel: LinkChannel, why: Callable[[LinkChannel], str]) -> str:
    line = (
        f"{channel.key.name:>28} conn={_flag(channel.connected)} {channel.disconnects} disconnects, "
        f"{channel.type_changes} type changes, {channel.updates} updates ({channel.squashed} merged), "
        f"{channel.puts} puts ({channel.put_errors} failed)"
    )
    if channel.is_putting:
        line += " Put"
    if not channel.connected and (reason := why(channel)):
        line += f": {reason}"
    elif channel.put_error:
        line += f": latest put: {channel.put_error}"
    return line
