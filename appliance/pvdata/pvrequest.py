"""pvRequest: the fields and the options of an operation.

Text: ``field(a,b.c)record[queueSize=4,pipeline=true]``. Semantics are those of PVXS (pvrequest.cpp, clientreq.cpp);
pvDataCPP's ``field(a[opt=1])``, ``field(a{b,c})`` and bare lists with commas are understood as well.
"""

from __future__ import annotations

from appliance.errors import PVDataError, PVRequestError
from appliance.pvdata.types import MAX_DEPTH, STRING, StructType, TypeDesc
from appliance.pvdata.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["PVRequest", "request_mask", "request_options", "select_bits", "truth"]

MAX_TEXT = 65536
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.")
_WORD = _NAME | frozenset("+-:/*%")
OPTIONS = "_options"

_TRUE = frozenset(("true", "1", "yes", "on"))
_FALSE = frozenset(("false", "0", "no", "off"))

_Tree = dict[str, "_Tree | str"]


class PVRequest:
    """A parsed pvRequest. ``value`` is sent to the server; ``options`` are the options of the whole request.

    Raises:
        PVRequestError: The text cannot be parsed; the error shows the place.
    """

    __slots__ = ("options", "text", "value")

    def __init__(self, text: str = "") -> None:
        self.text = text
        fields, self.options = _Parser(text).parse()
        if truth(self.options.get("pipeline")):
            # Both ends must agree whether they count updates, and other servers know fewer words than we do.
            self.options["pipeline"] = "true"
        try:
            self.value = _build(fields, self.options)
        except PVDataError as e:
            raise PVRequestError(f"pvRequest {text!r:.80}: {e}") from None

    @property
    def type(self) -> StructType:
        """The type of ``value``."""
        t = self.value.type
        assert isinstance(t, StructType)
        return t

    @property
    def store(self) -> list[Any]:
        """The store of ``value``."""
        return self.value.store

    def __repr__(self) -> str:
        return f"PVRequest({self.text!r})"


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > MAX_TEXT:
            raise PVRequestError(f"the pvRequest has {len(text)} characters; at most {MAX_TEXT} are allowed")
        self.text = text
        self.pos = 0
        self.fields: _Tree = {}
        self.options: dict[str, str] = {}

    def fail(self, why: str) -> PVRequestError:
        return PVRequestError(f"pvRequest {self.text!r:.80}: {why} at character {self.pos + 1}")

    def peek(self) -> str:
        while self.pos < len(self.text) and self.text[self.pos] == " ":
            self.pos += 1
        return self.text[self.pos : self.pos + 1]

    def need(self, c: str) -> None:
        if self.peek() != c:
            raise self.fail(f"{c!r} is expected")
        self.pos += 1

    def word(self, allowed: frozenset[str] = _NAME) -> str:
        self.peek()
        start = self.pos
        while self.pos < len(self.text) and self.text[self.pos] in allowed:
            self.pos += 1
        if start == self.pos:
            raise self.fail("a name is expected")
        return self.text[start : self.pos]

    def parse(self) -> tuple[_Tree, dict[str, str]]:
        while c := self.peek():
            if c == ",":
                self.pos += 1
                continue
            name = self.word()
            following = self.peek()
            if name == "field":
                self.need("(")
                self.list(self.fields, ")", 0)
            elif name == "record":
                self.need("[")
                self.assignments(self.options)
            elif following == "(":
                raise self.fail(f"'field' or 'record' is expected before it, not {name!r},")
            else:
                self.details(self.add(self.fields, name), 0)
        return self.fields, self.options

    def list(self, into: _Tree, close: str, depth: int) -> None:
        while self.peek() != close:
            if self.peek() == ",":
                self.pos += 1
                continue
            self.details(self.add(into, self.word()), depth)
        self.need(close)

    def details(self, node: _Tree, depth: int) -> None:
        """Read the options and the braces that may follow a field's name."""
        if depth > 20:
            raise self.fail("too many levels")
        if self.peek() == "[":
            self.pos += 1
            options: dict[str, str] = {}
            self.assignments(options)
            self.add(node, OPTIONS).update(options)
        if self.peek() == "{":
            self.pos += 1
            self.list(node, "}", depth + 1)

    def add(self, into: _Tree, path: str) -> _Tree:
        names = path.split(".")
        if len(names) > MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} levels")
        for name in names:
            if name:
                node = into.setdefault(name, {})
                if isinstance(node, str):
                    raise self.fail(f"{name!r} is an option and not a field")
                into = node
        return into

    def assignments(self, into: dict[str, str]) -> None:
        if self.peek() == "]":
            self.pos += 1
            return
        while True:
            key = self.word()
            self.need("=")
            into[key] = self.word(_WORD)
            if self.peek() == ",":
                self.pos += 1
                if self.peek() == "]":
                    break
                continue
            break
        self.need("]")


