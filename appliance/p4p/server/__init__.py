"""Servers and what provides PVs to them."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, Final, Self
from weakref import ref

from appliance.p4p._unique import Unique
from appliance.p4p.server import _providers
from appliance.p4p.server._operation import ServerOperation
from appliance.p4p.server._server import Server as _Server
from appliance.p4p.server._server import all_servers

__all__ = [
    "DynamicProvider",
    "Server",
    "ServerOperation",
    "StaticProvider",
    "clearProviders",
    "installProvider",
    "removeProvider",
]

_log = logging.getLogger(__name__)

_registry: dict[str, ref[Any]] = {}
_numbers = count()

ISOLATED: Final = {
    "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
    "EPICS_PVA_ADDR_LIST": "127.0.0.1",
    "EPICS_PVA_AUTO_ADDR_LIST": "0",
    "EPICS_PVA_SERVER_PORT": "0",
    "EPICS_PVA_BROADCAST_PORT": "0",
}
"""The settings of a server for tests: nothing outside this host can see it."""


def installProvider(name: str, provider: StaticProvider | DynamicProvider) -> None:
    """Let servers of this process find a provider by its name.

    Args:
        name: The name; a provider that had it before is forgotten.
        provider: The provider. It is not kept alive by this.

    Example:
        >>> provider = StaticProvider("demo")
        >>> installProvider("demo", provider)
        >>> with Server(providers=["demo"], isolate=True) as server:
        ...     removeProvider("demo")
    """
    _registry[name] = ref(provider)


def removeProvider(name: str) -> None:
    """Forget a provider's name. Servers that use the provider go on.

    Args:
        name: The name; an unknown one does nothing.

    Example:
        >>> removeProvider("demo")
    """
    _registry.pop(name, None)


def clearProviders() -> None:
    """Forget the names of all providers.

    Example:
        >>> clearProviders()
    """
    _registry.clear()


class StaticProvider(_providers.StaticProvider):
    """PVs from a list that can change at any time.

    Args:
        name: Names the provider among those of one server; without it one is chosen.

    Example:
        >>> from appliance.p4p.nt import NTScalar
        >>> from appliance.p4p.server.thread import SharedPV
        >>> provider = StaticProvider("demo")
        >>> provider.add("demo:voltage", SharedPV(nt=NTScalar("d"), initial=4.5))
        >>> provider.keys()
        ['demo:voltage']
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__(_chosen_name() if name is None else name)


class DynamicProvider(_providers.DynamicProvider):
    """PVs that are made as clients ask for them.

    Args:
        name: Names the provider among those of one server; without it one is chosen.
        handler: Has two methods, which run on a thread of their own and may take their time. ``testChannel(name)`` returns
            True if there is such a PV, False if there is none, which is remembered for ten seconds, or `NotYet` to be asked
            again. ``makeChannel(name, peer)`` returns the SharedPV for the client at the address ``peer``, or None.

    Example:
        >>> from appliance.p4p.nt import NTScalar
        >>> from appliance.p4p.server.thread import SharedPV
        >>> class Boxes:
        ...     def testChannel(self, name):
        ...         return name.startswith("box:")
        ...
        ...     def makeChannel(self, name, peer):
        ...         return SharedPV(nt=NTScalar("s"), initial=name)
        >>> with Server(providers=[DynamicProvider("boxes", Boxes())], isolate=True) as server:
        ...     print(server.tostr(1).count("boxes"))
        1
    """

    NotYet: Final = b"nocache"
    """An answer of ``testChannel``: the PV is not there yet, and the next search has to be asked again."""

    def __init__(self, name: str | None, handler: Any) -> None:
        super().__init__(_chosen_name() if name is None else name, handler)


