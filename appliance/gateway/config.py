"""The settings of the gateway, from its YAML file or from a file of p4p's gateway."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from appliance.config.address import parse_endpoint, parse_endpoints
from appliance.config.loader import Settings, default
from appliance.config.networks import Networks
from appliance.config.pva import ClientConfig, Effective, ServerConfig, resolve_client, resolve_server
from appliance.config.secret import FilePath
from appliance.config.section import Section
from appliance.config.settings import ClientSettings, ServerSettings
from appliance.daemon.logging import faults_of_level

__all__ = [
    "Access",
    "Bounds",
    "ClientSide",
    "GatewayConfig",
    "Metrics",
    "Relay",
    "ServerSide",
    "Sides",
    "resolve_sides",
]

_Side = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_Port = Annotated[int, Meta(ge=0, le=65535)]
_Prefix = Annotated[str, Meta(max_length=200)]
_Seconds = Annotated[float, Meta(ge=0, le=3600)]
_Positive = Annotated[float, Meta(gt=0, le=3600)]
_Macros = dict[_Name, Annotated[str, Meta(max_length=4096)]]
_Octets = Annotated[str, Meta(pattern=r"^[0-9]{1,15} ?([KMG]iB)?$")]

_SIZE: Final = re.compile(r"([0-9]+) ?([KMG]iB)?")
_UNITS: Final = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_LEAST_OCTETS: Final = 1 << 20
_KEPT_VARIABLES: Final = (
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "EPICS_PVA_STATUS_CACHE_DIR",
    "EPICS_PVA_NO_STATUS_CACHE",
    "CREDENTIALS_DIRECTORY",
    "HOME",
)
"""The variables that the sides read: where files are. Addresses, ports and keychains would be the same on both sides."""


class ClientSide(Settings, frozen=True, kw_only=True):
    """A side towards servers."""

    pva: ClientSettings = msgspec.field(default_factory=ClientSettings)
    """Addresses, ports, name servers and keychain. Variables of the environment are not read."""
    ignore_servers: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] = ()
    """Addresses of hosts whose answers are not used, for instance another gateway's outer side."""
    queue_size: Annotated[int, Meta(ge=2, le=10_000)] = 16
    """``record[queueSize]`` of the subscriptions that clients share."""


class Access(Settings, frozen=True, kw_only=True):
    """Access security of one server side."""

    file: FilePath = default(FilePath())
    """The access security file, in the classic form or in YAML; without it everybody may do everything."""
    macros: _Macros = msgspec.field(default_factory=dict)
    """Values for ``$(NAME)``."""
    organizations: tuple[_Name, ...] = ()
    """Organizations (O) whose people match a name without an organization in a UAG; `*`: all."""
    inputs: Annotated[str, Meta(max_length=64)] = ""
    """The client side through which inputs (INPA ... INPU) are read; empty: the server's first one."""


class Relay(Settings, frozen=True, kw_only=True):
    """A port behind which clients reach the certificate service itself, with TLS from end to end."""

    names: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] = (
        "CERT:CREATE",
        "CERT:STATUS",
        "CERT:LIST",
        "CERT:SCHEDULE",
    )
    """The PVs that are answered with this port; with `:` and more behind it a name is meant too."""
    tls_port: Annotated[int, Meta(ge=1, le=65535)] = 5077
    """The port."""
    service: (
        Annotated[str, Meta(max_length=256)]
        | Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=16)]
    ) = ""
    """``pvas://HOST:PORT`` of the certificate service, or a list of them, one for each node: the first that takes connections is
    used. Empty: it is searched for on the server's first client side."""
    proxy_from: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()
    """Addresses and networks of gateways further out, whose relays reach the service through this one: they say for which client
    they speak (PROXY protocol, version 2). Empty: nobody may."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("names: give at least one; without names nobody is sent to the relay")
        for service in self.services:
            try:
                secure = parse_endpoint(service, uri=True).tls
            except ValueError as error:
                raise ValueError(f"service: {error}") from None
            if not secure:
                raise ValueError(f"service: {service!r} is not pvas://HOST:PORT; the relay is for TLS only")
        try:
            Networks(self.proxy_from)
        except ValueError as error:
            raise ValueError(f"proxy_from: {error}") from None

    @property
    def services(self) -> tuple[str, ...]:
        """The places in ``service``, in their order."""
        return ((self.service,) if self.service else ()) if isinstance(self.service, str) else self.service


class ServerSide(Settings, frozen=True, kw_only=True):
    """A side towards clients."""

    clients: tuple[_Side, ...] = ()
    """The client sides where names are looked for, in this order."""
    pva: ServerSettings = msgspec.field(default_factory=ServerSettings)
    """Addresses, ports and keychain. Variables of the environment are not read."""
    status_client: Annotated[str, Meta(max_length=64)] = ""
    """The client side through which the status of clients' certificates is followed; empty: the first one."""
    pvlist: FilePath = default(FilePath())
    """The PV list; without it every name is served."""
    access: Access = msgspec.field(default_factory=Access)
    """Access security."""
    enforce_read: bool = False
    """Apply the rules of access security to reading too; false: everybody may read what the PV list allows."""
    get_holdoff: _Seconds = 0.0
    """Seconds between two GETs of one PV at its server; clients that ask meanwhile wait and share the answer."""
    status_prefix: _Prefix = ""
    """The first part of the names of the gateway's own PVs; empty: there are none."""
    put_log: FilePath = default(FilePath())
    """A file for the log of puts that access security selects (TRAPWRITE); each record seals the records before it."""
    put_log_required: bool = True
    """Refuse puts that must be logged while `put_log` cannot be written, or its disk has not answered for five seconds; false: do
    them and log an error."""
    relay: Relay | None = None
    """Lets clients reach the certificate service with TLS from end to end; absent: they cannot."""


