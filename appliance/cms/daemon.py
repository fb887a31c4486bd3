"""The program ``pvacms``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from appliance.daemon.commandline import Parser, add_completion, add_daemon_options, add_version
from appliance.daemon.extras import require
from appliance.daemon.run import EXIT_FAILURE, EXIT_OK, Daemon, run
from appliance.errors import ApplianceError, ConfigurationError

if TYPE_CHECKING:
    from appliance.cms.config import CMSConfig
    from appliance.cms.service import CertificateService

__all__ = ["main"]

_NAME: Final = "pvacms"
_log: Final = logging.getLogger("appliance.cms")
_EPILOG: Final = """\
Settings come from flags, the configuration file, EPICS_* variables and
defaults, in this order. SIGHUP reads the configuration and the access security
file again.

examples:
  pvacms
      serve, with the settings of this account
  pvacms --config /etc/spva/pvacms.yml --check-config
      only check the file
  pvacms --config /etc/spva/pvacms.yml --backup certs.db.copy
      copy the database, also while the service runs
  pvacms --config /etc/spva/pvacms.yml --audit-export audit.jsonl
      write the audit into a file, one JSON object a line
"""
_LONGEST_SLEEP_S: Final = 0.5
"""Seconds between two looks at the wall clock, which somebody may set."""
_LOOK_AFTER_S: Final = 60.0
"""Seconds after the start until the database is looked after for the first time, and between two looks whether it is due."""
_DAY_S: Final = 86_400.0
_RULE: Final = "+=======================================+======================================="
_LINE: Final = "+---------------------------------------+---------------------------------------"


def _parser() -> argparse.ArgumentParser:
    from appliance.cms.commands import add_commands
    from appliance.cms.options import add_flags

    parser = Parser(
        prog=_NAME,
        usage="pvacms [options]",
        description="PVAccess certificate management service: issues certificates for a Secure PVAccess network, "
        "manages their life, and tells their status.",
        epilog=_EPILOG,
    )
    add_version(parser)
    add_completion(parser)
    what = add_daemon_options(
        parser, config="YAML configuration", verbose="print the effective configuration, log more"
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print only that the service runs, not what it uses"
    )
    what.add_argument(
        "--admin-keychain-new",
        metavar="NAME",
        help="make an administrator's keychain, add NAME to the ACF, exit",
    )
    what.add_argument(
        "--admin-keychain-ensure",
        metavar="NAME",
        help="make an administrator's keychain if there is none, and serve",
    )
    add_commands(parser, what)
    what.add_argument(
        "--make-csr",
        metavar="FILE",
        help="write a request for the certificate of an intermediate authority, and exit; -: to standard output",
    )
    what.add_argument(
        "--install-chain",
        metavar="FILE",
        nargs="+",
        help="make the authority from the key of the request and these certificates (PEM), and exit",
    )
    what.add_argument(
        "--new-authority",
        action="store_true",
        help="make a new root beside the present one, with both cross-certificates, and exit; nothing is switched",
    )
    what.add_argument(
        "--print-bundle",
        action="store_true",
        help="print what verifies the service's certificates (PEM), the present root first, and exit",
    )
    add_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pvacms``; returns the exit status: 0, or 1 with one sentence on standard error."""
    from appliance.cms.commands import check_commands

    options = _parser().parse_args(argv)
    try:
        check_commands(options)
        if not options.print_schema:
            require("cms")
        with _interruptible():
            done = _one_shot(options)
        if done is not None:
            return done
        with _without_collector():
            effective = _resolve(options)
        from appliance.daemon import logging as daemon_logging

        level = "DEBUG" if options.verbose else effective.settings.log_level
        for fault in (*daemon_logging.configure(level=level, gathers=True), *effective.warnings):
            _log.warning("%s", fault)
        if options.admin_keychain_new is not None:
            return _new_administrator(effective, options.admin_keychain_new)
    except ApplianceError as error:
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        sys.stderr.write("Error: interrupted before it was done\n")
        return EXIT_FAILURE

    async def serve(daemon: Daemon) -> None:
        await _serve(daemon, effective, options)

    return run(serve, name=_NAME)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a command as SIGINT does, so that what it has begun is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _resolve(options: argparse.Namespace) -> CMSConfig:
    from appliance.cms.config import resolve

    return resolve(options, config=options.config)


