"""The settings of PVAccess clients and servers: arguments, YAML, EPICS_* variables, defaults, in this order.

Only this module reads the variables of PVAccess clients and servers. The settings of a single program read its own variables
(``EPICS_PVA_AUTH_*``, ``EPICS_PVACMS_*`` of the certificate service's own keys, ``PVXS_LOG`` ...). Names, defaults and the
order of the variables are those of PVXS (``src/config.cpp``) and of the SPVA configuration reference. ``tls_required`` is
our own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, Generic, NamedTuple, NoReturn, Self, TypeVar, dataclass_transform

from appliance.config import value_of
from appliance.config.address import Endpoint
from appliance.config.keychain_path import refuse_password, split_password
from appliance.config.secret import Secret, resolve_reference
from appliance.config.section import Section
from appliance.config.tls_options import TLSOptions
from appliance.errors import ConfigurationError

__all__ = [
    "DIRECTORY_VERSIONS",
    "ClientConfig",
    "Effective",
    "ServerConfig",
    "from_variable",
    "resolve_client",
    "resolve_server",
    "variables",
    "versioned",
]

DIRECTORY_VERSIONS: Final = ("1.5", "1.3")
"""Keychains and data are in ``pva/<the first>`` below the XDG directories, where the peers' tools of 2026 look.

A file that exists only in an older directory is used there: a copy would be renewed in one place and become outdated in
the other.
"""

_TMO_SCALE: Final = 4.0 / 3.0


def versioned(base: str, name: str) -> str:
    """Return the path of a file below an XDG directory: where it is, or where to make it if it does not exist."""
    paths = [f"{base}/pva/{version}/{name}" for version in DIRECTORY_VERSIONS]
    return next((path for path in paths if os.path.lexists(path)), paths[0])


_NO_SECRET: Final = Secret()
_NO_OPTIONS: Final = TLSOptions()


# Neither dataclasses nor msgspec structs: every tool imports this module, and they cost 14 and 20 ms of start-up.


@dataclass_transform(kw_only_default=True, frozen_default=True)
class _Frozen:
    """A record whose fields are the annotated names of its classes: all have defaults and none can be assigned."""

    __fields__: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.__fields__ = (
            *cls.__fields__,
            *(name for name in cls.__annotations__ if name not in cls.__fields__),
        )

    def __init__(self, **values: Any) -> None:
        unknown = values.keys() - set(self.__fields__)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no setting {', '.join(sorted(unknown))}")
        self.__dict__.update({name: getattr(type(self), name) for name in self.__fields__}, **values)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name}: settings do not change; _replace makes a changed copy")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name}: settings do not change; _replace makes a changed copy")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
        )

    def _replace(self, **changes: Any) -> Self:
        """Make a changed copy.

        Args:
            changes: The fields that differ, by name.
        """
        return type(self)(**(vars(self) | changes))


class _Shared(_Frozen):
    """What clients and servers have in common."""

    broadcast_port: int = 5076
    """UDP port of searches and beacons."""
    server_port: int = 5075
    """TCP port; 0 lets a server take any free one."""
    conn_tmo: float = 30.0
    """Seconds, as configured; ``idle_timeout_s`` is what it means."""
    tls_port: int = 5076
    """TCP port of TLS connections."""
    tls_keychain: str = ""
    """Path of the PKCS#12 file; empty means plain TCP."""
    tls_keychain_password: Secret = _NO_SECRET
    tls_options: TLSOptions = _NO_OPTIONS
    """What EPICS_PVA_TLS_OPTIONS says, parsed."""
    cert_pv_prefix: str = "CERT"
    """First part of the names of the certificate service's PVs."""
    status_cache_dir: str = ""
    """Directory of the certificate status cache; empty stands for ``data_dir/status_cache``."""
    no_status_cache: bool = False
    xdg_config_home: str = ""
    """Base directory of configuration, without ``pva/1.5``."""
    xdg_data_home: str = ""
    """Base directory of data, without ``pva/1.5``."""
    tls_keylog_file: str = ""
    """File to which the secrets of TLS connections are written, for debugging; empty means none."""

    @property
    def config_dir(self) -> str:
        """Where new keychains are made. `config_file` finds existing ones."""
        return f"{self.xdg_config_home}/pva/{DIRECTORY_VERSIONS[0]}"

    @property
    def data_dir(self) -> str:
        """Where new databases and caches are made. `data_file` finds existing ones."""
        return f"{self.xdg_data_home}/pva/{DIRECTORY_VERSIONS[0]}"

    def config_file(self, name: str) -> str:
        """Return the path of a keychain or a file for it, in the directory of the present version or in an older one."""
        return versioned(self.xdg_config_home, name)

    def data_file(self, name: str) -> str:
        """Return the path of a database or a cache, in the directory of the present version or in an older one."""
        return versioned(self.xdg_data_home, name)

    def older_directories(self) -> list[str]:
        """Return the directories of older versions that exist and are read."""
        paths = [
            f"{base}/pva/{version}"
            for base in (self.xdg_config_home, self.xdg_data_home)
            for version in DIRECTORY_VERSIONS[1:]
        ]
        return [path for path in paths if os.path.isdir(path)]  # noqa: PTH112 - pathlib costs start-up time

    @property
    def status_cache(self) -> str:
        """The directory of the certificate status cache, or empty if it is switched off."""
        return "" if self.no_status_cache else self.status_cache_dir or self.data_file("status_cache")

    @property
    def idle_timeout_s(self) -> float:
        """Seconds of silence after which a connection is closed: 4/3 of ``conn_tmo``, at least 2.

        The variable was once the period of echo requests, so the peer must get more time (PVXS: 30 -> 40 s).
        """
        scaled = self.conn_tmo * _TMO_SCALE
        return 40.0 if not 0 < scaled < 2.0**63 else max(scaled, 2.0)

    @property
    def tls_enabled(self) -> bool:
        """Whether there is a keychain, so that this end speaks TLS."""
        return bool(self.tls_keychain)


