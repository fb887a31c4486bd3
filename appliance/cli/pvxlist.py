"""``pvxlist``: find servers, list their PVs, ask for their information."""

from __future__ import annotations

import sys

from appliance.cli.common import (
    FAILED,
    OK,
    Output,
    Parser,
    add_common,
    add_json,
    all_of,
    complain,
    effective_config,
    keep_running,
    one_line,
    open_context,
    run_tool,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from appliance.client import Context, Discovered
    from appliance.config.pva import ClientConfig

__all__ = ["main", "parser"]

_EPILOG = """\
Without addresses: discover servers until the timeout (-w 0: until
interrupted). With addresses: list the PVs of these servers. A server that is
reached by TLS is written pvas://HOST:PORT, on the command line too.

examples:
  pvxlist
      the servers that answer within five seconds
  pvxlist 10.0.0.7:5075
      the PVs of one server
  pvxlist -i pvas://10.0.0.7:5076
      what the server is, asked over TLS
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = Parser(
        prog="pvxlist", description="Discover servers, list their PVs, or ask what they are.", epilog=_EPILOG
    )
    made.add_argument("servers", metavar="host[:port]", nargs="*", help="Server to ask.")
    how = made.add_mutually_exclusive_group()
    how.add_argument(
        "-A",
        dest="active",
        action="store_true",
        default=None,
        help="Active discovery (default): ask all servers to answer, then go on listening for beacons.",
    )
    how.add_argument(
        "-p",
        dest="active",
        action="store_false",
        default=None,
        help="Passive discovery: only listen for beacons.",
    )
    made.add_argument("-i", dest="info", action="store_true", help="Query server info. Requires addresses.")
    add_json(made)
    add_common(made, timeout="Operation timeout in seconds, 0 disables it.")
    return made


async def _work(options: argparse.Namespace) -> int:
    if options.info and not options.servers:
        complain("Error: -i requires at least one server")
        return FAILED
    if options.active is not None and options.servers:
        complain(
            f"Error: -{'A' if options.active else 'p'} is for discovery and takes no servers: "
            "leave out the option or the servers"
        )
        return FAILED
    out = Output(json=options.json)
    effective = effective_config(options)
    timeout = options.timeout or None
    async with open_context(effective) as context:
        keep_running()
        if not options.servers:
            return await _discover(context, options, out, timeout)

        results = await all_of(
            _query(context, effective.config, text, options, out, timeout) for text in options.servers
        )
    return OK if all(results) else FAILED


async def _discover(context: Context, options: argparse.Namespace, out: Output, timeout: float | None) -> int:
    import asyncio

    listed: set[bytes] = set()
    try:
        async with asyncio.timeout(timeout):
            async for news in context.discover(ping=options.active is not False):
                _show_server(news, options, out, listed)
    except TimeoutError:
        pass
    except asyncio.CancelledError:
        # Ctrl-C is the usual end of a discovery without a timeout.
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
    return OK


def _show_server(news: Discovered, options: argparse.Namespace, out: Output, listed: set[bytes]) -> None:
    if out.json:
        out.object(
            event="online" if news.online else "offline",
            guid=news.guid.hex(),
            protocol=news.protocol,
            server=news.server,
            version=news.version,
            via=news.source,
        )
    elif options.verbose:
        from datetime import UTC, datetime

        state = "ONLINE " if news.online else "OFFLINE"
        out.write(
            f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}000 {state} guid: 0x{news.guid.hex()}"
            f" proto: {news.protocol} server: {news.server}"
            f" ver: {news.version} via: {news.source}\n"
        )
        sys.stdout.flush()
    elif not news.online:
        listed.discard(news.guid)
    elif news.guid not in listed:
        # A server with several interfaces or protocols is printed once: the list is fed back to ask each server.
        listed.add(news.guid)
        out.write(f"{'pvas://' if news.protocol == 'tls' else ''}{news.server}\n")
        sys.stdout.flush()


async def _query(
    context: Context,
    config: ClientConfig,
    text: str,
    options: argparse.Namespace,
    out: Output,
    timeout: float | None,
) -> bool:
    from appliance.config.address import parse_endpoint
    from appliance.errors import ApplianceError

    try:
        endpoint = parse_endpoint(text, uri=True)
    except ValueError as error:
        complain(f"Error: {error}")
        return False
    port = endpoint.port or (config.tls_port if endpoint.tls else config.server_port)
    try:
        answer = await context.rpc(
            "server",
            {"op": "info" if options.info else "channels"},
            server=(endpoint.host, port, endpoint.tls),
            timeout=timeout,
        )
    except ApplianceError as error:
        complain(one_line(f"From {text} : {str(error).removeprefix('server: ')}"))
        if out.json:
            out.object(server=text, error=str(error))
        return False
    if options.info:
        found = {
            name: str(answer[name])
            for name in ("version", "implLang")
            if answer is not None and name in answer
        }
        if out.json:
            out.object(server=text, version=found.get("version"), lang=found.get("implLang"))
            return True
        from appliance.pvdata.render import escape

        words = [
            f' {label}="{escape(found[key])}"'
            for key, label in (("version", "version"), ("implLang", "lang"))
            if key in found
        ]
        out.write(f"{text}{''.join(words)}\n")
    else:
        names = list(answer["value"]) if answer is not None and "value" in answer else []
        from appliance.cli.names import remember

        remember(names)
        if out.json:
            out.object(server=text, names=names)
            return True
        if options.verbose:
            out.write(f"# From {text}\n")
        out.write("".join([f"{one_line(name)}\n" for name in names]))
    sys.stdout.flush()
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_tool(parser(), argv, _work)


if __name__ == "__main__":
    sys.exit(main())
