"""``pvxinfo``: print the types of PVs, and who serves them."""

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
    open_context,
    run_tool,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from appliance.client import Context, Info
    from appliance.pva.credentials import Credentials
    from appliance.pvdata.types import TypeDesc

__all__ = ["main", "parser"]

_EPILOG = """\
examples:
  pvxinfo test:enumExample
      its type, and the server that has it
  pvxinfo -v test:enumExample
      also who the server is, and the settings in effect
  pvxinfo -D
      what to send to whoever helps you
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = Parser(
        prog="pvxinfo", description="Print the types of PVs and the servers that have them.", epilog=_EPILOG
    )
    made.add_argument("names", metavar="pvname", nargs="*", help="PV to ask for.")
    made.add_argument(
        "-D",
        dest="host",
        action="store_true",
        help="Print information on this host for troubleshooting, and exit.",
    )
    add_json(made)
    add_common(made)
    return made


async def _work(options: argparse.Namespace) -> int:
    if options.host and (options.names or options.json):
        complain("Error: -D is about this host only: use it without PV names and without --json")
        return FAILED
    if options.host:
        from appliance.cli.hostinfo import print_host_information

        print_host_information()
        return OK
    if not options.names:
        complain("Error: expected a PV name; see pvxinfo -h")
        return FAILED
    out = Output(json=options.json)
    effective = effective_config(options)
    failed = late = 0
    good: list[str] = []

    from appliance.cli.names import remember
    from appliance.errors import ApplianceError, OperationTimeoutError

    async def one(context: Context, name: str) -> None:
        nonlocal failed, late
        try:
            info = await context.info(name, timeout=options.timeout)
        except ApplianceError as error:
            failed += 1
            late += isinstance(error, OperationTimeoutError)
            out.failure(name, error)
        else:
            good.append(name)
            _show(out, name, info, verbose=options.verbose)

    async with open_context(effective) as context:
        await all_of(one(context, name) for name in options.names)
    remember(good)
    if late:
        complain("Timeout")
    return FAILED if failed else OK


def _show(out: Output, name: str, info: Info, *, verbose: bool) -> None:
    if out.json:
        out.object(name=name, server=info.server, peer=_peer(info.peer), type=_type(info.type))
        return
    from appliance.pvdata.render import render_type

    identity = f"# {_describe(info.peer)}\n" if verbose else ""
    out.write(f"{identity}{name} from {info.server}\n{render_type(info.type)}")
    sys.stdout.flush()


def _describe(peer: Credentials) -> str:
    if not peer.is_tls:
        # Without TLS nothing is known about the server, so importing the TLS engine would be useless.
        return f"{peer.method}/{peer.account}@{peer.peer}"
    from appliance.tls.credentials import describe

    return describe(peer)


def _peer(peer: Credentials) -> dict[str, Any]:
    return {
        "tls": peer.is_tls,
        "method": peer.method,
        "account": peer.account,
        "authority": peer.authority.split("\n") if peer.authority else [],
        "issuer_id": peer.issuer_id,
        "serial": str(peer.serial) if peer.serial else "",
        "san": [list(entry) for entry in peer.san],
        "status_pv": peer.status_pv,
    }


def _type(kind: TypeDesc) -> Any:
    """Return a type in JSON form: text for a scalar, ``{"kind", "id", "fields"}`` for a structure."""
    from appliance.pvdata.render import type_name
    from appliance.pvdata.types import ArrayType, StructType, UnionType

    inner = kind.element if isinstance(kind, ArrayType) else kind
    if not isinstance(inner, (StructType, UnionType)):
        return type_name(kind)
    fields = [{"name": name, "type": _type(member)} for name, member in inner.fields]
    return {"kind": type_name(kind), "id": inner.id, "fields": fields}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_tool(parser(), argv, _work)


if __name__ == "__main__":
    sys.exit(main())