class ClientConfig(_Shared):
    """The settings of a PVAccess client; immutable, ``_replace`` makes a changed copy.

    Example:
        >>> settings = resolve_client({"auto_addr_list": False, "addr_list": "192.0.2.7"}).config
        >>> settings.addr_list[0].host, settings._replace(conn_tmo=10.0).conn_tmo
        ('192.0.2.7', 10.0)
    """

    addr_list: tuple[Endpoint, ...] = ()
    """Destinations of UDP searches."""
    auto_addr_list: bool = True
    """Whether searches also go to the broadcast addresses of the local interfaces."""
    name_servers: tuple[Endpoint, ...] = ()
    """Servers that are searched over TCP or TLS."""
    intf_addr_list: tuple[Endpoint, ...] = ()
    """Local interfaces for searches and beacons; empty means all."""

    @property
    def tls_alone(self) -> bool:
        """Whether PVs are found over TLS only: there are name servers with ``pvas://``, and no other way to search."""
        return bool(
            self.name_servers
            and not self.addr_list
            and not self.auto_addr_list
            and all(server.tls for server in self.name_servers)
        )


class ServerConfig(_Shared):
    """The settings of a PVAccess server; immutable, ``_replace`` makes a changed copy.

    Example:
        >>> resolve_server({"server_port": 0}).config.server_port
        0
    """

    intf_addr_list: tuple[Endpoint, ...] = ()
    """Local addresses to listen on; empty means all."""
    ignore_addr_list: tuple[Endpoint, ...] = ()
    """Clients whose UDP searches are ignored."""
    beacon_addr_list: tuple[Endpoint, ...] = ()
    """Destinations of beacons."""
    auto_beacon_addr_list: bool = True
    """Whether beacons also go to the broadcast addresses of the interfaces that the server listens on."""
    beacon_period: float = 15.0
    """Seconds between beacons after the first burst."""
    tls_keychain_default: str = ""
    """Where a keychain may appear later, if none is named and none is at the usual place."""
    tls_stop_if_no_cert: bool = False
    """Whether the server stops if there is no usable certificate, instead of serving plain TCP."""


