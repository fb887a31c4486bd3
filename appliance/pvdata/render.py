"""Types and values as text, in exactly the form of pvxinfo, pvxget and pvxmonitor.

Source: PVXS ``Value::Fmt`` (datafmt.cpp) and the programs' output; the vectors in tests/vectors were printed by PVXS.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from appliance.errors import PVDataError
from appliance.pvdata.bitset import iter_bits
from appliance.pvdata.store import NO_STRINGS, AnyValue, UnionValue, zeros
from appliance.pvdata.types import AnyType, ArrayType, ScalarType, StructType, TypeDesc, UnionType
from appliance.pvdata.value import Value, View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    _Leaf = tuple[str, int, TypeDesc, str, str]
    """What stands before a leaf's value (before the line of one that is no plain scalar), its number, type, name and indent."""

__all__ = ["escape", "number", "render", "render_leaf", "render_type", "type_name"]

_NAMES = {
    "bool": "bool",
    "float32": "float",
    "float64": "double",
    "string": "string",
}
_ESCAPES = {
    7: "\\a",
    8: "\\b",
    12: "\\f",
    10: "\\n",
    13: "\\r",
    9: "\\t",
    11: "\\v",
    92: "\\\\",
    39: "\\'",
    34: '\\"',
}
_TABLE = [_ESCAPES.get(i) or (chr(i) if 32 <= i <= 126 else f"\\x{i:02x}") for i in range(256)]


def type_name(t: TypeDesc) -> str:
    """Name a type as PVXS does: ``int32_t``, ``double[]``, ``struct``. Bounds are shown, which PVXS cannot have."""
    if isinstance(t, ScalarType):
        bound = getattr(t, "bound", None)
        return _NAMES.get(t.name, t.name + "_t") + (f"({bound})" if bound else "")
    if isinstance(t, ArrayType):
        size = {"variable": "[]", "bounded": f"<{t.size}>", "fixed": f"[{t.size}]"}[t.kind]
        return type_name(t.element) + size
    return "struct" if isinstance(t, StructType) else "union" if isinstance(t, UnionType) else "any"


def escape(text: str) -> str:
    """Escape text as C writes its UTF-8 octets: an octet that is not printable ASCII becomes its hexadecimal code."""
    if text.isascii() and text.isprintable() and not ("\\" in text or "'" in text or '"' in text):
        return text
    return "".join([_TABLE[octet] for octet in text.encode("utf-8", "surrogateescape")])


def number(x: Any) -> str:
    """Format a leaf number as a C++ stream does: six significant digits for floating point."""
    if isinstance(x, float):
        if x != x:  # noqa: PLR0124 - NaN; C++ shows its sign
            import math

            return "-nan" if math.copysign(1.0, x) < 0 else "nan"
        return f"{x:g}"
    if x is True or x is False:
        return "true" if x else "false"
    return str(x)


def render_type(t: TypeDesc) -> str:
    """Describe a type as pvxinfo does.

    Args:
        t: The type.

    Returns:
        The text, with a line end.

    Example:
        >>> from appliance.pvdata import render_type
        >>> print(render_type(StructType([("x", FLOAT64)], "example:x")), end="")
        struct "example:x" {
            double x
        }
    """
    out: list[str] = []
    _show_type(out, t, "", "")
    return "".join(out)


def _show_type(out: list[str], t: TypeDesc, name: str, indent: str) -> None:
    inner = t.element if isinstance(t, ArrayType) else t
    out.append(type_name(t))
    if t.id:
        out.append(f' "{escape(t.id)}"')
    if isinstance(inner, (StructType, UnionType)):
        out.append(" {")
        if inner.fields:
            out.append("\n")
        for member, child in inner.fields:
            out.append(indent + "    ")
            _show_type(out, child, member, indent + "    ")
        out.append(indent + "}" if inner.fields else "}")
    out.append(f" {name}\n" if name else "\n")


