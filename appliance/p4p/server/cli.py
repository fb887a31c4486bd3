"""``python -m appliance.p4p.server.cli``: serve PVs that clients write, with the command line that p4p has."""

from __future__ import annotations

import argparse
import json
import logging
import stat
import sys
import warnings
from pathlib import Path
from typing import Any, Final

from appliance.config.files import read_regular, write_private
from appliance.errors import ApplianceError
from appliance.p4p import nt, set_debug
from appliance.p4p.server import Server, StaticProvider
from appliance.p4p.server.thread import SharedPV

__all__ = ["buildMailbox", "getargs", "main"]

_log: Final = logging.getLogger(__name__)
_KINDS: Final = {
    "int": ("l", 0),
    "uint": ("L", 0),
    "real": ("d", 0),
    "str": ("s", ""),
    "aint": ("al", []),
    "auint": ("aL", []),
    "areal": ("ad", []),
    "astr": ("as", []),
    "enum": ("", 0),
}
_MOST: Final = 64 << 20
"""Octets of the file of values."""


def getargs() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m p4p.server.cli", description="Serve PVs that clients write."
    )
    parser.add_argument("-d", "--debug", action="store_true", help="Show messages of the PVAccess server.")
    parser.add_argument("-v", "--verbose", action="store_true", help="Show all messages of this program.")
    parser.add_argument("-f", "--file", help="Keep the values in this file from one run to the next.")
    parser.add_argument("pvs", metavar="name=type", nargs="+", help=f"The PVs. Types: {', '.join(_KINDS)}.")
    return parser.parse_args()


def buildMailbox(*args: Any, **kws: Any) -> SharedPV:
    """Return a PV that takes what clients write.

    Args:
        args: For `SharedPV`.
        kws: For `SharedPV`.
    """
    pv = SharedPV(*args, **kws)

    @pv.put
    def handler(pv: SharedPV, op: Any) -> None:
        pv.post(op.value())
        op.done()

    return pv


def _made(kind: str) -> SharedPV:
    code, initial = _KINDS[kind]
    return buildMailbox(initial=(nt.NTScalar(code) if code else nt.NTEnum()).wrap(initial))


def main(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C, then write the file of values."""
    db: dict[str, tuple[str, SharedPV]] = {}
    for given in args.pvs:
        name, equals, kind = given.partition("=")
        if not equals or kind not in _KINDS:
            print(f"Invalid definition, expected NAME=TYPE with a type of {', '.join(_KINDS)}: {given}")
            sys.exit(1)
        db[name] = (kind, _made(kind))
    if args.file:
        try:
            _restore(args.file, db)
            _save(args.file, db)  # so that a file which cannot be written is told now, and not at the end
        except (OSError, ApplianceError, ValueError) as error:
            print(f"{args.file}: {error}")
            sys.exit(1)
    provider = StaticProvider("soft")
    for name, (_, pv) in db.items():
        provider.add(name, pv)
        _log.info("Add %s", name)
    try:
        Server.forever(providers=[provider])
    except RuntimeError as error:
        print(error)
        sys.exit(1)
    finally:
        if args.file:
            _save(args.file, db)


def _restore(file: str, db: dict[str, tuple[str, SharedPV]]) -> None:
    if not Path(file).exists():
        return
    kept = json.loads(read_regular(file, _MOST))
    try:
        if kept["version"] != 1:
            warnings.warn(f"Unknown persist version {kept['version']}.  Attempting to load", stacklevel=1)
        for name, kind, value in kept["pvs"]:
            _, pv = db.setdefault(name, (kind, _made(kind)))
            pv.post(pv.current().type()(value))
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no file of values ({error}); move it away to begin anew") from error


def _save(file: str, db: dict[str, tuple[str, SharedPV]]) -> None:
    pvs = [(name, kind, pv.current().todict()) for name, (kind, pv) in db.items()]
    text = json.dumps({"version": 1, "pvs": pvs}, indent=2, default=lambda array: array.tolist())
    # Values may be nobody else's business: a new file is private, and another one stays as it is.
    mode = stat.S_IMODE(Path(file).stat().st_mode) if Path(file).exists() else 0o600
    write_private(file, text.encode() + b"\n", mode)


if __name__ == "__main__":
    found = getargs()
    # Without -d p4p says nothing of the network, so its users do not expect it.
    set_debug(logging.DEBUG if found.debug else logging.WARNING)
    level = logging.DEBUG if found.verbose else logging.INFO
    logging.getLogger("appliance.p4p").setLevel(level)
    logging.basicConfig(level=level)
    main(found)