def _one_shot(options: argparse.Namespace) -> int | None:
    if options.print_schema:
        from appliance.cms.config import CMSSettings
        from appliance.config.loader import schema_text

        sys.stdout.write(schema_text(CMSSettings))
        return EXIT_OK
    if options.check_config:
        from appliance.cms.policy import read_acf

        effective = _resolve(options)
        import os

        if os.path.lexists(effective.settings.acf):
            read_acf(effective.settings.acf)
        for warning in effective.warnings:
            sys.stderr.write(f"{_NAME}: {warning}\n")
        sys.stdout.write(f"{options.config or 'the configuration'}: good\n")
        return EXIT_OK
    if options.print_config:
        sys.stdout.write(_shown(_resolve(options)))
        return EXIT_OK
    if options.make_csr is not None or options.install_chain or options.new_authority or options.print_bundle:
        _ceremony(options)
        return EXIT_OK
    from appliance.cms.commands import do_command

    return do_command(options, lambda: _resolve(options))


def _ceremony(options: argparse.Namespace) -> None:
    from appliance.cms import ceremony

    settings, now = _resolve(options).settings, _now()
    if options.make_csr is not None:
        ceremony.make_request(settings, options.make_csr)
    elif options.install_chain:
        ceremony.install_chain(settings, options.install_chain, now)
    elif options.new_authority:
        ceremony.new_authority(settings, now)
    else:
        ceremony.print_bundle(settings, now)


def _shown(effective: CMSConfig) -> str:
    from appliance.config.loader import dump

    server = "".join(f"#   {line}\n" for line in effective.server_lines)
    return dump(effective.settings) + "# The server:\n" + server


def _new_administrator(effective: CMSConfig, name: str) -> int:
    from appliance.cms.default_acf import add_administrator, ensure_acf
    from appliance.cms.service import CertificateService
    from appliance.cms.setup import ensure_administrator, say

    service = CertificateService.open(effective, clock=_now, beside=True)
    try:
        ensure_administrator(effective.settings, service.issuing, name, must_be_new=True)
        acf = effective.settings.acf
        if not ensure_acf(acf, service.authority, name):
            add_administrator(acf, name)
    finally:
        service.close()
    say(f'Admin user "{name}" has been added to list of administrators of this PVACMS')
    say("Restart the PVACMS, or send it SIGHUP, for it to take effect")
    return EXIT_OK


def _now() -> datetime:
    return datetime.now(UTC)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Import and make what stays until the end: nothing of it is garbage, and looking for it would take a tenth of a start."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


async def _serve(daemon: Daemon, effective: CMSConfig, options: argparse.Namespace) -> None:
    with contextlib.ExitStack() as start:
        start.enter_context(_without_collector())
        await _served(daemon, effective, options, start)


async def _served(
    daemon: Daemon, effective: CMSConfig, options: argparse.Namespace, start: contextlib.ExitStack
) -> None:
    """Serve until the end; ``start`` is closed when all is made."""
    from appliance.cms.service import CertificateService

    with daemon.notifier.starting():
        service = CertificateService.open(effective, clock=_now)
    try:
        with daemon.notifier.starting():
            service.first_start(ensure=options.admin_keychain_ensure)
            await service.start()

        async def reload() -> None:
            fresh = _resolve(options)
            for warning in fresh.warnings:
                _log.warning("%s", warning)
            await service.reload(fresh)
            _log.info("configuration and access security file were read again")

        daemon.on_reload(reload)
        if options.verbose:
            sys.stdout.write("Effective config\n" + _shown(effective))
        _banner(effective, service, quiet=options.quiet)
        server = service.server
        if server is not None:
            _log.info("serving on TCP port %d and TLS port %d", server.tcp_port, server.tls_port)
        daemon.ready(service.health.summary())
        gc.freeze()
        start.close()
        # The first status needs it, and no start.
        asyncio.get_running_loop().run_in_executor(None, importlib.import_module, "numpy")
        clock = asyncio.create_task(_keep_time(service, daemon), name="clock")
        database = asyncio.create_task(_look_after_database(service), name="database")
        backups = asyncio.create_task(_make_backups(service), name="backups")
        wait = asyncio.create_task(daemon.wait(), name="stop")
        try:
            await asyncio.wait((clock, wait), return_when=asyncio.FIRST_COMPLETED)
            if clock.done():
                clock.result()
        finally:
            clock.cancel()
            database.cancel()
            backups.cancel()
            wait.cancel()
        sys.stdout.write(f"\n{_RULE}\n| PVACMS [{service.names.issuer_id}] Service Exiting     |\n{_RULE}\n")
        sys.stdout.flush()
    finally:
        await service.stop()


