"""``python -m appliance.p4p.client.cli``: read, write and watch PVs, with the command line that p4p has.

New scripts are better off with pvxget, pvxput, pvxmonitor and pvxcall, which say more and start sooner.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

from appliance.p4p import nt, set_debug
from appliance.p4p.client.thread import Context

__all__ = ["getargs", "main"]


def _get(ctxt: Context, args: argparse.Namespace) -> int:
    answers = ctxt.get(args.names, [args.request] * len(args.names), timeout=args.timeout, throw=False)
    return _show(args.names, answers, str)


def _put(ctxt: Context, args: argparse.Namespace) -> int:
    names, values = [], []
    for pair in args.names:
        name, equals, text = pair.partition("=")
        if not equals:
            print("Missing expected '=' after", pair)
            return 1
        names.append(name.strip())
        values.append(_value(text))
    answers = ctxt.put(names, values, [args.request] * len(names), timeout=args.timeout, throw=False)
    return _show(names, answers, lambda _: "ok")


def _monitor(ctxt: Context, args: argparse.Namespace) -> int:
    def show(name: str) -> Callable[[Any], None]:
        def update(value: Any) -> None:
            if isinstance(value, Exception):
                print(name, "Error:", value, flush=True)
            else:
                print(name, value, flush=True)

        return update

    subscriptions = [
        ctxt.monitor(name, show(name), args.request, notify_disconnect=True) for name in args.names
    ]
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        for each in subscriptions:
            each.close()
    return 1


def _rpc(ctxt: Context, args: argparse.Namespace) -> int:
    values = {}
    for pair in args.args:
        name, equals, text = pair.partition("=")
        if not equals:
            print("arguments must be name=value not:", pair)
            return 2
        values[name] = _value(text)
    # Every argument is text, as in p4p; the server converts it.
    call = nt.NTURI([(name, "s") for name in values]).wrap(args.name, kws=values)
    answer = ctxt.rpc(args.name, call, request=args.request, timeout=args.timeout, throw=False)
    if isinstance(answer, Exception):
        print("Error:", answer)
        return 1
    print(answer.tolist() if hasattr(answer, "tolist") else answer)
    return 0


def _value(text: str) -> Any:
    return json.loads(text) if text[:1] in {"{", "["} else text


def _show(names: list[str], answers: Any, text: Callable[[Any], str]) -> int:
    failed = False
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, Exception):
            failed = True
            print(name, "Error:", answer)
        else:
            print(name, text(answer))
    return int(failed)


def getargs() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m p4p.client.cli", description="Read, write and watch PVs; call functions."
    )
    parser.add_argument("-r", "--request", default="", help="pvRequest, for example field(value).")
    parser.add_argument(
        "-w", "--timeout", type=float, default=5.0, help="Seconds to wait for an answer; default 5."
    )
    parser.add_argument("-p", "--provider", default="pva", help="Always pva.")
    parser.add_argument("-d", "--debug", action="store_true", help="Show messages of the PVAccess client.")
    parser.add_argument("-v", "--verbose", action="store_true", help="Show all messages of this program.")
    parser.add_argument(
        "--raw", action="store_false", default=None, help="Show all fields, not only the value."
    )
    parser.set_defaults(func=None)
    commands = parser.add_subparsers()
    for name, function, what in (
        ("get", _get, "Read PVs."),
        ("put", _put, "Write PVs: name=value, or name={JSON}."),
        ("monitor", _monitor, "Watch PVs until Ctrl-C."),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument(
            "names", nargs="*", metavar="name=value" if function is _put else "name", help="The PVs."
        )
        command.set_defaults(func=function)
    command = commands.add_parser("rpc", help="Call a function.", description="Call a function.")
    command.add_argument("name", help="Its PV.")
    command.add_argument("args", nargs="*", metavar="name=value", help="Its arguments.")
    command.set_defaults(func=_rpc)
    args = parser.parse_args()
    if args.func is None:
        parser.print_help()
        raise SystemExit(0)
    return args


def main(args: argparse.Namespace) -> None:
    """Do what the command line asks for; end with its exit status."""
    with Context(args.provider, unwrap=args.raw) as ctxt:
        sys.exit(args.func(ctxt, args))


if __name__ == "__main__":
    found = getargs()
    # Without -d p4p says nothing of the network, so its users do not expect it.
    set_debug(logging.DEBUG if found.debug else logging.WARNING)
    logging.basicConfig(level=logging.DEBUG if found.verbose else logging.INFO)
    main(found)