_C = TypeVar("_C", bound=ClientConfig | ServerConfig)


class _Setting(NamedTuple):
    key: str
    read: Callable[[object], Any]
    variables: tuple[str, ...]
    """In the order in which they are read."""
    strict: bool = False
    """Whether a bad value stops the program even if it comes from the environment, because ignoring it would reduce security."""


_A, _S, _M = "EPICS_PVA_", "EPICS_PVAS_", "EPICS_PVACMS_"


def _both(key: str, read: Callable[[object], Any]) -> _Setting:
    return _Setting(key, read, (_S + key.upper(), _A + key.upper()))


_CLIENT: Final = (
    _Setting("addr_list", value_of.addresses, ("EPICS_PVA_ADDR_LIST",)),
    _Setting("auto_addr_list", value_of.boolean, ("EPICS_PVA_AUTO_ADDR_LIST",)),
    _Setting("broadcast_port", value_of.client_port, ("EPICS_PVA_BROADCAST_PORT",)),
    _Setting("cert_pv_prefix", value_of.prefix, ("EPICS_PVA_CERT_PV_PREFIX",)),
    _Setting("conn_tmo", value_of.seconds, ("EPICS_PVA_CONN_TMO",)),
    _Setting("intf_addr_list", value_of.addresses, ("EPICS_PVA_INTF_ADDR_LIST",)),
    _Setting("name_servers", value_of.servers, ("EPICS_PVA_NAME_SERVERS",)),
    _Setting("no_status_cache", value_of.boolean, ("EPICS_PVA_NO_STATUS_CACHE",)),
    _Setting("server_port", value_of.client_port, ("EPICS_PVA_SERVER_PORT", "EPICS_PVAS_SERVER_PORT")),
    _Setting("status_cache_dir", value_of.text, ("EPICS_PVA_STATUS_CACHE_DIR",)),
    _Setting("tls_keychain", value_of.text, ("EPICS_PVA_TLS_KEYCHAIN",)),
    _Setting("tls_keylog_file", value_of.text, ("SSLKEYLOGFILE",)),
    _Setting("tls_options", value_of.tls_options, ("EPICS_PVA_TLS_OPTIONS",)),
    _Setting("tls_port", value_of.port, ("EPICS_PVA_TLS_PORT",)),
)
_SERVER: Final = (
    _Setting(
        "auto_beacon_addr_list",
        value_of.boolean,
        ("EPICS_PVAS_AUTO_BEACON_ADDR_LIST", "EPICS_PVA_AUTO_ADDR_LIST"),
    ),
    _Setting("beacon_addr_list", value_of.addresses, ("EPICS_PVAS_BEACON_ADDR_LIST", "EPICS_PVA_ADDR_LIST")),
    _both("beacon_period", value_of.period),
    _both("broadcast_port", value_of.port),
    _both("cert_pv_prefix", value_of.prefix),
    _Setting("conn_tmo", value_of.seconds, ("EPICS_PVA_CONN_TMO",)),
    _Setting("ignore_addr_list", value_of.addresses, ("EPICS_PVAS_IGNORE_ADDR_LIST",), strict=True),
    _Setting("intf_addr_list", value_of.addresses, ("EPICS_PVAS_INTF_ADDR_LIST",), strict=True),
    _Setting("no_status_cache", value_of.boolean, ("EPICS_PVA_NO_STATUS_CACHE",)),
    _both("server_port", value_of.port),
    _Setting("status_cache_dir", value_of.text, ("EPICS_PVA_STATUS_CACHE_DIR",)),
    _both("tls_keychain", value_of.text),
    _Setting("tls_keylog_file", value_of.text, ("SSLKEYLOGFILE",)),
    _both("tls_options", value_of.tls_options),
    _both("tls_port", value_of.port),
    _Setting("tls_stop_if_no_cert", value_of.boolean, ("EPICS_PVAS_TLS_STOP_IF_NO_CERT",)),
)
_CMS: Final = tuple(
    # The certificate service is a server, and its own variables come first.
    setting._replace(variables=(_M + setting.key.upper(), *setting.variables))
    for setting in _SERVER
)
_PASSWORD: Final = "tls_keychain_pwd_file"  # noqa: S105 - the name of a setting
_PATHS: Final = frozenset({"tls_keychain", "tls_keylog_file", "status_cache_dir"})
_XDG: Final = (
    ("xdg_config_home", "XDG_CONFIG_HOME", ".config"),
    ("xdg_data_home", "XDG_DATA_HOME", ".local/share"),
)


