"""PVData's types, as immutable trees of descriptions.

Every type has the same *layout* attributes, so that code that walks a value need not ask what the type is: a
structure numbers its fields depth first, itself being 0 (pva.rst section 5.5.3); every other type is one
field that has number 0. The layout is computed at its first use.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.errors import PVDataError
from appliance.pvdata.pace import breathe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from appliance.pvdata.codec import Codec
    from appliance.pvdata.leafcodec import LeafCodec
    from appliance.pvdata.measure import Hop

__all__ = [
    "ANY",
    "BOOL",
    "FLOAT32",
    "FLOAT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "MAX_DEPTH",
    "MAX_FIELDS",
    "STRING",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "AnyType",
    "ArrayType",
    "BoundedString",
    "ScalarType",
    "StructType",
    "TypeDesc",
    "UnionType",
]

MAX_DEPTH = 32
"""Levels of nesting of one type; PVXS itself refuses more than 20."""
MAX_FIELDS = 65535
"""Nodes of one type, those inside unions and array elements included; PVXS counts bits in 16 bits."""
MAX_NAME = 255
"""Characters of one field's name."""
MAX_PATHS = 1 << 23
"""Characters of all dotted paths of one type together: cached sub-types could multiply long names."""
MAX_FIXED = 1 << 24
"""Bytes that all fixed-length arrays of one type may take, since a default value must hold them."""

_LAYOUT = frozenset(
    ("full_mask", "leaf_mask", "leaf_types", "leaves", "masks", "offsets", "parents", "paths", "spans")
)


WEIGHT = 1024
"""Measured octets of memory for a type itself: its object, its two codecs, and its place in the types above it."""
_FIELD_WEIGHT = 200
"""The same for each field of a structure or union: name, paths, layout and steps of codecs."""


class Masks:
    """The bits of each sub-tree, by number. They are made at their first use: all of them would take quadratic memory."""

    __slots__ = ("_spans",)

    def __init__(self, spans: tuple[int, ...]) -> None:
        self._spans = spans

    def __getitem__(self, number: int) -> int:
        return ((1 << self._spans[number]) - 1) << number


