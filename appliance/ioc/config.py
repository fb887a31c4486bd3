"""The settings of the IOC, from its YAML file or its command line."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from appliance.config.loader import Settings, default
from appliance.config.secret import FilePath
from appliance.config.settings import ServerSettings
from appliance.daemon.logging import faults_of_level
from appliance.errors import ConfigurationError
from appliance.ioc import dbcore
from appliance.ioc.caputlog import parse_servers

__all__ = [
    "AccessFile",
    "Database",
    "GroupFile",
    "IocConfig",
    "Library",
    "LibraryStep",
    "LoadStep",
    "OnError",
    "Plan",
    "is_substitutions",
    "plan_of",
]

_Name = Annotated[str, Meta(min_length=1, max_length=64)]
_Organization = Annotated[str, Meta(min_length=1, max_length=64)]
OnError = Literal["stop", "continue"]
_Macros = dict[_Name, Annotated[str, Meta(max_length=4096)]]


class Database(Settings, frozen=True, kw_only=True):
    """A record database."""

    file: FilePath
    """A record database (``.db``), or a substitution file (``.substitutions``, ``.subs``, ``.sub``)."""
    macros: _Macros = msgspec.field(default_factory=dict)
    """Values for ``$(NAME)``."""


class GroupFile(Settings, frozen=True, kw_only=True):
    """Group definitions in JSON."""

    file: FilePath
    """A ``.json`` file."""
    macros: _Macros = msgspec.field(default_factory=dict)
    """Values for ``$(NAME)``."""


class AccessFile(Settings, frozen=True, kw_only=True):
    """An access security file."""

    file: FilePath
    """The file, in the classic form or in YAML."""
    macros: _Macros = msgspec.field(default_factory=dict)
    """Values for ``$(NAME)``."""
    inputs_require_tls: bool = False
    """Read inputs (INPA ... INPU) from other servers over TLS only; without TLS their rules do not hold."""
    organizations: tuple[_Organization, ...] = ()
    """Organizations (O) whose people match a name without an organization in a UAG, besides that of the IOC's own certificate; `*`: all."""


class Library(Settings, frozen=True, kw_only=True):
    """A shared library with device support, compiled by the site."""

    file: FilePath
    """A shared library (`.so`). Only root and the IOC's own user may be able to change it, or the directories on its path."""
    definitions: tuple[FilePath, ...] = ()
    """The definition files (`.dbd`) that name what the library brings."""


class StatsRecords(Settings, frozen=True, kw_only=True):
    """Records about the state of the IOC."""

    prefix: Annotated[str, Meta(min_length=1, max_length=40, pattern="^[^$(){}\"'\\s]+$")]
    """The beginning of their names: `<prefix>:HEARTBEAT`, `<prefix>:UPTIME` ..."""
    engineer: Annotated[str, Meta(max_length=39)] = ""
    """The text of `<prefix>:ENGINEER`; by default the variable `ENGINEER`."""
    location: Annotated[str, Meta(max_length=39)] = ""
    """The text of `<prefix>:LOCATION`; by default the variable `LOCATION`."""


class CaPutLogSettings(Settings, frozen=True, kw_only=True):
    """The put log in the form of the module caPutLog, beside `put_log`."""

    servers: tuple[Annotated[str, Meta(min_length=1, max_length=260)], ...] = ()
    """Log servers, `HOST` or `HOST:PORT`; the port is 7011 where none is given. Give servers, or a file, or both."""
    file: FilePath = default(FilePath())
    """A file to which the lines are appended."""
    format: Literal["text", "json"] = "text"
    """The form of the lines: that of `caPutLogInit`, or that of `caPutJsonLogInit`."""
    mode: Literal["changes", "all", "unfiltered"] = "changes"
    """`changes`: not puts of the same value; `all`: these too, both with bursts combined; `unfiltered`: every single put."""
    burst_timeout: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    """Seconds without a put after which a burst is over."""