class Server(Unique):
    """A PVAccess server. It runs from its construction until `stop`, or to the end of a ``with`` block.

    Settings and the keychain for TLS come from the ``EPICS_PVAS_*`` and ``EPICS_PVA_*`` variables, as for all programs of this
    project.

    Args:
        providers: Where PVs come from. Each is a `StaticProvider`, a `DynamicProvider`, a dict of names and SharedPVs, or a name
            that `installProvider` knows; or a tuple of one of these and a number: lower numbers are asked first, 0 is the default.
        isolate: Serve only this host, over plain TCP and on free ports, for tests; `conf` tells clients how to find it. Then
            neither ``conf`` nor ``useenv`` may be given.
        kws: ``conf``, a dict of variables that go before those of the environment; ``useenv``, whether the environment is read
            (True).

    Raises:
        ValueError: A provider is none of these, or nobody has installed its name.
        RuntimeError: An address cannot be listened on, a setting or the keychain cannot be used, or two providers have the same
            name and number.

    Example:
        >>> from appliance.p4p.client.thread import Context
        >>> from appliance.p4p.nt import NTScalar
        >>> from appliance.p4p.server.thread import SharedPV
        >>> pv = SharedPV(nt=NTScalar("d"), initial=4.5)
        >>> with Server(providers=[{"demo:voltage": pv}], isolate=True) as server:
        ...     with Context("pva", conf=server.conf(), useenv=False) as ctxt:
        ...         print(float(ctxt.get("demo:voltage")))
        4.5
    """

    def __init__(self, providers: Iterable[Any], isolate: bool = False, **kws: Any) -> None:
        if isinstance(providers, str):
            warnings.warn("Server(providers=) should be a list of names", DeprecationWarning, stacklevel=2)
            providers = providers.split()
        elif isinstance(providers, Mapping):
            providers = list(providers)
        if isolate:
            if "useenv" in kws or "conf" in kws:
                raise AssertionError(
                    "with isolate=True neither conf= nor useenv= has an effect; leave them out"
                )
            kws["useenv"] = False
            kws["conf"] = {**ISOLATED}
        self._S = _Server(providers=[_provider(item) for item in providers], **kws)
        if isolate:
            self._S.forget_keychain()
        self.tostr = self._S.tostr
        self._S.start()
        _log.debug("a server was started")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def conf(self) -> dict[str, str]:
        """Return the settings in effect, with the ports that are really used.

        They let a client find this server, as ``conf=`` of a Context with ``useenv=False``, or make another server like it. A
        client that has to use TLS needs a keychain of its own besides. Passwords are not among them.

        Raises:
            RuntimeError: The server was stopped.

        Example:
            >>> with Server(providers=[{}], isolate=True) as server:
            ...     server.conf()["EPICS_PVA_ADDR_LIST"]
            '127.0.0.1'
        """
        return self._S.conf()

    def stop(self) -> None:
        """Close all connections, and stop listening. To stop twice does nothing.

        Example:
            >>> server = Server(providers=[{}], isolate=True)
            >>> server.stop()
        """
        self._S.stop()

    @classmethod
    def forever(cls, *args: Any, **kws: Any) -> None:
        """Run a server until the program is interrupted (Ctrl-C).

        Args:
            args: As for the class.
            kws: As for the class.
        """
        server = cls(*args, **kws)
        try:
            with server:
                _log.info("the server runs")
                threading.Event().wait()
        except KeyboardInterrupt:
            _log.info("the server has stopped")


def _provider(item: Any) -> tuple[_providers.Provider, int]:
    """Return a provider and its order."""
    if isinstance(item, tuple):
        item, order = item
    else:
        order = getattr(item, "order", 0)
    if not isinstance(order, int):
        raise TypeError(f"the order of a provider must be a whole number, not {type(order).__name__}")
    if isinstance(item, bytes):
        raise TypeError("the name of a provider must be a text, not bytes")
    if isinstance(item, str):
        if not re.fullmatch(r"[^ \t\n\r]+", item):
            raise ValueError(f"the name of a provider must not be empty and has no blanks: {item!r}")
        known = _registry.get(item)
        item_ = None if known is None else known()
        if item_ is None:
            raise ValueError(
                f"there is no provider {item!r}; call installProvider first, and keep the provider"
            )
        item = item_
    elif hasattr(item, "items") and not isinstance(
        item, _providers.StaticProvider | _providers.DynamicProvider
    ):
        provider = StaticProvider()
        for name, pv in item.items():
            provider.add(name, pv)
        item = provider
    if not isinstance(item, _providers.StaticProvider | _providers.DynamicProvider):
        raise ValueError(  # noqa: TRY004 - as p4p
            f"a provider must be a name, a StaticProvider, a DynamicProvider or a dict of SharedPVs, not {type(item).__name__}"
        )
    return item, order


def _chosen_name() -> str:
    return f"provider-{next(_numbers):08d}"


def _cleanup_servers() -> None:
    for server in list(all_servers):
        try:
            server.stop()
        except (
            RuntimeError
        ) as error:  # for instance: this is a child of a fork, and the server is its parent's
            _log.debug("a server was not stopped: %s", error)