def variables() -> frozenset[str]:
    """Return the name of every variable that a client, a server or the certificate service reads for PVAccess."""
    return frozenset(
        {
            variable
            for table in (_CLIENT, _SERVER, _CMS)
            for setting in table
            for variable in setting.variables
        }
        | {f"{prefix}TLS_KEYCHAIN_PWD_FILE" for prefix in (_A, _S, _M)}
        | {variable for _, variable, _ in _XDG}
    )


def from_variable(name: str, text: str, *, client: bool) -> tuple[str, Any] | None:
    """Return the key in a configuration file that means the same as a variable, and the value for it.

    Args:
        name: The variable.
        text: Its value.
        client: Whether it is for a client; otherwise it is for a server.

    Returns:
        Key and value; None if no client, or no server, reads such a variable.

    Raises:
        ValueError: The value is bad; the text says why.
    """
    for setting in _CLIENT if client else _SERVER:
        if name in setting.variables:
            value = setting.read(text)
            return setting.key, value if isinstance(value, (bool, int, float)) else text
        if setting.key == "tls_keychain" and name in {
            f"{variable}_PWD_FILE" for variable in setting.variables
        }:
            return _PASSWORD, text
    return None


class Effective(Generic[_C]):
    """Settings with the source of each; `resolve_client` and `resolve_server` return them.

    Example:
        >>> found = resolve_client({"conn_tmo": 10})
        >>> found.config.conn_tmo, found.sources["conn_tmo"], found.warnings
        (10.0, 'argument', [])
    """

    __slots__ = ("config", "sources", "warnings")

    def __init__(self, config: _C, sources: dict[str, str], warnings: list[str]) -> None:
        self.config = config
        """The settings."""
        self.sources = sources
        """By key: ``argument``, ``file:line``, the variable's name, or ``default``."""
        self.warnings = warnings
        """One sentence for each value that could not be used and for each fact that an operator should know."""

    def render(self, client: bool | None = None) -> str:
        """Return the ``Effective config`` lines as ``pvxinfo -v`` (or a server's ``-v``) prints them."""
        as_client = isinstance(self.config, ClientConfig) if client is None else client
        prefix = _A if as_client else _S
        values = {prefix + key.upper(): text for key, text in _lines(self.config)}
        if as_client:
            values["XDG_CONFIG_HOME"] = self.config.config_dir
            values["XDG_DATA_HOME"] = self.config.data_dir
        notes = [
            f"# {path} is of an older version; its files that do not exist in pva/{DIRECTORY_VERSIONS[0]} beside it are used"
            for path in self.config.older_directories()
        ]
        return "\n".join(["Effective config", *(f"{name}={values[name]}" for name in sorted(values)), *notes])

    def explain(self) -> str:
        """Return every value with its source, one a line.

        Returns:
            The text, for an operator.

        Example:
            >>> print(resolve_client({"conn_tmo": 10}).explain())
            addr_list ...
            conn_tmo ... = 10  (argument)
            ...
        """
        rows = [(key, _show(getattr(self.config, key)), self.sources[key]) for key in sorted(self.sources)]
        wide = max(len(key) for key, _, _ in rows)
        return "\n".join(f"{key:<{wide}} = {value}  ({source})" for key, value, source in rows)


