"""A PV in its simplest form, which the other kinds of SharedPV extend."""

from __future__ import annotations

from typing import Any

from appliance.p4p._unique import Unique
from appliance.p4p.server._core import Callbacks, Core
from appliance.p4p.wrapper import Value

__all__ = ["SharedPV"]


class SharedPV(Unique):
    """A PV with one value that all clients share; it takes and gives a `Value`. Programs use one of the other kinds.

    Args:
        handler: Has ``onFirstConnect()``, ``onLastDisconnect()``, ``put(op)`` and ``rpc(op)``, which are called on the
            PVAccess thread and must not block; without it the PV is read only.
        options: Accepted and not used, as in p4p.
    """

    def __init__(self, handler: Callbacks | None = None, options: dict[str, Any] | None = None) -> None:
        del options
        self._core = Core(handler)

    @property
    def handler(self) -> Any:
        """What is told of clients."""
        return self._core.callbacks

    def open(self, value: Any) -> None:
        """Set the type and the first value; clients that wait for the PV go on.

        Args:
            value: A `Value` of a structure. Its marked fields are valid.

        Raises:
            TypeError: It is no `Value`.
            RuntimeError: The PV is open already.
        """
        self._core.open(_checked(value)._fields)

    def post(self, value: Any) -> None:
        """Change the value, and tell subscribers.

        Args:
            value: A `Value` of the PV's type. Its marked fields count.

        Raises:
            TypeError: It is no `Value`.
            RuntimeError: The PV is closed, or has another type.
        """
        self._core.post(_checked(value)._fields)

    def current(self) -> Any:
        """Return a copy of the value.

        Raises:
            RuntimeError: The PV is closed.
        """
        return Value._of(self._core.current())

    def close(self, destroy: bool = False) -> None:
        """Remove the value, and disconnect all clients; they wait for another `open`.

        Args:
            destroy: Accepted and not used, as in p4p.
        """
        del destroy
        self._core.close()

    def isOpen(self) -> bool:
        """Return whether the PV has a value."""
        return self._core.kind is not None


def _checked(value: Any) -> Value:
    if not isinstance(value, Value):
        raise TypeError(
            f"expected a Value, not {type(value).__name__}; with nt= or wrap= other values are converted"
        )
    return value