class TypeDesc:
    """A PVData type. Compares by structure, names and identifiers included; hashes in constant time.

    Example:
        >>> NTScalar(FLOAT64) == NTScalar(FLOAT64), NTScalar(FLOAT64) == NTScalar(INT32)
        (True, False)
    """

    __slots__ = (
        "_codecs",
        "_defaults",
        "_hash",
        "_hops",
        "_leaf_codecs",
        "count",
        "depth",
        "fixed_bytes",
        "full_mask",
        "holds_any",
        "id",
        "leaf_mask",
        "leaf_types",
        "leaves",
        "masks",
        "members",
        "min_bytes",
        "nodes",
        "offsets",
        "parents",
        "path_chars",
        "paths",
        "spans",
        "weight",
    )

    id: str
    """The identifier such as ``epics:nt/NTScalar:1.0``; empty if there is none."""
    count: int
    """How many numbers, and therefore bits, the type takes."""
    nodes: int
    """Like ``count``, but the types inside unions and array elements count too."""
    depth: int
    """Levels of nesting, 1 for a scalar."""
    min_bytes: int
    """The fewest octets that a full value takes on the wire."""
    fixed_bytes: int
    """Octets that the fixed-length arrays of a default value take."""
    path_chars: int
    weight: int
    """Estimated octets of memory for the type after its first use, with everything below it."""
    members: dict[str, TypeDesc]
    """Types by member name, of a structure or a union."""
    offsets: dict[str, int]
    """Number by dotted path; the empty path is 0."""
    paths: tuple[str, ...]
    """Dotted path by number."""
    leaf_types: tuple[TypeDesc, ...]
    """Type by number."""
    leaves: tuple[int, ...]
    """The numbers that have storage, in wire order: all but those of structures."""
    spans: tuple[int, ...]
    """By number, how many numbers the sub-tree has."""
    masks: Masks
    """By number, the bits of the sub-tree."""
    parents: tuple[int, ...]
    """By number, the number of the enclosing structure; 0 for the top."""
    full_mask: int
    """All bits."""
    leaf_mask: int
    """The bits of all ``leaves``."""
    _hash: int
    _defaults: tuple[tuple[object, ...], tuple[int, ...]] | None
    _codecs: list[Codec | None]
    _leaf_codecs: list[LeafCodec | None]
    _hops: list[Hop | None] | None
    holds_any: bool
    """Whether an ``any`` is anywhere inside. The octets of such a value mean something on one connection only: an any may
    name its type by an ID of that connection."""

    def _init(self, nodes: int, depth: int, min_bytes: int) -> None:
        self.id = ""
        self.count = 1
        self.nodes = nodes
        self.depth = depth
        self.min_bytes = min_bytes
        self.fixed_bytes = 0
        self.path_chars = 0
        self.weight = WEIGHT
        self.members = {}
        self._defaults = None
        # By byte order. They are stored here to live as long as the type, so they need no separate bound.
        self._codecs = [None, None]
        self._leaf_codecs = [None, None]
        self._hops = None
        self.holds_any = False

    def __getattr__(self, name: str) -> object:
        # Reached only while a layout slot is still empty.
        if name in _LAYOUT:
            self._lay_out()
            return object.__getattribute__(self, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _lay_out(self) -> None:
        self.offsets = {"": 0}
        self.paths = ("",)
        self.leaf_types = (self,)
        self.leaves = (0,)
        self.spans = (1,)
        self.masks = Masks(self.spans)
        self.parents = (0,)
        self.full_mask = self.leaf_mask = 1

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, TypeDesc):
            return NotImplemented
        return type(self) is type(other) and self._hash == other._hash and self._key() == other._key()

    # Every kind of type defines this. It is not an ABC, because isinstance on types must be fast.
    def _key(self) -> object:
        raise NotImplementedError

    def __reduce__(self) -> tuple[object, ...]:
        raise NotImplementedError


class ScalarType(TypeDesc):
    """A boolean, a number or a string (pva.rst section 5.2). Programs use the constants: `FLOAT64`, `STRING` ...

    Example:
        >>> FLOAT64.name, FLOAT64.kind, FLOAT64.size
        ('float64', 'float', 8)
    """

    __slots__ = ("code", "fmt", "hi", "kind", "lo", "name", "np", "size")

    name: str
    """The name, for instance ``float64``."""
    code: int
    """The kind byte (pva.rst section 5.4.3)."""
    fmt: str
    """Format character of the struct module; empty for strings."""
    size: int
    """Octets; 0 for strings."""
    kind: str
    """``bool``, ``int``, ``uint``, ``float`` or ``string``."""
    np: str
    """numpy's name of the type without a byte order; empty for strings."""
    lo: int
    hi: int

    def __init__(self, name: str, code: int, fmt: str, size: int, kind: str, np: str) -> None:
        self._init(1, 1, size or 1)
        self.name = name
        self.code = code
        self.fmt = fmt
        self.size = size
        self.kind = kind
        self.np = np
        bits = 8 * size
        self.lo = -(1 << (bits - 1)) if kind == "int" else 0
        self.hi = (1 << (bits - 1)) - 1 if kind == "int" else (1 << bits) - 1
        self._hash = hash((ScalarType, name))

    def _key(self) -> object:
        return self.name

    def __repr__(self) -> str:
        return self.name.upper()

    def __reduce__(self) -> tuple[object, ...]:
        return (_scalar, (self.name,))


