"""Providers: which PVs a server has, from a list or as they are asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Final

from appliance.errors import OperationError
from appliance.p4p._unique import Unique
from appliance.p4p.server._base import SharedPV
from appliance.p4p.server._core import Core
from appliance.p4p.server._operation import server_queue
from appliance.pva.credentials import Credentials
from appliance.server.source import Handler, Later, Source
from appliance.threads import engine

__all__ = ["DynamicProvider", "Providers", "StaticProvider"]

_log = logging.getLogger("appliance.p4p.server")

NO_TIME: Final = 10.0
"""Seconds for which ``testChannel``'s answer "no" is remembered."""
MAX_NOES: Final = 4096
"""Names with such an answer; above that all are forgotten."""
MAX_TESTS: Final = 4096
"""Names that wait for ``testChannel``; a client searches again for those beyond."""
MAX_ASKERS: Final = 256
"""Searches that wait for the test of one name."""
MAX_MAKING: Final = 10_000
"""Channels of all clients that wait for ``makeChannel``."""

_NOT_YET: Final = b"nocache"


class StaticProvider(Unique):
    """PVs from a list that can change at any time.

    Args:
        name: Names the provider among those of one server.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"the name of a provider must be a text, not {type(name).__name__}")
        self._name = name
        self._pvs: dict[str, SharedPV] = {}

    def add(self, name: str, pv: SharedPV) -> None:
        """Serve a PV.

        Args:
            name: The PV's name.
            pv: The PV; it may have several names, and be in several providers.

        Raises:
            RuntimeError: There is a PV of this name.
            TypeError: The name is no text, or ``pv`` no SharedPV.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of a PV must be a text, not {type(name).__name__}")
        if not isinstance(pv, SharedPV):
            raise TypeError(f"a provider takes a SharedPV, not {type(pv).__name__}")
        if name in self._pvs:
            raise RuntimeError(f"there is a PV {name!r} already; remove() it first")
        self._pvs[name] = pv

    def remove(self, name: str) -> None:
        """Stop serving a PV, and close it. An unknown name does nothing."""
        pv = self._pvs.pop(name, None)
        if pv is not None:
            SharedPV.close(pv)

    def close(self) -> None:
        """Close all PVs. The provider keeps them."""
        for pv in list(self._pvs.values()):
            SharedPV.close(pv)

    def keys(self) -> list[str]:
        """Return the names of all PVs, in alphabetical order."""
        return sorted(self._pvs)


class DynamicProvider(Unique):
    """PVs that are made as clients ask for them.

    ``testChannel`` and ``makeChannel`` run on a thread of their own, and may take their time.

    Args:
        name: Names the provider among those of one server.
        handler: Has ``testChannel(name)`` and ``makeChannel(name, peer)``.
    """

    _answers_at_once = False
    """Whether the handler's methods are so quick that they are called on the PVAccess thread."""

    def __init__(self, name: str, handler: Any) -> None:
        self._name = name
        self.handler = handler
        self._noes: dict[str, float] = {}
        self._tests: dict[str, dict[Hashable, Callable[[], None]]] = {}
        """Names that are being tested, with those who wait."""

    # -- on the PVAccess thread ----------------------------------------------------------------------

    def _claims(self, name: str) -> bool:
        return self._answers_at_once and bool(self.handler.testChannel(name))

    def _promise(self, name: str, asker: Hashable, tell: Callable[[], None]) -> None:
        """Ask ``testChannel``; call ``tell`` if the answer is yes."""
        if self._answers_at_once:
            return
        until = self._noes.get(name)
        if until is not None:
            if until > time.monotonic():
                return
            del self._noes[name]
        waiting = self._tests.get(name)
        if waiting is not None:
            if len(waiting) < MAX_ASKERS or asker in waiting:
                waiting[asker] = tell
            return
        if len(self._tests) >= MAX_TESTS:
            return
        self._tests[name] = {asker: tell}
        server_queue().push(partial(self._test, name))

    def _test(self, name: str) -> None:
        """Ask the handler, on the thread of callbacks."""
        answer: Any = False
        try:
            answer = self.handler.testChannel(name)
        except BaseException:  # noqa: BLE001 - as p4p: such a name is not there
            _log.exception("testChannel(%.256r) failed", name)
        engine().soon(self._tested, name, answer)

    def _tested(self, name: str, answer: Any) -> None:
        waiting = self._tests.pop(name, {})
        if answer == _NOT_YET and isinstance(answer, bytes):
            return
        if answer:
            for tell in waiting.values():
                tell()
            return
        if len(self._noes) >= MAX_NOES:
            self._noes.clear()
        self._noes[name] = time.monotonic() + NO_TIME

    def _make(self, name: str, peer: str) -> Core | None:
        """Return the PV that the handler makes, if it makes one."""
        try:
            pv = self.handler.makeChannel(name, peer)
        except BaseException:  # noqa: BLE001 - as p4p: another provider may have the PV
            _log.exception("makeChannel(%.256r) failed", name)
            return None
        if isinstance(pv, SharedPV):
            return pv._core
        if pv is not None:
            _log.error("makeChannel(%.256r) must return a SharedPV or None, not %s", name, type(pv).__name__)
        return None