class IocConfig(Settings, frozen=True, kw_only=True):
    """The IOC's configuration file."""

    definition: FilePath = default(FilePath())
    """A database definition (``.dbd``) instead of the standard record types."""
    libraries: tuple[Library, ...] = ()
    """Device support in C, compiled by the site; loaded in this order, before all databases."""
    databases: tuple[Database, ...] = ()
    """Record databases, loaded in this order. Give at least one, or a script."""
    groups: tuple[GroupFile, ...] = ()
    """Group definitions, in addition to those in the databases' ``info(Q:group, ...)``."""
    acf: AccessFile | None = None
    """Access security; without it everybody may do everything."""
    enforce_read: bool = True
    """Apply the rules of `acf` to reading too; false: to writing only, as the reference's IOC does."""
    stats: StatsRecords | None = None
    """Records about the state of the IOC, with the names of the module iocStats."""
    exit_prefix: Annotated[str, Meta(max_length=40)] = ""
    """Add the records ``<prefix>:exit`` and ``<prefix>:BaseVersion``."""
    script: FilePath = default(FilePath())
    """Commands of the IOC shell, run when all databases are loaded and before iocInit; paths in it are relative to this file's folder."""
    on_error: OnError = "stop"
    """What happens if a command of `script` fails: `stop` ends the start, `continue` reports it and runs the next command."""
    console: FilePath = default(FilePath())
    """A UNIX socket through which operators use the IOC shell; members of its group can open it."""
    console_group: Annotated[str, Meta(max_length=32)] = ""
    """The group of the console's socket; empty: the daemon's own."""
    put_log: FilePath = default(FilePath())
    """A file for the log of puts that access security selects (TRAPWRITE); each record seals the records before it."""
    put_log_required: bool = True
    """Refuse puts that must be logged while `put_log` cannot be written; false: do them and log an error."""
    ca_put_log: CaPutLogSettings | None = None
    """Log the same puts as the module caPutLog does."""
    channel_access: bool = False
    """Serve Channel Access too. It has no TLS and no proof of identity: only rules of `acf` that need neither apply to it."""
    log_level: Annotated[str, Meta(max_length=256)] = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`; `PVXS_LOG` sets single parts."""
    pva: ServerSettings = msgspec.field(default_factory=ServerSettings)

    def __post_init__(self) -> None:
        for fault in faults_of_level(self.log_level):
            raise ValueError(f"log_level: {fault}")
        if not self.databases and not self.script and self.stats is None:
            raise ValueError("databases: name at least one file, or give a script that loads records")
        if self.on_error != "stop" and not self.script:
            raise ValueError("on_error: it has no effect without a script; give script, or remove on_error")
        if self.console_group and not self.console:
            raise ValueError(
                "console_group: it has no effect without a console; give console, or remove console_group"
            )
        if self.ca_put_log is not None:
            if not self.ca_put_log.servers and not self.ca_put_log.file:
                raise ValueError("ca_put_log: name servers, or a file")
            try:
                parse_servers(" ".join(self.ca_put_log.servers))
            except ConfigurationError as error:
                raise ValueError(f"ca_put_log.servers: {error.why}") from None
        if not self.put_log_required and not self.put_log:
            raise ValueError(
                "put_log_required: it has no effect without a put log; give put_log, or remove put_log_required"
            )


class LoadStep(NamedTuple):
    """A file and the macros for it, as EPICS writes them."""

    file: str
    macros: str = ""


class LibraryStep(NamedTuple):
    """A shared library and its definition files."""

    file: str
    definitions: tuple[str, ...] = ()


class CaPutLogPlan(NamedTuple):
    """What the log in the form of caPutLog does."""

    servers: str = ""
    file: str = ""
    is_json: bool = False
    mode: int = 0
    burst_s: float = 5.0


class Plan(NamedTuple):
    """The steps of a start."""

    definition: str = ""
    libraries: tuple[LibraryStep, ...] = ()
    databases: tuple[LoadStep, ...] = ()
    groups: tuple[LoadStep, ...] = ()
    acf: LoadStep | None = None
    stats_prefix: str = ""
    engineer: str = ""
    location: str = ""
    exit_prefix: str = ""
    script: str = ""
    is_interactive: bool = False
    is_verbose: bool = False
    console: str = ""
    console_group: str = ""
    put_log: str = ""
    put_log_required: bool = True
    ca_put_log: CaPutLogPlan | None = None
    channel_access: bool = False
    inputs_require_tls: bool = False
    organizations: tuple[str, ...] = ()
    enforce_read: bool = False
    """False on the command line, as in the reference's IOC; true in a configuration file."""
    on_error: OnError = "stop"
    initialises: bool = False
    """Whether iocInit follows a script that has not run it, as with a configuration file; a st.cmd must run it itself."""
    folder: str = ""
    """The folder for relative paths in the script and in databases; empty: the folder where the program was started."""

    template_names: int = 0
    """``dbTemplateMaxVars`` of EPICS Base, if a script has set it; 0: EPICS' own."""
    is_check: bool = False
    """Whether this is only a check; then slow checks are done too."""

    @property
    def loads_anything(self) -> bool:
        """Whether the plan names any file."""
        return bool(
            self.libraries or self.databases or self.groups or self.acf or self.script or self.definition
        )

    @property
    def loads_records(self) -> bool:
        """Whether the plan itself loads records, so that it must run iocInit."""
        return bool(self.databases or self.stats_prefix or self.exit_prefix or self.initialises)


_NO_MACROS: Final = ""


def _step(entry: Database | GroupFile | AccessFile) -> LoadStep:
    return LoadStep(entry.file, dbcore.macro_text(entry.macros) if entry.macros else _NO_MACROS)


def is_substitutions(file: str) -> bool:
    """Whether ``file`` is the name of a substitution file, which EPICS loads with ``dbLoadTemplate``."""
    return file.endswith((".substitutions", ".subs", ".sub"))


def _ca_put_log(settings: CaPutLogSettings | None) -> CaPutLogPlan | None:
    if settings is None:
        return None
    return CaPutLogPlan(
        " ".join(settings.servers),
        settings.file,
        settings.format == "json",
        ("changes", "all", "unfiltered").index(settings.mode),
        settings.burst_timeout,
    )


def plan_of(config: IocConfig, folder: str = "") -> Plan:
    """Return the plan that a configuration file in ``folder`` asks for.

    Raises:
        ConfigurationError: A macro has a name or a value that EPICS does not accept.
    """
    return Plan(
        definition=config.definition,
        libraries=tuple(LibraryStep(each.file, each.definitions) for each in config.libraries),
        databases=tuple(_step(entry) for entry in config.databases),
        groups=tuple(_step(entry) for entry in config.groups),
        acf=_step(config.acf) if config.acf is not None else None,
        stats_prefix=config.stats.prefix if config.stats is not None else "",
        engineer=config.stats.engineer if config.stats is not None else "",
        location=config.stats.location if config.stats is not None else "",
        exit_prefix=config.exit_prefix,
        script=config.script,
        console=config.console,
        console_group=config.console_group,
        put_log=config.put_log,
        put_log_required=config.put_log_required,
        ca_put_log=_ca_put_log(config.ca_put_log),
        channel_access=config.channel_access,
        inputs_require_tls=config.acf is not None and config.acf.inputs_require_tls,
        organizations=config.acf.organizations if config.acf is not None else (),
        enforce_read=config.enforce_read,
        on_error=config.on_error,
        initialises=True,
        folder=folder,
    )