def resolve_client(
    arguments: Mapping[str, Any] | None = None,
    yaml: Section | Mapping[str, Any] | Any = None,
    environ: Mapping[str, str] | None = None,
    *,
    home: str | None = None,
) -> Effective[ClientConfig]:
    """Return a client's settings.

    Args:
        arguments: From a command line; None stands for "not given".
        yaml: A section of a configuration file (a section that was read, a struct or a mapping).
        environ: The variables; by default the process's.
        home: The user's directory; by default from the password database.

    Returns:
        The settings. A bad variable is a warning, and its default is used.

    Raises:
        ConfigurationError: A bad argument or YAML value.

    Example:
        >>> settings = resolve_client({"conn_tmo": 10}).config
        >>> async with Context(settings) as second:
        ...     value = await second.get("demo:temperature")
        >>> value["value"]
        21.5
    """
    found = _Resolution(arguments, yaml, environ, home)
    found.run(_CLIENT, "client.p12")
    return Effective(ClientConfig(**found.values), found.sources, found.warnings)


def resolve_server(
    arguments: Mapping[str, Any] | None = None,
    yaml: Section | Mapping[str, Any] | Any = None,
    environ: Mapping[str, str] | None = None,
    *,
    cms: bool = False,
    home: str | None = None,
) -> Effective[ServerConfig]:
    """Return a server's settings.

    Args:
        arguments: From a command line; None stands for "not given".
        yaml: A section of a configuration file (a section that was read, a struct or a mapping).
        environ: The variables; by default the process's.
        cms: Whether EPICS_PVACMS_* come first and ``pvacms.p12`` is the keychain, as for the certificate service.
        home: The user's directory; by default from the password database.

    Returns:
        The settings. A bad variable is a warning, and its default is used.

    Raises:
        ConfigurationError: A bad argument or YAML value. Also, unlike other variables, a bad EPICS_PVAS_INTF_ADDR_LIST or
            EPICS_PVAS_IGNORE_ADDR_LIST: a server on all interfaces would open what should be closed.

    Example:
        >>> settings = resolve_server({"intf_addr_list": "127.0.0.1", "server_port": 0}).config
        >>> second = Server(settings)
    """
    found = _Resolution(arguments, yaml, environ, home)
    if cms:
        found.run(_CMS, "pvacms.p12")
    else:
        found.run(_SERVER, "server.p12")
    return Effective(ServerConfig(**found.values), found.sources, found.warnings)


