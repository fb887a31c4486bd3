"""Each object that a program can assign does the same in p4p and in ours, side by side: the value, its marks and its text, or the error."""

from __future__ import annotations

import math
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import p4p
import p4p.nt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.p4p import nt, wrapper
from appliance.p4p._scalars import NotATuple
from appliance.p4p.nt.ndarray import _NoColor

pytestmark = pytest.mark.interop


def plain(x: Any) -> Any:
    """What can be compared, with the class of each part."""
    if isinstance(x, (p4p.Value, wrapper.Value)):
        return ("Value", x.getID(), plain(x.tolist()), sorted(x.changedSet()))
    if isinstance(x, np.ndarray):
        return ("array", x.dtype.str, x.shape, [repr(item) for item in x.tolist()])
    if isinstance(x, dict):
        return {name: plain(item) for name, item in x.items()}
    if isinstance(x, (list, tuple)):
        return (type(x).__name__, [plain(item) for item in x])
    return (type(x).__name__, repr(x))


def outcome(do: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What a call returns, or raises."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            result = plain(do())
        except Exception as e:
            return None, e
        return (result, [w.category for w in told if w.category is UserWarning]), None


def alike(mine: tuple[Any, BaseException | None], theirs: tuple[Any, BaseException | None]) -> bool:
    if theirs[1] is None:
        return mine[1] is None and mine[0] == theirs[0]
    # Two of our errors are also of another class, since p4p's is a surprise.
    return type(mine[1]) is type(theirs[1]) or (
        isinstance(mine[1], (NotATuple, _NoColor)) and isinstance(mine[1], type(theirs[1]))
    )


SCALARS = "?sbBhHiIlLfd"
POINT = [("x", "i"), ("y", "ad")]
KINDS: dict[str, Any] = {code: code for code in SCALARS}
KINDS |= {"a" + code: "a" + code for code in SCALARS}
KINDS |= {
    "v": "v",
    "av": "av",
    "struct": ("S", "point", POINT),
    "structs": ("aS", "point", POINT),
    "enum": ("S", "enum_t", [("index", "i"), ("choices", "as")]),
    "union of numbers": ("U", None, [("i", "h"), ("d", "d"), ("s", "s")]),
    "union of texts first": ("U", None, [("s", "s"), ("i", "i")]),
    "union with a structure": ("U", None, [("p", ("S", None, POINT)), ("b", "?"), ("n", "aB")]),
    "union of arrays": ("U", None, [("n", "ai"), ("t", "as"), ("i", "i")]),
    "unions": ("aU", None, [("i", "i"), ("s", "s")]),
}
ODD = object()
OBJECTS: list[Any] = [
    *(None, True, False, 0, 1, -1, 127, 128, 255, 256, 65535, -32769, 1 << 31, -(1 << 31), (1 << 32) + 5, (1 << 63) - 1),
    *(1 << 63, -(1 << 63), (1 << 64) - 1, 1 << 64, -(1 << 63) - 1, 1 << 200),
    *(0.0, -0.0, 1.5, -1.5, 2.999, 1e10, 1e19, 1.8e19, 1e20, -1e19, 1e300, 1e-310, math.inf, -math.inf, math.nan, 0.1, 1 / 3),
    *("", "0", "1", "-1", "+7", " 12 ", "0x1F", "-0x10", "010", "08", "1.5", "1e3", "1e400", "1e-400", "inf", "-INF", "nan", "0x1p3"),
    *("true", "false", "True", "text", "18446744073709551615", "18446744073709551616", "9223372036854775808", "-9223372036854775809"),
    *("1_000", "1 2", "12x", "0x", "\xe9", "a'b\"\\\n", ".5", "5.", "e5", "--1", "1.5.2", "4294967296", "-129", "infinity", "0x.8"),
    *(b"", b"5", b"text", b"true", b"\xc3\xa9"),
    *(np.int8(-5), np.uint8(200), np.int64(-7), np.uint64(1 << 63), np.float32(1.1), np.float64(2.5), np.bool_(True), np.str_("9")),
    *((), [], (1, 2), [1, 2], [1.5, -2.5], [True, False], ["a", "b"], ["1", "2"], [b"a"], [None], [1, "a"], [[1, 2], [3, 4]], [300, -1]),
    *(range(3), [1e10, 2], [math.nan], ["1.5"], [1 << 63], [1 << 64], [-1], "ab", [{"x": 1}], [{"x": 1}, None], [[("x", 2)]]),
    *([("i", 5), ("s", "t")], [("q", 5)], [("d", 5), 7], [1, 2.5, "x"], [5, None]),
    *(np.arange(3), np.arange(3.0), np.arange(3, dtype="u1"), np.array([1.7, -1.7]), np.array([True, False]), np.array(["a", "b"])),
    *(np.array([b"a", b"b"]), np.array([], dtype="f4"), np.arange(4).reshape(2, 2), np.array(5), np.arange(6)[::2]),
    *(np.array([1, 2], dtype=">i4"), np.array([1 << 40]), np.array([1, "a", None], dtype=object), np.array([1 + 2j])),
    *({}, {"x": 5}, {"x": 5, "y": [1, 2]}, {"y": None}, {"nothing": 5}, {"x": "text"}, {"index": 1}, {"index": 1, "choices": ["a"]}),
    *(OrderedDict(x=4), [("x", 5)], [("x", 5), ("y", [1])], (("x", 5),), [("x", 5, 6)], [["x", 5]], [(5, 5)], {5: 5}, types.MappingProxyType({})),
    *(("i", 5), ("s", 5), ("d", "text"), ("p", {"x": 1}), ("n", [1]), ("q", 5), ("ad", [1, 2]), ("as", ["a"]), ("?", 1), ("B", -1), ("x", 5)),
    *(("i",), ("i", 5, 6), (5, 6), ("i", None), ("i", "text"), ("", 5), ("a", [1]), ("ai", 5), ("f", 1e300), ("L", -1), ("s", 1.5)),
    *(1 + 2j, Decimal("1.5"), bytearray(b"ab"), memoryview(b"ab"), {1, 2}, frozenset(), ODD, int, iter([("x", 6)]), (n for n in "ab")),
]  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_object_does_what_it_does_in_p4p(kind: str) -> None:
    different = []
    for x in OBJECTS:
        results = []
        for module in (wrapper, p4p):
            value = module.Value(module.Type([("x", KINDS[kind])]))
            # Iterators are used up by the first of the two.
            given_ = (
                iter([("x", 6)])
                if isinstance(x, type(iter([])))
                else (n for n in "ab")
                if isinstance(x, types.GeneratorType)
                else x
            )

            def assign(value: Any = value, x: Any = given_) -> Any:
                value.x = x
                return value.x, sorted(value.changedSet()), value.todict()

            results.append(outcome(assign))
        if not alike(*results):
            different.append((x, *results))
    assert different == []


def both(
    do: Callable[[Any, Any], Any],
) -> tuple[tuple[Any, BaseException | None], tuple[Any, BaseException | None]]:
    """Run with ours and with p4p."""
    return outcome(lambda: do(wrapper, nt)), outcome(lambda: do(p4p, p4p.nt))


def same(do: Callable[[Any, Any], Any], what: object) -> None:
    mine, theirs = both(do)
    assert alike(mine, theirs), (what, mine, theirs)


SOURCES: list[Any] = [
    *(0, 1, -1, 300, 1 << 40, 1.5, -2.5, "12", "text", "true", True, [1, 2], [1.5], ["1", "2"], ["true"], [300, -5], []),
    *({"x": 5, "y": [1]}, [{"x": 1}, None], ("s", "7"), ("p", {"x": 5}), ("n", [1, 2]), [("i", 5), ("s", "6")], ("B", 5), ("as", ["a"])),
]  # fmt: skip


@pytest.mark.parametrize("source", list(KINDS))
def test_a_field_of_any_kind_is_copied_to_one_of_any_kind_as_in_p4p(source: str) -> None:
    for content in SOURCES:
        for kind, spec in KINDS.items():

            def copy(module: Any, _: Any, content: Any = content, spec: Any = spec) -> Any:
                value = module.Value(module.Type([("x", KINDS[source])]), {"x": content})
                target = module.Value(module.Type([("x", spec)]))
                target[None] = value
                part = module.Value(module.Type([("x", spec)]))
                part.x = value.type("x")(value.x if value.x is not None else None)
                return target, part

            same(copy, (source, content, kind))


SPEC = [
    ("x", "i"),
    ("z", ("S", "part", [("a", "i"), ("b", "ad"), ("q", ("S", None, [("m", "s")]))])),
    ("u", ("U", None, [("i", "i"), ("s", ("S", None, [("x", "i")])), ("t", "as")])),
    ("v", "v"),
    ("arr", ("aS", None, [("x", "i"), ("w", ("U", None, [("i", "i")]))])),
    ("va", "av"),
    ("e", ("S", "enum_t", [("index", "i"), ("choices", "as")])),
    ("t", "as"),
    ("type", "d"),
]
INITIAL: list[Any] = [
    {},
    {
        "x": 1,
        "z.a": 2,
        "z": {"b": [1, 2]},
        "u->s.x": 3,
        "v": 4,
        "arr": [{"x": 5}, None, {"w": ("i", 6)}],
        "va": [1, "x"],
        "t": ["a"],
    },
    {"u": ("i", 5), "z.q.m": "text", "e": {"index": 1, "choices": ["a", "b"]}, "v": ("ad", [1])},
    {"u->t": ["a"], "e.choices": ["a"]},
]
PATHS: list[Any] = [
    *(None, "", "x", "z", "z.a", "z.b", "z.q", "z.q.m", "u", "u->", "u->i", "u->s", "u->s.x", "u->x", "u->t", "u->nothing", "v", "v->"),
    *("v->x", "arr", "arr[0]", "arr[0].x", "arr[1]", "arr[1].x", "arr[2]->x", "arr[2].w", "arr[2].w->i", "arr[9]", "arr[-1]", "arr[0x0].x"),
    *("va[0]", "va[1]", "e", "e.index", "t", "t[0]", "type", "nothing", "z.nothing", "x.y", ".x", "z.", "z..a", "z<", "z<x", "z.a<<x", "<"),
    *("arr[", "arr[]", "arr[a]", "arr[0", "z->a", "x[0]", "u.i", "u[0]", "v.x", "arr.x", "[0]", "->i", "->", "-", "z<z<z.a", "x<", "z<<"),
    *("arr[0]<", "arr[0].x<x", "u->s<", "u->s.x<x", b"x", 5, ("x",), 1.5, "\xe9", "x\0"),
]  # fmt: skip


@pytest.mark.parametrize("initial", INITIAL, ids=["empty", "full", "other", "texts"])
def test_each_path_leads_where_it_leads_in_p4p(initial: Any) -> None:
    def made(module: Any) -> Any:
        return module.Value(module.Type(SPEC, id="test:1.0"), initial)

    for path in PATHS:

        def assign(value: Any, path: Any = path) -> Any:
            value[path] = 7
            return value

        def mark(value: Any, path: Any = path) -> Any:
            value.mark(path)
            marked = sorted(value.changedSet(parents=True))
            value.mark(path, False)
            return marked, sorted(value.changedSet())

        for name, do in {
            "item": lambda v, p=path: v[p],
            "get": lambda v, p=path: v.get(p, "default"),
            "attribute": lambda v, p=path: getattr(v, p) if isinstance(p, str) and p != "type" else None,
            "assign": assign,
            "has": lambda v, p=path: (v.has(p), p in v),
            "tolist": lambda v, p=path: v.tolist(p),
            "todict": lambda v, p=path: v.todict(p),
            "items": lambda v, p=path: v.items(p),
            "type": lambda v, p=path: v.type(p).aspy(),
            "changed": lambda v, p=path: v.changed(p),
            "mark": mark,
            "of the type": lambda v, p=path: (v.type()[p], v.type().aspy(p), v.type().has(p)),
        }.items():
            same(lambda module, _, do=do: do(made(module)), (initial, path, name))


TYPES: list[Any] = [
    [("x", "i"), ("x", "d")],
    [("x", "i"), ("x", ("S", None, []))],
    [("s", ("S", "a", [("x", "i")])), ("s", ("S", None, [("y", "i")]))],
    *[[("x", code)] for code in ("q", "", "a", "ii", "aiz", "aai", "S", "v", "av", "avx", "\xe9")],
    *[[(name, "i")] for name in ("1x", "a b", "a.b", "\xe9", "x\0", "_", "class", 5, b"x", None)],
    *[[("x", (code, "id", [("y", "i")]))] for code in ("X", "S", "s", "Su", "U", "u", "aS", "as", "aU", "aX", "", "a")],
    *[[("x", part)] for part in (("S", None, []), ("S", 5, []), ("S", []), ["S", None, []], 5, b"i", ("S", None, 5), ("S", None, None))],
    *([], 5, None, "ab", ["ab"], [["x", "i"]], {"x": "i"}, [("x",)], iter([("x", "i")])),
]  # fmt: skip


@pytest.mark.parametrize("spec", TYPES, ids=lambda spec: repr(spec).partition(" at 0x")[0])
def test_each_description_makes_the_type_that_it_makes_in_p4p(spec: Any) -> None:
    def describe(module: Any, _: Any) -> Any:
        described = module.Type(
            iter([("x", "i")]) if isinstance(spec, type(iter([]))) else spec, id="test:1.0"
        )
        extended = module.Type([("more", "d")], base=described)
        return (
            described.aspy(),
            extended.aspy(),
            described.items(),
            len(described),
            repr(described),
            described.tostr(),
            bool(described),
        )

    same(describe, spec)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unions"])
def test_the_text_is_that_of_p4p(kind: str) -> None:
    for x in SOURCES:

        def text(module: Any, _: Any, x: Any = x) -> Any:
            value = module.Value(module.Type([("x", KINDS[kind]), ("n", "af")], id="test:1.0"))
            if x is not None:
                value.x = x
            shown = str(value)
            return (
                shown,
                [value.tostr(limit) for limit in (0, 1, 7, len(shown) - 1, len(shown), len(shown) + 1)],
                repr(value),
                value.type().tostr(),
            )

        same(text, (kind, x))


HELPERS: dict[str, Callable[[Any], Any]] = {
    **{
        f"NTScalar {code}": lambda n, code=code: n.NTScalar(code)
        for code in (*SCALARS, "ad", "ai", "as", "a?", "v", "av")
    },
    "all of a number": lambda n: n.NTScalar(
        "d", display=True, control=True, valueAlarm=True, form=True, extra=[("note", "s")]
    ),
    "all of a text": lambda n: n.NTScalar("s", display=True, control=True, valueAlarm=True),
    "all of an array": lambda n: n.NTScalar("aI", display=True, control=True, valueAlarm=True),
    "no such code": lambda n: n.NTScalar("q"),
    "NTEnum": lambda n: n.NTEnum(),
    "NTEnum with display": lambda n: n.NTEnum(
        display=True, control=True, valueAlarm=True, extra=[("note", "s")]
    ),
    "NTTable": lambda n: n.NTTable([("x", "i"), ("index", "s")]),
    "NTTable of arrays": lambda n: n.NTTable([("x", "ai")]),
    "NTNDArray": lambda n: n.NTNDArray(),
    "NTMultiChannel": lambda n: n.NTMultiChannel("ad"),
    "NTMultiChannel of one": lambda n: n.NTMultiChannel("d"),
}
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"timestamp": 1.25},
    {"timestamp": (1, 2)},
    {"timestamp": True},
    {"timestamp": "text"},
    {"timestamp": -1.5, "severity": 2, "message": "text"},
    {"timestamp": np.float64(2.5), "severity": "1"},
    {"timestamp": np.int64(3)},
    {"severity": "high"},
    {"choices": ["a", "b"]},
    {"nothing": 4},
]
IMAGES: list[Any] = [
    np.zeros(shape, dtype)
    for shape in ((2, 4), (2, 3, 4), (3, 2, 4), (2, 4, 3), (2, 2, 2, 2), (0,), (2, 0))
    for dtype in ("u1", "f8", "c16")
]


