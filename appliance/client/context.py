"""The client: everything that a process does with PVs goes through one Context."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self, overload

from appliance.client.channel import Channel, ChannelState, refused_without_tls
from appliance.client.link import Address, ServerLink
from appliance.client.monitor import Subscription
from appliance.client.requests import (
    Batch,
    FieldRequest,
    GetRequest,
    Info,
    PutRequest,
    Request,
    RPCRequest,
    Waiter,
    _BatchItem,
)
from appliance.client.search import Discovered, Located, Searcher
from appliance.config.pva import ClientConfig, resolve_client
from appliance.errors import ApplianceError, ChannelClosedError, OperationTimeoutError, TransportError
from appliance.pva.limits import DEFAULT_LIMITS, Limits
from appliance.pvdata.pvrequest import PVRequest
from appliance.pvdata.value import Value
from appliance.transport.address import format_address
from appliance.transport.gate import PeerGate
from appliance.transport.liveness import Liveness

if TYPE_CHECKING:
    from appliance.tls.context import TLSContext
    from appliance.transport.stream import StreamLink

__all__ = ["Context"]

_log: Final = logging.getLogger(__name__)

IDLE_CHANNEL_S: Final = 10.0
"""Seconds for which a channel that nobody uses is kept for the next use."""
DEFAULT_TIMEOUT_S: Final = 5.0
MAX_NAME: Final = 1300
"""Octets of a PV name that surely fit a search datagram (`appliance.pva.search.MAX_DATAGRAM`)."""
CLOSE_S: Final = 1.0
"""Seconds in which servers must take what is left for them when the context closes."""


class Context:
    """A PVAccess client.

    ::

        async with Context() as ctx:
            value = await ctx.get("pv")
            values = await ctx.get(["pv1", "pv2"])
            await ctx.put("pv", 4.5)
            async with ctx.monitor("pv") as updates:
                async for value in updates:
                    ...

    ``config`` defaults to the settings of the environment. ``tls`` is the context of the client's keychain: without it the client speaks plain TCP only. With
    ``require_tls`` no PV is ever used over plain TCP, whoever answers the search; searches themselves are not secret.
    All waiting is bounded by ``timeout`` (seconds; None waits for ever); what fails raises an OperationError that
    says why.
    """

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
        longest_search_s: float = 30.0,
    ) -> None:
        if config is None:
            config = resolve_client().config
            if config.tls_keychain and tls is None:
                _log.warning(
                    "%s is not used: appliance.client.Context is given its TLS; 'from appliance import Context' reads it",
                    config.tls_keychain,
                )
        self.config = config
        self.tls = tls
        self.require_tls = require_tls
        self.gate = gate
        self.limits = limits
        self.segment_size = segment_size
        self.octets = octets
        """Whether ``uint8[]`` is read as ``bytes``, without numpy; for monitors, whose values are read and not changed."""
        self.longest_search_s = longest_search_s
        """Seconds between two searches for a name that nobody serves, at the most."""
        self.name_servers: list[ServerLink] = []
        self.searcher: Searcher = None  # type: ignore[assignment]
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self._beacons = beacons
        self._channels: dict[tuple[str, Address | None], Channel] = {}
        self._instances: dict[int, Channel] = {}
        self._next_instance = itertools.count(1)
        self._links: dict[Address, ServerLink] = {}
        self._requests: dict[str, tuple[Value, dict[str, str]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._identity: Value | None = None
        self._liveness = Liveness(self._streams, self.config.idle_timeout_s, echo=True)
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._deserted: asyncio.Event | None = None
        self._started = False

    # -- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the search sockets and connect to the name servers."""
        self.loop = asyncio.get_running_loop()
        self._started = True
        self.searcher = Searcher(self)
        await self.searcher.start(beacons=self._beacons)
        self._liveness.start()
        self._sweeper = self.loop.call_later(IDLE_CHANNEL_S, self._sweep)
        for endpoint in self.config.name_servers:
            port = endpoint.port or (self.config.tls_port if endpoint.tls else self.config.server_port)
            self._name_server((endpoint.host, port, endpoint.tls))

    async def close(self) -> None:
        """Close all channels and connections."""
        if self._closed:
            return
        self._closed = True
        if not self._started:
            return
        self._liveness.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for channel in list(self._channels.values()):
            channel.close(tell=False)
        self._channels.clear()
        links = list({*self._links.values(), *self.name_servers})
        for link in links:
            link.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self.searcher.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._streams():
            self._deserted = asyncio.Event()
            try:
                await asyncio.wait_for(self._deserted.wait(), CLOSE_S)
            except TimeoutError:
                for stream in self._streams():
                    stream.abort()
        await asyncio.sleep(0)

    @property
    def closing(self) -> bool:
        """Whether ``close`` has been called."""
        return self._closed

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- operations ----------------------------------------------------------------------------------

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
        return_exceptions: bool = ...,
    ) -> list[Any]: ...

    async def get(
        self,
        name: str | Sequence[str],
        request: str = "",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
        return_exceptions: bool = False,
    ) -> Any:
        """Read one PV, or many at once.

        Of many, the first failure is raised, unless ``return_exceptions`` puts failures in the list. A PV that is
        named twice is read once.
        """
        prepared = self._request(request)[0]
        if isinstance(name, str):
            channel = self.channel(name, server)
            waiter = Waiter(self.loop)
            one = GetRequest(channel, waiter, request, prepared)
            channel.add(one)
            return await self._wait(waiter, (one,), timeout)
        if not name:
            return []
        places = {item: index for index, item in enumerate(dict.fromkeys(name))}
        # All names are judged before any is asked for: a bad one must leave nothing behind.
        channels = [self.channel(item) for item in places]
        batch = Batch(self.loop, len(places))
        requests: list[GetRequest] = []
        for index, channel in enumerate(channels):
            get = GetRequest(channel, _BatchItem(batch, index), request, prepared)
            requests.append(get)
            channel.add(get)
        await self._wait(batch, requests, timeout)
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

        ``value`` is what can be assigned to it (a number, text, a dictionary of fields, a Value), or a function
        that gets a Value of the PV's type and returns it with what it changed. With ``get`` that Value holds the
        present value first; an enumeration written by the text of a choice needs it, and has it without asking.
        """
        channel = self.channel(name, server)
        waiter = Waiter(self.loop)

        def build(present: Value) -> Value:
            if callable(value):
                changed: Value = value(present)
                return changed
            present.assign(value)
            return present

        put = PutRequest(channel, waiter, self._request(request)[0], build, get=get or _wants_choices(value))
        channel.add(put)
        await self._wait(waiter, (put,), timeout)

    async def rpc(
        self,
        name: str,
        argument: Value | Mapping[str, Any] | None = None,
        request: str = "",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
    ) -> Value | None:
        """Call. A mapping becomes the query of an NTURI, its values' types being inferred."""
        if isinstance(argument, Mapping):
            from appliance.client.uri import uri_value

            argument = uri_value(name, argument)
        channel = self.channel(name, server)
        waiter = Waiter(self.loop)
        call = RPCRequest(channel, waiter, self._request(request)[0], argument)
        channel.add(call)
        result: Value | None = await self._wait(waiter, (call,), timeout)
        return result

    async def info(
        self,
        name: str,
        field: str = "",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
    ) -> Info:
        """Ask for a PV's type, and learn who serves it."""
        channel = self.channel(name, server)
        waiter = Waiter(self.loop)
        ask = FieldRequest(channel, waiter, field)
        channel.add(ask)
        info: Info = await self._wait(waiter, (ask,), timeout)
        return info

    def monitor(
        self,
        name: str,
        request: str = "",
        *,
        notify: bool = False,
        server: Address | None = None,
        on_update: Callable[[Any], None] | None = None,
    ) -> Subscription:
        """Subscribe; see Subscription. ``request`` may say ``record[queueSize=100,pipeline=true]``."""
        prepared, options = self._request(request)
        size = options.get("queueSize", "4")
        channel = self.channel(name, server)
        subscription = Subscription(
            channel,
            prepared,
            queue_size=int(size) if size.isdecimal() else 4,
            pipeline=options.get("pipeline", "").lower() in ("true", "1", "yes"),
            notify=notify,
            on_update=on_update,
        )
        channel.add(subscription)
        return subscription

    async def discover(self, *, ping: bool = True) -> AsyncIterator[Discovered]:
        """Give news of servers, for as long as the caller listens."""
        self._check_open()
        queue: asyncio.Queue[Discovered] = asyncio.Queue()
        self.searcher.listen_for_beacons()

        def tell(news: Discovered) -> None:
            if queue.qsize() < MAX_NEWS:
                queue.put_nowait(news)

        unsubscribe = self.searcher.subscribe(tell)
        try:
            if ping:
                self.searcher.ping()
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
            quiet_s: Seconds without another answer after which there are no more.

        Returns:
            The places in the order of their answers; none where nobody has the PV.

        Raises:
            ChannelClosedError: The context is not open, or no search can carry the name.

        """
        self._check_open()
        _check_name(name)
        places: dict[Located, None] = {}
        loop = self.loop
        latest = loop.time() + patience_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(latest) as waiting:

                def found(place: Located) -> None:
                    if len(places) < MAX_PLACES and not waiting.expired():
                        places[place] = None
                        waiting.reschedule(min(latest, loop.time() + quiet_s))

                end = self.searcher.locate(next(self._next_instance) & 0xFFFFFFFF, name, found)
                try:
                    await loop.create_future()
                finally:
                    end()
        return list(places)

    def hurry_up(self) -> None:
        """Search for everything that is missing now, whatever the back-off says."""
        self._check_open()
        self.searcher.hurry()

    async def _wait(self, waiter: Waiter | Batch, requests: Iterable[Request], timeout: float | None) -> Any:
        future = waiter.future
        timer = None
        if timeout is not None and not future.done():
            timer = self.loop.call_later(timeout, self._timed_out, requests, timeout)
        try:
            return await future
        except asyncio.CancelledError:
            for request in requests:
                request.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _timed_out(self, requests: Iterable[Request], timeout: float) -> None:
        for request in requests:
            channel = request.channel
            if request not in channel.requests:
                continue
            if channel.state is ChannelState.ACTIVE:
                why = f"{channel.link.peer if channel.link else 'the server'} did not answer"
            elif channel.state is ChannelState.CREATING and channel.link is not None:
                why = (
                    f"{channel.link.peer} answered the search and took the connection, but never answered the request to "
                    "create the channel; see whether the server has this PV, and its log"
                )
            elif channel.trouble:
                why = channel.trouble
            elif channel.link is not None:
                why = channel.link.why_not_ready()
            elif self.require_tls:
                why = (
                    "no server answered the search over TLS, which is required here: a server that has the PV without TLS "
                    "is not used ('appliance doctor' finds it)"
                    if self.tls is not None
                    else "this client has no usable certificate at present, and TLS is required here: nothing is connected"
                )
            else:
                why = "no server answered the search"
            request.fail(OperationTimeoutError(f"{channel.name}: timeout after {timeout:g} s: {why}"))

    # -- channels ------------------------------------------------------------------------------------

    def _request(self, text: str) -> tuple[Value, dict[str, str]]:
        known = self._requests.get(text)
        if known is None:
            parsed = PVRequest(text)
            if len(self._requests) >= 256:
                self._requests.clear()
            known = self._requests[text] = (Value.from_store(parsed.type, parsed.store, 1), parsed.options)
        return known

    def channel(self, name: str, server: Address | None = None) -> Channel:
        """Give the channel of ``name``, which is searched for once something wants it."""
        key = (name, server)
        channel = self._channels.get(key)
        if channel is None:
            self._check_open()
            _check_name(name)
            instance = next(self._next_instance) & 0xFFFFFFFF
            channel = self._channels[key] = self._instances[instance] = Channel(self, name, server, instance)
        return channel

    def _check_open(self) -> None:
        if self._closed:
            raise ChannelClosedError("the client context is closed; make a new one")
        if not self._started:
            raise ChannelClosedError(
                "the client context is not open; use it in 'async with', or call 'await context.start()' first"
            )

    def by_instance(self, instance: int) -> Channel | None:
        """Give the channel that was searched for by ``instance``."""
        return self._instances.get(instance)

    def _sweep(self) -> None:
        """Close channels that nobody has used for a while, and connections without channels."""
        self._sweeper = self.loop.call_later(IDLE_CHANNEL_S, self._sweep)
        before = self.loop.time() - IDLE_CHANNEL_S
        for key, channel in list(self._channels.items()):
            if not channel.requests and channel.last_used < before:
                del self._channels[key]
                self._instances.pop(channel.instance, None)
                channel.close()
        for link in list(self._links.values()):
            if link.ready and not link.channels and not link.is_name_server:
                link.close()

    def set_tls(self, tls: TLSContext | None, reason: ApplianceError | None = None) -> None:
        """Take another keychain into use for new connections, or none.

        With ``reason`` the TLS connections of the former one are closed; their channels are searched for again. What
        is connected in the clear moves to TLS where it can.
        """
        self.tls = tls
        if not self._started or self._closed:
            return
        if reason is not None:
            for link in list(self._links.values()):
                if link.address[2]:
                    link.close(reason)
        self.searcher.hurry()
        self.probe_tls()

    def probe_tls(self, guid: bytes = b"") -> None:
        """Find out which channels that are connected in the clear can be had over TLS, and move them (SPVA 12.5.2).

        All of them, or those of the server with this GUID. Asked several times: a datagram may be lost. They move when
        the new connection is validated: one that fails disturbs nobody.
        """
        if self.tls is None or self._closed:
            return
        for delay in PROBES_S:
            self.loop.call_later(delay, self._probe, guid)

    def _probe(self, guid: bytes) -> None:
        if self.tls is None or self._closed:
            return
        gate = self.gate
        self.searcher.probe(
            [
                channel
                for link in self._links.values()
                if not link.address[2] and not link.is_name_server and guid in (b"", link.guid)
                if guid or gate is None or not gate.avoids(link.guid)
                for channel in link.channels
                if channel.server is None
            ]
        )

    def tls_offered(self, instance: int, guid: bytes, address: Address) -> None:
        """The server to which this channel is connected in the clear offers TLS at ``address``: try it."""
        channel = self._instances.get(instance)
        link = channel.link if channel is not None else None
        if link is None or link.address[2] or link.guid != guid or self.tls is None or link.is_name_server:
            return
        trial = self._links.get(address)
        if trial is None:
            trials = sum(
                other.guid == guid and other.address[2] and not other.ready for other in self._links.values()
            )
            if trials >= MAX_TRIALS:
                return  # such answers are anyone's to forge, and each names another address
            trial = self._open_link(address)
            trial.guid = guid
        elif trial.ready:
            self.link_ready(trial)

    def link_ready(self, link: ServerLink) -> None:
        """A connection is validated: what the same server has for us in the clear may move to it."""
        if not link.address[2] or not link.guid:
            return
        for plain in list(self._links.values()):
            if not plain.address[2] and plain.guid == link.guid and not plain.is_name_server:
                self._upgrade(plain, self.loop.time() + UPGRADE_PATIENCE_S)

    def _upgrade(self, link: ServerLink, latest: float) -> None:
        """Move to TLS when no request is in progress, which would be lost or done twice."""
        if self._links.get(link.address) is not link or link.stream is None or self.tls is None:
            return
        busy = any(
            not isinstance(request, Subscription) for channel in link.channels for request in channel.requests
        )
        if busy and self.loop.time() < latest:
            self.loop.call_later(0.05, self._upgrade, link, latest)
        else:
            link.expected = True
            link.close(TransportError(f"{link.peer} speaks TLS now"))

    def protocols(self) -> tuple[str, ...]:
        """What a search asks for: never TLS alone, since PVXS reads no names in a search without ``tcp``."""
        return ("tls", "tcp") if self.require_tls or self.tls is not None else ("tcp",)

    def identity(self) -> Value:
        """Give the payload of authentication method ``ca``."""
        if self._identity is None:
            from appliance.client.account import claimed_identity

            self._identity = claimed_identity()
        return self._identity

    # -- connections -----------------------------------------------------------------------------------

    def connect(self, channel: Channel, address: Address, guid: bytes = b"") -> None:
        """Have ``channel`` created by the server at ``address``."""
        if self.require_tls and not address[2]:
            # Whatever led here, a search answer or the caller's own address: this is the last gate before the wire.
            channel.trouble = refused_without_tls(format_address(address[:2]))
            channel.search_again(later=True)
            return
        link = self._links.get(address)
        if link is None or not link.is_usable:
            link = self._open_link(address)
        if guid:
            link.guid = guid
        link.want(channel)

    def _open_link(self, address: Address) -> ServerLink:
        link = self._links[address] = ServerLink(self, address)
        self._spawn(link.connect())
        return link

    def connect_direct(self, channel: Channel, *, delay_s: float) -> None:
        """Connect a channel that is not searched for."""
        assert channel.server is not None
        address = channel.server
        if delay_s <= 0:
            self.loop.call_soon(self._connect_now, channel, address)
        else:
            self.loop.call_later(delay_s, self._connect_now, channel, address)

    def _connect_now(self, channel: Channel, address: Address) -> None:
        if channel.state is ChannelState.SEARCHING and channel.requests and not self._closed:
            self.connect(channel, address)

    def _name_server(self, address: Address) -> None:
        if self._closed:
            return
        link = self._links.get(address) or self._open_link(address)
        link.is_name_server = True
        self.name_servers.append(link)
        if link.ready:
            self.searcher.introduce(link)

    def _spawn(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def link_ended(self, link: ServerLink, reason: ApplianceError | None, *, was_ready: bool) -> None:
        """A connection is gone; one to a name server is tried again, its name being looked up anew."""
        if self._links.get(link.address) is link:
            del self._links[link.address]
        if not self._closed:
            self.searcher.lost_server(link.address, unexpected=was_ready and not link.expected)
        elif self._deserted is not None and not self._streams():
            self._deserted.set()
        if link in self.name_servers:
            self.name_servers.remove(link)
            if not self._closed:
                self.loop.call_later(NAME_SERVER_RETRY_S, self._name_server, link.address)

    def restarted(self, address: Address, guid: bytes, *, before: bytes = b"") -> None:
        """Another server process seems to answer at ``address``: connections to the one ``before`` may be dead.

        Those at that address, and those over TLS, whose port no beacon names.
        """
        for link in list(self._links.values()):
            if link.guid and link.guid != guid and (link.address == address or link.guid == before):
                link.suspect()

    def _streams(self) -> list[StreamLink]:
        return [link.stream for link in self._links.values() if link.stream is not None]


def _check_name(name: str) -> None:
    """Refuse a name that no search can carry, before it spoils the searches for others."""
    if not name:
        raise ChannelClosedError("the PV name is empty")
    try:
        size = len(name) if name.isascii() else len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise ChannelClosedError(
            f"the PV name {name!r:.80} cannot be encoded as UTF-8: {error.reason}"
        ) from None
    if size > MAX_NAME:
        raise ChannelClosedError(
            f"the PV name {name[:40]!r}... has {size} octets; a search datagram takes {MAX_NAME}"
        )


NAME_SERVER_RETRY_S: Final = 5.0
PROBES_S: Final = (0.0, 0.3, 2.0, 6.0, 12.0)
"""Seconds after which servers are asked whether they speak TLS now: after an outage they hear of their status when we do,
or one search later."""
UPGRADE_PATIENCE_S: Final = 5.0
"""Seconds for which requests in progress may keep a connection in the clear that could be TLS."""
MAX_TRIALS: Final = 4
"""TLS connections that are being tried to one server at the same time."""
MAX_PLACES: Final = 1000
"""Answers to one ``locate`` that are kept; anyone on the network may send them."""
MAX_NEWS: Final = 100_000
"""News of servers that wait for a listener who does not listen; beacons are anyone's to send."""


def _wants_choices(value: Any) -> bool:
    """Whether ``value`` may be the text of an enumeration's choice, which only the present value knows."""
    if isinstance(value, str):
        return True
    return isinstance(value, Mapping) and any(_wants_choices(item) for item in value.values())
