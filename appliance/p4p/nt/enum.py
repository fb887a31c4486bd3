"""NTEnum, and the integer with its text that it is unwrapped to."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

from appliance.p4p.nt.common import NTBase, alarm, timeStamp
from appliance.p4p.nt.scalar import _metaHelper, ntwrappercommon
from appliance.p4p.wrapper import Type, Value

__all__ = ["NTEnum", "ntenum"]


class ntenum(ntwrappercommon, int):
    """The number of a choice, with its text, time and alarm: see ``ntwrappercommon``.

    Attributes:
        choice: The text; None if there is none for this number.

    Example:
        >>> x = NTEnum().unwrap(NTEnum().wrap(1, choices=["off", "on"]))
        >>> x == 1, x.choice, str(x)
        (True, 'on', 'on')
    """

    choice: str | None

    def _store(self, value: Value) -> Self:
        ntwrappercommon._store(self, value)
        self.choice = None
        return self

    def __str__(self) -> str:
        return self.choice or repr(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self)}, {self.choice})"


class NTEnum(NTBase):
    """One of several choices: a number, and the texts of all.

    Args:
        extra: Further fields, as for ``Type``.
        display: Whether it has limits, units and a description for people.
        control: Whether it has the limits of what may be written.
        valueAlarm: Whether it has the limits that cause alarms.

    Example:
        >>> V = NTEnum().wrap("on", choices=["off", "on"])
        >>> V.value.index
        1
    """

    @staticmethod
    def buildType(
        extra: Sequence[Any] = (), display: bool = False, control: bool = False, valueAlarm: bool = False
    ) -> Type:
        """Make the Type.

        Args:
            extra: Further fields, as for ``Type``.
            display: As for the class.
            control: As for the class.
            valueAlarm: As for the class.

        Example:
            >>> NTEnum.buildType().keys()
            ['value', 'alarm', 'timeStamp']
        """
        fields: list[Any] = [
            ("value", ("S", "enum_t", [("index", "i"), ("choices", "as")])),
            ("alarm", alarm),
            ("timeStamp", timeStamp),
        ]
        _metaHelper(fields, "i", display=display, control=control, valueAlarm=valueAlarm)
        fields.extend(extra)
        return Type(id="epics:nt/NTEnum:1.0", spec=fields)

    def __init__(self, **kws: Any) -> None:
        self.type = self.buildType(**kws)
        # The choices that were seen last: an update often brings only the number.
        self._choices: Sequence[str] = []
        # Whether values are always whole, as a client has them: then choices of another value count for none.
        self._whole = False

    def _for_one(self) -> Self:
        """Return one for a single PV, which knows nothing of the choices of others."""
        made = copy(self)
        made._choices = []
        return made

    def _for_client(self) -> Self:
        """Return one for the values that a client has."""
        made = self._for_one()
        made._whole = True
        return made

    def wrap(self, value: Any, choices: Sequence[str] | None = None, **kws: Any) -> Value:
        """Make a Value.

        Args:
            value: A number, or the text of a choice. A dict assigns to fields by name; one with ``index`` or ``choices`` assigns to the
                field ``value``. A Value, and what ``unwrap`` gave, is changed and returned.
            choices: The texts; without them those of the last value are known.
            kws: timestamp, severity and message, as for ``NTScalar.wrap``.

        Raises:
            ValueError: The text is neither a choice nor a number.

        Example:
            >>> NTEnum().wrap({"index": 1, "choices": ["off", "on"]}).value.choices
            ['off', 'on']
        """
        if isinstance(value, Value):
            pass
        elif isinstance(value, ntwrappercommon):
            kws.setdefault("timestamp", value.timestamp)
            value = value.raw
        elif isinstance(value, dict):
            parts = "index" in value or "choices" in value
            value = self.Value(self.type, {"value": value} if parts else value)
        else:
            made = self.type()
            if choices is not None:
                made["value.choices"] = choices
            _assign(made, value, made["value.choices"] or self._choices)
            value = made
        self._choices = value["value.choices"] or self._choices
        return self._annotate(value, **kws) if kws else value

    def unwrap(self, value: Value) -> ntenum:
        """Make a number with its text, time and alarm from a Value.

        Args:
            value: A Value whose field ``value`` has index and choices.

        Example:
            >>> NTEnum().unwrap(NTEnum().wrap("on", choices=["off", "on"]))
            ntenum(1, on)
        """
        # One object often serves many PVs. The texts of another one count only where the value itself has none.
        choices = value["value.choices"]
        if choices or self._whole or value.changed("value.choices"):
            self._choices = choices
        else:
            choices = self._choices
        index = value["value.index"]
        made = ntenum(index)._store(value)
        if -len(choices) <= index < len(choices):
            made.choice = choices[index]
        return made

    def assign(self, V: Value, py: Any) -> None:
        """Store a number, or the text of a choice, in the field ``value``.

        Args:
            V: The value to change.
            py: What to store.

        Raises:
            ValueError: The text is neither a choice nor a number.

        Example:
            >>> V = NTEnum().wrap(0, choices=["off", "on"])
            >>> NTEnum().assign(V, "on")
            >>> V.value.index
            1
        """
        _assign(V, py, V["value.choices"] or ([] if self._whole else self._choices))


def _assign(V: Value, py: Any, choices: Sequence[str]) -> None:
    if isinstance(py, (bytes, str)):
        for index, choice in enumerate(choices):
            if py == choice:
                V["value.index"] = index
                return
        V["value.index"] = int(py, 0)
    else:
        V["value.index"] = int(py)