class BoundedString(ScalarType):
    """A string of limited length (pvData kind byte 0x83; PVXS refuses it).

    Args:
        bound: The most octets of UTF-8.

    Raises:
        PVDataError: The bound is not from 1 to 2147483647.

    Example:
        >>> from appliance.pvdata import BoundedString
        >>> Value(StructType([("name", BoundedString(3))]), {"name": "abcd"})
        Traceback (most recent call last):
        appliance.errors.PVDataError: name: ...
    """

    __slots__ = ("bound",)

    bound: int
    """The most octets."""

    def __init__(self, bound: int) -> None:
        if not 0 < bound <= 0x7FFFFFFF:
            raise PVDataError(f"the bound of a string must be from 1 to 2147483647, not {bound}")
        super().__init__("string", 0x83, "", 0, "string", "")
        self.bound = bound
        self._hash = hash((BoundedString, bound))

    def _key(self) -> object:
        return self.bound

    def __repr__(self) -> str:
        return f"BoundedString({self.bound})"

    def __reduce__(self) -> tuple[object, ...]:
        return (BoundedString, (self.bound,))


BOOL = ScalarType("bool", 0x00, "?", 1, "bool", "?")
INT8 = ScalarType("int8", 0x20, "b", 1, "int", "i1")
INT16 = ScalarType("int16", 0x21, "h", 2, "int", "i2")
INT32 = ScalarType("int32", 0x22, "i", 4, "int", "i4")
INT64 = ScalarType("int64", 0x23, "q", 8, "int", "i8")
UINT8 = ScalarType("uint8", 0x24, "B", 1, "uint", "u1")
UINT16 = ScalarType("uint16", 0x25, "H", 2, "uint", "u2")
UINT32 = ScalarType("uint32", 0x26, "I", 4, "uint", "u4")
UINT64 = ScalarType("uint64", 0x27, "Q", 8, "uint", "u8")
FLOAT32 = ScalarType("float32", 0x42, "f", 4, "float", "f4")
FLOAT64 = ScalarType("float64", 0x43, "d", 8, "float", "f8")
STRING = ScalarType("string", 0x60, "", 0, "string", "")

SCALARS = {
    t.name: t
    for t in (
        BOOL,
        INT8,
        INT16,
        INT32,
        INT64,
        UINT8,
        UINT16,
        UINT32,
        UINT64,
        FLOAT32,
        FLOAT64,
        STRING,
    )
}


def _scalar(name: str) -> ScalarType:
    return SCALARS[name]


class AnyType(TypeDesc):
    """The variant union: a value that carries its own type. `ANY` is its only instance.

    Example:
        >>> value = Value(StructType([("what", ANY)]), {"what": 2.5})
        >>> value["what"].value
        2.5
    """

    __slots__ = ()

    def __init__(self) -> None:
        self._init(1, 1, 1)
        self.holds_any = True
        self._hash = hash((AnyType,))

    def _key(self) -> object:
        return None

    def __repr__(self) -> str:
        return "ANY"

    def __reduce__(self) -> tuple[object, ...]:
        return (_any, ())


ANY = AnyType()


def _any() -> AnyType:
    return ANY


