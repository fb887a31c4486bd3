"""NTNDArray, and the numpy array that it is unwrapped to.

The attribute ``ColorMode`` says where the colours are. numpy's shape is written from the slowest axis to the fastest, so a colour image
has the shape (Y, X, 3) in mode 2 (RGB1), (Y, 3, X) in mode 3 (RGB2) and (3, Y, X) in mode 4 (RGB3); mode 0 is grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from appliance.p4p.nt.common import NTBase, alarm, timeStamp
from appliance.p4p.nt.scalar import ntwrappercommon
from appliance.p4p.wrapper import Type, Value

__all__ = ["NTNDArray", "ntndarray"]


class _NoColor(ValueError, TypeError):
    """No axis can be the colours'; p4p raises TypeError then."""


class ntndarray(ntwrappercommon, np.ndarray):
    """A numpy array with attributes, time and alarm: see ``ntwrappercommon``. It cannot be changed; nothing is copied.

    Attributes:
        attrib: A dict of the attributes. Its values may be anything that an any can hold. What has ``value``, ``alarm`` and ``timeStamp``,
            as an NTScalar does, is sent with these three.

    Example:
        >>> import numpy
        >>> image = NTNDArray.unwrap(NTNDArray().wrap(numpy.zeros((2, 3), "u1")))
        >>> image.shape, image.attrib
        ((2, 3), {'ColorMode': 0})
    """

    attrib: dict[str, Any]

    def __init__(self, *args: Any, **kws: Any) -> None:
        self.attrib = {}

    def _store(self, value: Value) -> Self:
        ntwrappercommon._store(self, value)
        self.attrib = {item["name"]: item["value"] for item in value.get("attribute", [])}
        shape = [dimension["size"] for dimension in value.dimension]
        shape.reverse()
        self.shape = tuple(shape) or (0,)
        return self


