"""The generated parts of docs/reference: ``python -m tests.helpers.reference_pages`` writes them anew.

A page says what it wants between two markers: ``help NAME`` is a program's ``-h``, ``keys NAME`` the table of the keys of
its configuration file, ``pvs NAME`` and ``metrics NAME`` the tables of its own PVs and of its metrics. The tables come from the schema, the meanings from the text below each field of the struct.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from appliance.authn.jwt.config import JWTConfig
from appliance.authn.jwt.oauth import OAuthSettings
from appliance.cli import acf_test, authnjwt, authnstd, main, pvxcert
from appliance.cms import daemon as pvacms
from appliance.cms.config import CMSSettings
from appliance.cms.options import OPTIONS
from appliance.config.duration import Duration
from appliance.config.loader import schema
from appliance.config.secret import Secret
from appliance.config.settings import ClientSettings, ServerSettings
from appliance.gateway import options as pvagw
from appliance.gateway.config import GatewayConfig
from appliance.gateway.metrics import GAUGES, METRICS, NAMES
from appliance.gateway.status import STATUS_PVS
from appliance.ioc import daemon as softiocpvx
from appliance.ioc.config import IocConfig
from appliance.issuer import daemon as jwt_issuer
from appliance.issuer.config import VARIABLES, IssuerConfig
from appliance.pvdata.types import ArrayType, StructType
from appliance.quickstart import main as quickstart

DIRECTORY = Path(__file__).parents[2] / "docs/reference"
MARKED = re.compile(
    r"(?P<begin><!-- generated: (?P<what>help|keys|pvs|metrics) (?P<name>[^>]*?) -->\n)(?P<old>.*?)(?P<end><!-- generated: end -->\n)",
    re.DOTALL,
)

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "acf-test": acf_test.parser,
    "appliance": main.parser,
    "appliance quickstart": quickstart.parser,
    "authnjwt": authnjwt.parser,
    "authnstd": authnstd.parser,
    "jwt-issuer": jwt_issuer._parser,
    "pvacms": pvacms._parser,
    "pvagw": pvagw.parser,
    "pvxcert": pvxcert.parser,
    "softIocPVX": softiocpvx._parser,
}
FILES: dict[str, type[msgspec.Struct]] = {
    "authnjwt --oauth": OAuthSettings,
    "jwt-issuer": IssuerConfig,
    "pvacms": CMSSettings,
    "pvagw": GatewayConfig,
    "softIocPVX": IocConfig,
}
ELSEWHERE = {
    ClientSettings: "the [settings of the client](configuration.md#clients), by their keys",
    ServerSettings: "the [settings of the server](configuration.md#servers), by their keys",
    JWTConfig: "[trusted issuers of tokens](jwt-verification.md#trusted-issuers)",
}
"""Structs whose keys have a page of their own."""


def help_text(name: str) -> str:
    """What ``-h`` prints on a wide terminal."""
    made = PARSERS[name]()
    kind = made.formatter_class
    made.formatter_class = lambda prog: kind(prog, max_help_position=34, width=110)  # type: ignore[assignment,return-value]
    return f"```text\n{made.format_help()}```\n"


def keys_table(name: str) -> str:
    """One row a key; the keys of a part are written ``part.key``, of a list's items ``list[].key``."""
    kind = FILES[name]
    rows = ["| key | variable | default | type | meaning |", "|---|---|---|---|---|"]
    rows += _rows(kind, "", schema(kind)["$defs"], _variables(name))
    return "\n".join(rows) + "\n"


def _variables(name: str) -> dict[str, str]:
    if name == "jwt-issuer":
        return {key: f"`{variable}`" for variable, key in VARIABLES.items()}
    found: dict[str, str] = {}
    if name == "pvacms":
        for option in OPTIONS:
            for key in option.keys:
                # The more special variable stands later in the table, and counts before the general one.
                more = ", ".join(f"`{variable}`" for variable in option.variables)
                found[key] = f"{more}, {found[key]}" if key in found else more
    return found


def _rows(
    kind: type[msgspec.Struct], prefix: str, definitions: dict[str, Any], variables: dict[str, str]
) -> list[str]:
    rows = []
    told = _meanings(kind)
    for field in msgspec.structs.fields(kind):
        shape = definitions[kind.__name__]["properties"][field.encode_name]
        part, brackets = _part(field.type)
        meaning = " ".join(told.get(field.name, "").replace("``", "`").split())
        if part is not None:
            meaning = ELSEWHERE.get(part, meaning or _sentence(part))
        if not meaning:
            raise SystemExit(f"{kind.__name__}.{field.name} has no meaning: write a text below the field")
        cells = (
            f"`{prefix}{field.name}`",
            variables.get(field.name, "") if not prefix else "",
            "" if part is not None else _default(field),
            _shape(shape, definitions),
            meaning,
        )
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if part is not None and part not in ELSEWHERE:
            rows += _rows(part, f"{prefix}{field.name}{brackets}.", definitions, variables)
    return rows


