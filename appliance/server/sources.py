"""All sources of PVs of one server, in the order in which they are asked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from typing import Final, NamedTuple

from appliance.errors import ApplianceError, OperationError, internal_error
from appliance.pva.credentials import Credentials
from appliance.server.source import Handler, Later, Source

__all__ = ["Sources"]

_log: Final = logging.getLogger(__name__)


class _Labelled(NamedTuple):
    priority: int
    label: str
    source: Source


class Sources:
    """Sources by priority, the lowest first. One that fails does not hide the others."""

    __slots__ = ("_sources", "late")

    def __init__(self) -> None:
        self._sources: list[_Labelled] = []
        self.late: tuple[Source, ...] = ()
        """The sources that may come to claim a name a moment after the search for it."""

    def add(self, label: str, source: Source, priority: int) -> None:
        """Add ``source`` after those of the same priority. Raises ValueError if the label is taken."""
        if any(known.label == label for known in self._sources):
            raise ValueError(f"there is a source {label!r} already; choose another label")
        self._sources.append(_Labelled(priority, label, source))
        self._sources.sort(key=lambda known: known.priority)
        self._list_late()

    def remove(self, label: str) -> None:
        """Remove the source of this label."""
        self._sources = [known for known in self._sources if known.label != label]
        self._list_late()

    def _list_late(self) -> None:
        self.late = tuple(
            known.source for known in self._sources if type(known.source).promise is not Source.promise
        )

    def names(self) -> Iterable[str]:
        """Return all names that the sources list."""
        for known in self._sources:
            yield from known.source.names()

    def claims(self, name: str, host: str) -> bool:
        """Whether a search for ``name`` from ``host`` is answered."""
        for _, label, source in self._sources:
            try:
                if source.claims(name, host):
                    return True
            except Exception:  # noqa: BLE001 - one broken source must not hide the others
                _log.exception("the source %s failed when asked for %r", label, name)
        return False

    def promise(self, name: str, host: str, asker: Hashable, tell: Callable[[], None]) -> None:
        """Call ``tell`` if a source comes to claim ``name`` soon; see `Source.promise`."""
        for source in self.late:
            try:
                source.promise(name, host, asker, tell)
            except Exception:  # noqa: BLE001 - see claims()
                _log.exception("a source failed when asked for %r", name)

    def open(self, name: str, peer: Credentials) -> Handler | Later:
        """Return the handler of ``name``, perhaps `Later`.

        Raises:
            ApplianceError: There is none for ``peer``; the text tells the client why.
        """
        for _, label, source in self._sources:
            try:
                handler = source.open(name, peer)
            except ApplianceError:
                raise
            except Exception as error:
                _log.exception("the source %s failed to open %r", label, name)
                raise OperationError(internal_error()) from error
            if handler is not None:
                return handler
        raise OperationError(f"there is no PV {name[:256]!r} here")
