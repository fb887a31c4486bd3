"""Plans compiled to Python: one function for one choice of fields.

The compiled text contains only integers and names chosen here. Text from a peer (field names,
identifiers) never gets into it.
"""

from __future__ import annotations

import struct

from appliance.errors import PVDataError
from appliance.pvdata.leafcodec import ENCODE_ERRORS, leaf_codec
from appliance.pvdata.primitives import _ONE, decode_string, encode_size, truncated
from appliance.pvdata.types import ScalarType, TypeDesc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["compile_decoder", "compile_encoder", "encode_failure"]


def compile_decoder(t: TypeDesc, leaves: tuple[int, ...], big: bool, *, full: bool) -> Any:
    """Make ``(buf, pos, end, types) -> (store, pos)`` if ``full``, else ``(buf, pos, end, store, types) -> pos``.

    Reads past ``end`` are detected once, after the last field; until then they can only read octets that follow
    in the same buffer.
    """
    order = ">" if big else "<"
    space: dict[str, Any] = {
        "OUT": (struct.error, IndexError),
        "TRUNC": truncated,
        "STR": lambda buf, pos, end: decode_string(buf, pos, end, big),
    }
    body: list[str] = []
    skip = 0
    for kind, numbers in _runs(t, leaves):
        if kind == "fixed":
            packer = struct.Struct(order + "".join([_fmt(t.leaf_types[i]) for i in numbers]))
            name = f"u{numbers[0]}"
            space[name] = packer.unpack_from
            targets = "".join([f"v{i}," for i in numbers])
            body.append(f"{targets} = {name}(buf, pos + {skip})")
            skip += packer.size
            continue
        i = numbers[0]
        if kind == "string":
            body += [
                f"n = buf[pos + {skip}]",
                "if not n:",
                f"    v{i} = ''",
                f"    pos += {skip + 1}",
                "elif n < 254:",
                f"    p = pos + {skip + 1}",
                "    pos = p + n",
                f"    v{i} = str(buf[p:pos], 'utf-8', 'surrogateescape')",
                "else:",
                f"    v{i}, pos = STR(buf, pos + {skip}, end)",
            ]
        else:
            space[f"d{i}"] = leaf_codec(t.leaf_types[i], big).decode
            body.append(f"v{i}, pos = d{i}(buf, pos + {skip}, end, types)")
        skip = 0
    if skip:
        body.append(f"pos += {skip}")
    lines = [f"def f(buf, pos, end, {'types' if full else 'store, types'}):", "    try:"]
    lines += ["        " + line for line in body or ["pass"]]
    lines += ["    except OUT:", "        raise TRUNC(pos, end) from None"]
    lines += ["    if pos > end:", "        raise TRUNC(pos - 1, end)"]
    if full:
        present = set(leaves)
        items = ", ".join([f"v{i}" if i in present else "None" for i in range(t.count)])
        lines.append(f"    return [{items}], pos")
    else:
        lines += [f"    store[{i}] = v{i}" for i in leaves]
        lines.append("    return pos")
    return _make(lines, space, "decoder")


def compile_encoder(t: TypeDesc, leaves: tuple[int, ...], big: bool, *, full: bool) -> Any:
    """Make ``(store) -> bytes`` if ``full``, else ``(store) -> list of buffers``."""
    order = ">" if big else "<"
    space: dict[str, Any] = {
        "BAD": ENCODE_ERRORS,
        "FAIL": lambda store, error: encode_failure(t, big, leaves, store, error),
        "EMPTY": b"\0",
        "SIZES": _ONE,
        "SIZE": lambda n: encode_size(n, big),
    }
    body: list[str] = []
    parts: list[str] = []
    plain = True
    for kind, numbers in _runs(t, leaves):
        i = numbers[0]
        if kind == "fixed":
            space[f"p{i}"] = struct.Struct(order + "".join([_fmt(t.leaf_types[n]) for n in numbers])).pack
            parts.append(f"p{i}({', '.join([f's[{n}]' for n in numbers])})")
        elif kind == "string":
            body += [
                f"t = s[{i}]",
                "if t == '':",
                f"    e{i} = EMPTY",
                "else:",
                "    t = t.encode('utf-8', 'surrogateescape')",
                "    n = len(t)",
                f"    e{i} = (SIZES[n] if n < 254 else SIZE(n)) + t",
            ]
            parts.append(f"e{i}")
        else:
            plain = False
            space[f"x{i}"] = leaf_codec(t.leaf_types[i], big).encode
            parts.append(f"*x{i}(s[{i}])")
    if not full:
        body.append(f"return [{', '.join(parts)}]")
    elif plain and 0 < len(parts) <= 4:
        body.append(f"return {' + '.join(parts)}")
    else:
        space["JOIN"] = b"".join
        body.append(f"return JOIN([{', '.join(parts)}])")
    lines = ["def f(s):", "    try:"]
    lines += ["        " + line for line in body]
    lines += ["    except BAD as e:", "        raise FAIL(s, e) from None"]
    return _make(lines, space, "encoder")


def encode_failure(
    t: TypeDesc, big: bool, leaves: tuple[int, ...], store: list[Any], error: Exception
) -> PVDataError:
    """Find the field that cannot be encoded and make the error that names it."""
    if len(store) != t.count:
        return PVDataError(f"the store has {len(store)} slots, its type {t.count}")
    for number in leaves:
        try:
            for _ in leaf_codec(t.leaf_types[number], big).encode(store[number]):
                pass
        except ENCODE_ERRORS as e:
            leaf = t.leaf_types[number]
            return PVDataError(f"{t.paths[number]}: cannot encode {store[number]!r:.60} as {leaf!r:.60}: {e}")
    return PVDataError(f"cannot encode the value: {error}")


def _fmt(t: TypeDesc) -> str:
    assert isinstance(t, ScalarType)
    return t.fmt


def _runs(t: TypeDesc, leaves: tuple[int, ...]) -> list[tuple[str, list[int]]]:
    """Group neighbouring fixed-size fields; every other field stands alone."""
    runs: list[tuple[str, list[int]]] = []
    for number in leaves:
        leaf = t.leaf_types[number]
        if isinstance(leaf, ScalarType) and leaf.fmt:
            if runs and runs[-1][0] == "fixed":
                runs[-1][1].append(number)
            else:
                runs.append(("fixed", [number]))
        elif isinstance(leaf, ScalarType) and leaf.code == 0x60:
            runs.append(("string", [number]))
        else:
            runs.append(("other", [number]))
    return runs


def _make(lines: list[str], space: dict[str, Any], what: str) -> Any:
    exec(compile("\n".join(lines), f"<PVData {what}>", "exec"), space)  # noqa: S102 - integers and own names only
    return space["f"]
