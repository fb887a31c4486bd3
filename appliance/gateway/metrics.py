"""Metrics for Prometheus, on a port of loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import TimeoutError as TooLate
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, make_server

from appliance.daemon.extras import require
from appliance.errors import TransportError
from appliance.gateway.accounts import Counts, Totals
from appliance.version import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["GAUGES", "METRICS", "NAMES", "Sample", "serve_metrics"]

_PATIENCE_S: Final = 5.0
"""Seconds that a request waits for the event loop."""
_SILENCE_S: Final = 10.0
"""Seconds after which a client that says nothing is dropped."""
_REQUESTS: Final = 16
"""Requests at the same time; each has a thread."""


class Sample(NamedTuple):
    """What the metrics are made of."""

    totals: Totals
    counts: Counts
    clients: int
    servers: int
    in_flight: int
    refused_requests: int
    refused_names: int
    health: int


_Made = tuple[str, str, Callable[[Sample], float]]

METRICS: Final[tuple[_Made, ...]] = (
    ("pvagw_upstream_sent_octets", "Octets that were sent to servers.", lambda sample: sample.totals.us_tx),
    ("pvagw_upstream_received_octets", "Octets that came from servers.", lambda sample: sample.totals.us_rx),
    ("pvagw_downstream_sent_octets", "Octets that were sent to clients.", lambda sample: sample.totals.ds_tx),
    (
        "pvagw_downstream_received_octets",
        "Octets that came from clients.",
        lambda sample: sample.totals.ds_rx,
    ),
    ("pvagw_requests", "Requests of clients.", lambda sample: sample.totals.requests),
    (
        "pvagw_merged_updates",
        "Updates that were merged into later ones for clients that read too slowly.",
        lambda sample: sample.totals.dropped,
    ),
    (
        "pvagw_refused_requests",
        "Requests that were refused because too many waited for answers of servers.",
        lambda sample: sample.refused_requests,
    ),
    (
        "pvagw_refused_names",
        "Searches for new names that were not looked for because their host asked for too many.",
        lambda sample: sample.refused_names,
    ),
)
"""Counters: the name (Prometheus adds ``_total``), the meaning, the number."""
GAUGES: Final[tuple[_Made, ...]] = (
    ("pvagw_clients", "Connections of clients.", lambda sample: sample.clients),
    ("pvagw_servers", "Connections to servers.", lambda sample: sample.servers),
    (
        "pvagw_requests_in_flight",
        "Requests that wait for answers of servers, without shared GETs.",
        lambda sample: sample.in_flight,
    ),
    ("pvagw_health", "0 OK, 1 DEGRADED, 2 BAD, as the PV health has it.", lambda sample: sample.health),
)
"""Gauges: the name, the meaning, the number."""
NAMES: Final = ("pvagw_names", "Names that the gateway knows.", ("active", "inactive", "unconnected"))
"""A gauge for each state of a name: the name, the meaning, the states, which are fields of `Counts`."""


class _Collector:
    def __init__(self, read: Callable[[], Coroutine[Any, Any, Sample]]) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()

    def describe(self) -> list[Metric]:
        return []  # the registry would call collect(), and this thread is the event loop's

    def collect(self) -> Iterator[Metric]:
        """Read everything on the event loop, where it does not change meanwhile."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        asked = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            sample = asked.result(_PATIENCE_S)
        except TooLate:
            asked.cancel()
            raise
        yield InfoMetricFamily("pvagw", "The gateway.", {"version": __version__})
        for name, meaning, number in METRICS:
            yield CounterMetricFamily(name, meaning, number(sample))
        for name, meaning, number in GAUGES:
            yield GaugeMetricFamily(name, meaning, number(sample))
        metric, meaning, states = NAMES
        names = GaugeMetricFamily(metric, meaning, labels=["state"])
        for state in states:
            names.add_metric([state], getattr(sample.counts, state))
        yield names


class _Handler(WSGIRequestHandler):
    timeout = _SILENCE_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        del format, args


class _Metrics:
    """The HTTP server, which runs in threads of its own."""

    def __init__(self, read: Callable[[], Coroutine[Any, Any, Sample]], address: str, port: int) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
        from prometheus_client.exposition import ThreadingWSGIServer

        places = threading.BoundedSemaphore(_REQUESTS)

        class Bounded(ThreadingWSGIServer):
            def process_request(self, request: Any, client_address: Any) -> None:
                if places.acquire(blocking=False):
                    super().process_request(request, client_address)
                else:
                    self.shutdown_request(request)

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    places.release()

            def handle_error(self, request: Any, client_address: Any) -> None:
                del request, client_address  # a scraper that goes away in the middle is nothing to report

        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(read))
        ProcessCollector(registry=registry)
        try:
            self._server = make_server(address, port, make_wsgi_app(registry), Bounded, _Handler)
        except OSError as error:
            raise TransportError(
                f"metrics: port {port} of {address} cannot be used: {error.strerror}; choose another metrics.port"
            ) from None
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port; blocks for a moment."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve_metrics(read: Callable[[], Coroutine[Any, Any, Sample]], address: str, port: int) -> _Metrics:
    """Open the port. Call it on the event loop.

    Args:
        read: Gives the numbers; it runs on the event loop.
        address: An address of loopback.
        port: The TCP port.

    Raises:
        ConfigurationError: The package prometheus-client is not installed.
        TransportError: The port cannot be used.
    """
    require("gateway")
    return _Metrics(read, address, port)