@cache
def _meanings(kind: type) -> dict[str, str]:
    """The texts below the fields."""
    tree = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = text.value.value
    return found


def _sentence(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _part(kind: Any) -> tuple[type[msgspec.Struct] | None, str]:
    """The struct that a field's type is made of, and how its keys are reached."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind, ""
    origin = getattr(kind, "__origin__", None)
    for inner in getattr(kind, "__args__", ()):
        found, _ = _part(inner)
        if found is not None:
            return found, "[]" if origin is tuple else ".NAME" if origin is dict else ""
    return None, ""


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is not msgspec.NODEFAULT:
        value = field.default
    elif field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    else:
        return "required"
    if isinstance(value, Duration):
        return str(value)
    if value is None or value in ("", {}, (), Secret()):
        return ""
    if isinstance(value, tuple):
        return f"`{json.dumps(value)}`"
    return f"`{json.dumps(value)}`" if isinstance(value, (bool, float)) else f"`{value}`"


def _shape(shape: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in shape or "allOf" in shape:
        return "mapping"
    if "anyOf" in shape:
        kinds = [_shape(kind, definitions) for kind in shape["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in shape:
        return ", ".join(f"`{word}`" for word in shape["enum"])
    kind = shape["type"]
    if isinstance(kind, list):  # only durations
        return "duration"
    description = shape.get("description", "")
    if description.startswith("path"):
        return "path"
    if kind == "string" and "credential" in shape.get("pattern", ""):
        return "secret"
    if kind == "array":
        of = _shape(shape["items"], definitions)
        return f"list of {of}s" if of != "mapping" else "list of mappings"
    if kind == "object":
        of = _shape(shape["additionalProperties"], definitions)
        return f"mapping of names to {of}" if " or " in of else f"mapping of names to {of}s"
    bounds = [_number(shape[key]) if key in shape else "" for key in ("minimum", "maximum")]
    if any(bounds):
        low, high = bounds
        kind += f", {low} to {high}" if low and high else f", from {low}" if low else f", to {high}"
    return {"string": "text"}.get(kind, kind)


def _number(value: float) -> str:
    return f"{int(value) if value == int(value) else value:,}".replace(",", " ")


def pvs_table(name: str) -> str:
    """One row a PV of the gateway; those that p4p's gateway has not are marked."""
    del name
    rows = ["| PV | type | meaning |", "|---|---|---|"]
    for pv in STATUS_PVS:
        kind = pv.type.id.removeprefix("epics:nt/").removesuffix(":1.0")
        value = pv.type.members.get("value")
        if isinstance(value, StructType) and kind == "NTTable":
            kind += f": {', '.join(f'`{column}`' for column, _ in value.fields)}"
        elif kind.startswith("NTScalar"):
            array = isinstance(value, ArrayType)
            kind += f" of {(value.element if array else value).kind}"
        rows.append(f"| `{pv.name}` | {kind} | {pv.meaning}{'' if pv.is_p4ps else ' Not in p4p.'} |")
    return "\n".join(rows) + "\n"


def metrics_table(name: str) -> str:
    """One row a metric of the gateway."""
    del name
    rows = ["| metric | kind | meaning |", "|---|---|---|"]
    rows += [f"| `{metric}_total` | counter | {meaning} |" for metric, meaning, _ in METRICS]
    rows += [f"| `{metric}` | gauge | {meaning} |" for metric, meaning, _ in GAUGES]
    metric, meaning, states = NAMES
    rows.append(
        f"| `{metric}` | gauge | {meaning} Label `state`: {', '.join(f'`{state}`' for state in states)}. |"
    )
    return "\n".join(rows) + "\n"


def page(text: str) -> str:
    """``text`` with its generated parts as they should be."""

    def anew(found: re.Match[str]) -> str:
        make = {"help": help_text, "keys": keys_table, "pvs": pvs_table, "metrics": metrics_table}[
            found["what"]
        ]
        return f"{found['begin']}\n{make(found['name'])}\n{found['end']}"

    return MARKED.sub(anew, text)


def pages() -> list[Path]:
    """The pages that have generated parts."""
    return [path for path in sorted(DIRECTORY.glob("*.md")) if MARKED.search(path.read_text())]


if __name__ == "__main__":
    for path in pages():
        path.write_text(page(path.read_text()))
        sys.stdout.write(f"{os.path.relpath(path)}\n")