def _build(fields: _Tree, options: dict[str, str]) -> Value:
    members: list[tuple[str, TypeDesc]] = [("field", _type(fields))]
    if options:
        wanted = StructType([(name, STRING) for name in sorted(options)])
        members.append(("record", StructType([(OPTIONS, wanted)])))
    value = Value(StructType(members))
    _fill(value, "field", fields)
    for name, text in options.items():
        value[f"record.{OPTIONS}.{name}"] = text
    return value


def _type(tree: _Tree) -> StructType:
    return StructType(
        [(name, STRING if isinstance(node, str) else _type(node)) for name, node in tree.items()]
    )


def _fill(value: Value, path: str, tree: _Tree) -> None:
    for name, node in tree.items():
        if isinstance(node, str):
            value[f"{path}.{name}"] = node
        else:
            _fill(value, f"{path}.{name}", node)


def request_mask(request: Value, t: TypeDesc) -> int:
    """Return the fields of ``t`` that a pvRequest selects, as bits.

    As in PVXS: bit 0 is always set; no ``field`` or an empty one means everything; unknown names are ignored
    if one name is known; the name of a structure selects all below it; the name of a field below it also sets the
    structure's bit. So the bit of a structure does not mean that everything below it is wanted: combine the mask with changes by
    ``select_bits``.

    Raises:
        PVRequestError: Nothing is selected.
    """
    if "field" not in request:
        return t.full_mask
    fields = request.type.members["field"]
    if not isinstance(fields, StructType):
        raise PVRequestError("the pvRequest's 'field' is not a structure")
    if not fields.fields:
        return t.full_mask
    mask = 1
    found = False
    offsets = t.offsets
    for path, number in fields.offsets.items():
        asked = fields.leaf_types[number]
        if not path or not isinstance(asked, StructType):
            continue
        here = offsets.get(path)
        if here is None:
            continue
        found = True
        if asked.members.keys() <= {OPTIONS}:
            mask |= t.masks[here]
        else:
            mask |= 1 << here
    if not found:
        raise PVRequestError(
            f"pvRequest must select at least one field: none of {', '.join(list(fields.members)[:8])} exists"
        )
    return mask


def select_bits(t: TypeDesc, changed: int, mask: int) -> int:
    """Return the fields of ``changed`` that are also in ``mask``, as bits for the codec.

    A structure's bit in ``changed`` means everything below it; in ``mask`` it does not. So if the mask is not
    everything, the fields of structures are listed one by one.
    """
    if mask == t.full_mask:
        return changed & mask
    from appliance.pvdata.bitset import iter_bits

    spelled = changed & mask
    for number in iter_bits(changed & t.full_mask):
        if t.spans[number] > 1:
            spelled |= t.masks[number] & mask
    return spelled & t.leaf_mask


def request_options(request: Value) -> dict[str, str]:
    """Return the options of the whole request (``record._options``) as text, whatever their types."""
    options = request.get(f"record.{OPTIONS}")
    if options is None or not hasattr(options, "items"):
        return {}
    out = {}
    for name, value in options.items():
        if isinstance(value, bool):
            out[name] = "true" if value else "false"
        elif isinstance(value, (str, int, float)):
            out[name] = str(value)
    return out


def truth(text: str | None) -> bool | None:
    """Read an option that is true or false, such as ``pipeline`` or ``process``.

    Args:
        text: The option's text; None if the request does not have it.

    Returns:
        The truth value; None if the option is absent or its text is neither.
    """
    word = (text or "").strip().lower()
    if word in _TRUE:
        return True
    return False if word in _FALSE else None