class ArrayType(TypeDesc):
    """An array of scalars, structures, unions or anys.

    Args:
        element: The type of one element.
        kind: ``variable``, ``bounded`` (at most ``size`` elements) or ``fixed`` (exactly ``size``); the latter two exist
            for scalars only (pva.rst section 5.4.2).
        size: Elements, of a bounded or fixed array.

    Raises:
        PVDataError: PVData has no such array.

    Example:
        >>> value = Value(StructType([("numbers", ArrayType(INT32))]), {"numbers": [1, 2, 3]})
        >>> int(value["numbers"].sum())
        6
    """

    __slots__ = ("element", "kind", "size")

    element: TypeDesc
    """The type of one element."""
    kind: str
    """``variable``, ``bounded`` or ``fixed``."""
    size: int
    """The number of elements of a bounded or fixed array; 0 for a variable one."""

    def __init__(self, element: TypeDesc, kind: str = "variable", size: int = 0) -> None:
        if isinstance(element, (ArrayType, BoundedString)):
            raise PVDataError(f"PVData has no array of {element!r}")
        if kind not in ("variable", "bounded", "fixed"):
            raise PVDataError(f"an array is variable, bounded or fixed, not {kind!r}")
        if kind == "variable":
            size = 0
        elif not isinstance(element, ScalarType):
            raise PVDataError(f"PVData has {kind} arrays of scalars only, not of {element!r}")
        elif not 0 <= size <= 0x7FFFFFFF:
            raise PVDataError(f"the size of an array must be from 0 to 2147483647, not {size}")
        width = (element.size or 8) if isinstance(element, ScalarType) else 0
        fixed = size if kind == "fixed" else 0
        self._init(1 + element.nodes, 1 + element.depth, fixed * element.min_bytes if kind == "fixed" else 1)
        self.fixed_bytes = fixed * width
        self.weight = WEIGHT + (0 if isinstance(element, ScalarType) else element.weight)
        self.holds_any = element.holds_any
        _check_limits(self)
        self.element = element
        self.kind = kind
        self.size = size
        self._hash = hash((ArrayType, element, kind, size))

    def _key(self) -> object:
        return (self.element, self.kind, self.size)

    def __repr__(self) -> str:
        return (
            f"ArrayType({self.element!r})"
            if self.kind == "variable"
            else f"ArrayType({self.element!r}, {self.kind!r}, {self.size})"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (ArrayType, (self.element, self.kind, self.size))


class _FieldsType(TypeDesc):
    __slots__ = ("fields",)

    fields: tuple[tuple[str, TypeDesc], ...]
    """Name and type of each direct member, in order."""

    def _take(self, fields: Iterable[tuple[str, TypeDesc]], id: str, *, lenient: bool) -> None:  # noqa: A002 - PVData's word
        self.fields = taken = tuple([(name, t) for name, t in fields])
        breathe()
        members = dict(taken)
        if len(members) != len(taken):
            seen: set[str] = set()
            twice = next(name for name, _ in taken if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise PVDataError(f"field name {twice!r} appears twice")
        breathe()
        check = _is_wire_name if lenient else _is_name
        nodes = depth = 1
        least = 1 if isinstance(self, UnionType) else 0
        fixed = chars = 0
        holds_any = False
        weight = WEIGHT + 4 * len(id)
        hashed = hash((type(self), id))
        for number, (name, t) in enumerate(taken):
            if not number & 255:
                breathe()
                hashed = hash((hashed, taken[number : number + 256]))
            if not check(name):
                raise PVDataError(f"invalid field name {name!r}: letters, digits and underscores are allowed")
            nodes += t.nodes
            depth = max(depth, 1 + t.depth)
            chars += t.path_chars + (len(name) + 1) * t.count
            fixed += t.fixed_bytes
            weight += _FIELD_WEIGHT + 2 * len(name)
            if not isinstance(t, ScalarType):
                weight += t.weight
                holds_any = holds_any or t.holds_any
            if not isinstance(self, UnionType):
                least += t.min_bytes
        self._init(nodes, depth, least)
        self.id = id
        self.members = members
        self.fixed_bytes = fixed
        self.path_chars = chars
        self.weight = weight + 2 * chars
        self.holds_any = holds_any
        _check_limits(self)
        self._hash = hashed

    def _key(self) -> object:
        return (self.id, self.fields)

    def __repr__(self) -> str:
        fields = ", ".join([f"({name!r}, {t!r})" for name, t in self.fields])
        return f"{type(self).__name__}([{fields}]{f', {self.id!r}' if self.id else ''})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.fields, self.id))


class StructType(_FieldsType):
    """A structure.

    Args:
        fields: Name and type of each member.
        id: The identifier, such as ``epics:nt/NTScalar:1.0``; empty if there is none.

    Raises:
        PVDataError: A name is bad or repeated, or the type nests too deeply or has too many fields.

    Example:
        >>> point = StructType([("x", FLOAT64), ("y", FLOAT64)], "example:point")
        >>> Value(StructType([("name", STRING), ("at", point)]), {"at": {"x": 1.0}})["at.x"]
        1.0
    """

    __slots__ = ()

    def __init__(self, fields: Iterable[tuple[str, TypeDesc]] = (), id: str = "") -> None:  # noqa: A002
        self._take(fields, id, lenient=False)
        self.count = 1 + sum([t.count for _, t in self.fields])

    def _lay_out(self) -> None:
        paths = [""]
        types: list[TypeDesc] = [self]
        spans = [self.count]
        parents = [0]
        for number, (name, t) in enumerate(self.fields):
            if not number & 255:
                breathe()
            base = len(paths)
            if isinstance(t, StructType):
                dot = name + "."
                paths.append(name)
                paths.extend([dot + path for path in t.paths[1:]])
                types.extend(t.leaf_types)
                spans.extend(t.spans)
                parents.append(0)
                parents.extend([base + parent for parent in t.parents[1:]])
            else:
                paths.append(name)
                types.append(t)
                spans.append(1)
                parents.append(0)
        offsets: dict[str, int] = {}
        for start in range(0, len(paths), 4096):
            breathe()
            offsets.update(zip(paths[start : start + 4096], range(start, len(paths)), strict=False))
        # Each is complete when it is stored: another thread, or another connection at a pause, uses it at once.
        self.offsets = offsets
        self.paths = tuple(paths)
        self.leaf_types = tuple(types)
        breathe()
        self.leaves = tuple([i for i, t in enumerate(types) if not isinstance(t, StructType)])
        self.spans = tuple(spans)
        self.masks = Masks(self.spans)
        self.parents = tuple(parents)
        breathe()
        self.full_mask = (1 << self.count) - 1
        self.leaf_mask = int("".join(["0" if isinstance(t, StructType) else "1" for t in reversed(types)]), 2)


class UnionType(_FieldsType):
    """A discriminated union: at most one of its members is present.

    Args:
        fields: Name and type of each member.
        id: The identifier; empty if there is none.

    Raises:
        PVDataError: A name is bad or repeated, or the type nests too deeply or has too many fields.

    Example:
        >>> choice = UnionType([("number", INT32), ("text", STRING)])
        >>> value = Value(StructType([("choice", choice)]), {"choice->text": "hello"})
        >>> value["choice"]
        UnionValue(name='text', value='hello')
    """

    __slots__ = ("index",)

    def __init__(self, fields: Iterable[tuple[str, TypeDesc]] = (), id: str = "") -> None:  # noqa: A002
        self._take(fields, id, lenient=False)
        self.index = {name: i for i, (name, _) in enumerate(self.fields)}


def from_wire(
    kind: type[StructType | UnionType],
    fields: list[tuple[str, TypeDesc]],
    id: str,  # noqa: A002
) -> StructType | UnionType:
    """Make a structure or union that a peer described; names may contain any printable character except a dot.

    PVXS checks no name that it receives, so a stricter rule would make existing PVs unreadable.
    """
    made = kind.__new__(kind)
    made._take(fields, id, lenient=True)
    if isinstance(made, UnionType):
        made.index = {name: i for i, (name, _) in enumerate(made.fields)}
    else:
        made.count = 1 + sum([t.count for _, t in made.fields])
    return made


def _rebuild(
    kind: type[StructType | UnionType],
    fields: list[tuple[str, TypeDesc]],
    id: str,  # noqa: A002
) -> StructType | UnionType:
    return from_wire(kind, fields, id)


def _check_limits(t: TypeDesc) -> None:
    if t.depth > MAX_DEPTH:
        raise PVDataError(f"the type nests deeper than {MAX_DEPTH} levels")
    if t.nodes > MAX_FIELDS:
        raise PVDataError(f"the type has more than {MAX_FIELDS} fields")
    if t.path_chars > MAX_PATHS:
        raise PVDataError("the type's field names are too long altogether")
    if t.fixed_bytes > MAX_FIXED:
        raise PVDataError(f"the type's fixed-length arrays take more than {MAX_FIXED} bytes")


def _is_name(name: str) -> bool:
    return len(name) <= MAX_NAME and name.isascii() and name.isidentifier()


def _is_wire_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and name.isprintable() and "." not in name