def _number(octets: str) -> int:
    match = _SIZE.fullmatch(octets)
    assert match is not None
    return int(match[1]) * _UNITS[match[2]]


class Bounds(Settings, frozen=True, kw_only=True):
    """The most that clients can make the gateway hold."""

    names: Annotated[int, Meta(ge=16, le=10_000_000)] = 100_000
    """Names that one client side knows; half of them may be names that no server has."""
    new_names_per_host: Annotated[int, Meta(ge=1, le=10_000_000)] = 20_000
    """New names that one host may ask for in ten seconds; further ones are not looked for."""
    client_octets: _Octets = "64MiB"
    """Updates that wait for one connection (``64MiB``); above that each subscription keeps only its latest value."""
    host_octets: _Octets | None = None
    """The same for all connections of one host together, and for their requests that wait for servers; as much again for answers
    that wait for them. Absent: four times `client_octets`."""
    open_patience_s: _Positive = 10.0
    """Seconds that a client's request to open a channel waits for a server of the name."""
    promise_s: _Positive = 10.0
    """Seconds that a search can be answered late, when a server of the name is found."""
    idle_name_s: _Positive = 60.0
    """Seconds that a name without users is kept."""

    def __post_init__(self) -> None:
        if self.most_octets < _LEAST_OCTETS:
            raise ValueError(
                f"client_octets: {self.client_octets} is too little for one large value; give 1MiB or more"
            )
        if self.most_octets_of_host < self.most_octets:
            raise ValueError(
                f"host_octets: {self.host_octets} is less than client_octets ({self.client_octets}), which has no effect then; give as "
                "much or more"
            )

    @property
    def most_octets(self) -> int:
        """`client_octets` as a number."""
        return _number(self.client_octets)

    @property
    def most_octets_of_host(self) -> int:
        """`host_octets` as a number."""
        return 4 * self.most_octets if self.host_octets is None else _number(self.host_octets)


class Metrics(Settings, frozen=True, kw_only=True):
    """Metrics for Prometheus."""

    port: _Port = 0
    """The TCP port; 0: none."""
    address: Annotated[str, Meta(max_length=64)] = "127.0.0.1"
    """The address; only those of loopback are accepted, because the port has no protection of its own."""


