"""``softIocPVX``: the IOC as a command and as a daemon."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from appliance.config.pva import Effective, ServerConfig, resolve_server
from appliance.daemon.commandline import Parser, add_completion, add_daemon_options, add_version
from appliance.daemon.extras import require
from appliance.daemon.run import EXIT_FAILURE, EXIT_OK, Daemon, run
from appliance.errors import ApplianceError, ConfigurationError

if TYPE_CHECKING:
    from appliance.ioc.config import IocConfig, Plan
    from appliance.server import Server

__all__ = ["main"]

_NAME: Final = "softIocPVX"
_log: Final = logging.getLogger(__name__)
_EPILOG: Final = """\
Any number of -m, -d and -G can be given; each -m replaces the macros for the
options after it. A st.cmd file runs before iocInit; where no -d was given it
must run iocInit itself. Settings of the server: EPICS_PVAS_* and EPICS_PVA_*
variables.

examples:
  softIocPVX -m user=test -d records.db -a rules.acf
      records, access security, and the shell of the IOC
  softIocPVX -S -d records.db -G groups.json
      no shell; it runs until it is stopped
  softIocPVX --check-config st.cmd
      only check a start script, and everything that it loads
  softIocPVX --config /etc/spva/ioc/pressure/ioc.yml --check-config
      only check the file
"""
_PATHS: Final = (
    "EPICS_PVA_TLS_KEYCHAIN",
    "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE",
    "EPICS_PVAS_TLS_KEYCHAIN",
    "EPICS_PVAS_TLS_KEYCHAIN_PWD_FILE",
    "EPICS_PVA_STATUS_CACHE_DIR",
    "SSLKEYLOGFILE",
)
_STATUS_S: Final = 2.0
"""Seconds between two updates of the service manager's status line."""