def _banner(effective: CMSConfig, service: CertificateService, *, quiet: bool) -> None:
    from appliance.authn.trust import fingerprint
    from appliance.certs.x509 import subject_text

    settings = effective.settings
    anchor = fingerprint(service.authority.root)
    rows = (
        ("Certificate Database", service.store._shown()),
        ("Certificate Authority", subject_text(service.authority.issuer.certificate.subject)),
        ("Certificate Authority Fingerprint", anchor),
        (
            ("Certificate Authority Key", settings.ca_key.partition("?")[0])
            if settings.ca_key
            else ("Certificate Authority Keychain File", settings.cert_auth_tls_keychain)
        ),
        ("PVACMS Keychain File", effective.server.tls_keychain),
        ("PVACMS Access Control File", settings.acf),
    )
    lines = [_RULE, "| EPICS Secure PVAccess Certificate Management Service", _LINE]
    lines += [f"| {name:<38}: {value}" for name, value in rows]
    lines = [_RULE] if quiet else [*lines, _LINE]
    lines += [f"| PVACMS [{service.names.issuer_id}] Service Running     |", _RULE]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
    # For those who see the journal and not the screen.
    _log.info("the fingerprint of the trust anchor, to be published, is %s", anchor)


async def _keep_time(service: CertificateService, daemon: Daemon) -> None:
    """Apply the changes that the clock makes, check the health."""
    next_health = 0.0
    before, was_right = service.clock(), True
    while True:
        now = service.clock()
        if now < before - timedelta(seconds=1):
            _log.warning("the clock was set back by %s", before - now)
            service.lifecycle.step_back()
            for publisher in service.publishers:
                publisher.step_back()
        before = now
        if service.store.fatal:
            raise ConfigurationError(service.store.fatal)
        busy = service.tick()
        monotonic, is_right = time.monotonic(), not service.host_clock.fault()
        if monotonic >= next_health or is_right is not was_right:
            was_right = is_right
            next_health = monotonic + service.settings.health_interval_s
            await service.health.check()
            service.own.look()
            daemon.status(service.health.summary())
        await asyncio.sleep(0 if busy else service.pause(_LONGEST_SLEEP_S))


async def _make_backups(service: CertificateService) -> None:
    """Make the periodic backups, beside everything else: the copy of a large database takes minutes."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(_LONGEST_SLEEP_S)
        interval = service.settings.backup_interval_s
        if interval and time.monotonic() - last >= interval:
            last = time.monotonic()
            try:
                await service.upkeep.backup()
            except Exception:  # noqa: BLE001 - one that failed, for whatever reason, must not be the last one
                _log.exception("the database backup has failed")


async def _look_after_database(service: CertificateService) -> None:
    """Check the database and remove old records of the audit, from time to time, beside everything else."""
    due = time.monotonic()
    while True:
        await asyncio.sleep(_LOOK_AFTER_S)
        with contextlib.suppress(ApplianceError):  # HEALTH says it
            await service.upkeep.audit.look()
        with contextlib.suppress(ApplianceError):  # the next one makes up for it
            await service.lifecycle.revocations.checkpoint()
            await service.forget_silent_nodes()
            await service.succession.look_after()
        if time.monotonic() >= due:
            due = time.monotonic() + (service.settings.integrity_check_interval_s or _DAY_S)
            await service.upkeep.look_after()


if __name__ == "__main__":
    sys.exit(main())