class GatewayConfig(Settings, frozen=True, kw_only=True):
    """The gateway's configuration file."""

    read_only: bool = False
    """Refuse PUT, PUT_GET, PROCESS and RPC whatever access security says, except for the gateway's own PVs."""
    log_level: Annotated[str, Meta(max_length=256)] = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`; `PVXS_LOG` sets single parts."""
    metrics: Metrics = msgspec.field(default_factory=Metrics)
    """Metrics for Prometheus."""
    clients: dict[_Side, ClientSide] = msgspec.field(default_factory=dict)
    """The sides towards servers, by names of your choice."""
    servers: dict[_Side, ServerSide] = msgspec.field(default_factory=dict)
    """The sides towards clients, by names of your choice."""
    bounds: Bounds = msgspec.field(default_factory=Bounds)
    """The most that clients can make the gateway hold."""

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise ValueError(fault)

    def _faults(self) -> Iterator[str]:
        for fault in faults_of_level(self.log_level):
            yield f"log_level: {fault}"
        if not self.servers:
            yield "servers: name at least one server side; without one nobody can reach the gateway"
        for name, server in self.servers.items():
            yield from self._faults_of(f"servers.{name}", server)
        yield from self._collisions()
        logs: dict[str, str] = {}
        for name, server in self.servers.items():
            if server.put_log and logs.setdefault(server.put_log, name) != name:
                yield f"servers.{name}.put_log: it is that of servers.{logs[server.put_log]}; give each its own file"
        address = self.metrics.address
        if not _is_loopback(address):
            yield (
                f"metrics.address: {address!r} is not an address of loopback, and the port has no protection; write 127.0.0.1 "
                "and let a web server on this host protect what leaves it"
            )

    def _faults_of(self, where: str, server: ServerSide) -> Iterator[str]:
        known = ", ".join(self.clients) or "none"
        for client in server.clients:
            if client not in self.clients:
                yield f"{where}.clients: there is no client side {client!r}; there are: {known}"
        if len(set(server.clients)) < len(server.clients):
            yield f"{where}.clients: a client side is named twice; name each once"
        for key, client in (("access.inputs", server.access.inputs), ("status_client", server.status_client)):
            if client and client not in self.clients:
                yield f"{where}.{key}: there is no client side {client!r}; there are: {known}"
        if any(letter.isspace() or not letter.isprintable() for letter in server.status_prefix):
            yield f"{where}.status_prefix: {server.status_prefix!r} has a blank or a control character; no tool can ask for such names"
        if not server.clients and not server.status_prefix:
            yield f"{where}: it serves nothing; give clients, or status_prefix for the gateway's own PVs"
        if not server.clients and server.relay is not None:
            yield f"{where}.relay: it needs a client side to reach the certificate service; give clients"
        if not server.put_log_required and not server.put_log:
            yield f"{where}.put_log_required: it has no effect without a put log; give put_log, or remove put_log_required"
        if not server.access.file and (server.access.macros or server.access.organizations):
            yield f"{where}.access: macros and organizations have no effect without access.file; give it, or remove them"

    def _collisions(self) -> Iterator[str]:
        """Find server sides that want the same port, or PVs of the same names, at one address."""
        sides = list(self.servers.items())
        for index, (name, server) in enumerate(sides):
            for other, earlier in sides[:index]:
                if not _addresses(server) & _addresses(earlier):
                    continue
                shared = sorted(_ports(server) & _ports(earlier))
                if shared:
                    yield (
                        f"servers.{name}.pva: TCP port {shared[0]} is that of servers.{other} at the same address; give another "
                        "port, or other addresses (intf_addr_list)"
                    )
                if server.status_prefix and server.status_prefix == earlier.status_prefix:
                    yield (
                        f"servers.{name}.status_prefix: {server.status_prefix!r} is that of servers.{other} at the same address; "
                        "give another prefix"
                    )

    @property
    def used_clients(self) -> frozenset[str]:
        """The client sides that a server side uses."""
        named = {
            name
            for server in self.servers.values()
            for name in (*server.clients, server.access.inputs, server.status_client)
        }
        return frozenset(named & self.clients.keys())


class _Anywhere(frozenset[str]):
    """Every address: it has something in common with any set of addresses."""

    def __and__(self, other: Any) -> frozenset[str]:
        return frozenset(("*",))

    __rand__ = __and__


def _addresses(server: ServerSide) -> frozenset[str]:
    written = server.pva.intf_addr_list
    items = written.split() if isinstance(written, str) else written or []
    found = frozenset(endpoint.host for endpoint in parse_endpoints(items)[0])
    if not found or found & {"0.0.0.0", "::"}:  # noqa: S104 - what is looked for
        return _Anywhere()
    return found


def _ports(server: ServerSide) -> set[int]:
    """Return the ports that the configuration names; a port that it does not name gives way."""
    pva = server.pva
    ports = {pva.server_port, pva.tls_port if pva.tls_keychain else None}
    if server.relay is not None:
        ports.add(server.relay.tls_port)
    return {port for port in ports if port}


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


class Sides(NamedTuple):
    """The settings of all sides, with the source of each, by the names of the sides."""

    clients: dict[str, Effective[ClientConfig]]
    servers: dict[str, Effective[ServerConfig]]


def resolve_sides(
    config: GatewayConfig,
    section: Callable[..., Section] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Sides:
    """Return the settings of all sides.

    Args:
        config: The gateway's configuration.
        section: Gives the part of the file below some keys, with its lines (`Document.section`); without it errors have none.
        environ: The variables; by default the process's. Of them only those are read that say where files are.

    Raises:
        ConfigurationError: A value is bad.
    """
    given = os.environ if environ is None else environ
    kept = {name: given[name] for name in _KEPT_VARIABLES if name in given}

    def part(kind: str, name: str, settings: Settings) -> Section:
        return Section.of(settings) if section is None else section(kind, name, "pva")

    return Sides(
        {
            name: resolve_client(yaml=part("clients", name, side.pva), environ=kept)
            for name, side in config.clients.items()
        },
        {
            name: resolve_server(yaml=part("servers", name, side.pva), environ=kept)
            for name, side in config.servers.items()
        },
    )