Provider = StaticProvider | DynamicProvider


class Providers(Source):
    """The providers of one server, in the order in which they are asked.

    Args:
        providers: The providers, with the order of each: lower numbers are asked first, and names decide between equals.

    Raises:
        RuntimeError: Two have the same name and order.
    """

    def __init__(self, providers: Iterable[tuple[Provider, int]]) -> None:
        known: dict[tuple[int, str], Provider] = {}
        for provider, order in providers:
            key = (order, provider._name)
            if key in known:
                raise RuntimeError(
                    f"there are two providers {provider._name!r} of order {order}; give one another name or order"
                )
            known[key] = provider
        self.items: list[tuple[int, Provider]] = [(key[0], known[key]) for key in sorted(known)]
        self._making = 0
        """Calls of ``makeChannel`` that were not made yet."""

    def claims(self, name: str, host: str) -> bool:
        """Whether a provider has the PV; those that have to be asked answer later."""
        for _, provider in self.items:
            if name in provider._pvs if isinstance(provider, StaticProvider) else provider._claims(name):
                return True
        return False

    def promise(self, name: str, host: str, asker: Hashable, tell: Callable[[], None]) -> None:
        """Ask the providers that make PVs."""
        for _, provider in self.items:
            if isinstance(provider, DynamicProvider):
                provider._promise(name, (id(provider), asker), tell)

    def names(self) -> Iterable[str]:
        """Return the names of the static providers."""
        for _, provider in self.items:
            if isinstance(provider, StaticProvider):
                yield from list(provider._pvs)

    def open(self, name: str, peer: Credentials) -> Handler | Later | None:
        """Return the PV, perhaps later."""
        return self._open(0, name, peer)

    def _open(self, start: int, name: str, peer: Credentials) -> Core | Later | None:
        for number in range(start, len(self.items)):
            provider = self.items[number][1]
            if isinstance(provider, StaticProvider):
                pv = provider._pvs.get(name)
                if pv is not None:
                    return pv._core
            elif provider._answers_at_once:
                core = provider._make(name, peer.peer)
                if core is not None:
                    return core
            else:
                return self._make(number, name, peer)
        return None

    def _make(self, number: int, name: str, peer: Credentials) -> Later:
        """Have a provider make the PV, on the thread of callbacks."""
        later = Later()
        if self._making >= MAX_MAKING:
            later.settle(OperationError(f"{MAX_MAKING} PVs are being made; try again later"))
            return later
        self._making += 1
        provider = self.items[number][1]
        assert isinstance(provider, DynamicProvider)

        def make() -> None:
            core = None if later.cancelled else provider._make(name, peer.peer)
            engine().soon(self._made, later, core, number, name, peer)

        server_queue().push(make)
        return later

    def _made(self, later: Later, core: Core | None, number: int, name: str, peer: Credentials) -> None:
        self._making -= 1
        if later.cancelled:
            return
        if core is not None:
            later.settle(core)
            return
        following = self._open(number + 1, name, peer)
        if following is None:
            later.settle(OperationError(f"there is no PV {name[:256]!r} here"))
        elif isinstance(following, Later):
            later.on_cancel = following.cancel
            following.then(later.settle)
        else:
            later.settle(following)