class _Resolution:
    """One pass over all sources."""

    def __init__(
        self,
        arguments: Mapping[str, Any] | None,
        yaml: Section | Mapping[str, Any] | Any,
        environ: Mapping[str, str] | None,
        home: str | None,
    ) -> None:
        self.given = {key: value for key, value in (arguments or {}).items() if value is not None}
        self.section = yaml if isinstance(yaml, Section) else Section.of(yaml)
        self.environ: Mapping[str, str] = os.environ if environ is None else environ
        self.home = _home(self.environ) if home is None else home
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.warnings: list[str] = []
        self.behind_name: Secret | None = None
        """The password of ``FILE;PASSWORD``."""

    def run(self, settings: tuple[_Setting, ...], keychain_name: str) -> None:
        self.refuse_unknown(
            {setting.key for setting in settings} | {_PASSWORD, "xdg_config_home", "xdg_data_home"}
        )
        self.directories()
        for setting in settings:
            if not self.override(setting.key, setting.read):
                self.from_environment(setting)
            if setting.key == "tls_keychain" and setting.key in self.values:
                self.split_keychain()
            if setting.key in _PATHS and setting.key in self.values:
                self.values[setting.key] = self.expand(self.values[setting.key])
        if "tls_keychain" not in self.values:
            path = versioned(self.values["xdg_config_home"], keychain_name)
            # The certificate service makes its keychain if there is none; others work without.
            if keychain_name == "pvacms.p12" or self.exists(path):
                self.values["tls_keychain"] = path
            elif keychain_name == "server.p12":
                self.values["tls_keychain_default"] = path
        self.password(next(setting.variables for setting in settings if setting.key == "tls_keychain"))

    def split_keychain(self) -> None:
        """Take the password out of ``FILE;PASSWORD`` at once, so that nothing shows it later."""
        key = "tls_keychain"
        source = self.sources[key]
        if source == "argument":
            # Arguments are often those of a command line, which every user of the machine can read.
            refuse_password(self.values[key], source)
        in_file = source not in self.environ
        try:
            self.values[key], self.behind_name = split_password(self.values[key], key if in_file else source)
        except ConfigurationError as error:
            raise self.fault(str(error), key, source) if in_file else error from None
        if in_file and self.behind_name is not None:
            self.warnings.append(
                f"{source}: the keychain's password is in a configuration file; put it into a file of its own (chmod 600) "
                f"and name that with {_PASSWORD}"
            )

    def refuse_unknown(self, known: set[str]) -> None:
        for key in self.given:
            if key not in known:
                raise self.fault("unknown setting", key, "argument")
        for key in self.section.value:
            if key not in known:
                raise self.fault(f"unknown setting; known are {', '.join(sorted(known))}", key, "yaml")

    def directories(self) -> None:
        for key, variable, default in _XDG:
            self.values[key], self.sources[key] = f"{self.home}/{default}", "default"
            value = self.environ.get(variable, "")
            # The XDG base directory specification: an empty or relative path counts as not set.
            if value.startswith("/"):
                self.values[key], self.sources[key] = value.rstrip("/"), variable
            elif value:
                self.warnings.append(f"{variable}={value!r} ignored: not an absolute path")
            self.override(key, value_of.directory)

    def override(self, key: str, read: Callable[[object], Any]) -> bool:
        """Take an argument or else a YAML value; both are refused if they are bad."""
        if key in self.given:
            raw, source = self.given[key], "argument"
        elif key in self.section.value:
            raw, source = self.section.value[key], self.section.where(key)
        else:
            return False
        try:
            self.values[key] = read(raw)
        except ValueError as error:
            # The value of a keychain may hold its password.
            shown = "" if key == "tls_keychain" else f", not {raw!r}"
            why = str(error) if isinstance(error, value_of.PartlyUsable) else f"{error}{shown}"
            raise self.fault(why, key, source) from error
        self.sources[key] = source
        return True

    def from_environment(self, setting: _Setting) -> None:
        self.sources[setting.key] = "default"
        name = next((name for name in setting.variables if name in self.environ), None)
        if name is None:
            return
        raw = self.environ[name]
        try:
            value = setting.read(raw)
        except value_of.PartlyUsable as error:
            if setting.strict:
                raise ConfigurationError(str(error), key=name) from error
            self.warnings += [f"{name}: {fault}" for fault in error.faults]
            value = error.usable
        except ValueError as error:
            if setting.key == "tls_keychain":
                raise ConfigurationError(str(error), key=name) from None
            # To a server this means any free port; in a shell for both it tells a client nothing.
            any_port = setting.read is value_of.client_port and name.startswith(_S) and raw.strip() == "0"
            if not any_port:
                self.warnings.append(f"{name}={raw!r} ignored: {error}; the default is used")
            return
        self.values[setting.key], self.sources[setting.key] = value, name

    def password(self, keychain_variables: tuple[str, ...]) -> None:
        key = "tls_keychain_password"
        self.sources[key] = "default"
        if self.behind_name is not None:
            self.take_password_behind_name(keychain_variables)
            return
        if self.override(_PASSWORD, value_of.text):
            path, source = self.values.pop(_PASSWORD), self.sources.pop(_PASSWORD)
            if not path:
                return
            try:
                secret = Secret.first_line(
                    self.expand(path), setting=source if source != "argument" else _PASSWORD
                )
            except ConfigurationError as error:
                raise self.fault(str(error), _PASSWORD, source) from error
        else:
            # A password belongs to the keychain of the same prefix: EPICS_PVA's does not open EPICS_PVAS's.
            own = self.sources["tls_keychain"]
            names = (own,) if own in keychain_variables else keychain_variables
            source = next((f"{name}_PWD_FILE" for name in names if self.environ.get(f"{name}_PWD_FILE")), "")
            if not source:
                return
            try:
                secret = Secret.first_line(self.expand(self.environ[source]), setting=source, strict=False)
            except ConfigurationError as error:
                self.warnings.append(f"{source} ignored: {error}")
                return
        if secret.finding:
            self.warnings.append(secret.finding)
        self.values[key], self.sources[key] = secret, source

    def take_password_behind_name(self, keychain_variables: tuple[str, ...]) -> None:
        source = self.sources["tls_keychain"]
        names = (source,) if source in keychain_variables else keychain_variables
        others = [f"{name}_PWD_FILE" for name in names if self.environ.get(f"{name}_PWD_FILE")]
        if self.override(_PASSWORD, value_of.text):
            del self.values[_PASSWORD]
            others.insert(0, self.sources.pop(_PASSWORD))
        if others:
            self.warnings.append(
                f"{others[0]} has no effect: {source} has a password after the keychain's name, and that one is used"
            )
        self.values["tls_keychain_password"], self.sources["tls_keychain_password"] = self.behind_name, source

    def expand(self, path: str) -> str:
        if path == "~" or path.startswith("~/"):
            return (self.environ.get("HOME") or self.home) + path[1:]
        if path.startswith("."):
            return os.path.normpath(f"{os.getcwd()}/{path}")  # noqa: PTH109 - pathlib costs start-up time
        try:
            return resolve_reference(path, self.environ) or path
        except ConfigurationError as error:
            self.warnings.append(str(error))
            return path

    def exists(self, path: str) -> bool:
        try:
            os.stat(path)  # noqa: PTH116 - pathlib costs start-up time
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            # Nobody knows whether there is one. Whoever opens it hears why, and does not go on without it.
            return True
        return True

    def fault(self, why: str, key: str, source: str) -> ConfigurationError:
        if source == "argument" or not self.section.file:
            return ConfigurationError(why, key=key)
        section = self.section
        return ConfigurationError(
            why, file=section.file, line=section.lines.get((key,)), key=section.key(key)
        )


