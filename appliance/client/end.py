"""What all parts of one client share: its settings, its TLS, its gate, its clock and its timings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from appliance.config.pva import ClientConfig
from appliance.pva.limits import DEFAULT_LIMITS, Limits
from appliance.pvdata.value import Value
from appliance.transport.gate import PeerGate

if TYPE_CHECKING:
    from appliance.tls.context import TLSContext

__all__ = ["DEFAULT_TIMINGS", "ClientEnd", "Clock", "ServerAddress", "Timer", "Timings"]


class ServerAddress(NamedTuple):
    """Where a server takes connections."""

    host: str
    port: int
    tls: bool
    """Whether that port speaks TLS."""


class Timings(NamedTuple):
    """Seconds that a client waits. A test passes shorter ones; programs have no reason to."""

    search_s: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
    """From one search for a name to the next; the last one repeats for ever."""
    longest_search_s: float = 30.0
    """From one search for a name to the next, at the most."""
    search_tick_s: float = 0.02
    """From one burst of searches to the next."""
    hurry_holdoff_s: float = 5.0
    """In which news of servers hurry the search at most once; news that come earlier count at the end of that time."""
    resolve_s: float = 60.0
    """For which the addresses of an address list's names are kept."""
    resolve_holdoff_s: float = 1.0
    """After the loss of a server, until names are looked up again."""
    silence_s: float = 360.0
    """Without a beacon, after which a server counts as gone: two periods of the slow beacons."""
    silence_check_s: float = 60.0
    """From one look for silent servers to the next."""
    idle_channel_s: float = 10.0
    """For which a channel that nobody uses is kept for the next use."""
    name_server_retry_s: float = 5.0
    """After the loss of a name server, until it is connected again."""
    probes_s: tuple[float, ...] = (0.0, 0.3, 2.0, 6.0, 12.0)
    """After which servers are asked whether they speak TLS now. After an outage of the certificate service a server
    learns its status when we do, or one search later."""
    upgrade_patience_s: float = 5.0
    """For which requests in progress may keep a plain connection that could be TLS."""
    upgrade_check_s: float = 0.05
    """From one look whether such requests are done to the next."""
    suspicion_s: float = 2.0
    """In which a server that seems to have been restarted must answer an echo."""
    close_s: float = 1.0
    """In which servers must take what is left for them when the client closes."""


DEFAULT_TIMINGS = Timings()


class Timer(Protocol):
    """Something that will happen, unless it is cancelled."""

    def cancel(self) -> None:
        """Prevent it."""


class Clock(Protocol):
    """Tells the time and calls back later. An event loop is one; a test may bring its own."""

    def time(self) -> float:
        """Return the present time in seconds, on a clock that never goes back."""

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Call at the next turn."""

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Call after ``delay`` seconds."""

    def call_at(self, when: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Call when ``time()`` says ``when``."""


class ClientEnd:
    """Hold what all parts of one client share: its end of all connections.

    Args:
        config: Addresses, ports and time-outs.
        tls: The TLS context of the client's keychain; without one the client speaks plain TCP only.
        require_tls: Whether no PV may be used over plain TCP.
        gate: Judges TLS connections by the status of certificates.
        limits: Bounds for what one server may send.
        segment_size: Octets in one message, above which it is sent in segments; 0 never cuts a message.
        octets: Whether ``uint8[]`` is read as ``bytes``, without numpy. For values that are read and not changed.
        timings: How long the client waits for what.
    """

    __slots__ = (
        "_claimed",
        "clock",
        "closed",
        "config",
        "gate",
        "limits",
        "loop",
        "now",
        "octets",
        "require_tls",
        "segment_size",
        "timings",
        "tls",
    )

    loop: asyncio.AbstractEventLoop
    """The event loop that the client runs in; set by ``start``."""
    clock: Clock
    """Usually the event loop."""
    now: Callable[[], float]
    """The clock's time."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        tls: TLSContext | None = None,
        require_tls: bool = False,
        gate: PeerGate | None = None,
        limits: Limits = DEFAULT_LIMITS,
        segment_size: int = 0,
        octets: bool = False,
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        self.config = config
        self.tls = tls
        self.require_tls = require_tls
        self.gate = gate
        self.limits = limits
        self.segment_size = segment_size
        self.octets = octets
        self.timings = timings
        self.closed = False
        """Whether the client is closed, or about to be: nothing new is begun."""
        self._claimed: Value | None = None

    def start(self, loop: asyncio.AbstractEventLoop, clock: Clock | None = None) -> None:
        """Take the event loop into use, and as the clock unless ``clock`` is given."""
        self.loop = loop
        self.use_clock(loop if clock is None else clock)

    def use_clock(self, clock: Clock) -> None:
        """Take the time from ``clock``."""
        self.clock = clock
        self.now = clock.time

    def protocols(self) -> tuple[str, ...]:
        """Return what a search asks for: never TLS alone, since PVXS reads no names in a search without ``tcp``."""
        return ("tls", "tcp") if self.require_tls or self.tls is not None else ("tcp",)

    def avoids_tls(self, guid: bytes) -> bool:
        """Whether TLS to the server with this GUID is of no use at present (SPVA 12.5)."""
        return self.gate is not None and self.gate.avoids(guid)

    def claimed_identity(self) -> Value:
        """Return the payload of authentication method ``ca``."""
        if self._claimed is None:
            from appliance.client.account import claimed_identity

            self._claimed = claimed_identity()
        return self._claimed
