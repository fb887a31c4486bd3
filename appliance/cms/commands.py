"""What ``pvacms`` does once, and exits: backups, the audit."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from appliance.daemon.run import EXIT_OK
from appliance.errors import ConfigurationError

if TYPE_CHECKING:
    from appliance.cms.config import CMSConfig
    from appliance.cms.dialect import Login

__all__ = ["add_commands", "check_commands", "do_command"]

_TOLD_EVERY_S: Final = 0.2


def add_commands(parser: argparse.ArgumentParser, what: argparse._MutuallyExclusiveGroup) -> None:
    """Add the flags; ``what`` are those of which one is possible."""
    what.add_argument("--backup", metavar="FILE", help="copy the database, which may be in use, and exit")
    what.add_argument(
        "--copy-db",
        nargs=2,
        metavar=("FROM", "TO"),
        help="copy a database that no service uses into an empty one, each a file or the URL of a PostgreSQL database, and exit",
    )
    what.add_argument(
        "--restored",
        action="store_true",
        help="after a database was restored by its server's means, and before a service uses it: revoke again what the journal "
        "beside the data knows, refuse tokens of before, and exit",
    )
    what.add_argument("--audit-verify", action="store_true", help="check the audit's chain and exit")
    what.add_argument(
        "--audit-export",
        metavar="FILE",
        help="write the audit's records into a new file, one JSON object a line, and exit; - is standard output",
    )
    parser.add_argument(
        "--audit-from", metavar="N", help="with --audit-export: begin with the record of this number"
    )
    parser.add_argument(
        "--audit-file",
        metavar="FILE",
        help="with --audit-verify: check this file, which --audit-export has written, and not the database",
    )
    parser.add_argument(
        "--audit-head",
        metavar="HASH",
        help="with --audit-verify: a hash that an earlier run has shown as the head; it must still be in the chain",
    )


def check_commands(options: argparse.Namespace) -> None:
    """Raise ConfigurationError for a flag that would have no effect."""
    for flag, value, needed, wanted in (
        ("--audit-head", options.audit_head, "--audit-verify", options.audit_verify),
        ("--audit-file", options.audit_file, "--audit-verify", options.audit_verify),
        ("--audit-from", options.audit_from, "--audit-export", options.audit_export is not None),
    ):
        if value is not None and not wanted:
            raise ConfigurationError(f"{flag} has no effect without {needed}; add it")


def do_command(options: argparse.Namespace, resolve: Callable[[], CMSConfig]) -> int | None:
    """Do what the flags ask for.

    Args:
        options: The parsed flags.
        resolve: Returns the settings.

    Returns:
        The exit status; None if the flags ask for nothing of this.

    Raises:
        ApplianceError: It cannot be done; the text says why.
    """
    if options.backup is not None:
        from appliance.cms.copying import back_up

        effective = resolve()
        made = back_up(effective.settings.db, options.backup, _login(effective))
        sys.stdout.write(f"Database backup created : {made}\n")
        return EXIT_OK
    if options.copy_db is not None:
        source, target = options.copy_db
        return _copy(source, target, _login(resolve()))
    if options.restored:
        return _restored(resolve())
    if options.audit_verify:
        return _verify(options, resolve)
    if options.audit_export is not None:
        return _export(options, resolve)
    return None


def _login(effective: CMSConfig) -> Login:
    from appliance.cms.dialect import Login

    return Login(effective.settings.db_password, effective.settings.db_tls_ca)


def _copy(source: str, target: str, login: Login) -> int:
    from appliance.cms.config import check_file
    from appliance.cms.copying import copy_database
    from appliance.cms.dialect import check_url, is_sqlite, shown

    for where in (source, target):
        check_file(where)
        for warning in () if is_sqlite(where) else check_url(where):
            sys.stderr.write(f"pvacms: {warning}\n")
    with _Progress("rows") as progress:
        copied = copy_database(source, target, datetime.now(UTC), login=login, progress=progress.told)
    sys.stdout.write(
        f"Database copied : {shown(source)} to {shown(target)}: {copied.certificates} certificates, "
        f"{copied.records} audit records, head {copied.head}; the copy is one more record\n"
    )
    return EXIT_OK


def _restored(effective: CMSConfig) -> int:
    from appliance.cms.copying import has_certificates, mark_restored, unused
    from appliance.cms.dialect import shown
    from appliance.cms.service import CertificateService

    where = effective.settings.db
    # Without any, the next line would begin a new site with a new authority.
    if not has_certificates(where, _login(effective)):
        raise ConfigurationError(f"the database {shown(where)} has no certificates: restore it first")
    with unused(where, _login(effective)):
        pass
    service = CertificateService.open(effective, clock=lambda: datetime.now(UTC))
    try:
        service.store.run(lambda transaction: mark_restored(transaction, service.clock()))
        service.lifecycle.load()
    finally:
        service.close()
    sys.stdout.write(
        f"Database restored : {shown(where)}: what {service.journal.path} knows as revoked is revoked, and tokens that "
        "were issued before now are refused\n"
    )
    return EXIT_OK


def _verify(options: argparse.Namespace, resolve: Callable[[], CMSConfig]) -> int:
    from appliance.cms.audit import verify_audit, verify_exported

    head = options.audit_head
    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise ConfigurationError(
            f"--audit-head {head[:80]!r} is not the hash of an audit record; give the 64 hex digits that an earlier "
            "--audit-verify has shown as head"
        )
    if options.audit_file is not None:
        verdict = verify_exported(options.audit_file, head=head)
    else:
        effective = resolve()
        with _Progress("checked") as progress:
            verdict = verify_audit(
                effective.settings.db, head=head, progress=progress.told, login=_login(effective)
            )
    if not verdict.intact:
        raise ConfigurationError(f"the audit is broken: {verdict.fault}; {verdict.records} records are good")
    sys.stdout.write(f"audit intact: {verdict.records} records, head {verdict.head}\n")
    return EXIT_OK


def _export(options: argparse.Namespace, resolve: Callable[[], CMSConfig]) -> int:
    from appliance.cms.audit import export_audit

    first = options.audit_from or "1"
    if not (first.isascii() and first.isdecimal() and len(first) < 19 and int(first)):
        raise ConfigurationError(
            f"--audit-from {first[:32]!r} is not the number of a record; give a whole number, 1 or greater"
        )
    target = options.audit_export
    effective = resolve()
    with _Progress("exported") as progress:
        begin, end, found = export_audit(
            effective.settings.db, target, first=int(first), progress=progress.told, login=_login(effective)
        )
    shown = f"records {begin} to {end}" if end >= begin else "no records"
    # The records themselves may be on standard output.
    out = sys.stderr if target == "-" else sys.stdout
    out.write(f"audit exported: {shown}, head {found.head}\n")
    return EXIT_OK


class _Progress:
    """One line on a terminal, which is written again and again, and removed at the end."""

    def __init__(self, done: str) -> None:
        self._done = done
        self._is_shown = sys.stderr.isatty()
        self._at = 0.0
        self._width = 0

    def told(self, number: int, last: int) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if not self._is_shown or now - self._at < _TOLD_EVERY_S:
            return
        self._at = now
        text = f"{number:,} of {last:,} {self._done}"
        sys.stderr.write(f"\r{text.ljust(self._width)}")
        sys.stderr.flush()
        self._width = len(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            sys.stderr.write(f"\r{' ' * self._width}\r")
            sys.stderr.flush()
