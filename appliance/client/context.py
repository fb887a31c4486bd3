"""The client's public face: a process uses PVs through one Context."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, overload
from weakref import WeakValueDictionary

from appliance.client.channel import Channel, Waiter
from appliance.client.channels import check_name
from appliance.client.end import DEFAULT_TIMINGS, ClientEnd, ServerAddress, Timings
from appliance.client.link import ServerLink
from appliance.client.links import Links
from appliance.client.monitor import Connected, Disconnected, Monitor
from appliance.client.paced import PacedMonitor, checked_rate
from appliance.client.requests import (
    Batch,
    FieldRequest,
    GetRequest,
    Info,
    PutRequest,
    RPCRequest,
    outcome,
)
from appliance.client.search import Located
from appliance.client.servers import Discovered
from appliance.config.pva import ClientConfig, resolve_client
from appliance.errors import ApplianceError, ChannelClosedError
from appliance.pva.limits import DEFAULT_LIMITS, Limits
from appliance.pvdata.pvrequest import PVRequest, truth
from appliance.pvdata.value import Value
from appliance.transport.gate import PeerGate

if TYPE_CHECKING:
    from cryptography import x509

    from appliance.tls.context import TLSContext

__all__ = ["Context", "closed_contexts"]

_log: Final = logging.getLogger(__name__)
_contexts: Final[WeakValueDictionary[int, Context]] = WeakValueDictionary()

DEFAULT_TIMEOUT_S: Final = 5.0
DEFAULT_QUEUE_SIZE: Final = 4
"""Updates that a monitor keeps for a slow reader, unless the pvRequest gives another number."""
MAX_PLACES: Final = 1000
"""The most answers to one ``locate`` that are kept; anyone on the network can send them."""
MAX_NEWS: Final = 100_000
"""The most news of servers that wait for a slow listener; anyone can send beacons."""
_MAX_PREPARED: Final = 256

Address = ServerAddress | tuple[str, int, bool]
"""Host, port, whether by TLS."""


class _Prepared(NamedTuple):
    """A parsed pvRequest; all users of the same text share it."""

    value: Value
    options: dict[str, str]


def closed_contexts() -> int:
    """Count the contexts that are closed and still exist; any thread may ask."""
    return sum(context._end.closed for each in _contexts.valuerefs() if (context := each()) is not None)


class Context:
    """A PVAccess client whose settings and TLS come from the caller; `appliance.Context` takes them from the environment.

    ``timeout`` bounds all waiting (seconds; None waits for ever). A failure raises an OperationError that gives the
    reason. An operation's ``server`` (host, port, whether to use TLS) names the server of the PV; no search is made.

    Args:
        config: Settings; without them those of the environment.
        tls: The TLS context of the client's keychain; without it the client uses plain TCP only.
        require_tls: Whether PVs are used over TLS only, whoever answers the search. The searches themselves are
            not secret.
        gate: Checks TLS connections by the status of certificates.
        limits: Bounds of what one server may send.
        segment_size: Octets; a longer message is sent in segments. 0 means no segments.
        beacons: Whether to listen for beacons of new servers from the start.
        octets: Whether ``uint8[]`` is read as ``bytes``, without numpy; for monitors whose values are read only.
        timings: The waiting times of the client.
        ignore_guids: GUIDs of servers whose answers are not used; a gateway ignores its own servers.
        ignore_servers: Host and port of servers whose answers are not used; port 0 means every port.
        search_tls: The TLS context for name servers (``pvas://``), if ``tls`` is for one service alone. No PV is used over these
            connections.

    Example:
        >>> settings = resolve_client().config
        >>> async with appliance.client.Context(settings) as plain:
        ...     value = await plain.get("demo:temperature")
        >>> value["value"]
        21.5
    """

    _links: Links
    """All parts below this class; made by ``start``."""

    def __init__(
        self,
        config: ClientConfig | None = None,
        *,
        tls: TLSContext | None = None,
        require_tls: bool = False,
        gate: PeerGate | None = None,
        limits: Limits = DEFAULT_LIMITS,
        segment_size: int = 0,
        beacons: bool = True,
        octets: bool = False,
        timings: Timings = DEFAULT_TIMINGS,
        ignore_guids: frozenset[bytes] = frozenset(),
        ignore_servers: frozenset[tuple[str, int]] = frozenset(),
        search_tls: TLSContext | None = None,
    ) -> None:
        if config is None:
            config = resolve_client().config
            if config.tls_keychain and tls is None:
                _log.warning(
                    "%s is not used: appliance.client.Context does not read a keychain; use 'from appliance import Context', which does",
                    config.tls_keychain,
                )
        self._end = ClientEnd(
            config,
            tls=tls,
            require_tls=require_tls,
            gate=gate,
            limits=limits,
            segment_size=segment_size,
            octets=octets,
            timings=timings,
            ignore_guids=ignore_guids,
            ignore_servers=ignore_servers,
            search_tls=search_tls,
        )
        self._beacons = beacons
        self._is_open = False
        self._requests: dict[str, _Prepared] = {}
        _contexts[id(self)] = self

    # -- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the search sockets and connect to the name servers; ``async with`` does it.

        Raises:
            TransportError: A socket cannot be opened.

        Example:
            >>> second = Context()
            >>> await second.start()
            >>> (await second.get("demo:temperature"))["value"]
            21.5
            >>> await second.close()
        """
        self._end.start(asyncio.get_running_loop())
        self._links = Links(self._end)
        self._is_open = True
        await self._links.start(beacons=self._beacons)

    async def close(self) -> None:
        """Close all channels and connections; ``async with`` does it. Operations that wait end with an error.

        A closed context cannot be started again.

        Example:
            >>> await ctx.close()
            >>> await ctx.get("demo:temperature")
            Traceback (most recent call last):
            appliance.errors.ChannelClosedError: the client context is closed; make a new one
        """
        self._begin_to_close()
        if self._is_open:
            self._is_open = False
            await self._links.close()

    def _begin_to_close(self) -> None:
        """Close what can be closed at once; `close` waits for the rest."""
        self._end.closed = True
        if self._is_open:
            self._links.begin_to_close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise self._not_open()

    def _not_open(self) -> ChannelClosedError:
        if self._end.closed:
            return ChannelClosedError("the client context is closed; make a new one")
        return ChannelClosedError(
            "the client context is not open; use it in 'async with', or call 'await context.start()' first"
        )

    @property
    def config(self) -> ClientConfig:
        """The settings."""
        return self._end.config

    # -- TLS -----------------------------------------------------------------------------------------

    @property
    def tls(self) -> TLSContext | None:
        """The TLS context for new connections; None if the client uses plain TCP only."""
        return self._end.tls

    @property
    def gate(self) -> PeerGate | None:
        """The gate that checks TLS connections by the status of certificates."""
        return self._end.gate

    def prepare_tls(self, tls: TLSContext | None, gate: PeerGate | None, *, require_tls: bool) -> None:
        """Set the TLS to use, before ``start``. A client that already requires TLS still requires it.

        Args:
            tls: The TLS context of the client's keychain; None for plain TCP only.
            gate: Checks TLS connections by the status of certificates.
            require_tls: Whether PVs are used over TLS only.
        """
        self._end.tls = tls
        self._end.gate = gate
        self._end.require_tls = self._end.require_tls or require_tls

    def set_tls(self, tls: TLSContext | None, reason: ApplianceError | None = None) -> None:
        """Use another keychain, or none, for new connections.

        With ``reason``, the TLS connections of the former keychain are closed and their channels are searched for again.
        Plain connections move to TLS if their servers offer it.
        """
        self._end.tls = tls
        if self._is_open:
            self._links.tls_changed(reason)

    def close_connections_of(self, certificate: x509.Certificate, reason: ApplianceError) -> None:
        """Close the connections in which this client has shown ``certificate``; their channels are searched for again."""
        if self._is_open:
            self._links.close_of(certificate, reason)

    def renew_connections_of(self, certificate: x509.Certificate, within_s: float) -> None:
        """Replace the connections in which this client has shown ``certificate``, each at a moment of its own ``within_s`` seconds.

        A connection stays if the new one fails, or if the server still shows a certificate of the same authority.
        """
        if self._is_open:
            self._links.renew(certificate, within_s)

    def probe_tls(self, guid: bytes = b"") -> None:
        """Ask which unencrypted channels are available over TLS, and move them to it (SPVA 12.5.2).

        This concerns all channels, or with a ``guid`` the channels of that server.
        """
        if self._is_open:
            self._links.probe_tls(guid)

    # -- operations ----------------------------------------------------------------------------------

    def channel(self, name: str, server: Address | None = None) -> Channel:
        """Return the channel of ``name``; the search starts with the first request.

        Raises:
            ChannelClosedError: The context is not open, or no search can carry the name.
        """
        if not self._is_open:
            raise self._not_open()
        return self._links.channels.get(name, None if server is None else ServerAddress(*server))

    def give_back(self, name: str) -> None:
        """Close the channel of ``name`` now, if no request uses it; otherwise it is kept for a while."""
        if self._is_open:
            self._links.channels.give_back(name)

    def _prepared(self, text: str) -> _Prepared:
        known = self._requests.get(text)
        if known is None:
            parsed = PVRequest(text)
            if len(self._requests) >= _MAX_PREPARED:
                self._requests.clear()
            value = Value.from_store(parsed.type, parsed.store, 1)
            known = self._requests[text] = _Prepared(value, parsed.options)
        return known

    @overload
    async def get(  # type: ignore[overload-overlap]
        self, name: str, request: str = "", *, timeout: float | None = ..., server: Address | None = ...
    ) -> Value: ...

    @overload
    async def get(
        self,
        name: Sequence[str],
        request: str = "",
        *,
        timeout: float | None = ...,
        return_exceptions: Literal[False] = ...,
    ) -> list[Value]: ...

    @overload
    async def get(
        self, name: Sequence[str], request: str = "", *, timeout: float | None = ..., return_exceptions: bool
    ) -> list[Value | ApplianceError]: ...

    async def get(
        self,
        name: str | Sequence[str],
        request: str = "",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
        return_exceptions: bool = False,
    ) -> Value | list[Value] | list[Value | ApplianceError]:
        """Read one PV, or several at once.

        Args:
            name: The PV's name, or several names. A PV that is named twice is read once.
            request: The pvRequest, which selects fields; empty for all fields.
            timeout: Seconds to wait at most; None waits for ever.
            server: The server of the PV; if it is missing, the PV is searched for.
            return_exceptions: Whether the list holds errors in the places of values; otherwise the first error is raised.

        Returns:
            The value, or a list of values in the order of the names.

        Raises:
            OperationError: The PV could not be read; the text gives the reason.
            OperationTimeoutError: No answer came in time. It is an OperationError, and a TimeoutError.
            PVRequestError: The pvRequest cannot be parsed.

        Example:
            >>> value = await ctx.get("demo:temperature")
            >>> value["value"], value["alarm.severity"], value["display.units"]
            (21.5, 0, 'C')
            >>> [item["value"] for item in await ctx.get(["demo:temperature", "demo:setpoint"])]
            [21.5, 4.0]
            >>> part = await ctx.get("demo:temperature", "field(value)")  # the other fields keep their defaults
            >>> part["value"], part.is_marked("display")
            (21.5, False)
            >>> await ctx.get(["no:such:pv"], timeout=0.1, return_exceptions=True)
            [OperationTimeoutError('no:such:pv: timeout after 0.1 s: ...')]
        """
        prepared = self._prepared(request).value
        if isinstance(name, str):
            channel = self.channel(name, server)
            waiter = Waiter(self._end.loop)
            one = GetRequest(channel, waiter, request, prepared)
            channel.add(one)
            value: Value = await outcome(waiter, (one,), timeout)
            return value
        if not name:
            return []
        places = {item: index for index, item in enumerate(dict.fromkeys(name))}
        # All names are checked before the first request: a bad name must leave nothing behind.
        self._check_open()
        channels = [self._links.channels.get(item) for item in places]
        batch = Batch(self._end.loop, len(places))
        requests: list[GetRequest] = []
        for index, channel in enumerate(channels):
            get = GetRequest(channel, batch.place(index), request, prepared)
            requests.append(get)
            channel.add(get)
        await outcome(batch, requests, timeout)
        results = batch.results
        if not return_exceptions:
            for result in results:
                if isinstance(result, ApplianceError):
                    raise result
        return results if len(results) == len(name) else [results[places[item]] for item in name]

    async def put(
        self,
        name: str,
        value: Any,
        request: str = "",
        *,
        get: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
    ) -> None:
        """Write a PV.

        Args:
            name: The PV's name.
            value: What can be assigned to it (a number, text, a dictionary of fields, a Value), or a function that
                gets a Value of the PV's type and returns it with what it changed.
            request: The pvRequest.
            get: Whether that Value holds the PV's present value. It is read in any case if the text of a choice is
                written to an enumeration.
            timeout: Seconds to wait at most; None waits for ever.
            server: The server of the PV; if it is missing, the PV is searched for.

        Raises:
            AccessDeniedError: Access security refuses it.
            OperationError: The PV was not written, or it is unknown whether it was; the text gives the reason.
            PVDataError: The value does not fit the PV's type.

        Example:
            >>> await ctx.put("demo:setpoint", 5.5)
            >>> await ctx.put("demo:mode", "on")  # the text of a choice
            >>> await ctx.put("demo:waveform", [1.0, 2.0])
            >>> await ctx.put("demo:setpoint", {"value": 6.0, "alarm.message": "by hand"})

            A function sees the present value, and changes it:

            >>> def add_one(present):
            ...     present["value"] += 1
            ...     return present
            >>> await ctx.put("demo:setpoint", add_one, get=True)
            >>> (await ctx.get("demo:setpoint"))["value"]
            7.0
        """
        channel = self.channel(name, server)
        waiter = Waiter(self._end.loop)

        def build(present: Value) -> Value:
            if callable(value):
                changed: Value = value(present)
                return changed
            present.assign(value)
            return present

        put = PutRequest(
            channel, waiter, self._prepared(request).value, build, get=get or _wants_choices(value)
        )
        channel.add(put)
        await outcome(waiter, (put,), timeout)

    async def rpc(
        self,
        name: str,
        argument: Value | Mapping[str, Any] | None = None,
        request: str = "",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
    ) -> Value | None:
        """Call a PV that takes arguments.

        Args:
            name: The PV's name.
            argument: The argument. A mapping becomes the query of an NTURI; the types of its values are inferred.
            request: The pvRequest.
            timeout: Seconds to wait at most; None waits for ever.
            server: The server of the PV; if it is missing, the PV is searched for.

        Returns:
            The answer; None if it is empty.

        Raises:
            AccessDeniedError: Access security refuses it.
            OperationError: The call failed, or it is unknown whether it was executed; the text gives the reason.

        Example:
            >>> answer = await ctx.rpc("demo:sum", {"a": 1.0, "b": 2.5})
            >>> answer["value"]
            3.5
        """
        if isinstance(argument, Mapping):
            from appliance.client.uri import uri_value

            argument = uri_value(name, argument)
        channel = self.channel(name, server)
        waiter = Waiter(self._end.loop)
        call = RPCRequest(channel, waiter, self._prepared(request).value, argument)
        channel.add(call)
        result: Value | None = await outcome(waiter, (call,), timeout)
        return result

    async def info(
        self,
        name: str,
        field: str = "",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
    ) -> Info:
        """Return a PV's type and the identity of its server.

        Args:
            name: The PV's name.
            field: The field whose type is wanted; empty for the whole.
            timeout: Seconds to wait at most; None waits for ever.
            server: The server of the PV; if it is missing, the PV is searched for.

        Raises:
            OperationError: No server answered, or the server refused; the text gives the reason.

        Returns:
            Type, server and identity.

        Example:
            >>> info = await ctx.info("demo:temperature")
            >>> info.type.id, info.peer.is_tls
            ('epics:nt/NTScalar:1.0', False)
            >>> (await ctx.info("demo:temperature", "value")).type
            FLOAT64
        """
        channel = self.channel(name, server)
        waiter = Waiter(self._end.loop)
        ask = FieldRequest(channel, waiter, field)
        channel.add(ask)
        info: Info = await outcome(waiter, (ask,), timeout)
        return info

    @overload
    def monitor(
        self,
        name: str,
        request: str = "",
        *,
        notify: Literal[False] = ...,
        server: Address | None = ...,
        on_update: Callable[[Any], None] | None = ...,
        max_rate: float | None = ...,
    ) -> Monitor[Value]: ...

    @overload
    def monitor(
        self,
        name: str,
        request: str = "",
        *,
        notify: bool,
        server: Address | None = ...,
        on_update: Callable[[Any], None] | None = ...,
        max_rate: float | None = ...,
    ) -> Monitor[Value | Connected | Disconnected]: ...

    def monitor(
        self,
        name: str,
        request: str = "",
        *,
        notify: bool = False,
        server: Address | None = None,
        on_update: Callable[[Any], None] | None = None,
        max_rate: float | None = None,
    ) -> Monitor[Any]:
        """Subscribe to a PV's updates; the first one is the present value.

        It never fails at once: the subscription waits until there is a server, and continues when a lost server is back.

        Args:
            name: The PV's name.
            request: The pvRequest, which may contain ``record[queueSize=100,pipeline=true]``.
            notify: Whether the monitor also reports when the server is connected (`Connected`) and when it is lost
                (`appliance.client.Disconnected`).
            server: The server of the PV; if it is missing, the PV is searched for.
            on_update: Called on the event loop with each update; replaces the monitor's iterator. The last call brings the
                ApplianceError that ended the subscription.
            max_rate: Updates per second at most; None for all. The first update comes at once. What comes faster is merged,
                and the latest value comes as soon as its time has come. The loss of the server is told at once, after the
                latest value.

        Returns:
            The subscription: an asynchronous iterator, and a context manager that ends it.

        Raises:
            ChannelClosedError: The context is not open.
            PVRequestError: The pvRequest cannot be parsed.
            TypeError: ``max_rate`` is no number.
            ValueError: ``max_rate`` is not above 0.

        Example:
            >>> async with ctx.monitor("demo:setpoint") as updates:
            ...     async for value in updates:
            ...         print(value["value"])
            ...         if value["value"] > 4.5:
            ...             break
            ...         await ctx.put("demo:setpoint", 5.0)
            4.0
            5.0
            >>> async with ctx.monitor("demo:temperature", max_rate=10) as updates:  # ten per second at most
            ...     (await anext(updates))["value"]
            21.5
        """
        rate = checked_rate(max_rate, "max_rate")
        prepared, options = self._prepared(request)
        size = options.get("queueSize", "")
        channel = self.channel(name, server)
        made: Callable[..., Monitor[Any]] = Monitor if rate is None else partial(PacedMonitor, max_rate=rate)
        monitor = made(
            channel,
            prepared,
            queue_size=int(size) if size.isdecimal() else DEFAULT_QUEUE_SIZE,
            pipeline=truth(options.get("pipeline")) is True,
            notify=notify,
            on_update=on_update,
        )
        channel.add(monitor)
        return monitor

    # -- servers -------------------------------------------------------------------------------------

    async def discover(self, *, ping: bool = True) -> AsyncIterator[Discovered]:
        """Yield news of servers until the caller stops.

        Args:
            ping: Whether to ask all servers to answer, instead of waiting for their beacons.

        Yields:
            A server that appeared, or one that is gone.

        Example:
            >>> async for news in ctx.discover():
            ...     print(news.online, news.protocol)
            ...     break
            True tcp
        """
        self._check_open()
        links = self._links
        queue: asyncio.Queue[Discovered] = asyncio.Queue()
        links.ports.listen_for_beacons()

        def tell(news: Discovered) -> None:
            if queue.qsize() < MAX_NEWS:
                queue.put_nowait(news)

        unsubscribe = links.servers.subscribe(tell)
        try:
            if ping:
                links.searcher.ping()
            while True:
                yield await queue.get()
        finally:
            unsubscribe()

    async def locate(self, name: str, *, patience_s: float = 1.0, quiet_s: float = 0.3) -> list[Located]:
        """Find every server that answers a search for ``name``, without connecting to any.

        A server that offers both TLS and plain TCP is listed with both ports.

        Args:
            name: The PV's name.
            patience_s: Seconds to wait for the first answer.
            quiet_s: Seconds without another answer after which the search ends.

        Returns:
            The places in the order of their answers; empty if no server has the PV.

        Raises:
            ChannelClosedError: The context is not open, or no search can carry the name.

        Example:
            >>> [(place.host, place.tls) for place in await ctx.locate("demo:temperature")]
            [('127.0.0.1', False)]
        """
        self._check_open()
        check_name(name)
        places: dict[Located, None] = {}
        loop = self._end.loop
        latest = loop.time() + patience_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(latest) as waiting:

                def found(place: Located) -> None:
                    if len(places) < MAX_PLACES and not waiting.expired():
                        places[place] = None
                        waiting.reschedule(min(latest, loop.time() + quiet_s))

                stop = self._links.searcher.locate(name, found)
                try:
                    await loop.create_future()
                finally:
                    stop()
        return list(places)

    def links(self) -> list[ServerLink]:
        """Return the connections to servers, also those that are not ready yet."""
        return list(self._links.by_address.values())

    def missing_name_servers(self) -> list[str]:
        """Return the name servers that are configured and not connected."""
        return self._links.missing_name_servers()

    def hurry_up(self) -> None:
        """Search now for all names that have no server, without waiting for the back-off.

        Example:
            >>> ctx.hurry_up()
        """
        self._check_open()
        self._links.searcher.hurry()


def _wants_choices(value: Any) -> bool:
    """Whether ``value`` may be the text of a choice; only the present value of the PV has the choices."""
    if isinstance(value, str):
        return True
    return isinstance(value, Mapping) and any(_wants_choices(item) for item in value.values())
