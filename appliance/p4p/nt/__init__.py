"""Normative types: from Python objects to values, and back.

A client's ``Context`` and a server's ``SharedPV`` use these classes to give a program numbers, texts and arrays instead of structures.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from appliance.p4p.nt.common import NTBase, alarm, timeStamp
from appliance.p4p.nt.enum import NTEnum
from appliance.p4p.nt.ndarray import NTNDArray
from appliance.p4p.nt.scalar import NTScalar
from appliance.p4p.wrapper import Type, Value

__all__ = [
    "NTURI",
    "ClientUnwrapper",
    "NTBase",
    "NTEnum",
    "NTMultiChannel",
    "NTNDArray",
    "NTScalar",
    "NTTable",
    "UnwrapOnly",
    "alarm",
    "buildNT",
    "defaultNT",
    "timeStamp",
]

_log = logging.getLogger(__name__)

_default_nt: dict[str, Callable[[], Any]] = {
    "epics:nt/NTScalar:1.0": NTScalar,
    "epics:nt/NTScalarArray:1.0": NTScalar,
    "epics:nt/NTEnum:1.0": NTEnum,
    "epics:nt/NTNDArray:1.0": NTNDArray,
}


def defaultNT() -> dict[str, Callable[[], Any]]:
    """Return a copy of the table that says which class unwraps which identifier.

    Example:
        >>> sorted(defaultNT())[0]
        'epics:nt/NTEnum:1.0'
    """
    return _default_nt.copy()


class UnwrapOnly:
    """Uses a plain function to unwrap, as the older argument ``unwrap=`` of a Context does.

    Args:
        unwrap: The function, from a Value to a Python object.

    Example:
        >>> UnwrapOnly(lambda V: V.value).wrap(4)
        4
    """

    def __init__(self, unwrap: Callable[[Value], Any]) -> None:
        self.unwrap = unwrap

    def __call__(self) -> UnwrapOnly:
        """Return the object itself: it has no state."""
        return self

    def wrap(self, V: Any) -> Any:
        """Return the argument.

        Args:
            V: The value.

        Returns:
            The same object.

        Example:
            >>> UnwrapOnly(lambda V: V.value).wrap(4)
            4
        """
        return V

    def assign(self, V: Value, value: Any) -> None:
        """Store a Python object in the field ``value``.

        Args:
            V: The value to change.
            value: What to store.

        Example:
            >>> value = NTScalar("d").wrap(4)
            >>> UnwrapOnly(lambda V: V.value).assign(value, 5)
            >>> value.value
            5.0
        """
        V.value = value


def buildNT(nt: Any = None, unwrap: Any = None) -> ClientUnwrapper:
    """Make what a Context wraps and unwraps with.

    Args:
        nt: A dict from identifier to class, in addition to ``defaultNT()``; False to work with Values only.
        unwrap: A dict from identifier to function, instead of ``nt``; False as above.

    Example:
        >>> buildNT(False).unwrap(NTScalar("d").wrap(4)).getID()
        'epics:nt/NTScalar:1.0'
    """
    if unwrap is False or nt is False:
        return ClientUnwrapper({})
    if unwrap is not None:
        return ClientUnwrapper({name: UnwrapOnly(function) for name, function in unwrap.items()})
    return ClientUnwrapper({**_default_nt, **(nt or {})})


def _same(x: Any) -> Any:
    return x


_Functions = tuple[str | None, Callable[..., Any], Callable[[Any], Any], Callable[[Any, Any], None]]
"""The identifier of a type, and what wraps, unwraps and assigns its values."""


class ClientUnwrapper:
    """Chooses the class to wrap and unwrap with by the identifier of the values of one channel.

    Args:
        nt: From identifier to class.

    Example:
        >>> buildNT().unwrap(NTScalar("d").wrap(4)) + 1
        5.0
    """

    def __init__(self, nt: Mapping[str, Callable[[], Any]] | None = None) -> None:
        self.nt = nt
        # One tuple, because many threads use one Context: none may meet the identifier of one type with the functions of another.
        self._present: _Functions = (None, _same, _same, self._default_assign)

    @property
    def id(self) -> str | None:
        """The identifier of the type that was met last, if there is a class for it."""
        return self._present[0]

    def wrap(self, val: Any, **kws: Any) -> Any:
        """Return a Python object as a Value.

        Args:
            val: The object.
            kws: What the class takes, as timestamp.

        Example:
            >>> unwrapper = buildNT()
            >>> number = unwrapper.unwrap(NTScalar("d").wrap(4))
            >>> unwrapper.wrap(5.0).value
            5.0
        """
        return self._present[1](val, **kws)

    def unwrap(self, val: Value) -> Any:
        """Return a Value as a Python object.

        Args:
            val: The value; without a class for it, it is returned as it is.

        Example:
            >>> buildNT().unwrap(NTScalar("d").wrap(4)) + 1
            5.0
        """
        present = self._present
        if val.getID() != present[0]:
            present = self._update(val)
        return present[2](val)

    def assign(self, V: Value, value: Any) -> None:
        """Store a Python object in a Value.

        Args:
            V: The value to change.
            value: What to store.

        Example:
            >>> value = NTScalar("d").wrap(4)
            >>> buildNT().assign(value, 5)
            >>> value.value
            5.0
        """
        present = self._present
        if V.getID() != present[0]:
            present = self._update(V)
        present[3](V, value)

    def _update(self, val: Value) -> _Functions:
        name = val.getID()
        kind = (self.nt or {}).get(name)
        if kind is None:
            present: _Functions = (None, _same, _same, self._default_assign)
        else:
            made = kind()
            if isinstance(made, NTEnum):
                made = made._for_client()
            present = (name, made.wrap, made.unwrap, made.assign)
        self._present = present
        return present

    def _default_assign(self, V: Value, value: Any) -> None:
        V.value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.nt!r})"


class NTMultiChannel(NTBase):
    """The values of several channels, with the alarm and time of each.

    Args:
        valtype: The code of an array type.
        extra: Further fields, as for ``Type``.

    Example:
        >>> NTMultiChannel.buildType("ad")["channelName"]
        'as'
    """

    @staticmethod
    def buildType(valtype: str, extra: Sequence[Any] = ()) -> Type:
        """Make the Type.

        Args:
            valtype: The code of an array type.
            extra: Further fields, as for ``Type``.

        Raises:
            AssertionError: ``valtype`` is no array.

        Example:
            >>> NTMultiChannel.buildType("ad").getID()
            'epics:nt/NTMultiChannel:1.0'
        """
        if valtype[:1] != "a":
            raise AssertionError("valtype must be an array")
        fields = [
            ("value", valtype),
            ("channelName", "as"),
            ("descriptor", "s"),
            ("alarm", alarm),
            ("timeStamp", timeStamp),
            ("severity", "ai"),
            ("status", "ai"),
            ("message", "as"),
            ("secondsPastEpoch", "al"),
            ("nanoseconds", "ai"),
            ("userTag", "ai"),
            ("isConnected", "a?"),
        ]
        return Type(id="epics:nt/NTMultiChannel:1.0", spec=[*fields, *extra])


def _columns(rows: list[Any], labels: Iterable[str]) -> dict[str, list[Any]]:
    """Sort the cells of rows into columns; what a row lacks is left out."""
    columns: dict[str, list[Any]] = {}
    for label in labels:
        try:
            columns[label] = [row[label] for row in rows]
        except (IndexError, KeyError):
            columns[label] = list(_cells(rows, label))
    return columns


class NTTable(NTBase):
    """A table: columns of equal length, each of one type.

    Args:
        columns: (name, code) of each column; the code is that of one cell.
        extra: Further fields, as for ``Type``.

    Raises:
        ValueError: The code of a column is that of an array.

    Example:
        >>> table = NTTable([("x", "d"), ("label", "s")])
        >>> V = table.wrap([{"x": 1, "label": "a"}, {"x": 2, "label": "b"}])
        >>> [row["label"] for row in NTTable.unwrap(V)]
        ['a', 'b']
    """

    @staticmethod
    def buildType(columns: Iterable[Any] = (), extra: Sequence[Any] = ()) -> Type:
        """Make the Type.

        Args:
            columns: (name, code) of each column; the code is that of the whole column, ``"ad"`` for example.
            extra: Further fields, as for ``Type``.

        Example:
            >>> NTTable.buildType([("x", "ad")])["value"].keys()
            ['x']
        """
        fields = [
            ("labels", "as"),
            ("value", ("S", None, columns)),
            ("descriptor", "s"),
            ("alarm", alarm),
            ("timeStamp", timeStamp),
        ]
        return Type(id="epics:nt/NTTable:1.0", spec=[*fields, *extra])

    def __init__(self, columns: Iterable[tuple[str, str]] = (), extra: Sequence[Any] = ()) -> None:
        self.labels = []
        arrays = []
        for name, code in columns:
            if code[0] == "a":
                raise ValueError("NTTable column types may not be array")
            arrays.append((name, "a" + code))
            self.labels.append(name)
        self.type = self.buildType(arrays, extra=extra)

    def wrap(self, values: Any, **kws: Any) -> Value:
        """Make a Value from rows.

        Args:
            values: Each row is a dict; what it lacks is left out of the column. A Value is returned as it is.
            kws: timestamp, severity and message, as for ``NTScalar.wrap``.

        Raises:
            TypeError, ValueError: A cell cannot be converted.

        Example:
            >>> NTTable([("x", "i")]).wrap([{"x": 1}, {"x": 2}]).value.x.tolist()
            [1, 2]
        """
        if isinstance(values, Value):
            return values
        try:
            cells = _columns(list(values), self.labels)
            columns = {label: column for label, column in cells.items() if column}
            made = self.Value(self.type, {"labels": self.labels, "value": columns})
        except Exception:
            _log.exception(
                "cannot wrap %s as a table with the columns %s", type(values).__name__, self.labels
            )
            raise
        return self._annotate(made, **kws)

    def assign(self, V: Value, pyval: Any, /) -> None:
        """Store rows in the columns that the server has.

        Args:
            V: The value to change.
            pyval: What ``wrap`` takes. A column that no row has stays as it is; without rows all columns are emptied.

        Raises:
            ValueError: The rows have none of the columns.
            TypeError: A row is no dict, or a cell cannot be converted.

        Example:
            >>> V = NTTable([("x", "d"), ("label", "s")]).wrap([])
            >>> NTTable().assign(V, [{"x": 1.5, "label": "a"}])
            >>> V.value.x.tolist(), V.value.label
            ([1.5], ['a'])
        """
        if isinstance(pyval, Value):
            V[None] = pyval
            return
        rows = list(pyval)
        labels = V.value.keys()
        columns = {label: cells for label, cells in _columns(rows, labels).items() if cells or not rows}
        if rows and not columns:
            raise ValueError(f"no row has one of the columns {', '.join(labels)}")
        V.value = columns

    @staticmethod
    def unwrap(value: Value) -> list[OrderedDict[str, Any]]:
        """Make a list of rows from a Value.

        Args:
            value: A Value of this type.

        Example:
            >>> NTTable.unwrap(NTTable([("x", "s")]).wrap([{"x": "a"}]))[0]["x"]
            'a'
        """
        items = value.value.items()
        names = [name for name, _ in items]
        rows = zip(*[column for _, column in items], strict=False)
        return [OrderedDict(zip(names, row, strict=True)) for row in rows]


def _cells(rows: list[Any], label: str) -> Iterator[Any]:
    """Return the cells of a column that some rows lack."""
    for row in rows:
        try:
            cell = row[label]
        except (IndexError, KeyError):
            continue
        yield cell


@lru_cache(maxsize=256)
def _uri(args: Sequence[Any]) -> Type:
    fields = [("scheme", "s"), ("authority", "s"), ("path", "s"), ("query", ("S", None, args))]
    return Type(id="epics:nt/NTURI:1.0", spec=fields)


class NTURI:
    """The name and the arguments of a remote call.

    Args:
        args: (name, code) of each argument.

    Example:
        >>> V = NTURI([("a", "i"), ("b", "s")]).wrap("pv:name", (4,), {"b": "text"})
        >>> V.path, V.query.a, V.query.b
        ('pv:name', 4, 'text')
    """

    @staticmethod
    def buildType(args: Iterable[Any]) -> Type:
        """Make the Type.

        Args:
            args: (name, code) of each argument.

        Raises:
            ValueError: A name or a code is invalid.

        Example:
            >>> NTURI.buildType([("a", "d")]).getID()
            'epics:nt/NTURI:1.0'
        """
        try:
            args = list(args)
            if all(isinstance(code, str) for _, code in args):
                return _uri(tuple(args))
            return _uri.__wrapped__(args)
        except Exception as e:
            raise ValueError(f"Unable to build NTURI compatible type from {args}") from e

    def __init__(self, args: Iterable[Any]) -> None:
        self._args = list(args)
        self.type = self.buildType(self._args)

    def wrap(
        self,
        path: str,
        args: Iterable[Any] = (),
        kws: Mapping[str, Any] = {},
        scheme: str = "",
        authority: str = "",
    ) -> Value:
        """Make a Value of the arguments that are given.

        Args:
            path: The name of the PV that is called.
            args: Arguments in their order.
            kws: Arguments by name; None counts as not given.
            scheme: ``pva``, usually left out.
            authority: The server, usually left out.

        Raises:
            ValueError: An argument cannot be converted, or is not known.

        Example:
            >>> NTURI([("a", "d")]).wrap("demo:sum", kws={"a": 1.5}).query.a
            1.5
        """
        given = {name: item for name, item in kws.items() if item is not None}
        given |= {name: item for (name, _), item in zip(self._args, args, strict=False)}
        kinds = [part for part in self._args if part[0] in given]
        T = self.buildType(kinds)
        try:
            fields = {"scheme": scheme, "authority": authority, "path": path, "query": given}
            return Value(T, fields)
        except Exception as e:
            raise ValueError(f"Unable to initialize NTURI {kinds} from {given} using {self._args}") from e