class NTNDArray(NTBase):
    """An image, or another array of several dimensions, as areaDetector sends it.

    Args:
        extra: Further fields, as for ``Type``.

    Example:
        >>> import numpy
        >>> V = NTNDArray().wrap(numpy.zeros((480, 640, 3), "u1"), timestamp=1.0)
        >>> [d.size for d in V.dimension], V.attribute[0].value
        ([3, 640, 480], 2)
    """

    ntndarray = ntndarray

    _code2u: ClassVar[dict[str, str]] = {
        "?": "booleanValue",
        "b": "byteValue",
        "h": "shortValue",
        "i": "intValue",
        "l": "longValue",
        "B": "ubyteValue",
        "H": "ushortValue",
        "I": "uintValue",
        "L": "ulongValue",
        "f": "floatValue",
        "d": "doubleValue",
    }
    """The union's member for each of numpy's type characters."""

    _default_type = Type(
        [
            ("value", ("U", None, [(name, "a" + code) for code, name in _code2u.items()])),
            ("codec", ("S", "codec_t", [("name", "s"), ("parameters", "v")])),
            ("compressedSize", "l"),
            ("uncompressedSize", "l"),
            ("uniqueId", "i"),
            ("dataTimeStamp", timeStamp),
            ("alarm", alarm),
            ("timeStamp", timeStamp),
            (
                "dimension",
                (
                    "aS",
                    "dimension_t",
                    [("size", "i"), ("offset", "i"), ("fullSize", "i"), ("binning", "i"), ("reverse", "?")],
                ),
            ),
            (
                "attribute",
                (
                    "aS",
                    "epics:nt/NTAttribute:1.0",
                    [
                        ("name", "s"),
                        ("value", "v"),
                        ("tags", "as"),
                        ("descriptor", "s"),
                        ("alarm", alarm),
                        ("timeStamp", timeStamp),
                        ("sourceType", "i"),
                        ("source", "s"),
                    ],
                ),
            ),
        ],
        id="epics:nt/NTNDArray:1.0",
    )

    @classmethod
    def buildType(cls, extra: Sequence[Any] = ()) -> Type:
        """Make the Type.

        Args:
            extra: Further fields, as for ``Type``.

        Example:
            >>> NTNDArray.buildType(extra=[("note", "s")]).keys()[-1]
            'note'
        """
        return Type(extra, base=cls._default_type) if extra else cls._default_type

    def __init__(self, **kws: Any) -> None:
        self.type = self.buildType(**kws)

    def wrap(self, value: Any, **kws: Any) -> Value:
        """Make a Value.

        Args:
            value: An array, or what numpy makes one of. Attributes of an ``ntndarray`` are sent, too. An array that cannot be changed is
                not copied.
            kws: attrib, a dict of attributes; timestamp, severity and message as for ``NTScalar.wrap``.

        Raises:
            KeyError: PVData has no type for the elements.
            ValueError: Three dimensions of which none has three elements, and no ``ColorMode``.

        Example:
            >>> import numpy
            >>> V = NTNDArray().wrap(numpy.zeros((2, 3), "u2"), attrib={"exposure": 0.1})
            >>> [(a.name, a.value) for a in V.attribute]
            [('exposure', 0.1), ('ColorMode', 0)]
        """
        attributes = dict(getattr(value, "attrib", None) or kws.pop("attrib", None) or {})
        data = np.asarray(value)
        if "ColorMode" not in attributes:
            mode = _color_mode(data.shape)
            if mode is not None:
                attributes["ColorMode"] = mode
        made = self.Value(
            self.type,
            {
                "value": (self._code2u[data.dtype.char], data.reshape(-1)),
                "compressedSize": data.nbytes,
                "uncompressedSize": data.nbytes,
                "uniqueId": 0,
                "attribute": [translateNDAttribute(name, item) for name, item in attributes.items()],
                "dimension": [
                    {"size": n, "offset": 0, "fullSize": n, "binning": 1, "reverse": False}
                    for n in reversed(data.shape)
                ],
            },
        )
        return self._annotate(made, **kws)

    @classmethod
    def unwrap(cls, value: Value) -> Any:
        """Make an array with attributes, time and alarm from a Value.

        Args:
            value: A Value of this type.

        Raises:
            ValueError: The dimensions do not fit the number of elements, as of compressed data.

        Example:
            >>> import numpy
            >>> float(NTNDArray.unwrap(NTNDArray().wrap(numpy.ones((2, 3)))).sum())
            6.0
        """
        content = value.value
        if content is None:
            content = np.zeros((0,), dtype=np.uint8)
        return content.view(cls.ntndarray)._store(value)

    def assign(self, V: Value, py: Any) -> None:
        """Store an array in a Value.

        Args:
            V: The value to change.
            py: What ``wrap`` takes.

        Example:
            >>> V = NTNDArray.buildType()()
            >>> NTNDArray().assign(V, [[1, 2], [3, 4]])
            >>> [d.size for d in V.dimension]
            [2, 2]
        """
        V[None] = self.wrap(py)


def _color_mode(shape: tuple[int, ...]) -> int | None:
    """Return areaDetector's number of the colour mode; None if the number of axes says nothing about it."""
    if len(shape) == 2:
        return 0
    if len(shape) != 3:
        return None
    for axis, size in enumerate(reversed(shape)):
        if size == 3:
            return 2 + axis
    raise _NoColor(f"Unable to deduce color dimension from shape {shape!r}")


def translateNDAttribute(name: str, value: Any) -> dict[str, Any]:
    """Return the fields of an attribute.

    Args:
        name: Its name.
        value: Its value; of an NTScalar the value, alarm and time are taken.
    """
    if isinstance(value, Value) and "value" in value:
        made = {"name": name, "value": value["value"]}
        made |= {part: value[part] for part in ("alarm", "timeStamp") if part in value}
        return made
    return {"name": name, "value": value}