@pytest.mark.parametrize("helper", list(HELPERS))
def test_each_object_is_wrapped_and_unwrapped_as_in_p4p(helper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    objects = [x for x in OBJECTS if not isinstance(x, (type(iter([])), types.GeneratorType))]
    objects += [
        *IMAGES,
        [{"x": 1, "index": "a"}, {"x": 2, "index": "b"}],
        [{"x": 1}, {}],
        [{"index": 5}],
        [{"x": "text"}],
    ]
    for index, x in enumerate(objects):
        keywords = ARGUMENTS[index % len(ARGUMENTS)] if index >= len(ARGUMENTS) else {}

        def wrap(module: Any, helpers: Any, x: Any = x, keywords: Any = keywords) -> Any:
            made = HELPERS[helper](helpers)
            value = made.wrap(x, **keywords)
            back = made.unwrap(value)
            told = [
                getattr(back, name, None)
                for name in ("severity", "status", "timestamp", "raw_stamp", "attrib", "choice")
            ]
            return value, back, told, type(back).__name__, made.type.aspy()

        same(wrap, (helper, x, keywords))


@pytest.mark.parametrize("keywords", ARGUMENTS, ids=repr)
def test_time_and_alarm_are_set_as_in_p4p(keywords: dict[str, Any]) -> None:
    same(lambda _, helpers: helpers.NTScalar("d").wrap(4, **keywords), keywords)
    same(lambda _, helpers: helpers.NTEnum().wrap(1, **keywords), keywords)
    same(
        lambda _, helpers: helpers.NTScalar("d").wrap(
            helpers.NTScalar("d").unwrap(helpers.NTScalar("d").wrap(4, timestamp=9)), **keywords
        ),
        keywords,
    )


CODES = st.sampled_from([*SCALARS, "ad", "as", "ai", "v"])


def specs(depth: int) -> st.SearchStrategy[list[Any]]:
    inner: st.SearchStrategy[Any] = CODES
    if depth:
        below = specs(depth - 1)
        inner = st.one_of(
            CODES, st.tuples(st.sampled_from(["S", "U", "aS"]), st.sampled_from([None, "id"]), below)
        )
    return st.lists(inner, min_size=1, max_size=4).map(
        lambda kinds: [("abcd"[i], kind) for i, kind in enumerate(kinds)]
    )


ERRORS = (SystemError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError)
STEP = st.tuples(
    st.sampled_from(["mark", "unmark", "assign", "clear", "none", "part", "copy"]),
    st.text("abcd.", min_size=1, max_size=5),
    st.sampled_from(
        [0, 1, 2.5, "3", [1, 2], ["4"], {}, {"a": 1}, {"b": {"a": 2}}, [{"a": 1}], ("a", 5), None]
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(specs(3), st.lists(STEP, max_size=8))
def test_a_random_tree_is_changed_and_marked_as_in_p4p(spec: list[Any], steps: list[Any]) -> None:
    def run(module: Any, _: Any) -> Any:
        value = module.Value(module.Type(spec))
        seen: list[Any] = []
        for what, path, x in steps:
            try:
                if what == "mark":
                    value.mark(path)
                elif what == "none":
                    value.mark(path, False)
                elif what == "unmark":
                    part = value[path]
                    (part if isinstance(part, module.Value) else value).unmark()
                elif what == "clear":
                    value.clear()
                elif what == "part":
                    value[path][None] = x
                elif what == "copy":
                    value = module.Value(clone=value)
                else:
                    value[path] = x
            except ERRORS as e:
                seen.append(next(kind.__name__ for kind in ERRORS if isinstance(e, kind)))
            seen.append(
                (
                    value.changed(),
                    [sorted(value.changedSet(e, p)) for e in (False, True) for p in (False, True)],
                    value.tolist(),
                    value.items(),
                )
            )
        return seen

    same(run, (spec, steps))