def render(value: Value | View, fmt: str = "delta", limit: int = 20, *, show_value: bool = True) -> str:
    """Show a value as pvxget does.

    Args:
        value: The value.
        fmt: ``delta`` has one line for each marked field, ``tree`` everything, nested.
        limit: The most elements of an array that are shown; 0 means all.
        show_value: Whether values are shown; otherwise only their types.

    Returns:
        The text, with a line end.

    Raises:
        PVDataError: The format is neither of them.

    Example:
        >>> from appliance.pvdata import render
        >>> print(render(Value(NTScalar(FLOAT64), 1.5)), end="")
        value double = 1.5
    """
    if isinstance(value, View):
        value = value.to_value()
    if fmt == "tree":
        if not show_value:
            return render_type(value.type)
        out: list[str] = []
        kind = value.type
        if not isinstance(kind, StructType):
            _tree(out, kind, value.store[0], "", "", limit)
        elif kind.count <= _PLANNED:
            _planned(out, kind, value.store, limit)
        else:
            _tree(out, kind, value, "", "", limit)
        return "".join(out)
    if fmt != "delta":
        raise PVDataError(f"the format is delta or tree, not {fmt!r}")
    return "".join(_delta(value, limit, show_value))


def render_leaf(kind: TypeDesc, content: Any, limit: int = 20) -> str:
    """Show one field that is a scalar or an array of scalars: ``double[] = {2}[1, 2]``; nothing else has such a form.

    Args:
        kind: The field's type.
        content: What is in the store for it.
        limit: The most elements of an array.

    Returns:
        The text; "" for a field of another kind.
    """
    if isinstance(kind, ScalarType) or (isinstance(kind, ArrayType) and isinstance(kind.element, ScalarType)):
        return next(_field("", kind, content, limit, show=True, top=True)).rstrip("\n")
    return ""


def _marked(value: Value) -> Iterator[int]:
    """Yield the numbers of the marked fields and of all that is below a marked structure; never the top.

    A mark on the top counts as a mark on every leaf, as in PVXS after decoding a whole value.
    """
    after = 1
    t = value.type
    for i in iter_bits(t.leaf_mask & ~1 if value.changed & 1 else value.changed & t.full_mask):
        if i >= after:
            after = i + t.spans[i]
            yield from range(i, after)


def _delta(value: Value, limit: int, show: bool) -> Iterator[str]:
    t = value.type
    # The top is shown only when it is marked itself.
    if value.changed & 1:
        yield from _field("", t, None if isinstance(t, StructType) else value.store[0], limit, show, top=True)
    for i in _marked(value):
        yield from _field(t.paths[i], t.leaf_types[i], value.store[i], limit, show)


def _field(prefix: str, t: TypeDesc, x: Any, limit: int, show: bool, *, top: bool = False) -> Iterator[str]:
    line = prefix + ("" if top else " ") + type_name(t)
    if isinstance(t, StructType) and t.id:
        line += f' "{escape(t.id)}"'
    if show:
        if isinstance(t, ScalarType):
            line += f' = "{escape(x)}"' if t.kind == "string" else f" = {number(x)}"
        elif isinstance(t, ArrayType) and isinstance(t.element, ScalarType):
            line += f" = {_array(t, x, limit)}"
    yield line + "\n"
    if isinstance(t, UnionType):
        member = t.members.get(x.name)
        yield from _nested(f"{prefix}->{x.name or ''}", member, x.value, limit, show)
    elif isinstance(t, AnyType):
        yield from _nested(prefix + "->", x.type, x.value, limit, show)
    elif isinstance(t, ArrayType) and not isinstance(t.element, ScalarType):
        for i, item in enumerate(x):
            name = f"{prefix}[{i}]"
            if isinstance(item, UnionValue):
                # In PVXS the element is the selected member itself.
                yield from _nested(name, _member(t.element, item), item.value, limit, show)
            elif isinstance(item, AnyValue):
                yield from _nested(name, item.type, item.value, limit, show)
            else:
                yield from _nested(name, t.element, item, limit, show)


def _member(t: TypeDesc, x: UnionValue) -> TypeDesc | None:
    return None if x.name is None else t.members.get(x.name)


def _nested(prefix: str, t: TypeDesc | None, x: Any, limit: int, show: bool) -> Iterator[str]:
    if t is None or x is None:
        yield f"{prefix} null\n"
        return
    yield from _field(prefix, t, x, limit, show)
    if isinstance(t, StructType):
        for i in _marked(x):
            yield from _field(f"{prefix}.{t.paths[i]}", t.leaf_types[i], x.store[i], limit, show)


def _array(t: ArrayType, x: Any, limit: int) -> str:
    n = len(x)
    if not n:
        return "{0}[]"
    items = x[:limit] if limit and n > limit else x
    if hasattr(items, "tolist"):
        items = items.tolist()
    element = t.element
    if isinstance(element, ScalarType) and element.kind == "string":
        texts = [f'"{escape(item)}"' for item in items]
    elif isinstance(element, ScalarType) and element.kind == "bool":
        # Elements of an array are shown as a C++ stream shows a bool.
        texts = ["1" if item else "0" for item in items]
    else:
        texts = [number(item) for item in items]
    if len(texts) < n:
        texts.append("...")
    return f"{{{n}}}[{', '.join(texts)}]"


