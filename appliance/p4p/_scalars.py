"""What p4p makes of a Python object that is assigned to a number, a truth value or a text.

PVXS converts freely where our own ``pvdata`` refuses: a number that is too large wraps, text is parsed, a number becomes text. A program
that was written for p4p relies on it, so this is a set of rules of its own. tests/interop holds it against p4p itself.
"""

from __future__ import annotations

import re
import struct as struct_module
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from appliance.p4p._place import Node, integer
from appliance.pvdata import STRING, BoundedString, ScalarType
from appliance.pvdata.render import number, type_name
from appliance.pvdata.types import SCALARS

__all__ = [
    "CONVERT",
    "NotATuple",
    "is_mild",
    "no_conversion",
    "refused",
    "scalar",
    "text",
    "to_string",
    "unfit",
]

_Error = TypeVar("_Error", bound=Exception)


class NotATuple(TypeError, SystemError):
    """Something else where p4p wants a tuple; p4p raises SystemError then."""


def no_conversion(why: str) -> ValueError:
    """Return the error for a value that cannot be converted to the field's type."""
    return _mild(ValueError(why))


def unfit(why: str) -> TypeError:
    """Return the error for an object of a kind that the field cannot take."""
    return _mild(TypeError(why))


def refused(why: str) -> RuntimeError:
    """Return the error for a value that the field refuses."""
    return _mild(RuntimeError(why))


def _mild(error: _Error) -> _Error:
    vars(error)["mild"] = True
    return error


def is_mild(error: Exception) -> bool:
    """Whether a union tries its next member after this error; others end the attempt.

    A mark, and no class of their own: a program sees the class that p4p raises.
    """
    return "mild" in vars(error)


_DECIMAL = re.compile(
    # What is read is never given back (++), so that a long text takes no longer than a pass over it.
    r"[ \t\n\v\f\r]*+[+-]?(?:0[xX](?:[0-9a-fA-F]++\.?+[0-9a-fA-F]*+|\.[0-9a-fA-F]++)(?:[pP][+-]?[0-9]++)?"
    r"|(?:[0-9]++\.?+[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?|inf(?:inity)?|nan)[ \t\n\v\f\r]*+\Z",
    re.IGNORECASE,
)
_LEAST = 2.2250738585072014e-308
"""The smallest normal number: ``strtod`` reports what is smaller as out of range."""


def _parse_float(text: str) -> float:
    if _DECIMAL.match(text):
        s = text.strip(" \t\n\v\f\r").lower()
        try:
            x = float.fromhex(s) if "0x" in s else float(s)
        except OverflowError:
            x = float("inf")
        digits = s.split("p" if "0x" in s else "e")[0]
        if not ("n" not in s and (abs(x) == float("inf") or (abs(x) < _LEAST and digits.strip("+-0x.")))):
            return x
        raise no_conversion(f"Out of range : {text!r:.60}")
    raise no_conversion(f"Invalid input : {text!r:.60}")


def _parse_int(text: str, lo: int, hi: int) -> int:
    x = integer(text)
    if x is None:
        raise no_conversion(f"Invalid input : {text!r:.60}")
    if not lo <= x <= hi:
        raise no_conversion(f"Out of range : {text!r:.60}")
    return x


def text(x: str | bytes) -> str:
    if isinstance(x, bytes):
        return x.decode("utf-8", "surrogateescape")
    if not x.isascii():
        # What cannot be sent must not get into a store.
        x.encode("utf-8", "surrogateescape")
    return str(x)


def _simple(t: ScalarType, x: Any) -> bool | int | float | str:
    """Return ``x`` as one of the four kinds that PVXS converts from."""
    if isinstance(x, bool):
        return x
    if isinstance(x, (int, np.integer)):
        if x >= 1 << 63 and not isinstance(x, int):
            raise TypeError("an integer is required")  # as p4p says of numpy's numbers
        x = x.__index__()
        if x < -(1 << 63):
            raise OverflowError("long out of range low")
        if x >= 1 << 64:
            raise OverflowError("int too big to convert")
        return int(x)
    if isinstance(x, (float, np.number)):
        return float(x)
    if isinstance(x, (str, bytes)):
        return text(x)
    raise unfit(f"Can't assign {type_name(t)} (scalar) field with {type(x).__name__}")


def _truncated(x: float) -> int:
    """Convert as a processor of the x86-64 kind does."""
    if x != x or abs(x) >= float(1 << 63):  # noqa: PLR0124 - NaN
        return -(1 << 63)
    return int(x)


def _int_reader(t: ScalarType) -> Callable[[Any], int]:
    lo, hi = t.lo, t.hi
    span = hi - lo + 1
    signed = t.kind == "int"
    most = (1 << 63) - 1 if signed else (1 << 64) - 1
    least = -(1 << 63) if signed else -most

    def convert(x: Any) -> int:
        if x.__class__ is not int:
            x = _simple(t, x)
            if isinstance(x, str):
                x = _parse_int(x, least, most)
            elif isinstance(x, float):
                half = float(1 << 63)
                x = _truncated(x) if signed or not x >= half else _truncated(x - half) ^ 1 << 63
        elif not -(1 << 63) <= x < 1 << 64:
            x = _simple(t, x)
        if lo <= x <= hi:
            return int(x)
        return int((x - lo) % span + lo)

    return convert


def _float_reader(t: ScalarType) -> Callable[[Any], float]:
    single = t.size == 4

    def convert(x: Any) -> float:
        if x.__class__ is not float:
            x = _simple(t, x)
            x = _parse_float(x) if isinstance(x, str) else float(x)
        if single:
            try:
                return float(struct_module.unpack("<f", struct_module.pack("<f", x))[0])
            except OverflowError:
                return float("inf") if x > 0 else float("-inf")
        return float(x)

    return convert


def _to_bool(x: Any) -> bool:
    if x is True or x is False:
        return bool(x)
    t = SCALARS["bool"]
    x = _simple(t, x)
    if isinstance(x, str):
        if x in ("true", "false"):
            return x == "true"
        raise no_conversion('Unable to assign bool with String other than "true" and "false"')
    if isinstance(x, float):
        raise no_conversion("Unable to assign bool with Real")
    return bool(x)


def to_string(x: Any) -> str:
    if x.__class__ is str and x.isascii():
        return str(x)
    x = _simple(STRING, x)
    return x if isinstance(x, str) else number(x)


CONVERT: dict[str, Callable[[Any], Any]] = {
    name: _int_reader(t) if t.kind in ("int", "uint") else _float_reader(t)
    for name, t in SCALARS.items()
    if t.kind not in ("bool", "string")
}
CONVERT["bool"] = _to_bool
CONVERT["string"] = to_string


def scalar(t: ScalarType, x: Any) -> Any:
    if isinstance(x, Node):
        if not isinstance(x._type, ScalarType):
            raise no_conversion(f"Unable to assign {type_name(t)} with {type_name(x._type)}")
        x = x._root.store[x._base]
    if isinstance(t, BoundedString):
        x = to_string(x)
        size = len(x.encode("utf-8", "surrogateescape"))
        if size > t.bound:
            raise no_conversion(f"{size} octets of text in a field of at most {t.bound}")
        return x
    return CONVERT[t.name](x)