class _Ordered(argparse.Action):
    """Options whose order matters: a -m applies to the -d, -a and -G that follow it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.steps = [*namespace.steps, (option_string, values)]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_NAME,
        usage="softIocPVX [options] [st.cmd]\n       softIocPVX --config FILE\n       softIocPVX --attach SOCKET",
        description="An EPICS IOC that serves its records with Secure PVAccess.",
        epilog=_EPILOG,
    )
    add_version(parser, _base_version)
    add_completion(parser)
    parser.set_defaults(steps=[])
    add = parser.add_argument
    add("-S", dest="no_shell", action="store_true", help="do not start an interactive shell")
    add("-s", dest="shell", action="store_true", help=argparse.SUPPRESS)
    add(
        "-D",
        dest="definition",
        metavar="DBD",
        default="",
        help="database definition to load instead of softIoc's",
    )
    add("-m", dest="steps", action=_Ordered, metavar="MACRO=VALUE,...", help="macros for what follows")
    add("-d", dest="steps", action=_Ordered, metavar="DB", help="load records from a file")
    add("-G", dest="steps", action=_Ordered, metavar="JSON", help="load group definitions from a file")
    add("-a", dest="steps", action=_Ordered, metavar="ACF", help="access security file")
    add(
        "--enforce-read",
        action="store_true",
        help="apply the access security rules to reading too; without this option they apply to writing only, "
        "as in the reference's IOC",
    )
    add(
        "--organization",
        dest="organizations",
        action="append",
        default=[],
        metavar="O",
        help="a name without an organization in a UAG also means people of this organization (people of the IOC's own "
        "organization always); *: of every organization",
    )
    add("-x", dest="exit_prefix", metavar="PREFIX", default="", help="add PREFIX:exit, which ends the IOC")
    add(
        "--attach",
        metavar="SOCKET",
        default="",
        help="type at the console of an IOC that runs as a daemon, with history and completion; excludes all else",
    )
    add_daemon_options(
        parser,
        config="run as a daemon, as a YAML file says; excludes the options above",
        verbose="display the steps of the start-up",
    )
    add("script", nargs="?", metavar="st.cmd", default="", help="commands of the IOC shell")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``softIocPVX``; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        if options.print_schema:
            return _print_schema()
        if options.attach:
            return _attach(parser, options)
        require("ioc")
        if options.config is not None:
            return _daemon(parser, options)
        if options.print_config:
            parser.error("--print-config shows a configuration file: name it with --config FILE")
        plan = _plan(options)
        if options.check_config:
            return _check_plan(parser, plan)
    except ApplianceError as error:
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_FAILURE
    if not plan.is_interactive and not plan.loads_records and not plan.script:
        parser.print_usage(sys.stderr)
        sys.stderr.write("Nothing to do!\n")
        return EXIT_FAILURE
    return _run(plan, None, level="DEBUG" if options.verbose else "INFO")


def _plan(options: argparse.Namespace) -> Plan:
    from appliance.ioc.config import LoadStep, Plan

    macros = ""
    databases: list[LoadStep] = []
    groups: list[LoadStep] = []
    acf: LoadStep | None = None
    for option, value in options.steps:
        if option == "-m":
            macros = value
        elif option == "-d":
            databases.append(LoadStep(value, macros))
        elif option == "-G":
            groups.append(LoadStep(value, macros))
        else:
            acf = LoadStep(value, macros)
    return Plan(
        definition=options.definition,
        databases=tuple(databases),
        groups=tuple(groups),
        acf=acf,
        exit_prefix=options.exit_prefix,
        script=options.script,
        is_interactive=not options.no_shell,
        is_verbose=options.verbose,
        organizations=tuple(options.organizations),
        enforce_read=options.enforce_read,
    )


def _check_plan(parser: argparse.ArgumentParser, plan: Plan) -> int:
    """Check what a command line without a configuration file would start."""
    if not plan.loads_anything:
        parser.error("name what to check: --config FILE, a st.cmd, or -d FILE.db")
    from appliance.ioc.check import check

    for warning in check(plan):
        sys.stderr.write(f"Warning: {warning}\n")
    files = [plan.script] if plan.script else [each.file for each in plan.databases]
    sys.stdout.write(f"{', '.join(files) or 'the command line'}: good\n")
    return EXIT_OK


def _base_version() -> str:
    try:
        import epicscorelibs.version as core
    except ModuleNotFoundError:
        return "EPICS Base is not installed"
    return f"EPICS {core.version}"


def _print_schema() -> int:
    from appliance.config import loader
    from appliance.ioc.config import IocConfig

    sys.stdout.write(loader.schema_text(IocConfig))
    return EXIT_OK


_SHELL: Final = "iocsh"
_PLAIN: Final = (
    "steps", "definition", "exit_prefix", "script", "no_shell", "shell", "verbose", "organizations", "enforce_read",
)  # fmt: skip
"""What belongs to an IOC that is started by its command line."""


def _attach(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if any(getattr(options, name) for name in (*_PLAIN, "config", "check_config", "print_config")):
        parser.error("--attach cannot be combined with other options")
    from appliance.ioc.attach import attach

    return EXIT_OK if attach(options.attach) else EXIT_FAILURE


def _daemon(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from appliance.config import loader
    from appliance.ioc.config import IocConfig, plan_of

    if any(getattr(options, name) for name in _PLAIN):
        parser.error("--config cannot be combined with other options; write the settings into the file")
    document = loader.load_document(options.config, IocConfig)
    effective = resolve_server(yaml=document.section("pva"))
    plan = plan_of(document.value, os.path.dirname(os.path.abspath(options.config)))  # noqa: PTH100, PTH120
    if options.check_config:
        from appliance.ioc.check import check

        for warning in [*check(plan), *_keychain_warnings(effective.config)]:
            sys.stderr.write(f"Warning: {warning}\n")
        sys.stdout.write(f"{options.config}: good\n")
        return EXIT_OK
    if options.print_config:
        sys.stdout.write(loader.dump(document.value) + _commented(effective))
        return EXIT_OK
    file = os.path.abspath(options.config)  # noqa: PTH100 - the start changes the folder

    def resolve() -> ServerConfig:
        from appliance.ioc.qsrv_env import shell_environment

        again = resolve_server(
            yaml=loader.load_document(file, IocConfig).section("pva"), environ=shell_environment()
        )
        for warning in again.warnings:
            _log.warning("%s", warning)
        return _with_absolute_paths(again.config)

    return _run(plan, document.value, level=document.value.log_level, effective=effective, resolve=resolve)


def _keychain_warnings(config: ServerConfig) -> list[str]:
    """Say what the start will say of the keychain. Warnings only: a deployment checks the file before it makes the keychain."""
    if not config.tls_keychain:
        return []
    from appliance.certmon.live_keychain import LiveKeychain

    said, _ = LiveKeychain(config).rehearse()
    return [said] if said else []


def _commented(effective: Effective[ServerConfig]) -> str:
    return "".join(f"# {line}\n" for line in effective.render().splitlines())


def _run(
    plan: Plan,
    config: IocConfig | None,
    *,
    level: str,
    effective: Effective[ServerConfig] | None = None,
    resolve: Callable[[], ServerConfig] | None = None,
) -> int:
    from appliance.daemon import logging as daemon_logging

    faults = daemon_logging.configure(level=level, fmt="auto" if config is not None else "text")
    for fault in faults:
        _log.warning("%s", fault)
    status = EXIT_OK

    async def serve(daemon: Daemon) -> None:
        nonlocal status
        found = resolve_server() if effective is None else effective
        for warning in found.warnings:
            _log.warning("%s", warning)
        status = await _serve(daemon, plan, found.config, resolve)

    with _terminal_kept(plan):
        status = run(serve, name=_NAME) or status
    if any(thread.name == _SHELL for thread in threading.enumerate()):
        # It waits for a line, with standard input's lock, and an interpreter that ends in good order would abort at it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _terminal_kept(plan: Plan) -> AbstractContextManager[None]:
    if not plan.is_interactive:
        return nullcontext()
    from appliance.ioc.terminal import terminal_kept

    return terminal_kept()


async def _serve(
    daemon: Daemon, plan: Plan, config: ServerConfig, resolve: Callable[[], ServerConfig] | None
) -> int:
    """Serve until the end is requested; return the exit status that an exit record or the shell gives."""
    import asyncio

    from appliance.ioc import dbcore
    from appliance.ioc.ioc import Ioc
    from appliance.ioc.qsrv_env import why_not_served

    loop = asyncio.get_running_loop()
    if plan.folder:
        config = _moved(config, plan.folder)
    if not why_not_served():
        sys.stdout.write("INFO: Secure PVAccess QSRV2 mapping is loaded, permitted, and ENABLED.\n")
        sys.stdout.flush()
    ioc = Ioc(plan, config, resolve)
    status = EXIT_OK

    def leave(code: int) -> None:
        nonlocal status
        status = code
        loop.call_soon_threadsafe(daemon.stop)

    dbcore.register_exit(leave)
    daemon.on_reload(ioc.access.reload)
    try:
        await ioc.start()
        server = ioc.server
        served = 0 if ioc.switched_off else dbcore.record_count()
        if not plan.is_interactive:
            # With a shell its prompt shows this; the reference prints nothing then.
            _log.info(
                "serving %d records on TCP port %s, TLS port %s",
                served,
                server.tcp_port or "off",
                server.tls_port or "off",
            )
        told = _summary(served, server)
        daemon.ready(told)
        if plan.is_interactive:
            # A separate thread, and nobody waits for it: a shell that waits for a line cannot be ended.
            threading.Thread(target=_shell, args=(leave,), name=_SHELL, daemon=True).start()
        stopping = asyncio.ensure_future(daemon.wait())
        while True:
            done, _ = await asyncio.wait([stopping], timeout=_STATUS_S)
            if done:
                break
            # The TLS port opens when a keychain appears, and closes when it expires.
            before, told = told, _summary(served, server)
            if told != before:
                daemon.status(told)
    finally:
        await ioc.stop()
    return status


def _moved(config: ServerConfig, folder: str) -> ServerConfig:
    """Change to the folder of the configuration file: paths in a start script are relative to it.

    Paths in the environment stay relative to the folder where the program was started.
    """
    for name in _PATHS:
        value = os.environ.get(name)
        if value:
            # FILE;PASSWORD: the password is no path.
            path, semicolon, password = value.partition(";")
            os.environ[name] = os.path.abspath(path) + semicolon + password  # noqa: PTH100 - text in, text out
    config = _with_absolute_paths(config)
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigurationError(f"cannot be entered: {error.strerror or error}", file=folder) from None
    return config


def _with_absolute_paths(config: ServerConfig) -> ServerConfig:
    paths: dict[str, Any] = {
        field: os.path.abspath(value)  # noqa: PTH100
        for field in ("tls_keychain", "tls_keylog_file", "status_cache_dir", "tls_keychain_default")
        if (value := getattr(config, field, ""))
    }
    return config._replace(**paths)


def _summary(served: int, server: Server) -> str:
    """One line for the service manager."""
    return f"{served} records, TCP port {server.tcp_port or 'off'}, TLS port {server.tls_port if server.tls else 'off'}"


def _shell(leave: Any) -> None:
    from appliance.ioc.terminal import run_terminal

    leave(EXIT_OK if run_terminal() else EXIT_FAILURE)


if __name__ == "__main__":
    sys.exit(main())