def _tree(out: list[str], t: TypeDesc | None, x: Any, name: str, indent: str, limit: int) -> None:
    if t is None or x is None:
        out.append("null\n")
        return
    out.append(type_name(t))
    if t.id:
        out.append(f' "{escape(t.id)}"')
    title = f" {name}" if name else ""
    if isinstance(t, ScalarType):
        out.append(f'{title} = "{escape(x)}"\n' if t.kind == "string" else f"{title} = {number(x)}\n")
    elif isinstance(t, ArrayType) and isinstance(t.element, ScalarType):
        shown = "{?}[]" if _is_unset(t.element, x) else _array(t, x, limit)
        out.append(f"{title} = {shown}\n")
    elif isinstance(t, StructType):
        _tree_struct(out, t, x, title, indent, limit)
    elif isinstance(t, UnionType):
        out.append(title + (f".{x.name} " if x.name is not None else " "))
        _tree(out, t.members.get(x.name), x.value, "", indent, limit)
    elif isinstance(t, AnyType):
        out.append(title + " ")
        _tree(out, x.type, x.value, "", indent, limit)
    else:
        assert isinstance(t, ArrayType)
        _tree_list(out, t, x, title, indent, limit)


_PLANNED = 500
"""Fields of a type up to which its lines are kept, so that not much memory is kept for a peer that sends ever new types."""


@lru_cache(maxsize=64)
def _plan(t: StructType) -> tuple[tuple[_Leaf, ...], str]:
    """Return the leaves of a structure as a tree, and what stands after the last of them."""
    leaves: list[_Leaf] = []
    text: list[str] = []

    def add(kind: TypeDesc, number: int, name: str, indent: str) -> None:
        if kind.__class__ is ScalarType:
            text.append(f"{type_name(kind)} {name} = ")
        elif isinstance(kind, StructType):
            struct(kind, number, f" {name}", indent)
            return
        leaves.append(("".join(text), number, kind, name, indent))
        text.clear()

    def struct(kind: StructType, number: int, title: str, indent: str) -> None:
        text.append("struct" + (f' "{escape(kind.id)}"' if kind.id else "") + " {" + "\n" * bool(kind.fields))
        deeper = indent + "    "
        for name, child in kind.fields:
            text.append(deeper)
            add(child, number + kind.offsets[name], name, deeper)
        text.append((indent if kind.fields else "") + f"}}{title}\n")

    struct(t, 0, "", "")
    return tuple(leaves), "".join(text)


def _planned(out: list[str], t: StructType, store: list[Any], limit: int) -> None:
    leaves, end = _plan(t)
    for before, number_, kind, name, indent in leaves:
        out.append(before)
        x = store[number_]
        if kind.__class__ is not ScalarType:
            _tree(out, kind, x, name, indent, limit)
        elif x.__class__ is str:
            out.append(f'"{escape(x)}"\n')
        else:
            out.append(number(x) + "\n")
    out.append(end)


def _tree_struct(out: list[str], t: StructType, x: Any, title: str, indent: str, limit: int) -> None:
    out.append(" {")
    if t.fields:
        out.append("\n")
    deeper = indent + "    "
    for name, child in t.fields:
        out.append(deeper)
        _tree(out, child, x[name], name, deeper, limit)
    if t.fields:
        out.append(indent)
    out.append(f"}}{title}\n")


def _is_unset(element: ScalarType, x: Any) -> bool:
    """Whether this is an array that nobody has set, for which PVXS shows no length."""
    return x is NO_STRINGS or (not len(x) and bool(element.fmt) and x is zeros(element))


def _tree_list(out: list[str], t: ArrayType, x: list[Any], title: str, indent: str, limit: int) -> None:
    out.append(f"{title} = {{{len(x)}}}[")
    deeper = indent + "    "
    for shown, item in enumerate(x):
        if not shown:
            out.append("\n")
        out.append(deeper)
        if limit and shown >= limit:
            out.append("...\n")
            break
        if isinstance(item, UnionValue):
            _tree(out, _member(t.element, item), item.value, "", deeper, limit)
        elif isinstance(item, AnyValue):
            _tree(out, item.type, item.value, "", deeper, limit)
        else:
            _tree(out, t.element, item, "", deeper, limit)
    if x:
        out.append(indent)
    out.append("]\n")