def _home(environ: Mapping[str, str]) -> str:
    # HOME is used only without an entry in the password database: PVXS does the same, and sudo changes HOME.
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir.rstrip("/")
    except KeyError:
        return environ.get("HOME", "").rstrip("/")


_SHOWN: Final = (
    "addr_list",
    "auto_addr_list",
    "name_servers",
    "intf_addr_list",
    "ignore_addr_list",
    "beacon_addr_list",
    "auto_beacon_addr_list",
    "tls_stop_if_no_cert",
    "broadcast_port",
    "server_port",
    "conn_tmo",
    "tls_port",
    "tls_keychain",
    "tls_keychain_password",
    "tls_options",
    "cert_pv_prefix",
    "status_cache_dir",
)
"""Settings in the order in which PVXS prints them."""


def _lines(config: ClientConfig | ServerConfig) -> Iterable[tuple[str, str]]:
    """Yield what PVXS prints: nothing for an empty setting, and the prefix only if it is not the usual one."""
    for key in _SHOWN:
        value = getattr(config, key, None)
        if value is None:
            continue
        if key == "conn_tmo" and isinstance(config, ServerConfig):
            continue
        if key == "cert_pv_prefix" and value == "CERT":
            continue
        if key == "tls_keychain_password":
            if value:
                yield "tls_keychain_pwd_file", "<password read>"
        elif value or not isinstance(value, (str, tuple)):
            yield key, _show(value)


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "YES" if value else "NO"
    if isinstance(value, float):
        return f"{value:.12g}"
    if type(value) is tuple:
        return " ".join(map(str, value))
    return str(value)
